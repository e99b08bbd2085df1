"""The connectors of a node: one for each peer to which a connection is to be kept up, for whatever reason.

Theory. A peer is kept because the program named it, or because a mesh wants it; it is left when neither holds any more.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, final

from .connector import ConnectorTask
from .events import ConnectorChanged
from .mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trionode._identity.names import NodeName
    from trionode._identity.patterns import NamePattern

    from .connector import Connector
    from .dialer import Dialer
    from .membership import Membership
    from .runtime import Runtime

#: A mesh begins to dial each of the members that it found at once within so many seconds, drawn at random, for each of
#: them; by then the member has mostly dialled itself.
SPREAD_FOR_EACH: Final = 0.02
#: Not longer than this, however many. Seconds.
MOST_SPREAD: Final = 2.0


@final
class Connectors:
    """Connectors by peer, from the moment that each is asked for until its task has ended."""

    def __init__(self, runtime: Runtime, dialer: Dialer, membership: Membership) -> None:
        self._runtime = runtime
        self._dialer = dialer
        self._membership = membership
        self._by_peer: dict[NodeName, Connector] = {}
        self._named: set[NodeName] = set()
        self._meshes: dict[str, Mesh] = {}
        membership.followers.append(self._follow)

    @property
    def by_peer(self) -> Mapping[NodeName, Connector]:
        """A copy."""
        return dict(self._by_peer)

    def get(self, peer: NodeName) -> Connector | None:
        """The peer's connector, if there is one."""
        return self._by_peer.get(peer)

    def mesh(self, pattern: NamePattern) -> Mesh | None:
        """The mesh of a pattern, if there is one."""
        return self._meshes.get(pattern.text)

    def keep(self, peer: NodeName) -> Connector:
        """The peer's connector, because the program wants it; a new one, if there is none or it was stopped.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        connector = self._keep(peer)
        self._named.add(peer)
        return connector

    def keep_all(self, pattern: NamePattern) -> Mesh:
        """The mesh of a pattern; a new one, if there is none.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        mesh = self._meshes.get(pattern.text)
        if mesh is None:
            mesh = self._meshes[pattern.text] = Mesh(pattern, self._leave)
            self._join(mesh, sorted(self._membership.named))
        return mesh

    def stop(self) -> None:
        """Stop reconnecting to any peer; connections that are up stay."""
        for mesh in list(self._meshes.values()):
            mesh.stop()
        for connector in list(self._by_peer.values()):
            connector.stop()

    # Members come and go

    def _follow(self, found: Collection[NodeName], lost: Collection[NodeName]) -> None:
        for mesh in self._meshes.values():
            for name in lost:
                if mesh._connectors.pop(name, None) is not None:  # noqa: SLF001 -- the mesh's other half
                    self._release(name)
            self._join(mesh, found)

    def _join(self, mesh: Mesh, names: Collection[NodeName]) -> None:
        """Keep those that a mesh wants. Their first dials are spread: many nodes may have found each other at once."""
        wanted = [name for name in names if mesh._wants(name)]  # noqa: SLF001 -- likewise
        within = min(SPREAD_FOR_EACH * len(wanted), MOST_SPREAD)
        for name in wanted:
            mesh._connectors[name] = self._keep(name, within)  # noqa: SLF001 -- likewise
        mesh._look()  # noqa: SLF001 -- likewise

    def _leave(self, mesh: Mesh) -> None:
        """A mesh has stopped."""
        del self._meshes[mesh.name]
        for name in mesh.connectors:
            self._release(name)

    def _release(self, name: NodeName) -> None:
        """Stop a peer's connector unless something else wants it."""
        wanted = name in self._named or any(name in mesh.connectors for mesh in self._meshes.values())
        connector = self._by_peer.get(name)
        if connector is not None and not wanted:
            connector.stop()

    # Their tasks

    def _keep(self, peer: NodeName, within: float = 0) -> Connector:
        connector = self._by_peer.get(peer)
        if connector is None or connector.stopped:
            task = ConnectorTask(
                peer,
                lambda: self._dialer.connect(peer, None),
                self._report,
                wait_news=lambda: self._dialer.wait_news(peer),
                within=within,
            )
            self._runtime.spawn_for_peer(partial(self._run, task), f"connector to {peer}")
            connector = self._by_peer[peer] = task.connector
        return connector

    async def _run(self, task: ConnectorTask) -> None:
        connector = task.connector
        try:
            await task.run()
        finally:
            if self._by_peer.get(connector.name) is connector:
                del self._by_peer[connector.name]
                self._named.discard(connector.name)

    def _report(self, connector: Connector) -> None:
        self._runtime.events.publish(
            ConnectorChanged(node=self._runtime.name, name=connector.name, state=connector.state)
        )
        for mesh in list(self._meshes.values()):
            if mesh._connectors.get(connector.name) is connector:  # noqa: SLF001 -- likewise
                mesh._look()  # noqa: SLF001 -- likewise
