"""What lists say of a certificate: by whose key they are signed, for what, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca import DAY, HOUR, TestCA, distribution_point, key_usage, lists, point
from trionode import CRLPolicy, Revocation
from trionode._credentials.crl import STRICT, read_lists
from trionode._credentials.revocation import (
    Doubt,
    Issuer,
    Superseded,
    Unknown,
    counting,
    keep_newer,
    listed_without_effect,
    revocation_of_anchor,
    status,
    unsigned,
)
from trionode._identity.outline import outline

if TYPE_CHECKING:
    from trionode import CRLSet, KeyPair


def issuer(ca: TestCA) -> Issuer:
    """A CA as a path has it."""
    return Issuer(ca.certificate, outline(ca.certificate.public_bytes(Encoding.DER)))


def verdict(
    crls: CRLSet, leaf: KeyPair, ca: TestCA, policy: CRLPolicy = STRICT, after: timedelta = timedelta()
) -> str | Doubt:
    """`revoked`, `cleared`, or why nobody knows."""
    found = status(crls, leaf.certificate, issuer(ca), now=datetime.now(UTC) + after, policy=policy)
    if isinstance(found, Unknown):
        return found.doubt
    return "revoked" if isinstance(found, Revocation) else "cleared"


REVOKED, CLEARED = "revoked", "cleared"
MISSING, EXPIRED, FUTURE, UNUSABLE = Doubt.MISSING, Doubt.EXPIRED, Doubt.NOT_YET_VALID, Doubt.UNUSABLE
ROOT = TestCA()
LEAF, OTHER = ROOT.leaf(), ROOT.leaf()
LOOSE = CRLPolicy(allow_missing=True, allow_expired=True)


@pytest.mark.parametrize(
    ("crls", "strict", "loose"),
    [
        (lists(ROOT.crl()), CLEARED, CLEARED),
        (lists(ROOT.crl(OTHER)), CLEARED, CLEARED),
        (lists(ROOT.crl(LEAF)), REVOKED, REVOKED),
        (lists(TestCA("another").crl()), MISSING, CLEARED),
        # An expired list, and one of tomorrow: what is on it stays refused.
        (lists(ROOT.crl(start=-2 * DAY, end=-DAY)), EXPIRED, CLEARED),
        (lists(ROOT.crl(LEAF, start=-2 * DAY, end=-DAY)), REVOKED, REVOKED),
        (lists(ROOT.crl(start=DAY, end=2 * DAY)), FUTURE, FUTURE),
        (lists(ROOT.crl(LEAF, start=DAY, end=2 * DAY)), REVOKED, REVOKED),
        # The newest counts, and it alone; numbers before dates.
        (lists(ROOT.crl(LEAF, start=-2 * HOUR), ROOT.crl()), CLEARED, CLEARED),
        (lists(ROOT.crl(LEAF), ROOT.crl(start=-2 * HOUR)), REVOKED, REVOKED),
        (lists(ROOT.crl(LEAF, number=5, start=-2 * HOUR), ROOT.crl(number=4)), REVOKED, REVOKED),
        (lists(ROOT.crl(LEAF, number=4), ROOT.crl(number=5, start=-2 * HOUR)), CLEARED, CLEARED),
        (lists(ROOT.crl(LEAF), ROOT.crl(start=HOUR, end=DAY)), REVOKED, REVOKED),
        (lists(ROOT.crl(start=-2 * DAY, end=-DAY), ROOT.crl(start=-3 * DAY, end=DAY)), EXPIRED, CLEARED),
        # Scopes: each has its newest list; what is not for the leaf does not clear it.
        (lists(ROOT.crl(point=point(user_only=True))), CLEARED, CLEARED),
        (lists(ROOT.crl(point=point(ca_only=True))), MISSING, CLEARED),
        (lists(ROOT.crl(point=point(ca_only=True)), ROOT.crl(LEAF, point=point(user_only=True))), REVOKED, REVOKED),
        (
            lists(
                ROOT.crl(point=point(ca_only=True)),
                ROOT.crl(LEAF, start=-2 * DAY, end=-DAY, point=point(user_only=True)),
            ),
            REVOKED,
            REVOKED,
        ),
        (
            lists(ROOT.crl(point=point(ca_only=True)), ROOT.crl(start=-2 * DAY, end=-DAY, point=point(user_only=True))),
            EXPIRED,
            CLEARED,
        ),
        (lists(ROOT.crl(point=point("http://crl.example/root.crl"))), MISSING, CLEARED),
        (lists(ROOT.crl(LEAF, point=point("http://crl.example/root.crl"))), REVOKED, REVOKED),
        (
            lists(ROOT.crl(point=point(full_name=[x509.DirectoryName(ROOT.certificate.subject)]))),
            CLEARED,
            CLEARED,
        ),
        # What we do not understand clears nobody.
        (
            lists(ROOT.crl(extensions=[x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")])),
            UNUSABLE,
            UNUSABLE,
        ),
    ],
)
def test_a_list_of_the_issuer(crls: CRLSet, strict: str | Doubt, loose: str | Doubt) -> None:
    """Revoked by any list that counts; cleared by one that is for it, current and understood; else in doubt."""
    assert verdict(crls, LEAF, ROOT) == strict
    assert verdict(crls, LEAF, ROOT, LOOSE) == loose


def test_distribution_points() -> None:
    """A list for one distribution point is for certificates that name it (RFC 5280 section 6.3.3)."""
    here, elsewhere = "http://crl.example/a.crl", "http://crl.example/b.crl"
    crls = lists(ROOT.crl(point=point(here)))
    leaves = [ROOT.leaf(extensions=[distribution_point(*urls)]) for urls in ((here,), (elsewhere, here), (elsewhere,))]
    assert [verdict(crls, leaf, ROOT) for leaf in leaves] == [CLEARED, CLEARED, MISSING]
    both = lists(ROOT.crl(point=point(here)), ROOT.crl(point=point(elsewhere)))
    assert [verdict(both, leaf, ROOT) for leaf in leaves] == [CLEARED] * 3


def test_distribution_points_by_relative_name() -> None:
    """A name below the issuer's, in the list or in the certificate."""
    part = x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.COMMON_NAME, "part 1")])
    whole = x509.Name([*ROOT.certificate.subject.rdns, part])
    names = x509.CRLDistributionPoints([x509.DistributionPoint([x509.DirectoryName(whole)], None, None, None)])
    relative = x509.CRLDistributionPoints([x509.DistributionPoint(None, part, None, None)])
    for crls in (
        lists(ROOT.crl(point=point(relative_name=part))),
        lists(ROOT.crl(point=point(full_name=[x509.DirectoryName(whole)]))),
    ):
        assert verdict(crls, ROOT.leaf(extensions=[names]), ROOT) == CLEARED
        assert verdict(crls, ROOT.leaf(extensions=[relative]), ROOT) == CLEARED
        assert verdict(crls, LEAF, ROOT) == MISSING


