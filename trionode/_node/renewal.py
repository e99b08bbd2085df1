"""Renewal: what becomes of live connections when certificates rotate or end, or keys wear out.

A rotation itself, a new generation checked, built and published, is in `_managers.publisher`.

Theory. A new generation concerns new handshakes only; a connection keeps what it was made with, for weeks, unless the
node was told otherwise (`LiveConnections`). Then each connection that was superseded gets its turn: at a time drawn at
random within a stated span, so that a cluster does not move as one, and only so many at once. Its turn means one of
two things. *Close*: the peer is told, no more channels are opened, those that are open get a grace to end, and a later
call dials anew. *Hand over*: the side that dialled it makes a second link on the current contexts and moves
the connection to it (`_handshake`, `_connection`); the side that accepted asks for that with a frame.

Everything is level-triggered: a signal (a generation, a frame, a hand-over that has settled) only makes a connection be
looked at, and a look asks what it needs by now. So nothing that calls for a turn can displace something else that does,
and asking goes on until there is no reason to. A hand-over that fails before its commit leaves the connection as it
was; it is reported and tried again, with back-off, even where the peer asks for it.

What must not go on (a certificate that has ended, a key that has protected too much) is ended by the look itself: it
waits neither for a turn nor for a peer.

Before a certificate ends there is a first turn at `expiry_lead`, and one more each time that half of what is left has
passed: a new certificate may be there by then, on a side that does not tell us. The same goes for connections that are
made when less than that is left, so that a connection whose certificate is never renewed is not moved all the time.

One task does it all, with a heap of looks: what is not due costs nothing but its entry.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.closing import at_the_cost_of, supersede
from trionode._connection.end import EndReason
from trionode._connection.hand_over import RenewalCause
from trionode._errors import HandshakeReason, HandshakeTimeoutError, Stage
from trionode._identity.certificate import not_after
from trionode._managers.manager import publisher_of
from trionode._util.backoff import Backoff
from trionode._util.interrupts import interrupted_at_checkpoints

from .options import LiveConnections, Renew

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode._connection.core import ConnectionCore
    from trionode._connection.link import Link
    from trionode._managers.manager import CertManager

#: A peer that was asked for a hand-over is asked again after so long, if nothing came of it. Seconds.
ASK_AGAIN: Final = 5.0
#: Hand-overs of one connection begin at least so far apart, however often a peer asks. Seconds.
SPACING: Final = 0.05
#: After hand-overs that failed.
BACKOFF: Final = Backoff(first=0.5, longest=60, least=0.5)
#: Dates are compared at least so often: clocks are set, and machines sleep. Seconds.
LOOK_AT_CLOCK: Final = 60.0
#: With less than this left of a certificate nothing more is tried. Seconds.
TOO_LATE: Final = 1.0

#: Multiples of `max_records` at which a connection that could not be handed over is closed gracefully, and at once.
_WORN_CLOSE: Final = 2
_WORN_END: Final = 3

#: Looks after which other tasks get to run.
_LOOKS_AT_ONCE: Final = 64


@final
@dataclass(slots=True, eq=False)
class _Watched:
    """What is known of a connection.

    Attributes:
        number: what the heap knows it by.
        connection: the connection.
        manager: whose contexts its links take.
        redial: makes the link that it is to be moved to; None where the peer dialled.
        look: when it is to be looked at next, on Trio's clock.
        turn: when its turn comes for having been superseded; infinite while none was drawn.
        lead: how long before a certificate's end it gets its next turn for that, seconds.
        asked: whether the peer asks for a hand-over.
        not_before: no turn before that: back-off, spacing, patience with a peer that was asked.
        asked_on: the link on which the peer was asked last, and when.
        failures: in a row.
        busy: whether its turn is under way or queued.
        lock: one hand-over at a time.
        moving: why it is being handed over, or the peer was asked to; None: if it moves, the peer wants it.
    """

    number: int
    connection: ConnectionCore
    manager: CertManager
    redial: Callable[[], Awaitable[Link]] | None
    look: float = math.inf
    turn: float = math.inf
    lead: float = 0
    asked: bool = False
    not_before: float = -math.inf
    asked_on: tuple[Link | None, float] = (None, -math.inf)
    failures: int = 0
    busy: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)
    moving: RenewalCause | None = None


@interrupted_at_checkpoints
@final
class Renewal:
    """Closes or hands over the connections of a node when it is time."""

    def __init__(
        self,
        options: LiveConnections,
        *,
        patience: float,
        moved: Callable[[ConnectionCore, RenewalCause], None],
        failed: Callable[[ConnectionCore, RenewalCause, Exception], None],
    ) -> None:
        """Make one; nothing happens by itself before `run()`.

        Args:
            options: what is to become of live connections.
            patience: how long a peer that is asked by hand may take, seconds.
            moved: called for each hand-over that has settled, with its cause; `ASKED` where the peer wanted it.
            failed: called for each that failed before its commit.
        """
        self._options = options
        self._patience = patience
        self._on_moved = moved
        self._on_failed = failed
        self._watched: dict[ConnectionCore, _Watched] = {}
        # The heap has numbers, so that it keeps no connection alive that is over.
        self._numbers: dict[int, _Watched] = {}
        self._next_number = count()
        self._looks: list[tuple[float, int]] = []
        self._earlier = trio.Event()
        self._queue: deque[_Watched] = deque()
        self._workers = 0

    # What the node reports to it

    def watch(
        self, connection: ConnectionCore, manager: CertManager, redial: Callable[[], Awaitable[Link]] | None
    ) -> None:
        """A connection is up."""
        watched = _Watched(next(self._next_number), connection, manager, redial)
        self._watched[connection] = self._numbers[watched.number] = watched
        self._new_link(watched)

    def forget(self, connection: ConnectionCore) -> None:
        """It is over; harmless if it was never watched."""
        watched = self._watched.pop(connection, None)
        if watched is not None:
            del self._numbers[watched.number]

    def rotated(self, manager: CertManager) -> None:
        """A manager has published a generation."""
        for watched in self._watched.values():
            if watched.manager is manager:
                self._look_at(watched, trio.current_time())

    def moved(self, connection: ConnectionCore) -> None:
        """A hand-over of it has settled."""
        watched = self._watched[connection]
        watched.failures = 0
        watched.asked = False
        if watched.redial is None:
            watched.not_before = -math.inf  # that was patience with the peer, and it has done it
        cause, watched.moving = watched.moving or RenewalCause.ASKED, None
        self._on_moved(connection, cause)
        self._new_link(watched)

    def renew(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        """It is to be renewed soon: its keys are worn, or its peer asks. Called each time that this is noticed."""
        watched = self._watched.get(connection)
        if watched is not None:
            watched.asked = watched.asked or cause is RenewalCause.ASKED
            self._look_at(watched, trio.current_time())

    def _new_link(self, watched: _Watched) -> None:
        left, options = self._time_left(watched), self._options
        watched.turn = math.inf
        if left > options.expiry_lead:
            spread = min(options.within, options.expiry_lead / 2)
            watched.lead = options.expiry_lead - random.random() * spread  # noqa: S311 -- spreads load, protects nothing
        else:
            watched.lead = left / 2 if left / 2 >= TOO_LATE else 0
        now = trio.current_time()
        if left <= watched.lead or watched.asked or watched.connection.superseded:
            self._look_at(watched, now)
        elif not math.isinf(left):  # no need to wake up `run()` for each connection
            self._look_at(watched, now + min(left - watched.lead, LOOK_AT_CLOCK))

    def _look_at(self, watched: _Watched, when: float) -> None:
        """Have it looked at by then, or earlier."""
        if when < watched.look:
            watched.look = when
            heapq.heappush(self._looks, (when, watched.number))
            if len(self._looks) > 4 * len(self._watched) + 64:  # most of it is entries that earlier ones overtook
                self._looks = [(each.look, each.number) for each in self._watched.values() if each.look < math.inf]
                heapq.heapify(self._looks)
            if self._looks[0] == (when, watched.number):
                self._earlier.set()

    # What a connection needs

    def _time_left(self, watched: _Watched) -> float:
        """Seconds until the first certificate that it was authenticated with ends; infinite where expiry is ignored."""
        ends = self._ends(watched)
        return min(ends, default=math.inf)

    def _ends(self, watched: _Watched) -> list[float]:
        """In how many seconds our certificate and the peer's end; a peer that is not verified has shown none."""
        if self._options.on_expiry is Renew.KEEP:
            return []
        link, now = watched.connection.link, publisher_of(watched.manager).now()
        theirs = link.peer.certificate if link.peer.verified else None
        return [
            math.inf if each is None else (not_after(each) - now) / timedelta(seconds=1)
            for each in (link.stream.certificate, theirs)
        ]

    def _cause(self, watched: _Watched) -> RenewalCause | None:
        """Why its turn has come, if it has."""
        connection, options = watched.connection, self._options
        if not connection.live:
            return None
        if watched.turn <= trio.current_time() and connection.superseded:
            return RenewalCause.ROTATED
        left = self._time_left(watched)
        if left <= watched.lead:
            # Where it is our own certificate that ends, and the current one, a hand-over would bring no later end.
            hopeless = self._ends(watched)[0] == left and not connection.superseded
            if options.on_expiry is Renew.CLOSE or not hopeless:
                return RenewalCause.EXPIRING
        if connection.worn(options.max_records):
            return RenewalCause.WORN
        return RenewalCause.ASKED if watched.asked else None

    def _look(self, watched: _Watched, nursery: trio.Nursery) -> None:
        """Do what is due, and see to it that it is looked at again when there may be more."""
        connection, options, now = watched.connection, self._options, trio.current_time()
        watched.look = math.inf
        left = self._time_left(watched)
        if left <= 0:
            connection.expire()
            return
        if connection.ended:  # services of its peer's may outlive it
            if not math.isinf(left):
                self._look_at(watched, now + min(left, LOOK_AT_CLOCK))
            return
        if connection.worn(_WORN_END * options.max_records):
            connection.end(EndReason.WORN)
            return
        if connection.worn(_WORN_CLOSE * options.max_records) and connection.live:
            nursery.start_soon(self._close, connection, EndReason.WORN)
        if not connection.superseded or options.on_rotation is Renew.KEEP:
            watched.turn = math.inf
        elif math.isinf(watched.turn):
            watched.turn = now + random.random() * options.within  # noqa: S311 -- spreads load, protects nothing
        if not math.isinf(left):
            until = left - watched.lead
            self._look_at(watched, now + min(until if until > 0 else left, LOOK_AT_CLOCK))
        if watched.busy or not connection.live:  # it has its turn, or needs none: it drains, or was replaced
            return
        cause = self._cause(watched)
        if cause is None:
            self._look_at(watched, watched.turn)
        elif now < watched.not_before:
            self._look_at(watched, watched.not_before)
        else:
            watched.busy = True
            self._queue.append(watched)
            if self._workers < options.parallel:
                self._workers += 1
                nursery.start_soon(self._work)

    # Giving turns

    async def run(self) -> None:
        """Look at connections and give them their turns, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._earlier = trio.Event()
                with trio.move_on_at(self._looks[0][0] if self._looks else math.inf):
                    await self._earlier.wait()
                for _ in range(_LOOKS_AT_ONCE):
                    if not self._looks or self._looks[0][0] > trio.current_time():
                        break
                    at, number = heapq.heappop(self._looks)
                    watched = self._numbers.get(number)
                    if watched is not None and watched.look == at:  # else it is over, or was looked at earlier
                        with at_the_cost_of(watched.connection):
                            self._look(watched, nursery)

    async def _work(self) -> None:
        """One of the `parallel`: gives turns while there are any."""
        try:
            while self._queue:
                watched = self._queue.popleft()
                with at_the_cost_of(watched.connection):
                    try:
                        cause = self._cause(watched)  # it may have waited
                        if cause is not None:
                            await self._take_turn(watched, cause)
                    finally:
                        watched.busy = False
                self._look_at(watched, trio.current_time())
        finally:
            self._workers -= 1

    async def _take_turn(self, watched: _Watched, cause: RenewalCause) -> None:
        connection, options = watched.connection, self._options
        if cause is RenewalCause.ROTATED and options.on_rotation is Renew.CLOSE:
            await self._close(connection, EndReason.SUPERSEDED)
        elif cause is RenewalCause.EXPIRING and options.on_expiry is Renew.CLOSE:
            await self._close(connection, EndReason.EXPIRED)
        elif watched.redial is None:
            watched.moving = cause
            watched.not_before = trio.current_time() + ASK_AGAIN
            self._ask(watched)
        else:
            try:
                await self.reauthenticate(connection, cause)
            except Exception:  # noqa: BLE001 -- it was reported; the connection goes on, and it is tried again
                watched.failures += 1
                watched.not_before = trio.current_time() + BACKOFF.wait(watched.failures)

    async def _close(self, connection: ConnectionCore, reason: EndReason) -> None:
        with at_the_cost_of(connection):
            await supersede(connection, reason, grace=self._options.grace)

    def _ask(self, watched: _Watched) -> None:
        """Ask the peer, which dialled, for a hand-over; once in `ASK_AGAIN` seconds at most, whatever the cause."""
        link, now = watched.connection.link, trio.current_time()
        asked, when = watched.asked_on
        if asked is not link or now >= when + ASK_AGAIN:
            watched.asked_on = link, now
            watched.connection.ask_for_renewal()

    async def reauthenticate(self, connection: ConnectionCore, cause: RenewalCause = RenewalCause.BY_HAND) -> None:
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
                watched.moving = cause
                await self._have_it_moved(watched)
            else:
                await self._move(watched, watched.redial, cause)
        except Exception as exc:
            connection.check_not_ended()  # its end is then the error to report
            self._on_failed(connection, cause, exc)
            raise

    async def _move(self, watched: _Watched, redial: Callable[[], Awaitable[Link]], cause: RenewalCause) -> None:
        connection = watched.connection
        async with watched.lock:
            await connection.wait_settled()
            if cause is not RenewalCause.BY_HAND and self._cause(watched) is None:
                return  # another hand-over was first
            watched.not_before = trio.current_time() + SPACING
            # Once the connection has ended the link is not needed.
            with trio.CancelScope() as scope, connection.hand_over.joining(scope):
                follows = connection.link
                link = await redial()
            if scope.cancelled_caught:
                connection.check_not_ended()
            try:
                connection.commit(link, follows=follows)
            except BaseException:
                await trio.aclose_forcefully(link.stream)
                raise
            watched.moving = cause
        await connection.wait_settled()

    async def _have_it_moved(self, watched: _Watched) -> None:
        connection, wanted = watched.connection, watched.manager.generation
        before = connection.link
        with trio.move_on_after(self._patience):
            # One that was under way already may have taken older certificates of ours.
            while connection.link is before or connection.generation < wanted:
                self._ask(watched)
                with trio.move_on_after(ASK_AGAIN):
                    await connection.wait_moved(connection.link)
            await connection.wait_settled()
            return
        msg = f"{connection.peer.name} was asked to hand the connection over, and did not within {self._patience:g} s"
        raise HandshakeTimeoutError(
            msg,
            stage=Stage.CONNECT,
            reason=HandshakeReason.TIMEOUT,
            address=connection.peer.address,
            generation=connection.generation,
        )
