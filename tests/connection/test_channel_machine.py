"""Channels against a model: random programs on both ends of a connection, and nothing left behind after any of them.

Hypothesis draws a program: open channels and calls, send messages of any size, receive, half-close, close, fail and
cancel, at either end, with more or less time in between; then an end. It runs against two real connections in
memory, TLS and all, and against a model that knows who did what. The model says which errors are allowed and which
messages must have arrived. Every run has Trio's own clock that jumps, so that a deadlock fails at once.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import HealthCheck, example, given, settings, strategies as st

from effort import effort
from trionode import (
    CertAuthManager,
    ClientAuth,
    Connection,
    EndReason,
    NodeName,
    RemoteCode,
    RemoteError,
    ServiceChannel,
    _protocol as wire,
)
from trionode._connection.connection import core_of
from trionode._connection.core import ConnectionCore
from trionode._connection.owner import ConnectionOwner, ConnectionSettings, protocol_log
from trionode._connection.registry import Registry
from trionode._connection.services import Services
from trionode._handshake.accept import accept_link
from trionode._handshake.collisions import Arbiter
from trionode._handshake.dial import Dial, dial_link
from trionode._handshake.exchange import Party
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from trionode._connection.end import ConnectionEnd
    from trionode._connection.hand_over import RenewalCause
    from trionode._connection.link import Link

#: What no message of a program exceeds, and what is accepted.
LARGEST: Final = 150_000
#: Seconds on a clock that jumps when nobody can go on: a deadlock ends here, at once.
PATIENCE: Final = 600

Side = Literal[0, 1]


@pytest.fixture(scope="module")
def managers() -> tuple[CertAuthManager, CertAuthManager]:
    """Both sides' cert managers."""
    ca = CertificateAuthority.create()

    def make(name: str) -> CertAuthManager:
        mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        return CertAuthManager(ca.issue(name), client_cas=ca.pool, client_auth=mode, root_cas=ca.pool)

    return make("dialer@localhost"), make("acceptor@localhost")


# Two connections in memory -------------------------------------------------------------------------------------------


@dataclass(kw_only=True, frozen=True)
class Config:
    """What both sides accept, and what is between them."""

    window: int
    budget: int
    max_channels: int
    max_pending_opens: int
    lockstep: bool


