"""The streams of servers when trust changes: judged again as connections are, kept or closed, and counted meanwhile."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    NetworkOptions,
    NodeOptions,
    PeerUnverifiedError,
    Route,
    StrandedPeers,
    TLSStream,
    TrustRotationError,
    UnverifiedReason,
    open_node,
    open_tls_stream,
    serve_tls,
    serve_tls_listeners,
    wrap_client_stream,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Every test is bounded by this. Seconds.
PATIENCE = 30

MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT


@pytest.fixture
def new_ca() -> CertificateAuthority:
    """The CA to come."""
    return CertificateAuthority.create(common_name="new CA")


@pytest.fixture
def server(ca: CertificateAuthority, new_ca: CertificateAuthority) -> CertAuthManager:
    """A server's manager in an overlap: both CAs are trusted."""
    return CertAuthManager(ca.issue("localhost"), client_cas=ca.pool | new_ca.pool, client_auth=MUTUAL)


@pytest.fixture
def old_client(ca: CertificateAuthority) -> CertAuthManager:
    """A client of the old CA."""
    return CertAuthManager(ca.issue("old.example"), root_cas=ca.pool)


@pytest.fixture
def new_client(ca: CertificateAuthority, new_ca: CertificateAuthority) -> CertAuthManager:
    """A client of the new one."""
    return CertAuthManager(new_ca.issue("new.example"), root_cas=ca.pool)


class Server:
    """An echo server, and what became of its handlers.

    Attributes:
        port: where it listens.
        served: the streams, in order.
        ended: how each handler ended: by an error, or None for the end of its stream.
    """

    def __init__(self) -> None:
        self.port = 0
        self.served: list[TLSStream] = []
        self.ended: list[BaseException | None] = []

    async def echo(self, stream: TLSStream) -> None:
        """The handler."""
        self.served.append(stream)
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError as exc:
            self.ended.append(exc)
        else:
            self.ended.append(None)


@asynccontextmanager
async def serving(manager: Any, **options: Any) -> AsyncIterator[Server]:
    """An echo server for the length of a block."""
    server = Server()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                partial(serve_tls, server.echo, 0, cert_manager=manager, host="127.0.0.1", **options)
            )
            server.port = listener.socket.getsockname()[1]
            yield server
            nursery.cancel_scope.cancel()


async def connected(server: Server, client: CertAuthManager) -> TLSStream:
    """A stream to it, through which something went both ways."""
    stream = await open_tls_stream("127.0.0.1", server.port, cert_manager=client, server_name="localhost")
    assert await works(stream)
    return stream


async def works(stream: TLSStream) -> bool:
    """Whether an echo server is at the other end still."""
    try:
        await stream.send_all(b"hello")
        return await stream.receive_some() == b"hello"
    except trio.BrokenResourceError:
        return False


async def is_cut_off(stream: TLSStream) -> bool:
    """Whether the server has ended it; in the middle of a send of its own there is no close_notify."""
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


# Counting -----------------------------------------------------------------------------------------------------------


async def test_streams_count_until_they_end(
    ca: CertificateAuthority, server: CertAuthManager, old_client: CertAuthManager
) -> None:
    """`live_generations` and `drained` of the server's manager; those of the client's, which only dialled, do not."""
    drained = trio.Event()

    async def wait() -> None:
        await server.drained(1)
        drained.set()

    async with serving(server) as serves, trio.open_nursery() as nursery:
        first = await connected(serves, old_client)
        server.update(ca.issue("localhost"))
        second = await connected(serves, old_client)
        assert server.live_generations == {1: 1, 2: 1}
        assert server.statistics().live_generations == {1: 1, 2: 1}
        assert old_client.live_generations == {}
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not drained.is_set()
        await first.aclose()
        await drained.wait()
        assert server.live_generations == {2: 1}
        await second.aclose()
        await server.drained(2)


