"""The one writer: order, few writes, and what happens to bytes when the link changes, breaks or is left."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from trionode._connection import send_queue as outbox
from trionode._connection.send_queue import Outbox

if TYPE_CHECKING:
    from trionode._connection.link import Link

pytestmark = pytest.mark.usefixtures("jumping_clock")

settled = trio.testing.wait_all_tasks_blocked


class Stream:
    """As much of a TLS stream as the writer uses; notes what it is given."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.at_once: list[bytes] = []
        self.records_sent = 0
        self.unsent = False
        self.ended = False
        #: What `send_at_once` answers.
        self.roomy = False
        self.broken = False
        self.send_broken = False
        #: Whether somebody has closed the transport.
        self.closed = False
        #: Held up while it is not set.
        self.open = trio.Event()
        self.open.set()

    async def send_all(self, data: bytearray) -> None:
        """Send; what was left over goes first."""
        if self.broken:
            raise trio.BrokenResourceError
        await self.open.wait()
        self.writes.append(bytes(data))
        self.unsent = False
        self.records_sent += 1

    def send_at_once(self, data: bytearray, *, last: bool = False) -> bool:
        """Send, if there is room."""
        if self.broken:
            raise trio.BrokenResourceError
        if self.closed:
            raise trio.ClosedResourceError
        if self.roomy:
            self.at_once.append(bytes(data))
            self.ended = last
            self.records_sent += 1
        return self.roomy


def link_of(stream: Stream, confirmation: bytes = b"") -> Link:
    """A link with nothing else in it."""
    return cast("Link", SimpleNamespace(stream=stream, confirmation=confirmation))


class Scene:
    """An outbox, its writer and its stream."""

    def __init__(self, nursery: trio.Nursery, *, max_records: int = 1000) -> None:
        self.stream = Stream()
        self.worn = 0
        self.outbox = Outbox(link_of(self.stream), worn=self._wear, max_records=max_records)
        self.written = False
        nursery.start_soon(self._write)

    def _wear(self) -> None:
        self.worn += 1

    async def _write(self) -> None:
        await self.outbox.write()
        self.written = True


async def test_what_is_appended_in_one_go_is_one_write_in_order(nursery: trio.Nursery) -> None:
    """However many append, and of whatever kind the pieces are."""
    scene = Scene(nursery)
    for piece in (b"a", bytearray(b"b"), memoryview(b"c")):
        scene.outbox.append(piece, b".")
    await settled()
    assert scene.stream.writes == [b"a.b.c."]
    assert scene.outbox.bytes_written == 6


async def test_closing_writes_what_is_there_and_takes_no_more(nursery: trio.Nursery) -> None:
    """Then the writer ends; an outbox that is idle ends at once."""
    scene = Scene(nursery)
    scene.outbox.append(b"last words")
    scene.outbox.close()
    scene.outbox.append(b"too late")
    await settled()
    assert (scene.stream.writes, scene.written) == ([b"last words"], True)
    idle = Scene(nursery)
    await settled()
    idle.outbox.close()
    await settled()
    assert (idle.stream.writes, idle.written) == ([], True)


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
async def test_closing_says_the_rest_and_the_end_at_once(nursery: trio.Nursery, *, broken: bool) -> None:
    """Where the link takes it; that it is broken is for the writer to find. Wear does not matter any more."""
    scene = Scene(nursery, max_records=1)
    scene.stream.roomy, scene.stream.broken = True, broken
    scene.outbox.append(b"last words")
    if broken:
        scene.outbox.close()
        scene.outbox.discard()
        scene.stream.broken = False
    else:
        scene.outbox.close()
        assert (scene.stream.at_once, scene.stream.ended) == ([b"last words"], True)
    worn = scene.worn
    await settled()
    assert (scene.stream.writes, scene.written) == ([], True)
    assert scene.worn == worn == (not broken)


async def test_discarding_forgets_what_was_not_written(nursery: trio.Nursery) -> None:
    """Also what waits for an older link."""
    scene = Scene(nursery)
    new = Stream()
    scene.outbox.append(b"nobody reads this")
    scene.outbox.switch(link_of(new), last=b"last")
    scene.outbox.append(b"nor this")
    scene.outbox.discard()
    scene.outbox.close()
    await settled()
    assert scene.stream.writes == new.writes == []
    assert scene.written


