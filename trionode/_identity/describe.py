"""A certificate in words, for messages and logs: subject, names, issuer, dates, fingerprint."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509

from trionode._util.text import printable

from .certificate import fingerprint, general_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def describe_names(certificate: x509.Certificate) -> str:
    """The SANs as a person writes them (`DNS:host, IP:::1, URI:trionode://a@b`), or `no SANs`."""
    shown: list[str] = []
    for entry in general_names(certificate):
        match entry:
            case x509.DNSName():
                shown.append(f"DNS:{entry.value}")
            case x509.IPAddress():
                shown.append(f"IP:{entry.value}")
            case x509.UniformResourceIdentifier():
                shown.append(f"URI:{entry.value}")
            case _:
                shown.append(f"{type(entry).__name__}:{entry.value}")
    return printable(", ".join(shown), 400) if shown else "no SANs"


def describe(certificate: x509.Certificate) -> str:
    """A certificate in one line for messages: subject, SANs, issuer, dates, fingerprint."""
    return (
        f"{describe_subject(certificate)} ({describe_names(certificate)}; "
        f"issuer {describe_issuer(certificate)}; valid {describe_dates(certificate)}; "
        f"SHA-256 {fingerprint(certificate)[:16]}…)"
    )


def describe_dates(certificate: x509.Certificate) -> str:
    """The validity period as `from … to …`, UTC."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f"from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"


def describe_duration(span: timedelta) -> str:
    """A time span as a person says it, in its largest unit that gives a number from 2 up: `3 days`, `90 minutes`."""
    seconds = abs(span) / timedelta(seconds=1)
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def describe_subjects(certificates: Iterable[x509.Certificate], limit: int = 4) -> str:
    """The subjects of a CA pool, the first few by name."""
    subjects = [describe_subject(certificate) for certificate in certificates]
    more = f" and {len(subjects) - limit} more" if len(subjects) > limit else ""
    return ", ".join(subjects[:limit]) + more


def describe_subject(certificate: x509.Certificate) -> str:
    """The subject's distinguished name (RFC 4514), cut and escaped."""
    return _name_of(lambda: certificate.subject, "subject")


def describe_issuer(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """The issuer's distinguished name (RFC 4514), cut and escaped."""
    return _name_of(lambda: signed.issuer, "issuer")


def _name_of(read: Callable[[], x509.Name], what: str) -> str:
    try:
        return printable(read().rfc4514_string(), 120) or f"(empty {what})"
    except (ValueError, TypeError):  # a string that is not of its type; a BIT STRING
        return f"(unreadable {what})"
