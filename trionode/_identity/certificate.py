"""What a certificate says of itself, whatever it says: the one place where certificates are read.

Theory. Certificates come from peers, files and appliances. `cryptography` decodes lazily and all or nothing: one odd
extension (a policy notice in another encoding, a SAN with an ediPartyName, a garbage SCT list) makes all of them
unreadable, an attribute of type BIT STRING makes a name raise `TypeError`, a year 0 a date `ValueError`. What OpenSSL
has verified must not be refused for that, and reading it must raise nothing that callers do not expect. So:

- each function here is total: it gives a value, or, where it says so, raises `UnreadableError` alone;
- extensions are read one by one: what is not asked for cannot be in the way. A copy of the certificate that has the one
  extension only is given to `cryptography`, which thus still does the decoding;
- subject alternative names are read entry by entry;
- names are shown with replacement characters, and no further than they are shown;
- dates that cannot be represented count as outside of every validity period (fail closed).

A stranger's certificate may have 100 KB (OpenSSL's limit) and thousands of names. `cryptography` encodes it anew each
time that it is asked for its bytes, its fingerprint or its hash. So a certificate is encoded once, what is read of it
is kept by its bytes, and of large ones nothing is kept: honest ones are small, and a cache could be filled with them.

Nothing else in the package touches the attributes of a certificate from outside; a test sees to that.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._util.der import BOOLEAN, CONTEXT_0, CONTEXT_3, OID, SEQUENCE, dotted, element, elements, encoded
from trionode._util.kept import kept_by_bytes
from trionode._util.quiet import quietly
from trionode._util.text import printable

from .distinguished_name import NAME_SHOWN, attributes, shown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

E = TypeVar("E", bound=x509.ExtensionType)

#: GeneralName (RFC 5280 section 4.2.1.6) by identifier octet, for the kinds that are only shown.
_OTHER_NAMES: Final = {
    0xA0: "otherName",
    0x81: "email",
    0xA3: "x400Address",
    0xA4: "directoryName",
    0xA5: "ediPartyName",
    0x88: "registeredID",
}

#: Extensions in words.
_WORDS: Final[dict[type, str]] = {
    x509.BasicConstraints: "basic constraints",
    x509.CRLDistributionPoints: "CRL distribution points",
    x509.ExtendedKeyUsage: "extended key usage",
    x509.KeyUsage: "key usage",
    x509.NameConstraints: "name constraints",
    x509.SubjectKeyIdentifier: "subject key identifier",
}

#: Of so many certificates the encoding is kept.
_ENCODED: Final = 128

_NEVER_BEGAN: Final = datetime.max.replace(tzinfo=UTC)
_LONG_OVER: Final = datetime.min.replace(tzinfo=UTC)


class UnreadableError(ValueError):
    """A part of a certificate that is needed cannot be read; the text says which."""


class SubjectAltName(NamedTuple):
    """One entry of the subject alternative names.

    Attributes:
        kind: `DNS`, `IP`, `URI`, or the name of another kind.
        value: as text; None where it cannot be read, or is of another kind.
        shown: for messages.
    """

    kind: str
    value: str | None
    shown: str


# The certificate itself -----------------------------------------------------------------------------------------------


def decode(der: bytes) -> x509.Certificate:
    """A certificate.

    Args:
        der: its encoding.

    Raises:
        UnreadableError: it is none, or `cryptography` cannot decode it; the text says why.
    """
    try:
        with quietly():
            return x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, x509.InvalidVersion) as exc:
        raise UnreadableError(_why_undecodable(str(exc))) from None


def _why_undecodable(said: str) -> str:
    """What `cryptography` minds, in words where it is something that certificates of the field have."""
    found = re.search(r"InvalidValue, location: .*\"AttributeValue::(\w+)\"", said)
    if found is not None:
        return (
            f"a name in it has a {found[1]} with characters that this type does not have (X.680 section 41), and "
            "`cryptography` does not take it; UTF8String has all of them"
        )
    return printable(said, 200)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER encoding, as lower-case hex."""
    return hashlib.sha256(_der(certificate)).hexdigest()


