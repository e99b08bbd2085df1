"""Requests to etcd: one connection, one after the other, with whichever member answers.

Theory. A member that has no leader, or asks to come back later, is left for the next one. A token is fetched with user
and password before the first request, and again when etcd no longer knows it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar, final

import msgspec

from trionode._node.resolvers import ResolverError

from .etcd_messages import (
    Code,
    EtcdError,
    Failure,
    GrantReply,
    KeepAliveReply,
    Nothing,
    RangeReply,
    Token,
    WatchLine,
    WatchReply,
    reply,
    request,
)
from .http_client import Client, StatusError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from trionode._managers.manager import CertManager
    from trionode._node.resolvers import Endpoint

    from .http_client import Lines

T = TypeVar("T")


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind, strict=False)


_RANGE: Final = _decoder(RangeReply)
_GRANT: Final = _decoder(GrantReply)
_KEEP_ALIVE: Final = _decoder(KeepAliveReply)
_WATCH: Final = _decoder(WatchLine)
_TOKEN: Final = _decoder(Token)
_NOTHING: Final = _decoder(Nothing)
_FAILURE: Final = _decoder(Failure)


@final
class Watch:
    """What a watch says, reply by reply."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    async def next(self) -> WatchReply | None:
        """The next reply; None at the end.

        Raises:
            EtcdError: etcd refuses.
            ResolverError: it says what is not understood.
        """
        while (line := await self._lines.next()) is not None:
            said = reply(_WATCH, line)
            if said.error is not None:
                raise EtcdError(said.error)
            if said.result is not None:
                return said.result
        return None


@final
class Session:
    """One task's dealings with etcd."""

    def __init__(
        self,
        servers: Sequence[Endpoint],
        cert_manager: CertManager,
        *,
        timeout: float,
        login: tuple[str, str] | None,
        sent: Callable[[], None],
    ) -> None:
        """Make one; nothing is opened before the first request.

        Args:
            servers: the members.
            cert_manager: whose contexts connections take.
            timeout: for each reply, seconds.
            login: user and password.
            sent: called before each request.
        """
        self._client = Client(servers, cert_manager, timeout=timeout, sent=sent)
        self._login = login
        self._tries = len(servers) + 1

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    # What raises EtcdError where etcd refuses, and ResolverError where no member answers

    async def range(self, key: bytes, end: bytes | None, *, limit: int) -> RangeReply:
        """A key, or those from it up to an end."""
        return await self._post("/v3/kv/range", request(key=key, range_end=end, limit=limit), _RANGE)

    async def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Put a key on a lease."""
        await self._post("/v3/kv/put", request(key=key, value=value, lease=str(lease)), _NOTHING)

    async def grant(self, ttl: int) -> int:
        """A new lease of so many seconds."""
        return (await self._post("/v3/lease/grant", request(TTL=str(ttl)), _GRANT)).id

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease; the seconds that it has, 0 if it is gone."""
        return (await self._post("/v3/lease/keepalive", request(ID=str(lease)), _KEEP_ALIVE)).result.ttl

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys; harmless if it is gone."""
        try:
            await self._post("/v3/lease/revoke", request(ID=str(lease)), _NOTHING)
        except EtcdError as exc:
            if not exc.missing:
                raise

    @asynccontextmanager
    async def watch(self, key: bytes, end: bytes, revision: int) -> AsyncIterator[Watch]:
        """What changes from a revision on, for the length of the block."""
        body = request(create_request={"key": key, "range_end": end, "start_revision": str(revision)})
        await self._log_in()
        try:
            async with self._client.lines("/v3/watch", body) as lines:
                yield Watch(lines)
        except StatusError as exc:
            raise EtcdError(_failure(exc)) from exc

    async def _post(self, path: str, body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
        for left in reversed(range(self._tries)):
            try:
                await self._log_in()
                return reply(decoder, await self._client.post(path, body))
            except StatusError as exc:
                error = EtcdError(_failure(exc))
                if error.token and self._login is not None:
                    self._client.headers.pop("Authorization", None)
                elif error.temporary:
                    await self._client.turn()  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news
                else:
                    raise error from exc
                if not left:
                    raise error from exc
        raise AssertionError("the last try returns or raises")  # pragma: no cover

    async def _log_in(self) -> None:
        """Fetch a token, if one is needed and there is none."""
        if self._login is None or "Authorization" in self._client.headers:
            return
        user, password = self._login
        body = request(name=user, password=password)
        try:
            token = reply(_TOKEN, await self._client.post("/v3/auth/authenticate", body)).token
        except StatusError as exc:
            raise EtcdError(_failure(exc)) from exc
        self._client.headers["Authorization"] = token


def _failure(error: StatusError) -> Failure:
    """What etcd says; or, where something else answers in its place, that."""
    try:
        said = reply(_FAILURE, error.body)
    except ResolverError:
        return Failure(code=Code.UNAVAILABLE if error.status >= 500 else 0, message=str(error))
    return msgspec.structs.replace(said, message=said.message or str(error))
