"""Rotation of trust: other pools and lists at run time, what becomes of live peers, when a generation is drained."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from ca import TestCA
from effort import effort
from trionode import (
    UNCHANGED,
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    Connection,
    ConnectionDown,
    ConnectionUp,
    CRLPolicy,
    CRLSet,
    EndReason,
    HandshakeRefused,
    KeyPair,
    LiveLink,
    NodeName,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RotationRefused,
    Stage,
    StrandedPeer,
    StrandedPeers,
    TrustRotationError,
    UnverifiedReason,
    _protocol as wire,
)
from trionode._managers.manager import publisher_of
from trionode._managers.trust import LiveEntry, LiveLinks
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from conftest import Authority, AuthorityFactory, NodeFactory, ScriptedPeer
    from cryptography import x509

    from trionode import (
        EventStream,
        NodeEvent,
        Route,
        ServiceChannel,
    )

ALPHA, BETA, GAMMA = (NodeName.parse(f"{name}@localhost") for name in ("alpha", "beta", "gamma"))
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT


@dataclass
class FakePeer:
    """What of a peer a manager looks at."""

    name: NodeName
    certificate: x509.Certificate
    verified: bool = True
    address: tuple[str, int] | None = ("192.0.2.1", 15000)


@dataclass
class FakeStream:
    """What of a stream, and of its session."""

    chain: tuple[x509.Certificate, ...]

    @property
    def session(self) -> FakeStream:
        """Itself."""
        return self

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """What the peer presented."""
        if not self.chain:
            raise ValueError("junk")
        return self.chain


@dataclass
class FakeLink:
    """A link whose other end is made up, and how it ended."""

    generation: int
    peer: FakePeer
    stream: FakeStream
    dialled: bool = False
    ended: list[PeerUnverifiedError] = field(default_factory=list)

    @property
    def as_live(self) -> LiveLink:
        """What the manager takes it for."""
        return cast("LiveLink", self)


def link_to(key_pair: KeyPair, name: NodeName = ALPHA, *, generation: int = 1, dialled: bool = False) -> FakeLink:
    """A link to a peer that presented a key pair."""
    peer = FakePeer(name, key_pair.certificate)
    return FakeLink(generation, peer, FakeStream(key_pair.chain), dialled)


def attached(manager: CertAuthManager, key_pair: KeyPair, name: NodeName = ALPHA, **fields: Any) -> FakeLink:
    """The same, in a manager's ledger."""
    link = link_to(key_pair, name, **fields)
    publisher_of(manager).attach(link.as_live, link.ended.append)
    return link


@contextmanager
def unchanged(manager: CertAuthManager) -> Iterator[None]:
    """What happens inside leaves everything that a manager publishes exactly as it was."""
    before = (
        publisher_of(manager).channel.current,
        publisher_of(manager).policy,
        manager.generation,
        manager.live_generations,
    )
    yield
    after = (
        publisher_of(manager).channel.current,
        publisher_of(manager).policy,
        manager.generation,
        manager.live_generations,
    )
    assert after[0] is before[0]
    assert after[1] is before[1]
    assert after[2:] == before[2:]


@pytest.fixture(scope="module")
def old() -> CertificateAuthority:
    """The CA that is to be retired."""
    return CertificateAuthority.create(common_name="old CA")


@pytest.fixture(scope="module")
def new() -> CertificateAuthority:
    """The CA that takes its place."""
    return CertificateAuthority.create(common_name="new CA")


@pytest.fixture
def overlap(old: CertificateAuthority, new: CertificateAuthority) -> CertAuthManager:
    """A manager in the overlap: it trusts both, in both directions."""
    pool = old.pool | new.pool
    return CertAuthManager(new.issue("beta@localhost"), client_cas=pool, client_auth=MUTUAL, root_cas=pool)


@pytest.fixture(scope="module")
def leaving(old: CertificateAuthority) -> KeyPair:
    """A key pair that only the old CA vouches for."""
    return old.issue("alpha@localhost")


@pytest.fixture(scope="module")
def staying(new: CertificateAuthority) -> KeyPair:
    """A key pair of the new CA."""
    return new.issue("gamma@localhost")


# What is published --------------------------------------------------------------------------------------------------


