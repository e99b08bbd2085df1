"""One exchange between two nodes, cut at every byte: is every outcome documented, and nothing lost but the link?"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
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
from trionode.pki import CertificateAuthority, KeyType
from trionode.testing import Faults, MemoryNetwork, Script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from trionode import (
        Connection,
        EventStream,
        Listener,
        Node,
        NodeEvent,
        ServiceChannel,
        Transport,
    )
    from trionode.testing import MemoryConnection

EXPLANATION: Final = """\
Two nodes on a network in memory live through one whole exchange: dial, TLS, hello, a channel with small messages and a
large one there and back, a call, the close. Then they do it again, with one fault at one byte of one direction:

  reset_after     both ends see a reset (RST) after so many bytes
  reset_discards  the same, and what had arrived and was not read yet is lost with it, as on some systems
  eof_after       the receiver sees a clean end (FIN) after so many bytes, the sender is not told
  stall_after     nothing arrives after so many bytes, nobody is told: half-open
  corrupt         that byte arrives inverted

Whatever happens has to be success or a documented error, within its deadline (on a clock that jumps over waiting);
messages arrive as a prefix of what was sent, unaltered and once; a new connection works afterwards; and nothing is left
behind, neither while the nodes go on nor after they were closed. What is not so is reported as a problem, with the
options that repeat it. The exit status is 0 without problems, 1 with.
"""

EXAMPLES: Final = """\
examples:
  python benchmarks/stress/faults.py  every 61st byte and both sides of every TLS record: a minute or so
  python benchmarks/stress/faults.py --all             every byte: some 80 000 exchanges, half an hour or so
  python benchmarks/stress/faults.py --fault reset_after --direction there --offset 1234   one exchange, in full
"""

T = TypeVar("T")

ALPHA, BETA = "alpha@localhost", "beta@localhost"
PORT: Final = 15000

#: What alpha sends on its channel, all of it before it reads what is sent back. The last is larger than the window.
WINDOW: Final = 4096
MESSAGES: Final = (b"", *(b"message %d" % number for number in range(8)), bytes(range(256)) * 18)

CONNECT_TIMEOUT: Final = 10.0
HANDSHAKE_TIMEOUT: Final = 10.0
HEARTBEAT: Final = 15.0
#: How long each step may take at most, by the documentation and with a second or two for last words. Seconds.
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

FAULTS: Final = ("reset_after", "reset_discards", "eof_after", "stall_after", "corrupt")
DIRECTIONS: Final = ("there", "back")


@dataclass(kw_only=True)
class Result:
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


class Witness(logging.Handler):
    """Hears what the nodes log that they should not have to."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        self.heard.append(f"logged {record.levelname}: {record.getMessage()} {record.exc_info or ''}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """For the length of a block, hear; and let warnings go, of which there are thousands."""
        logger = logging.getLogger("trionode")
        before = logger.propagate
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.propagate = before
            logger.removeHandler(self)


class Exchange:
    """One exchange, with a script for its first connection."""

    def __init__(
        self, managers: dict[str, CertAuthManager], script: Script | None, *, reset_discards: bool = False
    ) -> None:
        self.managers = managers
        self.result = Result()
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
        witness = Witness()
        began = trio.current_time()
        with witness.listening():
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
        self.result.problems += witness.heard
        if trio.lowlevel.current_statistics().tasks_living != tasks:
            self.problem("a task is left over")
        if self.network.open_streams or self.network.listening:
            self.problem(f"left open: {self.network.open_streams} {self.network.listening}")
        for manager in self.managers.values():
            await self._check_manager(manager)

    async def _watch(self) -> None:
        """A sibling, not a scope: a scope's deadline would travel along and bound the services."""
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


class Tap:
    """A transport that keeps a copy of what its dialler sends and receives on its first connection."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.copies = {"there": bytearray(), "back": bytearray()}
        self._network = network

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> Sequence[Listener]:
        """As the network does."""
        return await self._network.listen(host, port, port_range=port_range, only_local=only_local)

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """As the network does."""
        stream = await self._network.connect(host, port)
        return stream if self.copies["there"] else Tapped(stream, self.copies["there"], self.copies["back"])


class Tapped(trio.abc.HalfCloseableStream):
    """A stream that keeps copies."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, there: bytearray, back: bytearray) -> None:
        self._stream = stream
        self._there = there
        self._back = back

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and keep."""
        self._there += data
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send the end."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, and keep."""
        data = await self._stream.receive_some(max_bytes)
        self._back += data
        return data

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()


