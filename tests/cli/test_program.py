"""The command line around the demo: it teaches, and what makes no sense gets one clear line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
import msgspec
import pytest

from trionode.cli import config, main, program
from trionode.cli.pki import pki as pki
from trionode.cli.shown import console

if TYPE_CHECKING:
    from pathlib import Path

#: Every process is bounded by this. Seconds.
PATIENCE = 30

COMMANDS = [
    [],
    *([name] for name in program.COMMANDS),
    *(["pki", name] for name in pki.commands),
]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# Help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help, and no arguments at all, say what this is and what to try first; both succeed."""
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "trionode demo" in out
    assert "Mutual TLS" in out


def test_help_of_the_demo_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what will happen, gives examples, and explains every option and exit status."""
    assert main(["demo", "--help"]) == 0
    out = capsys.readouterr().out
    for words in ("separate processes", "--directory", "--json", "Examples:", "Exit status: 0", "roles.py"):
        assert words in out


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_of_every_command_can_be_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fits a terminal of 80 columns, and examples and tables stay as they were typed, a line each."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*arguments, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\\b" not in out
    assert "\b" not in out
    examples = out.partition("Examples:\n")[2].partition("\n\n")[0]
    assert all(line.startswith("    ") for line in examples.splitlines())


def test_help_has_every_key_of_the_configuration_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables and keys, so that it can be written from that alone."""
    main(["serve", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out.partition("The file,")[2].partition("\n\n")[0]))
    tables: list[Any] = [config.Config, *config.Table.__subclasses__()]
    assert {field.name for table in tables for field in msgspec.structs.fields(table)} <= words


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` says name and version, and succeeds."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trionode ")


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from a checkout that is not installed, it says that."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert program._version() == "(not installed)"


def test_it_runs_as_a_module() -> None:
    """`python -m trionode` is the command."""
    done = python("-m", "trionode", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: trionode ")


def test_what_a_program_imports_is_frozen_where_the_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nowhere else: what others have there is theirs."""
    frozen: list[bool] = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    assert main(["cookie"]) == 0
    assert frozen == []
    monkeypatch.setattr("sys.argv", ["trionode", "cookie"])
    assert main() == 0
    assert frozen == [True]


def test_output_need_not_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has put something else in place of stdout gets its text there."""
    out = StringIO()
    monkeypatch.setattr("sys.stdout", out)
    assert main(["--version"]) == 0
    assert out.getvalue().startswith("trionode ")


# What makes no sense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "No such option"),
        (["dance"], "No such command 'dance'"),
        (["demo", "--nonsense"], "No such option"),
        (["demo", "now"], "unexpected extra argument"),
        (["demo", "--directory"], "requires an argument"),
        (["demo", "--directory", __file__], "is a file"),
        (["demo", "--directory", "/dev/null/x"], "cannot use /dev/null/x"),
        (["completion"], "Choose from: bash, zsh, fish"),
    ],
)
def test_wrong_use_gets_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr that says what is wrong and where to read on; exit status 2; nothing is started."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("trionode: ")
    assert words in err
    assert "--help')" in err


def test_a_directory_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody's keys are overwritten."""
    key = tmp_path / "key.pem"
    key.write_text("precious")
    assert main(["demo", "--directory", str(tmp_path)]) == 2
    assert "is not empty, and the demo overwrites nothing" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]
    assert key.read_text() == "precious"


def test_trouble_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What click calls an error that is nobody's misuse: its text, and its exit status."""

    def fail(*_: object, **__: object) -> None:
        msg = "no can do"
        raise click.ClickException(msg)

    monkeypatch.setattr("trionode.cli.demo.run", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "trionode: no can do\n"


def test_a_crash_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw comes out as it is, for the traceback."""

    async def crash(*_: object) -> None:
        msg = "unforeseen"
        raise ExceptionGroup(msg, [ValueError(msg)])

    monkeypatch.setattr("trionode.cli.demo.run_demo", crash)
    with pytest.RaisesGroup(ValueError, match="unforeseen"):
        main(["demo", "--json"])


# Where it writes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["pki", "show"], ["pki", "show", "--json"]], ids=" ".join)
def test_a_full_disk_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    """Of stdout; exit status 3, and the interpreter does not complain at its end."""
    assert main(["pki", "init", "--pki", str(tmp_path / "pki")]) == 0
    with open("/dev/full", "w") as full:  # noqa: PTH123 -- a descriptor is wanted
        done = subprocess.run(
            [sys.executable, "-m", "trionode", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    line = "trionode: cannot write to stdout: No space left on device; free some space\n"
    assert (done.returncode, done.stderr) == (3, line)


def test_an_error_of_files_that_nobody_foresaw_is_not_blamed_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as it is."""

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("trionode.cli.demo.run", fail)
    with pytest.raises(PermissionError):
        main(["demo"])


def test_a_path_that_cannot_be_looked_at_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the system says of it; exit status 3."""
    name = "x" * 300
    assert main(["pki", "show", name]) == 3
    line = f"trionode: cannot use {name}: File name too long. Check the path and its permissions\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("columns", ["0", "1", "39"])
def test_a_terminal_has_some_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is claimed: else nothing at all would be shown."""
    monkeypatch.setenv("COLUMNS", columns)
    assert console().width == 40


# Without the extra --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """One line, no traceback, exit status 1."""
    program = f"import sys, runpy; sys.modules[{missing!r}] = None; runpy.run_module('trionode', run_name='__main__')"
    done = python("-c", program)
    assert done.returncode == 1
    assert done.stdout == ""
    line = f"trionode: the command line needs {missing}; install it with: pip install 'trionode[cli]'\n"
    assert done.stderr == line


def test_interrupted_while_it_starts(tmp_path: Path) -> None:
    """One line, and the status of Ctrl-C."""
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    done = python("-c", "import sys; sys.path.insert(0, sys.argv[1]); import trionode.cli", str(tmp_path))
    assert (done.returncode, done.stderr) == (130, "\ntrionode: interrupted; nothing is left running\n")


def test_another_missing_module_is_not_blamed_on_the_extra(tmp_path: Path) -> None:
    """A click that is there and broken is shown as what it is."""
    (tmp_path / "click.py").write_text("import no_such_module_at_all\n")
    done = python("-c", "import sys; sys.path.insert(0, sys.argv[1]); import trionode.cli", str(tmp_path))
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in done.stderr
