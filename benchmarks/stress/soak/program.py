"""Nodes in processes of their own, for hours if you like, while everything goes wrong: is anything lost in silence?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.machine import not_installed
from benchmarks.stress.program import Program, Progress, Result

from . import chart
from .run import Pace, measure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXPLANATION: Final = """\
Runs nodes, each in a process of its own, with mutual TLS over loopback. Every way from one node to another leads
through a forwarder in this process, which can cut and stall it. By chance, from a seed:

  talks       channels with numbered messages both ways, of a few bytes to 300 KiB; calls
  connects    dials, of nodes that are there or not
  rotations   new certificates; now and then another CA: trusted beside the old one, used, and the old one retired
  hand-overs  by hand; and for each node, drawn anew whenever it opens: on rotation connections stay, are closed, or are
              handed over
  reopenings  a node drains, and opens again
  drains      of one connection, while everything goes on
  floods      a stranger with a good certificate sends KeyUpdates without end, in place of a hello
  interrupts  SIGINT, as Ctrl-C sends it, and a new process after a while: it has to end by that, and by nothing else
  kills       SIGKILL, and a new process after a while. Never of the first node, whose memory is to be watched
  stops       SIGSTOP, and SIGCONT after a while
  partitions  between two nodes: connections are reset and refused, or nothing arrives any more and neither side is told

In the end everything is healed, and every node talks to every other one while connections are handed over: now nothing
may fail. Then every connection is closed, and the books are balanced. It has to hold that

  - every message that was sent was delivered, or its sender was told that the channel is broken (or was killed itself)
  - none came twice, none out of order, none changed; no call ran twice; no channel ended as if it were complete, and
    was not; nothing hangs
  - no handshake was refused for a certificate, and no peer broke the protocol: rotations never cost a handshake
  - idle again, each process has as many descriptors and tasks as at first, and the first one's memory does not grow

Nothing needs privileges; memory and descriptors are read from /proc.

What is reported:
  messages    sent = delivered + lost, by what their senders were told; doubled, reordered
  talks       and calls, by how they ended for the side that began them
  handshakes  by outcome, as the nodes' events tell it, both sides (those of a killed process to within a second)
  memory      anonymous, of the first node's process: at a third of the run, at the end, and the trend between
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Size, time and a chart."""
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; by default 300")
    parser.add_argument("--nodes", type=int, metavar="N", help="how many; by default 5")
    parser.add_argument(
        "--rate", type=float, metavar="N", help="exchanges that each node begins per second; by default 2"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart: .svg, .png or .pdf")


def complete(options: argparse.Namespace) -> str | None:
    """Some nodes, for some time; and a chart only where it can be drawn."""
    options.pace = pace = Pace.of(quick=options.quick, seconds=options.seconds, nodes=options.nodes, rate=options.rate)
    if not 0 < pace.seconds < float("inf"):
        return "--seconds is a positive number"
    if not 2 <= pace.nodes <= 100:
        return "--nodes is from 2 to 100"
    if not 0 < pace.rate < float("inf"):
        return "--rate is a positive number"
    if options.chart is not None and (problem := not_installed("matplotlib")) is not None:
        return f"--chart: {problem}"
    return None


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One run, and its chart."""
    result = trio.run(measure, options.pace, options.seed, progress)
    if options.chart is not None:
        chart.draw(result, options.chart)
    yield result


PROGRAM: Final = Program(
    name="soak",
    asks="Nodes that are killed, stopped, parted, reopened and rotated for days: is anything lost in silence?",
    explanation=EXPLANATION,
    examples=[
        ("", "five nodes, five minutes"),
        ("--seconds 86400 --nodes 8 --json --chart soak.svg", "a day"),
        ("--seed 12345", "the same things at the same times, whatever comes of them"),
    ],
    quick="three nodes for two seconds, with faults in quick succession",
    seeded=True,
    add_options=add_options,
    complete=complete,
    run=run,
)
