"""`trionode status`: what running nodes and servers are doing. They answer over a UNIX socket (`_status`)."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.text import Text

from trionode._identity.describe import describe_duration
from trionode._identity.names import NodeName
from trionode._status.document import ConnectionStatus, ManagerStatus, NodeStatus, Status
from trionode._status.unix_socket import StatusError, read_status, status_sockets

from .exits import ExitStatus, Trouble
from .given import json_option
from .kinds import FILE, Number
from .shown import (
    FAILED,
    console,
    grid,
    put,
    put_json,
    time_left,
)
from .words import in_command_words, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

#: The time between two snapshots, from which rates are computed. Seconds.
_SAMPLE: Final = 0.5

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def _name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A node's name in the form that it shows, or a server's as it is."""
    if value is None or "@" not in value:
        return value
    try:
        return str(NodeName.parse(value))
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command(short_help="What running nodes and servers are doing.")
@click.argument("name", metavar="[NODE]", required=False, callback=_name)
@click.option("--socket", type=FILE, help="The node's UNIX socket, if it is not in the default directory.")
@click.option("-w", "--watch", type=Number(min=0.1), metavar="SECONDS", help="Repeat until Ctrl-C.")
@json_option
def status(name: str | None, socket: Path | None, watch: float | None, *, as_json: bool) -> int:
    """What the running nodes and servers of this user are doing, or one NODE or server.

    First comes what is in a node's files and cannot be used: why, and since when. Then connections and the generation
    of each, how long certificates are still valid, rates, refused handshakes.

    Nodes answer over a UNIX socket that only their own user can open. Those of `trionode serve` do; a program's node
    does with `await nursery.start(serve_status, node)`, its server with a `ServerMonitor` in the node's place.

    \b
    Examples:
      trionode status
      trionode status beta@localhost --watch 2
      trionode status --json | jq '.[].connections'

    Exit status: 0 if a node or server was found and all use what is in their files; 1 if none was found, or what is in
    the files of one cannot be used; 4 if one did not answer, 2 if the command line is not valid.
    """
    out = console()
    before, _ = _look(name, socket)
    while True:
        time.sleep(watch or _SAMPLE)
        now, silent = _look(name, socket)
        older = {_run_of(each): each for each in before}
        if as_json:
            documents = [{**_plain(each), "rates": _rates(older.get(_run_of(each)), each)} for each in now]
            documents += [{"kind": "silent", "error": each} for each in silent]
            if watch is None:
                put_json(documents)
            else:
                click.echo(msgspec.json.encode(documents).decode())
        else:
            if watch is not None and out.is_terminal:
                out.clear()
            for each in now:
                _show(out, each, _rates(older.get(_run_of(each)), each))
            for text in silent:
                put(out, Text(f"{FAILED} {text}", style="bold red"))
        if silent and watch is None:
            return ExitStatus.NETWORK
        if watch is None:
            return ExitStatus.FOUND if any(_troubles(each) for each in now) else ExitStatus.OK
        before = now


def _plain(status: Status) -> dict[str, Any]:
    """As JSON has it; what its sources say is in the words of the command line."""
    found: dict[str, Any] = msgspec.to_builtins(status)
    for manager in found["managers"]:
        source = manager["source"] or {}
        source.update({name: in_command_words(text) for name in ("name", "error") if (text := source.get(name))})
    return found


def _look(name: str | None, socket: Path | None) -> tuple[list[Status], list[str]]:
    """Snapshots of the selected nodes and servers; and what is wrong with those that do not answer.

    One that hangs has a socket still. Which one that is does not show, so where the one that was asked for answers, the
    others play no part.

    Raises:
        StatusError: the one whose socket was given does not answer.
        Trouble: there is none.
    """
    if socket is not None:
        return [read_status(socket)], []
    found: list[Status] = []
    silent: list[str] = []
    for path in status_sockets():
        try:
            found.append(read_status(path))
        except StatusError as exc:
            if not isinstance(exc.__cause__, ConnectionRefusedError | FileNotFoundError):  # it has ended just now
                silent.append(in_command_words(str(exc)))
    found = [each for each in found if name is None or each.name == name]
    if not found and silent:
        raise Trouble("; ".join(silent), ExitStatus.NETWORK)
    if not found:
        which = "no node" if name is None else f"no node {name}" if "@" in name else f"no server {name!r}"
        msg = (
            f"{which} of this user serves its status here; start one with `trionode serve`, or have it call "
            "serve_status; nodes of other users, and those with another XDG_RUNTIME_DIR, do not show"
        )
        raise Trouble(msg, ExitStatus.FOUND)
    return sorted(found, key=lambda each: (each.name, each.process)), [] if name is not None else silent


def _run_of(status: Status) -> tuple[str, int, int]:
    """What stays the same as long as counts go up."""
    return status.name, status.process, status.incarnation


def _rates(before: Status | None, now: Status) -> dict[str, float] | None:
    """Per second, between two snapshots."""
    seconds = 0.0 if before is None else now.clock - before.clock
    if before is None or seconds <= 0:
        return None
    rates = {"handshakes": (_total(now) - _total(before)) / seconds}
    if isinstance(now, NodeStatus) and isinstance(before, NodeStatus):
        for name in ("bytes_sent", "bytes_received", "channels_opened"):
            rates[name] = (getattr(now, name) - getattr(before, name)) / seconds
    return rates


