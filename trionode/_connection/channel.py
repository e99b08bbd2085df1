"""Channels: an ordered, flow-controlled, two-way sequence of `bytes` messages between a caller and a service.

Theory. A channel has two directions, and each ends once: `SendHalf` and `ReceiveHalf` know how far theirs has come.
`ChannelEnd` is one side's end of a channel, the two halves and what ties them; `ServiceChannel` is what applications
see of it. EOF ends one direction. CLOSE and RESET end both: a side that closes cleanly has sent everything and reads no
more, a side that resets gives up. So the states of the two halves tell everything:

- The end was *closed here* if the sending half is `CLOSED`, `RESET_SENT` or `ABANDONED`.
- The channel is *over for the peer*, which needs no frame of ours any more, if the receiving half is `CLOSE_RECVD` or
  `RESET_RECVD`.

In either case the connection forgets the channel. Two half-closes alone do not end it: a service that has sent and
read everything may still be cancelled by a RESET.

*Whether a service goes on.* A channel that ends otherwise than cleanly cancels its service, with one exception: where
either side has closed cleanly before, nothing more is to come or to go on the channel, and the service may finish.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Final, Self, final

import trio
from msgspec import Raw

from trionode import _protocol as wire
from trionode._errors import ApplicationCode, RemoteCode, RemoteError, anew, code_of
from trionode._util.fields import show, with_article
from trionode._util.home import home
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.metadata import NO_METADATA

from .receive_half import ReceiveHalf, ReceiveState
from .send_half import CLOSED_HERE, SendHalf, SendState, closed_here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from trionode._identity.peer import Peer
    from trionode._util.metadata import Metadata

    from .flow_control import Terms

__all__ = ["ServiceChannel"]

#: Messages that an iteration takes without letting others run, if they are there: a scheduler tick costs more than
#: everything else that a small message costs to receive.
_IN_A_ROW: Final = 32

#: The states of a channel whose peer needs no frame of ours any more.
_OVER: Final = (ReceiveState.CLOSE_RECVD, ReceiveState.RESET_RECVD)

# Looked up for every message.
_SEND: Final = SendState.SEND
_RECV: Final = ReceiveState.RECV


@interrupted_at_checkpoints
@final
class ChannelEnd:
    """One side's end of a channel, as the connection knows it.

    Attributes:
        number: the channel's on its connection.
        service: the name of the service that it was opened to.
        metadata: what the caller said beside its messages.
        scope: the service task's, at the service's end; None at the caller's.
        sending: the half that sends.
        receiving: the half that receives.
    """

    __slots__ = ("_on_over", "_outbox", "_terms", "metadata", "number", "receiving", "scope", "sending", "service")

    def __init__(
        self,
        number: int,
        service: str,
        terms: Terms,
        on_over: Callable[[ChannelEnd], None],
        scope: trio.CancelScope | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> None:
        """Begin open in both directions.

        Args:
            number: the channel's on its connection.
            service: the name of the service that it is opened to.
            terms: the connection's.
            on_over: called when the connection may forget the channel; may be called again.
            scope: around the service task, if this is the service's end.
            metadata: the caller's.
        """
        self.number: int = number
        self.service: str = service
        self.metadata: Metadata = metadata
        self.scope: trio.CancelScope | None = scope
        self.sending: SendHalf = SendHalf(number, service, terms)
        self.receiving: ReceiveHalf = ReceiveHalf(number, terms)
        self._terms = terms
        self._outbox = terms.outbox
        self._on_over = on_over

    @property
    def peer(self) -> Peer:
        """The peer of the connection; after a hand-over, as it proved to be then."""
        return self._outbox.link.peer

    @property
    def connection(self) -> str:
        """What logs call its connection."""
        return self._outbox.link.connection

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self.sending.state in CLOSED_HERE

    @property
    def closed_by_peer(self) -> bool:
        """Whether the peer closed its end cleanly: its service then goes on, whatever happens to the connection."""
        return self.receiving.state is ReceiveState.CLOSE_RECVD

    @property
    def _over(self) -> bool:
        return self.receiving.state in _OVER

    # Sending and receiving

    def try_send(self, value: bytes) -> bool:
        """Send a message, if that is possible at once; otherwise do nothing and return False.

        Args:
            value: the message, of up to 128 KiB.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        value, sending = as_bytes(value), self.sending
        if sending.state is not _SEND or len(value) > sending.limit:
            sending.refuse(len(value))
        return sending.try_send(value)

    def try_send_last(self, value: bytes) -> bool:
        """As `try_send`, and half-close if that could be done.

        Args:
            value: the message, of up to 128 KiB.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        if not self.try_send(value):
            return False
        self.sending.half_close()
        return True

    async def receive(self) -> bytes:
        """Receive a message; see `ServiceChannel.receive`."""
        receiving = self.receiving
        if receiving.messages:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if receiving.messages:
            return receiving.take()
        if receiving.state is not _RECV or self.closed:
            raise self.nothing_to_receive()
        return await receiving.wait()

    def nothing_to_receive(self) -> Exception:
        """What receiving raises where there is no message."""
        if self.closed:
            return closed_here(self.service)
        return trio.WouldBlock() if self.receiving.end is None else self._receive_error()

    def _receive_error(self) -> Exception:
        end = self.receiving.end
        if isinstance(end, trio.EndOfChannel):
            return trio.EndOfChannel()
        if isinstance(end, RemoteError) and self.scope is None:
            return anew(end)
        error = trio.BrokenResourceError(str(end))
        error.__cause__ = end
        return error

    def is_end(self, error: Exception) -> bool:
        """Whether an error, or a whole group, says only that the channel ended, and not by its service's doing.

        Args:
            error: what came out of using the channel.
        """
        if isinstance(error, ExceptionGroup):
            return all(self.is_end(inner) for inner in error.exceptions)
        if isinstance(error, trio.ClosedResourceError):
            return self.sending.state is SendState.ABANDONED
        if isinstance(error, trio.EndOfChannel):
            return self.closed_by_peer
        ends = [end for end in (self.sending.cause, self.receiving.end) if end is not None]
        return isinstance(error, trio.BrokenResourceError) and error.__cause__ in ends

    # Ended here

    def close(self) -> None:
        """Close this end cleanly; see `ServiceChannel.aclose`."""
        if not self.closed:
            if not self._over:
                self._outbox.append(wire.header(wire.CLOSE, self.number, 0))
            self._end_here(SendState.CLOSED)

    def reset(self, code: RemoteCode | ApplicationCode = RemoteCode.CANCELLED, message: str = "") -> None:
        """Give the channel up; see `ServiceChannel.reset`.

        Args:
            code: what the peer is told.
            message: for people over there, at most 1000 characters.
        """
        self._reset(code, message, wire.ABSENT, wire.ABSENT)

    def refuse(self, error: RemoteError) -> int:
        """As `reset`, with all that an error says.

        Args:
            error: what the peer is told.

        Returns:
            Bytes of details and metadata that were left out: more than the peer takes, or than can wait to be written.
        """
        details = wire.ABSENT if error.details is None else Raw(wire.encode_details(error.details))
        metadata = Raw(wire.encode_metadata(error.metadata)) if error.metadata else wire.ABSENT
        size, limit = len(bytes(details)) + len(bytes(metadata)), self._terms.send_metadata
        if size <= limit and self._outbox.takes(size):
            self._reset(error.code, error.message, details, metadata)
            return 0
        why = f"at most {limit}" if size > limit else "too much waits to be written"
        note = f"[details and metadata of {size} bytes were left out: {why}] "
        self._reset(error.code, note + error.message, wire.ABSENT, wire.ABSENT)
        return size

    def _reset(self, code: RemoteCode | ApplicationCode, message: str, details: Raw, metadata: Raw) -> None:
        if not self.closed:
            if not self._over:
                end = wire.End(
                    code=wire.code(code),
                    message=wire.text(message),
                    application=isinstance(code, ApplicationCode),
                    details=details,
                    metadata=metadata,
                )
                self._outbox.append(wire.control(wire.RESET, self.number, end))
            self._end_here(SendState.RESET_SENT)

    def abandon(self) -> None:
        """The connection was closed here: end without a frame. After the peer's CLOSE, what it sent stays readable."""
        if self.closed_by_peer:
            return
        self._cancel_service()
        if not self.closed:
            self._end_here(SendState.ABANDONED)

    def _end_here(self, state: SendState) -> None:
        self.sending.close(state)
        self.receiving.close(self.nothing_to_receive)
        self._on_over(self)

    # Ended by the peer, or with the connection

    def on_eof(self) -> None:
        """The peer half-closed: everything that it sent has been received."""
        self.receiving.check_eof()
        self.receiving.finish(ReceiveState.DATA_RECVD, trio.EndOfChannel(), self._receive_error)

    def on_close(self) -> None:
        """The peer closed its end: everything that it sent has been received, and it reads no more."""
        self.sending.stop(None)
        self.receiving.finish(ReceiveState.CLOSE_RECVD, trio.EndOfChannel(), self._receive_error)
        self._on_over(self)

    def on_lost(self, cause: Exception) -> None:
        """The peer reset the channel (a `RemoteError`), or the connection ended.

        Args:
            cause: how it ended; tasks that wait get it, or a `BrokenResourceError` with it as `__cause__`.
        """
        # Cancelled first: a service that waits here is to be cancelled, not to fail with what it waited for.
        self._cancel_service()
        self.sending.stop(cause)
        self.receiving.finish(ReceiveState.RESET_RECVD, cause, self._receive_error)
        self._on_over(self)

    def _cancel_service(self) -> None:
        """Cancel the service, if this is its end, unless one of the two had closed cleanly: then it may finish."""
        if self.scope is not None and not (self.closed_by_peer or self.sending.state is SendState.CLOSED):
            self.scope.cancel()