@pytest.mark.parametrize("how", ["first link", "switched"])
@pytest.mark.parametrize("written", [False, True])
async def test_a_confirmation_is_written_first_and_once(nursery: trio.Nursery, how: str, *, written: bool) -> None:
    """With what was said by then; and ahead of the last words where all else is discarded, if it was not before."""
    stream = Stream()
    link = link_of(stream, b"confirmed ")
    if how == "first link":
        outbox = Outbox(link, worn=lambda: None, max_records=1000)
    else:
        outbox = Outbox(link_of(Stream()), worn=lambda: None, max_records=1000)
        outbox.switch(link, last=b"last")
    outbox.append(b"and more")
    if written:
        nursery.start_soon(outbox.write)
        await settled()
        outbox.append(b"too late")
    outbox.discard()
    outbox.append(b"goodbye")
    outbox.close()
    if not written:
        nursery.start_soon(outbox.write)
    await settled()
    assert stream.writes == ([b"confirmed and more", b"goodbye"] if written else [b"confirmed goodbye"])


@pytest.mark.parametrize("how", ["at once", "by the writer", "held up", "broken", "broken before", "across a switch"])
async def test_which_channels_may_have_been_opened(nursery: trio.Nursery, how: str) -> None:
    """Those whose OPEN a transport was given. What still waits, or met a broken link, nobody has seen."""
    stream = Stream()
    outbox = Outbox(link_of(stream), worn=lambda: None, max_records=1000)

    async def write() -> None:
        with suppress(trio.BrokenResourceError):
            await outbox.write()

    nursery.start_soon(write)
    stream.roomy = how == "at once"
    stream.broken = how == "broken"
    stream.send_broken = how in ("broken", "broken before")
    stream.open = trio.Event() if how in ("held up", "across a switch") else stream.open
    outbox.append(b"OPEN 1")
    outbox.opened = 1
    assert outbox.offered == 0
    if how in ("at once", "broken"):
        outbox.flush()
    await settled()
    assert outbox.offered == (how not in ("broken", "broken before"))
    if how in ("held up", "across a switch"):
        if how == "across a switch":
            outbox.switch(link_of(Stream()), last=b"")
        outbox.append(b"OPEN 3")
        outbox.opened = 3
        await settled()
        assert outbox.offered == 1
        stream.open.set()
        await settled()
        assert outbox.offered == 3


async def test_a_switch_parts_what_came_before_from_what_comes_after(nursery: trio.Nursery) -> None:
    """In one step, whatever the old link is doing; and says when that has everything."""
    scene = Scene(nursery)
    new = Stream()
    scene.stream.open = trio.Event()
    scene.outbox.append(b"under way")
    await settled()
    scene.outbox.append(b"before")
    written = scene.outbox.switch(link_of(new, b"first "), last=b" last")
    scene.outbox.append(b"after")
    assert scene.outbox.link.stream is cast("object", new)
    await settled()
    assert not written.is_set()
    assert new.writes == []
    scene.stream.open.set()
    await settled()
    assert written.is_set()
    assert scene.stream.writes == [b"under way", b"before last"]
    assert new.writes == [b"first after"]


async def test_flushing_writes_at_once_where_that_is_possible(nursery: trio.Nursery) -> None:
    """And leaves nothing to the writer, which was woken already."""
    scene = Scene(nursery)
    scene.stream.roomy = True
    await settled()
    scene.outbox.append(b"now")
    scene.outbox.flush()
    assert scene.stream.at_once == [b"now"]
    scene.outbox.flush()  # nothing is pending
    await settled()
    assert scene.stream.at_once == [b"now"]
    assert scene.stream.writes == []
    assert scene.outbox.bytes_written == 3


async def test_what_a_flush_left_over_is_written_without_more_to_write(nursery: trio.Nursery) -> None:
    """The stream holds it, ahead of what comes next."""
    scene = Scene(nursery)
    scene.stream.roomy = True
    await settled()
    scene.outbox.append(b"now")
    scene.outbox.flush()
    scene.stream.unsent = True
    await settled()
    assert scene.stream.writes == [b""]
    assert not scene.stream.unsent


