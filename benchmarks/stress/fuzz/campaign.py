"""One campaign against one target: try, watch what was reached, keep what reached something new, and begin from there.

Coverage is what the target's own files did: pairs of lines that followed each other, by `sys.settrace`. That is slow,
and it is all that is needed: the decoders are a few hundred lines. (libFuzzer, by atheris, was tried: it is far faster
on a single function of bytes, but it ends the process instead of returning, and a connection is no such function.)

Three rules hold for every target, besides its own:

*Only what is documented.* `Target.run` returns what came of an input; whatever it raises is a finding.

*Memory is bounded.* At its peak a run has allocated no more than `Target.memory` allows for the length of its input.

*Work is linear.* A part of an input, repeated four times as often, makes four times as many calls, and not more.
Calls are counted, not seconds, so this does not depend on the machine. It does not see loops within C.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from benchmarks.stress.program import Result

from .mutation import mutate_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import CodeType, FrameType

#: One in so many inputs is measured although it reached nothing new.
_MEASURE_EVERY: Final = 64
#: How often a part of an input is repeated, to see whether work is linear; and then as many times that.
_REPEATS: Final = 24
_MORE: Final = 4
#: What linear work may be off by, and calls that do not count at all (a first import, a cache).
_SLACK: Final = 1.25
_CALLS_FOR_NOTHING: Final = 3000

Edge = tuple[object, int, int]


class Violation(Exception):  # noqa: N818 -- not an error of this program: what it looks for
    """A target did what it must not do."""


class Target(ABC):
    """Something that takes bytes from the network.

    Attributes:
        name: for the command line.
        about: what it is, in a few words.
        traced: the files whose coverage guides.
        longest: inputs are cut to so many bytes.
        memory: bytes that a run may allocate, and so many more for each byte of input.
        repeats: whether an input with a part of it repeated is another input.
        measured: one in so many inputs that reached something new has its memory and its work measured.
    """

    name: str
    about: str
    traced: Sequence[Path] = ()
    longest: int = 4096
    memory: tuple[int, int] = (256 * 1024, 64)
    measured: int = 1
    repeats: bool = True

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Valid inputs."""

    @abstractmethod
    def run(self, data: bytes) -> str:
        """Take one input; what came of it, in a word or a sentence without numbers.

        Raises:
            Exception: whatever it is, it is a finding.
        """

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another input, made of one and pieces of another."""
        return mutate_bytes(rng, data, other)

    def repeated(self, rng: Random, data: bytes) -> Callable[[int], bytes] | None:
        """An input with one part repeated so many times; None where that makes no sense."""
        begin = rng.randrange(len(data) + 1)
        end = min(len(data), begin + rng.choice((1, 3, 8, 16)))
        return lambda times: data[:begin] + data[begin:end] * times + data[end:]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An input that breaks a rule.

    Attributes:
        target: the target's name.
        seed: of the campaign.
        problem: what happened.
        data: the input.
    """

    target: str
    seed: int
    problem: str
    data: bytes


