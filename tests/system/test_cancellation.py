"""Every public operation, cancelled at each of its checkpoints in turn, and what is left after each.

After every attempt: no descriptor and no task more than before; the managers publish; a call from one node to the other
works, over the connection that there is or over a new one; and whatever a test says itself.
"""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    CertificateError,
    Connection,
    Credentials,
    HandshakeError,
    LocalRegistry,
    NetworkOptions,
    Node,
    NodeName,
    NodeOptions,
    Route,
    ServiceChannel,
    TLSStream,
    TypedChannel,
    call_typed,
    follow_source,
    open_node,
    open_tls_stream,
    serve_node,
    serve_tls,
    serve_tls_listeners,
    typed_service,
    wrap_client_stream,
    wrap_server_stream,
)
from trionode._connection.connection import core_of
from trionode._managers.manager import publisher_of
from trionode._node import renewal as _renewal
from trionode._util.threads import Purpose, limiter
from trionode.http import serve_asgi
from trionode.testing import Attempt, Moment, cancel_at_every_checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    from conftest import ManagerFactory, PairFactory

    from trionode.pki import CertificateAuthority

    Registered: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]

ALPHA, BETA, GAMMA = "alpha@localhost", "beta@localhost", "gamma@localhost"
WINDOW: Final = 4096
#: Larger than the window, than what is sent at once and than a fragment.
LARGE: Final = bytes(range(256)) * 1000
#: How long what a cancellation has begun to end may take to be gone: real sockets, on a busy machine. Seconds.
PATIENCE: Final = 10


