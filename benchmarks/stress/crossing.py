"""Two nodes that dial each other at the same moment, again and again: is it always exactly one connection?"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    NetworkOptions,
    NodeOptions,
    Route,
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
Opens two nodes in this process, with routes to each other. In each round both connect to the other in the same tick,
over real sockets, with mutual TLS. When both have what connect() gave them, there has to be exactly one connection, and
both have to have that one: the same TLS session, dialled by one side and accepted by the other. A call in each
direction shows that it works. Then one side closes it, and the next round begins when both sides have noticed.

The exit status is 0 if every round was like that, 1 if a single one was not.

What is reported:
  rounds       that were made
  per second   of these, everything included: two handshakes, two calls, one close
  connect      from the dial until both sides had their connection: median and 99th percentile, milliseconds
  dials        TCP connections that were accepted; two per round where the dials really crossed
  crossed      rounds in which they did: both dials reached the other side
"""

EXAMPLES: Final = """\
examples:
  python benchmarks/stress/crossing.py                 1000 rounds
  python benchmarks/stress/crossing.py --quick         50 rounds, in a second or so: what the test suite runs
  python benchmarks/stress/crossing.py --rounds 10000 --json
"""

ALPHA, BETA = "alpha@localhost", "beta@localhost"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out, as it is reported."""

    scenario: str
    rounds: int
    seconds: float
    rounds_per_second: float
    connect_ms_median: float
    connect_ms_p99: float
    dials: int
    crossed: int
    won_by_first_name: int
    ok: bool
    problems: list[str]
    versions: dict[str, str]


@dataclass
class Tally:
    """What is counted on the way."""

    connect: list[float] = field(default_factory=list)
    crossed: int = 0
    won_by_first_name: int = 0
    problems: list[str] = field(default_factory=list)


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


def options(ca: CertificateAuthority, name: str) -> NodeOptions:
    """A node on loopback with mutual TLS."""
    manager = CertAuthManager(
        ca.issue(name), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    return NodeOptions(cert_manager=manager, network=network, services={"echo": echo})


def route(node: Node) -> Route:
    """The way to it."""
    host, port = node.acceptors[0].address
    return Route(host=host, port=port)


def dials(*nodes: Node) -> int:
    """TCP connections that they accepted so far."""
    return sum(acceptor.statistics().accepted for node in nodes for acceptor in node.acceptors)


def session(connection: Connection) -> bytes:
    """What only the two ends of one TLS session have in common: tells whether two connections are one."""
    return connection.link.stream.export_keying_material(b"EXPERIMENTAL-trionode-crossing", 16)


def problems(one: Node, other: Node, got: dict[NodeName, Connection]) -> list[str]:
    """What is not as it should be after a round."""
    found = [
        f"{node.name} has {node.statistics().connections} connections"
        for node in (one, other)
        if node.statistics().connections != 1
    ]
    mine, theirs = got[one.name], got[other.name]
    if session(mine) != session(theirs):
        found.append("the two sides got different connections")
    if mine.link.dialled is theirs.link.dialled:
        found.append("the two sides do not agree on who dialled")
    if one.connections.get(other.name) is not mine or other.connections.get(one.name) is not theirs:
        found.append("connect() gave out another connection than the one that is there")
    return found


async def play_round(number: int, alpha: Node, beta: Node, tally: Tally) -> None:
    """Both connect at once; check; close."""
    got: dict[NodeName, Connection] = {}

    async def connect(node: Node, peer: NodeName) -> None:
        got[node.name] = await node.connect(peer)

    before = dials(alpha, beta)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, alpha, beta.name)
        nursery.start_soon(connect, beta, alpha.name)
    tally.connect.append(trio.current_time() - began)
    # A call in each direction is behind everything that either side still had to do.
    for node, peer in (alpha, beta), (beta, alpha):
        if await node.call(peer.name, "echo", b"there?") != b"there?":
            tally.problems.append(f"round {number}: {peer.name} answered with something else")
    tally.problems += [f"round {number}: {problem}" for problem in problems(alpha, beta, got)]
    tally.crossed += dials(alpha, beta) - before >= 2
    tally.won_by_first_name += got[alpha.name].link.dialled
    closing, other = (alpha, beta) if number % 2 else (beta, alpha)
    await got[closing.name].aclose()
    await got[other.name].wait_closed()
    if alpha.statistics().connections or beta.statistics().connections:
        tally.problems.append(f"round {number}: a connection stayed after it was closed")


async def measure(rounds: int) -> Result:
    """Play so many rounds."""
    ca = CertificateAuthority.create()
    tally = Tally()
    async with open_node(BETA, options(ca, BETA)) as beta, open_node(ALPHA, options(ca, ALPHA)) as alpha:
        alpha.add_route(BETA, route(beta))
        beta.add_route(ALPHA, route(alpha))
        began = trio.current_time()
        for number in range(1, rounds + 1):
            with trio.move_on_after(30) as deadline:
                await play_round(number, alpha, beta, tally)
            if deadline.cancelled_caught:
                tally.problems.append(f"round {number}: not over after 30 s")
            if number % max(1, rounds // 10) == 0:
                progress(f"crossing: {number} of {rounds} rounds, {len(tally.problems)} problems")
            if len(tally.problems) > 20:
                break
        seconds = trio.current_time() - began
        accepted = dials(alpha, beta)
    cuts = statistics.quantiles(tally.connect, n=100) if len(tally.connect) > 1 else tally.connect * 99
    return Result(
        scenario="crossing_dials",
        rounds=len(tally.connect),
        seconds=round(seconds, 3),
        rounds_per_second=round(len(tally.connect) / seconds, 1),
        connect_ms_median=round(statistics.median(tally.connect) * 1000, 3),
        connect_ms_p99=round(cuts[98] * 1000, 3),
        dials=accepted,
        crossed=tally.crossed,
        won_by_first_name=tally.won_by_first_name,
        ok=not tally.problems,
        problems=tally.problems,
        versions=versions(),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{EXPLANATION}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds; by default 1000, with --quick 50")
    parser.add_argument("--quick", action="store_true", help="a few, to see that it works at all")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 50 if options.quick else 1000
    if options.rounds < 1:
        parser.error("one round at least")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    result = trio.run(measure, options.rounds)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        verdict = "one connection each time" if result.ok else f"{len(result.problems)} PROBLEMS"
        print(f"{result.rounds} rounds in {result.seconds:.2f} s: {verdict}")
        print(f"  per second  {result.rounds_per_second:8.1f}")
        print(f"  connect     {result.connect_ms_median:8.2f} ms median, {result.connect_ms_p99:.2f} ms p99")
        print(f"  dials       {result.dials:6}")
        print(f"  crossed     {result.crossed:6}  (the dial of {ALPHA} won {result.won_by_first_name} rounds)")
        print("  " + ", ".join(f"{name} {number}" for name, number in result.versions.items()))
    for problem in result.problems:
        print(f"crossing: PROBLEM: {problem}", file=sys.stderr)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
