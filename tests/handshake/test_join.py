"""Joining a link to a connection, by hand: honest peers, and all kinds of others, against a real node."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import (
    AcceptorOptions,
    ConnectionDown,
    EndReason,
    HandedOver,
    HandOverFailed,
    HandshakeError,
    HandshakeRefused,
    NodeName,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    _protocol as wire,
)
from trionode._connection import hand_over as _hand_over
from trionode._connection.connection import core_of
from trionode._connection.link import connection_id
from trionode._handshake.cookie import dialer_proof
from trionode._handshake.join import Ends, join_proof
from trionode._tls.stream import SessionStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, ScriptedListener, ScriptedPeer

    from trionode import CertManager, Connection, Node, Peer, ServiceChannel

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")

SWITCH = wire.header(wire.SWITCH, 0, 0)
RENEW = wire.header(wire.RENEW, 0, 0)
PING = wire.header(wire.PING, 0, 8) + b"12345678"


async def echo(channel: ServiceChannel) -> None:
    """Send everything back."""
    async for message in channel:
        await channel.send(message)


def session(peer: ScriptedPeer) -> SessionStream:
    """The TLS session of a scripted peer."""
    assert isinstance(peer.stream, SessionStream)
    return peer.stream


async def hang_up(peers: list[ScriptedPeer]) -> None:
    """Close the test's own sockets."""
    for peer in peers:
        await trio.aclose_forcefully(session(peer))


def proof(
    old: ScriptedPeer, new: ScriptedPeer, ends: Ends, *, dialling: bool, attempt: int = 1, answers: bytes | None = None
) -> bytes:
    """An honest proof."""
    return join_proof(
        session(old),
        session(new),
        connection=connection_id(session(old)),
        attempt=attempt,
        ends=ends,
        dialling=dialling,
        answers=answers,
    )


# A scripted dialer, against a real acceptor -------------------------------------------------------------------------


class Dialer:
    """The node alpha, by hand, with one connection to beta."""

    def __init__(self, beta: Node, certs: CertManager, dial: Callable[..., Awaitable[ScriptedPeer]]) -> None:
        self.beta = beta
        self.certs = certs
        self.ends = Ends(ALPHA, 1, BETA, beta.incarnation)
        self._dial = dial
        self.peers: list[ScriptedPeer] = []

    async def connect(self, **hello: Any) -> None:
        """Make the connection."""
        self.first = await self.dial()
        await self.first.introduce(str(ALPHA), **hello)
        await trio.testing.wait_all_tasks_blocked(0.01)

    @property
    def connection(self) -> Connection:
        """The connection, at beta."""
        [connection] = [*self.beta.connections.values(), *self.beta.unverified_connections]
        return connection

    async def dial(self, certs: CertManager | None = None) -> ScriptedPeer:
        """A second session."""
        self.peers.append(await self._dial(self.beta, certs or self.certs))
        return self.peers[-1]

    def join(self, second: ScriptedPeer, attempt: int = 1, **wrong: Any) -> wire.Join:
        """What an honest dialer says, but for what is wrong."""
        honest = {
            "connection": connection_id(session(self.first)),
            "attempt": attempt,
            "proof": proof(self.first, second, self.ends, dialling=True, attempt=attempt),
        }
        return wire.Join(**{**honest, **wrong})

    async def ask(self, second: ScriptedPeer, join: wire.Join, name: str = str(ALPHA), **hello: Any) -> wire.Answer:
        """Ask for the hand-over."""
        await second.say(second.hello(name, join=join, **hello))
        answer = await second.hear(wire.Answer)
        if answer.refusal is not None:
            await second.stream.aclose()
        return answer

    async def let_in(self, attempt: int = 1) -> ScriptedPeer:
        """A second link, up to the commit."""
        second = await self.dial()
        join = self.join(second, attempt)
        answer = await self.ask(second, join)
        assert answer.refusal is None
        expected = proof(self.first, second, self.ends, dialling=True, attempt=attempt, answers=join.proof)
        assert answer.join == expected, "the acceptor proves itself in turn"
        return second

    async def check_unharmed(self) -> None:
        """The connection goes on as it was, on its old link."""
        await self.first.stream.send_all(PING)
        assert (await self.first.frame(wire.PONG))[2] == b"12345678"
        assert self.connection.live


