"""Channels, calls, services and typed messages: one test for each sentence that promises something.

Nodes are real and on loopback. A peer that breaks the rules is written by hand, frame by frame, behind an honest
TLS handshake and hello. Order is proved by messages and `wait_all_tasks_blocked`, never by sleeping.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

import pytest
import trio
import trio.testing

from trionode import (
    Connection,
    NodeName,
    ServiceChannel,
)
from trionode.testing import check_two_way_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import PairFactory

    from trionode import Node

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
MALLORY: Final = "mallory@localhost"

#: Every test is bounded by this. Seconds; none comes near it unless something hangs.
PATIENCE: Final = 20
#: Quiet for this long means that frames on loopback have arrived and were dealt with. Seconds.
CUSHION: Final = 0.02

_numbers = count()


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    """Nothing in here may hang."""
    with trio.fail_after(PATIENCE):
        yield


async def settled() -> None:
    """Everybody has got as far as they can."""
    await trio.testing.wait_all_tasks_blocked(CUSHION)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def answer(channel: ServiceChannel) -> None:
    """Answer one request with its length."""
    await channel.send(b"%d" % len(await channel.receive()))


class Held:
    """A service whose tasks stay until they are let go or cancelled, and hand their channels to the test."""

    def __init__(self) -> None:
        self._channels, self._arrived = trio.open_memory_channel[ServiceChannel](100)
        self.let_go = trio.Event()
        self.cancelled: list[ServiceChannel] = []
        self.ended: list[ServiceChannel] = []
        self._over = trio.lowlevel.ParkingLot()

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        self._channels.send_nowait(channel)
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.cancelled.append(channel)
            raise
        finally:
            self.ended.append(channel)
            self._over.unpark_all()

    async def next(self) -> ServiceChannel:
        """The service's end of the channel that was opened next."""
        return await self._arrived.receive()

    async def end_of(self, channel: ServiceChannel) -> None:
        """Wait until the task that serves a channel has ended."""
        while channel not in self.ended:
            await self._over.park()


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
    [connection] = [each for each in node._core.running if each.peer.name == NodeName.parse(name)]
    return connection


def held_bytes(connection: Connection) -> int:
    """What a connection has received for channels that are open and that no application has taken yet, as credit."""
    return sum(channel._window.held for channel in connection._channels.values())


