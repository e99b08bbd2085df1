"""The life of a connection: one authenticated relation to one peer, with any number of channels.

Theory. `run()` owns everything: a reader and a writer task for the link, until the connection ends, while it keeps
time itself. The reader never waits for an application, and only the writer sends, so a slow service, a full window or a
cancelled caller never hold up anything else. Cancelling `run()` closes at once.

*The end* is one synchronous step, `end`, whatever causes it, and it comes once: the node forgets the connection (so it
is never handed out again), every channel learns why, a last GOODBYE is queued where the peer may hear it. From then on
nothing that the peer sends is dispatched. What is left is to close the link without cutting off what was said last: a
TCP socket that is closed with unread bytes sends a reset, and the peer may lose our GOODBYE to it. So there are three
that may close it, each in its case:

- *The writer* has written everything. If the peer had said GOODBYE, nothing more comes, and it closes at once. Else it
  ends its direction (close_notify) and leaves the rest to the reader. If it cannot write, it leaves the verdict to the
  reader for `CLOSE_GRACE`: what was received may say why (a TLS alert, a GOODBYE).
- *The reader* has come to the peer's end, or the link broke. It closes, unless this was the old link of a hand-over and
  something is still to be written on the new one.
- *Time* is up: the peer has taken no byte for `grace` seconds, or a forced end has taken `FORCED_GRACE`. This is what
  bounds the other two.

Services run in the node's nursery, each in a cancel scope of its own; see `channels` for how the connection's end
concerns them, and `hand_over` for how it goes on when its link is exchanged.

The file is long because all who may end a connection (reader, writer, timer, owner) are read together with the one step
that ends it. What can be understood apart from that has files of its own beside it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import _protocol as wire
from trionode._errors import (
    LocalProtocolError,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
)
from trionode._tls.session import RECORD_SIZE
from trionode._transport.sockets import READ_SIZE
from trionode._util.contained import contained, containing
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.log import Log
from trionode._util.metadata import NO_METADATA
from trionode._util.text import at, printable

from .channels import Channels, not_taken
from .end import (
    ConnectionEnd,
    EndReason,
    end_of,
    flushes,
    is_forced,
    says_goodbye,
    words_for_peer,
)
from .hand_over import SETTLE_GRACE, HandOver, RenewalCause
from .liveness import Liveness
from .owner import ConnectionStatistics
from .send_queue import Outbox
from .services import check_service_name
from .state import NEXT, OPENING, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._errors import PeerUnverifiedError
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer
    from trionode._util.metadata import Metadata

    from .channel import ChannelEnd
    from .hand_over import Move
    from .interceptors import Interceptor
    from .link import Link
    from .owner import ConnectionOwner, ConnectionSettings

_log = Log("trionode.connection")

#: How long an ending connection may take to flush its last words and to see the peer's end. Seconds.
CLOSE_GRACE: Final = 1.0
#: How long an end may take that this program did not ask for, however slowly the peer takes what is written. Seconds.
FORCED_GRACE: Final = 5.0

#: Seconds for each byte that dispatching may take before less is read at once: 10 ms for as much as a socket gives.
_SLOW: Final = 0.01 / READ_SIZE


@interrupted_at_checkpoints
@final
class ConnectionCore:
    """A connection at work, for the node that owns it; `Connection` is what applications see of it.

    Attributes:
        state: how far it has come.
        ended: how it ended, once it has begun to.
        channels: all that it has.
        hand_over: the link that it is on, and its move to another.
        liveness: whether the peer is there.
        outbox: what is to be written.
        owner: its node.
    """

    # A dictionary of so many attributes would be 1.5 KiB for each connection.
    __slots__ = (
        "__weakref__",
        "_bytes_received",
        "_closed",
        "_deadline",
        "_distrusted",
        "_end_grace",
        "_give_up",
        "_nursery",
        "_settings",
        "_taken",
        "_unusable",
        "channels",
        "ended",
        "hand_over",
        "liveness",
        "outbox",
        "owner",
        "state",
    )

    def __init__(self, link: Link, settings: ConnectionSettings, owner: ConnectionOwner[ConnectionCore]) -> None:
        self._settings = settings
        self.owner: ConnectionOwner[ConnectionCore] = owner
        self.outbox: Outbox = Outbox(link, worn=self._worn, max_records=settings.max_records)
        self.channels: Channels = Channels(
            link,
            self.outbox,
            services=settings.services,
            limits=settings.limits,
            max_pending_opens=settings.max_pending_opens,
            budget=settings.budget,
        )
        self.liveness: Liveness = Liveness(self.outbox)
        self.hand_over: HandOver = HandOver(link)
        self._bytes_received = 0
        self._distrusted: PeerUnverifiedError | None = None
        self.state: State = State.LIVE
        self.ended: ConnectionEnd | None = None
        self._unusable = trio.Event()
        # Once it has begun to end: when it gives the peer up, unless more bytes were taken by then than so far.
        self._give_up = math.inf
        self._end_grace = CLOSE_GRACE
        # And when it gives it up in any case.
        self._deadline = math.inf
        self._taken = 0
        self._closed = trio.Event()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = self.state.name.lower() if self.ended is None else self.ended.reason.value
        return f"<Connection to {self.peer!r}, generation {self.generation}, {state}>"

    def __str__(self) -> str:
        """As a log line has it; `repr` shows the certificate, too."""
        peer = self.peer
        verified = "verified" if peer.verified else "NOT verified"
        return f"{peer.name}{at(peer.address)}, {verified}, generation {self.generation}"

    # Facts

    @property
    def id(self) -> str:
        """What logs call it, on both sides and whatever link it is on: 16 hexadecimal digits."""
        return self.hand_over.link.connection

    @property
    def node(self) -> NodeName:
        """Whose it is."""
        return self.owner.name

    @property
    def link(self) -> Link:
        """The link that carries everything."""
        return self.hand_over.link

    @property
    def peer(self) -> Peer:
        """The peer, as its link has shown it."""
        return self.hand_over.link.peer

    @property
    def generation(self) -> int:
        """The generation of the contexts that this side took for the link."""
        return self.hand_over.link.generation

    @property
    def superseded(self) -> bool:
        """Whether its manager publishes a later generation by now."""
        return self.generation < self._settings.manager.generation

    def worn(self, records: int) -> bool:
        """Whether one of its TLS keys has protected so many records.

        Args:
            records: how many, in one direction since the last TLS session began.
        """
        stream = self.hand_over.link.stream
        return max(stream.records_sent, stream.records_received) >= records

    @property
    def live(self) -> bool:
        """Whether new channels can be opened; False from the moment that it begins to drain or to end."""
        return self.state in OPENING

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of what it did and does."""
        return ConnectionStatistics(
            channels=len(self.channels.open),
            channels_opened=self.channels.opened,
            services=len(self.channels.served),
            hand_overs=self.hand_over.moves,
            bytes_sent=self.outbox.bytes_written,
            bytes_received=self._bytes_received,
        )

    # Channels

    @property
    def interceptors(self) -> Sequence[Interceptor]:
        """The node's, the outermost first."""
        return self._settings.interceptors

    def open_channel(self, service: str, metadata: Metadata = NO_METADATA, *, call: bool = False) -> ChannelEnd:
        """Open a channel to a service of the peer; see `Connection.open_channel`, and `call`."""
        try:
            check_service_name(service)
        except (TypeError, ValueError) as exc:
            raise LocalProtocolError(str(exc)) from None
        if self.outbox.overflowing:
            msg = f"{self.peer.name} does not read what is sent to it"
            self.end(EndReason.LOST, trio.BrokenResourceError(msg))
            self.cancel()
        self._check_live()
        channel = self.channels.begin(service, metadata, call=call)
        if self.channels.exhausted:
            self.become(State.DRAINING)  # the next verb dials anew
        return channel

    def _check_live(self) -> None:
        """Check that a channel can be opened; what is raised is certain: the service does not run.

        Raises:
            RemoteError: the peer drains (code `shutting_down`), or the connection was ended otherwise than by this
                program (`not_taken`).
            trio.ClosedResourceError: this program ended it, or it drains here.
        """
        if self.state in OPENING:
            return
        if self.state is State.PEER_DRAINING:
            msg = f"{self.peer.name} takes no more channels on this connection"
            raise RemoteError(msg, code=RemoteCode.SHUTTING_DOWN, not_run=True)
        if self.state is State.DRAINING:
            msg = f"the connection to {self.peer.name} is draining"
            raise trio.ClosedResourceError(msg)
        assert self.ended is not None
        if self.ended.error is not None:
            raise not_taken(self.ended.error)
        self.check_not_ended()

    def check_not_ended(self) -> None:
        """Check that it has not begun to end.

        Raises:
            trio.ClosedResourceError: it was closed here.
            trio.BrokenResourceError: it was lost, or the peer closed it.
        """
        if self.ended is None:
            return
        msg = f"the connection to {self.peer.name} has ended: {self.ended.reason}"
        if self.ended.error is None:
            raise trio.ClosedResourceError(msg)
        raise trio.BrokenResourceError(msg) from self.ended.error

    # Life

    async def run(self) -> None:
        """Own the link until the connection has ended; called once, by the node. Cancelling closes at once."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write)
                nursery.start_soon(self._read, self.hand_over.link)
                try:
                    await self._keep_time(nursery.cancel_scope)
                finally:
                    # The nursery closes with its last task, and others may run before this one does again: nothing may
                    # be started in it from here on.
                    self._nursery = None
        except* Exception as crash:  # noqa: BLE001 -- logged in full
            self._crashed(crash)
        finally:
            self.end(EndReason.SHUTTING_DOWN)
            try:
                left = [link for link in self.hand_over.links if not _closed_at_once(link)]
                if left:
                    with trio.CancelScope(shield=True):  # bounded inside; else a cancellation would leave one open
                        for link in left:
                            await contained(link.stream.aclose, _log, "closing a link", connection=self)
                            await trio.aclose_forcefully(link.stream.transport_stream)
            finally:
                self.become(State.CLOSED)
                self.owner.connection_finished(self)
                self._closed.set()

    async def drain(self, patience: float) -> None:
        """Have neither side open further channels: ours at once, the peer's once it knows, at the latest in a while.

        Args:
            patience: how long the peer may take to acknowledge, seconds. What it opens after that is refused.
        """
        self.become(State.DRAINING)
        if self.channels.accepting and self.ended is None:
            self.outbox.append(wire.header(wire.DRAIN, 0, 0))
            # Its answer comes behind everything that it had opened before it read DRAIN.
            await self.liveness.answers(patience, insist=True)
            self.channels.accepting = False

    async def answers(self, within: float, *, insist: bool = False) -> bool:
        """Whether a peer that is pinged is heard within so many seconds; if not, the connection has ended by then.

        Args:
            within: seconds.
            insist: on the answer itself. Else whatever comes from it will do: its answer may queue behind much else.
        """
        answered = await self.liveness.answers(within, insist=insist)
        if self.ended is not None:
            return False
        if answered:
            return True
        self.end(EndReason.LOST, trio.BrokenResourceError(f"{self.peer.name} did not answer a ping in {within:g} s"))
        self.cancel()
        return False

    def fail(self, error: Exception) -> None:
        """As `end()`: something of ours failed at it, and only it may suffer.

        Args:
            error: what; the `error` of its end.
        """
        self.end(EndReason.LOST, error)

    def _crashed(self, crash: Exception) -> None:
        """Something of ours, or of the application's transport, raised what it should not: it ends this connection.

        Its tasks come here by themselves. Trio shows what passes a nursery, and fails where that cannot be shown.
        """
        _log.exception("the connection to %s crashed", self.peer.name, connection=self)
        self.fail(crash)
        self.cancel()

    def distrust(self, error: PeerUnverifiedError) -> None:
        """As `end()`: its peer is no longer trusted. Where it has ended before, what still runs for the peer is ended.

        Args:
            error: why; the `error` of its end.
        """
        self.end(EndReason.UNVERIFIED, error)
        self.channels.withdraw()
        self._distrusted = error

    def expire(self) -> None:
        """As `distrust`: a certificate that it was authenticated with has ended."""
        self.end(EndReason.EXPIRED)
        self.channels.withdraw()

    def cut_off(self, reason: EndReason) -> None:
        """As `end()`, and close at once: what is closing is too much. The peer is told if that can be done at once.

        Args:
            reason: what is told as the reason.
        """
        self.end(reason)
        self.cancel()

    def check_trusted(self) -> None:
        """Check that its peer was not found to be untrusted after all.

        Raises:
            PeerUnverifiedError: trust was rotated while its handshake was under way, or later.
        """
        if self._distrusted is not None:
            raise self._distrusted

    async def wait_unusable(self) -> Exception | None:
        """Wait until it is not handed out any more (replaced, draining, ended); returns the error, if there is one."""
        await self._unusable.wait()
        return None if self.ended is None else self.ended.error

    async def wait_closed(self) -> ConnectionEnd:
        """Wait until it has ended and its link is closed. Cancelling is harmless."""
        await self._closed.wait()
        assert self.ended is not None
        return self.ended

    def end(
        self,
        reason: EndReason,
        error: Exception | None = None,
        *,
        grace: float = CLOSE_GRACE,
        taken: int | None = None,
    ) -> None:
        """End it now; the one way to. Synchronous, idempotent: the first reason stands.

        Nothing that the peer sent is dispatched any more.

        Args:
            reason: what is told as the reason.
            error: what happened, where something did.
            grace: how long the peer may take nothing before it is given up, seconds.
            taken: the last of our channels that the peer took, where it said so.
        """
        if not self.become(State.ENDING):
            return
        end = self.ended = end_of(self.peer.name, reason, error)
        now = trio.current_time()
        if is_forced(reason):
            self._deadline = now + FORCED_GRACE
        self._end_grace, self._give_up = grace, min(now + grace, self._deadline)
        self.hand_over.end()
        self.owner.connection_ended(self, end)
        if not flushes(reason):
            offered = self.outbox.offered  # the rest is discarded: what it would have opened never runs
            taken = offered if taken is None else min(taken, offered)
        containing(self.channels.end, _log, "ending channels", connection=self)(end.error, taken)
        if not flushes(reason):
            self.outbox.discard()
        if says_goodbye(reason):
            message = wire.text(words_for_peer(end))
            goodbye = wire.Goodbye(code=reason, message=message, last=self.channels.last_taken)
            self.outbox.append(wire.control(wire.GOODBYE, 0, goodbye))
        self.outbox.close()
        self._taken = self._bytes_taken()
        self.liveness.end(self._give_up)

    def become(self, state: State) -> bool:
        """Go on to a state, if it may follow; once it is not live any more it is not handed out.

        Args:
            state: the next.
        """
        if state not in NEXT[self.state]:
            return False
        before, self.state = self.state, state
        if before is State.LIVE:
            self._unusable.set()
            self.owner.unregister(self)
        return True

    async def _keep_time(self, scope: trio.CancelScope) -> None:
        """Keep the heartbeat until the connection begins to end; then give the peer up once no byte moves."""
        interval, tolerance = self._settings.heartbeat_interval, self._settings.heartbeat_tolerance
        while self.ended is None:
            if not await self.liveness.beat(interval, tolerance):
                msg = (
                    f"{self.peer.name} gave no sign of life for {interval + tolerance:g} s (heartbeat_interval + "
                    "heartbeat_tolerance): it is dead, stopped or cut off"
                )
                self.end(EndReason.LOST, trio.BrokenResourceError(msg))
                self.cancel()
        while not scope.cancel_called:
            await trio.sleep_until(self._give_up)
            taken, now = self._bytes_taken(), trio.current_time()
            if taken == self._taken or now >= self._deadline:
                scope.cancel()
            self._taken, self._give_up = taken, min(now + self._end_grace, self._deadline)

    def _bytes_taken(self) -> int:
        return sum(link.stream.bytes_taken for link in self.hand_over.links)

    def cancel(self) -> None:
        """Have `run()` close at once."""
        if self._nursery is None:  # it is not run yet, or no more
            return
        self.liveness.wake()
        self._nursery.cancel_scope.cancel()

    def _worn(self) -> None:
        self.owner.renew(self, RenewalCause.WORN)

    # Writing and reading

    async def _write(self) -> None:
        try:
            await self.outbox.write()
            if not self.hand_over.link.stream.send_ended:
                await self.hand_over.link.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # Receiving may still work, and say why (an alert, a GOODBYE): leave the verdict to the reader, for a while.
            await trio.sleep(CLOSE_GRACE)
            self.end(EndReason.LOST, exc)
        except Exception as crash:  # noqa: BLE001 -- logged in full
            self._crashed(crash)
            return
        else:
            assert self.ended is not None
            if self.ended.reason is not EndReason.CLOSED_BY_PEER:
                return  # the reader goes on to the peer's end: closing with unread bytes could cut our goodbye off
        self.cancel()

    async def _read(self, link: Link, turn: trio.Event | None = None) -> None:
        """Read a link to its end; one that joined, from its turn on."""
        try:
            if turn is not None:
                await turn.wait()
            await self._read_frames(link)
            if link.finished and await self.hand_over.leave(link):
                self.owner.connection_moved(self)
                return
        except RemoteProtocolError as exc:
            self._settings.protocol_log.warning(
                "%s broke the protocol: %s", self.peer.name, exc, connection=self, error=exc
            )
            self.end(EndReason.PROTOCOL_ERROR, exc)
            with suppress(trio.BrokenResourceError):
                while await link.stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.end(EndReason.LOST, exc)
        except Exception as crash:  # noqa: BLE001 -- logged in full
            self._crashed(crash)
            return
        else:
            msg = f"{self.peer.name} ended the connection without a goodbye"
            self.end(EndReason.LOST, trio.BrokenResourceError(msg))
        assert self.ended is not None
        if link is self.hand_over.link or not flushes(self.ended.reason):
            self.cancel()
        # Else it is ending on its newer link, and this one has nothing to say about when.

    async def _read_frames(self, link: Link) -> None:
        """Read and dispatch until the peer's end, or its last frame on this link."""
        pieces, link.rest = [link.rest], b""
        stream = link.stream
        while pieces:
            size, began = sum(map(len, pieces)), perf_counter()
            self._dispatch(link, pieces)
            # Tiny frames are much work for their size: of such, others have their turn after each record.
            limit = RECORD_SIZE if perf_counter() - began > _SLOW * size else None
            del pieces  # else they would be kept until more comes
            if link.finished:
                if link.decoder.incomplete:
                    msg = "the peer sent a part of a frame after SWITCH"
                    raise RemoteProtocolError(msg)
                return
            if stream.records_received >= self._settings.max_records:
                self.owner.renew(self, RenewalCause.WORN)
            pieces = await stream.receive_pieces(limit)
            self.liveness.hear()
            if stream.swollen:
                self.liveness.relieve_soon()

    def _dispatch(self, link: Link, pieces: list[bytes]) -> None:
        decode, dispatch = link.decoder.feed, self.channels.dispatch
        try:
            for data in pieces:
                self._bytes_received += len(data)
                for kind, channel, payload in decode(data):
                    if self.ended is not None:
                        break
                    if link.finished:
                        msg = "the peer sent a frame after SWITCH"
                        raise RemoteProtocolError(msg)
                    if channel:
                        dispatch(kind, channel, payload)
                    else:
                        self._on_frame(link, kind, payload)
        finally:
            if self.outbox.held:
                self.outbox.release(flush=True)
        if self.outbox.overflowing:
            msg = "the peer does not read what it makes us answer"
            raise RemoteProtocolError(msg)

    # Hand-over

    def ask_for_renewal(self) -> None:
        """Ask the peer, which dialled, to hand the connection over."""
        self.outbox.append(wire.header(wire.RENEW, 0, 0))

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
        move = self.hand_over.commit(link, self.outbox, follows=follows)
        self._nursery.start_soon(self._read, link, move.heard)
        self._nursery.start_soon(self._bound_the_move, move)

    async def _bound_the_move(self, move: Move) -> None:
        """End the connection of a peer that leaves a hand-over half done, though it may be alive on one link."""
        if await self.hand_over.settles_in_time(move):
            return
        msg = f"{self.peer.name} did not finish a hand-over within {SETTLE_GRACE:g} s"
        self.end(EndReason.LOST, trio.BrokenResourceError(msg))
        self.cancel()

    async def wait_settled(self) -> None:
        """Wait until no hand-over is between its commit and its end. Cancelling is harmless.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await self.hand_over.wait_settled()
        self.check_not_ended()

    async def wait_moved(self, link: Link) -> None:
        """Wait until it is on another link than this, and that has settled. Cancelling is harmless.

        Args:
            link: the one that is to be left.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended.
        """
        await self.hand_over.wait_left(link)
        await self.wait_settled()

    # The frames of channel 0

    def _on_frame(self, link: Link, kind: int, payload: bytes) -> None:
        if kind == wire.PING:
            if len(payload) != 8:
                msg = f"the peer sent a PING of {len(payload)} bytes"
                raise RemoteProtocolError(msg)
            self.outbox.hold()  # mostly there is nothing else to say, and no need of the writer
            self.outbox.append(wire.header(wire.PONG, 0, len(payload)), payload)
        elif kind == wire.DRAIN:
            self.become(State.PEER_DRAINING)
            self.channels.accepting = False
        elif kind == wire.GOODBYE:
            end = wire.decode(wire.Goodbye, payload)
            text = f"{self.peer.name} closed the connection: {printable(end.code)} {printable(end.message)}".rstrip()
            taken = end.last if isinstance(end.last, int) else None
            self.end(EndReason.CLOSED_BY_PEER, trio.BrokenResourceError(text), taken=taken)
            if link is self.hand_over.link:  # nothing more comes, and nothing is to be written: the peer waits for this
                _closed_at_once(link)
        elif kind == wire.PONG:
            self.liveness.on_pong(payload)
        elif kind == wire.SWITCH:
            link.finished = True
        elif kind == wire.RENEW:
            if not link.dialled:
                msg = "the peer asks for a hand-over of a connection that it dialled itself"
                raise RemoteProtocolError(msg)
            self.owner.renew(self, RenewalCause.ASKED)
        else:
            msg = f"the peer sent a frame of kind {kind:#04x} on channel 0"
            raise RemoteProtocolError(msg)


def _closed_at_once(link: Link) -> bool:
    try:
        return link.stream.close_at_once()
    except Exception:  # noqa: BLE001 -- logged in full
        _log.exception("closing a link to %s failed in an unexpected way", link.peer.name, peer=link.peer)
        return False
