"""Directories that are this user's alone: for what other users of the machine must neither see nor put there.

Files in them may outlive the process that made them, and a successor may put its own in their place at any moment. So
they are removed by `remove_if` only, which does not remove what it has not looked at.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class NotPrivateError(Exception):
    """A directory cannot be relied on; the text goes on where a sentence has named it, and has the remedy."""


def runtime_directory() -> Path | None:
    """Ours below `$XDG_RUNTIME_DIR`, which the system gives each user who is logged in; None where it is not set."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    # What is relative is to be ignored (XDG Base Directory Specification).
    return runtime / "trionode" if runtime.is_absolute() else None


@contextmanager
def private_directory(directory: Path) -> Iterator[int]:
    """A directory as a descriptor, for a `with` block; made with mode 0700, parents included, if it is missing.

    Raises:
        NotPrivateError: it cannot be had, is a link, is another user's, or lets others in.
    """
    try:
        _make(directory)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        msg = f"cannot be used: {exc.strerror}. It must be a directory of this user, not a link"
        raise NotPrivateError(msg) from exc
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            msg = (
                f"is not private (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}): it must be this "
                "user's, with mode 0700. Run chmod 700 on it"
            )
            raise NotPrivateError(msg)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    """Make a directory and its missing parents, all with mode 0700: `mkdir(parents=True)` does so for the last only."""
    missing = [each for each in (directory, *directory.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def remove_if(directory: int, name: str, doomed: Callable[[str], bool]) -> None:
    """Remove a file, but not what a successor may have put in its place since it was looked at.

    There is no "unlink if it is still that file", so it is moved aside, looked at again, and put back if need be.

    Args:
        directory: its descriptor.
        name: of the file.
        doomed: whether the file that now has this other name is the one to remove; not if it raises an `OSError`.
    """
    aside = f".{name}.{secrets.token_hex(8)}"
    try:
        os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        return
    is_doomed = False
    with contextlib.suppress(OSError):
        is_doomed = doomed(aside)
    with contextlib.suppress(OSError):
        if not is_doomed:
            # Not rename: should there be a newer one by now, that stays.
            os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    with contextlib.suppress(OSError):
        os.unlink(aside, dir_fd=directory)
