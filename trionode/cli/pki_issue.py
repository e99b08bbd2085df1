"""`trionode pki issue` and `trionode pki token`: certificates for nodes, here and now or when they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.text import Text

from trionode._identity.certificate import not_after, not_before
from trionode.pki import KeyType, write_key_pair
from trionode.pki._certificates import MAX_COMMON_NAME_BYTES

from .descriptors import needs_stdout
from .exits import ExitStatus
from .given import (
    CA_FILE,
    FILE,
    INTERMEDIATE_FILE,
    OLD_FILE,
    cert_file,
    complete_node,
    duration,
    json_option,
    key_file,
    node_or_host,
    pki_option,
    read_password,
)
from .pki_files import for_files, open_ca, refuse_to_overwrite
from .shown import (
    certificate_values,
    console,
    early_end,
    grid,
    now_utc,
    put,
    put_json,
    put_notes,
    speaks_for,
    time_left,
)

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path


@click.command(short_help="Issue a certificate for a node.")
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
    if cert.name in (CA_FILE, INTERMEDIATE_FILE, OLD_FILE) or stem.endswith("-key"):
        msg = f"{cert} is the name of the CA's certificate or of a key file; choose another with --out"
        raise click.UsageError(msg)
    if not force:
        refuse_to_overwrite(cert, key, instead="name another with --out")
    kept, key_password = open_ca(directory, password_file), read_password(key_password_file)
    try:
        pair = kept.authority.issue(*wanted, lifetime=lifetime, key_type=key_type)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    with for_files(f"write {cert}"):
        kept.record(pair.certificate, *wanted)
        write_key_pair(pair, cert, key, password=None if key_password is None else key_password.data)
    notes = early_end(pair.certificate, lifetime, f"the CA in {directory} ends then, and what it issues with it")
    if len(str(wanted[0]).encode()) > MAX_COMMON_NAME_BYTES:
        notes.append(
            f"the subject has the first {MAX_COMMON_NAME_BYTES} bytes of {wanted[0]}; peers go by the names of the "
            "certificate, which have it whole"
        )
    if as_json:
        values = certificate_values(pair.certificate, now_utc())
        put_json({"cert": str(cert), "key": str(key), **values, "notes": notes})
    else:
        start, end = not_before(pair.certificate), not_after(pair.certificate)
        left = time_left(start, end, now_utc())
        shown = Text(f"{speaks_for(pair.certificate)}, ") + left
        put(console(), grid([(str(cert), shown), (str(key), "its key; keep it private")]))
        put_notes(notes)
    return ExitStatus.OK


@click.command(short_help="Make a one-time token for `trionode join`.")
@click.argument("names", metavar="NAME|PATTERN")
@pki_option
@click.option("--ttl", callback=duration, default="1h", show_default=True, help="How long it may be used: 10m, 1h …")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@json_option
@needs_stdout
def token(names: str, directory: Path, ttl: timedelta, password_file: Path | None, *, as_json: bool) -> int:
    """Make a one-time token, by which a program gets its first certificate from `trionode pki serve`.

    It is good for a node name (alpha@host), a host, or a glob over node names ('worker-*@*.example'), once, and printed
    alone: hand it over as you would a password. It carries the fingerprint of the CA.
    """
    kept = open_ca(directory, password_file)
    try:
        with for_files(f"write to {directory}"):
            made = kept.make_token(names, lifetime=ttl)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if as_json:
        put_json({"token": made.reveal(), "names": made.names, "ca": made.ca_fingerprint, "id": made.digest})
    else:
        click.echo(made.reveal())
    return ExitStatus.OK
