"""The process that measures one contestant, and the one that is its other end.

A contestant has a process of its own for the whole of a scenario: what one leaves behind (memory, threads, caches of
an event loop) does not touch another, imports are done before the first sample, and a contestant that is not at turn
waits in a read and costs nothing. Requests come as JSON lines on standard input, answers go out as JSON lines.

The garbage collector stays on, as in a program. Before each sample all objects are collected and then frozen, so
that a collection during it looks only at what was made during it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import child

from .credentials import Credentials
from .model import Job, Placement, Sample, Server
from .peers import load
from .scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TextIO

    from .model import Scenario

#: The most operations of a sample.
MOST: Final = 10_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure when told to, until standard input ends; or serve until then."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.worker", description=__doc__)
    parser.add_argument("credentials", type=Path, help="directory of certificates")
    parser.add_argument("--serve", metavar="PEER", help="be the other end, of a module in benchmarks.suite.peers")
    parser.add_argument("--scenario")
    parser.add_argument("--contestant")
    parser.add_argument("--placement", type=Placement, default=Placement.ONE)
    parser.add_argument("--quick", action="store_true")
    told = parser.parse_args(arguments)
    raise_file_limit()
    answers = claim_stdout()
    if told.serve is not None:
        serve(told.serve, Credentials(told.credentials), answers)
        return 0
    scenario = SCENARIOS[told.scenario]
    with ExitStack() as stack:
        server = None
        contestant = scenario.contestant(told.contestant)
        if told.placement is Placement.TWO:
            assert contestant.peer is not None
            server = stack.enter_context(other_end(contestant.peer, told.credentials))
        parameters = parameters_of(scenario, quick=told.quick)
        job = Job(credentials=Credentials(told.credentials), parameters=parameters, count=scenario.start, server=server)
        say(answers, {"ready": True})
        for line in sys.stdin:
            say(answers, answer(contestant.measure, job, json.loads(line)))
    return 0


def parameters_of(scenario: Scenario, *, quick: bool) -> Mapping[str, float]:
    """The scenario's parameters, with those that are smaller in quick mode."""
    return {**scenario.full, **(scenario.quick if quick else {})}


def answer(measure: Callable[[Job], Sample], job: Job, request: Mapping[str, Any]) -> dict[str, object]:
    """One sample of so many operations, or, told how many seconds they should take, how many that are."""
    job = replace(job, count=request["count"])
    try:
        if request.get("seconds") is not None:
            return {"count": calibrate(lambda count: measure(replace(job, count=count)), job.count, request["seconds"])}
        gc.collect()
        gc.freeze()
        return {"sample": asdict(measure(job))}
    except Exception as crash:  # noqa: BLE001 -- whatever it is, it is reported, and the runner decides
        return {"error": f"{type(crash).__name__}: {crash}"}


def calibrate(measure: Callable[[int], Sample], count: int, seconds: float) -> int:
    """How many operations take about so many seconds; the warm-up, too."""
    while True:
        sample = measure(count)
        if sample.wall * 3 >= seconds or count >= MOST:
            return max(1, min(MOST, round(sample.work * seconds / sample.wall)))
        count = min(MOST, count * 4)


# The other end ------------------------------------------------------------------------------------------------------


@contextmanager
def other_end(peer: str, credentials: Path) -> Iterator[Server]:
    """A process that serves, for the length of a block; it ends with its standard input."""
    command = child.command("benchmarks.suite.worker", credentials, "--serve", peer)
    pipe, environment = subprocess.PIPE, child.environment()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        try:
            yield Server(ports=said["ports"], pid=process.pid)
        finally:
            process.stdin.close()


def serve(peer_name: str, credentials: Credentials, answers: TextIO) -> None:
    """Serve until standard input ends."""
    peer = load(peer_name, credentials)

    def end_with_stdin() -> None:
        sys.stdin.read()
        os._exit(0)

    async def main() -> None:
        async with peer.serve() as ports:
            say(answers, {"ports": list(ports)})
            threading.Thread(target=end_with_stdin, daemon=True).start()
            while True:
                await peer.sleep(3600)

    peer.run(main)


# Plumbing -----------------------------------------------------------------------------------------------------------


def claim_stdout() -> TextIO:
    """Standard output for answers alone: whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def say(answers: TextIO, message: Mapping[str, object]) -> None:
    """One line."""
    print(json.dumps(message), file=answers, flush=True)


def raise_file_limit() -> None:
    """A thousand connections with both ends here are two thousand files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
