"""A mesh: connections to every member that matches a pattern are kept up.

Theory. A mesh follows what the resolver names. Each member gets a connector while it is named; a member that is no
longer named is not dialled any more, and its connection stays until it ends. Members that are merely connected get
none: their side keeps that connection, or does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from trio_util import AsyncValue

from trionode._util.home import home

from .connector import ConnectorPhase, ConnectorState, until_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionode._connection.connection import Connection
    from trionode._identity.names import NodeName
    from trionode._identity.patterns import NamePattern

    from .connector import Connector

__all__ = ["Mesh"]


@final
class Mesh:
    """Keeps connections to all members of a pattern up; made by `node.keep_connected`.

    Attributes:
        name: the pattern.
    """

    def __init__(self, pattern: NamePattern, stop: Callable[[Mesh], None]) -> None:
        """Made by its node.

        Args:
            pattern: which members.
            stop: called once it is to stop.
        """
        self.name: str = pattern.text
        self._home = home()
        self._pattern = pattern
        self._stop = stop
        self._connectors: dict[NodeName, Connector] = {}
        self._state = AsyncValue(ConnectorState(phase=ConnectorPhase.WAITING))

    def __repr__(self) -> str:
        return f"<Mesh of {self.name}, {len(self._connectors)} members, {self.state.phase}>"

    @property
    def connectors(self) -> Mapping[NodeName, Connector]:
        """Those of its members, by peer: a copy."""
        return dict(self._connectors)

    @property
    def state(self) -> ConnectorState:
        """What it is doing: up with one of the connections, if there is any; waiting, if there is no member."""
        state: ConnectorState = self._state.value
        return state

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop, or its node has ended."""
        return self.state.phase is ConnectorPhase.STOPPED

    async def wait_up(self) -> Connection:
        """Wait until there is a connection to one of the members. Cancelling is harmless.

        Raises:
            trio.ClosedResourceError: the mesh was stopped.
        """
        self._home.check("Mesh")
        return await until_up(self._state, f"the mesh of {self.name}")

    def stop(self) -> None:
        """Follow no members and reconnect to none any more; connections that are up stay. Idempotent."""
        self._home.check("Mesh")
        if not self.stopped:
            self._state.value = ConnectorState(phase=ConnectorPhase.STOPPED, error=self.state.error)
            self._stop(self)

    # What its node does with it

    def _wants(self, name: NodeName) -> bool:
        return not self.stopped and self._pattern.matches(name)

    def _look(self) -> None:
        """Take the state that its members' connectors have now."""
        if self.stopped:
            return
        states = [connector.state for connector in self._connectors.values()]
        for phase in (ConnectorPhase.UP, ConnectorPhase.CONNECTING):
            for state in states:
                if state.phase is phase:
                    self._state.value = state
                    return
        self._state.value = next(iter(states), ConnectorState(phase=ConnectorPhase.WAITING))
