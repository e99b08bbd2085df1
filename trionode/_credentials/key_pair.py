"""Key pairs and CA pools: what we prove ourselves with, and whom we trust.

Theory. Both are immutable values, parsed once at the edge; everything further in receives objects that are known to
be well formed. Parsing checks what is true for all time (syntax, password, key matches leaf, chain in order). What
depends on when and for what a key pair is used (dates, extended key usage) is checked on each use, by
`_managers.findings`.

Private keys live in memory only: nothing here writes a file, and `KeyPair` refuses to be pickled or copied apart, and
shows names, dates and fingerprint in its `repr`, never key material. Errors from the parsers are replaced rather than
chained where they could quote input.
"""

from __future__ import annotations

import os
import ssl
import warnings
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeAlias, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.describe import (
    describe,
    describe_subjects,
    fingerprint,
)
from trionode._identity.names import canonical_host, host_address
from trionode._util.immutable import HoldsPrivateKey, Immutable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CAPool", "KeyPair"]

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
)
FilePath: TypeAlias = str | os.PathLike[str]

#: A certificate or key file larger than this is not one: the system's whole CA bundle has about 220 KiB.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

#: Certificates are backdated by this much, so that a peer whose clock is a little behind accepts them at once.
BACKDATE: Final = timedelta(minutes=5)

_SELF_SIGNED_LIFETIME: Final = timedelta(days=365)
_PEM_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_SMALLEST_RSA_BITS: Final = 2048

# The curves that TLS 1.3 can sign with (RFC 8446 section 4.2.3, RFC 8734); a key on another one fails every handshake.
_CURVES: Final = frozenset(
    {"secp256r1", "secp384r1", "secp521r1", "brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1"}
)


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
        certificates = tuple(chain)
        if not certificates:
            msg = "a key pair needs at least its leaf certificate"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        self._fill(certificates, private_key, where="the given certificates")

    def _fill(self, chain: tuple[x509.Certificate, ...], private_key: object, *, where: str) -> None:
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
            cert_file: PEM certificates, leaf first, then intermediates in order. At most 4 MiB.
            key_file: a PEM private key: PKCS#8, SEC1 or PKCS#1, encrypted or not. At most 4 MiB.
            password: of the key, if it is encrypted.

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
        chain = parse_certificates(cert_pem, cert_where)
        key = _parse_key(key_pem, password, key_where)
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
        names = [canonical_host(host) for host in hosts or ("localhost", "127.0.0.1", "::1")]
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
                x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64]),
            ]
        )
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + _SELF_SIGNED_LIFETIME)
            .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(LEAF_KEY_USAGE, critical=True)
            .add_extension(BOTH_PURPOSES, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls([certificate], key)

    def __eq__(self, other: object) -> bool:
        return self.chain == other.chain if isinstance(other, KeyPair) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.chain)

    def __repr__(self) -> str:
        # Total: a traceback may print one that could not be finished.
        return f"<KeyPair {describe(self.certificate)}>" if hasattr(self, "certificate") else "<KeyPair, unfinished>"


