"""Ctrl-C at any moment: while modules are imported, while the peer is silent in TLS, while a node serves.

The demo is in test_demo; signals under OpenSSL are in system/test_interrupt.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30
ALPHA, BETA = "alpha@localhost", "beta@localhost"
HOST = "127.0.0.1"

#: Runs the command line; presses Ctrl-C when a module is about to be imported.
WHILE_IMPORTING = """
import runpy, signal, sys
wanted, *sys.argv[1:] = sys.argv[1:]
class Finder:
    def find_spec(name, path=None, target=None):
        if name == wanted:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder)
runpy.run_module("trionode", run_name="__main__", alter_sys=True)
"""


def check_end(process: subprocess.Popen[str]) -> None:
    """The conventional status, by itself or by the signal; and at most one line, which is no traceback."""
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode in (130, -signal.SIGINT), log
    lines = [line for line in log.splitlines() if line.strip()]
    assert "Traceback" not in log
    assert "never awaited" not in log
    assert [line for line in lines if "interrupted" in line] == lines[-1:] or not lines


def start(folder: Path, *arguments: str, before: tuple[str, ...] = ("-m", "trionode")) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *before, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what `trionode pki` makes."""
    made = tmp_path_factory.mktemp("interrupted")
    ca = CertificateAuthority.create()
    ca.save(made / "pki")
    for name in (ALPHA, BETA):
        write_key_pair(ca.issue(name), made / "pki" / f"{name}.pem", made / "pki" / f"{name}-key.pem")
    return made


@pytest.mark.parametrize("module", ["click", "cryptography.x509", "OpenSSL.SSL", "trionode._node.node"])
def test_while_importing(module: str, folder: Path) -> None:
    """Whatever is imported just then."""
    check_end(start(folder, module, "serve", BETA, before=("-c", WHILE_IMPORTING)))


@pytest.mark.parametrize(("command", "moment"), [("ping", "client hello"), ("call", "accepted")])
def test_while_the_peer_is_silent(command: str, moment: str, folder: Path) -> None:
    """In the middle of the handshake."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        where = f"{BETA}:{listener.getsockname()[1]}"
        more = ("echo", "hello") if command == "call" else ()
        process = start(folder, command, "--as", ALPHA, where, *more)
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(PATIENCE)
            if moment == "client hello":
                assert stream.recv(1) == b"\x16"
            process.send_signal(signal.SIGINT)
            check_end(process)


def listening(process: subprocess.Popen[str]) -> int:
    """The port of a node, once it listens."""
    assert process.stdout is not None
    return int(process.stdout.readline().partition(" port ")[2].partition(";")[0])


def silent(port: int) -> list[socket.socket]:
    """Clients in the middle of their handshakes: one says nothing, one half of a ClientHello."""
    found = [socket.create_connection((HOST, port), PATIENCE) for _ in range(2)]
    found[1].sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    return found


def test_a_node_with_handshakes_under_way(folder: Path) -> None:
    """They do not hold it up."""
    process = start(folder, "serve", BETA, "--listen", f"{HOST}:0", "--no-status")
    clients = silent(listening(process))
    process.send_signal(signal.SIGINT)
    check_end(process)
    for stream in clients:
        stream.close()
