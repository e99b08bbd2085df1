"""Bare `trio.SSLStream` again, where each request is served by a task of its own: what a service costs on Trio.

A task, a cancel scope in it, a checkpoint that stands for receiving the request (a lock, since replies go out one at a
time), and `send_all`, which is one, for the reply; nothing else that a call has. No frames, no credit, no names.
"""

from __future__ import annotations

import trio

from . import trio_streams


async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Everything back as it is."""
    lock = trio.StrictFIFOLock()

    async def serve(request: bytes | bytearray) -> None:
        with trio.CancelScope():
            async with lock:
                await stream.send_all(request)

    async with trio.open_nursery() as nursery:
        while request := await stream.receive_some():
            nursery.start_soon(serve, request)


class ThePeer(trio_streams.ThePeer):
    """What comes with Trio, a task for each request."""

    echo = staticmethod(echo)
