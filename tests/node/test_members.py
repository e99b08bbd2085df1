"""Members: which nodes there are, one of which a request reaches, and all of which a mesh keeps connected."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from address_book import AddressBook
from trionode import (
    AcceptorOptions,
    ConnectorChanged,
    ConnectorPhase,
    Endpoint,
    HandshakeError,
    LocalProtocolError,
    Mesh,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeName,
    NoRouteError,
    PeerFound,
    PeerLost,
    RemoteError,
    ResolverTrouble,
    Route,
)
from trionode._node import membership
from trionode._node.choice import AVOIDED, Choice
from trionode._util.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from conftest import NodeFactory

    from trionode import EventStream, NodeEvent, ServiceChannel

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
WORKERS = [NodeName.parse(f"worker-{n}@localhost") for n in range(3)]

#: Nothing listens there.
DEAD = Endpoint("127.0.0.1", 1)


@pytest.fixture
def book() -> AddressBook:
    """What the nodes of a test follow."""
    return AddressBook()


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def next_of(events: EventStream, *kinds: type[NodeEvent]) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError("the node ended")


@asynccontextmanager
async def workers(node: NodeFactory, book: AddressBook, count: int = 3, **services: Any) -> AsyncIterator[list[Node]]:
    """So many workers, in the book; each replies with its own name to `who`."""
    async with AsyncExitStack() as stack:
        opened: list[Node] = []
        for name in WORKERS[:count]:

            async def who(channel: ServiceChannel, name: NodeName = name) -> None:
                await channel.receive()
                await channel.send(str(name).encode())

            each = await stack.enter_async_context(node(str(name), services={"who": who, **services}))
            book.enter_node(each)
            opened.append(each)
        yield opened


# Which there are ------------------------------------------------------------------------------------------------------


async def test_members_are_what_the_resolver_names(node: NodeFactory, book: AddressBook) -> None:
    """Those that match, without the node itself, as they come and go; each change is an event."""
    book.enter(ALPHA, DEAD)
    book.enter(WORKERS[0], DEAD)
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
            assert await next_of(events, PeerFound) == PeerFound(node=ALPHA, name=WORKERS[0])
            assert alpha.members() == {WORKERS[0]}
            assert alpha.members(ALPHA) == set()
            book.enter(WORKERS[1], DEAD)
            book.enter(BETA, DEAD)
            found = {(await next_of(events, PeerFound)).name for _ in range(2)}
            assert found == {WORKERS[1], BETA}
            assert alpha.members("worker-*@*") == set(WORKERS[:2])
            assert alpha.members("beta@LOCALHOST") == {BETA}
            book.drop(WORKERS[0])
            assert await next_of(events, PeerLost) == PeerLost(node=ALPHA, name=WORKERS[0])
            assert alpha.members() == {WORKERS[1], BETA}
            assert alpha.statistics().members == 2
            with pytest.raises(ValueError, match="@"):
                alpha.members("worker*")


async def test_members_are_also_those_that_are_connected(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Without any resolver, verified peers are the members, whoever dialled."""
    with trio.fail_after(10):
        async with node(str(ALPHA)) as alpha, node(str(BETA)) as beta:
            assert alpha.members() == set()
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    assert await alpha.wait_members("beta@*", 1) == {BETA}

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                connection = await beta.connect(ALPHA, route_to(alpha))
            assert alpha.members() == {BETA}
            assert beta.members("alpha@*") == {ALPHA}
            await connection.aclose()
            assert beta.members() == set()
            assert alpha.statistics().members_age is None


async def test_only_what_is_followed_counts(node: NodeFactory, book: AddressBook) -> None:
    """`NetworkOptions.members` says which names are followed; none, and the resolver is not asked for any."""
    for name in (*WORKERS, BETA):
        book.enter(name, DEAD)
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book, members=["worker-1@*", "beta@*"]) as alpha:
            assert await alpha.wait_members("*", 2) == {WORKERS[1], BETA}
        async with node(str(ALPHA), resolver=book, members=[]) as alpha:
            await trio.testing.wait_all_tasks_blocked()
            assert alpha.members() == set()
        async with node(str(ALPHA), resolver=book, mode=NetworkMode.DISABLED) as alpha:
            await trio.testing.wait_all_tasks_blocked()
            assert alpha.members() == set()


