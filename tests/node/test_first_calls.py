"""Calls that make their connection: request and confirmation may go in one flight, and still no call lies about itself.

Over memory, where every byte may be the last. There the two go apart, as it cannot be told whether the acceptor has
left; so half of this is played as if it had not, as on a socket.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from effort import effort
from trionode import HandshakeError, NoRouteError, RemoteError
from trionode._tls.stream import SessionStream
from trionode.testing import Faults, MemoryNetwork, Script, node_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode import Node, ServiceChannel
    from trionode.testing import MemoryConnection

#: A first call takes this many bytes and some in either direction.
SIZE = 2600


class Counted:
    """A service, and how often each request ran."""

    def __init__(self) -> None:
        self.ran = Counter[bytes]()

    async def serve(self, channel: ServiceChannel) -> None:
        """Send back the beginning of what comes."""
        request = await channel.receive()
        self.ran[request[:10]] += 1
        await channel.send(request[:10])


async def ask(node: Node, name: str, request: bytes, verb: str) -> bytes:
    """Call, or say the same over a channel."""
    if verb == "call":
        return await node.call(name, "serve", request)
    async with node.open_channel(name, "serve") as channel:
        await channel.send(request)
        return await channel.receive()


def at_once(*, apart: bool) -> Callable[[SessionStream], bool]:
    """Whether it is taken to have news: never, or as ever."""
    return (lambda _: True) if apart else (lambda _: False)


def fault(kind: str, offset: int) -> Faults:
    """One that comes at a byte."""
    given: dict[str, Any] = {kind: [offset] if kind == "corrupt" else offset}
    return Faults(**given)


kinds = st.sampled_from(["reset_after", "eof_after", "stall_after", "corrupt"])
faults = st.builds(fault, kinds, st.integers(0, SIZE) | st.integers(SIZE - 400, SIZE))


@given(
    script=st.builds(Script, there=faults) | st.builds(Script, back=faults),
    verb=st.sampled_from(["call", "open_channel"]),
    apart=st.booleans(),
)
def test_a_first_call_over_a_line_that_fails(script: Script, verb: str, *, apart: bool) -> None:
    """It is answered, or certainly did not run, or may have; and the next one is well."""
    with patch.object(SessionStream, "has_news", property(at_once(apart=apart))):
        trio.run(cut, script, verb, clock=trio.testing.MockClock(autojump_threshold=0))


async def cut(script: Script, verb: str) -> None:
    """Make a first call whose first connection has this fault."""
    network, scripts, counted = MemoryNetwork(), [script], Counted()

    def first(_: MemoryConnection) -> Script | None:
        return scripts.pop() if scripts else None

    network.script = first
    async with node_factory(network=network).cluster("alpha", "beta", services={"serve": counted.serve}) as nodes:
        alpha, beta = nodes
        try:
            with trio.fail_after(300):
                assert await ask(alpha, str(beta.name), b"once", verb) == b"once"
        except (HandshakeError, NoRouteError):
            assert not counted.ran
        except RemoteError as exc:
            assert (exc.not_run, sum(counted.ran.values())) == (True, 0)
        except trio.BrokenResourceError:
            assert sum(counted.ran.values()) <= 1
        else:
            assert counted.ran[b"once"] == 1
        with trio.fail_after(300):
            for connection in list(alpha.connections.values()):
                await connection.aclose()
            assert await ask(alpha, str(beta.name), b"again", verb) == b"again"
            await trio.sleep(100)
        assert (list(alpha.connections), list(beta.connections)) == ([beta.name], [alpha.name])


@given(seed=st.integers(0, 10**6), apart=st.booleans())
@settings(max_examples=effort(50))
def test_first_calls_of_two_nodes_that_cross(seed: int, *, apart: bool) -> None:
    """Each is answered and ran once, whoever else waits for the same connection; and one connection is left."""
    with patch.object(SessionStream, "has_news", property(at_once(apart=apart))):
        trio.run(cross, seed, clock=trio.testing.MockClock(autojump_threshold=0))


async def cross(seed: int) -> None:
    """Let both nodes call and connect, some of them almost at once."""
    random, counted = Random(seed), Counted()
    latency, jitter = random.choice([0, 0.001, 0.1]), random.choice([0, 0.0005, 0.02, 0.3])
    network = MemoryNetwork(seed, latency=latency, jitter=jitter)
    async with node_factory(network=network).cluster("alpha", "beta", services={"serve": counted.serve}) as nodes:

        async def caller(number: int) -> None:
            one, other = random.sample(nodes, 2)
            await trio.sleep(random.choice([0, 0, latency, 5 * latency * random.random(), 0.5 * random.random()]))
            verb = random.choice(["call", "open_channel", "connect"])
            request = b"%10d" % number
            if verb == "connect":
                connection = await one.connect(other.name)
                assert await connection.call("serve", request) == request
            else:
                assert (
                    await ask(one, str(other.name), request + bytes(random.choice([0, 5000, 300_000])), verb) == request
                )

        count = random.randrange(2, 8)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(caller, number)
        assert sorted(counted.ran.values()) == [1] * count
        await trio.sleep(10)
        assert [len(node.connections) for node in nodes] == [1, 1]
        assert len(network.open_streams) == 2
