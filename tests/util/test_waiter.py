"""One task that sleeps until it is woken, or cancelled, or both."""

from __future__ import annotations

import trio
import trio.testing

from trionode._util.waiter import Sleeper


async def test_sleeping_and_waking(nursery: trio.Nursery) -> None:
    """Nobody to wake is nothing to do, and is not remembered."""
    sleeper = Sleeper()
    sleeper.wake()
    nursery.start_soon(sleeper.sleep)
    await trio.testing.wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 1
    sleeper.wake()
    sleeper.wake()
    assert sleeper.asleep is None
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_cancelling(nursery: trio.Nursery) -> None:
    """Leaves it as it was; who was woken before is not cancelled out of it."""
    sleeper = Sleeper()
    with trio.move_on_after(0) as scope:
        await sleeper.sleep()
    assert scope.cancelled_caught
    assert sleeper.asleep is None
    with trio.CancelScope() as scope:

        async def wake_then_cancel() -> None:
            sleeper.wake()
            scope.cancel()

        nursery.start_soon(wake_then_cancel)
        with trio.testing.assert_checkpoints():
            await sleeper.sleep()
    assert not scope.cancelled_caught
