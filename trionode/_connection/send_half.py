"""The sending half of a channel: credit, waiting for it in turn, and how sending ends.

Theory. Sending is an append to the connection's outbox, so what was accepted is in order. A message is one frame where
it fits into a fragment and into the credit at hand. Otherwise it goes out in fragments, while its sender holds the
half's lock (Trio's locks are fair, so messages stay in order), waiting for credit and for room in the outbox between
them. A sender that is cancelled there leaves a DISCARD behind its last fragment: the receiver drops the torn message,
and the channel stays usable.

*Credit and its return.* A sender never sends more than it was granted. What it was granted beyond the window is for
one large message, and keeps a place in the receiver's budget until it is used up. There are three cases:

- The message was sent to its end: exactly what was granted for it is used up; nothing is left to return.
- The message was given up: what it was granted is still at hand, and nothing else would ever use it up while the
  channel is quiet. So from then on what is at hand beyond the window is returned (RETURN) whenever no message is under
  way, be it that it was at hand, or that it arrives later, having crossed with the DISCARD.
- Nothing was ever given up: the receiver may have granted more than the window for its own reasons (a channel that is
  alone); that is the receiver's to reckon with, and returning it would only slow the channel down.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from trionode import _protocol as wire
from trionode._errors import LocalProtocolError, RemoteProtocolError
from trionode._util.interrupts import interrupted_at_checkpoints

from .send_queue import HIGH_WATER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .flow_control import Terms

#: A fragment smaller than this is not worth its frame: wait for more credit instead.
_SMALLEST_FRAGMENT: Final = 2048
#: A message larger than this waits for room between its fragments, so that it does not hold up other channels.
_LARGEST_AT_ONCE: Final = HIGH_WATER


class SendState(Enum):
    """How far the direction in which this side sends has come; RFC 9000, section 3.1, in quotation marks."""

    __hash__: Callable[[object], int] = object.__hash__  # type: ignore[assignment]  # Enum's own, by name, is slow

    #: "Send": messages may be sent.
    SEND = auto()
    #: "Data Sent": half-closed, EOF was sent; receiving goes on.
    DATA_SENT = auto()
    #: The peer takes no more: it closed its end or reset the channel, or the connection was lost.
    STOPPED = auto()
    #: This end was closed cleanly: all was sent, and nothing is read any more.
    CLOSED = auto()
    #: "Reset Sent": this end gave the channel up.
    RESET_SENT = auto()
    #: The connection was closed here.
    ABANDONED = auto()


#: What may follow. After a half-close the peer's end changes nothing here: sending is over already, by our own doing.
_NEXT: Final[Mapping[SendState, tuple[SendState, ...]]] = {
    SendState.SEND: (
        SendState.DATA_SENT,
        SendState.STOPPED,
        SendState.CLOSED,
        SendState.RESET_SENT,
        SendState.ABANDONED,
    ),
    SendState.DATA_SENT: (SendState.CLOSED, SendState.RESET_SENT, SendState.ABANDONED),
    SendState.STOPPED: (SendState.CLOSED, SendState.RESET_SENT, SendState.ABANDONED),
    SendState.CLOSED: (),
    SendState.RESET_SENT: (),
    SendState.ABANDONED: (),
}

#: A limit that no message fits into, not even an empty one.
_NOTHING: Final = -1

# Looked up for every message.
_SEND: Final = SendState.SEND

#: The states of a channel whose end was closed here: receiving is over, too.
CLOSED_HERE: Final = (SendState.CLOSED, SendState.RESET_SENT, SendState.ABANDONED)


@interrupted_at_checkpoints
@final
class SendHalf:
    """One side's sending half.

    Attributes:
        state: how far it has come.
        limit: of a message. Bytes.
        credit: what may be sent now, as message costs.
        only_one: whether the peer takes one message and no more; once it is on its way, no limit lets another pass.
        cause: why the peer takes no more, in `STOPPED`; made where it is first raised if the peer closed its end.
    """

    __slots__ = (
        "_channel",
        "_credit_arrived",
        "_gave_up",
        "_lock",
        "_outbox",
        "_service",
        "_terms",
        "_under_way",
        "cause",
        "credit",
        "limit",
        "only_one",
        "state",
    )

    def __init__(self, channel: int, service: str, terms: Terms) -> None:
        """Begin open.

        Args:
            channel: the number of the channel.
            service: its service, for error texts.
            terms: the connection's.
        """
        self.state: SendState = _SEND
        self.limit: int = terms.send_limit
        self.credit: int = terms.credit
        self.only_one: bool = False
        self.cause: Exception | None = None
        self._channel = channel
        self._service = service
        self._terms = terms
        self._outbox = terms.outbox
        # Whether a message that goes out in fragments has been begun and not ended; whether one was ever given up.
        self._under_way = False
        self._gave_up = False
        # Made when first needed: most channels never wait.
        self._lock: trio.StrictFIFOLock | None = None
        self._credit_arrived: trio.lowlevel.ParkingLot | None = None

    # Sending

    def try_send(self, value: bytes) -> bool:
        """Send a message if that is possible at once; the caller has seen to it that the half is open and it fits.

        Args:
            value: the message.
        """
        size = len(value)
        cost = size + wire.MESSAGE_OVERHEAD
        lock = self._lock
        if cost > self.credit or size > _LARGEST_AT_ONCE or self._outbox.full or (lock is not None and lock.locked()):
            return False
        if size <= wire.MAX_FRAGMENT:
            self.credit -= cost
            self._outbox.append(wire.header(wire.MESSAGE, self._channel, size), value)
        else:
            with memoryview(value) as view:
                sent = 0
                while sent < size:
                    sent += self._send_fragment(view, sent)
        if self.only_one:
            self.limit = _NOTHING
        return True

    async def send_in_turn(self, value: bytes) -> None:
        """Send a message after those that wait already, as credit and room allow.

        Cancelled before its first fragment it sent nothing; after it, the receiver drops it.

        Args:
            value: the message.
        """
        async with self._turn():
            if len(value) > self.limit:  # another task has sent the only reply meanwhile
                self.refuse(len(value))
            sent, begun = 0, False
            try:
                with memoryview(value) as view:
                    while not begun or sent < len(view):
                        await self._wait_sendable(len(view) - sent + (0 if begun else wire.MESSAGE_OVERHEAD))
                        sent += self._send_fragment(view, sent)
                        begun = self._under_way = True
            except BaseException:
                if begun and self.state is _SEND:
                    self._gave_up = True
                    self._outbox.append(wire.header(wire.DISCARD, self._channel, 0))
                raise
            finally:
                self._under_way = False
                self._return_excess()
            if self.only_one:
                self.limit = _NOTHING

    async def _wait_sendable(self, cost: int) -> None:
        enough = min(cost, _SMALLEST_FRAGMENT)
        while True:
            if self.state is not _SEND:
                self.refuse()
            if self.credit < enough:
                if self._credit_arrived is None:
                    self._credit_arrived = trio.lowlevel.ParkingLot()
                await self._credit_arrived.park()
            elif self._outbox.full:
                await self._outbox.room.park()
            else:
                return

    def _send_fragment(self, view: memoryview, sent: int) -> int:
        total = len(view)
        credit = self.credit
        if sent:
            size = min(total - sent, credit, wire.MAX_FRAGMENT)
            head = wire.header(wire.MORE, self._channel, size)
        else:
            credit -= wire.MESSAGE_OVERHEAD
            size = min(total, credit, wire.MAX_FRAGMENT)
            if size == total:
                head = wire.header(wire.MESSAGE, self._channel, size)
            else:
                head = wire.first(self._channel, total, size)
        self.credit = credit - size
        with view[sent : sent + size] as fragment:
            self._outbox.append(head, fragment)
        return size

    def _turn(self) -> trio.StrictFIFOLock:
        if self._lock is None:
            self._lock = trio.StrictFIFOLock()
        return self._lock

    # Credit

    def on_credit(self, amount: int) -> None:
        """The peer grants more.

        Args:
            amount: how much more may be sent.

        Raises:
            RemoteProtocolError: that is more than there can be.
        """
        if self.credit + amount >= 2**32:
            msg = "the peer granted more credit than there can be"
            raise RemoteProtocolError(msg)
        self.credit += amount
        self._return_excess()
        if self._credit_arrived:
            self._credit_arrived.unpark_all()

    def _return_excess(self) -> None:
        """Return what a message was granted that was given up: till then it keeps its place in the peer's budget."""
        excess = self.credit - self._terms.credit
        if self._gave_up and excess > 0 and not self._under_way and self.state is _SEND:
            self.credit -= excess
            self._outbox.append(wire.credit(self._channel, excess, wire.RETURN))

    # Ending

    async def send_eof(self) -> None:
        """Half-close, after what is being sent; harmless where that was done already."""
        async with self._turn():
            if self.state is not SendState.DATA_SENT:
                self.half_close()

    def half_close(self) -> None:
        """Half-close at once; the caller has seen to it that nothing is being sent."""
        if self.state is not _SEND:
            self.refuse()
        self._outbox.append(wire.header(wire.EOF, self._channel, 0))
        self._become(SendState.DATA_SENT)

    def stop(self, cause: Exception | None) -> None:
        """The peer takes no more, or the connection was lost: senders that wait are told.

        Args:
            cause: why; the `__cause__` of what they raise. None: the peer closed its end.
        """
        if self._become(SendState.STOPPED):
            self.cause = cause
            self._wake()

    def close(self, state: SendState) -> bool:
        """This end is closed: senders that wait are told. Returns False where it was closed already.

        Args:
            state: one of `CLOSED_HERE`.
        """
        if not self._become(state):
            return False
        self._wake()
        return True

    def _become(self, state: SendState) -> bool:
        if state not in _NEXT[self.state]:
            return False
        self.state = state
        return True

    def _wake(self) -> None:
        if self._credit_arrived:
            self._credit_arrived.unpark_all()
        if self._outbox.room:
            self._outbox.room.unpark_all()

    def refuse(self, size: int = 0) -> NoReturn:
        """Say why a message cannot be sent, now or ever.

        Args:
            size: of the message. Bytes.
        """
        if self.state is SendState.STOPPED:
            if self.cause is None:
                peer = self._outbox.link.peer.name
                self.cause = trio.BrokenResourceError(f"{peer} closed its end of {self._service!r}")
            raise trio.BrokenResourceError(str(self.cause)) from self.cause
        if self.state is SendState.DATA_SENT:
            msg = f"send_eof() was called on the channel to {self._service!r}"
            raise trio.ClosedResourceError(msg)
        if self.state is not _SEND:
            raise closed_here(self._service)
        if self.limit == _NOTHING:
            msg = (
                f"service {self._service!r} was called, and has sent its reply: a call takes one. Callers that take "
                "more open a channel (open_channel)"
            )
            raise LocalProtocolError(msg)
        msg = (
            f"a message of {size} bytes is larger than the {self.limit} that {self._outbox.link.peer.name} accepts (we "
            f"accept {self._terms.receive_limit}); split it, or raise max_message_size in the peer's NetworkOptions"
        )
        raise LocalProtocolError(msg)


def closed_here(service: str) -> trio.ClosedResourceError:
    """What using an end of a channel raises after it was closed.

    Args:
        service: the channel's.
    """
    return trio.ClosedResourceError(f"the channel to {service!r} was closed here")
