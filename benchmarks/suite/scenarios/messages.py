"""One-way messages through one channel or connection, as fast as they go; over when the far end has counted them.

What a small message costs is mostly Trio's: a checkpoint of a task that is alone in its tick takes 2.4 µs, a message
through a bare Trio memory channel 4.6 µs. `await send()` is a checkpoint, in whose tick the writer looks whether there
is more to come. Without both, by `send_nowait`, a message takes 1.5 µs, with them 5.5 to 6 (measured on one machine,
both ends in one process). Eight times the naive peer would be 4.3 µs.

In two processes it is the sender that limits `await send()`: of 6.8 µs of CPU time, on a machine where a tick with one
task in it takes 2.9 and the second task, the writer, 1.7, are 2.2 for the message. asyncio's `drain()` is no
checkpoint: 4.8 in all. So what has many messages sends them by `send_many`, which has one checkpoint where it waits:
0.8 at the sender. Then the receiver limits: 1.6, of which `async for` takes 0.7, decoding 0.25 and dispatching 0.25;
twenty times the naive peer would be 1.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.suite import in_memory
from benchmarks.suite.arena import GRPC, MANY, NAIVE, NOWAIT, NOWAIT_BOTH, OURS, contestant
from benchmarks.suite.model import Better, Contestant, Placement, Scenario, Target

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Sample

PYOPENSSL: Final = "OpenSSL in memory, full records"
STDLIB: Final = "ssl in memory, full records"
PEERS: Final = (NAIVE, "asyncio streams", "uvloop streams", GRPC, "trio-websocket", "websockets")


async def pour(arena: Arena, *, size: int, per_message: float = 1.0) -> Sample:
    """Messages of one size."""
    message, count = bytes(size), arena.job.count
    async with arena.client.dial() as session:
        with arena.watch() as watch:
            await session.pour(message, count)
    return watch.rate(count, per_message)


IN_MEMORY: Final = (
    Contestant(
        title=PYOPENSSL, measure=in_memory.pyopenssl_records, placements=frozenset([Placement.ONE]), series=PYOPENSSL
    ),
    Contestant(title=STDLIB, measure=in_memory.stdlib_records, placements=frozenset([Placement.ONE]), series=STDLIB),
)

_SMALL, _LARGE = 100, 64 * 1024
_MEGABYTES: Final = _LARGE / 1e6

SCENARIOS: Final = (
    Scenario(
        name="messages-100",
        measures="One-way messages of 100 bytes through one channel: `await send()` and `async for`, unless it says "
        "otherwise. By hand: a length, the message, one write for both. In memory: as many as fill the records.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[
            *(contestant(title, pour, size=_SMALL) for title in (OURS, MANY, NOWAIT, NOWAIT_BOTH, *PEERS)),
            *IN_MEMORY,
        ],
        baseline=NAIVE,
        targets=[
            Target(of=OURS, against=NAIVE, at_least=8),
            Target(of=OURS, against="asyncio streams", at_least=1),
            Target(of=MANY, against=NAIVE, at_least=20),
            Target(of=NOWAIT, against=NAIVE, at_least=20),
            Target(of=NOWAIT_BOTH, against=NAIVE, at_least=20),
        ],
        placements=[Placement.ONE, Placement.TWO],
        start=500,
        seconds=0.6,
        quick_start=300,
        full={"size": _SMALL},
    ),
    Scenario(
        name="messages-64k",
        measures="One-way messages of 64 KiB through one channel.",
        unit="MB/s",
        better=Better.HIGHER,
        contestants=[
            *(contestant(title, pour, size=_LARGE, per_message=_MEGABYTES) for title in (OURS, *PEERS)),
            *IN_MEMORY,
        ],
        baseline=NAIVE,
        targets=[
            Target(of=OURS, against=NAIVE, at_least=1.3),
            Target(of=OURS, against=PYOPENSSL, at_least=1 / 3),
            Target(of=OURS, against=STDLIB, at_least=1 / 3),
        ],
        placements=[Placement.ONE, Placement.TWO],
        start=50,
        seconds=0.6,
        quick_start=20,
        full={"size": _LARGE, "per_message": _MEGABYTES},
    ),
)
