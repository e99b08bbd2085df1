"""Channels, calls, services and typed messages: one test for each sentence that promises something.

Nodes are real and on loopback. A peer that breaks the rules is written by hand, frame by frame, behind an honest
TLS handshake and hello. Order is proved by messages and `wait_all_tasks_blocked`, never by sleeping.
"""

from __future__ import annotations

import contextvars
import gc
import logging
import re
import weakref
from collections import deque
from collections.abc import AsyncIterable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import msgspec
import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    ApplicationCode,
    ClientAuth,
    Connection,
    EndReason,
    LocalProtocolError,
    NetworkOptions,
    NodeName,
    NodeOptions,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
    Route,
    ServiceChannel,
    TypedChannel,
    _protocol as wire,
    call_typed,
    current_channel,
    open_node,
    typed_service,
)
from trionode._connection import send_queue as outbox
from trionode._connection.connection import core_of
from trionode._connection.send_half import SendHalf
from trionode.testing import check_two_way_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from conftest import ManagerFactory, PairFactory, ScriptedListener, ScriptedPeer

    from trionode import Node, Peer, Service
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
MALLORY: Final = "mallory@localhost"

#: Every test is bounded by this. Seconds; none comes near it unless something hangs.
PATIENCE: Final = 20
#: Quiet for this long means that frames on loopback have arrived and were dealt with. Seconds.
CUSHION: Final = 0.02

#: Large messages go one at a time.
NO_BUDGET: Final = {"channel_window": 8192, "receive_budget": 0}

_numbers = count()


async def run_bounded(function: Callable[[], Awaitable[None]]) -> None:
    """Run a test, which must not hang."""
    with trio.fail_after(PATIENCE):
        await function()


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> None:
    """Bound every test; an asynchronous fixture could not, its scopes are not the test's."""
    mark = pytest.mark.trio(run=lambda function, **options: trio.run(run_bounded, function, **options))
    request.node.add_marker(mark, append=False)


async def settled() -> None:
    """Everybody has got as far as they can."""
    await trio.testing.wait_all_tasks_blocked(CUSHION)


async def again_and_again(operation: Callable[[], Awaitable[object]]) -> NoReturn:
    """Until it raises."""
    while True:
        await operation()


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def answer(channel: ServiceChannel) -> None:
    """Answer one request with its length."""
    await channel.send(b"%d" % len(await channel.receive()))


class Held:
    """A service whose tasks stay until they are let go or cancelled, and lend their channels to the test."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.began: list[ServiceChannel] = []
        self.cancelled: list[ServiceChannel] = []
        self.ended: list[ServiceChannel] = []
        self._changed = trio.lowlevel.ParkingLot()

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        self.began.append(channel)
        self._changed.unpark_all()
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.cancelled.append(channel)
            raise
        finally:
            self.ended.append(channel)
            self._changed.unpark_all()

    async def first(self) -> ServiceChannel:
        """The service's end of the channel that was opened first."""
        while not self.began:
            await self._changed.park()
        return self.began[0]

    async def other_end(self, channel: ServiceChannel) -> ServiceChannel:
        """The service's end of a channel; for use with one connection."""
        while True:
            for each in self.began:
                if each._end.number == channel._end.number:
                    return each
            await self._changed.park()

    async def end_of(self, channel: ServiceChannel) -> None:
        """Wait until the task that serves a channel has ended."""
        while channel not in self.ended:
            await self._changed.park()


class Shielded(Held):
    """One whose tasks no cancellation reaches: their end of a channel can be used by a test whatever happens."""

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        with trio.move_on_after(PATIENCE / 2, shield=True):  # a test that fails lets nobody go
            await super().__call__(channel)


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """What an exception group holds, at any depth."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def connection_of(node: Node, name: str | NodeName) -> Connection:
    """The one connection that a node has to another."""
    [connection] = [each for each in node._runtime.running if each.peer.name == NodeName.parse(name)]
    return node._runtime.public(connection)


def held_bytes(connection: Connection) -> int:
    """What a connection has received for channels that are open and that no application has taken yet, as credit."""
    return sum(channel.receiving.window.held for channel in core_of(connection).channels.open.values())


def nothing_is_left(*connections: Connection) -> bool:
    """Whether connections that live on hold no channels, tasks or reservations."""
    return not any(
        table.open or table.served or table.waiting or table._terms.budget._total
        for table in (core_of(connection).channels for connection in connections)
    )


# The rules of channels, as a reusable check --------------------------------------------------------------------------


@pytest.mark.parametrize("tight", [False, True], ids=["roomy", "tight"])
@pytest.mark.parametrize("opener", ["dialer", "acceptor"])
async def test_channels_between_nodes_keep_the_rules_of_channels(
    open_pair: PairFactory, opener: str, tight: bool
) -> None:
    """Both ends of a channel, whichever side of the connection opened it, keep every rule that the check knows."""
    limits: dict[str, Any] = {"channel_window": 4096, "receive_budget": 0} if tight else {}
    async with open_pair(alpha=limits, beta=limits) as pair:
        await pair.alpha.connect(BETA)
        if opener == "acceptor":
            await settled()
        caller, server = (pair.alpha, pair.beta) if opener == "dialer" else (pair.beta, pair.alpha)
        connection = connection_of(caller, server.name)

        @asynccontextmanager
        async def make() -> AsyncIterator[tuple[ServiceChannel, ServiceChannel]]:
            service, name = Shielded(), f"service {next(_numbers)}"
            server.add_service(name, service)
            try:
                async with connection.open_channel(name) as ours:
                    yield ours, await service.other_end(ours)
            finally:
                service.let_go.set()

        await check_two_way_channel(make)
        await settled()
        assert connection is connection_of(caller, server.name)
        assert nothing_is_left(connection, connection_of(server, caller.name))


@dataclass(eq=False)
class _Shared:
    """What the two ends of a model channel have in common."""

    capacity: int = 4
    reset: bool = False


class ModelChannel(trio.abc.Channel[bytes]):
    """The rules of channels in their shortest form, on two of Trio's memory channels."""

    def __init__(
        self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes], shared: _Shared
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._shared = shared
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def pair(cls) -> AsyncIterator[tuple[ModelChannel, ModelChannel]]:
        """Two connected ends."""
        shared = _Shared()
        there, here = (trio.open_memory_channel[bytes](shared.capacity) for _ in range(2))
        yield cls(there[0], here[1], shared), cls(here[0], there[1], shared)

    async def send(self, value: bytes) -> None:
        """Send."""
        await self._outgoing.send(value)

    def send_nowait(self, value: bytes) -> None:
        """Send at once."""
        self._outgoing.send_nowait(value)

    async def send_many(self, values: Iterable[bytes] | AsyncIterable[bytes]) -> None:
        """Send each in turn."""
        await trio.lowlevel.checkpoint()
        if isinstance(values, AsyncIterable):
            async for value in values:
                await self.send(value)
        else:
            for value in values:
                await self.send(value)

    async def send_eof(self) -> None:
        """Half-close."""
        if self._closed:
            raise trio.ClosedResourceError
        await self._outgoing.aclose()

    async def receive(self) -> bytes:
        """Receive."""
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise self._end() from None

    def receive_nowait(self) -> bytes:
        """Receive at once."""
        try:
            return self._incoming.receive_nowait()
        except trio.EndOfChannel:
            raise self._end() from None

    def _end(self) -> Exception:
        return trio.BrokenResourceError() if self._shared.reset else trio.EndOfChannel()

    def close(self) -> None:
        """Close."""
        self._closed = True
        self._outgoing.close()
        self._incoming.close()

    async def aclose(self) -> None:
        """Close."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close, or reset."""
        self._shared.reset = error[0] is not None
        self.close()
        if error[0] is None:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC102 -- wrong on purpose


class SendsWithoutCheckpoint(ModelChannel):
    """`send` that found room does not let others run."""

    async def send(self, value: bytes) -> None:
        """Send."""
        try:
            self.send_nowait(value)
        except trio.WouldBlock:
            await super().send(value)


class LosesOnCancelledReceive(ModelChannel):
    """`receive` takes the message, and then notices the cancellation."""

    async def receive(self) -> bytes:
        """Receive."""
        value = await super().receive()
        await trio.lowlevel.checkpoint()
        return value


class SendsThoughCancelled(ModelChannel):
    """`send` sends, and then notices the cancellation."""

    async def send(self, value: bytes) -> None:
        """Send."""
        try:
            self.send_nowait(value)
        except trio.WouldBlock:
            await super().send(value)
        else:
            await trio.lowlevel.checkpoint()


class DropsAtClose(ModelChannel):
    """Closing forgets what the peer has not read."""

    def close(self) -> None:
        """Close."""
        self._outgoing._state.data.clear()
        super().close()


class MistakesOwnClose(ModelChannel):
    """Who waits on the end that is closed takes that for the peer's end."""

    async def receive(self) -> bytes:
        """Receive."""
        try:
            return await super().receive()
        except trio.ClosedResourceError:
            raise trio.EndOfChannel from None


class SendsIntoTheVoid(ModelChannel):
    """`send` does not mind that the peer has closed."""

    async def send(self, value: bytes) -> None:
        """Send."""
        try:
            await super().send(value)
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()


class HushesReset(ModelChannel):
    """An exception that leaves the block looks to the peer like a clean end."""

    async def __aexit__(self, *error: object) -> None:
        """Close."""
        await self.aclose()


class SwallowsExceptions(ModelChannel):
    """An exception that leaves the block is not seen again."""

    async def __aexit__(self, *error: object) -> Any:
        """Close, or reset."""
        await super().__aexit__(*error)  # noqa: ASYNC102 -- wrong on purpose
        return True


class AsksTooSoon(ModelChannel):
    """`send_many` asks for a message before the last one was accepted."""

    async def send_many(self, values: Iterable[bytes] | AsyncIterable[bytes]) -> None:
        """Send each in turn, one behind what was asked for."""
        if isinstance(values, AsyncIterable):
            await super().send_many(values)
        else:
            at_hand = deque(islice(values, 1))
            for value in values:
                at_hand.append(value)
                await super().send_many([at_hand.popleft()])
            await super().send_many(at_hand)


class Unbounded(ModelChannel):
    """Accepts everything, for ever."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._outgoing._state.max_buffer_size = float("inf")


class Reorders(ModelChannel):
    """A later message overtakes an earlier one, now and then."""

    def receive_nowait(self) -> bytes:
        """Receive at once."""
        self._incoming._state.data.rotate(1)
        return super().receive_nowait()

    async def receive(self) -> bytes:
        """Receive."""
        self._incoming._state.data.rotate(1)
        return await super().receive()


class Repeats(ModelChannel):
    """Of two tasks that wait, both get the message."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._again: deque[bytes] = deque()

    async def receive(self) -> bytes:
        """Receive."""
        if self._again:
            value = self._again.popleft()
            await trio.lowlevel.checkpoint()
            return value
        value = await super().receive()
        if self._incoming.statistics().tasks_waiting_receive:
            self._again.append(value)
        return value


