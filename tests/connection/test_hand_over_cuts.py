"""Hand-overs that are cut at every byte and cancelled at every checkpoint: the connection goes on, or ends; never both.

Both ends count what they send; whatever is received has to be the next message, whatever happens underneath.
"""

from __future__ import annotations

import gc
import socket
import warnings
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import Connection, HandshakeError, Route
from trionode._connection.connection import core_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import ManagerFactory, NodeFactory, PairFactory

    from trionode import Node, ServiceChannel

BETA = "beta@localhost"


async def counted(channel: ServiceChannel) -> None:
    """Answer each number with the same, and check that it is the next."""
    expected = 0
    async for message in channel:
        assert int(message) == expected, "lost, doubled or reordered"
        expected += 1
        await channel.send(message)


class Proxy:
    """Forwards to a node, and cuts a TCP connection after so many bytes in one direction."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.port = 0
        #: For each further connection: bytes from the dialer, or to it, after which it is cut.
        self.cut: dict[str, int] = {}
        self.passed: list[dict[str, int]] = []
        self._limits: list[dict[str, int]] = []

    def cut_first(self, way: str, size: int) -> None:
        """Cut the oldest connection that is there, after so many more bytes."""
        self._limits[0][way] = self.passed[0][way] + size

    def forget(self) -> None:
        """The next connection is a first one."""
        self.passed.clear()
        self._limits.clear()

    async def start(self, nursery: trio.Nursery) -> None:
        """Serve, in a nursery."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, self._forward, [listener])

    async def _forward(self, dialer: trio.SocketStream) -> None:
        passed = {"from": 0, "to": 0}
        limits = dict(self.cut) if self.passed else {}
        self.passed.append(passed)
        self._limits.append(limits)
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as node, trio.open_nursery() as nursery:

            async def pump(way: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
                data = b"something"
                while data:
                    limit = limits.get(way)
                    if limit is not None and passed[way] >= limit:
                        nursery.cancel_scope.cancel()
                        await trio.lowlevel.checkpoint()
                    try:
                        # In small pieces: a limit that is set meanwhile is heeded.
                        data = await source.receive_some(64 if limit is None else min(64, limit - passed[way]))
                        passed[way] += len(data)
                        await (sink.send_all(data) if data else sink.send_eof())
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        nursery.cancel_scope.cancel()
                        await trio.lowlevel.checkpoint()

            nursery.start_soon(pump, "from", dialer, node)
            nursery.start_soon(pump, "to", node, dialer)


class Bench:
    """Two nodes with a proxy between them, a connection, and a channel whose messages are counted."""

    def __init__(self, alpha: Node, beta: Node, proxy: Proxy, nursery: trio.Nursery) -> None:
        self.alpha, self.beta, self.proxy, self.nursery = alpha, beta, proxy, nursery
        self.ended = self.went_on = self.moved = 0

    async def connect(self) -> Connection:
        """A fresh connection."""
        self.proxy.forget()
        connection = await self.alpha.connect(BETA, Route(host="127.0.0.1", port=self.proxy.port))
        await connection.call("echo", b"registered on both sides")
        return connection

    async def check(self, connection: Connection, hand_over: Callable[[], Any]) -> Connection:
        """Hand over with a channel that is busy both ways; then see what became of it."""
        theirs = next(iter(self.beta.connections.values()))
        channel = connection.open_channel("counted")
        sent, received = 0, 0
        scope = trio.CancelScope()

        async def send() -> None:
            nonlocal sent
            with scope, may_end(connection):
                while True:
                    await channel.send(b"%d" % sent)
                    sent += 1
                    while sent - received > 20:
                        await trio.lowlevel.checkpoint()

        async def receive() -> None:
            nonlocal received
            with may_end(connection):
                async for message in channel:
                    assert int(message) == received, "lost, doubled or reordered"
                    received += 1

        moves = connection.statistics().hand_overs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await trio.lowlevel.checkpoint()
            with trio.fail_after(10):
                await hand_over()
            scope.cancel()
            if not core_of(connection).ended:
                # It goes on, on one link or the other: everything that was sent comes back.
                await trio.testing.wait_all_tasks_blocked(0.002)
            if not core_of(connection).ended:
                with may_end(connection):
                    await channel.send_eof()
        if core_of(connection).ended:
            self.ended += 1
            with trio.fail_after(10):
                await connection.wait_closed()
                await theirs.wait_closed()
            return await self.connect()
        assert received == sent, "nothing that was accepted is lost"
        assert await connection.call("echo", b"still there") == b"still there"
        assert theirs.live
        if connection.statistics().hand_overs > moves:
            self.moved += 1
        else:
            self.went_on += 1
        return connection


@contextmanager
def may_end(connection: Connection) -> Iterator[None]:
    """Swallows the end of a channel, where that is the end of the connection."""
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        assert core_of(connection).ended


async def echo(channel: ServiceChannel) -> None:
    """Send everything back."""
    async for message in channel:
        await channel.send(message)


@pytest.fixture
def bench(node: NodeFactory) -> Callable[..., Any]:
    """Opens a bench."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        async with (
            node(BETA, services={"counted": counted, "echo": echo}, propagate_service_errors=True) as beta,
            node("alpha@localhost") as alpha,
            trio.open_nursery() as nursery,
        ):
            proxy = Proxy(beta.acceptors[0].address[1])
            await proxy.start(nursery)
            yield Bench(alpha, beta, proxy, nursery)
            with trio.move_on_after(5):
                for connection in [*alpha.connections.values()]:
                    await connection.aclose()
            assert beta.acceptors[0].statistics().handshaking == 0, "nothing waits for a join any more"
            nursery.cancel_scope.cancel()

    return make


def marks(total: int, count: int) -> list[int]:
    """Where to cut: both ends to the byte, and evenly between."""
    near = [*range(3), *(total - byte for byte in range(-2, 60, 4))]
    return sorted({*near, *range(0, total, max(1, total // count))} - {-1, -2})


@pytest.mark.parametrize("way", ["from", "to"])
async def test_the_new_link_is_cut_after_every_so_many_bytes(bench: Callable[..., Any], way: str) -> None:
    """Before the commit the connection goes on as if nothing had been; after it, it ends, on both sides."""
    async with bench() as b:
        connection = await b.connect()
        await connection.reauthenticate()
        await trio.testing.wait_all_tasks_blocked(0.01)
        total = b.proxy.passed[1][way]

        async def hand_over() -> None:
            try:
                await connection.reauthenticate()
            except (HandshakeError, trio.BrokenResourceError) as exc:
                assert isinstance(exc, HandshakeError) or core_of(connection).ended

        for size in marks(total, 30):
            b.proxy.cut = {way: size}
            connection = await b.check(connection, hand_over)
        assert b.went_on > 10
        assert b.ended > 0
        b.proxy.cut = {}
        connection = await b.connect() if core_of(connection).ended else connection
        await b.check(connection, connection.reauthenticate)
        assert b.moved > 0


@pytest.mark.parametrize("way", ["from", "to"])
async def test_the_old_link_is_cut_meanwhile(bench: Callable[..., Any], way: str) -> None:
    """Whenever that is before it was left, the connection ends, on both sides; nothing goes on with a loss."""
    async with bench() as b:
        for size in [*range(0, 400, 40), *range(400, 4000, 300)]:
            connection = await b.connect()

            async def hand_over(connection: Connection = connection, size: int = size) -> None:
                b.proxy.cut_first(way, size)
                try:
                    await connection.reauthenticate()
                except (HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError):
                    with trio.fail_after(5):
                        await connection.wait_closed()

            connection = await b.check(connection, hand_over)
            await connection.aclose()
        assert b.ended > 5


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task is about to take its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._task = trio.lowlevel.current_task()
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count."""
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def cancelled_at_each_step(function: Callable[[], Any], after: Callable[[], Any]) -> int:
    """Call it again and again, cancelled one step later each time, until it comes to its end; gives the steps."""
    for step in range(1, 1000):
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await function()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await after()
        if not scope.cancelled_caught:
            return step
    raise AssertionError("it never came to its end")


def open_sockets() -> int:
    """How many sockets this process has open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(isinstance(each, socket.socket) and each.fileno() >= 0 for each in gc.get_objects())


@pytest.mark.parametrize("by", ["alpha", "beta"])
async def test_cancelled_at_every_checkpoint(open_pair: PairFactory, manager: ManagerFactory, by: str) -> None:
    """Whoever wants it and wherever he gives up: the connection is as good as before, and nothing is left behind."""
    certs = manager("alpha@localhost")
    async with open_pair(alpha={"certs": certs}, beta={"services": {"echo": echo}}) as pair:
        connection = await pair.alpha.connect(BETA)
        await connection.call("echo", b"")
        wanted = connection if by == "alpha" else pair.beta.connections["alpha@localhost"]
        await trio.testing.wait_all_tasks_blocked(0.005)
        sockets, tasks = open_sockets(), trio.lowlevel.current_statistics().tasks_living

        async def check() -> None:
            assert connection.live
            assert await connection.call("echo", b"there") == b"there"
            await core_of(connection).wait_settled()
            await trio.testing.wait_all_tasks_blocked(0.002)
            assert pair.beta.acceptors[0].statistics().handshaking == 0
            assert trio.lowlevel.current_statistics().tasks_living <= tasks
            assert certs.update(certs.key_pair) == certs.generation

        async with connection.open_channel("echo") as channel:
            tasks += 1  # its service
            steps = await cancelled_at_each_step(wanted.reauthenticate, check)
            await channel.send(b"the same all the time")
            assert await channel.receive() == b"the same all the time"
        assert steps > (6 if by == "alpha" else 2)
        assert open_sockets() <= sockets
        await connection.reauthenticate()
        assert connection.generation == certs.generation


async def test_the_node_is_cancelled_at_every_checkpoint(open_pair: PairFactory) -> None:
    """A node that is cancelled in the middle of a hand-over closes both links, whichever it is on."""
    both = 0
    for step in range(1, 30):
        with trio.fail_after(5), trio.CancelScope() as scope:
            async with open_pair(beta={"services": {"echo": echo}}) as pair:
                connection = await pair.alpha.connect(BETA)
                await connection.call("echo", b"")
                instrument = CancelAt(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await connection.reauthenticate()
                    scope.cancel()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
        assert core_of(connection).ended
        links = core_of(connection).hand_over.links
        both += len(links) == 2
        for link in links:
            transport = link.stream.transport_stream
            assert isinstance(transport, trio.SocketStream)
            assert transport.socket.fileno() == -1, "it is closed"
    assert both, "some were cut between commit and settled"
