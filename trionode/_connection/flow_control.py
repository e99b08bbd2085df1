"""Flow control for one connection: credit per channel, and one budget for messages larger than their window.

This is the receiver's side, which grants. A message that is to be sent waits for credit in `send_half`.

Theory. Credit is the receiver's to grant, and a sender never sends more than it was granted. So what a peer can make
this side hold is bounded by `channels * window + budget + one message`, whatever it does.

*The window.* As the application consumes, the receiver tops the sender up to the channel's window again, half a window
at a time. A channel that is alone on its connection, and whose application keeps up, is topped up to more, twice as
much each time up to `LARGEST_WINDOW`: a bulk transfer then waits less often (measured: 64 KiB messages go 1.5 times as
fast). Beside other channels its window is what it was, because what is on its way for one delays the others.

*The budget.* A message larger than the credit left could never end by the window alone: credit comes back as the
application consumes, and it consumes whole messages. So the rest of such a message is granted out of a budget that the
connection's channels share; see `Reassembly` for how it asks. Messages that wait for a place are served in the order in
which they came, small ones too, or a stream of small ones could starve a large one. For the first of them there are
three cases:

1. What its channel will hold beyond the window fits into the budget: it gets a place.
2. It does not fit, and no message is over the budget: it gets a place all the same, and is the one that is over. Hence
   the last term of the bound.
3. It does not fit, and another is over the budget: it waits until that one's place is released.

*Why nothing deadlocks*, whatever the sizes, windows and the budget, as long as the application consumes what arrives:
in the third case the message that is over has been granted all that it needs, so its sender can finish it, and then the
application consumes it. Or the sender gives it up, and either returns the credit (RETURN) or still has it. Then nothing
but its next message can use that credit up, so this one may go on in the place of the first if it needs no more
(`_may_go_on`). One way or the other the place is released in the end, and the first that waits is looked at again.

*When a place is released.* Not when its message is complete: it is held until the application takes it. Nor when it is
given up: its sender still has the credit. But when what the channel holds and has granted is back within what the
window alone would allow (`within_level`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trionode._errors import RemoteProtocolError
from trionode._util.interrupts import interrupted_at_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from .send_queue import Outbox

#: What a channel that is alone on its connection is topped up to. More is hardly faster (measured).
LARGEST_WINDOW: Final = 2 * 1024 * 1024
#: How long a channel has been the only one before its window grows: callers come and go. Seconds.
ALONE_FOR: Final = 0.03


@final
@dataclass(slots=True, eq=False)
class Terms:
    """What all channels of one connection have in common.

    Attributes:
        outbox: where frames go.
        budget: for messages beyond their channel's window.
        window: what a channel grants the peer to begin with, as message costs.
        credit: what the peer grants, likewise.
        receive_limit: bytes of a message that this side accepts.
        send_limit: bytes of a message that the peer accepts.
        receive_metadata: bytes of metadata that this side accepts.
        send_metadata: bytes of metadata that the peer accepts.
    """

    outbox: Outbox
    budget: MessageBudget
    window: int
    credit: int
    receive_limit: int
    send_limit: int
    receive_metadata: int = 0
    send_metadata: int = 0


@interrupted_at_checkpoints
@final
class ReceiveWindow:
    """The receiver's view of one channel's credit. All amounts are message costs: bytes plus overhead."""

    __slots__ = ("_kept_up", "_level", "grows", "held", "outstanding", "size", "target")

    def __init__(self, size: int) -> None:
        self.size: int = size
        #: What it is topped up to: the size, or more while the channel is alone.
        self.target: int = size
        # What it was last topped up to: what is granted beyond that is for one large message.
        self._level = size
        #: Granted and not yet used by the sender.
        self.outstanding: int = size
        #: Received and not yet consumed here.
        self.held: int = 0
        #: Whether it may grow. Not once the sender has given back credit, or it would give back every time.
        self.grows: bool = True
        # Whether the application had consumed everything at some time since it was last looked at.
        self._kept_up = False

    def take(self, cost: int) -> None:
        """The sender used credit.

        Raises:
            RemoteProtocolError: it had less.
        """
        if cost > self.outstanding:
            msg = f"the peer sent {cost} bytes on a channel with {self.outstanding} bytes of credit"
            raise RemoteProtocolError(msg)
        self.outstanding -= cost
        self.held += cost

    def consume(self, cost: int) -> int:
        """The application consumed; returns how much to grant now, 0 while it is not worth a frame."""
        self.held -= cost
        if not self.held:
            self._kept_up = True
        grant = self.target - self.outstanding - self.held
        if grant * 2 < self.target:
            return 0
        self.outstanding += grant
        self._level = self.target
        return grant

    @property
    def within_level(self) -> bool:
        """Whether nothing is left, held here or granted, of what a large message was granted beyond the window."""
        return self.outstanding + self.held <= self._level

    def adapt(self, *, alone: bool) -> None:
        """Aim higher where the application keeps up and no other channel would wait; at the size where one would."""
        if not (alone and self.grows):
            self.target = self.size
        elif self._kept_up and self.target < LARGEST_WINDOW:
            self.target = min(2 * self.target, LARGEST_WINDOW)
        self._kept_up = False

    def take_back(self, amount: int) -> None:
        """The sender gave credit back that it will not use.

        Raises:
            RemoteProtocolError: it had less.
        """
        if amount > self.outstanding:
            msg = f"the peer gave back {amount} bytes of credit and had {self.outstanding}"
            raise RemoteProtocolError(msg)
        self.outstanding -= amount
        self.grows = False

    def excess(self, rest: int) -> int:
        """What the channel holds or may have to hold beyond its size once `rest` more bytes are granted."""
        return max(0, max(self.outstanding, rest) + self.held - self.size)

    def extend(self, rest: int) -> int:
        """Credit that the sender lacks for `rest` more bytes; counted as granted."""
        grant = max(0, rest - self.outstanding)
        self.outstanding += grant
        return grant


class _Claim(NamedTuple):
    need: Callable[[], int]
    message: int
    grant: Callable[[], None]


@interrupted_at_checkpoints
@final
class MessageBudget:
    """Bytes that a connection may hold for messages beyond their channels' windows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: What is reserved, by channel.
        self.reserved: dict[int, int] = {}
        self._total = 0
        self._over: int | None = None
        self._waiting: dict[int, _Claim] = {}
        # A channel that is the only one is not alone before this, on Trio's clock: callers come and go.
        self._company_until = math.inf

    def company(self, channels: int) -> None:
        """There are so many channels now.

        Args:
            channels: on the connection.
        """
        if channels:
            self._company_until = math.inf if channels > 1 else trio.current_time() + ALONE_FOR

    @property
    def alone(self) -> bool:
        """Whether a channel has the connection to itself."""
        return self._company_until < math.inf and trio.current_time() >= self._company_until

    def reserve(self, channel: int, *, need: Callable[[], int], message: int, grant: Callable[[], None]) -> None:
        """Reserve for the message that is arriving on a channel, in place of what was reserved for the channel before.

        Args:
            channel: its number.
            need: what the channel will hold beyond its window once this message is granted; asked when it is its turn.
            message: what the message costs as a whole.
            grant: called now, or when there is room.
        """
        self._waiting[channel] = _Claim(need, message, grant)
        self._serve()

    def consumed(self) -> None:
        """A channel whose message waits for a place needs less than before."""
        self._serve()

    def withdraw(self, channel: int) -> None:
        """A message needs no place any more: it is there (its window sufficed), was given up, or its channel is over.

        Args:
            channel: its number.
        """
        if self._waiting.pop(channel, None) is not None:
            self._serve()

    def release(self, channel: int) -> None:
        """Release a place; if the channel has another message that waits, that goes on waiting.

        Args:
            channel: its number.
        """
        self._total -= self.reserved.pop(channel, 0)
        if self._over == channel:
            self._over = None
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            channel, claim = next(iter(self._waiting.items()))
            if self._total_with(channel, claim.need()) > self._limit:
                if self._over is None:
                    self._over = channel
                elif self._may_go_on(self._over):
                    channel, claim = self._over, self._waiting[self._over]
                else:
                    return
            del self._waiting[channel]
            need = claim.need()
            self._total = self._total_with(channel, need)
            self.reserved[channel] = need
            claim.grant()

    def _total_with(self, channel: int, need: int) -> int:
        return self._total - self.reserved.get(channel, 0) + need

    def _may_go_on(self, over: int) -> bool:
        """Whether the channel that is over the limit may begin another message in the same place.

        Its sender gave the first message up and has credit for it, which only the other can use up. It may, once the
        other is all that the channel would hold beyond its window: then it is still one message that is over.
        """
        claim = self._waiting.get(over)
        return claim is not None and claim.need() <= claim.message
