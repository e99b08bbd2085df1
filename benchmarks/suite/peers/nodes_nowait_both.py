"""trionode, `send_nowait` here and `receive_nowait` there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from . import nodes_nowait

if TYPE_CHECKING:
    from trionode import ServiceChannel


class ThePeer(nodes_nowait.ThePeer):
    """The receiving end takes all that is there before it waits for more."""

    async def counting(self, channel: ServiceChannel) -> None:
        """Count messages to their end, then say how many."""
        number = 0
        receive_nowait = channel.receive_nowait
        async for _ in channel:
            number += 1
            try:
                while True:
                    receive_nowait()
                    number += 1
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
        await channel.send(number.to_bytes(8, "big"))
