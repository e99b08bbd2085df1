"""Two at once: crossing dials, restarted peers, and two nodes that claim one name.

Most of this runs on a network in memory, with delays drawn from a seeded generator and Trio's clock jumping over them:
thousands of interleavings in seconds, and the same ones again for a seed that failed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
import trio
import trio.testing

from effort import effort
from trionode import (
    ClientAuth,
    Connection,
    ConnectionDown,
    ConnectionUp,
    EndReason,
    HandshakeRefused,
    HandshakeTimeoutError,
    NameInUse,
    Node,
    NodeName,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Route,
    Side,
    UnverifiedReason,
    _protocol as wire,
)
from trionode._connection.connection import core_of
from trionode._connection.registry import Registry
from trionode._handshake.collisions import PROBE_TIMEOUT, RECENTLY, Arbiter, Conflict
from trionode._identity.peer import established_peer
from trionode._transport.tcp import TCP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedListener, ScriptedPeer

    from trionode import CertManager, EventStream, Listener, NodeEvent, Peer, ServiceChannel
    from trionode._connection.core import ConnectionCore

E = TypeVar("E")

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")

#: Interleavings per test. Before the arbiter put a committed dial and a promised one in an order, one in 250 ended with
#: two connections, and one in 350 with none where both sides had asked to replace.
SEEDS = effort(40)
BATCHES = range(10)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


def session(connection: Connection) -> bytes:
    """What only the two ends of one TLS session have in common."""
    return core_of(connection).link.stream.export_keying_material(b"EXPERIMENTAL-trionode-test", 16)


def seen(events: EventStream) -> list[NodeEvent]:
    """What a reader has before it, without waiting."""
    return list(events._buffer)


# A network in memory --------------------------------------------------------------------------------------------------


class MemoryEnd(trio.abc.HalfCloseableStream):
    """One end of a transport in memory: what is sent arrives in order, after a delay; sending may stall first."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link
        self.other: MemoryEnd = self
        self._arriving: deque[tuple[float, bytes]] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._last = 0.0
        self._closed = False

    def _deliver(self, data: bytes) -> None:
        self._last = max(self._last, trio.current_time() + self.link.draw())
        if not self.link.cut:
            self.other._arriving.append((self._last, data))
            self.other._arrived.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Stall as a full socket does, then send; like a socket, no cancellation once it has gone."""
        await trio.lowlevel.checkpoint()
        await trio.sleep(self.link.draw())
        if self._closed:
            raise trio.ClosedResourceError
        if self.other._closed and not self.link.cut:
            raise trio.BrokenResourceError
        self._deliver(bytes(data))
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        await trio.lowlevel.checkpoint()
        self._deliver(b"")

    async def wait_send_all_might_not_block(self) -> None:
        """Never wait."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived by now, or the next that does."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if not self._arriving:
                await self._arrived.park()
                continue
            due, data = self._arriving[0]
            if due > trio.current_time():
                await trio.sleep_until(due)
            elif max_bytes is not None and len(data) > max_bytes:
                self._arriving[0] = (due, data[max_bytes:])
                return data[:max_bytes]
            else:
                if data:  # an end stays
                    self._arriving.popleft()
                return data
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        """Close; the other end reads what is under way, then the end."""
        if not self._closed:
            self._closed = True
            self._deliver(b"")
            self._arrived.unpark_all()
        await trio.lowlevel.checkpoint()


@dataclass
class MemoryLink:
    """One TCP connection, as far as both ends can tell."""

    delay: Callable[[], float]
    cut: bool = False  #: black-holed: nothing arrives any more, in either direction, and neither end is told

    def draw(self) -> float:
        """How long the next thing takes."""
        return self.delay()


@dataclass
class MemoryNetwork:
    """Where nodes meet without sockets: what they dial is handed to the acceptor that has the port."""

    nursery: trio.Nursery
    rng: random.Random
    longest: float = 0.0
    nodes: dict[int, Node] = field(default_factory=dict)
    links: list[MemoryLink] = field(default_factory=list)
    walls: set[int] = field(default_factory=set)  #: ports behind a firewall that drops everything

    def join(self, *nodes: Node) -> None:
        """Let a node be reached."""
        for node in nodes:
            self.nodes[node.acceptors[0].address[1]] = node

    def draw(self, scale: float = 1.0) -> float:
        """A delay; often none at all, so that things happen in one tick, too."""
        return 0.0 if self.rng.random() < 0.4 else self.rng.random() * self.longest * scale

    async def listen(self, host: str | None, port: int, **options: Any) -> Sequence[Listener]:
        """On a real port, which tells the nodes apart; nothing connects to it."""
        return await TCP.listen(host, port, **options)

    async def connect(self, host: str, port: int) -> MemoryEnd:
        """Hand one end to the acceptor that has the port."""
        if port in self.walls:
            await trio.sleep_forever()
        scale = self.rng.choice([0, 0.1, 1, 1, 2])
        await trio.sleep(self.draw(scale))
        link = MemoryLink(lambda: self.draw(scale))
        self.links.append(link)
        dialing, accepting = MemoryEnd(link), MemoryEnd(link)
        dialing.other, accepting.other = accepting, dialing
        self.nursery.start_soon(self.nodes[port]._acceptors.loops[0].handle, accepting)
        return dialing


