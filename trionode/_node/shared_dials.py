"""Shared dials: tasks that want the same connection wait for one dial.

Theory. The dial runs in the node's nursery, not in a waiter's, so cancelling one waiter leaves the others; when the
last waiter leaves, the dial is cancelled. The task that dialled then runs the connection.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, cast, final

import outcome
import trio

from trionode._util.interrupts import interrupted_at_checkpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable


T = TypeVar("T")


@final
class _Dial(Generic[T]):
    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.outcome: outcome.Outcome[T] | None = None
        self.waiters = 0


@interrupted_at_checkpoints
@final
class SharedDials(Generic[T]):
    """Dials under way, by what they are for."""

    def __init__(self, spawn: Callable[[Callable[[], Awaitable[None]], str], None]) -> None:
        """Make an empty set.

        Args:
            spawn: starts a task (async function, name) in the node's nursery and context.
        """
        self._spawn = spawn
        self._dials: dict[Hashable, _Dial[T]] = {}

    async def join(
        self,
        key: Hashable,
        name: str,
        attempt: Callable[[], Awaitable[tuple[T, Callable[[], Awaitable[None]] | None]]],
    ) -> T:
        """Wait for the dial of this key, starting it if there is none.

        Args:
            key: what makes two dials the same.
            name: of the task, for debuggers.
            attempt: gives the result, and what its task is to run then, with no checkpoint in between, if the result is
                new; what it raises every waiter raises.

        Raises:
            trio.ClosedResourceError: the node was closed meanwhile.
        """
        dial = self._dials.get(key)
        if dial is None:
            dial = self._dials[key] = _Dial()
            self._spawn(partial(self._run, key, dial, attempt), name)
        dial.waiters += 1
        try:
            await dial.done.wait()
        finally:
            dial.waiters -= 1
            if not dial.waiters and not dial.done.is_set():
                self._forget(key, dial)
                dial.scope.cancel()
        if dial.outcome is None:
            msg = "the node was closed while it was dialling"
            raise trio.ClosedResourceError(msg)
        return _shared(dial.outcome)

    def cancel(self) -> None:
        """Cancel every dial under way; the waiters get `ClosedResourceError`."""
        for dial in list(self._dials.values()):
            dial.scope.cancel()

    async def _run(
        self,
        key: Hashable,
        dial: _Dial[T],
        attempt: Callable[[], Awaitable[tuple[T, Callable[[], Awaitable[None]] | None]]],
    ) -> None:
        result: outcome.Outcome[T] | None = None
        run: Callable[[], Awaitable[None]] | None = None
        try:
            with dial.scope:
                try:
                    value, run = await attempt()
                    result = outcome.Value(value)
                    del value
                except Exception as exc:  # noqa: BLE001 -- every waiter raises it
                    result = outcome.Error(exc)
        finally:
            dial.outcome = result
            self._forget(key, dial)
            dial.done.set()
        if run is not None:
            del dial, attempt, result  # it may run for months
            await run()

    def _forget(self, key: Hashable, dial: _Dial[T]) -> None:
        if self._dials.get(key) is dial:
            del self._dials[key]


def _shared(result: outcome.Outcome[T]) -> T:
    # An outcome unwraps once; several waiters look at what is inside.
    if isinstance(result, outcome.Error):
        raise result.error
    return cast("outcome.Value[T]", result).value
