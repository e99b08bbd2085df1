"""The command line in processes of its own and in this one, and the credentials that it works with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trionode.cli import main
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from trionode import KeyPair

PATIENCE = 30
#: What a process that serves one test, or all of them, lives at most. Seconds.
LIFETIME = 600


def make_pki(folder: Path, *names: str) -> None:
    """What `trionode pki` makes, quickly."""
    ca = CertificateAuthority.create()
    ca.save(folder / "pki")
    for name in names:
        write(folder, ca.issue(name), name)


def write(folder: Path, pair: KeyPair, name: str) -> KeyPair:
    """Put a pair where the command looks for it."""
    write_key_pair(pair, folder / "pki" / f"{name}.pem", folder / "pki" / f"{name}-key.pem")
    return pair


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a process of the command line, with a runtime directory of its own."""
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("COV", "PATH", "LANG", "LC_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_RUNTIME_DIR": str(folder / "run"), **more}


def program(
    folder: Path, *arguments: str, stdin: bytes = b"", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "trionode", *arguments],
        cwd=folder,
        env=environment(folder),
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )


def run_here(
    folder: Path, *arguments: str, stdin: bytes = b"", variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command line in this process, as `program` has it in another: with descriptors 0 to 2 of its own.

    It costs a tenth. What is about the process itself (how it starts, is interrupted, and ends) is for `program`.
    """
    wanted = environment(folder, **(variables or {}))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(folder)
        for name in set(os.environ) - set(wanted):
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(files[number].fileno(), number)
            patch.setattr(sys, name, stack.enter_context(open(number, mode, encoding="utf-8", closefd=False)))
        try:
            status = main(arguments)
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        for file in files:
            file.seek(0)
        return subprocess.CompletedProcess(arguments, status, files[1].read(), files[2].read())


class Served:
    """A `trionode serve --json` that runs.

    Attributes:
        process: which.
        first: where it listens first, as it said.
        port: the same.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first = self.wait("Listening", "Serving")
        self.port: int = self.first["addresses"][0][1] if self.first["addresses"] else 0

    def wait(self, *events: str) -> dict[str, Any]:
        """Read what happens up to an event of one of these kinds."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] in events:
                return found
        raise AssertionError(events)

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Tell it to end; its status, and its log."""
        self.process.send_signal(how)
        _, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, log


#: Starts a program as a service manager does: names, descriptors, the program.
HAND_OVER = """
import os, sys
names, descriptors, *command = sys.argv[1:]
for number, descriptor in enumerate(descriptors.split(","), 3):
    os.dup2(int(descriptor), number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(number - 2), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def handing_over(handed: dict[str, int]) -> list[str]:
    """What goes before a command that is handed descriptors, by name."""
    if not handed:
        return []
    return [sys.executable, "-c", HAND_OVER, ":".join(handed), ",".join(map(str, handed.values()))]


def serve(folder: Path, *arguments: str, **handed: int) -> AbstractContextManager[Served]:
    """Run a node, or an application, for the length of the block; it may be handed descriptors, by name."""
    return running(folder, "serve", *arguments, **handed)


@contextmanager
def running(folder: Path, *arguments: str, **handed: int) -> Iterator[Served]:
    """Run a command that serves, for the length of the block; it may be handed descriptors, by name."""
    command = [sys.executable, "-W", "error", "-m", "trionode", *arguments, "--json"]
    process = subprocess.Popen(
        [*handing_over(handed), *command],
        cwd=folder,
        pass_fds=handed.values(),
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(LIFETIME, process.kill)
    timer.start()
    try:
        with process:
            try:
                yield Served(process)
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        timer.cancel()