@dataclass
class World:
    """Two nodes on a network in memory, with routes to each other."""

    network: MemoryNetwork
    alpha: Node
    beta: Node

    def route(self, node: Node) -> Route:
        """The way to one of them."""
        return Route(host="127.0.0.1", port=node.acceptors[0].address[1])

    def connections(self) -> tuple[list[Connection], list[Connection]]:
        """What runs on either side, usable or not."""
        alpha, beta = ([*map(node._runtime.public, node._runtime.running)] for node in (self.alpha, self.beta))
        return alpha, beta

    def the_connection(self) -> tuple[Connection, Connection]:
        """Both ends of the one connection, after a check that it is the only one, and the same one."""
        (ours,), (theirs,) = self.connections()
        assert session(ours) == session(theirs)
        assert core_of(ours).link.dialled is not core_of(theirs).link.dialled
        assert self.alpha.connections == {BETA: ours}
        assert self.beta.connections == {ALPHA: theirs}
        return ours, theirs


@pytest.fixture
def world(node: NodeFactory, manager: ManagerFactory) -> Callable[..., Any]:
    """Opens two nodes on a network in memory; `seed` decides all its delays."""
    certs = {name: manager(str(name)) for name in (ALPHA, BETA)}

    @asynccontextmanager
    async def make(
        seed: int, *, alpha: CertManager | None = None, beta: CertManager | None = None
    ) -> AsyncIterator[World]:
        rng = random.Random(seed)
        async with trio.open_nursery() as nursery:
            network = MemoryNetwork(nursery, rng, longest=rng.choice([0, 0.001, 0.08]))
            options: dict[str, Any] = {
                "services": {"echo": echo},
                "heartbeat_interval": math.inf,
                "transport": network,
            }
            async with (
                node(str(BETA), beta or certs[BETA], **options) as b,
                node(str(ALPHA), alpha or certs[ALPHA], **options) as a,
            ):
                network.join(a, b)
                here = World(network, a, b)
                a.add_route(str(BETA), here.route(b))
                b.add_route(str(ALPHA), here.route(a))
                yield here

    return make


async def connect_both(
    world: World, *, alpha_route: Route | None = None, beta_route: Route | None = None
) -> dict[NodeName, Connection]:
    """Dial from both sides at about the same time."""
    got: dict[NodeName, Connection] = {}

    async def dial(node: Node, peer: NodeName, route: Route | None) -> None:
        await trio.sleep(world.network.draw())
        got[node.name] = await node.connect(peer, route)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial, world.alpha, BETA, alpha_route)
        nursery.start_soon(dial, world.beta, ALPHA, beta_route)
    return got


async def settle() -> None:
    """Long after everything that is under way has arrived, and replaced connections have retired."""
    await trio.sleep(30)


# Crossing dials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
async def test_crossing_dials_end_with_one_connection(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock, batch: int
) -> None:
    """Crossing dials end with exactly one connection, the same on both sides; both callers get it, nothing migrates."""
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        async with world(seed) as here, here.alpha.events() as at_alpha, here.beta.events() as at_beta:
            began = trio.current_time()
            got = await connect_both(here)
            took = trio.current_time() - began
            await settle()
            ours, theirs = here.the_connection()
            assert got == {ALPHA: ours, BETA: theirs}, seed
            for events in (at_alpha, at_beta):
                ups_and_downs = [e for e in seen(events) if isinstance(e, (ConnectionUp, ConnectionDown))]
                assert [type(e) for e in ups_and_downs] == [ConnectionUp], seed
                assert not any(isinstance(e, HandshakeRefused) for e in seen(events)), seed
            assert len(here.network.links) <= 2, f"{seed}: a storm"
            # A handshake has seven steps, each of which stalls and travels; twice that, where one waits for the other.
            assert took <= 2 * 8 * 2 * 2 * here.network.longest, f"{seed}: something waited for a timeout"
            assert await here.alpha.call(BETA, "echo", b"x") == b"x"
            assert await here.beta.call(ALPHA, "echo", b"y") == b"y"
            here.the_connection()


@pytest.mark.parametrize("explicit", ["alpha's", "beta's", "both"])
@pytest.mark.parametrize("batch", BATCHES[:3])
async def test_crossing_dials_that_replace_end_with_one_connection(
    world: Callable[..., Any],
    manager: ManagerFactory,
    autojump_clock: trio.testing.MockClock,
    batch: int,
    explicit: str,
) -> None:
    """Where each side wants a connection of its own (another manager), there is one in the end, too: never none."""
    certs = {name: manager(str(name)) for name in (ALPHA, BETA)}
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        async with world(seed) as here:
            to_beta = replace(here.route(here.beta), cert_manager=certs[ALPHA]) if explicit != "beta's" else None
            to_alpha = replace(here.route(here.alpha), cert_manager=certs[BETA]) if explicit != "alpha's" else None
            got = await connect_both(here, alpha_route=to_beta, beta_route=to_alpha)
            for name, route in (ALPHA, to_beta), (BETA, to_alpha):
                if route is not None:
                    assert got[name].key_pair_fingerprint == certs[name].key_pair.fingerprint
            await settle()
            here.the_connection()


