"""The graceful end: no new channels, time for those that are open, peers that are told, and a successor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing

from trionode import (
    AcceptorOptions,
    EndReason,
    HandshakeError,
    NodeName,
    RemoteCode,
    RemoteError,
    Route,
    _protocol as wire,
)
from trionode._connection.closing import ACKNOWLEDGE_GRACE
from trionode._connection.connection import core_of

if TYPE_CHECKING:
    from conftest import NodeFactory, PairFactory, ScriptedFactory

    from trionode import Node, ServiceChannel

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
                    await core_of(connection).wait_unusable()
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


class Held:
    """A service that takes one message, and stays until it is let go or cancelled."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.said: list[str] = []

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        job = (await channel.receive()).decode()
        self.said.append(f"{job} begun")
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.said.append(f"{job} cancelled")
            raise
        self.said.append(f"{job} finished")


async def give_work(alpha: Node, beta: Node, *jobs: bytes) -> None:
    """Have alpha send beta jobs, and disconnect: all of it cleanly."""
    for job in jobs:
        async with alpha.open_channel(BETA, "held") as channel:
            await channel.send(job)
    while ALPHA not in beta.connections:  # the dialer has it a little earlier
        await trio.lowlevel.checkpoint()
    theirs = beta.connections[ALPHA]
    await alpha.connections[BETA].aclose()
    await theirs.wait_closed()


async def test_draining_waits_for_services_whose_caller_has_gone(open_pair: PairFactory) -> None:
    """They were handed their work and outlive the connection: the drain is over when they are, also those in line."""
    held = Held()
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"held": held}, "max_channels": 1}) as pair:
            await give_work(pair.alpha, pair.beta, b"one", b"two")
            await trio.testing.wait_all_tasks_blocked()
            assert held.said == ["one begun"]
            assert (pair.beta.statistics().connections, pair.beta.statistics().services) == (0, 1)
            drained = trio.Event()

            async def drain() -> None:
                await pair.beta.drain()
                drained.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                await trio.testing.wait_all_tasks_blocked()
                assert not drained.is_set()
                held.let_go.set()
                await drained.wait()
            assert held.said == ["one begun", "one finished", "two begun", "two finished"]
            assert pair.beta.statistics().services == 0


async def test_a_cancelled_drain_cancels_services_whose_caller_has_gone(open_pair: PairFactory) -> None:
    """Those that run, and none begins in their place: what is left is cancelled, whatever it is left of."""
    held = Held()
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"held": held}, "max_channels": 1}) as pair:
            await give_work(pair.alpha, pair.beta, b"one", b"two")
            with trio.CancelScope() as scope:

                async def give_up() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    assert held.said == ["one begun"]
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(give_up)
                    await pair.beta.drain()
            assert scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert held.said == ["one begun", "one cancelled"]
            assert pair.beta.statistics().services == 0


@pytest.mark.parametrize("grace", [60, 0.1])
async def test_leaving_waits_within_the_grace_for_services_whose_caller_has_gone(
    node: NodeFactory, grace: float
) -> None:
    """And cancels them when that is over."""
    held = Held()
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery:
            async with node("beta@localhost", services={"held": held}, shutdown_grace=grace) as beta:
                host, port = beta.acceptors[0].address
                alpha.add_route(BETA, Route(host=host, port=port))
                await give_work(alpha, beta, b"job")
                await trio.testing.wait_all_tasks_blocked()
                if grace > 10:

                    async def let_go() -> None:
                        await trio.testing.wait_all_tasks_blocked()  # beta is left, and waits
                        assert held.said == ["job begun"]
                        held.let_go.set()

                    nursery.start_soon(let_go)
    assert held.said == ["job begun", "job finished" if grace > 10 else "job cancelled"]


