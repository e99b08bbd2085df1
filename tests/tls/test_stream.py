"""TLS streams over any transport: what they promise as Trio streams, and what is left when something goes wrong.

Transports are in memory, so that a test decides which byte moves when: `memory` buffers without limit, `lockstep` has
no buffer at all. A few tests repeat on sockets. Who is accepted, and who is told what, is in test_client_auth_matrix
and test_server_verification.
"""

from __future__ import annotations

import random
from array import array
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
import trio
import trio.testing

from trionode._credentials.policy import ClientAuth, TLSPolicy
from trionode._errors import (
    HandshakeError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._handshake.accept import accept_tls
from trionode._handshake.dial import dial_tls
from trionode._tls import stream as tls_stream
from trionode._tls.contexts import TLSContexts
from trionode._tls.handshake import LINGER, client_handshake, server_handshake
from trionode._tls.session import RECORD_SIZE
from trionode._tls.stream import AT_ONCE, FAREWELL, SessionStream
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

HOST = "localhost"
SERVER_GENERATION, CLIENT_GENERATION = 5, 7
#: Every test is bounded by this. Seconds; where the clock is `autojump_clock`, a deadlock is found at once. Tests in
#: which a close is to be heard have that clock, too: by a true one, a machine that pauses may cost the close_notify.
PATIENCE = 30

Transports: TypeAlias = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]
Pair: TypeAlias = tuple[SessionStream, SessionStream]


class Party:
    """The contexts of a server and a client that trust each other, and of two strangers."""

    def __init__(self) -> None:
        ca, stranger = CertificateAuthority.create(), CertificateAuthority.create()
        mutual = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        policy = TLSPolicy(client_cas=ca.pool, client_auth=mutual, root_cas=ca.pool)
        # The strangers trust every peer here: it is always the other side that refuses.
        self.server = TLSContexts.build(SERVER_GENERATION, ca.issue("server@localhost"), policy)
        self.client = TLSContexts.build(CLIENT_GENERATION, ca.issue("client@localhost"), policy)
        self.unknown_server = TLSContexts.build(1, stranger.issue(HOST), policy)
        self.unknown_client = TLSContexts.build(1, stranger.issue(HOST), policy)


@pytest.fixture(scope="module")
def party() -> Party:
    """The contexts of all of them."""
    return Party()


def memory() -> Transports:
    """Two ends with unlimited buffers."""
    return trio.testing.memory_stream_pair()


def lockstep() -> Transports:
    """Two ends without any buffer: a send ends when everything was received."""
    return trio.testing.lockstep_stream_pair()


def sockets() -> Transports:
    """Two ends with the system's buffers."""
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


async def tls_pair(
    party: Party, transports: Transports, *, client_alpn: tuple[str, ...] = (), server_alpn: tuple[str, ...] = ()
) -> Pair:
    """A client and a server whose handshake is done, in this order."""
    streams: dict[str, SessionStream] = {}

    async def serve() -> None:
        streams["server"] = await server_handshake(transports[1], party.server, alpn=server_alpn)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            streams["client"] = await client_handshake(transports[0], party.client, reference=HOST, alpn=client_alpn)
    return streams["client"], streams["server"]


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """This many bytes; fewer only at the end."""
    data = bytearray()
    while len(data) < count and (piece := await stream.receive_some(count - len(data))):
        data += piece
    return bytes(data)


async def receive_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end."""
    return b"".join([bytes(piece) async for piece in stream])


@pytest.fixture(params=[memory, lockstep], ids=["memory", "lockstep"])
def make_transports(request: pytest.FixtureRequest) -> Callable[[], Transports]:
    """Makes a pair of in-memory transports of one kind."""
    maker: Callable[[], Transports] = request.param
    return maker


@pytest.fixture(params=[memory, lockstep, sockets], ids=["memory", "lockstep", "sockets"])
def make_any_transports(request: pytest.FixtureRequest) -> Callable[[], Transports]:
    """Makes a pair of transports of one kind, sockets included: not for tests with a mock clock."""
    maker: Callable[[], Transports] = request.param
    return maker


class Meddler(trio.abc.HalfCloseableStream):
    """A transport that records what passes, and fails or stalls where a test wants it to."""

    def __init__(self, inner: trio.abc.HalfCloseableStream) -> None:
        self.inner = inner
        self.sent = bytearray()
        self.closings = 0
        self.send_fails = False
        #: Sends stall, for good, once this many bytes went through; None lets everything through.
        self.send_credit: int | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send what the test lets through."""
        if self.send_fails:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("meddled with")
        passing = bytes(data) if self.send_credit is None else bytes(data)[: self.send_credit]
        self.sent += passing
        await self.inner.send_all(passing)
        if self.send_credit is not None:
            self.send_credit -= len(passing)
            if len(passing) < len(data):
                await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the inner one does."""
        await self.inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Half-close the inner one."""
        await self.inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive from the inner one."""
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        """Count, and close the inner one."""
        self.closings += 1
        await self.inner.aclose()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.closings > 0


# As Trio streams ----------------------------------------------------------------------------------------------------


async def test_a_tls_stream_is_a_two_way_stream(
    party: Party, make_transports: Callable[[], Transports], autojump_clock: trio.testing.MockClock
) -> None:
    """A SessionStream passes Trio's own conformance kit for two-way streams."""

    async def make() -> Pair:
        return await tls_pair(party, make_transports())

    async def make_clogged() -> Pair:
        return await tls_pair(party, lockstep())

    with trio.fail_after(PATIENCE):
        await trio.testing.check_two_way_stream(make, make_clogged)


