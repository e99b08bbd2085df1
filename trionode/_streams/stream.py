"""The public TLS stream: what programs without nodes hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

import trio

from trionode._util.home import home

if TYPE_CHECKING:
    from cryptography import x509

    from trionode._errors import PeerUnverifiedError
    from trionode._tls.stream import SessionStream
    from trionode._util.text import Address, Buffer

__all__ = ["TLSStream"]


@final
class TLSStream(trio.abc.HalfCloseableStream):
    """A TLS 1.3 stream whose handshake is done; a `trio.abc.HalfCloseableStream`.

    It has no public constructor: `open_tls_stream`, `serve_tls` and their kin make them. It belongs to its Trio run:
    used in another thread, or in a forked child, its methods raise `RuntimeError`.
    """

    __slots__ = ("__weakref__", "_broken_off", "_home", "_session_stream")

    def __init__(self, stream: SessionStream) -> None:
        self._session_stream = stream
        self._home = home()
        stream.relieves_itself = True
        # Why this side has ended it under the hands of its user.
        self._broken_off: PeerUnverifiedError | None = None

    def __repr__(self) -> str:
        return f"<TLSStream{repr(self._session_stream).removeprefix('<TLS stream')}"

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's leaf certificate, or None if it sent none."""
        return self._session_stream.peer_certificate

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer presented, its leaf first; empty if it sent none. Parsed anew each time.

        What comes behind the leaf is its word only: an unverified peer may send anything.
        """
        return self._session_stream.session.peer_chain

    @property
    def certificate(self) -> x509.Certificate | None:
        """Our leaf certificate, as presented; None on a client that was not asked for it."""
        return self._session_stream.certificate

    @property
    def verified(self) -> bool:
        """Whether this side verified the peer's certificate (and, dialing, its name)."""
        return self._session_stream.verified

    @property
    def server_name(self) -> str | None:
        """The server name that the client asked for (SNI, RFC 6066 section 3), in lower case; None if it did not.

        An address is not asked for. On the server it is the client's word, before anything was verified.
        """
        return self._session_stream.server_name

    @property
    def generation(self) -> int:
        """The generation of the contexts that the handshake took; it never changes."""
        return self._session_stream.generation

    @property
    def superseded(self) -> bool:
        """Whether its manager has published a later generation."""
        publisher = self._session_stream.publisher
        return publisher is not None and publisher.generation > self.generation

    async def wait_superseded(self) -> None:
        """Wait until its manager has published a later generation. Cancelling is harmless.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        self._home.check("TLSStream")
        publisher = self._session_stream.publisher
        if publisher is None:
            await trio.sleep_forever()
        else:
            await publisher.wait_generation(self.generation + 1)

    @property
    def peer_address(self) -> Address | None:
        """The peer's (host, port), or None where the transport does not know it."""
        return self._session_stream.peer_address

    @property
    def transport_stream(self) -> trio.abc.Stream:
        """The stream underneath, owned by this one."""
        return self._session_stream.transport_stream

    @property
    def tls_version(self) -> str:
        """`TLSv1.3`."""
        return self._session_stream.session.tls_version

    @property
    def cipher(self) -> str | None:
        """The cipher suite's name."""
        return self._session_stream.session.cipher

    @property
    def alpn(self) -> str | None:
        """The application protocol that was agreed on (RFC 7301), or None."""
        return self._session_stream.session.alpn

    async def send_all(self, data: Buffer) -> None:
        """Encrypt and send all of `data`.

        Cancelled before its first byte it has sent nothing; cancelled later an unknown prefix has gone and this
        direction is broken. A failure here leaves receiving intact: read on for the reason.

        Args:
            data: of any size; it must not change meanwhile.

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: this stream was closed, or `send_eof` was called.
            trio.BrokenResourceError: the connection is broken, or an earlier send was torn.
        """
        self._home.check("TLSStream")
        try:
            await self._session_stream.send_all(data)
        except trio.ClosedResourceError as exc:
            raise self._ended(exc) from self._broken_off

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might not block, as far as the transport can tell."""
        self._home.check("TLSStream")
        try:
            await self._session_stream.wait_send_all_might_not_block()
        except trio.ClosedResourceError as exc:
            raise self._ended(exc) from self._broken_off

    async def send_eof(self) -> None:
        """Send a close_notify: nothing more will be sent, receiving goes on (RFC 8446 section 6.1).

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the connection is broken, or an earlier send was torn.
        """
        self._home.check("TLSStream")
        try:
            await self._session_stream.send_eof()
        except trio.ClosedResourceError as exc:
            raise self._ended(exc) from self._broken_off

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or `b""` once the peer has sent its close_notify.

        Cancelling loses nothing.

        Args:
            max_bytes: at most this many bytes; by default up to 64 KiB.

        Raises:
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the connection is broken, was truncated, or the peer refused us; in the last
                case `__cause__` is a `PeerRejectedError`. Or trust has changed, and this side does not trust the peer
                any more; then it is a `PeerUnverifiedError`.
        """
        self._home.check("TLSStream")
        try:
            return await self._session_stream.receive_some(max_bytes)
        except trio.ClosedResourceError as exc:
            raise self._ended(exc) from self._broken_off

    def _ended(self, closed: trio.ClosedResourceError) -> trio.ClosedResourceError | trio.BrokenResourceError:
        """What to raise where the stream underneath was closed: by its user, or because its peer is not trusted."""
        return closed if self._broken_off is None else trio.BrokenResourceError(str(self._broken_off))

    async def __aenter__(self) -> Self:
        """A checkpoint; cancelled in it, the stream is closed."""
        self._home.check("TLSStream")
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            await trio.aclose_forcefully(self)
            raise
        return self

    async def aclose(self) -> None:
        """Offer the peer a close_notify and close the transport, cancelled or not. Never waits for the peer.

        A peer that reads it can tell this end from a cut (RFC 8446 section 6.1).
        """
        self._home.check("TLSStream")
        await self._session_stream.aclose()


def break_off(stream: TLSStream, error: PeerUnverifiedError) -> bool:
    """End a stream that is in use: what waits on it, and what comes, meets a `BrokenResourceError` from the error.

    Synchronous where that can be.

    Args:
        stream: whose peer is not trusted any more.
        error: why.

    Returns:
        Whether it is closed; otherwise the caller has to do it.
    """
    stream._broken_off = error  # noqa: SLF001 -- the one other place that may
    return stream._session_stream.close_at_once()  # noqa: SLF001 -- likewise


def is_broken_off(stream: TLSStream) -> bool:
    """Whether a stream was ended because its peer is not trusted any more."""
    return stream._broken_off is not None  # noqa: SLF001 -- likewise


def session_of(stream: TLSStream) -> SessionStream:
    """What a stream wraps, for the ledger of its manager."""
    return stream._session_stream  # noqa: SLF001 -- likewise
