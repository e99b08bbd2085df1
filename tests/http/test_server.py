"""`serve_asgi`, seen by clients that know nothing of us, and by its application: requests, TLS facts, rotation."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio
import wsproto
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypercorn.config import Config
from hypercorn.protocol import ProtocolWrapper
from wsproto.events import AcceptConnection, Request, TextMessage

from asgi_apps import Recorder, answer, serving
from trionode import (
    CertAuthManager,
    CertificateError,
    ClientAuth,
    ListenError,
    NodeName,
    StrandedPeers,
    open_tls_stream,
    wrap_client_stream,
)
from trionode.http import Caller, HTTPTransport, caller_of, serve_asgi
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trionode import KeyPair

HOSTS = ("localhost", "127.0.0.1")
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl program here")


@pytest.fixture
def mutual(ca: CertificateAuthority) -> CertAuthManager:
    """A server's manager that requires certificates of the CA."""
    return CertAuthManager(ca.issue(*HOSTS), client_cas=ca.pool, client_auth=MUTUAL, root_cas=ca.pool)


@pytest.fixture
def client_certs(ca: CertificateAuthority) -> CertAuthManager:
    """A client's manager."""
    return CertAuthManager(ca.issue("client.example"), root_cas=ca.pool)


def context_of(ca: CertificateAuthority, key_pair: KeyPair | None, folder: Path) -> ssl.SSLContext:
    """The standard library's TLS for a client with a key pair."""
    write_ca_pool(ca.pool, folder / "ca.pem")
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if key_pair is not None:
        write_key_pair(key_pair, folder / "client.pem", folder / "client.key")
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return context


# Requests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_a_client_of_the_standard_library(
    ca: CertificateAuthority, mutual: CertAuthManager, tmp_path: Path, *, http2: bool
) -> None:
    """Httpx on `ssl`, with a client certificate: several requests over one connection, verified."""
    context = context_of(ca, ca.issue("client.example"), tmp_path)
    app = Recorder()
    async with serving(app, mutual) as port, httpx2.AsyncClient(verify=context, http2=http2) as client:
        for size in (0, 10, 200_000):
            told = (await client.post(f"https://localhost:{port}/", content=bytes(size))).json()
            assert told == {
                "verified": True,
                "names": ["client.example"],
                "generation": 1,
                "http": "2" if http2 else "1.1",
                "body": size,
                "state": "from the start",
            }
        assert len({scope["client"] for scope in app.scopes}) == 1
    assert app.scopes[0]["server"] == ("127.0.0.1", port)
    assert app.scopes[0]["scheme"] == "https"


@needs_curl
@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_curl(ca: CertificateAuthority, mutual: CertAuthManager, tmp_path: Path, version: str) -> None:
    """Curl gets in with a certificate of the CA, over either version, and without one it does not."""
    context_of(ca, ca.issue("curl.example"), tmp_path)

    async def curl(port: int, *options: str) -> tuple[str, str]:
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20", f"--http{version}"]
        command += ["--cacert", str(tmp_path / "ca.pem"), "--write-out", " %{http_version}", *options]
        done = await trio.run_process(
            [*command, f"https://localhost:{port}/"], capture_stdout=True, capture_stderr=True, check=False
        )
        return done.stdout.decode(), done.stderr.decode()

    async with serving(Recorder(), mutual) as port:
        files = ("--cert", str(tmp_path / "client.pem"), "--key", str(tmp_path / "client.key"))
        output, complaints = await curl(port, *files)
        assert complaints == ""
        told, _, spoken = output.rpartition(" ")
        assert spoken == version
        assert json.loads(told)["names"] == ["curl.example"]
        output, complaints = await curl(port)
        assert "certificate required" in complaints


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_our_own_client(mutual: CertAuthManager, client_certs: CertAuthManager, *, http2: bool) -> None:
    """Both halves together."""
    async with (
        serving(Recorder(), mutual) as port,
        httpx2.AsyncClient(transport=HTTPTransport(cert_manager=client_certs, http2=http2)) as client,
    ):
        told = (await client.get(f"https://localhost:{port}/")).json()
        assert (told["verified"], told["http"]) == (True, "2" if http2 else "1.1")


