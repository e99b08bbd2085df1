"""A connection of `serve_asgi`, as hypercorn knows it: in the place of a `trio.SSLStream`.

Theory. hypercorn 0.18 is told by a `WorkerContext` when to end; here each connection has one of its own, so that it
can be told alone. That works around four things. A connection that its client has ended lingers until an idle
timeout; here its end is its end. HTTP/2 that is told to end sends GOAWAY while the last frames of a response are
still to be sent, and these are lost; here a busy connection is told only once it has nothing left to send. Sends are
shielded; to cut a connection is to close it, too, which wakes those that are stuck in one. And the reader waits for
applications that do not take what came, so it does not notice that a client has gone, or has room again: a connection
that waits for both for long is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio
from hypercorn.trio.worker_context import WorkerContext

from .calls import Ending

if TYPE_CHECKING:
    from trionode._streams.stream import TLSStream

#: How long a connection that is to end must have had nothing to do. Seconds.
_MOMENT: Final = 0.02

#: How long something may wait to be sent while hypercorn's reader waits for an application to take what came. Seconds.
_STUCK: Final = 30.0


@final
class ServerConnection:
    """Stands in the place of a `trio.SSLStream`, as far as hypercorn looks at one. It has no `send_eof`, as that.

    Attributes:
        context: hypercorn's, for this connection alone: `terminated` tells it to end.
        ending: its end, for what waits on it.
        lost: whether the client has gone.
        scope: around all that it does.
        drains: takes what applications leave.
        calls: of the application, under way.
    """

    def __init__(self, stream: TLSStream, drains: trio.Nursery) -> None:
        self.context: WorkerContext = WorkerContext(None)
        self.ending: Ending = Ending()
        self.lost: bool = False
        self.scope: trio.CancelScope = trio.CancelScope()
        self.drains = drains
        self.sending: int = 0
        # Since when the reader is not waiting for the client, or None while it is.
        self._elsewhere: float | None = None
        self.calls: int = 0
        self._work = 0
        self._begun = 0
        self._through = trio.lowlevel.ParkingLot()
        self._stream = stream
        self.transport_stream: _Transport = _Transport(stream.transport_stream)

    async def cut_when_stuck(self) -> None:
        """End it where what is to be sent waits for the client's word, and that for an application, for too long."""
        while True:
            await trio.sleep(_STUCK)
            if self.sending and self._elsewhere is not None and self._elsewhere <= trio.current_time() - _STUCK:
                await self.cut()

    def begin(self) -> None:
        """It has something to do: a call of the application, or a send. Each ends with `end`."""
        self._work += 1
        self._begun += 1

    def end(self) -> None:
        """It has done something."""
        self._work -= 1
        if not self._work:
            self._through.unpark_all()

    async def end_when_quiet(self) -> None:
        """Tell it to end once it has had nothing to do for a moment: its last frames follow within a few ticks."""
        begun = -1
        while self._work or self._begun != begun:
            if self._work:
                await self._through.park()
            begun = self._begun
            await trio.sleep(_MOMENT)
        await self.context.terminated.set()

    async def cut(self) -> None:
        """End it, with all that it does. A send that is stuck is shielded: closing wakes it."""
        self.scope.cancel()
        with trio.move_on_after(0):
            await self.aclose()

    def _lose(self) -> None:
        self.lost = True
        self.ending.end()

    async def aclose(self) -> None:
        """As the stream."""
        self.ending.end()
        await self._stream.aclose()

    async def send_all(self, data: bytes) -> None:
        """As the stream."""
        self.begin()
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose()
            raise
        finally:
            self.end()

    async def do_handshake(self) -> None:
        """It is done."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """As the stream. Its end is that of the connection; left to itself, hypercorn waits for an idle timeout."""
        data = b""
        self._elsewhere = None
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose()
            raise
        finally:
            self._elsewhere = trio.current_time()
            if not data:
                await self.context.terminated.set()  # noqa: ASYNC102 -- no checkpoint
        if not data and self.selected_alpn_protocol() == "h2":  # HTTP/1.1 may still be answered
            self._lose()
        return data

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on."""
        return self._stream.alpn


@final
class _Transport:
    """What is below, as far as hypercorn looks at it: a socket with two addresses."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.socket: trio.socket.SocketType | _NoSocket
        self.socket = stream.socket if isinstance(stream, trio.SocketStream) else _NoSocket()


@final
class _NoSocket:
    """A transport that is no socket: hypercorn knows no addresses then."""

    family = -1

    def getpeername(self) -> tuple[()]:
        """None."""
        return ()

    def getsockname(self) -> tuple[()]:
        """None."""
        return ()
