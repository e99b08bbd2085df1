"""TLS on any Trio stream: an explicit handshake that yields a `TLSStream`.

Theory. `server_handshake` and `client_handshake` own the transport: on failure or cancellation they close it, on
success the `TLSStream` owns it. So no half-made stream exists, and facts such as `peer_certificate` are plain
attributes.

Who says what, and when. In TLS 1.3 a client's handshake ends before the server has judged its certificate, so a
refusal arrives with the first read. Hence:

* A refusing side flushes its alert, half-closes, reads on for a bounded time, then closes. Closing with unread bytes
  would send a TCP reset, which may overtake the alert.
* A failed send does not break receiving: the refused side reads before it reports, so that the reason is not lost to
  an EPIPE.
* Receiving never writes, but for a fatal alert, bounded. OpenSSL's (dead) session tickets ride with the first send;
  flushing them inside the handshake would block on a transport without buffer.
* Encrypting and draining OpenSSL's buffer happen in one synchronous block, so byte order is encryption order. A send
  that was cancelled half-way has written an unknown prefix: that direction is broken for good.
* `aclose()` offers the transport a close_notify but never waits for it or for the peer. An end without close_notify
  is a truncation and raises.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from trionode._errors import (
    HandshakeError,
    PeerRejectedError,
    PeerUnverifiedError,
    RemoteProtocolError,
    Stage,
)
from trionode._identity.describe import describe
from trionode._transport.sockets import READ_SIZE, receive, send, socket_of, wait_and_read, write_at_once
from trionode._util.text import (
    Address,
    Buffer,
    at,
    printable,
)

from .engine import (
    RECORD_SIZE,
    AlertReceived,
    Misbehaved,
    PeerRefused,
    TLSFailure,
    TLSSession,
    Truncated,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cryptography import x509

    from trionode._identity.names import NodeName

    from .contexts import TLSContexts

__all__ = ["TLSStream"]

#: How long a refusing side reads on, so that its alert arrives before the close does. Seconds.
LINGER: Final = 1.0
#: How much it reads meanwhile: no honest peer has more than a flight under way.
LINGER_BYTES: Final = 256 * 1024
#: How long a close_notify may take that the transport does not accept at once. Seconds.
FAREWELL: Final = 0.01

#: What a peer may send until the handshake is done: it is not authenticated yet. Bytes, several times what a long chain
#: of certificates takes; OpenSSL alone would collect twice that.
MAX_FLIGHTS: Final = 64 * 1024

_FLIGHT_READ: Final = 16 * 1024
#: What is encrypted at once, at most, in full records.
AT_ONCE: Final = 16 * RECORD_SIZE
#: What a transport that is no socket gets at once: `bytes_taken` grows in such steps.
_STEP: Final = 4 * RECORD_SIZE
_RECEIVE_SIZE: Final = 64 * 1024


def address_of(transport: trio.abc.Stream) -> Address | None:
    """The peer's (host, port): the transport's `peer_address`, or of a socket what it still knows."""
    if not isinstance(transport, trio.SocketStream):
        address: Address | None = getattr(transport, "peer_address", None)
        return address
    try:
        host, port, *_ = transport.socket.getpeername()
    except (OSError, ValueError):
        return None
    return host, port


@final
class TLSStream(trio.abc.HalfCloseableStream):
    """A TLS 1.3 stream whose handshake is done; a `trio.abc.HalfCloseableStream`.

    It has no public constructor: `open_tls_stream`, `serve_tls` and nodes make them.

    Attributes:
        transport_stream: the stream underneath, owned by this one.
        peer_certificate: the peer's leaf certificate, or None if it sent none.
        presented_certificate: our leaf certificate, or None if the server asked for none.
        verified: whether this side verified that certificate (and, dialling, its name).
        generation: the generation of the contexts that the handshake took; it never changes.
        peer_address: the peer's (host, port), or None where the transport does not know it.
        bytes_taken: ciphertext that the transport has taken so far.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        session: TLSSession,
        contexts: TLSContexts,
        presented: x509.Certificate | None,
        address: Address | None,
    ) -> None:
        self.transport_stream = transport
        self.peer_certificate: x509.Certificate | None = session.peer_certificate
        self.presented_certificate: x509.Certificate | None = presented if session.presented else None
        self.verified: bool = session.verified
        self.generation: int = contexts.generation
        self.peer_address: Address | None = address
        self.bytes_taken: int = 0
        self._socket = socket_of(transport)
        self._unsent = b""
        # Whether the last read was all that there was: then it is waited first.
        self._read_all = True
        self._session = session
        self._presented = presented
        self._closed = False
        self._sending = False
        self._receiving = False
        self._send_broken = False
        # How, where it was not by a cancellation; as text, for the error would keep us in turn.
        self._send_failure = "was cancelled half-way"
        self._send_ended = False

    def __repr__(self) -> str:
        peer = "no certificate" if self.peer_certificate is None else describe(self.peer_certificate)
        return f"<TLSStream {self.peer_address or 'in memory'}, generation {self.generation}, peer {peer}>"

    @property
    def tls_version(self) -> str:
        """`TLSv1.3`."""
        return self._session.tls_version

    @property
    def cipher(self) -> str | None:
        """The cipher suite's name."""
        return self._session.cipher

    @property
    def alpn(self) -> str | None:
        """The application protocol that was agreed on (RFC 7301), or None."""
        return self._session.alpn

    @property
    def records_sent(self) -> int:
        """TLS records of data that were encrypted so far, all under one key (RFC 8446 section 5.5)."""
        return self._session.records_sent

    @property
    def records_received(self) -> int:
        """TLS records of data that were decrypted so far; larger by some where small pieces were asked for."""
        return self._session.records_received

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer presented, its leaf first; empty if it sent none.

        What comes behind the leaf is its word only: an unverified peer may send anything. Parsed anew each time.
        """
        return self._session.peer_chain

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """A secret that only the two ends of this TLS session know (RFC 8446 section 7.5).

        Args:
            label: what it is for (RFC 5705 section 4 has the registry).
            length: bytes wanted.
            context: bound into it, if given.
        """
        return self._session.export_keying_material(label, length, context)

    # Sending

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send all of `data`.

        Cancelled before its first byte it has sent nothing; cancelled later an unknown prefix has gone and this
        direction is broken. A failure here leaves receiving intact: read on for the reason.

        Args:
            data: as much as one likes; it must not change meanwhile.

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: this stream was closed, or `send_eof` was called.
            trio.BrokenResourceError: the connection is broken, or an earlier send was torn.
        """
        self._begin_send()
        try:
            if self._send_ended and (len(data) or not self._unsent):
                msg = "send_eof() was called before"
                raise trio.ClosedResourceError(msg)
            await trio.lowlevel.checkpoint_if_cancelled()
            # As bytes, whatever the items of the view are: OpenSSL's binding takes the number of items for a size.
            with memoryview(data) as items, items.cast("B") as view:
                for start in range(0, len(view), AT_ONCE) or (0,):
                    with view[start : start + AT_ONCE] as part:
                        self._encrypt(part)
                    await self._send_ciphertext()
        finally:
            self._sending = False

    def send_at_once(self, data: Buffer, *, last: bool = False) -> bool:
        """Encrypt and send `data` without waiting, if all of it can go; synchronous.

        Returns whether it has: otherwise nothing was encrypted. What the transport does not take after all goes ahead
        of the next `send_all`, which has to follow (`unsent`).

        Args:
            data: what to send, at most 256 KiB; copied.
            last: whether a close_notify follows it, as from `send_eof`.

        Raises:
            trio.BrokenResourceError: the connection is broken.
        """
        if (
            self._socket is None
            or self._sending
            or self._closed
            or self._send_broken
            or self._send_ended
            or self._unsent
            or len(data) > AT_ONCE
        ):
            return False
        self._encrypt(data)
        if last:
            self._finish()
        ciphertext = self._ciphertext()
        self._unsent = ciphertext[self._write_at_once(self._socket, ciphertext) :]
        return True

    @property
    def unsent(self) -> bool:
        """Whether `send_at_once` left something for the next `send_all` or `send_eof`."""
        return bool(self._unsent)

    async def send_eof(self) -> None:
        """Send a close_notify: nothing more will be sent, receiving goes on (RFC 8446 section 6.1).

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the connection is broken, or an earlier send was torn.
        """
        self._begin_send()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._finish()
            await self._send_ciphertext()
        finally:
            self._sending = False

    @property
    def send_ended(self) -> bool:
        """Whether a close_notify was sent, or is what `unsent` ends with."""
        return self._send_ended

    def _finish(self) -> None:
        if not self._send_ended:  # a second SSL_shutdown would read, and choke on data that is still to be received
            self._send_ended = True
            self._session.finish()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might not block, as far as the transport can tell."""
        self._begin_send()
        try:
            await self.transport_stream.wait_send_all_might_not_block()
        finally:
            self._sending = False

    def _begin_send(self) -> None:
        if self._sending:
            msg = "another task is sending on this TLSStream"
            raise trio.BusyResourceError(msg)
        if self._closed:
            msg = "this TLSStream was closed"
            raise trio.ClosedResourceError(msg)
        if self._send_broken:
            msg = f"an earlier send on this TLSStream {self._send_failure}"
            raise trio.BrokenResourceError(msg)
        self._sending = True

    def _encrypt(self, data: Buffer) -> None:
        try:
            self._session.encrypt(data)
        except TLSFailure as exc:
            self._send_broken = True
            self._raise_broken(exc)

    def _ciphertext(self) -> bytes:
        """What the transport is to get next, in order."""
        unsent, self._unsent = self._unsent, b""
        return unsent + self._session.outgoing()

    async def _send_ciphertext(self) -> None:
        ciphertext = self._ciphertext()
        try:
            if not ciphertext:
                await trio.lowlevel.cancel_shielded_checkpoint()
            elif self._socket is not None:
                await self._write(self._socket, ciphertext)
            else:
                with memoryview(ciphertext) as view:
                    for start in range(0, len(view), _STEP):
                        with view[start : start + _STEP] as step:
                            await self.transport_stream.send_all(step)
                            self.bytes_taken += len(step)
        except BaseException as exc:
            self._break_sending(exc)
            raise

    async def _write(self, sock: trio.SocketStream, ciphertext: bytes) -> None:
        written = self._write_at_once(sock, ciphertext)
        if written == len(ciphertext):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        with memoryview(ciphertext) as view:
            while written < len(view):
                await trio.lowlevel.wait_writable(sock.socket)
                with view[written:] as rest:
                    written += self._write_at_once(sock, rest)

    def _write_at_once(self, sock: trio.SocketStream, ciphertext: Buffer) -> int:
        try:
            written = write_at_once(sock, ciphertext)
        except BaseException as exc:
            self._break_sending(exc)
            raise
        self.bytes_taken += written
        return written

    def _break_sending(self, error: BaseException) -> None:
        self._send_broken = True
        if isinstance(error, Exception):
            self._send_failure = f"failed: {error}"

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or `b""` once the peer has sent its close_notify.

        Cancelling loses nothing.

        Args:
            max_bytes: at most this many bytes; by default up to 64 KiB.

        Raises:
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the connection is broken, was truncated, or the peer refused us; in the last
                case `__cause__` is a `PeerRejectedError`.
        """
        limit = _RECEIVE_SIZE if max_bytes is None else max_bytes
        if limit < 1:
            msg = "max_bytes must be >= 1"
            raise ValueError(msg)
        pieces = await self.receive_pieces(limit)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive_pieces(self, limit: int | None = None) -> list[bytes]:
        """As `receive_some`, in the pieces in which it came, for those who would cut it up again; [] at the end.

        Args:
            limit: at most so many bytes; by default what is there.
        """
        if self._receiving:
            msg = "another task is receiving on this TLSStream"
            raise trio.BusyResourceError(msg)
        if self._closed:
            msg = "this TLSStream was closed"
            raise trio.ClosedResourceError(msg)
        self._receiving = True
        session = self._session
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            pieces = session.decrypt(limit) if session.readable else None
            if pieces is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while pieces is None:
                if self._socket is not None and self._read_all:
                    ciphertext: Buffer = await wait_and_read(self._socket)
                else:
                    ciphertext = await self.transport_stream.receive_some(READ_SIZE)
                self._read_all = len(ciphertext) < READ_SIZE
                if ciphertext:
                    session.feed(ciphertext)
                else:
                    session.feed_eof()
                pieces = session.decrypt(limit)
        except TLSFailure as exc:
            await self._flush_alert()
            self._raise_broken(exc)
        finally:
            self._receiving = False
        return pieces

    async def _flush_alert(self) -> None:
        if self._sending or self._send_broken or self._closed:
            return
        alert = self._ciphertext()
        if alert:
            self._send_broken = True
            with trio.move_on_after(FAREWELL):
                await _quietly(self.transport_stream.send_all(alert))

    def _raise_broken(self, failure: TLSFailure) -> NoReturn:
        error = failure_error(failure, self.peer_address, self.generation, self._presented)
        raise trio.BrokenResourceError(str(error)) from error

    # Closing

    async def aclose(self) -> None:
        """Offer the peer a close_notify and close the transport, cancelled or not. Never waits for the peer.

        A peer that reads it can tell this end from a cut (RFC 8446 section 6.1).
        """
        if self._closed or self.close_at_once():
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            farewell = self._farewell()
            if farewell:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL):
                    await _quietly(self.transport_stream.send_all(farewell))
        finally:
            await trio.aclose_forcefully(self.transport_stream)

    def close_at_once(self) -> bool:
        """As `aclose()`, without waiting; synchronous. Returns whether that could be done: else only that can."""
        if self._socket is None or self._closed:
            return self._closed
        farewell = self._farewell()
        if farewell:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                self._unsent = farewell[write_at_once(self._socket, farewell) :]
        if self._unsent:
            return False
        self._closed = True
        self._socket.socket.close()
        return True

    def _farewell(self) -> bytes:
        """What the transport is still to get, up to a close_notify."""
        if self._sending or self._send_broken:
            return b""
        self._finish()
        return self._ciphertext()