async def test_a_websocket(mutual: CertAuthManager, client_certs: CertAuthManager) -> None:
    """It opens, talks, and its application knows the caller."""
    app = Recorder()
    async with serving(app, mutual) as port:
        connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        heard: list[str] = []
        async with await open_tls_stream("localhost", port, cert_manager=client_certs, alpn=["http/1.1"]) as stream:
            await stream.send_all(connection.send(Request(host="localhost", target="/talk")))
            while not heard:
                connection.receive_data(await stream.receive_some())
                for event in connection.events():
                    if isinstance(event, AcceptConnection):
                        await stream.send_all(connection.send(TextMessage(data="hello")))
                    elif isinstance(event, TextMessage):
                        heard.append(event.data)
    assert heard == ["HELLO"]
    [scope] = app.scopes
    assert scope["type"] == "websocket"
    assert scope["scheme"] == "wss"
    assert caller_of(scope).names == ("client.example",)
    assert scope["extensions"]["tls"]["client_cert_name"] == "CN=client.example"
    assert "websocket.http.response" in scope["extensions"]


# What is known of TLS -----------------------------------------------------------------------------------------------


async def test_the_tls_extension_is_complete(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Every entry of ASGI's extension, as a client of the standard library sees the same connection."""
    key_pair = ca.issue("client.example")
    mutual = CertAuthManager(ca.issue(*HOSTS), client_cas=ca.pool, client_auth=MUTUAL, root_cas=ca.pool)
    context = context_of(ca, key_pair, tmp_path)
    app = Recorder()

    def ask(port: int) -> tuple[bytes | None, str, str]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert secured.recv(100).startswith(b"HTTP/1.1 200")
            cipher = secured.cipher()
            assert cipher is not None
            return secured.getpeercert(binary_form=True), str(secured.version()), cipher[0]

    async with serving(app, mutual) as port:
        server_der, version, cipher = await trio.to_thread.run_sync(ask, port)
    tls = app.scopes[0]["extensions"]["tls"]
    assert set(tls) == {
        "server_cert",
        "client_cert_chain",
        "client_cert_name",
        "client_cert_error",
        "tls_version",
        "cipher_suite",
    }
    assert ssl.PEM_cert_to_DER_cert(tls["server_cert"]) == server_der
    chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in tls["client_cert_chain"]]
    assert chain[: len(key_pair.chain)] == list(key_pair.chain)
    assert tls["client_cert_name"] == key_pair.certificate.subject.rfc4514_string()
    assert tls["client_cert_error"] is None
    assert (tls["tls_version"], version) == (0x0304, "TLSv1.3")
    suites = {
        "TLS_AES_128_GCM_SHA256": 0x1301,
        "TLS_AES_256_GCM_SHA384": 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
    }
    assert tls["cipher_suite"] == suites[cipher]


@pytest.mark.parametrize("mode", ClientAuth)
@pytest.mark.parametrize("sends", ["nothing", "known", "unknown"])
async def test_what_each_mode_says_of_the_client(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, mode: ClientAuth, sends: str
) -> None:
    """An error wherever there is a certificate that this side has not verified, and names only where it has."""
    manager = CertAuthManager(
        ca.issue(*HOSTS), client_cas=ca.pool if mode.verifies else None, client_auth=mode, root_cas=ca.pool
    )
    issuer = rogue_ca if sends == "unknown" else ca
    key_pair = issuer.issue("client.example")
    app = Recorder()
    async with serving(app, manager) as port:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        if sends == "nothing":
            reply = await _ask_without_certificate(ca, port, request)
        else:
            reply = await _ask(CertAuthManager(key_pair, root_cas=ca.pool), port, request)
    admitted = not ((sends == "nothing" and mode.requires) or (sends == "unknown" and mode.verifies))
    assert reply.startswith(b"HTTP/1.1 200") is admitted
    if not admitted:
        assert app.scopes == []
        return
    [scope] = app.scopes
    caller, tls = caller_of(scope), scope["extensions"]["tls"]
    sent = sends != "nothing" and mode.requests
    assert caller.verified is (sent and mode.verifies)
    assert (caller.certificate is not None) is sent
    assert bool(tls["client_cert_chain"]) is sent
    assert tls["client_cert_name"] == ("CN=client.example" if sent else None)
    assert (tls["client_cert_error"] is not None) is (sent and not mode.verifies)
    assert caller.names == (("client.example",) if caller.verified else ())
    assert caller.speaks_for("client.example") is caller.verified


async def _ask(manager: CertAuthManager, port: int, request: bytes) -> bytes:
    try:
        async with await open_tls_stream("localhost", port, cert_manager=manager) as stream:
            await stream.send_all(request)
            return b"".join([piece async for piece in stream])
    except trio.BrokenResourceError:
        return b""


