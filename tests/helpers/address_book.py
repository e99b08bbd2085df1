"""A resolver whose every word a test says, for nodes that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trionode import Endpoint, NodeName

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from trionode import Node


class AddressBook:
    """Resolves, tells of changes, and names the nodes.

    Attributes:
        entries: what it knows.
        named: what it says when it is to name the nodes, in place of those that it knows.
        failure: what it raises instead, as long as it is set.
        asked: what it was asked to resolve.
        watched: the names that are being watched.
    """

    def __init__(self) -> None:
        self.entries: dict[NodeName, tuple[Endpoint, ...]] = {}
        self.named: Any = None
        self.failure: Exception | None = None
        self.asked: list[NodeName] = []
        self.watched: list[NodeName] = []
        self._changed = trio.Event()

    def enter(self, name: str | NodeName, *endpoints: Endpoint) -> None:
        """Know where a node is."""
        self.entries[NodeName.parse(name)] = endpoints
        self.tell()

    def enter_node(self, node: Node) -> None:
        """Know where an open node listens."""
        self.enter(node.name, Endpoint(*node.acceptors[0].address))

    def drop(self, name: str | NodeName) -> None:
        """Know no more of a node."""
        del self.entries[NodeName.parse(name)]
        self.tell()

    def fail(self, failure: Exception | None) -> None:
        """Raise from now on, in what is followed as well; or work again."""
        self.failure = failure
        self.tell()

    def tell(self) -> None:
        """Say once more what it knows."""
        self._changed.set()
        self._changed = trio.Event()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """What is known."""
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        self._check()
        return self.entries.get(name, ())

    @trio.as_safe_channel
    async def watch(self, name: NodeName, /) -> AsyncGenerator[Sequence[Endpoint]]:
        """Now, and after each change."""
        self.watched.append(name)
        try:
            while True:
                self._check()
                changed = self._changed
                yield self.entries.get(name, ())
                await changed.wait()
        finally:
            self.watched.remove(name)

    @trio.as_safe_channel
    async def names(self, pattern: str, /) -> AsyncGenerator[Collection[NodeName]]:
        """All of them, now and after each change."""
        while True:
            self._check()
            changed = self._changed
            yield set(self.entries) if self.named is None else self.named
            await changed.wait()
