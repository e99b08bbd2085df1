"""The chart: bars as ratios to the naive peer, with targets marked; sweeps as lines. Headless."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from .arena import OURS, PEERS
from .record import baseline_advantage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .figures import Spread
    from .runner import Round

#: Inches.
_WIDTH: Final = 11.0
_BAR: Final = 0.24
_SWEEP: Final = 3.4

_OURS: Final = ("#c2410c", "#de6b2c", "#ea8a4b", "#f3b184")
#: In the order of `PEERS`, whose first four are ours.
_PEERS: Final = (*_OURS, "#1e293b", "#475569", "#0f766e", "#0891b2", "#6d28d9", "#65a30d", "#a16207")
_LIMITS: Final = ("#9ca3af", "#d1d5db")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        title: the contestant's.
        series: its peer, which decides on its colour.
        advantage: over the naive peer.
        targets: its targets, as advantages over the naive peer.
    """

    title: str
    series: str
    advantage: Spread
    targets: Sequence[float]


def bars(played: Round) -> Iterator[Bar]:
    """The bars of one scenario in one placement, best first."""
    scenario = played.scenario
    found = []
    for contestant in scenario.contestants:
        advantage = baseline_advantage(scenario, played, contestant.title)
        if advantage is None:
            continue
        marks = []
        for target in scenario.targets:
            other = baseline_advantage(scenario, played, target.against)
            if target.of == contestant.title and other is not None:
                marks.append(target.advantage * other.median)
        found.append(Bar(title=contestant.title, series=contestant.series, advantage=advantage, targets=marks))
    yield from sorted(found, key=lambda bar: -bar.advantage.median)


def draw(rounds: Sequence[Round], file: Path, caption: str) -> None:
    """Draw into a file whose suffix says what it is to be: svg, png, pdf."""
    from matplotlib.figure import Figure  # an extra has it

    grouped = [(played, list(bars(played))) for played in rounds if not played.scenario.sweep]
    groups = [(played, found) for played, found in grouped if len(found) > 1]
    sweeps = [played for played in rounds if played.scenario.sweep and any(each.samples for each in played.results)]
    lines = sum(len(found) + 1.6 for _, found in groups)
    heights = [max(lines * _BAR, 0.5), *([_SWEEP] if sweeps else [])]
    figure: Any = Figure(figsize=(_WIDTH, sum(heights) + 1.2), layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    colours = palette(rounds)
    _draw_groups(parts[0][0].subplots(), groups, colours)
    if sweeps:
        for axes, played in zip(parts[1][0].subplots(1, len(sweeps), squeeze=False)[0], sweeps, strict=True):
            _draw_sweep(axes, played, colours)
    figure.suptitle("trionode and its peers", fontsize=12, fontweight="bold")
    figure.supxlabel(caption, fontsize=7, color="0.4")
    figure.savefig(file)


def palette(rounds: Sequence[Round]) -> Mapping[str, str]:
    """A colour for each series, the same in every scenario: ours stand out, limits, which are no peers, are grey."""
    names = sorted({contestant.series for played in rounds for contestant in played.scenario.contestants})
    ours, limits = cycle(_OURS), cycle(_LIMITS)
    peers = dict(zip(PEERS, _PEERS, strict=False))
    return {
        name: next(ours) if name.startswith(OURS) else peers[name] if name in peers else next(limits) for name in names
    }


def _draw_groups(axes: Any, groups: Sequence[tuple[Round, Sequence[Bar]]], colours: Mapping[str, str]) -> None:
    y, places, labels = 0.0, [], []
    for played, found in groups:
        title = f"{played.scenario.name}, {played.placement}"
        axes.text(0.005, y, title, transform=axes.get_yaxis_transform(), fontweight="bold", fontsize=8, va="center")
        y += 1
        for bar in found:
            spread = bar.advantage
            error = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.barh(y, spread.median - 1, left=1, height=0.8, color=colours[bar.series])
            axes.errorbar(spread.median, y, xerr=error, color="black", linewidth=0.8, capsize=1.5)
            better = spread.median >= 1
            axes.annotate(
                f"{spread.median:.3g}",
                (spread.high if better else spread.low, y),
                xytext=(4 if better else -4, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                ha="left" if better else "right",
            )
            for mark in bar.targets:
                axes.plot([mark, mark], [y - 0.55, y + 0.55], color="#b91c1c", linewidth=2)
            places.append(y)
            labels.append(bar.title)
            y += 1
        y += 0.6
    axes.set_xscale("log")
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(y, -1)
    axes.grid(axis="x", which="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("times better than the naive peer of its group; longer is better; red: target", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_sweep(axes: Any, played: Round, colours: Mapping[str, str]) -> None:
    scenario = played.scenario
    series: dict[str, list[tuple[float, float]]] = {}
    for contestant in scenario.contestants:
        result = played.result(contestant.title)
        if result is not None:
            median = sorted(result.values)[len(result.values) // 2]
            series.setdefault(contestant.series, []).append((contestant.x, median))
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colours[name], label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(scenario.name, fontsize=8, fontweight="bold")
    axes.set_xlabel(scenario.sweep, fontsize=8)
    axes.set_ylabel(scenario.unit, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(which="both", color="0.92", linewidth=0.6)
    axes.legend(fontsize=6)
