"""Ends that tell the truth: a call that did not run says so, or runs on another connection; others were answered."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from effort import effort
from trionode import (
    AcceptorOptions,
    EndReason,
    HandshakeError,
    LiveConnections,
    NodeName,
    RemoteCode,
    RemoteError,
    Renew,
    _protocol as wire,
    call_typed,
    typed_service,
)
from trionode._connection.closing import ACKNOWLEDGE_GRACE
from trionode._connection.connection import core_of
from trionode._connection.send_queue import Outbox
from trionode._handshake.collisions import Arbiter
from trionode._node.dialer import Dialer
from trionode._node.renewal import Renewal
from trionode.discovery import StaticResolver
from trionode.testing import MemoryNetwork, cancel_at_every_checkpoint, node_factory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedFactory, ScriptedListener, ScriptedPeer

    from trionode import Connection, Node, Peer, Route, ServiceChannel

ALPHA, BETA = NodeName.parse("alpha@a.example"), NodeName.parse("beta@b.example")
CALLERS: Final = 8


class RefusedAtOnceError(Exception):
    """A call that was not even begun: the connection that its caller kept takes none any more."""


class Ledger:
    """What was asked, what ran, and what became of it.

    Attributes:
        ran: how often each request ran.
        outcomes: how many calls ended how.
        over: set to have the callers stop.
    """

    def __init__(self) -> None:
        self.ran: Counter[bytes] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.over = False
        self._asked = 0

    async def serve(self, channel: ServiceChannel) -> None:
        """Note that a request runs, take some time over it, and answer."""
        request = await channel.receive()
        self.ran[request] += 1
        await trio.sleep(0.003 * (len(self.ran) % 3))
        await channel.send(request)

    async def ask(self, call: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Make one call, and hold what it ends with against what ran."""
        self._asked += 1
        request = b"%d" % self._asked
        try:
            assert await call(request) == request
        except RemoteError as exc:
            assert exc.not_run
            assert exc.code in (RemoteCode.SHUTTING_DOWN, RemoteCode.NOT_TAKEN)
            assert request not in self.ran
            self.outcomes["not run"] += 1
        except HandshakeError:
            assert request not in self.ran
            self.outcomes["not reached"] += 1
        except RefusedAtOnceError:
            assert request not in self.ran
        except trio.ClosedResourceError:
            self.outcomes["closed here"] += 1
        except trio.BrokenResourceError:
            self.outcomes["ambiguous"] += 1
        else:
            assert self.ran[request] == 1
            self.outcomes["answered"] += 1

    async def keep_asking(self, call: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Make calls until it is over."""
        while not self.over:
            await self.ask(call)
            await trio.sleep(0.001)

    def check(self, *allowed: str) -> None:
        """Nothing ran twice, and calls ended as they may."""
        assert set(self.outcomes) <= {"answered", *allowed}, self.outcomes
        assert self.outcomes["answered"] > CALLERS
        assert max(self.ran.values()) == 1


def across(alpha: Node) -> Callable[[bytes], Awaitable[bytes]]:
    """Calls by name, over whatever connection there is."""

    async def call(request: bytes) -> bytes:
        return await alpha.call(BETA, "serve", request)

    return call


def over_each(alpha: Node) -> Callable[[bytes], Awaitable[bytes]]:
    """Calls over a connection that was asked for some time before, as programs do that keep one."""
    kept: list[Connection] = []

    async def call(request: bytes) -> bytes:
        if not kept or not kept[0].live:
            kept[:] = [await alpha.connect(BETA)]
        connection = kept[0]
        await trio.sleep(0.002)
        began = trio.current_time()
        try:
            return await connection.call("serve", request)
        except RemoteError as exc:
            if trio.current_time() > began:
                raise
            assert exc.not_run
            raise RefusedAtOnceError from exc

    return call


WAYS: Final = {"by name": across, "over a connection": over_each}


@asynccontextmanager
async def under_load(
    node: NodeFactory, way: str, *, live_connections: LiveConnections | None = None, seed: int = 1
) -> AsyncIterator[tuple[Ledger, Node, Node]]:
    """Alpha's callers at work on beta, over a network with latency; gives the ledger and both nodes."""
    network = MemoryNetwork(latency=0.01, jitter=0.005, seed=seed)
    ledger = Ledger()
    async with (
        node(
            str(BETA),
            transport=network.host("b.example"),
            acceptors=(),
            services={"serve": ledger.serve},
            live_connections=live_connections,
        ) as beta,
        node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha,
        trio.open_nursery() as nursery,
    ):
        await alpha.connect(BETA)
        for _ in range(CALLERS):
            nursery.start_soon(ledger.keep_asking, WAYS[way](alpha))
        await trio.sleep(0.1)
        yield ledger, alpha, beta
        await trio.sleep(0.1)
        ledger.over = True


async def end_each(beta: Node, how: Callable[[Connection], Awaitable[None]]) -> None:
    """End the connection with alpha some times over."""
    for _ in range(6):
        await trio.sleep(0.05)
        with suppress(KeyError):
            await how(beta.connections[ALPHA])


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("way", WAYS)
class TestEndings:
    """One for each way to end a connection."""

    async def test_draining_a_connection(self, node: NodeFactory, way: str) -> None:
        """What crossed with it is served."""
        async with under_load(node, way) as (ledger, _, beta):
            await end_each(beta, lambda connection: connection.drain())
        ledger.check()

    async def test_closing_what_was_rotated(self, node: NodeFactory, manager: ManagerFactory, way: str) -> None:
        """`Renew.CLOSE` is a drain with a bound."""
        close = LiveConnections(on_rotation=Renew.CLOSE, within=0.02, grace=5)
        async with under_load(node, way, live_connections=close) as (ledger, _, beta):
            for _ in range(6):
                await trio.sleep(0.05)
                beta.options.cert_manager.update(manager(str(BETA)).key_pair)
        ledger.check()

    async def test_closing_a_connection_at_once(self, node: NodeFactory, way: str) -> None:
        """What was being served may have run, and only that is said to."""
        async with under_load(node, way) as (ledger, _, beta):
            await end_each(beta, lambda connection: connection.aclose())
        ledger.check("ambiguous", *(["not run"] if way == "over a connection" else []))
        assert bool(ledger.outcomes["not run"]) is (way == "over a connection")

    async def test_closing_on_the_callers_side(self, node: NodeFactory, way: str) -> None:
        """Who closes knows it by `ClosedResourceError`, and a call by name that comes later goes elsewhere."""
        async with under_load(node, way) as (ledger, alpha, _):
            for _ in range(6):
                await trio.sleep(0.05)
                with suppress(KeyError):
                    await alpha.connections[BETA].aclose()
        ledger.check("closed here")

    async def test_draining_on_the_callers_side(self, node: NodeFactory, way: str) -> None:
        """It waits for the answers of its own calls."""
        async with under_load(node, way) as (ledger, alpha, _):
            for _ in range(6):
                await trio.sleep(0.05)
                with suppress(KeyError):
                    await alpha.connections[BETA].drain()
        ledger.check(*(["closed here"] if way == "over a connection" else []))


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["drained", "left"])
async def test_a_rolling_restart(node: NodeFactory, how: str, way: str) -> None:
    """A successor takes over under load, several times: each call is answered, or certainly did not run."""
    network = MemoryNetwork(latency=0.01, jitter=0.005, seed=2)
    host, ledger = network.host("b.example"), Ledger()

    async def generation(*, task_status: trio.TaskStatus[trio.Event]) -> None:
        go = trio.Event()
        options = [AcceptorOptions(host="b.example", port=15000)]
        async with node(
            str(BETA), transport=host, acceptors=options, services={"serve": ledger.serve}, shutdown_grace=5
        ) as beta:
            task_status.started(go)
            await go.wait()
            if how == "drained":
                await beta.drain()

    async with (
        node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha,
        trio.open_nursery() as nursery,
    ):
        go = await nursery.start(generation)
        await alpha.connect(BETA)
        for _ in range(CALLERS):
            nursery.start_soon(ledger.keep_asking, WAYS[way](alpha))
        for _ in range(5):
            await trio.sleep(0.4)
            go.set()
            while host.listening:  # noqa: ASYNC110 -- until the successor can have the port
                await trio.sleep(0.001)
            go = await nursery.start(generation)
        await trio.sleep(0.1)
        ledger.over = True
        go.set()
    # A connection may come through just as the node leaves: it is turned away, and calls by name go elsewhere.
    ledger.check("not reached", *(["not run"] if way == "over a connection" else []))


