"""What a node is told: frozen, keyword-only option classes, checked when they are made."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, final

from trionode._connection.services import Service, check_service, check_service_name
from trionode._handshake.admission import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS
from trionode._handshake.cookie import as_cookie
from trionode._identity.names import NodeName, canonical_host
from trionode._identity.peer import Peer
from trionode._managers.manager import CertManager
from trionode._transport.interfaces import Transport

from .resolvers import Resolver  # noqa: TC001 -- likewise

__all__ = ["AcceptorOptions", "LiveConnections", "NetworkMode", "NetworkOptions", "NodeOptions", "Renew", "Route"]

Authorize: TypeAlias = Callable[[Peer], None]

DEFAULT_PORT = 15000
_MIB = 1024 * 1024


@final
class NetworkMode(enum.Enum):
    """Which network verbs a node has."""

    ENABLED = "enabled"
    """Listens and dials."""
    HIDDEN = "hidden"
    """Dials, does not listen."""
    DISABLED = "disabled"
    """Neither; every network verb raises `NetworkDisabledError`."""


@final
@dataclass(frozen=True, kw_only=True)
class AcceptorOptions:
    """One listening endpoint. What is None is the node's.

    Attributes:
        host: name or address to listen on, all its addresses; `*` for all interfaces, IPv4 and IPv6 (`0.0.0.0` and
            `::` for one of the two). None: those addresses of the node name's host that are local.
        port: 0 draws a free one. All listeners of an acceptor share it.
        port_range: how many consecutive ports to try, from `port` on.
        cert_manager: serves this acceptor in place of the node's.
        cookie: what dialers of this acceptor must prove that they know, in place of the node's.
        bind_names: see `NetworkOptions`.
        max_message_size: see `NetworkOptions`.
        handshake_timeout: see `NetworkOptions`.
    """

    host: str | None = None
    port: int = DEFAULT_PORT
    port_range: int = 1
    cert_manager: CertManager | None = None
    cookie: str | bytes | None = field(default=None, repr=False)
    bind_names: bool | None = None
    max_message_size: int | None = None
    handshake_timeout: float | None = None

    def __post_init__(self) -> None:
        """Check and canonicalise.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        if self.host != "*":
            _canonicalise_host(self, "host")
        _check_int("port", self.port, 0, 65535)
        _check_int("port_range", self.port_range, 1, 65535)
        _check_manager(self.cert_manager, optional=True)
        as_cookie(self.cookie)
        if self.max_message_size is not None:
            _check_int("max_message_size", self.max_message_size, 1, 2**32 - 1)
        if self.handshake_timeout is not None:
            _check_seconds("handshake_timeout", self.handshake_timeout)


