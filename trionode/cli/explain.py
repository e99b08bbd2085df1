"""`trionode explain`: where a connection fails, and why. `inquiry` takes the steps, this shows them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio
from rich.table import Table
from rich.text import Text

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.pem import parse_certificates, read_file
from trionode._identity.describe import describe_subject
from trionode._identity.names import canonical_host

from .diagnosis import Ours, Step, Target
from .exits import ExitStatus, Trouble, run
from .given import (
    CA_FILE,
    FILE,
    Place,
    address_option,
    complete_node,
    cookie_option,
    credential_options,
    host_name,
    json_option,
    node_name,
    pool,
    read_cookie,
    revocations,
    target_of,
)
from .inquiry import Expected, Inquiry
from .kinds import TIMEOUT
from .paths import exists
from .registry import registry_of, registry_option
from .shown import (
    FAILED,
    HELD,
    SKIPPED,
    certificate_grid,
    certificate_values,
    console,
    now_utc,
    put,
    put_json,
)
from .words import in_command_words, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from trionode import NodeName

    from .given import Given
    from .registry import Registry

_MARKS: Final = {"ok": (HELD, "green"), "failed": (FAILED, "bold red"), "skipped": (SKIPPED, "dim")}

#: Columns of the marks and names of the steps.
_WIDTH: Final = 19


# Over 60 lines long: half of them are what --help shows.
@click.command(short_help="Where a connection fails, and why.")
@click.argument("target", metavar="NODE|HOST[:PORT]", shell_complete=complete_node)
@address_option
@credential_options
@click.option("--as", "our_name", metavar="NODE", callback=node_name, help="Our own node name; see --pki.")
@click.option(
    "--server-name",
    metavar="HOST",
    callback=host_name,
    help="What the server's certificate has to cover. Default: the host.",
)
@click.option("--expect-cert", type=FILE, help="The server's certificate as it is on its disk: is it presented?")
@click.option("--expect-client-ca", type=FILE, help="The server's client CAs as they are on its disk: are they in use?")
@cookie_option
@registry_option
@click.option("--timeout", type=TIMEOUT, default=3.0, show_default=True, help="Of each step, s.")
@json_option
def explain(
    target: str,
    address: str | None,
    given: Given,
    our_name: NodeName | None,
    server_name: str | None,
    expect_cert: Path | None,
    expect_client_ca: Path | None,
    cookie_file: Path | None,
    registry: str | None,
    registry_password: Path | None,
    timeout: float,
    *,
    as_json: bool,
) -> int:
    """Where a connection fails, and why: step by step, with both certificates and the remedy.

    The steps: resolve, TCP, TLS, verify the server, be verified by it, clocks, hello. Any TLS server can be the target
    of the first six; the hello needs a NODE (name@host, port 15000 unless it says :PORT). Nothing is trusted, and our
    certificate is sent only to a server that verifies. The server sees two or three connections, and may log that it
    refused some.

    With --as (a node of the --pki directory) or --cert and --key, a certificate is presented. Servers are judged by
    --ca or --root-ca; else by the CA of the --pki directory, for nodes; else by the system's CAs.

    \b
    Examples:
      trionode explain example.org:443
      trionode explain beta@host-b.example --as alpha@host-a.example
      trionode explain beta@host-b.example --address 127.0.0.1:15001
      trionode explain beta@host-b.example --registry local:

    \b
    Does the server use what is on its disk? Its certificate, and its CAs:
      trionode explain beta@localhost --expect-cert pki/beta@localhost.pem
      trionode explain beta@localhost --expect-client-ca pki/ca.pem

    Exit status: 0 if nothing is wrong, 1 if something is, 3 if a file cannot be used, 2 if the command line is not
    valid.
    """
    asked = target_of(target, address)
    if registry is not None:
        if asked.node is None or address is not None:
            msg = "--registry finds the address of a NODE: give either that, or HOST or --address"
            raise click.UsageError(msg)
        found = registry_of(registry, lambda: given.files(our_name).manager(), registry_password)
        asked = run(_found, found, asked.node, timeout)
    try:
        reference = canonical_host(server_name or (asked.node.host if asked.node else asked.host))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--server-name") from None
    ours = _ours(given, our_name, is_node=asked.node is not None, cookie=read_cookie(cookie_file))
    expected = Expected(
        certificate=None if expect_cert is None else parse_certificates(read_file(expect_cert), str(expect_cert))[0],
        client_cas=None if expect_client_ca is None else CAPool.load(expect_client_ca),
    )
    out = console()
    inquiry = Inquiry(
        Target(node=asked.node, host=asked.host, port=asked.port, server_name=reference),
        ours,
        expected,
        timeout=timeout,
        tell=(lambda _: None) if as_json else partial(_show_step, out),
    )
    run(inquiry.run)
    if as_json:
        put_json(_document(inquiry))
    else:
        _summary(out, inquiry)
    return ExitStatus.FOUND if inquiry.diagnoses else ExitStatus.OK


def _ours(given: Given, name: NodeName | None, *, is_node: bool, cookie: bytes | None) -> Ours:
    if given.named or name is not None:
        files = given.files(name)
        return Ours(
            name=name,
            key_pair=files.key_pair(),
            root_cas=pool(files.root_cas),
            crls=revocations(files.crls),
            cookie=cookie,
            trust=", ".join(map(str, files.root_cas)) or "the system's CAs",
        )
    roots = (*given.cas, *given.root_cas)
    ca = given.directory / CA_FILE
    if not roots and is_node and exists(ca):
        roots = (ca,)
    return Ours(
        root_cas=pool(roots),
        crls=revocations(given.crls),
        cookie=cookie,
        trust=", ".join(map(str, roots)) or "the system's CAs",
    )


async def _found(registry: Registry, node: NodeName, timeout: float) -> Place:  # noqa: ASYNC109 -- passed to `trio.run`
    """Where a registry says that a node is.

    Raises:
        Trouble: it does not know, or does not answer.
    """
    endpoints = None
    with trio.move_on_after(timeout):
        endpoints = await registry.resolve(node)
    if not endpoints:
        problem = "does not know" if endpoints is not None else f"does not answer within {timeout:g} s for"
        msg = f"{registry!r} {problem} {node}: is that node running, and registered there?"
        raise Trouble(msg, ExitStatus.NETWORK)
    return Place(node=node, host=endpoints[0].host, port=endpoints[0].port)


# Showing ------------------------------------------------------------------------------------------------------------


def _show_step(out: Console, step: Step) -> None:
    mark, style = _MARKS[step.outcome]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_WIDTH)
    table.add_column(overflow="fold")
    table.add_row(Text(f"{mark} {step.name}", style=style), Text(_short(step.text)))
    for detail in step.details:
        table.add_row("", Text(_short(detail), style="dim"))
    put(out, table)


def _short(text: str) -> str:
    """In the words of this interface; both certificates are shown in full further down."""
    return one_line(in_command_words(text))[0]


def _summary(out: Console, inquiry: Inquiry) -> None:
    now = now_utc()
    chain = () if inquiry.looked is None else inquiry.looked.chain
    for title, certificate in (
        ("their certificate", chain[0] if chain else None),
        ("our certificate", inquiry.ours.key_pair.certificate if inquiry.ours.key_pair else None),
    ):
        if certificate is not None:
            put(out, Text(f"\n{title}", style="bold"))
            put(out, certificate_grid(certificate, now))
    if chain:
        put(out, Text("\ntrust", style="bold"))
        if inquiry.path:
            way = " ← ".join(describe_subject(each) for each in inquiry.path)
            put(out, f"{way}, which is in {inquiry.ours.trust}")
        else:
            way = " ← ".join(describe_subject(each) for each in chain)
            put(out, f"{way}: presented, and leads to no CA of {inquiry.ours.trust}")
    if not inquiry.diagnoses:
        put(out, Text("\nnothing is wrong", style="bold green"))
        return
    count = len(inquiry.diagnoses)
    put(out, Text(f"\n{count} problem{'' if count == 1 else 's'} found", style="bold red"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in inquiry.diagnoses:
        table.add_row(Text(f"{FAILED} {each.code}", style="bold red"), Text(_short(each.message)))
        table.add_row("", Text(f"→ {in_command_words(each.remedy)}", style="green"))
    put(out, table)


def _document(inquiry: Inquiry) -> dict[str, object]:
    now, looked = now_utc(), inquiry.looked
    ours = inquiry.ours.key_pair
    return {
        "ok": not inquiry.diagnoses,
        "target": {
            "node": None if inquiry.target.node is None else str(inquiry.target.node),
            "host": inquiry.target.host,
            "port": inquiry.target.port,
            "server_name": inquiry.target.server_name,
        },
        "steps": msgspec.to_builtins(inquiry.steps),
        "found": [
            {name: in_command_words(value) for name, value in msgspec.to_builtins(each).items()}
            for each in inquiry.diagnoses
        ],
        "tls": None
        if looked is None
        else {
            "version": looked.tls_version,
            "cipher": looked.cipher,
            "alpn": looked.alpn,
            "certificate_requested": looked.certificate_requested,
            "accepted_cas": list(looked.requested_cas.values()),
        },
        "their_chain": [] if looked is None else [certificate_values(each, now) for each in looked.chain],
        "our_chain": [] if ours is None else [certificate_values(each, now) for each in ours.chain],
        "trust": {"from": inquiry.ours.trust, "path": [describe_subject(each) for each in inquiry.path]},
    }
