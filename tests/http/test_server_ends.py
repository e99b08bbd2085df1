"""How `serve_asgi` begins and ends: the application's lifespan, graceful stops, and what does not end in time."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio
import trio.testing
from hypercorn.config import Config

from asgi_apps import Recorder, answer, serving
from trionode import CertAuthManager, HandshakeError, open_tls_stream, wrap_client_stream
from trionode.http import HTTPTransport, LifespanError, serve_asgi
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for either side."""
    return CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)


def client_of(certs: CertAuthManager, *, http2: bool = False) -> httpx2.AsyncClient:
    """A client."""
    return httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs, http2=http2))


async def serve_to_the_end(app: Any, certs: CertAuthManager, ended: trio.Event, **options: Any) -> None:
    """`serve_asgi`, and then an event."""
    await serve_asgi(app, 0, host="127.0.0.1", cert_manager=certs, **options)
    ended.set()


# Lifespan -----------------------------------------------------------------------------------------------------------


async def test_the_lifespan_is_around_everything(certs: CertAuthManager) -> None:
    """The application starts before anything is accepted, and stops after the last request; its state is copied."""
    app = Recorder()
    async with serving(app, certs) as port, client_of(certs) as client:
        assert app.lifespan == ["lifespan.startup"]
        assert (await client.get(f"https://localhost:{port}/")).json()["state"] == "from the start"
        assert app.lifespan == ["lifespan.startup"]
    assert app.lifespan == ["lifespan.startup", "lifespan.shutdown"]


def lifespan(behave: Callable[..., Awaitable[None]]) -> Any:
    """An application with a lifespan of a certain kind."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await behave(receive, send)
        else:
            await answer(send, b"hello")

    return app


async def raise_at_once(receive: Any, send: Any) -> None:
    """It knows no lifespans."""
    msg = "only http here"
    raise RuntimeError(msg)


async def return_at_once(receive: Any, send: Any) -> None:
    """Likewise."""


async def return_silently(receive: Any, send: Any) -> None:
    """It listens, and says nothing."""
    await receive()


@pytest.mark.parametrize("behave", [raise_at_once, return_at_once, return_silently])
async def test_an_application_without_a_lifespan(certs: CertAuthManager, behave: Any) -> None:
    """One that does not know the protocol is served."""
    async with serving(lifespan(behave), certs) as port, client_of(certs) as client:
        assert (await client.get(f"https://localhost:{port}/")).text == "hello"


async def raise_at_start(receive: Any, send: Any) -> None:
    """It fails to start."""
    await receive()
    msg = "no database"
    raise LookupError(msg)


async def say_failed(receive: Any, send: Any) -> None:
    """It says so."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "a traceback\n  of lines\nLookupError: no database"})


async def say_failed_and_raise(receive: Any, send: Any) -> None:
    """It says so and raises, as Starlette does."""
    await say_failed(receive, send)
    msg = "no database"
    raise LookupError(msg)


async def talk_nonsense(receive: Any, send: Any) -> None:
    """It answers something else."""
    await receive()
    await send({"type": "lifespan.nonsense"})


@pytest.mark.parametrize(
    ("behave", "words", "cause"),
    [
        (raise_at_start, "its lifespan raised LookupError: no database", LookupError),
        (say_failed, "could not start: LookupError: no database$", type(None)),
        (say_failed_and_raise, "could not start: LookupError: no database$", LookupError),
        (talk_nonsense, "lifespan.nonsense", RuntimeError),
    ],
)
async def test_an_application_that_cannot_start(
    certs: CertAuthManager, behave: Any, words: str, cause: type[Any]
) -> None:
    """One bare `LifespanError`, with its reason; nothing is left open, and the manager is free."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(PATIENCE), pytest.raises(LifespanError, match=words) as caught:
        await serve_asgi(lifespan(behave), cert_manager=certs, listeners=[listener])
    assert isinstance(caught.value.__cause__, cause)
    assert ("a traceback" in caught.value.message) is (behave in (say_failed, say_failed_and_raise))
    assert listener.socket.fileno() == -1
    certs.set_server_name(None)


async def wait_for_ever(receive: Any, send: Any) -> None:
    """It never answers."""
    await trio.sleep_forever()


async def test_an_application_that_takes_too_long(certs: CertAuthManager) -> None:
    """Starting is bounded by hypercorn's `startup_timeout`."""
    config = Config()
    config.startup_timeout = 0.05
    with trio.fail_after(PATIENCE), pytest.raises(LifespanError, match=r"did not start within 0\.05 s"):
        await serve_asgi(lifespan(wait_for_ever), 0, cert_manager=certs, config=config)


