"""One TCP connection in memory: what two kernels, and the way between them, do with it.

Theory. Each direction is a queue of segments, each with the time at which it arrives. Nothing runs in the background:
an operation on either end first lets everything arrive that is due, in order of time (`Wire.catch_up`); a task that
waits, waits for a change or for the next segment. So no task owns a connection, and what happens when depends on Trio's
clock and the seed alone.

The rules are TCP's, as Linux keeps them (measured on loopback):

* Closing sends FIN behind what was sent; or RST, if there is unread data at that end.
* What arrives at an end that was closed is answered with RST.
* After an RST sending fails at once. What had arrived before it can still be read, unless `reset_discards` (as on other
  systems); then receiving fails, but where FIN had come before, it still gives the end.
* What a partition holds up is sent again until it arrives, FIN included. An RST is sent once: if it is lost, the other
  end knows nothing (half-open) until what it sends is answered by another.
* What was sent and not read yet is in one buffer per direction. When that is full, the sender waits.
"""

from __future__ import annotations

import errno
import math
import operator
import os
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio
import trio.testing

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from trionode._util.text import Address

    from ._faults import Faults

#: What `receive_some()` without a size returns at most, bytes; as Trio's `SocketStream`.
_RECEIVE_SIZE: Final = 64 * 1024
#: A direction with a rate delivers so many times a second, in pieces.
_PIECES_PER_SECOND: Final = 10


@final
@dataclass(slots=True)
class Way:
    """The way from one host to another, in its present state; shared by all connections between the two.

    Attributes:
        latency: seconds.
        jitter: at most so much more, seconds.
        blocked: whether everything that is sent is lost.
    """

    latency: float
    jitter: float
    blocked: bool = False

    def draw(self, rng: random.Random) -> float:
        """How long what is sent now takes, seconds."""
        return self.latency + self.jitter * rng.random()


class _Kind(Enum):
    DATA = auto()
    FIN = auto()
    RST = auto()


@dataclass(slots=True)
class _Segment:
    due: float
    kind: _Kind
    data: bytes = b""


@final
class Direction:
    """What one end sends to the other: the sender's buffer, the way, and the faults.

    Attributes:
        sent: bytes so far, delivered or not.
        way: the way that they take.
    """

    def __init__(self, way: Way, faults: Faults, rng: random.Random, buffer: int) -> None:
        self.sent: int = 0
        self.way: Way = way
        self._faults = faults
        self._rng = rng
        self._buffer = buffer
        self._on_the_way: deque[_Segment] = deque()
        self._pending = 0  # bytes on the way, or lost and never acknowledged
        self._free_at = -math.inf  # when a direction with a rate has room for more
        self._last_due = -math.inf
        self._drawn_at = -math.inf
        self._delay = 0.0
        self._swallows = False  # what is sent from now on is lost, without notice to the sender
        self._stalled = False
        self._scripted = faults != type(faults)()
        ends = ((faults.reset_after, _Kind.RST), (faults.eof_after, _Kind.FIN), (faults.stall_after, None))
        self._ends = min(((at, kind) for at, kind in ends if at is not None), key=lambda end: end[0], default=None)

    def room(self, unread: int) -> int:
        """How many bytes the sender may add, where so many have arrived and were not read."""
        return self._buffer - self._pending - unread

    @property
    def sound(self) -> bool:
        """Whether whatever is sent arrives, now and as long as nothing is done to it."""
        return not (self.way.blocked or self._swallows or self._scripted)

    @property
    def due(self) -> float:
        """When the next segment arrives, or is lost for good."""
        if self.way.blocked:
            return min((segment.due for segment in self._on_the_way if segment.kind is _Kind.RST), default=math.inf)
        return self._on_the_way[0].due if self._on_the_way else math.inf

    def take(self) -> _Segment | None:
        """Take the segment that is due; None if that was a reset that got lost."""
        if self.way.blocked:
            self._on_the_way.remove(min((s for s in self._on_the_way if s.kind is _Kind.RST), key=lambda s: s.due))
            return None
        segment = self._on_the_way.popleft()
        self._pending -= len(segment.data)
        return segment

    def resend(self) -> None:
        """After a partition: send again what should have arrived by now."""
        now = trio.current_time()
        if self._on_the_way and self._on_the_way[0].due <= now:
            for segment in self._on_the_way:
                segment.due = max(segment.due, now + self.way.latency)
            self._last_due = self._on_the_way[-1].due

    def add(self, data: bytes) -> bool:
        """Send bytes, for which there must be room; returns whether that breaks the connection (`reset_after`)."""
        start = self.sent
        self.sent += len(data)
        if self._swallows:
            self._pending += len(data) if self._stalled else 0
            return False
        passing = data if self._ends is None else data[: max(0, self._ends[0] - start)]
        self._pending += len(passing)
        for piece in self._pieces(self._corrupted(passing, start)):
            self._enqueue(_Kind.DATA, piece)
        broke = self.fail_if_due()
        self._pending += len(data) - len(passing) if self._stalled else 0
        return broke

    def fail_if_due(self) -> bool:
        """Apply the fault that ends this direction, if its offset has been reached; returns whether it is a reset."""
        if self._ends is None or self.sent < self._ends[0] or self._swallows:
            return False
        kind = self._ends[1]
        if kind is _Kind.FIN:
            self.end()
        self._stalled = kind is None
        self._swallows = kind is not _Kind.RST
        return kind is _Kind.RST

    def end(self) -> None:
        """Send FIN."""
        self._enqueue(_Kind.FIN)

    def reset(self, *, since: float | None = None, last: bool = False) -> None:
        """Send RST.

        Args:
            since: when it set out; None for now.
            last: whether everything that is sent later is lost.
        """
        self._enqueue(_Kind.RST, since=since)
        self._swallows = self._swallows or last

    def _enqueue(self, kind: _Kind, data: bytes = b"", *, since: float | None = None) -> None:
        if self._swallows:
            return
        now = trio.current_time() if since is None else since
        self._free_at = max(now, self._free_at) + len(data) / self._faults.rate
        if now != self._drawn_at:
            # One draw for all that is sent at one instant: into how many pieces that is split depends on the scheduler.
            self._drawn_at, self._delay = now, self.way.draw(self._rng)
        due = self._free_at + self._faults.delay + self._delay
        self._last_due = max(self._last_due, due)  # nothing overtakes
        self._on_the_way.append(_Segment(self._last_due, kind, data))

    def _corrupted(self, data: bytes, start: int) -> bytes:
        wrong = [offset - start for offset in self._faults.corrupt if start <= offset < start + len(data)]
        if not wrong:
            return data
        changed = bytearray(data)
        for index in wrong:
            changed[index] ^= 0xFF
        return bytes(changed)

    def _pieces(self, data: bytes) -> list[bytes]:
        if self._faults.rate == math.inf:
            return [data] if data else []
        size = max(1, int(self._faults.rate / _PIECES_PER_SECOND))
        return [data[start : start + size] for start in range(0, len(data), size)]