async def test_waiting_for_members(node: NodeFactory, book: AddressBook) -> None:
    """It returns once there are so many; cancelling is harmless; a node that closes says so."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def wait_in_vain(alpha: Node) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await alpha.wait_members("gamma@*", 1)

            async with node(str(ALPHA), resolver=book) as alpha:
                with trio.testing.assert_checkpoints():
                    assert await alpha.wait_members("worker-*@*", 0) == set()
                with trio.move_on_after(0.01) as scope:
                    await alpha.wait_members("worker-*@*")
                assert scope.cancelled_caught
                for name in WORKERS:
                    book.enter(name, DEAD)
                assert await alpha.wait_members("worker-*@*", 3) == set(WORKERS)
                with pytest.raises(ValueError, match="count"):
                    await alpha.wait_members("*", -1)
                nursery.start_soon(wait_in_vain, alpha)
                await trio.testing.wait_all_tasks_blocked()


# A registry is hostile input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [7, object(), [str(BETA)], [BETA, None], "beta@localhost"],
    ids=["number", "object", "texts", "mixed", "text"],
)
async def test_names_that_are_none(
    node: NodeFactory, monkeypatch: pytest.MonkeyPatch, book: AddressBook, answer: Any
) -> None:
    """What is no collection of names is reported, what was known stays, and it is asked again."""
    monkeypatch.setattr(membership, "BACKOFF", Backoff(first=0.002, longest=0.01))
    monkeypatch.setattr(membership, "PACE", 0)
    book.enter(BETA, DEAD)
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
            await alpha.wait_members(BETA)
            book.named = answer
            book.tell()
            trouble = await next_of(events, ResolverTrouble)
            assert trouble.name is None
            assert "NodeName" in str(trouble.error)
            assert alpha.members() == {BETA}
            age = alpha.statistics().members_age
            assert age is not None
            assert age >= 0
            book.named = None
            book.enter(WORKERS[0], DEAD)
            assert await alpha.wait_members("*", 2) == {BETA, WORKERS[0]}
            assert alpha.statistics().members_age == 0
            assert alpha.statistics().resolver_troubles >= 1


async def test_flood_of_names_is_cut_short(
    node: NodeFactory, book: AddressBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more names than are taken the rest is left out, and that is reported; readers of events lose the oldest."""
    monkeypatch.setattr("trionode._node.resolvers.MAX_NAMES", 50)
    monkeypatch.setattr(membership, "MAX_NAMES", 50)
    book.entries = {NodeName.parse(f"n{n}@localhost"): (DEAD,) for n in range(60)}
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
            trouble = await next_of(events, ResolverTrouble)
            assert "60" in str(trouble.error)
            assert len(alpha.members()) == 50


