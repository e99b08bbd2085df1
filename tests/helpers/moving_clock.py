"""A time that tests move."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta


class Clock:
    """A clock that stands; it begins with the second that it is."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now

    def forward(self, by: timedelta) -> None:
        """Move it."""
        self.now += by