@dataclass(kw_only=True)
class Report(Result):
    """What came of a campaign.

    Attributes:
        target: the target's name.
        seed: of the campaign.
        seconds: how long it went on.
        inputs: that were tried.
        kept: inputs that reached something new.
        edges: between lines, that were reached.
        outcomes: what came of inputs, and how often.
        findings: inputs that break a rule; each is a problem, too.
    """

    target: str
    seed: int
    seconds: float = 0.0
    inputs: int = 0
    kept: int = 0
    edges: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Note a finding."""
        self.findings.append(finding)
        again = f"--target {finding.target} --reproduce {finding.data.hex()}"
        self.problems.append(f"{finding.target}, seed {finding.seed}: {finding.problem}\n  {again}")

    def so_far(self) -> str:
        """How far it is."""
        return f"{self.target}: {self.inputs} inputs in {self.seconds:.1f} s, {self.kept} kept, {self.edges} edges"

    def report(self) -> str:
        """The figures, for people."""
        outcomes = [f"  {times:7}  {outcome}" for outcome, times in self.outcomes.most_common(8)]
        return "\n".join([f"{self.so_far()}, {len(self.findings)} findings", *outcomes])


class Campaign:
    """A campaign against one target."""

    #: After so many findings a campaign ends: more of them would say the same.
    most_findings = 5

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._rng = Random(f"{target.name} {seed}")  # noqa: S311 -- to be repeated, not to be unpredictable
        self._files = frozenset(str(path) for path in target.traced)
        self._reached: set[Edge | str] = set()
        self._corpus: list[bytes] = []
        self._problems: set[str] = set()
        self.report = Report(target=target.name, seed=seed)

    def go(
        self,
        *,
        seconds: float | None = None,
        inputs: int | None = None,
        tell: Callable[[Callable[[], str]], None] | None = None,
    ) -> Report:
        """Try inputs until so many were tried, or the time is over, or there is enough to look into."""
        report, began = self.report, time.monotonic()
        seeds = self._target.seeds()
        self._rng.shuffle(seeds)
        while len(report.findings) < self.most_findings:
            report.seconds = time.monotonic() - began
            if tell is not None:
                tell(report.so_far)
            if report.inputs >= inputs if inputs is not None else report.seconds >= (seconds or 0):
                break
            if seeds:
                self._try(seeds.pop())
            else:
                self._try(self._mutated())
        return report

    def _mutated(self) -> bytes:
        rng, corpus = self._rng, self._corpus or [b""]
        # An input that reached something new lately is worth more.
        chosen = corpus[-rng.randrange(1, min(len(corpus), 16) + 1)] if rng.random() < 0.5 else rng.choice(corpus)
        return self._target.mutate(rng, chosen, rng.choice(corpus))[: self._target.longest]

    def _try(self, data: bytes) -> None:
        report, target = self.report, self._target
        report.inputs += 1
        reached: set[Edge | str] = set()
        try:
            outcome = self._traced(data, reached)
        except Exception as exc:  # noqa: BLE001 -- that is what is looked for
            self._found(data, f"{type(exc).__name__}: {exc}")
            return
        reached.add(outcome)
        report.outcomes[outcome] += 1
        new = not reached <= self._reached
        if new:
            self._reached |= reached
            self._corpus.append(data)
            report.kept, report.edges = len(self._corpus), len(self._reached)
        if (new and len(self._corpus) % target.measured == 0) or report.inputs % (
            _MEASURE_EVERY * target.measured
        ) == 0:
            try:
                check_memory(target, data)
                check_work(target, self._rng, data)
            except Violation as exc:
                self._found(exc.args[1] if len(exc.args) > 1 else data, str(exc.args[0]))

    def _found(self, data: bytes, problem: str) -> None:
        if problem not in self._problems:
            self._problems.add(problem)
            report = self.report
            report.add(Finding(target=report.target, seed=report.seed, problem=problem, data=data))

    def _traced(self, data: bytes, reached: set[Edge | str]) -> str:
        files = self._files
        if not files:
            return self._target.run(data)
        wanted: dict[CodeType, bool] = {}
        # The line before, too: a line alone does not say how it was reached.
        last: dict[FrameType, int] = {}

        def on_line(frame: FrameType, event: str, _: object) -> object:
            if event == "line":
                reached.add((frame.f_code, last.get(frame, 0), frame.f_lineno))
                last[frame] = frame.f_lineno
            elif event == "return":
                last.pop(frame, None)
            return on_line

        def on_call(frame: FrameType, _event: str, _: object) -> object:
            code = frame.f_code
            trace = wanted.get(code)
            if trace is None:
                trace = wanted[code] = code.co_filename in files
            return on_line if trace else None

        before = sys.gettrace()
        sys.settrace(on_call)  # type: ignore[arg-type]  # typed more narrowly than it is
        try:
            return self._target.run(data)
        finally:
            sys.settrace(before)


def check_memory(target: Target, data: bytes) -> None:
    """Check that a run allocates no more than it may.

    Raises:
        Violation: it does.
    """
    base, factor = target.memory
    most = base + factor * len(data)
    target.run(data)  # what is cached once is not counted
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        target.run(data)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    if peak > most:
        msg = f"{peak} bytes of memory for {len(data)} bytes of input; at most {most} are allowed"
        raise Violation(msg)


def check_work(target: Target, rng: Random, data: bytes) -> None:
    """Check that work grows as the input does.

    Raises:
        Violation: it grows faster; its second argument is the input.
    """
    repeated = target.repeated(rng, data) if target.repeats else None
    if repeated is None:
        return
    few, many = (calls(target, repeated(times)) for times in (_REPEATS, _MORE * _REPEATS))
    if many > _MORE * few * _SLACK + _CALLS_FOR_NOTHING:
        msg = f"{few} calls for a part repeated {_REPEATS} times, {many} for {_MORE} times as many"
        raise Violation(msg, repeated(_MORE * _REPEATS))


def calls(target: Target, data: bytes) -> int:
    """How many calls, of functions in Python and in C, a run makes."""
    count = 0

    def on_event(_frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        target.run(data)
    finally:
        sys.setprofile(before)
    return count
