"""What a certificate chain is worth: in a handshake, and outside of handshakes.

Theory. OpenSSL builds and checks the path, with every certificate of the pool an anchor in its own right
(PARTIAL_CHAIN, as in Go). Our verify callback adds the name check at the leaf, inside the handshake, so that a client
never sends its certificate to a server with the wrong name; and it keeps what was refused and exactly why, which
OpenSSL itself would flatten to "certificate verify failed". Any exception in it is a refusal. What a session expects
of its peer and finds out lives in an `Examination`, the connection's app data: contexts are shared, examinations are
not.

Revocation. Where there are CRLs, OpenSSL checks every certificate of the path against them, before it looks at dates
and signatures. That a list is missing, expired or not the issuer's is a verify error like others, so a refusal, but for
what `CRLPolicy` lets pass and for trust anchors, which have no issuer that could revoke them. Returning True there lets
OpenSSL go on with what it has, an expired list included.

Outside of handshakes, `TrustCheck` judges chains by the same pools and lists: those that live peers presented, when the
trust has changed, and our own.

One thing is out of reach from here: where a server refuses a client's chain above the leaf, the leaf is not yet
visible to pyOpenSSL's callback, and returning True to get there would replace the precise alert (RFC 8446 section
6.2) by `internal_error`. So the refusal then holds the certificate at which the path failed, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final
from weakref import WeakKeyDictionary

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from trionode._credentials.crl import describe_crl, issued_lists, newest_of_issuer
from trionode._errors import CertificateError, CertificateReason, PeerUnverifiedError, UnverifiedReason
from trionode._identity.certificate import allows, fingerprint
from trionode._identity.describe import describe, describe_dates, describe_issuer, describe_names, describe_subjects
from trionode._identity.names import NodeName, SubjectNames

from .failures import HandshakeErrors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.crl import IssuedLists
    from trionode._credentials.policy import TLSPolicy
    from trionode._credentials.revocation_list import Revocation


# What the verify codes of OpenSSL (x509_vfy.h) mean for us; everything else is a chain that does not hold.
_UNKNOWN_CA_CODES: Final = frozenset({2, 18, 19, 20, 21, 27})
_NO_CRL, _CRL_EXPIRED = 3, 12
# No list; one that is damaged, not the issuer's, not yet or no longer valid; one of another scope or kind.
_STATUS_UNKNOWN_CODES: Final = frozenset({_NO_CRL, 4, 8, 11, _CRL_EXPIRED, 15, 16, 33, 35, 36, 44, 54})
_REASONS: Final = {
    9: UnverifiedReason.NOT_YET_VALID,
    10: UnverifiedReason.EXPIRED,
    23: UnverifiedReason.REVOKED,
    26: UnverifiedReason.WRONG_EKU,
    **dict.fromkeys(_UNKNOWN_CA_CODES, UnverifiedReason.UNKNOWN_CA),
    **dict.fromkeys(_STATUS_UNKNOWN_CODES, UnverifiedReason.REVOCATION_UNKNOWN),
}

# X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which pyOpenSSL does not name.
_NO_CHECK_TIME: Final = 0x200000


@dataclass(slots=True, kw_only=True)
class Examination:
    """What one session expects of its peer, and what it found.

    Attributes:
        policy: anchors, lists and clock to judge by.
        accepting: judge as an acceptor judges its clients, else as a dialer its servers.
        verifies: whether the peer's certificate is judged at all.
        errors: builds the refusal.
        reference: the canonical host that a server's SANs must cover, or None for any.
        node: the node name that its URI SANs, if any, must admit.
        alpn: on the accepting side, protocols in order of preference; empty ignores what the client offers.
        insist_on_alpn: on the dialing side, whether the server has to select a protocol.
        leaf: the peer's certificate, once it has passed.
        certificate_requested: whether the server has asked for ours.
        refusal: why the peer is refused, once it is.
    """

    policy: TLSPolicy
    accepting: bool
    verifies: bool
    errors: HandshakeErrors = field(default_factory=HandshakeErrors)
    reference: str | None = None
    node: NodeName | None = None
    alpn: Sequence[bytes] = ()
    insist_on_alpn: bool = False
    leaf: x509.Certificate | None = field(default=None, init=False)
    certificate_requested: bool = field(default=False, init=False)
    refusal: PeerUnverifiedError | None = field(default=None, init=False)

    def examine(self, connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
        """The verify callback: True lets OpenSSL go on. `leaf` is the peer's certificate, once that has passed."""
        if not self.verifies:
            return True
        try:
            found = certificate.to_cryptography()
            if not ok:
                self.refusal = self._verdict(self._leaf(connection, found), found, code, depth)
            elif depth == 0:
                self.refusal = self._name_refusal(found)
                self.leaf = found if self.refusal is None else None
        except Exception as exc:  # noqa: BLE001 -- fail closed: whatever goes wrong here is a refusal
            self.refusal = self.errors.unverified(
                UnverifiedReason.BAD_CHAIN,
                f"the {self._peer}'s certificate cannot be examined ({type(exc).__name__}); have it issued anew",
            )
        return self.refusal is None

    @property
    def _peer(self) -> str:
        return "client" if self.accepting else "server"

    @staticmethod
    def _leaf(connection: SSL.Connection, found: x509.Certificate) -> x509.Certificate:
        chain = connection.get_peer_cert_chain(as_cryptography=True)
        return chain[0] if chain else found

    def _verdict(
        self, leaf: x509.Certificate, found: x509.Certificate, code: int, depth: int
    ) -> PeerUnverifiedError | None:
        """The refusal for what OpenSSL objects to; None where the policy or an anchor may do without a list."""
        policy = self.policy.crl_policy
        if code in _STATUS_UNKNOWN_CODES and found in (self.pool or ()):
            assert self.policy.crls is not None
            listed = self.policy.crls.listed(found)
            return None if listed is None else self.revoked(leaf, found, depth, listed)
        if (code == _NO_CRL and policy.allow_missing) or (code == _CRL_EXPIRED and policy.allow_expired):
            return None
        return self.path_refusal(leaf, found, code, depth)

    def path_refusal(
        self, leaf: x509.Certificate, found: x509.Certificate, code: int, depth: int
    ) -> PeerUnverifiedError:
        """The refusal for a path in which OpenSSL found fault with one certificate."""
        now = f"{self.policy.now():%Y-%m-%d %H:%M:%S} UTC"
        reason = _REASONS.get(code, UnverifiedReason.BAD_CHAIN)
        option = "client_cas" if self.accepting else "root_cas"
        wanted: str | None = None
        match reason:
            case UnverifiedReason.UNKNOWN_CA:
                wanted = self.pool_shown
                what = (
                    f"is not signed by a CA of {wanted}. Add its CA to {option} (with rotate_trust() while in use), "
                    "issue it from a CA that is there, or have the peer send its intermediates"
                )
            case UnverifiedReason.EXPIRED:
                wanted = f"a certificate valid at {now}"
                what = f"has expired: our clock says {now}. The peer must rotate it"
            case UnverifiedReason.NOT_YET_VALID:
                wanted = f"a certificate valid at {now}"
                what = (
                    f"is not yet valid: notBefore is {found.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC, our clock "
                    f"says {now}. Check the clocks of this machine, the peer and the CA"
                )
            case UnverifiedReason.WRONG_EKU:
                wanted = "clientAuth" if self.accepting else "serverAuth"
                purpose = ExtendedKeyUsageOID.CLIENT_AUTH if self.accepting else ExtendedKeyUsageOID.SERVER_AUTH
                if allows(found, purpose):  # one code for both extensions, and this time it was the other
                    what = "does not allow signatures (key usage). Issue it with digitalSignature"
                else:
                    what = f"does not allow {wanted}. Issue it with both serverAuth and clientAuth"
            case UnverifiedReason.REVOKED:
                assert self.policy.crls is not None
                return self.revoked(leaf, found, depth, self.policy.crls.listed(found))
            case UnverifiedReason.REVOCATION_UNKNOWN:
                return self.status_unknown(leaf, found, depth, self._why_unknown(found, code))
            case _:
                what = f"does not verify: {verify_message(code)}. Have the peer's chain issued anew"
        offered = describe_dates(found) if code in (9, 10) else describe(found)
        return self.errors.unverified(
            reason,
            f"{self._subject(leaf, found, depth)} {what} (OpenSSL verify code {code})",
            certificate=leaf,
            failed_at=found,
            wanted=wanted,
            offered=offered,
        )

    def revoked(
        self, leaf: x509.Certificate, found: x509.Certificate, depth: int, revocation: Revocation | None
    ) -> PeerUnverifiedError:
        """The refusal for a path with a certificate that was revoked."""
        details = f": {revocation}" if revocation else ""
        return self.errors.unverified(
            UnverifiedReason.REVOKED,
            f"{self._subject(leaf, found, depth)} has been revoked{details}. The peer needs a new one",
            certificate=leaf,
            failed_at=found,
            wanted="a certificate that is not on a CRL",
            offered=str(revocation) if revocation else describe(found),
        )

    def status_unknown(
        self, leaf: x509.Certificate, found: x509.Certificate, depth: int, why: str
    ) -> PeerUnverifiedError:
        """The refusal for a path with a certificate whose revocation status is unknown."""
        return self.errors.unverified(
            UnverifiedReason.REVOCATION_UNKNOWN,
            (
                f"{self._subject(leaf, found, depth)} cannot be checked for revocation: {why}. Give the current list "
                "of that CA in crls (with rotate_trust() while in use), or loosen crl_policy"
            ),
            certificate=leaf,
            failed_at=found,
            wanted=f"a current CRL of {describe_issuer(found)}",
            offered=why,
        )

    @property
    def pool(self) -> CAPool | None:
        """The anchors that this side verifies with."""
        return self.policy.client_cas if self.accepting else self.policy.roots

    @property
    def pool_shown(self) -> str:
        """The anchors, for a sentence."""
        pool = self.policy.client_cas if self.accepting else self.policy.root_cas
        return "the system's CAs" if pool is None else f"our pool ({describe_subjects(pool)})"

    def _subject(self, leaf: x509.Certificate, found: x509.Certificate, depth: int) -> str:
        subject = f"{self._peer} certificate refused: {describe(leaf)}"
        if depth == 0:
            return subject
        place = f"certificate {depth + 1} of its chain"
        # On the accepting side the leaf is not visible yet, see the module's theory.
        if leaf is found:
            return f"{self._peer} certificate refused: {place}, {describe(found)},"
        return f"{subject} ({place}: {describe(found)})"

    def _why_unknown(self, found: x509.Certificate, code: int) -> str:
        issuer = describe_issuer(found)
        crl = None if self.policy.crls is None else newest_of_issuer(self.policy.crls, found)
        if crl is None or code == _NO_CRL:  # a list that is there may be for other certificates of the same issuer
            return f"there is no CRL of {issuer}{'' if crl is None else ' for it'}"
        match code:
            case 8:
                return f"the CRL of {issuer} was not signed by it"
            case 11:
                return f"{describe_crl(crl)} is not yet valid"
            case 12:
                return f"{describe_crl(crl)} has expired, our clock says {self.policy.now():%Y-%m-%d %H:%M:%S} UTC"
            case _:
                return f"{describe_crl(crl)} cannot be used, {verify_message(code)} (OpenSSL verify code {code})"

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


