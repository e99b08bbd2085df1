"""Connections: one authenticated relation to one peer, with any number of channels.

Theory. `run()` owns everything: a reader and a writer task for the link, until the connection ends, while it keeps
time itself. It ends once, in one synchronous step, `_end`, whoever causes it: the node forgets it (so it is never
handed out again), every channel learns why, a last GOODBYE is queued where there is somebody to hear it. What follows
is bounded: flush, close_notify, read to the peer's end, close.

The reader never waits for an application, and the writer is the only one who sends, so a slow service, a full window
or a cancelled caller never hold up anybody else. Cancelling `run()` closes at once.

*Hand-over.* A connection outlives its links. `commit` moves it to a link that joined, in one synchronous step: the
outbox queues SWITCH as the last frame of the old link and everything after it for the new one. The new link's reader
parses nothing before the peer's SWITCH was read on the old one, so frames stay in order; the old link is closed
together, each side's close_notify telling the other that its SWITCH has arrived. From the commit until then the
connection is on both links, and a failure of either is its own; before the commit a failure is none of its business.

Services run in the node's nursery, each in a cancel scope of its own. When the connection ends the tasks that served it
are cancelled, but for those whose channel was closed cleanly by either side: nothing more is to come or to go on it, so
they may finish. Where the peer had closed it while its service waited in line, the service still has its turn.
"""

from __future__ import annotations

import logging
import math
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import _protocol as wire
from trionode._errors import (
    LocalProtocolError,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
)
from trionode._util.rate_limited_log import FloodGate
from trionode._util.text import at, printable
from trionode._util.waiter import Sleeper

from .channel import ServiceChannel
from .flow_control import MessageBudget
from .link import connection_id
from .send_queue import Outbox
from .services import ServiceRefusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trionode._errors import PeerUnverifiedError
    from trionode._identity.peer import Peer

    from .link import Link
    from .services import Service, Services

__all__ = ["Connection", "ConnectionEnd", "ConnectionStatistics", "EndReason", "RenewalCause"]

_log = logging.getLogger("trionode.connection")

#: How long an ending connection may take to flush its last words and to see the peer's end. Seconds.
CLOSE_GRACE: Final = 1.0

#: Scheduler ticks that a probed peer's answer, which may have arrived already, gets to be read.
_LAST_CHANCE_TICKS: Final = 3

#: How long a hand-over may take from its commit until the old link is closed: what was queued for that has to arrive.
#: Seconds.
SETTLE_GRACE: Final = 60.0

#: How long a connection that was replaced is still read, for what the peer sent on it. Seconds.
RETIRE_GRACE: Final = 5.0


class EndReason(StrEnum):
    """Why a connection ended.

    `SUPERSEDED`: a certificate was rotated, and the node closes connections that were made with the old one.
    `EXPIRED`: a certificate that it was authenticated with ended. `WORN`: its keys had protected too much, and it could
    not be handed over. `UNVERIFIED`: the peer's was revoked, or its CA is
    not trusted any more.
    """

    CLOSED = "closed"
    CLOSED_BY_PEER = "closed_by_peer"
    REPLACED = "replaced"
    SHUTTING_DOWN = "shutting_down"
    LIMIT = "limit"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    WORN = "worn"
    UNVERIFIED = "unverified"
    LOST = "lost"
    PROTOCOL_ERROR = "protocol_error"


#: Ends that this side caused without anybody here having closed the connection: channels break, and say why.
_NOT_OUR_DOING: Final = {
    EndReason.REPLACED: "a newer connection to the same node took its place",
    EndReason.LIMIT: "too many connections of unverified peers (max_unverified)",
    EndReason.SUPERSEDED: "a certificate was rotated, and this connection was made with the old one; connect again",
    EndReason.WORN: "its TLS keys have protected as much as they may, and it could not be handed over; connect again",
    EndReason.EXPIRED: "a certificate that it was authenticated with has ended; rotate it, and connect again",
}

#: Ends after which what was accepted for sending has nobody to reach.
_NOBODY_LISTENS: Final = frozenset({EndReason.LOST, EndReason.CLOSED_BY_PEER, EndReason.PROTOCOL_ERROR})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionEnd:
    """How a connection ended.

    Attributes:
        reason: see `EndReason`.
        error: what happened, where something did; None after a close by this program.
    """

    reason: EndReason
    error: Exception | None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionStatistics:
    """A snapshot of one connection.

    Attributes:
        channels: open now.
        channels_opened: opened so far, by either side.
        services: service tasks that run for it.
        hand_overs: how often it moved to a new link.
        bytes_sent: written, before encryption.
        bytes_received: read, after decryption.
    """

    channels: int
    channels_opened: int
    services: int
    hand_overs: int
    bytes_sent: int
    bytes_received: int


def protocol_flood() -> FloodGate:
    """A gate for the log lines of peers that break the protocol: they may come back and do it again."""
    return FloodGate(_log, "connections broke the protocol")


