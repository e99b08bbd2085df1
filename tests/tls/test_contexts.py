"""The contexts channel: what a take yields, when publications, takes and cancellations meet.

The rule of rotation is proved here on the channel itself, with generations that cost nothing to publish; that a
manager's `update()` obeys it is in test_cert_manager.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode._credentials.key_pair import KeyPair
from trionode._credentials.policy import TLSPolicy
from trionode._tls.contexts import ContextsChannel, TLSContexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Trio shuffles the tasks of a tick, so an order that has even odds is missed this often in a row once in 10^60 runs.
ROUNDS = 200


@pytest.fixture(scope="module")
def first() -> TLSContexts:
    """Generation 1 of some manager."""
    return TLSContexts.build(1, KeyPair.self_signed("localhost"), TLSPolicy())


@pytest.fixture
def channel(first: TLSContexts) -> ContextsChannel:
    """A channel that holds generation 1."""
    return ContextsChannel(first)


def publish_next(channel: ContextsChannel) -> int:
    """Publish the next generation, without the cost of building OpenSSL contexts."""
    contexts = replace(channel.current, generation=channel.current.generation + 1)
    channel.publish(contexts)
    return contexts.generation


# The rule of rotation -----------------------------------------------------------------------------------------------


async def test_a_take_after_a_publication_returned_yields_it(channel: ContextsChannel) -> None:
    """A receive() called after publish() returned yields the new contexts, as the very object."""
    for _ in range(10):
        generation = publish_next(channel)
        taken = await channel.receive()
        assert taken.generation == generation
        assert taken is channel.current


async def test_the_same_contexts_are_taken_any_number_of_times(channel: ContextsChannel, first: TLSContexts) -> None:
    """Taking does not use contexts up: every taker gets the same object."""
    assert [await channel.receive() for _ in range(10)] == [first] * 10


async def test_publishing_and_taking_started_in_one_tick(channel: ContextsChannel) -> None:
    """A receive() and a publication that start in the same scheduler tick: the take is the new one, in either order."""
    orders: Counter[tuple[str, ...]] = Counter()
    for _ in range(ROUNDS):
        ran: list[str] = []
        taken: list[int] = []

        async def publisher(ran: list[str] = ran) -> None:
            ran.append("publish")
            publish_next(channel)
            await trio.lowlevel.checkpoint()

        async def taker(ran: list[str] = ran, taken: list[int] = taken) -> None:
            ran.append("take")
            taken.append((await channel.receive()).generation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher)
            nursery.start_soon(taker)
        orders[tuple(ran)] += 1
        # A take has its checkpoint first, so even the one that began before the publication comes back after it.
        assert taken == [channel.current.generation]
    assert set(orders) == {("publish", "take"), ("take", "publish")}


async def test_a_take_that_wakes_in_the_tick_of_the_publication(channel: ContextsChannel) -> None:
    """A take that wakes in the tick of a publication yields what is current at its wake-up, in either order."""
    superseded_at_once: Counter[bool] = Counter()
    for _ in range(ROUNDS):
        before = channel.current.generation
        events: list[str] = []

        async def publisher(events: list[str] = events) -> None:
            await trio.lowlevel.checkpoint()  # wakes in the next tick, as the taker does
            publish_next(channel)
            events.append("published")

        async def taker(events: list[str] = events, before: int = before) -> None:
            taken = await channel.receive()
            # No checkpoint lies between the wake-up and here.
            events.append("taken")
            assert taken is channel.current
            assert taken.generation == before + ("published" in events)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher)
            nursery.start_soon(taker)
        superseded_at_once[events == ["taken", "published"]] += 1
    assert set(superseded_at_once) == {True, False}


async def test_takers_that_wait_for_something_else_meanwhile(channel: ContextsChannel) -> None:
    """Tasks that the publisher itself wakes, in the tick of its publication, take the new contexts."""
    for _ in range(20):
        published = trio.Event()
        taken: list[int] = []

        async def taker(published: trio.Event = published, taken: list[int] = taken) -> None:
            await published.wait()
            taken.append((await channel.receive()).generation)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(taker)
            await trio.testing.wait_all_tasks_blocked()
            published.set()
            generation = publish_next(channel)
        assert taken == [generation] * 5


@pytest.mark.parametrize("seed", range(5))
async def test_many_takers_many_publications_and_cancellations(channel: ContextsChannel, seed: int) -> None:
    """However takes, publications and cancellations interleave, no take is older than at its start or its wake-up.

    And nothing is lost: afterwards the channel still holds exactly the current contexts.
    """
    rng = random.Random(seed)
    takers, publications = 30, 300
    scopes: dict[int, trio.CancelScope] = {}
    outcomes: Counter[str] = Counter()
    finished = False

    async def idle(longest: int) -> None:
        for _ in range(rng.randrange(longest)):
            await trio.lowlevel.checkpoint()

    async def taker(number: int) -> None:
        while not finished:
            with trio.CancelScope() as scopes[number]:
                await idle(3)
                at_start = channel.current.generation
                taken = await channel.receive()
                assert taken.generation >= at_start
                assert taken is channel.current
                outcomes["moved on while taking" if taken.generation > at_start else "taken"] += 1
            outcomes["cancelled"] += scopes[number].cancelled_caught

    async def publisher() -> None:
        nonlocal finished
        for _ in range(publications):
            await idle(4)
            for _ in range(rng.randrange(3)):
                publish_next(channel)
        finished = True

    async def canceller() -> None:
        while not finished:
            await idle(3)
            for number in rng.sample(range(takers), k=3):
                scopes[number].cancel()

    async with trio.open_nursery() as nursery:
        for number in range(takers):
            nursery.start_soon(taker, number)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(publisher)
        nursery.start_soon(canceller)

    assert min(outcomes[outcome] for outcome in ("taken", "moved on while taking", "cancelled")) > 100
    last = channel.current
    with trio.fail_after(5):
        assert [await channel.receive() for _ in range(10)] == [last] * 10
        assert publish_next(channel) == last.generation + 1
        assert (await channel.receive()).generation == last.generation + 1


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads that are switched as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless_threads")
async def test_threads_that_look_at_the_channel_do_not_tear_a_take(channel: ContextsChannel) -> None:
    """Reading what is current from another thread never makes a take, a publication or the reading itself fail."""
    looked = False

    def look() -> None:
        nonlocal looked
        latest = 0
        try:
            for _ in range(3000):
                current = channel.current.generation
                assert current >= latest
                latest = current
        finally:
            looked = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, look)
        while not looked:
            generation = publish_next(channel)
            assert (await channel.receive()).generation == generation


# As a channel -------------------------------------------------------------------------------------------------------


async def test_receive_is_a_checkpoint(channel: ContextsChannel) -> None:
    """A receive() yields to the scheduler, and a cancelled one takes nothing and raises."""
    with trio.testing.assert_checkpoints():
        await channel.receive()
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive()
    assert scope.cancelled_caught


async def test_closing_does_nothing(channel: ContextsChannel, first: TLSContexts) -> None:
    """aclose() of the shared channel is a checkpoint and leaves it to all who use it, publisher included."""
    with trio.testing.assert_checkpoints():
        await channel.aclose()
    async with channel:
        pass
    assert await channel.receive() is first
    assert publish_next(channel) == 2
    assert (await channel.receive()).generation == 2


async def test_a_cancelled_aclose_does_nothing_either(channel: ContextsChannel, first: TLSContexts) -> None:
    """A cancelled aclose() leaves the channel as it was, too."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.aclose()
    assert scope.cancelled_caught
    assert await channel.receive() is first


