"""What a node reports: every kind of event, to readers that cannot hold it up; and what it says in its log.

The events of a plain connection, of acceptors and of rotations are in test_nodes, too; those of connectors in
test_keeper, of resolvers in test_resolvers, and of two nodes with one name in test_two_at_once.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionode
from address_book import AddressBook
from trionode import (
    AcceptorUp,
    CertificateError,
    ClientAuth,
    Connection,
    ConnectionDown,
    ConnectionUp,
    Endpoint,
    EndReason,
    EventStream,
    HandshakeError,
    HandshakeRefused,
    LiveConnections,
    NodeEvent,
    NodeName,
    NoRouteError,
    PeerLost,
    PeerRejectedError,
    PeerUnverifiedError,
    RemoteError,
    Renew,
    Route,
    Side,
    StrandedPeers,
    UnverifiedReason,
    _protocol as wire,
)
from trionode._connection.connection import core_of
from trionode._managers.manager import publisher_of
from trionode._node.events import BUFFER, EventHub
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedPeer

    from trionode import Node
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


#: Every kind of event that the package offers.
KINDS = {
    each
    for each in vars(trionode).values()
    if isinstance(each, type) and issubclass(each, NodeEvent) and each is not NodeEvent
}


async def event_of(events: EventStream, kind: Any) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


def numbered(number: int) -> AcceptorUp:
    """An event that can be told from others."""
    return AcceptorUp(node=ALPHA, address=("127.0.0.1", number))


# Every kind -----------------------------------------------------------------------------------------------------------


class Failing(AddressBook):
    """A resolver that names nodes, and fails when it is asked where one is."""

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Fail."""
        await trio.lowlevel.checkpoint()
        raise OSError("the directory is down")


async def test_every_kind_of_event(
    node: NodeFactory,
    manager: ManagerFactory,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    route_to: Callable[..., Route],
) -> None:
    """There is an event for everything that happens to a node, of every kind that there is, with the node's name."""
    certs = manager(str(ALPHA))
    with trio.fail_after(10):
        async with (
            AsyncExitStack() as stack,
            node(str(BETA)) as beta,
            node(str(BETA)) as namesake,
            node("rogue@localhost", manager("rogue@localhost", ca=rogue_ca)) as rogue,
        ):
            book = Failing()
            async with node(str(ALPHA), certs, resolver=book) as alpha:
                events = await stack.enter_async_context(alpha.events())
                book.enter("gamma@localhost")
                await alpha.wait_members("gamma@localhost")
                async with alpha.events() as more:
                    book.drop("gamma@localhost")
                    await event_of(more, PeerLost)
                certs.update(ca.issue(str(ALPHA), not_after=datetime.now(UTC) + timedelta(hours=12)))  # of a month
                certs.rotate_trust(crls=ca.revocation_list(lifetime=timedelta(days=31)))
                with pytest.raises(CertificateError):
                    certs.update(ca.issue(str(ALPHA), not_after=datetime.now(UTC) - timedelta(hours=1)))
                publisher_of(certs).report_source(OSError("the disk is gone"))
                with pytest.raises(NoRouteError):
                    await alpha.connect(BETA)
                alpha.add_route(BETA, route_to(beta))
                alpha.keep_connected(BETA)
                connection = await alpha.wait_connected(BETA)
                await connection.reauthenticate()
                beta._acceptors.loops[0].close()
                with pytest.raises(HandshakeError):
                    await connection.reauthenticate()
                for stranger in rogue, namesake:
                    with pytest.raises(HandshakeError):
                        await stranger.connect(ALPHA, route_to(alpha))
            seen = [event async for event in events]
    assert {event.node for event in seen} == {ALPHA}
    assert {type(event) for event in seen} == KINDS
    kinds = [type(event) for event in seen]
    assert kinds.index(AcceptorUp) < kinds.index(ConnectionUp) < kinds.index(ConnectionDown)
    for event in seen:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.node = BETA  # type: ignore[misc]
        assert "alpha" in repr(event)


