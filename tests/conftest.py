"""What several test files share: a cluster CA, cert managers for mutual TLS, and nodes on loopback.

Nothing here is automatic; a test file that needs something else of the same name defines its own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeOptions,
    Route,
    open_node,
)
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from trionode import CertManager, KeyPair, Peer, Service

#: Both CAs and, by default, everything that they issue are older than this, so that a test's clock may be behind.
AGE = timedelta(days=30)


class ManagerFactory(Protocol):
    """Makes cert managers for mutual TLS: issued by one CA, trusting one CA, in both directions."""

    def __call__(
        self,
        *names: str,
        ca: CertificateAuthority | None = None,
        trusts: CertificateAuthority | None = None,
        key_pair: KeyPair | None = None,
        client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        server_name: str | None = None,
        clock: Callable[[], datetime] | None = None,
        **issue: Any,
    ) -> CertAuthManager:
        """Make one; `issue` goes to `CertificateAuthority.issue`."""


class NodeFactory(Protocol):
    """Opens nodes: by default with a mutual manager of their own and one acceptor on 127.0.0.1, port 0."""

    def __call__(
        self,
        name: str,
        certs: CertManager | None = None,
        *,
        acceptors: Sequence[AcceptorOptions] | None = None,
        mode: NetworkMode = NetworkMode.ENABLED,
        services: Mapping[str, Service] | None = None,
        authorize: Callable[[Peer], None] | None = None,
        shutdown_grace: float = 1.0,
        propagate_service_errors: bool = False,
        **network: Any,
    ) -> AbstractAsyncContextManager[Node]:
        """Open one; `network` goes to `NetworkOptions`."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two open nodes that have a route to each other."""

    alpha: Node
    beta: Node


class PairFactory(Protocol):
    """Opens the nodes alpha@localhost and beta@localhost, with routes to each other."""

    def __call__(
        self,
        *,
        alpha: Mapping[str, Any] | None = None,
        beta: Mapping[str, Any] | None = None,
    ) -> AbstractAsyncContextManager[Pair]:
        """Open both; the mappings hold further arguments of the node factory."""


def _old_clock() -> datetime:
    return datetime.now(UTC) - AGE


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    """The cluster's CA; what it issues has been valid for a month and will be for two more."""
    return CertificateAuthority.create(common_name="cluster CA", clock=_old_clock)


@pytest.fixture(scope="session")
def rogue_ca() -> CertificateAuthority:
    """A CA that nobody trusts."""
    return CertificateAuthority.create(common_name="rogue CA", clock=_old_clock)


@pytest.fixture
def manager(ca: CertificateAuthority) -> ManagerFactory:
    """A factory of cert managers for mutual TLS."""

    def make(
        *names: str,
        ca: CertificateAuthority = ca,
        trusts: CertificateAuthority = ca,
        key_pair: KeyPair | None = None,
        client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        server_name: str | None = None,
        clock: Callable[[], datetime] | None = None,
        **issue: Any,
    ) -> CertAuthManager:
        return CertAuthManager(
            key_pair or ca.issue(*names, **issue),
            client_cas=trusts.pool,
            client_auth=client_auth,
            root_cas=trusts.pool,
            server_name=server_name,
            clock=clock,
        )

    return make


@pytest.fixture
def node(manager: ManagerFactory) -> NodeFactory:
    """A factory of nodes on loopback."""

    def make(
        name: str,
        certs: CertManager | None = None,
        *,
        acceptors: Sequence[AcceptorOptions] | None = None,
        mode: NetworkMode = NetworkMode.ENABLED,
        services: Mapping[str, Service] | None = None,
        authorize: Callable[[Peer], None] | None = None,
        shutdown_grace: float = 1.0,
        propagate_service_errors: bool = False,
        **network: Any,
    ) -> AbstractAsyncContextManager[Node]:
        if acceptors is None and mode is NetworkMode.ENABLED:
            acceptors = [AcceptorOptions(host="127.0.0.1", port=0)]
        return open_node(
            name,
            NodeOptions(
                cert_manager=certs or manager(name),
                network=NetworkOptions(mode=mode, acceptors=acceptors or (), **network),
                services=services or {},
                authorize=authorize,
                shutdown_grace=shutdown_grace,
                propagate_service_errors=propagate_service_errors,
            ),
        )

    return make


@pytest.fixture
def route_to() -> Callable[..., Route]:
    """A function that makes the route to a node's first acceptor; further arguments go to `Route`."""

    def make(node: Node, **route: Any) -> Route:
        host, port = node.acceptors[0].address
        return Route(host=host, port=port, **route)

    return make


@pytest.fixture
def open_pair(node: NodeFactory, route_to: Callable[..., Route]) -> PairFactory:
    """A function that opens two nodes with routes to each other; beta is opened first and left last."""

    @asynccontextmanager
    async def make(
        *, alpha: Mapping[str, Any] | None = None, beta: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Pair]:
        async with node("beta@localhost", **(beta or {})) as b, node("alpha@localhost", **(alpha or {})) as a:
            if b.acceptors:
                a.add_route("beta@localhost", route_to(b))
            if a.acceptors:
                b.add_route("alpha@localhost", route_to(a))
            yield Pair(alpha=a, beta=b)

    return make
