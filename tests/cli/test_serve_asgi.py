"""`trionode serve --asgi`: ASGI applications, beside a node and without one, for clients of the standard library."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from command_line import PATIENCE, Served, environment, make_pki, run_here, serve, write
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Said

    Command = Callable[..., Said]

ALPHA, BETA, HOST = "alpha@localhost", "beta@localhost", "localhost"
ANYWHERE = "127.0.0.1:0"

APPLICATION = """
import json, sys
import trio
from trionode.http import caller_of

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            print(kind, file=sys.stderr)
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    caller = caller_of(scope)
    body = json.dumps({"verified": caller.verified, "names": caller.names, "generation": caller.generation}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    if scope["path"] == "/held":
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await trio.sleep_forever()
    await send({"type": "http.response.body", "body": body})

async def hangs(scope, receive, send):
    print("starting", flush=True)
    await trio.sleep_forever()

async def broken(scope, receive, send):
    await receive()
    raise LookupError("no database")

def wsgi(environ, start_response):
    return []

number = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with an application, and with credentials of two nodes and of a host."""
    make_pki(tmp_path, ALPHA, BETA, HOST)
    (tmp_path / "application.py").write_text(APPLICATION)
    return tmp_path


def connect(folder: Path, port: int) -> http.client.HTTPSConnection:
    """A connection of the standard library's client, with alpha's certificate."""
    pki = folder / "pki"
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.load_cert_chain(pki / f"{ALPHA}.pem", pki / f"{ALPHA}-key.pem")
    return http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)


def get(folder: Path, port: int) -> tuple[Any, str]:
    """What the application says, and the SHA-256 of the certificate that was presented."""
    with closing(connect(folder, port)) as connection:
        connection.request("GET", "/")
        certificate = connection.sock.getpeercert(binary_form=True)
        assert certificate is not None
        return json.load(connection.getresponse()), sha256(certificate).hexdigest()


def test_beside_a_node(folder: Path) -> None:
    """Both serve with one certificate; `status` shows both, the log has the requests, and both end in order."""
    (folder / "beta.toml").write_text(
        f'name = "{BETA}"\npki = "pki"\n[[acceptors]]\nhost = "127.0.0.1"\nport = 0\n[services]\necho = "echo"\n'
        f'[asgi]\napp = "application:app"\nlisten = ["{ANYWHERE}", "{ANYWHERE}"]\naccess_log = true\n'
    )
    with serve(folder, "--config", "beta.toml") as served:
        second = served.wait("Serving")
        assert (second["asgi"], second["process"]) == ("application:app", served.process.pid)
        for _, port in second["addresses"]:
            told, _ = get(folder, port)
            assert told == {"verified": True, "names": ["localhost"], "generation": 1}
        assert len(second["addresses"]) == 2
        assert run_here(folder, "ping", "--as", ALPHA, f"{BETA}:{served.port}", "-c", "1").returncode == 0
        found = json.loads(run_here(folder, "status", "--json").stdout)
        assert [each[each["kind"]] for each in found] == ["application:app", BETA]
        assert found[0]["listens_on"] == [f"127.0.0.1 port {port}" for _, port in second["addresses"]]
        assert found[0]["managers"][0]["source"]["error"] is None
        assert [(each["outcome"], each["count"]) for each in found[0]["handshakes"]] == [("established", 2)]
        status, log = served.end()
    assert status == 0
    assert "lifespan.startup\n" in log
    assert log.count('"GET / 1.1" 200') == 2
    assert "lifespan.shutdown\n" in log
    assert "Traceback" not in log
    assert list((folder / "run" / "trionode" / "status").iterdir()) == []


def test_without_a_node(folder: Path) -> None:
    """A host's files will do; they are followed, and read at once at SIGHUP; `explain` sees what it presents."""
    (folder / "web.toml").write_text("[credentials]\npoll_interval = 1000\n")
    ca = CertificateAuthority.load(folder / "pki")
    with serve(folder, HOST, "--config", "web.toml", "--asgi", "application:app", "--asgi-listen", ANYWHERE) as served:
        assert served.first["event"] == "Serving"
        _, old = get(folder, served.port)
        new = write(folder, ca.issue(HOST), HOST).fingerprint
        assert get(folder, served.port)[1] == old != new
        served.process.send_signal(signal.SIGHUP)
        while get(folder, served.port)[1] == old:  # bounded by the lifetime of the process
            pass
        assert get(folder, served.port) == ({"verified": True, "names": ["localhost"], "generation": 2}, new)
        asked = run_here(
            folder, "explain", f"localhost:{served.port}", "--as", ALPHA, "--expect-cert", f"pki/{HOST}.pem", "--json"
        )
        found = json.loads(asked.stdout)
        assert (asked.returncode, found["ok"], found["tls"]["alpn"]) == (0, True, "h2")
        assert found["their_chain"][0]["sha256"] == new
        status, log = served.end(signal.SIGINT)
    assert status == 130
    assert "lifespan.shutdown\n" in log
    assert "Traceback" not in log


def test_sockets_that_are_handed_over(folder: Path) -> None:
    """An application takes those that it names; alone it takes all, a UNIX socket among them."""
    (folder / "named.toml").write_text(
        f'name = "{BETA}"\n[[acceptors]]\nsocket = "node"\n[asgi]\napp = "application:app"\nsocket = "web"\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as node, socket.create_server(("127.0.0.1", 0)) as web:
        with serve(folder, "--config", "named.toml", node=node.fileno(), web=web.fileno()) as served:
            assert served.first["addresses"] == [list(node.getsockname())]
            assert served.wait("Serving")["addresses"] == [list(web.getsockname())]
            assert get(folder, web.getsockname()[1])[0]["verified"] is True
            assert served.end()[0] == 0
        with socket.socket(socket.AF_UNIX) as local:
            local.bind(str(folder / "s"))
            local.listen()
            descriptors = {"any": web.fileno(), "other": local.fileno()}
            with serve(folder, HOST, "--asgi", "application:app", **descriptors) as served:
                assert served.first["addresses"] == [list(web.getsockname()), str(folder / "s")]
                assert get(folder, web.getsockname()[1])[0]["verified"] is True
                assert served.end()[0] == 0


def test_told_twice_it_waits_for_nothing(folder: Path) -> None:
    """The second Ctrl-C cancels requests that the first would have waited for, for an hour."""
    (folder / "web.toml").write_text('name = "localhost"\n[asgi]\napp = "application:app"\ngrace = 3600\n')
    with serve(folder, "--config", "web.toml", "--asgi-listen", ANYWHERE, "--no-status") as served:
        with closing(connect(folder, served.port)) as connection:
            connection.request("GET", "/held")
            response = connection.getresponse()
            served.process.send_signal(signal.SIGINT)
            while not refuses(served):
                pass
            status, log = served.end(signal.SIGINT)
            with pytest.raises(http.client.IncompleteRead):
                response.read()
    assert status == 130
    assert "second signal: open channels, services and requests are cancelled" in log
    assert "Traceback" not in log


def test_told_while_it_starts(folder: Path) -> None:
    """An application that does not start is not waited for; nor is its node, which has started."""
    command = [sys.executable, "-W", "error", "-m", "trionode", "serve", BETA, "--listen", ANYWHERE]
    with subprocess.Popen(
        [*command, "--asgi", "application:hangs", "--asgi-listen", ANYWHERE],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "starting\n":
                break
        process.send_signal(signal.SIGINT)
        out, log = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in log


def refuses(served: Served) -> bool:
    """Whether it accepts no more."""
    try:
        socket.create_connection(("127.0.0.1", served.port), PATIENCE).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def test_in_words(folder: Path, trionode_command: Command) -> None:
    """`--help` tells of it."""
    said = trionode_command("serve", "--help").out
    for words in ("--asgi MODULE:APP", "--asgi-listen HOST:PORT", "[asgi]"):
        assert words in said


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("--asgi", "application"), "--asgi: 'application' is not MODULE:NAME", 2),
        (("--asgi", "nowhere:app"), "cannot import nowhere:app: ModuleNotFoundError: No module named 'nowhere'", 2),
        (("--asgi", "application:none"), "AttributeError: module 'application' has no attribute 'none'", 2),
        (("--asgi", "application:number"), "application:number is no ASGI 3 application", 2),
        (("--asgi", "application:wsgi"), "application:wsgi is no ASGI 3 application", 2),
        (("--asgi", "application:broken"), "could not start: its lifespan raised LookupError: no database", 6),
        (("--asgi-listen", ANYWHERE), "which application? Give --asgi MODULE:APP", 2),
        (("--asgi", "application:app", "--asgi-listen", "*:x"), "'x' is no port", 2),
        (("--asgi", "application:app", "--asgi-listen", "a b"), "neither a DNS name nor an IP address", 2),
        (("--asgi", "application:app", "--service", "echo"), "--service: for a node alone, and none was named", 2),
        (("--asgi", "application:app", "--listen", "*:0"), "--listen: for a node alone", 2),
        (("--asgi", "application:app", "--config", "node.toml"), "[network], [[acceptors]]: for a node alone", 2),
        (("--config", "grace.toml"), "grace.toml: [asgi]: grace must be", 2),
        (("--config", "typo.toml"), "unknown key 'ap' in [asgi]; did you mean 'app'?", 2),
        (("--config", "absent.toml"), "[asgi]: which application? Give --asgi MODULE:APP, or app = … in [asgi]", 2),
    ],
)
def test_what_cannot_be_served(
    folder: Path, trionode_command: Command, arguments: tuple[str, ...], words: str, status: int
) -> None:
    """One line each."""
    (folder / "node.toml").write_text("[network]\nmax_channels = 5\n[[acceptors]]\nport = 0\n")
    (folder / "grace.toml").write_text('[asgi]\napp = "application:app"\ngrace = -1\n')
    (folder / "typo.toml").write_text('[asgi]\nap = "application:app"\n')
    (folder / "absent.toml").write_text("[asgi]\ngrace = 1\n")
    if "--asgi-listen" not in arguments:
        arguments = (*arguments, "--asgi-listen", ANYWHERE)
    with fresh_imports():
        trionode_command("serve", HOST, *arguments).is_one_line(words, status=status)


