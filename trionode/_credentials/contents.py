"""Everything that is in a credential file, whatever it is, in its order: to be shown, and not to be used.

Theory. What is to be used is parsed by `pem`, which takes what it was asked for and refuses the rest. An operator who
looks at a file wants to know what is there: that it is a request, that a key follows the chain, that a bundle is of
PKCS#12. So each block, or the one encoding, becomes a `Part` that says what it is; one that cannot be read says why.
Secrets stay in here: of a private key there is its kind, and of which public key it is the other half.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

from trionode._identity.certificate import UnreadableError, decode, key_name
from trionode._util.der import element
from trionode._util.quiet import quietly
from trionode._util.text import printable

from .formats import encryption_of, is_pem, is_pkcs12

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .pem import Secret

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----(.*?)(-----END \1-----|(?=-----BEGIN )|\Z)", re.DOTALL)

CERTIFICATE, LIST, REQUEST, KEY, PUBLIC_KEY = (
    *("certificate", "revocation list", "certificate request", "private key", "public key"),
)
BUNDLE, OTHER = "bundle", "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownKey:
    """A key as far as it may be shown.

    Attributes:
        name: kind and size, `RSA 2048` for one; empty if it stays shut.
        public: SHA-256 of its public key (SubjectPublicKeyInfo), hex; empty likewise.
        encryption: how it is encrypted; None if it is not.
    """

    name: str = ""
    public: str = ""
    encryption: str | None = None


Value: TypeAlias = x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest | ShownKey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing in a file.

    Attributes:
        kind: what it is.
        source: what it was in, where that is not plain: `PKCS#12 bundle`, `DER`, `TRUSTED CERTIFICATE`; empty for PEM.
        value: the thing; None if it cannot be read, or is of no kind that is shown.
        note: what there is to say of it: why it cannot be read, which block it is.
    """

    kind: str
    source: str = ""
    value: Value = None
    note: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether it could be read, or is of no kind that is."""
        return not self.note or self.kind == OTHER


def contents(file: Secret, password: Secret | None = None) -> tuple[Part, ...]:
    """Everything in a file; empty if it is neither PEM nor DER.

    Args:
        file: its content.
        password: of bundles and keys.
    """
    secret = None if password is None else password.data
    with quietly():
        if is_pem(file.data):
            found = _BLOCK.findall(file.data)
            return tuple(part for label, body, end in found for part in _block(label, body, secret, whole=bool(end)))
        return tuple(_encoding(file.data, secret))


def public_digest(key: object) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo), by which a private key is known as its other half; hex."""
    try:
        der = key.public_bytes(  # type: ignore[attr-defined]  # as every public key of `cryptography`
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except Exception:  # noqa: BLE001 -- whatever it is, it is shown without
        return ""
    return hashlib.sha256(der).hexdigest()


# Blocks of PEM ------------------------------------------------------------------------------------------------------


def _block(label: bytes, body: bytes, password: bytes | None, *, whole: bool) -> Iterator[Part]:
    name = label.decode("ascii")
    if name.endswith("PRIVATE KEY"):
        yield _key_block(b"-----BEGIN %s-----%s-----END %s-----\n" % (label, body, label), password)
        return
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError:
        der = b""
    if not whole or not der:
        note = "it is damaged: no base64" if whole else "it is cut off: it has no END line"
        yield Part(kind=_LABELS.get(name, OTHER), source=name, note=note)
        return
    match name:
        case "CERTIFICATE" | "X509 CERTIFICATE":
            yield _certificate(der)
        case "TRUSTED CERTIFICATE":  # OpenSSL's: a certificate, and for what it is trusted
            try:
                der = der[: element(der, 0)[2]]
            except ValueError:
                der = b""
            yield _certificate(der, name)
        case "X509 CRL":
            yield _read(LIST, lambda: x509.load_der_x509_crl(der))
        case "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST":
            yield _read(REQUEST, lambda: x509.load_der_x509_csr(der))
        case "PUBLIC KEY":
            yield _read(PUBLIC_KEY, lambda: _shown(serialization.load_der_public_key(der)))
        case "PKCS7" | "CMS":
            yield from _bundle(der, "PKCS#7 bundle")
        case _:
            yield Part(kind=OTHER, note=f"{name}, {len(der)} bytes, which is not for us")


_LABELS: Final = {
    "CERTIFICATE": CERTIFICATE,
    "X509 CRL": LIST,
    "CERTIFICATE REQUEST": REQUEST,
    "PUBLIC KEY": PUBLIC_KEY,
    "PKCS7": BUNDLE,
}


def _key_block(block: bytes, password: bytes | None) -> Part:
    if b"-----BEGIN OPENSSH" in block:
        load: Callable[..., object] = serialization.load_ssh_private_key
        encryption = None
    else:
        load, encryption = serialization.load_pem_private_key, encryption_of(block)
    return _key(block, load, password, None if encryption is None else encryption.cipher)


def _key(
    data: bytes, load: Callable[..., object], password: bytes | None, cipher: str | None, source: str = ""
) -> Part:
    if cipher is not None and not password:
        return Part(kind=KEY, source=source, value=ShownKey(encryption=cipher))
    try:
        key = load(data, None if cipher is None else password)
    except Exception:  # noqa: BLE001 -- in whatever way; and what it says may quote the key
        note = "damaged, or of a kind that is not known" if cipher is None else "the password does not open it"
        return Part(kind=KEY, source=source, value=ShownKey(encryption=cipher), note=note)
    return Part(kind=KEY, source=source, value=_shown(key, cipher))


def _shown(key: object, cipher: str | None = None) -> ShownKey:
    public = key.public_key() if hasattr(key, "public_key") else key
    return ShownKey(name=key_name(key), public=public_digest(public), encryption=cipher)


def _certificate(der: bytes, source: str = "") -> Part:
    try:
        return Part(kind=CERTIFICATE, source=source, value=decode(der))
    except UnreadableError as exc:
        return Part(kind=CERTIFICATE, source=source, note=f"it cannot be parsed: {printable(str(exc), 200)}")


def _read(kind: str, load: Callable[[], Value], source: str = "") -> Part:
    try:
        return Part(kind=kind, source=source, value=load())
    except Exception as exc:  # noqa: BLE001 -- whatever a decoder raises
        return Part(kind=kind, source=source, note=f"it cannot be parsed: {printable(str(exc), 200)}")


# DER ----------------------------------------------------------------------------------------------------------------


def _encoding(der: bytes, password: bytes | None) -> Iterator[Part]:
    if is_pkcs12(der):
        yield from _pkcs12(der, password)
        return
    encryption = encryption_of(der)
    if encryption is not None:
        yield _key(der, serialization.load_der_private_key, password, encryption.cipher, "DER")
        return
    for kind, load in _ENCODINGS:
        try:
            value = load(der)
        except Exception:  # noqa: BLE001, S112 -- it is something else
            continue
        yield Part(kind=kind, source="DER", value=value)
        return
    yield from _bundle(der, "PKCS#7 bundle", quiet=True)


_ENCODINGS: Final[tuple[tuple[str, Callable[[bytes], Value]], ...]] = (
    (CERTIFICATE, decode),
    (LIST, x509.load_der_x509_crl),
    (REQUEST, x509.load_der_x509_csr),
    (KEY, lambda der: _shown(serialization.load_der_private_key(der, None))),
    (PUBLIC_KEY, lambda der: _shown(serialization.load_der_public_key(der))),
)


def _bundle(der: bytes, source: str, *, quiet: bool = False) -> Iterator[Part]:
    try:
        found = pkcs7.load_der_pkcs7_certificates(der)
    except Exception as exc:  # noqa: BLE001 -- whatever a decoder raises
        if not quiet:
            yield Part(kind=BUNDLE, source=source, note=f"it cannot be parsed: {printable(str(exc), 200)}")
        return
    yield from (Part(kind=CERTIFICATE, source=source, value=each) for each in found)


def _pkcs12(der: bytes, password: bytes | None) -> Iterator[Part]:
    source = "PKCS#12 bundle"
    try:
        key, leaf, others = pkcs12.load_key_and_certificates(der, password)
    except Exception:  # noqa: BLE001 -- in whatever way
        yield Part(
            kind=BUNDLE,
            source=source,
            note="it is encrypted; give its password" if password is None else "the password does not open it",
        )
        return
    for each in (leaf, *others):
        if each is not None:
            yield Part(kind=CERTIFICATE, source=source, value=each)
    if key is not None:
        yield Part(kind=KEY, source=source, value=_shown(key, "with the bundle" if password else None))
