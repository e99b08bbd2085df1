"""What the status of a node or a server says: documents, and how they are made. They hold no secrets.

Names, counts and dates; no keys, messages or names of services.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from trionode._connection.connection import core_of
from trionode._identity.certificate import not_after
from trionode._identity.describe import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionode._connection.connection import Connection
    from trionode._managers.statistics import ManagerStatistics
    from trionode._node.node import Node
    from trionode._node.statistics import HandshakeCount, ManagerUse
    from trionode._streams.monitor import ServerMonitor


class ConnectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One connection."""

    peer: str
    address: tuple[str, int] | None
    verified: bool
    dialled: bool
    generation: int
    peer_generation: int
    superseded: bool
    certificate_ends: datetime | None
    channels: int
    services: int
    bytes_sent: int
    bytes_received: int


class ValidityStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Until when one certificate or list is good."""

    role: str
    subject: str
    not_before: datetime
    not_after: datetime


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a manager's credentials come from, and what keeps them from being used; `since` is when that began."""

    name: str
    error: str | None
    pending: str | None
    since: datetime


class ManagerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One cert manager that the node or server uses; of a server, its streams are called connections here, too."""

    label: str
    generation: int
    connections: dict[str, int]
    superseded: int
    refused: dict[str, int]
    validities: list[ValidityStatus]
    source: SourceStatus | None = None


class HandshakeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many handshakes went one way."""

    side: str
    outcome: str
    reason: str
    count: int


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="node"):
    """A snapshot of a node; `clock` is in seconds, for differences between two snapshots."""

    node: str
    process: int
    incarnation: int
    at: datetime
    clock: float
    open: bool
    listens_on: list[tuple[str, int]]
    connections: list[ConnectionStatus]
    managers: list[ManagerStatus]
    handshakes: list[HandshakeStatus]
    pending_handshakes: dict[str, int]
    ends: dict[str, int]
    channels: int
    channels_opened: int
    services: int
    bytes_sent: int
    bytes_received: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="server"):
    """A snapshot of a server; `clock` is in seconds, for differences between two snapshots."""

    server: str
    process: int
    incarnation: int
    at: datetime
    clock: float
    open: bool
    listens_on: list[str]
    streams: int
    managers: list[ManagerStatus]
    handshakes: list[HandshakeStatus]
    pending_handshakes: dict[str, int]

    @property
    def name(self) -> str:
        """The server's name."""
        return self.server


Status: TypeAlias = NodeStatus | ServerStatus


def server_status(monitor: ServerMonitor) -> ServerStatus:
    """A snapshot, in the server's own thread."""
    statistics = monitor.statistics()
    return ServerStatus(
        server=monitor.name,
        process=os.getpid(),
        incarnation=monitor.incarnation,
        at=datetime.now(UTC),
        clock=time.monotonic(),
        open=statistics.open,
        listens_on=list(statistics.listens_on),
        streams=statistics.streams,
        managers=[_manager(use) for use in statistics.managers],
        handshakes=_handshakes(statistics.handshakes),
        pending_handshakes={side.value: count for side, count in statistics.pending_handshakes.items()},
    )


def _handshakes(counts: Iterable[HandshakeCount]) -> list[HandshakeStatus]:
    return [
        HandshakeStatus(side=each.side, outcome=each.outcome, reason=each.reason, count=each.count) for each in counts
    ]


def node_status(node: Node) -> NodeStatus:
    """A snapshot, in the node's own thread."""
    statistics = node.statistics()
    return NodeStatus(
        node=str(node.name),
        process=os.getpid(),
        incarnation=node.incarnation,
        at=datetime.now(UTC),
        clock=time.monotonic(),
        open=statistics.open,
        listens_on=[address for acceptor in node.acceptors for address in acceptor.addresses],
        connections=[*_connections(node.connections.values()), *_connections(node.unverified_connections)],
        managers=[_manager(use) for use in statistics.managers],
        handshakes=_handshakes(statistics.handshakes),
        pending_handshakes={side.value: count for side, count in statistics.pending_handshakes.items()},
        ends={reason.value: count for reason, count in statistics.ends.items()},
        channels=statistics.channels,
        channels_opened=statistics.channels_opened,
        services=statistics.services,
        bytes_sent=statistics.bytes_sent,
        bytes_received=statistics.bytes_received,
    )


def _connections(connections: Iterable[Connection]) -> list[ConnectionStatus]:
    return [_connection(connection) for connection in connections]


def _connection(connection: Connection) -> ConnectionStatus:
    peer, statistics = connection.peer, connection.statistics()
    return ConnectionStatus(
        peer=str(peer.name),
        address=peer.address,
        verified=peer.verified,
        dialled=core_of(connection).link.dialled,
        generation=connection.generation,
        peer_generation=connection.peer_generation,
        superseded=connection.superseded,
        certificate_ends=None if peer.certificate is None else not_after(peer.certificate),
        channels=statistics.channels,
        services=statistics.services,
        bytes_sent=statistics.bytes_sent,
        bytes_received=statistics.bytes_received,
    )


def _manager(use: ManagerUse) -> ManagerStatus:
    return ManagerStatus(
        label=use.label,
        generation=use.manager.generation,
        connections={str(generation): count for generation, count in use.connections.items()},
        superseded=use.superseded,
        refused={str(reason): count for reason, count in use.manager.refused.items() if count},
        validities=[
            ValidityStatus(role=each.role, subject=each.subject, not_before=each.not_before, not_after=each.not_after)
            for each in use.manager.validities
        ],
        source=_source(use.manager),
    )


def _source(manager: ManagerStatistics) -> SourceStatus | None:
    if manager.source is None or manager.source_since is None:
        return None
    trouble, pending = manager.source_trouble, manager.source_pending
    errors = trouble.exceptions if isinstance(trouble, ExceptionGroup) else (trouble,)
    return SourceStatus(
        name=manager.source,
        error=None if trouble is None else "; ".join(map(str, errors)),
        pending=None if pending is None else describe(pending.certificate),
        since=manager.source_since,
    )
