"""Ways to end a connection: at once, gracefully, because a newer one took its place, or because of a fault of ours.

Theory. Each ends the connection by `ConnectionCore.end`, and returns when it is closed. What comes before that differs:
nothing; a wait for channels and services to end, with or without a bound, while no further ones begin; or a bounded
time in which the peer's last words are read. Cancelling any of them closes at once, and so does a KeyboardInterrupt:
each step is the connection's own and done as a whole, and `finally` sees to the rest.

*No request is left in doubt by a graceful end.* The peer may open channels until it has heard that this side drains. So
the wait begins with a round trip: DRAIN, and a PING whose answer comes behind all that the peer had opened. What was
open then is served. Where the peer does not answer, or this side waits no longer, GOODBYE names the last channel that
was taken, and the peer knows that those beyond it did not run.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from trionode import _protocol as wire
from trionode._tls.handshake import drain_and_close
from trionode._util.log import Log

from .core import CLOSE_GRACE
from .end import EndReason
from .state import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode._tls.stream import SessionStream

    from .core import ConnectionCore

_log = Log("trionode.connection")

#: How long a connection that was replaced is still read, for what the peer sent on it. Seconds.
RETIRE_GRACE: Final = 5.0
#: How long a peer that is told to open no more channels may take to acknowledge. Seconds.
ACKNOWLEDGE_GRACE: Final = 5.0


async def close(connection: ConnectionCore, reason: EndReason, *, grace: float = CLOSE_GRACE) -> None:
    """End it now; what was accepted for sending is flushed.

    Args:
        connection: the one to end.
        reason: what the peer and events are told.
        grace: how long a peer may take nothing before it is given up, seconds. The whole is bounded by what was
            pending, and by the caller's scope.
    """
    connection.end(reason, grace=grace)
    try:
        await connection.wait_closed()
    finally:
        if connection.state is not State.CLOSED:
            connection.cancel()
            with trio.CancelScope(shield=True):  # bounded: everything under run() is cancelled now
                await connection.wait_closed()


async def drain(connection: ConnectionCore) -> None:
    """End it when its channels and services have ended; unbounded, the deadline is the caller's scope.

    Args:
        connection: the one to end.
    """
    try:
        await quiesce(connection)
    finally:
        await close(connection, EndReason.SHUTTING_DOWN)  # noqa: ASYNC102 -- cancelled, it closes at once, shielded


async def supersede(connection: ConnectionCore, reason: EndReason, *, grace: float) -> None:
    """As `drain()`, for so many seconds at most, then close whatever is still open.

    Args:
        connection: the one to end.
        reason: what is told as the reason of its end.
        grace: how long to wait for what is under way. Seconds.
    """
    with trio.move_on_after(grace):
        await quiesce(connection)
    await close(connection, reason)


async def quiesce(connection: ConnectionCore) -> None:
    """The first half of `drain()`: tell the peer, and wait until no channel is open and no service runs.

    Args:
        connection: the one to end.
    """
    await connection.drain(ACKNOWLEDGE_GRACE)
    await connection.channels.wait_quiet()


async def retire(connection: ConnectionCore) -> None:
    """A newcomer took its place: go on for a bounded time, until the peer's goodbye or end, then close.

    Args:
        connection: the one that was replaced.
    """
    connection.become(State.RETIRED)
    with trio.move_on_after(RETIRE_GRACE):
        await connection.wait_closed()
    await close(connection, EndReason.REPLACED)


async def turn_away(stream: SessionStream, reason: EndReason, *, confirmation: bytes = b"") -> None:
    """Close a link that is not taken, and tell the peer, which may count on it already, that nothing ran. Bounded.

    Args:
        stream: the link's, on which the peer may have opened channels; owned.
        reason: what the peer is told.
        confirmation: what the peer is waiting for before that, if it was not sent.
    """
    await drain_and_close(stream, confirmation + wire.control(wire.GOODBYE, 0, wire.Goodbye(code=reason, last=0)))


@contextmanager
def at_the_cost_of(connection: ConnectionCore) -> Iterator[None]:
    """Whatever the block raises is logged, ends the connection, and goes no further.

    Args:
        connection: the one that the block is about.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 -- logged in full
        _log.exception("the connection to %s crashed", connection.peer.name, connection=connection)
        connection.fail(exc)
