"""`serve_tls` and `open_tls_stream`: serving any protocol with certificates that rotate, seen from outside.

The peers are programs that know nothing of us where that is the point (`openssl`, `curl`, http.client), and our own
dialer elsewhere. Rotation on the channel itself is in test_contexts and test_cert_manager.
"""

from __future__ import annotations

import errno
import http.client
import logging
import re
import shutil
import socket
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import h11
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CertManager,
    ClientAuth,
    FixedAtStartupError,
    HandshakeError,
    HandshakeTimeoutError,
    KeyPair,
    ListenError,
    PeerRejectedError,
    Stage,
    TLSContexts,
    TLSStream,
    TrionodeError,
    open_tls_stream,
    serve_tls,
)
from trionode._handshake.accept import accept_tls
from trionode._handshake.dial import dial_tls
from trionode._identity.certificate import fingerprint
from trionode._managers.manager import publisher_of
from trionode._transport.interfaces import ACCEPT_PAUSE, accept_forever
from trionode._transport.tcp import (
    TCPListener,
    open_listeners,
)
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trionode._tls.stream import SessionStream
    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30
HOSTS = ("localhost", "127.0.0.1", "::1")
DAY = timedelta(days=1)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program here")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl program here")


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 loopback here")


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A server's manager, at generation 1; it asks for no client certificate."""
    return CertAuthManager(ca.issue(*HOSTS), root_cas=ca.pool)


