"""A connector: one task that keeps a connection to one peer up.

Theory. Dial, wait until the connection ends, dial again, with a wait in between. There are two kinds of failure:

- *The peer is not there*: nothing answers. To find that out costs a packet, and when the peer returns its clients
  should be back soon. So the wait grows with the outage: four fifths of it at most.
- *The peer is there*, and the attempt came to nothing: refused, shed because there were too many, or the connection
  ended soon. More attempts would make that worse: each such failure doubles the wait.

Waits are drawn at random, from a quarter of that up, so that a cluster does not reconnect in step; they are capped, and
are first ones again once a connection has lasted. Every attempt takes the current contexts and asks routes and resolver
anew. News of the peer's endpoints end the wait early, after a moment drawn at random and not more often than every
second.

`Connector` is what the application holds: it shows the state and can be stopped. `ConnectorTask` does the work.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, final

import trio
from trio_util import AsyncValue

from trionode._connection.connection import core_of
from trionode._errors import HandshakeError, NoRouteError, Stage
from trionode._util.backoff import Backoff
from trionode._util.home import home

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode._connection.connection import Connection
    from trionode._identity.names import NodeName

__all__ = ["Connector", "ConnectorPhase", "ConnectorState"]

#: Between dials. Of 200 clients of one server that was gone for 3 s, half are back 0.6 s after its return, and all
#: after 2.2 s (by doubling alone it was 1.5 and 9 s). Of 2 000, not one in ten comes in the same tenth of a second, and
#: a server that does 800 handshakes in a second sheds 70.
BACKOFF: Final = Backoff(first=0.4, longest=30, least=0.25, of_outage=0.8)
#: After news of the peer it is dialled within so many seconds, drawn at random: many nodes have the same news.
SPREAD: Final = 0.2
#: Waits are ended early by news not more often than this, whatever a registry says. Seconds.
NEWS_GAP: Final = 1.0
#: A connection that lasted this long was a success: the next wait is a first one again. Seconds.
LASTED: Final = 5.0


class ConnectorPhase(StrEnum):
    """What a connector is doing."""

    CONNECTING = "connecting"
    UP = "up"
    WAITING = "waiting"
    STOPPED = "stopped"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectorState:
    """A snapshot of a connector.

    Attributes:
        phase: see `ConnectorPhase`.
        connection: the connection, while it is up.
        error: why the last attempt failed or the last connection ended; None before the first such.
        next_attempt: while waiting, when it will try again, on Trio's clock; else None.
        attempts: dials since the last success.
    """

    phase: ConnectorPhase
    connection: Connection | None = None
    error: Exception | None = None
    next_attempt: float | None = None
    attempts: int = 0


async def until_up(state: AsyncValue, what: str) -> Connection:
    """Wait until there is a connection. Cancelling is harmless.

    Args:
        state: the `ConnectorState` of a connector or of a mesh.
        what: which of them, for the message.

    Raises:
        trio.ClosedResourceError: it was stopped.
    """
    await trio.lowlevel.checkpoint()
    # The value that woke us: by now it may be doing something else again.
    reached: ConnectorState = await state.wait_value(
        lambda state: state.phase in (ConnectorPhase.UP, ConnectorPhase.STOPPED)
    )
    if reached.connection is None:
        msg = f"{what} was stopped"
        raise trio.ClosedResourceError(msg)
    return reached.connection


@final
class Connector:
    """Keeps a connection to one peer up; made by `node.keep_connected`.

    Attributes:
        name: the peer.
    """

    def __init__(self, name: NodeName, state: AsyncValue, scope: trio.CancelScope) -> None:
        """Made by its task.

        Args:
            name: the peer.
            state: its `ConnectorState`, set by the task.
            scope: cancelled to stop the task.
        """
        self.name = name
        self._home = home()
        self._state = state
        self._scope = scope

    def __repr__(self) -> str:
        return f"<Connector to {self.name}, {self.state.phase}>"

    @property
    def state(self) -> ConnectorState:
        """What it is doing."""
        state: ConnectorState = self._state.value
        return state

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop, or has."""
        return self._scope.cancel_called or self.state.phase is ConnectorPhase.STOPPED

    async def wait_up(self) -> Connection:
        """Wait until there is a connection. Cancelling is harmless.

        Raises:
            trio.ClosedResourceError: the connector was stopped.
        """
        self._home.check("Connector")
        return await until_up(self._state, f"the connector to {self.name}")

    def stop(self) -> None:
        """Stop reconnecting; a connection that is up stays. Idempotent."""
        self._home.check("Connector")
        self._scope.cancel()


