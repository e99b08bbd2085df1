"""What nodes and managers count: each thing where it belongs, once, and nothing that a peer could choose."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CredentialRole,
    CRLSet,
    EndReason,
    HandedOver,
    HandshakeError,
    HandshakeOutcome,
    HandshakeReason,
    HandshakeTimeoutError,
    LiveConnections,
    NetworkMode,
    NodeName,
    NodeStatistics,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    RejectionCode,
    Renew,
    RenewalCause,
    Route,
    Side,
    Stage,
    TimeHistogram,
    TrustRotationError,
    UnverifiedReason,
)
from trionode._managers.manager import publisher_of
from trionode._node.statistics import Counters, _Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import AuthorityFactory, ManagerFactory, NodeFactory, Pair, PairFactory, ScriptedListener

    from trionode import (
        Node,
        Peer,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

BETA = NodeName.parse("beta@localhost")
PATIENCE = 10.0

Counts = dict[tuple[Side, HandshakeOutcome, str], int]


def counts(statistics: NodeStatistics) -> Counts:
    """The handshakes of a snapshot, to be compared."""
    return {(each.side, each.outcome, each.reason): each.count for each in statistics.handshakes}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces, and not for ever: the caller asserts what it should have come to."""
    with trio.move_on_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- ditto
            await trio.sleep(0.005)


async def counted(node: Node, expected: Counts) -> None:
    """Wait until a node's handshakes are these."""
    await until(lambda: counts(node.statistics()) == expected)
    assert counts(node.statistics()) == expected


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


# Outcomes -----------------------------------------------------------------------------------------------------------


def handshake_error(reason: str, stage: Stage = Stage.HELLO) -> HandshakeError:
    """One where neither side refused."""
    return HandshakeError("…", stage=stage, reason=reason)


def unverified(reason: UnverifiedReason) -> PeerUnverifiedError:
    """We refused."""
    return PeerUnverifiedError("…", stage=Stage.TLS, reason=reason)


def rejected(code: RejectionCode) -> PeerRejectedError:
    """They refused."""
    return PeerRejectedError("…", stage=Stage.TLS, code=code)


class OvertakenError(Exception):
    """What the dialer raises when it is wanted no more."""


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        *((unverified(each), "refused", each) for each in UnverifiedReason if each != "duplicate"),
        *((rejected(each), "rejected", each) for each in RejectionCode if each != "duplicate"),
        (unverified(UnverifiedReason.DUPLICATE), "duplicate", ""),
        (rejected(RejectionCode.DUPLICATE), "duplicate", ""),
        (rejected("made up"), "rejected", "other"),  # type: ignore[arg-type]
        *((HandshakeTimeoutError("…", stage=each, reason="timeout"), "timeout", each) for each in Stage),
        *((handshake_error(each), "broken", each) for each in HandshakeReason if each != "shed"),
        (handshake_error("silent", Stage.TLS), "broken", "silent"),
        (handshake_error(HandshakeReason.SHED, Stage.TLS), "shed", ""),
        (handshake_error("http request", Stage.TLS), "broken", "tls"),
        (handshake_error("made up"), "broken", "other"),
        (CertificateError("…", reason=CertificateReason.EXPIRED), "failed", "expired"),
        (ZeroDivisionError(), "failed", "unexpected"),
        (OvertakenError(), "abandoned", ""),
        (KeyboardInterrupt(), "abandoned", ""),
        (BaseExceptionGroup("…", [KeyboardInterrupt()]), "abandoned", ""),
    ],
)
async def test_each_outcome_is_counted_for_what_it_is(error: BaseException, outcome: str, reason: str) -> None:
    """By the error's class and words of ours; the error itself goes on."""
    numbers = Counters()
    with pytest.raises(type(error)) as caught, numbers.handshake(Side.DIAL, abandoned=OvertakenError):
        raise error
    assert caught.value is error
    [count] = numbers.handshakes()
    assert (count.side, count.outcome, count.reason, count.count) == (Side.DIAL, outcome, reason, 1)
    assert not any(numbers.pending.values())


