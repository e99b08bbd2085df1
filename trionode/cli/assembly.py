"""From what was given to `trionode serve`, on the command line and in its file, to what is to run.

That is a node, or an ASGI application, or both; they have one manager, so one certificate and one client-auth mode.
Options on the command line take precedence over the file. What is wrong in either is one error that says where.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast, final

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
    StrandedPeers,
    inherited_listeners,
)
from trionode._connection.services import check_service, check_service_name
from trionode._identity.names import canonical_host
from trionode._identity.patterns import NamePattern
from trionode._node.resolvers import DEFAULT_PORT

from .application import Application, find_application
from .config import ASGITable, Config, LiveConnectionsTable, NetworkTable
from .enrolment import Joining
from .exits import ExitStatus, Trouble
from .given import CLIENT_AUTH, Given, host_and_port, place_to_listen, read_cookie
from .imports import imported
from .paths import rereadable
from .registry import registry_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import trio

    from trionode import CertAuthManager, ClientAuth, Resolver, Service, ServiceChannel, Source

    from .config import AcceptorTable, Table
    from .given import Files

T = TypeVar("T", NetworkOptions, LiveConnections)

_BUILT_IN: Final = "echo"


async def echo(channel: ServiceChannel) -> None:
    """The built-in service: every message comes back."""
    async for message in channel:
        await channel.send(message)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to run.

    Attributes:
        manager: of the node and the application.
        source: the files, or the CA's service, that it follows.
        stranded: what becomes of live peers that new trust does not accept.
        node: the node's name and options, or None if there is none.
        application: the ASGI application, or None if there is none.
    """

    manager: CertAuthManager
    source: Source
    stranded: StrandedPeers
    node: tuple[NodeName, NodeOptions] | None
    application: Application | None


# Over 60 lines long: a third of them are what the command line may say.
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
    registry: str | None,
    registry_password: Path | None,
    asgi: str | None,
    asgi_listen: tuple[str, ...],
    join: tuple[str | None, Path | None, Path | None, float | None] = (None, None, None, None),
    stranded: str | None = None,
    health: bool = False,
) -> Plan:
    """What is to run.

    Args:
        config: the configuration file, or defaults.
        config_file: where it is; paths in it are relative to its directory.
        node: the command line's NODE, or a host. This and the rest take precedence over the file.
        given: where the credentials are.
        client_auth: a key of `CLIENT_AUTH`.
        listen: HOST:PORT of each acceptor.
        routes: NODE=HOST:PORT of each route.
        services: NAME[=MODULE:FUNCTION] of each service.
        cookie_file: its first line is the cookie.
        registry: URL of where nodes find each other.
        registry_password: its first line is the password of etcd's user.
        asgi: MODULE:APP of an ASGI application.
        asgi_listen: HOST:PORT of each place where that is served.
        health: whether the node is to have its health service.
        join: URL, token file, state file and share of the lifetime after which to renew, to join by.
        stranded: the name of a `StrandedPeers`, in lower case.

    Raises:
        click.UsageError: something is missing.
        CertificateError: a file is unusable.
        Trouble: an option is not valid.
    """
    base = Path() if config_file is None else config_file.parent
    where = "" if config_file is None else f"{config_file}: "
    has_application = asgi is not None or bool(asgi_listen) or config.asgi != ASGITable()
    name = _name_of(node, config, config_file, may_be_absent=has_application)
    if not isinstance(name, NodeName):
        of_node = {
            "--listen": listen,
            "--route": routes,
            "--service": services,
            "--cookie-file": cookie_file,
            "--registry": registry,
            "--registry-password-file": registry_password,
            "--health": health,
        }
        _refuse_what_is_for_nodes([option for option, value in of_node.items() if value], config)
    try:
        merged = _merged(given, config, base)
    except ValueError as exc:
        raise Trouble(f"{where}{exc}", ExitStatus.USAGE) from None
    joining = _joining(join, given, config, base)
    if joining is not None and name is None:
        msg = "--join: which name? Give NODE or HOST"
        raise click.UsageError(msg)
    files = merged.files(name) if joining is None else None
    mode = CLIENT_AUTH[client_auth or config.credentials.client_auth]
    if mode.verifies and files is not None and not files.client_cas:
        msg = (
            "client certificates are to be verified, and no CA was given: give --ca or --client-ca (in the file: ca or "
            "client_ca in [credentials]), or --client-auth no"
        )
        raise click.UsageError(msg)
    try:
        with _about("[credentials]"):
            manager, source = _credentials(files, joining, name, config, mode)
        handed = _handed_over()
        with _about("--asgi" if asgi is not None else "[asgi]"):
            application = find_application(config.asgi, base, where=asgi, listen=asgi_listen)
            if application is not None:
                listeners = _for_application(config.asgi, asgi_listen, handed, alone=not isinstance(name, NodeName))
                application = replace(application, listeners=tuple(listeners))
        options = None
        if isinstance(name, NodeName):
            acceptors, all_routes = _acceptors(listen, config, handed), _routes(routes, config)
            with _about("[network]"):
                network = _network(config.network, acceptors, all_routes, cookie_file, base)
                resolver = _registry(config.network, base, registry, registry_password, manager)
                network = replace(network, resolver=resolver)
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
        raise Trouble(f"{where}{exc}", ExitStatus.USAGE) from None
    if handed:
        msg = (
            f"the service manager has handed over sockets that nothing uses: {', '.join(handed)}. Name them in the "
            "file (socket = in [[acceptors]] or [asgi]), or give neither --listen nor [[acceptors]]"
        )
        raise Trouble(msg, ExitStatus.USAGE)
    node_plan = (name, options) if isinstance(name, NodeName) and options is not None else None
    kept = StrandedPeers[(stranded or config.credentials.stranded).upper()]
    return Plan(manager=manager, source=source, stranded=kept, node=node_plan, application=application)


