"""Open nodes and a hostile peer inside real TLS sessions: bytes that are wrong, at every stage of a connection's life.

Each input is a life of its own: two honest nodes that are connected, on a network in memory and on a clock that jumps,
and a peer that sends the input where something else was due: in place of TLS, in its handshake, in place of a hello's
message, as frames, on a link that joins. Meanwhile and afterwards the honest nodes talk.

What has to hold: the node goes on and lets honest peers in; long afterwards nothing of the hostile one is left; what
it was told is the protocol, with documented codes; the log has no errors, and few warnings.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    ConnectionDown,
    EndReason,
    HandshakeError,
    HandshakeRefused,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    RemoteCode,
    RemoteProtocolError,
    Route,
    UnverifiedReason,
    _protocol as wire,
    open_node,
)
from trionode._connection.link import connection_id
from trionode._handshake import accept as _accept, dial as _dial, exchange as _exchange
from trionode._handshake.join import Ends, join_proof
from trionode._tls import handshake as _tls_handshake, stream as _tls_stream
from trionode._tls.handshake import client_handshake, server_handshake
from trionode.pki import CertificateAuthority
from trionode.testing import MemoryNetwork

from .campaign import Target, Violation
from .decoders import HelloTarget, pieces, said
from .dispatch import DispatchTarget, frame
from .mutation import mutate_bytes, mutate_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionode import (
        Node,
        NodeEvent,
        ServiceChannel,
        TLSStream,
    )

T = TypeVar("T")

ALPHA, BETA, MALLORY = "alpha@localhost", "beta@localhost", "mallory@localhost"
#: Where beta asks for a client's certificate, where it asks for none, and where mallory answers.
PORT, OPEN_PORT, HOSTILE_PORT = 15000, 15001, 16000
HEARTBEAT: Final = 15.0
#: After this long nothing of the hostile peer may be left. Seconds, on a clock that jumps.
QUIET: Final = 90.0
#: How long the hostile peer reads on. Seconds.
PATIENCE: Final = 40.0
#: Warnings that one hostile connection may cause: a flood gate lets twenty through.
MOST_WARNINGS: Final = 22
LIMITS: Final = wire.Limits(max_message_size=65536, window=4096, max_channels=4)


class World:
    """Certificates, made once."""

    def __init__(self) -> None:
        self._ca = CertificateAuthority.create()
        self.managers = {name: self._manager(name) for name in (ALPHA, BETA, MALLORY)}
        self.open_manager = self._manager(BETA, ClientAuth.NO_CLIENT_CERT)

    def _manager(
        self, name: str, client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    ) -> CertAuthManager:
        ca = self._ca
        return CertAuthManager(ca.issue(name), client_cas=ca.pool, client_auth=client_auth, root_cas=ca.pool)


class Log(logging.Handler):
    """Counts warnings, keeps errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = 0
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        if record.levelno >= logging.ERROR:
            self.errors.append(f"logged {record.levelname}: {record.getMessage()} {record.exc_info or ''}")
        else:
            self.warnings += 1


class Session:
    """One TLS session of the hostile peer, and what it hears."""

    def __init__(self, stream: TLSStream, nursery: trio.Nursery) -> None:
        self.stream = stream
        self.heard = bytearray()
        self.ended = trio.Event()
        self._more = trio.lowlevel.ParkingLot()
        nursery.start_soon(self._hear)

    async def _hear(self) -> None:
        try:
            with trio.move_on_after(PATIENCE):
                while data := await self.stream.receive_some():
                    self.heard += data
                    self._more.unpark_all()
        except trio.BrokenResourceError as exc:
            if exc.__cause__ is not None and not isinstance(exc.__cause__, HandshakeError | OSError):
                msg = f"the hostile peer saw {exc.__cause__!r}"
                raise Violation(msg) from exc
        finally:
            self.ended.set()
            self._more.unpark_all()

    async def hear(self, kind: type[T]) -> T | None:
        """The next message of a hello; None if there is none before the end."""
        while True:
            reader = wire.HelloReader()
            reader.feed(bytes(self.heard))
            message = reader.next(kind)
            if message is not None:
                self.heard[:] = reader.rest()
                return message
            if self.ended.is_set():
                return None
            await self._more.park()

    async def say(self, *parts: bytes) -> None:
        """Send bytes, as long as there is somebody to take them; cut into records as `pieces` does."""
        try:
            for part in parts:
                for piece in pieces(part):
                    await self.stream.send_all(piece)
        except trio.BrokenResourceError:
            pass

    async def leave(self) -> None:
        """Say that this is all, read on, close."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_eof()
        await self.ended.wait()
        await self.stream.aclose()


class Garbled(trio.abc.HalfCloseableStream):
    """A transport that changes one of the flights that go out."""

    def __init__(self, transport: trio.abc.HalfCloseableStream, recipe: bytes) -> None:
        self._transport = transport
        self._rng = Random(recipe)  # noqa: S311 -- to be repeated
        self._flight = recipe[0] % 2 if recipe else 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, changed or not."""
        out = mutate_bytes(self._rng, bytes(data)) if self._flight == 0 else bytes(data)
        self._flight -= 1
        await self._transport.send_all(out)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait."""
        await self._transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End."""
        await self._transport.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive."""
        return await self._transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close."""
        await self._transport.aclose()


