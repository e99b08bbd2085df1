"""What accept loops and handlers of one server share, and the ledger that its streams stand in."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import HandshakeError, HandshakeReason, PeerUnverifiedError
from trionode._handshake.accept import accept_tls
from trionode._managers.by_name import ManagersByName, ServerManagers
from trionode._managers.manager import publisher_of
from trionode._managers.trust import StrandedPeers
from trionode._node.events import Side
from trionode._transport.interfaces import accept_patiently
from trionode._transport.sockets import address_of
from trionode._util.contained import contained
from trionode._util.fields import check_argument, show
from trionode._util.functions import may_be_async
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

from .arguments import check_arguments
from .listeners import close_all, shown
from .live import LiveStream
from .monitor import record_of
from .stream import TLSStream, break_off, is_broken_off

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trionode._handshake.admission import Admission

    from .listeners import AnyListener
    from .monitor import ServerMonitor

_log: Final = Log("trionode.acceptor")


@final
class TLSServer:
    """What accept loops and handlers of one server share.

    Attributes:
        managers: which serve which names.
        closed: whether its caller has closed a listener.
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
        monitor: ServerMonitor | None,
    ) -> None:
        """Make one; nothing is in use yet.

        Args:
            handler: called with each stream whose handshake is done; the stream is closed when it returns.
            cert_manager: one manager, or several by name.
            alpn: protocols in order of preference, checked.
            handshake_timeout: from the accept to the end of the handshake, seconds.
            admission: bounds the handshakes under way.
            stranded: what becomes of streams whose client new trust does not accept.
            monitor: what reads the server's record.

        Raises:
            TypeError, ValueError: `cert_manager`, `stranded` or `monitor` is not what belongs there.
        """
        if not may_be_async(handler):
            msg = f"handler must be an async function of one argument, the stream, which {show(handler)} is not"
            raise TypeError(msg)
        check_argument("stranded", stranded, StrandedPeers)
        check_arguments(monitor=monitor)
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
        self._record = record_of(monitor)
        self._flood = RateLimitedLog(_log, "handshakes refused")
        self._uses = ExitStack()
        self._holders = 0
        self.closed = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The manager is in use for the length of the block, and then as long as handlers run.

        Raises:
            CertificateError: its key pair is unusable for a server.
            RuntimeError: its monitor is another server's.
        """
        with ExitStack() as uses:
            uses.enter_context(self._record.of(self.managers))
            uses.enter_context(self.managers.use())
            self._uses = uses.pop_all()
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
                    where = shown(listener)
                    self._record.listens_on.append(where)  # here: the task begins later
                    nursery.start_soon(self._accept_from, listener, where, handlers)
                started()
        finally:
            await close_all(listeners)  # noqa: ASYNC102 -- shielded in there

    @trio.lowlevel.enable_ki_protection  # see accept_forever
    async def _accept_from(self, listener: AnyListener, where: str, handlers: trio.Nursery) -> None:
        try:
            while True:
                try:
                    transport: trio.abc.Stream = await accept_patiently(listener, where)
                except trio.ClosedResourceError:
                    self.closed = True
                    return
                self._hold()  # here: the task begins later
                try:
                    handlers.start_soon(self._handle, transport, where, handlers, name=f"a TLS connection on {where}")
                except BaseException:  # the caller's nursery may be closed
                    self._release()
                    await trio.aclose_forcefully(transport)
                    raise
        finally:
            self._record.listens_on.remove(where)

    async def _handle(self, transport: trio.abc.Stream, where: str, handlers: trio.Nursery) -> None:
        try:
            stream = await self._shake_hands(transport, where)
            if stream is not None:
                try:
                    await trio.lowlevel.checkpoint()
                    await self._run_handler(stream, handlers)
                finally:
                    # What its transport raises is no matter of the handler's, nor of the server's.
                    await contained(stream.aclose, _log, "closing a stream")  # noqa: ASYNC102 -- closes, cancelled too
        finally:
            self._release()

    async def _run_handler(self, stream: TLSStream, handlers: trio.Nursery) -> None:
        """The handler, while the stream stands in the ledger of the manager that served it."""

        def end(error: PeerUnverifiedError) -> None:
            if not break_off(stream, error):
                close = partial(trio.aclose_forcefully, stream)
                handlers.start_soon(contained, close, _log, "closing a stream")

        manager = self.managers.manager(stream.server_name)
        assert manager is not None  # its contexts were taken
        publisher, live = publisher_of(manager), LiveStream.of(stream)
        self._record.live[live] = manager
        try:
            try:
                publisher.attach(live, end, stranded=self._stranded)
            except Exception:  # noqa: BLE001 -- logged in full; not a peer's fault, and it costs one connection
                _log.exception("a client's certificate could not be judged anew", address=stream.peer_address)
                return
            if not is_broken_off(stream):
                await self._handler(stream)
        finally:
            del self._record.live[live]
            publisher.detach(live)

    async def _shake_hands(self, transport: trio.abc.Stream, where: str) -> TLSStream | None:
        try:
            with (
                self._admission.admitted(address_of(transport)) as ticket,
                self._record.counters.handshake(Side.ACCEPT) as on_taken,
            ):
                stream = await accept_tls(
                    transport,
                    self._source,
                    alpn=self._alpn,
                    handshake_timeout=self._handshake_timeout,
                    ticket=ticket,
                    on_taken=on_taken,
                )
            return TLSStream(stream)
        except HandshakeError as exc:
            if exc.reason == HandshakeReason.SILENT:
                _log.debug("handshake on %s: %s", where, exc, acceptor=where, error=exc)
            else:
                self._flood.warning("handshake refused on %s: %s", where, exc, acceptor=where, error=exc)
        except Exception:  # noqa: BLE001 -- logged in full; not a peer's fault but ours, and it costs one connection
            _log.exception("a handshake on %s failed in an unexpected way", where, acceptor=where)
        return None
