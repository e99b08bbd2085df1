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
from benchmarks.stress.nodes import LOOPBACK, manager_of
from benchmarks.stress.program import Program, Progress, Result
from trionode import (
    AcceptorOptions,
    ClientAuth,
    EndReason,
    HandshakeError,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Route,
    open_node,
)
from trionode._handshake.admission import MAX_HANDSHAKES_PER_ADDRESS
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

from .crowd import OVERSTAYING
from .overstay import SPRING, spring

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator, Sequence

    from trionode import Acceptor, Node

EXPLANATION: Final = """\
Opens a node, and in a second process a crowd of clients that connect to it over loopback and are up to no good: a sixth
of them say nothing, a sixth send one byte at a time, a sixth send garbage, a sixth finish TLS with a certificate of
50 KB that no CA has signed, a sixth with a good one, and send KeyUpdates without end; and a sixth are let in without a
certificate, by an acceptor that asks for none, have the node send them more than they take, and take a few bytes now
and then, so that they are evicted (max_unverified) and do not go. A client that is disconnected comes back a little
later. Meanwhile honest peers connect to the node with mutual TLS, one after the other, as they did before.

Every honest connect has to succeed and, but with --quick, its median must be at most twice what it was in the quiet.
The node must not have more connections, descriptors or memory than its limits say, and in the end it has none left.

What is reported:
  quiet     connect of an honest peer before the flood
  flooded   the same beside it
  failed    honest connects that failed
  accepted  TCP connections that the node accepted meanwhile, honest ones included
  shed      of these, ended because there were too many unfinished (max_handshakes, max_handshakes_per_address)
  evicted   peers without a certificate that had to go (max_unverified)
  most      connections and descriptors at a time, and memory more than before
"""

ALPHA, BETA, EVE = "alpha@localhost", "beta@localhost", "eve@localhost"
#: How much longer an honest connect may take beside the flood.
SLOWER: Final = 2.0
#: Between two honest connects. Seconds.
PAUSE: Final = 0.01
#: Between two looks. Seconds.
LOOK: Final = 0.02
#: How long the crowd may take until each client has connected once. Seconds.
PATIENCE: Final = 60.0
#: How many strangers the node bears, and how many honest connections there are beside them: one that opens, and one
#: that closes, at either end.
MAX_UNVERIFIED: Final = 4
HONEST: Final = 2
#: What that and unfinished handshakes take, on two acceptors.
DESCRIPTORS: Final = 2 * MAX_HANDSHAKES_PER_ADDRESS + MAX_UNVERIFIED + 2 * HONEST + 4
#: Memory for them all: a TLS session takes up to 100 KiB, and what is to be sent to a stranger a window. MiB.
GROWN_MIB: Final = 96.0


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
    evicted: int = 0
    most_connections: int = 0
    most_descriptors: int = 0
    grown_mib: float = 0.0

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
        if self.most_connections > MAX_UNVERIFIED + HONEST:
            self.problems.append(f"{self.most_connections} connections, where {MAX_UNVERIFIED} may be strangers'")
        if self.most_descriptors > DESCRIPTORS:
            self.problems.append(f"{self.most_descriptors} descriptors more than before the flood")
        if self.grown_mib > GROWN_MIB:
            self.problems.append(f"{self.grown_mib:.1f} MiB more memory than before the flood")
        if by_time and self.slower > SLOWER:
            self.problems.append(f"honest connects took {self.slower:.1f} times as long as in the quiet")

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "quiet": self.quiet,
            "flooded": f"{self.flooded}; {self.slower:.2f} times as long",
            "failed": self.failed,
            "accepted": f"{self.accepted}, {self.shed} shed",
            "evicted": self.evicted,
            "most": f"{self.most_connections} connections, {self.most_descriptors} descriptors, "
            f"{self.grown_mib:.1f} MiB more than before",
        }
        headline = f"{self.crowd} clients for {self.seconds:g} s: {self.verdict('every honest peer gets in')}"
        return "\n".join([headline, *(f"  {title:9} {text}" for title, text in lines.items())])


