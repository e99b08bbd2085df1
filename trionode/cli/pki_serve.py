"""`trionode pki serve`: certificates over EST, from a `--pki` directory to programs that ask."""

from __future__ import annotations

import json
import logging
import signal
from functools import partial
from typing import TYPE_CHECKING, Final

import click
import trio

from trionode._identity.names import canonical_host
from trionode._streams.listeners import shown
from trionode._transport.tcp import open_listeners

from .enrolment import with_extra
from .exits import ExitStatus, listening_by, run
from .given import FILE, duration, json_option, pki_option, place_to_listen
from .pki_files import open_ca
from .shown import console, put

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path

    from trionode.enrolment import EnrolmentPolicy
    from trionode.pki import PKIDirectory

_DEFAULT_PORT: Final = 15443
_HTTP_PORT: Final = 80


@click.command("serve", short_help="Issue and renew certificates for programs that ask, over EST.")
@pki_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=f"localhost:{_DEFAULT_PORT}",
    show_default=True,
    help="Where; * is all interfaces.",
)
@click.option(
    "--name", "names", multiple=True, metavar="HOST", help="What clients call this service; repeatable. Default: HOST."
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="NAME|PATTERN",
    help="Issue for these alone: node names, globs, hosts; repeatable. Default: what a token allows.",
)
@click.option("--lifetime", callback=duration, default="1d", show_default=True, help="Of what is issued: 1d, 12h …")
@click.option(
    "--crl-listen",
    metavar="HOST:PORT",
    help="Serve the revocation lists over plain HTTP there, too: http://HOST:PORT/crl and /ca.crl.",
)
@click.option(
    "--crl-lifetime", callback=duration, default="7d", show_default=True, help="Of revocation lists, at most."
)
@click.option("--per-address", type=click.IntRange(1, 2**20), default=60, show_default=True, help="Requests a minute.")
@click.option("--per-name", type=click.IntRange(1, 2**20), default=12, show_default=True, help="Certificates a minute.")
@click.option("--password-file", type=FILE, help="First line: the password of ca.key.")
@json_option
def pki_serve(
    directory: Path,
    listen: str,
    names: tuple[str, ...],
    allowed: tuple[str, ...],
    lifetime: timedelta,
    crl_listen: str | None,
    crl_lifetime: timedelta,
    per_address: int,
    per_name: int,
    password_file: Path | None,
    *,
    as_json: bool,
) -> int:
    """Serve EST (RFC 7030) over HTTPS until Ctrl-C or SIGTERM.

    It gives first certificates for tokens of `trionode pki token`, renewals to those that have one, and the CA's
    certificates and revocation lists to everyone.

    What is issued is noted in journal.jsonl, what is refused is logged to stderr. Names, globs and serial numbers in
    the file `denied` of the directory, one a line, get nothing. A certificate for the service itself is issued and
    renewed by the way.

    \b
    Examples:
      trionode pki serve
      trionode pki serve --listen '*:15443' --name ca.example --lifetime 12h
      trionode pki serve --allow 'worker-*@*.example'
    """
    (host, port), lists = place_to_listen(listen, _DEFAULT_PORT), _place_of_lists(crl_listen)
    if host == "*" and not names:
        msg = "--listen on all interfaces: say by --name what clients call this service; its certificate has that name"
        raise click.UsageError(msg)
    kept = open_ca(directory, password_file)
    with with_extra():
        from trionode.enrolment import EnrolmentPolicy
    try:
        policy = EnrolmentPolicy(
            names=allowed or ("*",),
            lifetime=lifetime,
            crl_lifetime=crl_lifetime,
            per_address=per_address,
            per_name=per_name,
        )
        called = tuple(map(canonical_host, names)) or (host,)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("trionode").setLevel(logging.INFO)
    where = (None if host == "*" else host, port)
    return run(partial(_serve, kept, directory, policy, called, where, lists, as_json=as_json))


def _place_of_lists(text: str | None) -> tuple[str | None, int] | None:
    if text is None:
        return None
    host, port = place_to_listen(text, _HTTP_PORT, hint="--crl-listen")
    return (None if host == "*" else host), port


async def _serve(
    directory: PKIDirectory,
    name: Path,
    policy: EnrolmentPolicy,
    names: Sequence[str],
    where: tuple[str | None, int],
    lists: tuple[str | None, int] | None,
    *,
    as_json: bool,
) -> ExitStatus:
    from trionode.enrolment import serve_est

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            with listening_by("--crl-listen"):
                plain = [] if lists is None else await open_listeners(*lists)
            start = partial(
                serve_est, directory, where[1], names=names, host=where[0], policy=policy, crl_listeners=plain
            )
            listeners: Sequence[trio.SocketListener] = await nursery.start(start)
            if as_json:
                facts = {"event": "Serving", "addresses": _addresses(listeners), "crl_addresses": _addresses(plain)}
                click.echo(json.dumps(facts))
            else:
                put(console(), f"EST for {name} on {', '.join(map(shown, listeners))}")
                if plain:
                    put(console(), f"revocation lists over HTTP on {', '.join(map(shown, plain))}")
            number = await anext(aiter(signals))
            nursery.cancel_scope.cancel()
    return ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.OK


def _addresses(listeners: Sequence[trio.SocketListener]) -> list[Sequence[object]]:
    return [each.socket.getsockname()[:2] for each in listeners]