@pytest.mark.usefixtures("jumping_clock")
async def test_a_rotation_has_nothing_to_do_with_what_drains(
    node: NodeFactory, manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends anyway: its turn, once passed, is not looked at again and again."""
    looks, look = 0, Renewal._look

    def counting(self: Renewal, *args: Any) -> None:
        nonlocal looks
        looks += 1
        assert looks < 100
        look(self, *args)

    monkeypatch.setattr(Renewal, "_look", counting)
    close = LiveConnections(on_rotation=Renew.CLOSE, within=0.02)
    async with under_load(node, "by name", live_connections=close) as (_, alpha, beta), trio.open_nursery() as nursery:
        async with alpha.open_channel(BETA, "serve"):  # says nothing, so the drain waits for it
            nursery.start_soon(beta.connections[ALPHA].drain)
            await trio.sleep(0.1)
            beta.options.cert_manager.update(manager(str(BETA)).key_pair)
            await trio.sleep(1)


# Interleavings ------------------------------------------------------------------------------------------------------

HOWS: Final = ["drain", "aclose", "renew", "drain of the caller", "aclose of the caller", "node drain"]


@settings(max_examples=effort(25))
@given(
    seed=st.integers(0, 10**6),
    plan=st.lists(
        st.tuples(st.sampled_from(HOWS), st.floats(0, 0.08), st.none() | st.floats(0, 0.05)), min_size=1, max_size=5
    ),
)
def test_whatever_ends_whenever(seed: int, plan: list[tuple[str, float, float | None]]) -> None:
    """Ends of all kinds, cancelled at any time, on a jittery network: no call lies about whether it ran."""
    trio.run(play, seed, plan, clock=trio.testing.MockClock(autojump_threshold=0))


async def play(seed: int, plan: list[tuple[str, float, float | None]]) -> None:
    """Bring a plan about: what ends, after how long, and after how long that is cancelled."""
    network, ledger = MemoryNetwork(latency=0.01, jitter=0.01, seed=seed), Ledger()
    factory = node_factory(network=network)
    close = LiveConnections(on_rotation=Renew.CLOSE, within=0.01, grace=0.02)
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            alpha, beta = await stack.enter_async_context(
                factory.cluster("alpha", "beta", services={"serve": ledger.serve}, live_connections=close)
            )
            nursery = await stack.enter_async_context(trio.open_nursery())

            async def call(request: bytes) -> bytes:
                return await alpha.call(beta.name, "serve", request)

            for _ in range(3):
                nursery.start_soon(ledger.keep_asking, call)
            for how, after, patience in plan:
                await trio.sleep(after)
                with trio.move_on_after(float("inf") if patience is None else patience), suppress(KeyError):
                    if how == "renew":
                        certs = beta.options.cert_manager
                        certs.update(certs.key_pair)
                    elif how == "node drain":
                        await beta.drain()
                    else:
                        at, to = (alpha, beta) if "caller" in how else (beta, alpha)
                        connection = at.connections[to.name]
                        await (connection.aclose() if "aclose" in how else connection.drain())
            await trio.sleep(0.1)
            ledger.over = True
    assert all(times == 1 for times in ledger.ran.values())
    abrupt = any("aclose" in how or patience is not None or how == "renew" for how, _, patience in plan)
    assert abrupt or not ledger.outcomes["ambiguous"]


# What the peer says, frame by frame ---------------------------------------------------------------------------------


async def calls_cut_by(scripted: ScriptedFactory, *frames: bytes) -> list[Exception]:
    """What three calls end with, each on a channel of its own (1, 3 and 5), when the peer says this."""
    failed: dict[int, Exception] = {}
    async with scripted(dialled=True) as scene, trio.open_nursery() as nursery:

        async def call(number: int) -> None:
            try:
                await scene.connection.call("serve", b"x")
            except (RemoteError, trio.BrokenResourceError) as exc:
                failed[number] = exc

        for number in range(3):
            nursery.start_soon(call, number)
            for _ in range(3):
                await scene.peer.frame()
        await scene.say(*frames)
        await scene.connection.wait_closed()
    return [failed[number] for number in range(3)]


def goodbye(**last: Any) -> bytes:
    """A GOODBYE; without `last`, as older releases say it."""
    return wire.control(wire.GOODBYE, 0, wire.Goodbye(code="closed", **last))


async def test_a_goodbye_says_what_was_taken(scripted: ScriptedFactory) -> None:
    """Up to its last channel they may have run; beyond it they did not."""
    first, *others = await calls_cut_by(scripted, goodbye(last=1))
    assert type(first) is trio.BrokenResourceError
    for each in others:
        assert isinstance(each, RemoteError)
        assert (each.code, each.not_run) == (RemoteCode.NOT_TAKEN, True)
        assert "alpha@localhost closed the connection: closed" in str(each.__cause__)


@pytest.mark.parametrize(("last", "certain"), [(0, 3), (5, 0), (2**32 - 1, 0)])
async def test_a_goodbye_of_nothing_and_of_everything(scripted: ScriptedFactory, last: int, certain: int) -> None:
    """None was taken, all were, or a number that there is none of."""
    failed = await calls_cut_by(scripted, goodbye(last=last))
    assert sum(isinstance(each, RemoteError) for each in failed) == certain


async def test_a_peer_of_an_older_release_does_not_say(scripted: ScriptedFactory) -> None:
    """Then every call may have run."""
    failed = await calls_cut_by(scripted, goodbye())
    assert {type(each) for each in failed} == {trio.BrokenResourceError}


async def test_a_channel_that_waits_for_its_turn_is_told_that_it_comes_to_nothing(scripted: ScriptedFactory) -> None:
    """One service runs, two wait; the connection ends: what waits did not run, and the peer is told so."""
    async with scripted(services={"wait": wait_for_the_end}, max_channels=1) as scene:
        for channel in (1, 3, 5):
            await scene.say(wire.control(wire.OPEN, channel, wire.Open(service="wait")))
        await scene.say(wire.header(wire.CLOSE, 5, 0))  # this one has sent all that it wants to, and will be served
        await scene.answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.connection.aclose)
            kind, channel, payload = await scene.peer.frame(wire.RESET)
            reset = wire.decode(wire.End, payload)
            assert (channel, reset.code, reset.not_run) == (3, RemoteCode.SHUTTING_DOWN, True)
            kind, _, payload = await scene.peer.frame()
            assert (kind, wire.decode(wire.Goodbye, payload).last) == (wire.GOODBYE, 5)
            await scene.peer.stream.aclose()


async def wait_for_the_end(channel: ServiceChannel) -> None:
    """A service that ends with its channel."""
    async for _ in channel:
        pass


async def test_what_never_left_did_not_run(open_pair: PairFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is lost while requests wait to be written: which ran is known of these, and by name they run on."""
    ledger, stuck = Ledger(), trio.Event()
    ended: dict[bytes, Exception | bytes] = {}

    async def never(_: bytes) -> None:
        stuck.set()
        await trio.sleep_forever()

    async with open_pair(beta={"services": {"serve": ledger.serve}}) as pair, trio.open_nursery() as nursery:
        connection = await pair.alpha.connect("beta@localhost")
        stream = core_of(connection).link.stream

        async def call(request: bytes, made: Awaitable[bytes]) -> None:
            try:
                ended[request] = await made
            except (RemoteError, trio.BrokenResourceError) as exc:
                ended[request] = exc

        monkeypatch.setattr(stream, "send_at_once", lambda *_, **__: False)
        monkeypatch.setattr(stream, "send_all", never)
        nursery.start_soon(call, b"1", connection.call("serve", b"1"))
        await stuck.wait()
        nursery.start_soon(call, b"2", connection.call("serve", b"2"))
        nursery.start_soon(call, b"3", pair.alpha.call("beta@localhost", "serve", b"3"))
        nursery.start_soon(call, b"4", pair.alpha.call("beta@*", "serve", b"4"))
        await trio.testing.wait_all_tasks_blocked()
        await stream.transport_stream.aclose()
    assert type(ended[b"1"]) is trio.BrokenResourceError
    certain = ended[b"2"]
    assert isinstance(certain, RemoteError)
    assert (certain.code, certain.not_run) == (RemoteCode.NOT_TAKEN, True)
    # A glob matches what is connected, and nothing is by then, unless the other call has connected anew.
    assert ended[b"3"] == b"3"
    assert ended[b"4"] == b"4" or getattr(ended[b"4"], "not_run", False)
    assert ledger.ran[b"1"] == ledger.ran[b"2"] == 0


@pytest.mark.parametrize("name", ["beta@localhost", "b*@localhost"])
@pytest.mark.parametrize("verb", ["call", "open_channel"])
@pytest.mark.parametrize("end", ["drain", "aclose"])
async def test_what_waited_for_room_goes_on_elsewhere(
    open_pair: PairFactory, monkeypatch: pytest.MonkeyPatch, name: str, verb: str, end: str
) -> None:
    """With metadata a request waits where much is to be written; the connection may be drained or closed meanwhile."""
    metadata, answers = {"k": "v"}, list[bytes]()
    ledger, crowded = Ledger(), list[Outbox]()
    monkeypatch.setattr(Outbox, "full", property(lambda self: self in crowded))

    async def request(alpha: Node) -> None:
        if verb == "call":
            answers.append(await alpha.call(name, "serve", b"1", metadata=metadata))
            return
        async with alpha.open_channel(name, "serve", metadata=metadata) as channel:
            await channel.send(b"1")
            answers.append(await channel.receive())

    with trio.fail_after(20):
        async with (
            open_pair(
                alpha={"resolver": StaticResolver({"beta@localhost": "localhost"})},  # names it; there is a route
                beta={"services": {"serve": ledger.serve}},
            ) as pair,
            trio.open_nursery() as nursery,
        ):
            while not pair.alpha.members("*"):
                await trio.lowlevel.checkpoint()
            connection = await pair.alpha.connect("beta@localhost")
            outbox = core_of(connection).outbox
            crowded.append(outbox)
            nursery.start_soon(request, pair.alpha)
            while not outbox.room:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(getattr(connection, end))
            while connection.live:
                await trio.lowlevel.checkpoint()
            crowded.clear()
            outbox.room.unpark_all()
    assert answers == [b"1"]
    assert ledger.ran[b"1"] == 1


async def test_a_service_cannot_say_that_it_did_not_run(open_pair: PairFactory) -> None:
    """What it raises itself is no proof: it ran."""

    async def refuse(channel: ServiceChannel) -> None:
        raise RemoteError("not now", code=RemoteCode.SHUTTING_DOWN, not_run=True)

    async with open_pair(beta={"services": {"refuse": refuse}}) as pair:
        with pytest.raises(RemoteError) as refused:
            await pair.alpha.call("beta@localhost", "refuse", b"")
    assert (refused.value.code, refused.value.not_run) == (RemoteCode.SHUTTING_DOWN, False)


async def test_who_ends_each_connection_at_once_is_not_tried_for_ever(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """Some connections, then the caller is told."""
    certs, accepted = manager("beta@localhost"), 0

    async def turn_away() -> None:
        nonlocal accepted
        while True:
            peer = await scripted_listener.accept(certs)
            await peer.greet("beta@localhost", incarnation=accepted)
            accepted += 1
            await peer.stream.send_all(goodbye(last=0))
            await peer.stream.aclose()

    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery:
            nursery.start_soon(turn_away)
            alpha.add_route("beta@localhost", scripted_listener.route())
            for _ in range(2):
                before = accepted
                with pytest.raises(RemoteError) as refused:
                    await alpha.call("beta@localhost", "serve", b"")
                assert refused.value.not_run
                assert 1 <= accepted - before <= 5
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("how", ["times out", "shed"])
async def test_a_dialer_that_confirms_too_late(node: NodeFactory, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The acceptor has given it up: what is called on that link provably does not run, and by name, on the next."""
    may_confirm, late, ledger = Arbiter.may_confirm, True, Ledger()
    network = MemoryNetwork(latency=0.01)

    async def hesitate(self: Arbiter, peer: Peer, *, replace: bool) -> None:
        await may_confirm(self, peer, replace=replace)
        if late and peer.name == BETA:
            await trio.sleep(0.5)

    monkeypatch.setattr(Arbiter, "may_confirm", hesitate)
    acceptor = AcceptorOptions(
        host="b.example",
        port=15000,
        handshake_timeout=0.3 if how == "times out" else 10,
    )
    async with (
        node(
            str(BETA),
            transport=network.host("b.example"),
            acceptors=[acceptor],
            max_handshakes=512 if how == "times out" else 1,
            services={"serve": ledger.serve},
        ) as beta,
        node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha,
        trio.open_nursery() as nursery,
    ):
        if how == "shed":

            async def come_between() -> None:
                await trio.sleep(0.3)
                async with await network.host("c.example").connect("b.example", 15000):
                    await trio.sleep(0.01)

            nursery.start_soon(come_between)
        connection = await alpha.connect(BETA)
        with pytest.raises(RemoteError) as refused:
            await connection.call("serve", b"1")
        assert (refused.value.code, refused.value.not_run) == (RemoteCode.NOT_TAKEN, True)
        assert (await connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER
        late = False
        assert await alpha.call(BETA, "serve", b"2") == b"2"
        assert not ledger.ran[b"1"]
        assert beta.acceptors[0].statistics().established == 1


@pytest.mark.parametrize("verb", ["call", "open_channel"])
async def test_a_connection_that_ends_before_it_is_used(
    open_pair: PairFactory, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """It was dialled, and closed here before its caller's turn: another one is made, whatever that one raises."""
    dialled: list[Connection] = []
    dial = Dialer.dial

    async def short_lived(self: Dialer, name: NodeName, route: Route | None, *, opening: bool) -> Connection:
        connection = await dial(self, name, route, opening=opening)
        dialled.append(connection)
        if len(dialled) < 3:
            core_of(connection).end(EndReason.CLOSED)
        return connection

    ledger = Ledger()
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"serve": ledger.serve}}) as pair:
            monkeypatch.setattr(Dialer, "dial", short_lived)
            if verb == "call":
                assert await pair.alpha.call("beta@localhost", "serve", b"x") == b"x"
            else:
                async with pair.alpha.open_channel("beta@localhost", "serve") as channel:
                    await channel.send(b"x")
                    assert await channel.receive() == b"x"
    assert len(dialled) == 3


