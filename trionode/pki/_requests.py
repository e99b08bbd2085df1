"""Certificate signing requests (PKCS#10, RFC 2986), as strangers send them, and what they are worth.

Theory. A request proves one thing: that its sender has the private key to the public key in it. So that is all that is
taken from it. What the certificate says, names, purposes, dates, is decided by who signs; the names in a request are
only compared with that, so that a client that asks for something else gets an error and not a surprise.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from trionode._identity.names import canonical_host
from trionode._util.quiet import quietly
from trionode._util.text import printable

#: A request that is larger is not read: one with an RSA key of 8192 bits has 3 KiB. Bytes.
MAX_REQUEST_BYTES: Final = 32 * 1024

_RSA_BITS: Final = range(2048, 8193)
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

#: The kinds of keys for which certificates are signed.
CertifiableKey: TypeAlias = (
    ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
)


def parse_request(data: bytes) -> x509.CertificateSigningRequest:
    """Read a certificate signing request (PKCS#10, RFC 2986); what it is worth, `CertificateAuthority.sign` says.

    Args:
        data: DER or PEM, at most 32 KiB.

    Raises:
        ValueError: it is none, or larger than 32 KiB.
    """
    if len(data) > MAX_REQUEST_BYTES:
        msg = f"the certificate signing request is larger than {MAX_REQUEST_BYTES} bytes"
        raise ValueError(msg)
    try:
        with quietly():
            if b"-----BEGIN" in data[:1024]:
                return x509.load_pem_x509_csr(data)
            return x509.load_der_x509_csr(data)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        msg = "this is no certificate signing request (PKCS#10, in DER or PEM)"
        raise ValueError(msg) from None


def checked_key(request: x509.CertificateSigningRequest) -> CertifiableKey:
    """The public key of a request, if its sender has proved that the private key is theirs and it is a good one.

    Raises:
        ValueError: the signature is not by this key, or the key is too weak or of a kind that TLS 1.3 does not use.
    """
    try:
        with quietly():
            key = request.public_key()
            valid, algorithm = request.is_signature_valid, request.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        msg = "the request's key or signature cannot be read; make an ECDSA key on P-256"
        raise ValueError(msg) from None
    weak = _weakness(key)
    if weak is not None:
        raise ValueError(weak)
    if not valid:
        msg = "the request is not signed by the private key of the key in it, so its sender may not have that"
        raise ValueError(msg)
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        msg = f"the request is signed with {printable(algorithm.name)}; sign it with SHA-256"
        raise ValueError(msg)
    assert isinstance(key, CertifiableKey)
    return key


def _weakness(key: object) -> str | None:
    match key:
        case rsa.RSAPublicKey():
            exponent = key.public_numbers().e
            if key.key_size not in _RSA_BITS or exponent < 65537 or not exponent % 2 or exponent >= 2**64:
                return (
                    f"the request has an RSA key of {key.key_size} bits with the exponent {min(exponent, 2**64)}; make "
                    "one of 2048 to 8192 bits with 65537, or an ECDSA key on P-256"
                )
        case ec.EllipticCurvePublicKey():
            if key.curve.name not in _CURVES:
                return f"the request has a key on the curve {key.curve.name}; make one on P-256"
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            pass
        case _:
            return f"the request has a {type(key).__name__}, which TLS 1.3 does not use; make an ECDSA key on P-256"
    return None


def refuse_more_than(request: x509.CertificateSigningRequest, granted: x509.SubjectAlternativeName) -> None:
    """Insist that a request asks for nothing that it will not get.

    Args:
        request: whose extensions are looked at.
        granted: the names that the certificate is going to have.

    Raises:
        ValueError: it asks for another name, or to be a CA, or its extensions cannot be read.
    """
    try:
        extensions = list(request.extensions)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        msg = "the extensions that the request asks for cannot be read"
        raise ValueError(msg) from None
    for each in extensions:
        match each.value:
            case x509.BasicConstraints(ca=True):
                msg = "the request asks for a certificate of a CA; this service issues none"
                raise ValueError(msg)
            case x509.KeyUsage(key_cert_sign=True) | x509.KeyUsage(crl_sign=True):
                msg = "the request asks for a key that signs certificates or lists; this service issues none"
                raise ValueError(msg)
            case x509.SubjectAlternativeName() as asked:
                known = {_comparable(name) for name in granted}
                for name in asked:
                    if _comparable(name) not in known:
                        shown = printable(str(getattr(name, "value", name)))
                        msg = f"the request asks for the name {shown}, which it is not entitled to"
                        raise ValueError(msg)
            case _:  # whatever else it asks for, it gets what a node gets
                pass


def _comparable(name: x509.GeneralName) -> tuple[str, str]:
    value = str(name.value)
    if isinstance(name, x509.DNSName):
        with suppress(ValueError):
            value = canonical_host(value)
    return type(name).__name__, value