# Handshakes ---------------------------------------------------------------------------------------------------------


async def server_handshake(
    transport: trio.abc.Stream,
    contexts: TLSContexts,
    *,
    received: Buffer = b"",
    alpn: Sequence[str] = (),
    decided: Callable[[], None] = lambda: None,
    greeted: Callable[[], None] = lambda: None,
) -> TLSStream:
    """Run the server side of a handshake; owns the transport and closes it on failure or cancellation.

    Args:
        transport: where the client is.
        contexts: what to present and to ask for.
        received: bytes that were already read from the transport.
        alpn: protocols in order of preference; a client that offers only others is refused.
        decided: called when we refuse, before the time is taken to deliver the alert.
        greeted: called when the client has sent a whole ClientHello that we can answer.

    Raises:
        PeerUnverifiedError: we refused the client.
        PeerRejectedError: the client refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    session = contexts.server.session(alpn=[protocol.encode("ascii") for protocol in alpn])
    session.feed(received)
    presented = contexts.key_pair.certificate
    address = address_of(transport)
    await _handshake(transport, session, contexts, presented, address, decided, greeted, flush_last_flight=False)
    return TLSStream(transport, session, contexts, presented, address)


async def client_handshake(
    transport: trio.abc.Stream,
    contexts: TLSContexts,
    *,
    reference: str,
    node: NodeName | None = None,
    alpn: Sequence[str] = (),
    insist_on_alpn: bool = False,
    flush_last_flight: bool = True,
    insecure_skip_verify: bool = False,
    decided: Callable[[], None] = lambda: None,
) -> TLSStream:
    """Run the client side of a handshake; owns the transport and closes it on failure or cancellation.

    Args:
        transport: where the server is.
        contexts: what to present and to verify with.
        reference: the canonical host that the server's certificate must cover.
        node: the node name that its URI SANs, if any, must admit.
        alpn: protocols to offer.
        insist_on_alpn: fail, before our certificate is sent, unless one of them was selected.
        flush_last_flight: send our last flight, certificate and all; else it goes with the first that is sent.
        insecure_skip_verify: accept any certificate under any name.
        decided: called when we refuse, before the time is taken to deliver the alert.

    Raises:
        PeerUnverifiedError: we refused the server.
        PeerRejectedError: the server refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    try:
        session = contexts.client.session(
            reference=reference,
            node=node,
            alpn=[protocol.encode("ascii") for protocol in alpn],
            insecure_skip_verify=insecure_skip_verify,
        )
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    presented = contexts.key_pair.certificate
    address = address_of(transport)
    await _handshake(
        transport,
        session,
        contexts,
        presented,
        address,
        decided,
        flush_last_flight=flush_last_flight,
        insist_on_alpn=insist_on_alpn,
    )
    return TLSStream(transport, session, contexts, presented, address)


