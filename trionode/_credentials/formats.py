"""Credential files that are not PEM, or hold something else than was asked for: read where that is easy, else named.

Theory. Appliances and Windows hand out DER, PKCS#12 and PKCS#7 rather than PEM. `cryptography` reads them, so we do. Of
anything else a message says what was found, as Go does: that the file is a request, or that two files were swapped, is
what its owner needs to know.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

from trionode._identity.certificate import is_self_issued, issuer_der, subject_der
from trionode._util.der import INTEGER, OID, SEQUENCE, dotted, element, elements
from trionode._util.quiet import quietly

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_OCTET_STRING: Final = 0x04
_PKCS7_OID: Final = bytes.fromhex("06092a864886f70d010702")


def is_pem(data: bytes) -> bool:
    """Whether there is any PEM block."""
    return _BEGIN.search(data) is not None


def found_in(data: bytes) -> str:
    """What a file holds, as the end of a sentence: its PEM blocks, or what its bytes are."""
    blocks = list(dict.fromkeys(each.decode("ascii") for each in _BEGIN.findall(data)))
    if blocks:
        return f"it holds {', '.join(blocks[:8])}"
    if not data.strip():
        return "it is empty"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:2] == b"\0":
        return "it is text in UTF-16; write it as UTF-8 (PowerShell: Out-File -Encoding ascii)"
    for begin, what in _MAGIC.items():
        if data.lstrip()[: len(begin)] == begin:
            return what
    for what, load in _KINDS:
        try:
            with quietly():
                load(data)
        except Exception:  # noqa: BLE001, S112 -- it is something else
            continue
        return f"it is {what} in DER"
    if is_pkcs12(data):
        return "it is a PKCS#12 bundle"
    if encryption_of(data) is not None:
        return "it is an encrypted private key in DER"
    if _BASE64.fullmatch(data):
        return "it is base64 without the BEGIN and END lines of PEM"
    return "it is neither PEM nor DER"


#: Whole lines of base64, as long as a certificate's at least.
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\s]{100,}={0,2}\s*")
#: What else is put into such files, by how it begins.
_MAGIC: Final = {
    b"<": "it is HTML or XML: an error page of where it was fetched, perhaps",
    b"{": "it is JSON; its values may hold what is needed",
    b"[": "it is JSON; its values may hold what is needed",
    b"\x1f\x8b": "it is compressed with gzip; unpack it",
    b"PK\x03\x04": "it is a ZIP archive; unpack it",
    b"\xfe\xed\xfe\xed": "it is a Java keystore; keytool -importkeystore writes PKCS#12",
    b"ssh-": "it is a public key of OpenSSH",
}
_KINDS: Final = (
    ("a certificate", x509.load_der_x509_certificate),
    ("a revocation list", x509.load_der_x509_crl),
    ("a certificate request (CSR)", x509.load_der_x509_csr),
    ("a PKCS#7 bundle", pkcs7.load_der_pkcs7_certificates),
    ("a private key", lambda data: serialization.load_der_private_key(data, None)),
    ("a public key", serialization.load_der_public_key),
)


def certificates_in_other_formats(data: bytes, password: bytes | None) -> tuple[x509.Certificate, ...] | None:
    """The certificates of a DER encoding, or of a PKCS#12 or PKCS#7 bundle, the leaf first; empty if it is neither.

    Args:
        data: the file.
        password: of a PKCS#12 bundle.

    Returns:
        None if it is a PKCS#12 bundle that the password does not open. (An exception would carry the bytes along.)
    """
    with quietly():
        if b"-----BEGIN PKCS7-----" in data:
            return _or_none(lambda: _leaf_first(pkcs7.load_pem_pkcs7_certificates(data)))
        if is_pem(data):
            return ()
        if is_pkcs12(data):
            try:
                _, leaf, others = pkcs12.load_key_and_certificates(data, password)
            except Exception:  # noqa: BLE001 -- in whatever way
                return None
            return (() if leaf is None else (leaf,)) + tuple(others)
        if _PKCS7_OID in data[:32]:
            return _or_none(lambda: _leaf_first(pkcs7.load_der_pkcs7_certificates(data)))
        return _or_none(lambda: (x509.load_der_x509_certificate(data),))


def is_pkcs12(data: bytes) -> bool:
    """Whether it begins as a PKCS#12 bundle does (RFC 7292 section 4): a sequence with version 3 and a content."""
    try:
        tag, start, end = element(data, 0)
        first, second, *_ = elements(data, start, end)
    except ValueError:
        return False
    return tag == SEQUENCE and data[first[1] : first[3]] == b"\x02\x01\x03" and second[0] == SEQUENCE


class Encryption(NamedTuple):
    """How a private key is encrypted.

    Attributes:
        cipher: its name, as OpenSSL has it, or its object identifier.
        known: whether `cryptography` can decrypt it.
    """

    cipher: str
    known: bool


