"""The facts of log records: each log call in the package gives those that the manual says, plain and bounded."""

from __future__ import annotations

import ast
import enum
import functools
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

import trionode
from trionode import ContextFilter, HandshakeReason, HandshakeRefused, RemoteError, current_channel
from trionode._util.facts import FACTS, read_facts
from trionode._util.log import Log
from trionode._util.text import PEER_TEXT_LIMIT
from trionode.manual import read
from trionode.manual.markdown import rows, section, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conftest import NodeFactory

    from trionode import Route, ServiceChannel
    from trionode.testing import CapturedLogs

PACKAGE: Final = Path(trionode.__file__).parent
#: What writes a record, and functions that are lent a log to do it.
METHODS: Final = {"debug", "info", "warning", "error", "exception", "log"}
LENT: Final = {"contained": 1, "containing": 1, "keep_running": 1}
#: Keywords that are no facts.
OPTIONS: Final = {"exc_info"}
#: What stands in every module that calls one of them.
CALLED: Final = re.compile(rf"\.({'|'.join(METHODS)})\(|{'|'.join(LENT)}")


def told(fact: str) -> set[str]:
    """A fact, and all that may come with it."""
    return {fact}.union(*(told(each) for each in FACTS[fact].tells))


def loggers_of(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """The logs of a module, by variable."""
    found = {}
    for node in nodes:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="Log"), args=[argument]))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=ast.Name(id="Log"), args=[argument]))
            ):
                found[name] = str(argument.value) if isinstance(argument, ast.Constant) else "trionode.http"
    return found


