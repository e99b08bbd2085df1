"""`trionode pki`: a CA, and certificates for nodes, in one directory.

The directory holds the CA, as `trionode.pki.PKIDirectory` has it, and `NAME.pem` and `NAME-key.pem` of each node. No
file is replaced without `--force`. Files are replaced atomically, the key first, as `trionode.pki` does it, so that
nodes that follow them rotate.

The file is long because the commands of the group stand together, one after the other: options, a few calls of
`trionode.pki`, and what is printed.
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click
from cryptography import x509
from rich.table import Table
from rich.text import Text

from trionode._credentials.contents import contents
from trionode._credentials.crl import CRLSet, next_update
from trionode._credentials.pem import MAX_CRL_BYTES, parse_certificates, read_file
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import (
    fingerprint,
    is_ca,
    issuer_der,
    not_after,
    not_before,
    serial_number,
    subject_der,
)
from trionode._identity.describe import describe, describe_subject
from trionode._identity.names import NodeName
from trionode.pki import (
    PRIVATE_NAMES,
    CertificateAuthority,
    KeyType,
    PKIDirectory,
    write_key_pair,
)
from trionode.pki._constraints import ANY_NAME, permitted_by

from .contents import shown_parts
from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble
from .given import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    CRL_MARKER,
    FILE,
    ROOT_KEY_FILE,
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
from .paths import exists, is_directory, is_file
from .revoked import (
    certificates_in,
    crl_values,
    lists_in,
    names_by_serial,
    revocation_of,
)
from .shown import (
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
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from trionode._credentials.pem import Secret

R = TypeVar("R")

INTERMEDIATE_FILE: Final = "intermediate.pem"

#: RFC 5280 appendix A.1, ub-common-name.
_MAX_COMMON_NAME_BYTES: Final = 64

_REASONS: Final = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}


def _common_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A callback: a CA's common name, which is not cut."""
    if not value:
        msg = "a common name has at least one character"
        raise click.BadParameter(msg)
    if len(value.encode(errors="replace")) > _MAX_COMMON_NAME_BYTES:
        msg = f"it is longer than the {_MAX_COMMON_NAME_BYTES} bytes that a common name may have; shorten it"
        raise click.BadParameter(msg)
    return value


