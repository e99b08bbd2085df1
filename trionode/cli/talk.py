"""`trionode call` and `trionode ping`: a node that only dials, for the length of a command."""

from __future__ import annotations

import functools
import os
import statistics
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import click
import trio
from rich.text import Text

from trionode import (
    Connection,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    RemoteCode,
    RemoteError,
    Route,
    open_node,
)
from trionode._connection.connection import core_of
from trionode._identity.names import SubjectNames
from trionode._util.metadata import as_metadata
from trionode._util.text import at, printable
from trionode.health import HealthStatus, check_health_of

from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble, run
from .given import (
    address_option,
    complete_node,
    cookie_option,
    credential_options,
    host_name,
    json_option,
    node_name,
    read_cookie,
    target_of,
)
from .kinds import TIMEOUT, Number
from .registry import registry_of, registry_option
from .shown import (
    console,
    grid,
    put,
    put_json,
    write_stdout,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from trionode import CertAuthManager, Resolver, ServiceChannel
    from trionode._util.metadata import Metadata

    from .given import Given

_CHUNK: Final = 64 * 1024
_STDIN = 0

#: For connecting, and again for the handshake. Seconds.
_WITHIN: Final = 10.0


# What call and ping share ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """The node to reach, the route to it or what finds it, and our own name and credentials."""

    node: NodeName
    route: Route | None
    resolver: Resolver | None
    name: NodeName
    manager: CertAuthManager
    cookie: bytes | None

    @asynccontextmanager
    async def connected(self, within: float) -> AsyncIterator[Connection]:
        """A connection, made by a node that listens nowhere, for the length of the block.

        Args:
            within: for connecting, and again for the handshake. Seconds.
        """
        network = NetworkOptions(
            mode=NetworkMode.HIDDEN,
            connect_timeout=within,
            handshake_timeout=within,
            cookie=self.cookie,
            resolver=self.resolver,
            members=(),
        )
        async with open_node(self.name, NodeOptions(cert_manager=self.manager, network=network)) as node:
            connection = await node.connect(self.node, self.route)
            try:
                yield connection
            except RemoteError:
                await connection.aclose()  # the connection itself is fine: the peer gets a goodbye
                raise


def _dialing(function: Callable[..., int]) -> Callable[..., int]:
    """A decorator: the arguments and options of a dial, as one `_Way` in the parameter `way`."""

    @click.argument("node", metavar="NODE", shell_complete=complete_node)
    @address_option
    @credential_options
    @click.option("--as", "our_name", metavar="NODE", callback=node_name, help="Our own node name; see --pki.")
    @click.option(
        "--server-name", metavar="HOST", callback=host_name, help="What the server's certificate has to cover."
    )
    @cookie_option
    @registry_option
    @functools.wraps(function)
    def wrapped(
        node: str,
        address: str | None,
        given: Given,
        our_name: NodeName | None,
        server_name: str | None,
        cookie_file: Path | None,
        registry: str | None,
        registry_password: Path | None,
        **others: object,
    ) -> int:
        place = target_of(node, address)
        if place.node is None:
            msg = f"a node's name is name@host, not {node!r}"
            raise click.BadParameter(msg, param_hint="NODE")
        manager = given.files(our_name).manager()
        route = resolver = None
        if registry is not None:
            if address is not None or server_name is not None:
                msg = "--registry finds the address: give either that, or --address and --server-name"
                raise click.UsageError(msg)
            resolver = registry_of(registry, lambda: manager, registry_password)
        else:
            try:
                route = Route(host=place.host, port=place.port, server_name=server_name)
            except ValueError as exc:
                hint = "'NODE'" if address is None else "'--address'"
                raise click.BadParameter(str(exc), param_hint=hint) from None
        name = our_name or _only_name(manager)
        way = _Way(
            node=place.node,
            route=route,
            resolver=resolver,
            name=name,
            manager=manager,
            cookie=read_cookie(cookie_file),
        )
        return function(way=way, **others)

    return wrapped


def _only_name(manager: CertAuthManager) -> NodeName:
    """The node name that our certificate is restricted to.

    Raises:
        click.UsageError: there is none, or several.
    """
    nodes = SubjectNames.of(manager.key_pair.certificate).nodes
    if len(nodes) != 1:
        msg = "our node name is not known: the certificate has no trionode:// name, or several; give --as NODE"
        raise click.UsageError(msg)
    return next(iter(nodes))


# call ---------------------------------------------------------------------------------------------------------------


def _metadata(given: tuple[str, ...]) -> Metadata:
    """The mapping that KEY=VALUE stands for; what is no UTF-8 is bytes.

    Raises:
        click.BadParameter: it stands for none.
    """
    found: dict[str, str | bytes] = {}
    for each in given:
        key, mark, value = each.partition("=")
        if not mark:
            msg = "KEY=VALUE is wanted, and one has no ="
            raise click.BadParameter(msg)
        try:
            value.encode()
        except UnicodeEncodeError:
            found[key] = value.encode(errors="surrogateescape")
        else:
            found[key] = value
    try:
        return as_metadata(found)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command(short_help="Call a service of a node, with stdin and stdout.")
@_dialing
@click.argument("service")
@click.argument("message", required=False)
@click.option(
    "--whole", "how", flag_value="whole", help="All of stdin is one message; one reply goes to stdout as it is."
)
@click.option(
    "--raw",
    "how",
    flag_value="raw",
    help="Each piece that is read from stdin is a message; replies go to stdout as they are.",
)
@click.option(
    "--metadata",
    "metadata",
    multiple=True,
    metavar="KEY=VALUE",
    callback=lambda ctx, param, given: _metadata(given),  # noqa: ARG005 -- click's
    help="Said beside the messages; repeatable.",
)
@click.option("--timeout", type=TIMEOUT, help="For the whole call, seconds. Default: none.")
@click.option("--json", "as_json", is_flag=True, help="An error is JSON on stdout, with its code and details.")
@needs_stdout
def call(
    way: _Way,
    service: str,
    message: str | None,
    how: str | None,
    metadata: Mapping[str, str | bytes],
    timeout: float | None,
    *,
    as_json: bool,
) -> int:
    """Call a service of a NODE (name@host, port 15000 unless it says :PORT).

    With MESSAGE: one message is sent, and one reply is printed as a line. Without: each line of stdin is sent as a
    message, and each message that is received is printed as a line, both at once, until both have ended.

    \b
    Examples:
      trionode call --as alpha@localhost beta@localhost echo hello
      seq 3 | trionode call --as alpha@localhost beta@localhost echo
      trionode call --as alpha@localhost beta@localhost store --whole < file
      trionode call --registry local: --as alpha@localhost beta@localhost echo hi
      trionode call --as alpha@localhost beta@localhost echo hi --metadata a=b

    Exit status: 0 on success, 4 if no node was reached or the connection was lost, 5 if one side refused the other, 6
    if the service did not do it, 3 if a file cannot be used, 2 if the command line is not valid.
    """
    del as_json  # the entry point looks at it
    if message is not None and how is not None:
        msg = f"MESSAGE and --{how} exclude each other: the message is given or read from stdin"
        raise click.UsageError(msg)

    async def exchange() -> None:
        async with way.connected(_WITHIN) as connection:
            if message is not None:
                request = message.encode(errors="surrogateescape")
                await write_stdout(await connection.call(service, request, metadata=metadata) + b"\n")
            elif how == "whole":
                await write_stdout(await connection.call(service, await _read_all(), metadata=metadata))
            else:
                async with connection.open_channel(service, metadata=metadata) as channel:
                    await _stream(channel, lines=how is None)

    async def bounded() -> None:
        with trio.move_on_after(float("inf") if timeout is None else timeout) as scope:
            await exchange()
        if scope.cancelled_caught:
            msg = f"{service} of {way.node} did not finish within {timeout:g} s; allow more with --timeout"
            raise Trouble(msg, ExitStatus.NETWORK)

    run(bounded)
    return ExitStatus.OK


async def _stream(channel: ServiceChannel, *, lines: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_feed, channel, lines)
        async for message in channel:
            await write_stdout(message + b"\n" if lines else bytes(message))
        nursery.cancel_scope.cancel()


async def _feed(channel: ServiceChannel, lines: bool) -> None:  # noqa: FBT001 -- a task's argument
    rest = b""
    try:
        while piece := await _read():
            *complete, rest = (rest + piece).split(b"\n") if lines else [piece, b""]
            for line in complete:
                await channel.send(line)
        if rest:
            await channel.send(rest)
        await channel.send_eof()
    except trio.BrokenResourceError:
        pass  # the service has ended; the receiving task gets the reason


async def _read() -> bytes:
    """What stdin has; empty at its end. A cancelled call leaves a thread behind, which ends with the program.

    It reads the descriptor, not `sys.stdin`: the thread would hold the lock of that at the end of the program.
    """
    try:
        return await trio.to_thread.run_sync(os.read, _STDIN, _CHUNK, abandon_on_cancel=True)
    except OSError as exc:
        msg = f"cannot read stdin: {exc.strerror}; give MESSAGE, or something to read: < file"
        raise Trouble(msg, ExitStatus.FILES) from None


async def _read_all() -> bytes:
    pieces: list[bytes] = []
    while piece := await _read():
        pieces.append(piece)
    return b"".join(pieces)


# ping ---------------------------------------------------------------------------------------------------------------


@click.command(short_help="Measure round trips to a node.")
@_dialing
@click.option("-c", "--count", type=click.IntRange(min=0), default=4, show_default=True, help="0: until Ctrl-C.")
@click.option("-i", "--interval", type=Number(min=0), default=1.0, show_default=True, help="Between two pings, s.")
@click.option("--timeout", type=TIMEOUT, default=5.0, show_default=True, help="For each answer, s.")
@click.option(
    "--health",
    is_flag=False,
    flag_value="",
    metavar="[SERVICE]",
    help="In place of that ask how the node is, or one of its services.",
)
@json_option
def ping(way: _Way, count: int, interval: float, timeout: float, health: str | None, *, as_json: bool) -> int:
    """Measure round trips to a NODE (name@host, port 15000 unless it says :PORT): connect once, then ping.

    The node itself answers; no service is needed. The time to connect is that of TCP, TLS and hello.

    \b
    Examples:
      trionode ping --as alpha@localhost beta@localhost
      trionode ping --as alpha@localhost beta@localhost -c 100 -i 0 --json
      trionode ping --as alpha@localhost beta@localhost --health

    Exit status: 0 if every ping was answered, or what was asked about is serving; 1 if it is not; 6 if the node does
    not say (it has no health service, or not for us); 4 if no node was reached or a ping was not answered, 5 if one
    side refused the other, 130 after Ctrl-C, which shows the statistics so far.
    """
    if health is not None:
        return _ask_health(way, health, timeout, as_json=as_json)
    series = _Series()
    out = console()

    async def measure() -> None:
        began = time.perf_counter()
        async with way.connected(timeout) as connection:
            series.connecting = time.perf_counter() - began
            if not as_json:
                where = connection.peer.address if way.route is None else (way.route.host or "", way.route.port)
                put(out, f"connected to {way.node}{at(where)}")
            while not (series.lost or len(series.times) == count != 0):
                if series.times:
                    await trio.sleep(interval)
                began = time.perf_counter()
                series.lost = not await core_of(connection).answers(timeout, insist=True)
                if not series.lost:
                    series.times.append(time.perf_counter() - began)
                    if not as_json:
                        put(out, f"{way.node}: {len(series.times)}, {series.times[-1] * 1000:.2f} ms")

    interrupted = False
    try:
        run(measure)
    except KeyboardInterrupt:
        if series.connecting is None:
            raise
        interrupted = True
    document = series.document()
    if as_json:
        put_json({"node": str(way.node), **document})
    else:
        rows = [(label.removesuffix("_ms"), f"{value:.2f} ms") for label, value in document.items() if "_ms" in label]
        put(out, grid([("answered", f"{document['answered']} of {document['sent']}"), *rows]))
        if series.lost:
            put(out, Text(f"no answer within {timeout:g} s; the connection is gone", style="bold red"))
    if interrupted:
        return ExitStatus.INTERRUPTED
    return ExitStatus.NETWORK if series.lost else ExitStatus.OK


def _ask_health(way: _Way, service: str, timeout: float, *, as_json: bool) -> int:
    async def ask() -> HealthStatus:
        async with way.connected(timeout) as connection:
            try:
                with trio.move_on_after(timeout):
                    return await check_health_of(connection, service)
            except RemoteError as exc:
                if exc.code is not RemoteCode.UNKNOWN_SERVICE:
                    raise
                msg = (
                    f"{way.node} does not say how it is: it needs --health in its trionode serve, or a trionode.health "
                    "service in its program"
                )
                raise Trouble(msg, ExitStatus.REMOTE) from None
        msg = f"{way.node} did not say how it is within {timeout:g} s; allow more with --timeout"
        raise Trouble(msg, ExitStatus.NETWORK)

    status = run(ask)
    serving = status is HealthStatus.SERVING
    if as_json:
        put_json({"node": str(way.node), "service": service, "status": status.value})
    else:
        what = f"{service} of {way.node}" if service else str(way.node)
        put(console(), Text(f"{printable(what)}: {status}", style="" if serving else "bold red"))
    return ExitStatus.OK if serving else ExitStatus.FOUND


@final
class _Series:
    """The measurements so far, in seconds."""

    def __init__(self) -> None:
        self.connecting: float | None = None
        self.times: list[float] = []
        self.lost = False

    def document(self) -> dict[str, float]:
        """The statistics, for people and for JSON."""
        assert self.connecting is not None
        sent = len(self.times) + self.lost
        found: dict[str, float] = {"sent": sent, "answered": len(self.times), "connect_ms": self.connecting * 1000}
        if self.times:
            ordered = sorted(self.times)
            found |= {
                "min_ms": ordered[0] * 1000,
                "mean_ms": statistics.fmean(ordered) * 1000,
                "p50_ms": _quantile(ordered, 0.5) * 1000,
                "p99_ms": _quantile(ordered, 0.99) * 1000,
                "max_ms": ordered[-1] * 1000,
                "deviation_ms": statistics.pstdev(ordered) * 1000,
            }
        return found


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