async def test_cancelled_while_the_application_starts(certs: CertAuthManager) -> None:
    """It is cancelled with it, at once."""
    with trio.fail_after(PATIENCE), trio.move_on_after(0.05) as scope:
        await serve_asgi(lifespan(wait_for_ever), 0, cert_manager=certs)
    assert scope.cancelled_caught
    certs.set_server_name(None)


async def fail_to_stop(receive: Any, send: Any) -> None:
    """It says that it could not."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "the database is gone"})


async def stop_never(receive: Any, send: Any) -> None:
    """It takes too long."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await trio.sleep_forever()


async def die(receive: Any, send: Any) -> None:
    """Its lifespan ends in the middle."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await trio.sleep(0.01)
    msg = "in the middle"
    raise LookupError(msg)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (fail_to_stop, "could not stop in order: the database is gone"),
        (stop_never, "did not stop within 0.1 s"),
        (die, "has ended by an exception"),
    ],
)
async def test_a_lifespan_that_goes_wrong_later(
    certs: CertAuthManager, behave: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; requests are served all the same, and the end is bounded."""
    async with serving(lifespan(behave), certs, grace=0.1) as port, client_of(certs) as client:
        await trio.sleep(0.05)
        assert (await client.get(f"https://localhost:{port}/")).text == "hello"
    assert any(words in record.getMessage() for record in caplog.records if record.name == "trionode.http")


# Graceful stops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_graceful_stop(certs: CertAuthManager, how: str, *, http2: bool) -> None:
    """A request under way finishes, idle connections are closed, nothing new gets in; then the application stops."""
    app, ended = Recorder(), trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as servers:
            [listener] = await servers.start(
                lambda task_status: serve_to_the_end(app, certs, ended, task_status=task_status)
            )
            address = listener.socket.getsockname()
            url = f"https://localhost:{address[1]}"
            async with client_of(certs, http2=http2) as busy, client_of(certs, http2=http2) as idle:
                await idle.get(url)
                async with busy.stream("GET", f"{url}/held") as response:
                    await app.held.wait()
                    if how == "close":
                        await listener.aclose()
                    else:
                        servers.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await trio.testing.wait_all_tasks_blocked(0.05)
                        with pytest.raises(HandshakeError):
                            await open_tls_stream(*address, cert_manager=certs)
                        network = _network_stream(idle)
                        assert network.get_extra_info("is_readable")
                        assert app.lifespan == ["lifespan.startup"]
                        app.release.set()
                        assert (await response.aread()).endswith(b"begun done")
    assert ended.is_set() is (how == "close")
    assert app.lifespan == ["lifespan.startup", "lifespan.shutdown"]
    assert app.cancelled == 0
    certs.set_server_name(None)


def _network_stream(client: httpx2.AsyncClient) -> Any:
    transport: Any = client._transport
    [pool] = transport._pools.values()
    [connection] = pool._pool.connections
    return connection._connection._connection._network_stream


async def test_a_request_that_does_not_finish_in_time(certs: CertAuthManager) -> None:
    """It is cancelled at the end of the grace, and its client sees a broken response."""
    app, ended = Recorder(), trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as servers:
            [listener] = await servers.start(
                lambda task_status: serve_to_the_end(app, certs, ended, grace=0.2, task_status=task_status)
            )
            url = f"https://localhost:{listener.socket.getsockname()[1]}"
            async with client_of(certs) as client, client.stream("GET", f"{url}/held") as response:
                await app.held.wait()
                began = trio.current_time()
                await listener.aclose()
                with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
                    await response.aread()
                await ended.wait()
                assert 0.2 <= trio.current_time() - began < 5
    assert app.cancelled == 1
    assert app.lifespan == ["lifespan.startup", "lifespan.shutdown"]


