"""`trionode pki serve` and `trionode join`: certificates over EST, from a `--pki` directory to who has none."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 -- dataclasses are looked at
from typing import TYPE_CHECKING, final

import click
import trio

from trionode._identity.names import canonical_host
from trionode._managers.auth_manager import CertAuthManager
from trionode._streams.listeners import shown
from trionode._transport.tcp import open_listeners
from trionode.pki import JoinToken, PKIDirectory, write_ca_pool, write_key_pair

from .exits import ExitStatus, Trouble, listening_by, run
from .given import (
    CA_FILE,
    FILE,
    cert_file,
    duration,
    json_option,
    key_file,
    node_or_host,
    pki_option,
    pki_words,
    place_to_listen,
    read_password,
    unreadable,
)
from .paths import exists
from .pki import pki as pki
from .shown import console, grid, put, put_json, speaks_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from trionode import ClientAuth, NodeName
    from trionode.enrolment import EnrolmentPolicy, ESTSource

_DEFAULT_PORT = 15443
_HTTP_PORT = 80


@contextmanager
def _extra() -> Iterator[None]:
    """What is missing of the extra is said in one line."""
    try:
        yield
    except ModuleNotFoundError as exc:
        msg = f"enrolment needs {exc.name}; install it with: pip install 'trionode[enrol]'"
        raise Trouble(msg, ExitStatus.USAGE) from None


# pki serve ----------------------------------------------------------------------------------------------------------


@pki.command("serve", short_help="Issue and renew certificates for programs that ask, over EST.")
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
    if not exists(directory / CA_FILE):
        msg = f"there is no CA in {directory}; make one with: trionode pki init{pki_words(directory)}"
        raise Trouble(msg, ExitStatus.FILES)
    password = read_password(password_file)
    kept = PKIDirectory(directory, password=None if password is None else password.data)
    with _extra():
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


# join ---------------------------------------------------------------------------------------------------------------


@click.command(short_help="Get a first certificate from `trionode pki serve`, as files.")
@click.argument("url")
@click.argument("name", required=False)
@pki_option
@click.option("--token", envvar="TRIONODE_TOKEN", help="The token; others see it in `ps`. [env: TRIONODE_TOKEN]")
@click.option("--token-file", type=FILE, help="First line: the token.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@json_option
def join(
    url: str,
    name: str | None,
    directory: Path,
    token: str | None,
    token_file: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Join a cluster: get a certificate for NAME from the EST server at URL, for a token of `trionode pki token`.

    NAME is needed where the token is good for several. The server is known by the CA in the token. NAME.pem,
    NAME-key.pem (mode 0600) and ca.pem are written to the --pki directory, for programs that want files; these do not
    renew themselves. `trionode serve --join` needs no files, and renews.

    \b
    Examples:
      trionode join https://ca.example:15443 --token-file token
      trionode join https://ca.example:15443 worker-7@a.example --token-file token
    """
    parsed = read_token(token, token_file)
    if parsed is None:
        msg = "a token is needed: --token-file, or --token; `trionode pki token NAME` makes one where the CA is"
        raise click.UsageError(msg)
    wanted = node_or_host(name or parsed.names)
    cert, key, ca = cert_file(directory, wanted), key_file(directory, wanted), directory / CA_FILE
    if not force:
        for file in (cert, key, ca):
            if exists(file):
                msg = (
                    f"{file} is there already, and is not overwritten without --force; or name another --pki directory"
                )
                raise Trouble(msg, ExitStatus.FILES)
    try:
        # Before the token is spent on files that cannot be written.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    except OSError as exc:
        raise unreadable(exc, f"write {cert}") from None
    found = source_of(url, wanted, parsed, None, with_lists=False).read_now()
    try:
        if found.root_cas is not None:
            write_ca_pool(found.root_cas, ca)
        write_key_pair(found.key_pair, cert, key)
    except OSError as exc:
        raise unreadable(exc, f"write {cert}") from None
    if as_json:
        put_json({"cert": str(cert), "key": str(key), "ca": str(ca)})
    else:
        rows = [(str(cert), speaks_for(found.key_pair.certificate)), (str(key), "its key; keep it private")]
        put(console(), grid([*rows, (str(ca), "the CA that the cluster trusts")]))
    return ExitStatus.OK


def read_token(text: str | None, file: Path | None) -> JoinToken | None:
    """The token that was given, or None.

    Raises:
        CertificateError: the file cannot be read.
        Trouble: there is no token in it, or what was given is none.
    """
    secret = read_password(file)
    if secret is None and text is None:
        return None
    try:
        return JoinToken.parse(text if secret is None else secret.data.decode(errors="replace"))  # type: ignore[arg-type]
    except ValueError as exc:
        where = "--token: " if secret is None else f"{file}: "
        raise Trouble(f"{where}{exc}", ExitStatus.FILES) from None


def source_of(
    url: str,
    name: NodeName | str,
    token: JoinToken | None,
    state_file: Path | None,
    *,
    with_lists: bool,
    renew_after: float = 2 / 3,
) -> ESTSource:
    """A source by which a program joins.

    Raises:
        click.UsageError: the URL is none.
        Trouble: the extra is not installed.
    """
    with _extra():
        from trionode.enrolment import ESTSource
    try:
        return ESTSource(
            url, name, token=token, state_file=state_file, revocation_lists=with_lists, renew_after=renew_after
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """How `trionode serve` gets its certificate where it has no files.

    Attributes:
        url: of the EST server.
        token_file: its first line is the token; None once there is a state file.
        state_file: keeps certificate and key over a restart.
        renew_after: at which share of the lifetime to renew, at the latest.
        with_lists: whether revocation lists come from the server, too.
    """

    url: str
    token_file: Path | None
    state_file: Path | None
    renew_after: float
    with_lists: bool

    def credentials(
        self, name: NodeName | str, *, server_name: str | None, client_auth: ClientAuth
    ) -> tuple[CertAuthManager, ESTSource]:
        """A manager with a first certificate, and the source that renews it. Blocks, as it asks the server.

        Raises:
            EnrolmentError: there is no certificate to be had.
            CertificateError: a file is unusable.
            Trouble: a file holds no token.
        """
        token_file = self.token_file
        if (
            token_file is not None
            and not exists(token_file)
            and self.state_file is not None
            and exists(self.state_file)
        ):
            token_file = None  # it was used
        token = read_token(None, token_file)
        source = source_of(
            self.url, name, token, self.state_file, with_lists=self.with_lists, renew_after=self.renew_after
        )
        found = source.read_now()
        manager = CertAuthManager(
            found.key_pair,
            client_cas=found.client_cas,
            client_auth=client_auth,
            root_cas=found.root_cas,
            server_name=server_name,
            crls=found.crls,
        )
        return manager, source
