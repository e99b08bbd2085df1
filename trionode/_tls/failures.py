"""The errors of handshakes, built in one place: every stage and both sides, with the remedy in the text.

Theory. Whatever ends a handshake, or a TLS session later, is one of four things, and each has a public class: we
refused the peer (`PeerUnverifiedError`), the peer refused us (`PeerRejectedError`), a deadline passed
(`HandshakeTimeoutError`), or neither side judged the other: the peer broke off or spoke something else
(`HandshakeError` itself). What all of them say of the handshake (where the peer is, how far it had come, which contexts
it took, what we presented) is the same, so it is one immutable value, `HandshakeErrors`, whose methods build them:

    raise errors.unverified(UnverifiedReason.COOKIE, "the node has another cookie", certificate=certificate)

A TLS session has one, too: what OpenSSL reports comes out of it as a public error with nothing left to add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import (
    HandshakeError,
    HandshakeReason,
    HandshakeTimeoutError,
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


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandshakeErrors:
    """Builds the errors of one handshake, and holds what all of them say of it.

    Attributes:
        address: the peer's (host, port), or None where it is not known.
        stage: how far the handshake has come.
        generation: of the contexts that it took, or None before it took any.
        presented: our leaf certificate in these contexts, or None before it took any.
    """

    address: Address | None = None
    stage: Stage = Stage.TLS
    generation: int | None = None
    presented: x509.Certificate | None = None

    def at_stage(self, stage: Stage) -> HandshakeErrors:
        """The same handshake, come further."""
        return HandshakeErrors(address=self.address, stage=stage, generation=self.generation, presented=self.presented)

    @property
    def peer(self) -> str:
        """The peer and where it is, as the subject of a sentence."""
        return f"the peer{at(self.address)}"

    @property
    def prefix(self) -> str:
        """What stands before the reason of our refusal: where the peer is; nothing where that is not known."""
        return "" if self.address is None else f"peer{at(self.address)}: "

    # We refused the peer

    def unverified(
        self,
        reason: UnverifiedReason,
        text: str,
        *,
        certificate: x509.Certificate | None = None,
        failed_at: x509.Certificate | None = None,
        wanted: str | None = None,
        offered: str | None = None,
    ) -> PeerUnverifiedError:
        """We refused the peer.

        Args:
            reason: why.
            text: why, as a sentence with its subject and the remedy.
            certificate: what the peer presented.
            failed_at: the certificate of its chain at which the path failed, if one did.
            wanted: what we needed to see.
            offered: what the peer offered instead.
        """
        return PeerUnverifiedError(
            f"{self.prefix}{text}",
            stage=self.stage,
            reason=reason,
            address=self.address,
            generation=self.generation,
            certificate=certificate,
            failed_at=failed_at,
            wanted=wanted,
            offered=offered,
        )

    # The peer refused us

    def rejected_by_alert(self, alert: str) -> PeerRejectedError:
        """The peer sent a fatal alert.

        Args:
            alert: its name, with spaces in place of underscores (RFC 8446 section 6.2).
        """
        code = RejectionCode.of(alert.replace(" ", "_"))
        remedy = _ALERT_REMEDIES.get(code, "Its log says why")
        return self._rejected(code, f"with the TLS alert {alert!r}: we presented {self._presented}. {remedy}")

    def rejected_in_hello(self, code: str, message: str) -> PeerRejectedError:
        """The peer refused us in its hello.

        Args:
            code: why, as it came from the wire.
            message: the same in its own words.
        """
        words = f"{printable(code)}: {printable(message, 1000)}"
        return self._rejected(RejectionCode.of(code), f"in its hello: {words} (we presented {self._presented})")

    def _rejected(self, code: RejectionCode, how: str) -> PeerRejectedError:
        return PeerRejectedError(
            f"{self.peer} refused us {how}",
            stage=self.stage,
            code=code,
            address=self.address,
            generation=self.generation,
            presented=self.presented,
        )

    @property
    def _presented(self) -> str:
        return "no certificate" if self.presented is None else describe(self.presented)

    # Neither judged the other

    def failed(self, reason: HandshakeReason, text: str, cause: Exception) -> HandshakeError:
        """The handshake failed, and neither side judged the other.

        Args:
            reason: why.
            text: what happened, as a sentence.
            cause: what the error's `__cause__` is to be.
        """
        return self._failed(reason, text, cause)

    def misbehaved(self, detail: str) -> HandshakeError:
        """The peer sent something that is not the TLS we speak.

        Args:
            detail: OpenSSL's words for it, or a `HandshakeReason`.
        """
        detail = printable(detail)
        explained = _MISBEHAVIOUR.get(detail, "Is there a TLS 1.3 server or client at the other end?")
        text = f"{self.peer} does not speak TLS as we do: {detail}. {explained}"
        return self._failed(detail, text, RemoteProtocolError(f"TLS: {detail}"))

    def unrecognized_name(self, asked: str | None, served: str) -> HandshakeError:
        """The client asked for a server name that we do not serve.

        Args:
            asked: for which; None for none.
            served: what we serve, in words.
        """
        what = "no server name" if asked is None else f"the server name {printable(asked)!r}"
        text = (
            f"{self.peer} asked for {what} (SNI), and there is a cert manager for {served} only; add one for it, or "
            'one for "*"'
        )
        return self._failed(HandshakeReason.UNRECOGNIZED_NAME, text, RemoteProtocolError("TLS: unrecognized name"))

    def truncated(self, detail: str = "the connection ended without a TLS close_notify") -> HandshakeError:
        """The transport ended without the peer's close_notify: a cut, or an attacker's truncation.

        Args:
            detail: what is known of how it ended.
        """
        text = (
            f"{self.peer} ended the connection without a word: {detail}. It may have refused us without an "
            "alert, or something in between cut the connection"
        )
        return self._failed(HandshakeReason.TRUNCATED, text, trio.BrokenResourceError(detail))

    def _failed(self, reason: str, text: str, cause: Exception) -> HandshakeError:
        error = HandshakeError(text, stage=self.stage, reason=reason, address=self.address, generation=self.generation)
        error.__cause__ = cause
        return error

    # A deadline passed

    def timed_out(self, text: str) -> HandshakeTimeoutError:
        """A deadline passed.

        Args:
            text: which, as a sentence.
        """
        return HandshakeTimeoutError(
            text,
            stage=self.stage,
            reason=HandshakeReason.TIMEOUT,
            address=self.address,
            generation=self.generation,
        )


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
    "unrecognized_name": "It serves other server names than the one that we asked for; set server_name to one of them",
}

_MISBEHAVIOUR: Final = {
    HandshakeReason.NO_APPLICATION_PROTOCOL: "No application protocol in common (ALPN); is it a trionode peer?",
    "unsupported protocol": "It offers only TLS versions before 1.3",
    "wrong version number": "That was no TLS at all: is it a plain-text port?",
    "http request": "That was plain HTTP, on a TLS port",
    "excessive message size": "It sent more than a TLS handshake takes",
    "too many records without data": "It sends KeyUpdates or empty records and little else: it may be an attacker",
    "server name changed": "Its second ClientHello asked for the server name of another certificate than its first",
    "certificate cannot be parsed": "Its certificate does not follow RFC 5280; have it issued anew",
}
