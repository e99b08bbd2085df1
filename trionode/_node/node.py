"""Nodes: what an application holds, and the one place that puts a node's parts together.

Theory. `open_node` owns one nursery: accept loops, handshakes, dials, connections and services live in it, and nothing
outlives the block. `Node` has the public verbs and hands each to the part that does it:

- `lifecycle`: in which order the parts start and stop;
- `runtime`: what the parts share (registry of connections, services, events, counters);
- `acceptors` and `dialer`: the inward and the outward side;
- `membership`: which nodes there are, and `choice`: which of them gets a request;
- `connectors`: keep connections up;
- `manager_watch` and `renewal`: what follows from a rotation.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from trionode._connection.calling import call, is_ready, open_channel
from trionode._connection.channels import not_taken
from trionode._connection.connection import core_of
from trionode._connection.interceptors import CallSide, InterceptedBlock, InterceptedCall, call_through
from trionode._connection.registry import ConnectionsView
from trionode._errors import HandshakeError, LocalProtocolError, NoRouteError, RemoteError
from trionode._identity.names import NodeName
from trionode._identity.patterns import NamePattern, is_glob
from trionode._util.checkpoints import at_both_ends
from trionode._util.fields import check_argument, integer
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.metadata import NO_METADATA, as_metadata

from .acceptors import Acceptors
from .choice import Attempts, Choice, exhausted, may_go_again, may_go_elsewhere
from .connectors import Connectors
from .dialer import Dialer
from .insecure_options import InsecureOption
from .lifecycle import Lifecycle
from .membership import Membership
from .options import NodeOptions, Route
from .runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode._connection.channel import ServiceChannel
    from trionode._connection.connection import Connection
    from trionode._connection.core import ConnectionCore
    from trionode._connection.services import Allow, Service
    from trionode._handshake.acceptor import Acceptor
    from trionode._util.metadata import Metadata

    from .connector import Connector
    from .events import EventStream
    from .mesh import Mesh
    from .routes import RouteHandle
    from .statistics import NodeStatistics

__all__ = ["Node", "open_node", "serve_node"]

#: Connections on which a request is tried that certainly did not run on those before; True for the last one. A peer
#: that ends each new connection at once is not for us to outlast.
_TRIES: Final = (False, False, False, False, True)


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
    node = Node(NodeName.parse(name), options)
    return node._lifecycle.opened(node)  # noqa: SLF001 -- the one door


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


@interrupted_at_checkpoints
@final
class Node:
    """An open node; made by `open_node` and `serve_node`. One that was merely constructed is closed.

    Attributes:
        name: its canonical name.
        options: what it was opened with.
        incarnation: a random 64-bit number, drawn at opening; tells a restarted node from its former self.
        connections: each name that it has a usable connection to, and the one that `connect(name)` hands out.
    """

    def __init__(self, name: NodeName, options: NodeOptions) -> None:
        check_argument("options", options, NodeOptions)
        self._runtime = Runtime(name, options)
        self._acceptors = Acceptors(self._runtime)
        self._dialer = Dialer(self._runtime)
        self._membership = Membership(self._runtime, lambda peer: self._dialer.find(peer, None) is not None)
        self._choice = Choice(lambda peer: self._dialer.reuse(peer, None))
        self._connectors = Connectors(self._runtime, self._dialer, self._membership)
        self._lifecycle = Lifecycle(self._runtime, self._acceptors, self._dialer, self._connectors, self._membership)
        self.name: NodeName = name
        self.options: NodeOptions = options
        self.incarnation: int = self._runtime.incarnation
        self.connections: ConnectionsView = ConnectionsView(
            self._runtime.registry, lambda peer: self._dialer.reuse(peer, None)
        )

    def __repr__(self) -> str:
        state = "open" if self._runtime.is_open else "closed"
        return f"<Node {self.name}, {state}, {len(self._runtime.running)} connections>"

    @property
    def acceptors(self) -> Sequence[Acceptor]:
        """Its listening endpoints."""
        return self._acceptors.opened

    @property
    def unverified_connections(self) -> Sequence[Connection]:
        """Inbound connections of peers that this node did not verify, oldest first; never used for dialling out."""
        return tuple(map(self._runtime.public, self._runtime.registry.unverified))

    @property
    def connectors(self) -> Mapping[NodeName, Connector]:
        """The connectors that keep connections up, by peer."""
        return self._connectors.by_peer

    def statistics(self) -> NodeStatistics:
        """A snapshot of what it did and does, taken in one step; in the node's own thread."""
        self._runtime.check_home()
        return self._runtime.statistics(
            self._acceptors.statistics(),
            registered=self._lifecycle.registered,
            members=len(self._membership.named),
            members_age=self._membership.age,
        )

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStream]:
        """A reader of what the node reports from now on, for the length of an `async with` block.

        A reader that is too slow loses its oldest events, counted in `missed`; it never blocks the node.
        """
        self._runtime.check_home()
        with self._runtime.events.subscribe() as reader:
            async with at_both_ends():
                yield reader

    # Dialing

    async def connect(self, name: str | NodeName, route: Route | None = None) -> Connection:
        """A live connection to a node: the one that there is, or a new one.

        Concurrent calls for one name share one dial. Cancelling a call leaves the others; the dial is cancelled with
        the last.

        Args:
            name: the node to reach, `name@host`.
            route: how to reach it, in place of route table and resolver; a live connection is reused only if it
                meets what the route demands: manager, server name, cookie, verification.

        Raises:
            HandshakeError: the one route failed; see its subclasses.
            NoRouteError: there is no route, or several were tried and all failed.
            LocalProtocolError: it is this node's own name.
            NetworkDisabledError: the network mode is DISABLED.
            CertificateError: the route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        return await self._dialer.connect(self._other(name, route), route)

    async def call(
        self,
        name: str | NodeName,
        service: str,
        request: bytes,
        *,
        route: Route | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
    ) -> bytes:
        """Call a service of a node: connect if need be, send one message, receive exactly one.

        At most once: after a `trio.BrokenResourceError` the service may have run, and nothing is tried again. Where it
        certainly did not run, because the connection ended before the peer took the request, another connection is
        used or made. Cancelling cancels the service at the peer, too; a connection that was made stays.

        With a pattern, one of the `members` that match is called: one with the fewest channels open here; of several
        such, one that is connected, and then by chance. The next one is called only where the first could not be
        reached, or certainly did not run the service because it drains or is at a limit.

        Args:
            name: the node; or a glob over node names (`worker@*`), for one of these.
            service: the name of the service at that node.
            request: the message, at most the peer's `max_message_size` bytes.
            route: as for `connect`; not with a pattern.
            metadata: a small mapping of strings to strings or bytes, which the service finds as `channel.metadata`; at
                most the peer's `max_metadata_size` bytes, encoded.

        Raises:
            TypeError, ValueError: the metadata is no such mapping; nothing was done.
            LocalProtocolError: the request or the metadata is larger than the peer accepts; the service did not run.
            RemoteError: the service failed or was refused; code `no_reply` if it ended without a message.
            trio.BrokenResourceError: the connection was lost before the reply; the service may have run.
            HandshakeError, NoRouteError and the rest: as `connect`; the service did not run.
        """
        given = NO_METADATA if metadata is None else as_metadata(metadata)
        interceptors = self.options.interceptors
        if not interceptors:
            return await self._call(name, service, request, route, given)
        intercepted = InterceptedCall(
            side=CallSide.CALLER, service=service, name=str(name), metadata=given, request=request
        )
        return await call_through(interceptors, intercepted, partial(self._call, name, service, request, route))

    async def _call(
        self, name: str | NodeName, service: str, request: bytes, route: Route | None, metadata: Metadata
    ) -> bytes:
        """Call a node, or one of several."""
        if not is_glob(name):
            return await self._call_one(name, service, request, route, metadata)
        pattern, attempts = self._pattern(name, route), Attempts()
        while True:
            core = await self._reach_one(pattern, attempts, metadata)
            try:
                return await call(core, service, request, metadata)
            except RemoteError as exc:
                if not may_go_elsewhere(exc):
                    raise
                self._failed(core.peer.name, exc, attempts)

    async def _call_one(
        self, name: str | NodeName, service: str, request: bytes, route: Route | None, metadata: Metadata
    ) -> bytes:
        """Call one node, on another connection where the request certainly did not run on the first."""
        for last in _TRIES:
            connection = await self._reach(name, route)
            core = core_of(connection)
            try:
                if await is_ready(core, metadata) or last:
                    return await call(core, service, request, metadata)
            except RemoteError as exc:
                if last or not may_go_again(exc):
                    raise
        raise AssertionError("the last one returns or raises")  # pragma: no cover

    @asynccontextmanager
    async def open_channel(
        self,
        name: str | NodeName,
        service: str,
        *,
        route: Route | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
    ) -> AsyncIterator[ServiceChannel]:
        """Open a channel to a service of a node for the length of an `async with` block.

        Leaving the block cleanly closes the channel: the peer still reads everything that was sent. Leaving it by an
        exception or a cancellation resets it, and the service at the peer is cancelled. The caller's effective
        deadline is sampled here and bounds the service.

        With a pattern, it is opened to one of the `members` that match, chosen as for `call`, and to the next one only
        where the first could not be reached, or allows no further channel. What the peer says of a channel that is open
        is the application's.

        Args:
            name: of the node, `name@host`; or a glob over node names, for one of these.
            service: the name of the service at that node; 1 to 255 characters.
            route: how to reach the node if it is not connected; by default what the routes and the resolver say. Not
                with a pattern.
            metadata: as for `call`.

        Raises:
            TypeError, ValueError, LocalProtocolError: as for `call`.
            RemoteError: code `limit`: the peer does not allow more channels at once.
            HandshakeError, NoRouteError and the rest: as `connect`.
        """
        given = NO_METADATA if metadata is None else as_metadata(metadata)
        interceptors = self.options.interceptors
        if not interceptors:
            async with await self._open(name, service, route, given) as channel:
                yield channel
            return
        intercepted = InterceptedCall(
            side=CallSide.CALLER, service=service, name=str(name), metadata=given, one_reply=False
        )
        async with InterceptedBlock(interceptors, intercepted, partial(self._open, name, service, route)) as channel:
            yield channel

    async def _open(
        self, name: str | NodeName, service: str, route: Route | None, metadata: Metadata
    ) -> ServiceChannel:
        """A channel on a connection that takes one: it may have begun to end between its making and our turn."""
        if is_glob(name):
            return await self._open_one(self._pattern(name, route), service, metadata)
        for last in _TRIES:
            connection = await self._reach(name, route)
            core = core_of(connection)
            try:
                if await is_ready(core, metadata) or last:
                    return await open_channel(core, service, metadata)
            except RemoteError as exc:
                if last or not may_go_again(exc):
                    raise
        raise AssertionError("the last one returns or raises")  # pragma: no cover

    async def _open_one(self, pattern: NamePattern, service: str, metadata: Metadata) -> ServiceChannel:
        """A channel to one of the members that match."""
        attempts = Attempts()
        while True:
            core = await self._reach_one(pattern, attempts, metadata)
            try:
                return await open_channel(core, service, metadata)
            except RemoteError as exc:
                if not may_go_elsewhere(exc):
                    raise
                self._failed(core.peer.name, exc, attempts)

    async def _reach(self, name: str | NodeName, route: Route | None) -> Connection:
        """As `connect`, and no checkpoint where there is a connection."""
        peer = self._other(name, route)
        await self._runtime.check_open_in_turn()
        return self._dialer.reuse(peer, route) or await self._dialer.dial(peer, route, opening=True)

    async def _reach_one(self, pattern: NamePattern, attempts: Attempts, metadata: Metadata) -> ConnectionCore:
        """A connection that takes a channel now, to one of the members that match and may still be tried.

        Args:
            pattern: which members.
            attempts: those that were tried; those that fail here are added.
            metadata: there is room for it.

        Raises:
            NoRouteError, HandshakeError, RemoteError: there is none, or none is left.
        """
        while members := attempts.left(self._membership.members(pattern)):
            name = self._choice.best(members)
            try:
                core = core_of(await self._reach(name, None))
            except (HandshakeError, NoRouteError) as exc:
                self._failed(name, exc, attempts)
                continue
            if await is_ready(core, metadata):
                return core
            self._failed(name, not_taken(trio.ClosedResourceError(f"the connection to {name} has ended")), attempts)
        await trio.lowlevel.checkpoint()
        self._runtime.check_open()
        raise exhausted(pattern, attempts.failures)

    def _failed(self, name: NodeName, error: Exception, attempts: Attempts) -> None:
        attempts.failed(name, error)
        self._choice.avoid(name)

    def _pattern(self, given: str | NodeName, route: Route | None = None) -> NamePattern:
        self._runtime.check_home()
        if route is not None:
            msg = f"a route leads to one node, and {given} may be several; give one of the two"
            raise LocalProtocolError(msg)
        return NamePattern(given)

    def _other(self, name: str | NodeName, route: Route | None = None) -> NodeName:
        self._runtime.check_home()
        peer = NodeName.parse(name)
        if route is not None:
            check_argument("route", route, Route)
        self._runtime.check_other(peer)
        return peer

    def add_route(self, pattern: str | NodeName, route: Route, *, weight: int = 0) -> RouteHandle:
        """Add a route; returns a handle to remove it.

        Args:
            pattern: a node name, or a glob over the whole name.
            route: how to reach it.
            weight: higher is tried first; equal weights in order of addition.

        Raises:
            ValueError: the pattern is neither a node name nor a glob.
            CertificateError: the route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        check_argument("route", route, Route)
        check_argument("weight", weight, int)
        self._runtime.check_open(network=False)
        if route.cert_manager is not None:
            self._runtime.managers.use(route.cert_manager, as_server=False)
        if route.insecure_skip_verify:
            self._runtime.warn_insecure(
                InsecureOption.INSECURE_SKIP_VERIFY, f"the servers on the route {pattern} are not verified"
            )
        return self._dialer.routes.add(pattern, route, weight=weight)

    def keep_connected(self, name: str | NodeName) -> Connector | Mesh:
        """Keep a connection to a node up from now on: dial, and dial again when it ends, with back-off.

        Where the resolver tells of changes, a wait ends early when the node becomes reachable.

        With a pattern: to every node that matches and that the resolver names, for as long as it does.

        Args:
            name: of the node, `name@host`; or a glob over node names.

        Returns:
            The connector, which shows its state and can be stopped; the one that there is, if there is one. For a
            pattern, the same of all of them.

        Raises:
            LocalProtocolError, NetworkDisabledError, trio.ClosedResourceError: as `connect`.
        """
        if is_glob(name):
            pattern = self._pattern(name)
            self._runtime.check_open()
            return self._connectors.keep_all(pattern)
        peer = self._other(name)
        self._runtime.check_open()
        return self._connectors.keep(peer)

    async def wait_connected(self, name: str | NodeName) -> Connection:
        """Wait until there is a connection to a node that a connector keeps up. Cancelling is harmless.

        Args:
            name: of the node, `name@host`; or a pattern that was given to `keep_connected`, for one of its nodes.

        Raises:
            NoRouteError: no connector is kept for it; see `keep_connected`.
            trio.ClosedResourceError: the connector was stopped, or the node closed.
        """
        peer = None if is_glob(name) else self._other(name)
        await self._runtime.check_open_in_turn()
        connector = self._connectors.mesh(self._pattern(name)) if peer is None else self._connectors.get(peer)
        if connector is None:
            msg = f"no connector keeps a connection to {name} up; call node.keep_connected() first"
            raise NoRouteError(msg, name=peer)
        return await connector.wait_up()

    # Members

    def members(self, pattern: str | NodeName = "*") -> frozenset[NodeName]:
        """The other nodes that match: those that the resolver names, and those that this node is connected to.

        What the resolver names is followed while the node is open, if it can name nodes (see `NetworkOptions.members`);
        each change is a `PeerFound` or `PeerLost`. An outage of the resolver changes nothing. That a node is named
        does not mean that it can be reached, nor that it is who it says: dialling shows that.

        Args:
            pattern: a node name, or a glob over the whole `name@host`.

        Raises:
            ValueError: the pattern is neither a node name nor a glob.
        """
        self._runtime.check_home()
        return self._membership.members(NamePattern(pattern))

    async def wait_members(self, pattern: str | NodeName, count: int = 1) -> frozenset[NodeName]:
        """Wait until there are so many members that match, and return all that do. Cancelling is harmless.

        Args:
            pattern: as for `members`.
            count: how many at least.

        Raises:
            ValueError: the pattern is neither a node name nor a glob, or the count is negative.
            trio.ClosedResourceError: the node is closed.
        """
        self._runtime.check_home()
        check_argument("count", count, integer(0, 2**31))
        return await self._membership.wait(NamePattern(pattern), count)

    # Serving

    def add_service(self, name: str, service: Service, *, allow: Allow | None = None) -> None:
        """Register a service, an async function, under a name; each channel that is opened to it runs it once.

        Args:
            name: 1 to 255 characters that UTF-8 can encode.
            service: gets the channel; may look at `channel.peer`.
            allow: the peers that may use it: a node name, a glob over the whole name, several of these (which only
                verified peers match), or a function of the peer that returns True. None: every peer. Checked before
                the service's task starts.

        Raises:
            TypeError: the name is not a string, the service no async function, or `allow` none of these.
            ValueError: the name is empty, too long, not encodable or taken, or `allow` has a pattern that is none.
        """
        self._runtime.check_home()
        self._runtime.services.add(name, service, allow=allow)

    # Leaving

    async def drain(self) -> None:
        """End gracefully, without haste: for a rolling deploy, before leaving the block.

        Stops listening and dialling at once, so that a successor may take the address and the name; tells every peer,
        which then opens no more channels here; waits until open channels and services have ended, those included that
        outlived their connection; closes the connections. The deadline is the caller's scope; when that is cancelled,
        what is left is cancelled too.
        Afterwards every verb raises `trio.ClosedResourceError`.
        """
        self._runtime.check_home()
        await self._lifecycle.drain()

    @property
    def draining(self) -> bool:
        """Whether it has begun to drain, or its block is being left or was."""
        return self._runtime.leaving.is_set()

    async def wait_draining(self) -> None:
        """Wait until it begins to drain, or its block is left: for services that have something to finish.

        Cancelling is harmless.
        """
        self._runtime.check_home()
        await self._runtime.leaving.wait()
