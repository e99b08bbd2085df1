"""The manual's tables are true: they agree with the code, entry by entry."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding

import trionode
from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    KeyPair,
    NodeEvent,
    TLSStream,
    open_tls_stream,
    serve_tls,
)
from trionode.cli.exits import MEANINGS
from trionode.cli.pki import pki as pki
from trionode.cli.program import COMMANDS as KNOWN
from trionode.manual import read
from trionode.manual.markdown import rows, section, spans, tables
from trionode.pki import CertificateAuthority
from trionode.testing import present_anyway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from enum import StrEnum

    from trionode.testing import CertificateZoo, NodeFactory

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = Path(trionode.__file__).parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")

#: Every test is bounded by this. Seconds.
PATIENCE: Final = 60


def first_column(text: str) -> set[str]:
    """What stands between backticks in the first cells of a text's tables."""
    return {span for first, *_ in rows(text) for span in spans(first)}


# Client authentication ----------------------------------------------------------------------------------------------


async def test_the_client_auth_table_is_what_happens() -> None:
    """Every cell: which clients are admitted, verified or not, and what the others are told; the same on both pages."""
    [readme, page] = [section(text, "Client authentication") for text in (README, read("client-auth"))]
    table = {spans(mode)[0]: cells for mode, *cells in rows(readme)}
    assert next(tables(readme)) == next(tables(page))
    assert set(table) == {mode.name for mode in ClientAuth}
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(clock=lambda: now - timedelta(days=9))
    expired = ca.issue("localhost", not_before=now - timedelta(days=5), not_after=now - timedelta(days=3))
    with trio.fail_after(PATIENCE):
        for mode in ClientAuth:
            outcomes = [
                await outcome(ca, mode, None),
                await outcome(ca, mode, CertificateAuthority.create().issue("localhost"), now),
                await outcome(ca, mode, expired, now - timedelta(days=4)),
                await outcome(ca, mode, ca.issue("localhost"), now),
            ]
            assert outcomes == [cell.replace("`", "") for cell in table[mode.name]], mode


async def outcome(
    ca: CertificateAuthority, mode: ClientAuth, client: KeyPair | None, now: datetime | None = None
) -> str:
    """In the table's words: what becomes of a client, whose own clock says `now`."""
    server = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=mode)
    verified: list[bool] = []

    async def welcome(stream: TLSStream) -> None:
        verified.append(stream.verified)
        await stream.send_all(b"welcome")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve_tls, welcome, 0, cert_manager=server, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        if client is None:
            told = await trio.to_thread.run_sync(knock, ca.pool, port)
        else:
            told = await dial(CertAuthManager(client, root_cas=ca.pool, clock=lambda: now or datetime.now(UTC)), port)
        nursery.cancel_scope.cancel()
    if told:
        assert not verified
        return f"refused: {told}"
    return "verified" if verified == [True] else "accepted"


async def dial(manager: CertAuthManager, port: int) -> str:
    """Connect with our certificate; the rejection's code, or nothing."""
    async with await open_tls_stream("127.0.0.1", port, cert_manager=manager, server_name="localhost") as stream:
        try:
            greeting = await stream.receive_some(100)
        except trio.BrokenResourceError as exc:
            return exc.__cause__.code if isinstance(exc.__cause__, trionode.PeerRejectedError) else repr(exc)
    return "" if greeting == b"welcome" else repr(greeting)


