"""A run as a picture: messages, memory and descriptors over time, and what happened when."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from .result import Soaked

#: What is marked, and how.
_COLOURS: Final = {
    "kill": "#b91c1c",
    "interrupt": "#db2777",
    "flood": "#65a30d",
    "stop": "#d97706",
    "sever": "#7c3aed",
    "stall": "#2563eb",
    "reopen": "#0f766e",
    "trust": "#111827",
}
_LINES: Final = ("#c2410c", "#1e293b", "#0f766e", "#0891b2", "#6d28d9", "#65a30d", "#a16207", "#9ca3af")


def draw(result: Soaked, file: Path) -> None:
    """Draw into a file whose suffix says what it is to be: svg, png, pdf."""
    from matplotlib.figure import Figure  # an extra has it

    figure: Any = Figure(figsize=(11, 8), layout="constrained")
    rates, memory, descriptors = figure.subplots(3, 1, sharex=True)
    rates.plot(*zip(*result.rates, strict=True), color=_LINES[0], linewidth=1)
    rates.set_ylabel("messages received per second")
    for what, colour in _COLOURS.items():
        marks = [at for at, mark in result.marks if mark == what]
        for axes in rates, memory, descriptors:
            axes.vlines(marks, 0, 1, transform=axes.get_xaxis_transform(), color=colour, linewidth=0.5, alpha=0.5)
        rates.plot([], [], color=colour, label=f"{what} ({len(marks)})")
    rates.legend(fontsize=7, ncols=len(_COLOURS), loc="upper right")
    lives = sorted(result.samples, key=lambda each: (each.node, each.incarnation, each.at))
    for (node, _), life in groupby(lives, key=lambda each: (each.node, each.incarnation)):
        samples = list(life)
        look = {"color": _LINES[node % len(_LINES)], "linewidth": 1}
        memory.plot([each.at for each in samples], [each.memory for each in samples], **look)
        descriptors.plot([each.at for each in samples], [each.descriptors for each in samples], **look)
    memory.set_ylabel("anonymous memory, MiB")
    memory.set_ylim(bottom=0)
    descriptors.set_ylabel("descriptors")
    descriptors.set_ylim(bottom=0)
    descriptors.set_xlabel("seconds; a colour is a node, a line one process of it")
    for axes in rates, memory, descriptors:
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    verdict = "everything is accounted for" if result.ok else f"{len(result.problems)} problems"
    figure.suptitle(f"{result.nodes} nodes, {result.seconds:.0f} s, seed {result.seed}: {verdict}", fontweight="bold")
    figure.savefig(file)
