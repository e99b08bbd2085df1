"""Two nodes that dial each other at the same moment, again and again: is it always exactly one connection?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.latency import Latency
from trionode import NodeOptions, open_node
from trionode._connection.connection import core_of
from trionode.pki import CertificateAuthority

from .nodes import accepting, differences, echo, manager_of, route_to
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import Connection, Node, NodeName

EXPLANATION: Final = """\
Opens two nodes in this process, with routes to each other. In each round both connect to the other in the same tick,
over real sockets, with mutual TLS. When both have what connect() gave them, there has to be exactly one connection, and
both have to have that one: the same TLS session, dialled by one side and accepted by the other. A call in each
direction shows that it works. Then one side closes it, and the next round begins when both sides have noticed.

What is reported:
  rounds   that were made
  seconds  that they took, everything included: two handshakes, two calls, one close
  connect  from the dial until both sides had their connection
  dials    TCP connections that were accepted; two per round where the dials really crossed
  crossed  rounds in which they did: both dials reached the other side
  won      rounds in which the connection that stayed was dialled by the first of the two names
"""

ALPHA, BETA = "alpha@localhost", "beta@localhost"
#: How long a round may take. Seconds.
PATIENCE: Final = 30.0
#: After so many problems more rounds would say the same.
ENOUGH_PROBLEMS: Final = 20


@dataclass(kw_only=True)
class Crossing(Result):
    """What came out; the fields are explained by `--help`."""

    rounds: int = 0
    seconds: float = 0.0
    connect: Latency = field(default_factory=Latency)
    dials: int = 0
    crossed: int = 0
    won: int = 0

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "connect": self.connect,
            "dials": self.dials,
            "crossed": f"{self.crossed}  (the dial of {ALPHA} won {self.won} rounds)",
        }
        headline = f"{self.rounds} rounds in {self.seconds:.2f} s: {self.verdict('one connection each time')}"
        return "\n".join([headline, *(f"  {title:8} {text}" for title, text in lines.items())])


class Pair:
    """Two nodes, and what came of the rounds so far."""

    def __init__(self, alpha: Node, beta: Node) -> None:
        self.result = Crossing()
        self._alpha, self._beta = alpha, beta
        self._took: list[float] = []

    async def play(self, rounds: int, progress: Progress) -> Crossing:
        """Play so many rounds, fewer where there are problems enough."""
        result = self.result
        began = trio.current_time()
        for number in range(1, rounds + 1):
            result.rounds = number
            with trio.move_on_after(PATIENCE) as deadline:
                await self._play_round(number)
            if deadline.cancelled_caught:
                result.problems.append(f"round {number}: not over after {PATIENCE:g} s")
            if number % max(1, rounds // 10) == 0:
                progress.say(f"{number} of {rounds} rounds, {len(result.problems)} problems")
            if len(result.problems) > ENOUGH_PROBLEMS:
                break
        result.seconds = round(trio.current_time() - began, 3)
        result.connect, result.dials = Latency.of(self._took), self._dials()
        return result

    async def _play_round(self, number: int) -> None:
        """Both connect at once; check; close."""
        alpha, beta, result = self._alpha, self._beta, self.result
        got: dict[NodeName, Connection] = {}

        async def connect(node: Node, peer: NodeName) -> None:
            got[node.name] = await node.connect(peer)

        before, began = self._dials(), trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, alpha, beta.name)
            nursery.start_soon(connect, beta, alpha.name)
        self._took.append(trio.current_time() - began)
        # A call in each direction is behind everything that either side still had to do.
        for node, peer in (alpha, beta), (beta, alpha):
            if await node.call(peer.name, "echo", b"there?") != b"there?":
                result.problems.append(f"round {number}: {peer.name} answered with something else")
        result.problems += [f"round {number}: {problem}" for problem in self._problems(got)]
        result.crossed += self._dials() - before >= 2
        result.won += core_of(got[alpha.name]).link.dialled
        closing, other = (alpha, beta) if number % 2 else (beta, alpha)
        await got[closing.name].aclose()
        await got[other.name].wait_closed()
        if alpha.statistics().connections or beta.statistics().connections:
            result.problems.append(f"round {number}: a connection stayed after it was closed")

    def _dials(self) -> int:
        """TCP connections that both accepted so far."""
        acceptors = [*self._alpha.acceptors, *self._beta.acceptors]
        return sum(acceptor.statistics().accepted for acceptor in acceptors)

    def _problems(self, got: dict[NodeName, Connection]) -> Iterator[str]:
        """What is not as it should be after both have connected."""
        alpha, beta = self._alpha, self._beta
        for node in alpha, beta:
            if (connections := node.statistics().connections) != 1:
                yield f"{node.name} has {connections} connections"
        mine, theirs = got[alpha.name], got[beta.name]
        if (difference := differences(mine, theirs)) is not None:
            yield difference
        if alpha.connections.get(beta.name) is not mine or beta.connections.get(alpha.name) is not theirs:
            yield "connect() gave out another connection than the one that is there"


async def measure(rounds: int, progress: Progress) -> Crossing:
    """Open both nodes and play."""
    ca = CertificateAuthority.create()
    options = [
        NodeOptions(cert_manager=manager_of(ca, name), network=accepting(), services={"echo": echo})
        for name in (ALPHA, BETA)
    ]
    async with open_node(ALPHA, options[0]) as alpha, open_node(BETA, options[1]) as beta:
        alpha.add_route(BETA, route_to(beta))
        beta.add_route(ALPHA, route_to(alpha))
        return await Pair(alpha, beta).play(rounds, progress)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The number of rounds."""
    parser.add_argument("--rounds", type=int, metavar="N", help="how many; by default 1000")


def complete(options: argparse.Namespace) -> str | None:
    """At least one round."""
    if options.rounds is None:
        options.rounds = 50 if options.quick else 1000
    return None if options.rounds >= 1 else "--rounds is one at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """Play the rounds."""
    yield trio.run(measure, options.rounds, progress)


PROGRAM: Final = Program(
    name="crossing",
    asks="Two nodes that dial each other at the same moment: is it always exactly one connection?",
    explanation=EXPLANATION,
    examples=[("", "1000 rounds"), ("--rounds 10000 --json", "")],
    quick="50 rounds",
    add_options=add_options,
    complete=complete,
    run=run,
)
