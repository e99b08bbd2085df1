"""Nodes on a network in memory: heartbeats, back-off and certificates run their course in milliseconds."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertificateError,
    ConnectionDown,
    ConnectionUp,
    ConnectorChanged,
    ConnectorPhase,
    EndReason,
    HandshakeError,
    HandshakeRefused,
    HandshakeTimeoutError,
    NodeName,
    PeerRejectedError,
    PeerUnverifiedError,
    Route,
    Stage,
    UnverifiedReason,
)
from trionode._node.connector import BACKOFF
from trionode.pki import CertificateAuthority
from trionode.testing import (
    Faults,
    MemoryNetwork,
    Script,
    trio_clock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import ManagerFactory, NodeFactory

    from trionode import (
        CertAuthManager,
        EventStream,
        Node,
        NodeEvent,
        Peer,
        ServiceChannel,
    )

HOUR = 3600.0
DAY = 24 * HOUR

ALPHA, BETA = NodeName.parse("alpha@a.example"), NodeName.parse("beta@b.example")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def seen(events: EventStream) -> list[NodeEvent]:
    """What has been reported so far."""
    found: list[NodeEvent] = []
    with trio.move_on_after(1e-6):
        async for event in events:
            found.append(event)  # noqa: PERF401 -- it ends by cancellation
    return found


@asynccontextmanager
async def two(node: NodeFactory, network: MemoryNetwork, **options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Alpha and beta, each on a host of its own, with the default acceptor: nothing but their names leads there."""
    a, b = network.host("a.example"), network.host("b.example")
    async with (
        node(str(BETA), transport=b, acceptors=(), services={"echo": echo}, **options) as beta,
        node(str(ALPHA), transport=a, acceptors=(), services={"echo": echo}, **options) as alpha,
    ):
        yield alpha, beta
    assert not network.open_streams
    assert not network.listening


# Talking ------------------------------------------------------------------------------------------------------------


async def test_nodes_find_each_other_by_their_names(node: NodeFactory, autojump_clock: trio.testing.MockClock) -> None:
    """Default acceptors listen where the name says, dials resolve it, and each sees the address of the other's host."""
    network = MemoryNetwork(latency=0.1)
    async with two(node, network) as (alpha, beta):
        assert alpha.acceptors[0].address == ("10.0.0.1", 15000)
        assert beta.acceptors[0].address == ("10.0.0.2", 15000)
        assert await alpha.call(BETA, "echo", b"x" * 1_000_000) == b"x" * 1_000_000
        connection = alpha.connections[BETA]
        assert connection.peer.verified
        assert connection.peer.address == ("10.0.0.2", 15000)
        address = beta.connections[ALPHA].peer.address
        assert address is not None
        assert address[0] == "10.0.0.1"
        assert await beta.call(ALPHA, "echo", b"the same connection") == b"the same connection"
        assert len(network.open_streams) == 2


