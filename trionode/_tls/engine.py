"""The TLS engine: OpenSSL through pyOpenSSL, sans-IO. The only module that imports it.

Theory. A *side* (`ServerSide`, `ClientSide`) is one generation's OpenSSL context: built once, never changed after it
was published. A `TLSSession` is one connection over memory buffers: ciphertext is fed in and taken out, so that the
caller alone decides when bytes move, and byte order is encryption order. It does no I/O and knows no Trio.

Verification. OpenSSL builds and checks the path, with every certificate of the pool an anchor in its own right
(PARTIAL_CHAIN, as in Go). Our verify callback adds the name check at the leaf, inside the handshake, so that a client
never sends its certificate to a server with the wrong name; and it keeps what was refused and exactly why, which
OpenSSL itself would flatten to "certificate verify failed". Any exception in it is a refusal. What a session expects
and finds out lives in an `_Examination`, the connection's app data: contexts are shared, examinations are not.

Revocation. Where there are CRLs, OpenSSL checks every certificate of the path against them, before it looks at dates
and signatures. That a list is missing, expired or not the issuer's is a verify error like others, so a refusal, but for
what `CRLPolicy` lets pass and for trust anchors, which nobody is above. Returning True there lets OpenSSL go on with
what it has, an expired list included.

Outside of handshakes, `TrustCheck` judges chains by the same pools and lists: those that live peers presented, when the
trust has changed, and our own.

One thing is out of reach from here: where a server refuses a client's chain above the leaf, the leaf is not yet
visible to pyOpenSSL's callback, and returning True to get there would replace the precise alert (RFC 8446 section
6.2) by `internal_error`. So the refusal then holds the certificate at which the path failed, and says so.

No resumption: OP_NO_TICKET *and* no session cache. Either alone leaves a way back in without verification
(CVE-2025-23419, CVE-2025-68121 are of this kind). OpenSSL still emits dead tickets.

Errors of OpenSSL repeat without their text, so a session keeps its first failure and raises that for ever after.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, NoReturn, final
from weakref import WeakKeyDictionary

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from trionode._credentials.crl import describe_crl
from trionode._credentials.policy import TLSPolicy
from trionode._errors import (
    CertificateError,
    CertificateReason,
    RejectionCode,
    UnverifiedReason,
)
from trionode._identity.certificate import allows, fingerprint
from trionode._identity.describe import (
    describe,
    describe_dates,
    describe_issuer,
    describe_names,
    describe_subjects,
)
from trionode._identity.names import (
    NodeName,
    SubjectNames,
    host_address,
)
from trionode._util.text import Buffer, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography import x509

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.crl import IssuedLists, Revocation
    from trionode._credentials.key_pair import KeyPair


#: A TLS record carries at most this much plaintext (RFC 8446 section 5.1).
RECORD_SIZE: Final = 16 * 1024

_CHUNK: Final = 64 * 1024
#: What a record adds to its plaintext: header, content type, tag (RFC 8446 section 5.2).
_RECORD_OVERHEAD: Final = 5 + 1 + 16
#: Room for what nobody asked OpenSSL to send: handshake flights, dead tickets, alerts.
_UNASKED: Final = 4096
_MAX_CHAIN_DEPTH: Final = 10

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

#: Alerts whose reason strings do not say that they are some (sslerr.h, from RFC 6066).
_UNMARKED_ALERTS: Final = frozenset({"tlsv1 unrecognized name", "tlsv1 unsupported extension"})

# X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which pyOpenSSL does not name.
_NO_CHECK_TIME: Final = 0x200000


# What can happen to a session ---------------------------------------------------------------------------------------


class TLSFailure(Exception):  # noqa: N818 -- an ending, which callers turn into the public errors
    """The session is over. Which subclass says who ended it."""


@final
class Truncated(TLSFailure):
    """The transport ended without the peer's close_notify: a cut, or an attacker's truncation."""


@final
class Misbehaved(TLSFailure):
    """The peer sent something that is not the TLS we speak.

    Attributes:
        detail: OpenSSL's word for it.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@final
