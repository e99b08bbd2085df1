"""Descriptors 0 to 2: opened on /dev/null where the caller closed them, before anything else can get their numbers.

Cron and some service managers start programs without them. A file, a socket or the event loop's wake-up pipe would then
be descriptor 1, and what is printed would go there. Stdin reads as empty, and what goes to stderr is lost. Stdout is
opened for reading (as gnulib's `stdopen` does), so that writing a reply to it fails and is not taken for done. Commands
that do or examine something go on without it, and have their exit status; those whose result is what they print are an
error before they begin (`needs_stdout`).
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_MODES: Final = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}


#: Those that were closed.
_missing: Final[set[int]] = set()


def open_missing() -> None:
    """Open those of 0 to 2 that are closed; a missing `sys.stdin`, `sys.stdout` or `sys.stderr` becomes /dev/null."""
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            _missing.add(number)
            found = os.open(os.devnull, mode)
            if found != number:  # the numbers below it are taken, so it is this one; another thread may be faster
                os.dup2(found, number)
                os.close(found)
            os.set_inheritable(number, True)  # noqa: FBT003 -- positional only
    for name, how in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(how))  # noqa: SIM115 -- for as long as the process lives


def needs_stdout(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: a command that is for nothing without stdout."""

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> R:
        if 1 in _missing:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return function(*arguments, **named)

    return wrapped