async def test_iteration_yields_what_is_current(channel: ContextsChannel) -> None:
    """As every receive channel it can be iterated over, and each step is a take."""
    seen: list[int] = []
    async for contexts in channel:
        seen.append(contexts.generation)
        if len(seen) == 3:
            break
        publish_next(channel)
    assert seen == [1, 2, 3]


def test_the_channel_needs_no_run(channel: ContextsChannel) -> None:
    """Made and published to outside a Trio run, one channel serves successive runs."""

    async def take() -> int:
        return (await channel.receive()).generation

    publish_next(channel)
    assert trio.run(take) == 2
    publish_next(channel)
    assert trio.run(take) == 3


# The contexts themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generation", "key_pair", "server", "client"])
def test_contexts_are_immutable(first: TLSContexts, name: str) -> None:
    """Published contexts cannot be changed, nor grow attributes."""
    before = getattr(first, name)
    with pytest.raises(FrozenInstanceError):
        setattr(first, name, None)
    with pytest.raises(FrozenInstanceError):
        delattr(first, name)
    assert getattr(first, name) is before


def test_contexts_have_no_room_for_more(first: TLSContexts) -> None:
    """Contexts have slots and no instance dictionary: no state is parked on what every handshake shares."""
    assert not hasattr(first, "__dict__")


@pytest.mark.parametrize("show", [repr, str, "{!r}".format])
def test_contexts_show_no_key_material(first: TLSContexts, show: Callable[[object], str]) -> None:
    """A repr tells generation and certificate, nothing of the key."""
    shown = show(first)
    assert "generation 1" in shown
    assert "localhost" in shown
    assert "PRIVATE" not in shown
    assert "private_key" not in shown
