"""What the suite is made of: scenarios, contestants, samples, targets.

Theory. A scenario asks one question; contestants answer it, each with a number in the scenario's unit. A target
compares two contestants of one scenario. Contestants take turns, so what compares them is the ratio within each turn:
absolute numbers drift on a shared machine, ratios do not.

Every ratio here is an *advantage*: how many times better one is than the other, whatever "better" means for the unit.
A target "at least 8" speaks of it as it is, a target "at most 1.6 times as costly" of its inverse.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from benchmarks.machine import not_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .credentials import Credentials


#: Other programs that keep more cores busy than this make a measurement noisy: no machine is quite idle.
CROWDED: Final = 0.2


class Better(StrEnum):
    """What is better, in a scenario's unit."""

    HIGHER = "higher"
    LOWER = "lower"


class Placement(StrEnum):
    """Where the two ends of what is measured are."""

    ONE = "one process"
    TWO = "two processes"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measurement by one contestant.

    Attributes:
        value: in the scenario's unit.
        work: how many operations were measured.
        wall: seconds that they took.
        cpu: seconds of CPU time that they took, of both ends and all threads.
        others: how many cores everything else on the machine kept busy meanwhile.
        notes: what else came out, by name.
    """

    value: float
    work: int
    wall: float
    cpu: float
    others: float = 0.0
    notes: Mapping[str, float] = field(default_factory=dict)


class Stopwatch:
    """Measures a block: wall time; CPU time of this process, and the other end's if that is another; the rest's."""

    def __init__(self, *others: int) -> None:
        # Of another process: clock_getcpuclockid(3), which Python does not have, for the whole process (2).
        self._clocks = [time.CLOCK_PROCESS_CPUTIME_ID, *((~pid << 3) | 2 for pid in others)]
        self.wall = self.cpu = self.machine = 0.0

    def _cpu_time(self) -> float:
        return sum(time.clock_gettime(clock) for clock in self._clocks)

    def __enter__(self) -> Self:
        self.machine = -busy()
        self.cpu = -self._cpu_time()
        self.wall = -time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += self._cpu_time()
        self.machine += busy()

    def rate(self, work: int, per_operation: float = 1.0) -> Sample:
        """A sample of so many operations a second, each worth so much of the unit."""
        return self.sample(work * per_operation / self.wall, work)

    def sample(self, value: float, work: int, **notes: float) -> Sample:
        """A sample with a value of its own."""
        others = max(0.0, self.machine - self.cpu) / self.wall
        return Sample(value=value, work=work, wall=self.wall, cpu=self.cpu, others=others, notes=notes)


def busy() -> float:
    """Seconds that all cores of the machine together were busy so far, where Linux says so, to a hundredth."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Server:
    """The other end, where it is a process of its own."""

    ports: Sequence[int]
    pid: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a contestant has to do.

    Attributes:
        credentials: the same for all.
        parameters: the scenario's, full or quick.
        count: operations to do.
        server: the other end, if it is a process of its own.
    """

    credentials: Credentials
    parameters: Mapping[str, float]
    count: int
    server: Server | None = None


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One answer to a scenario's question.

    Attributes:
        title: as tables show it.
        measure: does a job, and measures it.
        peer: the module of `benchmarks.suite.peers` that serves, where the other end may be another process.
        needs: modules that have to be importable.
        missing: what else is missing, in words, or None.
        placements: where it can be measured.
        series: in a sweep, whose cost it shows.
        x: in a sweep, at which number.
    """

    title: str
    measure: Callable[[Job], Sample]
    peer: str | None = None
    needs: Sequence[str] = ()
    missing: Callable[[], str | None] = lambda: None
    placements: frozenset[Placement] = frozenset(Placement)
    series: str = ""
    x: float = 0

    def unavailable(self) -> str | None:
        """Why it cannot be measured here, in words; None if it can."""
        return not_installed(*self.needs) or self.missing()


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of one contestant, compared with another.

    Attributes:
        of: whose target it is.
        against: the other one.
        at_least: how many times better it has to be.
        at_most: or: how many times as costly it may be.
    """

    of: str
    against: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Check that there is one bound, and that it is positive.

        Raises:
            ValueError: there are two or none, or it is not positive.
        """
        given = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if len(given) != 1 or given[0] <= 0:
            msg = "a target has one bound, at_least or at_most, and it is positive"
            raise ValueError(msg)

    @property
    def advantage(self) -> float:
        """The least advantage with which it is met."""
        return self.at_least if self.at_least is not None else 1 / (self.at_most or 1)

    def shown(self, advantage: float) -> float:
        """An advantage, in the terms of this target: a cost, where it is about costs."""
        return advantage if self.at_least is not None else 1 / advantage

    def __str__(self) -> str:
        bound = (
            f"≥ {self.at_least:.3g} times" if self.at_least is not None else f"≤ {self.at_most:.3g} times the cost of"
        )
        return f"{self.of} {bound} {self.against}"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A question, and the contestants that answer it.

    Attributes:
        name: for the command line.
        measures: the question, in a sentence.
        unit: of the values.
        better: which values are.
        contestants: in the order of the table.
        baseline: the title of the naive peer; the chart's 1.
        targets: what is asked of ours.
        placements: where the ends are; each is measured by itself.
        start: operations to begin with.
        seconds: how long a sample takes, about: as many operations as fill it; None for `start` operations exactly.
        quick_start: `start`, in quick mode.
        full: parameters.
        quick: those that differ in quick mode.
        fresh: whether each sample has a new process.
        tail: whether values are percentiles. On a busy machine those are other programs' time slices, and noise in the
            number compared with makes a target look met: no verdict there.
        sweep: what the contestants' `x` is; empty where it is none.
        limit: a sample that takes longer has failed, seconds.
    """

    name: str
    measures: str
    unit: str
    better: Better
    contestants: Sequence[Contestant]
    baseline: str
    targets: Sequence[Target] = ()
    placements: Sequence[Placement] = (Placement.ONE,)
    start: int = 1
    seconds: float | None = None
    quick_start: int = 1
    full: Mapping[str, float] = field(default_factory=dict)
    quick: Mapping[str, float] = field(default_factory=dict)
    fresh: bool = False
    tail: bool = False
    sweep: str = ""
    limit: float = 120

    def __post_init__(self) -> None:
        """Check that all contestants that are named are there.

        Raises:
            ValueError: one is not, or there are two of one title.
        """
        titles = [contestant.title for contestant in self.contestants]
        named = [self.baseline, *(target.of for target in self.targets), *(target.against for target in self.targets)]
        unknown = sorted(set(named) - set(titles))
        if unknown or len(set(titles)) != len(titles):
            msg = f"scenario {self.name}: no contestant {unknown}, or one title twice in {titles}"
            raise ValueError(msg)

    def contestant(self, title: str) -> Contestant:
        """The contestant with this title."""
        return next(each for each in self.contestants if each.title == title)

    def advantage(self, value: float, other: float) -> float:
        """How many times better one value is than another."""
        return value / other if self.better is Better.HIGHER else other / value
