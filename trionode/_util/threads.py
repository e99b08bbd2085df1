"""Worker threads for what blocks, a few for each purpose.

Trio's default limiter has 40 threads for the whole program. A purpose that hangs (a name server that does not answer, a
file system that is gone) would take them all, and with them every other dial, and the application's own use of
`trio.to_thread`. So each purpose here has a limiter of its own, and takes none of the program's.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Purpose(Enum):
    """What threads are for; the value is how many there may be at once in a Trio run."""

    FILES = ("small files in directories of ours", 4)
    ISSUING = ("certificates that a CA signs", 4)
    ENROLLING = ("certificates that are asked for, and their files", 4)
    LOOKUPS = ("look-ups of host names", 100)

    @property
    def limit(self) -> int:
        """How many at once."""
        return self.value[1]


_limiters: trio.lowlevel.RunVar[dict[Purpose, trio.CapacityLimiter]] = trio.lowlevel.RunVar("trionode.thread_limiters")


def limiter(purpose: Purpose) -> trio.CapacityLimiter:
    """The limiter of one purpose, in this Trio run."""
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    return limiters.setdefault(purpose, trio.CapacityLimiter(purpose.limit))


async def in_thread(purpose: Purpose, function: Callable[..., T], *args: object, abandon_on_cancel: bool = False) -> T:
    """Run a function in a worker thread of its purpose.

    Args:
        purpose: whose threads.
        function: what blocks.
        args: for it.
        abandon_on_cancel: whether cancelling leaves the thread to itself; else the cancellation waits for it.
    """
    return await trio.to_thread.run_sync(
        partial(function, *args), limiter=limiter(purpose), abandon_on_cancel=abandon_on_cancel
    )