def openssl_reason(exc: SSL.Error | crypto.Error) -> str:
    """The reason string of an OpenSSL error; its queue is `[(library, function, reason), …]`, oldest first."""
    queue = exc.args[0] if exc.args else []
    return str(queue[0][-1]) if isinstance(queue, list) and queue else "unknown"


def verify_message(code: int) -> str:
    """OpenSSL's text for a verify code."""
    name = next((n for n, v in vars(SSL.X509VerificationCodes).items() if v == code and n.startswith("ERR_")), "")
    return name.removeprefix("ERR_").replace("_", " ").lower() or f"code {code}"


# Parsed once per pool: 144 system CAs cost 6.8 ms a context when parsed each time, 0.24 ms with the objects kept.
_parsed_pools: WeakKeyDictionary[CAPool, list[crypto.X509]] = WeakKeyDictionary()


def _anchors(pool: CAPool) -> list[crypto.X509]:
    parsed = _parsed_pools.get(pool)
    if parsed is None:
        parsed = _parsed_pools[pool] = [crypto.X509.from_cryptography(certificate) for certificate in pool]
    return parsed


def fill_store(store: crypto.X509Store, anchors: CAPool) -> None:
    """Make every certificate of a pool an anchor in its own right."""
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for anchor in _anchors(anchors):
        store.add_cert(anchor)


