"""Whether a certificate chain is believed: the one place where that is decided.

Theory. A `Judge` stands for one policy and one direction: an acceptor's of its clients, or a dialer's of its servers.
Everything asks it: handshakes (from OpenSSL's verify callback), managers about live peers before and after they publish
other trust, `check` about our own key pair, `explain` about a server's. So they cannot disagree.

A chain is believed if one *path* holds, from its leaf to an anchor of the pool. Candidate paths are tried until one
does. Of each path, in this order:

1. What never changes: signatures, purposes, constraints, strength; see `anchors`.
2. Revocation, by lists that the path's own keys signed.
3. Dates, by the policy's clock. They come last, so that a verdict that leaves them out (`dated=False`, for live peers:
   a certificate that has expired meanwhile is one whose CA is trusted still) differs in nothing else.

Where no path holds, the fault told is that of the path which came furthest; where no path reaches an anchor, that the
CA is unknown. Names are not the judge's: they belong to the one who is dialled, and each session checks them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, final

from trionode._credentials.revocation import Doubt, Issuer, Unknown, revocation_of_anchor, status
from trionode._identity.certificate import not_after, not_before

from .anchors import anchors_of
from .binding import V_ISSUER_UNKNOWN, V_OK
from .candidates import Candidate, candidate
from .paths import MAX_LENGTH, Paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509
    from OpenSSL import crypto

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.policy import TLSPolicy
    from trionode._credentials.revocation_list import Revocation

#: What stands for what is found without OpenSSL (x509_vfy.h): the alert is made of it.
V_NOT_YET_VALID: Final = 9
V_EXPIRED: Final = 10
V_CHAIN_TOO_LONG: Final = 22
V_REVOKED: Final = 23
V_DOUBT: Final = {Doubt.MISSING: 3, Doubt.EXPIRED: 12, Doubt.NOT_YET_VALID: 11, Doubt.UNUSABLE: 36}

#: Chains whose path is kept, so that a peer which comes back is not searched for again.
_KEPT: Final = 1024

#: Codes of OpenSSL's for a path whose certificates did not sign each other: the one that did sign is not here.
_NOT_SIGNED: Final = frozenset({2, 4, 6, 7, 18, 19, 20, 21, 29, 30, 31})


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
        # An anchor may have been issued by one of the other direction, whose key is trusted as well.
        other = policy.root_cas if accepting else policy.client_cas
        self._trusted = [self._anchors] if other is None else [self._anchors, anchors_of(other)]
        # By what was presented, the path that was believed: tried first, and judged anew each time.
        self._believed: dict[tuple[bytes, ...], tuple[Candidate, ...]] = {}

    @property
    def pool(self) -> CAPool | None:
        """The anchors; with None every chain is refused."""
        return self.policy.client_cas if self.accepting else self.policy.roots

    def judge(self, chain: Sequence[x509.Certificate | crypto.X509], *, dated: bool = True) -> Verdict:
        """Whether a chain is believed. Takes 0.2 ms the first time, most of it for signatures, and at worst 20 ms.

        Args:
            chain: as it was presented, the leaf first. The order of what follows does not matter, nor what is too much.
            dated: whether certificates must be within their dates; lists must be in any case.

        Raises:
            ValueError: the leaf cannot be read.
        """
        now = self.policy.now()
        presented = [candidate(each) for each in chain]
        key = tuple(each.digest for each in presented)
        known = self._believed.get(key)
        if known is not None and self._fault(known, now, dated=dated) is None:
            return _believed(known)
        paths = Paths(presented, self._anchors)
        worst: tuple[_Stage, Fault] | None = None
        for path in paths:
            found = self._fault(path, now, dated=dated)
            if found is None:
                if len(self._believed) >= _KEPT:
                    self._believed.clear()
                self._believed[key] = path
                return _believed(path)
            if worst is None or found[0] > worst[0]:
                worst = found
        if worst is None or (worst[0] is _Stage.NOT_SIGNED and len(paths.dead_end) > worst[1].depth + 1):
            return Verdict(fault=_dead_end(paths.dead_end))
        return Verdict(fault=worst[1])

    def _fault(self, path: tuple[Candidate, ...], now: datetime, *, dated: bool) -> tuple[_Stage, Fault] | None:
        """What is wrong with a path, and at which stage; None if it holds."""
        certificates = tuple(each.certificate for each in path)
        code, depth = self._anchors.verdict(path, accepting=self.accepting)
        if code in _NOT_SIGNED:
            above = certificates[depth + 1] if depth + 1 < len(path) else None
            return _Stage.NOT_SIGNED, Fault(code=V_ISSUER_UNKNOWN, path=certificates, depth=depth, detail=above)
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
                issuers = [_issuer(above) for anchors in self._trusted for above in anchors.issuers_of(each)]
                found = revocation_of_anchor(crls, each.certificate, issuers, now=now)
            else:
                found = status(crls, each.certificate, _issuer(path[depth + 1]), now=now, policy=policy)
            if found is not None:
                code = V_DOUBT[found.doubt] if isinstance(found, Unknown) else V_REVOKED
                return Fault(code=code, path=certificates, depth=depth, detail=found)
        return None


def _believed(path: tuple[Candidate, ...]) -> Verdict:
    return Verdict(tuple(each.certificate for each in path))


def _issuer(candidate: Candidate) -> Issuer:
    return Issuer(candidate.certificate, candidate.outline)


def _dead_end(path: tuple[Candidate, ...]) -> Fault:
    certificates = tuple(each.certificate for each in path)
    code = V_CHAIN_TOO_LONG if len(path) == MAX_LENGTH else V_ISSUER_UNKNOWN
    return Fault(code=code, path=certificates, depth=len(path) - 1)


def _dates(certificate: x509.Certificate, now: datetime) -> int:
    if now < not_before(certificate):
        return V_NOT_YET_VALID
    return V_EXPIRED if now > not_after(certificate) else V_OK
