"""Keys, certificates and texts for tests: what `trionode.pki` does not make, and what is made once per process."""

from __future__ import annotations

import base64
import functools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat as Format
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionode._credentials.pem import PrivateKey


NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
PASSWORD = "correct horse"

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@functools.cache
def key_of(kind: str) -> PrivateKey:
    """One key of each kind for the whole module: RSA keys are slow to make."""
    make: dict[str, Callable[[], PrivateKey]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p256-other": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "k256": lambda: ec.generate_private_key(ec.SECP256K1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ed448": ed448.Ed448PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "rsa-1024": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),  # noqa: S505
    }
    return make[kind]()


@functools.cache
def dsa_key() -> dsa.DSAPrivateKey:
    """A key that TLS 1.3 has no use for."""
    return dsa.generate_private_key(1024)  # noqa: S505


def name(text: str) -> x509.Name:
    """A distinguished name of a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make_certificate(
    subject: str = "leaf",
    *,
    key: PrivateKey | dsa.DSAPrivateKey | None = None,
    issuer: str | x509.Name | None = None,
    issuer_key: PrivateKey | dsa.DSAPrivateKey | None = None,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + DAY,
    host: str | None = "host.example",
    purposes: Sequence[ObjectIdentifier] | None = (SERVER, CLIENT),
    extensions: Sequence[x509.ExtensionType] = (),
    critical: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    """A certificate for a host, self-signed unless an issuer is given; what is None is left out."""
    key = key or key_of("p256")
    signer = issuer_key or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer if isinstance(issuer, x509.Name) else name(issuer or subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    for extension in (*extensions, *critical):
        builder = builder.add_extension(extension, critical=extension in critical)
    own_hash = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(signer, None if own_hash else hashes.SHA256())


@functools.cache
def chain() -> tuple[x509.Certificate, x509.Certificate, x509.Certificate]:
    """Leaf (key `p256`), intermediate (key `p384`), root (key `ed25519`)."""
    return (
        make_certificate("leaf", key=key_of("p256"), issuer="intermediate", issuer_key=key_of("p384")),
        make_certificate("intermediate", key=key_of("p384"), issuer="root", issuer_key=key_of("ed25519")),
        make_certificate("root", key=key_of("ed25519")),
    )


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(
    key: PrivateKey | dsa.DSAPrivateKey | x25519.X25519PrivateKey,
    style: Format = Format.PKCS8,
    password: str | None = None,
) -> bytes:
    """A private key as PEM."""
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password.encode())
    )
    return key.private_bytes(Encoding.PEM, style, encryption)


@functools.cache
def leaf() -> x509.Certificate:
    """A self-signed certificate of key `p256`."""
    return make_certificate()


def patched(original: x509.Certificate, old: bytes, new: bytes) -> bytes:
    """The certificate's PEM with some of its bytes exchanged; its signature no longer holds."""
    der = original.public_bytes(Encoding.DER)
    assert old in der
    return armour(der.replace(old, new, 1))


def armour(der: bytes) -> bytes:
    """A certificate's DER as PEM, without a look at it."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def cut(text: bytes, keep: float) -> bytes:
    """The first part of a text."""
    return text[: int(len(text) * keep)]


def certificate_of_unknown_version() -> bytes:
    """A certificate that says it is X.509 version 8."""
    return patched(leaf(), b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07")


def assert_no_key_in(text: str, key: PrivateKey) -> None:
    """No encoding of a private key, nor a good part of one, is in a text."""
    match key:
        case ec.EllipticCurvePrivateKey():
            number = key.private_numbers().private_value
        case rsa.RSAPrivateKey():
            number = key.private_numbers().d
        case _:
            number = int.from_bytes(key.private_bytes_raw(), "big")
    secret = number.to_bytes(-(-number.bit_length() // 8), "big")
    # The ends of the lines: the beginning of the first is the algorithm's name, which all keys of a kind share.
    parts = [line[-16:] for line in key_pem(key).decode().splitlines()[1:-1]]
    parts += [str(number), f"{number:x}", secret[4:16].hex(), secret[4:16].hex(":"), repr(secret[4:16])[2:-1]]
    assert not [part for part in parts if part in text or part in text.lower()]


def at_noon() -> datetime:
    """A clock that stands still, with a fraction of a second that no certificate can hold."""
    return NOW + timedelta(microseconds=654_321)


@functools.cache
def authority(*, intermediate: bool = False) -> CertificateAuthority:
    """One CA of each kind for the whole module: they are immutable."""
    return CertificateAuthority.create(intermediate=intermediate, clock=at_noon)
