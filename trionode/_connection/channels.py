"""The channels of one connection: their numbers, the frames that concern one of them, and the peer's services.

Theory. Each side numbers the channels that it opens, upwards and by twos, so both may open at once. A channel is `open`
from its OPEN until this side needs it no more. The services that the peer opens channels to are another matter: a
service may outlive its channel, since a caller that has closed cleanly leaves its service to finish. So what is limited
to `max_channels` is the *services* that run at a time; further ones wait for their turn, in order and in bounded
number.

*When the connection ends*, there are three cases for a channel that the peer opened:

- Its service runs, and neither side had closed the channel cleanly: the service is cancelled.
- Its service runs, and one of them had: nothing more is to come or to go, so the service may finish.
- Its service still waits: it has its turn if the peer had closed cleanly, since it has everything that the peer sent.
  Else it never begins, and the peer is told so.

Where trust in the peer has ended, none of this holds: what runs is cancelled, what waits never begins (`withdraw`).

Nothing here knows the connection: what has to happen to the whole of it is the caller's to do.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, final

import msgspec
import trio

from trionode import _protocol as wire
from trionode._errors import ApplicationCode, LocalProtocolError, RemoteCode, RemoteError, RemoteProtocolError
from trionode._util.codes import FrameworkCode
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.metadata import NO_METADATA, Dispensable

from .channel import ChannelEnd
from .flow_control import MessageBudget, Terms
from .services import ServiceRefusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._util.metadata import Metadata

    from .link import Link
    from .send_queue import Outbox
    from .services import Service, Services


@interrupted_at_checkpoints
@final
class Channels:
    """All channels of one connection, and the services that run for its peer.

    Attributes:
        open: the channels that are not over, by number.
        served: those whose service runs, whether open or over.
        waiting: those whose service waits for another to end.
        accepting: whether the peer may open more; False once either side drains, and the peer knows.
        opened: how many were opened so far, by either side.
    """

    __slots__ = (
        "_ended",
        "_last_of_peer",
        "_max_channels",
        "_max_pending_opens",
        "_next",
        "_outbox",
        "_peer_max_channels",
        "_quiet",
        "_services",
        "_terms",
        "_then",
        "accepting",
        "open",
        "opened",
        "served",
        "waiting",
    )

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        *,
        services: Services,
        limits: wire.Limits,
        max_pending_opens: int,
        budget: int,
    ) -> None:
        """Begin without any.

        Args:
            link: the connection's first: who dialled, and what the peer accepts.
            outbox: the connection's.
            services: what the peer may open channels to.
            limits: what this side accepts, as its hello said.
            max_pending_opens: channels opened by the peer whose service waits for another to end.
            budget: bytes that may be held for messages beyond their channels' windows.
        """
        self._outbox = outbox
        self._services = services
        self._max_channels = limits.max_channels
        self._peer_max_channels = link.peer_limits.max_channels
        self._max_pending_opens = max_pending_opens
        self._terms = Terms(
            outbox=outbox,
            budget=MessageBudget(budget),
            window=limits.window,
            credit=link.peer_limits.window,
            receive_limit=limits.max_message_size,
            send_limit=link.peer_limits.max_message_size,
            receive_metadata=limits.max_metadata_size,
            send_metadata=link.peer_limits.max_metadata_size,
        )
        self._next = 1 if link.dialled else 2
        self._last_of_peer = 0 if link.dialled else -1
        self._quiet = trio.lowlevel.ParkingLot()
        self._ended = False
        self._then: Callable[[], None] | None = None
        self.open: dict[int, ChannelEnd] = {}
        self.served: dict[int, ChannelEnd] = {}
        self.waiting: dict[int, tuple[Service, ChannelEnd]] = {}
        self.accepting: bool = True
        self.opened: int = 0

    # Opened by us

    def begin(self, service: str, metadata: Metadata = NO_METADATA, *, call: bool = False) -> ChannelEnd:
        """Open a channel to a service of the peer, for as long as the caller's effective deadline lets it run.

        Args:
            service: its name over there.
            metadata: what the caller says beside its messages; what `as_metadata` gave.
            call: whether the caller takes one message, and no more.

        Raises:
            RemoteError: code `limit`: the peer does not allow more channels at once.
            LocalProtocolError: the metadata is larger than the peer accepts.
        """
        encoded, metadata = self._encoded(metadata, service) if metadata else (wire.ABSENT, metadata)
        limit, mine = self._peer_max_channels, self._next & 1
        if len(self.open) >= limit and sum(number & 1 == mine for number in self.open) >= limit:
            msg = f"{self._outbox.link.peer.name} allows {limit} channels at once (max_channels); close some first"
            raise RemoteError(msg, code=RemoteCode.LIMIT, not_run=True)
        deadline = trio.current_effective_deadline()
        timeout = None if deadline == math.inf else max(0.0, deadline - trio.current_time())
        number = self._next
        self._next += 2
        request = wire.Open(service=service, timeout=timeout, call=call, metadata=encoded)
        self._outbox.append(wire.control(wire.OPEN, number, request))
        self._outbox.opened = number
        return self._add(number, service, metadata)

    def _encoded(self, metadata: Metadata, service: str) -> tuple[msgspec.Raw, Metadata]:
        """What is sent, encoded and as it is."""
        if isinstance(metadata, Dispensable):
            whole, needed = metadata.whole, metadata.needed
            if len(wire.encode_metadata(whole)) <= self._terms.send_metadata:
                metadata = whole
            elif not needed:
                return wire.ABSENT, needed
            else:
                metadata = needed
        terms, peer = self._terms, self._outbox.link.peer.name
        encoded = wire.encode_metadata(metadata)
        size = len(encoded)
        if size <= terms.send_metadata:
            if self._outbox.takes(size):
                return msgspec.Raw(encoded), metadata
            msg = (
                f"too much waits to be written to {peer} for {size} bytes of metadata more; let other tasks run, or "
                "open channels by node.open_channel(), which waits"
            )
            raise RemoteError(msg, code=RemoteCode.LIMIT, not_run=True)
        if terms.send_metadata:
            msg = (
                f"metadata of {size} bytes for {service!r} is more than the {terms.send_metadata} that {peer} accepts "
                f"(we accept {terms.receive_metadata}); send less, or raise max_metadata_size in the peer's "
                "NetworkOptions"
            )
        else:
            msg = (
                f"{peer} accepts no metadata, and {size} bytes for {service!r} were given; its max_metadata_size is 0, "
                "or its trionode does not know metadata yet"
            )
        raise LocalProtocolError(msg)

    @property
    def last_taken(self) -> int:
        """The last channel of the peer's that was looked at; 0 if there was none."""
        return max(0, self._last_of_peer)

    @property
    def exhausted(self) -> bool:
        """Whether our numbers are used up, and no further channel can be opened."""
        return self._next > wire.LAST_CHANNEL - 2

    def _add(self, number: int, service: str, metadata: Metadata, scope: trio.CancelScope | None = None) -> ChannelEnd:
        channel = self.open[number] = ChannelEnd(number, service, self._terms, self._forget, scope, metadata)
        self.opened += 1
        self._terms.budget.company(len(self.open))
        return channel

    def _forget(self, channel: ChannelEnd) -> None:
        if self.open.pop(channel.number, None) is not None:
            self._terms.budget.company(len(self.open))
        self._wake_if_quiet()

    # What the peer sends. Synchronous, never waits.

    def dispatch(self, kind: int, number: int, payload: bytes) -> None:
        """A frame came that is not the connection's.

        Args:
            kind: of the frame.
            number: the channel's; not 0.
            payload: of the frame.

        Raises:
            RemoteProtocolError: there cannot be such a frame now.
        """
        channel = self.open.get(number)
        if channel is None:
            if kind == wire.OPEN:
                self._on_open(number, wire.decode(wire.Open, payload))
            elif kind == wire.RESET and number in self.served:
                self.served[number].on_lost(_reset_cause(payload, self._terms.receive_metadata))
            else:
                self._check_opened(number)
        elif kind == wire.MESSAGE:
            channel.receiving.on_message(payload)
        elif kind == wire.CREDIT:
            channel.sending.on_credit(wire.unpack_u32(payload))
        elif kind == wire.MORE:
            channel.receiving.on_more(payload)
        elif kind == wire.FIRST:
            channel.receiving.on_first(payload)
        elif kind == wire.EOF:
            channel.on_eof()
        elif kind == wire.CLOSE:
            channel.on_close()
        elif kind == wire.RESET:
            self.waiting.pop(number, None)
            self._forget(channel)
            channel.on_lost(_reset_cause(payload, self._terms.receive_metadata))
        elif kind == wire.DISCARD:
            channel.receiving.on_discard()
        elif kind == wire.RETURN:
            channel.receiving.on_return(wire.unpack_u32(payload))
        else:
            msg = f"the peer sent a frame of kind {kind:#04x} on channel {number}"
            raise RemoteProtocolError(msg)

    def _check_opened(self, number: int) -> None:
        """A frame for a channel that is over is ignored; one for a channel that never was is an error."""
        mine = number & 1 == self._next & 1
        if number >= self._next if mine else number > self._last_of_peer:
            msg = f"the peer sent a frame for channel {number}, which was never opened"
            raise RemoteProtocolError(msg)

    def _on_open(self, number: int, request: wire.Open) -> None:
        if number & 1 == self._next & 1 or number <= self._last_of_peer:
            msg = f"the peer opened channel {number}, which is not its to open"
            raise RemoteProtocolError(msg)
        metadata = NO_METADATA
        if request.metadata:
            metadata = wire.decode_metadata(request.metadata, self._terms.receive_metadata)
        self._last_of_peer = number
        try:
            link = self._outbox.link
            service = self._services.find(request.service, link.peer, link.connection)
            if not self.accepting:
                raise ServiceRefusal(RemoteCode.SHUTTING_DOWN, "this connection opens no more channels")
            if len(self.waiting) >= self._max_pending_opens:
                limit = f"{len(self.served)} services run (max_channels), {self._max_pending_opens} more wait"
                raise ServiceRefusal(RemoteCode.LIMIT, f"{limit} (max_pending_opens)")
        except ServiceRefusal as refusal:
            self._refuse(number, refusal)
            return
        deadline = math.inf if request.timeout is None else trio.current_time() + request.timeout
        channel = self._add(number, request.service, metadata, trio.CancelScope(deadline=deadline))
        channel.sending.only_one = request.call
        self.waiting[number] = service, channel
        self._start_services()

    def _refuse(self, number: int, refusal: ServiceRefusal) -> None:
        """Tell the peer that the service of a channel did not begin, and will not."""
        payload = wire.End(code=refusal.code, message=wire.text(refusal.message), not_run=True)
        self._outbox.append(wire.control(wire.RESET, number, payload))

    # Services

    def _start_services(self) -> None:
        """Start what waits, up to `max_channels` at once: a service may outlive a channel that its caller closed."""
        while self.waiting and len(self.served) < self._max_channels:
            number = next(iter(self.waiting))
            service, channel = self.waiting.pop(number)
            self.served[number] = channel
            self._services.start(service, channel, partial(self._served_out, number))

    def _served_out(self, number: int) -> None:
        del self.served[number]
        if not self.served:
            self._outbox.flush()  # its reply and its end, in one write
        self._start_services()
        self._wake_if_quiet()
        self._check_served()

    # All of them

    async def wait_quiet(self) -> None:
        """Wait until no channel is open and no service runs, or the connection ends. Cancelling is harmless."""
        await trio.lowlevel.checkpoint()
        while (self.open or self.served) and not self._ended:
            await self._quiet.park()

    def _wake_if_quiet(self) -> None:
        if self._quiet and not (self.open or self.served):
            self._quiet.unpark_all()

    def end(self, error: Exception | None, taken: int | None) -> None:
        """The connection has ended: every channel learns why, and the services are cancelled that may not finish.

        Args:
            error: what happened; None where this program closed the connection.
            taken: the last of our channels that the peer took, where it said so; or that it may have taken.
        """
        self._ended = True
        # Services of channels that the peer had closed cleanly get what it sent, when their turn comes.
        waiting, self.waiting = self.waiting, {}
        for number, (service, channel) in waiting.items():
            if channel.closed_by_peer:
                self.waiting[number] = service, channel
            else:
                self._refuse(number, ServiceRefusal(RemoteCode.SHUTTING_DOWN, "the connection ended before its turn"))
        for number, channel in {**self.open, **self.served}.items():
            if error is None:
                channel.abandon()
            elif taken is not None and number > taken and number & 1 == self._next & 1:
                channel.on_lost(not_taken(error))
            else:
                channel.on_lost(error)
        self.open.clear()
        self._quiet.unpark_all()

    def withdraw(self) -> None:
        """Trust in the peer has ended: nothing runs for it any more, and nothing begins."""
        waiting, self.waiting = self.waiting, {}
        for number in waiting:
            self._refuse(number, ServiceRefusal(RemoteCode.SHUTTING_DOWN, "the connection ended before its turn"))
        for channel in self.served.values():
            if channel.scope is not None:
                channel.scope.cancel()

    def when_served(self, then: Callable[[], None]) -> None:
        """Call a function once nothing runs for the peer any more, now or later; to be asked for when it has ended.

        Args:
            then: raises nothing.
        """
        self._then = then
        self._check_served()

    def _check_served(self) -> None:
        if self._then is not None and not (self.served or self.waiting):
            then, self._then = self._then, None
            then()


def not_taken(cause: Exception) -> RemoteError:
    """What a request ends with that the peer certainly did not take.

    Args:
        cause: how the connection ended.
    """
    error = RemoteError(str(cause), code=RemoteCode.NOT_TAKEN, not_run=True)
    error.__cause__ = cause
    return error


def _reset_cause(payload: bytes, limit: int) -> RemoteError:
    """What the peer says of the end of a channel.

    Args:
        payload: of a RESET.
        limit: bytes of details and metadata that this side takes.

    Raises:
        RemoteProtocolError: it is none, or its details and metadata are more than that, or malformed.
    """
    end = wire.decode(wire.End, payload)
    size = len(bytes(end.details)) + len(bytes(end.metadata))
    if size > limit:
        msg = f"the peer sent {size} bytes of details and metadata of an error; at most {limit} are allowed"
        raise RemoteProtocolError(msg)
    return RemoteError(
        end.message,
        code=ApplicationCode(end.code) if end.application else FrameworkCode(end.code),
        not_run=end.not_run,
        details=wire.decode_details(end.details),
        metadata=wire.decode_metadata(end.metadata, limit),
    )
