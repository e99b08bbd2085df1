"""Acceptors over plain memory channels of TLS contexts: what they take when, and that nothing ends an accept loop."""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import HandshakeError, HandshakeTimeoutError, NodeName, TLSContexts, _protocol as wire
from trionode._connection.registry import Registry
from trionode._handshake.accept import accept_link
from trionode._handshake.acceptor import AcceptLoop, Acceptor
from trionode._handshake.admission import Admission
from trionode._handshake.collisions import Arbiter
from trionode._handshake.dial import Dial, dial_link
from trionode._handshake.exchange import Party
from trionode._managers.manager import publisher_of
from trionode._transport.interfaces import accept_forever
from trionode._transport.tcp import TCPListener, open_listeners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import ManagerFactory

    from trionode._connection.link import Link
    from trionode._handshake.accept import Joined

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
LIMITS = wire.Limits(max_message_size=65536, window=65536, max_channels=16)


def party(name: NodeName) -> Party:
    """A node's part in a handshake, without a node."""
    return Party(name=name, incarnation=1, limits=LIMITS, arbiter=Arbiter(name, Registry()))


def dial_to(address: tuple[str, int]) -> Dial:
    """A dial of beta, at an address."""
    host, port = address
    return Dial(name=BETA, host=host, port=port, connect_timeout=10, handshake_timeout=10)


class Contexts:
    """Generations in a plain memory channel: each can be taken once, and what is left shows how many were."""

    def __init__(self, *generations: TLSContexts) -> None:
        self.send, self.receive = trio.open_memory_channel[TLSContexts](math.inf)
        for contexts in generations:
            self.send.send_nowait(contexts)

    @property
    def left(self) -> int:
        """How many have not been taken."""
        return self.receive.statistics().current_buffer_used


class Accepting:
    """An acceptor at work, without a node."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.errors: list[HandshakeError] = []
        self.changed = trio.lowlevel.ParkingLot()

    async def established(self, link: Link, joined: Joined | None) -> None:
        """Keep the link until it ends."""
        self.links.append(link)
        self.changed.unpark_all()
        async with link.stream:
            try:
                while await link.stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass

    def refused(self, error: HandshakeError) -> None:
        """Note the refusal."""
        self.errors.append(error)
        self.changed.unpark_all()

    async def wait(self, what: list[Any], count: int) -> None:
        """Wait until there are so many."""
        while len(what) < count:
            await self.changed.park()

    @asynccontextmanager
    async def on(self, contexts: Contexts, **options: Any) -> AsyncIterator[Acceptor]:
        """Run an acceptor on loopback for the length of the block."""
        loop = AcceptLoop(
            [TCPListener(each) for each in options.pop("listeners", None) or await open_listeners("127.0.0.1", 0)],
            contexts.receive,
            party(BETA),
            **{
                "bind_names": True,
                "handshake_timeout": 10.0,
                "admission": Admission(),
                "established": self.established,
                "refused": self.refused,
                **options,
            },
        )
        async with trio.open_nursery() as handshakes, trio.open_nursery() as nursery:

            async def accept() -> None:
                await loop.run(handshakes)

            nursery.start_soon(accept)
            yield loop.acceptor
            nursery.cancel_scope.cancel()
            handshakes.cancel_scope.cancel()


@pytest.fixture
def generations(manager: ManagerFactory) -> Callable[[int], list[TLSContexts]]:
    """A function that makes so many different generations of beta's contexts."""
    certs = manager("beta@localhost", "alpha@localhost")
    policy = publisher_of(certs).policy

    def make(count: int) -> list[TLSContexts]:
        return [TLSContexts.build(number, certs.key_pair, policy) for number in range(1, count + 1)]

    return make


async def dial(acceptor: Acceptor, contexts: TLSContexts) -> Link:
    """Dial, as alpha."""
    transport = await trio.open_tcp_stream(*acceptor.address)
    return await dial_link(transport, Contexts(contexts).receive, party(ALPHA), dial_to(acceptor.address))


# Contexts -----------------------------------------------------------------------------------------------------------


async def test_each_handshake_takes_contexts_once(generations: Callable[[int], list[TLSContexts]]) -> None:
    """An acceptor takes from the channel once for each handshake, in the order in which they come."""
    accepting = Accepting()
    made = generations(6)
    contexts = Contexts(*made[:5])
    with trio.fail_after(10):
        async with accepting.on(contexts) as acceptor:
            for number in range(1, 4):
                link = await dial(acceptor, made[5])
                await accepting.wait(accepting.links, number)
                assert link.peer_generation == accepting.links[-1].generation == number
                assert contexts.left == 5 - number
                await link.stream.aclose()
    assert [link.generation for link in accepting.links] == [1, 2, 3]
    assert contexts.left == 2


