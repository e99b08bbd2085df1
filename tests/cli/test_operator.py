"""What an operator meets at night: closed descriptors, lost lists and terminals, files that cannot be used, pipes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from trionode import CRLSet, KeyPair
from trionode._status.document import ManagerStatus, NodeStatus, SourceStatus
from trionode._status.unix_socket import StatusError, read_status
from trionode._util.private_directory import NotPrivateError, private_directory
from trionode.cli import descriptors, paths, status as status_command, terminal
from trionode.pki import CertificateAuthority, write_crl_set, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Said

    Command = Callable[..., Said]

PATIENCE = 60
ALPHA, BETA = "alpha@localhost", "beta@localhost"
#: What is said where stdout is closed.
CLOSED = "trionode: cannot write to stdout: Bad file descriptor; it was closed by the caller\n"


@pytest.fixture
def pki(trionode_command: Command) -> Command:
    """The command line, in a directory with a CA and certificates for alpha and beta."""
    for arguments in (["init"], ["issue", ALPHA], ["issue", BETA]):
        assert trionode_command("pki", *arguments).status == 0
    return trionode_command


def environment() -> dict[str, str]:
    """Of a process of the command line."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def shell(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash; `$T` is the command line."""
    return subprocess.run(
        ["bash", "-c", words],
        cwd=folder,
        env={**environment(), "T": f"{sys.executable} -m trionode"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A node beta with `echo`: its directory, and its port."""
    folder = tmp_path_factory.mktemp("beta")
    ca = CertificateAuthority.create()
    ca.save(folder / "pki")
    for name in (ALPHA, BETA):
        write_key_pair(ca.issue(name), folder / "pki" / f"{name}.pem", folder / "pki" / f"{name}-key.pem")
    arguments = ["serve", BETA, "--listen", "127.0.0.1:0", "--service", "echo", "--no-status", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "trionode", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        timer = threading.Timer(600, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            yield folder, json.loads(process.stdout.readline())["addresses"][0][1]
        finally:
            process.kill()
            timer.cancel()


# Descriptors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "out"),
    [
        ("<&-", "echo hello", 0, "hello\n"),
        ("<&-", "echo --whole", 0, ""),
        (">&-", "echo hello", 3, ""),
        ("<&- >&-", "echo hello", 3, ""),
        ("2>&-", "echo hello", 0, "hello\n"),
        ("<&- 2>&-", "echo hello", 0, "hello\n"),
    ],
)
def test_a_call_with_closed_descriptors(
    closed: str, arguments: str, status: int, out: str, beta: tuple[Path, int]
) -> None:
    """As cron starts programs: stdin is empty, and a reply that cannot be written is an error of one line."""
    folder, port = beta
    done = shell(f"$T call --as {ALPHA} {BETA} --address 127.0.0.1:{port} {arguments} {closed}", folder)
    assert (done.returncode, done.stdout) == (status, out), done.stderr
    assert "Traceback" not in done.stderr
    if status:
        assert done.stderr == CLOSED


def test_a_program_that_only_prints_needs_stdout(tmp_path: Path) -> None:
    """Nothing else would tell that it is lost."""
    done = shell("$T cookie >&-", tmp_path)
    assert (done.returncode, done.stderr) == (3, CLOSED)


@pytest.mark.parametrize("arguments", ["cookie", "pki token alpha@localhost", "manual rotation", "pki show"])
def test_what_is_only_printed_needs_stdout(
    arguments: str, pki: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every such command; a token is not made."""
    before = (tmp_path / "pki" / "journal.jsonl").read_bytes()
    monkeypatch.setattr(descriptors, "_missing", {1})
    said = pki(*arguments.split())
    assert (said.status, said.out, said.err) == (3, "", CLOSED)
    assert before == (tmp_path / "pki" / "journal.jsonl").read_bytes()


def test_what_examines_has_its_exit_status(beta: tuple[Path, int]) -> None:
    """Without stdout, too."""
    folder, _ = beta
    assert shell(f"$T check {ALPHA} >&-", folder).returncode == 0
    assert shell(f"$T check {ALPHA} example.org >&-", folder).returncode == 1


@pytest.mark.parametrize("where", ["2>/dev/full", ">/dev/full 2>/dev/full", "2>&-", "2</dev/null"])
@pytest.mark.parametrize(("arguments", "status"), [("check", 2), ("pki show missing", 3)])
def test_the_status_is_right_where_stderr_cannot_be_written(
    arguments: str, status: int, where: str, tmp_path: Path
) -> None:
    """It is all that there is to tell."""
    assert shell(f"$T {arguments} {where}", tmp_path).returncode == status


def test_a_stdin_that_cannot_be_read_is_named(beta: tuple[Path, int]) -> None:
    """Not taken for stdout."""
    folder, port = beta
    done = shell(f"$T call --as {ALPHA} {BETA} --address 127.0.0.1:{port} echo 0>/dev/null", folder)
    assert done.returncode == 3
    assert done.stderr.startswith("trionode: cannot read stdin: Bad file descriptor; give MESSAGE")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_every_command_opens_what_was_closed(closed: str, tmp_path: Path) -> None:
    """So that no file of ours gets one of these numbers, and children have all three.

    What opens them is run by itself: the rest of the command line takes long to import, and is not needed for it.
    """
    program = (
        f"import os, runpy; runpy.run_path('{descriptors.__file__}')['open_missing'](); "
        "assert os.open('/dev/null', 0) > 2; assert all(map(os.get_inheritable, (0, 1, 2)))"
    )
    done = shell(f'{sys.executable} -c "{program}" {closed}; echo $? >status', tmp_path)
    assert (tmp_path / "status").read_text() == "0\n", done


def test_open_descriptors_stay_as_they_are() -> None:
    """And what is open already is not touched."""
    before = [os.fstat(number).st_ino for number in (0, 1, 2)]
    descriptors.open_missing()
    assert [os.fstat(number).st_ino for number in (0, 1, 2)] == before


# Revocation ---------------------------------------------------------------------------------------------------------


def test_a_ca_does_not_revoke_itself(pki: Command, tmp_path: Path) -> None:
    """By whatever name its certificate is given; the list stays as it is."""
    before = (tmp_path / "pki" / "ca.crl").read_bytes()
    for name in ("ca", "pki/ca.pem", "intermediate"):
        pki("pki", "revoke", name).is_one_line("the CA's own certificate", "another CA", status=3)
        pki("pki", "unrevoke", name).is_one_line("the CA's own certificate", status=3)
    assert (tmp_path / "pki" / "ca.crl").read_bytes() == before
    ca = CertificateAuthority.load(tmp_path / "pki")
    with pytest.raises(ValueError, match="does not revoke itself"):
        ca.revocation_list(ca.certificate)
    with pytest.raises(ValueError, match="does not revoke itself"):
        ca.revocation_list(ca.issuer)


def test_a_mistake_is_taken_back(pki: Command, tmp_path: Path) -> None:
    """`unrevoke` takes a certificate off and leaves the others on; it says what its limits are."""
    assert pki("pki", "revoke", ALPHA, BETA).status == 0
    assert pki("check", ALPHA).status == 1
    said = pki("pki", "unrevoke", ALPHA)
    assert said.status == 0
    assert "no longer revoked" in said.out
    assert "verifiers that have the list from before" in said.out
    assert pki("check", ALPHA).status == 0
    assert pki("check", BETA).status == 1
    document = pki("pki", "unrevoke", BETA, "--json").document
    assert document["revoked"] == []
    assert document["notes"]
    pki("pki", "unrevoke", BETA).is_one_line("it is not on pki/ca.crl", status=3)


def test_a_revoked_certificate_is_shown_as_such(pki: Command) -> None:
    """By itself as in the list; and the list says which, when and why."""
    shown, listed = pki("pki", "show", ALPHA, "--json").document, pki("pki", "show", "--json").document
    assert [each["revoked"] for each in (*shown, *listed)] == [False] * 6
    pki("pki", "revoke", ALPHA, "--reason", "key-compromise")
    assert pki("pki", "show", ALPHA, "--json").document[0]["revoked"] is True
    assert "key-compromise" in pki("pki", "show", ALPHA).out
    assert "REVOKED" in pki("pki", "show", ALPHA).out
    assert "REVOKED" not in pki("pki", "show", BETA).out
    crl = pki("pki", "show", "pki/ca.crl", "--json").document[0]
    entry = crl["entries"][0]
    assert (entry["name"], entry["reason"], entry["serial"]) == (ALPHA, "key-compromise", crl["revoked"][0])
    text = pki("pki", "show", "pki/ca.crl").out
    assert ALPHA in text
    assert "key-compromise" in text


def test_serial_numbers_have_whole_bytes(pki: Command, tmp_path: Path) -> None:
    """As OpenSSL shows them, leading zeros included."""
    ca = CertificateAuthority.load(tmp_path / "pki")
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now - timedelta(hours=1))
        .next_update(now + timedelta(days=1))
        .add_revoked_certificate(x509.RevokedCertificateBuilder(0x0ABC, now).build())
    )
    write_crl_set(CRLSet([builder.sign(ca._key, hashes.SHA256())]), tmp_path / "x.crl")
    assert pki("pki", "show", "x.crl", "--json").document[0]["revoked"] == ["0abc"]
    pair = KeyPair.load(tmp_path / "pki" / f"{ALPHA}.pem", tmp_path / "pki" / f"{ALPHA}-key.pem")
    assert int(pki("pki", "show", ALPHA, "--json").document[0]["serial"], 16) == pair.certificate.serial_number
    assert len(pki("pki", "show", ALPHA, "--json").document[0]["serial"]) % 2 == 0


