"""The recorder of calls: what is asserted on in the tests of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode import CallSide, RemoteError
from trionode.testing import CallRecorder, RecordedCall, node_factory

if TYPE_CHECKING:
    from trionode import InterceptedCall, Proceed, ServiceChannel

BETA = "beta@beta.test"


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def add(call: InterceptedCall, proceed: Proceed) -> bytes | None:
    """An interceptor that adds to the metadata."""
    call.metadata["added"] = "1"
    return await proceed()


@pytest.mark.usefixtures("jumping_clock")
async def test_calls_are_noted_at_both_sides() -> None:
    """With what was said, with what they ended, and in the order in which they began."""
    ours, theirs, nodes = CallRecorder(), CallRecorder(), node_factory()
    async with (
        nodes("beta", services={"echo": echo}, interceptors=[theirs]),
        nodes("alpha", interceptors=[add, ours]) as alpha,
    ):
        async with alpha.open_channel(BETA, "echo", metadata={"given": b"2"}) as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"
            assert not ours.calls[0].ended
            assert await alpha.call(BETA, "echo", b"hi") == b"hi"
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "unknown", b"hi")
        await trio.testing.wait_all_tasks_blocked()
    block, call, unknown = ours.calls
    assert block == RecordedCall(
        side=CallSide.CALLER,
        service="echo",
        name=BETA,
        one_reply=False,
        metadata={"given": b"2", "added": "1"},
        request=None,
        ended=True,
    )
    assert (call.metadata, call.one_reply, call.request, call.reply) == ({"added": "1"}, True, b"hi", b"hi")
    assert (unknown.ended, unknown.error, unknown.reply) == (True, caught.value, None)
    assert [(each.side, each.name, dict(each.metadata)) for each in theirs.calls] == [
        (CallSide.SERVICE, "alpha@alpha.test", {"given": b"2", "added": "1"}),
        (CallSide.SERVICE, "alpha@alpha.test", {"added": "1"}),
    ]
    assert all(each.ended and each.error is None for each in theirs.calls)