@pytest.mark.parametrize("then", ["left to the writer", "flushed", "flushed in part", "not flushed", "nothing"])
async def test_the_writer_sleeps_while_it_is_held(nursery: trio.Nursery, then: str) -> None:
    """And is woken where something is left for it, only there."""
    scene = Scene(nursery)
    await settled()
    scene.outbox.hold()
    if then != "nothing":
        scene.outbox.append(b"one ")
        scene.outbox.append(b"two")
    await settled()
    assert (scene.stream.at_once, scene.stream.writes) == ([], [])
    scene.stream.roomy = then.startswith("flushed")
    scene.outbox.release(flush=then != "left to the writer")
    assert scene.stream.at_once == ([b"one two"] if scene.stream.roomy else [])
    # Not woken yet by then, it can see what the socket did not take.
    scene.stream.unsent = then == "flushed in part"
    scene.outbox.hold()
    scene.outbox.release()
    await settled()
    assert scene.stream.writes == {"left to the writer": [b"one two"], "flushed in part": [b""]}.get(
        then, [b"one two"] if then == "not flushed" else []
    )
    scene.outbox.append(b"three")  # no longer held
    await settled()
    assert b"three" in scene.stream.at_once + scene.stream.writes


async def test_flushing_makes_room(nursery: trio.Nursery) -> None:
    """The writer, woken before, finds nothing to write: who waits for room is not left to the next message."""
    scene = Scene(nursery)
    scene.stream.roomy = True
    nursery.start_soon(scene.outbox.room.park)
    await settled()
    scene.outbox.append(bytes(outbox.HIGH_WATER))
    scene.outbox.flush()
    await settled()
    assert (scene.outbox.full, len(scene.outbox.room)) == (False, 0)


@pytest.mark.parametrize("why", ["no room", "broken", "closed", "sending", "closing", "switched"])
async def test_flushing_where_it_is_not_possible_leaves_it_to_the_writer(nursery: trio.Nursery, why: str) -> None:
    """Nothing is lost, doubled or reordered; a link that is broken is for the writer to find."""
    scene = Scene(nursery)
    await settled()
    if why == "sending":
        scene.stream.open = trio.Event()
        scene.outbox.append(b"first ")
        await settled()
    scene.outbox.append(b"now")
    if why == "closing":
        scene.outbox.close()
    elif why == "switched":
        scene.outbox.switch(link_of(scene.stream, b" then"), last=b"")
    scene.stream.broken, scene.stream.closed = why == "broken", why == "closed"
    scene.stream.roomy = why != "no room"
    scene.outbox.flush()
    assert scene.stream.at_once == []
    scene.stream.broken = scene.stream.closed = scene.stream.roomy = False
    scene.stream.open.set()
    await settled()
    assert b"".join(scene.stream.writes) in (b"now", b"first now", b"now then")
    assert b"now" in b"".join(scene.stream.writes)


async def test_the_writer_too_writes_at_once_where_that_is_possible(nursery: trio.Nursery) -> None:
    """What is left over it sees through before it looks for more."""
    scene = Scene(nursery)
    scene.stream.roomy = True
    scene.outbox.append(b"all of it")
    await settled()
    scene.stream.unsent, scene.stream.open = True, trio.Event()
    scene.outbox.append(b"some of it")
    await settled()
    scene.outbox.append(b"waits")
    await settled()
    assert (scene.stream.at_once, scene.stream.writes) == ([b"all of it", b"some of it"], [])
    scene.stream.open.set()
    await settled()
    assert scene.stream.at_once == [b"all of it", b"some of it", b"waits"]
    assert scene.stream.writes == [b""]
    assert scene.outbox.bytes_written == 24


async def test_the_writer_finds_a_broken_link() -> None:
    """And raises; what was appended is nobody's any more."""
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            scene = Scene(nursery)
            scene.stream.broken = True
            scene.outbox.append(b"x")


async def test_wear_is_told_after_each_write_from_the_limit_on(nursery: trio.Nursery) -> None:
    """Whoever is told decides what that means."""
    scene = Scene(nursery, max_records=2)
    told = []
    for _ in range(3):
        scene.outbox.append(b"x")
        await settled()
        told.append(scene.worn)
    assert told == [0, 1, 2]


async def test_marks(nursery: trio.Nursery) -> None:
    """Senders wait from the high water mark on, and are woken as the writer takes it; a flood of answers overflows."""
    scene = Scene(nursery)

    def marks(size: int) -> tuple[bool, bool]:
        scene.outbox.append(bytes(size))
        return scene.outbox.full, scene.outbox.overflowing

    async with trio.open_nursery() as waiting:
        waiting.start_soon(scene.outbox.room.park)
        await settled()
        assert [marks(outbox.HIGH_WATER - 1), marks(1)] == [(False, False), (True, False)]
    assert [marks(0), marks(outbox.CEILING), marks(1)] == [(False, False), (True, False), (True, True)]
