"""Paths that are given: whether there is something, and pipes that can be read once.

`Path.exists` says of a path that cannot be looked at whatever the Python at hand thinks best: an error until 3.13, that
nothing is there from 3.14 on. Here it is an error, always, whose text names the path.

A key may come from a pipe: `--key <(vault read …)`, /dev/stdin. It can be read once, and is needed twice or more, to
make a manager and to follow the files. So it is copied into memory, as a file that has no name in any directory and
cannot change; `given_as` says what the operator called it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Final

from trionode._credentials.pem import MAX_CRL_BYTES
from trionode._errors import CertificateError, CertificateReason

_NOTHING: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

#: Pipes by the paths that they were given as, and the copies by theirs.
_copies: Final[dict[str, Path]] = {}


def look_at(path: Path) -> os.stat_result | None:
    """What is at a path, links followed; None if there is nothing.

    Raises:
        OSError: the path cannot be looked at: no access, or too long a name.
    """
    try:
        return os.stat(os.fspath(path))  # noqa: PTH116 -- the error has the path as text
    except OSError as exc:
        if exc.errno in _NOTHING:
            return None
        raise
    except ValueError:  # a NUL byte
        return None


def exists(path: Path) -> bool:
    """Whether something is there; see `look_at`."""
    return look_at(path) is not None


def is_file(path: Path) -> bool:
    """Whether a regular file, or a pipe to read one from, is there; see `look_at`."""
    found = look_at(path)
    return found is not None and not stat.S_ISDIR(found.st_mode)


def is_directory(path: Path) -> bool:
    """Whether a directory is there; see `look_at`."""
    found = look_at(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def rereadable(path: Path) -> Path:
    """The path; for a pipe, that of a copy in memory, which can be read any number of times. Reads the pipe to its end.

    Raises:
        CertificateError: it cannot be read, or this system cannot keep files in memory.
    """
    known = _copies.get(os.fspath(path))
    if known is not None:
        return known
    try:
        if not stat.S_ISFIFO(os.stat(os.fspath(path)).st_mode):  # noqa: PTH116 -- as above
            return path
        with path.open("rb") as pipe:
            content = pipe.read(MAX_CRL_BYTES + 1)  # more than that is refused by all who read it
    except (OSError, ValueError):
        return path  # as it is: its reader says what is wrong with it, in the same words as for files
    copy = _copies[os.fspath(path)] = _in_memory(path, content)
    return copy


def given_as(text: str) -> str:
    """A message with the paths that the operator gave, in place of those of copies in memory."""
    for name, copy in _copies.items():
        text = text.replace(str(copy), name)
    return text


def _in_memory(path: Path, content: bytes) -> Path:
    if not hasattr(os, "memfd_create"):
        msg = (
            f"{path} is a pipe, which can be read only once, and files in memory (memfd_create) to copy it to are a "
            f"feature of Linux that {sys.platform} does not have; give a regular file"
        )
        raise CertificateError(msg, reason=CertificateReason.UNREADABLE)
    descriptor = os.memfd_create("trionode", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(content)
    return Path(f"/proc/self/fd/{descriptor}")