def not_before(certificate: x509.Certificate) -> datetime:
    """When its validity begins, UTC; never, where that cannot be read."""
    try:
        return certificate.not_valid_before_utc
    except ValueError:
        return _NEVER_BEGAN


def not_after(certificate: x509.Certificate) -> datetime:
    """When its validity ends, UTC; long ago, where that cannot be read."""
    try:
        return certificate.not_valid_after_utc
    except ValueError:
        return _LONG_OVER


def has_dates(certificate: x509.Certificate) -> bool:
    """Whether its validity period can be read."""
    return not_before(certificate) != _NEVER_BEGAN and not_after(certificate) != _LONG_OVER


def serial_number(certificate: x509.Certificate) -> int:
    """Its serial number; a positive integer, if the CA keeps to RFC 5280 section 4.1.2.2."""
    with quietly():
        return certificate.serial_number


def public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """Its public key; None where that is of a kind, or has parameters, that `cryptography` does not know."""
    try:
        with quietly():
            return certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def signature_hash(signed: x509.Certificate | x509.CertificateRevocationList) -> HashAlgorithm | None:
    """The digest under its issuer's signature; None where there is none (Ed25519), or one that is not known."""
    try:
        return signed.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def key_kind(certificate: x509.Certificate) -> str:
    """What kind of key it is for, and of what size: `RSA 2048`, `EC secp256r1`, `Ed25519`."""
    return key_name(public_key(certificate))


def key_name(key: object) -> str:
    """The kind and size of a public or private key of `cryptography`'s; None is an unreadable one."""
    match key:
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey():
            return f"EC {key.curve.name}"
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            return f"RSA {key.key_size}"
        case dsa.DSAPublicKey() | dsa.DSAPrivateKey():
            return f"DSA {key.key_size}"
        case None:
            return "unreadable key"
        case _:
            name = type(key).__name__
            return name.removesuffix("PublicKey").removesuffix("PrivateKey") or name


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether a certificate has another's subject as its issuer, and a signature by its key."""
    try:
        with quietly():
            certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether it names itself as its issuer, as a root does."""
    issuer, subject = _names(_der(certificate))
    return issuer == subject


def subject_der(certificate: x509.Certificate) -> bytes:
    """Its subject, encoded, as peers compare and send it; empty where it cannot be read."""
    return _names(_der(certificate))[1]


def issuer_der(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """The issuer's name of a certificate or revocation list, likewise."""
    if isinstance(signed, x509.Certificate):
        return _names(_der(signed))[0]
    try:
        return signed.issuer.public_bytes()
    except (ValueError, TypeError):
        return b""


def subject(certificate: x509.Certificate) -> str:
    """Its subject's distinguished name (RFC 4514), escaped, with replacement characters, and cut."""
    return shown_name(_names(_der(certificate))[1], "subject")


