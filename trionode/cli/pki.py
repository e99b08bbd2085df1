"""`trionode pki`: a CA for development, and certificates for nodes, in one directory.

The directory holds `ca.pem`, `ca.key` and `ca.crl`, and `NAME.pem` and `NAME-key.pem` of each node. No file is replaced
without `--force`. Files are replaced atomically, the key first, as `trionode.pki` does it, so that nodes that follow
them rotate.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from cryptography import x509
from rich.table import Table
from rich.text import Text

from trionode import (
    CertificateError,
    CertificateReason,
    CRLSet,
    NodeName,
)
from trionode._credentials.crl import next_update
from trionode._credentials.pem import parse_certificates, read_file
from trionode._identity.certificate import fingerprint, is_ca, is_self_issued, not_after, not_before
from trionode._identity.describe import describe, describe_subject
from trionode.pki import (
    CertificateAuthority,
    KeyType,
    write_crl_set,
    write_key_pair,
)

from .exits import ExitStatus, Trouble
from .given import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    FILE,
    cert_file,
    complete_node,
    duration,
    json_option,
    key_file,
    node_or_host,
    pki_option,
    pki_words,
    read_password,
    unreadable,
)
from .shown import (
    certificate_grid,
    certificate_values,
    console,
    grid,
    now_utc,
    put,
    put_json,
    speaks_for,
    time_left,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from trionode._credentials.pem import Secret

_REASONS: Final = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}


@click.group(short_help="A CA for development, and certificates for nodes, in a directory.")
def pki() -> None:
    """A CA for development, and certificates for nodes, in a directory.

    Not for production: the CA's key lies in a file.

    \b
    Examples:
      trionode pki init                             a CA, in ./pki
      trionode pki issue alpha@localhost            a certificate and its key
      trionode pki issue --force alpha@localhost    a new one: rotate
      trionode pki show alpha@localhost             show a certificate
      trionode pki revoke alpha@localhost           put it on pki/ca.crl
    """


@pki.command(short_help="Make a CA.")
@pki_option
@click.option("--common-name", default="trionode development CA", show_default=True, help="Of the CA, for people.")
@click.option("--lifetime", callback=duration, default="3650d", show_default=True, help="90d, 12h, 30m …")
@click.option("--password-file", type=FILE, help="Encrypt ca.key with the first line of this file.")
@click.option("--force", is_flag=True, help="Replace the CA that is there: peers no longer accept what it issued.")
@json_option
def init(
    directory: Path, common_name: str, lifetime: timedelta, password_file: Path | None, *, force: bool, as_json: bool
) -> int:
    """Make a CA: ca.pem (what nodes trust), ca.key (signs; mode 0600) and ca.crl (the revocation list, empty).

    The directory is made with mode 0700 if it is missing.
    """
    password = read_password(password_file)
    for name in () if force else (CA_FILE, CA_KEY_FILE, CRL_FILE):
        _refuse_to_overwrite(directory / name, "name another --pki directory")
    try:
        authority = CertificateAuthority.create(common_name=common_name, lifetime=lifetime)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    _written(
        f"write the CA to {directory}",
        lambda: authority.save(directory, password=None if password is None else password.data),
        lambda: write_crl_set(authority.revocation_list(lifetime=_rest(authority)), directory / CRL_FILE),
    )
    if as_json:
        put_json({"ca": str(directory / CA_FILE), **certificate_values(authority.certificate, now_utc())})
    else:
        out = console()
        put(
            out,
            grid(
                [
                    (str(directory / CA_FILE), describe_subject(authority.certificate)),
                    (str(directory / CA_KEY_FILE), "signs certificates: for development only, keep it private"),
                    (str(directory / CRL_FILE), "no certificate is revoked"),
                ]
            ),
        )
        put(out, Text(f"next: trionode pki issue{pki_words(directory)} alpha@localhost", style="dim"))
    return ExitStatus.OK


@pki.command(short_help="Issue a certificate for a node.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_node)
@pki_option
@click.option("--lifetime", callback=duration, default="90d", show_default=True, help="90d, 12h, 30m …")
@click.option("--key-type", type=click.Choice([each.value for each in KeyType]), default="p256", show_default=True)
@click.option("--out", metavar="STEM", help="File name before .pem and -key.pem. Default: the first NAME.")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@click.option("--key-password-file", type=FILE, help="Encrypt the new key with the first line of this file.")
@click.option("--force", is_flag=True, help="Replace existing files: rotate.")
@json_option
def issue(
    names: tuple[str, ...],
    directory: Path,
    lifetime: timedelta,
    key_type: str,
    out: str | None,
    password_file: Path | None,
    key_password_file: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Issue a certificate for NAMEs: node names (alpha@host), hosts or addresses. It is good for server and client.

    NAME.pem (the certificate) and NAME-key.pem (mode 0600) are written to the --pki directory. With --force, existing
    files are replaced atomically, key first: a running node that follows them rotates.
    """
    wanted = [node_or_host(name) for name in names]
    stem = str(wanted[0]) if out is None else out
    if "/" in stem or stem in ("", ".", ".."):
        msg = f"--out is a file name without a directory, not {stem!r}; --pki says where"
        raise click.UsageError(msg)
    cert, key = cert_file(directory, stem), key_file(directory, stem)
    if cert.name == CA_FILE or stem.endswith("-key"):
        msg = f"{cert} is the name of the CA's certificate or of a key file; choose another with --out"
        raise click.UsageError(msg)
    for file in () if force else (cert, key):
        _refuse_to_overwrite(file, "name another with --out")
    authority, key_password = _load_ca(directory, password_file), read_password(key_password_file)
    try:
        pair = authority.issue(*wanted, lifetime=lifetime, key_type=key_type)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    password = None if key_password is None else key_password.data
    _written(f"write {cert}", lambda: write_key_pair(pair, cert, key, password=password))
    if as_json:
        put_json({"cert": str(cert), "key": str(key), **certificate_values(pair.certificate, now_utc())})
    else:
        start, end = not_before(pair.certificate), not_after(pair.certificate)
        left = time_left(start, end, now_utc())
        shown = Text(f"{speaks_for(pair.certificate)}, ") + left
        put(console(), grid([(str(cert), shown), (str(key), "its key; keep it private")]))
    return ExitStatus.OK


