"""A connection by itself, without TLS: any frames, at any time, in any state.

An input is a sequence of frames, as a peer might send them. Among them may be frames of kinds that the protocol does
not have, from 0xE0 up: these the connection never sees, they are what happens on its own side meanwhile: a channel is
opened, a message is sent, received or not, a hand-over is committed, time passes. So an input reaches states that no
peer could bring about alone, and still is nothing but bytes.

What has to hold after each: the connection goes on and answers a ping, or it has ended for a documented reason; what it
said can be decoded; no task is left; nothing crashed.
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import trio
import trio.testing

from trionode import (
    Connection,
    EndReason,
    NodeName,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
    ServiceChannel,
    _protocol as wire,
)
from trionode._connection.core import ConnectionCore
from trionode._connection.link import Link
from trionode._connection.owner import ConnectionOwner, ConnectionSettings, protocol_log
from trionode._connection.services import Services
from trionode._identity.peer import established_peer

from .decoders import said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode._connection.end import ConnectionEnd
    from trionode._connection.hand_over import RenewalCause
    from trionode._tls.stream import SessionStream

#: Frames of these kinds are what our own side does, in place of what comes; the channel number says what with.
(
    OPEN_HERE,
    SEND_HERE,
    RECEIVE_HERE,
    CLOSE_HERE,
    RESET_HERE,
    EOF_HERE,
    MOVE_HERE,
    NEW_LINK,
    OLD_LINK,
    DRAIN_HERE,
    WAIT,
) = range(0xE0, 0xEB)
OURS: Final = range(0xE0, 0xF0)

_HEADER: Final = struct.Struct(">II")
KINDS: Final = range(wire.OPEN, wire.RENEW + 1)
_WINDOW, _BUDGET, _LARGEST, _CHANNELS = 4096, 16384, 65536, 4
LIMITS: Final = wire.Limits(max_message_size=_LARGEST, window=_WINDOW, max_channels=_CHANNELS, max_metadata_size=1024)
#: Ends that a peer may bring about, or that our side does in here.
_ENDS: Final = frozenset(
    {
        EndReason.LOST,
        EndReason.PROTOCOL_ERROR,
        EndReason.CLOSED_BY_PEER,
        EndReason.SHUTTING_DOWN,
    }
)
#: What a channel or a service may meet.
_DOCUMENTED: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, RemoteError)


def frame(kind: int, channel: int = 0, payload: bytes = b"") -> bytes:
    """A frame of any kind."""
    return wire.header(kind, channel, len(payload)) + payload


def split(data: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Cut an input into frames: kind, channel, payload, and the whole; what is no frame comes last, as kind -1."""
    at = 0
    while len(data) - at >= _HEADER.size:
        word, channel = _HEADER.unpack_from(data, at)
        stop = at + _HEADER.size + (word & 0xFFFFFF)
        if stop > len(data):
            break
        yield word >> 24, channel, data[at + _HEADER.size : stop], data[at:stop]
        at = stop
    if at < len(data):
        yield -1, 0, b"", data[at:]