async def _handshake(
    transport: trio.abc.Stream,
    session: TLSSession,
    contexts: TLSContexts,
    presented: x509.Certificate,
    address: Address | None,
    decided: Callable[[], None],
    greeted: Callable[[], None] = lambda: None,
    *,
    flush_last_flight: bool = True,
    insist_on_alpn: bool = False,
) -> None:
    try:
        try:
            await _exchange_flights(
                transport, session, greeted, flush_last_flight=flush_last_flight, insist=insist_on_alpn
            )
        except TLSFailure:
            decided()
            await _linger(transport, session)  # noqa: ASYNC120 -- bounded, and a cancellation matters more
            raise
    except TLSFailure as exc:
        await trio.aclose_forcefully(transport)
        error = failure_error(exc, address, contexts.generation, presented)
        raise error from error.__cause__
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(transport)
        msg = f"the connection{at(address)} broke during the TLS handshake: {exc.__cause__ or exc}"
        raise HandshakeError(
            msg, stage=Stage.TLS, reason="broken", address=address, generation=contexts.generation
        ) from exc
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def _exchange_flights(
    transport: trio.abc.Stream,
    session: TLSSession,
    greeted: Callable[[], None],
    *,
    flush_last_flight: bool,
    insist: bool,
) -> None:
    send_failure: trio.BrokenResourceError | None = None
    received = 0
    while True:
        done = session.handshake()
        if done and insist and session.alpn is None:
            session.outgoing()  # dropped: it holds our certificate, and this is no peer of ours
            failure = Misbehaved("no_application_protocol")
            raise failure
        if not done or flush_last_flight:
            outgoing = session.outgoing()
            if outgoing and send_failure is None:
                greeted()
                try:
                    await send(transport, outgoing)
                except trio.BrokenResourceError as exc:
                    send_failure = exc  # read on: the alert that says why may already be here
        if done:
            if send_failure is not None:
                raise send_failure
            return
        if received >= MAX_FLIGHTS:
            failure = Misbehaved("excessive message size")
            raise failure
        data = await receive(transport, _FLIGHT_READ)
        if data:
            received += len(data)
            session.feed(data)
        elif send_failure is not None:
            raise send_failure
        else:
            session.feed_eof()


async def _linger(transport: trio.abc.Stream, session: TLSSession) -> None:
    """Deliver what the session still has to say: flush, half-close, read on for a bounded time."""
    with trio.move_on_after(LINGER):
        await _quietly(_say_and_drain(transport, session.outgoing()))


async def _say_and_drain(transport: trio.abc.Stream, last_words: bytes) -> None:
    if last_words:
        await transport.send_all(last_words)
    if isinstance(transport, trio.abc.HalfCloseableStream):
        await transport.send_eof()
    drained = 0
    while drained < LINGER_BYTES and (data := await transport.receive_some()):
        drained += len(data)


async def drain_and_close(stream: TLSStream) -> None:
    """Close a stream on which we just said why we refuse: half-close, read on for a bounded time, close."""
    try:
        with trio.move_on_after(LINGER):
            await _quietly(_say_and_drain(stream, b""))
    finally:
        await stream.aclose()


async def _quietly(attempt: Awaitable[object]) -> None:
    """Await something on a connection that is ending anyway: that it broke is no news."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        await attempt


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
        reason="truncated",
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