class RenewalCause(StrEnum):
    """Why a connection is to be handed over, or closed in place of that."""

    ROTATED = "rotated"
    EXPIRING = "expiring"
    WORN = "worn"
    ASKED = "asked"
    BY_HAND = "by_hand"


@final
@dataclass(slots=True, eq=False)
class _Move:
    """A hand-over from commit to settled.

    Attributes:
        old: the link that is left.
        written: set once our last frame on it, SWITCH, was written.
        heard: set once the peer's was read: the new link may be parsed.
    """

    old: Link
    written: trio.Event
    heard: trio.Event = field(default_factory=trio.Event)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSettings:
    """What a node tells its connections.

    Attributes:
        services: what the peer may open channels to.
        limits: what this side accepts, as its hello said.
        max_pending_opens: channels opened by the peer whose service waits for another to end.
        budget: bytes that may be held for messages beyond their channels' windows.
        heartbeat_interval: silence after which the peer is pinged, seconds.
        heartbeat_tolerance: how long it may take to answer, seconds.
        unregister: called when the connection stops being handed out; may be called again.
        ended: called once, when it begins to end.
        finished: called once, when its link is closed and its tasks are gone.
        moved: called with the old link once a hand-over has settled.
        renew: called when it should be handed over: its keys are worn, or the peer asks.
        reauthenticate: hands it over, or has the peer do it.
        max_records: TLS records under one key after which `renew` is called.
        current_generation: of the manager whose contexts the link took.
        flood: where peers that break the protocol are logged; a node's connections share it.
    """

    services: Services
    limits: wire.Limits
    max_pending_opens: int
    budget: int
    heartbeat_interval: float
    heartbeat_tolerance: float
    unregister: Callable[[Connection], None]
    ended: Callable[[Connection, ConnectionEnd], None]
    finished: Callable[[Connection], object]
    moved: Callable[[Connection, Link], object]
    renew: Callable[[Connection, RenewalCause], object]
    reauthenticate: Callable[[Connection], Awaitable[None]]
    max_records: int
    current_generation: Callable[[], int]
    flood: FloodGate = field(default_factory=protocol_flood, repr=False)


