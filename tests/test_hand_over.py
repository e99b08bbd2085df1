"""Hand-over: a live connection moves to a new TLS session, and nobody who uses it notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from conftest import ManagerFactory, PairFactory

    from trionode import ServiceChannel


async def echo(channel: ServiceChannel) -> None:
    """Send everything back."""
    async for message in channel:
        await channel.send(message)


async def test_by_hand(open_pair: PairFactory, manager: ManagerFactory) -> None:
    """Either side moves a connection to the certificates that both have now; an open channel goes on."""
    certs = manager("alpha@localhost")
    async with open_pair(alpha={"certs": certs}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with connection.open_channel("echo") as channel:
            await channel.send(b"before")
            certs.update(manager("alpha@localhost").key_pair)
            superseded = connection.superseded
            await connection.reauthenticate()
            assert connection.generation == 2
            assert (superseded, connection.superseded) == (True, False)
            await channel.send(b"after")
            assert await channel.receive() == b"before"
            assert await channel.receive() == b"after"
            theirs = pair.beta.connections["alpha@localhost"]
            assert theirs.peer_generation == 2
            assert theirs.peer.certificate == certs.key_pair.certificate
            await theirs.reauthenticate()
            assert connection.statistics().hand_overs == 2


async def test_many_hand_overs_lose_nothing(open_pair: PairFactory) -> None:
    """A channel that is busy both ways, with small and large messages, is moved again and again."""
    total = 3000
    async with open_pair(beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect("beta@localhost")
        async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(total):
                    await channel.send(b"%d" % number * (20000 if number % 50 == 0 else 1))
                await channel.send_eof()

            async def hand_over() -> None:
                while True:
                    await connection.reauthenticate()

            nursery.start_soon(send)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(hand_over)
                    number = 0
                    async for message in channel:
                        assert message == b"%d" % number * (20000 if number % 50 == 0 else 1)
                        number += 1
                    assert number == total
                    scope.cancel()
        assert connection.statistics().hand_overs > 1