async def test_changes_come_at_a_bounded_pace(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """A registry that changes its mind all the time is heard some twenty times a second, and not more often."""
    with trio.fail_after(1000):
        async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
            changes = 0
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:

                    async def flap() -> None:
                        while True:
                            book.enter(BETA, DEAD)
                            await trio.sleep(0.001)
                            book.drop(BETA)
                            await trio.sleep(0.001)

                    nursery.start_soon(flap)
                    while True:
                        await next_of(events, PeerFound, PeerLost)
                        changes += 1
            assert 2 <= changes <= 10 / membership.PACE + 1


async def test_outage_makes_no_member_disappear(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """While the resolver fails its members stay, trouble is told with growing waits, and then it is heard at once."""
    book.enter(BETA, DEAD)
    async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
        await alpha.wait_members(BETA)
        book.fail(OSError("the registry is down"))
        began, troubles = trio.current_time(), 0
        with trio.move_on_after(300):
            while True:
                trouble = await next_of(events, ResolverTrouble)
                assert "the registry is down" in str(trouble.error)
                troubles += 1
        assert 300 / membership.BACKOFF.longest <= troubles <= 60
        assert alpha.members() == {BETA}
        assert alpha.statistics().members_age == pytest.approx(trio.current_time() - began, abs=1)
        book.fail(None)
        book.enter(WORKERS[0], DEAD)
        began = trio.current_time()
        await alpha.wait_members(WORKERS[0])
        assert trio.current_time() - began <= membership.BACKOFF.longest


# What was known last --------------------------------------------------------------------------------------------------


async def test_dials_use_what_was_known_last(node: NodeFactory, book: AddressBook) -> None:
    """While the resolver fails a name is dialled where it was; trouble is told, and a failure says how old that is."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book, members=[]) as alpha:
            async with workers(node, book, 1):
                await alpha.connect(WORKERS[0])
                book.fail(OSError("the registry is down"))
                async with alpha.events() as events:
                    await alpha.connections[WORKERS[0]].aclose()
                    await alpha.connect(WORKERS[0])
                    trouble = await next_of(events, ResolverTrouble)
                    assert trouble.name == WORKERS[0]
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect(WORKERS[0])
            [note] = caught.value.__notes__
            assert " s ago" in note
            with pytest.raises(NoRouteError, match="the registry is down"):
                await alpha.connect(BETA)


async def test_resolver_that_hangs_costs_little_where_there_is_an_answer(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """It is waited for no longer than two seconds, where what it said last may do."""
    async with node(str(ALPHA), resolver=book) as alpha:
        book.enter(BETA, DEAD, DEAD)
        with pytest.raises(NoRouteError):
            await alpha.connect(BETA)

        async def hang(name: NodeName) -> Sequence[Endpoint]:
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        book.resolve = hang  # type: ignore[method-assign]
        began = trio.current_time()
        with pytest.raises(NoRouteError, match=r"2 s ago.* failed|failed .*2 s ago"):
            await alpha.connect(BETA)
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        with pytest.raises(NoRouteError, match="did not answer in time"):
            await alpha.connect(WORKERS[0])
        assert trio.current_time() - began == pytest.approx(12, abs=0.2)


async def test_resolver_that_knows_no_more_is_believed(node: NodeFactory, book: AddressBook) -> None:
    """A name that it knew is gone when it says so; that is no outage."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book, 1):
            await (await alpha.connect(WORKERS[0])).aclose()
            book.drop(WORKERS[0])
            with pytest.raises(NoRouteError, match="does not know it"):
                await alpha.connect(WORKERS[0])


# One of several -------------------------------------------------------------------------------------------------------


async def test_call_reaches_one_that_matches(node: NodeFactory, book: AddressBook) -> None:
    """One after the other they stay on what is connected; what it refuses is the answer."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book):
            await alpha.wait_members("worker-*@*", 3)
            replies = {await alpha.call("worker-*@*", "who", b"") for _ in range(10)}
            assert len(replies) == 1
            assert len(alpha.connections) == 1
            with pytest.raises(RemoteError, match="unknown_service"):
                await alpha.call("worker-*@*", "what", b"")
            assert len(alpha.connections) == 1
            async with alpha.open_channel("worker-*@*", "who") as channel:
                await channel.send(b"")
                assert await channel.receive() in replies


async def test_many_at_once_spread_over_all(node: NodeFactory, book: AddressBook) -> None:
    """The fewest channels first: what is open on one member sends the next request to another."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book), AsyncExitStack() as stack:
            await alpha.wait_members("worker-*@*", 3)
            held = [await stack.enter_async_context(alpha.open_channel("worker-*@*", "who")) for _ in range(6)]
            assert sorted(channel.peer.name for channel in held) == sorted([*WORKERS, *WORKERS])


async def test_member_that_cannot_be_reached_is_passed_over(node: NodeFactory, book: AddressBook) -> None:
    """Where no connection can be made the next one is tried, and the dead one comes last from then on."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book, 1):
            for name in WORKERS[1:]:
                book.enter(name, DEAD)
            await alpha.wait_members("worker-*@*", 3)
            for _ in range(20):
                assert await alpha.call("worker-*@*", "who", b"") == str(WORKERS[0]).encode()
                await alpha.connections[WORKERS[0]].aclose()
            assert book.asked.count(WORKERS[1]) <= 1
            assert book.asked.count(WORKERS[2]) <= 1


async def test_no_member_can_be_reached(node: NodeFactory, book: AddressBook) -> None:
    """One that failed is told as itself, several as a group, and none at all says what to do."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha:
            with pytest.raises(NoRouteError, match="wait_members") as none:
                await alpha.call("worker-*@*", "who", b"")
            assert none.value.name is None
            assert none.value.causes is None
            book.enter(WORKERS[0], DEAD)
            await alpha.wait_members("worker-*@*", 1)
            with pytest.raises(HandshakeError):
                await alpha.call("worker-*@*", "who", b"")
            book.enter(WORKERS[1], DEAD)
            await alpha.wait_members("worker-*@*", 2)
            with pytest.raises(NoRouteError, match="took the request") as several:
                async with alpha.open_channel("worker-*@*", "who"):
                    pytest.fail("opened")
            assert several.value.causes is not None
            assert len(several.value.causes.exceptions) == 2


async def test_draining_member_gets_nothing_more(node: NodeFactory, book: AddressBook) -> None:
    """A member that drains is left out while it still serves what is open, also where the resolver still names it."""
    begun, finish = trio.Event(), trio.Event()

    async def slow(channel: ServiceChannel) -> None:
        begun.set()
        await finish.wait()
        await channel.send(b"done")

    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book, 2, slow=slow) as [first, second]:
            await alpha.wait_members("worker-*@*", 2)
            await alpha.connect(first.name)
            async with alpha.open_channel(first.name, "slow") as channel, trio.open_nursery() as nursery:
                await begun.wait()
                nursery.start_soon(first.drain)
                await trio.testing.wait_all_tasks_blocked(0.01)
                for _ in range(5):
                    assert await alpha.call("worker-*@*", "who", b"") == str(second.name).encode()
                finish.set()
                assert await channel.receive() == b"done"


async def test_member_at_its_limit_is_passed_over(node: NodeFactory, book: AddressBook) -> None:
    """One that allows no further channel has certainly not run the request: the next one gets it."""
    with trio.fail_after(10):
        async with (
            node(str(ALPHA), resolver=book) as alpha,
            node(str(WORKERS[0]), services={"echo": echo}, max_channels=1) as narrow,
            node(str(WORKERS[1]), services={"echo": echo}) as wide,
            AsyncExitStack() as stack,
        ):
            for each in narrow, wide:
                book.enter_node(each)
            await alpha.wait_members("worker-*@*", 2)
            for name in (WORKERS[0], WORKERS[1], WORKERS[1]):
                await stack.enter_async_context(alpha.open_channel(name, "echo"))
            for _ in range(3):
                assert await alpha.call("worker-*@*", "echo", b"x") == b"x"
            channel = await stack.enter_async_context(alpha.open_channel("worker-*@*", "echo"))
            assert channel.peer.name == WORKERS[1]
            book.drop(WORKERS[1])
            with pytest.raises(RemoteError, match="limit"):
                await alpha.call("worker-0@*", "echo", b"x")


async def test_what_may_have_run_is_not_repeated(node: NodeFactory, book: AddressBook) -> None:
    """A call that failed, or whose connection was lost, is not made again elsewhere."""
    ran: list[str] = []
    running = trio.Event()

    async def fails(channel: ServiceChannel) -> None:
        ran.append("fails")
        raise ValueError("no")

    async def cut(channel: ServiceChannel) -> None:
        ran.append("cut")
        running.set()
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book) as alpha, workers(node, book, 3, fails=fails, cut=cut) as three:
            await alpha.wait_members("worker-*@*", 3)
            with pytest.raises(RemoteError, match="failed"):
                await alpha.call("worker-*@*", "fails", b"")

            async def close_all() -> None:
                await running.wait()
                for each in three:
                    for connection in each.connections.values():
                        await connection.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_all)
                with pytest.raises((trio.BrokenResourceError, RemoteError)):
                    await alpha.call("worker-*@*", "cut", b"")
            assert ran == ["fails", "cut"]


