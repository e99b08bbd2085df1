"""Which connections a node has, and which of them a name stands for.

Theory. Two kinds are apart. *Dialable* ones may be used to dial out by name: their peer is verified, or this side
dialled them with `insecure_skip_verify`, in which case only verbs that ask for that get them. *Unverified* ones came
in from peers that were not verified: they are served, and never stand for the name they claim. So an unverified claim
cannot displace, block or impersonate another node.

A name may have several dialable connections (one dialled by each side, say); the newest that fits is handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import trio

from trionode._identity.names import NodeName
from trionode._util.interrupts import interrupted_at_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .connection import Connection
    from .core import ConnectionCore


@interrupted_at_checkpoints
@final
class Registry:
    """A node's live connections.

    Attributes:
        changed: where those wait that look for a connection; unparked when one is added.
    """

    def __init__(self) -> None:
        self._dialable: dict[NodeName, list[ConnectionCore]] = {}
        self._unverified: list[ConnectionCore] = []
        self.changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self._cancelling: dict[NodeName, dict[trio.CancelScope, Callable[[ConnectionCore], bool]]] = {}

    @property
    def unverified(self) -> Sequence[ConnectionCore]:
        """Inbound connections of unverified peers, oldest first."""
        return tuple(self._unverified)

    def add(self, connection: ConnectionCore) -> list[ConnectionCore]:
        """Register a newcomer; returns the connections that it replaces, unregistered already."""
        if not (connection.peer.verified or connection.link.insecure):
            self._unverified.append(connection)
            return []
        siblings = self._dialable.setdefault(connection.peer.name, [])
        replaced = [old for old in siblings if _replaces(connection, old)]
        others = [old for old in siblings if old not in replaced]
        # Newest first, but one that only this side verified never before one that both did.
        first = 0 if connection.link.mutual or connection.link.dialled else sum(old.link.mutual for old in others)
        siblings[:] = [*others[:first], connection, *others[first:]]
        self.changed.unpark_all()
        for scope, fits in self._cancelling.get(connection.peer.name, {}).items():
            if fits(connection):
                scope.cancel()
        return replaced

    def remove(self, connection: ConnectionCore) -> None:
        """Forget a connection; harmless if it is not there."""
        if connection in self._unverified:
            self._unverified.remove(connection)
        siblings = self._dialable.get(connection.peer.name, [])
        if connection in siblings:
            siblings.remove(connection)
            if not siblings:
                del self._dialable[connection.peer.name]

    def mutual(self, name: NodeName) -> list[ConnectionCore]:
        """The connections with a name that both sides verified; these compete."""
        return [connection for connection in self._dialable.get(name, ()) if connection.link.mutual]

    def named(self, name: NodeName) -> list[ConnectionCore]:
        """All registered connections whose peer claims a name, verified or not."""
        unverified = (connection for connection in self._unverified if connection.peer.name == name)
        return [*self._dialable.get(name, ()), *unverified]

    def find(self, name: NodeName, fits: Callable[[ConnectionCore], bool]) -> ConnectionCore | None:
        """The newest dialable connection to a name that fits."""
        return next((connection for connection in self._dialable.get(name, ()) if fits(connection)), None)

    async def wait(self, name: NodeName, fits: Callable[[ConnectionCore], bool]) -> ConnectionCore:
        """Wait until there is a dialable connection to a name that fits."""
        while (connection := self.find(name, fits)) is None:
            await self.changed.park()
        return connection

    @contextmanager
    def cancelling(
        self, scope: trio.CancelScope, name: NodeName, fits: Callable[[ConnectionCore], bool]
    ) -> Iterator[None]:
        """For the length of the block, have a scope cancelled once a connection to a name comes up that fits."""
        scopes = self._cancelling.setdefault(name, {})
        scopes[scope] = fits
        try:
            yield
        finally:
            del scopes[scope]
            if not scopes:
                del self._cancelling[name]

    def names(self) -> Iterator[NodeName]:
        """The names that have a dialable connection."""
        return iter(tuple(self._dialable))


def _replaces(new: ConnectionCore, old: ConnectionCore) -> bool:
    """Whether a newcomer takes an older connection's place.

    The same verified peer, dialling the same way round: its dialer closed or lost the old one, or wants another
    route (and says so, if it was the other side that dialled). What the other side dialled insecurely, so that it is
    not mutual, takes the place of its own kind only. Of another incarnation, the arbiter has seen that the old one is
    dead.
    """
    if not new.peer.verified:
        return False
    if new.link.dialled or new.link.mutual:
        return new.link.dialled == old.link.dialled or (new.link.replace and new.link.mutual)
    return not (old.link.dialled or old.link.mutual)


@final
class ConnectionsView(Mapping[NodeName, "Connection"]):
    """`node.connections`: a live, read-only mapping of each name to the connection that `connect(name)` hands out."""

    def __init__(self, registry: Registry, lookup: Callable[[NodeName], Connection | None]) -> None:
        self._registry = registry
        self._lookup = lookup

    def __getitem__(self, name: NodeName | str) -> Connection:
        try:
            connection = self._lookup(NodeName.parse(name))
        except (ValueError, TypeError):
            connection = None
        if connection is None:
            raise KeyError(name)
        return connection

    def __iter__(self) -> Iterator[NodeName]:
        return (name for name in self._registry.names() if self._lookup(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<connections to {', '.join(map(str, self)) or 'no node'}>"
