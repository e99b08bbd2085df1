"""One clock for certificates and timers: certificates age as Trio's clock goes, a `MockClock` for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

from trionode._util.fields import check_argument

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["certificate_clock", "trio_clock"]


def trio_clock(start: datetime) -> Callable[[], datetime]:
    """A clock for cert managers and CAs (`clock=`) that shows `start` now, and goes on as Trio's clock does.

    Under `autojump_clock` the whole life of a certificate takes milliseconds, live connections in memory included:
    while both ends are nodes and bytes pass, heartbeats cost nothing. It is for the current Trio run: outside
    of one it raises `RuntimeError`, as `trio.current_time()` does.

    Args:
        start: an aware datetime.

    Raises:
        ValueError, TypeError: it is naive, or none.
        RuntimeError: called outside of a Trio run.
    """
    _check_start(start)
    origin = start.astimezone(UTC)
    began = trio.current_time()
    return lambda: origin + timedelta(seconds=trio.current_time() - began)


def certificate_clock(start: datetime | None = None) -> Callable[[], datetime]:
    """As `trio_clock`, for fixtures, which need a clock before there is a Trio run.

    Outside of a Trio run it shows `start`; it follows the first run in which it is called.

    Args:
        start: an aware datetime; by default the machine's time now.

    Raises:
        ValueError, TypeError: it is naive, or none.
    """
    origin = datetime.now(UTC) if start is None else start
    _check_start(origin)
    following: Callable[[], datetime] | None = None

    def now() -> datetime:
        nonlocal following
        if not trio.lowlevel.in_trio_run():
            return origin
        if following is None:
            following = trio_clock(origin)
        return following()

    return now


def _check_start(start: datetime) -> None:
    check_argument("start", start, datetime)
    if start.tzinfo is None:
        msg = "the start of a clock must be an aware datetime, datetime.now(UTC) for one"
        raise ValueError(msg)
