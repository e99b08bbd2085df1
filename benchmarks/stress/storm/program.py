"""Many clients that connect at once: are they served as fast as one after the other, and in the order of arrival?"""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from benchmarks.child import Lines, running
from benchmarks.stress.nodes import LOOPBACK
from benchmarks.stress.program import Program, Progress, Result
from trionode import HandshakeError, NetworkMode, NetworkOptions, NodeOptions, NoRouteError, Route, open_node
from trionode.pki import CertificateAuthority, write_key_pair

from .server import SERVER, Seen, manager, serving

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator, Sequence

    from trionode import Node

EXPLANATION: Final = """\
A server in a process of its own, and so many client nodes in this one. First one of them connects again and again, each
time when the last connection is closed; then all connect at the same moment, as they do after their server's restart.
Mutual TLS, everything as the manual opens nodes. None is to be refused, and the storm's rate is to be at least 0.9 of
the other one. With two cores it is higher: both processes work at once.

What is reported:
  sequential  connections a second, one after the other; the time to close them does not count
  storm       connections a second, from the moment when all begin to the last one that is connected
  overtaken   of those that were accepted, how many others that came later were connected earlier: mean and most
  stall       the longest that another task of the server had to wait for its turn, while all connected; most of it is
              Python's garbage collector, which goes through all connections more than once while they become so many
  failed      clients whose one attempt failed
"""

#: The least that a storm's rate may be of the sequential one.
LEAST: Final = 0.9
#: The most that one client may be overtaken by: what is being shaken hands with at once, and each client's own pace.
OVERTAKEN: Final = 64


class Asked(Protocol):
    """A server, wherever it runs."""

    port: int

    async def ask(self) -> Seen:
        """What it has seen since the last time."""


@dataclass(kw_only=True)
class Stormed(Result):
    """What came out; the fields are explained by `--help`."""

    clients: int
    sequential: float
    storm: float
    overtaken: tuple[float, int]
    stall: float
    failed: int

    def judge(self, *, least: float) -> None:
        """Note what must not be.

        Args:
            least: what the storm's rate has to be of the sequential one.
        """
        ratio, most = self.storm / self.sequential, self.overtaken[1]
        if self.failed:
            self.problems.append(f"{self.failed} of {self.clients} clients were not served")
        if ratio < least:
            self.problems.append(f"the storm was served at {ratio:.2f} of the sequential rate, less than {least}")
        if most > OVERTAKEN:
            self.problems.append(f"a client was overtaken by {most} that came later")

    def report(self) -> str:
        """The figures, for people."""
        mean, most = self.overtaken
        lines = {
            "sequential": f"{self.sequential:.0f} /s",
            "storm": f"{self.storm:.0f} /s",
            "overtaken": f"by {mean:.1f} on average, by {most} at most",
            "stall": f"{self.stall * 1000:.0f} ms",
            "failed": self.failed,
        }
        verdict = self.verdict(f"served at {self.storm / self.sequential:.2f} of the sequential rate")
        return "\n".join(
            [f"{self.clients} clients: {verdict}", *(f"  {title:10}  {text}" for title, text in lines.items())]
        )


class _Child:
    """A server in another process."""

    def __init__(self, process: trio.Process, port: int, lines: Lines) -> None:
        self.port = port
        self._process = process
        self._lines = lines

    async def ask(self) -> Seen:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")
        return Seen(**json.loads(await self._lines.read() or b"{}"))


@asynccontextmanager
async def server_elsewhere(directory: Path) -> AsyncIterator[_Child]:
    """A server in a process of its own."""
    program = "benchmarks.stress.storm.server"
    async with running(program, directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = Lines(process.stdout)
        yield _Child(process, int(await lines.read() or b"0"), lines)


def overtaken(seen: Seen) -> tuple[float, int]:
    """By how many later arrivals each connection was overtaken: mean and most."""
    arrival = {port: number for number, port in enumerate(seen.accepted)}
    order = [arrival[port] for port in seen.established if port in arrival]
    counts = [sum(earlier > each for earlier in order[:index]) for index, each in enumerate(order)]
    return (sum(counts) / len(counts), max(counts)) if counts else (0.0, 0)


async def one_by_one(node: Node, count: int) -> float:
    """Connections a second of one client, one after the other."""
    took = 0.0
    for _ in range(count):
        began = trio.current_time()
        connection = await node.connect(SERVER)
        took += trio.current_time() - began
        await connection.aclose()
    return count / took


async def all_at_once(nodes: Sequence[Node]) -> tuple[float, int]:
    """Connections a second of many, all begun at one moment; and how many failed."""
    failed = 0

    async def connect(node: Node) -> None:
        nonlocal failed
        try:
            await node.connect(SERVER)
        except (HandshakeError, NoRouteError):
            failed += 1

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(connect, node)
    return (len(nodes) - failed) / (trio.current_time() - began), failed


async def measure(
    directory: Path, server: Asked, *, clients: int, sequential: int, least: float, progress: Progress
) -> Stormed:
    """Open the clients, and see.

    Args:
        directory: has the certificates.
        server: is there.
        clients: how many there are.
        sequential: how many connections one of them makes, one after the other.
        least: what the storm's rate has to be of the sequential one.
        progress: told what is done.
    """
    network = NetworkOptions(mode=NetworkMode.HIDDEN, routes={SERVER: Route(host=LOOPBACK, port=server.port)})
    options = NodeOptions(cert_manager=manager(directory, "client"), network=network)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(open_node(f"client{number}@localhost", options))
            for number in range(clients)
        ]
        progress.say(f"{clients} clients are open")
        await one_by_one(nodes[0], sequential // 4)  # to warm up
        rate = await one_by_one(nodes[0], sequential)
        await server.ask()
        progress.say(f"one after the other: {rate:.0f} /s; now all at once")
        storm, failed = await all_at_once(nodes)
        seen = await server.ask()
    result = Stormed(
        clients=clients,
        sequential=rate,
        storm=storm,
        overtaken=overtaken(seen),
        stall=seen.stall,
        failed=failed,
    )
    result.judge(least=least)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Size."""
    parser.add_argument("--clients", type=int, metavar="N", help="how many; by default 1000")


def complete(options: argparse.Namespace) -> str | None:
    """At least two."""
    if options.clients is None:
        options.clients = 40 if options.quick else 1000
    return None if options.clients >= 2 else "--clients is two at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One storm."""
    with tempfile.TemporaryDirectory(prefix="trionode-storm-") as name:
        directory = Path(name)
        ca = CertificateAuthority.create()
        ca.save(directory)
        for end in "server", "client":
            write_key_pair(ca.issue("localhost"), directory / f"{end}.pem", directory / f"{end}.key")

        async def main() -> Stormed:
            serve = serving if options.quick else server_elsewhere
            async with serve(directory) as server:
                return await measure(
                    directory,
                    server,
                    clients=options.clients,
                    sequential=20 if options.quick else 300,
                    least=0 if options.quick else LEAST,
                    progress=progress,
                )

        yield trio.run(main)


PROGRAM: Final = Program(
    name="storm",
    asks="A thousand clients that connect at once: are they served as fast as one by one, and in order?",
    explanation=EXPLANATION,
    examples=[("", "1000 clients, two processes"), ("--clients 3000", "")],
    quick="40 clients, in this process; how fast is not judged",
    add_options=add_options,
    complete=complete,
    run=run,
)
