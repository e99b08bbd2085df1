"""`trionode join`, and joining for `trionode serve`: a program that has no certificate gets one from `pki serve`."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 -- dataclasses are looked at
from typing import TYPE_CHECKING, final

import click

from trionode._managers.auth_manager import CertAuthManager
from trionode.pki import JoinToken, write_ca_pool, write_key_pair

from .exits import ExitStatus, Trouble
from .given import (
    CA_FILE,
    FILE,
    cert_file,
    json_option,
    key_file,
    node_or_host,
    pki_option,
    read_password,
)
from .paths import exists
from .pki_files import for_files, refuse_to_overwrite
from .shown import console, grid, put, put_json, speaks_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode import ClientAuth, NodeName
    from trionode.enrolment import ESTSource


@contextmanager
def with_extra() -> Iterator[None]:
    """What is missing of the extra is said in one line.

    Raises:
        Trouble: in place of a `ModuleNotFoundError`.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        msg = f"enrolment needs {exc.name}; install it with: pip install 'trionode[enrol]'"
        raise Trouble(msg, ExitStatus.USAGE) from None


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
    source = click.get_current_context().get_parameter_source("token")
    # A file goes before the environment.
    if token_file is not None and source is click.core.ParameterSource.COMMANDLINE:
        msg = "--token and --token-file were given; one of them is enough"
        raise click.UsageError(msg)
    parsed = read_token(token, token_file)
    if parsed is None:
        msg = "a token is needed: --token-file, or --token; `trionode pki token NAME` makes one where the CA is"
        raise click.UsageError(msg)
    wanted = node_or_host(name or parsed.names)
    cert, key, ca = cert_file(directory, wanted), key_file(directory, wanted), directory / CA_FILE
    if not force:
        refuse_to_overwrite(cert, key, ca, instead="name another --pki directory")
    with for_files(f"write {cert}"):
        # Before the token is spent on files that cannot be written.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    found = source_of(url, wanted, parsed, None, with_lists=False).read_now()
    with for_files(f"write {cert}"):
        if found.root_cas is not None:
            write_ca_pool(found.root_cas, ca)
        write_key_pair(found.key_pair, cert, key)
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
    with with_extra():
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
