"""trio-websocket over TLS: what a Trio user picks who wants messages and no framing of his own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio_websocket

from benchmarks.suite.credentials import ADDRESS

from . import Client, Session
from .loops import TrioPeer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from . import Send


async def serve_one(request: Any) -> None:
    """One client: its first message says what it wants, as in `trio_streams`."""
    socket = await request.accept()
    try:
        while True:
            if await socket.get_message() == b"E":
                while True:
                    await socket.send_message(await socket.get_message())
            number = 0
            while await socket.get_message():
                number += 1
            await socket.send_message(number.to_bytes(8, "big"))
    except trio_websocket.ConnectionClosed:
        pass


class SocketSession(Session):
    """One web socket."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def settle(self) -> None:
        """Its opening handshake was a round trip; what is left is to say what is wanted."""
        await self._socket.send_message(b"E")

    async def call(self, request: bytes) -> bytes:
        """There and back."""
        await self._socket.send_message(request)
        reply: bytes = await self._socket.get_message()
        return reply

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """Messages, up to an empty one."""
        await self._socket.send_message(b"C")
        yield self._socket.send_message
        await self._socket.send_message(b"")
        await self._socket.get_message()


class SocketClient(Client):
    """Whoever dials."""

    def __init__(self, ports: Sequence[int], context: ssl.SSLContext) -> None:
        self._ports = ports
        self._context = context

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[SocketSession]:
        """A web socket."""
        port = self._ports[number % len(self._ports)]
        async with trio_websocket.open_websocket(ADDRESS, port, "/", use_ssl=self._context) as socket:
            yield SocketSession(socket)


class ThePeer(TrioPeer):
    """One message at a time; no compression."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        context = self.credentials.stdlib("server")
        async with trio.open_nursery() as nursery:
            serve = partial(trio_websocket.serve_websocket, serve_one, ADDRESS, 0, context)
            server = await nursery.start(serve)
            yield [server.port] * width
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[SocketClient]:  # noqa: ARG002
        """Nothing to open."""
        yield SocketClient(ports, self.credentials.stdlib("client"))
