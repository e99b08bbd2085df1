"""Connectors that stay: they keep a connection up, and neither give up nor storm."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    Connection,
    ConnectionUp,
    Connector,
    ConnectorChanged,
    ConnectorPhase,
    ConnectorState,
    Endpoint,
    HandshakeError,
    HandshakeReason,
    LocalProtocolError,
    NetworkDisabledError,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NoRouteError,
    Route,
    Stage,
)
from trionode._connection.connection import core_of
from trionode._handshake.admission import MAX_HANDSHAKES
from trionode._node.connector import BACKOFF, LASTED, ConnectorTask
from trionode._util.backoff import Backoff
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import ManagerFactory, NodeFactory, PairFactory

    from trionode import EventStream, Node, ServiceChannel, Transport
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
CONNECTING, UP, WAITING, STOPPED = ConnectorPhase


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


# The connector by itself, on a clock that jumps ----------------------------------------------------------------------


@dataclass
class FakeConnection:
    """As much of a connection as a connector looks at."""

    error: Exception | None = None
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def _core(self) -> FakeConnection:
        """What is behind it."""
        return self

    async def wait_unusable(self) -> Exception | None:
        """Until it is over."""
        await self.over.wait()
        return self.error

    def end(self, error: Exception | None = None) -> None:
        """Be over."""
        self.error = error
        self.over.set()


@dataclass
class Bench:
    """A connector whose dials do what a test says, and everything that it showed.

    Attributes:
        plan: what the dials do, in order: a failure, or how long the connection lasts; the last for ever.
        draws: what is drawn for the jitter; by default always the longest wait.
        dials: when each was made.
        states: what was shown, and when.
    """

    plan: list[Exception | float]
    draws: Callable[[], float] = lambda: 1.0
    dials: list[float] = field(default_factory=list)
    states: list[tuple[float, ConnectorState]] = field(default_factory=list)
    task: ConnectorTask = field(init=False)

    def __post_init__(self) -> None:
        self.task = ConnectorTask(BETA, self._connect, self._changed, self.draws)

    async def _connect(self) -> Connection:
        await trio.lowlevel.checkpoint()
        step = self.plan[min(len(self.dials), len(self.plan) - 1)]
        self.dials.append(trio.current_time())
        if isinstance(step, Exception):
            raise step
        connection: Any = FakeConnection()
        connection.over = trio.Event()
        if step == 0:
            connection.end(trio.BrokenResourceError("at once"))
        elif step < float("inf"):
            trio.lowlevel.spawn_system_task(self._end_later, connection, step)
        return connection  # type: ignore[no-any-return]

    @property
    def connector(self) -> Connector:
        """What the application holds."""
        return self.task.connector

    async def _end_later(self, connection: FakeConnection, seconds: float) -> None:
        await trio.sleep(seconds)
        connection.end(trio.BrokenResourceError(f"lost after {seconds:g} s"))

    def _changed(self, connector: Connector) -> None:
        assert connector is self.connector
        self.states.append((trio.current_time(), connector.state))

    async def run(self, seconds: float) -> None:
        """Let it work for a while."""
        with trio.move_on_after(seconds):
            await self.task.run()

    @property
    def gaps(self) -> list[float]:
        """How long it waited before each dial but the first."""
        return [round(later - sooner, 6) for sooner, later in zip(self.dials, self.dials[1:], strict=False)]

    @property
    def phases(self) -> list[ConnectorPhase]:
        """What it showed."""
        return [state.phase for _, state in self.states]


async def test_states_of_a_connector(autojump_clock: trio.testing.MockClock) -> None:
    """A connector shows what it is doing: connecting, waiting with error and time of the next attempt, up, stopped."""
    first, second = OSError("first"), OSError("second")
    bench = Bench([first, second, 60, float("inf")])
    assert bench.connector.state == ConnectorState(phase=CONNECTING)
    began = trio.current_time()
    await bench.run(100)
    states = [state for _, state in bench.states]
    assert bench.phases == [CONNECTING, WAITING, CONNECTING, WAITING, CONNECTING, UP, WAITING, CONNECTING, UP, STOPPED]
    assert states[0] == ConnectorState(phase=CONNECTING, attempts=1)
    assert states[1] == ConnectorState(phase=WAITING, error=first, next_attempt=began + BACKOFF.first, attempts=1)
    assert states[2] == ConnectorState(phase=CONNECTING, error=first, attempts=2)
    assert states[3].error is second
    assert states[3].next_attempt == pytest.approx(began + 3 * BACKOFF.first)
    assert states[5].phase is UP
    assert states[5].connection is not None
    assert states[5].error is second
    assert states[5].next_attempt is None
    lost = states[6]
    assert (lost.phase, lost.connection, lost.attempts) == (WAITING, None, 0)
    assert isinstance(lost.error, trio.BrokenResourceError)
    assert states[8].connection is not states[5].connection
    assert states[9] == ConnectorState(phase=STOPPED, error=lost.error)
    # The time that it showed is the time at which it tried.
    assert bench.dials[1:3] == [states[1].next_attempt, states[3].next_attempt]


async def test_backoff_is_exponential_and_capped(autojump_clock: trio.testing.MockClock) -> None:
    """Each wait may be twice as long as the one before, from the first one on, up to a cap; it never gives up."""
    bench = Bench([OSError("down")])
    await bench.run(3600)
    expected = [min(BACKOFF.longest, BACKOFF.first * 2**n) for n in range(len(bench.gaps))]
    assert bench.gaps == pytest.approx(expected)
    assert bench.gaps[0] == pytest.approx(BACKOFF.first)
    assert bench.gaps[-1] == BACKOFF.longest
    assert len(bench.gaps) > 100


async def test_backoff_is_jittered(autojump_clock: trio.testing.MockClock) -> None:
    """A wait is drawn from its least share to its longest, so that a cluster does not reconnect in step."""
    draws = [0.5, 0.0, 0.25, 1.0, 0.75]
    bench = Bench([OSError("down")], draws=itertools.chain(draws, itertools.repeat(1.0)).__next__)
    await bench.run(60)
    shares = [BACKOFF.least + draw * (1 - BACKOFF.least) for draw in draws]
    assert bench.gaps[: len(draws)] == pytest.approx([share * BACKOFF.first * 2**n for n, share in enumerate(shares)])
    benches = [Bench([OSError("down")], draws=random.Random(seed).random) for seed in range(20)]
    async with trio.open_nursery() as nursery:
        for each in benches:
            nursery.start_soon(each.run, 10)
    assert len({each.dials[1] for each in benches}) == 20


def test_jitter_is_on_by_default() -> None:
    """A node's connectors draw their waits at random, by default."""

    async def connect() -> Connection:
        raise OSError("down")

    task = ConnectorTask(BETA, connect, lambda _: None)
    assert len({task._draw() for _ in range(10)}) > 1
    assert all(0 <= task._draw() < 1 for _ in range(100))


