"""Revocation: which certificates their issuers have taken back (RFC 5280 section 5).

Theory. A `CRLSet` is an immutable value, as a CA pool is: lists that were parsed once, at the edge. What the kind of
list decides is checked then (a list without an end, a delta, an indirect one are not for us); whether a CA signed it
is not, for that takes the CA's certificate, which comes with a peer's chain.

In handshakes OpenSSL does the checking: it finds the list for each certificate of a path, checks its signature and
dates, and has an alert for what it finds. `CRLSet.listed` then only tells us date and reason. Outside of handshakes
(live connections after a list has changed, our own certificate) `IssuedLists.status` answers, by the same rules, but
that it takes an expired list's word for what was revoked.

Once there is a set it fails closed: a certificate whose issuer's list is missing, expired or not signed by the issuer
is refused, because nobody knows whether it was revoked. `CRLPolicy` names what may be loosened. Every certificate of
a path is checked, not the leaf alone: a stolen CA key is worse than a stolen leaf key, and a CA that was revoked in
vain is the worst of all. Trust anchors need no list, as nobody is above them (RFC 5280 section 6.1): a pool of the
root alone wants the root's list and one for each intermediate that issues, a pool of intermediates only theirs, and a
pinned leaf none (for what it sends along, OpenSSL wants them). One that is *on* a list is refused all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.describe import describe_issuer, describe_subject
from trionode._util.immutable import Immutable

from .pem import MAX_CRL_BYTES, parse_crls, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from .pem import FilePath

__all__ = ["CRLPolicy", "CRLSet", "Revocation"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CRLPolicy:
    """How strictly certificate revocation lists are applied, once there are any. Each True loosens, and is logged.

    Attributes:
        allow_missing: accept certificates for which there is no list of their issuer.
        allow_expired: go on using a list after its nextUpdate; what is on it stays refused.
        leaf_only: check the peer's own certificate only, not the CAs between it and the pool.
    """

    allow_missing: bool = False
    allow_expired: bool = False
    leaf_only: bool = False


#: Nothing loosened; the default.
STRICT: Final = CRLPolicy()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Revocation:
    """That a certificate was revoked, as its issuer's list says it.

    Attributes:
        serial: the certificate's serial number.
        date: since when, UTC.
        reason: why (RFC 5280 section 5.3.1: `keyCompromise`, `superseded`, …); `unspecified` if the list does not say.
        issuer: who revoked it, as a distinguished name (RFC 4514).
    """

    serial: int
    date: datetime
    reason: str
    issuer: str

    def __str__(self) -> str:
        """The facts, as the end of a sentence: `serial … was revoked on …`."""
        return (
            f"serial {self.serial:x} was revoked on {self.date:%Y-%m-%d %H:%M:%S} UTC by {self.issuer}: {self.reason}"
        )


@final
class CRLSet(Immutable):
    """An immutable, non-empty set of certificate revocation lists (CRLs).

    Of several lists of one issuer the newest counts. Sets are compared and hashed by content.

    Attributes:
        lists: each once, in the order in which they came.
    """

    __slots__ = ("_key", "lists")

    lists: tuple[x509.CertificateRevocationList, ...]
    _key: frozenset[bytes]

    def __init__(self, lists: Iterable[x509.CertificateRevocationList]) -> None:
        """A set of `cryptography` CRL objects.

        Raises:
            CertificateError: reason `no_crl` if there is none; `bad_crl` if one is damaged, has no nextUpdate, or is a
                delta, indirect or partial by reason.
        """
        unique = {crl.fingerprint(SHA256()): crl for crl in lists}
        if not unique:
            msg = "a CRL set needs at least one list; for no revocation checks give None in its place"
            raise CertificateError(msg, reason=CertificateReason.NO_CRL)
        for crl in unique.values():
            _check_kind(crl)
        object.__setattr__(self, "lists", tuple(unique.values()))
        object.__setattr__(self, "_key", frozenset(unique))

    @classmethod
    def load(cls, *files: FilePath) -> Self:
        """All lists of one or more files, each PEM (any number of blocks) or DER. Blocks while it reads them.

        Args:
            files: at most 16 MiB each.

        Raises:
            CertificateError: a file is unreadable, or holds no list or a damaged one; `reason` says which.
        """
        content = ((read_file(file, limit=MAX_CRL_BYTES, kind="CRL file"), str(file)) for file in files)
        return cls(crl for secret, where in content for crl in parse_crls(secret.data, where))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """All lists of a PEM text with any number of blocks, or the one of a DER encoding.

        Args:
            data: at most 16 MiB.

        Raises:
            CertificateError: it holds no list or a damaged one; `reason` says which.
        """
        if len(data) > MAX_CRL_BYTES:
            msg = (
                f"the CRL data is larger than {MAX_CRL_BYTES} bytes; split the list, or shorten it by shorter lifetimes"
            )
            raise CertificateError(msg, reason=CertificateReason.BAD_CRL)
        return cls(parse_crls(bytes(data), "the CRL data"))

    def listed(self, certificate: x509.Certificate) -> Revocation | None:
        """What the lists of a certificate's issuer say of it, by issuer's name and serial number, whoever signed them.

        None is no good news by itself: there may be no list of its issuer, or only an old one.

        Args:
            certificate: whom to look for.
        """
        return _listed(_newest(_named(self, certificate.issuer)), certificate)

    def __iter__(self) -> Iterator[x509.CertificateRevocationList]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, CRLSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<CRLSet of {len(self)}: {'; '.join(describe_crl(crl) for crl in self.lists[:4])}>"


# What handshakes and managers ask of a set --------------------------------------------------------------------------


def counting(crls: CRLSet) -> Iterator[x509.CertificateRevocationList]:
    """The lists that count: of several of one issuer the newest, of each scope."""
    for issuer in dict.fromkeys(crl.issuer for crl in crls):
        yield from _newest(_named(crls, issuer))


def newest_of_issuer(crls: CRLSet, certificate: x509.Certificate) -> x509.CertificateRevocationList | None:
    """The newest list that carries the name of a certificate's issuer, or None."""
    return next(iter(_newest(_named(crls, certificate.issuer))), None)


