"""What nodes stand on: listeners and streams of bytes, by default TCP's.

Theory. A node needs three things from below: places to listen, a way to connect, and streams that carry bytes in order
until they end or break. Whatever gives these can carry it, for TLS and everything above is the node's own: no
transport can weaken it. Deadlines are the caller's too: a transport just waits, and is cancelled.

This seam is for tests (`trionode.testing.MemoryNetwork`) and for transports other than TCP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, final, runtime_checkable

import trio

from trionode._identity.names import host_address

from .tcp import TCPListener, open_listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._errors import Address

__all__ = ["Listener", "Transport"]


class Listener(Protocol):
    """One place where connections come in.

    Attributes:
        address: the (host, port) that it is bound to, for people and for resolvers.
    """

    @property
    def address(self) -> Address:
        """The (host, port) that it is bound to."""

    async def accept(self) -> trio.abc.Stream:
        """Wait for the next connection. Cancelling loses none.

        Nothing that a peer does may make this fail; where the system does, it is tried again in here.

        Raises:
            trio.ClosedResourceError: the listener was closed.
        """

    def close(self) -> None:
        """Stop listening, at once; who waits in `accept` is woken. Idempotent."""


@runtime_checkable
class Transport(Protocol):
    """What carries a node's connections; `NetworkOptions.transport`.

    Streams are `trio.abc.Stream`s, and `trio.abc.HalfCloseableStream`s where possible: it lets the reason for a refusal
    arrive before the end does. One that knows where its peer is has the attribute `peer_address`, a (host, port).
    """

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> Sequence[Listener]:
        """Listen on every address of a host, all on one port.

        Args:
            host: a canonical DNS name or address, IPv6 in brackets; None for all interfaces.
            port: the first port to try; 0 draws a free one.
            port_range: how many consecutive ports to try, from `port` on.
            only_local: skip addresses of the host that are not this machine's.

        Returns:
            One listener at least, all closed by the caller.

        Raises:
            ListenError: no port of the range can be had, or the host has no (local) address.
        """

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Resolve a host and connect. Unbounded: the deadline is the caller's scope. Cancelling leaves nothing behind.

        Args:
            host: a canonical DNS name or address, IPv6 in brackets.
            port: from 1 to 65535.

        Raises:
            OSError: the name does not resolve, or nobody answers there.
        """


@final
class _TCP:
    """The default."""

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> Sequence[Listener]:
        listeners = await open_listeners(host, port, port_range=port_range, only_local=only_local)
        return [TCPListener(listener) for listener in listeners]

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        address = host_address(host)
        if address is None:
            return await trio.open_tcp_stream(host, port)
        # Nothing to resolve, and nothing to race: Trio's way would take a nursery and two tasks for it.
        family = trio.socket.AF_INET if address.version == 4 else trio.socket.AF_INET6
        socket = trio.socket.socket(family, trio.socket.SOCK_STREAM)
        try:
            await socket.connect((str(address), port))
        except BaseException:
            socket.close()
            raise
        return trio.SocketStream(socket)


TCP: Final = _TCP()
