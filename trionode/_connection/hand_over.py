"""Hand-over: how a connection moves from one link to another without losing, doubling or reordering a frame.

Theory. A connection outlives its links. What a link carried before the move and what it carries after it are told apart
by one frame, SWITCH, the last on the old link in each direction; everything after it goes by the new one. A move has
three stages.

*Joining.* The new link's handshake is under way or done; the connection is on the old link and knows only that another
may come. If the new link fails, nothing changes. At most one link joins at a time: a later one cancels an earlier one,
and so does the connection's end.

*From commit to settled.* `commit` is one synchronous step: the outbox queues SWITCH as the last frame of the old link,
and everything after it for the new one. So there is no moment at which a frame could go either way. The new link's
reader parses nothing before the peer's SWITCH was read on the old one, so frames stay in order. Both links are needed
now, and if either fails the connection does: what was on its way on the old link cannot be sent again.

*Settling.* A side that has written its SWITCH and read the peer's ends its direction of the old link (close_notify) and
reads to the peer's end: that tells it that its own SWITCH has arrived. When the peer's SWITCH is read (`leave`), there
are four cases:

1. We have committed to leave this very link: the usual one; the new link may be parsed, and the old one is closed by
   both together.
2. We have not committed, and a link is joining: we accepted it, and the dialer's third message, which makes us commit,
   is still on its way on it. Wait for the commit.
3. We have not committed, and no link is joining: it broke after the peer had committed. The connection is lost.
4. The peer may not switch: we dialled, and the dialer commits first; no link ever joined; or this link is the one that
   we have just switched to. A protocol error.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, final

import trio

from trionode import _protocol as wire
from trionode._errors import RemoteProtocolError
from trionode._util.interrupts import interrupted_at_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .link import Link
    from .send_queue import Outbox

__all__ = ["RenewalCause"]

#: How long a hand-over may take from its commit until the old link is closed: what was queued for that has to arrive.
#: Seconds.
SETTLE_GRACE: Final = 60.0


class RenewalCause(StrEnum):
    """Why a connection is to be handed over, or closed in place of that."""

    ROTATED = "rotated"
    """A certificate of ours was rotated."""
    EXPIRING = "expiring"
    """A certificate that it was authenticated with is about to end."""
    WORN = "worn"
    """Its TLS keys have protected as much as they should."""
    ASKED = "asked"
    """The peer asked for it, or did it."""
    BY_HAND = "by_hand"
    """`Connection.reauthenticate` was called."""


@final
@dataclass(slots=True, eq=False)
class Move:
    """A hand-over from commit to settled.

    Attributes:
        old: the link that is left.
        written: set once our last frame on it, SWITCH, was written.
        heard: set once the peer's was read: the new link may be parsed.
    """

    old: Link
    written: trio.Event
    heard: trio.Event = field(default_factory=trio.Event)


@interrupted_at_checkpoints
@final
class HandOver:
    """The link that a connection is on, and its move to another.

    Attributes:
        link: what carries everything; from a commit on, the new one.
        last_attempt: the number of the last attempt to join: ours to make, where we dialled, or seen and proved.
        moves: how many have settled.
    """

    __slots__ = ("_changed", "_joining", "_move", "_over", "last_attempt", "link", "moves")

    def __init__(self, link: Link) -> None:
        """Begin on the connection's first link.

        Args:
            link: that one.
        """
        self.link: Link = link
        self.last_attempt: int = 0
        self.moves: int = 0
        self._joining: trio.CancelScope | None = None
        self._move: Move | None = None
        self._over = False
        # Woken at each step, and when the connection ends.
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def links(self) -> list[Link]:
        """The links that are the connection's: one, or two between commit and settled."""
        return [self.link] if self._move is None else [self.link, self._move.old]

    @contextmanager
    def joining(self, scope: trio.CancelScope) -> Iterator[None]:
        """Announce a link that has been let in and not committed: a later one, or our own end, cancels its scope.

        Args:
            scope: around what is done for the new link.
        """
        if self._joining is not None:
            self._joining.cancel()
        self._joining = scope
        try:
            yield
        finally:
            if self._joining is scope:
                self._joining = None
                self._changed.unpark_all()

    def commit(self, link: Link, outbox: Outbox, *, follows: Link) -> Move:
        """Move to a link that joined: from here on it carries everything. Synchronous.

        Args:
            link: the new one, whose handshake and hello are done.
            outbox: the connection's.
            follows: the link that the connection was on when the new one was let in.

        Raises:
            trio.BrokenResourceError: the connection has moved to another link meanwhile.
        """
        if self._move is not None or follows is not self.link:
            msg = "the connection has moved to another link meanwhile"
            raise trio.BrokenResourceError(msg)
        link.follow(self.link)
        old, self.link = self.link, link
        written = outbox.switch(link, last=wire.header(wire.SWITCH, 0, 0))
        self._move = Move(old, written)
        self._changed.unpark_all()
        return self._move

    async def leave(self, old: Link) -> bool:
        """The peer has sent its last frame on this link: have the new one read, and close this one together with it.

        Args:
            old: the link.

        Returns:
            False where there is no new one, because the connection has begun to end meanwhile.

        Raises:
            RemoteProtocolError: the peer may not send SWITCH here, or sent something after it.
            trio.BrokenResourceError: one of the two links broke.
        """
        while self._move is None:
            if self._over:
                while await old.stream.receive_some():
                    pass
                return False
            if old.dialled or not self.last_attempt:
                msg = "the peer sent SWITCH, and there is no link that we agreed to switch to"
                raise RemoteProtocolError(msg)
            if self._joining is None:
                msg = f"{old.peer.name} moved the connection to a new link, which broke before it was there"
                raise trio.BrokenResourceError(msg)
            await self._changed.park()
        move = self._move
        if move.old is not old:
            msg = "the peer sent SWITCH on the link that it has just switched to"
            raise RemoteProtocolError(msg)
        move.heard.set()
        await move.written.wait()
        await old.stream.send_eof()
        if await old.stream.receive_some():
            msg = "the peer sent something after SWITCH"
            raise RemoteProtocolError(msg)
        await old.stream.aclose()
        self._move = None
        self.moves += 1
        self._changed.unpark_all()
        return True

    async def wait_settled(self) -> None:
        """Wait until no hand-over is between its commit and its end, or the connection ends. Cancelling is harmless."""
        await trio.lowlevel.checkpoint()
        while self._move is not None and not self._over:
            await self._changed.park()

    async def settles_in_time(self, move: Move) -> bool:
        """Whether a hand-over has settled, or the connection has begun to end, within `SETTLE_GRACE`.

        Args:
            move: what `commit` returned.
        """
        with trio.move_on_after(SETTLE_GRACE):
            while self._move is move and not self._over:
                await self._changed.park()
            return True
        return False

    async def wait_left(self, link: Link) -> None:
        """Wait until the connection is on another link than this, or ends. Cancelling is harmless.

        Args:
            link: the one that is to be left.
        """
        await trio.lowlevel.checkpoint()
        while self.link is link and not self._over:
            await self._changed.park()

    def end(self) -> None:
        """The connection has begun to end: a link that joins is given up, and nothing is parsed any more."""
        self._over = True
        if self._joining is not None:
            self._joining.cancel()
        if self._move is not None:
            self._move.heard.set()  # there is no order to keep
        self._changed.unpark_all()