@contextmanager
def fresh_imports() -> Iterator[None]:
    """What a command imports in this process is forgotten after the block, and where it looked."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.pop("application", None)


def test_a_port_in_use(folder: Path, trionode_command: Command) -> None:
    """One line that names the option; the node beside it does not stay."""
    with fresh_imports(), socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        for name in ((HOST,), (BETA, "--listen", ANYWHERE)):
            said = trionode_command("serve", *name, "--asgi", "application:app", "--asgi-listen", where, "--no-status")
            assert said.status == 4
            assert said.err.splitlines()[-1].endswith("(--asgi-listen HOST:PORT)")
            assert "Address already in use" in said.err
            assert "Traceback" not in said.err


def test_without_the_extra(folder: Path, trionode_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    for name in [name for name in sys.modules if name.startswith("hypercorn") or name == "trionode.http.server"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypercorn", None)
    said = trionode_command("serve", HOST, "--asgi", "application:app")
    said.is_one_line("pip install 'trionode[http]'", status=2)


def test_files_without_a_name(folder: Path, trionode_command: Command) -> None:
    """Without a name the files have to be named; then it serves alone."""
    with fresh_imports():
        trionode_command("serve", "--asgi", "application:app").is_one_line("no certificate was given", status=2)
    pki = folder / "pki"
    files = ("--cert", f"{pki / HOST}.pem", "--key", f"{pki / HOST}-key.pem", "--client-ca", f"{pki / 'ca.pem'}")
    with serve(folder, *files, "--asgi", "application:app", "--asgi-listen", ANYWHERE) as served:
        assert get(folder, served.port)[0]["verified"] is True
        assert served.end()[0] == 0
