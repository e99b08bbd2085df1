"""Signs of life, and how a connection ends: the dead are noticed in time, the living are left alone, words arrive.

Each test drives one connection, frame by frame, over streams in memory and on a clock that jumps: times are exact. Real
processes that are stopped, killed and cut off are in `test_other_processes`.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from trionode import EndReason, NetworkOptions, RemoteError, _protocol as wire
from trionode._connection.core import CLOSE_GRACE, ConnectionCore
from trionode._tls.session import RECORD_SIZE
from trionode._tls.stream import FAREWELL

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import MemoryStream, Scripted, ScriptedFactory

    from trionode import ConnectionEnd
    from trionode._connection.link import Link

pytestmark = pytest.mark.usefixtures("jumping_clock")

INTERVAL, TOLERANCE = 5.0, 3.0
BEAT: Final[dict[str, Any]] = {"heartbeat_interval": INTERVAL, "heartbeat_tolerance": TOLERANCE}
#: The ping of a heartbeat, and what a peer answers.
PING: Final = (wire.PING, 0, bytes(8))
PONG: Final = wire.header(wire.PONG, 0, 8) + bytes(8)

settled = trio.testing.wait_all_tasks_blocked


def clock() -> trio.testing.MockClock:
    """The one that jumps."""
    return cast("trio.testing.MockClock", trio.lowlevel.current_clock())


# Heartbeats ----------------------------------------------------------------------------------------------------------


async def test_a_peer_that_answers_no_ping_is_given_up(scripted: ScriptedFactory) -> None:
    """It gets one ping after the interval, and the tolerance to answer it; the error says whose, and how long."""
    async with scripted(**BEAT) as scene:
        began = trio.current_time()
        assert await scene.peer.frame() == PING
        assert trio.current_time() - began == INTERVAL
        end = await scene.connection.wait_closed()
        assert trio.current_time() - began == INTERVAL + TOLERANCE
    assert end.reason is EndReason.LOST
    assert isinstance(end.error, trio.BrokenResourceError)
    assert "alpha@localhost gave no sign of life for 8 s" in str(end.error)


@pytest.mark.parametrize("sign", [PONG, wire.header(0x80, 0, 8) + bytes(8), b"\0"], ids=["pong", "new kind", "a byte"])
async def test_any_sign_of_life_will_do(scripted: ScriptedFactory, sign: bytes) -> None:
    """Whatever a peer sends shows that it is there, be it a frame that this version does not know, or part of one."""
    async with scripted(**BEAT) as scene:
        assert await scene.peer.frame() == PING
        await trio.sleep(TOLERANCE / 2)
        await scene.say(sign)
        heard = trio.current_time()
        assert await scene.peer.frame() == PING
        assert trio.current_time() - heard == INTERVAL
        assert scene.connection.live


@pytest.mark.parametrize(("interval", "tolerance"), [(5, 3), (5, 5), (2, 15)])
async def test_a_peer_that_dies_after_an_answer_is_noticed_as_soon(
    scripted: ScriptedFactory, interval: float, tolerance: float
) -> None:
    """Interval and tolerance count from the last sign of life, also where the tolerance is the longer of the two."""
    async with scripted(heartbeat_interval=interval, heartbeat_tolerance=tolerance) as scene:
        assert await scene.peer.frame() == PING
        await trio.sleep(0.25)
        await scene.say(PONG)
        await settled()
        heard = trio.current_time()
        assert (await scene.connection.wait_closed()).reason is EndReason.LOST
        assert trio.current_time() - heard == interval + tolerance


async def test_a_peer_that_talks_is_not_pinged(scripted: ScriptedFactory) -> None:
    """Heartbeats are for silence only."""
    async with scripted(**BEAT) as scene:
        for _ in range(10):
            await trio.sleep(INTERVAL * 0.9)
            assert await scene.answered() == []


async def test_buffers_that_a_transfer_made_large_are_given_back(scripted: ScriptedFactory) -> None:
    """A second after they were noticed, while it lasts too; heartbeats go on, and whatever else there is to say."""
    large = wire.header(0x80, 0, 60_000) + bytes(60_000)  # a frame that this version ignores
    async with scripted(**BEAT) as scene:
        stream = scene.core.link.stream
        for _ in range(2):
            await scene.say(large)
            await settled()
            assert stream.swollen
            await trio.sleep(1)
            await settled()
            assert not stream.swollen
        heard = trio.current_time() - 1
        assert await scene.peer.frame() == PING
        assert trio.current_time() - heard == pytest.approx(INTERVAL)
        await scene.say(PONG)
        assert await scene.answered() == []


async def test_heartbeats_can_be_switched_off(scripted: ScriptedFactory) -> None:
    """An infinite interval: nobody is ever pinged or given up."""
    async with scripted(heartbeat_interval=math.inf) as scene:
        await trio.sleep(1000)
        assert await scene.answered() == []


@pytest.mark.parametrize("option", ["heartbeat_interval", "heartbeat_tolerance"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
async def test_heartbeats_take_positive_times(option: str, value: float) -> None:
    """Nothing else makes sense, and the message names the option."""
    with pytest.raises(ValueError, match=option):
        NetworkOptions(**cast("dict[str, Any]", {option: value}))


class Held:
    """What the peer sends, held back; let through without a checkpoint."""

    def __init__(self, scene: Scripted) -> None:
        near, far = scene.streams
        self._source, self._sink = far.send_stream, near.receive_stream
        self._source.send_all_hook = None

    def let_through(self) -> None:
        """Put it where the connection's reader finds it."""
        trio.testing.memory_stream_pump(self._source, self._sink)


