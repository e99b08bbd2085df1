"""Child processes find both packages where their parent found them, are read line by line, and end with their block."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import trio
import trio.testing

import benchmarks
import trionode
from benchmarks import child

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def said(module: str, cwd: Path) -> list[str]:
    """What a module prints, run as a child somewhere else."""
    done = subprocess.run(
        child.command(module), env=child.environment(), cwd=cwd, capture_output=True, text=True, check=True, timeout=50
    )
    return done.stdout.splitlines()


def test_a_child_imports_what_its_parent_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, from a checkout or installed, whatever is in the child's directory."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for shadow in "benchmarks", "trionode":
        (elsewhere / shadow).mkdir(parents=True)
        (elsewhere / shadow / "__init__.py").touch()
    here.mkdir()
    (here / "tell.py").write_text(
        "import benchmarks, trionode\nprint(benchmarks.__file__)\nprint(trionode.__file__)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(here)
    assert said("tell", elsewhere) == [benchmarks.__file__, trionode.__file__]


def test_a_child_searches_in_the_order_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories in front come first; an empty entry is the directory that the parent is in."""
    for name in "first", "second", "third":
        (tmp_path / name).mkdir()
        (tmp_path / name / "which.py").write_text(f"print({name!r})\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "second")
    monkeypatch.setattr("sys.path", ["", str(tmp_path / "third")])
    path = child.environment(tmp_path / "first")["PYTHONPATH"].split(os.pathsep)
    assert path == [str(tmp_path / name) for name in ("first", "second", "third")]
    assert said("which", tmp_path / "third") == ["second"]


async def test_a_child_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, also where the block is cancelled; what it printed was read line by line."""
    (tmp_path / "wait.py").write_text("import sys\nprint(sys.argv[1:], flush=True)\nsys.stdin.read()", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with trio.move_on_after(30) as scope:
        async with child.running("wait", 1, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert await child.Lines(process.stdout).read() == b"['1']"
            scope.cancel()
            await trio.sleep_forever()
    assert process.returncode == -9


async def test_lines_are_read_however_they_come() -> None:
    """In pieces or many at once; a read that is cancelled loses nothing; what has no end is no line."""
    send, receive = trio.testing.memory_stream_one_way_pair()
    lines = child.Lines(receive)
    await send.send_all(b"one\ntwo\n\nthr")
    assert [await lines.read() for _ in range(3)] == [b"one", b"two", b""]
    with trio.move_on_after(0.01) as scope:
        await lines.read()
    assert scope.cancelled_caught
    await send.send_all(b"ee\nfour")
    assert await lines.read() == b"three"
    await send.aclose()
    assert await lines.read() is None
