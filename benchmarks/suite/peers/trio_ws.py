"""trio-websocket over TLS: messages on Trio without framing by hand."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio_websocket

from benchmarks.suite.credentials import ADDRESS

from . import Client
from .loops import TrioPeer
from .web_sockets import SocketSession, serve_messages

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence


async def serve_one(request: Any) -> None:
    """One client."""
    socket = await request.accept()
    with suppress(trio_websocket.ConnectionClosed):
        await serve_messages(socket.send_message, socket.get_message)


class SocketClient(Client):
    """The dialer."""

    def __init__(self, ports: Sequence[int], context: ssl.SSLContext) -> None:
        self._ports = ports
        self._context = context

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[SocketSession]:
        """A web socket."""
        port = self._ports[number % len(self._ports)]
        async with trio_websocket.open_websocket(ADDRESS, port, "/", use_ssl=self._context) as socket:
            yield SocketSession(socket.send_message, socket.get_message)


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