async def test_a_tls_stream_is_a_half_closeable_stream(
    party: Party, make_transports: Callable[[], Transports], autojump_clock: trio.testing.MockClock
) -> None:
    """A SessionStream passes Trio's own conformance kit for streams of which one direction can be closed."""

    async def make() -> Pair:
        return await tls_pair(party, make_transports())

    async def make_clogged() -> Pair:
        return await tls_pair(party, lockstep())

    with trio.fail_after(PATIENCE):
        await trio.testing.check_half_closeable_stream(make, make_clogged)


# Facts --------------------------------------------------------------------------------------------------------------


async def test_both_ends_know_whom_they_talk_to_and_how(
    party: Party, make_any_transports: Callable[[], Transports]
) -> None:
    """When the handshake is done, both ends have the peer's leaf, that it was verified, the version and the cipher."""
    transports = make_any_transports()
    client, server = await tls_pair(party, transports, client_alpn=("b", "a"), server_alpn=("a", "b"))
    async with client, server:
        assert client.peer_certificate == party.server.key_pair.certificate
        assert server.peer_certificate == party.client.key_pair.certificate
        assert client.verified
        assert server.verified
        assert (client.generation, server.generation) == (CLIENT_GENERATION, SERVER_GENERATION)
        assert client.session.tls_version == server.session.tls_version == "TLSv1.3"
        assert client.session.cipher == server.session.cipher
        assert (client.session.cipher or "").startswith("TLS_")
        assert client.session.alpn == server.session.alpn == "a", "the server's order decides"
        assert client.peer_address is server.peer_address is None, "no address where there is none"
        assert (client.transport_stream, server.transport_stream) == transports
        assert "generation 7" in repr(client)
        assert "trionode://server@localhost" in repr(client)


async def test_without_alpn_none_is_agreed_on(party: Party) -> None:
    """A client that offers nothing, or a server that names nothing, leaves `alpn` at None."""
    for client_alpn, server_alpn in (((), ()), ((), ("a",)), (("a",), ())):
        client, server = await tls_pair(party, memory(), client_alpn=client_alpn, server_alpn=server_alpn)
        async with client, server:
            assert client.session.alpn is server.session.alpn is None


async def test_both_ends_export_the_same_secret(party: Party) -> None:
    """Keying material is equal at both ends, and differs by label, context and session."""
    client, server = await tls_pair(party, memory())
    other, its_server = await tls_pair(party, memory())
    async with client, server, other, its_server:
        secret = client.export_keying_material(b"EXPORTER-test", 32, b"context")
        assert len(secret) == 32
        assert server.export_keying_material(b"EXPORTER-test", 32, b"context") == secret
        assert client.export_keying_material(b"EXPORTER-else", 32, b"context") != secret
        assert client.export_keying_material(b"EXPORTER-test", 32, b"other") != secret
        assert client.export_keying_material(b"EXPORTER-test", 32) != secret
        assert other.export_keying_material(b"EXPORTER-test", 32, b"context") != secret


# Bytes --------------------------------------------------------------------------------------------------------------


async def test_big_messages_arrive_intact(party: Party, make_any_transports: Callable[[], Transports]) -> None:
    """16 MiB each way at once arrive as they were sent."""
    client, server = await tls_pair(party, make_any_transports())
    question, answer = (random.Random(seed).randbytes(16 * 1024 * 1024) for seed in (1, 2))
    received: dict[str, bytes] = {}

    async def receive(who: str, stream: SessionStream) -> None:
        received[who] = await receive_exactly(stream, len(question))

    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(receive, "server", server)
            nursery.start_soon(receive, "client", client)
            nursery.start_soon(client.send_all, question)
            nursery.start_soon(server.send_all, answer)
    assert received["server"] == question
    assert received["client"] == answer


async def test_buffers_are_given_back_between_transfers(party: Party) -> None:
    """OpenSSL's are large after a transfer, and new once they were given back; nothing is lost, either way."""
    client, server = await tls_pair(party, memory())
    data = random.Random(3).randbytes(400_000)
    async with client, server:
        with trio.fail_after(PATIENCE):
            await server.send_all(b"tickets go before it")
            await receive_exactly(client, 20)
            for sender, receiver in ((client, server), (server, client), (client, server)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sender.send_all, data)
                    assert await receive_exactly(receiver, len(data)) == data
                for stream in (sender, receiver):
                    stream.session.decrypt()  # that was all, it says
                    assert stream.swollen
                    before = buffers(stream)
                    stream.relieve()
                    assert not set(before) & set(buffers(stream))
                    before = buffers(stream)
                    stream.relieve()
                    assert buffers(stream) == before


