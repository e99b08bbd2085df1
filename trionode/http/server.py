"""An ASGI server on cert managers: hypercorn's protocols over our streams.

Theory. hypercorn runs HTTP/1.1, HTTP/2 and WebSocket over one connection: `hypercorn.trio.tcp_server.TCPServer`. It
takes the connection as a `trio.SSLStream`; a `ServerConnection` stands in its place, before a stream whose handshake is
done. So everything that comes before a request is ours: listeners, handshakes, managers, admission, the ledger of
streams.

Of hypercorn, `Config` is documented. `TCPServer`, `WorkerContext`, and what an application wrapper is called with, are
not: `tests/http/test_hypercorn.py` says what is relied on, and `pyproject.toml` admits the releases that were tried.

What ends when. The application's lifespan begins before the first connection is accepted, and ends after the last is
gone. To stop (the listeners were closed, or `serve_asgi` was cancelled) nothing more is accepted, idle connections are
closed, requests under way have `grace` seconds to finish and are cancelled then, and the lifespan is told to shut down,
with as long again. All this is shielded from the caller's cancellation, which shows when it is done; but where the
listeners were closed first, a cancellation that follows means that the caller has waited long enough, and ends it all.

What has to be worked around in hypercorn 0.18 is in `calls`, where it concerns one call, and in `server_connection`.
Requests over HTTP/2 that are reset go on as calls; so these are counted here, and too many cost the connection.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio

from trionode._handshake.admission import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS
from trionode._managers.trust import StrandedPeers
from trionode._streams.arguments import check_arguments, check_port, protocols
from trionode._streams.listeners import AnyListener, close_all
from trionode._streams.server import admission
from trionode._streams.tls_server import TLSServer
from trionode._transport.tcp import open_listeners
from trionode._util.fields import DURATION, Such, check_argument
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

from .caller import extensions_of
from .calls import Call, is_gone
from .lifespan import Lifespan, LifespanError

try:
    from hypercorn.config import Config
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.typing import ConnectionState

    from .server_connection import ServerConnection
except ModuleNotFoundError as _exc:
    if (_exc.name or "").partition(".")[0] != "hypercorn":
        raise
    _msg = "trionode.http.serve_asgi needs hypercorn; install it with: pip install 'trionode[http]'"
    raise ModuleNotFoundError(_msg, name=_exc.name) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypercorn.typing import AppWrapper

    from trionode._managers.by_name import ManagersByName, ServerManagers
    from trionode._streams.monitor import ServerMonitor
    from trionode._streams.stream import TLSStream

    from .lifespan import ASGIApplication, Receive, Scope, Send

__all__ = ["serve_asgi"]

#: Where hypercorn's messages go, too.
LOGGER: Final = "trionode.http"
_log: Final = Log(LOGGER)


def is_application(value: object) -> bool:
    """Whether it can be called as ASGI 3 has it; a WSGI or ASGI 2 application cannot."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind({}, None, None)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return True
    return True


_APPLICATION: Final = Such(is_application, "an ASGI 3 application, called with scope, receive and send")

#: How many calls of the application one connection may have at once, in terms of the streams that HTTP/2 lets it open.
#: More than one: a stream that was reset is free for another, and its call may go on.
_CALLS_PER_STREAM: Final = 2

#: RFC 9110 section 15.5.20.
_MISDIRECTED: Final = 421


