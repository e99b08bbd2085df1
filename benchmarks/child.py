"""Child processes that find `benchmarks` and `trionode` where this process found them.

Both may be in one checkout, or trionode may be installed and `benchmarks` lie in the current directory or anywhere on
`sys.path`. So a child gets the whole search path of its parent, in the same order, and nothing else: `-P` keeps Python
from putting the current directory in front of it.
"""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


def command(module: str, *arguments: object) -> list[str]:
    """The command line that runs a module, as `python -m` does.

    Args:
        module: its full name.
        arguments: given to it, as text.
    """
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def environment(*first: Path) -> dict[str, str]:
    """The environment of a child: this process's, with this process's search path.

    Args:
        first: directories to be searched before all others.
    """
    # An empty entry is the current directory; the child's may be another.
    path = [*map(str, first), *(str(Path(entry).absolute()) for entry in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@asynccontextmanager
async def running(
    module: str, *arguments: object, first: Sequence[Path] = (), **options: Any
) -> AsyncIterator[trio.Process]:
    """A child for the length of a block; it is killed at its end, if it has not ended by itself.

    Args:
        module: what it runs, as `command`.
        arguments: as `command`.
        first: as `environment`.
        options: further ones for `trio.lowlevel.open_process`.
    """
    process = await trio.lowlevel.open_process(command(module, *arguments), env=environment(*first), **options)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # bounded: it was killed
            await process.wait()


class Lines:
    """A stream, read line by line; a read that is cancelled loses nothing."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def read(self) -> bytes | None:
        """The next line, without its end; None where the stream has ended."""
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
