"""What every end of every exchange has noted, and what follows from it: no message may be lost without an error.

Theory. An exchange is a talk (a channel with numbered messages both ways) or a call; it has a number, and two ends.
Each end notes what it sent, what it received, and how it ended, in a slot of its own in a file that its process has
mapped into memory: what was noted is there whenever and however the process ends, and noting costs a microsecond.

A message counts as sent before it is handed to `send`, and as received after it came out of `receive`. Both ends of a
talk tell each other at the end how much there was and how much came, and an end that has heard that everything came
ends `COMPLETE`. So what a complete end has sent, and the other has not received, was lost silently. An end that is not
complete was told so by an exception of the channel, or its process was killed, which only this program knows.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Number of the exchange, role, end, and the figures; an unused slot has the number 0.
_SLOT: Final = struct.Struct("<QBBxx5I")
_FIGURE: Final = struct.Struct("<I")
_FIGURES_AT: Final = 12
_END_AT: Final = 9

#: Slots that a process has by default; a file has holes where nothing was noted.
CAPACITY: Final = 1_000_000


class Role(IntEnum):
    """Which end of what."""

    TALKER = 1
    TALK_SERVICE = 2
    CALLER = 3
    CALL_SERVICE = 4


class End(IntEnum):
    """How an exchange was over for an end; for all but the first, what it had sent may be lost."""

    NONE = 0
    """It was not: it goes on, hangs, or its process was killed."""
    COMPLETE = 1
    BROKEN = 2
    """`BrokenResourceError`: the connection was lost, or the peer closed it."""
    CLOSED = 3
    """`ClosedResourceError`: this program closed the connection or the node."""
    REMOTE = 4
    """`RemoteError`: the peer did not do it."""
    CANCELLED = 5
    """The service was cancelled."""
    NOT_OPENED = 6
    """There was no connection, and none came about."""
    TRUNCATED = 7
    """The channel ended as if all had been said, and it had not: must not be."""


class Entry:
    """One slot, to be written."""

    def __init__(self, ledger: Ledger, memory: mmap.mmap, offset: int) -> None:
        self._ledger = ledger
        self._memory = memory
        self._offset = offset

    def _figure(self, index: int, value: int) -> None:
        _FIGURE.pack_into(self._memory, self._offset + _FIGURES_AT + 4 * index, value)

    def sent(self, count: int) -> None:
        """So many messages were handed over for sending, or are about to be."""
        self._figure(0, count)

    def received(self, count: int) -> None:
        """So many different messages came, this one included."""
        self._ledger.received += 1
        self._figure(1, count)

    def wrong(self, *, doubled: int, reordered: int, corrupt: int) -> None:
        """So many came that should not have come like that."""
        for index, value in enumerate((doubled, reordered, corrupt), start=2):
            self._figure(index, value)

    def end(self, how: End) -> None:
        """It is over; the first word stands."""
        if not self._memory[self._offset + _END_AT]:
            self._memory[self._offset + _END_AT] = how


class Ledger:
    """The notes of one process.

    Attributes:
        received: messages, in all exchanges together.
    """

    def __init__(self, file: Path, capacity: int = CAPACITY) -> None:
        with file.open("xb+") as stream:
            stream.truncate(capacity * _SLOT.size)
            self._memory = mmap.mmap(stream.fileno(), 0)
        self.received = 0
        self._capacity = capacity
        self._used = 0

    def begin(self, number: int, role: Role) -> Entry:
        """A slot for one end of an exchange."""
        if self._used == self._capacity:
            msg = f"the ledger is full after {self._used} exchanges"
            raise RuntimeError(msg)
        offset = self._used * _SLOT.size
        self._used += 1
        _SLOT.pack_into(self._memory, offset, number, role, End.NONE, 0, 0, 0, 0, 0)
        return Entry(self, self._memory, offset)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What one end has noted.

    Attributes:
        number: of the exchange.
        role: which end.
        end: how it was over.
        sent: messages.
        received: messages that came, each counted once.
        doubled: that came again.
        reordered: that came after a later one.
        corrupt: that were not what was sent.
        killed: whether its process was killed.
    """

    number: int
    role: Role
    end: End
    sent: int = 0
    received: int = 0
    doubled: int = 0
    reordered: int = 0
    corrupt: int = 0
    killed: bool = False