async def test_silent_client_takes_no_contexts(generations: Callable[[int], list[TLSContexts]]) -> None:
    """Contexts are taken when a client's first bytes are there; one that says nothing costs none."""
    accepting = Accepting()
    contexts = Contexts(*generations(2))
    with trio.fail_after(10):
        async with accepting.on(contexts) as acceptor:
            async with await trio.open_tcp_stream(*acceptor.address) as silent:
                while acceptor.statistics().handshaking < 1:
                    await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert contexts.left == 2
            await accepting.wait(accepting.errors, 1)
            assert accepting.errors[0].reason == "silent"
            assert contexts.left == 2
            async with await trio.open_tcp_stream(*acceptor.address) as talking:
                await talking.send_all(b"\x16")
                while contexts.left == 2:
                    await trio.testing.wait_all_tasks_blocked()
                assert contexts.left == 1
                del silent


async def test_client_that_resets_takes_no_contexts(
    generations: Callable[[int], list[TLSContexts]], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a client that breaks the connection without a word, as port scanners do; that is no warning, either."""
    accepting = Accepting()
    contexts = Contexts(*generations(1))
    with trio.fail_after(10):
        async with accepting.on(contexts) as acceptor:
            async with await trio.open_tcp_stream(*acceptor.address) as client:
                while acceptor.statistics().handshaking < 1:
                    await trio.testing.wait_all_tasks_blocked()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await accepting.wait(accepting.errors, 1)
    assert accepting.errors[0].reason == "silent"
    assert isinstance(accepting.errors[0].__cause__, trio.BrokenResourceError)
    assert contexts.left == 1
    assert not caplog.records


async def test_handshake_waits_for_contexts(generations: Callable[[int], list[TLSContexts]]) -> None:
    """Where the channel holds none, a handshake waits; what is published then it takes."""
    accepting = Accepting()
    contexts = Contexts()
    [ours, theirs] = generations(2)
    links: list[Link] = []

    async def connect(acceptor: Acceptor) -> None:
        links.append(await dial(acceptor, theirs))

    with trio.fail_after(10):
        async with accepting.on(contexts) as acceptor, trio.open_nursery() as nursery:
            nursery.start_soon(connect, acceptor)
            while not contexts.receive.statistics().tasks_waiting_receive:
                await trio.testing.wait_all_tasks_blocked()
            contexts.send.send_nowait(ours)
            await accepting.wait(accepting.links, 1)
            while not links:
                await trio.testing.wait_all_tasks_blocked()
            await links[0].stream.aclose()


async def test_closed_contexts_channel_costs_that_handshake(
    generations: Callable[[int], list[TLSContexts]], caplog: pytest.LogCaptureFixture
) -> None:
    """Where contexts cannot be had at all, each handshake ends, is logged in full, and the acceptor goes on."""
    accepting = Accepting()
    contexts = Contexts()
    contexts.send.close()
    with trio.fail_after(10):
        async with accepting.on(contexts) as acceptor:
            for number in range(1, 3):
                async with await trio.open_tcp_stream(*acceptor.address) as client:
                    await client.send_all(b"\x16")
                    assert await client.receive_some() == b""
                await trio.testing.wait_all_tasks_blocked()
                statistics = acceptor.statistics()
                assert (statistics.accepted, statistics.refused) == (number, number)
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


# Clients that take their time ---------------------------------------------------------------------------------------


async def test_slow_clients_delay_nobody(generations: Callable[[int], list[TLSContexts]]) -> None:
    """Beside a client that says nothing and one that drips byte by byte, fifty honest ones get in."""
    accepting = Accepting()
    made = generations(60)
    flight = made[0].client.session(reference="localhost")
    flight.handshake()
    hello = flight.outgoing()

    async def drip(address: tuple[str, int]) -> None:
        async with await trio.open_tcp_stream(*address) as client:
            for number in range(len(hello)):
                await client.send_all(hello[number : number + 1])
                await trio.sleep(0.3)

    async def connect(acceptor: Acceptor) -> None:
        link = await dial(acceptor, made[0])
        await link.stream.aclose()

    with trio.fail_after(30):
        async with accepting.on(Contexts(*made)) as acceptor, trio.open_nursery() as nursery:
            nursery.start_soon(drip, acceptor.address)
            async with await trio.open_tcp_stream(*acceptor.address):
                while acceptor.statistics().handshaking < 2:
                    await trio.testing.wait_all_tasks_blocked()
                for _ in range(25):
                    await connect(acceptor)
                async with trio.open_nursery() as crowd:
                    for _ in range(25):
                        crowd.start_soon(connect, acceptor)
                await accepting.wait(accepting.links, 50)
                statistics = acceptor.statistics()
                assert (statistics.established, statistics.refused) == (50, 0)
                assert statistics.handshaking == 2
                nursery.cancel_scope.cancel()


async def test_dripping_client_runs_into_its_deadline(generations: Callable[[int], list[TLSContexts]]) -> None:
    """A client that drips does not extend its deadline by it: that runs from the accept."""
    accepting = Accepting()
    made = generations(1)
    flight = made[0].client.session(reference="localhost")
    flight.handshake()
    hello = flight.outgoing()
    with trio.fail_after(10):
        async with accepting.on(Contexts(*made), handshake_timeout=0.3) as acceptor:
            async with await trio.open_tcp_stream(*acceptor.address) as client:
                with suppress(trio.BrokenResourceError):
                    for number in range(len(hello)):
                        await client.send_all(hello[number : number + 1])
                        await trio.sleep(0.05)
                    pytest.fail("it was never closed")
            await accepting.wait(accepting.errors, 1)
    assert isinstance(accepting.errors[0], HandshakeTimeoutError)


# Accept errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPERM])
async def test_accept_errors_are_logged_once_per_streak_and_end_nothing(
    generations: Callable[[int], list[TLSContexts]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    """Whatever `accept` fails with, the loop goes on; a streak of errors is logged once, and its end."""
    monkeypatch.setattr("trionode._transport.interfaces.ACCEPT_PAUSE", 0.001)
    caplog.set_level(logging.INFO, "trionode.acceptor")
    accepting = Accepting()
    made = generations(5)
    [listener] = await open_listeners("127.0.0.1", 0)
    real = listener.accept
    script = [True, True, True, False, True, True, False]

    async def accept() -> trio.SocketStream:
        if script and script.pop(0):
            raise OSError(number, os.strerror(number))
        return await real()

    monkeypatch.setattr(listener, "accept", accept)
    with trio.fail_after(10):
        async with accepting.on(Contexts(*made), listeners=[listener]) as acceptor:
            for count in 1, 2, 3:
                link = await dial(acceptor, made[4])
                await accepting.wait(accepting.links, count)
                await link.stream.aclose()
    assert not script
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "WARNING", "ERROR", "WARNING"]
    assert os.strerror(number) in caplog.records[0].getMessage()


async def test_running_out_of_descriptors_ends_nothing(
    generations: Callable[[int], list[TLSContexts]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With no descriptor left the acceptor waits, and goes on when there is one again."""
    said = trio.Event()

    def notice(record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR:  # not handled: a handler might want a descriptor
            said.set()
        return record.levelno != logging.ERROR

    monkeypatch.setattr(logging.getLogger("trionode.acceptor"), "filters", [notice])
    accepting = Accepting()
    made = generations(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(10), socket.socket() as raw:
        raw.setblocking(False)
        async with accepting.on(Contexts(made[0])) as acceptor:
            await trio.testing.wait_all_tasks_blocked()
            highest = os.dup(raw.fileno())
            holes = [highest]
            try:
                while holes[-1] <= highest:
                    holes.append(os.dup(raw.fileno()))
                resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1, hard))
                with pytest.raises(OSError, match="Too many open files"):
                    os.dup(raw.fileno())
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw))
                await stream.socket.connect(acceptor.address)
                await said.wait()
                assert acceptor.statistics().accepted == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in holes:
                    os.close(descriptor)
            async with stream:
                link = await dial_link(stream, Contexts(made[1]).receive, party(ALPHA), dial_to(acceptor.address))
                await accepting.wait(accepting.links, 1)
                await link.stream.aclose()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # that it works again


