"""Services: which peers may open a channel to which, and what running one means.

A service is an async function of one `ServiceChannel`. Each opened channel runs it once, as a task of the node, in a
fresh copy of the node's context variables with `current_channel` set, under a cancel scope that carries the caller's
deadline. Returning closes the channel cleanly; raising resets it, and the caller sees `RemoteError(code="failed")`
without details, unless the node opts into showing them.

A service may outlive its channel and even its connection: a caller that closes cleanly does not cancel it. So the node,
not the connection, knows which ones run, waits for them when it drains, and cancels them when it may not wait.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from traceback import walk_tb
from typing import TYPE_CHECKING, Final, TypeAlias, final

import trio

from trionode._errors import RemoteCode, RemoteError
from trionode._identity.names import NodeName
from trionode._identity.patterns import NamePattern
from trionode._identity.peer import Peer
from trionode._util.fields import show
from trionode._util.functions import is_async, may_be_async
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog

from .channel import ChannelEnd, ServiceChannel
from .interceptors import serve_through

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .interceptors import Interceptor

__all__ = ["Allow", "Service", "current_channel"]

#: A service: an async function of the channel that was opened to it.
Service: TypeAlias = Callable[[ServiceChannel], Awaitable[None]]

#: Which peers may use a service: node names, globs over the whole name, or a function of the peer.
Allow: TypeAlias = str | NodeName | Iterable[str | NodeName] | Callable[[Peer], bool]

_log = Log("trionode.service")

#: In a service task, the channel that it serves: its `peer` and `service` are what a log line wants.
current_channel: Final[ContextVar[ServiceChannel]] = ContextVar("trionode.current_channel")


@final
class ServiceRefusal(Exception):  # noqa: N818 -- a verdict on its way to a RESET frame
    """Why a channel was not opened."""

    def __init__(self, code: RemoteCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class _Entry:
    service: Service
    allowed: Callable[[Peer], bool]


#: Characters of a service name, at most; what OPEN has room for.
_LONGEST_NAME: Final = 255


def check_service_name(name: object) -> None:
    """Insist on a name that a service can have: one rule for what is registered and what is asked for.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, longer than 255 characters, or cannot be encoded as UTF-8.
    """
    if not isinstance(name, str):
        msg = f"a service name is a string of 1 to {_LONGEST_NAME} characters, not {type(name).__name__}"
        raise TypeError(msg)
    if not 1 <= len(name) <= _LONGEST_NAME:
        msg = f"a service name has 1 to {_LONGEST_NAME} characters, not {len(name)}"
        raise ValueError(msg)
    try:
        name.encode()
    except UnicodeEncodeError:
        msg = f"a service name has 1 to {_LONGEST_NAME} characters that UTF-8 can encode; it cannot encode {name!r}"
        raise ValueError(msg) from None


def check_service(service: object) -> None:
    """Insist on something that can serve: called with a channel, it gives something to await.

    Raises:
        TypeError: it cannot serve.
    """
    if not may_be_async(service):
        msg = f"a service is an async function of one argument, the channel, which {show(service)} is not"
        raise TypeError(msg)


@final
class Services:
    """A node's services by name."""

    def __init__(
        self,
        *,
        propagate_errors: bool,
        expose_errors: bool,
        node: NodeName | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        """Begin with none.

        Args:
            propagate_errors: whether what a service raises ends the node.
            expose_errors: whether callers are shown what a service raised.
            node: whose they are, for the log.
            interceptors: around each; the outermost first.
        """
        self._node = node
        self._interceptors = interceptors
        self._entries: dict[str, _Entry] = {}
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        self._running: set[trio.CancelScope] = set()
        self._cancelled = False
        self._idle = trio.lowlevel.ParkingLot()
        self._failures = RateLimitedLog(_log, "services failed")
        self._propagate_errors = propagate_errors
        self._expose_errors = expose_errors
        self._refusals = RateLimitedLog(_log, "channels refused")

    def add(self, name: str, service: Service, *, allow: Allow | None = None) -> None:
        """Register a service.

        Raises:
            TypeError: the name is not a string, the service no async function, or `allow` names no peers.
            ValueError: the name is empty, longer than 255 characters, not encodable, or taken; or `allow` has a string
                that is neither a node name nor a glob over one.
        """
        check_service_name(name)
        check_service(service)
        if name in self._entries:
            msg = f"there is a service {name!r} already"
            raise ValueError(msg)
        self._entries[name] = _Entry(service, _any_peer if allow is None else _allowed(allow))

    def find(self, name: str, peer: Peer, connection: str | None = None) -> Service:
        """The service that a peer asks for.

        Args:
            name: of the service.
            peer: who asks.
            connection: over which, for the log.

        Raises:
            ServiceRefusal: there is none of that name, or the peer may not use it.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ServiceRefusal(RemoteCode.UNKNOWN_SERVICE, f"no service {name!r} here")
        try:
            allowed = entry.allowed(peer)
        except Exception as exc:  # noqa: BLE001 -- logged in full; fail closed
            self._refusals.warning(
                "the allow= function of service %r failed, which refuses %s",
                name,
                peer.name,
                exc_info=exc,
                node=self._node,
                connection=connection,
                peer=peer,
                service=name,
            )
            allowed = False
        if allowed is not True:
            self._refusals.warning(
                "%s may not use the service %r",
                peer.name,
                name,
                node=self._node,
                connection=connection,
                peer=peer,
                service=name,
            )
            raise ServiceRefusal(RemoteCode.NOT_ALLOWED, f"{peer.name} may not use the service {name!r}")
        return entry.service

    # Running

    def open(self, nursery: trio.Nursery) -> None:
        """Have services run in this nursery from now on."""
        self._nursery = nursery

    @property
    def running(self) -> int:
        """How many services run."""
        return len(self._running)

    def start(self, service: Service, channel: ChannelEnd, over: Callable[[], None]) -> None:
        """Run a service on its channel, as a task of the node, in context variables of its own.

        Args:
            service: what `find` gave.
            channel: the service's end of its channel, whose scope carries the caller's deadline.
            over: called when the service has ended.
        """
        scope, nursery = channel.scope, self._nursery
        assert scope is not None
        assert nursery is not None
        self._running.add(scope)
        if self._cancelled:
            scope.cancel()

        # A KeyboardInterrupt is for the service, so these lines are not protected: one in them ends the node, and with
        # it all that they would have put right.
        async def run() -> None:
            try:
                await self._run(service, channel, scope)
            finally:
                self._running.discard(scope)
                over()
                if self._idle and not self._running:
                    self._idle.unpark_all()

        # Not in the context of the task that happens to cause it, which may be the service that ended just now, but in
        # a copy of ours, which Trio makes.
        name = f"service {channel.service!r} for {channel.peer.name}"
        self._context.run(lambda: nursery.start_soon(run, name=name))

    async def wait_idle(self) -> None:
        """Wait until no service runs. Cancelling is harmless."""
        await trio.lowlevel.checkpoint()
        while self._running:
            await self._idle.park()

    def cancel(self) -> None:
        """Cancel every service that runs, and those that would begin as others end."""
        self._cancelled = True
        for scope in self._running:
            scope.cancel()

    async def _run(self, service: Service, channel: ChannelEnd, scope: trio.CancelScope) -> None:
        """Run it to its end, and end its channel. Cancellation and KeyboardInterrupt propagate."""
        face = ServiceChannel(channel)
        current_channel.set(face)
        try:
            with scope:
                await trio.lowlevel.checkpoint_if_cancelled()  # nothing runs for a caller that has already given up
                if self._interceptors:
                    one_reply = channel.sending.only_one
                    await serve_through(self._interceptors, service, face, one_reply=one_reply)
                else:
                    await service(face)
        except Exception as exc:
            if self._failed(channel, exc) and self._propagate_errors:
                raise
        except BaseExceptionGroup as group:
            # Cancellation and KeyboardInterrupt among errors: these must propagate, those must not.
            errors, rest = group.split(Exception)
            failed = errors is not None and self._failed(channel, errors)
            if errors is None or (failed and self._propagate_errors):
                raise
            assert rest is not None
            raise rest from None
        except BaseException:
            channel.reset(RemoteCode.CANCELLED)
            raise
        else:
            if scope.cancelled_caught:
                channel.reset(RemoteCode.CANCELLED, "the caller's deadline passed")
            else:
                channel.close()

    def _failed(self, channel: ChannelEnd, error: Exception) -> bool:
        """Tell the caller and the log. Returns False where the service failed only because its channel had ended."""
        gone = channel.is_end(error)
        refusal = None if gone else refusal_of(error)
        if refusal is not None:
            left_out = channel.refuse(refusal)
            _log.info(
                "service %r refused %s: %s",
                channel.service,
                channel.peer.name,
                refusal,
                node=self._node,
                channel=channel,
                error=refusal,
            )
            if left_out:
                self._refusals.warning(
                    "service %r refused %s with %d bytes of details and metadata, more than it takes now: left out",
                    channel.service,
                    channel.peer.name,
                    left_out,
                    node=self._node,
                    channel=channel,
                    error=refusal,
                )
            return False
        channel.reset(RemoteCode.FAILED, _describe(error) if self._expose_errors else "")
        if gone:
            _log.info("service %r ended: %s", channel.service, error, node=self._node, channel=channel, error=error)
        elif isinstance(error, RemoteError) and error.code is RemoteCode.BAD_MESSAGE:
            self._refusals.warning(
                "%r: bad message from %s: %s",
                channel.service,
                channel.peer.name,
                error.message,
                node=self._node,
                channel=channel,
                error=error,
            )
        elif not self._propagate_errors:
            self._failures.error(
                "service %r failed while serving %s",
                channel.service,
                channel.peer.name,
                exc_info=error,
                node=self._node,
                channel=channel,
            )
        return not gone


def refusal_of(error: Exception) -> RemoteError | None:
    """What a service has raised on purpose to refuse; a nursery around it makes a group of it, which is no other."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, RemoteError) and _raised_on_purpose(error) else None


def _raised_on_purpose(error: RemoteError) -> bool:
    """Whether the service raised it itself, to refuse; and did not get it from a call of its own to another peer."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    # What a task has waited for is raised by these, wherever it comes from.
    return next((each for each in reversed(modules) if each not in ("trio", "outcome")), "trionode") != "trionode"


def _any_peer(_: Peer) -> bool:
    return True


def _allowed(allow: Allow) -> Callable[[Peer], bool]:
    if callable(allow) and not is_async(allow):
        return allow
    items = [allow] if isinstance(allow, str | NodeName) else list(allow) if isinstance(allow, Iterable) else [allow]
    patterns = [NamePattern(item) for item in items if isinstance(item, str | NodeName)]
    if len(patterns) < len(items):
        msg = (
            "allow is a node name, a glob over the whole name, several of these, or a plain (not async) function of a "
            f"peer that returns True or False, not {allow!r}"
        )
        raise TypeError(msg)

    def matches(peer: Peer) -> bool:
        # A name that was not verified is a claim, and gives no access.
        return peer.verified and any(pattern.matches(peer.name) for pattern in patterns)

    return matches


def _describe(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return f"{error.message}: {'; '.join(_describe(inner) for inner in error.exceptions)}"
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- an exception that cannot even say what it is costs its caller nothing more
        return type(error).__name__
