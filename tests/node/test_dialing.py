"""Dialling one route, over plain memory channels of TLS contexts: what is taken when, and what failure looks like."""

from __future__ import annotations

import errno
import math
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import (
    CAPool,
    CertificateError,
    CertificateReason,
    HandshakeError,
    HandshakeTimeoutError,
    NodeName,
    Stage,
    TLSContexts,
    _protocol as wire,
)
from trionode._connection.registry import Registry
from trionode._credentials.policy import TLSPolicy
from trionode._handshake.accept import accept_link
from trionode._handshake.collisions import Arbiter
from trionode._handshake.connect import connect
from trionode._handshake.dial import Dial, dial
from trionode._handshake.exchange import Party
from trionode._managers.manager import publisher_of
from trionode._transport import connecting
from trionode._transport.sockets import address_of
from trionode._transport.tcp import open_listeners

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, ScriptedListener

    from trionode._connection.link import Link
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
LIMITS = wire.Limits(max_message_size=65536, window=65536, max_channels=16)


def party(name: NodeName) -> Party:
    """A node's part in a handshake, without a node."""
    return Party(name=name, incarnation=1, limits=LIMITS, arbiter=Arbiter(name, Registry()))


def plan(host: str, port: int, **options: Any) -> Dial:
    """A dial of beta."""
    return Dial(name=BETA, host=host, port=port, **{"connect_timeout": 10, "handshake_timeout": 10, **options})


class Contexts:
    """Generations in a plain memory channel: each can be taken once, and what is left shows how many were."""

    def __init__(self, *generations: TLSContexts) -> None:
        self.send, self.receive = trio.open_memory_channel[TLSContexts](math.inf)
        for contexts in generations:
            self.send.send_nowait(contexts)

    @property
    def left(self) -> int:
        """How many are left."""
        return self.receive.statistics().current_buffer_used


@pytest.fixture
def generations(manager: ManagerFactory) -> Callable[[int], list[TLSContexts]]:
    """A function that makes so many different generations of alpha's and beta's contexts."""
    certs = manager("beta@localhost", "alpha@localhost")

    def make(count: int) -> list[TLSContexts]:
        return [TLSContexts.build(number, certs.key_pair, publisher_of(certs).policy) for number in range(1, count + 1)]

    return make


async def serve(listener: trio.SocketListener, contexts: TLSContexts) -> Link:
    """Accept one link, as beta."""
    transport = await listener.accept()
    channel = Contexts(contexts).receive
    link, joined = await accept_link(transport, channel, party(BETA), bind_names=True, handshake_timeout=10)
    assert joined is None
    return link


async def failure(attempt: Awaitable[object]) -> HandshakeError:
    """The `HandshakeError` that an attempt ends with."""
    with pytest.raises(HandshakeError) as caught:
        await attempt
    return caught.value


# Contexts -----------------------------------------------------------------------------------------------------------


async def test_each_dial_takes_contexts_once_after_the_connect(
    generations: Callable[[int], list[TLSContexts]], scripted_listener: ScriptedListener
) -> None:
    """A dial takes from the channel once, after its TCP connect; what it took is what it presents."""
    made = generations(4)
    contexts = Contexts(*made[:3])
    links: list[Link] = []

    async def connect() -> None:
        links.append(await dial(plan("127.0.0.1", scripted_listener.port), contexts.receive, party(ALPHA)))

    with trio.fail_after(10):
        for number in 1, 2:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                accepted = await serve(scripted_listener.listener, made[3])
            assert accepted.peer_generation == links[-1].generation == number
            assert links[-1].peer_generation == 4
            assert contexts.left == 3 - number
            await links[-1].stream.aclose()
            await accepted.stream.aclose()


async def test_failing_connect_takes_no_contexts(generations: Callable[[int], list[TLSContexts]]) -> None:
    """Where nothing listens, no contexts are taken."""
    contexts = Contexts(*generations(1))
    with socket.socket() as bound, trio.fail_after(10):
        bound.bind(("127.0.0.1", 0))  # and does not listen
        await failure(dial(plan("127.0.0.1", bound.getsockname()[1]), contexts.receive, party(ALPHA)))
    assert contexts.left == 1