@pytest.fixture
def mutual(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for both sides of mutual TLS."""
    return CertAuthManager(
        ca.issue(*HOSTS),
        client_cas=ca.pool,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=ca.pool,
    )


@pytest.fixture
def ca_file(ca: CertificateAuthority, tmp_path: Path) -> Path:
    """The CA's certificate in a file."""
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


async def echo(stream: TLSStream) -> None:
    """Send everything back; a client that breaks off is no news."""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def tell_generation(stream: TLSStream) -> None:
    """Say which generation this connection took, and leave."""
    await stream.send_all(b"%d" % stream.generation)


@asynccontextmanager
async def serving(
    handler: Callable[[TLSStream], Awaitable[object]],
    manager: CertManager,
    *,
    host: str | None = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[int]:
    """Run `serve_tls` for the length of a block; its port."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(
                partial(serve_tls, handler, 0, cert_manager=manager, host=host, **options)
            )
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def ask(stream: TLSStream, question: bytes) -> bytes:
    """Say something to an echo server, and hear it."""
    await stream.send_all(question)
    return await stream.receive_some()


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end."""
    return b"".join([bytes(piece) async for piece in stream])


async def s_client(port: int) -> str:
    """The fingerprint of the certificate that a server presents to `openssl s_client`, which then leaves."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"]
    done = await trio.run_process(command, stdin=b"", capture_stdout=True, capture_stderr=True)
    found = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", done.stdout, re.DOTALL)
    assert found is not None
    return fingerprint(x509.load_pem_x509_certificate(found[0]))


# Rotation, seen from outside ----------------------------------------------------------------------------------------


@needs_openssl
async def test_the_first_connection_after_an_update_gets_the_new_certificate(
    ca: CertificateAuthority, certs: CertAuthManager
) -> None:
    """Once update() has returned, the very next client sees the new certificate, each time."""
    async with serving(echo, certs) as port:
        assert await s_client(port) == certs.key_pair.fingerprint
        for _ in range(5):
            key_pair = ca.issue(*HOSTS)
            certs.update(key_pair)
            assert await s_client(port) == key_pair.fingerprint


async def test_an_open_connection_keeps_its_certificate(ca: CertificateAuthority, certs: CertAuthManager) -> None:
    """A connection that was open before an update goes on working, and both ends still report the old generation."""
    served: list[TLSStream] = []

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    before = certs.key_pair
    client = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
    async with serving(handler, certs) as port:
        async with await open_tls_stream("localhost", port, cert_manager=client) as stream:
            assert await ask(stream, b"before") == b"before"
            certs.update(ca.issue(*HOSTS))
            client.update(ca.issue("localhost"))
            assert await ask(stream, b"after") == b"after"
            assert stream.peer_certificate == before.certificate
            assert stream.generation == served[0].generation == 1
            async with await open_tls_stream("localhost", port, cert_manager=client) as newer:
                assert await ask(newer, b"newer") == b"newer"
                assert newer.peer_certificate == certs.key_pair.certificate
                assert newer.generation == served[1].generation == 2


async def test_clients_never_get_less_than_was_published_when_they_came(
    ca: CertificateAuthority, certs: CertAuthManager
) -> None:
    """With updates going on all the time, no connection has an older generation than was published at its dial."""
    dialled = 0
    key_pairs = [ca.issue(*HOSTS) for _ in range(2)]
    async with serving(tell_generation, certs) as port, trio.open_nursery() as nursery:

        async def rotate() -> None:
            number = 0
            while True:
                certs.update(key_pairs[number % 2])
                number += 1
                await trio.lowlevel.checkpoint()

        async def dial() -> None:
            nonlocal dialled
            for _ in range(10):
                published = certs.generation
                async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
                    assert stream.generation >= published
                    assert int(await receive_all(stream)) >= published
                    dialled += 1

        nursery.start_soon(rotate)
        async with trio.open_nursery() as dialers:
            for _ in range(5):
                dialers.start_soon(dial)
        nursery.cancel_scope.cancel()
    assert dialled == 50
    assert certs.generation > 10


async def test_a_stream_knows_that_it_was_superseded(ca: CertificateAuthority, certs: CertAuthManager) -> None:
    """Either end, as soon as its own manager has published since; who waits for it is told then, and not before."""
    served: list[TLSStream] = []
    told: list[str] = []

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    async def wait(stream: TLSStream, name: str, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stream.wait_superseded()
        told.append(name)

    client = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
    async with serving(handler, certs) as port, trio.open_nursery() as nursery:
        async with await open_tls_stream("localhost", port, cert_manager=client) as stream:
            await ask(stream, b"hello")
            await nursery.start(wait, stream, "client")
            await nursery.start(wait, served[0], "server")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (stream.superseded, served[0].superseded, told) == (False, False, [])
            certs.update(ca.issue(*HOSTS))
            assert (stream.superseded, served[0].superseded) == (False, True)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert told == ["server"]
            client.rotate_trust(root_cas=ca.pool)
            assert stream.superseded
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert told == ["server", "client"]
            await stream.wait_superseded()


async def test_a_stream_knows_names_and_certificates(ca: CertificateAuthority, mutual: CertAuthManager) -> None:
    """What each side presented, and the server name that the client asked for; an address is not asked for."""
    served: list[TLSStream] = []

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    async with serving(handler, mutual) as port:
        client = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
        for name, sent in (("LOCALHOST", "localhost"), ("127.0.0.1", None), ("::1", None)):
            async with await open_tls_stream("127.0.0.1", port, cert_manager=client, server_name=name) as stream:
                await ask(stream, b"hello")
                assert stream.server_name == served[-1].server_name == sent
                assert stream.certificate == served[-1].peer_certificate == client.key_pair.certificate
                assert stream.peer_chain[:1] == mutual.key_pair.chain
                assert served[-1].certificate == stream.peer_certificate == mutual.key_pair.certificate
                assert served[-1].peer_chain[:1] == client.key_pair.chain


async def test_a_client_that_was_not_asked_has_presented_nothing(certs: CertAuthManager) -> None:
    """Its `certificate` is None, for the server has not seen it."""
    async with serving(echo, certs) as port:
        async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
            assert stream.certificate is None


async def test_contexts_of_no_manager_are_never_superseded(certs: CertAuthManager) -> None:
    """A stream on contexts that nothing publishes: its end is not waited for, but that wait can be cancelled."""
    contexts = TLSContexts.build(1, certs.key_pair, publisher_of(certs).policy)
    send, receive = trio.open_memory_channel[TLSContexts](1)
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(PATIENCE), send, receive:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_plain, far, certs.contexts)
            send.send_nowait(contexts)
            stream = TLSStream(await dial_plain(near, receive))
        assert not stream.superseded
        with trio.move_on_after(0.01) as scope:
            await stream.wait_superseded()
        assert scope.cancelled_caught
        await stream.aclose()


# Real programs ------------------------------------------------------------------------------------------------------


async def serve_http(stream: TLSStream) -> None:
    """HTTP/1.1 by h11, with keep-alive: every answer is the generation that the connection took."""
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(await stream.receive_some())
            except trio.BrokenResourceError:  # http.client and curl may leave without a close_notify
                return
        elif isinstance(event, h11.EndOfMessage):
            body = b"%d" % stream.generation
            answer = h11.Response(status_code=200, headers=[("content-length", str(len(body)))])
            for part in (answer, h11.Data(data=body), h11.EndOfMessage()):
                await stream.send_all(connection.send(part) or b"")
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return


@needs_curl
async def test_an_https_server_rotates_under_its_clients(
    ca: CertificateAuthority, certs: CertAuthManager, ca_file: Path
) -> None:
    """An h11 server on serve_tls: curl and http.client get the new certificate, a kept-alive connection stays."""
    context = ssl.create_default_context(cafile=ca_file)
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(PATIENCE)]
    command += ["--cacert", str(ca_file), "--write-out", " %{ssl_verify_result} %{http_version}"]

    async def curl(port: int) -> str:
        done = await trio.run_process([*command, f"https://localhost:{port}/"], capture_stdout=True)
        return done.stdout.decode()

    def get(connection: http.client.HTTPSConnection) -> bytes:
        connection.request("GET", "/")
        return connection.getresponse().read()

    async with serving(serve_http, certs, host="localhost", alpn=("http/1.1",)) as port:
        kept = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE)
        try:
            for generation in range(1, 4):
                assert await trio.to_thread.run_sync(get, kept) == b"1"
                assert await curl(port) == f"{generation} 0 1.1"
                fresh = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE)
                assert await trio.to_thread.run_sync(get, fresh) == b"%d" % generation
                assert isinstance(fresh.sock, ssl.SSLSocket)
                presented = fresh.sock.getpeercert(binary_form=True)
                assert presented is not None
                assert fingerprint(x509.load_der_x509_certificate(presented)) == certs.key_pair.fingerprint
                assert fresh.sock.selected_alpn_protocol() in ("http/1.1", None)
                fresh.close()
                certs.update(ca.issue(*HOSTS))
        finally:
            kept.close()


@needs_curl
async def test_curl_with_a_client_certificate(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, mutual: CertAuthManager, ca_file: Path, tmp_path: Path
) -> None:
    """A mutual-TLS web server: curl gets in with a certificate of the CA, and with none or another's it does not."""
    peers: list[x509.Certificate | None] = []

    async def handler(stream: TLSStream) -> None:
        peers.append(stream.peer_certificate)
        await serve_http(stream)

    async def curl(port: int, key_pair: KeyPair | None) -> tuple[str, str]:
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(PATIENCE)]
        command += ["--cacert", str(ca_file), f"https://localhost:{port}/"]
        if key_pair is not None:
            write_key_pair(key_pair, tmp_path / "client.pem", tmp_path / "client.key")
            command += ["--cert", str(tmp_path / "client.pem"), "--key", str(tmp_path / "client.key")]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        return done.stdout.decode(), done.stderr.decode()

    known, unknown = ca.issue("curl@localhost"), rogue_ca.issue("curl@localhost")
    async with serving(handler, mutual, host="localhost") as port:
        assert await curl(port, known) == ("1", "")
        output, complaints = await curl(port, None)
        assert output == ""
        assert "alert certificate required" in complaints
        output, complaints = await curl(port, unknown)
        assert output == ""
        assert "alert unknown ca" in complaints
    assert peers == [known.certificate]


# Serving ------------------------------------------------------------------------------------------------------------


async def test_started_gets_the_listeners(certs: CertAuthManager) -> None:
    """`serve_tls` gives `task_status` a list of Trio's socket listeners, as `trio.serve_tcp` does, accepting."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_tls, echo, 0, cert_manager=certs, host="127.0.0.1"))
            assert isinstance(listeners, list)
            [listener] = listeners
            assert isinstance(listener, trio.SocketListener)
            host, port = listener.socket.getsockname()
            assert host == "127.0.0.1"
            async with await open_tls_stream(host, port, cert_manager=certs) as stream:
                assert await ask(stream, b"hello") == b"hello"
            nursery.cancel_scope.cancel()


@needs_ipv6
@pytest.mark.parametrize("host", [None, "localhost"])
async def test_port_0_is_one_port_for_every_family(certs: CertAuthManager, host: str | None) -> None:
    """With port 0, all listeners of a server share one port, IPv4 and IPv6, and serve there."""
    with trio.fail_after(PATIENCE):
        # A resolver of our own: what `localhost` has differs from machine to machine.
        trio.socket.set_custom_hostname_resolver(BothLoopbacks() if host else None)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_tls, echo, 0, cert_manager=certs, host=host))
            assert {listener.socket.family for listener in listeners} == {socket.AF_INET, socket.AF_INET6}
            [port] = {listener.socket.getsockname()[1] for listener in listeners}
            for address in ("127.0.0.1", "::1"):
                async with await open_tls_stream(address, port, cert_manager=certs) as stream:
                    assert await ask(stream, b"hello") == b"hello"
            nursery.cancel_scope.cancel()


class Resolver(trio.abc.HostnameResolver):
    """A name service that a test makes up; Trio asks it for names only, not for addresses."""

    async def getaddrinfo(self, host: Any, port: Any, *hints: Any, **more_hints: Any) -> Any:
        """Find nothing."""
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        """Is not asked here."""
        raise NotImplementedError


class BothLoopbacks(Resolver):
    """Every name has both loopback addresses."""

    async def getaddrinfo(self, host: Any, port: Any, *hints: Any, **more_hints: Any) -> Any:
        """Find two addresses."""
        await trio.lowlevel.checkpoint()
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]


class Endless(Resolver):
    """A name service that never answers."""

    async def getaddrinfo(self, host: Any, port: Any, *hints: Any, **more_hints: Any) -> Any:
        """Take for ever."""
        await trio.sleep_forever()


async def test_a_handler_that_returns_closes_its_connection_cleanly(certs: CertAuthManager) -> None:
    """When the handler returns, its client gets everything and then a clean end."""
    async with serving(tell_generation, certs) as port:
        async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
            assert await receive_all(stream) == b"1"


async def test_a_handlers_exception_propagates(certs: CertAuthManager) -> None:
    """An exception in a handler comes out of serve_tls in a group, as with trio.serve_tcp, and everything is closed."""

    class CrashError(Exception):
        """What an application may raise."""

    async def handler(stream: TLSStream) -> None:
        await stream.receive_some()
        raise CrashError

    others: list[TLSStream] = []
    ports: list[int] = []
    with trio.fail_after(PATIENCE), pytest.RaisesGroup(CrashError, flatten_subgroups=True):
        async with serving(handler, certs) as port:
            ports.append(port)
            others.append(await open_tls_stream("127.0.0.1", port, cert_manager=certs))
            async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
                await stream.send_all(b"crash")
                await trio.sleep_forever()
    for stream in others:
        with trio.fail_after(PATIENCE):
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            await stream.aclose()
    with pytest.raises(HandshakeError) as caught:
        await open_tls_stream("127.0.0.1", ports[0], cert_manager=certs)
    assert caught.value.stage is Stage.CONNECT


async def test_failed_handshakes_end_only_themselves(
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    mutual: CertAuthManager,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nonsense, a cut, a refused client: each is one WARNING on trionode.acceptor, and the next client is served."""
    unknown = CertAuthManager(rogue_ca.issue("intruder@localhost"), root_cas=ca.pool)
    with caplog.at_level(logging.DEBUG, "trionode.acceptor"):
        async with serving(echo, mutual) as port:

            async def good() -> None:
                async with await open_tls_stream("127.0.0.1", port, cert_manager=mutual) as stream:
                    assert await ask(stream, b"hello") == b"hello"

            for words in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02"):
                async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
                    await raw.send_all(words)
                    await raw.send_eof()
                    await receive_all(raw)
                await good()
            async with await open_tls_stream("127.0.0.1", port, cert_manager=unknown) as stream:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await stream.receive_some()
                assert isinstance(caught.value.__cause__, PeerRejectedError)
            await good()
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            await good()
    records = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "trionode.acceptor"]
    assert [level for level, _ in records] == ["WARNING", "WARNING", "WARNING", "DEBUG"]
    http_text, cut, refused, silent = (text for _, text in records)
    assert "plain HTTP" in http_text
    assert "without a word" in cut
    for fact in (
        "CN=intruder@localhost",
        "URI:trionode://intruder@localhost",
        "CN=rogue CA",
        "valid from",
        "client_cas",
    ):
        assert fact in refused
    assert "left without a byte" in silent


