"""Several acceptors in one node: what each is told applies to it, and to it alone.

That an acceptor's `bind_names` overrides the node's is in test_handshake_errors; ports that are taken, and the order in
which a range is tried, in test_nodes.
"""

from __future__ import annotations

import errno
import math
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import (
    AcceptorOptions,
    ClientAuth,
    HandshakeRefused,
    HandshakeTimeoutError,
    ListenError,
    LocalProtocolError,
    NodeName,
    PeerRejectedError,
    RejectionCode,
    Route,
    generate_cookie,
)
from trionode._connection.connection import core_of
from trionode._transport import tcp as listeners

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ManagerFactory, NodeFactory

    from trionode import Acceptor, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


def ipv6_works() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6_works(), reason="no IPv6 loopback")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


def plan(**options: Any) -> AcceptorOptions:
    """An acceptor on 127.0.0.1, any port, unless told otherwise."""
    return AcceptorOptions(**{"host": "127.0.0.1", "port": 0, **options})


def to(acceptor: Acceptor, **route: Any) -> Route:
    """The route that leads to one acceptor."""
    host, port = acceptor.address
    return Route(host=host, port=port, **route)


async def once(node: Node, route: Route) -> None:
    """Connect by a route, use the connection, close it."""
    connection = await node.connect(BETA, route)
    assert await connection.call("echo", b"there?") == b"there?"
    await connection.aclose()


# Where it listens -----------------------------------------------------------------------------------------------------


async def test_several_acceptors_listen_at_once(node: NodeFactory) -> None:
    """A node has as many acceptors as it is told, each on its own host and port, in that order."""
    plans = [plan(), plan(host="127.0.0.2"), plan(host="127.0.0.3")]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=plans, services={"echo": echo}) as beta, node(str(ALPHA)) as alpha:
            assert [acceptor.address[0] for acceptor in beta.acceptors] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            assert len({acceptor.address[1] for acceptor in beta.acceptors}) == 3
            for acceptor in beta.acceptors:
                await once(alpha, to(acceptor))
                assert acceptor.statistics().established == 1
            assert len(beta.statistics().acceptors) == 3