async def test_draining_twice_is_draining_once(open_pair: PairFactory) -> None:
    """At the same time, or one after the other."""
    with trio.fail_after(10):
        async with open_pair(beta=SERVICES) as pair:
            async with pair.alpha.open_channel(BETA, "echo") as channel, trio.open_nursery() as nursery:
                await channel.send(b"x")
                await channel.receive()
                for _ in range(2):
                    nursery.start_soon(pair.beta.drain)
                await trio.testing.wait_all_tasks_blocked()
                await channel.aclose()
            await pair.beta.drain()
            assert pair.beta.statistics().connections == 0


async def test_what_crossed_with_the_drain_is_served(scripted: ScriptedFactory) -> None:
    """A peer that does not know yet may open channels; it acknowledges behind them, and then may no more."""
    with trio.fail_after(10):
        async with scripted(services={"echo": echo}) as scene, trio.open_nursery() as nursery:
            opened = [wire.control(wire.OPEN, channel, wire.Open(service="echo")) for channel in (1, 3, 5)]
            await scene.say(opened[0])
            await scene.answered()
            nursery.start_soon(scene.connection.drain)
            assert await scene.peer.frame() == (wire.DRAIN, 0, b"")
            kind, _, ping = await scene.peer.frame()
            assert kind == wire.PING
            await scene.say(opened[1], wire.header(wire.MESSAGE, 3, 1), b"x", wire.header(wire.PONG, 0, 8), ping)
            assert await scene.peer.frame() == (wire.MESSAGE, 3, b"x")
            await scene.say(opened[2])
            kind, channel, payload = await scene.peer.frame()
            assert (kind, channel) == (wire.RESET, 5)
            refusal = wire.decode(wire.End, payload)
            assert (refusal.code, refusal.not_run) == (RemoteCode.SHUTTING_DOWN, True)
            await scene.say(wire.header(wire.CLOSE, 1, 0), wire.header(wire.CLOSE, 3, 0))
            kind, _, payload = await scene.peer.frame(wire.GOODBYE)
            goodbye = wire.decode(wire.Goodbye, payload)
            assert (goodbye.code, goodbye.last) == (EndReason.SHUTTING_DOWN, 5)
            await scene.peer.stream.aclose()


@pytest.mark.usefixtures("jumping_clock")
async def test_a_peer_that_never_acknowledges_is_waited_for_so_long(scripted: ScriptedFactory) -> None:
    """Then what it opens is refused, and the drain ends with the last channel."""
    async with scripted(services={"echo": echo}) as scene, trio.open_nursery() as nursery:
        await scene.say(wire.control(wire.OPEN, 1, wire.Open(service="echo")))
        await scene.answered()
        began = trio.current_time()
        nursery.start_soon(scene.connection.drain)
        await trio.sleep(ACKNOWLEDGE_GRACE + 1)
        await scene.say(wire.control(wire.OPEN, 3, wire.Open(service="echo")))
        assert (await scene.peer.frame(wire.RESET))[1] == 3
        await scene.say(wire.header(wire.CLOSE, 1, 0))
        _, _, payload = await scene.peer.frame(wire.GOODBYE)
        assert wire.decode(wire.Goodbye, payload).last == 3
        assert trio.current_time() == began + ACKNOWLEDGE_GRACE + 1
        await scene.peer.stream.aclose()


async def test_a_connection_that_drains_here_opens_nothing(scripted: ScriptedFactory) -> None:
    """Not even while channels of the peer are open on it."""
    with trio.fail_after(10):
        async with scripted(services={"echo": echo}) as scene, trio.open_nursery() as nursery:
            await scene.say(wire.control(wire.OPEN, 1, wire.Open(service="echo")))
            await scene.answered()
            nursery.start_soon(scene.connection.drain)
            await scene.core.wait_unusable()
            with pytest.raises(trio.ClosedResourceError, match="alpha@localhost is draining"):
                scene.connection.open_channel("echo")
            nursery.cancel_scope.cancel()


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
                await core_of(before).wait_unusable()
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
