"""From samples to figures, verdicts and comparisons."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from benchmarks.latency import percentile
from benchmarks.suite.arena import NAIVE, OURS
from benchmarks.suite.command import main
from benchmarks.suite.compare import changes
from benchmarks.suite.figures import Spread, Verdict, advantages, judge
from benchmarks.suite.model import Better, Placement, Stopwatch, Target
from benchmarks.suite.record import Recorder, Recording, judged
from benchmarks.suite.runner import Result, Round
from benchmarks.suite.scenarios import SCENARIOS
from benchmarks.suite.table import results_table
from benchmarks.suite.worker import parameters_of
from rounds import a_round, a_scenario, printed, samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


POSITIVE = st.floats(min_value=1e-3, max_value=1e6)


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_a_spread_holds_its_median_and_stays_within_its_values(values: list[float]) -> None:
    """Quartiles are around the median, and nothing is outside what was measured."""
    spread = Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)


def test_few_values_have_extremes_for_quartiles() -> None:
    """Three values have no quartiles to speak of."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(low=1.0, median=2.0, high=3.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(low=2.0, median=3.0, high=4.0)
    assert Spread.of([2.0, 3.0, 4.0]).noise == pytest.approx(2 / 3)


@given(POSITIVE, POSITIVE, st.sampled_from(Better))
def test_an_advantage_turns_around_with_its_sides(one: float, other: float, better: Better) -> None:
    """If one is twice as good, the other is half as good; better is more than one."""
    scenario = a_scenario(better=better)
    assert scenario.advantage(one, other) * scenario.advantage(other, one) == pytest.approx(1)
    if one != other:
        assert (scenario.advantage(one, other) > 1) is ((one > other) is (better is Better.HIGHER))


def test_ratios_are_taken_within_turns() -> None:
    """A machine that is twice as fast in the second turn changes no ratio."""
    assert advantages(a_scenario(), [10.0, 20.0], [5.0, 10.0]) == [2.0, 2.0]
    assert advantages(a_scenario(better=Better.LOWER), [10.0, 20.0], [5.0, 10.0]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0, 2.1, 2.2], Verdict.MET),
        ([1.0, 1.1, 1.2], Verdict.MISSED),
        ([1.9, 2.0, 2.1], Verdict.CLOSE),
        ([], Verdict.UNKNOWN),
    ],
)
def test_a_target_is_met_where_the_spread_says_so(ratios: list[float], verdict: Verdict) -> None:
    """At least twice as good."""
    assert judge(Target(of=OURS, against=NAIVE, at_least=2), ratios) is verdict


def test_at_most_so_many_times_as_costly_is_the_inverse() -> None:
    """A cost of at most 1.6 is an advantage of at least 0.625, and is shown as a cost."""
    target = Target(of=OURS, against=NAIVE, at_most=1.6)
    assert target.advantage == pytest.approx(0.625)
    assert judge(target, [0.7]) is Verdict.MET
    assert judge(target, [0.6]) is Verdict.MISSED
    assert target.shown(0.5) == pytest.approx(2.0)
    assert str(target) == "trionode ≤ 1.6 times the cost of trio.SSLStream"
    assert str(Target(of=OURS, against=NAIVE, at_least=8)) == "trionode ≥ 8 times trio.SSLStream"


@pytest.mark.parametrize("bounds", [{}, {"at_least": 2.0, "at_most": 3.0}, {"at_least": 0.0}])
def test_a_target_has_one_positive_bound(bounds: dict[str, float]) -> None:
    """Anything else is a mistake in a scenario."""
    with pytest.raises(ValueError, match="one bound"):
        Target(of=OURS, against=NAIVE, **bounds)


def test_a_target_names_contestants() -> None:
    """A misspelt one would be a target that cannot be missed."""
    with pytest.raises(ValueError, match="no such"):
        a_scenario(targets=[Target(of=OURS, against="no such", at_least=2)])


