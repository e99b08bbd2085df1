"""What credential files hold, as `cryptography` objects or a `CertificateError` that says why not; and the way back.

Theory. Everything that reads a certificate, a key or a revocation list from a file or a text goes through here, so that
one place decides what a file may hold, how large it may be, and what is said of one that is damaged. What the objects
are then good for is decided by `key_pair`, `ca_pool` and `crl`.

Errors from the parsers are replaced rather than chained where they could quote input: some of it is a private key.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import UnreadableError, decode
from trionode._util.exhausted import exhausted
from trionode._util.fields import with_article
from trionode._util.quiet import quietly

from .formats import certificates_in_other_formats, encryption_of, found_in, is_multi_prime, is_pem, is_pkcs12

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .formats import Encryption

#: What can sign in TLS 1.3.
PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
)
FilePath: TypeAlias = str | os.PathLike[str]

#: A certificate or key file larger than this is not one: the system's whole CA bundle has about 220 KiB.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

#: A CRL file larger than this is refused: room for some 400 000 revoked certificates. In memory a list takes its
#: encoding and half as much again, once, however many managers and generations use it.
MAX_CRL_BYTES: Final = 16 * 1024 * 1024

_PEM_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_PEM_CERTIFICATE_END: Final = b"-----END CERTIFICATE-----"
_PEM_CRL: Final = b"-----BEGIN X509 CRL-----"
_PEM_CRL_END: Final = b"-----END X509 CRL-----"


@final
class Secret:
    """Bytes that may be a key or a password, wrapped: a traceback that prints local variables does not show them."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | str) -> None:
        given: object = data
        if not isinstance(given, str | bytes | bytearray | memoryview):  # `bytes(5)` would be five zeros
            msg = f"a password or PEM has to be str or bytes, not {with_article(type(given).__name__)}"
            raise TypeError(msg)
        # "surrogatepass": an encoding error would carry the text, perhaps a key, in its attributes.
        self.data: bytes = data.encode(errors="surrogatepass") if isinstance(data, str) else bytes(data)

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes, not shown>"


def as_path(file: object) -> Path:
    """A path that was given as an argument.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(file, str | os.PathLike):
        msg = f"a file has to be given as a path (str, or os.PathLike), not as {with_article(type(file).__name__)}"
        raise TypeError(msg)
    return Path(file)


def read_file(file: FilePath, *, limit: int = MAX_FILE_BYTES, kind: str = "PEM certificate or key file") -> Secret:
    """Read a file that is not unreasonably large.

    Args:
        file: its path.
        limit: the largest size that is accepted, bytes.
        kind: what the file is meant to be, for the message.

    Raises:
        CertificateError: reason `unreadable`.
    """
    try:
        with as_path(file).open("rb") as stream:
            content = Secret(stream.read(limit + 1))
    except (OSError, ValueError) as exc:  # ValueError: a NUL byte in the path
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        msg = f"cannot read {os.fspath(file)}: {why}. {exhausted(exc) or 'Check the path and its permissions'}"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from exc
    if len(content.data) > limit:
        msg = f"{os.fspath(file)} is larger than {limit} bytes; this is not a {kind}"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    return content


def parse_certificates(pem: Secret, where: str, password: Secret | None = None) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text, a DER encoding, or a PKCS#12 or PKCS#7 bundle; at least one.

    Args:
        pem: the text.
        where: what to call the text in messages.
        password: of a PKCS#12 bundle.

    Raises:
        CertificateError: reason `no_certificate`, `bad_password`, or `unreadable` where one is damaged or cut off.
    """
    if _PEM_CERTIFICATE not in pem.data:
        others = certificates_in_other_formats(pem.data, None if password is None else password.data)
        if others is None:
            raise _shut_bundle(password, where)
        if others:
            return others
        hint = " It holds a private key: are the two files swapped?" if b"PRIVATE KEY-----" in pem.data else ""
        msg = (
            f"no PEM certificate in {where}: a '{_PEM_CERTIFICATE.decode()}' block is needed, and "
            f"{found_in(pem.data)}.{hint}"
        )
        raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
    try:
        with quietly():
            certificates = tuple(x509.load_pem_x509_certificates(pem.data))
    except (ValueError, x509.InvalidVersion):
        certificates = ()
    # The parser skips a last block without its END line; a file that was cut off must not pass for a shorter one.
    if len(certificates) < pem.data.count(_PEM_CERTIFICATE):
        msg = f"a certificate in {where} {_damage(pem.data)}"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    return certificates


