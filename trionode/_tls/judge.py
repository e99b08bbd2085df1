"""Whether a certificate chain is believed: the one place where that is decided.

Theory. A `Judge` stands for one policy and one direction: an acceptor's of its clients, or a dialer's of its servers.
Everything asks it: handshakes (from OpenSSL's verify callback), managers about live peers before and after they publish
other trust, `check` about our own key pair, `explain` about a server's. So they cannot disagree.

A chain is believed if one *path* holds, from its leaf to an anchor of the pool. Candidate paths are tried until one
does. Of each path, in this order:

1. OpenSSL verifies signatures, purposes (extended key usage), CA flags, path lengths, name constraints: in a store that
   has this path's anchor and nothing else, so that there is nothing that it could choose.
2. What OpenSSL does not check outside of connections, or checks otherwise: that keys and digests are of 112 bits (its
   security level 2), that whatever issues is a CA by its basic constraints, and that no wildcard reaches into an
   excluded subtree (CVE-2025-61727).
3. Revocation, by lists that the path's own keys signed.
4. Dates, by the policy's clock. They come last, so that a verdict that leaves them out (`dated=False`, for live peers:
   a certificate that has expired meanwhile is one whose CA is trusted still) differs in nothing else.

Where no path holds, the fault told is that of the path which came furthest; where no path reaches an anchor, that the
CA is unknown. Names are not the judge's: they belong to the one who is dialled, and each session checks them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, final

from cryptography.hazmat.primitives import hashes

from trionode._credentials.revocation import Doubt, Issuer, Unknown, revocation_of_anchor, status
from trionode._identity.certificate import not_after, not_before, signature_hash

from .binding import PURPOSE_ANY, PURPOSE_CLIENT, PURPOSE_SERVER, V_OK, key_size, store_with, verify
from .candidates import MAX_LENGTH, Candidate, Paths, anchors_of
from .name_constraints import excluded_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cryptography import x509
    from OpenSSL import crypto

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.policy import TLSPolicy
    from trionode._credentials.revocation_list import Revocation

#: What stands for what is found without OpenSSL (x509_vfy.h): the alert is made of it.
V_ISSUER_UNKNOWN: Final = 20
V_NOT_YET_VALID: Final = 9
V_EXPIRED: Final = 10
V_CHAIN_TOO_LONG: Final = 22
V_REVOKED: Final = 23
V_INVALID_CA: Final = 79
V_EXCLUDED: Final = 48
V_KEY_TOO_SMALL: Final = 66
V_CA_KEY_TOO_SMALL: Final = 67
V_DIGEST_TOO_WEAK: Final = 68
V_DOUBT: Final = {Doubt.MISSING: 3, Doubt.EXPIRED: 12, Doubt.NOT_YET_VALID: 11, Doubt.UNUSABLE: 36}

#: Codes of OpenSSL's for a path whose certificates did not sign each other: whoever signed, it is not here.
_NOT_SIGNED: Final = frozenset({2, 4, 6, 7, 18, 19, 20, 21, 29, 30, 31})

#: RSA keys of fewer bits, rounded as OpenSSL rounds, have less than 112 bits of security.
_MIN_RSA: Final = 1963
_MIN_EC: Final = 224
_WEAK_DIGESTS: Final = (hashes.MD5, hashes.SHA1)


class _Stage(IntEnum):
    """How far a path came before something was wrong with it."""

    NOT_SIGNED = 0
    PATH = 1
    REVOCATION = 2
    DATES = 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a chain is not believed.

    Attributes:
        code: OpenSSL's verify code for it.
        path: the certificates from the leaf on, as far as the path led.
        depth: at which of them it fails, the leaf being 0.
        detail: how a certificate was revoked, why that is not known, or, where the CA is unknown, a certificate that
            has its name and whose key did not sign.
    """

    code: int
    path: tuple[x509.Certificate, ...]
    depth: int
    detail: Revocation | Unknown | x509.Certificate | None = None

    @property
    def found(self) -> x509.Certificate:
        """The certificate at which the path fails."""
        return self.path[self.depth]


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of a chain.

    Attributes:
        path: from the leaf to an anchor; empty if the chain is not believed.
        fault: why it is not; None if it is.
    """

    path: tuple[x509.Certificate, ...] = ()
    fault: Fault | None = None


@final
class Judge:
    """Judges chains by one policy, in one direction."""

    def __init__(self, policy: TLSPolicy, *, accepting: bool) -> None:
        """Prepare; pools and lists are parsed already, and what is made here is made when it is needed.

        Args:
            policy: pools, lists, and clock.
            accepting: judge as an acceptor judges its clients, else as a dialer its servers.

        Raises:
            CertificateError: the system's CAs are needed and there are none.
        """
        self.policy = policy
        self.accepting = accepting
        self._anchors = anchors_of(self.pool)
        self._stores: dict[bytes, crypto.X509Store] = {}
        self._issuers: dict[bytes, Sequence[Issuer]] = {}

    @property
    def pool(self) -> CAPool | None:
        """The anchors; None trusts nobody."""
        return self.policy.client_cas if self.accepting else self.policy.roots

    def judge(self, chain: Sequence[x509.Certificate | crypto.X509], *, dated: bool = True) -> Verdict:
        """Whether a chain is believed. Takes about 0.2 ms, most of it for signatures; at worst some 20 ms.

        Args:
            chain: as it was presented, the leaf first. The order of what follows does not matter, nor what is too much.
            dated: whether certificates must be within their dates; lists must be in any case.

        Raises:
            ValueError: the leaf cannot be read.
        """
        now = self.policy.now()
        paths = Paths([Candidate(each) for each in chain], self._anchors)
        worst: tuple[_Stage, Fault] | None = None
        for path in paths:
            found = self._fault(path, now, dated=dated)
            if found is None:
                return Verdict(tuple(each.certificate for each in path))
            if worst is None or found[0] > worst[0]:
                worst = found
        if worst is None or (worst[0] is _Stage.NOT_SIGNED and len(paths.dead_end) > worst[1].depth + 1):
            return Verdict(fault=_dead_end(paths.dead_end))
        return Verdict(fault=worst[1])

    def _fault(self, path: tuple[Candidate, ...], now: datetime, *, dated: bool) -> tuple[_Stage, Fault] | None:
        """What is wrong with a path, and at which stage; None if it holds."""
        certificates = tuple(each.certificate for each in path)
        code, depth = verify(self._store(path[-1]), path[0].native, [each.native for each in path[1:-1]])
        if code in _NOT_SIGNED:
            above = certificates[depth + 1] if depth + 1 < len(path) else None
            return _Stage.NOT_SIGNED, Fault(code=V_ISSUER_UNKNOWN, path=certificates, depth=depth, detail=above)
        if code == V_OK:
            code, depth = next(_objections(path), (V_OK, 0))
        if code != V_OK:
            return _Stage.PATH, Fault(code=code, path=certificates, depth=depth)
        fault = self._revocation(path, certificates, now)
        if fault is not None:
            return _Stage.REVOCATION, fault
        for depth, each in enumerate(certificates) if dated else ():
            code = _dates(each, now)
            if code != V_OK:
                return _Stage.DATES, Fault(code=code, path=certificates, depth=depth)
        return None

    def _store(self, anchor: Candidate) -> crypto.X509Store:
        store = self._stores.get(anchor.der)
        if store is None:
            purpose = PURPOSE_CLIENT if self.accepting else PURPOSE_SERVER
            store = self._stores[anchor.der] = store_with(anchor.native, purpose=purpose)
        return store

    # Revocation

    def _revocation(
        self, path: tuple[Candidate, ...], certificates: tuple[x509.Certificate, ...], now: datetime
    ) -> Fault | None:
        crls, policy = self.policy.crls, self.policy.crl_policy
        if crls is None:
            return None
        checked = path[:1] if policy.leaf_only else path
        for depth, each in enumerate(checked):
            found: Revocation | Unknown | None
            if each.anchor:
                found = revocation_of_anchor(crls, each.certificate, self._issuers_of_anchor(each), now=now)
            else:
                issuer = Issuer(path[depth + 1].certificate, path[depth + 1].outline)
                found = status(crls, each.certificate, issuer, now=now, policy=policy)
            if found is not None:
                code = V_DOUBT[found.doubt] if isinstance(found, Unknown) else V_REVOKED
                return Fault(code=code, path=certificates, depth=depth, detail=found)
        return None

    def _issuers_of_anchor(self, anchor: Candidate) -> Sequence[Issuer]:
        """The anchors whose key signed an anchor, itself if that is so."""
        found = self._issuers.get(anchor.der)
        if found is None:
            found = self._issuers[anchor.der] = [
                Issuer(above.certificate, above.outline)
                for above in self._anchors.named(anchor.outline.issuer)
                if verify(store_with(above.native, purpose=PURPOSE_ANY), anchor.native, ())[0] == V_OK
            ]
        return found


def _dead_end(path: tuple[Candidate, ...]) -> Fault:
    certificates = tuple(each.certificate for each in path)
    code = V_CHAIN_TOO_LONG if len(path) == MAX_LENGTH else V_ISSUER_UNKNOWN
    return Fault(code=code, path=certificates, depth=len(path) - 1)


def _objections(path: Sequence[Candidate]) -> Iterator[tuple[int, int]]:
    """What OpenSSL does not mind, or not outside of connections: verify code, depth."""
    for depth, each in enumerate(path):
        if _is_weak(each.native):
            yield V_CA_KEY_TOO_SMALL if depth else V_KEY_TOO_SMALL, depth
        if not each.anchor and _has_weak_digest(each.certificate):
            yield V_DIGEST_TOO_WEAK, depth
        if depth and not each.may_issue:
            yield V_INVALID_CA, depth
    depth_or_none = excluded_wildcard([each.certificate for each in path])
    if depth_or_none is not None:
        yield V_EXCLUDED, depth_or_none


def _is_weak(certificate: crypto.X509) -> bool:
    kind, bits = key_size(certificate)
    return bits < {"RSA": _MIN_RSA, "EC": _MIN_EC}.get(kind, 1)


def _has_weak_digest(certificate: x509.Certificate) -> bool:
    # OpenSSL has verified it: where the algorithm is not known, it is younger than these.
    return isinstance(signature_hash(certificate), _WEAK_DIGESTS)


def _dates(certificate: x509.Certificate, now: datetime) -> int:
    if now < not_before(certificate):
        return V_NOT_YET_VALID
    return V_EXPIRED if now > not_after(certificate) else V_OK
