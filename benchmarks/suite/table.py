"""Tables, for the terminal."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .figures import Spread, Verdict
from .model import CROWDED
from .record import baseline_advantage, judged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from .runner import Round

_STYLES = {
    Verdict.MET: "green",
    Verdict.MISSED: "red",
    Verdict.CLOSE: "yellow",
    Verdict.NOISY: "yellow",
    Verdict.UNKNOWN: "dim",
}


def number(value: float) -> str:
    """Three digits, or the whole number."""
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value:.3g}"


def results_table(played: Round) -> Table:
    """One scenario in one placement."""
    scenario = played.scenario
    table = Table(
        title=f"[bold]{scenario.name}[/], {played.placement}\n{escape(scenario.measures)}",
        title_justify="left",
        title_style="",
        expand=False,
    )
    table.add_column(f"{scenario.unit}, {scenario.better} is better")
    table.add_column("median", justify="right")
    table.add_column("quartiles", justify="right")
    table.add_column("CPU µs each", justify="right")
    table.add_column(f"times {scenario.baseline}", justify="right")
    for result in played.results:
        if not result.samples:
            table.add_row(escape(result.title), "[bold red]skipped[/]" if result.skipped else "[bold red]FAILED[/]")
            continue
        spread = Spread.of(result.values)
        cpu = statistics.median(sample.cpu / sample.work for sample in result.samples) * 1e6
        advantage = baseline_advantage(scenario, played, result.title)
        table.add_row(
            escape(result.title),
            number(spread.median),
            f"{number(spread.low)} - {number(spread.high)}",
            number(cpu),
            "" if advantage is None else number(advantage.median),
        )
    if played.others > CROWDED:
        table.caption = f"[bold red]NOISY[/]: other programs kept {played.others:.1f} cores busy meanwhile"
    return table


def targets_table(rounds: Iterable[Round]) -> Table:
    """Every target, and whether it is met."""
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for heading in ("scenario", "placement", "target"):
        table.add_column(heading)
    table.add_column("measured", justify="right")
    table.add_column("quartiles", justify="right")
    table.add_column("verdict")
    for played in rounds:
        for each in judged(played):
            ratio = each.ratio
            table.add_row(
                played.scenario.name,
                str(played.placement),
                escape(str(each.target)),
                "" if ratio is None else f"{ratio.median:.2f}",
                "" if ratio is None else f"{ratio.low:.2f} - {ratio.high:.2f}",
                f"[{_STYLES[each.verdict]}]{each.verdict}[/]",
            )
    return table


def say_environment(console: Console, environment: Mapping[str, object]) -> None:
    """Print what the run is made with."""
    for heading, value in environment.items():
        shown = ", ".join(f"{name} {what}" for name, what in value.items()) if isinstance(value, dict) else value
        console.print(f"[dim]{heading}:[/] {escape(str(shown))}", highlight=False, soft_wrap=True)


def say_problems(console: Console, rounds: Iterable[Round]) -> None:
    """Print what was not measured, and why: loudly, for a table with a peer missing looks like one that is complete."""
    for played in rounds:
        for result in played.results:
            if result.problem is not None:
                word = "SKIPPED" if result.skipped else "FAILED"
                where = f"{played.scenario.name}, {played.placement}: {result.title}: {result.problem}"
                console.print(f"[bold red]{word}[/] {escape(where)}", highlight=False, soft_wrap=True)
