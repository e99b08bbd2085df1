"""grpc.aio with mutual TLS; generic handlers, bytes for messages, so that no code is generated and nothing parsed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from benchmarks.suite.credentials import ADDRESS, HOST

from . import Client, Session
from .loops import AsyncioPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from . import Send

#: No limit to messages, and no subchannels shared between channels: each channel dials anew.
OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.ssl_target_name_override", HOST),
]


async def echo(request: bytes, _context: object) -> bytes:
    """Give back one message."""
    return request


async def count(requests: AsyncIterator[bytes], _context: object) -> bytes:
    """Count messages to their end, then say how many."""
    number = 0
    async for _ in requests:
        number += 1
    return number.to_bytes(8, "big")


class ChannelSession(Session):
    """One gRPC channel, which is one connection."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._echo = channel.unary_unary("/bench/echo")
        self._count = channel.stream_unary("/bench/count")

    async def settle(self) -> None:
        """Until the channel says so."""
        await self._channel.channel_ready()

    async def call(self, request: bytes) -> bytes:
        """A unary call."""
        reply: bytes = await self._echo(request)
        return reply

    @asynccontextmanager
    async def pouring(self) -> AsyncIterator[Send]:
        """A streaming call."""
        call = self._count()
        yield call.write
        await call.done_writing()
        await call


class ChannelClient(Client):
    """The dialer."""

    def __init__(self, ports: Sequence[int], credentials: object) -> None:
        self._ports = ports
        self._credentials = credentials

    @asynccontextmanager
    async def dial(self, number: int = 0) -> AsyncIterator[ChannelSession]:
        """A channel."""
        target = f"{ADDRESS}:{self._ports[number % len(self._ports)]}"
        async with grpc.aio.secure_channel(target, self._credentials, options=OPTIONS) as channel:
            yield ChannelSession(channel)


class ThePeer(AsyncioPeer):
    """gRPC, whose core has threads of its own: one process of it uses more than one core."""

    multiplexes = True

    def _files(self, end: str) -> tuple[bytes, bytes]:
        return self.credentials.key(end).read_bytes(), self.credentials.certificate(end).read_bytes()

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        ca = self.credentials.ca.read_bytes()
        credentials = grpc.ssl_server_credentials([self._files("server")], ca, require_client_auth=True)
        server = grpc.aio.server(options=OPTIONS)
        handlers = {
            "echo": grpc.unary_unary_rpc_method_handler(echo),
            "count": grpc.stream_unary_rpc_method_handler(count),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
        port = server.add_secure_port(f"{ADDRESS}:0", credentials)
        await server.start()
        try:
            yield [port] * width
        finally:
            await server.stop(None)  # noqa: ASYNC102 -- this is asyncio; without a grace period it is at once

    @asynccontextmanager
    async def client(self, ports: Sequence[int], width: int = 1) -> AsyncIterator[ChannelClient]:  # noqa: ARG002
        """Nothing to open."""
        key, certificate = self._files("client")
        yield ChannelClient(ports, grpc.ssl_channel_credentials(self.credentials.ca.read_bytes(), key, certificate))
