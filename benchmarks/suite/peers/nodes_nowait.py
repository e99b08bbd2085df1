"""trionode, where many small messages are at hand: `send_nowait` while there is room, else `send`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from . import nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class NowaitSession(nodes.NodeSession):
    """A connection whose one-way messages are sent without a checkpoint each."""

    async def pour(self, message: bytes, count: int) -> None:
        """Send what can be sent; wait where it cannot."""
        async with self.connection.open_channel("count") as channel:
            send_nowait = channel.send_nowait
            for _ in range(count):
                try:
                    send_nowait(message)
                except trio.WouldBlock:
                    await channel.send(message)
            await channel.send_eof()
            await channel.receive()


class NowaitClient(nodes.NodeClient):
    """Nodes that dial."""

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[NowaitSession]:
        """The next node to the next node."""
        async with super().dial(number) as session:
            yield NowaitSession(session.connection)


class ThePeer(nodes.ThePeer):
    """The receiving end is that of `nodes`: `async for`."""

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[NowaitClient]:
        """Nodes that accept nothing."""
        async with super().client(ports, width) as client:
            yield NowaitClient(client.nodes, len(ports))
