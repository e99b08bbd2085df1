"""TCP: listening sockets whose `accept` survives whatever a peer or the system does, and connections.

Trio's own `open_tcp_listeners` gives IPv4 and IPv6 different ports where port 0 is asked for, cannot skip addresses
that are not local, and its `serve_listeners` ends with the first accept error that it does not know.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import ListenError
from trionode._identity.names import host_address, unbracketed
from trionode._util.exhausted import exhausted
from trionode._util.home import close_in_children
from trionode._util.text import Address, place

from .connecting import connect_tcp
from .interfaces import accept_patiently
from .lookup import look_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .interfaces import Listener

#: How often another free port is drawn because the first is taken in another address family; for port 0 only.
_PORT_DRAWS: Final = 10
_BACKLOG: Final = 1024
#: How long the look-up of a name to listen on may take; it says so after four fifths of that. Seconds.
_LOOKUP_TIME: Final = 10.0


async def open_listeners(
    host: str | None, port: int, *, port_range: int = 1, only_local: bool = False, reuse_port: bool = False
) -> list[trio.SocketListener]:
    """Listen on every address of a host, all on one port.

    Args:
        host: a DNS name or an address, brackets or not; None for all interfaces, IPv4 and IPv6.
        port: the first port to try; 0 draws a free one.
        port_range: how many consecutive ports to try, from `port` on.
        only_local: skip addresses of the host that are not this machine's.
        reuse_port: share the port with other sockets that were opened so (`SO_REUSEPORT`).

    Raises:
        ListenError: no port of the range can be had, the host has no (local) address, or the system cannot share ports.
    """
    shown = host or "*"
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        msg = f"cannot listen on {shown}: this system has no SO_REUSEPORT, which reuse_port needs"
        raise ListenError(msg, address=(shown, port))
    try:
        hosts = await _addresses(host, port)
    except (OSError, trio.TooSlowError) as exc:
        remedy = exhausted(exc) or "Give an address, or host='0.0.0.0'"
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        msg = f"cannot listen on {shown}: the name does not resolve ({why}). {remedy}"
        raise ListenError(msg, address=(shown, port)) from exc
    draws = _PORT_DRAWS if port == 0 else 1
    tried: list[Address] = []
    failure: OSError | None = None
    for candidate in [port] * draws if port == 0 else range(port, min(port + port_range, 65536)):
        tried.append((shown, candidate))
        try:
            listeners = await _listen_on_all(hosts, candidate, only_local=only_local, reuse_port=reuse_port)
        except OSError as exc:
            failure = exc
            if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
        else:
            if listeners:
                return listeners
            msg = (
                f"cannot listen: no address of {shown} is this machine's ({', '.join(str(h) for _, h in hosts)}). Set "
                'host="0.0.0.0" (or "::") in AcceptorOptions to listen on all interfaces, or an address that is local'
            )
            raise ListenError(msg, address=(shown, port), tried=tried)
    assert failure is not None
    ports = ", ".join(str(p) for _, p in dict.fromkeys(tried))
    match failure.errno:
        case errno.EADDRNOTAVAIL:
            remedy = "Give an address of this machine, or host='0.0.0.0' (or '::') for all that it has"
        case errno.EACCES:
            remedy = "Ports below 1024 are for root and for processes with CAP_NET_BIND_SERVICE: choose a higher one"
        case _:
            remedy = exhausted(failure) or "Choose another port, widen port_range, or port=0 for any free one"
    msg = f"cannot listen on {shown}, tried port {ports}: {failure.strerror or failure}. {remedy}"
    raise ListenError(msg, address=(shown, port), tried=tried) from failure


async def _addresses(host: str | None, port: int) -> list[tuple[int, str]]:
    """The addresses to listen on: of a name, in time and without holding up other look-ups."""
    if host is not None and host_address(host) is None:
        with trio.fail_after(_LOOKUP_TIME):  # which the look-up itself does not wait for
            found = await look_up(host, port)
    else:
        passive = trio.socket.AI_PASSIVE if host is None else 0
        bare = None if host is None else unbracketed(host)
        answers = await trio.socket.getaddrinfo(bare, port, type=trio.socket.SOCK_STREAM, flags=passive)
        found = [(family, address) for family, _, _, _, address in answers]
    return list(dict.fromkeys((family, str(address[0])) for family, address in found))


async def _listen_on_all(
    hosts: Sequence[tuple[int, str]], port: int, *, only_local: bool, reuse_port: bool
) -> list[trio.SocketListener]:
    with ExitStack() as undo:
        listeners: list[trio.SocketListener] = []
        for family, host in hosts:
            try:
                sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
            except OSError as exc:
                if exc.errno == errno.EAFNOSUPPORT:  # a name with an IPv6 address on a machine without IPv6
                    continue
                raise
            undo.callback(sock.close)
            close_in_children(sock)
            if sys.platform != "win32":  # there it would mean that any process may share the port
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(trio.socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == trio.socket.AF_INET6:
                sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
            try:
                await sock.bind((host, port))
            except OSError as exc:
                if only_local and exc.errno == errno.EADDRNOTAVAIL:
                    sock.close()
                    continue
                raise
            sock.listen(_BACKLOG)
            listeners.append(trio.SocketListener(sock))
            port = port or sock.getsockname()[1]
        undo.pop_all()
    return listeners


@final
class TCPListener:
    """A listening socket whose `accept` fails only once it was closed.

    Attributes:
        address: the (host, port) that it is bound to.
    """

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        close_in_children(listener.socket)
        host, port, *_ = listener.socket.getsockname()
        self.address: Address = host, port

    async def accept(self) -> trio.SocketStream:
        """The next connection; see `accept_patiently`.

        Raises:
            trio.ClosedResourceError: the listener was closed.
        """
        return await accept_patiently(self._listener, place(self.address))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._listener.socket.close()


@final
class _TCP:
    """The default transport."""

    async def listen(
        self, host: str | None, port: int, *, port_range: int, only_local: bool, reuse_port: bool = False
    ) -> Sequence[Listener]:
        listeners = await open_listeners(
            host, port, port_range=port_range, only_local=only_local, reuse_port=reuse_port
        )
        return [TCPListener(listener) for listener in listeners]

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        return await connect_tcp(host, port)


TCP: Final = _TCP()
