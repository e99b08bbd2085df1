"""What a node reports while it runs: typed events, for any number of readers.

Theory. Publishing is synchronous and never waits. Each reader has a bounded buffer of its own; one that is too slow
loses its oldest events and sees how many, so no reader can hold up the node or another reader.

They are published where things happen: of connections and refused handshakes in `runtime` (`Runtime.refused`, for both
sides), of cert managers in `manager_watch`, of resolvers in `directory`, `membership` and
`registration`.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._util.home import home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from cryptography import x509

    from trionode._connection.connection import Connection
    from trionode._connection.end import EndReason
    from trionode._connection.hand_over import RenewalCause
    from trionode._errors import CertificateError, HandshakeError
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer
    from trionode._managers.trust import TrustRotationError
    from trionode._util.text import Address

    from .connector import ConnectorState

__all__ = [
    "AcceptorDown",
    "AcceptorUp",
    "CertificateExpiring",
    "ConnectionDown",
    "ConnectionUp",
    "ConnectorChanged",
    "EventStream",
    "GenerationPublished",
    "HandOverFailed",
    "HandedOver",
    "HandshakeRefused",
    "NameInUse",
    "NodeEvent",
    "PeerFound",
    "PeerLost",
    "ResolverTrouble",
    "RevocationListExpiring",
    "RotationRefused",
    "Side",
    "SourceTrouble",
]

#: How many events a reader may be behind before it loses the oldest.
BUFFER: Final = 1024


class Side(StrEnum):
    """Which side of a connection we are."""

    ACCEPT = "accept"
    DIAL = "dial"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEvent:
    """Base of all events.

    Attributes:
        node: the node that reports.
    """

    node: NodeName


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptorUp(NodeEvent):
    """An acceptor listens.

    Attributes:
        address: its first (host, port).
    """

    address: Address


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptorDown(NodeEvent):
    """An acceptor stopped listening.

    Attributes:
        address: its first (host, port).
    """

    address: Address


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandshakeRefused(NodeEvent):
    """A handshake failed: this node refused the peer, the peer refused this node, or it did not come to a verdict.

    Attributes:
        side: which side we were.
        address: the other end's (host, port), or None where it is not known.
        error: what happened; its class says which side refused.
    """

    side: Side
    address: Address | None
    error: HandshakeError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionUp(NodeEvent):
    """Both sides accepted; the connection is registered.

    Attributes:
        side: which side we were.
        peer: the node at the other end.
        connection: the connection.
    """

    side: Side
    peer: Peer
    connection: Connection


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionDown(NodeEvent):
    """A connection has ended: `connect` no longer returns it.

    Attributes:
        peer: the node at the other end.
        connection: the connection.
        reason: why.
        error: what happened, where something did.
    """

    peer: Peer
    connection: Connection
    reason: EndReason
    error: Exception | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandedOver(NodeEvent):
    """A connection moved to a new link, and the old one is closed. Reported on both sides.

    Attributes:
        connection: the connection; its generations and its peer's certificate are those of the new link.
    """

    connection: Connection


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandOverFailed(NodeEvent):
    """A hand-over failed before its commit: the connection goes on as it was, and it will be tried again.

    Attributes:
        connection: the connection.
        cause: why it was to be handed over.
        error: what happened.
    """

    connection: Connection
    cause: RenewalCause
    error: Exception


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationPublished(NodeEvent):
    """A manager that the node uses published a new generation; of several at once the last is reported.

    Attributes:
        generation: its number.
        fingerprint: SHA-256 of its leaf certificate, lower-case hex.
    """

    generation: int
    fingerprint: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateExpiring(NodeEvent):
    """A certificate that the node presents or trusts has a third of its lifetime left, a tenth, an hour, or nothing.

    Attributes:
        certificate: the certificate.
        left: the time that it has left; negative once it has ended.
    """

    certificate: x509.Certificate
    left: timedelta


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RevocationListExpiring(NodeEvent):
    """A certificate revocation list has a third of its time left, a tenth, an hour, or nothing.

    Attributes:
        crl: the list.
        left: the time until its nextUpdate; negative after it, when peers of its issuer are refused.
    """

    crl: x509.CertificateRevocationList
    left: timedelta


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NameInUse(NodeEvent):
    """Two live nodes claim one name: the second was refused. Reported on both sides, beside `HandshakeRefused`.

    Attributes:
        side: which side we were.
        address: the other end's (host, port), or None where it is not known.
        error: the refusal; its text has the name.
    """

    side: Side
    address: Address | None
    error: HandshakeError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectorChanged(NodeEvent):
    """A connector that keeps a connection up changed its state.

    Attributes:
        name: the peer.
        state: the new state.
    """

    name: NodeName
    state: ConnectorState


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ResolverTrouble(NodeEvent):
    """A resolver failed, did not answer in time, or gave an answer that is not valid.

    Attributes:
        name: what it was asked for; None where it was to register this node, or to name the members.
        error: what happened.
    """

    name: NodeName | None
    error: Exception


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PeerFound(NodeEvent):
    """The resolver names a node that it did not name before; see `Node.members`.

    Attributes:
        name: of the node.
    """

    name: NodeName


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PeerLost(NodeEvent):
    """The resolver no longer names a node. A connection to it stays as it is.

    Attributes:
        name: of the node.
    """

    name: NodeName


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RotationRefused(NodeEvent):
    """A manager that the node uses refused an update or a rotation of trust; what was published stays.

    Of several at once the last.

    Attributes:
        generation: the generation that stays.
        error: what was wrong with the candidate.
    """

    generation: int
    error: CertificateError | TrustRotationError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTrouble(NodeEvent):
    """What a manager's source has cannot be published, see `follow_source`; or can again. What was published stays.

    Attributes:
        error: what is wrong; None: nothing any more.
    """

    error: Exception | None


@final
class EventStream(trio.abc.ReceiveChannel[NodeEvent]):
    """A reader of a node's events; a `trio.abc.ReceiveChannel`. Iterate over it; it ends with the node.

    Attributes:
        missed: how many events this reader lost because it was too slow.
    """

    def __init__(self) -> None:
        self.missed: int = 0
        self._home = home()
        self._buffer: deque[NodeEvent] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self._ended = False

    async def receive(self) -> NodeEvent:
        """The next event. Cancelling loses nothing.

        Raises:
            trio.EndOfChannel: the node is closed, and everything was read.
            trio.ClosedResourceError: this reader was closed.
            RuntimeError: this is another thread than the node's, or a forked child.
        """
        self._home.check("EventStream")
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._buffer:
                return self._buffer.popleft()
            if self._ended:
                raise trio.EndOfChannel
            await self._arrived.park()

    async def aclose(self) -> None:
        """Stop reading."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As `aclose()`, without its checkpoint."""
        self._closed = True
        self._buffer.clear()
        self._arrived.unpark_all()

    def _put(self, event: NodeEvent) -> None:
        if len(self._buffer) >= BUFFER:
            self._buffer.popleft()
            self.missed += 1
        self._buffer.append(event)
        self._arrived.unpark()

    def _end(self) -> None:
        self._ended = True
        self._arrived.unpark_all()


@final
class EventHub:
    """Hands each event to every reader."""

    def __init__(self) -> None:
        self._readers: set[EventStream] = set()

    def publish(self, event: NodeEvent) -> None:
        """Hand an event out; synchronous, never blocks."""
        for reader in self._readers:
            reader._put(event)  # noqa: SLF001 -- the reader's other half

    def end(self) -> None:
        """No event will follow."""
        for reader in self._readers:
            reader._end()  # noqa: SLF001 -- the reader's other half

    @contextmanager
    def subscribe(self) -> Iterator[EventStream]:
        """A reader of everything published from now on."""
        reader = EventStream()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.close()
