"""The network in memory: its streams are TCP's, its time is Trio's, and its faults happen where they were asked for."""

from __future__ import annotations

import errno
import math
import random
import socket
import struct
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import check_half_closeable_stream, check_two_way_stream

from trionode import ListenError, Transport
from trionode.testing import (
    Faults,
    MemoryConnection,
    MemoryNetwork,
    Script,
    trio_clock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Stream = trio.abc.HalfCloseableStream
    Ends = tuple[Stream, Stream]

#: What a test may take, on the clock that it uses. Seconds.
PATIENCE = 1000


async def pair(network: MemoryNetwork, source: str = "localhost", target: str = "localhost") -> Ends:
    """Both ends of a new connection, the dialer's first."""
    host = network.host(target)
    [listener] = await host.listen(host.address, 0)
    try:
        near = await network.host(source).connect(target, listener.address[1])
        far = await listener.accept()
    finally:
        listener.close()
    assert isinstance(far, trio.abc.HalfCloseableStream)
    return near, far


async def read(stream: trio.abc.ReceiveStream) -> tuple[bytes, str]:
    """Everything that can be received, and how it ends: `eof`, `reset` or, after a long time, `silence`."""
    got = b""
    with trio.move_on_after(100):
        try:
            while data := await stream.receive_some():
                got += data
        except trio.BrokenResourceError as exc:
            assert isinstance(exc.__cause__, OSError)
            assert exc.__cause__.errno == errno.ECONNRESET
            return got, "reset"
        return got, "eof"
    return got, "silence"


async def sending_breaks(stream: trio.abc.SendStream) -> bool:
    """Whether a send fails, in a moment or two."""
    for _ in range(2):
        await trio.sleep(10)
        with trio.move_on_after(10):
            try:
                await stream.send_all(b"?")
            except trio.BrokenResourceError:
                return True
    return False


# Streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.0, 0.1], ids=["at once", "latency"])
@pytest.mark.parametrize("reset_discards", [False, True], ids=["linux", "discards"])
@pytest.mark.parametrize("check", [check_two_way_stream, check_half_closeable_stream])
async def test_streams_pass_the_conformance_checks_of_trio(
    check: Callable[..., Awaitable[None]], latency: float, reset_discards: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Streams behave as `trio.abc.HalfCloseableStream` says, with and without latency, also where they are clogged."""
    network = MemoryNetwork(latency=latency, jitter=latency, buffer=1000, reset_discards=reset_discards)

    async def clogged() -> Ends:
        near, far = await pair(network)
        for end in near, far:
            with trio.move_on_after(100):
                await end.send_all(bytes(2000))
        return near, far

    with trio.fail_after(PATIENCE * PATIENCE):
        await check(partial(pair, network), clogged)
    assert network.open_streams == []


async def test_bytes_arrive_whole_and_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Megabytes in odd pieces, both ways at once, over a jittery way with a small buffer: the same bytes come out."""
    network = MemoryNetwork(7, latency=0.01, jitter=0.05, buffer=5000)
    rng = random.Random(7)
    sent = [rng.randbytes(300_000), rng.randbytes(200_000)]
    got: dict[int, bytes] = {}

    async def send(end: Stream, data: bytes) -> None:
        while data:
            size = rng.randrange(1, 20_000)
            await end.send_all(memoryview(data)[:size])
            data = data[size:]
        await end.send_eof()

    async def receive(number: int, end: Stream) -> None:
        got[number] = b""
        while data := await end.receive_some(rng.randrange(1, 9000)):
            got[number] += data

    near, far = await pair(network)
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(send, near, sent[0])
        nursery.start_soon(send, far, sent[1])
        nursery.start_soon(receive, 0, far)
        nursery.start_soon(receive, 1, near)
    assert got == dict(enumerate(sent))


async def test_the_buffer_holds_a_sender_up(autojump_clock: trio.testing.MockClock) -> None:
    """A sender gets as far ahead of a receiver as the buffer is large, and no byte further."""
    near, far = await pair(MemoryNetwork(buffer=100))
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(250))
        for left in 250, 150, 50:
            await trio.testing.wait_all_tasks_blocked()
            assert len(await far.receive_some()) == min(left, 100)


async def test_an_item_of_a_view_may_be_larger_than_a_byte(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes are what counts, whatever the items of a memoryview are."""
    near, far = await pair(MemoryNetwork())
    async with near, far:
        await near.send_all(memoryview(struct.pack("3I", 1, 2, 3)).cast("I"))
        assert await far.receive_some() == struct.pack("3I", 1, 2, 3)


async def test_everybody_sees_both_addresses(autojump_clock: trio.testing.MockClock) -> None:
    """Each end knows both; the dialer's port is one that nobody chose."""
    network = MemoryNetwork()
    a, b = network.host("10.0.0.1"), network.host("10.0.0.2")
    [listener] = await b.listen("10.0.0.2", 15000)
    near: Any = await a.connect("10.0.0.2", 15000)
    far: Any = await listener.accept()
    assert near.peer_address == far.address == listener.address == ("10.0.0.2", 15000)
    assert far.peer_address == near.address
    assert near.address[0] == "10.0.0.1"
    assert near.address[1] >= 49152
    assert "10.0.0.1" in repr(near)
    listener.close()
    again: Any = await pair(network, "10.0.0.1", "10.0.0.2")
    assert again[0].address[1] > near.address[1]


# As TCP does it: each of these runs over a socket as well -------------------------------------------------------------


async def memory_pair() -> Ends:
    """Ends in memory."""
    return await pair(MemoryNetwork())


async def socket_pair() -> Ends:
    """Ends of a TCP connection over loopback."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        return near, await listener.accept()


@pytest.fixture(params=[memory_pair, socket_pair], ids=["memory", "tcp"])
async def ends(request: pytest.FixtureRequest, autojump_clock: trio.testing.MockClock) -> AsyncIterator[Ends]:
    """Two ends; over sockets without jumps, for what is under way in the kernel is no task that a clock waits for."""
    if request.param is socket_pair:
        autojump_clock.autojump_threshold = math.inf
        autojump_clock.rate = 100.0
    near, far = await request.param()
    yield near, far
    await near.aclose()
    await far.aclose()


def abort(stream: Any) -> None:
    """Close with a reset."""
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
    else:
        stream.close(abort=True)


async def test_closing_lets_everything_arrive(ends: Ends, autojump_clock: trio.testing.MockClock) -> None:
    """What was sent before a close is received, then the end."""
    near, far = ends
    await near.send_all(b"last words")
    await near.aclose()
    assert await read(far) == (b"last words", "eof")


async def test_what_arrives_at_a_closed_end_is_answered_by_a_reset(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    """The first send to a peer that has closed works, later ones fail; what was received stays an end."""
    near, far = ends
    await far.aclose()
    assert await read(near) == (b"", "eof")
    await near.send_all(b"anybody?")
    assert await sending_breaks(near)
    assert await read(near) == (b"", "eof")


async def test_closing_with_unread_bytes_resets(ends: Ends, autojump_clock: trio.testing.MockClock) -> None:
    """Who closes without having read everything resets: the peer gets what was sent to it, then a reset."""
    near, far = ends
    await near.send_all(b"never read")
    await far.send_all(b"goodbye")
    await trio.sleep(10)
    await far.aclose()
    await trio.sleep(10)
    assert await read(near) == (b"goodbye", "reset")
    assert await sending_breaks(near)


async def test_what_had_arrived_before_a_reset_can_be_received(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    """A reset takes nothing with it that was there already."""
    near, far = ends
    await near.send_all(b"just in time")
    await trio.sleep(10)
    abort(near)
    await trio.sleep(10)
    assert await read(far) == (b"just in time", "reset")
    assert await sending_breaks(far)


async def test_half_closed_connection_goes_on_the_other_way(ends: Ends, autojump_clock: trio.testing.MockClock) -> None:
    """After `send_eof` on one side the other may still send."""
    near, far = ends
    await near.send_eof()
    await near.send_eof()
    assert await read(far) == (b"", "eof")
    await far.send_all(b"still here")
    await far.send_eof()
    assert await read(near) == (b"still here", "eof")
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"more")


async def test_closing_a_listener_resets_who_waits_to_be_accepted(autojump_clock: trio.testing.MockClock) -> None:
    """Memory and TCP agree on what becomes of the queue of a listener that closes, and on who comes later."""
    [tcp] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    network = MemoryNetwork()
    [memory] = await network.listen("127.0.0.1", 0)
    for waiting, close, connect in (
        (await trio.open_tcp_stream(*tcp.socket.getsockname()), tcp.socket.close, None),
        (await network.connect(*memory.address), memory.close, partial(network.connect, *memory.address)),
    ):
        close()
        assert (await read(waiting))[1] == "reset"
        await waiting.aclose()
        if connect is not None:
            with pytest.raises(ConnectionRefusedError):
                await connect()


# Discarding, and what only memory can do


async def test_a_reset_may_take_along_what_was_not_received(autojump_clock: trio.testing.MockClock) -> None:
    """With `reset_discards` a reset is the end of what had arrived, as on some systems."""
    near, far = await pair(MemoryNetwork(reset_discards=True))
    await near.send_all(b"too late")
    abort(near)
    assert await read(far) == (b"", "reset")
    await far.aclose()


# Hosts, names and ports ---------------------------------------------------------------------------------------------


async def test_hosts_are_found_by_address_and_by_name(autojump_clock: trio.testing.MockClock) -> None:
    """A host is one object under all of its names, and addresses are given out where none was chosen."""
    network = MemoryNetwork()
    a = network.host("A.example")
    assert a is network.host("a.example.") is network.host(a.address)
    assert (a.address, sorted(a.names)) == ("10.0.0.1", ["10.0.0.1", "a.example"])
    taken = network.host("10.0.0.2")
    b = network.host("b.example")
    assert b.address == "10.0.0.3"
    assert network.host("10.0.0.2", "c.example") is taken is network.host("c.example")
    six = network.host("fd00::1", "six.example")
    assert six.address == "fd00::1"
    assert six is network.host("[fd00::1]")
    for names in ((), ("a.example", "b.example"), ("10.0.0.1", "10.0.0.2"), ("localhost", "a.example"), ("no host",)):
        with pytest.raises(ValueError, match="host"):
            network.host(*names)
    assert "a.example" in repr(a)
    assert "4 hosts" in repr(network)


async def test_hosts_are_transports(autojump_clock: trio.testing.MockClock) -> None:
    """Both a host and the network itself are what `NetworkOptions.transport` takes."""
    network = MemoryNetwork()
    assert isinstance(network, Transport)
    assert isinstance(network.host("a.example"), Transport)


@pytest.mark.parametrize("address", ["10.0.0.2", "b.example", "[fd00::2]"])
async def test_connecting_by_address_and_by_name(address: str, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever is listened on is reached by the same, or on all interfaces by anything."""
    network = MemoryNetwork()
    host = network.host("fd00::2" if ":" in address else "10.0.0.2", "b.example")
    for bound in address, None, "0.0.0.0", "[::]":  # noqa: S104
        [listener] = await host.listen(bound, 15000)
        async with await network.host("a.example").connect(address, 15000), await listener.accept():
            pass
        async with await host.connect(address, 15000), await listener.accept():
            pass
        listener.close()
    assert not network.open_streams
    assert not network.listening


async def test_localhost_is_every_host_itself(autojump_clock: trio.testing.MockClock) -> None:
    """What listens on loopback is reached from that host only, and `localhost` never leaves a host."""
    network = MemoryNetwork()
    a, b = network.host("a.example"), network.host("b.example")
    [listener] = await b.listen("localhost", 15000)
    assert listener.address == ("127.0.0.1", 15000)
    for name in "localhost", "127.0.0.1", "127.8.9.1", "[::1]":
        near: Any = await b.connect(name, 15000)
        assert near.address[0] == "127.0.0.1"
        await near.aclose()
        for other in a, network:
            with pytest.raises(ConnectionRefusedError):
                await other.connect(name, 15000)
    with pytest.raises(ConnectionRefusedError):
        await a.connect("b.example", 15000)


async def test_what_cannot_be_reached_says_why(autojump_clock: trio.testing.MockClock) -> None:
    """No such name, no such address, nobody there: each is the `OSError` that the system would raise."""
    network = MemoryNetwork(latency=0.5)
    network.host("b.example")
    with pytest.raises(socket.gaierror):
        await network.connect("nowhere.example", 1)
    with pytest.raises(OSError, match="No route") as caught:
        await network.connect("192.0.2.1", 1)
    assert caught.value.errno == errno.EHOSTUNREACH
    began = trio.current_time()
    with pytest.raises(ConnectionRefusedError) as refused:
        await network.connect("b.example", 1)
    assert refused.value.errno == errno.ECONNREFUSED
    assert trio.current_time() - began == pytest.approx(1.0)  # there and back


async def test_ports_are_taken_and_free(autojump_clock: trio.testing.MockClock) -> None:
    """A port of a host is taken by one listener per address; a range is searched, 0 draws, a closed one is free."""
    network = MemoryNetwork()
    host = network.host("10.0.0.1", "a.example")
    [first] = await host.listen("a.example", 7)
    for bound in "10.0.0.1", None:
        with pytest.raises(ListenError, match="in use") as caught:
            await host.listen(bound, 7)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EADDRINUSE
        assert caught.value.tried == ((bound or "*", 7),)
    [second] = await host.listen("a.example", 7, port_range=3)
    assert second.address == ("10.0.0.1", 8)
    [loopback] = await host.listen("localhost", 7)
    [drawn] = await host.listen(None, 0)
    [another] = await host.listen(None, 0)
    assert drawn.address[1] != another.address[1]
    assert len(network.listening) == 5
    for listener in first, second, loopback, drawn, another:
        listener.close()
        listener.close()
    assert network.listening == []
    [again] = await host.listen(None, 7)
    assert again.address == ("0.0.0.0", 7)  # noqa: S104


async def test_a_drawn_port_is_never_one_that_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    """Where the free ports begin anew, those that are in use are left out."""
    network = MemoryNetwork()
    host = network.host("a.example")
    await host.listen(None, 49152)
    host._ports._next = 65535
    assert [(await host.listen(None, 0))[0].address[1] for _ in range(2)] == [65535, 49153]


@pytest.mark.parametrize("only_local", [False, True])
async def test_listening_on_another_machine_fails(only_local: bool, autojump_clock: trio.testing.MockClock) -> None:
    """An address that is another host's cannot be listened on; the error says whose transport is wanted."""
    network = MemoryNetwork()
    network.host("a.example")
    for host in network, network.host("b.example"):
        with pytest.raises(ListenError, match=r"network\.host\('a\.example'\)"):
            await host.listen("a.example", 15000, only_local=only_local)


async def test_a_closed_listener_wakes_who_accepts(autojump_clock: trio.testing.MockClock) -> None:
    """Tasks that wait in `accept` get `ClosedResourceError`; cancelling one loses nobody."""
    network = MemoryNetwork()
    [listener] = await network.listen(None, 0)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    with trio.move_on_after(1):
        await listener.accept()
    waiting = await network.connect("localhost", listener.address[1])
    accepted = await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    await waiting.aclose()
    assert await read(accepted) == (b"", "eof")


async def test_a_listener_that_closes_meanwhile_resets(autojump_clock: trio.testing.MockClock) -> None:
    """Between the dialer's first packet and its last, the listener may close: the connection is broken from birth."""
    network = MemoryNetwork(latency=1)
    [listener] = await network.listen(None, 15000)
    async with trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.sleep(1.5)
            listener.close()

        nursery.start_soon(close)
        stream = await network.connect("localhost", 15000)
    assert await read(stream) == (b"", "reset")


@pytest.mark.parametrize("after", [0.5, 1.5])
async def test_a_cancelled_connect_leaves_nothing_behind(after: float, autojump_clock: trio.testing.MockClock) -> None:
    """Whenever a connect is cancelled, nobody is accepted and no stream is open."""
    network = MemoryNetwork(latency=1)
    [listener] = await network.listen(None, 15000)
    with trio.move_on_after(after):
        await network.connect("localhost", 15000)
    with trio.move_on_after(10) as scope:
        await listener.accept()
    assert scope.cancelled_caught
    assert network.open_streams == []


# Time ---------------------------------------------------------------------------------------------------------------


async def test_latency_is_one_way(autojump_clock: trio.testing.MockClock) -> None:
    """Connecting takes there and back, a byte takes one way; changes hold from then on, everywhere or between two."""
    network = MemoryNetwork()
    network.host("a.example"), network.host("b.example"), network.host("c.example")
    network.latency(1)
    network.latency(0.25, between=("a.example", "b.example"))

    async def measure(target: str) -> tuple[float, float]:
        began = trio.current_time()
        near, far = await pair(network, "a.example", target)
        connected = trio.current_time()
        await near.send_all(b"x")
        assert trio.current_time() == connected
        await far.receive_some()
        return connected - began, trio.current_time() - connected

    assert await measure("b.example") == pytest.approx((0.5, 0.25))
    assert await measure("c.example") == pytest.approx((2, 1))
    network.latency(3)
    assert await measure("b.example") == pytest.approx((6, 3))
    with pytest.raises(LookupError, match=r"network\.host\('d\.example'\)"):
        network.latency(1, between=("a.example", "d.example"))


async def test_jitter_is_drawn_from_the_seed(autojump_clock: trio.testing.MockClock) -> None:
    """The same seed gives the same times, another one others, and one connection's do not depend on what others do."""

    async def times(seed: int, *, busy: bool = False) -> list[float]:
        network = MemoryNetwork(seed, latency=1, jitter=1)
        network.host("a.example"), network.host("b.example")
        if busy:
            other, _ = await pair(network)
            await other.send_all(b"x")
        began = trio.current_time()
        near, far = await pair(network, "a.example", "b.example")
        found = [trio.current_time() - began]
        for _ in range(5):
            sent = trio.current_time()
            await near.send_all(b"x")
            await far.receive_some()
            found.append(trio.current_time() - sent)
        return found

    first = await times(1)
    assert all(1 <= each <= 2 for each in first[1:])
    assert len(set(first)) == 6
    assert await times(1) == pytest.approx(first)
    assert await times(1, busy=True) == pytest.approx(first)
    assert await times(2) != pytest.approx(first)


async def test_nothing_overtakes(autojump_clock: trio.testing.MockClock) -> None:
    """However much a way jitters, or gets faster, bytes keep their order."""
    network = MemoryNetwork(3, latency=1, jitter=10)
    near, far = await pair(network)
    for number in range(50):
        await near.send_all(bytes([number]))
        if number == 40:
            network.latency(0)
    await near.send_eof()
    assert await read(far) == (bytes(range(50)), "eof")


@pytest.mark.parametrize("options", [{"latency": -1}, {"jitter": math.inf}, {"latency": math.nan}, {"buffer": 0}])
async def test_nonsense_is_refused(options: dict[str, Any], autojump_clock: trio.testing.MockClock) -> None:
    """Times are finite and not negative, buffers hold something."""
    with pytest.raises(ValueError, match=next(iter(options))):
        MemoryNetwork(**options)


async def test_a_certificate_clock_follows_the_clock_of_trio(autojump_clock: trio.testing.MockClock) -> None:
    """It shows what it was started with, in UTC, and goes on with every jump."""
    start = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    await trio.sleep(1000)
    clock = trio_clock(start)
    assert clock() == start
    assert clock().tzinfo is UTC
    await trio.sleep(86400)
    assert clock() == start + timedelta(days=1)
    with pytest.raises(ValueError, match="aware"):
        trio_clock(start.replace(tzinfo=None))


# Partitions ---------------------------------------------------------------------------------------------------------


async def test_a_partition_holds_up_and_healing_delivers(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing arrives, nobody is told; once healed everything does that was sent, an end included, in order."""
    network = MemoryNetwork(latency=1)
    near, far = await pair(network, "10.0.0.1", "10.0.0.2")
    await near.send_all(b"before, ")
    await trio.sleep(0.5)
    network.partition({"10.0.0.1"}, {"10.0.0.2"})
    await near.send_all(b"meanwhile")
    await near.send_eof()
    await far.send_all(b"back")
    assert await read(far) == (b"", "silence")
    network.heal()
    began = trio.current_time()
    assert await read(far) == (b"before, meanwhile", "eof")
    assert await near.receive_some() == b"back"
    assert trio.current_time() - began == pytest.approx(1)
    network.heal()
    await far.send_all(b"later")
    assert await near.receive_some() == b"later"


async def test_what_had_arrived_before_a_partition_is_there(autojump_clock: trio.testing.MockClock) -> None:
    """A partition begins when it begins, although nobody has looked at the connection since."""
    network = MemoryNetwork(latency=1)
    near, far = await pair(network, "10.0.0.1", "10.0.0.2")
    await near.send_all(b"just in time")
    await trio.sleep(2)
    network.partition({"10.0.0.1"}, {"10.0.0.2"})
    await near.send_all(b"too late")
    await trio.sleep(2)
    assert await read(far) == (b"just in time", "silence")
    network.heal()
    assert await read(far) == (b"too late", "silence")


async def test_a_partition_may_be_one_way(autojump_clock: trio.testing.MockClock) -> None:
    """Then one side hears the other, and is not heard."""
    network = MemoryNetwork()
    near, far = await pair(network, "10.0.0.1", "10.0.0.2")
    network.partition(["10.0.0.1"], ["10.0.0.2"], one_way=True)
    await near.send_all(b"x")
    await far.send_all(b"y")
    assert await read(near) == (b"y", "silence")
    assert await read(far) == (b"", "silence")


async def test_others_do_not_notice_a_partition(autojump_clock: trio.testing.MockClock) -> None:
    """It is between the hosts that it names, and no others; groups may have several."""
    network = MemoryNetwork()
    names = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    ends = {(a, b): await pair(network, a, b) for a in names for b in names if a < b}
    network.partition(iter(names[:1]), iter(names[1:3]))
    for (a, b), (near, far) in ends.items():
        await near.send_all(b"x")
        await far.send_all(b"x")
        parted = a == names[0] and b in names[1:3]
        assert await read(near) == await read(far) == ((b"", "silence") if parted else (b"x", "silence"))


@pytest.mark.parametrize("one_way", [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), None])
async def test_connecting_through_a_partition_hangs(
    one_way: tuple[str, str] | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever packet of it is lost: nobody is accepted until it is healed, then the connection comes about."""
    network = MemoryNetwork(latency=1)
    a, b = network.host("10.0.0.1"), network.host("10.0.0.2")
    [listener] = await b.listen(None, 15000)
    network.partition({"10.0.0.1"}, {"10.0.0.2"}, one_way=False) if one_way is None else network.partition(
        {one_way[0]}, {one_way[1]}, one_way=True
    )
    with trio.move_on_after(10) as scope:
        await a.connect("10.0.0.2", 15000)
    assert scope.cancelled_caught
    assert network.open_streams == []
    made: list[Stream] = []
    async with trio.open_nursery() as nursery:

        async def connect() -> None:
            made.append(await a.connect("10.0.0.2", 15000))

        nursery.start_soon(connect)
        await trio.sleep(10)
        assert not made
        network.heal()
    await listener.accept()


async def test_a_reset_that_is_lost_leaves_a_half_open_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A reset is sent once: who did not get it goes on, until what it sends is answered by another."""
    network = MemoryNetwork(latency=1)
    near, far = await pair(network, "10.0.0.1", "10.0.0.2")
    network.partition({"10.0.0.1"}, {"10.0.0.2"})
    abort(near)
    assert await read(far) == (b"", "silence")
    network.heal()
    assert await read(far) == (b"", "silence")
    began = trio.current_time()
    await far.send_all(b"anybody?")
    assert await read(far) == (b"", "reset")
    assert trio.current_time() - began == pytest.approx(2)


async def test_a_reset_that_is_lost_behind_bytes_that_are_not(autojump_clock: trio.testing.MockClock) -> None:
    """What a partition holds up arrives in the end; the reset behind it does not, where its time has passed."""
    network = MemoryNetwork(latency=1)
    near, far = await pair(network, "10.0.0.1", "10.0.0.2")
    network.partition({"10.0.0.1"}, {"10.0.0.2"})
    await near.send_all(b"x")
    abort(near)
    await trio.sleep(10)
    network.heal()
    assert await read(far) == (b"x", "silence")


async def test_hosts_that_are_not_there_cannot_be_parted(autojump_clock: trio.testing.MockClock) -> None:
    """A misspelt host is an error, and so is a bare string, whose letters are no hosts."""
    network = MemoryNetwork()
    network.host("a.example")
    with pytest.raises(LookupError, match=r"b\.example"):
        network.partition({"a.example"}, {"b.example"})
    with pytest.raises(LookupError, match="'a'"):
        network.partition("a.example", "a.example")


async def test_reset_on_demand(autojump_clock: trio.testing.MockClock) -> None:
    """Every connection between two groups of hosts is reset, whoever dialled it, and no other."""
    network = MemoryNetwork()
    names = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    ends = {(a, b): await pair(network, a, b) for a in names for b in names if a != b}
    for near, _ in ends.values():
        await near.send_all(b"x")
    network.reset({"10.0.0.1"}, {"10.0.0.2"})
    for pair_of, (near, far) in ends.items():
        broken = "10.0.0.3" not in pair_of
        assert await read(far) == (b"x", "reset" if broken else "silence")
        assert await read(near) == (b"", "reset" if broken else "silence")
    with pytest.raises(LookupError):
        network.reset({"10.0.0.1"}, {"10.0.0.9"})


# Scripts ------------------------------------------------------------------------------------------------------------


async def scripted(script: Script, **options: Any) -> Ends:
    """Two ends of a connection that goes wrong as it says."""
    network = MemoryNetwork(**options)
    network.script_next("localhost", "localhost", script)
    return await pair(network)


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize(
    ("fault", "reader", "writer"),
    [("reset_after", "reset", "reset"), ("eof_after", "eof", "silence"), ("stall_after", "silence", "silence")],
)
@pytest.mark.parametrize("direction", ["there", "back"])
async def test_each_end_comes_after_its_byte(
    direction: str,
    fault: str,
    reader: str,
    writer: str,
    after: int,
    latency: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So many bytes arrive, no more or fewer, however they were sent; then what was asked for, at the right end."""
    offsets: dict[str, Any] = {fault: after}
    for pieces in ([b"abcdef"], [b"abc", b"def"], [b"a", b"b", b"c", b"d", b"e", b"f"]):
        ends = await scripted(Script(**{direction: Faults(**offsets)}), latency=latency)
        near, far = ends if direction == "there" else ends[::-1]
        try:
            for piece in pieces:
                await near.send_all(piece)
        except trio.BrokenResourceError:
            assert fault == "reset_after"
        assert await read(far) == (b"abcdef"[:after], reader)
        assert await read(near) == (b"", writer)
        await far.send_eof() if fault != "reset_after" else None
        assert await read(near) == (b"", "eof" if fault != "reset_after" else "reset")


async def test_a_fault_beyond_the_end_does_not_happen(autojump_clock: trio.testing.MockClock) -> None:
    """What is not reached has no effect, and a fault in one direction leaves the other alone."""
    near, far = await scripted(Script(there=Faults(reset_after=4, corrupt=[3])))
    await near.send_all(b"abc")
    await far.send_all(b"defghi")
    assert await read(far) == (b"abc", "silence")
    assert await read(near) == (b"defghi", "silence")


@pytest.mark.parametrize("first", ["reset_after", "eof_after", "stall_after"])
async def test_the_first_end_that_is_reached_counts(first: str, autojump_clock: trio.testing.MockClock) -> None:
    """Where several are set, the smallest offset decides."""
    offsets: dict[str, Any] = {"reset_after": 3, "eof_after": 3, "stall_after": 3, first: 2}
    near, far = await scripted(Script(there=Faults(**offsets)))
    await near.send_all(b"abc")
    ending = {"reset_after": "reset", "eof_after": "eof", "stall_after": "silence"}[first]
    assert await read(far) == (b"ab", ending)


async def test_corrupt_bytes_arrive_inverted(autojump_clock: trio.testing.MockClock) -> None:
    """Exactly those at the offsets, however the bytes were sent."""
    near, far = await scripted(Script(there=Faults(corrupt=[0, 4, 9])))
    for piece in b"ab", b"cdefgh", b"ij":
        await near.send_all(piece)
    await near.send_eof()
    assert await read(far) == (b"\x9ebcd\x9afghi\x95", "eof")


async def test_a_stalled_connection_fills_up_and_a_closed_one_does_not(autojump_clock: trio.testing.MockClock) -> None:
    """Behind a stall the sender gets as far as the buffer goes; behind a false end it is never held up."""
    near, _ = await scripted(Script(there=Faults(stall_after=10)), buffer=100)
    with trio.move_on_after(10) as stalled:
        await near.send_all(bytes(100))
        stalled.deadline = trio.current_time() + 10
        await near.send_all(b"x")
    assert stalled.cancelled_caught
    near, far = await scripted(Script(there=Faults(eof_after=10)), buffer=100)
    await near.send_all(bytes(100_000))
    await near.aclose()
    assert await read(far) == (bytes(10), "eof")


async def test_a_stall_swallows_the_end_too(autojump_clock: trio.testing.MockClock) -> None:
    """Neither a close nor a reset gets through: half-open for good."""
    for kind in False, True:
        near, far = await scripted(Script(there=Faults(stall_after=1)))
        await near.send_all(b"xy")
        abort(near) if kind else await near.aclose()
        assert await read(far) == (b"x", "silence")


async def test_a_slow_reader_holds_the_sender_up(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes drip at the rate, and the sender is as much ahead as the buffer allows."""
    near, far = await scripted(Script(there=Faults(rate=100, delay=2)), buffer=500)
    began = trio.current_time()
    arrived: list[tuple[float, int]] = []

    async def receive() -> None:
        total = 0
        while data := await far.receive_some():
            total += len(data)
            arrived.append((trio.current_time() - began, total))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await near.send_all(bytes(1500))
        sent = trio.current_time() - began
        await near.send_eof()
    assert arrived[-1][1] == 1500
    assert len(arrived) == 150
    assert all(total <= 100 * (at - 2) + 1e-6 for at, total in arrived)
    assert arrived[-1][0] == pytest.approx(17)
    assert 9.9 <= sent <= arrived[-1][0]


async def test_scripts_queue_for_a_pair_of_hosts_before_the_callback_is_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each queued script is for one connection in one direction; then the callback decides, by number and addresses."""
    network = MemoryNetwork()
    a, b = network.host("a.example"), network.host("b.example")
    asked: list[MemoryConnection] = []

    def script(connection: MemoryConnection) -> Script | None:
        asked.append(connection)
        assert (connection.sent_there, connection.sent_back) == (0, 0)
        return Script(there=Faults(eof_after=3)) if connection.number == 3 else None

    network.script = script
    network.script_next("a.example", "b.example", *(Script(there=Faults(eof_after=n)) for n in (1, 2)))
    got: list[bytes] = []
    for source, target in (a, b), (b, a), (a, b), (a, b), (a, b):
        near, far = await pair(network, source.address, target.address)
        await near.send_all(b"xxxxx")
        await near.aclose()
        await far.send_all(b"yy")
        got.append((await read(far))[0])
    assert got == [b"x", b"xxxxx", b"xx", b"xxxxx", b"xxx"]
    assert [(each.dialer[0], each.acceptor[0], each.number) for each in asked] == [
        (b.address, a.address, 0),
        (a.address, b.address, 2),
        (a.address, b.address, 3),
    ]
    assert [(each.sent_there, each.sent_back) for each in asked] == [(5, 2)] * 3
    assert "MemoryConnection 3" in repr(asked[-1])
    with pytest.raises(LookupError):
        network.script_next("a.example", "nowhere.example")


@pytest.mark.parametrize(
    ("faults", "word"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": math.inf}, "delay"),
        ({"rate": 0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"corrupt": [1, -1]}, "corrupt"),
        ({"reset_after": -1}, "reset_after"),
        ({"eof_after": -1}, "eof_after"),
        ({"stall_after": -1}, "stall_after"),
    ],
)
async def test_faults_that_make_no_sense_are_refused(
    faults: dict[str, Any], word: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Offsets count from 0, times and rates are what they can be; the message names what is wrong."""
    with pytest.raises(ValueError, match=word):
        Faults(**faults)


async def test_open_streams_are_those_that_nobody_closed(autojump_clock: trio.testing.MockClock) -> None:
    """Ends that wait to be accepted count, too: what is left over is a leak."""
    network = MemoryNetwork()
    [listener] = await network.listen(None, 0)
    near = await network.connect("localhost", listener.address[1])
    assert len(network.open_streams) == 2
    far = await listener.accept()
    assert near in network.open_streams
    await near.aclose()
    assert network.open_streams == [far]
    await far.aclose()
    assert network.open_streams == []
