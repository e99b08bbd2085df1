"""Connecting: TCP, mutual TLS, and what a peer needs beyond that to know the name of the other; closed again.

Where the CPU time of one connect and close of two nodes goes, both ends in one process (py-spy):

| what | % |
| -- | -- |
| OpenSSL's handshake, of which a sixth is the post-quantum key exchange | 30 |
| OpenSSL and pyOpenSSL otherwise: making the connections, records, unused tickets, close_notify | 11 |
| kernel: sockets, epoll | 12 |
| Trio: 15 ticks, 25 task steps, 6 tasks, 10 cancel scopes | 16 |
| callbacks in the handshake: chains, names, ALPN, certificate request | 5 |
| hello, verdicts, the connection and what the node knows of it, with what it calls | 25 |
| the benchmark itself | 1 |

The profile is flat: no function of ours has more than half a percent to itself. A task less at each end was tried, and
made no difference that can be measured. Half of the rate in memory would leave 0.3 ms for Trio and for us, beside
OpenSSL and the kernel: out of reach.

The groups differ: nodes agree on X25519MLKEM768, pyOpenSSL's default, and the streams on X25519, that of the system's
OpenSSL, which sends no tickets here either. `grpc.aio` connects in C from end to end, on threads of its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.suite import in_memory
from benchmarks.suite.arena import GRPC, NAIVE, OURS, contestant
from benchmarks.suite.model import Better, Contestant, Placement, Scenario, Target

if TYPE_CHECKING:
    from benchmarks.suite.arena import Arena
    from benchmarks.suite.model import Sample
    from benchmarks.suite.peers import Client

PYOPENSSL: Final = "OpenSSL in memory"
STDLIB: Final = "ssl in memory"
REQUEST: Final = bytes(100)


async def connect(arena: Arena, *, at_once: int = 1) -> Sample:
    """Connections one after the other, in so many tasks at once."""
    each = -(-arena.job.count // at_once)

    async def lane(number: int) -> None:
        for _ in range(each):
            async with arena.client.dial(number) as session:
                await session.settle()

    with arena.watch() as watch:
        await arena.peer.together(*(partial(lane, number) for number in range(at_once)))
    return watch.rate(each * at_once)


async def first_call(arena: Arena) -> Sample:
    """Connect, call, close."""
    # A server that takes one thing at a time has to be told first what is wanted.
    call = arena.client.first_call if arena.peer.multiplexes else partial(_settled_call, arena.client)
    with arena.watch() as watch:
        for _ in range(arena.job.count):
            await call(REQUEST)
    return watch.rate(arena.job.count)


async def _settled_call(client: Client, request: bytes) -> bytes:
    async with client.dial() as session:
        await session.settle()
        return await session.call(request)


IN_MEMORY: Final = (
    Contestant(
        title=PYOPENSSL, measure=in_memory.pyopenssl_handshakes, placements=frozenset([Placement.ONE]), series=PYOPENSSL
    ),
    Contestant(title=STDLIB, measure=in_memory.stdlib_handshakes, placements=frozenset([Placement.ONE]), series=STDLIB),
)
STREAMS: Final = (NAIVE, "asyncio streams", "uvloop streams")


def _connect(at_once: int, name: str, how: str) -> Scenario:
    peers = [contestant(title, connect, clients=at_once, at_once=at_once) for title in (OURS, *STREAMS)]
    return Scenario(
        name=name,
        measures=f"TCP, mutual TLS, hello and name check, closed again; {how}. Streams: one byte echoed for a hello.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[*peers, *IN_MEMORY],
        baseline=NAIVE,
        targets=[
            Target(of=OURS, against=NAIVE, at_least=1),
            Target(of=OURS, against=PYOPENSSL, at_least=0.5),
            Target(of=OURS, against=STDLIB, at_least=0.5),
        ],
        placements=[Placement.ONE, Placement.TWO],
        start=8,
        seconds=0.7,
        quick_start=8,
    )


SCENARIOS: Final = (
    _connect(1, "connect", "one after the other"),
    _connect(8, "connect-8", "8 at once"),
    Scenario(
        name="first-call",
        measures="Connect, verified on both sides, and one call of 100 bytes; closed again.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[
            contestant(title, first_call)
            for title in (OURS, NAIVE, "asyncio streams", GRPC, "trio-websocket", "websockets")
        ],
        baseline=NAIVE,
        targets=[Target(of=OURS, against=GRPC, at_least=1)],
        placements=[Placement.ONE, Placement.TWO],
        start=8,
        seconds=0.7,
        quick_start=4,
    ),
)