async def shutdown_forever(receive: Any, send: Any) -> None:
    """Starts, and does not stop."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await trio.sleep_forever()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("what", ["request", "flood", "lifespan"])
async def test_cancelled_while_it_stops(certs: CertAuthManager, what: str, *, together: bool) -> None:
    """To close the listeners and to cancel then is to have waited enough: what is left is cancelled at once."""
    app: Any = lifespan(shutdown_forever) if what == "lifespan" else Recorder()
    ended = trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as servers:
            [listener] = await servers.start(
                lambda task_status: serve_to_the_end(app, certs, ended, grace=3600, task_status=task_status)
            )
            address = listener.socket.getsockname()
            async with await open_tls_stream(*address, cert_manager=certs, server_name="localhost") as stream:
                if what != "lifespan":
                    path = b"/held" if what == "request" else b"/large"
                    await stream.send_all(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
                    await app.held.wait()
                listener.socket.close()
                if not together:
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    assert not ended.is_set()
                servers.cancel_scope.cancel()
    assert what != "request" or app.cancelled == 1
    certs.set_server_name(None)  # it is in use by nothing


async def test_a_client_that_does_not_read(certs: CertAuthManager) -> None:
    """A send that is stuck ends with the grace, although hypercorn shields it."""
    app, ended = Recorder(), trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as servers:
            [listener] = await servers.start(
                lambda task_status: serve_to_the_end(app, certs, ended, grace=0.2, task_status=task_status)
            )
            address = listener.socket.getsockname()
            async with await open_tls_stream(*address, cert_manager=certs, server_name="localhost") as stream:
                await stream.send_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await app.held.wait()
                await trio.sleep(0.1)
                await listener.aclose()
                await ended.wait()


async def test_a_client_that_does_not_read_in_memory(certs: CertAuthManager) -> None:
    """The same over a transport that cannot be closed at once."""
    network = MemoryNetwork()
    [listener] = await network.listen("localhost", 443)
    app = Recorder()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_asgi, app, cert_manager=certs, listeners=[listener], grace=0.1))
            raw = await network.connect("localhost", 443)
            stream = await wrap_client_stream(raw, "localhost", cert_manager=certs)
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await app.held.wait()
            listener.close()
        await trio.aclose_forcefully(stream)
    assert not network.open_streams


async def test_a_client_that_leaves_is_gone_at_once(certs: CertAuthManager) -> None:
    """A connection that its client ends does not linger for hypercorn's idle timeout."""
    config = Config()
    config.keep_alive_timeout = 10 * PATIENCE
    config.errorlog = logging.getLogger("tests.hypercorn")
    async with serving(Recorder(), certs, config=config) as port:
        for closes in (True, False):
            stream = await open_tls_stream("localhost", port, cert_manager=certs)
            await stream.send_all(REQUEST)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            assert certs.live_generations == {1: 1}
            if closes:
                await stream.aclose()
            else:
                await trio.aclose_forcefully(stream._session_stream.transport_stream)
            await certs.drained(1)


async def test_a_connection_that_does_nothing(certs: CertAuthManager) -> None:
    """It is closed after hypercorn's idle timeout, before and after a request, whatever it drips."""
    config = Config()
    config.keep_alive_timeout = 0.2
    async with serving(Recorder(), certs, config=config) as port:
        for words in (b"", b"GET / HT", REQUEST):
            async with await open_tls_stream("localhost", port, cert_manager=certs) as stream:
                if words:
                    await stream.send_all(words)
                received = b"".join([piece async for piece in stream])
                assert received.startswith(b"HTTP/1.1 200") is (words == REQUEST)


async def test_a_handshake_under_way_when_it_stops(certs: CertAuthManager) -> None:
    """It may finish, and its connection is closed then without a request."""
    app, ended = Recorder(), trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as servers:
            [listener] = await servers.start(
                lambda task_status: serve_to_the_end(app, certs, ended, task_status=task_status)
            )
            raw = await trio.open_tcp_stream(*listener.socket.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.01)
            await listener.aclose()
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
                assert await stream.receive_some() == b""
            await ended.wait()
