"""JSON lines: the run, then one line for each contestant and each target; and reading them again.

The first line says what the run was made with. Lines of results hold every sample, so that other figures than medians
can be made of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .figures import Spread, Verdict, advantages, judge
from .model import CROWDED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .model import Scenario, Target
    from .runner import Round


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A target, and whether it is met."""

    target: Target
    ratio: Spread | None
    verdict: Verdict


def judged(played: Round) -> Iterator[Judged]:
    """Every target of a scenario whose contestants take part in this placement."""
    taking_part = {result.title for result in played.results}
    for target in played.scenario.targets:
        if not {target.of, target.against} <= taking_part:
            continue
        ours, theirs = played.result(target.of), played.result(target.against)
        ratios = [] if ours is None or theirs is None else advantages(played.scenario, ours.values, theirs.values)
        spread = Spread.of([target.shown(ratio) for ratio in ratios]) if ratios else None
        noisy = ratios and played.scenario.tail and played.others > CROWDED
        yield Judged(target=target, ratio=spread, verdict=Verdict.NOISY if noisy else judge(target, ratios))


class Recorder:
    """Writes results line by line, so that a run that is interrupted leaves those that it had."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def run(self, environment: Mapping[str, object], options: Mapping[str, object]) -> None:
        """The first line."""
        self._write({"record": "run", **environment, "options": options})

    def played(self, played: Round) -> None:
        """A scenario in one placement."""
        scenario = played.scenario
        where = {"scenario": scenario.name, "placement": str(played.placement)}
        for result in played.results:
            line: dict[str, object] = {"record": "result", **where, "contestant": result.title}
            line |= {"unit": scenario.unit, "better": str(scenario.better), "baseline": scenario.baseline}
            if result.samples:
                spread = Spread.of(result.values)
                line |= {"median": spread.median, "low": spread.low, "high": spread.high, "count": result.count}
                line |= {"values": result.values}
                line |= {
                    name: [getattr(sample, name) for sample in result.samples]
                    for name in ("work", "wall", "cpu", "others")
                }
                line |= {"notes": [dict(sample.notes) for sample in result.samples]}
            self._write({**line, "problem": result.problem})
        for each in judged(played):
            line = {"record": "target", **where, "of": each.target.of, "against": each.target.against}
            line |= {"at_least": each.target.at_least, "at_most": each.target.at_most, "verdict": str(each.verdict)}
            if each.ratio is not None:
                line |= {"ratio": each.ratio.median, "low": each.ratio.low, "high": each.ratio.high}
            self._write(line)

    def _write(self, line: Mapping[str, object]) -> None:
        if self._file is not None:
            print(json.dumps(line), file=self._file, flush=True)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A file that a `Recorder` wrote."""

    run: Mapping[str, Any]
    results: Mapping[tuple[str, str, str], Mapping[str, Any]]

    @classmethod
    def read(cls, file: Path) -> Recording:
        """Read one.

        Raises:
            ValueError: it is a file of something else.
        """
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except ValueError as exc:
            msg = f"{file} was not written by --json: {exc}"
            raise ValueError(msg) from exc
        if not lines or not isinstance(lines[0], dict) or lines[0].get("record") != "run":
            msg = f"{file} was not written by --json: its first line says nothing of a run"
            raise ValueError(msg)
        return cls(
            run=lines[0],
            results={
                (line["scenario"], line["placement"], line["contestant"]): line
                for line in lines
                if line["record"] == "result" and "median" in line
            },
        )


def baseline_advantage(scenario: Scenario, played: Round, title: str) -> Spread | None:
    """How many times better than the naive peer one contestant was."""
    ours, baseline = played.result(title), played.result(scenario.baseline)
    if ours is None or baseline is None:
        return None
    return Spread.of(advantages(scenario, ours.values, baseline.values))
