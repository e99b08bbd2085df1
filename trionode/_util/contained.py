"""What a peer causes costs that peer's connection, and what is lasting lasts: neither ends an accept loop or a node.

Theory. Tasks of a node run in its nursery, where anything that is raised ends the node. What a task can foresee it
handles; this is for the rest: a fault of ours, which must still not be a peer's to trigger, or one in what the
application has supplied (a clock, a listener, a registrar, anything that is called). An `Exception` is logged with its
traceback. What is no `Exception` passes: `KeyboardInterrupt` and `SystemExit` mean the program, `trio.Cancelled` the
scope.

A Ctrl-C is not for such a task: it waits for the main task's next checkpoint, see `interrupts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, ParamSpec

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .log import Log

P = ParamSpec("P")

#: How long a task that keeps running pauses after a failure. Seconds.
PAUSE: Final = 60.0


@trio.lowlevel.enable_ki_protection
async def contained(function: Callable[[], Awaitable[object]], log: Log, what: str, **facts: object) -> None:
    """Await a function; an exception is logged with its traceback, and goes no further. Cancellation passes.

    Args:
        function: async, without arguments.
        log: where.
        what: the beginning of the line.
        facts: what it is about, see `facts`.
    """
    try:
        await function()
    except* Exception:
        log.exception("%s failed in an unexpected way", what, **facts)


async def keep_running(function: Callable[[], Awaitable[object]], log: Log, what: str, **facts: object) -> None:
    """Await a function until it returns; after an exception, which is logged, again, a minute later.

    Args:
        function: async, without arguments.
        log: where.
        what: the beginning of the line.
        facts: what it is about, see `facts`.
    """
    while True:
        try:
            await function()
        except* Exception:
            log.exception("%s failed in an unexpected way; it goes on in %g s", what, PAUSE, **facts)
        else:
            break
        await trio.sleep(PAUSE)


def containing(function: Callable[P, object], log: Log, what: str, **facts: object) -> Callable[P, None]:
    """The same for a synchronous function: one that raises nothing.

    Args:
        function: what to call.
        log: where.
        what: the beginning of the line.
        facts: what it is about, see `facts`.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            log.exception("%s failed in an unexpected way", what, **facts)

    return call