class AlertReceived(TLSFailure):
    """The peer sent a fatal alert (RFC 8446 section 6.2).

    Attributes:
        code: the alert as our vocabulary has it.
        detail: OpenSSL's word for it.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        word = detail.rpartition("alert ")[2].removeprefix("tlsv1 ")
        self.code = RejectionCode.of(word.replace(" ", "_"))


@final
class PeerRefused(TLSFailure):
    """We refused the peer; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a peer was refused: the facts for the exception, and the sentence with its remedy.

    `found` is the certificate at which a path failed.
    """

    reason: UnverifiedReason
    text: str
    certificate: x509.Certificate | None = None
    found: x509.Certificate | None = None
    wanted: str | None = None
    offered: str | None = None


@final
class _NoOverlap(Exception):  # noqa: N818 -- carries a verdict through OpenSSL's ALPN callback
    """Raised in the ALPN callback: the way to have the `no_application_protocol` alert sent."""


# Verification -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Examination:
    """What one session expects of its peer, and what it found."""

    policy: TLSPolicy
    accepting: bool
    verifies: bool
    reference: str | None = None
    node: NodeName | None = None
    alpn: Sequence[bytes] = ()
    leaf: x509.Certificate | None = field(default=None, init=False)
    certificate_requested: bool = field(default=False, init=False)
    refusal: Refusal | None = field(default=None, init=False)

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
            self.refusal = Refusal(
                reason=UnverifiedReason.BAD_CHAIN,
                text=f"the {self._peer}'s certificate cannot be examined ({type(exc).__name__}); have it issued anew",
            )
        return self.refusal is None

    @property
    def _peer(self) -> str:
        return "client" if self.accepting else "server"

    @staticmethod
    def _leaf(connection: SSL.Connection, found: x509.Certificate) -> x509.Certificate:
        chain = connection.get_peer_cert_chain(as_cryptography=True)
        return chain[0] if chain else found

    def _verdict(self, leaf: x509.Certificate, found: x509.Certificate, code: int, depth: int) -> Refusal | None:
        """The refusal for what OpenSSL objects to; None where the policy or an anchor may do without a list."""
        policy = self.policy.crl_policy
        if code in _STATUS_UNKNOWN_CODES and found in (self.pool or ()):
            assert self.policy.crls is not None
            listed = self.policy.crls.listed(found)
            return None if listed is None else self.revoked(leaf, found, depth, listed)
        if (code == _NO_CRL and policy.allow_missing) or (code == _CRL_EXPIRED and policy.allow_expired):
            return None
        return self.path_refusal(leaf, found, code, depth)

    def path_refusal(self, leaf: x509.Certificate, found: x509.Certificate, code: int, depth: int) -> Refusal:
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
                what = f"does not verify: {crypto_message(code)}. Have the peer's chain issued anew"
        offered = describe_dates(found) if code in (9, 10) else describe(found)
        return Refusal(
            reason=reason,
            text=f"{self._subject(leaf, found, depth)} {what} (OpenSSL verify code {code})",
            certificate=leaf,
            found=found,
            wanted=wanted,
            offered=offered,
        )

    def revoked(
        self, leaf: x509.Certificate, found: x509.Certificate, depth: int, revocation: Revocation | None
    ) -> Refusal:
        """The refusal for a path with a certificate that was revoked."""
        details = f": {revocation}" if revocation else ""
        return Refusal(
            reason=UnverifiedReason.REVOKED,
            text=f"{self._subject(leaf, found, depth)} has been revoked{details}. The peer needs a new one",
            certificate=leaf,
            found=found,
            wanted="a certificate that is not on a CRL",
            offered=str(revocation) if revocation else describe(found),
        )

    def status_unknown(self, leaf: x509.Certificate, found: x509.Certificate, depth: int, why: str) -> Refusal:
        """The refusal for a path with a certificate of which nobody knows whether it was revoked."""
        return Refusal(
            reason=UnverifiedReason.REVOCATION_UNKNOWN,
            text=(
                f"{self._subject(leaf, found, depth)} cannot be checked for revocation: {why}. Give the current list "
                "of that CA in crls (with rotate_trust() while in use), or loosen crl_policy"
            ),
            certificate=leaf,
            found=found,
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
        crl = None if self.policy.crls is None else self.policy.crls.of_issuer_of(found)
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
                return f"{describe_crl(crl)} cannot be used, {crypto_message(code)} (OpenSSL verify code {code})"

    def _name_refusal(self, leaf: x509.Certificate) -> Refusal | None:
        if self.reference is None:
            return None
        names = SubjectNames.of(leaf)
        if names.cover_host(self.reference) and (self.node is None or names.admit_node(self.node)):
            return None
        offered = describe_names(leaf)
        skipped = f" (unusable: {'; '.join(names.unusable)})" if names.unusable else ""
        if not names.cover_host(self.reference):
            return Refusal(
                reason=UnverifiedReason.NAME_MISMATCH,
                text=(
                    f"server certificate refused: wanted the name {self.reference!r}, its SANs offer "
                    f"{offered}{skipped}: {describe(leaf)}. Dial a name that it covers, set server_name on the route "
                    "or the manager, or issue it with this name"
                ),
                certificate=leaf,
                wanted=self.reference,
                offered=offered,
            )
        return Refusal(
            reason=UnverifiedReason.NAME_MISMATCH,
            text=(
                f"server certificate refused: wanted the node {str(self.node)!r}, but its URI SANs restrict it to "
                f"other nodes; it offers {offered}{skipped}: {describe(leaf)}. Issue it for this node name"
            ),
            certificate=leaf,
            wanted=str(self.node),
            offered=offered,
        )


def crypto_message(code: int) -> str:
    """OpenSSL's text for a verify code."""
    name = next((n for n, v in vars(SSL.X509VerificationCodes).items() if v == code and n.startswith("ERR_")), "")
    return name.removeprefix("ERR_").replace("_", " ").lower() or f"code {code}"