async def test_streams_count_for_the_manager_of_their_name(
    ca: CertificateAuthority, old_client: CertAuthManager
) -> None:
    """With several managers by name, each counts its own."""
    one, other = (CertAuthManager(ca.issue("localhost")) for _ in range(2))
    async with serving({"localhost": one, "*": other}) as serves:
        stream = await connected(serves, old_client)
        assert (one.live_generations, other.live_generations) == ({1: 1}, {})
        await stream.aclose()
        await one.drained(1)


# When trust changes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", StrandedPeers)
async def test_by_default_streams_are_kept(
    server: CertAuthManager,
    old_client: CertAuthManager,
    new_client: CertAuthManager,
    new_ca: CertificateAuthority,
    caplog: pytest.LogCaptureFixture,
    asked: StrandedPeers,
) -> None:
    """They never stand in the way of new trust; who could not connect again is logged; `CLOSE` closes them, too."""
    async with serving(server) as serves:
        old, new = await connected(serves, old_client), await connected(serves, new_client)
        [stranded] = server.stranded_by(client_cas=new_ca.pool)
        assert (stranded.name, stranded.pool, stranded.reason) == (None, "client_cas", UnverifiedReason.UNKNOWN_CA)
        assert stranded.certificate == old_client.key_pair.certificate
        assert str(stranded).startswith("a client (CN=old.example")
        server.rotate_trust(client_cas=new_ca.pool, stranded=asked)
        assert await works(new)
        assert await works(old) is (asked is not StrandedPeers.CLOSE)
        await old.aclose()
        await new.aclose()
    [text] = [record.getMessage() for record in caplog.records if record.name == "trionode.security"]
    assert "CN=old.example" in text
    assert ("connection ended" in text) is (asked is StrandedPeers.CLOSE)


async def test_a_server_that_closes(
    server: CertAuthManager, old_client: CertAuthManager, new_client: CertAuthManager, new_ca: CertificateAuthority
) -> None:
    """With `stranded=CLOSE` streams end whatever the rotation says; the handler is told why, the client sees an end."""
    async with serving(server, stranded=StrandedPeers.CLOSE) as serves:
        old, new = await connected(serves, old_client), await connected(serves, new_client)
        server.rotate_trust(client_cas=new_ca.pool)
        assert await is_cut_off(old)
        assert await works(new)
        [error] = serves.ended
        assert error is not None
        assert isinstance(error.__cause__, PeerUnverifiedError)
        assert error.__cause__.reason is UnverifiedReason.UNKNOWN_CA
        assert "no longer trusted" in str(error)
        with pytest.raises(trio.BrokenResourceError, match="no longer trusted"):
            await serves.served[0].send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match="no longer trusted"):
            await serves.served[0].send_eof()
        with pytest.raises(trio.BrokenResourceError, match="no longer trusted"):
            await serves.served[0].wait_send_all_might_not_block()
        assert server.live_generations == {1: 1}
        await old.aclose()
        await new.aclose()


async def test_a_revoked_client_is_cut_off(ca: CertificateAuthority, old_client: CertAuthManager) -> None:
    """In any case, kept or not."""
    server = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=MUTUAL)
    crls = ca.revocation_list(old_client.key_pair)
    async with serving(server) as serves:
        stream = await connected(serves, old_client)
        server.rotate_trust(crls=crls, stranded=StrandedPeers.KEEP)
        assert await is_cut_off(stream)
        await stream.aclose()
        await server.drained(1)
        [error] = serves.ended
        assert error is not None
        assert isinstance(error.__cause__, PeerUnverifiedError)
        assert error.__cause__.reason is UnverifiedReason.REVOKED


