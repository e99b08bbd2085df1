"""Admission: how many handshakes may be in progress, and which is shed when there are more.

Theory. Before a handshake is done the peer is unknown, and each costs a descriptor, a task and, once bytes came, TLS
state. So their number is capped, as a whole and for each source address; the deadline alone would let a flood hold
everything for its length. At the limit it is not the newcomer that is turned away, which would let the first to come
keep all others out, but the oldest handshake in the earliest stage is shed: first those without a ClientHello (silent,
dripping or talking nonsense), then those without a finished TLS handshake, then those without a finished hello. An
honest handshake is past its first stage with its first bytes.

A source is an address; of an IPv6 address the network (/64), since one host has as many addresses as it likes.
"""

from __future__ import annotations

import ipaddress
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trionode._util.text import Address

#: Handshakes in progress at once, by default: some thousand descriptors are what most systems give a process.
MAX_HANDSHAKES: Final = 512
#: Of these, from one address, by default: whole clusters start anew behind one.
MAX_HANDSHAKES_PER_ADDRESS: Final = 128


class Progress(IntEnum):
    """The stages of a handshake; those in the earliest are shed first."""

    SILENT = 0
    TLS = 1
    HELLO = 2


@final
@dataclass(slots=True, eq=False)
class Ticket:
    """The place of one handshake.

    Attributes:
        source: the address or network that it comes from.
        progress: how far it has come.
        scope: around the handshake; cancelled when it is shed.
        shed: whether it was.
    """

    source: str
    progress: Progress = Progress.SILENT
    scope: trio.CancelScope | None = None
    shed: bool = False

    def begin(self, scope: trio.CancelScope) -> None:
        """The handshake runs in this scope, which is cancelled at once if it was shed meanwhile."""
        self.scope = scope
        if self.shed:
            scope.cancel()


@final
class Admission:
    """The handshakes in progress, and their limits."""

    def __init__(self, *, limit: int = MAX_HANDSHAKES, per_address: int = MAX_HANDSHAKES_PER_ADDRESS) -> None:
        """Make one.

        Args:
            limit: how many may be in progress at once.
            per_address: how many of these may come from one address.
        """
        self._limit = limit
        self._per_address = per_address
        # By source, each in order of arrival.
        self._in_progress: dict[str, dict[Ticket, None]] = {}
        self._count = 0
        self._ended = trio.Event()
        #: How many were shed so far.
        self.shed: int = 0

    @property
    def under_way(self) -> int:
        """How many are in progress; those that were shed are not counted."""
        return self._count

    @contextmanager
    def admitted(self, address: Address | None) -> Iterator[Ticket]:
        """A place for the length of the block; at a limit, shed the oldest handshake in the earliest stage for it."""
        ticket = Ticket(_source(address))
        same = self._in_progress.setdefault(ticket.source, {})
        if len(same) >= self._per_address:
            self._shed(_oldest_in_earliest_stage(same))
        elif self._count >= self._limit:
            self._shed(_oldest_in_earliest_stage(each for tickets in self._in_progress.values() for each in tickets))
        same = self._in_progress.setdefault(ticket.source, {})  # shedding may have dropped it
        same[ticket] = None
        self._count += 1
        try:
            yield ticket
        finally:
            self._remove(ticket)

    async def wait_settled(self, patience: float) -> None:
        """Wait until those in progress have ended; for those without a ClientHello, `patience` seconds at most."""
        with trio.move_on_after(patience):
            while self._count:
                await self._ended.wait()
        while any(ticket.progress > Progress.SILENT for each in self._in_progress.values() for ticket in each):
            await self._ended.wait()

    def _shed(self, ticket: Ticket) -> None:
        self._remove(ticket)
        self.shed += 1
        ticket.shed = True
        if ticket.scope is not None:
            ticket.scope.cancel()

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._in_progress.get(ticket.source, {})
        if ticket in tickets:
            del tickets[ticket]
            self._count -= 1
            self._ended.set()
            self._ended = trio.Event()
        if not tickets:
            self._in_progress.pop(ticket.source, None)


def _oldest_in_earliest_stage(tickets: Iterable[Ticket]) -> Ticket:
    """The oldest in the earliest stage: they are in order of arrival."""
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
