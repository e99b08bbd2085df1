"""`--registry`: serving, finding, calling and explaining nodes that a registry knows."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from command_line import PATIENCE, Served, environment, make_pki, run_here, serve
from etcd_servers import EtcdServer, needs_etcd
from trionode import LocalRegistry
from trionode.cli.registry import registry_of
from trionode.discovery import DNSResolver, EtcdRegistry, StaticResolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import ManagerFactory, Said

    Command = Callable[..., Said]

ALPHA, BETA = "alpha@localhost", "beta@localhost"


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Served]]:
    """A node beta that its file has registered on this machine; alpha's certificate is there, too."""
    folder = tmp_path_factory.mktemp("registry")
    make_pki(folder, ALPHA, BETA)
    (folder / "beta.toml").write_text(
        f'name = "{BETA}"\npki = "pki"\n[[acceptors]]\nhost = "127.0.0.1"\nport = 0\n[services]\necho = "echo"\n'
        '[network]\nregistry = "local:known"\nkeep_connected = ["worker@*"]\n'
    )
    with serve(folder, "--config", "beta.toml") as served:
        yield folder, served


@pytest.fixture
def here(beta: tuple[Path, Served], monkeypatch: pytest.MonkeyPatch, trionode_command: Command) -> Command:
    """The command line in this process, in beta's directory."""
    monkeypatch.chdir(beta[0])
    return trionode_command


def test_members(here: Command, beta: tuple[Path, Served]) -> None:
    """Those that match, with where they are; for scripts, too; none is told apart."""
    done = here("members", "--registry", "local:known")
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == [BETA, "127.0.0.1", "port", str(beta[1].port)]
    done = here("members", "b*@*", "--registry", "local:known", "--json")
    assert json.loads(done.out) == {"members": [{"name": BETA, "endpoints": [["127.0.0.1", beta[1].port]]}]}
    done = here("members", "worker@*", "--registry", "local:known")
    assert (done.status, done.out) == (1, "no node is named\n")


def test_members_that_come_and_go(beta: tuple[Path, Served]) -> None:
    """Shown as they do, until Ctrl-C."""
    folder, _ = beta
    following = subprocess.Popen(
        [sys.executable, "-m", "trionode", "members", "--registry", "local:known", "--follow"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        assert following.stdout.readline().startswith(BETA)
        options = ("--registry", "local:known", "--listen", "127.0.0.1:0", "--no-status")
        with serve(folder, ALPHA, *options) as alpha:
            assert following.stdout.readline() == f"+ {ALPHA} 127.0.0.1 port {alpha.port}\n"
            alpha.end()
        assert following.stdout.readline() == f"- {ALPHA}\n"
        following.send_signal(signal.SIGINT)
        assert following.wait(PATIENCE) == 130
    finally:
        following.kill()
        following.communicate()


def test_calls_and_questions(here: Command, beta: tuple[Path, Served]) -> None:
    """`call`, `ping` and `explain` find the node by the registry; a name that it does not know is told."""
    folder, served = beta
    found = ("--registry", "local:known", "--as", ALPHA)
    assert run_here(folder, "call", *found, BETA, "echo", "hello").stdout == b"hello\n"
    assert f"port {served.port}" in here("ping", *found, BETA, "-c", "1").out
    done = here("explain", *found, BETA)
    assert (done.status, "nothing is wrong" in done.out) == (0, True)
    for command in ("explain", *found, "gamma@localhost"), ("call", *found, "gamma@localhost", "echo", "x"):
        here(*command).is_one_line("does not know", status=4)


@needs_etcd
def test_etcd(tmp_path: Path) -> None:
    """Nodes are registered in etcd with their own certificates, and found there with another node's."""
    make_pki(tmp_path, ALPHA, BETA, "etcd@127.0.0.1")
    for suffix in "", "-key":
        shutil.copy(tmp_path / "pki" / f"etcd@127.0.0.1{suffix}.pem", tmp_path / "pki" / f"etcd{suffix}.pem")
    server = EtcdServer(name="m0", directory=tmp_path / "m0", pki=tmp_path / "pki")
    server.start([server])
    try:
        server.wait()
        url = f"etcd://127.0.0.1:{server.port}/cluster"
        with serve(tmp_path, BETA, "--listen", "127.0.0.1:0", "--service", "echo", "--registry", url) as served:
            found = ("--registry", url, "--as", ALPHA)
            done = run_here(tmp_path, "members", "*", *found)
            assert done.stdout.decode().split() == [BETA, "127.0.0.1", "port", str(served.port)]
            assert run_here(tmp_path, "call", *found, BETA, "echo", "hello").stdout == b"hello\n"
            served.end()
            assert run_here(tmp_path, "members", *found).stdout == b"no node is named\n"
    finally:
        server.kill()
    done = run_here(tmp_path, "members", *found)
    assert done.returncode == 4
    assert b"no server answers" in done.stderr


# What is no registry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("members",), "which registry"),
        (("members", "worker*", "--registry", "local:known"), "has no '@'"),
        (("members", "--registry", "known"), "is no registry"),
        (("members", "--registry", "redis://h"), "is no registry"),
        (("members", "--registry", "static:"), "static:FILE"),
        (("members", "--registry", "etcd://"), "write etcd://"),
        (("members", "--registry", "etcd://u:p@h"), "--registry-password-file"),
        (("members", "--registry", "dns://h/path"), "write dns:"),
        (("members", "--registry", "dns:?worker"), "dns:?worker"),
        (("members", "--registry", "dns://host.example"), "dns://host.example"),
        (("members", "--registry", "dns:?no name=x.test"), "name"),
        (("call", BETA, "echo", "x", "--as", ALPHA, "--registry", "local:known", "--address", "h:1"), "either that"),
        (("explain", "h:1", "--registry", "local:known"), "either that"),
        (("serve", BETA, "--registry", "nothing"), "is no registry"),
    ],
)
def test_what_cannot_be_one(arguments: tuple[str, ...], words: str, here: Command) -> None:
    """One line, that says what to write, and the status of a wrong command line."""
    here(*arguments).is_one_line(words, status=2)


def test_passwords_are_for_etcd(tmp_path: Path, manager: ManagerFactory) -> None:
    """The user stands in the URL, the password in a file."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    certs = manager("client@localhost")
    registry = registry_of("etcd://root@a.example,b.example:1/nodes/", lambda: certs, secret)
    assert isinstance(registry, EtcdRegistry)
    assert registry.prefix == "/nodes/"
    assert registry._login == ("root", "hunter2")
    assert [(each.host, each.port) for each in registry._servers] == [("a.example", 2379), ("b.example", 1)]
    with pytest.raises(Exception, match="for etcd alone"):
        registry_of("local:", lambda: certs, secret)


def test_every_kind(tmp_path: Path, manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each URL stands for; paths are relative to where they were given."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def of(url: str) -> object:
        return registry_of(url, lambda: manager("client@localhost"), None, base=tmp_path)

    static, local, default = of("static:nodes.toml"), of("local:known"), of("local:")
    assert isinstance(static, StaticResolver)
    assert static.file == tmp_path / "nodes.toml"
    assert isinstance(local, LocalRegistry)
    assert local.directory == tmp_path / "known"
    assert isinstance(default, LocalRegistry)
    assert default.directory == tmp_path / "trionode"
    named = of("dns://192.0.2.1:5353?worker=_trionode._tcp.worker.test")
    assert isinstance(named, DNSResolver)
    assert named.services == {"worker": "_trionode._tcp.worker.test"}
    assert "192.0.2.1" in repr(named)
