"""Many handshakes at once: one step in each tick, the oldest first, and nothing more is begun meanwhile."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trionode._util import turns as module
from trionode._util.turns import Turn, Turns, turns

#: More than take no turns, and than are let in without a tick.
MANY = 40


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number is a crowd."""
    monkeypatch.setattr(module, "_CROWD", 0)


class Ticks(trio.abc.Instrument):
    """Counts scheduler ticks."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        """One is over."""
        self.count += 1


def all_idle() -> bool:
    """Whether nothing waits, and no turn is given."""
    now = turns()
    return (now._queue, now._given, now._head, len(now._beginners), len(now._passed)) == ([], False, False, 0, 0)


async def test_a_few_need_no_turns() -> None:
    """Their steps run at once, and what begins does not wait: no checkpoint."""
    with trio.testing.assert_no_checkpoints():
        await turns().wait_calm()
        with Turn() as turn:
            assert await turn.run(lambda: 5) == 5
    assert turns().under_way == 0


@pytest.mark.usefixtures("crowd")
async def test_the_oldest_is_first_and_each_has_a_tick() -> None:
    """In whichever order the tasks run, over several steps each."""
    order: list[tuple[int, int]] = []
    ticks = Ticks()
    when: list[int] = []

    async def handshake(number: int, turn: Turn) -> None:
        for step in range(2):

            def run(step: int = step) -> None:
                order.append((number, step))
                when.append(ticks.count)

            await turn.run(run)

    made = [Turn() for _ in range(MANY)]
    for each in made:
        each.__enter__()
    trio.lowlevel.add_instrument(ticks)
    async with trio.open_nursery() as nursery:
        for number in reversed(range(MANY)):
            nursery.start_soon(handshake, number, made[number])
    trio.lowlevel.remove_instrument(ticks)
    firsts = [number for number, step in order if step == 0]
    assert firsts == sorted(firsts)
    assert len(when) == len(set(when)) == 2 * MANY
    # What was begun is finished before more is begun: at most one other step comes between a handshake's two.
    assert all(order.index((number, 1)) - order.index((number, 0)) <= 2 for number in range(MANY))
    for each in made:
        each.__exit__()
    assert all_idle()


@pytest.mark.usefixtures("crowd")
async def test_one_that_fails_passes_its_turn_on() -> None:
    """So does one that is cancelled while it waits; its step does not run."""
    ran: list[str] = []

    def fail() -> None:
        raise LookupError("step")

    async def failing() -> None:
        with pytest.raises(LookupError), Turn() as turn:
            await turn.run(fail)

    async def cancelled(scope: trio.CancelScope) -> None:
        with Turn() as turn, scope:
            await turn.run(lambda: ran.append("cancelled"))

    async def good() -> None:
        with Turn() as turn:
            await turn.run(lambda: ran.append("good"))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(MANY)]
            for scope in scopes:
                nursery.start_soon(failing)
                nursery.start_soon(cancelled, scope)
            nursery.start_soon(good)
            await trio.lowlevel.checkpoint()
            for scope in scopes:
                scope.cancel()
    assert ran.count("good") == 1
    assert len(ran) <= 3  # a turn that was given already is used
    assert all_idle()


@pytest.mark.usefixtures("crowd")
async def test_nothing_is_begun_while_there_is_a_queue() -> None:
    """It waits in line, and goes on in order once there are few."""
    begun: list[int] = []
    longest: list[int] = []

    async def step() -> None:
        with Turn() as turn:
            await turn.run(lambda: None)

    async def begin(number: int) -> None:
        await turns().wait_calm()
        begun.append(number)
        longest.append(len(turns()._queue))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(MANY):
                nursery.start_soon(step)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            for number in range(MANY):
                nursery.start_soon(begin, number)
                await trio.lowlevel.checkpoint()
    assert begun == list(range(MANY))
    assert max(longest) < module._QUEUE
    assert all_idle()


async def test_dials_to_hosts_that_do_not_answer_hold_up_none() -> None:
    """With many of them each that begins costs a tick, no more; cancelled in line, it leaves the line whole."""
    turns().connecting = MANY
    began = 0

    async def begin() -> None:
        nonlocal began
        await turns().wait_calm()
        began += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as doomed:
                    for _ in range(MANY):
                        doomed.start_soon(begin)
                        nursery.start_soon(begin)
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
    assert began >= MANY
    assert all_idle()


async def test_each_run_has_its_own() -> None:
    """What one run left behind is nothing to another."""
    assert isinstance(turns(), Turns)
    assert turns() is turns()
    assert turns().begun == 0