@final
@dataclass(frozen=True, kw_only=True)
class Route:
    """How to reach a node name, and what differs for that peer. What is None is the node's.

    Attributes:
        host: DNS name or address to connect to; None: the node name's host.
        port: TCP port.
        cert_manager: for this destination, in place of the node's.
        server_name: what the server's certificate must cover; None: the manager's, else the node name's host.
        cookie: what both sides must prove that they know, in place of the node's.
        insecure_skip_verify: accept any certificate under any name. The peer is then never `verified`.
    """

    host: str | None = None
    port: int = DEFAULT_PORT
    cert_manager: CertManager | None = None
    server_name: str | None = None
    cookie: str | bytes | None = field(default=None, repr=False)
    insecure_skip_verify: bool | None = None

    def __post_init__(self) -> None:
        """Check and canonicalise.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        _canonicalise_host(self, "host")
        _canonicalise_host(self, "server_name")
        _check_int("port", self.port, 1, 65535)
        _check_manager(self.cert_manager, optional=True)
        as_cookie(self.cookie)


@final
@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
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
        keep_connected: node names to which a connection is kept up; see `Node.keep_connected`.
        insecure_skip_verify: for every dial whose route does not say: accept any certificate under any name.
        bind_names: whether acceptors insist that a verified client's certificate covers the node name it claims.
            False is for clusters that share one certificate.
        max_message_size: largest message that this node accepts, bytes.
        max_channels: channels that a peer may have open at once on one connection, and services that run for it.
        max_pending_opens: channels that a peer may have opened beyond that, whose service waits for another to end.
        channel_window: credit that each channel starts with towards this node, bytes. By default two messages of 64
            KiB and a bit, so that one can travel while another is read. A channel that is alone on its connection gets
            more as it keeps up, to 2 MiB.
        receive_budget: bytes that a connection may hold for messages larger than their window. What one connection
            can make this node hold is at most `(max_channels + max_pending_opens) * channel_window + receive_budget +
            max_message_size + 2 MiB`, and as much again for the channels that this node opens on it.
        heartbeat_interval: a connection that was silent for this long is pinged, seconds; infinite for never.
        heartbeat_tolerance: how long the answer to that may take, seconds. A dead peer is noticed at most
            `heartbeat_interval + heartbeat_tolerance` after its last sign of life.
        max_handshakes: handshakes that acceptors may have under way at once. Of more, the oldest of those that have
            come least far are ended: first who has sent no ClientHello, then who has not finished TLS, then the hello.
        max_handshakes_per_address: of these, from one source address (of IPv6, one /64 network).
        max_unverified: inbound connections of unverified peers at once.
        handshake_timeout: for contexts, TLS and hello, seconds; accepting it runs from the accept.
        connect_timeout: for DNS and TCP, seconds.
    """

    mode: NetworkMode = NetworkMode.ENABLED
    acceptors: Sequence[AcceptorOptions] = ()
    routes: Mapping[str, Route] = field(default_factory=dict)
    resolver: Resolver | None = None
    registration_timeout: float = 5
    registration_required: bool = False
    transport: Transport | None = None
    cookie: str | bytes | None = field(default=None, repr=False)
    keep_connected: Sequence[str | NodeName] = ()
    insecure_skip_verify: bool = False
    bind_names: bool = True
    max_message_size: int = 16 * _MIB
    max_channels: int = 1024
    max_pending_opens: int = 256
    channel_window: int = 160 * 1024
    receive_budget: int = 64 * _MIB
    max_handshakes: int = MAX_HANDSHAKES
    max_handshakes_per_address: int = MAX_HANDSHAKES_PER_ADDRESS
    max_unverified: int = 1024
    heartbeat_interval: float = 15
    heartbeat_tolerance: float = 15
    handshake_timeout: float = 10
    connect_timeout: float = 10

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        object.__setattr__(self, "acceptors", tuple(self.acceptors))
        object.__setattr__(self, "routes", MappingProxyType(dict(self.routes)))
        object.__setattr__(self, "keep_connected", tuple(NodeName.parse(name) for name in self.keep_connected))
        as_cookie(self.cookie)
        _check_transport(self.transport)
        if self.mode is not NetworkMode.ENABLED and self.acceptors:
            msg = f"acceptors were given, but the network mode {self.mode.name} opens none; drop one of the two"
            raise ValueError(msg)
        _check_int("max_message_size", self.max_message_size, 1, 2**32 - 1)
        _check_int("max_channels", self.max_channels, 1, 2**20)
        _check_int("max_pending_opens", self.max_pending_opens, 1, 2**20)
        _check_seconds("heartbeat_interval", self.heartbeat_interval)
        _check_seconds("heartbeat_tolerance", self.heartbeat_tolerance)
        _check_int("channel_window", self.channel_window, 4096, 2**30)
        _check_int("receive_budget", self.receive_budget, 0, 2**40)
        _check_int("max_handshakes", self.max_handshakes, 1, 2**20)
        _check_int("max_handshakes_per_address", self.max_handshakes_per_address, 1, 2**20)
        _check_int("max_unverified", self.max_unverified, 0, 2**20)
        _check_seconds("handshake_timeout", self.handshake_timeout)
        _check_seconds("connect_timeout", self.connect_timeout)
        _check_seconds("registration_timeout", self.registration_timeout)


