"""Nodes as targets, inside real TLS: a hostile peer sends the input at one stage of a connection's life."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import trio
import trio.testing

from trionode import (
    HandshakeError,
    NodeName,
    _protocol as wire,
)
from trionode._connection.link import connection_id
from trionode._handshake import accept as _accept, dial as _dial, exchange as _exchange
from trionode._handshake.join import Ends, join_proof
from trionode._tls import handshake as _tls_handshake, stream as _tls_stream
from trionode._tls.handshake import client_handshake

from .campaign import Target, Violation
from .decoders import HelloTarget
from .dispatch import DispatchTarget
from .mutation import mutate_bytes, mutate_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

from benchmarks.stress.log import watching_log
from benchmarks.stress.relay import Relay

from .case import frame
from .life import BETA, LIMITS, MALLORY, MOST_WARNINGS, OPEN_PORT, PATIENCE, PORT, Life, Session, World, hello


class LiveTarget(Target):
    """Bytes at one stage of a life; the inputs are those of another target."""

    traced: Sequence[Path] = tuple(
        Path(module.__file__ or "") for module in (_accept, _dial, _exchange, _tls_handshake, _tls_stream)
    )
    #: Two nodes and their connections are in it.
    memory = (12 * 2**20, 256)
    measured = 8

    def __init__(self, world: World, inputs: Target | None = None) -> None:
        self.world = world
        self._inputs = inputs
        if inputs is not None:
            self.traced = (*self.traced, *inputs.traced)
            self.longest = inputs.longest

    def seeds(self) -> list[bytes]:
        """Of the other target."""
        return [] if self._inputs is None else self._inputs.seeds()

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """By the other target."""
        return mutate_bytes(rng, data, other) if self._inputs is None else self._inputs.mutate(rng, data, other)

    def repeated(self, rng: Random, data: bytes) -> Callable[[int], bytes] | None:
        """By the other target, where that is one of frames: the others are cut short by a limit."""
        return self._inputs.repeated(rng, data) if isinstance(self._inputs, DispatchTarget) else None

    def run(self, data: bytes) -> str:
        """One life, in a Trio run of its own."""
        life = Life(self.world, lambda life, data: self.attack(life, data))
        with watching_log() as log:
            trio.run(life.run, data, clock=trio.testing.MockClock(autojump_threshold=0))
        if log.warnings > MOST_WARNINGS:
            life.problems.append(f"{log.warnings} warnings were logged")
        problems = life.problems + log.errors
        if problems:
            raise Violation("; ".join(problems))
        return ", ".join(sorted(life.outcomes)) or "nothing"

    @abstractmethod
    async def attack(self, life: Life, data: bytes) -> None:
        """What the hostile peer does."""


class InsteadOfTLS(LiveTarget):
    """Before anything."""

    name = "live-raw"
    about = "a node, in place of TLS"

    def seeds(self) -> list[bytes]:
        """First flights of a client, and what other clients say."""
        return [*(self._first_flight() for _ in range(2)), b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01\x40\x00"]

    def _first_flight(self) -> bytes:
        async def make() -> bytes:
            contexts = await self.world.managers[MALLORY].contexts.receive()
            session = contexts.client.session(reference="localhost", alpn=[wire.ALPN.encode()])
            session.handshake()
            return session.outgoing()

        return trio.run(make)

    async def attack(self, life: Life, data: bytes) -> None:
        """Send it, wait for the end."""
        async with await life.network.connect("localhost", PORT) as stream:
            try:
                await stream.send_all(data)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass


class Garbled(Relay):
    """A transport that changes one of the flights that go out."""

    def __init__(self, transport: trio.abc.HalfCloseableStream, recipe: bytes) -> None:
        super().__init__(transport)
        self._rng = Random(recipe)  # noqa: S311 -- to be repeated
        self._flight = recipe[0] % 2 if recipe else 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, changed or not."""
        out = mutate_bytes(self._rng, bytes(data)) if self._flight == 0 else bytes(data)
        self._flight -= 1
        await super().send_all(out)


class InTLS(LiveTarget):
    """In the TLS handshake: the input says how one of the client's flights is changed."""

    name = "live-flight"
    about = "a node, in the flights of a TLS handshake"
    longest = 16

    def seeds(self) -> list[bytes]:
        """Recipes."""
        return [bytes([flight, number]) for flight in (0, 1) for number in range(4)]

    async def attack(self, life: Life, data: bytes) -> None:
        """Dial, with a flight changed."""
        transport = Garbled(await life.network.connect("localhost", PORT), data)
        contexts = await life.world.managers[MALLORY].contexts.receive()
        try:
            with trio.move_on_after(PATIENCE):
                async with await client_handshake(
                    transport, contexts, reference="localhost", alpn=(wire.ALPN,)
                ) as stream:
                    await stream.receive_some()
                return
            await trio.aclose_forcefully(transport)
        except (HandshakeError, trio.BrokenResourceError):
            pass


class InsteadOfHello(LiveTarget):
    """After TLS, with a good certificate or without one."""

    def __init__(self, world: World, name: str, port: int) -> None:
        super().__init__(world, HelloTarget("hello"))
        self.name = name
        self.about = f"a node that {'' if port == PORT else 'does not '}ask for certificates, in place of the hello"
        self._port = port

    async def attack(self, life: Life, data: bytes) -> None:
        """Do TLS, then send it."""
        async with trio.open_nursery() as nursery:
            session = await life.dial(nursery, self._port)
            await session.say(data)
            await session.leave()
        life.check_heard(session, hello=True)