def _joining(
    join: tuple[str | None, Path | None, Path | None, float | None], given: Given, config: Config, base: Path
) -> Joining | None:
    """How to join, if that is wanted; options take precedence over the file.

    Raises:
        click.UsageError: files were named, too; or a token without a place to take it to.
    """
    table, (url, token_file, state_file, renew_after) = config.credentials, join
    url = url or table.join
    token_file = token_file or (None if table.token_file is None else rereadable(base / table.token_file))
    state_file = state_file or (None if table.state_file is None else base / table.state_file)
    if url is None:
        if token_file is not None or state_file is not None or renew_after is not None:
            msg = "a token file, state file or share for renewals was given without --join, the URL of the CA's service"
            raise click.UsageError(msg)
        return None
    if given.named or table.cert is not None:
        msg = "--join and --cert exclude each other: the certificate comes from the CA's service, or from a file"
        raise click.UsageError(msg)
    return Joining(
        url=url,
        token_file=token_file,
        state_file=state_file,
        renew_after=table.renew_after if renew_after is None else renew_after,
        with_lists=not given.no_crl,
    )


def _credentials(
    files: Files | None, joining: Joining | None, name: NodeName | str | None, config: Config, mode: ClientAuth
) -> tuple[CertAuthManager, Source]:
    """A manager, and what it follows."""
    server_name = config.credentials.server_name
    if joining is not None:
        assert name is not None
        return joining.credentials(name, server_name=server_name, client_auth=mode)
    assert files is not None
    manager = files.manager(server_name=server_name, client_auth=mode)
    return manager, files.source(poll_interval=config.credentials.poll_interval)


def _refuse_what_is_for_nodes(options: list[str], config: Config) -> None:
    """Insist that nothing was given that has no effect without a node.

    Raises:
        click.UsageError: something was.
    """
    tables = {
        "[network]": config.network != NetworkTable(),
        "[live_connections]": config.live_connections != LiveConnectionsTable(),
        "[[acceptors]]": bool(config.acceptors),
        "[routes]": bool(config.routes),
        "[services]": bool(config.services),
    }
    found = options + [table for table, given in tables.items() if given]
    if found:
        msg = f"{', '.join(found)}: for a node alone, and none was named; give its name, name@host, too"
        raise click.UsageError(msg)


