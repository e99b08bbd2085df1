"""Options of a node: frozen, keyword-only classes, checked when they are made."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias, final

from trionode._connection.interceptors import Interceptor, check_interceptor
from trionode._connection.services import Service, check_service, check_service_name
from trionode._handshake.admission import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS
from trionode._handshake.cookie import as_cookie
from trionode._identity.names import NodeName, canonical_host
from trionode._identity.patterns import NamePattern, is_glob
from trionode._identity.peer import Peer
from trionode._managers.by_name import ManagersByName, ServerManagers
from trionode._managers.manager import CertManager
from trionode._protocol import MAX_METADATA
from trionode._transport.given import GivenListener  # noqa: TC001 -- likewise
from trionode._transport.interfaces import Transport  # noqa: TC001 -- likewise
from trionode._util.fields import DURATION, SECONDS, Checked, Entries, Items, Parsed, Such, integer, rule, rule_of
from trionode._util.functions import is_async

from .resolvers import DEFAULT_PORT, Resolver

__all__ = ["AcceptorOptions", "LiveConnections", "NetworkMode", "NetworkOptions", "NodeOptions", "Renew", "Route"]

Authorize: TypeAlias = Callable[[Peer], None]

_MIB = 1024 * 1024


def _server_managers(given: ServerManagers) -> ServerManagers:
    ManagersByName(given)
    return MappingProxyType(dict(given)) if isinstance(given, Mapping) else given


HOST: Final = Parsed(canonical_host, "a DNS name or an IP address")
PORT: Final = integer(1, 65535)
_COUNT: Final = integer(1, 2**20)
_MESSAGE_SIZE: Final = integer(1, 2**32 - 1, "bytes")
_METADATA_SIZE: Final = integer(0, MAX_METADATA, "bytes")
_COOKIE: Final = Parsed(as_cookie, "a string or bytes", kinds=(object,), keep=True)
_SERVER_MANAGERS: Final = Parsed(
    _server_managers, "a CertManager or a mapping of server names to such", kinds=(CertManager, Mapping)
)
_NAME_OR_GLOB: Final = Parsed(
    lambda given: NamePattern(given).text if is_glob(given) else NodeName.parse(given),
    "a node name or a glob over one",
    kinds=(str, NodeName),
)
_PATTERN: Final = Parsed(NamePattern, "a node name or a glob over one", kinds=(str, NodeName), keep=True)


@final
class NetworkMode(enum.Enum):
    """Which network verbs a node has."""

    ENABLED = "enabled"
    """Listens and dials."""
    HIDDEN = "hidden"
    """Dials, does not listen."""
    DISABLED = "disabled"
    """Neither; every network verb raises `NetworkDisabledError`."""


def _listen_host(host: str) -> str:
    return host if host == "*" else canonical_host(host)


def _dial_host(host: str) -> str:
    """A host to dial: unlike a name in a certificate it may be an IPv6 address with a zone (RFC 4007)."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    address, mark, zone = bare.partition("%")
    if not mark or not _ZONE.fullmatch(zone) or ":" not in address:
        return canonical_host(host)
    return f"{canonical_host(address)[:-1]}%{zone}]"


_ZONE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,32}")
_DIAL_HOST: Final = Parsed(_dial_host, "a DNS name or an IP address")
_LISTEN_HOST: Final = Parsed(_listen_host, "a DNS name, an IP address or *")


