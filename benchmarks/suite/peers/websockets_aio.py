"""websockets on asyncio, over TLS."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from benchmarks.suite.credentials import ADDRESS, HOST

from . import Client, Session
from .loops import AsyncioPeer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from . import Send


async def serve_one(socket: Any) -> None:
    """One client: its first message says what it wants, as in `trio_streams`."""
    try:
        while True:
            if await socket.recv() == b"E":
                while True:
                    await socket.send(await socket.recv())
            number = 0
            while await socket.recv():
                number += 1
            await socket.send(number.to_bytes(8, "big"))
    except websockets.exceptions.ConnectionClosed:
        pass


class SocketSession(Session):
    """One web socket."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def settle(self) -> None:
        """Its opening handshake was a round trip; what is left is to say what is wanted."""
        await self._socket.send(b"E")

    async def call(self, request: bytes) -> bytes:
        """There and back."""
        await self._socket.send(request)
        reply: bytes = await self._socket.recv()
        return reply

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """Messages, up to an empty one."""
        await self._socket.send(b"C")
        yield self._socket.send
        await self._socket.send(b"")
        await self._socket.recv()


class SocketClient(Client):
    """Whoever dials."""

    def __init__(self, ports: Sequence[int], context: ssl.SSLContext) -> None:
        self._ports = ports
        self._context = context

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[SocketSession]:
        """A web socket."""
        address = f"wss://{ADDRESS}:{self._ports[number % len(self._ports)]}/"
        async with connect(address, ssl=self._context, server_hostname=HOST, compression=None, proxy=None) as socket:
            yield SocketSession(socket)


class ThePeer(AsyncioPeer):
    """With its C parts where there are any; compression off, which would cost it dearly."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        async with serve(serve_one, ADDRESS, 0, ssl=self.credentials.stdlib("server"), compression=None) as server:
            yield [next(iter(server.sockets)).getsockname()[1]] * width

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[SocketClient]:  # noqa: ARG002
        """Nothing to open."""
        yield SocketClient(ports, self.credentials.stdlib("client"))