@final
class ConnectorTask:
    """The work of a connector.

    Attributes:
        connector: what the application holds.
    """

    def __init__(
        self,
        name: NodeName,
        connect: Callable[[], Awaitable[Connection]],
        changed: Callable[[Connector], None],
        draw: Callable[[], float] = random.random,
        wait_news: Callable[[], Awaitable[None]] = trio.sleep_forever,
        within: float = 0,
    ) -> None:
        """Make one; `run()` does the work.

        Args:
            name: the peer.
            connect: dials it.
            changed: called after each change of state.
            draw: a number from 0 to 1, for the jitter.
            wait_news: returns when the peer may have become reachable.
            within: the first dial comes within so many seconds, drawn at random.
        """
        self._within = within
        self._wait_news = wait_news
        self._early_from = -math.inf
        self._connect = connect
        self._changed = changed
        self._draw = draw
        self._state = AsyncValue(ConnectorState(phase=ConnectorPhase.CONNECTING))
        self._scope = trio.CancelScope()
        self.connector = Connector(name, self._state, self._scope)

    async def run(self) -> None:
        """Keep the connection up until stopped or cancelled."""
        try:
            with self._scope:
                await self._keep_up()
        finally:
            self._set(ConnectorState(phase=ConnectorPhase.STOPPED, error=self.connector.state.error))

    async def _keep_up(self) -> None:
        attempts = failures = 0
        error: Exception | None = None
        if self._within:
            await trio.sleep(self._draw() * self._within)
        lost = trio.current_time()
        while True:
            attempts += 1
            self._set(ConnectorState(phase=ConnectorPhase.CONNECTING, error=error, attempts=attempts))
            try:
                connection = await self._connect()
            except Exception as exc:  # noqa: BLE001 -- shown in the state and reported as an event; it tries again
                error = exc
                failures += not _is_out_of_reach(exc)
            else:
                since = trio.current_time()
                self._set(ConnectorState(phase=ConnectorPhase.UP, connection=connection, error=error))
                error = await core_of(connection).wait_unusable()
                up = trio.current_time() - since
                failures, lost = failures + 1, lost + up  # while it was up there was no outage
                if up >= LASTED:
                    attempts, failures, lost = 0, 0, since + up
            now = trio.current_time()
            due = now + BACKOFF.wait(failures, self._draw, outage=now - lost)
            self._set(ConnectorState(phase=ConnectorPhase.WAITING, error=error, next_attempt=due, attempts=attempts))
            await self._wait_until(due)

    async def _wait_until(self, due: float) -> None:
        """Wait until then, or until there is news of the peer."""
        with trio.move_on_at(due):
            await self._wait_news()
            await trio.sleep(self._draw() * SPREAD)
            await trio.sleep_until(self._early_from)
            self._early_from = trio.current_time() + NEWS_GAP
            return
        await trio.lowlevel.checkpoint()

    def _set(self, state: ConnectorState) -> None:
        self._state.value = state
        self._changed(self.connector)


def _is_out_of_reach(error: BaseException) -> bool:
    """Whether a dial found nothing that answers, by any route."""
    if isinstance(error, NoRouteError) and error.causes is not None:
        return all(map(_is_out_of_reach, error.causes.exceptions))
    return isinstance(error, HandshakeError) and error.stage in (Stage.RESOLVE, Stage.CONNECT)