async def test_stalled_clients_hold_nobody_up(certs: CertAuthManager) -> None:
    """Each handshake has a task of its own: clients that are silent, or stop half-way, cost the next one nothing."""
    async with serving(echo, certs) as port:
        stalled = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
        for number, raw in enumerate(stalled):
            if number % 2:
                await raw.send_all(b"\x16\x03\x01")
        async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
            assert await ask(stream, b"hello") == b"hello"
        for raw in stalled:
            await raw.aclose()


async def test_a_stalled_client_is_dropped_after_the_timeout(
    certs: CertAuthManager, caplog: pytest.LogCaptureFixture
) -> None:
    """`handshake_timeout` bounds the whole handshake, whatever the client does; the server serves on."""
    with caplog.at_level(logging.WARNING, "trionode.acceptor"):
        async with serving(tell_generation, certs, handshake_timeout=1) as port:

            async def stall(words: bytes) -> None:
                async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
                    await raw.send_all(words)
                    with suppress(trio.BrokenResourceError):
                        assert await receive_all(raw) == b""

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stall, b"")
                nursery.start_soon(stall, b"\x16")
            async with await open_tls_stream("127.0.0.1", port, cert_manager=certs) as stream:
                assert await receive_all(stream) == b"1"
    assert ["did not finish within handshake_timeout (1 s)" in text for text in caplog.messages] == [True, True]