async def test_it_publishes_the_next_generation(
    overlap: CertAuthManager, old: CertificateAuthority, new: CertificateAuthority
) -> None:
    """The same key pair, the trust that was given, the rest as it was; whoever waits wakes."""
    before = await overlap.contexts.receive()
    woke: list[int] = []

    async def wait() -> None:
        await overlap.wait_generation(2)
        woke.append(overlap.generation)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert overlap.rotate_trust(client_cas=new.pool) == 2
    assert woke == [2]
    after = await overlap.contexts.receive()
    assert after.generation == overlap.generation == 2
    assert after.key_pair is before.key_pair is overlap.key_pair
    assert overlap.client_cas == new.pool
    assert overlap.root_cas == old.pool | new.pool
    assert overlap.crls is None
    assert overlap.update(before.key_pair) == 3
    assert overlap.client_cas == new.pool


async def test_pools_rotate_in_use(overlap: CertAuthManager, old: CertificateAuthority) -> None:
    """It is not a setter: what is fixed at start-up for those rotates here, the system's CAs included."""
    with publisher_of(overlap).use(as_server=True):
        assert overlap.rotate_trust(client_cas=old.pool, root_cas=None) == 2
        assert overlap.root_cas is None
        assert overlap.rotate_trust() == 3
    assert overlap.client_cas == old.pool


def test_the_sentinel_says_what_it_is() -> None:
    """UNCHANGED in a signature or a message reads as what it is."""
    assert repr(UNCHANGED) == "UNCHANGED"


def test_nonsense_is_refused_at_once(overlap: CertAuthManager, old: CertificateAuthority) -> None:
    """Wrong types are no trust."""
    for wrong in (
        {"client_cas": old.certificate},
        {"root_cas": [old.certificate]},
        {"crls": b"-----BEGIN X509 CRL-----"},
        {"stranded": "close"},
    ):
        with unchanged(overlap), pytest.raises(TypeError, match=f"{next(iter(wrong))} must be a"):
            overlap.rotate_trust(**cast("dict[str, Any]", wrong))
    with pytest.raises(TypeError, match="crl_policy must be a CRLPolicy"):
        CertAuthManager(overlap.key_pair, crl_policy=cast("CRLPolicy", "strict"))


