"""Arguments that several commands share: names, durations, addresses, and where the credentials are.

Credentials come from a directory that `trionode pki` made (`--pki`, by default `./pki`), by the node's name. Or they
come from files that are named one by one (`--cert`, `--key`, `--ca` …), and then from these alone.
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, final

import click

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import Secret, read_file
from trionode._credentials.policy import ClientAuth
from trionode._errors import CertificateError, CertificateReason
from trionode._handshake.cookie import as_cookie
from trionode._identity.names import NodeName, canonical_host, parse_name
from trionode._managers.auth_manager import CertAuthManager
from trionode._managers.sources import FileSource
from trionode._node.resolvers import DEFAULT_PORT
from trionode.pki._authority import (
    CA_FILE as CA_FILE,
    CA_KEY_FILE as CA_KEY_FILE,
    INTERMEDIATE_FILE as INTERMEDIATE_FILE,
)
from trionode.pki._ca_files import (
    CRL_FILE as CRL_FILE,
    CRL_MARKER as CRL_MARKER,
    OLD_FILE as OLD_FILE,
    ROOT_KEY_FILE as ROOT_KEY_FILE,
)

from .exits import ExitStatus, Trouble
from .kinds import DIRECTORY, FILE as FILE
from .paths import exists

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

P = ParamSpec("P")
R = TypeVar("R")

PKI: Final = Path("pki")

CLIENT_AUTH: Final = {mode.name.lower().replace("_client_cert", "").replace("_", "-"): mode for mode in ClientAuth}


_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


# Values -------------------------------------------------------------------------------------------------------------


def node_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> NodeName | None:
    """A callback: `name@host`."""
    if value is None:
        return None
    try:
        return NodeName.parse(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


def host_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A callback: a DNS name or an address, canonical."""
    if value is None:
        return None
    try:
        return canonical_host(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


def node_or_host(text: str) -> NodeName | str:
    """A node name, or a host.

    Raises:
        click.BadParameter: it is neither.
    """
    with_port = re.fullmatch(r"((?:[^:]*@)?(?:[^:\[\]]+|\[[^\]]*\])):\d+", text)
    if with_port is not None:
        msg = f"{text!r} has a port, and certificates are for names alone: write {with_port[1]}"
        raise click.BadParameter(msg)
    try:
        return parse_name(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


def duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    """A callback: `90d`, `12h`, `1.5m`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if found is None:
        msg = f"{value!r} is no duration; write a number and a unit: 90d, 12h, 30m, 45s"
        raise click.BadParameter(msg)
    try:
        span = timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        msg = f"{value!r} is longer than any date; write a shorter duration"
        raise click.BadParameter(msg) from None
    if not span:
        msg = f"{value!r} is zero; write a longer duration"
        raise click.BadParameter(msg)
    return span


def host_and_port(text: str, default: int | None = None, *, hint: str | None = None) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[IPV6]:PORT`; without a port, the default.

    Args:
        text: what was given.
        default: the port if there is none; None: there has to be one.
        hint: the option or argument that it is the value of.

    Raises:
        click.BadParameter: it is neither, or has no port where it needs one.
    """
    if "://" in text:
        msg = f"{text!r} is a URL; give HOST or HOST:PORT alone, without {text.partition('://')[0]}:// and a path"
        raise click.BadParameter(msg, param_hint=hint and f"'{hint}'")
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host.strip("[]") and not host.startswith("[")):
        host, port = text, ""
    if not port and default is None:
        msg = f"{text!r} has no port; write HOST:PORT, or [IPV6]:PORT"
        raise click.BadParameter(msg, param_hint=hint and f"'{hint}'")
    try:
        number = int(port) if port else default
    except ValueError:
        number = None
    if number is None or not 0 <= number <= 65535:
        msg = f"{port!r} is no port; write a number from 0 to 65535"
        raise click.BadParameter(msg, param_hint=hint and f"'{hint}'")
    try:
        return canonical_host(host), number
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint=hint and f"'{hint}'") from None


