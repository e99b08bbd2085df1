"""Opening a node, draining it and leaving it: in which order its parts start and stop.

Theory. Everything that can fail at start-up (uses of managers, listeners) is done before the nursery is opened, so its
error comes out bare; `Runtime.uses` undoes it at the end, in reverse order. Registration comes last, once the node
accepts, and is withdrawn first. There are three ends:

- the block is left by an exception or a cancellation: everything is cancelled at once;
- the block is left cleanly: stop, let open channels and services end for most of `shutdown_grace`, say goodbye, cancel;
- `drain()`: stop, and let open channels and services end for as long as the caller's deadline allows.

To stop is one synchronous step: from then on no verb starts anything, nothing is accepted and no dial goes on. What was
accepted before is not refused: handshakes in progress are waited for (silent ones, a moment), and become connections,
which are then ended as the others are. So a peer that dials a node which is restarted meets no refusal.

What the block raises is kept out of the nursery, which would wrap it, and is raised again as the same object behind
it. Only a crash of one of the node's own tasks, or several errors, come as a group.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from trionode._connection.closing import close, drain, quiesce
from trionode._connection.end import EndReason
from trionode._identity.names import NodeName
from trionode._identity.patterns import NamePattern, is_glob

from .insecure_options import insecure_options
from .options import NetworkMode
from .registration import Registration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .acceptors import Acceptors
    from .connectors import Connectors
    from .dialer import Dialer
    from .membership import Membership
    from .runtime import Runtime

T = TypeVar("T")

#: How long a node that stops waits for the first bytes of what it has accepted: they are under way. Seconds.
_SILENCE: Final = 0.25


@final
class Lifecycle:
    """Starts and stops the parts of one node."""

    def __init__(
        self,
        runtime: Runtime,
        acceptors: Acceptors,
        dialer: Dialer,
        connectors: Connectors,
        membership: Membership,
    ) -> None:
        self._runtime = runtime
        self._acceptors = acceptors
        self._dialer = dialer
        self._connectors = connectors
        self._membership = membership
        self._registration = Registration(runtime)

    @property
    def registered(self) -> bool | None:
        """Whether other nodes can find it by its registrar; None if it has none."""
        return self._registration.registered

    @asynccontextmanager
    async def opened(self, node: T) -> AsyncIterator[T]:
        """Open for the length of a block, which is given `node`.

        Raises:
            CertificateError, ListenError, ResolverError, RuntimeError: as `open_node`.
            BaseExceptionGroup: a task of the node crashed.
        """
        body: BaseException | None = None
        with self._runtime.uses:
            await self._set_up()
            try:
                async with trio.open_nursery() as nursery:
                    self._start(nursery)
                    try:
                        await self._registration.start(nursery, self._acceptors.addresses)
                        yield node
                    except BaseException as exc:  # noqa: ASYNC103, BLE001 -- raised again below, outside the nursery
                        # Kept out of the nursery, which would wrap it, and split it where it is a group.
                        body = exc
                        # The nursery closes with its last task, before this one goes on: no task may be started in it
                        # from here on.
                        self._runtime.close()
                    else:
                        await self._leave()
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                crash = _without_cancelled(group)
                own = None if body is None else _without_cancelled(body)
                if body is None or (crash is not None and own is None):
                    raise  # a cancellation from outside, or a crash inside, which cancelled the body
                if crash is not None and own is not None:
                    msg = f"the node {self._runtime.name} crashed, and its block failed"
                    raise BaseExceptionGroup(msg, [own, crash]) from None
            finally:
                self._runtime.close()
                self._runtime.registry.changed.unpark_all()  # those that wait for members learn that it is closed
                self._runtime.events.end()
        if body is not None:
            raise body
        await trio.lowlevel.checkpoint()

    async def drain(self) -> None:
        """Stop, and return once open channels and services have ended; see `Node.drain`."""
        self._runtime.leaving.set()
        try:
            await self._registration.withdraw()
        finally:  # cancelled, too: a node that was to drain takes nothing on
            self._stop()
        services = self._runtime.services
        try:
            await trio.lowlevel.checkpoint()
            await self._runtime.admission.wait_settled(_SILENCE)
            self._runtime.close()
            async with trio.open_nursery() as nursery:
                for connection in list(self._runtime.running):
                    nursery.start_soon(drain, connection)
            await services.wait_idle()  # one whose caller is done may outlive its connection
        finally:
            self._runtime.close()
            services.cancel()

    async def _set_up(self) -> None:
        """Everything that can fail at start-up; undone by the runtime's `uses`."""
        runtime, options, plans = self._runtime, self._runtime.options, self._acceptors.plans
        self._acceptors.own()
        await trio.lowlevel.checkpoint()
        for peer in options.network.keep_connected:
            if not is_glob(peer):
                runtime.check_other(NodeName.parse(peer))
        for plan in plans:
            for server_name, manager in plan.managers.items():
                with plan.managers.about(server_name):
                    runtime.managers.use(manager, as_server=True)
        if options.network.mode is not NetworkMode.DISABLED:
            runtime.managers.use(options.cert_manager, as_server=False)
        for route in options.network.routes.values():
            if route.cert_manager is not None:
                runtime.managers.use(route.cert_manager, as_server=False)
        for option, text in insecure_options(options, plans).items():
            runtime.warn_insecure(option, text)
        await self._acceptors.open()

    def _start(self, nursery: trio.Nursery) -> None:
        self._runtime.start(nursery)
        self._acceptors.start(nursery)
        for peer in self._runtime.options.network.keep_connected:
            if is_glob(peer):
                self._connectors.keep_all(NamePattern(peer))
            else:
                self._connectors.keep(NodeName.parse(peer))
        self._membership.start()

    def _stop(self) -> None:
        self._connectors.stop()
        self._runtime.stop()
        self._runtime.registry.changed.unpark_all()  # those that wait for members learn of it
        self._acceptors.stop()
        self._dialer.cancel()

    async def _leave(self) -> None:
        """The clean end: quiesce for three quarters of `shutdown_grace`, then say goodbye to the peers left."""
        self._runtime.leaving.set()
        grace = self._runtime.options.shutdown_grace
        deadline = trio.current_time() + grace
        with trio.move_on_at(deadline - grace / 2):
            await self._registration.withdraw()
        self._stop()
        with trio.move_on_at(deadline - grace / 3):
            await self._runtime.admission.wait_settled(min(_SILENCE, grace / 4))
        self._runtime.close()
        connections = list(self._runtime.running)
        with trio.move_on_at(deadline - grace / 4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._runtime.services.wait_idle)
                for connection in connections:
                    nursery.start_soon(quiesce, connection)
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(partial(close, connection, EndReason.SHUTTING_DOWN, grace=grace))


def _without_cancelled(exc: BaseException) -> BaseException | None:
    """What an exception is besides cancellation; None if it is nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)[1]
    return None if isinstance(exc, trio.Cancelled) else exc
