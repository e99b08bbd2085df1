"""What logs never raises, whatever the application's handlers and filters do."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio

from trionode import HandshakeRefused, RemoteError
from trionode._util.log import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import NodeFactory

    from trionode import Route, ServiceChannel


class BrokenHandler(logging.Handler):
    """As one whose disk is full, and which does not keep it to itself."""

    def handle(self, record: logging.LogRecord) -> NoReturn:
        """Raise."""
        raise OSError(28, "No space left on device")


class BrokenFilter(logging.Filter):
    """One with a defect."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        raise ZeroDivisionError


@pytest.fixture(params=["handler", "filter"])
def broken(request: pytest.FixtureRequest) -> Iterator[None]:
    """Logging of the whole package is broken."""
    root = logging.getLogger("trionode")
    handler: logging.Handler = BrokenHandler() if request.param == "handler" else logging.StreamHandler(io.StringIO())
    if request.param == "filter":
        handler.addFilter(BrokenFilter())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.usefixtures("broken")
def test_every_method_returns(capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be logged is on stderr."""
    log = Log("trionode.area")
    log.debug("a")
    log.info("%s", "b")
    log.warning("c", exc_info=ValueError("why"))
    log.error("d")
    log.log(logging.WARNING, "e")
    try:
        raise KeyError("f")
    except KeyError:
        log.exception("g")
    assert capsys.readouterr().err.count("of the logger 'trionode.area' failed") == 6


@pytest.mark.usefixtures("broken")
def test_logging_may_be_told_to_be_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the standard library's own switch."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    Log("trionode.area").warning("a")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("broken")
def test_a_broken_stderr_costs_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may have none."""
    monkeypatch.setattr("sys.stderr", None)
    Log("trionode.area").warning("a")


def test_a_line_is_named_after_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """File and function are those of the caller."""
    log = Log("trionode.area")
    log.warning("a %d", 1)
    try:
        raise KeyError("f")
    except KeyError:
        log.exception("b")
    assert [(each.filename, each.funcName) for each in caplog.records] == [
        ("test_log.py", "test_a_line_is_named_after_its_place")
    ] * 2
    assert caplog.records[0].getMessage() == "a 1"
    assert caplog.records[1].exc_info is not None
    assert caplog.records[1].exc_info[0] is KeyError


@pytest.mark.usefixtures("broken")
async def test_a_stranger_cannot_end_a_node_by_being_logged(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """A refused handshake, a connection up and down, a service that fails: each is logged, and the node lives."""

    async def fail(channel: ServiceChannel) -> NoReturn:
        raise ValueError("oh no")

    with trio.fail_after(10):
        async with node("beta@localhost", services={"fail": fail}) as beta, beta.events() as events:
            host, port = beta.acceptors[0].address
            for _ in range(3):
                async with await trio.open_tcp_stream(host, port) as stranger:
                    await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
                async for event in events:
                    if isinstance(event, HandshakeRefused):
                        break
            async with node("alpha@localhost") as alpha:
                alpha.add_route("beta@localhost", route_to(beta))
                with pytest.raises(RemoteError):
                    await alpha.call("beta@localhost", "fail", b"")
                assert (await alpha.connect("beta@localhost")).peer.verified