def nothing_is_left(*connections: Connection) -> bool:
    """Whether connections that live on hold no channels, tasks or reservations."""
    return not any(
        connection._channels or connection._serving or connection._pending_opens or connection._budget._total
        for connection in connections
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
                    yield ours, await service.next()
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
            await trio.lowlevel.checkpoint()


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

    async def __aexit__(self, *error: object) -> Any:  # type: ignore[override]  # that is what is wrong with it
        """Close, or reset."""
        await super().__aexit__(*error)
        return True


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
        Unbounded,
        Reorders,
        Repeats,
        HalfClosesBoth,
    ],
)
async def test_the_check_finds_a_channel_that_breaks_a_rule(broken: type[ModelChannel]) -> None:
    """Each of these breaks one rule; the check fails, does not hang, and says where it was."""
    with pytest.raises(Exception) as info, trio.fail_after(PATIENCE / 2):  # noqa: PT011 -- see below
        await check_two_way_channel(broken.pair)
    expected = (AssertionError, trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
    assert not [exc for exc in leaves(info.value) if not isinstance(exc, expected)]
    assert any("led by the" in note for note in info.value.__notes__)


# Cancellation crosses the wire ---------------------------------------------------------------------------------------


class _Oops(Exception):
    """What goes wrong in a caller."""


async def test_leaving_by_an_exception_cancels_that_service_task_and_no_other(open_pair: PairFactory) -> None:
    """An exception that leaves the channel's block cancels the task that serves it, and only that one."""
    held = Held()
    async with open_pair(beta={"services": {"held": held, "echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("held") as other:
            theirs = await held.next()
            with pytest.raises(_Oops):
                async with connection.open_channel("held"):
                    doomed = await held.next()
                    raise _Oops
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
            theirs = await held.next()
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
        with pytest.raises(_Oops):
            async with pair.alpha.open_channel(BETA, "serve"):
                theirs = await shielded.next()
                raise _Oops
        for operation in (theirs.receive, partial(theirs.send, b"x")):
            with pytest.raises(trio.BrokenResourceError) as info, trio.fail_after(5):
                while True:
                    await operation()
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
            await trio.sleep(0)  # slower than the caller
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
        await channel.send(b"%f" % (trio.current_effective_deadline() - trio.current_time()))

    async with open_pair(beta={"services": {"remaining": remaining}}) as pair:
        await pair.alpha.connect(BETA)

        async def ask(timeout: float) -> float:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + timeout) as scope:
                async with pair.alpha.open_channel(BETA, "remaining") as channel:
                    scope.deadline = float("inf")  # sampled when it opened: later changes do not count
                    return float(await channel.receive())

        assert await ask(float("inf")) == float("inf")
        for timeout in (5, 1000):
            assert timeout - 2 < await ask(timeout) <= timeout


async def test_the_callers_deadline_bounds_the_service(open_pair: PairFactory) -> None:
    """When it passes the service is cancelled over there, whatever the caller does: `RemoteError`, code cancelled."""
    held = Held()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)
        with trio.move_on_after(0.05):
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
    with pytest.raises(_Oops):
        async with open_pair(beta={"services": {"held": held}}) as pair:
            connection = await pair.alpha.connect(BETA)
            async with connection.open_channel("held") as whole, connection.open_channel("held") as half:
                theirs = [await held.next(), await held.next()]
                await half.send_eof()
                await settled()
                await trio.aclose_forcefully(connection.link.stream.transport_stream)
                for each in theirs:
                    await held.end_of(each)
                assert {id(each) for each in held.cancelled} == {id(each) for each in theirs}
                with pytest.raises(trio.BrokenResourceError):
                    await whole.receive()
            raise _Oops


@pytest.mark.parametrize("end", ["vanishes", "closes"])
async def test_when_the_peer_goes_away_callers_learn_why(open_pair: PairFactory, end: str) -> None:
    """Whoever waits on a connection that ends gets `BrokenResourceError`, and its `__cause__` says why."""
    held, errors = Held(), list[BaseException]()
    async with open_pair(beta={"services": {"held": held}}) as pair:
        connection = await pair.alpha.connect(BETA)

        async def fail(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.BrokenResourceError) as info:
                while True:
                    await operation()
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
                await trio.aclose_forcefully(theirs.link.stream.transport_stream)
        assert len(errors) == 3
        assert all(isinstance(error.__cause__, Exception) for error in errors)
        reason = (await connection.wait_closed()).reason
        assert reason is (EndReason.CLOSED_BY_PEER if end == "closes" else EndReason.LOST)
        with pytest.raises(trio.BrokenResourceError) as info:
            connection.open_channel("held")
        assert info.value.__cause__ is not None
        assert await pair.alpha.connect(BETA) is not connection


async def test_what_arrived_before_the_connection_ended_can_still_be_read(open_pair: PairFactory) -> None:
    """Messages that are there outlive the connection; behind them comes the error."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}}) as pair:
        connection = await pair.alpha.connect(BETA)
        channel = connection.open_channel("shielded")
        theirs = await shielded.next()
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
        theirs = await held.next()
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
    limits = {"channel_window": 8192, "receive_budget": 0}
    async with open_pair(beta={"services": {"shielded": shielded}, **limits}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as blocker, connection.open_channel("shielded") as channel:
            taken, theirs = await shielded.next(), await shielded.next()
            await blocker.send(b"b" * 200_000)  # it has the one place that is over the budget until it is received
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"t" * 100_000)
                await settled()
                assert theirs._fragments_total == 100_000
                assert 0 < theirs._fragments_have < 100_000
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
            assert connection_of(pair.beta, ALPHA)._budget._total == 0
            assert channel._credit == 8192
        shielded.let_go.set()


async def test_a_send_cancelled_before_its_first_fragment_sent_nothing(open_pair: PairFactory) -> None:
    """Whether it waited for its turn or for credit: not a byte of it is queued, and the next message is the next."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, "channel_window": 4096}) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as channel:
            theirs = await shielded.next()
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
            assert not connection._outbox._pending
            assert await theirs.receive() == b"1" * 4000
            await channel.send(b"2")
            assert await theirs.receive() == b"2"
        shielded.let_go.set()


async def test_sends_that_wait_go_out_in_the_order_of_their_calls(open_pair: PairFactory) -> None:
    """Large messages, small ones and the half-close behind them keep the order in which they were asked for."""
    shielded = Shielded()
    async with open_pair(beta={"services": {"shielded": shielded}, "channel_window": 4096}) as pair:
        async with pair.alpha.open_channel(BETA, "shielded") as channel:
            theirs = await shielded.next()
            sizes = [5000, 10, 70_000, 0, 4000, 1]
            async with trio.open_nursery() as nursery:
                for number, size in enumerate(sizes):
                    nursery.start_soon(channel.send, bytes([number]) * size)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(channel.send_eof)
                received = [message async for message in theirs]
            assert received == [bytes([number]) * size for number, size in enumerate(sizes)]
        shielded.let_go.set()


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
            with pytest.raises(TypeError):
                await channel.send(value)
            with pytest.raises(TypeError):
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
    async with open_pair(
        beta={"services": {"shielded": shielded}, "channel_window": 8192, "receive_budget": 0}
    ) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as blocker, connection.open_channel("shielded") as channel:
            taken, theirs = await shielded.next(), await shielded.next()
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


@pytest.mark.parametrize("small", [0, 1, 150])
async def test_a_second_large_message_is_granted_after_a_first_one_was_given_up(
    open_pair: PairFactory, small: int
) -> None:
    """The credit of a message that was cancelled does not stand in the way of the next one on that channel."""
    shielded = Shielded()
    async with open_pair(
        beta={"services": {"shielded": shielded}, "channel_window": 8192, "receive_budget": 0}
    ) as pair:
        connection = await pair.alpha.connect(BETA)
        async with connection.open_channel("shielded") as channel:
            theirs = await shielded.next()
            # Torn just when the credit for its rest has come: it is in the sender's hand from then on.
            await _send_torn(channel, 200_000)
            assert channel._credit > 100_000
            for _ in range(small):
                await channel.send(b"s" * 1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send, b"l" * 400_000)
                await settled()
                for _ in range(small):
                    assert await theirs.receive() == b"s" * 1000
                with trio.fail_after(5):
                    assert await theirs.receive() == b"l" * 400_000
            await settled()
            assert connection_of(pair.beta, ALPHA)._budget._total == 0
        shielded.let_go.set()


async def _send_torn(channel: ServiceChannel, size: int) -> None:
    """Send a message and give it up when the credit for its rest has come, with none of that used."""
    outbox_of = channel._outbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send, b"t" * size)
        while channel._credit < size / 2:
            # As if the link were slow: the sender waits for room, the credit comes meanwhile.
            await channel._credit_arrived.park() if not outbox_of.full else await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