@interrupted_at_checkpoints
@final
class ServiceChannel(trio.abc.Channel[bytes]):
    """One end of a channel between a caller and a service; a `trio.abc.Channel[bytes]`.

    Several tasks may send and receive at once, as on memory channels. Iterate over it to receive until the peer is
    done. Leaving `async with` cleanly, or `aclose()`, lets the peer read everything that was sent; leaving it by an
    exception or a cancellation resets the channel, and the service over there is cancelled.
    """

    __slots__ = ("__weakref__", "_end", "_home", "_receiving", "_sending")

    def __init__(self, end: ChannelEnd) -> None:
        self._home = home()
        self._end = end
        self._sending = end.sending
        self._receiving = end.receiving

    def __repr__(self) -> str:
        return f"<ServiceChannel {self._end.number} to {self.service!r}, peer {self.peer.name}>"

    @property
    def service(self) -> str:
        """The name of the service that the channel was opened to."""
        return self._end.service

    @property
    def peer(self) -> Peer:
        """Who is at the other end; after a hand-over, as it proved to be then."""
        return self._end.peer

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller said beside its messages, read-only; what was sent, at the caller's end.

        It is the caller's word, as its messages are: `peer` is what was verified.
        """
        return self._end.metadata

    async def send(self, value: bytes) -> None:
        """Send a message. Returning means accepted locally, in order; not that the peer has it.

        Waits while the peer grants no credit or the connection is behind. Cancelled before the first fragment it
        sent nothing; after it, the peer discards the torn message and the channel stays usable.

        Args:
            value: the message, at most the peer's `max_message_size` bytes.

        Raises:
            trio.ClosedResourceError: this end was closed, or `send_eof` was called.
            trio.BrokenResourceError: the peer closed or reset the channel, or the connection was lost (`__cause__`).
            LocalProtocolError: the message is larger than the peer accepts; nothing was sent.
            TypeError: it is not bytes; nothing was sent.
        """
        self._home.check("ServiceChannel")
        value, sending = as_bytes(value), self._sending
        if sending.state is not _SEND or len(value) > sending.limit:
            sending.refuse(len(value))
        await trio.lowlevel.checkpoint_if_cancelled()
        if sending.try_send(value):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await sending.send_in_turn(value)

    async def send_many(self, values: Iterable[bytes] | AsyncIterable[bytes]) -> None:
        """Send messages, as `send` for each of them in turn, and let others run only where that has to wait.

        A message is asked for when all before it have been accepted. So if this raises or is cancelled, those were
        accepted that a generator knows of behind its `yield`; of a list, an unknown number of the first ones.

        Messages that other tasks send meanwhile may go in between.

        Args:
            values: the messages, each at most the peer's `max_message_size` bytes; any iterable, also an async one.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        self._home.check("ServiceChannel")
        if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Iterable | AsyncIterable):
            msg = f"values must be an iterable of messages, not {show(values)}; write [message] for a single one"
            raise TypeError(msg)
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(values, AsyncIterable):
            async for value in values:
                if not self._end.try_send(value):
                    await self.send(value)
        else:
            try_send = self._end.try_send
            for value in values:
                if not try_send(value):
                    await self.send(value)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, value: bytes) -> None:
        """Send a message if that is possible at once.

        Args:
            value: the message, of up to 128 KiB.

        Raises:
            trio.WouldBlock: there is no credit or no room for the whole message now, or others wait to send. For a
                message larger than the peer's `channel_window`, or than 128 KiB, there never is: use `send`.
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        self._home.check("ServiceChannel")
        if not self._end.try_send(value):
            raise trio.WouldBlock

    async def send_eof(self) -> None:
        """Half-close: the peer reads everything that was sent, then `EndOfChannel`; receiving goes on here.

        Waits for sends under way. Calling it again does nothing. Cancelled while it waits, it has closed nothing.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BrokenResourceError: the peer reset the channel, or the connection was lost.
        """
        self._home.check("ServiceChannel")
        await self._sending.send_eof()

    async def receive(self) -> bytes:
        """Receive the next message. Cancelling loses nothing.

        Raises:
            trio.EndOfChannel: the peer half-closed or closed cleanly, and everything was read.
            RemoteError: the service over there failed, was cancelled or does not exist.
            trio.BrokenResourceError: the connection was lost (`__cause__`), or the caller reset the channel.
            trio.ClosedResourceError: this end was closed.
        """
        self._home.check("ServiceChannel")
        return await self._end.receive()

    async def __anext__(self) -> bytes:
        """The next message, as `receive`; a schedule point once in several that are there, and at every wait."""
        self._home.check("ServiceChannel")
        receiving = self._receiving
        if receiving.messages and receiving.in_a_row < _IN_A_ROW:
            receiving.in_a_row += 1
            await trio.lowlevel.checkpoint_if_cancelled()
            return receiving.take()
        receiving.in_a_row = 0
        try:
            return await self._end.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def receive_nowait(self) -> bytes:
        """Receive a message if there is one.

        Raises:
            trio.WouldBlock: there is none yet.
            trio.EndOfChannel, RemoteError, trio.BrokenResourceError, trio.ClosedResourceError: as `receive`.
        """
        self._home.check("ServiceChannel")
        receiving = self._receiving
        if receiving.messages:
            return receiving.take()
        raise self._end.nothing_to_receive()

    async def aclose(self) -> None:
        """Close this end cleanly: the peer reads everything that was sent, then `EndOfChannel`; its sends break.

        Tasks that send or receive on this end get `ClosedResourceError`. Always closes, cancelled
        too; then a checkpoint.
        """
        self._home.check("ServiceChannel")
        self._end.close()
        await trio.lowlevel.checkpoint()

    def reset(self, code: RemoteCode | str = RemoteCode.CANCELLED, message: str = "") -> None:
        """Give the channel up: what is under way may be lost, the service over there is cancelled. Synchronous.

        Args:
            code: what the peer is told: a `RemoteCode`, or one of the application's own, of 1 to 64 characters, which
                a caller finds as `RemoteError.code`, an `ApplicationCode`.
            message: for people over there, at most 1000 characters.

        Raises:
            TypeError, ValueError: the code is no text, or too long; nothing was done.
        """
        self._home.check("ServiceChannel")
        check_code(code)
        self._end.reset(code_of(code), message)

    async def __aenter__(self) -> Self:
        """A checkpoint; cancelled in it, the channel is reset."""
        self._home.check("ServiceChannel")
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self.reset()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close cleanly, or reset if the block failed or was cancelled."""
        if error is None:
            await self.aclose()
        else:
            self.reset()
            await trio.lowlevel.cancel_shielded_checkpoint()


def end_of(channel: ServiceChannel) -> ChannelEnd:
    """What is behind a channel that an application has."""
    return channel._end  # noqa: SLF001 -- the one door


def as_bytes(value: object) -> bytes:
    """A message as bytes, checked before a header is queued: what is none after it would garble the whole connection.

    Raises:
        TypeError: it is not bytes.
    """
    if type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value))  # type: ignore[arg-type]  # that is the question
    except TypeError:
        hint = "; encode it, with .encode() for instance" if isinstance(value, str) else ""
        kind = with_article(type(value).__name__)
        msg = f"a message is bytes, not {kind}{hint}. Values of other types are sent by call_typed and TypedChannel"
        raise TypeError(msg) from None


def check_code(code: object) -> None:
    """Check what is to be sent as the code of an end.

    Raises:
        TypeError, ValueError: it is no text, or not of 1 to 64 characters.
    """
    if not isinstance(code, str):
        msg = f"a code is a RemoteCode or a string, not {with_article(type(code).__name__)}"
        raise TypeError(msg)
    if not 1 <= len(code) <= wire.MAX_CODE:
        msg = f"a code has 1 to {wire.MAX_CODE} characters, not {len(code)}"
        raise ValueError(msg)