async def test_accept_loop_ends_with_its_listener(generations: Callable[[int], list[TLSContexts]]) -> None:
    """A listener that is closed under an accept loop, by ourselves, ends that loop and crashes nothing."""
    [listener] = await open_listeners("127.0.0.1", 0)
    taken: list[trio.abc.Stream] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_forever, TCPListener(listener), taken.append, "here")
            await trio.testing.wait_all_tasks_blocked()
            listener.socket.close()
    assert not taken


async def test_closing_the_listeners_leaves_handshakes_in_progress(
    generations: Callable[[int], list[TLSContexts]],
) -> None:
    """An acceptor that stops listening lets handshakes under way finish."""
    accepting = Accepting()
    made = generations(2)
    with trio.fail_after(10):
        loop = AcceptLoop(
            [TCPListener(each) for each in await open_listeners("127.0.0.1", 0)],
            Contexts(made[0]).receive,
            party(BETA),
            bind_names=True,
            handshake_timeout=10,
            admission=Admission(),
            established=accepting.established,
            refused=accepting.refused,
        )
        async with trio.open_nursery() as handshakes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(loop.run, handshakes)
                acceptor = loop.acceptor
                transport = await trio.open_tcp_stream(*acceptor.address)
                while not acceptor.statistics().handshaking:
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream(*acceptor.address)
            link = await dial_link(transport, Contexts(made[1]).receive, party(ALPHA), dial_to(acceptor.address))
            await accepting.wait(accepting.links, 1)
            await link.stream.aclose()