class InsteadOfConfirmation(LiveTarget):
    """After the acceptor's answer."""

    name = "live-confirmation"
    about = "a node, in place of the hello's third message"

    def __init__(self, world: World) -> None:
        super().__init__(world, HelloTarget("confirmation"))

    async def attack(self, life: Life, data: bytes) -> None:
        """Say hello, hear the answer, send it."""
        async with trio.open_nursery() as nursery:
            session = await life.dial(nursery)
            await session.say(wire.encode_hello(hello()))
            await session.hear(wire.Answer)
            await session.say(data)
            await session.leave()
        life.check_heard(session)


class AsFrames(LiveTarget):
    """In the middle of channels."""

    name = "live-frames"
    about = "a node, as frames on a connection"

    def __init__(self, world: World) -> None:
        super().__init__(world, DispatchTarget(dialled=False))

    async def attack(self, life: Life, data: bytes) -> None:
        """Connect, send it. What is our own side's doing in there is of kinds that a receiver ignores."""
        async with trio.open_nursery() as nursery:
            session = await life.dial(nursery)
            await life.introduce(session)
            await session.say(data)
            await session.leave()
        life.check_heard(session)


class AsJoin(LiveTarget):
    """On a second link: the input says how the JOIN is changed, and what follows on both links."""

    name = "live-join"
    about = "a node, on a link that joins a connection"

    def __init__(self, world: World) -> None:
        super().__init__(world, DispatchTarget(dialled=False))

    def seeds(self) -> list[bytes]:
        """Every combination of what may be wrong, with and without frames."""
        plain = [bytes([way]) for way in range(16)]
        return [*plain, *(bytes([14]) + seed for seed in super().seeds())]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Another way, or other frames."""
        way = data[:1] if rng.random() < 0.7 else bytes([rng.randrange(16)])
        return (way or b"\0") + super().mutate(rng, data[1:], other[1:])

    def repeated(self, rng: Random, data: bytes) -> Callable[[int], bytes] | None:
        """Frames again and again."""
        make = super().repeated(rng, data[1:])
        return None if make is None else lambda times: data[:1] + make(times)

    async def attack(self, life: Life, data: bytes) -> None:
        """Connect, join, go on."""
        way, rest = (data[0] if data else 0), data[1:]
        async with trio.open_nursery() as nursery:
            first = await life.dial(nursery)
            answer = await life.introduce(first)
            assert answer is not None
            await first.say(frame(wire.OPEN, 1, b"\x82\xa7service\xa4echo\xa7timeout\xc0"))
            second = await life.dial(nursery)
            request = self._join(first, second, answer)
            if not way & 1:
                request = mutate_message(Random(data), request[2:])  # noqa: S311 -- to be repeated
                request = len(request).to_bytes(2, "big") + request if len(request) < 2**16 else request
            await second.say(request)
            if way & 1:
                await second.hear(wire.Answer)
            half = len(rest) // 2 if way & 8 else len(rest)
            if way & 2:
                await second.say(wire.encode_hello(wire.Confirmation()))
            if way & 4:
                await first.say(frame(wire.SWITCH))
            await second.say(rest[:half])
            await first.say(rest[half:])
            nursery.start_soon(second.leave)
            await first.leave()

    @staticmethod
    def _join(first: Session, second: Session, answer: wire.Answer) -> bytes:
        identifier = connection_id(first.stream)
        ends = Ends(NodeName.parse(MALLORY), 1, NodeName.parse(BETA), answer.incarnation)
        proof = join_proof(first.stream, second.stream, connection=identifier, attempt=1, ends=ends, dialling=True)
        return wire.encode_hello(hello(join=wire.Join(connection=identifier, attempt=1, proof=proof)))


class InsteadOfAnswer(LiveTarget):
    """Where the node has dialled."""

    name = "live-answer"
    about = "a node that has dialled, in place of the hello's second message"

    def __init__(self, world: World) -> None:
        super().__init__(world, HelloTarget("answer"))

    async def attack(self, life: Life, data: bytes) -> None:
        """Accept, hear the hello, send it."""

        async def answer(session: Session) -> None:
            await session.hear(wire.Hello)
            await session.say(data)

        await life.accept(answer)


class AsFramesBack(LiveTarget):
    """On a connection that the node has dialled."""

    name = "live-dialled"
    about = "a node that has dialled, as frames on the connection"

    def __init__(self, world: World) -> None:
        super().__init__(world, DispatchTarget(dialled=True))

    async def attack(self, life: Life, data: bytes) -> None:
        """Accept, say the honest hello, send it."""

        async def talk(session: Session) -> None:
            await session.hear(wire.Hello)
            honest = wire.Answer(version=1, name=MALLORY, incarnation=1, generation=1, limits=LIMITS, verified=True)
            await session.say(wire.encode_hello(honest))
            await session.hear(wire.Confirmation)
            await session.say(data)

        await life.accept(talk)


def targets() -> list[Target]:
    """All stages."""
    world = World()
    return [
        InsteadOfTLS(world),
        InTLS(world),
        InsteadOfHello(world, "live-unverified", OPEN_PORT),
        InsteadOfHello(world, "live-hello", PORT),
        InsteadOfConfirmation(world),
        AsFrames(world),
        AsJoin(world),
        InsteadOfAnswer(world),
        AsFramesBack(world),
    ]