def test_distribution_points_for_some_reasons_or_of_other_issuers() -> None:
    """A list that is only part of the truth about a certificate does not clear it."""
    url = x509.UniformResourceIdentifier("http://crl.example/a.crl")
    some = x509.DistributionPoint([url], None, frozenset({x509.ReasonFlags.key_compromise}), None)
    indirect = x509.DistributionPoint([url], None, None, [x509.DirectoryName(x509.Name([]))])
    crls = lists(ROOT.crl(point=point(url.value)))
    for each in (some, indirect):
        assert verdict(crls, ROOT.leaf(extensions=[x509.CRLDistributionPoints([each])]), ROOT) == MISSING


def test_lists_for_cas_only() -> None:
    """An intermediate is a CA by its basic constraints."""
    middle = TestCA("middle", below=ROOT)
    for given, expected in ((point(ca_only=True), CLEARED), (point(user_only=True), MISSING)):
        found = status(
            lists(ROOT.crl(point=given)), middle.certificate, issuer(ROOT), now=datetime.now(UTC), policy=STRICT
        )
        assert (found is None) == (expected is CLEARED)


@pytest.mark.parametrize("ids", [True, False])
def test_the_key_counts_and_not_the_name(ids: bool) -> None:
    """Of two CAs of one name each speaks for what it issued, whatever the other lists, and however new that is."""
    old, new = TestCA(key_ids=ids), TestCA(key_ids=ids)
    leaf = old.leaf(serial=4711)
    for mine, other in ((-HOUR, -2 * HOUR), (-2 * HOUR, -HOUR)):
        assert verdict(lists(old.crl(start=mine), new.crl(4711, start=other)), leaf, old) == CLEARED
        assert verdict(lists(old.crl(4711, start=mine), new.crl(start=other)), leaf, old) == REVOKED
    assert verdict(lists(new.crl(4711)), leaf, old) == MISSING
    assert verdict(lists(new.crl(4711)), leaf, old, LOOSE) == CLEARED
    assert verdict(lists(new.crl(4711), old.crl(key=new.key)), leaf, old) == MISSING


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, CLEARED),
        (key_usage("key_cert_sign", "crl_sign"), CLEARED),
        (key_usage("key_cert_sign"), UNUSABLE),
    ],
)
def test_a_ca_that_may_not_sign_lists(usage: x509.KeyUsage | None, expected: str | Doubt) -> None:
    """Where there is a key usage, it has to have cRLSign (RFC 5280 section 6.3.3 f)."""
    ca = TestCA(usage=usage)
    leaf = ca.leaf()
    assert verdict(lists(ca.crl()), leaf, ca) == expected
    assert verdict(lists(ca.crl()), leaf, ca, LOOSE) == expected
    assert verdict(lists(ca.crl(leaf)), leaf, ca) == (REVOKED if expected is CLEARED else UNUSABLE)