def _damage(pem: bytes) -> str:
    """Which certificate of a PEM text cannot be parsed, and why."""
    for number, piece in enumerate(pem.split(_PEM_CERTIFICATE)[1:], start=1):
        block, end, _ = piece.partition(_PEM_CERTIFICATE_END)
        if not end:
            return (
                f"is damaged or cut off; write the file anew. It is certificate {number} of the file, without END line"
            )
        try:
            decode(_decoded(block))
        except UnreadableError as exc:
            if "UTF8String" in str(exc):
                return f"cannot be used, certificate {number} of the file: {exc}. Have it issued anew"
            return f"is damaged or cut off; write the file anew. It is certificate {number} of the file: {exc}"
    return "is damaged or cut off; write the file anew. It is not as RFC 7468 has it"


def parse_private_key(pem: Secret, password: Secret | None, where: str) -> object:
    """The first private key of a PEM text: a `cryptography` key object, of whatever kind.

    Args:
        pem: the text.
        password: of the key, if it is encrypted.
        where: what to call the text in messages.

    Raises:
        CertificateError: reason `no_key`, `bad_password`, `unsupported_key`, or `unreadable` where it is damaged.
    """
    # Errors of the parser are dropped rather than chained: they say no more than we do, and some quote their input.
    if is_pkcs12(pem.data):
        return _key_of_bundle(pem, password, where)
    in_pem = b"PRIVATE KEY-----" in pem.data
    block = Secret(_key_block(pem.data)) if in_pem else pem
    encryption = encryption_of(block.data)
    if not in_pem and encryption is None and (is_pem(pem.data) or not _is_key(pem)):
        hint = " It holds a certificate: are the two files swapped?" if _PEM_CERTIFICATE in pem.data else ""
        msg = (
            f"no PEM private key in {where}: a '-----BEGIN PRIVATE KEY-----' block (or EC, RSA) is needed, and "
            f"{found_in(pem.data)}.{hint}"
        )
        raise CertificateError(msg, reason=CertificateReason.NO_KEY)
    if b"-----BEGIN OPENSSH" in block.data:
        msg = f"the private key in {where} is in OpenSSH's own format; convert it with ssh-keygen -p -m PKCS8 -f FILE"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY)
    _expect_password(encryption, password, where)
    load = serialization.load_pem_private_key if in_pem else serialization.load_der_private_key
    try:
        with quietly():
            return load(block.data, None if password is None else password.data)
    except UnsupportedAlgorithm:
        msg = f"the private key in {where} is of a kind that is not supported; use EC P-256, P-384, Ed25519 or RSA"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None
    except (ValueError, TypeError):
        if encryption is not None:
            msg = f"the password does not open the private key in {where} (or the key is damaged)"
            raise CertificateError(msg, reason=CertificateReason.BAD_PASSWORD) from None
        if is_multi_prime(_decoded(b"".join(block.data.split(b"\n")[1:-1])) if in_pem else block.data):
            msg = f"the private key in {where} is RSA of more than two primes, which is not supported; make a new one"
            raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None
        msg = f"the private key in {where} is damaged or cut off; write the file anew"
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from None


def _expect_password(encryption: Encryption | None, password: Secret | None, where: str) -> None:
    """Check that there is a password if there has to be one, and that it can be of use."""
    reason = CertificateReason.BAD_PASSWORD
    if encryption is None:
        if password is None:
            return
        msg = f"a password was given, but the private key in {where} is not encrypted; leave it out, or encrypt the key"
    elif not encryption.known:
        reason = CertificateReason.UNSUPPORTED_KEY
        msg = (
            f"the private key in {where} is encrypted with {encryption.cipher}, which is not supported. Encrypt it "
            "anew: openssl pkey -aes256 -provider legacy -provider default -in FILE -out NEW"
        )
    elif password is None:
        msg = f"the private key in {where} is encrypted; give its password"
    elif not password.data:
        msg = (
            f"the password does not open the private key in {where}: it is empty. A key that was encrypted with an "
            "empty password has to be encrypted anew: openssl pkey -aes256 -in FILE -out NEW"
        )
    else:
        return
    raise CertificateError(msg, reason=reason)


