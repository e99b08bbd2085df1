"""What a machine or process has run out of, by the system's error: our own trouble, whatever was tried with it."""

from __future__ import annotations

import errno
from typing import Final

_REMEDIES: Final = {
    errno.EMFILE: "This process has no descriptors left: raise its limit (ulimit -n, LimitNOFILE), or close some",
    errno.ENFILE: "This machine has no descriptors left (fs.file-max)",
    errno.ENOBUFS: "This machine has no memory left for sockets",
    errno.ENOMEM: "This machine has no memory left",
}


def exhausted(error: BaseException | None) -> str | None:
    """What to do about it, where an error says that something is used up; else None.

    Args:
        error: an `OSError`, for something to be found.
    """
    return _REMEDIES.get(error.errno) if isinstance(error, OSError) and error.errno is not None else None
