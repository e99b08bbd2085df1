"""A mesh that starts all at once: does it converge to one connection per pair, and how fast?"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import combinations
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    ConnectionDown,
    ConnectionUp,
    LocalRegistry,
    NetworkOptions,
    NodeOptions,
    open_node,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import (
        Connection,
        Node,
        NodeName,
        ServiceChannel,
    )

EXPLANATION: Final = """\
Opens so many nodes in this process, all at the same moment. Each is told to keep a connection to every other one
(NetworkOptions.keep_connected), and finds them through a LocalRegistry in a temporary directory. So every pair dials
each other from both sides at once, while half of the names cannot be found yet and are asked for again with back-off.

What has to come out is one connection per pair, the same one on both sides, and no more change after that. The exit
status is 0 if it does, 1 if not.

What is reported:
  seconds      from the first node's opening until every pair had its one connection
  dials        TCP connections that were accepted; two per pair would be everybody dialling everybody, once
  established  of these, that became a connection, if only for a moment; one per pair is the ideal
  connections  that there are in the end
  calls        one call over each connection, in each direction, to see that it works: median and worst, milliseconds
"""

EXAMPLES: Final = """\
examples:
  python benchmarks/stress/mesh.py                    30 nodes: 435 pairs, 870 mutual TLS handshakes
  python benchmarks/stress/mesh.py --quick            6 nodes, in a second or so: what the test suite runs
  python benchmarks/stress/mesh.py --nodes 50 --json  one line of JSON; progress stays on standard error
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out, as it is reported."""

    scenario: str
    nodes: int
    pairs: int
    seconds: float
    dials: int
    established: int
    connections: int
    changes_afterwards: int
    call_ms_median: float
    call_ms_worst: float
    ok: bool
    problems: list[str]
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """What it ran on: numbers are comparable on one machine only, and these are what changes there."""
    packages = ["trionode", "trio", "pyOpenSSL", "cryptography"]
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def progress(text: str) -> None:
    """Say how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


def session(connection: Connection) -> bytes:
    """What only the two ends of one TLS session have in common: tells whether two connections are one."""
    return connection.link.stream.export_keying_material(b"EXPERIMENTAL-trionode-mesh", 16)


class Mesh:
    """Nodes that all keep each other connected."""

    def __init__(self, size: int, directory: str) -> None:
        ca = CertificateAuthority.create()
        self.names = [f"node{number}@localhost" for number in range(size)]
        self.managers = {
            name: CertAuthManager(
                ca.issue(name),
                client_cas=ca.pool,
                client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
                root_cas=ca.pool,
            )
            for name in self.names
        }
        self.registry = LocalRegistry(directory)
        self.nodes: dict[NodeName, Node] = {}
        self.established = 0
        self.changes = 0

    async def run_node(self, name: str) -> None:
        """Open one, and count what happens to it, until cancelled."""
        network = NetworkOptions(
            acceptors=[AcceptorOptions(host="127.0.0.1", port=0)],
            resolver=self.registry,
            keep_connected=[other for other in self.names if other != name],
        )
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
            tenth = self.connections * 10 // (size * (size - 1))
            if tenth != said:
                said = tenth
                progress(f"mesh: {len(self.nodes)} nodes, {self.connections // 2} of {size * (size - 1) // 2} pairs")
        # A duplicate that is being closed is no connection, but it takes a moment.
        while self.connections > size * (size - 1):  # noqa: ASYNC110 -- there is no event for that it is over
            await trio.sleep(0.01)

    def problems(self) -> list[str]:
        """What is not as it should be: empty, if every pair has one connection, and the same one on both sides."""
        found: list[str] = []
        size = len(self.names)
        found += [
            f"{name} has {node.statistics().connections} connections for {size - 1} peers"
            for name, node in self.nodes.items()
            if node.statistics().connections != size - 1
        ]
        for one, other in combinations(self.nodes.values(), 2):
            there, back = one.connections.get(other.name), other.connections.get(one.name)
            if there is None or back is None:
                found.append(f"{one.name} and {other.name} are not connected")
            elif session(there) != session(back):
                found.append(f"{one.name} and {other.name} have a connection each, and not the same")
            elif there.link.dialled is back.link.dialled:
                found.append(f"{one.name} and {other.name} do not agree on who dialled")
        return found

    async def call_everybody(self) -> list[float]:
        """Call over every connection from both ends; gives how long each took, in seconds."""
        took: list[float] = []
        for node in self.nodes.values():
            for peer in list(node.connections):
                began = trio.current_time()
                if await node.call(peer, "echo", b"there?") != b"there?":
                    msg = f"{peer} answered {node.name} with something else"
                    raise AssertionError(msg)
                took.append(trio.current_time() - began)
        return took