def place_to_listen(text: str, default: int | None = None, *, hint: str = "--listen") -> tuple[str, int]:
    """As `host_and_port`; the host may be `*`, for all interfaces.

    Raises:
        click.BadParameter: it is neither.
    """
    host, colon, port = text.partition(":")
    if host != "*":
        return host_and_port(text, default, hint=hint)
    return host, host_and_port(f"localhost{colon}{port}", default, hint=hint)[1]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The target of a dial.

    Attributes:
        node: the node's name, or None where only a host was given.
        host: the host to connect to; canonical.
        port: the TCP port.
    """

    node: NodeName | None
    host: str
    port: int


def target_of(text: str, address: str | None) -> Place:
    """`NODE`, `NODE:PORT`, `HOST` or `HOST:PORT`; the address to connect to may be given apart.

    Raises:
        click.BadParameter: it is none of these.
    """
    name, at, where = text.rpartition("@")
    host, port = host_and_port(text if "://" in text else where, DEFAULT_PORT, hint="NODE")
    try:
        node = NodeName(name, host) if at else None
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None
    if address is not None:
        host, port = host_and_port(address, port, hint="--address")
    return Place(node=node, host=host, port=port)


def read_cookie(file: Path | None) -> bytes | None:
    """The cookie in a file: its first line.

    Raises:
        CertificateError: the file cannot be read.
        Trouble: it is too short.
    """
    secret = None if file is None else read_password(file)
    if secret is None:
        return None
    try:
        return as_cookie(secret.data)
    except ValueError as exc:
        msg = f"{file} holds no cookie: {exc}"
        raise Trouble(msg, ExitStatus.FILES) from None


def read_password(file: Path | None) -> Secret | None:
    """The password in a file: its first line.

    Raises:
        CertificateError: the file cannot be read.
        Trouble: it is empty.
    """
    if file is None:
        return None
    first = Secret(read_file(file, limit=4096, kind="password file").data.partition(b"\n")[0].rstrip(b"\r"))
    if not first.data:
        msg = f"{file} is empty; its first line is used"
        raise Trouble(msg, ExitStatus.FILES)
    return first


# Files of a `pki` directory -----------------------------------------------------------------------------------------


def cert_file(directory: Path, name: object) -> Path:
    """Where `trionode pki` puts a certificate."""
    return directory / f"{name}.pem"


def key_file(directory: Path, name: object) -> Path:
    """Where `trionode pki` puts a key."""
    return directory / f"{name}-key.pem"


def complete_node(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: the nodes of the directory that have a certificate."""
    from click.shell_completion import CompletionItem

    directory = context.params.get("directory") or PKI
    try:
        files = sorted(Path(directory).glob("*-key.pem"))
    except OSError:
        return []
    names = [file.name.removesuffix("-key.pem") for file in files]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


# Credentials --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """The files that credentials are read from."""

    cert: Path
    key: Path
    password: Path | None = None
    client_cas: tuple[Path, ...] = ()
    root_cas: tuple[Path, ...] = ()
    crls: tuple[Path, ...] = ()

    def key_pair(self) -> KeyPair:
        """Read the key pair.

        Raises:
            CertificateError: it is unusable.
        """
        secret = read_password(self.password)
        return KeyPair.load(self.cert, self.key, password=None if secret is None else secret.data)

    def source(self, *, poll_interval: float = 1.0) -> FileSource:
        """The files as a source that a manager can follow."""
        secret = read_password(self.password)
        return FileSource(
            self.cert,
            self.key,
            password=None if secret is None else secret.data,
            client_ca_files=self.client_cas,
            root_ca_files=self.root_cas,
            crl_files=self.crls,
            poll_interval=poll_interval,
        )

    def manager(
        self, *, server_name: str | None = None, client_auth: ClientAuth = ClientAuth.NO_CLIENT_CERT
    ) -> CertAuthManager:
        """A manager; by default one for a node that only dials.

        Raises:
            CertificateError: something is unusable.
        """
        return CertAuthManager(
            self.key_pair(),
            client_cas=pool(self.client_cas),
            client_auth=client_auth,
            root_cas=pool(self.root_cas),
            server_name=server_name,
            crls=revocations(self.crls),
        )


def pool(files: tuple[Path, ...]) -> CAPool | None:
    """A pool of the CAs in some files; None without files.

    Raises:
        CertificateError: one is unusable.
    """
    return CAPool.load(*files) if files else None