async def serve_asgi(
    app: ASGIApplication,
    port: int | None = None,
    *,
    cert_manager: ServerManagers,
    host: str | None = None,
    listeners: Sequence[AnyListener] | None = None,
    reuse_port: bool = False,
    config: Config | None = None,
    grace: float = 5.0,
    handshake_timeout: float = 10,
    max_handshakes: int = MAX_HANDSHAKES,
    max_handshakes_per_address: int = MAX_HANDSHAKES_PER_ADDRESS,
    stranded: StrandedPeers = StrandedPeers.KEEP,
    monitor: ServerMonitor | None = None,
    task_status: trio.TaskStatus[Sequence[AnyListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application over TLS: HTTP/1.1, HTTP/2 and WebSocket, with certificates that rotate.

    Each handshake takes its manager's current contexts, as with `serve_tls`. The scopes of requests and WebSockets have
    the ASGI extension `tls`, complete, and `caller_of(scope)` is the client as this side verified it.

    Ends when its listeners are closed, normally, or when it is cancelled; gracefully either way: it accepts no more,
    closes idle connections, and gives requests under way `grace` seconds before they are cancelled; then the
    application's lifespan is shut down, which may take as long again. A cancellation shows after that. So close the
    listeners, wait as long as you like, and cancel: once it is stopping, a cancellation cancels what is left at once.

    Where there are several managers, a request for a host (`Host`, `:authority`) of another manager than its
    connection's is answered with 421 (Misdirected Request): it was not made under that one's client authentication.

    Args:
        app: an ASGI 3 application that runs on Trio.
        port: to listen on; 0 draws a free one, the same for IPv4 and IPv6.
        cert_manager: one manager, or a mapping of server names to managers, see `serve_tls`; in use until this returns.
        host: name or address to listen on; None for all interfaces.
        listeners: what to serve on in place of a port: sockets that were given, UNIX sockets, the memory network's.
            Owned: closed when this ends, however it ends.
        reuse_port: see `serve_tls`.
        config: hypercorn's settings, for the access log, limits and timeouts of the protocols. What it says of sockets,
            TLS, workers, the application and graceful shutdown plays no part.
        grace: how long requests may take to finish when this is to stop, and the lifespan's shutdown after them.
            Seconds.
        handshake_timeout: from the accept to the end of the handshake, seconds.
        max_handshakes: see `serve_tls`.
        max_handshakes_per_address: see `serve_tls`.
        stranded: see `serve_tls`.
        monitor: knows what this server does, see `ServerMonitor`.
        task_status: `started()` gets the listeners, once the application has started.

    Raises:
        CertificateError: a manager's key pair is unusable for a server.
        ListenError: the port cannot be had.
        LifespanError: the application failed to start.
        RuntimeError: the monitor is another server's, which has not ended.
        ValueError, TypeError: an argument is not what belongs there; the message names it.
    """
    opened = () if listeners is None else tuple(listeners)
    try:
        check_argument("grace", grace, DURATION)
        check_arguments(handshake_timeout=handshake_timeout, reuse_port=reuse_port)
        settings = _default_config() if config is None else _checked(config)
        check_argument("app", app, _APPLICATION)
        serving = _Serving(app, settings, grace)
        server = TLSServer(
            serving.handle,
            cert_manager,
            alpn=protocols(settings.alpn_protocols),
            handshake_timeout=handshake_timeout,
            admission=admission(max_handshakes, max_handshakes_per_address),
            stranded=stranded,
            monitor=monitor,
        )
        with server.in_use():
            if not opened:
                if host is not None:
                    check_arguments(host=host)
                opened = tuple(await open_listeners(host, _port(port, listeners), reuse_port=reuse_port))
            error = await serving.run(server, opened, lambda: task_status.started(opened))
        if error is not None:
            raise error
    finally:
        await close_all(opened)  # noqa: ASYNC102 -- shielded in there


def _port(port: int | None, listeners: Sequence[AnyListener] | None) -> int:
    if port is None or listeners is not None:
        msg = "there is nothing to serve on: give a port, or at least one listener"
        raise ValueError(msg)
    check_port(port, lowest=0)
    return port


def _checked(config: Config) -> Config:
    check_argument("config", config, Config)
    return config


def _default_config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger(LOGGER)
    return config


@final
class _Serving:
    """One application, its connections, and how both come to their ends."""

    def __init__(self, app: ASGIApplication, config: Config, grace: float) -> None:
        self._app = app
        self._config = config
        self._grace = grace
        self._lifespan = Lifespan(app)
        self._stopping = False
        self._cancelled = False
        self._connections: set[ServerConnection] = set()
        self._managers: ManagersByName | None = None
        self._accepting = trio.CancelScope()
        self._shutting_down = trio.CancelScope()
        self._waited_enough = trio.Event()
        self._flood = RateLimitedLog(_log, "connections failed in an unexpected way, or were cut")

    async def run(
        self, server: TLSServer, listeners: Sequence[AnyListener], started: Callable[[], None]
    ) -> LifespanError | None:
        """Serve until the listeners are closed, or this is cancelled; gives what kept the application from starting."""
        self._managers = server.managers
        async with trio.open_nursery() as outside:
            outside.start_soon(self._stop_when_cancelled)
            async with trio.open_nursery() as inside:
                inside.start_soon(self._lifespan.run)
                error = await self._lifespan.wait_started(self._config.startup_timeout)
                if error is None:
                    inside.cancel_scope.shield = True
                    await self._accept(server, listeners, started, inside)
                    with self._shutting_down:
                        await self._lifespan.stop(self._grace)
                inside.cancel_scope.cancel()
            outside.cancel_scope.cancel()
        self._flood.summarise()
        return error

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._cancelled = True
            if self._stopping:
                self._hurry()
            self._accepting.cancel()

    def _hurry(self) -> None:
        self._waited_enough.set()
        self._shutting_down.cancel()

    async def _accept(
        self, server: TLSServer, listeners: Sequence[AnyListener], started: Callable[[], None], inside: trio.Nursery
    ) -> None:
        async with trio.open_nursery() as handlers:
            with self._accepting:
                await server.run(listeners, handlers, started)
            self._stopping = True
            if self._cancelled and server.closed:  # both at once
                self._hurry()
            for connection in self._connections:
                if connection.selected_alpn_protocol() == "h2":
                    inside.start_soon(connection.end_when_quiet)
                else:
                    await connection.context.terminated.set()
            inside.start_soon(self._end_all, handlers.cancel_scope, trio.current_time() + self._grace)

    async def _end_all(self, handlers: trio.CancelScope, deadline: float) -> None:
        with trio.move_on_at(deadline):
            await self._waited_enough.wait()
        handlers.cancel()
        for connection in tuple(self._connections):
            await connection.cut()

    async def handle(self, stream: TLSStream) -> None:
        """One connection. Whatever fails in it, by a peer's doing or by hypercorn's, costs that connection."""
        async with trio.open_nursery() as drains:
            connection = ServerConnection(stream, drains)
            self._connections.add(connection)
            if connection.selected_alpn_protocol() == "h2":
                drains.start_soon(connection.cut_when_stuck)
            try:
                if self._stopping:  # its handshake was under way
                    await connection.context.terminated.set()
                await self._converse(stream, connection)
            finally:
                self._connections.discard(connection)
            drains.cancel_scope.cancel()

    async def _converse(self, stream: TLSStream, connection: ServerConnection) -> None:
        app, state = self._application(stream, connection), ConnectionState(self._lifespan.state.copy())
        try:
            with connection.scope:
                await TCPServer(app, self._config, connection.context, state, cast("Any", connection)).run()
        except Exception as exc:  # noqa: BLE001 -- logged in full
            self._tell(exc, connection)
        except BaseExceptionGroup as group:
            failures, others = group.split(Exception)
            if failures is not None:
                self._tell(failures, connection)
            if others is not None:
                raise others from None

    def _tell(self, failure: Exception, connection: ServerConnection) -> None:
        if connection.lost:  # hypercorn stumbles over what came before
            _log.debug("a connection failed after its client had gone: %r", failure, error=failure)
        else:
            self._flood.error("a connection failed in an unexpected way", exc_info=failure)

    def _application(self, stream: TLSStream, connection: ServerConnection) -> AppWrapper:
        """The application as one connection calls it: its scopes say what is known of that."""
        made: dict[str, dict[str, object]] = {}

        async def call(scope: Scope, receive: Receive, send: Send, *_: object) -> None:
            if not made:
                made.update(extensions_of(stream))
            scope["extensions"] |= {name: dict(content) for name, content in made.items()}
            connection.begin()
            connection.calls += 1
            try:
                if connection.calls > _CALLS_PER_STREAM * self._config.h2_max_concurrent_streams:
                    self._flood.warning(
                        "the client at %s opens requests and resets them faster than they end (%d under way): "
                        "its connection is cut",
                        stream.peer_address,
                        connection.calls,
                        address=stream.peer_address,
                    )
                    await connection.cut()
                    return
                await self._call(stream, scope, Call(scope, receive, send, connection, self._config.keep_alive_timeout))
            finally:
                connection.calls -= 1
                connection.end()

        return cast("AppWrapper", call)

    async def _call(self, stream: TLSStream, scope: Scope, call: Call) -> None:
        failure: Exception | None = None
        try:
            try:
                if self._is_misdirected(stream, scope):
                    await _misdirect(scope, call.send)
                else:
                    await self._app(scope, call.receive, call.send)
            except Exception as exc:  # noqa: BLE001 -- hypercorn logs it, once the request has ended
                failure = None if is_gone(exc) else exc
            call.close()
            await call.wait_whole()
        finally:
            call.close()
        if failure is not None:
            raise failure

    def _is_misdirected(self, stream: TLSStream, scope: Scope) -> bool:
        managers = self._managers
        if managers is None or not managers.several:
            return False
        host = next((value for name, value in scope["headers"] if name.lower() == b"host"), None)
        if not host:
            return False
        name = host.decode("latin-1")
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        return managers.manager(name) is not managers.manager(stream.server_name)


async def _misdirect(scope: Scope, send: Send) -> None:
    kind = "http" if scope["type"] == "http" else "websocket.http"
    await send({"type": f"{kind}.response.start", "status": _MISDIRECTED, "headers": [(b"content-length", b"0")]})
    await send({"type": f"{kind}.response.body", "body": b""})
