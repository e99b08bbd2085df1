"""What a route demands of a connection, and whether one that there is meets it.

Theory. A live connection may have been made by another route, or by the peer. A verb that is given a route uses it only
where it meets everything that the route demands. Each field of `Route` is either compared in `CHECKS`, or says merely
where the peer may be reached (`HINTS`): an address is a hint, a name is an identity. A test walks the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

from trionode._handshake.cookie import as_cookie
from trionode._identity.names import SubjectNames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionode._connection.link import Link
    from trionode._managers.manager import CertManager

    from .options import NodeOptions, Route


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Demands:
    """A route's fields, and the node's where it says nothing. The one place for that rule."""

    cert_manager: CertManager
    server_name: str | None
    cookie: bytes | None = field(repr=False)
    insecure_skip_verify: bool

    @classmethod
    def of(cls, route: Route, options: NodeOptions) -> Demands:
        """What a route of a node with these options demands."""
        network, insecure = options.network, route.insecure_skip_verify
        return cls(
            cert_manager=route.cert_manager or options.cert_manager,
            server_name=route.server_name,
            cookie=as_cookie(network.cookie if route.cookie is None else route.cookie),
            insecure_skip_verify=network.insecure_skip_verify if insecure is None else insecure,
        )

    def met_by(self, link: Link, manager: CertManager | None) -> bool:
        """Whether a connection will do.

        Args:
            link: its current one.
            manager: the one whose contexts it took.
        """
        return all(check(self, link, manager) for check in CHECKS.values())


def _same_manager(demands: Demands, link: Link, manager: CertManager | None) -> bool:
    del link
    return manager is demands.cert_manager


def _covers_server_name(demands: Demands, link: Link, manager: CertManager | None) -> bool:
    del manager
    if demands.server_name is None or demands.insecure_skip_verify:
        return True
    certificate = link.peer.certificate
    return certificate is not None and SubjectNames.of(certificate).cover_host(demands.server_name)


def _proved_cookie(demands: Demands, link: Link, manager: CertManager | None) -> bool:
    del manager
    return demands.cookie is None or link.cookie == demands.cookie


def _verified(demands: Demands, link: Link, manager: CertManager | None) -> bool:
    del manager
    return demands.insecure_skip_verify or link.peer.verified


#: How each field of `Route` is compared.
CHECKS: Final[Mapping[str, Callable[[Demands, Link, CertManager | None], bool]]] = {
    "cert_manager": _same_manager,
    "server_name": _covers_server_name,
    "cookie": _proved_cookie,
    "insecure_skip_verify": _verified,
}
#: Those that say where the peer may be reached, and demand nothing.
HINTS: Final = frozenset({"host", "port"})
