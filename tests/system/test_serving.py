"""How servers begin and end: `serve_tls_listeners` on every kind of listener, handlers that outlive it, graceful stops.

What a server does for a connection is in test_streams.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    CertAuthManager,
    CertificateError,
    FixedAtStartupError,
    HandshakeError,
    TLSStream,
    open_tls_stream,
    serve_tls,
    serve_tls_listeners,
    wrap_client_stream,
)
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from pathlib import Path

    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30
DAY = timedelta(days=1)


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A server's manager, and a client's."""
    return CertAuthManager(ca.issue("localhost", "127.0.0.1"), root_cas=ca.pool)


async def echo(stream: TLSStream) -> None:
    """Send everything back; a client that breaks off is no news."""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def check_echo(stream: TLSStream) -> None:
    """An echo server is at the other end."""
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"


async def start_tls(nursery: trio.Nursery, handler: Any, certs: CertAuthManager, **options: Any) -> Any:
    """Start `serve_tls` on a free port; the socket that it listens on."""
    [listener] = await nursery.start(partial(serve_tls, handler, 0, host="127.0.0.1", cert_manager=certs, **options))
    return listener


def in_use(manager: CertAuthManager) -> bool:
    """Whether a manager's pools are fixed."""
    try:
        manager.set_server_name(manager.server_name)
    except FixedAtStartupError:
        return True
    return False


