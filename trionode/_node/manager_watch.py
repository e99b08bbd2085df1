"""The certificate managers that a node uses, and the tasks that report what they do.

Theory. A manager is in use from the moment that the node first needs it (its own, an acceptor's, a route's) until the
node closes; that is what fixes its pools and binds it to this Trio run. While the node is open, four tasks for each
manager report new generations, refused updates, certificates about to expire, and trouble with its source. What was
seen so far is read when a task is started, not when it first runs, so that nothing in between is missed.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, final

from cryptography import x509

from trionode._identity.certificate import fingerprint
from trionode._identity.describe import describe, describe_duration, describe_issuer
from trionode._managers.expiry import watch_expiry
from trionode._managers.manager import publisher_of
from trionode._util.log import Log

from .events import CertificateExpiring, GenerationPublished, RevocationListExpiring, RotationRefused, SourceTrouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import ExitStack

    from trionode._credentials.validity import Ending
    from trionode._identity.names import NodeName
    from trionode._managers.manager import CertManager

    from .events import EventHub

_log = Log("trionode.node")


@final
class ManagerWatch:
    """Declares a node's uses of managers, and watches those managers while the node is open."""

    def __init__(
        self,
        node: NodeName,
        own: CertManager,
        *,
        uses: ExitStack,
        events: EventHub,
        rotated: Callable[[CertManager], None],
    ) -> None:
        """Make one; nothing is watched before `start()`.

        Args:
            node: the name of the node that reports.
            own: the manager in its `NodeOptions`.
            uses: where each use is entered; closed when the node has closed.
            events: where it reports.
            rotated: called with a manager after each of its new generations.
        """
        self._node = node
        self._own = own
        self._uses = uses
        self._events = events
        self._rotated = rotated
        self._managers: dict[CertManager, bool] = {}  # and whether it is used as a server, too
        self._spawn: Callable[[Callable[[], Awaitable[object]], str], None] | None = None

    @property
    def by_label(self) -> Mapping[str, CertManager]:
        """Those in use: `own` is the node's, the others are numbered in the order in which they were first used."""
        others = [manager for manager in self._managers if manager is not self._own]
        own = {"own": self._own} if self._own in self._managers else {}
        return own | {str(number): manager for number, manager in enumerate(others, 1)}

    def use(self, manager: CertManager, *, as_server: bool) -> None:
        """Declare a use for as long as the node is open, once per manager and role.

        Raises:
            CertificateError: its key pair is unusable.
            RuntimeError: it is in use by another Trio run.
            trio.ClosedResourceError: the node is leaving.
        """
        known = self._managers.get(manager)
        if known is not None and (known or not as_server):
            return
        self._uses.enter_context(publisher_of(manager).use(as_server=as_server, name=self._node))
        self._managers[manager] = as_server or bool(known)
        if known is None:
            self._watch(manager)

    def start(self, spawn: Callable[[Callable[[], Awaitable[object]], str], None]) -> None:
        """Watch the managers in use, and each further one from its first use on; `spawn` starts a task of the node."""
        self._spawn = spawn
        for manager in self._managers:
            self._watch(manager)

    def _watch(self, manager: CertManager) -> None:
        if self._spawn is None:
            return
        self._spawn(partial(self._watch_generations, manager, manager.generation), f"watch {manager!r}")
        self._spawn(
            partial(self._watch_refusals, manager, publisher_of(manager).refused_updates),
            f"watch refusals of {manager!r}",
        )
        self._spawn(partial(watch_expiry, manager, self._report_expiry), f"watch expiry of {manager!r}")
        self._spawn(partial(self._watch_source, manager), f"watch the source of {manager!r}")

    async def _watch_generations(self, manager: CertManager, seen: int) -> None:
        """Report a manager's generations after the one seen."""
        while True:
            await manager.wait_generation(seen + 1)
            seen = manager.generation
            fingerprint = manager.key_pair.fingerprint
            self._events.publish(GenerationPublished(node=self._node, generation=seen, fingerprint=fingerprint))
            self._rotated(manager)

    async def _watch_refusals(self, manager: CertManager, seen: int) -> None:
        """Report a manager's refused updates after those seen."""
        while True:
            error = await publisher_of(manager).wait_refused(seen + 1)
            seen = publisher_of(manager).refused_updates
            if publisher_of(manager).source is None:  # else it is the follower who tells, with what it had read
                _log.warning(
                    "a rotation was refused, generation %d stays: %s",
                    manager.generation,
                    error,
                    node=self._node,
                    generation=manager.generation,
                    error=error,
                )
            self._events.publish(RotationRefused(node=self._node, generation=manager.generation, error=error))

    async def _watch_source(self, manager: CertManager) -> None:
        """Report how a manager's source is, from the first trouble on; the follower has logged it."""
        trouble = None
        while True:
            trouble = await publisher_of(manager).wait_source(trouble)
            self._events.publish(SourceTrouble(node=self._node, error=trouble))

    def _report_expiry(self, ending: Ending, left: timedelta) -> None:
        seconds = max(0, int(left.total_seconds()))
        text = f"will end in {describe_duration(left)}" if left > timedelta() else "has ended"
        if isinstance(ending, x509.Certificate):
            _log.warning(
                "a certificate of ours %s; rotate it: %s",
                text,
                describe(ending),
                node=self._node,
                left=seconds,
                certificate=fingerprint(ending),
            )
            self._events.publish(CertificateExpiring(node=self._node, certificate=ending, left=left))
        else:
            _log.warning(
                "the revocation list of %s %s; then its peers are refused: get a new one",
                describe_issuer(ending),
                text,
                node=self._node,
                left=seconds,
                issuer=describe_issuer(ending),
            )
            self._events.publish(RevocationListExpiring(node=self._node, crl=ending, left=left))