@given(st.lists(POSITIVE, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_the_smallest_value_that_suffices(values: list[float], part: float) -> None:
    """So large a part is not above it; without it and what equals it, the part is smaller."""
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-6
    assert sum(value < found for value in values) < part * len(values) + 1e-6


def test_a_stopwatch_counts_the_cpu_time_of_the_other_end_too() -> None:
    """A process that only waits costs next to nothing, one that works is seen from here."""
    program = "import sys, time\nfor line in sys.stdin:\n  begin = time.process_time()\n"
    program += "  while time.process_time() - begin < 0.05: pass\n  print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        with Stopwatch(other.pid) as watch:
            print(file=other.stdin, flush=True)
            other.stdout.readline()
        other.stdin.close()
    assert watch.cpu >= 0.05
    assert watch.rate(10).work == 10


def recording(directory: Path, name: str, ours: Sequence[float], naive: Sequence[float]) -> Path:
    """A file as a run writes it."""
    file = directory / name
    with file.open("w", encoding="utf-8") as out:
        recorder = Recorder(out)
        recorder.run({"commit": name}, {})
        recorder.played(a_round(a_scenario(), ours, naive))
    return file


@pytest.mark.parametrize(
    ("ours", "naive", "word"),
    [
        ([20.0, 20.0, 20.0], [2.0, 2.0, 2.0], ""),  # the machine was twice as fast, for both
        ([10.0, 10.0, 10.0], [2.0, 2.0, 2.0], "worse"),
        ([20.0, 20.0, 20.0], [1.0, 1.0, 1.0], "better"),
        ([1.0, 20.0, 40.0], [1.0, 1.0, 1.0], ""),  # within the noise
    ],
)
def test_two_runs_are_compared_by_their_ratios(
    ours: list[float], naive: list[float], word: str, tmp_path: Path
) -> None:
    """What the naive peer did, too, is the machine's doing; what is within the noise says nothing."""
    old = Recording.read(recording(tmp_path, "old", [10.0, 10.0, 10.0], [1.0, 1.0, 1.0]))
    new = Recording.read(recording(tmp_path, "new", ours, naive))
    found = {change.contestant: change for change in changes(old, new)}
    assert found[OURS].word == word
    assert found[NAIVE].word == ""
    assert found[NAIVE].relative is None


@pytest.mark.parametrize(
    ("tail", "others", "verdict"),
    [
        (True, 1.0, Verdict.NOISY),  # the 99th percentile of what is compared with is another program's time slice
        (True, 0.1, Verdict.MET),
        (False, 1.0, Verdict.MET),  # rates survive, as ratios
    ],
)
def test_a_percentile_on_a_busy_machine_has_no_verdict(tail: bool, others: float, verdict: Verdict) -> None:
    """Not even a good one: noise in the other number makes a target look met."""
    scenario = replace(a_scenario(targets=[Target(of=OURS, against=NAIVE, at_least=2)]), tail=tail)
    made = [replace(sample, others=others) for sample in samples(4.0, 4.0)]
    slow = [replace(sample, value=1.0) for sample in made]
    played = Round(
        scenario=scenario,
        placement=Placement.ONE,
        results=[Result(title=OURS, samples=made), Result(title=NAIVE, samples=slow)],
    )
    assert [each.verdict for each in judged(played)] == [verdict]
    assert ("NOISY" in printed(results_table(played))) is (others > 0.2)


def test_a_comparison_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With both commits, and what changed."""
    old, new = recording(tmp_path, "old", [10.0], [1.0]), recording(tmp_path, "new", [5.0], [1.0])
    assert main(["compare", str(old), str(new)]) == 0
    said = capsys.readouterr().out
    assert "old → new" in said
    assert "worse" in said


def test_a_file_of_something_else_is_no_recording(tmp_path: Path) -> None:
    """Rather than an empty comparison."""
    file = tmp_path / "other.jsonl"
    file.write_text('{"record": "result"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not written by --json"):
        Recording.read(file)


def test_targets_of_contestants_that_take_no_part_are_left_out() -> None:
    """In two processes there is no limit in memory to be compared with."""
    scenario = SCENARIOS["connect"]
    played = Round(scenario=scenario, placement=Placement.TWO, results=[Result(title=OURS), Result(title=NAIVE)])
    assert [each.target.against for each in judged(played)] == [NAIVE]


def test_quick_parameters_replace_full_ones() -> None:
    """And only those that they name."""
    scenario = SCENARIOS["rotation-stream"]
    assert parameters_of(scenario, quick=False)["rotations"] == 100
    quick = parameters_of(scenario, quick=True)
    assert quick["rotations"] < 100
    assert quick["interval"] == scenario.full["interval"]
