"""What a stress program is: a question, options, and results. How it is started and what it prints is written once.

`start` reads a program's command line, runs it, prints each result on standard output (for people, or with `--json` as
one line each) and each problem on standard error, and gives the exit status: 0 if there was no problem, 1 if there was
one; argparse ends with 2 where the arguments make no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.machine import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: How often a program says how far it is, unless it knows better. Seconds.
PROGRESS_EVERY: Final = 5.0
EXIT_STATUS: Final = "The exit status is 0 if there was no problem, and 1 if there was one."
#: So many problems of a result are printed; `--json` has all of them.
MOST_PROBLEMS: Final = 20


@dataclass(kw_only=True)
class Result(ABC):
    """What came out of a program, or of one part of it.

    Attributes:
        problems: what must not be, each in words that say how to see it again.
    """

    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there was no problem."""
        return not self.problems

    @abstractmethod
    def report(self) -> str:
        """The figures, for people."""

    def verdict(self, good: str) -> str:
        """These words if there was no problem, else how many problems there were."""
        return good if self.ok else f"{len(self.problems)} PROBLEMS"


class Progress:
    """Says how far a program is, on standard error: standard output has results only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        self._said = time.monotonic()
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def say_at_times(self, text: Callable[[], str]) -> None:
        """Print a line, unless one was printed a few seconds ago: for loops that come here often."""
        if time.monotonic() - self._said > PROGRESS_EVERY:
            self.say(text())

    async def keep_saying(self, text: Callable[[], str], *, every: float = PROGRESS_EVERY) -> None:
        """Print a line every so many seconds, until cancelled."""
        while True:
            await trio.sleep(every)
            self.say(text())


@dataclass(frozen=True, kw_only=True)
class Program:
    """A stress program.

    Attributes:
        name: for the command line.
        asks: the question that it answers, in one line.
        explanation: what it does, what has to hold, and what the reported figures mean.
        examples: options, and what they do.
        quick: what `--quick` makes of it.
        seeded: whether it does what it does by chance, from `--seed`.
        add_options: adds what is this program's own to the command line.
        complete: fills in what was not given, and says what makes no sense, if anything does.
        run: does it; gives each result as soon as it is there.
    """

    name: str
    asks: str
    explanation: str
    examples: Sequence[tuple[str, str]]
    quick: str
    seeded: bool = False
    add_options: Callable[[argparse.ArgumentParser], None]
    complete: Callable[[argparse.Namespace], str | None]
    run: Callable[[argparse.Namespace, Progress], Iterator[Result]]


def parse(program: Program, arguments: Sequence[str]) -> argparse.Namespace:
    """Read a program's command line."""
    command = f"python -m benchmarks.stress {program.name}"
    width = max(len(options) for options, _ in program.examples)
    examples = [f"  {command} {options:{width}}  {what}".rstrip() for options, what in program.examples]
    parser = argparse.ArgumentParser(
        prog=command,
        description=f"{program.asks}\n\n{program.explanation}\n{EXIT_STATUS}",
        epilog="\n".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    program.add_options(parser)
    if program.seeded:
        parser.add_argument("--seed", type=int, metavar="N", help="of all chance; by default another each time")
    parser.add_argument("--quick", action="store_true", help=program.quick)
    parser.add_argument("--json", action="store_true", help="print each result as one line of JSON")
    options = parser.parse_args(arguments)
    if program.seeded and options.seed is None:
        options.seed = time.time_ns() % 2**32
    if (problem := program.complete(options)) is not None:
        parser.error(problem)
    return options


def start(program: Program, arguments: Sequence[str]) -> int:
    """Run a program; gives the exit status."""
    options, progress = parse(program, arguments), Progress(program.name)
    if program.seeded:
        progress.say(f"seed {options.seed}")
    about, ok = environment(), True
    for result in program.run(options, progress):
        print(_line(program, result, about) if options.json else result.report(), flush=True)
        for problem in result.problems[:MOST_PROBLEMS]:
            progress.say(f"PROBLEM: {problem}")
        ok = ok and result.ok
    if not options.json:
        print(_versions(about))
    return 0 if ok else 1


def _line(program: Program, result: Result, about: Mapping[str, object]) -> str:
    figures: dict[str, object] = {"program": program.name, "ok": result.ok, **vars(result), "environment": about}
    return json.dumps(figures, default=_encode)


def _encode(value: Any) -> object:
    return value.hex() if isinstance(value, bytes) else asdict(value)


def _versions(about: Mapping[str, object]) -> str:
    versions = about["versions"]
    assert isinstance(versions, dict)
    names = ("python", "trionode", "trio", "pyOpenSSL", "cryptography")
    return f"commit {about['commit']}, " + ", ".join(f"{name} {versions[name]}" for name in names)
