"""asyncio streams with `ssl`, with the framing that one writes by hand; the protocol is that of `trio_streams`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from benchmarks.suite.credentials import ADDRESS, HOST

from . import Client, Session
from .loops import AsyncioPeer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.suite.credentials import Credentials

    from . import Send


class Framed:
    """Messages over a pair of streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, message: bytes) -> None:
        """Send one."""
        self._writer.write(len(message).to_bytes(4, "big") + message)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Receive one."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        return await self._reader.readexactly(size)


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while mode := await reader.read(1):
            writer.write(mode)
            if mode == b"E":
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            else:
                framed, number = Framed(reader, writer), 0
                while await framed.receive():
                    number += 1
                await framed.send(number.to_bytes(8, "big"))
        writer.close()
        await writer.wait_closed()


class StreamSession(Session):
    """One pair of streams, used for one purpose."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def settle(self) -> None:
        """One byte echoed."""
        self._writer.write(b"E")
        await self._reader.readexactly(1)

    async def call(self, request: bytes) -> bytes:
        """There and back, without framing: both know the length."""
        self._writer.write(request)
        await self._writer.drain()
        return await self._reader.readexactly(len(request))

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """Frames, up to an empty one."""
        self._writer.write(b"C")
        await self._reader.readexactly(1)
        framed = Framed(self._reader, self._writer)
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
        """A pair of streams."""
        port = self._ports[number % len(self._ports)]
        reader, writer = await asyncio.open_connection(ADDRESS, port, ssl=self._context, server_hostname=HOST)
        try:
            yield StreamSession(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


class ThePeer(AsyncioPeer):
    """What comes with Python."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self._server = credentials.stdlib("server")
        self._client = credentials.stdlib("client")

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        server = await asyncio.start_server(serve_one, ADDRESS, 0, ssl=self._server)
        try:
            yield [server.sockets[0].getsockname()[1]] * width
        finally:
            server.close()

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[StreamClient]:  # noqa: ARG002
        """Nothing to open."""
        yield StreamClient(ports, self._client)
