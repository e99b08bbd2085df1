"""The command line: `python -m benchmarks.stress`, from a checkout."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final

from .program import Program, start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Where each program is, in this package; a program's module is imported when it is needed.
PROGRAMS: Final[Mapping[str, str]] = {
    "soak": "soak.program",
    "rotation": "rotation.program",
    "faults": "faults.program",
    "fuzz": "fuzz.program",
    "flood": "flood.program",
    "outage": "outage",
    "interrupt": "interrupt.program",
    "mesh": "mesh",
    "storm": "storm.program",
    "crossing": "crossing",
    "drains": "drains",
    "discovery": "discovery.program",
    "interleaving": "interleaving",
    "enrolment": "enrolment",
    "idle": "idle.program",
}

USAGE: Final = """\
usage: python -m benchmarks.stress [NAME [options]]

Programs that check rather than measure. Without NAME, this list; each has --help, --quick and --json. The exit status
is 0 without problems, 1 with, and 2 where the arguments make no sense.
"""


def load(name: str) -> Program:
    """The program of this name."""
    program = importlib.import_module(f"{__package__}.{PROGRAMS[name]}").PROGRAM
    assert isinstance(program, Program)
    return program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        width = max(map(len, PROGRAMS))
        for name in PROGRAMS:
            print(f"  {name:{width}}  {load(name).asks}")
        return 0
    if given[0] not in PROGRAMS:
        print(f"no stress program {given[0]!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    return start(load(given[0]), given[1:])
