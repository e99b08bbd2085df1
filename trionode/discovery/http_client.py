"""HTTP/1.1 to one of several servers over our own TLS streams: POST with JSON, one reply or a stream of lines.

Theory. One connection at a time, to the server that answered last; where it fails, or its certificate was superseded,
the next request connects anew. A request goes to one server after the other until one answers, each within a timeout;
so it may arrive more than once. `h11` knows the protocol (RFC 9112); no proxies, redirects, cookies or compression, and
every reply is bounded.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import CertificateError, PeerRejectedError, PeerUnverifiedError, TrionodeError
from trionode._identity.names import unbracketed
from trionode._node.resolvers import ResolverError
from trionode._streams.client import open_tls_stream
from trionode._util.text import printable

try:
    import h11
except ModuleNotFoundError as _exc:
    if _exc.name != "h11":
        raise
    _msg = "trionode.discovery.EtcdRegistry needs h11; install it with: pip install 'trionode[etcd]'"
    raise ModuleNotFoundError(_msg, name=_exc.name) from None

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from trionode._managers.manager import CertManager
    from trionode._node.resolvers import Endpoint
    from trionode._streams.stream import TLSStream

#: A longer reply, or line of one, is refused. Bytes.
MAX_REPLY: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024
#: For saying goodbye. Seconds.
_CLOSE_TIME: Final = 0.5

#: What ends a connection, and sends a request to the next server.
FAILURES: Final = (
    OSError,
    TrionodeError,
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)
#: Of these, what does not pass by itself.
_LASTING: Final = (CertificateError, PeerRejectedError, PeerUnverifiedError)


@final
class StatusError(Exception):
    """A server answered with another status than 200.

    Attributes:
        status: the status.
        body: what came with it.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {printable(body.decode(errors='replace'), 200)}")
        self.status = status
        self.body = body


