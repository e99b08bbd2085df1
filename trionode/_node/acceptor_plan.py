"""What an acceptor is opened with: its options, and the node's where they say nothing. The one place for that rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from trionode._handshake.cookie import as_cookie
from trionode._managers.by_name import ManagersByName

from .options import AcceptorOptions, NetworkMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._identity.names import NodeName
    from trionode._transport.given import GivenListener

    from .options import NodeOptions


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptorPlan:
    """One listening endpoint; the fields are those of `AcceptorOptions`, all of them known.

    Attributes:
        host: to listen on; None for all interfaces.
        only_local: whether only those of the host's addresses count that are this machine's.
        managers: one, or several by server name.
        cookie: as bytes.
    """

    host: str | None
    only_local: bool
    port: int
    port_range: int
    reuse_port: bool
    listeners: Sequence[GivenListener]
    managers: ManagersByName
    cookie: bytes | None
    bind_names: bool
    max_message_size: int
    max_metadata_size: int
    handshake_timeout: float


def acceptor_plans(name: NodeName, options: NodeOptions) -> Sequence[AcceptorPlan]:
    """The acceptors of a node of this name; one with the default options where the node listens and has none."""
    network = options.network
    default = [AcceptorOptions()] if network.mode is NetworkMode.ENABLED else []
    return [
        AcceptorPlan(
            host=None if each.host == "*" else each.host or name.host,
            only_local=each.host is None,
            port=each.port,
            port_range=each.port_range,
            reuse_port=each.reuse_port,
            listeners=each.listeners,
            managers=ManagersByName(each.cert_manager or options.cert_manager),
            cookie=as_cookie(network.cookie if each.cookie is None else each.cookie),
            bind_names=network.bind_names if each.bind_names is None else each.bind_names,
            max_message_size=each.max_message_size or network.max_message_size,
            max_metadata_size=(network.max_metadata_size if each.max_metadata_size is None else each.max_metadata_size),
            handshake_timeout=each.handshake_timeout or network.handshake_timeout,
        )
        for each in network.acceptors or default
    ]
