"""Two recordings side by side: what changed between two commits, and what is only the machine.

Absolute numbers of two runs differ by the mood of the machine. So each number is compared as a ratio to the naive peer
of its own run, and a change counts where it is larger than the spread of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from benchmarks.figures import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from benchmarks.record import Recording


@dataclass(frozen=True, kw_only=True)
class Change:
    """One contestant in two runs.

    Attributes:
        scenario: its name.
        placement: where the ends were.
        contestant: its title.
        absolute: how many times better the new run was.
        relative: the same of ratios to the naive peer; None for the naive peer, and where it was not measured.
        noise: the width of both spreads, as a part.
    """

    scenario: str
    placement: str
    contestant: str
    absolute: float
    relative: float | None
    noise: float

    @property
    def word(self) -> str:
        """What to make of it."""
        change = self.absolute if self.relative is None else self.relative
        if self.relative is None or abs(change - 1) <= self.noise:
            return ""
        return "better" if change > 1 else "worse"


def changes(old: Recording, new: Recording) -> Iterator[Change]:
    """For each contestant that both have."""
    for key in old.results.keys() & new.results.keys():
        scenario, placement, contestant = key
        before, after = old.results[key], new.results[key]
        absolute = _advantage(before, after)
        baseline = (scenario, placement, after["baseline"])
        relative = None
        noise = _spread(before).noise + _spread(after).noise
        if baseline != key and baseline in old.results and baseline in new.results:
            relative = absolute / _advantage(old.results[baseline], new.results[baseline])
            noise += _spread(old.results[baseline]).noise + _spread(new.results[baseline]).noise
        # Quartiles are half the width at each side, of each of the medians that go in.
        yield Change(
            scenario=scenario,
            placement=placement,
            contestant=contestant,
            absolute=absolute,
            relative=relative,
            noise=noise / 2,
        )


def _spread(line: Mapping[str, Any]) -> Spread:
    return Spread(low=line["low"], median=line["median"], high=line["high"])


def _advantage(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    ratio = float(after["median"] / before["median"])
    return ratio if after["better"] == "higher" else 1 / ratio


def changes_table(old: Recording, new: Recording) -> Table:
    """All of them, grouped as the scenarios are."""
    table = Table(title=f"{old.run['commit']} → {new.run['commit']}: times better than before", title_justify="left")
    for heading in ("scenario", "placement", "contestant"):
        table.add_column(heading)
    for heading in ("absolute", "against the naive peer", "noise"):
        table.add_column(heading, justify="right")
    table.add_column("")
    order = list(new.results)
    ranked = sorted(changes(old, new), key=lambda each: order.index((each.scenario, each.placement, each.contestant)))
    for each in ranked:
        table.add_row(
            each.scenario,
            each.placement,
            escape(each.contestant),
            f"{each.absolute:.2f}",
            "" if each.relative is None else f"{each.relative:.2f}",
            f"± {each.noise:.0%}",
            each.word,
        )
    return table
