"""Hand-over: a live connection moves to a new TLS session. Ours alone; skipped where trionode cannot do it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks.latency import percentile
from benchmarks.suite.arena import OURS, contestant, pour_beside
from benchmarks.suite.model import Better, Scenario, Target
from benchmarks.suite.peers import nodes
from trionode import Connection

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Contestant, Sample

REQUEST: Final = bytes(100)


def missing() -> str | None:
    """Why a trionode cannot do it; None if it can."""
    return None if hasattr(Connection, "reauthenticate") else "this trionode has no Connection.reauthenticate()"


async def reauthenticate(session: object) -> None:
    """One hand-over, asked for by the dialer."""
    assert isinstance(session, nodes.NodeSession)
    connection: Any = session.connection
    before = connection.statistics().hand_overs
    await connection.reauthenticate()
    if connection.statistics().hand_overs == before:
        msg = "reauthenticate() returned, and the connection is where it was"
        raise AssertionError(msg)


async def connects(arena: Arena) -> Sample:
    """Connections one after the other, for comparison."""
    count = arena.job.count
    with arena.watch() as watch:
        for _ in range(count):
            async with arena.client.dial() as session:
                await session.settle()
    return watch.sample(watch.wall / count * 1e3, count)


async def hand_overs(arena: Arena) -> Sample:
    """Hand-overs of one connection, one after the other."""
    count = arena.job.count
    async with arena.client.dial() as session:
        with arena.watch() as watch:
            for _ in range(count):
                await reauthenticate(session)
    return watch.sample(watch.wall / count * 1e3, count)


async def stream(arena: Arena, *, disturbed: bool) -> Sample:
    """Messages for as long as so many hand-overs take, one every `interval` seconds."""
    peer, parameters = arena.peer, arena.job.parameters
    async with arena.client.dial() as session:

        async def hand_over() -> None:
            begin = time.perf_counter()
            for number in range(1, int(parameters["hand_overs"]) + 1):
                await peer.sleep(max(0.0, begin + number * parameters["interval"] - time.perf_counter()))
                if disturbed:
                    await reauthenticate(session)

        return await pour_beside(arena, session, hand_over)


async def added_latency(arena: Arena) -> Sample:
    """How much a hand-over every `interval` seconds adds to the 99th percentile of calls one after the other."""
    peer, parameters = arena.peer, arena.job.parameters
    async with arena.client.dial() as session:

        async def calls(times: list[float], *, disturbed: bool) -> None:
            over = False

            async def hand_over() -> None:
                nonlocal over
                for _ in range(int(parameters["hand_overs"])):
                    await peer.sleep(parameters["interval"])
                    if disturbed:
                        await reauthenticate(session)
                over = True

            async def call() -> None:
                while not over:
                    begin = time.perf_counter()
                    await session.call(REQUEST)
                    times.append(time.perf_counter() - begin)

            await peer.together(hand_over, call)

        calm: list[float] = []
        busy: list[float] = []
        await calls(calm, disturbed=False)
        with arena.watch() as watch:
            await calls(busy, disturbed=True)
    added = (percentile(busy, 0.99) - percentile(calm, 0.99)) * 1e3
    return watch.sample(max(added, 0.001), len(busy), calm_p99=percentile(calm, 0.99) * 1e3, worst=max(busy) * 1e3)


CONNECT, HAND_OVER, CALM, DISTURBED, ADDED = (
    ", connect",
    ", hand-over",
    ", undisturbed",
    ", a hand-over every 50 ms",
    ", added by hand-overs",
)


def _with_hand_over(made: Contestant) -> Contestant:
    return replace(made, missing=missing)


SCENARIOS: Final = (
    Scenario(
        name="hand-over",
        measures="How long a hand-over of an idle connection takes, compared with a connect.",
        unit="ms",
        better=Better.LOWER,
        contestants=[
            contestant(OURS, connects, suffix=CONNECT),
            _with_hand_over(contestant(OURS, hand_overs, suffix=HAND_OVER)),
        ],
        baseline=OURS + CONNECT,
        targets=[Target(of=OURS + HAND_OVER, against=OURS + CONNECT, at_most=1.15)],
        start=100,
        quick_start=3,
    ),
    Scenario(
        name="hand-over-stream",
        measures="One-way messages of 100 bytes over a connection with a hand-over every 50 ms.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[
            contestant(OURS, stream, suffix=CALM, disturbed=False),
            _with_hand_over(contestant(OURS, stream, suffix=DISTURBED, disturbed=True)),
        ],
        baseline=OURS + CALM,
        targets=[Target(of=OURS + DISTURBED, against=OURS + CALM, at_least=0.9)],
        full={"hand_overs": 60, "interval": 0.05},
        quick={"hand_overs": 3},
    ),
    Scenario(
        name="hand-over-latency",
        measures="What a hand-over every 50 ms adds to the 99th percentile of calls, compared with a connect.",
        unit="ms",
        better=Better.LOWER,
        contestants=[
            contestant(OURS, connects, suffix=CONNECT),
            _with_hand_over(contestant(OURS, added_latency, suffix=ADDED)),
        ],
        tail=True,
        baseline=OURS + CONNECT,
        targets=[Target(of=OURS + ADDED, against=OURS + CONNECT, at_most=0.2)],
        start=100,
        quick_start=3,
        full={"hand_overs": 60, "interval": 0.05},
        quick={"hand_overs": 3},
    ),
)