def _is_key(der: Secret) -> bool:
    """Whether it is a private key, of whatever kind, that is not encrypted."""
    try:
        with quietly():
            serialization.load_der_private_key(der.data, None)
    except UnsupportedAlgorithm:
        return True
    except (ValueError, TypeError):
        return is_multi_prime(der.data)
    return True


def _key_of_bundle(bundle: Secret, password: Secret | None, where: str) -> object:
    """The private key of a PKCS#12 bundle."""
    try:
        with quietly():
            key = pkcs12.load_key_and_certificates(bundle.data, None if password is None else password.data)[0]
    except Exception:  # noqa: BLE001 -- in whatever way
        raise _shut_bundle(password, where) from None
    if key is None:
        msg = f"no private key in {where}: it is a PKCS#12 bundle of certificates alone"
        raise CertificateError(msg, reason=CertificateReason.NO_KEY)
    return key


def _shut_bundle(password: Secret | None, where: str) -> CertificateError:
    if password is None or not password.data:
        msg = f"the PKCS#12 bundle in {where} is encrypted; give its password"
    else:
        msg = (
            f"the password does not open the PKCS#12 bundle in {where} (or the bundle is damaged, or its cipher is not "
            "supported: openssl pkcs12 -export writes it anew)"
        )
    return CertificateError(msg, reason=CertificateReason.BAD_PASSWORD)


def _key_block(pem: bytes) -> bytes:
    """The first private key block: OpenSSL writes `EC PARAMETERS` before it, and a file may hold certificates too."""
    marker = pem.index(b"PRIVATE KEY-----")
    start = max(0, pem.rfind(b"-----BEGIN ", 0, marker))
    end = pem.find(b"PRIVATE KEY-----", marker + 1)
    return pem[start:] if end < 0 else pem[start : end + len(b"PRIVATE KEY-----")]


def parse_crls(data: bytes, where: str) -> Iterator[tuple[x509.CertificateRevocationList, bytes]]:
    """All lists of a PEM text, or the one of a DER encoding, each with its encoding.

    Args:
        data: the text or encoding.
        where: what to call the text in messages.

    Raises:
        CertificateError: reason `no_crl`, or `bad_crl` where one is damaged or cut off.
    """
    if _PEM_CRL in data:
        for piece in data.split(_PEM_CRL)[1:]:
            block, end, _ = piece.partition(_PEM_CRL_END)
            yield _parse_crl(_decoded(block) if end else b"", where)
        return
    if b"-----BEGIN " in data:
        msg = (
            f"no CRL in {where}: a '{_PEM_CRL.decode()}' block is needed, or DER, and {found_in(data)}. Are two files "
            "swapped?"
        )
        raise CertificateError(msg, reason=CertificateReason.NO_CRL)
    if not data.strip():
        msg = f"no CRL in {where}: it is empty. Write the file anew"
        raise CertificateError(msg, reason=CertificateReason.NO_CRL)
    yield _parse_crl(data, where)


def _decoded(block: bytes) -> bytes:
    # Not by `cryptography`, which does not give out the DER that it decodes: it would have to be encoded again.
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except ValueError:
        return b""


def _parse_crl(der: bytes, where: str) -> tuple[x509.CertificateRevocationList, bytes]:
    try:
        with quietly():
            return x509.load_der_x509_crl(der), der
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        found = "" if der[:1] == b"\x30" or not der else f". Now {found_in(der)}"
        msg = f"a CRL in {where} is damaged or cut off; fetch it anew{found}"
        raise CertificateError(msg, reason=CertificateReason.BAD_CRL) from None


# Writing --------------------------------------------------------------------------------------------------------------


def to_pem(objects: Iterable[x509.Certificate | x509.CertificateRevocationList]) -> bytes:
    """Certificates or revocation lists as one PEM text, in order."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in objects)


def private_key_to_pem(key: PrivateKey, password: str | bytes | None = None) -> bytes:
    """A private key as PKCS#8 in PEM.

    Args:
        key: the key.
        password: to encrypt it with; None leaves it readable.

    Raises:
        ValueError: the password is empty.
    """
    secret = None if password is None else Secret(password)
    if secret is not None and not secret.data:
        msg = "the password is empty: give None for a key that is not to be encrypted"
        raise ValueError(msg)
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption() if secret is None else serialization.BestAvailableEncryption(secret.data)
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