async def measure(size: int, *, within: float, settle: float) -> Result:
    """Run the mesh.

    Args:
        size: how many nodes.
        within: how long convergence may take, seconds.
        settle: how long it is watched afterwards, seconds.
    """
    pairs = size * (size - 1) // 2
    with tempfile.TemporaryDirectory() as directory:
        progress(f"mesh: issuing {size} certificates")
        mesh = Mesh(size, f"{directory}/registry")
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for name in mesh.names:
                nursery.start_soon(mesh.run_node, name)
            with trio.move_on_after(within) as deadline:
                await mesh.converge()
            seconds = trio.current_time() - began
            problems = mesh.problems()
            if deadline.cancelled_caught:
                problems.insert(0, f"not converged within {within:g} s")
            took = await mesh.call_everybody() if not problems else [float("nan")]
            before = mesh.changes
            progress(f"mesh: converged, watching for {settle:g} s whether it stays like that")
            await trio.sleep(settle)
            changes = mesh.changes - before
            if changes:
                problems.append(f"{changes} connections came or went after it had converged")
            problems += [problem for problem in mesh.problems() if problem not in problems]
            acceptors = [each for node in mesh.nodes.values() for each in node.statistics().acceptors]
            result = Result(
                scenario="mesh_started_at_once",
                nodes=size,
                pairs=pairs,
                seconds=round(seconds, 3),
                dials=sum(each.accepted for each in acceptors),
                established=mesh.established // 2,
                connections=mesh.connections // 2,
                changes_afterwards=changes,
                call_ms_median=round(statistics.median(took) * 1000, 3),
                call_ms_worst=round(max(took) * 1000, 3),
                ok=not problems,
                problems=problems,
                versions=versions(),
            )
            nursery.cancel_scope.cancel()
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{EXPLANATION}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="how many nodes; by default 30, with --quick 6")
    parser.add_argument(
        "--within", type=float, default=60.0, metavar="SECONDS", help="give up after this long; by default 60"
    )
    parser.add_argument(
        "--settle", type=float, metavar="SECONDS", help="watch for this long afterwards; by default 2, quick 0.2"
    )
    parser.add_argument("--quick", action="store_true", help="a small one, to see that it works at all")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.nodes is None:
        options.nodes = 6 if options.quick else 30
    if options.settle is None:
        options.settle = 0.2 if options.quick else 2.0
    if options.nodes < 2:
        parser.error("a mesh has two nodes at least")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    result = trio.run(_measure_for, options)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{result.nodes} nodes, {result.pairs} pairs: converged in {result.seconds:.2f} s")
        print(f"  dials        {result.dials:6}  ({result.dials / result.pairs:.2f} per pair)")
        print(f"  established  {result.established:6}")
        print(f"  connections  {result.connections:6}")
        print(f"  calls        {result.call_ms_median:.2f} ms median, {result.call_ms_worst:.2f} ms worst")
        print("  " + ", ".join(f"{name} {number}" for name, number in result.versions.items()))
    for problem in result.problems:
        print(f"mesh: PROBLEM: {problem}", file=sys.stderr)
    return 0 if result.ok else 1


async def _measure_for(options: argparse.Namespace) -> Result:
    return await measure(options.nodes, within=options.within, settle=options.settle)


if __name__ == "__main__":
    sys.exit(main())
