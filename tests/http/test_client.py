"""`HTTPTransport`: httpx and httpx2 on cert managers, against servers that know nothing of us."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from asgi_apps import body_of
from http_peers import HOSTS, Proxy, own_tls, server_files, socks5, telling, tunnel
from trionode import (
    CertAuthManager,
    CertificateError,
    ClientAuth,
    HandshakeTimeoutError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    TLSStream,
    UnverifiedReason,
    serve_tls,
    serve_tls_listeners,
)
from trionode.http import HTTPTransport
from trionode.testing import cancel_at_every_checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import ModuleType

    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two client libraries."""
    module: ModuleType = pytest.importorskip(request.param)
    return module


@pytest.fixture
def client_certs(ca: CertificateAuthority) -> CertAuthManager:
    """A client's manager, at generation 1, which trusts the CA."""
    return CertAuthManager(ca.issue("client.example"), root_cas=ca.pool)


@pytest.fixture
def mutual(ca: CertificateAuthority) -> CertAuthManager:
    """A server's manager that requires certificates of the CA."""
    return CertAuthManager(
        ca.issue(*HOSTS), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )


@pytest.fixture
def server_context(ca: CertificateAuthority, tmp_path: Path) -> ssl.SSLContext:
    """The standard library's TLS for a server that requires certificates of the CA."""
    files = server_files(ca, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certfile"], files["keyfile"])
    context.load_verify_locations(files["ca_certs"])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def transport_of(client: Any) -> HTTPTransport:
    """The transport that a client was given."""
    found: HTTPTransport = client._transport
    return found


def connections(client: Any) -> list[str]:
    """What a client's pool holds, as httpcore shows it."""
    return [str(connection) for pool in transport_of(client)._pools.values() for connection in pool._pool.connections]


@asynccontextmanager
async def asking(library: ModuleType, manager: CertAuthManager, **options: Any) -> AsyncIterator[Any]:
    """A client, for the length of a block, bounded."""
    settings = {name: options.pop(name) for name in ("timeout",) if name in options}
    transport = HTTPTransport(cert_manager=manager, **options)
    with trio.fail_after(PATIENCE):
        async with library.AsyncClient(transport=transport, **settings) as client:
            yield client


class Held:
    """An application whose answer to `/held` has a beginning, and an end when it is told."""

    def __init__(self) -> None:
        self.end = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            msg = "no lifespan here"
            raise RuntimeError(msg)
        body = await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/held":
            await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            await self.end.wait()
        words = f"{scope['http_version']} {scope['client'][1]} {len(body)}"
        await send({"type": "http.response.body", "body": words.encode()})


# Rotation -----------------------------------------------------------------------------------------------------------


async def test_the_next_request_presents_the_new_certificate(
    library: ModuleType, ca: CertificateAuthority, client_certs: CertAuthManager, server_context: ssl.SSLContext
) -> None:
    """One connection is kept for many requests; after an update the next goes out on a new one, newly certified."""
    with telling(server_context) as port:
        async with asking(library, client_certs) as client:
            ports = set()
            for _ in range(3):
                presented = client_certs.key_pair.certificate.serial_number
                for _ in range(3):
                    told = (await client.get(f"https://localhost:{port}/")).json()
                    assert int(told["serial"], 16) == presented
                    ports.add(told["port"])
                client_certs.update(ca.issue("client.example"))
            assert len(ports) == 3
            assert len(connections(client)) == 1


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_what_is_under_way_goes_on(
    library: ModuleType, ca: CertificateAuthority, client_certs: CertAuthManager, tmp_path: Path, *, http2: bool
) -> None:
    """A response that is being received is received to its end; new requests do not share its connection any more.

    With HTTP/2 they did before. When it is through its connection is closed, the other is kept.
    """
    app = Held()
    async with (
        own_tls(app, server_files(ca, tmp_path)) as port,
        asking(library, client_certs, http2=http2) as client,
    ):
        url = f"https://localhost:{port}"

        async def ask() -> tuple[str, str]:
            version, where, _ = (await client.get(url)).text.split()
            return version, where

        version, kept = await ask()
        assert version == ("2" if http2 else "1.1")
        async with client.stream("GET", f"{url}/held") as response:
            parts = response.aiter_text()
            assert await anext(parts) == "begun "
            _, beside = await ask()
            assert (beside == kept) is http2
            client_certs.update(ca.issue("client.example"))
            _, new = await ask()
            assert new not in (kept, beside)
            assert await ask() == (version, new)
            assert len(connections(client)) == 2
            app.end.set()
            assert "".join([part async for part in parts]).split() == [version, kept, "0"]
        assert await ask() == (version, new)
        assert len(connections(client)) == 1


async def test_an_update_between_pool_and_connection(
    library: ModuleType, ca: CertificateAuthority, client_certs: CertAuthManager, server_context: ssl.SSLContext
) -> None:
    """A connection that is superseded after the pool has chosen it, and before the request goes out, is not used."""
    with telling(server_context) as port:
        async with asking(library, client_certs) as client:
            url = f"https://localhost:{port}/"
            await client.get(url)
            [pool] = transport_of(client)._pools.values()
            [connection] = pool._pool.connections
            expired = type(connection).has_expired
            updates = 1

            def expired_not_yet(self: Any) -> bool:
                nonlocal updates
                if updates:
                    updates = 0
                    client_certs.update(ca.issue("client.example"))
                    return False
                return bool(expired(self))

            available = type(connection).is_available
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(connection), "has_expired", expired_not_yet)
                patch.setattr(type(connection), "is_available", lambda self: bool(updates) or available(self))
                told = (await client.get(url)).json()
            assert int(told["serial"], 16) == client_certs.key_pair.certificate.serial_number


