"""What peers over web sockets have in common: the protocol of both ends, whichever library moves the messages."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from . import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from . import Send


async def serve_messages(send: Send, receive: Callable[[], Awaitable[bytes]]) -> None:
    """Serve one client until its socket is closed, which raises; its first message is as in `trio_streams`."""
    while True:
        if await receive() == b"E":
            while True:
                await send(await receive())
        number = 0
        while await receive():
            number += 1
        await send(number.to_bytes(8, "big"))


class SocketSession(Session):
    """One web socket, by its functions that send and receive a message."""

    def __init__(self, send: Send, receive: Callable[[], Awaitable[bytes]]) -> None:
        self._send = send
        self._receive = receive

    async def settle(self) -> None:
        """Its opening handshake was a round trip; what is left is to say what is wanted."""
        await self._send(b"E")

    async def call(self, request: bytes) -> bytes:
        """There and back."""
        await self._send(request)
        return await self._receive()

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """Messages, up to an empty one."""
        await self._send(b"C")
        yield self._send
        await self._send(b"")
        await self._receive()
