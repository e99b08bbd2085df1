"""A flood of clients that never finish a handshake, while honest peers connect: do these get in, and soon?"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Route,
    open_node,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import Node

EXPLANATION: Final = """\
Opens a node, and in a second process a crowd that connects to it over loopback and means no good: a third of them say
nothing, a third send one byte at a time, a third send garbage. Who is thrown out comes back a little later. Meanwhile
honest peers connect to the node with mutual TLS, one after the other, as they did before the flood began.

The exit status is 0 if every honest connect succeeded and, but with --quick, its median was at most twice what it was
in the quiet; 1 otherwise.

What is reported:
  quiet, flooded    connect of an honest peer, median and 99th percentile, milliseconds
  ratio             of the two medians
  failed            honest connects that failed
  accepted          TCP connections that the node accepted meanwhile
  shed              of these, ended because there were too many unfinished (max_handshakes, max_handshakes_per_address)
"""

EXAMPLES: Final = """\
examples:
  python benchmarks/stress/flood.py                 2000 in the crowd, for 20 seconds
  python benchmarks/stress/flood.py --quick         60 of them, for a second or so: what the test suite runs
  python benchmarks/stress/flood.py --crowd 5000 --seconds 60 --json
"""

#: How long who was thrown out stays away. Seconds, up to.
AWAY: Final = 3.0
#: Between the single bytes of those who drip. Seconds.
DRIP: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out, as it is reported."""

    scenario: str
    crowd: int
    seconds: float
    quiet_ms_median: float
    quiet_ms_p99: float
    flooded_ms_median: float
    flooded_ms_p99: float
    ratio: float
    honest: int
    failed: int
    accepted: int
    shed: int
    ok: bool
    problems: list[str]
    versions: dict[str, str]


# The crowd ------------------------------------------------------------------------------------------------------------


async def trouble(number: int, port: int) -> None:
    """One of the crowd, for ever."""
    draw = random.Random(number)  # noqa: S311 -- as random as it has to be
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                if number % 3 == 1:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drip, stream, nursery.cancel_scope)
                        await until_thrown_out(stream)
                        nursery.cancel_scope.cancel()
                elif number % 3 == 2:
                    await stream.send_all(draw.randbytes(draw.randrange(1, 2000)))
                await until_thrown_out(stream)
        await trio.sleep(draw.uniform(0, AWAY))


async def drip(stream: trio.SocketStream, over: trio.CancelScope) -> None:
    """Begin a TLS record, and take all the time in the world."""
    with suppress(trio.BrokenResourceError):
        for byte in b"\x16\x03\x01\x02\x00" + bytes(512):
            await stream.send_all(bytes([byte]))
            await trio.sleep(DRIP)
    over.cancel()