@final
class Wire:
    """Both directions of one connection, and its two ends.

    Attributes:
        there: from the dialer to the acceptor.
        back: the other way.
        dialer: the dialer's end.
        acceptor: the acceptor's end.
    """

    def __init__(
        self,
        there: Direction,
        back: Direction,
        addresses: tuple[Address, Address],
        *,
        reset_discards: bool,
        over: Callable[[], object],
    ) -> None:
        """Connect two ends.

        Args:
            there: from the dialer to the acceptor.
            back: the other way.
            addresses: the dialer's and the acceptor's.
            reset_discards: whether what had arrived is lost when an RST does.
            over: called once both ends are closed.
        """
        ours, theirs = addresses
        self.there: Direction = there
        self.back: Direction = back
        self.reset_discards: bool = reset_discards
        self.dialer: MemoryStream = MemoryStream(self, there, back, address=ours, peer_address=theirs)
        self.acceptor: MemoryStream = MemoryStream(self, back, there, address=theirs, peer_address=ours)
        self._over = over
        self._changed = trio.lowlevel.ParkingLot()
        if there.fail_if_due() or back.fail_if_due():
            self.reset()
        self.stir()

    def reset(self) -> None:
        """Reset both ends, behind what is on the way to them; nothing that they send later arrives."""
        for direction in self.there, self.back:
            direction.reset(last=True)
        self.stir()
        self.disturb()

    def stir(self) -> None:
        """After a change: let everything arrive that is due, and wake the tasks that wait."""
        self.catch_up()
        self._changed.unpark_all()

    def catch_up(self) -> None:
        """Let everything arrive that is due, in order of time."""
        now = trio.current_time()
        ways = ((self.there, self.acceptor), (self.back, self.dialer))
        while True:
            direction, end = min(ways, key=lambda way: way[0].due)
            at = direction.due
            if at > now:
                return
            segment = direction.take()
            if segment is not None:
                end.arrive(segment, at)
                self._changed.unpark_all()

    async def wait(self) -> None:
        """Wait until something has changed, or is due."""
        with trio.move_on_at(min(self.there.due, self.back.due)):
            await self._changed.park()

    def disturb(self) -> None:
        """Tell those who attend the ends that bytes may no longer pass."""
        for end in self.dialer, self.acceptor:
            if end.disturbed is not None:
                end.disturbed()

    def closed(self) -> None:
        """After one end was closed."""
        self.stir()
        self.disturb()
        if self.dialer.is_closed and self.acceptor.is_closed:
            self._over()


