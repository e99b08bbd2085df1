"""What the parts of a node share: its identity, its connections, the managers that it uses, its events and counters.

Theory. A link becomes a connection here, in one step without a checkpoint: built, registered, reported; the task that
made the link then runs it. Tasks are spawned in the node's own context variables, not in those of the task that
happened to cause them.

Whatever fails in these steps, or in what a connection reports, costs that connection and is logged: `adopt` undoes what
it did, callbacks raise nothing, and tasks that a peer causes are `contained`.

The file is long because it is what a node's parts call each other by: one object, and a method for each occasion.
"""

from __future__ import annotations

import contextvars
import secrets
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.closing import at_the_cost_of, retire
from trionode._connection.connection import Connection
from trionode._connection.core import ConnectionCore
from trionode._connection.end import ConnectionEnd, EndReason, is_forced
from trionode._connection.owner import ConnectionOwner, ConnectionSettings, protocol_log
from trionode._connection.registry import Registry
from trionode._connection.services import Services
from trionode._errors import (
    HandshakeError,
    HandshakeReason,
    LocalProtocolError,
    NetworkDisabledError,
    Stage,
    UnverifiedReason,
)
from trionode._handshake.admission import Admission
from trionode._handshake.collisions import Arbiter
from trionode._handshake.exchange import Party
from trionode._managers.manager import publisher_of
from trionode._protocol import Limits, Refusal
from trionode._util.contained import contained, containing, keep_running
from trionode._util.home import Home, home
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

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
from .statistics import Counters, ManagerUse, NodeStatistics, use_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode._connection.hand_over import RenewalCause
    from trionode._connection.link import Link
    from trionode._handshake.acceptor import AcceptorStatistics
    from trionode._identity.names import NodeName
    from trionode._managers.manager import CertManager

    from .insecure_options import InsecureOption

_log = Log("trionode.node")
_security_log = Log("trionode.security")

#: Connections of one peer that were replaced and are still read: what one peer may occupy beyond its live one.
_MAX_RETIRING: Final = 32


