"""Flow control for one connection: credit per channel, and one budget for messages larger than their window.

Theory. Credit is the receiver's: a sender never sends more than it was granted, so what a connection can make its
receiver hold is bounded by `channels * window + budget + one message`, whatever the peer does.

Each channel has a window. As the application consumes, the receiver tops the sender up to it again, half a window at a
time. A channel that is alone on its connection, and whose application keeps up, is topped up to more, twice as much
each time up to `LARGEST_WINDOW`: a bulk transfer then waits less often (measured: 64 KiB messages go 1.5 times as
fast). With company its window is what it was, because what is on the way for one delays the others. A message larger
than the credit left would never end that way, so when its first fragment shows its total the receiver grants the rest
at once, out of the connection's budget. Where that does not fit, messages wait, in order, except that one at a time may
exceed the budget: there is always one that can be finished, so no mix of sizes and windows deadlocks as long as the
application consumes what arrives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trionode._errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .send_queue import Outbox

#: What a channel that is alone on its connection is topped up to. More is hardly faster (measured).
LARGEST_WINDOW: Final = 2 * 1024 * 1024
#: How long a channel has been alone before its window grows: callers come and go. Seconds.
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
    """

    outbox: Outbox
    budget: MessageBudget
    window: int
    credit: int
    receive_limit: int
    send_limit: int


@final
class ReceiveWindow:
    """The receiver's view of one channel's credit. All amounts are message costs: bytes plus overhead."""

    __slots__ = ("_kept_up", "_level", "grows", "held", "outstanding", "size", "target")

    def __init__(self, size: int) -> None:
        self.size = size
        #: What it is topped up to: the size, or more while the channel is alone.
        self.target = size
        # What it was last topped up to: what is granted beyond that is for one large message.
        self._level = size
        #: Granted and not yet used by the sender.
        self.outstanding = size
        #: Received and not yet consumed here.
        self.held = 0
        #: Whether it may grow. Not once the sender has given back credit, or it would give back every time.
        self.grows = True
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
        """Whether nothing is left, here or in the sender's hand, of what a large message was granted."""
        return self.outstanding + self.held <= self._level

    def adapt(self, *, alone: bool) -> None:
        """Aim higher where the application keeps up and nobody else would wait; at the size where somebody would."""
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
        # No channel is alone before this, on Trio's clock.
        self._company_until = math.inf

    def company(self, channels: int) -> None:
        """There are so many channels now."""
        self._company_until = math.inf if channels > 1 else trio.current_time() + ALONE_FOR

    @property
    def alone(self) -> bool:
        """Whether a channel has the connection to itself."""
        return self._company_until < math.inf and trio.current_time() >= self._company_until

    def reserve(self, channel: int, *, need: Callable[[], int], message: int, grant: Callable[[], None]) -> None:
        """Reserve for the message that is arriving on a channel, in place of what was reserved for the channel before.

        Args:
            channel: its identifier.
            need: what the channel will hold beyond its window once this message is granted; asked when it is its turn.
            message: what the message costs as a whole.
            grant: called now, or when there is room.
        """
        self._waiting[channel] = _Claim(need, message, grant)
        self._serve()

    def consumed(self) -> None:
        """A channel whose message waits needs less than before."""
        self._serve()

    def withdraw(self, channel: int) -> None:
        """The message that waits is there (its window sufficed after all), was given up, or its channel is over."""
        if self._waiting.pop(channel, None) is not None:
            self._serve()

    def release(self, channel: int) -> None:
        """What was reserved is not needed any more; a message that waits goes on waiting."""
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
        """Whether the one over the limit may begin another message.

        Its sender gave the first up and holds credit for it, which only that other message can use up. It may, once
        the other is all that the channel would hold beyond its window: still one message over the limit.
        """
        claim = self._waiting.get(over)
        return claim is not None and claim.need() <= claim.message
