"""A transport for httpx and httpx2 whose connections take a manager's current contexts.

Theory. httpx and its successor are built alike, on httpcore and on httpcore2: a client has a transport, a transport a
pool, a pool connections, and a connection takes its streams from a *network backend*. All but the backend is theirs
here, and all that is used of them is what they export: `connections` has the backend and the retirement of connections
that were superseded. One transport serves clients of either library: a request says whose it is, and the first makes
the pool.

What goes wrong becomes the exception that the library has for it. Where one of our errors is behind it, that is its
`__cause__`, and its text is the exception's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol, cast, final, overload

import trio

from trionode._errors import TrionodeError
from trionode._managers.manager import CertManager
from trionode._util.fields import check_argument, integer, rule_of
from trionode._util.log import Log

from .connections import Backend, Security, retiring_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
    from types import ModuleType, TracebackType
    from typing import Self, TypeAlias

    import httpcore
    import httpx  # noqa: ASYNC127 -- programs use either, and so does this
    import httpx2

    from .connections import SocketOption

    class _Transport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]  # see HTTPTransport
        """What both libraries take for a transport."""

    Proxy: TypeAlias = str | httpx.URL | httpx.Proxy | httpx2.URL | httpx2.Proxy
else:
    _found = [name for name in ("httpx", "httpx2") if find_spec(name) is not None]
    if not _found:
        _msg = "trionode.http.HTTPTransport needs httpx or httpx2; install one with: pip install 'trionode[http]'"
        raise ModuleNotFoundError(_msg, name="httpx")
    Proxy = object  # of the library that is there, for those who ask for type hints
    _Transport = type("_Transport", tuple(import_module(name).AsyncBaseTransport for name in _found), {})

__all__ = ["HTTPTransport"]

_security_log: Final = Log("trionode.security")

#: By the package of a request: the packages of its library.
_CORES: Final = {"httpx": "httpcore", "httpx2": "httpcore2"}
#: What clients of both libraries have by default.
_MAX_CONNECTIONS: Final = 100
_MAX_KEPT_ALIVE: Final = 20
_KEEPALIVE_EXPIRY: Final = 5.0

#: What belongs in arguments that are ours to read, by name.
_RULES: Final = {
    "cert_manager": rule_of(CertManager),
    "http1": rule_of(bool),
    "http2": rule_of(bool),
    "proxy_cert_manager": rule_of(CertManager | None),
    "uds": rule_of(str | None),
    "local_address": rule_of(str | None),
    "retries": integer(0, 2**20),
    "insecure_skip_verify": rule_of(bool),
}


@final
class HTTPTransport(_Transport):
    """A transport for `httpx.AsyncClient` and `httpx2.AsyncClient` on Trio, with client certificates that rotate.

    Each new connection takes the contexts that the manager publishes then. After a rotation no new request goes out on
    a connection that was made before: an idle one is closed, one that is busy finishes what it does, HTTP/2 streams
    included, and is closed then. So a rotation interrupts nothing, and the next request presents the new certificate.

    `response.extensions["network_stream"].get_extra_info("tls_stream")` is the `TLSStream` of the connection.

    A refusal, ours or the server's, is the library's own exception (`ConnectError`, `ReadError`, …) with our error as
    its `__cause__` and in its text. In TLS 1.3 a server's refusal of our certificate shows after the request was sent.

    Like any transport it belongs to one Trio run, and is closed with the client that it was given to.
    """

    def __init__(
        self,
        *,
        cert_manager: CertManager,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | httpx2.Limits | None = None,
        proxy: Proxy | None = None,
        proxy_cert_manager: CertManager | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] = (),
        insecure_skip_verify: bool = False,
    ) -> None:
        """Make one; nothing is opened before the first request.

        Args:
            cert_manager: what connections present and verify with; in use during each handshake. A server's certificate
                must cover the request's extension `sni_hostname`, else the manager's `server_name`, else the URL's
                host.
            http1: whether to speak HTTP/1.1.
            http2: whether to speak HTTP/2 with servers that do; needs `h2`.
            limits: of the pool; by default 100 connections, 20 of them idle, for 5 seconds.
            proxy: an HTTP, HTTPS or SOCKS5 proxy to go through, as httpx takes it. With an `ssl_context` of its own it
                is refused, give `proxy_cert_manager`.
            proxy_cert_manager: for TLS to the proxy itself; by default `cert_manager`.
            uds: path of a UNIX socket to connect to in place of the URL's host.
            local_address: the address to connect from.
            retries: how often a connection that could not be made is tried again.
            socket_options: for `setsockopt`, of each new socket.
            insecure_skip_verify: accept any certificate of any server. Logged as a warning.

        Raises:
            ValueError: the proxy brings an `ssl_context`, or neither HTTP/1.1 nor HTTP/2 is wanted.
            ValueError, TypeError: an argument is not what belongs there; the message names it.
        """
        given = locals()
        for name, rule in _RULES.items():
            check_argument(name, given[name], rule)
        if not (http1 or http2):
            msg = "neither HTTP/1.1 nor HTTP/2 is wanted: give http1=True or http2=True"
            raise ValueError(msg)
        if getattr(proxy, "ssl_context", None) is not None:
            msg = "a proxy's ssl_context would freeze its certificates: leave it away and give proxy_cert_manager"
            raise ValueError(msg)
        if insecure_skip_verify:
            _security_log.warning(
                "insecure_skip_verify: servers of this HTTPTransport are not verified", option="insecure_skip_verify"
            )
        alpn = (("h2",) if http2 else ()) + (("http/1.1",) if http1 else ())
        self._security = Security(cert_manager, alpn, named=True, insecure_skip_verify=insecure_skip_verify)
        self._proxy = proxy
        self._proxy_security = Security(
            proxy_cert_manager or cert_manager,
            ("http/1.1",),
            named=proxy_cert_manager is not None,
            insecure_skip_verify=insecure_skip_verify,
        )
        self._settings = {
            "max_connections": _MAX_CONNECTIONS if limits is None else limits.max_connections,
            "max_keepalive_connections": _MAX_KEPT_ALIVE if limits is None else limits.max_keepalive_connections,
            "keepalive_expiry": _KEEPALIVE_EXPIRY if limits is None else limits.keepalive_expiry,
            "http1": http1,
            "http2": http2,
            "uds": uds,
            "local_address": local_address,
            "retries": retries,
            "socket_options": tuple(socket_options),
        }
        self._pools: dict[str, _Pool] = {}

    def __repr__(self) -> str:
        return f"<HTTPTransport of {self._security.manager!r}>"

    async def __aenter__(self) -> Self:
        if trio.lowlevel.in_trio_run():  # elsewhere the first request says what is wrong
            await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """Send a request and return its response as soon as its headers are here; clients call it.

        Args:
            request: of httpx or httpx2; the response is of the same.

        Raises:
            RuntimeError: this is not a Trio run.
            TypeError: it is a request of neither.
        """
        if not trio.lowlevel.in_trio_run():
            msg = "HTTPTransport runs on Trio: start the program by trio.run"
            raise RuntimeError(msg)
        library = _library_of(request)
        if library not in self._pools:
            self._pools[library] = _Pool(library, self._security, self._proxy, self._proxy_security, self._settings)
        return await self._pools[library].handle(request)

    async def aclose(self) -> None:
        """Close all connections; requests under way fail."""
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.aclose()
        if trio.lowlevel.in_trio_run():
            await trio.lowlevel.checkpoint()


def _library_of(request: object) -> str:
    for kind in type(request).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _CORES:
            return package
    msg = f"a request of httpx or httpx2 is wanted, not {type(request).__module__}.{type(request).__qualname__}"
    raise TypeError(msg)


@final
class _Pool:
    """One library's connections."""

    def __init__(
        self,
        library: str,
        security: Security,
        proxy: Proxy | None,
        proxy_security: Security,
        settings: Mapping[str, object],
    ) -> None:
        self._http = import_module(library)
        self._core = import_module(_CORES[library])
        self._body = _body_class(self._http, self._core)
        self._pool = self._open(security, proxy, proxy_security, dict(settings))

    def _open(
        self, security: Security, proxy: Proxy | None, proxy_security: Security, settings: dict[str, object]
    ) -> httpcore.AsyncConnectionPool:
        core = self._core
        settings |= {"ssl_context": security, "network_backend": Backend(core)}
        if proxy is None:
            return retiring_pool(core, "AsyncConnectionPool")(**settings)
        # One of the other library will do as well.
        given: httpx.Proxy = proxy if hasattr(proxy, "raw_auth") else self._http.Proxy(str(proxy))  # type: ignore[assignment]
        url = given.url
        settings["proxy_url"] = core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        settings["proxy_auth"] = given.raw_auth
        if url.scheme in ("socks5", "socks5h"):
            for unknown in ("uds", "local_address", "socket_options"):
                settings.pop(unknown)
            return retiring_pool(core, "AsyncSOCKSProxy")(**settings)
        settings["proxy_headers"] = given.headers.raw
        settings["proxy_ssl_context"] = proxy_security if url.scheme == "https" else None
        return retiring_pool(core, "AsyncHTTPProxy")(**settings)

    async def handle(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """Send a request; the response's headers are here when this returns."""
        url, upload = request.url, _Upload(request.stream)
        asked = self._core.Request(
            method=request.method,
            url=self._core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=upload,
            extensions=request.extensions,
        )
        async with upload:
            with _translated(self._http, self._core):
                answer = await self._pool.handle_async_request(asked)
        response: httpx.Response | httpx2.Response = self._http.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=self._body(answer.stream),  # type: ignore[arg-type]  # a pool's has both
            extensions=answer.extensions,
        )
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


