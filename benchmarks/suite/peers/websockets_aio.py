"""websockets on asyncio, over TLS."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from benchmarks.suite.credentials import ADDRESS, HOST

from . import Client
from .loops import AsyncioPeer
from .web_sockets import SocketSession, serve_messages

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence


async def serve_one(socket: Any) -> None:
    """One client."""
    with suppress(websockets.exceptions.ConnectionClosed):
        await serve_messages(socket.send, socket.recv)


class SocketClient(Client):
    """The dialer."""

    def __init__(self, ports: Sequence[int], context: ssl.SSLContext) -> None:
        self._ports = ports
        self._context = context

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[SocketSession]:
        """A web socket."""
        address = f"wss://{ADDRESS}:{self._ports[number % len(self._ports)]}/"
        async with connect(address, ssl=self._context, server_hostname=HOST, compression=None, proxy=None) as socket:
            yield SocketSession(socket.send, socket.recv)


class ThePeer(AsyncioPeer):
    """With its C parts where there are any, and without compression, which would slow it down."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        async with serve(serve_one, ADDRESS, 0, ssl=self.credentials.stdlib("server"), compression=None) as server:
            yield [next(iter(server.sockets)).getsockname()[1]] * width

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[SocketClient]:  # noqa: ARG002
        """Nothing to open."""
        yield SocketClient(ports, self.credentials.stdlib("client"))
