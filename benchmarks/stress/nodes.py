"""What the nodes of stress programs have in common: mutual TLS with one CA, and acceptors on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trionode import AcceptorOptions, CertAuthManager, ClientAuth, NetworkOptions, Route
from trionode._connection.connection import core_of
from trionode.pki import KeyType

if TYPE_CHECKING:
    from trionode import Connection, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

LOOPBACK: Final = "127.0.0.1"


def manager_of(
    ca: CertificateAuthority,
    *names: str,
    client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
    key_type: KeyType = KeyType.P256,
) -> CertAuthManager:
    """A manager with a new certificate for these names; both sides verify with this CA."""
    key_pair = ca.issue(*names, key_type=key_type)
    return CertAuthManager(key_pair, client_cas=ca.pool, client_auth=client_auth, root_cas=ca.pool)


def accepting(**network: Any) -> NetworkOptions:
    """Network options with one acceptor, on a free port of loopback."""
    return NetworkOptions(acceptors=[AcceptorOptions(host=LOOPBACK, port=0)], **network)


def route_to(node: Node) -> Route:
    """The route to a node's only acceptor."""
    [acceptor] = node.acceptors
    host, port = acceptor.address
    return Route(host=host, port=port)


async def echo(channel: ServiceChannel) -> None:
    """A service that sends back what it receives."""
    async for message in channel:
        await channel.send(message)


def session_of(connection: Connection) -> bytes:
    """A value that only the two ends of one TLS session have in common: it tells whether two connections are one."""
    return core_of(connection).link.stream.export_keying_material(b"EXPERIMENTAL-trionode-stress", 16)


def differences(one: Connection, other: Connection) -> str | None:
    """Why these are not the two ends of one connection, in words; None if they are."""
    if session_of(one) != session_of(other):
        return "the two sides have different connections"
    if core_of(one).link.dialled is core_of(other).link.dialled:
        return "the two sides do not agree on which of them dialled"
    return None
