"""The graceful end: no new channels, time for those that are open, peers that are told, and a successor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    EndReason,
    HandshakeError,
    NodeName,
    RemoteCode,
    RemoteError,
    Route,
)

if TYPE_CHECKING:
    from conftest import NodeFactory, PairFactory

    from trionode import ServiceChannel

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


SERVICES = {"services": {"echo": echo}}


async def test_open_channels_get_the_time_to_end(open_pair: PairFactory) -> None:
    """While a node drains, what is open goes on; nothing new begins; when the last channel ends, so does the drain."""
    with trio.fail_after(10):
        async with open_pair(beta=SERVICES) as pair:
            connection = await pair.alpha.connect(BETA)
            drained = trio.Event()

            async def drain() -> None:
                await pair.beta.drain()
                drained.set()

            async with trio.open_nursery() as nursery:
                async with connection.open_channel("echo") as channel:
                    await channel.send(b"before")
                    assert await channel.receive() == b"before"
                    nursery.start_soon(drain)
                    await connection.wait_unusable()
                    await channel.send(b"after")
                    assert await channel.receive() == b"after"
                    assert not drained.is_set()
                    with pytest.raises(RemoteError) as refused:
                        connection.open_channel("echo")
                    assert refused.value.code is RemoteCode.SHUTTING_DOWN
                    assert BETA not in pair.alpha.connections
                await drained.wait()
            assert (await connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER
            with pytest.raises(trio.ClosedResourceError):
                await pair.beta.connect(ALPHA)


async def test_a_cancelled_drain_cancels_what_is_left(open_pair: PairFactory) -> None:
    """The deadline of a drain is its caller's scope; after it nothing is left."""
    with trio.fail_after(10):
        async with open_pair(beta=SERVICES) as pair:
            connection = await pair.alpha.connect(BETA)
            async with connection.open_channel("echo") as channel:
                await channel.send(b"x")
                await channel.receive()
                with trio.move_on_after(0.1) as scope:
                    await pair.beta.drain()
                assert scope.cancelled_caught
                assert pair.beta.statistics().connections == 0
                with pytest.raises(trio.BrokenResourceError):
                    await channel.receive()
            while pair.beta.statistics().services:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_successor_takes_address_and_name_while_the_old_node_drains(node: NodeFactory) -> None:
    """A rolling deploy: the new process listens and is dialled before the old one has finished."""
    with trio.fail_after(10):
        async with node("beta@localhost", services={"echo": echo}) as old, node("alpha@localhost") as alpha:
            host, port = old.acceptors[0].address
            alpha.add_route(BETA, Route(host=host, port=port))
            before = await alpha.connect(BETA)
            async with trio.open_nursery() as nursery, before.open_channel("echo") as channel:
                await channel.send(b"x")
                await channel.receive()
                nursery.start_soon(old.drain)
                await before.wait_unusable()
                with pytest.raises(HandshakeError):
                    await alpha.connect(BETA)
                acceptors = [AcceptorOptions(host=host, port=port)]
                async with node("beta@localhost", acceptors=acceptors, services={"echo": echo}) as new:
                    assert await alpha.call(BETA, "echo", b"hello") == b"hello"
                    assert alpha.connections[BETA].peer.incarnation == new.incarnation
                    await channel.send(b"still")
                    assert await channel.receive() == b"still"
                    await channel.aclose()


async def test_a_service_may_end_within_the_shutdown_grace(open_pair: PairFactory) -> None:
    """Leaving the block cleanly waits for running services, within `shutdown_grace`."""
    finished = False

    async def slow(channel: ServiceChannel) -> None:
        nonlocal finished
        await channel.send(b"begun")
        await trio.sleep(0.2)
        finished = True

    with trio.fail_after(10):
        async with open_pair(alpha={"services": {"slow": slow}, "shutdown_grace": 5}) as pair:
            connection = await pair.beta.connect(ALPHA)
            channel = connection.open_channel("slow")
            assert await channel.receive() == b"begun"
    assert finished
