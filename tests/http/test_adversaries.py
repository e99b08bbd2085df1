"""Clients that leave, drip, flood or do not read, and applications that answer early or never: all of it ends."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h2.connection
import httpx2
import pytest
import trio
import trio.testing
from hypercorn.config import Config

from asgi_apps import Recorder, answer, body_of, serving
from http_peers import server_files
from trionode import CertAuthManager, open_tls_stream
from trionode.http import HTTPTransport, server_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from trionode import TLSStream
    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30

#: Much more than any buffer on the way holds. Bytes.
LARGE = 3_000_000

both_versions = pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for either side."""
    return CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)


def client_of(certs: CertAuthManager, *, http2: bool) -> httpx2.AsyncClient:
    """A client."""
    return httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs, http2=http2), timeout=PATIENCE)


def requests(handle: Callable[[Any, Any], Awaitable[None]]) -> Any:
    """An application that knows requests and WebSockets only."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await handle(receive, send)

    return app


@pytest.fixture
def no_errors(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing is logged as an error meanwhile."""
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


# Answers before the end of the request --------------------------------------------------------------------------------


@both_versions
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.usefixtures("no_errors")
async def test_an_answer_before_the_end_of_the_request(certs: CertAuthManager, *, http2: bool, late: bool) -> None:
    """The client gets it, however much of the request was not taken, and nothing is left.

    Over HTTP/1.1 the connection ends with it, and what is still sent then may drown it (RFC 9112 section 9.6).
    """

    async def refuse(receive: Any, send: Any) -> None:
        if late:  # until hypercorn's reader cannot go on
            await trio.sleep(0.1)
        await answer(send, b"too large", status=413)

    async with serving(requests(refuse), certs) as port:
        async with client_of(certs, http2=http2) as client:
            for size in (10, LARGE, 10):
                try:
                    response = await client.post(f"https://localhost:{port}/", content=bytes(size))
                    assert (response.status_code, response.text) == (413, "too large")
                except httpx2.TransportError:
                    assert not http2
        await certs.drained(1)


@pytest.mark.usefixtures("no_errors")
async def test_a_request_that_goes_on_for_ever_after_its_answer(certs: CertAuthManager) -> None:
    """Its connection is cut once it was that for as long as an idle connection may be."""
    config = Config()
    config.keep_alive_timeout = 0.1

    async def refuse(receive: Any, send: Any) -> None:
        await answer(send, b"too large", status=413)

    async with serving(requests(refuse), certs, config=config) as port:
        client, stream = await http2_request(certs, port)
        async with stream:

            def more() -> bytes:
                client.send_data(1, b"x")
                return client.data_to_send()

            await until_cut(stream, more)
        await certs.drained(1)


@both_versions
@pytest.mark.usefixtures("no_errors")
async def test_an_application_that_fails_before_the_end_of_the_request(
    certs: CertAuthManager, caplog: pytest.LogCaptureFixture, *, http2: bool
) -> None:
    """The client gets its 500, and the log the reason, alone."""

    async def fail(receive: Any, send: Any) -> None:
        msg = "as the application says"
        raise LookupError(msg)

    async with serving(requests(fail), certs) as port:
        async with client_of(certs, http2=http2) as client:
            try:
                assert (await client.post(f"https://localhost:{port}/", content=bytes(LARGE))).status_code == 500
            except httpx2.TransportError:
                assert not http2  # as above
        await certs.drained(1)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "as the application says" in str(record.exc_info)
    caplog.clear()


async def until_cut(stream: TLSStream, more: Callable[[], bytes], *, pause: float = 0.01) -> None:
    """Send more and more until the connection is broken."""
    try:
        while True:
            await stream.send_all(more())
            await trio.sleep(pause)
    except trio.BrokenResourceError:
        pass


async def http2_request(certs: CertAuthManager, port: int) -> tuple[h2.connection.H2Connection, TLSStream]:
    """A connection with a POST under way on its stream 1."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    fields = [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
    client.send_headers(1, fields)
    stream = await open_tls_stream("localhost", port, cert_manager=certs, alpn=["h2"])
    await stream.send_all(client.data_to_send())
    return client, stream


# Clients that leave ---------------------------------------------------------------------------------------------------


async def never_ending(receive: Any, send: Any) -> None:
    """It sends for ever, and looks at nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(2**18), "more_body": True})


