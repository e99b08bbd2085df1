"""One judge of trust: whatever the CAs, names, keys, lists, scopes, numbers and dates, everything says the same.

A handshake, `stranded_by` of a live peer, `rotate_trust`, the handshake after it, and `check`, in both directions.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from hypothesis import assume, given, settings, strategies as st

from ca import DAY, HOUR, TestCA, distribution_point, key_usage, lists, new_key, point
from effort import effort
from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    CRLPolicy,
    CRLSet,
    FindingCode,
    KeyPair,
    LiveLink,
    NodeName,
    PeerUnverifiedError,
    Severity,
    StrandedPeers,
    TrustRotationError,
    UnverifiedReason,
    check_key_pair,
)
from trionode._credentials.policy import TLSPolicy
from trionode._managers.manager import publisher_of
from trionode._tls.contexts import TLSContexts
from trionode._tls.handshake import handshake_in_memory
from trionode._tls.judge import Judge
from trionode._tls.verification import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable

MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
NAMES = ("one", "two")
KEYS = tuple(new_key() for _ in range(4))
DATES = {UnverifiedReason.EXPIRED, UnverifiedReason.NOT_YET_VALID}
URL = "http://crl.example/a.crl"
OURS = TestCA("ours").leaf()

serials = st.integers(1, 3)
spans = st.sampled_from(
    [
        {"start": -DAY, "end": DAY},
        {"start": -DAY, "end": DAY},
        {"start": -3 * DAY, "end": -DAY},
        {"start": DAY, "end": 2 * DAY},
    ]
)


@dataclass
class World:
    """What somebody trusts, what a peer presents, and what was trusted before.

    Attributes:
        peer: presents its chain.
        before: pools and lists by which the peer was let in.
        after: those that are to come.
        policy: how strictly lists are applied.
    """

    peer: KeyPair
    before: tuple[CAPool, CRLSet | None]
    after: tuple[CAPool, CRLSet | None]
    policy: CRLPolicy

    def tls(self, trust: tuple[CAPool, CRLSet | None]) -> TLSPolicy:
        """A policy for both directions."""
        return TLSPolicy(
            client_cas=trust[0], root_cas=trust[0], client_auth=MUTUAL, crls=trust[1], crl_policy=self.policy
        )


@st.composite
def cas(draw: Callable[..., Any]) -> list[TestCA]:
    """A few CAs, roots and intermediates; names and keys may be the same."""
    made: list[TestCA] = []
    for _ in range(draw(st.integers(1, 4))):
        below = draw(st.sampled_from([None, *made]))
        made.append(
            TestCA(
                draw(st.sampled_from(NAMES)),
                below=below,
                key=draw(st.sampled_from(KEYS)),
                key_ids=draw(st.booleans()),
                usage=draw(st.sampled_from([None, key_usage("key_cert_sign", "crl_sign"), key_usage("key_cert_sign")])),
                serial=draw(serials),
                **draw(spans),
            )
        )
    return made


@st.composite
def crls(draw: Callable[..., Any], some: list[TestCA]) -> CRLSet | None:
    """A few lists, some of which nobody signed who should have."""
    made = []
    for _ in range(draw(st.integers(0, 4))):
        ca = draw(st.sampled_from(some))
        scope = draw(st.sampled_from([None, None, point(user_only=True), point(ca_only=True), point(URL)]))
        odd = [x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")]
        made.append(
            ca.crl(
                *draw(st.sets(serials)),
                number=draw(st.sampled_from([None, 1, 2, 3])),
                point=scope,
                extensions=draw(st.sampled_from([[], [], [], odd])),
                key=draw(st.sampled_from([ca.key, ca.key, ca.key, *KEYS])),
                **draw(spans),
            )
        )
    return lists(*made) if made else None


@st.composite
def worlds(draw: Callable[..., Any]) -> World:
    """Any world."""
    some = draw(cas())
    issuer = draw(st.sampled_from(some))
    leaf = issuer.leaf(
        serial=draw(serials),
        extensions=draw(st.sampled_from([[], [distribution_point(URL)]])),
        **draw(spans),
    )
    sent = draw(st.permutations([each.certificate for each in some]))[: draw(st.integers(0, 3))]
    peer = unchecked(leaf, sent)
    candidates = [*(each.certificate for each in some), leaf.certificate]
    pools = [draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=4)) for _ in range(2)]
    loosened = {name: draw(st.booleans()) for name in ("allow_missing", "allow_expired", "leaf_only")}
    return World(
        peer=peer,
        before=(CAPool(pools[0]), draw(crls(some))),
        after=(CAPool(pools[1]), draw(crls(some))),
        policy=CRLPolicy(**loosened),
    )


def unchecked(leaf: KeyPair, sent: list[x509.Certificate]) -> KeyPair:
    """A key pair that sends along whatever, in any order."""
    made = KeyPair(leaf.chain[:1], leaf.private_key)
    object.__setattr__(made, "chain", (leaf.certificate, *sent))
    return made


def in_handshake(world: World, policy: TLSPolicy, *, accepting: bool) -> UnverifiedReason | None:
    """What a handshake with the peer ends with on our side."""
    ours = TLSContexts.build(1, OURS, policy)
    theirs = TLSContexts.build(1, world.peer, TLSPolicy())
    server, client = (ours, theirs) if accepting else (theirs, ours)
    failure = handshake_in_memory(
        server.server.session(), client.client.session(reference="localhost", insecure_skip_verify=accepting)
    )
    if failure is None:
        return None
    assert isinstance(failure, PeerUnverifiedError), failure
    return failure.reason


def undated(reason: UnverifiedReason | None) -> UnverifiedReason | None:
    """What is said of a live peer: dates come last, and are no reason."""
    return None if reason in DATES else reason


@dataclass
class FakePeer:
    """What of a peer a manager looks at."""

    certificate: x509.Certificate
    name: NodeName = NodeName.parse("peer@localhost")  # noqa: RUF009 -- immutable
    verified: bool = True
    address: None = None


@dataclass
class FakeLink:
    """A live link."""

    peer: FakePeer
    stream: Any
    dialled: bool
    generation: int = 1


@dataclass
class FakeStream:
    """Its stream, and the session of that."""

    peer_chain: tuple[x509.Certificate, ...]

    @property
    def session(self) -> FakeStream:
        """Itself."""
        return self


@given(world=worlds(), accepting=st.booleans())
@settings(max_examples=effort(80))
def test_everything_says_the_same(world: World, accepting: bool) -> None:
    """Law: see the module."""
    policy = world.tls(world.after)
    reason = in_handshake(world, policy, accepting=accepting)
    for dated, expected in ((True, reason), (False, undated(reason))):
        refusal = refusal_of(Judge(policy, accepting=accepting), world.peer.chain, dated=dated)
        assert (refusal and refusal.reason) == expected
    path = Judge(policy, accepting=accepting).judge(world.peer.chain).path
    assert bool(path) == (reason is None)
    for below, above in pairwise(path):
        below.verify_directly_issued_by(above)
    other = in_handshake(world, policy, accepting=not accepting)
    found = check_key_pair(
        world.peer,
        client_cas=policy.client_cas,
        root_cas=policy.root_cas,
        client_auth=MUTUAL,
        crls=policy.crls,
        crl_policy=world.policy,
    )
    errors = {finding.code for finding in found if finding.severity is Severity.ERROR}
    assert errors >= {FindingCode(each) for each in (reason, other) if each is not None}
    assert bool(errors) == bool(reason or other)


@given(world=worlds(), accepting=st.booleans(), stranded=st.sampled_from(StrandedPeers))
@settings(max_examples=effort(80))
def test_a_rotation_does_what_it_said_and_the_next_handshake_agrees(
    world: World, accepting: bool, stranded: StrandedPeers
) -> None:
    """`stranded_by` says what `rotate_trust` will do, and what becomes of a peer that has to connect again."""
    before = world.tls(world.before)
    assume(undated(in_handshake(world, before, accepting=accepting)) is None)
    manager = CertAuthManager(
        OURS,
        client_cas=before.client_cas,
        root_cas=before.root_cas,
        client_auth=MUTUAL,
        crls=before.crls,
        crl_policy=world.policy,
    )
    publisher = publisher_of(manager)
    ended: list[PeerUnverifiedError] = []
    link = FakeLink(FakePeer(world.peer.certificate), FakeStream(world.peer.chain), dialled=not accepting)
    publisher.attach(cast("LiveLink", link), ended.append)
    pool, crls = world.after
    change: dict[str, Any] = {"client_cas": pool, "root_cas": pool, "crls": crls}
    said = {peer.reason for peer in manager.stranded_by(**change)}
    refused = False
    try:
        manager.rotate_trust(**change, stranded=stranded)
    except TrustRotationError:
        refused = True
    assert refused == (stranded is StrandedPeers.REFUSE and bool(said) and said != {UnverifiedReason.REVOKED})
    if refused:
        assert (manager.generation, ended) == (1, [])
        return
    after = in_handshake(world, publisher.policy, accepting=accepting)
    assert said == {undated(after)} - {None}
    assert bool(ended) == (after is UnverifiedReason.REVOKED or (stranded is StrandedPeers.CLOSE and bool(said)))
    assert {peer.reason for peer in manager.stranded_by()} == said


@given(world=worlds(), accepting=st.booleans())
@settings(max_examples=effort(40))
def test_lists_that_no_trusted_key_signed_change_nothing(world: World, accepting: bool) -> None:
    """With them or without them, the verdict is the same, but for what there being any list at all demands."""
    pool, given_lists = world.after
    assume(given_lists is not None)
    assert given_lists is not None
    rogue = TestCA("one"), TestCA("two")
    forged = [each.crl(1, 2, 3, start=-HOUR / 2, number=9) for each in rogue]
    assert in_handshake(world, world.tls((pool, given_lists)), accepting=accepting) == in_handshake(
        world, world.tls((pool, lists(*given_lists, *forged))), accepting=accepting
    )


@given(world=worlds(), accepting=st.booleans())
@settings(max_examples=effort(40))
def test_what_is_on_a_list_of_its_issuers_key_stays_refused(world: World, accepting: bool) -> None:
    """Whatever else is wrong with that list, and whatever other lists there are that are not newer."""
    pool, given_lists = world.after
    issuers = [key for key in KEYS if signed(world.peer.certificate, key)]
    assert len(issuers) == 1
    name = world.peer.certificate.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    assert isinstance(name, str)
    for span in ({"start": -DAY / 2, "end": DAY}, {"start": -DAY / 2, "end": -DAY / 3}):
        revoking = TestCA(name, key=issuers[0]).crl(world.peer.certificate, number=9, **span)  # type: ignore[arg-type]
        crls = lists(*(given_lists or ()), revoking)
        reason = in_handshake(world, world.tls((pool, crls)), accepting=accepting)
        if world.peer.certificate in pool or reason is UnverifiedReason.REVOKED:
            continue
        # Refused for what comes before revocation, or where its issuer may not sign lists.
        assert reason is not None


def signed(certificate: x509.Certificate, key: Any) -> bool:
    """Whether a key signed a certificate."""
    with suppress(Exception):
        key.public_key().verify(
            certificate.signature, certificate.tbs_certificate_bytes, certificate.signature_algorithm_parameters
        )
        return True
    return False
