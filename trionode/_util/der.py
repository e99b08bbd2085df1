"""Just enough DER (X.690) to find one's way in what a full parser has accepted already.

Theory. `cryptography` decodes certificates and revocation lists, and refuses what is malformed. It offers no way to the
bytes of their parts, though, or one that encodes the whole anew. Here an encoding is walked, element by element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
OID: Final = 0x06
SEQUENCE: Final = 0x30
#: Context-specific, constructed, number 0: a certificate's version, a list's extensions.
CONTEXT_0: Final = 0xA0
#: The same, number 3: a certificate's extensions.
CONTEXT_3: Final = 0xA3

#: A low-tag-number identifier octet has at least one of these five bits unset (X.690 section 8.1.2.4).
_LONG_TAG: Final = 0x1F


def element(data: bytes, at: int) -> tuple[int, int, int]:
    """The element that begins at an offset: its identifier octet, and where its content begins and ends.

    Args:
        data: an encoding.
        at: where the element begins.

    Raises:
        ValueError: there is no whole element, or its identifier or length is of a form that DER or X.509 does not use.
    """
    try:
        tag, length = data[at], data[at + 1]
    except IndexError:
        msg = "the encoding ends within an element"
        raise ValueError(msg) from None
    start = at + 2
    if length >= 0x80:
        octets = length & 0x7F
        start += octets
        length = int.from_bytes(data[at + 2 : start], "big")
        if not octets:
            msg = "an element of indefinite length is not DER"
            raise ValueError(msg)
    if tag & _LONG_TAG == _LONG_TAG or start + length > len(data):
        msg = "an element is cut off, or has a tag that X.509 does not use"
        raise ValueError(msg)
    return tag, start, start + length


def elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The elements of a constructed one: identifier octet, where each begins, where its content begins and ends.

    Args:
        data: an encoding.
        start: where the content of the constructed element begins.
        end: where it ends.

    Raises:
        ValueError: as `element`, or the last one ends elsewhere.
    """
    at = start
    while at < end:
        tag, content, after = element(data, at)
        yield tag, at, content, after
        at = after
    if at != end:
        msg = "an element is longer than what it is part of"
        raise ValueError(msg)


def encoded(tag: int, content: bytes) -> bytes:
    """An element.

    Args:
        tag: its identifier octet.
        content: what is in it, encoded.
    """
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def dotted(content: bytes) -> str:
    """An object identifier in dotted form (X.690 section 8.19).

    Args:
        content: that of its element.
    """
    arcs: list[int] = []
    arc = 0
    for octet in content:
        arc = arc << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs:
        return ""
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
