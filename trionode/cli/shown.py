"""Output: certificates as an operator reads them, tables, findings; and the same as plain values for `--json`.

Colours are for terminals. Into a pipe, or with NO_COLOR set, goes plain text without padding.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click
import trio
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trionode._identity.certificate import (
    extension,
    fingerprint,
    is_ca,
    is_self_issued,
    key_kind,
    not_after,
    not_before,
    serial_number,
)
from trionode._identity.describe import (
    describe_duration,
    describe_issuer,
    describe_names,
    describe_serial,
    describe_subject,
)
from trionode._identity.names import SubjectNames, host_address
from trionode._managers.findings import Finding, Severity
from trionode._util.text import printable

from .words import in_command_words, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HELD: Final = "✓"
FAILED: Final = "✗"
NOTED: Final = "!"
SKIPPED: Final = "·"

#: Bytes that are written at a time: a pipe holds as many.
_CHUNK: Final = 64 * 1024
#: Columns where there is no terminal: wide enough for a check of the demo and its evidence in one line.
_PIPE_WIDTH: Final = 130

#: The least number of columns: in a narrower terminal, no room would be left beside the labels.
LEAST_WIDTH: Final = 40

#: A certificate is due for renewal when less than this part of its lifetime is left; as in the findings.
_SOON: Final = 10

_PURPOSES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}


def console() -> Console:
    """A console for stdout: the terminal as it is; a pipe is wide and has no colours."""
    # NO_COLOR (no-color.org): rich would still write other escapes, for bold and dim.
    found = Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = _PIPE_WIDTH
    found.width = max(found.width, LEAST_WIDTH)
    return found


def put(out: Console, what: RenderableType) -> None:
    """Show something."""
    # Whether there are colours was decided by rich, which knows NO_COLOR and FORCE_COLOR.
    click.echo(plain(out, what), color=out.is_terminal)


def plain(out: Console, *what: RenderableType) -> str:
    """What rich makes of something, without the blanks that it pads lines with."""
    with out.capture() as capture:
        for each in what:
            out.print(each)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def put_json(document: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2))


async def write_stdout(data: bytes) -> None:
    """Write to stdout in a thread: a reader that is slow, or stopped, must not hold up anything else.

    Cancelled, it leaves the thread behind, which ends with the program. So it writes the descriptor, not `sys.stdout`:
    the thread would hold the lock of that, without which the interpreter aborts as it ends.

    Args:
        data: what.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[await trio.to_thread.run_sync(os.write, 1, view[:_CHUNK], abandon_on_cancel=True) :]