# Listeners ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there are no UNIX sockets here")
async def test_a_unix_socket(certs: CertAuthManager, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TLS over a UNIX socket; its clients have no address, and what fails there is logged under its path."""
    path = tmp_path / "ab"  # two characters, which are no host and port
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    served: list[TLSStream] = []

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(sock)
            assert [listener] == await nursery.start(
                partial(serve_tls_listeners, handler, [listener], cert_manager=certs)
            )
            raw = await trio.open_unix_socket(path)
            async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
                await check_echo(stream)
                assert served[0].peer_address is None
            async with await trio.open_unix_socket(path) as raw:
                await raw.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await raw.send_eof()
                await raw.receive_some()
            await sock_closed(listener)
    assert any(str(path) in text and "plain HTTP" in text for text in caplog.messages)


async def test_a_handler_knows_where_its_client_is(certs: CertAuthManager) -> None:
    """`peer_address` is the (host, port) that the client connected from, also once its connection is gone."""
    served: list[TLSStream] = []
    host = "127.0.0.1"

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(serve_tls, handler, 0, host=host, cert_manager=certs))
            port = listener.socket.getsockname()[1]
            async with await open_tls_stream(host, port, server_name="localhost", cert_manager=certs) as stream:
                await check_echo(stream)
                transport = stream.transport_stream
                assert isinstance(transport, trio.SocketStream)
                ours = transport.socket.getsockname()[:2]
                assert stream.peer_address == (host, port)
                assert served[0].peer_address == ours
            await listener.aclose()
        assert served[0].peer_address == ours


async def sock_closed(listener: trio.abc.AsyncResource) -> None:
    """Close a listener, as a program does to stop."""
    await listener.aclose()


async def test_the_memory_network(certs: CertAuthManager) -> None:
    """The listeners of a `Transport` will do; nothing real is opened, and nothing is left."""
    network = MemoryNetwork()
    [listener] = await network.listen("localhost", 443)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_tls_listeners, echo, [listener], cert_manager=certs))
            raw = await network.connect("localhost", 443)
            async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
                await check_echo(stream)
            listener.close()
    assert not network.open_streams


async def test_several_listeners_of_several_kinds(certs: CertAuthManager) -> None:
    """They are served alike, and serving ends with the last of them."""
    network = MemoryNetwork()
    [in_memory] = await network.listen("localhost", 443)
    with trio.fail_after(PATIENCE), socket.create_server(("127.0.0.1", 0)) as given:
        on_port = trio.SocketListener(trio.socket.from_stdlib_socket(given.dup()))
        ended = trio.Event()

        async def serve(task_status: trio.TaskStatus[object]) -> None:
            await serve_tls_listeners(echo, [in_memory, on_port], cert_manager=certs, task_status=task_status)
            ended.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            raw = await network.connect("localhost", 443)
            async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
                await check_echo(stream)
            in_memory.close()
            async with await open_tls_stream(*given.getsockname(), cert_manager=certs) as stream:
                await check_echo(stream)
            assert not ended.is_set()
            await on_port.aclose()
            await ended.wait()


class Failing(trio.abc.Listener[trio.abc.Stream]):
    """A listener of a program's own, which fails now and then."""

    def __init__(self, *outcomes: trio.abc.Stream | OSError) -> None:
        self.outcomes = list(outcomes)
        self.closed = False

    async def accept(self) -> trio.abc.Stream:
        """The next outcome; when they are used up, as if it had been closed."""
        await trio.lowlevel.checkpoint()
        if not self.outcomes:
            raise trio.ClosedResourceError
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_a_listener_that_fails_now_and_then(
    certs: CertAuthManager, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An accept error ends nothing, whatever kind of listener it is; it is logged, and so is its end."""
    near, far = trio.testing.memory_stream_pair()
    listener = Failing(OSError(errno.EMFILE, "as the system says"), far)
    with trio.fail_after(PATIENCE), caplog.at_level(logging.WARNING, "trionode.acceptor"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_tls_listeners, echo, [listener], cert_manager=certs))
            async with await wrap_client_stream(near, "localhost", cert_manager=certs) as stream:
                await check_echo(stream)
    assert listener.closed
    assert ["as the system says" in text or "works again" in text for text in caplog.messages] == [True, True]


async def test_listeners_are_closed_however_it_ends(ca: CertificateAuthority, certs: CertAuthManager) -> None:
    """They were given away: an argument that is refused, an unusable manager and a cancellation close them, too."""
    now = datetime.now(UTC)
    expired = CertAuthManager(ca.issue("localhost", not_before=now - 2 * DAY, not_after=now - DAY))
    attempts: list[tuple[type[Exception], dict[str, Any]]] = [
        (CertificateError, {"cert_manager": expired}),
        (ValueError, {"cert_manager": certs, "alpn": [""]}),
        (ValueError, {"cert_manager": certs, "max_handshakes": 0}),
        (ValueError, {"cert_manager": certs, "max_handshakes_per_address": 0}),
    ]
    with trio.fail_after(PATIENCE):
        for error, options in attempts:
            listener = Failing()
            with pytest.raises(error):
                await serve_tls_listeners(echo, [listener], **options)
            assert listener.closed
        with pytest.raises(ValueError, match="at least one listener"):
            await serve_tls_listeners(echo, [], cert_manager=certs)
        [listening] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with trio.move_on_after(0.01):
            await serve_tls_listeners(echo, [listening], cert_manager=certs)
        assert listening.socket.fileno() == -1


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_closing_the_listeners_is_a_graceful_stop(certs: CertAuthManager) -> None:
    """Closed, a server accepts no more; its streams go on; when the last is done it returns and frees its manager."""
    ended = trio.Event()
    served = trio.Event()

    async def handler(stream: TLSStream) -> None:
        served.set()
        await echo(stream)

    async def serve(task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        await serve_tls(handler, 0, host="127.0.0.1", cert_manager=certs, task_status=task_status)
        ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(serve)
            address = listener.socket.getsockname()
            async with await open_tls_stream(*address, cert_manager=certs) as stream:
                await served.wait()
                await listener.aclose()
                with pytest.raises(HandshakeError):
                    await open_tls_stream(*address, cert_manager=certs)
                await check_echo(stream)
                assert not ended.is_set()
                assert in_use(certs)
            await ended.wait()
            assert not in_use(certs)


async def test_a_handshake_under_way_outlives_the_listeners(certs: CertAuthManager) -> None:
    """Closing the listeners does not cancel handshakes in progress."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listener = await start_tls(nursery, echo, certs)
            raw = await trio.open_tcp_stream(*listener.socket.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.01)
            await listener.aclose()
            async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
                await check_echo(stream)


async def test_handlers_in_a_nursery_of_the_callers(certs: CertAuthManager) -> None:
    """They outlive serving, which ends at once with its listeners; the manager is in use until the last is done."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as handlers:
            async with trio.open_nursery() as servers:
                listener = await start_tls(servers, echo, certs, handler_nursery=handlers)
                stream = await open_tls_stream(*listener.socket.getsockname(), cert_manager=certs)
                await check_echo(stream)
                await listener.aclose()
            assert in_use(certs)
            await check_echo(stream)
            await stream.aclose()
        assert not in_use(certs)


async def test_cancelling_leaves_handlers_in_the_callers_nursery_alone(certs: CertAuthManager) -> None:
    """Cancelled, it closes its listeners; handlers are the caller's business."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as handlers:
            async with trio.open_nursery() as servers:
                listener = await start_tls(servers, echo, certs, handler_nursery=handlers)
                stream = await open_tls_stream(*listener.socket.getsockname(), cert_manager=certs)
                await check_echo(stream)
                servers.cancel_scope.cancel()
            assert listener.socket.fileno() == -1
            await check_echo(stream)
            handlers.cancel_scope.cancel()
        assert not in_use(certs)
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_a_handler_that_fails_takes_its_own_nursery_down(certs: CertAuthManager) -> None:
    """As with Trio, an exception of a handler comes out of the nursery that it runs in; the manager is free then."""

    async def fail(stream: TLSStream) -> None:
        await stream.receive_some()
        msg = "as the handler says"
        raise LookupError(msg)

    with trio.fail_after(PATIENCE):
        for own in (True, False):
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012, ASYNC401 -- it comes out of the nursery
                async with trio.open_nursery() as outer:
                    options = {} if own else {"handler_nursery": outer}
                    listener = await start_tls(outer, fail, certs, **options)
                    async with await open_tls_stream(*listener.socket.getsockname(), cert_manager=certs) as stream:
                        await stream.send_all(b"x")
                        await trio.sleep_forever()
            assert caught.group_contains(LookupError, match="as the handler says")
            assert not in_use(certs)
            assert listener.socket.fileno() == -1


async def test_our_own_failure_in_a_handshake_costs_one_connection(
    certs: CertAuthManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is logged in full, and the server serves on."""
    failures = [LookupError("as nobody foresaw")]
    receive = type(certs.contexts).receive

    async def sometimes(channel: Any) -> Any:
        if failures:
            raise failures.pop()
        return await receive(channel)

    client = CertAuthManager(certs.key_pair, root_cas=certs.root_cas)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listener = await start_tls(nursery, echo, certs)
            address = listener.socket.getsockname()
            async with await trio.open_tcp_stream(*address) as raw:
                monkeypatch.setattr(type(certs.contexts), "receive", sometimes)
                await raw.send_all(b"\x16")
                assert await raw.receive_some() == b""
            async with await open_tls_stream(*address, cert_manager=client) as stream:
                await check_echo(stream)
            nursery.cancel_scope.cancel()
    [record] = [record for record in caplog.records if record.exc_info]
    assert "unexpected way" in record.getMessage()
