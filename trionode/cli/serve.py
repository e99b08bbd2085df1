"""`trionode serve`: a node, from a TOML file or from options, whose certificates follow its files."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click
import trio
from cryptography import x509

from trionode import (
    AcceptorOptions,
    Connection,
    ListenError,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Peer,
    Renew,
    Route,
    follow_source,
    open_node,
    serve_status,
)
from trionode._connection.services import check_service, check_service_name
from trionode._identity.certificate import fingerprint
from trionode._identity.patterns import NamePattern
from trionode._node.options import DEFAULT_PORT

from .config import (
    Config,
    LiveConnectionsTable,
    NetworkTable,
    Table,
    load_config,
)
from .exits import ExitStatus, Trouble, run
from .given import (
    CLIENT_AUTH,
    FILE,
    Given,
    complete_node,
    cookie_option,
    credential_options,
    host_and_port,
    json_option,
    read_cookie,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from trionode import (
        EventStream,
        FileSource,
        Node,
        NodeEvent,
        Service,
        ServiceChannel,
    )

T = TypeVar("T", NetworkOptions, LiveConnections)

_log = logging.getLogger("trionode.cli")

_BUILT_IN: Final = "echo"


async def echo(channel: ServiceChannel) -> None:
    """The service that is always at hand: every message comes back."""
    async for message in channel:
        await channel.send(message)


@click.command(short_help="Run a node, from a TOML file or from options.")
@click.argument("node", metavar="[NODE]", required=False, shell_complete=complete_node)
@click.option("-c", "--config", "config_file", type=FILE, help="TOML file; options come before what it says.")
@credential_options
@click.option("--client-auth", type=click.Choice(list(CLIENT_AUTH)), help="Default: require-and-verify.")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Default: the name's host, port 15000; repeatable.")
@click.option(
    "--route", "given_routes", multiple=True, metavar="NODE=HOST:PORT", help="NODE may be a glob; repeatable."
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME[=MODULE:FUNCTION]",
    help="An async function of a channel; `echo` is built in. Repeatable.",
)
@cookie_option
@click.option("--status/--no-status", default=None, help="Let `trionode status` of this user look. Default: yes.")
@json_option
def serve(
    node: str | None,
    config_file: Path | None,
    given: Given,
    client_auth: str | None,
    listen: tuple[str, ...],
    given_routes: tuple[str, ...],
    services: tuple[str, ...],
    cookie_file: Path | None,
    *,
    status: bool | None,
    as_json: bool,
) -> int:
    """Run a NODE until Ctrl-C or SIGTERM, which end it gracefully.

    Its certificate, key, CAs and revocation lists are followed: what is written there is in use soon, and at once at
    SIGHUP. What is wrong with them is logged, and what is in use stays. The log goes to stderr; with --json, what
    happens goes to stdout, one JSON object a line.

    \b
    Examples:
      trionode serve beta@localhost --service echo
      trionode serve beta@localhost --listen 0.0.0.0:15001
      trionode serve beta@localhost --service greet=my_services:greet
      trionode serve --config beta.toml

    \b
    The file, with every key that there is; its paths are relative to it:
      name = "beta@localhost"  and status, log_level, shutdown_grace
      pki = "pki"              what `trionode pki` has made; or else
      [credentials]            cert, key, password_file; ca, client_ca, root_ca
                               and crl, which are lists; client_auth,
                               server_name, poll_interval
      [[acceptors]]            host, port, port_range
      [routes."gamma@*"]       host, port, server_name
      [services]               greet = "my_services:greet"
      [network]                mode, cookie_file, keep_connected, bind_names,
                               max_message_size, max_channels,
                               heartbeat_interval, heartbeat_tolerance,
                               handshake_timeout, connect_timeout
      [live_connections]       on_rotation = "hand_over", on_expiry,
                               expiry_lead, within, grace

    Exit status: 0 after SIGTERM, 130 after Ctrl-C, 3 if a file cannot be used, 4 if a port is in use, 2 if the command
    line or the TOML file makes no sense.
    """
    config = Config() if config_file is None else load_config(config_file)
    base = Path() if config_file is None else config_file.parent
    name = _name_of(node, config, config_file)
    merged = _merged(given, config, base)
    files = merged.files(name)
    mode = CLIENT_AUTH[client_auth or config.credentials.client_auth]
    if mode.verifies and not files.client_cas:
        msg = (
            "clients are to be verified, by nobody's certificates: give --ca or --client-ca (in the file: ca or "
            "client_ca in [credentials]), or --client-auth no"
        )
        raise click.UsageError(msg)
    try:
        with _about("[credentials]"):
            manager = files.manager(server_name=config.credentials.server_name, client_auth=mode)
            source = files.source(poll_interval=config.credentials.poll_interval)
        acceptors, routes = _acceptors(listen, config), _routes(given_routes, config)
        with _about("[network]"):
            network = _network(config.network, acceptors, routes, cookie_file, base)
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
    _log_to_stderr(config.log_level)
    with_status = config.status if status is None else status
    return run(partial(_serve, name, options, source, with_status=with_status, as_json=as_json))


async def _serve(
    name: NodeName, options: NodeOptions, source: FileSource, *, with_status: bool, as_json: bool
) -> ExitStatus:
    manager = options.cert_manager
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(follow_source, manager, source, reload_on=[signal.SIGHUP]))
            async with open_node(name, options) as node, node.events() as events, trio.open_nursery() as watchers:
                if with_status:
                    try:
                        await watchers.start(serve_status, node)
                    except ListenError as exc:  # a node can do without
                        _log.warning("no status: %s", exc)
                if as_json:
                    watchers.start_soon(_report, events)
                _announce(node, as_json=as_json)
                number = await anext(signals)
                watchers.cancel_scope.cancel()
                nursery.start_soon(_hasten, signals, nursery.cancel_scope)
            nursery.cancel_scope.cancel()
    return ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.OK


async def _hasten(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """A second signal: whoever sends it does not want to wait for what is under way."""
    await anext(signals)
    _log.warning("told again: what is under way is cancelled")
    scope.cancel()


# From what was given to options -------------------------------------------------------------------------------------


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Whatever an option objects to within the block is said to be about something."""
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
    """Where the credentials are: options come before the file, a pair as a whole."""
    table = config.credentials
    cert, key, password = (
        None if text is None else base / text for text in (table.cert, table.key, table.password_file)
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
    )