def _total(status: Status) -> int:
    return sum(each.count for each in status.handshakes)


# Showing ------------------------------------------------------------------------------------------------------------


def _show(out: Console, status: Status, rates: dict[str, float] | None) -> None:
    state = Text("open", style="green") if status.open else Text("draining", style="yellow")
    put(out, Text(f"\n{status.name}", style="bold") + Text(f"  process {status.process}, ") + state)
    rows = [row for manager in _troubles(status) for row in _trouble(manager, status)]
    if isinstance(status, NodeStatus):
        rows += [
            ("listens on", ", ".join(f"{host} port {port}" for host, port in status.listens_on) or "nowhere"),
            ("work", f"{status.channels} channels open, {status.services} services running"),
            ("traffic", _traffic(status, rates)),
        ]
    else:
        rows += [
            ("serves TLS on", ", ".join(status.listens_on) or "nothing"),
            ("connections", f"{status.streams} open"),
        ]
    rows.append(("handshakes", _handshakes(status)))
    rows += [row for manager in status.managers for row in _manager(manager, status)]
    put(out, grid(rows))
    if isinstance(status, NodeStatus):
        put(out, _connections(status))


def _manager(manager: ManagerStatus, status: Status) -> list[tuple[str, str | Text]]:
    live = ", ".join(f"{count} of generation {number}" for number, count in sorted(manager.connections.items()))
    refused = sum(manager.refused.values())
    state = f"generation {manager.generation}; connections: {live or 'none'}"
    rows: list[tuple[str, str | Text]] = [(f"manager {manager.label}", state)]
    if manager.superseded:
        rows.append(("", Text(f"{manager.superseded} on older certificates than the current", style="yellow")))
    if refused:
        rows.append(("", Text(f"{refused} rotations refused: {', '.join(manager.refused)}", style="bold red")))
    for each in manager.validities:
        left = time_left(each.not_before, each.not_after, status.at)
        rows.append(("", Text(f"{each.role.replace('_', ' ')} {each.subject}: ") + left))
    if manager.source is not None:
        rows.append(("", f"follows {in_command_words(manager.source.name)}"))
    return rows


def _troubles(status: Status) -> list[ManagerStatus]:
    """The managers whose source has what cannot be used."""
    return [each for each in status.managers if each.source is not None and each.source.error is not None]


def _trouble(manager: ManagerStatus, status: Status) -> list[tuple[str, str | Text]]:
    source = manager.source
    assert source is not None
    since = f"{source.since:%Y-%m-%d %H:%M:%S} UTC ({describe_duration(status.at - source.since)} ago)"
    what = f"since {since}, {in_command_words(source.name)} cannot be used, and generation {manager.generation} stays: "
    what += one_line(in_command_words(source.error or ""))[0]
    rows: list[tuple[str, str | Text]] = [(f"{FAILED} {manager.label}", Text(what, style="bold red"))]
    if source.pending is not None:
        rows.append(("", f"pending: {source.pending}"))
    return rows


def _traffic(status: NodeStatus, rates: dict[str, float] | None) -> str:
    total = f"{_size(status.bytes_sent)} sent, {_size(status.bytes_received)} received"
    if rates is None:
        return total
    return f"{_size(rates['bytes_sent'])}/s out, {_size(rates['bytes_received'])}/s in; {total} so far"


def _handshakes(status: Status) -> Text:
    good = sum(each.count for each in status.handshakes if each.outcome in ("established", "duplicate"))
    shown = Text(f"{good} made, {sum(status.pending_handshakes.values())} under way")
    for words, outcome in (("refused by us", "refused"), ("we were refused", "rejected")):
        bad = [each for each in status.handshakes if each.outcome == outcome]
        if bad:
            reasons = ", ".join(f"{each.count} {each.reason}" for each in bad)
            shown += Text(f"; {words}: {reasons}", style="yellow")
    others = sum(each.count for each in status.handshakes) - good
    others -= sum(each.count for each in status.handshakes if each.outcome in ("refused", "rejected"))
    return shown + Text(f"; {others} failed otherwise" if others else "")


def _connections(status: NodeStatus) -> Table | Text:
    """Two lines each, which fit a narrow terminal, too."""
    if not status.connections:
        return Text("no connections", style="dim")
    rows: list[tuple[str, str | Text]] = []
    for each in status.connections:
        verified = Text("verified", style="green") if each.verified else Text("NOT verified", style="bold red")
        generations = f"generation {each.generation}, its {each.peer_generation}"
        ends = each.certificate_ends
        left = Text("no certificate") if ends is None else Text("its certificate: ") + _ends(ends - status.at)
        traffic = f"{_size(each.bytes_sent)} sent, {_size(each.bytes_received)} received"
        rows += [
            (each.peer, verified + f", {_where(each)}; {each.channels} channels"),
            ("", Text(generations, style="yellow" if each.superseded else "") + "; " + left + f"; {traffic}"),
        ]
    return grid(rows)


def _where(connection: ConnectionStatus) -> str:
    if connection.address is None:
        return "connected"
    host, port = connection.address
    return f"{'to' if connection.dialled else 'from'} {host} port {port}"


def _ends(left: timedelta) -> Text:
    if left < timedelta():
        return Text("expired", style="bold red")
    return Text(f"{describe_duration(left)} left")


def _size(number: float) -> str:
    """Bytes, in a unit that leaves at most four digits."""
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.0f} {_UNITS[-1]}"
