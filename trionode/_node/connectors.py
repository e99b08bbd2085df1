"""The connectors of a node: one for each peer to which a connection is to be kept up."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, final

from .connector import ConnectorTask
from .events import ConnectorChanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionode._identity.names import NodeName

    from .connector import Connector
    from .dialer import Dialer
    from .runtime import Runtime


@final
class Connectors:
    """Connectors by peer, from the moment that each is asked for until its task has ended."""

    def __init__(self, runtime: Runtime, dialer: Dialer) -> None:
        self._runtime = runtime
        self._dialer = dialer
        self._by_peer: dict[NodeName, Connector] = {}

    @property
    def by_peer(self) -> Mapping[NodeName, Connector]:
        """A copy."""
        return dict(self._by_peer)

    def get(self, peer: NodeName) -> Connector | None:
        """The peer's connector, if there is one."""
        return self._by_peer.get(peer)

    def keep(self, peer: NodeName) -> Connector:
        """The peer's connector; a new one, if there is none or it was stopped.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        connector = self._by_peer.get(peer)
        if connector is None or connector.stopped:
            task = ConnectorTask(peer, lambda: self._dialer.connect(peer, None), self._report)
            connector = self._by_peer[peer] = task.connector
            self._runtime.spawn(partial(self._run, task), f"connector to {peer}")
        return connector

    def stop(self) -> None:
        """Stop reconnecting to any peer; connections that are up stay."""
        for connector in list(self._by_peer.values()):
            connector.stop()

    async def _run(self, task: ConnectorTask) -> None:
        connector = task.connector
        try:
            await task.run()
        finally:
            if self._by_peer.get(connector.name) is connector:
                del self._by_peer[connector.name]

    def _report(self, connector: Connector) -> None:
        self._runtime.events.publish(
            ConnectorChanged(node=self._runtime.name, name=connector.name, state=connector.state)
        )
