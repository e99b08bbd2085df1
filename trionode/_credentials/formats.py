"""Credential files that are not PEM, or hold something else than was asked for: read where that is easy, else named.

Theory. Appliances and Windows hand out DER, PKCS#12 and PKCS#7 rather than PEM. `cryptography` reads them, so we do. Of
anything else a message says what was found, as Go does: that the file is a request, or that two files were swapped, is
what its owner needs to know.
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

from trionode._util.der import INTEGER, SEQUENCE, element, elements
from trionode._util.quiet import quietly

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
    for what, load in _KINDS:
        try:
            with quietly():
                load(data)
        except Exception:  # noqa: BLE001, S112 -- it is something else
            continue
        return f"it is {what} in DER"
    if _version_of_pkcs12(data):
        return "it is a PKCS#12 bundle"
    return "it is neither PEM nor DER"


_KINDS: Final = (
    ("a certificate", x509.load_der_x509_certificate),
    ("a revocation list", x509.load_der_x509_crl),
    ("a certificate request (CSR)", x509.load_der_x509_csr),
    ("a PKCS#7 bundle", pkcs7.load_der_pkcs7_certificates),
    ("a private key", lambda data: serialization.load_der_private_key(data, None)),
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
            return _or_none(lambda: tuple(pkcs7.load_pem_pkcs7_certificates(data)))
        if is_pem(data):
            return ()
        if _version_of_pkcs12(data):
            try:
                _, leaf, others = pkcs12.load_key_and_certificates(data, password)
            except Exception:  # noqa: BLE001 -- in whatever way
                return None
            return (() if leaf is None else (leaf,)) + tuple(others)
        if _PKCS7_OID in data[:32]:
            return _or_none(lambda: tuple(pkcs7.load_der_pkcs7_certificates(data)))
        return _or_none(lambda: (x509.load_der_x509_certificate(data),))


def key_in_other_formats(data: bytes, password: bytes | None) -> tuple[object | None, bool]:
    """The private key of a DER encoding or of a PKCS#12 bundle, or None; and whether it is a bundle that stays shut.

    Args:
        data: the file.
        password: of the bundle or key.
    """
    if is_pem(data):
        return None, False
    with quietly():
        if _version_of_pkcs12(data):
            try:
                return pkcs12.load_key_and_certificates(data, password)[0], False
            except Exception:  # noqa: BLE001 -- in whatever way
                return None, True
        try:
            return serialization.load_der_private_key(data, password), False
        except Exception:  # noqa: BLE001 -- it is something else
            return None, False


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


def _or_none(read: object) -> tuple[x509.Certificate, ...]:
    try:
        return read()  # type: ignore[operator,no-any-return]
    except Exception:  # noqa: BLE001 -- whatever a decoder raises: it is none
        return ()


def _version_of_pkcs12(data: bytes) -> bool:
    """Whether it begins as a PKCS#12 bundle does (RFC 7292 section 4): a sequence with version 3 and a content."""
    try:
        tag, start, end = element(data, 0)
        first, second, *_ = elements(data, start, end)
    except ValueError:
        return False
    return tag == SEQUENCE and data[first[1] : first[3]] == b"\x02\x01\x03" and second[0] == SEQUENCE
