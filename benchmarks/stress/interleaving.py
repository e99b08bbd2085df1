"""A small call beside a large transfer: does it wait for a whole large message?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.latency import Latency
from trionode import NetworkMode, NetworkOptions, NodeOptions, open_node
from trionode.pki import CertificateAuthority

from .nodes import accepting, echo, manager_of, route_to
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import Connection, ServiceChannel

EXPLANATION: Final = """\
Two nodes in this process, one connection with mutual TLS over loopback. First 10-byte calls one after the other on the
idle connection, then the same while another channel sends 16 MiB messages back to back. Fragments of different channels
interleave, so a call waits for what is pending before it, and never for a whole large message: half of the calls beside
the transfer have to be faster than half of the large messages.

What is reported:
  idle      round trip of a call on the idle connection
  busy      the same beside the transfer
  transfer  how long each large message took meanwhile
"""

ALPHA, BETA = "alpha@localhost", "beta@localhost"
#: The largest message that there is by default.
MESSAGE: Final = 16 * 1024 * 1024


@dataclass(kw_only=True)
class Interleaved(Result):
    """What came out; the fields are explained by `--help`."""

    idle: Latency
    busy: Latency
    transfer: Latency

    def report(self) -> str:
        """The figures, for people."""
        slower = self.busy.median_ms / self.idle.median_ms
        lines = {"idle": self.idle, "busy": f"{self.busy}; {slower:.1f} times idle", "transfer": self.transfer}
        headline = f"{self.idle.count} calls each: {self.verdict('none waits for a whole large message')}"
        return "\n".join([headline, *(f"  {title:8}  {text}" for title, text in lines.items())])


async def discard(channel: ServiceChannel) -> None:
    """A service that reads to the end."""
    async for _ in channel:
        pass


async def timed_calls(connection: Connection, count: int) -> Latency:
    """Small calls, one after the other."""
    took: list[float] = []
    for _ in range(count):
        began = trio.current_time()
        await connection.call("echo", b"0123456789")
        took.append(trio.current_time() - began)
    return Latency.of(took)


async def measure(calls: int, progress: Progress) -> Interleaved:
    """Idle, then busy, on one connection."""
    ca = CertificateAuthority.create()
    services = {"echo": echo, "discard": discard}
    beta_options = NodeOptions(cert_manager=manager_of(ca, BETA), network=accepting(), services=services)
    alpha_options = NodeOptions(cert_manager=manager_of(ca, ALPHA), network=NetworkOptions(mode=NetworkMode.HIDDEN))
    async with open_node(BETA, beta_options) as beta, open_node(ALPHA, alpha_options) as alpha:
        connection = await alpha.connect(BETA, route_to(beta))
        await timed_calls(connection, max(1, calls // 10))
        progress.say(f"{calls} calls on the idle connection")
        idle = await timed_calls(connection, calls)
        took: list[float] = []
        under_way = trio.Event()

        async def transfer() -> None:
            message = bytes(MESSAGE)
            async with connection.open_channel("discard") as channel:
                while True:
                    began = trio.current_time()
                    await channel.send(message)
                    took.append(trio.current_time() - began)
                    under_way.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer)
            await under_way.wait()
            progress.say(f"{calls} calls beside messages of 16 MiB")
            busy = await timed_calls(connection, calls)
            nursery.cancel_scope.cancel()
    result = Interleaved(idle=idle, busy=busy, transfer=Latency.of(took))
    if result.busy.median_ms >= result.transfer.median_ms:
        result.problems.append("a call takes as long as a whole large message")
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """The number of calls."""
    parser.add_argument("--calls", type=int, metavar="N", help="idle, and again busy; by default 2000")


def complete(options: argparse.Namespace) -> str | None:
    """At least one call."""
    if options.calls is None:
        options.calls = 100 if options.quick else 2000
    return None if options.calls >= 1 else "--calls is one at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One connection."""
    yield trio.run(measure, options.calls, progress)


PROGRAM: Final = Program(
    name="interleaving",
    asks="Small calls beside messages of 16 MiB, the largest there are: does a call wait for a whole message?",
    explanation=EXPLANATION,
    examples=[("", "2000 calls idle, 2000 busy"), ("--calls 100000 --json", "")],
    quick="100 calls idle, 100 busy",
    add_options=add_options,
    complete=complete,
    run=run,
)