async def test_cancelling_closes_listeners_and_connections(certs: CertAuthManager) -> None:
    """Cancelled, serve_tls closes its port, every connection, and those whose handshake is under way."""
    served: list[TLSStream] = []

    async def handler(stream: TLSStream) -> None:
        served.append(stream)
        await echo(stream)

    with trio.fail_after(PATIENCE):
        async with serving(handler, certs) as port:
            stream = await open_tls_stream("127.0.0.1", port, cert_manager=certs)
            assert await ask(stream, b"hello") == b"hello"
            under_way = await trio.open_tcp_stream("127.0.0.1", port)
            await under_way.send_all(b"\x16")
            await trio.testing.wait_all_tasks_blocked(0.01)
        for connection in (stream, under_way):
            with suppress(trio.BrokenResourceError):
                assert await connection.receive_some() == b""
            await connection.aclose()
        transport = served[0]._session_stream.transport_stream
        assert isinstance(transport, trio.SocketStream)
        assert transport.socket.fileno() == -1
        with pytest.raises(HandshakeError) as caught:
            await open_tls_stream("127.0.0.1", port, cert_manager=certs)
        assert caught.value.stage is Stage.CONNECT


# Before it serves ---------------------------------------------------------------------------------------------------


async def test_a_port_that_is_taken(certs: CertAuthManager) -> None:
    """A ListenError, bare, which is an OSError: what was tried, the system's words, what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            await serve_tls(echo, port, cert_manager=certs, host="127.0.0.1")
    error = caught.value
    assert isinstance(error, OSError)
    assert isinstance(error, TrionodeError)
    assert error.address == ("127.0.0.1", port)
    assert error.tried == (("127.0.0.1", port),)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EADDRINUSE
    assert str(error).startswith(f"cannot listen on 127.0.0.1, tried port {port}: ")
    assert "Choose another port" in str(error)


async def test_an_address_that_is_not_ours(certs: CertAuthManager) -> None:
    """An address of another machine (RFC 5737) is a ListenError with the system's words."""
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1, tried port 0: ") as caught:
        await serve_tls(echo, 0, cert_manager=certs, host="192.0.2.1")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRNOTAVAIL


async def test_a_host_that_does_not_resolve(certs: CertAuthManager) -> None:
    """A name that does not resolve is a ListenError that says so and what to give instead."""
    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(ListenError, match="the name does not resolve") as caught:
        await serve_tls(echo, 0, cert_manager=certs, host="nowhere.example")
    assert isinstance(caught.value.__cause__, socket.gaierror)
    assert caught.value.address == ("nowhere.example", 0)
    assert caught.value.tried == ()
    assert "host='0.0.0.0'" in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, 100_000])
async def test_a_port_that_is_none(certs: CertAuthManager, port: int) -> None:
    """A number that can be no port is a ValueError, to listen on as well as to connect to."""
    with pytest.raises(ValueError, match=f"port must be an integer from 0 to 65535, not {port}"):
        await serve_tls(echo, port, cert_manager=certs, host="127.0.0.1")
    with pytest.raises(ValueError, match=f"port must be an integer from 1 to 65535, not {port}"):
        await open_tls_stream("127.0.0.1", port, cert_manager=certs)


@pytest.mark.parametrize("alpn", [("",), ("x" * 256,), ("é",), ("h2", "")])
async def test_a_protocol_that_is_none(certs: CertAuthManager, alpn: tuple[str, ...]) -> None:
    """What cannot go on the wire as an application protocol is a ValueError on both sides, before anything happens."""
    with pytest.raises(ValueError, match="1 to 255 ASCII characters"):
        await serve_tls(echo, 0, cert_manager=certs, host="127.0.0.1", alpn=alpn)
    with pytest.raises(ValueError, match="1 to 255 ASCII characters"):
        await open_tls_stream("127.0.0.1", 1, cert_manager=certs, alpn=alpn)


async def test_one_protocol_is_not_a_sequence_of_them(certs: CertAuthManager) -> None:
    """`alpn="h2"` would offer `h` and `2`; it is a TypeError that says what to write."""
    with pytest.raises(TypeError, match=r"put it in a list, \['h2'\]"):
        await serve_tls(echo, 0, cert_manager=certs, host="127.0.0.1", alpn="h2")
    with pytest.raises(TypeError, match=r"put it in a list, \['h2'\]"):
        await open_tls_stream("127.0.0.1", 1, cert_manager=certs, alpn="h2")


async def test_a_host_that_is_none(certs: CertAuthManager) -> None:
    """A host that is neither a name nor an address is a ValueError."""
    with pytest.raises(ValueError, match="host"):
        await serve_tls(echo, 0, cert_manager=certs, host="a b")


