"""Services: what they run in, when they begin, what ends them, and what a peer cannot make of them.

Each test drives one connection, frame by frame, over streams in memory and on a clock that jumps: nothing here waits
for anything real, and what comes first is up to the test.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing

from trionode import RemoteCode, _protocol as wire
from trionode._util import rate_limited_log

if TYPE_CHECKING:
    from conftest import Scripted, ScriptedFactory

    from trionode import ServiceChannel

pytestmark = pytest.mark.usefixtures("jumping_clock")


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return wire.header(kind, channel, len(payload)) + payload


def opened(channel: int, service: str = "held", timeout: float | None = None) -> bytes:
    """A whole OPEN."""
    return wire.control(wire.OPEN, channel, wire.Open(service=service, timeout=timeout))


def reset(channel: int) -> bytes:
    """A whole RESET: the caller gives the channel up."""
    return wire.control(wire.RESET, channel, wire.End(code=RemoteCode.CANCELLED, message=""))


settled = trio.testing.wait_all_tasks_blocked


class Held:
    """A service whose tasks stay until they are let go or cancelled."""

    def __init__(self) -> None:
        self.let_go = trio.Event()
        self.began: list[int] = []
        self.cancelled: list[int] = []
        self.finished: list[int] = []

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        self.began.append(channel._end.number)
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.cancelled.append(channel._end.number)
            raise
        self.finished.append(channel._end.number)


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# What they run in ----------------------------------------------------------------------------------------------------

_user: ContextVar[str] = ContextVar("user", default="nobody")


async def test_a_service_that_had_to_wait_has_context_variables_of_its_own(scripted: ScriptedFactory) -> None:
    """It begins when another ends, and has nothing of what that one set: that is another caller's."""
    seen: list[str] = []

    async def serve(channel: ServiceChannel) -> None:
        seen.append(_user.get())
        _user.set((await channel.receive()).decode())

    async with scripted(services={"serve": serve}, max_channels=1) as scene:
        for channel in (1, 3, 5):
            await scene.say(opened(channel, "serve"))
        for channel in (1, 3, 5):
            await scene.say(frame(wire.MESSAGE, channel, b"user %d" % channel))
        await settled()
    assert seen == ["nobody"] * 3


async def test_as_many_run_as_channels_are_allowed_and_the_others_wait_in_order(scripted: ScriptedFactory) -> None:
    """A service may outlive its channel, and counts until it has ended."""
    held, order = Held(), list[int]()

    async def serve(channel: ServiceChannel) -> None:
        order.append(channel._end.number)

    async with scripted(services={"held": held, "serve": serve}, max_channels=1) as scene:
        await scene.say(opened(1), frame(wire.CLOSE, 1), *[opened(channel, "serve") for channel in (3, 5, 7)])
        await settled()
        assert (held.began, order) == ([1], [])
        assert scene.services.running == scene.connection.statistics().services == 1
        held.let_go.set()
        await scene.services.wait_idle()
    assert order == [3, 5, 7]


# Those that wait -----------------------------------------------------------------------------------------------------


async def test_an_open_that_is_given_up_while_it_waits_gives_up_its_place(scripted: ScriptedFactory) -> None:
    """Callers that lose patience again and again do not keep a patient one out, and nothing runs for them."""
    held = Held()
    services = {"held": held}
    async with scripted(services=services, max_channels=1, max_pending_opens=2) as scene:
        await scene.say(opened(1), *[each for channel in (3, 5, 7, 9) for each in (opened(channel), reset(channel))])
        await scene.say(opened(11), opened(13))
        assert await scene.answered() == []  # nobody was refused
        await scene.say(opened(15))
        [(kind, channel, payload)] = await scene.answered()
        assert (kind, channel, wire.decode(wire.End, payload).code) == (wire.RESET, 15, RemoteCode.LIMIT)
        held.let_go.set()
        await scene.services.wait_idle()
        assert held.began == [1, 11, 13]