async def test_dial_waits_for_contexts_within_its_deadline(scripted_listener: ScriptedListener) -> None:
    """Where the channel holds none, a dial waits for them, within `handshake_timeout`, and closes its socket then."""
    contexts = Contexts()
    with trio.fail_after(10):
        error = await failure(
            dial(plan("127.0.0.1", scripted_listener.port, handshake_timeout=0.1), contexts.receive, party(ALPHA))
        )
        assert isinstance(error, HandshakeTimeoutError)
        assert error.stage is Stage.TLS
        assert error.generation is None
        async with await scripted_listener.listener.accept() as transport:
            assert await transport.receive_some() == b""


async def test_contexts_that_cannot_be_had_close_the_socket(
    scripted_listener: ScriptedListener,
) -> None:
    """Where the channel is closed, the dial raises what that raised, and its socket is closed."""
    contexts = Contexts()
    contexts.send.close()
    with trio.fail_after(10):
        with pytest.raises(trio.EndOfChannel):
            await dial(plan("127.0.0.1", scripted_listener.port), contexts.receive, party(ALPHA))
        async with await scripted_listener.listener.accept() as transport:
            assert await transport.receive_some() == b""


async def test_missing_system_cas_close_the_socket(
    ca: CertificateAuthority, scripted_listener: ScriptedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's CAs are needed and there are none, that is a `CertificateError`, and the socket is closed."""

    def no_system_cas() -> CAPool:
        raise CertificateError("none", reason=CertificateReason.NO_CERTIFICATE)

    monkeypatch.setattr(CAPool, "system", staticmethod(no_system_cas))
    contexts = Contexts(TLSContexts.build(1, ca.issue("alpha@localhost"), TLSPolicy()))
    with trio.fail_after(10):
        with pytest.raises(CertificateError):
            await dial(plan("127.0.0.1", scripted_listener.port), contexts.receive, party(ALPHA))
        async with await scripted_listener.listener.accept() as transport:
            assert await transport.receive_some() == b""


# Addresses ----------------------------------------------------------------------------------------------------------


async def test_every_address_of_a_name_is_tried(
    generations: Callable[[int], list[TLSContexts]], resolve: Callable[..., None], scripted_listener: ScriptedListener
) -> None:
    """A name with an address where nothing listens is reached by its other one."""
    resolve("localhost", "::1", "127.0.0.2", "127.0.0.1")
    ours, theirs = generations(2)
    links: list[Link] = []

    async def connect() -> None:
        links.append(await dial(plan("localhost", scripted_listener.port), Contexts(ours).receive, party(ALPHA)))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            accepted = await serve(scripted_listener.listener, theirs)
        assert links[0].peer.address == ("127.0.0.1", scripted_listener.port)
        await links[0].stream.aclose()
        await accepted.stream.aclose()


async def test_silent_address_does_not_hold_up_the_others(
    resolve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that drops packets costs a moment, not the connect timeout: the next is tried beside it."""
    resolve("both.example", "127.0.0.3", "127.0.0.1")
    [listener] = await open_listeners("127.0.0.1", 0)
    waiting: list[tuple[str, int]] = []

    connected = connecting._connected

    async def connect_or_wait(address: Any, _: str | None = None) -> Any:
        if address[1][0] == "127.0.0.3":
            waiting.append(address)
            await trio.sleep_forever()
        return await connected(address)

    monkeypatch.setattr(connecting, "_connected", connect_or_wait)
    with trio.fail_after(10):
        async with listener:
            async with await connect(
                "both.example", listener.socket.getsockname()[1], connect_timeout=math.inf
            ) as stream:
                assert (address_of(stream) or ("",))[0] == "127.0.0.1"
    assert len(waiting) == 1


async def test_bracketed_address_is_dialled(generations: Callable[[int], list[TLSContexts]]) -> None:
    """An IPv6 address in brackets, as node names have it, is connected to."""
    [listener] = await open_listeners("[::1]", 0)
    with trio.fail_after(10):
        async with listener, await connect("[::1]", listener.socket.getsockname()[1], connect_timeout=10) as stream:
            assert (address_of(stream) or ("",))[0] == "::1"


# Failures -----------------------------------------------------------------------------------------------------------


async def test_connection_refused() -> None:
    """Where nothing listens, that is stage connect, caused by the system's error, with the address in the text."""
    with socket.socket() as bound, trio.fail_after(10):
        bound.bind(("127.0.0.1", 0))  # and does not listen
        port = bound.getsockname()[1]
        error = await failure(connect("127.0.0.1", port, connect_timeout=10))
    assert type(error) is HandshakeError
    assert error.stage is Stage.CONNECT
    assert error.reason == "unreachable"
    assert error.address == ("127.0.0.1", port)
    assert error.generation is None
    assert isinstance(error.__cause__, OSError)
    assert os_error_numbers(error.__cause__) == {errno.ECONNREFUSED}
    assert f"127.0.0.1 port {port}" in str(error)
    assert "refused" in str(error)
    assert "Is the node running there" in str(error)


def os_error_numbers(error: BaseException) -> set[int | None]:
    """The numbers of the system's errors behind one."""
    if isinstance(error, BaseExceptionGroup):
        return {number for inner in error.exceptions for number in os_error_numbers(inner)}
    if error.__cause__ is not None:
        return os_error_numbers(error.__cause__)
    assert isinstance(error, OSError)
    return {error.errno}


async def test_all_addresses_refused(resolve: Callable[..., None]) -> None:
    """Where no address of a name answers, each one's own error is in the text, once."""
    resolve("both.example", "127.0.0.2", "127.0.0.3")
    with socket.socket() as bound, trio.fail_after(10):
        bound.bind(("127.0.0.1", 0))
        error = await failure(connect("both.example", bound.getsockname()[1], connect_timeout=10))
    assert error.stage is Stage.CONNECT
    assert os_error_numbers(error) == {errno.ECONNREFUSED}
    assert "both.example" in str(error)


async def test_name_that_does_not_resolve(resolve: Callable[..., None]) -> None:
    """A name that does not resolve is stage resolve, caused by the resolver's error."""
    resolve("nowhere.example")
    with trio.fail_after(10):
        error = await failure(connect("nowhere.example", 15000, connect_timeout=10))
    assert type(error) is HandshakeError
    assert error.stage is Stage.RESOLVE
    assert isinstance(error.__cause__, socket.gaierror)
    assert "not known" in str(error)


async def test_resolver_that_never_answers(resolve: Callable[..., None]) -> None:
    """A name server that never answers costs most of `connect_timeout`, and is told apart: no packet was sent."""
    resolve("slow.example", None)
    with trio.fail_after(10):
        error = await failure(connect("slow.example", 15000, connect_timeout=1))
    assert isinstance(error, HandshakeTimeoutError)
    assert error.stage is Stage.RESOLVE
    assert error.reason == "timeout"
    assert error.address == ("slow.example", 15000)
    assert "connect_timeout (1 s)" in str(error)


async def test_address_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that are dropped cost `connect_timeout`, and the text names what drops them."""

    async def silence(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("trionode._transport.tcp.connect_tcp", silence)
    with trio.fail_after(10):
        error = await failure(connect("silent.example", 15000, connect_timeout=0.1))
    assert isinstance(error, HandshakeTimeoutError)
    assert error.stage is Stage.CONNECT
    assert "firewall" in str(error)


async def test_cancelled_connect_is_a_cancellation(resolve: Callable[..., None]) -> None:
    """The caller's cancellation during the connect is not turned into an error."""
    resolve("slow.example", None)
    with trio.fail_after(10):
        with trio.move_on_after(0.05) as scope:
            await connect("slow.example", 15000, connect_timeout=10)
        assert scope.cancelled_caught
