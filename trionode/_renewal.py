"""Renewal: what becomes of live connections when certificates rotate or end, or keys wear out.

Theory. A new generation concerns new handshakes only; a connection keeps what it was made with, for weeks, unless the
node was told otherwise (`LiveConnections`). Then each connection that was superseded gets its turn: at a time drawn at
random within a stated span, so that a cluster does not move as one, and only so many at once. Its turn means one of
two things. *Close*: the peer is told, no more channels are opened, what is under way gets a grace, and whoever wants
the connection dials anew. *Hand over*: the side that dialled it makes a second link on the current contexts and moves
the connection to it (`_handshake`, `_connection`); the side that accepted asks for that with a frame. Both are level-
triggered: when a turn comes it is looked at whether it is still needed, and asking goes on until it is not.

A hand-over that fails before its commit leaves the connection as it was; it is reported and tried again, with back-off.
What must not go on (a certificate that has ended, a key that has protected too much) is closed if it cannot be moved.

One task does it all, with a heap of turns: what is not due costs nothing but its entry.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Final, final

import trio

from ._connection import EndReason, RenewalCause
from ._errors import HandshakeTimeoutError, Stage
from ._options import LiveConnections, Renew

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from ._cert_manager import CertManager
    from ._connection import Connection
    from ._link import Link

#: A peer that was asked for a hand-over is asked again after so long, if nothing came of it. Seconds.
ASK_AGAIN: Final = 5.0
#: Hand-overs that a peer asks for begin at least so far apart. Seconds.
ASKED_SPACING: Final = 0.05
#: The first wait after a failure is drawn from half of this to this, each further one is twice as long. Seconds.
FIRST_BACKOFF: Final = 0.5
#: No wait is longer. Seconds.
LONGEST_BACKOFF: Final = 60.0
#: Dates are compared at least so often: clocks are set, and machines sleep. Seconds.
LOOK_AT_CLOCK: Final = 60.0


@final
@dataclass(slots=True, eq=False)
class _Watched:
    """What is known of a connection.

    Attributes:
        manager: whose contexts its links take.
        redial: makes the link that it is to be moved to; None where the peer dialled.
        due: when its turn comes, on Trio's clock.
        cause: why.
        began: when its last hand-over began.
        failures: in a row.
        lock: one hand-over at a time; made when first needed.
    """

    manager: CertManager
    redial: Callable[[], Awaitable[Link]] | None
    due: float = math.inf
    cause: RenewalCause = RenewalCause.ROTATED
    began: float = -math.inf
    failures: int = 0
    lock: trio.Lock | None = None


@final
class Renewal:
    """Renews a node's connections."""

    def __init__(
        self,
        options: LiveConnections,
        *,
        patience: float,
        moved: Callable[[Connection], None],
        failed: Callable[[Connection, RenewalCause, Exception], None],
    ) -> None:
        """Make one; nothing happens by itself before `run()`.

        Args:
            options: what is to become of live connections.
            patience: how long a peer that is asked by hand may take, seconds.
            moved: told of each hand-over that has settled, whoever dialled.
            failed: told of each that failed before its commit.
        """
        self._options = options
        self._patience = patience
        self._on_moved = moved
        self._on_failed = failed
        self._watched: dict[Connection, _Watched] = {}
        self._turns: list[tuple[float, int, Connection]] = []
        self._order = count()
        self._earlier = trio.Event()

    # What the node tells

    def watch(self, connection: Connection, manager: CertManager, redial: Callable[[], Awaitable[Link]] | None) -> None:
        """A connection is up."""
        self._watched[connection] = _Watched(manager, redial)
        self._look(connection)

    def forget(self, connection: Connection) -> None:
        """It is over."""
        self._watched.pop(connection, None)

    def rotated(self, manager: CertManager) -> None:
        """A manager has published a generation."""
        if self._options.on_rotation is not Renew.KEEP:
            for connection, watched in self._watched.items():
                if watched.manager is manager:
                    self._look(connection)

    def moved(self, connection: Connection) -> None:
        """A hand-over of it has settled."""
        watched = self._watched.get(connection)
        if watched is not None:
            watched.failures = 0
            watched.due = math.inf
            self._on_moved(connection)
            self._look(connection)

    def renew(self, connection: Connection, cause: RenewalCause) -> None:
        """It should be renewed soon: its keys are worn, or its peer asks. Called as often as that is noticed."""
        watched = self._watched.get(connection)
        if watched is not None and not self._busy(watched):
            self._schedule(connection, watched, cause, max(trio.current_time(), watched.began + ASKED_SPACING))

    def _look(self, connection: Connection) -> None:
        """Schedule its next turn, if anything calls for one."""
        watched, options, now = self._watched[connection], self._options, trio.current_time()
        if connection.superseded and options.on_rotation is not Renew.KEEP:
            wait = random.random() * options.within  # noqa: S311 -- spreads load, protects nothing
            self._schedule(connection, watched, RenewalCause.ROTATED, now + wait)
        if options.on_expiry is not Renew.KEEP:
            lead = self._time_left(connection, watched) - options.expiry_lead
            if not math.isinf(lead):
                self._schedule(connection, watched, RenewalCause.EXPIRING, now + min(max(lead, 0), LOOK_AT_CLOCK))

    def _schedule(self, connection: Connection, watched: _Watched, cause: RenewalCause, at: float) -> None:
        if at < watched.due:
            watched.due, watched.cause = at, cause
            heapq.heappush(self._turns, (at, next(self._order), connection))
            self._earlier.set()

    @staticmethod
    def _busy(watched: _Watched) -> bool:
        return watched.lock is not None and watched.lock.locked()

    @staticmethod
    def _time_left(connection: Connection, watched: _Watched) -> float:
        """Seconds until the first certificate that it was authenticated with ends; infinite if there was none."""
        ends = _first_end(connection.link)
        return math.inf if ends is None else (ends - watched.manager.now()) / timedelta(seconds=1)

    # Doing it

    async def run(self) -> None:
        """Give each connection its turn, until cancelled."""
        slots = trio.Semaphore(self._options.parallel)
        async with trio.open_nursery() as nursery:
            while True:
                self._earlier = trio.Event()
                with trio.move_on_at(self._turns[0][0] if self._turns else math.inf):
                    await self._earlier.wait()
                while self._turns and self._turns[0][0] <= trio.current_time():
                    at, _, connection = heapq.heappop(self._turns)
                    watched = self._watched.get(connection)
                    if watched is not None and watched.due == at:  # else it is over, or has been given another turn
                        await slots.acquire()
                        watched.due = math.inf
                        nursery.start_soon(self._take_turn, connection, watched, slots)

    async def _take_turn(self, connection: Connection, watched: _Watched, slots: trio.Semaphore) -> None:
        cause = watched.cause
        try:
            if connection.live:
                await self._do(connection, watched, cause)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            if connection.live:
                raise
        except Exception:  # noqa: BLE001 -- it was reported; the connection goes on, and it is tried again
            watched.failures += 1
            wait = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(watched.failures - 1, 20)) * random.uniform(0.5, 1)  # noqa: S311
            self._schedule(connection, watched, cause, trio.current_time() + wait)
        finally:
            slots.release()

    async def _do(self, connection: Connection, watched: _Watched, cause: RenewalCause) -> None:
        options = self._options
        if cause is RenewalCause.EXPIRING:
            await self._before_expiry(connection, watched)
        elif cause is RenewalCause.ROTATED:
            if not connection.superseded:
                return
            if options.on_rotation is Renew.CLOSE:
                await connection.supersede(EndReason.SUPERSEDED, grace=options.grace)
            else:
                await self._move(connection, watched, cause)
        elif cause is RenewalCause.WORN and connection.worn(2 * options.max_records):
            await connection.supersede(EndReason.SUPERSEDED, grace=options.grace)
        elif cause is RenewalCause.ASKED or connection.worn(options.max_records):
            await self._move(connection, watched, cause)

    async def _before_expiry(self, connection: Connection, watched: _Watched) -> None:
        options, left = self._options, self._time_left(connection, watched)
        if left <= 0:
            await connection.supersede(EndReason.EXPIRED, grace=0)
        elif left <= options.expiry_lead:
            if options.on_expiry is Renew.CLOSE:
                await connection.supersede(EndReason.EXPIRED, grace=min(options.grace, left))
                return
            # At its end at the latest; half-way there once more, since there may be a new certificate by then.
            later = trio.current_time() + min(max(left / 2, 1.0), left, LOOK_AT_CLOCK)
            self._schedule(connection, watched, RenewalCause.EXPIRING, later)
            if connection.superseded or connection.link.peer.verified:
                await self._move(connection, watched, RenewalCause.EXPIRING)
        else:
            self._look(connection)

    async def _move(self, connection: Connection, watched: _Watched, cause: RenewalCause) -> None:
        if watched.redial is not None:
            await self.reauthenticate(connection, cause)
        else:
            connection.ask_for_renewal()
            self._schedule(connection, watched, cause, trio.current_time() + ASK_AGAIN)

    async def reauthenticate(self, connection: Connection, cause: RenewalCause = RenewalCause.BY_HAND) -> None:
        """Hand a connection over now, or have the peer do it; returns when that has settled.

        Cancelled before its commit, it leaves the connection on the old link; later, the hand-over goes on.

        Raises:
            HandshakeError: the new link could not be made; the connection goes on as it was.
            CertificateError: the manager's key pair cannot be used.
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await trio.lowlevel.checkpoint()
        connection.check_not_ended()
        watched = self._watched[connection]
        try:
            if watched.redial is None:
                await self._have_it_moved(connection)
            else:
                await self._move_now(connection, watched, watched.redial)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise
        except Exception as exc:
            self._on_failed(connection, cause, exc)
            raise

    async def _move_now(self, connection: Connection, watched: _Watched, redial: Callable[[], Awaitable[Link]]) -> None:
        watched.lock = watched.lock or trio.Lock()
        async with watched.lock:
            await connection.wait_settled()
            watched.began = trio.current_time()
            link = await redial()
            try:
                connection.commit(link)
            except BaseException:
                await trio.aclose_forcefully(link.stream)
                raise
        await connection.wait_settled()

    async def _have_it_moved(self, connection: Connection) -> None:
        link = connection.link
        connection.ask_for_renewal()
        with trio.move_on_after(self._patience):
            await connection.wait_moved(link)
            return
        msg = f"{connection.peer.name} was asked to hand the connection over, and did not within {self._patience:g} s"
        raise HandshakeTimeoutError(
            msg,
            stage=Stage.CONNECT,
            reason="timeout",
            address=connection.peer.address,
            generation=connection.generation,
        )


def _first_end(link: Link) -> datetime | None:
    """When the first of the certificates ends that a link was authenticated with; a claim authenticates nothing."""
    theirs = link.peer.certificate if link.peer.verified else None
    ends = [each.not_valid_after_utc for each in (link.stream.presented_certificate, theirs) if each is not None]
    return min(ends, default=None)
