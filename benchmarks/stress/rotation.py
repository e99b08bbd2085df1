"""Two processes that rotate their certificates all the time, and talk all the time: is anything lost, or stale?"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    ConnectionDown,
    HandedOver,
    HandOverFailed,
    HandshakeRefused,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Renew,
    Route,
    Side,
    open_node,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import (
        Connection,
        EventStream,
        Node,
        ServiceChannel,
    )

EXPLANATION: Final = """\
Opens a node in this process and one in a second process, over loopback, with mutual TLS. Both publish a new certificate
every 100 ms and hand their live connections over to it (LiveConnections.on_rotation). Meanwhile

  channels  carry numbered messages both ways, of 0 bytes to 300 KiB, one of them as fast as it can; each message has to
            be the next one, and its content has to be right
  calls     go both ways, one after the other
  probes    dial a connection of their own every 50 ms; each has to succeed, and has to be on a generation, on both
            sides, that is no older than what had been published when the dial began

In the end both sides have to be on the last generation, and what was sent has to be what was received. The exit status
is 0 if so; 1 if a message was lost, doubled, reordered or wrong, a connect() or a hand-over failed, a connection ended,
or a generation was stale.

What is reported:
  messages     received in both directions, and their bytes; all of them accounted for
  calls        in both directions, and how long those from here took: median and 99th percentile, milliseconds
  rotations    updates on both sides
  hand-overs   of the one connection, as both sides saw them settle
  lag          generations that it was behind when a hand-over had settled, here: median and worst. What was published
               after the hand-over had begun, or waits for its turn, is not stale
  connects     probes that succeeded
"""

EXAMPLES: Final = """\
examples:
  python benchmarks/stress/rotation.py                 a minute
  python benchmarks/stress/rotation.py --quick         3 seconds: what the test suite runs
  python benchmarks/stress/rotation.py --seconds 600 --channels 200 --json
