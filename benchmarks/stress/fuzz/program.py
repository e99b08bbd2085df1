"""Hostile bytes for everything that reads from the network: documented outcomes, bounded memory, linear work?"""

from __future__ import annotations

import argparse
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.stress.program import Program, Progress, Result

from . import chain_life, chains, decoders, dispatch, live
from .campaign import Campaign, check_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .campaign import Report, Target

EXPLANATION: Final = """\
Takes valid messages, frames and whole lives of connections, changes them, and has them read by

  decoders     the frame decoder, the hello reader, control messages, the scanner of TLS records, typed messages, files
               of the local registry, certificates
  chains       certificates and revocation lists, almost valid: presented, trusted, loaded, followed, shown
  connections  one by itself, from either side: channels open, fragments or a hand-over under way
  nodes        inside real TLS sessions, at every stage, beside honest peers (live-…)

What reaches something new is kept and changed further. An input is a finding if anything but a documented error comes
of it, if it takes more memory than its length allows, if four times as much of it makes more than four times the calls,
or if a node is worse off afterwards. It is printed as hex, with the seed; --reproduce runs it again. The seed is
another one each time, and printed; the same seed gives the same inputs as long as the code is the same, but for what
TLS and certificates draw themselves.

What is reported, for each target: inputs that were tried, those that were kept because they reached something new, the
edges between lines that were reached, findings, and what came of the inputs.
"""

#: Inputs that --quick tries, by what one costs.
QUICK: Final = {"live": 5, "connection": 40, "registry": 40, "chains": 20, "": 300}


def targets() -> list[Target]:
    """All of them."""
    return [*decoders.targets(), *chains.targets(), *dispatch.targets(), *live.targets(), *chain_life.targets()]


def quick_inputs(target: Target) -> int:
    """How many inputs --quick tries."""
    return next(count for prefix, count in QUICK.items() if target.name.startswith(prefix))


class ListTargets(argparse.Action):
    """Prints which targets there are, and ends, as `--help` does."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:  # noqa: A002 -- its name
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and end."""
        for target in targets():
            print(f"{target.name:20} {target.about}")
        parser.exit()


@dataclass(kw_only=True)
class Reproduced(Result):
    """What came of one input.

    Attributes:
        target: the target's name.
        outcome: what came of it; empty if it is a finding.
    """

    target: str
    outcome: str = ""

    def report(self) -> str:
        """In words."""
        return f"{self.target}: {self.outcome or 'a finding'}"


def reproduce(target: Target, data: bytes) -> Reproduced:
    """Run one input."""
    result = Reproduced(target=target.name)
    try:
        outcome = target.run(data)
        check_memory(target, data)
    except Exception:  # noqa: BLE001 -- that is what is to be seen
        result.problems.append(traceback.format_exc())
    else:
        result.outcome = outcome
    return result


def save(report: Report, directory: Path) -> None:
    """Keep what was found, a file for each input."""
    directory.mkdir(parents=True, exist_ok=True)
    for finding in report.findings:
        number = sum(1 for _ in directory.iterdir())
        (directory / f"{finding.target}-{number}.hex").write_text(f"{finding.data.hex()}\n", encoding="ascii")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is tried, how long, and what becomes of findings."""
    parser.add_argument("--target", action="append", metavar="NAME", help="by default each of them; see --list")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each target; by default 20")
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="keep findings there; by default nowhere")
    parser.add_argument("--reproduce", metavar="HEX", help="run this one input, of the one --target")
    parser.add_argument("--list", action=ListTargets, help="print which targets there are")


def complete(options: argparse.Namespace) -> str | None:
    """Targets that there are, and an input that is hex."""
    known = {target.name: target for target in targets()}
    unknown = sorted(set(options.target or ()) - known.keys())
    if unknown:
        return f"no target {', '.join(unknown)}; --list shows them"
    options.targets = [known[name] for name in options.target or known]
    if options.reproduce is None:
        return None
    try:
        options.reproduce = bytes.fromhex(options.reproduce)
    except ValueError as exc:
        return f"--reproduce: {exc}"
    return None if len(options.targets) == 1 else "--reproduce needs one --target"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """A campaign against each target; or one input."""
    if options.reproduce is not None:
        yield reproduce(options.targets[0], options.reproduce)
        return
    for target in options.targets:
        inputs = quick_inputs(target) if options.quick else None
        campaign = Campaign(target, options.seed)
        report = campaign.go(seconds=options.seconds, inputs=inputs, tell=progress.say_at_times)
        if options.save is not None:
            save(report, options.save)
        yield report


PROGRAM: Final = Program(
    name="fuzz",
    asks="Hostile bytes for all that reads from the network: is every outcome documented, memory bounded?",
    explanation=EXPLANATION,
    examples=[
        ("", "every target for 20 seconds"),
        ("--quick --seed 7", "a few inputs for each; the same as any other time with this seed"),
        ("--seconds 3600 --target live-join --save findings", "one target for an hour"),
        ("--target frames --reproduce ff000001", "one input, with the traceback"),
        ("--list", "which targets there are"),
    ],
    quick="a few inputs for each target",
    seeded=True,
    add_options=add_options,
    complete=complete,
    run=run,
)