async def test_cancelled_is_abandoned() -> None:
    """Also where a nursery made a group of it."""
    numbers = Counters()
    with trio.CancelScope() as scope:
        scope.cancel()
        with numbers.handshake(Side.ACCEPT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()
    assert [each.outcome for each in numbers.handshakes()] == [HandshakeOutcome.ABANDONED]


# Times --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
async def test_a_handshake_is_timed_from_its_contexts_on(side: Side, autojump_clock: trio.testing.MockClock) -> None:
    """What came before is a dial's time to connect, and is not counted of an acceptor."""
    numbers = Counters()
    for _ in range(2):
        with numbers.handshake(side) as on_taken:
            assert numbers.pending[side] == 1
            await trio.sleep(0.5)
            on_taken()
            await trio.sleep(3)
    [timed] = numbers.handshake_times()
    assert (timed.side, timed.outcome) == (side, HandshakeOutcome.ESTABLISHED)
    assert (timed.times.count, timed.times.seconds) == (2, 6)
    assert timed.times.counts[TimeHistogram.bounds.index(5)] == 2
    connected = numbers.connect_times()
    assert (connected.count, connected.seconds) == ((2, 1.0) if side is Side.DIAL else (0, 0))


async def test_what_never_took_contexts_has_no_time() -> None:
    """It is counted all the same."""
    numbers = Counters()
    with pytest.raises(HandshakeError), numbers.handshake(Side.DIAL):
        raise handshake_error("unreachable", Stage.CONNECT)
    assert len(numbers.handshakes()) == 1
    assert numbers.handshake_times() == ()
    assert numbers.connect_times().count == 0


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_has_everything_in_its_bucket(times: list[float]) -> None:
    """Bounds are inclusive, and the last bucket has no end."""
    filled = _Histogram()
    for each in times:
        filled.add(each)
    histogram = filled.snapshot()
    assert histogram.count == len(times)
    assert histogram.seconds == pytest.approx(sum(times))
    lower = -1.0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        assert count == sum(lower < each <= bound for each in times)
        lower = bound


# Nodes --------------------------------------------------------------------------------------------------------------


async def test_both_sides_of_a_connection(open_pair: PairFactory) -> None:
    """One handshake on either side, timed, and connected."""
    async with open_pair() as pair:
        await pair.alpha.connect(BETA)
        await counted(pair.alpha, {(Side.DIAL, HandshakeOutcome.ESTABLISHED, ""): 1})
        await counted(pair.beta, {(Side.ACCEPT, HandshakeOutcome.ESTABLISHED, ""): 1})
        for node, side in ((pair.alpha, Side.DIAL), (pair.beta, Side.ACCEPT)):
            statistics = node.statistics()
            [timed] = statistics.handshake_times
            assert (timed.side, timed.outcome, timed.times.count) == (side, HandshakeOutcome.ESTABLISHED, 1)
            assert 0 < timed.times.seconds < PATIENCE
            assert statistics.connect_times.count == (side is Side.DIAL)
            assert statistics.open


async def test_refused_and_rejected(open_pair: PairFactory) -> None:
    """Who refuses has the reason, who is refused the code."""

    def authorize(peer: Peer) -> None:
        raise Refused("not you")

    async with open_pair(beta={"authorize": authorize}) as pair:
        for _ in range(3):
            with pytest.raises(PeerRejectedError):
                await pair.alpha.connect(BETA)
        await counted(pair.alpha, {(Side.DIAL, HandshakeOutcome.REJECTED, "not_authorized"): 3})
        await counted(pair.beta, {(Side.ACCEPT, HandshakeOutcome.REFUSED, "not_authorized"): 3})


async def test_unknown_peers_add_no_keys(node: NodeFactory) -> None:
    """Silence, nonsense and a client that says nothing for too long."""
    async with node("beta@localhost", handshake_timeout=0.3) as beta:
        address = beta.acceptors[0].address
        async with await trio.open_tcp_stream(*address):
            pass
        await counted(beta, {(Side.ACCEPT, HandshakeOutcome.BROKEN, "silent"): 1})
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            while await stream.receive_some():
                pass
        async with await trio.open_tcp_stream(*address) as stream:
            assert not await stream.receive_some()
        await counted(
            beta,
            {
                (Side.ACCEPT, HandshakeOutcome.BROKEN, "silent"): 1,
                (Side.ACCEPT, HandshakeOutcome.BROKEN, "tls"): 1,
                (Side.ACCEPT, HandshakeOutcome.TIMEOUT, "tls"): 1,
            },
        )
        # The nonsense came with contexts taken, and was timed; silence is not timed.
        [timed] = beta.statistics().handshake_times
        assert (timed.outcome, timed.times.count) == (HandshakeOutcome.BROKEN, 1)


async def test_one_too_many(node: NodeFactory) -> None:
    """Who has said nothing goes; that it was for want of room is told apart."""
    async with node("beta@localhost", max_handshakes=1) as beta:
        address = beta.acceptors[0].address
        async with await trio.open_tcp_stream(*address) as first, await trio.open_tcp_stream(*address):
            assert not await first.receive_some()
            await counted(beta, {(Side.ACCEPT, HandshakeOutcome.SHED, ""): 1})
            assert beta.statistics().pending_handshakes[Side.ACCEPT] == 1


async def test_dials_that_come_to_nothing(node: NodeFactory, scripted_listener: ScriptedListener) -> None:
    """Nothing listens; no answer comes; it is no longer needed."""
    async with node("alpha@localhost", mode=NetworkMode.HIDDEN, handshake_timeout=0.2) as alpha:
        [closed] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nowhere = Route(host="127.0.0.1", port=closed.socket.getsockname()[1])
        await closed.aclose()
        with pytest.raises(HandshakeError):
            await alpha.connect(BETA, nowhere)
        with pytest.raises(HandshakeTimeoutError):
            await alpha.connect(BETA, scripted_listener.route())
        await (await scripted_listener.listener.accept()).aclose()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alpha.connect, BETA, scripted_listener.route())
                async with await scripted_listener.listener.accept() as stream:
                    assert await stream.receive_some()
                    assert alpha.statistics().pending_handshakes == {Side.ACCEPT: 0, Side.DIAL: 1}
                    scope.cancel()
        await counted(
            alpha,
            {
                (Side.DIAL, HandshakeOutcome.BROKEN, "unreachable"): 1,
                (Side.DIAL, HandshakeOutcome.TIMEOUT, "tls"): 1,
                (Side.DIAL, HandshakeOutcome.ABANDONED, ""): 1,
            },
        )
        assert alpha.statistics().connect_times.count == 2


