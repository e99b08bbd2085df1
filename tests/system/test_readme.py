"""The README is true: its programs run and print what it says, its tables and its map agree with the code."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding

import trionode
from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    KeyPair,
    TLSStream,
    open_tls_stream,
    serve_tls,
)
from trionode.cli.config import load_config
from trionode.cli.exits import MEANINGS
from trionode.cli.pki import pki
from trionode.cli.program import cli
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(trionode.__file__).parent

#: Every program and every test is bounded by this. Seconds.
PATIENCE = 60

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A program, and what it prints.
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

#: Those that are tests; and what pytest prints of them.
SUITES = [each for each in PROGRAMS if each[0].startswith("# test_")]
SCRIPTS = [each for each in PROGRAMS if each not in SUITES]

COMMANDS = {
    "demo-command": "python3 -m venv .venv && .venv/bin/pip install -q -e '.[cli]' && .venv/bin/trionode demo",
    "test-command": "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest",
}


def section(title: str) -> str:
    """The text below a heading, up to the next of its rank."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# What it opens with -------------------------------------------------------------------------------------------------


def test_it_opens_with_what_this_is_for_and_the_two_commands() -> None:
    """A title, one paragraph, and then both commands before the first section."""
    opening = README.split("\n## ")[0]
    title, paragraph, *_ = opening.split("\n\n")
    assert title == "# trionode"
    assert paragraph.startswith("`trionode` lets")
    assert all(f"<!-- {name} -->" in opening for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_block_after_the_comment_is_the_command(name: str) -> None:
    """Scripts find each command as the fenced bash block right after its comment."""
    assert f"<!-- {name} -->\n```bash\n{COMMANDS[name]}\n```\n" in README


def test_there_is_no_other_shell_block() -> None:
    """What is to be typed is those two commands, and what the consoles show, which is tried below."""
    assert [text.strip() for kind, text in _BLOCK.findall(README) if kind == "bash"] == list(COMMANDS.values())
    assert {kind for kind, _ in _BLOCK.findall(README)} <= {"bash", "console", "python", "text", "toml", "yaml"}


# Its consoles -------------------------------------------------------------------------------------------------------


#: What only looks, and may be asked again; and for how long, which only failing takes. Seconds.
LOOKING = ("trionode explain", "trionode status")
NOTICED = 10


class Shell:
    """A bash that is told one command after the other, as somebody types them."""

    _OVER = "## the command is over:"

    def __init__(self, folder: Path) -> None:
        folder.joinpath("run").mkdir(mode=0o700)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("COV", "LANG", "LC_"))}
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={
                **kept,
                "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "XDG_RUNTIME_DIR": str(folder / "run"),
                "COLUMNS": "80",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # whatever it started ends with it
        )
        command = folder / "bin" / "trionode"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m trionode "$@"\n', encoding="utf-8")
        command.chmod(0o700)
        self._timer = threading.Timer(PATIENCE, os.killpg, (self._bash.pid, signal.SIGKILL))
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._bash:
            os.killpg(self._bash.pid, signal.SIGKILL)

    def _say(self, command: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\n")
        self._bash.stdin.flush()

    def type(self, command: str) -> str:
        """What a command says; one that goes on in the background is not waited for, but for its first line."""
        assert self._bash.stdout is not None
        if command.endswith("&"):
            self._say(command)
            return self._bash.stdout.readline()
        # A job that is told to end is waited for, as people do without noticing.
        self._say(f"{command}{'; wait %1' if command == 'kill %1' else ''}\necho '{self._OVER}'")
        said = ""
        while not said.endswith(f"{self._OVER}\n"):
            line = self._bash.stdout.readline()
            assert line, f"{command}: over {PATIENCE} seconds, and so far: {said}"
            said += line
        return said.removesuffix(f"{self._OVER}\n")


def pattern(shown: str) -> re.Pattern[str]:
    """What is shown, as a pattern: `…` stands for the rest of a word or line, a line of its own for any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


def test_the_consoles_say_what_the_readme_says(tmp_path: Path) -> None:
    """All of them, one after the other, in one directory, with the file of options in between; on a free port.

    What only looks is tried again until it says so: a person would, and the node needs a moment to notice new files.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    typed = 0
    with Shell(tmp_path) as shell:
        for kind, text in _BLOCK.findall(README):
            block = text.replace("15001", port)
            if kind == "toml":
                (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE) * (
                kind == "console"
            ):
                typed += 1
                wanted = pattern(expected)
                said = shell.type(command)
                end = time.monotonic() + NOTICED
                while command.startswith(LOOKING) and not wanted.fullmatch(said) and time.monotonic() < end:
                    said = shell.type(command)
                assert wanted.fullmatch(said), f"$ {command}\n{said}"
        log = (tmp_path / "beta.log").read_text(encoding="utf-8")
    assert typed > 10
    assert "Traceback" not in log


# Its programs -------------------------------------------------------------------------------------------------------


def test_every_python_block_is_a_program_with_its_output() -> None:
    """No fragment that nobody runs."""
    assert len(PROGRAMS) == sum(kind == "python" for kind, _ in _BLOCK.findall(README)) == 6


@pytest.mark.parametrize(("program", "output"), SCRIPTS, ids=[f"program{n}" for n in range(1, len(SCRIPTS) + 1)])
def test_a_program_prints_what_the_readme_says(program: str, output: str, tmp_path: Path) -> None:
    """Each program runs by itself, among the files that the consoles have made, and warns of nothing."""
    ca = CertificateAuthority.create()
    ca.save(tmp_path / "pki")
    for name in ("alpha@localhost", "beta@localhost"):
        write_key_pair(ca.issue(name), tmp_path / "pki" / f"{name}.pem", tmp_path / "pki" / f"{name}-key.pem")
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_the_suite_passes_as_the_readme_says(tmp_path: Path) -> None:
    """By itself, with pytest-trio and our plugin, and warns of nothing."""
    [(suite, output)] = SUITES
    (tmp_path / "test_greeter.py").write_text(suite, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "trionode.pytest_plugin"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (re.sub(r" in [\d.]+s$", "", done.stdout, flags=re.MULTILINE), done.stderr) == (output, "")


@pytest.mark.parametrize("program", [program for program, _ in PROGRAMS])
def test_a_program_is_not_wider_than_a_page(program: str) -> None:
    """120 columns, as everywhere here."""
    assert max(map(len, program.splitlines())) <= 120


# Its tables ---------------------------------------------------------------------------------------------------------


async def test_the_client_auth_table_is_what_happens() -> None:
    """Every cell: who gets in, verified or not, and what the others are told."""
    table = {code(mode)[0]: cells for mode, *cells in rows(section("Client authentication"))}
    assert set(table) == {mode.name for mode in ClientAuth}
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(clock=lambda: now - timedelta(days=9))
    expired = ca.issue("localhost", not_before=now - timedelta(days=5), not_after=now - timedelta(days=3))
    with trio.fail_after(PATIENCE):
        for mode in ClientAuth:
            outcomes = [
                await outcome(ca, mode, None),
                await outcome(ca, mode, CertificateAuthority.create().issue("localhost"), now),
                await outcome(ca, mode, expired, now - timedelta(days=4)),
                await outcome(ca, mode, ca.issue("localhost"), now),
            ]
            assert outcomes == [cell.replace("`", "") for cell in table[mode.name]], mode


async def outcome(
    ca: CertificateAuthority, mode: ClientAuth, client: KeyPair | None, now: datetime | None = None
) -> str:
    """In the table's words: what becomes of a client, whose own clock says `now`."""
    server = CertAuthManager(ca.issue("localhost"), client_cas=ca.pool, client_auth=mode)
    verified: list[bool] = []

    async def welcome(stream: TLSStream) -> None:
        verified.append(stream.verified)
        await stream.send_all(b"welcome")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve_tls, welcome, 0, cert_manager=server, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        if client is None:
            told = await trio.to_thread.run_sync(knock, ca.pool, port)
        else:
            told = await dial(CertAuthManager(client, root_cas=ca.pool, clock=lambda: now or datetime.now(UTC)), port)
        nursery.cancel_scope.cancel()
    if told:
        assert not verified
        return f"refused: {told}"
    return "verified" if verified == [True] else "accepted"


async def dial(manager: CertAuthManager, port: int) -> str:
    """Connect with our certificate; the rejection's code, or nothing."""
    async with await open_tls_stream("127.0.0.1", port, cert_manager=manager, server_name="localhost") as stream:
        try:
            greeting = await stream.receive_some(100)
        except trio.BrokenResourceError as exc:
            return exc.__cause__.code if isinstance(exc.__cause__, trionode.PeerRejectedError) else repr(exc)
    return "" if greeting == b"welcome" else repr(greeting)


def knock(cas: CAPool, port: int) -> str:
    """Connect without any certificate, which a trionode client cannot; the alert, or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b"".join(ca.public_bytes(Encoding.DER) for ca in cas))
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as transport:
        try:
            with context.wrap_socket(transport, server_hostname="localhost") as tls:
                assert tls.recv(100) == b"welcome"
        except ssl.SSLError as exc:
            return str(exc.reason).lower().rpartition("alert_")[2]
    return ""


def test_every_error_is_in_the_table() -> None:
    """The table of errors has each public exception class, and no other."""
    table = list(rows(section("Errors")))
    listed = {name for first, *_ in table for name in code(first) if hasattr(trionode, name)} | {"TrionodeError"}
    public = {name for name, value in vars(trionode).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert listed == public


def test_the_parents_in_the_error_table_are_right() -> None:
    """`X (a Y)` means that X is a Y."""
    for first, *_ in rows(section("Errors")):
        name, *parents = code(first)
        for parent in parents:
            base = getattr(trionode, parent, None) or getattr(__import__("builtins"), parent)
            assert issubclass(getattr(trionode, name), base), first


def test_the_reasons_in_the_error_table_exist() -> None:
    """Each word after `reason` or `code` is one that the error can have."""
    words = {
        "CertificateError": trionode.CertificateReason,
        "PeerUnverifiedError": trionode.UnverifiedReason,
        "PeerRejectedError": trionode.RejectionCode,
        "RemoteError": trionode.RemoteCode,
    }
    seen = 0
    for first, _, look in rows(section("Errors")):
        kind = words.get(code(first)[0])
        if kind is not None:
            for word in code(look.split(":")[1].split(";")[0]):
                kind(word)
                seen += 1
    assert seen > 12


def test_the_names_for_those_who_come_from_ergo_exist() -> None:
    """Everything in the column of our names is there: classes, methods, options, enum members."""
    names = [name for _, ours, _ in rows(section("Coming from Ergo")) for name in code(ours)]
    assert len(names) > 25
    for name in names:
        owner, _, attribute = name.partition(".")
        found = getattr(trionode, owner)
        if attribute:
            assert hasattr(found, attribute) or attribute in inspect.get_annotations(found), name


def test_the_table_of_commands_has_each_and_no_other() -> None:
    """Those of `pki` one by one."""
    listed = {name for first, _ in rows(section("Command line").split("| exit status")[0]) for name in code(first)}
    assert listed == (set(cli.commands) - {"pki"}) | {f"pki {name}" for name in pki.commands}


def test_the_table_of_exit_statuses_is_what_the_command_line_says() -> None:
    """Each, in the same words."""
    table = "| exit status" + section("Command line").split("| exit status")[1].split("\n\n")[0]
    assert {int(number): meaning for number, meaning in rows(table)} == {int(each): MEANINGS[each] for each in MEANINGS}


def test_the_file_of_options_is_one(tmp_path: Path) -> None:
    """Each table of it and each key is known."""
    [text] = [text for kind, text in _BLOCK.findall(README) if kind == "toml"]
    (tmp_path / "beta.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "beta.toml")
    assert (config.name, config.acceptors[0].port, config.live_connections.on_rotation) == (
        "beta@localhost",
        15001,
        "hand_over",
    )


def test_the_comparison_is_even() -> None:
    """Each row says something of each."""
    table = [line for line in section("Compared with what people use today").splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in table}) == 1
    assert all(cell for row in rows("\n".join(table)) for cell in row)


# Its map and its links ----------------------------------------------------------------------------------------------


def test_the_map_has_every_module_and_no_other() -> None:
    """A newcomer finds every room (what is inside a package may be left to it), and every room on the map is there."""
    listed = {
        name.removeprefix("trionode.") for name in code("".join(a + b for a, b in rows(section("Map of the house"))))
    }
    modules = {
        "/".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("/__init__")
        for path in PACKAGE.rglob("*.py")
    } - {"__init__"}
    assert listed <= modules
    assert {module for module in modules if "/" not in module} - {name.split("/")[0] for name in listed} <= listed


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.skipif(not (ROOT / "trionode").is_dir(), reason="links into the checkout")
def test_links_within_the_repository_lead_somewhere() -> None:
    """Relative links are files, and anchors are headings of this page."""
    prose = _BLOCK.sub("", README)
    anchors = {f"#{slug(heading)}" for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(targets) > 15
    for target in targets:
        if target.startswith("#"):
            assert target in anchors
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target
