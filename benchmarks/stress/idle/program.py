"""Thousands of idle connections: what they cost, and whether anything grows faster than their number."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.child import Lines, running
from benchmarks.stress.idle.server import PATIENCE, SERVER
from benchmarks.stress.nodes import LOOPBACK, manager_of
from benchmarks.stress.program import Program, Progress, Result
from trionode import NetworkMode, NetworkOptions, NodeOptions, Route, open_node
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from trionode import Connection

EXPLANATION: Final = """\
Opens a node in a process of its own, and connects so many others to it from this one, over loopback, with mutual TLS.
They are idle then, but for heartbeats; the node's certificate rotates, and every connection is handed over; at last the
node leaves. All of that for each size, each time with a new process.

All have to be connected, and to be so after the hand-over, on the new certificate. Of what a connection costs, nothing
may be more than 1.6 times as much in the largest size as in the smallest one: without --quick, and from 500 on.

What is reported, all of the node's process alone:
  memory     of one connection, KiB
  connect    CPU time of one handshake, and all it takes to have the connection, us; and how many there were a second
  heartbeat  CPU time for one connection in one heartbeat_interval, us; and of a core for all, at 15 s, %
  update     how long update() took, ms, in which nothing else runs
  hand-over  CPU time of one, us; and seconds until all were handed over, of which turns are spread over some
  leave      CPU time for one connection, us; and seconds
  collector  CPU time of Python's cyclic collector, of all the process took, %, which the others leave out; and how long
             one full collection takes with all connected, ms, in which nothing else runs
"""

#: So many dial at once.
AT_ONCE: Final = 16
#: Connections before the first look: what the first ones cost besides, all others share.
FIRST: Final = 16
#: Turns of a hand-over are spread so that there are so many a second.
TURNS: Final = 150
#: How often it is looked how far the node has come. Seconds.
LOOK: Final = 0.2
#: The default of `heartbeat_interval`. Seconds.
USUAL_INTERVAL: Final = 15.0
#: How many times as much of anything a connection may cost in the largest size.
MOST_GROWTH: Final = 1.6
#: Sizes below this are not compared.
COMPARABLE: Final = 500


@dataclass(kw_only=True)
class Idle(Result):
    """What came out; the fields are explained by `--help`."""

    connections: int
    memory_kib: float = 0.0
    connect_us: float = 0.0
    connects_per_second: float = 0.0
    heartbeat_us: float = 0.0
    heartbeats_percent: float = 0.0
    update_ms: float = 0.0
    hand_over_us: float = 0.0
    hand_over_seconds: float = 0.0
    leave_us: float = 0.0
    leave_seconds: float = 0.0
    collector_percent: float = 0.0
    collection_ms: float = 0.0

    def each(self) -> Mapping[str, float]:
        """What one connection costs."""
        return {
            "memory": self.memory_kib,
            "connect": self.connect_us,
            "heartbeat": self.heartbeat_us,
            "update": self.update_ms / self.connections,
            "hand-over": self.hand_over_us,
            "leave": self.leave_us,
        }

    def compare(self, smaller: Idle) -> None:
        """Note what has grown faster than the number of connections."""
        if smaller.connections < COMPARABLE:
            return
        for what, before in smaller.each().items():
            now = self.each()[what]
            if before and now > MOST_GROWTH * before:
                self.problems.append(
                    f"{what}: {now / before:.2f} times as much for each of {self.connections} connections as for each "
                    f"of {smaller.connections}"
                )

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "memory": f"{self.memory_kib:.1f} KiB",
            "connect": f"{self.connect_us:.0f} us, {self.connects_per_second:.0f} a second",
            "heartbeat": f"{self.heartbeat_us:.0f} us, {self.heartbeats_percent:.1f} % of a core for all",
            "update": f"{self.update_ms:.1f} ms",
            "hand-over": f"{self.hand_over_us:.0f} us, {self.hand_over_seconds:.1f} s for all",
            "leave": f"{self.leave_us:.0f} us, {self.leave_seconds:.1f} s for all",
            "collector": f"{self.collector_percent:.0f} % of all CPU time, {self.collection_ms:.0f} ms once",
        }
        headline = f"{self.connections} idle connections: {self.verdict('all were handed over')}"
        return "\n".join([headline, *(f"  {title:9}  {text}" for title, text in lines.items())])


class Server:
    """The process with the node, told by lines what to do."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._lines = Lines(process.stdout)

    async def told(self) -> dict[str, float]:
        """What it says next."""
        line = await self._lines.read()
        if line is None:
            msg = "the node's process has ended"
            raise RuntimeError(msg)
        told: dict[str, float] = json.loads(line)
        return told

    async def ask(self, word: str) -> dict[str, float]:
        """Have it do something."""
        await self._stdin.send_all(word.encode() + b"\n")
        return await self.told()

    async def leave(self) -> dict[str, float]:
        """Have it leave its node; what that took."""
        await self._stdin.aclose()
        return await self.told()


async def stay_connected(
    options: NodeOptions, number: int, connections: list[Connection], *, task_status: trio.TaskStatus[None]
) -> None:
    """One client."""
    async with open_node(f"client-{number}@localhost", options) as node:
        connections.append(await node.connect(SERVER))
        task_status.started()
        await trio.sleep_forever()