async def _ask_without_certificate(ca: CertificateAuthority, port: int, request: bytes) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata="".join(each.public_bytes(Encoding.PEM).decode() for each in ca.pool))

    def ask() -> bytes:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secured,
            ):
                secured.sendall(request)
                return secured.recv(100)
        except ssl.SSLError:
            return b""

    return await trio.to_thread.run_sync(ask)


async def test_the_caller(ca: CertificateAuthority, mutual: CertAuthManager) -> None:
    """Names, addresses and URIs of a verified certificate; which hosts and nodes it speaks for; immutable."""
    certs = CertAuthManager(ca.issue("alpha@host.example", "10.0.0.1"), root_cas=ca.pool)
    app = Recorder()
    async with serving(app, mutual) as port:
        await _ask(certs, port, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    caller = caller_of(app.scopes[0])
    assert set(caller.names) == {"host.example", "10.0.0.1"}
    assert caller.uris == ("trionode://alpha@host.example",)
    assert caller.server_name == "localhost"
    assert caller.address is not None
    assert caller.address[0] == "127.0.0.1"
    for name, covered in (
        ("host.example", True),
        ("HOST.example.", True),
        ("10.0.0.1", True),
        ("alpha@host.example", True),
        (NodeName("alpha", "host.example"), True),
        ("beta@host.example", False),
        ("other.example", False),
    ):
        assert caller.speaks_for(name) is covered
    with pytest.raises(ValueError, match="host"):
        caller.speaks_for("a b")
    assert "verified" in repr(caller)
    with pytest.raises(TypeError, match="no public constructor"):
        Caller()
    with pytest.raises(AttributeError, match="immutable"):
        caller.verified = False


@pytest.mark.parametrize("scope", [{}, {"extensions": {}}, {"extensions": {"trionode": None}}, {"extensions": None}])
def test_a_scope_of_another_server(scope: Mapping[str, Any]) -> None:
    """A `LookupError`, which is no caller at all, rather than an unverified one."""
    with pytest.raises(LookupError, match="serve_asgi"):
        caller_of(scope)


# Rotation -----------------------------------------------------------------------------------------------------------


async def test_the_next_connection_gets_the_new_certificate(
    ca: CertificateAuthority, mutual: CertAuthManager, tmp_path: Path
) -> None:
    """A kept connection goes on with the old one; a new one has the new one, and its application is told which."""
    context = context_of(ca, ca.issue("client.example"), tmp_path)
    async with serving(Recorder(), mutual) as port, httpx2.AsyncClient(verify=context) as kept:
        url = f"https://localhost:{port}/"
        assert (await kept.get(url)).json()["generation"] == 1
        for generation in (2, 3):
            mutual.update(ca.issue(*HOSTS))
            assert (await kept.get(url)).json()["generation"] == 1
            async with httpx2.AsyncClient(verify=context) as fresh:
                assert (await fresh.get(url)).json()["generation"] == generation
        assert mutual.live_generations[1] == 1


async def test_trust_that_changes(
    ca: CertificateAuthority, client_certs: CertAuthManager, mutual: CertAuthManager
) -> None:
    """`stranded=CLOSE` ends the connections of clients that new trust does not accept, here as with `serve_tls`."""
    new_ca = CertificateAuthority.create()
    app = Recorder()
    async with serving(app, mutual, stranded=StrandedPeers.CLOSE) as port:
        async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=client_certs)) as client:
            async with client.stream("GET", f"https://localhost:{port}/held") as response:
                await app.held.wait()
                mutual.rotate_trust(client_cas=new_ca.pool)
                with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
                    await response.aread()
        app.release.set()
        await mutual.drained(1)


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_a_request_for_another_names_manager(
    ca: CertificateAuthority, client_certs: CertAuthManager, *, http2: bool
) -> None:
    """A connection that was made under one name does not reach what another name's client authentication guards."""
    guarded = CertAuthManager(ca.issue("admin.example"), client_cas=ca.pool, client_auth=MUTUAL)
    managers = {"admin.example": guarded, "*": CertAuthManager(ca.issue("www.example"))}
    app = Recorder()
    async with serving(app, managers) as port:
        for name, host, status in (
            ("www.example", "www.example", 200),
            ("www.example", "WWW.Example.:443", 200),
            ("www.example", "other.example", 200),
            ("www.example", "admin.example", 421),
            ("www.example", "ADMIN.example.:443", 421),
            ("admin.example", "admin.example", 200),
            ("admin.example", "www.example", 421),
        ):
            transport = HTTPTransport(cert_manager=client_certs, http2=http2)
            async with httpx2.AsyncClient(transport=transport) as client:
                response = await client.get(
                    f"https://127.0.0.1:{port}/", headers={"Host": host}, extensions={"sni_hostname": name}
                )
                assert response.status_code == status, (name, host)
    assert len(app.scopes) == 4


