"""A small call beside a large transfer: how much longer does it take than on an idle connection?"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Route,
    open_node,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import Connection, ServiceChannel

EXPLANATION: Final = """\
Two nodes in this process, one connection with mutual TLS over loopback. First 10-byte calls one after the other on the
idle connection, then the same while another channel sends 16 MiB messages back to back. Fragments of different channels
interleave, so a call waits for what is pending before it, and never for a whole large message.

What is reported: the calls' round-trip times, median and 99th percentile, microseconds; the ratios of busy to idle; how
long one 16 MiB message took meanwhile.
"""

MESSAGE: Final = 16 * 1024 * 1024


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def swallow(channel: ServiceChannel) -> None:
    """Read to the end."""
    async for _ in channel:
        pass


def options(ca: CertificateAuthority, name: str, network: NetworkOptions) -> NodeOptions:
    """A node with mutual TLS."""
    manager = CertAuthManager(
        ca.issue(name), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )
    return NodeOptions(cert_manager=manager, network=network, services={"echo": echo, "swallow": swallow})


async def timed_calls(connection: Connection, count: int) -> list[float]:
    """Round-trip times of small calls, one after the other, in seconds."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        await connection.call("echo", b"0123456789")
        times.append(time.perf_counter() - begin)
    return times


async def measure(calls: int) -> dict[str, object]:
    """Both halves on one connection."""
    ca = CertificateAuthority.create()
    listens = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    beta_options = options(ca, "beta@localhost", listens)
    alpha_options = options(ca, "alpha@localhost", NetworkOptions(mode=NetworkMode.HIDDEN))
    async with open_node("beta@localhost", beta_options) as beta, open_node("alpha@localhost", alpha_options) as alpha:
        host, port = beta.acceptors[0].address
        connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
        await timed_calls(connection, calls // 10)
        idle = await timed_calls(connection, calls)
        transfers: list[float] = []
        under_way = trio.Event()

        async def transfer() -> None:
            message = bytes(MESSAGE)
            async with connection.open_channel("swallow") as channel:
                while True:
                    begin = time.perf_counter()
                    await channel.send(message)
                    transfers.append(time.perf_counter() - begin)
                    under_way.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer)
            await under_way.wait()
            busy = await timed_calls(connection, calls)
            nursery.cancel_scope.cancel()
    return report(idle, busy, transfers)


def report(idle: list[float], busy: list[float], transfers: list[float]) -> dict[str, object]:
    """The figures."""

    def quantiles(times: list[float]) -> tuple[float, float]:
        return statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6

    (idle_median, idle_p99), (busy_median, busy_p99) = quantiles(idle), quantiles(busy)
    packages = ["trionode", "trio", "pyOpenSSL", "cryptography"]
    return {
        "scenario": "interleaving",
        "calls": len(idle),
        "idle_us_median": round(idle_median, 1),
        "idle_us_p99": round(idle_p99, 1),
        "busy_us_median": round(busy_median, 1),
        "busy_us_p99": round(busy_p99, 1),
        "median_ratio": round(busy_median / idle_median, 2),
        "p99_ratio": round(busy_p99 / idle_p99, 2),
        "large_messages": len(transfers),
        "large_message_ms_median": round(statistics.median(transfers) * 1e3, 1),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=EXPLANATION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--calls", type=int, default=2000, help="small calls per half (default: 2000)")
    parser.add_argument("--quick", action="store_true", help="100 calls: what the test suite runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, for scripts")
    chosen = parser.parse_args(arguments)
    calls = 100 if chosen.quick else chosen.calls
    print(f"{calls} calls on an idle connection, then {calls} beside 16 MiB messages …", file=sys.stderr)
    figures = trio.run(measure, calls)
    if chosen.json:
        print(json.dumps(figures))
    else:
        print(f"{'':24}{'median':>12}{'p99':>12}")
        print(f"{'idle, µs':24}{figures['idle_us_median']:>12}{figures['idle_us_p99']:>12}")
        print(f"{'beside 16 MiB, µs':24}{figures['busy_us_median']:>12}{figures['busy_us_p99']:>12}")
        print(f"{'ratio':24}{figures['median_ratio']:>12}{figures['p99_ratio']:>12}")
        print(f"one 16 MiB message meanwhile: {figures['large_message_ms_median']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
