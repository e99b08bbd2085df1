"""A feed: what a registry knows, kept current by one of those that read it.

Theory. A registry follows its source (a directory, a file, etcd) by one function that runs until it fails and publishes
everything that is known, at first and after each change. Any number of tasks read, and none of them owns the others; so
each brings a task that is ready to follow, and a lock sees to it that one does. When that one's reader leaves, the next
takes over. A failure is raised by every reader that was there: each has its owner, who is told and comes back.

While the feed is live it answers look-ups, too, which then cost the source nothing.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence

    from trionode._identity.names import NodeName
    from trionode._node.resolvers import Endpoint

    Publish: TypeAlias = Callable[[Mapping[NodeName, "Entry"]], None]
    Follow: TypeAlias = Callable[[Publish], Awaitable[NoReturn]]


T = TypeVar("T")


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

    async def told(self) -> None:
        """Wait for news.

        Raises:
            Exception: what following the source failed with.
        """
        await self.news.wait()
        if self.failure is not None:
            raise self.failure
        self.news = trio.Event()


@final
class _Answers(trio.abc.ReceiveChannel[T]):
    """What a reader is told, as a channel; a slow one is told what is last."""

    def __init__(self, reader: _Reader, look: Callable[[], T]) -> None:
        self._reader = reader
        self._look = look

    async def receive(self) -> T:
        """The next answer; cancelling loses nothing."""
        await self._reader.told()
        return self._look()

    async def aclose(self) -> None:
        """Do nothing: the block that it belongs to ends it."""
        await trio.lowlevel.checkpoint()


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

    @asynccontextmanager
    async def watch(self, name: NodeName) -> AsyncIterator[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """The endpoints of a name: now, and whenever they are told."""

        def told() -> Sequence[Endpoint]:
            entry = self._entries.get(name)
            return [] if entry is None else list(entry.endpoints)

        async with self._followed(name) as reader:
            yield _Answers(reader, told)

    @asynccontextmanager
    async def names(self) -> AsyncIterator[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """All names: now, and whenever they change."""
        async with self._followed(None) as reader:
            yield _Answers(reader, lambda: self._entries.keys() | ())

    @asynccontextmanager
    async def _followed(self, name: NodeName | None) -> AsyncIterator[_Reader]:
        """A reader, for the length of a block in which it is ready to follow the source for all."""
        await trio.lowlevel.checkpoint()
        body: BaseException | None = None
        with self._reading(name) as reader:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_turn, reader)
                try:
                    yield reader
                except BaseException as exc:  # noqa: ASYNC103, BLE001 -- raised again below, outside of the nursery
                    body = exc  # which would wrap it in a group
                nursery.cancel_scope.cancel()
        if body is not None:
            raise body

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