async def test_refused_handshake_is_reported_by_both_sides(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority, route_to: Callable[..., Route]
) -> None:
    """Whichever side refused, both report it: with the side they were, the other's address, and their own error."""
    with trio.fail_after(10):
        async with (
            node(str(BETA)) as beta,
            node(str(ALPHA), manager(str(ALPHA), ca=rogue_ca)) as alpha,
            alpha.events() as at_alpha,
            beta.events() as at_beta,
        ):
            for dialer, acceptor, dialing, accepting, refuses in [
                (alpha, beta, at_alpha, at_beta, False),  # beta does not trust alpha's CA, but alpha trusts beta's
                (beta, alpha, at_beta, at_alpha, True),
            ]:
                with pytest.raises(HandshakeError) as caught:
                    await dialer.connect(acceptor.name, route_to(acceptor))
                event = await event_of(dialing, HandshakeRefused)
                assert (event.node, event.side) == (dialer.name, Side.DIAL)
                assert event.address == acceptor.acceptors[0].address
                assert event.error is caught.value
                other = await event_of(accepting, HandshakeRefused)
                assert (other.node, other.side) == (acceptor.name, Side.ACCEPT)
                assert other.address[0] == "127.0.0.1"
                judged, refused = (event, other) if refuses else (other, event)
                assert isinstance(judged.error, PeerUnverifiedError)
                assert judged.error.reason is UnverifiedReason.UNKNOWN_CA
                assert isinstance(refused.error, PeerRejectedError)


async def test_dial_that_reaches_nobody_is_reported(node: NodeFactory) -> None:
    """A dial that ends before TLS is a refused handshake, too, with the address that it was for."""
    with trio.fail_after(10):
        async with node(str(ALPHA)) as alpha, alpha.events() as events:
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect(BETA, Route(host="127.0.0.1", port=1))
            event = await event_of(events, HandshakeRefused)
            assert (event.side, event.address, event.error) == (Side.DIAL, ("127.0.0.1", 1), caught.value)


# How a connection ended -----------------------------------------------------------------------------------------------


async def down(events: EventStream) -> tuple[EndReason, Exception | None]:
    """Why the next connection that ends did."""
    event: ConnectionDown = await event_of(events, ConnectionDown)
    return event.reason, event.error


async def test_reason_closed(open_pair: PairFactory) -> None:
    """A close is reported as such here, and as the peer's over there."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as ours, pair.beta.events() as theirs:
            await (await pair.alpha.connect(BETA)).aclose()
            assert await down(ours) == (EndReason.CLOSED, None)
            reason, error = await down(theirs)
            assert reason is EndReason.CLOSED_BY_PEER
            assert "alpha@localhost closed the connection: closed" in str(error)


async def test_reason_shutting_down(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """A node that ends says so, and its peers report that it was the peer, and why."""
    with trio.fail_after(10):
        async with node(str(BETA)) as beta, beta.events() as theirs:
            async with node(str(ALPHA)) as alpha:
                with alpha._runtime.events.subscribe() as ours:
                    await alpha.connect(BETA, route_to(beta))
                    await alpha.drain()
                    assert await down(ours) == (EndReason.SHUTTING_DOWN, None)
            reason, error = await down(theirs)
            assert reason is EndReason.CLOSED_BY_PEER
            assert "shutting_down" in str(error)


async def test_reason_lost(open_pair: PairFactory) -> None:
    """A connection that breaks is reported as lost by the side that notices, with what happened."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            connection = await pair.alpha.connect(BETA)
            await event_of(events, ConnectionUp)
            await trio.aclose_forcefully(core_of(connection).link.stream.transport_stream)
            reason, error = await down(events)
            assert reason is EndReason.LOST
            assert isinstance(error, trio.BrokenResourceError)


async def test_reason_replaced(
    open_pair: PairFactory, manager: ManagerFactory, route_to: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection whose place another took is reported as replaced, where it was closed for that."""
    monkeypatch.setattr("trionode._connection.closing.RETIRE_GRACE", 0.1)
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as ours, pair.beta.events() as theirs:
            old = await pair.alpha.connect(BETA)
            new = await pair.alpha.connect(BETA, route_to(pair.beta, cert_manager=manager(str(ALPHA))))
            assert new is not old
            reasons = {(await down(ours))[0], (await down(theirs))[0]}
            assert EndReason.REPLACED in reasons
            assert reasons <= {EndReason.REPLACED, EndReason.CLOSED_BY_PEER}


async def test_reason_limit(
    node: NodeFactory,
    manager: ManagerFactory,
    ca: CertificateAuthority,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
) -> None:
    """A connection of an unverified peer that is one too many is reported as such."""
    certs = manager(str(BETA), client_auth=ClientAuth.NO_CLIENT_CERT)
    with trio.fail_after(10):
        async with node(str(BETA), certs, max_unverified=1) as beta, beta.events() as events:
            first, second = await scripted_dial(beta, ca), await scripted_dial(beta, ca)
            async with first.stream, second.stream:
                await first.introduce("one@localhost")
                up = await event_of(events, ConnectionUp)
                await second.introduce("two@localhost")
                event: ConnectionDown = await event_of(events, ConnectionDown)
                assert event.connection is up.connection
                assert event.reason is EndReason.LIMIT


async def test_reason_protocol_error(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A peer that breaks the protocol is reported with what it did."""
    with trio.fail_after(10):
        async with node(str(BETA)) as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager(str(ALPHA)))
            async with peer.stream:
                await peer.introduce(str(ALPHA))
                await peer.stream.send_all(wire.header(wire.PING, 0, 3) + b"abc")
                reason, error = await down(events)
                assert reason is EndReason.PROTOCOL_ERROR
                assert "PING of 3 bytes" in str(error)