@final
class _Upload:
    """The body of a request. httpcore leaves one that it has not read to its end to the garbage collector."""

    def __init__(self, stream: object) -> None:
        # Whatever an asynchronous client of either library sends is one.
        self._stream = cast("AsyncIterable[bytes]", stream)
        self._begun: list[AsyncIterator[bytes]] = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._stream.__aiter__()
        self._begun.append(parts)
        return parts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for parts in self._begun:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()


class _Stream(Protocol):
    """The body of a response, as a pool has it."""

    def __aiter__(self) -> AsyncGenerator[bytes, None]: ...  # noqa: PYI058 -- it is closed by who leaves it early

    async def aclose(self) -> None: ...


def _body_class(http: ModuleType, core: ModuleType) -> Callable[[_Stream], object]:
    """A class for the bodies of responses, as clients of a library want them."""

    class Body(http.AsyncByteStream):  # type: ignore[misc,name-defined]  # one of two libraries'
        def __init__(self, stream: _Stream) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            with _translated(http, core):
                async with aclosing(self._stream.__aiter__()) as parts:
                    async for part in parts:
                        yield part  # noqa: ASYNC119 -- no cleanup there

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Body


@contextmanager
def _translated(http: ModuleType, core: ModuleType) -> Iterator[None]:
    """The core's exceptions become the library's of the same names; what is behind one becomes its cause."""
    try:
        yield
    except Exception as exc:
        kind = type(exc)
        translated = getattr(http, kind.__name__, None)
        if translated is None or kind is not getattr(core, kind.__name__, None):
            raise
        message, *behind = exc.args or ("",)
        raise translated(str(message)) from _ours(*behind) or exc


def _ours(behind: BaseException | None = None) -> BaseException | None:
    """Our own error behind an exception, or else what is."""
    ours = behind
    while ours is not None and not isinstance(ours, TrionodeError):
        ours = ours.__cause__
    return ours or behind
