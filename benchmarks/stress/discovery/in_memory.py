"""Nodes in this process, on a network in memory, with a registry in memory."""

from __future__ import annotations

import itertools
import math
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from benchmarks.stress.nodes import echo, manager_of
from trionode import Endpoint, NetworkOptions, NodeName, NodeOptions, TrionodeError, open_node
from trionode.discovery.feed import Entry, Feed
from trionode.pki import CertificateAuthority
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from contextlib import AbstractAsyncContextManager

    from benchmarks.stress.program import Progress
    from trionode import Node
    from trionode.discovery.feed import Publish

#: Nodes of this name are kept connected by all others.
HUBS: Final = 2
PATTERN: Final = "hub-*@*"


class Book:
    """A registry in memory."""

    def __init__(self) -> None:
        self._entries: dict[NodeName, Entry] = {}
        self._versions = itertools.count()
        self._changed = trio.Event()
        self._feed = Feed(self._follow)

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Where a node is."""
        await trio.lowlevel.checkpoint()
        entry = self._entries.get(name)
        return [] if entry is None else list(entry.endpoints)

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """The same, and when it changes."""
        return self._feed.watch(name)

    def names(self, _: str, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """All, and when they change."""
        return self._feed.names()

    async def register(
        self, name: NodeName, addresses: Sequence[tuple[str, int]], /, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Be known until cancelled."""
        endpoints = tuple(Endpoint(host, port) for host, port in addresses)
        self._entries[name] = Entry(endpoints, next(self._versions))
        self._tell()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            del self._entries[name]
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _follow(self, publish: Publish) -> NoReturn:
        while True:
            changed = self._changed
            publish(dict(self._entries))
            await changed.wait()


class Crowd:
    """The nodes, each in a task of its own, so that each can leave and come back."""

    def __init__(self, ca: CertificateAuthority, nursery: trio.Nursery) -> None:
        self.open: dict[str, Node] = {}
        self._network = MemoryNetwork()
        self._book = Book()
        self._ca = ca
        self._nursery = nursery
        self._leave: dict[str, trio.Event] = {}

    async def join(self, name: str) -> None:
        """Have a node open; returns when it is."""
        await self._nursery.start(self._run, name)

    def leave(self, name: str) -> None:
        """Have it close."""
        self._leave[name].set()

    async def _run(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        host = name.partition("@")[2]
        network = NetworkOptions(
            transport=self._network.host(host),
            resolver=self._book,
            keep_connected=[PATTERN],
            # All nodes share one core here: a deadline would have them begin again what others were about to finish.
            heartbeat_interval=math.inf,
            connect_timeout=math.inf,
            handshake_timeout=math.inf,
        )
        options = NodeOptions(cert_manager=manager_of(self._ca, name), network=network, services={"echo": echo})
        leave = self._leave[name] = trio.Event()
        async with open_node(name, options) as node:
            self.open[name] = node
            task_status.started()
            await leave.wait()
            del self.open[name]

    def behind(self) -> list[str]:
        """The nodes that do not know of exactly the others, or are not connected to every hub."""
        there = frozenset(node.name for node in self.open.values())
        hubs = {name for name in there if name.name.startswith("hub-")}
        return [
            name
            for name, node in self.open.items()
            if node.members() != there - {node.name} or not (hubs - {node.name}) <= set(node.connections)
        ]


async def converged(behind: Callable[[], Collection[object]], within: float) -> float | None:
    """Wait until no node is behind; how long that took, or None where it took too long."""
    began = trio.current_time()
    while behind():
        if trio.current_time() - began > within:
            return None
        await trio.sleep(0.1)
    return trio.current_time() - began


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    """An empty one, for the length of a block."""
    ca = CertificateAuthority.create()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        made = Crowd(ca, nursery)
        yield made
        for name in list(made.open):
            made.leave(name)


def names_of(count: int) -> list[str]:
    """So many, hubs first."""
    return [f"{'hub' if n < HUBS else 'node'}-{n}@n{n}.crowd.example" for n in range(count)]


async def measure(
    count: int, within: float, chance: random.Random, progress: Progress
) -> tuple[dict[str, float], list[str]]:
    """Join, leave, come back, call: the seconds of each phase, and what went wrong."""
    seconds: dict[str, float] = {}
    problems: list[str] = []
    names = names_of(count)
    some = chance.sample(names[HUBS:], max(1, count // 10))

    async with crowd() as nodes:

        async def phase(title: str) -> None:
            took = await converged(nodes.behind, within)
            if took is None:
                problems.append(f"{title}: {len(nodes.behind())} nodes are behind after {within:g} s")
            seconds[title] = round(within if took is None else took, 3)
            progress.say(f"{len(nodes.open)} nodes, {title}: {seconds[title]:.2f} s")

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(nodes.join, name)
        await phase("joined")
        for name in some:
            nodes.leave(name)
        while any(name in nodes.open for name in some):  # noqa: ASYNC110 -- each is in a task of its own
            await trio.sleep(0.01)
        await phase("left")
        for name in some:
            await nodes.join(name)
        await phase("came back")
        callers = chance.sample(list(nodes.open.values()), min(20, count))
        for node in callers:
            try:
                reply = await node.call(PATTERN, "echo", b"there?")
            except TrionodeError as exc:
                problems.append(f"a call failed: {exc}")
            else:
                if reply != b"there?":
                    problems.append(f"a call was answered with {reply!r}")
    return seconds, problems
