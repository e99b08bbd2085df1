"""Who may stand for a name: unverified claims, insecure dials, replacement and restarts."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode import (
    ClientAuth,
    ConnectionUp,
    EndReason,
    HandshakeError,
    HandshakeRefused,
    NetworkMode,
    NodeName,
    PeerRejectedError,
    RejectionCode,
    Route,
    _protocol as wire,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedPeer

    from trionode import (
        CertManager,
        Connection,
        EventStream,
        Node,
        Service,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")

#: The modes in which a client that was not verified gets in.
ADMITTING = [mode for mode in ClientAuth if not (mode.verifies and mode.requires)]


@pytest.fixture
def quick_retirement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced connection is read for a moment only, in place of seconds."""
    monkeypatch.setattr("trionode._connection.closing.RETIRE_GRACE", 0.3)


def answering(reply: bytes) -> Service:
    """A service that replies to every request with the same words."""

    async def service(channel: ServiceChannel) -> None:
        await channel.receive()
        await channel.send(reply)

    return service


async def next_up(events: EventStream) -> Connection:
    """The next connection that a node reports."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            return event.connection
    raise AssertionError("the node ended")


async def goodbye(peer: ScriptedPeer) -> wire.End:
    """What a node says when it closes the connection."""
    _, _, payload = await peer.frame(wire.GOODBYE)
    return wire.decode(wire.End, payload)


# Unverified claims --------------------------------------------------------------------------------------------------


@pytest.fixture(params=ADMITTING, ids=lambda mode: mode.name)
def admitting(request: pytest.FixtureRequest, manager: ManagerFactory) -> CertManager:
    """A manager for beta whose acceptors admit clients that they do not verify."""
    return manager("beta@localhost", client_auth=request.param)


@pytest.fixture
def unproven(
    admitting: CertManager, manager: ManagerFactory, ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> CertManager | CertificateAuthority:
    """What a stranger gets in with there: a certificate of an unknown CA, or none."""
    if admitting.client_auth is ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN:
        return ca
    return manager("alpha@localhost", ca=rogue_ca)


@pytest.mark.parametrize("order", ["impostor first", "impostor last"])
async def test_unverified_claim_neither_gets_calls_nor_displaces(
    node: NodeFactory,
    route_to: Callable[..., Route],
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    admitting: CertManager,
    unproven: CertManager | CertificateAuthority,
    order: str,
) -> None:
    """A client that claims a connected peer's name without proof gets none of its calls and does not take its place."""
    with trio.fail_after(20):
        async with (
            node("beta@localhost", admitting) as beta,
            node("alpha@localhost", services={"who": answering(b"the real one")}) as alpha,
            beta.events() as events,
            AsyncExitStack() as stack,
        ):
            beta.add_route("alpha@localhost", route_to(alpha))

            async def intrude() -> Connection:
                peer = await scripted_dial(beta, unproven)
                await stack.enter_async_context(peer.stream)
                await peer.introduce("alpha@localhost", incarnation=alpha.incarnation)
                connection = await next_up(events)
                assert not connection.peer.verified
                assert connection.peer.name == ALPHA
                return connection

            if order == "impostor first":
                claim = await intrude()
                assert ALPHA not in beta.connections
                real = await beta.connect("alpha@localhost")
            else:
                real = await beta.connect("alpha@localhost")
                assert await next_up(events) is real
                claim = await intrude()
            assert real is not claim
            assert real.peer.verified
            assert beta.connections == {ALPHA: real}
            assert await beta.connect("alpha@localhost") is real
            assert list(beta.unverified_connections) == [claim]
            assert await beta.call("alpha@localhost", "who", b"") == b"the real one"
            async with beta.open_channel("alpha@localhost", "who") as channel:
                await channel.send(b"")
                assert await channel.receive() == b"the real one"
            assert alpha.acceptors[0].statistics().accepted == 1
            assert claim.live
            assert real.live
            assert claim.statistics().channels_opened == 0


async def test_unverified_claim_with_a_new_incarnation_does_not_displace(
    node: NodeFactory,
    manager: ManagerFactory,
    route_to: Callable[..., Route],
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    admitting: CertManager,
    unproven: CertManager | CertificateAuthority,
) -> None:
    """Nor does it help to claim that the peer was restarted."""
    with trio.fail_after(20):
        async with (
            node("beta@localhost", admitting) as beta,
            node("alpha@localhost") as alpha,
            beta.events() as events,
        ):
            real = await beta.connect("alpha@localhost", route_to(alpha))
            assert await next_up(events) is real
            peer = await scripted_dial(beta, unproven)
            async with peer.stream:
                await peer.introduce("alpha@localhost", incarnation=alpha.incarnation ^ 1)
                assert not (await next_up(events)).peer.verified
                assert beta.connections == {ALPHA: real}
                assert real.live


