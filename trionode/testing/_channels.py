"""A conformance check for channels of bytes, as `trio.testing.check_two_way_stream` is one for streams.

Theory. Each rule is one small function that gets a fresh pair of connected ends and drives them through the public
interface alone; the table `_RULES` is what is checked, in order, from both ends. No rule sleeps to get an order of
events: "the other side has got as far as it can" is `wait_all_tasks_blocked`, with a cushion, because the ends may
talk through a socket. There are no deadlines: a channel that hangs, hangs in the caller's cancel scope.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import partial
from typing import Final, Protocol, TypeAlias, runtime_checkable

import trio
import trio.testing

from trionode._errors import RemoteError
from trionode._util.fields import check_argument

__all__ = ["ChannelMaker", "check_two_way_channel"]

End: TypeAlias = trio.abc.Channel[bytes]
#: Makes a fresh pair of connected ends for the length of an `async with` block.
ChannelMaker: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[End, End]]]

#: Empty, tiny, around what one TLS record, one frame or one window may hold, and well above.
_SIZES: Final = (0, 1, 100, 16 * 1024, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 400_000, 0, 7)
#: Messages that fill a channel, and how many of them it may accept while no task receives: accepting more is no flow
#: control.
_FILLER_SIZE: Final = 4096
_FILLER_LIMIT: Final = 4 * 1024
#: If no task runs for this long, both ends have got as far as they can. Seconds.
_CUSHION: Final = 0.005
#: A cancellation comes up to so many task switches after a message was sent: from at once to long after its arrival.
_RACES: Final = 24


@runtime_checkable
class _HalfCloseable(Protocol):
    async def send_eof(self) -> None: ...


@runtime_checkable
class _NoWait(Protocol):
    def send_nowait(self, value: bytes, /) -> None: ...

    def receive_nowait(self) -> bytes: ...


@runtime_checkable
class _Many(Protocol):
    async def send_many(self, values: Iterable[bytes] | AsyncIterable[bytes], /) -> None: ...


class _ResetOnPurpose(Exception):  # noqa: N818 -- no error, but a way to leave a block by an exception
    """Leaves an `async with` block."""


async def check_two_way_channel(channel_maker: ChannelMaker) -> None:
    """Check that a `trio.abc.Channel[bytes]` keeps the rules that channels between nodes keep.

    Each of the following is checked on a fresh pair, first with one end in the leading part, then with the other:

    1. *Order*: messages from empty to 400 000 bytes arrive whole and in order, in both directions at once.
    2. *Iteration*: `async for` gives every message, then ends; `receive` raises `EndOfChannel` from then on.
    3. *Many tasks*: with several senders and receivers on each end each message arrives exactly once, and each
       sender's in order.
    4. *Half-close*, where both ends have `send_eof`: the peer reads everything, then `EndOfChannel`; sending is over
       (`ClosedResourceError`), calling it again does nothing; the other direction goes on.
    5. *Clean close*, by `aclose` and by leaving `async with`: the peer reads everything that was sent, then
       `EndOfChannel`; its sends, those that wait included, raise `BrokenResourceError`.
    6. *After one's own close* every operation raises `ClosedResourceError`; closing again does nothing.
    7. *Closing wakes*: tasks that wait in `send` or `receive` on the end that is closed get `ClosedResourceError`.
    8. *Cancelled close*: `aclose` in a cancelled scope closes all the same.
    9. *Cancelled receive* loses nothing, whenever the cancellation comes.
    10. *Cancelled send*: what was cancelled is not received, what returned is, in order; the channel goes on. Before,
        in the middle of, and behind a message that is larger than what the channel takes at once.
    11. *`send_nowait` and `receive_nowait`*, where both ends have them: no checkpoints, `WouldBlock` when there is
        nothing to receive and when the channel is full; what was accepted arrives.
    12. *`send_many`*, where both ends have it: messages of any iterable, also an async one, arrive whole and in order.
        Each is asked for when those before it have been accepted, so that, cancelled, just those arrive whose `yield`
        in a generator was returned to.
    13. *Reset*: an exception or a cancellation that leaves `async with` comes out of it, closes that end, and is no
        `EndOfChannel` for the peer: its `receive` raises `BrokenResourceError` or `RemoteError` after at most what had
        arrived, its `send` `BrokenResourceError`, in tasks that wait as well.

    In all of this `send`, `receive`, `send_eof` and `aclose` must be checkpoints when they succeed, and a channel whose
    messages are not received must not accept more for ever.

    It has no deadline: call it within one.

    Args:
        channel_maker: called without arguments, returns an async context manager that yields two connected ends. It
            may close what is still open when it is left. Being reset must leave the other end usable for the check:
            where the end belongs to a service task, which is then cancelled, shield the task.

    Raises:
        AssertionError: a rule is broken. Where that shows in a child task, in an exception group; where an operation
            raised that should have worked, that exception. A note says which rule.
    """
    check_argument("channel_maker", channel_maker, Callable[[], object])
    for rule in _RULES:
        for turned in (False, True):
            try:
                async with channel_maker() as (left, right):
                    await (rule(right, left) if turned else rule(left, right))
            except Exception as exc:
                exc.add_note(f"in {rule.__name__.strip('_')}, led by the {'second' if turned else 'first'} end")
                raise


# Tools --------------------------------------------------------------------------------------------------------------


def _require(holds: bool, rule: str) -> None:  # noqa: FBT001 -- an assertion that -O leaves in
    if not holds:
        raise AssertionError(rule)


async def _settled() -> None:
    await trio.testing.wait_all_tasks_blocked(_CUSHION)


async def _send(end: End, value: bytes) -> None:
    with trio.testing.assert_checkpoints():
        await end.send(value)


async def _receive(end: End) -> bytes:
    with trio.testing.assert_checkpoints():
        return await end.receive()


async def _close(end: End) -> None:
    with trio.testing.assert_checkpoints():
        await end.aclose()


async def _expect(error: type[Exception] | tuple[type[Exception], ...], operation: Callable[[], object]) -> None:
    """Run an operation, async or not, that must raise just that."""
    try:
        result = operation()
        if isinstance(result, Awaitable):
            await result
    except error:
        return
    except Exception as exc:
        msg = f"{_called(operation)} raised {exc!r}, not {_either(error)}"
        raise AssertionError(msg) from exc
    msg = f"{_called(operation)} raised nothing, not {_either(error)}"
    raise AssertionError(msg)


def _called(operation: Callable[[], object]) -> str:
    """What it is called; without its arguments, which may be megabytes."""
    function = operation.func if isinstance(operation, partial) else operation
    return f"{getattr(function, '__name__', 'it').strip('_')}()"


def _either(error: type[Exception] | tuple[type[Exception], ...]) -> str:
    return " or ".join(each.__name__ for each in (error if isinstance(error, tuple) else (error,)))


def _filler(number: int) -> bytes:
    return number.to_bytes(4, "big") * (_FILLER_SIZE // 4)


async def _send_on(end: End, accepted: list[bytes]) -> None:
    """Send until it waits, and on; what was accepted is in the list."""
    while True:
        _require(len(accepted) < _FILLER_LIMIT, "a channel accepts messages without end, although none is received")
        value = _filler(len(accepted))
        await _send(end, value)
        accepted.append(value)


async def _expect_while_filling(end: End, error: type[Exception]) -> None:
    await _expect(error, partial(_send_on, end, []))


async def _receive_on(end: End, received: list[bytes]) -> None:
    """Receive until something is raised."""
    while True:
        received.append(await _receive(end))


async def _expect_all(end: End, expected: list[bytes], then: type[Exception] | tuple[type[Exception], ...]) -> None:
    received: list[bytes] = []
    await _expect(then, partial(_receive_on, end, received))
    _require(received == expected, f"{len(expected)} messages were sent, {len(received)} received, or in another order")


# Rules --------------------------------------------------------------------------------------------------------------


async def _order(left: End, right: End) -> None:
    def messages(salt: int) -> list[bytes]:
        return [bytes([(salt + number) % 256]) * size for number, size in enumerate(_SIZES)]

    async def send_all(end: End, salt: int) -> None:
        for message in messages(salt):
            await _send(end, message)

    async def receive_all(end: End, salt: int) -> None:
        for message in messages(salt):
            _require(await _receive(end) == message, "a message was changed, lost, doubled or overtaken")

    async with trio.open_nursery() as nursery:
        for sender, receiver, salt in ((left, right, 1), (right, left, 101)):
            nursery.start_soon(send_all, sender, salt)
            nursery.start_soon(receive_all, receiver, salt)


async def _iteration(left: End, right: End) -> None:
    sent = [b"a", b"", b"c" * 70_000, b"d"]

    async def send_all() -> None:
        for message in sent:
            await _send(left, message)
        await _close(left)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        _require([message async for message in right] == sent, "iterating did not give just what was sent")
    _require([message async for message in right] == [], "iterating again after the end gave something")
    for _ in range(2):
        await _expect(trio.EndOfChannel, right.receive)


async def _many_tasks(left: End, right: End) -> None:
    senders, receivers, count = 3, 3, 60
    received: list[list[tuple[int, int]]] = [[] for _ in range(receivers)]

    async def send_all(sender: int) -> None:
        for number in range(count):
            size = 30_000 if number % 20 == sender else 40  # now and then one that takes several fragments
            await _send(left, bytes([sender, number]).ljust(size, b"."))

    async def receive_all(seen: list[tuple[int, int]]) -> None:
        with suppress(trio.EndOfChannel):
            while True:
                message = await _receive(right)
                seen.append((message[0], message[1]))

    async with trio.open_nursery() as nursery:
        for seen in received:
            nursery.start_soon(receive_all, seen)
        async with trio.open_nursery() as sending:
            for sender in range(senders):
                sending.start_soon(send_all, sender)
        await _close(left)
    everything = sorted(item for seen in received for item in seen)
    _require(
        everything == [(sender, number) for sender in range(senders) for number in range(count)],
        "with many senders and receivers a message was lost or doubled",
    )
    for seen in received:
        for sender in range(senders):
            numbers = [number for origin, number in seen if origin == sender]
            _require(numbers == sorted(numbers), "one task's messages overtook each other")


async def _half_close(left: End, right: End) -> None:
    if not (isinstance(left, _HalfCloseable) and isinstance(right, _HalfCloseable)):
        return
    waiting: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect, trio.EndOfChannel, partial(_receive_on, right, waiting))
        await _settled()
        for message in (b"one", b"two" * 40_000):
            await _send(left, message)
        with trio.testing.assert_checkpoints():
            await left.send_eof()
    _require(waiting == [b"one", b"two" * 40_000], "something sent before send_eof() was lost")
    await _expect(trio.EndOfChannel, right.receive)
    await _expect(trio.ClosedResourceError, partial(left.send, b"late"))
    with trio.testing.assert_checkpoints():
        await left.send_eof()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, right, b"back" * 40_000)
        _require(await _receive(left) == b"back" * 40_000, "after send_eof() the other direction was broken")
    await _send(right, b"last")
    with trio.testing.assert_checkpoints():
        await right.send_eof()
    await _expect_all(left, [b"last"], trio.EndOfChannel)
    await _expect(trio.ClosedResourceError, partial(right.send, b"late"))


async def _clean_close(left: End, right: End) -> None:
    async with left:
        await _send(left, b"one")
        await _send(left, b"two")
    await _settled()
    await _expect_all(right, [b"one", b"two"], trio.EndOfChannel)
    await _expect_while_filling(right, trio.BrokenResourceError)
    await _expect(trio.BrokenResourceError, partial(right.send, b""))
    await _close(right)


async def _clean_close_wakes_the_peer(left: End, right: End) -> None:
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_while_filling, right, trio.BrokenResourceError)
        nursery.start_soon(_expect_while_filling, right, trio.BrokenResourceError)
        nursery.start_soon(_expect, trio.EndOfChannel, partial(_receive_on, right, received))
        nursery.start_soon(_expect, trio.EndOfChannel, partial(_receive_on, right, []))
        await _settled()
        await _close(left)
    _require(received == [], "something was received that was not sent")


async def _operations_after_close(left: End, right: End) -> None:
    await _send(right, b"unread")
    await _settled()
    await _close(left)
    for _ in range(2):
        await _expect(trio.ClosedResourceError, partial(left.send, b"late"))
        await _expect(trio.ClosedResourceError, left.receive)
        await _expect(trio.ClosedResourceError, left.__anext__)
        if isinstance(left, _NoWait):
            await _expect(trio.ClosedResourceError, partial(left.send_nowait, b"late"))
            await _expect(trio.ClosedResourceError, left.receive_nowait)
        if isinstance(left, _HalfCloseable):
            await _expect(trio.ClosedResourceError, left.send_eof)
        await _close(left)
    await _expect_all(right, [], trio.EndOfChannel)


async def _close_wakes_own_tasks(left: End, right: End) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_expect, trio.ClosedResourceError, left.receive)
            nursery.start_soon(_expect_while_filling, left, trio.ClosedResourceError)
        await _settled()
        await _close(left)
    await _close(right)


async def _cancelled_close(left: End, right: End) -> None:
    for end in (left, right):
        with trio.CancelScope() as scope:
            scope.cancel()
            await end.aclose()
        await _expect(trio.ClosedResourceError, partial(end.send, b"late"))
        await _expect(trio.ClosedResourceError, end.receive)


async def _cancelled_receive(left: End, right: End) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await right.receive()
    _require(scope.cancelled_caught, "receive() in a cancelled scope gave something")
    await _send(left, b"first")
    await _settled()
    with trio.CancelScope() as scope:
        scope.cancel()
        await right.receive()
    _require(scope.cancelled_caught, "receive() in a cancelled scope took a message")
    # Another message follows in each case, so that a lost one shows at once, rather than as a hang.
    await _send(left, b"second")
    _require(await _receive(right) == b"first", "receive() in a cancelled scope lost a message")
    _require(await _receive(right) == b"second", "receive() in a cancelled scope left something behind")

    async def receive_into(received: list[bytes], scope: trio.CancelScope) -> None:
        with scope:
            received.append(await right.receive())

    for race in range(_RACES):
        received: list[bytes] = []
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_into, received, scope)
            await _settled()
            await _send(left, race.to_bytes(2, "big"))
            for _ in range(race):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        await _send(left, b"next")
        received.append(await _receive(right))
        if received[-1] != b"next":
            received.append(await _receive(right))
        _require(received == [race.to_bytes(2, "big"), b"next"], "a cancelled receive() lost or doubled a message")


async def _cancelled_send(left: End, right: End) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await left.send(b"never")
    _require(scope.cancelled_caught, "send() in a cancelled scope is no checkpoint")
    accepted: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_on, left, accepted)
        await _settled()
        nursery.cancel_scope.cancel()
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_receive_on, right, received)
        await _settled()
        _require(received == accepted, "a cancelled send() was received, or one that returned was not")
        for race in range(_RACES):
            marker = race.to_bytes(2, "big")
            async with trio.open_nursery() as sending:
                sending.start_soon(_send_large, left, marker * 250_000, accepted)
                for _ in range(race):
                    await trio.lowlevel.checkpoint()
                sending.cancel_scope.cancel()
            await _send(left, marker)
            accepted.append(marker)
        await _settled()
        nursery.cancel_scope.cancel()
    _require(received == accepted, "a large send() that was cancelled was received, or spoilt what came after it")


async def _send_large(end: End, value: bytes, accepted: list[bytes]) -> None:
    await _send(end, value)
    accepted.append(value)


async def _nowait(left: End, right: End) -> None:
    if not (isinstance(left, _NoWait) and isinstance(right, _NoWait)):
        return
    accepted: list[bytes] = []
    with trio.testing.assert_no_checkpoints():
        await _expect(trio.WouldBlock, right.receive_nowait)
        with suppress(trio.WouldBlock):
            while True:
                _require(len(accepted) < _FILLER_LIMIT, "send_nowait() accepts without end")
                left.send_nowait(_filler(len(accepted)))
                accepted.append(_filler(len(accepted)))
    await _settled()
    received: list[bytes] = []
    with trio.testing.assert_no_checkpoints(), suppress(trio.WouldBlock):
        while True:
            received.append(right.receive_nowait())
    _require(received == accepted[: len(received)], "send_nowait() or receive_nowait() changed messages or their order")
    await _send(left, b"next")
    while received[-1:] != [b"next"]:
        received.append(await _receive(right))
    _require(received == [*accepted, b"next"], "what send_nowait() accepted was not received")
    await _expect(trio.WouldBlock, right.receive_nowait)
    await _close(left)
    await _settled()
    await _expect(trio.EndOfChannel, right.receive_nowait)
    await _expect(trio.BrokenResourceError, partial(right.send_nowait, b""))


async def _many(left: End, right: End) -> None:
    if not (isinstance(left, _Many) and isinstance(right, _Many)):
        return
    messages = [bytes([number]) * size for number, size in enumerate(_SIZES)]

    async def one_by_one() -> AsyncGenerator[bytes, None]:
        for message in messages:
            await trio.lowlevel.checkpoint()
            yield message

    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_receive_on, right, received)
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await left.send_many([])
        await left.send_many(messages)
        async with aclosing(one_by_one()) as generator:
            await left.send_many(generator)
        await _settled()
        _require(received == messages * 2, "send_many() changed messages, their number or their order")
        nursery.cancel_scope.cancel()

    accepted: list[bytes] = []

    def filler() -> Iterator[bytes]:
        while len(accepted) < _FILLER_LIMIT:
            yield _filler(len(accepted))
            accepted.append(_filler(len(accepted)))

    with trio.CancelScope() as scope:
        scope.cancel()
        await left.send_many(filler())
    _require(not accepted, "send_many() in a cancelled scope sent something")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_many, filler())
        await _settled()
        nursery.cancel_scope.cancel()
    received.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_receive_on, right, received)
        await _settled()
        nursery.cancel_scope.cancel()
    _require(received == accepted, "send_many() asked for more messages than it accepted, or accepted another one")


async def _reset_by_exception(left: End, right: End) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect, trio.ClosedResourceError, left.receive)
        await _settled()
        await _expect(_ResetOnPurpose, partial(_leave_by_exception, left, b"one"))
    await _after_reset(left, right, sent=[b"one"])


async def _leave_by_exception(end: End, *messages: bytes) -> None:
    async with end:
        for message in messages:
            await _send(end, message)
        raise _ResetOnPurpose


async def _reset_by_cancellation(left: End, right: End) -> None:
    with trio.CancelScope() as scope:
        async with left:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    _require(scope.cancelled_caught, "the channel swallowed a cancellation")
    await _after_reset(left, right, sent=[])


async def _reset_wakes_the_peer(left: End, right: End) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_expect, _PEER_RESET, right.receive)
            nursery.start_soon(_expect_while_filling, right, trio.BrokenResourceError)
        await _settled()
        await _expect(_ResetOnPurpose, partial(_leave_by_exception, left))
    await _after_reset(left, right, sent=[])


_PEER_RESET: Final = (trio.BrokenResourceError, RemoteError)


async def _after_reset(left: End, right: End, *, sent: list[bytes]) -> None:
    await _expect(trio.ClosedResourceError, partial(left.send, b"late"))
    await _expect(trio.ClosedResourceError, left.receive)
    received: list[bytes] = []
    await _expect(_PEER_RESET, partial(_receive_on, right, received))
    _require(received == sent[: len(received)], "after a reset something was received that was not sent")
    await _expect(_PEER_RESET, right.receive)
    await _expect_while_filling(right, trio.BrokenResourceError)
    await _close(right)
    await _expect(trio.ClosedResourceError, right.receive)


_RULES: Final[tuple[Callable[[End, End], Awaitable[None]], ...]] = (
    _order,
    _iteration,
    _many_tasks,
    _half_close,
    _clean_close,
    _clean_close_wakes_the_peer,
    _operations_after_close,
    _close_wakes_own_tasks,
    _cancelled_close,
    _cancelled_receive,
    _cancelled_send,
    _nowait,
    _many,
    _reset_by_exception,
    _reset_by_cancellation,
    _reset_wakes_the_peer,
)