async def test_a_stream_that_waits_on_a_socket_gives_them_back(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, where its owner leaves it to it; what comes later is whole."""
    monkeypatch.setattr(tls_stream, "RELIEF", 0.001)
    client, server = await tls_pair(party, sockets())
    server.relieves_itself = True
    data = random.Random(4).randbytes(100_000)
    async with client, server:
        with trio.fail_after(PATIENCE):
            await server.send_all(b"tickets go before it")
            await receive_exactly(client, 20)
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.send_all, data)
                    assert await receive_exactly(server, len(data)) == data
                assert server.swollen
                before = buffers(server)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive_exactly, server, 5)
                    while set(before) & set(buffers(server)):  # noqa: ASYNC110 -- nothing tells
                        await trio.sleep(0.001)
                    await client.send_all(b"again")


async def test_buffers_with_something_in_them_are_kept(party: Party) -> None:
    """Half a record that has come, and an end that has: nothing of it is forgotten."""
    near, far = memory()
    client_wire = Meddler(near)
    client, server = await tls_pair(party, (client_wire, far))
    async with server:
        with trio.fail_after(PATIENCE):
            await client.send_all(bytes(50_000))
            assert len(await receive_exactly(server, 50_000)) == 50_000
            client_wire.send_credit = 30
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_truncation, server)
                nursery.start_soon(client.send_all, bytes(1000))
                await trio.testing.wait_all_tasks_blocked()
                before = buffers(server)
                server.relieve()
                assert buffers(server) == before
                nursery.cancel_scope.cancel()
            await near.aclose()
            await expect_truncation(server)
            server.relieve()
            assert buffers(server) == before
            await expect_truncation(server)


async def expect_truncation(stream: SessionStream) -> None:
    """The transport ends in the middle."""
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


def buffers(stream: SessionStream) -> tuple[Any, Any]:
    """The BIOs that OpenSSL reads from and writes to."""
    connection: Any = stream.session._connection
    return connection._into_ssl, connection._from_ssl


async def test_every_kind_of_buffer_is_sent_whole(party: Party) -> None:
    """Bytes, bytearrays and memoryviews are sent byte by byte, whatever a view's items are, and left unlocked."""
    client, server = await tls_pair(party, memory())
    numbers = array("I", range(1000))
    growing = bytearray(b"bytearray")
    buffers = (b"bytes", growing, memoryview(b"a view")[2:], memoryview(numbers), b"")
    async with client, server:
        with trio.fail_after(PATIENCE):
            for buffer in buffers:
                await client.send_all(buffer)
                expected = bytes(buffer)
                assert await receive_exactly(server, len(expected)) == expected
    growing += b"; a buffer that is still exported cannot grow"


async def test_the_senders_buffer_is_free_when_the_send_returns(party: Party) -> None:
    """What is changed in a buffer after `send_all` returned does not change what the peer gets."""
    client, server = await tls_pair(party, memory())
    buffer = bytearray(b"as it was")
    async with client, server:
        with trio.fail_after(PATIENCE):
            await client.send_all(buffer)
            buffer[:] = b"different"
            assert await server.receive_some() == b"as it was"


@pytest.mark.parametrize("limit", [1, 5, 16 * 1024, 64 * 1024, 10**9])
async def test_a_receive_yields_at_most_what_was_asked_for(party: Party, limit: int) -> None:
    """`receive_some(n)` never yields more than n bytes, and what is left comes with the next calls."""
    client, server = await tls_pair(party, memory())
    message = random.Random(limit).randbytes(min(limit * 50, 200_000))
    async with client, server:
        with trio.fail_after(PATIENCE):
            await client.send_all(message)
            await client.send_eof()
            pieces: list[bytes] = []
            while piece := await server.receive_some(limit):
                pieces.append(piece)
    assert max(map(len, pieces)) <= limit
    assert b"".join(pieces) == message


async def test_a_limit_below_one_is_refused(party: Party) -> None:
    """`receive_some(0)` is an error, not an end of stream."""
    client, server = await tls_pair(party, memory())
    async with client, server:
        for limit in (0, -1):
            with pytest.raises(ValueError, match="max_bytes"):
                await client.receive_some(limit)


async def test_bytes_that_came_with_the_clients_last_flight_are_not_lost(party: Party) -> None:
    """What a client sends before its server finished the handshake is received from the stream, transport idle."""
    near, far = memory()
    client_wire = Meddler(near)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            arrived = trio.Event()

            async def serve() -> SessionStream:
                # All of it, last flight and data, in one piece.
                first = await far.receive_some()
                session_wire = Meddler(far)

                async def late_receive(max_bytes: int | None = None) -> bytes:
                    await arrived.wait()
                    return bytes(await far.receive_some(max_bytes))

                session_wire.receive_some = late_receive  # type: ignore[method-assign]
                return await server_handshake(session_wire, party.server, received=bytes(first))

            async def dial() -> None:
                client = await client_handshake(client_wire, party.client, reference=HOST)
                await client.send_all(b"early bird")
                await client.send_eof()
                arrived.set()
                await client.aclose()

            nursery.start_soon(dial)
            server = await serve()
            async with server:
                assert await receive_to_end(server) == b"early bird"


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_a_clean_end_is_an_end(party: Party, make_any_transports: Callable[[], Transports]) -> None:
    """After the peer's close_notify a receive yields what was sent before it, then b"" for ever."""
    client, server = await tls_pair(party, make_any_transports())
    async with client, server:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def say_and_close() -> None:
                    await client.send_all(b"that is all")
                    await client.send_eof()

                nursery.start_soon(say_and_close)
                assert await receive_to_end(server) == b"that is all"
                assert await server.receive_some() == b""
                assert await server.receive_some(1) == b""


async def test_a_transport_that_ends_without_close_notify_is_a_truncation(
    party: Party, make_any_transports: Callable[[], Transports]
) -> None:
    """An end without close_notify yields what came whole before it, then raises BrokenResourceError, each time."""
    client, server = await tls_pair(party, make_any_transports())
    async with server:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def say_and_vanish() -> None:
                    await client.send_all(b"not all")
                    await client.transport_stream.aclose()

                nursery.start_soon(say_and_vanish)
                assert await receive_exactly(server, 7) == b"not all"
                for _ in range(3):
                    with pytest.raises(trio.BrokenResourceError, match="without") as caught:
                        await server.receive_some()
                    cause = caught.value.__cause__
                    assert type(cause) is HandshakeError
                    assert cause.reason == "truncated"
    await client.aclose()


async def test_a_record_cut_in_the_middle_is_a_truncation(party: Party) -> None:
    """A transport that ends inside a record yields nothing of that record and raises BrokenResourceError."""
    near, far = memory()
    client_wire = Meddler(near)
    client, server = await tls_pair(party, (client_wire, far))
    client_wire.send_credit = 30
    async with server:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, bytes(1000))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await near.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()


