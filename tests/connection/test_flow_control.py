"""Flow control: bounds that hold whatever the sender does, and progress as long as the application receives.

Everything here is synchronous. The simulation drives the receiving half of real channels, frame by frame, from model
senders that keep the protocol, over links that deliver late; it finds deadlocks that need a certain mix of sizes,
windows, budgets and cancelled messages.
"""

from __future__ import annotations

import math
import tracemalloc
from collections import deque
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
import trio
from hypothesis import example, given, settings, strategies as st

from effort import effort
from trionode import RemoteProtocolError, _protocol as wire
from trionode._connection import flow_control as _flow
from trionode._connection.channel import ChannelEnd, ServiceChannel
from trionode._connection.flow_control import MessageBudget, ReceiveWindow, Terms
from trionode._connection.send_queue import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

OVERHEAD: Final = wire.MESSAGE_OVERHEAD


# The window ----------------------------------------------------------------------------------------------------------


def test_a_window_grants_half_at_a_time() -> None:
    """Credit goes back when half a window was consumed, and restores the window."""
    window = ReceiveWindow(1000)
    window.take(600)
    assert (window.outstanding, window.held) == (400, 600)
    assert window.consume(499) == 0
    assert window.consume(1) == 500
    assert (window.outstanding, window.held) == (900, 100)
    assert window.consume(100) == 0


def test_a_window_refuses_more_than_was_granted() -> None:
    """To the byte; what was refused is not counted."""
    window = ReceiveWindow(1000)
    window.take(1000)
    with pytest.raises(RemoteProtocolError, match="1 bytes on a channel with 0 bytes of credit"):
        window.take(1)
    assert (window.outstanding, window.held) == (0, 1000)


def test_a_window_is_extended_by_what_is_lacking_only() -> None:
    """What a message needs beyond the credit at hand is granted, and told in advance."""
    window = ReceiveWindow(1000)
    window.take(400)
    assert window.excess(600) == 0
    assert window.extend(600) == 0
    assert window.excess(5000) == 4400
    assert window.extend(5000) == 4400
    assert window.excess(0) == 4400
    assert (window.outstanding, window.held) == (5000, 400)


@given(size=st.integers(4096, 100_000), seed=st.integers())
def test_what_a_window_granted_and_holds_never_exceeds_its_size(size: int, seed: int) -> None:
    """Granted plus held is at most the size, whatever is taken and consumed; and credit never stalls."""
    random, window, held = Random(seed), ReceiveWindow(size), deque[int]()
    credit = size
    for _ in range(200):
        assert credit == window.outstanding
        assert sum(held) == window.held
        assert window.outstanding + window.held <= size
        if not held:
            assert credit >= size / 2  # nothing to consume: the sender must be able to go on
        if held and random.random() < 0.5:
            credit += window.consume(held.popleft())
        elif credit:
            held.append(random.randint(1, credit))
            window.take(held[-1])
            credit -= held[-1]


# The budget ----------------------------------------------------------------------------------------------------------


class Claims:
    """Reservations with fixed needs, and the order in which they were granted."""

    def __init__(self, limit: int) -> None:
        self.budget = MessageBudget(limit)
        self.granted: list[int] = []

    def reserve(self, channel: int, amount: int, message: int | None = None) -> None:
        """Reserve a fixed amount."""
        message = amount if message is None else message
        grant: Callable[[], None] = lambda: self.granted.append(channel)  # noqa: E731 -- one line says it
        self.budget.reserve(channel, need=lambda: amount, message=message, grant=grant)


def test_what_fits_the_budget_is_granted_at_once() -> None:
    """Up to the limit nobody waits."""
    claims = Claims(100)
    for channel, amount in ((1, 60), (3, 40)):
        claims.reserve(channel, amount)
    assert claims.granted == [1, 3]


def test_one_message_at_a_time_may_exceed_the_budget() -> None:
    """Even with no budget at all there is always one that can be finished; the others wait in order."""
    claims = Claims(0)
    for channel in (1, 3, 5):
        claims.reserve(channel, 10)
    assert claims.granted == [1]
    claims.budget.release(1)
    assert claims.granted == [1, 3]
    claims.budget.release(3)
    assert claims.granted == [1, 3, 5]


