"""Key pairs: a certificate chain and the private key of its leaf.

Theory. A key pair is an immutable value, parsed at the edge: all further code receives objects that are known to be
well formed. Parsing checks what never changes (syntax, password, key matches leaf, chain in order). What depends on
time and use (dates, extended key usage) is checked on each use, by `_managers.findings`.

Private keys live in memory only: nothing here writes a file; `KeyPair` refuses to be pickled, and its `repr` has names,
dates and fingerprint, never key material.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint, is_signed_by, public_key
from trionode._identity.describe import describe
from trionode._identity.names import canonical_host
from trionode._identity.outline import outline
from trionode._util.der import OID, element, elements
from trionode._util.fields import check_argument, check_each
from trionode._util.immutable import HoldsPrivateKey

from .issuing import BACKDATE, BOTH_PURPOSES, general_name, leaf_builder
from .pem import PrivateKey, Secret, parse_certificates, parse_private_key, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .pem import FilePath

__all__ = ["KeyPair"]

_SELF_SIGNED_LIFETIME: Final = timedelta(days=365)
_SMALLEST_RSA_BITS: Final = 2048

# The curves that TLS 1.3 can sign with (RFC 8446 section 4.2.3, RFC 8734); a key on another one fails every handshake.
_CURVES: Final = frozenset(
    {"secp256r1", "secp384r1", "secp521r1", "brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1"}
)


_RSA_PSS: Final = bytes.fromhex("2a864886f70d01010a")
_EC: Final = bytes.fromhex("2a8648ce3d0201")


@final
class KeyPair(HoldsPrivateKey):
    """A leaf certificate, its intermediates and its private key; immutable.

    Make one with `load`, `from_pem` or `self_signed`. The private key stays in memory and out of every `repr`; a key
    pair cannot be pickled. Key pairs are compared and hashed by their chains: the key follows from the leaf.

    Attributes:
        certificate: the leaf.
        chain: all certificates, the leaf first, each signed by the next.
        fingerprint: SHA-256 of the leaf's DER encoding, lower-case hex.
        private_key: the `cryptography` private key object.
    """

    __slots__ = ("certificate", "chain", "fingerprint", "private_key")

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    fingerprint: str
    private_key: PrivateKey

    def __init__(self, chain: Iterable[x509.Certificate], private_key: PrivateKey) -> None:
        """Put a key pair together from `cryptography` objects.

        Args:
            chain: the leaf first, each certificate signed by the next.
            private_key: the leaf's key: EC, Ed25519, Ed448, or RSA of at least 2048 bits.

        Raises:
            CertificateError: reason `no_certificate`, `unsupported_key`, `key_mismatch` or `chain_order`.
        """
        certificates = check_each("chain", chain, x509.Certificate)
        if not certificates:
            msg = "a key pair needs at least its leaf certificate"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        self._fill(certificates, private_key, where="the given certificates")

    def _fill(self, chain: tuple[x509.Certificate, ...], private_key: object, *, where: str) -> None:
        chain = tuple(dict.fromkeys(chain))  # Vault and others write duplicates
        key = _supported(private_key, where)
        _check_key(chain, key, where)
        _check_order(chain, where)
        object.__setattr__(self, "certificate", chain[0])
        object.__setattr__(self, "chain", chain)
        object.__setattr__(self, "fingerprint", fingerprint(chain[0]))
        object.__setattr__(self, "private_key", key)

    @classmethod
    def load(cls, cert_file: FilePath, key_file: FilePath, *, password: str | bytes | None = None) -> Self:
        """Read a key pair from two PEM files, as Go's `tls.LoadX509KeyPair` does; both may be the same file.

        Blocks while it reads the two (small) files.

        Args:
            cert_file: PEM certificates, leaf first, then intermediates in order; or a DER certificate, or a PKCS#12 or
                PKCS#7 bundle. At most 4 MiB.
            key_file: a PEM private key: PKCS#8, SEC1 or PKCS#1, encrypted or not; or the same in DER, or a PKCS#12
                bundle. At most 4 MiB.
            password: of the key or the bundle, if it is encrypted.

        Raises:
            CertificateError: the files are unreadable or do not fit together; `reason` says how.
        """
        secret = None if password is None else Secret(password)
        del password
        return cls._parse(
            read_file(cert_file), read_file(key_file), secret, cert_where=str(cert_file), key_where=str(key_file)
        )

    @classmethod
    def from_pem(cls, cert_pem: bytes | str, key_pem: bytes | str, *, password: str | bytes | None = None) -> Self:
        """A key pair from PEM text; see `load`.

        Raises:
            CertificateError: the text is unusable or does not fit together; `reason` says how.
        """
        certificates, key = Secret(cert_pem), Secret(key_pem)
        secret = None if password is None else Secret(password)
        del cert_pem, key_pem, password
        return cls._parse(certificates, key, secret, cert_where="the certificate text", key_where="the key text")

    @classmethod
    def _parse(
        cls, cert_pem: Secret, key_pem: Secret, password: Secret | None, *, cert_where: str, key_where: str
    ) -> Self:
        chain = parse_certificates(cert_pem, cert_where, password)
        key = parse_private_key(key_pem, password, key_where)
        self = cls.__new__(cls)
        self._fill(chain, key, where=f"{cert_where} and {key_where}" if cert_where != key_where else cert_where)
        return self

    @classmethod
    def self_signed(cls, *hosts: str, organization: str = "trionode") -> Self:
        """A fresh self-signed key pair for development, good for a server and for a client.

        ECDSA P-256, valid for 365 days from five minutes ago. It is no CA: a pool that contains it trusts this very
        certificate and nothing else. For clusters use `trionode.pki`.

        Args:
            hosts: DNS names and IP addresses for the SANs; `localhost`, `127.0.0.1` and `::1` if none is given.
            organization: the subject's organization.

        Raises:
            ValueError: a host is neither a DNS name nor an address.
        """
        check_argument("organization", organization, str)
        names = [canonical_host(host) for host in hosts or ("localhost", "127.0.0.1", "::1")]
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
                x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64]),
            ]
        )
        now = datetime.now(UTC)
        builder = leaf_builder(
            subject,
            subject,
            key.public_key(),
            (now - BACKDATE, now + _SELF_SIGNED_LIFETIME),
            names=map(general_name, names),
            purposes=BOTH_PURPOSES,
        )
        certificate = builder.sign(key, hashes.SHA256())
        return cls([certificate], key)

    def __eq__(self, other: object) -> bool:
        return self.chain == other.chain if isinstance(other, KeyPair) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.chain)

    def __repr__(self) -> str:
        # A traceback may show one whose constructor failed.
        return f"<KeyPair {describe(self.certificate)}>" if hasattr(self, "certificate") else "<KeyPair, unfinished>"


def _supported(key: object, where: str) -> PrivateKey:
    if not isinstance(key, PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name not in _CURVES
    ):
        msg = f"the private key of {where} cannot sign in TLS 1.3; use EC P-256, P-384, Ed25519 or RSA"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    return key


def _check_key(chain: tuple[x509.Certificate, ...], private_key: PrivateKey, where: str) -> None:
    if isinstance(private_key, rsa.RSAPrivateKey) and private_key.key_size < _SMALLEST_RSA_BITS:
        msg = (
            f"the RSA key of {where} has {private_key.key_size} bits; TLS peers want at least {_SMALLEST_RSA_BITS}. "
            "Make a new key, EC P-256 for choice"
        )
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    odd = _oddity(outline(chain[0].public_bytes(serialization.Encoding.DER)).key)
    if odd is not None:
        msg = f"the leaf certificate of {where} has {odd}: {describe(chain[0])}"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    leaf_key = public_key(chain[0])
    if leaf_key is None:
        msg = (
            f"the leaf certificate of {where} has a key of a kind that is not supported: {describe(chain[0])}. Issue "
            "it for an EC P-256, P-384, Ed25519 or RSA key"
        )
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    if _public_bytes(leaf_key) != _public_bytes(private_key.public_key()):
        msg = (
            f"the private key does not belong to the leaf certificate of {where}: {describe(chain[0])}. The leaf comes "
            "first in the file; if certificate and key were being replaced just now, read them again"
        )
        raise CertificateError(msg, reason=CertificateReason.KEY_MISMATCH)


def _oddity(key: bytes) -> str | None:
    """What makes a public key (SubjectPublicKeyInfo) of a known kind unusable in TLS handshakes, or None."""
    try:
        _, start, _ = element(key, 0)
        _, start, end = element(key, start)
        kind, *parameters = elements(key, start, end)
    except ValueError:
        return "a public key that cannot be read. Issue it anew"
    oid = key[kind[2] : kind[3]]
    if oid == _RSA_PSS:
        return "an RSA key that is limited to PSS (id-RSASSA-PSS), which is not supported. Issue it for a plain RSA key"
    if oid == _EC and parameters and parameters[0][0] != OID:
        return (
            "an EC key with explicit parameters, which TLS does not allow (RFC 5480 section 2.1.1). Make the key with "
            "a named curve: openssl ecparam -param_enc named_curve"
        )
    return None


def _check_order(chain: tuple[x509.Certificate, ...], where: str) -> None:
    """Each has signed one before it: usually the one just before; where a CA is cross-signed, both its certificates."""
    for position, (certificate, issuer) in enumerate(pairwise(chain), start=1):
        if not any(is_signed_by(each, issuer) for each in reversed(chain[:position])):
            msg = (
                f"the chain in {where} is not in order: certificate {position} ({describe(certificate)}) is not signed "
                f"by certificate {position + 1} ({describe(issuer)}). The leaf comes first, then each one's issuer"
            )
            raise CertificateError(msg, reason=CertificateReason.CHAIN_ORDER)


def _public_bytes(key: object) -> bytes:
    # Every public key type has the method; cryptography's union of them has no common base with it.
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