def _examine(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    examination: _Examination = connection.get_app_data()
    return examination.examine(connection, certificate, code, depth, ok)


def _note_certificate_request(connection: SSL.Connection, _where: int, _result: int) -> None:
    # The one way to see whether a server asked for our certificate; a client presents it only then.
    examination: _Examination = connection.get_app_data()
    if not examination.certificate_requested:
        state = connection.get_state_string()
        examination.certificate_requested = b"read server certificate request" in state


def _select_alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes | object:
    examination: _Examination = connection.get_app_data()
    if not examination.alpn:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    for protocol in examination.alpn:
        if protocol in offered:
            return protocol
    raise _NoOverlap


# The two sides of a generation --------------------------------------------------------------------------------------

# Parsed once per pool: 144 system CAs cost 6.8 ms a context when parsed each time, 0.24 ms with the objects kept.
_parsed_pools: WeakKeyDictionary[CAPool, list[crypto.X509]] = WeakKeyDictionary()


def _anchors(pool: CAPool) -> list[crypto.X509]:
    parsed = _parsed_pools.get(pool)
    if parsed is None:
        parsed = _parsed_pools[pool] = [crypto.X509.from_cryptography(certificate) for certificate in pool]
    return parsed


def _fill(store: crypto.X509Store, anchors: CAPool) -> None:
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for anchor in _anchors(anchors):
        store.add_cert(anchor)


def _add_crls(store: crypto.X509Store, policy: TLSPolicy) -> None:
    if policy.crls is None:
        return
    flags = crypto.X509StoreFlags.CRL_CHECK
    store.set_flags(flags if policy.crl_policy.leaf_only else flags | crypto.X509StoreFlags.CRL_CHECK_ALL)
    for crl in policy.crls:
        try:
            store.add_crl(crl)
        except (SSL.Error, crypto.Error) as exc:
            msg = f"OpenSSL does not accept {describe_crl(crl)}: {_reason(exc)}. Have it issued anew"
            raise CertificateError(msg, reason=CertificateReason.BAD_CRL) from None


def _context(key_pair: KeyPair, policy: TLSPolicy, anchors: CAPool | None, verify_mode: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Idle connections give their record buffers back (about 34 KiB each).
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    _present(context, key_pair)
    if anchors is not None:
        store = context.get_cert_store()
        assert store is not None
        _fill(store, anchors)
        _add_crls(store, policy)
    context.set_verify_depth(_MAX_CHAIN_DEPTH)
    context.set_verify(verify_mode, _examine)
    return context


def _present(context: SSL.Context, key_pair: KeyPair) -> None:
    try:
        context.use_certificate(key_pair.certificate)
        for certificate in key_pair.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key_pair.private_key)
        context.check_privatekey()
    except SSL.Error as exc:
        msg = f"OpenSSL does not accept our key pair: {_reason(exc)}: {describe(key_pair.certificate)}"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None


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
            accepting: judge as an acceptor judges its clients, else as a dialler its servers.
            dated: whether certificates must be within their dates. A peer whose certificate has expired meanwhile is
                not one whose CA is no longer trusted.

        Raises:
            CertificateError: the system's CAs are needed and there are none.
        """
        self._policy = policy
        self._examination = _Examination(policy=policy, accepting=accepting, verifies=True)
        # Kept for all the chains that are judged: large lists take milliseconds to look through.
        self._lists: dict[str, IssuedLists] = {}
        self._revoked_anchors: dict[str, Revocation | None] = {}
        self._store = crypto.X509Store()
        pool = self._examination.pool
        if pool is not None:
            _fill(self._store, pool)
        if dated:
            self._store.set_time(policy.now())
        else:
            self._store.set_flags(_NO_CHECK_TIME)

    def judge(self, chain: Sequence[x509.Certificate]) -> Refusal | None:
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

    def _revocation(self, path: list[x509.Certificate]) -> Refusal | None:
        policy, examination, leaf = self._policy, self._examination, path[0]
        if policy.crls is None:
            return None
        for depth, found in enumerate(path[: 1 if policy.crl_policy.leaf_only else None]):
            anchor = found in (examination.pool or ())
            if anchor:  # nobody is above it; but whoever is listed is revoked
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
            self._lists[key] = self._policy.crls.signed_by(issuer)
        return self._lists[key]


@final
class ServerSide:
    """What acceptors present and ask for, for one generation."""

    __slots__ = ("_context", "_key_pair", "_policy")

    def __init__(self, key_pair: KeyPair, policy: TLSPolicy) -> None:
        """Build the OpenSSL context.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        self._key_pair = key_pair
        self._policy = policy
        self._context = self._build()

    def _build(self) -> SSL.Context:
        auth, client_cas = self._policy.client_auth, self._policy.client_cas
        mode = SSL.VERIFY_PEER if auth.requests else SSL.VERIFY_NONE
        if auth.requires:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context = _context(self._key_pair, self._policy, client_cas if auth.verifies else None, mode)
        context.set_alpn_select_callback(_select_alpn)  # type: ignore[arg-type]  # typed without its sentinel
        if auth.requests and client_cas is not None:
            for anchor in client_cas:
                context.add_client_ca(anchor)
        return context

    def session(self, *, alpn: Sequence[bytes] = ()) -> TLSSession:
        """The server end of a new connection.

        Args:
            alpn: protocols in order of preference (RFC 7301); empty ignores what the client offers.
        """
        examination = _Examination(
            policy=self._policy,
            accepting=True,
            verifies=self._policy.client_auth.verifies,
            alpn=alpn,
        )
        connection = SSL.Connection(self._context)
        connection.set_app_data(examination)
        connection.set_accept_state()
        return TLSSession(connection, examination, self._build)


@final
class ClientSide:
    """What connectors present and ask for, for one generation."""

    def __init__(self, key_pair: KeyPair, policy: TLSPolicy) -> None:
        """Keep the parts; the context is built here, or at the first dial where it needs the system's CAs.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        self._key_pair = key_pair
        self._policy = policy
        if policy.root_cas is not None:
            _ = self._verifying

    @property
    def server_name(self) -> str | None:
        """The reference name that the manager sets for every dial, or None."""
        return self._policy.server_name

    @cached_property
    def _verifying(self) -> SSL.Context:
        return self._build()

    def _build(self) -> SSL.Context:
        return self._asking(self._policy.roots, SSL.VERIFY_PEER)

    @cached_property
    def _trusting(self) -> SSL.Context:
        return self._asking(None, SSL.VERIFY_NONE)

    def _asking(self, anchors: CAPool | None, verify_mode: int) -> SSL.Context:
        context = _context(self._key_pair, self._policy, anchors, verify_mode)
        context.set_info_callback(_note_certificate_request)
        return context

    def session(
        self,
        *,
        reference: str,
        node: NodeName | None = None,
        alpn: Sequence[bytes] = (),
        insecure_skip_verify: bool = False,
    ) -> TLSSession:
        """The client end of a new connection.

        Args:
            reference: the canonical host that the server's SANs must match; also the SNI, unless it is an address.
            node: the node name that URI SANs must admit, if this is a node's dial.
            alpn: protocols to offer (RFC 7301).
            insecure_skip_verify: accept any certificate under any name.

        Raises:
            CertificateError: the system's CAs are needed and there are none.
        """
        examination = _Examination(
            policy=self._policy,
            accepting=False,
            verifies=not insecure_skip_verify,
            reference=reference,
            node=node,
        )
        context = self._trusting if insecure_skip_verify else self._verifying
        return _client_session(context, examination, reference, alpn, self._build)


def inspecting_session(*, server_name: str, alpn: Sequence[bytes] = ()) -> TLSSession:
    """The client end of a connection that only looks: it verifies nothing, presents nothing, and knows TLS 1.2, too.

    Args:
        server_name: what to ask for (SNI), a canonical host; an address is not asked for.
        alpn: protocols to offer (RFC 7301).
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_NONE, _examine)
    context.set_info_callback(_note_certificate_request)
    examination = _Examination(policy=TLSPolicy(), accepting=False, verifies=False)
    return _client_session(context, examination, server_name, alpn, lambda: context)


