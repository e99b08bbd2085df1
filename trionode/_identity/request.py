"""What a certificate request (PKCS#10, RFC 2986) asks for: read as certificates are, and as total."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._util.der import CONTEXT_0, OID, dotted, element, elements
from trionode._util.quiet import quietly
from trionode._util.text import printable

from .certificate import general_names
from .distinguished_name import shown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

_EXTENSIONS: Final = "1.2.840.113549.1.9.14"
_ALTERNATIVE_NAMES: Final = "2.5.29.17"
_NAMES_SHOWN: Final = 400


def requested_subject(request: x509.CertificateSigningRequest) -> str:
    """Its subject's distinguished name, escaped and cut."""
    try:
        der, parts = _parts(request)
        return shown_name(der[parts[1][1] : parts[1][3]], "subject")
    except (ValueError, IndexError):
        return "(unreadable subject)"


def requested_names(request: x509.CertificateSigningRequest) -> str:
    """The subject alternative names that it asks for, or `no SANs`."""
    try:
        shown = [each.shown for value in _alternative_names(request) for each in general_names(value)]
    except (ValueError, IndexError):
        return "(unreadable)"
    return printable(", ".join(shown), _NAMES_SHOWN) if shown else "no SANs"


def requested_key(request: x509.CertificateSigningRequest) -> object | None:
    """Its public key; None where that cannot be read."""
    try:
        with quietly():
            return request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def is_signed(request: x509.CertificateSigningRequest) -> bool:
    """Whether it is signed by its own key, as it has to be."""
    try:
        with quietly():
            return request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _parts(request: x509.CertificateSigningRequest) -> tuple[bytes, list[tuple[int, int, int, int]]]:
    der = request.public_bytes(Encoding.DER)
    _, start, _ = element(der, 0)
    _, start, end = element(der, start)
    return der, list(elements(der, start, end))


def _alternative_names(request: x509.CertificateSigningRequest) -> Iterator[bytes]:
    """The value of each such extension among its attributes."""
    der, parts = _parts(request)
    for tag, _, content, after in parts:
        for _, _, at, end in elements(der, content, after) if tag == CONTEXT_0 else ():
            kind, values = elements(der, at, end)
            if kind[0] != OID or dotted(der[kind[2] : kind[3]]) != _EXTENSIONS:
                continue
            for _, _, first, last in elements(der, values[2], values[3]):
                for _, _, begin, stop in elements(der, first, last):
                    name, *_, value = elements(der, begin, stop)
                    if dotted(der[name[2] : name[3]]) == _ALTERNATIVE_NAMES:
                        yield der[value[2] : value[3]]
