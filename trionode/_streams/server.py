"""The accepting side: TLS on a port, on any listeners, or over a stream that was accepted already.

Theory. A server's accept loops live in the function that serves, its connections in a nursery of handlers: its own, or
one that the caller gives and that outlives it. So closing the listeners ends accepting, and nothing else. Each
connection has a task from the accept on, which takes contexts of its own; admission bounds how many handshakes are
under way. The managers are in use from before the first listener is opened until the last of accept loops and handlers
is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from trionode._handshake.accept import accept_tls
from trionode._handshake.admission import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS, Admission
from trionode._identity.names import canonical_host
from trionode._managers.by_name import ManagersByName, ServerManagers
from trionode._managers.trust import StrandedPeers
from trionode._transport.tcp import open_listeners
from trionode._util.log import Log

from .arguments import check_arguments, check_port, protocols
from .listeners import close_all, usable_among
from .stream import TLSStream
from .tls_server import TLSServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .listeners import AnyListener
    from .monitor import ServerMonitor

_log: Final = Log("trionode.acceptor")


async def serve_tls(
    handler: Callable[[TLSStream], Awaitable[object]],
    port: int,
    *,
    cert_manager: ServerManagers,
    host: str | None = None,
    alpn: Sequence[str] = (),
    reuse_port: bool = False,
    handshake_timeout: float = 10,
    max_handshakes: int = MAX_HANDSHAKES,
    max_handshakes_per_address: int = MAX_HANDSHAKES_PER_ADDRESS,
    stranded: StrandedPeers = StrandedPeers.KEEP,
    monitor: ServerMonitor | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve TLS on a TCP port, as `trio.serve_tcp` serves plain TCP; each handshake takes the manager's contexts.

    Each connection has a task of its own from the accept on; its stream is closed when the handler returns. A failed
    handshake is logged and ends only that connection; an exception in a handler propagates, as with `trio.serve_tcp`.

    Ends when its listeners are closed, normally, once the handlers in a nursery of its own are done: close them, wait,
    and cancel what has not ended by then is a graceful stop. Cancelled, it closes the listeners, and ends the handlers
    in its own nursery.

    Args:
        handler: called with each stream whose handshake is done.
        port: to listen on; 0 draws a free one, the same for IPv4 and IPv6.
        cert_manager: in use until this has returned, and the last handler has. Or a mapping of server names to
            managers: `{"a.example": one, "*.b.example": two, "*": three}`. Each handshake takes the contexts of the one
            that the client asks for (SNI): an exact name, else `*.` for one label, else `*`, which is for clients
            without a name, too. A name that none is for is refused with the alert `unrecognized_name`.
        host: name or address to listen on; None for all interfaces.
        alpn: protocols in order of preference; a client that offers only others is refused.
        reuse_port: share the port with other sockets that were opened so, see `AcceptorOptions`. For sockets that are
            open already there is `serve_tls_listeners`.
        handshake_timeout: from the accept to the end of the handshake, seconds.
        max_handshakes: handshakes in progress at once. At the limit, the oldest in the earliest stage is shed.
        max_handshakes_per_address: of these, from one source address (of IPv6, one /64 network).
        stranded: what becomes of streams whose client's certificate new trust does not accept (`rotate_trust`): `KEEP`,
            or `CLOSE`. Those of revoked clients end in any case. The handler then meets a `BrokenResourceError` whose
            `__cause__` is a `PeerUnverifiedError`.
        monitor: knows what this server does, see `ServerMonitor`.
        handler_nursery: runs the handshakes and handlers, and may outlive this; None for a nursery of its own.
        task_status: `started()` gets the list of listeners.

    Raises:
        CertificateError: the manager's key pair is unusable for a server.
        ListenError: the port cannot be had.
        RuntimeError: the monitor is another server's, which has not ended.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    check_arguments(handshake_timeout=handshake_timeout, reuse_port=reuse_port)
    if host is not None:
        check_arguments(host=host)
        host = canonical_host(host)
    check_port(port, lowest=0)
    server = TLSServer(
        handler,
        cert_manager,
        alpn=protocols(alpn),
        handshake_timeout=handshake_timeout,
        admission=admission(max_handshakes, max_handshakes_per_address),
        stranded=stranded,
        monitor=monitor,
    )
    with server.in_use():
        listeners = await open_listeners(host, port, reuse_port=reuse_port)
        await server.run(listeners, handler_nursery, lambda: task_status.started(listeners))


async def serve_tls_listeners(
    handler: Callable[[TLSStream], Awaitable[object]],
    listeners: Sequence[AnyListener],
    *,
    cert_manager: ServerManagers,
    alpn: Sequence[str] = (),
    handshake_timeout: float = 10,
    max_handshakes: int = MAX_HANDSHAKES,
    max_handshakes_per_address: int = MAX_HANDSHAKES_PER_ADDRESS,
    stranded: StrandedPeers = StrandedPeers.KEEP,
    monitor: ServerMonitor | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[Sequence[AnyListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve TLS on any listeners, as `trio.serve_listeners` serves plain streams; otherwise as `serve_tls`.

    Owns the listeners: they are closed when it ends, however it ends.

    Args:
        handler: called with each stream whose handshake is done.
        listeners: `trio.abc.Listener`s (sockets that were handed over, see `inherited_listeners` and `adopt_listener`;
            UNIX sockets), or those of a `Transport` (the memory
            network's).
        cert_manager: in use until this has returned, and the last handler has; or several by name, see `serve_tls`.
        alpn: protocols in order of preference; a client that offers only others is refused.
        handshake_timeout: from the accept to the end of the handshake, seconds.
        max_handshakes: handshakes in progress at once. At the limit, the oldest in the earliest stage is shed.
        max_handshakes_per_address: of these, from one source address; all that have none count as one.
        stranded: what becomes of streams whose client's certificate new trust does not accept (`rotate_trust`): `KEEP`,
            or `CLOSE`. Those of revoked clients end in any case. The handler then meets a `BrokenResourceError` whose
            `__cause__` is a `PeerUnverifiedError`.
        monitor: knows what this server does, see `ServerMonitor`.
        handler_nursery: runs the handshakes and handlers, and may outlive this; None for a nursery of its own.
        task_status: `started()` gets the listeners.

    Raises:
        CertificateError: the manager's key pair is unusable for a server.
        RuntimeError: the monitor is another server's, which has not ended.
        ValueError: there is no listener.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    usable = usable_among(listeners)
    try:
        if len(usable) < len(listeners):
            msg = "listeners must be trio.abc.Listeners, or those of a Transport, and one item is none"
            raise TypeError(msg)
        if not listeners:
            msg = "there is nothing to serve on: give at least one listener"
            raise ValueError(msg)
        check_arguments(handshake_timeout=handshake_timeout)
        server = TLSServer(
            handler,
            cert_manager,
            alpn=protocols(alpn),
            handshake_timeout=handshake_timeout,
            admission=admission(max_handshakes, max_handshakes_per_address),
            stranded=stranded,
            monitor=monitor,
        )
        with server.in_use():
            await server.run(listeners, handler_nursery, lambda: task_status.started(listeners))
    finally:
        await close_all(usable)  # noqa: ASYNC102 -- shielded in there


async def wrap_server_stream(
    stream: trio.abc.Stream,
    *,
    cert_manager: ServerManagers,
    alpn: Sequence[str] = (),
    handshake_timeout: float = 10,
) -> TLSStream:
    """TLS to a client over a stream that was accepted already; the handshake is done when this returns.

    Owns the stream: it is closed with the `TLSStream` that this returns, and at once where the handshake fails or is
    cancelled, or an argument is refused.

    Args:
        stream: accepted, with nothing of TLS sent or received yet.
        cert_manager: in use during the handshake; or several by name, see `serve_tls`.
        alpn: protocols in order of preference; a client that offers only others is refused.
        handshake_timeout: from the call to the end of the handshake, seconds.

    Raises:
        HandshakeError: it failed; see its subclasses for how.
        CertificateError: the manager's key pair is unusable for a server.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    check_arguments(stream=stream)
    try:
        check_arguments(handshake_timeout=handshake_timeout)
        spoken = protocols(alpn)
        managers = ManagersByName(cert_manager)
        with managers.use():
            secured = await accept_tls(stream, managers.source, alpn=spoken, handshake_timeout=handshake_timeout)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return TLSStream(secured)


def admission(limit: int, per_address: int) -> Admission:
    """What bounds a server's handshakes, of limits that are checked.

    Raises:
        TypeError, ValueError: a limit is not what belongs there.
    """
    check_arguments(max_handshakes=limit, max_handshakes_per_address=per_address)
    return Admission(limit=limit, per_address=per_address)
