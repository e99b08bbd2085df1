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

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import _protocol as wire
from trionode._errors import (
    LocalProtocolError,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
)
from trionode._util.contained import contained, containing
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import at, printable

from .channel import ServiceChannel
from .channels import Channels
from .end import ConnectionEnd, EndReason, end_of, flushes, says_goodbye
from .hand_over import SETTLE_GRACE, HandOver, RenewalCause
from .liveness import Liveness
from .send_queue import Outbox
from .services import check_service_name
from .state import NEXT, OPENING, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from trionode._errors import PeerUnverifiedError
    from trionode._identity.peer import Peer

    from .channel import ChannelEnd
    from .hand_over import Move
    from .link import Link
    from .services import Services

__all__ = ["Connection", "ConnectionStatistics"]

_log = Log("trionode.connection")

#: How long an ending connection may take to flush its last words and to see the peer's end. Seconds.
CLOSE_GRACE: Final = 1.0

#: How long a connection that was replaced is still read, for what the peer sent on it. Seconds.
RETIRE_GRACE: Final = 5.0


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


def protocol_flood() -> RateLimitedLog:
    """A gate for the log lines of peers that break the protocol: they may come back and do it again."""
    return RateLimitedLog(_log, "connections broke the protocol")


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
    flood: RateLimitedLog = field(default_factory=protocol_flood, repr=False)