async def test_nothing_runs_for_a_caller_whose_deadline_passed_while_it_waited(scripted: ScriptedFactory) -> None:
    """Not even up to its first checkpoint; the caller, if it is still there, is told why. The next one has its turn."""
    held = Held()
    async with scripted(services={"held": held}, max_channels=1) as scene:
        await scene.say(opened(1), opened(3, timeout=1), opened(5, timeout=1), opened(7, timeout=100))
        await trio.sleep(1)
        held.let_go.set()
        await scene.services.wait_idle()
        said = await scene.answered()
    assert held.began == [1, 7]
    resets = {channel: wire.decode(wire.End, payload) for kind, channel, payload in said if kind == wire.RESET}
    assert set(resets) == {3, 5}
    assert {end.code for end in resets.values()} == {RemoteCode.CANCELLED}
    assert "deadline" in resets[3].message


@pytest.mark.parametrize("end", ["goodbye", "lost", "closed here"])
async def test_what_was_handed_over_before_the_end_is_served_in_its_turn(scripted: ScriptedFactory, end: str) -> None:
    """Who closed cleanly while its service waited loses no message, however the connection ends; others are dropped."""
    held, got = Held(), list[bytes]()

    async def collect(channel: ServiceChannel) -> None:
        got.extend([message async for message in channel])

    async with scripted(services={"held": held, "collect": collect}, max_channels=1) as scene:
        await scene.say(
            opened(1),
            frame(wire.CLOSE, 1),
            *[
                each
                for channel, last in ((3, wire.CLOSE), (5, wire.EOF), (7, wire.CLOSE))
                for each in (
                    opened(channel, "collect"),
                    frame(wire.MESSAGE, channel, b"job %d" % channel),
                    frame(last, channel),
                )
            ],
        )
        await scene.answered()
        await over(scene, end)
        held.let_go.set()
        await scene.services.wait_idle()
    assert got == [b"job 3", b"job 7"]


async def over(scene: Scripted, how: str) -> None:
    """End the connection, and wait until it has."""
    if how == "goodbye":
        await scene.say(wire.control(wire.GOODBYE, 0, wire.End(code="closed", message="")))
        await scene.peer.stream.aclose()
    elif how == "lost":
        await trio.aclose_forcefully(scene.streams[1])
    else:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.connection.aclose)
            await scene.peer.hear_end()
            await scene.peer.stream.aclose()
    await scene.connection.wait_closed()
    await settled()


async def test_nothing_runs_for_a_caller_that_gave_up_in_the_same_breath(scripted: ScriptedFactory) -> None:
    """An open and its reset that come together: the service does not even begin."""
    held = Held()
    async with scripted(services={"held": held}) as scene:
        await scene.say(opened(1), reset(1))
        assert await scene.answered() == []
        assert scene.services.running == 0
    assert held.began == []


async def test_who_a_channel_is_to_shows(scripted: ScriptedFactory) -> None:
    """In its `repr`, for logs."""
    shown: list[str] = []

    async def serve(channel: ServiceChannel) -> None:
        shown.append(repr(channel))

    async with scripted(services={"serve": serve}) as scene:
        await scene.say(opened(1, "serve"))
        await scene.answered()
    assert shown == ["<ServiceChannel 1 to 'serve', peer alpha@localhost>"]


# What ends them ------------------------------------------------------------------------------------------------------

ENDS: Final = pytest.mark.parametrize("end", ["goodbye", "lost", "closed here"])


@ENDS
@pytest.mark.parametrize("closer", ["service", "caller"])
async def test_a_service_whose_channel_was_closed_cleanly_outlives_its_connection(
    scripted: ScriptedFactory, closer: str, end: str
) -> None:
    """By whichever of the two: neither has anything to do with the connection any more."""
    held = Held()

    async def serve(channel: ServiceChannel) -> None:
        if closer == "service":
            await channel.aclose()
        await held(channel)

    async with scripted(services={"serve": serve}) as scene:
        await scene.say(opened(1, "serve"))
        if closer == "caller":
            await scene.say(frame(wire.CLOSE, 1))
        await scene.answered()
        await over(scene, end)
        assert (held.cancelled, scene.services.running) == ([], 1)
        held.let_go.set()
        await scene.services.wait_idle()
    assert held.finished == [1]


@ENDS
@pytest.mark.parametrize("half", [b"", frame(wire.EOF, 1)], ids=["open", "half-closed"])
async def test_a_service_whose_channel_was_not_closed_ends_with_its_connection(
    scripted: ScriptedFactory, half: bytes, end: str
) -> None:
    """Half-closed is not closed: its caller waits for an answer."""
    held = Held()
    async with scripted(services={"held": held}) as scene:
        await scene.say(opened(1), half)
        await scene.answered()
        await over(scene, end)
        await scene.services.wait_idle()
    assert held.cancelled == [1]