# Cancellation -------------------------------------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before a task's n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope, self._left = scope, step
        self.task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count."""
        if task is self.task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


class Watched(trio.abc.HalfCloseableStream):
    """A transport that knows whether it was closed."""

    def __init__(self, inner: trio.StapledStream[Any, Any]) -> None:
        self._inner = inner
        self.closed = False

    async def send_all(self, data: Any) -> None:
        """Pass on."""
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Pass on."""
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Pass on."""
        await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Pass on."""
        return bytes(await self._inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        """Pass on, and note."""
        self.closed = True
        await self._inner.aclose()


@pytest.mark.parametrize("side", ["accept", "dial"])
@pytest.mark.parametrize("pair", [trio.testing.memory_stream_pair, trio.testing.lockstep_stream_pair])
async def test_cancelled_at_any_step_a_handshake_closes_its_transport(
    generations: Callable[[int], list[TLSContexts]], side: str, pair: Callable[[], tuple[Any, Any]]
) -> None:
    """A handshake that is cancelled, at whichever of its steps, closes its transport and leaves the channel whole."""
    made = generations(2)
    finished = False
    step = 0
    while not finished:
        step += 1
        near, far = (Watched(end) for end in pair())
        contexts = {"accept": Contexts(made[0]), "dial": Contexts(made[1])}
        scope = trio.CancelScope()
        instrument = CancelAtStep(scope, step)

        async def accept(transport: Watched) -> Link:
            link, _ = await accept_link(
                transport,
                contexts["accept"].receive,  # noqa: B023 -- awaited within the same turn
                party(BETA),
                bind_names=True,
                handshake_timeout=math.inf,
            )
            return link

        async def connect(transport: Watched) -> Link:
            plan = Dial(name=BETA, host="localhost", port=1, connect_timeout=math.inf, handshake_timeout=math.inf)
            return await dial_link(transport, contexts["dial"].receive, party(ALPHA), plan)  # noqa: B023

        async def other() -> None:
            try:
                link = await (connect(far) if side == "accept" else accept(far))  # noqa: B023
            except HandshakeError:
                pass
            else:
                await link.stream.aclose()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)

                async def cancelled() -> bool:
                    instrument.task = trio.lowlevel.current_task()  # noqa: B023
                    with scope:  # noqa: B023
                        try:
                            link = await (accept(near) if side == "accept" else connect(near))  # noqa: B023
                        except HandshakeError:
                            pytest.fail("a cancelled handshake blamed the peer")
                        await link.stream.aclose()
                    return not scope.cancelled_caught  # noqa: B023

                trio.lowlevel.add_instrument(instrument)
                try:
                    finished = await cancelled()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
                assert near.closed
    assert step > 5


async def test_deadline_is_told_apart_from_a_cancellation(generations: Callable[[int], list[TLSContexts]]) -> None:
    """The handshake's own deadline is an error; the caller's cancellation is a cancellation."""
    near, far = trio.testing.memory_stream_pair()
    with pytest.raises(HandshakeTimeoutError):
        await accept_link(near, Contexts(*generations(1)).receive, party(BETA), bind_names=True, handshake_timeout=0.01)
    with pytest.raises(trio.BrokenResourceError):
        await far.send_all(b"x")
    near, far = trio.testing.memory_stream_pair()
    with trio.move_on_after(0.01) as scope:
        await accept_link(near, Contexts(*generations(1)).receive, party(BETA), bind_names=True, handshake_timeout=10)
    assert scope.cancelled_caught