async def test_the_connection_is_told(
    library: ModuleType, client_certs: CertAuthManager, server_context: ssl.SSLContext
) -> None:
    """A response's network stream gives the `TLSStream`, and what HTTP clients ask for otherwise."""
    with telling(server_context) as port:
        async with asking(library, client_certs) as client:
            response = await client.get(f"https://localhost:{port}/")
            network = response.extensions["network_stream"]
            stream = network.get_extra_info("tls_stream")
            assert isinstance(stream, TLSStream)
            assert stream.verified
            assert stream.certificate == client_certs.key_pair.certificate
            assert stream.server_name == "localhost"
            assert network.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert network.get_extra_info("server_addr") == ("127.0.0.1", port)
            assert network.get_extra_info("client_addr") == network.get_extra_info("socket").getsockname()
            assert network.get_extra_info("nonsense") is None


# What fails ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_a_server_that_we_refuse(
    library: ModuleType,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    server_context: ssl.SSLContext,
    *,
    http2: bool,
) -> None:
    """The library's own `ConnectError`, with our reason and remedy in its text and our error as its cause."""
    with telling(server_context) as port:
        for manager, reason, remedy in (
            (CertAuthManager(ca.issue("c"), root_cas=rogue_ca.pool), UnverifiedReason.UNKNOWN_CA, "root_cas"),
            (
                CertAuthManager(ca.issue("c"), root_cas=ca.pool, server_name="other.example"),
                UnverifiedReason.NAME_MISMATCH,
                "set server_name",
            ),
        ):
            async with asking(library, manager, http2=http2) as client:
                with pytest.raises(library.ConnectError, match=remedy) as caught:
                    await client.get(f"https://localhost:{port}/")
                assert isinstance(caught.value.__cause__, PeerUnverifiedError)
                assert caught.value.__cause__.reason is reason
                assert str(caught.value) == str(caught.value.__cause__)
                assert caught.value.request.url.host == "localhost"


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_a_server_that_refuses_us(
    library: ModuleType,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    server_context: ssl.SSLContext,
    *,
    http2: bool,
) -> None:
    """Its alert is the cause, although the client was through with its handshake, and may have met a broken pipe."""
    manager = CertAuthManager(rogue_ca.issue("c"), root_cas=ca.pool)
    with telling(server_context) as port:
        async with asking(library, manager, http2=http2) as client:
            for _ in range(5):
                with pytest.raises((library.ReadError, library.WriteError), match="unknown ca") as caught:
                    await client.post(f"https://localhost:{port}/", content=b"x" * 100_000)
                assert isinstance(caught.value.__cause__, PeerRejectedError)
                assert caught.value.__cause__.code is RejectionCode.UNKNOWN_CA


