"""Renewal by itself, on a clock that jumps: when each connection gets its turn, and why; with doubles for the rest."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from trionode import HandshakeError, LiveConnections, Renew
from trionode._connection.end import EndReason
from trionode._connection.hand_over import RenewalCause
from trionode._node.renewal import (
    ASK_AGAIN,
    BACKOFF,
    LOOK_AT_CLOCK,
    SPACING,
    Renewal,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionode import CertManager
    from trionode._connection.core import ConnectionCore

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = 3600.0


class Manager:
    """Publishes generations; its clock goes with Trio's."""

    def __init__(self) -> None:
        self.generation = 1
        self.ends: datetime | None = None
        self._began = trio.current_time()
        self._publisher = self  # what the package itself works with

    def now(self) -> datetime:
        """The time."""
        return START + timedelta(seconds=trio.current_time() - self._began)


class Double:
    """A connection, as renewal sees it: it notes what is done to it, and when."""

    def __init__(
        self, world: World, *, dials: bool = True, ours: float | None = None, theirs: float | None = None
    ) -> None:
        self.world = world
        self.dials = dials
        self.generation = 1
        self.live, self.ended = True, False
        self.records = 0
        self.moves: list[float] = []
        self.asks: list[float] = []
        self.closes: list[tuple[float, EndReason, float]] = []
        self.ends: list[tuple[float, EndReason]] = []
        self.took = 0.0
        self.error: Exception | None = None
        self.peer = SimpleNamespace(name="peer@localhost", address=None)
        self.obeys = not dials
        self.renewed_end = ours
        self.new_link(ours, theirs)

    def new_link(self, ours: float | None, theirs: float | None) -> None:
        """What it is on; certificates end so many seconds after the start."""
        self.link = SimpleNamespace(
            stream=SimpleNamespace(certificate=_certificate(ours)),
            peer=SimpleNamespace(certificate=_certificate(theirs), verified=theirs is not None),
        )
        self.until = ours, theirs

    @property
    def superseded(self) -> bool:
        """As a connection says it."""
        return self.generation < self.world.manager.generation

    def worn(self, records: int) -> bool:
        """As a connection says it."""
        return self.records >= records

    def check_not_ended(self) -> None:
        """As a connection says it."""
        if self.ended:
            raise trio.ClosedResourceError

    async def wait_settled(self) -> None:
        """It always has."""
        await trio.lowlevel.checkpoint()
        self.check_not_ended()

    async def wait_moved(self, link: object) -> None:
        """Wait until it is on another link."""
        while self.link is link:  # noqa: ASYNC110 -- a double
            await trio.sleep(0.01)

    @property
    def hand_over(self) -> Double:
        """It stands for that, too."""
        return self

    def joining(self, scope: trio.CancelScope) -> Any:
        """Nothing ends while it moves."""
        return trio.CancelScope()

    async def redial(self) -> Any:
        """The handshake of a hand-over."""
        self.moves.append(trio.current_time())
        self.world.at_once += 1
        self.world.most_at_once = max(self.world.most_at_once, self.world.at_once)
        try:
            await trio.sleep(self.took)
        finally:
            self.world.at_once -= 1
        if self.error is not None:
            raise self.error
        return SimpleNamespace()

    def commit(self, link: object, *, follows: object) -> None:
        """It moves, and that settles at once."""
        self.generation = self.world.manager.generation
        self.records = 0
        self.new_link(self.renewed_end, self.until[1])
        self.world.renewal.moved(cast("ConnectionCore", self))

    def ask_for_renewal(self) -> None:
        """The peer is asked."""
        self.asks.append(trio.current_time())
        if self.obeys:
            self.commit(None, follows=None)

    async def supersede(self, reason: EndReason, *, grace: float) -> None:
        """It is closed gracefully; what is under way takes the whole grace."""
        self.live = False
        self.closes.append((trio.current_time(), reason, grace))
        self.world.at_once += 1
        self.world.most_at_once = max(self.world.most_at_once, self.world.at_once)
        await trio.sleep(grace)
        self.world.at_once -= 1
        self.end(reason)

    def end(self, reason: EndReason) -> None:
        """It ends now."""
        if not self.ended:
            self.live, self.ended = False, True
            self.ends.append((trio.current_time(), reason))

    def expire(self) -> None:
        """It ends now, for that reason."""
        self.end(EndReason.EXPIRED)


