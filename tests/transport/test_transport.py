"""The seam below a node: any transport that listens, connects and carries bytes will do; TCP is the default."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    HandshakeError,
    HandshakeTimeoutError,
    NetworkOptions,
    Route,
    Stage,
    Transport,
)
from trionode._transport.interfaces import accept_forever
from trionode._transport.tcp import TCP
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import NodeFactory

    from trionode import Listener, ServiceChannel


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


class Door:
    """The least that a listener is: a queue of streams."""

    def __init__(self, port: int) -> None:
        self.address = ("somewhere", port)
        self.entering, self._queue = trio.open_memory_channel[trio.abc.Stream](0)

    async def accept(self) -> trio.abc.Stream:
        """The next connection."""
        return await self._queue.receive()

    def close(self) -> None:
        """No more."""
        self._queue.close()


class Doors:
    """The least that a transport is: streams that know no address, cannot be half-closed, and come in by a queue."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.doors: dict[int, Door] = {}

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> Sequence[Listener]:
        """Open one door."""
        self.asked.append((host, port, port_range, only_local))
        self.doors[port] = Door(port)
        return [self.doors[port]]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Hand one end in."""
        self.asked.append((host, port))
        if port not in self.doors:
            raise OSError("there is no such door")
        near, far = trio.testing.lockstep_stream_pair()
        try:
            await self.doors[port].entering.send(trio.StapledStream(far.send_stream, far.receive_stream))
        except trio.BrokenResourceError:
            raise OSError("the door is shut") from None
        return trio.StapledStream(near.send_stream, near.receive_stream)


async def test_nodes_talk_over_whatever_carries_bytes(node: NodeFactory) -> None:
    """TLS, hello, calls and goodbye need nothing of a transport but its protocol; what options say reaches it."""
    doors = Doors()
    acceptors = [AcceptorOptions(host="there.example", port=7, port_range=3), AcceptorOptions(host="*", port=8)]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=acceptors, services={"echo": echo}, transport=doors) as beta:
            assert [acceptor.address for acceptor in beta.acceptors] == [("somewhere", 7), ("somewhere", 8)]
            async with node("alpha@localhost", acceptors=[AcceptorOptions(port=9)], transport=doors) as alpha:
                for port in 7, 8:
                    connection = await alpha.connect("beta@localhost", Route(host="[::7]", port=port))
                    assert connection.peer.verified
                    assert connection.peer.address is None
                    assert await connection.call("echo", b"x" * 100_000) == b"x" * 100_000
                    await connection.aclose()
    assert doors.asked == [
        ("there.example", 7, 3, False),
        (None, 8, 1, False),
        ("localhost", 9, 1, True),
        ("[::7]", 7),
        ("[::7]", 8),
    ]


async def test_what_a_transport_cannot_reach_is_a_handshake_error(node: NodeFactory) -> None:
    """Its `OSError` comes out as the connect stage of a `HandshakeError`, and closed listeners let nobody in."""
    doors = Doors()
    with trio.fail_after(10):
        async with node("alpha@localhost", acceptors=[AcceptorOptions(port=9)], transport=doors) as alpha:
            async with node("beta@localhost", acceptors=[AcceptorOptions(port=7)], transport=doors):
                pass
            for port, words in (6, "no such door"), (7, "the door is shut"):
                with pytest.raises(HandshakeError, match=words) as caught:
                    await alpha.connect("beta@localhost", Route(port=port))
                assert caught.value.stage is Stage.CONNECT
                assert caught.value.address == ("localhost", port)
                assert isinstance(caught.value.__cause__, OSError)


async def test_connect_timeout_bounds_any_transport(node: NodeFactory, autojump_clock: trio.testing.MockClock) -> None:
    """A transport may wait for ever: the node's deadline cancels it."""

    class Silent(Doors):
        async def connect(self, host: str, port: int) -> trio.abc.Stream:
            await trio.sleep_forever()
            raise AssertionError

    async with node("alpha@localhost", acceptors=[AcceptorOptions(port=9)], transport=Silent()) as alpha:
        began = trio.current_time()
        with pytest.raises(HandshakeTimeoutError, match="connect_timeout"):
            await alpha.connect("beta@localhost")
        assert trio.current_time() - began == pytest.approx(10)


async def test_tcp_is_a_transport_like_any_other(resolve: Callable[..., None]) -> None:
    """What nodes use by default keeps the protocol: one port for all listeners, and streams that can half-close."""
    resolve("localhost", "127.0.0.1", "::1")
    assert isinstance(TCP, Transport)
    with trio.fail_after(10):
        listeners = await TCP.listen("localhost", 0, port_range=1, only_local=True)
        [port] = {listener.address[1] for listener in listeners}
        async with await TCP.connect("localhost", port) as stream:
            assert isinstance(stream, trio.abc.HalfCloseableStream)
        for listener in listeners:
            for _ in range(2):
                listener.close()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
        with pytest.raises(OSError, match="connect"):
            await TCP.connect("localhost", port)
        with pytest.raises(socket.gaierror):
            await TCP.connect("nowhere.example", port)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_an_address_is_connected_to_as_it_is(address: str) -> None:
    """Of either family."""
    with trio.fail_after(10):
        [listener] = await TCP.listen(address, 0, port_range=1, only_local=False)
        host, port = listener.address
        async with await TCP.connect(address, port) as stream, await listener.accept():
            assert stream.socket.getpeername()[:2] == (host, port)
        listener.close()
        with pytest.raises(OSError, match="refused"):
            await TCP.connect(address, port)


async def test_a_cancelled_connect_to_an_address_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose connect nobody answers is closed when that is given up."""
    made: list[trio.socket.SocketType] = []
    make = trio.socket.socket

    class Silent:
        """As much of a socket as that needs."""

        def __init__(self, *args: Any) -> None:
            made.append(make(*args))

        def fileno(self) -> int:
            """Its descriptor."""
            return made[-1].fileno()

        async def connect(self, _: object) -> None:
            """Nobody answers."""
            await trio.sleep_forever()

        def close(self) -> None:
            """Close it."""
            made[-1].close()

    monkeypatch.setattr(trio.socket, "socket", Silent)
    with trio.move_on_after(0.01):
        await TCP.connect("127.0.0.1", 1)
    assert [each.fileno() for each in made] == [-1]


@pytest.mark.parametrize("transport", ["tcp", 7, object()])
def test_what_is_no_transport_is_refused_in_the_options(transport: Any) -> None:
    """What lacks the methods fails where it is given, not at the first dial."""
    with pytest.raises(TypeError, match="listen and connect"):
        NetworkOptions(transport=transport)


async def test_ctrl_c_leaves_no_task_half_begun() -> None:
    """What takes a connection runs as a whole: a task that is being started is started."""
    network, protected = MemoryNetwork(), list[bool]()
    [listener] = await network.host("b.example").listen(None, 7, port_range=1, only_local=False)

    def take(stream: trio.abc.Stream) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        listener.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, take, "b.example port 7")
        async with await network.host("a.example").connect("b.example", 7):
            pass
    assert protected == [True]