async def test_nodes_still_refuse_beside_streams(
    ca: CertificateAuthority, server: CertAuthManager, old_client: CertAuthManager, new_ca: CertificateAuthority
) -> None:
    """What a rotation is refused for is connections of nodes: streams beside them change nothing about that."""
    acceptor = AcceptorOptions(host="127.0.0.1", port=0)
    own = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool | new_ca.pool, client_auth=MUTUAL, root_cas=ca.pool)
    other = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=MUTUAL, root_cas=ca.pool)
    options = NodeOptions(cert_manager=own, network=NetworkOptions(acceptors=[acceptor]))
    async with (
        serving(own) as serves,
        open_node("beta@localhost", options) as beta,
        open_node("alpha@localhost", NodeOptions(cert_manager=other)) as alpha,
    ):
        stream = await connected(serves, old_client)
        host, port = beta.acceptors[0].address
        await alpha.connect("beta@localhost", Route(host=host, port=port))
        with pytest.raises(TrustRotationError) as caught:
            own.rotate_trust(client_cas=new_ca.pool)
        assert [str(peer.name) for peer in caught.value.peers] == ["alpha@localhost"]
        assert await works(stream)
        await stream.aclose()


async def test_a_handshake_under_way_is_judged_when_it_is_done(
    server: CertAuthManager, old_client: CertAuthManager, new_ca: CertificateAuthority
) -> None:
    """It took contexts of the old trust, and finishes after the change: its handler is not even called."""
    async with serving(server) as serves:
        raw = await trio.open_tcp_stream("127.0.0.1", serves.port)
        waiting = trio.Event()
        changed = trio.Event()

        class Hesitant(trio.abc.Stream):
            """Lets the last flight wait."""

            sent = 0

            async def send_all(self, data: Any) -> None:
                self.sent += 1
                if self.sent == 2:
                    waiting.set()
                    await changed.wait()
                await raw.send_all(data)

            async def wait_send_all_might_not_block(self) -> None:
                await raw.wait_send_all_might_not_block()

            async def receive_some(self, max_bytes: int | None = None) -> bytes:
                return bytes(await raw.receive_some(max_bytes))

            async def aclose(self) -> None:
                await raw.aclose()

        async def dial() -> None:
            async with await wrap_client_stream(Hesitant(), "localhost", cert_manager=old_client) as stream:
                assert await is_cut_off(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            await waiting.wait()
            server.rotate_trust(client_cas=new_ca.pool)
            changed.set()
        assert serves.served == []
        await server.drained(1)


async def test_over_a_transport_that_is_no_socket(
    server: CertAuthManager, old_client: CertAuthManager, new_ca: CertificateAuthority
) -> None:
    """A stream that cannot be closed at once is closed by a task; its handler is told the same."""
    near, far = trio.testing.memory_stream_pair()

    class One(trio.abc.Listener[trio.abc.Stream]):
        """One connection."""

        streams = [far]  # noqa: RUF012

        async def accept(self) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            if not self.streams:
                raise trio.ClosedResourceError
            return self.streams.pop()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    serves = Server()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(serve_tls_listeners, serves.echo, [One()], cert_manager=server, stranded=StrandedPeers.CLOSE)
            )
            stream = await wrap_client_stream(near, "localhost", cert_manager=old_client)
            assert await works(stream)
            server.rotate_trust(client_cas=new_ca.pool)
            assert await is_cut_off(stream)
            await stream.aclose()
    [error] = serves.ended
    assert error is not None
    assert isinstance(error.__cause__, PeerUnverifiedError)


async def test_unverified_clients_are_not_judged(
    ca: CertificateAuthority, old_client: CertAuthManager, new_ca: CertificateAuthority
) -> None:
    """Trust was no reason to let them in."""
    open_to_all = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=ClientAuth.REQUEST_CLIENT_CERT)
    async with serving(open_to_all, stranded=StrandedPeers.CLOSE) as serves:
        stream = await connected(serves, old_client)
        open_to_all.rotate_trust(client_cas=new_ca.pool, stranded=StrandedPeers.CLOSE)
        assert await works(stream)
        await stream.aclose()


async def test_refuse_is_no_choice(server: CertAuthManager) -> None:
    """A server's streams are kept or closed; anything else is refused before anything is opened."""
    with pytest.raises(ValueError, match="KEEP or CLOSE, not REFUSE"):
        await serve_tls(Server().echo, 0, cert_manager=server, stranded=StrandedPeers.REFUSE)
    with pytest.raises(TypeError, match="stranded"):
        await serve_tls(Server().echo, 0, cert_manager=server, stranded="keep")  # type: ignore[arg-type]