def test_the_texts() -> None:
    """Why nobody knows is said so that somebody can do something about it."""
    now = datetime.now(UTC)

    def text(crls: CRLSet, ca: TestCA = ROOT) -> str:
        found = status(crls, ca.leaf().certificate, issuer(ca), now=now, policy=STRICT)
        assert isinstance(found, Unknown)
        return found.text

    assert text(lists(TestCA("another").crl())) == "there is no CRL of CN=root"
    forged = "there is no CRL of CN=root: the CRL of that name was not signed by it"
    assert text(lists(TestCA().crl())) == forged
    assert text(lists(ROOT.crl(point=point(ca_only=True)))) == "there is no CRL of CN=root for it"
    assert "has expired, our clock says" in text(lists(ROOT.crl(start=-2 * DAY, end=-DAY)))
    assert "is not yet valid, our clock says" in text(lists(ROOT.crl(start=DAY, end=2 * DAY)))
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")
    assert "cannot be used: it has a critical extension" in text(lists(ROOT.crl(extensions=[odd])))
    mute = TestCA(usage=key_usage("key_cert_sign"))
    assert "cRLSign is missing" in text(lists(mute.crl()), mute)


# Anchors ------------------------------------------------------------------------------------------------------------


def test_anchors() -> None:
    """Revoked by the key that issued them, if that is trusted too; by nobody else."""
    middle, namesake = TestCA("middle", below=ROOT), TestCA()
    anchor, now = middle.certificate, datetime.now(UTC)

    def revoked(crls: CRLSet, *issuers: TestCA) -> bool:
        return revocation_of_anchor(crls, anchor, map(issuer, issuers), now=now) is not None

    assert revoked(lists(ROOT.crl(anchor)), ROOT)
    assert revoked(lists(ROOT.crl(anchor, start=-2 * DAY, end=-DAY)), ROOT)
    assert revoked(lists(ROOT.crl(anchor, start=-2 * HOUR), namesake.crl()), namesake, ROOT)
    assert not revoked(lists(ROOT.crl(anchor)))
    assert not revoked(lists(ROOT.crl()), ROOT)
    assert not revoked(lists(namesake.crl(anchor)), ROOT)
    mute = TestCA(key=ROOT.key, usage=key_usage("key_cert_sign"))
    assert not revoked(lists(ROOT.crl(anchor)), mute)


# Two sets -----------------------------------------------------------------------------------------------------------


def replaced(new: CRLSet, present: CRLSet, known: list[Issuer]) -> tuple[CRLSet, list[Superseded]]:
    """What comes of one set that is given in place of another."""
    return keep_newer(new, present, known, now=datetime.now(UTC))


def test_a_set_does_not_go_back() -> None:
    """Where the new set has an older list than the one in use, the latter stays, beside everything else that is new."""
    other = TestCA("another")
    present = lists(ROOT.crl(LEAF, number=5), other.crl(number=1))
    new = lists(ROOT.crl(number=4), other.crl(number=2))
    kept, superseded = replaced(new, present, [issuer(ROOT), issuer(other)])
    assert verdict(kept, LEAF, ROOT) == REVOKED
    assert {(each.issuer_shown, each.number) for each in counting(kept)} == {("CN=root", 5), ("CN=another", 2)}
    [told] = superseded
    assert "is older than the one in use (number 4, the other has 5)" in str(told)
    assert "crls=None" in str(told)
    # Once more changes nothing.
    again, told_again = replaced(new, kept, [issuer(ROOT)])
    assert again == kept
    assert [str(each) for each in told_again] == [str(told)]


