"""One node's place in the cluster, as the program sees it: its process, its wires, commands and answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks import child

from .result import Sample

if TYPE_CHECKING:
    from .process import Setup
    from .wire import Wire

#: How long anything may take that ends the run. Seconds.
PATIENCE: Final = 30.0


class GoneError(Exception):
    """A process that was told something has ended."""


class Member:
    """One node's place in the cluster, whichever process fills it just now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"node{index}@localhost"
        self.wires: dict[str, Wire] = {}
        self.incarnation = 0
        self.ledgers: dict[Path, bool] = {}
        #: Held while something is done to it that it has to survive before the next.
        self.lock = trio.Lock()
        self.process: trio.Process | None = None
        self._sending = trio.Lock()
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._commands = 0
        self._opened = trio.Event()

    @property
    def opened(self) -> trio.Event:
        """Set when the node listens; another event after each opening."""
        return self._opened

    async def start(self, setup: Setup, nursery: trio.Nursery, listening: list[Wire]) -> None:
        """Start a process, and wait until its node listens."""
        self.ledgers[Path(setup.ledger)] = False
        self._opened = trio.Event()
        opened = self._opened
        self.process = await trio.lowlevel.open_process(
            child.command("benchmarks.stress.soak.process", json.dumps(asdict(setup))),
            env=child.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        nursery.start_soon(self._hear, self.process, listening)
        with trio.fail_after(PATIENCE):
            await opened.wait()

    async def _hear(self, process: trio.Process, listening: list[Wire]) -> None:
        assert process.stdout is not None
        lines = child.Lines(process.stdout)
        while (line := await lines.read()) is not None:
            said = json.loads(line)
            if "open" in said:
                for wire in listening:
                    wire.target = said["open"]
                self._opened.set()
                self._opened = trio.Event()
            elif said["done"] in self._waiting:
                event, answer = self._waiting.pop(said["done"])
                answer.append(said["answer"])
                event.set()
        await process.wait()
        for event, _ in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def tell(self, do: str, **what: Any) -> Any:
        """Have the process do something, and wait until it has; gives its answer.

        Raises:
            GoneError: the process ended before.
        """
        process = self.process
        if process is None or process.returncode is not None:
            raise GoneError
        self._commands += 1
        number, event, answer = self._commands, trio.Event(), list[Any]()
        self._waiting[number] = event, answer
        assert process.stdin is not None
        try:
            async with self._sending:
                await process.stdin.send_all(json.dumps({"do": do, "id": number, **what}).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise GoneError from exc
        await event.wait()
        if not answer:
            raise GoneError
        return answer[0]

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; what the process has noted stays in its ledger."""
        assert self.process is not None
        self.ledgers[list(self.ledgers)[-1]] = True
        self.process.kill()
        await self.process.wait()

    async def interrupt(self) -> int | None:
        """SIGINT, as Ctrl-C sends it; the status that the process ends with, or None if it has to be killed.

        Its node is gone in the middle of everything, so what it has noted counts as that of a process that was killed.
        """
        assert self.process is not None
        self.ledgers[list(self.ledgers)[-1]] = True
        self.process.send_signal(signal.SIGINT)
        with trio.move_on_after(PATIENCE):
            return await self.process.wait()
        await self.kill()
        return None

    async def aclose(self) -> bool:
        """Let the process end; False if it had to be killed."""
        process = self.process
        if process is None:
            return True
        assert process.stdin is not None
        with trio.move_on_after(PATIENCE):
            await process.stdin.aclose()
            await process.wait()
            return process.returncode == 0
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        return False

    def usage(self, at: float) -> Sample | None:
        """What the process uses now; None if there is none."""
        process = self.process
        if process is None or process.returncode is not None:
            return None
        proc = Path(f"/proc/{process.pid}")
        try:
            status = proc.joinpath("status").read_text(encoding="ascii", errors="replace")
            memory = int(status.split("RssAnon:")[1].split()[0]) / 1024
            descriptors = len(os.listdir(proc / "fd"))  # noqa: PTH208 -- only their number is wanted
        except (OSError, IndexError):  # it ended just now
            return None
        return Sample(
            at=round(at, 1),
            node=self.index,
            incarnation=self.incarnation,
            memory=round(memory, 2),
            descriptors=descriptors,
        )
