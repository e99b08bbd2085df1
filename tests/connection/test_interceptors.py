"""Interceptors: what is around a call, a channel's block and a service, in which order, and what may go wrong there.

Nodes are on a network in memory and on a clock that jumps.
"""

from __future__ import annotations

import gc
import logging
import math
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from trionode import (
    CallSide,
    HandshakeError,
    InterceptedCall,
    LocalProtocolError,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Peer,
    RemoteCode,
    RemoteError,
    call_typed,
    current_channel,
    open_node,
    typed_service,
)
from trionode._connection.interceptors import InterceptedBlock
from trionode.testing import cluster_ca, node_factory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from trionode import Interceptor, Node, Proceed, Service, ServiceChannel
    from trionode.pki import CertificateAuthority
    from trionode.testing import NodeFactory

pytestmark = pytest.mark.usefixtures("jumping_clock")

ALPHA, BETA = "alpha@alpha.test", "beta@beta.test"


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    """The CA of all nodes here."""
    return cluster_ca()


@pytest.fixture
def nodes(ca: CertificateAuthority) -> NodeFactory:
    """Opens nodes in memory."""
    return node_factory(ca)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def forever(channel: ServiceChannel) -> None:
    """Serve until cancelled."""
    del channel
    await trio.sleep_forever()


@asynccontextmanager
async def pair(
    nodes: NodeFactory,
    *,
    caller: Sequence[Interceptor] = (),
    server: Sequence[Interceptor] = (),
    services: Mapping[str, Service] | None = None,
    propagate: bool = False,
) -> AsyncIterator[tuple[Node, Node]]:
    """The nodes alpha, which calls, and beta, which serves, with their interceptors."""
    offered = {"echo": echo, "forever": forever} if services is None else services
    async with (
        nodes("beta", services=offered, interceptors=server, propagate_service_errors=propagate) as beta,
        nodes("alpha", interceptors=caller) as alpha,
    ):
        yield alpha, beta


async def through_call(alpha: Node, service: str = "echo") -> None:
    """The verb `Node.call`."""
    assert await alpha.call(BETA, service, b"x") == b"x"


async def through_pattern(alpha: Node, service: str = "echo") -> None:
    """The same for one of several."""
    await alpha.connect(BETA)
    assert await alpha.call("beta@*", service, b"x") == b"x"


async def through_connection(alpha: Node, service: str = "echo") -> None:
    """The verb `Connection.call`."""
    assert await (await alpha.connect(BETA)).call(service, b"x") == b"x"


async def through_channel(alpha: Node, service: str = "echo") -> None:
    """The verb `Node.open_channel`."""
    async with alpha.open_channel(BETA, service) as channel:
        await channel.send(b"x")
        assert await channel.receive() == b"x"


async def leave(alpha: Node, error: BaseException) -> None:
    """Leave a block by an exception, which may be suppressed."""
    async with alpha.open_channel(BETA, "forever"):
        raise error


VERBS: Final = [through_call, through_pattern, through_connection, through_channel]
CALLS: Final = VERBS[:3]
verbs: Final = pytest.mark.parametrize("verb", VERBS)
calls: Final = pytest.mark.parametrize("verb", CALLS)


