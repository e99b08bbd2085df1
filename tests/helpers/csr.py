"""Certificate signing requests, of honest clients and of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519

if TYPE_CHECKING:
    from trionode._credentials.pem import PrivateKey

P256 = ec.generate_private_key(ec.SECP256R1())


def request(
    key: PrivateKey | dsa.DSAPrivateKey = P256,
    *extensions: x509.ExtensionType,
    algorithm: hashes.SHA256 | hashes.SHA1 | None = None,
) -> x509.CertificateSigningRequest:
    """One for `CN=evil`, with whatever extensions."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "evil")])
    )
    for each in extensions:
        builder = builder.add_extension(each, critical=True)
    without = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if without else algorithm or hashes.SHA256())  # type: ignore[arg-type]


def names(*values: str) -> x509.SubjectAlternativeName:
    """An extension that asks for these."""
    return x509.SubjectAlternativeName([x509.DNSName(each) for each in values])