def add_crls(store: crypto.X509Store, policy: TLSPolicy) -> None:
    """Have paths checked against the policy's lists, if it has any.

    Raises:
        CertificateError: OpenSSL does not accept one.
    """
    if policy.crls is None:
        return
    flags = crypto.X509StoreFlags.CRL_CHECK
    store.set_flags(flags if policy.crl_policy.leaf_only else flags | crypto.X509StoreFlags.CRL_CHECK_ALL)
    for crl in policy.crls:
        try:
            store.add_crl(crl)
        except (SSL.Error, crypto.Error) as exc:
            msg = f"OpenSSL does not accept {describe_crl(crl)}: {openssl_reason(exc)}. Have it issued anew"
            raise CertificateError(msg, reason=CertificateReason.BAD_CRL) from None


@final
class TrustCheck:
    """What pools and lists make of chains outside of handshakes: those of live peers, or our own.

    OpenSSL builds the path and checks its signatures; dates of certificates only if asked to. Their purposes and names
    are for handshakes.
    """

    def __init__(self, policy: TLSPolicy, *, accepting: bool, dated: bool) -> None:
        """Prepare; the pool is parsed once, for any number of chains.

        Args:
            policy: pools and lists.
            accepting: judge as an acceptor judges its clients, else as a dialer its servers.
            dated: whether certificates must be within their dates. A peer whose certificate has expired meanwhile is
                not one whose CA is no longer trusted.

        Raises:
            CertificateError: the system's CAs are needed and there are none.
        """
        self._policy = policy
        self._examination = Examination(policy=policy, accepting=accepting, verifies=True)
        # Kept for all the chains that are judged: large lists take milliseconds to look through.
        self._lists: dict[str, IssuedLists] = {}
        self._revoked_anchors: dict[str, Revocation | None] = {}
        self._store = crypto.X509Store()
        pool = self._examination.pool
        if pool is not None:
            fill_store(self._store, pool)
        if dated:
            self._store.set_time(policy.now())
        else:
            self._store.set_flags(_NO_CHECK_TIME)

    def judge(self, chain: Sequence[x509.Certificate]) -> PeerUnverifiedError | None:
        """What would be said against a chain, the leaf first; None if nothing."""
        leaf, *intermediates = (crypto.X509.from_cryptography(certificate) for certificate in chain)
        context = crypto.X509StoreContext(self._store, leaf, intermediates)
        try:
            path = [certificate.to_cryptography() for certificate in context.get_verified_chain()]
        except crypto.X509StoreContextError as exc:
            code, depth, _ = exc.errors
            return self._examination.path_refusal(chain[0], exc.certificate.to_cryptography(), code, depth)
        return self._revocation(path)

    def path(self, chain: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
        """The way from a chain's leaf to an anchor; empty where there is none that holds."""
        leaf, *intermediates = (crypto.X509.from_cryptography(certificate) for certificate in chain)
        try:
            verified = crypto.X509StoreContext(self._store, leaf, intermediates).get_verified_chain()
        except crypto.X509StoreContextError:
            return ()
        return tuple(certificate.to_cryptography() for certificate in verified)

    def _revocation(self, path: list[x509.Certificate]) -> PeerUnverifiedError | None:
        policy, examination, leaf = self._policy, self._examination, path[0]
        if policy.crls is None:
            return None
        for depth, found in enumerate(path[: 1 if policy.crl_policy.leaf_only else None]):
            anchor = found in (examination.pool or ())
            if anchor:  # no issuer above it has to vouch for it, but one that is on a list is revoked
                status: Revocation | str | None = self._listed(found)
            else:
                lists = self._lists_of(path[depth + 1])
                status = lists.status(found, now=policy.now(), policy=policy.crl_policy)
            if isinstance(status, str):
                return examination.status_unknown(leaf, found, depth, status)
            if status is not None:
                return examination.revoked(leaf, found, depth, status)
            if anchor:
                break  # what a path has above an anchor counts for nothing
        return None

    def _listed(self, anchor: x509.Certificate) -> Revocation | None:
        assert self._policy.crls is not None
        key = fingerprint(anchor)
        if key not in self._revoked_anchors:
            self._revoked_anchors[key] = self._policy.crls.listed(anchor)
        return self._revoked_anchors[key]

    def _lists_of(self, issuer: x509.Certificate) -> IssuedLists:
        assert self._policy.crls is not None
        key = fingerprint(issuer)
        if key not in self._lists:
            self._lists[key] = issued_lists(self._policy.crls, issuer)
        return self._lists[key]