def test_small_ones_do_not_overtake_a_large_one_that_waits() -> None:
    """Otherwise a stream of small ones could starve it."""
    claims = Claims(100)
    for channel, amount in ((1, 90), (3, 90), (5, 90), (7, 1)):
        claims.reserve(channel, amount)
    assert claims.granted == [1, 3]
    claims.budget.release(1)
    assert claims.granted == [1, 3]
    claims.budget.release(3)
    assert claims.granted == [1, 3, 5, 7]


def test_one_that_is_withdrawn_makes_way() -> None:
    """What waits no longer holds up nobody behind it."""
    claims = Claims(100)
    for channel, amount in ((1, 10), (3, 95), (5, 90), (7, 5)):
        claims.reserve(channel, amount)
    claims.budget.release(1)
    claims.budget.withdraw(99)
    assert claims.granted == [1, 3]
    claims.budget.withdraw(5)
    assert claims.granted == [1, 3, 7]


def test_releasing_leaves_a_message_that_waits_in_its_place() -> None:
    """A channel may have a place for one message and wait for another."""
    claims = Claims(100)
    claims.reserve(1, 60)
    claims.reserve(3, 200)
    claims.reserve(1, 120)
    claims.budget.release(1)
    assert claims.granted == [1, 3]
    claims.budget.release(3)
    assert claims.granted == [1, 3, 1]


def test_the_one_over_the_budget_may_go_on_with_another_message() -> None:
    """Its sender gave up the first, so nobody would ever free the place; but still it is one message that exceeds."""
    claims = Claims(0)
    claims.reserve(1, 100)
    claims.reserve(3, 50)
    claims.reserve(1, 130, message=120)  # it holds others beyond its window: those have to be received first
    assert claims.granted == [1]
    claims.reserve(1, 120, message=120)
    assert claims.granted == [1, 1]
    claims.budget.release(1)
    assert claims.granted == [1, 1, 3]


@given(limit=st.integers(0, 300), seed=st.integers())
def test_the_budget_is_exceeded_by_one_message_at_most(limit: int, seed: int) -> None:
    """And everybody is granted in the end, whatever the order of reserving, withdrawing and releasing."""
    random, budget = Random(seed), MessageBudget(limit)
    granted: dict[int, int] = {}
    waiting: set[int] = set()
    done: set[int] = set()
    channels = iter(range(10_000))

    def reserve(channel: int, amount: int) -> None:
        def grant() -> None:
            waiting.discard(channel)
            granted[channel] = amount

        waiting.add(channel)
        budget.reserve(channel, need=lambda: amount, message=amount, grant=grant)

    for _ in range(60):
        action = random.random()
        if action < 0.5:
            reserve(next(channels), random.randint(1, 200))
        elif action < 0.6 and waiting:
            channel = random.choice(sorted(waiting))
            waiting.discard(channel)
            budget.withdraw(channel)
        elif granted:
            channel = random.choice(sorted(granted))
            del granted[channel]
            done.add(channel)
            budget.release(channel)
        assert sum(granted.values()) == budget._total
        assert sum(granted.values()) <= limit + max(granted.values(), default=0)
        assert granted or not waiting
    while granted:
        channel = random.choice(sorted(granted))
        del granted[channel]
        budget.release(channel)
    assert not waiting
    assert (budget._total, budget.reserved, budget._over) == (0, {}, None)


