"""Revocation: CRLs as files and values, what they mean for handshakes, and for whoever is connected already.

The CAs here are run by the `openssl` command line. `test_revocation` has what lists say, by CAs in memory.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given, settings, strategies as st

from effort import effort
from handshaking import Ending, shake_hands
from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    CRLPolicy,
    CRLSet,
    KeyPair,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Revocation,
    UnverifiedReason,
    open_tls_stream,
    serve_tls,
)
from trionode._credentials.crl import STRICT
from trionode._credentials.pem import MAX_CRL_BYTES
from trionode._credentials.policy import TLSPolicy
from trionode._tls.contexts import TLSContexts
from trionode._tls.judge import Judge
from trionode._tls.verification import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Authority, AuthorityFactory

    from trionode import TLSStream

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
REFERENCE = "localhost"


class World:
    """A root with an intermediate, and what they issued, some of it revoked; and a forger of the same name."""

    def __init__(self, authority: AuthorityFactory) -> None:
        self.root = authority("the root")
        self.inter = authority("the intermediate", below=self.root)
        self.forger = authority("the root")
        self.stranger = authority("a stranger")
        self.good = self.root.issue("good@localhost")
        self.bad = self.root.issue("bad@localhost")
        self.good_below = self.inter.issue("good@localhost")
        self.bad_below = self.inter.issue("bad@localhost")
        self.unlisted = self.root.crl(start=-3 * HOUR)
        self.root.revoke(self.bad, "keyCompromise")
        self.inter.revoke(self.bad_below, "cessationOfOperation")
        self.forger.revoke(self.good)
        self.listed = self.root.crl()
        self.below = self.inter.crl()
        self.forged = CRLSet.load(forged(self.forger, self.root))
        self.forged_well = CRLSet([built(self.forger)])
        self.expired = self.root.crl(start=-2 * DAY, end=-DAY)
        self.future = self.root.crl(start=DAY, end=2 * DAY)
        self.lists = {
            "current": self.listed,
            "older": self.unlisted,
            "of the intermediate": self.below,
            "expired": self.expired,
            "not yet valid": self.future,
            "of the intermediate, expired": self.inter.crl(start=-2 * DAY, end=-DAY),
            "of a stranger": self.stranger.crl(),
        }


def forged(forger: Authority, victim: Authority) -> Path:
    """A list in a CA's name that another signed; both have the same subject."""
    assert forger.certificate.subject == victim.certificate.subject
    forger.revoke(victim.issue("framed@localhost"))
    return forger.crl_file(start=-HOUR / 2)


@pytest.fixture(scope="module")
def world(authority: AuthorityFactory) -> World:
    """The world, made once: a few dozen runs of `openssl`."""
    return World(authority)


