"""Revocation lists as an operator reads them: which certificates, since when, why; and of a certificate, whether."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.text import Text

from trionode._credentials.crl import CRLSet
from trionode._credentials.pem import parse_certificates, read_file
from trionode._errors import CertificateError
from trionode._identity.certificate import is_ca, issuer_der, list_dates, list_entries, revocation_reason, serial_number
from trionode._identity.describe import describe_issuer, describe_serial

from .given import CRL_FILE
from .paths import exists
from .shown import grid, time_left

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509
    from rich.table import Table


def certificates_in(directory: Path) -> list[tuple[Path, x509.Certificate]]:
    """The first certificate of each file of a `pki` directory.

    Raises:
        CertificateError: one cannot be read.
    """
    files = [file for file in sorted(directory.glob("*.pem")) if not file.name.endswith("-key.pem")]
    return [(file, parse_certificates(read_file(file), str(file))[0]) for file in files]


def lists_in(directory: Path) -> tuple[x509.CertificateRevocationList, ...]:
    """The revocation lists of a `pki` directory; none if it has none.

    Raises:
        CertificateError: they cannot be read.
    """
    file = directory / CRL_FILE
    return CRLSet.load(file).lists if exists(file) else ()


def revocation_of(
    certificate: x509.Certificate, lists: Iterable[x509.CertificateRevocationList]
) -> x509.RevokedCertificate | None:
    """A certificate's entry on a list by its issuer, or None."""
    for crl in lists:
        if issuer_der(crl) == issuer_der(certificate) and not is_ca(certificate):
            entry = crl.get_revoked_certificate_by_serial_number(serial_number(certificate))
            if entry is not None:
                return entry
    return None


def reason_of(entry: x509.RevokedCertificate) -> str:
    """Why it was revoked, in the words of `pki revoke --reason`."""
    reason = revocation_reason(entry)
    if reason is None:
        return "unspecified"
    return "".join(f"-{each.lower()}" if each.isupper() else each for each in reason.value)


def revocation_shown(entry: x509.RevokedCertificate) -> str:
    """Since when, and why."""
    return f"{entry.revocation_date_utc:%Y-%m-%d %H:%M} UTC, {reason_of(entry)}"


def names_by_serial(directory: Path) -> dict[int, str]:
    """The names of the certificates that lie in a directory; those that cannot be read are left out."""
    found: dict[int, str] = {}
    for file in sorted(directory.glob("*.pem")):
        try:
            chain = () if file.name.endswith("-key.pem") else parse_certificates(read_file(file), str(file))
        except CertificateError:
            continue
        found.update({serial_number(each): file.stem for each in chain[:1]})
    return found


def _refusals(crl: x509.CertificateRevocationList) -> list[str]:
    """Why a list cannot be used by a node, if it cannot."""
    try:
        CRLSet([crl])
    except CertificateError as exc:
        return [str(exc)]
    return []


def crl_grid(crl: x509.CertificateRevocationList, names: Mapping[int, str], now: datetime) -> Table:
    """A list as an operator reads it.

    Args:
        crl: the list.
        names: of the certificates that are known, by serial number.
        now: the time.
    """
    start, end = list_dates(crl)
    entries = list_entries(crl)
    rows: list[tuple[str, str | Text]] = [("issuer", describe_issuer(crl))]
    if end is None:
        rows.append(("valid", Text(f"{start:%Y-%m-%d %H:%M} UTC, without a nextUpdate: it cannot be used", "bold red")))
    else:
        valid = Text(f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, ")
        rows.append(("valid", valid + time_left(start, end, now)))
    rows += [*(("note", each) for each in _refusals(crl)), ("revoked", f"{len(entries)}")]
    for entry in entries:
        name = names.get(entry.serial_number)
        which = f"serial {describe_serial(entry.serial_number)}" + ("" if name is None else f" ({name})")
        rows.append(("", f"{which} on {revocation_shown(entry)}"))
    return grid(rows)


def crl_values(crl: x509.CertificateRevocationList, names: Mapping[int, str], now: datetime) -> dict[str, object]:
    """A list, for JSON; arguments as of `crl_grid`."""
    start, end = list_dates(crl)
    entries = list_entries(crl)
    return {
        "issuer": describe_issuer(crl),
        "this_update": start.isoformat(),
        "next_update": None if end is None else end.isoformat(),
        "seconds_left": None if end is None else round((end - now) / timedelta(seconds=1)),
        "usable": not _refusals(crl),
        "revoked": [describe_serial(entry.serial_number) for entry in entries],
        "entries": [
            {
                "serial": describe_serial(entry.serial_number),
                "name": names.get(entry.serial_number),
                "date": entry.revocation_date_utc.isoformat(),
                "reason": reason_of(entry),
            }
            for entry in entries
        ],
    }
