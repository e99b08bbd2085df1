"""Turns: where many handshakes are under way at once, they have the processor one after the other, the oldest first.

Theory. Half a millisecond or more of each step of a handshake is OpenSSL's, and nothing else runs meanwhile. Trio runs
all tasks that are ready, in random order, before it looks at the network again. So a thousand clients that come at once
(their server was restarted) would stop everything else for a second, again and again, and be served in no order: each
ends near the end of all, and the unlucky time out. Here a step waits for its turn: one step in each scheduler tick, of
the handshake that began first, so that what was begun is finished before more is begun.

What would begin more, an accept loop or a dial, waits while there is a queue (`wait_calm`), and then begins one in each
tick. What is not accepted yet waits in the order in which it came, in the system's queue, and no timeout of ours runs.
Nor does a dial connect long before it can say its first word, so that the other side has no crowd of silent
connections. Only steps that are ready to run are in the queue, and each turn is passed on to the next: no peer holds
one up by being silent, and no host by not answering.

A few handshakes at once need no order, and do without the tick that it costs (`_CROWD`).
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio
from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

T = TypeVar("T")

#: Handshakes under way at once in a process, both sides, beyond which they take turns.
_CROWD: Final = 16
#: Steps that wait for their turn, from which on nothing more is begun: some milliseconds of work.
_QUEUE: Final = 8


@final
class Turns:
    """The handshakes of one Trio run.

    Attributes:
        under_way: how many there are.
        begun: how many have begun so far.
        connecting: dials that have no connection yet.
    """

    __slots__ = ("_beginners", "_given", "_head", "_passed", "_queue", "begun", "connecting", "under_way")

    def __init__(self) -> None:
        self.under_way: int = 0
        self.begun: int = 0
        self.connecting: int = 0
        # Steps that are ready: the number of a handshake, and its task, which is parked.
        self._queue: list[tuple[int, trio.lowlevel.Task]] = []
        # Whether a turn was given and not passed on yet.
        self._given = False
        # What would begin more waits in a line; the first of it, where there is one, for fewer steps in the queue.
        self._head = False
        self._beginners = trio.lowlevel.ParkingLot()
        self._passed = trio.lowlevel.ParkingLot()

    @property
    def crowded(self) -> bool:
        """Whether there are so many handshakes that they take turns."""
        return self.under_way > _CROWD

    # A KeyboardInterrupt in between would leave a turn that is never passed on, or a line that does not move.

    @enable_ki_protection
    async def wait_calm(self) -> None:
        """Wait while there is a queue, in order, and a tick for each; no checkpoint where a few begin."""
        if not self._head and len(self._queue) < _QUEUE and self.connecting < _QUEUE:
            return
        if self._head:
            await self._beginners.park()
        self._head = True
        try:
            await trio.lowlevel.checkpoint()
            while len(self._queue) >= _QUEUE:
                await self._passed.park()
        finally:
            if self._beginners:
                self._beginners.unpark()
            else:
                self._head = False

    @enable_ki_protection
    async def wait(self, number: int) -> None:
        """Wait for the turn of a handshake. `pass_on` has to follow, unless this is cancelled.

        Args:
            number: the handshake's.
        """
        entry = number, trio.lowlevel.current_task()
        heapq.heappush(self._queue, entry)
        if not self._given:
            self._given = True
            await trio.lowlevel.cancel_shielded_checkpoint()  # what else is ready in this tick may have begun earlier
            oldest = heapq.heappop(self._queue)
            if oldest is entry:
                return
            trio.lowlevel.reschedule(oldest[1])

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._queue.remove(entry)
            heapq.heapify(self._queue)
            self._passed.unpark_all()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @enable_ki_protection
    def pass_on(self) -> None:
        """A turn is over: the next is that of the oldest handshake which waits."""
        self._given = bool(self._queue)
        if self._queue:
            trio.lowlevel.reschedule(heapq.heappop(self._queue)[1])
        if len(self._queue) < _QUEUE:
            self._passed.unpark_all()


@final
class Turn:
    """One handshake's part, for the length of a `with` block; handshakes are in the order in which they enter it."""

    __slots__ = ("_number", "_turns")

    def __init__(self) -> None:
        self._turns = turns()
        self._number = 0

    def __enter__(self) -> Self:
        self._turns.under_way += 1
        self._turns.begun += 1
        self._number = self._turns.begun
        return self

    def __exit__(self, *_: object) -> None:
        self._turns.under_way -= 1

    @enable_ki_protection
    async def run(self, step: Callable[[], T]) -> T:
        """Run a step when it is its turn; no checkpoint where there is no crowd. Cancelled before, it is not run.

        Args:
            step: synchronous.
        """
        if not self._turns.crowded:
            return step()
        await self._turns.wait(self._number)
        try:
            return step()
        finally:
            self._turns.pass_on()


_turns: Final[trio.lowlevel.RunVar[Turns]] = trio.lowlevel.RunVar("trionode.turns")


def turns() -> Turns:
    """Those of this Trio run."""
    try:
        return _turns.get()
    except LookupError:
        made = Turns()
        _turns.set(made)
        return made
