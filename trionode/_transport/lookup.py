"""From a host name to addresses, without holding up anything else.

Theory. `getaddrinfo` blocks a thread, for 30 s and more where name servers do not answer, and cannot be interrupted: a
dial that was given up leaves its thread behind. With Trio's default limiter 40 such names stop every other dial, and
everything else that uses `trio.to_thread`. So look-ups have a limiter of their own, each host has one thread at most
(dials of a host whose look-up hangs wait for that, rather than leave more behind), and a look-up ends before the
deadline of the dial, so that the error says what took so long. Numeric hosts need no thread. A hostname resolver that
the application has given to Trio (`trio.socket.set_custom_hostname_resolver`) is asked in place of all this.
"""

from __future__ import annotations

import math
import socket
from socket import getaddrinfo
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import trio

from trionode._util.exhausted import exhausted
from trionode._util.threads import Purpose, limiter

if TYPE_CHECKING:
    from socket import AddressFamily

#: Family and socket address, as `connect` takes it.
SocketAddress: TypeAlias = "tuple[AddressFamily, tuple[Any, ...]]"

#: Of the time that is left for a dial, the share that its look-up may take.
_SHARE: Final = 0.8


@final
class LookupTimeoutError(socket.gaierror):
    """The name servers did not answer in time."""


@final
class LookupExhaustedError(OSError):
    """There is nothing left to look up with, a descriptor mostly: our fault, whatever the name."""


async def look_up(host: str, port: int) -> list[SocketAddress]:
    """The addresses of a host, in the order in which the system would try them.

    Cancelling leaves the thread to itself; it goes on counting against the limit until it ends.

    Args:
        host: a DNS name.
        port: goes into the addresses.

    Raises:
        LookupTimeoutError: no answer within four fifths of the time until the deadline that is in force.
        LookupExhaustedError: this process, or machine, has no descriptors left.
        socket.gaierror: the name does not resolve.
    """
    left = trio.current_effective_deadline() - trio.current_time()
    with trio.move_on_after(math.inf if left == math.inf else left * _SHARE):
        custom = trio.socket.set_custom_hostname_resolver(None)
        trio.socket.set_custom_hostname_resolver(custom)
        if custom is not None:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        else:
            found = await trio.to_thread.run_sync(
                _ask,
                host,
                port,
                abandon_on_cancel=True,
                limiter=_OnePerHost(host),  # type: ignore[arg-type]  # Trio wants these two methods of it, no more
            )
        return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    msg = f"no answer from the name servers within {left * _SHARE:.3g} s"
    raise LookupTimeoutError(socket.EAI_AGAIN, msg)


def _ask(host: str, port: int) -> list[Any]:
    """Blocks. glibc says of a process without descriptors that the name is unknown, so that is found out here."""
    try:
        return getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as failure:
        try:
            socket.socket().close()
        except OSError as exc:
            if exhausted(exc) is not None:
                raise LookupExhaustedError(exc.errno, exc.strerror) from failure
        raise


@final
class _OnePerHost:
    """A limiter that has one place for each host, and beyond that the places of all look-ups together."""

    def __init__(self, host: str) -> None:
        self._host = host

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        places = _places()
        place = places.setdefault(self._host, trio.CapacityLimiter(1))
        await place.acquire_on_behalf_of(borrower)
        try:
            await limiter(Purpose.LOOKUPS).acquire_on_behalf_of(borrower)
        except BaseException:
            self._give_back(place, borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        limiter(Purpose.LOOKUPS).release_on_behalf_of(borrower)
        self._give_back(_places()[self._host], borrower)

    def _give_back(self, place: trio.CapacityLimiter, borrower: object) -> None:
        place.release_on_behalf_of(borrower)
        if place.borrowed_tokens == 0 and place.statistics().tasks_waiting == 0:
            del _places()[self._host]


_hosts: trio.lowlevel.RunVar[dict[str, trio.CapacityLimiter]] = trio.lowlevel.RunVar("trionode.hosts_looked_up")


def _places() -> dict[str, trio.CapacityLimiter]:
    try:
        return _hosts.get()
    except LookupError:
        places: dict[str, trio.CapacityLimiter] = {}
        _hosts.set(places)
        return places