@final
class CAPool(Immutable):
    """An immutable, non-empty set of trust anchors.

    Every certificate in it is trusted in its own right, self-signed or not, as in Go; one that is no CA pins that
    very certificate. Pools are joined with `|`, compared and hashed by content.

    Attributes:
        certificates: the anchors, each once, in the order in which they came.
    """

    __slots__ = ("__weakref__", "_key", "certificates")

    certificates: tuple[x509.Certificate, ...]

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        """A pool of `cryptography` certificate objects.

        Raises:
            CertificateError: reason `no_certificate`, if there is none.
        """
        unique = {fingerprint(certificate): certificate for certificate in certificates}
        if not unique:
            msg = "a CA pool needs at least one certificate; an empty pool would trust nobody"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        object.__setattr__(self, "certificates", tuple(unique.values()))
        object.__setattr__(self, "_key", frozenset(unique))

    _key: frozenset[str]

    @classmethod
    def load(cls, *files: FilePath) -> Self:
        """All certificates of one or more PEM files. Blocks while it reads them.

        Args:
            files: PEM files, of up to 4 MiB each; whatever is no certificate in them is skipped.

        Raises:
            CertificateError: a file is unreadable, or holds no certificate.
        """
        return cls(certificate for file in files for certificate in parse_certificates(read_file(file), str(file)))

    @classmethod
    def from_pem(cls, data: bytes | str) -> Self:
        """All certificates of a PEM text.

        Args:
            data: PEM text; whatever is no certificate in it is skipped.

        Raises:
            CertificateError: it is malformed, or holds no certificate.
        """
        return cls(parse_certificates(Secret(data), "the CA text"))

    @classmethod
    def system(cls) -> Self:
        """The operating system's CA certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured.

        Blocks while it reads them (some milliseconds). Entries that cannot be parsed are left out, as OpenSSL does.

        Raises:
            CertificateError: none was found.
        """
        found: dict[str, x509.Certificate] = {}
        with warnings.catch_warnings():
            # Some platforms ship roots with a serial number of zero; whoever runs us cannot do anything about that.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            for der in _system_certificates():
                try:
                    certificate = x509.load_der_x509_certificate(der)
                except (ValueError, x509.InvalidVersion):
                    continue
                found.setdefault(fingerprint(certificate), certificate)
        if not found:
            msg = "no system CA certificates were found; install ca-certificates, or give the CA pool explicitly"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        return cls(found.values())

    def __or__(self, other: object) -> CAPool:
        """The union of two pools."""
        if not isinstance(other, CAPool):
            return NotImplemented
        return CAPool((*self.certificates, *other.certificates))

    def __contains__(self, certificate: object) -> bool:
        """Whether a certificate is itself one of the anchors."""
        return isinstance(certificate, x509.Certificate) and fingerprint(certificate) in self._key

    def __iter__(self) -> Iterator[x509.Certificate]:
        return iter(self.certificates)

    def __len__(self) -> int:
        return len(self.certificates)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, CAPool) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<CAPool of {len(self)}: {describe_subjects(self)}>"


# Using a key pair ---------------------------------------------------------------------------------------------------


def allows(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """Whether the extended key usage names a purpose, or is absent (RFC 5280 section 4.2.1.12).

    `anyExtendedKeyUsage` alone does not count: OpenSSL peers refuse it.
    """
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return True
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return False
    return purpose in usage.value


# Parsing ------------------------------------------------------------------------------------------------------------


@final
class Secret:
    """Bytes that may be a key or a password: no frame holds them bare, for tracebacks that print local variables."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | str) -> None:
        # "surrogatepass": an encoding error would carry the text, perhaps a key, in its attributes.
        self.data: bytes = data.encode(errors="surrogatepass") if isinstance(data, str) else bytes(data)

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes, not shown>"


def read_file(file: FilePath, *, limit: int = MAX_FILE_BYTES, kind: str = "PEM certificate or key file") -> Secret:
    """A file's content, if it is not unreasonably large.

    Args:
        file: its path.
        limit: bytes.
        kind: what it is meant to be, for the message.

    Raises:
        CertificateError: reason `unreadable`.
    """
    try:
        with Path(file).open("rb") as stream:
            content = Secret(stream.read(limit + 1))
    except (OSError, ValueError) as exc:  # ValueError: a NUL byte in the path
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        msg = f"cannot read {os.fspath(file)}: {why}. Check the path and its permissions"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from exc
    if len(content.data) > limit:
        msg = f"{os.fspath(file)} is larger than {limit} bytes; this is not a {kind}"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    return content


def parse_certificates(pem: Secret, where: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text, at least one.

    Args:
        pem: the text.
        where: what to call it in messages.

    Raises:
        CertificateError: reason `no_certificate`, or `unreadable` where one is damaged or cut off.
    """
    if _PEM_CERTIFICATE not in pem.data:
        hint = " It holds a private key: are the two files swapped?" if b"PRIVATE KEY-----" in pem.data else ""
        msg = f"no PEM certificate in {where}: a '{_PEM_CERTIFICATE.decode()}' block is needed.{hint}"
        raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem.data))
    except (ValueError, x509.InvalidVersion):
        certificates = ()
    # The parser skips a last block without its END line: a file that was cut off must not pass as a shorter one.
    if len(certificates) < pem.data.count(_PEM_CERTIFICATE):
        msg = f"a certificate in {where} is damaged or cut off; write the file anew"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    return certificates


