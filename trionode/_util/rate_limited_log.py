"""A rate limit for log lines that peers can cause: the first few of a window one by one, the rest as a count."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from .log import Log

#: Lines that are logged one by one within a window.
LOG_BURST: Final = 20
#: Length of the window. Seconds.
LOG_WINDOW: Final = 10.0


@final
class RateLimitedLog:
    """A logger's `warning` and `error`, for what peers cause."""

    def __init__(self, log: Log, what: str) -> None:
        """Begin the first window with the first line.

        Args:
            log: the log that is written to.
            what: what the lines are about, for the summary: `%d more …, not logged one by one`.
        """
        self._log = log
        self._what = what
        self._began = -math.inf
        self._count = 0

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None, **facts: object) -> None:
        """Log a warning, or count it."""
        self._emit(logging.WARNING, message, args, exc_info, facts)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None, **facts: object) -> None:
        """Log an error, or count it."""
        self._emit(logging.ERROR, message, args, exc_info, facts)

    def _emit(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        exc_info: BaseException | None,
        facts: dict[str, object],
    ) -> None:
        now = trio.current_time()
        if now - self._began >= LOG_WINDOW:
            self.summarise()
            self._began = now
        self._count += 1
        if self._count <= LOG_BURST:
            self._log.log(level, message, *args, exc_info=exc_info, **facts)

    def summarise(self) -> None:
        """Log how many lines were left out since the window began, if any were; begin a new count."""
        unsaid = self._count - LOG_BURST
        self._count = 0
        if unsaid > 0:
            self._log.warning("%d more %s, not logged one by one", unsaid, self._what, left_out=unsaid)
