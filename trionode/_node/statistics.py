"""What a node has counted: handshakes, hand-overs, ends of connections, bytes.

Theory. One set of counters per node, always on. A number goes up in the step in which the thing happens, in the node's
own thread, so there is neither lock nor task, and a snapshot taken without a checkpoint is consistent. Nothing is
counted per message: bytes and channels are each connection's own to count. They are added up when a snapshot is taken,
and are kept here once the connection has ended, so that the sums never go down.

A handshake is timed from where it takes its contexts (after the client's first byte, or after the TCP connect) to its
verdict; so it takes them from a channel that it gets from here. What comes before that is, for a dial, its time to
connect; for an acceptor it is the client's time, which is not measured.

Every key is a member of an enumeration or a word of this package, never a peer's text: no peer can add keys.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio

from trionode._errors import (
    CertificateError,
    HandshakeError,
    HandshakeReason,
    HandshakeTimeoutError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Stage,
    UnverifiedReason,
)

from .events import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from trionode._connection.end import EndReason
    from trionode._connection.hand_over import RenewalCause
    from trionode._connection.owner import ConnectionStatistics
    from trionode._handshake.acceptor import AcceptorStatistics
    from trionode._managers.manager import CertManager
    from trionode._managers.statistics import ManagerStatistics

__all__ = ["HandshakeCount", "HandshakeOutcome", "HandshakeTimes", "ManagerUse", "NodeStatistics", "TimeHistogram"]


class HandshakeOutcome(StrEnum):
    """How a handshake went.

    `ESTABLISHED`: there is a link, for a new connection or for a hand-over. `DUPLICATE`: a live connection made it
    superfluous. `REFUSED`: we refused the peer. `REJECTED`: the peer refused us. `TIMEOUT`: a deadline passed.
    `BROKEN`: no connection, or the peer broke off or spoke something else. `ABANDONED`: no longer needed here
    (cancelled, or another connection came in). `SHED`: there were too many at once (`max_handshakes`). `FAILED`: our
    own fault, such as CAs of the system that are needed and missing.
    """

    ESTABLISHED = "established"
    DUPLICATE = "duplicate"
    REFUSED = "refused"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    BROKEN = "broken"
    ABANDONED = "abandoned"
    SHED = "shed"
    FAILED = "failed"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TimeHistogram:
    """How often something took how long.

    Attributes:
        bounds: of the buckets, upper and inclusive, seconds; one more bucket takes what is longer.
        counts: in each bucket, not cumulated; one more than there are bounds.
        seconds: all times together.
    """

    #: A handshake on a fast network takes a few milliseconds, and a deadline is 10 s by default.
    bounds: ClassVar[tuple[float, ...]] = (
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    )  # fmt: skip

    counts: tuple[int, ...]
    seconds: float

    @property
    def count(self) -> int:
        """How often in all."""
        return sum(self.counts)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandshakeCount:
    """How many handshakes went one way so far.

    Attributes:
        side: which side we were.
        outcome: how they went.
        reason: why: an `UnverifiedReason` where we refused, a `RejectionCode` where the peer did, the `Stage` of a
            timeout, a `HandshakeReason` for what broke (`tls` for what only OpenSSL has
            words for); empty where there is nothing to say.
        count: how many.
    """

    side: Side
    outcome: HandshakeOutcome
    reason: str
    count: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HandshakeTimes:
    """How long handshakes took from taking their contexts (after the first byte, or the TCP connect) to the verdict.

    Attributes:
        side: which side we were.
        outcome: how they went.
        times: those that came so far that they took contexts.
    """

    side: Side
    outcome: HandshakeOutcome
    times: TimeHistogram


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerUse:
    """A manager that a node or a server uses, and the connections or streams by it.

    Attributes:
        label: of a node, `own` for the manager in `NodeOptions`; others have numbers, in the order in which they were
            first used. Of a server, the server names that it is for.
        manager: its own snapshot.
        connections: how many of the node's connections, or the server's streams, there are of each of its generations
            that has any.
        superseded: of these, those of older generations than what it publishes.
    """

    label: str
    manager: ManagerStatistics
    connections: Mapping[int, int]
    superseded: int


def use_of(manager: CertManager, label: str, generations: Iterable[int]) -> ManagerUse:
    """A snapshot of a manager, and of the connections by it.

    Args:
        manager: which.
        label: what it is called where it is used.
        generations: one for each connection.
    """
    statistics, connections = manager.statistics(), Counter(generations)
    older = sum(count for generation, count in connections.items() if generation < statistics.generation)
    return ManagerUse(label=label, manager=statistics, connections=dict(connections), superseded=older)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatistics:
    """A snapshot of a node; "so far" is since it was opened.

    Attributes:
        open: whether it takes and makes connections; not before its block, nor once it drains or is left.
        connections: open now, verified or not.
        channels: open on them.
        services: service tasks that run.
        acceptors: one entry for each.
        managers: one entry for each that it uses.
        channels_opened: so far, by either side.
        bytes_sent: so far, on all connections, before encryption.
        bytes_received: so far, on all connections, after decryption.
        pending_handshakes: under way, by side, those of clients that have not said a word included.
        handshakes: those that are over.
        handshake_times: how long they took.
        connect_times: how long dials took to resolve and to connect, where they did.
        hand_overs: connections that moved to a new link so far, by cause: `asked` where it was the peer that wanted it.
        hand_overs_failed: hand-overs that failed before their commit, by cause.
        ends: connections that have ended so far, by reason.
        registered: whether other nodes can find it by its resolver; None where that is no registrar.
        members: nodes that its resolver names.
        members_age: how long ago the resolver last told of changes, seconds; 0 while it does, None where it cannot.
        resolver_troubles: what the resolver did wrong so far: see `ResolverTrouble`.
    """

    open: bool
    connections: int
    channels: int
    services: int
    acceptors: tuple[AcceptorStatistics, ...]
    managers: tuple[ManagerUse, ...]
    channels_opened: int
    bytes_sent: int
    bytes_received: int
    pending_handshakes: Mapping[Side, int]
    handshakes: tuple[HandshakeCount, ...]
    handshake_times: tuple[HandshakeTimes, ...]
    connect_times: TimeHistogram
    hand_overs: Mapping[RenewalCause, int]
    hand_overs_failed: Mapping[RenewalCause, int]
    ends: Mapping[EndReason, int]
    registered: bool | None
    members: int
    members_age: float | None
    resolver_troubles: int


@final
class _Histogram:
    """A histogram that is being filled."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(TimeHistogram.bounds) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(TimeHistogram.bounds, seconds)] += 1
        self._seconds += seconds

    def snapshot(self) -> TimeHistogram:
        return TimeHistogram(counts=tuple(self._counts), seconds=self._seconds)


