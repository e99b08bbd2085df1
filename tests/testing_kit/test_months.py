"""Months under a mock clock: heartbeats cost nothing on a link that is sound, and a dead peer is noticed on time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from trionode import EndReason, NetworkOptions, PeerRejectedError
from trionode._connection.connection import core_of
from trionode.testing import certificate_zoo, cluster_ca, node_factory
from trionode.testing._zoo import REASONS

if TYPE_CHECKING:
    from trio.testing import MockClock

INTERVAL, TOLERANCE = 15.0, 45.0
OPTIONS = NetworkOptions(heartbeat_interval=INTERVAL, heartbeat_tolerance=TOLERANCE)
DAY = timedelta(days=1).total_seconds()


async def test_ninety_days_with_ten_connections_take_no_time(autojump_clock: MockClock) -> None:
    """Less than a second, and every connection lives and works."""
    cluster = node_factory()

    async def echo(channel: object) -> None:
        async for message in channel:  # type: ignore[attr-defined]
            await channel.send(message)  # type: ignore[attr-defined]

    names = [f"client{number}" for number in range(10)]
    async with cluster("server", services={"echo": echo}) as server, cluster.cluster(*names) as clients:
        connections = [await each.connect(server.name) for each in clients]
        began = time.process_time()
        await trio.sleep(90 * DAY)
        took = time.process_time() - began
        assert [await each.call("echo", b"x") for each in connections] == [b"x"] * 10
        assert took < 1


@pytest.mark.parametrize("how", ["partition", "one way"])
@pytest.mark.parametrize("after", [3.0, 100.0, 30 * DAY])
async def test_a_peer_that_is_cut_off_is_noticed_on_time(how: str, after: float, autojump_clock: MockClock) -> None:
    """Not before the tolerance has passed, and not later than after interval and tolerance, on both sides."""
    cluster = node_factory()
    network = cluster.network
    assert network is not None
    async with cluster("server", network=OPTIONS) as server, cluster("client", network=OPTIONS) as client:
        ours = await client.connect(server.name)
        await trio.lowlevel.checkpoint()
        theirs = server.connections[client.name]
        await trio.sleep(after)
        assert client.connections
        network.partition([server.name.host], [client.name.host], one_way=how == "one way")
        cut = trio.current_time()
        await ours.wait_closed()
        assert TOLERANCE <= trio.current_time() - cut <= INTERVAL + TOLERANCE + 1
        if how == "partition":
            await theirs.wait_closed()
            assert trio.current_time() - cut <= INTERVAL + TOLERANCE + 1


async def test_a_short_cut_is_survived(autojump_clock: MockClock) -> None:
    """And after it months cost nothing again."""
    cluster = node_factory()
    network = cluster.network
    assert network is not None
    async with cluster("server", network=OPTIONS) as server, cluster("client", network=OPTIONS) as client:
        connection = await client.connect(server.name)
        for _ in range(3):
            await trio.sleep(10 * DAY)
            network.partition([server.name.host], [client.name.host])
            await trio.sleep(TOLERANCE / 2)
            network.heal()
        began = time.process_time()
        await trio.sleep(90 * DAY)
        assert time.process_time() - began < 1
        assert await core_of(connection).answers(1, insist=True)


async def test_a_revoked_peer_is_one_line(autojump_clock: MockClock) -> None:
    """Its connection ends, and it cannot make another; others can, and nodes that open later know it, too."""
    cluster = node_factory()
    async with cluster.cluster("server", "client", "other") as (server, client, other):
        connection = await client.connect(server.name)
        cluster.revoke(client)
        assert (await connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER
        with pytest.raises(PeerRejectedError, match="certificate revoked"):
            await client.connect(server.name)
        await other.connect(server.name)
        async with cluster("late") as late:
            with pytest.raises(PeerRejectedError, match="certificate revoked"):
                await client.connect(late.name)
            await other.connect(late.name)


def test_the_zoo_takes_the_names_that_nodes_take() -> None:
    """`client` is short for `client@client.test`; the error for an unknown animal has a table of all."""
    zoo = certificate_zoo(cluster_ca(), "client")
    assert str(zoo.name) == "client@client.test"
    with pytest.raises(AttributeError, match=r"'name_mismatch' is why wrong_name and no_san are refused\. .*revoked"):
        zoo.name_mismatch  # noqa: B018
    with pytest.raises(AttributeError, match=r"no certificate 'unicorn' in the zoo\. There are good"):
        zoo.unicorn  # noqa: B018
    assert set(REASONS) <= set(dir(zoo))
