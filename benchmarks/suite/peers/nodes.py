"""trionode: two nodes, or many, and the connections between them."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.suite.credentials import ADDRESS, HOST
from trionode import (
    AcceptorOptions,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Route,
    open_node,
)

from . import Client, Session
from .loops import TrioPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.suite.credentials import Credentials
    from trionode import Connection, Node, ServiceChannel

    from . import Send


async def echo(channel: ServiceChannel) -> None:
    """Give back one message."""
    await channel.send(await channel.receive())


async def count(channel: ServiceChannel) -> None:
    """Count messages to their end, then say how many."""
    number = 0
    async for _ in channel:
        number += 1
    await channel.send(number.to_bytes(8, "big"))


class NodeSession(Session):
    """A connection between two nodes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def settle(self) -> None:
        """Nothing: after `connect` both have verified each other, exchanged hellos and heard each other's verdict."""

    async def call(self, request: bytes) -> bytes:
        """A call."""
        return await self.connection.call("echo", request)

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """A channel; sending is its bare `send`."""
        async with self.connection.open_channel("count") as channel:
            yield channel.send
            await channel.send_eof()
            await channel.receive()


class NodeClient(Client):
    """Nodes that dial."""

    def __init__(self, nodes: Sequence[Node], servers: int) -> None:
        self.nodes = nodes
        self._servers = servers

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[NodeSession]:
        """The next node to the next node."""
        node = self.nodes[number // self._servers]
        connection = await node.connect(f"server{number % self._servers}@{HOST}")
        try:
            yield NodeSession(connection)
        finally:
            await connection.aclose()

    async def first_call(self, request: bytes) -> bytes:
        """A call of a node that there is no connection to."""
        node, server = self.nodes[0], f"server0@{HOST}"
        reply = await node.call(server, "echo", request)
        await node.connections[server].aclose()
        return reply


class ThePeer(TrioPeer):
    """Nodes as the manual opens them, with nothing tuned."""

    multiplexes = True

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.server_manager = credentials.manager("server")
        self.client_manager = credentials.manager("client")

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """Nodes with an acceptor each."""
        network = NetworkOptions(acceptors=[AcceptorOptions(host=ADDRESS, port=0)])
        services = {"echo": echo, "count": self.counting}
        options = NodeOptions(cert_manager=self.server_manager, network=network, services=services)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(open_node(f"server{i}@{HOST}", options)) for i in range(width)]
            yield [node.acceptors[0].address[1] for node in nodes]

    async def counting(self, channel: ServiceChannel) -> None:
        """The service that counts."""
        await count(channel)

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[NodeClient]:
        """Nodes that accept nothing."""
        routes = {f"server{i}@{HOST}": Route(host=ADDRESS, port=port) for i, port in enumerate(ports)}
        network = NetworkOptions(mode=NetworkMode.HIDDEN, routes=routes)
        options = NodeOptions(cert_manager=self.client_manager, network=network)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(open_node(f"client{i}@{HOST}", options)) for i in range(width)]
            yield NodeClient(nodes, len(ports))
