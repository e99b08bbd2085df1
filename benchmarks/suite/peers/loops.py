"""The two event loops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import trio

from . import Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class TrioPeer(Peer):
    """Runs on Trio."""

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run an async function."""
        return trio.run(main)

    async def together(self, *tasks: Callable[[], Awaitable[object]]) -> None:
        """Run async functions at once."""
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await trio.sleep(seconds)


class AsyncioPeer(Peer):
    """Runs on asyncio."""

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop to run in."""
        return asyncio.new_event_loop()

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run an async function."""

        async def started() -> T:
            return await main()

        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(started())

    async def together(self, *tasks: Callable[[], Awaitable[object]]) -> None:
        """Run async functions at once."""

        async def started(task: Callable[[], Awaitable[object]]) -> None:
            await task()

        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(started(task))

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)