def knock(cas: CAPool, port: int) -> str:
    """Connect without any certificate, which a trionode client cannot; the alert, or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b"".join(ca.public_bytes(Encoding.DER) for ca in cas))
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as transport:
        try:
            with context.wrap_socket(transport, server_hostname="localhost") as tls:
                assert tls.recv(100) == b"welcome"
        except ssl.SSLError as exc:
            return str(exc.reason).lower().rpartition("alert_")[2]
    return ""


# Errors, events, logs -----------------------------------------------------------------------------------------------

ERRORS: Final = next(tables(read("errors")))[1:]
#: What each error's reasons or codes are members of.
VOCABULARY: Final[dict[str, type[StrEnum]]] = {
    "CertificateError": trionode.CertificateReason,
    "PeerUnverifiedError": trionode.UnverifiedReason,
    "PeerRejectedError": trionode.RejectionCode,
    "RemoteError": trionode.RemoteCode,
}


def test_every_error_is_in_the_table() -> None:
    """The table of errors has each public exception class, and no other."""
    listed = {name for first, *_ in ERRORS for name in spans(first) if hasattr(trionode, name)} | {"TrionodeError"}
    public = {name for name, value in vars(trionode).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert listed == public


def test_the_parents_in_the_error_table_are_right() -> None:
    """`X (a Y)` means that X is a Y."""
    for first, *_ in ERRORS:
        name, *parents = spans(first)
        for parent in parents:
            base = getattr(trionode, parent, None) or getattr(importlib.import_module("builtins"), parent)
            assert issubclass(getattr(trionode, name), base), first


def test_the_reasons_in_the_error_table_exist() -> None:
    """Each word after `reason` or `code` is one that the error can have."""
    seen = 0
    for first, _, look in ERRORS:
        kind = VOCABULARY.get(spans(first)[0])
        if kind is not None:
            for word in spans(look.split(":")[1].split(";")[0]):
                kind(word)
                seen += 1
    assert seen > 12


@pytest.mark.parametrize(
    ("page", "heading", "kind"),
    [
        ("errors", "Reasons of CertificateError", trionode.CertificateReason),
        ("errors", "Codes of RemoteError", trionode.RemoteCode),
        ("events", "Why connections end", trionode.EndReason),
        ("troubleshooting", "What check finds", trionode.FindingCode),
        ("live-connections", "Live connections", trionode.Renew),
        ("trust", "Peers that would be stranded", trionode.StrandedPeers),
    ],
)
def test_a_table_has_every_member_and_no_other(page: str, heading: str, kind: Any) -> None:
    """Of an enumeration, by value or by name."""
    listed = first_column(section(read(page), heading))
    assert listed in ({member.value for member in kind}, {member.name for member in kind})


SIDES: Final = {
    ours: spans(theirs)
    for first, theirs in rows(section(read("errors"), "Two sides of one refusal"))
    for ours in spans(first)
}


def test_both_sides_of_a_refusal_are_words_that_exist() -> None:
    """Of the one vocabulary and the other; without a word of its own, the other side hears the same."""
    for ours, theirs in SIDES.items():
        trionode.UnverifiedReason(ours)
        for word in theirs or [ours]:
            trionode.RejectionCode(word)


@pytest.mark.parametrize(
    "defect", ["expired", "not_yet_valid", "wrong_ca", "wrong_name", "wrong_eku", "revoked", "unlisted"]
)
async def test_both_sides_of_a_refusal_say_what_the_table_says(
    defect: str, node_factory: NodeFactory, certificate_zoo: Callable[[str], CertificateZoo]
) -> None:
    """Of a client with one defect each: the reason at the acceptor, the code at the client."""
    with trio.fail_after(PATIENCE):
        async with node_factory("client") as client:
            zoo = certificate_zoo(str(client.name))
            crls = {"revoked": zoo.crls, "unlisted": CertificateAuthority.create().revocation_list()}.get(defect)
            manager = node_factory.manager("server", crls=crls)
            async with node_factory("server", certs=manager) as server, server.events() as events:
                if defect != "unlisted":
                    present_anyway(client, getattr(zoo, defect))
                with pytest.raises(trionode.PeerRejectedError) as caught:
                    await client.connect(server.name)
                reason = ""
                while not reason:
                    event = await events.receive()
                    reason = event.error.reason if isinstance(event, trionode.HandshakeRefused) else ""
    assert caught.value.code in (SIDES[reason] or [reason])


def test_every_event_is_in_the_table() -> None:
    """And no other."""
    public = {name for name, value in vars(trionode).items() if inspect.isclass(value) and issubclass(value, NodeEvent)}
    assert first_column(section(read("events"), "Events")) == public - {"NodeEvent"}


def test_every_logger_is_in_the_table() -> None:
    """Those of the library; the command line's own is not one that programs see."""
    sources = [file for file in PACKAGE.rglob("*.py") if "cli" not in file.parts]
    named = {name for file in sources for name in re.findall(r'\bLog\("([\w.]+)"\)', file.read_text("utf-8"))}
    assert first_column(section(read("events"), "Logs")) == named


