"""Bare `trio.SSLStream`, with the framing that one writes by hand: a length, then the message, one `send_all` for both.

A client's first byte says what it wants, and comes back: E, everything back as it is; C, count framed messages up to
an empty one, and say how many.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from benchmarks.suite.credentials import ADDRESS, HOST

from . import Client, Session
from .loops import TrioPeer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.suite.credentials import Credentials

    from . import Send


class Framed:
    """Messages over a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, message: bytes) -> None:
        """Send one."""
        await self._stream.send_all(len(message).to_bytes(4, "big") + message)

    async def receive(self) -> bytes:
        """Receive one."""
        size = int.from_bytes(await self._exactly(4), "big")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self._buffer += data
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found


async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Everything back as it is."""
    while data := await stream.receive_some():
        await stream.send_all(data)


class StreamSession(Session):
    """One stream, used for one purpose."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def settle(self) -> None:
        """One byte echoed."""
        await self._stream.send_all(b"E")
        await self._stream.receive_some(1)

    async def call(self, request: bytes) -> bytes:
        """There and back, without framing: both know the length."""
        await self._stream.send_all(request)
        reply = await self._stream.receive_some()
        while len(reply) < len(request):
            reply += await self._stream.receive_some()
        return bytes(reply)

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """Frames, up to an empty one."""
        await self._stream.send_all(b"C")
        await self._stream.receive_some(1)
        framed = Framed(self._stream)
        yield framed.send
        await framed.send(b"")
        await framed.receive()


class StreamClient(Client):
    """The dialer."""

    def __init__(self, ports: Sequence[int], context: ssl.SSLContext) -> None:
        self._ports = ports
        self._context = context

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[StreamSession]:
        """A stream."""
        tcp = await trio.open_tcp_stream(ADDRESS, self._ports[number % len(self._ports)])
        stream = trio.SSLStream(tcp, self._context, server_hostname=HOST)
        try:
            yield StreamSession(stream)
        finally:
            await stream.aclose()


class ThePeer(TrioPeer):
    """What comes with Trio."""

    echo = staticmethod(echo)

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self._server = credentials.stdlib("server")
        self._client = credentials.stdlib("client")

    async def serve_one(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """One client."""
        try:
            while mode := await stream.receive_some(1):
                await stream.send_all(mode)
                if mode == b"E":
                    await self.echo(stream)
                else:
                    framed, number = Framed(stream), 0
                    while await framed.receive():
                        number += 1
                    await framed.send(number.to_bytes(8, "big"))
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One listener, as `trio.serve_ssl_over_tcp` has it."""
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_ssl_over_tcp, self.serve_one, 0, self._server, host=ADDRESS)
            listeners: list[trio.SSLListener[trio.SocketStream]] = await nursery.start(serve)
            transport = listeners[0].transport_listener
            assert isinstance(transport, trio.SocketListener)
            yield [transport.socket.getsockname()[1]] * width
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[StreamClient]:  # noqa: ARG002
        """Nothing to open."""
        yield StreamClient(ports, self._client)