@final
class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection.

    Attributes:
        address: its own (host, port).
        peer_address: the other end's.
        is_closed: whether its owner has closed it.
        disturbed: what was given to `attend`, or None.
    """

    def __init__(
        self, wire: Wire, outgoing: Direction, incoming: Direction, *, address: Address, peer_address: Address
    ) -> None:
        self.address: Address = address
        self.peer_address: Address = peer_address
        self.is_closed: bool = False
        self.disturbed: Callable[[], None] | None = None
        self._wire = wire
        self._outgoing = outgoing
        self._incoming = incoming
        self._unread = bytearray()
        self._ended = False
        self._reset = False
        self._eof_sent = False
        self._sending = False
        self._receiving = False

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "reset" if self._reset else "open"
        return f"<MemoryStream from {self.address} to {self.peer_address}, {state}>"

    # Heartbeats

    def attend(self, disturbed: Callable[[], None], /) -> None:
        """See `Watched.attend`."""
        self.disturbed = disturbed

    @property
    def sound(self) -> bool:
        """See `Watched.sound`; under a mock clock only, so that heartbeats are as ever where time is real."""
        wire = self._wire
        return (
            isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
            and wire.there.sound
            and wire.back.sound
            and all(end.disturbed is not None and not end.is_closed for end in (wire.dialer, wire.acceptor))
        )

    # What arrives

    def arrive(self, segment: _Segment, at: float) -> None:
        """Take a segment that arrived at that time."""
        if segment.kind is _Kind.RST:
            self._reset = True
            if self._wire.reset_discards:
                self._unread.clear()
        elif segment.kind is _Kind.FIN:
            self._ended = True
        elif self.is_closed or self._reset:
            self._outgoing.reset(since=at)
        else:
            self._unread += segment.data

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not received."""
        return len(self._unread)

    # Sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the buffer is full. Cancelled, an unknown part of it was sent."""
        self._begin_send()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            with memoryview(data) as items, items.cast("B") as view:
                self._wire.catch_up()
                self._check_sendable()
                position = self._send_some(view, 0)
                while position < len(view):
                    if self._room <= 0:
                        await self._wire.wait()
                    self._wire.catch_up()
                    self._check_sendable()
                    position += self._send_some(view, position)
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._sending = False

    def _send_some(self, view: memoryview, start: int) -> int:
        piece = bytes(view[start : start + max(0, self._room)])
        if piece:
            if self._outgoing.add(piece):
                self._wire.reset()
            self._wire.stir()
        return len(piece)

    @property
    def _room(self) -> int:
        other = self._wire.acceptor if self is self._wire.dialer else self._wire.dialer
        return self._outgoing.room(other.unread)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the buffer, or sending fails."""
        self._begin_send()
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._wire.catch_up()
                self._check_sendable()
                if self._room > 0:
                    return
                await self._wire.wait()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Send FIN behind what was sent; receiving goes on. Idempotent."""
        self._begin_send()
        try:
            await trio.lowlevel.checkpoint()
            self._wire.catch_up()
            if self._eof_sent and not self.is_closed:
                return
            self._check_sendable()
            self._eof_sent = True
            self._outgoing.end()
            self._wire.stir()
        finally:
            self._sending = False

    def _begin_send(self) -> None:
        if self._sending:
            msg = "another task is sending on this stream"
            raise trio.BusyResourceError(msg)
        self._sending = True

    def _check_sendable(self) -> None:
        self._check_open()
        if self._eof_sent:
            msg = "send_eof() was called before"
            raise trio.ClosedResourceError(msg)
        if self._reset:
            self._raise_broken(errno.EPIPE if self._ended else errno.ECONNRESET)

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or `b""` once the other end has sent FIN. Cancelling loses nothing."""
        limit = _RECEIVE_SIZE if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            msg = "max_bytes must be >= 1"
            raise ValueError(msg)
        if self._receiving:
            msg = "another task is receiving on this stream"
            raise trio.BusyResourceError(msg)
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._wire.catch_up()
                self._check_open()
                if self._unread:
                    data = bytes(self._unread[:limit])
                    del self._unread[:limit]
                    self._wire.stir()  # there is room again
                    return data
                if self._ended:
                    return b""
                if self._reset:
                    self._raise_broken(errno.ECONNRESET)
                await self._wire.wait()
        finally:
            self._receiving = False

    def _check_open(self) -> None:
        if self.is_closed:
            msg = "this stream was closed"
            raise trio.ClosedResourceError(msg)

    def _raise_broken(self, number: int) -> NoReturn:
        cause = OSError(number, os.strerror(number))
        msg = f"the connection to {self.peer_address[0]} port {self.peer_address[1]} is broken: {cause.strerror}"
        raise trio.BrokenResourceError(msg) from cause

    # Closing

    def close(self, *, abort: bool = False) -> None:
        """Close this end, at once: FIN, or RST where something is unread, or to abort. Idempotent."""
        if self.is_closed:
            return
        self._wire.catch_up()
        self.is_closed = True
        if not self._reset:
            if abort or self._unread:
                self._outgoing.reset()
            elif not self._eof_sent:
                self._outgoing.end()
        self._unread.clear()
        self._wire.closed()

    async def aclose(self) -> None:
        """Close this end. Never waits for the other."""
        self.close()
        await trio.lowlevel.checkpoint()