async def test_a_pattern_and_a_route_exclude_each_other(node: NodeFactory) -> None:
    """A route leads to one node."""
    with trio.fail_after(10):
        async with node(str(ALPHA)) as alpha:
            with pytest.raises(LocalProtocolError, match="route"):
                await alpha.call("worker-*@*", "who", b"", route=Route())
            with pytest.raises(LocalProtocolError, match="route"):
                async with alpha.open_channel("worker-*@*", "who", route=Route()):
                    pytest.fail("opened")
            with pytest.raises(ValueError, match="@"):
                await alpha.call("worker*", "who", b"")
        with pytest.raises(trio.ClosedResourceError):
            await alpha.call("worker-*@*", "who", b"")


async def test_equals_are_chosen_by_chance(autojump_clock: trio.testing.MockClock) -> None:
    """Of members that are alike each has its turn; one that failed comes last, until that is long ago."""
    choice = Choice(lambda _: None)
    assert {choice.best(WORKERS) for _ in range(200)} == set(WORKERS)
    choice.avoid(WORKERS[0])
    assert {choice.best(WORKERS) for _ in range(200)} == set(WORKERS[1:])
    assert choice.best(WORKERS[:1]) == WORKERS[0]
    await trio.sleep(AVOIDED + 0.1)
    assert {choice.best(WORKERS) for _ in range(200)} == set(WORKERS)


