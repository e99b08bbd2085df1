"""The process that is measured: one node, which accepts; it does what lines tell it to, and answers each with one."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.child import Lines
from benchmarks.memory import resident
from benchmarks.stress.nodes import accepting, manager_of
from trionode import CertAuthManager, LiveConnections, Node, NodeOptions, Renew, open_node
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = "server@localhost"
MANY = 20_000
#: How long a handshake may take, where so many are under way. Seconds.
PATIENCE = 60.0


class Collector:
    """The CPU time of Python's cyclic collector, which the figures of a connection leave out.

    How much it takes depends on all objects that there are, and when it takes it is a matter of chance.

    Attributes:
        seconds: what it took when it came by itself.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._asked = 0.0
        self._began = 0.0
        gc.callbacks.append(self._on_phase)

    def _on_phase(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.seconds += time.process_time() - self._began

    def clear(self) -> float:
        """Have it look at everything, and from now on only at what is made after this; gives the seconds it took."""
        before = self.seconds
        gc.collect()
        gc.freeze()
        took, self.seconds = self.seconds - before, before
        self._asked += took
        return took

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out what the block takes: looking at all connections, many times, is no cost of theirs."""
        began = self.others()
        yield
        self._asked += self.others() - began

    def others(self) -> float:
        """CPU time of this process, without that."""
        return time.process_time() - self.seconds - self._asked


async def obey(
    node: Node, manager: CertAuthManager, ca: CertificateAuthority, collector: Collector, word: str
) -> dict[str, float]:
    """Do what one line says, and tell what came of it, beside how much time this process has taken so far."""
    told: dict[str, float] = {}
    if word == "measure":
        told["memory"] = resident()
        told["collection"] = collector.clear()
    elif word == "rotate":
        new = ca.issue(SERVER)
        collector.clear()
        began = time.perf_counter()
        manager.update(new)
        told["update"] = time.perf_counter() - began
    elif word == "superseded":
        with collector.aside():
            told["superseded"] = sum(connection.superseded for connection in node.connections.values())
    return {"connections": len(node.connections), "cpu": collector.others(), **told}


async def main(directory: Path, interval: float, within: float) -> None:
    """Open the node and say its port; obey until the input ends, then leave, and say what that took."""
    collector = Collector()
    ca = CertificateAuthority.load(directory)
    manager = manager_of(ca, SERVER)
    options = NodeOptions(
        cert_manager=manager,
        network=accepting(
            heartbeat_interval=interval,
            handshake_timeout=PATIENCE,
            max_handshakes=MANY,  # they are one address's, and come all at once
            max_handshakes_per_address=MANY,
        ),
        live_connections=LiveConnections(on_rotation=Renew.HAND_OVER, within=within),
    )
    async with open_node(SERVER, options) as node:
        print(json.dumps({"port": node.acceptors[0].address[1]}), flush=True)
        lines = Lines(trio.lowlevel.FdStream(os.dup(0)))
        while line := await lines.read():
            print(json.dumps(await obey(node, manager, ca, collector, line.decode())), flush=True)
        collector.clear()
        began, cpu = time.perf_counter(), collector.others()
    told = {
        "seconds": time.perf_counter() - began,
        "cpu": collector.others() - cpu,
        "collector": collector.seconds / (collector.others() + collector.seconds),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    # What goes wrong is told by the figures.
    logging.getLogger("trionode").addHandler(logging.NullHandler())
    trio.run(main, Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