async def live_a_little(network: MemoryNetwork, node: Node, peer: NodeName, route: Route) -> None:
    """Do a few of the things that a program does with a peer, at random."""
    for _ in range(network.rng.randint(1, 5)):
        await trio.sleep(network.draw(4))
        choice = network.rng.random()
        if choice < 0.6:
            await node.connect(peer)
        elif choice < 0.75:
            await node.connect(peer, route)
        elif choice < 0.9:
            if peer in node.connections:
                await node.connections[peer].aclose()
        else:
            with trio.move_on_after(network.draw()):
                await node.connect(peer)


@pytest.mark.parametrize("batch", BATCHES)
async def test_one_connection_after_any_history(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock, batch: int
) -> None:
    """Whatever two nodes did before (dials, closes, replacements, cancelled dials), they end with one connection."""
    for seed in range(batch * effort(20), (batch + 1) * effort(20)):
        async with world(seed) as here:
            with trio.fail_after(120):
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(live_a_little, here.network, here.alpha, BETA, here.route(here.beta))
                        nursery.start_soon(live_a_little, here.network, here.beta, ALPHA, here.route(here.alpha))
            await settle()
            ours, theirs = here.connections()
            assert len(ours) == len(theirs) <= 1, seed
            await connect_both(here)
            await settle()
            here.the_connection()


@pytest.mark.parametrize("first", ["alpha", "beta"])
async def test_crossing_dials_over_real_sockets(open_pair: PairFactory, first: str) -> None:
    """Two nodes that dial each other in the same tick, again and again, always have one connection between them."""
    with trio.fail_after(60):
        async with open_pair() as pair:
            dials = [(pair.alpha, BETA), (pair.beta, ALPHA)]
            for _ in range(30):
                got: list[Connection] = []

                async def dial(node: Node, peer: NodeName, got: list[Connection] = got) -> None:
                    got.append(await node.connect(peer))

                async with trio.open_nursery() as nursery:
                    for node, peer in dials if first == "alpha" else dials[::-1]:
                        nursery.start_soon(dial, node, peer)
                one, other = got
                assert session(one) == session(other)
                assert core_of(one).link.dialled is not core_of(other).link.dialled
                assert pair.alpha.statistics().connections == 1 == pair.beta.statistics().connections
                await one.aclose()
                await other.wait_closed()


async def test_winner_is_the_dial_of_the_name_that_sorts_first(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock
) -> None:
    """Where both dials are past their TLS, the one of the node whose name sorts first wins, on both sides."""
    async with world(0) as here:
        here.network.longest = 0.0  # everything in step
        await connect_both(here)
        ours, theirs = here.the_connection()
        assert core_of(ours).link.dialled
        assert not core_of(theirs).link.dialled


async def test_connection_that_came_in_before_the_dial_began_is_not_replaced(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock
) -> None:
    """A dial for which a connection came in just before its task began to run does not replace that, but uses it."""
    async with world(0) as here:
        dials = here.alpha._dialer._dials
        spawn = dials._spawn

        def spawn_late(function: Callable[[], Awaitable[None]], name: str) -> None:
            async def begin() -> None:
                await here.beta.connect(ALPHA)
                await wait_for(lambda: BETA in here.alpha.connections)
                await function()

            spawn(begin, name)

        dials._spawn = spawn_late
        connection = await here.alpha.connect(BETA)
        await settle()
        assert not core_of(connection).link.dialled
        assert here.the_connection()[0] is connection


# What the loser's side puts in an order ------------------------------------------------------------------------------


def peer_of(name: NodeName, incarnation: int = 1) -> Peer:
    """A verified peer, as a handshake makes it."""
    return established_peer(name, certificate=None, verified=True, address=None, incarnation=incarnation)


@dataclass
class Promise:
    """A promise that another task asks for, and keeps until it is told to let go."""

    given: trio.Event = field(default_factory=trio.Event)
    let_go: trio.Event = field(default_factory=trio.Event)

    @classmethod
    async def ask(cls, nursery: trio.Nursery, arbiter: Arbiter, peer: Peer) -> Promise:
        """Ask, and come back once it was given or has to wait."""
        promise = cls()

        async def hold() -> None:
            with await arbiter.promise(peer, replace=False):
                promise.given.set()
                await promise.let_go.wait()

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        return promise


@dataclass
class Confirmation:
    """A dial that another task wants to confirm, and whose handshake is over when it is told so."""

    given: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)

    @classmethod
    async def ask(cls, nursery: trio.Nursery, arbiter: Arbiter, peer: Peer) -> Confirmation:
        """Ask, and come back once it was given or has to wait."""
        confirmation = cls()

        async def dial() -> None:
            with arbiter.dialling(peer.name) as pending:
                pending.counts = True
                await arbiter.may_confirm(peer, replace=False)
                confirmation.given.set()
                await confirmation.over.wait()

        nursery.start_soon(dial)
        await trio.testing.wait_all_tasks_blocked()
        return confirmation


SIDES = pytest.mark.parametrize(("own", "other"), [(ALPHA, BETA), (BETA, ALPHA)], ids=["winner", "loser"])


