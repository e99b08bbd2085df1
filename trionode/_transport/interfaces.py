"""What nodes stand on: listeners and streams of bytes, by default TCP's.

Theory. A node needs three things from below: places to listen, a way to connect, and streams that carry bytes in order
until they end or break. Whatever gives these can carry it, for TLS and everything above is the node's own: no
transport can weaken it. Deadlines are the caller's too: a transport just waits, and is cancelled.

This seam is for tests (`trionode.testing.MemoryNetwork`) and for transports other than TCP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar, runtime_checkable

import trio

from trionode._util.home import close_in_children
from trionode._util.log import Log
from trionode._util.turns import turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionode._util.text import Address

__all__ = ["Listener", "Transport"]

_log = Log("trionode.acceptor")

S_co = TypeVar("S_co", bound=trio.abc.Stream, covariant=True)
S = TypeVar("S", bound=trio.abc.Stream)

#: How long an accept loop pauses after an error (descriptors or memory exhausted, mostly). Seconds.
ACCEPT_PAUSE: Final = 0.1


@runtime_checkable
class Listener(Protocol):
    """A place where connections are accepted.

    Attributes:
        address: the (host, port) that it is bound to, for people and for resolvers.
    """

    @property
    def address(self) -> Address:
        """The (host, port) that it is bound to."""

    async def accept(self) -> trio.abc.Stream:
        """Wait for the next connection. Cancelling loses none.

        Nothing that a peer does may make this fail; after an error of the system the listener itself tries again.

        Raises:
            trio.ClosedResourceError: the listener was closed.
        """

    def close(self) -> None:
        """Stop listening, at once; a task that waits in `accept` gets `trio.ClosedResourceError`. Idempotent."""


@runtime_checkable
class Transport(Protocol):
    """What carries a node's connections; `NetworkOptions.transport`.

    Streams are `trio.abc.Stream`s, and `trio.abc.HalfCloseableStream`s where possible, so that the reason for a refusal
    arrives before the end of the stream. A stream that knows its peer's address has the attribute `peer_address`, a
    (host, port).
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
        """Resolve a host and connect, without a deadline of its own. Cancelling leaves nothing behind.

        Args:
            host: a canonical DNS name or address, IPv6 in brackets.
            port: from 1 to 65535.

        Raises:
            OSError: the name does not resolve, or nothing answers there.
        """


@runtime_checkable
class Watched(Protocol):
    """A stream that knows by itself whether its two ends are alive, so that heartbeats need not ask: one in memory."""

    def attend(self, disturbed: Callable[[], None], /) -> None:
        """Say that this end answers heartbeats from now on, until it is closed.

        Args:
            disturbed: called, synchronously, when `sound` may have become False.
        """

    @property
    def sound(self) -> bool:
        """Whether both ends answer heartbeats and bytes pass in both directions, so that an answer is certain."""


class _Accepts(Protocol[S_co]):
    async def accept(self) -> S_co: ...


async def accept_patiently(listener: _Accepts[S] | trio.abc.Listener[S], where: str) -> S:
    """The next connection, whatever goes wrong meanwhile.

    While handshakes queue for the processor none is accepted: they wait in the system's queue, in order (`turns`).

    An accept error (EMFILE, ECONNABORTED, anything that a listener of the application raises) is logged, once for a
    streak of them, and paused after.

    Args:
        listener: a socket's, or any other.
        where: it listens, for the log.

    Raises:
        trio.ClosedResourceError: the listener was closed.
    """
    failing = False
    await turns().wait_calm()
    if isinstance(listener, trio.SocketListener):
        close_in_children(listener.socket)
    while True:
        try:
            stream = await listener.accept()
        except trio.ClosedResourceError:
            raise
        except Exception as exc:  # noqa: BLE001 -- whatever it is, later connections may come through
            if not failing:
                _log.error("accept on %s failed, trying again: %s", where, exc, acceptor=where, error=exc)
            failing = True
            await trio.sleep(ACCEPT_PAUSE)
        else:
            if failing:
                _log.warning("accept on %s works again", where, acceptor=where)
            if isinstance(stream, trio.SocketStream):
                close_in_children(stream.socket)
            return stream


@trio.lowlevel.enable_ki_protection  # in the middle of starting a task, it would leave a coroutine that never runs
async def accept_forever(listener: Listener, take: Callable[[trio.abc.Stream], None], where: str) -> None:
    """Accept connections and hand each to `take`, which must not block; until cancelled, or the listener is closed.

    Args:
        listener: whatever its `accept` raises, it is called again.
        take: called with each connection.
        where: it listens, for the log.
    """
    while True:
        try:
            stream = await accept_patiently(listener, where)
        except trio.ClosedResourceError:
            return
        take(stream)
