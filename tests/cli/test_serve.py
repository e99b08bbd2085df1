"""`trionode serve`, `call`, `ping`, `status`: real processes, signals, pipes; and what is wrong with what is given."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from command_line import PATIENCE, Served, environment, handing_over, make_pki, program, run_here, serve, write
from trionode import (
    AcceptorDown,
    CertificateExpiring,
    ConnectionDown,
    ConnectionUp,
    EndReason,
    GenerationPublished,
    HandedOver,
    ListenError,
    LocalRegistry,
    NodeName,
    Side,
    SourceTrouble,
    StrandedPeers,
    serve_status,
)
from trionode._status import unix_socket as status_module
from trionode._status.document import (
    ConnectionStatus,
    HandshakeStatus,
    ManagerStatus,
    NodeStatus,
    ServerStatus,
    ValidityStatus,
    node_status,
)
from trionode._status.unix_socket import StatusError, read_status, status_directory, status_sockets
from trionode.cli import status as status_command
from trionode.cli.serve import event_values
from trionode.cli.shown import console
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from conftest import NodeFactory, PairFactory, Said

    from trionode.cli.assembly import Plan

    Command = Callable[..., Said]

    Registered: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]

ALPHA, BETA = "alpha@localhost", "beta@localhost"
HOST = "127.0.0.1"

SERVICES = """
import trio
async def upper(channel):
    async for message in channel:
        await channel.send(message.upper())
async def fail(channel):
    raise ValueError("no")
async def one(channel):
    await channel.send(b"first")
async def forever(channel):
    await trio.sleep_forever()
async def refuse(channel):
    from trionode import RemoteError
    details = {"order": 17, "blob": b"\\xff", "esc": "\\x1b[31m", "inf": float("inf"), "of": [None, "a"]}
    raise RemoteError("no such order", code="not_found", details=details, metadata={"trace": "t"})
async def metadata(channel):
    await channel.send(repr(dict(channel.metadata)).encode())
async def zeros(channel):
    while True:
        await channel.send(bytes(1000))
async def whole(channel):
    await channel.send(b"%d bytes" % len(await channel.receive()))
number = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with beta's TOML file, and with certificates."""
    folder = tmp_path_factory.mktemp("beta")
    make_pki(folder, ALPHA, BETA)
    write(folder, CertificateAuthority.create().issue(ALPHA), "stranger@localhost")
    (folder / "things.py").write_text(SERVICES)
    (folder / "empty").write_text("")
    names = ("upper", "fail", "one", "forever", "zeros", "whole", "refuse", "metadata")
    table = "".join(f'{name} = "things:{name}"\n' for name in names)
    (folder / "beta.toml").write_text(
        f'name = "{BETA}"\npki = "pki"\nhealth = true\nmetrics = "{HOST}:0"\n'
        f'[[acceptors]]\nhost = "{HOST}"\nport = 0\n[services]\necho = "echo"\n{table}'
        '[network]\nheartbeat_interval = 20\n[live_connections]\non_rotation = "hand_over"\nwithin = 1\n'
        '[routes."gamma@*"]\nport = 7\n'
    )
    return folder


@pytest.fixture(scope="module")
def beta(place: Path) -> Iterator[tuple[Path, Served]]:
    """A node beta that serves."""
    with serve(place, "--config", "beta.toml") as served:
        served.first["pages"] = served.wait("Metrics")["addresses"][0]
        yield place, served


# call ---------------------------------------------------------------------------------------------------------------


def calling(beta: tuple[Path, Served], *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Call beta as alpha, in this process."""
    folder, served = beta
    return run_here(folder, "call", "--as", ALPHA, f"{BETA}:{served.port}", *arguments, **how)


def program_that_calls(beta: tuple[Path, Served], *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """The same, in a process of its own."""
    folder, served = beta
    return program(folder, "call", "--as", ALPHA, f"{BETA}:{served.port}", *arguments, **how)


def test_one_message_there_and_one_back(beta: tuple[Path, Served]) -> None:
    """On a line of its own."""
    done = program_that_calls(beta, "upper", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"HELLO\n", b"")


def test_lines_both_ways(beta: tuple[Path, Served]) -> None:
    """Each line is a message, and each message a line, the last one without its end, too."""
    done = calling(beta, "upper", stdin=b"a\nbc\n\nd")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"A\nBC\n\nD\n", b"")


def test_bytes_as_they_are(beta: tuple[Path, Served]) -> None:
    """In pieces, or as one message, of any length."""
    data = os.urandom(300_000)
    raw = calling(beta, "echo", "--raw", stdin=data)
    assert (raw.returncode, raw.stdout) == (0, data)
    whole = calling(beta, "whole", "--whole", stdin=data)
    assert (whole.returncode, whole.stdout) == (0, b"300000 bytes")


def test_a_service_that_ends_first(beta: tuple[Path, Served]) -> None:
    """Though stdin goes on: the call has ended, too."""
    folder, served = beta
    read, written = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trionode", "call", "--as", ALPHA, f"{BETA}:{served.port}", "one"],
            cwd=folder,
            env=environment(folder),
            stdin=read,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(read)
        os.close(written)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"first\n", b"")


def test_whoever_reads_has_enough(beta: tuple[Path, Served]) -> None:
    """`| head`: no traceback, and the service is ended."""
    folder, served = beta
    command = [sys.executable, "-m", "trionode", "call", "--as", ALPHA, f"{BETA}:{served.port}", "zeros", "--raw"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
    ) as caller:
        assert caller.stdout is not None
        assert caller.stderr is not None
        assert caller.stdout.read(5000) == bytes(5000)
        caller.stdout.close()
        assert caller.stderr.read() == b""
        assert caller.wait(PATIENCE) == 141


def test_a_full_disk(beta: tuple[Path, Served]) -> None:
    """One line."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 -- a descriptor is wanted
        done = program_that_calls(beta, "upper", "hello", stdout=full.fileno())
    assert done.returncode == 3
    assert done.stderr == b"trionode: cannot write to stdout: No space left on device; free some space\n"


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("nothing", "x"), "unknown_service: the peer has no such service", 6),
        (("fail", "x"), "failed: the service raised an exception; its traceback is in the peer's log", 6),
        (("fail",), "failed: the service raised an exception", 6),
        (("forever", "x", "--timeout", "0.5"), "did not finish within 0.5 s", 4),
        (("one",), "", 0),
    ],
)
def test_what_a_service_does_not_do(
    arguments: tuple[str, ...], words: str, status: int, beta: tuple[Path, Served]
) -> None:
    """One line, with its status."""
    done = calling(beta, *arguments)
    assert done.returncode == status
    assert words.encode() in done.stderr
    assert done.stderr.count(b"\n") == bool(words)