def noting(log: list[str], name: str) -> Interceptor:
    """An interceptor that notes when it is passed, each way."""

    async def interceptor(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        log.append(f"{name} in")
        try:
            return await proceed()
        finally:
            log.append(f"{name} out")

    return interceptor


# Order and facts ------------------------------------------------------------------------------------------------------


@verbs
async def test_the_first_is_the_outermost_on_both_sides(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """Each once for a call or channel, whatever it is made by; the service is in the middle."""
    log: list[str] = []

    async def noting_echo(channel: ServiceChannel) -> None:
        log.append("service")
        await echo(channel)

    caller, server = ([noting(log, f"{side}{n}") for n in (1, 2)] for side in ("caller", "server"))
    async with pair(nodes, caller=caller, server=server, services={"echo": noting_echo}) as (alpha, _):
        await verb(alpha)
        await trio.testing.wait_all_tasks_blocked()
    theirs = [each for each in log if not each.startswith("caller")]
    ours = [each for each in log if each.startswith("caller")]
    assert ours == ["caller1 in", "caller2 in", "caller2 out", "caller1 out"]
    assert theirs == ["server1 in", "server2 in", "service", "server2 out", "server1 out"]


async def test_what_an_interceptor_knows(nodes: NodeFactory) -> None:
    """Side, service, node, kind, request and channel, for calls and channels at both ends."""
    seen: list[dict[str, object]] = []

    async def look(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        facts: dict[str, object] = {name: getattr(call, name) for name in ("side", "service", "name", "one_reply")}
        seen.append({**facts, "request": call.request, "channel": call.channel, "peer": call.peer})
        try:
            return await proceed()
        finally:
            seen[-1 if call.side is CallSide.SERVICE else 0]["then"] = call.channel

    async with pair(nodes, caller=[look], server=[look]) as (alpha, _):
        await through_call(alpha)
        await trio.testing.wait_all_tasks_blocked()
        ours, theirs = seen
        assert ours == {
            "side": CallSide.CALLER,
            "service": "echo",
            "name": BETA,
            "one_reply": True,
            "request": b"x",
            "channel": None,
            "peer": None,
            "then": None,
        }
        channel, peer = theirs["channel"], theirs["peer"]
        assert isinstance(peer, Peer)
        assert (str(peer.name), peer.verified) == (ALPHA, True)
        assert theirs == {
            "side": CallSide.SERVICE,
            "service": "echo",
            "name": ALPHA,
            "one_reply": True,
            "request": None,
            "channel": channel,
            "peer": peer,
            "then": channel,
        }
        seen.clear()
        async with alpha.open_channel("beta@*", "echo") as opened:
            await opened.send(b"x")
            await opened.receive()
        await trio.testing.wait_all_tasks_blocked()
        ours, theirs = seen
        assert (ours["name"], ours["one_reply"], ours["request"], ours["channel"]) == ("beta@*", False, None, None)
        assert ours["then"] is opened
        assert (theirs["name"], theirs["one_reply"]) == (ALPHA, False)


async def test_the_channel_of_a_service_is_the_services(nodes: NodeFactory) -> None:
    """What the interceptor has is what the service gets, and `current_channel`."""
    seen: list[object] = []

    async def look(call: InterceptedCall, proceed: Proceed) -> None:
        seen.extend((call.channel, current_channel.get()))
        await proceed()

    async def serve(channel: ServiceChannel) -> None:
        seen.append(channel)
        await channel.send(b"x")

    async with pair(nodes, server=[look], services={"echo": serve}) as (alpha, _):
        await through_call(alpha)
    assert seen[0] is seen[1] is seen[2]


async def test_facts_cannot_be_changed() -> None:
    """An interceptor that wants another call makes one."""
    call = InterceptedCall(side=CallSide.CALLER, service="echo", name=BETA, metadata={"secret": "hunter2"})
    for name in ("service", "name", "metadata", "channel", "anything"):
        with pytest.raises(AttributeError):
            setattr(call, name, None)
    assert repr(call) == f"<InterceptedCall: call to 'echo', caller's side, other side {BETA}>"
    assert call.peer is None


async def test_typed_calls_pass_through_as_well(nodes: NodeFactory) -> None:
    """At both ends."""
    log: list[str] = []

    async def twice(request: int) -> int:
        return 2 * request

    interceptors = [noting(log, "one")]
    services = {"twice": typed_service(twice, request=int)}
    async with pair(nodes, caller=interceptors, server=interceptors, services=services) as (alpha, _):
        assert await call_typed(alpha, BETA, "twice", 3, reply=int) == 6
    assert log.count("one in") == 2


async def test_connection_open_channel_has_none_at_the_caller(nodes: NodeFactory) -> None:
    """It is synchronous; the service's side has its own all the same."""
    log: list[str] = []
    async with pair(nodes, caller=[noting(log, "caller")], server=[noting(log, "server")]) as (alpha, _):
        connection = await alpha.connect(BETA)
        async with connection.open_channel("echo") as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"
        await trio.testing.wait_all_tasks_blocked()
    assert log == ["server in", "server out"]


# Metadata -------------------------------------------------------------------------------------------------------------


@verbs
async def test_what_is_added_to_the_metadata_arrives(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """Of the caller's interceptors the inner ones have the last word; the service's side reads only."""
    seen: list[dict[str, str | bytes]] = []

    async def outer(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        call.metadata["outer"] = "1"
        call.metadata["both"] = "outer"
        return await proceed()

    async def inner(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        call.metadata["both"] = b"inner"
        return await proceed()

    async def look(call: InterceptedCall, proceed: Proceed) -> None:
        with pytest.raises(TypeError):
            call.metadata["mine"] = "2"
        seen.append(dict(call.metadata))
        await proceed()

    async with pair(nodes, caller=[outer, inner], server=[look]) as (alpha, _):
        await verb(alpha)
    assert seen == [{"outer": "1", "both": b"inner"}]


async def test_what_the_caller_gave_is_not_changed(nodes: NodeFactory) -> None:
    """An interceptor has a copy, and may take away, too."""
    given, seen = {"token": "t", "tenant": "a"}, list[dict[str, str | bytes]]()

    async def strip(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call.metadata["token"]
        return await proceed()

    async def serve(channel: ServiceChannel) -> None:
        seen.append(dict(channel.metadata))
        await channel.send(b"x")

    async with pair(nodes, caller=[strip], services={"echo": serve}) as (alpha, _):
        await alpha.call(BETA, "echo", b"x", metadata=given)
    assert (given, seen) == ({"token": "t", "tenant": "a"}, [{"tenant": "a"}])


@verbs
async def test_metadata_that_is_none_is_an_error_of_the_interceptors(
    nodes: NodeFactory, verb: Callable[[Node], Any]
) -> None:
    """Raised where it awaits `proceed()`, and nothing was sent."""
    caught: list[str] = []

    async def spoil(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        call.metadata["n"] = 7  # type: ignore[assignment]  # that is the question
        try:
            return await proceed()
        except TypeError as exc:
            caught.append(str(exc))
            raise

    async with pair(nodes, caller=[spoil]) as (alpha, beta):
        with pytest.raises(TypeError, match=r"metadata\['n'\] must be a string or bytes"):
            await verb(alpha)
        assert beta.statistics().channels_opened == 0
    assert len(caught) == 1


# Calls, at the caller -------------------------------------------------------------------------------------------------


@calls
async def test_an_application_may_try_again(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """Each `proceed()` is a call of its own, through the interceptors further in."""
    log, runs = list[str](), 0

    async def flaky(channel: ServiceChannel) -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            msg = "not yet"
            raise RemoteError(msg, code="try_again")
        await channel.send(await channel.receive())

    async def retry(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        while True:
            try:
                return await proceed()
            except RemoteError as exc:
                assert exc.raw_code == "try_again"
                await trio.sleep(1)

    async with pair(nodes, caller=[retry, noting(log, "inner")], services={"echo": flaky}) as (alpha, _):
        await verb(alpha)
    assert runs == 3
    assert log == ["inner in", "inner out"] * 3


@calls
async def test_a_reply_may_come_from_an_interceptor(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """Then nothing is sent; it is a checkpoint all the same, and may be cancelled."""

    async def cached(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del proceed
        return call.request

    async with pair(nodes, caller=[cached]) as (alpha, beta):
        await alpha.connect(BETA)
        with trio.testing.assert_checkpoints():
            await verb(alpha)
        with trio.CancelScope() as scope:
            scope.cancel()
            await verb(alpha)
        assert scope.cancelled_caught
        assert beta.statistics().channels_opened == 0


@verbs
async def test_a_refusal_is_the_callers_error(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """What an interceptor raises comes out as the same object, and nothing was sent."""
    refusal = PermissionError("not today")

    async def refuse(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call, proceed
        raise refusal

    async with pair(nodes, caller=[refuse]) as (alpha, beta):
        with pytest.raises(PermissionError) as caught:
            await verb(alpha)
        assert caught.value is refusal
        assert beta.statistics().channels_opened == 0


@calls
@pytest.mark.parametrize(
    ("returned", "kind"),
    [(None, "a NoneType"), ("text", "a str"), (7, "an int"), (bytearray(b"x"), "a bytearray")],
    ids=["nothing", "text", "number", "bytearray"],
)
async def test_a_call_needs_a_reply(nodes: NodeFactory, verb: Callable[[Node], Any], returned: Any, kind: str) -> None:
    """An interceptor that forgets `return` is told so, by its name, where it is; those further out see that error."""
    seen: list[str] = []

    async def forgetful(call: InterceptedCall, proceed: Proceed) -> Any:
        del call
        await proceed()
        return returned

    async def outer(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        try:
            return await proceed()
        except TypeError as exc:
            seen.append(str(exc))
            raise

    async with pair(nodes, caller=[outer, forgetful]) as (alpha, _):
        with pytest.raises(TypeError, match=rf"forgetful has returned {kind}; it returns the reply .*return await"):
            await verb(alpha)
    assert len(seen) == 1


@calls
async def test_a_deadline_of_an_interceptor_travels(nodes: NodeFactory, verb: Callable[[Node], Any]) -> None:
    """It bounds the call, and the service over there."""
    deadlines: list[float] = []

    async def bound(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        with trio.fail_after(5):
            return await proceed()

    async def hang(channel: ServiceChannel) -> None:
        del channel
        deadlines.append(trio.current_effective_deadline() - trio.current_time())
        await trio.sleep_forever()

    async with pair(nodes, caller=[bound], services={"echo": hang}) as (alpha, beta):
        with pytest.raises(trio.TooSlowError):
            await verb(alpha)
        await trio.testing.wait_all_tasks_blocked()
        assert beta.statistics().services == 0
    assert deadlines == [pytest.approx(5, abs=0.1)]


async def test_tries_on_other_connections_are_within_one_interceptor(nodes: NodeFactory) -> None:
    """A node that goes to another connection because nothing ran has made one call, not two."""
    log: list[str] = []
    async with pair(nodes, caller=[noting(log, "caller")]) as (alpha, beta):
        await alpha.connect(BETA)
        for connection in list(beta.connections.values()):
            await connection.aclose()
        await through_call(alpha)
    assert log == ["caller in", "caller out"]


@verbs
async def test_what_is_wrong_with_the_verb_is_seen_inside(nodes: NodeFactory, verb: Callable[..., Any]) -> None:
    """An error of the call passes through the interceptors like any other."""
    log, errors = list[str](), list[BaseException]()

    async def look(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        try:
            return await proceed()
        except BaseException as exc:
            errors.append(exc)
            raise

    async with pair(nodes, caller=[noting(log, "outer"), look]) as (alpha, _):
        with pytest.raises(RemoteError, match="unknown_service") as caught:
            await verb(alpha, "unknown")
        assert errors == [caught.value]
    assert log == ["outer in", "outer out"]


# Blocks, at the caller ------------------------------------------------------------------------------------------------

_word: ContextVar[str] = ContextVar("word", default="outside")


async def test_what_is_around_proceed_is_around_the_block(nodes: NodeFactory) -> None:
    """One task: context variables, deadlines and scopes of the interceptor's hold in the block, and end with it."""
    tasks: list[trio.lowlevel.Task] = []

    async def around(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        tasks.append(trio.lowlevel.current_task())
        token = _word.set("inside")
        with trio.CancelScope(deadline=trio.current_time() + 100):
            result = await proceed()
        _word.reset(token)
        tasks.append(trio.lowlevel.current_task())
        return result

    async with pair(nodes, caller=[around]) as (alpha, _):
        before = trio.current_effective_deadline()
        async with alpha.open_channel(BETA, "echo") as channel:
            assert _word.get() == "inside"
            assert trio.current_effective_deadline() == pytest.approx(trio.current_time() + 100, abs=1)
            await channel.send(b"x")
            assert await channel.receive() == b"x"
        assert trio.current_effective_deadline() == before
        assert _word.get() == "outside"
    assert tasks == [trio.lowlevel.current_task()] * 2


async def test_a_nursery_of_an_interceptor_lives_as_long_as_the_block(nodes: NodeFactory) -> None:
    """Its tasks run beside the block; what they raise cancels it, and comes out of it."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await trio.sleep(1)
            beats += 1
            if beats == 7:
                msg = "heart"
                raise ValueError(msg)

    async def accompany(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            result = await proceed()
            nursery.cancel_scope.cancel()
        return result

    async with pair(nodes, caller=[accompany]) as (alpha, beta):
        async with alpha.open_channel(BETA, "echo"):
            await trio.sleep(3.5)
        assert beats == 3
        with pytest.RaisesGroup(ValueError):
            async with alpha.open_channel(BETA, "forever"):
                await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        assert (beats, beta.statistics().services) == (7, 0)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of the block"),
        ExceptionGroup("of the block", [ValueError()]),
        StopIteration("of the block"),
        StopAsyncIteration("of the block"),
        GeneratorExit("of the block"),
        KeyboardInterrupt("of the block"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_the_block_raises_passes_through(nodes: NodeFactory, error: BaseException) -> None:
    """The interceptor sees it come out of `proceed()`, and it leaves the block as it was; the service is cancelled."""
    log, seen = list[str](), list[BaseException]()

    async def look(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        try:
            return await proceed()
        except BaseException as exc:
            seen.append(exc)
            raise

    async with pair(nodes, caller=[noting(log, "outer"), look]) as (alpha, beta):
        with pytest.raises(type(error)) as caught:
            async with alpha.open_channel(BETA, "forever"):
                raise error
        assert caught.value is error
        await trio.testing.wait_all_tasks_blocked()
        assert beta.statistics().services == 0
    assert log == ["outer in", "outer out"]
    # No coroutine of Python's raises StopIteration: there it is the cause of a RuntimeError.
    assert [each.__cause__ if isinstance(error, StopIteration) else each for each in seen] == [error]


async def test_a_generator_that_is_closed_in_the_block(nodes: NodeFactory) -> None:
    """Its end may wait for things, as that of any context manager in an async generator may."""
    log: list[str] = []

    async def messages(alpha: Node) -> AsyncIterator[bytes]:
        async with alpha.open_channel(BETA, "echo") as channel:
            await channel.send(b"x")
            async for message in channel:
                yield message  # noqa: ASYNC119 -- its caller closes it

    async def slow(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        try:
            return await proceed()
        finally:
            await trio.sleep(1)  # noqa: ASYNC102 -- an interceptor that takes its time

    async with pair(nodes, caller=[noting(log, "outer"), slow]) as (alpha, _):
        async with aclosing(messages(alpha)) as received:  # type: ignore[type-var]  # an async generator is one
            async for message in received:
                assert message == b"x"
                break
        assert alpha.statistics().channels == 0
    assert log == ["outer in", "outer out"]


async def test_what_an_interceptor_makes_of_the_blocks_error_comes_out(nodes: NodeFactory) -> None:
    """Another error, chained; or none, as with a context manager that suppresses it."""

    async def translate(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        try:
            return await proceed()
        except ValueError as exc:
            msg = "translated"
            raise KeyError(msg) from exc
        except LookupError:
            return None

    async with pair(nodes, caller=[translate]) as (alpha, _):
        error = ValueError("of the block")
        with pytest.raises(KeyError, match="translated") as caught:
            async with alpha.open_channel(BETA, "echo"):
                raise error
        assert caught.value.__cause__ is error
        await leave(alpha, IndexError())
        await through_channel(alpha)


async def test_a_cancel_scope_of_an_interceptor_catches_its_own(nodes: NodeFactory) -> None:
    """`move_on_after` around `proceed()` ends the block, as it would if it were written there."""
    reached = False

    async def bound(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        with trio.move_on_after(5) as scope:
            await proceed()
        assert scope.cancelled_caught
        return None

    async with pair(nodes, caller=[bound]) as (alpha, beta):
        async with alpha.open_channel(BETA, "forever") as channel:
            await channel.receive()
            reached = True
        await trio.testing.wait_all_tasks_blocked()
        assert beta.statistics().services == 0
    assert not reached


async def test_a_cancel_scope_around_the_block_is_none_of_the_interceptors(nodes: NodeFactory) -> None:
    """A cancellation from outside passes through it."""
    log: list[str] = []
    async with pair(nodes, caller=[noting(log, "one")]) as (alpha, beta):
        with trio.move_on_after(5) as scope:
            async with alpha.open_channel(BETA, "forever") as channel:
                await channel.receive()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert beta.statistics().services == 0
    assert log == ["one in", "one out"]


async def test_a_block_needs_a_channel(nodes: NodeFactory) -> None:
    """An interceptor that does not await `proceed()` is told so, and the block does not run."""

    async def skip(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call, proceed
        await trio.lowlevel.checkpoint()
        return None

    async with pair(nodes, caller=[skip]) as (alpha, beta):
        with pytest.raises(LocalProtocolError, match=r"without having awaited proceed\(\)"):
            async with alpha.open_channel(BETA, "echo"):
                raise AssertionError
        assert beta.statistics().channels_opened == 0


async def test_a_block_runs_once(nodes: NodeFactory) -> None:
    """`proceed()` after it has begun is an error where it is awaited."""

    async def again(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await proceed()
        with pytest.raises(LocalProtocolError, match="a block runs once"):
            await proceed()
        return None

    async with pair(nodes, caller=[again]) as (alpha, beta):
        await through_channel(alpha)
        assert beta.statistics().channels_opened == 1


async def test_opening_may_be_tried_again(nodes: NodeFactory) -> None:
    """As long as the block has not begun."""
    failures: list[Exception] = []

    async def retry(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        while True:
            try:
                return await proceed()
            except HandshakeError as exc:
                failures.append(exc)
                opening.set()
                await trio.sleep(1)

    opening = trio.Event()
    async with nodes("alpha", interceptors=[retry]) as alpha:

        async def open_later(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            await opening.wait()
            async with nodes("beta", services={"echo": echo}):
                await trio.sleep(100)

        async with trio.open_nursery() as nursery:
            await nursery.start(open_later)
            await through_channel(alpha)
            nursery.cancel_scope.cancel()
    assert failures


async def test_proceed_of_a_block_belongs_to_its_task(nodes: NodeFactory) -> None:
    """Awaited in another one it is an error there: the block cannot run in a task that is not the caller's."""
    errors: list[str] = []

    async def elsewhere(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call

        async def run() -> None:
            with pytest.raises(LocalProtocolError, match="in another task") as caught:
                await proceed()
            errors.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
        return await proceed()

    async with pair(nodes, caller=[elsewhere]) as (alpha, _):
        await through_channel(alpha)
    assert len(errors) == 1


async def test_a_result_of_a_block_is_refused(nodes: NodeFactory) -> None:
    """There is no reply at this end, and so none to return."""

    async def reply(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await proceed()
        return b"reply"

    async with pair(nodes, caller=[reply]) as (alpha, _):
        with pytest.raises(TypeError, match="has returned a bytes; it returns None"):
            await through_channel(alpha)


async def test_an_interceptor_may_wait_before_and_after_the_block(nodes: NodeFactory) -> None:
    """For anything: what it waits for is Trio's business, in this task."""

    async def slow(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await trio.sleep(1)
        try:
            return await proceed()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    async with pair(nodes, caller=[slow] * 3) as (alpha, _):
        start = trio.current_time()
        await through_channel(alpha)
        assert trio.current_time() - start == pytest.approx(6, abs=0.5)


async def test_a_block_is_a_checkpoint_at_both_ends(nodes: NodeFactory) -> None:
    """Also where no interceptor waits for anything."""

    async def prompt(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        return await proceed()

    async with pair(nodes, caller=[prompt]) as (alpha, _):
        await alpha.connect(BETA)
        block = alpha.open_channel(BETA, "echo")
        with trio.testing.assert_checkpoints():
            await block.__aenter__()
        with trio.testing.assert_checkpoints():
            await block.__aexit__(None, None, None)


async def test_what_is_thrown_into_the_task_reaches_the_interceptor() -> None:
    """Where Trio, or what closes a coroutine, throws rather than answers."""
    seen: list[BaseException] = []

    async def waiting(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call, proceed
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
        except BaseException as exc:
            seen.append(exc)
            raise
        return None

    async def target(metadata: Mapping[str, str | bytes]) -> ServiceChannel:
        raise AssertionError(metadata)

    call = InterceptedCall(side=CallSide.CALLER, service="echo", name=BETA)
    for error in (ValueError(), GeneratorExit()):
        entering: Any = InterceptedBlock([waiting], call, target).__aenter__()
        assert entering.send(None) is not None
        with pytest.raises(type(error)):
            entering.throw(error)
    assert [type(each) for each in seen] == [ValueError, GeneratorExit]


async def test_hedged_calls(nodes: NodeFactory) -> None:
    """Several `proceed()` of one call may be under way at once: the first reply counts, the others are cancelled."""
    began = 0

    async def first_is_slow(channel: ServiceChannel) -> None:
        nonlocal began
        began += 1
        if began == 1:
            await trio.sleep_forever()
        await channel.send(b"x")

    async def hedge(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        replies: list[bytes | None] = []

        async def attempt() -> None:
            replies.append(await proceed())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            await trio.sleep(1)
            nursery.start_soon(attempt)
        return replies[0]

    async with pair(nodes, caller=[hedge], services={"echo": first_is_slow}) as (alpha, beta):
        await through_call(alpha)
        await trio.testing.wait_all_tasks_blocked()
        assert (began, beta.statistics().services) == (2, 0)


async def test_blocks_nest(nodes: NodeFactory) -> None:
    """Within each other, and within the interceptors of others: one that calls calls through itself."""
    log: list[str] = []

    async def calling(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        if call.service == "echo":
            return await proceed()
        log.append("in")
        async with alpha.open_channel(BETA, "echo") as inner:
            await inner.send(b"i")
            result = await proceed()
            assert await inner.receive() == b"i"
        log.append("out")
        return result

    async with pair(nodes, caller=[calling], services={"echo": echo, "other": echo}) as (alpha, _):
        async with alpha.open_channel(BETA, "other") as one, alpha.open_channel(BETA, "other") as two:
            for channel in (one, two):
                await channel.send(b"x")
                assert await channel.receive() == b"x"
            assert log == ["in", "in"]
    assert log == ["in", "in", "out", "out"]


async def test_many_blocks_at_once(nodes: NodeFactory) -> None:
    """In tasks of their own, each with its interceptor."""
    active = most = 0

    async def count(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        nonlocal active, most
        del call
        active += 1
        most = max(most, active)
        try:
            await trio.lowlevel.checkpoint()
            return await proceed()
        finally:
            active -= 1

    async with pair(nodes, caller=[count], server=[count]) as (alpha, _), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(through_channel, alpha)
    assert active == 0
    assert most > 20


@pytest.mark.parametrize("ticks", range(0, 40, 3))
async def test_a_cancelled_opening_leaves_nothing(nodes: NodeFactory, ticks: int) -> None:
    """Wherever it comes, each interceptor that was entered is left, and no service stays."""
    log: list[str] = []

    async def waiting(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await trio.lowlevel.checkpoint()
        try:
            return await proceed()
        finally:
            log.append("out")
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def run(scope: trio.CancelScope) -> None:
        with scope:
            async with alpha.open_channel(BETA, "forever") as channel:
                await channel.receive()

    async with pair(nodes, caller=[noting(log, "outer"), waiting], server=[noting(log, "server")]) as (alpha, beta):
        await alpha.connect(BETA)
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scope)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert beta.statistics().services == 0
        assert alpha.statistics().channels == 0
    assert log.count("outer in") == log.count("outer out")
    assert log.count("server in") == log.count("server out")


# Services -------------------------------------------------------------------------------------------------------------


async def test_authorisation_by_service(nodes: NodeFactory) -> None:
    """A `RemoteError` before `proceed()` is a refusal on purpose: code and words reach the caller, and nothing runs."""
    ran: list[str] = []

    async def authorise(call: InterceptedCall, proceed: Proceed) -> None:
        if call.service == "admin" and call.metadata.get("role") != "admin":
            msg = f"{call.name} may not"
            raise RemoteError(msg, code="denied")
        await proceed()

    async def admin(channel: ServiceChannel) -> None:
        ran.append(channel.service)
        await channel.send(b"x")

    async with pair(nodes, server=[authorise], services={"admin": admin, "echo": echo}) as (alpha, _):
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "admin", b"x")
        assert (caught.value.raw_code, caught.value.message) == ("denied", f"{ALPHA} may not")
        assert not caught.value.not_run
        assert await alpha.call(BETA, "admin", b"x", metadata={"role": "admin"}) == b"x"
        await through_call(alpha)
    assert ran == ["admin"]


async def test_an_interceptor_that_fails_is_a_service_that_fails(
    nodes: NodeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Before and after: the caller learns no more than that, the log has it in full, and the node lives on."""
    when = "before"

    async def fail(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        if when == "after":
            await proceed()
        raise ValueError(when)

    async with pair(nodes, server=[fail]) as (alpha, beta):
        for when in ("before", "after"):
            caplog.clear()
            async with alpha.open_channel(BETA, "echo") as channel:
                await channel.send_eof()
                with pytest.raises(RemoteError) as caught:
                    await channel.receive()
            assert (caught.value.code, caught.value.message) == (RemoteCode.FAILED, "")
            [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
            assert record.name == "trionode.service"
            assert record.exc_info is not None
            assert str(record.exc_info[1]) == when
        assert beta.connections


async def test_what_a_service_raises_may_be_translated(nodes: NodeFactory) -> None:
    """After `proceed()` has raised: an exception of the application's own becomes a code of its own."""

    async def translate(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        try:
            await proceed()
        except LookupError as exc:
            raise RemoteError(str(exc), code="not_found") from exc

    async def find(channel: ServiceChannel) -> None:
        msg = "no such order"
        raise LookupError(msg + " as " + (await channel.receive()).decode())

    async with pair(nodes, server=[translate], services={"find": find}) as (alpha, _):
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "find", b"7")
    assert (caught.value.raw_code, caught.value.message) == ("not_found", "no such order as 7")


async def test_an_interceptor_that_swallows_an_error_ends_the_channel_cleanly(nodes: NodeFactory) -> None:
    """As a service does that returns: the caller of a call learns that there is no reply."""

    async def swallow(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        try:
            await proceed()
        except ValueError:
            return

    async def fail(channel: ServiceChannel) -> None:
        del channel
        raise ValueError

    async with pair(nodes, server=[swallow], services={"fail": fail}) as (alpha, _):
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "fail", b"x")
    assert caught.value.code is RemoteCode.NO_REPLY


async def test_an_interceptor_may_serve_in_place_of_the_service(nodes: NodeFactory) -> None:
    """It has the channel; one that neither proceeds nor replies is a service without a reply."""

    async def instead(call: InterceptedCall, proceed: Proceed) -> None:
        del proceed
        assert call.channel is not None
        if await call.channel.receive() == b"x":
            await call.channel.send(b"x")

    async with pair(nodes, server=[instead]) as (alpha, _):
        await through_call(alpha)
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "echo", b"other")
    assert caught.value.code is RemoteCode.NO_REPLY


async def test_a_service_runs_once(nodes: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    """A second `proceed()` is an error where it is awaited, and so one of the service's."""
    ran = 0

    async def serve(channel: ServiceChannel) -> None:
        nonlocal ran
        ran += 1
        await channel.receive()

    async def twice(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        await proceed()
        await proceed()

    async with pair(nodes, server=[twice], services={"echo": serve}) as (alpha, _):
        with pytest.raises(RemoteError) as caught:
            await alpha.call(BETA, "echo", b"x")
    assert caught.value.code is RemoteCode.FAILED
    assert ran == 1
    assert "each channel runs it once" in caplog.text


async def test_a_service_may_run_in_a_nursery_of_the_interceptors(nodes: NodeFactory) -> None:
    """Other than a block it may be awaited in another task."""

    async def accompany(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proceed)

    async with pair(nodes, server=[accompany]) as (alpha, _):
        await through_call(alpha)


async def test_a_service_has_no_result(nodes: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    """One shape for both sides works: `return await proceed()` returns None; anything else is an error."""

    async def reply(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await proceed()
        return b"cached"

    class Service:
        """One that returns something, which services may."""

        async def __call__(self, channel: ServiceChannel) -> Any:
            await echo(channel)
            return b"ignored"

    async with pair(nodes, server=[noting([], "fine")], services={"echo": Service()}) as (alpha, _):
        await through_call(alpha)
    assert not caplog.records or max(record.levelno for record in caplog.records) < logging.WARNING
    async with pair(nodes, server=[reply]) as (alpha, _), alpha.open_channel(BETA, "echo") as channel:
        await channel.send_eof()
        with pytest.raises(RemoteError):
            await channel.receive()
    assert "has returned a bytes; it returns None" in caplog.text


async def test_the_callers_deadline_and_cancellation_reach_the_interceptor(nodes: NodeFactory) -> None:
    """It runs in the service's task: under its deadline, cancelled with it, with time to clean up in a shield."""
    log: list[object] = []

    async def look(call: InterceptedCall, proceed: Proceed) -> None:
        del call
        log.append(trio.current_effective_deadline() - trio.current_time() < math.inf)
        try:
            await proceed()
        except trio.Cancelled:
            log.append("cancelled")
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            log.append("clean")
            raise

    async with pair(nodes, server=[look]) as (alpha, beta):
        with trio.move_on_after(5):
            await alpha.call(BETA, "forever", b"x")
        await trio.sleep(2)
        assert beta.statistics().services == 0
    assert log == [True, "cancelled", "clean"]


async def test_interceptors_see_refusals_of_no_service(nodes: NodeFactory) -> None:
    """What is unknown or not allowed never runs, and so passes no interceptor of the service's side."""
    log: list[str] = []
    async with pair(nodes, server=[noting(log, "server")], services={}) as (alpha, beta):
        beta.add_service("private", echo, allow="gamma@*")
        for service in ("unknown", "private"):
            with pytest.raises(RemoteError):
                await alpha.call(BETA, service, b"x")
    assert log == []


async def test_errors_may_be_propagated_in_tests(nodes: NodeFactory) -> None:
    """`propagate_service_errors` holds for interceptors as for services."""

    async def fail(call: InterceptedCall, proceed: Proceed) -> None:
        del call, proceed
        msg = "of the interceptor"
        raise ValueError(msg)

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="of the interceptor"), flatten_subgroups=True):
        async with pair(nodes, server=[fail], propagate=True) as (alpha, _):
            with pytest.raises((RemoteError, trio.BrokenResourceError)):
                await alpha.call(BETA, "echo", b"x")
            await trio.sleep_forever()


# KeyboardInterrupt, options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["caller", "server"])
async def test_an_interceptor_is_not_protected_from_keyboard_interrupt(nodes: NodeFactory, side: str) -> None:
    """It is the application's; what is around and behind it is protected as ever."""
    seen: list[bool] = []

    async def look(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        seen.append(trio.lowlevel.currently_ki_protected())
        result = await proceed()
        seen.append(trio.lowlevel.currently_ki_protected())
        return result

    given: dict[str, Any] = {side: [look, look]}
    async with pair(nodes, **given) as (alpha, _):
        trio.lowlevel.currently_ki_protected()
        await through_call(alpha)
        await through_channel(alpha)
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [False] * 8


@pytest.mark.parametrize("verb", [through_call, through_channel])
async def test_a_keyboard_interrupt_in_an_interceptor_leaves_nothing(nodes: NodeFactory, verb: Any) -> None:
    """It passes through the others, out of the verb."""
    log: list[str] = []

    async def interrupted(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        await proceed()
        raise KeyboardInterrupt

    async with pair(nodes, caller=[noting(log, "outer"), interrupted]) as (alpha, _):
        with pytest.raises(KeyboardInterrupt):
            await verb(alpha)
        assert alpha.statistics().channels == 0
    assert log == ["outer in", "outer out"]


def _nothing(call: InterceptedCall, proceed: Proceed) -> None:
    del call, proceed


class _Object:
    async def __call__(self, call: InterceptedCall, proceed: Proceed) -> bytes | None:
        del call
        return await proceed()

    async def method(self, call: InterceptedCall, proceed: Proceed) -> bytes | None:
        return await self(call, proceed)


@pytest.mark.parametrize("wrong", [_nothing, None, 7, "text"], ids=["synchronous", "none", "number", "text"])
async def test_what_is_no_interceptor_is_refused_when_the_options_are_made(nodes: NodeFactory, wrong: Any) -> None:
    """With the field and what was given."""
    with pytest.raises(
        TypeError, match=r"interceptors\[0\]: an interceptor is an async function of a call and proceed"
    ):
        NodeOptions(cert_manager=nodes.manager("alpha"), interceptors=[wrong])


async def test_one_interceptor_is_no_sequence_of_them(nodes: NodeFactory) -> None:
    """The error says what to do."""
    alone: Any = _Object().method
    with pytest.raises(TypeError, match=r"interceptors must be a sequence, .* not an async function"):
        NodeOptions(cert_manager=nodes.manager("alpha"), interceptors=alone)


async def test_objects_methods_and_partials_intercept(nodes: NodeFactory) -> None:
    """Whatever gives something to await."""

    async def more(extra: int, call: InterceptedCall, proceed: Proceed) -> bytes | None:
        assert extra == 1
        del call
        return await proceed()

    def passing(call: InterceptedCall, proceed: Proceed) -> Awaitable[bytes | None]:
        del call
        return proceed()

    interceptors: list[Interceptor] = [_Object(), _Object().method, partial(more, 1), passing]
    async with pair(nodes, caller=interceptors, server=interceptors) as (alpha, _):
        for verb in VERBS:
            await verb(alpha)


async def test_an_interceptor_that_gives_nothing_to_await(nodes: NodeFactory) -> None:
    """What could not be seen when the options were made is an error of the call."""

    def sneaky(call: InterceptedCall, proceed: Proceed) -> Any:
        del proceed
        return call.request

    async with pair(nodes, caller=[sneaky]) as (alpha, _):
        for verb in VERBS:
            with pytest.raises(TypeError, match="await"):
                await verb(alpha)


async def test_interceptors_outlive_nothing(nodes: NodeFactory) -> None:
    """A closed node's verbs raise within them, and nothing is left un-awaited."""
    log: list[str] = []
    options = NodeOptions(
        cert_manager=nodes.manager("gamma"),
        network=NetworkOptions(mode=NetworkMode.HIDDEN),
        interceptors=[noting(log, "one")],
    )
    async with open_node("gamma@gamma.test", options) as gamma:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await gamma.call(BETA, "echo", b"x")
    with pytest.raises(trio.ClosedResourceError):
        async with gamma.open_channel(BETA, "echo"):
            raise AssertionError
    gamma.open_channel(BETA, "echo")  # and never entered
    gc.collect()
    assert log == ["one in", "one out"] * 2


@pytest.mark.parametrize("metadata", [{}, {"tenant": "a"}])
async def test_at_the_service_metadata_is_read_only(nodes: NodeFactory, metadata: dict[str, str | bytes]) -> None:
    """Also where there is none."""
    seen: list[InterceptedCall] = []

    async def note(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        seen.append(call)
        return await proceed()

    async with pair(nodes, server=[note]) as (alpha, _):
        await alpha.call(BETA, "echo", b"", metadata=metadata)
    with pytest.raises(TypeError):
        seen[0].metadata["more"] = "b"
    assert seen[0].metadata == metadata