def _client_session(
    context: SSL.Context,
    examination: _Examination,
    server_name: str,
    alpn: Sequence[bytes],
    rebuild: Callable[[], SSL.Context],
) -> TLSSession:
    connection = SSL.Connection(context)
    connection.set_app_data(examination)
    if host_address(server_name) is None:
        connection.set_tlsext_host_name(server_name.encode())
    if alpn:
        connection.set_alpn_protos(list(alpn))
    connection.set_connect_state()
    return TLSSession(connection, examination, rebuild)


# One connection -----------------------------------------------------------------------------------------------------


@final
class RecordScanner:
    """Counts the records that are complete in a stream of ciphertext, by their headers (RFC 8446 section 5.1).

    It saves asking OpenSSL once more after each record whether that was all, which costs an exception. It knows
    nothing for sure: records that hold no data are counted, too, and then OpenSSL is asked once for nothing.
    """

    __slots__ = ("_header", "_left", "complete")

    def __init__(self) -> None:
        #: Complete records that were fed and not taken; None if that is not known.
        self.complete: int | None = None
        self._header = b""
        self._left = 0

    def feed(self, data: Buffer) -> None:
        """Look at more ciphertext."""
        position, end, found = 0, len(data), 0
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
                found += not self._left
            else:
                wanted = 5 - len(self._header)
                header = self._header + bytes(data[position : position + wanted])
                position += wanted
                if len(header) < 5:
                    self._header = header
                    break
                self._header = b""
                self._left = header[3] << 8 | header[4]
                found += not self._left
        if self.complete is not None:
            self.complete += found


