"""The command line: `python -m benchmarks`, from a checkout."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import environment, not_installed

from . import chart
from .compare import changes_table
from .credentials import Credentials
from .figures import Verdict
from .model import Job, Placement
from .record import Recorder, Recording, judged
from .runner import Plan, play
from .scenarios import SCENARIOS
from .table import number, results_table, say_environment, say_problems, targets_table
from .worker import calibrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .model import Scenario
    from .runner import Round

EXPLANATION: Final = """\
Measures trionode and its peers in one run: contestants take turns, each in a process of its own, and ratios are taken
within each turn. Prints a table for each scenario and one of all targets. See benchmarks/README.md for what the numbers
can tell and what they cannot.

The exit status is 0 when everything ran, 1 when something failed, and with --strict also when a target is missed.
"""

EXAMPLES: Final = """\
examples:
  python -m benchmarks                                     everything, about 25 minutes
  python -m benchmarks --only connect,call                 two scenarios
  python -m benchmarks --json out.jsonl --chart out.svg    and keep the figures
  python -m benchmarks --quick --only messages-100         to see that it works; the numbers mean nothing
  python -m benchmarks --against ../other --only call      another checkout's trionode takes its turns, too
  python -m benchmarks compare old.jsonl new.jsonl         two recordings side by side
  python -m benchmarks once call trionode --seconds 20     one contestant in this process: for a profiler
  python -m benchmarks list                                what there is
"""

#: Wide enough for every table, where standard output is no terminal. Columns.
_PAPER: Final = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {"compare": _compare, "list": _list, "once": _once}
    out = Console() if sys.stdout.isatty() else Console(width=_PAPER)
    if given and given[0] in verbs:
        return verbs[given[0]](given[1:], out)
    return _run(given, out)


# Running ------------------------------------------------------------------------------------------------------------


def _run(arguments: Sequence[str], out: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=EXPLANATION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", metavar="NAMES", type=_scenarios, default=list(SCENARIOS.values()), help="scenarios")
    parser.add_argument(
        "--placement", choices=["one", "two"], help="both ends in one process, or in two; default: both"
    )
    parser.add_argument("--repeat", type=_positive, metavar="N", help="turns (default: 7, with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="as little as possible: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON lines")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart: .svg, .png or .pdf")
    parser.add_argument("--against", type=_checkout, metavar="DIRECTORY", help="a checkout of another commit")
    parser.add_argument("--strict", action="store_true", help="fail where a target is missed")
    told = parser.parse_args(arguments)
    if told.chart is not None and (why := not_installed("matplotlib")):
        parser.error(f"--chart: {why}")
    about = environment()
    say_environment(out, about)
    rounds: list[Round] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        Credentials.create(directory)
        file = None if told.json is None else stack.enter_context(told.json.open("w", encoding="utf-8"))
        recorder = Recorder(file)
        recorder.run(about, {name: str(value) for name, value in vars(told).items() if name != "only"})
        repeat = told.repeat or (2 if told.quick else 7)
        plan = Plan(credentials=directory, repeat=repeat, quick=told.quick, against=told.against)
        for played in _played(plan, told.only, told.placement, stack):
            rounds.append(played)
            recorder.played(played)
            out.print(results_table(played))
            say_problems(out, [played])
    out.print(targets_table(rounds))
    say_problems(out, rounds)
    if told.chart is not None:
        chart.draw(rounds, told.chart, _caption(about))
    failed = any(result.problem and not result.skipped for played in rounds for result in played.results)
    missed = any(each.verdict is Verdict.MISSED for played in rounds for each in judged(played))
    return 1 if failed or (told.strict and missed) else 0


def _caption(about: Mapping[str, object]) -> str:
    """What stands below a chart: date, commit, versions and machine."""
    versions, machine = about["versions"], about["machine"]
    assert isinstance(versions, dict)
    assert isinstance(machine, dict)
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "trio", "pyOpenSSL", "grpcio"))
    return f"{about['date']}, commit {about['commit']}, {packages}, {machine['cores']} cores of {machine['cpu']}"


def _played(plan: Plan, scenarios: Sequence[Scenario], placement: str | None, stack: ExitStack) -> Iterator[Round]:
    wanted = {None: set(Placement), "one": {Placement.ONE}, "two": {Placement.TWO}}[placement]
    games = [(scenario, place) for scenario in scenarios for place in scenario.placements if place in wanted]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("", total=sum(plan.steps(*game) for game in games))
    for scenario, place in games:

        def progress(what: str, scenario: Scenario = scenario, place: Placement = place) -> None:
            bar.update(task, advance=1, description=f"{scenario.name}, {place}: {what}")

        plan.progress = progress
        yield trio.run(play, plan, scenario, place)


# Other verbs --------------------------------------------------------------------------------------------------------


def _compare(arguments: Sequence[str], out: Console) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Two recordings side by side.")
    parser.add_argument("old", type=_recording)
    parser.add_argument("new", type=_recording)
    told = parser.parse_args(arguments)
    out.print(changes_table(told.old, told.new))
    return 0


def _list(arguments: Sequence[str], out: Console) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks list", description="What there is.").parse_args(arguments)
    for scenario in SCENARIOS.values():
        out.print(f"[bold]{scenario.name}[/]  {scenario.measures}", highlight=False)
        for contestant in scenario.contestants:
            why = contestant.unavailable()
            out.print(
                f"    {escape(contestant.title + ('' if why is None else f' (not here: {why})'))}", highlight=False
            )
        for target in scenario.targets:
            out.print(f"    [green]target[/] {escape(str(target))}", highlight=False)
    return 0


def _once(arguments: Sequence[str], out: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks once", description="One contestant, both ends in this process: for a profiler."
    )
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("contestant")
    parser.add_argument("--seconds", type=float, default=5.0)
    told = parser.parse_args(arguments)
    scenario = SCENARIOS[told.scenario]
    if told.contestant not in [each.title for each in scenario.contestants]:
        parser.error(f"{scenario.name} has no contestant {told.contestant!r}")
    measure = scenario.contestant(told.contestant).measure
    with tempfile.TemporaryDirectory() as directory:
        job = Job(credentials=Credentials.create(Path(directory)), parameters=scenario.full, count=scenario.start)
        count = calibrate(lambda some: measure(replace(job, count=some)), job.count, told.seconds)
        sample = measure(replace(job, count=count))
    out.print(
        f"{number(sample.value)} {scenario.unit}, {sample.work} in {sample.wall:.2f} s, {sample.cpu:.2f} s of CPU"
    )
    return 0


# Arguments ----------------------------------------------------------------------------------------------------------


def _scenarios(names: str) -> list[Scenario]:
    unknown = [name for name in names.split(",") if name not in SCENARIOS]
    if unknown:
        msg = f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
        raise argparse.ArgumentTypeError(msg)
    return [SCENARIOS[name] for name in names.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"{text} is no positive whole number"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _checkout(text: str) -> Path:
    directory = Path(text)
    if not (directory / "trionode" / "__init__.py").is_file():
        msg = f"{text} has no trionode package in it"
        raise argparse.ArgumentTypeError(msg)
    return directory


def _recording(text: str) -> Recording:
    try:
        return Recording.read(Path(text))
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
