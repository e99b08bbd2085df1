"""Nodes in processes of their own, for hours if you like, while everything goes wrong: is anything lost in silence?"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.machine import environment
from trionode import Renew, StrandedPeers
from trionode.pki import CertificateAuthority

from . import chart
from .ledger import End, how, judge, read
from .process import HEARTBEAT, TIMEOUT, Setup, command_of
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

EXPLANATION: Final = """\
Runs nodes, each in a process of its own, with mutual TLS over loopback. Every way from one node to another leads
through a forwarder in this process, which can cut and stall it. By chance, from a seed:

  talks       channels with numbered messages both ways, of a few bytes to 300 KiB; calls
  connects    dials, of nodes that are there or not
  rotations   new certificates; now and then another CA: trusted beside the old one, used, and the old one retired
  hand-overs  by hand; and for each node, drawn anew whenever it opens: on rotation connections stay, are closed, or are
              handed over
  reopenings  a node drains, and opens again
  kills       SIGKILL, and a new process after a while. Never of the first node, whose memory is to be watched
  stops       SIGSTOP, and SIGCONT after a while
  partitions  between two nodes: connections are reset and refused, or nothing arrives any more and nobody is told

In the end everything is healed, and everybody talks to everybody while connections are handed over: now nothing may
fail. Then every connection is closed, and the books are balanced. The exit status is 0 if

  - every message that was sent was delivered, or its sender was told that the channel is broken (or was killed itself)
  - none came twice, none out of order, none changed; no call ran twice; no channel ended as if it were complete, and
    was not; nothing hangs
  - nobody was refused for a certificate, and nobody broke the protocol: rotations never cost a handshake
  - idle again, each process has as many descriptors and tasks as at first, and the first one's memory does not grow

and 1 if not. Nothing needs privileges; memory and descriptors are read from /proc.

What is reported:
  messages    sent = delivered + lost, by what their senders were told; doubled, reordered
  talks       and calls, by how they ended for those who began them
  handshakes  by outcome, as the nodes' events tell it, both sides (those of a killed process to within a second)
  memory      anonymous, of the first node's process: at a third of the run, at the end, and the trend between
"""

EXAMPLES: Final = """\
examples:
  python -m benchmarks.stress.soak.command                                 five nodes, five minutes
  python -m benchmarks.stress.soak.command --quick  three nodes, some seconds: what the test suite runs
  python -m benchmarks.stress.soak.command --seconds 86400 --nodes 8 --json --chart soak.svg
  python -m benchmarks.stress.soak.command --seed 12345  the same things at the same times
