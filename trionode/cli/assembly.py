"""From what was given to `trionode serve`, on the command line and in its file, to a node's options.

Options on the command line take precedence over the file. What is wrong in either is one error that says where.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click

from trionode import (
    AcceptorOptions,
    ListenError,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Renew,
    Route,
    inherited_listeners,
)
from trionode._connection.services import check_service, check_service_name
from trionode._identity.patterns import NamePattern
from trionode._node.options import DEFAULT_PORT

from .exits import ExitStatus, Trouble
from .given import CLIENT_AUTH, Given, host_and_port, read_cookie
from .paths import rereadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import trio

    from trionode import FileSource, Service, ServiceChannel

    from .config import AcceptorTable, Config, LiveConnectionsTable, NetworkTable, Table

T = TypeVar("T", NetworkOptions, LiveConnections)

_BUILT_IN: Final = "echo"


async def echo(channel: ServiceChannel) -> None:
    """The built-in service: every message comes back."""
    async for message in channel:
        await channel.send(message)


def assemble(
    config: Config,
    config_file: Path | None,
    *,
    node: str | None,
    given: Given,
    client_auth: str | None,
    listen: tuple[str, ...],
    routes: tuple[str, ...],
    services: tuple[str, ...],
    cookie_file: Path | None,
) -> tuple[NodeName, NodeOptions, FileSource]:
    """A node's name and options, and the files that its manager follows.

    Args:
        config: the configuration file, or defaults.
        config_file: where it is; paths in it are relative to its directory.
        node: the command line's NODE. This and the rest take precedence over the file.
        given: where the credentials are.
        client_auth: a key of `CLIENT_AUTH`.
        listen: HOST:PORT of each acceptor.
        routes: NODE=HOST:PORT of each route.
        services: NAME[=MODULE:FUNCTION] of each service.
        cookie_file: its first line is the cookie.

    Raises:
        click.UsageError: something is missing.
        CertificateError: a file is unusable.
        Trouble: an option is not valid.
    """
    base = Path() if config_file is None else config_file.parent
    name = _name_of(node, config, config_file)
    try:
        merged = _merged(given, config, base)
    except ValueError as exc:
        raise Trouble(f"{config_file}: {exc}", ExitStatus.USAGE) from None
    files = merged.files(name)
    mode = CLIENT_AUTH[client_auth or config.credentials.client_auth]
    if mode.verifies and not files.client_cas:
        msg = (
            "client certificates are to be verified, and no CA was given: give --ca or --client-ca (in the file: ca or "
            "client_ca in [credentials]), or --client-auth no"
        )
        raise click.UsageError(msg)
    try:
        with _about("[credentials]"):
            manager = files.manager(server_name=config.credentials.server_name, client_auth=mode)
            source = files.source(poll_interval=config.credentials.poll_interval)
        acceptors, all_routes = _acceptors(listen, config), _routes(routes, config)
        with _about("[network]"):
            network = _network(config.network, acceptors, all_routes, cookie_file, base)
        with _about("[live_connections]"):
            live_connections = _live_connections(config.live_connections)
        options = NodeOptions(
            cert_manager=manager,
            network=network,
            services=_services(services, config, base),
            live_connections=live_connections,
            shutdown_grace=config.shutdown_grace,
        )
    except (ValueError, TypeError) as exc:
        where = "" if config_file is None else f"{config_file}: "
        raise Trouble(f"{where}{exc}", ExitStatus.USAGE) from None
    return name, options, source


@contextmanager
def _about(what: str) -> Iterator[None]:
    """An error in the block says which part of the options it is about."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        msg = f"{what}: {exc}"
        raise ValueError(msg) from None


def _name_of(node: str | None, config: Config, file: Path | None) -> NodeName:
    name = node or config.name
    if name is None:
        msg = "which node? Give its name, name@host" + ("" if file is None else f", or name = … in {file}")
        raise click.UsageError(msg)
    try:
        return NodeName.parse(name)
    except ValueError as exc:
        where = "" if node is not None else f"{file}: name: "
        raise Trouble(f"{where}{exc}", ExitStatus.USAGE) from None


def _merged(given: Given, config: Config, base: Path) -> Given:
    """Where the credentials are: options take precedence over the file; certificate and key as a pair."""
    table = config.credentials
    named = [key for key in ("cert", "key", "ca", "client_ca", "root_ca", "crl") if getattr(table, key)]
    if config.pki is not None and named:
        msg = (
            f"pki and [credentials] {', '.join(named)} exclude each other: the files are those of the directory, or "
            "those that are named one by one"
        )
        raise ValueError(msg)
    cert, key, password = (
        None if text is None else rereadable(base / text) for text in (table.cert, table.key, table.password_file)
    )
    if given.named:
        cert, key, password = given.cert, given.key, given.password
    source = click.get_current_context().get_parameter_source("directory")
    directory = given.directory
    if config.pki is not None and source is click.core.ParameterSource.DEFAULT:
        directory = base / config.pki
    return Given(
        directory=directory,
        cert=cert,
        key=key,
        password=given.password or password,
        cas=given.cas or _paths(base, table.ca),
        client_cas=given.client_cas or _paths(base, table.client_ca),
        root_cas=given.root_cas or _paths(base, table.root_ca),
        crls=given.crls or _paths(base, table.crl),
        no_crl=given.no_crl,
    )


