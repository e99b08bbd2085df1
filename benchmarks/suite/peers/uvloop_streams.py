"""asyncio streams on uvloop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvloop

from . import asyncio_streams

if TYPE_CHECKING:
    import asyncio


class ThePeer(asyncio_streams.ThePeer):
    """The same streams, on libuv."""

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop to run in."""
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