"""

#: What a round of faults consists of; dealt in random order, then shuffled anew.
DECK: Final = (
    *("rotate",) * 3,
    *("hand over",) * 3,
    *("connect",) * 2,
    "trust",
    "kill",
    "stop",
    "reopen",
    "sever",
    "stall",
)

#: Why connections may not end, whatever happens around them: nobody here breaks a rule or exceeds a limit.
MAY_NOT_END: Final = {"protocol_error", "limit", "worn", "expired"}

#: How long anything may take that ends the run. Seconds.
PATIENCE: Final = 30.0
#: Memory is said to grow where the trend over the last two thirds makes more than this of what there was, and as much
#: more as this, in MiB: an allocator's own coming and going is less.
GROWTH, GROWTH_MIB = 0.1, 8.0
#: A trend over less than this is none. Seconds.
SHORTEST_TREND: Final = 60.0

#: What handshakes may fail with, when processes die and ways are cut. Anything about certificates, names or protocols
#: is none of it. `join` is a hand-over of a connection that ended meanwhile.
MAY_FAIL: Final = {"HandshakeError", "HandshakeTimeoutError"}
MAY_REFUSE: Final = {"shutting_down", "join", "duplicate"}


class GoneError(Exception):
    """A process that was told something is not there any more."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process used at one moment.

    Attributes:
        at: seconds since the beginning.
        node: its index.
        incarnation: how often it had been started anew.
        memory: anonymous memory, MiB.
        descriptors: open files.
    """

    at: float
    node: int
    incarnation: int
    memory: float
    descriptors: int


@dataclass(kw_only=True)
class Result:
    """What came out, as it is reported."""

    scenario: str = "soak"
    seconds: float = 0.0
    nodes: int = 0
    seed: int = 0
    sent: int = 0
    delivered: int = 0
    lost_reported: dict[str, int] = field(default_factory=dict)
    lost_silently: int = 0
    doubled: int = 0
    reordered: int = 0
    corrupt: int = 0
    talks: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    happened: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, dict[str, int]] = field(default_factory=dict)
    memory: dict[str, float | str] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
    ok: bool = False
    problems: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    environment: dict[str, object] = field(default_factory=dict)


class Member:
    """One node's place in the cluster, whichever process fills it just now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"node{index}@localhost"
        self.wires: dict[str, Wire] = {}
        self.incarnation = 0
        self.ledgers: dict[Path, bool] = {}
        #: Held by whoever does something to it that it has to survive before the next.
        self.lock = trio.Lock()
        self.process: trio.Process | None = None
        self._sending = trio.Lock()
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._commands = 0
        self._opened = trio.Event()

    @property
    def opened(self) -> trio.Event:
        """Set when the node listens; another event after each opening."""
        return self._opened

    async def start(self, setup: Setup, nursery: trio.Nursery, listening: list[Wire]) -> None:
        """Start a process, and wait until its node listens."""
        self.ledgers[Path(setup.ledger)] = False
        self._opened = trio.Event()
        opened = self._opened
        self.process = await trio.lowlevel.open_process(
            command_of(setup), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        nursery.start_soon(self._hear, self.process, listening)
        with trio.fail_after(PATIENCE):
            await opened.wait()

    async def _hear(self, process: trio.Process, listening: list[Wire]) -> None:
        assert process.stdout is not None
        buffer = b""
        async for data in process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "open" in said:
                    for wire in listening:
                        wire.target = said["open"]
                    self._opened.set()
                    self._opened = trio.Event()
                elif said["done"] in self._waiting:
                    event, answer = self._waiting.pop(said["done"])
                    answer.append(said["answer"])
                    event.set()
        await process.wait()
        for event, _ in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def tell(self, do: str, **what: Any) -> Any:
        """Have the process do something, and wait until it has; gives its answer.

        Raises:
            GoneError: the process ended before.
        """
        process = self.process
        if process is None or process.returncode is not None:
            raise GoneError
        self._commands += 1
        number, event, answer = self._commands, trio.Event(), list[Any]()
        self._waiting[number] = event, answer
        assert process.stdin is not None
        try:
            async with self._sending:
                await process.stdin.send_all(json.dumps({"do": do, "id": number, **what}).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise GoneError from exc
        await event.wait()
        if not answer:
            raise GoneError
        return answer[0]

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; what was noted stays."""
        assert self.process is not None
        self.ledgers[list(self.ledgers)[-1]] = True
        self.process.kill()
        await self.process.wait()

    async def aclose(self) -> bool:
        """Let the process end; False if it had to be killed."""
        process = self.process
        if process is None:
            return True
        assert process.stdin is not None
        with trio.move_on_after(PATIENCE):
            await process.stdin.aclose()
            await process.wait()
            return process.returncode == 0
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        return False

    def usage(self, at: float) -> Sample | None:
        """What the process uses now; None if there is none."""
        process = self.process
        if process is None or process.returncode is not None:
            return None
        proc = Path(f"/proc/{process.pid}")
        try:
            status = proc.joinpath("status").read_text(encoding="ascii", errors="replace")
            memory = int(status.split("RssAnon:")[1].split()[0]) / 1024
            descriptors = len(os.listdir(proc / "fd"))  # noqa: PTH208 -- only their number is wanted
        except (OSError, IndexError):  # it ended just now
            return None
        return Sample(
            at=round(at, 1),
            node=self.index,
            incarnation=self.incarnation,
            memory=round(memory, 2),
            descriptors=descriptors,
        )


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._chance = random.Random(options.seed)  # noqa: S311 -- seeded randomness is wanted
        self._members = [Member(index) for index in range(options.nodes)]
        self._numbers = 0
        self._well_from = 0
        self._authorities = 0
        self._trusted: list[str] = []
        self._issuer = self._new_authority()
        self._trusted = [self._issuer]
        self._changing_trust = trio.Lock()
        self._parted: set[tuple[int, int]] = set()
        self._began = 0.0
        self._received = 0
        self._tallies: dict[str, Counter[str]] = {}
        self._happened: Counter[str] = Counter()
        self.result = Result(nodes=options.nodes, seed=options.seed)

    def _new_authority(self) -> str:
        name = f"ca{self._authorities}"
        self._authorities += 1
        CertificateAuthority.create(common_name=name).save(self._directory / name)
        return name

    def _problem(self, text: str) -> None:
        if text not in self.result.problems:
            self.result.problems.append(text)

    @property
    def _now(self) -> float:
        return trio.current_time() - self._began

    # The whole of it

    async def run(self) -> None:
        """Begin, go on for the stated time, heal, balance the books."""
        async with trio.open_nursery() as ground:
            self._ground = ground
            try:
                await self._begin()
                await self._go_on()
                await self._settle_everywhere("fall silent")
                await self._be_well()
                await self._come_to_rest()
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as nursery:
                        for member in self._members:
                            nursery.start_soon(self._finish, member)
            ground.cancel_scope.cancel()
        self._balance()

    async def _begin(self) -> None:
        progress(f"soak: seed {self._options.seed}, starting {len(self._members)} nodes")
        for one in self._members:
            for other in self._members:
                if one is not other:
                    one.wires[other.name] = wire = Wire()
                    await self._ground.start(wire.serve)
        async with trio.open_nursery() as nursery:
            for member in self._members:
                nursery.start_soon(self._start, member)
        self._began = trio.current_time()

    async def _start(self, member: Member) -> None:
        setup = Setup(
            name=member.name,
            ledger=str(self._directory / f"{member.index}-{member.incarnation}.ledger"),
            directory=str(self._directory),
            ports={name: wire.port for name, wire in member.wires.items()},
            trusted=self._trusted,
            issuer=self._issuer,
            on_rotation=self._chance.choice(list(Renew)).value,
        )
        await member.start(
            setup, self._ground, [other.wires[member.name] for other in self._members if other is not member]
        )

    async def _go_on(self) -> None:
        """Let things happen; those that take time are over when this returns."""
        async with trio.open_nursery() as watching:
            watching.start_soon(self._sample)
            watching.start_soon(self._tell_progress)
            for member in self._members:
                watching.start_soon(self._collect, member)
            async with trio.open_nursery() as talking:
                async with trio.open_nursery() as happening:
                    with trio.move_on_after(self._options.seconds):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._talk, talking)
                            nursery.start_soon(self._disturb, happening)
                    progress("soak: healing")
                    happening.cancel_scope.deadline = trio.current_time() + 3 * PATIENCE
                if happening.cancel_scope.cancelled_caught:
                    self._problem(f"something that was begun has not come to its end within {3 * PATIENCE:g} s")
                self.result.seconds = round(self._now, 1)
                talking.cancel_scope.cancel()  # who waited for answers; the talks themselves go on
            watching.cancel_scope.cancel()

    async def _finish(self, member: Member) -> None:
        if not await member.aclose():
            self._problem(f"{member.name} ended with {member.process.returncode if member.process else None}")

    async def _be_well(self) -> None:
        """Nothing is wrong any more, and those who had not noticed that something was have done so: all succeeds."""
        progress("soak: everybody talks to everybody, and nothing may fail")
        await trio.sleep(self._options.recovery)
        self._well_from = self._numbers + 1
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for one, other in permutations(self._members, 2):
                    for do in "talk", "call":
                        self._numbers += 1
                        plan = {"number": self._numbers, "peer": other.name, "there": 40, "back": 40, "pause": 0.01}
                        nursery.start_soon(self._have, one, do, plan)
                await trio.sleep(0.1)
                for one, other in combinations(self._members, 2):
                    nursery.start_soon(self._have, one, "hand over", {"peer": other.name})

    async def _come_to_rest(self) -> None:
        """Everybody falls silent first, then everybody closes: no channel breaks for it."""
        progress("soak: closing")
        for do in "fall silent", "rest", "report":
            await self._settle_everywhere(do)

    async def _settle_everywhere(self, do: str) -> None:
        async with trio.open_nursery() as nursery:
            for member in self._members:
                nursery.start_soon(self._settle, member, do)

    async def _settle(self, member: Member, do: str) -> None:
        try:
            with trio.fail_after(2 * PATIENCE):
                answer = await member.tell(do, within=PATIENCE)
        except GoneError:
            self._problem(f"{member.name} crashed")
        except trio.TooSlowError:
            self._problem(f"{member.name} does not answer")
        else:
            if do == "report":
                self._add(member, answer)
            for left in answer if do == "rest" else ():
                self._problem(f"{member.name}, at rest: {left}")

    # What goes on

    async def _talk(self, nursery: trio.Nursery) -> None:
        """Talks and calls, at random moments."""
        while True:
            await trio.sleep(self._chance.expovariate(self._options.rate * len(self._members)))
            one, other = self._chance.sample(self._members, 2)
            self._numbers += 1
            plan: dict[str, Any] = {"number": self._numbers, "peer": other.name}
            if self._chance.random() < 0.5:
                nursery.start_soon(self._have, one, "call", plan)
            else:
                long = self._chance.random() < 0.1
                plan |= {
                    "there": self._chance.randrange(100),
                    "back": self._chance.randrange(100),
                    "pause": self._chance.uniform(0, self._options.longest_pause if long else 0.005),
                }
                nursery.start_soon(self._have, one, "talk", plan)

    async def _have(self, member: Member, do: str, what: dict[str, Any]) -> None:
        with suppress(GoneError):
            await member.tell(do, **what)

    async def _disturb(self, nursery: trio.Nursery) -> None:
        """Faults and changes, dealt from a deck."""
        while True:
            deck = list(DECK)
            self._chance.shuffle(deck)
            for card in deck:
                await trio.sleep(self._chance.expovariate(1 / self._options.pause))
                one, other = self._chance.sample(self._members, 2)
                # Half of what takes time is shorter than heartbeats notice, half is longer.
                length = self._chance.uniform(*self._chance.choice(self._options.lengths))
                match card:
                    case "rotate":
                        nursery.start_soon(self._rotate, one)
                    case "trust":
                        nursery.start_soon(self._change_trust, self._chance.choice(["keep", "close"]))
                    case "hand over" | "connect":
                        nursery.start_soon(self._have, one, card, {"peer": other.name})
                    case "kill":
                        nursery.start_soon(self._kill, self._chance.choice(self._members[1:]), length)
                    case "stop":
                        nursery.start_soon(self._stop, one, length)
                    case "reopen":
                        nursery.start_soon(self._reopen, one, length, self._chance.choice(list(Renew)))
                    case _:
                        nursery.start_soon(self._part, card, one, other, length)

    def _mark(self, what: str) -> None:
        self._happened[what] += 1
        self.result.marks.append((round(self._now, 1), what))

    async def _rotate(self, member: Member) -> None:
        async with member.lock:
            await self._have(member, "rotate", {"issuer": self._issuer})
            self._mark("rotate")

    async def _change_trust(self, stranded: str) -> None:
        """Trust another CA beside the old one, everywhere; use it, everywhere; retire the old one, everywhere.

        Between these, what is under way comes to its end: a handshake finishes on the contexts that it took, so one
        that began before a step must not meet a peer that has made the next. (Connections are none of it: those that
        are stranded go on or are closed, as is drawn.)
        """
        if self._changing_trust.locked():
            return
        async with self._changing_trust:
            old, new = self._issuer, self._new_authority()
            self._trusted = [old, new]
            await self._everywhere("trust", {"trusted": self._trusted, "stranded": StrandedPeers.REFUSE.value})
            await trio.sleep(self._options.settling)
            self._issuer = new
            await self._everywhere("rotate", {"issuer": new})
            await trio.sleep(self._options.settling)
            self._trusted = [new]
            await self._everywhere("trust", {"trusted": self._trusted, "stranded": stranded})
            self._mark("trust")

    async def _everywhere(self, do: str, what: dict[str, Any]) -> None:
        async def there(member: Member) -> None:
            async with member.lock:  # whoever starts anew meanwhile starts with it
                await self._have(member, do, what)

        async with trio.open_nursery() as nursery:
            for member in self._members:
                nursery.start_soon(there, member)

    async def _kill(self, member: Member, length: float) -> None:
        async with member.lock:
            self._mark("kill")
            await member.kill()
            await trio.sleep(length)
            member.incarnation += 1
            await self._start(member)

    async def _stop(self, member: Member, length: float) -> None:
        async with member.lock:
            self._mark("stop")
            member.signal(signal.SIGSTOP)
            try:
                await trio.sleep(length)
            finally:
                member.signal(signal.SIGCONT)

    async def _reopen(self, member: Member, grace: float, renew: Renew) -> None:
        async with member.lock:
            self._mark("reopen")
            opened = member.opened
            await self._have(member, "reopen", {"grace": grace, "on_rotation": renew.value})
            with trio.move_on_after(PATIENCE) as scope:
                await opened.wait()
            if scope.cancelled_caught:
                self._problem(f"{member.name} did not open again")

    async def _part(self, how: str, one: Member, other: Member, length: float) -> None:
        pair = (min(one.index, other.index), max(one.index, other.index))
        if pair in self._parted:
            return
        self._parted.add(pair)
        self._mark(how)
        wires = one.wires[other.name], other.wires[one.name]
        for wire in wires:
            (wire.sever if how == "sever" else wire.stall)()
        try:
            await trio.sleep(length)
        finally:
            for wire in wires:
                wire.heal()
            self._parted.discard(pair)

    # Watching

    async def _collect(self, member: Member) -> None:
        while True:
            await trio.sleep(min(1.0, self._options.seconds / 5))
            with suppress(GoneError):
                self._add(member, await member.tell("report"))

    def _add(self, member: Member, report: dict[str, Any]) -> None:
        self._received += report["received"]
        for kind, tally in report["tallies"].items():
            self._tallies.setdefault(kind, Counter()).update(tally)
        for problem in report["problems"]:
            self._problem(f"{member.name}: {problem}")

    async def _sample(self) -> None:
        received, at = self._received, self._now
        while True:
            await trio.sleep(min(1.0, self._options.seconds / 10))
            now = self._now
            self.result.samples += filter(None, (member.usage(now) for member in self._members))
            self.result.rates.append((round(now, 1), round((self._received - received) / (now - at), 1)))
            received, at = self._received, now

    async def _tell_progress(self) -> None:
        while True:
            await trio.sleep(min(10, self._options.seconds / 3))
            happened = ", ".join(f"{count} {what}" for what, count in sorted(self._happened.items()))
            progress(
                f"soak: {self._now:.0f} of {self._options.seconds:g} s, {self._received} messages, {self._numbers} "
                f"exchanges; {happened}; {len(self.result.problems)} problems"
            )

    # The books

    def _balance(self) -> None:
        result = self.result
        notes = [
            note
            for member in self._members
            for file, killed in member.ledgers.items()
            for note in read(file, killed=killed)
        ]
        account = judge(notes)
        result.sent, result.delivered = account.sent, account.delivered
        result.lost_reported, result.lost_silently = dict(account.lost), account.lost_silently
        result.doubled, result.reordered, result.corrupt = account.doubled, account.reordered, account.corrupt
        result.talks, result.calls = dict(account.talks), dict(account.calls)
        result.happened = dict(sorted(self._happened.items()))
        result.tallies = {kind: dict(tally.most_common()) for kind, tally in self._tallies.items()}
        result.memory, trouble = trend([sample for sample in result.samples if sample.node == 0])
        counts = [sample.descriptors for sample in result.samples] or [0]
        result.descriptors = {"median": int(statistics.median(counts)), "most": max(counts)}
        result.problems += [*account.problems, *unexpected(self._tallies), *trouble]
        result.problems += [
            f"all was well again, and exchange {note.number} ended {how(note)} ({note.role.name.lower()})"
            for note in notes
            if note.number >= self._well_from and note.end is not End.COMPLETE
        ]
        if not (account.talks["complete"] and account.calls["complete"]):
            result.problems.append("nothing was completed; give it more time")
        result.ok = not result.problems
        result.environment = environment()


def unexpected(tallies: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Outcomes of handshakes, and ends of connections, that no fault here is a reason for."""
    for outcome, count in tallies.get("handshakes", {}).items():
        _, kind, *rest = outcome.split(" ", 3)
        if kind != "succeeded" and kind not in MAY_FAIL and rest[-1] not in MAY_REFUSE:
            yield f"{count} handshakes ended with {outcome}"
    for reason, count in tallies.get("ends", {}).items():
        if reason in MAY_NOT_END:
            yield f"{count} connections ended with {reason}"


def trend(samples: Sequence[Sample]) -> tuple[dict[str, float | str], list[str]]:
    """Whether the memory of one process grows, once it is warm: after a third of the time."""
    settled = [sample for sample in samples if sample.at >= samples[-1].at / 3]
    if not settled or (span := settled[-1].at - settled[0].at) < SHORTEST_TREND:
        return {"verdict": f"too short to tell: {SHORTEST_TREND:g} s after the first third are needed"}, []
    slope, _ = statistics.linear_regression([each.at for each in settled], [each.memory for each in settled])
    before, after, grown = settled[0].memory, settled[-1].memory, slope * span
    leaks = grown > GROWTH * before + GROWTH_MIB
    figures: dict[str, float | str] = {
        "before_mib": before,
        "after_mib": after,
        "mib_per_hour": round(slope * 3600, 2),
        "verdict": "grows" if leaks else "does not grow",
    }
    bound = f"{GROWTH:.0%} and {GROWTH_MIB:g} MiB"
    return figures, [f"memory grew by {grown:.1f} MiB in {span:.0f} s, more than {bound}"] if leaks else []


def progress(text: str) -> None:
    """Say how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(result: Result) -> str:
    """For people."""
    verdict = "everything is accounted for" if result.ok else f"{len(result.problems)} PROBLEMS"
    lost = f"{sum(result.lost_reported.values())} lost with a word ({_counted(result.lost_reported)})"
    figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.memory.items())
    lines = {
        "messages": f"{result.sent} sent = {result.delivered} delivered + {lost} + {result.lost_silently} silently",
        "": f"{result.doubled} doubled, {result.reordered} reordered, {result.corrupt} changed",
        "talks": _counted(result.talks),
        "calls": _counted(result.calls),
        "happened": _counted(result.happened),
        "connects": _counted(result.tallies.get("connects", {})),
        "hand-overs": _counted(result.tallies.get("hand_overs", {})),
        "ends": _counted(result.tallies.get("ends", {})),
        "handshakes": _counted(result.tallies.get("handshakes", {}), "\n" + " " * 14),
        "memory": figures,
        "descriptors": f"{_counted(result.descriptors)}; at rest as many as at first, or it is a problem",
    }
    headline = f"{result.seconds:.0f} s, {result.nodes} nodes, seed {result.seed}: {verdict}"
    return "\n".join([headline, *(f"  {title:11} {text}" for title, text in lines.items())])


def _counted(counts: dict[str, int], separator: str = ", ") -> str:
    return separator.join(f"{what} {count}" for what, count in counts.items()) or "none"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{EXPLANATION}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; by default 300, with --quick 2")
    parser.add_argument("--nodes", type=int, metavar="N", help="how many; by default 5, with --quick 3")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random; by default another each time")
    parser.add_argument(
        "--rate", type=float, default=2.0, metavar="N", help="exchanges that each node begins per second; by default 2"
    )
    parser.add_argument("--quick", action="store_true", help="short, with faults in quick succession")
    parser.add_argument("--json", action="store_true", help="one line of JSON, with every sample, instead of the text")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart; its suffix says of which kind")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds if options.seconds is not None else 2.0 if options.quick else 300.0
    options.nodes = options.nodes if options.nodes is not None else 3 if options.quick else 5
    options.seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    # Seconds between two faults, and how long they last: briefly, or longer than heartbeats bear.
    options.pause = 0.15 if options.quick else 1.0
    options.longest_pause = 0.01 if options.quick else 0.1
    # How long a handshake may take; where faults are short it does not take as long as it may.
    options.settling = 1.0 if options.quick else 2 * TIMEOUT + 1
    # How long it may take until a connection that has died unheard is known to be dead, on both sides.
    options.recovery = 0.5 if options.quick else 2 * HEARTBEAT + TIMEOUT
    options.lengths = [(0.0, 0.3)] if options.quick else [(0.0, 1.0), (3.0, 8.0)]
    if options.quick and options.rate == parser.get_default("rate"):
        options.rate = 10.0
    if not 0 < options.seconds < float("inf"):
        parser.error("a positive number of seconds")
    if not 2 <= options.nodes <= 100:
        parser.error("2 to 100 nodes")
    if not 0 < options.rate < float("inf"):
        parser.error("a positive rate")
    if options.chart is not None and (why := chart.unavailable()) is not None:
        parser.error(f"no chart: {why}")
    return options


async def measure(options: argparse.Namespace) -> Result:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="trionode-soak-") as directory:
        soak = Soak(options, Path(directory))
        await soak.run()
    return soak.result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    options = parse(arguments)
    result = trio.run(measure, options)
    print(json.dumps(asdict(result)) if options.json else report(result))
    if options.chart is not None:
        chart.draw(result, options.chart)
    for problem in result.problems[:20]:
        print(f"soak: PROBLEM: {problem}", file=sys.stderr)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
