"""uvicorn with `ssl`, on asyncio: what most ASGI applications run on. HTTP/1.1 by h11, as hypercorn has it."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn

from benchmarks.suite.credentials import ADDRESS

from .asgi import AsyncioServer, app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class ThePeer(AsyncioServer):
    """uvicorn."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        config = uvicorn.Config(
            app,
            host=ADDRESS,
            port=0,
            http="h11",
            lifespan="off",
            log_level="critical",
            access_log=False,
            ssl_certfile=self.credentials.certificate("server"),
            ssl_keyfile=str(self.credentials.key("server")),
            ssl_ca_certs=str(self.credentials.ca),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        config.load()
        config.ssl.num_tickets = 0  # else it resumes sessions, which none of the others does
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.01)
        port: int = server.servers[0].sockets[0].getsockname()[1]
        yield [port] * width
        server.should_exit = True
        await serving
