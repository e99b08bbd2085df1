"""Two processes that rotate their certificates all the time, and talk all the time: is anything lost, or stale?"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.latency import Latency
from benchmarks.stress.nodes import LOOPBACK, manager_of
from benchmarks.stress.program import PROGRESS_EVERY, Program, Progress, Result
from trionode import NetworkMode, NetworkOptions, NodeOptions, Route, open_node
from trionode.pki import CertificateAuthority

from .both import (
    ALPHA,
    BETA,
    HAND_OVER,
    PATIENCE,
    PROBE,
    PROBE_EVERY,
    Tally,
    call_forever,
    receive_numbered,
    reverse,
    rotate,
    send_numbered,
    watch,
)
from .second import second_process

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import CertAuthManager, Connection, Node, ServiceChannel

    from .second import SecondProcess

EXPLANATION: Final = """\
Opens a node in this process and one in a second process, over loopback, with mutual TLS. Both publish a new certificate
every 100 ms and hand their live connections over to it (LiveConnections.on_rotation). Meanwhile

  channels  carry numbered messages both ways, of 0 bytes to 300 KiB, one of them as fast as it can; each message has to
            be the next one, and its content has to be right
  calls     go both ways, one after the other
  probes    dial a connection of their own every 50 ms; each has to succeed, and has to be on a generation, on both
            sides, that is no older than what had been published when the dial began

In the end both sides have to be on the last generation, and what was sent has to be what was received. It is a problem
if a message was lost, doubled, reordered or wrong, a connect() or a hand-over failed, a connection ended, or a
generation was stale.

What is reported:
  messages    received in both directions, and their bytes; all of them accounted for
  calls       in both directions, and how long those from here took
  rotations   updates, here and there
  hand-overs  of the one connection, as both sides saw them settle
  lag         generations that it was behind when a hand-over had settled, here. What was published after the hand-over
              had begun, or waits for its turn, is not stale
  connects    probes that succeeded