# Typed calls, and links that come too late --------------------------------------------------------------------------


class Question(msgspec.Struct):
    """A typed request."""

    text: str


async def test_typed_calls_go_elsewhere_too(open_pair: PairFactory) -> None:
    """As calls of bytes do: none fails, though each connection is drained."""

    async def answer(question: Question) -> str:
        return question.text.upper()

    services = {"answer": typed_service(answer, request=Question)}
    with trio.fail_after(10):
        async with open_pair(beta={"services": services}) as pair, trio.open_nursery() as nursery:

            async def ask() -> None:
                for _ in range(30):
                    reply = await call_typed(pair.alpha, "beta@localhost", "answer", Question(text="what"), reply=str)
                    assert reply == "WHAT"

            await pair.alpha.connect("beta@localhost")
            for _ in range(5):
                nursery.start_soon(ask)
            for _ in range(5):
                await trio.sleep(0.005)
                for connection in list(pair.beta.connections.values()):
                    await connection.drain()


async def test_a_link_that_comes_through_too_late_is_told(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """It was accepted, and confirms once the node takes nothing on: its peer hears that nothing was taken."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            await peer.say(peer.hello("alpha@localhost"))
            assert (await peer.hear(wire.Answer)).refusal is None
            beta._runtime.close()
            opened = wire.control(wire.OPEN, 1, wire.Open(service="serve"))
            await peer.stream.send_all(wire.encode_hello(wire.Confirmation()) + opened)
            _, _, payload = await peer.frame(wire.GOODBYE)
            said = wire.decode(wire.Goodbye, payload)
            assert (said.code, said.last) == ("shutting_down", 0)
            await peer.stream.aclose()


# Cancelled anywhere -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("how", ["drain", "aclose"])
async def test_an_end_that_is_cancelled_anywhere(node: NodeFactory, how: str) -> None:
    """Whatever it was about to do: the connection ends, and no call that was on its way is left or lied to."""
    network, ledger = MemoryNetwork(latency=0.01), Ledger()
    async with (
        node(str(BETA), transport=network.host("b.example"), acceptors=(), services={"serve": ledger.serve}) as beta,
        node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha,
    ):
        for attempt in cancel_at_every_checkpoint():
            connection = await alpha.connect(BETA)
            await ledger.ask(across(alpha))
            theirs = core_of(beta.connections[ALPHA])
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ledger.ask, lambda request: connection.call("serve", request))  # noqa: B023
                await trio.sleep(0.001)  # under way
                with attempt:
                    await getattr(beta.connections[ALPHA], how)()
            await theirs.wait_closed()
            await connection.wait_closed()
        assert not beta.statistics().services
    assert max(ledger.ran.values()) == 1


@pytest.mark.usefixtures("jumping_clock")
async def test_a_call_that_is_cancelled_while_it_looks_for_another_connection(node: NodeFactory) -> None:
    """It leaves nothing behind, whatever it was about to do."""
    network, ledger = MemoryNetwork(latency=0.01), Ledger()
    async with (
        node(str(BETA), transport=network.host("b.example"), acceptors=(), services={"serve": ledger.serve}) as beta,
        node(str(ALPHA), transport=network.host("a.example"), acceptors=()) as alpha,
    ):
        for number, attempt in enumerate(cancel_at_every_checkpoint()):
            await ledger.ask(across(alpha))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(beta.connections[ALPHA].aclose)
                await trio.sleep(0.001)  # its goodbye is on the way
                with attempt:
                    assert await alpha.call(BETA, "serve", b"n%d" % number) == b"n%d" % number
            await trio.sleep(1)
            assert alpha.statistics().channels == beta.statistics().services == 0
            assert ledger.ran[b"n%d" % number] <= 1


async def test_a_peer_that_never_acknowledges_holds_up_neither_leaving_nor_closing(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory
) -> None:
    """Leaving takes the grace that it was given, not the patience with the acknowledgement."""
    began = trio.current_time()
    async with node("beta@localhost", shutdown_grace=0.4) as beta:
        peer = await scripted_dial(beta, manager("alpha@localhost"))
        await peer.introduce("alpha@localhost")
        while not beta.connections:  # noqa: ASYNC110 -- it is its turn soon
            await trio.sleep(0.001)
    assert trio.current_time() - began < ACKNOWLEDGE_GRACE
    _, _, payload = await peer.frame(wire.GOODBYE)
    assert wire.decode(wire.Goodbye, payload).last == 0
    await trio.aclose_forcefully(peer.stream)
