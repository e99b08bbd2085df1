"""The network below httpcore's connections: TLS by cert managers, and connections that retire when superseded.

Theory. httpcore makes a connection when a request needs one, and lets it connect in that request's task: TCP or a UNIX
socket by the network backend, then TLS by `start_tls` of the stream, once more within a proxy's tunnel. `start_tls` is
given the `ssl_context` that the pool was made with; here that is a `Security`, which stands in its place and says whose
contexts to take. So the pool, its proxies and its protocols need not know.

A pool asks its connections whether they are available, idle, or expired. `_Retiring` stands before each and answers for
it: one whose manager has published since is neither available for a new request nor, once idle, to be kept. It knows
the TLS streams of its connection because they are made while it handles a request, which a context variable says.

An exception for httpcore has a second argument, what is behind it: a pool raises it once more, and drops its cause.

httpcore and httpcore2 are alike in all of this, and what is used is exported by both: exceptions by name, the pools'
`create_connection`, `ConnectionNotAvailable`, and the methods of the interfaces for connections, backends and streams.
Which of the two it is comes in as a module, `core`.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias, final

import trio

from trionode._errors import HandshakeTimeoutError, PeerRejectedError, TrionodeError
from trionode._identity.names import canonical_host
from trionode._streams.client import wrap_for_client
from trionode._streams.stream import TLSStream
from trionode._transport.connecting import connect_tcp
from trionode._transport.lookup import LookupTimeoutError
from trionode._util.exhausted import exhausted
from trionode._util.home import close_in_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import ModuleType

    import httpcore

    from trionode._managers.manager import CertManager


#: As httpcore has it.
SocketOption: TypeAlias = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

#: How long a reason is looked for where sending has failed: the alert that says it is mostly here already. Seconds.
_REASON: Final = 1.0

#: The connection whose request the present task handles.
_handling: ContextVar[_Retiring] = ContextVar("trionode.http.connection")


@final
class Security:
    """Stands in the place of an `ssl.SSLContext`: by which manager TLS is made, and what is offered.

    Attributes:
        manager: whose contexts are taken, anew for each handshake.
        named: whether the manager's own server name counts, and a request's extension `sni_hostname`.
    """

    def __init__(self, manager: CertManager, alpn: tuple[str, ...], *, named: bool, insecure_skip_verify: bool) -> None:
        self.manager: Final = manager
        self.named: Final = named
        self._alpn = alpn
        self._insecure_skip_verify = insecure_skip_verify

    def set_alpn_protocols(self, protocols: Sequence[str]) -> None:
        """Do nothing: httpcore says here what it was told by who made us."""

    async def wrap(self, stream: trio.abc.Stream, reference: str, *, seconds: float) -> TLSStream:
        """Make TLS of a stream that is connected to a server, within so many seconds; owns it.

        Raises:
            HandshakeError: it failed.
            CertificateError: the manager's key pair is unusable.
            ValueError: the name is none.
        """
        try:
            return await wrap_for_client(
                stream,
                canonical_host(reference),
                self.manager,
                alpn=self._alpn,
                insecure_skip_verify=self._insecure_skip_verify,
                handshake_timeout=seconds,
            )
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise


@final
class Backend:
    """What httpcore calls an `AsyncNetworkBackend`, on Trio."""

    def __init__(self, core: ModuleType) -> None:
        """Make one.

        Args:
            core: httpcore, or httpcore2.
        """
        self._core = core

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        """Connect to a host."""
        with self._connecting(timeout):
            stream = await connect_tcp(host, port, local_address=local_address)
            return _stream(stream, self._core, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        """Connect to a UNIX socket."""
        with self._connecting(timeout):
            return _stream(await trio.open_unix_socket(path), self._core, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Sleep, between two attempts."""
        await trio.sleep(seconds)

    @contextmanager
    def _connecting(self, timeout: float | None) -> Iterator[None]:
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                yield
        except trio.TooSlowError as exc:
            raise self._core.ConnectTimeout(f"no connection within {timeout:g} s", exc) from exc
        except LookupTimeoutError as exc:
            raise self._core.ConnectTimeout(f"the host could not be looked up: {exc.strerror}", exc) from exc
        except OSError as exc:
            inner = exc.__cause__
            causes = inner.exceptions if isinstance(inner, BaseExceptionGroup) else (exc,)
            remedies = (f". {remedy}" for remedy in map(exhausted, causes) if remedy is not None)
            text = "; ".join(dict.fromkeys(map(str, causes))) + next(remedies, "")
            raise self._core.ConnectError(text, exc) from exc


def _stream(stream: trio.SocketStream, core: ModuleType, options: Iterable[SocketOption] | None) -> NetworkStream:
    close_in_children(stream.socket)
    try:
        for option in options or ():
            stream.setsockopt(*option)
    except BaseException:
        stream.socket.close()
        raise
    return NetworkStream(stream, core)