def grid(rows: Iterable[tuple[str, str | Text]], *, indent: int = 0) -> Table:
    """Labels, and a text beside each; labels that would leave no room for it are folded."""
    table = Table.grid(padding=(0, 2, 0, indent))
    rows = list(rows)
    longest = max((cell_len(label) for label, _ in rows), default=0)
    table.add_column(style="dim", no_wrap=longest <= LEAST_WIDTH * 3 // 4, overflow="fold")
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table


def put_notes(notes: Iterable[str]) -> None:
    """What there is to know beside the result, a line each."""
    for note in notes:
        put(console(), Text(f"note: {note}", style="yellow"))


# Findings -----------------------------------------------------------------------------------------------------------


def put_findings(out: Console, findings: Sequence[Finding], *, shown: str = "") -> None:
    """Each finding with its remedy.

    Args:
        out: where to.
        findings: the findings.
        shown: the details of a certificate that were shown already.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style, mark = ("bold red", FAILED) if finding.severity is Severity.ERROR else ("yellow", NOTED)
        message, details = one_line(in_command_words(finding.message))
        table.add_row(Text(f"{mark} {finding.code}", style=style), Text(message))
        for each in details:
            if not each.endswith(f": {shown}"):
                table.add_row("", Text(each, style="dim"))
        table.add_row("", Text(f"→ {in_command_words(finding.remedy)}", style="green"))
    if findings:
        put(out, table)


def finding_values(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings, for JSON."""
    return [
        {
            "code": each.code,
            "severity": each.severity,
            "message": in_command_words(each.message),
            "remedy": in_command_words(each.remedy),
        }
        for each in findings
    ]


# Certificates -------------------------------------------------------------------------------------------------------


def certificate_state(certificate: x509.Certificate, now: datetime) -> str:
    """`valid`, `expires_soon` (a tenth of its lifetime is left), `expired` or `not_yet_valid`."""
    return validity_state(not_before(certificate), not_after(certificate), now)


def validity_state(start: datetime, end: datetime, now: datetime) -> str:
    """As `certificate_state`, for two dates."""
    if now > end:
        return "expired"
    if now < start:
        return "not_yet_valid"
    return "expires_soon" if end - now < (end - start) / _SOON else "valid"


def time_left(start: datetime, end: datetime, now: datetime) -> Text:
    """The time that something is still valid, in a colour that says how urgent that is."""
    state = validity_state(start, end, now)
    match state:
        case "expired":
            return Text(f"EXPIRED {describe_duration(now - end)} ago", style="bold red")
        case "not_yet_valid":
            return Text(f"NOT YET VALID, begins in {describe_duration(start - now)}", style="bold red")
        case _:
            return Text(f"{describe_duration(end - now)} left", style="yellow" if state == "expires_soon" else "green")


def certificate_grid(certificate: x509.Certificate, now: datetime, revoked: str | None = None) -> Table:
    """A certificate as an operator reads it.

    Args:
        certificate: the certificate.
        now: the time.
        revoked: since when and why it is revoked; None if it is not, or that is not known.
    """
    start, end = not_before(certificate), not_after(certificate)
    dates = Text(f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, ")
    rows: list[tuple[str, str | Text]] = [
        ("subject", describe_subject(certificate)),
        ("names", describe_names(certificate)),
    ]
    if not is_ca(certificate):
        rows.append(("speaks for", speaks_for(certificate)))
    rows += [
        ("valid", dates + time_left(start, end, now)),
        *([] if revoked is None else [("revoked", Text(f"REVOKED on {revoked}", style="bold red"))]),
        ("purposes", purposes_shown(certificate)),
        ("issuer", "itself" if is_self_issued(certificate) else describe_issuer(certificate)),
        ("key", f"{key_kind(certificate)}, signed with {signature_kind(certificate)}"),
        ("serial", describe_serial(serial_number(certificate))),
        ("SHA-256", fingerprint(certificate)),
    ]
    return grid(rows)


def certificate_values(certificate: x509.Certificate, now: datetime) -> dict[str, object]:
    """A certificate, for JSON."""
    names = SubjectNames.of(certificate)
    return {
        "subject": describe_subject(certificate),
        "issuer": describe_issuer(certificate),
        "serial": describe_serial(serial_number(certificate)),
        "sha256": fingerprint(certificate),
        "not_before": not_before(certificate).isoformat(),
        "not_after": not_after(certificate).isoformat(),
        "seconds_left": round((not_after(certificate) - now) / timedelta(seconds=1)),
        "state": certificate_state(certificate, now),
        "ca": is_ca(certificate),
        "self_issued": is_self_issued(certificate),
        "hosts": hosts_of(names),
        "nodes": sorted(str(node) for node in names.nodes),
        "restricted_to_nodes": names.restricted,
        "unusable_names": list(names.unusable),
        "purposes": purposes(certificate),
        "key": key_kind(certificate),
    }


def early_end(certificate: x509.Certificate, lifetime: timedelta, why: str) -> list[str]:
    """What to note of a certificate that ends before the lifetime that was asked for."""
    end = not_after(certificate)
    try:
        wanted = now_utc() + lifetime
    except OverflowError:
        wanted = None
    if wanted is not None and wanted - end < timedelta(minutes=1):
        return []
    return [f"it ends on {end:%Y-%m-%d %H:%M} UTC, earlier than was asked for: {why}"]


def now_utc() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def hosts_of(names: SubjectNames) -> list[str]:
    """The hosts that a certificate covers."""
    return [pattern.pattern.decode() for pattern in names.dns] + [str(each.pattern) for each in names.addresses]


def speaks_for(certificate: x509.Certificate) -> str:
    """Which node names a certificate covers."""
    names = SubjectNames.of(certificate)
    hosts = hosts_of(names)
    if not hosts:
        return "no node: it names no host"
    if names.restricted:
        covered = [str(node) for node in sorted(names.nodes) if names.cover_node(node)]
        return f"the node{'s' if len(covered) > 1 else ''} {', '.join(covered)}" if covered else "no node"
    shown = (f"[{host}]" if getattr(host_address(host), "version", 4) == 6 else host for host in hosts)
    return "every node on these hosts: " + ", ".join(f"*@{host}" for host in shown)


def purposes(certificate: x509.Certificate) -> list[str] | None:
    """The extended key usages by their short names; None where the certificate does not restrict them."""
    try:
        usage = extension(certificate, x509.ExtendedKeyUsage)
    except ValueError:
        return None
    return None if usage is None else [_PURPOSES.get(each, each.dotted_string) for each in usage]


def purposes_shown(certificate: x509.Certificate) -> str:
    """The extended key usages in a sentence, with those that a node needs and that are missing."""
    found = purposes(certificate)
    if is_ca(certificate):
        return "signs certificates (CA)" + ("" if found is None else f"; {', '.join(found)}")
    if found is None:
        return "any (no extended key usage)"
    missing = [each for each in ("serverAuth", "clientAuth") if each not in found]
    lacking = f" (not {', not '.join(missing)}: a node needs both)" if missing else " (a node needs both)"
    return ", ".join(found) + lacking


def signature_kind(certificate: x509.Certificate) -> str:
    """How it is signed."""
    name: str = getattr(certificate.signature_algorithm_oid, "_name", "") or "?"
    return printable(name, 40)
