"""What a peer causes costs that peer's connection: it is logged, and reaches neither the accept loop nor the node.

Theory. Tasks that a peer causes run in the node's nursery, where anything that is raised ends the node. What such a
task can foresee it handles; this is for the rest, which is a fault of ours, and must still not be a peer's to trigger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .log import Log

P = ParamSpec("P")


async def contained(function: Callable[[], Awaitable[object]], log: Log, what: str) -> None:
    """Await a function; an exception is logged with its traceback, and goes no further. Cancellation passes.

    Args:
        function: async, without arguments.
        log: where.
        what: the beginning of the line.
    """
    try:
        await function()
    except* Exception:
        log.exception("%s failed in an unexpected way", what)


def containing(function: Callable[P, object], log: Log, what: str) -> Callable[P, None]:
    """The same for a synchronous function: one that raises nothing.

    Args:
        function: what to call.
        log: where.
        what: the beginning of the line.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            log.exception("%s failed in an unexpected way", what)

    return call
