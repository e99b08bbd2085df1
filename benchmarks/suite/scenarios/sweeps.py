"""Sweeps: what a message costs in CPU time, at both ends together, as connections, channels or sizes grow."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.suite.arena import GRPC, NAIVE, NOWAIT, OURS, contestant
from benchmarks.suite.model import Better, Contestant, Scenario, Target

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Sample, Stopwatch
    from benchmarks.suite.peers import Send

#: Connections: nodes that serve, nodes that dial.
SHAPES: Final = ((1, 1), (2, 5), (10, 10), (25, 40))
CHANNELS: Final = (1, 10, 100, 1000)
SIZES: Final = (16, 100, 1024, 8 * 1024, 64 * 1024, 1024 * 1024)


def cost(watch: Stopwatch, count: int) -> Sample:
    """CPU time of one message, µs."""
    return watch.sample(watch.cpu / count * 1e6, count, rate=count / watch.wall)


async def over_connections(arena: Arena, *, connections: int) -> Sample:
    """Messages at a fixed rate, over one connection after the other.

    A message that is late does not make the next one come sooner: of messages that are due together those on one
    connection go in one write, and with a single connection all are.
    """
    peer, count, message = arena.peer, arena.job.count, bytes(100)
    interval = 1 / arena.job.parameters["rate"]
    async with AsyncExitStack() as stack:
        sends: list[Send] = []
        for number in range(connections):
            session = await stack.enter_async_context(arena.client.dial(number))
            sends.append(await stack.enter_async_context(session.pouring()))
        for send in sends:
            await send(message)
        await peer.sleep(0.2)
        with arena.watch() as watch:
            for number in range(count):
                await peer.sleep(interval)
                await sends[number % connections](message)
            await peer.sleep(0.01)
    return cost(watch, count)


async def over_channels(arena: Arena, *, channels: int) -> Sample:
    """Messages as fast as they go, a task for each channel, over one connection."""
    message, each = bytes(100), -(-arena.job.count // channels)

    async def fill(send: Send) -> None:
        for _ in range(each):
            await send(message)

    async with arena.client.dial() as session, AsyncExitStack() as stack:
        sends = [await stack.enter_async_context(session.pouring()) for _ in range(channels)]
        with arena.watch() as watch:
            await arena.peer.together(*(partial(fill, send) for send in sends))
            await stack.aclose()  # when all are counted
    return cost(watch, each * channels)


async def of_size(arena: Arena, *, size: int) -> Sample:
    """Messages of one size, as fast as they go, through one channel."""
    message, count = bytes(size), arena.job.count
    async with arena.client.dial() as session:
        with arena.watch() as watch:
            await session.pour(message, count)
    return cost(watch, count)


def _connections(title: str, servers: int, clients: int) -> Contestant:
    number = servers * clients
    measure = partial(over_connections, connections=number)
    return contestant(title, measure, suffix=_at(number), servers=servers, clients=clients, x=number)


def _at(number: int) -> str:
    return f", {number}"


SCENARIOS: Final = (
    Scenario(
        name="sweep-connections",
        measures="CPU time of one 100-byte message, 1000 of them a second spread over ever more connections.",
        unit="µs CPU",
        better=Better.LOWER,
        contestants=[_connections(title, *shape) for title in (OURS, NAIVE) for shape in SHAPES],
        baseline=NAIVE + _at(1),
        targets=[Target(of=OURS + _at(1000), against=OURS + _at(1), at_most=1.2)],
        start=3000,
        quick_start=20,
        full={"rate": 1000},
        sweep="connections",
    ),
    Scenario(
        name="sweep-channels",
        measures="CPU time of one 100-byte message over one connection, as fast as they go, a task for each channel; "
        "its end included.",
        unit="µs CPU",
        better=Better.LOWER,
        contestants=[
            contestant(title, over_channels, suffix=_at(number), channels=number, x=number)
            for title, numbers in ((OURS, CHANNELS), (GRPC, CHANNELS[:-1]))
            for number in numbers
        ],
        baseline=OURS + _at(1),
        start=50_000,
        quick_start=1000,
        sweep="channels",
    ),
    Scenario(
        name="sweep-sizes",
        measures="CPU time of one message through one channel, as fast as they go.",
        unit="µs CPU",
        better=Better.LOWER,
        contestants=[
            contestant(title, of_size, suffix=f"{_at(size)} B", size=size, x=size)
            for title in (OURS, NOWAIT, NAIVE, GRPC)
            for size in SIZES
        ],
        baseline=f"{NAIVE}{_at(100)} B",
        start=5,
        seconds=0.3,
        quick_start=5,
        sweep="bytes",
    ),
)