@pytest.mark.parametrize("command", [["serve", BETA], ["check", BETA], ["call", "--as", ALPHA, BETA, "echo", "hello"]])
def test_a_lost_list_is_not_taken_for_none(command: list[str], pki: Command, tmp_path: Path) -> None:
    """A directory that had a list needs it, for every command that judges peers by it."""
    (tmp_path / "pki" / "ca.crl").unlink()
    pki(*command).is_one_line("pki/ca.crl is missing", "--no-crl", "trionode pki revoke", status=3)


def test_one_can_do_without_a_list(pki: Command, tmp_path: Path) -> None:
    """By `--no-crl`; by a new list, which the journal fills again; or in a directory that never had one."""
    pki("pki", "revoke", ALPHA)
    (tmp_path / "pki" / "ca.crl").unlink()
    assert pki("check", ALPHA, "--no-crl").status == 0
    pki("check", ALPHA, "--no-crl", "--crl", "pki/ca.crl").is_one_line("exclude each other", status=2)
    assert "was missing" in pki("pki", "revoke").out
    assert pki("check", ALPHA).status == 1
    assert "was missing" not in pki("pki", "revoke").out
    CertificateAuthority.create().save(tmp_path / "other")
    pki("pki", "issue", ALPHA, "--pki", "other")
    assert pki("check", ALPHA, "--pki", "other").status == 0


