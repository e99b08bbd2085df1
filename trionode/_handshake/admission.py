"""Admission: how many handshakes may be under way, and who has to go when there are more.

Theory. Before a handshake is done nobody knows who is there, and each costs a descriptor, a task and, once bytes came,
TLS state. So their number is capped, as a whole and for each source address; the deadline alone would let a flood hold
everything for its length. At a cap it is not the newcomer that is turned away, which would let whoever came first keep
everybody out, but the oldest of those that have come least far: first who has not sent a ClientHello, silent, dripping
or talking nonsense; then who has not finished TLS; then who has not finished the hello. An honest handshake is past its
first stage with its first bytes.

An address is a source; of an IPv6 address the network (/64), since one host has as many of those as it likes.
"""

from __future__ import annotations

import ipaddress
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import trio

    from trionode._util.text import Address

#: Handshakes under way at once, by default: some thousand descriptors are what most systems give a process.
MAX_HANDSHAKES: Final = 512
#: Of these, from one address, by default: whole clusters start anew behind one.
MAX_HANDSHAKES_PER_ADDRESS: Final = 128


class Progress(IntEnum):
    """How far a handshake has come: who has come least far goes first."""

    SILENT = 0
    TLS = 1
    HELLO = 2


@final
@dataclass(slots=True, eq=False)
class Ticket:
    """One handshake's place.

    Attributes:
        source: where it comes from.
        progress: how far it has come.
        scope: cancelled when it has to go.
        shed: whether it has to.
    """

    source: str
    progress: Progress = Progress.SILENT
    scope: trio.CancelScope | None = None
    shed: bool = False

    def begin(self, scope: trio.CancelScope) -> None:
        """The handshake runs in this scope."""
        self.scope = scope
        if self.shed:
            scope.cancel()


@final
class Admission:
    """The handshakes that are under way."""

    def __init__(self, *, limit: int = MAX_HANDSHAKES, per_address: int = MAX_HANDSHAKES_PER_ADDRESS) -> None:
        """Make one.

        Args:
            limit: how many may be under way at once.
            per_address: how many of these may come from one address.
        """
        self._limit = limit
        self._per_address = per_address
        # By source, each in order of arrival.
        self._under_way: dict[str, dict[Ticket, None]] = {}
        self._count = 0
        #: How many had to go so far.
        self.shed: int = 0

    @property
    def under_way(self) -> int:
        """How many are under way; those that have to go are not counted."""
        return self._count

    @contextmanager
    def admitted(self, address: Address | None) -> Iterator[Ticket]:
        """A place for the length of the block; whoever has come least far gives up his, if there is none."""
        ticket = Ticket(_source(address))
        same = self._under_way.setdefault(ticket.source, {})
        if len(same) >= self._per_address:
            self._shed(_least(same))
        elif self._count >= self._limit:
            self._shed(_least(each for tickets in self._under_way.values() for each in tickets))
        same = self._under_way.setdefault(ticket.source, {})  # shedding may have dropped it
        same[ticket] = None
        self._count += 1
        try:
            yield ticket
        finally:
            self._remove(ticket)

    def _shed(self, ticket: Ticket) -> None:
        self._remove(ticket)
        self.shed += 1
        ticket.shed = True
        if ticket.scope is not None:
            ticket.scope.cancel()

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._under_way.get(ticket.source, {})
        if ticket in tickets:
            del tickets[ticket]
            self._count -= 1
        if not tickets:
            self._under_way.pop(ticket.source, None)


def _least(tickets: Iterable[Ticket]) -> Ticket:
    """Who has come least far; of several the oldest, which comes first."""
    return min(tickets, key=lambda ticket: ticket.progress)


def _source(address: Address | None) -> str:
    return _network(address[0].partition("%")[0]) if address is not None else ""


@lru_cache(maxsize=1024)
def _network(host: str) -> str:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host  # of a transport that has addresses of another kind
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped or ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)
