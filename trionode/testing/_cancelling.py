"""Cancel an operation at each of its checkpoints in turn, so that what a cancellation leaves behind can be looked at.

Theory. A task may be cancelled at each of its checkpoints, and each is a way out of a function that tests rarely take.
Trio tells when a task stops and when it goes on (`trio.abc.Instrument`), so checkpoints can be counted: an operation is
run again and again, cancelled at the first checkpoint, at the second and so on, until it completes uncancelled. At each
checkpoint there are two moments. *Waiting*: the task has just begun to wait. *Waking*: what it waited for has happened,
and it has not gone on yet; a function that drops something then (a message received, a stream opened) has lost it.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Final, Self, final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["Attempt", "Moment", "cancel_at_every_checkpoint"]

#: An operation that waits more often than this probably never ends.
_MOST_CHECKPOINTS: Final = 10_000


class Moment(StrEnum):
    """When an attempt is cancelled.

    `BEFORE`: before it began. `WAITING`: as soon as it waits. `WAKING`: when it is about to go on.
    """

    BEFORE = "before"
    WAITING = "waiting"
    WAKING = "waking"


@final
class _Canceller(trio.abc.Instrument):
    """Counts a task's checkpoints, and cancels a scope at one of them."""

    def __init__(self, moment: Moment, checkpoint: int, *, any_task: bool) -> None:
        self.scope: trio.CancelScope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        self._moment = moment
        self._checkpoint = checkpoint
        self._any_task = any_task
        self._count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio when a task has stopped."""
        if self._moment is Moment.WAITING:
            self._step(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio when a task is about to go on."""
        if self._moment is Moment.WAKING:
            self._step(task)

    def _step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task or self._any_task:
            self._count += 1
            if self._count == self._checkpoint:
                self.scope.cancel()


@final
class Attempt:
    """One run of an operation, in a `with` block, which absorbs the cancellation.

    Attributes:
        moment: when it is cancelled.
        checkpoint: at which of its checkpoints, from 1; 0 for `BEFORE`.
        cancelled: whether the cancellation ended the block.
    """

    def __init__(self, moment: Moment, checkpoint: int, canceller: _Canceller) -> None:
        self.moment: Moment = moment
        self.checkpoint: int = checkpoint
        self.cancelled: bool = False
        self._canceller = canceller

    def __repr__(self) -> str:
        return f"<Attempt cancelled at checkpoint {self.checkpoint}, {self.moment}>"

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            RuntimeError: it was used before.
        """
        canceller = self._canceller
        if canceller.task is not None:
            msg = "an attempt is used once; iterate for the next one"
            raise RuntimeError(msg)
        canceller.task = trio.lowlevel.current_task()
        canceller.scope.__enter__()
        if self.moment is Moment.BEFORE:
            canceller.scope.cancel()
        else:
            trio.lowlevel.add_instrument(canceller)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """End; an exception gets a note that says where the block was cancelled."""
        if self.moment is not Moment.BEFORE:
            trio.lowlevel.remove_instrument(self._canceller)
        if error is not None and not isinstance(error, trio.Cancelled):
            error.add_note(repr(self))
        swallowed = bool(self._canceller.scope.__exit__(kind, error, traceback))
        self.cancelled = self._canceller.scope.cancelled_caught
        return swallowed


def cancel_at_every_checkpoint(*, any_task: bool = False) -> Iterator[Attempt]:
    """Attempts at an operation, each cancelled one checkpoint later than the one before; the last one completes.

    The code before and after the `with` block in the loop is not cancelled: there a test prepares, and examines what is
    left::

        for attempt in cancel_at_every_checkpoint():
            async with node.open_channel("beta@localhost", "echo") as channel:
                with attempt:
                    await channel.send(b"message")
                await channel.send(b"usable")

    An operation may complete in spite of the cancellation, see `Attempt.cancelled`. What the block raises otherwise
    comes out, with a note that says where it was cancelled.

    Args:
        any_task: count the checkpoints of every task of the run, and not only of the task that enters the block: for
            operations that wait once while other tasks do the work (`node.connect` shares a dial, which is a task of
            its own). The rest of the run then has to be idle, or there is no end.

    Raises:
        RuntimeError: the loop's body did not use the attempt, or the operation seems to have no end.
    """
    for moment in Moment:
        for checkpoint in count(0 if moment is Moment.BEFORE else 1):
            canceller = _Canceller(moment, checkpoint, any_task=any_task)
            attempt = Attempt(moment, checkpoint, canceller)
            yield attempt
            if canceller.task is None:
                msg = f"{attempt!r} was not entered: use it in a with statement"
                raise RuntimeError(msg)
            if checkpoint >= _MOST_CHECKPOINTS:
                msg = f"an operation with more than {checkpoint} checkpoints seems to have no end"
                raise RuntimeError(msg)
            if moment is Moment.BEFORE or not canceller.scope.cancel_called:
                break
