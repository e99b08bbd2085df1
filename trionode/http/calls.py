"""One call of an application, where its client leaves early, or it answers early.

Theory. hypercorn 0.18 takes messages from its reader to the application through a bounded channel, and answers back
through the connection's protocol. Either may wait for ever: the reader to hand over what an application that is done
does not take any more, and the application to send over HTTP/2 once the client has gone. And a request over HTTP/2 that
goes on after it was answered is an error to it, which costs the connection. So here

* what waits for a connection ends with that: `receive` says then that the client has disconnected, `send` does nothing,
  and raises where more was to follow, as ASGI 2.4 has it, so that an endless response ends;
* what an application has not taken is taken once it is done;
* over HTTP/2 the end of a response is held back until the request has ended, for a while.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lifespan import Message, Receive, Scope, Send


#: What still waits for the end of something then is cancelled. Seconds.
_MOMENT: Final = 0.1


#: A request over HTTP/1.1 without these has no body (RFC 9112 section 6.3).
_BODIES: Final = frozenset({b"content-length", b"transfer-encoding"})


class ClientGoneError(ConnectionResetError):
    """What an application meets that goes on sending when its client has gone."""


def is_gone(error: Exception) -> bool:
    """Whether an application has ended because its client had gone, and for nothing else."""
    if isinstance(error, ExceptionGroup):
        return all(map(is_gone, error.exceptions))
    return isinstance(error, ClientGoneError)


@final
class Ending:
    """The end of a connection, or of a call, for what waits on it.

    Attributes:
        ended: whether it has come.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._waiting: set[trio.CancelScope] = set()

    def end(self) -> None:
        """It has come. Idempotent. What is about to finish has a moment for that: a send writes the access log last."""
        self.ended = True
        for scope in self._waiting:
            scope.deadline = min(scope.deadline, trio.current_time() + _MOMENT)

    @contextmanager
    def wakes(self) -> Iterator[None]:
        """What waits in the block is cancelled when it comes, and the block is left."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)


class Connection(Protocol):
    """What a call knows of its connection."""

    #: How many calls are about to send something.
    sending: int

    @property
    def ending(self) -> Ending:
        """Its end."""

    @property
    def drains(self) -> trio.Nursery:
        """Runs what outlives calls, and ends with it."""

    async def cut(self) -> None:
        """End it, with all that it does."""


@final
class Call:
    """One call of an application: the `receive` and `send` that it gets."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, connection: Connection, patience: float) -> None:
        """Make one.

        Args:
            scope: of the call.
            receive: hypercorn's.
            send: hypercorn's.
            connection: the connection of the call.
            patience: how long a request that was answered may go on over HTTP/2, seconds.
        """
        self._receive = receive
        self._send = send
        self._connection = connection
        self._patience = patience
        self._is_http = scope["type"] == "http"
        self._held_back = self._is_http and scope["http_version"] == "2"
        # Most requests: with so little to hand over nothing gets stuck.
        self._is_plain = self._is_http and not self._held_back and not _BODIES.intersection(dict(scope["headers"]))
        self._trailers = False
        # The request has ended; hypercorn has said its last word; what is left is taken.
        self._whole = trio.Event()
        self._over = Ending()
        self._draining = False

    async def receive(self) -> Message:
        """The next message of the client."""
        if self._is_plain:
            return await self._take()
        if not self._connection.ending.ended and not self._over.ended:
            with self._connection.ending.wakes(), self._over.wakes():
                return await self._take()
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"} if self._is_http else {"type": "websocket.disconnect", "code": 1006}

    async def _take(self) -> Message:
        return self._taken(await self._receive())

    def _take_what_is_there(self) -> None:
        channel = getattr(self._receive, "__self__", None)
        if isinstance(channel, trio.MemoryReceiveChannel):
            with suppress(trio.WouldBlock):
                while not self._over.ended:
                    self._taken(channel.receive_nowait())

    def _taken(self, message: Message) -> Message:
        disconnected = message["type"].endswith(".disconnect")
        if disconnected or (message["type"] == "http.request" and not message.get("more_body")):
            self._whole.set()
        if disconnected:
            self._over.end()
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client.

        Raises:
            ClientGoneError: the client has gone, and more was to follow.
        """
        if self._is_plain and not self._connection.ending.ended:
            await self._send(message)
            return
        kind = message["type"]
        self._trailers = self._trailers or bool(kind == "http.response.start" and message.get("trailers"))
        if kind == "http.response.body" and not message.get("more_body"):
            self.close()
            if self._held_back and not self._trailers and not self._whole.is_set():
                await self._pass_on({**message, "more_body": True}, last=True)
                await self.wait_whole()
                message = {"type": kind, "body": b"", "more_body": False}
        await self._pass_on(message, last=not (kind == "websocket.send" or message.get("more_body")))

    async def _pass_on(self, message: Message, *, last: bool) -> None:
        if not self._connection.ending.ended:
            self._connection.sending += 1
            try:
                with self._connection.ending.wakes():
                    await self._send(message)
                    return
            finally:
                self._connection.sending -= 1
        await trio.lowlevel.checkpoint()
        if not last:
            msg = "the client has gone"
            raise ClientGoneError(msg)

    async def wait_whole(self) -> None:
        """Wait until a request over HTTP/2 has ended; where that takes too long the connection is cut."""
        if not self._held_back or self._whole.is_set():
            return
        with trio.move_on_after(self._patience), self._connection.ending.wakes():
            await self._whole.wait()
        if not self._whole.is_set() and not self._connection.ending.ended:
            await self._connection.cut()

    def close(self) -> None:
        """The application is done with its request: what it has not taken is in the way of hypercorn's reader."""
        if self._draining or self._over.ended or self._is_plain:
            return
        if not self._whole.is_set():
            self._take_what_is_there()
        if not self._whole.is_set():  # else there is room for all that still comes: that it is over
            self._draining = True
            self._connection.drains.start_soon(self._drain)

    async def _drain(self) -> None:
        while not self._over.ended:
            await self._take()