def out_of_reach(stage: Stage = Stage.CONNECT) -> HandshakeError:
    """What a dial fails with where nothing answers."""
    return HandshakeError("down", stage=stage, reason=HandshakeReason.UNREACHABLE, address=None)


def several(*errors: Exception) -> NoRouteError:
    """The same of several routes."""
    return NoRouteError("down", name=BETA, causes=ExceptionGroup("routes", errors))


@pytest.mark.parametrize(
    "down", [out_of_reach(), out_of_reach(Stage.RESOLVE), several(out_of_reach(), out_of_reach(Stage.RESOLVE))]
)
async def test_waits_grow_with_an_outage(down: Exception, autojump_clock: trio.testing.MockClock) -> None:
    """Where nothing answers, so that it is found soon once it is back; up to the cap."""
    bench = Bench([down])
    await bench.run(3600)
    began = bench.dials[0]
    for sooner, later in itertools.pairwise(bench.dials):
        share = BACKOFF.of_outage * (sooner - began)
        assert later - sooner == pytest.approx(min(BACKOFF.longest, max(BACKOFF.first, share)))
    assert bench.gaps[-1] == BACKOFF.longest


async def test_an_outage_is_without_what_was_up(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that ended soon counts as a failure, and its time not as an outage."""
    bench = Bench([LASTED - 1, out_of_reach()])
    await bench.run(60)
    assert bench.gaps[:2] == pytest.approx([LASTED - 1 + BACKOFF.first, BACKOFF.first])


async def test_what_answers_is_not_stormed(autojump_clock: trio.testing.MockClock) -> None:
    """One of several routes that answers, and refuses, is enough for waits to double."""
    bench = Bench([several(out_of_reach(), OSError("it refused")), out_of_reach(Stage.TLS)])
    await bench.run(60)
    assert bench.gaps[:5] == pytest.approx([BACKOFF.first * 2**n for n in range(5)])


#: Handshakes that the simulated server does in a second, and has in progress at most: the default.
PACE, ROOM = 800, MAX_HANDSHAKES


@dataclass
class Returning:
    """A server that its clients lose, and that is back after an outage; what came, and when.

    Attributes:
        came: when connections came, counted from its return, seconds.
        back: when clients were connected again.
        refused: how often nothing answered.
        shed: how many there were too many of.
    """

    host: Transport
    came: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    refused: int = 0
    shed: int = 0
    returned: float = 0
    busy: int = 0
    free: float = 0

    async def connect(self) -> Connection:
        """What a client's dial does, and meets."""
        try:
            stream = await self.host.connect("server.test", 15000)
        except OSError as exc:
            self.refused += 1
            raise out_of_reach() from exc
        async with stream:
            if not await stream.receive_some(1):
                raise HandshakeError("shed", stage=Stage.TLS, reason=HandshakeReason.CLOSED, address=None)
        self.back.append(trio.current_time() - self.returned)
        connection: Any = FakeConnection()
        return connection  # type: ignore[no-any-return]

    async def serve(self, server: Transport) -> None:
        """Accept from now on, at its pace."""
        self.returned = self.free = trio.current_time()
        [listener] = await server.listen("server.test", 15000, port_range=1, only_local=False)
        async with trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept()
                self.came.append(trio.current_time() - self.returned)
                nursery.start_soon(self._handle, stream)

    async def _handle(self, stream: trio.abc.Stream) -> None:
        async with stream:
            if self.busy == ROOM:
                self.shed += 1
                return
            self.busy += 1
            self.free = max(self.free, trio.current_time()) + 1 / PACE
            await trio.sleep_until(self.free)
            self.busy -= 1
            await stream.send_all(b".")


@pytest.mark.parametrize(
    ("clients", "outage", "half", "last"), [(200, 3, 1, 4), (200, 0.2, 1, 4), (200, 20, 8, 17), (2000, 3, 2, 6)]
)
async def test_clients_are_back_soon_and_not_at_once(
    clients: int, outage: float, half: float, last: float, autojump_clock: trio.testing.MockClock
) -> None:
    """After an outage, in about its length; spread, so that few are shed; and the server is not tried too often."""
    network = MemoryNetwork(seed=1)
    world, draws = Returning(network.host("clients.test")), random.Random(1)
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            task = ConnectorTask(BETA, world.connect, lambda _: None, draws.random)
            nursery.start_soon(task.run)
        await trio.sleep(outage)
        nursery.start_soon(world.serve, network.host("server.test"))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(world.back) == clients
    world.back.sort()
    assert world.back[clients // 2] < half
    assert world.back[-1] < last
    assert world.shed <= clients / 10
    in_step = Counter(int(10 * came) for came in world.came)
    if outage > 1:
        assert max(in_step.values()) <= clients / 6
    assert world.refused <= clients * (4 + 6 * math.log10(1 + outage))


async def test_backoff_begins_anew_after_success(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that lasted resets the back-off: the next wait is a first one again."""
    down: list[Exception | float] = [OSError("down")]
    bench = Bench([*down * 6, LASTED + 1, *down * 2, float("inf")])
    await bench.run(600)
    waits = bench.gaps
    assert waits[5] == pytest.approx(BACKOFF.first * 2**5)
    assert waits[6] == pytest.approx(LASTED + 1 + BACKOFF.first)
    assert waits[7:9] == pytest.approx([BACKOFF.first, BACKOFF.first * 2])


async def test_connection_that_ends_soon_is_no_success(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that lets us in and throws us out at once is not stormed: the back-off goes on growing."""
    bench = Bench([0.0])
    await bench.run(600)
    assert bench.gaps[:5] == pytest.approx([BACKOFF.first * 2**n for n in range(5)])
    assert bench.gaps[-1] == BACKOFF.longest
    assert len(bench.dials) < 35
    bench = Bench([LASTED / 2])
    await bench.run(600)
    assert bench.gaps[-1] == pytest.approx(LASTED / 2 + BACKOFF.longest)


async def test_waits_of_zero_do_not_spin(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where there is no wait at all, other tasks run between two dials, and it can be cancelled."""
    monkeypatch.setattr("trionode._node.connector.BACKOFF", Backoff(first=0.2, longest=30))
    bench = Bench([0.0], draws=lambda: 0.0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.task.run)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert 2 <= len(bench.dials) <= 20


async def test_wait_up_returns_the_connection_that_is_up(autojump_clock: trio.testing.MockClock) -> None:
    """Waiting ends with the first connection, for every waiter; while one is up it does not wait."""
    bench = Bench([OSError("down"), OSError("down"), 100.0])
    got: list[Connection] = []

    async def wait() -> None:
        got.append(await bench.connector.wait_up())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, 50)
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(10)
        assert got == [bench.connector.state.connection] * 3
        with trio.testing.assert_checkpoints():
            assert await bench.connector.wait_up() is got[0]


async def test_wait_up_is_cancelled_harmlessly(autojump_clock: trio.testing.MockClock) -> None:
    """Giving up waiting changes nothing for the connector."""
    bench = Bench([OSError("down")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, 5)
        with trio.move_on_after(1) as scope:
            await bench.connector.wait_up()
        assert scope.cancelled_caught
        assert bench.connector.state.phase is WAITING


async def test_stopped_connector_says_so(autojump_clock: trio.testing.MockClock) -> None:
    """`stop()` ends it in whatever it does, at once and for good; who waits for it is told."""
    bench = Bench([OSError("down")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, 50)
        await trio.sleep(2)
        assert bench.connector.state.phase is WAITING
        bench.connector.stop()
        bench.connector.stop()
        assert bench.connector.stopped
        with pytest.raises(trio.ClosedResourceError, match="stopped"):
            await bench.connector.wait_up()
    assert bench.phases[-1] is STOPPED
    assert bench.phases.count(STOPPED) == 1
    assert "stopped" in repr(bench.connector)


# Connectors of a node -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds, for tests on real sockets."""
    monkeypatch.setattr("trionode._node.connector.BACKOFF", Backoff(first=0.002, longest=0.02, of_outage=0.5))


async def phase_of(events: EventStream, phase: ConnectorPhase) -> ConnectorState:
    """The next state that a connector shows which has this phase."""
    async for event in events:
        if isinstance(event, ConnectorChanged) and event.state.phase is phase:
            return event.state
    raise AssertionError("the node ended")


def end_of(node: Node) -> Connection:
    """A node's one connection."""
    [connection] = node._runtime.running
    return node._runtime.public(connection)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("by", ["us", "them"])
async def test_connector_reconnects_after_loss(open_pair: PairFactory, by: str) -> None:
    """When the connection ends, whichever side ended it, the connector makes a new one, again and again."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair, pair.alpha.events() as events:
            connector = pair.alpha.keep_connected(BETA)
            before: Connection | None = None
            for _ in range(4):
                state = await phase_of(events, UP)
                assert state.connection is not None
                assert state.connection is not before
                assert state.connection is pair.alpha.connections[BETA]
                assert await pair.alpha.call(BETA, "echo", b"x") == b"x"
                before = state.connection
                await end_of(pair.alpha if by == "us" else pair.beta).aclose()
                state = await phase_of(events, WAITING)
                assert state.connection is None
                assert (state.error is None) is (by == "us")
            assert pair.alpha.connectors == {BETA: connector}


@pytest.mark.usefixtures("quick")
async def test_connector_waits_for_a_peer_that_comes_later(node: NodeFactory) -> None:
    """A peer that is not there yet is dialled until it is; meanwhile the state says why not, and when next."""
    with trio.fail_after(10):
        async with node(str(BETA)) as reserved:
            host, port = reserved.acceptors[0].address
        async with node(str(ALPHA), mode=NetworkMode.HIDDEN) as alpha, alpha.events() as events:
            alpha.add_route(BETA, Route(host=host, port=port))
            connector = alpha.keep_connected(BETA)
            for _ in range(3):
                state = await phase_of(events, WAITING)
                assert isinstance(state.error, HandshakeError)
                assert "refused" in str(state.error)
                assert state.next_attempt is not None
            with trio.move_on_after(0.01) as scope:
                await alpha.wait_connected(BETA)
            assert scope.cancelled_caught
            async with node(str(BETA), acceptors=[AcceptorOptions(host=host, port=port)]) as beta:
                connection = await alpha.wait_connected(BETA)
                assert connection.peer.incarnation == beta.incarnation
                assert connector.state.phase is UP


@pytest.mark.usefixtures("quick")
async def test_every_attempt_takes_fresh_contexts(
    open_pair: PairFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """After an `update()` the next reconnect presents the new certificate; the connection that is up keeps its own."""
    certs = manager(str(ALPHA))
    with trio.fail_after(10):
        async with open_pair(alpha={"certs": certs}, beta={"services": {"echo": echo}}) as pair:
            pair.alpha.keep_connected(BETA)
            for generation in range(1, 4):
                connection = await pair.alpha.wait_connected(BETA)
                assert await connection.call("echo", b"x") == b"x"
                assert connection.generation == generation
                assert connection.key_pair_fingerprint == certs.key_pair.fingerprint
                assert pair.beta.connections[ALPHA].peer.certificate == certs.key_pair.certificate
                certs.update(ca.issue(str(ALPHA)))
                assert connection.live
                assert connection.superseded
                async with pair.alpha.events() as events:
                    await end_of(pair.beta).aclose()
                    await phase_of(events, UP)


@pytest.mark.usefixtures("quick")
async def test_every_attempt_asks_anew_for_the_way(node: NodeFactory) -> None:
    """Routes and resolver are asked for each attempt: a peer that moved is found where it is now."""
    known: list[Endpoint] = []

    class Current:
        async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
            await trio.lowlevel.checkpoint()
            return known

    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=Current()) as alpha, alpha.events() as events:
            alpha.keep_connected(BETA)
            assert isinstance((await phase_of(events, WAITING)).error, NoRouteError)
            for _ in range(2):
                async with node(str(BETA)) as beta:
                    known[:] = [Endpoint(*beta.acceptors[0].address)]
                    connection = await alpha.wait_connected(BETA)
                    assert connection.peer.incarnation == beta.incarnation
                await phase_of(events, WAITING)


async def test_options_name_whom_to_keep(node: NodeFactory) -> None:
    """Peers named in the options are dialled from the start, each by a connector of its own."""
    with trio.fail_after(10):
        async with node(str(BETA)) as beta, node("gamma@localhost") as gamma:
            routes = {
                str(peer.name): Route(host="127.0.0.1", port=peer.acceptors[0].address[1]) for peer in (beta, gamma)
            }
            async with (
                node(str(ALPHA), routes=routes, keep_connected=["beta@LOCALHOST", gamma.name]) as alpha,
                alpha.events() as events,
            ):
                assert set(alpha.connectors) == {BETA, gamma.name}
                for peer in beta, gamma:
                    assert (await alpha.wait_connected(peer.name)).peer.incarnation == peer.incarnation
                ups = [event async for event in first(events, 2)]
                assert {event.peer.name for event in ups} == {BETA, gamma.name}


async def first(events: EventStream, count: int) -> Any:
    """So many connections that come up."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            yield event
            count -= 1
            if not count:
                return


def test_options_refuse_names_that_are_none() -> None:
    """Whom to keep has to be a node name."""
    with pytest.raises(ValueError, match="beta"):
        NetworkOptions(keep_connected=["beta"])


async def test_there_is_one_connector_per_peer(open_pair: PairFactory) -> None:
    """Asking twice gives the connector that there is, and one connection."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            connector = pair.alpha.keep_connected(BETA)
            assert pair.alpha.keep_connected("beta@LOCALHOST") is connector
            await pair.alpha.wait_connected(BETA)
            assert pair.alpha.keep_connected(BETA) is connector
            assert pair.beta.acceptors[0].statistics().accepted == 1


async def test_connection_that_is_there_is_used(open_pair: PairFactory) -> None:
    """A connector does not dial while there is a connection, whichever side dialled it."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as events:
            await pair.beta.connect(ALPHA)
            await phase_of_connection(events)
            pair.alpha.keep_connected(BETA)
            connection = await pair.alpha.wait_connected(BETA)
            assert not core_of(connection).link.dialled
            assert pair.beta.acceptors[0].statistics().accepted == 0


async def phase_of_connection(events: EventStream) -> ConnectionUp:
    """The next connection that comes up."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            return event
    raise AssertionError("the node ended")


@pytest.mark.usefixtures("quick")
async def test_two_that_keep_each_other_have_one_connection(open_pair: PairFactory) -> None:
    """Two nodes that keep each other connected have one connection, and one again after each loss."""
    with trio.fail_after(20):
        async with open_pair() as pair:
            pair.alpha.keep_connected(BETA)
            pair.beta.keep_connected(ALPHA)
            for round_ in range(10):
                ours, theirs = await pair.alpha.wait_connected(BETA), await pair.beta.wait_connected(ALPHA)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert ours is end_of(pair.alpha)
                assert theirs is end_of(pair.beta)
                assert core_of(ours).link.dialled is not core_of(theirs).link.dialled
                async with pair.alpha.events() as at_alpha, pair.beta.events() as at_beta:
                    await (ours if round_ % 2 else theirs).aclose()
                    await phase_of(at_alpha, WAITING)
                    await phase_of(at_beta, WAITING)


async def test_stop_leaves_the_connection(open_pair: PairFactory) -> None:
    """A connector that is stopped leaves its connection, does not reconnect, and may be asked for again."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as events:
            connector = pair.alpha.keep_connected(BETA)
            connection = await pair.alpha.wait_connected(BETA)
            connector.stop()
            again = pair.alpha.keep_connected(BETA)
            assert again is not connector
            await phase_of(events, STOPPED)
            assert pair.alpha.connectors == {BETA: again}
            assert await pair.alpha.wait_connected(BETA) is connection
            again.stop()
            await phase_of(events, STOPPED)
            assert pair.alpha.connectors == {}
            assert connection.live
            await end_of(pair.beta).aclose()
            await connection.wait_closed()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not pair.alpha.connections
            with pytest.raises(NoRouteError, match="keep_connected"):
                await pair.alpha.wait_connected(BETA)


async def test_connectors_end_with_the_node(open_pair: PairFactory) -> None:
    """Leaving a node stops its connectors, in whatever they do, and tells those that wait for one."""
    told: list[Exception] = []

    async def wait(node: Node) -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await node.wait_connected("gamma@localhost")
        told.append(caught.value)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with open_pair() as pair:
                pair.alpha.add_route("gamma@localhost", Route(host="127.0.0.1", port=1))
                kept, vain = pair.alpha.keep_connected(BETA), pair.alpha.keep_connected("gamma@localhost")
                await pair.alpha.wait_connected(BETA)
                alpha = pair.alpha
                nursery.start_soon(wait, alpha)  # it waits beyond the node's end
                await trio.testing.wait_all_tasks_blocked()
    assert kept.state.phase is STOPPED
    assert vain.state.phase is STOPPED
    assert len(told) == 1


async def test_every_change_is_an_event(open_pair: PairFactory) -> None:
    """Each state that a connector goes through is an event, with peer and state."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as events:
            connector = pair.alpha.keep_connected(BETA)
            await pair.alpha.wait_connected(BETA)
            connector.stop()
            await pair.alpha.connections[BETA].aclose()
            changes: list[ConnectorChanged] = []
            async for event in events:
                if isinstance(event, ConnectorChanged):
                    changes.append(event)
                    if event.state.phase is STOPPED:
                        break
            assert [event.state.phase for event in changes] == [CONNECTING, UP, STOPPED]
            assert {(event.node, event.name) for event in changes} == {(ALPHA, BETA)}


@pytest.mark.usefixtures("quick")
async def test_drained_peer_is_not_stormed(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """A peer that drains is left at once and dialled with back-off: a few times a second at most, not all the time."""
    busy = trio.Event()

    async def service(channel: ServiceChannel) -> None:
        await channel.send(b"begun")
        await busy.wait()
        await channel.send(b"done")

    with trio.fail_after(10):
        async with (
            node(str(BETA), services={"busy": service}) as beta,
            node(str(ALPHA)) as alpha,
            alpha.events() as events,
        ):
            alpha.add_route(BETA, route_to(beta))
            alpha.keep_connected(BETA)
            connection = await alpha.wait_connected(BETA)
            async with trio.open_nursery() as nursery:
                async with connection.open_channel("busy") as channel:
                    assert await channel.receive() == b"begun"
                    nursery.start_soon(beta.drain)
                    await phase_of(events, WAITING)
                    assert not connection.live  # it is not handed out, but its channels go on
                    dials = 0
                    with trio.move_on_after(0.5):
                        while True:
                            await phase_of(events, CONNECTING)
                            dials += 1
                    # Waits are 10 ms on average by now; BACKOFF.longest is what bounds them in real life.
                    assert 2 <= dials <= 150
                    busy.set()
                    assert await channel.receive() == b"done"


async def test_whom_a_node_cannot_keep(node: NodeFactory) -> None:
    """A node's own name cannot be kept connected, nor any name by a node without network or one that is closed."""
    with trio.fail_after(10):
        async with node(str(ALPHA), mode=NetworkMode.DISABLED) as alpha:
            with pytest.raises(NetworkDisabledError):
                alpha.keep_connected(BETA)
        async with node(str(ALPHA)) as alpha:
            with pytest.raises(LocalProtocolError):
                alpha.keep_connected(ALPHA)
        with pytest.raises(trio.ClosedResourceError):
            alpha.keep_connected(BETA)
