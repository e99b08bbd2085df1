"""TLS as a Trio stream, once the handshake is done.

Theory. `handshake` makes a `SessionStream` only when the handshake has succeeded. So no half-made stream exists, and
facts such as `peer_certificate` are plain attributes.

Which side reports what, and when. In TLS 1.3 a client's handshake ends before the server has judged its certificate, so
a refusal arrives with the first read. Hence:

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
from operator import index
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import HandshakeError
from trionode._identity.describe import describe
from trionode._transport.sockets import READ_SIZE, socket_of, wait_and_read, write_at_once

from .session import RECORD_SIZE, TLSSession

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from cryptography import x509

    from trionode._util.text import Address, Buffer

    from .contexts import Publishes, TLSContexts

#: How long after they were seen to be large OpenSSL's buffers are given back. It takes a tenth of a millisecond.
#: Seconds.
RELIEF: Final = 1.0
#: How long a close_notify may take that the transport does not accept at once. Seconds.
FAREWELL: Final = 0.01

#: What is encrypted at once, at most, in full records.
AT_ONCE: Final = 16 * RECORD_SIZE
#: What a transport that is no socket gets at once: `bytes_taken` grows in such steps.
_STEP: Final = 4 * RECORD_SIZE
_RECEIVE_SIZE: Final = 64 * 1024


@final
class SessionStream(trio.abc.HalfCloseableStream):
    """TLS 1.3 over a transport, handshake done: what links are made of, and what the public `TLSStream` wraps.

    Attributes:
        transport_stream: the stream underneath, owned by this one.
        peer_certificate: the peer's leaf certificate, or None if it sent none.
        certificate: our leaf certificate, as presented; None if the server asked for none.
        verified: whether this side verified that certificate (and, dialling, its name).
        generation: the generation of the contexts that the handshake took; it never changes.
        server_name: the server name that the client asked for (SNI), in lower case, or None; as sent, so a server has
            no reason to believe it.
        peer_address: the peer's (host, port), or None where the transport does not know it.
        session: the TLS session, which knows what was negotiated.
        publisher: what published the contexts; None where they were published nowhere.
        bytes_taken: ciphertext that the transport has taken so far.
        relieves_itself: whether it gives back what OpenSSL's buffers have grown to while it waits for the peer, on a
            socket; else its owner calls `relieve`.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        session: TLSSession,
        contexts: TLSContexts,
    ) -> None:
        self.transport_stream = transport
        self.peer_certificate: x509.Certificate | None = session.peer_certificate
        self.certificate: x509.Certificate | None = contexts.key_pair.certificate if session.presented else None
        self.verified: bool = session.verified
        self.generation: int = contexts.generation
        self.server_name: str | None = session.server_name
        self.peer_address: Address | None = session.errors.address
        self.publisher: Publishes | None = contexts.publisher
        self.bytes_taken: int = 0
        self.relieves_itself: bool = False
        self._socket = socket_of(transport)
        self._unsent = b""
        # Whether the last read was all that there was: then it is waited first.
        self._read_all = True
        self.session = session
        self._closed = False
        self._sending = False
        self._receiving = False
        self._send_broken = False
        # How, where it was not by a cancellation; as text, for the error would keep us in turn.
        self._send_failure = "was cancelled half-way"
        self._send_ended = False

    def __repr__(self) -> str:
        peer = "no certificate" if self.peer_certificate is None else describe(self.peer_certificate)
        return f"<TLS stream {self.peer_address or 'in memory'}, generation {self.generation}, peer {peer}>"

    @property
    def records_sent(self) -> int:
        """TLS records of data that were encrypted so far, all under one key (RFC 8446 section 5.5)."""
        return self.session.records_sent

    @property
    def records_received(self) -> int:
        """TLS records of data that were decrypted so far; larger by some where small pieces were asked for."""
        return self.session.records_received

    @property
    def swollen(self) -> bool:
        """Whether OpenSSL holds more memory for it than a stream needs that is quiet."""
        return self.session.swollen

    @property
    def has_news(self) -> bool:
        """Whether the peer has said what was not received yet, if only that it left; True where that cannot be told."""
        return self._socket is None or self.session.readable or self._socket.socket.is_readable()

    def relieve(self) -> None:
        """Give that back, if nothing is in it at this moment."""
        self.session.relieve()

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """A secret that only the two ends of this TLS session know (RFC 8446 section 7.5).

        Args:
            label: what it is for (RFC 5705 section 4 has the registry).
            length: bytes wanted.
            context: bound into it, if given.
        """
        return self.session.export_keying_material(label, length, context)

    # Sending

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send all of `data`; cancels and raises as the public `TLSStream` says."""
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

    @property
    def send_broken(self) -> bool:
        """Whether a send has failed, or was cancelled half-way: the transport gets nothing more."""
        return self._send_broken

    async def send_eof(self) -> None:
        """Send a close_notify (RFC 8446 section 6.1); raises as the public `TLSStream` says."""
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
            self.session.finish()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might not block, as far as the transport can tell."""
        self._begin_send()
        try:
            await self.transport_stream.wait_send_all_might_not_block()
        finally:
            self._sending = False

    def _begin_send(self) -> None:
        if self._sending:
            msg = "another task is sending on this TLS stream"
            raise trio.BusyResourceError(msg)
        if self._closed:
            msg = "this TLS stream was closed"
            raise trio.ClosedResourceError(msg)
        if self._send_broken:
            msg = f"an earlier send on this TLS stream {self._send_failure}"
            raise trio.BrokenResourceError(msg)
        self._sending = True

    def _encrypt(self, data: Buffer) -> None:
        try:
            self.session.encrypt(data)
        except HandshakeError as exc:
            self._send_broken = True
            raise trio.BrokenResourceError(str(exc)) from exc

    def _ciphertext(self) -> bytes:
        """What the transport is to get next, in order."""
        unsent, self._unsent = self._unsent, b""
        return unsent + self.session.outgoing()

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

    async def receive_some(self, max_bytes: int | None = None, *, yielding: bool = True) -> bytes:
        """Receive at least one byte, or `b""` at the end; cancels and raises as the public `TLSStream` says.

        Args:
            max_bytes: at most so many; by default what is there.
            yielding: whether it is a checkpoint also where something is there already.
        """
        limit = _RECEIVE_SIZE if max_bytes is None else index(max_bytes)
        if limit < 1:
            msg = "max_bytes must be >= 1"
            raise ValueError(msg)
        pieces = await self.receive_pieces(limit, yielding=yielding)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive_pieces(self, limit: int | None = None, *, yielding: bool = True) -> list[bytes]:
        """As `receive_some`, in the pieces in which it came, for callers that would cut it up again; [] at the end.

        Args:
            limit: at most so many bytes; by default what is there.
            yielding: whether it is a checkpoint also where something is there already.
        """
        if self._receiving:
            msg = "another task is receiving on this TLS stream"
            raise trio.BusyResourceError(msg)
        if self._closed:
            msg = "this TLS stream was closed"
            raise trio.ClosedResourceError(msg)
        self._receiving = True
        session = self.session
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            pieces = session.decrypt(limit) if session.readable else None
            if pieces is not None and yielding:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while pieces is None:
                if session.readable:  # records without data, so far: others have their turn between two lots
                    await trio.lowlevel.checkpoint()
                else:
                    await self._read_ciphertext()
                pieces = session.decrypt(limit)
        except HandshakeError as exc:
            await self._flush_alert()  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news
            raise trio.BrokenResourceError(str(exc)) from exc
        finally:
            self._receiving = False
        return pieces

    async def _read_ciphertext(self) -> None:
        ciphertext: Buffer | None = None
        if self.relieves_itself and self.session.swollen and self._socket is not None:
            with trio.move_on_after(RELIEF):  # cancelling loses nothing: it is a socket
                ciphertext = await self._read()
            if ciphertext is None:
                self.relieve()
        if ciphertext is None:
            ciphertext = await self._read()
        self._read_all = len(ciphertext) < READ_SIZE
        if ciphertext:
            self.session.feed(ciphertext)
        else:
            self.session.feed_eof()

    async def _read(self) -> Buffer:
        if self._socket is not None and self._read_all:
            return await wait_and_read(self._socket)
        return await self.transport_stream.receive_some(READ_SIZE)

    async def _flush_alert(self) -> None:
        if self._sending or self._send_broken or self._closed:
            return
        alert = self._ciphertext()
        if alert:
            self._send_broken = True
            with trio.move_on_after(FAREWELL):
                await quietly(self.transport_stream.send_all(alert))

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
                    await quietly(self.transport_stream.send_all(farewell))
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


async def quietly(attempt: Awaitable[object]) -> None:
    """Await something on a connection that is ending anyway: that it broke is no news."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        await attempt
