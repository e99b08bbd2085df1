"""Whether the peer of a connection is alive: heartbeat, and probes.

Theory. Anything that comes from a peer shows that it lives. A peer that was silent for `heartbeat_interval` is pinged;
one that stays silent for `heartbeat_tolerance` after that is dead, stopped or cut off. A probe is a ping whose outcome
a caller waits for. A verdict waits a few scheduler ticks more: on a machine that is behind, what was to come in time
may be here, and be read in this very tick.

Where the transport itself knows that both ends are alive (`Watched`: memory under a mock clock, where months may pass
in an instant), no ping is sent until it no longer does.

The task that keeps the heartbeat also sees to it that the buffers of a link which were large in a transfer are given
back: a second after they were seen to be, and so at most once a second while it lasts; and at each heartbeat.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import _protocol as wire
from trionode._tls.stream import RELIEF
from trionode._transport.interfaces import Watched
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.waiter import Waiter

if TYPE_CHECKING:
    from .send_queue import Outbox

#: Scheduler ticks that a peer's answer, which may have arrived already, gets to be read.
_LAST_CHANCE_TICKS: Final = 3


@interrupted_at_checkpoints
@final
class Liveness:
    """Watches over one peer, until the connection ends."""

    __slots__ = (
        "_attended",
        "_heard",
        "_last_heard",
        "_nap",
        "_outbox",
        "_over",
        "_probes",
        "_reads",
        "_swollen",
        "_waiter",
    )

    def __init__(self, outbox: Outbox) -> None:
        """Begin with a peer that was heard just now.

        Args:
            outbox: the connection's, for pings.
        """
        self._outbox = outbox
        self._last_heard = trio.current_time()
        self._reads = 0
        self._heard = trio.lowlevel.ParkingLot()
        self._probes: dict[bytes, trio.Event] = {}
        self._over = False
        # What the one task that calls `beat` sleeps in.
        self._nap: trio.CancelScope | None = None
        self._waiter = Waiter()
        # Whether buffers of the link are large, as the reader has seen.
        self._swollen = False
        # The transport stream that was told of us last, if it is one that watches itself.
        self._attended: object = None

    def hear(self) -> None:
        """Something came from the peer. Synchronous."""
        self._reads += 1
        self._last_heard = trio.current_time()
        if self._heard:
            self._heard.unpark_all()

    def heard_within(self, seconds: float) -> bool:
        """Whether anything came from the peer so recently.

        Args:
            seconds: how recently; from 0 up.
        """
        return trio.current_time() - self._last_heard <= seconds

    # Heartbeat

    async def beat(self, interval: float, tolerance: float) -> bool:
        """Let the peer be silent for the interval; then ping it, and wait for a sign of life.

        Args:
            interval: silence after which the peer is pinged, seconds.
            tolerance: how long it may take to answer, seconds.

        Returns:
            False where there was no sign of life; True where there was, and once the connection ends.
        """
        if self._swollen:
            with trio.CancelScope(deadline=trio.current_time() + RELIEF) as self._nap:
                await self._waiter.wait()
            self._relieve()
            return True
        watched = self._attend()
        with trio.CancelScope(deadline=self._last_heard + interval) as self._nap:
            await self._waiter.wait()
        silent_since = self._last_heard
        if self._over or trio.current_time() < silent_since + interval:  # to the bit what was slept until
            return True
        self._relieve()
        if watched is not None and watched.sound:
            with trio.CancelScope() as self._nap:
                await self._waiter.wait()
            self._last_heard = trio.current_time()  # so far an answer was certain
            return True
        self._outbox.hold()
        self._outbox.append(wire.header(wire.PING, 0, 8), bytes(8))
        self._outbox.release(flush=True)  # there is nothing else to say, or it would not be silent
        with trio.CancelScope(deadline=trio.current_time() + tolerance) as self._nap:
            await self._heard.park()
        if self._last_heard == silent_since:
            await _let_the_reader_read()
        return self._last_heard != silent_since or self._over

    def _attend(self) -> Watched | None:
        """The transport of the current link, if it watches itself; it is told once that we answer heartbeats."""
        stream = self._outbox.link.stream.transport_stream
        # Asking whether it is one takes 15 µs, and a socket never is.
        if isinstance(stream, trio.SocketStream) or not isinstance(stream, Watched):
            return None
        if stream is not self._attended:
            self._attended = stream
            stream.attend(self._waiter.wake)
        return stream

    def relieve_soon(self) -> None:
        """The link has large buffers, which are to be given back before long. Synchronous."""
        if not self._swollen:
            self._swollen = True
            self._waiter.wake()

    def _relieve(self) -> None:
        self._swollen = False
        self._outbox.link.stream.relieve()

    def wake(self) -> None:
        """Have `beat` return soon. To be woken costs less than to be cancelled."""
        self._waiter.wake()

    def end(self, until: float) -> None:
        """The connection has begun to end: probes have failed, and `beat` sleeps on no longer than this.

        Args:
            until: on Trio's clock.
        """
        self._over = True
        for probe in self._probes.values():
            probe.set()
        if self._nap is not None:
            self._nap.deadline = until

    # Probes

    async def answers(self, within: float, *, insist: bool) -> bool:
        """Whether a peer that is pinged is heard in time. Cancelling is harmless.

        Args:
            within: seconds.
            insist: on the answer itself. Else whatever comes from it will do: its answer may queue behind much else.
        """
        nonce = secrets.token_bytes(8)
        answered = self._probes[nonce] = trio.Event()
        reads = self._reads
        try:
            self._outbox.append(wire.header(wire.PING, 0, len(nonce)), nonce)
            with trio.move_on_after(within):
                await answered.wait()
            await _let_the_reader_read()
        finally:
            del self._probes[nonce]
        return answered.is_set() or (self._reads != reads and not insist)

    def on_pong(self, payload: bytes) -> None:
        """An answer to a ping came; to a probe's, if its caller still waits.

        Args:
            payload: what the ping had.
        """
        probe = self._probes.get(payload)
        if probe is not None:
            probe.set()


async def _let_the_reader_read() -> None:
    for _ in range(_LAST_CHANCE_TICKS):
        await trio.lowlevel.checkpoint()
