"""What is demanded of a peer's certificate, and what is said of one that is refused.

Theory. A `Judge` says whether a chain is believed; here its verdict becomes a refusal in words. In a handshake an
`Examination` does so, from OpenSSL's verify callback: it asks the judge once, keeps the answer, and adds the name check
at the leaf, inside the handshake, so that a client never sends its certificate to a server with the wrong name. Any
exception in it is a refusal. What a session expects of its peer and finds out lives in its examination, the
connection's app data: contexts and judges are shared, examinations are not.

Outside of handshakes `refusal_of` asks the same judge about chains of live peers, or our own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode._errors import PeerUnverifiedError, UnverifiedReason
from trionode._identity.certificate import UnreadableError, allows, is_self_issued, not_after, not_before
from trionode._identity.describe import (
    describe,
    describe_dates,
    describe_issuer,
    describe_names,
    describe_subjects,
    describe_time,
)
from trionode._identity.names import NodeName, SubjectNames

from .binding import V_OK, V_UNSPECIFIED, V_WEAK
from .candidates import Candidate
from .evidence import evidence, why_not_signed
from .failures import HandshakeErrors
from .judge import Fault
from .verify_codes import KEY_USAGE, SELF_SIGNED, meaning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from OpenSSL import crypto

    from .judge import Judge


@dataclass(slots=True, kw_only=True)
class Examination:
    """What one session expects of its peer, and what it found.

    Attributes:
        accepting: whether the peer is a client, else a server.
        judge: of the peer's chain; None: the peer's certificate is not judged at all.
        errors: builds the refusal.
        reference: the canonical host that a server's SANs must cover, or None for any.
        node: the node name that its URI SANs, if any, must admit.
        alpn: on the accepting side, protocols in order of preference; empty ignores what the client offers.
        insist_on_alpn: on the dialing side, whether the server has to select a protocol.
        leaf: the peer's certificate, once it has passed.
        certificate_requested: whether the server has asked for ours.
        refusal: why the peer is refused, once it is.
    """

    accepting: bool
    judge: Judge | None
    errors: HandshakeErrors = field(default_factory=HandshakeErrors)
    reference: str | None = None
    node: NodeName | None = None
    alpn: Sequence[bytes] = ()
    insist_on_alpn: bool = False
    leaf: x509.Certificate | None = field(default=None, init=False)
    certificate_requested: bool = field(default=False, init=False)
    refusal: PeerUnverifiedError | None = field(default=None, init=False)
    _code: int | None = field(default=None, init=False)

    @property
    def verifies(self) -> bool:
        """Whether the peer's certificate is judged."""
        return self.judge is not None

    def asked(self) -> None:
        """The certificate callback, see `binding.Examiner`."""
        self.certificate_requested = True

    def answer(self, error: int, presented: Callable[[], Sequence[crypto.X509]]) -> int:
        """The verify callback, see `binding.Examiner`: the same answer each time."""
        if self.judge is None:
            return V_OK
        try:
            if self._code is None:
                self._code = self._examine(self.judge, presented())
            if self._code == V_OK and error in V_WEAK:  # the system's configuration demands more than we do
                assert self.leaf is not None
                self._code = self._refuse(self.judge, Fault(code=error, path=(self.leaf,), depth=0))
        except Exception as exc:  # noqa: BLE001 -- fail closed: whatever goes wrong here is a refusal
            self.leaf, self._code = None, V_UNSPECIFIED
            why = str(exc) if isinstance(exc, UnreadableError) else type(exc).__name__
            self.refusal = self.errors.unverified(
                UnverifiedReason.BAD_CHAIN,
                f"the {_peer(accepting=self.accepting)}'s certificate cannot be examined ({why}); have it issued anew",
            )
        return self._code

    def _examine(self, judge: Judge, presented: Sequence[crypto.X509]) -> int:
        verdict = judge.judge(presented)
        if verdict.fault is not None:
            return self._refuse(judge, verdict.fault, _unread(presented))
        leaf = verdict.path[0]
        self.refusal = self._name_refusal(leaf)
        if self.refusal is not None:
            return V_UNSPECIFIED
        self.leaf = leaf
        return V_OK

    def _refuse(self, judge: Judge, fault: Fault, note: str = "") -> int:
        self.leaf, self.refusal = None, refusal(fault, judge, self.errors, note=note)
        return fault.code

    def _name_refusal(self, leaf: x509.Certificate) -> PeerUnverifiedError | None:
        if self.reference is None:
            return None
        names = SubjectNames.of(leaf)
        if names.cover_host(self.reference) and (self.node is None or names.admit_node(self.node)):
            return None
        offered = describe_names(leaf)
        skipped = f" (unusable: {'; '.join(names.unusable)})" if names.unusable else ""
        if not names.cover_host(self.reference):
            return self.errors.unverified(
                UnverifiedReason.NAME_MISMATCH,
                (
                    f"server certificate refused: wanted the name {self.reference!r}, its SANs offer "
                    f"{offered}{skipped}: {describe(leaf)}. Dial a name that it covers, set server_name on the route "
                    "or the manager, or issue it with this name"
                ),
                certificate=leaf,
                wanted=self.reference,
                offered=offered,
            )
        return self.errors.unverified(
            UnverifiedReason.NAME_MISMATCH,
            (
                f"server certificate refused: wanted the node {str(self.node)!r}, but its URI SANs restrict it to "
                f"other nodes; it offers {offered}{skipped}: {describe(leaf)}. Issue it for this node name"
            ),
            certificate=leaf,
            wanted=str(self.node),
            offered=offered,
        )