def descriptors() -> int:
    """How many are open in this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- one less than Path.iterdir holds open


def tasks() -> int:
    """How many there are in this run."""
    return trio.lowlevel.current_statistics().tasks_living


class Guard:
    """What there is before an operation, to be compared with what there is after it."""

    def __init__(self, *managers: CertAuthManager) -> None:
        self._managers = managers
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[int, int, int]:
        # A thread that no task waits for any more may still be opening and closing files.
        limiters = [limiter(purpose) for purpose in Purpose]
        limiters.append(trio.to_thread.current_default_thread_limiter())
        return sum(each.borrowed_tokens for each in limiters), descriptors(), tasks()

    async def check(self) -> None:
        """Wait until everything is as it was, for a bounded time."""
        deadline = trio.current_time() + PATIENCE
        while (now := self._now()) != self._before and trio.current_time() < deadline:  # noqa: ASYNC110 -- as nothing tells
            await trio.sleep(0.001)
        assert now == self._before, "(threads, descriptors, tasks)"
        for manager in self._managers:
            with trio.fail_after(PATIENCE):
                assert (await manager.contexts.receive()).generation == manager.generation


@dataclass
class World:
    """Two nodes that are connected, and what is looked at after each attempt."""

    alpha: Node
    beta: Node
    guard: Guard | None = None
    attempts: int = 0

    def route_to_beta(self) -> Route:
        """For a third node."""
        host, port = self.beta.acceptors[0].address
        return Route(host=host, port=port)

    @property
    def connection(self) -> Connection:
        """The one between them, as alpha sees it."""
        return self.alpha.connections[NodeName.parse(BETA)]

    async def every(self, *, connected: bool = True, any_task: bool = False) -> AsyncIterator[Attempt]:
        """The attempts; before each there is a connection, or none, and after each everything is looked at.

        Args:
            connected: whether there is one.
            any_task: cancel at the checkpoints of every task, on both nodes.
        """
        await self._connect()
        self.guard = Guard(*self._managers())
        for attempt in cancel_at_every_checkpoint(any_task=any_task):
            self.attempts += 1
            if not connected:
                await self.connection.aclose()
                await self._quiet(0)
            yield attempt
            await self._connect()
            await self.guard.check()
        assert self.attempts > 2, "nothing was cancelled"

    def _managers(self) -> list[CertAuthManager]:
        managers = [node.options.cert_manager for node in (self.alpha, self.beta)]
        assert all(isinstance(manager, CertAuthManager) for manager in managers)
        return managers  # type: ignore[return-value]  # as asserted

    async def _connect(self) -> None:
        """Usable: over the connection that there is, or a new one."""
        with trio.fail_after(PATIENCE):
            assert await self.alpha.call(BETA, "echo", b"usable?") == b"usable?"
        await self._quiet(1)

    async def _quiet(self, connections: int) -> None:
        """Wait until the nodes have so many connections, and nothing else."""
        wanted = [(connections, 0, 0)] * 2
        with trio.move_on_after(PATIENCE):
            while self._have() != wanted:  # noqa: ASYNC110 -- ditto
                await trio.sleep(0.001)
        assert self._have() == wanted, "(connections, channels, services) of alpha and beta"

    def _have(self) -> list[tuple[int, int, int]]:
        statistics = [node.statistics() for node in (self.alpha, self.beta)]
        return [(each.connections, each.channels, each.services) for each in statistics]


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def late(channel: ServiceChannel) -> None:
    """Take what comes, after a while each; and say at the end how much it was."""
    lengths: list[int] = []
    await trio.sleep(0.002)
    async for message in channel:
        lengths.append(len(message))
        await trio.sleep(0.002)
    await channel.send(repr(lengths).encode())


async def add(numbers: list[int]) -> int:
    """Typed."""
    await trio.lowlevel.checkpoint()
    return sum(numbers)


SERVICES: Final = {"echo": echo, "late": late, "add": typed_service(add, request=list[int])}


@pytest.fixture
async def world(open_pair: PairFactory) -> AsyncIterator[World]:
    """Two nodes on loopback."""
    options: dict[str, Any] = {"services": SERVICES, "channel_window": WINDOW, "shutdown_grace": 0.5}
    async with open_pair(alpha=options, beta=options) as pair:
        yield World(pair.alpha, pair.beta)


# Connections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [True, False])
async def test_connect(world: World, connected: bool) -> None:
    """At every stage of a dial; the next one succeeds."""
    async for attempt in world.every(connected=connected, any_task=True):
        with attempt:
            assert (await world.alpha.connect(BETA)).live


async def test_two_that_connect(world: World) -> None:
    """One of two who wait for the same dial: the other gets it."""
    got: list[Connection] = []

    async def other() -> None:
        got.append(await world.alpha.connect(BETA))

    async for attempt in world.every(connected=False, any_task=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with attempt:
                await world.alpha.connect(BETA)
        assert got.pop().live


@pytest.mark.parametrize("connected", [True, False])
async def test_call(world: World, connected: bool) -> None:
    """With a dial before it, and without."""
    async for attempt in world.every(connected=connected, any_task=True):
        with attempt:
            assert await world.alpha.call(BETA, "echo", b"x") == b"x"


async def test_call_with_a_large_message(world: World) -> None:
    """Waiting for credit, there and back."""
    async for attempt in world.every(any_task=True):
        with attempt:
            assert await world.alpha.call(BETA, "echo", LARGE) == LARGE


async def test_call_typed(world: World) -> None:
    """Types change nothing."""
    async for attempt in world.every():
        with attempt:
            assert await call_typed(world.alpha, BETA, "add", [1, 2], reply=int) == 3


@pytest.mark.parametrize("side", ["alpha", "beta"])
async def test_connection_aclose(world: World, side: str) -> None:
    """It always closes, cancelled or not; and the other side hears of it."""
    async for attempt in world.every(any_task=True):
        node, peer = (world.alpha, BETA) if side == "alpha" else (world.beta, ALPHA)
        connection = node.connections[NodeName.parse(peer)]
        with attempt:
            await connection.aclose()
        assert not connection.live
        with trio.fail_after(PATIENCE):
            await connection.wait_closed()
        with pytest.raises(trio.ClosedResourceError):
            connection.open_channel("echo")
        await world._quiet(0)


async def test_connection_wait_closed(world: World) -> None:
    """Waiting changes nothing."""
    async for attempt in world.every():
        connection = world.connection
        async with trio.open_nursery() as nursery:
            with attempt:
                if attempt.moment is not Moment.BEFORE:
                    nursery.start_soon(connection.aclose)
                await connection.wait_closed()


async def test_connection_drain(world: World) -> None:
    """It ends, gracefully or at once."""
    async for attempt in world.every(any_task=True):
        connection = world.connection
        async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:
            nursery.start_soon(close_soon, channel)
            with attempt:
                await connection.drain()
        with trio.fail_after(PATIENCE):
            await connection.wait_closed()


async def close_soon(channel: ServiceChannel) -> None:
    """Have the drain wait a little."""
    await trio.sleep(0.002)
    channel._end.close()


@pytest.mark.parametrize("side", ["alpha", "beta"])
async def test_reauthenticate(world: World, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on one of the two links, and usable; channels under way notice nothing."""
    monkeypatch.setattr(_renewal, "SPACING", 0.0)  # a peer that asks again and again would have to wait
    async for attempt in world.every(any_task=True):
        mine = world.connection
        theirs = world.beta.connections[NodeName.parse(ALPHA)]
        async with mine.open_channel("echo") as channel:
            with attempt:
                await (mine if side == "alpha" else theirs).reauthenticate()
            await channel.send(b"under way")
            assert await channel.receive() == b"under way"
        assert world.connection is mine
        for connection in mine, theirs:
            with trio.fail_after(PATIENCE):
                await core_of(connection).wait_settled()


