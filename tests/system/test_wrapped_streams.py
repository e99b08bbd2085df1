"""`wrap_client_stream` and `wrap_server_stream`: TLS over streams that are connected already, whatever they are."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    CertAuthManager,
    CertificateError,
    ClientAuth,
    FixedAtStartupError,
    HandshakeError,
    HandshakeTimeoutError,
    PeerUnverifiedError,
    TLSStream,
    UnverifiedReason,
    wrap_client_stream,
    wrap_server_stream,
)
from trionode.testing import MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trionode import CertManager
    from trionode.pki import CertificateAuthority

#: Every test is bounded by this. Seconds.
PATIENCE = 30
DAY = timedelta(days=1)


@pytest.fixture
def mutual(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for both sides of mutual TLS."""
    return CertAuthManager(
        ca.issue("a.example", "localhost"),
        client_cas=ca.pool,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=ca.pool,
    )


async def memory() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Two ends that can half-close."""
    return trio.testing.memory_stream_pair()


async def lockstep() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Two ends without any buffer."""
    return trio.testing.lockstep_stream_pair()


async def sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Two ends of a UNIX socket, where the system has such."""
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


async def network() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Two ends on the memory network."""
    net = MemoryNetwork()
    [listener] = await net.listen("localhost", 0)
    near = await net.connect("localhost", listener.address[1])
    return near, await listener.accept()


KINDS = {"memory": memory, "lockstep": lockstep, "sockets": sockets, "network": network}


@pytest.fixture(params=KINDS)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[trio.abc.Stream, trio.abc.Stream]]:
    """Two ends that are connected, of every kind."""
    near, far = await KINDS[request.param]()
    yield near, far
    await trio.aclose_forcefully(near)
    await trio.aclose_forcefully(far)


async def both(
    near: trio.abc.Stream, far: trio.abc.Stream, client: CertManager, server: CertManager, **options: Any
) -> tuple[TLSStream, TLSStream]:
    """TLS over the two ends: the client's and the server's stream."""
    made: list[TLSStream] = []
    alpn = options.pop("alpn", ())

    async def accept() -> None:
        made.append(await wrap_server_stream(far, cert_manager=server, alpn=alpn))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        stream = await wrap_client_stream(near, "a.example", cert_manager=client, alpn=alpn, **options)
    return stream, made[0]


async def echo_once(near: trio.abc.Stream, far: trio.abc.Stream, words: bytes) -> None:
    """What one end sends the other receives; both at once, for there may be no buffer between them."""
    heard = b""

    async def listen() -> None:
        nonlocal heard
        while len(heard) < len(words):
            heard += await far.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await near.send_all(words)
    assert heard == words