def refusal_of(
    judge: Judge, chain: Sequence[x509.Certificate], *, dated: bool, errors: HandshakeErrors | None = None
) -> PeerUnverifiedError | None:
    """What a judge would say against a chain in a handshake; None if nothing.

    Args:
        judge: of the pools and lists that count.
        chain: the leaf first.
        dated: whether certificates must be within their dates.
        errors: builds the refusal.
    """
    fault = judge.judge(chain, dated=dated).fault
    return None if fault is None else refusal(fault, judge, errors or HandshakeErrors())


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A fault in words.

    Attributes:
        reason: for programs.
        what: what is wrong, as a sentence without a subject; it is about the peer's certificate.
        remedy: what to do.
        wanted: what we needed to see, or None.
    """

    reason: UnverifiedReason
    what: str
    remedy: str
    wanted: str | None


def explain(fault: Fault, judge: Judge) -> Explanation:
    """A fault in words.

    Args:
        fault: why a chain is not believed.
        judge: whose verdict it is.
    """
    found, accepting = fault.found, judge.accepting
    means = meaning(fault.code)
    if means.reason is UnverifiedReason.WRONG_EKU and allows(found, _purpose(accepting=accepting)):
        means = KEY_USAGE
    facts = {
        "evidence": evidence(fault),
        "detail": _shown(fault),
        "end": describe_time(not_after(found)),
        "issuer": describe_issuer(found),
        "now": describe_time(judge.policy.now()),
        "option": "client_cas" if accepting else "root_cas",
        "pool": _pool_shown(judge),
        "purpose": "clientAuth" if accepting else "serverAuth",
        "start": describe_time(not_before(found)),
    }
    place, hint, remedy = "", "", means.remedy
    if fault.depth:
        place = f" (certificate {fault.depth + 1} of its chain: {describe(found)})"
        if found in (judge.pool or ()):
            place, remedy = f" (its CA in our {facts['option']}: {describe(found)})", means.ours
    if isinstance(fault.detail, x509.Certificate):
        hint, remedy = why_not_signed(found, fault.detail)
    elif means.reason is UnverifiedReason.UNKNOWN_CA and len(fault.path) == 1 and is_self_issued(found):
        means = SELF_SIGNED
        remedy = means.remedy
    return Explanation(
        reason=means.reason,
        what=f"{place} {means.what.format(**facts)}{hint}",
        remedy=remedy.format(**facts),
        wanted=None if means.wanted is None else means.wanted.format(**facts),
    )


def refusal(fault: Fault, judge: Judge, errors: HandshakeErrors, *, note: str = "") -> PeerUnverifiedError:
    """A fault as the error of a handshake.

    Args:
        fault: why a chain is not believed.
        judge: whose verdict it is.
        errors: builds the refusal.
        note: what else there is to say of what was presented, where the CA is unknown.
    """
    leaf, told = fault.path[0], explain(fault, judge)
    note = note if told.reason is UnverifiedReason.UNKNOWN_CA else ""
    return errors.unverified(
        told.reason,
        f"{_peer(accepting=judge.accepting)} certificate refused: {describe(leaf)}{told.what}{note}. {told.remedy} "
        f"(OpenSSL verify code {fault.code})",
        certificate=leaf,
        failed_at=fault.found,
        wanted=told.wanted,
        offered=_offered(fault, told.reason),
    )


def _shown(fault: Fault) -> str:
    return "" if fault.detail is None or isinstance(fault.detail, x509.Certificate) else str(fault.detail)


def _unread(presented: Sequence[crypto.X509]) -> str:
    """Which of the presented certificates no path can use because it cannot be read."""
    for number, each in enumerate(map(Candidate, presented), start=1):
        try:
            _ = each.outline
        except ValueError as exc:
            return f" (certificate {number} of those that it presented cannot be read: {exc})"
    return ""


def _offered(fault: Fault, reason: UnverifiedReason) -> str:
    if reason in (UnverifiedReason.REVOKED, UnverifiedReason.REVOCATION_UNKNOWN):
        return _shown(fault)
    if reason in (UnverifiedReason.EXPIRED, UnverifiedReason.NOT_YET_VALID):
        return describe_dates(fault.found)
    return describe(fault.found)


def _peer(*, accepting: bool) -> str:
    return "client" if accepting else "server"


def _purpose(*, accepting: bool) -> x509.ObjectIdentifier:
    return ExtendedKeyUsageOID.CLIENT_AUTH if accepting else ExtendedKeyUsageOID.SERVER_AUTH


def _pool_shown(judge: Judge) -> str:
    policy = judge.policy
    pool = policy.client_cas if judge.accepting else policy.root_cas
    if pool is not None:
        return f"our pool ({describe_subjects(pool)})"
    return "our pool (which is empty)" if judge.accepting else "the system's CAs"