def records(data: bytes | bytearray) -> list[int]:
    """Where the TLS records in these bytes begin, and where the last ends (RFC 8446 section 5.1)."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + 5 + int.from_bytes(data[found[-1] + 3 : found[-1] + 5], "big"))
    return found


class World:
    """Certificates, made once; and exchanges, one Trio run each."""

    def __init__(self) -> None:
        ca = CertificateAuthority.create()
        # Ed25519 signatures have one length, so every exchange has the same bytes at the same offsets, in kind.
        self.managers = {
            name: CertAuthManager(
                ca.issue(name, key_type=KeyType.ED25519),
                client_cas=ca.pool,
                client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
                root_cas=ca.pool,
            )
            for name in (ALPHA, BETA)
        }
        tapped = Exchange(self.managers, None)
        tapped.transport = tap = Tap(tapped.network)
        self.reference = self._live(tapped)
        self._records = {direction: records(copy) for direction, copy in tap.copies.items()}
        if self.reference.outcome != "success" or self.reference.problems:
            msg = f"an exchange without a fault went wrong: {self.reference}"
            raise AssertionError(msg)

    @staticmethod
    def _live(exchange: Exchange) -> Result:
        try:
            trio.run(exchange.run, clock=trio.testing.MockClock(autojump_threshold=0))
        except Exception as exc:  # noqa: BLE001 -- whatever comes out, it is a problem
            exchange.problem(f"it came out with {exc!r}")
        return exchange.result

    def with_fault(self, fault: str, direction: str, offset: int) -> Result:
        """Live through one with this fault."""
        discards = fault == "reset_discards"
        given: dict[str, Any] = {fault: offset}
        if discards:
            given = {"reset_after": offset}
        elif fault == "corrupt":
            given = {"corrupt": [offset]}
        script = Script(**{direction: Faults(**given)})
        result = self._live(Exchange(self.managers, script, reset_discards=discards))
        # What alpha needed for its success has arrived at beta, or at alpha; a cut before that must show.
        if result.outcome == "success" and offset < result.done[direction] and fault != "corrupt":
            result.problems.append(f"success, although byte {offset} of {result.done[direction]} never arrived")
        if result.outcome != "success" and offset > result.sent.get(direction, offset):
            result.problems.append(f"{result.outcome}, although nothing went wrong that far")
        return result

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of an undisturbed exchange, by direction."""
        return self.reference.sent

    def edges(self, direction: str) -> list[int]:
        """The bytes where something changes: around the ends of every TLS record, its header and its contents."""
        size = self.sizes[direction]
        found = {start + near for start in self._records[direction] for near in (-1, 0, 1, 4, 5)}
        return sorted(offset for offset in found if 0 <= offset <= size)


def sweep(
    world: World, fault: str, direction: str, offsets: Iterable[int], tell: Callable[[int, Result], object]
) -> Iterator[tuple[int, Result]]:
    """Live through one exchange for each offset; gives those that have problems."""
    for offset in offsets:
        result = world.with_fault(fault, direction, offset)
        tell(offset, result)
        if result.problems:
            yield offset, result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{EXPLANATION}", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", choices=FAULTS, action="append", help="by default each of them")
    parser.add_argument("--direction", choices=DIRECTIONS, action="append", help="by default each of them")
    parser.add_argument("--offset", type=int, action="append", metavar="N", help="these bytes only")
    parser.add_argument("--every", type=int, default=61, metavar="N", help="every Nth byte; by default 61")
    parser.add_argument("--all", action="store_true", help="every byte")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each fault and direction")
    return parser.parse_args(arguments)


class Tally:
    """What came out of one sweep, and how far it is."""

    def __init__(self, fault: str, direction: str, size: int, *, in_full: bool) -> None:
        self.fault = fault
        self.direction = direction
        self.outcomes: Counter[str] = Counter()
        self._size = size
        self._in_full = in_full
        self._began = self._said = time.monotonic()

    def tell(self, offset: int, result: Result) -> None:
        """Count one, and say on standard error how far it is."""
        self.outcomes[result.outcome] += 1
        now = time.monotonic()
        if self._in_full:
            print(f"faults: {self.fault} {self.direction} {offset}: {asdict(result)}", file=sys.stderr)
        elif now - self._said > 5:
            self._said = now
            print(f"faults: {self.fault} {self.direction}: byte {offset} of {self._size}", file=sys.stderr, flush=True)

    def report(self, *, as_json: bool) -> None:
        """Print it."""
        seconds = round(time.monotonic() - self._began, 1)
        if as_json:
            figures = {"outcomes": self.outcomes, "seconds": seconds}
            print(json.dumps({"fault": self.fault, "direction": self.direction, **figures}))
            return
        print(f"{self.fault} {self.direction}: {self.outcomes.total()} exchanges in {seconds} s")
        for outcome, times in self.outcomes.most_common():
            print(f"  {times:6}  {outcome}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    world = World()
    failed = False
    print(f"faults: an exchange has {world.sizes} bytes", file=sys.stderr)
    for fault in options.fault or FAULTS:
        for direction in options.direction or DIRECTIONS:
            size = world.sizes[direction]
            tally = Tally(fault, direction, size, in_full=bool(options.offset))
            step = 1 if options.all else options.every
            offsets = options.offset or sorted({*range(0, size + 1, step), *world.edges(direction)})
            for offset, result in sweep(world, fault, direction, offsets, tally.tell):
                failed = True
                for problem in result.problems:
                    where = f"--fault {fault} --direction {direction} --offset {offset}"
                    print(f"faults: PROBLEM: {where}: {problem}", file=sys.stderr, flush=True)
            tally.report(as_json=options.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