def _paths(base: Path, texts: list[str]) -> tuple[Path, ...]:
    return tuple(base / text for text in texts)


def _acceptors(listen: tuple[str, ...], config: Config) -> list[AcceptorOptions]:
    if listen:
        places = [host_and_port(text) for text in listen]
        return [AcceptorOptions(host=host, port=port) for host, port in places]
    with _about("[[acceptors]]"):
        return [
            AcceptorOptions(host=each.host, port=each.port, port_range=each.port_range) for each in config.acceptors
        ]


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
        cookie_file = base / table.cookie_file
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
    """Options with what a table says; what it does not say stays."""
    said = {name: getattr(table, name) for name in names if getattr(table, name) is not None}
    return replace(options, **said)


def _services(given: tuple[str, ...], config: Config, base: Path) -> dict[str, Service]:
    wanted = dict(config.services)
    for text in given:
        name, _, where = text.partition("=")
        wanted[name] = where or name
    # As `python program.py` would: modules beside the configuration, or here.
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
    except (Exception, SystemExit) as exc:  # noqa: BLE001 -- whatever a module does when it is imported
        msg = f"cannot have {where}: {type(exc).__name__}: {exc}. Is its module importable from here?"
        raise ValueError(msg) from None
    try:
        check_service(function)
    except TypeError:
        msg = f"{where} is no async function; a service is `async def` of one argument, the channel"
        raise TypeError(msg) from None
    return cast("Service", function)


# What is told -------------------------------------------------------------------------------------------------------


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("trionode").setLevel(level.upper())


def _announce(node: Node, *, as_json: bool) -> None:
    addresses = [address for acceptor in node.acceptors for address in acceptor.addresses]
    if as_json:
        _tell({"event": "Listening", "node": str(node.name), "process": os.getpid(), "addresses": addresses})
        return
    shown = ", ".join(f"{host} port {port}" for host, port in addresses)
    services = ", ".join(sorted(node.options.services)) or "none"
    click.echo(f"{node.name} listens on {shown or 'nothing'}; services: {services}; process {os.getpid()}")


async def _report(events: EventStream) -> None:
    async for event in events:
        # In a thread: whoever reads our stdout may be slow, and that must not hold up the node.
        values = {"event": type(event).__name__, **event_values(event)}
        await trio.to_thread.run_sync(_tell, values, abandon_on_cancel=True)


def _tell(values: Mapping[str, object]) -> None:
    click.echo(json.dumps({"at": datetime.now(UTC).isoformat(), **values}))
    sys.stdout.flush()


def event_values(event: NodeEvent) -> dict[str, object]:
    """An event's facts as JSON knows them."""
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: _plain(value) for name, value in facts.items()}


def _plain(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case NodeName():
            return str(value)
        case Enum():
            return value.value
        case timedelta():
            return value / timedelta(seconds=1)
        case Peer():
            return {"name": str(value.name), "verified": value.verified, "address": value.address}
        case Connection():
            return {"generation": value.generation, "peer_generation": value.peer_generation}
        case x509.Certificate():
            return fingerprint(value)
        case BaseException():
            return {"type": type(value).__name__, "reason": getattr(value, "reason", None), "text": str(value)}
        case tuple() | list():
            return [_plain(each) for each in value]
        case _:
            return str(value)
