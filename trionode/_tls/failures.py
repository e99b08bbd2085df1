"""What can end a TLS session, and the public errors for it.

A session is sans-IO and knows neither addresses nor generations: it raises a `TLSFailure`, which says which side ended
it and why. `failure_error` makes the public error of it, with the remedy in its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import (
    HandshakeError,
    HandshakeReason,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._identity.describe import describe
from trionode._util.text import Address, at, printable

if TYPE_CHECKING:
    from cryptography import x509
    from OpenSSL import SSL, crypto


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
class NoOverlap(Exception):  # noqa: N818 -- carries a verdict through OpenSSL's ALPN callback
    """Raised in the ALPN callback: the way to have the `no_application_protocol` alert sent."""


def openssl_reason(exc: SSL.Error | crypto.Error) -> str:
    """The reason string of an OpenSSL error; its queue is `[(library, function, reason), …]`, oldest first."""
    queue = exc.args[0] if exc.args else []
    return str(queue[0][-1]) if isinstance(queue, list) and queue else "unknown"


def failure_error(
    failure: TLSFailure, address: Address | None, generation: int, presented: x509.Certificate | None
) -> HandshakeError:
    """The public exception for what happened to a TLS session, with its cause set."""
    there = at(address)
    if isinstance(failure, PeerRefused):
        refusal = failure.refusal
        return PeerUnverifiedError(
            f"peer{there}: {refusal.text}",
            stage=Stage.TLS,
            reason=refusal.reason,
            address=address,
            generation=generation,
            certificate=refusal.certificate,
            wanted=refusal.wanted,
            offered=refusal.offered,
        )
    if isinstance(failure, AlertReceived):
        shown = "no certificate" if presented is None else describe(presented)
        return PeerRejectedError(
            f"the peer{there} refused us with the TLS alert {failure.code.replace('_', ' ')!r}: we presented {shown}. "
            f"{_ALERT_REMEDIES.get(failure.code, 'Its log says why')}",
            stage=Stage.TLS,
            code=failure.code,
            address=address,
            generation=generation,
            presented=presented,
        )
    if isinstance(failure, Misbehaved):
        detail = printable(failure.detail)
        explained = _MISBEHAVIOUR.get(detail, "Is there a TLS 1.3 server or client at the other end?")
        error = HandshakeError(
            f"the peer{there} does not speak TLS as we do: {detail}. {explained}",
            stage=Stage.TLS,
            reason=detail,
            address=address,
            generation=generation,
        )
        error.__cause__ = RemoteProtocolError(f"TLS: {detail}")
        return error
    assert isinstance(failure, Truncated)
    error = HandshakeError(
        f"the peer{there} ended the connection without a word: {failure}. It may have crashed, refused us without an "
        "alert, or something in between cut the connection",
        stage=Stage.TLS,
        reason=HandshakeReason.TRUNCATED,
        address=address,
        generation=generation,
    )
    error.__cause__ = trio.BrokenResourceError(str(failure))
    return error


_ALERT_REMEDIES: Final = {
    "certificate_required": "It requires a client certificate; give this manager a key pair that its client "
    "CAs vouch for",
    "unknown_ca": "Its CA pool does not have the CA that signed this certificate; add the CA there, or issue the "
    "certificate from one that is there, and send the intermediates",
    "certificate_expired": "By its clock our certificate has expired; rotate to a new one, and compare the clocks",
    "certificate_revoked": "Our certificate is on its revocation list; issue a new one",
    "unsupported_certificate": "Our certificate does not allow this use; issue it with both serverAuth and clientAuth",
    "bad_certificate": "It could not verify our certificate (not yet valid by its clock, for one); its log says why",
    "internal_error": "A server name mismatch arrives like this: see which names our certificate covers, and its log",
    "no_application_protocol": "It does not speak the protocol that we offered; is it a trionode acceptor?",
    "protocol_version": "It does not speak TLS 1.3",
}

_MISBEHAVIOUR: Final = {
    "no_application_protocol": "No application protocol in common (ALPN); is it a trionode peer?",
    "unsupported protocol": "It offers only TLS versions before 1.3",
    "wrong version number": "That was no TLS at all: is it a plain-text port?",
    "http request": "That was plain HTTP, on a TLS port",
    "excessive message size": "It sent more than a TLS handshake takes",
    "certificate cannot be parsed": "Its certificate does not follow RFC 5280; have it issued anew",
}
