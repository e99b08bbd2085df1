"""What a server counts: the same in a snapshot, in its status and in metrics, which operators read."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trionode import (
    CertAuthManager,
    ClientAuth,
    HandshakeOutcome,
    ListenError,
    PeerRejectedError,
    ServerMonitor,
    ServerStatistics,
    Side,
    open_tls_stream,
    serve_status,
    serve_tls,
    serve_tls_listeners,
)
from trionode._status.document import ServerStatus, server_status
from trionode._status.unix_socket import read_status
from trionode.cli import status as status_command
from trionode.cli.shown import console
from trionode.metrics import NodeCollector
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import NodeFactory

    from trionode import TLSStream

#: Every test is bounded by this. Seconds.
PATIENCE = 30


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for both ends; clients have to be verified."""
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    return CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=mode, root_cas=ca.pool)


@pytest.fixture
def monitor() -> ServerMonitor:
    """Of a server called web."""
    return ServerMonitor("web")


async def echo(stream: TLSStream) -> None:
    """Say the same."""
    async for data in stream:
        await stream.send_all(data)


@asynccontextmanager
async def serving(managers: Any, monitor: ServerMonitor, **options: Any) -> AsyncIterator[trio.SocketListener]:
    """Run `serve_tls` for the length of a block; its listener."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            run = partial(serve_tls, echo, 0, cert_manager=managers, host="127.0.0.1", monitor=monitor, **options)
            [listener] = await nursery.start(run)
            yield listener
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    listener: trio.SocketListener, certs: CertAuthManager, name: str = "localhost"
) -> AsyncIterator[None]:
    """A client, whose stream has come to the handler."""
    port = listener.socket.getsockname()[1]
    async with await open_tls_stream("127.0.0.1", port, cert_manager=certs, server_name=name) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        yield


async def until(
    monitor: ServerMonitor, *, streams: int = 0, pending: int = 0, is_open: bool = True
) -> ServerStatistics:
    """Wait until a server has come so far; the snapshot."""
    while True:
        statistics = monitor.statistics()
        under_way = statistics.pending_handshakes[Side.ACCEPT]
        if (statistics.streams, under_way, statistics.open) == (streams, pending, is_open):
            return statistics
        await trio.sleep(0.001)


def outcomes(statistics: ServerStatistics) -> dict[tuple[HandshakeOutcome, str], int]:
    """How handshakes went."""
    assert all(each.side is Side.ACCEPT for each in statistics.handshakes)
    return {(each.outcome, each.reason): each.count for each in statistics.handshakes}


# Snapshots ----------------------------------------------------------------------------------------------------------


def test_before_any_server(monitor: ServerMonitor) -> None:
    """There is nothing."""
    assert monitor.statistics() == ServerStatistics(
        open=False,
        listens_on=(),
        streams=0,
        managers=(),
        pending_handshakes={Side.ACCEPT: 0},
        handshakes=(),
        handshake_times=(),
    )
    assert monitor.name == "web"
    assert repr(monitor) == "<ServerMonitor 'web'>"


async def test_streams_by_generation(ca: CertificateAuthority, certs: CertAuthManager, monitor: ServerMonitor) -> None:
    """Those of before a rotation are superseded by it; when they have ended they are gone."""
    async with serving(certs, monitor) as listener:
        port = listener.socket.getsockname()[1]
        async with connected(listener, certs):
            certs.update(ca.issue("localhost"))
            async with connected(listener, certs):
                statistics = await until(monitor, streams=2)
                assert statistics.open
                assert statistics.listens_on == (f"127.0.0.1 port {port}",)
                [use] = statistics.managers
                assert (use.label, use.manager.generation, use.connections, use.superseded) == ("*", 2, {1: 1, 2: 1}, 1)
        [use] = (await until(monitor)).managers
        assert (use.connections, use.superseded) == ({}, 0)
    assert outcomes(monitor.statistics()) == {(HandshakeOutcome.ESTABLISHED, ""): 2}
    [times] = monitor.statistics().handshake_times
    assert times.times.count == 2


async def test_handshakes_that_fail(ca: CertificateAuthority, certs: CertAuthManager, monitor: ServerMonitor) -> None:
    """Are counted by how and why; one that waits for its client is under way."""
    stranger = CertAuthManager(CertificateAuthority.create().issue("localhost"), root_cas=ca.pool)
    async with serving(certs, monitor) as listener:
        port = listener.socket.getsockname()[1]
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        await until(monitor, pending=1)
        await silent.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await until(monitor)
        await silent.aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            async with connected(listener, stranger):
                pytest.fail("it was let in")
        assert isinstance(caught.value.__cause__, PeerRejectedError)
        statistics = await until(monitor)
    assert outcomes(statistics) == {
        (HandshakeOutcome.BROKEN, "tls"): 1,
        (HandshakeOutcome.REFUSED, "unknown_ca"): 1,
    }


async def test_managers_are_called_by_their_names(ca: CertificateAuthority, monitor: ServerMonitor) -> None:
    """Each once, though it may serve several."""
    one, two = (CertAuthManager(ca.issue("a.example", "b.example"), root_cas=ca.pool) for _ in range(2))
    async with serving({"a.example": one, "*.c.example": two, "B.example": one}, monitor) as listener:
        async with connected(listener, one, "b.example"), connected(listener, one, "a.example"):
            statistics = await until(monitor, streams=2)
    assert {use.label: use.connections for use in statistics.managers} == {
        "a.example, b.example": {1: 2},
        "*.c.example": {},
    }


async def test_a_server_that_does_not_accept_any_more(certs: CertAuthManager, monitor: ServerMonitor) -> None:
    """Is not open, though it has streams."""
    async with serving(certs, monitor) as listener, connected(listener, certs):
        await listener.aclose()
        statistics = await until(monitor, streams=1, is_open=False)
        assert (statistics.listens_on, statistics.streams) == ((), 1)


async def test_one_server_at_a_time(certs: CertAuthManager, monitor: ServerMonitor) -> None:
    """A second is refused, with nothing left open; when the first has ended another goes on counting."""
    async with serving(certs, monitor) as listener:
        async with connected(listener, certs):
            pass
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with pytest.raises(RuntimeError, match="another server's"):
            await serve_tls_listeners(echo, listeners, cert_manager=certs, monitor=monitor)
        with pytest.raises(trio.ClosedResourceError):
            await listeners[0].accept()
    with pytest.raises(ListenError):
        await serve_tls(echo, 0, host="192.0.2.1", cert_manager=certs, monitor=monitor)
    async with serving(certs, monitor) as listener, connected(listener, certs):
        pass
    assert outcomes(monitor.statistics()) == {(HandshakeOutcome.ESTABLISHED, ""): 2}
    assert not monitor.statistics().open


@pytest.mark.parametrize("name", ["", "a@b", "x" * 256, "a\nb", 7, None, b"web"])
def test_names(name: Any) -> None:
    """Those of nodes are no names of servers."""
    with pytest.raises((TypeError, ValueError), match=r"\bname\b"):
        ServerMonitor(name)


# What operators read ------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime directory of the test's own."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.mark.usefixtures("runtime")
async def test_status(
    ca: CertificateAuthority, certs: CertAuthManager, monitor: ServerMonitor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the socket comes what there is; the command shows it, and finds it by its name."""
    async with serving(certs, monitor) as listener, trio.open_nursery() as nursery:
        path: Path = await nursery.start(serve_status, monitor)
        async with connected(listener, certs):
            certs.update(ca.issue("localhost"))
            await until(monitor, streams=1)
            status = await trio.to_thread.run_sync(read_status, path)
            assert isinstance(status, ServerStatus)
            expected = server_status(monitor)
            assert msgspec.structs.replace(status, at=expected.at, clock=expected.clock) == expected
            assert (status.server, status.streams, status.managers[0].superseded) == ("web", 1, 1)
            [found], _ = await trio.to_thread.run_sync(status_command._look, "web", None)
            assert isinstance(found, ServerStatus)
            status_command._show(console(), found, status_command._rates(status, found))
        nursery.cancel_scope.cancel()
    shown = capsys.readouterr().out
    for words in ("web", "serves TLS on", "127.0.0.1 port", "1 open", "1 made", "manager *", "1 of generation 1"):
        assert words in shown
    assert "1 on older certificates" in shown