class Bystander(ConnectionOwner[ConnectionCore]):
    """An owner that does nothing; its connections have one link."""

    name = NodeName.parse("bystander@localhost")

    def unregister(self, connection: ConnectionCore) -> None:
        """They are in no registry."""

    def connection_ended(self, connection: ConnectionCore, end: ConnectionEnd) -> None:
        """Tell nobody."""

    def connection_finished(self, connection: ConnectionCore) -> None:
        """Nothing is kept of it."""

    def connection_moved(self, connection: ConnectionCore) -> None:
        """It never does."""
        raise AssertionError

    def renew(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        """Their keys do not last long enough to be worn."""

    async def reauthenticate(self, connection: ConnectionCore) -> None:
        """Nobody asks for it."""
        raise AssertionError


@asynccontextmanager
async def connected(
    managers: Sequence[CertAuthManager], config: Config, services: Sequence[Services]
) -> AsyncIterator[tuple[list[Connection], trio.Nursery]]:
    """Two ends of one connection, dialer first, and the nursery where services run."""
    limits = wire.Limits(max_message_size=LARGEST, window=config.window, max_channels=config.max_channels)
    names = [NodeName.parse(str(name)) for name in ("dialer@localhost", "acceptor@localhost")]
    make = trio.testing.lockstep_stream_pair if config.lockstep else trio.testing.memory_stream_pair
    near, far = make()
    parties = [
        Party(name=name, incarnation=number, limits=limits, arbiter=Arbiter(name, Registry()))
        for number, name in enumerate(names)
    ]
    links: dict[int, Link] = {}

    async def accept() -> None:
        links[1], _ = await accept_link(far, managers[1].contexts, parties[1], bind_names=True, handshake_timeout=60)

    async def dial() -> None:
        plan = Dial(name=names[1], host="localhost", port=1, connect_timeout=60, handshake_timeout=60)
        links[0] = await dial_link(near, managers[0].contexts, parties[0], plan)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(dial)
    async with trio.open_nursery() as service_nursery, trio.open_nursery() as nursery:
        for each in services:
            each.open(service_nursery)
        ends = [
            ConnectionCore(
                links[side],
                ConnectionSettings(
                    services=services[side],
                    limits=limits,
                    max_pending_opens=config.max_pending_opens,
                    budget=config.budget,
                    heartbeat_interval=float("inf"),
                    heartbeat_tolerance=1,
                    max_records=2**20,
                    manager=managers[side],
                    protocol_log=protocol_log(),
                ),
                Bystander(),
            )
            for side in (0, 1)
        ]
        for end in ends:
            nursery.start_soon(end.run)
        try:
            yield [Connection(end) for end in ends], service_nursery
        finally:
            nursery.cancel_scope.cancel()
            service_nursery.cancel_scope.cancel()


# The model -----------------------------------------------------------------------------------------------------------


class OopsError(Exception):
    """What services fail with."""


@dataclass(eq=False)
class End:
    """One end of a channel, and what was done with it."""

    side: Side
    serves: bool
    channel: ServiceChannel | None = None
    #: What was asked of it here.
    half_closed: bool = False
    closed: bool = False
    failed: bool = False
    #: What happened to the task that serves it.
    finish: trio.Event = field(default_factory=trio.Event)
    began: bool = False
    cancelled: bool = False
    refused: bool = False
    over: bool = False
    #: Messages in the order in which somebody began to send them, and those of them that were accepted.
    offered: list[bytes] = field(default_factory=list)
    taken: set[bytes] = field(default_factory=set)
    #: Sends and half-closes under way.
    busy: int = 0
    received: list[bytes] = field(default_factory=list)
    saw_end: bool = False
    receiving: trio.StrictFIFOLock = field(default_factory=trio.StrictFIFOLock)

    @property
    def accepted(self) -> list[bytes]:
        """What was accepted for sending, in order."""
        return [message for message in self.offered if message in self.taken]

    def offer(self, size: int) -> bytes:
        """A message like no other; somebody is about to send it."""
        self.offered.append(len(self.offered).to_bytes(4, "big") + bytes(size))
        return self.offered[-1]

    @property
    def gone(self) -> bool:
        """Whether this end uses the channel no more."""
        return self.closed or self.failed or self.over or self.refused


@dataclass(eq=False)
class Pair:
    """A channel: its caller's end and its service's."""

    ends: tuple[End, End]

    def other(self, end: End) -> End:
        """The end that is not this one."""
        return self.ends[1] if end is self.ends[0] else self.ends[0]


#: Why a channel may not come about.
_REFUSALS: Final = (RemoteCode.LIMIT, RemoteCode.SHUTTING_DOWN, RemoteCode.NOT_TAKEN)


class Model:
    """Runs a program against two connections, and knows what may come of it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.connections: list[Connection] = []
        self.pairs: list[Pair] = []
        self.services = [Services(propagate_errors=False, expose_errors=False) for _ in range(2)]
        for services in self.services:
            services.add("model", self._serve)
            services.add("echo", self._echo)
        self.calls = 0
        #: Sides whose connection was closed there; whether it was lost.
        self.closed_sides: set[int] = set()
        self.lost = False
        self.draining = False

    @property
    def over(self) -> bool:
        """Whether the connection was ended, in whatever way."""
        return bool(self.closed_sides) or self.lost

    # Services

    async def _serve(self, channel: ServiceChannel) -> None:
        end = next(
            pair.ends[1]
            for pair in self.pairs
            if pair.ends[0].channel is not None
            and pair.ends[0].channel._end.number == channel._end.number
            and self._name(pair.ends[0].side) == channel.peer.name
        )
        end.channel = channel
        end.began = True
        try:
            await end.finish.wait()
        except trio.Cancelled:
            end.cancelled = True
            raise
        finally:
            end.over = True
        if end.failed:
            raise OopsError

    async def _echo(self, channel: ServiceChannel) -> None:
        async for message in channel:
            await channel.send(message)

    def _name(self, side: Side) -> NodeName:
        return self.connections[1 - side].peer.name

    # Steps of a program

    def open(self, side: Side) -> None:
        """Open a channel."""
        if self.over:
            with pytest.raises((trio.ClosedResourceError, RemoteError)) as refused:
                self.connections[side].open_channel("model")
            assert getattr(refused.value, "not_run", True)
            return
        caller = End(side, serves=False)
        try:
            caller.channel = self.connections[side].open_channel("model")
        except RemoteError as exc:
            assert exc.code is RemoteCode.LIMIT
            assert self.connections[side].statistics().channels >= self.config.max_channels
        else:
            self.pairs.append(Pair((caller, End(1 if side == 0 else 0, serves=True))))

    async def call(self, side: Side, size: int) -> None:
        """Call a service that sends back what it gets."""
        self.calls += 1
        message = self.calls.to_bytes(2, "big") * (size // 2)
        try:
            assert await self.connections[side].call("echo", message) == message
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            assert self.over
        except RemoteError as exc:
            assert exc.not_run
            assert (
                exc.code is RemoteCode.LIMIT
                or (exc.code is RemoteCode.SHUTTING_DOWN and (self.draining or self.over))
                or (exc.code is RemoteCode.NOT_TAKEN and self.over)
            )

    async def send(self, pair: Pair, end: End, size: int) -> None:
        """Send a message; any number of tasks may."""
        channel = end.channel
        if channel is None:
            return
        message = end.offer(size)
        end.busy += 1
        try:
            await channel.send(message)
            end.taken.add(message)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            self._check_sending(pair, end, exc)
        finally:
            end.busy -= 1

    def send_nowait(self, pair: Pair, end: End, size: int) -> None:
        """Send a message if that is possible at once."""
        channel = end.channel
        if channel is None:
            return
        message = end.offer(size)
        try:
            channel.send_nowait(message)
            end.taken.add(message)
        except trio.WouldBlock:
            pass
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            self._check_sending(pair, end, exc)

    async def half_close(self, pair: Pair, end: End) -> None:
        """Half-close, after what is being sent."""
        channel = end.channel
        if channel is None:
            return
        end.half_closed = True
        end.busy += 1
        try:
            await channel.send_eof()
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            self._check_sending(pair, end, exc)
        finally:
            end.busy -= 1

    def _check_sending(self, pair: Pair, end: End, exc: Exception) -> None:
        other = pair.other(end)
        if isinstance(exc, trio.ClosedResourceError):
            assert end.gone or end.half_closed or end.side in self.closed_sides
        else:
            assert exc.__cause__ is not None
            other.refused |= isinstance(exc.__cause__, RemoteError) and exc.__cause__.code in _REFUSALS
            assert other.gone or self.over

    async def receive(self, pair: Pair, end: End, count: int) -> None:
        """Receive some messages, or until an end."""
        channel = end.channel
        if channel is None:
            return
        async with end.receiving:
            for _ in range(count):
                try:
                    end.received.append(await channel.receive())
                except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError, RemoteError) as exc:
                    self._check_receiving(pair, end, exc)
                    return

    def receive_nowait(self, pair: Pair, end: End) -> None:
        """Receive a message if there is one."""
        channel = end.channel
        if channel is None or end.receiving.locked():
            return
        try:
            end.received.append(channel.receive_nowait())
        except trio.WouldBlock:
            return
        except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError, RemoteError) as exc:
            self._check_receiving(pair, end, exc)

    def _check_receiving(self, pair: Pair, end: End, exc: Exception) -> None:
        other = pair.other(end)
        if isinstance(exc, trio.EndOfChannel):
            end.saw_end = True
            assert other.half_closed or other.gone
        elif isinstance(exc, trio.ClosedResourceError):
            assert end.gone or end.side in self.closed_sides
        elif isinstance(exc, RemoteError):
            assert not end.serves
            if exc.code in _REFUSALS:
                assert self.draining or self.over or exc.code is RemoteCode.LIMIT
                assert exc.not_run
                assert not other.began
                other.refused = True
            else:
                assert not exc.not_run
                assert other.failed or other.cancelled
                assert exc.code is (RemoteCode.FAILED if other.failed else RemoteCode.CANCELLED)
        else:
            assert exc.__cause__ is not None
            assert other.failed or self.over

    async def close(self, end: End) -> None:
        """Close an end cleanly; a service by returning."""
        if end.serves:
            end.closed = True
            end.finish.set()
        elif end.channel is not None:
            end.closed = True
            await end.channel.aclose()

    def fail(self, end: End) -> None:
        """Reset an end; a service by raising."""
        if end.gone or end.finish.is_set():
            return
        if end.serves:
            end.failed = True
            end.finish.set()
        elif end.channel is not None:
            end.failed = True
            end.channel.reset()

    async def run(self, program: Sequence[Step], nursery: trio.Nursery) -> None:
        """Do one step after the other; those that wait go on beside."""
        for step in program:
            await step.start(self, nursery)

    # Ends of a program

    async def finish(self) -> None:
        """Receive everything, half-close and close everything: now every message must be there."""
        rest = self.pairs
        while rest:
            await trio.testing.wait_all_tasks_blocked()
            self.check_cancelled()
            # Where only some may be served at a time the others begin when these have ended. Also a service that is to
            # return as soon as it runs has to begin.
            ready = [pair for pair in rest if pair.ends[1].began or pair.ends[1].refused or pair.ends[0].gone]
            rest = [pair for pair in rest if pair not in ready]
            if not ready:
                ready, rest = rest, []  # refused, and nobody has looked yet
            await self._finish(ready)

    async def _finish(self, pairs: Sequence[Pair]) -> None:
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                for end in pair.ends:
                    nursery.start_soon(self.receive, pair, end, 10**6)
            await trio.testing.wait_all_tasks_blocked()
            for pair in pairs:
                self._check_credit(pair)
            for pair in pairs:
                for end in pair.ends:
                    nursery.start_soon(self.half_close, pair, end)
        for pair in pairs:
            for end in pair.ends:
                await self.close(end)
        await trio.testing.wait_all_tasks_blocked()

    def check_cancelled(self) -> None:
        """Services of callers that failed, or of a connection that ended, are over; others were not cancelled."""
        for pair in self.pairs:
            caller, service = pair.ends
            if service.cancelled:
                assert caller.failed or self.over
            if service.began and (caller.failed or (self.over and not caller.closed)):
                assert service.over

    def _check_credit(self, pair: Pair) -> None:
        """Everything was sent and received: where a channel goes on its windows are open again."""
        for end in pair.ends:
            other = pair.other(end)
            if end.channel is None or other.channel is None or end.gone or other.gone:
                continue
            window = other.channel._receiving.window
            assert not end.busy
            assert window.held == 0
            if not end.half_closed:
                assert window.size / 2 < end.channel._sending.credit == window.outstanding <= window.size

    def check(self) -> None:
        """What must hold when everything is over."""
        self.check_cancelled()
        for pair in self.pairs:
            for end in pair.ends:
                other = pair.other(end)
                assert other.received == end.accepted[: len(other.received)], "lost, doubled, changed or reordered"
                if other.saw_end:
                    assert other.received == end.accepted, "an end before everything was received"

    def nothing_is_left(self, service_nursery: trio.Nursery) -> None:
        """No channel, no task, no reservation, nobody who waits."""
        for connection in self.connections:
            core = core_of(connection)
            channels, budget = core.channels, core.channels._terms.budget
            assert channels.open == {}
            assert channels.served == {}
            assert not channels.waiting
            if connection.live:  # else it counts no more
                assert (budget._total, budget.reserved) == (0, {})
                assert not budget._waiting
                assert budget._over is None
            assert not core.outbox.room
            assert connection.statistics().channels == connection.statistics().services == 0
        assert not service_nursery.child_tasks


# Programs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of a program."""

    what: str
    side: Side = 0
    channel: int = 0
    size: int = 0
    #: How many task switches later it is cancelled; None for never.
    patience: int | None = None
    #: How many task switches the next step comes later; None for when everybody has got as far as they can.
    pause: int | None = 0

    async def start(self, model: Model, nursery: trio.Nursery) -> None:
        """Do it, or begin it."""
        operation = self._operation(model)
        if operation is not None:
            nursery.start_soon(self._bounded, operation)
        if self.pause is None:
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(self.pause or 0):
            await trio.lowlevel.checkpoint()

    async def _bounded(self, operation: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if self.patience is not None:
                    nursery.start_soon(self._cancel, scope, self.patience)
                await operation()
                nursery.cancel_scope.cancel()

    @staticmethod
    async def _cancel(scope: trio.CancelScope, patience: int) -> None:
        for _ in range(patience):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    def _operation(self, model: Model) -> Callable[[], Awaitable[None]] | None:
        if self.what == "open":
            model.open(self.side)
            return None
        if self.what == "call":
            return partial(model.call, self.side, self.size)
        if not model.pairs:
            return None
        pair = model.pairs[self.channel % len(model.pairs)]
        end = pair.ends[self.side]
        if self.what == "send":
            return partial(model.send, pair, end, self.size)
        if self.what == "receive":
            return partial(model.receive, pair, end, 1 + self.size % 5)
        if self.what == "half-close":
            return partial(model.half_close, pair, end)
        if self.what == "close":
            return partial(model.close, end)
        if self.what == "fail":
            model.fail(end)
        elif self.what == "send_nowait":
            model.send_nowait(pair, end, self.size)
        elif self.what == "receive_nowait":
            model.receive_nowait(pair, end)
        return None


WHAT: Final = [
    *["open"] * 3,
    *["send"] * 8,
    *["receive"] * 6,
    *["send_nowait"] * 2,
    *["receive_nowait"] * 2,
    *["call"] * 2,
    "half-close",
    "close",
    "fail",
]

sizes: Final = st.integers(0, 50) | st.sampled_from([3900, 4028, 4029, 8000]) | st.integers(60_000, LARGEST - 4)
patiences: Final = st.none() | st.none() | st.integers(0, 12)
pauses: Final = st.none() | st.integers(0, 6) | st.just(0)
steps: Final = st.builds(
    Step,
    what=st.sampled_from(WHAT),
    side=st.sampled_from([0, 1]),
    channel=st.integers(0, 5),
    size=sizes,
    patience=patiences,
    pause=pauses,
)
programs: Final = st.lists(st.sampled_from([0, 1]).map(partial(Step, "open")), min_size=1, max_size=4).flatmap(
    lambda opens: st.lists(steps, max_size=40).map(lambda rest: [*opens, *rest])
)
configs: Final = st.builds(
    Config,
    window=st.sampled_from([4096, 5000, 70_000, 131_072]),
    budget=st.sampled_from([0, 20_000, 200_000, 10**9]),
    max_channels=st.sampled_from([1, 2, 1024, 1024]),
    max_pending_opens=st.sampled_from([1, 1024]),
    lockstep=st.booleans(),
)

machine: Final = settings(
    max_examples=effort(250), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """One run of Trio, which must not hang."""

    async def bounded() -> None:
        with trio.fail_after(PATIENCE):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


@given(program=programs, config=configs)
@example(
    [
        Step("open", 1),
        Step("open", 0, pause=None),
        Step("close", 0, channel=1, pause=None),
        Step("open", 0, pause=None),
        Step("close", 1, channel=2, pause=None),
    ],
    Config(window=4096, budget=0, max_channels=1, max_pending_opens=1, lockstep=False),
)
@machine
def test_programs_that_end_in_peace(
    managers: tuple[CertAuthManager, CertAuthManager], program: list[Step], config: Config
) -> None:
    """Every message that was accepted arrives once and in order, no other error than the model allows, no leaks."""

    async def main() -> None:
        model = Model(config)
        async with connected(managers, config, model.services) as (model.connections, service_nursery):
            async with trio.open_nursery() as nursery:
                await model.run(program, nursery)
                await model.finish()
            await trio.testing.wait_all_tasks_blocked()
            model.check()
            model.nothing_is_left(service_nursery)
            for pair in model.pairs:
                for end in pair.ends:
                    # What was accepted was received, unless somebody would not have it.
                    other = pair.other(end)
                    if not (end.failed or other.failed) and other.saw_end:
                        assert other.received == end.accepted
            assert all(connection.live for connection in model.connections)
            await model.connections[0].aclose()
            reasons = [(await connection.wait_closed()).reason for connection in model.connections]
            assert reasons == [EndReason.CLOSED, EndReason.CLOSED_BY_PEER]

    run(main)


HOW: Final = ["dialer closes", "acceptor closes", "both close", "dialer is lost", "acceptor is lost", "drain"]


@given(program=programs, config=configs, how=st.sampled_from(HOW))
@machine
def test_programs_that_end_with_the_connection(
    managers: tuple[CertAuthManager, CertAuthManager], program: list[Step], config: Config, how: str
) -> None:
    """Whatever is going on when the connection is closed, drained or lost: all tasks end, as allowed, no leaks."""

    async def main() -> None:
        model = Model(config)
        async with connected(managers, config, model.services) as (model.connections, service_nursery):
            dialer, acceptor = model.connections
            async with trio.open_nursery() as nursery:
                await model.run(program, nursery)
                if how == "drain":
                    nursery.start_soon(_drain, model)
                elif "lost" in how:
                    model.lost = True
                    lost = dialer if how.startswith("dialer") else acceptor
                    await trio.aclose_forcefully(core_of(lost).link.stream.transport_stream)
                else:
                    for side, connection in enumerate(model.connections):
                        if how in (f"{('dialer', 'acceptor')[side]} closes", "both close"):
                            model.closed_sides.add(side)
                            nursery.start_soon(connection.aclose)
                for connection in model.connections:
                    await connection.wait_closed()
                await trio.testing.wait_all_tasks_blocked()
                model.check_cancelled()
                # Those whose caller had closed may take their time; here they are done.
                for pair in model.pairs:
                    pair.ends[1].finish.set()
                    pair.ends[1].closed |= not pair.ends[1].failed
                    caller = pair.ends[0]
                    if caller.channel is not None and not caller.gone:
                        await model.close(caller)
            await trio.testing.wait_all_tasks_blocked()
            model.check()
            model.nothing_is_left(service_nursery)

    run(main)


async def _drain(model: Model) -> None:
    """Drain with a deadline, as a deploy does."""
    model.draining = True
    model.closed_sides.add(0)
    with trio.move_on_after(5):
        await model.connections[0].drain()
