"""A node under a flood of clients that never finish a handshake: do honest peers get in, and soon?"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import trio

from benchmarks import child
from benchmarks.latency import Latency
from benchmarks.stress.log import watching_log
from benchmarks.stress.nodes import accepting, manager_of, route_to
from benchmarks.stress.program import Program, Progress, Result
from trionode import HandshakeError, NetworkMode, NetworkOptions, NodeOptions, open_node
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator

    from trionode import Acceptor, Node, Route

EXPLANATION: Final = """\
Opens a node, and in a second process a crowd of clients that connect to it over loopback and never finish a handshake:
a fifth of them say nothing, a fifth send one byte at a time, a fifth send garbage, a fifth finish TLS with a
certificate of 50 KB that no CA has signed, a fifth with a good one, and send KeyUpdates without end. A client that is
disconnected comes back a little later. Meanwhile honest peers connect to the node with mutual TLS, one after the other,
as they did before the flood began.

Every honest connect has to succeed and, but with --quick, its median must be at most twice what it was in the quiet.

What is reported:
  quiet     connect of an honest peer before the flood
  flooded   the same beside it
  failed    honest connects that failed
  accepted  TCP connections that the node accepted meanwhile, honest ones included
  shed      of these, ended because there were too many unfinished (max_handshakes, max_handshakes_per_address)
"""

ALPHA, BETA, EVE = "alpha@localhost", "beta@localhost", "eve@localhost"
#: How much longer an honest connect may take beside the flood.
SLOWER: Final = 2.0
#: Between two honest connects. Seconds.
PAUSE: Final = 0.01
#: How long the crowd may take until each client has connected once. Seconds.
PATIENCE: Final = 60.0


@dataclass(kw_only=True)
class Flooded(Result):
    """What came out; the fields are explained by `--help`."""

    crowd: int
    seconds: float
    quiet: Latency = field(default_factory=Latency)
    flooded: Latency = field(default_factory=Latency)
    failed: int = 0
    accepted: int = 0
    shed: int = 0

    @property
    def slower(self) -> float:
        """How many times as long an honest connect took beside the flood."""
        return self.flooded.median_ms / self.quiet.median_ms if self.quiet.count else 0.0

    def judge(self, *, by_time: bool) -> None:
        """Note what is not as it should be."""
        if self.failed:
            self.problems.append(f"{self.failed} honest connects failed")
        if not (self.quiet.count and self.flooded.count):
            self.problems.append("no honest peer connected")
        if by_time and self.slower > SLOWER:
            self.problems.append(f"honest connects took {self.slower:.1f} times as long as in the quiet")

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "quiet": self.quiet,
            "flooded": f"{self.flooded}; {self.slower:.2f} times as long",
            "failed": self.failed,
            "accepted": f"{self.accepted}, {self.shed} shed",
        }
        headline = f"{self.crowd} clients for {self.seconds:g} s: {self.verdict('every honest peer gets in')}"
        return "\n".join([headline, *(f"  {title:9} {text}" for title, text in lines.items())])


@asynccontextmanager
async def crowd(acceptor: Acceptor, size: int, directory: str) -> AsyncIterator[bool]:
    """A crowd in a process of its own, for the length of a block; gives whether all have connected before it begins."""
    nicer = partial(os.nice, 10)  # the flood is what is tested, not which of the two gets the processor
    where = acceptor.address[1], size, directory
    async with child.running("benchmarks.stress.flood.crowd", *where, preexec_fn=nicer):
        goal = acceptor.statistics().accepted + size
        with trio.move_on_after(PATIENCE):
            while acceptor.statistics().accepted < goal:  # noqa: ASYNC110 -- there is no event for it
                await trio.sleep(0.02)
        yield acceptor.statistics().accepted >= goal


async def connect_honestly(alpha: Node, route: Route, result: Flooded, seconds: float) -> Latency:
    """Connect and close, one after the other; failures are counted and logged."""
    took: list[float] = []
    with trio.move_on_after(seconds):
        while True:
            began = trio.current_time()
            try:
                connection = await alpha.connect(BETA, route)
            except HandshakeError as exc:
                result.failed += 1
                result.problems.append(f"an honest connect failed: {exc}")
            else:
                took.append(trio.current_time() - began)
                await connection.aclose()
            await trio.sleep(PAUSE)
    return Latency.of(took)


async def measure(size: int, seconds: float, progress: Progress, *, by_time: bool) -> Flooded:
    """Quiet, then flooded."""
    ca, result = CertificateAuthority.create(), Flooded(crowd=size, seconds=seconds)
    beta_options = NodeOptions(cert_manager=manager_of(ca, BETA), network=accepting())
    alpha_options = NodeOptions(cert_manager=manager_of(ca, ALPHA), network=NetworkOptions(mode=NetworkMode.HIDDEN))
    async with open_node(BETA, beta_options) as beta, open_node(ALPHA, alpha_options) as alpha:
        [acceptor], route = beta.acceptors, route_to(beta)
        progress.say("quiet")
        result.quiet = await connect_honestly(alpha, route, result, seconds / 4)
        before = acceptor.statistics()
        progress.say(f"{size} arrive")
        with TemporaryDirectory() as directory:
            write_key_pair(ca.issue(EVE), Path(directory, "cert.pem"), Path(directory, "key.pem"))
            async with crowd(acceptor, size, directory) as all_here:
                if not all_here:
                    result.problems.append(f"not all of {size} clients connected in {PATIENCE:g} s: a busy machine?")
                result.flooded = await connect_honestly(alpha, route, result, seconds)
        after = acceptor.statistics()
    result.accepted = after.accepted - before.accepted
    result.shed = after.shed - before.shed
    result.judge(by_time=by_time)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and how long."""
    parser.add_argument("--crowd", type=int, metavar="N", help="how many clients; by default 2000")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long the flood goes on; by default 20")


def complete(options: argparse.Namespace) -> str | None:
    """At least one client, for some time."""
    if options.crowd is None:
        options.crowd = 60 if options.quick else 2000
    if options.seconds is None:
        options.seconds = 0.5 if options.quick else 20.0
    if options.crowd < 1:
        return "--crowd is one at least"
    return None if 0 < options.seconds < float("inf") else "--seconds is a positive number"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One flood."""
    by_time = not options.quick
    with watching_log() as log:  # each refusal is a warning there; here they are counted
        result = trio.run(lambda: measure(options.crowd, options.seconds, progress, by_time=by_time))
    result.problems += log.errors
    yield result


PROGRAM: Final = Program(
    name="flood",
    asks="Thousands of clients that never finish a handshake: do honest peers get in, and soon?",
    explanation=EXPLANATION,
    examples=[("", "2000 clients, for 20 seconds"), ("--crowd 5000 --seconds 60 --json", "")],
    quick="60 clients for half a second, not judged by time",
    add_options=add_options,
    complete=complete,
    run=run,
)