def calls_of(file: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """The calls of a module that write a record."""
    path = file.relative_to(PACKAGE).as_posix()
    text = file.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text))) if CALLED.search(text) else []
    loggers = loggers_of(nodes)
    for call in nodes:
        match call:
            case ast.Call(func=ast.Attribute(value=on, attr=method), args=[first, *_]) if method in METHODS:
                if isinstance(first, ast.Constant | ast.JoinedStr) and not isinstance(on, ast.Constant):
                    name = loggers.get(on.id if isinstance(on, ast.Name) else "_log", "")
                    yield f"{path}:{call.lineno}", name, call
            case ast.Call(func=ast.Name(id=function)) if function in LENT:
                yield f"{path}:{call.lineno}", loggers["_log"], call
            case ast.Call(func=ast.Name(id="partial"), args=[ast.Name(id=function), *_]) if function in LENT:
                yield f"{path}:{call.lineno}", loggers["_log"], call


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call that writes a record: where it stands, and the logger's name; that of a method's caller is unknown."""
    return [call for file in PACKAGE.rglob("*.py") for call in calls_of(file)]


def test_every_call_that_logs_gives_facts_by_their_names() -> None:
    """No unknown name; none hidden in a mapping, but for those that are passed on."""
    assert len(calls()) > 80
    for where, _, call in calls():
        passed_on = where.startswith(("_util/contained.py", "_util/rate_limited_log.py"))
        names = {keyword.arg for keyword in call.keywords}
        assert names - OPTIONS <= set(FACTS) | ({None} if passed_on else set()), where


def given_by(call: ast.Call) -> set[str]:
    """The facts that a call gives itself: with a traceback, those of the exception are given."""
    names = {str(keyword.arg) for keyword in call.keywords if keyword.arg}
    traceback = isinstance(call.func, ast.Name) or (
        isinstance(call.func, ast.Attribute) and call.func.attr == "exception"
    )
    return names - OPTIONS | ({"error"} if traceback or "exc_info" in names else set())


def test_every_logger_gives_the_facts_that_its_row_says() -> None:
    """All of them, and no other."""
    given: dict[str, set[str]] = {}
    for where, logger, call in calls():
        if not where.startswith(("cli/", "_util/")):
            given.setdefault(logger, set()).update(given_by(call))
    listed = {spans(first)[0]: set(spans(facts)) for first, _, facts in rows(section(read("events"), "Logs"))}
    assert listed == given


def test_every_fact_is_in_the_table() -> None:
    """In the same words, with what comes with it, and no other; each is given by some call."""
    listed = {
        spans(first)[0]: (meaning, set(spans(more))) for first, meaning, more in rows(section(read("events"), "Facts"))
    }
    assert listed == {name: (fact.meaning, set(fact.tells)) for name, fact in FACTS.items()}
    assert set(FACTS) == {fact for _, _, call in calls() for name in given_by(call) for fact in told(name)}


def test_no_fact_has_the_name_of_what_a_record_has_anyway() -> None:
    """`logging` would refuse the whole record."""
    record = logging.LogRecord("a", logging.INFO, "b", 1, "c", (), None)
    assert not set(FACTS) & (set(vars(record)) | {"message", "asctime"})


class Word(enum.StrEnum):
    """Such as reasons are."""

    A = "a"


class Rude:
    """Something of an application's."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("generation", 7, 7),
        ("verified", True, True),
        ("address", ("127.0.0.1", 80), "127.0.0.1:80"),
        ("address", ("::1", 80), "[::1]:80"),
        ("reason", Word.A, "a"),
        ("peer", "a@b", "a@b"),
        ("service", "a\nb", "a\\nb"),
        ("source", Rude(), "a Rude that cannot be shown"),
        ("option", Rude(), "a Rude that cannot be shown"),
        ("error", ValueError("secret"), "ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_plain(name: str, given: object, value: object) -> None:
    """Escaped, and of the very types that any formatter knows."""
    [found] = read_facts({name: given}).values()
    assert found == value
    assert type(found) in {str, int, bool}


def test_text_is_bounded() -> None:
    """As it is in messages."""
    [found] = read_facts({"service": "x" * 100_000}).values()
    assert isinstance(found, str)
    assert len(found) == PEER_TEXT_LIMIT + 1


def test_what_was_given_stands_and_what_is_told_fills_the_gaps() -> None:
    """Of an error: where it happened, but not why, if the caller knows better."""
    error = trionode.HandshakeError(
        "…", stage=trionode.Stage.TLS, reason=HandshakeReason.BROKEN, address=("127.0.0.1", 80), generation=3
    )
    assert read_facts({"error": error, "reason": "worn", "node": None}) == {
        "error": "HandshakeError",
        "reason": "worn",
        "stage": "tls",
        "address": "127.0.0.1:80",
        "generation": 3,
    }


def test_nothing_is_read_where_the_level_is_off(caplog: pytest.LogCaptureFixture) -> None:
    """Not even that an object cannot be shown."""
    asked: list[str] = []

    class Curious:
        def __str__(self) -> str:
            asked.append("str")
            return "curious"

    log = Log("trionode.area")
    with caplog.at_level(logging.WARNING, "trionode"):
        log.info("a", node=Curious())
    assert asked == []
    with caplog.at_level(logging.INFO, "trionode"):
        log.info("a", node=Curious())
    assert asked == ["str"]
    assert vars(caplog.records[-1])["node"] == "curious"


# Of real nodes ------------------------------------------------------------------------------------------------------


def about(logs: CapturedLogs, start: str) -> list[dict[str, str | int]]:
    """The facts of those whose message begins so, as JSON has them."""
    found = [facts for facts in logs.facts() if str(facts["message"]).startswith(start)]
    assert all(type(value) in {str, int, bool} for facts in found for value in facts.values())
    return [json.loads(json.dumps(facts | {"level": ""})) for facts in found]


async def test_both_sides_name_a_connection_alike(
    node: NodeFactory, route_to: Callable[..., Route], captured_logs: CapturedLogs
) -> None:
    """From up to down, over a hand-over, in what fails, and in the application's own records."""

    async def fail(channel: ServiceChannel) -> None:
        assert current_channel.get() is channel
        logging.getLogger("shop").warning("about to fail")
        logging.getLogger("shop").warning("another", extra={"peer": "someone"})
        raise RemoteError("no such order", code="not_found")

    with trio.fail_after(10):
        async with node("beta@localhost", services={"orders": fail}) as beta, node("alpha@localhost") as alpha:
            alpha.add_route("beta@localhost", route_to(beta))
            connection = await alpha.connect("beta@localhost")
            await connection.reauthenticate()
            with pytest.raises(RemoteError):
                await connection.call("orders", b"")
            known = connection.id
            assert re.fullmatch("[0-9a-f]{16}", known)
            await connection.aclose()
        assert connection.id == known
    up = about(captured_logs, "connection up")
    assert {(each["node"], each["peer"], each["side"], each["connection"]) for each in up} == {
        ("alpha@localhost", "beta@localhost", "dial", known),
        ("beta@localhost", "alpha@localhost", "accept", known),
    }
    moved, down = about(captured_logs, "connection handed over"), about(captured_logs, "connection down")
    assert [each["connection"] for each in moved + down] == [known] * 4
    assert {each["reason"] for each in down} == {"closed", "closed_by_peer"}
    [refused] = about(captured_logs, "service")
    assert refused | {"address": "", "message": ""} == {
        "logger": "trionode.service",
        "level": "",
        "message": "",
        "node": "beta@localhost",
        "connection": known,
        "channel": 1,
        "service": "orders",
        "peer": "alpha@localhost",
        "verified": True,
        "address": "",
        "error": "RemoteError",
        "code": "not_found",
    }
    [own] = about(captured_logs, "about to fail")
    assert own == {
        name: refused[name] for name in ("connection", "channel", "service", "peer", "verified", "address")
    } | {"logger": "shop", "level": "", "message": "about to fail"}
    [other] = about(captured_logs, "another")
    assert other == {"logger": "shop", "level": "", "message": "another", "peer": "someone"}


async def test_a_refused_handshake_has_its_facts(node: NodeFactory, captured_logs: CapturedLogs) -> None:
    """Of a stranger: what was wrong, and where it came from."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            host, port = beta.acceptors[0].address
            async with await trio.open_tcp_stream(host, port) as stranger:
                await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
                address = stranger.socket.getsockname()
            while not isinstance(await events.receive(), HandshakeRefused):
                pass
    [refused] = about(captured_logs, "handshake refused")
    assert refused["error"] == "HandshakeError"
    assert refused["stage"] == "tls"
    assert refused["reason"] == "http request"
    assert refused["node"] == "beta@localhost"
    assert refused["acceptor"] == f"{host} port {port}"
    assert refused["address"] == "{}:{}".format(*address[:2])


async def test_context_filter_adds_nothing_outside_of_services() -> None:
    """And lets records pass."""
    record = logging.LogRecord("a", logging.INFO, "b", 1, "c", (), None)
    before = dict(vars(record))
    assert ContextFilter().filter(record)
    assert vars(record) == before
    await trio.lowlevel.checkpoint()
