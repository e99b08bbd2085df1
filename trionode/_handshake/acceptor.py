"""Acceptors: listen, accept, and spawn one handshake task per connection of the transport.

Theory. Accept loops live in `AcceptLoop.run`, handshakes in a nursery that outlives it: closing the listeners does not
cancel handshakes in progress. Each connection gets its task at once, and takes its contexts when its first bytes are
there: a silent or dripping client delays no other, and when there are too many, such are shed first (`admission`). An
accept loop knows a receive channel of contexts and what to do with a link; it never sees a manager. Whatever a peer or
a handshake does wrong ends neither the loop nor the node. A refusal is logged here; the node makes an event of it
(`_node.runtime`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, final

import trio

from trionode._errors import HandshakeError, HandshakeReason, UnverifiedReason
from trionode._transport.interfaces import accept_forever
from trionode._transport.sockets import address_of
from trionode._util.contained import contained, containing
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import Address, place

from .accept import accept_link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from trionode._connection.link import Link
    from trionode._tls.contexts import ContextsSource
    from trionode._transport.interfaces import Listener

    from .accept import Joined
    from .admission import Admission
    from .exchange import Party

__all__ = ["Acceptor", "AcceptorStatistics"]

_log = Log("trionode.acceptor")


class Refused(Protocol):
    """Called with the error of a handshake that failed."""

    def __call__(self, error: HandshakeError, /) -> None: ...


class Timed(Protocol):
    """Counts and times the handshake inside a `with` block, which calls what that gives once it has its contexts."""

    def __call__(self) -> AbstractContextManager[Callable[[], None]]: ...


def _untimed() -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptorStatistics:
    """A snapshot of one acceptor.

    Attributes:
        accepted: connections of the transport so far.
        handshaking: of these, in their handshake now.
        established: of these, that became a connection, or a new link of one.
        refused: of these, whose handshake failed.
        shed: of these, because there were too many (`max_handshakes`).
    """

    accepted: int
    handshaking: int
    established: int
    refused: int
    shed: int


@dataclass(slots=True)
class _Counts:
    """What `AcceptorStatistics` is a snapshot of."""

    accepted: int = 0
    handshaking: int = 0
    established: int = 0
    refused: int = 0
    shed: int = 0


@final
class Acceptor:
    """One listening endpoint of a node, as its program sees it: where it listens, and what has come in."""

    __slots__ = ("_addresses", "_counts")

    def __init__(self, addresses: tuple[Address, ...], counts: _Counts) -> None:
        self._addresses = addresses
        self._counts = counts

    def __repr__(self) -> str:
        return f"<Acceptor on {', '.join(map(place, self._addresses))}>"

    @property
    def addresses(self) -> Sequence[Address]:
        """Every (host, port) that it listens on; all have the same port, unless it was given its `listeners`."""
        return self._addresses

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self._addresses[0]

    def statistics(self) -> AcceptorStatistics:
        """A snapshot of what it did and does."""
        counts = self._counts
        return AcceptorStatistics(
            accepted=counts.accepted,
            handshaking=counts.handshaking,
            established=counts.established,
            refused=counts.refused,
            shed=counts.shed,
        )


@final
class AcceptLoop:
    """An acceptor at work, for the node that owns it.

    Attributes:
        acceptor: what the node's program sees of it.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        source: ContextsSource,
        party: Party,
        *,
        bind_names: bool,
        handshake_timeout: float,
        admission: Admission,
        established: Callable[[Link, Joined | None], Awaitable[None]],
        refused: Refused,
        timed: Timed = _untimed,
    ) -> None:
        """Take over listeners; nothing is accepted before `run`.

        Args:
            listeners: one at least; closed by `close`.
            source: where each handshake takes its contexts.
            party: what the node says of itself, and how it judges dialers.
            bind_names: whether a verified dialer's certificate has to speak for the node name that it claims.
            handshake_timeout: from the accept to the end of the handshake, seconds.
            admission: bounds the handshakes under way.
            established: called with each link, and what it joins; it owns the link, and returns when that has ended.
            refused: called with the error of each handshake that failed.
            timed: counts and times each handshake.
        """
        self._counts = _Counts()
        self.acceptor: Acceptor = Acceptor(tuple(listener.address for listener in listeners), self._counts)
        self._listeners = tuple(listeners)
        self._source = source
        self._party = party
        self._bind_names = bind_names
        self._handshake_timeout = handshake_timeout
        self._admission = admission
        self._on_established = established
        self._on_refused = refused
        self._timed = timed
        self._where = place(self.acceptor.address)
        self._what = f"a connection on {self._where}"
        self._closed = False
        self._flood = RateLimitedLog(_log, f"handshakes refused on {self._where}")

    def __repr__(self) -> str:
        return f"<AcceptLoop of {self.acceptor!r}>"

    async def run(self, handler_nursery: trio.Nursery) -> None:
        """Accept until cancelled, then close the listeners; handshakes go on in `handler_nursery`.

        Args:
            handler_nursery: runs a task for each handshake, and what comes of it; the caller owns it.
        """

        def take(transport: trio.abc.Stream) -> None:
            self._counts.accepted += 1
            handle = partial(
                contained,
                partial(self.handle, transport),
                _log,
                self._what,
                node=self._party.name,
                acceptor=self._where,
            )
            handler_nursery.start_soon(handle, name=f"handshake with {address_of(transport)}")

        try:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(accept_forever, listener, take, self._where)
        finally:
            self._flood.summarise()
            self.close()

    def close(self) -> None:
        """Close the listeners. Idempotent."""
        self._closed = True
        for listener in self._listeners:
            close = containing(listener.close, _log, f"closing {self._where}", acceptor=self._where)
            close()

    def _report(self, error: HandshakeError) -> None:
        """Log a failed handshake; a flood of them is summarised."""
        if error.reason in (HandshakeReason.SILENT, HandshakeReason.SUPERSEDED, UnverifiedReason.DUPLICATE):
            # No failure of anything: a port scan or a health check says nothing and leaves; a crossing dial lost to a
            # connection that is there; a link was to join a connection that ended just then, or got a later one.
            _log.debug(
                "handshake on %s: %s",
                self._where,
                error,
                node=self._party.name,
                acceptor=self._where,
                error=error,
            )
            return
        if self._closed and error.reason in (HandshakeReason.CLOSED, HandshakeReason.BROKEN):
            # A peer that gives up a node which is stopping: it is stopping, too, or has found the successor.
            _log.debug(
                "handshake on %s, which was closed meanwhile: %s",
                self._where,
                error,
                node=self._party.name,
                acceptor=self._where,
                error=error,
            )
            return
        self._flood.warning(
            "handshake refused on %s: %s",
            self._where,
            error,
            node=self._party.name,
            acceptor=self._where,
            error=error,
        )

    async def handle(self, transport: trio.abc.Stream) -> None:
        """One connection: the handshake, then whatever `established` does with the link; owns the transport.

        Args:
            transport: an accepted connection, before TLS.
        """
        self._counts.handshaking += 1
        try:
            with (
                self._admission.admitted(address_of(transport)) as ticket,
                self._timed() as on_taken,
            ):
                link, joined = await accept_link(
                    transport,
                    self._source,
                    self._party,
                    bind_names=self._bind_names,
                    handshake_timeout=self._handshake_timeout,
                    ticket=ticket,
                    on_taken=on_taken,
                )
        except HandshakeError as exc:
            self._counts.refused += 1
            self._counts.shed += exc.reason == HandshakeReason.SHED
            self._report(exc)
            self._on_refused(exc)
            return
        except Exception:  # noqa: BLE001 -- logged in full
            # Not a peer's fault but ours; still, one connection must not end the node.
            self._counts.refused += 1
            _log.exception(
                "a handshake on %s failed in an unexpected way",
                self._where,
                node=self._party.name,
                acceptor=self._where,
            )
            return
        finally:
            self._counts.handshaking -= 1
        self._counts.established += 1
        established = self._on_established(link, joined)
        del link, joined  # not kept: connections leave links, and may live long
        await established
