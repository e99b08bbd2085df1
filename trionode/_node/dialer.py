"""From a node name to a connection: the one that there is, or a new one.

Theory. Routes come first: an explicit one, else all that match in the table, best first; where none matches the
resolver is asked (`directory`), and without a resolver the name's own host is dialled on the default port. A resolver's
endpoints become routes that carry nothing but host and port. Attempts go one after the other until one succeeds.

The two may reach for each other at once, and one direction be slow or blocked: while ours has not come further than
connecting, a connection that comes in and will do ends it. Where our dial turns out a duplicate (the two nodes dialled
each other, and the other's won), the connection that won is what the caller gets. Should that one fail after all, the
dial is made again.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trionode._connection.closing import turn_away
from trionode._connection.connection import core_of
from trionode._connection.end import EndReason
from trionode._errors import (
    HandshakeError,
    NoRouteError,
    PeerRejectedError,
    RejectionCode,
    Stage,
    UnverifiedReason,
)
from trionode._handshake.dial import Dial, dial

from .demands import Demands
from .directory import Directory
from .events import Side
from .insecure_options import InsecureOption
from .options import Route
from .routes import RouteTable
from .shared_dials import SharedDials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode._connection.connection import Connection
    from trionode._connection.core import ConnectionCore
    from trionode._connection.link import Link
    from trionode._handshake.dial import Connecting
    from trionode._identity.names import NodeName
    from trionode._managers.manager import CertManager

    from .runtime import Runtime

#: How often a dial is repeated that lost to another which then failed. Seconds have passed each time.
_DUPLICATE_RETRIES: Final = 3
#: How long the connection that our dial lost to may take to show up here: its confirmation is under way. Seconds.
_DUPLICATE_WAIT: Final = 2.0


class _OvertakenError(Exception):
    """While we were connecting a connection came in that will do."""


class _Wanted(NamedTuple):
    """What a dial is for.

    Attributes:
        name: the node.
        route: the caller's, if it gave one.
        opening: whether the caller opens a channel as soon as it has the connection.
    """

    name: NodeName
    route: Route | None
    opening: bool


@final
class Dialer:
    """A node's outward side.

    Attributes:
        routes: the route table.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._network = runtime.options.network
        self.routes = RouteTable()
        for pattern, route in self._network.routes.items():
            self.routes.add(pattern, route)
        self._directory = Directory(runtime)
        self._dials: SharedDials[Connection] = SharedDials(runtime.spawn_for_peer)

    def cancel(self) -> None:
        """Give up every dial under way."""
        self._dials.cancel()

    # What there is

    def find(self, name: NodeName, route: Route | None) -> ConnectionCore | None:
        """The live connection that a verb with this route may use, or None."""
        return self._runtime.registry.find(name, lambda connection: self._fits(connection, name, route))

    def _fits(self, connection: ConnectionCore, name: NodeName, route: Route | None) -> bool:
        if route is not None:
            return self._demands(route).met_by(connection.link, self._runtime.running.get(connection))
        if connection.peer.verified:
            return True
        routes = self.routes.lookup(name) or [Route()]
        return all(self._demands(each).insecure_skip_verify for each in routes)

    def _demands(self, route: Route) -> Demands:
        return Demands.of(route, self._runtime.options)

    def reuse(self, name: NodeName, route: Route | None) -> Connection | None:
        """As `find`, as applications see it."""
        connection = self.find(name, route)
        return None if connection is None else self._runtime.public(connection)

    async def connect(self, name: NodeName, route: Route | None) -> Connection:
        """The live connection, else a new one; always a checkpoint.

        Raises:
            HandshakeError, NoRouteError, CertificateError, trio.ClosedResourceError: as `dial`.
            NetworkDisabledError: the network mode is DISABLED.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._runtime.check_open_in_turn()
        connection = self.reuse(name, route)
        if connection is None:
            return await self.dial(name, route)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return connection

    # Making one

    async def dial(self, name: NodeName, route: Route | None, *, opening: bool = False) -> Connection:
        """Dial, or join the dial that is under way.

        Args:
            name: the node.
            route: the caller's, if it gave one.
            opening: whether the caller opens a channel as soon as it has the connection.

        Raises:
            HandshakeError: the one route failed.
            NoRouteError: there is none, or several were tried and all failed.
            CertificateError: a route's manager has an unusable key pair.
            trio.ClosedResourceError: the node is closed.
        """
        wanted = _Wanted(name, route, opening)
        connection = await self._dials.join((name, route), f"dial {name}", partial(self._attempt, wanted))
        core_of(connection).check_trusted()
        return connection

    async def _attempt(self, wanted: _Wanted) -> tuple[Connection, Callable[[], Awaitable[None]] | None]:
        """The connection, and, if it is new, what this task is to run for it."""
        name, route, _ = wanted
        registry = self._runtime.registry
        for attempt in range(_DUPLICATE_RETRIES):
            # There may be one by now: what our dial lost to, or what came in while this task was being started.
            connection = self.reuse(name, route)
            if connection is not None:
                return connection, None
            # A mutual connection that there is, and that a verb with this route may not use, is to be replaced; so is
            # one that our dial lost to and that did not show up: the peer has it, and on our side it must have broken.
            replace = bool(registry.mutual(name)) or attempt > 0
            try:
                new = await self._try_routes(wanted, replace=replace)
                return self._runtime.public(new), new.run
            except _OvertakenError:
                continue
            except (HandshakeError, NoRouteError) as exc:
                # Our direction may be blocked, and the peer's have come through meanwhile.
                connection = self.reuse(name, route)
                if connection is not None:
                    return connection, None
                duplicate = isinstance(exc, HandshakeError) and exc.reason == UnverifiedReason.DUPLICATE
                if not duplicate or attempt == _DUPLICATE_RETRIES - 1:
                    raise
            with trio.move_on_after(min(_DUPLICATE_WAIT, self._network.handshake_timeout)):
                await registry.wait(name, lambda found: found.link.mutual)
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    async def _try_routes(self, wanted: _Wanted, *, replace: bool) -> ConnectionCore:
        name, asked, _ = wanted
        routes, caution = ([asked], None) if asked is not None else await self._routes_to(name)
        failures: list[Exception] = []
        for each in routes:
            try:
                return await self._try_route(wanted, each, replace=replace)
            except Exception as exc:
                if caution is not None:
                    exc.add_note(caution)
                duplicate = isinstance(exc, HandshakeError) and exc.reason == UnverifiedReason.DUPLICATE
                if len(routes) == 1 or duplicate or isinstance(exc, (trio.ClosedResourceError, _OvertakenError)):
                    raise
                exc.add_note(f"route: {each!r}")
                failures.append(exc)
        causes = ExceptionGroup(f"routes to {name}", failures)
        tried = "; ".join(
            f"{each.host or name.host} port {each.port}: {failure}"
            for each, failure in zip(routes, failures, strict=True)
        )
        msg = f"all {len(routes)} routes to {name} failed{'' if caution is None else f' ({caution})'}: {tried}"
        raise NoRouteError(msg, name=name, causes=causes) from causes

    async def _try_route(self, wanted: _Wanted, route: Route, *, replace: bool) -> ConnectionCore:
        runtime, demands = self._runtime, self._demands(route)
        manager = demands.cert_manager
        runtime.managers.use(manager, as_server=False)
        limits = runtime.limits()
        plan = self._plan(wanted, route, demands, replace=replace)
        will_do = partial(self._fits, name=wanted.name, route=wanted.route)
        try:
            link = await self._dial_link(plan, manager, will_do)
        except PeerRejectedError as exc:
            if exc.code is not RejectionCode.SHUTTING_DOWN:
                raise
            link = await self._dial_successor(plan, manager, will_do, exc)
        if not runtime.is_open:
            await turn_away(link.stream, EndReason.SHUTTING_DOWN, confirmation=link.confirmation)
            msg = f"the node {runtime.name} was closed while it was dialling"
            raise trio.ClosedResourceError(msg)
        return runtime.adopt(link, manager, limits, lambda connection: self._redial(connection, plan, manager))

    async def _dial_successor(
        self, plan: Dial, manager: CertManager, will_do: Callable[[ConnectionCore], bool], left: PeerRejectedError
    ) -> Link:
        """Dial again where a node was leaving, and took nothing: in a rolling restart, another listens there already.

        Args:
            plan: of the dial that was refused.
            manager: its manager.
            will_do: which connection is as good.
            left: the refusal; raised where nothing is reached now.
        """
        try:
            return await self._dial_link(plan, manager, will_do)
        except HandshakeError as exc:
            if exc.stage in (Stage.RESOLVE, Stage.CONNECT):
                raise left from None
            raise

    async def _redial(self, connection: ConnectionCore, plan: Dial, manager: CertManager) -> Link:
        """The link to hand a connection over to: by the same way, and as strictly, as its first."""
        return await self._dial_link(dataclasses.replace(plan, join=connection, replace=False), manager)

    async def _dial_link(
        self, plan: Dial, manager: CertManager, will_do: Callable[[ConnectionCore], bool] | None = None
    ) -> Link:
        runtime = self._runtime
        reach = None if will_do is None else partial(self._unless_overtaken, plan.name, will_do)
        party = runtime.party(runtime.limits())
        try:
            with runtime.counters.handshake(Side.DIAL, abandoned=_OvertakenError) as on_taken:
                return await dial(plan, manager.contexts, party, reach=reach, on_taken=on_taken)
        except HandshakeError as exc:
            runtime.refused(Side.DIAL, exc)
            raise

    async def _unless_overtaken(
        self, name: NodeName, will_do: Callable[[ConnectionCore], bool], connecting: Connecting
    ) -> trio.abc.Stream:
        """Connect.

        Raises:
            _OvertakenError: a connection that will do came in meanwhile.
        """
        with trio.CancelScope() as scope, self._runtime.registry.cancelling(scope, name, will_do):
            return await connecting()
        raise _OvertakenError

    def _plan(self, wanted: _Wanted, route: Route, demands: Demands, *, replace: bool) -> Dial:
        name = wanted.name
        if demands.insecure_skip_verify:
            self._runtime.warn_insecure(
                InsecureOption.INSECURE_SKIP_VERIFY, f"the server that answers for {name} is not verified"
            )
        network = self._network
        return Dial(
            name=name,
            host=route.host or name.host,
            port=route.port,
            transport=network.transport,
            server_name=demands.server_name,
            cookie=demands.cookie,
            replace=replace,
            leave_confirmation=wanted.opening,
            insecure_skip_verify=demands.insecure_skip_verify,
            connect_timeout=network.connect_timeout,
            handshake_timeout=network.handshake_timeout,
        )

    async def _routes_to(self, name: NodeName) -> tuple[list[Route], str | None]:
        """What to try, in order; and what is to be said of it where it fails.

        Raises:
            NoRouteError: the resolver knows no endpoint, or failed.
        """
        routes = self.routes.lookup(name)
        answer = None if routes else await self._directory.look_up(name)
        if answer is None:
            return routes or [Route()], None
        return [Route(host=endpoint.host, port=endpoint.port) for endpoint in answer.endpoints], answer.caution()

    async def wait_news(self, name: NodeName) -> None:
        """Wait until dialling has become worthwhile, by what the resolver says; for ever where it is not asked."""
        if self.routes.lookup(name):
            await trio.sleep_forever()
        await self._directory.wait_news(name)
