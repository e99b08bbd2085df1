"""What a connection is told when it is made, and what it tells: its settings, its statistics, and its owner.

The owner of a connection is its node. A connection knows it by the protocol here, and nothing else of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, final

from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._identity.names import NodeName
    from trionode._protocol import Limits

    from .end import ConnectionEnd
    from .hand_over import RenewalCause
    from .interceptors import Interceptor
    from .services import Services

__all__ = ["ConnectionStatistics"]

#: The connection that is owned: `ConnectionCore`.
C = TypeVar("C", contravariant=True)


class Publisher(Protocol):
    """A cert manager, as far as a connection asks it anything."""

    @property
    def generation(self) -> int:
        """The generation that it publishes now."""


class ConnectionOwner(Protocol[C]):
    """The node of a connection, as the connection knows it. All but `reauthenticate` is synchronous.

    Attributes:
        name: the node's.
    """

    name: NodeName

    def unregister(self, connection: C) -> None:
        """It is not to be handed out any more; called once."""

    def connection_ended(self, connection: C, end: ConnectionEnd) -> None:
        """It has begun to end; called once."""

    def connection_finished(self, connection: C) -> None:
        """Its links are closed and its tasks are gone; called once, and nothing after it."""

    def connection_moved(self, connection: C) -> None:
        """A hand-over has settled: it is on another link, and on no other."""

    def renew(self, connection: C, cause: RenewalCause) -> None:
        """It should be handed over soon; called as often as that is noticed."""

    async def reauthenticate(self, connection: C) -> None:
        """Hand it over now, or have the peer do it; see `Connection.reauthenticate`."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSettings:
    """What a connection is told when it is made; connections that are made alike share it.

    Attributes:
        services: what the peer may open channels to.
        limits: what this side accepts, as its hello said.
        max_pending_opens: channels opened by the peer whose service waits for another to end.
        budget: bytes that may be held for messages beyond their channels' windows.
        heartbeat_interval: silence after which the peer is pinged, seconds.
        heartbeat_tolerance: how long it may take to answer, seconds.
        max_records: TLS records under one key after which the connection is to be renewed.
        manager: whose contexts its links take.
        protocol_log: where peers that break the protocol are logged.
        interceptors: of the node's; the outermost first.
    """

    services: Services
    limits: Limits
    max_pending_opens: int
    budget: int
    heartbeat_interval: float
    heartbeat_tolerance: float
    max_records: int
    manager: Publisher
    protocol_log: RateLimitedLog = field(repr=False)
    interceptors: Sequence[Interceptor] = ()


def protocol_log() -> RateLimitedLog:
    """The log of peers that break the protocol, which all connections of a node share: they may do it again."""
    return RateLimitedLog(Log("trionode.connection"), "connections broke the protocol")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionStatistics:
    """A snapshot of one connection.

    Attributes:
        channels: open now.
        channels_opened: opened so far, by either side.
        services: service tasks that run for it.
        hand_overs: how often it moved to a new link.
        bytes_sent: written, before encryption.
        bytes_received: read, after decryption.
    """

    channels: int
    channels_opened: int
    services: int
    hand_overs: int
    bytes_sent: int
    bytes_received: int
