"""The etcd registry: nodes on many machines find each other through etcd v3.

Theory. A node is one key, `prefix + name`, whose value is where it listens. The key hangs on a lease, which runs out
unless it is renewed. What there is comes by one range request, and then by a watch from that revision on; where etcd
has compacted that revision away, or has an older one than it had (its data was lost), by a range request once more. A
watch that says nothing for a while is begun anew: an etcd that hangs looks like one that has nothing to say.

What fails is raised, and the node that uses the registry reports it, waits and comes back (`_node/registration`,
`_node/membership`). Only renewing a lease is tried for as long as it may be alive: a change of leader is no outage.

It speaks etcd's JSON gateway over our own TLS streams. What is received is untrusted: typed, bounded, and what is no
entry is left out. It says where nodes are, never who they are.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn, final
from urllib.parse import urlsplit

import msgspec
import trio

from trionode._identity.names import NodeName
from trionode._managers.manager import CertManager
from trionode._node.resolvers import MAX_ENDPOINTS, MAX_NAMES, Endpoint, ResolverError
from trionode._util.fields import SECONDS, check_argument, check_each, integer
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import printable, without_password

from .etcd_messages import EtcdError
from .etcd_session import Session
from .feed import Entry, Feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode._util.text import Address

    from .etcd_messages import Event, KeyValue, WatchReply
    from .feed import Publish

__all__ = ["EtcdRegistry"]

_log: Final = Log("trionode.discovery")

#: What the keys of nodes begin with.
PREFIX: Final = "/trionode/nodes/"
_PORT: Final = 2379
#: A longer value is no entry of ours. Bytes.
_MAX_VALUE: Final = 4096

#: A watch that was silent for so long is begun anew: so an etcd that hangs is noticed. Seconds.
_SILENCE: Final = 20.0
#: A watch that ended sooner is not begun anew before. Seconds.
_PACE: Final = 1.0
#: How long withdrawing a node may take. Seconds.
_WITHDRAW_TIME: Final = 1.0


class _Value(msgspec.Struct, frozen=True):
    endpoints: list[tuple[str, int]]


_decoder: Final = msgspec.json.Decoder(_Value)


class _CompactedError(Exception):
    """What was watched from is no longer there: everything has to be read anew."""


@final
class EtcdRegistry:
    """The nodes that are registered in an etcd cluster: resolves, names, watches, registers.

    Attributes:
        prefix: what the keys of nodes begin with.
        requests: how many were sent to etcd so far.
    """

    def __init__(
        self,
        servers: str | Endpoint | Sequence[str | Endpoint],
        *,
        cert_manager: CertManager,
        prefix: str = PREFIX,
        ttl: int = 15,
        timeout: float = 3,
        user: str | None = None,
        password: str | None = None,
        advertise: Sequence[Endpoint] = (),
    ) -> None:
        """Make one; nothing is opened.

        Args:
            servers: the members of the etcd cluster, `https://host:2379`, `host:2379` or `host`. The first that answers
                is used, and another once it does not. Their certificates must cover these hosts.
            cert_manager: what connections to etcd present and verify with; it may rotate at any time.
            prefix: what the keys of nodes begin with: one for each cluster of nodes.
            ttl: how long a node that is gone without a word is still named, seconds; its lease is renewed three times
                meanwhile.
            timeout: for connecting to one server, for TLS, and for each reply. Seconds.
            user: with `password`, where etcd has authentication by password switched on.
            password: of the user.
            advertise: what to register in place of the addresses where a node listens: outside a container, say.

        Raises:
            ValueError, TypeError: an argument is not what belongs there; the message names it.
        """
        check_argument("cert_manager", cert_manager, CertManager)
        check_argument("ttl", ttl, integer(1, 86400, "seconds"))
        check_argument("timeout", timeout, SECONDS)
        if (user is None) != (password is None):
            msg = "user and password go together; give both, or neither"
            raise ValueError(msg)
        given = [servers] if isinstance(servers, str | Endpoint) else check_each("servers", servers, str, Endpoint)
        check_argument("prefix", prefix, str)
        if not given or not prefix:
            msg = "at least one server and a prefix are needed"
            raise ValueError(msg)
        self.prefix: str = prefix
        self.requests: int = 0
        self._servers = tuple(_server(each) for each in given)
        self._manager = cert_manager
        self._ttl = ttl
        self._timeout = timeout
        self._login = None if user is None or password is None else (user, password)
        self._advertise = tuple(advertise)
        self._feed = Feed(self._follow)
        self._odd = RateLimitedLog(_log, "keys that are no entries of nodes")

    def __repr__(self) -> str:
        return f"<EtcdRegistry at {', '.join(f'{each.host}:{each.port}' for each in self._servers)}, {self.prefix}>"

    # Finding

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Where a node said that it listens.

        While names or a name are watched, what is known by that answers; etcd is asked for a name that is not.

        Args:
            name: of the node that is dialled.

        Raises:
            ResolverError: etcd does not answer, or refuses.
        """
        entry = (self._feed.entries or {}).get(name)
        if entry is not None:
            await trio.lowlevel.checkpoint()
        else:
            async with self._session() as session:
                found = await session.range(self._key(name), None, limit=1)
            entry = dict(self._entries(found.kvs)).get(name)
        return [] if entry is None else list(entry.endpoints)

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """The endpoints of a name, now and when they change; see `WatchingResolver`.

        Args:
            name: of the node.
        """
        return self._feed.watch(name)

    def names(
        self, pattern: str = "*", /
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """The names of the nodes that are registered, now and when they change; see `NamingResolver`.

        Args:
            pattern: of no influence: all are named.
        """
        del pattern
        return self._feed.names()

    async def _follow(self, publish: Publish) -> NoReturn:
        async with self._session() as session:
            while True:
                found = await session.range(self.prefix.encode(), _end_of(self.prefix.encode()), limit=MAX_NAMES)
                entries = dict(self._entries(found.kvs))
                publish(dict(entries))
                revision = found.header.revision
                try:
                    while True:
                        began = trio.current_time()
                        revision = await self._watch(session, revision, entries, publish)
                        await trio.sleep_until(began + _PACE)
                except _CompactedError:
                    continue

    async def _watch(self, session: Session, revision: int, entries: dict[NodeName, Entry], publish: Publish) -> int:
        """Take in what changes after a revision, until the watch ends; the revision that was reached."""
        async with session.watch(self.prefix.encode(), _end_of(self.prefix.encode()), revision + 1) as replies:
            while True:
                reply: WatchReply | None = None
                with trio.move_on_after(_SILENCE):
                    reply = await replies.next()
                if reply is None:  # silent for long, or ended
                    return revision
                if reply.canceled or reply.compact_revision or reply.header.revision < revision:
                    raise _CompactedError
                for event in reply.events:
                    self._apply(event, entries)
                    revision = max(revision, event.kv.mod_revision)
                if reply.events:
                    publish(dict(entries))

    def _apply(self, event: Event, entries: dict[NodeName, Entry]) -> None:
        name = self._name(event.kv)
        if name is None:
            return
        entries.pop(name, None)
        if event.type == "PUT" and len(entries) < MAX_NAMES:
            entries.update(self._entries([event.kv]))

    def _entries(self, pairs: Iterable[KeyValue]) -> Iterable[tuple[NodeName, Entry]]:
        for each in pairs:
            name = self._name(each)
            if name is None:
                continue
            try:
                value = _decoder.decode(each.value[:_MAX_VALUE])
                endpoints = tuple(Endpoint(host, port) for host, port in value.endpoints[:MAX_ENDPOINTS])
            except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
                self._odd.warning(
                    "%r: the value of %s is left out: %s",
                    self,
                    name,
                    printable(str(exc), 200),
                    source=self,
                    peer=name,
                    error=exc,
                )
                continue
            yield name, Entry(endpoints, each.mod_revision)

    def _key(self, name: NodeName) -> bytes:
        return f"{self.prefix}{name}".encode()

    def _name(self, pair: KeyValue) -> NodeName | None:
        text = pair.key.decode(errors="replace").removeprefix(self.prefix)
        try:
            name = NodeName.parse(text)
        except ValueError:
            name = None
        if name is None or self._key(name) != pair.key:
            self._odd.warning(
                "%r: the key of %s is left out: it is no node name", self, printable(text, 80), source=self
            )
            return None
        return name

    # Registering

    async def register(
        self,
        name: NodeName,
        addresses: Sequence[Address],
        /,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep a node registered until cancelled: a key on a lease, which is renewed, and revoked at the end.

        A lease that ran out (this process was stopped, or etcd lost its data) is replaced.

        Args:
            name: of the node.
            addresses: where it listens: hosts and ports. All interfaces are registered as the host of the name.
            task_status: started once the node can be found.

        Raises:
            ResolverError: etcd cannot be reached, and the lease may have run out; or it refuses.
        """
        places = self._advertise or [_reachable(name, address) for address in addresses]
        value = msgspec.json.encode(_Value([(each.host, each.port) for each in places[:MAX_ENDPOINTS]]))
        async with self._session() as session:
            while True:
                lease = await session.grant(self._ttl)
                try:
                    await session.put(self._key(name), value, lease)
                    task_status.started()
                    await self._renew(session, lease)
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + _WITHDRAW_TIME):
                        await self._revoke(lease)
                _log.warning("%r: the lease of %s is gone, registering anew", self, name, source=self, node=name)

    async def _renew(self, session: Session, lease: int) -> None:
        """Renew a lease until it is gone.

        Raises:
            ResolverError: etcd does not answer, for as long as the lease can have lived.
        """
        ends = trio.current_time() + self._ttl
        wait = self._ttl / 3
        while True:
            await trio.sleep(wait)
            try:
                left = await session.keep_alive(lease)
            except ResolverError:
                if trio.current_time() >= ends:
                    raise
                wait = min(1.0, self._ttl / 10)
                continue
            if left <= 0:
                return
            ends, wait = trio.current_time() + left, left / 3

    async def _revoke(self, lease: int) -> None:
        """Take the key back, if it is still ours: one that another node has put since hangs on another lease."""
        try:
            async with self._session() as session:  # the other one's connection may have been cut by a cancellation
                await session.revoke(lease)
        except ResolverError as exc:
            _log.info("%r: a lease is left to run out: %s", self, exc, source=self, error=exc)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        session = Session(self._servers, self._manager, timeout=self._timeout, login=self._login, sent=self._count)
        try:
            yield session
        except EtcdError as exc:
            msg = f"{self!r}: {exc}"
            raise ResolverError(msg, temporary=exc.temporary) from exc
        finally:
            await session.aclose()

    def _count(self) -> None:
        self.requests += 1


def _server(given: object) -> Endpoint:
    if isinstance(given, Endpoint):
        return given
    if not isinstance(given, str):
        msg = f"a server is https://host:2379, not a {type(given).__name__}"
        raise TypeError(msg)
    if given.startswith("http://"):
        msg = f"{without_password(given)}: etcd is reached by TLS only; give it certificates, and write https://"
        raise ValueError(msg)
    split = urlsplit(given if "://" in given else f"https://{given}")
    if split.scheme != "https" or split.path not in ("", "/") or split.query or split.username or not split.hostname:
        msg = f"{without_password(given)} is no server: write https://host:2379"
        raise ValueError(msg)
    return Endpoint(split.hostname, split.port or _PORT)


def _end_of(prefix: bytes) -> bytes:
    """The key behind all that begin with a prefix."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def _reachable(name: NodeName, address: Address) -> Endpoint:
    """An address as other machines dial it: an acceptor on all interfaces is at the name's host."""
    host, port = address
    return Endpoint(name.host if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 -- compared, not bound to