@final
class TLSSession:
    """One TLS connection over memory: feed ciphertext in, take ciphertext out.

    Every method is synchronous and either succeeds or raises `TLSFailure`; the first failure is final. Whatever the
    outcome, `outgoing()` may hold bytes that the peer should get (an alert, for one).
    """

    __slots__ = (
        "_connection",
        "_examination",
        "_failure",
        "_produced",
        "_rebuild",
        "_scanner",
        "peer_certificate",
        "records_received",
        "records_sent",
        "verified",
    )

    def __init__(
        self, connection: SSL.Connection, examination: _Examination, rebuild: Callable[[], SSL.Context]
    ) -> None:
        self._connection = connection
        self._examination = examination
        self._failure: TLSFailure | None = None
        self._rebuild = rebuild if examination.policy.clock is not None and examination.verifies else None
        self._produced = 0
        self._scanner = RecordScanner()
        #: The peer's leaf certificate, once the handshake is done; None if it sent none.
        self.peer_certificate: x509.Certificate | None = None
        #: Whether this side verified that certificate (and, dialling, its name), once the handshake is done.
        self.verified: bool = False
        #: Records of data so far, under one key each way: AES-GCM is good for 2^24.5 (RFC 8446 section 5.5).
        self.records_sent: int = 0
        self.records_received: int = 0

    # Ciphertext

    def feed(self, data: Buffer) -> None:
        """Take ciphertext from the transport."""
        if data:
            self._connection.bio_write(data)
            self._scanner.feed(data)

    def feed_eof(self) -> None:
        """The transport ended."""
        self._connection.bio_shutdown()
        self._scanner.complete = None

    def outgoing(self) -> bytes:
        """All ciphertext that waits to be sent; empty if there is none."""
        # One read of the right size: to ask OpenSSL for more than there is costs an exception, larger buffers cost.
        size = self._produced + _UNASKED
        self._produced = 0
        pieces: list[bytes] = []
        with contextlib.suppress(SSL.WantReadError):
            pieces.append(self._connection.bio_read(size))
            while len(pieces[-1]) == size:
                size = _CHUNK
                pieces.append(self._connection.bio_read(size))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Handshake

    def handshake(self) -> bool:
        """One step of the handshake; True once it is done, False while it needs more from the peer."""
        self._raise_if_failed()
        if self._rebuild is not None:
            self._set_clock(self._rebuild())
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except _NoOverlap:
            self._fail(Misbehaved("no_application_protocol"))
        except SSL.Error as exc:
            self._fail(self._translate(exc))
        self._conclude()
        return True

    def _set_clock(self, context: SSL.Context) -> None:
        # A store's verification time can be set once: OpenSSL keeps a time that is there. So an injected clock costs
        # a context per step, and published contexts are never touched.
        store = context.get_cert_store()
        assert store is not None
        store.set_time(self._examination.policy.now())
        self._connection.set_context(context)

    def _conclude(self) -> None:
        examination = self._examination
        if examination.refusal is not None:
            self._fail(PeerRefused(examination.refusal))
        try:
            certificate = examination.leaf or self._connection.get_peer_certificate(as_cryptography=True)
            if certificate is not None:
                _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc  # year 0 is valid DER, for one
        except Exception:  # noqa: BLE001 -- where nothing is verified, what comes is anybody's, and so is how it fails
            self._fail(Misbehaved("certificate cannot be parsed"))
        self.peer_certificate = certificate
        self.verified = examination.verifies and examination.leaf is not None
        if (
            examination.verifies
            and not self.verified
            and (self.peer_certificate is not None or not examination.accepting)
        ):
            self._fail(Misbehaved("verification did not run"))

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer presented, its leaf first; parsed anew each time, nothing more is kept."""
        if self.peer_certificate is None:
            return ()
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        # A server's OpenSSL keeps the leaf apart.
        return (self.peer_certificate, *(chain if self._examination.accepting else chain[1:]))

    @property
    def presented(self) -> bool:
        """Whether the peer has seen our certificate: a server's always, a client's if it was asked for."""
        return self._examination.accepting or self._examination.certificate_requested

    @property
    def shown_chain(self) -> tuple[x509.Certificate, ...]:
        """What a server has presented so far, also where the handshake failed; empty where it cannot be parsed."""
        try:
            return tuple(self._connection.get_peer_cert_chain(as_cryptography=True) or ())
        except Exception:  # noqa: BLE001 -- what comes is anybody's, and so is how it fails
            return ()

    @property
    def certificate_requested(self) -> bool:
        """Whether the server has asked for our certificate."""
        return self._examination.certificate_requested

    @property
    def requested_cas(self) -> dict[bytes, str]:
        """The CAs whose certificates the server says it accepts (RFC 8446 section 4.2.4), DER to text; often none."""
        return {name.der(): _name_shown(name) for name in self._connection.get_client_ca_list()}

    # Plaintext

    def encrypt(self, data: Buffer) -> None:
        """Encrypt into `outgoing()`."""
        self._raise_if_failed()
        if data:
            records = -(-len(data) // RECORD_SIZE)
            self.records_sent += records
            self._produced += len(data) + records * _RECORD_OVERHEAD
            try:
                self._connection.sendall(data)
            except SSL.Error as exc:
                self._fail(self._translate(exc))

    @property
    def readable(self) -> bool:
        """Whether `decrypt` may find something."""
        return self._scanner.complete != 0

    def decrypt(self, limit: int | None = None) -> list[bytes] | None:
        """Plaintext, one piece a record: None while more ciphertext is needed, [] at the end.

        The end is the peer's close_notify; a transport that just ended is `Truncated`.

        Args:
            limit: at most so many bytes; by default all that is there.
        """
        self._raise_if_failed()
        scanner, recv = self._scanner, self._connection.recv
        pieces: list[bytes] = []
        ask = RECORD_SIZE
        while scanner.complete != 0:
            if limit is not None:
                ask = min(limit, RECORD_SIZE)
                if not ask:
                    break
            try:
                piece = recv(ask)
            except SSL.WantReadError:
                scanner.complete = 0
                break
            except SSL.ZeroReturnError:
                scanner.complete = None  # whoever asks again gets the same answer
                return pieces
            except SSL.Error as exc:
                if pieces:  # the failure is the session's for good, so the next call meets it again
                    scanner.complete = None
                    break
                self._fail(self._translate(exc))
            self.records_received += 1
            pieces.append(piece)
            if limit is not None:
                limit -= len(piece)
            if ask < RECORD_SIZE:
                scanner.complete = None  # there may be more of that record
            elif scanner.complete:
                scanner.complete -= 1
        return pieces or None

    def finish(self) -> None:
        """Put our close_notify into `outgoing()`; receiving goes on (RFC 8446 section 6.1)."""
        if self._failure is None:
            with contextlib.suppress(SSL.Error):
                self._connection.shutdown()

    # Facts

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on, or None."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "backslashreplace") or None

    @property
    def tls_version(self) -> str:
        """The protocol version, `TLSv1.3`."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str | None:
        """The cipher suite's name."""
        return self._connection.get_cipher_name()

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """A secret that only the two ends of this session know (RFC 8446 section 7.5, RFC 9266)."""
        return self._connection.export_keying_material(label, length, context)

    # Failure

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: TLSFailure) -> NoReturn:
        self._failure = failure
        raise failure from None

    def _translate(self, exc: SSL.Error) -> TLSFailure:
        if isinstance(exc, SSL.SysCallError):
            return Truncated("the connection ended without a TLS close_notify")
        reason = _reason(exc)
        if self._examination.refusal is not None:
            return PeerRefused(self._examination.refusal)
        if reason == "peer did not return a certificate":
            return PeerRefused(
                Refusal(
                    reason=UnverifiedReason.NO_CERTIFICATE,
                    text=(
                        "client refused: it sent no certificate, and this acceptor requires one. Give the client a "
                        "key pair signed by a CA of our client-CA pool (a client that holds another CA's certificate "
                        "may send none)"
                    ),
                    wanted="a client certificate",
                )
            )
        if " alert " in f" {reason}" or reason in _UNMARKED_ALERTS:
            return AlertReceived(reason)
        return Misbehaved(reason)


def _name_shown(name: crypto.X509Name) -> str:
    """A distinguished name from the wire, as RFC 4514 writes it."""
    parts = (f"{key.decode()}={value.decode(errors='replace')}" for key, value in reversed(name.get_components()))
    return printable(",".join(parts), 120)


def _reason(exc: SSL.Error | crypto.Error) -> str:
    """The reason string of an OpenSSL error; its queue is `[(library, function, reason), …]`, oldest first."""
    queue = exc.args[0] if exc.args else []
    return str(queue[0][-1]) if isinstance(queue, list) and queue else "unknown"
