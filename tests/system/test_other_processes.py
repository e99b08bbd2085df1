"""A peer in a process of its own that is stopped, cut off, or killed in the middle of it."""

from __future__ import annotations

import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from trionode import (
    ConnectionDown,
    EndReason,
    Route,
    ServiceChannel,
)
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import NodeFactory

    from trionode import Connection, Node
    from trionode.pki import CertificateAuthority

BETA = "beta@localhost"

#: Serves numbers as fast as they are taken, and swallows what comes, until it is ended from outside.
PEER = """
import sys, trio
from trionode import *
ca = CAPool.load("ca.pem")
manager = CertAuthManager(KeyPair.load("beta.pem", "beta-key.pem"), client_cas=ca, root_cas=ca,
                          client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT)
async def both(channel):
    async def swallow():
        async for _ in channel:
            pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swallow)
        number = 0
        while True:
            await channel.send(b"%d" % number)
            number += 1
async def main():
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    options = NodeOptions(cert_manager=manager, network=network, services={"both": both})
    async with open_node("beta@localhost", options) as node:
        print(node.acceptors[0].address[1], flush=True)
        await trio.sleep(60)
trio.run(main)
"""


@asynccontextmanager
async def peer_process(ca: CertificateAuthority, folder: Path) -> AsyncIterator[tuple[trio.Process, Route]]:
    """A node beta in a process of its own, and the route to it; killed at the end."""
    write_ca_pool(ca.pool, folder / "ca.pem")
    write_key_pair(ca.issue(BETA), folder / "beta.pem", folder / "beta-key.pem")
    process = await trio.lowlevel.open_process([sys.executable, "-c", PEER], cwd=folder, stdout=-1)
    assert process.stdout is not None
    try:
        line = b""
        while not line.endswith(b"\n"):
            received = await process.stdout.receive_some()
            assert received, "the peer process ended"
            line += received
        yield process, Route(host="127.0.0.1", port=int(line))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def stream_both_ways(connection: Connection, got: list[int], nursery: trio.Nursery) -> ServiceChannel:
    """Open a channel on which messages fly in both directions; every number that comes is noted."""
    channel = connection.open_channel("both")
    under_way = trio.Event()

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError) as broken:  # noqa: PT012 -- it ends whenever the peer does
            while True:
                await channel.send(b"x" * 1000)
        assert broken.value.__cause__ is not None

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError) as broken:  # noqa: PT012 -- likewise
            while True:
                got.append(int(await channel.receive()))
                if len(got) == 1000:
                    under_way.set()
        assert broken.value.__cause__ is not None

    nursery.start_soon(send)
    nursery.start_soon(receive)
    await under_way.wait()
    return channel


async def down(node: Node, events: trio.abc.ReceiveChannel[object]) -> ConnectionDown:
    """The next connection that a node reports as gone."""
    async for event in events:
        if isinstance(event, ConnectionDown):
            return event
    raise AssertionError(f"{node} ended")


async def test_a_peer_killed_while_streaming_both_ways(
    node: NodeFactory, ca: CertificateAuthority, tmp_path: Path
) -> None:
    """SIGKILL: a waiting task gets `BrokenResourceError` with its cause; no message came twice or out of order."""
    got: list[int] = []
    with trio.fail_after(50):
        async with node("alpha@localhost") as alpha, alpha.events() as events:
            async with peer_process(ca, tmp_path) as (process, route), trio.open_nursery() as nursery:
                connection = await alpha.connect(BETA, route)
                await stream_both_ways(connection, got, nursery)
                process.send_signal(signal.SIGKILL)
            assert (await down(alpha, events)).reason is EndReason.LOST
            assert got == list(range(len(got)))
            assert alpha.statistics().connections == 0
            async with (
                peer_process(ca, tmp_path) as (_, route),
                alpha.open_channel(BETA, "both", route=route) as channel,
            ):
                assert await channel.receive() == b"0"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "streaming"])
async def test_a_stopped_peer_is_noticed(
    node: NodeFactory, ca: CertificateAuthority, tmp_path: Path, *, busy: bool
) -> None:
    """SIGSTOP: TCP says nothing, the heartbeat does, whether the connection was idle or full."""
    got: list[int] = []
    with trio.fail_after(50):
        async with (
            node("alpha@localhost", heartbeat_interval=0.3, heartbeat_tolerance=0.3) as alpha,
            alpha.events() as events,
            peer_process(ca, tmp_path) as (process, route),
            trio.open_nursery() as nursery,
        ):
            connection = await alpha.connect(BETA, route)
            if busy:
                await stream_both_ways(connection, got, nursery)
            process.send_signal(signal.SIGSTOP)
            event = await down(alpha, events)
            assert event.reason is EndReason.LOST
            assert "no sign of life for 0.6 s" in str(event.error)
            assert got == list(range(len(got)))


async def test_a_black_hole_is_noticed(node: NodeFactory, ca: CertificateAuthority, tmp_path: Path) -> None:
    """A way that swallows everything and says nothing is noticed on both sides, by the heartbeat."""
    with trio.fail_after(50):
        async with (
            node("alpha@localhost", heartbeat_interval=0.3, heartbeat_tolerance=0.3) as alpha,
            alpha.events() as events,
            peer_process(ca, tmp_path) as (_, route),
            trio.open_nursery() as nursery,
        ):
            forwarding = trio.CancelScope()

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                async for data in source:
                    await sink.send_all(data)

            async def proxy(client: trio.SocketStream) -> None:
                server = await trio.open_tcp_stream("127.0.0.1", route.port)
                async with server:
                    with forwarding:
                        async with trio.open_nursery() as pumps:
                            pumps.start_soon(pump, client, server)
                            pumps.start_soon(pump, server, client)
                    await trio.sleep_forever()

            listeners = await nursery.start(trio.serve_tcp, proxy, 0)
            port = listeners[0].socket.getsockname()[1]
            connection = await alpha.connect(BETA, Route(host="127.0.0.1", port=port))
            await trio.sleep(1)
            assert connection.live, "a healthy connection, idle for longer than the heartbeat's interval, stays"
            forwarding.cancel()
            event = await down(alpha, events)
            assert (event.connection, event.reason) == (connection, EndReason.LOST)
            nursery.cancel_scope.cancel()
