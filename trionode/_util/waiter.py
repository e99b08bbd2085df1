"""One task that sleeps until it is woken: what a parking lot does for many (measured: 3 µs less a call, of 133)."""

from __future__ import annotations

from typing import final

import trio


@final
class Sleeper:
    """Where one task sleeps; never two at a time."""

    __slots__ = ("asleep",)

    def __init__(self) -> None:
        #: Who sleeps, if anybody does.
        self.asleep: trio.lowlevel.Task | None = None

    async def sleep(self) -> None:
        """Sleep until woken; a checkpoint. Cancelling is harmless."""
        assert self.asleep is None
        self.asleep = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._give_up)

    def _give_up(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self.asleep = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Wake who sleeps, if anybody does; synchronous."""
        if self.asleep is not None:
            trio.lowlevel.reschedule(self.asleep)
            self.asleep = None
