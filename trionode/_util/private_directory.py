"""Directories that are this user's alone: for what other users of the machine must neither see nor put there.

Files in them may outlive the process that made them, and a new process may put its own file in the place of an old one
at any moment. So they are removed by `remove_if` only, which examines the very file that it removes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .exhausted import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


#: What tells whose a directory is; some systems have it not.
_NEEDED: Final = ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "geteuid")


class NotPrivateError(Exception):
    """A directory is not private; the text is the rest of a sentence that began with its name, and has the remedy."""


def runtime_directory() -> Path | None:
    """`trionode` below `$XDG_RUNTIME_DIR`, which each logged-in user has; None where that is not set."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    # A relative path is to be ignored (XDG Base Directory Specification).
    return runtime / "trionode" if runtime.is_absolute() else None


@contextmanager
def private_directory(directory: Path) -> Iterator[int]:
    """Open a directory for the length of a `with` block, as a descriptor; make it, with mode 0700, if it is missing.

    Raises:
        NotPrivateError: it cannot be made or opened, is a link, is another user's, or gives other users access.
    """
    missing = [name for name in _NEEDED if not hasattr(os, name)]
    if missing:
        msg = (
            f"cannot be checked: {sys.platform} has no {', '.join(f'os.{name}' for name in missing)}, by which POSIX "
            "systems such as Linux tell whose a directory is"
        )
        raise NotPrivateError(msg)
    try:
        _make(directory)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        msg = f"cannot be used: {exc.strerror}. {exhausted(exc) or 'It must be a directory of this user, not a link'}"
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
    """Make a directory and its missing parents, all with mode 0700: `mkdir(parents=True)` does so for the last only.

    Whatever the umask: it would take what even the owner needs.
    """
    missing = [each for each in (directory, *directory.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            each.mkdir(mode=0o700)
            each.chmod(0o700)


def remove_if(directory: int, name: str, doomed: Callable[[str], bool]) -> None:
    """Remove a file, but not one that another process has put in its place since it was examined.

    There is no "unlink if it is still that file", so it is moved aside, examined again, and put back if need be.

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
            # Not rename: if there is a newer one by now, that stays.
            os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    with contextlib.suppress(OSError):
        os.unlink(aside, dir_fd=directory)
