"""etcd as Debian has it, in processes of its own, with TLS and client certificates, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest
import trio

from trionode import CertAuthManager, ClientAuth
from trionode.discovery import EtcdRegistry
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from trionode.pki import CertificateAuthority

#: Where a test needs it.
needs_etcd: Final = pytest.mark.skipif(
    shutil.which("etcd") is None or shutil.which("etcdctl") is None,
    reason="etcd is not installed: apt-get install etcd-server etcd-client",
)


#: How long etcd may take to start. Seconds.
_PATIENCE: Final = 20


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(kw_only=True)
class EtcdServer:
    """One member of a cluster.

    Attributes:
        name: the member's.
        directory: its data and log.
        pki: where the certificates are.
        port: where clients reach it.
        peer_port: where the other members do.
        process: while it runs.
    """

    name: str
    directory: Path
    pki: Path
    port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        """For the other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self, members: Sequence[EtcdServer]) -> None:
        """Start it, or start it again."""
        self.directory.mkdir(exist_ok=True)
        options = {
            "name": self.name,
            "data-dir": self.directory / "data",
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{each.name}={each.peer_url}" for each in members),
            "cert-file": self.pki / "etcd.pem",
            "key-file": self.pki / "etcd-key.pem",
            "trusted-ca-file": self.pki / "ca.pem",
            "heartbeat-interval": 20,
            "election-timeout": 200,
            "logger": "zap",
            "log-outputs": self.directory / "log",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self.process = subprocess.Popen(
            ["etcd", *arguments, "--client-cert-auth"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def pause(self) -> None:
        """Stop it for a while; every thread of it has stopped when this returns."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Have it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Wait until it serves clients: it listens for them once there is a leader."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it at once, whatever it is doing; harmless if it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def forget(self) -> None:
        """Lose the data."""
        shutil.rmtree(self.directory / "data")


@dataclass(kw_only=True)
class EtcdCluster:
    """Several members, and clients of theirs.

    Attributes:
        ca: of servers and clients.
        servers: the members.
    """

    ca: CertificateAuthority
    pki: Path
    servers: list[EtcdServer]

    @classmethod
    def make(cls, ca: CertificateAuthority, directory: Path, count: int = 1) -> EtcdCluster:
        """Certificates and members; nothing is started."""
        pki = directory / "pki"
        pki.mkdir()
        issued = ca.issue("localhost", "127.0.0.1")
        write_key_pair(issued, pki / "etcd.pem", pki / "etcd-key.pem")
        write_ca_pool(ca.pool, pki / "ca.pem")
        servers = [EtcdServer(name=f"m{n}", directory=directory / f"m{n}", pki=pki) for n in range(count)]
        return cls(ca=ca, pki=pki, servers=servers)

    def start(self) -> None:
        """Start all members, and wait until they serve."""
        for each in self.servers:
            each.start(self.servers)
        for each in self.servers:
            each.wait()

    def stop(self) -> None:
        """End all members."""
        for each in self.servers:
            each.kill()

    @property
    def urls(self) -> list[str]:
        """Of all members."""
        return [each.url for each in self.servers]

    def ctl(self, *arguments: str, member: int = 0, timeout: float = 10) -> str:
        """What etcdctl prints."""
        done = subprocess.run(
            [
                "etcdctl",
                f"--endpoints={self.servers[member].url}",
                f"--cacert={self.pki / 'ca.pem'}",
                f"--cert={self.pki / 'etcd.pem'}",
                f"--key={self.pki / 'etcd-key.pem'}",
                *arguments,
            ],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=timeout,
            check=True,
            text=True,
        )
        return done.stdout

    async def ctl_in_thread(self, *arguments: str, member: int = 0) -> str:
        """The same, while nodes run."""
        return await trio.to_thread.run_sync(lambda: self.ctl(*arguments, member=member))

    def manager(self) -> CertAuthManager:
        """Of a client."""
        return CertAuthManager(
            self.ca.issue("client@localhost"),
            client_cas=self.ca.pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=self.ca.pool,
        )

    def registry(self, **options: Any) -> EtcdRegistry:
        """A client of all members."""
        options.setdefault("cert_manager", self.manager())
        return EtcdRegistry(self.urls, **options)
