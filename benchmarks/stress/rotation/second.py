"""The second process, and what the first one sees of it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from benchmarks import child
from benchmarks.stress.nodes import accepting, manager_of
from trionode import NodeName, NodeOptions, open_node
from trionode.pki import CertificateAuthority

from .both import ALPHA, BETA, HAND_OVER, Tally, call_forever, receive_numbered, reverse, rotate, send_numbered, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionode import ServiceChannel


async def serve(directory: str) -> None:
    """Be the node beta, until standard input ends.

    Says its port on standard output. What comes on standard input means, first, that alpha is connected, so calls and
    rotations begin; then, that rotations are to end. Its tally is its last line.
    """
    ca = CertificateAuthority.load(directory)
    manager, tally = manager_of(ca, BETA), Tally()
    took: list[float] = []

    async def both_ways(channel: ServiceChannel) -> None:
        number, stop = int(await channel.receive()), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_numbered, channel, number, stop, tally)
            await receive_numbered(channel, number, tally)
            stop.set()

    async def generation(channel: ServiceChannel) -> None:
        """A service that says the manager's generation, and both generations of the connection to alpha."""
        await channel.receive()
        there = node.connections.get(NodeName.parse(ALPHA))
        mine, theirs = (0, 0) if there is None else (there.generation, there.peer_generation)
        await channel.send(json.dumps([manager.generation, mine, theirs]).encode())

    services = {"reverse": reverse, "both_ways": both_ways, "generation": generation}
    options = NodeOptions(cert_manager=manager, network=accepting(), services=services, live_connections=HAND_OVER)
    stdin = trio.lowlevel.FdStream(0)
    async with open_node(BETA, options) as node, node.events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(watch, node, events, manager, tally)
        print(node.acceptors[0].address[1], flush=True)
        await stdin.receive_some()  # the connection is there
        nursery.start_soon(call_forever, node, ALPHA, tally, took)
        async with trio.open_nursery() as rotating:
            rotating.start_soon(rotate, manager, ca, tally, BETA)
            await stdin.receive_some()
            rotating.cancel_scope.cancel()
        while await stdin.receive_some():
            pass
        nursery.cancel_scope.cancel()
    print(json.dumps(asdict(tally)), flush=True)


class SecondProcess:
    """Beta, as seen from the first process."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, child.Lines(process.stdout)

    async def line(self) -> str:
        """The next line that it prints."""
        line = await self._stdout.read()
        if line is None:
            msg = "the second process ended"
            raise RuntimeError(msg)
        return line.decode()

    async def tell(self, text: str) -> None:
        """Say something on its standard input."""
        await self._stdin.send_all(text.encode())

    async def finish(self) -> Tally:
        """Let it end, and take its report."""
        await self._stdin.aclose()
        return Tally(**json.loads(await self.line()))


@asynccontextmanager
async def second_process(directory: str) -> AsyncIterator[SecondProcess]:
    """Beta in a process of its own, for the length of a block; its CA is in the directory."""
    module, pipe = "benchmarks.stress.rotation.second", subprocess.PIPE
    async with child.running(module, directory, stdin=pipe, stdout=pipe) as process:
        yield SecondProcess(process)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