def _certificate(end: float | None) -> Any:
    return None if end is None else SimpleNamespace(not_valid_after_utc=START + timedelta(seconds=end))


class World:
    """A renewal at work, and what it reported."""

    def __init__(self, options: LiveConnections) -> None:
        self.manager = Manager()
        self.began = trio.current_time()
        self.at_once = self.most_at_once = 0
        self.moved: list[object] = []
        self.failed: list[tuple[float, RenewalCause]] = []
        self.renewal = Renewal(
            options,
            patience=20,
            moved=lambda connection, cause: self.moved.append(connection),
            failed=lambda connection, cause, error: self.failed.append((trio.current_time(), cause)),
        )

    def connection(self, **double: Any) -> Double:
        """A connection that is up."""
        connection = Double(self, **double)
        self.renewal.watch(
            cast("ConnectionCore", connection),
            cast("CertManager", self.manager),
            connection.redial if connection.dials else None,
        )
        return connection

    def rotate(self) -> None:
        """The next generation."""
        self.manager.generation += 1
        self.renewal.rotated(cast("CertManager", self.manager))

    def renew(self, connection: Double, cause: RenewalCause) -> None:
        """What the connection tells."""
        self.renewal.renew(cast("ConnectionCore", connection), cause)

    async def reauthenticate(self, connection: Double) -> None:
        """By hand."""
        await self.renewal.reauthenticate(cast("ConnectionCore", connection))

    def passed(self) -> float:
        """Since the beginning."""
        return trio.current_time() - self.began


async def supersede(connection: Any, reason: EndReason, *, grace: float) -> None:
    """End a double gracefully."""
    await connection.supersede(reason, grace=grace)


