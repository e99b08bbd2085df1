"""TLS streams without nodes: the same managers serve any protocol on Trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

from trionode._handshake.accept import accept_tls
from trionode._handshake.dial import dial_tls
from trionode._managers.manager import publisher_of
from trionode._transport.sockets import address_of

from ._errors import HandshakeError, HandshakeReason
from ._handshake.admission import Admission
from ._handshake.connect import connect
from ._identity.names import canonical_host
from ._transport.interfaces import accept_forever
from ._transport.tcp import TCPListener, open_listeners
from ._util.log import Log
from ._util.rate_limited_log import FloodGate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._managers.manager import CertManager
    from ._tls.stream import TLSStream

__all__ = ["open_tls_stream", "serve_tls"]

_log = Log("trionode.acceptor")
_security_log = Log("trionode.security")


async def serve_tls(
    handler: Callable[[TLSStream], Awaitable[object]],
    port: int,
    *,
    cert_manager: CertManager,
    host: str | None = None,
    alpn: Sequence[str] = (),
    handshake_timeout: float = 10,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve TLS on a TCP port, as `trio.serve_tcp` serves plain TCP; each handshake takes the manager's contexts.

    Runs until cancelled. Each connection has a task of its own from the accept on; its stream is closed when the
    handler returns. A failed handshake is logged and ends only that connection; an exception in a handler propagates,
    as with `trio.serve_tcp`. At most 512 handshakes are under way at once, 128 of one address; of more, the oldest of
    those that have come least far are ended.

    Args:
        handler: called with each stream whose handshake is done.
        port: to listen on; 0 draws a free one, the same for IPv4 and IPv6.
        cert_manager: in use while this runs.
        host: name or address to listen on; None for all interfaces.
        alpn: protocols in order of preference; a client that offers only others is refused.
        handshake_timeout: from the accept to the end of the handshake, seconds.
        task_status: `started()` gets the list of listeners.

    Raises:
        CertificateError: the manager's key pair is unusable for a server.
        ListenError: the port cannot be had.
        ValueError: `host`, `port` or `alpn` cannot be one.
    """
    host = None if host is None else canonical_host(host)
    _check_port(port, lowest=0)
    protocols = _protocols(alpn)
    flood = FloodGate(_log, f"handshakes refused on port {port}")
    admission = Admission()
    with publisher_of(cert_manager).use(as_server=True):
        listeners = await open_listeners(host, port)

        async def handle(transport: trio.abc.Stream) -> None:
            try:
                with admission.admitted(address_of(transport)) as ticket:
                    stream = await accept_tls(
                        transport,
                        cert_manager.contexts,
                        alpn=protocols,
                        handshake_timeout=handshake_timeout,
                        ticket=ticket,
                    )
            except HandshakeError as exc:
                if exc.reason == HandshakeReason.SILENT:
                    _log.debug("handshake: %s", exc)
                else:
                    flood.warning("handshake refused: %s", exc)
                return
            async with stream:
                await handler(stream)

        try:
            async with trio.open_nursery() as nursery:

                def take(transport: trio.abc.Stream) -> None:
                    nursery.start_soon(handle, transport)

                for listener in listeners:
                    nursery.start_soon(accept_forever, TCPListener(listener), take)
                task_status.started(listeners)
        finally:
            for listener in listeners:
                listener.socket.close()
    raise AssertionError("accept loops end by cancellation only")  # pragma: no cover


async def open_tls_stream(
    host: str,
    port: int,
    *,
    cert_manager: CertManager,
    server_name: str | None = None,
    alpn: Sequence[str] = (),
    insecure_skip_verify: bool = False,
    handshake_timeout: float = 10,
    connect_timeout: float = 10,
) -> TLSStream:
    """Connect to a TLS server; the handshake is done and the server verified when this returns.

    Whether the server accepts our certificate shows at the first `receive_some` (TLS 1.3 lets the client finish
    first): it then raises `BrokenResourceError` whose `__cause__` is a `PeerRejectedError`. Cancelling ends the attempt
    and leaves nothing open.

    Args:
        host: DNS name or address to connect to.
        port: TCP port.
        cert_manager: in use during the handshake.
        server_name: the name that the certificate must cover; by default the manager's, else `host`.
        alpn: protocols to offer; what was agreed on is in `stream.alpn`.
        insecure_skip_verify: accept any certificate under any name. Logged as a warning.
        handshake_timeout: for contexts and TLS, seconds.
        connect_timeout: for DNS and TCP, seconds.

    Raises:
        HandshakeError: it failed; see its subclasses for how.
        CertificateError: the manager's key pair is unusable, or there are no system CAs where they are needed.
        ValueError: `host` or `server_name` is neither a DNS name nor an address, or `port` or `alpn` cannot be one.
    """
    host = canonical_host(host)
    _check_port(port, lowest=1)
    protocols = _protocols(alpn)
    reference = None if server_name is None else canonical_host(server_name)
    if insecure_skip_verify:
        _security_log.warning("insecure_skip_verify: the server at %s port %d is not verified", host, port)
    with publisher_of(cert_manager).use(as_server=False):
        transport = await connect(host, port, connect_timeout=connect_timeout)
        return await dial_tls(
            transport,
            cert_manager.contexts,
            host=host,
            server_name=reference,
            alpn=protocols,
            insecure_skip_verify=insecure_skip_verify,
            handshake_timeout=handshake_timeout,
        )


def _check_port(port: int, *, lowest: int) -> None:
    if not lowest <= port <= 65535:  # the system would take the rest of a division, and connect elsewhere
        msg = f"a port is from {lowest} to 65535, not {port}"
        raise ValueError(msg)


def _protocols(alpn: Sequence[str]) -> tuple[str, ...]:
    """Protocols as they can go on the wire (RFC 7301 section 3.1), checked before a handshake has to fail of them."""
    if isinstance(alpn, str):
        msg = f"alpn is a sequence of protocols, not one: give [{alpn!r}]"
        raise TypeError(msg)
    for protocol in alpn:
        if not protocol.isascii() or not 1 <= len(protocol) <= 255:
            msg = f"an application protocol has 1 to 255 ASCII characters, which {protocol!r} has not"
            raise ValueError(msg)
    return tuple(alpn)
