"""Loggers whose methods never raise.

Handlers and filters belong to the application, and some raise: a full disk, a closed stream, a formatter with a defect.
`logging` lets what a filter or `Handler.handle` raises through to the caller. Here the callers are accept loops and the
tasks of a node, and a peer can cause many of the lines, so a broken handler must not end the task that logs: the
failure is shown on stderr, as `logging` itself does for handlers that fail in `emit` (and silenced by
`logging.raiseExceptions`).

What a line is about is given beside its words, by name, and becomes attributes of the record: see `facts`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Final, final

from .facts import read_facts


@final
class Log:
    """A logger of `logging`, by name; what it cannot deliver is shown on stderr and costs nothing else."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        """Give access to one logger.

        Args:
            name: of the logger: `trionode.<area>`.
        """
        self._logger: Final = logging.getLogger(name)

    def debug(self, message: str, *args: object, **facts: object) -> None:
        """Log for developers."""
        self._emit(logging.DEBUG, message, args, None, facts)

    def info(self, message: str, *args: object, **facts: object) -> None:
        """Log what an operator may want to know."""
        self._emit(logging.INFO, message, args, None, facts)

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None, **facts: object) -> None:
        """Log what an operator should look at."""
        self._emit(logging.WARNING, message, args, exc_info, facts)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None, **facts: object) -> None:
        """Log what went wrong; with the exception's traceback, its facts are told, too."""
        self._emit(logging.ERROR, message, args, exc_info, facts)

    def exception(self, message: str, *args: object, **facts: object) -> None:
        """Log what went wrong, with the traceback of the exception that is being handled."""
        self._emit(logging.ERROR, message, args, sys.exception(), facts)

    def log(
        self, level: int, message: str, *args: object, exc_info: BaseException | None = None, **facts: object
    ) -> None:
        """Log at a level that was worked out."""
        self._emit(level, message, args, exc_info, facts)

    def _emit(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        exc_info: BaseException | None,
        facts: dict[str, object],
    ) -> None:
        try:
            if not self._logger.isEnabledFor(level):
                return
            if exc_info is not None:
                facts.setdefault("error", exc_info)
            # The caller that a line is attributed to is that of our method: two frames up from here.
            self._logger.log(level, message, *args, exc_info=exc_info, extra=read_facts(facts), stacklevel=3)
        except Exception:  # noqa: BLE001 -- whatever a handler or a filter raises
            if logging.raiseExceptions:
                with suppress(Exception):  # stderr may be what is broken
                    sys.stderr.write(f"--- a handler or filter of the logger {self._logger.name!r} failed ---\n")
                    traceback.print_exc()