@dataclass
class World:
    """A real acceptor, what it reports, and a dialer by hand."""

    beta: Node
    dialer: Dialer
    events: Any

    async def event(self, kind: type) -> Any:
        """The next report of a kind."""
        with trio.fail_after(10):
            async for event in self.events:
                if isinstance(event, kind):
                    return event
        raise AssertionError("the node ended")


@pytest.fixture
def world(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> Callable[..., Any]:
    """Opens beta, and connects a scripted alpha to it."""

    @asynccontextmanager
    async def make(hello: dict[str, Any] | None = None, **beta: Any) -> AsyncIterator[World]:
        with trio.fail_after(20):
            async with (
                node("beta@localhost", **{"services": {"echo": echo}, "shutdown_grace": 0, **beta}) as opened,
                opened.events() as events,
            ):
                dialer = Dialer(opened, manager("alpha@localhost", "other@localhost"), scripted_dial)
                await dialer.connect(**(hello or {}))
                yield World(opened, dialer, events)
                await hang_up(dialer.peers)

    return make


async def test_an_honest_join(world: Callable[..., Any]) -> None:
    """SWITCH on the old link, the confirmation and everything after it on the new: frames stay in order."""
    async with world() as w:
        second = await w.dialer.let_in()
        first: ScriptedPeer = w.dialer.first
        opened = wire.control(wire.OPEN, 1, wire.Open(service="echo"))
        await second.stream.send_all(
            wire.encode_hello(wire.Confirmation()) + wire.header(wire.MESSAGE, 1, 3) + b"two" + PING
        )
        with trio.move_on_after(0.05) as early:
            await second.frame()
        assert early.cancelled_caught, "nothing of the new link is parsed before SWITCH was read on the old one"
        await first.stream.send_all(opened + wire.header(wire.MESSAGE, 1, 3) + b"one" + SWITCH)
        assert (await first.frame())[0] == wire.SWITCH
        got = [payload for kind, _, payload in [await second.frame() for _ in range(3)] if kind == wire.MESSAGE]
        assert got == [b"one", b"two"]
        await first.stream.send_eof()
        await first.hear_end()
        await w.event(HandedOver)
        assert w.dialer.connection.statistics().hand_overs == 1
        # The connection is on the very session that joined.
        link = core_of(w.dialer.connection).link
        assert connection_id(link.stream) == connection_id(session(second))


def tampered_proof(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """Some other bytes."""
    return dialer.join(second, proof=bytes(32))


def empty_proof(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """Nothing."""
    return dialer.join(second, proof=b"")


def other_connection(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """Some other connection."""
    return dialer.join(second, connection=bytes(16))


def turned_round(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """The acceptor's own proof."""
    honest = dialer.join(second)
    answer = proof(dialer.first, second, dialer.ends, dialling=True, answers=honest.proof)
    return dialer.join(second, proof=answer)


def other_attempt(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """A proof for the next attempt."""
    return dialer.join(second, proof=dialer.join(second, attempt=2).proof)


def one_session_only(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """A proof by a program that has the new session only."""
    return dialer.join(second, proof=proof(second, second, dialer.ends, dialling=True))


def number_zero(dialer: Dialer, second: ScriptedPeer) -> wire.Join:
    """A number that is not higher than any."""
    return dialer.join(second, attempt=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (tampered_proof, "proof"),
        (empty_proof, "proof"),
        (other_connection, "no connection"),
        (turned_round, "proof"),
        (other_attempt, "proof"),
        (one_session_only, "proof"),
        (number_zero, "repeats attempt 0"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_join_that_proves_nothing(
    world: Callable[..., Any], wrong: Callable[[Dialer, ScriptedPeer], wire.Join], words: str
) -> None:
    """It is refused, whatever is wrong with it, and costs the connection nothing; a right one comes through then."""
    async with world() as w:
        second = await w.dialer.dial()
        answer = await w.dialer.ask(second, wrong(w.dialer, second))
        assert answer.refusal.code == "join"
        assert words in answer.refusal.message
        assert answer.join == b"", "nothing is proved to a dialer that proves nothing"
        refused = await w.event(HandshakeRefused)
        assert (refused.error.reason, refused.error.stage) == ("join", "hello")
        await w.dialer.check_unharmed()
        await w.dialer.let_in()


async def test_a_join_is_good_once(world: Callable[..., Any]) -> None:
    """An attempt that was let in, and came to nothing, cannot be repeated: not its number, not its bytes."""
    async with world() as w:
        second = await w.dialer.dial()
        hello = second.hello(str(ALPHA), join=w.dialer.join(second, attempt=5))
        await second.say(hello)
        assert (await second.hear(wire.Answer)).refusal is None
        await second.stream.aclose()
        replayed = await w.dialer.dial()
        await replayed.say(hello)
        answer = await replayed.hear(wire.Answer)
        assert "proof" in answer.refusal.message, "bytes that were good on one session are nothing on another"
        for attempt in (5, 4):
            again = await w.dialer.dial()
            answer = await w.dialer.ask(again, w.dialer.join(again, attempt=attempt))
            assert f"repeats attempt {attempt}" in answer.refusal.message
        await w.dialer.check_unharmed()
        await w.dialer.let_in(attempt=6)


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"incarnation": 2}, "restarted"),
        ({"name": "other@localhost"}, "no connection"),
        ({"verified": False}, "was verified when"),
    ],
    ids=["incarnation", "name", "mutual"],
)
async def test_another_peer_than_then(world: Callable[..., Any], hello: dict[str, Any], words: str) -> None:
    """A right proof does not help who is another than then, or is established less than then."""
    async with world() as w:
        second = await w.dialer.dial()
        answer = await w.dialer.ask(second, w.dialer.join(second), **hello)
        assert answer.refusal.code == "join"
        assert words in answer.refusal.message
        await w.dialer.check_unharmed()


async def test_the_proof_has_the_incarnations_in_it(world: Callable[..., Any]) -> None:
    """A dialer that means another incarnation of the acceptor has no proof for this one."""
    async with world() as w:
        second = await w.dialer.dial()
        ends = w.dialer.ends._replace(acceptor_incarnation=7)
        answer = await w.dialer.ask(
            second, w.dialer.join(second, proof=proof(w.dialer.first, second, ends, dialling=True))
        )
        assert "proof" in answer.refusal.message


async def test_another_acceptor(world: Callable[..., Any], node: NodeFactory) -> None:
    """What came in by one acceptor is not handed over by another, which may ask for less."""
    acceptors = [AcceptorOptions(host="127.0.0.1", port=0) for _ in range(2)]
    async with world(acceptors=acceptors) as w:
        front, w.beta._acceptors.opened = w.beta.acceptors, w.beta.acceptors[1:]
        second = await w.dialer.dial()
        answer = await w.dialer.ask(second, w.dialer.join(second))
        assert "no connection" in answer.refusal.message
        w.beta._acceptors.opened = front
        await w.dialer.let_in()


async def test_authorize_is_asked_again(world: Callable[..., Any]) -> None:
    """A peer that `authorize` would not let in any more cannot move either; nor what it proves is spent in vain."""
    allowed = True

    def authorize(peer: Peer) -> None:
        if not allowed:
            raise Refused("not any more")

    async with world(authorize=authorize) as w:
        allowed = False
        second = await w.dialer.dial()
        answer = await w.dialer.ask(second, w.dialer.join(second))
        assert (answer.refusal.code, answer.refusal.message) == ("not_authorized", "not any more")
        await w.dialer.check_unharmed()
        allowed = True
        await w.dialer.let_in(attempt=2)


async def test_the_name_is_checked_again(world: Callable[..., Any], manager: ManagerFactory) -> None:
    """A certificate of the same CA that does not speak for the name any more is refused, proof or not."""
    async with world() as w:
        second = await w.dialer.dial(manager("omega@localhost"))
        answer = await w.dialer.ask(second, w.dialer.join(second))
        assert answer.refusal.code == "claimed_name"
        await w.dialer.check_unharmed()


async def test_the_certificate_is_verified_again(
    world: Callable[..., Any], manager: ManagerFactory, rogue_ca: Any
) -> None:
    """A certificate of another CA does not come through TLS."""
    async with world() as w:
        second = await w.dialer.dial(manager("alpha@localhost", ca=rogue_ca))
        with pytest.raises((AssertionError, trio.BrokenResourceError)):
            await w.dialer.ask(second, w.dialer.join(second))
        assert (await w.event(HandshakeRefused)).error.reason == "unknown_ca"
        await w.dialer.check_unharmed()


async def test_the_cookie_is_asked_for_again(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A right proof of the connection does not stand in for one of the cookie, which is good for one session, too."""
    cookie = b"a shared secret of some length"
    async with node("beta@localhost", cookie=cookie, shutdown_grace=0) as beta:
        dialer = Dialer(beta, manager("alpha@localhost"), scripted_dial)

        def shown(peer: ScriptedPeer) -> bytes:
            return dialer_proof(cookie, session(peer), dialer=ALPHA, acceptor=BETA, incarnation=1, dialling=True)

        dialer.first = await dialer.dial()
        await dialer.first.introduce(str(ALPHA), proof=shown(dialer.first))
        await trio.testing.wait_all_tasks_blocked(0.01)
        for wrong in (b"", bytes(32), shown(dialer.first)):
            second = await dialer.dial()
            answer = await dialer.ask(second, dialer.join(second), proof=wrong)
            assert answer.refusal is not None
            assert answer.refusal.code == "cookie"
            await dialer.check_unharmed()
        second = await dialer.dial()
        assert (await dialer.ask(second, dialer.join(second), proof=shown(second))).refusal is None
        await hang_up(dialer.peers)


async def test_the_latest_of_several_joins(world: Callable[..., Any]) -> None:
    """One join at a time: a later one that proves itself takes the place of one that waits for its commit."""
    async with world() as w:
        second = await w.dialer.let_in(1)
        third = await w.dialer.let_in(2)
        await second.hear_end()
        await w.dialer.first.stream.send_all(SWITCH)
        await third.say(wire.Confirmation())
        assert (await w.dialer.first.frame())[0] == wire.SWITCH
        await third.stream.send_all(PING)
        assert (await third.frame())[0] == wire.PONG


async def test_a_join_that_is_never_committed(world: Callable[..., Any]) -> None:
    """It waits without a timer, one for each connection, and ends with that."""
    async with world(handshake_timeout=0.2) as w:
        second = await w.dialer.let_in()
        await trio.sleep(0.5)
        await w.dialer.check_unharmed()
        assert w.beta.acceptors[0].statistics().handshaking == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.dialer.connection.aclose)
            await second.hear_end()
            await w.dialer.first.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert w.beta.acceptors[0].statistics().handshaking == 0


async def test_the_dialer_changes_its_mind(world: Callable[..., Any]) -> None:
    """A refusal in the third message, or no third message: the connection goes on."""
    async with world() as w:
        second = await w.dialer.let_in(1)
        await second.say(wire.Confirmation(refusal=wire.Refusal(code="not_authorized", message="no")))
        await second.hear_end()
        third = await w.dialer.let_in(2)
        await third.stream.aclose()
        await w.dialer.check_unharmed()
        await w.dialer.let_in(3)


# From the commit on: failures of either link are the connection's

Sin = tuple[str, str, EndReason, str]
SINS: list[Sin] = [
    ("switch, and no join ever", "S", EndReason.PROTOCOL_ERROR, "no link that we agreed to"),
    ("switch, and the join goes away", "jSx", EndReason.LOST, "broke before it was there"),
    ("the join goes away, then switch", "jxS", EndReason.LOST, "broke before it was there"),
    ("a frame after switch", "jSpc", EndReason.PROTOCOL_ERROR, "after SWITCH"),
    ("half a frame after switch", "jShc", EndReason.PROTOCOL_ERROR, "after SWITCH"),
    ("a frame after switch, later", "jcSwp", EndReason.PROTOCOL_ERROR, "after SWITCH"),
    ("old link broken in place of switch", "jcwX", EndReason.LOST, ""),
    ("old link broken in place of its end", "jcSwX", EndReason.LOST, ""),
    ("end of the old link in place of switch", "jcwe", EndReason.LOST, "without a goodbye"),
    ("new link broken after the commit", "jcSwx", EndReason.LOST, ""),
    ("nonsense on the new link", "jcSwn", EndReason.PROTOCOL_ERROR, "unknown kind"),
    ("never an end of the old link", "jcSw", EndReason.LOST, "did not finish a hand-over"),
    ("never a switch", "jcw", EndReason.LOST, "did not finish a hand-over"),
]


@pytest.mark.parametrize(("steps", "reason", "words"), [sin[1:] for sin in SINS], ids=[sin[0] for sin in SINS])
async def test_half_a_hand_over(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, steps: str, reason: EndReason, words: str
) -> None:
    """A hand-over that is not gone through with as it has to be ends the connection; nothing goes on with a loss."""
    monkeypatch.setattr(_hand_over, "SETTLE_GRACE", 0.3)
    async with world() as w:
        first, second = w.dialer.first, None
        connection = w.dialer.connection
        async with connection.open_channel("anything") as channel:
            assert (await first.frame())[0] == wire.OPEN, "the peer may have taken it"
            together = b""  # what follows SWITCH comes in one piece with it
            for index, step in enumerate(steps):
                if step == "j":
                    second = await w.dialer.let_in()
                    continue
                if step in "Sph":
                    together += {"S": SWITCH, "p": PING, "h": PING[:5]}[step]
                    if steps[index + 1 : index + 2] in ("p", "h"):
                        continue
                    await first.stream.send_all(together)
                    together = b""
                elif step == "w":
                    while (await first.frame())[0] != wire.SWITCH:
                        pass
                elif step == "e":
                    await first.stream.send_eof()
                elif step == "X":
                    await trio.aclose_forcefully(session(first).transport_stream)
                elif second is not None and step == "x":
                    await trio.aclose_forcefully(session(second).transport_stream)
                elif second is not None and step == "c":
                    await second.say(wire.Confirmation())
                elif second is not None and step == "n":
                    await first.stream.send_eof()
                    await second.stream.send_all(b"\x7f" + bytes(7))
                await trio.sleep(0.02)
            down = await w.event(ConnectionDown)
            assert down.reason is reason
            assert words in str(down.error)
            with pytest.raises(trio.BrokenResourceError):
                await channel.receive()
        await trio.aclose_forcefully(session(first).transport_stream)
        if second is not None:
            await trio.aclose_forcefully(session(second).transport_stream)
        await connection.wait_closed()
        assert core_of(connection).ended


async def test_renew_is_the_acceptors_word(world: Callable[..., Any]) -> None:
    """A dialer that asks for a hand-over, which it could make itself, breaks the protocol."""
    async with world() as w:
        await w.dialer.first.stream.send_all(RENEW)
        down = await w.event(ConnectionDown)
        assert down.reason is EndReason.PROTOCOL_ERROR
        assert "dialled itself" in str(down.error)


async def test_by_hand_with_a_peer_that_never_does(world: Callable[..., Any]) -> None:
    """The acceptor's `reauthenticate()` asks, and is told in the end that nothing came of it."""
    async with world(handshake_timeout=0.1, connect_timeout=0.1) as w:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(partial(_fails_in_time, w.dialer.connection))
        failed = await w.event(HandOverFailed)
        assert (failed.cause, failed.connection) == ("by_hand", w.dialer.connection)
        await w.dialer.first.stream.send_all(PING)
        kinds: list[int] = []
        while not kinds or kinds[-1] != wire.PONG:
            kinds.append((await w.dialer.first.frame())[0])
        assert kinds.count(wire.RENEW) == 1, "it is asked once, however many tasks want it"


async def _fails_in_time(connection: Connection) -> None:
    with pytest.raises(HandshakeError, match="was asked to hand the connection over"):
        await connection.reauthenticate()


# A scripted acceptor, against a real dialer -------------------------------------------------------------------------


class Acceptor:
    """The node beta, by hand, with a connection from a real alpha."""

    def __init__(self, alpha: Node, listener: ScriptedListener, certs: CertManager, nursery: trio.Nursery) -> None:
        self.alpha = alpha
        self.listener = listener
        self.certs = certs
        self.nursery = nursery
        self.peers: list[ScriptedPeer] = []
        self.ends = Ends(ALPHA, alpha.incarnation, BETA, 1)

    async def meet(self) -> None:
        """Take alpha's dial."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.alpha.connect, BETA, self.listener.route())
            self.first = await self.listener.accept(self.certs)
            self.peers.append(self.first)
            await self.first.greet(str(BETA))
        self.connection = await self.alpha.connect(BETA)

    async def asked(self) -> tuple[ScriptedPeer, wire.Hello]:
        """Take its second link, up to what it asks."""
        second = await self.listener.accept(self.certs)
        self.peers.append(second)
        return second, await second.hear(wire.Hello)

    def answer(self, second: ScriptedPeer, hello: wire.Hello) -> bytes:
        """Check its proof, and give ours."""
        assert hello.join is not None
        prove = partial(proof, self.first, second, self.ends, dialling=False, attempt=hello.join.attempt)
        assert hello.join.proof == prove()
        return prove(answers=hello.join.proof)


@pytest.fixture
def met(node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener) -> Callable[..., Any]:
    """Opens alpha, and lets it connect to a scripted beta."""

    @asynccontextmanager
    async def make(**alpha: Any) -> AsyncIterator[Acceptor]:
        with trio.fail_after(20):
            async with (
                node("alpha@localhost", **{"shutdown_grace": 0, **alpha}) as opened,
                trio.open_nursery() as nursery,
            ):
                acceptor = Acceptor(opened, scripted_listener, manager("beta@localhost"), nursery)
                await acceptor.meet()
                yield acceptor
                await hang_up(acceptor.peers)
                nursery.cancel_scope.cancel()

    return make


async def fails(connection: Connection, kind: type[Exception], words: str) -> None:
    """A hand-over by hand that fails."""
    with pytest.raises(kind, match=words):
        await connection.reauthenticate()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"join": bytes(32)}, "did not prove"),
        ({"join": b""}, "did not prove"),
        ({"incarnation": 2}, "has restarted"),
        ({"verified": False}, "was verified when"),
        ({"name": "gamma@localhost"}, "the node there is"),
    ],
    ids=["wrong proof", "no proof", "incarnation", "mutual", "name"],
)
async def test_an_acceptor_that_is_not_the_one(met: Callable[..., Any], answer: dict[str, Any], words: str) -> None:
    """The dialer refuses an acceptor that is another than then, or does not prove that it is the same one."""
    async with met() as acceptor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, acceptor.connection, PeerUnverifiedError, words)
            second, hello = await acceptor.asked()
            honest = {"join": acceptor.answer(second, hello)}
            await second.say(second.answer(**{"name": str(BETA), **honest, **answer}))
            confirmation = await second.hear(wire.Confirmation)
            assert confirmation.refusal is not None
            await second.stream.aclose()
        await acceptor.first.stream.send_all(PING)
        assert (await acceptor.first.frame())[0] == wire.PONG
        assert acceptor.connection.live


async def test_an_acceptor_that_plays_its_part(met: Callable[..., Any]) -> None:
    """A second implementation, from the specification: SWITCH and the confirmation, then SWITCH, then both ends."""
    async with met() as acceptor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acceptor.connection.reauthenticate)
            second, hello = await acceptor.asked()
            await second.say(second.answer(str(BETA), join=acceptor.answer(second, hello)))
            assert (await second.hear(wire.Confirmation)).refusal is None
            assert (await acceptor.first.frame())[0] == wire.SWITCH
            await acceptor.first.stream.send_all(SWITCH)
            await acceptor.first.stream.send_eof()
            await acceptor.first.hear_end()
        await second.stream.send_all(PING)
        assert (await second.frame())[0] == wire.PONG
        assert acceptor.connection.statistics().hand_overs == 1


@pytest.mark.parametrize("first", [True, False], ids=["at once", "while alpha dials"])
async def test_an_acceptor_that_switches_by_itself(met: Callable[..., Any], first: bool) -> None:
    """Only the dialer commits: a SWITCH that comes before its own breaks the protocol."""
    async with met() as acceptor:
        async with trio.open_nursery() as nursery:
            if not first:
                nursery.start_soon(fails, acceptor.connection, trio.BrokenResourceError, "has ended")
                await acceptor.asked()
            await acceptor.first.stream.send_all(SWITCH)
            await core_of(acceptor.connection).wait_unusable()
            await acceptor.first.stream.aclose()
        assert (await acceptor.connection.wait_closed()).reason is EndReason.PROTOCOL_ERROR


@pytest.mark.parametrize("way", ["never switches", "breaks the new link", "breaks the old link", "leaves the old link"])
async def test_an_acceptor_that_stops_half_way(
    met: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """From the dialer's commit on, what fails is the connection."""
    monkeypatch.setattr(_hand_over, "SETTLE_GRACE", 0.3)
    async with met() as acceptor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, acceptor.connection, trio.BrokenResourceError, "has ended")
            second, hello = await acceptor.asked()
            await second.say(second.answer(str(BETA), join=acceptor.answer(second, hello)))
            await second.hear(wire.Confirmation)
            if way == "breaks the new link":
                await acceptor.first.stream.send_all(SWITCH)
                await trio.aclose_forcefully(session(second).transport_stream)
            elif way == "breaks the old link":
                await trio.aclose_forcefully(session(acceptor.first).transport_stream)
            elif way == "leaves the old link":
                await acceptor.first.stream.send_all(SWITCH)
        end = await acceptor.connection.wait_closed()
        assert end.reason is EndReason.LOST


async def test_an_acceptor_that_asks_all_the_time(met: Callable[..., Any]) -> None:
    """A hand-over that fails is tried again with back-off, however often it asks."""
    async with met() as acceptor:
        dials: list[float] = []

        async def refuse() -> None:
            while True:
                second, _ = await acceptor.asked()
                dials.append(trio.current_time())
                await second.say(wire.Answer(refusal=wire.Refusal(code="join", message="no")))
                await second.stream.aclose()

        acceptor.nursery.start_soon(refuse)
        async with acceptor.alpha.events() as events:
            with trio.move_on_after(1.5):
                while True:
                    await acceptor.first.stream.send_all(RENEW * 50)
                    await trio.sleep(0.005)
            failed = [event for event in iter_nowait(events) if isinstance(event, HandOverFailed)]
        assert 2 <= len(dials) <= 5, "back-off from a quarter of a second on, not a dial for each question"
        assert len(failed) >= len(dials) - 1
        assert {event.cause for event in failed} == {"asked"}
        assert all(isinstance(event.error, PeerRejectedError) for event in failed)
        assert acceptor.connection.live


def iter_nowait(events: Any) -> list[Any]:
    """What was reported so far."""
    return list(events._buffer)


async def test_a_dial_that_is_given_up_because_the_connection_ends(met: Callable[..., Any]) -> None:
    """A hand-over under way ends with its connection, at once and without a word of failure."""
    async with met() as acceptor, acceptor.alpha.events() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, acceptor.connection, trio.ClosedResourceError, "has ended")
            second, _ = await acceptor.asked()
            nursery.start_soon(acceptor.connection.aclose)
            await second.hear_end()
            await acceptor.first.hear_end()
            await acceptor.first.stream.aclose()
        assert not [event for event in iter_nowait(events) if isinstance(event, HandOverFailed | HandshakeRefused)]


# In the middle ------------------------------------------------------------------------------------------------------


async def test_a_man_in_the_middle_with_a_certificate_of_his_own(
    met: Callable[..., Any], node: NodeFactory, manager: ManagerFactory, scripted_dial: Any
) -> None:
    """What a dialer proves to one peer is worth nothing when that relays it to another, under a right certificate.

    Mallory is beta to alpha, and alpha to the real beta; both take its certificates, so names do not stop it. alpha
    hands over its connection with Mallory; Mallory relays that to take over its own connection to beta.
    """
    async with met() as mallory, node("beta@localhost", shutdown_grace=0) as beta:
        towards = Dialer(beta, manager("alpha@localhost"), scripted_dial)
        await towards.connect(incarnation=mallory.alpha.incarnation)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, mallory.connection, HandshakeError, "join")
            second, hello = await mallory.asked()
            relayed = await towards.dial()
            honest_name = connection_id(session(towards.first))
            for join in (hello.join, wire.Join(connection=honest_name, attempt=1, proof=hello.join.proof)):
                relayed = await towards.dial()
                answer = await towards.ask(relayed, join, incarnation=mallory.alpha.incarnation)
                assert answer.refusal is not None
                assert answer.refusal.code == "join"
                assert answer.join == b"", "nor does it get anything from beta that it could show to alpha"
            await second.say(wire.Answer(refusal=wire.Refusal(code="join", message="no")))
            await second.hear_end()
        await towards.check_unharmed()
        assert mallory.connection.live
        await hang_up(towards.peers)
