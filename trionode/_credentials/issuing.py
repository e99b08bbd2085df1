"""Building certificates: what self-signed key pairs and the development CA have in common.

What is issued is meant to be accepted by strict peers (OpenSSL with X509_STRICT, Go, Python 3.13's default context):
version 3, key identifiers on both ends, critical basic constraints and key usage, names in the SANs and never in the
Common Name alone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._identity.certificate import extension
from trionode._identity.names import host_address

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from .pem import PrivateKey

#: Certificates are backdated by this much, so that peers whose clock is a little behind accept them at once.
BACKDATE: Final = timedelta(minutes=5)


def _key_usage(*, digital_signature: bool, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


#: What a TLS 1.3 leaf does: sign the handshake.
LEAF_KEY_USAGE: Final = _key_usage(digital_signature=True, signs_certificates=False)
_CA_KEY_USAGE: Final = _key_usage(digital_signature=False, signs_certificates=True)

#: A node is a server and a client.
BOTH_PURPOSES: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def general_name(host: str) -> x509.GeneralName:
    """The SAN entry for a canonical host: an IP entry for an address, a DNS entry for a name."""
    address = host_address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def leaf_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    validity: tuple[datetime, datetime],
    *,
    names: Iterable[x509.GeneralName],
    purposes: x509.ExtendedKeyUsage | None,
    serial_number: int | None = None,
) -> x509.CertificateBuilder:
    """A leaf, to be signed.

    Args:
        subject: the certificate's subject.
        issuer: the subject of the certificate that it is signed by; its own where it is self-signed.
        key: the leaf's public key.
        validity: first and last moment, aware.
        names: its subject alternative names.
        purposes: the extended key usage; None leaves the extension out, which allows every purpose.
        serial_number: by default a random one.
    """
    builder = (
        _builder(subject, issuer, key, validity, serial_number)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(LEAF_KEY_USAGE, critical=True)
    )
    return builder if purposes is None else builder.add_extension(purposes, critical=False)


def ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    validity: tuple[datetime, datetime],
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    """A CA certificate, to be signed.

    Args:
        subject: the certificate's subject.
        issuer: the subject of the certificate that it is signed by; its own for a root.
        key: the CA's public key.
        validity: first and last moment, aware.
        path_length: how many CA certificates may follow below it.
    """
    return (
        _builder(subject, issuer, key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_CA_KEY_USAGE, critical=True)
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    validity: tuple[datetime, datetime],
    serial_number: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number() if serial_number is None else serial_number)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The extension by which a certificate or list says which key signed it.

    Args:
        issuer: the certificate of the CA that signs.
    """
    identifier = extension(issuer, x509.SubjectKeyIdentifier)
    if identifier is None:
        # A CA from elsewhere; `KeyPair` has made sure that its key is one of ours.
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def signing_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """The hash to sign with, as strong as the key; None where the signature scheme has its own (Ed25519, Ed448)."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256:
        return hashes.SHA384() if key.key_size <= 384 else hashes.SHA512()
    return hashes.SHA256()
