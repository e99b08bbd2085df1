"""ASGI applications without a framework, and a server for the length of a block."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trionode.http import caller_of, serve_asgi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

#: Every server is bounded by this. Seconds.
PATIENCE = 30


async def body_of(receive: Callable[[], Awaitable[Any]]) -> bytes:
    """The whole body of a request."""
    body = b""
    while True:
        event = await receive()
        body += bytes(event.get("body", b""))
        if not event.get("more_body"):
            return body


async def answer(send: Callable[[Any], Awaitable[None]], body: bytes, *, status: int = 200) -> None:
    """A whole response."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Recorder:
    """An application that keeps its scopes, and tells what it knows of its caller.

    Attributes:
        scopes: of requests and WebSockets, in order.
        lifespan: what happened in its lifespan.
        held: whether a request to `/held` waits.
        release: lets requests to `/held` finish.
        cancelled: how many of these were cancelled.
    """

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.lifespan: list[str] = []
        self.held = trio.Event()
        self.release = trio.Event()
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await self._talk(receive, send)
            return
        body = await body_of(receive)
        match scope["path"]:
            case "/held":
                await self._hold(send)
            case "/large":
                await self._flood(send)
            case "/fail":
                msg = "as the application says"
                raise LookupError(msg)
            case _:
                caller = caller_of(scope)
                told = {
                    "verified": caller.verified,
                    "names": caller.names,
                    "generation": caller.generation,
                    "http": scope["http_version"],
                    "body": len(body),
                    "state": scope["state"].get("x"),
                }
                await answer(send, json.dumps(told).encode())

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"]
            self.lifespan.append(kind)
            scope["state"]["x"] = "from the start"
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _hold(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        self.held.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        await send({"type": "http.response.body", "body": b"done"})

    async def _flood(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.held.set()
        while True:
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})

    async def _talk(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"].upper()})


@asynccontextmanager
async def serving(app: Any, cert_manager: Any, **options: Any) -> AsyncIterator[int]:
    """Run `serve_asgi` on a free port for the length of a block; the port."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                partial(serve_asgi, app, 0, host="127.0.0.1", cert_manager=cert_manager, **options)
            )
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()
