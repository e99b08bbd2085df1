"""Contestants made of a peer and a loop: one measuring function for the sessions of every peer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .model import Contestant, Placement, Stopwatch
from .peers import load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from .model import Job, Sample
    from .peers import Client, Peer, Session

OURS: Final = "trionode"
NOWAIT: Final = "trionode, send_nowait"
NOWAIT_BOTH: Final = "trionode, nowait at both ends"
MANY: Final = "trionode, send_many"
NAIVE: Final = "trio.SSLStream"
SERVED: Final = "trio.SSLStream, a task each"
GRPC: Final = "grpc.aio"

#: By title: the module in `benchmarks.suite.peers`, and what has to be installed for it.
PEERS: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    OURS: ("nodes", ()),
    MANY: ("nodes_many", ()),
    NOWAIT: ("nodes_nowait", ()),
    NOWAIT_BOTH: ("nodes_nowait_both", ()),
    NAIVE: ("trio_streams", ()),
    SERVED: ("trio_services", ()),
    "asyncio streams": ("asyncio_streams", ()),
    "uvloop streams": ("uvloop_streams", ("uvloop",)),
    GRPC: ("grpc_aio", ("grpc",)),
    "trio-websocket": ("trio_ws", ("trio_websocket",)),
    "websockets": ("websockets_aio", ("websockets",)),
}


@dataclass(frozen=True)
class Arena:
    """What a measuring function is given.

    Attributes:
        peer: the one that is measured.
        client: dials what it serves.
        job: how many operations, and with which parameters.
    """

    peer: Peer
    client: Client
    job: Job

    def watch(self) -> Stopwatch:
        """A stopwatch for the timed part, for the CPU time of both ends."""
        return Stopwatch(*([] if self.job.server is None else [self.job.server.pid]))


async def pour_beside(arena: Arena, session: Session, disturb: Callable[[], Awaitable[object]]) -> Sample:
    """Messages of 100 bytes, as fast as they go, until what happens beside them is over."""
    over, sent, message = False, 0, bytes(100)

    async def do() -> None:
        nonlocal over
        await disturb()
        over = True

    async def pour() -> None:
        nonlocal sent
        async with session.pouring() as send:
            while not over:
                await send(message)
                sent += 1

    with arena.watch() as watch:
        await arena.peer.together(do, pour)
    return watch.rate(sent)


def over(
    module: str, measure: Callable[..., Awaitable[Sample]], *, servers: int, clients: int, **how: Any
) -> Callable[[Job], Sample]:
    """A contestant's function: serve, unless another process does; dial; measure."""

    def run(job: Job) -> Sample:
        peer = load(module, job.credentials)

        async def main() -> Sample:
            async with AsyncExitStack() as stack:
                if job.server is not None:
                    ports = job.server.ports
                else:
                    ports = await stack.enter_async_context(peer.serve(servers))
                client = await stack.enter_async_context(peer.client(ports, clients))
                return await measure(Arena(peer, client, job), **how)

        return peer.run(main)

    return run


def contestant(
    title: str,
    measure: Callable[..., Awaitable[Sample]],
    *,
    suffix: str = "",
    servers: int = 1,
    clients: int = 1,
    x: float = 0,
    **how: Any,
) -> Contestant:
    """A peer that is measured by such a function.

    Args:
        title: in `PEERS`.
        measure: gets an `Arena`.
        suffix: added to its title, where a peer takes part more than once.
        servers: nodes that serve; with more than one it is measured in one process only.
        clients: nodes that dial.
        x: in a sweep, at which number.
        how: further arguments of the function.
    """
    module, needs = PEERS[title]
    return Contestant(
        title=title + suffix,
        measure=over(module, measure, servers=servers, clients=clients, **how),
        peer=module,
        needs=needs,
        placements=frozenset(Placement) if servers == 1 else frozenset([Placement.ONE]),
        series=title,
        x=x,
    )
