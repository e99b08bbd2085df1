"""Directories that are this user's alone: for what others on the machine must neither see nor put there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class NotPrivateError(Exception):
    """A directory cannot be relied on; the text goes on where a sentence has named it, and has the remedy."""


def open_private(directory: Path) -> int:
    """A directory as a descriptor, which the caller closes; made with mode 0700, parents included, if it is missing.

    Raises:
        NotPrivateError: it cannot be had, is a link, is another user's, or lets others in.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        msg = f"cannot be used: {exc.strerror}. It must be a directory of this user, not a link"
        raise NotPrivateError(msg) from exc
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(descriptor)
        msg = (
            f"is not private (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}): it must be this user's, "
            "with mode 0700. Run chmod 700 on it"
        )
        raise NotPrivateError(msg)
    return descriptor
