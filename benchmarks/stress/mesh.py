"""A mesh that starts all at once: does it converge to one connection per pair, and how fast?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.latency import Latency
from trionode import ConnectionDown, ConnectionUp, LocalRegistry, NodeOptions, open_node
from trionode.pki import CertificateAuthority

from .nodes import accepting, differences, echo, manager_of
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import Node, NodeName

EXPLANATION: Final = """\
Opens so many nodes in this process, all at the same moment. Each is told to keep a connection to every other one
(NetworkOptions.keep_connected), and finds them through a LocalRegistry in a temporary directory. So every pair dials
each other from both sides at once, while half of the names cannot be found yet and are asked for again with back-off.

What has to come out is one connection per pair, the same one on both sides, and no more change after that.

What is reported:
  seconds      from the first node's opening until every pair had its one connection
  dials        TCP connections that were accepted; two per pair is every node dialling every other one once
  established  of these, that became a connection, if only for a moment; one per pair is the ideal
  connections  that there are in the end
  calls        one call over each connection, in each direction, to see that it works
"""


@dataclass(kw_only=True)
class Converged(Result):
    """What came out; the fields are explained by `--help`."""

    nodes: int
    pairs: int
    seconds: float = 0.0
    dials: int = 0
    established: int = 0
    connections: int = 0
    changes_afterwards: int = 0
    calls: Latency = field(default_factory=Latency)

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "dials": f"{self.dials}  ({self.dials / self.pairs:.2f} per pair)",
            "established": self.established,
            "connections": self.connections,
            "calls": self.calls,
        }
        verdict = self.verdict(f"converged in {self.seconds:.2f} s")
        headline = f"{self.nodes} nodes, {self.pairs} pairs: {verdict}"
        return "\n".join([headline, *(f"  {title:11}  {text}" for title, text in lines.items())])


class Mesh:
    """Nodes that all keep each other connected."""

    def __init__(self, size: int, directory: str, progress: Progress) -> None:
        ca = CertificateAuthority.create()
        self.pairs = size * (size - 1) // 2
        self.names = [f"node{number}@localhost" for number in range(size)]
        self.managers = {name: manager_of(ca, name) for name in self.names}
        self.registry = LocalRegistry(directory)
        self.nodes: dict[NodeName, Node] = {}
        self.established = 0
        self.changes = 0
        self._progress = progress

    async def run_node(self, name: str) -> None:
        """Open one, and count what happens to it, until cancelled."""
        others = [other for other in self.names if other != name]
        network = accepting(resolver=self.registry, keep_connected=others)
        options = NodeOptions(cert_manager=self.managers[name], network=network, services={"echo": echo})
        async with open_node(name, options) as node, node.events() as events:
            self.nodes[node.name] = node
            async for event in events:
                if isinstance(event, ConnectionUp):
                    self.established += 1
                self.changes += isinstance(event, ConnectionUp | ConnectionDown)

    @property
    def connections(self) -> int:
        """Ends of connections that there are now."""
        return sum(node.statistics().connections for node in self.nodes.values())

    async def converge(self) -> None:
        """Wait until every node has as many connections as it has peers."""
        size, said = len(self.names), -1
        while any(len(node.connections) < size - 1 for node in self.nodes.values()) or len(self.nodes) < size:
            await trio.sleep(0.01)
            tenth = self.connections * 10 // (2 * self.pairs)
            if tenth != said:
                said = tenth
                self._progress.say(f"{len(self.nodes)} nodes, {self.connections // 2} of {self.pairs} pairs")
        # A duplicate that is being closed is no connection, but it takes a moment.
        while self.connections > 2 * self.pairs:  # noqa: ASYNC110 -- there is no event for that it is over
            await trio.sleep(0.01)

    def problems(self) -> list[str]:
        """What is not as it should be: nothing, if every pair has one connection, the same one on both sides."""
        peers = len(self.names) - 1
        found = [
            f"{name} has {node.statistics().connections} connections for {peers} peers"
            for name, node in self.nodes.items()
            if node.statistics().connections != peers
        ]
        for one, other in combinations(self.nodes.values(), 2):
            there, back = one.connections.get(other.name), other.connections.get(one.name)
            if there is None or back is None:
                found.append(f"{one.name} and {other.name} are not connected")
            elif (difference := differences(there, back)) is not None:
                found.append(f"{one.name} and {other.name}: {difference}")
        return found

    async def call_all(self) -> Latency:
        """Call over every connection from both ends."""
        took: list[float] = []
        for node in self.nodes.values():
            for peer in list(node.connections):
                began = trio.current_time()
                if await node.call(peer, "echo", b"there?") != b"there?":
                    msg = f"{peer} answered {node.name} with something else"
                    raise AssertionError(msg)
                took.append(trio.current_time() - began)
        return Latency.of(took)

    async def measure(self, *, within: float, settle: float) -> Converged:
        """Start all nodes, and see what comes of it.

        Args:
            within: how long convergence may take, seconds.
            settle: how long it is watched afterwards, seconds.
        """
        result = Converged(nodes=len(self.names), pairs=self.pairs)
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for name in self.names:
                nursery.start_soon(self.run_node, name)
            with trio.move_on_after(within) as deadline:
                await self.converge()
            result.seconds = round(trio.current_time() - began, 3)
            result.problems = self.problems()
            if deadline.cancelled_caught:
                result.problems.insert(0, f"not converged within {within:g} s")
            if result.ok:
                result.calls = await self.call_all()
            before = self.changes
            self._progress.say(f"watching for {settle:g} s whether it stays like that")
            await trio.sleep(settle)
            result.changes_afterwards = self.changes - before
            if result.changes_afterwards:
                result.problems.append(f"{result.changes_afterwards} connections came or went after it had converged")
            result.problems += [problem for problem in self.problems() if problem not in result.problems]
            acceptors = [each for node in self.nodes.values() for each in node.statistics().acceptors]
            result.dials = sum(each.accepted for each in acceptors)
            result.established, result.connections = self.established // 2, self.connections // 2
            nursery.cancel_scope.cancel()
        return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Size and times."""
    parser.add_argument("--nodes", type=int, metavar="N", help="how many; by default 30")
    parser.add_argument(
        "--within", type=float, default=60.0, metavar="SECONDS", help="give up after this long; by default 60"
    )
    parser.add_argument("--settle", type=float, metavar="SECONDS", help="watch for this long afterwards; by default 2")


def complete(options: argparse.Namespace) -> str | None:
    """At least one pair."""
    if options.nodes is None:
        options.nodes = 6 if options.quick else 30
    if options.settle is None:
        options.settle = 0.2 if options.quick else 2.0
    return None if options.nodes >= 2 else "--nodes is two at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One mesh."""
    progress.say(f"issuing {options.nodes} certificates")
    with tempfile.TemporaryDirectory(prefix="trionode-mesh-") as directory:
        mesh = Mesh(options.nodes, f"{directory}/registry", progress)
        yield trio.run(lambda: mesh.measure(within=options.within, settle=options.settle))


PROGRAM: Final = Program(
    name="mesh",
    asks="Many nodes that start at once and all keep connected: is it one connection per pair in the end?",
    explanation=EXPLANATION,
    examples=[("", "30 nodes: 435 pairs, 870 mutual TLS handshakes"), ("--nodes 50 --json", "")],
    quick="6 nodes, watched for a fifth of a second",
    add_options=add_options,
    complete=complete,
    run=run,
)