async def late_answer(receive: Any, send: Any) -> None:
    """It answers when nobody is there any more, several times over."""
    await trio.sleep(0.2)
    await answer(send, bytes(100))
    assert (await receive())["type"] == "http.disconnect"
    assert (await receive())["type"] == "http.disconnect"


async def until_disconnect(receive: Any, send: Any) -> None:
    """It waits for the end of its client, as applications do that push events."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (await receive())["type"] != "http.disconnect":
        pass


async def reader(receive: Any, send: Any) -> None:
    """It reads all, and echoes how much that was."""
    await answer(send, b"%d" % len(await body_of(receive)))


@both_versions
@pytest.mark.parametrize("politely", [True, False], ids=["close_notify", "cut"])
@pytest.mark.parametrize("size", [0, 1000, LARGE])
@pytest.mark.parametrize("handle", [never_ending, late_answer, until_disconnect, reader])
@pytest.mark.usefixtures("no_errors")
async def test_a_client_that_leaves_takes_its_connection_along(
    certs: CertAuthManager, handle: Any, size: int, monkeypatch: pytest.MonkeyPatch, *, http2: bool, politely: bool
) -> None:
    """Whatever its request was at, and its application does: no task is left, and nothing is an error."""
    monkeypatch.setattr(server_connection, "_STUCK", 0.2)
    async with serving(requests(handle), certs) as port:
        stream = await open_tls_stream("localhost", port, cert_manager=certs, alpn=["h2" if http2 else "http/1.1"])
        with trio.move_on_after(0.05):
            if http2:
                await upload(stream, size)
            else:
                head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (size + 1)
                await stream.send_all(head + bytes(size))
            await trio.sleep_forever()
        if politely:
            await stream.aclose()
        else:
            await trio.aclose_forcefully(stream.transport_stream)
        await certs.drained(1)


async def upload(stream: TLSStream, size: int) -> None:
    """A POST over HTTP/2 whose end does not come."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")])
    while size:
        window = min(client.local_flow_control_window(1), client.max_outbound_frame_size, size)
        if window:
            client.send_data(1, bytes(window))
            size -= window
        await stream.send_all(client.data_to_send())
        if not window:
            client.receive_data(await stream.receive_some())
    await stream.send_all(client.data_to_send())


async def test_a_websocket_whose_client_has_gone(certs: CertAuthManager) -> None:
    """Its application meets an `OSError`, as ASGI has it, when it goes on sending; nothing is left of it."""
    met: list[type[BaseException]] = []

    async def push(receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(2**16)})
        except OSError as exc:
            met.append(type(exc))
            raise

    async with serving(requests(push), certs) as port:
        stream = await open_tls_stream("localhost", port, cert_manager=certs)
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
        await trio.aclose_forcefully(stream.transport_stream)
        await certs.drained(1)
    assert [issubclass(kind, ConnectionResetError) for kind in met] == [True]


async def test_half_a_connection_is_still_answered(certs: CertAuthManager) -> None:
    """A client of HTTP/1.1 that sends close_notify right after its request, and reads on, gets its response."""
    async with serving(requests(reader), certs) as port:
        async with await open_tls_stream("localhost", port, cert_manager=certs) as stream:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
            await stream.send_eof()
            assert b"".join([piece async for piece in stream]).endswith(b"\r\n\r\n3")


# Floods and drips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "second head", "pings"])
async def test_a_client_that_drips(certs: CertAuthManager, kind: str) -> None:
    """Bytes that make no request do not keep a connection open."""
    config = Config()
    config.keep_alive_timeout = 0.1
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.ping(bytes(8))
    first = client.data_to_send()
    client.ping(bytes(8))
    ping = client.data_to_send()
    async with serving(Recorder(), certs, config=config) as port:
        alpn = "h2" if kind == "pings" else "http/1.1"
        async with await open_tls_stream("localhost", port, cert_manager=certs, alpn=[alpn]) as stream:
            if kind == "second head":
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            await stream.send_all(first if kind == "pings" else b"GET / HTTP/1.1\r\nX: ")
            await until_cut(stream, lambda: ping if kind == "pings" else b"x")