def _paths(base: Path, texts: list[str]) -> tuple[Path, ...]:
    return tuple(rereadable(base / text) for text in texts)


def _acceptors(listen: tuple[str, ...], config: Config) -> list[AcceptorOptions]:
    """Where to listen: on what the service manager has handed over, all of which has to be used, or on ports."""
    try:
        handed = dict(inherited_listeners())
    except ListenError as exc:
        raise Trouble(str(exc), ExitStatus.USAGE) from None
    if handed and not listen and not config.acceptors:
        return [AcceptorOptions(listeners=[each for same in handed.values() for each in same])]
    with _about("[[acceptors]]"):
        acceptors = [_acceptor(each, handed) for each in config.acceptors if not listen]
    places = [host_and_port(text) for text in listen]
    acceptors += [AcceptorOptions(host=host, port=port) for host, port in places]
    if handed:
        msg = (
            f"the service manager has handed over sockets that nothing uses: {', '.join(handed)}. Name them in the "
            "file (socket = in [[acceptors]]), or give neither --listen nor [[acceptors]]"
        )
        raise Trouble(msg, ExitStatus.USAGE)
    return acceptors


def _acceptor(table: AcceptorTable, handed: dict[str, Sequence[trio.SocketListener]]) -> AcceptorOptions:
    """One acceptor of the file; the sockets that it names are taken out of `handed`."""
    listeners: Sequence[trio.SocketListener] = ()
    if table.socket is not None:
        if table.socket not in handed:
            found = f"it did hand over: {', '.join(handed)}" if handed else "it has handed over none"
            msg = f"no socket of the name {table.socket!r} comes from a service manager (FileDescriptorName=); {found}"
            raise ValueError(msg)
        listeners = handed.pop(table.socket)
    return AcceptorOptions(
        host=table.host,
        port=table.port,
        port_range=table.port_range,
        reuse_port=table.reuse_port,
        listeners=listeners,
    )


def _routes(given: tuple[str, ...], config: Config) -> dict[str, Route]:
    routes: dict[str, Route] = {}
    for pattern, each in config.routes.items():
        with _about(f"route {pattern!r}"):
            routes[pattern] = Route(host=each.host, port=each.port, server_name=each.server_name)
    for text in given:
        pattern, equals, where = text.partition("=")
        if not equals or not pattern:
            msg = f"{text!r} is no route; write NODE=HOST:PORT"
            raise click.BadParameter(msg, param_hint="--route")
        host, port = host_and_port(where, DEFAULT_PORT)
        routes[pattern] = Route(host=host, port=port)
    for pattern in routes:
        with _about(f"route {pattern!r}"):
            NamePattern(pattern)
    return routes


def _network(
    table: NetworkTable,
    acceptors: list[AcceptorOptions],
    routes: dict[str, Route],
    cookie_file: Path | None,
    base: Path,
) -> NetworkOptions:
    if cookie_file is None and table.cookie_file is not None:
        cookie_file = rereadable(base / table.cookie_file)
    options = NetworkOptions(
        mode=NetworkMode(table.mode),
        acceptors=acceptors,
        routes=routes,
        cookie=read_cookie(cookie_file),
        keep_connected=table.keep_connected,
        bind_names=table.bind_names,
    )
    numbers = ("max_message_size", "max_channels", "heartbeat_interval", "heartbeat_tolerance")
    return _changed(options, table, (*numbers, "handshake_timeout", "connect_timeout"))


def _live_connections(table: LiveConnectionsTable) -> LiveConnections:
    options = LiveConnections(on_rotation=Renew(table.on_rotation), on_expiry=Renew(table.on_expiry))
    return _changed(options, table, ("expiry_lead", "within", "grace"))


def _changed(options: T, table: Table, names: tuple[str, ...]) -> T:
    """Options with the values that a table has; the others stay."""
    values = {name: getattr(table, name) for name in names if getattr(table, name) is not None}
    return replace(options, **values)


def _services(given: tuple[str, ...], config: Config, base: Path) -> dict[str, Service]:
    wanted = dict(config.services)
    for text in given:
        name, _, where = text.partition("=")
        wanted[name] = where or name
    # As `python program.py` does: modules beside the configuration file, or in this directory.
    sys.path[:0] = [str(base.resolve())] if wanted else []
    found: dict[str, Service] = {}
    for name, where in wanted.items():
        with _about(f"service {name!r}"):
            check_service_name(name)
            found[name] = _service(where)
    return found


def _service(where: str) -> Service:
    if where == _BUILT_IN:
        return echo
    module, colon, attribute = where.partition(":")
    if not colon:
        msg = f"{where!r} is not MODULE:FUNCTION, nor the built-in {_BUILT_IN!r}"
        raise ValueError(msg)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 -- importing a module may raise anything
        msg = f"cannot import {where}: {type(exc).__name__}: {exc}. Is its module importable from here?"
        raise ValueError(msg) from None
    try:
        check_service(function)
    except TypeError:
        msg = f"{where} is no async function; a service is `async def` of one argument, the channel"
        raise TypeError(msg) from None
    return cast("Service", function)
