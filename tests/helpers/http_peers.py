"""HTTP peers that know nothing of us: servers on the standard library's TLS, in threads and hypercorn, and proxies."""

from __future__ import annotations

import http.server
import json
import logging
import ssl
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from trionode.pki import CertificateAuthority

#: What servers are issued for.
HOSTS = ("localhost", "127.0.0.1", "::1")


def server_files(ca: CertificateAuthority, folder: Path) -> dict[str, str]:
    """A server's files, by hypercorn's names for them."""
    files = {"certfile": folder / "server.pem", "keyfile": folder / "server.key", "ca_certs": folder / "ca.pem"}
    write_key_pair(ca.issue(*HOSTS), files["certfile"], files["keyfile"])
    write_ca_pool(ca.pool, files["ca_certs"])
    return {name: str(file) for name, file in files.items()}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the server knows of its client."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`GET`; the path's end is how many bytes come besides."""
        assert isinstance(self.connection, ssl.SSLSocket)
        certificate: Any = self.connection.getpeercert()
        told = {"serial": certificate["serialNumber"], "port": self.client_address[1], "host": self.headers["Host"]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        """Not a word."""


class _Server(http.server.ThreadingHTTPServer):
    """Shakes hands in the thread of each connection."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection."""
        request.settimeout(10)
        with suppress(OSError), self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The secured socket has closed it, or what is left of it is closed here."""
        with suppress(OSError):
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Not a word."""


@contextmanager
def telling(context: ssl.SSLContext) -> Iterator[int]:
    """A server, for the length of the block, that tells its clients what it knows of them; its port."""
    with _Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def own_tls(app: Any, files: dict[str, str], **settings: Any) -> AsyncIterator[int]:
    """Hypercorn with its own TLS for the length of a block; gives its port."""
    quiet = logging.getLogger("tests.hypercorn")
    quiet.setLevel(logging.CRITICAL)
    config = Config.from_mapping(None, bind=["127.0.0.1:0"], errorlog=quiet, graceful_timeout=0.1, **files, **settings)
    async with trio.open_nursery() as nursery:
        [where] = await nursery.start(serve, app, config)
        yield int(where.rpartition(":")[2])
        nursery.cancel_scope.cancel()


# Proxies ------------------------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy, and what went through it.

    Attributes:
        port: where it listens.
        targets: what it was asked for, in order.
    """

    port: int = 0
    targets: list[str] = field(default_factory=list)


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)
    await trio.aclose_forcefully(sink)


async def _join(client: trio.abc.Stream, host: str, port: int, answer: bytes) -> None:
    server = await trio.open_tcp_stream(host, port)
    await client.send_all(answer)
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(_pump, client, server)
        nursery.start_soon(_pump, server, client)


async def tunnel(client: trio.abc.Stream, proxy: Proxy) -> None:
    """One client of an HTTP proxy that does CONNECT."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = await client.receive_some()
        if not data:
            return
        request += data
    method, target, _ = request.split(b" ", 2)
    assert method == b"CONNECT"
    proxy.targets.append(target.decode())
    host, _, port = target.decode().rpartition(":")
    await _join(client, host, int(port), b"HTTP/1.1 200 OK\r\n\r\n")


async def socks5(client: trio.abc.Stream, proxy: Proxy) -> None:
    """One client of a SOCKS5 proxy (RFC 1928), without authentication, that names its target."""
    assert (await client.receive_some())[:1] == b"\x05"
    await client.send_all(b"\x05\x00")
    request = await client.receive_some()
    assert request[:4] == b"\x05\x01\x00\x03"
    host, port = request[5 : 5 + request[4]].decode(), int.from_bytes(request[-2:], "big")
    proxy.targets.append(f"{host}:{port}")
    await _join(client, host, port, b"\x05\x00\x00\x01" + bytes(6))
