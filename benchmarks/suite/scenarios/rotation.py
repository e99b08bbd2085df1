"""Rotation: what `update()` costs, whether it holds at once, and what it does to traffic. Ours alone."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Final

from benchmarks.latency import percentile
from benchmarks.suite.arena import OURS, contestant, pour_beside
from benchmarks.suite.model import Better, Scenario, Target
from benchmarks.suite.peers import nodes
from trionode import KeyPair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.suite.arena import Arena
    from benchmarks.suite.credentials import Credentials
    from benchmarks.suite.model import Contestant, Sample

#: 25 nodes that serve and 40 that dial.
MANY_SERVERS, MANY_CLIENTS = 25, 40


def key_pairs(credentials: Credentials) -> Iterator[KeyPair]:
    """Key pairs to rotate to: another one than before, each time."""
    return cycle(KeyPair.load(credentials.certificate(end), credentials.key(end)) for end in ("client", "server"))


async def update(arena: Arena, *, servers: int, clients: int) -> Sample:
    """Update under live connections; after each, the first handshake has to be on what was just published."""
    peer, client, count = arena.peer, arena.client, arena.job.count
    assert isinstance(peer, nodes.ThePeer)
    assert isinstance(client, nodes.NodeClient)
    manager, pairs = peer.server_manager, key_pairs(arena.job.credentials)
    times: list[float] = []
    async with AsyncExitStack() as stack:
        for number in range(servers * clients):
            await stack.enter_async_context(client.dial(number))
        with arena.watch() as watch:
            for _ in range(count):
                pair = next(pairs)
                begin = time.perf_counter()
                generation = manager.update(pair)
                times.append(time.perf_counter() - begin)
                # The last node is the one that dials anew.
                async with client.dial(servers * clients) as session:
                    connection = session.connection
                    if connection.peer_generation != generation:
                        msg = f"a handshake after update() {generation} was on {connection.peer_generation}"
                        raise AssertionError(msg)
    return watch.sample(percentile(times, 0.5) * 1e6, count, worst=max(times) * 1e6, stale=0)


async def stream(arena: Arena, *, disturbed: bool) -> Sample:
    """Messages for as long as so many rotations take, one every `interval` seconds, of either side in turn."""
    peer, parameters = arena.peer, arena.job.parameters
    assert isinstance(peer, nodes.ThePeer)
    managers, pairs = cycle([peer.server_manager, peer.client_manager]), key_pairs(arena.job.credentials)
    rotations, interval = int(parameters["rotations"]), parameters["interval"]

    async def rotate() -> None:
        for _ in range(rotations):
            await peer.sleep(interval)
            if disturbed:
                next(managers).update(next(pairs))

    async with arena.client.dial() as session:
        return await pour_beside(arena, session, rotate)


ONE, MANY = ", 1 connection", f", {MANY_SERVERS * MANY_CLIENTS} connections"
CALM, ROTATING = ", undisturbed", ", rotating"


def _update(suffix: str, servers: int, clients: int) -> Contestant:
    # One more client than there are connections for: it dials after each update.
    measure = partial(update, servers=servers, clients=clients)
    return contestant(OURS, measure, suffix=suffix, servers=servers, clients=clients + 1)


SCENARIOS: Final = (
    Scenario(
        name="rotation-update",
        measures="How long `update()` takes under live connections; the first handshake after each is checked to be on "
        "the new generation.",
        unit="µs",
        better=Better.LOWER,
        contestants=[_update(ONE, 1, 1), _update(MANY, MANY_SERVERS, MANY_CLIENTS)],
        baseline=OURS + ONE,
        targets=[Target(of=OURS + MANY, against=OURS + ONE, at_most=1.2)],
        start=100,
        quick_start=3,
    ),
    Scenario(
        name="rotation-stream",
        measures="One-way messages of 100 bytes over a connection while key pairs rotate: 100 times, one every 50 ms.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[
            contestant(OURS, stream, suffix=suffix, disturbed=suffix == ROTATING) for suffix in (CALM, ROTATING)
        ],
        baseline=OURS + CALM,
        targets=[Target(of=OURS + ROTATING, against=OURS + CALM, at_least=0.95)],
        full={"rotations": 100, "interval": 0.05},
        quick={"rotations": 4},
    ),
)
