"""Nodes for tests: names, managers, listeners and routes set up in one line, in memory or on loopback.

Theory. A `NodeFactory` holds what the nodes of one test have in common: a CA, which issues their certificates and which
they trust, a network, and the nodes that are open. A node that opens listens on a free port and gets routes to all open
nodes, and they to it; one that opens again under the same name replaces its routes, so that connectors find it. Routes
to closed nodes stay, and lead nowhere, so that no test asks a name server.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, final

import trio

from trionode._credentials.policy import ClientAuth
from trionode._managers.auth_manager import CertAuthManager
from trionode._node.node import Node, open_node
from trionode._node.options import (
    AcceptorOptions,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    Route,
)

from ._memory_network import MemoryNetwork
from ._zoo import cluster_ca, node_name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode._connection.interceptors import Interceptor
    from trionode._connection.services import Service
    from trionode._credentials.crl import CRLSet
    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import Clock
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer
    from trionode._managers.manager import CertManager
    from trionode._node.routes import RouteHandle
    from trionode.pki import CertificateAuthority

__all__ = ["NodeFactory", "node_factory"]

_LOOPBACK = "127.0.0.1"


@final
class NodeFactory:
    """Opens the nodes of one test, which trust one CA and have routes to each other; made by `node_factory`.

    Attributes:
        ca: issues every node's certificate.
        network: the network in memory that the nodes are on; None where they are on TCP, on loopback.
    """

    def __init__(self, ca: CertificateAuthority, network: MemoryNetwork | None, clock: Clock | None) -> None:
        self.ca: CertificateAuthority = ca
        self.network: MemoryNetwork | None = network
        self._clock = clock
        self._crls: CRLSet | None = None
        self._open: list[Node] = []
        self._routes: dict[tuple[Node, NodeName], RouteHandle] = {}

    def __repr__(self) -> str:
        return f"<NodeFactory on {self.network or 'TCP'}, open: {', '.join(str(node.name) for node in self._open)}>"

    def manager(
        self, name: str | NodeName, *, key_pair: KeyPair | None = None, crls: CRLSet | None = None
    ) -> CertAuthManager:
        """A manager for mutual TLS: it trusts the CA in both directions, and insists on clients' certificates.

        Args:
            name: the node name to issue a certificate for, as for opening it.
            key_pair: what to present, in place of a fresh key pair.
            crls: revocation lists; by default what `revoke` was called for.
        """
        return CertAuthManager(
            key_pair or self.ca.issue(node_name_of(name)),
            client_cas=self.ca.pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=self.ca.pool,
            crls=crls or self._crls,
            clock=self._clock,
        )

    def revoke(self, *peers: Node | KeyPair) -> CRLSet:
        """Revoke certificates that the CA issued, for all nodes that are open and those that are opened later.

        Connections with such a peer end, as always when a list revokes one.

        Args:
            peers: nodes, for the certificates that they present now, or key pairs.

        Returns:
            The list, for managers that were not made here.

        Raises:
            ValueError: one of them is the CA's own certificate.
        """
        pairs = [peer.options.cert_manager.key_pair if isinstance(peer, Node) else peer for peer in peers]
        self._crls = self.ca.revocation_list(*pairs, previous=self._crls, lifetime=timedelta(days=3650))
        for node in self._open:
            manager = node.options.cert_manager
            if isinstance(manager, CertAuthManager):
                manager.rotate_trust(crls=self._crls)
        return self._crls

    @asynccontextmanager
    async def __call__(
        self,
        name: str | NodeName,
        *,
        certs: CertManager | None = None,
        services: Mapping[str, Service] | None = None,
        authorize: Callable[[Peer], None] | None = None,
        network: NetworkOptions | None = None,
        live_connections: LiveConnections | None = None,
        interceptors: Sequence[Interceptor] = (),
        propagate_service_errors: bool = False,
    ) -> AsyncIterator[Node]:
        """Open a node for the length of an `async with` block, with routes to and from all others that are open.

        Args:
            name: a node name; `alpha` is short for `alpha@alpha.test`.
            certs: its manager; by default a fresh one, see `manager`.
            services: see `NodeOptions`, also for what follows.
            authorize: called for every peer.
            network: further options; acceptors and transport are added where there are none.
            live_connections: what becomes of live connections when certificates rotate or end.
            interceptors: around each call and channel.
            propagate_service_errors: let an exception of a service crash the node, and so fail the test.

        Raises:
            ValueError: it is no node name.
            BaseExceptionGroup, CertificateError, ListenError and the rest: as `open_node`.
        """
        own = node_name_of(name)
        options = NodeOptions(
            cert_manager=certs or self.manager(own),
            network=self._complete(own, network or NetworkOptions()),
            services=services or {},
            authorize=authorize,
            live_connections=live_connections or LiveConnections(),
            interceptors=interceptors,
            propagate_service_errors=propagate_service_errors,
        )
        async with open_node(own, options) as node:
            for other in self._open:
                self._lead(node, other)
                self._lead(other, node)
            self._open.append(node)
            try:
                yield node
            finally:
                self._open.remove(node)
                for key in [key for key in self._routes if key[0] is node]:
                    del self._routes[key]

    @asynccontextmanager
    async def cluster(
        self,
        *names: str | NodeName,
        services: Mapping[str, Service] | None = None,
        network: NetworkOptions | None = None,
        live_connections: LiveConnections | None = None,
        interceptors: Sequence[Interceptor] = (),
        propagate_service_errors: bool = False,
    ) -> AsyncIterator[tuple[Node, ...]]:
        """Open several nodes that differ only in their names, in order; they are closed in reverse order.

        Args:
            names: of the nodes.
            services: offered by each of them. This and the rest as for one node.
            network: likewise.
            live_connections: likewise.
            interceptors: likewise.
            propagate_service_errors: likewise.
        """
        async with AsyncExitStack() as stack:
            nodes: list[Node] = []
            for name in names:
                opening: AbstractAsyncContextManager[Node] = self(
                    name,
                    services=services,
                    network=network,
                    live_connections=live_connections,
                    interceptors=interceptors,
                    propagate_service_errors=propagate_service_errors,
                )
                nodes.append(await stack.enter_async_context(opening))
            yield tuple(nodes)

    def _complete(self, name: NodeName, network: NetworkOptions) -> NetworkOptions:
        if network.transport is None and self.network is not None:
            network = replace(network, transport=self.network.host(name.host))
        if network.mode is NetworkMode.ENABLED and not network.acceptors:
            host = _LOOPBACK if network.transport is None else None
            network = replace(network, acceptors=[AcceptorOptions(host=host, port=0)])
        return network

    def _lead(self, source: Node, target: Node) -> None:
        """Give one node the route to another."""
        if not target.acceptors or source.name == target.name:
            return
        host, port = target.acceptors[0].address
        key = (source, target.name)
        former = self._routes.pop(key, None)
        if former is not None:
            former.remove()
        with suppress(trio.ClosedResourceError):  # the node drains
            self._routes[key] = source.add_route(target.name, Route(host=host, port=port))


def node_factory(
    ca: CertificateAuthority | None = None,
    *,
    network: MemoryNetwork | None = None,
    tcp: bool = False,
    clock: Clock | None = None,
) -> NodeFactory:
    """A factory of nodes that trust one CA, and have routes to each other.

    Args:
        ca: issues their certificates; by default a fresh one with the same clock.
        network: the network in memory that they are on, each on a host of its own; by default a fresh one.
        tcp: whether they are on TCP, on loopback, instead.
        clock: source of "now" (aware) for their managers; by default the machine's clock.

    Raises:
        ValueError: both a network in memory and TCP were asked for.
    """
    if tcp and network is not None:
        msg = "nodes are either on a MemoryNetwork or on TCP; drop one of the two"
        raise ValueError(msg)
    return NodeFactory(ca or cluster_ca(clock=clock), None if tcp else network or MemoryNetwork(), clock)