async def test_our_own_certificate_is_unusable(
    library: ModuleType, ca: CertificateAuthority, server_context: ssl.SSLContext
) -> None:
    """It is a failure to connect, like others; the `CertificateError` is the cause."""
    now = datetime.now(UTC)
    expired = CertAuthManager(
        ca.issue("c", not_before=now - timedelta(days=2), not_after=now - timedelta(days=1)), root_cas=ca.pool
    )
    with telling(server_context) as port:
        async with asking(library, expired) as client:
            with pytest.raises(library.ConnectError, match="has expired") as caught:
                await client.get(f"https://localhost:{port}/")
            assert isinstance(caught.value.__cause__, CertificateError)


async def test_timeouts_are_the_librarys(
    library: ModuleType, ca: CertificateAuthority, client_certs: CertAuthManager, tmp_path: Path
) -> None:
    """Connecting (TLS included), reading, and waiting for the pool: each has its exception and its cause."""
    limits = library.Limits(max_connections=1)
    times = library.Timeout(PATIENCE, connect=0.2, read=0.2, pool=0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asking(library, client_certs, timeout=times) as client:
            with pytest.raises(library.ConnectTimeout, match=r"within handshake_timeout \(0\.2 s\)") as caught:
                await client.get(f"https://localhost:{silent.getsockname()[1]}/")
            assert isinstance(caught.value.__cause__, HandshakeTimeoutError)
    async with (
        own_tls(Held(), server_files(ca, tmp_path)) as port,
        asking(library, client_certs, timeout=times, limits=limits) as client,
        client.stream("GET", f"https://localhost:{port}/held") as response,
    ):
        with pytest.raises(library.PoolTimeout):
            await client.get(f"https://localhost:{port}/")
        with pytest.raises(library.ReadTimeout, match=r"nothing came within 0\.2 s"):
            await response.aread()


async def test_nobody_is_there(library: ModuleType, client_certs: CertAuthManager, tmp_path: Path) -> None:
    """A `ConnectError` with the system's words, for a port, a name and a UNIX socket; tried as often as was said."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    async with asking(library, client_certs, retries=2) as client:
        started = trio.current_time()
        with pytest.raises(library.ConnectError, match="refused") as caught:
            await client.get(f"https://127.0.0.1:{port}/")
        assert isinstance(caught.value.__cause__, OSError)
        assert trio.current_time() - started > 0.4
    async with asking(library, client_certs, uds=str(tmp_path / "nowhere")) as client:
        with pytest.raises(library.ConnectError, match="No such file"):
            await client.get("https://localhost/")


async def test_a_host_that_can_be_none(library: ModuleType, client_certs: CertAuthManager) -> None:
    """What no certificate could cover is a `ConnectError`, too, and the connection that was made is closed."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, asking(library, client_certs) as client:
        url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"
        with pytest.raises(library.ConnectError, match="host"):
            await client.get(url, extensions={"sni_hostname": "a b"})
        async with await listener.accept() as left:
            assert await left.receive_some() == b""


def test_only_on_trio(library: ModuleType, client_certs: CertAuthManager) -> None:
    """On asyncio it says so."""

    async def main() -> None:
        async with library.AsyncClient(transport=HTTPTransport(cert_manager=client_certs)) as client:
            with pytest.raises(RuntimeError, match="runs on Trio"):
                await client.get("https://localhost/")

    asyncio.run(main())


async def test_a_request_of_neither_library(client_certs: CertAuthManager) -> None:
    """A `TypeError` that says what is wanted."""
    with pytest.raises(TypeError, match=r"httpx or httpx2 is wanted, not builtins\.str"):
        await HTTPTransport(cert_manager=client_certs).handle_async_request("GET /")  # type: ignore[call-overload]


# Every way to a server ----------------------------------------------------------------------------------------------


async def test_what_the_certificate_has_to_cover(
    library: ModuleType, ca: CertificateAuthority, server_context: ssl.SSLContext
) -> None:
    """A request's `sni_hostname`, before the manager's server name, before the URL's host."""
    named = CertAuthManager(ca.issue("c"), root_cas=ca.pool, server_name="other.example")
    plain = CertAuthManager(ca.issue("c"), root_cas=ca.pool)
    with telling(server_context) as port:
        url = f"https://127.0.0.1:{port}/"
        async with asking(library, named) as client:
            assert (await client.get(url, extensions={"sni_hostname": "localhost"})).status_code == 200
        async with asking(library, plain) as client:
            assert (await client.get(url)).status_code == 200
        async with asking(library, plain) as client:
            with pytest.raises(library.ConnectError, match=r"wanted the name 'b\.example'"):
                await client.get(url, extensions={"sni_hostname": "b.example"})


async def test_unverified_when_told(
    library: ModuleType,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    server_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`insecure_skip_verify` takes any server, and is logged once for the transport."""
    manager = CertAuthManager(ca.issue("c"), root_cas=rogue_ca.pool)
    with telling(server_context) as port:
        async with asking(library, manager, insecure_skip_verify=True) as client:
            for _ in range(2):
                assert (await client.get(f"https://127.0.0.1:{port}/")).status_code == 200
    assert [record.name for record in caplog.records if "insecure" in record.getMessage()] == ["trionode.security"]


async def test_a_unix_socket(
    library: ModuleType,
    ca: CertificateAuthority,
    client_certs: CertAuthManager,
    mutual: CertAuthManager,
    tmp_path: Path,
) -> None:
    """`uds` leads there, whatever the URL's host, which the certificate has to cover."""
    path = tmp_path / "socket"
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()

    async def answer(stream: TLSStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(sock)
        await nursery.start(partial(serve_tls_listeners, answer, [listener], cert_manager=mutual))
        async with asking(library, client_certs, uds=str(path)) as client:
            response = await client.get("https://localhost/")
            assert response.text == "hi"
            assert response.extensions["network_stream"].get_extra_info("tls_stream").verified
        nursery.cancel_scope.cancel()


async def test_where_from_and_with_which_options(
    library: ModuleType, client_certs: CertAuthManager, server_context: ssl.SSLContext
) -> None:
    """`local_address` and `socket_options` reach the socket; an option that the system refuses is a `ConnectError`."""
    keep_alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with telling(server_context) as port:
        url = f"https://localhost:{port}/"
        async with asking(library, client_certs, local_address="127.0.0.2", socket_options=[keep_alive]) as client:
            network = (await client.get(url)).extensions["network_stream"]
            assert network.get_extra_info("client_addr")[0] == "127.0.0.2"
            assert network.get_extra_info("socket").getsockopt(*keep_alive[:2]) == 1
        async with asking(library, client_certs, socket_options=[(socket.SOL_SOCKET, 9999, 1)]) as client:
            with pytest.raises(library.ConnectError):
                await client.get(url)


async def test_look_ups_are_ours(
    library: ModuleType, client_certs: CertAuthManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty names hang: no thread of Trio's is taken, and the error says what took so long."""
    release = threading.Event()
    waiting = set[str]()

    def hang(host: str, *_: object, **__: object) -> list[object]:
        waiting.add(host)
        release.wait(20)
        return []

    monkeypatch.setattr("trionode._transport.lookup.getaddrinfo", hang)
    monkeypatch.setattr("socket.getaddrinfo", hang)
    try:
        with trio.fail_after(20):
            async with asking(library, client_certs) as client, trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(client.get, f"https://hangs-{number}.example/")
                while len(waiting) < 60:  # noqa: ASYNC110 -- threads
                    await trio.sleep(0.01)
                assert await trio.to_thread.run_sync(lambda: 7) == 7
                with pytest.raises(library.ConnectTimeout, match="looked up: no answer from the name servers"):
                    await client.get("https://another.example/", timeout=0.2)
                nursery.cancel_scope.cancel()
    finally:
        release.set()


async def test_plain_http_is_plain(library: ModuleType, client_certs: CertAuthManager) -> None:
    """An `http` URL goes out without TLS, as httpx has it."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        async with asking(library, client_certs) as client:
            response = await client.get(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
            assert response.text == "plain"
            assert response.extensions["network_stream"].get_extra_info("tls_stream") is None
            assert response.extensions["network_stream"].get_extra_info("ssl_object") is None
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxying(kind: str, ca: CertificateAuthority) -> AsyncIterator[Proxy]:
    """A proxy for the length of a block."""
    proxy = Proxy()
    serves: dict[str, Callable[..., Any]] = {
        "http": partial(trio.serve_tcp, lambda stream: tunnel(stream, proxy)),
        "socks5": partial(trio.serve_tcp, lambda stream: socks5(stream, proxy)),
        "https": partial(
            serve_tls, lambda stream: tunnel(stream, proxy), cert_manager=CertAuthManager(ca.issue("127.0.0.1"))
        ),
    }
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(serves[kind], port=0, host="127.0.0.1"))
        proxy.port = listener.socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_through_a_proxy(
    library: ModuleType,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    client_certs: CertAuthManager,
    tmp_path: Path,
    *,
    kind: str,
    http2: bool,
) -> None:
    """TLS to the server runs through the tunnel, by our manager; to the proxy by the manager that is for it.

    After an update there is a new tunnel.
    """
    if kind == "socks5":
        pytest.importorskip("socksio")
    to_proxy = CertAuthManager(rogue_ca.issue("client"), root_cas=rogue_ca.pool)
    async with (
        own_tls(Held(), server_files(ca, tmp_path)) as port,
        proxying(kind, rogue_ca) as proxy,
        asking(
            library,
            client_certs,
            http2=http2,
            proxy=f"{kind}://127.0.0.1:{proxy.port}",
            proxy_cert_manager=to_proxy,
        ) as client,
    ):
        url = f"https://localhost:{port}/"
        for number in range(2):
            for _ in range(2):
                response = await client.get(url)
                assert response.text.split()[0] == ("2" if http2 else "1.1")
                stream = response.extensions["network_stream"].get_extra_info("tls_stream")
                assert stream.generation == client_certs.generation
                assert stream.server_name == "localhost"
            assert proxy.targets == [f"localhost:{port}"] * (number + 1)
            client_certs.update(ca.issue("client.example"))


async def test_a_proxy_of_either_library(
    ca: CertificateAuthority, client_certs: CertAuthManager, tmp_path: Path
) -> None:
    """A transport that was given one library's `Proxy` and `Limits` serves clients of both; each has its own pool."""
    httpx, httpx2 = pytest.importorskip("httpx"), pytest.importorskip("httpx2")
    async with own_tls(Held(), server_files(ca, tmp_path)) as port, proxying("http", ca) as proxy:
        transport = HTTPTransport(
            cert_manager=client_certs,
            proxy=httpx.Proxy(f"http://127.0.0.1:{proxy.port}", auth=("user", "secret")),
            limits=httpx2.Limits(max_connections=1),
        )
        with trio.fail_after(PATIENCE):
            for library in (httpx, httpx2):
                client = library.AsyncClient(transport=transport)
                assert isinstance(transport, library.AsyncBaseTransport)
                response = await client.get(f"https://localhost:{port}/")
                assert isinstance(response, library.Response)
            assert len(proxy.targets) == 2
            await transport.aclose()


def test_arguments_that_make_no_sense(library: ModuleType, client_certs: CertAuthManager) -> None:
    """A proxy with an SSL context, and no version at all, are refused at once."""
    import ssl

    proxy = library.Proxy("https://127.0.0.1:1", ssl_context=ssl.create_default_context())
    with pytest.raises(ValueError, match="proxy_cert_manager"):
        HTTPTransport(cert_manager=client_certs, proxy=proxy)
    with pytest.raises(ValueError, match="http1=True or http2=True"):
        HTTPTransport(cert_manager=client_certs, http1=False)


# Cancelling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_cancelled_anywhere_the_pool_is_as_good_as_before(
    library: ModuleType, ca: CertificateAuthority, client_certs: CertAuthManager, tmp_path: Path, *, http2: bool
) -> None:
    """A request that is cancelled at any of its checkpoints costs its connection at most, and no place in the pool."""
    limits = library.Limits(max_connections=1)
    async with (
        own_tls(Held(), server_files(ca, tmp_path)) as port,
        asking(library, client_certs, http2=http2, limits=limits) as client,
    ):
        url = f"https://localhost:{port}/"
        for attempt in cancel_at_every_checkpoint():
            with attempt:
                await client.post(url, content=b"x" * 10_000)
            assert (await client.post(url, content=b"y")).text.split()[2] == "1"


# Installed or not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [{"httpx"}, {"httpx2"}, {"httpx", "httpx2"}, {"hypercorn"}])
def test_either_half_without_the_others_libraries(absent: set[str]) -> None:
    """The client's half works with one of its libraries, and says what to install where there is none."""
    program = f"""
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
import trionode.http
try:
    trionode.http.HTTPTransport
except ModuleNotFoundError as exc:
    print(exc)
else:
    print("works")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    expected = "pip install 'trionode[http]'" if absent == {"httpx", "httpx2"} else "works"
    assert expected in done.stdout
