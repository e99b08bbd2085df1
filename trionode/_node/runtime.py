"""What the parts of a node share: its identity, its connections, the managers that it uses, and what it reports.

Theory. A link becomes a connection here, in one step without a checkpoint: built, registered, reported; the task that
made the link then runs it. Tasks are spawned in the node's own context variables, not in those of the task that
happened to cause them.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.connection import Connection, ConnectionEnd, ConnectionSettings, EndReason, protocol_flood
from trionode._connection.registry import Registry
from trionode._connection.services import Services
from trionode._errors import (
    HandshakeError,
    NetworkDisabledError,
    UnverifiedReason,
)
from trionode._handshake.admission import Admission
from trionode._handshake.collisions import Arbiter
from trionode._handshake.exchange import Party
from trionode._protocol import Limits, Refusal
from trionode._util.rate_limited_log import FloodGate

from .events import (
    ConnectionDown,
    ConnectionUp,
    EventHub,
    HandedOver,
    HandOverFailed,
    HandshakeRefused,
    NameInUse,
    Side,
)
from .manager_watch import ManagerWatch
from .options import NetworkMode, NodeOptions
from .renewal import Renewal
from .statistics import Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode._connection.connection import RenewalCause
    from trionode._connection.link import Link
    from trionode._identity.names import NodeName
    from trionode._managers.manager import CertManager

    from .insecure_options import Loosening

_log = logging.getLogger("trionode.node")
_security_log = logging.getLogger("trionode.security")

#: Connections of one peer that were replaced and are still read: what one peer may occupy beyond its live one.
_MAX_RETIRING: Final = 32


@final
class Runtime:
    """The shared inside of one node.

    Attributes:
        name: the node's name.
        options: what it was opened with.
        incarnation: a random 64-bit number.
        registry: its connections by name.
        services: by name.
        events: what it reports.
        tally: what it counts.
        running: every connection that has not finished, and the manager that its link is from.
        renewal: moves or closes them when certificates rotate or end.
        admission: the handshakes that its acceptors have under way.
        uses: what is undone when the node has closed.
        managers: the managers that it uses.
        nursery: the node's nursery while it is open for new business, else None.
    """

    def __init__(self, name: NodeName, options: NodeOptions) -> None:
        self.name = name
        self.options = options
        self.incarnation = secrets.randbits(64)
        self.registry = Registry()
        self.services = Services(
            propagate_errors=options.propagate_service_errors, expose_errors=options.expose_service_errors
        )
        for service_name, service in options.services.items():
            self.services.add(service_name, service)
        self.events = EventHub()
        self.tally = Tally()
        self.running: dict[Connection, CertManager] = {}
        network = options.network
        self.renewal = Renewal(
            options.live_connections,
            patience=network.connect_timeout + network.handshake_timeout,
            moved=self._report_hand_over,
            failed=self._report_failed_hand_over,
        )
        self.admission = Admission(limit=network.max_handshakes, per_address=network.max_handshakes_per_address)
        self.uses = ExitStack()
        self.managers = ManagerWatch(
            name, options.cert_manager, uses=self.uses, events=self.events, rotated=self.renewal.rotated
        )
        self.nursery: trio.Nursery | None = None
        self._arbiter = Arbiter(name, self.registry)
        self._retiring: dict[NodeName, list[Connection]] = {}
        self._attached: dict[Connection, Link] = {}
        self._warned: set[Loosening] = set()
        self._settings: dict[tuple[CertManager, Limits], ConnectionSettings] = {}
        self._hand_over_flood = FloodGate(_log, "hand-overs failed")
        self._protocol_flood = protocol_flood()
        self._context = contextvars.copy_context()

    # Life

    def start(self, nursery: trio.Nursery) -> None:
        """Open for business."""
        self.nursery = nursery
        self.services.open(nursery)
        self.spawn(self.renewal.run, "renewal")
        self.managers.start(self.spawn)

    def check_open(self) -> None:
        """Check that a network verb may be used now.

        Raises:
            NetworkDisabledError: the network mode is DISABLED.
            trio.ClosedResourceError: the node is closed.
        """
        if self.options.network.mode is NetworkMode.DISABLED:
            msg = f"the network of {self.name} is disabled; open the node with NetworkMode.ENABLED or HIDDEN"
            raise NetworkDisabledError(msg)
        if self.nursery is None:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)

    def spawn(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Start a task of the node.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        nursery = self.nursery
        if nursery is None:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)
        self._context.copy().run(lambda: nursery.start_soon(function, name=name))

    # Handshakes

    def limits(self, max_message_size: int | None = None) -> Limits:
        """What we accept, as our hello says it."""
        network = self.options.network
        return Limits(
            max_message_size=max_message_size or network.max_message_size,
            window=network.channel_window,
            max_channels=network.max_channels,
        )

    def party(self, limits: Limits, cookie: bytes | None = None) -> Party:
        """What we say of ourselves, and how we judge others."""
        return Party(
            name=self.name,
            incarnation=self.incarnation,
            limits=limits,
            arbiter=self._arbiter,
            cookie=cookie,
            authorize=self.options.authorize,
            refuse_all=self._refuse_all,
        )

    def _refuse_all(self) -> Refusal | None:
        if self.nursery is not None:
            return None
        return Refusal(code=UnverifiedReason.SHUTTING_DOWN, message=f"{self.name} is shutting down")

    def refused(self, side: Side, error: HandshakeError) -> None:
        """Report a handshake that failed.

        A duplicate is no failure, the connection it duplicates is there; nor is a link that nobody needs any more.
        """
        if error.reason in ("superseded", UnverifiedReason.DUPLICATE):
            return
        self.events.publish(HandshakeRefused(node=self.name, side=side, address=error.address, error=error))
        if error.reason == UnverifiedReason.NAME_IN_USE:
            self.events.publish(NameInUse(node=self.name, side=side, address=error.address, error=error))

    # Connections

    def adopt(
        self,
        link: Link,
        manager: CertManager,
        limits: Limits,
        redial: Callable[[Connection], Awaitable[Link]] | None = None,
    ) -> Connection:
        """Make a link a connection and register it; no checkpoint may come between this and its `run()`.

        Args:
            link: its first link.
            manager: whose contexts that took.
            limits: what we accept, as our hello said.
            redial: makes a link to hand the connection over to, where this side dialled.
        """
        assert self.nursery is not None
        connection = Connection(link, self._settings_of(manager, limits))
        self.running[connection] = manager
        for replaced in self.registry.add(connection):
            self._retire(replaced)
        for surplus in self.registry.unverified[: -self.options.network.max_unverified or None]:
            self.registry.remove(surplus)
            self.spawn(partial(surplus.close, EndReason.LIMIT), f"close {surplus!r}")
        side = Side.DIAL if link.dialled else Side.ACCEPT
        self.events.publish(ConnectionUp(node=self.name, side=side, peer=link.peer, connection=connection))
        _log.info("connection up: %s", connection)
        self.renewal.watch(connection, manager, None if redial is None else partial(redial, connection))
        self._attach(connection)
        return connection

    def _settings_of(self, manager: CertManager, limits: Limits) -> ConnectionSettings:
        """Those that are alike share them: a kilobyte each."""
        known = self._settings.get((manager, limits))
        if known is not None:
            return known
        network = self.options.network
        settings = self._settings[manager, limits] = ConnectionSettings(
            services=self.services,
            limits=limits,
            max_pending_opens=network.max_pending_opens,
            budget=network.receive_budget,
            heartbeat_interval=network.heartbeat_interval,
            heartbeat_tolerance=network.heartbeat_tolerance,
            unregister=self.registry.remove,
            ended=self._report_end,
            finished=self._forget,
            moved=self._moved,
            renew=self.renewal.renew,
            reauthenticate=self.renewal.reauthenticate,
            max_records=self.options.live_connections.max_records,
            current_generation=lambda: manager.generation,
            flood=self._protocol_flood,
        )
        return settings

    def _retire(self, replaced: Connection) -> None:
        """Let one that was replaced run out; only so many of one name, however often a peer replaces."""
        retiring = self._retiring.setdefault(replaced.peer.name, [])
        retiring.append(replaced)
        self.spawn(replaced.retire, f"retire {replaced!r}")
        for surplus in retiring[:-_MAX_RETIRING]:
            self.spawn(partial(surplus.close, EndReason.REPLACED), f"close {surplus!r}")

    def _attach(self, connection: Connection) -> None:
        """Tell its manager of the link; which may find that the peer is no longer trusted, and end it at once."""
        link = self._attached[connection] = connection.link
        self.running[connection].attach(link, connection.distrust)

    def _detach(self, connection: Connection) -> None:
        self.running[connection].detach(self._attached.pop(connection))

    def _forget(self, connection: Connection) -> None:
        self._detach(connection)
        retiring = self._retiring.get(connection.peer.name, [])
        if connection in retiring:
            retiring.remove(connection)
            if not retiring:
                del self._retiring[connection.peer.name]
        del self.running[connection]
        self.tally.retire(connection.statistics())
        self.renewal.forget(connection)

    def _moved(self, connection: Connection, _: Link) -> None:
        self._detach(connection)
        self._attach(connection)
        _log.info("connection handed over: %s", connection)
        self.renewal.moved(connection)

    def _report_hand_over(self, connection: Connection, cause: RenewalCause) -> None:
        self.tally.hand_overs[cause] += 1
        self.events.publish(HandedOver(node=self.name, connection=connection))

    def _report_failed_hand_over(self, connection: Connection, cause: RenewalCause, error: Exception) -> None:
        self.tally.hand_overs_failed[cause] += 1
        self._hand_over_flood.warning(
            "the hand-over of the connection to %s failed, it goes on as it was: %s", connection, error
        )
        self.events.publish(HandOverFailed(node=self.name, connection=connection, cause=cause, error=error))

    def _report_end(self, connection: Connection, end: ConnectionEnd) -> None:
        self.tally.ends[end.reason] += 1
        self.events.publish(
            ConnectionDown(
                node=self.name, peer=connection.peer, connection=connection, reason=end.reason, error=end.error
            )
        )
        _log.info("connection down: %s: %s", connection, end.error or end.reason)

    # Telling people

    def warn(self, loosening: Loosening, text: str) -> None:
        """Log a loosening, once per node and kind."""
        if loosening not in self._warned:
            self._warned.add(loosening)
            _security_log.warning("%s: %s: %s", self.name, loosening.value, text)
