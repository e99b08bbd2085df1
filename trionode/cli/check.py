"""`trionode check`: what will go wrong with a certificate, before it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trionode._credentials.policy import ClientAuth
from trionode._identity.describe import describe
from trionode._managers.check import check_key_pair
from trionode._managers.findings import Severity

from .exits import ExitStatus
from .given import (
    CLIENT_AUTH,
    complete_node,
    credential_options,
    json_option,
    node_or_host,
    pool,
    revocations,
)
from .shown import (
    certificate_values,
    console,
    finding_values,
    now_utc,
    put,
    put_findings,
    put_json,
)
from .words import one_line

if TYPE_CHECKING:
    from .given import Given


@click.command(short_help="What will go wrong with a certificate, before it does.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_node)
@credential_options
@click.option(
    "--client-auth",
    type=click.Choice(list(CLIENT_AUTH)),
    default="require-and-verify",
    show_default=True,
    help="What this node's acceptors ask of clients.",
)
@click.option("--strict", is_flag=True, help="Exit status 1 for warnings, too.")
@json_option
def check(names: tuple[str, ...], given: Given, client_auth: str, *, strict: bool, as_json: bool) -> int:
    """What will go wrong with a certificate, before it does; each finding with its remedy.

    NAMEs are what it has to cover: node names (alpha@host), hosts or addresses. Without --cert, the files of the first
    one are taken from the --pki directory.

    Checked are dates, purposes, names, signatures, the chain to your own CAs, your revocation lists, and a handshake of
    the certificate with itself in memory. The network is not used. An error is what peers that are configured alike
    would refuse; a warning is what some may refuse, now or soon.

    \b
    Examples:
      trionode check alpha@localhost
      trionode check --cert tls.crt --key tls.key --ca ca.crt alpha@host-a.example
      trionode check --strict --json alpha@localhost | jq .findings

    Exit status: 0 if there is no error, 1 if there is, 3 if a file cannot be used, 2 if the command line is not valid.
    """
    wanted = [node_or_host(name) for name in names]
    files = given.files(wanted[0] if wanted else None)
    key_pair = files.key_pair()
    mode = CLIENT_AUTH[client_auth]
    client_cas = pool(files.client_cas)
    if mode.verifies and client_cas is None and client_auth_given():
        msg = f"--client-auth {client_auth} needs --ca or --client-ca: the CAs of the clients"
        raise click.UsageError(msg)
    findings = check_key_pair(
        key_pair,
        client_cas=client_cas,
        root_cas=pool(files.root_cas),
        client_auth=ClientAuth.NO_CLIENT_CERT if client_cas is None and mode.verifies else mode,
        names=wanted,
        crls=revocations(files.crls),
    )
    errors = [each for each in findings if each.severity is Severity.ERROR]
    failed = bool(findings if strict else errors)
    if as_json:
        put_json(
            {
                "ok": not failed,
                "certificate": certificate_values(key_pair.certificate, now_utc()),
                "findings": finding_values(findings),
            }
        )
    else:
        out = console()
        put(out, describe(key_pair.certificate))
        _, details = one_line(describe(key_pair.certificate))
        put_findings(out, findings, shown=details[0].partition(": ")[2] if details else "")
        warnings = len(findings) - len(errors)
        put(out, f"{_count(len(errors), 'error')}, {_count(warnings, 'warning')}" if findings else "nothing is wrong")
    return ExitStatus.FOUND if failed else ExitStatus.OK


def client_auth_given() -> bool:
    """Whether `--client-auth` was given, in place of its default."""
    source = click.get_current_context().get_parameter_source("client_auth")
    return source is not click.core.ParameterSource.DEFAULT


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