@pytest.mark.parametrize("closed_first", [False, True])
async def test_a_caller_that_gives_up_cancels_its_service_unless_that_had_closed(
    scripted: ScriptedFactory, *, closed_first: bool
) -> None:
    """A reset that crossed with the service's clean close finds a service that is none of the caller's any more."""
    held = Held()

    async def serve(channel: ServiceChannel) -> None:
        if closed_first:
            await channel.aclose()
        await held(channel)

    async with scripted(services={"serve": serve}) as scene:
        await scene.say(opened(1, "serve"))
        await scene.answered()
        await scene.say(reset(1))
        await scene.answered()
        assert held.cancelled == [] if closed_first else [1]
        held.let_go.set()
        await scene.services.wait_idle()


async def test_a_service_that_reset_its_channel_and_goes_on_is_cancelled_by_its_callers_reset(
    scripted: ScriptedFactory,
) -> None:
    """Its channel is forgotten here; the task is known as long as it runs."""
    held = Held()

    async def serve(channel: ServiceChannel) -> None:
        channel.reset(RemoteCode.FAILED, "no more")
        await held(channel)

    async with scripted(services={"serve": serve}) as scene:
        await scene.say(opened(1, "serve"))
        assert [kind for kind, _, _ in await scene.answered()] == [wire.RESET]
        await scene.say(reset(1))
        await scene.services.wait_idle()
    assert held.cancelled == [1]


@pytest.mark.parametrize("propagate", [False, True])
async def test_a_group_without_errors_propagates_as_it_is(scripted: ScriptedFactory, *, propagate: bool) -> None:
    """`SystemExit` in a nursery of a service is none of its failures."""

    async def serve(channel: ServiceChannel) -> None:
        async with trio.open_nursery():
            raise SystemExit(3)

    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        async with scripted(services={"serve": serve}, propagate_errors=propagate) as scene:
            await scene.say(opened(1, "serve"))
            await trio.sleep_forever()


# What is no failure of theirs ----------------------------------------------------------------------------------------


