"""Made-up scenarios of the benchmark suite, and what a run of them might have given."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.suite.arena import NAIVE, OURS
from benchmarks.suite.model import Better, Contestant, Placement, Sample, Scenario, Target
from benchmarks.suite.runner import Result, Round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite.model import Job


def unused(_: Job) -> Sample:
    """A contestant's function that no test comes to."""
    raise AssertionError


def a_scenario(
    *, better: Better = Better.HIGHER, targets: Sequence[Target] = (), sweep: str = "", **contestant: Any
) -> Scenario:
    """Ours and the naive peer."""
    made = [Contestant(title=title, measure=unused, series=title, **contestant) for title in (OURS, NAIVE)]
    return Scenario(
        name="made-up",
        measures="Nothing.",
        unit="/s",
        better=better,
        contestants=made,
        baseline=NAIVE,
        targets=targets,
        sweep=sweep,
    )


def samples(*values: float) -> list[Sample]:
    """Samples with these values, of one operation each."""
    return [Sample(value=value, work=1, wall=1.0, cpu=0.5) for value in values]


def a_round(scenario: Scenario, ours: Sequence[float], naive: Sequence[float]) -> Round:
    """What a run might have given."""
    results = [Result(title=OURS, samples=samples(*ours)), Result(title=NAIVE, samples=samples(*naive))]
    return Round(scenario=scenario, placement=Placement.ONE, results=results)


def printed(*what: Any) -> str:
    """As on a wide terminal."""
    out = Console(file=io.StringIO(), width=200)
    out.print(*what)
    file = out.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()