# What is cut short is said ------------------------------------------------------------------------------------------


def test_a_shortened_lifetime_is_said(pki: Command) -> None:
    """A leaf ends with its CA, a CA with the calendar."""
    said = pki("pki", "issue", "gamma@localhost", "--lifetime", "4000d")
    assert "earlier than was asked for" in said.out
    assert "the CA in pki ends then" in said.out
    assert pki("pki", "issue", "delta@localhost", "--lifetime", "4000d", "--json").document["notes"]
    assert pki("pki", "issue", "epsilon@localhost", "--json").document["notes"] == []
    assert "earlier than" in pki("pki", "init", "--pki", "long", "--lifetime", "2919000d").out
    pki("pki", "init", "--pki", "x", "--lifetime", "9999999999w").is_one_line("longer than any date", status=2)


def test_a_long_common_name_is_refused(trionode_command: Command, tmp_path: Path) -> None:
    """Rather than cut."""
    trionode_command("pki", "init", "--common-name", "é" * 33).is_one_line("64 bytes", "shorten it", status=2)
    assert not (tmp_path / "pki").exists()
    assert trionode_command("pki", "init", "--common-name", "x" * 64).status == 0


@pytest.mark.parametrize("columns", ["80", "40"])
def test_long_names_of_files_are_shown_whole(columns: str, pki: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is what stands beside them."""
    monkeypatch.setenv("COLUMNS", columns)
    out = pki("pki", "issue", f"{'x' * 70}@localhost").out
    assert "…" not in out
    assert "private" in "".join(out.split())


def test_a_subject_that_is_cut_is_said(pki: Command) -> None:
    """A common name has 64 bytes; the names that peers go by are whole."""
    name = f"{'x' * 70}@localhost"
    assert f"the subject has the first 64 bytes of {name}" in " ".join(pki("pki", "issue", name).out.split())


@pytest.mark.parametrize("key", ["cert", "key", "ca", "client_ca", "root_ca", "crl"])
def test_a_file_with_two_sources_of_credentials_is_refused(key: str, pki: Command, tmp_path: Path) -> None:
    """`pki` and files of `[credentials]`; what is no file is welcome beside `pki`."""
    value = '"x"' if key in ("cert", "key") else '["x"]'
    (tmp_path / "beta.toml").write_text(f'name = "{BETA}"\npki = "pki"\n[credentials]\n{key} = {value}\n')
    pki("serve", "--config", "beta.toml").is_one_line("beta.toml", f"[credentials] {key}", "exclude", status=2)


# The terminal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["", "nohup"])
def test_a_node_that_loses_its_terminal_ends(wrapper: str, pki: Command, tmp_path: Path) -> None:
    """SIGHUP reloads while the terminal is there, and ends the node when it is gone; not under nohup."""
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "pki").rename(folder / "pki")
    child, master = serving_in_a_terminal(folder, wrapper)
    try:
        os.kill(child, signal.SIGHUP)
        wait_for(folder / "err", "SIGHUP: generation 1")
        os.close(master)
        if wrapper:
            os.kill(child, signal.SIGHUP)
            time.sleep(1)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            os.kill(child, signal.SIGTERM)
        _, how = os.waitpid(child, 0)
        child = 0
        assert os.waitstatus_to_exitcode(how) == 0, (folder / "err").read_text()
        assert ("the terminal is gone" in (folder / "err").read_text()) is not bool(wrapper)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def serving_in_a_terminal(folder: Path, wrapper: str) -> tuple[int, int]:
    """A node in a terminal of its own, once it listens: its process, and the terminal's other end."""
    child, master = pty.fork()
    if child == 0:  # pragma: no cover
        os.chdir(folder)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        line = f"{wrapper} {sys.executable} -m trionode serve {BETA} --listen 127.0.0.1:0 --no-status"
        os.execve("/bin/sh", ["/bin/sh", "-c", f"exec {line} >out 2>err </dev/null"], environment())  # noqa: S606
    wait_for(folder / "out", "listens on")
    return child, master


def wait_for(file: Path, words: str) -> None:
    """Wait until a file has these words."""
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and words in file.read_text()):
        assert time.monotonic() < deadline, file.parent
        time.sleep(0.05)