async def test_a_mode_that_verifies_keeps_client_cas(overlap: CertAuthManager) -> None:
    """No client CAs under a mode that verifies: refused, counted, and told to whoever waits for that."""
    refused: list[object] = []

    async def wait() -> None:
        refused.append(await publisher_of(overlap).wait_refused(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with unchanged(overlap), pytest.raises(CertificateError) as caught:
            overlap.rotate_trust(client_cas=None)
    assert caught.value.reason is CertificateReason.NO_CLIENT_CAS
    assert refused == [caught.value]
    assert publisher_of(overlap).refused_updates == 1


async def test_it_belongs_to_the_managers_thread(overlap: CertAuthManager, old: CertificateAuthority) -> None:
    """The rule of update(): in use, from its Trio thread only; unused, from anywhere."""
    with publisher_of(overlap).use(as_server=False), unchanged(overlap):
        for verb in (overlap.rotate_trust, overlap.stranded_by):
            with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
                await trio.to_thread.run_sync(verb)
    assert await trio.to_thread.run_sync(overlap.rotate_trust) == 2


# Whom it would strand -----------------------------------------------------------------------------------------------


def test_a_rotation_that_would_strand_somebody_is_refused(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, staying: KeyPair
) -> None:
    """It names who presents what only the old CA vouches for, says what to do, and changes nothing."""
    accepted, dialled = attached(overlap, leaving), attached(overlap, leaving, dialled=True)
    fine = attached(overlap, staying, GAMMA)
    with unchanged(overlap), pytest.raises(TrustRotationError) as caught:
        overlap.rotate_trust(client_cas=new.pool)
    [peer] = caught.value.peers
    assert (peer.name, peer.pool, peer.reason, peer.newly) == (ALPHA, "client_cas", UnverifiedReason.UNKNOWN_CA, True)
    assert (peer.certificate, peer.generation) == (leaving.certificate, 1)
    assert peer.subject == "CN=alpha@localhost"
    assert peer.issuer.startswith("CN=old CA,")
    assert str(peer) in str(caught.value)
    assert str(peer) == f"alpha@localhost (CN=alpha@localhost, issued by {peer.issuer}; client_cas: unknown ca)"
    for words in ("would strand 1 live peer,", "nothing was changed", "StrandedPeers.CLOSE", "rotated and connected"):
        assert words in str(caught.value)
    with unchanged(overlap), pytest.raises(TrustRotationError, match="would strand 2 live peers,") as caught:
        overlap.rotate_trust(client_cas=new.pool, root_cas=new.pool)
    assert {peer.pool for peer in caught.value.peers} == {"client_cas", "root_cas"}
    assert not accepted.ended + dialled.ended + fine.ended
    publisher_of(overlap).detach(accepted.as_live)
    assert overlap.rotate_trust(client_cas=new.pool) == 2


def test_a_refusal_names_the_first_and_carries_all(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair
) -> None:
    """A text that a person can read, and everybody as data; a pickled copy has the text."""
    for number in range(12):
        attached(overlap, leaving, NodeName("alpha", f"host-{number:02}.example"))
    with pytest.raises(TrustRotationError, match=r"12 live peers.*host-09\.example .*; and 2 more\.") as caught:
        overlap.rotate_trust(client_cas=new.pool)
    assert "host-10" not in str(caught.value)
    hosts = [peer.name and peer.name.host for peer in caught.value.peers]
    assert hosts == [f"host-{number:02}.example" for number in range(12)]
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own
    assert (type(copied), str(copied), copied.peers) == (TrustRotationError, str(caught.value), ())


def test_saying_it_beforehand(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, staying: KeyPair
) -> None:
    """stranded_by() answers for the same arguments, and changes nothing."""
    attached(overlap, leaving)
    attached(overlap, staying, GAMMA)
    with unchanged(overlap):
        [peer] = overlap.stranded_by(client_cas=new.pool)
        assert isinstance(peer, StrandedPeer)
        assert (peer.name, peer.newly) == (ALPHA, True)
        assert overlap.stranded_by() == overlap.stranded_by(root_cas=new.pool) == ()


def test_keeping_them(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    """KEEP publishes, says who stays without being vouched for, and they may be ended later."""
    link = attached(overlap, leaving)
    assert overlap.rotate_trust(client_cas=new.pool, stranded=StrandedPeers.KEEP) == 2
    assert not link.ended
    [warning] = [each.getMessage() for each in caplog.records if each.name == "trionode.security"]
    assert warning.startswith("connection kept, though its peer could not connect again: alpha@localhost: client")
    [peer] = overlap.stranded_by()
    assert not peer.newly
    # What is stranded already does not stand in the way of the next rotation.
    assert overlap.rotate_trust() == 3
    assert overlap.rotate_trust(stranded=StrandedPeers.CLOSE) == 4
    assert len(link.ended) == 1


def test_closing_them(overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, staying: KeyPair) -> None:
    """CLOSE publishes first, then ends exactly those, with the reason."""
    generations: list[int] = []
    link, fine = link_to(leaving), attached(overlap, staying, GAMMA)

    def end(error: PeerUnverifiedError) -> None:
        generations.append(overlap.generation)
        link.ended.append(error)
        publisher_of(overlap).detach(link.as_live)

    publisher_of(overlap).attach(link.as_live, end)
    assert overlap.rotate_trust(client_cas=new.pool, root_cas=new.pool, stranded=StrandedPeers.CLOSE) == 2
    [error] = link.ended
    assert generations == [2]
    assert error.reason is UnverifiedReason.UNKNOWN_CA
    assert error.stage is Stage.TLS
    assert error.certificate == leaving.certificate
    assert (error.address, error.generation) == (("192.0.2.1", 15000), 1)
    assert str(error).startswith("peer no longer trusted: alpha@localhost: client certificate refused: CN=alpha")
    assert not fine.ended
    assert overlap.live_generations == {1: 1}


def test_one_end_that_fails_does_not_save_the_others(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in ending one connection is logged, the rest are ended, and the trust is published."""

    def fail(_: PeerUnverifiedError) -> None:
        raise ZeroDivisionError

    publisher_of(overlap).attach(link_to(leaving).as_live, fail)
    other = attached(overlap, leaving)
    assert overlap.rotate_trust(client_cas=new.pool, stranded=StrandedPeers.CLOSE) == 2
    assert len(other.ended) == 1
    assert [each.exc_info for each in caplog.records if each.levelno == logging.ERROR]


def test_peers_whom_nobody_verified_are_not_judged(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair
) -> None:
    """Trust was no reason to let them in, and is none to end them."""
    link = link_to(leaving)
    link.peer.verified = False
    publisher_of(overlap).attach(link.as_live, link.ended.append)
    assert overlap.rotate_trust(client_cas=new.pool, stranded=StrandedPeers.CLOSE) == 2
    assert not link.ended


def test_dates_are_no_reason(old: CertificateAuthority, new: CertificateAuthority) -> None:
    """A peer whose certificate has expired meanwhile is trusted still, and stranded when its CA goes."""
    now = datetime.now(UTC) + timedelta(days=200)
    past, pool = old.issue("alpha@localhost"), old.pool | new.pool
    ours = new.issue("beta@localhost", not_after=now + timedelta(days=1))
    manager = CertAuthManager(ours, client_cas=pool, client_auth=MUTUAL, clock=lambda: now)
    link = attached(manager, past)
    assert manager.stranded_by() == ()
    [peer] = manager.stranded_by(client_cas=new.pool)
    assert peer.newly
    manager.rotate_trust(client_cas=new.pool, stranded=StrandedPeers.CLOSE)
    assert link.ended[0].reason is UnverifiedReason.UNKNOWN_CA


def test_a_chain_that_cannot_be_read_is_not_vouched_for(overlap: CertAuthManager, leaving: KeyPair) -> None:
    """Junk behind a leaf neither fails a rotation nor passes it."""
    link = link_to(leaving)
    link.stream.chain = ()
    publisher_of(overlap).attach(link.as_live, link.ended.append)
    [peer] = overlap.stranded_by()
    assert (peer.reason, peer.newly) == (UnverifiedReason.BAD_CHAIN, False)
    assert overlap.rotate_trust() == 2
    overlap.rotate_trust(stranded=StrandedPeers.CLOSE)
    assert link.ended[0].reason is UnverifiedReason.BAD_CHAIN


# Lists --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(authority: AuthorityFactory) -> Authority:
    """A CA that revokes."""
    return authority("the cluster's CA")


def listening(cluster: Authority, crls: CRLSet | None, policy: CRLPolicy | None = None) -> CertAuthManager:
    """A manager of beta's that trusts that CA and heeds a list."""
    pool = cluster.pool
    return CertAuthManager(
        cluster.issue("beta@localhost"),
        client_cas=pool,
        client_auth=MUTUAL,
        root_cas=pool,
        crls=crls,
        crl_policy=policy or CRLPolicy(),
    )


@pytest.mark.parametrize("stranded", StrandedPeers)
def test_whoever_was_revoked_is_ended_in_any_case(
    cluster: Authority, stranded: StrandedPeers, caplog: pytest.LogCaptureFixture
) -> None:
    """A new list ends the connections of those who are on it, whatever is to become of others, and says so."""
    manager = listening(cluster, None)
    thief, honest = cluster.issue("alpha@localhost"), cluster.issue("gamma@localhost")
    dialled, accepted = attached(manager, thief, dialled=True), attached(manager, thief)
    fine = attached(manager, honest, GAMMA)
    cluster.revoke(thief, "keyCompromise")
    crls = cluster.crl()
    assert [(peer.name, peer.revoked) for peer in manager.stranded_by(crls=crls)] == [(ALPHA, True)] * 2
    assert manager.rotate_trust(crls=crls, stranded=stranded) == 2
    for link in (dialled, accepted):
        [error] = link.ended
        assert error.reason is UnverifiedReason.REVOKED
        assert f"has been revoked: serial {thief.certificate.serial_number:x} was revoked on " in str(error)
        assert "keyCompromise" in str(error)
    assert not fine.ended
    assert manager.crls == crls
    said = [each.getMessage() for each in caplog.records if each.name == "trionode.security"]
    assert len([each for each in said if each.startswith("connection ended, its peer is no longer trusted")]) == 2


def test_a_list_that_leaves_peers_unknown(cluster: Authority, authority: AuthorityFactory) -> None:
    """Somebody else's list, or an expired one: it would keep everybody out, so it is refused unless told otherwise."""
    manager = listening(cluster, cluster.crl())
    link = attached(manager, cluster.issue("alpha@localhost"))
    for useless in (authority("a stranger").crl(), cluster.crl(start=-timedelta(days=2), end=-timedelta(days=1))):
        with unchanged(manager), pytest.raises(TrustRotationError, match="revocation unknown") as caught:
            manager.rotate_trust(crls=useless)
        assert [peer.reason for peer in caught.value.peers] == [UnverifiedReason.REVOCATION_UNKNOWN]
    manager.rotate_trust(crls=useless, stranded=StrandedPeers.KEEP)
    assert not link.ended
    # And the way back is open.
    assert manager.rotate_trust(crls=cluster.crl()) == 3
    assert manager.stranded_by() == ()


def test_a_list_that_has_expired_anyway_holds_up_nobody(cluster: Authority) -> None:
    """Where the status was unknown before, the next list is published, and what it revokes is ended."""
    manager = listening(cluster, cluster.crl(start=-timedelta(days=3), end=-timedelta(days=2)))
    thief, honest = cluster.issue("alpha@localhost"), cluster.issue("gamma@localhost")
    bad, fine = attached(manager, thief), attached(manager, honest, GAMMA)
    cluster.revoke(thief)
    assert manager.rotate_trust(crls=cluster.crl(start=-timedelta(days=2), end=-timedelta(days=1))) == 2
    assert [error.reason for error in bad.ended] == [UnverifiedReason.REVOKED]
    assert not fine.ended


def test_the_policy_is_heard(cluster: Authority) -> None:
    """What the policy lets pass strands nobody."""
    manager = listening(cluster, None, CRLPolicy(allow_expired=True))
    attached(manager, cluster.issue("alpha@localhost"))
    assert manager.rotate_trust(crls=cluster.crl(start=-timedelta(days=2), end=-timedelta(days=1))) == 2
    assert manager.crl_policy == CRLPolicy(allow_expired=True)


def test_no_more_lists(cluster: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """crls=None ends the checking, loudly."""
    manager = listening(cluster, cluster.crl())
    manager.rotate_trust(crls=None)
    assert manager.crls is None
    assert any("no longer checked for revocation" in each.getMessage() for each in caplog.records)
    caplog.clear()
    manager.rotate_trust(crls=None)
    assert not [each for each in caplog.records if each.name == "trionode.security"]


# Handshakes that were under way -------------------------------------------------------------------------------------


def test_a_link_that_comes_late_is_judged_by_what_is_trusted_then(
    overlap: CertAuthManager, new: CertificateAuthority, leaving: KeyPair, staying: KeyPair
) -> None:
    """A handshake that took its contexts before the rotation does not slip in behind it, even where others are kept."""
    overlap.rotate_trust(client_cas=new.pool, stranded=StrandedPeers.KEEP)
    late = attached(overlap, leaving, generation=1)
    assert [error.reason for error in late.ended] == [UnverifiedReason.UNKNOWN_CA]
    assert not attached(overlap, leaving, generation=1, dialled=True).ended
    assert not attached(overlap, staying, generation=1).ended
    assert not attached(overlap, staying, generation=2).ended
    overlap.update(overlap.key_pair)
    assert not attached(overlap, staying, generation=2).ended


# Drained ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=40))
@settings(max_examples=effort(30))
def test_the_ledger_counts(steps: list[tuple[bool, int]]) -> None:
    """Law: however links come and go, the count of each generation is right, and drained is who has none up to it."""
    ledger, present = LiveLinks(), list[FakeLink]()
    peer, stream = cast("Any", None), cast("Any", None)
    for coming, number in steps:
        if coming:
            present.append(FakeLink(number, peer, stream))
            for _ in range(2):  # once more is no other link
                ledger.add(LiveEntry(present[-1].as_live, present[-1].ended.append))
        elif present:
            gone = present.pop(number % len(present))
            for _ in range(2):
                ledger.remove(gone.as_live)
        assert ledger.generations == Counter(link.generation for link in present)
        oldest = min((link.generation for link in present), default=99)
        for generation in range(6):
            assert trio.run(is_drained, ledger, generation) == (oldest > generation)


async def is_drained(ledger: LiveLinks, generation: int) -> bool:
    """Whether drained() returns at once."""
    with trio.move_on_after(0) as scope:
        await ledger.drained(generation)
    return not scope.cancelled_caught


async def test_waiting_until_a_generation_is_drained(overlap: CertAuthManager, staying: KeyPair) -> None:
    """Each waiter wakes when its generation and all older ones have no connection left, and not before."""
    links = [attached(overlap, staying, generation=generation) for generation in (1, 2, 2)]
    assert overlap.live_generations == {1: 1, 2: 2}
    woke: list[int] = []

    async def wait(generation: int) -> None:
        await overlap.drained(generation)
        woke.append(generation)

    with trio.fail_after(5):
        with trio.testing.assert_checkpoints():
            await overlap.drained(0)
        async with trio.open_nursery() as nursery:
            for generation in (2, 1):
                nursery.start_soon(wait, generation)
            await trio.testing.wait_all_tasks_blocked()
            publisher_of(overlap).detach(links[1].as_live)
            await trio.testing.wait_all_tasks_blocked()
            assert not woke
            publisher_of(overlap).detach(links[0].as_live)
            await trio.testing.wait_all_tasks_blocked()
            assert woke == [1]
            publisher_of(overlap).detach(links[2].as_live)
    assert woke == [1, 2]
    assert overlap.live_generations == {}


async def test_one_that_was_under_way_comes_before_the_waiter_runs(overlap: CertAuthManager, staying: KeyPair) -> None:
    """Drained is what is true when it returns, not what was true when it was woken."""
    first = attached(overlap, staying, generation=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(overlap.drained, 1)
        await trio.testing.wait_all_tasks_blocked()
        publisher_of(overlap).detach(first.as_live)
        second = attached(overlap, staying, generation=1)  # in the same tick
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        publisher_of(overlap).detach(second.as_live)


async def test_a_cancelled_waiter_and_another_run(overlap: CertAuthManager, staying: KeyPair) -> None:
    """Waiting claims the manager for its run, and cancelling gives it back."""
    link = attached(overlap, staying)

    async def elsewhere() -> None:
        await overlap.drained(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(overlap.drained, 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another Trio run"):
            await trio.to_thread.run_sync(trio.run, elsewhere)
        nursery.cancel_scope.cancel()
    publisher_of(overlap).detach(link.as_live)
    await trio.to_thread.run_sync(trio.run, elsewhere)


# Nodes --------------------------------------------------------------------------------------------------------------


async def until(events: EventStream, kind: type[NodeEvent]) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


def mutual(key_pair: KeyPair, pool: CAPool, **more: Any) -> CertAuthManager:
    """A manager for mutual TLS with one pool for both directions."""
    return CertAuthManager(key_pair, client_cas=pool, client_auth=MUTUAL, root_cas=pool, **more)


async def wait_for_ever(channel: ServiceChannel) -> None:
    """A service that ends when its peer does."""
    await channel.send(b"here")
    await trio.sleep_forever()


class Remade:
    """A CA that was made anew under its name, and without key identifiers: only the key tells it from its former self.

    Attributes:
        pool: its own certificate, to trust.
    """

    def __init__(self) -> None:
        self._ca = TestCA("the CA", key_ids=False)
        self.pool = self._ca.pool

    def issue(self, name: str) -> KeyPair:
        """A key pair for a node."""
        return self._ca.leaf(NodeName.parse(name).host)


@pytest.mark.parametrize("same_name", [False, True])
async def test_retiring_a_ca(node: NodeFactory, route_to: Callable[..., Route], same_name: bool) -> None:
    """From one CA to another while two nodes stay connected: overlap, rotate, wait until drained, retire."""
    make = Remade if same_name else CertificateAuthority.create
    old, new = make(), make()
    alpha_certs, beta_certs = mutual(old.issue(str(ALPHA)), old.pool), mutual(old.issue(str(BETA)), old.pool)
    both = old.pool | new.pool
    with trio.fail_after(10):
        async with node(str(ALPHA), alpha_certs) as alpha, node(str(BETA), beta_certs) as beta:
            alpha.add_route(str(BETA), route_to(beta))
            first = await alpha.connect(str(BETA))
            async with beta.events() as events:
                with pytest.raises(TrustRotationError, match="alpha@localhost") as caught:
                    beta_certs.rotate_trust(client_cas=new.pool, root_cas=new.pool)
                refused = await until(events, RotationRefused)
            assert refused.error is caught.value
            for certs, name in (alpha_certs, ALPHA), (beta_certs, BETA):
                assert certs.rotate_trust(client_cas=both, root_cas=both) == 2
                assert certs.update(new.issue(str(name))) == 3
            for certs in alpha_certs, beta_certs:
                assert len(certs.stranded_by(client_cas=new.pool, root_cas=new.pool)) == 1
                assert certs.live_generations == {1: 1}
            async with trio.open_nursery() as nursery:
                for certs in alpha_certs, beta_certs:
                    nursery.start_soon(certs.drained, 2)
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 2
                await first.aclose()
            second = await alpha.connect(str(BETA))
            for certs in alpha_certs, beta_certs:
                assert certs.rotate_trust(client_cas=new.pool, root_cas=new.pool) == 4
            assert second.live
            await second.aclose()
            assert (await alpha.connect(str(BETA))).generation == 4
            with pytest.raises(PeerRejectedError) as rejected:
                async with node("gamma@localhost", mutual(old.issue("gamma@localhost"), both)) as gamma:
                    await gamma.connect(str(BETA), route_to(beta))
            assert rejected.value.code is RejectionCode.UNKNOWN_CA


async def test_a_live_peer_that_is_revoked(
    node: NodeFactory, route_to: Callable[..., Route], authority: AuthorityFactory
) -> None:
    """A new list ends the connection, cancels what was served over it, tells the peer, and keeps it out."""
    cluster = authority("the cluster's CA")
    pool = cluster.pool
    thief = cluster.issue(str(ALPHA))
    beta_certs = mutual(cluster.issue(str(BETA)), pool, crls=cluster.crl())
    services = {"stay": wait_for_ever}
    with trio.fail_after(10):
        async with (
            node(str(BETA), beta_certs, services=services) as beta,
            node(str(ALPHA), mutual(thief, pool)) as alpha,
            node(str(GAMMA), mutual(cluster.issue(str(GAMMA)), pool)) as gamma,
            beta.events() as events,
        ):
            for each in alpha, gamma:
                each.add_route(str(BETA), route_to(beta))
            stays = await gamma.connect(str(BETA))
            connection = await alpha.connect(str(BETA))
            async with connection.open_channel("stay") as channel:
                assert await channel.receive() == b"here"
                cluster.revoke(thief, "keyCompromise")
                assert beta_certs.rotate_trust(crls=cluster.crl()) == 2
                assert ALPHA not in beta.connections
                down = await until(events, ConnectionDown)
                assert down.peer.name == ALPHA
                assert down.reason is EndReason.UNVERIFIED
                assert isinstance(down.error, PeerUnverifiedError)
                assert down.error.reason is UnverifiedReason.REVOKED
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await channel.receive()
            assert "unverified" in str(caught.value.__cause__)
            assert (await connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER
            assert stays.live
            with pytest.raises(PeerRejectedError) as rejected:
                await alpha.connect(str(BETA))
            assert rejected.value.code is RejectionCode.CERTIFICATE_REVOKED
            refused = await until(events, HandshakeRefused)
            assert refused.error.reason is UnverifiedReason.REVOKED
            assert "keyCompromise" in str(refused.error)
            assert beta_certs.live_generations == {1: 1}
        assert beta_certs.live_generations == {}


async def test_a_handshake_under_way_does_not_slip_in(
    node: NodeFactory,
    old: CertificateAuthority,
    new: CertificateAuthority,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
) -> None:
    """Whoever is between TLS and hello when its CA is retired has a connection that ends at once."""
    certs = mutual(new.issue(str(BETA)), old.pool | new.pool)
    with trio.fail_after(10):
        async with node(str(BETA), certs) as beta, beta.events() as events:
            peer = await scripted_dial(beta, mutual(old.issue(str(ALPHA)), old.pool | new.pool))
            async with peer.stream:
                await peer.say(peer.hello(str(ALPHA)))
                assert (await peer.hear(wire.Answer)).refusal is None
                assert certs.rotate_trust(client_cas=new.pool) == 2  # nobody is connected, so nobody is stranded
                await peer.say(wire.Confirmation())
                up = await until(events, ConnectionUp)
                assert isinstance(up.connection, Connection)
                assert up.connection.generation == 1
                down = await until(events, ConnectionDown)
                assert down.reason is EndReason.UNVERIFIED
                assert down.error.reason is UnverifiedReason.UNKNOWN_CA
                goodbye = wire.decode(wire.End, (await peer.frame(wire.GOODBYE))[2])
                assert goodbye.code == "unverified"
            assert not beta.connections


async def test_loosened_lists_are_said_loudly(
    node: NodeFactory, authority: AuthorityFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A node whose manager lets unknown certificates pass says so at its start."""
    cluster = authority("the cluster's CA")
    certs = mutual(
        cluster.issue(str(ALPHA)), cluster.pool, crls=cluster.crl(), crl_policy=CRLPolicy(allow_missing=True)
    )
    async with node(str(ALPHA), certs):
        pass
    [said] = [each.getMessage() for each in caplog.records if each.name == "trionode.security"]
    assert "alpha@localhost: crl_policy: certificates may pass though they were revoked" in said
    assert "allow_missing=True" in said