async def until_thrown_out(stream: trio.SocketStream) -> None:
    """Wait for the other end to have enough."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


async def make_trouble(crowd: int, port: int) -> None:
    """All of them, come in over a second, until this process is ended."""
    async with trio.open_nursery() as nursery:
        for number in range(crowd):
            nursery.start_soon(trouble, number, port)
            await trio.sleep(1 / crowd)
        print("all here", flush=True)


# The node and its honest peers ----------------------------------------------------------------------------------------


def options(ca: CertificateAuthority, name: str, network: NetworkOptions) -> NodeOptions:
    """Mutual TLS."""
    manager = CertAuthManager(
        ca.issue(name), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )
    return NodeOptions(cert_manager=manager, network=network)


async def honest(alpha: Node, route: Route, seconds: float) -> tuple[list[float], int]:
    """Connect and close, one after the other: how long each took, and how many failed."""
    took: list[float] = []
    failed = 0
    with trio.move_on_after(seconds):
        while True:
            began = trio.current_time()
            try:
                connection = await alpha.connect("beta@localhost", route)
            except HandshakeError as exc:
                failed += 1
                print(f"an honest connect failed: {exc}", file=sys.stderr)
            else:
                took.append((trio.current_time() - began) * 1000)
                await connection.aclose()
            await trio.sleep(0.01)
    return took, failed


async def measure(crowd: int, seconds: float, *, strict: bool) -> Result:
    """Quiet, then flooded."""
    ca = CertificateAuthority.create()
    here = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    async with (
        open_node("beta@localhost", options(ca, "beta@localhost", here)) as beta,
        open_node("alpha@localhost", options(ca, "alpha@localhost", NetworkOptions(mode=NetworkMode.HIDDEN))) as alpha,
    ):
        [acceptor] = beta.acceptors
        route = Route(host="127.0.0.1", port=acceptor.address[1])
        print("flood: quiet", file=sys.stderr)
        quiet, failed = await honest(alpha, route, seconds / 4)
        before = acceptor.statistics()
        print(f"flood: {crowd} arrive", file=sys.stderr)
        command = [sys.executable, __file__, "--attack", str(acceptor.address[1]), "--crowd", str(crowd)]
        # Less urgent than the node: the flood is what is tested, not who gets the processor.
        async with trio.open_nursery() as nursery:
            crowd_runs = partial(
                trio.run_process,
                command,
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda: os.nice(10),
                check=False,
            )
            attackers = await nursery.start(crowd_runs)
            await trio.sleep(1.5)
            flooded, failures = await honest(alpha, route, seconds)
            attackers.kill()
        after = acceptor.statistics()
    failed += failures
    ratio = statistics.median(flooded) / statistics.median(quiet) if quiet and flooded else float("inf")
    problems = [f"{failed} honest connects failed"] if failed else []
    if strict and ratio > 2:
        problems.append(f"honest connects took {ratio:.1f} times as long as in the quiet")
    packages = ["trionode", "trio", "pyOpenSSL", "cryptography"]
    return Result(
        scenario="flood",
        crowd=crowd,
        seconds=seconds,
        quiet_ms_median=statistics.median(quiet or [float("inf")]),
        quiet_ms_p99=percentile(quiet),
        flooded_ms_median=statistics.median(flooded or [float("inf")]),
        flooded_ms_p99=percentile(flooded),
        ratio=ratio,
        honest=len(quiet) + len(flooded),
        failed=failed,
        accepted=after.accepted - before.accepted,
        shed=after.shed - before.shed,
        ok=not problems,
        problems=problems,
        versions={"python": platform.python_version(), **{package: version(package) for package in packages}},
    )


def percentile(values: Sequence[float]) -> float:
    """The 99th."""
    return sorted(values)[int(len(values) * 0.99)] if values else float("inf")


def show(result: Result) -> None:
    """For people."""
    rows = [
        ("quiet", f"{result.quiet_ms_median:.1f} ms", f"p99 {result.quiet_ms_p99:.1f} ms"),
        ("flooded", f"{result.flooded_ms_median:.1f} ms", f"p99 {result.flooded_ms_p99:.1f} ms"),
        ("ratio", f"{result.ratio:.2f}", f"{result.crowd} in the crowd"),
        ("honest", f"{result.honest}", f"{result.failed} failed"),
        ("accepted", f"{result.accepted}", f"{result.shed} shed"),
    ]
    for label, value, more in rows:
        print(f"{label:<10} {value:>12}   {more}")
    for problem in result.problems:
        print(f"PROBLEM: {problem}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=EXPLANATION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crowd", type=int, default=2000, help="how many in the crowd (default: 2000)")
    parser.add_argument("--seconds", type=float, default=20, help="how long the flood is watched (default: 20)")
    parser.add_argument("--quick", action="store_true", help="60 in the crowd, a second; not judged by time")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--attack", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.attack is not None:
        trio.run(make_trouble, given.crowd, given.attack)
        return 0
    logging.getLogger("trionode").setLevel(logging.ERROR)  # each refusal is a warning there; here they are counted
    crowd, seconds = (60, 1.0) if given.quick else (given.crowd, given.seconds)
    result = trio.run(lambda: measure(crowd, seconds, strict=not given.quick))
    if given.json:
        print(json.dumps(asdict(result)))
    else:
        show(result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