def test_tiny_fragments_cost_no_more_than_what_they_hold() -> None:
    """A peer decides how it cuts a message up: memory goes by the bytes that credit counts, not by the pieces."""
    total = 40_000
    outbox = Outbox(_NO_LINK, worn=lambda: None, max_records=2**20)
    end = ChannelEnd(
        1,
        "simulated",
        Terms(outbox=outbox, budget=MessageBudget(0), window=2 * total, credit=0, receive_limit=total, send_limit=0),
        lambda _: None,
    )
    frames = [b"%c%c" % (number % 251, number // 251) for number in range(total // 2)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        end.receiving.on_first(total.to_bytes(4, "big") + bytes(frames[0]))
        for fragment in frames[1:-1]:
            end.receiving.on_more(bytes(bytearray(fragment)))  # as cut out of what was read: an object of its own
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 2 * total
    end.receiving.on_more(frames[-1])
    assert end.receiving.take() == b"".join(frames)


# Channels that receive, from senders that keep the rules --------------------------------------------------------------


class Sender:
    """A model of a peer's sending half: what it may do, it does in any order and at any size."""

    def __init__(self, channel: ChannelEnd, messages: Sequence[int], window: int, *, gives_back: bool) -> None:
        self.channel = channel
        self.messages = deque(messages)
        self.credit = self.window = window
        self.gives_back = gives_back
        self.total = self.sent = 0
        self.gave_up = False
        self.sent_whole: list[bytes] = []
        #: Frames on their way to the receiver, and credit on its way back.
        self.out: deque[tuple[int, Callable[[], None]]] = deque()
        self.back: deque[int] = deque()
        self.done = False

    @property
    def torn(self) -> bool:
        """Whether a message is under way."""
        return self.sent < self.total

    def _content(self, size: int) -> bytes:
        return bytes([len(self.sent_whole) % 251]) * size

    def may_send(self) -> bool:
        """Whether there is something to send, and credit for it."""
        return self.credit >= 1 if self.torn else bool(self.messages) and self.credit >= OVERHEAD

    def send(self, most: int) -> None:
        """Send a message or a fragment, of `most` bytes at most."""
        if self.torn:
            size = min(max(1, most), self.total - self.sent, self.credit)
            self._emit(size, wire.MORE, self._content(size))
            self.sent += size
        else:
            total = self.messages.popleft()
            size = min(most, total, self.credit - OVERHEAD)
            if size == total:
                self._emit(size + OVERHEAD, wire.MESSAGE, self._content(size))
            else:
                payload = total.to_bytes(4, "big") + self._content(size)
                self._emit(size + OVERHEAD, wire.FIRST, payload)
            self.total, self.sent = total, size
        if not self.torn:
            self.sent_whole.append(self._content(self.total))
            self.give_back()

    def give_up(self) -> None:
        """Discard the message under way."""
        self._emit(0, wire.DISCARD, b"")
        self.total = self.sent = 0
        self.gave_up = True
        self.give_back()

    def give_back(self) -> None:
        """Return what is beyond the window and for no message, once one was given up."""
        excess = self.credit - self.window
        if self.gives_back and self.gave_up and excess > 0 and not self.torn and not self.done:
            channel = self.channel
            self.credit -= excess
            self.out.append((excess, lambda: channel.receiving.on_return(excess)))

    def end(self) -> None:
        """Half-close."""
        self._emit(0, wire.EOF, b"")
        self.done = True

    def _emit(self, cost: int, kind: int, payload: bytes) -> None:
        channel = self.channel
        self.credit -= cost
        assert self.credit >= 0
        handlers: dict[int, Callable[[], None]] = {
            wire.MESSAGE: lambda: channel.receiving.on_message(payload),
            wire.FIRST: lambda: channel.receiving.on_first(payload),
            wire.MORE: lambda: channel.receiving.on_more(payload),
            wire.DISCARD: channel.receiving.on_discard,
            wire.EOF: channel.on_eof,
        }
        self.out.append((cost, handlers[kind]))


class World:
    """Some channels of one connection, seen from the receiver, and what is on its way."""

    def __init__(
        self,
        *,
        window: int,
        budget: int,
        largest: int,
        messages: Sequence[Sequence[int]],
        gives_back: bool = True,
        grown: int = 0,
    ) -> None:
        self.window = window
        #: What one channel's window may have grown to.
        self.grown = grown
        self.bound = len(messages) * window + budget + largest + OVERHEAD + grown
        self.outbox = Outbox(_NO_LINK, worn=lambda: None, max_records=2**20)
        self.decoder = wire.FrameDecoder()
        self.budget = MessageBudget(budget)
        self.senders = {
            identifier: Sender(self._channel(identifier, window, largest), sizes, window, gives_back=gives_back)
            for identifier, sizes in zip(range(1, 1000, 2), messages, strict=False)
        }
        self.received: dict[int, list[bytes]] = {identifier: [] for identifier in self.senders}

    def _channel(self, identifier: int, window: int, largest: int) -> ChannelEnd:
        return ChannelEnd(
            identifier,
            "simulated",
            Terms(outbox=self.outbox, budget=self.budget, window=window, credit=0, receive_limit=largest, send_limit=0),
            lambda _: None,
        )

    def deliver(self, identifier: int) -> None:
        """One frame arrives at the receiver."""
        _, handle = self.senders[identifier].out.popleft()
        handle()
        self.check()

    def credit(self, identifier: int) -> None:
        """One grant arrives at a sender."""
        sender = self.senders[identifier]
        sender.credit += sender.back.popleft()
        sender.give_back()

    def consume(self, identifier: int) -> bool:
        """The application takes a message, if there is one."""
        try:
            self.received[identifier].append(ServiceChannel(self.senders[identifier].channel).receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return False
        self.check()
        return True

    def check(self) -> None:
        """Collect what the receiver says, and check what must hold at any time."""
        said, self.outbox._pending = bytes(self.outbox._pending), bytearray()
        for kind, identifier, payload in self.decoder.feed(said):
            assert kind == wire.CREDIT
            self.senders[identifier].back.append(wire.unpack_u32(payload))
        windows = {identifier: sender.channel.receiving.window for identifier, sender in self.senders.items()}
        assert sum(window.held for window in windows.values()) <= self.bound
        # Nor could more come, if everybody sent all that they have been granted.
        granted = sum(window.held + window.outstanding for window in windows.values())
        assert granted <= self.bound
        for identifier, sender in self.senders.items():
            window = windows[identifier]
            under_way = sum(cost for cost, _ in sender.out)
            if not sender.done:
                assert window.outstanding == sender.credit + sum(sender.back) + under_way
            beyond = max(0, window.outstanding + window.held - max(window.size, self.grown))
            assert beyond <= self.budget.reserved.get(identifier, 0)
        assert sum(self.budget.reserved.values()) == self.budget._total

    def finish(self) -> None:
        """Let everybody do what they can until all is received; a round in which nothing moves is a deadlock."""
        while any(sender.torn or sender.messages or sender.out for sender in self.senders.values()):
            moved = False
            for identifier, sender in self.senders.items():
                moved |= self._go_on(identifier)
                # Who gives nothing back has to end, for the others' sake.
                if not (sender.gives_back or sender.torn or sender.messages or sender.done):
                    sender.end()
                    moved = True
            assert moved, "deadlock"
        for sender in self.senders.values():
            if not (sender.gives_back or sender.done):
                sender.end()
        while any(self._go_on(identifier) for identifier in self.senders):
            pass
        for identifier, sender in self.senders.items():
            assert self.received[identifier] == sender.sent_whole
            assert sender.done or self.window / 2 < sender.credit <= max(self.window, self.grown)
        assert (self.budget._total, self.budget.reserved, self.budget._over) == (0, {}, None)
        assert not self.budget._waiting

    def _go_on(self, identifier: int) -> bool:
        """Everything that one channel can do now; whether that is anything."""
        sender, moved = self.senders[identifier], False
        while sender.back:
            self.credit(identifier)
            moved = True
        while sender.may_send():
            sender.send(wire.MAX_FRAGMENT)
            moved = True
        while sender.out:
            self.deliver(identifier)
            moved = True
        while self.consume(identifier):
            moved = True
        return moved


_NO_LINK: Final[Any] = SimpleNamespace(confirmation=b"")

sizes: Final = st.integers(0, 200) | st.integers(0, 10_000) | st.integers(0, 60_000)
worlds: Final = st.builds(
    World,
    window=st.integers(4096, 20_000),
    budget=st.just(0) | st.integers(0, 100_000),
    largest=st.just(60_000),
    messages=st.lists(st.lists(sizes, max_size=8), min_size=1, max_size=6),
    gives_back=st.booleans(),
)


@given(world=worlds, seed=st.integers())
@settings(max_examples=effort(300))
def test_no_mix_of_sizes_windows_and_budgets_deadlocks(world: World, seed: int) -> None:
    """Everything arrives, in order, as long as the application receives; and at any time the bound holds.

    Senders do what they may in any order, fragment as they like and give messages up half-way; frames and credit are
    late; the application takes what is there when it likes, until it takes everything.
    """
    random = Random(seed)
    for _ in range(random.randint(0, 150)):
        identifier = random.choice(list(world.senders))
        sender = world.senders[identifier]
        action = random.random()
        if action < 0.45 and sender.may_send():
            sender.send(random.choice([1, 100, 5000, wire.MAX_FRAGMENT]))
        elif action < 0.5 and sender.torn:
            sender.give_up()
        elif action < 0.7 and sender.out:
            world.deliver(identifier)
        elif action < 0.85 and sender.back:
            world.credit(identifier)
        elif action < 0.95:
            world.consume(identifier)
    world.finish()


@given(world=worlds, seed=st.integers(), greed=st.integers(1, 5000))
@settings(max_examples=effort(100))
def test_an_application_that_takes_nothing_bounds_what_is_held(world: World, seed: int, greed: int) -> None:
    """Senders that use every byte they are granted, and give up and begin anew to be granted more, get no further."""
    random = Random(seed)
    for _ in range(200):
        identifier = random.choice(list(world.senders))
        sender = world.senders[identifier]
        sender.messages.append(random.choice([0, 100, 60_000]))
        while sender.back:
            world.credit(identifier)
        if sender.may_send():
            sender.send(random.choice([0, greed]))
        if sender.torn and random.random() < 0.2:
            sender.give_up()
        while sender.out:
            world.deliver(identifier)
    world.finish()


@given(
    before=st.lists(sizes, max_size=30),
    messages=st.lists(st.lists(sizes, max_size=4), min_size=1, max_size=4),
    budget=st.just(0) | st.integers(0, 100_000),
    gives_back=st.booleans(),
    greatest=st.sampled_from([8192, 40_000, 100_000]),
)
@example(before=[2000] * 30 + [60_000], messages=[[60_000]], budget=0, gives_back=True, greatest=40_000)
@settings(max_examples=effort(200))
def test_nor_does_a_window_that_has_grown(
    before: list[int], messages: list[list[int]], budget: int, greatest: int, *, gives_back: bool
) -> None:
    """A channel that was alone, and is quiet now, holds up nobody's large messages."""
    world = World(
        window=4096,
        budget=budget,
        largest=60_000,
        messages=[before, *messages],
        gives_back=gives_back,
        grown=greatest,
    )
    later = [sender.messages for sender in world.senders.values()][1:]
    kept, first = [deque(each) for each in later], world.senders[1]
    for each in later:
        each.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_flow, "LARGEST_WINDOW", greatest)
        patched.setattr(trio, "current_time", lambda: 1.0)
        world.budget._company_until = 0
        while first.messages or first.torn or first.out:
            assert world._go_on(1), "deadlock"
        world.budget._company_until = math.inf
        for each, messages_kept in zip(later, kept, strict=True):
            each.extend(messages_kept)
        world.finish()


@pytest.mark.parametrize("size", [4096, 4097, 5000, 131072])
@pytest.mark.parametrize("message", [0, 1, 4031, 4032, 4033, 8000, 60_000])
def test_one_channel_alone_never_stalls(size: int, message: int) -> None:
    """Around the edges of the smallest windows: as many messages as one likes."""
    world = World(window=size, budget=0, largest=60_000, messages=[[message] * 50])
    world.finish()


@given(amounts=st.lists(st.integers(0, 60_000), min_size=1, max_size=30), window=st.integers(4096, 8000))
@example(amounts=[60_000, 0, 60_000, 4032, 4033], window=4096)
def test_credit_is_restored_when_everything_was_received(amounts: list[int], window: int) -> None:
    """After any messages the sender's credit is within half a window of the whole, and never above it."""
    world = World(window=window, budget=0, largest=60_000, messages=[amounts])
    world.finish()
    assert window / 2 < world.senders[1].credit <= window
