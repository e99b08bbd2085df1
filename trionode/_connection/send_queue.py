"""The one place where a connection's bytes are queued and written.

Theory. A task that has something to say appends it to one buffer, synchronously; one writer task per connection writes
that buffer. So `send()` is an append and a checkpoint, control frames are legal in a cancelled scope, and byte order is
append order. The writer takes pairs of link and buffer from a queue, in order, and never chooses a link itself: moving
a connection to another link is one synchronous step, `switch`.

*Coalescing* is worth 35 times (measured: one TLS record costs about 5 µs, a scheduler tick 4 µs). Once woken, the
writer yields until the buffer has not grown for two scheduler ticks, and writes once. Two, because Trio shuffles the
order inside a tick: one quiet tick is often chance and halves the throughput. A full record is written at once, unless
there is another in each tick: then more of them go together, until the buffer is full (measured, of 64 KiB messages:
1.1 times as many). There is no timer: a lone message waits about 8 µs.

*What never left.* When a connection is lost, what is still in the buffer was never handed to a transport, and never
will be. So of the channels whose OPEN is in it, it is certain that the peer did not run them (`offered`).

*Backpressure.* Above `HIGH_WATER`, senders of messages wait for room. Control frames do not wait; a peer that makes
this side queue them and does not read is given up at `CEILING`. So what may be large in them has to leave room for the
others (`takes`): a caller with metadata waits where it can, and else is refused, details of an error are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trionode._tls.session import RECORD_SIZE
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._util.text import Buffer

    from .link import Link

#: Senders of messages wait while this many bytes are pending. Above two full fragments there is nothing to gain.
HIGH_WATER: Final = 128 * 1024
#: Pending bytes at which a peer that does not read is given up: messages stop at `HIGH_WATER`, so this is control
#: frames alone, some tens of thousands of them.
CEILING: Final = 2 * 1024 * 1024

#: Scheduler ticks in which nothing was appended, after which the writer writes.
_QUIET_TICKS: Final = 2


def _ignore_wear() -> None:
    """How worn its keys are makes no difference to a connection that ends."""


@interrupted_at_checkpoints
@final
class Outbox:
    """Bytes to be written, and the task that writes them.

    Attributes:
        room: where senders wait for room; woken when there is some, and when the connection ends.
        bytes_written: before encryption.
        opened: the last channel of ours whose OPEN was appended.
        offered: the last whose OPEN a transport may have taken.
        held: whether the writer is left asleep, until `release`.
    """

    def __init__(self, link: Link, *, worn: Callable[[], None], max_records: int) -> None:
        """Make one.

        Args:
            link: where what is appended goes, until `switch`.
            worn: called after a write that brought the link to `max_records`, and after each that follows.
            max_records: TLS records sent under one key.
        """
        self._link = link
        self._worn = worn
        self._max_records = max_records
        self._pending = bytearray(link.confirmation)
        # Mostly empty, two at most in a hand-over. With each buffer, `opened` as it was when that was full.
        self._queue: list[tuple[Link, bytearray, trio.Event | None, int]] = []
        self._closing = False
        self._sending = False
        # The writer, while there is nothing to write.
        self._writer = Waiter()
        self.room: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self.bytes_written: int = 0
        self.held: bool = False
        self.opened: int = 0
        self.offered: int = 0

    @property
    def link(self) -> Link:
        """The link that what is appended now will go to."""
        return self._link

    @property
    def full(self) -> bool:
        """Whether senders of messages should wait for room."""
        return len(self._pending) >= HIGH_WATER

    @property
    def overflowing(self) -> bool:
        """Whether the peer makes this side queue answers and does not read them."""
        return len(self._pending) > CEILING

    def takes(self, size: int) -> bool:
        """Whether so many bytes in a control frame leave room for other frames.

        Args:
            size: of metadata, or of details.
        """
        return len(self._pending) + size <= CEILING // 2

    async def wait_for_room(self) -> None:
        """Wait while senders should, until the connection ends. Cancelling is harmless."""
        while self.full and not self._closing:
            await self.room.park()

    def append(self, head: Buffer, body: Buffer = b"") -> None:
        """Queue bytes, in order; synchronous, legal in a cancelled scope. After `close()` they are dropped.

        Args:
            head: a frame's header, or whole frames.
            body: what follows, copied at once.
        """
        if self._closing:
            return
        pending = self._pending
        pending += head
        if body:
            pending += body
        if self._writer.task is not None and not self.held:
            self._writer.wake()

    def hold(self) -> None:
        """Leave the writer asleep while a caller, in one step, appends all that it has to say: until `release`."""
        self.held = True

    def release(self, *, flush: bool = False) -> None:
        """Have what was appended since `hold` written.

        Args:
            flush: at once, if that can be done.
        """
        self.held = False
        if flush:
            self.flush()
        if self._pending or self._link.stream.unsent:
            self._writer.wake()

    def flush(self, *, last: bool = False) -> None:
        """Write what is pending without waiting, if that can be done at once; synchronous.

        For a caller that has said all that it has to say and is alone on its connection: having the writer look round
        for more is worth it only where there may be more (measured: three scheduler ticks, 15 µs each way of a call).

        Args:
            last: whether the end of the stream follows.
        """
        if self._sending or self._queue or self._closing or not (self._pending or last):
            return
        try:
            if self._link.stream.send_at_once(self._pending, last=last):
                self.offered = self.opened
                self.bytes_written += len(self._pending)
                self._pending = bytearray()
                self._link.confirmation = b""
                if self.room:
                    self.room.unpark_all()
                self._check_wear(self._link)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the writer meets it again, and the connection ends

    def switch(self, link: Link, *, last: bytes) -> trio.Event:
        """Move to another link, in one step: what was appended goes to the old one, what follows to the new one.

        Args:
            link: the new link.
            last: ends what the old link gets.

        Returns:
            An event that is set once everything for the old link was written.
        """
        written = trio.Event()
        self._pending += last
        self._queue.append((self._link, self._pending, written, self.opened))
        self._link, self._pending = link, bytearray(link.confirmation)
        self._writer.wake()
        self.room.unpark_all()
        return written

    def close(self) -> None:
        """Nothing more will be appended: the writer ends once it has written what cannot be written at once."""
        self.flush(last=True)
        self._closing = True
        self.room.unpark_all()
        # That was a method of the connection: the two would keep each other, and all of OpenSSL's memory, until the
        # cyclic collector runs.
        self._worn = _ignore_wear
        self._writer.wake()

    def discard(self) -> None:
        """Forget what was not written yet, but for what makes the peer listen to the last words that follow."""
        self._pending = bytearray(self._link.confirmation)
        self._queue.clear()

    async def write(self) -> None:
        """Write what is appended, until `close()`; the connection's writer task.

        Cancelling it may tear a record: the link is then good for nothing but closing.

        Raises:
            trio.BrokenResourceError: the link broke.
        """
        while True:
            while not (self._pending or self._queue or self._link.stream.unsent):
                if self._closing:
                    return
                await self._writer.wait()
            if not self._queue:
                await self._settle()
                if not (self._pending or self._link.stream.unsent):
                    continue  # flushed meanwhile
                self._queue.append((self._link, self._pending, None, self.opened))
                self._pending = bytearray()
                self._link.confirmation = b""
                self.room.unpark_all()
            await self._send(*self._queue.pop(0))

    async def _send(self, link: Link, buffer: bytearray, written: trio.Event | None, opened: int) -> None:
        stream = link.stream
        # No checkpoint where all goes at once: the writer's next is where it waits for more.
        rest = b"" if stream.send_at_once(buffer) else buffer
        if not stream.send_broken:
            self.offered = opened
        if rest or stream.unsent:
            self._sending = True
            await stream.send_all(rest)
            self._sending = False
        self.bytes_written += len(buffer)
        if written is not None:
            written.set()
        else:
            self._check_wear(link)

    def _check_wear(self, link: Link) -> None:
        if link.stream.records_sent >= self._max_records:
            self._worn()

    async def _settle(self) -> None:
        size, quiet = len(self._pending), 0
        while size < HIGH_WATER and quiet < _QUIET_TICKS and not self._closing:
            await trio.lowlevel.cancel_shielded_checkpoint()
            grown = len(self._pending)
            if not grown or grown >= RECORD_SIZE > grown - size:
                return  # flushed meanwhile, or a record is full
            quiet = quiet + 1 if grown == size else 0
            size = grown