@pytest.mark.parametrize("make_any_transports", [memory, sockets], ids=["memory", "sockets"])
async def test_half_closing_twice_loses_nothing(party: Party, make_any_transports: Callable[[], Transports]) -> None:
    """`send_eof` is idempotent, and what the peer sent before or sends after it is received."""
    client, server = await tls_pair(party, make_any_transports())
    async with client, server:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def answer() -> None:
                    for number in range(5):
                        await server.send_all(b"%d;" % number * 1000)
                    assert await receive_to_end(server) == b""
                    await server.send_all(b"after")
                    await server.send_eof()

                nursery.start_soon(answer)
                # The session holds records that are not decrypted yet.
                assert await client.receive_some(1) == b"0"
                await client.send_eof()
                await client.send_eof()
                rest = await receive_to_end(client)
    assert rest == b"".join(b"%d;" % number * 1000 for number in range(5))[1:] + b"after"


async def test_nothing_is_sent_after_half_closing(party: Party) -> None:
    """After `send_eof` a send raises ClosedResourceError, and closing with data unread adds nothing on the wire."""
    near, far = memory()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    async with client, server:
        for _ in range(3):
            await server.send_all(b"unread")
        assert await client.receive_some(1) == b"u"
        await client.send_eof()
        sent = bytes(wire.sent)
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"too late")
        await client.aclose()
    assert bytes(wire.sent) == sent


# Closing ------------------------------------------------------------------------------------------------------------


async def test_closing_says_goodbye_and_closes_the_transport(
    party: Party, make_transports: Callable[[], Transports], autojump_clock: trio.testing.MockClock
) -> None:
    """`aclose` gives the peer a close_notify where it is reading, closes the transport, and may be repeated."""
    near, far = make_transports()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    with trio.fail_after(PATIENCE):
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            assert await receive_to_end(server) == b""
    assert wire.closed
    for _ in range(3):
        with trio.testing.assert_checkpoints():
            await client.aclose()
    for attempt in (partial(client.send_all, b"x"), client.send_eof, client.wait_send_all_might_not_block):
        with pytest.raises(trio.ClosedResourceError):
            await attempt()
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()


async def test_closing_never_waits_for_the_peer(party: Party, autojump_clock: trio.testing.MockClock) -> None:
    """With a peer that never reads and a transport without room, `aclose` gives up on the close_notify and closes."""
    near, far = lockstep()
    wire = Meddler(near)
    client, _ = await tls_pair(party, (wire, far))
    started = trio.current_time()
    await client.aclose()
    assert trio.current_time() - started <= FAREWELL
    assert wire.closed


async def test_closing_with_full_buffers_never_waits(party: Party) -> None:
    """On a socket whose buffers are full because the peer never reads, `aclose` returns and the socket is closed."""
    near, far = sockets()
    client, server = await tls_pair(party, (near, far))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def fill() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await client.send_all(bytes(64 * 1024 * 1024))

            nursery.start_soon(fill)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await client.aclose()
    assert isinstance(near, trio.SocketStream)
    assert near.socket.fileno() == -1
    await trio.aclose_forcefully(server)


async def test_a_cancelled_close_closes(party: Party, make_transports: Callable[[], Transports]) -> None:
    """`aclose` in a cancelled scope closes the transport all the same."""
    near, far = make_transports()
    wire = Meddler(near)
    client, _ = await tls_pair(party, (wire, far))
    with trio.fail_after(PATIENCE):
        await trio.aclose_forcefully(client)
    assert wire.closed


async def test_closing_ends_what_other_tasks_wait_for(
    party: Party, make_any_transports: Callable[[], Transports]
) -> None:
    """A send and a receive that wait in other tasks raise ClosedResourceError when the stream is closed."""
    client, server = await tls_pair(party, make_any_transports())

    async def waiting_receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()

    async def waiting_send() -> None:
        # Without a limit on the transport's buffer there is nothing to wait for.
        with suppress(trio.ClosedResourceError):
            await client.send_all(bytes(8 * 1024 * 1024))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting_receive)
            nursery.start_soon(waiting_send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await client.aclose()
        await trio.aclose_forcefully(server)


# One task at a time -------------------------------------------------------------------------------------------------


async def test_one_task_sends_at_a_time(party: Party) -> None:
    """While one task sends, a second one's send, half-close or wait raises BusyResourceError and harms nothing."""
    client, server = await tls_pair(party, lockstep())
    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"first")
            await trio.testing.wait_all_tasks_blocked()
            for attempt in (partial(client.send_all, b"second"), client.send_eof, client.wait_send_all_might_not_block):
                with pytest.raises(trio.BusyResourceError):
                    await attempt()
            assert await receive_exactly(server, 5) == b"first"


