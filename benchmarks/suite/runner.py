"""The runner: contestants take turns, each in a process of its own, and the order of turns alternates.

A turn is one sample of every contestant. Odd turns go down the list, even ones up it, so that a machine that gets
slower or faster meanwhile favours none. Before the first turn comes a warm-up: it finds how many operations a sample
needs to last long enough, and is thrown away.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from benchmarks import child

from .model import Placement, Sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from .model import Contestant, Scenario

T = TypeVar("T")

#: Starting a worker may take so long, seconds.
START_LIMIT: Final = 60.0

#: How long a sample takes in quick mode, seconds.
QUICK_SECONDS: Final = 0.03


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant in a run, with the trionode that it uses.

    Attributes:
        title: the contestant's, marked where it uses another checkout.
        contestant: the one that takes part.
        checkout: where its trionode is from; None for the one that is imported here.
    """

    title: str
    contestant: Contestant
    checkout: Path | None = None


@dataclass(kw_only=True)
class Result:
    """What came out for one contestant of one scenario in one placement.

    Attributes:
        title: the entry's.
        count: operations in each sample.
        samples: turn by turn; none where there is a problem.
        problem: why there are none, in words.
        skipped: whether that is only because something is not installed.
    """

    title: str
    count: int = 0
    samples: list[Sample] = field(default_factory=list)
    problem: str | None = None
    skipped: bool = False

    @property
    def values(self) -> list[float]:
        """Turn by turn."""
        return [sample.value for sample in self.samples]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came out of one scenario in one placement."""

    scenario: Scenario
    placement: Placement
    results: Sequence[Result]

    @property
    def others(self) -> float:
        """How many cores other programs kept busy meanwhile: the median of all samples."""
        return statistics.median([sample.others for result in self.results for sample in result.samples] or [0.0])

    def result(self, title: str) -> Result | None:
        """Of one contestant, if it was measured."""
        return next((each for each in self.results if each.title == title and each.samples), None)


class WorkerFailed(Exception):  # noqa: N818 -- an ending of a worker, which becomes a line in the table
    """A worker failed; the text says why."""


@dataclass(kw_only=True)
class Plan:
    """How a run is to be.

    Attributes:
        credentials: directory of certificates.
        repeat: turns.
        quick: small parameters.
        against: a checkout of another commit, whose trionode takes part as well.
        progress: called with what is being done, in words.
    """

    credentials: Path
    repeat: int
    quick: bool = False
    against: Path | None = None
    progress: Callable[[str], None] = lambda _: None

    def entries(self, scenario: Scenario, placement: Placement) -> Iterator[Entry]:
        """The contestants that take part: twice, where another commit's trionode is to be measured, too."""
        for contestant in scenario.contestants:
            if placement not in contestant.placements:
                continue
            yield Entry(title=contestant.title, contestant=contestant)
            if self.against is not None and contestant.series.startswith("trionode"):
                yield Entry(title=f"{contestant.title} (other)", contestant=contestant, checkout=self.against)

    def steps(self, scenario: Scenario, placement: Placement) -> int:
        """How often `progress` is told something, at most."""
        return len(list(self.entries(scenario, placement))) * (self.repeat + 1)


