"""Many nodes that find each other by a registry: do all know of all, and how soon?"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.stress.log import watching_log
from benchmarks.stress.program import Program, Progress, Result

from . import in_memory, in_processes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXPLANATION: Final = """\
First in this process, on a network in memory, with a registry in memory: all nodes open at once; a tenth of them
leaves, and comes back. Two of them are hubs, which all others keep connected by a pattern. After each change every node
has to know of exactly the others, and be connected to both hubs, within the time that --within allows.

Then, where etcd is installed, each node in a process of its own, etcd in another, over TLS with client certificates,
and all keep all connected. They open at once; one is killed, is named no more once its lease has run out, and comes
back. What each sends to etcd while nothing happens is counted: a storm there is a problem, too.

What is reported:
  joined, left, came back, one was killed   seconds from the last of the change until every node knew
  requests                                  to etcd, for each node and minute, while nothing happens
"""


def most_requests(ttl: int) -> float:
    """Three renewals a lease, one watch a minute; a node that makes half as many again storms etcd."""
    return 1.5 * (3 * 60 / ttl + 1)


@dataclass(kw_only=True)
class Found(Result):
    """What came out; the fields are explained by `--help`."""

    where: str = ""
    nodes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    requests: float | None = None

    def report(self) -> str:
        """The figures, for people."""
        lines = [f"{self.nodes} nodes {self.where}: {self.verdict('all know of all')}"]
        lines += [f"  {title:15} {took:.2f} s" for title, took in self.seconds.items()]
        if self.requests is not None:
            lines.append(f"  {'requests':15} {self.requests:.1f} for each node and minute")
        return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and how long."""
    parser.add_argument("--nodes", type=int, metavar="N", help="in memory; by default 500, and 0 for none")
    parser.add_argument("--processes", type=int, metavar="N", help="with etcd; by default 50, and 0 for none")
    parser.add_argument(
        "--within", type=float, default=120, metavar="S", help="what each change may take; by default 120"
    )
    parser.add_argument("--ttl", type=int, metavar="S", help="of the leases in etcd; by default 15")
    parser.add_argument("--idle", type=float, metavar="S", help="how long requests are counted; by default 60")


def complete(options: argparse.Namespace) -> str | None:
    """Fill in, and check."""
    quick = options.quick
    options.nodes = (20 if quick else 500) if options.nodes is None else options.nodes
    options.processes = (3 if quick else 50) if options.processes is None else options.processes
    options.ttl = (2 if quick else 15) if options.ttl is None else options.ttl
    options.idle = (6 if quick else 60) if options.idle is None else options.idle
    if options.nodes and options.nodes < 10:
        return "--nodes is 10 at least, or 0"
    if options.ttl < 1:
        return "--ttl is 1 at least"
    return (
        None if options.processes != 1 and options.idle > 0 else "--processes is 2 at least, or 0; --idle is positive"
    )


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """Both parts."""
    if options.nodes:
        chance = random.Random(options.seed)  # noqa: S311 -- repeatable is what is wanted
        with watching_log() as log:
            seconds, problems = trio.run(in_memory.measure, options.nodes, options.within, chance, progress)
        yield Found(where="in memory", nodes=options.nodes, seconds=seconds, problems=problems + log.errors)
    if options.processes and not in_processes.available():
        progress.say("etcd is not installed: nodes in processes are left out")
    elif options.processes:
        seconds, requests, problems = trio.run(
            in_processes.measure, options.processes, options.within, options.ttl, options.idle, progress
        )
        if requests > most_requests(options.ttl):
            problems.append(f"{requests:.1f} requests for each node and minute")
        yield Found(
            where="in processes", nodes=options.processes, seconds=seconds, requests=requests, problems=problems
        )


PROGRAM: Final = Program(
    name="discovery",
    asks="Hundreds of nodes that find each other by a registry: do all know of all, and how soon?",
    explanation=EXPLANATION,
    examples=[("", "500 nodes in memory, 50 in processes"), ("--nodes 0 --processes 10", "with etcd alone")],
    quick="20 nodes in memory, 3 in processes",
    seeded=True,
    add_options=add_options,
    complete=complete,
    run=run,
)
