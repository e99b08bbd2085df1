"""What comes out of a soak, and how it is reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.stress.program import Result

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process used at one moment.

    Attributes:
        at: seconds since the beginning.
        node: its index.
        incarnation: how often it had been started anew.
        memory: anonymous memory, MiB.
        descriptors: open files.
    """

    at: float
    node: int
    incarnation: int
    memory: float
    descriptors: int


@dataclass(kw_only=True)
class Soaked(Result):
    """What came out.

    Attributes:
        nodes: how many.
        seed: of everything random.
        seconds: how long things happened, without the beginning and the end.
        sent: messages.
        delivered: messages.
        lost_reported: messages that were lost, by what their senders were told.
        lost_silently: messages that were lost, and whose senders were not told: must not be.
        doubled: messages, likewise.
        reordered: messages, likewise.
        corrupt: messages, likewise.
        talks: by how they ended for the end that began them.
        calls: likewise.
        happened: faults and changes.
        tallies: what the nodes counted: handshakes, ends of connections, hand-overs, connects.
        memory: of the first node: before, after, trend and verdict.
        descriptors: of all processes: median and most.
        samples: what each process used, second by second.
        rates: when, and how many messages came per second since the time before.
        marks: when, and what happened.
    """

    nodes: int
    seed: int
    seconds: float = 0.0
    sent: int = 0
    delivered: int = 0
    lost_reported: dict[str, int] = field(default_factory=dict)
    lost_silently: int = 0
    doubled: int = 0
    reordered: int = 0
    corrupt: int = 0
    talks: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    happened: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, dict[str, int]] = field(default_factory=dict)
    memory: dict[str, float | str] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def report(self) -> str:
        """The figures, for people."""
        lost = f"{sum(self.lost_reported.values())} lost with an error ({_counted(self.lost_reported)})"
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.memory.items())
        lines = {
            "messages": f"{self.sent} sent = {self.delivered} delivered + {lost} + {self.lost_silently} silently",
            "": f"{self.doubled} doubled, {self.reordered} reordered, {self.corrupt} changed",
            "talks": _counted(self.talks),
            "calls": _counted(self.calls),
            "happened": _counted(self.happened),
            "connects": _counted(self.tallies.get("connects", {})),
            "hand-overs": _counted(self.tallies.get("hand_overs", {})),
            "ends": _counted(self.tallies.get("ends", {})),
            "handshakes": _counted(self.tallies.get("handshakes", {}), "\n" + " " * 14),
            "memory": figures,
            "descriptors": f"{_counted(self.descriptors)}; at rest as many as at first, or it is a problem",
        }
        verdict = self.verdict("everything is accounted for")
        headline = f"{self.seconds:.0f} s, {self.nodes} nodes, seed {self.seed}: {verdict}"
        return "\n".join([headline, *(f"  {title:11} {text}" for title, text in lines.items())])


def _counted(counts: Mapping[str, int], separator: str = ", ") -> str:
    return separator.join(f"{what} {count}" for what, count in counts.items()) or "none"