async def test_port_of_each_acceptor_is_its_own(node: NodeFactory) -> None:
    """Each acceptor listens on the port that it was given, and a node may have one address's ports by the handful."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=[plan(port=port), plan(host="127.0.0.2", port=port)]) as beta:
            assert [acceptor.address for acceptor in beta.acceptors] == [("127.0.0.1", port), ("127.0.0.2", port)]


async def test_acceptors_with_one_port_range_take_the_next_port_each(node: NodeFactory) -> None:
    """Several acceptors, or several nodes on a machine, may be given one range: each takes the next free port."""
    first = listeners_free(4)
    shared = plan(port=first, port_range=4)
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=[shared, shared]) as beta,
            node("gamma@localhost", acceptors=[shared]) as gamma,
        ):
            ports = [acceptor.address[1] for acceptor in (*beta.acceptors, *gamma.acceptors)]
            assert ports == [first, first + 1, first + 2]


async def test_port_range_that_is_taken_lists_what_was_tried(node: NodeFactory) -> None:
    """Where no port of a range can be had, error and text list every one that was tried, and say what to do."""
    first = listeners_free(3)
    with ExitStack() as stack, trio.fail_after(10):
        for port in range(first, first + 3):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", port))
            sock.listen()
        with pytest.raises(ListenError) as caught:
            async with node("beta@localhost", acceptors=[plan(), plan(port=first, port_range=3)]):
                pytest.fail("the body ran")
    error = caught.value
    assert error.address == ("127.0.0.1", first)
    assert error.tried == tuple(("127.0.0.1", port) for port in range(first, first + 3))
    for port in range(first, first + 3):
        assert str(port) in str(error)
    assert "widen port_range" in str(error)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EADDRINUSE


async def test_port_range_ends_with_the_last_port_that_there_is() -> None:
    """A range that reaches past 65535 ends there, instead of failing on a number that is no port."""
    with socket.socket() as taken, trio.fail_after(10):
        taken.bind(("127.0.0.3", 65535))
        taken.listen()
        with pytest.raises(ListenError) as caught:
            await listeners.open_listeners("127.0.0.3", 65535, port_range=10)
    assert caught.value.tried == (("127.0.0.3", 65535),)


def listeners_free(count: int) -> int:
    """The first of so many consecutive ports of 127.0.0.1 that are free now."""
    for _ in range(100):
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            first: int = sock.getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return first
    raise AssertionError("no free ports")


@needs_ipv6
async def test_ipv4_ipv6_and_both(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """An acceptor listens on IPv4, on IPv6, or on both: on every address that its host has, all on one port."""
    resolve("both.example", "::1", "127.0.0.1")
    plans = [plan(), plan(host="::1"), plan(host="both.example"), plan(host="*")]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=plans, services={"echo": echo}) as beta, node(str(ALPHA)) as alpha:
            ipv4, ipv6, both, everywhere = beta.acceptors
            assert [host for host, _ in ipv4.addresses] == ["127.0.0.1"]
            assert [host for host, _ in ipv6.addresses] == ["::1"]
            assert [host for host, _ in both.addresses] == ["::1", "127.0.0.1"]
            assert sorted(host for host, _ in everywhere.addresses) == ["0.0.0.0", "::"]  # noqa: S104
            for acceptor in both, everywhere:
                [port] = {port for _, port in acceptor.addresses}
                for host in "127.0.0.1", "::1":
                    await once(alpha, Route(host=host, port=port))
                assert acceptor.statistics().established == 2
            with pytest.raises(OSError, match=r"::1"):
                await trio.open_tcp_stream("::1", ipv4.address[1])


@needs_ipv6
async def test_port_that_only_one_family_has_is_drawn_anew(
    monkeypatch: pytest.MonkeyPatch, resolve: Callable[..., None]
) -> None:
    """With port 0 a port that is free in one address family and taken in the other is given back, and another drawn."""
    with socket.socket(socket.AF_INET6) as taken, trio.fail_after(10):
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::1", 0))
        taken.listen()
        unlucky = taken.getsockname()[1]
        with trio.socket.socket() as sock:
            kind: Any = type(sock)
        real_bind = kind.bind
        drawn: list[int] = []

        async def bind(self: Any, address: tuple[str, int]) -> None:
            host, port = address
            drawn.append(port or (0 if drawn else unlucky))
            await real_bind(self, (host, drawn[-1]))

        monkeypatch.setattr(kind, "bind", bind)

        resolve("both.example", "127.0.0.1", "::1")
        found = await listeners.open_listeners("both.example", 0)
        ports = {listeners.TCPListener(listener).address[1] for listener in found}
        assert len(found) == 2
        assert len(ports) == 1
        assert ports != {unlucky}
        for listener in found:
            await listener.aclose()


async def test_lack_of_descriptors_is_a_listen_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system refuses a listener for comes out as a `ListenError`, with the system's error as its cause."""

    def socket_of(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", socket_of)
    with trio.fail_after(10):
        with pytest.raises(ListenError, match="Too many open files") as caught:
            await listeners.open_listeners("127.0.0.1", 0, port_range=3)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(caught.value.tried) == 1  # no other port would help


# What it asks for -----------------------------------------------------------------------------------------------------


async def test_cert_manager_of_one_acceptor(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """An acceptor's manager gives it a certificate, a client-auth mode and a rotation of its own."""
    ours = manager("beta@localhost")
    lax = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    plans = [plan(), plan(cert_manager=lax)]
    with trio.fail_after(10):
        async with (
            node("beta@localhost", ours, acceptors=plans, services={"echo": echo}) as beta,
            node(str(ALPHA)) as alpha,
        ):

            async def presented(acceptor: Acceptor) -> tuple[str, bool]:
                connection = await alpha.connect(BETA, to(acceptor))
                assert await connection.call("echo", b"") == b""
                inbound = [*beta.connections.values(), *beta.unverified_connections]
                assert len(inbound) == 1
                found = (inbound[0].key_pair_fingerprint, inbound[0].peer.verified)
                await connection.aclose()
                await inbound[0].wait_closed()
                return found

            strict_acceptor, lax_acceptor = beta.acceptors
            assert await presented(strict_acceptor) == (ours.key_pair.fingerprint, True)
            assert await presented(lax_acceptor) == (lax.key_pair.fingerprint, False)
            before = ours.key_pair.fingerprint
            lax.update(ca.issue("beta@localhost"))
            assert await presented(strict_acceptor) == (before, True)
            assert await presented(lax_acceptor) == (lax.key_pair.fingerprint, False)


async def test_cookie_of_one_acceptor(node: NodeFactory) -> None:
    """An acceptor's cookie is asked for there and nowhere else; the node's is asked for by the others."""
    nodes, own = generate_cookie(), generate_cookie()
    plans = [plan(), plan(cookie=own)]
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=plans, services={"echo": echo}, cookie=nodes) as beta,
            node(str(ALPHA)) as alpha,
        ):
            for acceptor, right, wrong in zip(beta.acceptors, (nodes, own), (own, nodes), strict=True):
                await once(alpha, to(acceptor, cookie=right))
                with pytest.raises(PeerRejectedError) as caught:
                    await alpha.connect(BETA, to(acceptor, cookie=wrong))
                assert caught.value.code is RejectionCode.COOKIE


