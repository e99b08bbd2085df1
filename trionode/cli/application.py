"""An ASGI application of `trionode serve`: found, checked, and served until the program is told to end."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trionode import ServerMonitor
from trionode._streams.listeners import close_all
from trionode._transport.tcp import open_listeners
from trionode._util.fields import DURATION, check_argument, show

from .config import ASGITable
from .exits import ExitStatus, Trouble, listening_by
from .given import place_to_listen
from .imports import imported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionode import CertManager

#: Beside the 8080 of HTTP; ports below 1024 are for root.
_DEFAULT_PORT: Final = 8443
_DEFAULT_HOST: Final = "localhost"

_ACCESS_LOG: Final = "trionode.http.access"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """What to serve, and where.

    Attributes:
        where: MODULE:NAME, for people.
        app: the ASGI application.
        places: host and port of each place to listen on; `*` for all interfaces.
        listeners: what to serve on in place of these: sockets that a service manager has handed over.
        grace: how long requests may take to finish at the end, and the lifespan's shutdown after them. Seconds.
        access_log: whether each request is logged.
        monitor: knows what its server does.
    """

    where: str
    app: Any
    places: tuple[tuple[str, int], ...]
    grace: float
    access_log: bool
    monitor: ServerMonitor
    listeners: tuple[trio.SocketListener, ...] = ()


def find_application(table: ASGITable, base: Path, *, where: str | None, listen: tuple[str, ...]) -> Application | None:
    """The application that is to be served, or None if there is none.

    Args:
        table: what the configuration file says of it.
        base: the directory of that file; its modules are looked for there.
        where: MODULE:NAME on the command line, which takes precedence, as the rest does.
        listen: HOST:PORT of each place to listen on.

    Raises:
        ValueError, TypeError: something about it is not what belongs there.
        Trouble: a library that is needed is absent.
    """
    where = where or table.app
    if where is None:
        if listen or table != ASGITable():
            msg = "which application? Give --asgi MODULE:APP, or app = … in [asgi]"
            raise ValueError(msg)
        return None
    try:
        from trionode.http.server import is_application
    except ModuleNotFoundError as exc:
        raise Trouble(str(exc), ExitStatus.USAGE) from None
    app = imported(where, base)
    if not is_application(app):
        msg = f"{where} is no ASGI 3 application, called with scope, receive and send: {show(app)}"
        raise TypeError(msg)
    check_argument("grace", table.grace, DURATION)
    hint = "--asgi-listen" if listen else "listen in [asgi]"
    places = tuple(place_to_listen(text, _DEFAULT_PORT, hint=hint) for text in listen or table.listen)
    return Application(
        where=where,
        app=app,
        places=places or ((_DEFAULT_HOST, _DEFAULT_PORT),),
        grace=table.grace,
        access_log=table.access_log,
        monitor=ServerMonitor(where),
    )


@asynccontextmanager
async def serving_application(
    application: Application, manager: CertManager
) -> AsyncIterator[list[trio.SocketListener]]:
    """Serve it for the length of a block, which is given the listeners; it ends gracefully then.

    Cancelled meanwhile, the graceful end is cut short.

    Raises:
        Trouble: a port cannot be had.
        LifespanError: the application failed to start.
        CertificateError: the manager's key pair is unusable for a server.
    """
    from hypercorn.config import Config

    from trionode.http.server import LOGGER, serve_asgi

    config = Config()
    config.errorlog = logging.getLogger(LOGGER)
    config.accesslog = logging.getLogger(_ACCESS_LOG) if application.access_log else None
    listeners = list(application.listeners)
    try:
        if not listeners:
            await _listen(application.places, listeners)
        server = partial(
            serve_asgi,
            application.app,
            cert_manager=manager,
            listeners=listeners,
            config=config,
            grace=application.grace,
            monitor=application.monitor,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server)
            yield listeners
            await close_all(listeners)
    finally:
        await close_all(listeners)  # noqa: ASYNC102 -- shielded in there


async def _listen(places: tuple[tuple[str, int], ...], listeners: list[trio.SocketListener]) -> None:
    for host, port in places:
        with listening_by("--asgi-listen"):
            listeners += await open_listeners(None if host == "*" else host, port)
