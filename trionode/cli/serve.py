"""`trionode serve`: a node, or an ASGI application, or both, whose certificates follow their files.

`assembly` makes a plan of what was given, `application` serves the application; this runs both until a signal, and
reports what happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import click
import trio
from cryptography import x509

from trionode import (
    Connection,
    ListenError,
    NodeName,
    NodeOptions,
    Peer,
    StrandedPeers,
    follow_source,
    open_node,
    serve_status,
)
from trionode._identity.certificate import fingerprint
from trionode._streams.listeners import shown
from trionode._util.log import Log
from trionode.health import Health, HealthStatus

from .application import serving_application
from .assembly import assemble
from .config import Config, load_config
from .exits import ExitStatus, run
from .given import (
    CLIENT_AUTH,
    FILE,
    Given,
    complete_node,
    cookie_option,
    credential_options,
    json_option,
)
from .kinds import Number
from .logs import log_to_stderr
from .pages import place_of_pages, serve_pages
from .registry import registry_option
from .shown import write_stdout
from .terminal import Terminal, reload_signals
from .words import in_command_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from trionode import (
        CertManager,
        EventStream,
        Follower,
        Node,
        NodeEvent,
        ServerMonitor,
    )

    from .application import Application
    from .assembly import Plan

_log = Log("trionode.cli")


# Over 60 lines long: half of them are what --help shows.
@click.command(short_help="Run a node, or an ASGI application, from a TOML file or from options.")
@click.argument("node", metavar="[NODE|HOST]", required=False, shell_complete=complete_node)
@click.option("-c", "--config", "config_file", type=FILE, help="TOML file; options take precedence over it.")
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
@registry_option
@click.option("--asgi", metavar="MODULE:APP", help="An ASGI application, to be served over HTTPS.")
@click.option(
    "--asgi-listen", multiple=True, metavar="HOST:PORT", help="Where; * is all interfaces. Default: localhost:8443."
)
@click.option(
    "--stranded",
    type=click.Choice([each.name.lower() for each in StrandedPeers]),
    help="Live peers that new CA files do not accept: wait until they are gone (the default), end or keep them.",
)
@click.option("--join", metavar="URL", help="Get the certificate from `trionode pki serve`, and renew it there.")
@click.option("--token-file", type=FILE, help="For --join; first line: a token of `trionode pki token`.")
@click.option("--state-file", type=click.Path(path_type=Path), help="For --join: keep certificate and key there.")
@click.option(
    "--renew-after",
    type=Number(0.2, 0.9),
    metavar="SHARE",
    help="For --join: of the lifetime, when to renew, at the latest. Default: two thirds.",
)
@click.option("--status/--no-status", default=None, help="Answer `trionode status` of this user. Default: yes.")
@click.option("--health/--no-health", default=None, help="Answer health checks of other nodes. Default: no.")
@click.option(
    "--metrics", metavar="HOST:PORT", help="Serve metrics, /ready and /live over plain HTTP; * is all interfaces."
)
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
    registry: str | None,
    registry_password: Path | None,
    asgi: str | None,
    asgi_listen: tuple[str, ...],
    stranded: str | None,
    join: str | None,
    token_file: Path | None,
    state_file: Path | None,
    renew_after: float | None,
    *,
    status: bool | None,
    health: bool | None,
    metrics: str | None,
    as_json: bool,
) -> int:
    """Run a NODE until Ctrl-C or SIGTERM, which end it gracefully.

    With --asgi, an ASGI application is served beside it, over HTTP/1.1, HTTP/2 and WebSocket, with the same certificate
    and CAs; without a NODE, alone: with the files of a HOST in the --pki directory, or those that are named. It needs
    the extra `http`.

    The certificate, key, CA and revocation list files are followed: new content is in use within two seconds, and at
    once after SIGHUP. Listening sockets that systemd hands over (a .socket unit) take the place of ports. What is wrong
    with a file is logged, and what is in use stays; so it does where live peers would be refused by new CAs, until
    these have other certificates (--stranded). With --join there are no files: key and certificate are in memory,
    and renewed at the CA's service; --state-file keeps them over a restart.

    Closing the terminal ends the program, unless it was started with nohup. The log goes to stderr; with --json, where
    it listens and a node's events go to stdout, one JSON object a line.

    \b
    Examples:
      trionode serve beta@localhost --service echo
      trionode serve beta@localhost --listen 0.0.0.0:15001
      trionode serve beta@localhost --service greet=my_services:greet
      trionode serve --config beta.toml
      trionode serve localhost --asgi my_app:app --client-auth no
      trionode serve beta@localhost --asgi my_app:app --asgi-listen *:8443
      trionode serve beta@localhost --join https://ca.example:15443 \\
        --token-file token

    \b
    The file, with all keys; paths are relative to it:
      name = "beta@localhost"  and status, log_level, health,
                               shutdown_grace; metrics = "*:9090"
      pki = "pki"              a directory of `trionode pki`; or else
      [credentials]            cert, key, password_file; ca, client_ca, root_ca
                               and crl, which are lists; client_auth,
                               server_name, poll_interval, stranded; or join,
                               token_file, state_file, renew_after
      [[acceptors]]            host, port, port_range, reuse_port; or socket,
                               by name, where systemd hands it over
      [routes."gamma@*"]       host, port, server_name
      [services]               greet = "my_services:greet"
      [network]                mode, cookie_file, registry, keep_connected,
                               registry_password_file, bind_names,
                               max_message_size, max_metadata_size,
                               max_channels, heartbeat_interval,
                               heartbeat_tolerance, handshake_timeout,
                               connect_timeout
      [live_connections]       on_rotation = "hand_over", on_expiry,
                               expiry_lead, within, grace
      [asgi]                   app = "my_app:app", listen = ["*:8443"],
                               grace, access_log
    `trionode manual configuration` says what each is for.

    Exit status: 0 after SIGTERM or when the terminal is closed, 130 after Ctrl-C, 3 if a file cannot be used, 4 if a
    port is in use, 6 if the application cannot start, 2 if the command line or the TOML file is not valid.
    """
    config = Config() if config_file is None else load_config(config_file)
    with_health = config.health if health is None else health
    plan = assemble(
        config,
        config_file,
        node=node,
        given=given,
        client_auth=client_auth,
        listen=listen,
        routes=given_routes,
        services=services,
        cookie_file=cookie_file,
        registry=registry,
        registry_password=registry_password,
        asgi=asgi,
        asgi_listen=asgi_listen,
        join=(join, token_file, state_file, renew_after),
        stranded=stranded,
        health=with_health,
    )
    log_to_stderr(config.log_level)
    with_status = config.status if status is None else status
    pages = place_of_pages(metrics or config.metrics, hint="--metrics" if metrics else f"{config_file}: metrics")
    told = partial(_serve, plan, pages=pages, with_status=with_status, with_health=with_health, as_json=as_json)
    return run(told)


async def _serve(
    plan: Plan, *, pages: tuple[str, int] | None, with_status: bool, with_health: bool, as_json: bool
) -> ExitStatus:
    orders, health = _Orders(), Health(HealthStatus.NOT_SERVING)
    served: list[Node | ServerMonitor] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *reload_signals()) as signals:
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(partial(follow_source, stranded=plan.stranded), plan.manager, plan.source)
            nursery.start_soon(orders.watch, signals, nursery, follower)
            async with AsyncExitStack() as running:  # the application ends first
                if plan.node is not None:
                    opening = _node(*plan.node, with_status=with_status, as_json=as_json)
                    node = await running.enter_async_context(opening)
                    served.append(node)
                    if with_health:
                        _add_health(health, node)
                if plan.application is not None:
                    application = _application(plan.application, plan.manager, with_status=with_status, as_json=as_json)
                    await running.enter_async_context(application)
                    served.append(plan.application.monitor)
                if pages is not None:
                    _announce_pages(pages[0], await serve_pages(pages, served, health, nursery), as_json=as_json)
                health.set("", HealthStatus.SERVING)
                orders.started = True
                await orders.end.wait()
                health.set("", HealthStatus.NOT_SERVING)
            nursery.cancel_scope.cancel()
    return ExitStatus.INTERRUPTED if orders.number == signal.SIGINT else ExitStatus.OK


@final
class _Orders:
    """What the signals say: to read the files, to end gracefully, to end at once.

    Attributes:
        started: whether there is something that could end gracefully.
        end: set when it is to end.
        number: of the signal that said so, or None.
    """

    def __init__(self) -> None:
        self.started = False
        self.end = trio.Event()
        self.number: int | None = None
        self._terminal = Terminal()

    async def watch(self, signals: AsyncIterator[int], nursery: trio.Nursery, follower: Follower) -> None:
        """Obey them; a second one that ends, and one that comes while it starts, cancels the nursery."""
        async for number in signals:  # pragma: no branch -- they never end
            if number in reload_signals():
                if self.end.is_set():
                    continue
                if not self._terminal.lost():
                    nursery.start_soon(_reload, follower)
                    continue
                _log.warning(
                    "the terminal is gone: ending, as after SIGTERM; nohup or a service manager keep it running"
                )
            if self.end.is_set():
                _log.warning("second signal: open channels, services and requests are cancelled")
                break
            self.number = number
            self.end.set()
            if not self.started:
                break
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _node(name: NodeName, options: NodeOptions, *, with_status: bool, as_json: bool) -> AsyncIterator[Node]:
    async with open_node(name, options) as node, node.events() as events, trio.open_nursery() as watchers:
        if with_status:
            await _answer_status(watchers, node)
        if as_json:
            watchers.start_soon(_report, events)
        _announce(node, as_json=as_json)
        yield node
        watchers.cancel_scope.cancel()


def _add_health(health: Health, node: Node) -> None:
    """Have a node say how it is, and that its services are well."""
    for service in node.options.services:
        health.set(service, HealthStatus.SERVING)
    health.add_to(node)


@asynccontextmanager
async def _application(
    application: Application, manager: CertManager, *, with_status: bool, as_json: bool
) -> AsyncIterator[None]:
    async with trio.open_nursery() as watchers:
        async with serving_application(application, manager) as listeners:
            if with_status:
                await _answer_status(watchers, application.monitor)
            _announce_application(application, listeners, as_json=as_json)
            yield
        watchers.cancel_scope.cancel()


async def _answer_status(nursery: trio.Nursery, what: Node | ServerMonitor) -> None:
    try:
        await nursery.start(serve_status, what)
    except ListenError as exc:  # it runs without it
        _log.warning("`trionode status` is not answered: %s", exc, error=exc)


async def _reload(follower: Follower) -> None:
    """Read the files now; what is wrong with them is logged by the follower."""
    _log.info("SIGHUP: reading %r", follower.source, source=follower.source)
    with contextlib.suppress(Exception):
        generation = await follower.reload()
        _log.info(
            "SIGHUP: generation %d is what %r has",
            generation,
            follower.source,
            generation=generation,
            source=follower.source,
        )


# Reporting -------------------------------------------------------------------------------------------------------


def _announce(node: Node, *, as_json: bool) -> None:
    addresses = [address for acceptor in node.acceptors for address in acceptor.addresses]
    if as_json:
        _tell({"event": "Listening", "node": str(node.name), "process": os.getpid(), "addresses": addresses})
        return
    shown = ", ".join(f"{host} port {port}" for host, port in addresses)
    services = ", ".join(sorted(node.options.services)) or "none"
    click.echo(f"{node.name} listens on {shown or 'nothing'}; services: {services}; process {os.getpid()}")


def _announce_application(application: Application, listeners: Sequence[trio.SocketListener], *, as_json: bool) -> None:
    if as_json:
        names = [each.socket.getsockname() for each in listeners]
        addresses = [name[:2] if isinstance(name, tuple) else name for name in names]  # or the path of a UNIX socket
        _tell({"event": "Serving", "asgi": application.where, "process": os.getpid(), "addresses": addresses})
        return
    click.echo(f"{application.where} is served over HTTPS on {', '.join(map(shown, listeners))}; process {os.getpid()}")


def _announce_pages(host: str, port: int, *, as_json: bool) -> None:
    if as_json:
        _tell({"event": "Metrics", "process": os.getpid(), "addresses": [(host or "*", port)]})
        return
    click.echo(f"metrics, /ready and /live are served over HTTP on {host or '*'} port {port}; process {os.getpid()}")


async def _report(events: EventStream) -> None:
    async for event in events:
        values = {"event": type(event).__name__, **event_values(event)}
        await write_stdout(f"{_line(values)}\n".encode())


def _tell(values: Mapping[str, object]) -> None:
    click.echo(_line(values))
    sys.stdout.flush()


def _line(values: Mapping[str, object]) -> str:
    return json.dumps({"at": datetime.now(UTC).isoformat(), **values})


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
            return {"id": value.id, "generation": value.generation, "peer_generation": value.peer_generation}
        case x509.Certificate():
            return fingerprint(value)
        case BaseException():
            return {
                "type": type(value).__name__,
                "reason": getattr(value, "reason", None),
                "text": in_command_words(str(value)),
            }
        case tuple() | list():
            return [_plain(each) for each in value]
        case _:
            return str(value)
