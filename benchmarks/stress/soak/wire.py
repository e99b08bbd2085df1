"""A TCP forwarder from one node to another, which can cut and stall its connections. It needs no privileges."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

import trio

_CHUNK: Final = 64 * 1024
#: Closing with this resets the connection: neither side hears a clean end.
_ABORT: Final = struct.pack("ii", 1, 0)


class Wire:
    """Forwards what comes to its port to wherever the target listens just then."""

    def __init__(self) -> None:
        self.port = 0
        self.target: int | None = None
        self.connections = 0
        self._flows = trio.Event()
        self._flows.set()
        self._severed = False
        self._live: set[trio.CancelScope] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled; `port` is set once this has started."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._forward, [listener])

    def sever(self) -> None:
        """Reset every connection, and those that come, until it is healed."""
        self._severed = True
        for scope in self._live:
            scope.cancel()

    def stall(self) -> None:
        """Hold up everything in both directions, new connections included, until it is healed; neither side is told."""
        if self._flows.is_set():
            self._flows = trio.Event()

    def heal(self) -> None:
        """Let everything through again; what was held up arrives."""
        self._severed = False
        self._flows.set()

    async def _forward(self, near: trio.SocketStream) -> None:
        self.connections += 1
        scope = trio.CancelScope()
        self._live.add(scope)
        far: trio.SocketStream | None = None
        clean = False
        try:
            with scope:
                await self._flows.wait()
                if self.target is not None and not self._severed:
                    with suppress(OSError):
                        far = await trio.open_tcp_stream("127.0.0.1", self.target)
                if far is not None:
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        clean = await self._pump_both(near, far)
        finally:
            self._live.discard(scope)
            for stream in filter(None, (near, far)):
                if not clean:
                    with suppress(OSError):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                with trio.CancelScope(shield=True):  # it never waits; cancelled, it would leave the other one open
                    await trio.aclose_forcefully(stream)

    async def _pump_both(self, near: trio.SocketStream, far: trio.SocketStream) -> bool:
        """Until both directions have ended; True if neither broke."""
        broken = False

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            nonlocal broken
            try:
                while data := await source.receive_some(_CHUNK):
                    await self._flows.wait()
                    await sink.send_all(data)
                await self._flows.wait()
                await sink.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                broken = True
                nursery.cancel_scope.cancel()  # it is broken in both directions

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)
        return not broken
