"""One exchange between two nodes, from dial to close, and what has to hold of it whatever the network does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from benchmarks.stress.log import watching_log
from trionode import (
    AcceptorOptions,
    ConnectionDown,
    HandshakeError,
    HandshakeRefused,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    RemoteError,
    RemoteProtocolError,
    Route,
    open_node,
)
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionode import CertAuthManager, Connection, EventStream, Node, NodeEvent, ServiceChannel, Transport
    from trionode.testing import MemoryConnection, Script

T = TypeVar("T")

ALPHA, BETA = "alpha@localhost", "beta@localhost"
PORT: Final = 15000

#: What alpha sends on its channel, all of it before it reads what is sent back. The last is larger than the window.
WINDOW: Final = 4096
MESSAGES: Final = (b"", *(b"message %d" % number for number in range(8)), bytes(range(256)) * 18)

CONNECT_TIMEOUT: Final = 10.0
HANDSHAKE_TIMEOUT: Final = 10.0
HEARTBEAT: Final = 15.0
#: How long each step may take: as documented, and a second or two for closing. Seconds.
BOUNDS: Final = {
    "connect": CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT + 2,
    "channel": 2 * HEARTBEAT + 3,
    "call": 2 * HEARTBEAT + 3,
    "close": 4.0,
    "again": CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT + 2,
    "leave": 4.0,
}
#: After this long everything that a fault left behind must be gone. Seconds.
QUIET: Final = 2 * HEARTBEAT + HANDSHAKE_TIMEOUT + 10


@dataclass(kw_only=True)
class Outcome:
    """What came out of one exchange.

    Attributes:
        outcome: what alpha saw: `success`, or where it failed and with what; `unfinished` where it saw neither.
        took: seconds on the clock that jumps.
        sent: bytes on the first connection, by direction.
        done: how many of these were sent when alpha had everything that it wanted; empty if it never had.
        problems: what was not as it should be.
    """

    outcome: str = "unfinished"
    took: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Exchange:
    """One exchange, with a script for its first connection."""

    def __init__(
        self, managers: dict[str, CertAuthManager], script: Script | None, *, reset_discards: bool = False
    ) -> None:
        self.managers = managers
        self.result = Outcome()
        self.network = MemoryNetwork(reset_discards=reset_discards)
        self.network.script = self._script
        self.transport: Transport = self.network
        self.scripted: MemoryConnection | None = None
        self.step = "start"
        self.got: list[bytes] = []
        self.replies: list[bytes] = []
        self.runs: Counter[str] = Counter()
        self._first = script

    def _script(self, connection: MemoryConnection) -> Script | None:
        if self.scripted is not None:
            return None
        self.scripted = connection
        return self._first

    def problem(self, text: str) -> None:
        """Note what is not as it should be."""
        self.result.problems.append(text)

    # The services

    async def ledger(self, channel: ServiceChannel) -> None:
        """Send back what comes, and keep it."""
        self.runs["ledger"] += 1
        try:
            async for message in channel:
                self.got.append(message)
                await channel.send(message)
        except trio.BrokenResourceError as exc:
            self._check_cause("the service", exc)
        else:
            if len(self.got) < len(MESSAGES):
                self.problem(f"the service was told that {len(self.got)} messages are all: a truncation")

    async def once(self, channel: ServiceChannel) -> None:
        """Count the calls."""
        request = await channel.receive()
        self.runs[request.decode()] += 1
        await channel.send(b"done: " + request)

    # The exchange

    async def run(self) -> None:
        """All of it."""
        tasks = trio.lowlevel.current_statistics().tasks_living
        network = NetworkOptions(
            acceptors=[AcceptorOptions(host="localhost", port=PORT)],
            routes={BETA: Route(port=PORT)},
            transport=self.network,
            channel_window=WINDOW,
            connect_timeout=CONNECT_TIMEOUT,
            handshake_timeout=HANDSHAKE_TIMEOUT,
            heartbeat_interval=HEARTBEAT,
            heartbeat_tolerance=HEARTBEAT,
        )
        hidden = NetworkOptions(
            **{**vars(network), "acceptors": (), "mode": NetworkMode.HIDDEN, "transport": self.transport},
        )
        beta_options = NodeOptions(
            cert_manager=self.managers[BETA], network=network, services={"ledger": self.ledger, "once": self.once}
        )
        alpha_options = NodeOptions(cert_manager=self.managers[ALPHA], network=hidden)
        began = trio.current_time()
        with watching_log() as log:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                async with open_node(BETA, beta_options) as beta, beta.events() as at_beta:
                    async with open_node(ALPHA, alpha_options) as alpha, alpha.events() as at_alpha:
                        await self._live(alpha)
                        self._count()
                        self._check_messages()
                        await self._live_on(alpha)
                        await trio.sleep(QUIET)
                        self._check_quiet(alpha, beta)
                        for events in at_alpha, at_beta:
                            await self._check_events(events)
                        leaving = trio.current_time()
                    self._check_time("leave", leaving)
                    leaving = trio.current_time()
                self._check_time("leave", leaving)
                nursery.cancel_scope.cancel()
        self.result.took = trio.current_time() - began
        for node in alpha, beta:
            self._check_left(node)
        self.result.problems += log.errors
        if trio.lowlevel.current_statistics().tasks_living != tasks:
            self.problem("a task is left over")
        if self.network.open_streams or self.network.listening:
            self.problem(f"left open: {self.network.open_streams} {self.network.listening}")
        for manager in self.managers.values():
            await self._check_manager(manager)

    async def _watch(self) -> None:
        """A task beside the others, not a cancel scope around them, whose deadline would hold for services, too."""
        await trio.sleep(20 * QUIET)
        msg = f"it hangs in the step {self.step!r}"
        raise AssertionError(msg)

    async def _live(self, alpha: Node) -> None:
        try:
            connection = await self._timed("connect", partial(alpha.connect, BETA))
        except HandshakeError as exc:
            self.result.outcome = f"connect: {type(exc).__name__}, stage {exc.stage}, {exc.reason}"
            if type(exc) is HandshakeError and exc.__cause__ is None:
                self.problem(f"a bare HandshakeError without a cause: {exc}")
            return
        try:
            await self._timed("channel", partial(self._talk, connection))
            await self._timed("call", partial(self._call, connection))
        except trio.BrokenResourceError as exc:
            self.result.outcome = f"{self.step}: BrokenResourceError"
            self._check_cause("alpha", exc)
        except RemoteError as exc:
            self.result.outcome = f"{self.step}: RemoteError {exc.code}"
        else:
            self.result.outcome = "success"
            self.result.done = self._counters()
        finally:
            with trio.CancelScope(shield=True):
                await self._timed("close", connection.aclose)

    async def _talk(self, connection: Connection) -> None:
        async with connection.open_channel("ledger") as channel:
            for message in MESSAGES:
                await channel.send(message)
            await channel.send_eof()
            for _ in MESSAGES:
                self.replies.append(await channel.receive())
            async for message in channel:
                self.problem(f"a message too many: {message[:50]!r}")

    async def _call(self, connection: Connection) -> None:
        reply = await connection.call("once", b"call")
        if reply != b"done: call":
            self.problem(f"the call was answered by {reply!r}")

    async def _live_on(self, alpha: Node) -> None:
        """The fault is over: a new connection works."""
        try:
            reply = await self._timed("again", partial(alpha.call, BETA, "once", b"again"))
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is a problem
            self.problem(f"no new connection afterwards: {exc!r}")
        else:
            if reply != b"done: again":
                self.problem(f"the new connection answered {reply!r}")

    async def _timed(self, step: str, act: Callable[[], Awaitable[T]]) -> T:
        self.step = step
        began = trio.current_time()
        try:
            return await act()
        finally:
            self._check_time(step, began)

    # What has to hold

    def _counters(self) -> dict[str, int]:
        assert self.scripted is not None
        return {"there": self.scripted.sent_there, "back": self.scripted.sent_back}

    def _count(self) -> None:
        self.result.sent = self._counters()

    def _check_time(self, step: str, began: float) -> None:
        took = trio.current_time() - began
        if took > BOUNDS[step]:
            self.problem(f"the step {step!r} took {took:g} s, more than {BOUNDS[step]:g}")

    def _check_cause(self, who: str, exc: trio.BrokenResourceError) -> None:
        if exc.__cause__ is None:
            self.problem(f"{who} got a BrokenResourceError without a cause: {exc}")

    def _check_messages(self) -> None:
        for who, what in ("the service", self.got), ("alpha", self.replies):
            if tuple(what) != MESSAGES[: len(what)]:
                self.problem(f"{who} received something else than was sent: {[each[:20] for each in what]}")
        if len(self.replies) > len(self.got):
            self.problem("more replies than messages")
        if self.result.outcome == "success" and len(self.replies) < len(MESSAGES):
            self.problem(f"success with {len(self.replies)} replies")

    def _check_quiet(self, alpha: Node, beta: Node) -> None:
        """Long after: there is the new connection, and nothing else."""
        for node in alpha, beta:
            statistics = node.statistics()
            handshaking = sum(acceptor.handshaking for acceptor in statistics.acceptors)
            found = (statistics.connections, len(node.connections), statistics.channels, statistics.services)
            if found != (1, 1, 0, 0) or handshaking:
                self.problem(f"{node.name} still has something from before: {statistics}, {dict(node.connections)}")
        if len(self.network.open_streams) != 2:
            self.problem(f"streams are left open: {self.network.open_streams}")
        twice = [name for name, times in self.runs.items() if times > 1]
        if twice:
            self.problem(f"ran twice: {twice}")

    async def _check_events(self, events: EventStream) -> None:
        with trio.move_on_after(0.001):
            async for event in events:
                error: object = event.error if isinstance(event, HandshakeRefused | ConnectionDown) else None
                lost = (trio.BrokenResourceError, RemoteProtocolError)
                if error is not None and not isinstance(error, HandshakeError if _refused(event) else lost):
                    self.problem(f"an undocumented error in {event!r}")

    def _check_left(self, node: Node) -> None:
        statistics = node.statistics()
        if statistics.connections or node.connections or node.unverified_connections:
            self.problem(f"{node.name} is closed and still has {statistics}")

    async def _check_manager(self, manager: CertAuthManager) -> None:
        with trio.fail_after(1):
            contexts = await manager.contexts.receive()
        if contexts.generation != manager.generation:
            self.problem(f"{manager!r} publishes generation {contexts.generation}")
        manager.set_client_auth(manager.client_auth)  # raises while it is in use


def _refused(event: NodeEvent) -> bool:
    return isinstance(event, HandshakeRefused)