async def test_a_dial_that_is_overtaken_is_abandoned(open_pair: PairFactory, resolve: Callable[..., None]) -> None:
    """While ours still resolves, the other's comes in."""
    resolve("beta.example", None)
    async with open_pair() as pair:
        async with trio.open_nursery() as nursery:
            pair.alpha.add_route(BETA, Route(host="beta.example"), weight=1)
            nursery.start_soon(pair.alpha.connect, BETA)
            await until(lambda: bool(pair.alpha.statistics().pending_handshakes[Side.DIAL]))
            await pair.beta.connect("alpha@localhost")
        await counted(
            pair.alpha,
            {
                (Side.DIAL, HandshakeOutcome.ABANDONED, ""): 1,
                (Side.ACCEPT, HandshakeOutcome.ESTABLISHED, ""): 1,
            },
        )


async def test_bytes_and_channels_never_go_down(open_pair: PairFactory) -> None:
    """What a connection has counted stays when that is gone, and is there once."""
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        before: tuple[int, ...] = (0, 0, 0)
        for round_ in range(1, 4):
            assert await pair.alpha.call(BETA, "echo", bytes(1000)) == bytes(1000)
            connection = pair.alpha.connections[BETA]
            sent = connection.statistics().bytes_sent
            for _ in ("open", "closed"):
                now = pair.alpha.statistics()
                numbers = (now.bytes_sent, now.bytes_received, now.channels_opened)
                assert all(map(int.__ge__, numbers, before))
                assert now.channels_opened == round_
                assert round_ * 1000 < now.bytes_sent < round_ * (sent + 200)
                before = numbers
                await connection.aclose()
        assert pair.alpha.statistics().ends == {EndReason.CLOSED: 3}
        await until(lambda: not pair.beta.statistics().connections)
        assert pair.beta.statistics().ends == {EndReason.CLOSED_BY_PEER: 3}