async def test_one_task_receives_at_a_time(party: Party) -> None:
    """While one task receives, a second one's receive raises BusyResourceError and harms nothing."""
    client, server = await tls_pair(party, memory())
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await client.receive_some())

    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await client.receive_some()
            await server.send_all(b"for the first")
    assert received == [b"for the first"]


async def test_sending_and_receiving_do_not_disturb_each_other(party: Party) -> None:
    """One task sends and another receives on the same stream, in both ends at once, and every byte arrives in order."""
    client, server = await tls_pair(party, lockstep())
    numbers = b"".join(b"%d," % number for number in range(3000))
    received: list[bytes] = []

    async def send(stream: SessionStream) -> None:
        for start in range(0, len(numbers), 7):
            await stream.send_all(numbers[start : start + 7])
        await stream.send_eof()

    async def receive(stream: SessionStream) -> None:
        received.append(await receive_to_end(stream))

    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:
            for stream in (client, server):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream)
    assert received == [numbers, numbers]


# When sending breaks ------------------------------------------------------------------------------------------------


async def test_a_failed_send_does_not_break_receiving(party: Party) -> None:
    """After the transport refused a send, everything that the peer sent can still be received, to its clean end."""
    near, far = memory()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    await server.send_all(b"last words")
    await server.send_eof()
    wire.send_fails = True
    with trio.fail_after(PATIENCE):
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await client.send_all(b"x")
        assert await receive_to_end(client) == b"last words"
        await client.aclose()
        await server.aclose()


async def test_a_send_torn_by_cancellation_breaks_that_direction_alone(party: Party) -> None:
    """A send cancelled half-way: later sends raise BrokenResourceError, receiving goes on, the peer sees no end."""
    near, far = memory()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    wire.send_credit = 100
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(1000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        wire.send_credit = None
        torn = bytes(wire.sent)
        for attempt in (partial(client.send_all, b"x"), client.send_eof, client.wait_send_all_might_not_block):
            with pytest.raises(trio.BrokenResourceError, match="half-way"):
                await attempt()
        for number in range(3):
            await server.send_all(b"%d" % number)
            assert await client.receive_some() == b"%d" % number
        await client.aclose()
        assert bytes(wire.sent) == torn, "nothing may follow a torn record, no close_notify either"
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
        await trio.aclose_forcefully(server)


async def test_a_half_close_torn_by_cancellation_breaks_that_direction(party: Party) -> None:
    """A `send_eof` cancelled half-way is never taken for a clean end by the peer."""
    near, far = memory()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    wire.send_credit = 5
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_eof)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        wire.send_credit = None
        with pytest.raises(trio.BrokenResourceError):
            await client.send_eof()
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
        await trio.aclose_forcefully(server)


async def test_a_send_cancelled_before_its_first_byte_is_harmless(
    party: Party, make_transports: Callable[[], Transports]
) -> None:
    """A send or half-close in a cancelled scope sends nothing, and the stream works on."""
    near, far = make_transports()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))
    before = len(wire.sent)
    for attempt in (partial(client.send_all, b"never"), partial(client.send_all, b""), client.send_eof):
        with trio.CancelScope() as scope:
            scope.cancel()
            await attempt()
        assert scope.cancelled_caught
    assert len(wire.sent) == before
    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"but this")
            assert await server.receive_some() == b"but this"


async def test_a_cancelled_receive_loses_nothing(party: Party, make_any_transports: Callable[[], Transports]) -> None:
    """However often and wherever receives are cancelled, every byte arrives, once and in order."""
    client, server = await tls_pair(party, make_any_transports())
    chance = random.Random(20)
    message = chance.randbytes(300_000)
    received = bytearray()
    cancelled = 0
    with trio.fail_after(PATIENCE):
        async with client, server, trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(message), 3000):
                    await client.send_all(message[start : start + 3000])
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(send)
            while len(received) < len(message):
                limit = chance.choice([1, 100, 5000, None])

                async def receive(limit: int | None = limit) -> None:
                    nonlocal received
                    received += await server.receive_some(limit)

                cancelled += await cancelled_at_step(chance.randrange(10), receive)
    assert received == message
    assert cancelled, "no receive was ever cancelled: the test has shown nothing"


# Cancelling at a chosen checkpoint ----------------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task yields for the n-th time: at its n-th checkpoint, whatever that is."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self.task, self.scope, self.steps = task, scope, steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step of the task."""
        if task is self.task:
            self.steps -= 1
            if self.steps == 0:
                self.scope.cancel()


async def cancelled_at_step(steps: int, operation: Callable[[], Awaitable[object]]) -> bool:
    """Run an operation and cancel it at its n-th checkpoint (0: before it begins); whether that stopped it."""
    with trio.CancelScope() as scope:
        if steps == 0:
            scope.cancel()
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


@contextmanager
def expecting_anything() -> Iterator[None]:
    """The other side of a handshake that is meant to go wrong: how that ends there is not the point."""
    with suppress(HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError):
        yield


