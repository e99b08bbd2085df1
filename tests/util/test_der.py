"""DER: what is one element, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trionode._util.der import SEQUENCE, element, elements


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_elements_are_found_whatever_their_length(contents: list[bytes]) -> None:
    """Short and long lengths, one after the other."""
    encoded = b"".join(tlv(content) for content in contents)
    whole = tlv(encoded, SEQUENCE)
    tag, start, end = element(whole, 0)
    assert (tag, whole[start:end]) == (SEQUENCE, encoded)
    found = [(kind, whole[at:after], whole[content:after]) for kind, at, content, after in elements(whole, start, end)]
    assert found == [(4, tlv(content), content) for content in contents]


def tlv(content: bytes, tag: int = 4) -> bytes:
    """An element."""
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x02\x00", b"\x30\x80\x00\x00", b"\x1f\x01\x00", b"\x30\x82\x01"])
def test_what_is_no_element(data: bytes) -> None:
    """Cut off, of indefinite length, of a tag in several octets."""
    with pytest.raises(ValueError, match="element"):
        element(data, 0)


def test_an_element_that_is_longer_than_the_whole() -> None:
    """Nothing is read beyond the end of what an element is part of."""
    with pytest.raises(ValueError, match="longer than what it is part of"):
        list(elements(b"\x04\x01a\x04\x01b", 0, 4))
