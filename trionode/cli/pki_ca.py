"""`trionode pki init` and `trionode pki roll`: the CA is made, and replaced."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, TypeVar

import click
from rich.text import Text

from trionode._identity.describe import describe_subject
from trionode.pki import PRIVATE_NAMES, PKIDirectory
from trionode.pki._certificates import MAX_COMMON_NAME_BYTES
from trionode.pki._constraints import ANY_NAME, permitted_by

from .exits import ExitStatus
from .given import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    FILE,
    INTERMEDIATE_FILE,
    ROOT_KEY_FILE,
    duration,
    json_option,
    pki_option,
    pki_words,
    read_password,
)
from .pki_files import for_files, open_ca, refuse_to_overwrite
from .shown import certificate_values, console, early_end, grid, now_utc, put, put_json, put_notes

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

R = TypeVar("R")


def _common_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A callback: a CA's common name, which is not cut."""
    if not value:
        msg = "a common name has at least one character"
        raise click.BadParameter(msg)
    if len(value.encode(errors="replace")) > MAX_COMMON_NAME_BYTES:
        msg = f"it is longer than the {MAX_COMMON_NAME_BYTES} bytes that a common name may have; shorten it"
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


@click.command(short_help="Make a CA.")
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
    if not force:
        files = (directory / name for name in (CA_FILE, CA_KEY_FILE, CRL_FILE))
        refuse_to_overwrite(*files, instead="name another --pki directory")
    try:
        with for_files(f"write the CA to {directory}"):
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
    notes = early_end(authority.certificate, lifetime, "no certificate can be valid for longer")
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
    put_notes(notes)
    put(console(), Text(f"next: trionode pki issue{pki_words(directory)} alpha@localhost", style="dim"))
    return ExitStatus.OK


def _limits(permitted: list[str]) -> str:
    """What a CA may issue for, in words."""
    if permitted == [ANY_NAME]:
        return "any name"
    if permitted == [*PRIVATE_NAMES]:
        return "names that no public network has"
    return f"{', '.join(permitted)} alone"


_STEPS: Final = {
    "begin": "a new CA is trusted beside the present one; next, once every node has looked: trionode pki roll switch",
    "switch": "the new CA issues; next, once every certificate was renewed: trionode pki roll retire",
    "retire": "the old CA is not trusted any more",
}


@click.command(short_help="Replace the CA by a new one, in three steps.")
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
    kept = open_ca(directory, password_file)
    try:
        with for_files(f"write to {directory}"):
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