def permit_options(about: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: what a CA may issue for, as `permitted`; None where nothing was said.

    Args:
        about: the help of `--permit`.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @click.option("--permit", "names", multiple=True, metavar="HOST|NETWORK", help=about)
        @click.option("--permit-any", is_flag=True, help="Issue for any name: no name constraints.")
        @functools.wraps(function)
        def wrapped(*arguments: object, names: tuple[str, ...], permit_any: bool, **others: object) -> R:
            if names and permit_any:
                msg = "--permit and --permit-any exclude each other"
                raise click.UsageError(msg)
            return function(*arguments, permitted=(ANY_NAME,) if permit_any else names or None, **others)

        return wrapped

    return decorate


@click.group(short_help="A CA, and certificates for nodes, in a directory.", invoke_without_command=True)
@click.pass_context
def pki(context: click.Context) -> None:
    """A CA, and certificates for nodes, in a directory.

    The CA's key lies in a file there: keep it private, and off the machines that the nodes run on.

    \b
    Examples:
      trionode pki init                             a CA, in ./pki
      trionode pki issue alpha@localhost            a certificate and its key
      trionode pki issue --force alpha@localhost    a new one: rotate
      trionode pki show alpha@localhost             show a certificate
      trionode pki revoke alpha@localhost           put it on pki/ca.crl
      trionode pki unrevoke alpha@localhost         take it off again
      trionode pki token beta@localhost             a token for `trionode join`
      trionode pki roll begin                       replace the CA, step by step
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@pki.command(short_help="Make a CA.")
@pki_option
@click.option(
    "--common-name",
    callback=_common_name,
    default="trionode development CA",
    show_default=True,
    help="Of the CA, for people.",
)
@click.option("--lifetime", callback=duration, default="3650d", show_default=True, help="90d, 12h, 30m …")
@click.option("--password-file", type=FILE, help="Encrypt ca.key with the first line of this file.")
@permit_options("Issue for this host, those below it, or this network alone; repeatable. Default: private names.")
@click.option("--intermediate/--no-intermediate", default=True, show_default=True, help="Issue by an intermediate CA.")
@click.option("--force", is_flag=True, help="Replace the CA that is there: peers no longer accept what it issued.")
@json_option
def init(
    directory: Path,
    common_name: str,
    lifetime: timedelta,
    password_file: Path | None,
    permitted: tuple[str, ...] | None,
    *,
    intermediate: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Make a CA: a root, and an intermediate that issues.

    ca.pem is the root, which nodes trust; root.key is its key, which may be taken offline. intermediate.pem and ca.key
    issue; ca.crl has the revocation lists, which are empty. Keys have mode 0600.

    What is issued is limited (name constraints): by default to names and addresses that no public network has, such as
    localhost, *.internal and 10.0.0.0/8; by --permit to others in their place. So a stolen ca.key is good for no other
    server.

    The directory is made with mode 0700 if it is missing.
    """
    if permitted and not intermediate:
        msg = "--permit and --permit-any are about an intermediate: not every verifier looks at a root's constraints"
        raise click.UsageError(msg)
    password = read_password(password_file)
    for name in () if force else (CA_FILE, CA_KEY_FILE, CRL_FILE):
        _refuse_to_overwrite(directory / name, "name another --pki directory")
    try:
        with _for_files(f"write the CA to {directory}"):
            authority = PKIDirectory.create(
                directory,
                common_name=common_name,
                lifetime=lifetime,
                intermediate=intermediate,
                permitted=PRIVATE_NAMES if permitted is None else permitted,
                password=None if password is None else password.data,
            ).authority
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    notes = _shortened(authority.certificate, lifetime, "no certificate can be valid for longer")
    limits = permitted_by(authority.issuer)
    if limits == [ANY_NAME]:
        notes.append("the CA may issue for any name: who has ca.key can pose as any server to those who trust ca.pem")
    if as_json:
        file, values = str(directory / CA_FILE), certificate_values(authority.certificate, now_utc())
        put_json({"file": file, **values, "permitted": limits, "notes": notes})
        return ExitStatus.OK
    rows: list[tuple[str, str | Text]] = [(str(directory / CA_FILE), describe_subject(authority.certificate))]
    if authority.intermediate is not None:
        rows += [
            (str(directory / ROOT_KEY_FILE), "the root's key: take it offline"),
            (str(directory / INTERMEDIATE_FILE), f"issues for {_limits(limits)}"),
        ]
    rows += [
        (str(directory / CA_KEY_FILE), "signs certificates: keep it private"),
        (str(directory / CRL_FILE), "no certificate is revoked"),
    ]
    put(console(), grid(rows))
    _put_notes(notes)
    put(console(), Text(f"next: trionode pki issue{pki_words(directory)} alpha@localhost", style="dim"))
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
    if cert.name in (CA_FILE, INTERMEDIATE_FILE, "old.pem") or stem.endswith("-key"):
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
    _written(
        f"write {cert}",
        lambda: _open(directory, password_file).record(pair.certificate, *wanted),
        lambda: write_key_pair(pair, cert, key, password=password),
    )
    notes = _shortened(pair.certificate, lifetime, f"the CA in {directory} ends then, and what it issues with it")
    if len(str(wanted[0]).encode()) > _MAX_COMMON_NAME_BYTES:
        notes.append(
            f"the subject has the first {_MAX_COMMON_NAME_BYTES} bytes of {wanted[0]}; peers go by the names of the "
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
        _put_notes(notes)
    return ExitStatus.OK


@pki.command(short_help="Show what is in certificate, key and revocation list files.")
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
        file = _file_of(name, directory)
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

    NAME is the certificate in the --pki directory, or, for a program that has joined and keeps its own, all that was
    issued for that name and has not ended. The serial number of one of these does, too. Nodes that follow the list
    (`trionode serve` does) refuse these certificates from then on, and end connections that were made with them.
    """
    authority = _load_issuer(directory, password_file)
    revoked = [_revocable(name, directory, authority) for name in names]
    file, lost = directory / CRL_FILE, not exists(directory / CRL_FILE) and exists(directory / CRL_MARKER)
    kept, serials = _open(directory, password_file), list[int]()
    _written(
        f"write {file}",
        lambda: serials.extend(_revoked(kept, revoked, _REASONS[reason])),
        lambda: kept.sign_lists(lifetime=lifetime or _rest(authority)),
    )
    notes = (
        [f"{file} was missing: what was revoked before is on it again, as far as the journal has it"] if lost else []
    )
    described = {serial_number(each): describe(each) for each in revoked if isinstance(each, x509.Certificate)}
    done = [f"revoked: {described.get(serial, f'serial number {serial:x}')}" for serial in serials]
    _list_written(directory, done, notes, as_json=as_json)
    return ExitStatus.OK


@pki.command(short_help="Take certificates off the CA's revocation list.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE...", shell_complete=complete_node)
@pki_option
@click.option("--lifetime", callback=duration, help="Until the next list is due: 30d … Default: the CA's.")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@json_option
def unrevoke(
    names: tuple[str, ...], directory: Path, lifetime: timedelta | None, password_file: Path | None, *, as_json: bool
) -> int:
    """Take certificates off ca.crl that were revoked by mistake.

    Nodes that follow the list accept them again. Connections that the revocation ended stay ended until they are
    dialed again. A verifier that has the list from before goes on refusing them until it reads this one, or until that
    one's next update. Where the key may be in other hands, issue a new certificate in place of this.
    """
    authority = _load_issuer(directory, password_file)
    certificates = [_issued(name, directory, authority) for name in names]
    file, lists = directory / CRL_FILE, lists_in(directory)
    for certificate in certificates:
        if revocation_of(certificate, lists) is None:
            msg = f"it is not on {file}, so there is nothing to take back: {describe(certificate)}"
            raise Trouble(msg, ExitStatus.FILES)
    kept = _open(directory, password_file)
    _written(
        f"write {file}",
        lambda: kept.release(*certificates),
        lambda: kept.sign_lists(lifetime=lifetime or _rest(authority), released=certificates),
    )
    notes = ["verifiers that have the list from before refuse it until they read this one"]
    done = [f"no longer revoked: {describe(each)}" for each in certificates]
    _list_written(directory, done, notes, as_json=as_json)
    return ExitStatus.OK


@pki.command(short_help="Make a one-time token for `trionode join`.")
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
    _load_ca(directory, password_file)
    kept = _open(directory, password_file)
    try:
        with _for_files(f"write to {directory}"):
            made = kept.make_token(names, lifetime=ttl)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if as_json:
        put_json({"token": made.reveal(), "names": made.names, "ca": made.ca_fingerprint, "id": made.digest})
    else:
        click.echo(made.reveal())
    return ExitStatus.OK


_STEPS: Final = {
    "begin": "a new CA is trusted beside the present one; next, once every node has looked: trionode pki roll switch",
    "switch": "the new CA issues; next, once every certificate was renewed: trionode pki roll retire",
    "retire": "the old CA is not trusted any more",
}


@pki.command(short_help="Replace the CA by a new one, in three steps.")
@click.argument("step", type=click.Choice(list(_STEPS)))
@pki_option
@click.option(
    "--common-name",
    callback=_common_name,
    default="trionode CA",
    show_default=True,
    help="For begin: of the new CA.",
)
@click.option("--lifetime", callback=duration, default="3650d", show_default=True, help="For begin: of the new CA.")
@permit_options("For begin: see `pki init`. Default: what the present CA may issue for.")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@json_option
def roll(
    step: str,
    directory: Path,
    common_name: str,
    lifetime: timedelta,
    permitted: tuple[str, ...] | None,
    password_file: Path | None,
    *,
    as_json: bool,
) -> int:
    """Replace the CA by a new one while nodes that have joined go on: begin, switch, retire.

    Between the steps, wait until every node has looked: an hour, or a third of a certificate's lifetime if that is
    less; and before retire until every certificate was renewed. A `trionode pki serve` that runs notices. A step that
    was interrupted is finished by doing it again. ca.pem is the root that issues; the old one is in old.pem until it is
    retired.
    """
    _load_ca(directory, password_file)
    kept = _open(directory, password_file)
    try:
        with _for_files(f"write to {directory}"):
            match step:
                case "begin":
                    kept.begin_roll_over(common_name=common_name, lifetime=lifetime, permitted=permitted)
                case "switch":
                    kept.switch()
                case _:
                    kept.retire()
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    roots = [describe_subject(each) for each in kept.roots]
    if as_json:
        put_json({"step": step, "roots": roots, "issuer": describe_subject(kept.authority.issuer)})
    else:
        put(console(), f"{_STEPS[step]}{pki_words(directory) if step != 'retire' else ''}")
        put(console(), f"trusted: {'; '.join(roots)}")
    return ExitStatus.OK


# Parts --------------------------------------------------------------------------------------------------------------


def _limits(permitted: list[str]) -> str:
    """What a CA may issue for, in words."""
    if permitted == [ANY_NAME]:
        return "any name"
    if permitted == [*PRIVATE_NAMES]:
        return "names that no public network has"
    return f"{', '.join(permitted)} alone"


def _refuse_to_overwrite(file: Path, instead: str) -> None:
    if os.path.lexists(file):
        msg = f"{file} is there already, and is not overwritten without --force; or {instead}"
        raise Trouble(msg, ExitStatus.FILES)


def _list_written(directory: Path, done: list[str], notes: list[str], *, as_json: bool) -> None:
    file = directory / CRL_FILE
    crl = CRLSet.load(file).lists[0]
    if as_json:
        put_json({"file": str(file), **crl_values(crl, names_by_serial(directory), now_utc()), "notes": notes})
        return
    for each in done:
        put(console(), each)
    put(console(), f"{file}: {len(crl)} revoked, next update {next_update(crl):%Y-%m-%d %H:%M} UTC")
    _put_notes(notes)


def _shortened(certificate: x509.Certificate, lifetime: timedelta, why: str) -> list[str]:
    """What to note of a certificate that ends before the lifetime that was asked for."""
    end = not_after(certificate)
    try:
        wanted = now_utc() + lifetime
    except OverflowError:
        wanted = None
    if wanted is not None and wanted - end < timedelta(minutes=1):
        return []
    return [f"it ends on {end:%Y-%m-%d %H:%M} UTC, earlier than was asked for: {why}"]


def _put_notes(notes: list[str]) -> None:
    for note in notes:
        put(console(), Text(f"note: {note}", style="yellow"))


def _load_issuer(directory: Path, password_file: Path | None) -> CertificateAuthority:
    """The CA, if it can sign lists.

    Raises:
        Trouble: there is none, or it issues through an intermediate.
    """
    authority = _load_ca(directory, password_file)
    root = authority.certificate
    has_list = exists(directory / ROOT_KEY_FILE) or any(
        issuer_der(crl) == subject_der(root) for crl in lists_in(directory)
    )
    if authority.intermediate is not None and not has_list:
        msg = (
            f"the CA in {directory} issues through an intermediate. Nodes would also need a list by its root, whose "
            "key was not kept; retire the CA instead, or make another: trionode pki init"
        )
        raise Trouble(msg, ExitStatus.FILES)
    return authority


def _issued(name: str, directory: Path, authority: CertificateAuthority) -> x509.Certificate:
    """The certificate of a node or in a file, if the CA issued it.

    Raises:
        Trouble: it did not, or it is the CA's own.
    """
    certificate = _leaf(_file_of(name, directory))
    if fingerprint(certificate) in (fingerprint(authority.certificate), fingerprint(authority.issuer)):
        msg = (
            f"this is the CA's own certificate, and no CA revokes itself: {describe(certificate)}. To retire it, make "
            "another CA, issue from that, and take this one out of every CA file"
        )
        raise Trouble(msg, ExitStatus.FILES)
    if issuer_der(certificate) != subject_der(authority.issuer):
        msg = f"the CA in {directory} did not issue it, so it cannot revoke it: {describe(certificate)}"
        raise Trouble(msg, ExitStatus.FILES)
    return certificate


def _load_ca(directory: Path, password_file: Path | None) -> CertificateAuthority:
    if not exists(directory / CA_FILE):
        msg = f"there is no CA in {directory}; make one with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    password: Secret | None = read_password(password_file)
    return CertificateAuthority.load(directory, password=None if password is None else password.data)


def _open(directory: Path, password_file: Path | None) -> PKIDirectory:
    """The CA with its memory; `_load_ca` has said what is wrong with it."""
    password = read_password(password_file)
    return PKIDirectory(directory, password=None if password is None else password.data)


def _written(what: str, *steps: Callable[[], object]) -> None:
    with _for_files(what):
        for step in steps:
            step()


def _revocable(name: str, directory: Path, authority: CertificateAuthority) -> x509.Certificate | str:
    """The certificate of a node or in a file; or the name or serial number itself, for what the journal has of it."""
    try:
        return _issued(name, directory, authority)
    except CertificateError as exc:
        if "/" in name or not isinstance(exc.__cause__, FileNotFoundError):
            raise
    return name


def _revoked(kept: PKIDirectory, wanted: list[x509.Certificate | str], reason: x509.ReasonFlags) -> tuple[int, ...]:
    """Revoke, and say what is not there.

    Raises:
        Trouble: nothing is known of a name.
    """
    try:
        return kept.revoke(*wanted, reason=reason)
    except LookupError as exc:
        names = " or ".join(each for each in wanted if isinstance(each, str))
        msg = f"{exc}; and there is neither a file {names} nor a certificate of that name beside the CA"
        raise Trouble(msg, ExitStatus.FILES) from None


@contextmanager
def _for_files(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno is None:  # ours, in words: a step that is not due
            raise Trouble(str(exc), ExitStatus.FILES) from None
        raise unreadable(exc, what) from None


def _rest(authority: CertificateAuthority) -> timedelta:
    """The rest of the CA's lifetime: a development CA need not be attended to before that."""
    return max(not_after(authority.certificate) - now_utc(), timedelta(days=1))


def _file_of(name: str, directory: Path) -> Path:
    """An existing file, or the certificate of a node in the directory."""
    file = Path(name)
    if not is_file(file) and "/" not in name:
        try:
            stem = str(NodeName.parse(name)) if "@" in name else name
        except ValueError:
            stem = name
        candidate = cert_file(directory, stem)
        for each in (candidate, directory / name):
            if is_file(each):
                return each
        if not exists(file):
            msg = f"there is neither a file {name} nor {candidate}; `trionode pki show` lists what there is"
            raise CertificateError(msg, reason=CertificateReason.UNREADABLE) from FileNotFoundError(name)
    return file


def _leaf(file: Path) -> x509.Certificate:
    return parse_certificates(read_file(file), str(file))[0]


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