@final
class Connection:
    """One authenticated relation to one peer; carries any number of channels.

    Made by a node (`node.connect`, or an acceptor); there is no other way to a working one.
    """

    # A dictionary of so many attributes would be 1.5 KiB for each connection.
    __slots__ = (
        "__weakref__",
        "_bytes_received",
        "_channels",
        "_closed",
        "_distrusted",
        "_end_grace",
        "_ended",
        "_give_up",
        "_hand_over",
        "_liveness",
        "_nursery",
        "_outbox",
        "_settings",
        "_state",
        "_taken",
        "_unusable",
    )

    def __init__(self, link: Link, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._outbox = Outbox(link, worn=self._worn, max_records=settings.max_records)
        self._channels = Channels(
            link,
            self._outbox,
            services=settings.services,
            limits=settings.limits,
            max_pending_opens=settings.max_pending_opens,
            budget=settings.budget,
        )
        self._liveness = Liveness(self._outbox)
        self._hand_over = HandOver(link)
        self._bytes_received = 0
        self._distrusted: PeerUnverifiedError | None = None
        self._state = State.LIVE
        self._ended: ConnectionEnd | None = None
        self._unusable = trio.Event()
        # Once it has begun to end: when it gives the peer up, unless more bytes were taken by then than so far.
        self._give_up = math.inf
        self._end_grace = CLOSE_GRACE
        self._taken = 0
        self._closed = trio.Event()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = self._state.name.lower() if self._ended is None else self._ended.reason.value
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
        return self._hand_over.link.peer

    @property
    def generation(self) -> int:
        """The generation of the contexts that this side took for it."""
        return self._hand_over.link.generation

    @property
    def peer_generation(self) -> int:
        """The generation of the contexts that the peer took, by its own account."""
        return self._hand_over.link.peer_generation

    @property
    def key_pair_fingerprint(self) -> str:
        """SHA-256 of the leaf in the contexts that this side took, lower-case hex."""
        return self._hand_over.link.key_pair_fingerprint

    @property
    def superseded(self) -> bool:
        """Whether its manager publishes a later generation by now."""
        return self.generation < self._settings.current_generation()

    @property
    def link(self) -> Link:
        """The link underneath, for the node."""
        return self._hand_over.link

    def worn(self, records: int) -> bool:
        """Whether one of its TLS keys has protected so many records.

        Args:
            records: how many, in one direction since the last TLS session began.
        """
        stream = self._hand_over.link.stream
        return max(stream.records_sent, stream.records_received) >= records

    @property
    def live(self) -> bool:
        """Whether new channels can be opened; False from the moment that it begins to drain or to end."""
        return self._state in OPENING

    @property
    def ended(self) -> bool:
        """Whether it has begun to end, or has."""
        return self._ended is not None

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of what it did and does."""
        return ConnectionStatistics(
            channels=len(self._channels.open),
            channels_opened=self._channels.opened,
            services=len(self._channels.served),
            hand_overs=self._hand_over.moves,
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
            LocalProtocolError: the service name is not a string of 1 to 255 characters that UTF-8 can encode.
            trio.ClosedResourceError: the connection was closed here.
            trio.BrokenResourceError: it was lost, or the peer closed it.
            RemoteError: code `limit`: the peer does not allow more channels at once.
        """
        return ServiceChannel(self._begin(service))

    def _begin(self, service: str) -> ChannelEnd:
        try:
            check_service_name(service)
        except (TypeError, ValueError) as exc:
            raise LocalProtocolError(str(exc)) from None
        if self._outbox.overflowing:
            msg = f"{self.peer.name} does not read what is sent to it"
            self._end(EndReason.LOST, trio.BrokenResourceError(msg))
            self._cancel()
        self._check_live()
        channel = self._channels.begin(service)
        if self._channels.exhausted:
            self._stop_opening(State.DRAINING)  # the next verb dials anew
        return channel

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
        channel = self._begin(service)
        try:
            # Where the service has ended already, receiving knows how: by a reply, an error, or without either.
            with suppress(trio.BrokenResourceError):
                # At once where there is room, which saves two scheduler ticks of about a dozen.
                if channel.try_send_last(request):
                    if len(self._channels.open) == 1:
                        self._outbox.flush()
                else:
                    await ServiceChannel(channel).send(request)
                    await channel.sending.send_eof()
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

    def _check_live(self) -> None:
        if self._state in OPENING:
            return
        if self._state is State.PEER_DRAINING:
            raise RemoteError(f"{self.peer.name} opens no more channels", code=RemoteCode.SHUTTING_DOWN)
        if self._state is State.DRAINING:
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
                nursery.start_soon(self._read, self._hand_over.link)
                try:
                    await self._keep_time(nursery.cancel_scope)
                finally:
                    # The nursery closes with its last task, and others may run before this one does again: nobody may
                    # start anything there from here on.
                    self._nursery = None
        except* Exception as crash:  # noqa: BLE001 -- logged in full
            # A bug of ours, not a peer's doing; still, one connection must not end the node.
            _log.exception("the connection to %s crashed", self.peer.name)
            self.fail(crash)
        finally:
            self._end(EndReason.SHUTTING_DOWN)
            try:
                left = [link for link in self._hand_over.links if not _closed_at_once(link)]
                if left:
                    with trio.CancelScope(shield=True):  # bounded inside; else a cancellation would leave one open
                        for link in left:
                            await contained(link.stream.aclose, _log, "closing a link")
                            await trio.aclose_forcefully(link.stream.transport_stream)
            finally:
                self._become(State.CLOSED)
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
        self._stop_opening(State.DRAINING)
        self._outbox.append(wire.header(wire.DRAIN, 0, 0))
        await self._channels.wait_quiet()

    def _stop_opening(self, state: State) -> None:
        if self._become(state):
            self._channels.accepting = False

    def heard_within(self, seconds: float) -> bool:
        """Whether anything came from the peer so recently.

        Args:
            seconds: how recently; from 0 up.
        """
        return self._liveness.heard_within(seconds)

    async def answers(self, within: float, *, insist: bool = False) -> bool:
        """Whether a peer that is pinged is heard within so many seconds; if not, the connection has ended by then.

        Args:
            within: seconds.
            insist: on the answer itself. Else whatever comes from it will do: its answer may queue behind much else.
        """
        answered = await self._liveness.answers(within, insist=insist)
        if self._ended is not None:
            return False
        if answered:
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

    def fail(self, error: Exception) -> None:
        """As `end()`: something of ours failed at it, and only it may suffer.

        Args:
            error: what; the `error` of its end.
        """
        self._end(EndReason.LOST, error)

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
        self._become(State.RETIRED)
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
        if not self._become(State.ENDING):
            return
        end = self._ended = end_of(self.peer.name, reason, error)
        self._end_grace, self._give_up = grace, trio.current_time() + grace
        self._hand_over.end()
        self._settings.ended(self, end)
        containing(self._channels.end, _log, "ending channels")(end.error)
        if not flushes(reason):
            self._outbox.discard()
        if says_goodbye(reason):
            message = "" if end.error is None else wire.text(str(end.error))
            self._outbox.append(wire.control(wire.GOODBYE, 0, wire.End(code=reason, message=message)))
        self._outbox.close()
        self._taken = self._bytes_taken()
        self._liveness.end(self._give_up)

    def _become(self, state: State) -> bool:
        """Go on to a state, if it may follow; once it is not live any more it is not handed out."""
        if state not in NEXT[self._state]:
            return False
        before, self._state = self._state, state
        if before is State.LIVE:
            self._unusable.set()
            self._settings.unregister(self)
        return True

    async def _keep_time(self, scope: trio.CancelScope) -> None:
        """Heed the heartbeat until the connection begins to end; then give the peer up when no byte moves."""
        interval, tolerance = self._settings.heartbeat_interval, self._settings.heartbeat_tolerance
        while self._ended is None:
            if not await self._liveness.beat(interval, tolerance):
                msg = (
                    f"{self.peer.name} gave no sign of life for {interval + tolerance:g} s (heartbeat_interval + "
                    "heartbeat_tolerance): it is dead, stopped or cut off"
                )
                self._end(EndReason.LOST, trio.BrokenResourceError(msg))
                self._cancel()
        while not scope.cancel_called:
            await trio.sleep_until(self._give_up)
            taken = self._bytes_taken()
            if taken == self._taken:
                scope.cancel()
            self._taken, self._give_up = taken, trio.current_time() + self._end_grace

    def _bytes_taken(self) -> int:
        return sum(link.stream.bytes_taken for link in self._hand_over.links)

    def _cancel(self) -> None:
        if self._nursery is None:  # it is not run yet, or no more
            return
        self._liveness.wake()
        self._nursery.cancel_scope.cancel()

    def _worn(self) -> None:
        self._settings.renew(self, RenewalCause.WORN)

    # Writing and reading

    async def _write(self) -> None:
        try:
            await self._outbox.write()
            if not self._hand_over.link.stream.send_ended:
                await self._hand_over.link.stream.send_eof()
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
            await self._read_frames(link)
            if link.finished and await self._hand_over.leave(link):
                self._settings.moved(self, link)
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
        assert self._ended is not None
        if link is self._hand_over.link or not flushes(self._ended.reason):
            self._cancel()
        # Else it is ending on its newer link, and this one has nothing to say about when.

    async def _read_frames(self, link: Link) -> None:
        """Read and dispatch until the peer's end, or its last frame on this link."""
        pieces, link.rest = [link.rest], b""
        decode, dispatch, stream = link.decoder.feed, self._channels.dispatch, link.stream
        while pieces:
            for data in pieces:
                self._bytes_received += len(data)
                for kind, channel, payload in decode(data):
                    if self._ended is not None:
                        break
                    if link.finished:
                        msg = "the peer sent a frame after SWITCH"
                        raise RemoteProtocolError(msg)
                    if channel:
                        dispatch(kind, channel, payload)
                    else:
                        self._on_frame(link, kind, payload)
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
            self._liveness.hear()

    # Hand-over

    @property
    def identifier(self) -> bytes:
        """What both sides know it by, whatever link it is on."""
        return self._hand_over.identifier

    @property
    def last_attempt(self) -> int:
        """The number of the last attempt to join: ours to make, where we dialled, or seen and proved."""
        return self._hand_over.last_attempt

    @last_attempt.setter
    def last_attempt(self, number: int) -> None:
        self._hand_over.last_attempt = number

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

    def joining(self, scope: trio.CancelScope) -> AbstractContextManager[None]:
        """Announce a link that has been let in and not committed: a later one, or our own end, cancels its scope.

        Args:
            scope: around what is done for the new link.
        """
        return self._hand_over.joining(scope)

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
        if self._nursery is None:
            msg = f"the connection to {self.peer.name} is being cancelled"
            raise trio.BrokenResourceError(msg)
        move = self._hand_over.commit(link, self._outbox, follows=follows)
        self._nursery.start_soon(self._read, link, move.heard)
        self._nursery.start_soon(self._bound_the_move, move)

    async def _bound_the_move(self, move: Move) -> None:
        """A peer that leaves a hand-over half done, though it may be alive on one link, breaks the connection."""
        if await self._hand_over.settles_in_time(move):
            return
        msg = f"{self.peer.name} did not finish a hand-over within {SETTLE_GRACE:g} s"
        self._end(EndReason.LOST, trio.BrokenResourceError(msg))
        self._cancel()

    async def wait_settled(self) -> None:
        """Wait until no hand-over is between its commit and its end. Cancelling is harmless.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await self._hand_over.wait_settled()
        self.check_not_ended()

    async def wait_moved(self, link: Link) -> None:
        """Wait until it is on another link than this, and that has settled. Cancelling is harmless.

        Args:
            link: the one that is to be left.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await self._hand_over.wait_left(link)
        await self.wait_settled()

    # The frames of channel 0

    def _on_frame(self, link: Link, kind: int, payload: bytes) -> None:
        if kind == wire.PING:
            if len(payload) != 8:
                msg = f"the peer sent a PING of {len(payload)} bytes"
                raise RemoteProtocolError(msg)
            self._outbox.append(wire.header(wire.PONG, 0, len(payload)), payload)
        elif kind == wire.DRAIN:
            self._stop_opening(State.PEER_DRAINING)
        elif kind == wire.GOODBYE:
            end = wire.decode(wire.End, payload)
            text = f"{self.peer.name} closed the connection: {printable(end.code)} {printable(end.message)}".rstrip()
            self._end(EndReason.CLOSED_BY_PEER, trio.BrokenResourceError(text))
        elif kind == wire.PONG:
            self._liveness.on_pong(payload)
        elif kind == wire.SWITCH:
            link.finished = True
        elif kind == wire.RENEW:
            if not link.dialled:
                msg = "the peer asks for a hand-over of a connection that it dialled itself"
                raise RemoteProtocolError(msg)
            self._settings.renew(self, RenewalCause.ASKED)
        else:
            msg = f"the peer sent a frame of kind {kind:#04x} on channel 0"
            raise RemoteProtocolError(msg)


def _closed_at_once(link: Link) -> bool:
    try:
        return link.stream.close_at_once()
    except Exception:  # noqa: BLE001 -- logged in full
        _log.exception("closing a link to %s failed in an unexpected way", link.peer.name)
        return False


@contextmanager
def at_the_cost_of(connection: Connection) -> Iterator[None]:
    """Whatever the block raises is logged, ends the connection, and goes no further."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 -- logged in full
        _log.exception("the connection to %s crashed", connection.peer.name)
        connection.fail(exc)
