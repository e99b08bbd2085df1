"""Metadata and its bytes: one mapping at both ends, and nothing from bytes that are none."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec
import pytest
from hypothesis import given, strategies as st

from trionode import RemoteProtocolError, _protocol as wire
from trionode._util.metadata import MAX_ENTRIES, as_metadata

mappings: Final = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=255),
    st.text(st.characters(codec="utf-8"), max_size=50) | st.binary(max_size=50),
    max_size=MAX_ENTRIES,
)


@given(metadata=mappings)
def test_what_is_metadata_here_is_the_same_there(metadata: dict[str, str | bytes]) -> None:
    """What passes the check at the caller passes the one at the service, unchanged."""
    encoded = wire.encode_metadata(as_metadata(metadata))
    decoded = wire.decode_metadata(msgspec.Raw(encoded), len(encoded))
    assert decoded == metadata
    assert isinstance(decoded, MappingProxyType)
    with pytest.raises(RemoteProtocolError, match="at most"):
        wire.decode_metadata(msgspec.Raw(encoded), len(encoded) - 1)


@given(data=st.binary(min_size=1, max_size=300) | st.binary(max_size=200).map(lambda tail: b"\x82\xa1a\xa1" + tail))
def test_any_bytes_are_metadata_or_a_protocol_error(data: bytes) -> None:
    """And nothing comes out that this side would not have let the application send."""
    try:
        metadata = wire.decode_metadata(msgspec.Raw(data), 4096)
    except RemoteProtocolError:
        return
    assert as_metadata(metadata) == metadata
    assert len(metadata) <= MAX_ENTRIES


class _Word(StrEnum):
    TENANT = "tenant"


class _Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class _Blob(bytes):
    def __bytes__(self) -> bytes:
        return b"something else"


def test_subclasses_of_text_and_bytes_are_taken_as_what_they_hold() -> None:
    """Whatever they say of themselves: what was checked is what is sent."""
    metadata = as_metadata({_Word.TENANT: _Text("a"), "blob": _Blob(b"b")})
    assert metadata == {"tenant": "a", "blob": b"b"}
    assert {type(each) for pair in metadata.items() for each in pair} == {str, bytes}
    assert msgspec.msgpack.decode(wire.encode_metadata(metadata)) == {"tenant": "a", "blob": b"b"}


def test_an_older_peer_takes_none() -> None:
    """Its hello does not say how much."""
    said = msgspec.msgpack.encode({"max_message_size": 1, "window": 4096, "max_channels": 1})
    assert wire.decode(wire.Limits, said).max_metadata_size == 0
