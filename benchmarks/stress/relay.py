"""A stream that passes everything on to another: the base of those that change, copy or count what passes."""

from __future__ import annotations

import trio


class Relay(trio.abc.HalfCloseableStream):
    """Passes everything on, unchanged."""

    def __init__(self, transport: trio.abc.HalfCloseableStream) -> None:
        self.transport = transport

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self.transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until sending may succeed."""
        await self.transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End the sending direction."""
        await self.transport.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive."""
        return await self.transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close."""
        await self.transport.aclose()