def test_systems_without_hangups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing reloads there, and no terminal is lost."""
    monkeypatch.delattr(signal, "SIGHUP")
    assert terminal.reload_signals() == ()
    assert not terminal.Terminal().lost()


# Status -------------------------------------------------------------------------------------------------------------


def test_status_shows_first_what_cannot_be_used(trionode_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which source, what is pending and why, since when; exit status 1, for JSON too."""
    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    source = SourceStatus(
        name="<FileSource x.pem>", error="it is damaged", pending="CN=new", since=at - timedelta(hours=2)
    )
    manager = ManagerStatus(
        label="certs", generation=3, connections={}, superseded=0, refused={}, validities=[], source=source
    )
    found = NodeStatus(
        node=BETA,
        process=1,
        incarnation=1,
        at=at,
        clock=1.0,
        open=True,
        listens_on=[],
        connections=[],
        managers=[manager],
        handshakes=[],
        pending_handshakes={},
        ends={},
        channels=0,
        channels_opened=0,
        services=0,
        bytes_sent=0,
        bytes_received=0,
    )
    monkeypatch.setattr(status_command, "_look", lambda *_: ([found], []))
    monkeypatch.setattr(status_command, "_SAMPLE", 0)
    said = trionode_command("status")
    assert said.status == 1
    lines = said.out.strip().splitlines()
    assert "it is damaged" in lines[1]
    assert "2030-01-02 01:04:05" in lines[1]
    assert "x.pem cannot be used" in lines[1]
    assert "CN=new" in lines[2]
    assert trionode_command("status", "--json").status == 1


# Pipes, and paths that cannot be looked at --------------------------------------------------------------------------