async def measure(size: int, interval: float, idle: float, directory: Path, progress: Progress) -> Idle:
    """Connect so many, be idle, rotate, hand over, leave."""
    result = Idle(connections=size)
    ca, within = CertificateAuthority.load(directory), size / TURNS
    pipe = subprocess.PIPE
    module, arguments = "benchmarks.stress.idle.server", (directory, interval, within)
    async with running(module, *arguments, stdin=pipe, stdout=pipe) as process, trio.open_nursery() as nursery:
        server = Server(process)
        route = Route(host=LOOPBACK, port=int((await server.told())["port"]))
        network = NetworkOptions(
            mode=NetworkMode.HIDDEN, routes={SERVER: route}, heartbeat_interval=interval, handshake_timeout=PATIENCE
        )
        options = NodeOptions(cert_manager=manager_of(ca, "localhost"), network=network, shutdown_grace=0)
        connections: list[Connection] = []

        async def connect(numbers: Iterator[int]) -> None:
            for number in numbers:
                await nursery.start(stay_connected, options, number, connections)
                progress.say_at_times(lambda: f"{len(connections)} of {size} connected")

        async def connect_up_to(last: int) -> None:
            numbers = iter(range(len(connections), last))
            async with trio.open_nursery() as connecting:
                for _ in range(AT_ONCE):
                    connecting.start_soon(connect, numbers)

        await connect_up_to(min(FIRST, size // 2))
        rest = size - len(connections)
        before, began = await server.ask("measure"), trio.current_time()
        await connect_up_to(size)
        result.connects_per_second = rest / (trio.current_time() - began)
        deadline = trio.current_time() + PATIENCE
        while True:
            told = await server.ask("now")
            if told["connections"] >= size or trio.current_time() > deadline:
                break
            await trio.sleep(LOOK)  # the last hellos may be under way
        after = await server.ask("measure")
        result.connect_us = (after["cpu"] - before["cpu"]) / rest * 1e6
        result.memory_kib = (after["memory"] - before["memory"]) / rest / 1024
        result.collection_ms = after["collection"] * 1e3
        if after["connections"] != size:
            result.problems.append(f"{after['connections']:.0f} connections, where there should be {size}")

        progress.say(f"{size} connected, idle for {idle:g} s")
        await trio.sleep(min(interval, idle))
        before, began = await server.ask("now"), trio.current_time()
        await trio.sleep(idle)
        after = await server.ask("now")
        beats = (trio.current_time() - began) / interval * size
        result.heartbeat_us = (after["cpu"] - before["cpu"]) / beats * 1e6
        result.heartbeats_percent = result.heartbeat_us * size / USUAL_INTERVAL / 1e4

        before, began = await server.ask("rotate"), trio.current_time()
        result.update_ms = before["update"] * 1e3
        after = await handed_over(server, within + PATIENCE, connections, progress)
        result.hand_over_seconds = trio.current_time() - began
        result.hand_over_us = (after["cpu"] - before["cpu"]) / size * 1e6
        if after["superseded"] or after["connections"] != size:
            result.problems.append(
                f"after the hand-over {after['connections']:.0f} connections, {after['superseded']:.0f} of them as "
                f"they were, where {size} should have been handed over"
            )
        moves = Counter(connection.statistics().hand_overs for connection in connections)
        if set(moves) != {1}:
            result.problems.append(f"connections by how often they were handed over, where it should be once: {moves}")

        left = await server.leave()
        result.leave_seconds, result.leave_us = left["seconds"], left["cpu"] / size * 1e6
        result.collector_percent = left["collector"] * 100
        nursery.cancel_scope.cancel()
    return result


async def handed_over(
    server: Server, patience: float, connections: Iterable[Connection], progress: Progress
) -> dict[str, float]:
    """Wait until all are, on both sides, or none has been for so many seconds."""
    least, deadline = math.inf, math.inf
    while True:
        told = await server.ask("superseded")
        left = told["superseded"] + sum(not connection.statistics().hand_overs for connection in connections)
        if left < least:
            least, deadline = left, trio.current_time() + patience
        if not left or trio.current_time() > deadline:
            return told
        progress.say_at_times(lambda told=told: f"{told['superseded']:.0f} to be handed over")  # type: ignore[misc]
        await trio.sleep(LOOK)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and how long."""
    parser.add_argument(
        "--connections", type=int, nargs="+", metavar="N", help="how many, each by itself; by default 1000 3000 10000"
    )
    parser.add_argument("--interval", type=float, metavar="S", help="heartbeat_interval; by default 15 seconds")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long they are idle; by default 15")


def complete(options: argparse.Namespace) -> str | None:
    """Sizes from small to large, some time."""
    if options.connections is None:
        options.connections = [20] if options.quick else [1000, 3000, 10_000]
    if options.interval is None:
        options.interval = 0.1 if options.quick else 15.0
    if options.seconds is None:
        options.seconds = 0.2 if options.quick else 15.0
    if min(options.connections) < 2 or options.connections != sorted(set(options.connections)):
        return "--connections are two at least, from small to large"
    if not 0 < options.interval < float("inf"):
        return "--interval is a positive number"
    return None if options.interval <= options.seconds < float("inf") else "--seconds is one --interval at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """Each size."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # which the node's process inherits
    smallest: Idle | None = None
    with tempfile.TemporaryDirectory(prefix="trionode-idle-") as directory:
        CertificateAuthority.create().save(directory)
        for size in options.connections:
            result = trio.run(measure, size, options.interval, options.seconds, Path(directory), progress)
            if smallest is None:
                smallest = result
            elif not options.quick:
                result.compare(smallest)
            yield result


PROGRAM: Final = Program(
    name="idle",
    asks="Thousands of idle connections: what do they cost, and does anything grow faster than their number?",
    explanation=EXPLANATION,
    examples=[("", "1000, 3000 and 10 000 of them"), ("--connections 500 --json", "")],
    quick="20 of them, for a moment, and nothing is compared",
    add_options=add_options,
    complete=complete,
    run=run,
)