# Kept connections -----------------------------------------------------------------------------------------------------


async def test_news_end_the_wait(node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock) -> None:
    """A peer that appears, or moves, is dialled at once, however long the back-off has become."""
    async with node(str(ALPHA), resolver=book) as alpha:
        connector = alpha.keep_connected(BETA)
        for endpoint in (None, DEAD):
            if endpoint is not None:
                book.enter(BETA, endpoint)
            await trio.sleep(1000)
            assert connector.state.phase is ConnectorPhase.WAITING
            assert connector.state.attempts > 5
        async with node(str(BETA)) as beta:
            began = trio.current_time()
            book.enter_node(beta)
            await alpha.wait_connected(BETA)
            assert trio.current_time() - began <= 1.3
            assert book.watched == []


async def test_peer_that_comes_back_where_it_was_is_dialled_at_once(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """The same endpoints, told again after it had gone, are news."""
    async with node(str(ALPHA), resolver=book) as alpha:
        alpha.keep_connected(BETA)
        async with node(str(BETA)) as beta:
            host, port = beta.acceptors[0].address
            book.enter_node(beta)
            await alpha.wait_connected(BETA)
            book.drop(BETA)
        await trio.sleep(1000)
        async with node(str(BETA), acceptors=[AcceptorOptions(host=host, port=port)]) as beta:
            began = trio.current_time()
            book.enter_node(beta)
            await alpha.wait_connected(BETA)
            assert trio.current_time() - began <= 1.3


async def test_flapping_registry_makes_no_storm_of_dials(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever it says, however often, a peer is dialled about once a second at most."""
    async with node(str(ALPHA), resolver=book) as alpha:
        alpha.keep_connected(BETA)
        await trio.sleep(100)
        before = len(book.asked)
        for n in range(2000):
            book.enter(BETA, Endpoint("127.0.0.1", 1 + n % 2))
            await trio.sleep(0.01)
        assert 10 <= len(book.asked) - before <= 22 + 5


async def test_resolver_without_news_is_waited_out(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """Where watching fails, or a route says where the peer is, the back-off holds as ever."""
    async with node(str(ALPHA), resolver=book) as alpha, alpha.events() as events:
        book.fail(OSError("the registry is down"))
        connector = alpha.keep_connected(BETA)
        with trio.move_on_after(100):
            while (await next_of(events, ResolverTrouble)).name is None:
                pass
        await trio.sleep(300)
        assert connector.state.phase is ConnectorPhase.WAITING
        assert 10 <= book.asked.count(BETA) <= 60
        connector.stop()
        book.fail(None)
        alpha.add_route("gamma@*", Route(host="127.0.0.1", port=1))
        alpha.keep_connected("gamma@localhost")
        await trio.sleep(100)
        assert book.watched == []


async def test_mesh_follows_membership(node: NodeFactory, book: AddressBook) -> None:
    """Every member that matches is connected when it comes, and is left alone once it is gone; the rest never is."""
    with trio.fail_after(20):
        async with node(str(ALPHA), resolver=book) as alpha:
            book.enter(BETA, DEAD)
            mesh = alpha.keep_connected("worker-*@*")
            assert isinstance(mesh, Mesh)
            assert alpha.keep_connected("worker-*@*") is mesh
            assert mesh.state.phase is ConnectorPhase.WAITING
            async with workers(node, book) as three:
                connection = await alpha.wait_connected("worker-*@*")
                assert connection.peer.name in WORKERS
                for name in WORKERS:
                    await alpha.wait_members(name)
                    await alpha.wait_connected(name)
                assert set(mesh.connectors) == set(WORKERS) == set(alpha.connectors)
                assert mesh.state.connection in alpha.connections.values()
                assert "3 members" in repr(mesh)
                async with alpha.events() as events:
                    book.drop(WORKERS[1])
                    await next_of(events, PeerLost)
                live = alpha.connections[WORKERS[1]]
                assert live.live
                assert set(mesh.connectors) == {WORKERS[0], WORKERS[2]}
                await trio.testing.wait_all_tasks_blocked()
                assert set(alpha.connectors) == {WORKERS[0], WORKERS[2]}
                await three[1].connections[ALPHA].aclose()
                await live.wait_closed()
                await trio.testing.wait_all_tasks_blocked()
                assert WORKERS[1] not in alpha.connections
                book.enter_node(three[1])
                await alpha.wait_members(WORKERS[1])
                assert (await alpha.wait_connected(WORKERS[1])).live


async def test_mesh_spreads_its_first_dials(
    node: NodeFactory, book: AddressBook, autojump_clock: trio.testing.MockClock
) -> None:
    """Of many members that are found at once each is dialled at a time of its own, soon; a single one at once."""
    async with node(str(ALPHA), resolver=book, keep_connected=["*"]) as alpha, alpha.events() as events:
        for count, most in (1, 0.02), (40, 0.8), (200, 2.0):
            book.entries = {NodeName.parse(f"n{n}-of-{count}@localhost"): (DEAD,) for n in range(count)}
            book.tell()
            await next_of(events, PeerFound)
            began = trio.current_time()
            times: list[float] = []
            while len(times) < count:
                event = await next_of(events, ConnectorChanged)
                if event.state.attempts == 1 and event.state.phase is ConnectorPhase.CONNECTING:
                    times.append(trio.current_time() - began)
            assert len(set(times)) == count
            assert max(times) <= most + 0.001
            assert count < 40 or max(times) > most / 2


async def test_mesh_that_stops(node: NodeFactory, book: AddressBook) -> None:
    """It leaves its connections, reconnects to none, and does not stop what is kept for another reason."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=book, keep_connected=["worker-*@*", WORKERS[0]]) as alpha:
            async with workers(node, book):
                mesh = alpha.keep_connected("worker-*@*")
                await alpha.wait_members("worker-*@*", 3)
                for name in WORKERS:
                    await alpha.wait_connected(name)
                mesh.stop()
                mesh.stop()
                assert mesh.stopped
                with pytest.raises(trio.ClosedResourceError):
                    await mesh.wait_up()
                await trio.testing.wait_all_tasks_blocked()
                assert set(alpha.connectors) == {WORKERS[0]}
                assert set(alpha.connections) == set(WORKERS)
                with pytest.raises(NoRouteError, match="keep_connected"):
                    await alpha.wait_connected("worker-*@*")
                again = alpha.keep_connected("worker-*@*")
                assert again is not mesh
                assert (await again.wait_up()).live
        assert again.stopped


def test_options_take_patterns() -> None:
    """Names and globs; what is neither is refused."""
    options = NetworkOptions(keep_connected=["worker@*", BETA], members=["worker@*"])
    assert options.keep_connected == ("worker@*", BETA)
    for wrong in ({"keep_connected": ["worker*"]}, {"members": ["worker"]}):
        with pytest.raises(ValueError, match="worker"):
            NetworkOptions(**wrong)  # type: ignore[arg-type]