#: Trio shuffles the tasks that run in one tick: what depends on their order goes wrong in one of these.
TRIES: Final = 20


async def test_an_answer_that_waits_behind_a_blocked_loop_is_an_answer(scripted: ScriptedFactory) -> None:
    """A program that blocks its event loop finds answer and deadline in one tick: the answer was in time."""
    async with scripted(**BEAT) as scene:
        held = Held(scene)
        for _ in range(TRIES):
            assert await scene.peer.frame() == PING
            await scene.say(PONG)
            await settled()
            # Blocked, until long after the deadline.
            clock().jump(TOLERANCE * 3)
            held.let_through()
            await settled()
            assert scene.connection.live


# Asking --------------------------------------------------------------------------------------------------------------


class Asked:
    """Whether a connection answers, asked in the background."""

    def __init__(self, nursery: trio.Nursery, scene: Scripted, within: float, *, insist: bool = False) -> None:
        self.answer: bool | None = None

        async def ask() -> None:
            self.answer = await scene.core.answers(within, insist=insist)

        nursery.start_soon(ask)


async def test_a_peer_that_answers_is_alive(scripted: ScriptedFactory) -> None:
    """As soon as it does."""
    async with scripted() as scene, trio.open_nursery() as nursery:
        began = trio.current_time()
        asked = Asked(nursery, scene, 1)
        kind, channel, nonce = await scene.peer.frame()
        assert (kind, channel) == (wire.PING, 0)
        await scene.say(wire.header(wire.PONG, 0, 8), nonce)
        await settled()
        assert asked.answer is True
        assert trio.current_time() == began


@pytest.mark.parametrize("insist", [False, True])
async def test_a_peer_that_says_nothing_is_dead_and_its_connection_ended(
    scripted: ScriptedFactory, *, insist: bool
) -> None:
    """By the time that the verdict is there; asking again gives the same, at once."""
    async with scripted() as scene:
        began = trio.current_time()
        assert not await scene.core.answers(1, insist=insist)
        assert trio.current_time() - began == 1
        assert not scene.connection.live
        assert not await scene.core.answers(1, insist=insist)
        end = await scene.connection.wait_closed()
    assert end.reason is EndReason.LOST
    assert "alpha@localhost did not answer a ping in 1 s" in str(end.error)