async def test_a_websocket_for_another_names_manager(ca: CertificateAuthority, client_certs: CertAuthManager) -> None:
    """It is refused likewise."""
    managers = {"a.example": CertAuthManager(ca.issue("a.example")), "*": CertAuthManager(ca.issue("localhost"))}
    app = Recorder()
    async with serving(app, managers) as port:
        connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        async with await open_tls_stream("localhost", port, cert_manager=client_certs) as stream:
            await stream.send_all(connection.send(Request(host="a.example", target="/")))
            assert b" 421 " in await stream.receive_some()
    assert app.scopes == []


async def test_any_host_where_there_is_one_manager(mutual: CertAuthManager, client_certs: CertAuthManager) -> None:
    """With one manager for all names the application decides about hosts, and one without a host is served, too."""
    async with serving(Recorder(), mutual) as port:
        for head in (b"Host: other.example\r\n", b"Host: [::1]:443\r\n"):
            request = b"GET / HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n"
            assert (await _ask(client_certs, port, request)).startswith(b"HTTP/1.1 200")
        assert b" 200 " in await _ask(client_certs, port, b"GET / HTTP/1.0\r\n\r\n")


# Where it listens ---------------------------------------------------------------------------------------------------


async def ask_over(raw: trio.abc.Stream, certs: CertAuthManager) -> bytes:
    """A request over a stream that is connected."""
    async with await wrap_client_stream(raw, "localhost", cert_manager=certs) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join([piece async for piece in stream])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no UNIX sockets here")