@final
class Connection:
    """One authenticated relation to one peer; carries any number of channels.

    Made by a node (`node.connect`, or an acceptor); there is no other way to a working one.
    """

    # Of more than 29 attributes Python does not share the keys: each connection would have a dictionary of 1.5 KiB.
    __slots__ = (
        "__weakref__",
        "_budget",
        "_bytes_received",
        "_changed",
        "_channels",
        "_closed",
        "_distrusted",
        "_draining",
        "_end_grace",
        "_ended",
        "_give_up",
        "_heard",
        "_identifier",
        "_inbound",
        "_joining",
        "_last_heard",
        "_last_of_peer",
        "_link",
        "_move",
        "_moves",
        "_nap",
        "_next_channel",
        "_nursery",
        "_opened",
        "_outbox",
        "_peer_limits",
        "_probes",
        "_served",
        "_settings",
        "_taken",
        "_timekeeper",
        "_unusable",
        "_waiting_opens",
        "last_attempt",
    )

    def __init__(self, link: Link, settings: ConnectionSettings) -> None:
        self._link = link
        self._inbound = link
        self._peer_limits = link.peer_limits
        self._settings = settings
        self._outbox = Outbox(link, worn=self._worn, max_records=settings.max_records)
        self._budget = MessageBudget(settings.budget)
        self._channels: dict[int, ServiceChannel] = {}
        self._next_channel = 1 if link.dialled else 2
        self._last_of_peer = 0 if link.dialled else -1
        self._opened = 0
        # Channels whose service runs, until its task ends: not the same as open channels.
        self._served: dict[int, ServiceChannel] = {}
        self._waiting_opens: dict[int, tuple[Service, ServiceChannel]] = {}
        self._bytes_received = 0
        self._last_heard = trio.current_time()
        self._heard = trio.lowlevel.ParkingLot()
        self._probes: dict[bytes, trio.Event] = {}
        self._distrusted: PeerUnverifiedError | None = None
        self._identifier: bytes | None = None
        #: The number of the last attempt to join: ours to make, where we dialled, or seen and proved.
        self.last_attempt: int = 0
        self._joining: trio.CancelScope | None = None
        self._move: _Move | None = None
        self._moves = 0
        # Woken when the last channel or service is over, and at each step of a hand-over.
        self._changed = trio.lowlevel.ParkingLot()
        self._draining: EndReason | None = None
        self._ended: ConnectionEnd | None = None
        self._unusable = trio.Event()
        # While it lives, what `_keep_time` sleeps in; once it has begun to end, when that gives the peer up.
        self._nap: trio.CancelScope | None = None
        self._timekeeper = Sleeper()
        self._end_grace = CLOSE_GRACE
        self._give_up = math.inf
        self._taken = 0
        self._closed = trio.Event()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = "live" if self._ended is None else self._ended.reason.value
        return f"<Connection to {self.peer!r}, generation {self.generation}, {state}>"

    def __str__(self) -> str:
        """As a log line has it; `repr` shows the certificate, too."""
        peer = self.peer
        verified = "verified" if peer.verified else "NOT verified"
        return f"{peer.name}{at(peer.address)}, {verified}, generation {self.generation}"

    # Facts

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._link.peer

    @property
    def generation(self) -> int:
        """The generation of the contexts that this side took for it."""
        return self._link.generation

    @property
    def peer_generation(self) -> int:
        """The generation of the contexts that the peer took, by its own account."""
        return self._link.peer_generation

    @property
    def key_pair_fingerprint(self) -> str:
        """SHA-256 of the leaf in the contexts that this side took, lower-case hex."""
        return self._link.key_pair_fingerprint

    @property
    def superseded(self) -> bool:
        """Whether its manager publishes a later generation by now."""
        return self.generation < self._settings.current_generation()

    @property
    def link(self) -> Link:
        """The link underneath, for the node."""
        return self._link

    def worn(self, records: int) -> bool:
        """Whether one of its TLS keys has protected so many records.

        Args:
            records: how many, in one direction since the last TLS session began.
        """
        stream = self._link.stream
        return max(stream.records_sent, stream.records_received) >= records

    @property
    def live(self) -> bool:
        """Whether new channels can be opened; False from the moment that it begins to drain or to end."""
        return self._ended is None and self._draining is None

    @property
    def ended(self) -> bool:
        """Whether it has begun to end, or has."""
        return self._ended is not None

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of what it did and does."""
        return ConnectionStatistics(
            channels=len(self._channels),
            channels_opened=self._opened,
            services=len(self._served),
            hand_overs=self._moves,
            bytes_sent=self._outbox.bytes_written,
            bytes_received=self._bytes_received,
        )

    # Channels

    def open_channel(self, service: str) -> ServiceChannel:
        """Open a channel to a service of the peer; synchronous, nothing is waited for.

        The caller's effective deadline is sampled now and bounds the service task. Use it as
        `async with connection.open_channel("feed") as channel`. That the service does not exist shows at the first
        `receive()`.

        Args:
            service: its name over there; 1 to 255 characters.

        Raises:
            LocalProtocolError: the service name is not a string of 1 to 255 characters.
            trio.ClosedResourceError: the connection was closed here.
            trio.BrokenResourceError: it was lost, or the peer closed it.
            RemoteError: code `limit`: the peer does not allow more channels at once.
        """
        _check_service_name(service)
        if self._outbox.overflowing:
            msg = f"{self.peer.name} does not read what is sent to it"
            self._end(EndReason.LOST, trio.BrokenResourceError(msg))
            self._cancel()
        self._check_live()
        limit = self._peer_limits.max_channels
        mine = self._next_channel & 1
        if len(self._channels) >= limit and sum(identifier & 1 == mine for identifier in self._channels) >= limit:
            msg = f"{self.peer.name} allows {limit} channels at once (max_channels); close some first"
            raise RemoteError(msg, code=RemoteCode.LIMIT)
        deadline = trio.current_effective_deadline()
        timeout = None if deadline == float("inf") else max(0.0, deadline - trio.current_time())
        request = wire.Open(service=service, timeout=timeout)
        identifier = self._next_channel
        self._next_channel += 2
        if self._next_channel > wire.LAST_CHANNEL - 2:
            self._stop_opening(EndReason.LIMIT)  # its numbers are used up; the next verb dials anew
        self._outbox.append(wire.control(wire.OPEN, identifier, request))
        return self._add_channel(identifier, service)

    async def call(self, service: str, request: bytes) -> bytes:
        """Open a channel, send one message, half-close, receive exactly one message, close.

        At most once: after a `BrokenResourceError` the service may have run; nothing is retried. Cancelling resets the
        channel, and the service over there is cancelled.

        Args:
            service: its name over there; 1 to 255 characters.
            request: the message, of up to the peer's `max_message_size` bytes.

        Raises:
            RemoteError: the service did not do it; code `no_reply` if it ended without a message.
            trio.ClosedResourceError, trio.BrokenResourceError: the connection ended.
            LocalProtocolError: the request is larger than the peer accepts.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        channel = self.open_channel(service)
        try:
            # Where the service has ended already, receiving knows how: by a reply, an error, or without either.
            with suppress(trio.BrokenResourceError):
                # At once where there is room, which saves two scheduler ticks of about a dozen.
                if channel.try_send_last(request):
                    if len(self._channels) == 1:
                        self._outbox.flush()
                else:
                    await channel.send(request)
                    await channel.send_eof()
            reply = await channel.receive()
        except trio.EndOfChannel:
            channel.close()
            msg = f"service {service!r} of {self.peer.name}"
            raise RemoteError(msg, code=RemoteCode.NO_REPLY) from None
        except BaseException:
            channel.reset()
            raise
        channel.close()
        return reply

    def _add_channel(self, identifier: int, service: str) -> ServiceChannel:
        channel = self._channels[identifier] = ServiceChannel(
            identifier=identifier,
            service=service,
            outbox=self._outbox,
            budget=self._budget,
            window=self._settings.limits.window,
            credit=self._peer_limits.window,
            receive_limit=self._settings.limits.max_message_size,
            send_limit=self._peer_limits.max_message_size,
            on_over=self._forget_channel,
        )
        self._opened += 1
        self._budget.company(len(self._channels))
        return channel

    def _forget_channel(self, channel: ServiceChannel) -> None:
        if self._channels.pop(channel.identifier, None) is not None:
            self._budget.company(len(self._channels))
        self._wake_if_quiet()

    def _wake_if_quiet(self) -> None:
        if not (self._channels or self._served):
            self._changed.unpark_all()

    def _check_live(self) -> None:
        if self._ended is None:
            if self._draining is EndReason.CLOSED_BY_PEER:
                raise RemoteError(f"{self.peer.name} opens no more channels", code=RemoteCode.SHUTTING_DOWN)
            if self._draining is not None:
                msg = f"the connection to {self.peer.name} is draining"
                raise trio.ClosedResourceError(msg)
        self.check_not_ended()

    def check_not_ended(self) -> None:
        """Check that it goes on.

        Raises:
            trio.ClosedResourceError: it was closed here.
            trio.BrokenResourceError: it was lost, or the peer closed it.
        """
        if self._ended is None:
            return
        msg = f"the connection to {self.peer.name} has ended: {self._ended.reason}"
        if self._ended.error is None:
            raise trio.ClosedResourceError(msg)
        raise trio.BrokenResourceError(msg) from self._ended.error

    # Life

    async def run(self) -> None:
        """Own the link until the connection has ended; called once, by the node. Cancelling closes at once."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write)
                nursery.start_soon(self._read, self._link)
                try:
                    await self._keep_time(nursery.cancel_scope)
                finally:
                    # The nursery closes with its last task, and others may run before this one does again: nobody may
                    # start anything there from here on.
                    self._nursery = None
        except* Exception as crash:  # noqa: BLE001 -- logged in full
            # A bug of ours, not a peer's doing; still, one connection must not end the node.
            _log.exception("the connection to %s crashed", self.peer.name)
            self._end(EndReason.LOST, crash)
        finally:
            self._end(EndReason.SHUTTING_DOWN)
            try:
                left = [link for link in self._links() if not link.stream.close_at_once()]
                if left:
                    with trio.CancelScope(shield=True):  # bounded inside; else a cancellation would leave one open
                        for link in left:
                            await link.stream.aclose()
            finally:
                self._settings.finished(self)
                self._closed.set()

    async def aclose(self) -> None:
        """Close it: flush what was accepted for sending, say goodbye, wait a bounded time for the peer's end.

        From its first moment on the connection is not handed out, and its channels raise `ClosedResourceError`. A
        peer that takes nothing for a second is given up. Cancelled, it closes at once.
        """
        await self.close(EndReason.CLOSED)

    async def close(self, reason: EndReason, *, grace: float = CLOSE_GRACE) -> None:
        """As `aclose()`.

        Args:
            reason: what the peer and events are told.
            grace: how long a peer may take nothing before it is given up, seconds. The whole is bounded by what was
                pending, and by the caller's scope.
        """
        self._end(reason, grace=grace)
        try:
            await self._closed.wait()
        finally:
            if not self._closed.is_set():
                self._cancel()
                with trio.CancelScope(shield=True):  # bounded: everything under run() is cancelled now
                    await self._closed.wait()

    async def drain(self) -> None:
        """Open no more channels, wait until those that are open and their services have ended, then close.

        The peer is told, and does not hand the connection out any more. Unbounded: the deadline is the caller's
        scope. Cancelled, it closes at once.
        """
        try:
            await self.quiesce()
        finally:
            await self.close(EndReason.SHUTTING_DOWN)  # noqa: ASYNC102 -- cancelled, it closes at once, shielded

    async def supersede(self, reason: EndReason, *, grace: float) -> None:
        """As `drain()`, for so many seconds at most, then close whatever is still open.

        Args:
            reason: what is told as the reason of its end.
            grace: how long to wait for what is under way. Seconds.
        """
        with trio.move_on_after(grace):
            await self.quiesce()
        await self.close(reason)

    async def quiesce(self) -> None:
        """The first half of `drain()`: tell the peer, and wait until no channel is open and no service runs."""
        self._stop_opening(EndReason.SHUTTING_DOWN)
        self._outbox.append(wire.header(wire.DRAIN, 0, 0))
        await trio.lowlevel.checkpoint()
        while self._ended is None and (self._channels or self._served):
            await self._changed.park()

    def _stop_opening(self, reason: EndReason) -> None:
        if self._draining is None:
            self._draining = reason
            self._unusable.set()
            self._settings.unregister(self)

    def heard_within(self, seconds: float) -> bool:
        """Whether anything came from the peer so recently.

        Args:
            seconds: how recently; from 0 up.
        """
        return trio.current_time() - self._last_heard <= seconds

    async def answers(self, within: float, *, insist: bool = False) -> bool:
        """Whether a peer that is pinged is heard within so many seconds; if not, the connection has ended by then.

        Args:
            within: seconds.
            insist: on the answer itself. Else whatever comes from it will do: its answer may queue behind much else.
        """
        nonce = secrets.token_bytes(8)
        answered = self._probes[nonce] = trio.Event()
        received = self._bytes_received
        try:
            self._outbox.append(wire.header(wire.PING, 0, len(nonce)), nonce)
            with trio.move_on_after(within):
                await answered.wait()
            await _let_the_reader_read()
        finally:
            del self._probes[nonce]
        if self._ended is not None:
            return False
        if answered.is_set() or (self._bytes_received != received and not insist):
            return True
        self._end(EndReason.LOST, trio.BrokenResourceError(f"{self.peer.name} did not answer a ping in {within:g} s"))
        self._cancel()
        return False

    def end(self, reason: EndReason) -> None:
        """End it now. Synchronous; nothing that the peer sent is dispatched any more.

        Args:
            reason: what is told as the reason.
        """
        self._end(reason)

    def distrust(self, error: PeerUnverifiedError) -> None:
        """As `end()`: its peer is no longer trusted.

        Args:
            error: why; the `error` of its end.
        """
        self._end(EndReason.UNVERIFIED, error)
        self._distrusted = error

    def check_trusted(self) -> None:
        """Check that its peer was not found to be untrusted after all.

        Raises:
            PeerUnverifiedError: trust was rotated while its handshake was under way, or later.
        """
        if self._distrusted is not None:
            raise self._distrusted

    async def retire(self) -> None:
        """A newcomer took its place: go on for a bounded time, until the peer's goodbye or end, then close."""
        self._unusable.set()
        with trio.move_on_after(RETIRE_GRACE):
            await self._closed.wait()
        await self.close(EndReason.REPLACED)

    async def wait_unusable(self) -> Exception | None:
        """Wait until it is not handed out any more (replaced, draining, ended); returns the error, if there is one."""
        await self._unusable.wait()
        return None if self._ended is None else self._ended.error

    async def wait_closed(self) -> ConnectionEnd:
        """Wait until it has ended and its link is closed. Cancelling is harmless."""
        await self._closed.wait()
        assert self._ended is not None
        return self._ended

    def _end(self, reason: EndReason, error: Exception | None = None, *, grace: float = CLOSE_GRACE) -> None:
        """The one way to end: synchronous, idempotent; the first reason stands."""
        if self._ended is not None:
            return
        if error is None and reason in _NOT_OUR_DOING:
            error = trio.BrokenResourceError(f"the connection to {self.peer.name} ended: {_NOT_OUR_DOING[reason]}")
        end = self._ended = ConnectionEnd(reason=reason, error=error)
        self._end_grace = grace
        self._unusable.set()
        for probe in self._probes.values():
            probe.set()
        if self._joining is not None:
            self._joining.cancel()
        if self._move is not None:
            self._move.heard.set()  # nothing is parsed any more, so there is no order to keep
        self._changed.unpark_all()
        self._settings.unregister(self)
        self._settings.ended(self, end)
        for channel in {**self._channels, **self._served}.values():
            if error is None:
                channel.abandon()
            else:
                channel.on_lost(error)
        self._channels.clear()
        # Those that the peer had closed cleanly get what it sent, whenever their turn comes.
        self._waiting_opens = {key: waits for key, waits in self._waiting_opens.items() if waits[1].peer_closed}
        self._changed.unpark_all()
        if self._ended_for_nobody():
            self._outbox.discard()
        if reason is EndReason.PROTOCOL_ERROR or reason not in _NOBODY_LISTENS:
            message = "" if error is None else wire.text(str(error))
            self._outbox.append(wire.control(wire.GOODBYE, 0, wire.End(code=reason, message=message)))
        self._outbox.close()
        self._taken, self._give_up = self._bytes_taken(), trio.current_time() + grace
        if self._nap is not None:
            self._nap.deadline = self._give_up

    async def _keep_time(self, scope: trio.CancelScope) -> None:
        """Heed the heartbeat until the connection begins to end; then give the peer up when no byte moves."""
        while self._ended is None:
            await self._heed_heartbeat()
        while not scope.cancel_called:
            await trio.sleep_until(self._give_up)
            taken = self._bytes_taken()
            if taken == self._taken:
                scope.cancel()
            self._taken, self._give_up = taken, trio.current_time() + self._end_grace

    async def _doze(self, until: float) -> None:
        """Sleep until then, or an earlier time that `_end` sets, or until `_cancel`."""
        with trio.CancelScope(deadline=until) as self._nap:
            await self._timekeeper.sleep()

    def _bytes_taken(self) -> int:
        return sum(link.stream.bytes_taken for link in self._links())

    def _links(self) -> list[Link]:
        return [self._link] if self._move is None else [self._link, self._move.old]

    def _ended_for_nobody(self) -> bool:
        return self._ended is not None and self._ended.reason in _NOBODY_LISTENS

    def _cancel(self) -> None:
        if self._nursery is None:  # it is not run yet, or no more
            return
        self._timekeeper.wake()  # to be woken costs less than to be cancelled
        self._nursery.cancel_scope.cancel()

    def _worn(self) -> None:
        self._settings.renew(self, RenewalCause.WORN)

    # Writing and reading

    async def _write(self) -> None:
        try:
            await self._outbox.write()
            if not self._link.stream.send_ended:
                await self._link.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # Receiving may still work, and say why (an alert, a GOODBYE): leave the verdict to the reader, for a while.
            await trio.sleep(CLOSE_GRACE)
            self._end(EndReason.LOST, exc)
        else:
            assert self._ended is not None
            if self._ended.reason is not EndReason.CLOSED_BY_PEER:
                return  # the reader goes on to the peer's end: closing with unread bytes could cut our goodbye off
        self._cancel()

    async def _read(self, link: Link, turn: trio.Event | None = None) -> None:
        """Read a link to its end; one that joined, from its turn on."""
        try:
            if turn is not None:
                await turn.wait()
                self._inbound = link
            await self._read_frames(link)
            if link.finished and await self._leave(link):
                return
        except RemoteProtocolError as exc:
            self._settings.flood.warning("%s broke the protocol: %s", self.peer.name, exc)
            self._end(EndReason.PROTOCOL_ERROR, exc)
            with suppress(trio.BrokenResourceError):
                while await link.stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._end(EndReason.LOST, exc)
        else:
            msg = f"{self.peer.name} ended the connection without a goodbye"
            self._end(EndReason.LOST, trio.BrokenResourceError(msg))
        if link is self._link or self._ended_for_nobody():
            self._cancel()
        # Else it is ending on its newer link, and this one has nothing to say about when.

    async def _read_frames(self, link: Link) -> None:
        """Read and dispatch until the peer's end, or its last frame on this link."""
        pieces, link.rest = [link.rest], b""
        decode, stream = link.decoder.feed, link.stream
        while pieces:
            for data in pieces:
                self._bytes_received += len(data)
                for kind, channel, payload in decode(data):
                    if self._ended is not None:
                        break
                    if link.finished:
                        msg = "the peer sent a frame after SWITCH"
                        raise RemoteProtocolError(msg)
                    self._dispatch(kind, channel, payload)
            if self._outbox.overflowing:
                msg = "the peer does not read what it makes us answer"
                raise RemoteProtocolError(msg)
            if link.finished:
                if link.decoder.incomplete:
                    msg = "the peer sent a part of a frame after SWITCH"
                    raise RemoteProtocolError(msg)
                return
            if stream.records_received >= self._settings.max_records:
                self._settings.renew(self, RenewalCause.WORN)
            pieces = await stream.receive_pieces()
            self._last_heard = trio.current_time()
            if self._heard:
                self._heard.unpark_all()

    # Hand-over

    @property
    def identifier(self) -> bytes:
        """What both sides know it by, whatever link it is on."""
        if self._identifier is None:  # asked for first while it is on its first link
            self._identifier = connection_id(self._link.stream)
        return self._identifier

    async def reauthenticate(self) -> None:
        """Hand this connection over to a new link: a new TLS session on the certificates that both sides have now.

        Everything that a new connection is checked for is checked again. Channels and calls in flight notice nothing.
        Where the peer dialled, it is asked to do it. When this returns, both sides are on the new link and the old
        one is closed. Cancelling leaves the connection on one of the two.

        Raises:
            HandshakeError: the new link could not be made; the connection goes on as it was. See its subclasses.
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await self._settings.reauthenticate(self)

    def ask_for_renewal(self) -> None:
        """Ask the peer, which dialled, to hand the connection over."""
        self._outbox.append(wire.header(wire.RENEW, 0, 0))

    @contextmanager
    def joining(self, scope: trio.CancelScope) -> Iterator[None]:
        """Announce a link that has been let in and not committed: a later one, or our own end, cancels its scope.

        Args:
            scope: around what is done for the new link.
        """
        if self._joining is not None:
            self._joining.cancel()
        self._joining = scope
        try:
            yield
        finally:
            if self._joining is scope:
                self._joining = None
                self._changed.unpark_all()

    def commit(self, link: Link, *, follows: Link) -> None:
        """Move to a link that joined: from here on it carries everything. Synchronous.

        Args:
            link: the new one, whose handshake and hello are done; owned by the connection from then on.
            follows: the link that the connection was on when the new one was let in: the proofs are for these two.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended; the link is still the
                caller's to close.
        """
        self.check_not_ended()
        if self._move is not None or follows is not self._link:
            msg = "the connection has moved to another link meanwhile"
            raise trio.BrokenResourceError(msg)
        if self._nursery is None:
            msg = f"the connection to {self.peer.name} is being cancelled"
            raise trio.BrokenResourceError(msg)
        _ = self.identifier
        old, self._link = self._link, link
        first = wire.encode_hello(wire.Confirmation()) if link.dialled else b""
        written = self._outbox.switch(link, last=wire.header(wire.SWITCH, 0, 0), first=first)
        self._move = _Move(old, written)
        self._nursery.start_soon(self._read, link, self._move.heard)
        self._nursery.start_soon(self._bound_the_move)
        self._changed.unpark_all()

    async def _bound_the_move(self) -> None:
        """A peer that leaves a hand-over half done, though it may be alive on one link, breaks the connection."""
        move = self._move
        with trio.move_on_after(SETTLE_GRACE):
            while self._move is move and self._ended is None:
                await self._changed.park()
            return
        msg = f"{self.peer.name} did not finish a hand-over within {SETTLE_GRACE:g} s"
        self._end(EndReason.LOST, trio.BrokenResourceError(msg))
        self._cancel()

    async def wait_settled(self) -> None:
        """Wait until no hand-over is between its commit and its end. Cancelling is harmless.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await trio.lowlevel.checkpoint()
        while self._move is not None and self._ended is None:
            await self._changed.park()
        self.check_not_ended()

    async def wait_moved(self, link: Link) -> None:
        """Wait until it is on another link than this, and that has settled. Cancelling is harmless.

        Args:
            link: the one that is to be left.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await trio.lowlevel.checkpoint()
        while self._link is link and self._ended is None:
            await self._changed.park()
        await self.wait_settled()

    async def _leave(self, old: Link) -> bool:
        """The peer has sent its last frame on this link: read the new one, and close the old one together.

        Returns False where there is no new one, because the connection has begun to end meanwhile.
        """
        while self._move is None:
            if self._ended is not None:
                while await old.stream.receive_some():
                    pass
                return False
            if old.dialled or not self.last_attempt:
                msg = "the peer sent SWITCH, and there is no link that we agreed to switch to"
                raise RemoteProtocolError(msg)
            if self._joining is None:
                msg = f"{self.peer.name} moved the connection to a new link, which broke before it was there"
                raise trio.BrokenResourceError(msg)
            await self._changed.park()  # its third message is still on its way on the new link
        move = self._move
        if move.old is not old:
            msg = "the peer sent SWITCH on the link that it has just switched to"
            raise RemoteProtocolError(msg)
        move.heard.set()
        await move.written.wait()
        await old.stream.send_eof()
        if await old.stream.receive_some():
            msg = "the peer sent something after SWITCH"
            raise RemoteProtocolError(msg)
        await old.stream.aclose()
        self._move = None
        self._moves += 1
        self._changed.unpark_all()
        self._settings.moved(self, old)
        return True

    async def _heed_heartbeat(self) -> None:
        """End the connection when nothing was heard for the interval, and then for the tolerance after a ping."""
        interval, tolerance = self._settings.heartbeat_interval, self._settings.heartbeat_tolerance
        await self._doze(self._last_heard + interval)
        silent_since = self._last_heard
        if self._ended is not None or trio.current_time() < silent_since + interval:  # to the bit what was slept until
            return
        self._outbox.append(wire.header(wire.PING, 0, 8), bytes(8))
        self._outbox.flush()  # there is nothing else to say, or it would not be silent
        with trio.CancelScope(deadline=trio.current_time() + tolerance) as self._nap:
            await self._heard.park()
        if self._last_heard == silent_since:
            await _let_the_reader_read()
        if self._last_heard == silent_since and not self.ended:
            msg = (
                f"{self.peer.name} gave no sign of life for {interval + tolerance:g} s (heartbeat_interval + "
                "heartbeat_tolerance): it is dead, stopped or cut off"
            )
            self._end(EndReason.LOST, trio.BrokenResourceError(msg))
            self._cancel()

    def _dispatch(self, kind: int, identifier: int, payload: bytes) -> None:
        channel = self._channels.get(identifier)
        if channel is None:
            if identifier == 0 or kind == wire.OPEN:
                self._on_connection_frame(kind, identifier, payload)
            elif kind == wire.RESET and identifier in self._served:
                self._served[identifier].on_lost(_reset_cause(payload))
            else:
                self._check_opened(identifier)
            return
        if kind == wire.MESSAGE:
            channel.on_message(payload)
        elif kind == wire.CREDIT:
            channel.on_credit(wire.unpack_u32(payload))
        elif kind == wire.MORE:
            channel.on_more(payload)
        elif kind == wire.FIRST:
            channel.on_first(payload)
        elif kind in (wire.EOF, wire.CLOSE):
            channel.on_end(kind)
        elif kind == wire.RESET:
            self._waiting_opens.pop(identifier, None)
            self._forget_channel(channel)
            channel.on_lost(_reset_cause(payload))
        elif kind == wire.DISCARD:
            channel.on_discard()
        elif kind == wire.RETURN:
            channel.on_return(wire.unpack_u32(payload))
        else:
            msg = f"the peer sent a frame of kind {kind:#04x} on channel {identifier}"
            raise RemoteProtocolError(msg)

    def _check_opened(self, identifier: int) -> None:
        """A frame for a channel that is over is ignored; one for a channel that never was is an error."""
        mine = identifier & 1 == self._next_channel & 1
        if identifier >= self._next_channel if mine else identifier > self._last_of_peer:
            msg = f"the peer sent a frame for channel {identifier}, which was never opened"
            raise RemoteProtocolError(msg)

    def _on_connection_frame(self, kind: int, identifier: int, payload: bytes) -> None:
        if kind == wire.OPEN:
            self._on_open(identifier, wire.decode(wire.Open, payload))
        elif kind == wire.PING:
            if len(payload) != 8:
                msg = f"the peer sent a PING of {len(payload)} bytes"
                raise RemoteProtocolError(msg)
            self._outbox.append(wire.header(wire.PONG, 0, len(payload)), payload)
        elif kind == wire.DRAIN:
            self._stop_opening(EndReason.CLOSED_BY_PEER)
        elif kind == wire.GOODBYE:
            end = wire.decode(wire.End, payload)
            text = f"{self.peer.name} closed the connection: {printable(end.code)} {printable(end.message)}".rstrip()
            self._end(EndReason.CLOSED_BY_PEER, trio.BrokenResourceError(text))
        elif kind == wire.PONG:
            probe = self._probes.get(payload)
            if probe is not None:
                probe.set()
        elif kind == wire.SWITCH:
            self._inbound.finished = True
        elif kind == wire.RENEW:
            if not self._link.dialled:
                msg = "the peer asks for a hand-over of a connection that it dialled itself"
                raise RemoteProtocolError(msg)
            self._settings.renew(self, RenewalCause.ASKED)
        else:
            msg = f"the peer sent a frame of kind {kind:#04x} on channel 0"
            raise RemoteProtocolError(msg)

    # Services

    def _on_open(self, identifier: int, request: wire.Open) -> None:
        if identifier & 1 == self._next_channel & 1 or identifier <= self._last_of_peer:
            msg = f"the peer opened channel {identifier}, which is not its to open"
            raise RemoteProtocolError(msg)
        self._last_of_peer = identifier
        settings = self._settings
        try:
            service = settings.services.find(request.service, self.peer)
            if self._draining is not None:
                raise ServiceRefusal(RemoteCode.SHUTTING_DOWN, "this connection opens no more channels")
            if len(self._waiting_opens) >= settings.max_pending_opens:
                limit = f"{len(self._served)} services run (max_channels), {settings.max_pending_opens} more wait"
                raise ServiceRefusal(RemoteCode.LIMIT, f"{limit} (max_pending_opens)")
        except ServiceRefusal as refusal:
            payload = wire.End(code=refusal.code, message=wire.text(refusal.message))
            self._outbox.append(wire.control(wire.RESET, identifier, payload))
            return
        channel = self._add_channel(identifier, request.service)
        channel.scope = trio.CancelScope()
        if request.timeout is not None:
            channel.scope.deadline = trio.current_time() + request.timeout
        self._waiting_opens[identifier] = service, channel
        self._start_services()

    def _start_services(self) -> None:
        """Start what waits, up to `max_channels` at once: a service may outlive a channel that its caller closed."""
        while self._waiting_opens and len(self._served) < self._settings.limits.max_channels:
            identifier = next(iter(self._waiting_opens))
            service, channel = self._waiting_opens.pop(identifier)
            self._served[identifier] = channel
            self._settings.services.start(service, channel, partial(self._served_out, identifier))

    def _served_out(self, identifier: int) -> None:
        del self._served[identifier]
        if not self._served:
            self._outbox.flush()  # its reply and its end, in one write
        self._start_services()
        self._wake_if_quiet()


async def _let_the_reader_read() -> None:
    """On a machine that is behind, what was to come in time may be here, and be read in this very tick."""
    for _ in range(_LAST_CHANCE_TICKS):
        await trio.lowlevel.checkpoint()


def _reset_cause(payload: bytes) -> RemoteError:
    end = wire.decode(wire.End, payload)
    return RemoteError(end.message, code=end.code)


def _check_service_name(service: object) -> None:
    if not isinstance(service, str) or not 1 <= len(service) <= 255 or not _encodable(service):
        msg = "a service name is a string of 1 to 255 characters"
        raise LocalProtocolError(msg)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
