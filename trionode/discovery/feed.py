"""A feed: what a registry knows, kept current by one of those that read it.

Theory. A registry follows its source (a directory, a file, etcd) by one function that runs until it fails and publishes
everything that is known, at first and after each change. Any number of tasks read, and none of them owns the others; so
each brings a task that is ready to follow, and a lock sees to it that one does. When that one's reader leaves, the next
takes over. A failure ends every reader that was there: each has its owner, who is told and comes back.

While the feed is live it answers look-ups, too, which then cost the source nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, final

import trio

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Collection,
        Iterator,
        Mapping,
        Sequence,
    )

    from trionode._identity.names import NodeName
    from trionode._node.resolvers import Endpoint

    Publish: TypeAlias = Callable[[Mapping[NodeName, "Entry"]], None]
    Follow: TypeAlias = Callable[[Publish], Awaitable[NoReturn]]


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a node.

    Attributes:
        endpoints: where it is.
        version: differs when it registered anew, also at the same endpoints.
    """

    endpoints: tuple[Endpoint, ...]
    version: object = None


@final
@dataclass(slots=True, eq=False)
class _Reader:
    """One that reads: of one name, or of all."""

    name: NodeName | None
    news: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = None

    async def told(self) -> bool:
        """Wait for news; False where there will be none any more."""
        await self.news.wait()
        self.news = trio.Event()
        return self.failure is None

    def failed(self) -> Exception:
        """Why not."""
        assert self.failure is not None
        return self.failure


@final
@dataclass(slots=True, eq=False)
class _Attempt:
    """One run of the function that follows."""

    failure: Exception | None = None


@final
class Feed:
    """What a registry knows, for those that read it."""

    def __init__(self, follow: Follow) -> None:
        """Make one.

        Args:
            follow: publishes everything, at first and after each change; what it raises its readers raise.
        """
        self._follow: Final = follow
        self._entries: Mapping[NodeName, Entry] = {}
        self._live = False
        self._readers: set[_Reader] = set()
        self._turn = trio.Lock()
        self._attempt = _Attempt()

    @property
    def entries(self) -> Mapping[NodeName, Entry] | None:
        """Everything that is known, as of now; None where it is not being followed."""
        return self._entries if self._live else None

    @trio.as_safe_channel
    async def watch(self, name: NodeName) -> AsyncGenerator[Sequence[Endpoint]]:
        """The endpoints of a name: now, and whenever they are told."""
        with self._reading(name) as reader:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_turn, reader)
                while await reader.told():
                    entry = self._entries.get(name)
                    yield _told(entry)  # noqa: ASYNC101, ASYNC119 -- `as_safe_channel` makes it safe
            raise reader.failed()

    @trio.as_safe_channel
    async def names(self) -> AsyncGenerator[Collection[NodeName]]:
        """All names: now, and whenever they change."""
        with self._reading(None) as reader:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_turn, reader)
                while await reader.told():
                    yield self._entries.keys() | ()  # noqa: ASYNC101, ASYNC119 -- likewise
            raise reader.failed()

    @contextmanager
    def _reading(self, name: NodeName | None) -> Iterator[_Reader]:
        reader = _Reader(name)
        if self._live:
            reader.news.set()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    async def _take_turn(self, reader: _Reader) -> None:
        """Follow the source when it is this reader's turn; a failure is its reader's to raise, outside the nursery."""
        attempt = self._attempt
        async with self._turn:
            if attempt.failure is None:  # else another failed while this one waited
                try:
                    await self._follow(self._publish)
                except Exception as exc:  # noqa: BLE001 -- raised by the reader
                    attempt.failure = exc
                    self._attempt = _Attempt()
                finally:
                    self._live = False
        reader.failure = attempt.failure
        reader.news.set()

    def _publish(self, entries: Mapping[NodeName, Entry]) -> None:
        before, self._entries = self._entries, entries
        began, self._live = not self._live, True
        changed = before.keys() != entries.keys()
        for reader in self._readers:
            told = changed if reader.name is None else before.get(reader.name) != entries.get(reader.name)
            if began or told:
                reader.news.set()


def _told(entry: Entry | None) -> list[Endpoint]:
    return [] if entry is None else list(entry.endpoints)
