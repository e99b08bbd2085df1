"""The command line: `python -m benchmarks.stress.fuzz`, from a checkout."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import decoders, dispatch, live
from .campaign import Campaign, check_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .campaign import Finding, Report, Target

ABOUT: Final = (
    "Hostile bytes for every decoder of the network's: is every outcome documented, memory bounded, work linear?"
)

EXPLANATION: Final = """\
Takes valid messages, frames and whole lives of connections, changes them, and has them read by

  decoders     the frame decoder, the hello reader, control messages, the scanner of TLS records, typed messages, files
               of the local registry, certificates
  connections  one by itself, from either side: channels open, fragments or a hand-over under way
  nodes        inside real TLS sessions, at every stage, beside honest peers (live-…)

What reaches something new is kept and changed further. An input is a finding if anything but a documented error comes
of it, if it takes more memory than its length allows, if four times as much of it makes more than four times the calls,
or if a node is worse off afterwards. It is printed as hex, with the seed; --reproduce runs it again. The same seed
gives the same inputs as long as the code is the same, but for what TLS and certificates draw themselves.

The exit status is 0 without findings, 1 with.
"""

EXAMPLES: Final = """\
examples:
  python -m benchmarks.stress.fuzz                             every target for 20 seconds
  python -m benchmarks.stress.fuzz --quick                     a few inputs for each: what the test suite runs
  python -m benchmarks.stress.fuzz --seconds 3600 --target live-join --seed 7 --save findings
  python -m benchmarks.stress.fuzz --target frames --reproduce ff000001   one input, with the traceback
  python -m benchmarks.stress.fuzz --list
"""

#: Inputs that --quick tries, by what one costs.
QUICK: Final = {"live": 8, "connection": 60, "registry": 40, "": 300}


def targets() -> list[Target]:
    """All of them."""
    return [*decoders.targets(), *dispatch.targets(), *live.targets()]


def quick_inputs(target: Target) -> int:
    """How many inputs --quick tries."""
    return next(count for prefix, count in QUICK.items() if target.name.startswith(prefix))


class Progress:
    """Says how far it is, on standard error, every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def tell(self, report: Report) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if now - self._said > 5:
            self._said = now
            progress = f"{report.inputs} inputs in {report.seconds:.0f} s, {report.kept} kept, {report.edges} edges"
            print(f"fuzz: {report.target}: {progress}", file=sys.stderr, flush=True)


def show(report: Report, *, as_json: bool) -> None:
    """Print what came of a campaign."""
    if as_json:
        findings = [{**asdict(each), "data": each.data.hex()} for each in report.findings]
        print(json.dumps({**vars(report), "findings": findings}), flush=True)
        return
    print(
        f"{report.target}: {report.inputs} inputs in {report.seconds:.1f} s, {report.kept} kept, {report.edges} edges, "
        f"{len(report.findings)} findings"
    )
    for outcome, times in report.outcomes.most_common(8):
        print(f"  {times:7}  {outcome}", flush=True)


def tell(finding: Finding, directory: Path | None) -> None:
    """Say what was found, and keep it where the user says."""
    shown = finding.data.hex()
    print(f"fuzz: FINDING: {finding.target}, seed {finding.seed}: {finding.problem}", file=sys.stderr)
    print(f"fuzz:   --target {finding.target} --reproduce {shown}", file=sys.stderr, flush=True)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in directory.iterdir())
        (directory / f"{finding.target}-{number}.hex").write_text(f"{shown}\n")


def reproduce(target: Target, data: bytes) -> int:
    """Run one input; gives the exit status."""
    try:
        print(f"{target.name}: {target.run(data)}")
        check_memory(target, data)
    except Exception:  # noqa: BLE001 -- that is what is to be seen
        traceback.print_exc()
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stress.fuzz",
        description=f"{ABOUT}\n\n{EXPLANATION}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", action="append", metavar="NAME", help="by default each of them; see --list")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each target; by default 20")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="where all chance comes from; by default 0")
    parser.add_argument("--quick", action="store_true", help="a few inputs for each, to see that it works at all")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each target")
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="keep findings there; by default nowhere")
    parser.add_argument("--reproduce", metavar="HEX", help="run this one input, of the one --target")
    parser.add_argument("--list", action="store_true", help="say which targets there are")
    options = parser.parse_args(arguments)
    if options.reproduce is not None and len(options.target or ()) != 1:
        parser.error("--reproduce needs one --target")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    known = {target.name: target for target in targets()}
    if options.list:
        for target in known.values():
            print(f"{target.name:20} {target.about}")
        return 0
    unknown = set(options.target or ()) - known.keys()
    if unknown:
        print(f"fuzz: no target {', '.join(sorted(unknown))}; --list shows them", file=sys.stderr)
        return 2
    chosen = [known[name] for name in options.target or known]
    if options.reproduce is not None:
        return reproduce(chosen[0], bytes.fromhex(options.reproduce))
    failed = False
    for target in chosen:
        inputs = quick_inputs(target) if options.quick else None
        report = Campaign(target, options.seed).go(seconds=options.seconds, inputs=inputs, tell=Progress().tell)
        show(report, as_json=options.json)
        for finding in report.findings:
            failed = True
            tell(finding, options.save)
    return 1 if failed else 0