async def test_reason_superseded(open_pair: PairFactory, ca: CertificateAuthority, manager: ManagerFactory) -> None:
    """A connection that was closed because a certificate was rotated says so on both sides."""
    certs = manager(str(ALPHA))
    rotation = LiveConnections(on_rotation=Renew.CLOSE, within=0)
    with trio.fail_after(10):
        async with (
            open_pair(alpha={"certs": certs, "live_connections": rotation}) as pair,
            pair.alpha.events() as ours,
            pair.beta.events() as theirs,
        ):
            await pair.alpha.connect(BETA)
            certs.update(ca.issue(str(ALPHA)))
            reason, error = await down(ours)
            assert reason is EndReason.SUPERSEDED
            assert "rotated" in str(error)
            reason, error = await down(theirs)
            assert reason is EndReason.CLOSED_BY_PEER
            assert "superseded" in str(error)


async def test_reason_expired(
    open_pair: PairFactory, ca: CertificateAuthority, manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was closed because a certificate came to its end says so."""
    monkeypatch.setattr("trionode._node.renewal.LOOK_AT_CLOCK", 0.01)
    late = timedelta()
    certs = manager(str(ALPHA), clock=lambda: datetime.now(UTC) + late, not_after=datetime.now(UTC) + timedelta(days=1))
    expiry = LiveConnections(on_expiry=Renew.CLOSE, expiry_lead=60)
    with trio.fail_after(10):
        async with (
            open_pair(alpha={"certs": certs, "live_connections": expiry}) as pair,
            pair.alpha.events() as ours,
        ):
            connection = await pair.alpha.connect(BETA)
            await trio.sleep(0.1)
            assert connection.live
            late = timedelta(days=1, seconds=-30)
            reason, error = await down(ours)
            assert reason is EndReason.EXPIRED
            assert "has ended" in str(error)


async def test_reason_worn(open_pair: PairFactory) -> None:
    """A connection whose keys have protected as much as they may, and that cannot be handed over, says so."""
    few = LiveConnections(max_records=20)
    with trio.fail_after(10):
        async with open_pair(beta={"live_connections": few}) as pair, pair.beta.events() as events:
            connection = await pair.alpha.connect(BETA)
            pair.beta._acceptors.loops[0].close()
            while connection.live:
                with suppress(RemoteError):  # of a service that there is not, on a connection that drains
                    await connection.call("nobody", b"")
            reason, error = await down(events)
            assert reason is EndReason.WORN
            assert "protected as much as they may" in str(error)


async def test_reason_unverified(
    open_pair: PairFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A connection whose peer is not trusted any more says so."""
    certs = manager(str(BETA))
    with trio.fail_after(10):
        async with open_pair(beta={"certs": certs}) as pair, pair.beta.events() as events:
            await pair.alpha.connect(BETA)
            await event_of(events, ConnectionUp)
            certs.rotate_trust(client_cas=rogue_ca.pool, stranded=StrandedPeers.CLOSE)
            reason, error = await down(events)
            assert reason is EndReason.UNVERIFIED
            assert isinstance(error, PeerUnverifiedError)


def test_every_reason_is_tested() -> None:
    """The tests above are all the reasons that there are."""
    tested = {name.removeprefix("test_reason_") for name in globals() if name.startswith("test_reason_")}
    assert tested == {reason.value for reason in EndReason} - {"closed_by_peer"}


# Readers --------------------------------------------------------------------------------------------------------------


async def test_slow_reader_loses_the_oldest_with_a_count() -> None:
    """A reader that does not read keeps the newest events, as many as there is room for, and counts what it lost."""
    hub = EventHub()
    with hub.subscribe() as slow, hub.subscribe() as quick:
        for number in range(BUFFER + 500):
            hub.publish(numbered(number))
            if number % 100 == 0:
                while quick._buffer:
                    await quick.receive()
        assert (slow.missed, quick.missed) == (500, 0)
        assert len(slow._buffer) == BUFFER
        assert await slow.receive() == numbered(500)
        hub.publish(numbered(-1))
        assert slow.missed == 500  # there was room again
        hub.end()
        rest = [event async for event in slow]
        assert rest[0] == numbered(501)
        assert rest[-1] == numbered(-1)
        assert len(rest) == BUFFER


async def test_publishing_never_blocks() -> None:
    """Publishing is synchronous and returns at once, however many readers do not read."""
    hub = EventHub()
    with hub.subscribe(), hub.subscribe(), trio.testing.assert_no_checkpoints():
        for number in range(3 * BUFFER):
            hub.publish(numbered(number))


async def test_node_is_not_held_up_by_a_reader(open_pair: PairFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose events are not read goes on with everything."""
    monkeypatch.setattr("trionode._node.events.BUFFER", 2)
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as reader:
            connections: list[Connection] = []
            for _ in range(10):
                connections.append(await pair.alpha.connect(BETA))
                await connections[-1].aclose()
            assert reader.missed >= 18
            up, down = await reader.receive(), await reader.receive()
            assert isinstance(up, ConnectionUp)
            assert isinstance(down, ConnectionDown)
            assert up.connection is down.connection is connections[-1]


async def test_readers_have_everything_from_when_they_began() -> None:
    """Each reader gets every event, in order, from the moment that it began to read; none from before."""
    hub = EventHub()
    hub.publish(numbered(0))
    with hub.subscribe() as early:
        hub.publish(numbered(1))
        with hub.subscribe() as late:
            hub.publish(numbered(2))
        hub.publish(numbered(3))
        hub.end()
        assert [event async for event in early] == [numbered(1), numbered(2), numbered(3)]
        with pytest.raises(trio.ClosedResourceError):
            await late.receive()


async def test_tasks_that_share_a_reader_share_its_events() -> None:
    """Several tasks may read from one reader: each event goes to one of them, and all of them end with it."""
    hub = EventHub()
    got: list[NodeEvent] = []

    async def read(reader: EventStream) -> None:
        async for event in reader:
            got.append(event)  # noqa: PERF401 -- while they come

    with trio.fail_after(5), hub.subscribe() as reader:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read, reader)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(10):
                hub.publish(numbered(number))
                if number % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            hub.end()
    assert sorted(got, key=repr) == sorted(map(numbered, range(10)), key=repr)


# The log --------------------------------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    """What a logger warned of."""
    return [record.getMessage() for record in caplog.records if record.name == logger]


async def flood(beta: Node, count: int) -> None:
    """Have so many handshakes refused."""

    async def one() -> None:
        async with await trio.open_tcp_stream(*beta.acceptors[0].address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)


async def test_flood_of_refused_handshakes_is_summarised_in_the_log(
    node: NodeFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a flood the first few are logged one by one, the rest in one line with their number; each is an event."""
    monkeypatch.setattr("trionode._util.rate_limited_log.LOG_BURST", 5)
    with trio.fail_after(20):
        async with node(str(BETA)) as beta:
            with beta._runtime.events.subscribe() as events:
                await flood(beta, 40)
                for _ in range(40):
                    assert isinstance((await event_of(events, HandshakeRefused)).error, HandshakeError)
            address = place(beta.acceptors[0].address)
            assert len(warnings(caplog, "trionode.acceptor")) == 5
    said = warnings(caplog, "trionode.acceptor")
    assert len(said) == 6
    assert all(line.startswith(f"handshake refused on {address}: ") for line in said[:5])
    assert said[5] == f"35 more handshakes refused on {address}, not logged one by one"


async def test_flood_is_counted_per_window(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Each window logs its first few lines; what was more is said in one line when the next window begins."""
    gate = RateLimitedLog(Log("trionode.acceptor"), "refusals")
    for _ in range(3):
        for number in range(25):
            gate.warning("refused %d", number)
        await trio.sleep(11)
    expected = [f"refused {number}" for number in range(20)]
    summary = ["5 more refusals, not logged one by one"]
    assert warnings(caplog, "trionode.acceptor") == (expected + summary) * 2 + expected
    gate.summarise()
    gate.summarise()
    assert warnings(caplog, "trionode.acceptor") == (expected + summary) * 3


async def test_what_is_no_refusal_is_not_logged_as_one(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that says nothing, and dials that crossed, are no warnings."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            async with await trio.open_tcp_stream(*pair.beta.acceptors[0].address):
                pass
            for _ in range(5):
                got: list[Connection] = []

                async def dial(node: Node, peer: NodeName, got: list[Connection] = got) -> None:
                    got.append(await node.connect(peer))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dial, pair.alpha, BETA)
                    nursery.start_soon(dial, pair.beta, ALPHA)
                await got[0].aclose()
                await got[1].wait_closed()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
