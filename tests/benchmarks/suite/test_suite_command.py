"""`python -m benchmarks`: it runs, records, draws and compares, and explains mistakes."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from benchmarks import child, machine
from benchmarks.machine import SOURCE
from benchmarks.suite import chart
from benchmarks.suite.arena import NAIVE, OURS
from benchmarks.suite.command import main
from benchmarks.suite.model import Placement, Target
from benchmarks.suite.scenarios import SCENARIOS
from rounds import a_round, a_scenario

if TYPE_CHECKING:
    from pathlib import Path


#: What the tests run of it. Small, and yet: both placements, a process for each sample, and what ours alone can do.
ONLY = "calls-50,hand-over,idle-memory"


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return subprocess.run(
        child.command("benchmarks", *arguments),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=child.environment(),
    )


def test_quick_mode_runs_and_records(tmp_path: Path) -> None:
    """Every contestant that is there has its samples, every target a verdict; the file says what made it."""
    file = tmp_path / "out.jsonl"
    done = benchmarks("--quick", "--repeat", "2", "--only", ONLY, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Targets" in done.stdout
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["record"] == "run"
    assert {"date", "commit", "versions", "machine", "options"} <= lines[0].keys()
    assert lines[0]["versions"]["trio"] == trio.__version__
    results = [line for line in lines if line["record"] == "result"]
    assert {line["scenario"] for line in results} == set(ONLY.split(","))
    assert {line["placement"] for line in results if line["scenario"] == "calls-50"} == set(map(str, Placement))
    for line in results:
        if line["problem"] is None:
            assert len(line["values"]) == len(line["cpu"]) == len(line["wall"]) == 2
            assert line["low"] <= line["median"] <= line["high"]
            assert all(value > 0 for value in line["values"])
        else:
            assert "not installed" in line["problem"]
            assert f"{line['contestant']}: {line['problem']}" in done.stdout
    titles = [line["contestant"] for line in results if line["problem"] is None]
    assert {OURS, NAIVE, f"{OURS}, hand-over"} <= set(titles)
    verdicts = [line["verdict"] for line in lines if line["record"] == "target" and line["against"] == NAIVE]
    assert verdicts
    assert set(verdicts) <= {"met", "missed", "too close to call"}


def test_two_checkouts_take_turns() -> None:
    """In one run: the other one's trionode is measured beside ours."""
    done = benchmarks("--quick", "--repeat", "1", "--only", "hand-over", "--against", str(SOURCE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trionode, hand-over (other)" in done.stdout


def test_what_is_there_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each scenario, its contestants, its targets."""
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}  " in said for name in SCENARIOS)
    assert "target trionode ≥ 8 times trio.SSLStream" in said


def test_one_contestant_runs_by_itself_for_a_profiler(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, so that a profiler sees it."""
    assert main(["once", "messages-64k", "ssl in memory, full records", "--seconds", "0.01"]) == 0
    assert "MB/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "nothing"], "no scenario nothing; there are connect"),
        (["--repeat", "0"], "no positive whole number"),
        (["--against", "/nowhere"], "has no trionode package"),
        (["compare", "/nowhere", "/nowhere"], "No such file"),
        (["compare", __file__, __file__], "was not written by --json"),
        (["once", "call", "nobody"], "no contestant 'nobody'"),
    ],
)
def test_a_mistake_is_explained(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the status of misuse, and before anything is measured."""
    with pytest.raises(SystemExit) as failure:
        main(arguments)
    assert failure.value.code == 2
    assert text in capsys.readouterr().err


def test_without_matplotlib_a_chart_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after half an hour of measuring."""
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main(["--chart", "out.svg"])
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def test_a_chart_is_drawn(tmp_path: Path) -> None:
    """Bars with targets, and lines for a sweep."""
    pytest.importorskip("matplotlib")
    targets = [Target(of=OURS, against=NAIVE, at_least=8)]
    bars = a_round(a_scenario(targets=targets), [16.0, 17.0], [2.0, 2.0])
    swept = a_round(a_scenario(sweep="bytes", x=100), [3.0], [4.0])
    file = tmp_path / "chart.svg"
    chart.draw([bars, swept], file, "a caption")
    assert file.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert [round(bar.advantage.median, 2) for bar in chart.bars(bars)] == [8.25, 1.0]
    assert next(chart.bars(bars)).targets == [8.0]
