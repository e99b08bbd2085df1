"""Channels: an ordered, flow-controlled, two-way sequence of `bytes` messages between a caller and a service.

Theory. A channel has two directions, and each ends once. Sending ends by EOF (half-close), CLOSE (done with the whole
channel) or RESET (something went wrong); receiving ends by the peer's EOF, CLOSE or RESET, or with the connection.
What had arrived before the end stays readable; then `receive()` raises what the end was: `EndOfChannel`,
`RemoteError`, or `BrokenResourceError` with its cause. A channel is over once both directions ended; then the
connection forgets it.

Sending is an append to the connection's outbox: `send()` that returned was accepted locally, in order. A message
larger than a fragment, or than the credit at hand, goes out in fragments while the sender holds the channel's send
lock (Trio's locks are fair, so messages stay in order); cancelled after its first fragment it leaves a DISCARD, the
receiver drops the torn message, and the channel stays usable.

Receiving hands a message straight to a waiting task, as Trio's memory channels do; credit goes back as the
application consumes. Nothing here ever makes the reader task wait.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn, Self, final

import outcome
import trio

from trionode import _protocol as wire
from trionode._errors import LocalProtocolError, RemoteCode, RemoteError, RemoteProtocolError

from .flow_control import ReceiveWindow
from .reassembly import Place, Reassembly
from .send_queue import HIGH_WATER

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trionode._identity.peer import Peer

    from .flow_control import MessageBudget
    from .send_queue import Outbox

__all__ = ["ServiceChannel"]

#: A fragment smaller than this is not worth its frame: wait for more credit instead.
_SMALLEST_FRAGMENT: Final = 2048

#: Messages that an iteration takes without letting others run, if they are there: a scheduler tick costs more than
#: everything else that a small message costs to receive.
_IN_A_ROW: Final = 32
#: A message larger than this waits for room between its fragments, so that it holds up nobody else.
_LARGEST_AT_ONCE: Final = HIGH_WATER


@final
class ServiceChannel(trio.abc.Channel[bytes]):
    """One end of a channel between a caller and a service; a `trio.abc.Channel[bytes]`.

    Several tasks may send and receive at once, as on memory channels. Iterate over it to receive until the peer is
    done. Leaving `async with` cleanly, or `aclose()`, lets the peer read everything that was sent; leaving it by an
    exception or a cancellation resets the channel, and the service over there is cancelled.

    Attributes:
        service: the name of the service that the channel was opened to.
    """

    # A call makes two of these: no dict, and what only some need is made when it is needed.
    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_budget",
        "_closed",
        "_closed_cleanly",
        "_credit",
        "_credit_arrived",
        "_eof_sent",
        "_gave_up",
        "_in_a_row",
        "_messages",
        "_on_over",
        "_outbox",
        "_over",
        "_peer_window",
        "_reassembly",
        "_receive_end",
        "_receive_limit",
        "_receivers",
        "_send_end",
        "_send_limit",
        "_send_lock",
        "_window",
        "_within_message",
        "identifier",
        "peer_closed",
        "scope",
        "service",
    )

    def __init__(
        self,
        *,
        identifier: int,
        service: str,
        outbox: Outbox,
        budget: MessageBudget,
        window: int,
        credit: int,
        receive_limit: int,
        send_limit: int,
        on_over: Callable[[ServiceChannel], None],
    ) -> None:
        self.service: str = service
        self.identifier: int = identifier
        #: The scope of the service task, at the service's end.
        self.scope: trio.CancelScope | None = None
        #: Whether the peer closed its end cleanly: its service then goes on, whatever happens to the connection.
        self.peer_closed: bool = False
        self._outbox = outbox
        self._budget = budget
        self._on_over = on_over
        self._receive_limit = receive_limit
        self._send_limit = send_limit
        # Receiving
        self._window = ReceiveWindow(window)
        self._reassembly: Reassembly | None = None
        self._messages: deque[bytes] = deque()
        self._in_a_row = 0
        self._receivers: dict[trio.lowlevel.Task, None] = {}
        self._receive_end: Exception | None = None
        self._closed = False
        # Whether that was by a clean close of this end: its service has nothing to do with the channel any more.
        self._closed_cleanly = False
        self._abandoned = False
        # Whether the peer needs no frame of ours any more: it closed or reset the channel, or the connection ended.
        self._over = False
        # Sending
        self._credit = self._peer_window = credit
        self._within_message = False
        self._gave_up = False
        self._send_lock: trio.StrictFIFOLock | None = None
        self._credit_arrived: trio.lowlevel.ParkingLot | None = None
        self._send_end: Exception | None = None
        self._eof_sent = False

    def __repr__(self) -> str:
        return f"<ServiceChannel {self.identifier} to {self.service!r}, peer {self.peer.name}>"

    @property
    def peer(self) -> Peer:
        """Who is at the other end; after a hand-over, as it proved to be then."""
        return self._outbox.link.peer

    # Sending

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
        value = _as_bytes(value)
        self._check_sendable(len(value))
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._try_send(value):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._send_in_turn(value)

    def send_nowait(self, value: bytes) -> None:
        """Send a message if that is possible at once.

        Args:
            value: the message, of up to 128 KiB.

        Raises:
            trio.WouldBlock: there is no credit or no room for the whole message now, or others wait to send. For a
                message larger than the peer's `channel_window`, or than 128 KiB, there never is: use `send`.
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        value = _as_bytes(value)
        self._check_sendable(len(value))
        if not self._try_send(value):
            raise trio.WouldBlock

    def try_send_last(self, value: bytes) -> bool:
        """Send a message and half-close, if that is possible at once; otherwise do nothing and return False.

        Args:
            value: the message, of up to 128 KiB.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, LocalProtocolError, TypeError: as `send`.
        """
        value = _as_bytes(value)
        self._check_sendable(len(value))
        if not self._try_send(value):
            return False
        self._half_close()
        return True

    async def send_eof(self) -> None:
        """Half-close: the peer reads everything that was sent, then `EndOfChannel`; receiving goes on here.

        Waits for sends under way. Calling it again does nothing. Cancelled while it waits, it has closed nothing.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BrokenResourceError: the peer reset the channel, or the connection was lost.
        """
        async with self._locked():
            if self._eof_sent and not self._closed:
                return
            self._check_sendable(0)
            self._half_close()

    def _half_close(self) -> None:
        self._outbox.append(wire.header(wire.EOF, self.identifier, 0))
        self._eof_sent = True
        self._settle()

    def _check_sendable(self, size: int) -> None:
        if self._closed:
            msg = f"the channel to {self.service!r} was closed here"
            raise trio.ClosedResourceError(msg)
        if self._eof_sent:
            msg = f"send_eof() was called on the channel to {self.service!r}"
            raise trio.ClosedResourceError(msg)
        if self._send_end is not None:
            self._raise_broken(self._send_end)
        if size > self._send_limit:
            msg = (
                f"a message of {size} bytes is larger than the {self._send_limit} that {self.peer.name} accepts (we "
                f"accept {self._receive_limit}); split it, or raise max_message_size in the peer's NetworkOptions"
            )
            raise LocalProtocolError(msg)

    def _try_send(self, value: bytes) -> bool:
        size = len(value)
        cost = size + wire.MESSAGE_OVERHEAD
        lock = self._send_lock
        if cost > self._credit or size > _LARGEST_AT_ONCE or self._outbox.full or (lock is not None and lock.locked()):
            return False
        if size <= wire.MAX_FRAGMENT:
            self._credit -= cost
            self._outbox.append(wire.header(wire.MESSAGE, self.identifier, size), value)
        else:
            with memoryview(value) as view:
                sent = 0
                while sent < size:
                    sent += self._send_fragment(view, sent)
        return True

    def _locked(self) -> trio.StrictFIFOLock:
        """The turn of whoever cannot send at once; fair, so that messages stay in order."""
        if self._send_lock is None:
            self._send_lock = trio.StrictFIFOLock()
        return self._send_lock

    async def _send_in_turn(self, value: bytes) -> None:
        async with self._locked():
            sent, begun = 0, False
            try:
                with memoryview(value) as view:
                    while not begun or sent < len(view):
                        await self._wait_sendable(len(view) - sent + (0 if begun else wire.MESSAGE_OVERHEAD))
                        sent += self._send_fragment(view, sent)
                        begun = self._within_message = True
            except BaseException:
                if begun and not self._closed and self._send_end is None:
                    self._gave_up = True
                    self._outbox.append(wire.header(wire.DISCARD, self.identifier, 0))
                raise
            finally:
                self._within_message = False
                self._return_excess()

    async def _wait_sendable(self, cost: int) -> None:
        enough = min(cost, _SMALLEST_FRAGMENT)
        while True:
            self._check_sendable(0)
            if self._credit < enough:
                if self._credit_arrived is None:
                    self._credit_arrived = trio.lowlevel.ParkingLot()
                await self._credit_arrived.park()
            elif self._outbox.full:
                await self._outbox.room.park()
            else:
                return

    def _send_fragment(self, view: memoryview, sent: int) -> int:
        total = len(view)
        credit = self._credit
        if sent:
            size = min(total - sent, credit, wire.MAX_FRAGMENT)
            head = wire.header(wire.MORE, self.identifier, size)
        else:
            credit -= wire.MESSAGE_OVERHEAD
            size = min(total, credit, wire.MAX_FRAGMENT)
            if size == total:
                head = wire.header(wire.MESSAGE, self.identifier, size)
            else:
                head = wire.first(self.identifier, total, size)
        self._credit = credit - size
        with view[sent : sent + size] as fragment:
            self._outbox.append(head, fragment)
        return size

    # Receiving

    async def receive(self) -> bytes:
        """Receive the next message. Cancelling loses nothing.

        Raises:
            trio.EndOfChannel: the peer half-closed or closed cleanly, and everything was read.
            RemoteError: the service over there failed, was cancelled or does not exist.
            trio.BrokenResourceError: the connection was lost (`__cause__`), or the caller reset the channel.
            trio.ClosedResourceError: this end was closed.
        """
        if self._messages:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return self.receive_nowait()
        except trio.WouldBlock:
            pass
        task = trio.lowlevel.current_task()
        self._receivers[task] = None

        def give_up(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            del self._receivers[task]
            return trio.lowlevel.Abort.SUCCEEDED

        received = await trio.lowlevel.wait_task_rescheduled(give_up)
        assert isinstance(received, bytes)
        return received

    async def __anext__(self) -> bytes:
        """The next message, as `receive`; a schedule point once in several that are there, and at every wait."""
        if self._messages and self._in_a_row < _IN_A_ROW:
            self._in_a_row += 1
            await trio.lowlevel.checkpoint_if_cancelled()
            return self.receive_nowait()
        self._in_a_row = 0
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def receive_nowait(self) -> bytes:
        """Receive a message if there is one.

        Raises:
            trio.WouldBlock: there is none yet.
            trio.EndOfChannel, RemoteError, trio.BrokenResourceError, trio.ClosedResourceError: as `receive`.
        """
        if self._closed:
            msg = f"the channel to {self.service!r} was closed here"
            raise trio.ClosedResourceError(msg)
        if self._messages:
            value = self._messages.popleft()
            self._give_back(len(value) + wire.MESSAGE_OVERHEAD)
            return value
        if self._receive_end is not None:
            raise self._receive_error()
        raise trio.WouldBlock

    def _give_back(self, cost: int) -> None:
        window = self._window
        grant = window.consume(cost)
        if grant and self._receive_end is None:
            self._outbox.append(wire.credit(self.identifier, grant))
            window.adapt(alone=self._budget.alone)
        reassembly, reserved = self._reassembly, self._budget.reserved
        # Only now is what was reserved neither held here nor still in the sender's hand (as after a DISCARD).
        if (
            reserved
            and self.identifier in reserved
            and (reassembly is None or reassembly.place is not Place.GRANTED)
            and window.within_level
        ):
            self._budget.release(self.identifier)
        if reassembly is not None and reassembly.place is Place.AWAITED:
            self._budget.consumed()

    def _receive_error(self) -> Exception:
        end = self._receive_end
        if isinstance(end, trio.EndOfChannel):
            return trio.EndOfChannel()
        if isinstance(end, RemoteError) and self.scope is None:
            return RemoteError(end.message, code=end.code)
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
            return self._abandoned
        if isinstance(error, trio.EndOfChannel):
            return self.peer_closed
        ends = [end for end in (self._send_end, self._receive_end) if end is not None]
        return isinstance(error, trio.BrokenResourceError) and error.__cause__ in ends

    def _raise_broken(self, cause: Exception) -> NoReturn:
        raise trio.BrokenResourceError(str(cause)) from cause

    # Ending

    async def aclose(self) -> None:
        """Close this end cleanly: the peer reads everything that was sent, then `EndOfChannel`; its sends break.

        Tasks that send or receive on this end get `ClosedResourceError`. Always closes, cancelled
        too; then a checkpoint.
        """
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As `aclose()`, without its checkpoint."""
        if not self._closed:
            self._closed_cleanly = True
            if not self._over:
                self._outbox.append(wire.header(wire.CLOSE, self.identifier, 0))
            self._end_locally()

    def reset(self, code: RemoteCode = RemoteCode.CANCELLED, message: str = "") -> None:
        """Give the channel up: what is under way may be lost, the service over there is cancelled. Synchronous.

        Args:
            code: what the peer is told.
            message: for people over there, at most 1000 characters.
        """
        if not self._closed:
            if not self._over:
                payload = wire.End(code=code, message=wire.text(message))
                self._outbox.append(wire.control(wire.RESET, self.identifier, payload))
            self._end_locally()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close cleanly, or reset if the block failed or was cancelled."""
        if error is None:
            await self.aclose()
        else:
            self.reset()

    async def __aenter__(self) -> Self:
        return self

    def abandon(self) -> None:
        """The connection was closed here: end without a frame, and cancel the service task, if this is its end."""
        if self.peer_closed:
            return  # it has everything that the peer sent, and may finish
        self._abandoned = True
        self._cancel_service()
        self._over = True
        if not self._closed:
            self._end_locally()

    def _cancel_service(self) -> None:
        """Cancel the service, if this is its end, unless one of the two had closed cleanly: then it may finish."""
        if self.scope is not None and not (self.peer_closed or self._closed_cleanly):
            self.scope.cancel()

    def _end_locally(self) -> None:
        self._closed = True
        self._messages.clear()
        self._drop_fragments()
        self._budget.release(self.identifier)
        closed = trio.ClosedResourceError(f"the channel to {self.service!r} was closed here")
        self._wake_receivers(lambda: closed)
        self._wake_senders()
        self._on_over(self)

    def _settle(self) -> None:
        """Forget the channel once it is over; two half-closes leave a service that can still be cancelled."""
        if self._over:
            self._on_over(self)

    def _wake_receivers(self, error: Callable[[], Exception]) -> None:
        for task in self._receivers:
            trio.lowlevel.reschedule(task, outcome.Error(error()))
        self._receivers.clear()

    def _wake_senders(self) -> None:
        if self._credit_arrived:
            self._credit_arrived.unpark_all()
        if self._outbox.room:
            self._outbox.room.unpark_all()

    # What the reader brings. Synchronous, never waits.

    def on_message(self, message: bytes) -> None:
        """A whole message came in one frame.

        Args:
            message: all of it.
        """
        if self._receive_end is not None or self._reassembly is not None:
            self._check_receivable(within=False)
        size = len(message)
        if size > self._receive_limit:
            self._refuse_size(size)
        self._window.take(size + wire.MESSAGE_OVERHEAD)
        self._deliver(message)

    def on_first(self, payload: bytes) -> None:
        """The first fragment of a message came.

        Args:
            payload: the length of the message, u32, and its first bytes.
        """
        self._check_receivable(within=False)
        total = wire.unpack_u32(payload)
        if total > self._receive_limit:
            self._refuse_size(total)
        fragment = payload[4:]
        if len(fragment) >= total:
            msg = "the peer sent a first fragment that is the whole message, or more"
            raise RemoteProtocolError(msg)
        self._window.take(len(fragment) + wire.MESSAGE_OVERHEAD)
        self._reassembly = Reassembly(
            fragment,
            total,
            channel=self.identifier,
            window=self._window,
            budget=self._budget,
            outbox=self._outbox,
        )

    def on_more(self, fragment: bytes) -> None:
        """A further fragment came.

        Args:
            fragment: the next bytes of the message that is under way.
        """
        self._check_receivable(within=True)
        assert self._reassembly is not None
        message = self._reassembly.add(fragment)
        if message is not None:
            self._reassembly = None
            self._deliver(message)

    def on_discard(self) -> None:
        """The sender gave up the message under way."""
        self._check_receivable(within=True)
        self._give_back(self._drop_fragments())

    def on_credit(self, amount: int) -> None:
        """The peer grants more.

        Args:
            amount: how much more may be sent. Bytes.
        """
        if self._credit + amount >= 2**32:
            msg = "the peer granted more credit than there can be"
            raise RemoteProtocolError(msg)
        self._credit += amount
        self._return_excess()
        if self._credit_arrived:
            self._credit_arrived.unpark_all()

    def _return_excess(self) -> None:
        """Give back what a message was granted that was given up: till then it keeps its place in the peer's budget."""
        excess = self._credit - self._peer_window
        ended = self._closed or self._eof_sent or self._send_end is not None
        if self._gave_up and excess > 0 and not self._within_message and not ended:
            self._credit -= excess
            self._outbox.append(wire.credit(self.identifier, excess, wire.RETURN))

    def on_return(self, amount: int) -> None:
        """The peer gives credit back.

        Args:
            amount: how much will not be sent. Bytes.
        """
        self._window.take_back(amount)
        self._give_back(0)

    def on_end(self, kind: int) -> None:
        """The peer's EOF or CLOSE: everything that it sent has been received.

        Args:
            kind: of the frame.
        """
        if self._reassembly is not None and kind == wire.EOF:
            msg = "the peer half-closed in the middle of a message"
            raise RemoteProtocolError(msg)
        if self._receive_end is not None and kind == wire.EOF:
            msg = "the peer half-closed twice"
            raise RemoteProtocolError(msg)
        if kind == wire.CLOSE:
            self.peer_closed = self._over = True
            self._send_end = trio.BrokenResourceError(f"{self.peer.name} closed its end of {self.service!r}")
            self._wake_senders()
        self._end_receiving(trio.EndOfChannel())

    def on_lost(self, cause: Exception) -> None:
        """The peer reset the channel (a `RemoteError`), or the connection ended.

        Args:
            cause: how it ended; who waits gets it, or a `BrokenResourceError` with it as `__cause__`.
        """
        # Cancelled first: a service that waits here is to be cancelled, not to fail with what it waited for.
        self._cancel_service()
        self._over = True
        if self._send_end is None:
            self._send_end = cause
        self._wake_senders()
        self._end_receiving(cause)

    def _end_receiving(self, end: Exception) -> None:
        if self._receive_end is None:
            self._receive_end = end
            # A torn message is dropped, and nobody can use any more what was granted for it.
            self._window.outstanding = 0
            self._give_back(self._drop_fragments())
            self._wake_receivers(self._receive_error)
        self._settle()

    def _deliver(self, message: bytes) -> None:
        if self._receivers:
            task = next(iter(self._receivers))
            del self._receivers[task]
            trio.lowlevel.reschedule(task, outcome.Value(message))
            self._give_back(len(message) + wire.MESSAGE_OVERHEAD)
        else:
            self._messages.append(message)

    def _check_receivable(self, *, within: bool) -> None:
        if self._receive_end is not None:
            msg = "the peer sent a message after it had half-closed or closed the channel"
            raise RemoteProtocolError(msg)
        if (self._reassembly is not None) is not within:
            msg = "the peer sent fragments out of order"
            raise RemoteProtocolError(msg)

    def _refuse_size(self, size: int) -> NoReturn:
        msg = f"the peer sent a message of {size} bytes; we accept {self._receive_limit}, as our hello said"
        raise RemoteProtocolError(msg)

    def _drop_fragments(self) -> int:
        """Forget the message under way, if there is one; returns what it has cost so far."""
        reassembly, self._reassembly = self._reassembly, None
        if reassembly is None:
            return 0
        reassembly.drop()
        return reassembly.cost


def _as_bytes(value: bytes) -> bytes:
    """Checked before a header is queued: what turned out not to be bytes after it would garble the whole connection."""
    return value if type(value) is bytes else bytes(memoryview(value))