# The command line ---------------------------------------------------------------------------------------------------

COMMANDS, STATUSES = list(tables(read("command-line")))[:2]


def test_the_table_of_commands_has_each_and_no_other() -> None:
    """Those of `pki` one by one."""
    listed = {name for first, _ in COMMANDS[1:] for name in spans(first)}
    assert listed == (set(KNOWN) - {"pki"}) | {f"pki {name}" for name in pki.commands}


def test_the_table_of_exit_statuses_is_what_the_command_line_says() -> None:
    """Each, in the same words."""
    listed = {int(number): meaning.replace("\\|", "|") for number, meaning in STATUSES[1:]}
    assert listed == {int(each): MEANINGS[each] for each in MEANINGS}


def codes_of(tree: ast.AST) -> Iterator[str]:
    """The words that a file of `explain` gives as codes: to what makes a diagnosis, or to `code`."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="_wrong"), args=[code, *_]):
                found.append(code)
            case ast.Call(func=ast.Name(id="_failed"), args=[_, code, *_]):
                found.append(code)
            case ast.keyword(arg="code", value=code):
                found.append(code)
            case ast.Assign(targets=[ast.Name(id="code")], value=code):
                found.append(code)
            case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=ast.Tuple(elts=[code, *_])):
                found.append(code)
    for each in found:
        choices = [each.body, each.orelse] if isinstance(each, ast.IfExp) else [each]
        yield from (
            choice.value for choice in choices if isinstance(choice, ast.Constant) and isinstance(choice.value, str)
        )


def test_every_code_of_explain_is_in_its_table() -> None:
    """Each that the steps give by name; those of refusals are in the table of refusals."""
    found: set[str] = set()
    for name in ("inquiry", "diagnosis", "greeting"):
        found |= set(codes_of(ast.parse((PACKAGE / "cli" / f"{name}.py").read_text(encoding="utf-8"))))
    assert len(found) > 10
    assert found <= first_column(section(read("troubleshooting"), "What explain finds"))


# Comparisons --------------------------------------------------------------------------------------------------------


def test_the_names_for_those_who_come_from_ergo_exist() -> None:
    """Everything in the column of our names is there: classes, methods, options, enum members."""
    names = [name for _, ours, _ in rows(section(read("ergo"), "Names")) for name in spans(ours)]
    assert len(names) > 25
    for name in names:
        owner, _, attribute = name.partition(".")
        found = getattr(trionode, owner)
        if attribute:
            assert hasattr(found, attribute) or attribute in inspect.get_annotations(found), name


@pytest.mark.parametrize("text", [read("comparison"), section(README, "How it compares")], ids=["manual", "README"])
def test_the_comparison_is_even(text: str) -> None:
    """Each row says something of each."""
    [table] = tables(text)
    assert len({len(row) for row in table}) == 1
    assert all(cell for row in table[1:] for cell in row)


def test_the_readme_compares_as_the_manual_does() -> None:
    """Its table is a part of the other."""
    [short], [long] = tables(section(README, "How it compares")), tables(read("comparison"))
    for row in short:
        whole = next(each for each in long if each[0] == row[0])
        assert row[0] == "replace trust" or set(row[1:2] + row[3:]) <= set(whole[1:])
