"""Health: a service that tells other nodes which services are well, and whether the node is.

Theory. The states are those of gRPC's health protocol, by service; the service named "" is the node as a whole. Nothing
is measured: the application says what it knows, by `Health.set`, and what it has not said is `service_unknown`. A node
that drains, or whose block is left, is not serving from that moment on, whatever was said. Those that watch are told
first, and then their channels end, so that they do not hold up the end of the node; the connection says goodbye after
that.

A question is one message, and so is each answer, in msgpack. A watcher is told the present state, and then the latest
whenever it has changed: one that is slow misses states in between, and never the last. Watchers are channels, and
bounded as these are (`max_channels`).

Who may ask learns which service names exist: `allow=` decides, as for any service.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec
import trio

from trionode._connection.services import check_service_name
from trionode._node.typed import TypedChannel, call_typed
from trionode._util.fields import check_argument
from trionode._util.home import home
from trionode._util.public_names import show_as as _show_as

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionode._connection.channel import ServiceChannel
    from trionode._connection.connection import Connection
    from trionode._connection.services import Allow
    from trionode._identity.names import NodeName
    from trionode._node.node import Node
    from trionode._node.options import Route

__all__ = ["HEALTH", "Health", "HealthStatus", "check_health", "watch_health"]

#: The name of the service.
HEALTH: Final = "trionode.health"


@final
class HealthStatus(StrEnum):
    """How a service is, or a node."""

    UNKNOWN = "unknown"
    """Its application cannot say."""
    SERVING = "serving"
    """It is well: calls are welcome."""
    NOT_SERVING = "not_serving"
    """It is not, or its node drains."""
    SERVICE_UNKNOWN = "service_unknown"
    """Nothing was said of a service of this name."""


class _Question(msgspec.Struct, array_like=True, frozen=True):
    """What a client sends.

    Attributes:
        service: the name of the service; empty for the node.
        watch: whether further answers are wanted.
    """

    service: Annotated[str, msgspec.Meta(max_length=255)]
    watch: bool


@final
class Health:
    """What an application says of its services, and the service that passes it on."""

    def __init__(self, status: HealthStatus = HealthStatus.SERVING) -> None:
        """Begin with nothing said of any service.

        Args:
            status: of the node as a whole; `NOT_SERVING` for one that has to warm up.
        """
        self._statuses: dict[str, HealthStatus] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._home = home()
        self.set("", status)

    def __repr__(self) -> str:
        return f"<Health: {self.status()}>"

    def set(self, service: str, status: HealthStatus) -> None:
        """Say how a service is; those that watch it are told.

        Args:
            service: its name, or "" for the node as a whole. It need not be one of the node's services.
            status: how it is; `SERVICE_UNKNOWN` to say nothing of it any more.

        Raises:
            TypeError, ValueError: no service can have such a name; or the status is none.
            RuntimeError: this is another thread than the one it was made in.
        """
        self._home.check("Health")
        check_argument("status", status, HealthStatus)
        _check_asked(service)
        if status is HealthStatus.SERVICE_UNKNOWN:
            self._statuses.pop(service, None)
        else:
            self._statuses[service] = status
        self._changed.unpark_all()

    def status(self, service: str = "") -> HealthStatus:
        """What was said of a service last.

        Args:
            service: its name, or "" for the node as a whole.
        """
        return self._statuses.get(service, HealthStatus.SERVICE_UNKNOWN)

    def add_to(self, node: Node, *, allow: Allow | None = None) -> None:
        """Answer for a node, under the service name `trionode.health`; for several nodes, if need be.

        Args:
            node: an open one.
            allow: the peers that may ask, as for `Node.add_service`.

        Raises:
            TypeError, ValueError: as `Node.add_service`; the node has such a service already, for one.
        """
        node.add_service(HEALTH, partial(self._serve, node), allow=allow)

    async def _serve(self, node: Node, channel: ServiceChannel) -> None:
        """One question; a channel that is watched ends with the watcher, or when the node drains."""
        answers: TypedChannel[HealthStatus, _Question] = TypedChannel(channel, receives=_Question)
        question = await answers.receive()
        if not question.watch:
            await answers.send(self._present(node, question.service))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_end, channel, nursery.cancel_scope)
            nursery.start_soon(self._wake_when_draining, node)
            told = None
            while True:
                draining, status = node.draining, self._present(node, question.service)
                if status is not told:
                    await answers.send(status)
                    told = status
                elif draining:
                    break
                else:
                    await self._changed.park()
            nursery.cancel_scope.cancel()

    def _present(self, node: Node, service: str) -> HealthStatus:
        status = self.status(service)
        if node.draining and status is not HealthStatus.SERVICE_UNKNOWN:
            return HealthStatus.NOT_SERVING
        return status

    async def _wake_when_draining(self, node: Node) -> None:
        await node.wait_draining()
        self._changed.unpark_all()


def _check_asked(service: str) -> None:
    """Insist on what a service can be called, or the node as a whole.

    Raises:
        TypeError, ValueError: no service can have such a name.
    """
    if service != "":
        check_service_name(service)


async def _until_end(channel: ServiceChannel, scope: trio.CancelScope) -> None:
    """Read to the peer's end, and end what goes on for it; a second message has no meaning, and ends it, too."""
    with suppress(trio.EndOfChannel):
        await channel.receive()
    scope.cancel()


