"""The main scenario over IPv6: names with addresses in brackets, certificates for addresses, nodes on both families."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography import x509

from trionode import (
    AcceptorOptions,
    Connection,
    Endpoint,
    HandshakeError,
    LocalRegistry,
    NodeName,
    PeerUnverifiedError,
    Route,
    Stage,
    UnverifiedReason,
    _protocol as wire,
    open_tls_stream,
    serve_tls,
)
from trionode._connection.connection import core_of
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import ManagerFactory, NodeFactory, ScriptedPeer

    from trionode import Node, ServiceChannel, TLSStream

ALPHA, BETA = NodeName.parse("alpha@[::1]"), NodeName.parse("beta@[::1]")


def ipv6_works() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not ipv6_works(), reason="no IPv6 loopback")

LOOPBACK = AcceptorOptions(host="::1", port=0)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def greet(channel: ServiceChannel) -> None:
    """Say who called."""
    await channel.send(b"hello, %s" % str(channel.peer.name).encode())


def port(node: Node) -> int:
    """Of the first acceptor."""
    return node.acceptors[0].address[1]


async def test_main_scenario(node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority) -> None:
    """Two nodes on [::1] prove who they are, call each other, rotate, reconnect, and end; all over IPv6."""
    alphas, betas = manager(str(ALPHA)), manager(str(BETA))
    with trio.fail_after(10):
        async with (
            node("beta@[0:0:0:0:0:0:0:1]", betas, acceptors=[LOOPBACK], services={"greet": greet}) as beta,
            node("alpha@[::1]", alphas, acceptors=[LOOPBACK], services={"greet": greet}) as alpha,
        ):
            assert beta.name == BETA
            assert beta.acceptors[0].address[0] == "::1"
            alpha.add_route("*@[::1]", Route(port=port(beta)))  # the name's host is where it is
            assert await alpha.call("beta@[::1]", "greet", b"") == b"hello, alpha@[::1]"
            connection = alpha.connections[NodeName.parse("beta@[0::1]")]
            assert connection.peer.verified
            assert connection.peer.address == ("::1", port(beta))
            assert connection.peer.certificate == betas.key_pair.certificate
            assert await beta.call(ALPHA, "greet", b"") == b"hello, beta@[::1]"
            assert len(beta.connections) == 1
            inbound = beta.connections[ALPHA]
            assert inbound.peer.verified
            assert inbound.peer.address is not None
            assert inbound.peer.address[0] == "::1"

            betas.update(ca.issue(str(BETA)))
            assert inbound.superseded
            assert await alpha.call(BETA, "greet", b"") == b"hello, alpha@[::1]"
            await connection.aclose()
            renewed = await alpha.connect(BETA)
            assert renewed.peer.certificate == betas.key_pair.certificate
            assert renewed.peer_generation == 2


def test_certificate_has_the_address() -> None:
    """A name with an address in brackets is issued an IP SAN of that address, and a URI SAN of the node."""
    certificate = CertificateAuthority.create().issue("beta@[2001:db8::1]").certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["trionode://beta@[2001:db8::1]"]


async def test_address_in_the_name_is_bound_to_the_certificate(node: NodeFactory, manager: ManagerFactory) -> None:
    """A server whose certificate is for another address, or for a DNS name only, is not the node that was dialled."""
    with trio.fail_after(10):
        for other in "beta@[::2]", "beta@localhost", "beta@127.0.0.1":
            async with (
                node(str(BETA), manager(other), acceptors=[LOOPBACK]) as beta,
                node(str(ALPHA), acceptors=[LOOPBACK]) as alpha,
            ):
                with pytest.raises(PeerUnverifiedError) as caught:
                    await alpha.connect(BETA, Route(port=port(beta)))
                assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
                assert caught.value.wanted == "[::1]"


async def test_claimed_address_is_bound_to_the_certificate(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A client may claim the address that its certificate has, in any spelling, and no other."""
    with trio.fail_after(10):
        async with node(str(BETA), acceptors=[LOOPBACK]) as beta:
            peer = await scripted_dial(beta, manager("::2"), reference="[::1]")
            async with peer.stream:
                await peer.introduce("alpha@[0::2]")
            peer = await scripted_dial(beta, manager("::2"), reference="[::1]")
            async with peer.stream:
                await peer.say(peer.hello("alpha@[::3]"))
                assert (refusal := (await peer.hear(wire.Answer)).refusal) is not None
                assert refusal.code == "claimed_name"
                assert "alpha@[::3]" in refusal.message