# Channels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [True, False])
async def test_open_channel(world: World, connected: bool) -> None:
    """Entering, and leaving."""
    async for attempt in world.every(connected=connected, any_task=True):
        with attempt:
            async with world.alpha.open_channel(BETA, "echo") as channel:
                await channel.send(b"x")
                assert await channel.receive() == b"x"


@pytest.mark.parametrize("message", [b"small", LARGE])
async def test_send(world: World, message: bytes) -> None:
    """All of it or nothing arrives, and the channel stays usable."""
    async for attempt in world.every():
        async with world.connection.open_channel("late") as channel:
            with attempt:
                await channel.send(message)
            await channel.send(b"after")
            await channel.send_eof()
            got = await channel.receive()
            complete = repr([len(message), 5]).encode()
            assert got == complete or (attempt.cancelled and got == b"[5]"), attempt


async def test_send_without_credit(world: World) -> None:
    """One that waits for credit has sent nothing."""
    async for attempt in world.every(any_task=True):
        async with world.connection.open_channel("late") as channel:
            channel.send_nowait(bytes(WINDOW - 64))
            with attempt:
                await channel.send(b"blocked")
            await channel.send_eof()
            got = await channel.receive()
            assert got == (b"[4032]" if attempt.cancelled else b"[4032, 7]"), attempt


async def test_send_many(world: World) -> None:
    """Those were accepted that the generator knows of behind its `yield`, whole and in order, and no others."""
    sizes = [1, WINDOW, 3, 2 * WINDOW, 5]
    async for attempt in world.every(any_task=True):
        accepted: list[int] = []

        def messages(accepted: list[int] = accepted) -> Iterator[bytes]:
            for size in sizes:
                yield bytes(size)
                accepted.append(size)

        async with world.connection.open_channel("late") as channel:
            with attempt:
                await channel.send_many(messages())
            await channel.send_eof()
            assert await channel.receive() == repr(accepted).encode(), attempt
            assert attempt.cancelled or accepted == sizes


async def test_receive(world: World) -> None:
    """Nothing is lost, whenever it is cancelled."""
    async for attempt in world.every():
        async with world.connection.open_channel("echo") as channel:
            await channel.send(b"1")
            await channel.send(b"2")
            got: list[bytes] = []
            with attempt:
                got.append(await channel.receive())
            with trio.fail_after(PATIENCE):
                while len(got) < 2:
                    got.append(await channel.receive())
            assert got == [b"1", b"2"]


async def test_iteration(world: World) -> None:
    """Nothing is lost between messages, either."""
    async for attempt in world.every():
        async with world.connection.open_channel("echo") as channel:
            for number in range(3):
                await channel.send(b"%d" % number)
            await channel.send_eof()
            got: list[bytes] = []
            with attempt:
                async for message in channel:
                    got.append(message)  # noqa: PERF401 -- what came before a cancellation is kept
            got += [message async for message in channel]
            assert got == [b"0", b"1", b"2"]


async def test_send_eof(world: World) -> None:
    """It can be repeated."""
    async for attempt in world.every():
        async with world.connection.open_channel("echo") as channel:
            with attempt:
                await channel.send_eof()
            await channel.send_eof()
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()


