"""OpenSSL contexts: what one generation of a cert manager presents, asks for and believes.

Theory. A *side* (`ServerSide`, `ClientSide`) is one generation's OpenSSL context: built once, never changed after it
was published. It makes sessions, each with an `Examination` of its own as the connection's app data, which is how the
callbacks of a shared context know which connection they are called for.

No resumption: OP_NO_TICKET *and* no session cache. Either alone leaves a way back in without verification
(CVE-2025-23419, CVE-2025-68121 are of this kind). OpenSSL still emits dead tickets.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, final

from OpenSSL import SSL, crypto
from trio.lowlevel import enable_ki_protection

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import subject_der
from trionode._identity.describe import describe
from trionode._identity.names import host_address

from .anchors import anchors_of
from .binding import MODE_NO_AUTO_CHAIN, install_request_callback, install_verify_callback, openssl_reason
from .failures import HandshakeErrors
from .judge import Judge
from .session import NoOverlap, TLSSession
from .verification import Examination

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography import x509

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import TLSPolicy
    from trionode._identity.names import NodeName


#: A list of acceptable CAs that takes more bytes is not sent. It is optional, most clients do without, and with a chain
#: of our own it is to fit into what TCP sends at once (14 KiB, RFC 6928). Beyond 64 KiB there is no field for it.
MAX_CA_LIST: Final = 8 * 1024

#: For sessions whose errors are looked at where it is known what they are about.
_ANYWHERE: Final = HandshakeErrors()


def _select_alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes | object:
    examination: Examination = connection.get_app_data()
    if not examination.alpn:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    for protocol in examination.alpn:
        if protocol in offered:
            return protocol
    raise NoOverlap


def _context(key_pair: KeyPair | None, verify_mode: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Idle connections give their record buffers back (about 34 KiB each). What is sent is the key pair's chain as it
    # is: OpenSSL would complete it from whatever this side trusts.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | MODE_NO_AUTO_CHAIN)
    if key_pair is not None:
        _present(context, key_pair)
    install_verify_callback(context, verify_mode)
    return context


@enable_ki_protection  # as in `candidates`
def _present(context: SSL.Context, key_pair: KeyPair) -> None:
    try:
        context.use_certificate(key_pair.certificate)
        for certificate in key_pair.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key_pair.private_key)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as exc:
        msg = f"OpenSSL does not accept our key pair: {openssl_reason(exc)}: {describe(key_pair.certificate)}"
        raise CertificateError(msg, reason=CertificateReason.UNSUPPORTED_KEY) from None


def ca_list_size(pool: CAPool) -> int:
    """What the list of acceptable CAs takes in a handshake (RFC 8446 section 4.2.4), in bytes."""
    return sum(2 + len(subject_der(anchor)) for anchor in _by_name(pool))


def _by_name(pool: CAPool) -> Iterable[x509.Certificate]:
    """One anchor of each name."""
    return {subject_der(each.certificate): each.certificate for each in anchors_of(pool)}.values()


@final
class ServerSide:
    """What acceptors present and ask for, for one generation."""

    __slots__ = ("_context", "_judge")

    def __init__(self, key_pair: KeyPair, policy: TLSPolicy) -> None:
        """Build the OpenSSL context.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        auth, client_cas = policy.client_auth, policy.client_cas
        mode = SSL.VERIFY_PEER if auth.requests else SSL.VERIFY_NONE
        if auth.requires:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        self._judge = Judge(policy, accepting=True) if auth.verifies else None
        self._context = context = _context(key_pair, mode)
        context.set_alpn_select_callback(_select_alpn)  # type: ignore[arg-type]  # typed without its sentinel
        if auth.requests and client_cas is not None and ca_list_size(client_cas) <= MAX_CA_LIST:
            for anchor in _by_name(client_cas):
                context.add_client_ca(anchor)

    def session(self, *, errors: HandshakeErrors = _ANYWHERE, alpn: Sequence[bytes] = ()) -> TLSSession:
        """The server end of a new connection.

        Args:
            errors: builds what it raises.
            alpn: protocols in order of preference (RFC 7301); empty ignores what the client offers.
        """
        examination = Examination(accepting=True, judge=self._judge, errors=errors, alpn=alpn)
        connection = SSL.Connection(self._context)
        connection.set_app_data(examination)
        connection.set_accept_state()
        return TLSSession(connection, examination)


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
            _ = self._verifying, self._judge

    @property
    def server_name(self) -> str | None:
        """The reference name that the manager sets for every dial, or None."""
        return self._policy.server_name

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self._policy, accepting=False)

    @cached_property
    def _verifying(self) -> SSL.Context:
        return self._asking(SSL.VERIFY_PEER)

    @cached_property
    def _trusting(self) -> SSL.Context:
        return self._asking(SSL.VERIFY_NONE)

    def _asking(self, verify_mode: int) -> SSL.Context:
        context = _context(None if self._policy.anonymous else self._key_pair, verify_mode)
        install_request_callback(context)
        return context

    def session(
        self,
        *,
        reference: str,
        node: NodeName | None = None,
        errors: HandshakeErrors = _ANYWHERE,
        alpn: Sequence[bytes] = (),
        insist_on_alpn: bool = False,
        insecure_skip_verify: bool = False,
    ) -> TLSSession:
        """The client end of a new connection.

        Args:
            reference: the canonical host that the server's SANs must match; also the SNI, unless it is an address.
            node: the node name that URI SANs must admit, if this is a node's dial.
            errors: builds what it raises.
            alpn: protocols to offer (RFC 7301).
            insist_on_alpn: fail, before our certificate is sent, unless one of them was selected.
            insecure_skip_verify: accept any certificate under any name.

        Raises:
            CertificateError: the system's CAs are needed and there are none.
        """
        examination = Examination(
            accepting=False,
            judge=None if insecure_skip_verify else self._judge,
            errors=errors,
            reference=reference,
            node=node,
            insist_on_alpn=insist_on_alpn,
        )
        context = self._trusting if insecure_skip_verify else self._verifying
        return _client_session(context, examination, reference, alpn)


def inspecting_session(*, server_name: str, alpn: Sequence[bytes] = ()) -> TLSSession:
    """The client end of a connection that only looks: it verifies nothing, presents nothing, and knows TLS 1.2, too.

    Args:
        server_name: what to ask for (SNI), a canonical host; an address is not asked for.
        alpn: protocols to offer (RFC 7301).
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    install_verify_callback(context, SSL.VERIFY_NONE)
    install_request_callback(context)
    return _client_session(context, Examination(accepting=False, judge=None), server_name, alpn)


def _client_session(
    context: SSL.Context,
    examination: Examination,
    server_name: str,
    alpn: Sequence[bytes],
) -> TLSSession:
    connection = SSL.Connection(context)
    connection.set_app_data(examination)
    if host_address(server_name) is None:
        connection.set_tlsext_host_name(server_name.encode())
    if alpn:
        connection.set_alpn_protos(list(alpn))
    connection.set_connect_state()
    return TLSSession(connection, examination)
