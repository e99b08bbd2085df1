"""A program that is interrupted (SIGINT) at random moments of its handshakes: does it end, and say only that?"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import child
from benchmarks.stress.program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXPLANATION: Final = """\
Starts a process in which two nodes connect, call and close, again and again, with mutual TLS; sends it SIGINT at a
moment drawn at random, most of them in the middle of a handshake; and does so again.

Each time the process has to end by KeyboardInterrupt, within seconds. Where that hits a task of a node, the program's
own use of the node fails with it (ClosedResourceError, BrokenResourceError); with anything else it must not fail. No
valid peer may have been refused, and no coroutine left behind ("never awaited"). A node may log that the other, which
ended, has closed the connection in the middle of a handshake.

What is reported:
  rounds  how often it was interrupted
"""

#: How long a process may take to begin, and to end. Seconds.
PATIENCE: Final = 30.0
#: What may have ended it, the first always.
ENDS: Final = {"KeyboardInterrupt", "ClosedResourceError", "BrokenResourceError"}
#: The signal comes within this after it has begun. Seconds.
WITHIN: Final = 0.2


@dataclass(kw_only=True)
class Interrupted(Result):
    """What came out."""

    rounds: int = 0

    def report(self) -> str:
        """The figures, for people."""
        return f"{self.rounds} times interrupted: {self.verdict('it ends, and nothing else')}"


def problems_of(status: int | None, said: str, log: str) -> Iterator[str]:
    """What is not as it should be with a process that was interrupted.

    Args:
        status: its exit status; None if it had to be killed.
        said: what it said after it had begun.
        log: its standard error.
    """
    *lines, last = said.splitlines() or [""]
    if status is None:
        yield f"did not end within {PATIENCE:g} s"
    elif "KeyboardInterrupt" not in last.split() or not set(last.split()) <= ENDS:
        yield f"ended with {status}, by {last or 'nothing'}"
    if lines:
        yield f"said {lines[0]!r}"
    for line in log.splitlines():
        if "never awaited" in line:
            yield f"left a coroutine behind: {line.strip()}"


def interrupt(seconds: float) -> list[str]:
    """Once: so many seconds after it has begun."""
    with subprocess.Popen(
        child.command("benchmarks.stress.interrupt.worker"),
        env=child.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "begun\n":
                return ["did not begin"]
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            try:
                said, log = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return list(problems_of(None, *process.communicate()))
            return list(problems_of(process.returncode, said, log))
        finally:
            process.kill()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The number of rounds."""
    parser.add_argument("--rounds", type=int, metavar="N", help="how many; by default 100")


def complete(options: argparse.Namespace) -> str | None:
    """At least one round."""
    if options.rounds is None:
        options.rounds = 1 if options.quick else 100
    return None if options.rounds >= 1 else "--rounds is one at least"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """All rounds."""
    result, chance = Interrupted(), random.Random(options.seed)  # noqa: S311 -- as random as it has to be
    for number in range(1, options.rounds + 1):
        result.rounds = number
        seconds = chance.uniform(0, WITHIN)
        result.problems += [f"round {number}, after {seconds:.4f} s: it {each}" for each in interrupt(seconds)]
        progress.say_at_times(lambda: f"{result.rounds} of {options.rounds} rounds, {len(result.problems)} problems")
    yield result


PROGRAM: Final = Program(
    name="interrupt",
    asks="A program that is interrupted in the middle of handshakes: does it end, and say only that?",
    explanation=EXPLANATION,
    examples=[("", "100 rounds"), ("--rounds 1000 --json", "")],
    quick="one round",
    seeded=True,
    add_options=add_options,
    complete=complete,
    run=run,
)
