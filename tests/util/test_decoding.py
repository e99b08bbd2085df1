"""Bytes from outside into typed values."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from trionode._util.decoding import UndecodableError, decode_untrusted


class Message(msgspec.Struct):
    """A type as applications have them."""

    text: str
    numbers: list[int] = []


class Picky(msgspec.Struct):
    """One that objects in its own words."""

    def __post_init__(self) -> None:
        """Object."""
        raise LookupError("\x1b[31m not today\n")


TYPES: list[Any] = [Message, Any, dict[str, int], dict[Any, Any], list[Message], int, float, bytes, Picky]
DECODERS = [kind(type=each) for kind in (msgspec.msgpack.Decoder, msgspec.json.Decoder) for each in TYPES]


@given(data=st.binary(max_size=200), which=st.sampled_from(DECODERS))
@example(data=b"\x81\x80\x01", which=DECODERS[1])
@example(data=b"\x81\x80\x01", which=DECODERS[3])
@example(data=b"\x91" * 100_000, which=DECODERS[1])
@example(data=b"[" * 100_000, which=DECODERS[len(TYPES) + 1])
@example(data=b"\xcf" + b"\xff" * 8, which=DECODERS[5])
@example(data=b"1" * 5000, which=DECODERS[len(TYPES) + 5])
@example(data=b"\xa1\xff", which=DECODERS[1])
@example(data=b"\x80", which=DECODERS[8])
def test_a_value_or_one_error(data: bytes, which: Any) -> None:
    """Whatever the bytes are, and whatever the type raises; the words are safe to show."""
    try:
        decode_untrusted(which, data)
    except UndecodableError as exc:
        assert str(exc).isprintable()
        assert exc.__cause__ is None


def test_what_is_right_is_decoded() -> None:
    """The value itself."""
    data = msgspec.msgpack.encode({"text": "a", "numbers": [1]})
    assert decode_untrusted(msgspec.msgpack.Decoder(Message), data) == Message("a", [1])


def test_what_is_wrong_is_said() -> None:
    """In msgspec's words, which name the field."""
    with pytest.raises(UndecodableError, match=r"text"):
        decode_untrusted(msgspec.json.Decoder(Message), b'{"text": 1}')