async def test_nodes_of_one_machine_share_the_network_itself(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """Without hosts, the network is `localhost` for all that are given it; ports tell them apart."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(node(f"n{number}@localhost", services={"echo": echo}, transport=network))
            for number in range(5)
        ]
        assert len({each.acceptors[0].address for each in opened}) == 5
        for one in opened:
            for other in opened:
                if one is not other:
                    host, port = other.acceptors[0].address
                    route = Route(host=host, port=port)
                    assert await one.call(other.name, "echo", b"x", route=route) == b"x"
    assert not network.open_streams


async def test_a_call_whose_connection_breaks_off_after_the_answer_goes_by_the_next_route(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """The acceptor has not had the confirmation, so the service certainly did not run there."""
    network, hosts = MemoryNetwork(), ({"a.example"}, {"b.example"})
    a, b = network.host("a.example"), network.host("b.example")
    left = [hosts]

    def break_off(peer: Peer) -> None:
        while left:
            network.reset(*left.pop())

    acceptors = [AcceptorOptions(host="b.example", port=port) for port in (15001, 15002)]
    async with (
        node(str(BETA), transport=b, acceptors=acceptors, services={"echo": echo}) as beta,
        node(str(ALPHA), transport=a, acceptors=(), authorize=break_off) as alpha,
    ):
        alpha.add_route(BETA, Route(port=15001), weight=1)
        alpha.add_route(BETA, Route(port=15002))
        assert await alpha.call(BETA, "echo", b"x") == b"x"
        assert [acceptor.statistics().established for acceptor in beta.acceptors] == [0, 1]


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_same_seed_gives_the_same_times(
    node: NodeFactory, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Handshakes and calls over jittery ways take the same time each time they are played, and another with a seed."""

    async def play(seed: int) -> list[float]:
        network = MemoryNetwork(seed, latency=0.05, jitter=0.05)
        began = trio.current_time()
        async with two(node, network) as (alpha, beta):
            times = []
            for size in 0, 10, 100_000:
                await alpha.call(BETA, "echo", bytes(size))
                times.append(trio.current_time() - began)
            await beta.call(ALPHA, "echo", b"x")
            await alpha.connections[BETA].aclose()
            return [*times, trio.current_time() - began]

    first = await play(seed)
    assert await play(seed) == pytest.approx(first)
    assert await play(seed + 10) != pytest.approx(first)


# What is wrong with the way -----------------------------------------------------------------------------------------


async def test_each_way_not_to_connect_says_so_in_its_time(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """No such name, no listener, no answer: stage resolve or connect, and only the last takes `connect_timeout`."""
    network = MemoryNetwork(latency=0.1)
    network.host("c.example")
    async with two(node, network) as (alpha, _):
        for route, words, stage, seconds in (
            (Route(host="nowhere.example"), "not known", Stage.RESOLVE, 0),
            (Route(host="192.0.2.1"), "No route", Stage.CONNECT, 0),
            (Route(host="c.example"), "refused", Stage.CONNECT, 0.2),
        ):
            began = trio.current_time()
            with pytest.raises(HandshakeError, match=words) as caught:
                await alpha.connect(BETA, route)
            assert caught.value.stage is stage
            assert isinstance(caught.value.__cause__, OSError)
            assert trio.current_time() - began == pytest.approx(seconds)
        network.partition({"a.example"}, {"b.example"})
        began = trio.current_time()
        with pytest.raises(HandshakeTimeoutError, match="connect_timeout") as silent:
            await alpha.connect(BETA)
        assert silent.value.stage is Stage.CONNECT
        assert trio.current_time() - began == pytest.approx(10)
        network.heal()
        assert await alpha.call(BETA, "echo", b"x") == b"x"


@pytest.mark.parametrize("both", [True, False])
async def test_heartbeats_notice_a_partition(
    node: NodeFactory, autojump_clock: trio.testing.MockClock, both: bool
) -> None:
    """Both ends give each other up within interval and tolerance, no sooner; also where one still hears the other."""
    network = MemoryNetwork(latency=0.01)
    options: dict[str, Any] = {"heartbeat_interval": 60, "heartbeat_tolerance": 30}
    async with two(node, network, **options) as (alpha, beta), alpha.events() as at_alpha, beta.events() as at_beta:
        connection = await alpha.connect(BETA)
        await trio.sleep(3600)  # in peace, pings keep it up
        other = beta.connections[ALPHA]
        assert alpha.connections[BETA] is connection
        began = trio.current_time()
        network.partition({"a.example"}, {"b.example"}, one_way=not both)
        end = await connection.wait_closed()
        await other.wait_closed()
        took = trio.current_time() - began
        assert 30 <= took <= 92
        assert not alpha.connections
        assert not beta.connections
        ends = [end, await other.wait_closed()]
        assert [each.reason for each in ends] == [EndReason.LOST, EndReason.LOST]
        assert any("no sign of life" in str(each.error) for each in ends)
        for events in at_alpha, at_beta:
            changes = [type(each) for each in await seen(events) if isinstance(each, ConnectionUp | ConnectionDown)]
            assert changes == [ConnectionUp, ConnectionDown]
        network.heal()
        assert await beta.call(ALPHA, "echo", b"x") == b"x"


async def test_heartbeats_do_not_spin_where_times_are_rounded(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """A ping is due when its time has come, also where that time minus the interval is rounded to before the start."""
    awkward, interval = 32756.445238821198, 15.0
    assert (awkward + interval) - awkward < interval
    autojump_clock.jump(awkward)
    network = MemoryNetwork()
    # With faults of any kind, heartbeats are sent under a mock clock, too; this one takes no time, and never comes.
    network.script = lambda _: Script(there=Faults(corrupt=[2**40]))
    async with two(node, network, heartbeat_interval=interval) as (alpha, _):
        connection = await alpha.connect(BETA)
        before = connection.statistics().bytes_sent
        autojump_clock.jump(interval)
        # Task switches, not time: where it spins, a clock that jumps when every task waits never moves again.
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert connection.statistics().bytes_sent > before


async def test_a_partition_shorter_than_the_tolerance_costs_nothing(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """What was sent meanwhile arrives when the way is open again; the connection and its calls go on."""
    network = MemoryNetwork(latency=0.01)
    async with two(node, network) as (alpha, _):
        connection = await alpha.connect(BETA)
        replies = [await connection.call("echo", b"before")]
        network.partition({"a.example"}, {"b.example"})
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                replies.append(await connection.call("echo", b"patience"))

            nursery.start_soon(call)
            await trio.sleep(10)
            assert replies == [b"before"]
            network.heal()
        assert replies == [b"before", b"patience"]
        await trio.sleep(100)
        assert alpha.connections[BETA] is connection


async def test_a_restarted_peer_takes_its_place_across_a_healed_partition(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """A node that went behind a partition and came back is connected to anew, though neither side said goodbye."""
    network = MemoryNetwork(latency=0.01)
    network.host("a.example")
    b = network.host("b.example")
    async with node(str(BETA), transport=b, acceptors=(), services={"echo": echo}) as beta:
        async with node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha:
            await alpha.call(BETA, "echo", b"I am here")
            network.partition({"a.example"}, {"b.example"})
        assert beta.connections  # it has heard nothing
        network.heal()
        async with node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha:
            began = trio.current_time()
            assert await alpha.call(BETA, "echo", b"I am back") == b"I am back"
            assert trio.current_time() - began < 5
            assert beta.connections[ALPHA].peer.incarnation == alpha.incarnation
    assert not network.open_streams


async def test_a_peer_that_reads_slowly_holds_up_only_itself(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """A sender waits for a thin line without losing the connection, far beyond heartbeats, and others do not notice."""
    network = MemoryNetwork(buffer=8192)
    c = network.host("c.example")
    async with two(node, network) as (alpha, beta):
        network.script_next("a.example", "b.example", Script(there=Faults(rate=5000)))
        async with node("gamma@c.example", transport=c, acceptors=()) as gamma:
            began = trio.current_time()
            times: dict[str, float] = {}

            async def call(caller: Node, size: int) -> None:
                assert await caller.call(BETA, "echo", bytes(size)) == bytes(size)
                times[caller.name.name] = trio.current_time() - began

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, alpha, 500_000)
                nursery.start_soon(call, gamma, 500_000)
            assert times["gamma"] < 1
            assert times["alpha"] == pytest.approx(100, rel=0.02)
            assert len(beta.connections) == 2


# Keeping up ---------------------------------------------------------------------------------------------------------


async def test_a_connector_backs_off_for_hours_and_comes_back(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """While the peer cannot be reached each wait is drawn, from a cap that doubles; then it is up in no time."""
    network = MemoryNetwork(latency=0.01)
    a, b = network.host("a.example"), network.host("b.example")
    async with node(str(ALPHA), transport=a, acceptors=(), keep_connected=[BETA]) as alpha, alpha.events() as events:
        waits: list[tuple[int, float]] = []
        with trio.move_on_after(6 * HOUR):
            async for event in events:
                if isinstance(event, ConnectorChanged) and event.state.next_attempt is not None:
                    waits.append(  # noqa: PERF401 -- it ends by cancellation
                        (event.state.attempts, event.state.next_attempt - trio.current_time())
                    )
        assert all(0 < wait <= BACKOFF.longest for _, wait in waits)
        assert [n for n, _ in waits] == list(range(1, len(waits) + 1))
        late = [wait for n, wait in waits if n > 10]
        # On average half-way from the least to the most. More than a thousand draws are not that far off by chance.
        average = BACKOFF.longest * (1 + BACKOFF.least) / 2
        assert sum(late) / len(late) == pytest.approx(average, rel=0.1)
        assert 6 * HOUR / BACKOFF.longest <= len(waits) <= 6 * HOUR / average * 1.2
        async with node(str(BETA), transport=b, acceptors=()):
            began = trio.current_time()
            await alpha.wait_connected(BETA)
            assert trio.current_time() - began <= BACKOFF.longest + 1
    assert not network.open_streams


async def test_a_connector_survives_every_kind_of_trouble(
    node: NodeFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """Reset, partition, half-open and a peer that restarts: each time the connector has a working connection again."""
    network = MemoryNetwork(latency=0.01, jitter=0.01)
    a, b = network.host("a.example"), network.host("b.example")
    hosts = {"a.example"}, {"b.example"}
    async with node(str(ALPHA), transport=a, acceptors=(), keep_connected=[BETA]) as alpha:
        for trouble in "reset", "partition", "one way", "other way", "restart":
            async with node(str(BETA), transport=b, acceptors=(), services={"echo": echo}):
                before = await alpha.wait_connected(BETA)
                assert await alpha.call(BETA, "echo", b"x") == b"x"
                await trio.sleep(60)
                if trouble == "reset":
                    network.reset(*hosts)
                elif trouble != "restart":
                    ends = hosts[::-1] if trouble == "other way" else hosts
                    network.partition(*ends, one_way=trouble != "partition")
                    await trio.sleep(120)
                    assert alpha.connectors[BETA].state.phase is not ConnectorPhase.UP
                    network.heal()
                else:
                    continue
                await trio.sleep(60)
                assert await alpha.wait_connected(BETA) is not before
                assert await alpha.call(BETA, "echo", b"x") == b"x"
                assert alpha.statistics().connections == 1
    assert not network.open_streams


# Certificates in time -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def ageing(
    node: NodeFactory, manager: ManagerFactory, network: MemoryNetwork, **options: Any
) -> AsyncIterator[tuple[Node, Node, CertificateAuthority, dict[NodeName, CertAuthManager]]]:
    """Two nodes whose certificates last for half a day of the clock that the test has."""
    clock = trio_clock(datetime(2030, 1, 1, tzinfo=UTC))
    ca = CertificateAuthority.create(clock=clock)
    certs = {name: manager(str(name), ca=ca, trusts=ca, clock=clock, lifetime=LIFETIME) for name in (ALPHA, BETA)}
    a, b = network.host("a.example"), network.host("b.example")
    async with (
        node(str(BETA), certs[BETA], transport=b, acceptors=(), services={"echo": echo}, **options) as beta,
        node(str(ALPHA), certs[ALPHA], transport=a, acceptors=(), services={"echo": echo}, **options) as alpha,
    ):
        yield alpha, beta, ca, certs


#: Short, as those are that rotate by themselves; and nodes look at the clock every minute, which in months is often.
LIFETIME = timedelta(hours=12)
#: These tests are about something else. Seconds.
RARELY: dict[str, Any] = {"heartbeat_interval": 10 * DAY}


async def test_a_certificate_lives_and_dies_on_the_clock(
    node: NodeFactory, manager: ManagerFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """For twelve hours new connections are verified; then both sides refuse, precisely, until the key pair rotates."""
    async with ageing(node, manager, MemoryNetwork(latency=0.01), **RARELY) as (alpha, beta, ca, certs):
        for _ in range(8):
            connection = await alpha.connect(BETA)
            assert connection.peer.verified
            await connection.aclose()
            await trio.sleep(1.4 * HOUR)
        old = await alpha.connect(BETA)
        await trio.sleep(HOUR)
        # An established connection goes on: it keeps what it began with.
        assert await alpha.call(BETA, "echo", b"still") == b"still"
        await old.aclose()

        # The dialer looks first, and refuses beta.
        with pytest.raises(PeerUnverifiedError, match="expired") as refused:
            await alpha.connect(BETA)
        assert refused.value.reason is UnverifiedReason.EXPIRED
        certs[BETA].update(ca.issue(str(BETA), lifetime=LIFETIME))

        # Beta is fine again; now it is beta that refuses alpha, which learns why.
        async with beta.events() as events:
            with pytest.raises(PeerRejectedError) as rejected:
                await alpha.connect(BETA)
            assert rejected.value.code == "certificate_expired"
            await trio.sleep(10)  # beta has lingered, so that its alert arrives
            [event] = [each for each in await seen(events) if isinstance(each, HandshakeRefused)]
            assert event.error.reason is UnverifiedReason.EXPIRED
        certs[ALPHA].update(ca.issue(str(ALPHA), lifetime=LIFETIME))

        connection = await alpha.connect(BETA)
        assert (connection.generation, connection.peer_generation) == (2, 2)
        assert connection.peer.verified


async def test_days_of_rotations_without_a_refusal(
    node: NodeFactory, manager: ManagerFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """Who rotates in time never meets an expired certificate: six lifetimes, with a dial every two hours."""
    async with ageing(node, manager, MemoryNetwork(latency=0.01), **RARELY) as (alpha, beta, ca, certs):
        async with alpha.events() as at_alpha, beta.events() as at_beta:
            for number in range(36):
                connection = await alpha.connect(BETA)
                assert await connection.call("echo", b"x") == b"x"
                assert connection.generation == certs[ALPHA].generation
                assert connection.peer_generation == certs[BETA].generation
                await connection.aclose()
                if number % 4 == 3:
                    for name in certs:
                        certs[name].update(ca.issue(str(name), lifetime=LIFETIME))
                await trio.sleep(2 * HOUR)
            for events in at_alpha, at_beta:
                assert not [each for each in await seen(events) if isinstance(each, HandshakeRefused)]
        assert certs[ALPHA].generation == certs[BETA].generation == 10


async def test_a_certificate_from_the_future_is_refused_until_its_time_comes(
    node: NodeFactory, manager: ManagerFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """A peer whose clock is behind refuses, says so, and accepts as soon as its own clock has got there."""
    start = datetime(2030, 1, 1, tzinfo=UTC)
    ahead, behind = trio_clock(start), trio_clock(start - timedelta(hours=2))
    # The CA is old enough for both.
    ca = CertificateAuthority.create(clock=lambda: behind() - timedelta(days=30))
    certs = {
        ALPHA: manager(str(ALPHA), ca=ca, trusts=ca, clock=behind),
        BETA: manager(str(BETA), ca=ca, trusts=ca, clock=ahead, not_before=start, not_after=start + LIFETIME),
    }
    network = MemoryNetwork()
    a, b = network.host("a.example"), network.host("b.example")
    async with (
        node(str(BETA), certs[BETA], transport=b, acceptors=(), **RARELY),
        node(str(ALPHA), certs[ALPHA], transport=a, acceptors=(), **RARELY) as alpha,
    ):
        with pytest.raises(PeerUnverifiedError, match="not yet valid") as caught:
            await alpha.connect(BETA)
        assert caught.value.reason is UnverifiedReason.NOT_YET_VALID
        await trio.sleep(2 * HOUR)
        assert (await alpha.connect(BETA)).peer.verified


async def test_an_update_is_judged_by_the_clock_of_its_manager(
    node: NodeFactory, manager: ManagerFactory, autojump_clock: trio.testing.MockClock
) -> None:
    """What has expired by that clock cannot be published, however young it is by the machine's."""
    async with ageing(node, manager, MemoryNetwork(), **RARELY) as (_, _, ca, certs):
        spare = ca.issue(str(ALPHA), lifetime=LIFETIME)
        await trio.sleep(13 * HOUR)
        with pytest.raises(CertificateError, match="expired"):
            certs[ALPHA].update(spare)
        assert certs[ALPHA].generation == 1
