"""Calls: a request, a reply. One after the other, many at once, and beside a transfer.

Where the CPU time of one sequential call goes, both ends in one process (py-spy, of 126 µs; the bare ping-pong of
`trio.SSLStream` takes 65 µs, about half of them in Trio):

| what | µs |
| -- | -- |
| Trio: 6 ticks, 8 or 9 task steps, one task and one cancel scope for the service; its epoll | 44 |
| kernel: two writes, two reads | 18 |
| pyOpenSSL: a record each way, encrypted and decrypted | 14 |
| connection and services: opening, dispatch of 5 frames, starting the service, ending | 15 |
| channels, two of them, with their credit | 13 |
| TLS stream, records counted, writer | 14 |
| frames and their payloads | 4 |
| the rest | 4 |

The service's first `receive` and its `send` are checkpoints, as Trio has it, a tick each: the ping-pong has neither.
Among the steps none stands out any more. Bare Trio does 15 000 round trips a second here, so that no call over it is
4.5 times as fast as gRPC's.

What a task for each request costs by itself shows "a task each": 1.4 times the ping-pong, in ticks and task steps what
a call takes here (6 and 8.5) or more. A call takes 1.35 times as much CPU time as that: 12 % of it is pyOpenSSL, where
the other has `ssl` in C, a quarter what makes a call one (frames, credit, two channel ends, dispatch) in Python.

A service is not begun in the reader's task, which would save a tick and a step: until its first wait its cancel scope,
its nurseries and `current_task()` would be the reader's.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.latency import percentile
from benchmarks.suite.arena import GRPC, NAIVE, OURS, SERVED, contestant
from benchmarks.suite.model import Better, Placement, Scenario, Target

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Sample
    from benchmarks.suite.peers import Session

REQUEST: Final = bytes(100)
IN_FLIGHT: Final = 50
CHUNK: Final = 1024 * 1024


async def sequential(arena: Arena) -> Sample:
    """One call after the other, over one connection."""
    count = arena.job.count
    async with arena.client.dial() as session:
        await session.settle()
        call = session.call
        await call(REQUEST)
        with arena.watch() as watch:
            for _ in range(count):
                await call(REQUEST)
    return watch.sample(watch.wall / count * 1e6, count)


async def at_once(arena: Arena, *, flights: int = IN_FLIGHT) -> Sample:
    """So many calls in flight: over one connection where that carries them, else over as many connections."""
    each = -(-arena.job.count // flights)

    async def flight(session: Session) -> None:
        for _ in range(each):
            await session.call(REQUEST)

    async with AsyncExitStack() as stack:
        connections = 1 if arena.peer.multiplexes else flights
        sessions = [await stack.enter_async_context(arena.client.dial(number)) for number in range(connections)]
        for session in sessions:
            await session.settle()
            await session.call(REQUEST)
        with arena.watch() as watch:
            await arena.peer.together(*(partial(flight, sessions[i % connections]) for i in range(flights)))
    return watch.rate(each * flights)


async def latency(arena: Arena, *, busy: bool) -> Sample:
    """Calls one after the other, timed each, while one way data pours over the same connection, or nothing does."""
    times: list[float] = []
    chunks = int(arena.job.parameters["transfer"]) // CHUNK
    poured = not busy

    async def transfer(session: Session) -> None:
        nonlocal poured
        if busy:
            await session.pour(bytes(CHUNK), chunks)
        poured = True

    async def calls(session: Session) -> None:
        while len(times) < arena.job.count or not poured:
            begin = time.perf_counter()
            await session.call(REQUEST)
            times.append(time.perf_counter() - begin)

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(arena.client.dial())
        await session.settle()
        await session.call(REQUEST)
        # Where a connection carries one thing only, the transfer has one of its own.
        other = session if arena.peer.multiplexes else await stack.enter_async_context(arena.client.dial(1))
        with arena.watch() as watch:
            await arena.peer.together(partial(transfer, other), partial(calls, session))
    median, p99 = percentile(times, 0.5) * 1e6, percentile(times, 0.99) * 1e6
    return watch.sample(p99, len(times), median=median, worst=max(times) * 1e6)


CALLED: Final = (OURS, NAIVE, SERVED, "asyncio streams", "uvloop streams", GRPC, "trio-websocket", "websockets")
IDLE, BUSY = ", idle", ", beside a transfer"

SCENARIOS: Final = (
    Scenario(
        name="call",
        measures="A call of 100 bytes and its reply of 100 bytes, one after the other. Streams: bare ping-pong, "
        "without framing.",
        unit="µs",
        better=Better.LOWER,
        contestants=[contestant(title, sequential) for title in CALLED],
        baseline=NAIVE,
        targets=[
            Target(of=OURS, against=GRPC, at_least=4.5),
            Target(of=OURS, against=NAIVE, at_most=1.6),
            Target(of=OURS, against=SERVED, at_most=1.15),
        ],
        placements=[Placement.ONE, Placement.TWO],
        start=50,
        seconds=0.6,
        quick_start=20,
    ),
    Scenario(
        name="calls-50",
        measures="Calls of 100 bytes, 50 in flight: over one connection; streams, which carry one at a time: over 50.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[contestant(title, at_once) for title in (OURS, NAIVE, "asyncio streams", "uvloop streams", GRPC)],
        baseline=NAIVE,
        targets=[Target(of=OURS, against=GRPC, at_least=6)],
        placements=[Placement.ONE, Placement.TWO],
        start=200,
        seconds=0.6,
        quick_start=100,
    ),
    Scenario(
        name="call-beside-transfer",
        measures="99th percentile of the time that a call of 100 bytes takes while 1 GiB pours over the same "
        "connection in messages of 1 MiB (streams: over a second connection).",
        unit="µs",
        better=Better.LOWER,
        contestants=[
            contestant(title, latency, suffix=suffix, busy=suffix == BUSY)
            for title in (OURS, NAIVE, GRPC)
            for suffix in (IDLE, BUSY)
        ],
        baseline=NAIVE + IDLE,
        tail=True,
        targets=[Target(of=OURS + BUSY, against=OURS + IDLE, at_most=4)],
        placements=[Placement.ONE, Placement.TWO],
        start=2000,
        quick_start=20,
        full={"transfer": 1024**3},
        quick={"transfer": 8 * 1024**2},
    ),
)
