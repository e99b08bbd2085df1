"""What many durations come to: percentiles, and a summary that programs report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that so large a part of the values does not exceed.

    Args:
        values: at least one.
        part: from 0 to 1, to three digits.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1))]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long an operation took, in milliseconds; zeros where it was never done.

    Attributes:
        count: how often it was done.
        median_ms: half of them took no longer.
        p99_ms: the 99th percentile.
        worst_ms: the longest.
    """

    count: int = 0
    median_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Sum up durations in seconds."""
        if not seconds:
            return cls()
        median, p99, worst = (round(percentile(seconds, part) * 1000, 3) for part in (0.5, 0.99, 1))
        return cls(count=len(seconds), median_ms=median, p99_ms=p99, worst_ms=worst)

    def __str__(self) -> str:
        if not self.count:
            return "none"
        return f"{self.median_ms:.2f} ms median, {self.p99_ms:.2f} ms p99, {self.worst_ms:.2f} ms worst"