@pki.command(short_help="Show certificates and revocation lists.")
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...", shell_complete=complete_node)
@pki_option
@json_option
def show(names: tuple[str, ...], directory: Path, *, as_json: bool) -> int:
    """Show certificates: names, the nodes that they speak for, dates, purposes, issuer, fingerprint.

    NAME is a node of the --pki directory, FILE any file with certificates or a revocation list. Without arguments, the
    directory is listed.
    """
    now = now_utc()
    if not names:
        return _list_directory(directory, now, as_json=as_json)
    documents: list[dict[str, object]] = []
    out = console()
    for name in names:
        file = _file_of(name, directory)
        data = read_file(file)
        if b"X509 CRL-----" in data.data:
            crls = CRLSet.from_bytes(data.data)
            documents += [{"file": str(file), **_crl_values(crl, now)} for crl in crls]
            blocks = [(f"revocation list in {file}", _crl_grid(crl, now)) for crl in crls]
        else:
            chain = parse_certificates(data, str(file))
            documents += [{"file": str(file), **certificate_values(each, now)} for each in chain]
            blocks = [
                (f"certificate {number} of {len(chain)} in {file}: {_role(each, number)}", certificate_grid(each, now))
                for number, each in enumerate(chain, start=1)
            ]
        for title, block in () if as_json else blocks:
            put(out, Text(title, style="bold"))
            put(out, block)
    if as_json:
        put_json(documents)
    return ExitStatus.OK


@pki.command(short_help="Put certificates on the CA's revocation list.")
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...", shell_complete=complete_node)
@pki_option
@click.option(
    "--reason",
    type=click.Choice(list(_REASONS)),
    metavar="REASON",
    default="unspecified",
    show_default=True,
    help=f"One of: {', '.join(_REASONS)}.",
)
@click.option("--lifetime", callback=duration, help="Until the next list is due: 30d … Default: the CA's.")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@json_option
def revoke(
    names: tuple[str, ...],
    directory: Path,
    reason: str,
    lifetime: timedelta | None,
    password_file: Path | None,
    *,
    as_json: bool,
) -> int:
    """Put certificates on ca.crl; without arguments, sign the list again.

    Nodes that follow the list (`trionode serve` does) refuse these certificates from then on, and end connections that
    were made with them.
    """
    authority = _load_ca(directory, password_file)
    if authority.intermediate is not None:
        msg = (
            f"the CA in {directory} issues through an intermediate. Nodes would also need a list by its root, whose "
            "key was not kept; retire the CA instead, or make one without an intermediate: trionode pki init"
        )
        raise Trouble(msg, ExitStatus.FILES)
    certificates = [_leaf(_file_of(name, directory)) for name in names]
    for certificate in certificates:
        if certificate.issuer != authority.certificate.subject:
            msg = f"the CA in {directory} did not issue it, so it cannot revoke it: {describe(certificate)}"
            raise Trouble(msg, ExitStatus.FILES)
    file = directory / CRL_FILE
    crls = authority.revocation_list(
        *certificates,
        reason=_REASONS[reason],
        previous=CRLSet.load(file) if file.exists() else None,
        lifetime=lifetime or _rest(authority),
    )
    _written(f"write {file}", lambda: write_crl_set(crls, file))
    crl = crls.lists[0]
    if as_json:
        put_json({"file": str(file), **_crl_values(crl, now_utc())})
    else:
        for certificate in certificates:
            put(console(), f"revoked: {describe(certificate)}")
        put(console(), f"{file}: {len(crl)} revoked, next update {next_update(crl):%Y-%m-%d %H:%M} UTC")
    return ExitStatus.OK


