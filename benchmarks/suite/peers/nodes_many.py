"""trionode, where many small messages are at hand: `send_many`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import repeat
from typing import TYPE_CHECKING

from . import nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class ManySession(nodes.NodeSession):
    """A connection whose one-way messages are sent all together."""

    async def pour(self, message: bytes, count: int) -> None:
        """Send them by one call."""
        async with self.connection.open_channel("count") as channel:
            await channel.send_many(repeat(message, count))
            await channel.send_eof()
            await channel.receive()


class ManyClient(nodes.NodeClient):
    """Nodes that dial."""

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[ManySession]:
        """The next node to the next node."""
        async with super().dial(number) as session:
            yield ManySession(session.connection)


class ThePeer(nodes.ThePeer):
    """The receiving end is that of `nodes`: `async for`."""

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[ManyClient]:
        """Nodes that accept nothing."""
        async with super().client(ports, width) as client:
            yield ManyClient(client.nodes, len(ports))