@ENDS
async def test_a_service_that_goes_on_in_the_tick_in_which_its_connection_ends_has_not_failed(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What it waited for came, so the cancellation finds it later: it uses a channel that has just ended."""
    go, errors = trio.Event(), list[Exception]()

    async def serve(channel: ServiceChannel) -> None:
        await go.wait()
        try:
            await channel.send(b"result")
        except Exception as exc:
            errors.append(exc)
            raise

    def both(*_: object) -> None:
        go.set()  # in the very step in which the connection begins to end

    # A failure would be raised here.
    async with scripted(services={"serve": serve}, propagate_errors=True) as scene:
        monkeypatch.setattr(scene.owner, "connection_ended", both)
        await scene.say(opened(1, "serve"))
        await scene.answered()
        await over(scene, end)
        await scene.services.wait_idle()
    assert isinstance(errors[0], trio.ClosedResourceError if end == "closed here" else trio.BrokenResourceError)
    assert troubles(caplog) == []


@ENDS
async def test_a_service_that_says_goodbye_when_its_connection_ends_has_not_failed(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """Shielded clean-up that finds the channel ended, on whichever side, also within a nursery."""
    tried: list[Exception] = []

    async def serve(channel: ServiceChannel) -> None:
        async with trio.open_nursery():
            try:
                await channel.receive()
            finally:
                with trio.CancelScope(shield=True):
                    try:
                        await channel.send(b"bye")
                    except Exception as exc:
                        tried.append(exc)
                        raise

    async with scripted(services={"serve": serve}, propagate_errors=True) as scene:
        await scene.say(opened(1, "serve"))
        await scene.answered()
        await over(scene, end)
        await scene.services.wait_idle()
    assert len(tried) == 1
    assert troubles(caplog) == []


async def test_using_a_channel_that_the_service_closed_itself_is_a_failure(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Only an end that is not its own doing excuses a service."""

    async def serve(channel: ServiceChannel) -> None:
        await channel.aclose()
        await channel.send(b"too late")

    async with scripted(services={"serve": serve}) as scene:
        await scene.say(opened(1, "serve"))
        await scene.answered()
    assert troubles(caplog) == ["service 'serve' failed while serving alpha@localhost"]


async def upper(channel: ServiceChannel) -> None:
    """One message there, one back: the service of every README."""
    await channel.send((await channel.receive()).upper())


@pytest.mark.parametrize("last", [wire.CLOSE, wire.EOF], ids=["closes", "half-closes"])
async def test_a_caller_that_sends_nothing_is_an_error_only_where_it_waits_for_an_answer(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture, last: int
) -> None:
    """Who opens a channel and closes it has gone; a service that ends by `EndOfChannel` then has not failed."""
    async with scripted(services={"upper": upper}) as scene:
        await scene.say(opened(1, "upper"), frame(last, 1))
        said = await scene.answered()
    if last == wire.CLOSE:
        assert said == []
        assert troubles(caplog) == []
    else:
        assert [kind for kind, _, _ in said] == [wire.RESET]
        assert troubles(caplog) == ["service 'upper' failed while serving alpha@localhost"]


async def test_a_peer_that_makes_services_fail_does_not_flood_the_log(
    scripted: ScriptedFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The first few failures of a window are logged in full, the rest is counted and said in one line."""

    async def serve(channel: ServiceChannel) -> None:
        int(await channel.receive())

    async with scripted(services={"serve": serve}) as scene:
        for channel in range(1, 2 * (rate_limited_log.LOG_BURST + 5), 2):
            await scene.say(opened(channel, "serve"), frame(wire.MESSAGE, channel, b"NaN"))
            assert [kind for kind, _, _ in await scene.answered()] == [wire.RESET]
        failed = ["service 'serve' failed while serving alpha@localhost"]
        assert troubles(caplog) == failed * rate_limited_log.LOG_BURST
        assert all(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)
        await trio.sleep(rate_limited_log.LOG_WINDOW)
        await scene.say(opened(1001, "serve"), frame(wire.MESSAGE, 1001, b"NaN"))
        await scene.answered()
        summary = ["5 more services failed, not logged one by one"]
        assert troubles(caplog)[rate_limited_log.LOG_BURST :] == summary + failed


# Waiting for all of them ---------------------------------------------------------------------------------------------


async def test_waiting_until_none_runs_waits_for_those_that_begin_meanwhile(scripted: ScriptedFactory) -> None:
    """One that waited begins when another ends; idle is when there is none left."""
    held = Held()

    async def brief(channel: ServiceChannel) -> None:
        await trio.sleep(5)
        held.finished.append(channel._end.number)

    async with scripted(services={"brief": brief}, max_channels=1) as scene:
        await scene.say(opened(1, "brief"), opened(3, "brief"))
        await scene.answered()
        await scene.services.wait_idle()
        assert held.finished == [1, 3]
        assert scene.services.running == 0
        await scene.services.wait_idle()  # at once


async def test_cancelling_all_of_them_starts_none_that_waited(scripted: ScriptedFactory) -> None:
    """Those whose callers had closed would otherwise begin as those before them end."""
    held = Held()
    async with scripted(services={"held": held}, max_channels=1) as scene:
        await scene.say(*[each for channel in (1, 3, 5) for each in (opened(channel), frame(wire.CLOSE, channel))])
        await scene.answered()
        await over(scene, "goodbye")
        scene.services.cancel()
        await scene.services.wait_idle()
    assert held.began == held.cancelled == [1]


# Callers -------------------------------------------------------------------------------------------------------------


async def test_a_call_that_has_its_reply_tells_the_service_at_once(scripted: ScriptedFactory) -> None:
    """Its CLOSE waits for nothing else to be sent: a service that goes on sending learns that nobody reads it."""
    async with scripted(dialled=True) as scene, trio.open_nursery() as nursery:
        replies: list[bytes] = []

        async def call() -> None:
            replies.append(await scene.connection.call("serve", b"request"))

        nursery.start_soon(call)
        kinds = [(await scene.peer.frame())[0] for _ in range(3)]
        assert kinds == [wire.OPEN, wire.MESSAGE, wire.EOF]
        await scene.say(frame(wire.MESSAGE, 1, b"reply"))
        assert await scene.peer.frame() == (wire.CLOSE, 1, b"")
    assert replies == [b"reply"]
