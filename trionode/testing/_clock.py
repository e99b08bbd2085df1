"""One clock for everything: certificates age as Trio's time passes, be it the machine's or a `MockClock`'s."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["trio_clock"]


def trio_clock(start: datetime) -> Callable[[], datetime]:
    """A clock for cert managers and CAs (`clock=`) that shows `start` now, and goes on as Trio's clock does.

    Under `autojump_clock` a certificate's whole life so takes milliseconds. Good for the current Trio run: outside of
    one it raises `RuntimeError`, as `trio.current_time()` does.

    Args:
        start: an aware datetime.

    Raises:
        ValueError: it is naive.
        RuntimeError: called outside of a Trio run.
    """
    if start.tzinfo is None:
        msg = "the start of a clock must be an aware datetime, datetime.now(UTC) for one"
        raise ValueError(msg)
    origin = start.astimezone(UTC)
    began = trio.current_time()
    return lambda: origin + timedelta(seconds=trio.current_time() - began)
