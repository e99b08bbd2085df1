"""The entry point: all commands, and how each of them ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import shutil
import sys
import textwrap
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, final

import click

from .exits import (
    MEANINGS,
    ExitStatus,
    Trouble,
    facts,
    is_unwritable,
    judge,
    sentence,
)
from .logs import HeldLog
from .paths import given_as
from .shown import LEAST_WIDTH
from .words import in_command_words, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

PROGRAM: Final = "trionode"

#: The commands, and the file that each is in.
COMMANDS: Final = {
    "call": "talk",
    "check": "check",
    "completion": "completion",
    "cookie": "cookie",
    "demo": "demo",
    "explain": "explain",
    "join": "enrolment",
    "manual": "manual",
    "members": "members",
    "ping": "talk",
    "pki": "pki",
    "serve": "serve",
    "status": "status",
}

#: Longer lines are hard to read. Columns.
_MAX_HELP: Final = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: by default those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show becomes a question mark; it must not end the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    stdout = sys.stdout
    given = sys.argv[1:] if arguments is None else list(arguments)
    with HeldLog() as log:
        status = _run(arguments, partial(_end, as_json="--json" in given), stdout)
    # A refusal has said it; and what `explain` logs is in its steps.
    if status not in (ExitStatus.REFUSED, ExitStatus.BROKEN_PIPE) and given[:1] != ["explain"]:
        for text in log.texts:
            _put_error(f"{PROGRAM}: warning: {text}")
    return status


#: Of errors of writing to stdout, other than that there is no space.
_REMEDIES: Final = {errno.EBADF: "it was closed by the caller", errno.EIO: "the terminal or the disk is gone"}


def _run(arguments: Sequence[str] | None, end: Callable[..., int], stdout: object) -> int:
    try:
        status = cli.main(
            arguments,
            prog_name=PROGRAM,
            standalone_mode=False,
            terminal_width=_help_width(),
            obj=arguments is None,
        )
        return int(status or 0)
    except click.UsageError as exc:
        where = PROGRAM if exc.ctx is None else exc.ctx.command_path
        return end(f"{exc.format_message()} (see '{where} --help')", ExitStatus.USAGE)
    except click.ClickException as exc:
        return end(exc.format_message(), exc.status if isinstance(exc, Trouble) else exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return end("interrupted; nothing is left running", ExitStatus.INTERRUPTED)
    except SystemExit:
        if sys.stdout is not stdout:  # `trionode demo | head`: click has put something in its place, and exits with 1
            return ExitStatus.BROKEN_PIPE
        raise
    except Exception as exc:
        if is_unwritable(exc):
            _abandon(sys.stdout)
            if isinstance(exc, BrokenPipeError):  # `trionode demo | head`: the reader has closed the pipe
                return ExitStatus.BROKEN_PIPE
            remedy = _REMEDIES.get(exc.errno or 0, "free some space")
            return end(f"cannot write to stdout: {exc.strerror}; {remedy}", ExitStatus.FILES)
        status = judge(exc)
        if status is None:
            raise
        return end(sentence(exc), status, facts(exc))


def _abandon(stream: TextIO) -> None:
    """What is left to write is lost: else the interpreter fails as it flushes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(line: str, status: int, said: Mapping[str, object] | None = None, *, as_json: bool = False) -> int:
    """Say how it ended; returns the exit status.

    Args:
        line: the error.
        status: the exit status.
        said: what a service has said beside it.
        as_json: whether JSON is wanted, too.
    """
    said = said or {}
    text = in_command_words(given_as(" ".join(line.split())))
    short, details = one_line(text)
    if as_json:
        with contextlib.suppress(OSError, ValueError):  # stdout may be what is wrong
            # In one line: after `serve --json` it is one of many.
            click.echo(json.dumps({"error": {"message": text, "status": int(status), **said}}))
    details += [f"{name}: {json.dumps(value)}" for name, value in said.items() if name != "code"]
    _put_error("\n".join([f"{PROGRAM}: {short}", *(f"  {each}" for each in details)]))
    return status


def _put_error(text: str) -> None:
    """Something on stderr; where that cannot be written to, the exit status says what there is to say."""
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        _abandon(sys.stderr)


def _help_width() -> int:
    """Columns of `--help`; click itself would not go below 50, however narrow the terminal is."""
    return min(max(shutil.get_terminal_size().columns, LEAST_WIDTH), _MAX_HELP) - 2


def _version() -> str:
    from importlib import metadata  # takes longer than the rest of this file

    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed)"


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:  # noqa: ARG001, FBT001 -- click's
    if wanted and not context.resilient_parsing:
        click.echo(f"{PROGRAM} {_version()}")
        context.exit()


def _epilog() -> str:
    """The exit statuses, for the end of `--help`; the backspace keeps click from wrapping them into one paragraph."""
    width = _help_width() - 2  # click indents by two
    lines = [
        textwrap.fill(meaning, width, initial_indent=f"  {status:<5}", subsequent_indent=" " * 7)
        for status, meaning in MEANINGS.items()
    ]
    return "\n".join(["\b", "Exit status, of every command:", *lines])


@final
class _Commands(click.Group):
    """Imports a command when it is asked for: importing all of them takes longer than most take to run.

    The context's object is whether the process is this program's own. Then what is imported stays until its end: that
    no garbage collection looks through it saves a seventh of what a short command takes.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".{COMMANDS[cmd_name]}", __package__), cmd_name)
        if ctx.obj:
            gc.freeze()
        return command


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_epilog(),
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Mutual TLS between Python programs on Trio, with certificates that rotate while everything keeps running.

    The library is imported as `trionode`. This command makes development certificates, finds what is wrong, and runs,
    calls and watches nodes. Start with `trionode demo`, or with `trionode pki init`; `trionode manual` has the rest.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
