"""Registration: a node is known to its registrar from when it accepts until before it stops accepting.

Theory. `Registrar.register` runs as a task of the node for as long as the node is to be found; it says `started()`
once that is so, and withdraws when it is cancelled. Opening a node waits for that, `registration_timeout` seconds at
most. What comes of it:

- it raises before it has started: the node does not open (the registrar cannot be used at all), unless the error says
  that it is temporary;
- it has not started in time: it goes on trying, and is told as trouble; with `registration_required` the node does
  not open;
- it ends or raises later: trouble, told as an event and a warning, and it is run again, with back-off. A node that
  cannot be found any more still has its connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trionode._util.backoff import Backoff
from trionode._util.log import Log
from trionode._util.text import said, shown

from .events import ResolverTrouble
from .resolvers import Registrar, ResolverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._util.text import Address

    from .runtime import Runtime

_log = Log("trionode.node")

#: Waits before a registration that ended is made again. Seconds.
BACKOFF: Final = Backoff(first=1, longest=15, least=0.5)

#: How long a node that stops waits for its registrar to withdraw it. Seconds.
WITHDRAW_GRACE: Final = 2.0


@final
class Registration:
    """Keeps one node registered. Also the `task_status` that its registrar is given.

    Attributes:
        registered: whether the node can be found now; None if it has no registrar.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.registered: bool | None = None
        self._runtime = runtime
        self._scope = trio.CancelScope()
        self._started = False
        self._opening = True
        self._failure: ResolverError | None = None
        self._decided = trio.Event()
        self._ended = trio.Event()
        self._failures = 0
        self._ended.set()

    def started(self, value: None = None) -> None:  # noqa: ARG002 -- as `trio.TaskStatus` has it
        """The registrar says that the node can be found."""
        self.registered = self._started = True
        self._failures = 0
        self._decided.set()

    async def start(self, nursery: trio.Nursery, addresses: Sequence[Address]) -> None:
        """Make the node known, in a task of the nursery; wait until it is, or for `registration_timeout`.

        Args:
            nursery: the node's.
            addresses: where it listens; without any there is nothing to be found.

        Raises:
            ResolverError: the registrar cannot be used; or it took too long, and the node requires it.
        """
        network = self._runtime.options.network
        registrar: object = network.resolver
        if not isinstance(registrar, Registrar) or not addresses:
            return
        self.registered = False
        self._ended = trio.Event()
        nursery.start_soon(self._run, registrar, addresses, name=f"registration of {self._runtime.name}")
        try:
            with trio.move_on_after(network.registration_timeout):
                await self._decided.wait()
                if self._failure is not None:
                    raise self._failure
                return
        finally:
            self._opening = False
        msg = (
            f"{self._runtime.name} is not registered with {shown(registrar)} after {network.registration_timeout:g} s "
            "(registration_timeout); other nodes cannot find it there yet"
        )
        late = ResolverError(msg)
        self._trouble(late)
        if network.registration_required:
            raise late

    async def withdraw(self) -> None:
        """Have the registrar take the node back; bounded. Cancelling leaves it to end with the node."""
        self._scope.cancel()
        with trio.move_on_after(WITHDRAW_GRACE):
            await self._ended.wait()

    async def _run(self, registrar: Registrar, addresses: Sequence[Address]) -> None:
        name = self._runtime.name
        try:
            with self._scope:
                while True:
                    try:
                        await registrar.register(name, addresses, task_status=self)
                    except Exception as exc:  # noqa: BLE001 -- a registrar is the application's
                        error = exc
                    else:
                        error = ResolverError(f"{shown(registrar)} no longer registers {name}: register() returned")
                    self.registered = False
                    self._trouble(error)
                    temporary = isinstance(error, ResolverError) and error.temporary
                    if self._opening and not self._started and not temporary:
                        self._failure = _as_resolver_error(
                            error, f"{name} cannot be registered with {shown(registrar)}"
                        )
                        self._decided.set()
                        return
                    self._failures += 1
                    await trio.sleep(BACKOFF.wait(self._failures))
        finally:
            self.registered = False
            self._ended.set()

    def _trouble(self, error: Exception) -> None:
        self._runtime.counters.resolver_troubles += 1
        self._runtime.events.publish(ResolverTrouble(node=self._runtime.name, name=None, error=error))
        if not self._opening:
            _log.warning(
                "%s: registration failed, trying again: %s",
                self._runtime.name,
                error,
                node=self._runtime.name,
                error=error,
            )


def _as_resolver_error(error: Exception, what: str) -> ResolverError:
    if isinstance(error, ResolverError):
        return error
    wrapped = ResolverError(f"{what}: {said(error)}")
    wrapped.__cause__ = error
    return wrapped