def issuer(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """The distinguished name of a certificate's or a revocation list's issuer, likewise."""
    return shown_name(issuer_der(signed), "issuer")


def common_name(certificate: x509.Certificate) -> str | None:
    """The first Common Name in its subject, for people; it is no identity (RFC 9525 section 2)."""
    for each in attributes(_names(_der(certificate))[1]):
        if each.kind == "CN":
            return printable(each.text, NAME_SHOWN)
    return None


# Extensions -----------------------------------------------------------------------------------------------------------


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """An extension's value, or None where the certificate does not have it; the others are not looked at.

    Args:
        certificate: the certificate that may have it.
        kind: the class of its value.

    Raises:
        UnreadableError: it is there, and cannot be read, or is there twice.
    """
    return _extension(_der(certificate), kind)


@kept_by_bytes(1024)
def _extension(der: bytes, kind: type[E]) -> E | None:
    name = _WORDS.get(kind, kind.__name__)
    try:
        found = [each for oid, each in _extensions(der) if oid == kind.oid.dotted_string]
        if not found:
            return None
        if len(found) > 1:
            msg = f"the {name} extension is there {len(found)} times"
            raise UnreadableError(msg)
        [only] = _with_one_extension(der, found[0]).extensions
    except UnreadableError:
        raise
    except Exception as exc:  # whatever a decoder raises on what a stranger has made
        msg = f"the {name} extension cannot be read ({type(exc).__name__})"
        raise UnreadableError(msg) from exc
    if not isinstance(only.value, kind):
        msg = f"the {name} extension cannot be read"
        raise UnreadableError(msg)
    return only.value


def critical_extensions(certificate: x509.Certificate) -> tuple[str, ...]:
    """The types of its extensions that are critical, in dotted form; none where that cannot be read."""
    try:
        return tuple(oid for oid, one in _extensions(_der(certificate)) if _is_critical(one))
    except ValueError:
        return ()


def list_extensions(crl: x509.CertificateRevocationList) -> x509.Extensions:
    """All extensions of a revocation list: one that cannot be read might limit what the list is for.

    Raises:
        UnreadableError: one cannot be read, or is there twice.
    """
    try:
        return crl.extensions
    except Exception as exc:  # as above
        msg = f"an extension cannot be read ({type(exc).__name__})"
        raise UnreadableError(msg) from exc


def list_dates(crl: x509.CertificateRevocationList) -> tuple[datetime, datetime | None]:
    """When a list was issued, and when the next one is due, UTC; None where it does not say. As of certificates."""
    try:
        start = crl.last_update_utc
    except ValueError:
        start = _NEVER_BEGAN
    try:
        return start, crl.next_update_utc
    except ValueError:
        return start, _LONG_OVER


def list_entries(crl: x509.CertificateRevocationList) -> list[x509.RevokedCertificate]:
    """What is on a list, as far as it can be read."""
    entries: list[x509.RevokedCertificate] = []
    try:
        with quietly():
            entries.extend(crl)
    except (ValueError, TypeError):
        pass
    return entries


def revocation_reason(entry: x509.RevokedCertificate) -> x509.ReasonFlags | None:
    """Why an entry of a revocation list was revoked; None where it does not say, or cannot be read."""
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except Exception:  # noqa: BLE001 -- it is revoked, whatever else the entry says
        return None


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether its basic constraints say that it is a CA's; False if they are absent or cannot be read."""
    try:
        constraints = extension(certificate, x509.BasicConstraints)
    except UnreadableError:
        return False
    return constraints is not None and constraints.ca


def allows(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """Whether the extended key usage names a purpose, or is absent (RFC 5280 section 4.2.1.12).

    `anyExtendedKeyUsage` alone does not count: OpenSSL peers refuse it. One that cannot be read allows nothing.
    """
    try:
        usage = extension(certificate, x509.ExtendedKeyUsage)
    except UnreadableError:
        return False
    return usage is None or purpose in usage


def subject_alt_names(certificate: x509.Certificate) -> tuple[SubjectAltName, ...]:
    """The entries of the subject alternative name extension, each by itself; none if it is absent.

    Raises:
        UnreadableError: the extension is there, and is no sequence of names, or is there twice.
    """
    return _alt_names(_der(certificate))


def first_alt_names(certificate: x509.Certificate) -> Iterator[SubjectAltName]:
    """The same one after the other, each read when it is asked for: a stranger's may be thousands.

    Raises:
        UnreadableError: as `subject_alt_names`, as far as was read.
    """
    return _each_alt_name(_der(certificate))


@kept_by_bytes(256)
def _alt_names(der: bytes) -> tuple[SubjectAltName, ...]:
    return tuple(_each_alt_name(der))


def _each_alt_name(der: bytes) -> Iterator[SubjectAltName]:
    oid = x509.SubjectAlternativeName.oid.dotted_string
    try:
        found = [each for each_oid, each in _extensions(der) if each_oid == oid]
        if not found:
            return
        if len(found) > 1:
            msg = f"the subject alternative names are there {len(found)} times"
            raise UnreadableError(msg)
        yield from general_names(_value(found[0]))
    except UnreadableError:
        raise
    except ValueError as exc:
        msg = f"the subject alternative names cannot be read: {exc}"
        raise UnreadableError(msg) from exc


def general_names(value: bytes) -> Iterator[SubjectAltName]:
    """The entries of an encoded GeneralNames, one after the other.

    Raises:
        UnreadableError: it is no sequence.
        ValueError: an entry is cut off.
    """
    tag, start, end = element(value, 0)
    if tag != SEQUENCE or end != len(value):
        msg = "the subject alternative names are no sequence"
        raise UnreadableError(msg)
    for kind, _, content, after in elements(value, start, end):
        yield _general_name(kind, value[content:after])


def _general_name(tag: int, content: bytes) -> SubjectAltName:
    text = content.decode("ascii", "backslashreplace")
    match tag:
        case 0x82:
            return SubjectAltName("DNS", text if content.isascii() else None, f"DNS:{text}")
        case 0x86:
            return SubjectAltName("URI", text if content.isascii() else None, f"URI:{text}")
        case 0x87:
            try:
                address = str(ipaddress.ip_address(content))
            except ValueError:
                return SubjectAltName("IP", None, f"IP:{content.hex()}")
            return SubjectAltName("IP", address, f"IP:{address}")
        case _:
            kind = _OTHER_NAMES.get(tag, f"unknown kind {tag:#x}")
            return SubjectAltName(kind, None, f"{kind}:{text}" if tag == 0x81 else kind)


# DER ------------------------------------------------------------------------------------------------------------------


# The last certificates that were encoded, by identity; each is kept with its bytes, so that its identity stays its own.
_encoded: dict[int, tuple[x509.Certificate, bytes]] = {}


def _der(certificate: x509.Certificate) -> bytes:
    """A certificate's encoding, made once."""
    known = _encoded.get(id(certificate))
    if known is not None and known[0] is certificate:
        return known[1]
    der = certificate.public_bytes(Encoding.DER)
    _encoded[id(certificate)] = certificate, der
    if len(_encoded) > _ENCODED:
        _encoded.pop(next(iter(_encoded)), None)
    return der


@kept_by_bytes(1024)
def _names(der: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject, encoded; empty where the certificate's outline cannot be read."""
    try:
        parts = list(_tbs_parts(der))
        if parts and parts[0][0] == CONTEXT_0:
            del parts[0]
        _, _, issuer_part, _, subject_part = parts[:5]
    except ValueError:
        return b"", b""
    return der[issuer_part[1] : issuer_part[3]], der[subject_part[1] : subject_part[3]]


def _tbs_parts(der: bytes) -> Iterator[tuple[int, int, int, int]]:
    _, start, _ = element(der, 0)
    _, start, end = element(der, start)
    return elements(der, start, end)


def _extensions(der: bytes) -> Iterator[tuple[str, bytes]]:
    """Each extension's type, and the whole of its encoding."""
    for tag, _, content, _ in _tbs_parts(der):
        if tag == CONTEXT_3:
            _, first, last = element(der, content)
            for _, begin, at, after in elements(der, first, last):
                kind, oid, end = element(der, at)
                if kind == OID:
                    yield dotted(der[oid:end]), der[begin:after]


def _value(one: bytes) -> bytes:
    """The content of an extension's OCTET STRING, its last element."""
    _, start, end = element(one, 0)
    *_, (_, _, content, after) = elements(one, start, end)
    return one[content:after]


def _is_critical(one: bytes) -> bool:
    """Whether an extension's encoding says so (RFC 5280 section 4.1)."""
    _, start, end = element(one, 0)
    return any(tag == BOOLEAN and one[content:after] != b"\0" for tag, _, content, after in elements(one, start, end))


def _with_one_extension(der: bytes, one: bytes) -> x509.Certificate:
    """The certificate without the other extensions; its signature does not hold any more, and is never checked."""
    _, outer, outer_end = element(der, 0)
    _, tbs, tbs_end = element(der, outer)
    kept = b"".join(der[begin:after] for tag, begin, _, after in elements(der, tbs, tbs_end) if tag != CONTEXT_3)
    lists = encoded(CONTEXT_3, encoded(SEQUENCE, one))
    copy = encoded(SEQUENCE, encoded(SEQUENCE, kept + lists) + der[tbs_end:outer_end])
    return decode(copy)