@interrupted_at_checkpoints
@final
class Runtime(ConnectionOwner[ConnectionCore]):
    """What the parts of one node share; the owner of its connections.

    Attributes:
        name: the node's name.
        options: what it was opened with.
        incarnation: a random 64-bit number.
        registry: its connections by name.
        services: by name.
        events: what it reports.
        counters: what it counts.
        running: every connection that has not finished, and the manager that its link is from.
        renewal: moves or closes them when certificates rotate or end.
        admission: the handshakes that its acceptors have under way.
        uses: what is undone when the node has closed.
        managers: the managers that it uses.
        nursery: the node's nursery while tasks may be started in it, else None.
        is_open: whether verbs may start anything; not before its block, nor once it drains or is left.
        leaving: set when it begins to drain, or its block is left.
    """

    def __init__(self, name: NodeName, options: NodeOptions) -> None:
        self.name = name
        self.options = options
        self.incarnation = secrets.randbits(64)
        self.registry = Registry()
        self.services = Services(
            propagate_errors=options.propagate_service_errors,
            expose_errors=options.expose_service_errors,
            node=name,
            interceptors=options.interceptors,
        )
        for service_name, service in options.services.items():
            self.services.add(service_name, service)
        self.events = EventHub()
        self.counters = Counters()
        self.running: dict[ConnectionCore, CertManager] = {}
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
        self.is_open = False
        self.leaving = trio.Event()
        self._home: Home | None = None
        self._arbiter = Arbiter(name, self.registry)
        self._public: dict[ConnectionCore, Connection] = {}
        # Those that were replaced or are forced to end, by name and whether that was verified, the oldest first.
        self._retiring: dict[tuple[NodeName, bool], dict[ConnectionCore, None]] = {}
        # Those of peers that were not verified, the oldest first.
        self._unverified: dict[ConnectionCore, None] = {}
        self._attached: dict[ConnectionCore, tuple[CertManager, Link]] = {}
        self._warned: set[InsecureOption] = set()
        self._settings: dict[tuple[CertManager, Limits], ConnectionSettings] = {}
        self._hand_over_flood = RateLimitedLog(_log, "hand-overs failed")
        self._protocol_log = protocol_log()
        self._context = contextvars.copy_context()

    # Life

    def start(self, nursery: trio.Nursery) -> None:
        """From now on verbs start tasks, in this nursery."""
        self._home = home()
        self.nursery = nursery
        self.is_open = True
        self.services.open(nursery)
        self.spawn_lasting(self.renewal.run, "renewal")
        self.managers.start(self.spawn_lasting)

    def stop(self) -> None:
        """From now on no verb starts anything. Handshakes in progress still become connections. Idempotent."""
        self.is_open = False

    def close(self) -> None:
        """From now on nothing is started, and every handshake is refused; idempotent."""
        self.leaving.set()
        self.is_open = False
        self.nursery = None

    def check_open(self, *, network: bool = True) -> None:
        """Check that a verb may be used now.

        Args:
            network: whether the verb needs the network.

        Raises:
            NetworkDisabledError: the verb needs the network, and its mode is DISABLED.
            trio.ClosedResourceError: the node is closed.
            RuntimeError: this is another thread than the node's, or a forked child.
        """
        self.check_home()
        if network and self.options.network.mode is NetworkMode.DISABLED:
            msg = f"the network of {self.name} is disabled; open the node with NetworkMode.ENABLED or HIDDEN"
            raise NetworkDisabledError(msg)
        if not self.is_open:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)

    async def check_open_in_turn(self) -> None:
        """As `check_open`; a checkpoint where it fails: a loop that goes on after errors must not stop all else."""
        self.check_home()
        try:
            self.check_open()
        except Exception:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC120 -- cancelled, it is
            raise

    def check_home(self) -> None:
        """Check that this is where the node may be used, if it is open.

        Raises:
            RuntimeError: it is another thread, or a forked child.
        """
        if self._home is not None and self.nursery is not None:
            self._home.check("Node")

    def check_other(self, name: NodeName) -> None:
        """Check that a name is not the node's own.

        Raises:
            LocalProtocolError: it is.
        """
        if name == self.name:
            msg = f"{name} is this node's own name; call the service directly"
            raise LocalProtocolError(msg)

    def spawn(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Start a task of the node.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        nursery = self.nursery
        if nursery is None:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)
        self._context.copy().run(lambda: nursery.start_soon(_interrupted_elsewhere, function, name=name))

    def spawn_for_peer(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Start a task of the node that a peer causes: what it raises is logged, and does not reach the nursery.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        self.spawn(partial(contained, function, _log, name, node=self.name), name)

    def spawn_lasting(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Start a task of the node that runs as long as the node does, whatever it raises on the way.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        self.spawn(partial(keep_running, function, _log, name, node=self.name), name)

    # Handshakes

    def limits(self, max_message_size: int | None = None, max_metadata_size: int | None = None) -> Limits:
        """What we accept, as our hello says it."""
        network = self.options.network
        return Limits(
            max_message_size=max_message_size or network.max_message_size,
            window=network.channel_window,
            max_channels=network.max_channels,
            max_metadata_size=network.max_metadata_size if max_metadata_size is None else max_metadata_size,
        )

    def party(self, limits: Limits, cookie: bytes | None = None) -> Party:
        """This node's side of a handshake: what its hello says, and how it judges the peer."""
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

        A duplicate is no failure: the connection that it duplicates is there. Nor is a link that is no longer needed.
        """
        if error.reason in (HandshakeReason.SUPERSEDED, UnverifiedReason.DUPLICATE):
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
        redial: Callable[[ConnectionCore], Awaitable[Link]] | None = None,
    ) -> ConnectionCore:
        """Make a link a connection and register it; no checkpoint may come between this and its `run()`.

        Args:
            link: its first link.
            manager: the one whose contexts the link took.
            limits: what this node accepts, as its hello said.
            redial: makes a link to hand the connection over to, where this side dialled.

        Raises:
            HandshakeError: it could not be registered, by a fault of ours, which is logged and reported. The link is
                closed, and nothing of the connection is left.
        """
        assert self.nursery is not None
        connection: ConnectionCore | None = None
        try:
            connection = ConnectionCore(link, self._settings_of(manager, limits), self)
            self._take_in(connection, manager, redial)
        except Exception as exc:
            _log.exception(
                "a link to %s could not be made a connection",
                link.peer.name,
                node=self.name,
                connection=link.connection,
                peer=link.peer,
            )
            self._undo(link, connection, exc)
            msg = f"a fault of ours has ended the connection to {link.peer.name}, see the log: {type(exc).__name__}"
            error = HandshakeError(
                msg,
                stage=Stage.HELLO,
                reason=HandshakeReason.BROKEN,
                address=link.peer.address,
                generation=link.generation,
            )
            containing(self.refused, _log, "reporting it", node=self.name)(
                Side.DIAL if link.dialled else Side.ACCEPT, error
            )
            raise error from exc
        return connection

    def _undo(self, link: Link, connection: ConnectionCore | None, error: Exception) -> None:
        """End what `adopt` could not register; its own `run()` closes the link, and has it forgotten."""
        if connection is None:
            ending: Callable[[], Awaitable[object]] = link.stream.aclose
        else:
            ending = connection.run
            containing(connection.fail, _log, "ending it", connection=connection)(error)
        try:
            self.spawn_for_peer(ending, f"close a link to {link.peer.name}")
        except Exception:  # noqa: BLE001 -- said already
            link.stream.close_at_once()

    def _take_in(
        self,
        connection: ConnectionCore,
        manager: CertManager,
        redial: Callable[[ConnectionCore], Awaitable[Link]] | None,
    ) -> None:
        link = connection.link
        self.running[connection] = manager
        self._public[connection] = Connection(connection)
        for replaced in self.registry.add(connection):
            with at_the_cost_of(replaced):
                self._retire(replaced)
        self._limit_unverified(connection)
        side = Side.DIAL if link.dialled else Side.ACCEPT
        self.events.publish(ConnectionUp(node=self.name, side=side, peer=link.peer, connection=self.public(connection)))
        _log.info("connection up: %s", connection, connection=connection, side=side)
        self.renewal.watch(connection, manager, None if redial is None else partial(redial, connection))
        self._attach(connection)

    def public(self, connection: ConnectionCore) -> Connection:
        """What applications see of a connection that has not finished: one object, as long as it runs.

        Args:
            connection: one of `running`.
        """
        return self._public[connection]

    def _settings_of(self, manager: CertManager, limits: Limits) -> ConnectionSettings:
        """Shared by all connections that have the same: a kilobyte each."""
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
            max_records=self.options.live_connections.max_records,
            manager=manager,
            protocol_log=self._protocol_log,
            interceptors=self.options.interceptors,
        )
        return settings

    def _retire(self, replaced: ConnectionCore) -> None:
        """Read a replaced connection to its end."""
        self._limit_leaving(replaced)
        self.spawn_for_peer(partial(retire, replaced), f"retire {replaced.peer.name}")

    def _limit_leaving(self, connection: ConnectionCore) -> None:
        """Count a connection that was replaced or is forced to end; `_MAX_RETIRING` of one name may take their time."""
        leaving = self._retiring.setdefault((connection.peer.name, connection.peer.verified), {})
        leaving[connection] = None
        for surplus in list(leaving)[:-_MAX_RETIRING]:
            with at_the_cost_of(surplus):
                surplus.cut_off(EndReason.REPLACED)

    def _limit_unverified(self, connection: ConnectionCore) -> None:
        """Count a connection of a peer that is not verified, until it is closed: what is closing counts, too."""
        if connection.peer.verified or connection.link.insecure:
            return
        self._unverified[connection] = None
        for surplus in list(self._unverified)[: -self.options.network.max_unverified or None]:
            with at_the_cost_of(surplus):
                self.registry.remove(surplus)
                surplus.cut_off(EndReason.LIMIT)

    def _attach(self, connection: ConnectionCore) -> None:
        """Tell its manager of the link, which may find that the peer is not trusted any more and end the connection."""
        manager, link = self._attached[connection] = self.running[connection], connection.link
        publisher_of(manager).attach(link, connection.distrust)

    def _detach(self, connection: ConnectionCore) -> None:
        attached = self._attached.pop(connection, None)
        if attached is not None:
            manager, link = attached
            publisher_of(manager).detach(link)

    # What its connections tell their owner

    def unregister(self, connection: ConnectionCore) -> None:
        """Hand a connection out no more."""
        containing(self.registry.remove, _log, "unregistering a connection", connection=connection)(connection)

    def connection_ended(self, connection: ConnectionCore, end: ConnectionEnd) -> None:
        """Report that a connection has begun to end."""
        containing(self._report_end, _log, "reporting the end of a connection", connection=connection)(connection, end)
        if is_forced(end.reason):
            containing(self._limit_leaving, _log, "counting a connection that ends", connection=connection)(connection)

    def connection_finished(self, connection: ConnectionCore) -> None:
        """Forget a connection whose tasks are gone."""
        containing(self._forget, _log, "forgetting a connection", connection=connection)(connection)

    def connection_moved(self, connection: ConnectionCore) -> None:
        """Have its manager watch a connection's new link, and report it."""
        self._detach(connection)
        self._attach(connection)
        _log.info("connection handed over: %s", connection, connection=connection)
        self.renewal.moved(connection)

    def renew(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        """Have a connection renewed soon."""
        self.renewal.renew(connection, cause)

    async def reauthenticate(self, connection: ConnectionCore) -> None:
        """Renew a connection now."""
        await self.renewal.reauthenticate(connection)

    def _forget(self, connection: ConnectionCore) -> None:
        try:  # each step is taken, whatever another raises
            self._no_longer_retiring(connection)
            self.counters.add_ended(connection.statistics())
        finally:
            for known in (self._unverified, self._public, self.running):
                known.pop(connection, None)
            # While anything runs for its peer, whether it may is asked on.
            end_watch = containing(self._end_watch, _log, "forgetting a connection", connection=connection)
            connection.channels.when_served(partial(end_watch, connection))

    def _end_watch(self, connection: ConnectionCore) -> None:
        try:
            self._detach(connection)
        finally:
            self.renewal.forget(connection)

    def _no_longer_retiring(self, connection: ConnectionCore) -> None:
        key = connection.peer.name, connection.peer.verified
        leaving = self._retiring.get(key, {})
        leaving.pop(connection, None)
        if not leaving:
            self._retiring.pop(key, None)

    def _report_hand_over(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        self.counters.hand_overs[cause] += 1
        self.events.publish(HandedOver(node=self.name, connection=self.public(connection)))

    def _report_failed_hand_over(self, connection: ConnectionCore, cause: RenewalCause, error: Exception) -> None:
        self.counters.hand_overs_failed[cause] += 1
        self._hand_over_flood.warning(
            "the hand-over of the connection to %s failed, it goes on as it was: %s",
            connection,
            error,
            connection=connection,
            error=error,
            cause=cause,
        )
        self.events.publish(
            HandOverFailed(node=self.name, connection=self.public(connection), cause=cause, error=error)
        )

    def _report_end(self, connection: ConnectionCore, end: ConnectionEnd) -> None:
        self.counters.ends[end.reason] += 1
        self.events.publish(
            ConnectionDown(
                node=self.name,
                peer=connection.peer,
                connection=self.public(connection),
                reason=end.reason,
                error=end.error,
            )
        )
        _log.info(
            "connection down: %s: %s",
            connection,
            end.error or end.reason,
            connection=connection,
            reason=end.reason,
            error=end.error,
        )

    # Statistics and warnings

    def statistics(
        self,
        acceptors: tuple[AcceptorStatistics, ...],
        *,
        registered: bool | None,
        members: int,
        members_age: float | None,
    ) -> NodeStatistics:
        """A snapshot of the node, taken in one step.

        Args:
            acceptors: theirs.
            registered: see `NodeStatistics`.
            members: ditto.
            members_age: ditto.
        """
        counters = self.counters
        connections = [connection.statistics() for connection in self.running]
        return NodeStatistics(
            open=self.is_open,
            connections=len(connections),
            channels=sum(each.channels for each in connections),
            services=self.services.running,
            acceptors=acceptors,
            managers=tuple(self._use_of(manager, label) for label, manager in self.managers.by_label.items()),
            channels_opened=counters.channels_opened + sum(each.channels_opened for each in connections),
            bytes_sent=counters.bytes_sent + sum(each.bytes_sent for each in connections),
            bytes_received=counters.bytes_received + sum(each.bytes_received for each in connections),
            pending_handshakes=dict(counters.pending),
            handshakes=counters.handshakes(),
            handshake_times=counters.handshake_times(),
            connect_times=counters.connect_times(),
            hand_overs=dict(counters.hand_overs),
            hand_overs_failed=dict(counters.hand_overs_failed),
            ends=dict(counters.ends),
            registered=registered,
            members=members,
            members_age=members_age,
            resolver_troubles=counters.resolver_troubles,
        )

    def _use_of(self, manager: CertManager, label: str) -> ManagerUse:
        return use_of(manager, label, (each.generation for each, its in self.running.items() if its is manager))

    def warn_insecure(self, option: InsecureOption, text: str) -> None:
        """Log that an option makes the node less strict, once per node and option."""
        if option not in self._warned:
            self._warned.add(option)
            _security_log.warning("%s: %s: %s", self.name, option.value, text, node=self.name, option=option.value)


@trio.lowlevel.enable_ki_protection
async def _interrupted_elsewhere(function: Callable[[], Awaitable[object]]) -> None:
    """Await a function; KeyboardInterrupt is for the main task, not for one of the node's."""
    await function()
