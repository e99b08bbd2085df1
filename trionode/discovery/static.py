"""The static resolver: where each node is stands in a mapping, or in a TOML file that is followed.

Theory. The file is looked at every second: whatever takes its place (an editor, `mv`, a Kubernetes mount) differs in
inode, size or time of change. What is wrong with it is told to the node that asks, which goes on with what it knew.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from trionode._credentials.pem import as_path, read_file
from trionode._errors import CertificateError
from trionode._identity.names import NodeName
from trionode._node.resolvers import DEFAULT_PORT, MAX_ENDPOINTS, MAX_NAMES, Endpoint, ResolverError
from trionode._util.fields import SECONDS, check_argument
from trionode._util.text import printable
from trionode._util.threads import Purpose, in_thread

from .feed import Entry, Feed

if TYPE_CHECKING:
    import os
    from collections.abc import Collection
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    from .feed import Publish

    #: `host`, `host:port`, `[ipv6]:port`, or an endpoint.
    Place: TypeAlias = str | Endpoint

__all__ = ["StaticResolver"]

#: A larger file lists no nodes. Bytes.
_MAX_BYTES: Final = 4 * 1024 * 1024


@final
class StaticResolver:
    """Where nodes are, as a mapping or a file says: resolves, names and watches.

    Attributes:
        file: that says it; None where a mapping does.
    """

    def __init__(
        self,
        nodes: Mapping[str | NodeName, Place | Sequence[Place]] | str | os.PathLike[str],
        *,
        poll_interval: float = 1.0,
    ) -> None:
        """Make one.

        Args:
            nodes: for each node name where it is: `host:port`, `host` (port 15000), `[ipv6]:port`, an `Endpoint`, or
                several of these, tried in order. Or the path of a TOML file whose table `[nodes]` says the same.
            poll_interval: how often the file is compared with what was read, seconds.

        Raises:
            ValueError, TypeError: the mapping is not as it should be; the message says what.
        """
        check_argument("poll_interval", poll_interval, SECONDS)
        self._poll_interval = poll_interval
        self._feed = Feed(self._follow)
        self._entries: Mapping[NodeName, Entry] = {}
        self.file: Path | None = None
        if isinstance(nodes, Mapping):
            self._entries = _entries(nodes)
        else:
            self.file = as_path(nodes)

    def __repr__(self) -> str:
        return f"<StaticResolver of {f'{len(self._entries)} nodes' if self.file is None else self.file}>"

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Where a node is.

        Args:
            name: of the node that is dialled.

        Raises:
            ResolverError: the file cannot be read, or is not as it should be.
        """
        if self.file is None:
            await trio.lowlevel.checkpoint()
            entries = self._entries
        else:
            entries, _ = await in_thread(Purpose.FILES, _read, self.file, abandon_on_cancel=True)
        entry = entries.get(name)
        return [] if entry is None else list(entry.endpoints)

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """Where a node is, now and when that changes; see `WatchingResolver`.

        Args:
            name: of the node.
        """
        return self._feed.watch(name)

    def names(
        self, pattern: str = "*", /
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """The names of all nodes, now and when they change; see `NamingResolver`.

        Args:
            pattern: of no influence: all are named.
        """
        del pattern
        return self._feed.names()

    async def _follow(self, publish: Publish) -> NoReturn:
        if self.file is None:
            publish(self._entries)
            await trio.sleep_forever()
        last: object = None
        while True:
            mark = await in_thread(Purpose.FILES, _mark, self.file, abandon_on_cancel=True)
            if mark is None or mark != last:
                entries, last = await in_thread(Purpose.FILES, _read, self.file, abandon_on_cancel=True)
                publish(entries)
            await trio.sleep(self._poll_interval)


def _mark(file: Path) -> object:
    """What tells a file from what takes its place; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: Path) -> tuple[Mapping[NodeName, Entry], object]:
    """What a file says, and the mark that it had before it was read.

    Raises:
        ResolverError: it cannot be read, or is not as it should be.
    """
    mark = _mark(file)
    try:
        document = tomllib.loads(read_file(file, limit=_MAX_BYTES, kind="list of nodes").data.decode())
    except CertificateError as exc:
        raise ResolverError(str(exc), temporary=True) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"{file} is not valid TOML: {printable(str(exc), 200)}"
        raise ResolverError(msg, temporary=True) from exc
    try:
        nodes = document.pop("nodes", None)
        if not isinstance(nodes, dict) or document:
            msg = 'it must have one table, [nodes], with lines such as "beta@host-b.example" = "192.0.2.7:15000"'
            raise ValueError(msg)
        return _entries(nodes), mark
    except (ValueError, TypeError) as exc:
        msg = f"{file}: {exc}"
        raise ResolverError(msg, temporary=True) from exc


def _entries(nodes: Mapping[str | NodeName, object]) -> Mapping[NodeName, Entry]:
    if len(nodes) > MAX_NAMES:
        msg = f"{len(nodes)} nodes are more than the {MAX_NAMES} that a node follows"
        raise ValueError(msg)
    return {NodeName.parse(name): Entry(_endpoints(str(name), given)) for name, given in nodes.items()}


def _endpoints(name: str, given: object) -> tuple[Endpoint, ...]:
    places = given if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    if not 1 <= len(places) <= MAX_ENDPOINTS:
        msg = f"{name}: {len(places)} places; one to {MAX_ENDPOINTS} are wanted"
        raise ValueError(msg)
    return tuple(_endpoint(name, each) for each in places)


def _endpoint(name: str, given: object) -> Endpoint:
    if isinstance(given, Endpoint):
        return given
    if not isinstance(given, str):
        msg = f"{name}: a place is host, host:port or an Endpoint, not a {type(given).__name__}"
        raise TypeError(msg)
    try:
        return endpoint(given)
    except ValueError as exc:
        msg = f"{name}: {exc}"
        raise ValueError(msg) from None


def endpoint(text: str, default_port: int = DEFAULT_PORT) -> Endpoint:
    """`host`, `host:port` or `[ipv6]:port`.

    Raises:
        ValueError: it is none of these.
    """
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.startswith("[")):
        return Endpoint(text, default_port)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5):
        msg = f"{printable(repr(text), 80)} has no port after its colon: write host:port, or [ipv6]:port"
        raise ValueError(msg)
    return Endpoint(host, int(port))
