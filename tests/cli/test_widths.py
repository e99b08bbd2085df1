"""What commands show fits the terminal, at 80 columns and at 40; no escapes with NO_COLOR."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from trionode.cli.pki import pki as pki
from trionode.cli.program import COMMANDS
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

#: Words that are longer than a narrow terminal: digests, serial numbers, names of files.
LONG: Final = re.compile(r"\S{25,}")
EXPIRED: Final = "--cert old.pem --key old.key --ca pki/ca.pem"

SHOWN: Final = (
    "check alpha@localhost",
    f"check {EXPIRED} gamma@elsewhere.example",
    "pki show",
    "pki show alpha@localhost",
    "pki show pki/ca.crl",
    "pki issue beta@localhost --force",
    "pki revoke beta@localhost",
    "pki unrevoke beta@localhost",
    "explain alpha@localhost --address 127.0.0.1:1",
    f"explain alpha@localhost --address 127.0.0.1:1 {EXPIRED}",
    "manual",
    "cookie",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A CA, a node's files, and a certificate that has expired."""
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(clock=lambda: now - timedelta(days=30))
    write_key_pair(
        ca.issue("old@localhost", not_after=now - timedelta(days=1)), tmp_path / "old.pem", tmp_path / "old.key"
    )
    ca.save(tmp_path / "pki")
    for name in ("alpha@localhost", "beta@localhost"):
        fresh = ca.issue(name, not_after=now + timedelta(days=9))
        write_key_pair(fresh, tmp_path / "pki" / f"{name}.pem", tmp_path / "pki" / f"{name}-key.pem")
    return tmp_path


@pytest.mark.parametrize("columns", [80, 40])
def test_results_fit(
    columns: int, place: Path, trionode_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer than the terminal is wide, but for a word that is longer itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert trionode_command("pki", "revoke").status == 0
    for typed in SHOWN:
        said = trionode_command(*typed.split())
        assert said.err == "", said
        assert said.out
        for line in said.out.splitlines():
            assert len(line) <= columns or LONG.search(line), (typed, line)
            assert "\x1b" not in line


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(
    "arguments", [[], *([name] for name in COMMANDS), *(["pki", name] for name in pki.commands)], ids=" ".join
)
def test_help_fits(
    arguments: list[str], columns: int, trionode_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prose is wrapped; what is to be typed is left in one piece."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = trionode_command(*arguments, "--help").out
    prose = out.partition("Examples:")[0].partition("\n\n")[2].partition("\n\n")[0]
    assert max(map(len, prose.splitlines())) <= columns


def in_a_terminal(*arguments: str, cwd: Path, **environment: str) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "trionode", *arguments],
        cwd=cwd,
        env={**known, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        written += data
    process.wait(30)
    os.close(ours)
    return written


def test_colours_are_for_terminals_that_want_them(place: Path) -> None:
    """With NO_COLOR there is no escape of any kind, bold and dim included."""
    wrong = ("check", *EXPIRED.split())
    assert b"\x1b[" in in_a_terminal(*wrong, cwd=place)
    plain = in_a_terminal(*wrong, cwd=place, NO_COLOR="1")
    assert b"expired" in plain
    assert b"\x1b" not in plain