@pytest.mark.parametrize("insist", [False, True])
async def test_a_peer_whose_answer_queues_behind_much_else_is_alive_unless_the_answer_counts(
    scripted: ScriptedFactory, *, insist: bool
) -> None:
    """On a busy link other words come first; they will do, except where only the answer shows what was asked."""
    async with scripted() as scene, trio.open_nursery() as nursery:
        asked = Asked(nursery, scene, 1, insist=insist)
        for _ in range(9):
            await trio.sleep(0.1)
            await scene.say(wire.header(wire.PONG, 0, 8), b"to other")
        await trio.sleep(0.2)
        assert asked.answer is not insist
        assert scene.connection.live is not insist


async def test_an_answer_that_comes_with_the_deadline_is_in_time(scripted: ScriptedFactory) -> None:
    """As of heartbeats: a blocked loop finds both in one tick."""
    async with scripted() as scene, trio.open_nursery() as nursery:
        held = Held(scene)
        for _ in range(TRIES):
            asked = Asked(nursery, scene, 1, insist=True)
            _, _, nonce = await scene.peer.frame(wire.PING)
            await scene.say(wire.header(wire.PONG, 0, 8), nonce)
            clock().jump(3)
            held.let_through()
            await settled()
            assert asked.answer is True


async def test_a_probe_ends_with_the_connection(scripted: ScriptedFactory) -> None:
    """Whatever ends it; nobody waits for an answer that cannot come any more."""
    async with scripted() as scene, trio.open_nursery() as nursery:
        asked = Asked(nursery, scene, 100)
        await scene.peer.frame(wire.PING)
        began = trio.current_time()
        await trio.aclose_forcefully(scene.streams[1])
        await settled()
        assert asked.answer is False
        assert trio.current_time() == began


async def test_a_peer_was_heard_recently_or_not(scripted: ScriptedFactory) -> None:
    """By the clock."""
    async with scripted() as scene:
        await trio.sleep(3)
        assert scene.core.liveness.heard_within(3)
        assert not scene.core.liveness.heard_within(2)
        await scene.answered()
        assert scene.core.liveness.heard_within(0)


# The end -------------------------------------------------------------------------------------------------------------


