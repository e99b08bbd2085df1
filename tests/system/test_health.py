"""Health: what a node says of its services, to whom, and when that ends."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import RemoteCode, RemoteError
from trionode.health import HEALTH, Health, HealthStatus, check_health, check_health_of, watch_health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import NodeFactory

    from trionode import Node, Route

SERVING, NOT_SERVING, UNKNOWN = HealthStatus.SERVING, HealthStatus.NOT_SERVING, HealthStatus.UNKNOWN
SERVICE_UNKNOWN = HealthStatus.SERVICE_UNKNOWN
BETA = "beta@localhost"


class Two:
    """Alpha, which knows the way to beta, which has a health service."""

    def __init__(self, alpha: Node, beta: Node, health: Health) -> None:
        self.alpha, self.beta, self.health = alpha, beta, health


@asynccontextmanager
async def open_two(node: NodeFactory, route_to: Callable[..., Route], **options: Any) -> AsyncIterator[Two]:
    """For the length of a block, beta's the inner one."""
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha, node(BETA, **options) as beta:
            alpha.add_route(BETA, route_to(beta))
            health = Health()
            health.add_to(beta)
            yield Two(alpha, beta, health)


async def test_a_check_says_what_was_said_last(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Of the node and of each service; of what nothing was said of, that."""
    async with open_two(node, route_to) as two:
        assert await check_health(two.alpha, BETA) is SERVING
        assert await check_health(two.alpha, BETA, "orders") is SERVICE_UNKNOWN
        for status in (NOT_SERVING, UNKNOWN, SERVING, SERVICE_UNKNOWN):
            two.health.set("orders", status)
            assert await check_health(two.alpha, BETA, "orders") is status
            assert two.health.status("orders") is status
        two.health.set("", UNKNOWN)
        assert await check_health(two.alpha, BETA) is UNKNOWN
        connection = await two.alpha.connect(BETA)
        assert await check_health_of(connection) is UNKNOWN


async def test_a_watch_begins_with_the_present_and_follows(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Also that a service becomes known, and unknown again; what does not change is not repeated."""
    async with open_two(node, route_to) as two, watch_health(two.alpha, BETA, "orders") as states:
        assert await states.receive() is SERVICE_UNKNOWN
        for status in (SERVING, NOT_SERVING, SERVICE_UNKNOWN):
            two.health.set("orders", status)
            assert await states.receive() is status
        two.health.set("", NOT_SERVING)
        two.health.set("orders", SERVICE_UNKNOWN)
        two.health.set("orders", SERVING)
        assert await states.receive() is SERVING


async def test_a_slow_watcher_misses_states_and_never_the_last(
    node: NodeFactory, route_to: Callable[..., Route]
) -> None:
    """Only changes that its task had time to see are sent."""
    async with open_two(node, route_to) as two, watch_health(two.alpha, BETA) as states:
        assert await states.receive() is SERVING
        for _ in range(1000):
            two.health.set("", UNKNOWN)
            two.health.set("", NOT_SERVING)
        assert await states.receive() is NOT_SERVING


async def test_draining_turns_it_before_anything_is_closed(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Watchers hear `not_serving`, and then the end, while a service that is under way holds the connection open."""
    may_end = trio.Event()

    async def slow(channel: Any) -> None:
        await may_end.wait()
        await channel.send(b"done")

    async with (
        open_two(node, route_to, services={"slow": slow}) as two,
        watch_health(two.alpha, BETA, "orders") as orders,
        watch_health(two.alpha, BETA, "never") as never,
        watch_health(two.alpha, BETA) as whole,
        two.alpha.open_channel(BETA, "slow") as work,
        trio.open_nursery() as nursery,
    ):
        two.health.set("orders", SERVING)
        while await orders.receive() is not SERVING:
            pass
        assert await whole.receive() is SERVING
        nursery.start_soon(two.beta.drain)
        for states in (orders, whole):
            assert await states.receive() is NOT_SERVING
            with pytest.raises(trio.EndOfChannel):
                await states.receive()
        assert [status async for status in never] == [SERVICE_UNKNOWN]
        assert two.beta.draining
        assert two.alpha.connections == {}  # it drains, and is there
        may_end.set()
        assert await work.receive() == b"done"


async def test_leaving_the_block_turns_it(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """As draining does; a watcher that only reads hears of it before the goodbye."""
    heard: list[HealthStatus] = []
    ready = trio.Event()
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery:

            async def watch() -> None:
                async with watch_health(alpha, BETA) as states:
                    async for status in states:
                        heard.append(status)
                        ready.set()

            async with node(BETA) as beta:
                alpha.add_route(BETA, route_to(beta))
                Health().add_to(beta)
                nursery.start_soon(watch)
                await ready.wait()
    assert heard == [SERVING, NOT_SERVING]


async def test_a_watcher_that_leaves_leaves_no_service_behind(
    node: NodeFactory, route_to: Callable[..., Route]
) -> None:
    """However it leaves: by closing, or by giving up."""
    async with open_two(node, route_to) as two:
        async with watch_health(two.alpha, BETA) as states:
            await states.receive()
            assert two.beta.statistics().services == 1
        with trio.CancelScope() as scope:
            async with watch_health(two.alpha, BETA) as states:
                await states.receive()
                scope.cancel()
                await trio.lowlevel.checkpoint()
        while two.beta.statistics().services:
            await check_health(two.alpha, BETA)
            await trio.testing.wait_all_tasks_blocked()
        assert not two.health._changed.statistics().tasks_waiting


@pytest.mark.parametrize("question", [b"", b"\xc1", b"\x93\x00\x00\x00", b"\x92\xda\x01\x00" + b"x" * 256 + b"\xc3"])
async def test_whatever_is_asked_is_answered_or_refused(
    node: NodeFactory, route_to: Callable[..., Route], question: bytes
) -> None:
    """By one typed error: what is no question, and a name that no service can have."""
    async with open_two(node, route_to) as two:
        with pytest.raises(RemoteError) as caught:
            await two.alpha.call(BETA, HEALTH, question)
        assert caught.value.code is RemoteCode.BAD_MESSAGE
        assert await check_health(two.alpha, BETA) is SERVING


async def test_it_is_off_unless_added_and_allowed(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Names of services are not for everyone."""
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha, node(BETA) as beta:
            alpha.add_route(BETA, route_to(beta))
            with pytest.raises(RemoteError) as caught:
                await check_health(alpha, BETA)
            assert caught.value.code is RemoteCode.UNKNOWN_SERVICE
            health = Health()
            health.add_to(beta, allow="monitor@localhost")
            with pytest.raises(RemoteError) as caught:
                await check_health(alpha, BETA)
            assert caught.value.code is RemoteCode.NOT_ALLOWED
            with pytest.raises(ValueError, match="already"):
                health.add_to(beta)


async def test_what_cannot_be_said_is_refused() -> None:
    """Names that no service can have, states that are none, and another thread."""
    health = Health(NOT_SERVING)
    assert repr(health) == "<Health: not_serving>"
    with pytest.raises(ValueError, match="1 to 255 characters"):
        health.set("x" * 256, SERVING)
    with pytest.raises((TypeError, ValueError), match="status"):
        health.set("orders", "serving")  # type: ignore[arg-type]  # a string is none
    with pytest.raises(RuntimeError, match="another thread"):
        await trio.to_thread.run_sync(health.set, "orders", SERVING)
    assert health.status("orders") is SERVICE_UNKNOWN


async def test_waiting_for_the_end_of_a_node(node: NodeFactory) -> None:
    """`wait_draining` returns when its block is left, by an exception, too."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with suppress(ZeroDivisionError):
                async with node(BETA) as beta:
                    nursery.start_soon(beta.wait_draining)
                    await trio.testing.wait_all_tasks_blocked()
                    seen = [beta.draining]
                    raise ZeroDivisionError
            seen.append(beta.draining)
        assert seen == [False, True]


@pytest.mark.parametrize("service", [5, None, "x" * 256, "\ud800"])
async def test_what_no_service_is_called_is_not_asked_for(
    node: NodeFactory, route_to: Callable[..., Route], service: Any
) -> None:
    """It is an error of the program's, here."""
    async with open_two(node, route_to) as two:
        with pytest.raises((TypeError, ValueError), match="a service name"):
            await check_health(two.alpha, BETA, service)
        with pytest.raises((TypeError, ValueError), match="a service name"):
            async with watch_health(two.alpha, BETA, service):
                pass
