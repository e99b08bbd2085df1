"""hypercorn on Trio with its own TLS, which is stdlib `ssl`: what ours is made of, without ours."""

from __future__ import annotations

import logging
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from benchmarks.suite.credentials import ADDRESS

from .asgi import TrioServer, app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class _WithoutTickets(Config):
    """Resumes no session, as none of the others does."""

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """Of stdlib `ssl`."""
        context = super().create_ssl_context()
        assert context is not None
        context.num_tickets = 0
        return context


class ThePeer(TrioServer):
    """hypercorn."""

    @asynccontextmanager
    async def serve(self, width: int = 1) -> AsyncIterator[Sequence[int]]:
        """One server."""
        config = _WithoutTickets()
        config.bind = [f"{ADDRESS}:0"]
        config.certfile = str(self.credentials.certificate("server"))
        config.keyfile = str(self.credentials.key("server"))
        config.ca_certs = str(self.credentials.ca)
        config.verify_mode = ssl.CERT_REQUIRED
        config.graceful_timeout = 0.1
        config.errorlog = logging.getLogger("benchmarks")
        async with trio.open_nursery() as nursery:
            [where] = await nursery.start(serve, app, config)
            yield [int(where.rpartition(":")[2])] * width
            nursery.cancel_scope.cancel()
