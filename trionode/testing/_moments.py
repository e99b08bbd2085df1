"""For tests of certificates: wait for a generation, rotate in the middle of a handshake, insist on a refusal.

Theory. A handshake takes its contexts once, by `receive()` of its manager's channel, and finishes on what it took. The
moment right after that is the one where a rotation could go wrong. `rotate_during_handshake` rotates at just that
moment: not by timing, but by replacing that one `receive()`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from trionode._connection.connection import Connection, core_of
from trionode._errors import (
    HandshakeError,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    UnverifiedReason,
)
from trionode._managers.manager import CertManager, publisher_of
from trionode._node.events import HandshakeRefused
from trionode._node.node import Node
from trionode._util.fields import check_argument

from ._zoo import REASONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trionode._credentials.key_pair import KeyPair
    from trionode._node.events import EventStream
    from trionode._tls.contexts import TLSContexts

__all__ = [
    "ExpectedRefusal",
    "RotationInHandshake",
    "expect_refusal",
    "expect_refusal_at",
    "rotate_during_handshake",
    "wait_for_generation",
]

Reason: TypeAlias = UnverifiedReason | RejectionCode


# Generations --------------------------------------------------------------------------------------------------------


async def wait_for_generation(where: CertManager | Node | Connection, generation: int) -> None:
    """Wait until a generation, or a later one, is there. Cancelling is harmless.

    It has no deadline: call it within one.

    Args:
        where: a manager, which publishes the generation; or a node, for its own manager; or a connection, which is
            handed over to it, by `LiveConnections` or `reauthenticate()` (the generation is that of our side).
        generation: the number.

    Raises:
        trio.ClosedResourceError, trio.BrokenResourceError: the connection has ended without.
        RuntimeError: the manager is in use by another Trio run.
    """
    check_argument("where", where, CertManager | Node | Connection)
    check_argument("generation", generation, int)
    if isinstance(where, Connection):
        await trio.lowlevel.checkpoint()
        while where.generation < generation:
            await core_of(where).wait_moved(core_of(where).link)
    else:
        await _manager_of(where).wait_generation(generation)


@final
class RotationInHandshake:
    """The outcome of `rotate_during_handshake`.

    Attributes:
        taken: the generation that the handshake took before the rotation, and finishes on; None before a handshake.
        published: the generation that was published then; None before a handshake.
    """

    def __init__(self) -> None:
        self.taken: int | None = None
        self.published: int | None = None

    def __repr__(self) -> str:
        return f"<RotationInHandshake, taken: {self.taken}, published: {self.published}>"


@contextmanager
def rotate_during_handshake(where: CertManager | Node, key_pair: KeyPair) -> Iterator[RotationInHandshake]:
    """Rotate in the middle of the next handshake: after it took its contexts, before it uses them.

    That happens to the first handshake of this manager within the `with` block, dialled or accepted; later handshakes
    take what is published by then.

    Args:
        where: the manager that is to rotate; or a node, for its own manager.
        key_pair: what to rotate to, with `update()`.

    Raises:
        AssertionError: the block was left without an exception, and there was no handshake.
        CertificateError: the manager refuses the key pair; comes out of the handshake.
    """
    check_argument("where", where, CertManager | Node)
    manager = _manager_of(where)
    channel = publisher_of(manager).channel
    receive = channel.receive
    done = RotationInHandshake()

    async def receive_and_rotate() -> TLSContexts:
        contexts = await receive()
        if done.taken is None:
            done.taken = contexts.generation
            done.published = manager.update(key_pair)
        return contexts

    channel.receive = receive_and_rotate  # type: ignore[method-assign]
    try:
        yield done
    finally:
        channel.receive = receive  # type: ignore[method-assign]
    if done.taken is None:
        msg = f"no handshake took its contexts from {manager!r}, so there was no handshake to rotate in"
        raise AssertionError(msg)


# Refusals -----------------------------------------------------------------------------------------------------------


@final
class ExpectedRefusal:
    """A refusal that a test insists on.

    Attributes:
        error: the refusal, a `PeerUnverifiedError` or a `PeerRejectedError`; set once the block is left.
    """

    def __init__(self) -> None:
        self._error: PeerUnverifiedError | PeerRejectedError | None = None

    def __repr__(self) -> str:
        return f"<ExpectedRefusal, error: {self._error!r}>"

    @property
    def error(self) -> PeerUnverifiedError | PeerRejectedError:
        """The refusal.

        Raises:
            AssertionError: the block has not been left yet.
        """
        assert self._error is not None, "leave the block first: there is no refusal so far"
        return self._error

    def _fill(self, error: PeerUnverifiedError | PeerRejectedError) -> None:
        self._error = error


@contextmanager
def expect_refusal(reason: Reason | str) -> Iterator[ExpectedRefusal]:
    """Insist that a handshake in the `with` block is refused, and why.

    A `trio.BrokenResourceError` of a `TLSStream` counts by its cause, a `NoRouteError` by its causes, all of which must
    be that refusal. Any other exception comes out.

    Args:
        reason: an `UnverifiedReason` if we are to refuse the peer, a `RejectionCode` if the peer is to refuse us. As
            a plain string, either.

    Raises:
        AssertionError: there was no refusal, or one for another reason; the text has the details.
        ValueError: the string is neither.
    """
    wanted = _wanted(reason)
    refusal = ExpectedRefusal()
    try:
        yield refusal
    except (HandshakeError, NoRouteError, trio.BrokenResourceError) as exc:
        found = _refusals(exc)
        if not found:
            raise
        for error in found:
            if not _is(error, wanted):
                msg = f"{_words(wanted)} was expected, but {_account(error)}"
                raise AssertionError(msg) from exc
        refusal._fill(found[0])  # noqa: SLF001 -- ours
    else:
        msg = f"{_words(wanted)} was expected, but there was no refusal"
        raise AssertionError(msg)


@asynccontextmanager
async def expect_refusal_at(node: Node, reason: Reason | str, *, within: float = 5) -> AsyncIterator[ExpectedRefusal]:
    """Insist that a node reports a refused handshake by an event, and why: an acceptor raises no exception.

    Args:
        node: the node that reports.
        reason: an `UnverifiedReason` if it is to refuse its peer, a `RejectionCode` if its peer is to refuse it. As a
            plain word, either.
        within: how long the event may take after the `async with` block, seconds.

    Raises:
        AssertionError: the block was left without an exception, and there was no such event; the text has the events
            that there were.
        ValueError: the string is neither.
    """
    wanted = _wanted(reason)
    refusal = ExpectedRefusal()
    others: list[str] = []
    async with node.events() as events:
        yield refusal
        with trio.move_on_after(within), suppress(trio.EndOfChannel):  # the node was closed
            refusal._fill(await _next_refusal(events, wanted, others))  # noqa: SLF001 -- ours
            return
    story = "; ".join(others) or "no handshake failed"
    msg = f"{_words(wanted)} was expected at {node.name} within {within:g} s, but {story}"
    raise AssertionError(msg)


async def _next_refusal(
    events: EventStream, wanted: tuple[Reason, ...], others: list[str]
) -> PeerUnverifiedError | PeerRejectedError:
    """The first refusal that is wanted; other failed handshakes are described in `others`."""
    while True:
        event = await events.receive()
        if isinstance(event, HandshakeRefused):
            error = event.error
            if isinstance(error, PeerUnverifiedError | PeerRejectedError) and _is(error, wanted):
                return error
            others.append(_account(error))


def _manager_of(where: CertManager | Node) -> CertManager:
    return where.options.cert_manager if isinstance(where, Node) else where


def _wanted(reason: Reason | str) -> tuple[Reason, ...]:
    """Every reason that is meant."""
    if isinstance(reason, UnverifiedReason | RejectionCode):
        return (reason,)
    found: list[Reason] = [each for each in (*UnverifiedReason, *RejectionCode) if each == reason]
    if not found:
        msg = f"{reason!r} is neither an UnverifiedReason ({', '.join(UnverifiedReason)}) nor a RejectionCode"
        msg += f" ({', '.join(RejectionCode)})"
        if str(reason) in REASONS:
            msg = f"{reason!r} is a defect of the certificate zoo: refused as {' or '.join(REASONS[reason])}. {msg}"
        raise ValueError(msg)
    return tuple(found)


def _refusals(exc: BaseException | None) -> list[PeerUnverifiedError | PeerRejectedError]:
    """The refusals that an error is or is caused by; none if any of its causes is no refusal."""
    if isinstance(exc, PeerUnverifiedError | PeerRejectedError):
        return [exc]
    if isinstance(exc, trio.BrokenResourceError):
        return _refusals(exc.__cause__)
    if isinstance(exc, NoRouteError) and exc.causes is not None:
        found = [_refusals(each) for each in exc.causes.exceptions]
        return [error for each in found for error in each] if all(found) else []
    return []


def _is(error: HandshakeError, wanted: tuple[Reason, ...]) -> bool:
    # Both are strings, and some are in both enumerations: the type says which side refused.
    return any(type(each) is type(error.reason) and each == error.reason for each in wanted)


def _words(wanted: tuple[Reason, ...]) -> str:
    sides = {UnverifiedReason: "that we refuse the peer", RejectionCode: "that the peer refuses us"}
    return f"{' or '.join(sides[type(each)] for each in wanted)} ({wanted[0]})"


def _account(error: HandshakeError) -> str:
    match error:
        case PeerUnverifiedError():
            what = "we refused the peer"
        case PeerRejectedError():
            what = "the peer refused us"
        case _:
            what = "the handshake failed"
    return f"{what} ({error.reason}): {error}"
