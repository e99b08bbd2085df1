"""Open nodes and a hostile peer inside real TLS sessions: bytes that are wrong, at every stage of a connection's life.

Each input is a life of its own: two honest nodes that are connected, on a network in memory and on a clock that jumps,
and a peer that sends the input where something else was due: in place of TLS, in its handshake, in place of a hello's
message, as frames, on a link that joins. Meanwhile and afterwards the honest nodes talk.

What has to hold: the node goes on and lets honest peers in; long afterwards nothing of the hostile one is left; what
it was told is the protocol, with documented codes; the log has no errors, and few warnings.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import trio
import trio.testing

from benchmarks.stress.nodes import manager_of
from trionode import (
    AcceptorOptions,
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
from trionode._tls.handshake import client_handshake, server_handshake
from trionode.pki import CertificateAuthority
from trionode.testing import MemoryNetwork

from .campaign import Violation
from .decoders import pieces, said

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode import (
        Node,
        NodeEvent,
        ServiceChannel,
    )
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.stream import SessionStream

T = TypeVar("T")

ALPHA, BETA, MALLORY = "alpha@localhost", "beta@localhost", "mallory@localhost"
#: Where beta verifies a client's certificate, where it asks for none, where any will do, and where mallory answers.
PORT, OPEN_PORT, ANY_PORT, HOSTILE_PORT = 15000, 15001, 15002, 16000
HEARTBEAT: Final = 15.0
#: After this long nothing of the hostile peer may be left. Seconds, on a clock that jumps.
QUIET: Final = 90.0
#: How long the hostile peer reads on. Seconds.
PATIENCE: Final = 40.0
#: Warnings that one hostile connection may cause: the rate limit of the log lets twenty through.
MOST_WARNINGS: Final = 22
LIMITS: Final = wire.Limits(max_message_size=65536, window=4096, max_channels=4)


class World:
    """Certificates, made once.

    Attributes:
        managers: of all nodes, by name; mutual TLS.
        open_manager: of beta, where it asks for no client certificate.
        any_manager: of beta, where it wants one, and any will do.
        ca: issued all of them.
    """

    def __init__(self) -> None:
        self.ca = ca = CertificateAuthority.create()
        self.managers = {name: manager_of(ca, name) for name in (ALPHA, BETA, MALLORY)}
        self.open_manager = manager_of(ca, BETA, client_auth=ClientAuth.NO_CLIENT_CERT)
        self.any_manager = manager_of(ca, BETA, client_auth=ClientAuth.REQUIRE_ANY_CLIENT_CERT)


class Session:
    """One TLS session of the hostile peer, and what it hears."""

    def __init__(self, stream: SessionStream, nursery: trio.Nursery) -> None:
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
        """Send bytes, until the connection is broken; cut into records as `pieces` does."""
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
            AcceptorOptions(host="localhost", port=ANY_PORT, cert_manager=self.world.any_manager),
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
        """Note what came of the hostile peer, as the node's events tell it."""
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
        # It reads nothing. Not for ever: a connection that is closed cleanly waits for its services.
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

    async def accept(self, attack: Callable[[Session], object], contexts: TLSContexts | None = None) -> None:
        """Beta dials the hostile peer, which does TLS (honestly, without contexts) and then something else."""
        async with trio.open_nursery() as nursery:
            [listener] = await self.network.listen("localhost", HOSTILE_PORT)
            nursery.start_soon(self._dial_out)
            transport = await listener.accept()
            contexts = contexts or await self.world.managers[MALLORY].contexts.receive()
            with suppress(HandshakeError):
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
