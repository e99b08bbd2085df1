"""`trionode members`: which nodes a registry names, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import trio

from trionode._identity.patterns import NamePattern
from trionode._node.resolvers import ResolverError

from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble, run
from .given import credential_options, json_option, node_name
from .kinds import TIMEOUT
from .registry import registry_of, registry_option
from .shown import console, grid, put, put_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trionode import Endpoint, NodeName

    from .given import Given
    from .registry import Registry

_LOOKUPS_AT_ONCE: Final = 16


@click.command(short_help="Which nodes a registry names, and where they are.")
@click.argument("pattern", default="*")
@registry_option
@credential_options
@click.option("--as", "our_name", metavar="NODE", callback=node_name, help="Our own node name; see --pki.")
@click.option("-f", "--follow", is_flag=True, help="Go on, and show who comes (+) and goes (-), until Ctrl-C.")
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=10.0,
    show_default=True,
    help="For the registry to answer, s.",
)
@json_option
@needs_stdout
def members(
    pattern: str,
    registry: str | None,
    registry_password: Path | None,
    given: Given,
    our_name: NodeName | None,
    *,
    follow: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Show the nodes that a registry names and that match PATTERN (all by default), and where they are.

    etcd is reached with a certificate: with --as, that of a node in the --pki directory; or with --cert and --key.
    That a node is named does not mean that it can be reached: `trionode explain NODE --registry URL` looks.

    \b
    Examples:
      trionode members --registry local:
      trionode members 'worker@*' --registry local: --follow
      trionode members --registry etcd://etcd.example --as alpha@localhost
      trionode members --registry 'dns:?worker=_trionode._tcp.worker.example'

    Exit status: 0 if there are any, 1 if there is none, 4 if the registry does not answer, 3 if a file cannot be
    used, 2 if the command line is not valid.
    """
    if registry is None:
        raise click.UsageError("which registry? Give --registry URL")
    found = registry_of(registry, lambda: given.files(our_name).manager(), registry_password)
    try:
        wanted = NamePattern(pattern)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="PATTERN") from None
    show = run(_show, found, wanted, follow, timeout, as_json)
    return ExitStatus.OK if show else ExitStatus.FOUND


async def _show(registry: Registry, wanted: NamePattern, follow: bool, timeout: float, as_json: bool) -> int:  # noqa: ASYNC109, FBT001 -- passed to `trio.run`
    """Show them; how many there were at first."""
    first: int | None = None
    before: set[NodeName] = set()
    scope = trio.CancelScope(deadline=trio.current_time() + timeout)
    with scope:
        async with registry.names(wanted.text) as answers:
            async for answer in answers:
                now = {name for name in answer if wanted.matches(name)}
                places = await _places(registry, now - before)
                if first is None:
                    first = len(now)
                    scope.deadline = float("inf")
                    _put_all(places, as_json=as_json)
                    if not follow:
                        return first
                else:
                    _put_changes(before - now, places, as_json=as_json)
                before = now
    if first is None:
        msg = f"{registry!r} does not answer within {timeout:g} s; is it up, and is --registry right?"
        raise Trouble(msg, ExitStatus.NETWORK)
    return first  # pragma: no cover -- following ends by Ctrl-C, or by what the registry raises


async def _places(registry: Registry, names: set[NodeName]) -> dict[NodeName, Sequence[Endpoint]]:
    """Where nodes are; nowhere where that cannot be found out."""
    found: dict[NodeName, Sequence[Endpoint]] = {}
    limiter = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)

    async def look_up(name: NodeName) -> None:
        async with limiter:
            try:
                found[name] = await registry.resolve(name)
            except ResolverError:
                found[name] = ()

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(look_up, name)
    return dict(sorted(found.items()))


def _put_all(places: dict[NodeName, Sequence[Endpoint]], *, as_json: bool) -> None:
    if as_json:
        put_json({"members": [_values(name, where) for name, where in places.items()]})
    elif places:
        put(console(), grid([(str(name), _words(where)) for name, where in places.items()]))
    else:
        put(console(), "no node is named")


def _put_changes(gone: set[NodeName], places: dict[NodeName, Sequence[Endpoint]], *, as_json: bool) -> None:
    if as_json:
        put_json({"found": [_values(*each) for each in places.items()], "lost": sorted(map(str, gone))})
        return
    lines = [f"- {name}" for name in sorted(gone)] + [f"+ {name} {_words(where)}" for name, where in places.items()]
    for line in lines:
        put(console(), line)


def _values(name: NodeName, where: Sequence[Endpoint]) -> dict[str, object]:
    return {"name": str(name), "endpoints": [[each.host, each.port] for each in where]}


def _words(where: Sequence[Endpoint]) -> str:
    return ", ".join(f"{each.host} port {each.port}" for each in where) or "nowhere"