async def test_a_closed_node_keeps_its_numbers(open_pair: PairFactory) -> None:
    """They can be read, and say that it is closed."""
    async with open_pair() as pair:
        await pair.alpha.connect(BETA)
    statistics = pair.alpha.statistics()
    assert not statistics.open
    assert statistics.connections == 0
    assert counts(statistics) == {(Side.DIAL, HandshakeOutcome.ESTABLISHED, ""): 1}
    assert statistics.ends == {EndReason.SHUTTING_DOWN: 1}


# Hand-overs ---------------------------------------------------------------------------------------------------------


async def moved(pair: Pair, times: int) -> None:
    """Wait until both sides have counted so many hand-overs."""
    nodes = (pair.alpha, pair.beta)
    await until(lambda: all(sum(node.statistics().hand_overs.values()) == times for node in nodes))


@pytest.mark.parametrize("who", ["alpha", "beta"])
async def test_a_hand_over_has_the_cause_of_who_wanted_it(
    open_pair: PairFactory, manager: ManagerFactory, who: str
) -> None:
    """Whichever side dialled: the one that rotated says so, the other that it was asked."""
    at_once = LiveConnections(on_rotation=Renew.HAND_OVER, within=0)
    async with open_pair(**{who: {"live_connections": at_once}}) as pair:
        await pair.alpha.connect(BETA)
        wants, other = (pair.alpha, pair.beta) if who == "alpha" else (pair.beta, pair.alpha)
        wants.options.cert_manager.update(manager(str(wants.name)).key_pair)
        await moved(pair, 1)
        assert wants.statistics().hand_overs == {RenewalCause.ROTATED: 1}
        assert other.statistics().hand_overs == {RenewalCause.ASKED: 1}
        await wants.connections[other.name].reauthenticate()
        await moved(pair, 2)
        assert wants.statistics().hand_overs == {RenewalCause.ROTATED: 1, RenewalCause.BY_HAND: 1}
        assert other.statistics().hand_overs == {RenewalCause.ASKED: 2}
        assert [each.superseded for each in wants.statistics().managers] == [0]


async def test_a_hand_over_that_fails(open_pair: PairFactory) -> None:
    """It is counted by its cause; the handshake that failed is one, too."""
    denied = False

    def authorize(peer: Peer) -> None:
        if denied:
            raise Refused("not now")

    async with open_pair(beta={"authorize": authorize}) as pair:
        connection = await pair.alpha.connect(BETA)
        denied = True
        with pytest.raises(PeerRejectedError):
            await connection.reauthenticate()
        statistics = pair.alpha.statistics()
        assert statistics.hand_overs_failed == {RenewalCause.BY_HAND: 1}
        assert statistics.hand_overs == {}
        assert statistics.connections == 1
        assert counts(statistics)[Side.DIAL, HandshakeOutcome.REJECTED, "not_authorized"] == 1
        denied = False
        async with pair.alpha.events() as events:
            await connection.reauthenticate()
            assert isinstance(await events.receive(), HandedOver)
        assert pair.alpha.statistics().hand_overs == {RenewalCause.BY_HAND: 1}


# Managers -----------------------------------------------------------------------------------------------------------