def built(
    authority: Authority,
    *extensions: x509.ExtensionType,
    entries: tuple[x509.RevokedCertificate, ...] = (),
    end: timedelta | None = DAY,
) -> x509.CertificateRevocationList:
    """A list such as `openssl ca` does not write."""
    key = load_pem_private_key((authority.home / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - HOUR)
        .next_update(now + (end or DAY))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    crl = builder.sign(key, hashes.SHA256())
    if end is not None:
        return crl
    # `cryptography` insists on an end, so it is cut out here; nobody checks the signature.
    der = crl.public_bytes(Encoding.DER)
    [tbs_start] = [index for index in range(2, 6) if der[index] == 0x30][:1]
    wanted = crl.next_update_utc
    assert wanted is not None
    encoded = b"\x17\x0d" + f"{wanted:%y%m%d%H%M%SZ}".encode()
    cut = der.replace(encoded, b"", 1)
    assert len(cut) == len(der) - len(encoded)
    return x509.load_der_x509_crl(shortened(cut, tbs_start, len(encoded)))


def shortened(der: bytes, tbs_start: int, by: int) -> bytes:
    """DER whose two outermost lengths say that it is shorter."""
    fixed = bytearray(der)
    for start in (0, tbs_start):
        size = fixed[start + 1]
        if size < 0x80:
            fixed[start + 1] -= by
        else:
            count = size & 0x7F
            value = int.from_bytes(fixed[start + 2 : start + 2 + count]) - by
            fixed[start + 2 : start + 2 + count] = value.to_bytes(count)
    return bytes(fixed)


# Sets of lists ------------------------------------------------------------------------------------------------------


def test_lists_are_read_as_pem_and_as_der(world: World, tmp_path: Path) -> None:
    """Files and bytes, PEM with any number of blocks, DER with one: the same lists are the same set."""
    crl, other = [*world.listed, *world.below]
    pem, der = crl.public_bytes(Encoding.PEM), crl.public_bytes(Encoding.DER)
    (tmp_path / "a.pem").write_bytes(b"a comment\n" + pem + other.public_bytes(Encoding.PEM))
    (tmp_path / "a.crl").write_bytes(der)
    (tmp_path / "b.crl").write_bytes(other.public_bytes(Encoding.DER))
    both = CRLSet([crl, other])
    assert CRLSet.load(tmp_path / "a.pem") == both
    assert CRLSet.load(str(tmp_path / "a.crl"), tmp_path / "b.crl") == both
    assert CRLSet.load(tmp_path / "a.pem", tmp_path / "a.crl") == both
    assert CRLSet.from_bytes(pem) == CRLSet.from_bytes(der) == world.listed
    assert CRLSet.from_bytes(other.public_bytes(Encoding.PEM) + pem) == both


def test_a_set_is_a_value(world: World) -> None:
    """Compared and hashed by content, in whatever order; immutable; its repr says whose lists they are."""
    [crl], [other] = world.listed, world.below
    both = CRLSet([crl, other])
    assert both == CRLSet([other, crl, other])
    assert hash(both) == hash(CRLSet([other, crl]))
    assert both != world.listed
    assert both != "a set"
    assert len(both) == 2
    assert list(both) == [crl, other] == list(both.lists)
    assert copy.deepcopy(both) is both
    with pytest.raises(AttributeError, match="immutable"):
        both.lists = ()
    assert repr(both).startswith("<CRLSet of 2: the CRL of CN=the root (of ")
    assert "CN=the intermediate" in repr(both)


def test_what_a_list_says(world: World) -> None:
    """A revoked certificate is found by issuer and serial number, with date and reason (RFC 5280 section 5.3.1)."""
    revocation = world.listed.listed(world.bad.certificate)
    assert revocation is not None
    assert revocation.serial == world.bad.certificate.serial_number
    assert abs(revocation.date - datetime.now(UTC)) < HOUR
    assert revocation.reason == "keyCompromise"
    assert revocation.issuer == "CN=the root"
    assert str(revocation) == (
        f"serial {revocation.serial:x} was revoked on {revocation.date:%Y-%m-%d %H:%M:%S} UTC by CN=the root: "
        "keyCompromise"
    )
    assert world.listed.listed(world.good.certificate) is None
    # The same serial number, by another issuer.
    assert (
        world.good_below.certificate.serial_number
        in {crl.serial_number for crl in world.forged.lists[0]}
        | {entry.serial_number for entry in world.listed.lists[0]}
        or world.listed.listed(world.bad_below.certificate) is None
    )
    reasonless = world.forger.crl().listed(world.good.certificate)
    assert isinstance(reasonless, Revocation)
    assert reasonless.reason == "unspecified"


def test_a_reason_that_cannot_be_read_is_a_revocation(world: World) -> None:
    """Whatever else is wrong with an entry, what it lists is revoked."""
    reason = x509.UnrecognizedExtension(x509.CRLReason.oid, b"\x0a\x01\x63")  # no such reason
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(world.good.certificate.serial_number)
        .revocation_date(datetime.now(UTC))
        .add_extension(reason, critical=False)
        .build()
    )
    found = CRLSet([built(world.root, entries=(entry,))]).listed(world.good.certificate)
    assert found is not None
    assert found.reason == "unreadable reason"


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (b"", CertificateReason.NO_CRL, "empty"),
        (b" \n", CertificateReason.NO_CRL, "empty"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", CertificateReason.NO_CRL, "swapped"),
        (b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", CertificateReason.BAD_CRL, "damaged"),
        (b"-----BEGIN X509 CRL-----\n", CertificateReason.BAD_CRL, "damaged"),
        (b"\x30\x82\x01", CertificateReason.BAD_CRL, "damaged"),
        (b"certainly none", CertificateReason.BAD_CRL, "damaged"),
        (bytes(MAX_CRL_BYTES + 1), CertificateReason.BAD_CRL, "larger than"),
    ],
)
def test_what_is_no_list(data: bytes, reason: CertificateReason, text: str, tmp_path: Path) -> None:
    """Each says what is wrong with it; a file's name is in the text."""
    with pytest.raises(CertificateError, match=text) as caught:
        CRLSet.from_bytes(data)
    assert caught.value.reason is reason
    file = tmp_path / "list.crl"
    file.write_bytes(data)
    with pytest.raises(CertificateError, match=str(file)) as caught:
        CRLSet.load(file)
    assert caught.value.reason is (CertificateReason.UNREADABLE if "larger" in text else reason)