@final
@dataclass(frozen=True, kw_only=True)
class AcceptorOptions(Checked):
    """One listening endpoint. What is None is the node's.

    Attributes:
        host: name or address to listen on, on all its addresses; `*` for all interfaces, IPv4 and IPv6 (`0.0.0.0` and
            `::` for one of the two). None: those addresses of the node name's host that are local.
        port: 0 draws a free one. All listeners of an acceptor share it.
        port_range: how many consecutive ports to try, from `port` on.
        reuse_port: share the port with other sockets that were opened so (`SO_REUSEPORT`), for several processes on one
            port. Every process of the same user may then join in, and gets a share of the connections; and what waits
            in the queue of one that stops is reset. To restart without a gap, hand over a socket (`listeners`).
        listeners: what to listen on in place of host and port: TCP listeners that are open already, of
            `inherited_listeners` and `adopt_listener`, or those of a `Transport`. The node owns them, and closes them,
            also where it does not open; so these options are good for one node.
        cert_manager: serves this acceptor in place of the node's; or a mapping of server names to managers, see
            `serve_tls`.
        cookie: the shared secret that dialers of this acceptor must prove that they know, in place of the node's.
        bind_names: see `NetworkOptions`.
        max_message_size: see `NetworkOptions`.
        max_metadata_size: see `NetworkOptions`.
        handshake_timeout: see `NetworkOptions`.
    """

    host: str | None = field(default=None, metadata=rule(_LISTEN_HOST))
    port: int = field(default=DEFAULT_PORT, metadata=rule(integer(0, 65535)))
    port_range: int = field(default=1, metadata=rule(PORT))
    reuse_port: bool = False
    listeners: Sequence[GivenListener] = ()
    cert_manager: ServerManagers | None = field(default=None, metadata=rule(_SERVER_MANAGERS))
    cookie: str | bytes | None = field(default=None, repr=False, metadata=rule(_COOKIE))
    bind_names: bool | None = None
    max_message_size: int | None = field(default=None, metadata=rule(_MESSAGE_SIZE))
    max_metadata_size: int | None = field(default=None, metadata=rule(_METADATA_SIZE))
    handshake_timeout: float | None = field(default=None, metadata=rule(SECONDS))

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        super().__post_init__()
        if self.listeners and (self.host, self.port, self.port_range, self.reuse_port) != (
            None,
            DEFAULT_PORT,
            1,
            False,
        ):
            msg = "listeners were given, which are bound already: drop them, or host, port, port_range and reuse_port"
            raise ValueError(msg)


@final
@dataclass(frozen=True, kw_only=True)
class Route(Checked):
    """How to reach a node name, and what differs for that peer. What is None is the node's.

    Attributes:
        host: DNS name or address to connect to, which may have a zone (`fe80::1%eth0`); None: the node name's host.
        port: TCP port.
        cert_manager: for this destination, in place of the node's.
        server_name: what the server's certificate must cover; None: the manager's, else the node name's host.
        cookie: the shared secret that both sides must prove that they know, in place of the node's.
        insecure_skip_verify: accept any certificate under any name. The peer is then never `verified`.
    """

    host: str | None = field(default=None, metadata=rule(_DIAL_HOST))
    port: int = field(default=DEFAULT_PORT, metadata=rule(PORT))
    cert_manager: CertManager | None = None
    server_name: str | None = field(default=None, metadata=rule(HOST))
    cookie: str | bytes | None = field(default=None, repr=False, metadata=rule(_COOKIE))
    insecure_skip_verify: bool | None = None


