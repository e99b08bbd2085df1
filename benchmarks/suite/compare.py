"""Two recordings side by side: what changed between two commits, and what only between two days of a machine.

Absolute numbers of two runs differ because the machine was busy with other things. So each number is compared as a
ratio to the naive peer of its own run. Every number is an interval here, from quartile to quartile, and so is what is
made of them: a change counts where the interval leaves 1 outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .figures import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .record import Recording


@dataclass(frozen=True, kw_only=True)
class Change:
    """One contestant in two runs.

    Attributes:
        scenario: its name.
        placement: where the ends were.
        contestant: its title.
        absolute: how many times better the new run was.
        relative: the same of ratios to the naive peer; None for the naive peer, and where it was not measured.
    """

    scenario: str
    placement: str
    contestant: str
    absolute: Spread
    relative: Spread | None

    @property
    def word(self) -> str:
        """*better* or *worse* where the change is more than noise; else nothing."""
        if self.relative is None or self.relative.low <= 1 <= self.relative.high:
            return ""
        return "better" if self.relative.low > 1 else "worse"


def changes(old: Recording, new: Recording) -> Iterator[Change]:
    """The changes of each contestant that both runs have, in the order of the new run."""
    for key, after in new.results.items():
        if key not in old.results:
            continue
        scenario, placement, contestant = key
        absolute = _advantage(old.results[key], after)
        baseline = (scenario, placement, after["baseline"])
        relative = None
        if baseline != key and baseline in old.results and baseline in new.results:
            relative = _quotient(absolute, _advantage(old.results[baseline], new.results[baseline]))
        yield Change(
            scenario=scenario, placement=placement, contestant=contestant, absolute=absolute, relative=relative
        )


def _advantage(before: Mapping[str, Any], after: Mapping[str, Any]) -> Spread:
    was, is_now = (Spread(low=line["low"], median=line["median"], high=line["high"]) for line in (before, after))
    return _quotient(is_now, was) if after["better"] == "higher" else _quotient(was, is_now)


def _quotient(one: Spread, other: Spread) -> Spread:
    return Spread(low=one.low / other.high, median=one.median / other.median, high=one.high / other.low)


def changes_table(old: Recording, new: Recording) -> Table:
    """All changes, as a table."""
    table = Table(title=f"{old.run['commit']} → {new.run['commit']}: times better than before", title_justify="left")
    for heading in ("scenario", "placement", "contestant"):
        table.add_column(heading)
    for heading in ("absolute", "against the naive peer", "interval"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for each in changes(old, new):
        relative = each.relative
        table.add_row(
            each.scenario,
            each.placement,
            escape(each.contestant),
            f"{each.absolute.median:.2f}",
            "" if relative is None else f"{relative.median:.2f}",
            "" if relative is None else f"{relative.low:.2f} - {relative.high:.2f}",
            each.word,
        )
    return table