def test_a_list_that_was_cut_off(world: World) -> None:
    """Half a list is none, in either encoding, and so is a good one with half a one behind it."""
    [crl] = world.listed
    for encoding in (Encoding.PEM, Encoding.DER):
        data = crl.public_bytes(encoding)
        for cut in (len(data) // 2, len(data) - 40):
            with pytest.raises(CertificateError) as caught:
                CRLSet.from_bytes(data[:cut])
            assert caught.value.reason is CertificateReason.BAD_CRL
    pem = crl.public_bytes(Encoding.PEM)
    with pytest.raises(CertificateError, match="damaged or cut off"):
        CRLSet.from_bytes(pem + pem[: len(pem) // 2])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """A missing file, and no file at all."""
    with pytest.raises(CertificateError, match="cannot read") as caught:
        CRLSet.load(tmp_path / "none.crl")
    assert caught.value.reason is CertificateReason.UNREADABLE
    with pytest.raises(CertificateError, match="give None") as caught:
        CRLSet.load()
    assert caught.value.reason is CertificateReason.NO_CRL


def scope(**fields: bool) -> x509.IssuingDistributionPoint:
    """For which certificates a list is."""
    point: dict[str, object] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**point, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("extension", "text"),
    [
        (x509.DeltaCRLIndicator(1), "is a delta"),
        (scope(indirect_crl=True), "is indirect"),
        (scope(only_contains_attribute_certs=True), "is indirect"),
        (
            x509.IssuingDistributionPoint(
                None, None, False, False, frozenset({x509.ReasonFlags.key_compromise}), False, False
            ),
            "for some reasons",
        ),
    ],
)
def test_kinds_of_lists_that_are_not_for_us(world: World, extension: x509.ExtensionType, text: str) -> None:
    """A list that says only part of the truth, or somebody else's, is refused when it is read."""
    with pytest.raises(CertificateError, match=text) as caught:
        CRLSet.from_bytes(built(world.root, extension).public_bytes(Encoding.DER))
    assert caught.value.reason is CertificateReason.BAD_CRL
    assert "CN=the root" in str(caught.value)


def test_a_list_without_an_end(world: World) -> None:
    """RFC 5280 demands nextUpdate; without one nobody could tell that a list is out of date."""
    with pytest.raises(CertificateError, match="no nextUpdate") as caught:
        CRLSet([built(world.root, end=None)])
    assert caught.value.reason is CertificateReason.BAD_CRL


def test_extensions_that_cannot_be_read(world: World) -> None:
    """Who knows what they would say."""
    with pytest.raises(CertificateError, match="its extensions do not follow RFC 5280") as caught:
        CRLSet([built(world.root, x509.UnrecognizedExtension(x509.CRLNumber.oid, b"junk"))])
    assert caught.value.reason is CertificateReason.BAD_CRL


def test_entries_that_cannot_be_read(world: World) -> None:
    """A date that is none, deep inside, is damage to the whole."""
    [crl] = world.listed
    der = crl.public_bytes(Encoding.DER)
    [entry] = [each for each in crl if each.serial_number == world.bad.certificate.serial_number]
    date = f"{entry.revocation_date_utc:%y%m%d%H%M%SZ}".encode()
    damaged = der.replace(date, b"x" * len(date))
    assert damaged != der
    with pytest.raises(CertificateError) as caught:
        CRLSet.from_bytes(damaged)
    assert caught.value.reason is CertificateReason.BAD_CRL


# Handshakes ---------------------------------------------------------------------------------------------------------


def judge_in_handshake(
    key_pair: KeyPair, policy: TLSPolicy, *, accepting: bool
) -> tuple[PeerUnverifiedError | None, Ending]:
    """What a side with a policy says of a peer with a key pair, and how the handshake ended."""
    ours = TLSContexts.build(1, key_pair, replace(policy, client_auth=MUTUAL))
    # The peer asks nothing of us: it trusts our leaf, and has no lists.
    pinned = CAPool(key_pair.chain[:1])
    theirs = TLSContexts.build(1, key_pair, TLSPolicy(client_cas=pinned, root_cas=pinned))
    server, client = (ours, theirs) if accepting else (theirs, ours)
    ending = shake_hands(server, client, reference=REFERENCE)
    failure = ending.server if accepting else ending.client
    if failure is None:
        return None, ending
    assert isinstance(failure, PeerUnverifiedError), failure
    return failure, ending


def both(pool: CAPool, crls: CRLSet | None, policy: CRLPolicy = STRICT) -> TLSPolicy:
    """The same trust in both directions."""
    return TLSPolicy(client_cas=pool, root_cas=pool, crls=crls, crl_policy=policy)


sides = pytest.mark.parametrize("accepting", [True, False], ids=["acceptor", "dialer"])


@sides
def test_a_revoked_peer_is_refused(world: World, accepting: bool) -> None:
    """With serial number, date and reason in the text, and the alert that says so to the peer."""
    refusal, ending = judge_in_handshake(world.bad, both(world.root.pool, world.listed), accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOKED
    assert refusal.certificate == world.bad.certificate
    revocation = world.listed.listed(world.bad.certificate)
    assert f"has been revoked: {revocation}. The peer needs a new one" in str(refusal)
    assert refusal.offered == str(revocation)
    told = ending.client if accepting else ending.server
    assert isinstance(told, PeerRejectedError)
    assert told.code is RejectionCode.CERTIFICATE_REVOKED


@sides
def test_others_are_let_in(world: World, accepting: bool) -> None:
    """Whoever is not on the list passes, and without lists everybody does."""
    for key_pair, crls in ((world.good, world.listed), (world.bad, None)):
        refusal, _ = judge_in_handshake(key_pair, both(world.root.pool, crls), accepting=accepting)
        assert refusal is None


@sides
@pytest.mark.parametrize(
    ("crls", "loosening", "words", "alert"),
    [
        ("below", CRLPolicy(allow_missing=True), "there is no CRL of CN=the root", RejectionCode.UNKNOWN_CA),
        ("expired", CRLPolicy(allow_expired=True), "has expired, our clock says", RejectionCode.CERTIFICATE_EXPIRED),
        ("future", None, "is not yet valid", RejectionCode.BAD_CERTIFICATE),
        # A list that its issuer did not sign is none.
        ("forged", CRLPolicy(allow_missing=True), "was not signed by it", RejectionCode.UNKNOWN_CA),
        ("forged_well", CRLPolicy(allow_missing=True), "was not signed by it", RejectionCode.UNKNOWN_CA),
    ],
)
def test_unknown_status_fails_closed(
    world: World, accepting: bool, crls: str, loosening: CRLPolicy | None, words: str, alert: RejectionCode
) -> None:
    """A list that is missing, expired, not yet valid or not the CA's: refused, unless the policy says otherwise."""
    policy = both(world.root.pool, getattr(world, crls))
    refusal, ending = judge_in_handshake(world.good, policy, accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOCATION_UNKNOWN
    assert words in str(refusal)
    assert "rotate_trust()" in str(refusal)
    assert refusal.wanted == "a current CRL of CN=the root"
    told = ending.client if accepting else ending.server
    assert isinstance(told, PeerRejectedError)
    assert told.code is alert
    for candidate in (CRLPolicy(allow_missing=True), CRLPolicy(allow_expired=True)):
        refusal, _ = judge_in_handshake(world.good, replace(policy, crl_policy=candidate), accepting=accepting)
        assert (refusal is None) == (candidate == loosening)


@sides
def test_an_expired_list_still_revokes(world: World, accepting: bool) -> None:
    """`allow_expired` goes on using the list."""
    policy = both(world.root.pool, world.expired, CRLPolicy(allow_expired=True))
    refusal, _ = judge_in_handshake(world.bad, policy, accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOKED
    assert "keyCompromise" in str(refusal)


@sides
def test_the_newest_list_counts(world: World, accepting: bool) -> None:
    """Of two lists of one CA the newer one, in whatever order they come."""
    for lists in ([*world.unlisted, *world.listed], [*world.listed, *world.unlisted]):
        refusal, _ = judge_in_handshake(world.bad, both(world.root.pool, CRLSet(lists)), accepting=accepting)
        assert refusal is not None
        assert refusal.reason is UnverifiedReason.REVOKED


@sides
def test_the_whole_chain_is_checked(authority: AuthorityFactory, accepting: bool) -> None:
    """A revoked intermediate condemns what it issued; `leaf_only` does not look at it."""
    root = authority("the root")
    inter = authority("the intermediate", below=root)
    leaf = inter.issue("alpha@localhost")
    before = CRLSet([*root.crl(), *inter.crl()])
    root.revoke(inter.certificate, "CACompromise")
    after = CRLSet([*root.crl(), *inter.crl()])
    assert judge_in_handshake(leaf, both(root.pool, before), accepting=accepting)[0] is None
    refusal, _ = judge_in_handshake(leaf, both(root.pool, after), accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOKED
    assert "certificate 2 of its chain" in str(refusal)
    assert "cACompromise" in str(refusal)
    only = CRLPolicy(leaf_only=True)
    assert judge_in_handshake(leaf, both(root.pool, after, only), accepting=accepting)[0] is None
    # The root's list is needed for the intermediate, and for nothing else.
    refusal, _ = judge_in_handshake(leaf, both(root.pool, inter.crl()), accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOCATION_UNKNOWN
    assert judge_in_handshake(leaf, both(root.pool, inter.crl(), only), accepting=accepting)[0] is None


@sides
def test_anchors_need_no_list(world: World, accepting: bool) -> None:
    """Nobody is above a trust anchor: not above a pinned leaf, nor above an intermediate in the pool."""
    pinned, below = CAPool(world.good.chain), world.inter.pool
    assert judge_in_handshake(world.good, both(pinned, world.below), accepting=accepting)[0] is None
    assert judge_in_handshake(world.good_below, both(below, world.below), accepting=accepting)[0] is None
    everything = both(below | world.root.pool, world.below)
    assert judge_in_handshake(world.good_below, everything, accepting=accepting)[0] is None


@sides
def test_an_anchor_on_a_list_is_refused(world: World, accepting: bool) -> None:
    """A pinned leaf that its CA has revoked is refused, where the pool has that CA; else whose list is it?"""
    pinned = CAPool(world.bad.chain)
    refusal, _ = judge_in_handshake(world.bad, both(pinned | world.root.pool, world.listed), accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOKED
    assert judge_in_handshake(world.bad, both(pinned, world.listed), accepting=accepting)[0] is None


@sides
def test_an_injected_clock_judges_lists(world: World, accepting: bool) -> None:
    """Lists expire by the manager's clock, and published contexts follow it."""
    shift = timedelta()
    policy = replace(both(world.root.pool, world.listed), clock=lambda: datetime.now(UTC) + shift)
    for shift, reason in (  # noqa: B007 -- the clock looks at it
        (timedelta(), None),
        (2 * DAY, UnverifiedReason.REVOCATION_UNKNOWN),
        (-2 * DAY, UnverifiedReason.REVOCATION_UNKNOWN),
        (timedelta(), None),
    ):
        refusal, _ = judge_in_handshake(world.good, policy, accepting=accepting)
        assert (refusal and refusal.reason) is reason


# Outside of handshakes ----------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=effort(200))
def test_the_verdict_is_the_same_as_in_a_handshake(world: World, data: st.DataObject) -> None:
    """Law: whatever the chain, the pool, the lists and the policy, a handshake ends as the judge says."""
    key_pair = data.draw(st.sampled_from([world.good, world.bad, world.good_below, world.bad_below]), "key pair")
    pinned = CAPool([world.good.certificate, world.bad.certificate])
    pools = [world.root.pool, world.inter.pool, world.root.pool | world.inter.pool, world.stranger.pool, pinned]
    pool = data.draw(st.sampled_from(pools), "pool")
    names = data.draw(st.lists(st.sampled_from(sorted(world.lists)), unique=True), "lists")
    crls = CRLSet(crl for name in names for crl in world.lists[name]) if names else None
    loosened = {name: data.draw(st.booleans(), name) for name in ("allow_missing", "allow_expired", "leaf_only")}
    policy = both(pool, crls, CRLPolicy(**loosened))
    accepting = data.draw(st.booleans(), "accepting")
    refusal, _ = judge_in_handshake(key_pair, policy, accepting=accepting)
    for dated in (True, False):
        verdict = refusal_of(Judge(policy, accepting=accepting), key_pair.chain, dated=dated)
        assert (verdict and verdict.reason) == (refusal and refusal.reason)


@sides
def test_lists_for_some_certificates_only(world: World, accepting: bool) -> None:
    """A list with a scope (RFC 5280 section 5.2.5) speaks for that: one for leaves says nothing of a CA."""
    users = CRLSet([built(world.root, scope(only_contains_user_certs=True)), *world.below])
    policy = both(world.root.pool, users)
    assert judge_in_handshake(world.good, policy, accepting=accepting)[0] is None
    refusal, _ = judge_in_handshake(world.good_below, policy, accepting=accepting)
    assert refusal is not None
    assert refusal.reason is UnverifiedReason.REVOCATION_UNKNOWN
    # Each scope has a newest list of its own.
    entry = x509.RevokedCertificateBuilder().serial_number(world.good.certificate.serial_number)
    revoked = entry.revocation_date(datetime.now(UTC)).build()
    split = CRLSet(
        [
            built(world.root, scope(only_contains_user_certs=True), entries=(revoked,)),
            built(world.root, scope(only_contains_ca_certs=True)),
        ]
    )
    refusal, _ = judge_in_handshake(world.good, both(world.root.pool, split), accepting=accepting)
    verdict = refusal_of(Judge(both(world.root.pool, split), accepting=accepting), world.good.chain, dated=True)
    for each in (refusal, verdict):
        assert each is not None
        assert each.reason is UnverifiedReason.REVOKED


def test_a_forged_list_outside_of_a_handshake(world: World) -> None:
    """A list that the CA did not sign neither revokes nor clears anybody."""
    judge = Judge(both(world.root.pool, world.forged), accepting=True)
    verdict = refusal_of(judge, world.good.chain, dated=True)
    assert verdict is not None
    assert verdict.reason is UnverifiedReason.REVOCATION_UNKNOWN
    assert "was not signed by it" in str(verdict)
    both_lists = Judge(both(world.root.pool, CRLSet([*world.forged, *world.listed])), accepting=True)
    assert refusal_of(both_lists, world.good.chain, dated=True) is None


@sides
def test_what_a_pinned_leaf_sends_along(world: World, accepting: bool) -> None:
    """It is above an anchor, so that it counts for nothing, in handshakes and outside of them."""
    policy = both(CAPool(world.good_below.chain[:1]), world.below)
    assert judge_in_handshake(world.good_below, policy, accepting=accepting)[0] is None
    assert refusal_of(Judge(policy, accepting=accepting), world.good_below.chain, dated=True) is None


def test_dates_count_where_they_are_asked_for(world: World) -> None:
    """An expired certificate is one whose CA is trusted still; only `dated` minds."""
    policy = replace(both(world.root.pool, None), clock=lambda: datetime.now(UTC) + 300 * DAY)
    dated = refusal_of(Judge(policy, accepting=True), world.good.chain, dated=True)
    assert dated is not None
    assert dated.reason is UnverifiedReason.EXPIRED
    assert dated.failed_at == world.good.certificate
    assert refusal_of(Judge(policy, accepting=True), world.good.chain, dated=False) is None


# Over TCP, against others -------------------------------------------------------------------------------------------


def mutual(key_pair: KeyPair, pool: CAPool, crls: CRLSet | None = None) -> CertAuthManager:
    """A manager for mutual TLS."""
    return CertAuthManager(key_pair, client_cas=pool, client_auth=MUTUAL, root_cas=pool, crls=crls)


async def serve(nursery: trio.Nursery, manager: CertAuthManager, handler: Callable[[TLSStream], object]) -> int:
    """Serve on loopback; gives the port."""

    async def handle(stream: TLSStream) -> None:
        handler(stream)
        await stream.send_all(b"welcome")

    listeners = await nursery.start(partial(serve_tls, handle, 0, cert_manager=manager, host="127.0.0.1"))
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def test_a_revoked_dialer_hears_why(world: World) -> None:
    """The alert `certificate_revoked` reaches whoever was revoked as what it is; others see whom they serve."""
    chains: list[tuple[x509.Certificate, ...]] = []
    pool = world.root.pool
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = mutual(world.good, pool, CRLSet([*world.listed, *world.below]))
            port = await serve(nursery, server, lambda stream: chains.append(stream._session_stream.session.peer_chain))
            dial = partial(open_tls_stream, "127.0.0.1", port, server_name=REFERENCE)
            async with await dial(cert_manager=mutual(world.bad, pool)) as stream:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await stream.receive_some()
            cause = caught.value.__cause__
            assert isinstance(cause, PeerRejectedError)
            assert cause.code is RejectionCode.CERTIFICATE_REVOKED
            assert "issue a new one" in str(cause)
            assert not chains
            async with await dial(cert_manager=mutual(world.good_below, pool)) as stream:
                assert await stream.receive_some() == b"welcome"
                assert stream._session_stream.session.peer_chain[0] == stream.peer_certificate == world.good.certificate
            assert chains[0][:2] == world.good_below.chain
            with pytest.raises(PeerUnverifiedError) as refused:
                await dial(cert_manager=mutual(world.good, pool, world.forged))
            assert refused.value.reason is UnverifiedReason.REVOCATION_UNKNOWN
            nursery.cancel_scope.cancel()


async def test_the_openssl_command_sees_the_alert(world: World, tmp_path: Path) -> None:
    """`openssl s_client`, with a certificate that its own `openssl ca` revoked, is told so."""
    cert, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert.write_bytes(world.bad.certificate.public_bytes(Encoding.PEM))
    key.write_bytes((world.root.home / "bad-localhost.key").read_bytes())
    ca.write_bytes(world.root.certificate.public_bytes(Encoding.PEM))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            port = await serve(nursery, mutual(world.good, world.root.pool, world.listed), lambda _: pytest.fail("in"))
            options: list[str | Path] = [
                "-CAfile",
                ca,
                "-cert",
                cert,
                "-key",
                key,
                "-connect",
                f"127.0.0.1:{port}",
                "-ign_eof",
            ]
            done = await trio.run_process(
                ["openssl", "s_client", *options], capture_stdout=True, capture_stderr=True, check=False
            )
            nursery.cancel_scope.cancel()
    assert b"alert certificate revoked" in done.stderr


async def test_no_chain_from_whoever_sent_none(world: World) -> None:
    """A client that was not asked for a certificate has no chain."""
    chains: list[tuple[x509.Certificate, ...]] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = CertAuthManager(world.good)
            port = await serve(nursery, server, lambda stream: chains.append(stream._session_stream.session.peer_chain))
            client = mutual(world.good, world.root.pool)
            async with await open_tls_stream("127.0.0.1", port, cert_manager=client, server_name=REFERENCE) as stream:
                assert await stream.receive_some() == b"welcome"
            nursery.cancel_scope.cancel()
    assert chains == [()]
