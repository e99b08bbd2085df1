"""The states of a connection: what each allows, whatever led there, and that none is ever left for an earlier one."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing

from trionode import Connection, EndReason, RemoteCode, RemoteError, _protocol as wire
from trionode._connection.closing import retire
from trionode._connection.state import NEXT, State

if TYPE_CHECKING:
    from conftest import Scripted, ScriptedFactory

    from trionode import ServiceChannel

#: What may happen to a connection, and the state that it would lead to from `LIVE`.
EVENTS: Final = {
    "replaced": State.RETIRED,
    "drained": State.DRAINING,
    "numbers used up": State.DRAINING,
    "peer drains": State.PEER_DRAINING,
    "closed": State.ENDING,
    "peer closes": State.ENDING,
}

#: What each allows: whether it is handed out, whether we open channels, the peer does, and frames are heeded.
ALLOWED: Final = {
    State.LIVE: (True, True, True, True),
    State.RETIRED: (False, True, True, True),
    State.DRAINING: (False, False, True, True),  # until it knows
    State.PEER_DRAINING: (False, False, False, True),
    State.ENDING: (False, False, False, False),
}


async def held(channel: ServiceChannel) -> None:
    """A service that keeps a drain from ending."""
    await trio.sleep_forever()


async def happen(scene: Scripted, nursery: trio.Nursery, event: str) -> None:
    """Bring one about, from here or by what the peer sends."""
    if event == "replaced":
        nursery.start_soon(retire, scene.core)
    elif event == "drained":
        nursery.start_soon(scene.connection.drain)
    elif event == "numbers used up":
        use_up(scene)
    elif event == "peer drains":
        await say(scene, wire.header(wire.DRAIN, 0, 0))
    elif event == "closed":
        scene.core.end(EndReason.CLOSED)
    else:
        await say(scene, wire.control(wire.GOODBYE, 0, wire.End(code="closed")))
    for _ in range(20):
        await trio.lowlevel.checkpoint()


async def say(scene: Scripted, frame: bytes) -> None:
    """Have the peer send a frame, if there is still anybody to send it to."""
    with suppress(trio.BrokenResourceError):
        await scene.say(frame)


def use_up(scene: Scripted) -> None:
    """Open the last channel that there is a number for, if that may be done."""
    channels = scene.core.channels
    before, channels._next = channels._next, 2**32 - 4
    try:
        scene.connection.open_channel("any").reset()
    except (trio.ClosedResourceError, trio.BrokenResourceError, RemoteError):
        channels._next = before


def opens(connection: Connection) -> bool:
    """Whether we open a channel."""
    try:
        connection.open_channel("any").reset()
    except trio.ClosedResourceError:
        return False
    except RemoteError as exc:
        assert exc.code in (RemoteCode.SHUTTING_DOWN, RemoteCode.NOT_TAKEN)
        assert exc.not_run
        return False
    return True


async def accepts(scene: Scripted, number: int) -> bool:
    """Whether a channel that the peer opens gets its service; it may be refused, or not be heard of."""
    before = scene.connection.statistics().services
    await say(scene, wire.control(wire.OPEN, number, wire.Open(service="held")))
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    return scene.connection.statistics().services > before


def after(events: tuple[str, ...]) -> State:
    """The state that events lead to: the table says which of them still count."""
    state = State.LIVE
    for event in events:
        if event == "numbers used up" and state not in (State.LIVE, State.RETIRED):
            continue
        if EVENTS[event] in NEXT[state]:
            state = EVENTS[event]
    return state


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("events", [(), *((one,) for one in EVENTS), *product(EVENTS, repeat=2)], ids="-".join)
async def test_what_a_state_allows(scripted: ScriptedFactory, events: tuple[str, ...]) -> None:
    """After any two of what may happen to a connection: what stands is what the table says, and so is what it does."""
    async with scripted(services={"held": held}) as scene:
        async with trio.open_nursery() as nursery:
            assert await accepts(scene, 1)  # or a drain would soon be over
            for event in events:
                await happen(scene, nursery, event)
            state = after(events)
            reached = (state, State.CLOSED) if state is State.ENDING else (state,)
            assert scene.core.state in reached
            handed_out, we_open, they_open, heeded = ALLOWED[state]
            they_open = they_open and "peer drains" not in events
            assert scene.owner.unregistered == (0 if handed_out else 1)
            assert scene.connection.live is we_open
            assert opens(scene.connection) is we_open
            assert await accepts(scene, 3) is they_open
            if heeded:
                await scene.answered()
            else:
                assert scene.core.ended
            nursery.cancel_scope.cancel()
    assert scene.core.state is State.CLOSED


def test_no_state_leads_back() -> None:
    """A connection only ever goes on, and comes to its end from everywhere."""
    assert set(NEXT) == set(State)
    order = list(State)
    for state, following in NEXT.items():
        assert all(order.index(each) > order.index(state) for each in following)
        assert state is State.CLOSED or State.ENDING in following or state is State.ENDING
    assert NEXT[State.CLOSED] == ()


def test_what_applications_see_of_a_connection() -> None:
    """What a node does with it is none of theirs."""
    facts = {"generation", "id", "key_pair_fingerprint", "live", "peer", "peer_generation", "statistics", "superseded"}
    verbs = {"aclose", "call", "drain", "open_channel", "reauthenticate", "wait_closed"}
    assert {name for name in dir(Connection) if not name.startswith("_")} == facts | verbs
