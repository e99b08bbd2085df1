"""What nodes log while a program runs: an error is a problem, a flood of warnings may be one."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LogWatch(logging.Handler):
    """Counts warnings and keeps errors.

    Attributes:
        warnings: how many there were.
        errors: each with its traceback.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = 0
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        if record.levelno >= logging.ERROR:
            self.errors.append(f"logged {record.levelname}: {self.format(record)}")
        else:
            self.warnings += 1


@contextmanager
def watching_log() -> Iterator[LogWatch]:
    """Watch trionode's log for the length of a block; nothing of it is printed meanwhile."""
    watch, logger = LogWatch(), logging.getLogger("trionode")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(watch)
    try:
        yield watch
    finally:
        logger.removeHandler(watch)
        logger.propagate = propagate