def read(file: Path, *, killed: bool) -> Iterator[Note]:
    """Everything that a process has noted."""
    with file.open("rb") as stream:
        while (slot := stream.read(_SLOT.size)) and slot[0:8] != bytes(8):
            number, role, end, sent, received, doubled, reordered, corrupt = _SLOT.unpack(slot)
            yield Note(
                number=number,
                role=Role(role),
                end=End(end),
                sent=sent,
                received=received,
                doubled=doubled,
                reordered=reordered,
                corrupt=corrupt,
                killed=killed,
            )


@dataclass(kw_only=True)
class Account:
    """The sum of all notes.

    Attributes:
        sent: messages.
        delivered: messages.
        lost: messages, by what their senders were told.
        lost_silently: messages whose sender was told that they arrived, or nothing.
        doubled: messages.
        reordered: messages.
        corrupt: messages.
        talks: by how they ended for the end that began them.
        calls: likewise.
        problems: what must not be.
    """

    sent: int = 0
    delivered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    lost_silently: int = 0
    doubled: int = 0
    reordered: int = 0
    corrupt: int = 0
    talks: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def how(note: Note) -> str:
    """How an exchange was over for an end, in a word."""
    return "killed" if note.end is End.NONE and note.killed else note.end.name.lower()


def judge(notes: Iterable[Note]) -> Account:
    """Add everything up."""
    account = Account()
    begun: dict[int, Note] = {}
    served: dict[int, Note] = {}
    for note in notes:
        side = begun if note.role in (Role.TALKER, Role.CALLER) else served
        if note.number in side:
            account.problems.append(f"exchange {note.number} ran twice ({note.role.name.lower()})")
        side[note.number] = note
        _judge_end(note, account)
    for number, opener in begun.items():
        tally = account.talks if opener.role is Role.TALKER else account.calls
        tally[how(opener)] += 1
        service = served.pop(number, None)
        cut = End.TRUNCATED in (opener.end, None if service is None else service.end)
        _judge_way(opener, None if cut else opener, 0 if service is None else service.received, account)
        if service is not None:
            # Whether a reply came is known to the caller; whether a talk's messages came, to the end that sent them.
            told = service if opener.role is Role.TALKER else opener
            _judge_way(service, None if cut else told, opener.received, account)
    account.problems += [f"exchange {number} was served, and never begun" for number in served]
    return account


def _judge_end(note: Note, account: Account) -> None:
    account.doubled += note.doubled
    account.reordered += note.reordered
    account.corrupt += note.corrupt
    where = f"exchange {note.number} ({note.role.name.lower()})"
    if note.doubled or note.reordered or note.corrupt:
        wrong = f"{note.doubled} doubled, {note.reordered} reordered, {note.corrupt} corrupt"
        account.problems.append(f"{where}: {wrong}")
    if note.end is End.TRUNCATED:
        account.problems.append(f"{where}: it ended as if it had been complete, and was not")
    if note.end is End.NONE and not note.killed:
        account.problems.append(f"{where}: it never ended; {note.sent} sent, {note.received} received")


def _judge_way(sender: Note, told: Note | None, received: int, account: Account) -> None:
    """One direction of one exchange; `told` is the end that would have been told of a loss, if any was."""
    account.sent += sender.sent
    account.delivered += received
    lost = sender.sent - received
    if lost < 0:
        account.problems.append(f"exchange {sender.number}: {sender.sent} were sent, {received} received")
    elif lost:
        if told is None or told.end is End.COMPLETE or (told.end is End.NONE and not told.killed):
            account.lost_silently += lost
            account.problems.append(f"exchange {sender.number}: {lost} of {sender.sent} were lost without an error")
        else:
            account.lost[how(told)] += lost
