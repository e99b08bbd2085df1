"""Whose a certificate is, who issued it, for which key: what paths are built by, read from the bytes.

Theory. A path is found by names: the issuer of a certificate is the one whose subject reads as its issuer does. RFC
5280 section 7.1 and OpenSSL compare names without regard to case, spacing and string type; so do we, or OpenSSL would
know paths that we do not. Names are read here rather than by `cryptography`, which compares them exactly, and raises
where one is odd: what names a certificate has is then no reason yet to believe it or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias, final

from trionode._util.der import CONTEXT_0, CONTEXT_3, SEQUENCE, element, elements

#: A distinguished name as names are compared: for each RDN its attributes (type, value), sorted.
CanonicalName: TypeAlias = tuple[tuple[tuple[bytes, bytes], ...], ...]

#: String types (X.680) and how they are encoded; values of others are compared as they are.
_ENCODINGS: Final = {
    0x0C: "utf-8",
    0x13: "ascii",
    0x14: "latin-1",  # TeletexString, as OpenSSL and others read it
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
_UPPER_TO_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_SPACES: Final = " \t\n\v\f\r"


@final
@dataclass(frozen=True, slots=True)
class Outline:
    """What a path needs to know of a certificate.

    Attributes:
        subject: its name.
        issuer: its issuer's name.
        key: its public key, as SubjectPublicKeyInfo.
        version: 1, 2 or 3.
    """

    subject: CanonicalName
    issuer: CanonicalName
    key: bytes
    version: int

    @property
    def self_issued(self) -> bool:
        """Whether it names itself as its issuer, as a root does."""
        return self.subject == self.issuer


def outline(der: bytes) -> Outline:
    """Read what a path needs to know (RFC 5280 section 4.1).

    Args:
        der: a certificate.

    Raises:
        ValueError: it is none.
    """
    _, start, _ = element(der, 0)
    _, start, end = element(der, start)
    parts = list(elements(der, start, end))
    version = 1
    if parts and parts[0][0] == CONTEXT_0:
        _, _, content, after = parts.pop(0)
        version += der[after - 1] if after > content else 0
    if len(parts) < 6:
        msg = "a certificate lacks some of its fields"
        raise ValueError(msg)
    _, _, issuer, _, subject, key = parts[:6]
    return Outline(
        subject=canonical_name(der[subject[1] : subject[3]]),
        issuer=canonical_name(der[issuer[1] : issuer[3]]),
        key=der[key[1] : key[3]],
        version=version,
    )


def extension_oids(der: bytes) -> frozenset[bytes]:
    """Which extensions a certificate has (their types, encoded), whether or not they can be read.

    Args:
        der: a certificate.

    Raises:
        ValueError: it is none.
    """
    _, start, _ = element(der, 0)
    _, start, end = element(der, start)
    found: set[bytes] = set()
    for tag, _, content, _ in elements(der, start, end):
        if tag == CONTEXT_3:
            _, first, last = element(der, content)
            for _, _, at, _ in elements(der, first, last):
                _, oid, after = element(der, at)
                found.add(der[oid:after])
    return frozenset(found)


@lru_cache(maxsize=1024)
def canonical_name(der: bytes) -> CanonicalName:
    """A distinguished name as it is compared: strings lower-case (ASCII), trimmed, spaces as one, whatever their type.

    Args:
        der: the Name (RFC 5280 section 4.1.2.4).

    Raises:
        ValueError: it is none.
    """
    tag, start, end = element(der, 0)
    if tag != SEQUENCE:
        msg = "a distinguished name is a SEQUENCE"
        raise ValueError(msg)
    return tuple(
        tuple(sorted(_attribute(der, attribute, stop) for _, _, attribute, stop in elements(der, content, after)))
        for _, _, content, after in elements(der, start, end)
    )


def _attribute(der: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    parts = list(elements(der, start, end))
    if len(parts) != 2:
        msg = "an attribute of a distinguished name is a type and a value"
        raise ValueError(msg)
    (_, _, kind, kind_end), (tag, at, value, value_end) = parts
    encoding = _ENCODINGS.get(tag)
    if encoding is not None:
        try:
            text = der[value:value_end].decode(encoding)
        except UnicodeDecodeError:
            pass
        else:
            words = [word for word in _split(text.translate(_UPPER_TO_LOWER)) if word]
            return der[kind:kind_end], " ".join(words).encode(errors="surrogatepass")
    return der[kind:kind_end], der[at:value_end]


def _split(text: str) -> list[str]:
    # Not `str.split()`, which takes other characters for spaces, too.
    for space in _SPACES[1:]:
        text = text.replace(space, " ")
    return text.split(" ")