"""

#: How often each of what is to happen has to happen; a run goes on until it has.
AT_LEAST: Final = 5


@dataclass(kw_only=True)
class Rotated(Result):
    """What came out; the fields are explained by `--help`."""

    channels: int
    seconds: float = 0.0
    messages: int = 0
    bytes: int = 0
    calls: int = 0
    call: Latency = field(default_factory=Latency)
    rotations: list[int] = field(default_factory=list)
    hand_overs: list[int] = field(default_factory=list)
    lag_median: float = 0.0
    lag_worst: int = 0
    connects: int = 0
    failed_connects: int = 0
    stale: int = 0

    def add(self, ours: Tally, theirs: Tally) -> None:
        """Take over what both processes counted, and compare it."""
        for sender, receiver, way in (ours, theirs, "there"), (theirs, ours, "back"):
            if sender.sent != receiver.messages:
                self.problems.append(f"{sender.sent} messages were sent on the way {way}, {receiver.messages} came")
        self.problems += [*ours.problems, *(f"beta: {problem}" for problem in theirs.problems)]
        self.messages, self.bytes = ours.messages + theirs.messages, ours.bytes + theirs.bytes
        self.calls = ours.calls + theirs.calls
        self.rotations = [ours.rotations, theirs.rotations]
        self.hand_overs = [ours.hand_overs, theirs.hand_overs]
        self.lag_median, self.lag_worst = statistics.median(ours.lags or [0]), max(ours.lags, default=0)

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "messages": f"{self.messages}  ({self.bytes / 1e6:.1f} MB)",
            "calls": f"{self.calls}  ({self.call})",
            "rotations": "{} here, {} there".format(*self.rotations),
            "hand-overs": "{} here, {} there".format(*self.hand_overs),
            "lag": f"{self.lag_median:g} generations median, {self.lag_worst} worst",
            "connects": f"{self.connects}  ({self.failed_connects} failed, {self.stale} stale)",
        }
        verdict = self.verdict("nothing lost, nothing stale")
        headline = f"{self.seconds:.1f} s, {self.channels} channels: {verdict}"
        return "\n".join([headline, *(f"  {title:10}  {text}" for title, text in lines.items())])


class Run:
    """One run, as the first process sees it."""

    def __init__(self, channels: int, seconds: float, progress: Progress) -> None:
        self.result = Rotated(channels=channels)
        self._seconds = seconds
        self._progress = progress
        self._ca = CertificateAuthority.create()
        self._tally = Tally()
        self._took: list[float] = []
        self._answered = 0

    async def play(self) -> Rotated:
        """All of it."""
        with tempfile.TemporaryDirectory(prefix="trionode-rotation-") as directory:
            self._ca.save(directory)
            async with second_process(directory) as second:
                theirs = await self._talk_to(second)
        self.result.call = Latency.of(self._took)
        self.result.add(self._tally, theirs)
        return self.result

    async def _talk_to(self, second: SecondProcess) -> Tally:
        manager, tally = manager_of(self._ca, ALPHA, PROBE), self._tally
        route = Route(host=LOOPBACK, port=int(await second.line()))
        network = NetworkOptions(mode=NetworkMode.HIDDEN, routes={BETA: route})
        options = NodeOptions(
            cert_manager=manager, network=network, services={"reverse": self._reverse}, live_connections=HAND_OVER
        )
        async with open_node(ALPHA, options) as alpha:
            async with alpha.events() as events, trio.open_nursery() as watching:
                watching.start_soon(watch, alpha, events, manager, tally)
                connection = await alpha.connect(BETA)
                await second.tell("connected\n")
                began = trio.current_time()
                await self._talk_all(connection, alpha, manager)
                self.result.seconds = round(trio.current_time() - began, 3)
                await second.tell("stop rotating\n")
                await self._converge(connection)
                watching.cancel_scope.cancel()
            return await second.finish()

    async def _talk_all(self, connection: Connection, alpha: Node, manager: CertAuthManager) -> None:
        """Everything that goes on while certificates rotate, and the end of every channel."""
        stop = trio.Event()
        probes = NodeOptions(cert_manager=manager, network=alpha.options.network)
        every = min(PROGRESS_EVERY, self._seconds / 3)
        async with trio.open_nursery() as talking:
            for number in range(self.result.channels):
                talking.start_soon(self._talk, connection, number, stop)
            async with open_node(PROBE, probes) as probe, trio.open_nursery() as nursery:
                nursery.start_soon(rotate, manager, self._ca, self._tally, ALPHA, PROBE)
                nursery.start_soon(call_forever, alpha, BETA, self._tally, self._took)
                nursery.start_soon(self._probe, probe, manager, alpha)
                nursery.start_soon(lambda: self._progress.keep_saying(self._so_far, every=every))
                await trio.sleep(self._seconds)
                await self._go_on()
                nursery.cancel_scope.cancel()
            stop.set()
            talking.cancel_scope.deadline = trio.current_time() + PATIENCE
        if talking.cancel_scope.cancelled_caught:
            self._problem(f"channels have not ended {PATIENCE} s after their last message was sent")

    async def _go_on(self) -> None:
        """On a busy machine it takes longer until each of what is to happen has happened often enough."""
        tally, result = self._tally, self.result
        counts: dict[str, int] = {}
        with trio.move_on_after(PATIENCE):
            while True:
                counts = {"rotations": tally.rotations, "hand-overs": tally.hand_overs, "connects": result.connects}
                counts |= {"calls": tally.calls, "calls of beta": self._answered, "messages": tally.messages}
                if min(counts.values()) >= AT_LEAST:
                    return
                await trio.sleep(0.05)
        self._problem(f"not everything has happened {AT_LEAST} times: {counts}")

    async def _reverse(self, channel: ServiceChannel) -> None:
        self._answered += 1
        await reverse(channel)

    async def _talk(self, connection: Connection, number: int, stop: trio.Event) -> None:
        """One channel, both ways, to its end."""
        async with connection.open_channel("both_ways") as channel, trio.open_nursery() as nursery:
            await channel.send(b"%d" % number)
            nursery.start_soon(send_numbered, channel, number, stop, self._tally)
            await receive_numbered(channel, number, self._tally)

    async def _probe(self, node: Node, manager: CertAuthManager, alpha: Node) -> None:
        """Dial now and then, and see which generations the connection is on."""
        result = self.result
        while True:
            [theirs, _, _] = json.loads(await alpha.call(BETA, "generation", b""))
            ours = manager.generation
            try:
                connection = await node.connect(BETA)
                await connection.call("reverse", b"probe")
            except Exception as exc:  # noqa: BLE001 -- whatever it is, it is what is looked for
                result.failed_connects += 1
                self._problem(f"a connect() failed: {exc!r}")
            else:
                result.connects += 1
                if connection.generation < ours or connection.peer_generation < theirs:
                    result.stale += 1
                    got = f"{connection.generation}/{connection.peer_generation}"
                    self._problem(f"stale: a connection is on the generations {got}, dialled at {ours}/{theirs}")
                await connection.aclose()
            await trio.sleep(PROBE_EVERY)

    async def _converge(self, connection: Connection) -> None:
        """Neither side rotates any more: the connection has to come to the last generation of both."""
        with trio.move_on_after(PATIENCE):
            while True:
                latest, mine, theirs = json.loads(await connection.call("generation", b""))
                if not connection.superseded and mine == latest and theirs == connection.generation:
                    return
                await trio.sleep(0.05)
        self._problem(f"{connection!r} has not come to the last generation")

    def _problem(self, text: str) -> None:
        self._tally.problems.append(text)

    def _so_far(self) -> str:
        tally = self._tally
        return (
            f"{tally.messages} messages, {tally.hand_overs} hand-overs, {self.result.connects} connects, "
            f"{len(tally.problems)} problems"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long, and how many channels."""
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; by default 60")
    parser.add_argument("--channels", type=int, metavar="N", help="open at once; by default 24")


def complete(options: argparse.Namespace) -> str | None:
    """Some time, and some channels."""
    if options.seconds is None:
        options.seconds = 1.5 if options.quick else 60.0
    if options.channels is None:
        options.channels = 6 if options.quick else 24
    if not 0 < options.seconds < float("inf"):
        return "--seconds is a positive number"
    return None if 1 <= options.channels <= 1000 else "--channels is from 1 to 1000"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """One run."""
    yield trio.run(Run(options.channels, options.seconds, progress).play)


PROGRAM: Final = Program(
    name="rotation",
    asks="Two processes that rotate every 100 ms while they talk: is anything lost, or stale?",
    explanation=EXPLANATION,
    examples=[("", "a minute"), ("--seconds 600 --channels 200 --json", "")],
    quick="6 channels, a second and a half",
    add_options=add_options,
    complete=complete,
    run=run,
)
