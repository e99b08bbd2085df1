"""A certificate in words, for messages and logs: subject, names, issuer, dates, fingerprint."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from trionode._util.text import printable

from .certificate import UnreadableError, fingerprint, first_alt_names, issuer, not_after, not_before, subject

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography import x509


#: SANs are listed up to so many characters.
_NAMES_SHOWN: Final = 400


def describe_names(certificate: x509.Certificate) -> str:
    """The SANs in the usual notation (`DNS:host, IP:::1, URI:trionode://a@b`), or `no SANs`."""
    shown: list[str] = []
    length = 0
    try:
        for entry in first_alt_names(certificate):
            shown.append(entry.shown)
            length += len(entry.shown) + 2
            if length > _NAMES_SHOWN:  # a certificate may have thousands
                break
    except UnreadableError as exc:
        return printable(f"({exc})", _NAMES_SHOWN)
    return printable(", ".join(shown), _NAMES_SHOWN) if shown else "no SANs"


def describe(certificate: x509.Certificate) -> str:
    """A certificate in one line for messages: subject, SANs, issuer, dates, fingerprint."""
    return (
        f"{describe_subject(certificate)} ({describe_names(certificate)}; "
        f"issuer {describe_issuer(certificate)}; valid {describe_dates(certificate)}; "
        f"SHA-256 {fingerprint(certificate)[:16]}…)"
    )


def describe_dates(certificate: x509.Certificate) -> str:
    """The validity period as `from … to …`, UTC."""
    start, end = not_before(certificate), not_after(certificate)
    first = "(an unreadable date)" if start == datetime.max.replace(tzinfo=UTC) else f"{start:%Y-%m-%d %H:%M:%S}"
    last = "(an unreadable date)" if end == datetime.min.replace(tzinfo=UTC) else f"{end:%Y-%m-%d %H:%M:%S}"
    return f"from {first} to {last} UTC"


def describe_time(moment: datetime) -> str:
    """A moment to the second, UTC; naive ones are taken for it."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def describe_duration(span: timedelta) -> str:
    """A time span in the largest unit that gives a number from 2 up: `3 days`, `90 minutes`."""
    seconds = abs(span) / timedelta(seconds=1)
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def describe_serial(serial: int) -> str:
    """A serial number as OpenSSL shows it: whole bytes in hexadecimal, leading zeros included."""
    digits = f"{serial:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def describe_subjects(certificates: Iterable[x509.Certificate], limit: int = 4) -> str:
    """The subjects of a CA pool, the first few by name."""
    subjects = [describe_subject(certificate) for certificate in certificates]
    more = f" and {len(subjects) - limit} more" if len(subjects) > limit else ""
    return ", ".join(subjects[:limit]) + more


def describe_subject(certificate: x509.Certificate) -> str:
    """The subject's distinguished name (RFC 4514), cut and escaped."""
    return subject(certificate)


def describe_issuer(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """The issuer's distinguished name (RFC 4514), cut and escaped."""
    return issuer(signed)