@final
class Renew(enum.Enum):
    """What becomes of a live connection when a certificate that it was made with is not the current one any more."""

    KEEP = "keep"
    """It stays as it is."""
    CLOSE = "close"
    """It is closed: the peer is told, what is under way gets a grace to end; who wants it dials anew."""
    HAND_OVER = "hand_over"
    """It moves to a new TLS session on the current certificates; nobody who uses it notices."""


@final
@dataclass(frozen=True, kw_only=True)
class LiveConnections:
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
            many, and it is closed with `grace`, three times, and it is ended at once.
    """

    on_rotation: Renew = Renew.KEEP
    on_expiry: Renew = Renew.KEEP
    expiry_lead: float = 3600
    within: float = 30
    parallel: int = 8
    grace: float = 30
    max_records: int = 2**22

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        for name in ("on_rotation", "on_expiry"):
            given: object = getattr(self, name)
            if not isinstance(given, Renew):
                msg = f"{name} must be a member of Renew, not {given!r}"
                raise TypeError(msg)
        for name in ("expiry_lead", "within", "grace"):
            _check_duration(name, getattr(self, name))
        _check_int("parallel", self.parallel, 1, 2**16)
        _check_int("max_records", self.max_records, 1, 2**22)


@final
@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What a node is opened with.

    Attributes:
        cert_manager: serves the default acceptor and every outgoing connection.
        network: the network side.
        services: by name; more with `node.add_service`.
        authorize: called with every peer that passed everything else, on both sides; it can only narrow. Raise
            `Refused("…")` to refuse with a reason that the peer may read; any other exception refuses as well.
        shutdown_grace: how long a clean end may take, seconds: open channels and running services get the time to end,
            what was accepted for sending is flushed, peers are told goodbye.
        live_connections: what becomes of them when certificates rotate or end; by default they stay as they are.
        propagate_service_errors: let an exception of a service crash the node instead of being logged: for tests.
        expose_service_errors: let callers read the type and text of a service's exception; by default they only learn
            that it failed.
    """

    cert_manager: CertManager
    network: NetworkOptions = field(default_factory=NetworkOptions)
    services: Mapping[str, Service] = field(default_factory=dict)
    authorize: Authorize | None = None
    shutdown_grace: float = 1.0
    live_connections: LiveConnections = field(default_factory=LiveConnections)
    propagate_service_errors: bool = False
    expose_service_errors: bool = False

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError, TypeError: an option makes no sense; the message names it.
        """
        object.__setattr__(self, "services", MappingProxyType(dict(self.services)))
        for name, service in self.services.items():
            check_service_name(name)
            check_service(service)
        _check_manager(self.cert_manager, optional=False)
        _check_authorize(self.authorize)
        _check_duration("shutdown_grace", self.shutdown_grace)


def _canonicalise_host(options: AcceptorOptions | Route, attribute: str) -> None:
    host: str | None = getattr(options, attribute)
    if host is not None:
        object.__setattr__(options, attribute, canonical_host(host))


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        msg = f"{name} must be an integer from {low} to {high}, not {value!r}"
        raise ValueError(msg)


def _check_seconds(name: str, value: float) -> None:
    if not 0 < value <= math.inf:
        msg = f"{name} must be a positive number of seconds, not {value!r}"
        raise ValueError(msg)


def _check_duration(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        msg = f"{name} must be a finite number of seconds from 0 up, not {value!r}"
        raise ValueError(msg)


def _check_authorize(authorize: object) -> None:
    if authorize is not None and (not callable(authorize) or inspect.iscoroutinefunction(authorize)):
        msg = "authorize must be a plain (not async) function of a Peer that returns None or raises"
        raise TypeError(msg)


def _check_transport(transport: object) -> None:
    if not (transport is None or isinstance(transport, Transport)):
        msg = f"transport must have the methods of a Transport, listen and connect, which {transport!r} has not"
        raise TypeError(msg)


def _check_manager(manager: object, *, optional: bool) -> None:
    if not (isinstance(manager, CertManager) or (optional and manager is None)):
        msg = f"cert_manager must be a CertManager, not {type(manager).__name__}"
        raise TypeError(msg)
