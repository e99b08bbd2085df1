"""A large message under way: the fragments that have come, and how its sender is granted the rest.

Theory. A message larger than what its sender has credit for could never end by the window alone, since credit comes
back as the application consumes, and it consumes whole messages. When the first fragment shows the total, there are two
cases. *The credit at hand suffices* for the rest: nothing is to be done. *It does not*: the message asks for a place in
the connection's budget, and once it has one the rest is granted out of that, a stretch at a time, because what is on
its way for one channel delays the others.

The object exists while its message is under way. What was reserved for it may outlive it: see `ReceiveWindow`.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, final

from trionode import _protocol as wire
from trionode._errors import RemoteProtocolError
from trionode._util.interrupts import interrupted_at_checkpoints

if TYPE_CHECKING:
    from .flow_control import ReceiveWindow, Terms

#: How far ahead a fragmented message is granted credit beside other channels: what is on the way on one delays the
#: others. Measured: granted to its end at once, a 16 MiB message filled the kernel's buffers, and a call beside it took
#: 7 ms; with twice this stretch, 0.8 ms; with this, 0.5 ms.
_STRETCH: Final = 128 * 1024


class Place(Enum):
    """What a message under way has of its connection's budget."""

    #: Nothing, and it needs nothing: its sender has credit to its end.
    UNNEEDED = auto()
    #: Nothing yet. Its sender has too little credit; should the application consume enough meanwhile, that will do.
    AWAITED = auto()
    #: A place: the rest is granted as it comes.
    GRANTED = auto()


@interrupted_at_checkpoints
@final
class Reassembly:
    """The fragments of one message.

    Attributes:
        place: what it has of the budget.
    """

    __slots__ = ("_channel", "_fragments", "_terms", "_total", "_window", "place")

    def __init__(self, first: bytes, total: int, *, channel: int, window: ReceiveWindow, terms: Terms) -> None:
        """Begin with a first fragment, whose cost the window has taken already.

        Args:
            first: that fragment; less than the whole.
            total: the length of the message.
            channel: the number of its channel.
            window: the channel's.
            terms: the connection's.
        """
        self._channel = channel
        self._total = total
        self._window = window
        self._terms = terms
        # One buffer: fragments may be tiny, and each a `bytes` of its own would cost many times what credit counts.
        self._fragments = bytearray(first)
        self.place: Place = Place.UNNEEDED
        if self._rest > window.outstanding:
            self.place = Place.AWAITED
            message = total + wire.MESSAGE_OVERHEAD
            terms.budget.reserve(channel, need=self._need, message=message, grant=self._grant)

    @property
    def cost(self) -> int:
        """What of it has been received, as credit."""
        return len(self._fragments) + wire.MESSAGE_OVERHEAD

    @property
    def _rest(self) -> int:
        return self._total - len(self._fragments)

    def add(self, fragment: bytes) -> bytes | None:
        """The next fragment came; returns the message if that was its last.

        Args:
            fragment: the next bytes.

        Raises:
            RemoteProtocolError: it is empty, or more than was announced, or more than its sender had credit for.
        """
        if not fragment or len(fragment) > self._rest:
            msg = "the peer sent an empty fragment, or more than it announced"
            raise RemoteProtocolError(msg)
        self._window.take(len(fragment))
        self._fragments += fragment
        if not self._rest:
            self.drop()
            return bytes(self._fragments)
        if self.place is Place.GRANTED:
            self._pace()
        return None

    def drop(self) -> None:
        """It is there, was given up, or its channel is over: it waits for no place any more."""
        if self.place is Place.AWAITED:
            self._terms.budget.withdraw(self._channel)

    def _need(self) -> int:
        return self._window.excess(self._rest)

    def _grant(self) -> None:
        self.place = Place.GRANTED
        self._pace()

    def _pace(self) -> None:
        rest, window = self._rest, self._window
        ahead = max(_STRETCH, window.target) if window.grows and self._terms.budget.alone else _STRETCH
        if window.outstanding < min(rest, ahead // 2):
            self._terms.outbox.append(wire.credit(self._channel, window.extend(min(rest, ahead))))