async def test_channel_aclose(world: World) -> None:
    """It always closes, cleanly."""
    async for attempt in world.every():
        channel = world.connection.open_channel("echo")
        with attempt:
            await channel.aclose()
        with pytest.raises(trio.ClosedResourceError):
            channel.send_nowait(b"")


async def test_typed_channel(world: World) -> None:
    """Types change nothing."""
    async for attempt in world.every():
        with attempt:
            channel = world.connection.open_channel("echo")
            async with TypedChannel[int, int](channel, receives=int) as typed:
                await typed.send(1)
                assert await typed.receive() == 1
                await typed.send_eof()


# Nodes ----------------------------------------------------------------------------------------------------------------


def gamma_options(manager: ManagerFactory, **options: Any) -> NodeOptions:
    """A third node."""
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    return NodeOptions(cert_manager=manager(GAMMA), network=network, services=SERVICES, **options)


async def test_open_node(manager: ManagerFactory) -> None:
    """Entering and leaving: nothing outlives the block, and the manager is free again."""
    options = gamma_options(manager)
    guard = Guard()
    for attempt in cancel_at_every_checkpoint(any_task=True):
        with attempt:
            async with open_node(GAMMA, options):
                await trio.lowlevel.checkpoint()
        await check_free(options)
        await guard.check()


async def check_free(options: NodeOptions) -> None:
    """The manager is not in use: its setters work; and it publishes."""
    certs = options.cert_manager
    assert isinstance(certs, CertAuthManager)
    certs.set_client_auth(certs.client_auth)
    with trio.fail_after(PATIENCE):
        assert (await certs.contexts.receive()).generation == certs.generation


async def test_open_node_with_a_peer(world: World, manager: ManagerFactory) -> None:
    """Leaving with a connection and a channel open, from its first goodbye to its last."""
    options = gamma_options(manager)
    async for attempt in world.every(any_task=True):
        with attempt:
            async with open_node(GAMMA, options) as gamma:
                gamma.add_route(BETA, world.route_to_beta())
                async with gamma.open_channel(BETA, "echo") as channel:
                    await channel.send(b"x")
                    await channel.receive()
        await check_free(options)


async def test_serve_node(manager: ManagerFactory) -> None:
    """Starting one in a nursery."""
    options = gamma_options(manager)
    guard = Guard()
    for attempt in cancel_at_every_checkpoint(any_task=True):
        async with trio.open_nursery() as nursery:
            with attempt:
                await nursery.start(serve_node, GAMMA, options)
            nursery.cancel_scope.cancel()
        await check_free(options)
        await guard.check()


async def test_node_drain(world: World, manager: ManagerFactory) -> None:
    """With a connection; afterwards nothing is accepted, whenever it was cancelled."""
    options = gamma_options(manager)
    async for attempt in world.every(any_task=True):
        async with open_node(GAMMA, options) as gamma:
            gamma.add_route(BETA, world.route_to_beta())
            await gamma.call(BETA, "echo", b"")
            with attempt:
                await gamma.drain()
            with pytest.raises(trio.ClosedResourceError):
                await gamma.connect(BETA)
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*gamma.acceptors[0].address)


async def test_keep_connected(world: World) -> None:
    """Waiting for a connector; it goes on, with or without waiters."""
    async for attempt in world.every(connected=False, any_task=True):
        connector = world.alpha.keep_connected(BETA)
        with attempt:
            await world.alpha.wait_connected(BETA)
        with trio.fail_after(PATIENCE):
            assert (await world.alpha.wait_connected(BETA)).live
        connector.stop()


async def test_events(world: World) -> None:
    """No event is lost."""
    async for attempt in world.every():
        async with world.alpha.events() as events:
            await world.connection.aclose()
            await world.alpha.connect(BETA)
            got: list[str] = []
            with attempt:
                got.append(type(await events.receive()).__name__)
                got.append(type(await events.receive()).__name__)
            with trio.fail_after(PATIENCE):
                while len(got) < 2:
                    got.append(type(await events.receive()).__name__)
            assert got == ["ConnectionDown", "ConnectionUp"]


