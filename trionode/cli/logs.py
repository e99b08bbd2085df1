"""Where the library's log goes: to stderr as it comes for `serve`, and behind the result for all other commands.

A command that shows what it found has said most of what it logs; what is left is told at its end, in its own form.
"""

from __future__ import annotations

import logging
from typing import Final, final

from .words import in_command_words, one_line

_LOGGER: Final = logging.getLogger("trionode")


@final
class HeldLog(logging.Handler):
    """Keeps warnings until the command has ended.

    Attributes:
        texts: what was logged, each text once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self.texts[one_line(in_command_words(record.getMessage()))[0]] = None

    def __enter__(self) -> HeldLog:
        _LOGGER.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _LOGGER.removeHandler(self)


class LogWords(logging.Formatter):
    """Lines of the log in the words of the command line; what certificates hold comes last in a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's
        """A line, without the traceback that may follow it."""
        line, details = one_line(in_command_words(super().formatMessage(record)))
        return f"{line} [{'; '.join(details)}]" if details else line


def log_to_stderr(level: str) -> None:
    """Show the log as it comes.

    Args:
        level: from which severity on.
    """
    for each in _LOGGER.handlers[:]:
        if isinstance(each, HeldLog):
            _LOGGER.removeHandler(each)
    handler = logging.StreamHandler()
    handler.setFormatter(LogWords("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    _LOGGER.setLevel(level.upper())
