"""`python -m benchmarks`: it runs, records, draws and compares, and explains mistakes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from benchmarks import child, machine
from benchmarks.machine import SOURCE
from benchmarks.suite import chart, command
from benchmarks.suite.arena import NAIVE, OURS
from benchmarks.suite.command import main
from benchmarks.suite.model import Placement, Target
from benchmarks.suite.scenarios import SCENARIOS
from rounds import a_round, a_scenario

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.suite.model import Scenario


def small(name: str, *titles: str, **changed: Any) -> Scenario:
    """A scenario with these contestants only, so that it takes few processes."""
    scenario = SCENARIOS[name]
    contestants = [scenario.contestant(title) for title in titles]
    targets = [target for target in scenario.targets if {target.of, target.against} <= set(titles)]
    return replace(scenario, **{"contestants": contestants, "targets": targets, **changed})


def test_quick_mode_runs_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process and in two, in one for all samples and in one for each; the file says what made it.

    Every contestant that is there has its samples, every target a verdict.
    """
    calls, absent = SCENARIOS["calls-50"], "something else"
    contestants = [
        calls.contestant(OURS),
        replace(calls.contestant(NAIVE), placements=frozenset([Placement.ONE])),
        replace(calls.contestant(NAIVE), title=absent, needs=["no_such_module"]),
    ]
    targets = [Target(of=OURS, against=NAIVE, at_least=2), Target(of=OURS, against=absent, at_least=2)]
    played = [
        replace(calls, contestants=contestants, targets=targets),
        small("idle-memory", OURS, baseline=OURS),
    ]
    monkeypatch.setattr(command, "SCENARIOS", {scenario.name: scenario for scenario in played})
    file = tmp_path / "out.jsonl"
    assert main(["--quick", "--repeat", "2", "--json", str(file)]) == 0
    told = capsys.readouterr().out
    assert "Targets" in told
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["record"] == "run"
    assert {"date", "commit", "versions", "machine", "options"} <= lines[0].keys()
    assert lines[0]["versions"]["trio"] == trio.__version__
    results = [line for line in lines if line["record"] == "result"]
    assert {line["scenario"] for line in results} == {scenario.name for scenario in played}
    assert {line["placement"] for line in results if line["scenario"] == "calls-50"} == set(map(str, Placement))
    for line in results:
        if line["problem"] is None:
            assert len(line["values"]) == len(line["cpu"]) == len(line["wall"]) == 2
            assert line["low"] <= line["median"] <= line["high"]
            assert all(value > 0 for value in line["values"])
        else:
            assert "not installed" in line["problem"]
            assert f"{line['contestant']}: {line['problem']}" in told
    assert [line["contestant"] for line in results if line["problem"]] == [absent, absent]
    verdicts = {line["against"]: line["verdict"] for line in lines if line["record"] == "target"}
    assert verdicts.keys() == {NAIVE, absent}
    assert verdicts[NAIVE] in {"met", "missed", "too close to call"}
    assert verdicts[absent] == "unknown"


def test_two_checkouts_take_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In one run: the other's trionode is measured beside ours, at what no peer can do."""
    hand_over = f"{OURS}, hand-over"
    monkeypatch.setattr(command, "SCENARIOS", {"hand-over": small("hand-over", hand_over, baseline=hand_over)})
    assert main(["--quick", "--repeat", "1", "--against", str(SOURCE)]) == 0
    assert f"{hand_over} (other)" in capsys.readouterr().out


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    """As a user starts it; and from another directory, where the search path leads to both packages."""
    done = subprocess.run(
        child.command("benchmarks", "list"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=child.environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "connect  " in done.stdout


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
        (["once", "call", "no such"], "no contestant 'no such'"),
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