async def test_node_on_both_families_has_one_port(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """A host with an IPv4 and an IPv6 address is listened on in both, on one port, and reached by either."""
    resolve("dual.example", "::1", "127.0.0.1")
    with trio.fail_after(10):
        async with (
            node("beta@dual.example", acceptors=[AcceptorOptions(port=0)], services={"echo": echo}) as beta,
            node("alpha@dual.example", acceptors=[AcceptorOptions(port=0)]) as alpha,
        ):
            [acceptor] = beta.acceptors
            assert sorted(host for host, _ in acceptor.addresses) == ["127.0.0.1", "::1"]
            assert len({each for _, each in acceptor.addresses}) == 1
            alpha.add_route("*", Route(port=port(beta)))  # by name: whichever address answers
            assert await alpha.call("beta@dual.example", "echo", b"x") == b"x"
            for host in "::1", "127.0.0.1":
                await alpha.connections[beta.name].aclose()
                connection = await alpha.connect("beta@dual.example", Route(host=host, port=port(beta)))
                assert connection.peer.address is not None
                assert connection.peer.address[0] == host


async def test_nodes_of_two_families_know_each_other(node: NodeFactory) -> None:
    """Where a peer is reached is an address, who it is is a name: the two need not be of one family."""
    with trio.fail_after(10):
        async with (
            node("beta@127.0.0.1", acceptors=[LOOPBACK], services={"echo": echo}) as beta,
            node("alpha@[::1]", acceptors=[LOOPBACK]) as alpha,
        ):
            assert await alpha.call("beta@127.0.0.1", "echo", b"x", route=Route(host="::1", port=port(beta))) == b"x"


async def test_registry_gives_ipv6_endpoints(node: NodeFactory, tmp_path: Path) -> None:
    """Nodes that listen on IPv6 find each other through the local registry; all interfaces are registered as ::1."""
    registry = LocalRegistry(tmp_path / "registry")
    plans = [AcceptorOptions(host="::", port=0)]
    with trio.fail_after(10):
        async with (
            node(str(BETA), acceptors=plans, resolver=registry, services={"echo": echo}) as beta,
            node(str(ALPHA), acceptors=plans, resolver=registry) as alpha,
        ):
            assert await registry.resolve(BETA) == [Endpoint("::1", port(beta))]
            assert await alpha.call(BETA, "echo", b"x") == b"x"


async def test_two_at_once(node: NodeFactory) -> None:
    """Dials that cross over IPv6 end with one connection, the same on both sides."""
    with trio.fail_after(10):
        async with (
            node(str(BETA), acceptors=[LOOPBACK]) as beta,
            node(str(ALPHA), acceptors=[LOOPBACK]) as alpha,
        ):
            alpha.add_route(BETA, Route(port=port(beta)))
            beta.add_route(ALPHA, Route(port=port(alpha)))
            for _ in range(5):
                got: dict[NodeName, Connection] = {}

                async def dial(own: Node, peer: NodeName, got: dict[NodeName, Connection] = got) -> None:
                    got[own.name] = await own.connect(peer)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dial, alpha, BETA)
                    nursery.start_soon(dial, beta, ALPHA)
                assert core_of(got[ALPHA]).link.dialled is not core_of(got[BETA]).link.dialled
                assert alpha.connections == {BETA: got[ALPHA]}
                await got[ALPHA].aclose()
                await got[BETA].wait_closed()


async def test_address_in_errors_is_readable(node: NodeFactory) -> None:
    """An error says which address and port it was, apart from each other, so that colons do not confuse."""
    with trio.fail_after(10):
        async with node(str(ALPHA), acceptors=[LOOPBACK]) as alpha:
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect(BETA, Route(port=1))
    assert caught.value.stage is Stage.CONNECT
    assert caught.value.address == ("[::1]", 1)
    assert "[::1] port 1" in str(caught.value)


async def test_streams_without_nodes(manager: ManagerFactory) -> None:
    """`serve_tls` and `open_tls_stream` take IPv6 addresses, in brackets or not."""

    async def shout(stream: TLSStream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    certs = manager("::1")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners: Any = await nursery.start(
                lambda task_status: serve_tls(shout, 0, cert_manager=certs, host="::1", task_status=task_status)
            )
            served = listeners[0].socket.getsockname()[1]
            for host in "::1", "[::1]":
                async with await open_tls_stream(host, served, cert_manager=certs) as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"HELLO"
            nursery.cancel_scope.cancel()
