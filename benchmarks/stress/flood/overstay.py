"""A client that is let in without a certificate, asks for more than it takes, and takes a few bytes now and then.

So there is always something that the node still has to send it, and the node has to close it against its will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from benchmarks.stress.nodes import LOOPBACK
from trionode import CAPool, CertAuthManager, KeyPair, NetworkMode, NetworkOptions, NodeOptions, Route, open_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import Listener

#: How much it takes at a time, and how long it waits in between. Bytes, seconds.
SIP: Final = 64
BETWEEN: Final = 0.2
#: The service that sends without end.
SPRING: Final = "spring"


@final
class _Sipping(trio.abc.HalfCloseableStream):
    """A TCP stream whose reader may turn slow."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.slow = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What there is; a sip of it, later."""
        if not self.slow:
            return bytes(await self._stream.receive_some(max_bytes))
        await trio.sleep(BETWEEN)
        return bytes(await self._stream.receive_some(SIP))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """As the stream."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As the stream."""
        await self._stream.aclose()


@final
class _Transport:
    """TCP, on which everything turns slow at once."""

    def __init__(self) -> None:
        self.streams: list[_Sipping] = []

    async def listen(self, *_: object, **__: object) -> Sequence[Listener]:
        """Not here."""
        raise NotImplementedError

    async def connect(self, host: str, port: int) -> _Sipping:
        """By TCP."""
        stream = _Sipping(await trio.open_tcp_stream(host, port))
        self.streams.append(stream)
        return stream


async def overstay(number: int, peer: str, port: int, directory: str) -> None:
    """Once: until the node has ended it.

    Args:
        number: of the client.
        peer: the node.
        port: of its acceptor for those without a certificate.
        directory: has its CA, `ca.pem`.

    Raises:
        TrionodeError: it was not let in.
    """
    transport, name = _Transport(), f"mallory{number}@localhost"
    manager = CertAuthManager(KeyPair.self_signed("localhost"), root_cas=CAPool.load(f"{directory}/ca.pem"))
    network = NetworkOptions(mode=NetworkMode.HIDDEN, transport=transport)
    async with open_node(name, NodeOptions(cert_manager=manager, network=network)) as node:
        connection = await node.connect(peer, Route(host=LOOPBACK, port=port))
        async with connection.open_channel(SPRING):
            for stream in transport.streams:
                stream.slow = True
            await connection.wait_closed()


async def spring(channel: trio.abc.SendChannel[bytes]) -> NoReturn:
    """The service."""
    while True:
        await channel.send(bytes(65536))
