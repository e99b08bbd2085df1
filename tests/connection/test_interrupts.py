"""Ctrl-C at any bytecode of a connection: the program may catch it and go on, and everything is whole."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import pytest
import trio
import trio.testing

from trionode import LiveConnections, Renew, TrionodeError
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode.testing import MemoryNetwork, node_factory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from trionode import Node, ServiceChannel

#: At how many bytecodes of each scenario there is an interrupt, spread over all of it.
PLACES: Final = 12
#: Whose bytecodes: what protects itself as a whole.
OURS: Final = ("/trionode/_connection/", "/trionode/_node/runtime.py", "/trionode/_node/renewal.py")
#: The lines around a service belong to it; see `Services`.
NOT_OURS: Final = ("/_connection/services.py",)


class Tracer:
    """Counts the bytecodes of ours that run, and presses Ctrl-C at one of them.

    Attributes:
        count: of the bytecodes so far.
    """

    def __init__(self, place: int = -1) -> None:
        self.count = 0
        self._place = place

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        # Tasks that wait already are traced from where they go on: Trio resumes their frames, which is a call.
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not any(part in name for part in OURS) or any(part in name for part in NOT_OURS):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self._place:
                signal.raise_signal(signal.SIGINT)
        return self._step


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def call(alpha: Node, beta: Node) -> None:
    """A call, and its answer."""
    assert await alpha.call(beta.name, "echo", b"call") == b"call"


async def stream(alpha: Node, beta: Node) -> None:
    """A channel with small and large messages, closed cleanly."""
    async with alpha.open_channel(beta.name, "echo") as channel:
        for message in (b"small", bytes(300_000)):
            await channel.send(message)
            assert await channel.receive() == message
        await channel.send_eof()


async def give_up(alpha: Node, beta: Node) -> None:
    """A channel that is reset in the middle of a large message."""
    with trio.move_on_after(0.01):
        async with alpha.open_channel(beta.name, "echo") as channel:
            await channel.send(bytes(500_000))
            await trio.sleep_forever()


async def hand_over(alpha: Node, beta: Node) -> None:
    """A hand-over, and what it carries then."""
    connection = await alpha.connect(beta.name)
    await connection.reauthenticate()
    assert await connection.call("echo", b"moved") == b"moved"


async def drain(alpha: Node, beta: Node) -> None:
    """A graceful end."""
    await (await beta.connect(alpha.name)).drain()


async def close(alpha: Node, beta: Node) -> None:
    """An end at once."""
    await (await alpha.connect(beta.name)).aclose()


async def rotate(alpha: Node, beta: Node) -> None:
    """A rotation that closes what was made before."""
    certs = beta.options.cert_manager
    certs.update(certs.key_pair)
    await trio.sleep(0.05)


SCENARIOS: Final = [call, stream, give_up, hand_over, drain, close, rotate]


async def whole(alpha: Node, beta: Node) -> None:
    """Everything works, and nothing is left of what was interrupted."""
    with trio.fail_after(100):
        for one, other in ((alpha, beta), (beta, alpha)):
            assert await one.call(other.name, "echo", b"whole") == b"whole"
        for each in (alpha, beta):
            while each.statistics().channels or each.statistics().services:  # noqa: ASYNC110 -- soon over
                await trio.sleep(0.01)
            for connection in each._runtime.running:
                budget = connection.channels._terms.budget
                assert not budget.reserved
                assert not connection.channels.open
        assert len(alpha._runtime.running) == len(beta._runtime.running) == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_program_that_catches_ctrl_c_goes_on(scenario: Callable[[Node, Node], Awaitable[None]]) -> None:
    """Wherever it came, what was being done was done as a whole or not at all, on both nodes."""
    network = MemoryNetwork(latency=0.001)
    live = LiveConnections(on_rotation=Renew.CLOSE, within=0.01, grace=1)
    caught = 0

    async def main() -> None:
        nonlocal caught
        factory = node_factory(network=network)
        async with factory.cluster("alpha", "beta", services={"echo": echo}, live_connections=live) as (alpha, beta):
            await whole(alpha, beta)
            with Tracer() as tracer:
                await scenario(alpha, beta)
            await whole(alpha, beta)
            for number in range(PLACES):
                place = 1 + number * tracer.count // PLACES
                try:
                    with Tracer(place):
                        await scenario(alpha, beta)
                    await trio.sleep(0.001)  # an interrupt in the last steps arrives at the next checkpoint
                except KeyboardInterrupt:
                    caught += 1
                except TrionodeError as exc:
                    exc.add_note(f"at bytecode {place}")
                    raise
                await whole(alpha, beta)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert caught > PLACES * 0.8


def test_what_is_protected() -> None:
    """Methods, properties, class methods and what they call; not the block of a context manager."""
    seen: list[str] = []

    def press(where: str) -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append(where)

    @interrupted_at_checkpoints
    class Protected:
        def method(self) -> None:
            press("method")

        @property
        def fact(self) -> None:
            press("property")

        @classmethod
        def make(cls) -> None:
            press("class method")

        @staticmethod
        def helper() -> None:
            press("static method")

        async def verb(self) -> None:
            press("async method")
            await trio.lowlevel.checkpoint()
            seen.append("never: the main task waits for this one")

    async def main() -> None:
        it = Protected()
        for step in (it.method, lambda: it.fact, it.make, it.helper):
            step()
            with pytest.raises(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()
        with pytest.raises(KeyboardInterrupt):
            await it.verb()
        with pytest.raises(KeyboardInterrupt):
            press("in the open")

    trio.run(main)
    assert seen == ["method", "property", "class method", "static method", "async method"]
