"""Collisions: which link stands where two nodes dial each other, or two nodes claim one name.

Theory. Only *mutual* links compete: those on which each side verified the other. Everything is decided inside the
hello, before either side may open channels, so nothing ever moves from one link to another because of a collision. As
in BGP (RFC 4271 section 6.8), both ends compare the same two names by the same rule, so they decide alike without
talking about it: of two crossing dials, that of the node whose name sorts first wins.

A link passes through these states, and each node knows its own end only:

- a dial *counts* from the end of its TLS handshake: one that is blocked by a firewall, or slow, holds up no other;
- an inbound link is *promised* from our verdict to the dialer's confirmation: meanwhile its name is reserved here;
- a dial is *committed* from our decision to confirm it until it is registered, or has failed;
- *registered*: both sides have accepted, and the connection is in the registry.

**Crossing dials.** Let A be the winner and B the loser, a the dial of A and b that of B. No link is refused in favour
of one that is merely expected, which might still fail: the judge waits for its outcome. Four verdicts are passed:

| verdict | at | what it waits for first |
| -- | -- | -- |
| accept b | A | every dial of A's own that counts: if a is registered, b is a duplicate |
| accept a | B | its own dial b, if that is committed: if b is registered, a is a duplicate |
| confirm a | A | nothing: what B has promised, B does not take back |
| confirm b | B | whatever B has promised: if a is registered, b is a duplicate |

There are three cases:

1. *B commits b before it promises a.* It can do so only once A has accepted b, which A does only while a does not
   count. B then keeps a waiting until b is registered, and a is a duplicate. If b fails, B accepts a.
2. *B promises a before it commits b.* B keeps b waiting until a is registered, and b is a duplicate. If a fails, B
   confirms b.
3. *Only one of the two comes through TLS.* The other does not count, and this one is registered.

*Never do both win*: B, which alone has both a promise and a commitment to give, puts the two in an order. *Never do
both lose*: a link is refused as a duplicate only once the other is registered. *No deadlock*: B gives one of the two
before it waits with the other; A waits for a alone, and a for nothing but B. Every verdict is passed in one step
without a checkpoint, and after each wait everything is looked at again.

**A registered connection of the same name** meets a newcomer. On the accepting side there are four cases:

1. *Same incarnation, and they dialled it.* It is replaced: its dialer closed or lost it, or wants another route.
2. *Same incarnation, we dialled it, and the newcomer asks to replace it.* It is pinged, and only the answer counts:
   that shows that the peer has registered it, and will not take it for the newer of the two. It is replaced in any
   case.
3. *Same incarnation, we dialled it, and the newcomer does not ask.* If the peer was heard of just now, or answers a
   ping, the newcomer is a duplicate. Otherwise the registered one is dead, and makes room.
4. *Another incarnation.* If it answers a ping, there are two nodes of one name, and the newcomer is refused
   (`name_in_use`). Otherwise the peer has restarted, and the dead one makes room.

On the dialing side, before it confirms, another incarnation is treated alike; the same incarnation makes the dial a
duplicate, unless it was to replace.

**One name, reserved.** Until a promise is over, others who claim that name wait, and so does a dial of ours that
reached another incarnation under it. The handshake's timeout bounds this, and a peer can only ever hold up its own
name.

**Joining.** A link that is to carry a connection that is there competes with no other: it has to come from that
connection's peer, as it was when the connection was made, and be no weaker in anything that was established then.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import UnverifiedReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode._connection.core import ConnectionCore
    from trionode._connection.registry import Registry
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer

#: How long a probed connection may take to answer. Seconds; far below a handshake's timeout, far above a round trip.
PROBE_TIMEOUT: Final = 1.0

#: A connection whose peer was heard of within this time is alive, where the newcomer is the same incarnation. Seconds.
RECENTLY: Final = 5.0


class Conflict(Exception):  # noqa: N818 -- a verdict on its way into the hello
    """The link conflicts with an existing or pending connection, or does not fit the one that it is to join.

    Attributes:
        reason: `duplicate` (use the one that there is), `name_in_use` or `join`.
        peer: the link's.
    """

    def __init__(self, reason: UnverifiedReason, peer: Peer, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.peer = peer


@final
class _Pending:
    """A dial of ours, or a promised inbound link: something with an outcome to wait for.

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
        """Whether the current task began it; a handshake is one task."""
        return self._task is trio.lowlevel.current_task()


@final
class Arbiter:
    """Judges the competing links of one node."""

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
        """Commit a dial, once the acceptor has accepted it and both sides have verified each other.

        Args:
            peer: the acceptor.
            replace: whether the dial was to replace a connection that is there.

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
        """Check that a dialer that only this side verified is not a second node of a connected name.

        Args:
            peer: the dialer.

        Raises:
            Conflict: it is.
        """
        for existing in self._registry.mutual(peer.name):
            if existing.peer.incarnation != peer.incarnation and await existing.answers(PROBE_TIMEOUT):
                raise _name_in_use(peer)

    async def promise(self, peer: Peer, *, replace: bool) -> ExitStack:
        """Judge a link on which both sides verified each other, and reserve its name until what this returns is closed.

        Args:
            peer: the dialer.
            replace: whether it asks to replace a connection that is there.

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

    async def _make_room(self, peer: Peer, *, replace: bool) -> None:
        """Wait until nothing stands against a promise, and end what is dead; see the tables at the top.

        Raises:
            Conflict: a live connection does.
        """
        answered: ConnectionCore | None = None
        while True:
            committed = next((dial for dial in self._dials.get(peer.name, ()) if dial.committed), None)
            if committed is not None:
                await committed.over.wait()
                continue
            for existing in self._registry.mutual(peer.name):
                same = existing.peer.incarnation == peer.incarnation
                if same and (not existing.link.dialled or existing is answered):
                    continue
                # Heard of just now, it is alive: at a busy start a ping may not be answered in time.
                # Where it asks to replace, there has to be an answer: the peer may have lost its end already.
                recent = same and not replace and existing.liveness.heard_within(RECENTLY)
                if recent or await existing.answers(PROBE_TIMEOUT, insist=same and replace):
                    if not same:
                        raise _name_in_use(peer)
                    if not replace:
                        raise _duplicate(peer)
                    answered = existing
                break
            else:
                return

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

    def joined(self, identifier: bytes, peer: Peer, *, acceptor: object) -> ConnectionCore:
        """The connection that a dialer wants to move to its new link; `check_same` and the proof show that it may.

        Args:
            identifier: the connection's.
            peer: the dialer, as the new link shows it.
            acceptor: what stands for the acceptor that the new link came in by.

        Raises:
            Conflict: it has no such connection here.
        """
        for connection in self._registry.named(peer.name):
            link = connection.link
            if link.dialled or link.acceptor is not acceptor or connection.link.identifier != identifier:
                continue
            return connection
        msg = f"there is no connection of {peer.name} here that it could be moved to; dial anew"
        raise Conflict(UnverifiedReason.JOIN, peer, msg)

    @staticmethod
    def check_same(connection: ConnectionCore, peer: Peer, *, mutual: bool) -> None:
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


def _duplicate(peer: Peer) -> Conflict:
    return Conflict(UnverifiedReason.DUPLICATE, peer, f"there is a live connection with {peer.name} already; use that")


def _name_in_use(peer: Peer) -> Conflict:
    return Conflict(
        UnverifiedReason.NAME_IN_USE,
        peer,
        f"another live node is connected under the name {str(peer.name)!r} (it answered a ping just now); give every "
        "node a name of its own, or stop the other one first",
    )
