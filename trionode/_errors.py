"""Every exception that trionode raises, and the enumerations of reasons that they carry.

One base, `TrionodeError`. Facts are attributes; `str()` is a sentence for a person, with the remedy in it. Reasons and
codes are `enum.StrEnum` members: stable, comparable with plain strings, good in logs.

Text from a peer goes through `printable()` before it enters a message, so that a hostile peer can neither forge log
lines nor flood the log.
"""

from __future__ import annotations

import pickle
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, final

from ._util.codes import ApplicationCode, FrameworkCode, PeersCode, application_code
from ._util.details import as_details
from ._util.fields import check_argument
from ._util.metadata import as_metadata
from ._util.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography import x509

    from ._identity.names import NodeName
    from ._util.text import Address

__all__ = [
    "ApplicationCode",
    "CertificateError",
    "CertificateReason",
    "FixedAtStartupError",
    "HandshakeError",
    "HandshakeReason",
    "HandshakeTimeoutError",
    "ListenError",
    "LocalProtocolError",
    "NetworkDisabledError",
    "NoRouteError",
    "PeerRejectedError",
    "PeerUnverifiedError",
    "ProtocolError",
    "Refused",
    "RejectionCode",
    "RemoteCode",
    "RemoteError",
    "RemoteProtocolError",
    "Stage",
    "TrionodeError",
    "UnverifiedReason",
]


class TrionodeError(Exception):
    """Base of all exceptions that trionode defines.

    Errors can be pickled, to be sent between processes; what cannot (certificates) is None in the copy.
    """

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from arguments and attributes: constructors take keywords, which the default would not give."""
        return _rebuilt, (type(self), self.args, {key: _picklable(value) for key, value in self.__dict__.items()})


def _rebuilt(kind: type[TrionodeError], args: tuple[object, ...], attributes: dict[str, object]) -> TrionodeError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _picklable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 -- pickling may raise anything
        return None
    return value


# Our own credentials and configuration ------------------------------------------------------------------------------


class CertificateReason(StrEnum):
    """Why our own certificate, key or CA files are unusable."""

    UNREADABLE = "unreadable"
    """A file cannot be read, or its content is damaged."""
    NO_CERTIFICATE = "no_certificate"
    """There is no certificate where one is needed."""
    NO_KEY = "no_key"
    """There is no private key where one is needed."""
    BAD_PASSWORD = "bad_password"  # noqa: S105 -- a reason, not a password
    """The private key needs a password, the password is wrong, or the key has none."""
    KEY_MISMATCH = "key_mismatch"
    """The private key does not belong to the leaf certificate."""
    CHAIN_ORDER = "chain_order"
    """A certificate of the chain is not signed by the next one."""
    UNSUPPORTED_KEY = "unsupported_key"
    """The key cannot be used for TLS 1.3, or is too weak."""
    EXPIRED = "expired"
    """The leaf certificate has expired."""
    NOT_YET_VALID = "not_yet_valid"
    """The leaf certificate is not valid yet."""
    WRONG_EKU = "wrong_eku"
    """The leaf's extended key usage does not allow the role that it is used in."""
    NO_CLIENT_CAS = "no_client_cas"
    """The client-auth mode verifies clients, and there is no client-CA pool."""
    WEAK_CA = "weak_ca"
    """Every CA of a pool has a key that is too weak to be relied on."""
    NO_CRL = "no_crl"
    """There is no revocation list where one is needed."""
    BAD_CRL = "bad_crl"
    """A revocation list is damaged, or of a kind that cannot be relied on."""
    FINDINGS = "findings"
    """`follow_source(check=True)` found errors in the key pair."""
    TRUST_FINDINGS = "trust_findings"
    """`follow_source(check=True)` found that new pools or revocation lists would refuse our own key pair."""


@final
class CertificateError(TrionodeError):
    """Our own files or key pair are unusable.

    Attributes:
        reason: which defect, see `CertificateReason`.
    """

    def __init__(self, message: str, *, reason: CertificateReason) -> None:
        super().__init__(message)
        self.reason = reason


@final
class FixedAtStartupError(TrionodeError):
    """A cert manager's CA pools, client-auth mode or server name were to be changed while the manager is in use."""


@final
class NetworkDisabledError(TrionodeError):
    """A network verb was used on a node whose network mode does not allow it."""


@final
class ListenError(TrionodeError, OSError):
    """An acceptor cannot listen.

    Attributes:
        address: the (host, port) asked for.
        tried: every (host, port) that was tried, in order.
    """

    def __init__(self, message: str, *, address: Address, tried: Sequence[Address] = ()) -> None:
        super().__init__(message)
        self.address = address
        self.tried: tuple[Address, ...] = tuple(tried)

    def __str__(self) -> str:
        """The sentence alone; `OSError` would format an errno, which there need not be."""
        return str(self.args[0])


