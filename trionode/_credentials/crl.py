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
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.describe import describe_issuer, describe_subject
from trionode._identity.outline import outline
from trionode._util.fields import check_fields
from trionode._util.immutable import Immutable

from .pem import MAX_CRL_BYTES, parse_crls, read_file
from .revocation_list import Revocation, RevocationList, newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from trionode._identity.outline import CanonicalName

    from .pem import FilePath

__all__ = ["CRLPolicy", "CRLSet"]


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

    def __post_init__(self) -> None:
        """Check.

        Raises:
            TypeError: an option is neither True nor False; the message names it.
        """
        check_fields(self)


#: Nothing loosened; the default.
STRICT: Final = CRLPolicy()


@final
class CRLSet(Immutable):
    """An immutable, non-empty set of certificate revocation lists (CRLs).

    Of several lists of one issuer the newest counts. Sets are compared and hashed by content.

    Attributes:
        lists: each once, in the order in which they came.
    """

    __slots__ = ("_by_issuer", "_key", "_read", "lists")

    lists: tuple[x509.CertificateRevocationList, ...]
    _read: tuple[RevocationList, ...]
    _by_issuer: dict[CanonicalName, tuple[RevocationList, ...]]
    _key: frozenset[bytes]

    def __init__(self, lists: Iterable[x509.CertificateRevocationList]) -> None:
        """A set of `cryptography` CRL objects. Takes some 4 µs for each entry; to load files takes less.

        Raises:
            CertificateError: reason `no_crl` if there is none; `bad_crl` if one is damaged, has no nextUpdate, or is a
                delta, indirect or partial by reason.
        """
        _fill(self, map(RevocationList, lists))

    @classmethod
    def load(cls, *files: FilePath) -> Self:
        """All lists of one or more files, each PEM (any number of blocks) or DER. Blocks while it reads them.

        Reading takes about 1 µs for each entry: lists of a hundred thousand are better read in a thread, with
        `trio.to_thread.run_sync(CRLSet.load, file)`. `FileSource` does so.

        Args:
            files: at most 16 MiB each.

        Raises:
            CertificateError: a file is unreadable, or holds no list or a damaged one; `reason` says which.
        """
        content = ((read_file(file, limit=MAX_CRL_BYTES, kind="CRL file"), str(file)) for file in files)
        return cls._parse((secret.data, where) for secret, where in content)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """All lists of a PEM text with any number of blocks, or the one of a DER encoding; takes as long as `load`.

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
        return cls._parse([(bytes(data), "the CRL data")])

    @classmethod
    def _parse(cls, contents: Iterable[tuple[bytes, str]]) -> Self:
        return cls._of(RevocationList(crl, der) for data, where in contents for crl, der in parse_crls(data, where))

    @classmethod
    def _of(cls, lists: Iterable[RevocationList]) -> Self:
        made = cls.__new__(cls)
        _fill(made, lists)
        return made

    def listed(self, certificate: x509.Certificate) -> Revocation | None:
        """What the lists of a certificate's issuer say of it, by issuer's name and serial number, whoever signed them.

        None is no good news by itself: there may be no list of its issuer, or only an old one.

        Args:
            certificate: whom to look for.
        """
        issuer = outline(certificate.public_bytes(Encoding.DER)).issuer
        found = (each.revocation(certificate.serial_number) for each in newest(lists_of(self, issuer)))
        return next(filter(None, found), None)

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


def _fill(crls: CRLSet, lists: Iterable[RevocationList]) -> None:
    unique = {each.digest: each for each in lists}
    if not unique:
        msg = "a CRL set needs at least one list; for no revocation checks give None in its place"
        raise CertificateError(msg, reason=CertificateReason.NO_CRL)
    by_issuer: dict[CanonicalName, tuple[RevocationList, ...]] = {}
    for each in unique.values():
        by_issuer[each.issuer] = (*by_issuer.get(each.issuer, ()), each)
    object.__setattr__(crls, "lists", tuple(each.crl for each in unique.values()))
    object.__setattr__(crls, "_read", tuple(unique.values()))
    object.__setattr__(crls, "_by_issuer", by_issuer)
    object.__setattr__(crls, "_key", frozenset(unique))


# What handshakes and managers ask of a set --------------------------------------------------------------------------


def read_lists(crls: CRLSet) -> tuple[RevocationList, ...]:
    """The lists of a set."""
    return crls._read  # noqa: SLF001 -- applications see what `cryptography` has of a list


def lists_of(crls: CRLSet, issuer: CanonicalName) -> tuple[RevocationList, ...]:
    """The lists that carry a name, whoever signed them."""
    return crls._by_issuer.get(issuer, ())  # noqa: SLF001 -- as above


def with_lists(crls: CRLSet, more: Iterable[RevocationList]) -> CRLSet:
    """A set and some lists more."""
    return CRLSet._of([*read_lists(crls), *more])  # noqa: SLF001 -- as above


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