async def test_requests_that_are_reset_at_once(certs: CertAuthManager, caplog: pytest.LogCaptureFixture) -> None:
    """As in CVE-2023-44487: calls that go on are bounded per connection, and one with more of them is cut."""
    running = most = 0

    async def slow(receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep_forever()
        finally:
            running -= 1

    config = Config()
    config.h2_max_concurrent_streams = 10
    client = h2.connection.H2Connection()
    client.initiate_connection()
    fields = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
    async with serving(requests(slow), certs, config=config) as port:
        async with await open_tls_stream("localhost", port, cert_manager=certs, alpn=["h2"]) as stream:

            def more() -> bytes:
                number = client.get_next_available_stream_id()
                client.send_headers(number, fields, end_stream=True)
                client.reset_stream(number)
                return client.data_to_send()

            await until_cut(stream, more, pause=0)
        await certs.drained(1)
        assert (running, most) == (0, 20)
    assert any("resets them faster than they end" in text for text in caplog.messages)


@both_versions
async def test_an_application_that_never_reads(certs: CertAuthManager, *, http2: bool) -> None:
    """Its client cannot fill this side's memory: what it may send is bounded by windows and buffers."""
    done = trio.Event()
    sent = 0

    async def deaf(receive: Any, send: Any) -> None:
        await done.wait()
        await answer(send, b"done")

    async def content() -> AsyncIterator[bytes]:
        nonlocal sent
        while not done.is_set():
            sent += 2**16
            yield bytes(2**16)

    async def let_go() -> None:
        before = -1
        while sent != before:
            before = sent
            await trio.sleep(0.1)
        done.set()

    async with serving(requests(deaf), certs) as port, client_of(certs, http2=http2) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go)
            response = await client.post(f"https://localhost:{port}/", content=content())
    assert response.text == "done"
    assert sent < (2**20 if http2 else 2**25)  # over HTTP/1.1 the system's buffers are all there is


async def test_a_hundred_requests_at_once(certs: CertAuthManager) -> None:
    """Over one HTTP/2 connection, each waiting for all the others; there are no more at once."""
    here, everybody = 0, trio.Event()

    async def meet(receive: Any, send: Any) -> None:
        nonlocal here
        assert not await body_of(receive)
        here += 1
        if here == 100:
            everybody.set()
        await everybody.wait()
        await answer(send, b"met")

    async with serving(requests(meet), certs) as port, client_of(certs, http2=True) as client:

        async def ask() -> None:
            assert (await client.get(f"https://localhost:{port}/")).text == "met"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)  # that there is one connection
            for _ in range(100):
                nursery.start_soon(ask)
        assert certs.live_generations == {1: 1}
    assert here == 101


# Rotation -------------------------------------------------------------------------------------------------------------


@both_versions
async def test_a_rotation_in_the_middle_of_a_request(
    ca: CertificateAuthority, certs: CertAuthManager, *, http2: bool
) -> None:
    """An upload and its response go on under the certificate that they began with, the next request has the new one."""
    server_certs = CertAuthManager(ca.issue("localhost"))
    app = Recorder()

    async def content() -> AsyncIterator[bytes]:
        yield bytes(100_000)
        server_certs.update(ca.issue("localhost"))
        certs.update(ca.issue("localhost"))
        yield bytes(100_000)

    async with serving(app, server_certs) as port, client_of(certs, http2=http2) as client:
        told = (await client.post(f"https://localhost:{port}/", content=content())).json()
        assert (told["body"], told["generation"]) == (200_000, 1)
        assert (await client.get(f"https://localhost:{port}/")).json()["generation"] == 2
        await server_certs.drained(1)


# Truncation -----------------------------------------------------------------------------------------------------------


@contextmanager
def truncating(context: ssl.SSLContext, *, politely: bool) -> Iterator[int]:
    """A server of the standard library whose response has no length and ends with the connection."""

    def serve() -> None:
        raw, _ = listening.accept()
        raw.settimeout(PATIENCE)
        with context.wrap_socket(raw, server_side=True) as secured:
            secured.recv(2**16)
            secured.sendall(b"HTTP/1.1 200 OK\r\n\r\nall that there is")
            if politely:
                secured.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(PATIENCE)


@pytest.mark.parametrize("politely", [True, False], ids=["close_notify", "cut"])
async def test_a_response_that_is_cut_off(
    ca: CertificateAuthority, certs: CertAuthManager, tmp_path: Path, *, politely: bool
) -> None:
    """One that ends with the connection is whole with a close_notify, and an error without (RFC 9112 section 9.8)."""
    files = server_files(ca, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certfile"], files["keyfile"])
    with truncating(context, politely=politely) as port:
        async with client_of(certs, http2=False) as client:
            if politely:
                assert (await client.get(f"https://localhost:{port}/")).text == "all that there is"
            else:
                with pytest.raises(httpx2.ReadError, match="close_notify"):
                    await client.get(f"https://localhost:{port}/")