"""

ALPHA, BETA, PROBE = "alpha@localhost", "beta@localhost", "probe@localhost"

ROTATE_EVERY: Final = 0.1
PROBE_EVERY: Final = 0.05
#: All channels but the first rest this long between messages. Seconds.
PAUSE: Final = 0.005
#: How long anything may take that ends the run. Seconds.
PATIENCE: Final = 30

#: Which sizes follow each other on a channel, over and over; each channel begins somewhere else.
SIZES: Final = (0, 1, 100, 0, 1000, 16, 70_000, 3, 20_000, 500, 0, 300 * 1024, 64, 4096, 2, 0, 150, 65_536, 9)
#: Ends a direction, with the number of messages before it; no other message has this length.
END: Final = b"end"


def numbered(channel: int, number: int) -> bytes:
    """The message with this number; the same in both processes."""
    size = SIZES[(number + channel) % len(SIZES)]
    return (b"%d/%d;" % (channel, number) * (size // 4 + 1))[:size]


@dataclass
class Tally:
    """What one process counts."""

    messages: int = 0
    bytes: int = 0
    sent: int = 0
    calls: int = 0
    rotations: int = 0
    hand_overs: int = 0
    lags: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out, as it is reported."""

    scenario: str
    seconds: float
    channels: int
    messages: int
    bytes: int
    calls: int
    call_ms_median: float
    call_ms_p99: float
    rotations: list[int]
    hand_overs: list[int]
    lag_median: float
    lag_worst: int
    connects: int
    failed_connects: int
    stale: int
    ok: bool
    problems: list[str]
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """What it ran on: numbers are comparable on one machine only, and these are what changes there."""
    packages = ["trionode", "trio", "pyOpenSSL", "cryptography"]
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def progress(text: str) -> None:
    """Say how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)


# What both processes do ---------------------------------------------------------------------------------------------


async def send_numbered(channel: ServiceChannel, number: int, stop: trio.Event, tally: Tally) -> None:
    """Send numbered messages until told to stop, then how many that were."""
    count = 0
    while not stop.is_set():
        await channel.send(numbered(number, count))
        count += 1
        if number:
            await trio.sleep(PAUSE)
    await channel.send(END + count.to_bytes(8, "big"))
    await channel.send_eof()
    tally.sent += count


async def receive_numbered(channel: ServiceChannel, number: int, tally: Tally) -> None:
    """Receive numbered messages to their end; each has to be the next."""
    count = 0
    async for message in channel:
        if message.startswith(END) and len(message) == len(END) + 8:
            announced = int.from_bytes(message[len(END) :], "big")
            if announced != count:
                tally.problems.append(f"channel {number}: {announced} messages were sent, {count} came")
            return
        if message != numbered(number, count):
            shown = f"{len(message)} bytes, {message[:20]!r}"
            tally.problems.append(f"channel {number}: message {count} is not what came ({shown})")
            raise AssertionError(tally.problems[-1])
        count += 1
        tally.messages += 1
        tally.bytes += len(message)
    tally.problems.append(f"channel {number}: ended without its last message")


async def call_forever(node: Node, peer: str, tally: Tally, took: list[float]) -> None:
    """Call the peer again and again; each reply has to be the one to its request."""
    while True:
        request = b"%s %d" % (str(node.name).encode(), tally.calls)
        began = time.perf_counter()
        if await node.call(peer, "reverse", request) != request[::-1]:
            tally.problems.append(f"a call to {peer} got the reply to another")
        took.append(time.perf_counter() - began)
        tally.calls += 1
        await trio.sleep(PAUSE)


async def reverse(channel: ServiceChannel) -> None:
    """Send back what comes, reversed."""
    await channel.send((await channel.receive())[::-1])


async def rotate(manager: CertAuthManager, ca: CertificateAuthority, tally: Tally, *names: str) -> None:
    """Publish a new certificate at a steady pace."""
    due = trio.current_time()
    while True:
        due = max(due + ROTATE_EVERY, trio.current_time())
        await trio.sleep_until(due)
        manager.update(ca.issue(*names))
        tally.rotations += 1


async def watch(node: Node, events: EventStream, manager: CertAuthManager, tally: Tally) -> None:
    """Count hand-overs; whatever fails is a problem."""
    async for event in events:
        if isinstance(event, HandedOver):
            tally.hand_overs += 1
            tally.lags.append(manager.generation - event.connection.generation)
        elif isinstance(event, HandOverFailed) or (isinstance(event, HandshakeRefused) and event.side is Side.DIAL):
            # What an acceptor refuses fails on the dialling side, too, and is counted there. It may have to refuse to
            # hand over a probe's connection, which it asks for as for any other, and which is closed just then.
            tally.problems.append(f"{node.name}: {type(event).__name__}: {event.error}")
        elif isinstance(event, ConnectionDown) and str(event.peer.name) in (ALPHA, BETA):
            tally.problems.append(f"{node.name}: the connection ended: {event.reason}: {event.error}")


def new_manager(ca: CertificateAuthority, *names: str) -> CertAuthManager:
    """Mutual TLS."""
    return CertAuthManager(
        ca.issue(*names), client_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=ca.pool
    )


#: Hand over, and soon: a tenth of a second is all there is before the next generation.
HAND_OVER: Final = LiveConnections(on_rotation=Renew.HAND_OVER, within=0.05)


# The second process -------------------------------------------------------------------------------------------------


async def serve(directory: str) -> None:
    """Be beta, until standard input ends; a line there ends the rotation. Reports on standard output."""
    ca = CertificateAuthority.load(directory)
    manager, tally = new_manager(ca, BETA), Tally()
    took: list[float] = []

    async def both_ways(channel: ServiceChannel) -> None:
        number, stop = int(await channel.receive()), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_numbered, channel, number, stop, tally)
            await receive_numbered(channel, number, tally)
            stop.set()

    async def generation(channel: ServiceChannel) -> None:
        """Ours now, and those of the connection to alpha."""
        await channel.receive()
        there = node.connections.get(NodeName.parse(ALPHA))
        mine, theirs = (0, 0) if there is None else (there.generation, there.peer_generation)
        await channel.send(json.dumps([manager.generation, mine, theirs]).encode())

    services = {"reverse": reverse, "both_ways": both_ways, "generation": generation}
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    options = NodeOptions(cert_manager=manager, network=network, services=services, live_connections=HAND_OVER)
    stdin = trio.lowlevel.FdStream(0)
    async with open_node(BETA, options) as node, node.events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(watch, node, events, manager, tally)
        print(node.acceptors[0].address[1], flush=True)
        await stdin.receive_some()  # the connection is there
        nursery.start_soon(call_forever, node, ALPHA, tally, took)
        async with trio.open_nursery() as rotating:
            rotating.start_soon(rotate, manager, ca, tally, BETA)
            await stdin.receive_some()
            rotating.cancel_scope.cancel()
        while await stdin.receive_some():
            pass
        nursery.cancel_scope.cancel()
    print(json.dumps(asdict(tally)), flush=True)


class SecondProcess:
    """Beta, as seen from here."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._read = b""

    @classmethod
    async def start(cls, directory: str) -> SecondProcess:
        """Start it."""
        command = [sys.executable, __file__, "--serve", directory]
        return cls(await trio.lowlevel.open_process(command, stdin=-1, stdout=-1))

    async def line(self) -> str:
        """The next line that it prints."""
        while b"\n" not in self._read:
            data = await self._stdout.receive_some()
            if not data:
                msg = "the second process ended"
                raise RuntimeError(msg)
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    async def tell(self, text: str) -> None:
        """Say something on its standard input."""
        await self._stdin.send_all(text.encode())

    async def finish(self) -> Tally:
        """Let it end, and take its report."""
        await self._stdin.aclose()
        return Tally(**json.loads(await self.line()))

    async def aclose(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        with trio.CancelScope(shield=True):
            await self._process.wait()


# This process -------------------------------------------------------------------------------------------------------


class Run:
    """One measurement."""

    def __init__(self, channels: int, seconds: float) -> None:
        self.channels = channels
        self.seconds = seconds
        self.tally = Tally()
        self.took: list[float] = []
        self.connects = 0
        self.failed_connects = 0
        self.stale = 0
        self.theirs = Tally()

    def problem(self, text: str) -> None:
        """Note what should not be."""
        self.tally.problems.append(text)

    async def probe(self, node: Node, manager: CertAuthManager, alpha: Node) -> None:
        """Dial now and then, and see which generations the connection is on."""
        while True:
            [theirs, _, _] = json.loads(await alpha.call(BETA, "generation", b""))
            ours = manager.generation
            try:
                connection = await node.connect(BETA)
                await connection.call("reverse", b"probe")
            except Exception as exc:  # noqa: BLE001 -- whatever it is, it is what is looked for
                self.failed_connects += 1
                self.problem(f"a connect() failed: {exc!r}")
            else:
                self.connects += 1
                if connection.generation < ours or connection.peer_generation < theirs:
                    self.stale += 1
                    got = f"{connection.generation}/{connection.peer_generation}"
                    self.problem(f"stale: a connection is on the generations {got}, dialled at {ours}/{theirs}")
                await connection.aclose()
            await trio.sleep(PROBE_EVERY)

    async def talk(self, connection: Connection, number: int, stop: trio.Event) -> None:
        """One channel, both ways, to its end."""
        async with connection.open_channel("both_ways") as channel, trio.open_nursery() as nursery:
            await channel.send(b"%d" % number)
            nursery.start_soon(send_numbered, channel, number, stop, self.tally)
            await receive_numbered(channel, number, self.tally)

    async def tell_progress(self) -> None:
        """Now and then."""
        began = trio.current_time()
        while True:
            await trio.sleep(min(5, self.seconds / 3))
            tally = self.tally
            progress(
                f"rotation: {trio.current_time() - began:.0f} of {self.seconds:g} s, {tally.messages} messages, "
                f"{tally.hand_overs} hand-overs, {self.connects} connects, {len(tally.problems)} problems"
            )

    async def converged(self, connection: Connection) -> None:
        """Nobody rotates any more: the connection has to come to the last generation of both sides."""
        with trio.move_on_after(PATIENCE):
            while True:
                latest, mine, theirs = json.loads(await connection.call("generation", b""))
                if not connection.superseded and mine == latest and theirs == connection.generation:
                    return
                await trio.sleep(0.05)
        self.problem(f"{connection!r} has not come to the last generation")

    async def play(self, second: SecondProcess, ca: CertificateAuthority) -> float:
        """The whole of it; gives how long it took."""
        manager, tally = new_manager(ca, ALPHA, PROBE), self.tally
        route = Route(host="127.0.0.1", port=int(await second.line()))
        network = NetworkOptions(mode=NetworkMode.HIDDEN, routes={BETA: route})
        options = NodeOptions(
            cert_manager=manager, network=network, services={"reverse": reverse}, live_connections=HAND_OVER
        )
        async with open_node(ALPHA, options) as alpha:
            async with alpha.events() as events, trio.open_nursery() as watching:
                watching.start_soon(watch, alpha, events, manager, tally)
                connection = await alpha.connect(BETA)
                await second.tell("go\n")
                began = trio.current_time()
                await self.talk_all(connection, alpha, manager, ca)
                seconds = trio.current_time() - began
                await second.tell("stop rotating\n")
                await self.converged(connection)
                if connection.statistics().hand_overs == 0:
                    self.problem("there was no hand-over")
                watching.cancel_scope.cancel()
            self.theirs = await second.finish()
        return seconds

    async def talk_all(
        self, connection: Connection, alpha: Node, manager: CertAuthManager, ca: CertificateAuthority
    ) -> None:
        """Everything that goes on while certificates rotate, and the end of every channel."""
        stop = trio.Event()
        probes = NodeOptions(cert_manager=manager, network=alpha.options.network)
        async with trio.open_nursery() as talking:
            for number in range(self.channels):
                talking.start_soon(self.talk, connection, number, stop)
            async with open_node(PROBE, probes) as probe, trio.open_nursery() as nursery:
                nursery.start_soon(rotate, manager, ca, self.tally, ALPHA, PROBE)
                nursery.start_soon(call_forever, alpha, BETA, self.tally, self.took)
                nursery.start_soon(self.probe, probe, manager, alpha)
                nursery.start_soon(self.tell_progress)
                await trio.sleep(self.seconds)
                nursery.cancel_scope.cancel()
            stop.set()
            talking.cancel_scope.deadline = trio.current_time() + PATIENCE
        if talking.cancel_scope.cancelled_caught:
            self.problem(f"channels have not ended {PATIENCE} s after their last message was sent")

    def result(self, seconds: float) -> Result:
        """The figures."""
        ours, theirs = self.tally, self.theirs
        for sender, receiver, way in (ours, theirs, "there"), (theirs, ours, "back"):
            if sender.sent != receiver.messages:
                self.problem(f"{sender.sent} messages were sent on the way {way}, {receiver.messages} came")
        if not (self.connects and ours.calls and theirs.calls and ours.messages and theirs.messages):
            self.problem("not everything that was to happen has happened; give it more time")
        problems = [*ours.problems, *(f"beta: {problem}" for problem in theirs.problems)]
        took = sorted(self.took) or [0.0]
        return Result(
            scenario="rotation",
            seconds=round(seconds, 3),
            channels=self.channels,
            messages=ours.messages + theirs.messages,
            bytes=ours.bytes + theirs.bytes,
            calls=ours.calls + theirs.calls,
            call_ms_median=round(statistics.median(took) * 1000, 3),
            call_ms_p99=round(took[len(took) * 99 // 100] * 1000, 3),
            rotations=[ours.rotations, theirs.rotations],
            hand_overs=[ours.hand_overs, theirs.hand_overs],
            lag_median=statistics.median(ours.lags or [0]),
            lag_worst=max(ours.lags, default=0),
            connects=self.connects,
            failed_connects=self.failed_connects,
            stale=self.stale,
            ok=not problems,
            problems=problems,
            versions=versions(),
        )


async def measure(channels: int, seconds: float) -> Result:
    """Play it in two processes."""
    run, ca = Run(channels, seconds), CertificateAuthority.create()
    with tempfile.TemporaryDirectory(prefix="trionode-rotation-") as directory:
        ca.save(directory)
        second = await SecondProcess.start(directory)
        try:
            took = await run.play(second, ca)
        finally:
            await second.aclose()
    return run.result(took)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{EXPLANATION}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; by default 60, with --quick 3")
    parser.add_argument("--channels", type=int, default=24, metavar="N", help="open at once; by default 24")
    parser.add_argument("--quick", action="store_true", help="short, to see that it works at all")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--serve", metavar="DIRECTORY", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = 3 if options.quick else 60
    if not 0 < options.seconds < float("inf"):
        parser.error("a positive number of seconds")
    if not 1 <= options.channels <= 1000:
        parser.error("1 to 1000 channels")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    if options.serve is not None:
        trio.run(serve, options.serve)
        return 0
    result = trio.run(measure, options.channels, options.seconds)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        verdict = "nothing lost, nothing stale" if result.ok else f"{len(result.problems)} PROBLEMS"
        print(f"{result.seconds:.1f} s, {result.channels} channels: {verdict}")
        print(f"  messages    {result.messages:8}  ({result.bytes / 1e6:.1f} MB)")
        print(f"  calls       {result.calls:8}  ({result.call_ms_median} ms median, {result.call_ms_p99} ms p99)")
        print(f"  rotations   {result.rotations[0]:8}  here, {result.rotations[1]} there")
        print(f"  hand-overs  {result.hand_overs[0]:8}  here, {result.hand_overs[1]} there")
        print(f"  lag         {result.lag_median:8g}  generations median, {result.lag_worst} worst")
        print(f"  connects    {result.connects:8}  ({result.failed_connects} failed, {result.stale} stale)")
        print("  " + ", ".join(f"{name} {number}" for name, number in result.versions.items()))
    for problem in result.problems[:20]:
        print(f"rotation: PROBLEM: {problem}", file=sys.stderr)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