@SIDES
async def test_nothing_is_promised_while_a_confirmation_is_under_way(own: NodeName, other: NodeName) -> None:
    """A dial that will be confirmed has to be registered before an inbound one is judged: else both would stand."""
    arbiter = Arbiter(own, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with arbiter.dialling(other) as pending:
                pending.counts = True
                await arbiter.may_confirm(peer_of(other), replace=False)
                promise = await Promise.ask(nursery, arbiter, peer_of(other))
                assert not promise.given.is_set()
            await promise.given.wait()
            promise.let_go.set()


async def test_loser_either_confirms_or_promises() -> None:
    """When a promise that its dial waited for has failed, the loser confirms the dial or gives the next, never both."""
    for _ in range(20):  # which of the two it is, is chance
        arbiter = Arbiter(BETA, Registry())
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                first = await Promise.ask(nursery, arbiter, peer_of(ALPHA))
                dial = await Confirmation.ask(nursery, arbiter, peer_of(ALPHA))
                second = await Promise.ask(nursery, arbiter, peer_of(ALPHA))
                assert first.given.is_set()
                assert not dial.given.is_set()
                assert not second.given.is_set()
                first.let_go.set()
                await trio.testing.wait_all_tasks_blocked()
                assert dial.given.is_set() is not second.given.is_set()
                (dial.over if dial.given.is_set() else second.let_go).set()
                await dial.given.wait()
                await second.given.wait()
                dial.over.set()
                second.let_go.set()


async def test_winner_does_not_wait_for_its_promise() -> None:
    """The winner confirms at once, whatever it has promised: the loser has put the two in an order already."""
    arbiter = Arbiter(ALPHA, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            promise = await Promise.ask(nursery, arbiter, peer_of(BETA))
            dial = await Confirmation.ask(nursery, arbiter, peer_of(BETA))
            assert promise.given.is_set()
            assert dial.given.is_set()
            promise.let_go.set()
            dial.over.set()


@SIDES
async def test_promise_holds_the_name_against_a_dial_to_another_incarnation(own: NodeName, other: NodeName) -> None:
    """A dial that reached another incarnation waits for the promise that its name has, whichever wins."""
    arbiter = Arbiter(own, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            promise = await Promise.ask(nursery, arbiter, peer_of(other, incarnation=1))
            dial = await Confirmation.ask(nursery, arbiter, peer_of(other, incarnation=2))
            assert not dial.given.is_set()
            promise.let_go.set()
            await dial.given.wait()
            dial.over.set()


async def test_winner_judges_after_its_own_dial_is_over() -> None:
    """The winner's acceptor waits for its own dial, if that is past its TLS, before it judges the loser's."""
    arbiter = Arbiter(ALPHA, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with arbiter.dialling(BETA) as pending:
                pending.counts = True
                promise = await Promise.ask(nursery, arbiter, peer_of(BETA))
                assert not promise.given.is_set()
            await promise.given.wait()
            promise.let_go.set()


@SIDES
async def test_dial_before_the_end_of_its_tls_holds_up_nobody(own: NodeName, other: NodeName) -> None:
    """A dial that is not past its TLS does not count: an inbound link is judged at once."""
    arbiter = Arbiter(own, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with arbiter.dialling(other):
                promise = await Promise.ask(nursery, arbiter, peer_of(other))
                assert promise.given.is_set()
                promise.let_go.set()


async def test_arbiter_forgets_what_is_over() -> None:
    """What was promised, dialled or locked leaves nothing behind, whether it succeeded, failed or was cancelled."""
    arbiter = Arbiter(ALPHA, Registry())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            promise = await Promise.ask(nursery, arbiter, peer_of(BETA))
            with arbiter.dialling(BETA), arbiter.dialling(BETA), trio.move_on_after(0.01):
                with await arbiter.promise(peer_of(BETA), replace=False):
                    raise AssertionError("the name is reserved")
            promise.let_go.set()
        with pytest.raises(ValueError, match="broke off"):
            with await arbiter.promise(peer_of(BETA), replace=False):
                raise ValueError("broke off")
    assert not arbiter._dials
    assert not arbiter._promised
    assert not arbiter._locks


@dataclass(eq=False)
class FakeConnection:
    """As much of a registered connection as the arbiter looks at."""

    peer: Peer
    dialled: bool
    registry: Registry
    alive: bool = True
    recent: bool = False
    pinged: int = 0
    insisted: int = 0
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.link = SimpleNamespace(dialled=self.dialled, mutual=True, insecure=False, replace=False)
        self.registry.add(cast("ConnectionCore", self))

    @property
    def liveness(self) -> FakeConnection:
        """It stands for that, too."""
        return self

    def heard_within(self, seconds: float) -> bool:
        """If not, a ping has to tell."""
        assert seconds == RECENTLY
        return self.recent

    async def answers(self, within: float, *, insist: bool = False) -> bool:
        """A ping; to insist on its answer is asked of the same incarnation alone, which may have lost its end."""
        assert within == PROBE_TIMEOUT
        self.pinged += 1
        self.insisted += insist
        await trio.lowlevel.checkpoint()
        if not self.alive:
            self.registry.remove(cast("ConnectionCore", self))
        self.meanwhile()
        return self.alive


async def verdict(arbiter: Arbiter, peer: Peer, *, dial: bool, replace: bool = False) -> str:
    """What becomes of a newcomer: `may be`, or the reason why not."""
    try:
        if dial:
            await arbiter.may_confirm(peer, replace=replace)
        else:
            with await arbiter.promise(peer, replace=replace):
                pass
    except Conflict as exc:
        conflict = exc
    else:
        return "may be"
    assert conflict.peer is peer
    assert "beta@localhost" in str(conflict)
    return conflict.reason


@pytest.mark.parametrize(
    ("dial", "same", "dialled", "alive", "replace_", "expected", "pings"),
    [
        # We accept. One that the peer dialled before, or wants replaced, makes room; what we dialled is probed.
        (False, True, False, True, False, "may be", 0),
        (False, True, False, True, True, "may be", 0),
        (False, True, True, True, False, "duplicate", 1),
        (False, True, True, False, False, "may be", 1),
        (False, True, True, True, True, "may be", 1),
        (False, True, True, False, True, "may be", 1),
        # We dialled. What there is by now stands, unless it is to be replaced.
        (True, True, False, True, False, "duplicate", 0),
        (True, True, True, True, False, "duplicate", 0),
        (True, True, False, True, True, "may be", 0),
        (True, True, True, True, True, "may be", 0),
        # Another incarnation is probed, whichever side dialled and whatever was asked for.
        *[
            (dial, False, dialled, alive, replace_, "name_in_use" if alive else "may be", 1)
            for dial in (False, True)
            for dialled in (False, True)
            for alive in (False, True)
            for replace_ in (False, True)
        ],
    ],
)
async def test_verdict_on_a_newcomer(
    *, dial: bool, same: bool, dialled: bool, alive: bool, replace_: bool, expected: str, pings: int
) -> None:
    """Who may come beside, or in place of, a connection that there is; and whether that is pinged for it."""
    registry = Registry()
    existing = FakeConnection(peer_of(BETA, 1), dialled, registry, alive)
    newcomer = peer_of(BETA, 1 if same else 2)
    with trio.fail_after(5):
        assert await verdict(Arbiter(ALPHA, registry), newcomer, dial=dial, replace=replace_) == expected
    assert existing.pinged == pings
    assert existing.insisted == (pings if same and replace_ else 0)


@pytest.mark.parametrize(
    ("same", "replace_", "expected", "pings"),
    [
        (True, False, "duplicate", 0),
        (True, True, "may be", 1),  # the answer shows that the peer has it; none, that it has not
        (False, False, "may be", 1),
        (False, True, "may be", 1),
    ],
)
async def test_connection_that_was_heard_of_just_now(*, same: bool, replace_: bool, expected: str, pings: int) -> None:
    """It needs no ping against a duplicate of its own incarnation; in all other cases it does, and may be dead."""
    registry = Registry()
    existing = FakeConnection(peer_of(BETA, 1), dialled=True, registry=registry, alive=False, recent=True)
    newcomer = peer_of(BETA, 1 if same else 2)
    with trio.fail_after(5):
        assert await verdict(Arbiter(ALPHA, registry), newcomer, dial=False, replace=replace_) == expected
    assert existing.pinged == pings


@pytest.mark.parametrize("dial", [True, False])
async def test_everything_is_looked_at_again_after_a_ping(*, dial: bool) -> None:
    """What was registered while a dead connection was pinged stands, as if it had been there before."""
    registry = Registry()
    old = FakeConnection(peer_of(BETA, 1), dialled=True, registry=registry, alive=False)

    def newcomer() -> None:
        FakeConnection(peer_of(BETA, 2), dialled=True, registry=registry)

    old.meanwhile = newcomer
    with trio.fail_after(5):
        assert await verdict(Arbiter(ALPHA, registry), peer_of(BETA, 2), dial=dial) == "duplicate"
        assert await verdict(Arbiter(ALPHA, registry), peer_of(BETA, 3), dial=dial) == "name_in_use"


# Only what both sides verified competes ------------------------------------------------------------------------------


@pytest.fixture
def loose(manager: ManagerFactory) -> dict[NodeName, CertManager]:
    """Managers whose acceptors verify no client."""
    return {name: manager(str(name), client_auth=ClientAuth.NO_CLIENT_CERT) for name in (ALPHA, BETA)}


async def test_where_no_client_is_verified_there_is_one_connection_per_direction(
    world: Callable[..., Any], loose: dict[NodeName, CertManager], autojump_clock: trio.testing.MockClock
) -> None:
    """Links that no acceptor verified do not compete: each side has the one that it dialled, and none is refused."""
    for seed in range(effort(20)):
        async with world(seed, alpha=loose[ALPHA], beta=loose[BETA]) as here:
            got = await connect_both(here)
            await settle()
            for own in got.values():
                assert core_of(own).link.dialled
                assert not core_of(own).link.mutual
            assert session(got[ALPHA]) != session(got[BETA])
            ours, theirs = here.connections()
            assert len(ours) == 2 == len(theirs), seed
            assert await here.alpha.call(BETA, "echo", b"x") == b"x"
            assert await here.beta.call(ALPHA, "echo", b"y") == b"y"


@pytest.mark.parametrize("lax", [ALPHA, BETA], ids=["alpha", "beta"])
async def test_link_that_one_side_did_not_verify_does_not_compete(
    world: Callable[..., Any],
    loose: dict[NodeName, CertManager],
    autojump_clock: trio.testing.MockClock,
    lax: NodeName,
) -> None:
    """Where one acceptor verifies clients and the other does not, no dial is refused for another that crossed it."""
    crossed = 0
    for seed in range(effort(40)):
        certs = {"alpha": loose[ALPHA]} if lax is ALPHA else {"beta": loose[BETA]}
        async with world(seed, **certs) as here, here.alpha.events() as at_alpha, here.beta.events() as at_beta:
            got = await connect_both(here)
            await settle()
            ours, theirs = here.connections()
            # Two, unless the link that both verified was there before the other side dialled: then that is used.
            assert len(ours) == len(theirs) == len(here.network.links), seed
            crossed += len(ours) == 2
            assert core_of(got[lax]).link.dialled
            assert core_of(got[lax]).link.mutual
            assert all(core_of(c).link.mutual is (session(c) == session(got[lax])) for c in (*ours, *theirs)), seed
            assert not any(isinstance(e, HandshakeRefused) for e in (*seen(at_alpha), *seen(at_beta)))
            assert await here.alpha.call(BETA, "echo", b"x") == b"x"
            assert await here.beta.call(ALPHA, "echo", b"y") == b"y"
    assert crossed > 1


async def test_unverified_peers_take_no_part(
    node: NodeFactory,
    route_to: Callable[..., Route],
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    manager: ManagerFactory,
    ca: Any,
) -> None:
    """Who is not verified is neither probed for, nor waits, nor reserves a name, whatever it claims in its hello."""
    with trio.fail_after(10):
        async with (
            node(
                "beta@localhost", manager("beta@localhost", client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN)
            ) as beta,
            node("alpha@localhost", services={"echo": echo}) as alpha,
            AsyncExitStack() as stack,
        ):
            beta.add_route("alpha@localhost", route_to(alpha))
            # One that has its verdict and does not confirm: a verified one would hold the name now.
            silent = await scripted_dial(beta, ca)
            await stack.enter_async_context(silent.stream)
            await silent.say(silent.hello("alpha@localhost", verified=True))
            assert (await silent.hear(wire.Answer)).verified is False
            real = await beta.connect("alpha@localhost")
            for incarnation in (alpha.incarnation, 7):
                claim = await scripted_dial(beta, ca)
                await stack.enter_async_context(claim.stream)
                before = real.statistics().bytes_sent
                await claim.introduce("alpha@localhost", incarnation=incarnation, verified=True, replace=True)
                assert real.statistics().bytes_sent == before  # no ping
            assert beta.connections == {ALPHA: real}
            assert await beta.call("alpha@localhost", "echo", b"x") == b"x"


# A direction that is blocked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", ["alpha", "beta"])
async def test_firewalled_direction_does_not_block_the_other(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock, blocked: str
) -> None:
    """While one side's TCP connect hangs, the other side's dial succeeds at once, and both can use its connection."""
    async with world(1) as here:
        here.network.longest = 0.0
        stuck, free = (here.alpha, here.beta) if blocked == "alpha" else (here.beta, here.alpha)
        here.network.walls.add(free.acceptors[0].address[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck.connect, free.name, here.route(free))
            await trio.testing.wait_all_tasks_blocked(0.01)
            began = trio.current_time()
            connection = await free.connect(stuck.name)
            assert trio.current_time() - began < 0.1
            assert core_of(connection).link.dialled
            assert await stuck.call(free.name, "echo", b"x") == b"x"
            here.the_connection()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("routes", [1, 2])
async def test_blocked_dial_gives_the_connection_that_came_in(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock, routes: int
) -> None:
    """A dial that fails in the end is no error where the peer has come through meanwhile: that connection it gives."""
    async with world(1) as here:
        here.network.longest = 0.0
        here.network.walls.add(here.beta.acceptors[0].address[1])
        for _ in range(routes - 1):
            here.alpha.add_route(BETA, here.route(here.beta))
        async with trio.open_nursery() as nursery:
            got: list[Connection] = []

            async def connect() -> None:
                got.append(await here.alpha.connect(BETA))

            nursery.start_soon(connect)
            await trio.sleep(1)
            await here.beta.connect(ALPHA)
        assert got == [here.the_connection()[0]]


@pytest.mark.parametrize("blocked", ["alpha", "beta"])
async def test_direction_whose_tls_hangs_does_not_block_the_other(
    node: NodeFactory, route_to: Callable[..., Route], scripted_listener: ScriptedListener, blocked: str
) -> None:
    """While one side's dial hangs in its TLS handshake, the other side's dial succeeds at once."""
    free_name = "beta@localhost" if blocked == "alpha" else "alpha@localhost"
    with trio.fail_after(5):
        async with node(f"{blocked}@localhost", handshake_timeout=100) as stuck, node(free_name) as free:
            free.add_route(str(stuck.name), route_to(stuck))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stuck.connect, free_name, scripted_listener.route())
                hanging = await scripted_listener.listener.accept()
                await free.connect(stuck.name)
                assert core_of(stuck.connections[free.name]).link.dialled is False
                nursery.cancel_scope.cancel()
            await hanging.aclose()


# A name is reserved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["it confirms", "it leaves", "it refuses"])
async def test_name_is_reserved_between_verdict_and_confirmation(
    node: NodeFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    manager: ManagerFactory,
    outcome: str,
) -> None:
    """Who claims a name that another was accepted under and has not confirmed, waits for what becomes of that one."""
    certs = manager("alpha@localhost")
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            first, second = await scripted_dial(beta, certs), await scripted_dial(beta, certs)
            async with first.stream, second.stream:
                await first.say(first.hello("alpha@localhost", incarnation=1, verified=True))
                assert (await first.hear(wire.Answer)).refusal is None
                await second.say(second.hello("alpha@localhost", incarnation=2, verified=True))
                with trio.move_on_after(0.2) as waited:
                    await second.hear(wire.Answer)
                assert waited.cancelled_caught
                if outcome == "it confirms":
                    await first.say(wire.Confirmation())
                    await answer_pings(first)
                    refusal = (await second.hear(wire.Answer)).refusal
                    assert refusal is not None
                    assert refusal.code == "name_in_use"
                    assert beta.connections[ALPHA].peer.incarnation == 1
                else:
                    if outcome == "it refuses":
                        await first.say(wire.Confirmation(refusal=wire.Refusal(code="not_authorized")))
                    else:
                        await first.stream.aclose()
                    assert (await second.hear(wire.Answer)).refusal is None
                    await second.say(wire.Confirmation())
                    await wait_for(lambda: ALPHA in beta.connections)
                    assert beta.connections[ALPHA].peer.incarnation == 2


async def answer_pings(peer: ScriptedPeer) -> None:
    """Answer the next ping."""
    _, _, payload = await peer.frame(wire.PING)
    await peer.stream.send_all(wire.header(wire.PONG, 0, len(payload)) + payload)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Poll: what a peer does over a socket cannot be waited for from here."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


async def test_reservation_holds_up_its_own_name_only(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory
) -> None:
    """A peer that never confirms holds up only those that claim its own name."""
    with trio.fail_after(10):
        async with node("beta@localhost", handshake_timeout=60) as beta:
            slow = await scripted_dial(beta, manager("alpha@localhost"))
            async with slow.stream:
                await slow.say(slow.hello("alpha@localhost", verified=True))
                await slow.hear(wire.Answer)
                other = await scripted_dial(beta, manager("gamma@localhost"))
                async with other.stream:
                    await other.introduce("gamma@localhost", verified=True)
                    assert beta.acceptors[0].statistics().handshaking >= 1


async def test_reservation_ends_with_the_handshakes_timeout(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory
) -> None:
    """A peer that never confirms holds its name until its handshake times out, and then the next one has it."""
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with node("beta@localhost", handshake_timeout=1.5) as beta, beta.events() as events:
            slow = await scripted_dial(beta, certs)
            async with slow.stream:
                await slow.say(slow.hello("alpha@localhost", verified=True))
                await slow.hear(wire.Answer)
                await trio.sleep(1.2)  # so that the next one, whose own time begins now, outlasts it
                again = await scripted_dial(beta, certs)
                async with again.stream:
                    await again.introduce("alpha@localhost", incarnation=2, verified=True)
                    assert (await until(events, ConnectionUp)).peer.incarnation == 2
                    await slow.stream.aclose()
                    assert isinstance((await until(events, HandshakeRefused)).error, HandshakeTimeoutError)


# Another incarnation --------------------------------------------------------------------------------------------------


async def until(events: EventStream, kind: type[E]) -> E:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


@pytest.mark.parametrize("dialer", ["survivor", "restarted"])
async def test_restarted_peer_takes_the_place_of_its_dead_self(
    world: Callable[..., Any],
    node: NodeFactory,
    manager: ManagerFactory,
    autojump_clock: trio.testing.MockClock,
    dialer: str,
) -> None:
    """A newcomer of another incarnation replaces a connection that does not answer; it never waits for TCP."""
    async with world(2) as here:
        here.network.longest = 0.001
        old = await here.alpha.connect(BETA) if dialer == "survivor" else None
        await here.beta.connect(ALPHA)
        old = here.alpha.connections[BETA]
        for link in here.network.links:
            link.cut = True  # the machine is gone: no FIN, no RST
        async with node(str(BETA), manager(str(BETA)), services={"echo": echo}, heartbeat_interval=math.inf) as reborn:
            here.network.join(reborn)
            reborn.add_route(str(ALPHA), here.route(here.alpha))
            began = trio.current_time()
            if dialer == "restarted":
                connection = await reborn.connect(ALPHA)
                assert connection.peer.incarnation == here.alpha.incarnation
            else:
                # Only a route of another manager asks for a connection of its own; the old one seems alive still.
                route = Route(host="127.0.0.1", port=reborn.acceptors[0].address[1], cert_manager=manager(str(ALPHA)))
                await here.alpha.connect(BETA, route)
            assert trio.current_time() - began < PROBE_TIMEOUT + 0.5
            await wait_for(lambda: here.alpha.connections.get(BETA) not in (None, old))
            newcomer = here.alpha.connections[BETA]
            assert newcomer.peer.incarnation == reborn.incarnation
            assert (await old.wait_closed()).reason is EndReason.LOST
            assert await here.alpha.call(BETA, "echo", b"x") == b"x"
            assert await reborn.call(ALPHA, "echo", b"y") == b"y"


@pytest.mark.parametrize("loser", ["dialer", "acceptor"])
@pytest.mark.parametrize("first", [ALPHA, BETA], ids=["winner", "other"])
async def test_peer_that_lost_its_end_alone_comes_back_soon(
    world: Callable[..., Any], autojump_clock: trio.testing.MockClock, first: NodeName, loser: str
) -> None:
    """A peer whose end of the connection broke, while ours seems alive, has a new one within seconds."""
    async with world(3) as here:
        here.network.longest = 0.001
        dialer, acceptor = (here.alpha, here.beta) if first is ALPHA else (here.beta, here.alpha)
        await dialer.connect(acceptor.name)
        assert await dialer.call(acceptor.name, "echo", b"x") == b"x"
        node, other = (dialer, acceptor) if loser == "dialer" else (acceptor, dialer)
        old = other.connections[node.name]
        here.network.links[-1].cut = True
        core_of(node.connections[other.name]).end(EndReason.LOST, trio.BrokenResourceError("a reset that only we saw"))
        began = trio.current_time()
        new = await node.connect(other.name)
        assert trio.current_time() - began < 5
        await settle()
        assert old not in other._runtime.running
        assert new in here.the_connection()


@pytest.fixture
def same_name(node: NodeFactory, route_to: Callable[..., Route]) -> Callable[..., Any]:
    """Opens alpha, and two nodes that both are beta."""

    @asynccontextmanager
    async def make() -> AsyncIterator[tuple[Node, Node, Node]]:
        async with node("alpha@localhost") as alpha, node("beta@localhost") as one, node("beta@localhost") as two:
            for beta in (one, two):
                beta.add_route("alpha@localhost", route_to(alpha))
            yield alpha, one, two

    return make


async def test_second_node_of_a_name_is_refused_where_it_dials(same_name: Callable[..., Any]) -> None:
    """While the first one lives, another node of its name that dials is refused with name_in_use, visible to both."""
    with trio.fail_after(10):
        async with same_name() as (alpha, one, two), alpha.events() as at_alpha, two.events() as at_two:
            await one.connect(ALPHA)
            first = (await until(at_alpha, ConnectionUp)).connection
            with pytest.raises(PeerRejectedError, match="another live node is connected") as refused:
                await two.connect(ALPHA)
            assert refused.value.code is RejectionCode.NAME_IN_USE
            for events, side in ((at_alpha, Side.ACCEPT), (at_two, Side.DIAL)):
                assert (await until(events, HandshakeRefused)).error.reason == "name_in_use"
                event = await until(events, NameInUse)
                assert event.side is side
                assert "beta@localhost" in str(event.error)
                if side is Side.ACCEPT:
                    assert isinstance(event.error, PeerUnverifiedError)
                    assert event.error.reason is UnverifiedReason.NAME_IN_USE
                    assert "a name of its own" in str(event.error)
                else:
                    assert event.error is refused.value
            assert alpha.connections == {BETA: first}
            assert first.live


async def test_second_node_of_a_name_is_refused_where_it_is_dialled(
    same_name: Callable[..., Any], route_to: Callable[..., Route], manager: ManagerFactory
) -> None:
    """While the first one lives, a dial that reaches another node of its name is refused, visible to both."""
    with trio.fail_after(10):
        async with same_name() as (alpha, one, two), alpha.events() as at_alpha, two.events() as at_two:
            first = await alpha.connect(BETA, route_to(one))
            with pytest.raises(PeerUnverifiedError, match="another live node is connected") as refused:
                await alpha.connect(BETA, route_to(two, cert_manager=manager("alpha@localhost")))
            assert refused.value.reason is UnverifiedReason.NAME_IN_USE
            event = await until(at_alpha, NameInUse)
            assert event.side is Side.DIAL
            assert event.error is refused.value
            event = await until(at_two, NameInUse)
            assert event.side is Side.ACCEPT
            assert isinstance(event.error, PeerRejectedError)
            assert event.error.code is RejectionCode.NAME_IN_USE
            assert alpha.connections == {BETA: first}
            assert first.live


async def test_second_node_of_a_name_is_refused_also_where_it_verifies_nobody(
    same_name: Callable[..., Any], route_to: Callable[..., Route]
) -> None:
    """A dialer that does not verify its peers is no way round: it proves a name that another live node has."""
    with trio.fail_after(10):
        async with same_name() as (alpha, one, two):
            first = await alpha.connect(BETA, route_to(one))
            with pytest.raises(PeerRejectedError) as refused:
                await two.connect(ALPHA, route_to(alpha, insecure_skip_verify=True))
            assert refused.value.code is RejectionCode.NAME_IN_USE
            assert alpha.connections == {BETA: first}
            await first.aclose()
            await two.connect(ALPHA, route_to(alpha, insecure_skip_verify=True))


async def test_second_node_of_a_name_after_the_first_has_left(same_name: Callable[..., Any]) -> None:
    """Once the first one has closed its connection, the next node of that name is welcome."""
    with trio.fail_after(10):
        async with same_name() as (alpha, one, two):
            connection = await one.connect(ALPHA)
            await connection.aclose()
            await two.connect(ALPHA)
            await wait_for(lambda: BETA in alpha.connections)
            assert alpha.connections[BETA].peer.incarnation == two.incarnation


async def test_a_dial_that_hangs_yields_to_a_connection_that_comes_in(
    node: NodeFactory, route_to: Callable[..., Route], resolve: Callable[..., None]
) -> None:
    """One direction is blocked: a caller that waits there gets the connection that came in the other way, at once."""
    resolve("blocked.test", None)
    with trio.fail_after(5):
        async with node("alpha@localhost") as alpha, node("beta@localhost") as beta, trio.open_nursery() as nursery:
            alpha.add_route("beta@localhost", Route(host="blocked.test"))
            got: list[Connection] = []

            async def connect() -> None:
                got.append(await alpha.connect("beta@localhost"))

            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            await beta.connect("alpha@localhost", route_to(alpha))
            while not got:
                await trio.lowlevel.checkpoint()
            assert got == [alpha.connections["beta@localhost"]]
            assert not core_of(got[0]).link.dialled
