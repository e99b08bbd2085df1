"""The demo behind `trionode demo`: nodes in separate processes, steady traffic, and a certificate rotated under it.

It doubles as an example. The *roles* (`serve`, `talk`, `visit`, `knock`) are programs as an application would write
them, on the public names of `trionode` alone; everything else here is the operator who runs them.

Theory. The parent plays the operator: it makes a CA, writes certificates to disk, starts the roles as processes of
their own (`python -m trionode.demo ROLE …`), tells them what to do, one word a line on their stdin, and hears from
them, one JSON object a line on their stdout. Their logs go to files. What was seen is collected in `Facts`; a *check*
is a pure function of facts, so none can hold because of how the story was told, and one whose facts never came fails.

Processes are owned by the parent's nursery: whatever happens, leaving it terminates them, and kills those that do not
obey within a second. A role also ends when its stdin does, so none outlives a parent that was killed.

POSIX only, for the pipes.
"""

from __future__ import annotations

import math
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, final

import msgspec
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    Connection,
    ConnectionUp,
    EventStream,
    HandshakeError,
    HandshakeRefused,
    KeyPair,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    PeerRejectedError,
    Route,
    ServiceChannel,
    open_node,
)
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ALPHA: Final = "alpha@localhost"
BETA: Final = "beta@localhost"
GAMMA: Final = "gamma@localhost"
STRANGER: Final = "stranger@localhost"

HOST: Final = "127.0.0.1"

#: Pause between two numbers that alpha sends, seconds: steady, and a few hundred numbers in the life of the demo.
PACE: Final = 0.002
#: alpha reports each time that so many more numbers have come back.
PROGRESS: Final = 50
#: How long one step may take, seconds; a process that has not answered by then has failed. Generous: a busy machine
#: may take a second to start a Python.
STEP_TIMEOUT: Final = 15.0
#: How long the whole story may take, seconds.
STORY_TIMEOUT: Final = 60.0
#: How long a process that is told to terminate has before it is killed, seconds.
KILL_AFTER: Final = 1.0


# What processes tell the parent -------------------------------------------------------------------------------------


#: What the SANs of the demo's certificates are, in the usual spelling.
_KINDS: Final = {x509.DNSName: "DNS", x509.IPAddress: "IP", x509.UniformResourceIdentifier: "URI"}


