"""What the application logs while it serves a channel, marked with the facts of that channel."""

from __future__ import annotations

import logging
from typing import Final, final

from trionode._util.facts import read_facts

from .channel import end_of
from .services import current_channel

__all__ = ["ContextFilter"]

#: A record that has one of these is about a channel, a connection or a peer of its own, which may be another.
_OWN: Final = ("channel", "connection", "peer", "service")


@final
class ContextFilter(logging.Filter):
    """Gives each log record that is made while a service runs the facts of the service's channel.

    They are `channel`, `connection`, `service`, `peer`, `verified` and `address`, as attributes of the record: of the
    application's own records, those of other libraries, and those of trionode. A record that has a `peer`,
    `connection`, `channel` or `service` already stays as it is. Lets every record pass.

    Add it to handlers. A filter of a logger does not see the records of the loggers below.
    """

    def __init__(self) -> None:
        super().__init__()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the facts, and let the record pass.

        Args:
            record: to be marked.
        """
        channel = current_channel.get(None)
        if channel is not None and not any(hasattr(record, name) for name in _OWN):
            record.__dict__.update(read_facts({"channel": end_of(channel)}))
        return True
