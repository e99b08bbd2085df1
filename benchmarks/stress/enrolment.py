"""A CA and two nodes with certificates of seconds, in three processes: is anything lost while they renew?"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from benchmarks import child
from trionode import (
    CertAuthManager,
    ClientAuth,
    HandedOver,
    LiveConnections,
    NodeOptions,
    Renew,
    Route,
    TrionodeError,
    follow_source,
    open_node,
)
from trionode._identity.certificate import issuer_der, subject_der
from trionode.enrolment import ESTSource
from trionode.pki import PKIDirectory

from .nodes import LOOPBACK, accepting, echo
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import EventStream, Node, ServiceChannel

EXPLANATION: Final = """\
Makes a CA in an empty directory and serves it (`trionode pki serve`) in a process of its own. Two nodes join with
tokens: beta in another process, alpha in this one, both with hand-over. alpha sends numbered messages over one channel
of one connection all the time, and has to get each back, in order; a third name dials beta anew all the time, and has
to get in. In the middle the CA is killed (SIGKILL) for longer than a renewal interval, and started again; and later it
rolls over, under traffic: overlap, switch, retire.

Certificates are renewed at 0.2 to 0.3 of their lifetime, so that the CA can be away for that long without an end.

What is reported:
  renewals   certificates that were renewed, of all three names, by the CA's journal
  messages   that came back
  connects   new connections that were made
  failed     new connections that could not be made: has to be 0
  hand-overs of alpha's connection, without which it would have the certificates of the start
  down       for how many seconds the CA was away
