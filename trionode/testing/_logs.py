"""What is logged in a block of a test, with its facts."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from trionode._connection.context_filter import ContextFilter
from trionode._util.facts import FACTS

if TYPE_CHECKING:
    from collections.abc import Iterator


@final
class CapturedLogs(logging.Handler):
    """The log records of a block, for assertions on what they are about.

    Attributes:
        records: all of them, in order.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.addFilter(ContextFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record.

        Args:
            record: what was logged.
        """
        self.records.append(record)

    def facts(self, logger: str = "", /, **wanted: str | int) -> list[dict[str, str | int]]:
        """What records are about: their facts, and `logger`, `level` and `message`.

        Args:
            logger: of this logger, and those below; by default of all.
            wanted: facts that a record has to have, with these values.
        """
        found = [_facts_of(each) for each in self.records if _is_below(each.name, logger)]
        return [facts for facts in found if wanted.items() <= facts.items()]


@contextmanager
def capture_logs() -> Iterator[CapturedLogs]:
    """Keep what is logged in a block, at every level, by trionode and everything else."""
    root, captured = logging.getLogger(), CapturedLogs()
    level = root.level
    root.addHandler(captured)
    root.setLevel(logging.DEBUG)
    try:
        yield captured
    finally:
        root.setLevel(level)
        root.removeHandler(captured)


def _facts_of(record: logging.LogRecord) -> dict[str, str | int]:
    facts = {name: value for name, value in vars(record).items() if name in FACTS}
    return facts | {"logger": record.name, "level": record.levelname, "message": record.getMessage()}


def _is_below(name: str, logger: str) -> bool:
    return not logger or name == logger or name.startswith(f"{logger}.")
