"""From samples to figures: median and spread, ratios within each turn, verdicts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Scenario, Target


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value. Up to three values have no quartiles: the extremes stand for them."""
        ordered = sorted(values)
        if len(ordered) <= 3:
            return cls(low=ordered[0], median=statistics.median(ordered), high=ordered[-1])
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(low=low, median=median, high=high)

    @property
    def noise(self) -> float:
        """The width of the spread, as a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


class Verdict(StrEnum):
    """Whether a target is met."""

    MET = "met"
    MISSED = "missed"
    CLOSE = "too close to call"  # the spread of the ratio holds the target
    NOISY = "too noisy to call"  # a percentile, on a machine that was busy with something else
    UNKNOWN = "unknown"  # one of the two was not measured


def advantages(scenario: Scenario, values: Sequence[float], others: Sequence[float]) -> list[float]:
    """How many times better one contestant was than another, turn by turn."""
    return [scenario.advantage(value, other) for value, other in zip(values, others, strict=True)]


def judge(target: Target, ratios: Sequence[float]) -> Verdict:
    """Whether a target is met: it is, or it is missed, where three quarters of the turns say so."""
    if not ratios:
        return Verdict.UNKNOWN
    spread = Spread.of(ratios)
    if spread.low >= target.advantage:
        return Verdict.MET
    return Verdict.MISSED if spread.high < target.advantage else Verdict.CLOSE