async def test_generations_of_connections(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """A node's connections by manager and generation, and how many of them a rotation has not reached."""
    second = manager("beta@localhost")
    doors = [AcceptorOptions(host="127.0.0.1", port=0), AcceptorOptions(host="127.0.0.1", port=0, cert_manager=second)]
    async with (
        node("beta@localhost", acceptors=doors) as beta,
        node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha,
        node("gamma@localhost", mode=NetworkMode.HIDDEN) as gamma,
        node("delta@localhost", mode=NetworkMode.HIDDEN) as delta,
    ):
        host, port = beta.acceptors[1].address
        await alpha.connect(BETA, Route(host=host, port=port))
        own, other = beta.statistics().managers
        assert (own.label, own.connections, own.superseded) == ("own", {}, 0)
        assert (other.label, other.connections, other.superseded) == ("1", {1: 1}, 0)
        assert second.update(manager("beta@localhost").key_pair) == 2
        await gamma.connect(BETA, Route(host=host, port=port))
        own, other = beta.statistics().managers
        assert (other.connections, other.superseded) == ({1: 1, 2: 1}, 1)
        assert other.manager == second.statistics()
        assert (other.manager.generation, other.manager.live_generations) == (2, {1: 1, 2: 1})
        assert own.manager.generation == 1
        assert (await delta.connect(BETA, route_to(beta))).peer_generation == 1
        assert beta.statistics().managers[0].connections == {1: 1}


async def test_a_disabled_node_uses_no_manager(node: NodeFactory) -> None:
    """There is nothing to report of one."""
    async with node("alpha@localhost", mode=NetworkMode.DISABLED) as alpha:
        assert alpha.statistics().managers == ()


async def test_refused_rotations_by_reason(
    open_pair: PairFactory, ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> None:
    """Key pairs that cannot be used, and trust that would strand a peer; every reason is there from the start."""
    now = datetime.now(UTC)
    async with open_pair() as pair:
        certs = pair.beta.options.cert_manager
        assert isinstance(certs, CertAuthManager)
        assert set(certs.statistics().refused) == {*CertificateReason, "stranded"}
        assert not any(certs.statistics().refused.values())
        await pair.alpha.connect(BETA)
        expired = ca.issue("localhost", not_before=now - timedelta(days=5), not_after=now - timedelta(days=3))
        for _ in range(2):
            with pytest.raises(CertificateError):
                certs.update(expired)
        with pytest.raises(TrustRotationError):
            certs.rotate_trust(client_cas=rogue_ca.pool)
        [use] = pair.beta.statistics().managers
        refused = {reason: count for reason, count in use.manager.refused.items() if count}
        assert refused == {"expired": 2, "stranded": 1}
        assert publisher_of(certs).refused_updates == 3


def test_trouble_of_a_source(manager: ManagerFactory) -> None:
    """What a follower reports is in the snapshot until it is over."""
    certs, trouble = manager("localhost"), CertificateError("…", reason=CertificateReason.UNREADABLE)
    publisher_of(certs).report_source(trouble)
    assert certs.statistics().source_trouble is trouble
    publisher_of(certs).report_source(None)
    assert certs.statistics().source_trouble is None


def test_what_ends_when(authority: AuthorityFactory) -> None:
    """Leaf, intermediates, both pools, and of several lists of one issuer the newest."""
    root = authority("root")
    middle = authority("middle", below=root)
    key_pair = middle.issue("alpha@localhost")
    old = root.crl(start=-timedelta(days=2), end=timedelta(days=1))
    new = root.crl(start=-timedelta(days=1), end=timedelta(days=7))
    certs = CertAuthManager(
        key_pair,
        client_cas=root.pool | middle.pool,
        root_cas=root.pool,
        crls=CRLSet([*new, *old]),
    )
    found = [(each.role, each.subject, each.not_before, each.not_after) for each in certs.statistics().validities]
    [crl] = new
    expected = [
        (role, f"CN={name}", certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        for role, name, certificate in (
            (CredentialRole.LEAF, "alpha@localhost", key_pair.certificate),
            (CredentialRole.INTERMEDIATE, "middle", middle.certificate),
            (CredentialRole.CLIENT_CA, "root", root.certificate),
            (CredentialRole.CLIENT_CA, "middle", middle.certificate),
            (CredentialRole.ROOT_CA, "root", root.certificate),
        )
    ]
    assert found == [*expected, (CredentialRole.CRL, "CN=root", crl.last_update_utc, crl.next_update_utc)]


def test_dates_are_those_of_what_is_published(ca: CertificateAuthority, rogue_ca: CertificateAuthority) -> None:
    """They are worked out once, and again after anything was published, setters included."""
    certs = CertAuthManager(ca.issue("first.example"), client_cas=ca.pool)
    first = certs.statistics().validities
    assert certs.statistics().validities is first
    certs.set_client_cas(rogue_ca.pool)
    subjects = {each.role: each.subject for each in certs.statistics().validities}
    assert subjects[CredentialRole.CLIENT_CA].startswith("CN=rogue CA")
    certs.update(ca.issue("second.example"))
    assert [each.subject for each in certs.statistics().validities if each.role == "leaf"] == ["CN=second.example"]


def test_the_system_s_cas_are_not_ours_to_renew(ca: CertificateAuthority) -> None:
    """Without a pool there is nothing but the key pair."""
    roles = {each.role for each in CertAuthManager(ca.issue("localhost")).statistics().validities}
    assert roles == {CredentialRole.LEAF}
