"""The receiving half of a channel: what has arrived, what is granted, and how receiving ends.

Theory. A message goes straight to a task that waits for one, as on Trio's memory channels, else into a queue. Its cost
is held until the application has it; then credit goes back. Nothing here waits for an application: what the reader
brings is counted, queued and answered synchronously, and a peer that sends more than it was granted breaks the
protocol.

Receiving ends by the peer's EOF, CLOSE or RESET, or with the connection. What had arrived before stays readable; then
`receive()` raises what the end was. The first end stands for that, though the state goes on: a RESET after an EOF
still cancels a service.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NoReturn, final

import outcome
import trio

from trionode import _protocol as wire
from trionode._errors import RemoteProtocolError
from trionode._util.interrupts import interrupted_at_checkpoints

from .flow_control import ReceiveWindow
from .reassembly import Place, Reassembly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .flow_control import Terms


class ReceiveState(Enum):
    """How far the direction in which the peer sends has come; RFC 9000, section 3.2, in quotation marks."""

    __hash__: Callable[[object], int] = object.__hash__  # type: ignore[assignment]  # Enum's own, by name, is slow

    #: "Recv": messages may come.
    RECV = auto()
    #: "Data Recvd": the peer half-closed; it still reads.
    DATA_RECVD = auto()
    #: The peer closed its end cleanly: all that it sent is here, and it reads no more.
    CLOSE_RECVD = auto()
    #: "Reset Recvd": the peer gave the channel up, or the connection was lost.
    RESET_RECVD = auto()


_NEXT: Final[Mapping[ReceiveState, tuple[ReceiveState, ...]]] = {
    ReceiveState.RECV: (ReceiveState.DATA_RECVD, ReceiveState.CLOSE_RECVD, ReceiveState.RESET_RECVD),
    ReceiveState.DATA_RECVD: (ReceiveState.CLOSE_RECVD, ReceiveState.RESET_RECVD),
    ReceiveState.CLOSE_RECVD: (),
    ReceiveState.RESET_RECVD: (),
}

# Looked up for every message.
_RECV: Final = ReceiveState.RECV


@interrupted_at_checkpoints
@final
class ReceiveHalf:
    """One side's receiving half.

    Attributes:
        state: how far it has come.
        end: why nothing more comes, once that is so.
        messages: whole messages that no task has taken yet.
        in_a_row: messages that an iteration took since it last let others run.
        window: what was granted, and what of it is held.
        reassembly: the large message under way, if there is one.
    """

    __slots__ = (
        "_channel",
        "_limit",
        "_receivers",
        "_reserved",
        "_terms",
        "end",
        "in_a_row",
        "messages",
        "reassembly",
        "state",
        "window",
    )

    def __init__(self, channel: int, terms: Terms) -> None:
        """Begin open.

        Args:
            channel: the number of the channel.
            terms: the connection's.
        """
        self.state: ReceiveState = _RECV
        self.end: Exception | None = None
        self.messages: deque[bytes] = deque()
        self.in_a_row: int = 0
        self.window: ReceiveWindow = ReceiveWindow(terms.window)
        self.reassembly: Reassembly | None = None
        self._channel = channel
        self._terms = terms
        self._limit = terms.receive_limit
        self._reserved = terms.budget.reserved
        # Tasks that wait for a message, in order; made when first needed.
        self._receivers: dict[trio.lowlevel.Task, None] | None = None

    # What the application takes

    def take(self) -> bytes:
        """The next message, of those that are there."""
        message = self.messages.popleft()
        self._give_back(len(message) + wire.MESSAGE_OVERHEAD)
        return message

    async def wait(self) -> bytes:
        """Wait for the next message, or raise what ends it. Cancelling loses nothing."""
        if self._receivers is None:
            self._receivers = {}
        task, receivers = trio.lowlevel.current_task(), self._receivers
        receivers[task] = None

        def give_up(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            del receivers[task]
            return trio.lowlevel.Abort.SUCCEEDED

        message = await trio.lowlevel.wait_task_rescheduled(give_up)
        assert isinstance(message, bytes)
        return message

    def _give_back(self, cost: int) -> None:
        window = self.window
        grant = window.consume(cost)
        if grant and self.state is _RECV:
            self._terms.outbox.append(wire.credit(self._channel, grant))
            window.adapt(alone=self._terms.budget.alone)
        if self._reserved or self.reassembly is not None:
            self._check_budget()

    def _check_budget(self) -> None:
        budget, reassembly = self._terms.budget, self.reassembly
        granted = reassembly is not None and reassembly.place is Place.GRANTED
        # Only now is what was reserved neither held here nor still in the sender's hand (as after a DISCARD).
        if self._channel in self._reserved and not granted and self.window.within_level:
            budget.release(self._channel)
        if reassembly is not None and reassembly.place is Place.AWAITED:
            budget.consumed()

    # What the reader brings. Synchronous, never waits.

    def on_message(self, message: bytes) -> None:
        """A whole message came in one frame.

        Args:
            message: all of it.
        """
        if self.state is not _RECV or self.reassembly is not None:
            self._check_receivable(within=False)
        size = len(message)
        if size > self._limit:
            self._refuse_size(size)
        self.window.take(size + wire.MESSAGE_OVERHEAD)
        self._deliver(message)

    def on_first(self, payload: bytes) -> None:
        """The first fragment of a message came.

        Args:
            payload: the length of the message, u32, and its first bytes.
        """
        self._check_receivable(within=False)
        total = wire.unpack_u32(payload)
        if total > self._limit:
            self._refuse_size(total)
        fragment = payload[4:]
        if len(fragment) >= total:
            msg = "the peer sent a first fragment that is the whole message, or more"
            raise RemoteProtocolError(msg)
        self.window.take(len(fragment) + wire.MESSAGE_OVERHEAD)
        self.reassembly = Reassembly(fragment, total, channel=self._channel, window=self.window, terms=self._terms)

    def on_more(self, fragment: bytes) -> None:
        """A further fragment came.

        Args:
            fragment: the next bytes of the message that is under way.
        """
        self._check_receivable(within=True)
        assert self.reassembly is not None
        message = self.reassembly.add(fragment)
        if message is not None:
            self.reassembly = None
            self._deliver(message)

    def on_discard(self) -> None:
        """The sender gave up the message under way."""
        self._check_receivable(within=True)
        self._give_back(self._drop_fragments())

    def on_return(self, amount: int) -> None:
        """The peer gives credit back.

        Args:
            amount: how much will not be sent. Bytes.
        """
        self.window.take_back(amount)
        self._give_back(0)

    def check_eof(self) -> None:
        """Check that the peer may half-close now.

        Raises:
            RemoteProtocolError: it is in the middle of a message, or did so already.
        """
        if self.reassembly is not None:
            msg = "the peer half-closed in the middle of a message"
            raise RemoteProtocolError(msg)
        if self.state is not _RECV:
            msg = "the peer half-closed twice"
            raise RemoteProtocolError(msg)

    def _deliver(self, message: bytes) -> None:
        if self._receivers:
            task = next(iter(self._receivers))
            del self._receivers[task]
            trio.lowlevel.reschedule(task, outcome.Value(message))
            self._give_back(len(message) + wire.MESSAGE_OVERHEAD)
        else:
            self.messages.append(message)

    def _check_receivable(self, *, within: bool) -> None:
        if self.state is not _RECV:
            msg = "the peer sent a message after it had half-closed or closed the channel"
            raise RemoteProtocolError(msg)
        if (self.reassembly is not None) is not within:
            msg = "the peer sent fragments out of order"
            raise RemoteProtocolError(msg)

    def _refuse_size(self, size: int) -> NoReturn:
        msg = f"the peer sent a message of {size} bytes; we accept {self._limit}, as our hello said"
        raise RemoteProtocolError(msg)

    # Ending

    def finish(self, state: ReceiveState, end: Exception, error: Callable[[], Exception]) -> None:
        """The peer sends no more, or the connection was lost.

        Args:
            state: what the half becomes.
            end: why; the first stands.
            error: makes what tasks raise that wait.
        """
        if state not in _NEXT[self.state]:
            return
        self.state = state
        if self.end is None:
            self.end = end
            # A torn message is dropped, and its sender cannot use any more what was granted for it.
            self.window.outstanding = 0
            if self._reserved or self.reassembly is not None:
                self._give_back(self._drop_fragments())
            self._wake(error)

    def close(self, error: Callable[[], Exception]) -> None:
        """This end was closed: nothing is read any more.

        Args:
            error: makes what tasks raise that wait.
        """
        self.messages.clear()
        self._drop_fragments()
        if self._reserved:
            self._terms.budget.release(self._channel)
        self._wake(error)

    def _drop_fragments(self) -> int:
        """Forget the message under way, if there is one; returns what it has cost so far."""
        reassembly, self.reassembly = self.reassembly, None
        if reassembly is None:
            return 0
        reassembly.drop()
        return reassembly.cost

    def _wake(self, error: Callable[[], Exception]) -> None:
        if self._receivers:
            for task in self._receivers:
                trio.lowlevel.reschedule(task, outcome.Error(error()))
            self._receivers.clear()