def taking(contexts: TLSContexts) -> trio.abc.ReceiveChannel[TLSContexts]:
    """A channel with one item to take."""
    send, receive = trio.open_memory_channel[TLSContexts](1)
    send.send_nowait(contexts)
    return receive


async def accept(transport: trio.abc.Stream, contexts: TLSContexts) -> SessionStream:
    """The server side, from the first byte on."""
    return await accept_tls(transport, taking(contexts), alpn=(), handshake_timeout=PATIENCE)


async def dial(transport: trio.abc.Stream, contexts: TLSContexts) -> SessionStream:
    """The client side, from the connection on."""
    return await dial_tls(
        transport,
        taking(contexts),
        host=HOST,
        server_name=None,
        alpn=(),
        insecure_skip_verify=False,
        handshake_timeout=PATIENCE,
    )


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("verdict", ["accepts", "refuses"])
async def test_a_handshake_cancelled_anywhere_closes_its_transport(
    party: Party, make_any_transports: Callable[[], Transports], side: str, verdict: str
) -> None:
    """Cancelled at any of its checkpoints, while it refuses its peer included, a handshake closes its transport."""
    refuses = verdict == "refuses"
    for steps in range(1000):
        near, far = make_any_transports()
        wire = Meddler(near)
        outcome: list[SessionStream | HandshakeError] = []

        async def under_test(wire: Meddler = wire, outcome: list[SessionStream | HandshakeError] = outcome) -> None:
            try:
                stream = await (accept(wire, party.server) if side == "server" else dial(wire, party.client))
                outcome.append(stream)
            except HandshakeError as exc:
                outcome.append(exc)

        async def other_side(far: trio.abc.Stream = far) -> None:
            with expecting_anything():
                if side == "server":
                    stream = await dial(far, party.unknown_client if refuses else party.client)
                else:
                    stream = await accept(far, party.unknown_server if refuses else party.server)
                async with stream:
                    await stream.receive_some()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other_side)
                cancelled = await cancelled_at_step(steps, under_test)
                assert cancelled is not bool(outcome)
                if refuses or cancelled:
                    assert wire.closed
                for stream in outcome:
                    if isinstance(stream, SessionStream):
                        assert not refuses
                        assert not wire.closed
                        await stream.aclose()
                    else:
                        assert isinstance(stream, PeerUnverifiedError)
                        assert refuses
        if not cancelled:
            break
    else:
        pytest.fail("never got through without being cancelled")
    assert steps > 2, "hardly a checkpoint was tried"


# Handshakes that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize(
    ("first_words", "text"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "That was plain HTTP, on a TLS port", id="plain HTTP"),
        pytest.param(b"220 mail.example ESMTP\r\n", "wrong version number", id="plain text"),
        pytest.param(bytes(500), "TLS", id="zeros"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", "TLS", id="a handshake record with nonsense in it"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(70_000), "TLS", id="a record longer than allowed"),
    ],
)
async def test_a_peer_that_speaks_something_else_is_told_from_one_that_was_refused(
    party: Party, autojump_clock: trio.testing.MockClock, side: str, first_words: bytes, text: str
) -> None:
    """Nonsense is a HandshakeError of stage tls whose cause is a RemoteProtocolError, and the transport is closed."""
    near, far = memory()
    wire = Meddler(near)
    await far.send_all(first_words)
    with trio.fail_after(PATIENCE), pytest.raises(HandshakeError, match=text) as caught:
        await (accept(wire, party.server) if side == "server" else dial(wire, party.client))
    assert type(caught.value) is HandshakeError
    assert caught.value.stage is Stage.TLS
    assert caught.value.generation == (SERVER_GENERATION if side == "server" else CLIENT_GENERATION)
    assert isinstance(caught.value.__cause__, RemoteProtocolError)
    assert wire.closed


@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_peer_that_breaks_off_is_a_broken_resource(
    party: Party, autojump_clock: trio.testing.MockClock, side: str
) -> None:
    """A peer that goes away within the handshake: HandshakeError of stage tls, its cause a BrokenResourceError."""
    near, far = memory()
    wire = Meddler(near)
    if side == "server":
        await far.send_all(b"\x16\x03\x01")
    await far.aclose()
    with trio.fail_after(PATIENCE), pytest.raises(HandshakeError) as caught:
        await (accept(wire, party.server) if side == "server" else dial(wire, party.client))
    assert type(caught.value) is HandshakeError
    assert caught.value.stage is Stage.TLS
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    assert wire.closed


async def test_a_client_that_never_says_a_word_is_silent(party: Party) -> None:
    """A client that comes and goes, or whose connection breaks at once, has the reason `silent` and took nothing."""
    for end in ("closed", "broken"):
        near, far = memory()
        wire = Meddler(near)
        channel = taking(party.server)
        if end == "broken":

            async def fail(max_bytes: int | None = None) -> bytes:
                await trio.lowlevel.checkpoint()
                raise trio.BrokenResourceError("reset by peer")

            wire.receive_some = fail  # type: ignore[method-assign]
        await far.aclose()
        with trio.fail_after(PATIENCE), pytest.raises(HandshakeError) as caught:
            await accept_tls(wire, channel, alpn=(), handshake_timeout=PATIENCE)
        assert caught.value.reason == "silent"
        assert caught.value.generation is None
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
        assert wire.closed
        assert channel.statistics().current_buffer_used == 1  # type: ignore[attr-defined]


