"""One run: a cluster of processes, what happens in it and to it, and the notes that are added up in the end."""

from __future__ import annotations

import random
import signal
import statistics
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, count, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.stress.flood import key_updates
from benchmarks.stress.program import PROGRESS_EVERY, Progress
from trionode import Renew, StrandedPeers
from trionode.pki import CertificateAuthority, write_key_pair

from .ledger import End, how, judge, read
from .member import PATIENCE, GoneError, Member
from .process import HEARTBEAT, INTERRUPTED, TIMEOUT, Setup
from .result import Soaked
from .verdict import trend, unexpected
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a round of faults consists of; dealt in random order, then shuffled anew.
DECK: Final = (
    *("rotate",) * 3,
    *("hand over",) * 3,
    *("connect",) * 2,
    *("drain",) * 2,
    "trust",
    "flood",
    "interrupt",
    "kill",
    "stop",
    "reopen",
    "sever",
    "stall",
)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much happens, and how fast.

    Attributes:
        seconds: how long.
        nodes: how many.
        rate: exchanges that each node begins, per second.
        pause: between two faults or changes, on average, seconds.
        lengths: ranges of how long one lasts: briefly, or longer than heartbeats bear; seconds.
        longest_pause: between two messages of a long talk, seconds.
        settling: how long handshakes under way may take: between two steps of a change of trust, seconds.
        recovery: until both sides of a connection that has died unheard know that, seconds.
    """

    seconds: float
    nodes: int
    rate: float
    pause: float
    lengths: Sequence[tuple[float, float]]
    longest_pause: float
    settling: float
    recovery: float

    @classmethod
    def of(cls, *, quick: bool, seconds: float | None, nodes: int | None, rate: float | None) -> Pace:
        """The usual one, or that of `--quick`, with what was given instead."""
        # Where faults are short, handshakes do not take as long as they may.
        return cls(
            seconds=seconds if seconds is not None else 2.0 if quick else 300.0,
            nodes=nodes if nodes is not None else 3 if quick else 5,
            rate=rate if rate is not None else 10.0 if quick else 2.0,
            pause=0.15 if quick else 1.0,
            lengths=[(0.0, 0.3)] if quick else [(0.0, 1.0), (3.0, 8.0)],
            longest_pause=0.01 if quick else 0.1,
            settling=1.0 if quick else 2 * TIMEOUT + 1,
            recovery=0.5 if quick else 2 * HEARTBEAT + TIMEOUT,
        )


class Soak:
    """One run."""

    def __init__(self, pace: Pace, seed: int, directory: Path, progress: Progress) -> None:
        self._pace = pace
        self._directory = directory
        self._progress = progress
        self._chance = random.Random(seed)  # noqa: S311 -- seeded randomness is wanted
        self._members = [Member(index) for index in range(pace.nodes)]
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
        self._strangers = count()
        self._happened: Counter[str] = Counter()
        self.result = Soaked(nodes=pace.nodes, seed=seed)

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
        """Start, go on for the stated time, heal, add everything up."""
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
        self._progress.say(f"starting {len(self._members)} nodes")
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
            every = min(2 * PROGRESS_EVERY, self._pace.seconds / 3)
            watching.start_soon(lambda: self._progress.keep_saying(self._so_far, every=every))
            for member in self._members:
                watching.start_soon(self._collect, member)
            async with trio.open_nursery() as talking:
                async with trio.open_nursery() as happening:
                    with trio.move_on_after(self._pace.seconds):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._talk, talking)
                            nursery.start_soon(self._disturb, happening)
                    self._progress.say("healing")
                    happening.cancel_scope.deadline = trio.current_time() + 3 * PATIENCE
                if happening.cancel_scope.cancelled_caught:
                    self._problem(f"something that was begun has not come to its end within {3 * PATIENCE:g} s")
                self.result.seconds = round(self._now, 1)
                talking.cancel_scope.cancel()  # the tasks that wait for answers; the talks themselves go on
            watching.cancel_scope.cancel()

    async def _finish(self, member: Member) -> None:
        if not await member.aclose():
            self._problem(f"{member.name} ended with {member.process.returncode if member.process else None}")

    async def _be_well(self) -> None:
        """The faults are over, and each node that had not noticed one has done so by now: everything has to succeed."""
        self._progress.say("every node talks to every other one, and nothing may fail")
        await trio.sleep(self._pace.recovery)
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
        """All nodes first finish their exchanges, then close their connections: so no channel breaks."""
        self._progress.say("closing")
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
            await trio.sleep(self._chance.expovariate(self._pace.rate * len(self._members)))
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
                    "pause": self._chance.uniform(0, self._pace.longest_pause if long else 0.005),
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
                await trio.sleep(self._chance.expovariate(1 / self._pace.pause))
                one, other = self._chance.sample(self._members, 2)
                # Half of what takes time is shorter than heartbeats notice, half is longer.
                length = self._chance.uniform(*self._chance.choice(self._pace.lengths))
                match card:
                    case "rotate":
                        nursery.start_soon(self._rotate, one)
                    case "trust":
                        nursery.start_soon(self._change_trust, self._chance.choice(["keep", "close"]))
                    case "hand over" | "connect":
                        nursery.start_soon(self._have, one, card, {"peer": other.name})
                    case "drain":
                        self._mark("drain")
                        nursery.start_soon(self._have, one, card, {"peer": other.name, "within": length})
                    case "flood":
                        nursery.start_soon(self._flood, one)
                    case "interrupt":
                        nursery.start_soon(self._interrupt, self._chance.choice(self._members[1:]), length)
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
        """All nodes trust another CA beside the old one; then all use it; then all retire the old one.

        Between these steps, handshakes under way come to their end: a handshake finishes on the contexts that it took,
        so one that began before a step must not meet a peer that has made the next. (This does not concern
        connections: those that are stranded go on or are closed, as is drawn.)
        """
        if self._changing_trust.locked():
            return
        async with self._changing_trust:
            old, new = self._issuer, self._new_authority()
            self._trusted = [old, new]
            await self._everywhere("trust", {"trusted": self._trusted, "stranded": StrandedPeers.REFUSE.value})
            await trio.sleep(self._pace.settling)
            self._issuer = new
            await self._everywhere("rotate", {"issuer": new})
            await trio.sleep(self._pace.settling)
            self._trusted = [new]
            await self._everywhere("trust", {"trusted": self._trusted, "stranded": stranded})
            self._mark("trust")

    async def _everywhere(self, do: str, what: dict[str, Any]) -> None:
        async def there(member: Member) -> None:
            async with member.lock:  # a process that starts meanwhile starts with the change
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

    async def _interrupt(self, member: Member, length: float) -> None:
        async with member.lock:
            self._mark("interrupt")
            if (status := await member.interrupt()) != INTERRUPTED:
                self._problem(f"{member.name} was interrupted, and ended with {status}")
            await trio.sleep(length)
            member.incarnation += 1
            await self._start(member)

    async def _flood(self, member: Member) -> None:
        """A stranger whom the node's CA has certified, and who sends KeyUpdates in place of a hello."""
        port = next(other.wires[member.name].target for other in self._members if other is not member)
        if port is None or key_updates.LIBSSL is None:
            return
        folder = self._directory / f"eve{next(self._strangers)}"
        folder.mkdir()
        eve = CertificateAuthority.load(self._directory / self._issuer).issue("eve@localhost")
        write_key_pair(eve, folder / "cert.pem", folder / "key.pem")
        self._mark("flood")
        with suppress(OSError):  # the node is not there, or not just now
            await trio.to_thread.run_sync(key_updates.flood, port, str(folder), abandon_on_cancel=True)

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
            await trio.sleep(min(1.0, self._pace.seconds / 5))
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
            await trio.sleep(min(1.0, self._pace.seconds / 10))
            now = self._now
            self.result.samples += filter(None, (member.usage(now) for member in self._members))
            self.result.rates.append((round(now, 1), round((self._received - received) / (now - at), 1)))
            received, at = self._received, now

    def _so_far(self) -> str:
        happened = ", ".join(f"{count} {what}" for what, count in sorted(self._happened.items()))
        return (
            f"{self._now:.0f} of {self._pace.seconds:g} s, {self._received} messages, {self._numbers} exchanges; "
            f"{happened}; {len(self.result.problems)} problems"
        )

    # Adding up
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


async def measure(pace: Pace, seed: int, progress: Progress) -> Soaked:
    """One run, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="trionode-soak-") as directory:
        soak = Soak(pace, seed, Path(directory), progress)
        await soak.run()
    return soak.result