@final
class _Connection:
    """One connection to a server."""

    def __init__(self, stream: TLSStream, host: str) -> None:
        self.stream = stream
        self._host = host
        self._http = h11.Connection(h11.CLIENT)

    @property
    def reusable(self) -> bool:
        """Whether another request may go out on it."""
        return self._http.our_state is h11.IDLE and not self.stream.superseded

    async def begin(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a request; the status of its reply, once that has begun."""
        lines = {
            "Host": self._host,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Accept-Encoding": "identity",
            **headers,
        }
        request = h11.Request(method="POST", target=path, headers=list(lines.items()))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        await self.stream.send_all(b"".join(self._http.send(event) or b"" for event in events))
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code

    async def piece(self) -> bytes | None:
        """The next piece of the reply; None at its end."""
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return None

    async def whole(self) -> bytes:
        """The rest of the reply."""
        reply = bytearray()
        while (piece := await self.piece()) is not None:
            reply += piece
            if len(reply) > MAX_REPLY:
                msg = f"{self._host} answers with more than {MAX_REPLY} bytes"
                raise ResolverError(msg)
        return bytes(reply)

    async def _next(self) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self.stream.receive_some(_CHUNK)))
            elif isinstance(event, h11.Event):
                if isinstance(event, h11.ConnectionClosed):
                    msg = f"{self._host} closed the connection"
                    raise trio.BrokenResourceError(msg)
                return event
            else:
                msg = f"{self._host} speaks out of turn"
                raise trio.BrokenResourceError(msg)


@final
class Lines:
    """The lines of a reply that goes on for long."""

    def __init__(self, client: Client, connection: _Connection) -> None:
        self._client = client
        self._connection = connection
        self._rest = bytearray()

    async def next(self) -> bytes | None:
        """The next line; None at the end, or where the server has failed: then the next request goes to another.

        Raises:
            ResolverError: a line is too long.
        """
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > MAX_REPLY:
                msg = f"a line of more than {MAX_REPLY} bytes"
                raise ResolverError(msg)
            try:
                piece = await self._connection.piece()
            except FAILURES:
                await self._client.turn()
                return None
            if piece is None:
                return None
            self._rest += piece
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line


@final
class Client:
    """Sends requests to whichever of several servers answers. Used by one task at a time.

    Attributes:
        headers: sent with every request, besides those that HTTP needs.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        cert_manager: CertManager,
        *,
        timeout: float,
        sent: Callable[[], None],
    ) -> None:
        """Make one; nothing is opened before the first request.

        Args:
            servers: where they are.
            cert_manager: whose contexts connections take.
            timeout: for connecting to one of them, and again for its reply. Seconds.
            sent: called before each request.
        """
        self.headers: dict[str, str] = {}
        self._servers = servers
        self._manager = cert_manager
        self._timeout = timeout
        self._sent = sent
        self._current = random.randrange(len(servers))  # noqa: S311 -- spreads the load
        self._connection: _Connection | None = None

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of a reply.

        Raises:
            StatusError: the server refused.
            ResolverError: no server answered.
        """
        failures: list[Exception] = []
        while True:
            connection = await self._begin(path, body, failures)
            try:
                with trio.fail_after(self._timeout):
                    return await connection.whole()
            except FAILURES as exc:
                await self._failed(exc, failures)
            except BaseException:
                await self.aclose()
                raise

    @asynccontextmanager
    async def lines(self, path: str, body: bytes) -> AsyncIterator[Lines]:
        """The lines of a reply that goes on for long; the connection is closed at the end of the block.

        Raises:
            StatusError, ResolverError: as `post`.
        """
        connection = await self._begin(path, body, [])
        try:
            yield Lines(self, connection)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, if there is one. Bounded; cancelling does not hold it up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_TIME):
                await connection.stream.aclose()

    async def turn(self) -> None:
        """Send further requests to another server, if there is one."""
        self._current = (self._current + 1) % len(self._servers)
        await self.aclose()

    async def _begin(self, path: str, body: bytes, failures: list[Exception]) -> _Connection:
        """The connection on which a request is being answered.

        Args:
            path: what is asked of.
            body: what is asked.
            failures: of servers that were tried for it; those of others are added.

        Raises:
            StatusError: a server refused.
            ResolverError: none answered.
        """
        while True:
            try:
                return await self._try(path, body)
            except FAILURES as exc:
                await self._failed(exc, failures)

    async def _try(self, path: str, body: bytes) -> _Connection:
        try:
            if self._connection is None or not self._connection.reusable:
                await self.aclose()
                self._connection = await self._connect(self._servers[self._current])
            self._sent()
            with trio.fail_after(self._timeout):
                status = await self._connection.begin(path, body, self.headers)
                refusal = None if status == 200 else StatusError(status, await self._connection.whole())
        except BaseException:
            await self.aclose()
            raise
        if refusal is not None:
            raise refusal
        return self._connection

    async def _connect(self, server: Endpoint) -> _Connection:
        stream = await open_tls_stream(
            unbracketed(server.host),
            server.port,
            cert_manager=self._manager,
            server_name=unbracketed(server.host),
            alpn=("http/1.1",),
            connect_timeout=self._timeout,
            handshake_timeout=self._timeout,
        )
        return _Connection(stream, f"{server.host}:{server.port}")

    async def _failed(self, error: Exception, failures: list[Exception]) -> None:
        """Turn to the next server.

        Raises:
            ResolverError: each was tried.
        """
        if isinstance(error, ResolverError):
            raise error
        server = self._servers[self._current]
        error.add_note(f"{server.host} port {server.port}")
        failures.append(error)
        await self.turn()
        # Once more than there are: the first may have been a connection that had gone while it was idle.
        if len(failures) > len(self._servers):
            told = dict.fromkeys(
                f"{each.__notes__[-1]}: {printable(str(each), 600) or type(each).__name__}" for each in failures
            )
            lasting = all(isinstance(each, _LASTING) or isinstance(each.__cause__, _LASTING) for each in failures)
            msg = f"no server answers: {'; '.join(told)}"
            raise ResolverError(msg, temporary=not lasting) from error
