"""Nodes: open and own everything. The only place that wires managers, acceptors, connectors and connections together.

Theory. `open_node` owns one nursery: accept loops, handshakes, dials, connections and services live in it, and nothing
outlives the block. What can fail at start-up fails before the nursery is opened, so it comes out bare. Leaving the
block cleanly stops accepting, flushes and says goodbye within `shutdown_grace`, then cancels; leaving it by an
exception or a cancellation cancels at once, and what the body raised comes out as the same object: only a crash inside,
or several errors, come as a group.

A manager is in use from the moment that the node first needs it (its own, an acceptor's, a route's) until the node
closes; that is what fixes its pools and binds it to this Trio run.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn, final

import trio

from ._acceptor import Acceptor, AcceptorStatistics
from ._connection import Connection, ConnectionEnd, ConnectionSettings, EndReason
from ._connector import dial
from ._dials import SharedDials
from ._errors import (
    HandshakeError,
    LocalProtocolError,
    NetworkDisabledError,
    NoRouteError,
    UnverifiedReason,
)
from ._events import (
    AcceptorDown,
    AcceptorUp,
    ConnectionDown,
    ConnectionUp,
    EventHub,
    EventStream,
    GenerationPublished,
    HandshakeRefused,
    Side,
)
from ._handshake import Dial, Party
from ._identity import NodeName, SubjectNames, describe
from ._listeners import open_listeners
from ._loosening import Loosening, loosenings
from ._options import AcceptorOptions, NetworkMode, NodeOptions, Route
from ._registry import ConnectionsView, Registry
from ._routes import RouteHandle, RouteTable
from ._services import Services
from ._wire import Limits, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from ._cert_manager import CertManager
    from ._channel import ServiceChannel
    from ._link import Link
    from ._services import Allow, Service

__all__ = ["Node", "NodeStatistics", "open_node", "serve_node"]

_log = logging.getLogger("trionode.node")
_security_log = logging.getLogger("trionode.security")


def open_node(name: str | NodeName, options: NodeOptions) -> AbstractAsyncContextManager[Node]:
    """Open a node for the length of an `async with` block; everything it does happens inside.

    When the block is entered the node listens. Leaving it cleanly stops accepting, flushes what was accepted for
    sending and says goodbye within `options.shutdown_grace` seconds, then cancels what is left. Leaving it by an
    exception or a cancellation ends everything at once.

    Args:
        name: `name@host`.
        options: everything else.

    Raises:
        ValueError: the name is none.
        CertificateError: a manager's key pair is unusable.
        ListenError: an acceptor cannot listen.
        RuntimeError: a manager is in use by another Trio run.
        BaseExceptionGroup: something crashed inside. What the block itself raises comes out as the same object.
    """
    return Node(NodeName.parse(name), options)._opened()  # noqa: SLF001 -- the one door


async def serve_node(
    name: str | NodeName, options: NodeOptions, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Run a node until cancelled, for `nursery.start`, which returns the open node.

    Raises:
        CertificateError, ListenError, RuntimeError, ValueError: as `open_node`.
    """
    async with open_node(name, options) as node:
        task_status.started(node)
        await trio.sleep_forever()
    raise AssertionError("sleep_forever ends by cancellation only")  # pragma: no cover


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatistics:
    """A snapshot of a node.

    Attributes:
        connections: open now, verified or not.
        channels: open on them.
        services: service tasks that run.
        acceptors: one entry for each.
    """

    connections: int
    channels: int
    services: int
    acceptors: tuple[AcceptorStatistics, ...]


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
        self.name = name
        self.options = options
        self.incarnation = secrets.randbits(64)
        self.acceptors: Sequence[Acceptor] = ()
        self._registry = Registry()
        self.connections: Mapping[NodeName, Connection] = ConnectionsView(
            self._registry, lambda peer: self._find(peer, None)
        )
        self._services = Services(
            propagate_errors=options.propagate_service_errors, expose_errors=options.expose_service_errors
        )
        for service_name, service in options.services.items():
            self._services.add(service_name, service)
        self._routes = RouteTable()
        for pattern, route in options.network.routes.items():
            self._routes.add(pattern, route)
        self._events = EventHub()
        self._managers: dict[CertManager, bool] = {}
        self._running: dict[Connection, CertManager] = {}
        self._warned: set[Loosening] = set()
        self._dials: SharedDials[Connection] = SharedDials(self._spawn)
        self._context = contextvars.copy_context()
        self._nursery: trio.Nursery | None = None
        self._accepting = trio.CancelScope()
        self._uses = ExitStack()

    def __repr__(self) -> str:
        state = "open" if self._nursery is not None else "closed"
        return f"<Node {self.name}, {state}, {len(self._running)} connections>"

    @property
    def unverified_connections(self) -> Sequence[Connection]:
        """Inbound connections of peers that nobody verified, oldest first; never used for dialling out."""
        return self._registry.unverified

    def statistics(self) -> NodeStatistics:
        """A snapshot of what it does."""
        connections = [connection.statistics() for connection in self._running]
        return NodeStatistics(
            connections=len(connections),
            channels=sum(each.channels for each in connections),
            services=sum(each.services for each in connections),
            acceptors=tuple(acceptor.statistics() for acceptor in self.acceptors),
        )

    # Dialling

    async def connect(self, name: str | NodeName, route: Route | None = None) -> Connection:
        """A live connection to a node: the one that there is, or a new one.

        Concurrent calls for one name share one dial. Cancelling a call leaves the others; the dial is cancelled with
        the last.

        Args:
            name: whom to reach.
            route: how, in place of the route table; a live connection is reused only if it satisfies the route's
                manager and verification.

        Raises:
            HandshakeError: the one route failed; see its subclasses.
            NoRouteError: several routes were tried and all failed.
            LocalProtocolError: it is our own name.
            NetworkDisabledError: the network mode is DISABLED.
            CertificateError: the route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        peer = self._dialable(name)
        connection = self._find(peer, route)
        if connection is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return connection
        return await self._dial(peer, route)

    async def call(
        self, name: str | NodeName, service: str, request: bytes, *, route: Route | None = None
    ) -> bytes:
        """Call a service of a node: connect if need be, send one message, receive exactly one.

        At most once: after a `trio.BrokenResourceError` the service may have run; nothing is retried silently.

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
        connection = self._find(peer, route) or await self._dial(peer, route)
        return await connection.call(service, request)

    @asynccontextmanager
    async def open_channel(
        self, name: str | NodeName, service: str, *, route: Route | None = None
    ) -> AsyncIterator[ServiceChannel]:
        """Open a channel to a service of a node for the length of an `async with` block.

        Leaving the block cleanly closes the channel: the peer still reads everything that was sent. Leaving it by an
        exception or a cancellation resets it, and the service over there is cancelled. The caller's effective
        deadline is sampled here and bounds the service.

        Raises:
            HandshakeError, NoRouteError and the rest: as `connect`.
        """
        peer = self._dialable(name)
        connection = self._find(peer, route) or await self._dial(peer, route)
        async with connection.open_channel(service) as channel:
            yield channel

    def _dialable(self, name: str | NodeName) -> NodeName:
        peer = NodeName.parse(name)
        if self.options.network.mode is NetworkMode.DISABLED:
            msg = f"the network of {self.name} is disabled; open the node with NetworkMode.ENABLED or HIDDEN"
            raise NetworkDisabledError(msg)
        if peer == self.name:
            msg = f"{peer} is this node's own name; call the service directly"
            raise LocalProtocolError(msg)
        if self._nursery is None:
            msg = f"the node {self.name} is closed"
            raise trio.ClosedResourceError(msg)
        return peer

    def _routes_to(self, name: NodeName, route: Route | None) -> list[Route]:
        return [route] if route is not None else self._routes.lookup(name) or [Route()]

    def _find(self, name: NodeName, route: Route | None) -> Connection | None:
        insecure = all(self._is_insecure(candidate) for candidate in self._routes_to(name, route))

        def fits(connection: Connection) -> bool:
            if not (connection.peer.verified or insecure):
                return False
            return route is None or self._satisfies(connection, route)

        return self._registry.find(name, fits)

    def _satisfies(self, connection: Connection, route: Route) -> bool:
        if self._running.get(connection) is not self._manager_for(route):
            return False
        if route.server_name is None or self._is_insecure(route):
            return True
        certificate = connection.peer.certificate
        return certificate is not None and SubjectNames.of(certificate).cover_host(route.server_name)

    def _is_insecure(self, route: Route) -> bool:
        own = route.insecure_skip_verify
        return self.options.network.insecure_skip_verify if own is None else own

    def _manager_for(self, route: Route) -> CertManager:
        return route.cert_manager or self.options.cert_manager

    async def _dial(self, name: NodeName, route: Route | None) -> Connection:
        async def attempt() -> Connection:
            return await self._try_routes(name, self._routes_to(name, route))

        return await self._dials.join((name, route), f"dial {name}", attempt, Connection.run)

    async def _try_routes(self, name: NodeName, routes: list[Route]) -> Connection:
        failures: list[Exception] = []
        for route in routes:
            manager = self._manager_for(route)
            try:
                self._use(manager, as_server=False)
                link = await dial(self._plan(name, route), manager.contexts, self._party(None))
            except Exception as exc:
                if isinstance(exc, HandshakeError):
                    self._refused(Side.DIAL, exc)
                if len(routes) == 1:
                    raise
                failures.append(exc)
            else:
                if self._nursery is None:
                    await link.stream.aclose()
                    msg = f"the node {self.name} was closed while it was dialling"
                    raise trio.ClosedResourceError(msg)
                return self._adopt(link, manager, self._limits(None))
        causes = ExceptionGroup(f"routes to {name}", failures)
        tried = "; ".join(
            f"{route.host or name.host} port {route.port}: {failure}"
            for route, failure in zip(routes, failures, strict=True)
        )
        msg = f"all {len(routes)} routes to {name} failed: {tried}"
        raise NoRouteError(msg, name=name, causes=causes) from causes

    def _plan(self, name: NodeName, route: Route) -> Dial:
        insecure = self._is_insecure(route)
        if insecure:
            self._warn(Loosening.INSECURE_SKIP_VERIFY, f"nobody verifies who answers for {name}")
        network = self.options.network
        return Dial(
            name=name,
            host=route.host or name.host,
            port=route.port,
            server_name=route.server_name,
            insecure_skip_verify=insecure,
            connect_timeout=network.connect_timeout,
            handshake_timeout=network.handshake_timeout,
        )

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
        self._services.add(name, service, allow=allow)

    def add_route(self, pattern: str | NodeName, route: Route, *, weight: int = 0) -> RouteHandle:
        """Add a route; returns a handle to remove it.

        Args:
            pattern: a node name, or a glob over the whole name.
            route: how to reach it.
            weight: higher is tried first; equal weights in order of addition.

        Raises:
            ValueError: the pattern is neither.
            CertificateError: the route's manager has an unusable key pair.
        """
        if route.cert_manager is not None:
            self._use(route.cert_manager, as_server=False)
        if self._is_insecure(route):
            self._warn(Loosening.INSECURE_SKIP_VERIFY, f"nobody verifies who answers on the route {pattern}")
        return self._routes.add(pattern, route, weight=weight)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStream]:
        """A reader of what the node reports from now on, for the length of an `async with` block.

        A reader that is too slow loses its oldest events, counted in `missed`; it never blocks the node.
        """
        with self._events.subscribe() as reader:
            yield reader

    # Life

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Node]:
        body: BaseException | None = None
        with self._uses:
            await self._set_up()
            try:
                async with trio.open_nursery() as nursery:
                    self._start(nursery)
                    try:
                        yield self
                    except BaseException as exc:
                        body = exc
                        raise
                    else:
                        await self._leave()
                        nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                if len(group.exceptions) != 1 or group.exceptions[0] is not body:
                    raise
            finally:
                self._nursery = None
                self._events.end()
        if body is not None:
            raise body

    async def _set_up(self) -> None:
        """Everything that can fail at start-up; undone by `_uses`."""
        network = self.options.network
        plans = list(network.acceptors)
        if network.mode is NetworkMode.ENABLED and not plans:
            plans = [AcceptorOptions()]
        for plan in plans:
            self._use(plan.cert_manager or self.options.cert_manager, as_server=True)
        if network.mode is not NetworkMode.DISABLED:
            self._use(self.options.cert_manager, as_server=False)
        for route in network.routes.values():
            if route.cert_manager is not None:
                self._use(route.cert_manager, as_server=False)
        for loosening, text in loosenings(self.options, plans).items():
            self._warn(loosening, text)
        acceptors: list[Acceptor] = []
        for plan in plans:
            acceptor = await self._open_acceptor(plan)
            self._uses.callback(acceptor.close)
            acceptors.append(acceptor)
        self.acceptors = tuple(acceptors)

    async def _open_acceptor(self, plan: AcceptorOptions) -> Acceptor:
        network = self.options.network
        manager = plan.cert_manager or self.options.cert_manager
        limits = self._limits(plan.max_message_size)

        async def established(link: Link) -> None:
            if self._nursery is None:  # it came through while we were leaving
                await link.stream.aclose()
            else:
                await self._adopt(link, manager, limits).run()

        listeners = await open_listeners(
            plan.host or self.name.host, plan.port, port_range=plan.port_range, only_local=plan.host is None
        )
        return Acceptor(
            listeners,
            manager.contexts,
            self._party(plan.max_message_size),
            bind_names=network.bind_names if plan.bind_names is None else plan.bind_names,
            handshake_timeout=plan.handshake_timeout or network.handshake_timeout,
            established=established,
            refused=lambda error: self._refused(Side.ACCEPT, error),
        )

    def _start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        for acceptor in self.acceptors:
            nursery.start_soon(self._accept, acceptor, name=f"{acceptor!r}")
        for manager in self._managers:
            nursery.start_soon(self._watch, manager)

    async def _accept(self, acceptor: Acceptor) -> None:
        assert self._nursery is not None
        self._events.publish(AcceptorUp(node=self.name, address=acceptor.address))
        try:
            with self._accepting:
                await acceptor.run(self._nursery)
        finally:
            self._events.publish(AcceptorDown(node=self.name, address=acceptor.address))

    async def _watch(self, manager: CertManager) -> None:
        seen = manager.generation
        while True:
            await manager.wait_generation(seen + 1)
            seen = manager.generation
            key_pair = manager.key_pair
            self._check_covers(manager)
            self._events.publish(
                GenerationPublished(node=self.name, generation=seen, fingerprint=key_pair.fingerprint)
            )

    async def drain(self) -> None:
        """End gracefully, at leisure: for a rolling deploy, before leaving the block.

        Stops listening and dialling at once, so that a successor may take the address and the name; tells every peer,
        which then opens no more channels here; waits until open channels and running services have ended; closes the
        connections. The deadline is the caller's scope; when that is cancelled, what is left is cancelled too.
        Afterwards every verb raises `trio.ClosedResourceError`.
        """
        self._stop()
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for connection in list(self._running):
                nursery.start_soon(connection.drain)

    def _stop(self) -> None:
        self._nursery = None
        self._accepting.cancel()
        for acceptor in self.acceptors:
            acceptor.close()
        self._dials.cancel()

    async def _leave(self) -> None:
        """The clean end, within `shutdown_grace`: drain for most of it, then say goodbye to whoever is left."""
        grace = self.options.shutdown_grace
        deadline = trio.current_time() + grace
        self._stop()
        connections = list(self._running)
        with trio.move_on_at(deadline - grace / 4):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.quiesce)
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(partial(connection.close, EndReason.SHUTTING_DOWN, grace=grace))

    # What acceptors and dials bring

    def _adopt(self, link: Link, manager: CertManager, limits: Limits) -> Connection:
        """Make a link a connection and register it; no checkpoint until its `run()`."""
        assert self._nursery is not None
        network = self.options.network
        settings = ConnectionSettings(
            services=self._services,
            service_nursery=self._nursery,
            limits=limits,
            budget=network.receive_budget,
            max_pending_opens=network.max_pending_opens,
            heartbeat_interval=network.heartbeat_interval,
            heartbeat_tolerance=network.heartbeat_tolerance,
            unregister=self._registry.remove,
            ended=self._report_end,
            finished=self._running.pop,
            current_generation=lambda: manager.generation,
        )
        connection = Connection(link, settings)
        self._running[connection] = manager
        for replaced in self._registry.add(connection):
            self._spawn(replaced.retire, f"retire {replaced!r}")
        unverified = self._registry.unverified
        if len(unverified) > network.max_unverified:
            self._spawn(partial(unverified[0].close, EndReason.LIMIT), f"close {unverified[0]!r}")
        side = Side.DIAL if link.dialled else Side.ACCEPT
        self._events.publish(ConnectionUp(node=self.name, side=side, peer=link.peer, connection=connection))
        _log.info("connection up: %r", connection)
        return connection

    def _report_end(self, connection: Connection, end: ConnectionEnd) -> None:
        self._events.publish(
            ConnectionDown(
                node=self.name, peer=connection.peer, connection=connection, reason=end.reason, error=end.error
            )
        )
        _log.info("connection down: %r: %s", connection, end.error or end.reason)

    def _refused(self, side: Side, error: HandshakeError) -> None:
        self._events.publish(HandshakeRefused(node=self.name, side=side, address=error.address, error=error))

    # Helpers

    def _spawn(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        # In the node's own context variables, not in those of whoever happened to cause it.
        nursery = self._nursery
        assert nursery is not None
        self._context.copy().run(lambda: nursery.start_soon(function, name=name))

    def _use(self, manager: CertManager, *, as_server: bool) -> None:
        """Declare a use for as long as the node is open, once per manager and role."""
        known = self._managers.get(manager)
        if known is None or (as_server and not known):
            self._uses.enter_context(manager.use(as_server=as_server))
            self._managers[manager] = as_server or bool(known)
            if known is None:
                self._check_covers(manager)
                if self._nursery is not None:
                    self._spawn(lambda: self._watch(manager), f"watch {manager!r}")

    def _limits(self, max_message_size: int | None) -> Limits:
        network = self.options.network
        return Limits(
            max_message_size=max_message_size or network.max_message_size,
            window=network.channel_window,
            max_channels=network.max_channels,
        )

    def _party(self, max_message_size: int | None) -> Party:
        return Party(
            name=self.name,
            incarnation=self.incarnation,
            limits=self._limits(max_message_size),
            authorize=self.options.authorize,
            refuse_all=self._refuse_all,
        )

    def _refuse_all(self) -> Refusal | None:
        if self._nursery is not None:
            return None
        return Refusal(code=UnverifiedReason.SHUTTING_DOWN, message=f"{self.name} is shutting down")

    def _check_covers(self, manager: CertManager) -> None:
        """Warn where our own certificate does not speak for our own name; peers would refuse us."""
        names = SubjectNames.of(manager.key_pair.certificate)
        if not names.cover_node(self.name):
            _log.warning(
                "our certificate does not cover our node name %s, so verifying peers will refuse us: %s. Issue it for "
                "this name",
                self.name,
                describe(manager.key_pair.certificate),
            )

    def _warn(self, loosening: Loosening, text: str) -> None:
        if loosening not in self._warned:
            self._warned.add(loosening)
            _security_log.warning("%s: %s: %s", self.name, loosening.value, text)