async def test_unverified_peers_are_served_as_such(
    node: NodeFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    admitting: CertManager,
    unproven: CertManager | CertificateAuthority,
) -> None:
    """A peer that was admitted without proof may call services, which see that it was not verified."""
    verified: list[bool] = []

    async def look(channel: ServiceChannel) -> None:
        verified.append(channel.peer.verified)
        await channel.send(b"come in")

    with trio.fail_after(20):
        async with node("beta@localhost", admitting, services={"look": look}) as beta:
            peer = await scripted_dial(beta, unproven)
            async with peer.stream:
                answer = await peer.introduce("alpha@localhost")
                assert not answer.verified
                await peer.stream.send_all(wire.control(wire.OPEN, 1, wire.Open(service="look")))
                assert await peer.frame(wire.MESSAGE) == (wire.MESSAGE, 1, b"come in")
    assert verified == [False]


async def test_verified_peer_cannot_claim_another_name(
    node: NodeFactory, manager: ManagerFactory, open_pair: PairFactory, route_to: Callable[..., Route]
) -> None:
    """A peer with a good certificate of its own cannot claim a connected peer's name, nor disturb it."""
    with trio.fail_after(20):
        async with open_pair() as pair:
            connection = await pair.alpha.connect("beta@localhost")
            [known] = pair.beta.connections.values()
            async with node("alpha@localhost", manager("mallory@localhost"), mode=NetworkMode.HIDDEN) as mallory:
                with pytest.raises(PeerRejectedError) as caught:
                    await mallory.connect("beta@localhost", route_to(pair.beta))
            assert caught.value.code is RejectionCode.CLAIMED_NAME
            assert pair.beta.connections == {ALPHA: known}
            assert not pair.beta.unverified_connections
            assert known.live
            assert connection.live


