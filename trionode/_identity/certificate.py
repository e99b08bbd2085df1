"""What a certificate says of itself: its fingerprint, names, purposes, and whether it is a CA's."""

from __future__ import annotations

from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

E = TypeVar("E", bound=x509.ExtensionType)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER encoding, as lower-case hex."""
    return certificate.fingerprint(SHA256()).hex()


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """An extension's value, or None where the certificate does not have it.

    Args:
        certificate: whose.
        kind: the class of its value.

    Raises:
        ValueError: the extensions cannot be read.
    """
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise ValueError(str(exc)) from exc


def general_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The entries of the subject alternative name extension; none if it is absent or cannot be read."""
    try:
        return list(extension(certificate, x509.SubjectAlternativeName) or ())
    except ValueError:
        return []


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether its basic constraints say that it is a CA's; False if they are absent or cannot be read."""
    try:
        constraints = extension(certificate, x509.BasicConstraints)
    except ValueError:
        return False
    return constraints is not None and constraints.ca


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether it names itself as its issuer, as a root does."""
    return certificate.issuer == certificate.subject


def allows(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """Whether the extended key usage names a purpose, or is absent (RFC 5280 section 4.2.1.12).

    `anyExtendedKeyUsage` alone does not count: OpenSSL peers refuse it. One that cannot be read allows nothing.
    """
    try:
        usage = extension(certificate, x509.ExtendedKeyUsage)
    except ValueError:
        return False
    return usage is None or purpose in usage
