"""Hand-over: a live connection moves to a new TLS session, and nobody who uses it notices."""

from __future__ import annotations

import gc
import weakref
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
import trio.testing

from trionode import (
    CertAuthManager,
    ClientAuth,
    ConnectionUp,
    EndReason,
    HandedOver,
    HandOverFailed,
    HandshakeError,
    LiveConnections,
    NetworkMode,
    NodeName,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    Renew,
)
from trionode._connection.connection import core_of
from trionode._connection.send_queue import HIGH_WATER, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import AuthorityFactory, ManagerFactory, NodeFactory, PairFactory

    from trionode import (
        Connection,
        EventStream,
        Peer,
        Route,
        ServiceChannel,
    )
    from trionode._tls.stream import SessionStream
    from trionode.pki import CertificateAuthority

E = TypeVar("E")

ALPHA = NodeName.parse("alpha@localhost")


async def swallow(channel: ServiceChannel) -> None:
    """Read to the end, and say so."""
    async for _ in channel:
        pass
    await channel.send(b"")


async def echo(channel: ServiceChannel) -> None:
    """Send everything back."""
    async for message in channel:
        await channel.send(message)


async def test_by_hand(open_pair: PairFactory, manager: ManagerFactory) -> None:
    """Either side moves a connection to the certificates that both have now; an open channel goes on."""
    certs = manager("alpha@localhost")
    async with open_pair(alpha={"certs": certs}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with connection.open_channel("echo") as channel:
            await channel.send(b"before")
            certs.update(manager("alpha@localhost").key_pair)
            superseded = connection.superseded
            await connection.reauthenticate()
            assert connection.generation == 2
            assert (superseded, connection.superseded) == (True, False)
            await channel.send(b"after")
            assert await channel.receive() == b"before"
            assert await channel.receive() == b"after"
            theirs = pair.beta.connections["alpha@localhost"]
            assert theirs.peer_generation == 2
            assert theirs.peer.certificate == certs.key_pair.certificate
            await theirs.reauthenticate()
            assert connection.statistics().hand_overs == 2


async def test_many_hand_overs_lose_nothing(open_pair: PairFactory) -> None:
    """A channel that is busy both ways, with small and large messages, is moved again and again."""
    total = 3000
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(total):
                    await channel.send(b"%d" % number * (20000 if number % 50 == 0 else 1))
                await channel.send_eof()

            async def hand_over() -> None:
                while True:
                    await connection.reauthenticate()

            nursery.start_soon(send)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(hand_over)
                    number = 0
                    async for message in channel:
                        assert message == b"%d" % number * (20000 if number % 50 == 0 else 1)
                        number += 1
                    assert number == total
                    scope.cancel()
        assert connection.statistics().hand_overs > 1


# By itself, after a rotation and when keys wear out ------------------------------------------------------------------


async def reported(events: EventStream, kind: type[E]) -> E:
    """The next report of a kind."""
    with trio.fail_after(10):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError("the node ended")


@pytest.mark.parametrize("who", ["alpha", "beta"])
async def test_whoever_rotates(open_pair: PairFactory, manager: ManagerFactory, who: str) -> None:
    """The side that dialled moves the connection, the other has it moved; the peer need not have been told anything."""
    certs = manager(f"{who}@localhost")
    options = {"certs": certs, "live_connections": LiveConnections(on_rotation=Renew.HAND_OVER, within=0.01)}
    other = {"services": {"echo": echo}}
    wishes = {"alpha": {**other, **options}, "beta": other} if who == "alpha" else {"beta": {**other, **options}}
    async with open_pair(**wishes) as pair:
        dialled = await pair.alpha.connect("beta@localhost")
        await dialled.call("echo", b"")
        rotated = dialled if who == "alpha" else pair.beta.connections[ALPHA]
        async with pair.alpha.events() as ours, pair.beta.events() as theirs:
            for generation in range(2, 5):
                certs.update(manager(f"{who}@localhost").key_pair)
                superseded = rotated.superseded
                assert (await reported(ours, HandedOver)).connection is dialled
                await reported(theirs, HandedOver)
                assert rotated.generation == generation
                assert (superseded, rotated.superseded) == (True, False)
                assert rotated.key_pair_fingerprint == certs.key_pair.fingerprint
        assert await dialled.call("echo", b"well") == b"well"


async def test_closed_in_place_of_that(open_pair: PairFactory, manager: ManagerFactory) -> None:
    """With CLOSE the peer is told, what is under way may end, and a connector comes back on the new generation."""
    certs = manager("alpha@localhost")
    closing = LiveConnections(on_rotation=Renew.CLOSE, within=0.01, grace=5)
    async with open_pair(
        alpha={"certs": certs, "live_connections": closing}, beta={"services": {"echo": echo}}
    ) as pair:
        pair.alpha.keep_connected("beta@localhost")
        old = await pair.alpha.wait_connected("beta@localhost")
        async with pair.alpha.events() as events, old.open_channel("echo") as channel:
            await channel.send(b"before")
            certs.update(manager("alpha@localhost").key_pair)
            with trio.fail_after(10):
                assert await core_of(old).wait_unusable() is None
                await channel.send(b"during the grace")
                assert [await channel.receive(), await channel.receive()] == [b"before", b"during the grace"]
                await reported(events, ConnectionUp)
            new = await pair.alpha.connect("beta@localhost")
            assert new is not old
            assert (new.generation, old.generation) == (2, 1)
            await channel.aclose()
        with trio.fail_after(10):
            assert (await old.wait_closed()).reason is EndReason.SUPERSEDED


@pytest.mark.parametrize("worn", ["alpha", "beta"])
@pytest.mark.parametrize("way", ["sending", "receiving"])
async def test_worn_keys(open_pair: PairFactory, worn: str, way: str) -> None:
    """Either side notices it of either direction, and has the connection moved; nothing is lost over that."""
    few = {"live_connections": LiveConnections(max_records=500)}
    service = {"services": {"echo": echo}, "mode": NetworkMode.ENABLED}
    wishes = {
        "alpha": {**service, **(few if worn == "alpha" else {})},
        "beta": {**service, **(few if worn == "beta" else {})},
    }
    async with open_pair(**wishes) as pair:
        dialled = await pair.alpha.connect("beta@localhost")
        await dialled.call("echo", b"")
        sender = dialled if (worn == "alpha") is (way == "sending") else pair.beta.connections[ALPHA]
        with trio.fail_after(20):
            number = 0  # of a message that is one record
            async with sender.open_channel("echo") as channel:
                while dialled.statistics().hand_overs < 3:
                    message = b"%d" % number * 100
                    await channel.send(message)
                    assert await channel.receive() == message
                    number += 1


# What is under way ---------------------------------------------------------------------------------------------------


async def test_senders_that_wait_for_room_go_on(open_pair: PairFactory) -> None:
    """A hand-over takes what is pending along; who waited for room in that has room then, with nothing else to say."""
    async with open_pair(beta={"services": {"swallow": swallow}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.call("swallow", b"")
        outbox = Outbox(core_of(connection).link, worn=lambda: None, max_records=1)
        outbox.append(bytes(HIGH_WATER))
        woken = trio.Event()

        async def wait_for_room() -> None:
            await outbox.room.park()
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_room)
            await trio.testing.wait_all_tasks_blocked()
            outbox.switch(core_of(connection).link, last=b"")
            with trio.fail_after(1):
                await woken.wait()


async def test_channels_that_are_blocked(open_pair: PairFactory) -> None:
    """A channel without credit moves as it is, and goes on when there is credit again."""
    go = trio.Event()

    async def later(channel: ServiceChannel) -> None:
        await go.wait()
        async for message in channel:
            await channel.send(message)

    async with open_pair(beta={"services": {"later": later}, "channel_window": 4096}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with connection.open_channel("later") as channel, trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(100):
                    await channel.send(b"%d" % number * 500)

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(3):
                await connection.reauthenticate()
            go.set()
            with trio.fail_after(10):
                for number in range(100):
                    assert await channel.receive() == b"%d" % number * 500
                    if number % 20 == 0:
                        await connection.reauthenticate()


async def test_a_large_message_and_many_channels(open_pair: PairFactory) -> None:
    """16 MiB under way, and a thousand channels open: all of it moves."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        message = bytes(range(256)) * 65536
        replies: list[bytes] = []

        async def large() -> None:
            replies.append(await connection.call("echo", message))

        with trio.fail_after(40):
            async with AsyncExitStack() as stack:
                channels = [await stack.enter_async_context(connection.open_channel("echo")) for _ in range(1000)]
                for number, channel in enumerate(channels):
                    await channel.send(b"%d" % number)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(large)
                    while not replies:
                        await connection.reauthenticate()
                for number, channel in enumerate(channels):
                    assert await channel.receive() == b"%d" % number
        assert replies == [message]
        assert connection.statistics().hand_overs >= 1


# Together with other things ------------------------------------------------------------------------------------------


async def test_from_several_tasks_and_both_sides(open_pair: PairFactory) -> None:
    """One at a time, however many want it; each has what it wanted."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.call("echo", b"")
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(connection.reauthenticate)
                    nursery.start_soon(pair.beta.connections[ALPHA].reauthenticate)
        assert connection.statistics().hand_overs >= 4
        assert await connection.call("echo", b"well") == b"well"


async def test_links_that_were_left_are_let_go(open_pair: PairFactory) -> None:
    """A connection keeps its link and no other, on either side, however often it moves."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.call("echo", b"")
        left: list[weakref.ref[SessionStream]] = []
        for _ in range(5):
            left.extend(weakref.ref(core_of(each).link.stream) for each in (connection, pair.beta.connections[ALPHA]))
            await connection.reauthenticate()
        await trio.testing.wait_all_tasks_blocked(0.01)
        gc.collect()
        assert [each() for each in left if each() is not None] == []


@pytest.mark.parametrize("ending", ["close", "drain", "leave", "cancel"])
async def test_whatever_ends_it_meanwhile(open_pair: PairFactory, ending: str) -> None:
    """A connection that is closed, or a node that is left, at any moment of a hand-over, ends as it does else."""
    for ticks in range(0, 60, 6):
        with trio.fail_after(15):
            async with open_pair(beta={"services": {"swallow": swallow}}) as pair:
                connection = await pair.alpha.connect("beta@localhost")
                theirs = await pair.beta.connect("alpha@localhost")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hand_over_until_it_ends, connection)
                    for _ in range(ticks):
                        await trio.lowlevel.checkpoint()
                    if ending == "close":
                        await connection.aclose()
                    elif ending == "drain":
                        await pair.alpha.drain()
                    elif ending == "leave":
                        nursery.cancel_scope.cancel()
                    else:
                        with trio.CancelScope() as scope:
                            scope.cancel()
                            await connection.aclose()
                if ending != "leave":
                    await connection.wait_closed()
                    reason = (await theirs.wait_closed()).reason
                    assert reason is EndReason.CLOSED_BY_PEER or ending == "cancel"
            assert core_of(connection).ended
            assert core_of(theirs).ended


async def hand_over_until_it_ends(connection: Connection) -> None:
    """Again and again; it may be refused once it drains."""
    while not core_of(connection).ended:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, HandshakeError):
            await connection.reauthenticate()


async def test_what_was_sent_before_a_close_arrives(open_pair: PairFactory) -> None:
    """A close in the middle of a hand-over flushes as any other: on both links, in order."""
    for ticks in range(0, 40, 3):
        got: list[int] = []
        ended = trio.Event()

        async def collect(channel: ServiceChannel, got: list[int] = got, ended: trio.Event = ended) -> None:
            async for message in channel:
                got.extend([int(message)])
            ended.set()

        with trio.fail_after(10):
            async with open_pair(beta={"services": {"collect": collect}}) as pair:
                connection = await pair.alpha.connect("beta@localhost")
                channel = connection.open_channel("collect")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hand_over_until_it_ends, connection)
                    for number in range(ticks):
                        await channel.send(b"%d" % number)
                    await channel.aclose()
                    await connection.aclose()
                await ended.wait()
                assert got == list(range(ticks))


# Less than mutual ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [ClientAuth.NO_CLIENT_CERT, ClientAuth.REQUEST_CLIENT_CERT, ClientAuth.REQUIRE_ANY_CLIENT_CERT]
)
async def test_unverified_clients_move_too(open_pair: PairFactory, manager: ManagerFactory, mode: ClientAuth) -> None:
    """A dialer that the acceptor does not verify proves that it is the same one, and stays what it was: unverified."""
    certs = manager("beta@localhost", client_auth=mode)
    async with open_pair(beta={"certs": certs, "services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.call("echo", b"")
        await connection.reauthenticate()
        [theirs] = pair.beta.unverified_connections
        await theirs.reauthenticate()
        assert not theirs.peer.verified
        assert theirs.statistics().hand_overs == connection.statistics().hand_overs == 2
        assert await connection.call("echo", b"well") == b"well"


async def test_dialled_insecurely(
    node: NodeFactory, route_to: Callable[..., Route], rogue_ca: CertificateAuthority, manager: ManagerFactory
) -> None:
    """What was dialled with `insecure_skip_verify` is handed over with it, and is no more than it was."""
    certs = manager("beta@localhost", ca=rogue_ca)
    async with node("beta@localhost", certs, services={"echo": echo}) as beta, node("alpha@localhost") as alpha:
        connection = await alpha.connect("beta@localhost", route_to(beta, insecure_skip_verify=True))
        await connection.reauthenticate()
        assert not connection.peer.verified
        assert core_of(connection).link.insecure
        assert await connection.call("echo", b"well") == b"well"


async def test_a_cookie_is_asked_for_again(open_pair: PairFactory) -> None:
    """Both sides prove on the new link that they know it, as on the first."""
    cookie = {"cookie": "a shared secret of some length"}
    async with open_pair(alpha=cookie, beta={**cookie, "services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.reauthenticate()
        assert await connection.call("echo", b"well") == b"well"


async def test_a_successor_that_the_peer_does_not_trust(
    open_pair: PairFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A new key pair that the peer does not take: reported, and the connection goes on on the old one."""
    certs = manager("alpha@localhost")
    moving = LiveConnections(on_rotation=Renew.HAND_OVER, within=0)
    async with open_pair(alpha={"certs": certs, "live_connections": moving}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with pair.alpha.events() as events:
            certs.update(rogue_ca.issue("alpha@localhost"))
            event = await reported(events, HandOverFailed)
            assert (event.connection, event.cause) == (connection, "rotated")
            assert isinstance(event.error, PeerRejectedError)
            assert event.error.code == "unknown_ca"
            assert connection.superseded
            assert await connection.call("echo", b"well") == b"well"
            certs.update(manager("alpha@localhost").key_pair)
            await reported(events, HandedOver)
        assert connection.generation == 3


async def test_a_certificates_whole_life(
    ca: CertificateAuthority, node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """By the injected clock: made, rotated, handed over before its end; and where nobody rotates, ended with it."""
    now = datetime.now(UTC)

    def clock() -> datetime:
        return now

    short: dict[str, Any] = {"not_before": now - timedelta(hours=1), "not_after": now + timedelta(hours=10)}
    certs = manager("alpha@localhost", clock=clock, **short)
    expiring = LiveConnections(on_expiry=Renew.HAND_OVER, expiry_lead=3600, within=0)
    async with (
        node("beta@localhost", manager("beta@localhost", clock=clock), services={"echo": echo}) as beta,
        node("alpha@localhost", certs, live_connections=expiring) as alpha,
        alpha.events() as events,
    ):
        connection = await alpha.connect("beta@localhost", route_to(beta))
        await connection.call("echo", b"")
        now += timedelta(hours=9, minutes=30)
        certs.update(ca.issue("alpha@localhost", not_before=now, not_after=now + timedelta(hours=10)))
        await reported(events, HandedOver)
        assert connection.generation == 2
        now += timedelta(hours=10, seconds=1)
        alpha._runtime.renewal.rotated(certs)  # have the clock looked at; else it would be within a minute
        with trio.fail_after(10):
            assert (await connection.wait_closed()).reason is EndReason.EXPIRED


async def test_a_successor_that_was_revoked(open_pair: PairFactory, authority: AuthorityFactory) -> None:
    """Revocation is looked at again: a list that the first certificate is not on refuses the second."""
    cluster = authority("a CA for hand-overs")
    good, revoked = cluster.issue("alpha@localhost"), cluster.issue("alpha@localhost")
    cluster.revoke(revoked)
    lists = {"alpha@localhost": None, "beta@localhost": cluster.crl()}
    alpha, beta = (
        CertAuthManager(
            good if name.startswith("alpha") else cluster.issue(name),
            client_cas=cluster.pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=cluster.pool,
            crls=crls,
        )
        for name, crls in lists.items()
    )
    async with open_pair(alpha={"certs": alpha}, beta={"certs": beta, "services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        alpha.update(revoked)
        with pytest.raises(PeerRejectedError) as refused:
            await connection.reauthenticate()
        assert refused.value.code == "certificate_revoked"
        assert await connection.call("echo", b"well") == b"well"
        alpha.update(good)
        await connection.reauthenticate()
        assert connection.generation == 3


async def test_small_writes_wear_keys_too(open_pair: PairFactory) -> None:
    """What is written at once, without the writer, counts like everything else."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        await connection.call("echo", b"")
        noticed: list[int] = []
        outbox = Outbox(core_of(connection).link, worn=lambda: noticed.append(1), max_records=1)
        outbox.append(b"")
        outbox.flush()
        assert noticed == [], "nothing was written"
        outbox.append(bytes.fromhex("0b000008 00000000 0000000000000000"))  # a PING
        outbox.flush()
        assert noticed == [1]


async def test_the_dialer_checks_the_name_again(open_pair: PairFactory, manager: ManagerFactory) -> None:
    """An acceptor whose new certificate does not cover its name is refused; the connection goes on as it was."""
    certs = manager("beta@localhost")
    async with open_pair(beta={"certs": certs, "services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        certs.update(manager("beta@elsewhere.example").key_pair)
        with pytest.raises(PeerUnverifiedError) as refused:
            await connection.reauthenticate()
        assert refused.value.reason == "name_mismatch"
        assert await connection.call("echo", b"well") == b"well"


async def test_the_dialer_authorizes_again(open_pair: PairFactory) -> None:
    """`authorize` is asked on the dialling side, too, each time."""
    asked: list[Peer] = []

    def authorize(peer: Peer) -> None:
        asked.append(peer)
        if len(asked) == 2:
            raise Refused("once is enough")

    async with open_pair(alpha={"authorize": authorize}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        with pytest.raises(PeerUnverifiedError, match="once is enough"):
            await connection.reauthenticate()
        assert await connection.call("echo", b"well") == b"well"
        await connection.reauthenticate()
        assert len(asked) == 3