@pytest.mark.parametrize(("older", "newer"), [({"number": 4}, {"number": 5}), ({"start": -2 * HOUR}, {})])
def test_what_is_newer_or_the_same_replaces(older: dict[str, object], newer: dict[str, object]) -> None:
    """By number, or by date; the very same set comes back."""
    past, future = lists(ROOT.crl(**older)), lists(ROOT.crl(**newer))  # type: ignore[arg-type]
    assert replaced(future, past, []) == (future, [])
    assert replaced(past, past, []) == (past, [])
    kept, superseded = replaced(past, future, [])
    assert len(superseded) == 1
    assert [*kept] == [*past, *future]


def test_lists_of_other_scopes_and_other_keys_are_not_older() -> None:
    """What a key says of its certificates is not replaced by what another says; known keys tell them apart."""
    old, new = TestCA(key_ids=False), TestCA(key_ids=False)
    known = [issuer(old), issuer(new)]
    present = lists(old.crl(number=9), new.crl(number=3))
    assert replaced(lists(new.crl(number=4)), present, known)[1] == []
    assert len(replaced(lists(old.crl(number=9), new.crl(number=2)), present, known)[1]) == 1
    # Unknown keys, told apart by nothing: what is not sure is kept, and harms nobody, as only the signer's list counts.
    assert len(replaced(lists(new.crl(number=4)), present, [])[1]) == 1
    scoped = lists(ROOT.crl(number=9, point=point(ca_only=True)))
    assert replaced(lists(ROOT.crl(number=1)), scoped, [])[1] == []


def test_a_list_that_has_not_begun_hides_no_old_one() -> None:
    """Beside a list of tomorrow, however high its number, an old one that is given with it would count."""
    present = lists(ROOT.crl(LEAF, number=5))
    tomorrow = ROOT.crl(LEAF, number=6, start=DAY, end=2 * DAY)
    kept, superseded = replaced(lists(tomorrow, ROOT.crl(number=4)), present, [issuer(ROOT)])
    assert verdict(kept, LEAF, ROOT) == REVOKED
    assert [each.kept.number for each in superseded] == [5]
    assert replaced(lists(ROOT.crl(number=4)), lists(tomorrow), [issuer(ROOT)])[1] == []
    alone, superseded = replaced(lists(tomorrow), present, [issuer(ROOT)])
    assert (verdict(alone, OTHER, ROOT), superseded) == (FUTURE, [])


def test_of_several_kept_the_newest() -> None:
    """Older ones that the present set has beside it are not carried along."""
    present = lists(ROOT.crl(number=3), ROOT.crl(number=5, start=-2 * HOUR), ROOT.crl(number=4))
    kept, [told] = replaced(lists(ROOT.crl(number=1)), present, [])
    assert sorted(each.number or 0 for each in read_lists(kept)) == [1, 5]
    assert told.kept.number == 5


def test_lists_that_nobody_signed_whom_we_know() -> None:
    """Those that carry a known name; what carries another may be of a CA that a peer's chain will show."""
    rogue, stranger = TestCA(), TestCA("stranger")
    crls = lists(ROOT.crl(), rogue.crl(start=-2 * HOUR), stranger.crl())
    assert [each.crl for each in unsigned(crls, [issuer(ROOT)])] == [crls.lists[1]]
    assert unsigned(crls, []) == []


def test_an_anchor_on_a_list_whose_signer_is_not_known() -> None:
    """The list has no effect on it, which deserves a word; one that counts, or has it not, does not."""
    middle = TestCA("middle", below=ROOT)
    crls = lists(ROOT.crl(middle.certificate), middle.crl())
    assert [(str(each), crl.crl) for each, crl in listed_without_effect(crls, [issuer(middle)])] == [
        ("CN=middle", crls.lists[0])
    ]
    assert [*listed_without_effect(crls, [issuer(middle), issuer(ROOT)])] == []
    assert [*listed_without_effect(lists(ROOT.crl()), [issuer(middle)])] == []
