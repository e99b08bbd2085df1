"""The trust anchors of a pool: found by name and content, and what of a path to one of them never changes.

Theory. What OpenSSL says of a path, and what we add to it, depends on the certificates of the path, on the purpose, and
on nothing else: no date, no list, no name that is dialled. So it is worked out once and kept: a peer that comes back
costs no signature check but the one that shows that it has its key. What does depend on the moment is the judge's.

OpenSSL verifies signatures, purposes (extended key usage), CA flags, path lengths and name constraints, in a store with
this path's anchor and nothing else: there is nothing that it could choose. What it does not check outside of
connections, or checks otherwise, is added: that keys and digests are of 112 bits (its security level 2), that whatever
issues is a CA by its basic constraints, and that no wildcard reaches into an excluded subtree (CVE-2025-61727).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives import hashes

from trionode._identity.certificate import signature_hash

from .binding import PURPOSE_ANY, PURPOSE_CLIENT, PURPOSE_SERVER, V_OK, key_size, store_with, verify
from .candidates import Candidate
from .name_constraints import excluded_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from OpenSSL import crypto

    from trionode._credentials.ca_pool import CAPool
    from trionode._identity.outline import CanonicalName

# What stands for what is found without OpenSSL (x509_vfy.h).
V_INVALID_CA: Final = 79
V_EXCLUDED: Final = 48
V_KEY_TOO_SMALL: Final = 66
V_CA_KEY_TOO_SMALL: Final = 67
V_DIGEST_TOO_WEAK: Final = 68

#: RSA keys of fewer bits, rounded as OpenSSL rounds, have less than 112 bits of security.
_MIN_RSA: Final = 1963
_MIN_EC: Final = 224
_WEAK_DIGESTS: Final = (hashes.MD5, hashes.SHA1)

#: Verdicts on paths that are kept.
_KEPT: Final = 1024


@final
class Anchors:
    """The certificates of a pool.

    Attributes:
        unreadable: those that OpenSSL or we cannot read, so that no peer passes by them; not among the others.
    """

    def __init__(self, pool: CAPool | None) -> None:
        every = [Candidate(certificate, anchor=True) for certificate in pool or ()]
        found = [each for each in every if each.is_readable]
        self.unreadable = tuple(each.certificate for each in every if not each.is_readable)
        self._by_content = {each.digest: each for each in found}
        self._by_name: dict[CanonicalName, list[Candidate]] = {}
        for each in found:
            self._by_name.setdefault(each.outline.subject, []).append(each)
        self._stores: dict[tuple[int, bytes], crypto.X509Store] = {}
        self._verdicts: dict[tuple[object, ...], tuple[int, int]] = {}
        self._issuers: dict[bytes, tuple[Candidate, ...]] = {}

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._by_content.values())

    def named(self, name: CanonicalName) -> Sequence[Candidate]:
        """Those with this subject."""
        return self._by_name.get(name, ())

    def same(self, other: Candidate) -> Candidate | None:
        """The anchor that is this very certificate, or None."""
        return other if other.anchor else self._by_content.get(other.digest)

    def verdict(self, path: Sequence[Candidate], *, accepting: bool) -> tuple[int, int]:
        """What is wrong with a path, but for dates and revocation: verify code, and depth, the leaf's being 0.

        Args:
            path: from a leaf to an anchor of the pool.
            accepting: the leaf is a client's, else a server's.
        """
        purpose = PURPOSE_CLIENT if accepting else PURPOSE_SERVER
        key = (purpose, *(each.digest for each in path))
        found = self._verdicts.get(key)
        if found is None:
            if len(self._verdicts) >= _KEPT:
                self._verdicts.clear()
            found = self._verdicts[key] = self._verify(path, purpose)
        return found

    def _verify(self, path: Sequence[Candidate], purpose: int) -> tuple[int, int]:
        code, depth = verify(self._store(path[-1], purpose), [each.native for each in path])
        return (code, depth) if code != V_OK else next(_objections(path), (V_OK, 0))

    def _store(self, anchor: Candidate, purpose: int) -> crypto.X509Store:
        store = self._stores.get((purpose, anchor.digest))
        if store is None:
            store = self._stores[purpose, anchor.digest] = store_with(anchor.native, purpose=purpose)
        return store

    def issuers_of(self, anchor: Candidate) -> Sequence[Candidate]:
        """The anchors whose key signed an anchor, itself if that is so."""
        found = self._issuers.get(anchor.digest)
        if found is None:
            found = self._issuers[anchor.digest] = tuple(
                above
                for above in self.named(anchor.outline.issuer)
                if above is anchor or verify(self._store(above, PURPOSE_ANY), [anchor.native, above.native])[0] == V_OK
            )
        return found

    def weak(self) -> list[Candidate]:
        """Those whose key is too weak to vouch for anybody."""
        return [each for each in self._by_content.values() if _is_weak(each)]


#: Read once per pool, and shared by all who trust it.
_known: WeakKeyDictionary[CAPool, Anchors] = WeakKeyDictionary()


def anchors_of(pool: CAPool | None) -> Anchors:
    """The anchors of a pool; none for None."""
    if pool is None:
        return Anchors(None)
    found = _known.get(pool)
    if found is None:
        found = _known[pool] = Anchors(pool)
    return found


def _objections(path: Sequence[Candidate]) -> Iterator[tuple[int, int]]:
    """What OpenSSL does not mind, or not outside of connections: verify code, depth."""
    for depth, each in enumerate(path):
        if _is_weak(each):
            yield V_CA_KEY_TOO_SMALL if depth else V_KEY_TOO_SMALL, depth
        # Where the algorithm is not known it is younger than these: OpenSSL has verified it.
        if not each.anchor and isinstance(signature_hash(each.certificate), _WEAK_DIGESTS):
            yield V_DIGEST_TOO_WEAK, depth
        if depth and not each.may_issue:
            yield V_INVALID_CA, depth
    depth_or_none = excluded_wildcard([each.certificate for each in path])
    if depth_or_none is not None:
        yield V_EXCLUDED, depth_or_none


def _is_weak(each: Candidate) -> bool:
    kind, bits = key_size(each.native)
    return bits < {"RSA": _MIN_RSA, "EC": _MIN_EC}.get(kind, 1)
