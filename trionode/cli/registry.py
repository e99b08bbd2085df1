"""`--registry`: where nodes find each other, as a URL.

etcd://HOST[:PORT][,HOST…][/PREFIX]    etcd, reached with the node's own certificates; USER@ with a password
dns:[//SERVER[:PORT]][?NAME=SRVNAME]   DNS; each NAME=SRVNAME is a service that lists nodes
local:[DIRECTORY]                      the nodes of this user on this machine
static:FILE                            a TOML file
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import click

from trionode._node.resolvers import ResolverError
from trionode.discovery.local import LocalRegistry
from trionode.discovery.static import StaticResolver, endpoint

from .exits import ExitStatus, Trouble
from .given import FILE, read_password

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeAlias, TypeVar

    from trionode import CertManager, NamingResolver

    P = ParamSpec("P")
    R = TypeVar("R")
    #: Whatever a URL stands for; every one of them resolves and names.
    Registry: TypeAlias = "NamingResolver"

_SCHEMES: Final = "etcd://HOST:2379, dns:, local: or static:FILE"


def registry_option(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `--registry` and `--registry-password-file`, as `registry` and `registry_password`."""
    function = click.option(
        "--registry-password-file", "registry_password", type=FILE, help="First line: the password of etcd's USER@."
    )(function)
    return click.option(
        "--registry",
        metavar="URL",
        help="Where nodes find each other: etcd://HOST[,HOST…][/PREFIX], dns:[//SERVER], local:[DIR], static:FILE.",
    )(function)


def registry_of(
    url: str, manager: Callable[[], CertManager], password_file: Path | None, *, base: Path | None = None
) -> Registry:
    """What a URL stands for.

    Args:
        url: see the module.
        manager: gives what etcd is reached with.
        password_file: its first line is the password of etcd's user.
        base: what paths in it are relative to; by default the working directory.

    Raises:
        Trouble: it stands for nothing, or needs an extra that is not installed.
        CertificateError: the password or a certificate cannot be read.
    """
    scheme, colon, rest = url.partition(":")
    base = base or Path()
    make = {
        "etcd": partial(_etcd, url, manager, password_file),
        "dns": partial(_dns, url),
        "local": partial(_local, rest, base),
        "static": partial(_static, rest, base),
    }.get(scheme)
    if not colon or make is None:
        msg = f"{url!r} is no registry; write {_SCHEMES}"
        raise Trouble(msg, ExitStatus.USAGE)
    if password_file is not None and scheme != "etcd":
        raise Trouble("a registry's password is for etcd alone", ExitStatus.USAGE)
    try:
        return make()
    except (ValueError, TypeError, ModuleNotFoundError, ResolverError) as exc:
        msg = f"registry {url}: {exc}"
        raise Trouble(msg, ExitStatus.USAGE) from None


def _etcd(url: str, manager: Callable[[], CertManager], password_file: Path | None) -> Registry:
    from trionode.discovery.etcd import PREFIX, EtcdRegistry

    split = urlsplit(url)
    user, at, hosts = split.netloc.rpartition("@")
    if ":" in user:
        msg = "a password does not belong in a URL, which others can see; give --registry-password-file"
        raise ValueError(msg)
    if split.query or split.fragment or not hosts:
        msg = "write etcd://HOST[:PORT][,HOST…][/PREFIX]"
        raise ValueError(msg)
    if at and password_file is None:
        msg = f"the user {unquote(user)} needs a password; give it by --registry-password-file"
        raise ValueError(msg)
    if password_file is not None and not at:
        msg = "--registry-password-file is for a user: write etcd://USER@HOST"
        raise ValueError(msg)
    password = read_password(password_file)
    prefix = f"{split.path.rstrip('/')}/"
    return EtcdRegistry(
        [endpoint(host, 2379) for host in hosts.split(",")],
        cert_manager=manager(),
        user=unquote(user) if at else None,
        password=None if password is None else password.data.decode(),
        prefix=PREFIX if prefix == "/" else prefix,
    )


def _dns(url: str) -> Registry:
    from trionode.discovery.dns import DNSResolver

    split = urlsplit(url)
    if split.path.strip("/"):
        msg = "write dns:, dns://SERVER or dns://SERVER:PORT, and ?NAME=SRVNAME for a service that lists nodes"
        raise ValueError(msg)
    try:
        services = dict(parse_qsl(split.query, strict_parsing=bool(split.query)))
    except ValueError:
        msg = f"write ?NAME=SRVNAME for a service that lists nodes, not ?{split.query}"
        raise ValueError(msg) from None
    if not split.netloc:
        return DNSResolver(services=services)
    server = endpoint(split.netloc, 53)
    return DNSResolver(services=services, nameservers=[server.host.strip("[]")], port=server.port)


def _local(rest: str, base: Path) -> Registry:
    directory = _path(rest)
    return LocalRegistry(base / directory) if directory else LocalRegistry()


def _static(rest: str, base: Path) -> Registry:
    file = _path(rest)
    if not file:
        raise ValueError("write static:FILE")
    return StaticResolver(base / file)


def _path(rest: str) -> str:
    """The path of `local:` or `static:`, which may follow two slashes, as in other URLs."""
    return unquote(rest.removeprefix("//"))
