"""A rolling restart on one port refuses no connection: two processes hold one listening socket, under load."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio_util import AsyncValue

from trionode import NetworkMode, RemoteError, Route
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import NodeFactory

    from trionode import Node
    from trionode.pki import CertificateAuthority

BETA = "beta@localhost"

#: A node on a descriptor that it is handed, once it is told to by a byte, until SIGTERM.
PROGRAM = """
import os, signal, sys, trio
from trionode import *
ca = CAPool.load("ca.pem")
manager = CertAuthManager(KeyPair.load("beta.pem", "beta-key.pem"), client_cas=ca, root_cas=ca,
                          client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT)
async def process(channel):
    await channel.send(b"%d" % os.getpid())
async def main():
    sys.stdin.read(1)
    network = NetworkOptions(acceptors=[AcceptorOptions(listeners=[adopt_listener(int(sys.argv[1]))])])
    options = NodeOptions(cert_manager=manager, network=network, services={"process": process})
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_node("beta@localhost", options) as node:
            os.write(1, b".")
            async for _ in signals:
                break
            if sys.argv[2] == "drain":
                await node.drain()
trio.run(main)
"""

#: Clients at once, each of which connects again as soon as it is done.
CLIENTS = 4


@asynccontextmanager
async def processes(folder: Path, sock: socket.socket, how: str) -> AsyncIterator[tuple[trio.Process, ...]]:
    """Two that are about to serve on a socket; killed at the end."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", PROGRAM, str(sock.fileno()), how],
                cwd=folder,
                pass_fds=[sock.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            stack.push_async_callback(ended, process)
            found.append(process)
        yield tuple(found)


async def ended(process: trio.Process) -> None:
    """Kill a process and wait for it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()


async def serve(process: trio.Process) -> None:
    """Have it open its node."""
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.send_all(b".")
    assert await process.stdout.receive_some() == b"."


@pytest.mark.parametrize("how", ["drain", "leave"])
async def test_no_connection_is_refused(how: str, node: NodeFactory, ca: CertificateAuthority, tmp_path: Path) -> None:
    """Each of those that clients make one after the other, while the successor starts and the old process ends."""
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    write_key_pair(ca.issue(BETA), tmp_path / "beta.pem", tmp_path / "beta-key.pem")
    made = AsyncValue[dict[int, int]]({})

    def count(process: int) -> None:
        made.value = {**made.value, process: made.value.get(process, 0) + 1}

    async def connect_again_and_again(client: Node, route: Route) -> None:
        while True:
            connection = await client.connect(BETA, route)
            try:
                process = int(await connection.call("process", b""))
            except (RemoteError, trio.BrokenResourceError, trio.ClosedResourceError):  # it is leaving
                pass
            else:
                count(process)
            await connection.aclose()

    async def call_again_and_again(client: Node, route: Route) -> None:
        while True:
            count(int(await client.call(BETA, "process", b"", route=route)))

    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock, trio.fail_after(30):
        route = Route(host="127.0.0.1", port=sock.getsockname()[1])
        async with processes(tmp_path, sock, how) as (old, new), trio.open_nursery() as nodes:
            await serve(old)
            clients = [await nodes.start(keep_open, node, f"client-{number}@localhost") for number in range(CLIENTS)]
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon((connect_again_and_again, call_again_and_again)[number % 2], client, route)
                await made.wait_value(lambda made: made.get(old.pid, 0) >= CLIENTS)
                await serve(new)
                old.terminate()
                assert await old.wait() == 0
                before = made.value.get(new.pid, 0)
                await made.wait_value(lambda made: made.get(new.pid, 0) >= before + 3 * CLIENTS)
                nursery.cancel_scope.cancel()
            nodes.cancel_scope.cancel()


async def keep_open(node: NodeFactory, name: str, *, task_status: trio.TaskStatus[Node]) -> None:
    """A node, as a task."""
    async with node(name, mode=NetworkMode.HIDDEN) as opened:
        task_status.started(opened)
        await trio.sleep_forever()