async def test_a_handshake_whose_sends_fail_reports_what_the_peer_said(
    party: Party, autojump_clock: trio.testing.MockClock
) -> None:
    """When the transport refuses our flight because the peer has gone, its alert, already here, is what is reported."""
    near, far = memory()
    wire = Meddler(near)
    # A fatal alert in the clear, as a server without TLS 1.3 sends it: level 2, protocol_version (70).
    await far.send_all(b"\x15\x03\x03\x00\x02\x02\x46")
    wire.send_fails = True
    with trio.fail_after(PATIENCE), pytest.raises(PeerRejectedError, match="protocol version") as caught:
        await dial(wire, party.client)
    assert caught.value.code is RejectionCode.PROTOCOL_VERSION
    assert caught.value.presented == party.client.key_pair.certificate
    assert wire.closed


async def test_a_handshake_whose_sends_fail_without_a_word_from_the_peer_is_broken(
    party: Party, autojump_clock: trio.testing.MockClock
) -> None:
    """When a send fails and nothing comes, the HandshakeError's cause is the transport's BrokenResourceError."""
    near, far = memory()
    wire = Meddler(near)
    wire.send_fails = True
    await far.aclose()
    with trio.fail_after(PATIENCE), pytest.raises(HandshakeError, match="meddled with") as caught:
        await dial(wire, party.client)
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    assert wire.closed


async def test_a_client_whose_last_flight_fails_is_broken(party: Party) -> None:
    """A transport that breaks under the client's last flight: no stream, a HandshakeError, the transport closed."""
    near, far = memory()
    wire = Meddler(near)
    receive = wire.receive_some

    async def receive_and_fail(max_bytes: int | None = None) -> bytes:
        data = await receive(max_bytes)
        wire.send_fails = True
        return data

    wire.receive_some = receive_and_fail  # type: ignore[method-assign]

    async def serve() -> None:
        with expecting_anything():
            await accept(far, party.server)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(HandshakeError, match="meddled with") as caught:
                await dial(wire, party.client)
            assert caught.value.stage is Stage.TLS
            assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
            assert wire.closed


@pytest.mark.parametrize("side", ["server", "client"])
async def test_refusing_a_peer_that_never_reads_is_bounded(
    party: Party, autojump_clock: trio.testing.MockClock, side: str
) -> None:
    """A refusing side lingers so that its alert arrives, but a peer that neither reads nor closes holds it briefly."""
    near, far = memory()
    wire = Meddler(near)
    raised: list[PeerUnverifiedError] = []
    durations: list[float] = []

    async def refuse() -> None:
        started = trio.current_time()
        try:
            await (accept(wire, party.server) if side == "server" else dial(wire, party.client))
        except PeerUnverifiedError as exc:
            raised.append(exc)
        durations.append(trio.current_time() - started)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            if side == "server":
                # Its handshake is done, as far as it knows, and it does nothing more.
                await dial(far, party.unknown_client)
            else:
                nursery.start_soon(accept, Mute(far), party.unknown_server)
                await trio.sleep(2 * LINGER)
                nursery.cancel_scope.cancel()
    assert [exc.reason for exc in raised] == [UnverifiedReason.UNKNOWN_CA]
    assert durations == [pytest.approx(LINGER)]
    assert wire.closed