async def test_given_listeners(mutual: CertAuthManager, client_certs: CertAuthManager, tmp_path: Path) -> None:
    """A UNIX socket and the memory network, at once: served, and closed at the end; their clients have no address."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(tmp_path / "socket"))
    sock.listen()
    network = MemoryNetwork()
    [in_memory] = await network.listen("localhost", 443)
    unix = trio.SocketListener(sock)
    app = Recorder()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            started = await nursery.start(partial(serve_asgi, app, cert_manager=mutual, listeners=[unix, in_memory]))
            assert list(started) == [unix, in_memory]
            for raw in (await trio.open_unix_socket(tmp_path / "socket"), await network.connect("localhost", 443)):
                assert b'"verified": true' in await ask_over(raw, client_certs)
            nursery.cancel_scope.cancel()
    assert sock.fileno() == -1
    assert not network.open_streams
    assert [scope["client"] for scope in app.scopes] == [None, None]


async def test_errors_before_it_serves(ca: CertificateAuthority, mutual: CertAuthManager) -> None:
    """A port in use, an unusable manager, arguments that make no sense: one error, and no application has begun."""
    app = Recorder()
    unverifying = CertAuthManager(ca.issue(*HOSTS), client_auth=MUTUAL)
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(ListenError):
            await serve_asgi(app, other.getsockname()[1], host="127.0.0.1", cert_manager=mutual)
    with pytest.raises(CertificateError):
        await serve_asgi(app, 0, cert_manager=unverifying)
    attempts: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "give a port", {}),
        (ValueError, "at least one listener", {"listeners": []}),
        (ValueError, "port", {"port": 65536}),
        (ValueError, "host", {"port": 0, "host": "a b"}),
        (ValueError, "grace", {"port": 0, "grace": -1}),
        (TypeError, "grace", {"port": 0, "grace": "1"}),
        (TypeError, "config", {"port": 0, "config": {}}),
        (ValueError, "max_handshakes", {"port": 0, "max_handshakes": 0}),
        (ValueError, "REFUSE", {"port": 0, "stranded": StrandedPeers.REFUSE}),
    ]
    for error, words, options in attempts:
        with pytest.raises(error, match=words):
            await serve_asgi(app, **{"cert_manager": mutual, **options})
    not_asgi_3: list[Any] = ["my:app", lambda environ, start_response: [], lambda scope: None]
    for other_app in not_asgi_3:
        with pytest.raises(TypeError, match="app must be an ASGI 3 application"):
            await serve_asgi(other_app, 0, cert_manager=mutual)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(ValueError, match="grace"):
        await serve_asgi(app, cert_manager=mutual, listeners=[listener], grace=-1)
    assert listener.socket.fileno() == -1
    assert app.lifespan == []
    mutual.set_server_name(None)


# Logs, and what goes wrong ------------------------------------------------------------------------------------------


async def test_the_access_log(
    mutual: CertAuthManager, client_certs: CertAuthManager, caplog: pytest.LogCaptureFixture
) -> None:
    """hypercorn's, by its `Config`."""
    config = Config()
    config.accesslog = logging.getLogger("tests.access")
    config.access_log_format = "%(m)s %(U)s %(s)s"
    with caplog.at_level(logging.INFO, "tests.access"):
        async with serving(Recorder(), mutual, config=config) as port:
            await _ask(client_certs, port, b"GET /path HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert [record.getMessage() for record in caplog.records if record.name == "tests.access"] == ["GET /path 200"]


async def test_an_application_that_fails(
    mutual: CertAuthManager, client_certs: CertAuthManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client gets a 500, the log the traceback, and the next request is served."""
    async with (
        serving(Recorder(), mutual) as port,
        httpx2.AsyncClient(transport=HTTPTransport(cert_manager=client_certs)) as client,
    ):
        assert (await client.get(f"https://localhost:{port}/fail")).status_code == 500
        assert (await client.get(f"https://localhost:{port}/")).status_code == 200
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.name == "trionode.http"
    assert "as the application says" in str(record.exc_info)


@pytest.mark.parametrize(
    ("alpn", "words"),
    [
        (["http/1.1"], b"nonsense\r\n\r\n"),
        (["http/1.1"], b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"),
        (["http/1.1"], b"GET /" + b"x" * 100_000),
        (["h2"], b"nonsense"),
        (["h2"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        # DATA for a stream that there is not.
        (["h2"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\1\0\1\0\0\0\1x"),
        # RST_STREAM, then DATA, for a stream with a request.
        (
            ["h2"],
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
                b"\0\0\5\1\4\0\0\0\1\x82\x84\x87\x41\0"
                b"\0\0\4\3\0\0\0\0\1\0\0\0\0"
                b"\0\0\1\0\1\0\0\0\1x"
            ),
        ),
        # A request without a path, or a method.
        (["h2"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\2\1\5\0\0\0\1\x82\x87"),
    ],
    ids=["nonsense", "length", "endless", "no preface", "empty", "data", "reset", "no path"],
)
async def test_what_a_peer_sends_costs_its_connection_only(
    mutual: CertAuthManager, client_certs: CertAuthManager, alpn: list[str], words: bytes
) -> None:
    """Whatever comes in over TLS, the server goes on."""
    async with serving(Recorder(), mutual) as port:
        for _ in range(2):
            async with await open_tls_stream("localhost", port, cert_manager=client_certs, alpn=alpn) as stream:
                try:
                    await stream.send_all(words)
                    await stream.send_eof()
                    with trio.move_on_after(0.3):
                        while await stream.receive_some():
                            pass
                except trio.BrokenResourceError:
                    pass
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (await _ask(client_certs, port, request)).startswith(b"HTTP/1.1 200")


async def test_what_nobody_foresaw_costs_one_connection(
    mutual: CertAuthManager,
    client_certs: CertAuthManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception out of hypercorn itself is logged in full; other connections are not touched by it."""
    failures = [LookupError("as nobody foresaw")]
    initiate = ProtocolWrapper.initiate

    async def sometimes(self: Any) -> None:
        if failures:
            raise failures.pop()
        await initiate(self)

    monkeypatch.setattr(ProtocolWrapper, "initiate", sometimes)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with serving(Recorder(), mutual) as port:
        assert await _ask(client_certs, port, request) == b""
        assert (await _ask(client_certs, port, request)).startswith(b"HTTP/1.1 200")
    [record] = [record for record in caplog.records if record.exc_info]
    assert "unexpected way" in record.getMessage()


async def test_a_function_is_an_application(mutual: CertAuthManager, client_certs: CertAuthManager) -> None:
    """The smallest there is: it knows nothing of lifespans."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await answer(send, b"hello")

    async with serving(app, mutual) as port:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (await _ask(client_certs, port, request)).endswith(b"hello")
