"""Interceptors: async functions of the application's around each call and channel, at the caller and at the service.

Theory. An interceptor gets the call and a function `proceed`, which does the rest: the next interceptor, and behind the
last one what it is all about. There are three cases.

*A call, at the caller.* `proceed()` makes it and returns the reply. It may be awaited again, for another try, or not at
all, where the interceptor has a reply or refuses; each is a call of its own.

*A channel, at the caller.* `proceed()` opens it, and returns when the block of `open_channel` has been left. All of
that is one task: the caller's. So what an interceptor puts around `proceed()` (cancel scopes, nurseries, context
variables) is around the block, as if it were written there. To that end the interceptor's coroutine is run by hand, in
the task: what it waits for is passed to Trio, up to the mark that `proceed()` makes once the channel is open. Then it
rests while the block runs, and is run to its end as the block is left. What it makes of an exception of the block's is
what comes out, as with any context manager; that it cannot be otherwise is due to cancel scopes, which have to see the
`Cancelled` that they have caused.

*A service.* `proceed()` runs it, once, in the service's task, under the caller's deadline.

What an interceptor raises is what the call or service has raised.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast, final

import trio

from trionode._errors import LocalProtocolError
from trionode._util.fields import show, with_article
from trionode._util.functions import may_be_async
from trionode._util.immutable import Immutable
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.metadata import NO_METADATA, with_dispensable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Mapping, MutableMapping, Sequence
    from types import TracebackType

    from trionode._identity.peer import Peer
    from trionode._util.metadata import Metadata

    from .channel import ServiceChannel

__all__ = ["CallSide", "InterceptedCall", "Interceptor", "Proceed"]


@final
class CallSide(enum.Enum):
    """At which end of a call or channel an interceptor is."""

    CALLER = "caller"
    """Where it begins: `proceed()` makes the call, or opens the channel."""
    SERVICE = "service"
    """Where it is served: `proceed()` runs the service."""


@final
class InterceptedCall(Immutable):
    """What an interceptor knows of a call or channel.

    Attributes:
        side: at which end the interceptor is.
        service: the name of the service.
        name: the node at the other end; at the caller as it was asked for, which may be a glob over several.
        metadata: what the caller says beside its messages. At the caller's side a `dict`, which is sent as it is when
            `proceed()` is awaited; at the service's side read-only.
        one_reply: whether it is a call, of one message each way; False for a channel.
        request: the message of a call, at the caller's side; None elsewhere, where messages are in the channel.
        channel: at the service's side the service's; at the caller's the block's, once it is open; None before, and for
            a call.
    """

    __slots__ = ("_dispensable", "channel", "metadata", "name", "one_reply", "request", "service", "side")

    side: CallSide
    service: str
    name: str
    metadata: MutableMapping[str, str | bytes]
    one_reply: bool
    request: bytes | None
    channel: ServiceChannel | None
    _dispensable: frozenset[str]

    def __init__(
        self,
        *,
        side: CallSide,
        service: str,
        name: str,
        metadata: Mapping[str, str | bytes] | None = None,
        one_reply: bool = True,
        request: bytes | None = None,
        channel: ServiceChannel | None = None,
    ) -> None:
        """Make one; what trionode does, and the tests of an interceptor.

        Args:
            side: see the attributes, also for what follows.
            service: its name.
            name: of the other node.
            metadata: copied at the caller's side; None for none.
            one_reply: whether it is a call.
            request: the message of a call.
            channel: the service's, or the block's.
        """
        given = NO_METADATA if metadata is None else metadata
        values = {
            "side": side,
            "service": service,
            "name": name,
            "metadata": dict(given) if side is CallSide.CALLER else given,
            "one_reply": one_reply,
            "request": request,
            "channel": channel,
            "_dispensable": frozenset(),
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def __repr__(self) -> str:
        kind = "call" if self.one_reply else "channel"
        return f"<InterceptedCall: {kind} to {self.service!r}, {self.side.value}'s side, other side {self.name}>"

    def _add_dispensable(self, entries: Mapping[str, str]) -> None:
        """Put entries into the metadata that stay behind where the peer does not take as much."""
        self.metadata.update(entries)
        object.__setattr__(self, "_dispensable", self._dispensable | entries.keys())

    def _sent(self) -> Metadata:
        return with_dispensable(self.metadata, self._dispensable)

    @property
    def peer(self) -> Peer | None:
        """Who is at the other end of the channel, as it was verified; None while there is no channel here."""
        return None if self.channel is None else self.channel.peer


#: What an interceptor awaits for the rest: gives the reply of a call at the caller's side, elsewhere None.
Proceed: TypeAlias = Callable[[], Awaitable[bytes | None]]

#: An async function around a call or channel: `async def interceptor(call, proceed): return await proceed()`.
Interceptor: TypeAlias = Callable[[InterceptedCall, Proceed], Awaitable[bytes | None]]


def check_interceptor(given: object) -> None:
    """Insist on something that can intercept: called with a call and `proceed`, it gives something to await.

    Raises:
        TypeError: it cannot.
    """
    if not may_be_async(given):
        msg = f"an interceptor is an async function of a call and proceed, which {show(given)} is not"
        raise TypeError(msg)


def _through(interceptors: Sequence[Interceptor], call: InterceptedCall, target: Proceed) -> Proceed:
    """What awaits the first interceptor, which leads to the next, and so on to the target."""
    for interceptor in reversed(interceptors):
        target = partial(_intercepted, interceptor, call, target)
    return target


@trio.lowlevel.disable_ki_protection  # it is the application's
async def _intercepted(interceptor: Interceptor, call: InterceptedCall, proceed: Proceed) -> bytes | None:
    result = await interceptor(call, proceed)
    replies = call.one_reply and call.side is CallSide.CALLER
    if isinstance(result, bytes) if replies else result is None:
        return result
    wanted = "the reply of a call, which is bytes" if replies else "None, for there is no reply at this end"
    msg = (
        f"the interceptor {_named(interceptor)} has returned {with_article(type(result).__name__)}; it returns "
        f"{wanted}: `return await proceed()`"
    )
    raise TypeError(msg)


def _named(interceptor: Interceptor) -> str:
    return getattr(interceptor, "__qualname__", None) or type(interceptor).__qualname__


# At the caller --------------------------------------------------------------------------------------------------------


@trio.lowlevel.enable_ki_protection
async def call_through(
    interceptors: Sequence[Interceptor], call: InterceptedCall, target: Callable[[Metadata], Awaitable[bytes]]
) -> bytes:
    """Make a call through interceptors.

    Args:
        interceptors: the outermost first.
        call: which.
        target: makes it, with the metadata that there is by then.
    """
    made = False

    async def make() -> bytes:
        nonlocal made
        made = True
        return await target(call._sent())  # noqa: SLF001 -- ours

    reply = await _through(interceptors, call, make)()
    if not made:
        await trio.lowlevel.checkpoint()  # as the call would have been
    return cast("bytes", reply)


#: What a resting coroutine seems to wait for.
_MARK: Final = object()


@types.coroutine
def _rest() -> Generator[object, object, None]:
    error = yield _MARK
    if isinstance(error, BaseException):
        raise error


@trio.lowlevel.enable_ki_protection  # what Trio has answered must not be lost on the way
@types.coroutine
def _run(coroutine: Coroutine[object, object, object], error: BaseException | None) -> Generator[object, object, bool]:
    """Run a coroutine on, in the current task: True if it rests then, False if it has returned.

    Args:
        coroutine: new, or resting.
        error: what is raised where it rests; None for nothing.
    """
    try:
        awaited = coroutine.send(error)  # not thrown: of a GeneratorExit coroutines that await others make a `close()`
        while awaited is not _MARK:
            try:
                answer = yield awaited
            except BaseException as exc:  # noqa: ASYNC103, BLE001 -- whatever is raised is raised there
                awaited = coroutine.throw(exc)
            else:
                awaited = coroutine.send(answer)
    except StopIteration:
        return False
    return True


@interrupted_at_checkpoints
@final
class InterceptedBlock:
    """A channel that is opened through interceptors, for the length of an `async with` block, in one task."""

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        call: InterceptedCall,
        target: Callable[[Metadata], Awaitable[ServiceChannel]],
    ) -> None:
        """Prepare; nothing is done before the block is entered.

        Args:
            interceptors: the outermost first.
            call: which channel.
            target: opens it, with the metadata that there is by then.
        """
        self._call = call
        self._target = target
        self._interceptors = interceptors
        self._coroutine: Coroutine[object, object, object] | None = None
        self._task: trio.lowlevel.Task | None = None
        self._entered = False

    async def _proceed(self) -> None:
        if trio.lowlevel.current_task() is not self._task:
            msg = "proceed() of a channel was awaited in another task than the one that opens it: the block runs there"
            raise LocalProtocolError(msg)
        if self._entered:
            msg = "proceed() of a channel was awaited again after its block had begun: a block runs once"
            raise LocalProtocolError(msg)
        channel = await self._target(self._call._sent())  # noqa: SLF001 -- ours
        self._entered = True
        object.__setattr__(self._call, "channel", channel)
        async with channel:
            await _rest()

    async def __aenter__(self) -> ServiceChannel:
        """Run the interceptors until the channel is open.

        Raises:
            LocalProtocolError: one of them has returned before.
        """
        self._task = trio.lowlevel.current_task()
        outermost = _through(self._interceptors, self._call, self._proceed)
        self._coroutine = cast("Coroutine[object, object, object]", outermost())
        if not await _run(self._coroutine, None):
            msg = "an interceptor has returned without having awaited proceed(): there is no channel for the block"
            raise LocalProtocolError(msg)
        assert self._call.channel is not None
        return self._call.channel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Run the interceptors to their end. Returns whether they have dealt with what the block has raised."""
        assert self._coroutine is not None
        try:
            await _run(self._coroutine, error)  # noqa: ASYNC102 -- what is awaited is the interceptors'
        except BaseException as exc:
            # As in contextlib: what the block has raised leaves it as it was. A coroutine cannot raise StopIteration.
            if error is not None and (exc is error or (isinstance(error, StopIteration) and exc.__cause__ is error)):
                error.__traceback__ = traceback
                return False  # noqa: ASYNC104 -- so it is raised
            raise
        return error is not None


# At the service -------------------------------------------------------------------------------------------------------


async def serve_through(
    interceptors: Sequence[Interceptor],
    service: Callable[[ServiceChannel], Awaitable[None]],
    channel: ServiceChannel,
    *,
    one_reply: bool,
) -> None:
    """Run a service through interceptors.

    Args:
        interceptors: the outermost first.
        service: what is to run.
        channel: its own.
        one_reply: whether its caller takes one message, and no more.
    """
    begun = False

    async def run() -> None:
        nonlocal begun
        if begun:
            msg = "proceed() of a service was awaited twice: each channel runs it once"
            raise LocalProtocolError(msg)
        begun = True
        await service(channel)

    call = InterceptedCall(
        side=CallSide.SERVICE,
        service=channel.service,
        name=str(channel.peer.name),
        metadata=channel.metadata,
        one_reply=one_reply,
        channel=channel,
    )
    await _through(interceptors, call, run)()