class Usage:
    """What the node takes, at most."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._descriptors, self._memory = self._now()
        self.most_connections = self.most_descriptors = 0
        self.grown_mib = 0.0

    @staticmethod
    def _now() -> tuple[int, float]:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return len(os.listdir("/proc/self/fd")), int(status.split("RssAnon:")[1].split()[0]) / 1024  # noqa: PTH208

    def look(self) -> None:
        """Look once."""
        descriptors, memory = self._now()
        self.most_connections = max(self.most_connections, self._node.statistics().connections)
        self.most_descriptors = max(self.most_descriptors, descriptors - self._descriptors)
        self.grown_mib = max(self.grown_mib, round(memory - self._memory, 1))

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await trio.sleep(LOOK)

    async def wait_gone(self) -> bool:
        """Whether nothing is left, after a while."""
        with trio.move_on_after(PATIENCE):
            while self._node.statistics().connections or self._now()[0] > self._descriptors:  # noqa: ASYNC110
                await trio.sleep(LOOK)
            return True
        return False


@asynccontextmanager
async def crowd(acceptors: Sequence[Acceptor], size: int, directory: str) -> AsyncIterator[bool]:
    """A crowd in a process of its own, for the length of a block; gives whether all have connected before it begins."""
    nicer = partial(os.nice, 10)  # the flood is what is tested, not which of the two gets the processor
    where = *(each.address[1] for each in acceptors), size, directory

    def accepted() -> int:
        return sum(each.statistics().accepted for each in acceptors)

    async with child.running("benchmarks.stress.flood.crowd", *where, preexec_fn=nicer):
        goal = accepted() + size - max(0, size // 6 - OVERSTAYING)  # the others wait for their turn
        with trio.move_on_after(PATIENCE):
            while accepted() < goal:  # noqa: ASYNC110 -- there is no event for it
                await trio.sleep(LOOK)
        yield accepted() >= goal


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
    strangers = manager_of(ca, BETA, client_auth=ClientAuth.NO_CLIENT_CERT)
    acceptors = [AcceptorOptions(host=LOOPBACK, port=0), AcceptorOptions(host=LOOPBACK, port=0, cert_manager=strangers)]
    network = NetworkOptions(acceptors=acceptors, max_unverified=MAX_UNVERIFIED)
    beta_options = NodeOptions(cert_manager=manager_of(ca, BETA), network=network, services={SPRING: spring})
    alpha_options = NodeOptions(cert_manager=manager_of(ca, ALPHA), network=NetworkOptions(mode=NetworkMode.HIDDEN))
    async with open_node(BETA, beta_options) as beta, open_node(ALPHA, alpha_options) as alpha:
        route = Route(host=LOOPBACK, port=beta.acceptors[0].address[1])
        progress.say("quiet")
        result.quiet = await connect_honestly(alpha, route, result, seconds / 4)
        before, usage = [each.statistics() for each in beta.acceptors], Usage(beta)
        progress.say(f"{size} arrive")
        with TemporaryDirectory() as directory:
            write_key_pair(ca.issue(EVE), Path(directory, "cert.pem"), Path(directory, "key.pem"))
            write_ca_pool(ca.pool, Path(directory, "ca.pem"))
            async with crowd(beta.acceptors, size, directory) as all_here, trio.open_nursery() as nursery:
                if not all_here:
                    result.problems.append(f"not all of {size} clients connected in {PATIENCE:g} s: a busy machine?")
                nursery.start_soon(usage.watch)
                result.flooded = await connect_honestly(alpha, route, result, seconds)
                nursery.cancel_scope.cancel()
        after = [each.statistics() for each in beta.acceptors]
        if not await usage.wait_gone():
            result.problems.append(f"connections or descriptors are left {PATIENCE:g} s after the flood")
        result.most_connections, result.most_descriptors = usage.most_connections, usage.most_descriptors
        result.grown_mib, result.evicted = usage.grown_mib, beta.statistics().ends[EndReason.LIMIT]
    result.accepted = sum(each.accepted for each in after) - sum(each.accepted for each in before)
    result.shed = sum(each.shed for each in after) - sum(each.shed for each in before)
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
    asks="Thousands of clients that never finish a handshake, or never go: do honest peers get in, and soon?",
    explanation=EXPLANATION,
    examples=[("", "2000 clients, for 20 seconds"), ("--crowd 5000 --seconds 60 --json", "")],
    quick="60 clients for half a second, not judged by time",
    add_options=add_options,
    complete=complete,
    run=run,
)
