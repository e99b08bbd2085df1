"""A node's configuration file: TOML, checked against types, with a message for what is wrong in it.

Each class below is a table of the file. File names are relative to the file's directory.
"""

from __future__ import annotations

import difflib
import tomllib
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from trionode._credentials.pem import read_file

from .exits import ExitStatus, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A larger file is no configuration. Bytes.
_MAX_BYTES: Final = 1024 * 1024


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Any table."""


class CredentialsTable(Table, frozen=True, kw_only=True):
    """`[credentials]`: which files; all are followed while the node runs.

    Attributes:
        cert: certificate, PEM: leaf first, then intermediates.
        key: its private key, PEM; by default in the same file.
        password_file: its first line is the password of the key.
        ca: CAs for both directions, PEM.
        client_ca: further CAs, for clients alone.
        root_ca: further CAs, for servers alone.
        crl: certificate revocation lists.
        client_auth: what acceptors ask of clients, see `ClientAuth`.
        server_name: the reference name of every dial; by default the host that is dialed.
        poll_interval: how often the files are compared, seconds.
        stranded: what becomes of live peers whose certificates new CAs or revocation lists do not accept: `refuse`
            keeps the old ones in use until there are no such peers, `close` ends their connections, `keep` leaves them.
        join: URL of an EST server, `trionode pki serve` for one, to get the certificate from, in place of files.
        token_file: its first line is the join token.
        state_file: keeps that certificate and its key over a restart.
        renew_after: at which share of its lifetime it is renewed, at the latest: 0.2 to 0.9.
    """

    cert: str | None = None
    key: str | None = None
    password_file: str | None = None
    ca: list[str] = []
    client_ca: list[str] = []
    root_ca: list[str] = []
    crl: list[str] = []
    client_auth: Literal["no", "request", "require-any", "verify-if-given", "require-and-verify"] = "require-and-verify"
    server_name: str | None = None
    poll_interval: float = 1.0
    stranded: Literal["refuse", "close", "keep"] = "refuse"
    join: str | None = None
    token_file: str | None = None
    state_file: str | None = None
    renew_after: float = 2 / 3


class AcceptorTable(Table, frozen=True, kw_only=True):
    """`[[acceptors]]`: where to listen; the table may be repeated.

    Attributes:
        host: as `AcceptorOptions.host`.
        port: 0 draws a free one.
        port_range: how many consecutive ports to try, from `port` on.
        reuse_port: as `AcceptorOptions.reuse_port`.
        socket: the name of the sockets that a service manager hands over (systemd's `FileDescriptorName=`), in place
            of host and port.
    """

    host: str | None = None
    port: int = 15000
    port_range: int = 1
    reuse_port: bool = False
    socket: str | None = None


class RouteTable(Table, frozen=True, kw_only=True):
    """`[routes."NAME or glob"]`: how to reach a node.

    Attributes:
        host: where to connect to; by default the host of the node's name.
        port: TCP port.
        server_name: what the server's certificate must cover; by default that of `[credentials]`.
    """

    host: str | None = None
    port: int = 15000
    server_name: str | None = None


class NetworkTable(Table, frozen=True, kw_only=True):
    """`[network]`: see `NetworkOptions`; what is absent has its default there.

    Attributes:
        mode: whether the node listens.
        cookie_file: its first line is the cookie that all nodes share.
        registry: where nodes find each other: `etcd://HOST[,HOST…][/PREFIX]`, `dns:[//SERVER][?NAME=SRVNAME]`,
            `local:[DIRECTORY]` or `static:FILE`.
        registry_password_file: its first line is the password of the user in `etcd://USER@HOST`.
        keep_connected: names of nodes, and globs over these, to which connections are kept up.
        bind_names: whether a client's certificate must cover the name that it claims.
        max_message_size: as `NetworkOptions.max_message_size`, bytes.
        max_metadata_size: as `NetworkOptions.max_metadata_size`, bytes.
        max_channels: as `NetworkOptions.max_channels`.
        heartbeat_interval: as `NetworkOptions.heartbeat_interval`, seconds.
        heartbeat_tolerance: as `NetworkOptions.heartbeat_tolerance`, seconds.
        handshake_timeout: as `NetworkOptions.handshake_timeout`, seconds.
        connect_timeout: as `NetworkOptions.connect_timeout`, seconds.
    """

    mode: Literal["enabled", "hidden"] = "enabled"
    cookie_file: str | None = None
    registry: str | None = None
    registry_password_file: str | None = None
    keep_connected: list[str] = []
    bind_names: bool = True
    max_message_size: int | None = None
    max_metadata_size: int | None = None
    max_channels: int | None = None
    heartbeat_interval: float | None = None
    heartbeat_tolerance: float | None = None
    handshake_timeout: float | None = None
    connect_timeout: float | None = None


class LiveConnectionsTable(Table, frozen=True, kw_only=True):
    """`[live_connections]`: see `LiveConnections`; what is absent has its default there.

    Attributes:
        on_rotation: what becomes of a connection when a certificate is rotated.
        on_expiry: the same when a certificate of the connection comes to its end.
        expiry_lead: how long before that it begins, seconds.
        within: each connection's turn comes at a random time within this, seconds.
        grace: how long what is under way has where a connection is closed, seconds.
    """

    on_rotation: Literal["keep", "close", "hand_over"] = "keep"
    on_expiry: Literal["keep", "close", "hand_over"] = "keep"
    expiry_lead: float | None = None
    within: float | None = None
    grace: float | None = None


class ASGITable(Table, frozen=True, kw_only=True):
    """`[asgi]`: an ASGI application that is served over HTTPS, with the certificate of `[credentials]`.

    Attributes:
        app: where it is, as `module:app`; looked for beside the file first.
        listen: where to listen, as `HOST:PORT`; `*` is all interfaces, and 0 draws a free port. By default
            `localhost:8443`.
        socket: the name of the sockets that a service manager hands over (systemd's `FileDescriptorName=`), in place
            of `listen`. An application without a node takes all that it hands over.
        grace: how long requests may take to finish at the end, and the application's lifespan after them, seconds.
        access_log: whether each request is logged, on the logger `trionode.http.access`.
    """

    app: str | None = None
    listen: list[str] = []
    socket: str | None = None
    grace: float = 5.0
    access_log: bool = False


class Config(Table, frozen=True, kw_only=True):
    """The file.

    Attributes:
        name: the node's name, unless it is given on the command line. Without one, or with the name of a host, no node
            is opened: there is only the application of `[asgi]`.
        pki: a directory of `trionode pki`, in place of `[credentials]`.
        shutdown_grace: how long a graceful end may take, seconds.
        status: whether `trionode status` of the same user is answered.
        health: whether the node has the service `trionode.health`, which every peer may ask.
        metrics: where metrics, `/ready` and `/live` are served over plain HTTP, as `HOST:PORT`; `*` is all interfaces.
        log_level: what goes to stderr.
    """

    name: str | None = None
    pki: str | None = None
    shutdown_grace: float = 1.0
    status: bool = True
    health: bool = False
    metrics: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    credentials: CredentialsTable = msgspec.field(default_factory=CredentialsTable)
    network: NetworkTable = msgspec.field(default_factory=NetworkTable)
    live_connections: LiveConnectionsTable = msgspec.field(default_factory=LiveConnectionsTable)
    asgi: ASGITable = msgspec.field(default_factory=ASGITable)
    acceptors: list[AcceptorTable] = []
    routes: dict[str, RouteTable] = {}
    services: dict[str, str] = {}


def load_config(file: Path) -> Config:
    """Read a configuration file.

    Raises:
        CertificateError: it cannot be read.
        Trouble: something in it is wrong; the message names the key.
    """
    data = read_file(file, limit=_MAX_BYTES, kind="configuration file").data
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"{file} is not valid TOML: {exc}"
        raise Trouble(msg, ExitStatus.USAGE) from None
    for wrong in _wrong(document, Config, ""):
        raise Trouble(f"{file}: {wrong}", ExitStatus.USAGE)
    return msgspec.convert(document, Config)


def _wrong(value: object, kind: object, where: str) -> Iterator[str]:
    """What does not fit the classes above: unknown keys, with the nearest known one, and values of a wrong type."""
    if isinstance(kind, type) and issubclass(kind, Table) and isinstance(value, dict):
        hints = get_type_hints(kind)
        for key, inner in value.items():
            if key in hints:
                yield from _wrong(inner, hints[key], f"{where}.{key}" if where else key)
                continue
            nearest = difflib.get_close_matches(key, hints, n=1)
            place = f"in [{where}]" if where else "at the top"
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known there: {', '.join(sorted(hints))}"
            yield f"unknown key {key!r} {place}; {hint}"
    elif get_origin(kind) is list and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _wrong(inner, get_args(kind)[0], f"{where}[{number}]")
    elif get_origin(kind) is dict and isinstance(value, dict):
        for key, inner in value.items():
            yield from _wrong(inner, get_args(kind)[1], f'{where}."{key}"')
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            yield f"{where} has to be {wanted(kind, where)}, not {value!r}"


_WORDS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def wanted(kind: object, where: str) -> str:
    """A type in the words of TOML.

    Args:
        kind: a type of the classes above.
        where: the key that it is for.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is UnionType:
        return " or ".join(wanted(each, where) for each in inner if each is not NoneType)
    if origin is list:
        tables = isinstance(inner[0], type) and issubclass(inner[0], Table)
        return f"tables, each headed [[{where}]]" if tables else "a list"
    if isinstance(kind, type) and kind in _WORDS:
        return _WORDS[kind]
    return f"a table, headed [{where}]"
