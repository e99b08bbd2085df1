"""Connections, as applications see them.

A `Connection` is a thin face of a `ConnectionCore`, which does the work and does not show here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, final

from trionode._util.home import home
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.metadata import NO_METADATA, as_metadata

from .calling import call
from .channel import ServiceChannel
from .closing import close, drain
from .end import EndReason
from .interceptors import CallSide, InterceptedCall, call_through

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionode._identity.peer import Peer

    from .core import ConnectionCore
    from .end import ConnectionEnd
    from .owner import ConnectionStatistics

__all__ = ["Connection"]


@interrupted_at_checkpoints
@final
class Connection:
    """One authenticated relation to one peer; carries any number of channels.

    Made by a node (`node.connect`, or an acceptor); there is no other way to a working one.
    """

    __slots__ = ("__weakref__", "_core", "_home")

    def __init__(self, core: ConnectionCore) -> None:
        self._core = core
        self._home = home()

    def __repr__(self) -> str:
        return repr(self._core)

    def __str__(self) -> str:
        """As a log line has it; `repr` shows the certificate, too."""
        return str(self._core)

    @property
    def id(self) -> str:
        """What logs call it: 16 hexadecimal digits, the same on both sides, and after a hand-over."""
        return self._core.id

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._core.peer

    @property
    def generation(self) -> int:
        """The generation of the contexts that this side took for it."""
        return self._core.generation

    @property
    def peer_generation(self) -> int:
        """The generation of the contexts that the peer took, by its own account."""
        return self._core.link.peer_generation

    @property
    def key_pair_fingerprint(self) -> str:
        """SHA-256 of the leaf in the contexts that this side took, lower-case hex."""
        return self._core.link.key_pair_fingerprint

    @property
    def superseded(self) -> bool:
        """Whether its manager publishes a later generation by now."""
        return self._core.superseded

    @property
    def live(self) -> bool:
        """Whether new channels can be opened; False from the moment that it begins to drain or to end."""
        return self._core.live

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of what it did and does."""
        return self._core.statistics()

    def open_channel(self, service: str, *, metadata: Mapping[str, str | bytes] | None = None) -> ServiceChannel:
        """Open a channel to a service of the peer; synchronous, nothing is waited for.

        The caller's effective deadline is sampled now and bounds the service task. Use it as
        `async with connection.open_channel("feed") as channel`. That the service does not exist shows at the first
        `receive()`.

        Interceptors of this node are not around it, since there is nothing to wait in: see `node.open_channel`.

        Args:
            service: its name over there; 1 to 255 characters.
            metadata: a small mapping of strings to strings or bytes, which the service finds as `channel.metadata`; at
                most the peer's `max_metadata_size` bytes, encoded.

        Raises:
            LocalProtocolError: the service name is not a string of 1 to 255 characters that UTF-8 can encode; or the
                metadata is larger than the peer accepts.
            TypeError, ValueError: the metadata is no such mapping.
            trio.ClosedResourceError: the connection was closed here, or drains.
            RemoteError: code `limit`: the peer does not allow more channels at once, or too much waits to be written
                for this metadata; `shutting_down`: it drains;
                `not_taken`: the connection was lost, or the peer closed it (`__cause__`). In each case `not_run`.
        """
        self._home.check("Connection")
        given = NO_METADATA if metadata is None else as_metadata(metadata)
        return ServiceChannel(self._core.open_channel(service, given))

    async def call(self, service: str, request: bytes, *, metadata: Mapping[str, str | bytes] | None = None) -> bytes:
        """Open a channel, send one message, half-close, receive exactly one message, close.

        At most once: after a `BrokenResourceError` the service may have run; nothing is retried. Where it certainly
        did not run, a `RemoteError` says so (`not_run`). Cancelling resets the channel, and the service over there is
        cancelled. A service that sends a second message gets a `LocalProtocolError`.

        Args:
            service: its name over there; 1 to 255 characters.
            request: the message, of up to the peer's `max_message_size` bytes.
            metadata: as for `open_channel`.

        Raises:
            RemoteError: the service did not do it; code `no_reply` if it ended without a message, `not_taken` if the
                connection had ended, or ended before the peer took the request.
            trio.ClosedResourceError: this program closed the connection, before or meanwhile.
            trio.BrokenResourceError: the connection ended; the service may have run.
            LocalProtocolError: the request or the metadata is larger than the peer accepts.
            TypeError, ValueError: the metadata is none.
        """
        self._home.check("Connection")
        given = NO_METADATA if metadata is None else as_metadata(metadata)
        core = self._core
        if not core.interceptors:
            return await call(core, service, request, given)
        intercepted = InterceptedCall(
            side=CallSide.CALLER, service=service, name=str(self.peer.name), metadata=given, request=request
        )
        return await call_through(core.interceptors, intercepted, partial(call, core, service, request))

    async def reauthenticate(self) -> None:
        """Hand this connection over to a new link: a new TLS session on the certificates that both sides have now.

        Everything that a new connection is checked for is checked again. Channels and calls in flight notice nothing.
        Where the peer dialled, it is asked to do it. When this returns, both sides are on the new link and the old
        one is closed. Cancelling leaves the connection on one of the two.

        Raises:
            HandshakeError: the new link could not be made; the connection goes on as it was. See its subclasses.
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        self._home.check("Connection")
        await self._core.owner.reauthenticate(self._core)

    async def drain(self) -> None:
        """Open no more channels, wait until those that are open and their services have ended, then close.

        The peer is told, and does not hand the connection out any more. Unbounded: the deadline is the caller's
        scope. Cancelled, it closes at once.
        """
        self._home.check("Connection")
        await drain(self._core)

    async def aclose(self) -> None:
        """Close it: flush what was accepted for sending, say goodbye, wait a bounded time for the peer's end.

        From its first moment on the connection is not handed out, and its channels raise `ClosedResourceError`. A
        peer that takes nothing for a second is given up. Cancelled, it closes at once.
        """
        self._home.check("Connection")
        await close(self._core, EndReason.CLOSED)

    async def wait_closed(self) -> ConnectionEnd:
        """Wait until it has ended and its link is closed. Cancelling is harmless."""
        self._home.check("Connection")
        return await self._core.wait_closed()


def core_of(connection: Connection) -> ConnectionCore:
    """What is behind a connection that an application gave back."""
    return connection._core  # noqa: SLF001 -- the one door
