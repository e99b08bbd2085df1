"""What many nodes do at once: benchmarks/stress/mesh.py, crossing.py and flood.py, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trionode

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "stress"
COMMANDS = pytest.mark.parametrize("command", ["mesh", "crossing"])


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands, as a user does."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{command}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(trionode.__file__).parents[1])},
    )


def result_of(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command reported with --json: one line and nothing else."""
    [line] = finished.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_mesh_converges_to_one_connection_per_pair() -> None:
    """A mesh started at once converges to one connection per pair, the same on both sides, and stays like that."""
    finished = run("mesh", "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    result = result_of(finished)
    assert result["ok"] is True
    assert result["problems"] == []
    assert result["nodes"] == 6
    assert result["connections"] == result["pairs"] == 15
    assert result["changes_afterwards"] == 0
    # Everybody dials everybody once: two for each pair. On a very busy machine a few more; a storm has hundreds.
    assert 15 <= result["dials"] <= 45
    assert result["established"] >= 15
    assert 0 < result["seconds"] < 30


def test_everybody_honest_gets_through_a_flood() -> None:
    """Silence, drips and garbage, from more clients than honest ones: no honest connect fails."""
    finished = run("flood", "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    result = result_of(finished)
    assert result["ok"] is True
    assert (result["failed"], result["problems"]) == (0, [])
    assert result["honest"] > 2
    assert result["accepted"] >= result["crowd"] == 60


def test_flood_for_people() -> None:
    """A table without --json, progress apart from it, and a --help that says what is judged."""
    finished = run("flood", "--quick")
    assert finished.returncode == 0, finished.stderr
    assert "ratio" in finished.stdout
    assert "flood: 60 arrive" in finished.stderr
    assert "at most twice" in run("flood", "--help").stdout


def test_two_nodes_that_dial_each_other_have_one_connection_each_time() -> None:
    """Two nodes that dial each other at the same moment end with one connection, the same on both sides, each time."""
    finished = run("crossing", "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    result = result_of(finished)
    assert result["ok"] is True
    assert result["problems"] == []
    assert result["rounds"] == 50
    assert 50 <= result["dials"] <= 100
    assert result["crossed"] > 0
    assert result["connect_ms_median"] > 0


@COMMANDS
def test_report_for_people(command: str) -> None:
    """Without --json there is a table on standard output; progress is on standard error, apart from it."""
    finished = run(command, "--quick")
    assert finished.returncode == 0, finished.stderr
    assert "dials" in finished.stdout
    assert "trionode" in finished.stdout
    assert f"{command}: " not in finished.stdout
    assert f"{command}: " in finished.stderr
    assert "PROBLEM" not in finished.stderr + finished.stdout


@COMMANDS
def test_help_teaches(command: str) -> None:
    """--help says what is done, what has to come out, what the numbers mean, and gives examples."""
    finished = run(command, "--help")
    assert finished.returncode == 0
    for part in "exit\nstatus", "What is reported", "dials", "examples:", "--quick", "--json":
        assert part.replace("\n", " ") in finished.stdout.replace("\n", " ")
    assert finished.stderr == ""


def test_mesh_that_does_not_converge_is_a_failure() -> None:
    """A mesh that is not there in time is said to be none, by exit status and text."""
    finished = run("mesh", "--quick", "--json", "--within", "0.001", "--settle", "0")
    assert finished.returncode == 1
    assert result_of(finished)["ok"] is False
    assert "mesh: PROBLEM: not converged within 0.001 s" in finished.stderr


@pytest.mark.parametrize(("command", "arguments"), [("mesh", ["--nodes", "1"]), ("crossing", ["--rounds", "0"])])
def test_sizes_that_make_no_sense(command: str, arguments: list[str]) -> None:
    """Too small is a usage error."""
    finished = run(command, *arguments)
    assert finished.returncode == 2
    assert "usage:" in finished.stderr