"""

ALPHA, BETA, PROBE = "alpha@localhost", "beta@localhost", "probe@localhost"
RENEW_AFTER: Final = 0.3
#: For how much of a lifetime the CA is away: longer than any renewal interval.
AWAY: Final = 0.33
#: How long a step may take that is not a matter of lifetimes. Seconds.
PATIENCE: Final = 60.0
#: Between two messages, and two dials of the probe. Seconds.
PAUSE: Final = 0.01
PROBE_EVERY: Final = 0.1
HAND_OVER: Final = LiveConnections(on_rotation=Renew.HAND_OVER, within=0.05)


@dataclass(kw_only=True)
class Enrolled(Result):
    """What came out; the fields are explained by `--help`."""

    seconds: float = 0.0
    lifetime: float = 0.0
    renewals: int = 0
    messages: int = 0
    connects: int = 0
    failed: int = 0
    hand_overs: int = 0
    down: float = 0.0

    def report(self) -> str:
        """The figures, for people."""
        lines = {
            "renewals": f"{self.renewals}  (lifetime {self.lifetime:g} s)",
            "messages": self.messages,
            "connects": f"{self.connects}, {self.failed} failed",
            "hand-overs": self.hand_overs,
            "down": f"{self.down:.1f} s",
        }
        headline = f"{self.seconds:.1f} s: {self.verdict('nothing lost, no connect failed')}"
        return "\n".join([headline, *(f"  {title:10} {text}" for title, text in lines.items())])


async def _manager(nursery: trio.Nursery, url: str, name: str, token: str, interval: float) -> CertAuthManager:
    source = ESTSource(url, name, token=token, renew_after=RENEW_AFTER, trust_interval=interval, revocation_lists=True)
    first = await source.read()
    manager = CertAuthManager(
        first.key_pair,
        client_cas=first.client_cas,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=first.root_cas,
        crls=first.crls,
    )
    await nursery.start(follow_source, manager, source)
    return manager


async def serve(url: str, token: str, interval: str) -> None:
    """Be the node beta, until standard input ends; says its port on standard output."""
    async with trio.open_nursery() as nursery:
        manager = await _manager(nursery, url, BETA, token, float(interval))
        options = NodeOptions(
            cert_manager=manager, network=accepting(), services={"echo": echo}, live_connections=HAND_OVER
        )
        async with open_node(BETA, options) as node:
            print(node.acceptors[0].address[1], flush=True)
            await trio.lowlevel.FdStream(os.dup(0)).receive_some()
        nursery.cancel_scope.cancel()


class Authority:
    """The CA's process: it can be killed, and started again on the same port."""

    def __init__(self, folder: Path, lifetime: float) -> None:
        self.directory = folder / "pki"
        self.kept = PKIDirectory.create(self.directory)
        self.port = 0
        self.startup = 0.0
        self._lifetime = lifetime
        self._log = (folder / "ca.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Serve; returns when it listens."""
        began = trio.current_time()
        await trio.to_thread.run_sync(self._start)
        self.startup = trio.current_time() - began

    def _start(self) -> None:
        options = ("--listen", f"{LOOPBACK}:{self.port}", "--lifetime", f"{self._lifetime:g}s", "--json")
        limits = ("--per-name", "100000", "--per-address", "100000")
        command = child.command("trionode", "pki", "serve", "--pki", str(self.directory), *options, *limits)
        self._process = process = subprocess.Popen(
            command, env=child.environment(), stdout=subprocess.PIPE, stderr=self._log
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        [[_, self.port]] = json.loads(line)["addresses"]

    def kill(self) -> None:
        """SIGKILL."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self._process = None

    def close(self) -> None:
        """Be gone for good."""
        self.kill()
        self._log.close()

    @property
    def renewals(self) -> int:
        """How many there were."""
        return (self.directory / "journal.jsonl").read_bytes().count(b'"renews"')


@contextmanager
def _second(url: str, token: str, interval: float) -> Iterator[subprocess.Popen[bytes]]:
    command = child.command("benchmarks.stress.enrolment", url, token, str(interval))
    process = subprocess.Popen(command, env=child.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Run:
    """One run, and what is counted."""

    def __init__(self, authority: Authority, lifetime: float, seconds: float, progress: Progress) -> None:
        self.result = Enrolled(lifetime=lifetime)
        self._authority = authority
        self._lifetime, self._seconds = lifetime, seconds
        self._interval = max(0.5, lifetime / 10)
        self._progress = progress

    async def run(self) -> Enrolled:
        """All of it."""
        began = trio.current_time()
        authority = self._authority
        await authority.start()
        url = f"https://{LOOPBACK}:{authority.port}"
        tokens = {name: authority.kept.make_token(name).reveal() for name in (ALPHA, BETA, PROBE)}
        with _second(url, tokens[BETA], self._interval) as beta:
            assert beta.stdout is not None
            port = int(await trio.to_thread.run_sync(beta.stdout.readline))
            async with trio.open_nursery() as following:
                managers = [
                    await _manager(following, url, name, tokens[name], self._interval) for name in (ALPHA, PROBE)
                ]
                await self._talk(managers, Route(host=LOOPBACK, port=port))
                following.cancel_scope.cancel()
            if beta.poll() is not None:
                self.result.problems.append(f"beta has ended, with status {beta.returncode}")
        self._expect_new_ca(managers)
        self.result.renewals = authority.renewals
        self.result.seconds = round(trio.current_time() - began, 3)
        return self.result

    async def _talk(self, managers: list[CertAuthManager], route: Route) -> None:
        alpha, probe = (
            NodeOptions(cert_manager=each, network=accepting(), live_connections=HAND_OVER) for each in managers
        )
        stop = trio.Event()
        async with open_node(ALPHA, alpha) as one, one.events() as events, open_node(PROBE, probe) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, events)
                connection = await one.connect(BETA, route)
                async with connection.open_channel("echo") as channel, trio.open_nursery() as talking:
                    talking.start_soon(self._send, channel, stop)
                    talking.start_soon(self._receive, channel)
                    async with trio.open_nursery() as probing:
                        probing.start_soon(self._probe, other, route)
                        await self._trouble()
                        probing.cancel_scope.cancel()
                    stop.set()
                nursery.cancel_scope.cancel()

    async def _send(self, channel: ServiceChannel, stop: trio.Event) -> None:
        count = 0
        while not stop.is_set():
            await channel.send(b"%d" % count)
            count += 1
            await trio.sleep(PAUSE)
        await channel.send(b"end %d" % count)
        await channel.send_eof()

    async def _receive(self, channel: ServiceChannel) -> None:
        result, announced = self.result, None
        async for message in channel:
            if message.startswith(b"end "):
                announced = int(message[4:])
            elif message == b"%d" % result.messages:
                result.messages += 1
            else:
                result.problems.append(f"message {result.messages} is not what came: {message[:20]!r}")
                return
        if announced != result.messages:
            result.problems.append(f"{announced} messages were sent, {result.messages} came back")

    async def _probe(self, node: Node, route: Route) -> None:
        result = self.result
        while True:
            try:
                connection = await node.connect(BETA, route)
                result.connects += 1
                await connection.aclose()
            except (TrionodeError, OSError, trio.BrokenResourceError) as exc:
                result.failed += 1
                result.problems.append(f"a new connection could not be made at {datetime.now(UTC):%H:%M:%S}: {exc}")
            await trio.sleep(PROBE_EVERY)

    async def _watch(self, events: EventStream) -> None:
        async for event in events:
            self.result.hand_overs += isinstance(event, HandedOver)

    async def _trouble(self) -> None:
        """What happens: nothing, the CA is away, nothing, it rolls over; nothing."""
        authority, lifetime, progress = self._authority, self._lifetime, self._progress
        rest = max(lifetime * 0.4, (self._seconds - lifetime * 1.5) / 2)
        await trio.sleep(rest)
        progress.say(f"the CA is killed after {authority.renewals} renewals")
        began = trio.current_time()
        authority.kill()
        await trio.sleep(max(0, lifetime * AWAY - authority.startup))
        await authority.start()
        self.result.down = trio.current_time() - began
        progress.say(f"the CA is back after {self.result.down:.1f} s")
        await trio.sleep(rest)
        progress.say("the CA rolls over")
        authority.kept.begin_roll_over()
        await trio.sleep(lifetime * 0.3)
        authority.kept.switch()
        await trio.sleep(lifetime * 0.5)
        authority.kept.retire()
        await trio.sleep(lifetime * 0.3)

    def _expect_new_ca(self, managers: list[CertAuthManager]) -> None:
        """All that is left of the old CA is its name in the journal."""
        authority = self._authority.kept.authority
        for manager in managers:
            if issuer_der(manager.key_pair.certificate) != subject_der(authority.issuer):
                self.result.problems.append(f"{manager!r} has a certificate of the old CA")
            if manager.root_cas != authority.pool:
                self.result.problems.append(f"{manager!r} trusts something else than the new CA")


async def measure(lifetime: float, seconds: float, progress: Progress) -> Enrolled:
    """One run, in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder), lifetime)
        try:
            return await Run(authority, lifetime, seconds, progress).run()
        finally:
            authority.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long, and how long certificates are."""
    parser.add_argument("--seconds", type=float, metavar="S", help="how long traffic flows; by default 3600")
    parser.add_argument("--lifetime", type=float, metavar="S", help="of certificates; by default 30")


def complete(options: argparse.Namespace) -> str | None:
    """Certificates that the machine can keep up with."""
    if options.lifetime is None:
        options.lifetime = 16.0 if options.quick else 30.0
    if options.seconds is None:
        options.seconds = 36.0 if options.quick else 3600.0
    return None if options.lifetime >= 2 and options.seconds > 0 else "--lifetime is 2 at least, --seconds above 0"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """Do it. That certificates of seconds are near their end is no news."""
    logger = logging.getLogger("trionode.certificates")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        result = trio.run(measure, options.lifetime, options.seconds, progress)
    finally:
        logger.setLevel(level)
    yield result


PROGRAM: Final = Program(
    name="enrolment",
    asks="A CA and two nodes with certificates of seconds: is anything lost while they renew by themselves?",
    explanation=EXPLANATION,
    examples=[("", "an hour with certificates of 30 s"), ("--seconds 60 --lifetime 8 --json", "")],
    quick="36 seconds with certificates of 16 s",
    add_options=add_options,
    complete=complete,
    run=run,
)

if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2], sys.argv[3])
