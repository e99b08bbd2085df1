"""Contestants take turns, each in a process of its own; what is not there is said."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

import benchmarks
from benchmarks import child
from benchmarks.suite.arena import NAIVE, OURS
from benchmarks.suite.model import Placement, Sample, Target
from benchmarks.suite.runner import Plan, in_turn, play, searched_first
from benchmarks.suite.scenarios import SCENARIOS
from benchmarks.suite.table import results_table, say_problems, targets_table
from benchmarks.suite.worker import calibrate
from rounds import a_scenario, printed

if TYPE_CHECKING:
    from pathlib import Path


def test_turns_go_down_the_list_and_up_again() -> None:
    """So that a machine that slows down favours none."""
    assert [list(in_turn("abc", turn)) for turn in range(3)] == [list("abc"), list("cba"), list("abc")]


def test_calibration_finds_how_many_operations_take_so_long() -> None:
    """From one operation of a millisecond to as many as fill the time."""
    asked = []

    def measure(count: int) -> Sample:
        asked.append(count)
        return Sample(value=0, work=count, wall=count * 0.001, cpu=0)

    assert calibrate(measure, 1, 0.5) == 500
    assert asked == sorted(asked)
    assert calibrate(lambda _: Sample(value=0, work=1, wall=60, cpu=0), 1, 0.5) == 1, "one at least"


async def test_what_is_not_installed_is_skipped_and_said_loudly(tmp_path: Path) -> None:
    """A table with a peer missing must not look like one that is complete."""
    targets = [Target(of=OURS, against=NAIVE, at_least=2)]
    scenario = a_scenario(needs=["no_such_module"], targets=targets)
    played = await play(Plan(credentials=tmp_path, repeat=1), scenario, Placement.ONE)
    assert all(result.skipped and not result.samples for result in played.results)
    assert "skipped" in printed(results_table(played))
    assert "unknown" in printed(targets_table([played]))
    out = Console(file=io.StringIO(), width=200)
    say_problems(out, [played])
    assert isinstance(out.file, io.StringIO)
    assert "SKIPPED made-up, one process: trio.SSLStream: no_such_module not installed" in out.file.getvalue()


async def test_what_trionode_cannot_do_yet_is_skipped_too(tmp_path: Path) -> None:
    """As it is where a scenario is measured with an older checkout."""
    scenario = a_scenario(missing=lambda: "this trionode cannot")
    played = await play(Plan(credentials=tmp_path, repeat=1), scenario, Placement.ONE)
    assert [result.problem for result in played.results] == ["this trionode cannot"] * 2


async def test_a_worker_that_fails_is_a_line_in_the_table(tmp_path: Path) -> None:
    """Its last words are in it, and the rest goes on."""
    scenario = a_scenario()
    alone = replace(scenario, contestants=scenario.contestants[:1], baseline=OURS)
    played = await play(Plan(credentials=tmp_path, repeat=1), alone, Placement.ONE)
    assert all(result.problem == "KeyError: 'made-up'" and not result.skipped for result in played.results)
    assert "FAILED" in printed(results_table(played))


def test_another_checkout_takes_part_beside_ours_alone(tmp_path: Path) -> None:
    """Peers are the same in both; a contestant that cannot be measured in a placement takes no part in it."""
    plan = Plan(credentials=tmp_path, repeat=3, against=tmp_path)
    connect = SCENARIOS["connect"]
    titles = [entry.title for entry in plan.entries(connect, Placement.TWO)]
    assert titles == [OURS, f"{OURS} (other)", NAIVE, "asyncio streams", "uvloop streams"]
    assert plan.steps(connect, Placement.TWO) == 5 * 4


def test_a_worker_imports_the_trionode_of_its_checkout(tmp_path: Path) -> None:
    """And the benchmarks of this one."""
    (tmp_path / "other" / "trionode").mkdir(parents=True)
    (tmp_path / "other" / "trionode" / "__init__.py").write_text("where = 'there'", encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = child.environment(*searched_first(scratch, tmp_path / "other"))
    program = "import trionode, benchmarks; print(trionode.where, benchmarks.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["there", benchmarks.__file__]