def issued_lists(crls: CRLSet, issuer: x509.Certificate) -> IssuedLists:
    """The lists of one CA, their signatures checked; takes some 50 ms for 30 000 entries."""
    named = _named(crls, issuer.subject)
    signed = tuple(crl for crl in named if _signed_by(crl, issuer))
    return IssuedLists(
        name=describe_subject(issuer),
        lists=signed,
        forged=len(named) - len(signed),
        serials=frozenset(entry.serial_number for crl in signed for entry in crl),
    )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedLists:
    """What there is of one CA's lists, to be asked any number of times.

    Attributes:
        name: the CA's (RFC 4514).
        lists: those that it signed.
        forged: how many carry its name and not its signature.
        serials: everything on them; a list itself is searched from its beginning each time.
    """

    name: str
    lists: tuple[x509.CertificateRevocationList, ...]
    forged: int
    serials: frozenset[int]

    def status(self, certificate: x509.Certificate, *, now: datetime, policy: CRLPolicy) -> Revocation | str | None:
        """Whether one of the CA's certificates was revoked.

        Args:
            certificate: whose status is wanted.
            now: the time to judge by, aware.
            policy: what to make of no list, and of an expired one.

        Returns:
            None if it was not; how it was revoked; or, as text, why nobody knows.
        """
        if not self.lists:
            what = f"the CRL of {self.name} was not signed by it" if self.forged else f"there is no CRL of {self.name}"
            return None if policy.allow_missing else what
        current = [crl for crl in self.lists if crl.last_update_utc <= now <= next_update(crl)]
        counting = _newest(current or self.lists)
        revocation = _listed(counting, certificate) if certificate.serial_number in self.serials else None
        if revocation is not None or current:
            return revocation
        if now < counting[0].last_update_utc:
            return f"{describe_crl(counting[0])} is not yet valid"
        return None if policy.allow_expired else f"{describe_crl(counting[0])} has expired"


def describe_crl(crl: x509.CertificateRevocationList) -> str:
    """A list in one line for messages: issuer and dates."""
    return (
        f"the CRL of {describe_issuer(crl)} (of {crl.last_update_utc:%Y-%m-%d %H:%M:%S}, next update "
        f"{next_update(crl):%Y-%m-%d %H:%M:%S} UTC)"
    )


def next_update(crl: x509.CertificateRevocationList) -> datetime:
    """When a list of a set expires; a set has none without an end."""
    end = crl.next_update_utc
    assert end is not None
    return end


def _named(crls: CRLSet, issuer: x509.Name) -> list[x509.CertificateRevocationList]:
    return [crl for crl in crls if crl.issuer == issuer]


def _newest(lists: Iterable[x509.CertificateRevocationList]) -> list[x509.CertificateRevocationList]:
    """The lists that count, the newest first: of one issuer the newest of each scope (RFC 5280 section 5.2.5)."""
    newest: dict[object, x509.CertificateRevocationList] = {}
    for crl in sorted(lists, key=lambda crl: crl.last_update_utc, reverse=True):
        scopes = [each.value for each in crl.extensions if isinstance(each.value, x509.IssuingDistributionPoint)]
        newest.setdefault(tuple(scopes), crl)
    return list(newest.values())


def _listed(lists: Iterable[x509.CertificateRevocationList], certificate: x509.Certificate) -> Revocation | None:
    for crl in lists:
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            return Revocation(
                serial=entry.serial_number,
                date=entry.revocation_date_utc,
                reason=_reason(entry),
                issuer=describe_issuer(crl),
            )
    return None


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return str(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except x509.ExtensionNotFound:
        return str(x509.ReasonFlags.unspecified.value)
    except (x509.DuplicateExtension, ValueError):  # it is revoked, whatever else the entry says
        return "unreadable reason"


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # other keys raise TypeError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _check_kind(crl: x509.CertificateRevocationList) -> None:
    """Refuse what can be read but not relied on."""
    try:
        end = crl.next_update_utc
        shown = f"the CRL of {describe_issuer(crl)}, of {crl.last_update_utc:%Y-%m-%d %H:%M:%S} UTC,"
        kinds = {type(extension.value): extension.value for extension in crl.extensions}
    except (ValueError, x509.DuplicateExtension):
        msg = "a CRL is damaged: its extensions do not follow RFC 5280. Have it issued anew"
        raise CertificateError(msg, reason=CertificateReason.BAD_CRL) from None
    why: str | None = None
    scope = kinds.get(x509.IssuingDistributionPoint)
    if end is None:
        why = "has no nextUpdate, so nobody could tell when it is out of date. Have it issued with one (RFC 5280)"
    elif x509.DeltaCRLIndicator in kinds:
        why = "is a delta. Give the complete list"
    elif isinstance(scope, x509.IssuingDistributionPoint) and (
        scope.indirect_crl or scope.only_some_reasons or scope.only_contains_attribute_certs
    ):
        why = "is indirect, or for some reasons or attribute certificates only. Give the issuer's own complete list"
    if why is not None:
        raise CertificateError(f"{shown} {why}", reason=CertificateReason.BAD_CRL)