async def test_a_range_of_ports_is_tried_in_order() -> None:
    """`open_listeners` takes the first port of its range that is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        [listener] = await open_listeners("127.0.0.1", port, port_range=500)
        async with listener:
            assert port < listener.socket.getsockname()[1] < port + 500
        with pytest.raises(ListenError) as caught:
            await open_listeners("127.0.0.1", port, port_range=1)
        assert caught.value.tried == (("127.0.0.1", port),)


async def test_unusable_credentials_are_refused_before_listening(ca: CertificateAuthority) -> None:
    """What the manager cannot serve with is a CertificateError, bare, and the port is not touched."""
    now = datetime.now(UTC)
    expired = CertAuthManager(ca.issue("localhost", not_before=now - 2 * DAY, not_after=now - DAY))
    unverifying = CertAuthManager(ca.issue("localhost"), client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN)
    client_only = CertAuthManager(ca.issue("localhost", extended_key_usage=[ExtendedKeyUsageOID.CLIENT_AUTH]))
    for manager, reason in (
        (expired, CertificateReason.EXPIRED),
        (unverifying, CertificateReason.NO_CLIENT_CAS),
        (client_only, CertificateReason.WRONG_EKU),
    ):
        with pytest.raises(CertificateError) as caught:
            await serve_tls(echo, 0, cert_manager=manager, host="192.0.2.1")
        assert caught.value.reason is reason


# The manager --------------------------------------------------------------------------------------------------------


def setters(manager: CertAuthManager) -> list[Callable[[], None]]:
    """Everything that is fixed at start-up, set to what it is."""
    return [
        partial(manager.set_client_cas, manager.client_cas),
        partial(manager.set_client_auth, manager.client_auth),
        partial(manager.set_root_cas, manager.root_cas),
        partial(manager.set_server_name, manager.server_name),
    ]


async def test_a_manager_is_in_use_while_it_serves(certs: CertAuthManager) -> None:
    """Pools, mode and name of a manager are fixed from the start of serve_tls to its end, and free before and after."""
    for _ in range(2):
        for change in setters(certs):
            change()
        async with serving(echo, certs):
            for change in setters(certs):
                with pytest.raises(FixedAtStartupError, match="restart"):
                    change()
    for change in setters(certs):
        change()


async def test_a_manager_is_free_when_serving_could_not_begin(certs: CertAuthManager) -> None:
    """A serve_tls that cannot listen leaves its manager unused."""
    with pytest.raises(ListenError):
        await serve_tls(echo, 0, cert_manager=certs, host="192.0.2.1")
    for change in setters(certs):
        change()


async def test_a_manager_is_in_use_while_it_dials(certs: CertAuthManager) -> None:
    """A handshake of open_tls_stream is a use of its manager; a stream that is open is none."""
    client = CertAuthManager(certs.key_pair, root_cas=certs.root_cas)
    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, trio.open_nursery() as nursery:
            port = listener.socket.getsockname()[1]

            async def dial() -> None:
                with pytest.raises(HandshakeError):
                    await open_tls_stream("127.0.0.1", port, cert_manager=client)

            nursery.start_soon(dial)
            transport = await listener.accept()
            await transport.receive_some()
            for change in setters(client):
                with pytest.raises(FixedAtStartupError, match="restart"):
                    change()
            await transport.aclose()
    for change in setters(client):
        change()
    async with serving(echo, certs) as port:
        async with await open_tls_stream("127.0.0.1", port, cert_manager=client) as stream:
            for change in setters(client):
                change()
            assert await ask(stream, b"hello") == b"hello"


# Dialling that fails ------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_a_handshake_error_of_stage_connect(certs: CertAuthManager) -> None:
    """Nothing listens: HandshakeError itself, stage connect, the OSError as its cause, the address and a remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with (
        trio.fail_after(PATIENCE),
        pytest.raises(HandshakeError, match=r"cannot connect to 127\.0\.0\.1 port") as caught,
    ):
        await open_tls_stream("127.0.0.1", port, cert_manager=certs)
    error = caught.value
    assert type(error) is HandshakeError
    assert error.stage is Stage.CONNECT
    assert isinstance(error.__cause__, OSError)
    assert error.address == ("127.0.0.1", port)
    assert error.generation is None
    assert "refused" in str(error)
    assert "Is the node running there" in str(error)


async def test_a_host_without_address_is_a_handshake_error_of_stage_resolve(certs: CertAuthManager) -> None:
    """A name that does not resolve: HandshakeError, stage resolve, the OSError as its cause."""
    trio.socket.set_custom_hostname_resolver(Resolver())
    with trio.fail_after(PATIENCE), pytest.raises(HandshakeError, match="Name or service not known") as caught:
        await open_tls_stream("nowhere.example", 443, cert_manager=certs)
    assert type(caught.value) is HandshakeError
    assert caught.value.stage is Stage.RESOLVE
    assert isinstance(caught.value.__cause__, socket.gaierror)


async def test_a_name_service_that_never_answers_runs_into_the_timeout(
    certs: CertAuthManager, autojump_clock: trio.testing.MockClock
) -> None:
    """Most of `connect_timeout` bounds the look-up: HandshakeTimeoutError, stage resolve, exactly then."""
    trio.socket.set_custom_hostname_resolver(Endless())
    started = trio.current_time()
    with pytest.raises(HandshakeTimeoutError, match=r"most of connect_timeout \(7 s\)") as caught:
        await open_tls_stream("nowhere.example", 443, cert_manager=certs, connect_timeout=7)
    assert trio.current_time() - started == pytest.approx(0.8 * 7)
    assert caught.value.stage is Stage.RESOLVE
    assert caught.value.address == ("nowhere.example", 443)
    for change in setters(certs):
        change()


