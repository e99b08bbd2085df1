"""Details of errors: what they may be, and that what is kept of them is plain."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from trionode import RemoteError, RemoteProtocolError, _protocol as wire
from trionode._util.details import as_details


class _Word(enum.StrEnum):
    A = "a"


class _Number(enum.IntEnum):
    ONE = 1


CYCLE: Final[list[object]] = []
CYCLE.append(CYCLE)


def deep(levels: int) -> object:
    """Lists within each other."""
    value: object = None
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        pytest.param(object(), TypeError, "details are None, a boolean, .*, not an object", id="object"),
        pytest.param([{1, 2}], TypeError, "not a set", id="set"),
        pytest.param({1: 2}, TypeError, "a key in details is text, not an int", id="key"),
        pytest.param(bytearray(1), TypeError, "not a bytearray", id="bytearray"),
        pytest.param(MappingProxyType({}), TypeError, "not a mappingproxy", id="mapping"),
        pytest.param(ValueError("x"), TypeError, "not a ValueError", id="exception"),
        pytest.param(2**64, ValueError, "from -2", id="large"),
        pytest.param(-(2**63) - 1, ValueError, "from -2", id="small"),
        pytest.param("\ud800", ValueError, "lone surrogate", id="surrogate"),
        pytest.param({"\ud800": 1}, ValueError, "lone surrogate", id="key-surrogate"),
        pytest.param(deep(17), ValueError, "at most 16 deep", id="deep"),
        pytest.param(CYCLE, ValueError, "at most 16 deep", id="cycle"),
        pytest.param([None] * 1000, ValueError, "at most 1000 values", id="many"),
    ],
)
def test_what_cannot_travel_is_an_error_where_it_is_given(wrong: object, kind: type[Exception], words: str) -> None:
    """In the service, when it makes the error; and no value shows."""
    with pytest.raises(kind, match=words):
        RemoteError(code="x", details=wrong)


def test_what_is_much_too_deep_is_an_error_likewise() -> None:
    """Not one of recursion, in Python or below it."""
    with pytest.raises(ValueError, match="at most 16 deep"):
        RemoteError(code="x", details=deep(100_000))


def test_details_are_a_copy_of_plain_types() -> None:
    """What the raiser has is what the caller gets, whatever was given, and whatever becomes of that."""
    given = {_Word.A: (_Number.ONE, [True], b"x")}
    error = RemoteError(code="x", details=given, metadata={_Word.A: "a"})
    given.clear()
    assert error.details == {"a": [1, [True], b"x"]}
    [(key, [number, *_])] = error.details.items()
    assert (type(key), type(number)) == (str, int)
    assert RemoteError(code="x", details=deep(16)).details == deep(16)
    assert len(RemoteError(code="x", details=[None] * 999).details) == 999


plain: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(details=plain)
def test_what_may_be_given_is_the_same_over_there(details: object) -> None:
    """Every plain value."""
    assert as_details(details) == details
    assert wire.decode_details(msgspec.Raw(wire.encode_details(as_details(details)))) == details


@given(data=st.binary(min_size=1, max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_details_or_a_protocol_error(data: bytes) -> None:
    """And nothing comes out that this side would not have let the application give."""
    try:
        details = wire.decode_details(msgspec.Raw(data))
    except RemoteProtocolError:
        return
    assert repr(as_details(details)) == repr(details)
