"""Admission: how many handshakes may be under way, who goes first, and that honest peers get through a flood."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from trionode import HandshakeError, HandshakeRefused, open_tls_stream, serve_tls, serve_tls_listeners
from trionode._handshake.admission import Admission, Progress
from trionode.http import serve_asgi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory

    from trionode import EventStream, Route, TLSStream
    from trionode._handshake.admission import Ticket


def enter(stack: ExitStack, admission: Admission, host: str, progress: Progress = Progress.SILENT) -> Ticket:
    """One more handshake under way."""
    ticket = stack.enter_context(admission.admitted((host, 1)))
    ticket.progress = progress
    return ticket


def test_below_the_caps_nobody_goes() -> None:
    """Up to the limits every handshake has a place."""
    admission = Admission(limit=4, per_address=2)
    with ExitStack() as stack:
        tickets = [enter(stack, admission, host) for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2")]
        assert [ticket.shed for ticket in tickets] == [False] * 4
        assert admission.under_way == 4
    assert (admission.under_way, admission.shed) == (0, 0)


def test_of_one_address_the_oldest_goes() -> None:
    """At an address's cap its own oldest gives up its place; other addresses keep theirs."""
    admission = Admission(limit=100, per_address=2)
    with ExitStack() as stack:
        other = enter(stack, admission, "10.0.0.2")
        first, second, third = (enter(stack, admission, "10.0.0.1") for _ in range(3))
        assert [ticket.shed for ticket in (other, first, second, third)] == [False, True, False, False]
        assert (admission.under_way, admission.shed) == (3, 1)
    assert admission.under_way == 0


def test_the_oldest_in_the_earliest_stage_is_shed() -> None:
    """Silence before TLS, TLS before the hello, whichever is older."""
    admission = Admission(limit=4, per_address=4)
    with ExitStack() as stack:
        hello = enter(stack, admission, "10.0.0.1", Progress.HELLO)
        tls = enter(stack, admission, "10.0.0.2", Progress.TLS)
        silent = [enter(stack, admission, "10.0.0.3"), enter(stack, admission, "10.0.0.4")]
        gone: list[Ticket] = []
        for number in range(4):
            enter(stack, admission, f"10.0.1.{number}", Progress.HELLO)
            gone += [ticket for ticket in (hello, tls, *silent) if ticket.shed and ticket not in gone]
        assert gone == [*silent, tls, hello]


def test_a_scope_that_begins_late_is_cancelled_at_once() -> None:
    """Who had to go before it had begun does not begin."""
    admission = Admission(limit=1, per_address=1)
    with ExitStack() as stack:
        ticket = enter(stack, admission, "10.0.0.1")
        enter(stack, admission, "10.0.0.2")
        scope = trio.CancelScope()
        ticket.begin(scope)
        assert scope.cancel_called


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("alpha", "beta", False),
        ("alpha", "alpha", True),
    ],
)
def test_what_one_source_is(one: str, other: str, same: bool) -> None:
    """An IPv4 address; of IPv6 the network of one host; of other transports whatever they call it."""
    admission = Admission(limit=10, per_address=1)
    with ExitStack() as stack:
        ticket = enter(stack, admission, one)
        enter(stack, admission, other)
        assert ticket.shed is same


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Progress), st.booleans()), max_size=60),
    limit=st.integers(1, 6),
    per_address=st.integers(1, 6),
)
def test_the_caps_always_hold(arrivals: list[tuple[int, Progress, bool]], limit: int, per_address: int) -> None:
    """However they come and go: never more than the limits, and the newcomer always has a place."""
    admission = Admission(limit=limit, per_address=per_address)
    with ExitStack() as every_place:
        for host, progress, leaves in arrivals:
            with ExitStack() as stack:
                ticket = enter(stack, admission, f"10.0.0.{host}", progress)
                assert not ticket.shed
                under_way = [len(tickets) for tickets in admission._in_progress.values()]
                assert sum(under_way) == admission.under_way <= limit
                assert max(under_way) <= per_address
                if not leaves:
                    every_place.enter_context(stack.pop_all())
    assert admission.under_way == 0
    assert admission._in_progress == {}


# In a node ------------------------------------------------------------------------------------------------------------


async def shed(events: EventStream) -> HandshakeError:
    """The next handshake that had to go."""
    async for event in events:
        if isinstance(event, HandshakeRefused) and event.error.reason == "shed":
            return event.error
    raise AssertionError("the node ended")


@pytest.mark.parametrize("drops", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silence", "drops"])
async def test_honest_peers_get_through_silence(
    node: NodeFactory, route_to: Callable[..., Route], drops: bytes
) -> None:
    """Many more silent or dripping clients than places: honest dials succeed, and each that went is told of."""
    async with (
        node("beta@localhost", max_handshakes=8, max_handshakes_per_address=4) as beta,
        node("alpha@localhost") as alpha,
        AsyncExitStack() as stack,
        beta.events() as events,
    ):
        with trio.fail_after(20):
            for number in range(60):
                stream = await trio.open_tcp_stream(*beta.acceptors[0].address)
                await stack.enter_async_context(stream)
                if drops:
                    await stream.send_all(drops)
                if number % 20 == 0:
                    connection = await alpha.connect("beta@localhost", route_to(beta))
                    await connection.aclose()
            for _ in range(56):
                assert "max_handshakes" in str(await shed(events))
            statistics = beta.acceptors[0].statistics()
            assert (statistics.established, statistics.handshaking) == (3, 4)


@pytest.mark.parametrize("limits", [{"max_handshakes": 2}, {"max_handshakes_per_address": 2}], ids=["all", "address"])
@pytest.mark.parametrize("kind", ["serve_tls", "serve_tls_listeners", "serve_asgi"])
async def test_streams_without_nodes_have_places_too(
    manager: ManagerFactory, kind: str, limits: dict[str, int]
) -> None:
    """Servers cap their handshakes as nodes do, all together and those of an address."""
    certs = manager("alpha@localhost")

    async def greet(stream: TLSStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"hello")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            serve: Callable[..., Awaitable[None]]
            match kind:
                case "serve_tls":
                    await listener.aclose()
                    serve = partial(serve_tls, greet, port, host="127.0.0.1")
                case "serve_tls_listeners":
                    serve = partial(serve_tls_listeners, greet, [listener])
                case _:
                    serve = partial(serve_asgi, app, listeners=[listener])
            await nursery.start(partial(serve, cert_manager=certs, **limits))
            silent = [await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(5)]
            async with await open_tls_stream("127.0.0.1", port, cert_manager=certs, server_name="localhost") as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert b"hello" in b"".join([piece async for piece in stream])
            assert await silent[0].receive_some() == b""
            nursery.cancel_scope.cancel()


# A node that stops ----------------------------------------------------------------------------------------------------


async def test_what_is_in_progress_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """To its end, where it has sent anything; for a moment, where it is silent."""
    admission = Admission()
    start = trio.current_time()
    with admission.admitted(None):
        await admission.wait_settled(0.25)
        assert trio.current_time() - start == 0.25
    await admission.wait_settled(0.25)
    assert trio.current_time() - start == 0.25

    async def shake_hands(seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
        with admission.admitted(None) as ticket:
            task_status.started()
            await trio.sleep(0.1)
            ticket.progress = Progress.TLS
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        for seconds in (1, 2, 3):
            await nursery.start(shake_hands, seconds)
        begun = trio.current_time()
        await admission.wait_settled(0.25)
        assert trio.current_time() - begun == pytest.approx(3.1)