def revocations(files: tuple[Path, ...]) -> CRLSet | None:
    """The revocation lists in some files; None without files.

    Raises:
        CertificateError: one is unusable.
    """
    return CRLSet.load(*files) if files else None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The credential options of a command line."""

    directory: Path
    cert: Path | None
    key: Path | None
    password: Path | None
    cas: tuple[Path, ...]
    client_cas: tuple[Path, ...]
    root_cas: tuple[Path, ...]
    crls: tuple[Path, ...]
    no_crl: bool = False

    @property
    def named(self) -> bool:
        """Whether certificate or key were named as files."""
        return self.cert is not None or self.key is not None

    def files(self, name: NodeName | str | None) -> Files:
        """The files to read: those that were named, else those of a node in the directory.

        Args:
            name: the node whose files to take from the directory; None if none was given.

        Raises:
            click.UsageError: a key was named without a certificate, or neither files nor a node were.
            Trouble: the directory does not have them.
        """
        client_cas, root_cas = (*self.cas, *self.client_cas), (*self.cas, *self.root_cas)
        if self.named:
            if self.cert is None:
                msg = "--key was given without --cert; give both (they may be the same file)"
                raise click.UsageError(msg)
            return Files(
                cert=self.cert,
                key=self.key or self.cert,
                password=self.password,
                client_cas=client_cas,
                root_cas=root_cas,
                crls=self.crls,
            )
        if name is None:
            msg = "no certificate was given: use --cert and --key, or a name whose files are in --pki"
            raise click.UsageError(msg)
        cert, key, ca, crl = (
            cert_file(self.directory, name),
            key_file(self.directory, name),
            self.directory / CA_FILE,
            self.directory / CRL_FILE,
        )
        for file in (cert, key):
            if not exists(file):
                msg = (
                    f"there is no file {file}: give --cert and --key, or make them with: "
                    f"trionode pki issue{pki_words(self.directory)} {name}"
                )
                raise Trouble(msg, ExitStatus.FILES)
        return Files(
            cert=cert,
            key=key,
            password=self.password,
            client_cas=client_cas or (ca,),
            root_cas=root_cas or (ca,),
            crls=self._revocation_lists(crl),
        )

    def _revocation_lists(self, of_directory: Path) -> tuple[Path, ...]:
        """Those that were named, else the directory's.

        Raises:
            Trouble: the directory had a list, and it is gone: nothing would be revoked any more.
        """
        if self.crls or self.no_crl:
            return self.crls
        if exists(of_directory):
            return (of_directory,)
        if exists(self.directory / CRL_MARKER):
            msg = (
                f"{of_directory} is missing, and {self.directory} once had it: without it no certificate is revoked. "
                f"Put it back; or sign a new list, which has none of the entries of the lost one, with: trionode pki "
                f"revoke{pki_words(self.directory)}; or give --no-crl to do without"
            )
            raise Trouble(msg, ExitStatus.FILES)
        return ()


def pki_words(directory: Path) -> str:
    """`--pki`, for a command that is suggested; empty if it is the default."""
    return "" if directory == PKI else f" --pki {shlex.quote(str(directory))}"


def pki_option(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `--pki`, as `directory`."""
    return click.option(
        "--pki",
        "directory",
        type=DIRECTORY,
        default=PKI,
        show_default=True,
        envvar="TRIONODE_PKI",
        help="Directory of `trionode pki`: ca.pem, and NAME.pem and NAME-key.pem of each node. [env: TRIONODE_PKI]",
    )(function)


def credential_options(function: Callable[..., R]) -> Callable[..., R]:
    """A decorator: all credential options, as one `Given` in the parameter `given`."""

    @pki_option
    @click.option("--cert", type=FILE, help="Certificate, PEM: leaf first, then intermediates.")
    @click.option("--key", type=FILE, help="Its private key, PEM. Default: in the --cert file.")
    @click.option("--password-file", type=FILE, help="First line: the password of the key.")
    @click.option("--ca", "cas", type=FILE, multiple=True, help="CAs for both directions, PEM; repeatable.")
    @click.option("--client-ca", "client_cas", type=FILE, multiple=True, help="CAs for clients only; repeatable.")
    @click.option("--root-ca", "root_cas", type=FILE, multiple=True, help="CAs for servers only; repeatable.")
    @click.option("--crl", "crls", type=FILE, multiple=True, help="Certificate revocation lists; repeatable.")
    @click.option("--no-crl", is_flag=True, help="Do without the ca.crl of the --pki directory.")
    @functools.wraps(function)
    def wrapped(
        *arguments: object,
        directory: Path,
        cert: Path | None,
        key: Path | None,
        password_file: Path | None,
        cas: tuple[Path, ...],
        client_cas: tuple[Path, ...],
        root_cas: tuple[Path, ...],
        crls: tuple[Path, ...],
        no_crl: bool,
        **others: object,
    ) -> R:
        if no_crl and crls:
            msg = "--crl and --no-crl exclude each other"
            raise click.UsageError(msg)
        source = click.get_current_context().get_parameter_source("directory")
        if source is click.core.ParameterSource.COMMANDLINE and (cert is not None or key is not None):
            msg = (
                "--pki and --cert (or --key) exclude each other: the files are those of the directory, or those that "
                "are named one by one, with --ca and --crl"
            )
            raise click.UsageError(msg)
        given = Given(
            directory=directory,
            cert=cert,
            key=key,
            password=password_file,
            cas=cas,
            client_cas=client_cas,
            root_cas=root_cas,
            crls=crls,
            no_crl=no_crl,
        )
        return function(*arguments, given=given, **others)

    return wrapped


def address_option(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `--address`, as `address`."""
    return click.option(
        "--address", metavar="HOST[:PORT]", help="Where to connect to. Default: the host of the name, port 15000."
    )(function)


def cookie_option(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `--cookie-file`, as `cookie_file`."""
    return click.option("--cookie-file", type=FILE, help="First line: the cookie that both sides share.")(function)


def json_option(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for scripts, and nothing else.")(
        function
    )


def unreadable(error: OSError, what: str) -> CertificateError:
    """An `OSError` as a `CertificateError`, which the rest of the program handles."""
    msg = f"cannot {what}: {error.strerror or error}. Check path, space and permissions"
    return CertificateError(msg, reason=CertificateReason.UNREADABLE)
