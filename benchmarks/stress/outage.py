"""A node that many keep a connection to is gone for a while: how soon are they back, and does it take them in?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.latency import Latency
from trionode import AcceptorOptions, NetworkMode, NetworkOptions, NodeOptions, Route, open_node
from trionode.pki import CertificateAuthority

from .nodes import LOOPBACK, accepting, manager_of
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import Node

EXPLANATION: Final = """\
Opens a node, and in the same process others that keep a connection to it, over loopback, with mutual TLS. Once all are
connected, the node is left, and opened again on the same port after a while.

All have to be back in the end, and none may have been refused or shed. Without --quick, half of them have to be back
within a second, and all within four fifths of the outage (4 s at least).

What is reported:
  back     from the node's return until each was connected again
  refused  handshakes that the node refused meanwhile
  shed     of these, because there were too many unfinished (max_handshakes, max_handshakes_per_address)
"""

SERVER = "server@localhost"
#: How long all may take to be connected, at first and after the outage. Seconds.
PATIENCE: Final = 60.0
#: A connection that lasted longer than the connectors' `LASTED` is a success. Seconds.
SETTLE: Final = 5.5
#: Half of the clients are to be back within this. Seconds.
SOON: Final = 1.0


@dataclass(kw_only=True)
class Outage(Result):
    """What came out; the fields are explained by `--help`."""

    clients: int
    seconds: float
    back: Latency = field(default_factory=Latency)
    refused: int = 0
    shed: int = 0

    def judge(self, *, by_time: bool) -> None:
        """Note what is not as it should be."""
        if self.back.count < self.clients:
            self.problems.append(f"{self.clients - self.back.count} of {self.clients} clients are not back")
        if self.refused:
            self.problems.append(f"{self.refused} handshakes were refused, {self.shed} of these shed")
        if by_time and self.back.median_ms > SOON * 1000:
            self.problems.append(f"half of the clients were back after {self.back.median_ms:.0f} ms only")
        if by_time and self.back.worst_ms > max(4.0, 0.8 * self.seconds) * 1000:
            self.problems.append(f"the last client was back after {self.back.worst_ms:.0f} ms only")

    def report(self) -> str:
        """The figures, for people."""
        headline = f"{self.clients} clients, gone for {self.seconds:g} s: {self.verdict('all are back')}"
        lines = {"back": self.back, "refused": f"{self.refused}, {self.shed} shed"}
        return "\n".join([headline, *(f"  {title:8} {text}" for title, text in lines.items())])


async def keep_connected(options: NodeOptions, number: int, *, task_status: trio.TaskStatus[Node]) -> None:
    """One client."""
    async with open_node(f"client-{number}@localhost", options) as node:
        node.keep_connected(SERVER)
        task_status.started(node)
        await trio.sleep_forever()


async def time_all(nodes: list[Node]) -> list[float]:
    """How long each takes to be connected, from now on."""
    began, took = trio.current_time(), list[float]()

    async def wait(node: Node) -> None:
        await node.wait_connected(SERVER)
        took.append(trio.current_time() - began)

    with trio.move_on_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(wait, node)
    return took


async def measure(clients: int, seconds: float, progress: Progress, *, quick: bool) -> Outage:
    """Connect all, be gone, be back."""
    ca, result = CertificateAuthority.create(), Outage(clients=clients, seconds=seconds)
    serving, dialing = manager_of(ca, SERVER), manager_of(ca, "localhost")
    async with trio.open_nursery() as nursery:
        async with open_node(SERVER, NodeOptions(cert_manager=serving, network=accepting())) as server:
            host, port = server.acceptors[0].address
            network = NetworkOptions(mode=NetworkMode.HIDDEN, routes={SERVER: Route(host=host, port=port)})
            options = NodeOptions(cert_manager=dialing, network=network, shutdown_grace=0)
            nodes = [await nursery.start(keep_connected, options, number) for number in range(clients)]
            await time_all(nodes)
            progress.say(f"{len(server.connections)} connected")
            if not quick:
                await trio.sleep(SETTLE)
        progress.say("gone")
        await trio.sleep(seconds)
        network = NetworkOptions(acceptors=[AcceptorOptions(host=LOOPBACK, port=port)])
        async with open_node(SERVER, NodeOptions(cert_manager=serving, network=network)) as server:
            progress.say("back")
            result.back = Latency.of(await time_all(nodes))
            statistics = server.acceptors[0].statistics()
        nursery.cancel_scope.cancel()
    result.refused, result.shed = statistics.refused, statistics.shed
    result.judge(by_time=not quick)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and how long."""
    parser.add_argument("--clients", type=int, metavar="N", help="how many; by default 200")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long the node is gone; by default 3")


def complete(options: argparse.Namespace) -> str | None:
    """At least one client, some time."""
    if options.clients is None:
        options.clients = 5 if options.quick else 200
    if options.seconds is None:
        options.seconds = 0.3 if options.quick else 3.0
    if options.clients < 1:
        return "--clients is one at least"
    return None if 0 < options.seconds < float("inf") else "--seconds is a positive number"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One outage."""
    yield trio.run(lambda: measure(options.clients, options.seconds, progress, quick=options.quick))


PROGRAM: Final = Program(
    name="outage",
    asks="A node that many keep a connection to is gone for a while: how soon are they back?",
    explanation=EXPLANATION,
    examples=[("", "200 clients, gone for 3 seconds"), ("--clients 500 --seconds 10 --json", "")],
    quick="5 clients, gone for a third of a second, not judged by time",
    add_options=add_options,
    complete=complete,
    run=run,
)