class Certificate(msgspec.Struct, frozen=True):
    """What one sees of a certificate."""

    subject: str
    names: list[str]
    issuer: str
    fingerprint: str

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Certificate:
        """The facts of a certificate that has SANs."""
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return cls(
            subject=certificate.subject.rfc4514_string(),
            names=[f"{_KINDS[type(name)]}:{name.value}" for name in names],
            issuer=certificate.issuer.rfc4514_string(),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


class Listening(msgspec.Struct, frozen=True, tag=True):
    """beta: where to reach it."""

    port: int


class Connected(msgspec.Struct, frozen=True, tag=True):
    """A connection as one end sees it at this moment."""

    peer: str
    verified: bool
    peer_certificate: Certificate | None
    own_fingerprint: str
    generation: int
    peer_generation: int
    superseded: bool

    @classmethod
    def of(cls, connection: Connection) -> Connected:
        """The facts of a connection; all of them are plain attributes."""
        certificate = connection.peer.certificate
        return cls(
            peer=str(connection.peer.name),
            verified=connection.peer.verified,
            peer_certificate=None if certificate is None else Certificate.of(certificate),
            own_fingerprint=connection.key_pair_fingerprint,
            generation=connection.generation,
            peer_generation=connection.peer_generation,
            superseded=connection.superseded,
        )

    @property
    def peer_fingerprint(self) -> str:
        """Of the peer's certificate; empty where it sent none."""
        return "" if self.peer_certificate is None else self.peer_certificate.fingerprint


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A handshake that failed, in the words of one side; `error` is the exception's class, empty if there was none."""

    error: str
    code: str
    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """alpha: so many numbers went to beta and came back."""

    echoed: int


class Rotated(msgspec.Struct, frozen=True, tag=True):
    """beta: published another key pair; `received` numbers had come by then."""

    generation: int
    fingerprint: str
    received: int


class Sent(msgspec.Struct, frozen=True, tag=True):
    """alpha: all it sent, all that came back, and the first place where an echo was not the number due there."""

    sent: int
    echoed: int
    wrong_at: int | None


class Received(msgspec.Struct, frozen=True, tag=True):
    """beta: all that came, and the first place where it was not the number due there."""

    received: int
    wrong_at: int | None


Message: TypeAlias = Listening | Connected | Refusal | Progress | Rotated | Sent | Received
M = TypeVar("M", bound=msgspec.Struct)


def tell(message: Message) -> None:
    """One line for the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def first_wrong(numbers: Sequence[int]) -> int | None:
    """Where a sequence stops being 1, 2, 3, … : lost, doubled and reordered numbers all show here."""
    return next((due for due, number in enumerate(numbers, start=1) if number != due), None)


# The roles: what an application looks like --------------------------------------------------------------------------


def mutual_tls(directory: Path, folder: str) -> CertAuthManager:
    """A manager as every node of the cluster has one: own key pair, and the cluster's CA in both directions."""
    cluster = CAPool.load(directory / "ca" / "ca.pem")
    return CertAuthManager(
        KeyPair.load(directory / folder / "cert.pem", directory / folder / "key.pem"),
        client_cas=cluster,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=cluster,
    )


async def serve(directory: str) -> None:
    """beta: listens, echoes numbers, rotates to the files on disk when told to."""
    manager = mutual_tls(Path(directory), "beta")
    numbers: list[int] = []

    async def echo(channel: ServiceChannel) -> None:
        async for message in channel:
            numbers.append(int(message))
            await channel.send(message)

    async def rotate() -> Rotated:
        folder = Path(directory) / "beta"
        key_pair = await trio.to_thread.run_sync(KeyPair.load, folder / "cert.pem", folder / "key.pem")
        generation = manager.update(key_pair)
        return Rotated(generation=generation, fingerprint=manager.key_pair.fingerprint, received=len(numbers))

    options = NodeOptions(
        cert_manager=manager,
        network=NetworkOptions(acceptors=[AcceptorOptions(host=HOST, port=0)]),
        services={"echo": echo},
    )
    async with open_node(BETA, options) as node, node.events() as events, orders() as words:
        tell(Listening(port=node.acceptors[0].address[1]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, events)
            async for word in words:
                if word == "rotate":
                    tell(await rotate())
                elif word == "look":
                    tell(Connected.of(node.connections[ALPHA]))
                elif word == "count":
                    tell(Received(received=len(numbers), wrong_at=first_wrong(numbers)))
                elif word == "leave":
                    break
            nursery.cancel_scope.cancel()


async def report(events: EventStream) -> None:
    """Tell the parent whom this node let in, and whom it refused."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            tell(Connected.of(event.connection))
        elif isinstance(event, HandshakeRefused):
            tell(Refusal(error=type(event.error).__name__, code=event.error.reason, text=str(event.error)))


async def talk(directory: str, port: str) -> None:
    """alpha: connects to beta once, sends it numbers all the time, and keeps account of what comes back."""
    options = NodeOptions(
        cert_manager=mutual_tls(Path(directory), "alpha"),
        network=NetworkOptions(mode=NetworkMode.HIDDEN, routes={BETA: Route(host=HOST, port=int(port))}),
    )
    async with open_node(ALPHA, options) as node, orders() as words:
        connection = await node.connect(BETA)
        tell(Connected.of(connection))
        tell(await send_numbers(connection, words))
        await connection.aclose()
        tell(Connected.of(await node.connect(BETA)))
        async for word in words:
            if word == "leave":
                break


async def send_numbers(connection: Connection, words: trio.MemoryReceiveChannel[str]) -> Sent:
    """1, 2, 3, … over one channel until told to stop; beta sends each back."""
    echoes: list[int] = []
    sent = 0
    sending = trio.CancelScope()

    async def send(channel: ServiceChannel) -> None:
        nonlocal sent
        with sending:
            for number in count(1):
                await channel.send(b"%d" % number)
                sent = number
                await trio.sleep(PACE)
        await channel.send_eof()

    async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:
        nursery.start_soon(send, channel)
        nursery.start_soon(obey, words, {"look": lambda: tell(Connected.of(connection)), "stop": sending.cancel})
        async for message in channel:  # ends when beta has echoed the last one and its service is done
            echoes.append(int(message))
            if len(echoes) % PROGRESS == 0:
                tell(Progress(echoed=len(echoes)))
        nursery.cancel_scope.cancel()
    return Sent(sent=sent, echoed=len(echoes), wrong_at=first_wrong(echoes))


async def visit(directory: str, port: str, name: str, folder: str) -> None:
    """Anybody: connect to beta under a name, with the certificate of a folder, and tell what came of it."""
    options = NodeOptions(
        cert_manager=mutual_tls(Path(directory), folder), network=NetworkOptions(mode=NetworkMode.HIDDEN)
    )
    async with open_node(name, options) as node:
        try:
            connection = await node.connect(BETA, Route(host=HOST, port=int(port)))
        except PeerRejectedError as exc:
            tell(Refusal(error=type(exc).__name__, code=exc.code, text=str(exc)))
        except HandshakeError as exc:
            tell(Refusal(error=type(exc).__name__, code=exc.reason, text=str(exc)))
        else:
            tell(Connected.of(connection))


async def knock(directory: str, port: str) -> None:
    """A client that knows nothing of trionode and has no certificate: Python's own `ssl`."""
    await trio.to_thread.run_sync(_knock, Path(directory) / "ca" / "ca.pem", int(port))


def _knock(ca_file: Path, port: int) -> None:
    context = ssl.create_default_context(cafile=ca_file)  # noqa: TID251 -- the point here: a peer that is not ours
    try:
        with (
            socket.create_connection((HOST, port), timeout=STEP_TIMEOUT) as transport,
            context.wrap_socket(transport, server_hostname="localhost") as tls,
        ):
            tls.recv(1)
    except ssl.SSLError as exc:
        tell(Refusal(error=f"ssl.{type(exc).__name__}", code=exc.reason or "", text=str(exc)))
    except OSError as exc:
        tell(Refusal(error=type(exc).__name__, code="", text=str(exc)))
    else:
        tell(Refusal(error="", code="", text="nobody refused it"))


ROLES: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "serve": serve,
    "talk": talk,
    "visit": visit,
    "knock": knock,
}


# Orders, one word a line --------------------------------------------------------------------------------------------


@asynccontextmanager
async def orders() -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """What the parent says on our stdin, for the length of a block; its end is the order to leave."""
    stdin = trio.lowlevel.FdStream(0)
    send, receive = trio.open_memory_channel[str](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_lines, stdin, send)
        yield receive
        nursery.cancel_scope.cancel()


async def obey(words: trio.MemoryReceiveChannel[str], deeds: dict[str, Callable[[], object]]) -> None:
    """Do what each word stands for. No more words: stop."""
    async for word in words:
        deeds[word]()
    deeds["stop"]()


async def read_lines(stream: trio.abc.ReceiveStream, lines: trio.MemorySendChannel[str]) -> None:
    """Cut a stream into lines, until it ends; both are closed then."""
    rest = b""
    async with stream, lines:
        async for chunk in stream:
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                await lines.send(line.decode())


# What was seen, and what it shows -----------------------------------------------------------------------------------


@final
class Facts(msgspec.Struct):
    """What the story brought to light, in order; None where it did not get that far."""

    first_pair: str | None = None
    """Fingerprint of the certificate on beta's disk at the start."""
    second_pair: str | None = None
    """Fingerprint of the one that replaced it."""
    alpha_pair: str | None = None
    alpha_sees: Connected | None = None
    beta_sees: Connected | None = None
    rotated: Rotated | None = None
    alpha_sees_later: Connected | None = None
    beta_sees_later: Connected | None = None
    gamma_sees: Connected | Refusal | None = None
    beta_sees_gamma: Connected | None = None
    stranger_told: Connected | Refusal | None = None
    stranger_refused: Refusal | None = None
    impostor_told: Connected | Refusal | None = None
    impostor_refused: Refusal | None = None
    nobody_told: Refusal | None = None
    nobody_refused: Refusal | None = None
    sent: Sent | None = None
    received: Received | None = None
    alpha_again: Connected | None = None
    exit_statuses: dict[str, int | None] = msgspec.field(default_factory=dict)
    trouble: str | None = None
    """Why the story broke off, if it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that the demo is to show, and whether it did."""

    title: str
    held: bool
    evidence: str


class _NotReachedError(Exception):
    """The facts for a check never came."""


F = TypeVar("F")


def _need(fact: F | None) -> F:
    if fact is None:
        raise _NotReachedError
    return fact


def short(fingerprint: str, digits: int = 8) -> str:
    """The first digits of a fingerprint: enough to tell two apart."""
    return f"{fingerprint[:digits]}…" if fingerprint else "none"


def _verified(seen: Connected, name: str, fingerprint: str) -> tuple[bool, str]:
    return (
        seen.verified and seen.peer == name and seen.peer_fingerprint == fingerprint,
        f"verified: {seen.verified}; {seen.peer} with {short(seen.peer_fingerprint)}, on disk {short(fingerprint)}",
    )


def _alpha_verified_beta(facts: Facts) -> tuple[bool, str]:
    return _verified(_need(facts.alpha_sees), BETA, _need(facts.first_pair))


def _beta_verified_alpha(facts: Facts) -> tuple[bool, str]:
    return _verified(_need(facts.beta_sees), ALPHA, _need(facts.alpha_pair))


def _rotation(facts: Facts) -> tuple[bool, str]:
    rotated, old, new = _need(facts.rotated), _need(facts.first_pair), _need(facts.second_pair)
    return (
        rotated.generation == 2 and rotated.fingerprint == new != old,
        f"generation {rotated.generation}, {short(old)} → {short(rotated.fingerprint)}",
    )


def _old_connection(facts: Facts) -> tuple[bool, str]:
    alpha, beta, old = _need(facts.alpha_sees_later), _need(facts.beta_sees_later), _need(facts.first_pair)
    return (
        alpha.peer_fingerprint == beta.own_fingerprint == old and alpha.peer_generation == beta.generation == 1,
        f"alpha sees {short(alpha.peer_fingerprint)}, beta presented {short(beta.own_fingerprint)}; "
        f"generation {beta.generation}",
    )


def _superseded(facts: Facts) -> tuple[bool, str]:
    before, after, alpha = _need(facts.beta_sees), _need(facts.beta_sees_later), _need(facts.alpha_sees_later)
    return (
        after.superseded and not before.superseded and not alpha.superseded,
        f"superseded: {before.superseded} before, {after.superseded} after; at alpha {alpha.superseded}",
    )


def _new_connection(facts: Facts) -> tuple[bool, str]:
    gamma, beta, new = _need(facts.gamma_sees), _need(facts.beta_sees_gamma), _need(facts.second_pair)
    if isinstance(gamma, Refusal):
        return False, f"gamma could not connect: {gamma.error} {gamma.code}"
    return (
        gamma.verified
        and gamma.peer_fingerprint == beta.own_fingerprint == new
        and beta.generation == 2
        and not beta.superseded,
        f"gamma sees {short(gamma.peer_fingerprint)}, beta presented {short(beta.own_fingerprint)}; "
        f"generation {beta.generation}",
    )


def _refused(told: Connected | Refusal | None, refused: Refusal | None, code: str, reason: str) -> tuple[bool, str]:
    theirs = _need(told)
    if isinstance(theirs, Connected) or not theirs.error:
        return False, "it was let in"
    ours = _need(refused)
    return (
        theirs.error in ("PeerRejectedError", "ssl.SSLError")
        and theirs.code.lower().endswith(code)
        and ours.error == "PeerUnverifiedError"
        and ours.code == reason,
        f"beta: {ours.error} {ours.code}; it: {theirs.error} {theirs.code}",
    )


def _stranger(facts: Facts) -> tuple[bool, str]:
    return _refused(facts.stranger_told, facts.stranger_refused, "unknown_ca", "unknown_ca")


def _impostor(facts: Facts) -> tuple[bool, str]:
    return _refused(facts.impostor_told, facts.impostor_refused, "claimed_name", "claimed_name")


def _nobody(facts: Facts) -> tuple[bool, str]:
    return _refused(facts.nobody_told, facts.nobody_refused, "certificate_required", "no_certificate")


def _nothing_lost(facts: Facts) -> tuple[bool, str]:
    sent, received = _need(facts.sent), _need(facts.received)
    return (
        sent.sent == sent.echoed == received.received > 0 and sent.wrong_at is None and received.wrong_at is None,
        f"{sent.sent} sent, {received.received} received, {sent.echoed} echoed; first out of place: "
        f"{received.wrong_at or sent.wrong_at or 'none'}",
    )


def _under_traffic(facts: Facts) -> tuple[bool, str]:
    rotated, received = _need(facts.rotated), _need(facts.received)
    after = received.received - rotated.received
    return rotated.received > 0 and after > 0, f"{rotated.received} before the rotation, {after} after it"


def _again(facts: Facts) -> tuple[bool, str]:
    again, new = _need(facts.alpha_again), _need(facts.second_pair)
    return (
        again.verified and again.peer_fingerprint == new and again.peer_generation == 2,
        f"alpha sees {short(again.peer_fingerprint)}; generation {again.peer_generation}",
    )


def _clean_end(facts: Facts) -> tuple[bool, str]:
    statuses = facts.exit_statuses
    return (
        {"alpha", "beta"} <= statuses.keys() and not any(statuses.values()) and None not in statuses.values(),
        ", ".join(f"{name} {status}" for name, status in statuses.items()) or "none ended",
    )


CHECKS: Final[dict[str, Callable[[Facts], tuple[bool, str]]]] = {
    "alpha verified beta": _alpha_verified_beta,
    "beta verified alpha": _beta_verified_alpha,
    "beta rotated to the new files": _rotation,
    "the old connection still runs on the old certificate": _old_connection,
    "beta can see that it does": _superseded,
    "a new connection has the new certificate": _new_connection,
    "a stranger from another CA is refused": _stranger,
    "an impostor with a good certificate is refused": _impostor,
    "a client without a certificate is refused": _nobody,
    "no message was lost, doubled or reordered": _nothing_lost,
    "the rotation came in the middle of the traffic": _under_traffic,
    "alpha's next connection has the new certificate": _again,
    "every process ended by itself, status 0": _clean_end,
}


def judge(title: str, facts: Facts) -> Check:
    """One check, on what has been seen so far."""
    try:
        held, evidence = CHECKS[title](facts)
    except _NotReachedError:
        held, evidence = False, "not reached"
    return Check(title=title, held=held, evidence=evidence)


def judge_all(facts: Facts) -> list[Check]:
    """Every check."""
    return [judge(title, facts) for title in CHECKS]


# The operator -------------------------------------------------------------------------------------------------------


class Reporter(Protocol):
    """Who shows the story while it goes on."""

    def step(self, title: str) -> None:
        """A new part begins."""

    def note(self, who: str, text: str) -> None:
        """Something that somebody did or said."""

    def certificate(self, who: str, text: str, certificate: Certificate) -> None:
        """Somebody's certificate, with what is to be said about it."""

    def check(self, check: Check) -> None:
        """A check was made."""


class DemoError(Exception):
    """The story cannot go on."""


@final
class Actor:
    """One process: what it says, and how to tell it something."""

    def __init__(self, name: str, process: trio.Process, said: trio.MemoryReceiveChannel[str], log: Path) -> None:
        self.name = name
        self.process = process
        self._said = said
        self._log = log
        self._kept: list[Message] = []

    async def order(self, word: str) -> None:
        """Tell it a word."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(f"{word}\n".encode())
        except trio.BrokenResourceError:
            raise self._gone() from None

    async def hear(self, kind: type[M], about: Callable[[M], bool] = lambda _: True) -> M:
        """The first thing of a kind that it says, or said and nobody heard yet."""
        heard = await self._hear(lambda message: isinstance(message, kind) and about(message))
        assert isinstance(heard, kind)
        return heard

    async def hear_outcome(self) -> Connected | Refusal:
        """What came of its attempt to connect."""
        outcome = await self._hear(lambda message: isinstance(message, Connected | Refusal))
        assert isinstance(outcome, Connected | Refusal)
        return outcome

    async def _hear(self, wanted: Callable[[Message], bool]) -> Message:
        for message in self._kept:
            if wanted(message):
                self._kept.remove(message)
                return message
        with trio.move_on_after(STEP_TIMEOUT):
            async for line in self._said:
                message = msgspec.json.decode(line, type=Message)
                if wanted(message):
                    return message
                self._kept.append(message)
            raise self._gone()
        msg = f"{self.name} did not say what was waited for within {STEP_TIMEOUT:g} s. {self._last_words()}"
        raise DemoError(msg)

    async def wait_ended(self) -> int | None:
        """Its exit status; None if it does not end in time."""
        with trio.move_on_after(STEP_TIMEOUT):
            return await self.process.wait()
        return None

    def _gone(self) -> DemoError:
        return DemoError(f"{self.name} ended before its time. {self._last_words()}")

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
    """The steps, in order. What they see goes into `facts`, and to the reporter."""

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
        self.reporter.note("disk", f"ca/ca.pem and ca.key, of {self.cluster_ca.certificate.subject.rfc4514_string()}")
        self.facts.alpha_pair = await self.issue("alpha", ALPHA)
        self.facts.first_pair = await self.issue("beta", BETA)
        await self.issue("gamma", GAMMA)

    async def issue(self, folder: str, name: str, ca: CertificateAuthority | None = None) -> str:
        """Write a new certificate and key for a node name; returns the fingerprint."""
        key_pair = (ca or self.cluster_ca).issue(name)
        place = self.directory / folder
        await trio.Path(place).mkdir(exist_ok=True)
        await trio.to_thread.run_sync(write_key_pair, key_pair, place / "cert.pem", place / "key.pem")
        self.reporter.certificate("disk", f"{folder}/cert.pem and key.pem, for {name}", Certificate.of(key_pair.certificate))
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
        self.reporter.step("Who verified whom")
        self.facts.alpha_sees = seen = await alpha.hear(Connected)
        self.show_peer("alpha", seen)
        self.facts.beta_sees = seen = await beta.hear(Connected)
        self.show_peer("beta", seen)
        self.check("alpha verified beta")
        self.check("beta verified alpha")

    async def rotate(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("beta's certificate is replaced, while numbers flow")
        progress = await alpha.hear(Progress)
        self.reporter.note("alpha", f"{progress.echoed} numbers sent to beta and back")
        self.facts.second_pair = await self.issue("beta", BETA)
        await beta.order("rotate")
        self.facts.rotated = rotated = await beta.hear(Rotated)
        self.reporter.note("beta", f"update() published generation {rotated.generation}, after {rotated.received} numbers")
        self.check("beta rotated to the new files")
        # Numbers beyond those that beta had then arrived after the rotation.
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
        self.reporter.step("A node that connects now, while alpha's connection goes on")
        gamma = await self.start("gamma", "visit", self.port, GAMMA, "gamma")
        self.facts.gamma_sees = outcome = await gamma.hear_outcome()
        if isinstance(outcome, Connected):
            self.show_peer("gamma", outcome)
            self.facts.beta_sees_gamma = await beta.hear(Connected, lambda seen: seen.peer == GAMMA)
        await self.ended("gamma", gamma)
        self.check("a new connection has the new certificate")

    async def refuse(self, beta: Actor) -> None:
        self.reporter.step("Those who are not let in, and what each side says about it")
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
            self.reporter.note(name, "was let in")
            return told, None
        self.reporter.note(name, f"{told.error}: {told.text}")
        refusal = await beta.hear(Refusal)
        self.reporter.note("beta", f"{refusal.error}: {refusal.text}")
        return told, refusal

    async def account(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("Every number accounted for")
        await alpha.order("stop")
        self.facts.sent = sent = await alpha.hear(Sent)
        self.reporter.note("alpha", f"sent 1 to {sent.sent}, and had {sent.echoed} of them back")
        await beta.order("count")
        self.facts.received = received = await beta.hear(Received)
        self.reporter.note("beta", f"received {received.received}")
        self.check("no message was lost, doubled or reordered")
        self.check("the rotation came in the middle of the traffic")

    async def end(self, alpha: Actor, beta: Actor) -> None:
        self.reporter.step("alpha closes its connection and dials anew, then all leave")
        self.facts.alpha_again = seen = await alpha.hear(Connected)
        self.show_peer("alpha", seen)
        self.check("alpha's next connection has the new certificate")
        for name, actor in (("alpha", alpha), ("beta", beta)):
            await actor.order("leave")
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
        self.reporter.note(
            who,
            f"{verb} {short(fingerprint, 16)} on the connection with {seen.peer}; superseded here: {seen.superseded}",
        )

    def check(self, title: str) -> None:
        self.reporter.check(judge(title, self.facts))


async def _terminate(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(KILL_AFTER)
    process.kill()


def main(arguments: Sequence[str]) -> int:
    """Play a role; returns the exit status."""
    role, *rest = arguments
    status = 0
    try:
        trio.run(ROLES[role], *rest)
    except* KeyboardInterrupt:  # Ctrl-C reaches every process of the terminal; the parent sees to the rest
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
