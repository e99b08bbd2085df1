"""`trionode demo`: shows a story that `trionode.demo` plays."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, final

import click
import msgspec
from rich.table import Table
from rich.text import Text

from trionode.demo.checks import Facts, judge_all
from trionode.demo.said import SHOWN_DIGITS, short
from trionode.demo.story import run_demo

from .exits import ExitStatus, run
from .kinds import DIRECTORY
from .shown import (
    FAILED,
    HELD,
    console,
    put,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType

    from trionode.demo.checks import Check
    from trionode.demo.said import Certificate


def _empty_directory(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """A directory that the demo may fill: missing or empty, so that no keys are overwritten."""
    if value is None:
        return None
    try:
        value.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = next(value.iterdir(), None) is None
    except OSError as exc:
        msg = f"cannot use {value}: {exc.strerror}"
        raise click.BadParameter(msg) from exc
    if not empty:
        msg = f"{value} is not empty, and the demo overwrites nothing; name a new directory"
        raise click.BadParameter(msg)
    return value.resolve()


@click.command(short_help="Two nodes, a rotation under traffic, and clients that are refused.")
@click.option(
    "--directory",
    type=DIRECTORY,
    callback=_empty_directory,
    help="Keep CA, certificates, keys and logs here (missing or empty). Default: a temporary directory, removed again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, for scripts, and nothing else.")
def demo(directory: Path | None, *, as_json: bool) -> int:
    """Two nodes, a rotation under traffic, and clients that are refused; takes a few seconds.

    \b
    What it does, on this machine, loopback only:
      1. makes a CA, and a certificate for each node, on disk
      2. starts two nodes, alpha and beta, as separate processes;
         alpha dials beta, and each verifies the other
      3. replaces beta's certificate while alpha sends it numbers:
         the connection goes on, on the certificate that it began with
      4. lets a third node connect: it gets the new certificate
      5. lets a stranger from another CA, an impostor, and a client
         without a certificate try, and shows what each side says
      6. checks whether a number was lost, doubled or reordered

    The roles are in trionode/demo/roles.py: programs as an application would write them, worth reading.

    \b
    Examples:
      trionode demo
      trionode demo --directory /tmp/cluster    keep the files, to look at them
      trionode demo --json | jq .checks         for scripts

    Exit status: 0 if every check held, 1 if one did not, 2 if the command line is not valid.
    """
    teller = None if as_json else Teller(console())
    began = time.monotonic()
    with _place(directory) as place:
        facts = run(run_demo, place, teller or Silent())
    seconds = time.monotonic() - began
    checks = judge_all(facts)
    if teller is None:
        click.echo(json.dumps(_document(facts, checks, seconds), indent=2))
    else:
        teller.summary(facts, checks, seconds, kept=directory)
    return ExitStatus.OK if facts.trouble is None and all(check.held for check in checks) else ExitStatus.FOUND


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory
    else:
        with TemporaryDirectory(prefix="trionode-demo-") as temporary:
            yield Path(temporary)


def _document(facts: Facts, checks: Sequence[Check], seconds: float) -> dict[str, object]:
    return {
        "ok": facts.trouble is None and all(check.held for check in checks),
        "seconds": round(seconds, 3),
        "checks": [{"title": c.title, "held": c.held, "evidence": c.evidence} for c in checks],
        "facts": msgspec.to_builtins(facts),
    }


@final
class Silent:
    """A reporter that shows nothing."""

    def step(self, title: str) -> None:
        """Show nothing."""

    def note(self, who: str, text: str) -> None:
        """Show nothing."""

    def certificate(self, who: str, text: str, certificate: Certificate) -> None:
        """Show nothing."""

    def check(self, check: Check) -> None:
        """Show nothing."""


@final
class Teller:
    """A reporter that shows the story in a terminal, or writes it into a pipe."""

    _COLOURS: Final = {"alpha": "cyan", "beta": "magenta", "gamma": "blue"}
    _WHO: Final = 10

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def step(self, title: str) -> None:
        """A heading."""
        self._steps += 1
        self._print(Text(f"\n{self._steps}  {title}", style="bold"))

    def note(self, who: str, text: str) -> None:
        """A line, beside the name of the process that it is about."""
        self._line(Text(who, style=self._COLOURS.get(who, "yellow")), Text(text))

    def certificate(self, who: str, text: str, certificate: Certificate) -> None:
        """A line, and below it the certificate's names, issuer and fingerprint."""
        self.note(who, text)
        for label, value in (
            ("SANs", ", ".join(certificate.names)),
            ("issuer", certificate.issuer),
            ("SHA-256", short(certificate.fingerprint, SHOWN_DIGITS)),
        ):
            self._line(Text(), Text(f"{label:<8}{value}", style="dim"))

    def check(self, check: Check) -> None:
        """A verdict."""
        self._line(_mark(check), Text(check.title, style="green" if check.held else "bold red"))

    def summary(self, facts: Facts, checks: Sequence[Check], seconds: float, *, kept: Path | None) -> None:
        """The table of checks, and the verdict."""
        self._print(Text("\nWhat was shown", style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(_mark(check), check.title, Text(check.evidence, style="dim"))
        self._print(table)
        if facts.trouble is not None:
            self._print(Text(f"ended early: {facts.trouble}", style="bold red"))
        if kept is not None:
            self._print(Text(f"kept in {kept}: keys too, and ca/ca.key signs certificates; delete them when done"))
        held = sum(check.held for check in checks)
        everything = held == len(checks) and facts.trouble is None
        verdict = f"\n{held} of {len(checks)} checks held, in {seconds:.1f} s"
        self._print(Text(verdict, style="bold green" if everything else "bold red"))

    def _line(self, left: Text, right: Text) -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=self._WHO)
        grid.add_column(ratio=1)
        grid.add_row(left, right)
        self._print(grid)

    def _print(self, what: RenderableType) -> None:
        put(self._console, what)


def _mark(check: Check) -> Text:
    return Text(HELD, style="green") if check.held else Text(FAILED, style="bold red")