@final
@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Checked):
    """A node's network side.

    Attributes:
        mode: see `NetworkMode`.
        acceptors: where to listen; empty means one acceptor with the default options.
        routes: by node name or glob over the whole name (`beta@*`).
        resolver: finds endpoints for names that no route matches; None: the name's host, port 15000. One that is also
            a `Registrar` (`LocalRegistry`) makes this node known while it accepts.
        registration_timeout: how long opening the node waits for a registrar to have made it known, seconds. One that
            takes longer goes on trying, and is reported.
        registration_required: whether the node does not open if it takes longer.
        transport: what carries the bytes, for tests and for transports other than TCP; None: TCP.
        cookie: a shared secret on top of certificates, at least 16 bytes, that both sides of every connection must
            prove that they know; `generate_cookie()` makes one. A route's or an acceptor's own takes its place.
        keep_connected: node names, and globs over these, to which connections are kept up; see
            `Node.keep_connected`.
        members: which of the names that a resolver knows are followed, as node names and globs; see `Node.members`.
            Empty for none.
        insecure_skip_verify: for every dial whose route does not say: accept any certificate under any name.
        bind_names: whether acceptors insist that a verified client's certificate covers the node name it claims.
            False is for clusters that share one certificate.
        max_message_size: largest message that this node accepts, bytes.
        max_metadata_size: most metadata that this node accepts with a call or channel, encoded, bytes; 0 for none.
        max_channels: channels that a peer may have open at once on one connection, and services that run for it.
        max_pending_opens: channels that a peer may have opened beyond that, whose service waits for another to end.
        channel_window: credit that each channel starts with towards this node, bytes. By default two messages of 64
            KiB and a bit, so that one can travel while another is read. A channel that is alone on its connection gets
            more as it keeps up, to 2 MiB.
        receive_budget: bytes that a connection may hold for messages larger than their window. What one connection
            can make this node hold is at most `(max_channels + max_pending_opens) * (channel_window + 4 *
            max_metadata_size + 20 KiB) + receive_budget + max_message_size + 2 MiB`, and as much again for the channels
            that this node opens on it.
        heartbeat_interval: a connection that was silent for this long is pinged, seconds; infinite for never.
        heartbeat_tolerance: how long the answer to that may take, seconds. A dead peer is noticed at most
            `heartbeat_interval + heartbeat_tolerance` after its last sign of life.
        max_handshakes: handshakes that acceptors may have under way at once. Beyond that, the oldest of those in the
            earliest stage are shed: first those before the ClientHello, then those in TLS, then those in the hello.
        max_handshakes_per_address: of these, from one source address (of IPv6, one /64 network).
        max_unverified: inbound connections of unverified peers at once, those that are closing included; at the limit
            the oldest is ended.
        handshake_timeout: for contexts, TLS and hello, seconds; accepting it runs from the accept.
        connect_timeout: for DNS and TCP, seconds.
    """

    mode: NetworkMode = NetworkMode.ENABLED
    acceptors: Sequence[AcceptorOptions] = ()
    routes: Mapping[str, Route] = field(default_factory=dict, metadata=rule(Entries(_PATTERN, rule_of(Route))))
    resolver: Resolver | None = None
    registration_timeout: float = field(default=5, metadata=rule(SECONDS))
    registration_required: bool = False
    transport: Transport | None = None
    cookie: str | bytes | None = field(default=None, repr=False, metadata=rule(_COOKIE))
    keep_connected: Sequence[str | NodeName] = field(default=(), metadata=rule(Items(_NAME_OR_GLOB)))
    members: Sequence[str | NodeName] = field(default=("*",), metadata=rule(Items(_PATTERN)))
    insecure_skip_verify: bool = False
    bind_names: bool = True
    max_message_size: int = field(default=16 * _MIB, metadata=rule(_MESSAGE_SIZE))
    max_metadata_size: int = field(default=8 * 1024, metadata=rule(_METADATA_SIZE))
    max_channels: int = field(default=1024, metadata=rule(_COUNT))
    max_pending_opens: int = field(default=256, metadata=rule(_COUNT))
    channel_window: int = field(default=160 * 1024, metadata=rule(integer(4096, 2**30, "bytes")))
    receive_budget: int = field(default=64 * _MIB, metadata=rule(integer(0, 2**40, "bytes")))
    max_handshakes: int = field(default=MAX_HANDSHAKES, metadata=rule(_COUNT))
    max_handshakes_per_address: int = field(default=MAX_HANDSHAKES_PER_ADDRESS, metadata=rule(_COUNT))
    max_unverified: int = field(default=1024, metadata=rule(integer(0, 2**20)))
    heartbeat_interval: float = field(default=15, metadata=rule(SECONDS))
    heartbeat_tolerance: float = field(default=15, metadata=rule(SECONDS))
    handshake_timeout: float = field(default=10, metadata=rule(SECONDS))
    connect_timeout: float = field(default=10, metadata=rule(SECONDS))

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        super().__post_init__()
        if self.mode is not NetworkMode.ENABLED and self.acceptors:
            msg = f"acceptors were given, but the network mode {self.mode.name} opens none; drop one of the two"
            raise ValueError(msg)
        if self.transport is not None and any(each.reuse_port for each in self.acceptors):
            msg = "reuse_port is an option of TCP sockets, and a transport was given; drop one of the two"
            raise ValueError(msg)
        if self.mode is NetworkMode.DISABLED and self.keep_connected:
            msg = "keep_connected was given, but the network mode DISABLED makes no connection; drop one of the two"
            raise ValueError(msg)