class FakeStream:
    """A TLS stream as a connection and its send queue use it, whose other end is an input."""

    unsent = send_ended = send_broken = swollen = False
    records_sent = records_received = 0

    def __init__(self, identifier: bytes) -> None:
        self.transport_stream = self
        self.said = bytearray()
        self.bytes_taken = 0
        self.closed = False
        self._identifier = identifier
        self._pieces: deque[bytes] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Let these bytes arrive."""
        if data:
            self._pieces.append(data)
            self._came.unpark_all()

    def end(self) -> None:
        """The peer's close_notify."""
        self._ended = True
        self._came.unpark_all()

    async def receive_pieces(self, _: int | None = None) -> list[bytes]:
        """As `SessionStream`."""
        await trio.lowlevel.checkpoint()
        while not (self._pieces or self._ended):
            await self._came.park()
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    async def receive_some(self) -> bytes:
        """As `SessionStream`."""
        return b"".join(await self.receive_pieces())

    def send_at_once(self, _: object, *, last: bool = False) -> bool:  # noqa: ARG002 -- as `SessionStream`
        """As `SessionStream`, where the transport is no socket."""
        return False

    def close_at_once(self) -> bool:
        """As `SessionStream`, where the transport is no socket."""
        return False

    async def send_all(self, data: bytes | bytearray) -> None:
        """As `SessionStream`."""
        await trio.lowlevel.checkpoint()
        self.said += data
        self.bytes_taken += len(data)

    async def send_eof(self) -> None:
        """As `SessionStream`."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """As `SessionStream`."""
        self.closed = True
        await trio.lowlevel.checkpoint()

    def export_keying_material(self, _label: bytes, length: int) -> bytes:
        """As `SessionStream`."""
        return self._identifier[:length]


class Case(ConnectionOwner[ConnectionCore]):
    """One input against one connection, which this owns.

    Attributes:
        name: of the node that it stands for.
        generation: what the connection takes for that of its manager.
    """

    name = NodeName.parse("fuzzed@localhost")
    generation: int = 1

    def __init__(self, *, dialled: bool) -> None:
        self._dialled = dialled
        self._first = FakeStream(b"1" * 16)
        self._second: FakeStream | None = None
        self._streams = [self._first]
        self._feeding = self._first
        self._opened: dict[int, ServiceChannel] = {}
        self._ended: list[EndReason] = []
        self.problems: list[str] = []
        self.outcome = ""

    async def run(self, data: bytes) -> None:
        """All of it."""
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as service_nursery, trio.open_nursery() as nursery:
            services = Services(propagate_errors=False, expose_errors=False)
            services.open(service_nursery)
            for name, service in ("echo", self._echo), ("idle", self._idle), ("one", self._one), ("done", self._done):
                services.add(name, service)
            self._core = ConnectionCore(self._link(self._first), self._settings(services), self)
            self._connection = connection = Connection(self._core)
            self._nursery = nursery
            nursery.start_soon(self._core.run)
            for kind, channel, payload, whole in split(data):
                if kind in OURS:
                    await trio.testing.wait_all_tasks_blocked()
                    await self._act(kind, channel, payload)
                else:
                    self._feeding.feed(whole)
            await trio.testing.wait_all_tasks_blocked()
            await self._check_goes_on()
            for stream in self._streams:
                stream.end()
            with trio.move_on_after(300) as patience:
                end = await connection.wait_closed()
                self.outcome = f"{end.reason}: {'' if end.error is None else said(end.error)}"
                self._check_end(end.reason, end.error)
            if patience.cancelled_caught:
                self.problems.append("it does not end")
            await trio.testing.wait_all_tasks_blocked()
            self._check_left(services)
            nursery.cancel_scope.cancel()
            service_nursery.cancel_scope.cancel()
        if trio.lowlevel.current_statistics().tasks_living != tasks:
            self.problems.append("a task is left over")
        for stream in self._streams:
            self._check_said(bytes(stream.said), hello=stream is self._second and self._dialled)

    # What it is made of

    def _link(self, stream: FakeStream) -> Link:
        return Link(
            stream=cast("SessionStream", stream),
            peer=established_peer(
                NodeName.parse("beta@localhost"), certificate=None, verified=False, address=None, incarnation=1
            ),
            dialled=self._dialled,
            mutual=False,
            generation=1,
            peer_generation=1,
            key_pair_fingerprint="",
            peer_limits=LIMITS,
        )

    def _settings(self, services: Services) -> ConnectionSettings:
        return ConnectionSettings(
            services=services,
            limits=LIMITS,
            max_pending_opens=_CHANNELS,
            budget=_BUDGET,
            heartbeat_interval=float("inf"),
            heartbeat_tolerance=1,
            max_records=2**20,
            manager=self,
            protocol_log=protocol_log(),
        )

    # What the connection tells its owner

    def unregister(self, connection: ConnectionCore) -> None:
        """It is in no registry."""

    def connection_ended(self, connection: ConnectionCore, end: ConnectionEnd) -> None:  # noqa: ARG002 -- as its owner
        """Note it."""
        self._ended.append(end.reason)

    def connection_finished(self, connection: ConnectionCore) -> None:
        """Nothing is kept of it."""

    def connection_moved(self, connection: ConnectionCore) -> None:
        """To the second link."""

    def renew(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        """As often as the peer asks for it."""

    async def reauthenticate(self, connection: ConnectionCore) -> None:  # noqa: ARG002 -- as its owner
        """Never comes to its end."""
        await trio.sleep_forever()

    # Services

    async def _echo(self, channel: ServiceChannel) -> None:
        async for message in channel:
            await channel.send(message)

    async def _idle(self, _: ServiceChannel) -> None:
        await trio.sleep_forever()

    async def _one(self, channel: ServiceChannel) -> None:
        await channel.send(await channel.receive())

    async def _done(self, _: ServiceChannel) -> None:
        await trio.lowlevel.checkpoint()

    # What our side does

    async def _act(self, kind: int, number: int, payload: bytes) -> None:
        if kind == OPEN_HERE:
            with suppress(*_DOCUMENTED):
                channel = self._connection.open_channel("echo")
                self._opened[channel._end.number] = channel  # noqa: SLF001 -- inputs speak of channels by number
        elif kind == MOVE_HERE:
            self._move()
        elif kind == NEW_LINK and self._second is not None:
            self._feeding = self._second
        elif kind == OLD_LINK:
            self._feeding = self._first
        elif kind == DRAIN_HERE:
            self._nursery.start_soon(self._drain)
        elif kind == WAIT:
            await trio.sleep(min(number, 100))
        elif number in self._opened:
            self._nursery.start_soon(self._use, kind, self._opened[number], payload)
        await trio.testing.wait_all_tasks_blocked()

    async def _use(self, kind: int, channel: ServiceChannel, payload: bytes) -> None:
        with suppress(*_DOCUMENTED):
            if kind == SEND_HERE:
                await channel.send((payload * 64)[:_LARGEST])
            elif kind == RECEIVE_HERE:
                await channel.receive()
            elif kind == EOF_HERE:
                await channel.send_eof()
            elif kind == CLOSE_HERE:
                await channel.aclose()
            elif kind == RESET_HERE:
                channel.reset()

    async def _drain(self) -> None:
        await self._connection.drain()

    def _move(self) -> None:
        """The hello on a second link is done, and we commit."""
        if self._second is not None:
            return
        core = self._core
        self._second = FakeStream(b"2" * 16)
        self._streams.append(self._second)
        core.hand_over.last_attempt += 1
        link = self._link(self._second)
        with core.hand_over.joining(trio.CancelScope()), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            core.commit(link, follows=core.link)

    # What has to hold

    async def _check_goes_on(self) -> None:
        if self._ended or self._second is not None:
            return
        if not self._core.link.decoder.incomplete:
            before, ping = len(self._first.said), b"goes on?"
            self._first.feed(frame(wire.PING, 0, ping))
            await trio.testing.wait_all_tasks_blocked()
            if frame(wire.PONG, 0, ping) not in self._first.said[before:] and not self._ended:
                self.problems.append("it does not answer")

    def _check_end(self, reason: EndReason, error: Exception | None) -> None:
        if len(self._ended) != 1:
            self.problems.append(f"it ended {len(self._ended)} times")
        if reason not in _ENDS:
            self.problems.append(f"it ended for the reason {reason}")
        elif reason is EndReason.PROTOCOL_ERROR and not isinstance(error, RemoteProtocolError):
            self.problems.append(f"a protocol error is {error!r}")
        elif reason in (EndReason.LOST, EndReason.CLOSED_BY_PEER) and not isinstance(error, trio.BrokenResourceError):
            self.problems.append(f"{reason} with {error!r}")

    def _check_left(self, services: Services) -> None:
        statistics = self._connection.statistics()
        if statistics.channels:
            self.problems.append(f"{statistics.channels} channels are left")
        if services.running != statistics.services:
            self.problems.append(f"{services.running} services run, the connection knows of {statistics.services}")
        if any(not stream.closed for stream in self._streams[:1]):
            self.problems.append("a stream was left open")

    def _check_said(self, said: bytes, *, hello: bool) -> None:
        """What we say is the protocol, whatever the peer says; on a link that joins, behind a hello's last message."""
        if hello:
            said = said[2 + int.from_bytes(said[:2], "big") :]
        decoder = wire.FrameDecoder()
        codes = {wire.RESET: frozenset(RemoteCode), wire.GOODBYE: frozenset(EndReason)}
        try:
            for kind, _, payload in decoder.feed(said):
                if kind in codes and wire.decode(wire.End, payload).code not in codes[kind]:
                    self.problems.append(f"we said {payload!r}")
                if kind == wire.OPEN:
                    wire.decode(wire.Open, payload)
        except RemoteProtocolError as exc:
            self.problems.append(f"what we said is no protocol: {exc}")