class HalfClosesBoth(ModelChannel):
    """`send_eof` ends receiving, too."""

    async def send_eof(self) -> None:
        """Half-close."""
        await super().send_eof()
        await self._incoming.aclose()


async def test_the_check_accepts_a_channel_that_has_nothing_to_do_with_nodes() -> None:
    """The check asks for the rules only: a channel made of Trio's own memory channels passes."""
    await check_two_way_channel(ModelChannel.pair)


@pytest.mark.parametrize(
    "broken",
    [
        SendsWithoutCheckpoint,
        LosesOnCancelledReceive,
        SendsThoughCancelled,
        DropsAtClose,
        MistakesOwnClose,
        SendsIntoTheVoid,
        HushesReset,
        SwallowsExceptions,
        AsksTooSoon,
        Unbounded,
        Reorders,
        Repeats,
        HalfClosesBoth,
    ],
)
async def test_the_check_finds_a_channel_that_breaks_a_rule(broken: type[ModelChannel]) -> None:
    """Each of these breaks one rule; the check fails, does not hang, and says where it was."""
    with pytest.raises(Exception) as info, trio.fail_after(4 * PATIENCE):  # noqa: PT011 -- see below
        await check_two_way_channel(broken.pair)
    expected = (AssertionError, trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
    assert not [exc for exc in leaves(info.value) if not isinstance(exc, expected)]
    assert any("led by the" in note for note in info.value.__notes__)
    assert all(len(str(exc)) < 300 for exc in leaves(info.value)), "messages are not in it"


# Cancellation crosses the wire ---------------------------------------------------------------------------------------


class OopsError(Exception):
    """What goes wrong in a caller."""


async def test_leaving_by_an_exception_cancels_that_service_task_and_no_other(open_pair: PairFactory) -> None:
    """An exception that leaves the channel's block cancels the task that serves it, and only that one."""
    held = Held()
    async with open_pair(beta={"services": {"held": held, "echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("held") as other:
            theirs = await held.other_end(other)
            with suppress(OopsError):
                async with connection.open_channel("held") as channel:
                    doomed = await held.other_end(channel)
                    raise OopsError
            await held.end_of(doomed)
            assert await connection.call("echo", b"still here") == b"still here"
            assert held.cancelled == [doomed]
            assert held.ended == [doomed]
            await other.send(b"x")
            assert await theirs.receive() == b"x"
            held.let_go.set()
            await held.end_of(theirs)
            assert held.cancelled == [doomed]


@pytest.mark.parametrize("verb", ["channel", "call"])
async def test_cancelling_the_caller_cancels_that_service_task(open_pair: PairFactory, verb: str) -> None:
    """Cancelling whoever uses a channel, or waits for a call, cancels the service over there."""
    held = Held()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)

        async def use_channel() -> None:
            async with pair.alpha.open_channel(BETA, "held") as channel:
                await channel.receive()

        async with trio.open_nursery() as nursery:
            if verb == "channel":
                nursery.start_soon(use_channel)
            else:
                nursery.start_soon(pair.alpha.call, BETA, "held", b"")
            theirs = await held.first()
            nursery.cancel_scope.cancel()
        await held.end_of(theirs)
        assert held.cancelled == [theirs]
        await settled()
        assert nothing_is_left(connection, connection_of(pair.beta, ALPHA))


async def test_shielded_code_of_a_service_is_not_cancelled(open_pair: PairFactory) -> None:
    """What a service shields goes on after its caller has reset the channel, which it can see meanwhile."""
    shielded, seen, after = Shielded(), list[Exception](), list[str]()

    async def serve(channel: ServiceChannel) -> None:
        await shielded(channel)
        try:
            await channel.receive()
        finally:
            after.append("cleaned up")

    async with open_pair(beta={"services": {"serve": serve}}) as pair:
        with suppress(OopsError):
            async with pair.alpha.open_channel(BETA, "serve"):
                theirs = await shielded.first()
                raise OopsError
        for operation in (theirs.receive, partial(theirs.send, b"x")):
            with pytest.raises(trio.BrokenResourceError) as info:
                await again_and_again(operation)
            seen.append(info.value)
        assert all(isinstance(exc.__cause__, RemoteError) for exc in seen)
        assert shielded.ended == []
        shielded.let_go.set()
        await settled()
        assert after == ["cleaned up"]


async def test_leaving_cleanly_does_not_cancel_the_service(open_pair: PairFactory) -> None:
    """A clean exit lets the service read everything that was sent, then `EndOfChannel`, and go on as it likes."""
    read: list[bytes] = []
    done = trio.Event()

    async def collect(channel: ServiceChannel) -> None:
        async for message in channel:
            await trio.lowlevel.checkpoint()  # slower than the caller
            read.append(message)
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
        await trio.testing.wait_all_tasks_blocked()
        done.set()

    sent = [bytes([number]) * size for number, size in enumerate([0, 10, 100_000, 1, 300_000, 5])]
    async with open_pair(beta={"services": {"collect": collect}}) as pair:
        async with pair.alpha.open_channel(BETA, "collect") as channel:
            for message in sent:
                await channel.send(message)
        await done.wait()
        assert read == sent


# Deadlines travel ----------------------------------------------------------------------------------------------------


async def test_the_callers_deadline_travels_as_remaining_time(open_pair: PairFactory) -> None:
    """The effective deadline is sampled when the channel opens and is, as remaining time, that of the service task."""

    async def remaining(channel: ServiceChannel) -> None:
        scope = channel._end.scope
        assert scope is not None
        assert trio.current_effective_deadline() <= scope.deadline
        await channel.send(b"%f" % (scope.deadline - trio.current_time()))

    async with open_pair(beta={"services": {"remaining": remaining}}) as pair:
        await pair.alpha.connect(BETA)

        async def ask(seconds: float) -> float:
            scope = trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
            with scope:
                async with pair.alpha.open_channel(BETA, "remaining") as channel:
                    scope.deadline = float("inf")  # sampled when it opened: later changes do not count
                    reply = await channel.receive()
            return float(reply)

        assert await ask(float("inf")) == float("inf")
        for seconds in (5, 1000):
            assert seconds - 2 < await ask(seconds) <= seconds


async def test_the_callers_deadline_bounds_the_service(open_pair: PairFactory) -> None:
    """When it passes the service is cancelled over there, whatever the caller does: `RemoteError`, code cancelled."""
    held = Held()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)
        with trio.move_on_after(0.05):  # noqa: ASYNC100 -- the deadline is sampled in there
            channel = connection.open_channel("held")
        async with channel:
            with pytest.raises(RemoteError, match="deadline") as info:
                await channel.receive()
            assert info.value.code is RemoteCode.CANCELLED
            with pytest.raises(trio.BrokenResourceError):
                await channel.send(b"x")
        assert len(held.cancelled) == 1


async def test_a_channel_opened_in_a_cancelled_scope_leaves_nothing_behind(open_pair: PairFactory) -> None:
    """Opening is synchronous and legal in a cancelled scope; the service gets no time at all."""
    held = Held()
    async with open_pair(beta={"services": {"held": held, "echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with connection.open_channel("held") as channel:
                await channel.receive()
        assert scope.cancelled_caught
        assert await connection.call("echo", b"x") == b"x"
        await settled()
        assert held.ended == held.cancelled
        assert nothing_is_left(connection, connection_of(pair.beta, ALPHA))


# When the peer goes away ---------------------------------------------------------------------------------------------


async def test_when_the_caller_goes_away_its_service_tasks_are_cancelled(open_pair: PairFactory) -> None:
    """A connection that ends takes the tasks along that served it, those of half-closed channels included."""
    held = Held()
    with suppress(OopsError):
        async with open_pair(beta={"services": {"held": held}}) as pair:
            connection = await pair.alpha.connect(BETA)
            async with connection.open_channel("held") as whole, connection.open_channel("held") as half:
                theirs = [await held.other_end(whole), await held.other_end(half)]
                await half.send_eof()
                await settled()
                await trio.aclose_forcefully(core_of(connection).link.stream.transport_stream)
                for each in theirs:
                    await held.end_of(each)
                assert {id(each) for each in held.cancelled} == {id(each) for each in theirs}
                with pytest.raises(trio.BrokenResourceError):
                    await whole.receive()
            raise OopsError


@pytest.mark.parametrize("end", ["vanishes", "closes"])
async def test_when_the_peer_goes_away_callers_learn_why(open_pair: PairFactory, end: str) -> None:
    """Whoever waits on a connection that ends gets `BrokenResourceError`, and its `__cause__` says why."""
    held, errors = Held(), list[BaseException]()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)

        async def fail(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.BrokenResourceError) as info:
                await again_and_again(operation)
            errors.append(info.value)

        async with connection.open_channel("held") as channel, trio.open_nursery() as nursery:
            nursery.start_soon(fail, channel.receive)
            nursery.start_soon(fail, partial(channel.send, bytes(50_000)))
            nursery.start_soon(fail, partial(connection.call, "held", b""))
            await settled()
            theirs = connection_of(pair.beta, ALPHA)
            if end == "closes":
                await theirs.aclose()
            else:
                await trio.aclose_forcefully(core_of(theirs).link.stream.transport_stream)
        assert len(errors) == 3
        assert all(isinstance(error.__cause__, Exception) for error in errors)
        reason = (await connection.wait_closed()).reason
        assert reason is (EndReason.CLOSED_BY_PEER if end == "closes" else EndReason.LOST)
        with pytest.raises(RemoteError) as info:
            connection.open_channel("held")
        assert (info.value.code, info.value.not_run) == (RemoteCode.NOT_TAKEN, True)
        assert isinstance(info.value.__cause__, trio.BrokenResourceError)
        assert await pair.alpha.connect(BETA) is not connection


async def test_what_arrived_before_the_connection_ended_can_still_be_read(open_pair: PairFactory) -> None:
    """Messages that are there outlive the connection; behind them comes the error."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}}) as pair:
        connection = await pair.alpha.connect(BETA)
        channel = connection.open_channel("shielded")
        theirs = await shielded.other_end(channel)
        await theirs.send(b"one")
        await theirs.send(b"two")
        await settled()
        await connection_of(pair.beta, ALPHA).aclose()
        await connection.wait_closed()
        assert [await channel.receive(), channel.receive_nowait()] == [b"one", b"two"]
        with pytest.raises(trio.BrokenResourceError):
            await channel.receive()
        await channel.aclose()
        shielded.let_go.set()


async def test_a_service_whose_caller_closed_cleanly_may_finish_after_the_connection(open_pair: PairFactory) -> None:
    """It has everything that was sent, so neither the end of the channel nor of the connection cancels it."""
    held, got = Held(), list[bytes]()

    async def work(channel: ServiceChannel) -> None:
        async for message in channel:
            got.append(message)
        await held(channel)
        got.append(b"finished")

    async with open_pair(beta={"services": {"work": work}}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("work") as channel:
            await channel.send(b"job")
        theirs = await held.first()
        connection_there = connection_of(pair.beta, ALPHA)
        await connection.aclose()
        await connection_there.wait_closed()
        await settled()
        assert held.ended == []
        held.let_go.set()
        await held.end_of(theirs)
        await settled()
        assert got == [b"job", b"finished"]


# Sending -------------------------------------------------------------------------------------------------------------


async def test_a_send_cancelled_after_its_first_fragment_leaves_the_channel_usable(open_pair: PairFactory) -> None:
    """The receiver drops the torn message, gets what comes after it, and gives back what it had reserved."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as blocker, connection.open_channel("shielded") as channel:
            taken, theirs = await shielded.other_end(blocker), await shielded.other_end(channel)
            await blocker.send(b"b" * 200_000)  # it has the one place that is over the budget until it is received
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"t" * 100_000)
                await settled()
                assert theirs._receiving.reassembly is not None
                assert 0 < theirs._receiving.reassembly.cost < 100_000
                with pytest.raises(trio.WouldBlock):
                    channel.send_nowait(b"others wait")
                nursery.cancel_scope.cancel()
            await channel.send(b"after")
            assert await theirs.receive() == b"after"
            assert await taken.receive() == b"b" * 200_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"x" * 100_000)
                assert await theirs.receive() == b"x" * 100_000
            await settled()
            assert core_of(connection_of(pair.beta, ALPHA)).channels._terms.budget._total == 0
            assert channel._sending.credit == 8192
        shielded.let_go.set()


async def test_a_send_cancelled_before_its_first_fragment_sent_nothing(open_pair: PairFactory) -> None:
    """Whether it waited for its turn or for credit: not a byte of it is queued, and the next message is the next."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, "channel_window": 4096}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as channel:
            theirs = await shielded.other_end(channel)
            await channel.send(b"1" * 4000)
            await settled()
            before = connection.statistics().bytes_sent
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(channel.send, b"%d" % number * 3000)
                await settled()
                nursery.cancel_scope.cancel()
            with trio.CancelScope() as scope:
                scope.cancel()
                await channel.send(b"never")
            await settled()
            assert connection.statistics().bytes_sent == before
            assert not core_of(connection).outbox._pending
            assert await theirs.receive() == b"1" * 4000
            await channel.send(b"2")
            assert await theirs.receive() == b"2"
        shielded.let_go.set()


async def test_sends_that_wait_go_out_in_the_order_of_their_calls(open_pair: PairFactory) -> None:
    """Large messages, small ones and the half-close behind them keep the order in which they were asked for."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, "channel_window": 4096}) as pair:
        async with pair.alpha.open_channel(BETA, "shielded") as channel:
            theirs = await shielded.other_end(channel)
            sizes = [5000, 10, 70_000, 0, 4000, 1]
            async with trio.open_nursery() as nursery:
                for number, size in enumerate(sizes):
                    nursery.start_soon(channel.send, bytes([number]) * size)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(channel.send_eof)
                received = [message async for message in theirs]
            assert received == [bytes([number]) * size for number, size in enumerate(sizes)]
        shielded.let_go.set()


async def test_many_messages_are_sent_without_letting_others_run(open_pair: PairFactory) -> None:
    """Where there is room; then once, that it is a checkpoint. Where there is none it waits, and others are heard."""
    shielded = Shielded()
    order: list[object] = []

    async def other() -> None:
        order.append("other")

    def messages() -> Iterator[bytes]:
        for number in range(5):
            order.append(number)
            yield b"%d" % number

    async with open_pair(beta={"services": {"shielded": shielded}, "channel_window": 4096}) as pair:
        async with pair.alpha.open_channel(BETA, "shielded") as channel, trio.open_nursery() as nursery:
            theirs = await shielded.other_end(channel)
            nursery.start_soon(other)
            await channel.send_many(messages())
            assert order[:5] == [0, 1, 2, 3, 4]
            assert [await theirs.receive() for _ in range(5)] == [b"%d" % number for number in range(5)]
            nursery.start_soon(channel.send_many, [b"m" * 1000] * 12)
            await settled()
            nursery.start_soon(channel.send, b"in between")
            received = [await theirs.receive() for _ in range(13)]
            assert received.count(b"m" * 1000) == 12
            assert received.index(b"in between") < 12
        shielded.let_go.set()


async def test_many_messages_until_one_cannot_be_sent(open_pair: PairFactory) -> None:
    """Those before it were; the channel goes on. Whatever else is raised, by what gives the messages, comes out."""
    shielded = Shielded()

    def failing() -> Iterator[bytes]:
        yield b"before"
        raise OopsError

    async def failing_too() -> AsyncIterator[bytes]:
        for message in failing():
            yield message

    async with open_pair(beta={"services": {"shielded": shielded}, "max_message_size": 2000}) as pair:
        async with pair.alpha.open_channel(BETA, "shielded") as channel:
            theirs = await shielded.other_end(channel)
            with pytest.raises(LocalProtocolError, match="2001 bytes is larger than the 2000"):
                await channel.send_many([b"before", bytes(2001), b"never"])
            with pytest.raises(TypeError, match="a message is bytes"):
                await channel.send_many([b"before", "text"])  # type: ignore[list-item]  # that is the point
            for messages in (failing(), failing_too()):
                with pytest.raises(OopsError):
                    await channel.send_many(messages)
            typed = TypedChannel[Any, Any](channel, receives=object)
            with pytest.raises(TypeError):
                await typed.send_many(["typed", OopsError])
            await typed.send_many(message async for message in numbers())
            assert [await theirs.receive() for _ in range(4)] == [b"before"] * 4
            assert [msgspec.msgpack.decode(await theirs.receive()) for _ in range(3)] == ["typed", 1, 2]
            await channel.send_eof()
            with pytest.raises(trio.ClosedResourceError):
                await channel.send_many([b"late"])
        shielded.let_go.set()


async def numbers() -> AsyncIterator[int]:
    """Some."""
    for number in (1, 2):
        await trio.lowlevel.checkpoint()
        yield number


async def test_an_oversized_message_is_refused_before_a_byte_is_sent(open_pair: PairFactory) -> None:
    """`LocalProtocolError`, with what the peer accepts and what we accept in the text; the channel stays usable."""
    async with open_pair(
        alpha={"max_message_size": 3000}, beta={"services": {"echo": echo}, "max_message_size": 1000}
    ) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("echo") as channel:
            await channel.send(b"x" * 1000)
            assert await channel.receive() == b"x" * 1000
            await settled()
            before = connection.statistics().bytes_sent
            with pytest.raises(LocalProtocolError, match=r"1001 bytes.* 1000 .*beta@localhost.* 3000\b"):
                await channel.send(b"x" * 1001)
            with pytest.raises(LocalProtocolError, match=r"\b1000\b"):
                channel.send_nowait(b"x" * 1001)
            await settled()
            assert connection.statistics().bytes_sent == before
            await channel.send(b"fits")
            assert await channel.receive() == b"fits"


@pytest.mark.parametrize("value", ["text", None, 7, ["list"], {"a": 1}])
async def test_what_is_not_bytes_is_refused_before_a_byte_is_sent(open_pair: PairFactory, value: Any) -> None:
    """`TypeError`, and neither the channel nor the connection that others share is any the worse for it."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("echo") as channel:
            with pytest.raises(TypeError, match=r"a message is bytes, not an? ") as caught:
                await channel.send(value)
            assert ("encode it" in str(caught.value)) == isinstance(value, str)
            with pytest.raises(TypeError, match="a message is bytes"):
                channel.send_nowait(value)
            await channel.send(b"fine")
            assert await channel.receive() == b"fine"
        assert await connection.call("echo", b"fine too") == b"fine too"


@pytest.mark.parametrize("value", [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("I")])
async def test_other_buffers_are_sent_as_the_bytes_they_hold(open_pair: PairFactory, value: Any) -> None:
    """Whatever the items of a buffer are, its bytes go out."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        assert await pair.alpha.call(BETA, "echo", value) == b"abcd"


# Limits --------------------------------------------------------------------------------------------------------------


async def test_more_channels_than_the_peer_allows_are_refused_here(open_pair: PairFactory) -> None:
    """`RemoteError`, code limit, naming `max_channels`; closing one makes room. Each side has its own limit."""
    held = Held()
    async with open_pair(
        alpha={"services": {"held": held}}, beta={"services": {"held": held, "echo": echo}, "max_channels": 2}
    ) as pair:
        connection = await pair.alpha.connect(BETA)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(connection.open_channel("held"))
            with pytest.raises(RemoteError, match=r"\b2 channels.*max_channels") as info:
                connection.open_channel("echo")
            assert info.value.code is RemoteCode.LIMIT
            with pytest.raises(RemoteError, match="max_channels"):
                await pair.alpha.call(BETA, "echo", b"")
            await settled()
            theirs = connection_of(pair.beta, ALPHA)
            for _ in range(3):
                await stack.enter_async_context(theirs.open_channel("held"))
            held.let_go.set()
            await settled()
        assert await connection.call("echo", b"room") == b"room"


# Flow control --------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_of_one_channel_holds_up_nobody_else(open_pair: PairFactory) -> None:
    """While channels stand full, small messages and large ones pass on others, and what is held stays bounded."""
    shielded = Shielded()
    window, budget, largest = 16 * 1024, 400_000, 300_000
    async with open_pair(
        beta={
            "services": {"shielded": shielded, "echo": echo},
            "channel_window": window,
            "receive_budget": budget,
            "max_message_size": largest,
        }
    ) as pair:
        connection = await pair.alpha.connect(BETA)

        async def stuff(channel: ServiceChannel, size: int) -> None:
            while True:
                await channel.send(bytes(size))

        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for size in (1, 1000, 10_000, 150_000, 40_000):
                channel = await stack.enter_async_context(connection.open_channel("shielded"))
                nursery.start_soon(stuff, channel, size)
            await settled()
            theirs = connection_of(pair.beta, ALPHA)
            held = held_bytes(theirs)
            assert held > 3 * window  # they are indeed full
            for size in (0, 10, 20_000, 100_000):
                assert await connection.call("echo", b"e" * size) == b"e" * size
                assert held_bytes(theirs) <= 6 * window + budget + largest
            await settled()
            assert held_bytes(theirs) == held
            nursery.cancel_scope.cancel()
        shielded.let_go.set()
        await settled()
        assert nothing_is_left(connection, theirs)


async def test_large_messages_beyond_the_budget_wait_their_turn_and_all_arrive(open_pair: PairFactory) -> None:
    """With no budget at all large messages go one at a time: none deadlocks, as long as the application receives."""
    async with open_pair(
        alpha={"channel_window": 4096, "receive_budget": 0},
        beta={"services": {"echo": echo}, "channel_window": 4096, "receive_budget": 0},
    ) as pair:
        connection = await pair.alpha.connect(BETA)

        async def talk(salt: int) -> None:
            async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:
                sent = [bytes([salt]) * size for size in (5000 * salt, 10, 100_000 + salt, 0, 4033, 4032)]

                async def send() -> None:
                    for message in sent:
                        await channel.send(message)
                    await channel.send_eof()

                nursery.start_soon(send)
                assert [message async for message in channel] == sent

        async with trio.open_nursery() as nursery:
            for salt in range(1, 9):
                nursery.start_soon(talk, salt)
        await settled()
        assert nothing_is_left(connection, connection_of(pair.beta, ALPHA))


async def test_a_message_that_waits_for_the_budget_keeps_its_place_when_others_are_consumed(
    open_pair: PairFactory,
) -> None:
    """Receiving earlier messages of the same channel does not make the connection forget the one that waits."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as blocker, connection.open_channel("shielded") as channel:
            taken, theirs = await shielded.other_end(blocker), await shielded.other_end(channel)
            await blocker.send(b"b" * 100_000)
            await settled()
            async with trio.open_nursery() as nursery:
                await channel.send(b"small")
                nursery.start_soon(channel.send, b"t" * 100_000)
                await settled()
                assert await theirs.receive() == b"small"
                await settled()
                assert await taken.receive() == b"b" * 100_000
                with trio.fail_after(5):
                    assert await theirs.receive() == b"t" * 100_000
        shielded.let_go.set()


@contextmanager
def credit_goes_to(channel: ServiceChannel, take: Callable[[int], None]) -> Iterator[None]:
    """Have somebody else get the credit that a channel is granted."""
    usual = SendHalf.on_credit

    def on_credit(self: SendHalf, amount: int) -> None:
        if self is channel._sending:
            take(amount)
        else:
            usual(self, amount)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SendHalf, "on_credit", on_credit)
        yield


async def send_torn(channel: ServiceChannel, size: int) -> int:
    """Send a large message and give it up when the credit for its rest comes; returns the credit then in hand."""
    usual = SendHalf.on_credit
    with trio.CancelScope() as scope:

        def cancel(amount: int) -> None:
            usual(channel._sending, amount)
            scope.cancel()

        with credit_goes_to(channel, cancel), pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "trionode._connection.reassembly._STRETCH", 2 * outbox.HIGH_WATER
            )  # more than is sent before it is given up
            await channel.send(b"t" * size)
    assert scope.cancelled_caught
    return channel._sending.credit


@pytest.mark.parametrize("small", [0, 1, 5])
async def test_a_large_message_is_granted_after_one_that_was_given_up_on_its_channel(
    open_pair: PairFactory, small: int
) -> None:
    """The credit of a message that was cancelled does not stand in the way of the next, whatever comes in between."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as channel:
            theirs = await shielded.other_end(channel)
            assert await send_torn(channel, 1_000_000) == channel._sending._terms.credit
            for _ in range(small):
                await channel.send(b"s" * 1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"l" * 2_000_000)
                await settled()
                for _ in range(small):
                    assert await theirs.receive() == b"s" * 1000
                with trio.fail_after(5):
                    assert await theirs.receive() == b"l" * 2_000_000
            await settled()
            assert core_of(connection_of(pair.beta, ALPHA)).channels._terms.budget._total == 0
        shielded.let_go.set()


async def test_a_large_message_is_granted_after_one_that_was_given_up_on_another_channel(
    open_pair: PairFactory,
) -> None:
    """The credit of a message that was cancelled does not hold up other channels, though its own is idle."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as idle, connection.open_channel("shielded") as channel:
            theirs = await shielded.other_end(channel)
            await send_torn(idle, 1_000_000)
            try:
                with trio.fail_after(0.5):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(channel.send, b"l" * 50_000)
                        assert await theirs.receive() == b"l" * 50_000
            finally:
                shielded.let_go.set()


@pytest.mark.parametrize("how", ["half-closed", "closed"])
async def test_a_channel_that_ended_keeps_no_place_in_the_budget(open_pair: PairFactory, how: str) -> None:
    """What was granted for a message that was given up is free again once its sender can send no more there."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as ended, connection.open_channel("shielded") as channel:
            theirs = await shielded.other_end(channel)
            await send_torn(ended, 1_000_000)
            await (ended.send_eof() if how == "half-closed" else ended.aclose())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"l" * 50_000)
                assert await theirs.receive() == b"l" * 50_000
            assert core_of(connection_of(pair.beta, ALPHA)).channels._terms.budget._total == 0
        shielded.let_go.set()


@pytest.mark.parametrize("then", ["half-closes", "sends another", "closes"])
async def test_credit_that_comes_too_late_for_its_message(open_pair: PairFactory, then: str) -> None:
    """A message given up before its rest was granted leaves no trace, whatever its sender did before the grant came."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, **NO_BUDGET}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as early, connection.open_channel("shielded") as channel:
            theirs, others = await shielded.other_end(early), await shielded.other_end(channel)
            late: list[int] = []
            with credit_goes_to(early, late.append):
                await early.send(b"e" * 5000)
                assert await theirs.receive() == b"e" * 5000
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(early.send, b"t" * 1_000_000)
                    while len(late) < 2:
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            usual, for_the_rest = late
            early._sending.on_credit(usual)
            async with trio.open_nursery() as nursery:
                if then == "sends another":
                    nursery.start_soon(early.send, b"s" * 100_000)
                    while not early._sending._under_way:
                        await trio.lowlevel.checkpoint()
                else:
                    await (early.send_eof() if then == "half-closes" else early.aclose())
                early._sending.on_credit(for_the_rest)
                if then == "sends another":
                    assert await theirs.receive() == b"s" * 100_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"l" * 300_000)
                with trio.fail_after(5):
                    assert await others.receive() == b"l" * 300_000
            await settled()
            assert connection.live
            assert core_of(connection_of(pair.beta, ALPHA)).channels._terms.budget._total == 0
        shielded.let_go.set()


async def test_a_ten_byte_call_overtakes_a_large_message(open_pair: PairFactory) -> None:
    """Fragments interleave: a small call is answered before a 16 MiB message that was begun earlier is complete."""
    largest = 16 * 1024 * 1024
    arrived: list[str] = []

    async def swallow(channel: ServiceChannel) -> None:
        assert len(await channel.receive()) == largest
        arrived.append("large")

    async def small(channel: ServiceChannel) -> None:
        arrived.append("small")
        await echo(channel)

    async with open_pair(beta={"services": {"swallow": swallow, "small": small}}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("swallow") as channel, trio.open_nursery() as nursery:
            begun = connection.statistics().bytes_sent
            nursery.start_soon(channel.send, bytes(largest))
            while connection.statistics().bytes_sent == begun:
                await trio.lowlevel.checkpoint()
            for _ in range(5):
                assert await connection.call("small", b"0123456789") == b"0123456789"
            assert connection.statistics().bytes_sent < largest
            assert arrived == ["small"] * 5
    assert arrived == ["small"] * 5 + ["large"]


@pytest.mark.parametrize("verb", ["send", "call"])
async def test_a_large_message_within_a_large_window_is_still_cut_up(open_pair: PairFactory, verb: str) -> None:
    """However much credit there is, a sender queues no more than it may hold others up with."""
    mib = 1024 * 1024
    largest = 0
    async with open_pair(
        alpha={"channel_window": 8 * mib}, beta={"services": {"echo": echo}, "channel_window": 8 * mib}
    ) as pair:
        connection = await pair.alpha.connect(BETA)

        async def watch() -> NoReturn:
            nonlocal largest
            while True:
                largest = max(largest, len(core_of(connection).outbox._pending))
                await trio.lowlevel.checkpoint()

        async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            if verb == "send":
                with pytest.raises(trio.WouldBlock):
                    channel.send_nowait(bytes(4 * mib))
                await channel.send(bytes(4 * mib))
                assert len(await channel.receive()) == 4 * mib
            else:
                assert len(await connection.call("echo", bytes(4 * mib))) == 4 * mib
            nursery.cancel_scope.cancel()
        assert connection.live
        assert 0 < largest <= outbox.HIGH_WATER + 2 * wire.MAX_FRAGMENT


# A peer that breaks the rules ----------------------------------------------------------------------------------------


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return wire.header(kind, channel, len(payload)) + payload


def opened(channel: int = 1, service: str = "held") -> bytes:
    """A whole OPEN."""
    return wire.control(wire.OPEN, channel, wire.Open(service=service))


def first(channel: int, total: int, fragment: bytes) -> bytes:
    """A whole FIRST."""
    return wire.first(channel, total, len(fragment)) + fragment


def u32(value: int) -> bytes:
    """Four bytes, big-endian."""
    return value.to_bytes(4, "big")


LIMITS: Final = {
    "max_message_size": 10_000,
    "channel_window": 8192,
    "receive_budget": 20_000,
    "max_channels": 8,
    "max_pending_opens": 4,
}


@dataclass(kw_only=True)
class Scene:
    """An honest node with the limits above, its honest caller, and a peer whose every frame a test writes."""

    node: Node
    honest: Connection
    peer: ScriptedPeer
    connection: Connection
    held: Held

    async def say(self, *frames: bytes) -> None:
        """Send the node frames."""
        await self.peer.stream.send_all(b"".join(frames))

    async def answered(self) -> list[tuple[int, int, bytes]]:
        """Wait until the node has dealt with everything so far; gives what it said before its PONG."""
        ping = frame(wire.PING, 0, b"answered")
        await self.say(ping)
        said = []
        while (heard := await self.peer.frame()) != (wire.PONG, 0, b"answered"):
            said.append(heard)
        return said

    async def is_turned_out(self, match: str) -> None:
        """The peer is told why and cut off, its services are cancelled; the node and everybody else live on."""
        kind, channel, payload = await self.peer.frame(wire.GOODBYE)
        goodbye = wire.decode(wire.End, payload)
        assert (kind, channel, goodbye.code) == (wire.GOODBYE, 0, EndReason.PROTOCOL_ERROR)
        assert match in goodbye.message
        await self.peer.hear_end()
        await self.peer.stream.aclose()
        end = await self.connection.wait_closed()
        assert end.reason is EndReason.PROTOCOL_ERROR
        assert isinstance(end.error, RemoteProtocolError)
        assert str(end.error) == goodbye.message
        await settled()
        # All but those whose channel was closed cleanly before.
        assert all(channel._end.closed_by_peer or channel in self.held.cancelled for channel in self.held.began)
        assert NodeName.parse(MALLORY) not in self.node.connections
        assert await self.honest.call("echo", b"alive") == b"alive"


@pytest.fixture
def scene(
    open_pair: PairFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> Callable[[], Any]:
    """A factory of scenes."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Scene]:
        held = Held()
        async with open_pair(beta={"services": {"held": held, "echo": echo}, **LIMITS}) as pair:
            honest = await pair.alpha.connect(BETA)
            peer = await scripted_dial(pair.beta, manager(MALLORY))
            async with peer.stream:
                await peer.introduce(MALLORY)
                await peer.stream.send_all(frame(wire.PING, 0, bytes(8)))
                await peer.frame(wire.PONG)
                connection = pair.beta.connections[NodeName.parse(MALLORY)]
                yield Scene(node=pair.beta, honest=honest, peer=peer, connection=connection, held=held)

    return make


#: What no peer may say to the acceptor, after the hello, and a word of the goodbye that it gets.
VIOLATIONS: Final[dict[str, tuple[list[bytes], str]]] = {
    # Credit
    "more than the window in one message": ([opened(), frame(wire.MESSAGE, 1, bytes(8192 - 63))], "credit"),
    "empty messages are not free": ([opened(), *[frame(wire.MESSAGE, 1)] * (8192 // 64 + 1)], "credit"),
    "a first fragment beyond the credit": ([opened(), first(1, 9000, bytes(8192 - 63))], "credit"),
    "a fragment beyond the credit": (
        # The budget is used up by the first three, so that the fourth is granted nothing for its rest.
        [each for c in (1, 3, 5, 7) for each in (opened(c), frame(wire.MESSAGE, c, bytes(8000)), first(c, 10_000, b""))]
        + [frame(wire.MORE, 7, bytes(65))],
        "65 bytes on a channel with 64 bytes of credit",
    ),
    "more credit than there can be": (
        [opened(), frame(wire.CREDIT, 1, u32(2**32 - 1)), frame(wire.CREDIT, 1, u32(2**32 - 1))],
        "credit",
    ),
    "giving back more than it has": ([opened(), frame(wire.RETURN, 1, u32(8193))], "gave back 8193"),
    "giving credit back and using it": (
        [opened(), frame(wire.RETURN, 1, u32(2000)), frame(wire.MESSAGE, 1, bytes(8192 - 2000 - 63))],
        "credit",
    ),
    "giving back without an amount": ([opened(), frame(wire.RETURN, 1)], "too short"),
    # Sizes
    "a message that is announced too large": ([opened(), first(1, 10_001, b"x")], "10001 bytes; we accept 10000"),
    "a frame that is announced too long": ([wire.header(wire.MESSAGE, 1, wire.MAX_PAYLOAD + 1)], "65541 bytes"),
    "a frame that is announced as long as can be": ([b"\x02\xff\xff\xff" + u32(1)], "16777215 bytes"),
    # Channels
    "an even channel from the dialer": ([opened(2)], "channel 2"),
    "channel 0": ([opened(0)], "channel 0"),
    "a channel that is open": ([opened(1), opened(1)], "channel 1"),
    "a channel that is over": ([opened(1), frame(wire.CLOSE, 1), opened(1)], "channel 1"),
    "a lower channel than the last": ([opened(3), opened(1)], "channel 1"),
    "a channel that was refused, again": ([opened(1, "nothing"), opened(1)], "channel 1"),
    **{
        f"kind {kind} on a channel of ours that never was": ([frame(kind, 2, u32(1))], "never opened")
        for kind in [*range(wire.MESSAGE, wire.CREDIT + 1), wire.RETURN]
    },
    **{
        f"kind {kind} on a channel of theirs that never was": ([opened(1), frame(kind, 3, u32(1))], "never opened")
        for kind in [*range(wire.MESSAGE, wire.CREDIT + 1), wire.RETURN]
    },
    **{
        f"kind {kind} on channel 0": ([frame(kind, 0, u32(1))], "channel 0")
        for kind in [*range(wire.MESSAGE, wire.CREDIT + 1), wire.RETURN]
    },
    **{
        f"kind {kind} on a channel": ([opened(1), frame(kind, 1, bytes(8))], "channel 1")
        for kind in range(wire.GOODBYE, wire.DRAIN + 1)
    },
    # Fragments
    "a fragment of nothing": ([opened(), frame(wire.MORE, 1, b"x")], "out of order"),
    "a message within a message": ([opened(), first(1, 9, b"x"), frame(wire.MESSAGE, 1, b"y")], "out of order"),
    "a first within a message": ([opened(), first(1, 9, b"x"), first(1, 9, b"y")], "out of order"),
    "a discard of nothing": ([opened(), frame(wire.DISCARD, 1)], "out of order"),
    "a half-close within a message": ([opened(), first(1, 9, b"x"), frame(wire.EOF, 1)], "middle of a message"),
    "a fragment more than announced": ([opened(), first(1, 9, b"x"), frame(wire.MORE, 1, bytes(9))], "more than"),
    "an empty fragment": ([opened(), first(1, 9, b"x"), frame(wire.MORE, 1)], "empty fragment"),
    "a first that is everything": ([opened(), first(1, 3, b"xyz")], "whole message"),
    "a first that is more than everything": ([opened(), first(1, 3, b"wxyz")], "whole message"),
    "a first without its total": ([opened(), frame(wire.FIRST, 1, b"xyz")], "too short"),
    # Ends
    "a message after the half-close": ([opened(), frame(wire.EOF, 1), frame(wire.MESSAGE, 1, b"x")], "half-closed"),
    "a first after the half-close": ([opened(), frame(wire.EOF, 1), first(1, 9, b"x")], "half-closed"),
    "two half-closes": ([opened(), frame(wire.EOF, 1), frame(wire.EOF, 1)], "twice"),
    "a reset without words": ([opened(), frame(wire.RESET, 1)], "malformed End"),
    "a reset of junk": ([opened(), frame(wire.RESET, 1, b"\xc1" * 9)], "malformed End"),
    "a goodbye of junk": ([frame(wire.GOODBYE, 0, b"\x92\x01\x02")], "malformed Goodbye"),
    # Control
    "an unknown kind": ([frame(wire.RENEW + 1, 0)], "kind 0x11"),
    "a hand-over without a link": ([frame(wire.SWITCH, 0)], "no link that we agreed to"),
    "a frame after the last": ([frame(wire.SWITCH, 0), frame(wire.PING, 0, bytes(8))], "after SWITCH"),
    "asking oneself for a hand-over": ([frame(wire.RENEW, 0)], "dialled itself"),
    "kind nought": ([frame(0, 0)], "kind 0x00"),
    "the last kind that is refused": ([frame(0x7F, 1, b"x")], "kind 0x7f"),
    "a short ping": ([frame(wire.PING, 0, bytes(7))], "PING of 7"),
    "a long ping": ([frame(wire.PING, 0, bytes(9))], "PING of 9"),
    "a credit without its amount": ([opened(), frame(wire.CREDIT, 1, b"\0\0\0")], "too short"),
    "an open without words": ([frame(wire.OPEN, 1)], "malformed Open"),
    "an open of no service": ([frame(wire.OPEN, 1, b"\x80")], "malformed Open"),
    "an open of an empty name": ([opened(1, "")], "malformed Open"),
    "an open of a long name": ([opened(1, "s" * 256)], "malformed Open"),
    "an open with a deadline before now": (
        [frame(wire.OPEN, 1, msgspec.msgpack.encode({"service": "held", "timeout": -1.0}))],
        "malformed Open",
    ),
    "an open with a deadline that is no number": (
        [frame(wire.OPEN, 1, msgspec.msgpack.encode({"service": "held", "timeout": float("nan")}))],
        "malformed Open",
    ),
    "an open of a bomb": (
        [frame(wire.OPEN, 1, b"\x82\xa7service\xa4held\xa1x" + b"\x91" * 5000)],
        "malformed Open",
    ),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_a_violation_ends_the_connection_and_nothing_else(scene: Callable[[], Any], violation: str) -> None:
    """The connection ends with `PROTOCOL_ERROR`, its goodbye says why, and the node and other peers live on."""
    frames, match = VIOLATIONS[violation]
    async with scene() as play:
        await play.say(*frames)
        await play.is_turned_out(match)


async def test_a_message_larger_than_we_accept_ends_the_connection_even_within_the_window(
    open_pair: PairFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """`max_message_size` holds for messages in one frame as well."""
    async with open_pair(beta={"services": {"echo": echo}, "max_message_size": 100}) as pair:
        peer = await scripted_dial(pair.beta, manager(MALLORY))
        async with peer.stream:
            await peer.introduce(MALLORY)
            await peer.stream.send_all(opened(1, "echo") + frame(wire.MESSAGE, 1, bytes(101)))
            _, _, payload = await peer.frame(wire.GOODBYE)
            assert "101 bytes; we accept 100" in wire.decode(wire.End, payload).message


async def test_an_acceptor_may_not_open_odd_channels(
    node: Any, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """The rules hold for whichever side dialled."""
    async with node("alpha@localhost", services={"echo": echo}) as alpha, trio.open_nursery() as nursery:

        async def misbehave() -> None:
            peer = await scripted_listener.accept(manager(MALLORY))
            async with peer.stream:
                await peer.hear(wire.Hello)
                await peer.say(peer.answer(MALLORY))
                await peer.hear(wire.Confirmation)
                await peer.stream.send_all(opened(1, "echo"))
                _, _, payload = await peer.frame(wire.GOODBYE)
                assert "channel 1, which is not its to open" in wire.decode(wire.End, payload).message

        nursery.start_soon(misbehave)
        connection = await alpha.connect(MALLORY, scripted_listener.route())
        assert (await connection.wait_closed()).reason is EndReason.PROTOCOL_ERROR


async def test_what_may_be_added_to_the_protocol_is_ignored(scene: Callable[[], Any]) -> None:
    """Kinds from 0x80 up, on any channel, and keys that nobody knows, change nothing."""
    async with scene() as play:
        for kind in (0x80, 0xC3, 0xFF):
            for channel in (0, 1, 2, 2**32 - 1):
                await play.say(frame(kind, channel, bytes(channel % 100)))
        request = {"service": "echo", "timeout": None, "priority": [1, {"deep": [None]}]}
        await play.say(frame(wire.OPEN, 1, msgspec.msgpack.encode(request)))
        await play.say(frame(wire.MESSAGE, 1, b"x"), frame(0x91, 1, b"within"), frame(wire.MESSAGE, 1, b"y"))
        for expected in (b"x", b"y"):
            assert await play.peer.frame(wire.MESSAGE) == (wire.MESSAGE, 1, expected)


@pytest.mark.parametrize("end", [wire.CLOSE, wire.RESET])
async def test_frames_that_crossed_with_the_end_of_a_channel_are_ignored(scene: Callable[[], Any], end: int) -> None:
    """Whatever comes for a channel that is over came too late, and is nobody's fault."""
    async with scene() as play:
        play.held.let_go.set()
        await play.say(opened(1), opened(3), frame(wire.PING, 0, bytes(8)))
        assert await play.peer.frame(wire.CLOSE) in [(wire.CLOSE, 1, b""), (wire.CLOSE, 3, b"")]
        await play.peer.frame(wire.CLOSE)
        payload = msgspec.msgpack.encode({"code": "failed"}) if end == wire.RESET else b""
        late = [frame(wire.MESSAGE, 1, b"x"), first(1, 9, b"x"), frame(wire.MORE, 1, bytes(8))]
        late += [frame(wire.CREDIT, 1, u32(9)), frame(wire.EOF, 1), frame(wire.EOF, 1), frame(end, 1, payload)]
        await play.say(*late, *late)
        assert [kind for kind, _, _ in await play.answered() if kind != wire.PONG] == []
        assert play.connection.live


async def test_limits_hold_against_a_peer_that_ignores_them(scene: Callable[[], Any]) -> None:
    """`max_channels` services run and `max_pending_opens` wait; more is refused, naming both; those are all served."""
    async with scene() as play:
        await play.say(*(opened(channel) for channel in range(1, 29, 2)))
        refused = [(kind, channel, wire.decode(wire.End, payload)) for kind, channel, payload in await play.answered()]
        assert [(kind, channel) for kind, channel, _ in refused] == [(wire.RESET, 25), (wire.RESET, 27)]
        for _, _, refusal in refused:
            assert refusal.code == RemoteCode.LIMIT
            assert re.search(r"\b8\b.*max_channels.*\b4\b.*max_pending_opens", refusal.message)
        await settled()
        assert sorted(channel._end.number for channel in play.held.began) == list(range(1, 17, 2))
        play.held.let_go.set()
        await settled()
        ends = await play.answered()
        assert sorted(ends) == [(wire.CLOSE, channel, b"") for channel in range(1, 25, 2)]
        await play.say(opened(31, "echo"), frame(wire.MESSAGE, 31, b"room again"))
        assert await play.peer.frame() == (wire.MESSAGE, 31, b"room again")


async def test_what_a_greedy_peer_can_make_us_hold_is_bounded(scene: Callable[[], Any]) -> None:
    """Channels times window, and the budget, and one message: not a byte more, whatever the peer does."""
    window, channels = LIMITS["channel_window"], list(range(1, 2 * (8 + 4), 2))  # those that run, those that wait
    credit = dict.fromkeys(channels, window)
    rest = dict.fromkeys(channels, 0)
    granted = 0
    async with scene() as play:
        for channel in channels:
            await play.say(opened(channel))
            await play.answered()
        for turn in range(60):
            frames = []
            for channel in channels:
                # Every way to get more credit: announce the largest, give it up, fill the channel, announce again.
                if rest[channel] and (turn + channel) % 3 == 0:
                    frames.append(frame(wire.DISCARD, channel))
                    rest[channel] = 0
                elif rest[channel] and credit[channel]:
                    size = min(credit[channel], rest[channel], 700)
                    frames.append(frame(wire.MORE, channel, bytes(size)))
                    credit[channel] -= size
                    rest[channel] -= size
                elif not rest[channel] and credit[channel] >= 1064 and turn % 2:
                    frames.append(frame(wire.MESSAGE, channel, bytes(1000)))
                    credit[channel] -= 1064
                elif not rest[channel] and credit[channel] >= 64:
                    frames.append(first(channel, 10_000, b""))
                    credit[channel] -= 64
                    rest[channel] = 10_000
            await play.say(*frames)
            for kind, channel, payload in await play.answered():
                assert kind == wire.CREDIT
                credit[channel] += wire.unpack_u32(payload)
                granted += wire.unpack_u32(payload)
            beyond = LIMITS["receive_budget"] + LIMITS["max_message_size"] + wire.MESSAGE_OVERHEAD
            assert held_bytes(play.connection) + sum(credit.values()) <= len(channels) * window + beyond
        assert granted > LIMITS["max_message_size"]  # it did get something beyond its windows
        assert play.connection.live


@pytest.mark.parametrize("flood", ["pings", "opens"])
async def test_a_peer_that_floods_us_and_does_not_read_is_turned_out(scene: Callable[[], Any], flood: str) -> None:
    """What it makes us queue is bounded: above that the connection ends with `PROTOCOL_ERROR`, the node lives on."""
    async with scene() as play, trio.open_nursery() as nursery:
        play.peer.stream.transport_stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)

        async def pour() -> None:
            channel = 1
            with suppress(trio.BrokenResourceError):
                while True:
                    if flood == "pings":
                        await play.say(frame(wire.PING, 0, bytes(8)) * 4000)
                    else:
                        await play.say(*(opened(channel + 2 * number, "nothing") for number in range(2000)))
                        channel += 4000

        nursery.start_soon(pour)
        largest = 0
        with trio.CancelScope() as watching:
            while play.connection.live:
                largest = max(largest, len(core_of(play.connection).outbox._pending))
                await trio.lowlevel.checkpoint()
        assert not watching.cancelled_caught
        end = await play.connection.wait_closed()
        assert end.reason is EndReason.PROTOCOL_ERROR
        assert "does not read" in str(end.error)
        assert largest <= outbox.CEILING + 512 * 1024
        assert await play.honest.call("echo", b"alive") == b"alive"
        nursery.cancel_scope.cancel()


# Services ------------------------------------------------------------------------------------------------------------


async def fail(channel: ServiceChannel) -> NoReturn:
    """Fail with something that nobody over there should read."""
    await channel.receive()
    msg = "the password is swordfish"
    raise ValueError(msg)


async def test_the_failure_of_a_service_shows_no_details(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets `RemoteError`, code failed, and no more; type, text and traceback are in the service's log."""
    async with open_pair(beta={"services": {"fail": fail, "echo": echo}}) as pair:
        with pytest.raises(RemoteError) as info:
            await pair.alpha.call(BETA, "fail", b"")
        assert info.value.code is RemoteCode.FAILED
        assert info.value.message == ""
        assert "swordfish" not in str(info.value)
        assert "ValueError" not in str(info.value)
        [record] = [record for record in caplog.records if record.name == "trionode.service"]
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "the password is swordfish"
        assert await pair.alpha.call(BETA, "echo", b"lives on") == b"lives on"


class UnspeakableError(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("the password is swordfish"), "ValueError: the password is swordfish"),
        (ExceptionGroup("two", [ValueError("a"), TypeError("b")]), "two: ValueError: a; TypeError: b"),
        (ValueError("\x1b[31m red\n"), r"ValueError: \x1b[31m red\n"),
        (FileNotFoundError("caf\udce9"), r"FileNotFoundError: caf\udce9"),
        (UnspeakableError(), "UnspeakableError"),
        (ValueError("x" * 5000), None),
        (ValueError("\udce9" * 5000), None),
    ],
    ids=["plain", "group", "control characters", "undecodable", "unspeakable", "long", "long and undecodable"],
)
async def test_a_node_may_let_callers_read_what_went_wrong(
    manager: ManagerFactory, error: Exception, shown: str | None
) -> None:
    """With `expose_service_errors` they get type and text, made safe to print and bounded, whatever the text is."""

    async def raise_it(channel: ServiceChannel) -> NoReturn:
        raise error

    async with with_options(manager, {"raise": raise_it, "echo": echo}, expose_service_errors=True) as alpha:
        with pytest.raises(RemoteError) as info:
            await alpha.call(BETA, "raise", b"")
        assert info.value.code is RemoteCode.FAILED
        if shown is not None:
            assert info.value.message == shown
        assert len(info.value.message) < 500
        assert await alpha.call(BETA, "echo", b"lives on") == b"lives on"


@asynccontextmanager
async def with_options(manager: ManagerFactory, services: dict[str, Service], **options: Any) -> AsyncIterator[Node]:
    """Open beta with options of a node, and give alpha, which has a route to it."""
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    beta_options = NodeOptions(cert_manager=manager(str(BETA)), network=network, services=services, **options)
    async with open_node(BETA, beta_options) as beta:
        host, port = beta.acceptors[0].address
        network = NetworkOptions(
            acceptors=[AcceptorOptions(host="127.0.0.1", port=0)], routes={str(BETA): Route(host=host, port=port)}
        )
        async with open_node(ALPHA, NodeOptions(cert_manager=manager(str(ALPHA)), network=network)) as alpha:
            yield alpha


async def test_a_group_of_errors_is_one_failure(open_pair: PairFactory, caplog: pytest.LogCaptureFixture) -> None:
    """An `ExceptionGroup` from a nursery of the service fails the call and is logged; the node lives on."""

    async def crash(channel: ServiceChannel) -> None:
        async with trio.open_nursery() as nursery:
            for error in (ValueError("one"), KeyError("two")):
                nursery.start_soon(_raise, error)
            await trio.sleep_forever()

    async with open_pair(beta={"services": {"crash": crash, "echo": echo}}) as pair:
        with pytest.raises(RemoteError) as info:
            await pair.alpha.call(BETA, "crash", b"")
        assert info.value.code is RemoteCode.FAILED
        [record] = [record for record in caplog.records if record.name == "trionode.service"]
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ExceptionGroup)
        assert len(record.exc_info[1].exceptions) == 2
        assert await pair.alpha.call(BETA, "echo", b"lives on") == b"lives on"


async def _raise(error: BaseException) -> NoReturn:
    raise error


async def test_an_error_beside_a_cancellation_is_still_a_failure(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that is cancelled by its caller and fails in its clean-up is logged; the node lives on."""

    async def stumble(channel: ServiceChannel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                msg = "stumbled"
                raise ValueError(msg)

    async with open_pair(beta={"services": {"stumble": stumble, "echo": echo}}) as pair:
        with suppress(OopsError):
            async with pair.alpha.open_channel(BETA, "stumble"):
                await settled()
                raise OopsError
        assert await pair.alpha.call(BETA, "echo", b"lives on") == b"lives on"
        assert any("failed while serving" in record.message for record in caplog.records)


@pytest.mark.parametrize("how", ["cleanly", "by an exception"])
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a nursery"])
async def test_a_caller_that_leaves_is_no_error_of_the_service(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, grouped: bool, how: str
) -> None:
    """A service that streams until its channel breaks has done nothing wrong: nothing is logged, nothing crashes."""

    async def stream(channel: ServiceChannel) -> None:
        if grouped:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(again_and_again, partial(channel.send, bytes(100)))
        else:
            await again_and_again(partial(channel.send, bytes(100)))

    beta = {"services": {"stream": stream, "echo": echo}, "propagate_service_errors": True}
    async with open_pair(beta=beta) as pair:
        for busy in (True, False):
            with suppress(OopsError):
                async with pair.alpha.open_channel(BETA, "stream") as channel:
                    for _ in range(100):
                        await channel.receive()
                    if not busy:
                        await settled()
                    if how != "cleanly":
                        raise OopsError
        await settled()
        assert pair.beta.statistics().services == 0
        assert await pair.alpha.call(BETA, "echo", b"lives on") == b"lives on"
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "beside an error"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_must_propagate_out_of_a_service_does(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, error: type[BaseException], grouped: bool
) -> None:
    """`KeyboardInterrupt` and `SystemExit` end the node; an error beside them is logged and fails the call."""

    async def interrupt(channel: ServiceChannel) -> NoReturn:
        if grouped:
            raise BaseExceptionGroup("", [error(), ValueError("beside")])
        raise error

    answers: list[RemoteError] = []

    async def ask(alpha: Node) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with pytest.raises(RemoteError) as info:
                await alpha.call(BETA, "interrupt", b"")
            answers.append(info.value)

    with pytest.RaisesGroup(error, flatten_subgroups=True):
        async with open_pair(beta={"services": {"interrupt": interrupt}}) as pair:
            await ask(pair.alpha)
            await trio.sleep_forever()
    assert all(answer.code is (RemoteCode.FAILED if grouped else RemoteCode.CANCELLED) for answer in answers)
    assert any("failed while serving" in record.message for record in caplog.records) is grouped


async def test_service_errors_propagate_where_the_node_wants_it(open_pair: PairFactory) -> None:
    """With `propagate_service_errors` the error of a service crashes its node, as a test wants it."""
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with open_pair(beta={"services": {"fail": fail}, "propagate_service_errors": True}) as pair:
            with suppress(RemoteError, trio.BrokenResourceError):
                await pair.alpha.call(BETA, "fail", b"")
            await trio.sleep_forever()


def _by_host(peer: Peer) -> bool:
    return peer.name.host == "localhost"


def _broken(peer: Peer) -> bool:
    raise RuntimeError(peer.name)


def _truthy(peer: Peer) -> Any:
    return "yes"


@pytest.mark.parametrize(
    ("allow", "allowed"),
    [
        (None, True),
        ("alpha@localhost", True),
        (ALPHA, True),
        ("ALPHA@localhost", False),
        ("gamma@localhost", False),
        ("*@localhost", True),
        ("al?ha@*", True),
        ("*", True),
        ("*@example.org", False),
        (["gamma@localhost", "a*@localhost"], True),
        ((name for name in ["gamma@localhost", ALPHA]), True),
        ({NodeName.parse("gamma@localhost")}, False),
        ([], False),
        (_by_host, True),
        (lambda peer: False, False),
        (_broken, False),
        (_truthy, False),
    ],
)
async def test_a_service_may_be_restricted(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, allow: Any, allowed: bool
) -> None:
    """`allow=` decides by name, glob, several of these or a function, before a task starts; in doubt it refuses."""
    ran: list[NodeName] = []

    async def serve(channel: ServiceChannel) -> None:
        ran.append(channel.peer.name)
        await answer(channel)

    async with open_pair() as pair:
        pair.beta.add_service("restricted", serve, allow=allow)
        pair.beta.add_service("free", answer)
        for _ in range(2):
            if allowed:
                assert await pair.alpha.call(BETA, "restricted", b"four") == b"4"
            else:
                with pytest.raises(RemoteError, match="alpha@localhost may not use") as info:
                    await pair.alpha.call(BETA, "restricted", b"four")
                assert info.value.code is RemoteCode.NOT_ALLOWED
        assert ran == [ALPHA] * 2 * allowed
        assert await pair.alpha.call(BETA, "free", b"four") == b"4"
        if allow is _broken:
            assert any(record.exc_info for record in caplog.records if record.name == "trionode.service")


@pytest.mark.parametrize("allow", ["no-at-sign", ["alpha@localhost", "x@y@z"], "*-no-at"])
async def test_a_pattern_that_is_none_is_refused_when_the_service_is_added(open_pair: PairFactory, allow: Any) -> None:
    """`ValueError`, at once and not when the first caller comes."""
    async with open_pair() as pair:
        with pytest.raises(ValueError, match=r"no-at|@"):
            pair.beta.add_service("restricted", answer, allow=allow)
        pair.beta.add_service("restricted", answer)


async def test_names_that_nobody_verified_open_no_doors(
    node: Any, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """A peer that is not verified matches no name and no glob, not even `*`; a function may let it in knowingly."""
    certs = manager("beta@localhost", client_auth=ClientAuth.REQUEST_CLIENT_CERT)
    async with node("beta@localhost", certs) as beta, node("alpha@localhost") as alpha:
        beta.add_service("by name", answer, allow=["alpha@localhost", "*@localhost", "*"])
        beta.add_service("by function", answer, allow=lambda peer: not peer.verified)
        host, port = beta.acceptors[0].address
        alpha.add_route("beta@localhost", Route(host=host, port=port))
        with pytest.raises(RemoteError) as info:
            await alpha.call(BETA, "by name", b"")
        assert info.value.code is RemoteCode.NOT_ALLOWED
        assert await alpha.call(BETA, "by function", b"") == b"0"


_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="unset")


async def test_services_run_in_a_fresh_copy_of_the_nodes_context(open_pair: PairFactory) -> None:
    """With `current_channel` set; what one sets no other sees, and the caller's own variables stay with the caller."""
    seen: list[tuple[str, NodeName, str]] = []

    async def look(channel: ServiceChannel) -> None:
        assert current_channel.get() is channel
        seen.append((_request_id.get(), current_channel.get().peer.name, current_channel.get().service))
        _request_id.set("set by a service")
        await answer(channel)

    _request_id.set("set before the node")
    async with open_pair(beta={"services": {"look": look, "look again": look}}) as pair:
        _request_id.set("set later")
        await pair.alpha.call(BETA, "look", b"")
        await pair.alpha.call(BETA, "look again", b"")
    assert seen == [("set before the node", ALPHA, "look"), ("set before the node", ALPHA, "look again")]
    with pytest.raises(LookupError):
        current_channel.get()


# Calls ---------------------------------------------------------------------------------------------------------------


async def test_a_call_to_a_service_that_does_not_exist(open_pair: PairFactory) -> None:
    """`RemoteError`, code unknown_service, naming it and the remedy; the connection stays."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        with pytest.raises(RemoteError, match=r"nothing.*|add_service") as info:
            await pair.alpha.call(BETA, "nothing", b"")
        assert info.value.code is RemoteCode.UNKNOWN_SERVICE
        assert "'nothing'" in info.value.message
        assert "add_service" in str(info.value)
        async with pair.alpha.open_channel(BETA, "nothing") as channel:
            with pytest.raises(RemoteError, match="'nothing'"):
                await channel.receive()
            with pytest.raises(trio.BrokenResourceError) as broken:
                await channel.send(b"x")
            assert isinstance(broken.value.__cause__, RemoteError)
        assert await pair.alpha.call(BETA, "echo", b"x") == b"x"


async def test_a_call_that_gets_no_reply(open_pair: PairFactory) -> None:
    """`RemoteError`, code no_reply, when the service ends without a message."""

    async def mute(channel: ServiceChannel) -> None:
        await channel.receive()

    async with open_pair(beta={"services": {"mute": mute}}) as pair:
        with pytest.raises(RemoteError, match="mute") as info:
            await pair.alpha.call(BETA, "mute", b"")
        assert info.value.code is RemoteCode.NO_REPLY


async def refuse_as_denied(_: ServiceChannel) -> None:
    """Refuse by raising one of our codes."""
    raise RemoteError("not today", code=RemoteCode.NOT_ALLOWED)


async def refuse_in_own_words(_: ServiceChannel) -> None:
    """Refuse by raising a code of the application's."""
    raise RemoteError("no such order", code="not_found")


async def reset_in_own_words(channel: ServiceChannel) -> None:
    """Give the channel up with a code of the application's."""
    await channel.receive()
    channel.reset("not_found", "no such order")


@pytest.mark.parametrize(
    ("service", "code", "raw_code"),
    [
        (refuse_as_denied, RemoteCode.NOT_ALLOWED, "not_allowed"),
        (refuse_in_own_words, ApplicationCode("not_found"), "not_found"),
        (reset_in_own_words, ApplicationCode("not_found"), "not_found"),
    ],
)
async def test_a_service_refuses_on_purpose(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, service: Service, code: str, raw_code: str
) -> None:
    """Its code and words reach the caller, who hears of no exception and no log; nothing is logged as a failure."""
    async with open_pair(beta={"services": {"orders": service}}) as pair:
        with pytest.raises(RemoteError) as caught:
            await pair.alpha.call(BETA, "orders", b"17")
        async with pair.alpha.open_channel(BETA, "orders") as channel:
            with suppress(trio.BrokenResourceError):
                await channel.send(b"17")
            with pytest.raises(RemoteError) as again:
                await channel.receive()
    for error in caught.value, again.value:
        assert (type(error.code), error.code, error.raw_code) == (type(code), code, raw_code)
        assert error.message in ("not today", "no such order")
        assert not {"traceback", "exception", "release"} & set(str(error).split())
    assert not [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("code", [7, None, "", "x" * 65])
async def test_a_code_that_cannot_be_sent(open_pair: PairFactory, code: Any) -> None:
    """It is refused here, and the channel is as it was."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair, pair.alpha.open_channel(BETA, "echo") as channel:
        with pytest.raises((TypeError, ValueError), match="a code"):
            channel.reset(code)
        await channel.send(b"fine")
        assert await channel.receive() == b"fine"


@pytest.mark.parametrize("size", [0, 10, 200_000, 1_000_000])
async def test_a_second_reply_is_an_error_of_the_service(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """However long the replies are, and from whatever task; a channel takes any number."""
    errors: list[Exception] = []

    async def twice(channel: ServiceChannel) -> None:
        async def reply() -> None:
            try:
                await channel.send(bytes(size))
            except LocalProtocolError as exc:
                errors.append(exc)
                with pytest.raises(LocalProtocolError):
                    channel.send_nowait(b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reply)
            nursery.start_soon(reply)

    async with open_pair(beta={"services": {"twice": twice}}) as pair:
        assert await pair.alpha.call(BETA, "twice", b"") == bytes(size)
        await settled()
        assert len(errors) == 1
        assert str(errors[0]).startswith("service 'twice' was called, and has sent its reply: a call takes one. ")
        async with pair.alpha.open_channel(BETA, "twice") as channel:
            assert [await channel.receive(), await channel.receive()] == [bytes(size)] * 2
    assert len(errors) == 1


async def test_a_call_sends_one_message_and_takes_one(open_pair: PairFactory) -> None:
    """The service sees one request, then `EndOfChannel`; what it says beyond its first reply nobody hears."""
    requests: list[list[bytes]] = []

    async def chatter(channel: ServiceChannel) -> None:
        requests.append([message async for message in channel])
        await channel.send(b"first")
        with suppress(trio.BrokenResourceError):
            await channel.send(b"second")

    async with open_pair(beta={"services": {"chatter": chatter}}) as pair:
        assert await pair.alpha.call(BETA, "chatter", b"request") == b"first"
        assert await pair.alpha.call(BETA, "chatter", b"") == b"first"
        await settled()
        assert requests == [[b"request"], [b""]]
        assert pair.beta.statistics().services == 0


async def test_many_calls_at_once_each_get_their_own_reply(open_pair: PairFactory) -> None:
    """Calls over one connection, from both sides at once, do not mix up."""
    async with open_pair(alpha={"services": {"echo": echo}}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        await settled()

        async def ask(ours: Connection, number: int) -> None:
            message = b"%d" % number * (number * 7 % 1000)
            assert await ours.call("echo", message) == message

        async with trio.open_nursery() as nursery:
            for number in range(150):
                nursery.start_soon(ask, connection, number)
                nursery.start_soon(ask, connection_of(pair.beta, ALPHA), number)
        await settled()
        assert nothing_is_left(connection, connection_of(pair.beta, ALPHA))


@pytest.mark.parametrize("service", ["nothing", "refuses"])
async def test_a_large_call_learns_why_it_was_refused(open_pair: PairFactory, service: str) -> None:
    """A refusal that comes while the request is still being sent is the call's `RemoteError` all the same."""

    async def refuses(channel: ServiceChannel) -> NoReturn:
        raise ValueError

    async with open_pair(beta={"services": {"refuses": refuses}}) as pair:
        with pytest.raises(RemoteError) as info:
            await pair.alpha.call(BETA, service, bytes(4_000_000))
        assert info.value.code in (RemoteCode.UNKNOWN_SERVICE, RemoteCode.FAILED)


async def test_a_large_call_gets_the_reply_of_a_service_that_did_not_read_it_all(open_pair: PairFactory) -> None:
    """A service may answer and end without reading its request: the reply is there, so the call returns it."""

    async def hasty(channel: ServiceChannel) -> None:
        await channel.send(b"done")

    async with open_pair(beta={"services": {"hasty": hasty}}) as pair:
        assert await pair.alpha.call(BETA, "hasty", bytes(4_000_000)) == b"done"


@pytest.mark.parametrize("service", ["", "s" * 256, "\udc80", b"echo"])
async def test_a_service_name_that_is_none_is_refused_here(open_pair: PairFactory, service: Any) -> None:
    """A name that no service can have costs the caller an error, and not everybody the connection."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        with pytest.raises(LocalProtocolError, match="1 to 255 characters"):
            await connection.call(service, b"")
        assert await connection.call("echo", b"x") == b"x"


async def test_a_connection_whose_channel_numbers_are_used_up_is_replaced(open_pair: PairFactory) -> None:
    """After 2**31 channels the next verb dials anew."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        core_of(connection).channels._next = 2**32 - 3
        for _ in range(4):
            assert await pair.alpha.call(BETA, "echo", b"x") == b"x"


# Typed messages ------------------------------------------------------------------------------------------------------


class Question(msgspec.Struct):
    """What is asked."""

    text: str
    times: int = 1


class Reply(msgspec.Struct):
    """What is answered."""

    words: list[str]


async def repeat(question: Question) -> Reply:
    """Say it as often as asked."""
    return Reply([question.text] * question.times)


async def test_typed_calls(open_pair: PairFactory) -> None:
    """A function from one type to another is a service, and a call is typed at both ends."""
    async with open_pair(beta={"services": {"repeat": typed_service(repeat, request=Question)}}) as pair:
        reply = await call_typed(pair.alpha, BETA, "repeat", Question("ho", 3), reply=Reply)
        assert reply == Reply(["ho"] * 3)


@pytest.mark.parametrize(
    ("request_", "words"), [({"text": 7}, r"Expected `str`, got `int`.*\$\.text"), ([], "Expected `object`")]
)
async def test_a_typed_service_refuses_a_request_of_another_type(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture, request_: Any, words: str
) -> None:
    """The caller gets `RemoteError`, code bad_message, with what is wrong where; it is no error of the service."""
    async with open_pair(beta={"services": {"repeat": typed_service(repeat, request=Question)}}) as pair:
        with pytest.raises(RemoteError, match=words) as info:
            await call_typed(pair.alpha, BETA, "repeat", request_, reply=Reply)
        assert info.value.code is RemoteCode.BAD_MESSAGE
        with pytest.raises(RemoteError, match="not msgpack") as info:
            await pair.alpha.call(BETA, "repeat", b"\xc1")
        assert info.value.code is RemoteCode.BAD_MESSAGE
        records = [record for record in caplog.records if record.name == "trionode.service"]
        assert [record.levelno for record in records] == [logging.WARNING] * 2


async def test_a_typed_call_refuses_a_reply_of_another_type(open_pair: PairFactory) -> None:
    """The caller gets `RemoteError`, code bad_message, for what it cannot decode itself."""

    async def lie(question: Question) -> list[str]:
        return [question.text]

    async with open_pair(beta={"services": {"lie": typed_service(lie, request=Question)}}) as pair:
        with pytest.raises(RemoteError, match="Expected `object`, got `array`") as info:
            await call_typed(pair.alpha, BETA, "lie", Question("ho"), reply=Reply)
        assert info.value.code is RemoteCode.BAD_MESSAGE


async def test_typed_channels(open_pair: PairFactory) -> None:
    """Both directions have a type of their own; iterating, half-closing and closing are those of the channel."""

    async def converse(raw: ServiceChannel) -> None:
        async with TypedChannel[Reply, Question](raw, receives=Question) as channel:
            assert channel.peer is raw.peer
            async for question in channel:
                await channel.send(await repeat(question))

    async with open_pair(beta={"services": {"converse": converse}}) as pair:
        async with pair.alpha.open_channel(BETA, "converse") as raw:
            channel = TypedChannel[Question, Reply](raw, receives=Reply)
            assert channel.channel is raw
            for times in range(3):
                await channel.send(Question("x", times))
            await channel.send_eof()
            assert [len(reply.words) async for reply in channel] == [0, 1, 2]
            with pytest.raises(trio.ClosedResourceError):
                await channel.send(Question("late"))
        with pytest.raises(TypeError):
            await TypedChannel[object, Reply](raw, receives=Reply).send(object())


@pytest.mark.parametrize("junk", ["to the service", "to the caller"])
async def test_what_a_typed_channel_cannot_decode_resets_it(open_pair: PairFactory, junk: str) -> None:
    """Whoever receives it gets `RemoteError`, code bad_message; the other end's channel is reset, with the words."""
    seen: list[BaseException] = []

    async def converse(raw: ServiceChannel) -> None:
        async with TypedChannel[Reply, Question](raw, receives=Question) as channel:
            try:
                await channel.receive()
                await raw.send(b"\x01")
                await channel.receive()
            except BaseException as exc:
                seen.append(exc)
                raise

    async with open_pair(beta={"services": {"converse": converse}}) as pair:
        async with pair.alpha.open_channel(BETA, "converse") as raw:
            channel = TypedChannel[Question, Reply](raw, receives=Reply)
            await raw.send(b"\x93\x01" if junk == "to the service" else msgspec.msgpack.encode(Question("x")))
            with pytest.raises(RemoteError) as info:
                await channel.receive()
            assert info.value.code is RemoteCode.BAD_MESSAGE
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await channel.send(Question("late"))
        await settled()
        [error] = seen
        if junk == "to the service":
            assert isinstance(error, RemoteError)
            assert error.code is RemoteCode.BAD_MESSAGE
        else:
            assert isinstance(error, trio.Cancelled)


async def test_leaving_a_typed_channel_by_an_exception_resets_it(open_pair: PairFactory) -> None:
    """As with the channel underneath: the service over there is cancelled."""
    held = Held()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)
        with suppress(OopsError):
            async with TypedChannel[int, int](connection.open_channel("held"), receives=int) as channel:
                theirs = await held.other_end(channel.channel)
                raise OopsError
        await held.end_of(theirs)
        assert held.cancelled == [theirs]


async def test_a_connection_that_has_ended_is_freed_at_once(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for the cyclic collector: a connection holds tens of KiB of OpenSSL's."""
    caplog.set_level(logging.WARNING, "trionode")  # what pytest keeps of a line keeps the connection that it names
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair:
            gc.collect()
            gc.disable()
            try:
                ours = await pair.alpha.connect("beta@localhost")
                await ours.call("echo", b"hello")
                theirs = pair.beta.connections[pair.alpha.name]
                await ours.aclose()
                await theirs.wait_closed()
                freed = [trio.Event() for _ in range(4)]
                for each, event in zip((ours, core_of(ours), theirs, core_of(theirs)), freed, strict=True):
                    weakref.finalize(each, event.set)
                del each, ours, theirs
                for event in freed:
                    await event.wait()
            finally:
                gc.enable()
