"""HTTP to etcd, against servers that are none: whatever they say is bounded, and one typed error."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from trionode import NodeName, ResolverError, serve_tls
from trionode.discovery import EtcdRegistry, http_client
from trionode.discovery.etcd_messages import EtcdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import ManagerFactory

    from trionode import TLSStream

BETA = NodeName.parse("beta@localhost")
EMPTY = b'{"header":{"revision":"5"}}'


def reply(body: bytes, status: str = "200 OK", *, more: str = "") -> bytes:
    """A whole reply."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def request(stream: TLSStream) -> bytes:
    """The next request, as far as its body's end."""
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        piece = await stream.receive_some()
        if not piece:
            raise trio.EndOfChannel
        data += piece
    return data


def says(*pieces: bytes) -> Callable[[TLSStream], Awaitable[None]]:
    """A server that answers a request with these bytes, and ends."""

    async def serve(stream: TLSStream) -> None:
        await request(stream)
        for piece in pieces:
            await stream.send_all(piece)

    return serve


@asynccontextmanager
async def server(
    manager: ManagerFactory, handler: Callable[[TLSStream], Awaitable[None]], patience: float = 5
) -> AsyncIterator[EtcdRegistry]:
    """A registry whose etcd is a handler."""

    async def serve(stream: TLSStream) -> None:
        with suppress(trio.EndOfChannel, trio.BrokenResourceError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        served = partial(serve_tls, serve, 0, host="127.0.0.1", cert_manager=manager("127.0.0.1"), alpn=["http/1.1"])
        [listener] = await nursery.start(served)
        port = listener.socket.getsockname()[1]
        yield EtcdRegistry(f"127.0.0.1:{port}", cert_manager=manager("client@localhost"), timeout=patience)
        nursery.cancel_scope.cancel()


async def test_connection_is_kept(manager: ManagerFactory) -> None:
    """Requests of one session go over one connection; one that the server closed meanwhile is made anew."""
    connections = 0

    async def twice(stream: TLSStream) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            assert (await request(stream)).startswith(b"POST /v3/kv/range HTTP/1.1\r\n")
            await stream.send_all(reply(EMPTY))

    with trio.fail_after(10):
        async with server(manager, twice) as registry, registry._session() as session:
            for _ in range(5):
                assert (await session.range(b"a", None, limit=1)).header.revision == 5
            assert connections == 3


@pytest.mark.parametrize(
    ("said", "words", "temporary"),
    [
        ([b"garbage\r\n\r\n"], "no server answers", True),
        ([reply(b"garbage")], "not understood", True),
        ([reply(b"[" * 100_000)], "not understood", True),
        ([reply(b'{"header": 7}')], "not understood", True),
        ([reply(b'{"header": {}, "kvs": [{"key": "!"}]}')], "not understood", True),
        ([reply(b"moved", "302 Found", more="Location: https://127.0.0.1:1/\r\n")], "status 302", False),
        ([reply(b"<html>", "503 Service Unavailable")], "status 503", True),
        ([reply(b'{"code": 14, "message": "no leader"}', "503 Service Unavailable")], "no leader", True),
        ([reply(b'{"code": 7, "message": "permission\\ndenied"}', "403 Forbidden")], r"permission\\ndenied", False),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"], "no server answers", True),
        ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000], "no server answers", True),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], "no server answers", True),
    ],
    ids=["junk", "json", "deep", "types", "base64", "moved", "proxy", "leader", "denied", "cut", "headers", "switch"],
)
async def test_whatever_a_server_says(manager: ManagerFactory, said: list[bytes], words: str, temporary: bool) -> None:
    """One error, which says what; whether trying again may help; and nothing is followed anywhere."""
    with trio.fail_after(10):
        async with server(manager, says(*said)) as registry:
            with pytest.raises(ResolverError, match=words) as caught:
                await registry.resolve(BETA)
            assert caught.value.temporary is temporary


async def test_a_reply_without_end(manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read to a bound; one that drips, for a time."""
    monkeypatch.setattr(http_client, "MAX_REPLY", 100_000)
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"

    async def endless(stream: TLSStream) -> None:
        await request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(chunk)

    async def dripping(stream: TLSStream) -> None:
        await request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"1\r\n \r\n")
            await trio.sleep(0.01)

    with trio.fail_after(10):
        async with server(manager, endless) as registry:
            with pytest.raises(ResolverError, match="more than 100000 bytes"):
                await registry.resolve(BETA)
            with pytest.raises(ResolverError, match="more than 100000 bytes"):
                async with registry._session() as session, session.watch(b"a", b"b", 1) as watch:
                    await watch.next()
        async with server(manager, dripping, patience=0.1) as registry:
            with pytest.raises(ResolverError, match="TooSlow"):
                await registry.resolve(BETA)


async def test_watch_is_read_line_by_line(manager: ManagerFactory) -> None:
    """However the pieces fall; a refusal in it is an error, a cut its end."""
    lines = b'{"result":{"header":{"revision":"7"}}}\n{}\n{"error":{"grpc_code":14,"message":"later"}}\n'
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(lines) + lines
    with trio.fail_after(10):
        async with server(manager, says(*(whole[n : n + 1] for n in range(len(whole))))) as registry:
            async with registry._session() as session, session.watch(b"a", b"b", 1) as watch:
                first = await watch.next()
                assert first is not None
                assert first.header.revision == 7
                with pytest.raises(EtcdError, match="later") as caught:
                    await watch.next()
            assert caught.value.temporary
        async with server(manager, _cut) as registry:
            async with registry._session() as session, session.watch(b"a", b"b", 1) as watch:
                assert await watch.next() is None


async def _cut(stream: TLSStream) -> None:
    await request(stream)
    await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"result"')
