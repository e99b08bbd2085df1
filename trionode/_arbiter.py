"""Two at once: who wins when two nodes dial each other, or two claim one name.

Theory. Only links that both sides verified compete; unverified peers take no part. Everything is decided inside the
hello, before either side may open channels, so nothing ever migrates.

*Crossing dials.* The dial of the node whose name sorts first wins, on both sides. A dial counts from the end of its
TLS handshake, so a direction that is firewalled or slow never holds up the other. Nobody refuses a link in favour of
one that is merely expected: the winner's acceptor, having a dial of its own under way, waits for its outcome before it
judges the loser's; the loser's dialer, having promised an inbound one, waits for its outcome before it confirms its
own. Both wait on the winning link, which waits on nothing, so there is no deadlock, and never do both lose.

*One name, reserved.* While an acceptor has accepted and not yet heard the confirmation, the name is reserved: others
who claim it wait. Bounded by the handshake's timeout, and a peer can only ever hold up its own name.

*Connected already.* A newcomer of the same incarnation that dials the same way round, or asks to replace, replaces
(its dialer closed or lost the old one, or wants another route). Otherwise the old connection is probed with a ping: a
dead one makes room, a living one makes the newcomer a duplicate, or, if its incarnation is another, the second node of
one name, which is refused.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from ._errors import UnverifiedReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ._identity import NodeName
    from ._peer import Peer
    from ._registry import Registry

#: How long a probed connection may take to answer. Seconds; far below a handshake's timeout, far above a round trip.
PROBE_TIMEOUT: Final = 1.0


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
    """A dial past its TLS, or a promised inbound link: something with an outcome to wait for."""

    def __init__(self) -> None:
        self.counts = False
        self.over = trio.Event()


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
        """The dialer's last question, once the acceptor has accepted and both have verified.

        Raises:
            Conflict: another link stands for this name.
        """
        promised = self._promised.get(peer.name)
        if promised is not None and not self._wins(peer.name):
            await promised.over.wait()
        for existing in self._registry.mutual(peer.name):
            if existing.peer.incarnation != peer.incarnation:
                if await existing.answers(PROBE_TIMEOUT):
                    raise _name_in_use(peer)
            elif not replace:
                raise _duplicate(peer)

    # Accepting

    @asynccontextmanager
    async def judging(self, peer: Peer, *, replace: bool) -> AsyncIterator[None]:
        """Judge a dialer that both sides verified, and keep its name reserved for the length of the block.

        Raises:
            Conflict: another link stands for this name.
        """
        name = peer.name
        lock, users = self._locks.get(name, (None, 0))
        lock = lock or trio.Lock()
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                if self._wins(name):
                    for mine in [dial for dial in self._dials.get(name, []) if dial.counts]:
                        await mine.over.wait()
                for existing in self._registry.mutual(name):
                    same = existing.peer.incarnation == peer.incarnation
                    if same and (replace or not existing.link.dialled):
                        continue
                    if await existing.answers(PROBE_TIMEOUT):
                        raise _duplicate(peer) if same else _name_in_use(peer)
                promised = self._promised[name] = _Pending()
                try:
                    yield
                finally:
                    del self._promised[name]
                    promised.over.set()
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)


def _duplicate(peer: Peer) -> Conflict:
    return Conflict(UnverifiedReason.DUPLICATE, peer, f"there is a live connection with {peer.name} already; use that")


def _name_in_use(peer: Peer) -> Conflict:
    return Conflict(
        UnverifiedReason.NAME_IN_USE,
        peer,
        f"another live node is connected under the name {str(peer.name)!r} (it answered a ping just now); give every "
        "node a name of its own, or stop the other one first",
    )