@final
class Counters:
    """One node's numbers.

    Attributes:
        pending: handshakes under way, by side.
        hand_overs: settled, by cause.
        hand_overs_failed: before their commit, by cause.
        ends: connections that have ended, by reason.
        channels_opened: on connections that are gone, by either side.
        bytes_sent: on connections that are gone.
        bytes_received: ditto.
        resolver_troubles: so far.
    """

    def __init__(self) -> None:
        self.pending = dict.fromkeys(Side, 0)
        self.hand_overs: Counter[RenewalCause] = Counter()
        self.hand_overs_failed: Counter[RenewalCause] = Counter()
        self.ends: Counter[EndReason] = Counter()
        self.channels_opened = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.resolver_troubles = 0
        self._handshakes: Counter[tuple[Side, HandshakeOutcome, str]] = Counter()
        self._times: dict[tuple[Side, HandshakeOutcome], _Histogram] = {}
        self._connecting = _Histogram()

    @contextmanager
    def handshake(self, side: Side, *, abandoned: type[Exception] | tuple[()] = ()) -> Iterator[Callable[[], None]]:
        """Count and time the one handshake that is made inside the `with` block.

        Args:
            side: which side we are.
            abandoned: what is raised when it is no longer needed.

        Yields:
            What is to be called when the handshake has taken its contexts: it is timed from there on.
        """
        began, taken = trio.current_time(), None

        def on_taken() -> None:
            nonlocal taken
            taken = trio.current_time()

        outcome, reason = HandshakeOutcome.ESTABLISHED, ""
        self.pending[side] += 1
        try:
            yield on_taken
        except BaseException as exc:
            outcome, reason = (HandshakeOutcome.ABANDONED, "") if isinstance(exc, abandoned) else _outcome_of(exc)
            raise
        finally:
            self.pending[side] -= 1
            self._handshakes[side, outcome, reason] += 1
            if taken is not None:
                if side is Side.DIAL:
                    self._connecting.add(taken - began)
                times = self._times.get((side, outcome))
                if times is None:
                    times = self._times[side, outcome] = _Histogram()
                times.add(trio.current_time() - taken)

    def add_ended(self, connection: ConnectionStatistics) -> None:
        """Keep the numbers of a connection that is gone."""
        self.channels_opened += connection.channels_opened
        self.bytes_sent += connection.bytes_sent
        self.bytes_received += connection.bytes_received

    def handshakes(self) -> tuple[HandshakeCount, ...]:
        """Those that are over."""
        return tuple(
            HandshakeCount(side=side, outcome=outcome, reason=reason, count=count)
            for (side, outcome, reason), count in self._handshakes.items()
        )

    def handshake_times(self) -> tuple[HandshakeTimes, ...]:
        """How long they took."""
        return tuple(
            HandshakeTimes(side=side, outcome=outcome, times=times.snapshot())
            for (side, outcome), times in self._times.items()
        )

    def connect_times(self) -> TimeHistogram:
        """How long dials took to resolve and to connect, where they did."""
        return self._connecting.snapshot()


#: Reasons that are counted as themselves; what OpenSSL has words for beyond these is counted as `tls`.
_REASONS: Final = frozenset(HandshakeReason)


def _outcome_of(exc: BaseException) -> tuple[HandshakeOutcome, str]:
    """Outcome and reason of a handshake that ended by an exception."""
    match exc:
        case PeerUnverifiedError(reason=UnverifiedReason.DUPLICATE) | PeerRejectedError(code=RejectionCode.DUPLICATE):
            return HandshakeOutcome.DUPLICATE, ""
        case PeerUnverifiedError():
            return HandshakeOutcome.REFUSED, exc.reason
        case PeerRejectedError():
            return HandshakeOutcome.REJECTED, RejectionCode.of(exc.code)
        case HandshakeTimeoutError():
            return HandshakeOutcome.TIMEOUT, exc.stage
        case HandshakeError(reason=HandshakeReason.SHED):
            return HandshakeOutcome.SHED, ""
        case HandshakeError():
            other = "tls" if exc.stage is Stage.TLS else "other"
            return HandshakeOutcome.BROKEN, exc.reason if exc.reason in _REASONS else other
        case CertificateError():
            return HandshakeOutcome.FAILED, exc.reason
        case Exception():
            return HandshakeOutcome.FAILED, "unexpected"
        case _:
            return HandshakeOutcome.ABANDONED, ""
