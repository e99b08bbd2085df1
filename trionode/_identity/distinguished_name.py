"""Distinguished names as they are shown (RFC 4514): escaped, with replacement characters, and no longer than need be.

Theory. Names come from strangers, in any string type and encoding; what OpenSSL has verified is shown as far as it can
be read. Names are compared elsewhere, see `outline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trionode._util.der import SEQUENCE, dotted, element, elements, encoded
from trionode._util.kept import kept_by_bytes
from trionode._util.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A name is shown as far as this. Characters.
NAME_SHOWN: Final = 120

#: Attribute types by their usual names (RFC 4514 section 3 and what OpenSSL adds).
_ATTRIBUTES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}

#: String types (X.680) by identifier octet.
_STRINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",  # TeletexString, as OpenSSL and others read it
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}

#: A name that is longer is not shown. Bytes.
_LONGEST_NAME: Final = 4096


class Attribute(NamedTuple):
    """One attribute of a name: its type in words, and its value."""

    kind: str
    text: str
    dumped: bool = False  # its encoding, as it is no string

    def __str__(self) -> str:
        return f"{self.kind}={self.text if self.dumped else _escaped(self.text)}"


def attributes(name: bytes) -> Iterator[Attribute]:
    """The attributes of an encoded name, as far as it can be read."""
    try:
        _, start, end = element(name, 0)
        for _, _, content, after in elements(name, start, end):
            for _, _, attribute, stop in elements(name, content, after):
                (_, _, oid, oid_end), (tag, _, at, value_end) = elements(name, attribute, stop)
                oid_text = dotted(name[oid:oid_end])
                # Twice what is shown is enough, in the widest encoding.
                value = name[at : min(value_end, at + 8 * NAME_SHOWN)]
                encoding = _STRINGS.get(tag)
                kind = _ATTRIBUTES.get(oid_text, oid_text)
                if encoding is None:
                    yield Attribute(kind, f"#{value.hex()}", dumped=True)
                else:
                    yield Attribute(kind, value.decode(encoding, "replace"))
    except ValueError:
        yield Attribute("…", "unreadable")


def shown_name(name: bytes, what: str) -> str:
    """An encoded name (RFC 4514), escaped and cut; `what` it is of, for one that cannot be read or is empty."""
    if not name:
        return f"(unreadable {what})"
    if len(name) > _LONGEST_NAME:  # walked from its end, so that all of it would have to be read
        return f"(a {what} of {len(name)} bytes)"
    return _rfc4514(name) or f"(empty {what})"


@kept_by_bytes(1024)
def _rfc4514(name: bytes) -> str:
    """As RFC 4514 writes it, the last RDN first; made no longer than it is shown."""
    rdns: list[str] = []
    try:
        _, start, end = element(name, 0)
        spans = [(begin, after) for _, begin, _, after in elements(name, start, end)]
    except ValueError:
        return "(unreadable name)"
    length = 0
    for begin, after in reversed(spans):
        shown = "+".join(map(str, attributes(encoded(SEQUENCE, name[begin:after]))))
        rdns.append(shown)
        length += len(shown) + 1
        if length > 2 * NAME_SHOWN:
            break
    return printable(",".join(rdns), NAME_SHOWN)


def _escaped(value: str) -> str:
    """As RFC 4514 section 2.4 has it."""
    value = value[: 2 * NAME_SHOWN]
    shown = "".join(f"\\{c}" if c in '",+;<>\\' else "\\00" if c == "\0" else c for c in value)
    if shown[:1] in ("#", " "):
        shown = f"\\{shown}"
    if value.endswith(" ") and len(value) > 1:
        shown = f"{shown[:-1]}\\ "
    return shown
