"""How stress programs are started and what they print, which is the same for all: `python -m benchmarks.stress`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import benchmarks.stress
from benchmarks import child
from benchmarks.stress.command import PROGRAMS, load, main
from benchmarks.stress.program import MOST_PROBLEMS, Program, Result, parse, start

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from benchmarks.stress.program import Progress

FOLDER = Path(benchmarks.stress.__file__).parent


@dataclass(kw_only=True)
class Counted(Result):
    """What the program below gives."""

    number: int
    tally: Counter[str] = field(default_factory=Counter)
    data: bytes = b""

    def report(self) -> str:
        """A line."""
        return f"number {self.number}: {self.verdict('good')}"


def counting(results: Sequence[Counted], *, seeded: bool = False) -> Program:
    """A program that gives these results."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=1, help="a number")

    def complete(options: argparse.Namespace) -> str | None:
        return None if options.number > 0 else "--number is positive"

    def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
        progress.say(f"{options.number}, {'quick' if options.quick else 'slow'}")
        yield from results

    return Program(
        name="counting",
        asks="Can it count?",
        explanation="What is reported:\n  number  a number\n",
        examples=[("--number 2", "two")],
        quick="fewer",
        seeded=seeded,
        add_options=add_options,
        complete=complete,
        run=run,
    )


# Starting one ---------------------------------------------------------------------------------------------------------


def test_each_program_is_listed_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name, and with --help."""
    for arguments in [], ["--help"], ["-h"]:
        assert main(arguments) == 0
        told = capsys.readouterr()
        lines = [line for line in told.out.splitlines() if line.startswith("  ")]
        assert [line.split()[0] for line in lines] == list(PROGRAMS)
        assert all(line.endswith("?") and len(line) <= 120 for line in lines)
        assert "[NAME [options]]" in told.out
        assert told.err == ""


def test_each_program_that_there_is_can_be_started() -> None:
    """None is forgotten, and each has the name that it is started by."""
    found = [file for file in FOLDER.rglob("*.py") if "\nPROGRAM: Final" in file.read_text(encoding="utf-8")]
    modules = {str(file.relative_to(FOLDER).with_suffix("")).replace("/", ".") for file in found}
    assert modules == set(PROGRAMS.values())
    assert [load(name).name for name in PROGRAMS] == list(PROGRAMS)


def test_a_name_that_there_is_not_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    assert main(["nothing"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "no stress program 'nothing'; there are soak, rotation" in told.err


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked, what has to hold, what the numbers mean, and examples."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: python -m benchmarks.stress {name}" in told
    assert load(name).asks in told
    for part in "What is reported", "The exit status is", "examples:", "--quick", "--json":
        assert part in told


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("soak", ["--seconds", "0"]),
        ("soak", ["--nodes", "1"]),
        ("soak", ["--rate", "0"]),
        ("soak", ["--seed", "many"]),
        ("rotation", ["--seconds", "inf"]),
        ("rotation", ["--channels", "0"]),
        ("rotation", ["--channels", "many"]),
        ("faults", ["--every", "0"]),
        ("faults", ["--fault", "no_fault"]),
        ("fuzz", ["--target", "nothing"]),
        ("fuzz", ["--target", "frames", "--reproduce", "no hex"]),
        ("fuzz", ["--reproduce", "00"]),
        ("flood", ["--crowd", "0"]),
        ("flood", ["--seconds", "0"]),
        ("outage", ["--clients", "0"]),
        ("interrupt", ["--rounds", "0"]),
        ("outage", ["--seconds", "0"]),
        ("mesh", ["--nodes", "1"]),
        ("crossing", ["--rounds", "0"]),
        ("discovery", ["--nodes", "5"]),
        ("discovery", ["--processes", "1"]),
        ("discovery", ["--ttl", "0"]),
        ("interleaving", ["--calls", "0"]),
        ("enrolment", ["--lifetime", "1"]),
        ("idle", ["--connections", "1"]),
        ("idle", ["--interval", "0"]),
        ("idle", ["--seconds", "0"]),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything is done, with a word about why."""
    with pytest.raises(SystemExit) as ended:
        main([name, *arguments])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: " in told.err
    assert arguments[-2].removeprefix("--") in told.err.splitlines()[-1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_quick_makes_less_of_it(name: str) -> None:
    """What is not said otherwise is smaller, or nothing but `quick` itself says so."""
    program = load(name)
    seed = ["--seed", "1"] if program.seeded else []
    full, quick = vars(parse(program, seed)), vars(parse(program, ["--quick", *seed]))
    assert quick["quick"]
    for option, value in quick.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert value <= full[option] or option == "every"  # of that, more is less


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    """As a user starts it; and from another directory, where the search path leads to both packages."""
    command = [sys.executable, *child.command("benchmarks.stress", "crossing", "--rounds", "2", "--json")[1:]]
    done = subprocess.run(
        command, env=child.environment(), cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 2


# What it prints -------------------------------------------------------------------------------------------------------


def test_results_are_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Each, and what it was run with; progress is apart from it."""
    assert start(counting([Counted(number=1), Counted(number=2)]), ["--quick", "--number", "3"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:2] == ["number 1: good", "number 2: good"]
    assert "trionode" in told.out.splitlines()[-1]
    assert told.err == "counting: 3, quick\n"


def test_results_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With everything that they have, the verdict, and what they were made with."""
    results = [Counted(number=1, tally=Counter("aab"), data=b"\1\2"), Counted(number=2, problems=["odd"])]
    assert start(counting(results), ["--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["program"], first["ok"], first["number"]) == ("counting", True, 1)
    assert (first["tally"], first["data"]) == ({"a": 2, "b": 1}, "0102")
    assert (second["ok"], second["problems"]) == (False, ["odd"])
    assert {"date", "commit", "versions", "machine"} <= first["environment"].keys()


def test_a_problem_in_any_result_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status says so, and standard error which."""
    results = [Counted(number=1, problems=[f"odd {number}" for number in range(50)]), Counted(number=2)]
    assert start(counting(results), []) == 1
    told = capsys.readouterr()
    assert "number 1: 50 PROBLEMS" in told.out
    assert "counting: PROBLEM: odd 0\n" in told.err
    assert told.err.count("PROBLEM") == MOST_PROBLEMS


def test_a_seed_is_another_each_time_and_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed, so that any run can be repeated."""
    program = counting([], seeded=True)
    seeds = {parse(program, ["--quick"]).seed for _ in range(3)}
    assert len(seeds) == 3
    assert parse(program, ["--seed", "4711"]).seed == 4711
    start(program, ["--seed", "4711"])
    assert capsys.readouterr().err.startswith("counting: seed 4711\n")
