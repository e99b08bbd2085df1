"""What the HTTP servers have in common: one application, and no client, for all are asked by the same one.

That client is in `benchmarks.suite.scenarios.http`: blocking, without an event loop, so that it costs the same
whichever server answers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .loops import AsyncioPeer, TrioPeer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from . import Client

BODY: Final = b"hello, world\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """A small answer to every request; it knows no lifespan."""
    if scope["type"] != "http":
        msg = "only http here"
        raise RuntimeError(msg)
    while (await receive()).get("more_body"):
        pass
    length = (b"content-length", b"%d" % len(BODY))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), length]})
    await send({"type": "http.response.body", "body": BODY})


class _NoClient:
    """The other half of a peer."""

    def client(self, ports: Sequence[int], width: int = 1) -> AbstractAsyncContextManager[Client]:
        """There is none."""
        raise NotImplementedError


class TrioServer(_NoClient, TrioPeer):
    """An HTTP server on Trio."""


class AsyncioServer(_NoClient, AsyncioPeer):
    """An HTTP server on asyncio."""
