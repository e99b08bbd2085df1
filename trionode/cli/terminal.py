"""SIGHUP means two things: `kill -HUP`, by which operators have a daemon read its files; and that the terminal is gone.

The kernel takes the terminal away before it sends the signal, so the two are told apart by whether it is still there.
"""

from __future__ import annotations

import os
import signal
from typing import final


def reload_signals() -> tuple[signal.Signals, ...]:
    """SIGHUP, on systems that have it."""
    found = getattr(signal, "SIGHUP", None)
    return () if found is None else (found,)


@final
class Terminal:
    """The terminal that this process was started from, if there is one; made before SIGHUP is handled."""

    def __init__(self) -> None:
        # Under nohup the signal is ignored: the process is meant to outlive its terminal.
        kept = any(signal.getsignal(each) is signal.SIG_IGN for each in reload_signals())
        self._ours = not kept and _is_there()

    def lost(self) -> bool:
        """Whether it is gone."""
        return self._ours and not _is_there()


def _is_there() -> bool:
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0))
    except OSError:
        return False
    os.close(descriptor)
    return True
