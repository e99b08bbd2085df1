"""One exchange between two nodes, cut at every byte: is every outcome documented, and nothing lost but the link?"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.stress.program import Program, Progress, Result

from .world import DIRECTIONS, FAULTS, World

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from .exchange import Outcome

EXPLANATION: Final = """\
Two nodes on a network in memory have one whole exchange: dial, TLS, hello, a channel with small messages and a
large one there and back, a call, the close. Then they do it again, with one fault at one byte of one direction:

  reset_after     both ends see a reset (RST) after so many bytes
  reset_discards  the same, and what had arrived and was not read yet is lost with it, as on some systems
  eof_after       the receiver sees a clean end (FIN) after so many bytes, the sender is not told
  stall_after     nothing arrives after so many bytes, and neither side is told: half-open
  corrupt         that byte arrives inverted

Whatever happens has to be success or a documented error, within its deadline (on a clock that jumps over waiting);
messages arrive as a prefix of what was sent, unaltered and once; a new connection works afterwards; and nothing is left
behind, neither while the nodes go on nor after they were closed. What is not so is reported as a problem, with the
options that repeat it.

What is reported, for each fault and direction: how many exchanges succeeded, and where and how the others failed.
"""

#: Between the bytes that are tried besides the edges; primes, so that what repeats is not always met at the same place.
EVERY, EVERY_QUICK = 61, 1999
#: Of the edges `--quick` tries one in so many: no multiple of 5, of which there are around each end of a record.
EDGES_QUICK: Final = 8


@dataclass(kw_only=True)
class Sweep(Result):
    """What came out for one fault in one direction.

    Attributes:
        fault: which.
        direction: which.
        outcomes: of the exchanges, and how often.
        seconds: that they took.
    """

    fault: str
    direction: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, offset: int, outcome: Outcome) -> None:
        """Note one exchange."""
        self.outcomes[outcome.outcome] += 1
        where = f"--fault {self.fault} --direction {self.direction} --offset {offset}"
        self.problems += [f"{where}: {problem}" for problem in outcome.problems]

    def so_far(self) -> str:
        """How far it is."""
        return f"{self.fault} {self.direction}: {self.outcomes.total()} exchanges, {len(self.problems)} problems"

    def report(self) -> str:
        """The figures, for people."""
        verdict = self.verdict("every outcome is documented")
        headline = f"{self.fault} {self.direction}: {self.outcomes.total()} exchanges in {self.seconds} s: {verdict}"
        return "\n".join([headline, *(f"  {times:6}  {outcome}" for outcome, times in self.outcomes.most_common())])


def sweep(
    world: World, fault: str, direction: str, offsets: Iterable[int], progress: Progress, *, in_full: bool
) -> Sweep:
    """One exchange for each offset; `in_full` says of each what came of it."""
    result, began = Sweep(fault=fault, direction=direction), time.monotonic()
    for offset in offsets:
        outcome = world.with_fault(fault, direction, offset)
        result.add(offset, outcome)
        if in_full:
            progress.say(f"{fault} {direction} {offset}: {outcome}")
        progress.say_at_times(result.so_far)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which faults, and where."""
    parser.add_argument("--fault", choices=FAULTS, action="append", help="by default each of them")
    parser.add_argument("--direction", choices=DIRECTIONS, action="append", help="by default each of them")
    parser.add_argument("--offset", type=int, action="append", metavar="N", help="at these bytes only")
    parser.add_argument(
        "--every", type=int, metavar="N", help=f"at every Nth byte, besides the edges; by default {EVERY}"
    )
    parser.add_argument("--all", action="store_true", help="at every byte")


def complete(options: argparse.Namespace) -> str | None:
    """Some bytes."""
    if options.every is None:
        options.every = 1 if options.all else EVERY_QUICK if options.quick else EVERY
    return None if options.every >= 1 else "--every is a positive number"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """A sweep for each fault and direction."""
    world = World()
    progress.say(f"an exchange has {world.sizes} bytes")
    for fault in options.fault or FAULTS:
        for direction in options.direction or DIRECTIONS:
            edges = world.edges(direction)[:: EDGES_QUICK if options.quick else 1]
            offsets = options.offset or sorted({*range(0, world.sizes[direction] + 1, options.every), *edges})
            yield sweep(world, fault, direction, offsets, progress, in_full=bool(options.offset))


PROGRAM: Final = Program(
    name="faults",
    asks="One exchange, cut, stalled and corrupted at every byte: is every outcome documented, nothing leaked?",
    explanation=EXPLANATION,
    examples=[
        ("", f"every {EVERY}st byte and both sides of every TLS record: a minute or so"),
        ("--all", "every byte: some 80 000 exchanges, half an hour or so"),
        ("--fault reset_after --direction there --offset 1234", "one exchange, in full"),
    ],
    quick="a few bytes of each fault and direction",
    add_options=add_options,
    complete=complete,
    run=run,
)
