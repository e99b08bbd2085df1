"""A node's inward side: what listens, and what becomes of the links that come in.

Theory. Acceptors are opened before the node's nursery, so that a port which cannot be had is an error of `open_node`
itself. Each then runs in a task of its own, and every handshake in one of the node's. Stopping closes the listeners; it
does not cancel the handshakes in progress, which the node lets become connections before it says goodbye (`lifecycle`).
What waits in the queue of a listening socket is reset when the last copy of the socket is closed; where a successor or
a service manager has another, it is theirs to accept.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.closing import turn_away
from trionode._connection.end import EndReason
from trionode._errors import HandshakeError
from trionode._handshake.acceptor import AcceptLoop
from trionode._transport.given import close_given, opened
from trionode._transport.tcp import TCP
from trionode._util.contained import containing
from trionode._util.log import Log

from .acceptor_plan import acceptor_plans
from .events import AcceptorDown, AcceptorUp, Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._connection.link import Link
    from trionode._handshake.accept import Joined
    from trionode._handshake.acceptor import Acceptor, AcceptorStatistics
    from trionode._transport.interfaces import Listener
    from trionode._util.text import Address

    from .acceptor_plan import AcceptorPlan
    from .runtime import Runtime


_log: Final = Log("trionode.node")


@final
class Acceptors:
    """The acceptors of one node.

    Attributes:
        plans: what each is opened with.
        opened: those that listen, or have listened, as the program sees them.
        loops: the same at work.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.plans = acceptor_plans(runtime.name, runtime.options)
        self.opened: Sequence[Acceptor] = ()
        self.loops: list[AcceptLoop] = []
        self._runtime = runtime
        self._scopes: list[trio.CancelScope] = []

    @property
    def addresses(self) -> Sequence[Address]:
        """Everything that they listen on."""
        return [address for acceptor in self.opened for address in acceptor.addresses]

    def statistics(self) -> tuple[AcceptorStatistics, ...]:
        """A snapshot of each."""
        return tuple(acceptor.statistics() for acceptor in self.opened)

    def own(self) -> None:
        """Own the listeners that the program has given, from here on: the runtime's `uses` closes them."""
        for plan in self.plans:
            for given in plan.listeners:
                close = containing(close_given, _log, "closing a listener", node=self._runtime.name)
                self._runtime.uses.callback(close, given)

    async def open(self) -> None:
        """Listen; the runtime's `uses` closes what was opened.

        Raises:
            ListenError: an acceptor cannot listen.
        """
        for plan in self.plans:
            loop = await self._open(plan)
            self._runtime.uses.callback(loop.close)
            self.loops.append(loop)
        self.opened = tuple(loop.acceptor for loop in self.loops)

    def start(self, nursery: trio.Nursery) -> None:
        """Accept from now on; handshakes run in the nursery."""
        for loop in self.loops:
            self._runtime.spawn(partial(self._run, loop, nursery), repr(loop.acceptor))

    def stop(self) -> None:
        """Stop listening; handshakes in progress go on."""
        for scope in self._scopes:
            scope.cancel()
        for loop in self.loops:
            loop.close()

    async def _open(self, plan: AcceptorPlan) -> AcceptLoop:
        runtime, managers = self._runtime, plan.managers
        limits = runtime.limits(plan.max_message_size, plan.max_metadata_size)

        async def established(link: Link, joined: Joined | None) -> None:
            manager = managers.manager(link.stream.server_name)
            assert manager is not None  # its contexts were taken
            if joined is not None and runtime.running.get(joined.connection) is manager:
                await _join(joined, link)
            elif joined is not None:  # it asked for another server name than its connection did
                await link.stream.aclose()
            elif not runtime.is_open:
                await turn_away(link.stream, EndReason.SHUTTING_DOWN)
            else:
                try:
                    connection = runtime.adopt(link, manager, limits)
                except HandshakeError:  # said, and the link closed
                    return
                del link  # as in the accept loop
                await connection.run()

        return AcceptLoop(
            await self._listen(plan),
            managers.source,
            runtime.party(limits, plan.cookie),
            bind_names=plan.bind_names,
            handshake_timeout=plan.handshake_timeout,
            admission=runtime.admission,
            established=established,
            refused=partial(runtime.refused, Side.ACCEPT),
            timed=partial(runtime.counters.handshake, Side.ACCEPT),
        )

    async def _listen(self, plan: AcceptorPlan) -> Sequence[Listener]:
        if plan.listeners:
            return [opened(given) for given in plan.listeners]
        transport = self._runtime.options.network.transport
        if transport is None:
            return await TCP.listen(
                plan.host,
                plan.port,
                port_range=plan.port_range,
                only_local=plan.only_local,
                reuse_port=plan.reuse_port,
            )
        return await transport.listen(plan.host, plan.port, port_range=plan.port_range, only_local=plan.only_local)

    async def _run(self, loop: AcceptLoop, nursery: trio.Nursery) -> None:
        events, name, address = self._runtime.events, self._runtime.name, loop.acceptor.address
        events.publish(AcceptorUp(node=name, address=address))
        try:
            with trio.CancelScope() as scope:
                self._scopes.append(scope)
                if not self._runtime.is_open:  # the node left before this task began
                    scope.cancel()
                await loop.run(nursery)
        finally:
            events.publish(AcceptorDown(node=name, address=address))


async def _join(joined: Joined, link: Link) -> None:
    try:
        joined.connection.commit(link, follows=joined.follows)
    except Exception as exc:
        await link.stream.aclose()
        if not isinstance(exc, trio.ClosedResourceError | trio.BrokenResourceError):
            raise
        # It ended just now, and this link with it.