@final
class Renew(enum.Enum):
    """What becomes of a live connection when a certificate that it was made with is no longer the current one."""

    KEEP = "keep"
    """It stays as it is."""
    CLOSE = "close"
    """It is closed: the peer is told, calls and channels under way get a grace to end; further calls dial anew."""
    HAND_OVER = "hand_over"
    """It moves to a new TLS session on the current certificates; channels and calls go on."""


@final
@dataclass(frozen=True, kw_only=True)
class LiveConnections(Checked):
    """What becomes of live connections when certificates rotate or end.

    Whatever is chosen here, a connection is also handed over before one TLS key has protected `max_records` records
    (RFC 8446 section 5.5), and when its acceptor asks its dialer to.

    Attributes:
        on_rotation: when a manager publishes a generation.
        on_expiry: when a certificate that it was authenticated with, ours or the peer's, comes to its end. With
            `CLOSE` and `HAND_OVER`, it is ended at the latest when that certificate is.
        expiry_lead: how long before that it begins, seconds. A connection that is made, or was handed over, when less
            than that is left has its turn when half of it has passed.
        within: every connection's turn comes within so many seconds of a generation, or after `expiry_lead` began (half
            of that at most), drawn at random, so that a cluster does not do it all at once.
        parallel: how many turns at a time, per node.
        grace: how long what is under way may take to end where a connection is closed, seconds.
        max_records: TLS records under one key, sent or received, after which it is handed over; at most 2**22. Twice as
            many, and it is closed with `grace`; three times, and it is ended at once.
    """

    on_rotation: Renew = Renew.KEEP
    on_expiry: Renew = Renew.KEEP
    expiry_lead: float = field(default=3600, metadata=rule(DURATION))
    within: float = field(default=30, metadata=rule(DURATION))
    parallel: int = field(default=8, metadata=rule(integer(1, 2**16)))
    grace: float = field(default=30, metadata=rule(DURATION))
    max_records: int = field(default=2**22, metadata=rule(integer(1, 2**22)))


def _is_plain_function(given: object) -> bool:
    return callable(given) and not is_async(given)


_AUTHORIZE: Final = Such(_is_plain_function, "a plain (not async) function of a Peer")
_SERVICES: Final = Entries(
    Parsed(check_service_name, "the name of a service", kinds=(object,), keep=True),
    Parsed(check_service, "an async function of a channel", kinds=(object,), keep=True),
)


_INTERCEPTORS: Final = Items(
    Parsed(check_interceptor, "an async function of a call and proceed", kinds=(object,), keep=True)
)


@final
@dataclass(frozen=True, kw_only=True)
class NodeOptions(Checked):
    """What a node is opened with.

    Attributes:
        cert_manager: serves the default acceptor and every outgoing connection.
        network: the network side.
        services: by name; more with `node.add_service`.
        authorize: called with every peer that passed everything else, on both sides; it can only narrow. Raise
            `Refused("…")` to refuse with a reason that the peer may read; any other exception refuses as well.
        shutdown_grace: how long a clean end may take, seconds: open channels and running services get time to end,
            what was accepted for sending is flushed, peers are sent a goodbye.
        interceptors: async functions around each call and channel, those that this node makes and those that it serves;
            the first is the outermost. See `Interceptor`.
        live_connections: what becomes of them when certificates rotate or end; by default they stay as they are.
        propagate_service_errors: let an exception of a service crash the node instead of being logged: for tests.
        expose_service_errors: let callers read the type and text of a service's exception; by default they only learn
            that it failed.
    """

    cert_manager: CertManager
    network: NetworkOptions = field(default_factory=NetworkOptions)
    services: Mapping[str, Service] = field(default_factory=dict, metadata=rule(_SERVICES))
    authorize: Authorize | None = field(default=None, metadata=rule(_AUTHORIZE))
    shutdown_grace: float = field(default=1.0, metadata=rule(DURATION))
    interceptors: Sequence[Interceptor] = field(default=(), metadata=rule(_INTERCEPTORS))
    live_connections: LiveConnections = field(default_factory=LiveConnections)
    propagate_service_errors: bool = False
    expose_service_errors: bool = False
