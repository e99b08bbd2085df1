"""The lifespan of ASGI applications that have nothing to start and nothing to stop: servers insist on an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trionode.http.lifespan import Receive, Send


async def nothing_to_start(receive: Receive, send: Send) -> None:
    """Say yes to all that a server says."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
