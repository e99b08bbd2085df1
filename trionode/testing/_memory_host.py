"""One machine of a network in memory: its names, its ports and what listens there."""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import ListenError
from trionode._identity.names import host_address, unbracketed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trionode._transport.interfaces import Listener
    from trionode._util.text import Address

    from ._memory_stream import MemoryStream

__all__ = ["MemoryHost"]

LOOPBACK: Final = "127.0.0.1"
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 -- nothing real listens there
#: The first of the ports that are drawn (RFC 6335 section 6).
_FIRST_FREE_PORT: Final = 49152


@final
class MemoryListener:
    """A listener on one port."""

    def __init__(self, address: Address, closed: Callable[[], object]) -> None:
        self.address: Address = address
        self._closed: Callable[[], object] | None = closed
        self._entering: deque[MemoryStream] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    def enter(self, stream: MemoryStream) -> None:
        """Take a connection that has arrived; if the listener was closed meanwhile, reset it."""
        if self._closed is None:
            stream.close(abort=True)
            return
        self._entering.append(stream)
        self._changed.unpark()

    async def accept(self) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        while self._closed is not None:
            if self._entering:
                return self._entering.popleft()
            await self._changed.park()
        msg = f"the listener on {self.address[0]} port {self.address[1]} was closed"
        raise trio.ClosedResourceError(msg)

    def close(self) -> None:
        if self._closed is not None:
            self._closed()
            self._closed = None
            while self._entering:
                self._entering.popleft().close(abort=True)
            self._changed.unpark_all()


@final
class Ports:
    """The ports of one host: those that have a listener, and the next free one."""

    def __init__(self) -> None:
        self._listeners: dict[Address, MemoryListener] = {}
        self._next = _FIRST_FREE_PORT

    @property
    def listening(self) -> Sequence[Address]:
        """Every (host, port) that has a listener."""
        return tuple(self._listeners)

    def listener(self, address: str, port: int) -> MemoryListener | None:
        """The listener that a connection to this address and port reaches, if there is one."""
        return self._listeners.get((address, port)) or self._listeners.get((_EVERYWHERE, port))

    def is_taken(self, address: str, port: int) -> bool:
        """Whether there is a listener already that conflicts with one on this address and port."""
        return any(
            taken == port and (_EVERYWHERE in (address, where) or address == where) for where, taken in self._listeners
        )

    def open(self, address: str, port: int) -> MemoryListener:
        """Listen on an address and port, which must be free."""
        key = (address, port)
        listener = self._listeners[key] = MemoryListener(key, lambda: self._listeners.pop(key))
        return listener

    def draw(self) -> int:
        """A free port, for a listener on port 0 or for a connection that is dialled."""
        taken = {port for _, port in self._listeners}
        while True:
            port = self._next
            self._next = port + 1 if port < 65535 else _FIRST_FREE_PORT
            if port not in taken:
                return port


@final
class MemoryHost:
    """One machine on a `MemoryNetwork`: a `Transport` for the nodes that run there; made by `MemoryNetwork.host`.

    Attributes:
        address: its address, IPv6 without brackets.
        names: the names that resolve to it, and its address.
    """

    def __init__(
        self, address: str, ports: Ports, connect: Callable[[MemoryHost, str, int], Awaitable[MemoryStream]]
    ) -> None:
        self.address: str = address
        self.names: frozenset[str] = frozenset((address,))
        self._ports = ports
        self._connect = connect

    def __repr__(self) -> str:
        return f"<MemoryHost {', '.join([self.address, *sorted(self.names - {self.address})])}>"

    async def listen(
        self, host: str | None, port: int, *, port_range: int = 1, only_local: bool = False
    ) -> Sequence[Listener]:
        """See `Transport.listen`.

        Raises:
            ListenError: no port of the range is free, or the host is another than this.
        """
        await trio.lowlevel.checkpoint()
        shown = host or "*"
        address = self._own_address(host)
        if address is None:
            hint = "this machine's" if only_local else "one that this machine could listen on"
            msg = (
                f"cannot listen: no address of {shown} is {hint} ({self!r}). Give the node the transport "
                f"network.host({shown!r}), or set host= in AcceptorOptions"
            )
            raise ListenError(msg, address=(shown, port), tried=[(shown, port)])
        ports = [self._ports.draw()] if port == 0 else range(port, min(port + port_range, 65536))
        for candidate in ports:
            if not self._ports.is_taken(address, candidate):
                return [self._ports.open(address, candidate)]
        cause = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        msg = f"cannot listen on {shown}, tried port {', '.join(map(str, ports))}: {cause.strerror}"
        raise ListenError(msg, address=(shown, port), tried=[(shown, each) for each in ports]) from cause

    async def connect(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        """See `Transport.connect`.

        Raises:
            OSError: the name does not resolve (`socket.gaierror`), no host has the address (EHOSTUNREACH), or nothing
                listens there (ECONNREFUSED). While packets are lost (`partition`) it waits.
        """
        await trio.lowlevel.checkpoint()
        return await self._connect(self, host, port)

    @property
    def listening(self) -> Sequence[Address]:
        """Every (host, port) where something listens on this host."""
        return self._ports.listening

    def _own_address(self, host: str | None) -> str | None:
        """What a listener on `host` is bound to; None if that is another machine."""
        if host is None:
            return _EVERYWHERE
        address = host_address(host)
        if address is not None and address.is_unspecified:
            return _EVERYWHERE
        if is_loopback(host):
            return LOOPBACK
        return self.address if unbracketed(host) in self.names else None


def is_loopback(host: str) -> bool:
    """Whether a canonical host is every machine's name for itself."""
    address = host_address(host)
    return host == "localhost" if address is None else address.is_loopback
