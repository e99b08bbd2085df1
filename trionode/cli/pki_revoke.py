"""`trionode pki revoke` and `trionode pki unrevoke`: the CA's revocation list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from cryptography import x509

from trionode._credentials.crl import CRLSet, next_update
from trionode._credentials.pem import parse_certificates, read_file
from trionode._errors import CertificateError
from trionode._identity.certificate import fingerprint, issuer_der, serial_number, subject_der
from trionode._identity.describe import describe
from trionode.pki._revocation import rest_of

from .exits import ExitStatus, Trouble
from .given import CRL_FILE, CRL_MARKER, FILE, ROOT_KEY_FILE, complete_node, duration, json_option, pki_option
from .paths import exists
from .pki_files import file_of, for_files, open_ca
from .revoked import crl_values, lists_in, names_by_serial, revocation_of
from .shown import console, now_utc, put, put_json, put_notes

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from trionode.pki import CertificateAuthority, PKIDirectory


_REASONS: Final = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}


@click.command(short_help="Put certificates on the CA's revocation list.")
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
    kept = _open_with_lists(directory, password_file)
    revoked = [_revocable(name, directory, kept.authority) for name in names]
    file, lost = directory / CRL_FILE, not exists(directory / CRL_FILE) and exists(directory / CRL_MARKER)
    with for_files(f"write {file}"):
        serials = _revoked(kept, revoked, _REASONS[reason])
        kept.sign_lists(lifetime=lifetime or rest_of(kept.authority, kept.now()))
    notes = (
        [f"{file} was missing: what was revoked before is on it again, as far as the journal has it"] if lost else []
    )
    described = {serial_number(each): describe(each) for each in revoked if isinstance(each, x509.Certificate)}
    done = [f"revoked: {described.get(serial, f'serial number {serial:x}')}" for serial in serials]
    _list_written(directory, done, notes, as_json=as_json)
    return ExitStatus.OK


@click.command(short_help="Take certificates off the CA's revocation list.")
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
    kept = _open_with_lists(directory, password_file)
    certificates = [_issued(name, directory, kept.authority) for name in names]
    file, lists = directory / CRL_FILE, lists_in(directory)
    for certificate in certificates:
        if revocation_of(certificate, lists) is None:
            msg = f"it is not on {file}, so there is nothing to take back: {describe(certificate)}"
            raise Trouble(msg, ExitStatus.FILES)
    with for_files(f"write {file}"):
        kept.release(*certificates)
        kept.sign_lists(lifetime=lifetime or rest_of(kept.authority, kept.now()), released=certificates)
    notes = ["verifiers that have the list from before refuse it until they read this one"]
    done = [f"no longer revoked: {describe(each)}" for each in certificates]
    _list_written(directory, done, notes, as_json=as_json)
    return ExitStatus.OK


def _open_with_lists(directory: Path, password_file: Path | None) -> PKIDirectory:
    """The CA, if it can sign lists that nodes accept.

    Raises:
        Trouble: there is none, or it issues through an intermediate.
    """
    kept = open_ca(directory, password_file)
    authority, root = kept.authority, kept.authority.certificate
    has_list = exists(directory / ROOT_KEY_FILE) or any(
        issuer_der(crl) == subject_der(root) for crl in lists_in(directory)
    )
    if authority.intermediate is not None and not has_list:
        msg = (
            f"the CA in {directory} issues through an intermediate. Nodes would also need a list by its root, whose "
            "key was not kept; retire the CA instead, or make another: trionode pki init"
        )
        raise Trouble(msg, ExitStatus.FILES)
    return kept


def _revocable(name: str, directory: Path, authority: CertificateAuthority) -> x509.Certificate | str:
    """The certificate of a node or in a file; or the name or serial number itself, for what the journal has of it."""
    try:
        return _issued(name, directory, authority)
    except CertificateError as exc:
        if "/" in name or not isinstance(exc.__cause__, FileNotFoundError):
            raise
    return name


def _issued(name: str, directory: Path, authority: CertificateAuthority) -> x509.Certificate:
    """The certificate of a node or in a file, if the CA issued it.

    Raises:
        Trouble: it did not, or it is the CA's own.
    """
    file = file_of(name, directory)
    certificate = parse_certificates(read_file(file), str(file))[0]
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


def _list_written(directory: Path, done: list[str], notes: list[str], *, as_json: bool) -> None:
    file = directory / CRL_FILE
    crl = CRLSet.load(file).lists[0]
    if as_json:
        put_json({"file": str(file), **crl_values(crl, names_by_serial(directory), now_utc()), "notes": notes})
        return
    for each in done:
        put(console(), each)
    put(console(), f"{file}: {len(crl)} revoked, next update {next_update(crl):%Y-%m-%d %H:%M} UTC")
    put_notes(notes)