@pytest.mark.parametrize("clean", [True, False])
async def test_a_verb_at_every_step_of_a_nodes_end(manager: ManagerFactory, clean: bool) -> None:
    """A task that still uses it gets `ClosedResourceError`, and keeps it neither alive nor from ending."""
    options = gamma_options(manager)

    async def use(node: Node, ended: trio.Event) -> None:
        while not ended.is_set():
            with suppress(trio.ClosedResourceError):
                node.keep_connected(BETA).stop()
            await trio.lowlevel.checkpoint()

    for _ in range(20):  # Trio shuffles who goes first
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                ended = trio.Event()
                with trio.CancelScope() as scope:
                    async with open_node(GAMMA, options) as gamma:
                        nursery.start_soon(use, gamma, ended)
                        await trio.lowlevel.checkpoint()
                        if not clean:
                            scope.cancel()
                            await trio.sleep_forever()
                ended.set()


# Managers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["generation", "refused", "drained", "contexts"])
async def test_waiting_for_a_manager(
    world: World, manager: ManagerFactory, ca: CertificateAuthority, what: str
) -> None:
    """Waiting changes nothing: it publishes, and may be updated from anywhere once no task waits."""
    certs = manager(GAMMA)
    waits: dict[str, Callable[[], Awaitable[object]]] = {
        "generation": lambda: certs.wait_generation(certs.generation),
        "refused": partial(publisher_of(certs).wait_refused, 1),
        "drained": lambda: certs.drained(certs.generation),
        "contexts": certs.contexts.receive,
    }
    expired = ca.issue(GAMMA, not_after=datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(CertificateError):
        certs.update(expired)
    async for attempt in world.every():
        with attempt:
            await waits[what]()
        await trio.to_thread.run_sync(certs.update, certs.key_pair)
        assert (await certs.contexts.receive()).generation == certs.generation


class Steady:
    """A source that takes its time."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    async def read(self) -> Credentials:
        """What it has now."""
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return self.credentials

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Never."""
        await trio.sleep_forever()


async def test_follow_source(manager: ManagerFactory) -> None:
    """Starting to follow: it publishes all or nothing."""
    certs, other = manager(GAMMA), manager(GAMMA).key_pair
    source = Steady(Credentials(key_pair=other))
    first = certs.key_pair
    guard = Guard(certs)
    for attempt in cancel_at_every_checkpoint():
        certs.update(first)
        before = certs.generation
        async with trio.open_nursery() as nursery:
            with attempt:
                await nursery.start(follow_source, certs, source)
            nursery.cancel_scope.cancel()
        assert (certs.generation, certs.key_pair) in ((before, first), (before + 1, other))
        await guard.check()


async def test_reload(manager: ManagerFactory) -> None:
    """Cancelled, it has changed nothing; and the next one works."""
    certs, other = manager(GAMMA), manager(GAMMA).key_pair
    first = certs.key_pair
    source = Steady(Credentials(key_pair=first))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        await trio.testing.wait_all_tasks_blocked()
        guard = Guard(certs)
        for attempt in cancel_at_every_checkpoint():
            before = certs.generation
            source.credentials = Credentials(key_pair=other)
            with attempt:
                await follower.reload()
            assert certs.generation == (before if attempt.cancelled else before + 1)
            source.credentials = Credentials(key_pair=first)
            await follower.reload()
            assert certs.key_pair == first
            await guard.check()
        nursery.cancel_scope.cancel()


# Streams --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(certs: CertAuthManager) -> AsyncIterator[int]:
    """A TLS server that sends back what comes; its port."""

    async def handler(stream: TLSStream) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        serve = partial(serve_tls, handler, 0, host="127.0.0.1", cert_manager=certs)
        [listener] = await nursery.start(serve)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_open_tls_stream(manager: ManagerFactory) -> None:
    """At every stage of the handshake; and the whole life of a stream."""
    certs = manager("localhost")
    async with served(manager("localhost")) as port:
        await exchange(certs, port)
        await trio.testing.wait_all_tasks_blocked(0.01)
        guard = Guard(certs)
        for attempt in cancel_at_every_checkpoint(any_task=True):
            with attempt:
                await exchange(certs, port)
            await guard.check()


async def exchange(certs: CertAuthManager, port: int) -> None:
    """Open, send, receive, half-close, close."""
    async with await open_tls_stream("127.0.0.1", port, cert_manager=certs, server_name="localhost") as stream:
        await stream.send_all(LARGE[:50_000])
        received = 0
        while received < 50_000:
            received += len(await stream.receive_some())
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_serve_tls(manager: ManagerFactory) -> None:
    """Starting a server; the manager is free afterwards."""
    certs = manager("localhost")
    guard = Guard(certs)
    for attempt in cancel_at_every_checkpoint(any_task=True):
        with attempt:
            async with served(certs):
                await trio.lowlevel.checkpoint()
        certs.set_client_auth(certs.client_auth)
        await guard.check()


async def test_serve_tls_listeners(manager: ManagerFactory) -> None:
    """Serving a client on listeners that were given: they are closed, and the manager is free."""
    certs = manager("localhost")

    async def handler(stream: TLSStream) -> None:
        await stream.send_all(b"hello")

    async def life(listener: trio.SocketListener) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_tls_listeners, handler, [listener], cert_manager=certs))
            address = listener.socket.getsockname()
            async with await open_tls_stream(*address, cert_manager=certs, server_name="localhost") as stream:
                assert await stream.receive_some() == b"hello"
            await listener.aclose()

    await every_cancellation(certs, life)


