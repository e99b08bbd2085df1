"""The command line around the demo: it teaches, and what makes no sense gets one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from io import StringIO
from typing import TYPE_CHECKING

import click
import pytest

from trionode.cli import main, program

if TYPE_CHECKING:
    from pathlib import Path

#: Every process is bounded by this. Seconds.
PATIENCE = 30


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


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """90 columns at most: an example with its comment is the widest."""
    main(["demo", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 90


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` says name and version, and succeeds."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trionode ")


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from a checkout that is not installed, it says that."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(program, "version", missing)
    assert program._version() == "(not installed)"


def test_it_runs_as_a_module() -> None:
    """`python -m trionode` is the command."""
    done = python("-m", "trionode", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: trionode ")


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


def test_another_missing_module_is_not_blamed_on_the_extra(tmp_path: Path) -> None:
    """A click that is there and broken is shown as what it is."""
    (tmp_path / "click.py").write_text("import no_such_module_at_all\n")
    done = python("-c", "import sys; sys.path.insert(0, sys.argv[1]); import trionode.cli", str(tmp_path))
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in done.stderr