@pytest.fixture(autouse=True)
def ends_of_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubles know how they end."""
    monkeypatch.setattr("trionode._node.renewal.supersede", supersede)


@asynccontextmanager
async def at_work(**options: Any) -> AsyncIterator[World]:
    """A renewal with these options."""
    world = World(LiveConnections(**options))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.renewal.run)
        yield world
        nursery.cancel_scope.cancel()


# After a rotation


async def test_turns_are_spread_over_the_span(autojump_clock: trio.testing.MockClock) -> None:
    """Each connection has its turn within the span, and they are spread over it."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=100, parallel=1000) as world:
        connections = [world.connection() for _ in range(200)]
        world.rotate()
        await trio.sleep(101)
        times = sorted(time - world.began for each in connections for time in each.moves)
        assert len(times) == 200
        assert all(0 <= time <= 100 for time in times)
        assert max(Counter(int(time // 10) for time in times).values()) < 60, "not all at once"
        assert len({int(time // 10) for time in times}) == 10, "over the whole of it"
        assert not any(each.superseded for each in connections)


@pytest.mark.parametrize("mode", [Renew.HAND_OVER, Renew.CLOSE])
async def test_so_many_at_once(mode: Renew, autojump_clock: trio.testing.MockClock) -> None:
    """Never more than `parallel`, and all have their turn."""
    async with at_work(on_rotation=mode, within=1, parallel=3, grace=2) as world:
        connections = [world.connection() for _ in range(20)]
        for each in connections:
            each.took = 2
        world.rotate()
        await trio.sleep(30)
        assert world.most_at_once == 3
        assert all(each.moves or each.closes for each in connections)


async def test_rotations_during_the_wait_do_not_put_it_off(autojump_clock: trio.testing.MockClock) -> None:
    """The turn that the first of several rotations drew stands; the hand-over brings the last."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=10) as world:
        connection = world.connection()
        for _ in range(100):
            world.rotate()
            await trio.sleep(0.1)
        await trio.sleep(0.5)
        assert connection.moves
        assert connection.moves[0] - world.began <= 10


async def test_keep_keeps(autojump_clock: trio.testing.MockClock) -> None:
    """By default nothing happens to a connection that is superseded."""
    async with at_work() as world:
        connection = world.connection(ours=10.0, theirs=10.0)
        world.rotate()
        await trio.sleep(1000)
        assert [*connection.moves, *connection.closes, *connection.ends] == []
        assert connection.superseded


async def test_only_those_of_the_manager_that_rotated(autojump_clock: trio.testing.MockClock) -> None:
    """A connection on another manager's contexts is not superseded, and stays."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=1) as world:
        other = Double(world)
        manager = Manager()
        world.renewal.watch(cast("ConnectionCore", other), cast("CertManager", manager), other.redial)
        other.generation = 100
        world.rotate()
        await trio.sleep(10)
        assert not other.moves


async def test_a_failure_is_reported_and_tried_again_with_backoff(autojump_clock: trio.testing.MockClock) -> None:
    """Waits double up to a minute, jittered; what makes it work again ends them."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=0) as world:
        connection = world.connection()
        connection.error = HandshakeError("no", stage="tls", reason="broken")  # type: ignore[arg-type]
        world.rotate()
        await trio.sleep(600)
        waits = [after - before for before, after in zip(connection.moves, connection.moves[1:], strict=False)]
        for number, wait in enumerate(waits):
            longest = min(BACKOFF.longest, 0.5 * 2**number)
            assert longest / 2 - 1e-6 <= wait <= longest + 1e-6
        assert len(set(waits)) == len(waits)
        assert [cause for _, cause in world.failed] == [RenewalCause.ROTATED] * len(connection.moves)
        connection.error = None
        await trio.sleep(BACKOFF.longest)
        assert not connection.superseded
        assert world.moved == [connection]


@pytest.mark.parametrize("cause", [RenewalCause.ASKED, RenewalCause.WORN])
async def test_nobody_gets_round_the_backoff(cause: RenewalCause, autojump_clock: trio.testing.MockClock) -> None:
    """A peer that asks all the time, and a worn key that is noticed with every write, wait like all others."""
    async with at_work(max_records=10) as world:
        connection = world.connection()
        connection.error = OSError("no")
        connection.records = 10 if cause is RenewalCause.WORN else 0
        with trio.move_on_after(30):
            while True:
                world.renew(connection, cause)
                await trio.sleep(0.01)
        assert 5 <= len(connection.moves) <= 8
        assert {each for _, each in world.failed} == {cause}


async def test_a_peer_that_asks_all_the_time(autojump_clock: trio.testing.MockClock) -> None:
    """It gets what it asks for, so often at most."""
    async with at_work() as world:
        connection = world.connection()
        with trio.move_on_after(10):
            while True:
                world.renew(connection, RenewalCause.ASKED)
                await trio.sleep(0.001)
        waits = [after - before for before, after in zip(connection.moves, connection.moves[1:], strict=False)]
        assert len(waits) > 100
        assert min(waits) >= SPACING - 1e-6


async def test_a_peer_is_asked_so_often_at_most(autojump_clock: trio.testing.MockClock) -> None:
    """The accepting side asks, and asks again after a while, whatever else happens: rotations, worn keys, by hand."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=0, max_records=10) as world:
        connection = world.connection(dials=False)
        connection.obeys = False
        connection.records = 10
        with trio.move_on_after(59):
            while True:
                world.rotate()
                world.renew(connection, RenewalCause.WORN)
                await trio.sleep(0.01)
        waits = [after - before for before, after in zip(connection.asks, connection.asks[1:], strict=False)]
        assert len(connection.asks) >= 10
        assert min(waits) >= ASK_AGAIN - 1e-6


async def test_the_accepting_side_asks_for_each_generation(autojump_clock: trio.testing.MockClock) -> None:
    """One that does what it is asked for is asked again as soon as there is reason to."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=0.01) as world:
        connection = world.connection(dials=False)
        for _ in range(20):
            world.rotate()
            await trio.sleep(0.1)
            assert not connection.superseded
        assert len(connection.asks) == 20


async def test_close_gives_a_grace(autojump_clock: trio.testing.MockClock) -> None:
    """With CLOSE the connection is closed, gracefully, within the span."""
    async with at_work(on_rotation=Renew.CLOSE, within=5, grace=7) as world:
        connection = world.connection()
        world.rotate()
        await trio.sleep(20)
        [(when, reason, grace)] = connection.closes
        assert (reason, grace) == (EndReason.SUPERSEDED, 7)
        assert 0 <= when - world.began <= 5


# Worn keys


async def test_worn_keys(autojump_clock: trio.testing.MockClock) -> None:
    """Handed over at so many records, closed with grace at twice, ended at once at three times; draining, too."""
    async with at_work(max_records=100) as world:
        connection = world.connection()
        connection.error = OSError("no")
        connection.records = 99
        world.renew(connection, RenewalCause.WORN)
        await trio.sleep(1)
        assert not connection.moves
        connection.records = 100
        world.renew(connection, RenewalCause.WORN)
        await trio.sleep(0.1)
        assert len(connection.moves) == 1
        connection.records = 200
        world.renew(connection, RenewalCause.WORN)
        await trio.sleep(0.1)
        assert [reason for _, reason, _ in connection.closes] == [EndReason.WORN]
        assert not connection.ended
        connection.records = 300
        world.renew(connection, RenewalCause.WORN)
        await trio.sleep(0.1)
        assert [reason for _, reason in connection.ends] == [EndReason.WORN]


# Expiry


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_closed_with_lead_time(whose: str, autojump_clock: trio.testing.MockClock) -> None:
    """With CLOSE it is closed so long before a certificate ends, whosever that is, and with a reason that says so."""
    async with at_work(on_expiry=Renew.CLOSE, expiry_lead=HOUR, within=0, grace=30) as world:
        connection = world.connection(**{"ours": 9 * HOUR, "theirs": 9 * HOUR, whose: 2 * HOUR})
        await trio.sleep(3 * HOUR)
        [(when, reason, grace)] = connection.closes
        assert (reason, grace) == (EndReason.EXPIRED, 30)
        assert HOUR <= when - world.began <= HOUR + LOOK_AT_CLOCK


@pytest.mark.parametrize("mode", [Renew.CLOSE, Renew.HAND_OVER])
@pytest.mark.parametrize("dials", [True, False])
async def test_ended_at_the_latest_when_the_certificate_is(
    mode: Renew, dials: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Though all turns are taken by others that hang, and rotations and questions call for turns all the time."""
    async with at_work(on_expiry=mode, on_rotation=Renew.HAND_OVER, parallel=1, within=0, grace=9 * HOUR) as world:
        hanging = world.connection()
        hanging.took = 100 * HOUR
        connection = world.connection(dials=dials, ours=2 * HOUR, theirs=9 * HOUR)
        connection.obeys = False
        connection.error = OSError("no")
        with trio.move_on_after(3 * HOUR):
            while True:
                world.rotate()
                world.renew(connection, RenewalCause.ASKED)
                await trio.sleep(10)
        [(when, reason)] = connection.ends
        assert reason is EndReason.EXPIRED
        assert 2 * HOUR <= when - world.began <= 2 * HOUR + 1


async def test_a_draining_connection_ends_with_its_certificate(autojump_clock: trio.testing.MockClock) -> None:
    """One that is not handed out any more has no longer life for that."""
    async with at_work(on_expiry=Renew.HAND_OVER) as world:
        connection = world.connection(ours=2 * HOUR)
        connection.live = False
        await trio.sleep(3 * HOUR)
        assert not connection.moves
        [(when, _)] = connection.ends
        assert when - world.began == pytest.approx(2 * HOUR, abs=1)


async def test_handed_over_with_lead_time_to_a_new_certificate(autojump_clock: trio.testing.MockClock) -> None:
    """One hand-over for each certificate that comes to its end, where there is a new one."""
    async with at_work(on_expiry=Renew.HAND_OVER, expiry_lead=HOUR, within=0) as world:
        connection = world.connection(ours=10 * HOUR)
        for generation in range(1, 6):
            connection.renewed_end = (generation + 1) * 10 * HOUR
            await trio.sleep(world.began + (generation * 10 - 2) * HOUR - trio.current_time())
            world.rotate()
            assert len(connection.moves) == generation - 1, "rotation alone is no reason here"
            await trio.sleep(1.1 * HOUR)
            assert len(connection.moves) == generation
        assert not connection.ends


@pytest.mark.parametrize("made", [10 * HOUR, HOUR, 60.0])
async def test_a_certificate_that_nobody_renews(made: float, autojump_clock: trio.testing.MockClock) -> None:
    """The peer's may be new by now, so it is tried; a few times, and never all the time; then it ends."""
    async with at_work(on_expiry=Renew.HAND_OVER, expiry_lead=HOUR, within=0) as world:
        connection = world.connection(ours=99 * HOUR, theirs=made)
        await trio.sleep(made + 10)
        assert 3 <= len(connection.moves) <= 14
        assert [reason for _, reason in connection.ends] == [EndReason.EXPIRED]


async def test_no_hand_over_where_none_can_help(autojump_clock: trio.testing.MockClock) -> None:
    """Our own certificate ends, and there is no newer: nothing to be had by moving."""
    async with at_work(on_expiry=Renew.HAND_OVER, expiry_lead=HOUR) as world:
        connection = world.connection(ours=2 * HOUR, theirs=9 * HOUR)
        await trio.sleep(1.5 * HOUR)
        assert not connection.moves
        connection.renewed_end = 50 * HOUR
        world.rotate()
        await trio.sleep(1)
        assert len(connection.moves) == 1, "as soon as there is one"
        await trio.sleep(5 * HOUR)
        assert not connection.ends


async def test_connections_made_late_are_not_closed_all_the_time(autojump_clock: trio.testing.MockClock) -> None:
    """A lifetime shorter than the lead time: each connection lives half of what is left, so there are few."""
    async with at_work(on_expiry=Renew.CLOSE, expiry_lead=HOUR, grace=0) as world:
        made = 0
        while world.passed() < HOUR - 1:
            connection = world.connection(ours=HOUR)
            made += 1
            while not connection.ended:  # noqa: ASYNC110 -- a double
                await trio.sleep(0.5)
        assert made <= 14


async def test_expiring_together_they_do_not_move_together(autojump_clock: trio.testing.MockClock) -> None:
    """Connections that share a certificate have their turns spread, too."""
    async with at_work(on_expiry=Renew.HAND_OVER, expiry_lead=HOUR, within=300, parallel=1000) as world:
        connections = [world.connection(ours=9 * HOUR, theirs=5 * HOUR) for _ in range(200)]
        await trio.sleep(4 * HOUR + 301 + LOOK_AT_CLOCK)
        first = [each.moves[0] - world.began - 4 * HOUR for each in connections]
        assert all(0 <= each <= 300 for each in first)
        assert len({int(each // 30) for each in first}) == 10


async def test_an_unverified_peers_certificate_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A claim authenticates nothing, so it does not end anything either."""
    async with at_work(on_expiry=Renew.CLOSE) as world:
        connection = world.connection(ours=None, theirs=HOUR)
        connection.link.peer.verified = False
        await trio.sleep(5 * HOUR)
        assert [*connection.closes, *connection.ends] == []


# By hand


async def test_by_hand_from_several_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """Each gets a hand-over of its own, one after the other."""
    async with at_work() as world:
        connection = world.connection()
        connection.took = 1
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.reauthenticate, connection)
        assert len(connection.moves) == 3
        assert world.most_at_once == 1


async def test_a_turn_that_waited_for_another_hand_over(autojump_clock: trio.testing.MockClock) -> None:
    """It looks again whether it is still needed."""
    async with at_work(on_rotation=Renew.HAND_OVER, within=0) as world:
        connection = world.connection()
        connection.took = 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.reauthenticate, connection)
            await trio.sleep(1)
            world.rotate()  # before its commit, and this double takes the generation then
        await trio.sleep(100)
        assert len(connection.moves) == 1


async def test_by_hand_on_the_accepting_side_brings_our_newest_certificate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A hand-over that was under way already may have taken an older one: it is asked for another."""
    async with at_work() as world:
        connection = world.connection(dials=False)
        connection.obeys = False
        world.manager.generation = 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.reauthenticate, connection)
            await trio.sleep(0.5)
            connection.new_link(None, None)  # that one
            await trio.sleep(0.5)
            assert len(connection.asks) == 2
            connection.commit(None, follows=None)
        assert not connection.superseded


# Resources


async def test_ten_thousand_connections(autojump_clock: trio.testing.MockClock) -> None:
    """What is not due costs nothing but its entry, however often certificates rotate, and what is over is let go."""
    async with at_work(on_rotation=Renew.HAND_OVER, on_expiry=Renew.HAND_OVER, within=HOUR, parallel=1) as world:
        connections = [world.connection(ours=999 * HOUR) for _ in range(10_000)]
        for _ in range(10):
            world.rotate()
            await trio.sleep(1)
        assert trio.lowlevel.current_statistics().tasks_living < 20
        assert len(world.renewal._looks) <= 4 * 10_000 + 64
        gone = [weakref.ref(each) for each in connections]
        for each in connections:
            each.ended, each.live = True, False
            world.renewal.forget(cast("ConnectionCore", each))
        del each
        connections.clear()
        world.moved.clear()
        await trio.sleep(10)
        gc.collect()
        assert sum(each() is not None for each in gone) <= 1
