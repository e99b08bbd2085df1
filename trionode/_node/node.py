"""Nodes: open and own everything. The only place that wires managers, acceptors, connectors and connections together.

Theory. `open_node` owns one nursery: accept loops, handshakes, dials, connections and services live in it, and nothing
outlives the block. What can fail at start-up fails before the nursery is opened, so it comes out bare. Leaving the
block cleanly stops accepting, flushes and says goodbye within `shutdown_grace`, then cancels; leaving it by an
exception or a cancellation cancels at once, and what the body raised comes out as the same object: only a crash inside,
or several errors, come as a group.

Where the rest is: `runtime` (what the parts share), `dialer` (from a name to a connection), `connector` (keeps one
up), `_handshake.acceptor`, `_connection.connection`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn, final

import trio

from trionode._connection.connection import EndReason
from trionode._connection.registry import ConnectionsView
from trionode._errors import LocalProtocolError, NoRouteError
from trionode._handshake.acceptor import Acceptor, AcceptorStatistics
from trionode._handshake.cookie import as_cookie
from trionode._identity.names import NodeName
from trionode._transport.tcp import TCP

from .connector import Connector
from .dialer import Dialer
from .events import (
    AcceptorDown,
    AcceptorUp,
    ConnectorChanged,
    EventStream,
    ResolverTrouble,
    Side,
)
from .insecure_options import Loosening, loosenings
from .options import (
    AcceptorOptions,
    NetworkMode,
    NodeOptions,
    Route,
)
from .resolvers import Registrar, ResolverError
from .runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode._connection.channel import ServiceChannel
    from trionode._connection.connection import Connection, RenewalCause
    from trionode._connection.link import Link
    from trionode._connection.services import Allow, Service
    from trionode._handshake.accept import Joined
    from trionode._managers.manager import CertManager, ManagerStatistics

    from .routes import RouteHandle
    from .statistics import HandshakeCount, HandshakeTimes, TimeHistogram

__all__ = ["ManagerUse", "Node", "NodeStatistics", "open_node", "serve_node"]


def open_node(name: str | NodeName, options: NodeOptions) -> AbstractAsyncContextManager[Node]:
    """Open a node for the length of an `async with` block; everything it does happens inside.

    When the block is entered the node listens. Leaving it cleanly stops accepting, gives open channels and
    running services the time to end, flushes what was accepted for sending and says goodbye, all within
    `options.shutdown_grace` seconds, then cancels what is left. Leaving it by an exception or a cancellation ends
    everything at once.

    Args:
        name: `name@host`.
        options: everything else.

    Raises:
        ValueError: the name is none.
        CertificateError: a manager's key pair is unusable.
        ListenError: an acceptor cannot listen.
        ResolverError: the node cannot be registered with its resolver.
        RuntimeError: a manager is in use by another Trio run.
        BaseExceptionGroup: something crashed inside. What the block itself raises comes out as the same object.
    """
    return Node(NodeName.parse(name), options)._opened()  # noqa: SLF001 -- the one door


async def serve_node(
    name: str | NodeName, options: NodeOptions, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Run a node until cancelled, for `nursery.start`, which returns the open node.

    Args:
        name: its own, `name@host`.
        options: as for `open_node`.
        task_status: `started()` gets the open node.

    Raises:
        CertificateError, ListenError, ResolverError, RuntimeError, ValueError: as `open_node`.
    """
    async with open_node(name, options) as node:
        task_status.started(node)
        await trio.sleep_forever()
    raise AssertionError("sleep_forever ends by cancellation only")  # pragma: no cover


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerUse:
    """A manager that a node uses, and the node's connections by it.

    Attributes:
        label: `own` for the manager in `NodeOptions`; others have numbers, in the order in which they were first used.
        manager: its own snapshot.
        connections: how many of the node's connections there are of each of its generations that has any.
        superseded: of these, those of older generations than what it publishes.
    """

    label: str
    manager: ManagerStatistics
    connections: Mapping[int, int]
    superseded: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatistics:
    """A snapshot of a node; "so far" is since it was opened.

    Attributes:
        open: whether it takes and makes connections; not before its block, nor once it drains or is left.
        connections: open now, verified or not.
        channels: open on them.
        services: service tasks that run.
        acceptors: one entry for each.
        managers: one entry for each that it uses.
        channels_opened: so far, by either side.
        bytes_sent: so far, on all connections, before encryption.
        bytes_received: so far, on all connections, after decryption.
        pending_handshakes: under way, by side, those of clients that have not said a word included.
        handshakes: those that are over.
        handshake_times: how long they took.
        connect_times: how long dials took to resolve and to connect, where they did.
        hand_overs: connections that moved to a new link so far, by cause: `asked` where it was the peer that wanted it.
        hand_overs_failed: hand-overs that failed before their commit, by cause.
        ends: connections that have ended so far, by reason.
    """

    open: bool
    connections: int
    channels: int
    services: int
    acceptors: tuple[AcceptorStatistics, ...]
    managers: tuple[ManagerUse, ...]
    channels_opened: int
    bytes_sent: int
    bytes_received: int
    pending_handshakes: Mapping[Side, int]
    handshakes: tuple[HandshakeCount, ...]
    handshake_times: tuple[HandshakeTimes, ...]
    connect_times: TimeHistogram
    hand_overs: Mapping[RenewalCause, int]
    hand_overs_failed: Mapping[RenewalCause, int]
    ends: Mapping[EndReason, int]


