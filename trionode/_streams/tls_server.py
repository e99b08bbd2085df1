"""What accept loops and handlers of one server share, and the ledger that its streams stand in."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias, final

import trio

from trionode._errors import HandshakeError, HandshakeReason, PeerUnverifiedError
from trionode._handshake.accept import accept_tls
from trionode._managers.by_name import ManagersByName, ServerManagers
from trionode._managers.manager import publisher_of
from trionode._managers.trust import StrandedPeers
from trionode._transport.interfaces import Listener
from trionode._transport.sockets import address_of
from trionode._transport.tcp import accept_patiently
from trionode._util.fields import check_argument
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

from .stream import TLSStream, break_off, is_broken_off, session_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from cryptography import x509

    from trionode._handshake.admission import Admission
    from trionode._tls.stream import SessionStream
    from trionode._util.text import Address

_log: Final = Log("trionode.acceptor")

#: Where streams come in: Trio's own listeners, or those of a `Transport`.
AnyListener: TypeAlias = trio.abc.Listener[trio.abc.Stream] | Listener


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Client:
    """What is at the other end of a server's stream: a `LivePeer`."""

    certificate: x509.Certificate | None
    verified: bool
    address: Address | None
    name: None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveStream:
    """A server's stream, for its manager's ledger: a `LiveLink`."""

    generation: int
    peer: Client
    stream: SessionStream
    dialled: bool = False

    @classmethod
    def of(cls, stream: TLSStream) -> Self:
        """What the ledger keeps of a stream."""
        client = Client(certificate=stream.peer_certificate, verified=stream.verified, address=stream.peer_address)
        return cls(generation=stream.generation, peer=client, stream=session_of(stream))


@final
class TLSServer:
    """What accept loops and handlers of one server share.

    Attributes:
        managers: which serve which names.
    """

    def __init__(
        self,
        handler: Callable[[TLSStream], Awaitable[object]],
        cert_manager: ServerManagers,
        *,
        alpn: tuple[str, ...],
        handshake_timeout: float,
        admission: Admission,
        stranded: StrandedPeers,
    ) -> None:
        """Make one; nothing is in use yet.

        Args:
            handler: called with each stream whose handshake is done; the stream is closed when it returns.
            cert_manager: one manager, or several by name.
            alpn: protocols in order of preference, checked.
            handshake_timeout: from the accept to the end of the handshake, seconds.
            admission: bounds the handshakes under way.
            stranded: what becomes of streams whose client new trust does not accept.

        Raises:
            TypeError, ValueError: `cert_manager` or `stranded` is not what belongs there.
        """
        check_argument("stranded", stranded, StrandedPeers)
        if stranded is StrandedPeers.REFUSE:
            msg = "the streams of a server do not stand in the way of new trust: stranded is KEEP or CLOSE, not REFUSE"
            raise ValueError(msg)
        self._handler = handler
        self.managers: Final = ManagersByName(cert_manager)
        self._source = self.managers.source
        self._alpn = alpn
        self._handshake_timeout = handshake_timeout
        self._admission = admission
        self._stranded = stranded
        self._flood = RateLimitedLog(_log, "handshakes refused")
        self._uses = ExitStack()
        self._holders = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The manager is in use for the length of the block, and then as long as handlers run.

        Raises:
            CertificateError: its key pair is unusable for a server.
        """
        self._uses.enter_context(self.managers.use())
        self._hold()
        try:
            yield
        finally:
            self._release()

    def _hold(self) -> None:
        self._holders += 1

    def _release(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._flood.summarise()
            self._uses.close()

    async def run(
        self, listeners: Sequence[AnyListener], handler_nursery: trio.Nursery | None, started: Callable[[], None]
    ) -> None:
        """Accept until the listeners are closed, or this is cancelled; then close them."""
        try:
            async with trio.open_nursery() as nursery:
                handlers = nursery if handler_nursery is None else handler_nursery
                for listener in listeners:
                    nursery.start_soon(self._accept_from, listener, handlers)
                started()
        finally:
            await close_all(listeners)  # noqa: ASYNC102 -- shielded in there

    async def _accept_from(self, listener: AnyListener, handlers: trio.Nursery) -> None:
        shown = _shown(listener)
        while True:
            try:
                if isinstance(listener, trio.abc.Listener):
                    transport = await accept_patiently(listener, shown)
                else:
                    transport = await listener.accept()
            except trio.ClosedResourceError:
                return
            self._hold()  # here: the task begins later
            try:
                handlers.start_soon(self._handle, transport, shown, handlers, name=f"a TLS connection on {shown}")
            except BaseException:  # the caller's nursery may be closed
                self._release()
                await trio.aclose_forcefully(transport)
                raise

    async def _handle(self, transport: trio.abc.Stream, where: str, handlers: trio.Nursery) -> None:
        try:
            stream = await self._shake_hands(transport, where)
            if stream is not None:
                async with stream:
                    await self._run_handler(stream, handlers)
        finally:
            self._release()

    async def _run_handler(self, stream: TLSStream, handlers: trio.Nursery) -> None:
        """The handler, while the stream stands in the ledger of the manager that served it."""

        def end(error: PeerUnverifiedError) -> None:
            if not break_off(stream, error):
                handlers.start_soon(trio.aclose_forcefully, stream)

        manager = self.managers.manager(stream.server_name)
        assert manager is not None  # its contexts were taken
        publisher, live = publisher_of(manager), LiveStream.of(stream)
        publisher.attach(live, end, stranded=self._stranded)
        try:
            if not is_broken_off(stream):
                await self._handler(stream)
        finally:
            publisher.detach(live)

    async def _shake_hands(self, transport: trio.abc.Stream, where: str) -> TLSStream | None:
        try:
            with self._admission.admitted(address_of(transport)) as ticket:
                stream = await accept_tls(
                    transport,
                    self._source,
                    alpn=self._alpn,
                    handshake_timeout=self._handshake_timeout,
                    ticket=ticket,
                )
            return TLSStream(stream)
        except HandshakeError as exc:
            if exc.reason == HandshakeReason.SILENT:
                _log.debug("handshake on %s: %s", where, exc)
            else:
                self._flood.warning("handshake refused on %s: %s", where, exc)
        except Exception:  # noqa: BLE001 -- logged in full; not a peer's fault but ours, and it costs one connection
            _log.exception("a handshake on %s failed in an unexpected way", where)
        return None


def _shown(listener: AnyListener) -> str:
    """Where a listener listens, for people."""
    if isinstance(listener, trio.SocketListener):
        try:
            name: object = listener.socket.getsockname()
        except OSError:
            return "a closed socket"
        if isinstance(name, tuple):
            return f"{name[0]} port {name[1]}"
        return repr(name)
    address = getattr(listener, "address", None)
    return type(listener).__name__ if address is None else f"{address[0]} port {address[1]}"


async def close_all(listeners: Sequence[AnyListener]) -> None:
    """Close listeners of any kind, cancelled or not."""
    with trio.CancelScope(shield=True):  # a cancellation from outside would come out after the first
        for listener in listeners:
            if isinstance(listener, trio.abc.Listener):
                await trio.aclose_forcefully(listener)
            else:
                listener.close()
