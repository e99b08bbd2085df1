"""Bytes to and from streams without detours: all of them, in order, whatever the stream takes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode._transport.sockets import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable


def sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Two ends with the system's buffers."""
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


@pytest.mark.parametrize("make", [sockets, trio.testing.memory_stream_pair, trio.testing.lockstep_stream_pair])
@pytest.mark.parametrize("size", [1, 5_000_000])
async def test_everything_arrives_in_order(
    make: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]], size: int
) -> None:
    """Also more than a socket takes at once; and what is read is never more than was asked for."""
    near, far = make()
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    received = bytearray()

    async def speak() -> None:
        await send(near, data)
        await near.aclose()

    with trio.fail_after(10):
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            while piece := await receive(far, 70_000):
                assert len(piece) <= 70_000
                received += piece
    assert received == data


async def test_a_stream_that_is_closed_or_broken() -> None:
    """Which of the two it is is told apart."""
    near, far = sockets()
    with trio.fail_after(10):
        await far.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await send(near, bytes(10_000_000))
        await near.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await send(near, b"x")
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await receive(near, 1)