def _parse_key(pem: Secret, password: Secret | None, where: str) -> object:
    # Parser errors are dropped, not chained: none of them says more than we do, and some quote their input.
    if b"PRIVATE KEY-----" not in pem.data:
        hint = " It holds a certificate: are the two files swapped?" if _PEM_CERTIFICATE in pem.data else ""
        msg = f"no PEM private key in {where}: a '-----BEGIN PRIVATE KEY-----' block (or EC, RSA) is needed.{hint}"
        raise CertificateError(msg, reason=CertificateReason.NO_KEY)
    block = Secret(_key_block(pem.data))
    if b"-----BEGIN OPENSSH" in block.data:
        msg = f"the private key in {where} is in OpenSSH's own format; convert it with ssh-keygen -p -m PKCS8 -f FILE"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    encrypted = b"ENCRYPTED" in block.data
    if encrypted and password is None:
        msg = f"the private key in {where} is encrypted; give its password"
        raise CertificateError(msg, reason=CertificateReason.BAD_PASSWORD)
    if not encrypted and password is not None:
        msg = f"a password was given, but the private key in {where} is not encrypted; leave it out, or encrypt the key"
        raise CertificateError(msg, reason=CertificateReason.BAD_PASSWORD)
    try:
        key = serialization.load_pem_private_key(block.data, None if password is None else password.data)
    except UnsupportedAlgorithm:
        msg = f"the private key in {where} is of a kind that is not supported; use EC P-256, P-384, Ed25519 or RSA"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None
    except (ValueError, TypeError):
        if encrypted:
            msg = f"the password does not open the private key in {where} (or the key is damaged)"
            raise CertificateError(msg, reason=CertificateReason.BAD_PASSWORD) from None
        msg = f"the private key in {where} is damaged or cut off; write the file anew"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from None
    return key


def _key_block(pem: bytes) -> bytes:
    """The first private key block: OpenSSL writes `EC PARAMETERS` before it, and a file may hold certificates too."""
    marker = pem.index(b"PRIVATE KEY-----")
    start = max(0, pem.rfind(b"-----BEGIN ", 0, marker))
    end = pem.find(b"PRIVATE KEY-----", marker + 1)
    return pem[start:] if end < 0 else pem[start : end + len(b"PRIVATE KEY-----")]


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
    try:
        leaf_key = _public_bytes(chain[0].public_key())
    except (ValueError, UnsupportedAlgorithm):
        msg = (
            f"the leaf certificate of {where} has a key of a kind that is not supported: {describe(chain[0])}. Issue "
            "it for an EC P-256, P-384, Ed25519 or RSA key"
        )
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None
    if leaf_key != _public_bytes(private_key.public_key()):
        msg = (
            f"the private key does not belong to the leaf certificate of {where}: {describe(chain[0])}. The leaf comes "
            "first in the file; if certificate and key were being replaced just now, read them again"
        )
        raise CertificateError(msg, reason=CertificateReason.KEY_MISMATCH)


def _check_order(chain: tuple[x509.Certificate, ...], where: str) -> None:
    for position, (certificate, issuer) in enumerate(pairwise(chain), start=1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            msg = (
                f"the chain in {where} is not in order: certificate {position} ({describe(certificate)}) is not signed "
                f"by certificate {position + 1} ({describe(issuer)}). The leaf comes first, then each one's issuer"
            )
            raise CertificateError(msg, reason=CertificateReason.CHAIN_ORDER) from None


def _public_bytes(key: object) -> bytes:
    # Every public key type has the method; cryptography's union of them has no common base with it.
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _system_certificates() -> Iterator[bytes]:
    # The context is a reader of the platform's store here, nothing is ever verified with it.
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # noqa: TID251 -- see above
    reader.load_default_certs()
    yield from reader.get_ca_certs(binary_form=True)
    # OpenSSL looks directories up by hash, on demand, so `get_ca_certs` does not show them. SSL_CERT_DIR is a list.
    paths = ssl.get_default_verify_paths()
    for directory in filter(None, os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)):
        for file in sorted(Path(directory).glob("*.[0-9]")):
            try:
                certificates = x509.load_pem_x509_certificates(file.read_bytes())
            except (OSError, ValueError, x509.InvalidVersion):
                continue
            yield from (certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates)


# Building blocks shared with the development CA ---------------------------------------------------------------------

#: What a TLS 1.3 leaf does: sign the handshake.
LEAF_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)

#: A node is a server and a client.
BOTH_PURPOSES: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def general_name(host: str) -> x509.GeneralName:
    """The SAN entry for a canonical host: an IP entry for an address, a DNS entry for a name."""
    address = host_address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)
