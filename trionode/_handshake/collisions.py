"""Two at once: who wins when two nodes dial each other, or two claim one name.

Theory. Only links that both sides verified compete; unverified peers take no part. Everything is decided inside the
hello, before either side may open channels, so nothing ever migrates.

*Crossing dials.* The dial of the node whose name sorts first wins, on both sides. A dial counts from the end of its
TLS handshake, so a direction that is firewalled or slow never holds up the other. Nobody refuses a link in favour of
one that is merely expected: the winner's acceptor, having a dial of its own under way, waits for its outcome before it
judges the loser's; the loser's dialer, having promised an inbound one, waits for its outcome before it confirms its
own. Both wait on the winning link, which waits on nothing, so there is no deadlock, and never do both lose.

What makes it *exactly one* is that the loser puts the two in an order: it either promises the inbound link and then
waits with its own, or commits itself to its own (the confirmation is as good as sent) and then waits for that to be
registered before it judges the inbound one. So the winner may confirm whatever was promised to it, without waiting.
And every verdict is passed in one step: after each wait everything is looked at again.

*One name, reserved.* While an acceptor has accepted and not yet heard the confirmation, the name is reserved: others
who claim it wait, and so does a dial of ours that reached another incarnation under it. Bounded by the handshake's
timeout, and a peer can only ever hold up its own name.

*Connected already.* A newcomer of the same incarnation that dials the same way round, or asks to replace, replaces
(its dialer closed or lost the old one, or wants another route). Otherwise the old connection is probed with a ping: a
dead one makes room, a living one makes the newcomer a duplicate, or, if its incarnation is another, the second node of
one name, which is refused. One that we dialled and that is to be replaced is pinged too: the answer shows that the
peer has registered it, and will not take it for the newer of the two.

*Joining.* A link that is to carry a connection that is there competes with nobody: it has to come from that
connection's peer, as it was when that was made, and to be no weaker in anything that was established then.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import UnverifiedReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode._connection.connection import Connection
    from trionode._connection.registry import Registry
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer

#: How long a probed connection may take to answer. Seconds; far below a handshake's timeout, far above a round trip.
PROBE_TIMEOUT: Final = 1.0

#: A connection whose peer was heard of within this time is alive, where the newcomer is the same incarnation. Seconds.
RECENTLY: Final = 5.0


class Conflict(Exception):  # noqa: N818 -- a verdict on its way into the hello
    """This link may not be.

    Attributes:
        reason: `duplicate` (use the one that there is) or `name_in_use`.
        peer: whose link it would have been.
    """

    def __init__(self, reason: UnverifiedReason, peer: Peer, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.peer = peer


@final
class _Pending:
    """A dial past its TLS, or a promised inbound link: something with an outcome to wait for.

    Attributes:
        counts: of a dial, whether its TLS is done.
        committed: of a dial, whether it will be confirmed: nothing may be promised until it is over.
        incarnation: of a promised link, the peer's.
        over: set when it is registered, or has failed.
    """

    def __init__(self, incarnation: int | None = None) -> None:
        self.counts = False
        self.committed = False
        self.incarnation = incarnation
        self.over = trio.Event()
        self._task = trio.lowlevel.current_task()

    @property
    def mine(self) -> bool:
        """Whether this task began it; a handshake is one task."""
        return self._task is trio.lowlevel.current_task()


@final
class Arbiter:
    """One node's judge of competing links."""

    def __init__(self, own: NodeName, registry: Registry) -> None:
        self._own = own
        self._registry = registry
        self._dials: dict[NodeName, list[_Pending]] = {}
        self._promised: dict[NodeName, _Pending] = {}
        self._locks: dict[NodeName, tuple[trio.Lock, int]] = {}

    def _wins(self, other: NodeName) -> bool:
        return str(self._own) < str(other)

    # Dialling

    @contextmanager
    def dialling(self, name: NodeName) -> Iterator[_Pending]:
        """Announce a dial for the length of its handshake; set `counts` once its TLS is done."""
        pending = _Pending()
        self._dials.setdefault(name, []).append(pending)
        try:
            yield pending
        finally:
            pending.over.set()
            self._dials[name].remove(pending)
            if not self._dials[name]:
                del self._dials[name]

    async def may_confirm(self, peer: Peer, *, replace: bool) -> None:
        """The dialer's last question, once the acceptor has accepted and both have verified; commits the dial.

        Raises:
            Conflict: another link stands for this name.
        """
        while True:
            promised = self._promised.get(peer.name)
            if promised is not None and (promised.incarnation != peer.incarnation or not self._wins(peer.name)):
                await promised.over.wait()
                continue
            existing = self._registry.mutual(peer.name)
            other = next((each for each in existing if each.peer.incarnation != peer.incarnation), None)
            if other is None:
                break
            if await other.answers(PROBE_TIMEOUT):
                raise _name_in_use(peer)
        if existing and not replace:
            raise _duplicate(peer)
        for dial in self._dials.get(peer.name, ()):
            dial.committed = dial.committed or dial.mine

    # Accepting

    async def check_incarnation(self, peer: Peer) -> None:
        """Check that a dialer that only this side verified is no second node of a connected name.

        Raises:
            Conflict: it is.
        """
        for existing in self._registry.mutual(peer.name):
            if existing.peer.incarnation != peer.incarnation and await existing.answers(PROBE_TIMEOUT):
                raise _name_in_use(peer)

    async def promise(self, peer: Peer, *, replace: bool) -> ExitStack:
        """Judge a dialer that both sides verified, and reserve its name until what this returns is closed.

        Raises:
            Conflict: another link stands for this name.
        """
        name = peer.name
        with ExitStack() as undo:
            lock = undo.enter_context(self._lock_of(name))
            if lock.locked():
                await lock.acquire()
            else:
                lock.acquire_nowait()
            undo.callback(lock.release)
            if self._wins(name):
                for mine in [dial for dial in self._dials.get(name, []) if dial.counts]:
                    await mine.over.wait()
            await self._make_room(peer, replace=replace)
            promised = self._promised[name] = _Pending(peer.incarnation)
            undo.callback(promised.over.set)
            undo.callback(self._promised.pop, name)
            return undo.pop_all()

    @contextmanager
    def _lock_of(self, name: NodeName) -> Iterator[trio.Lock]:
        lock, users = self._locks.get(name, (None, 0))
        lock = lock or trio.Lock()
        self._locks[name] = (lock, users + 1)
        try:
            yield lock
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)

    # Joining

    def joined(self, identifier: bytes, peer: Peer, *, acceptor: object) -> Connection:
        """The connection that a dialer wants to move to its new link. That it may is to be shown (`check_same`, proof).

        Args:
            identifier: the connection's.
            peer: the dialer, as the new link shows it.
            acceptor: what stands for the acceptor that the new link came in by.

        Raises:
            Conflict: it has no such connection here.
        """
        for connection in self._registry.named(peer.name):
            link = connection.link
            if link.dialled or link.acceptor is not acceptor or connection.identifier != identifier:
                continue
            return connection
        msg = f"there is no connection of {peer.name} here that it could be moved to; dial anew"
        raise Conflict(UnverifiedReason.JOIN, peer, msg)

    @staticmethod
    def check_same(connection: Connection, peer: Peer, *, mutual: bool) -> None:
        """Check that a peer on a new link is the one of a connection, and established as well as then.

        Raises:
            Conflict: it is not.
        """
        link = connection.link
        if (peer.name, peer.incarnation) != (link.peer.name, link.peer.incarnation):
            msg = f"{peer.name} is not the node that the connection is with ({link.peer.name}), or has restarted"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)
        if (link.peer.verified and not peer.verified) or (link.mutual and not mutual):
            msg = f"{peer.name} was verified when the connection was made, and is not now"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)

    async def _make_room(self, peer: Peer, *, replace: bool) -> None:
        """Wait until nothing stands against a promise, and end what is dead.

        Raises:
            Conflict: something that is alive does.
        """
        answered: Connection | None = None
        while True:
            committed = next((dial for dial in self._dials.get(peer.name, ()) if dial.committed), None)
            if committed is not None:
                await committed.over.wait()
                continue
            for existing in self._registry.mutual(peer.name):
                same = existing.peer.incarnation == peer.incarnation
                if same and (not existing.link.dialled or existing is answered):
                    continue
                # The same incarnation, heard of just now: no ping needed, which a busy start may not answer in time.
                # Where it asks to replace, there has to be an answer: it may have lost its end and know better.
                recent = same and not replace and existing.heard_within(RECENTLY)
                if recent or await existing.answers(PROBE_TIMEOUT, insist=same and replace):
                    if not same:
                        raise _name_in_use(peer)
                    if not replace:
                        raise _duplicate(peer)
                    answered = existing
                break
            else:
                return


def _duplicate(peer: Peer) -> Conflict:
    return Conflict(UnverifiedReason.DUPLICATE, peer, f"there is a live connection with {peer.name} already; use that")


def _name_in_use(peer: Peer) -> Conflict:
    return Conflict(
        UnverifiedReason.NAME_IN_USE,
        peer,
        f"another live node is connected under the name {str(peer.name)!r} (it answered a ping just now); give every "
        "node a name of its own, or stop the other one first",
    )
