"""`trionode pki show`: what is in files, and in the directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from trionode._credentials.contents import contents
from trionode._credentials.pem import MAX_CRL_BYTES, parse_certificates, read_file
from trionode._identity.certificate import fingerprint, is_ca, not_after, not_before
from trionode._identity.describe import describe_subject

from .contents import shown_parts
from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble
from .given import FILE, complete_node, json_option, pki_option, pki_words, read_password
from .paths import is_directory
from .pki_files import file_of
from .revoked import certificates_in, lists_in, names_by_serial, revocation_of
from .shown import certificate_values, console, now_utc, put, put_json, speaks_for, time_left

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509


@click.command(short_help="Show what is in certificate, key and revocation list files.")
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...", shell_complete=complete_node)
@pki_option
@click.option("--password-file", type=FILE, help="First line: the password of a bundle or key.")
@json_option
@needs_stdout
def show(names: tuple[str, ...], directory: Path, password_file: Path | None, *, as_json: bool) -> int:
    """Show certificates: names, the nodes that they speak for, dates, purposes, issuer, fingerprint.

    NAME is a node of the --pki directory, FILE any file, PEM or DER: certificates, revocation lists, requests, PKCS#7
    and PKCS#12 bundles are shown whole, of keys their kind and size. Without arguments, the directory is listed. Its
    ca.crl says which certificates are revoked.
    """
    now = now_utc()
    if not names:
        return _list_directory(directory, now, as_json=as_json)
    lists, known, password = lists_in(directory), names_by_serial(directory), read_password(password_file)
    documents: list[dict[str, object]] = []
    out, status = console(), ExitStatus.OK
    for name in names:
        file = file_of(name, directory)
        data = read_file(file, limit=MAX_CRL_BYTES, kind="certificate, key or CRL file")
        parts = contents(data, password)
        if all(each.value is None for each in parts):
            parse_certificates(data, str(file), password)  # raises: it says what is there instead
        for shown in shown_parts(str(file), parts, lists=lists, names=known, now=now):
            documents.append(shown.values)
            if not as_json:
                put(out, Text(shown.title, style="bold"))
                put(out, shown.block)
        if not all(each.is_readable for each in parts):
            status = ExitStatus.FILES
    if as_json:
        put_json(documents)
    return status


def _list_directory(directory: Path, now: datetime, *, as_json: bool) -> int:
    if not is_directory(directory):
        msg = f"there is no directory {directory}; make a CA in it with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    found, lists = certificates_in(directory), lists_in(directory)
    if as_json:
        put_json(
            [
                {
                    "file": str(file),
                    **certificate_values(each, now),
                    "revoked": revocation_of(each, lists) is not None,
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
        if revocation_of(each, lists) is not None:
            left = Text("REVOKED", style="bold red")
        table.add_row(file.name, _subject_shown(each), left, f"{fingerprint(each)[:16]}…")
    put(console(), table)
    return ExitStatus.OK


def _subject_shown(certificate: x509.Certificate) -> str:
    return f"CA: {describe_subject(certificate)}" if is_ca(certificate) else speaks_for(certificate)