async def test_max_message_size_of_one_acceptor(node: NodeFactory) -> None:
    """An acceptor's largest message is told to those who come in there, and holds for them alone."""
    plans = [plan(), plan(max_message_size=1000)]
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=plans, services={"echo": echo}, max_message_size=100_000) as beta,
            node(str(ALPHA)) as alpha,
        ):
            for acceptor, limit in zip(beta.acceptors, (100_000, 1000), strict=True):
                connection = await alpha.connect(BETA, to(acceptor))
                assert core_of(connection).link.peer_limits.max_message_size == limit
                assert len(await connection.call("echo", bytes(limit))) == limit
                with pytest.raises(LocalProtocolError, match=str(limit)):
                    await connection.call("echo", bytes(limit + 1))
                await connection.aclose()


async def test_max_metadata_size_of_one_acceptor(node: NodeFactory) -> None:
    """As much for metadata, where 0 is an answer, too."""
    plans = [plan(), plan(max_metadata_size=0), plan(max_metadata_size=20)]
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=plans, services={"echo": echo}, max_metadata_size=1000) as beta,
            node(str(ALPHA)) as alpha,
        ):
            for acceptor, limit in zip(beta.acceptors, (1000, 0, 20), strict=True):
                connection = await alpha.connect(BETA, to(acceptor))
                assert core_of(connection).link.peer_limits.max_metadata_size == limit
                if limit:
                    assert await connection.call("echo", b"x", metadata={"k": "x" * 12}) == b"x"
                with pytest.raises(LocalProtocolError, match="metadata"):
                    await connection.call("echo", b"x", metadata={"k": bytes(limit)})
                await connection.aclose()


async def test_handshake_timeout_of_one_acceptor(node: NodeFactory) -> None:
    """An acceptor's handshake limit holds for those who come in there; the others have the node's."""
    plans = [plan(), plan(handshake_timeout=0.2)]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=plans, handshake_timeout=60) as beta, beta.events() as events:
            patient, strict = beta.acceptors
            async with await trio.open_tcp_stream(*patient.address), await trio.open_tcp_stream(*strict.address):
                async for event in events:
                    if isinstance(event, HandshakeRefused):
                        break
                else:
                    pytest.fail("the node ended")
                assert isinstance(event.error, HandshakeTimeoutError)
                assert "0.2 s" in str(event.error)
                assert strict.statistics().refused == 1
                assert patient.statistics().refused == 0
                assert patient.statistics().handshaking == 1


# What makes no sense --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"port_range": 0}, "port_range"),
        ({"port_range": 70000}, "port_range"),
        ({"host": "no host"}, "host"),
        ({"host": "fe80::1%eth0"}, "has a zone"),
        ({"max_message_size": 0}, "max_message_size"),
        ({"max_message_size": 2**32}, "max_message_size"),
        ({"handshake_timeout": 0}, "handshake_timeout"),
        ({"handshake_timeout": -1}, "handshake_timeout"),
        ({"handshake_timeout": math.nan}, "handshake_timeout"),
        ({"cookie": "too short"}, "cookie"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], word: str) -> None:
    """What an acceptor could never do is refused when its options are made, by the option's name."""
    with pytest.raises(ValueError, match=word):
        AcceptorOptions(**options)


@pytest.mark.parametrize("options", [{"cert_manager": "beta.pem"}, {"port": "15000"}], ids=str)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any]) -> None:
    """A manager has to be one, and a port a number, by the option's name."""
    with pytest.raises(TypeError, match=next(iter(options))):
        AcceptorOptions(**options)


@pytest.mark.parametrize("host", ["[::1]", "::1", "0:0:0:0:0:0:0:1"])
def test_host_is_canonical(host: str) -> None:
    """A host may be spelt as one likes."""
    assert AcceptorOptions(host=host).host == "[::1]"