class SlowStream(trio.abc.Stream):
    """A way that takes a step of what is written now and then, never two at once, until it breaks."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        #: Seconds for so many bytes.
        self.pace = 0.0
        self.step = 64 * 1024
        self.broken = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, slowly."""
        if self.broken:
            raise trio.BrokenResourceError
        with memoryview(data) as view:
            for start in range(0, len(view), self.step):
                await trio.sleep(self.pace)
                await self._stream.send_all(view[start : start + self.step])

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As the stream."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """As the stream."""
        await self._stream.aclose()


def slow(made: list[SlowStream]) -> Callable[[MemoryStream], SlowStream]:
    """Makes a slow way, which is fast until its pace is set."""

    def make(stream: MemoryStream) -> SlowStream:
        made.append(SlowStream(stream))
        return made[-1]

    return make


async def closed(scene: Scripted) -> ConnectionEnd:
    """Close the connection; gives its end."""
    await scene.connection.aclose()
    return await scene.connection.wait_closed()


async def test_a_peer_that_takes_bytes_slowly_gets_them_all(scripted: ScriptedFactory) -> None:
    """Accepted for sending is sent: a closing connection waits as long as bytes move, however long a write takes."""
    ways: list[SlowStream] = []
    async with scripted(dialled=True, transport=slow(ways)) as scene, trio.open_nursery() as nursery:
        [way] = ways
        way.pace = CLOSE_GRACE * 0.9
        for _ in range(3):  # one write, which takes three times as long
            scene.connection.open_channel("serve").send_nowait(bytes(60_000))
        nursery.start_soon(closed, scene)
        kinds = [(await scene.peer.frame())[0] for _ in range(7)]
        assert kinds == [wire.OPEN, wire.MESSAGE] * 3 + [wire.GOODBYE]
        await scene.peer.hear_end()
        await scene.peer.stream.aclose()
        end = await scene.connection.wait_closed()
    assert end.reason is EndReason.CLOSED
    assert end.error is None


async def test_a_peer_that_takes_nothing_is_given_up_after_the_grace(scripted: ScriptedFactory) -> None:
    """Closing is bounded: by the grace without a byte taken, and what tearing the link down takes."""
    ways: list[SlowStream] = []
    async with scripted(dialled=True, transport=slow(ways)) as scene:
        [way] = ways
        way.pace = math.inf
        began = trio.current_time()
        end = await closed(scene)
        assert CLOSE_GRACE <= trio.current_time() - began <= CLOSE_GRACE + FAREWELL
    assert end.reason is EndReason.CLOSED


async def test_a_peer_that_never_ends_is_given_up_after_the_grace(scripted: ScriptedFactory) -> None:
    """The grace begins again when it has taken our goodbye; then it says nothing more."""
    async with scripted() as scene:
        began = trio.current_time()
        await closed(scene)
        assert CLOSE_GRACE <= trio.current_time() - began <= 2 * CLOSE_GRACE + FAREWELL
        kind, _, payload = await scene.peer.frame()
        assert (kind, wire.decode(wire.End, payload).code) == (wire.GOODBYE, EndReason.CLOSED)


async def test_a_close_that_is_cancelled_closes_at_once(scripted: ScriptedFactory) -> None:
    """Without waiting for the peer; and the connection has ended by then."""
    async with scripted() as scene:
        with trio.CancelScope() as scope:
            scope.cancel()
            await scene.connection.aclose()
        assert scope.cancelled_caught
        began = trio.current_time()
        assert (await scene.connection.wait_closed()).reason is EndReason.CLOSED
        assert trio.current_time() == began


async def test_both_ends_of_a_goodbye(scripted: ScriptedFactory) -> None:
    """Its words reach whoever asks how it ended, and are escaped; closing once more does nothing."""
    async with scripted() as scene:
        await scene.say(wire.control(wire.GOODBYE, 0, wire.End(code="closed", message="so\nlong")))
        await scene.peer.hear_end()
        await scene.peer.stream.aclose()
        end = await scene.connection.wait_closed()
        assert end.reason is EndReason.CLOSED_BY_PEER
        assert "alpha@localhost closed the connection: closed so" in str(end.error)
        assert "\n" not in str(end.error)
        assert await closed(scene) is end


@pytest.mark.parametrize("how", ["without a goodbye", "without a close_notify"])
async def test_a_peer_that_ends_without_a_word(scripted: ScriptedFactory, how: str) -> None:
    """Is lost: whatever ended it was not its program's intention."""
    async with scripted() as scene:
        if how == "without a goodbye":
            await scene.peer.stream.aclose()
        else:
            await trio.aclose_forcefully(scene.streams[1])
        end = await scene.connection.wait_closed()
    assert end.reason is EndReason.LOST
    assert how in str(end.error) or "close_notify" in str(end.error)


