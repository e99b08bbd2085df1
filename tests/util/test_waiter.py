"""One task that sleeps until it is woken, or cancelled, or both."""

from __future__ import annotations

import trio
import trio.testing

from trionode._util.waiter import Waiter


async def test_sleeping_and_waking(nursery: trio.Nursery) -> None:
    """Nobody to wake is nothing to do, and is not remembered."""
    waiter = Waiter()
    waiter.wake()
    nursery.start_soon(waiter.wait)
    await trio.testing.wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 1
    waiter.wake()
    waiter.wake()
    assert waiter.task is None
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_cancelling(nursery: trio.Nursery) -> None:
    """Leaves it as it was; who was woken before is not cancelled out of it."""
    waiter = Waiter()
    with trio.move_on_after(0) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    assert waiter.task is None
    with trio.CancelScope() as scope:

        async def wake_then_cancel() -> None:
            waiter.wake()
            scope.cancel()

        nursery.start_soon(wake_then_cancel)
        with trio.testing.assert_checkpoints():
            await waiter.wait()
    assert not scope.cancelled_caught
