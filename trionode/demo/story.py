"""The operator of the demo: certificates on disk, processes, and the story that they play.

Theory. A nursery owns the processes: leaving it terminates them, and kills those that do not end within a second. The
operator talks to each through an `Actor`: it sends orders and receives reports, and every wait is bounded. What is
observed goes into `Facts`, and to a `Reporter`, which shows it.
"""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, final

import msgspec
import trio

from trionode.pki import CertificateAuthority, write_key_pair

from .checks import Facts, judge
from .roles import (
    ALPHA,
    BETA,
    HOST,
    read_lines,
)
from .said import (
    SHOWN_DIGITS,
    Certificate,
    Connected,
    Listening,
    Message,
    Progress,
    Received,
    Refusal,
    Rotated,
    Sent,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .checks import Check

GAMMA: Final = "gamma@localhost"
STRANGER: Final = "stranger@localhost"

#: How long one step may take, seconds; a process that has not reported by then has failed. Generous: a busy machine
#: may take a second to start a Python.
STEP_TIMEOUT: Final = 15.0
#: How long the whole story may take, seconds.
STORY_TIMEOUT: Final = 60.0
#: How long a process has to terminate before it is killed, seconds.
KILL_AFTER: Final = 1.0

M = TypeVar("M", bound=msgspec.Struct)


class Reporter(Protocol):
    """Shows the story while it goes on."""

    def step(self, title: str) -> None:
        """A new part begins."""

    def note(self, who: str, text: str) -> None:
        """A line about a process: what it did or reported."""

    def certificate(self, who: str, text: str, certificate: Certificate) -> None:
        """A certificate, and a line about it."""

    def check(self, check: Check) -> None:
        """A check was made."""


class DemoError(Exception):
    """The story cannot go on."""


@final
class Actor:
    """One process: its reports, and orders to it."""

    def __init__(self, name: str, process: trio.Process, said: trio.MemoryReceiveChannel[str], log: Path) -> None:
        self.name = name
        self.process = process
        self._said = said
        self._log = log

    async def order(self, word: str) -> None:
        """Give it an order."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(f"{word}\n".encode())
        except trio.BrokenResourceError:
            raise self._gone() from None

    async def dismiss(self) -> None:
        """End its orders, which is the order to leave."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def hear(self, kind: type[M], about: Callable[[M], bool] = lambda _: True) -> M:
        """Its next report of a kind; reports before that are skipped."""
        heard = await self._hear(lambda message: isinstance(message, kind) and about(message))
        assert isinstance(heard, kind)
        return heard

    async def hear_outcome(self) -> Connected | Refusal:
        """The outcome of its attempt to connect."""
        outcome = await self._hear(lambda message: isinstance(message, Connected | Refusal))
        assert isinstance(outcome, Connected | Refusal)
        return outcome

    async def _hear(self, wanted: Callable[[Message], bool]) -> Message:
        with trio.move_on_after(STEP_TIMEOUT):
            async for line in self._said:
                message: Message = msgspec.json.decode(line, type=Message)
                if wanted(message):
                    return message
            raise self._gone()
        msg = f"{self.name} did not report what was expected within {STEP_TIMEOUT:g} s. {self._last_words()}"
        raise DemoError(msg)

    async def wait_ended(self) -> int | None:
        """Its exit status; None if it does not end in time."""
        with trio.move_on_after(STEP_TIMEOUT):
            return await self.process.wait()
        return None

    def _gone(self) -> DemoError:
        return DemoError(f"{self.name} ended too early. {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return f"The end of {self._log}: {' / '.join(lines[-3:]) or 'nothing'}"


async def run_demo(directory: Path, reporter: Reporter) -> Facts:
    """Tell the whole story in an (empty) directory; no process is left when this returns or raises.

    Args:
        directory: gets the CA, the certificates, the keys and the logs; must exist.
        reporter: shown what happens as it does.
    """
    facts = Facts()
    async with trio.open_nursery() as nursery:
        try:
            with trio.fail_after(STORY_TIMEOUT):
                await _Story(directory, reporter, facts, nursery).tell()
        except DemoError as exc:
            facts.trouble = str(exc)
        except trio.TooSlowError:
            facts.trouble = f"the story took longer than {STORY_TIMEOUT:g} s"
        nursery.cancel_scope.cancel()
    return facts


@final
class _Story:
    """The steps, in order. What they observe goes into `facts`, and to the reporter."""

    def __init__(self, directory: Path, reporter: Reporter, facts: Facts, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.reporter = reporter
        self.facts = facts
        self.nursery = nursery
        self.cluster_ca = CertificateAuthority.create(common_name="demo cluster CA")
        self.port = ""

    async def tell(self) -> None:
        await self.prepare()
        beta = await self.open_beta()
        alpha = await self.open_alpha()
        await self.meet(alpha, beta)
        await self.rotate(alpha, beta)
        await self.welcome_gamma(beta)
        await self.refuse(beta)
        await self.account(alpha, beta)
        await self.end(alpha, beta)

    async def prepare(self) -> None:
        self.reporter.step("A CA for the cluster, and a certificate for each node, on disk")
        self.reporter.note("disk", f"all below {self.directory}")
        await trio.to_thread.run_sync(self.cluster_ca.save, self.directory / "ca")
        self.reporter.note("disk", f"ca/ca.pem and ca.key: {self.cluster_ca.certificate.subject.rfc4514_string()}")
        self.facts.alpha_pair = await self.issue("alpha", ALPHA)
        self.facts.first_pair = await self.issue("beta", BETA)
        await self.issue("gamma", GAMMA)

    async def issue(self, folder: str, name: str, ca: CertificateAuthority | None = None) -> str:
        """Write a new certificate and key for a node name; returns the fingerprint."""
        key_pair = (ca or self.cluster_ca).issue(name)
        place = self.directory / folder
        await trio.Path(place).mkdir(exist_ok=True)
        await trio.to_thread.run_sync(write_key_pair, key_pair, place / "cert.pem", place / "key.pem")
        self.reporter.note(
            "disk", f"{folder}/cert.pem and key.pem: {name}, SHA-256 {short(key_pair.fingerprint, SHOWN_DIGITS)}"
        )
        return key_pair.fingerprint

    async def open_beta(self) -> Actor:
        self.reporter.step("Two nodes, two processes")
        beta = await self.start("beta", "serve")
        self.port = str((await beta.hear(Listening)).port)
        self.reporter.note("beta", f"process {beta.process.pid} listens on {HOST} port {self.port}")
        return beta

    async def open_alpha(self) -> Actor:
        alpha = await self.start("alpha", "talk", self.port)
        self.reporter.note("alpha", f"process {alpha.process.pid} dials it")
        return alpha

    async def meet(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("Each verifies the other")
        self.facts.alpha_sees = seen = await alpha.hear(Connected)
        self.show_peer("alpha", seen)
        self.facts.beta_sees = seen = await beta.hear(Connected)
        self.show_peer("beta", seen)
        self.check("alpha verified beta")
        self.check("beta verified alpha")

    async def rotate(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("beta's certificate is replaced under traffic")
        progress = await alpha.hear(Progress)
        self.reporter.note("alpha", f"{progress.echoed} numbers sent to beta and back")
        self.facts.second_pair = await self.issue("beta", BETA)
        await beta.order("rotate")
        self.facts.rotated = rotated = await beta.hear(Rotated)
        self.reporter.note(
            "beta", f"update() published generation {rotated.generation}, after {rotated.received} numbers"
        )
        self.check("beta rotated to the new files")
        # Numbers beyond those that beta had received then have arrived after the rotation.
        await alpha.hear(Progress, lambda later: later.echoed > rotated.received)
        await alpha.order("look")
        self.facts.alpha_sees_later = seen = await alpha.hear(Connected)
        self.show_connection("alpha", "sees", seen.peer_fingerprint, seen)
        await beta.order("look")
        self.facts.beta_sees_later = seen = await beta.hear(Connected)
        self.show_connection("beta", "presented", seen.own_fingerprint, seen)
        self.check("the old connection still runs on the old certificate")
        self.check("beta can see that it does")

    async def welcome_gamma(self, beta: Actor) -> None:
        self.reporter.step("Another node connects, while alpha's connection goes on")
        gamma = await self.start("gamma", "visit", self.port, GAMMA, "gamma")
        self.facts.gamma_sees = outcome = await gamma.hear_outcome()
        await self.ended("gamma", gamma)
        if isinstance(outcome, Refusal):
            raise DemoError(f"gamma could not connect: {outcome.error}: {outcome.text}")
        self.show_peer("gamma", outcome)
        self.facts.beta_sees_gamma = await beta.hear(Connected, lambda seen: seen.peer == GAMMA)
        self.check("a new connection has the new certificate")

    async def refuse(self, beta: Actor) -> None:
        self.reporter.step("Clients that are refused, and what each side says about it")
        await self.issue("stranger", STRANGER, CertificateAuthority.create(common_name="some other CA"))
        stranger = await self.start("stranger", "visit", self.port, STRANGER, "stranger")
        self.facts.stranger_told, self.facts.stranger_refused = await self.refused("stranger", stranger, beta)
        self.check("a stranger from another CA is refused")

        self.reporter.note("impostor", f"has gamma's certificate, and opens its node as {ALPHA}")
        impostor = await self.start("impostor", "visit", self.port, ALPHA, "gamma")
        self.facts.impostor_told, self.facts.impostor_refused = await self.refused("impostor", impostor, beta)
        self.check("an impostor with a good certificate is refused")

        self.reporter.note("nobody", "is Python's own ssl module, without a certificate")
        nobody = await self.start("nobody", "knock", self.port)
        told, self.facts.nobody_refused = await self.refused("nobody", nobody, beta)
        self.facts.nobody_told = told if isinstance(told, Refusal) else None
        self.check("a client without a certificate is refused")

    async def refused(self, name: str, visitor: Actor, beta: Actor) -> tuple[Connected | Refusal, Refusal | None]:
        told = await visitor.hear_outcome()
        await self.ended(name, visitor)
        if isinstance(told, Connected) or not told.error:
            self.reporter.note(name, "was admitted")
            return told, None
        self.reporter.note(name, f"{told.error}: {told.text}")
        refusal = await beta.hear(Refusal)
        self.reporter.note("beta", f"{refusal.error}: {refusal.text}")
        return told, refusal

    async def account(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("Every number is accounted for")
        await alpha.order("stop")
        self.facts.sent = sent = await alpha.hear(Sent)
        self.reporter.note("alpha", f"sent 1 to {sent.sent}, and had {sent.echoed} of them back")
        await beta.order("reckon")
        self.facts.received = received = await beta.hear(Received)
        self.reporter.note("beta", f"received {received.received}")
        self.check("no message was lost, doubled or reordered")
        self.check("the rotation came in the middle of the traffic")

    async def end(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("alpha closes its connection and dials again, then all processes end")
        self.facts.alpha_again = seen = await alpha.hear(Connected)
        self.show_peer("alpha", seen)
        self.check("alpha's next connection has the new certificate")
        for name, actor in (("alpha", alpha), ("beta", beta)):
            await actor.dismiss()
            await self.ended(name, actor)
        self.check("every process ended by itself, status 0")

    # Helpers

    async def start(self, name: str, role: str, *arguments: str) -> Actor:
        """Start a role as a process of its own; the nursery owns it."""
        log = self.directory / f"{name}.log"
        command = [sys.executable, "-m", "trionode.demo", role, str(self.directory), *arguments]
        with await trio.to_thread.run_sync(partial(log.open, "wb")) as stderr:
            process = await self.nursery.start(
                partial(
                    trio.run_process,
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    check=False,
                    deliver_cancel=_terminate,
                )
            )
        send, receive = trio.open_memory_channel[str](math.inf)
        self.nursery.start_soon(read_lines, process.stdout, send)
        return Actor(name, process, receive, log)

    async def ended(self, name: str, actor: Actor) -> None:
        self.facts.exit_statuses[name] = await actor.wait_ended()

    def show_peer(self, who: str, seen: Connected) -> None:
        verdict = "verified" if seen.verified else "did NOT verify"
        if seen.peer_certificate is None:
            self.reporter.note(who, f"{verdict} {seen.peer}, which sent no certificate")
        else:
            self.reporter.certificate(who, f"{verdict} {seen.peer}", seen.peer_certificate)

    def show_connection(self, who: str, verb: str, fingerprint: str, seen: Connected) -> None:
        state = f"the connection with {seen.peer}; superseded here: {seen.superseded}"
        self.reporter.note(who, f"{verb} {short(fingerprint, SHOWN_DIGITS)} on {state}")

    def check(self, title: str) -> None:
        self.reporter.check(judge(title, self.facts))


async def _terminate(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(KILL_AFTER)
    process.kill()
