"""The states of a channel's two halves: every order of ends, checked against what each may still do.

All sequences of ends up to a length are gone through, at the caller's end and at the service's: which frames are said,
what sending and receiving raise, whether the connection forgets the channel, and whether the service is cancelled.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from trionode import RemoteCode, RemoteError, ServiceChannel, _protocol as wire
from trionode._connection import receive_half, send_half
from trionode._connection.channel import ChannelEnd
from trionode._connection.flow_control import MessageBudget, Terms
from trionode._connection.receive_half import ReceiveState
from trionode._connection.send_half import SendState
from trionode._connection.send_queue import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Ends that come from here, from the peer, and of the connection.
OURS: Final = ("half-close", "close", "reset")
THEIRS: Final = ("EOF", "CLOSE", "RESET")
CONNECTION: Final = ("lost", "closed here")

LOST: Final = trio.BrokenResourceError("the network")


class FakeLink:
    """What an end of a channel knows of its link."""

    class peer:  # noqa: D106, N801 -- an attribute
        name = "peer@localhost"

    confirmation = b""


class Story:
    """One end of a channel, and what happened to it, as the connection would have it happen."""

    def __init__(self, *, serves: bool) -> None:
        link: Any = FakeLink
        self.outbox = Outbox(link, worn=lambda: None, max_records=2**20)
        self.forgotten = False
        terms = Terms(
            outbox=self.outbox,
            budget=MessageBudget(0),
            window=65536,
            credit=65536,
            receive_limit=65536,
            send_limit=65536,
        )
        self.end = ChannelEnd(1, "service", terms, self._forget, trio.CancelScope() if serves else None)
        self.channel = ServiceChannel(self.end)
        self.happened: list[str] = []
        self.connected = True

    def _forget(self, _: ChannelEnd) -> None:
        self.forgotten = True

    def happen(self, event: str) -> bool:
        """Have it happen; False where it cannot, for nothing reaches the channel any more, or it was done before."""
        if event in THEIRS and (not self.connected or (self.forgotten and not self._hears(event))):
            return False
        if (event in CONNECTION and not self.connected) or (event == "EOF" and "EOF" in self.happened):
            return False
        events: Mapping[str, Callable[[], None]] = {
            "half-close": self._half_close,
            "close": self.end.close,
            "reset": self.end.reset,
            "EOF": self.end.on_eof,
            "CLOSE": self.end.on_close,
            "RESET": lambda: self.end.on_lost(RemoteError("over there", code=RemoteCode.FAILED)),
            "lost": lambda: self.end.on_lost(LOST),
            "closed here": self.end.abandon,
        }
        events[event]()
        self.connected = self.connected and event not in CONNECTION
        self.happened.append(event)
        return True

    def _hears(self, event: str) -> bool:
        """A service that runs hears of a RESET though its channel is over."""
        return event == "RESET" and self.end.scope is not None

    def _half_close(self) -> None:
        if self.sends():
            self.end.sending.half_close()

    # What can be seen of it

    def sends(self) -> bool:
        """Whether it can send."""
        return self.error_of(lambda: self.channel.send_nowait(b"")) is None

    @staticmethod
    def error_of(operation: Callable[[], object]) -> Exception | None:
        """What an operation raises."""
        try:
            operation()
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel, trio.WouldBlock) as exc:
            return exc
        except RemoteError as exc:
            return exc
        return None

    def said(self) -> list[int]:
        """The kinds of frames that it has said, but for messages."""
        frames = wire.FrameDecoder().feed(bytes(self.outbox._pending))
        return [kind for kind, _, _ in frames if kind != wire.MESSAGE]

    # What it should be

    def first_of(self, *events: str) -> str | None:
        """Which of some events came first."""
        return next((event for event in self.happened if event in events), None)

    def check(self) -> None:
        """Check what has to hold by now."""
        here = self.first_of("close", "reset", *(["closed here"] if self._abandoned() else []))
        over = self.first_of("CLOSE", "RESET", "lost")
        assert self.end.closed is (here is not None)
        assert self.forgotten is (here is not None or over is not None)
        self._check_sending(here, over)
        self._check_receiving(here)
        self._check_said()
        if self.end.scope is not None:
            assert self.end.scope.cancel_called is self._cancelled()

    def _abandoned(self) -> bool:
        """Whether closing the connection here closed it: where the peer had closed cleanly all stays readable."""
        before = self.happened[: self.happened.index("closed here")] if "closed here" in self.happened else []
        return "closed here" in self.happened and "CLOSE" not in before

    def _check_sending(self, here: str | None, over: str | None) -> None:
        error = self.error_of(lambda: self.channel.send_nowait(b""))
        if here is not None or self.first_of("half-close", "CLOSE", "RESET", "lost") == "half-close":
            assert isinstance(error, trio.ClosedResourceError)
        elif over is not None:
            assert isinstance(error, trio.BrokenResourceError)
            assert error.__cause__ is not None
        else:
            assert error is None

    def _check_receiving(self, here: str | None) -> None:
        error = self.error_of(self.channel.receive_nowait)
        end = self.first_of("EOF", "CLOSE", "RESET", "lost")
        if here is not None:
            assert isinstance(error, trio.ClosedResourceError)
        elif end in ("EOF", "CLOSE"):
            assert isinstance(error, trio.EndOfChannel)
        elif end == "RESET" and self.end.scope is None:
            assert isinstance(error, RemoteError)
        elif end in ("RESET", "lost"):
            assert isinstance(error, trio.BrokenResourceError)
            assert error.__cause__ is self.end.receiving.end
        else:
            assert isinstance(error, trio.WouldBlock)

    def _check_said(self) -> None:
        """Each end at most once, in an order in which they may come, and nothing once the peer needs nothing more."""
        said = self.said()
        assert said in ([], [wire.EOF], [wire.CLOSE], [wire.RESET], [wire.EOF, wire.CLOSE], [wire.EOF, wire.RESET])
        first = self.first_of("CLOSE", "RESET", "lost", "closed here", "close", "reset")
        assert (said[-1:] in ([wire.CLOSE], [wire.RESET])) is (first in ("close", "reset"))

    def _cancelled(self) -> bool:
        """An end that is not clean cancels, unless one of the two had closed cleanly before."""
        first = self.first_of("CLOSE", "RESET", "lost", "closed here", "close")
        if first == "close" and self.first_of("close", "reset") == "reset":
            first = self.first_of("CLOSE", "RESET", "lost", "closed here")
        return first in ("RESET", "lost", "closed here")


@pytest.mark.parametrize("serves", [False, True], ids=["caller", "service"])
async def test_every_order_of_ends(serves: bool) -> None:
    """Whatever ends a channel, and then does so again in another way."""
    stories = 0
    for events in product((*OURS, *THEIRS, *CONNECTION), repeat=4):
        story = Story(serves=serves)
        for event in events:
            if not story.happen(event):
                break
            story.check()
            stories += 1
    assert stories > 1000


def test_nothing_leads_back() -> None:
    """The tables know every state, and each half only ever goes on; at its end nothing follows."""
    tables: list[tuple[Any, Any]] = [(SendState, send_half._NEXT), (ReceiveState, receive_half._NEXT)]
    for states, table in tables:
        assert set(table) == set(states)
        reached: dict[Any, set[Any]] = {}

        def reach(state: Any, table: Any = table, reached: dict[Any, set[Any]] = reached) -> set[Any]:
            if state not in reached:
                reached[state] = {each for after in table[state] for each in (after, *reach(after))}
            return reached[state]

        assert all(state not in reach(state) for state in states)
        assert any(not table[state] for state in states)


def test_what_applications_see_of_a_channel() -> None:
    """What the connection does with it is none of theirs."""
    own = {name for name in dir(ServiceChannel) if not name.startswith("_")}
    usual = {"aclose", "receive", "send"}
    assert own == usual | {
        "metadata",
        "peer",
        "receive_nowait",
        "reset",
        "send_eof",
        "send_many",
        "send_nowait",
        "service",
    }