async def test_what_comes_after_the_end_is_not_dispatched(scripted: ScriptedFactory) -> None:
    """A goodbye is the last word: frames behind it in the same read open nothing."""
    ran: list[object] = []

    async def serve(channel: object) -> None:
        ran.append(channel)

    async with scripted(services={"serve": serve}) as scene:
        goodbye = wire.control(wire.GOODBYE, 0, wire.End(code="closed", message=""))
        await scene.say(goodbye, wire.control(wire.OPEN, 1, wire.Open(service="serve")))
        await scene.peer.stream.aclose()
        assert (await scene.connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER
        await settled()
    assert ran == []


async def test_where_sending_breaks_what_comes_in_may_say_why(scripted: ScriptedFactory) -> None:
    """A goodbye that is on its way has the verdict."""
    ways: list[SlowStream] = []
    async with scripted(transport=slow(ways)) as scene:
        ways[0].broken = True
        await scene.say(wire.header(wire.PING, 0, 8) + bytes(8))  # the answer breaks
        await trio.sleep(CLOSE_GRACE / 2)
        assert scene.connection.live
        await scene.say(wire.control(wire.GOODBYE, 0, wire.End(code="closed", message="")))
        assert (await scene.connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER


async def test_where_sending_breaks_and_nothing_comes_in_the_connection_is_lost(scripted: ScriptedFactory) -> None:
    """After a second."""
    ways: list[SlowStream] = []
    async with scripted(transport=slow(ways)) as scene:
        ways[0].broken = True
        began = trio.current_time()
        await scene.say(wire.header(wire.PING, 0, 8) + bytes(8))
        assert (await scene.connection.wait_closed()).reason is EndReason.LOST
        assert trio.current_time() - began == CLOSE_GRACE


async def test_a_peer_that_reads_nothing_is_given_up_by_who_goes_on_opening(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening is synchronous and queues: at a ceiling the connection is ended, and who opens is told why."""
    monkeypatch.setattr("trionode._connection.send_queue.CEILING", 10_000)
    ways: list[SlowStream] = []
    async with scripted(dialled=True, transport=slow(ways)) as scene:
        ways[0].pace = math.inf
        await settled()

        def go_on() -> None:
            while True:
                scene.connection.open_channel("serve")._end.close()

        with pytest.raises(RemoteError) as info:
            go_on()
        assert info.value.not_run
        assert "alpha@localhost does not read" in str(info.value.__cause__)
        assert (await scene.connection.wait_closed()).reason is EndReason.LOST


async def test_a_crash_inside_ends_one_connection_and_is_logged(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours does not end the node."""

    def crash(*_: object) -> None:
        msg = "a bug"
        raise RuntimeError(msg)

    async with scripted(max_records=1) as scene:
        monkeypatch.setattr(scene.owner, "renew", crash)
        await scene.say(wire.header(wire.PING, 0, 8) + bytes(8))
        assert (await scene.connection.wait_closed()).reason is EndReason.LOST
    assert [record.getMessage() for record in caplog.records] == ["the connection to alpha@localhost crashed"]


async def test_a_close_before_anything_ran_closes(scripted: ScriptedFactory) -> None:
    """Cancelled or not: who closes a connection that was made just now leaves nothing behind."""
    async with scripted() as scene:
        with trio.CancelScope() as scope:
            scope.cancel()
            await scene.connection.aclose()
        assert scope.cancelled_caught
        assert (await scene.connection.wait_closed()).reason is EndReason.CLOSED


@pytest.mark.parametrize("slow", [False, True])
async def test_others_have_their_turns_in_a_flood_of_tiny_frames(
    scripted: ScriptedFactory, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Where dispatching takes long for what there is, one record is dispatched at a time."""
    ticks, sizes, works = itertools.count(), list[int](), ConnectionCore._dispatch

    def dispatch(self: ConnectionCore, link: Link, pieces: list[bytes]) -> None:
        sizes.append(sum(map(len, pieces)))
        works(self, link, pieces)

    async with scripted() as scene:
        await scene.answered()
        monkeypatch.setattr(ConnectionCore, "_dispatch", dispatch)
        monkeypatch.setattr("trionode._connection.core.perf_counter", lambda: next(ticks) if slow else 0)
        await scene.say(PONG)
        await scene.answered()
        sizes.clear()
        await scene.say(PONG * 8000)
        await scene.answered()
    assert sum(sizes) >= 128_000
    assert (max(sizes) <= RECORD_SIZE) == slow