@final
class NoRouteError(TrionodeError, LookupError):
    """There is no route to a node name, or two or more routes were tried and all failed.

    Attributes:
        name: the node name that was to be reached; None where a pattern was given.
        causes: an `ExceptionGroup` of every attempt's error (also `__cause__`), or None where nothing was tried.
    """

    def __init__(self, message: str, *, name: NodeName | None, causes: ExceptionGroup[Exception] | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.causes = causes


# Handshakes ---------------------------------------------------------------------------------------------------------


class Stage(StrEnum):
    """How far a handshake had come when it failed."""

    RESOLVE = "resolve"
    """The look-up of the host's name."""
    CONNECT = "connect"
    """TCP."""
    TLS = "tls"
    """TLS, in which both sides verify certificates."""
    HELLO = "hello"
    """The hello, in which two nodes exchange names and accept each other."""


class HandshakeReason(StrEnum):
    """Why a handshake failed where neither side judged the other.

    Where TLS itself broke down, `HandshakeError.reason` may also be OpenSSL's own words, such as `http request`.
    """

    UNREACHABLE = "unreachable"
    """The host does not resolve, or no address of it can be connected to; `__cause__` is the `OSError`."""
    EXHAUSTED = "exhausted"
    """This process or machine has no descriptors, ports or memory left to dial with; `__cause__` is the `OSError`."""
    TIMEOUT = "timeout"
    """A deadline passed: `connect_timeout` or `handshake_timeout`."""
    SILENT = "silent"
    """The client left without having sent a byte, as port scanners and health checks do."""
    CLOSED = "closed"
    """The peer closed the connection in the middle of the hello."""
    BROKEN = "broken"
    """The connection broke."""
    TRUNCATED = "truncated"
    """The connection ended within TLS, without an alert and without a close_notify."""
    PROTOCOL = "protocol"
    """The peer does not speak the node protocol; `__cause__` is the `RemoteProtocolError`."""
    NO_APPLICATION_PROTOCOL = "no_application_protocol"
    """The two sides have no application protocol (ALPN) in common."""
    UNRECOGNIZED_NAME = "unrecognized_name"
    """The client asked for a server name that this server has no certificate manager for."""
    SHED = "shed"
    """There were too many handshakes at once (`max_handshakes`, `max_handshakes_per_address`)."""
    SUPERSEDED = "superseded"
    """The connection that the new link was to carry has ended, or a later link took its place."""


class UnverifiedReason(StrEnum):
    """Why we refused a peer."""

    UNKNOWN_CA = "unknown_ca"
    """The chain does not lead to a CA of the pool."""
    NO_CERTIFICATE = "no_certificate"
    """The peer sent no certificate, and has to."""
    EXPIRED = "expired"
    """A certificate of the chain has expired."""
    NOT_YET_VALID = "not_yet_valid"
    """A certificate of the chain is not valid yet."""
    WRONG_EKU = "wrong_eku"
    """The extended key usage or key usage does not allow this role."""
    REVOKED = "revoked"
    """A certificate of the chain is on a revocation list."""
    REVOCATION_UNKNOWN = "revocation_unknown"
    """There is no current revocation list for a certificate of the chain."""
    NAME_MISMATCH = "name_mismatch"
    """The server's certificate does not cover the name that was dialled."""
    CLAIMED_NAME = "claimed_name"
    """The certificate does not cover the node name that the peer claims in its hello."""
    BAD_CHAIN = "bad_chain"
    """The chain does not verify for another reason; the text has OpenSSL's."""
    NOT_AUTHORIZED = "not_authorized"
    """`authorize` refused the peer."""
    COOKIE = "cookie"
    """The peer does not have the cookie."""
    VERSION = "version"
    """The two sides speak no common version of the node protocol."""
    NAME_IN_USE = "name_in_use"
    """Another live node is connected under this name, or it is our own."""
    DUPLICATE = "duplicate"
    """There is a live connection with this peer already."""
    JOIN = "join"
    """The link was to be a new one of an existing connection, and cannot be: the connection has ended, for one."""
    SHUTTING_DOWN = "shutting_down"
    """The node is closing."""


class RejectionCode(PeersCode):
    """Why a peer refused us: a TLS alert (RFC 8446 section 6.2) or the code of a refusing hello.

    TLS carries less than the refusing side knows: a server name mismatch arrives as `INTERNAL_ERROR`, a certificate
    that is not yet valid as `BAD_CERTIFICATE`.
    """

    CERTIFICATE_REQUIRED = "certificate_required"
    UNKNOWN_CA = "unknown_ca"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_UNKNOWN = "certificate_unknown"
    UNSUPPORTED_CERTIFICATE = "unsupported_certificate"
    BAD_CERTIFICATE = "bad_certificate"
    ACCESS_DENIED = "access_denied"
    HANDSHAKE_FAILURE = "handshake_failure"
    PROTOCOL_VERSION = "protocol_version"
    INSUFFICIENT_SECURITY = "insufficient_security"
    DECODE_ERROR = "decode_error"
    DECRYPT_ERROR = "decrypt_error"
    ILLEGAL_PARAMETER = "illegal_parameter"
    UNEXPECTED_MESSAGE = "unexpected_message"
    UNRECOGNIZED_NAME = "unrecognized_name"
    NO_APPLICATION_PROTOCOL = "no_application_protocol"
    INTERNAL_ERROR = "internal_error"
    CLAIMED_NAME = "claimed_name"
    NOT_AUTHORIZED = "not_authorized"
    COOKIE = "cookie"
    VERSION = "version"
    NAME_IN_USE = "name_in_use"
    DUPLICATE = "duplicate"
    JOIN = "join"
    SHUTTING_DOWN = "shutting_down"
    OTHER = "other"


class HandshakeError(TrionodeError):
    """A handshake failed; raised as itself where neither side judged the other.

    That is: at stage `connect` (`__cause__` is the `OSError`), and where the peer broke off or spoke another protocol
    (`__cause__` is the `trio.BrokenResourceError` or `RemoteProtocolError`).

    Attributes:
        stage: how far it had come.
        address: the other end's (host, port), or None where it is not known.
        generation: the generation of the contexts that the handshake took, or None if it took none.
    """

    def __init__(
        self,
        message: str,
        *,
        stage: Stage,
        reason: str,
        address: Address | None = None,
        generation: int | None = None,
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.address = address
        self.generation = generation
        self._reason = reason

    @property
    def reason(self) -> str:
        """What went wrong: a `HandshakeReason`, or what OpenSSL says; subclasses have enumerations of their own."""
        return self._reason


@final
class PeerUnverifiedError(HandshakeError):
    """We refused the peer; or, on a live connection, we no longer trust it (stage `tls`: it would be refused there).

    Attributes:
        certificate: the certificate that was refused (where a path failed above the leaf, the one it failed at),
            or None if the peer sent none.
        failed_at: the certificate of its chain at which the path failed, or None if no path did.
        wanted: what was required (a name, a CA pool, a time), as text, or None.
        offered: what the peer's certificate offered instead, as text, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        stage: Stage,
        reason: UnverifiedReason,
        address: Address | None = None,
        generation: int | None = None,
        certificate: x509.Certificate | None = None,
        failed_at: x509.Certificate | None = None,
        wanted: str | None = None,
        offered: str | None = None,
    ) -> None:
        super().__init__(message, stage=stage, reason=reason, address=address, generation=generation)
        self.certificate = certificate
        self.failed_at = failed_at
        self.wanted = wanted
        self.offered = offered

    @property
    def reason(self) -> UnverifiedReason:
        """Why we refused."""
        return UnverifiedReason(self._reason)


@final
class PeerRejectedError(HandshakeError):
    """The peer refused us, by a TLS alert or in its hello.

    Attributes:
        code: what the peer said, see `RejectionCode`; also in `reason`.
        presented: the certificate that we offered, or None if we offered none.
    """

    def __init__(
        self,
        message: str,
        *,
        stage: Stage,
        code: RejectionCode,
        address: Address | None = None,
        generation: int | None = None,
        presented: x509.Certificate | None = None,
    ) -> None:
        super().__init__(message, stage=stage, reason=code, address=address, generation=generation)
        self.code = code
        self.presented = presented


@final
class HandshakeTimeoutError(HandshakeError):
    """A deadline passed: `connect_timeout` (DNS and TCP) or `handshake_timeout` (contexts, TLS and hello)."""


@final
class Refused(TrionodeError):  # noqa: N818 -- design: `raise Refused("…")`, a verdict rather than an error
    """Raised by an `authorize` function to refuse a peer with a reason that the peer may read.

    Any other exception refuses too, but its text stays on this side.
    """


# Protocol and remote failures ---------------------------------------------------------------------------------------


class ProtocolError(TrionodeError):
    """A rule of the node protocol or of this API was broken: by this program or by the peer, see the subclasses."""


@final
class LocalProtocolError(ProtocolError):
    """This program asked for something that is not allowed; never caused by a peer."""


@final
class RemoteProtocolError(ProtocolError):
    """The peer sent something that the node protocol does not allow."""


class RemoteCode(PeersCode):
    """Why a peer's service did not do what was asked of it."""

    UNKNOWN_SERVICE = "unknown_service"
    """The peer has no service of this name."""
    FAILED = "failed"
    """The service raised an exception."""
    CANCELLED = "cancelled"
    """The service was cancelled."""
    NO_REPLY = "no_reply"
    """The service ended without sending a reply."""
    LIMIT = "limit"
    """A limit of the peer was reached."""
    SHUTTING_DOWN = "shutting_down"
    """The peer is closing."""
    NOT_ALLOWED = "not_allowed"
    """The service's `allow=` does not let this node use it."""
    BAD_MESSAGE = "bad_message"
    """A message could not be decoded as the agreed type."""
    NOT_TAKEN = "not_taken"
    """The connection ended before the peer took the request: the service did not run."""
    OTHER = "other"
    """A code that this release does not know, see `RemoteError.raw_code`; or an application's, of an older peer."""


def code_of(given: str) -> RemoteCode | ApplicationCode:
    """What a code stands for: one of trionode's where it is from there, or is "failed"; else one of the application's.

    Args:
        given: by an application, or a `FrameworkCode`.
    """
    if isinstance(given, RemoteCode):
        return given
    if isinstance(given, FrameworkCode):
        return RemoteCode.of(given)
    return RemoteCode.FAILED if given == RemoteCode.FAILED.value else application_code(given)


@final
class RemoteError(TrionodeError):
    """The peer's service did not do what was asked of it.

    A service raises it to refuse a call: `raise RemoteError("no such order", code="not_found", details={"order": 17})`.
    All of that reaches the caller, and no traceback is logged.

    Attributes:
        code: why: a `RemoteCode` where trionode says so, an `ApplicationCode` where the service does, in its own words.
        raw_code: the code as text, control characters escaped; as the peer sent it where `code` is `RemoteCode.OTHER`.
        message: the peer's own words, control characters escaped, at most a few hundred characters.
        not_run: whether the service certainly did not run, so that the request may be made again. False where it may
            have run, and where the peer does not say.
        details: what the service says besides, a plain value: None, a boolean, a number, text, bytes, or a list of or
            `dict` from text to such. From a peer it is untrusted, and bounded.
    """

    _explained: ClassVar[dict[RemoteCode, str]] = {
        RemoteCode.UNKNOWN_SERVICE: "the peer has no such service; register it there with node.add_service()",
        RemoteCode.FAILED: "the service raised an exception; its traceback is in the peer's log",
        RemoteCode.CANCELLED: "the service was cancelled at the peer",
        RemoteCode.NO_REPLY: "the service ended without sending a reply",
        RemoteCode.LIMIT: "a limit of the peer was reached",
        RemoteCode.SHUTTING_DOWN: "the peer is shutting down; retry elsewhere or later",
        RemoteCode.NOT_ALLOWED: "the peer does not let us use this service; its allow= decides",
        RemoteCode.BAD_MESSAGE: "a message could not be decoded as the agreed type",
        RemoteCode.NOT_TAKEN: "the connection ended before the peer took the request; call again",
    }

    #: Codes that say by themselves that nothing ran.
    _plain: ClassVar[frozenset[RemoteCode]] = frozenset((RemoteCode.UNKNOWN_SERVICE, RemoteCode.NOT_ALLOWED))

    def __init__(
        self,
        message: str = "",
        *,
        code: RemoteCode | str,
        not_run: bool = False,
        details: object = None,
        metadata: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """An error of a service.

        Args:
            message: for people.
            code: one of the application's own, of 1 to 64 characters, which a caller gets as an `ApplicationCode`; or a
                `RemoteCode`. "failed" is `RemoteCode.FAILED`.
            not_run: whether the service did not run; for trionode to say. One that raises this runs, and a caller
                gets it without.
            details: see the attribute. A copy is made, in which tuples are lists. At most 1000 values, 16 deep;
                together with the metadata, encoded, at most the caller's `max_metadata_size` bytes. What is more
                than that is left out, and the log says so.
            metadata: a small mapping of strings to strings or bytes, beside the details.

        Raises:
            TypeError, ValueError: the message is no string, or details or metadata are none.
        """
        check_argument("message", message, str)
        self.code: RemoteCode | ApplicationCode = code_of(code)
        self.raw_code: str = printable(str(code if self.code is RemoteCode.OTHER else self.code))
        self.message: str = printable(message)
        self.not_run: bool = not_run
        self.details: Any = None if details is None else as_details(details)
        self._metadata = {} if metadata is None else dict(as_metadata(metadata))
        explained = "the service gave this reason"
        if isinstance(self.code, RemoteCode) and not (self.code is RemoteCode.FAILED and message):
            explained = self._explained.get(self.code, explained)
        words = f" ({self.message})" if message else ""
        certain = "; the service did not run" if not_run and self.code not in self._plain else ""
        super().__init__(f"{self.raw_code}: {explained}{words}{certain}")

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the service says beside the details, read-only; empty for none."""
        return MappingProxyType(self._metadata)


def anew(error: RemoteError) -> RemoteError:
    """The same error once more, without the tracebacks of those that have raised it."""
    copy = RemoteError.__new__(RemoteError, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