def test_a_key_from_a_pipe_is_read_once(pki: Command, tmp_path: Path) -> None:
    """By `check` and `serve` alike: certificate, key and CA, each from a pipe, the CA for both directions."""
    options = (
        f"--cert <(cat pki/{BETA}.pem) --key <(cat pki/{BETA}-key.pem) --ca <(cat pki/ca.pem) --crl <(cat pki/ca.crl)"
    )
    done = shell(f"$T check {options} {BETA}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(f"cat pki/{BETA}-key.pem | $T check --cert pki/{BETA}.pem --key /dev/stdin {BETA}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with subprocess.Popen(
        ["bash", "-c", f"exec {sys.executable} -m trionode serve {BETA} {options} --listen 127.0.0.1:0 --no-status"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        timer = threading.Timer(PATIENCE, server.kill)
        timer.start()
        try:
            assert server.stdout is not None
            assert "listens on" in server.stdout.readline()
            server.terminate()
            _, told = server.communicate()
        finally:
            server.kill()
            timer.cancel()
    assert server.returncode == 0
    assert "WARNING" not in told


def test_a_pipe_is_named_as_it_was_given(pki: Command, tmp_path: Path) -> None:
    """And not as the copy that was made of it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("nonsense",))
    writer.start()
    pki("check", "--cert", fifo, ALPHA).is_one_line(f"in {fifo}", status=3)
    writer.join()


def test_a_system_without_files_in_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no AttributeError."""
    monkeypatch.delattr(os, "memfd_create")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("nonsense",))
    writer.start()
    with pytest.raises(Exception, match=r"memfd_create.*Linux"):
        paths.rereadable(fifo)
    writer.join()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["pki", "show", "closed/file"], "closed/file"),
        (["pki", "show", "--pki", "closed/pki"], "closed/pki"),
        (["check", "--pki", "closed/pki", ALPHA], "closed/pki"),
        (["serve", "--pki", "closed/pki", ALPHA], "closed/pki"),
        (["pki", "issue", "--pki", "closed/pki", ALPHA], "closed/pki"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_not_taken_for_a_missing_one(
    arguments: list[str], found: str, pki: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every Python, whatever `Path.exists` makes of it there."""
    real = os.stat

    def stat(path: Any, **named: Any) -> os.stat_result:
        if str(path).startswith("closed/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **named)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    pki(*arguments).is_one_line("cannot use", found, "Permission denied", "permissions", status=3)


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["check", "--json", ALPHA], 3), (["explain", "--json", "example.org:x"], 2), (["nonsense", "--json"], 2)],
)
def test_an_error_is_json_where_that_was_asked_for(
    arguments: list[str], status: int, trionode_command: Command
) -> None:
    """On stdout, with the text that goes to stderr."""
    said = trionode_command(*arguments)
    error = json.loads(said.out)["error"]
    assert (said.status, error["status"]) == (status, status)
    assert said.err == f"trionode: {error['message']}\n"


@pytest.mark.parametrize("text", ["https://example.org:443", "https://example.org/", "tcp://x"])
def test_a_url_is_told_that_it_is_one(text: str, trionode_command: Command) -> None:
    """Where a host belongs."""
    trionode_command("explain", text).is_one_line("is a URL", "HOST:PORT", status=2)


def test_a_cookie_can_be_made(trionode_command: Command) -> None:
    """And each is another."""
    made = {trionode_command("cookie").out, trionode_command("cookie").out}
    assert {len(each) for each in made} == {44}
    assert len(made) == 2
    assert len(trionode_command("cookie", "--json").document["cookie"]) == 43


def test_no_color_means_no_escapes(pki: Command, tmp_path: Path) -> None:
    """In a terminal; not even bold ones."""
    shown: dict[str, bytes] = {}
    for name, value in (("plain", "1"), ("styled", "")):
        child, master = pty.fork()
        if child == 0:  # pragma: no cover
            os.chdir(tmp_path)
            line = f"exec {sys.executable} -m trionode pki show"
            os.execve("/bin/sh", ["/bin/sh", "-c", line], {**environment(), "NO_COLOR": value, "TERM": "xterm"})  # noqa: S606
        found = b""
        try:
            while piece := os.read(master, 4096):
                found += piece
        except OSError:
            pass
        os.close(master)
        os.waitpid(child, 0)
        shown[name] = found
    assert ALPHA.encode() in shown["plain"]
    assert b"\x1b" not in shown["plain"]
    assert b"\x1b" in shown["styled"]


@pytest.mark.parametrize("missing", ["geteuid", "O_DIRECTORY", "O_NOFOLLOW"])
def test_systems_without_private_directories_are_told(missing: str, tmp_path: Path) -> None:
    """The error names the feature and the system; no AttributeError."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, missing)
        with pytest.raises(NotPrivateError, match=f"{sys.platform} has no os.{missing}"), private_directory(tmp_path):
            pass


def test_systems_without_unix_sockets_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the status of a node."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(StatusError, match=f"UNIX sockets, which {sys.platform} does not have"):
        read_status(tmp_path / "x")


# What Linux has and other systems lack, but for AF_UNIX, which Trio needs on this one.
LACKING = """
import os, signal, socket, sys, trio
for module, names in {
    os: "geteuid getuid O_NOFOLLOW O_DIRECTORY O_CLOEXEC memfd_create register_at_fork fchmod sched_getaffinity",
    signal: "SIGHUP SIGQUIT",
    socket: "SO_PEERCRED SO_REUSEPORT",
}.items():
    for name in names.split():
        delattr(module, name)
from trionode.cli import main
sys.exit(main())
"""


def test_serve_where_a_system_lacks_what_linux_has(pki: Command, tmp_path: Path) -> None:
    """It serves, says what it cannot do and why, and ends as it should."""
    command = [sys.executable, "-P", "-c", LACKING, "serve", ALPHA, "--listen", "127.0.0.1:0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "listens on" in process.stdout.readline()
        process.terminate()
        said = process.stderr.read()
        assert process.wait(20) == 0
    assert "is not answered: the directory" in said
    assert f"{sys.platform} has no" in said
    assert "Traceback" not in said
