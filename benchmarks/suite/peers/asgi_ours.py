"""`trionode.http.serve_asgi`, nothing tuned."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from benchmarks.suite.credentials import ADDRESS
from trionode.http import serve_asgi

from .asgi import TrioServer, app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class ThePeer(TrioServer):
    """Ours."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        async with trio.open_nursery() as nursery:
            manager = self.credentials.manager("server")
            [listener] = await nursery.start(partial(serve_asgi, app, 0, host=ADDRESS, cert_manager=manager))
            yield [listener.socket.getsockname()[1]] * width
            nursery.cancel_scope.cancel()