async def check_health(
    node: Node, name: str | NodeName, service: str = "", *, route: Route | None = None
) -> HealthStatus:
    """Ask a node how it is, or one of its services.

    Args:
        node: our own, which asks.
        name: the one that is asked; or a glob over node names, for one of these (as for `Node.call`).
        service: the name of the service; by default the node as a whole.
        route: as for `Node.connect`.

    Raises:
        TypeError, ValueError: no service can have such a name; nothing was asked.
        RemoteError: code `unknown_service`: it has no health service; `not_allowed`: not for us. And whatever
            `Node.call` raises.
    """
    _check_asked(service)
    return await call_typed(node, name, HEALTH, _Question(service, watch=False), reply=HealthStatus, route=route)


async def check_health_of(connection: Connection, service: str = "") -> HealthStatus:
    """As `check_health`, of the node at the other end of a connection.

    Args:
        connection: to the node that is asked.
        service: the name of the service; by default the node as a whole.
    """
    async with _asked(connection.open_channel(HEALTH)) as answers:
        await answers.send(_Question(service, watch=False))
        return await answers.receive()


@asynccontextmanager
async def watch_health(
    node: Node, name: str | NodeName, service: str = "", *, route: Route | None = None
) -> AsyncIterator[trio.abc.ReceiveChannel[HealthStatus]]:
    """Follow how a node is, or one of its services, for the length of an `async with` block.

    What it gives yields the present state, then the latest after each change; of a service that nothing was said of, it
    says `service_unknown`, and goes on. It ends with `not_serving` and `trio.EndOfChannel` when the node drains. That
    the connection is lost is a `trio.BrokenResourceError`, and says nothing of the node's health.

    Args:
        node: our own, which asks.
        name: the one that is watched; or a glob over node names, for one of these.
        service: the name of the service; by default the node as a whole.
        route: as for `Node.connect`.

    Raises:
        TypeError, ValueError: no service can have such a name; nothing was asked.
        RemoteError: on receiving, as `check_health`. And whatever `Node.open_channel` raises.
    """
    _check_asked(service)
    async with node.open_channel(name, HEALTH, route=route) as channel:
        answers = _asked(channel)
        await answers.send(_Question(service, watch=True))
        yield answers


def _asked(channel: ServiceChannel) -> TypedChannel[_Question, HealthStatus]:
    return TypedChannel(channel, receives=HealthStatus)


_show_as(__name__, {name: globals()[name] for name in __all__})