# Parts --------------------------------------------------------------------------------------------------------------


def _refuse_to_overwrite(file: Path, instead: str) -> None:
    if os.path.lexists(file):
        msg = f"{file} is there already, and is not overwritten without --force; or {instead}"
        raise Trouble(msg, ExitStatus.FILES)


def _load_ca(directory: Path, password_file: Path | None) -> CertificateAuthority:
    if not (directory / CA_FILE).exists():
        msg = f"there is no CA in {directory}; make one with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    password: Secret | None = read_password(password_file)
    return CertificateAuthority.load(directory, password=None if password is None else password.data)


def _written(what: str, *steps: Callable[[], None]) -> None:
    try:
        for step in steps:
            step()
    except OSError as exc:
        raise unreadable(exc, what) from None


def _rest(authority: CertificateAuthority) -> timedelta:
    """The rest of the CA's lifetime: a development CA need not be attended to before that."""
    return max(not_after(authority.certificate) - now_utc(), timedelta(days=1))


def _file_of(name: str, directory: Path) -> Path:
    """An existing file, or the certificate of a node in the directory."""
    file = Path(name)
    if not file.is_file() and "/" not in name:
        try:
            stem = str(NodeName.parse(name)) if "@" in name else name
        except ValueError:
            stem = name
        candidate = cert_file(directory, stem)
        for each in (candidate, directory / name):
            if each.is_file():
                return each
        if not file.exists():
            msg = f"there is neither a file {name} nor {candidate}; `trionode pki show` lists what there is"
            raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    return file


def _leaf(file: Path) -> x509.Certificate:
    return parse_certificates(read_file(file), str(file))[0]


def _role(certificate: x509.Certificate, number: int) -> str:
    if is_ca(certificate):
        return "a root CA" if is_self_issued(certificate) else "an intermediate CA"
    return "a leaf" + (", signed by itself" if is_self_issued(certificate) else "") if number == 1 else "no CA"


def _crl_grid(crl: x509.CertificateRevocationList, now: datetime) -> Table:
    start, end = crl.last_update_utc, next_update(crl)
    rows: list[tuple[str, str | Text]] = [
        ("issuer", crl.issuer.rfc4514_string()),
        ("valid", Text(f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, ") + time_left(start, end, now)),
        ("revoked", f"{len(crl)}"),
    ]
    rows += [("", f"serial {entry.serial_number:x} on {entry.revocation_date_utc:%Y-%m-%d %H:%M} UTC") for entry in crl]
    return grid(rows)


def _crl_values(crl: x509.CertificateRevocationList, now: datetime) -> dict[str, object]:
    return {
        "issuer": crl.issuer.rfc4514_string(),
        "this_update": crl.last_update_utc.isoformat(),
        "next_update": next_update(crl).isoformat(),
        "seconds_left": round((next_update(crl) - now) / timedelta(seconds=1)),
        "revoked": [f"{entry.serial_number:x}" for entry in crl],
    }


def _list_directory(directory: Path, now: datetime, *, as_json: bool) -> int:
    if not directory.is_dir():
        msg = f"there is no directory {directory}; make a CA in it with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    files = [file for file in sorted(directory.glob("*.pem")) if not file.name.endswith("-key.pem")]
    found = [(file, _leaf(file)) for file in files]
    crl_file = directory / CRL_FILE
    revoked = {entry.serial_number for crl in (CRLSet.load(crl_file) if crl_file.exists() else ()) for entry in crl}
    if as_json:
        put_json(
            [
                {
                    "file": str(file),
                    **certificate_values(each, now),
                    "revoked": each.serial_number in revoked and not is_ca(each),
                }
                for file, each in found
            ]
        )
        return ExitStatus.OK
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("file", "speaks for", "left", "SHA-256"):
        table.add_column(heading, overflow="fold")
    for file, each in found:
        left = time_left(not_before(each), not_after(each), now)
        if each.serial_number in revoked and not is_ca(each):
            left = Text("REVOKED", style="bold red")
        table.add_row(file.name, _subject_shown(each), left, f"{fingerprint(each)[:16]}…")
    put(console(), table)
    return ExitStatus.OK


def _subject_shown(certificate: x509.Certificate) -> str:
    return f"CA: {describe_subject(certificate)}" if is_ca(certificate) else speaks_for(certificate)
