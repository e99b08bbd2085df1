"""A talk: numbered messages both ways on one channel, until each side knows that the other has everything."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from trionode import HandshakeError, NoRouteError, RemoteError

from .ledger import End

if TYPE_CHECKING:
    from .ledger import Entry

#: Kind, number of the talk, who sends (as `Plan.opens`), number of the message or how many there were.
_HEADER: Final = struct.Struct("<cQ?I")
_MESSAGE, _END, _RECEIVED = b"m", b"e", b"r"

#: What messages are filled with: any two places in it differ.
_FILLING: Final = random.Random(0).randbytes(2**20)  # noqa: S311 -- it only has to be recognised
_LARGEST: Final = 300 * 1024


class MessageChannel(Protocol):
    """What is needed of a channel."""

    async def send(self, value: bytes) -> None:
        """Send one message."""

    async def receive(self) -> bytes:
        """Receive one message."""


class TruncatedError(Exception):
    """A channel ended cleanly before everything was said."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One side of a talk.

    Attributes:
        number: of the talk.
        opens: whether this is the side that opened the channel.
        messages: how many it sends.
        pause: how long it rests between two, seconds.
    """

    number: int
    opens: bool
    messages: int
    pause: float


def message(talk: int, number: int, *, opens: bool) -> bytes:
    """The message with this number; the same in every process. Most are small, a few take several windows."""
    draw = random.Random(talk << 33 | opens << 32 | number)  # noqa: S311 -- both ends have to draw the same
    size = int(draw.paretovariate(0.5)) if draw.random() < 0.95 else draw.randrange(_LARGEST)
    start = draw.randrange(len(_FILLING) - _LARGEST)
    return _HEADER.pack(_MESSAGE, talk, opens, number) + _FILLING[start : start + min(size, _LARGEST)]


class Heard:
    """What one side has received, and whether it is as it should be."""

    def __init__(self, talk: int, entry: Entry, *, opens: bool) -> None:
        self.count = 0
        self._talk = talk
        self._opens = opens
        self._entry = entry
        self._next = 0
        self._skipped: set[int] = set()
        self._doubled = 0
        self._reordered = 0
        self._corrupt = 0

    def take(self, number: int, received: bytes) -> None:
        """Note a message."""
        new = True
        if number == self._next:
            self._next += 1
        elif number > self._next:
            self._skipped.update(range(self._next, number))
            self._next = number + 1
        elif number in self._skipped:
            self._skipped.remove(number)
            self._reordered += 1
        else:
            self._doubled += 1
            new = False
        self._corrupt += received != message(self._talk, number, opens=self._opens)
        self.count += new
        self._entry.received(self.count)
        if self._doubled or self._reordered or self._corrupt:
            self._entry.wrong(doubled=self._doubled, reordered=self._reordered, corrupt=self._corrupt)


async def converse(channel: MessageChannel, plan: Plan, entry: Entry) -> None:
    """One side of a talk; returns once both sides have everything.

    Raises:
        TruncatedError: the channel ended as if they had.
        trio.BrokenResourceError, trio.ClosedResourceError, RemoteError: the channel's errors; possibly in a group.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, channel, plan, entry)
        await _receive(channel, plan, entry)


async def _send(channel: MessageChannel, plan: Plan, entry: Entry) -> None:
    for number in range(plan.messages):
        entry.sent(number + 1)
        await channel.send(message(plan.number, number, opens=plan.opens))
        if plan.pause:
            await trio.sleep(plan.pause)
    await channel.send(_HEADER.pack(_END, plan.number, plan.opens, plan.messages))


async def _receive(channel: MessageChannel, plan: Plan, entry: Entry) -> None:
    heard = Heard(plan.number, entry, opens=not plan.opens)
    have_all = all_is_there = False
    while not (have_all and all_is_there):
        try:
            received = await channel.receive()
        except trio.EndOfChannel as exc:
            raise TruncatedError from exc
        kind, talk, opens, number = _HEADER.unpack_from(received)
        if talk != plan.number or opens is plan.opens:
            msg = f"talk {plan.number} got a message of talk {talk}"
            raise AssertionError(msg)
        if kind == _MESSAGE:
            heard.take(number, received)
        elif kind == _END:
            if heard.count != number:
                raise TruncatedError
            have_all = True
            await channel.send(_HEADER.pack(_RECEIVED, plan.number, plan.opens, heard.count))
        else:
            all_is_there = number == plan.messages
            if not all_is_there:
                raise TruncatedError


#: Errors that an exchange may end with, and what that means; in the order in which they count.
_ENDS: Final = (
    (TruncatedError, End.TRUNCATED),
    (RemoteError, End.REMOTE),
    (trio.BrokenResourceError, End.BROKEN),
    (trio.ClosedResourceError, End.CLOSED),
    (HandshakeError, End.NOT_OPENED),
    (NoRouteError, End.NOT_OPENED),
)


def end_of(error: Exception) -> End | None:
    """What an error, or a group of them, makes of an exchange; None if it is none that may happen."""
    errors = list(_leaves(error))
    if not all(isinstance(each, tuple(kind for kind, _ in _ENDS)) for each in errors):
        return None
    return next(end for kind, end in _ENDS if any(isinstance(each, kind) for each in errors))


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
