"""Revocation: which certificates their issuers have taken back (RFC 5280 section 5).

Theory. A `CRLSet` is an immutable value, as a CA pool is: lists that were read once, at the edge, and are shared by
every manager, generation and context that uses them. What the kind of list decides is checked then (a list without an
end, a delta, an indirect one are not for us); whether a CA signed it is not, for that takes the CA's certificate, which
comes with a peer's chain. What the lists say of a certificate is worked out in `revocation`.

A set fails closed: a certificate whose issuer's list is missing, expired or not signed by the issuer is refused,
because it may have been revoked. `CRLPolicy` names what may be loosened. Every certificate of a path is checked, not
the leaf alone: a stolen CA key is worse than a stolen leaf key, and a CA that was revoked without effect is the worst
of all. Trust anchors need no list, as no CA is above them (RFC 5280 section 6.1): a pool of the root alone needs the
root's list and one of each intermediate that issues, a pool of intermediates only theirs, and a pinned leaf none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import serial_number
from trionode._identity.outline import outline
from trionode._util.fields import Checked, check_argument, check_each
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
class CRLPolicy(Checked):
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
        _fill(self, map(RevocationList, check_each("lists", lists, x509.CertificateRevocationList)))

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
        """The entry for a certificate, by its issuer's name and its serial number; signatures are not checked.

        None does not mean that it is good: there may be no list of its issuer, or only an old one.

        Args:
            certificate: the certificate to look for.
        """
        check_argument("certificate", certificate, x509.Certificate)
        issuer = outline(certificate.public_bytes(Encoding.DER)).issuer
        found = (each.revocation(serial_number(certificate)) for each in newest(lists_of(self, issuer)))
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
        return f"<CRLSet of {len(self)}: {'; '.join(map(str, self._read[:4]))}>"


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
    """The lists that carry an issuer's name; signatures are not checked."""
    return crls._by_issuer.get(issuer, ())  # noqa: SLF001 -- as above


def with_lists(crls: CRLSet, more: Iterable[RevocationList]) -> CRLSet:
    """A set and some lists more."""
    return CRLSet._of([*read_lists(crls), *more])  # noqa: SLF001 -- as above


def next_update(crl: x509.CertificateRevocationList) -> datetime:
    """When a list of a set expires; a set has none without an end."""
    end = crl.next_update_utc
    assert end is not None
    return end