@final
class Node:
    """An open node; made by `open_node` and `serve_node`. One that was merely constructed is closed.

    Attributes:
        name: its canonical name.
        options: what it was opened with.
        incarnation: a random 64-bit number, drawn at opening; tells a restarted node from its former self.
        acceptors: its listening endpoints.
        connections: each name that it has a usable connection to, and the one that `connect(name)` hands out.
    """

    def __init__(self, name: NodeName, options: NodeOptions) -> None:
        self._runtime = Runtime(name, options)
        self._dialer = Dialer(self._runtime)
        self._connectors: dict[NodeName, Connector] = {}
        self._accepting: list[trio.CancelScope] = []
        self.name: NodeName = name
        self.options: NodeOptions = options
        self.incarnation: int = self._runtime.incarnation
        self.acceptors: Sequence[Acceptor] = ()
        self.connections: ConnectionsView = ConnectionsView(
            self._runtime.registry, lambda peer: self._dialer.find(peer, None)
        )

    def __repr__(self) -> str:
        state = "open" if self._runtime.nursery is not None else "closed"
        return f"<Node {self.name}, {state}, {len(self._runtime.running)} connections>"

    @property
    def unverified_connections(self) -> Sequence[Connection]:
        """Inbound connections of peers that nobody verified, oldest first; never used for dialling out."""
        return self._runtime.registry.unverified

    @property
    def connectors(self) -> Mapping[NodeName, Connector]:
        """The connectors that keep connections up, by peer."""
        return dict(self._connectors)

    def statistics(self) -> NodeStatistics:
        """A snapshot of what it did and does, taken in one step; in the node's own thread."""
        runtime, tally = self._runtime, self._runtime.tally
        connections = [connection.statistics() for connection in runtime.running]
        return NodeStatistics(
            open=runtime.nursery is not None,
            connections=len(connections),
            channels=sum(each.channels for each in connections),
            services=runtime.services.running,
            acceptors=tuple(acceptor.statistics() for acceptor in self.acceptors),
            managers=tuple(self._use_of(manager, label) for label, manager in runtime.managers.by_label.items()),
            channels_opened=tally.channels_opened + sum(each.channels_opened for each in connections),
            bytes_sent=tally.bytes_sent + sum(each.bytes_sent for each in connections),
            bytes_received=tally.bytes_received + sum(each.bytes_received for each in connections),
            pending_handshakes=dict(tally.pending),
            handshakes=tally.handshakes(),
            handshake_times=tally.handshake_times(),
            connect_times=tally.connect_times(),
            hand_overs=dict(tally.hand_overs),
            hand_overs_failed=dict(tally.hand_overs_failed),
            ends=dict(tally.ends),
        )

    def _use_of(self, manager: CertManager, label: str) -> ManagerUse:
        statistics = manager.statistics()
        generations = Counter(each.generation for each, its in self._runtime.running.items() if its is manager)
        older = sum(count for generation, count in generations.items() if generation < statistics.generation)
        return ManagerUse(label=label, manager=statistics, connections=dict(generations), superseded=older)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStream]:
        """A reader of what the node reports from now on, for the length of an `async with` block.

        A reader that is too slow loses its oldest events, counted in `missed`; it never blocks the node.
        """
        with self._runtime.events.subscribe() as reader:
            yield reader

    # Dialling

    async def connect(self, name: str | NodeName, route: Route | None = None) -> Connection:
        """A live connection to a node: the one that there is, or a new one.

        Concurrent calls for one name share one dial. Cancelling a call leaves the others; the dial is cancelled with
        the last.

        Args:
            name: whom to reach.
            route: how, in place of route table and resolver; a live connection is reused only if it satisfies the
                route's manager and verification.

        Raises:
            HandshakeError: the one route failed; see its subclasses.
            NoRouteError: there is no route, or several were tried and all failed.
            LocalProtocolError: it is our own name.
            NetworkDisabledError: the network mode is DISABLED.
            CertificateError: the route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        peer = self._dialable(name)
        connection = self._dialer.find(peer, route)
        if connection is None:
            return await self._dialer.dial(peer, route)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return connection

    async def call(self, name: str | NodeName, service: str, request: bytes, *, route: Route | None = None) -> bytes:
        """Call a service of a node: connect if need be, send one message, receive exactly one.

        At most once: after a `trio.BrokenResourceError` the service may have run; nothing is retried silently.
        Cancelling cancels the service over there, too; a connection that was made stays.

        Args:
            name: the node.
            service: the service's name there.
            request: the message, at most the peer's `max_message_size` bytes.
            route: as for `connect`.

        Raises:
            RemoteError: the service did not do it; code `no_reply` if it ended without a message.
            trio.BrokenResourceError: the connection was lost meanwhile.
            HandshakeError, NoRouteError and the rest: as `connect`.
        """
        peer = self._dialable(name)
        connection = self._dialer.find(peer, route) or await self._dialer.dial(peer, route)
        return await connection.call(service, request)

    @asynccontextmanager
    async def open_channel(
        self, name: str | NodeName, service: str, *, route: Route | None = None
    ) -> AsyncIterator[ServiceChannel]:
        """Open a channel to a service of a node for the length of an `async with` block.

        Leaving the block cleanly closes the channel: the peer still reads everything that was sent. Leaving it by an
        exception or a cancellation resets it, and the service over there is cancelled. The caller's effective
        deadline is sampled here and bounds the service.

        Args:
            name: of the node, `name@host`.
            service: its name over there; 1 to 255 characters.
            route: how to reach the node if it is not connected; by default what the routes and the resolver say.

        Raises:
            HandshakeError, NoRouteError and the rest: as `connect`.
        """
        peer = self._dialable(name)
        connection = self._dialer.find(peer, route) or await self._dialer.dial(peer, route)
        async with connection.open_channel(service) as channel:
            yield channel

    def _dialable(self, name: str | NodeName) -> NodeName:
        peer = NodeName.parse(name)
        self._runtime.check_open()
        if peer == self.name:
            msg = f"{peer} is this node's own name; call the service directly"
            raise LocalProtocolError(msg)
        return peer

    def add_route(self, pattern: str | NodeName, route: Route, *, weight: int = 0) -> RouteHandle:
        """Add a route; returns a handle to remove it.

        Args:
            pattern: a node name, or a glob over the whole name.
            route: how to reach it.
            weight: higher is tried first; equal weights in order of addition.

        Raises:
            ValueError: the pattern is neither.
            CertificateError: the route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        if self._runtime.nursery is None:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)
        if route.cert_manager is not None:
            self._runtime.managers.use(route.cert_manager, as_server=False)
        if route.insecure_skip_verify:
            self._runtime.warn(Loosening.INSECURE_SKIP_VERIFY, f"nobody verifies who answers on the route {pattern}")
        return self._dialer.routes.add(pattern, route, weight=weight)

    def keep_connected(self, name: str | NodeName) -> Connector:
        """Keep a connection to a node up from now on: dial, and dial again when it ends, with back-off.

        Args:
            name: of the node, `name@host`.

        Returns:
            The connector, which shows its state and can be stopped; the one that there is, if there is one.

        Raises:
            LocalProtocolError, NetworkDisabledError, trio.ClosedResourceError: as `connect`.
        """
        peer = self._dialable(name)
        connector = self._connectors.get(peer)
        if connector is None or connector.stopped:
            connector = Connector(peer, lambda: self.connect(peer), self._report_connector)
            self._connectors[peer] = connector
            self._runtime.spawn(partial(self._run_connector, connector), f"connector to {peer}")
        return connector

    async def _run_connector(self, connector: Connector) -> None:
        try:
            await connector.run()
        finally:
            if self._connectors.get(connector.name) is connector:
                del self._connectors[connector.name]

    def _report_connector(self, connector: Connector) -> None:
        event = ConnectorChanged(node=self.name, name=connector.name, state=connector.state)
        self._runtime.events.publish(event)

    async def wait_connected(self, name: str | NodeName) -> Connection:
        """Wait until there is a connection to a node that a connector keeps up. Cancelling is harmless.

        Args:
            name: of the node, `name@host`.

        Raises:
            NoRouteError: no connector is kept for it; see `keep_connected`.
            trio.ClosedResourceError: the connector was stopped, or the node closed.
        """
        peer = self._dialable(name)
        connector = self._connectors.get(peer)
        if connector is None:
            msg = f"nothing keeps a connection to {peer} up; call node.keep_connected() first"
            raise NoRouteError(msg, name=peer)
        return await connector.wait_up()

    # Serving

    def add_service(self, name: str, service: Service, *, allow: Allow | None = None) -> None:
        """Register an async function under a name; each channel opened to it runs it once.

        Args:
            name: 1 to 255 characters.
            service: gets the channel; may look at `channel.peer`.
            allow: who may use it: a node name, a glob over the whole name, several of these (which only verified
                peers match), or a function of the peer that returns True. None: every peer. Checked before the
                service's task starts.

        Raises:
            ValueError: the name is empty, too long or taken, or `allow` has a pattern that is none.
        """
        self._runtime.services.add(name, service, allow=allow)

    # Life

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Node]:
        body: BaseException | None = None
        with self._runtime.uses:
            await self._set_up()
            try:
                async with trio.open_nursery() as nursery:
                    self._start(nursery)
                    try:
                        yield self
                    except BaseException as exc:  # noqa: ASYNC103, BLE001 -- raised again below, outside the nursery
                        # Kept out of the nursery, which would wrap it, and split it where it is a group.
                        body = exc
                        # It closes with its last task, before this one goes on: nobody may start one from here on.
                        self._runtime.nursery = None
                    else:
                        await self._leave()
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                crash = _without_cancelled(group)
                own = None if body is None else _without_cancelled(body)
                if body is None or (crash is not None and own is None):
                    raise  # a cancellation from outside, or a crash inside, which cancelled the body
                if crash is not None and own is not None:
                    msg = f"the node {self.name} crashed, and its block failed"
                    raise BaseExceptionGroup(msg, [own, crash]) from None
            finally:
                self._runtime.nursery = None
                self._runtime.events.end()
        if body is not None:
            raise body

    async def _set_up(self) -> None:
        """Everything that can fail at start-up; undone by the runtime's `uses`."""
        runtime, network = self._runtime, self.options.network
        plans = list(network.acceptors)
        if network.mode is NetworkMode.ENABLED and not plans:
            plans = [AcceptorOptions()]
        for plan in plans:
            runtime.managers.use(plan.cert_manager or self.options.cert_manager, as_server=True)
        if network.mode is not NetworkMode.DISABLED:
            runtime.managers.use(self.options.cert_manager, as_server=False)
        for route in network.routes.values():
            if route.cert_manager is not None:
                runtime.managers.use(route.cert_manager, as_server=False)
        for loosening, text in loosenings(self.options, plans).items():
            runtime.warn(loosening, text)
        acceptors: list[Acceptor] = []
        for plan in plans:
            acceptor = await self._open_acceptor(plan)
            runtime.uses.callback(acceptor.close)
            acceptors.append(acceptor)
        self.acceptors = tuple(acceptors)
        self._register()

    async def _open_acceptor(self, plan: AcceptorOptions) -> Acceptor:
        runtime, network = self._runtime, self.options.network
        manager = plan.cert_manager or self.options.cert_manager
        limits = runtime.limits(plan.max_message_size)

        async def established(link: Link, joined: Joined | None) -> None:
            if joined is not None:
                await _join(joined, link)
            elif runtime.nursery is None:  # it came through while we were leaving
                await link.stream.aclose()
            else:
                connection = runtime.adopt(link, manager, limits)
                del link  # as in the acceptor
                await connection.run()

        host = None if plan.host == "*" else plan.host or self.name.host
        transport = TCP if network.transport is None else network.transport
        listeners = await transport.listen(host, plan.port, port_range=plan.port_range, only_local=plan.host is None)
        return Acceptor(
            listeners,
            manager.contexts,
            runtime.party(limits, as_cookie(plan.cookie or network.cookie)),
            bind_names=network.bind_names if plan.bind_names is None else plan.bind_names,
            handshake_timeout=plan.handshake_timeout or network.handshake_timeout,
            admission=runtime.admission,
            established=established,
            refused=partial(runtime.refused, Side.ACCEPT),
            timed=partial(runtime.tally.handshake, Side.ACCEPT),
        )

    def _register(self) -> None:
        resolver = self.options.network.resolver
        registrar: object = resolver
        if not isinstance(registrar, Registrar) or not self.acceptors:
            return
        addresses = [address for acceptor in self.acceptors for address in acceptor.addresses]
        try:
            self._runtime.uses.enter_context(registrar.register(self.name, addresses))
        except Exception as exc:
            self._runtime.events.publish(ResolverTrouble(node=self.name, name=None, error=exc))
            if isinstance(exc, ResolverError):
                raise
            msg = f"{self.name} cannot be registered with {resolver!r}: {exc}"
            raise ResolverError(msg) from exc

    def _start(self, nursery: trio.Nursery) -> None:
        self._runtime.start(nursery)
        for acceptor in self.acceptors:
            self._runtime.spawn(partial(self._accept, acceptor, nursery), repr(acceptor))
        for peer in self.options.network.keep_connected:
            self.keep_connected(peer)

    async def _accept(self, acceptor: Acceptor, nursery: trio.Nursery) -> None:
        self._runtime.events.publish(AcceptorUp(node=self.name, address=acceptor.address))
        try:
            with trio.CancelScope() as scope:
                self._accepting.append(scope)
                if self._runtime.nursery is None:  # left before it began
                    scope.cancel()
                await acceptor.run(nursery)
        finally:
            self._runtime.events.publish(AcceptorDown(node=self.name, address=acceptor.address))

    async def drain(self) -> None:
        """End gracefully, at leisure: for a rolling deploy, before leaving the block.

        Stops listening and dialling at once, so that a successor may take the address and the name; tells every peer,
        which then opens no more channels here; waits until open channels and services have ended, those included that
        outlived their connection; closes the connections. The deadline is the caller's scope; when that is cancelled,
        what is left is cancelled too.
        Afterwards every verb raises `trio.ClosedResourceError`.
        """
        self._stop()
        services = self._runtime.services
        try:
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                for connection in list(self._runtime.running):
                    nursery.start_soon(connection.drain)
            await services.wait_idle()  # one whose caller is done may outlive its connection
        finally:
            services.cancel()

    def _stop(self) -> None:
        for connector in list(self._connectors.values()):
            connector.stop()
        self._runtime.nursery = None
        for scope in self._accepting:
            scope.cancel()
        for acceptor in self.acceptors:
            acceptor.close()
        self._dialer.cancel()

    async def _leave(self) -> None:
        """The clean end, within `shutdown_grace`: drain for most of it, then say goodbye to whoever is left."""
        grace = self.options.shutdown_grace
        deadline = trio.current_time() + grace
        self._stop()
        connections = list(self._runtime.running)
        with trio.move_on_at(deadline - grace / 4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._runtime.services.wait_idle)
                for connection in connections:
                    nursery.start_soon(connection.quiesce)
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(partial(connection.close, EndReason.SHUTTING_DOWN, grace=grace))


async def _join(joined: Joined, link: Link) -> None:
    try:
        joined.connection.commit(link, follows=joined.follows)
    except (trio.ClosedResourceError, trio.BrokenResourceError):  # it ended just now, and this link with it
        await link.stream.aclose()


def _without_cancelled(exc: BaseException) -> BaseException | None:
    """What an exception is besides cancellation; None if it is nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)[1]
    return None if isinstance(exc, trio.Cancelled) else exc