class Life:
    """One life of the two honest nodes, with a hostile peer beside them."""

    def __init__(self, world: World, attack: Callable[[Life, bytes], object]) -> None:
        self.world = world
        self.network = MemoryNetwork()
        self.outcomes: set[str] = set()
        self.problems: list[str] = []
        self._attack = attack

    async def run(self, data: bytes) -> None:
        """All of it."""
        tasks = trio.lowlevel.current_statistics().tasks_living
        managers = self.world.managers
        acceptors = [
            AcceptorOptions(host="localhost", port=PORT),
            AcceptorOptions(host="localhost", port=OPEN_PORT, cert_manager=self.world.open_manager),
        ]
        network = NetworkOptions(
            acceptors=acceptors,
            routes={BETA: Route(port=PORT), MALLORY: Route(port=HOSTILE_PORT)},
            transport=self.network,
            channel_window=4096,
            max_channels=8,
            max_pending_opens=8,
            heartbeat_interval=HEARTBEAT,
            heartbeat_tolerance=HEARTBEAT,
        )
        hidden = NetworkOptions(**{**vars(network), "acceptors": (), "mode": NetworkMode.HIDDEN})
        services = {"echo": self._echo, "idle": self._idle}
        beta_options = NodeOptions(cert_manager=managers[BETA], network=network, services=services)
        alpha_options = NodeOptions(cert_manager=managers[ALPHA], network=hidden)
        async with open_node(BETA, beta_options) as beta, open_node(ALPHA, alpha_options) as alpha:
            await self._live(beta, alpha, data)
        if self.network.open_streams or self.network.listening:
            self.problems.append(f"left open: {self.network.open_streams} {self.network.listening}")
        if trio.lowlevel.current_statistics().tasks_living != tasks:
            self.problems.append("a task is left over")

    async def _live(self, beta: Node, alpha: Node, data: bytes) -> None:
        connection = await alpha.connect(BETA)
        async with beta.events() as events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._attack_within, beta, data)
                await trio.sleep(1)
                await self._check_call(alpha, "beside it")
            if alpha.connections.get(NodeName.parse(BETA)) is not connection:
                self.problems.append("the honest connection is gone")
            await connection.aclose()
            await self._check_call(alpha, "anew")
            await trio.sleep(QUIET)
            with trio.move_on_after(0.001):
                async for event in events:
                    self._note(event)
        statistics = beta.statistics()
        handshaking = sum(acceptor.handshaking for acceptor in statistics.acceptors)
        if (statistics.connections, statistics.services, handshaking) != (1, 0, 0):
            self.problems.append(f"long afterwards there is still {statistics}")
        if len(self.network.open_streams) != 2:
            self.problems.append(f"streams are left open: {self.network.open_streams}")

    def _note(self, event: NodeEvent) -> None:
        """What came of the hostile peer, as the node tells it."""
        if isinstance(event, HandshakeRefused):
            self.outcomes.add(f"{event.side} {type(event.error).__name__} {event.error.reason}")
        elif isinstance(event, ConnectionDown) and str(event.peer.name) != ALPHA:
            self.outcomes.add(f"{event.reason}: {'' if event.error is None else said(event.error)}")

    async def _attack_within(self, beta: Node, data: bytes) -> None:
        self.beta = beta
        with trio.move_on_after(5 * PATIENCE) as patience:
            await self._attack(self, data)  # type: ignore[misc]  # an async function
        if patience.cancelled_caught:
            self.problems.append("the hostile peer is held up for ever")

    async def _check_call(self, alpha: Node, when: str) -> None:
        try:
            with trio.fail_after(PATIENCE):
                if await alpha.call(BETA, "echo", b"honest") != b"honest":
                    self.problems.append(f"{when}, an honest call was answered by something else")
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is a problem
            self.problems.append(f"{when}, an honest call failed: {exc!r}")

    async def _echo(self, channel: ServiceChannel) -> None:
        async for message in channel:
            await channel.send(message)

    async def _idle(self, _: ServiceChannel) -> None:
        # It reads nothing. Not for ever: whoever closes cleanly leaves it to finish, and it has to.
        await trio.sleep(PATIENCE)

    # For the attacks

    async def dial(self, nursery: trio.Nursery, port: int = PORT) -> Session:
        """The hostile peer does TLS with beta, honestly."""
        transport = await self.network.connect("localhost", port)
        contexts = await self.world.managers[MALLORY].contexts.receive()
        stream = await client_handshake(transport, contexts, reference="localhost", alpn=(wire.ALPN,))
        return Session(stream, nursery)

    async def introduce(self, session: Session) -> wire.Answer | None:
        """It says an honest hello, to its end."""
        await session.say(wire.encode_hello(hello()))
        answer = await session.hear(wire.Answer)
        await session.say(wire.encode_hello(wire.Confirmation()))
        return answer

    async def accept(self, attack: Callable[[Session], object]) -> None:
        """Beta dials the hostile peer, which does TLS honestly and then something else."""
        async with trio.open_nursery() as nursery:
            [listener] = await self.network.listen("localhost", HOSTILE_PORT)
            nursery.start_soon(self._dial_out)
            transport = await listener.accept()
            contexts = await self.world.managers[MALLORY].contexts.receive()
            stream = await server_handshake(transport, contexts, alpn=(wire.ALPN,))
            session = Session(stream, nursery)
            await attack(session)  # type: ignore[misc]  # an async function
            await session.leave()
            listener.close()

    async def _dial_out(self) -> None:
        try:
            await self.beta.connect(MALLORY)
        except HandshakeError as exc:
            if type(exc) is HandshakeError and exc.__cause__ is None:
                self.problems.append(f"a bare HandshakeError without a cause: {exc}")
            self.outcomes.add(f"connect: {type(exc).__name__} {exc.reason}")

    def check_heard(self, session: Session, *, hello: bool = False) -> None:
        """What a session has heard is the protocol: the answer to a hello, and frames."""
        data = bytes(session.heard)
        try:
            if hello and data:
                reader = wire.HelloReader()
                reader.feed(data)
                answer = reader.next(wire.Answer)
                data = reader.rest()
                if answer is None:
                    self.problems.append(f"half an answer: {data!r}")
                elif answer.refusal is not None and answer.refusal.code not in frozenset(UnverifiedReason):
                    self.problems.append(f"refused with {answer.refusal}")
            codes = {wire.RESET: frozenset(RemoteCode), wire.GOODBYE: frozenset(EndReason)}
            for kind, _, payload in wire.FrameDecoder().feed(data):
                if kind in codes and wire.decode(wire.End, payload).code not in codes[kind]:
                    self.problems.append(f"the hostile peer was told {payload!r}")
        except RemoteProtocolError as exc:
            self.problems.append(f"what the hostile peer was told is no protocol: {exc}")


def hello(**fields: object) -> wire.Hello:
    """An honest first message."""
    return wire.Hello(
        **{
            "versions": [1],
            "name": MALLORY,
            "incarnation": 1,
            "generation": 1,
            "limits": LIMITS,
            "verified": True,
            **fields,
        }  # type: ignore[arg-type]  # msgspec's structs check nothing here
    )


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
        log = Log()
        logger = logging.getLogger("trionode")
        propagate, logger.propagate = logger.propagate, False
        logger.addHandler(log)
        life = Life(self.world, lambda life, data: self.attack(life, data))
        try:
            trio.run(life.run, data, clock=trio.testing.MockClock(autojump_threshold=0))
        finally:
            logger.removeHandler(log)
            logger.propagate = propagate
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
