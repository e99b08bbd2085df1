"""What EST puts on the wire (RFC 7030, with the corrections of RFC 8951): requests in, certificates out.

Bodies are base64, whatever a `Content-Transfer-Encoding` says or does not say; certificates come as a certs-only CMS
SignedData (PKCS#7).
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

if TYPE_CHECKING:
    from collections.abc import Iterable

PATH: Final = "/.well-known/est"

#: Where the CA's revocation lists are: all of them as PEM, and the list of the CA that issues, in DER.
CRLS_PATH: Final = "/ca.crl"
CRL_PATH: Final = "/crl"

REQUEST_TYPE: Final = "application/pkcs10"
CERTIFICATES_TYPE: Final = "application/pkcs7-mime"

#: The label of RFC 9266, for tying a request to the TLS connection that it comes over.
BINDING_LABEL: Final = b"EXPORTER-Channel-Binding"
BINDING_BYTES: Final = 32

#: challengePassword (RFC 2985 section 5.4.1), as an OBJECT IDENTIFIER in DER.
CHALLENGE_PASSWORD: Final = bytes.fromhex("06092a864886f70d010907")
#: The answer of `csrattrs` (RFC 8951 section 3.1): an ECDSA key on P-256, signed with SHA-256, tied to the connection.
CSR_ATTRIBUTES: Final = (
    bytes.fromhex("302c 3015 06072a8648ce3d0201 310a 06082a8648ce3d030107 06082a8648ce3d040302") + CHALLENGE_PASSWORD
)


def to_base64(der: bytes) -> bytes:
    """As a body: lines of 76 characters (RFC 8951 section 3.2)."""
    return base64.encodebytes(der)


def from_base64(body: bytes) -> bytes:
    """The content of a body; white space is of no account.

    Raises:
        ValueError: it is not base64.
    """
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        msg = "the body is not base64"
        raise ValueError(msg) from None


def certificates_body(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as a body."""
    return to_base64(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def certificates_of(body: bytes) -> list[x509.Certificate]:
    """The certificates in a body.

    Raises:
        ValueError: there are none.
    """
    try:
        found = pkcs7.load_der_pkcs7_certificates(from_base64(body))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        found = []
    if not found:
        msg = "the answer holds no certificates (PKCS#7 in base64)"
        raise ValueError(msg)
    return found


def binding_text(binding: bytes) -> str:
    """A channel binding, as the challengePassword of a request has it (RFC 7030 section 3.5)."""
    return base64.b64encode(binding).decode()