async def test_serve_asgi(manager: ManagerFactory) -> None:
    """The life of a server: its application is not left behind, its listeners are closed, and the manager is free."""
    certs = manager("localhost")
    living = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal living
        living += 1
        try:
            while scope["type"] == "lifespan":
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
        finally:
            living -= 1

    async def life(listener: trio.SocketListener) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_asgi, app, listeners=[listener], cert_manager=certs, grace=0.1))
            address = listener.socket.getsockname()
            async with await open_tls_stream(*address, cert_manager=certs, server_name="localhost") as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
            await listener.aclose()

    await every_cancellation(certs, life)
    assert not living


async def every_cancellation(certs: CertAuthManager, life: Callable[[trio.SocketListener], Awaitable[None]]) -> None:
    """Cancel the life of a server that owns its listener at every checkpoint of any of its tasks."""
    guard = Guard(certs)
    for attempt in cancel_at_every_checkpoint(any_task=True):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with attempt:
            await life(listener)
        assert listener.socket.fileno() == -1
        certs.set_client_auth(certs.client_auth)
        await guard.check()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_wrapping_a_stream(manager: ManagerFactory, side: str) -> None:
    """The stream that was given is closed, with what is wrapped around it or at once."""
    certs = manager("localhost")
    client = partial(wrap_client_stream, server_name="localhost", cert_manager=certs)
    server = partial(wrap_server_stream, cert_manager=certs)
    ours, theirs = (client, server) if side == "client" else (server, client)

    async def answer(stream: trio.abc.Stream) -> None:
        with suppress(HandshakeError, trio.BrokenResourceError):
            async with await theirs(stream) as secured:
                await secured.send_all(b"hello")

    guard = Guard(certs)
    for attempt in cancel_at_every_checkpoint():
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, far)
            with attempt:
                async with await ours(near) as stream:
                    assert await stream.receive_some() == b"hello"
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"x")
        certs.set_client_auth(certs.client_auth)
        await guard.check()


@pytest.mark.parametrize("operation", ["send_all", "receive_some", "send_eof", "aclose"])
async def test_tls_stream(manager: ManagerFactory, operation: str) -> None:
    """Nothing that was received is lost; a torn send is said; closing always closes."""
    certs = manager("localhost")
    async with served(manager("localhost")) as port:
        open_one = partial(open_tls_stream, "127.0.0.1", port, cert_manager=certs, server_name="localhost")
        await exchange(certs, port)
        await trio.testing.wait_all_tasks_blocked(0.01)
        guard = Guard(certs)
        for attempt in cancel_at_every_checkpoint():
            async with await open_one() as stream:
                await stream.send_all(b"first")
                operations: dict[str, Callable[[], Awaitable[object]]] = {
                    "send_all": partial(stream.send_all, b"second"),
                    "receive_some": partial(stream.receive_some, 5),
                    "send_eof": stream.send_eof,
                    "aclose": stream.aclose,
                }
                got: object = None
                with attempt:
                    got = await operations[operation]()
                if operation == "aclose":
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.receive_some()
                elif got is None:
                    received = b""
                    with trio.fail_after(PATIENCE):
                        while len(received) < 5:
                            received += await stream.receive_some()
                    assert received.startswith(b"first")
                else:
                    assert got == b"first"
            await guard.check()