async def test_any_stream_will_do(pair: tuple[trio.abc.Stream, trio.abc.Stream], mutual: CertAuthManager) -> None:
    """Mutual TLS over each kind of stream: verified on both sides, data both ways, the transport is what was given."""
    with trio.fail_after(PATIENCE):
        client, server = await both(*pair, mutual, mutual, alpn=["x/1"])
        assert client._session_stream.transport_stream is pair[0]
        assert server._session_stream.transport_stream is pair[1]
        assert client.verified
        assert server.verified
        assert client.alpn == server.alpn == "x/1"
        await echo_once(client, server, b"there")
        await echo_once(server, client, b"and back" * 10_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            nursery.start_soon(server.aclose)


async def test_tls_within_tls(mutual: CertAuthManager) -> None:
    """A `TLSStream` is a stream: TLS to one server within TLS to another, as through an HTTPS proxy."""
    with trio.fail_after(PATIENCE):
        outer = await both(*trio.testing.memory_stream_pair(), mutual, mutual)
        client, server = await both(*outer, mutual, mutual)
        await echo_once(client, server, b"inside")
        await client.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await outer[0].send_all(b"x")
        await server.aclose()


# Ownership ----------------------------------------------------------------------------------------------------------


def wraps(manager: CertManager) -> dict[str, Callable[..., Awaitable[TLSStream]]]:
    """Both functions, ready but for the stream."""
    return {
        "client": partial(wrap_client_stream, server_name="a.example", cert_manager=manager),
        "server": partial(wrap_server_stream, cert_manager=manager),
    }


async def is_closed(stream: trio.abc.Stream) -> bool:
    """Whether an end was closed here."""
    try:
        with trio.move_on_after(0.05):
            await stream.receive_some(1)
    except trio.ClosedResourceError:
        return True
    return False


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_handshake_that_fails_closes_the_stream(side: str, mutual: CertAuthManager) -> None:
    """The peer leaves, or takes too long, or the attempt is cancelled: the stream that was given is closed."""
    wrap = wraps(mutual)[side]
    with trio.fail_after(PATIENCE):
        near, far = trio.testing.memory_stream_pair()
        await far.aclose()
        with pytest.raises(HandshakeError):
            await wrap(near)
        assert await is_closed(near)
        near, _ = trio.testing.memory_stream_pair()
        with pytest.raises(HandshakeTimeoutError, match=r"within handshake_timeout \(0\.01 s\)"):
            await wrap(near, handshake_timeout=0.01)
        assert await is_closed(near)
        near, _ = trio.testing.memory_stream_pair()
        with trio.move_on_after(0.01) as scope:
            await wrap(near)
        assert scope.cancelled_caught
        assert await is_closed(near)
    mutual.set_server_name(None)  # and the manager is free again


@pytest.mark.parametrize("side", ["client", "server"])
async def test_an_argument_that_is_refused_closes_the_stream(
    side: str, ca: CertificateAuthority, mutual: CertAuthManager
) -> None:
    """An unusable manager or protocol, and a client's unusable server name: an error, and nothing half open."""
    now = datetime.now(UTC)
    expired = CertAuthManager(ca.issue("localhost", not_before=now - 2 * DAY, not_after=now - DAY))
    attempts: list[tuple[type[Exception], Callable[..., Awaitable[TLSStream]]]] = [
        (CertificateError, wraps(expired)[side]),
        (ValueError, partial(wraps(mutual)[side], alpn=[""])),
        (TypeError, partial(wraps(mutual)[side], alpn="h2")),
    ]
    if side == "client":
        attempts.append((ValueError, partial(wrap_client_stream, server_name="a b", cert_manager=mutual)))
    with trio.fail_after(PATIENCE):
        for error, attempt in attempts:
            near, _ = trio.testing.memory_stream_pair()
            with pytest.raises(error):
                await attempt(near)
            assert await is_closed(near)


async def test_the_name_is_what_was_given(ca: CertificateAuthority, mutual: CertAuthManager) -> None:
    """A server that has another name is refused, whatever the manager's own server name is; and in any spelling."""
    client = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool, server_name="localhost")
    for name, fits in (("b.example", False), ("A.Example.", True), ("localhost", True)):
        near, far = trio.testing.memory_stream_pair()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def accept(far: trio.abc.Stream = far) -> None:
                    with suppress(HandshakeError, trio.BrokenResourceError):
                        async with await wrap_server_stream(far, cert_manager=mutual) as stream:
                            await stream.receive_some()

                nursery.start_soon(accept)
                if fits:
                    await (await wrap_client_stream(near, name, cert_manager=client)).aclose()
                else:
                    with pytest.raises(PeerUnverifiedError) as caught:
                        await wrap_client_stream(near, name, cert_manager=client)
                    assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
                    assert caught.value.wanted == name


async def test_unverified_is_warned_of(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """`insecure_skip_verify` takes any server, and the log says so each time."""
    client = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
    server = CertAuthManager(rogue_ca.issue("other.example"))
    with trio.fail_after(PATIENCE):
        ends = await both(*trio.testing.memory_stream_pair(), client, server, insecure_skip_verify=True)
        assert not ends[0].verified
        for end in ends:
            await end.aclose()
    [record] = [record for record in caplog.records if record.name == "trionode.security"]
    assert record.levelname == "WARNING"
    assert "a.example" in record.getMessage()


async def test_the_manager_is_in_use_during_the_handshake(mutual: CertAuthManager) -> None:
    """On either side its pools are fixed then, and free afterwards."""

    async def attempt(wrap: Callable[..., Awaitable[TLSStream]], near: trio.abc.Stream) -> None:
        with pytest.raises(HandshakeError):
            await wrap(near)

    for wrap in wraps(mutual).values():
        near, far = trio.testing.memory_stream_pair()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, wrap, near)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(FixedAtStartupError):
                    mutual.set_server_name(None)
                await far.aclose()
        mutual.set_server_name(None)