async def test_two_nodes_talk_both_ways_where_clients_are_not_verified(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """In modes that do not verify clients two nodes talk both ways, over one connection per direction."""
    lax = ClientAuth.NO_CLIENT_CERT
    with trio.fail_after(20):
        async with (
            node(
                "alpha@localhost",
                manager("alpha@localhost", client_auth=lax),
                services={"who": answering(b"alpha")},
            ) as alpha,
            node(
                "beta@localhost", manager("beta@localhost", client_auth=lax), services={"who": answering(b"beta")}
            ) as beta,
        ):
            alpha.add_route("beta@localhost", route_to(beta))
            beta.add_route("alpha@localhost", route_to(alpha))
            for _ in range(3):
                assert await alpha.call("beta@localhost", "who", b"") == b"beta"
                assert await beta.call("alpha@localhost", "who", b"") == b"alpha"
            for one in alpha, beta:
                assert one.acceptors[0].statistics().accepted == 1
                assert len(one.connections) == 1
                assert len(one.unverified_connections) == 1


async def test_one_connection_serves_both_ways_where_clients_are_verified(open_pair: PairFactory) -> None:
    """Under mutual TLS the connection that one node dialled is used by the other, too."""
    with trio.fail_after(20):
        async with open_pair(
            alpha={"services": {"who": answering(b"alpha")}}, beta={"services": {"who": answering(b"beta")}}
        ) as pair:
            assert await pair.alpha.call("beta@localhost", "who", b"") == b"beta"
            assert await pair.beta.call("alpha@localhost", "who", b"") == b"alpha"
            assert pair.alpha.acceptors[0].statistics().accepted == 0
            assert pair.beta.acceptors[0].statistics().accepted == 1


# The bound on unverified connections --------------------------------------------------------------------------------


async def test_unverified_connections_are_bounded(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """There are never more than max_unverified of them: the oldest makes room, and is told why."""
    certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    claims = manager("alpha@localhost")
    with trio.fail_after(20):
        async with (
            node("beta@localhost", certs, max_unverified=2) as beta,
            beta.events() as events,
            AsyncExitStack() as stack,
        ):
            peers: list[ScriptedPeer] = []
            connections: list[Connection] = []
            for number in range(4):
                peer = await scripted_dial(beta, claims)
                await stack.enter_async_context(peer.stream)
                await peer.introduce(f"stranger-{number}@localhost")
                peers.append(peer)
                connections.append(await next_up(events))
            for peer, connection in zip(peers[:2], connections[:2], strict=True):
                assert (await goodbye(peer)).code == "limit"
                await peer.stream.aclose()
                assert (await connection.wait_closed()).reason is EndReason.LIMIT
            assert list(beta.unverified_connections) == connections[2:]


async def test_the_bound_holds_for_newcomers_of_one_tick(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """The bound holds, too, where many unverified peers come through at the same moment."""
    certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    claims = manager("alpha@localhost")
    with trio.fail_after(20):
        async with (
            node("beta@localhost", certs, max_unverified=1) as beta,
            beta.events() as events,
            AsyncExitStack() as stack,
        ):
            peers: list[ScriptedPeer] = []
            for number in range(5):
                peer = await scripted_dial(beta, claims)
                await stack.enter_async_context(peer.stream)
                await peer.say(peer.hello(f"stranger-{number}@localhost"))
                assert (await peer.hear(wire.Answer)).refusal is None
                peers.append(peer)
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(peer.say, wire.Confirmation())
            for _ in peers:
                await next_up(events)
            await trio.testing.wait_all_tasks_blocked()
            assert len(beta.unverified_connections) == 1


async def test_no_unverified_connection_where_none_is_allowed(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """With max_unverified=0 an unverified peer is shown out at once."""
    certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    with trio.fail_after(20):
        async with node("beta@localhost", certs, max_unverified=0) as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.introduce("alpha@localhost")
                assert (await goodbye(peer)).code == "limit"
            assert not beta.unverified_connections


# Insecure dials -----------------------------------------------------------------------------------------------------


async def test_insecure_connection_is_reused_only_by_who_asks_for_that(
    open_pair: PairFactory, route_to: Callable[..., Route]
) -> None:
    """What was dialled with insecure_skip_verify is handed out only where the effective route has it set."""
    with trio.fail_after(20):
        async with open_pair(beta={"services": {"who": answering(b"beta")}}) as pair:
            alpha = pair.alpha
            insecure = route_to(pair.beta, insecure_skip_verify=True)
            loose = await alpha.connect("beta@localhost", insecure)
            assert not loose.peer.verified
            assert not alpha.connections
            assert BETA not in alpha.connections
            assert await alpha.connect("beta@localhost", insecure) is loose
            assert await alpha.call("beta@localhost", "who", b"", route=insecure) == b"beta"
            assert loose.statistics().channels_opened == 1
            firm = await alpha.connect("beta@localhost")
            assert firm is not loose
            assert firm.peer.verified
            assert alpha.connections == {BETA: firm}
            assert await alpha.call("beta@localhost", "who", b"") == b"beta"
            assert loose.statistics().channels_opened == 1


async def test_effective_route_decides_over_insecure_connections(
    node: NodeFactory, route_to: Callable[..., Route]
) -> None:
    """What counts is the effective route: the table's, and the node's default under it."""
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, node("alpha@localhost", insecure_skip_verify=True) as alpha:
            handle = alpha.add_route("beta@localhost", route_to(beta))
            loose = await alpha.connect("beta@localhost")
            assert not loose.peer.verified
            assert alpha.connections == {BETA: loose}
            assert await alpha.connect("beta@localhost") is loose
            handle.remove()
            alpha.add_route("beta@localhost", route_to(beta, insecure_skip_verify=False))
            assert not alpha.connections
            firm = await alpha.connect("beta@localhost")
            assert firm.peer.verified
            assert alpha.connections == {BETA: firm}


async def test_insecure_dial_never_displaces_a_verified_connection(
    open_pair: PairFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """An insecure dial beside a verified connection leaves that where it is, on both sides."""
    with trio.fail_after(20):
        async with open_pair() as pair, pair.beta.events() as events:
            firm = await pair.alpha.connect("beta@localhost")
            seen = await next_up(events)
            other = manager("alpha@localhost")
            insecure = route_to(pair.beta, insecure_skip_verify=True, cert_manager=other)
            loose = await pair.alpha.connect("beta@localhost", insecure)
            await next_up(events)
            assert loose is not firm
            assert not loose.peer.verified
            assert pair.alpha.connections == {BETA: firm}
            assert await pair.alpha.connect("beta@localhost") is firm
            assert firm.live
            assert seen.live
            await loose.aclose()
            assert pair.alpha.connections == {BETA: firm}
            assert pair.beta.connections == {ALPHA: seen}


async def test_insecure_dial_does_not_take_over_the_other_sides_calls(
    open_pair: PairFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """The side that was dialled insecurely goes on calling over the connection on which it is verified."""
    verified: list[bool] = []

    async def look(channel: ServiceChannel) -> None:
        verified.append(channel.peer.verified)
        await channel.send(b"")

    with trio.fail_after(20):
        async with open_pair(alpha={"services": {"look": look}}) as pair, pair.beta.events() as events:
            await pair.alpha.connect("beta@localhost")
            seen = await next_up(events)
            insecure = route_to(pair.beta, insecure_skip_verify=True, cert_manager=manager("alpha@localhost"))
            await pair.alpha.connect("beta@localhost", insecure)
            await next_up(events)
            assert pair.beta.connections == {ALPHA: seen}
            await pair.beta.call("alpha@localhost", "look", b"")
    assert verified == [True]


# Crossing dials -----------------------------------------------------------------------------------------------------


async def test_crossing_dials_end_in_one_connection(open_pair: PairFactory) -> None:
    """Two nodes that dial each other at the same moment end with one connection, and both get it."""
    services = {"services": {"who": answering(b"")}}

    async def connect(one: Node, other: Node, found: list[Connection]) -> None:
        found.append(await one.connect(other.name))

    with trio.fail_after(30):
        for _ in range(10):
            async with open_pair(alpha=services, beta=services) as pair:
                found: list[Connection] = []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connect, pair.alpha, pair.beta, found)
                    nursery.start_soon(connect, pair.beta, pair.alpha, found)
                assert {connection.peer.name for connection in found} == {ALPHA, BETA}
                assert all(connection.live for connection in found)
                await pair.alpha.call("beta@localhost", "who", b"")
                await pair.beta.call("alpha@localhost", "who", b"")
                for node in pair.alpha, pair.beta:
                    assert len(node.connections) == 1
                    assert next(iter(node.connections.values())) in found
                    assert node.statistics().connections == 1


# Replacement --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retirement")
async def test_newcomer_replaces_and_nothing_sent_is_lost(
    open_pair: PairFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """A redial replaces the old connection at once; what is sent on that is still read; then both sides close it."""
    messages = [bytes([number]) * 10_000 for number in range(200)]
    got: list[bytes] = []
    drained = trio.Event()

    async def sink(channel: ServiceChannel) -> None:
        async for message in channel:
            got.append(message)
            await trio.lowlevel.checkpoint()
        drained.set()

    with trio.fail_after(20):
        async with open_pair(beta={"services": {"sink": sink}}) as pair, pair.beta.events() as events:
            old = await pair.alpha.connect("beta@localhost")
            old_seen = await next_up(events)
            async with old.open_channel("sink") as channel:
                for message in messages[:100]:
                    await channel.send(message)
                route = route_to(pair.beta, cert_manager=manager("alpha@localhost"))
                new = await pair.alpha.connect("beta@localhost", route)
                assert new is not old
                assert pair.alpha.connections == {BETA: new}
                new_seen = await next_up(events)
                assert pair.beta.connections == {ALPHA: new_seen}
                assert new_seen is not old_seen
                for message in messages[100:]:
                    await channel.send(message)
            await drained.wait()
            assert got == messages
            ends = [(await old.wait_closed()).reason, (await old_seen.wait_closed()).reason]
            assert EndReason.REPLACED in ends
            assert set(ends) <= {EndReason.REPLACED, EndReason.CLOSED_BY_PEER}
            assert new.live
            assert new_seen.live
            assert await pair.alpha.connect("beta@localhost") is new


@pytest.mark.usefixtures("quick_retirement")
async def test_verified_newcomer_of_the_same_incarnation_replaces(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A peer that dials again gets its new connection registered at once; the old one is told that it was replaced."""
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, beta.events() as events:
            first = await scripted_dial(beta, certs)
            async with first.stream:
                await first.introduce("alpha@localhost", incarnation=1)
                old = await next_up(events)
                assert beta.connections == {ALPHA: old}
                second = await scripted_dial(beta, certs)
                async with second.stream:
                    await second.introduce("alpha@localhost", incarnation=1)
                    new = await next_up(events)
                    assert beta.connections == {ALPHA: new}
                    assert (await goodbye(first)).code == "replaced"
                    await first.stream.aclose()
                    assert (await old.wait_closed()).reason is EndReason.REPLACED
                    assert beta.connections == {ALPHA: new}
                    assert new.live


async def test_restarted_peer_replaces(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that was restarted takes the place of its former self, whose connection is dead, which was not noticed."""
    monkeypatch.setattr("trionode._handshake.collisions.PROBE_TIMEOUT", 0.2)
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, beta.events() as events:
            first = await scripted_dial(beta, certs)
            async with first.stream:
                await first.introduce("alpha@localhost", incarnation=1)
                old = await next_up(events)
                second = await scripted_dial(beta, certs)
                async with second.stream:
                    await second.introduce("alpha@localhost", incarnation=2)
                    new = await next_up(events)
                    assert new is not old
                    assert new.peer.incarnation == 2
                    assert beta.connections == {ALPHA: new}
                    assert (await old.wait_closed()).reason is EndReason.LOST
                    assert new.live


async def test_second_live_node_of_one_name_is_refused(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """While a node is connected and alive, another one under its name, however good its certificate, is refused."""
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with (
            node("beta@localhost") as beta,
            node("alpha@localhost", certs, services={"who": answering(b"the first")}) as alpha,
            node("alpha@localhost", certs, services={"who": answering(b"the second")}) as double,
            beta.events() as events,
        ):
            connection = await alpha.connect("beta@localhost", route_to(beta))
            seen = await next_up(events)
            with pytest.raises(PeerRejectedError) as caught:
                await double.connect("beta@localhost", route_to(beta))
            assert caught.value.code is RejectionCode.NAME_IN_USE
            assert beta.connections == {ALPHA: seen}
            assert connection.live
            assert await beta.call("alpha@localhost", "who", b"") == b"the first"


async def test_replaced_connection_ends_with_its_peers_goodbye(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A peer that says goodbye on the replaced connection ends it at once, and not by a timer."""
    certs = manager("alpha@localhost")
    with trio.fail_after(4):  # less than what a replaced connection is given
        async with node("beta@localhost") as beta, beta.events() as events:
            first = await scripted_dial(beta, certs)
            async with first.stream:
                await first.introduce("alpha@localhost")
                old = await next_up(events)
                second = await scripted_dial(beta, certs)
                async with second.stream:
                    await second.introduce("alpha@localhost")
                    await next_up(events)
                    await first.stream.send_all(wire.control(wire.GOODBYE, 0, wire.End(code="closed")))
                    await first.hear_end()
                    assert (await old.wait_closed()).reason is EndReason.CLOSED_BY_PEER


async def test_restarted_node_is_reached_again(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """After a restart under the same name the next call goes to the new process."""
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, beta.events() as events:
            for reply in b"one", b"two":
                async with node("alpha@localhost", services={"who": answering(reply)}) as alpha:
                    await alpha.connect("beta@localhost", route_to(beta))
                    connection = await next_up(events)
                    assert connection.peer.incarnation == alpha.incarnation
                    assert await beta.call("alpha@localhost", "who", b"") == reply
                await connection.wait_closed()
                assert not beta.connections


async def test_peer_that_lost_its_connection_replaces_it(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    route_to: Callable[..., Route],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stale connection does not block its peer, and verbs by that name go to the new one."""
    monkeypatch.setattr("trionode._handshake.collisions.PROBE_TIMEOUT", 0.2)
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, beta.events() as events:
            stale = await scripted_dial(beta, certs)
            async with stale.stream:
                await stale.introduce("alpha@localhost", incarnation=7)
                await next_up(events)
                async with node("alpha@localhost", services={"who": answering(b"back again")}) as alpha:
                    await alpha.connect("beta@localhost", route_to(beta))
                    await next_up(events)
                    assert await beta.call("alpha@localhost", "who", b"") == b"back again"


async def test_failed_newcomer_replaces_nothing(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A newcomer that does not finish its handshake takes no other's place."""
    certs = manager("alpha@localhost")
    with trio.fail_after(20):
        async with node("beta@localhost") as beta, beta.events() as events:
            first = await scripted_dial(beta, certs)
            async with first.stream:
                await first.introduce("alpha@localhost", incarnation=1)
                old = await next_up(events)
                second = await scripted_dial(beta, certs)
                async with second.stream:
                    await second.say(second.hello("alpha@localhost", incarnation=1))
                    assert (await second.hear(wire.Answer)).refusal is None
                    assert beta.connections == {ALPHA: old}
                    await second.say(wire.Confirmation(refusal=wire.Refusal(code="not_authorized")))
                    await second.hear_end()
                assert beta.connections == {ALPHA: old}
                assert old.live
                while not isinstance(await anext(aiter(events)), HandshakeRefused):
                    pass
                assert beta.acceptors[0].statistics().refused == 1


async def test_dial_that_fails_leaves_the_connection(
    open_pair: PairFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority, route_to: Callable[..., Route]
) -> None:
    """An explicit route that fails leaves the live connection as it was."""
    with trio.fail_after(20):
        async with open_pair() as pair:
            connection = await pair.alpha.connect("beta@localhost")
            with pytest.raises(HandshakeError):
                await pair.alpha.connect(
                    "beta@localhost", route_to(pair.beta, cert_manager=manager("alpha@localhost", ca=rogue_ca))
                )
            assert pair.alpha.connections == {BETA: connection}
            assert connection.live