class Worker:
    """A process that measures one contestant."""

    def __init__(self, process: trio.Process, errors: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests, self._answers = process.stdin, child.Lines(process.stdout)
        self._errors = errors

    async def ask(self, request: Mapping[str, object], limit: float) -> dict[str, Any]:
        """Send a request, wait for the answer.

        Raises:
            WorkerFailed: there is none in time, or it says that something went wrong.
        """
        try:
            await self._requests.send_all(json.dumps(request).encode() + b"\n")
        except trio.BrokenResourceError as exc:
            raise WorkerFailed(self._last_words()) from exc
        return await self.answer(limit)

    async def answer(self, limit: float) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            WorkerFailed: as `ask`.
        """
        with trio.move_on_after(limit):
            line = await self._answers.read()
            if line is None:
                raise WorkerFailed(self._last_words())
            said: dict[str, Any] = json.loads(line)
            if "error" in said:
                raise WorkerFailed(str(said["error"]))
            return said
        msg = f"no answer within {limit:g} s"
        raise WorkerFailed(msg)

    def _last_words(self) -> str:
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the worker ended without a word, status {self._process.poll()}"


@asynccontextmanager
async def working(plan: Plan, scenario: Scenario, placement: Placement, entry: Entry) -> AsyncIterator[Worker]:
    """A worker, for the length of a block."""
    what = ["--scenario", scenario.name, "--placement", placement, "--contestant", entry.contestant.title]
    what += ["--quick"] if plan.quick else []
    with tempfile.TemporaryDirectory() as scratch:
        first, errors = searched_first(Path(scratch), entry.checkout), Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
            async with child.running(
                "benchmarks.suite.worker", plan.credentials, *what, first=first, **pipes
            ) as process:
                worker = Worker(process, errors)
                await worker.answer(START_LIMIT)
                yield worker


def searched_first(scratch: Path, checkout: Path | None) -> list[Path]:
    """What a worker has to search first to find the trionode of a checkout.

    That is nothing for the one that is found anyway; and not the checkout itself, which has a `benchmarks`, too.
    """
    if checkout is None:
        return []
    (scratch / "trionode").symlink_to(checkout.resolve() / "trionode")
    return [scratch]


async def play(plan: Plan, scenario: Scenario, placement: Placement) -> Round:
    """Run one scenario in one placement."""
    entries = list(plan.entries(scenario, placement))
    results = [Result(title=entry.title) for entry in entries]
    async with AsyncExitStack() as stack:
        playing: list[tuple[Entry, Result, Worker | None]] = []
        for entry, result in zip(entries, results, strict=True):
            plan.progress(f"{entry.title}: warm-up")
            result.problem = entry.contestant.unavailable()
            if result.problem is not None:
                result.skipped = True
                continue
            try:
                worker = None
                if not scenario.fresh:
                    worker = await stack.enter_async_context(working(plan, scenario, placement, entry))
                result.count = await warm_up(plan, scenario, worker)
            except WorkerFailed as failure:
                result.problem = str(failure)
            else:
                playing.append((entry, result, worker))
        for turn in range(plan.repeat):
            for entry, result, worker in in_turn(playing, turn):
                plan.progress(f"{result.title}: turn {turn + 1} of {plan.repeat}")
                if result.problem is None:
                    await take(plan, scenario, placement, entry, result, worker)
    # A contestant that failed half-way has no figures: ratios are within turns.
    kept = [result if result.problem is None else replace(result, samples=[]) for result in results]
    return Round(scenario=scenario, placement=placement, results=kept)


async def warm_up(plan: Plan, scenario: Scenario, worker: Worker | None) -> int:
    """Warm up; gives how many operations a sample is to have."""
    start = scenario.quick_start if plan.quick else scenario.start
    if worker is None:
        return start
    if scenario.seconds is None:
        await worker.ask({"count": start}, scenario.limit)
        return start
    seconds = QUICK_SECONDS if plan.quick else scenario.seconds
    said = await worker.ask({"count": start, "seconds": seconds}, scenario.limit)
    return int(said["count"])


async def take(
    plan: Plan, scenario: Scenario, placement: Placement, entry: Entry, result: Result, worker: Worker | None
) -> None:
    """One sample."""
    try:
        async with AsyncExitStack() as stack:
            if worker is None:
                worker = await stack.enter_async_context(working(plan, scenario, placement, entry))
            said = await worker.ask({"count": result.count}, scenario.limit)
            result.samples.append(Sample(**said["sample"]))
    except WorkerFailed as failure:
        result.problem = str(failure)


def in_turn(playing: Sequence[T], turn: int) -> Iterable[T]:
    """Down the list in even turns, up it in odd ones."""
    return reversed(playing) if turn % 2 else playing