async def test_local_registry(registered: Registered, tmp_path: Path) -> None:
    """A look-up in a thread that no task waits for any more leaves nothing behind."""
    registry = LocalRegistry(tmp_path / "registry")
    name = NodeName.parse(GAMMA)
    async with registered(registry, name, [("127.0.0.1", 1)]):
        await registry.resolve(name)
        guard = Guard()
        for attempt in cancel_at_every_checkpoint():
            with attempt:
                assert await registry.resolve(name)
            await guard.check()


# The driver -----------------------------------------------------------------------------------------------------------


async def test_attempts_are_cancelled_one_checkpoint_later_each() -> None:
    """Before it began; then at each checkpoint, waiting and waking; the last of each goes through."""
    reached: list[tuple[str, int, bool]] = []
    for attempt in cancel_at_every_checkpoint():
        steps = 0
        with attempt:
            for _ in range(2):
                await trio.lowlevel.checkpoint()
                steps += 1
        reached.append((attempt.moment.value, steps, attempt.cancelled))
    assert reached == [
        ("before", 0, True),
        *[("waiting", 0, True), ("waiting", 1, True), ("waiting", 2, False)],
        *[("waking", 0, True), ("waking", 1, True), ("waking", 2, False)],
    ]


async def test_waking_loses_what_a_careless_operation_has_received() -> None:
    """The moment that tests rarely meet: a function that takes something and then waits again."""
    lost: list[Attempt] = []
    for attempt in cancel_at_every_checkpoint():
        send, receive = trio.open_memory_channel[int](1)
        with send, receive:
            got: list[int] = []
            with attempt:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send.send, 1)
                    value = await receive.receive()
                    await trio.lowlevel.checkpoint()
                    got.append(value)
            with suppress(trio.WouldBlock):
                got.append(receive.receive_nowait())
            if not got and attempt.moment is not Moment.BEFORE:
                lost.append(attempt)
    assert any(attempt.moment is Moment.WAKING for attempt in lost)


async def test_an_attempt_says_where_it_failed() -> None:
    """What is raised has a note."""

    async def fail_when_cancelled(attempt: Attempt) -> None:
        with attempt:
            try:
                await trio.lowlevel.checkpoint()
            finally:
                if attempt.moment is Moment.WAITING:
                    raise ValueError("found")

    async def try_everything() -> None:
        for attempt in cancel_at_every_checkpoint():
            await fail_when_cancelled(attempt)

    with pytest.raises(ValueError, match="found") as raised:
        await try_everything()
    assert raised.value.__notes__ == ["<Attempt cancelled at checkpoint 1, waiting>"]


async def test_an_attempt_has_to_be_used_once() -> None:
    """Otherwise the loop would have no end, or count wrongly."""
    attempts = cancel_at_every_checkpoint()
    attempt = next(attempts)
    with pytest.raises(RuntimeError, match="was not entered"):
        next(attempts)
    with attempt:
        pass
    with pytest.raises(RuntimeError, match="used once"), attempt:
        pass


async def test_an_operation_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than tried for ever."""
    monkeypatch.setattr("trionode.testing._cancelling._MOST_CHECKPOINTS", 20)

    async def try_everything() -> None:
        for attempt in cancel_at_every_checkpoint():
            with attempt:
                while True:
                    await trio.lowlevel.checkpoint()

    with pytest.raises(RuntimeError, match="no end"):
        await try_everything()


async def test_the_guard_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it looks for can be found: a descriptor, a task."""
    monkeypatch.setitem(globals(), "PATIENCE", 0.01)
    guard = Guard()
    one, other = socket.socketpair()
    with one, other, pytest.raises(AssertionError, match="descriptors"):
        await guard.check()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        with pytest.raises(AssertionError, match="descriptors"):
            await guard.check()
        nursery.cancel_scope.cancel()
    await guard.check()