@final
class NetworkStream:
    """What httpcore calls an `AsyncNetworkStream`."""

    def __init__(self, stream: trio.abc.Stream, core: ModuleType) -> None:
        self._stream = stream
        self._core = core
        # What came while a reason was looked for.
        self._leading = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- likewise
        """Receive something; empty at the end."""
        if self._leading:
            await trio.lowlevel.checkpoint()
            data, self._leading = self._leading[:max_bytes], self._leading[max_bytes:]
            return data
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                return bytes(await self._stream.receive_some(max_bytes))
        except trio.TooSlowError as exc:
            raise self._core.ReadTimeout(f"nothing came within {timeout:g} s", exc) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._core.ReadError(str(exc), exc) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- likewise
        """Send all."""
        if not buffer:
            return
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                await self._stream.send_all(buffer)
        except trio.TooSlowError as exc:
            raise self._core.WriteTimeout(f"not sent within {timeout:g} s", exc) from exc
        except trio.ClosedResourceError as exc:
            raise self._core.WriteError(str(exc), exc) from exc
        except trio.BrokenResourceError as exc:
            reason = await self._reason() or exc  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news
            raise self._core.WriteError(str(reason), reason) from reason

    async def _reason(self) -> trio.BrokenResourceError | None:
        """Why the server has ended the connection, if it said so: it may have refused us after its handshake."""
        with trio.move_on_after(_REASON):
            try:
                while data := await self._stream.receive_some():
                    self._leading += data
            except trio.BusyResourceError:  # another request reads, and meets it there
                pass
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                if isinstance(exc, trio.BrokenResourceError) and isinstance(exc.__cause__, PeerRejectedError):
                    return exc
        return None

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: Security,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- likewise
    ) -> NetworkStream:
        """Make TLS of it; owns it."""
        connection = _handling.get()
        host = server_hostname or ""
        reference = (connection.sni or ssl_context.manager.server_name or host) if ssl_context.named else host
        try:
            stream = await ssl_context.wrap(self._stream, reference, seconds=math.inf if timeout is None else timeout)
        except HandshakeTimeoutError as exc:
            raise self._core.ConnectTimeout(str(exc), exc) from exc
        except (TrionodeError, ValueError) as exc:
            raise self._core.ConnectError(str(exc), exc) from exc
        connection.streams.append(stream)
        return NetworkStream(stream, self._core)

    def get_extra_info(self, info: str) -> object:
        """What httpcore and applications ask for by name; None for what there is not."""
        match info:
            case "tls_stream":
                return self._tls
            case "ssl_object":
                return None if self._tls is None else _SSLObject(self._tls)
            case "is_readable":
                return bool(self._leading) or (self._socket is not None and self._socket.is_readable())
            case "socket":
                return self._socket
            case "client_addr":
                return None if self._socket is None else self._socket.getsockname()
            case "server_addr":
                return None if self._socket is None else self._socket.getpeername()
        return None

    @property
    def _tls(self) -> TLSStream | None:
        return self._stream if isinstance(self._stream, TLSStream) else None

    @property
    def _socket(self) -> trio.socket.SocketType | None:
        stream = self._stream
        while isinstance(stream, TLSStream):
            stream = stream.transport_stream
        return stream.socket if isinstance(stream, trio.SocketStream) else None


@final
class _SSLObject:
    """As much of `ssl.SSLObject` as HTTP clients ask for."""

    def __init__(self, stream: TLSStream) -> None:
        self._stream = stream

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on."""
        return self._stream.alpn

    def version(self) -> str:
        """`TLSv1.3`."""
        return self._stream.tls_version


# Retirement ---------------------------------------------------------------------------------------------------------


@final
class _Retiring:
    """A connection of a pool, which takes no new request once it was superseded.

    Attributes:
        streams: its TLS streams: to the server, or to a proxy, or both.
        sni: what the request that it handles says the server is to be called.
    """

    def __init__(self, connection: httpcore.AsyncConnectionInterface, core: ModuleType) -> None:
        self._connection: Final = connection
        self._core = core
        self.streams: list[TLSStream] = []
        self.sni: str | None = None

    @property
    def _superseded(self) -> bool:
        return any(stream.superseded for stream in self.streams)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Handle a request; or say that it has to go to another connection."""
        if self._superseded:  # since the pool asked
            raise self._core.ConnectionNotAvailable
        self.sni = request.extensions.get("sni_hostname")
        token = _handling.set(self)
        try:
            return await self._connection.handle_async_request(request)
        finally:
            _handling.reset(token)

    def is_available(self) -> bool:
        """Whether it may be given a new request."""
        return not self._superseded and self._connection.is_available()

    def has_expired(self) -> bool:
        """Whether it is to be closed."""
        return self._connection.has_expired() or (self._superseded and self._connection.is_idle())

    def __getattr__(self, name: str) -> object:
        # What a pool asks for besides differs between the two, and grows.
        return getattr(self._connection, name)

    def __repr__(self) -> str:
        return repr(self._connection)


@cache
def retiring_pool(core: ModuleType, name: str) -> Callable[..., httpcore.AsyncConnectionPool]:
    """A class of pools whose connections retire.

    Args:
        core: httpcore, or httpcore2.
        name: of the class there that it is like otherwise.
    """

    class Pool(getattr(core, name)):  # type: ignore[misc]  # one of six
        def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
            connection: httpcore.AsyncConnectionInterface = super().create_connection(origin)
            return _Retiring(connection, core)  # type: ignore[return-value]  # has what one has, of either library

    return Pool