@contextmanager
def _about(what: str) -> Iterator[None]:
    """An error in the block says which part of the options it is about."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        msg = f"{what}: {exc}"
        raise ValueError(msg) from None


def _name_of(node: str | None, config: Config, file: Path | None, *, may_be_absent: bool) -> NodeName | str | None:
    """The node's name; or, where there may be no node, a host's name or none."""
    name = node or config.name
    if name is None:
        if may_be_absent:
            return None
        msg = "which node? Give its name, name@host" + ("" if file is None else f", or name = … in {file}")
        raise click.UsageError(msg)
    try:
        return canonical_host(name) if may_be_absent and "@" not in name else NodeName.parse(name)
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


def _handed_over() -> dict[str, Sequence[trio.SocketListener]]:
    try:
        return dict(inherited_listeners())
    except ListenError as exc:
        raise Trouble(str(exc), ExitStatus.USAGE) from None


def _take(handed: dict[str, Sequence[trio.SocketListener]], name: str) -> Sequence[trio.SocketListener]:
    """The sockets of a name, taken out of those that a service manager has handed over."""
    if name not in handed:
        found = f"it did hand over: {', '.join(handed)}" if handed else "it has handed over none"
        msg = f"no socket of the name {name!r} comes from a service manager (FileDescriptorName=); {found}"
        raise ValueError(msg)
    return handed.pop(name)


def _take_all(handed: dict[str, Sequence[trio.SocketListener]]) -> list[trio.SocketListener]:
    taken = [each for same in handed.values() for each in same]
    handed.clear()
    return taken


def _for_application(
    table: ASGITable, listen: tuple[str, ...], handed: dict[str, Sequence[trio.SocketListener]], *, alone: bool
) -> Sequence[trio.SocketListener]:
    """The sockets that were handed over for the application: those that it names, or all where it is alone."""
    if listen:
        return ()
    if table.socket is not None:
        return _take(handed, table.socket)
    return _take_all(handed) if alone and not table.listen else ()


def _acceptors(
    listen: tuple[str, ...], config: Config, handed: dict[str, Sequence[trio.SocketListener]]
) -> list[AcceptorOptions]:
    """Where to listen: on what the service manager has handed over, or on ports."""
    if handed and not listen and not config.acceptors:
        return [AcceptorOptions(listeners=_take_all(handed))]
    with _about("[[acceptors]]"):
        acceptors = [_acceptor(each, handed) for each in config.acceptors if not listen]
    places = [place_to_listen(text) for text in listen]
    return acceptors + [AcceptorOptions(host=host, port=port) for host, port in places]


def _acceptor(table: AcceptorTable, handed: dict[str, Sequence[trio.SocketListener]]) -> AcceptorOptions:
    """One acceptor of the file; the sockets that it names are taken out of `handed`."""
    return AcceptorOptions(
        host=table.host,
        port=table.port,
        port_range=table.port_range,
        reuse_port=table.reuse_port,
        listeners=() if table.socket is None else _take(handed, table.socket),
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
            raise click.BadParameter(msg, param_hint="'--route'")
        host, port = host_and_port(where, DEFAULT_PORT, hint="--route")
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
    sizes = ("max_message_size", "max_metadata_size", "max_channels")
    times = ("heartbeat_interval", "heartbeat_tolerance", "handshake_timeout", "connect_timeout")
    return _changed(options, table, (*sizes, *times))


def _registry(
    table: NetworkTable, base: Path, url: str | None, password_file: Path | None, manager: CertAuthManager
) -> Resolver | None:
    """Where nodes find each other; paths on the command line are relative to where it was given."""
    if url is not None:
        return registry_of(url, lambda: manager, password_file)
    if table.registry is None:
        return None
    if password_file is None and table.registry_password_file is not None:
        password_file = rereadable(base / table.registry_password_file)
    try:
        return registry_of(table.registry, lambda: manager, password_file, base=base)
    except Trouble as exc:
        raise ValueError(exc.message.replace("--registry-password-file", "registry_password_file")) from None


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
    found: dict[str, Service] = {}
    for name, where in wanted.items():
        with _about(f"service {name!r}"):
            check_service_name(name)
            found[name] = _service(where, base)
    return found


def _service(where: str, base: Path) -> Service:
    if where == _BUILT_IN:
        return echo
    function = imported(where, base, otherwise=f", nor the built-in {_BUILT_IN!r}")
    try:
        check_service(function)
    except TypeError:
        msg = f"{where} is no async function; a service is `async def` of one argument, the channel"
        raise TypeError(msg) from None
    return cast("Service", function)