class Mute(Meddler):
    """A transport that passes one message on, then never receives again and never closes."""

    heard = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive once."""
        if self.heard:
            await trio.sleep_forever()
        self.heard = True
        return await super().receive_some(max_bytes)


# Garbage ------------------------------------------------------------------------------------------------------------

GARBAGE: Final = {
    "a forged record": b"\x17\x03\x03\x00\x20" + bytes(32),
    "a record too short": b"\x17\x03\x03\x00\x01\x00",
    "a record too long": b"\x17\x03\x03\xff\xff" + bytes(70_000),
    "plain text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_after_the_handshake_breaks_the_stream_and_the_peer_is_told(
    party: Party, autojump_clock: trio.testing.MockClock, garbage: bytes
) -> None:
    """Bytes that are no TLS: what came before them is yielded, then BrokenResourceError; the peer gets the alert."""
    near, far = memory()
    client, server = await tls_pair(party, (near, far))
    with trio.fail_after(PATIENCE):
        await server.send_all(b"sound")
        await far.send_all(garbage)
        assert await client.receive_some() == b"sound"
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.receive_some()
            assert type(caught.value.__cause__) is HandshakeError
            assert isinstance(caught.value.__cause__.__cause__, RemoteProtocolError)
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match="refused us with the TLS alert") as told:
            await server.receive_some()
        assert isinstance(told.value.__cause__, PeerRejectedError)
        assert told.value.__cause__.presented == party.server.key_pair.certificate
        await client.aclose()
        await server.aclose()


async def test_an_alert_that_the_peer_does_not_read_holds_nobody(
    party: Party, autojump_clock: trio.testing.MockClock
) -> None:
    """Flushing the alert for garbage is bounded, on a transport without any room too."""
    near, far = lockstep()
    client, _ = await tls_pair(party, (near, far))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.send_all, GARBAGE["a forged record"])
            started = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            assert trio.current_time() - started <= FAREWELL
        await client.aclose()


async def test_a_transport_that_breaks_breaks_the_stream(party: Party) -> None:
    """The transport's own BrokenResourceError comes out of a receive as it is, and the stream can be closed."""
    near, far = memory()
    wire = Meddler(near)
    client, server = await tls_pair(party, (wire, far))

    async def fail(max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("reset by peer")

    wire.receive_some = fail  # type: ignore[method-assign]
    with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
        await client.receive_some()
    await client.aclose()
    assert wire.closed
    await server.aclose()


# At once --------------------------------------------------------------------------------------------------------------


async def fill(stream: SessionStream) -> int:
    """Send at once until the socket takes no more; how many bytes that were."""
    sent = 0
    while stream.send_at_once(bytes(RECORD_SIZE)):
        sent += RECORD_SIZE
        await trio.lowlevel.checkpoint()
    return sent


@pytest.mark.parametrize("then", ["send_all", "nothing more", "send_eof"])
async def test_what_goes_at_once_goes_in_order(party: Party, then: str) -> None:
    """What the socket does not take goes ahead of whatever is sent next, so that not a byte is lost or out of order."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with client, server, trio.open_nursery() as nursery:
            sent = await fill(client)
            assert not client.send_at_once(b"later")

            async def go_on() -> None:
                if then == "send_all":
                    await client.send_all(b"end")
                elif then == "nothing more":
                    await client.send_all(b"")
                elif then == "send_eof":
                    await client.send_eof()

            nursery.start_soon(go_on)
            received = await receive_exactly(server, sent + (3 if then == "send_all" else 0))
            assert received == bytes(sent) + (b"end" if then == "send_all" else b"")
            if then == "send_eof":
                assert await server.receive_some() == b""


async def test_a_farewell_goes_behind_what_the_socket_did_not_take(party: Party) -> None:
    """Closing does not wait: what is cut off there is not taken for an end."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with client, server:
            await fill(client)
            await client.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await receive_to_end(server)


@pytest.mark.parametrize("how", ["said goodbye", "broke off"])
async def test_whether_there_is_news(party: Party, how: str) -> None:
    """What the peer said and was not received, in part or at all; and that it left. In memory that cannot be told."""
    news: list[bool] = []
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with client, server:
            news.append(client.has_news)
            await server.send_all(b"more")
            await server.send_all(b"than that")
            news.append(client.has_news)
            assert await client.receive_some(4) == b"more"
            news.append(client.has_news)
            assert await client.receive_some() == b"than that"
            news.append(client.has_news)
            await (server if how == "said goodbye" else server.transport_stream).aclose()
            news.append(client.has_news)
        assert news == [False, True, True, False, True]
        client, server = await tls_pair(party, memory())
        async with client, server:
            assert client.has_news


async def test_last_words_and_the_end_in_one_go(party: Party) -> None:
    """They arrive in order, nothing can be said after them, and saying the end once more sends nothing."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with client, server:
            assert client.send_at_once(b"last words", last=True)
            taken = client.bytes_taken
            assert client.send_ended
            assert not client.send_at_once(b"more")
            with pytest.raises(trio.ClosedResourceError):
                await client.send_all(b"more")
            await client.send_eof()
            assert client.bytes_taken == taken
            assert await receive_to_end(server) == b"last words"
            await server.send_all(b"heard")
            assert await client.receive_some() == b"heard"


async def test_closing_at_once(party: Party) -> None:
    """A socket is closed without waiting, and the peer hears the end; a second time it is closed already."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with server:
            assert client.close_at_once()
            assert client.close_at_once()
            assert await receive_to_end(server) == b""
            assert server.close_at_once()  # the peer has gone
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()


async def test_closing_that_cannot_be_done_at_once(party: Party) -> None:
    """Other transports, or a socket that is full: `aclose` has to do it."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, memory())
        assert not client.close_at_once()
        await client.aclose()
        assert client.close_at_once()
        await server.aclose()
        client, server = await tls_pair(party, sockets())
        async with server:
            await fill(client)
            assert not client.close_at_once()
            assert client.unsent
            await client.aclose()
            assert client.close_at_once()


async def test_what_cannot_go_at_once(party: Party) -> None:
    """Other transports, a stream that is sending, closed or broken, or too much: then nothing is done."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, memory())
        assert not client.send_at_once(b"x")
        await trio.aclose_forcefully(client)
        await trio.aclose_forcefully(server)
        client, server = await tls_pair(party, sockets())
        async with client, server:
            assert not client.send_at_once(bytes(AT_ONCE + 1))
            assert client.send_at_once(b"x")
            assert await server.receive_some() == b"x"
            await trio.aclose_forcefully(server)
            with pytest.raises(trio.BrokenResourceError):
                await fill(client)
            assert not client.send_at_once(b"x")
            with pytest.raises(trio.BrokenResourceError, match=r"an earlier send .* failed: .*(reset by peer|pipe)"):
                await client.send_all(b"x")  # says why, though the failure was another task's


async def test_bytes_taken_are_those_of_the_transport(party: Party) -> None:
    """It grows while a slow reader reads, and by what was encrypted in all."""
    with trio.fail_after(10):
        client, server = await tls_pair(party, sockets())
        async with client, server, trio.open_nursery() as nursery:
            before = client.bytes_taken
            nursery.start_soon(client.send_all, bytes(1_000_000))
            await receive_exactly(server, 1_000_000)
        assert client.bytes_taken - before > 1_000_000
