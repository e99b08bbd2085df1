"""Nodes in processes of their own, with etcd in another: mutual TLS everywhere."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.child import Lines, running
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.stress.program import Progress


def available() -> bool:
    """Whether there is an etcd to run."""
    return shutil.which("etcd") is not None


@dataclass(kw_only=True)
class Child:
    """One node's process."""

    name: str
    process: trio.Process
    lines: Lines

    async def ask(self) -> dict[str, int]:
        """How it is; zeros where it has not opened yet, or is gone."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(b"?\n")
        except trio.BrokenResourceError:
            return {"named": 0, "connected": 0, "requests": 0}
        line = await self.lines.read()
        found: dict[str, int] = json.loads(line) if line else {"named": 0, "connected": 0, "requests": 0}
        return found


@contextmanager
def etcd(ca: CertificateAuthority, directory: Path) -> Iterator[str]:
    """An etcd that insists on client certificates, for the length of a block; its URL."""
    write_ca_pool(ca.pool, directory / "ca.pem")
    write_key_pair(ca.issue("localhost", "127.0.0.1"), directory / "etcd.pem", directory / "etcd-key.pem")
    ports: list[int] = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    client, peer = (f"{scheme}://127.0.0.1:{port}" for scheme, port in zip(("https", "http"), ports, strict=True))
    options = {
        "data-dir": directory / "data",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
        "cert-file": directory / "etcd.pem",
        "key-file": directory / "etcd-key.pem",
        "trusted-ca-file": directory / "ca.pem",
    }
    arguments = ["etcd", "--client-cert-auth", *(f"--{name}={value}" for name, value in options.items())]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        yield client
    finally:
        process.kill()
        process.wait()


async def measure(
    count: int, within: float, ttl: int, idle: float, progress: Progress
) -> tuple[dict[str, float], float, list[str]]:
    """Join, kill one, come back, be idle: the seconds of each phase, requests per node and minute, what went wrong."""
    ca = CertificateAuthority.create()
    names = [f"node-{n}@localhost" for n in range(count)]
    seconds: dict[str, float] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, etcd(ca, Path(scratch)) as url:
        directory = Path(scratch)
        for name in names:
            write_key_pair(ca.issue(name), directory / f"{name}.pem", directory / f"{name}-key.pem")
        async with AsyncExitStack() as stack:
            children: list[Child] = []

            async def begin(name: str) -> None:
                process = await stack.enter_async_context(
                    running(
                        "benchmarks.stress.discovery.child",
                        directory,
                        name,
                        url,
                        ttl,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
                assert process.stdout is not None
                children.append(Child(name=name, process=process, lines=Lines(process.stdout)))

            async def phase(title: str) -> None:
                began = trio.current_time()
                behind = children
                while behind and trio.current_time() - began <= within:
                    others = len(children) - 1
                    told = {each.name: await each.ask() for each in children}
                    behind = [
                        each
                        for each in children
                        if (told[each.name]["named"], told[each.name]["connected"]) != (others, others)
                    ]
                    await trio.sleep(0.1)
                if behind:
                    problems.append(f"{title}: {len(behind)} nodes are behind after {within:g} s")
                seconds[title] = round(trio.current_time() - began, 3)
                progress.say(f"{len(children)} processes, {title}: {seconds[title]:.2f} s")

            for name in names:
                await begin(name)
            await phase("joined")
            victim = children.pop()
            victim.process.kill()
            await phase("one was killed")
            await begin(victim.name)
            await phase("came back")
            before = [(await each.ask())["requests"] for each in children]
            await trio.sleep(idle)
            after = [(await each.ask())["requests"] for each in children]
            rate = (sum(after) - sum(before)) / count / idle * 60
            progress.say(f"{rate:.1f} requests to etcd for each node and minute")
    return seconds, round(rate, 2), problems