async def test_no_system_cas_where_they_are_needed(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial without a pool of its own on a machine without CAs: a CertificateError, bare, and the server is left."""

    def system() -> CAPool:
        raise CertificateError("none here", reason=CertificateReason.NO_CERTIFICATE)

    monkeypatch.setattr(CAPool, "system", system)
    client = CertManager(ca.issue("localhost"))
    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            with pytest.raises(CertificateError, match="none here"):
                await open_tls_stream(*listener.socket.getsockname(), cert_manager=client)
            async with await listener.accept() as transport:
                assert await transport.receive_some() == b""
        client.update(ca.issue("localhost"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses, or has no bound")
async def test_a_full_backlog_runs_into_the_timeout(certs: CertAuthManager) -> None:
    """`connect_timeout` bounds the TCP connect to a host that answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        waiting: list[trio.SocketStream] = []
        with trio.fail_after(PATIENCE):
            while True:
                with trio.move_on_after(0.2):
                    waiting.append(await trio.open_tcp_stream(*address))
                    continue
                break
            with pytest.raises(HandshakeTimeoutError, match=r"within connect_timeout \(0\.05 s\)") as caught:
                await open_tls_stream(*address, cert_manager=certs, connect_timeout=0.05)
        assert caught.value.stage is Stage.CONNECT
        assert caught.value.address == address
        for stream in waiting:
            await stream.aclose()


async def test_a_stalled_handshake_runs_into_the_timeout(
    ca: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """`handshake_timeout` bounds TLS on either side, exactly, against a peer that drips as well."""
    manager = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)

    async def drip(far: trio.abc.SendStream) -> None:
        # The beginning of a long handshake record.
        for octet in b"\x16\x03\x03\x3f\xff\x01\x00\x3f\xfb" + bytes(1000):
            await far.send_all(bytes([octet]))
            await trio.sleep(1)

    for shake_hands in (accept_plain, dial_plain):
        for drips in (False, True):
            near, far = trio.testing.memory_stream_pair()
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                if drips:
                    nursery.start_soon(drip, far)
                with pytest.raises(HandshakeTimeoutError, match=r"within handshake_timeout \(7\.5 s\)") as caught:
                    await shake_hands(near, manager.contexts, handshake_timeout=7.5)
                nursery.cancel_scope.cancel()
            assert trio.current_time() - started == 7.5
            assert caught.value.stage is Stage.TLS
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()


async def accept_plain(
    transport: trio.abc.Stream,
    contexts: trio.abc.ReceiveChannel[TLSContexts],
    *,
    handshake_timeout: float = PATIENCE,
) -> SessionStream:
    """The server side of a handshake, without options."""
    return await accept_tls(transport, contexts, alpn=(), handshake_timeout=handshake_timeout)


async def dial_plain(
    transport: trio.abc.Stream,
    contexts: trio.abc.ReceiveChannel[TLSContexts],
    *,
    handshake_timeout: float = PATIENCE,
) -> SessionStream:
    """The client side of a handshake with `localhost`, without options."""
    return await dial_tls(
        transport,
        contexts,
        host="localhost",
        server_name=None,
        alpn=(),
        insecure_skip_verify=False,
        handshake_timeout=handshake_timeout,
    )


# Where contexts come from -------------------------------------------------------------------------------------------


@pytest.fixture
async def generations(ca: CertificateAuthority) -> list[TLSContexts]:
    """Three generations of one manager."""
    manager = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
    taken = [await manager.contexts.receive()]
    for _ in range(2):
        manager.update(ca.issue("localhost"))
        taken.append(await manager.contexts.receive())
    return taken


async def test_a_silent_client_costs_nothing(generations: list[TLSContexts]) -> None:
    """Nothing is taken from the channel before the client's first byte, and one byte is enough."""
    send, receive = trio.open_memory_channel[TLSContexts](0)
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                with suppress(HandshakeError):
                    await accept_plain(near, receive)

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            assert send.statistics().tasks_waiting_receive == 0
            with pytest.raises(trio.WouldBlock):
                send.send_nowait(generations[0])
            await far.send_all(b"\x16")
            await trio.testing.wait_all_tasks_blocked()
            assert send.statistics().tasks_waiting_receive == 1
            send.send_nowait(generations[0])
            await far.aclose()


async def test_contexts_come_from_any_memory_channel(generations: list[TLSContexts]) -> None:
    """Both sides of a handshake take one item each from a plain memory channel, in its order, and wait for it."""
    to_server, for_servers = trio.open_memory_channel[TLSContexts](3)
    to_client, for_clients = trio.open_memory_channel[TLSContexts](0)
    for contexts in generations:
        to_server.send_nowait(contexts)
    served: list[int] = []
    with trio.fail_after(PATIENCE):
        for number, contexts in enumerate(generations):
            near, far = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:

                async def accept(far: trio.abc.Stream = far) -> None:
                    stream = await accept_plain(far, for_servers)
                    served.append(stream.generation)
                    await stream.aclose()

                async def dial(near: trio.abc.Stream = near, expected: TLSContexts = contexts) -> None:
                    stream = await dial_plain(near, for_clients)
                    assert stream.generation == expected.generation
                    # Both take from the same list, in the same order.
                    assert stream.peer_certificate == expected.key_pair.certificate
                    await stream.aclose()

                nursery.start_soon(accept)
                nursery.start_soon(dial)
                await trio.testing.wait_all_tasks_blocked()
                assert len(served) == number, "the dialer waits for its contexts"
                await to_client.send(contexts)
        assert served == [1, 2, 3]
        assert to_server.statistics().current_buffer_used == 0
    for end in (to_server, for_servers, to_client, for_clients):
        end.close()


async def test_a_channel_that_is_closed_ends_the_handshake(generations: list[TLSContexts]) -> None:
    """When no contexts will ever come, the handshake raises what the channel raises and closes its transport."""
    send, receive = trio.open_memory_channel[TLSContexts](0)
    send.close()
    with trio.fail_after(PATIENCE):
        for shake_hands in (accept_plain, dial_plain):
            near, far = trio.testing.memory_stream_pair()
            await far.send_all(b"\x16")
            with pytest.raises(trio.EndOfChannel):
                await shake_hands(near, receive)
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()


async def test_a_handshake_under_way_finishes_on_what_it_took(ca: CertificateAuthority, certs: CertAuthManager) -> None:
    """A client whose first byte came before an update gets the old certificate, one that was silent the new one."""
    first, second = certs.key_pair, ca.issue(*HOSTS)
    pairs = {name: trio.testing.memory_stream_pair() for name in ("talks", "silent")}
    served: dict[str, int] = {}
    presented: dict[str, x509.Certificate | None] = {}
    updated = trio.Event()

    async def accept(name: str) -> None:
        stream = await accept_plain(pairs[name][1], certs.contexts)
        served[name] = stream.generation
        await stream.aclose()

    async def dial(name: str) -> None:
        near = pairs[name][0]
        send_whole = near.send_stream.send_all

        async def send_hesitantly(data: bytes | bytearray | memoryview) -> None:
            first_bytes = 1 if name == "talks" else 0
            if first_bytes:
                await send_whole(bytes(data)[:first_bytes])
            await updated.wait()
            await send_whole(bytes(data)[first_bytes:])

        near.send_stream.send_all = send_hesitantly  # type: ignore[method-assign]
        stream = await dial_plain(near, certs.contexts)
        presented[name] = stream.peer_certificate
        await stream.aclose()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for name in pairs:
                nursery.start_soon(accept, name)
                nursery.start_soon(dial, name)
            await trio.testing.wait_all_tasks_blocked()
            certs.update(second)
            updated.set()
    assert served == {"talks": 1, "silent": 2}
    assert presented == {"talks": first.certificate, "silent": second.certificate}


# Accepting ----------------------------------------------------------------------------------------------------------


async def test_an_accept_error_ends_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever error accept() raises, the loop pauses and tries again; a streak of them is logged once, and its end."""
    failures: Final = [errno.EMFILE, errno.EMFILE, None, errno.ECONNABORTED, None]
    accepted: list[trio.abc.Stream] = []
    started = trio.current_time()
    with trio.fail_after(PATIENCE), socket.create_server(("127.0.0.1", 0)) as plain:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(plain.dup()))
        left, right = trio.socket.socketpair()
        stream = trio.SocketStream(left)

        async def accept() -> trio.SocketStream:
            await trio.lowlevel.checkpoint()
            if not failures:
                await trio.sleep_forever()
            failure = failures.pop(0)
            if failure is not None:
                raise OSError(failure, "as the system says")
            return stream

        listener.accept = accept  # type: ignore[method-assign]
        async with listener, trio.open_nursery() as nursery:
            with caplog.at_level(logging.WARNING, "trionode.acceptor"):
                nursery.start_soon(accept_forever, TCPListener(listener), accepted.append, "here")
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert accepted == [stream, stream]
    assert trio.current_time() - started >= 3 * ACCEPT_PAUSE
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR", "WARNING"]
    assert "as the system says" in caplog.messages[0]
    assert "works again" in caplog.messages[1]
    await stream.aclose()
    right.close()