def encryption_of(key: bytes) -> Encryption | None:
    """How a private key is encrypted; None if it is not.

    Args:
        key: a block of PEM, or DER.
    """
    info = _DEK_INFO.search(key)
    if info is not None:  # RFC 1421 section 4.6.1.3, OpenSSL's traditional form
        cipher = info[1].decode("ascii").upper()
        return Encryption(cipher, cipher in _TRADITIONAL)
    if is_pem(key):
        if b"ENCRYPTED PRIVATE KEY" not in key:
            return None
        try:
            key = base64.b64decode(b"".join(key.partition(b"KEY-----")[2].partition(b"-----")[0].split()))
        except ValueError:
            return Encryption("an unreadable cipher", known=True)
    try:
        tag, start, end = element(key, 0)
        algorithm, content = elements(key, start, end)  # RFC 5958 section 3
        if (tag, algorithm[0], content[0]) != (SEQUENCE, SEQUENCE, _OCTET_STRING):
            return None
        found = [_PBE.get(each, (each, False)) for each in _oids(key, algorithm) if each not in _SCHEMES]
    except ValueError:
        return None
    unknown = [name for name, known in found if not known]
    return Encryption(" and ".join(unknown or [name for name, _ in found]), not unknown)


def _oids(der: bytes, part: tuple[int, int, int, int]) -> Iterator[str]:
    """All object identifiers in an element."""
    tag, _, start, end = part
    if tag == OID:
        yield dotted(der[start:end])
    elif tag == SEQUENCE:
        for each in elements(der, start, end):
            yield from _oids(der, each)


_DEK_INFO: Final = re.compile(rb"^DEK-Info: *([A-Za-z0-9-]{1,40})", re.MULTILINE)
_TRADITIONAL: Final = frozenset({"AES-128-CBC", "AES-192-CBC", "AES-256-CBC", "DES-EDE3-CBC"})
#: PBES2, PBKDF2, scrypt: what they are used with is told (RFC 8018 appendix A, RFC 7914 section 7).
_SCHEMES: Final = frozenset({"1.2.840.113549.1.5.13", "1.2.840.113549.1.5.12", "1.3.6.1.4.1.11591.4.11"})
_HMACS: Final = {7: 1, 8: 224, 9: 256, 10: 384, 11: 512}
#: RFC 8018, RFC 7292 appendix C and others.
_PBE: Final = {
    "1.2.840.113549.1.5.1": ("PBE-MD2-DES", False),
    "1.2.840.113549.1.5.3": ("PBE-MD5-DES", True),
    "1.2.840.113549.1.5.4": ("PBE-MD2-RC2-64", False),
    "1.2.840.113549.1.5.6": ("PBE-MD5-RC2-64", False),
    "1.2.840.113549.1.5.10": ("PBE-SHA1-DES", False),
    "1.2.840.113549.1.5.11": ("PBE-SHA1-RC2-64", False),
    "1.2.840.113549.1.12.1.1": ("PBE-SHA1-RC4-128", True),
    "1.2.840.113549.1.12.1.3": ("PBE-SHA1-3DES", True),
    "1.2.840.113549.1.12.1.4": ("PBE-SHA1-2DES", False),
    "1.2.840.113549.1.12.1.6": ("PBE-SHA1-RC2-40", True),
    "1.2.840.113549.3.2": ("RC2-CBC", True),
    "1.2.840.113549.3.7": ("DES-EDE3-CBC", True),
    "1.3.14.3.2.7": ("DES-CBC", False),
    "2.16.840.1.101.3.4.1.2": ("AES-128-CBC", True),
    "2.16.840.1.101.3.4.1.22": ("AES-192-CBC", True),
    "2.16.840.1.101.3.4.1.42": ("AES-256-CBC", True),
    "1.2.392.200011.61.1.1.1.4": ("CAMELLIA-256-CBC", False),
    "1.2.410.200046.1.1.12": ("ARIA-256-CBC", False),
    "1.2.840.113549.2.6": ("hmacWithMD5", False),
    **{f"1.2.840.113549.2.{arc}": (f"hmacWithSHA{bits}", True) for arc, bits in _HMACS.items()},
}


def is_multi_prime(der: bytes) -> bool:
    """Whether a private key is RSA of more than two primes (RFC 8017 appendix A.1.2: version 1)."""
    try:
        _, start, end = element(der, 0)
        parts = list(elements(der, start, end))
        if len(parts) >= 3 and parts[1][0] == SEQUENCE and parts[2][0] == _OCTET_STRING:  # PKCS#8
            return is_multi_prime(der[parts[2][2] : parts[2][3]])
        return len(parts) >= 9 and parts[0][0] == INTEGER and der[parts[0][2] : parts[0][3]] == b"\x01"
    except ValueError:
        return False


def _leaf_first(bundle: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The certificates of a PKCS#7 bundle, a set (RFC 2315 section 9.1): the leaf, the path above it, the others."""
    issuers = {issuer_der(each) for each in bundle if not is_self_issued(each)}
    by_subject = {subject_der(each): each for each in reversed(bundle)}
    each = next((each for each in bundle if subject_der(each) not in issuers), None)
    path: dict[x509.Certificate, None] = {}
    while each is not None and each not in path:
        path[each] = None
        each = by_subject.get(issuer_der(each))
    return tuple(dict.fromkeys((*path, *bundle)))


def _or_none(read: object) -> tuple[x509.Certificate, ...]:
    try:
        return read()  # type: ignore[operator,no-any-return]
    except Exception:  # noqa: BLE001 -- whatever a decoder raises: it is none
        return ()
