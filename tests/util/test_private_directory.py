"""Private directories: who may use them, and that only what was looked at is removed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from trionode._util.private_directory import NotPrivateError, private_directory, remove_if, runtime_directory


def test_it_is_made_private(tmp_path: Path) -> None:
    """Parents included; and one that is there is used."""
    directory = tmp_path / "a" / "b"
    descriptors: list[int] = []
    for _ in range(2):
        with private_directory(directory) as descriptor:
            descriptors.append(descriptor)
            assert os.path.samestat(os.fstat(descriptor), directory.stat())
        assert directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[-1])


def test_one_that_is_not_private_is_refused(tmp_path: Path) -> None:
    """With what to do, and nothing left open."""
    open_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    tmp_path.chmod(0o750)
    with pytest.raises(NotPrivateError, match=r"mode 0750.*chmod 700"), private_directory(tmp_path):
        pytest.fail("it was opened")
    (tmp_path / "file").touch()
    with pytest.raises(NotPrivateError, match="must be a directory"), private_directory(tmp_path / "file"):
        pytest.fail("it was opened")
    if open_files:
        assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.parametrize(("setting", "expected"), [("/run/user/7", "/run/user/7/trionode"), ("run", None), ("", None)])
def test_runtime_directory(monkeypatch: pytest.MonkeyPatch, setting: str, expected: str | None) -> None:
    """What is relative, or empty, does not count."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", setting)
    assert runtime_directory() == (None if expected is None else Path(expected))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty one."""
    directory = tmp_path / "private"
    directory.mkdir(mode=0o700)
    return directory


def remove(directory: Path, *, doomed: bool, meanwhile: bool = False) -> None:
    """Remove the file `x` on a condition; a successor may come while it is looked at."""

    def is_doomed(aside: str) -> bool:
        assert (directory / aside).exists()
        assert not (directory / "x").exists()
        if meanwhile:
            (directory / "x").write_text("successor")
        return doomed

    with private_directory(directory) as descriptor:
        remove_if(descriptor, "x", is_doomed)


def content(directory: Path) -> dict[str, str]:
    """What is in it."""
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_what_is_doomed_is_removed(directory: Path) -> None:
    """And nothing else."""
    (directory / "x").write_text("old")
    (directory / "y").write_text("other")
    remove(directory, doomed=True)
    assert content(directory) == {"y": "other"}


def test_what_is_not_doomed_is_put_back(directory: Path) -> None:
    """The very same file."""
    (directory / "x").write_text("live")
    before = (directory / "x").stat()
    remove(directory, doomed=False)
    assert content(directory) == {"x": "live"}
    assert os.path.samestat(before, (directory / "x").stat())


@pytest.mark.parametrize("doomed", [True, False])
def test_a_successor_stays(directory: Path, *, doomed: bool) -> None:
    """Whatever becomes of the one that was there before."""
    (directory / "x").write_text("old")
    remove(directory, doomed=doomed, meanwhile=True)
    assert content(directory) == {"x": "successor"}


def test_nothing_to_remove(directory: Path) -> None:
    """It is gone already."""
    with private_directory(directory) as descriptor:
        remove_if(descriptor, "x", lambda _: pytest.fail("there was nothing to look at"))
    assert content(directory) == {}


def test_what_cannot_be_looked_at_is_put_back(directory: Path) -> None:
    """It may be a successor's."""
    (directory / "x").write_text("which?")

    def fail(_: str) -> bool:
        raise PermissionError

    with private_directory(directory) as descriptor:
        remove_if(descriptor, "x", fail)
    assert content(directory) == {"x": "which?"}


def test_a_socket_is_put_back(directory: Path) -> None:
    """As any file: it can be reached as before."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(directory / "x"))
        listening.listen()
        remove(directory, doomed=False)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(directory / "x"))