# ping ---------------------------------------------------------------------------------------------------------------


def test_round_trips(beta: tuple[Path, Served]) -> None:
    """Each, and statistics; as JSON, too."""
    folder, served = beta
    arguments = ("ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "3", "-i", "0.01")
    done = program(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"connected to {BETA} at localhost port {served.port}"
    assert [line.partition(", ")[0] for line in lines[1:4]] == [f"{BETA}: {number}" for number in (1, 2, 3)]
    assert "3 of 3" in lines[4]
    found = json.loads(run_here(folder, *arguments, "--json").stdout)
    assert (found["sent"], found["answered"]) == (3, 3)
    assert 0 < found["min_ms"] <= found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]


def test_ctrl_c_shows_what_there_is(beta: tuple[Path, Served]) -> None:
    """Statistics so far, status 130."""
    folder, served = beta
    with subprocess.Popen(
        [sys.executable, "-m", "trionode", "ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "0", "-i", "30"],
        cwd=folder,
        env=environment(folder, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as pinging:
        assert pinging.stdout is not None
        for line in pinging.stdout:
            if line.startswith(f"{BETA}: 1,"):
                break
        pinging.send_signal(signal.SIGINT)
        out, err = pinging.communicate(timeout=PATIENCE)
    assert (pinging.returncode, err) == (130, "")
    assert "1 of 1" in out


def test_a_node_that_stops_answering(tmp_path: Path) -> None:
    """Is lost: status 4."""
    make_pki(tmp_path, ALPHA, BETA)
    with serve(tmp_path, BETA, "--listen", f"{HOST}:0") as served:
        arguments = ("ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "0", "-i", "0.05", "--timeout", "1")
        with subprocess.Popen(
            [sys.executable, "-m", "trionode", *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            text=True,
        ) as pinging:
            assert pinging.stdout is not None
            for line in pinging.stdout:
                if line.startswith(f"{BETA}: 1,"):
                    break
            served.process.send_signal(signal.SIGSTOP)
            out, _ = pinging.communicate(timeout=PATIENCE)
        served.process.send_signal(signal.SIGCONT)
    assert pinging.returncode == 4
    assert "no answer within 1 s; the connection is gone" in out


# Who cannot be reached, or says no ----------------------------------------------------------------------------------


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, trionode_command: Command) -> Command:
    """The command line in this process, in beta's directory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "run"))
    return trionode_command


def test_health_of_a_node(here: Command, beta: tuple[Path, Served]) -> None:
    """Its own, a service's, and that of one which nothing was said of: the exit status says whether it is well."""
    ping = ("ping", "--as", ALPHA, f"{BETA}:{beta[1].port}", "--health")
    assert (done := here(*ping)).status == 0
    assert done.out == f"{BETA}: serving\n"
    assert here(*ping, "upper", "--json").document == {"node": BETA, "service": "upper", "status": "serving"}
    assert (done := here(*ping, "nothing")).status == 1
    assert done.out == f"nothing of {BETA}: service_unknown\n"


def test_metadata_of_a_call(here: Command, beta: tuple[Path, Served]) -> None:
    """As often as it is given, by each way to call; what is no text is bytes, and what is none an error."""
    target = (f"{BETA}:{beta[1].port}", "metadata")
    said = ("--metadata", "tenant=a", "--metadata", "query=x=y", "--metadata", "blob=\udcff", "--metadata", "none=")
    wanted = "{'tenant': 'a', 'query': 'x=y', 'blob': b'\\xff', 'none': ''}\n"
    done = calling(beta, "metadata", *said)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, wanted, b"")
    for wrong, words in (("tenant", "KEY=VALUE is wanted, and one has no ="), ("=a", "1 to 255 characters, not 0")):
        here("call", "--as", ALPHA, "--metadata", wrong, *target, "").is_one_line(words, status=2)
    large = ("--metadata", f"k={'x' * 9000}")
    here("call", "--as", ALPHA, *large, *target, "").is_one_line("raise max_metadata_size at the peer", status=2)


def test_what_a_service_says_of_its_error(here: Command, beta: tuple[Path, Served]) -> None:
    """Code, details and metadata, below the line and in JSON; nothing of it reaches the terminal unescaped."""
    command = ("call", "--as", ALPHA, f"{BETA}:{beta[1].port}", "refuse", "x")
    done = here(*command)
    assert done.status == 6
    line, details, metadata = done.err.splitlines()
    assert line == "trionode: not_found: the service gave this reason (no such order)"
    assert details == ('  details: {"order": 17, "blob": "/w==", "esc": "\\u001b[31m", "inf": null, "of": [null, "a"]}')
    assert metadata == '  metadata: {"trace": "t"}'
    error = json.loads(here(*command, "--json").out)["error"]
    assert error == {
        "message": "not_found: the service gave this reason (no such order)",
        "status": 6,
        "code": "not_found",
        "details": {"order": 17, "blob": "/w==", "esc": "\x1b[31m", "inf": None, "of": [None, "a"]},
        "metadata": {"trace": "t"},
    }


def test_a_node_that_does_not_say_how_it_is(
    here: Command, beta: tuple[Path, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beta seems, if it is asked under another name."""
    monkeypatch.setattr("trionode.health.HEALTH", "trionode.absent")
    ping = ("ping", "--as", ALPHA, f"{BETA}:{beta[1].port}", "--health")
    here(*ping).is_one_line(BETA, "needs --health in its trionode serve", status=6)


def test_the_pages_are_there(beta: tuple[Path, Served]) -> None:
    """Where it says."""
    host, port = beta[1].first["pages"]
    for path in ("metrics", "ready", "live"):
        with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=PATIENCE) as response:
            assert response.status == 200


def test_what_is_for_nodes_and_their_pages(here: Command) -> None:
    """One line each."""
    here("serve", "localhost", "--asgi", "json:loads", "--health").is_one_line("--health", "for a node alone", status=2)
    here("serve", BETA, "--metrics", "nowhere").is_one_line("--metrics", status=2)


def test_nobody_there(here: Command) -> None:
    """One line with the remedy, status 4."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    for command in (("call", "--as", ALPHA, f"{BETA}:{port}", "echo", "x"), ("ping", "--as", ALPHA, f"{BETA}:{port}")):
        here(*command).is_one_line(f"cannot connect to localhost port {port}", "Is the node running", status=4)
    here("ping", "--as", ALPHA, f"{BETA}:{port}", "--address", "nobody.invalid:1").is_one_line(
        "cannot look up nobody.invalid", status=4
    )


def test_who_is_refused(here: Command, beta: tuple[Path, Served]) -> None:
    """By either side, with status 5."""
    port = beta[1].port
    here("ping", "--as", ALPHA, f"gamma@localhost:{port}").is_one_line("gamma@localhost", status=5)
    stranger = ("--cert", "pki/stranger@localhost.pem", "--key", "pki/stranger@localhost-key.pem")
    here("ping", *stranger, "--ca", "pki/ca.pem", f"{BETA}:{port}").is_one_line("unknown ca", status=5)
    here("ping", *stranger, f"{BETA}:{port}").is_one_line("the system's CAs", status=5)
    mine = ("--as", ALPHA, f"{BETA}:{port}", "--server-name", "other.example")
    here("ping", *mine).is_one_line("wanted the name 'other.example'", status=5)


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("call",), "Missing argument", 2),
        (("call", "beta", "echo", "--as", ALPHA), "a node's name is name@host, not 'beta'", 2),
        (("call", BETA, "echo"), "no certificate was given: use --cert and --key", 2),
        (("call", BETA, "echo", "x", "--whole", "--as", ALPHA), "exclude each other", 2),
        (("call", BETA, "echo", "--as", "nobody@localhost"), "trionode pki issue nobody@localhost", 3),
        (("ping", f"{BETA}:0", "--as", ALPHA), "port must be an integer from 1", 2),
        (("ping", BETA, "--as", ALPHA, "--server-name", "a..b"), "neither a DNS name nor an IP address", 2),
        (("ping", ALPHA, "--as", ALPHA), "is this node's own name", 2),
        (("ping", BETA, "--cert", "pki/ca.pem", "--key", "pki/ca.key"), "our node name is not known", 2),
        (("ping", BETA, "--cert", "none.pem"), "cannot read none.pem", 3),
        (("ping", BETA, "--as", ALPHA, "--cookie-file", "none"), "cannot read none", 3),
        (("ping", BETA, "--as", ALPHA, "-c", "some"), "'some' is not a valid integer", 2),
    ],
)
def test_wrong_input_to_callers(arguments: tuple[str, ...], words: str, status: int, here: Command) -> None:
    """One line each."""
    here(*arguments).is_one_line(words, status=status)


# serve --------------------------------------------------------------------------------------------------------------


def test_a_file_of_options(beta: tuple[Path, Served]) -> None:
    """What it says first: name, process, addresses."""
    _, served = beta
    assert served.first["node"] == BETA
    assert served.first["process"] == served.process.pid
    assert served.first["addresses"] == [[HOST, served.port]]


def test_sighup_reads_the_files_at_once(tmp_path: Path) -> None:
    """A new certificate is in use; one that is damaged is not, is logged, and nothing else changes."""
    make_pki(tmp_path, ALPHA, BETA)
    ca = CertificateAuthority.load(tmp_path / "pki")
    # Polling would notice, too, but not within this test.
    (tmp_path / "beta.toml").write_text("[credentials]\npoll_interval = 1000\n")
    with serve(tmp_path, BETA, "--listen", f"{HOST}:0", "--config", "beta.toml") as served:
        renewed = write(tmp_path, ca.issue(BETA), BETA)
        served.process.send_signal(signal.SIGHUP)
        assert served.wait("GenerationPublished")["fingerprint"] == renewed.fingerprint
        certificate = tmp_path / "pki" / f"{BETA}.pem"
        certificate.write_bytes(certificate.read_bytes()[:300])
        served.process.send_signal(signal.SIGHUP)
        assert "damaged or cut off" in served.wait("SourceTrouble")["error"]["text"]
        asked = run_here(tmp_path, "explain", "--json", "--as", ALPHA, f"{BETA}:{served.port}")
        assert json.loads(asked.stdout)["their_chain"][0]["sha256"] == renewed.fingerprint
        status, log = served.end()
    assert status == 0
    assert "Traceback" not in log
    assert "damaged or cut off" in log


def test_connections_are_events(beta: tuple[Path, Served]) -> None:
    """One JSON object a line: who came, who was refused and why, who went."""
    folder, served = beta
    assert run_here(folder, "ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "1").returncode == 0
    stranger = ("--cert", "pki/stranger@localhost.pem", "--key", "pki/stranger@localhost-key.pem", "--ca", "pki/ca.pem")
    assert run_here(folder, "ping", *stranger, f"{BETA}:{served.port}").returncode == 5
    refused = served.wait("HandshakeRefused")
    while refused["error"]["reason"] != "unknown_ca":  # there were others before
        refused = served.wait("HandshakeRefused")
    assert refused["side"] == "accept"
    assert run_here(folder, "ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "1").returncode == 0
    up = served.wait("ConnectionUp")
    assert (up["peer"]["name"], up["peer"]["verified"], up["node"]) == (ALPHA, True, BETA)
    assert served.wait("ConnectionDown")["reason"] == "closed_by_peer"


@pytest.mark.parametrize(("how", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_gracefully(how: signal.Signals, expected: int, tmp_path: Path) -> None:
    """At either signal; the socket of its status is gone then; and it says in words where it listens."""
    make_pki(tmp_path, BETA)
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "trionode",
        "serve",
        BETA,
        "--listen",
        f"{HOST}:0",
        "--service=echo",
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        sockets = tmp_path / "run" / "trionode" / "status"
        assert len(list(sockets.iterdir())) == 1
        process.send_signal(how)
        _, log = process.communicate(timeout=PATIENCE)
    assert line.startswith(f"{BETA} listens on {HOST} port ")
    assert f"services: echo; process {process.pid}" in line
    assert process.returncode == expected
    assert "Traceback" not in log
    assert list(sockets.iterdir()) == []


def test_it_ends_gracefully_though_nothing_reads_what_it_writes(tmp_path: Path) -> None:
    """A consumer of its events that has stopped: the node goes on, and a signal ends it as ever."""
    make_pki(tmp_path, BETA)
    with serve(tmp_path, BETA, "--listen", f"{HOST}:0") as served:
        assert served.process.stdout is not None
        fcntl.fcntl(served.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(60):  # an event each, of 200 bytes at least
            with socket.create_connection((HOST, served.port)) as stranger:
                stranger.sendall(b"this is no TLS")
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(100):
                    pass
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0


HANGS = """
import trio
async def serve(channel):
    await channel.send(b"here")
    await trio.sleep_forever()
"""


def test_told_twice_it_waits_for_nothing(tmp_path: Path) -> None:
    """The second Ctrl-C cancels what the first would have waited for, for an hour."""
    make_pki(tmp_path, ALPHA, BETA)
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "beta.toml").write_text('shutdown_grace = 3600\n[services]\nhangs = "hangs:serve"\n')
    with serve(tmp_path, BETA, "--config", "beta.toml", "--listen", f"{HOST}:0", "--no-status") as served:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "trionode", "call", "--as", ALPHA, f"{BETA}:{served.port}", "hangs"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdin=pipe, stdout=pipe) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"here\n"
            served.process.send_signal(signal.SIGINT)
            with suppress(
                ConnectionRefusedError, ConnectionResetError
            ):  # before the first was seen it would be the first
                while True:
                    socket.create_connection((HOST, served.port), PATIENCE).close()
            status, log = served.end(signal.SIGINT)
            caller.communicate(timeout=PATIENCE)
    assert status == 130
    assert caller.returncode in (4, 6)  # as far as the word that the service was cancelled still got through
    assert "second signal: open channels, services and requests are cancelled" in log
    assert "Traceback" not in log


GOOD = f'name = "{BETA}"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ]", "beta.toml is not valid TOML: Invalid value (at line 1, column 8)"),
        ("name = 1", "beta.toml: name has to be text, not 1"),
        (GOOD + "status = 'on'", "beta.toml: status has to be true or false, not 'on'"),
        (GOOD + "shutdown_grace = 'long'", "shutdown_grace has to be a number, not 'long'"),
        (GOOD + "credentials = 1", "credentials has to be a table, headed [credentials], not 1"),
        (GOOD + "[credentials]\nca = 'ca.pem'", "credentials.ca has to be a list, not 'ca.pem'"),
        (GOOD + "[acceptors]\nport = 1", "acceptors has to be tables, each headed [[acceptors]], not {'port': 1}"),
        ("nam = 'x'", "unknown key 'nam' at the top; did you mean 'name'?"),
        ("zzz = 1", "unknown key 'zzz' at the top; known there: acceptors, asgi, credentials"),
        (GOOD + "[network]\nhandshake_timout = 1", "unknown key 'handshake_timout' in [network]; did you mean"),
        (GOOD + "[[acceptors]]\nports = 1", "unknown key 'ports' in [acceptors[0]]; did you mean 'port'?"),
        (GOOD + "[[acceptors]]\nport = 'x'", "acceptors[0].port has to be a whole number, not 'x'"),
        (GOOD + "[[acceptors]]\nport = 99999", "beta.toml: [[acceptors]]: port must be an integer from 0 to 65535"),
        (GOOD + "[routes.'gamma@*']\nhots = 'x'", "unknown key 'hots' in [routes.\"gamma@*\"]; did you mean 'host'?"),
        (GOOD + "[routes]\n'gamma@*' = 1", 'routes."gamma@*" has to be a table, headed [routes."gamma@*"], not 1'),
        (
            GOOD + "[live_connections]\non_rotation = 'move'",
            "on_rotation has to be one of 'keep', 'close', 'hand_over', not 'move'",
        ),
        (
            GOOD + "[credentials]\nclient_auth = 'no'\npoll_interval = 0",
            "poll_interval must be a positive number of seconds, not 0",
        ),
        (GOOD + "[services]\nx = 'y'", "service 'x': 'y' is not MODULE:FUNCTION, nor the built-in 'echo'"),
        (GOOD + "[services]\nx = 'no_such_module:f'", "ModuleNotFoundError: No module named 'no_such_module'"),
        (GOOD + "[services]\nx = 'things:none'", "AttributeError: module 'things' has no attribute 'none'"),
        (GOOD + "[services]\nx = 'things:number'", "things:number is no async function; a service is `async def`"),
        (GOOD + "[services]\nx = 'things:plain'", "service 'x': things:plain is no async function"),
        (GOOD + "[services]\nx = 'quits:serve'", "service 'x': cannot import quits:serve: SystemExit: not today"),
        (GOOD + "[services]\n'' = 'echo'", "service '': a service name has 1 to 255 characters, not 0"),
        (GOOD + "[routes.'gamma@*']\nport = 0", "route 'gamma@*': port must be an integer from 1 to 65535, not 0"),
        (GOOD + "[live_connections]\nwithin = -1", "[live_connections]: within must be"),
        ("name = 'beta'", "beta.toml: name: a node name is name@host, not 'beta'"),
        ("log_level = 'info'", "which node? Give its name, name@host, or name = … in beta.toml"),
        (GOOD + "[network]\nmode = 'hidden'\n[[acceptors]]\nport = 0", "drop one of the two"),
        (GOOD + "[network]\nkeep_connected = ['x']", "[network]: keep_connected[0]: a node name is name@host, not 'x'"),
    ],
)
def test_a_bad_file_of_options(
    text: str, words: str, here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names the key, and the nearest that there is."""
    make_pki(tmp_path, BETA)
    (tmp_path / "beta.toml").write_text(text)
    (tmp_path / "things.py").write_text("number = 1\ndef plain(channel): pass\n")
    (tmp_path / "quits.py").write_text("raise SystemExit('not today')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "things", raising=False)
    here("serve", "--config", "beta.toml").is_one_line(words, status=2)
    sys.modules.pop("things", None)


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ((), "which node? Give its name", 2),
        (("beta",), "a node name is name@host", 2),
        (("gamma@localhost",), "there is no file pki/gamma@localhost.pem", 3),
        ((BETA, "--config", "none.toml"), "cannot read none.toml: No such file or directory", 3),
        ((BETA, "--listen", "localhost"), "has no port; write HOST:PORT", 2),
        ((BETA, "--listen", "elsewhere.invalid:0"), "elsewhere.invalid", 4),
        ((BETA, "--listen", "192.0.2.1:0"), "Give an address of this machine", 4),
        ((BETA, "--route", "gamma@localhost"), "is no route; write NODE=HOST:PORT", 2),
        ((BETA, "--route", "*@@=localhost:1", "--listen", f"{HOST}:0"), "*@@", 2),
        ((BETA, "--service", "x=y"), "is not MODULE:FUNCTION", 2),
        ((BETA, "--cert", f"pki/{BETA}.pem", "--key", f"pki/{BETA}-key.pem"), "give --ca or --client-ca", 2),
        ((BETA, "--cookie-file", "empty"), "empty is empty; its first line is used", 3),
    ],
)
def test_wrong_input_to_serve(arguments: tuple[str, ...], words: str, status: int, here: Command) -> None:
    """One line each, before anything runs."""
    here("serve", *arguments).is_one_line(words, status=status)


def test_a_port_in_use(here: Command) -> None:
    """Which one, and what to do; status 4."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        here("serve", BETA, "--listen", f"{HOST}:{port}", "--no-status").is_one_line(
            f"port {port}: Address already in use", "Choose another port", "(--listen HOST:PORT)", status=4
        )


def test_an_expired_certificate_is_not_served(here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with it, and no node."""
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(clock=lambda: now - timedelta(days=30))
    ca.save(tmp_path / "pki")
    write(tmp_path, ca.issue(BETA, not_after=now - timedelta(days=1)), BETA)
    monkeypatch.chdir(tmp_path)
    here("serve", BETA, "--listen", f"{HOST}:0").is_one_line("our certificate has expired", status=3)


def test_files_named_one_by_one_and_what_comes_before_what(tmp_path: Path) -> None:
    """In the file, relative to it; a cookie too. Options come before the file."""
    (tmp_path / "etc").mkdir()
    ca = CertificateAuthority.create()
    write_ca_pool(ca.pool, tmp_path / "etc" / "ca.crt")
    for name in (ALPHA, BETA):
        write_key_pair(
            ca.issue(name), tmp_path / "etc" / f"{name}.crt", tmp_path / "etc" / f"{name}.key", password="pw"
        )
    (tmp_path / "etc" / "password").write_text("pw\n")
    (tmp_path / "etc" / "cookie").write_text("0123456789abcdef\n")
    (tmp_path / "etc" / "node.toml").write_text(
        f'name = "gamma@localhost"\n[network]\ncookie_file = "cookie"\nmode = "enabled"\n[credentials]\n'
        f'cert = "{BETA}.crt"\nkey = "{BETA}.key"\nca = ["ca.crt"]\npassword_file = "password"\n'
    )
    with serve(tmp_path, BETA, "--config", "etc/node.toml", "--listen", f"{HOST}:0", "--no-status") as served:
        ours = ("--cert", f"etc/{ALPHA}.crt", "--key", f"etc/{ALPHA}.key", "--password-file", "etc/password")
        arguments = ("ping", *ours, "--ca", "etc/ca.crt", f"{BETA}:{served.port}", "-c", "1")
        assert run_here(tmp_path, *arguments, "--cookie-file", "etc/cookie").returncode == 0
        without = run_here(tmp_path, *arguments)
    assert without.returncode == 5
    assert b"cookie" in without.stderr
    assert not (tmp_path / "run" / "trionode").exists()


@pytest.mark.parametrize(
    ("text", "option", "expected"),
    [
        ("", None, StrandedPeers.REFUSE),
        ('stranded = "keep"', None, StrandedPeers.KEEP),
        ("", "close", StrandedPeers.CLOSE),
    ],
)
def test_peers_that_new_cas_do_not_accept(
    text: str,
    option: str | None,
    expected: StrandedPeers,
    tmp_path: Path,
    trionode_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are waited for, unless something else is said."""
    make_pki(tmp_path, BETA)
    (tmp_path / "beta.toml").write_text(f"[credentials]\n{text}\n")
    monkeypatch.chdir(tmp_path)
    plans: list[Plan] = []
    monkeypatch.setattr("trionode.cli.serve._serve", lambda plan, **_: plans.append(plan))
    monkeypatch.setattr("trionode.cli.serve.run", lambda function: function() or 0)
    chosen = () if option is None else ("--stranded", option)
    assert trionode_command("serve", BETA, "--config", "beta.toml", *chosen).status == 0
    assert [plan.stranded for plan in plans] == [expected]


def test_every_event_becomes_plain_values(ca: CertificateAuthority) -> None:
    """Whatever is in it."""
    node = NodeName.parse(BETA)
    certificate = ca.issue(BETA)
    events: list[Any] = [
        AcceptorDown(node=node, address=(HOST, 1)),
        CertificateExpiring(node=node, certificate=certificate.certificate, left=timedelta(minutes=2)),
        GenerationPublished(node=node, generation=2, fingerprint="ab"),
        SourceTrouble(node=node, error=None),
    ]
    values = [event_values(event) for event in events]
    assert json.loads(json.dumps(values)) == [
        {"node": BETA, "address": [HOST, 1]},
        {"node": BETA, "certificate": certificate.fingerprint, "left": 120},
        {"node": BETA, "generation": 2, "fingerprint": "ab"},
        {"node": BETA, "error": None},
    ]


async def test_events_of_connections_become_plain_values(open_pair: PairFactory) -> None:
    """A connection is its generations, an end its reason."""
    async with open_pair() as pair:
        connection = await pair.alpha.connect(pair.beta.name)
        up = ConnectionUp(node=pair.alpha.name, side=Side.DIAL, peer=connection.peer, connection=connection)
        down = ConnectionDown(
            node=pair.alpha.name,
            peer=connection.peer,
            connection=connection,
            reason=EndReason.CLOSED,
            error=OSError("x"),
        )
        moved = HandedOver(node=pair.alpha.name, connection=connection)
        found = json.loads(json.dumps([event_values(each) for each in (up, down, moved)]))
    assert found[0]["connection"] == {
        "id": connection.id,
        "generation": 1,
        "peer_generation": 1,
    }
    assert found[0]["peer"]["verified"] is True
    assert (found[1]["reason"], found[1]["error"]) == ("closed", {"type": "OSError", "reason": None, "text": "x"})
    assert list(found[2]) == ["node", "connection"]


# status -------------------------------------------------------------------------------------------------------------


def test_a_running_node_says_what_it_does(here: Command, beta: tuple[Path, Served]) -> None:
    """In words, as JSON, by name, by socket."""
    folder, served = beta
    path = next((folder / "run" / "trionode" / "status").iterdir())
    out = here("status").out
    for words in (
        BETA,
        f"process {served.process.pid}, open",
        f"{HOST} port {served.port}",
        "generation 1",
        "days left",
    ):
        assert words in out
    found = here("status", BETA, "--json").document
    assert [each["node"] for each in found] == [BETA]
    assert found[0]["process"] == served.process.pid
    assert set(found[0]["rates"]) == {"bytes_sent", "bytes_received", "channels_opened", "handshakes"}
    assert here("status", "--socket", path, "--json").document[0]["incarnation"] == found[0]["incarnation"]


def test_only_the_owner_can_look(beta: tuple[Path, Served]) -> None:
    """By the directory's and the socket's permissions; and another user is turned away by the kernel, in fact."""
    directory = beta[0] / "run" / "trionode" / "status"
    path = next(directory.iterdir())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if os.geteuid() == 0:
        process = os.fork()
        if not process:  # nothing is imported any more: another user may read none of it
            os.setresuid(65534, 65534, 65534)
            try:
                socket.socket(socket.AF_UNIX).connect(os.fspath(path))
            except PermissionError:
                os._exit(13)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 13


def test_watching_goes_on_until_ctrl_c(beta: tuple[Path, Served]) -> None:
    """A line of JSON each time, in a pipe; status 130."""
    folder, _ = beta
    with subprocess.Popen(
        [sys.executable, "-m", "trionode", "status", "--watch", "0.1", "--json"],
        cwd=folder,
        env=environment(folder, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=PATIENCE)
    assert [len(look) for look in looks] == [1, 1]
    assert watching.returncode == 130
    assert err.strip() == "trionode: interrupted; nothing is left running"


def test_nobody_to_ask(trionode_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory, an empty one, one that is not private, a name that nobody has, a socket that nobody serves."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    trionode_command("status").is_one_line("no node of this user serves its status", "trionode serve", status=1)
    directory = tmp_path / "trionode" / "status"
    directory.mkdir(parents=True, mode=0o700)
    (tmp_path / "trionode").chmod(0o700)
    trionode_command("status", BETA).is_one_line(f"no node {BETA} of this user", status=1)
    trionode_command("status", "--socket", tmp_path / "none").is_one_line("no node answers at", status=4)
    directory.chmod(0o755)
    trionode_command("status").is_one_line("is not private", "chmod 700", status=4)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own; the directory of the sockets. The path of one is 107 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder, "trionode", "status")


async def test_a_program_serves_its_status(node: NodeFactory, runtime: Path) -> None:
    """From when it is asked to until it is cancelled; the socket of a process that was killed is cleared away."""
    async with node(BETA) as beta:
        async with trio.open_nursery() as nursery:
            path = await nursery.start(serve_status, beta)
            assert path.parent == runtime
            found = await trio.to_thread.run_sync(read_status, path)
            assert isinstance(found, NodeStatus)
            assert found.node == BETA
            assert msgspec.structs.replace(found, at=None, clock=None) == msgspec.structs.replace(
                node_status(beta), at=None, clock=None
            )
            nursery.cancel_scope.cancel()
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(os.fspath(path))
        assert status_sockets() == [path]  # it may be a node's that is about to listen
        os.utime(path, (0, 0))
        assert status_sockets() == []
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(os.fspath(path))
        async with trio.open_nursery() as nursery:  # where it stands in the way, it is replaced
            assert await nursery.start(serve_status, beta) == path
            assert status_sockets() == [path]
            nursery.cancel_scope.cancel()


async def test_a_socket_that_does_not_listen_yet_is_left_alone(
    node: NodeFactory, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks between bind(2) and listen(2) is refused, as by one that was left behind."""
    listen = socket.socket.listen

    def look_and_listen(self: socket.socket, backlog: int) -> None:
        status_sockets()
        listen(self, backlog)

    async with node(BETA) as beta, trio.open_nursery() as nursery:
        monkeypatch.setattr(socket.socket, "listen", look_and_listen)
        path = await nursery.start(serve_status, beta)
        assert path.parent == runtime
        assert status_sockets() == [path]
        nursery.cancel_scope.cancel()


async def test_connections_and_the_generation_of_each(open_pair: PairFactory) -> None:
    """Both ends, with what each knows of the other."""
    async with open_pair() as pair:
        await pair.alpha.connect(pair.beta.name)
        ours, theirs = node_status(pair.alpha).connections[0], node_status(pair.beta).connections[0]
    assert (ours.peer, theirs.peer) == (str(pair.beta.name), str(pair.alpha.name))
    assert (ours.dialled, theirs.dialled) == (True, False)
    assert ours.verified
    assert (ours.generation, ours.peer_generation, ours.superseded) == (1, 1, False)
    assert ours.certificate_ends is not None


async def test_only_the_same_user_is_told(node: NodeFactory, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end believes another user's, whoever let it through."""
    async with node(BETA) as beta, trio.open_nursery() as nursery:
        path = await nursery.start(serve_status, beta)
        real = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
        with pytest.raises(StatusError, match="another user serves"):
            await trio.to_thread.run_sync(read_status, path)
        with socket.socket(socket.AF_UNIX) as end:
            end.settimeout(PATIENCE)
            end.connect(os.fspath(path))
            assert await trio.to_thread.run_sync(end.recv, 100) == b""
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["link", "open", "file", "foreign"])
async def test_a_directory_that_is_not_private_is_refused(
    kind: str, node: NodeFactory, runtime: Path, tmp_path: Path
) -> None:
    """A link, one that others may enter, something else, another user's."""
    parent = runtime.parent
    match kind:
        case "link":
            (tmp_path / "other").mkdir(mode=0o700)
            parent.symlink_to(tmp_path / "other")
        case "open":
            parent.mkdir()
            parent.chmod(0o755)
        case "file":
            parent.write_text("")
        case _:
            parent.mkdir(mode=0o700)
            if os.geteuid() != 0:
                pytest.skip("only root can make another user's directory")
            os.chown(parent, 65534, 65534)
    async with node(BETA) as beta:
        with pytest.RaisesGroup(ListenError) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_status, beta)
        assert "for the status of a node" in str(caught.value.exceptions[0])


async def test_a_path_of_ones_own(node: NodeFactory, runtime: Path, tmp_path: Path) -> None:
    """What stands there already stays; a path may be too long."""
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    async with node(BETA) as beta:
        for path, words in ((own / "file", "Is another one there"), (own / ("x" * 200), "path too long")):
            (own / "file").write_text("precious")
            with pytest.RaisesGroup(pytest.RaisesExc(ListenError, match=words)):
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve_status, beta, path)
        assert (own / "file").read_text() == "precious"
        async with trio.open_nursery() as nursery:
            assert await nursery.start(serve_status, beta, own / "s") == own / "s"
            with pytest.RaisesGroup(ListenError):
                async with trio.open_nursery() as second:
                    await second.start(serve_status, beta, own / "s")
            (own / "s").unlink()
            (own / "s").write_text("a successor's")
            nursery.cancel_scope.cancel()
        assert (own / "s").read_text() == "a successor's"


async def test_the_local_registry_leaves_the_sockets_alone(
    registered: Registered, node: NodeFactory, runtime: Path
) -> None:
    """It lives next door, and clears away what it takes for left behind there."""
    async with node(BETA) as beta, trio.open_nursery() as nursery:
        path = await nursery.start(serve_status, beta)
        os.utime(runtime, (0, 0))
        os.utime(path, (0, 0))
        async with registered(LocalRegistry(), NodeName.parse(ALPHA), [(HOST, 1)]):
            assert path.exists()
        nursery.cancel_scope.cancel()


def test_without_a_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp, by the user's number; what is relative does not count."""
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert str(status_directory()) == f"/tmp/trionode-{os.geteuid()}/status"  # noqa: S108


@pytest.mark.parametrize("answer", [b"", b"{}", b"[" * 5000, b"x" * 100, None])
def test_what_is_no_status(answer: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, something else, too much: one line, in bounded memory."""
    monkeypatch.setattr(status_module, "MAX_BYTES", 1000)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen(1)

        def say() -> None:
            with server.accept()[0] as end:
                try:
                    for _ in range(10_000 if answer is None else 1):
                        end.sendall(b"y" * 10_000 if answer is None else answer)
                except OSError:
                    assert answer is None

        thread = threading.Thread(target=say)
        thread.start()
        with pytest.raises(StatusError, match="no status of a node"):
            read_status(path)
        thread.join(PATIENCE)


@pytest.mark.parametrize("arguments", [(), (BETA,), ("--json",)])
def test_what_does_not_answer_is_told(
    arguments: tuple[str, ...], trionode_command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs still has its socket; it is not taken for one that is not there."""
    monkeypatch.setattr(status_module, "PATIENCE", 0.05)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    directory = status_directory()
    directory.parent.mkdir(mode=0o700)
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(directory / "hangs-1.sock"))
        server.listen(8)
        said = trionode_command("status", *arguments)
        assert said.status == 4
        assert "hangs-1.sock does not answer within 0.05 s: its process hangs" in said.err
        if arguments == ("--json",):
            assert json.loads(said.out)["error"]["status"] == 4


def test_what_does_not_answer_is_told_beside_the_others(
    trionode_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For people and for scripts; who asked for another one has an answer."""
    there = ServerStatus(
        server="web",
        process=1,
        incarnation=1,
        at=datetime.now(UTC),
        clock=1.0,
        open=True,
        listens_on=[],
        streams=0,
        managers=[ManagerStatus(label="own", generation=1, connections={}, superseded=0, refused={}, validities=[])],
        handshakes=[],
        pending_handshakes={},
    )
    answers: dict[Path, ServerStatus | StatusError] = {Path("a.sock"): there, Path("b.sock"): StatusError("b hangs")}

    def read(path: Path) -> ServerStatus:
        found = answers[path]
        if isinstance(found, StatusError):
            raise found
        return found

    monkeypatch.setattr(status_command, "status_sockets", lambda: list(answers))
    monkeypatch.setattr(status_command, "read_status", read)
    said = trionode_command("status")
    assert (said.status, said.err) == (4, "")
    assert "✗ b hangs" in said.out
    said = trionode_command("status", "--json")
    assert said.status == 4
    assert [each["kind"] for each in json.loads(said.out)] == ["server", "silent"]
    assert trionode_command("status", "web").status == 0


def test_what_an_operator_has_to_see_stands_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Old certificates, refused rotations and handshakes, unverified peers, what has expired."""
    now = datetime.now(UTC)
    plain = ConnectionStatus(
        peer=ALPHA,
        address=(HOST, 5),
        verified=True,
        dialled=True,
        generation=1,
        peer_generation=3,
        superseded=True,
        certificate_ends=now - timedelta(hours=5),
        channels=2,
        services=0,
        bytes_sent=5_000_000,
        bytes_received=10**16,
    )
    unverified = msgspec.structs.replace(plain, verified=False, address=None, certificate_ends=None, dialled=False)
    shown = NodeStatus(
        node=BETA,
        process=1,
        incarnation=1,
        at=now,
        clock=1.0,
        open=False,
        listens_on=[],
        connections=[plain, unverified, msgspec.structs.replace(plain, certificate_ends=now + timedelta(hours=5))],
        managers=[
            ManagerStatus(
                label="own",
                generation=2,
                connections={"1": 2},
                superseded=2,
                refused={"expired": 3},
                validities=[
                    ValidityStatus(role="client_ca", subject="CN=x", not_before=now, not_after=now - timedelta(days=3))
                ],
            )
        ],
        handshakes=[
            HandshakeStatus(side="accept", outcome="refused", reason="unknown_ca", count=4),
            HandshakeStatus(side="dial", outcome="rejected", reason="cookie", count=5),
            HandshakeStatus(side="dial", outcome="broken", reason="unreachable", count=6),
            HandshakeStatus(side="dial", outcome="established", reason="", count=7),
        ],
        pending_handshakes={"accept": 8, "dial": 0},
        ends={},
        channels=0,
        channels_opened=0,
        services=0,
        bytes_sent=100,
        bytes_received=2048,
    )
    out = console()
    out.width = 200
    status_command._show(out, shown, None)
    text = capsys.readouterr().out
    out.width = 80
    status_command._show(out, shown, None)
    narrow = capsys.readouterr().out
    assert "…" not in narrow
    assert narrow.split() == text.split()
    for words in (
        "draining",
        "nowhere",
        "7 made, 8 under way; refused by us: 4 unknown_ca; we were refused: 5 cookie; 6 failed otherwise",
        "2 of generation 1",
        "2 on older certificates than the current",
        "3 rotations refused: expired",
        "client ca CN=x: EXPIRED 3 days ago",
        "NOT verified",
        "its certificate: expired",
        "5 hours left",
        "100 B sent, 2 KiB received",
        "5 MiB",
        "9095 TiB",
    ):
        assert words in text, text
    assert status_command._rates(None, shown) is None
    later = msgspec.structs.replace(shown, clock=3.0, bytes_sent=300)
    assert status_command._rates(shown, later) == {
        "bytes_sent": 100,
        "bytes_received": 0,
        "channels_opened": 0,
        "handshakes": 0,
    }


# completion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str, trionode_command: Command) -> None:
    """Which asks this program."""
    said = trionode_command("completion", shell)
    assert (said.status, said.err) == (0, "")
    assert "_TRIONODE_COMPLETE" in said.out
    trionode_command("completion", "cmd").is_one_line("'cmd' is not one of", status=2)


def test_bash_completes(tmp_path: Path) -> None:
    """The script runs, and the program answers: commands, options, names of nodes."""
    make_pki(tmp_path, ALPHA, BETA)

    def complete(*words: str) -> dict[str, str]:
        return {"_TRIONODE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}

    def completed(*words: str) -> list[str]:
        done = run_here(tmp_path, variables=complete(*words))
        assert (done.returncode, done.stderr) == (0, b"")
        return [line.partition(",")[2] for line in done.stdout.decode().splitlines()]

    assert completed("trionode", "p") == ["ping", "pki"]
    assert completed("trionode", "ping", "--cou") == ["--count"]
    assert completed("trionode", "serve", "--as") == ["--asgi", "--asgi-listen"]
    assert completed("trionode", "call", "al") == [ALPHA]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from trionode.cli import main; sys.exit(main())"],
        cwd=tmp_path,
        env=environment(tmp_path, **complete("trionode", "call", "al")),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.splitlines() == [f"plain,{ALPHA}"]
    script = run_here(tmp_path, "completion", "bash").stdout
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, timeout=PATIENCE, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


# Sockets that a service manager hands over -------------------------------------------------------------------------


def test_sockets_that_are_handed_over(tmp_path: Path) -> None:
    """They take the place of ports; all of them, or by name."""
    make_pki(tmp_path, ALPHA, BETA)
    (tmp_path / "beta.toml").write_text(
        f'name = "{BETA}"\n[[acceptors]]\nsocket = "two"\n[[acceptors]]\nsocket = "one"\n'
        f'[[acceptors]]\nhost = "{HOST}"\nport = 0\nreuse_port = true\n[services]\necho = "echo"\n'
    )
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as two:
        places = [list(each.getsockname()) for each in (one, two)]
        with (
            serve(tmp_path, BETA, "--service", "echo", "--no-status", one=one.fileno(), two=two.fileno()) as served,
            serve(tmp_path, "-c", "beta.toml", "--no-status", one=one.fileno(), two=two.fileno()) as by_name,
        ):
            assert served.first["addresses"] == places
            assert by_name.first["addresses"][:2] == places[::-1]
            done = run_here(tmp_path, "call", "--as", ALPHA, f"{BETA}:{places[1][1]}", "echo", "hello")
            assert (done.returncode, done.stdout) == (0, b"hello\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((BETA, "--listen", f"{HOST}:0"), "has handed over sockets that nothing uses: one. Name them in the file"),
        (("-c", "two.toml"), "no socket of the name 'two' comes from a service manager (FileDescriptorName=)"),
        ((BETA,), "descriptor 3 (one) is not a socket that listens: it is a socket of another kind (SOCK_DGRAM"),
    ],
)
def test_sockets_that_do_not_fit(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """Are one line, and exit status 2."""
    make_pki(tmp_path, BETA)
    (tmp_path / "two.toml").write_text(f'name = "{BETA}"\n[[acceptors]]\nsocket = "two"\n')
    kind = socket.SOCK_DGRAM if "SOCK_DGRAM" in words else socket.SOCK_STREAM
    with socket.socket(type=kind) as sock:
        sock.bind((HOST, 0))
        if kind is socket.SOCK_STREAM:
            sock.listen()
        done = subprocess.run(
            [*handing_over({"one": sock.fileno()}), sys.executable, "-m", "trionode", "serve", *arguments],
            cwd=tmp_path,
            pass_fds=[sock.fileno()],
            env=environment(tmp_path),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, b"", 1)
    assert words in lines[0]
