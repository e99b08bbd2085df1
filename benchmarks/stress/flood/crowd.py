"""The crowd, in a process of its own: `python -m benchmarks.stress.flood.crowd PORT SIZE`, until it is killed."""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from typing import Final

import trio

from benchmarks.stress.nodes import LOOPBACK

#: How long a client that was disconnected stays away at most. Seconds.
AWAY: Final = 3.0
#: Between the single bytes of the clients that drip. Seconds.
DRIP: Final = 0.2
#: In how much time the crowd arrives. Seconds.
ARRIVAL: Final = 1.0


async def attack(number: int, port: int) -> None:
    """One client, for ever: a third of them say nothing, a third drip, a third send garbage."""
    draw = random.Random(number)  # noqa: S311 -- as random as it has to be
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                if number % 3 == 1:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drip, stream, nursery.cancel_scope)
                        await until_disconnected(stream)
                        nursery.cancel_scope.cancel()
                elif number % 3 == 2:
                    await stream.send_all(draw.randbytes(draw.randrange(1, 2000)))
                await until_disconnected(stream)
        await trio.sleep(draw.uniform(0, AWAY))


async def drip(stream: trio.SocketStream, over: trio.CancelScope) -> None:
    """Send a TLS record, one byte at a time."""
    with suppress(trio.BrokenResourceError):
        for byte in b"\x16\x03\x01\x02\x00" + bytes(512):
            await stream.send_all(bytes([byte]))
            await trio.sleep(DRIP)
    over.cancel()


async def until_disconnected(stream: trio.SocketStream) -> None:
    """Wait for the node to end the connection."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


async def attack_all(port: int, size: int) -> None:
    """All of them."""
    async with trio.open_nursery() as nursery:
        for number in range(size):
            nursery.start_soon(attack, number, port)
            await trio.sleep(ARRIVAL / size)


if __name__ == "__main__":
    trio.run(attack_all, int(sys.argv[1]), int(sys.argv[2]))
