"""Draws `trionode/manual/demo.svg`, the picture in the README: parts of what `trionode demo` prints.

    python tests/manual/picture.py

The demo is run; nothing is drawn that it did not print. Fonts are named, and none is fetched from anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "trionode" / "manual" / "demo.svg"

#: Columns.
WIDTH: Final = 116
#: The steps that are shown, by their numbers; and of one of them what comes before this.
STEPS: Final = {"4", "5", "6"}
ENOUGH: Final = "impostor"


def chosen(printed: str) -> str:
    """The steps that are shown, and the summary."""
    kept: list[str] = []
    for part in re.split(r"\n(?=\n)", printed):
        plain = Text.from_ansi(part).plain.strip()
        if plain[:1] in STEPS or plain.startswith("What was shown") or "checks held" in plain:
            lines = part.splitlines()
            ends = [n for n, line in enumerate(lines) if Text.from_ansi(line).plain.startswith(ENOUGH)]
            kept += lines[: ends[0]] if ends else lines
    return re.sub(r", in [\d.]+ s", "", "\n".join(kept)).strip("\n")  # how long it took is the machine's business


def main() -> int:
    """Run, choose, draw."""
    done = subprocess.run(
        [sys.executable, "-m", "trionode", "demo"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FORCE_COLOR": "1",
            "COLUMNS": str(WIDTH),
            "TERM": "xterm-256color",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, highlight=False)
    console.print(Text.from_ansi(chosen(done.stdout)))
    svg = console.export_svg(title="trionode demo", theme=MONOKAI, unique_id="demo")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    FILE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
