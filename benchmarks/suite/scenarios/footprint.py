"""What trionode costs before it does anything: memory of idle connections, time to import.

Where the memory of an idle connection of two nodes is, both ends together, KiB, found by an allocator that noted its
callers (CPython 3.11, OpenSSL 4.0 as pyOpenSSL has it; `trio.SSLStream` on OpenSSL 3.0 takes 67 in all, 52 in TLS):

| what | KiB |
| -- | -- |
| OpenSSL: record layers and their ciphers, four | 22 |
| OpenSSL: certificates, sessions, names, what is smaller | 27 |
| OpenSSL: post-quantum key shares, which it keeps to the end | 14 |
| OpenSSL: the connections themselves, two | 12 |
| OpenSSL: memory BIOs, as large as the largest flight was, four | 11 |
| pyOpenSSL, and what we keep of the handshake | 7 |
| frames of tasks, three at each end; the naive peer has one task in all | 10 |
| what Trio has for these tasks; sockets, queues, events, the connection, what its node knows of it | 25 |

After a transfer the memory BIOs are new ones, which are smaller than those of the handshake.

So 86 of 128 are OpenSSL's, and nothing in pyOpenSSL gives any of it back: 1.3 times the naive peer, 88, is out of reach
by all that is not TLS.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import child
from benchmarks.latency import percentile
from benchmarks.memory import resident
from benchmarks.suite.arena import GRPC, NAIVE, OURS, contestant
from benchmarks.suite.model import Better, Contestant, Placement, Sample, Scenario, Target, busy

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Job

#: So many nodes serve, and as many dial: many connections for few nodes, whose own memory is not what is measured.
SIDE: Final = 15


#: After a transfer, what was large is given back within this. Seconds.
SETTLED: Final = 2.5
CHUNK: Final = 64 * 1024


async def idle(arena: Arena, *, busy_before: bool = False) -> Sample:
    """Open a few connections, look, open many, look again. Both ends are in this process.

    Args:
        arena: where.
        busy_before: whether each carries a transfer before it is idle for some seconds.
    """
    transfer = int(arena.job.parameters["transfer"]) // CHUNK
    few, many = SIDE, min(SIDE + arena.job.count, SIDE * SIDE)
    async with AsyncExitStack() as stack:

        async def open_from(first: int, last: int) -> int:
            for number in range(first, last):
                session = await stack.enter_async_context(arena.client.dial(number))
                if busy_before:
                    await session.pour(bytes(CHUNK), transfer)
                else:
                    await session.settle()
            await arena.peer.sleep(SETTLED if busy_before else 0.1)
            return resident()

        before = await open_from(0, few)
        with arena.watch() as watch:
            after = await open_from(few, many)
    return watch.sample((after - before) / (many - few) / 1024, many - few)


def import_time(job: Job, *, statement: str) -> Sample:
    """A new interpreter, the time for the import statement in it; the interpreter's own start does not count.

    Byte code is written first, as pip does it: else this would measure the compiler, and only for a checkout.
    """
    clocks = "time.perf_counter(), time.process_time()"
    program = f"import time; begin = {clocks}; {statement}; print(*begin, {clocks})"
    environment = {key: value for key, value in child.environment().items() if key != "PYTHONDONTWRITEBYTECODE"}
    once = partial(
        subprocess.run, [sys.executable, "-P", "-c", program], env=environment, capture_output=True, check=True
    )
    once()
    walls, cpus = [], []
    begin, others = time.perf_counter(), -_of_others()
    for _ in range(job.count):
        wall, cpu, wall_after, cpu_after = map(float, once().stdout.split())
        walls.append(wall_after - wall)
        cpus.append(cpu_after - cpu)
    others = max(0.0, others + _of_others()) / (time.perf_counter() - begin)
    return Sample(value=percentile(walls, 0.5) * 1e3, work=job.count, wall=sum(walls), cpu=sum(cpus), others=others)


def _of_others() -> float:
    """Seconds that cores were busy with something else than this process and the interpreters that it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy() - time.process_time() - children.ru_utime - children.ru_stime


BARE: Final = "trio, OpenSSL, cryptography"
#: What opening a node needs; `import trionode` alone is lazy and imports next to nothing.
USED: Final = "trionode, open_node"

AFTERWARDS: Final = ", after a transfer"

SCENARIOS: Final = (
    Scenario(
        name="idle-memory",
        measures="Memory of one idle connection, both ends in one process, which is a new one each time; also of one "
        f"that is idle for {SETTLED} s after a transfer of 2 MiB in messages of 64 KiB.",
        unit="KiB",
        better=Better.LOWER,
        contestants=[
            *(
                contestant(title, idle, servers=SIDE, clients=SIDE)
                for title in (OURS, NAIVE, "asyncio streams", "uvloop streams", GRPC)
            ),
            *(
                contestant(title, idle, suffix=AFTERWARDS, servers=SIDE, clients=SIDE, busy_before=True)
                for title in (OURS, NAIVE, GRPC)
            ),
        ],
        baseline=NAIVE,
        targets=[
            Target(of=OURS, against=NAIVE, at_most=1.3),
            Target(of=OURS + AFTERWARDS, against=OURS, at_most=1.1),
        ],
        start=SIDE * SIDE - SIDE,
        quick_start=SIDE,
        full={"transfer": 2 * 1024**2},
        quick={"transfer": CHUNK},
        fresh=True,
    ),
    Scenario(
        name="import",
        measures="Time of the import in a new interpreter, files cached.",
        unit="ms",
        better=Better.LOWER,
        contestants=[
            Contestant(
                title=title,
                measure=partial(import_time, statement=statement),
                placements=frozenset([Placement.ONE]),
                series=title,
            )
            for title, statement in (
                (OURS, "import trionode"),
                (USED, "from trionode import open_node"),
                (BARE, f"import {BARE}"),
                (GRPC, "import grpc.aio"),
            )
        ],
        baseline=BARE,
        targets=[Target(of=OURS, against=BARE, at_most=0.1), Target(of=USED, against=BARE, at_most=1.3)],
        start=5,
        quick_start=1,
    ),
)
