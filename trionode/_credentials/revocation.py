"""What a set of lists says of one certificate of a path (RFC 5280 section 6.3), and which of two sets is older.

Theory. A list counts for a certificate if the key of its *actual issuer*, the certificate above it in the path, signed
the list, and the list carries that issuer's name. The name alone counts for nothing: another CA may have it, an older
key of the same CA, or an attacker. A list that no key of a path signed has no effect at all, in neither direction.

The two directions differ, so that whatever is in doubt refuses:

- *Revoked* is what is on a list that counts, whatever else is wrong with the list: expired, not yet valid, of another
  scope, with an extension that we do not know.
- *Cleared* is what such a list does not have, if it is for that certificate (its scope), within its dates, and
  understood; and its issuer may sign lists (key usage).
- Otherwise its status is *unknown*, which refuses, except where `CRLPolicy` allows it.

Of several lists of one key and scope the newest that has begun counts, and it alone: by CRL number where both have one,
else by thisUpdate (section 5.2.3). So a certificate that its CA takes off the list (a hold) is let in again, and an old
list beside a new one neither clears nor revokes.

Trust anchors have no issuer that could revoke them (section 6.1), and need no list. One that is on a list is refused
all the same, where a pool also has the certificate whose key issued it: by that key's list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, final

from cryptography import x509

from trionode._identity.certificate import extension, is_ca, serial_number, subject_der
from trionode._identity.describe import describe_subject, describe_time
from trionode._identity.outline import canonical_name

from .crl import lists_of, read_lists, with_lists
from .revocation_list import Revocation, RevocationList, is_older, newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from trionode._identity.outline import Outline

    from .crl import CRLPolicy, CRLSet


@final
class Doubt(Enum):
    """Why the revocation status of a certificate is unknown."""

    MISSING = "missing"
    """No list of its issuer is for it."""
    EXPIRED = "expired"
    """The list is past its nextUpdate."""
    NOT_YET_VALID = "not yet valid"
    """The list is before its thisUpdate."""
    UNUSABLE = "unusable"
    """The list says something that we do not understand, or its issuer may not sign lists."""


@final
@dataclass(frozen=True, slots=True)
class Unknown:
    """The revocation status of a certificate is unknown; `text` says why, as the middle of a sentence."""

    doubt: Doubt
    text: str

    def __str__(self) -> str:
        """Why, as the middle of a sentence."""
        return self.text


@final
@dataclass(frozen=True, slots=True)
class Issuer:
    """The certificate above another in a path."""

    certificate: x509.Certificate
    outline: Outline

    def __str__(self) -> str:
        """Its subject (RFC 4514)."""
        return describe_subject(self.certificate)


def status(
    crls: CRLSet, certificate: x509.Certificate, issuer: Issuer, *, now: datetime, policy: CRLPolicy
) -> Revocation | Unknown | None:
    """Whether a certificate was revoked, by the lists of a set.

    Args:
        crls: the lists.
        certificate: the certificate in question.
        issuer: the certificate above it in its path, whose signature on it was verified.
        now: the time to judge by, aware.
        policy: what to make of no list, and of an expired one.

    Returns:
        None if it was not revoked; the revocation; or why its status is unknown.
    """
    named = lists_of(crls, issuer.outline.subject)
    signed = [each for each in named if _signs(issuer, each)]
    if not signed:
        forged = ": the CRL of that name was not signed by it" if named else ""
        return None if policy.allow_missing else Unknown(Doubt.MISSING, f"there is no CRL of {issuer}{forged}")
    if not _may_sign_lists(issuer.certificate):
        return Unknown(Doubt.UNUSABLE, f"{issuer} signed a CRL that its key usage does not allow (cRLSign is missing)")
    counting = newest(signed, now)
    for each in counting:
        revocation = each.revocation(serial_number(certificate))
        if revocation is not None:
            return revocation
    doubts = [_doubt(each, now, policy) for each in counting if _is_for(each, certificate, issuer)]
    if None in doubts:
        return None
    if doubts:
        return doubts[0]
    return None if policy.allow_missing else Unknown(Doubt.MISSING, f"there is no CRL of {issuer} for it")


def revocation_of_anchor(
    crls: CRLSet, anchor: x509.Certificate, issuers: Iterable[Issuer], *, now: datetime
) -> Revocation | None:
    """How a trust anchor was revoked, or None.

    Args:
        crls: the lists.
        anchor: the anchor.
        issuers: anchors whose key signed it; itself, if that is so.
        now: the time to judge by, aware.
    """
    for issuer in issuers:
        if not _may_sign_lists(issuer.certificate):
            continue
        signed = [each for each in lists_of(crls, issuer.outline.subject) if _signs(issuer, each)]
        for each in newest(signed, now):
            revocation = each.revocation(serial_number(anchor))
            if revocation is not None:
                return revocation
    return None


def _may_sign_lists(issuer: x509.Certificate) -> bool:
    try:
        usage = extension(issuer, x509.KeyUsage)
    except ValueError:
        return False
    return usage is None or usage.crl_sign


def _doubt(each: RevocationList, now: datetime, policy: CRLPolicy) -> Unknown | None:
    """Why a list does not clear what is not on it; None if it does."""
    if each.trouble is not None:
        return Unknown(Doubt.UNUSABLE, f"{each} cannot be used: {each.trouble}")
    if now < each.this_update:
        return Unknown(Doubt.NOT_YET_VALID, f"{each} is not yet valid, our clock says {describe_time(now)}")
    if now > each.next_update and not policy.allow_expired:
        return Unknown(Doubt.EXPIRED, f"{each} has expired, our clock says {describe_time(now)}")
    return None


# Scope --------------------------------------------------------------------------------------------------------------


def _is_for(each: RevocationList, certificate: x509.Certificate, issuer: Issuer) -> bool:
    """Whether a list is for a certificate (RFC 5280 section 6.3.3 b.2)."""
    point = each.point
    if point is None:
        return True
    if (point.only_contains_ca_certs or point.only_contains_user_certs) and (
        is_ca(certificate) != point.only_contains_ca_certs
    ):
        return False
    wanted = set(_point_names(point.full_name, point.relative_name, issuer.certificate))
    if not wanted:
        return True
    # A certificate without distribution points has one by the name of its issuer.
    offered: set[tuple[str, object]] = {("directory", issuer.outline.subject)}
    try:
        points = extension(certificate, x509.CRLDistributionPoints) or ()
    except ValueError:
        points = ()
    for other in points:
        if other.crl_issuer is None and other.reasons is None:
            offered.update(_point_names(other.full_name, other.relative_name, issuer.certificate))
    return not wanted.isdisjoint(offered)


def _point_names(
    full: Iterable[x509.GeneralName] | None, relative: x509.RelativeDistinguishedName | None, issuer: x509.Certificate
) -> Iterator[tuple[str, object]]:
    """The names of a distribution point, for comparing."""
    for each in full or ():
        if isinstance(each, x509.DirectoryName):
            yield "directory", canonical_name(each.value.public_bytes())
        else:
            yield type(each).__name__, each.value
    if relative is not None:
        yield (
            "directory",
            (
                *canonical_name(subject_der(issuer)),
                *canonical_name(x509.Name([relative]).public_bytes()),
            ),
        )


# Two sets -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Superseded:
    """That a set brought a list which is older than the one in use: the latter was kept."""

    older: RevocationList
    kept: RevocationList

    def __str__(self) -> str:
        """Which, and what to do."""
        numbers = ""
        if self.older.number is not None and self.kept.number is not None:
            numbers = f" (number {self.older.number}, the other has {self.kept.number})"
        return (
            f"{self.older} is older than the one in use{numbers}, of {describe_time(self.kept.this_update)}, "
            "which stays in use. See whether an old list is handed out, or if the CA has begun its numbers anew, take "
            "the lists away (crls=None) before you give the new one"
        )


def keep_newer(
    new: CRLSet, present: CRLSet, issuers: Iterable[Issuer], *, now: datetime
) -> tuple[CRLSet, list[Superseded]]:
    """A set in place of another one, without going back: whatever list of it is older than the one in use.

    Args:
        new: the set that is to be used.
        present: the set in use.
        issuers: certificates that are known, by whose keys lists of CAs of one name are told apart.
        now: the time to judge by, aware: a list that has not begun replaces none, and hides no old one beside it.

    Returns:
        The new set, with those lists of the present one that are newer than what it has of the same CA and scope;
        and these.
    """
    known = tuple(issuers)

    def family(each: RevocationList) -> tuple[object, ...]:
        keys = (i.outline.key for i in known if each.issuer == i.outline.subject and _signs(i, each))
        return each.issuer, each.point, next(keys, each.key_id)

    latest: dict[tuple[object, ...], RevocationList] = {}
    for each in read_lists(new):
        key = family(each)
        if each.this_update <= now and (key not in latest or is_older(latest[key], each)):
            latest[key] = each
    kept: dict[tuple[object, ...], Superseded] = {}
    for each in read_lists(present):
        key = family(each)
        best = kept[key].kept if key in kept else latest.get(key)
        if best is not None and each.this_update <= now and is_older(best, each):
            kept[key] = Superseded(latest[key], each)
    if not kept:
        return new, []
    return with_lists(new, [each.kept for each in kept.values()]), list(kept.values())


def counting(crls: CRLSet) -> list[RevocationList]:
    """The lists that count, as far as that can be told without their issuers: of each key and scope the newest."""
    keys = dict.fromkeys((each.issuer, each.key_id) for each in read_lists(crls))
    return [
        each
        for issuer, key_id in keys
        for each in newest([mine for mine in lists_of(crls, issuer) if mine.key_id == key_id])
    ]


def unsigned(crls: CRLSet, issuers: Iterable[Issuer]) -> list[RevocationList]:
    """The lists that carry the name of a certificate that is known, and that no such certificate signed.

    Args:
        crls: the lists.
        issuers: certificates that are known.
    """
    known = tuple(issuers)
    found = []
    for each in read_lists(crls):
        named = [issuer for issuer in known if issuer.outline.subject == each.issuer]
        if named and not any(_signs(issuer, each) for issuer in named):
            found.append(each)
    return found


def listed_without_effect(crls: CRLSet, issuers: Iterable[Issuer]) -> Iterator[tuple[Issuer, RevocationList]]:
    """The known certificates that are on a list in their issuer's name, where no known key signed the list.

    Args:
        crls: the lists.
        issuers: certificates that are known.
    """
    known = tuple(issuers)
    for issuer in known:
        for each in lists_of(crls, issuer.outline.issuer):
            if each.revocation(serial_number(issuer.certificate)) is not None and not any(
                other.outline.subject == each.issuer and _signs(other, each) for other in known
            ):
                yield issuer, each


def _signs(issuer: Issuer, each: RevocationList) -> bool:
    return each.signed_by(issuer.certificate, issuer.outline.key)