async def test_metrics(
    node: NodeFactory, ca: CertificateAuthority, certs: CertAuthManager, monitor: ServerMonitor
) -> None:
    """The families of nodes, so that the same rules and dashboards fit."""
    registry = CollectorRegistry()
    async with node("beta@localhost") as beta, serving(certs, monitor) as listener:
        registry.register(NodeCollector(beta, monitor))
        async with connected(listener, certs):
            certs.update(ca.issue("localhost"))
            await until(monitor, streams=1)
            page = generate_latest(registry).decode()
    samples = {
        (sample.name.removeprefix("trionode_"), frozenset(sample.labels.items()) - {("node", "web")}): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.labels["node"] == "web"
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("up") == 1
    assert value("connections", manager="*", generation="1") == 1
    assert value("connections", manager="*", generation="2") == 0
    assert value("connections_superseded", manager="*") == 1
    assert value("generation", manager="*") == 2
    assert value("handshakes_total", side="accept", outcome="established") == 1
    assert value("handshakes_total", side="accept", outcome="refused") == 0
    assert value("handshakes_pending", side="accept") == 0
    assert value("handshake_seconds_count", side="accept", outcome="established") == 1
    assert value("source_trouble", manager="*") == 0
    assert {name for name, _ in samples if "certificate" in name} == {
        "certificate_not_after_seconds",
        "certificate_not_before_seconds",
    }
    assert not any("dial" in dict(labels).values() for _, labels in samples)


async def test_names_in_metrics_are_told_apart(monitor: ServerMonitor) -> None:
    """Two monitors of one name are refused."""
    with pytest.raises(ValueError, match="same name"):
        NodeCollector(monitor, ServerMonitor("web"))
