"""The demo: it shows what it says, each of its checks can fail, and it leaves nothing running and nothing lying about.

Processes are real here, and so are sockets (loopback). A demo under test runs in a process group of its own, so that
"no process is left" is a question to the kernel.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio

from once import made_once
from trionode import (
    CertManager,
    KeyPair,
    TLSStream,
    serve_tls,
)
from trionode.cli import main
from trionode.demo import story
from trionode.demo.checks import (
    CHECKS,
    Check,
    Facts,
    judge,
    judge_all,
)
from trionode.demo.roles import first_wrong, knock, read_lines
from trionode.demo.said import (
    Listening,
    Progress,
    Refusal,
    tell,
)
from trionode.demo.story import Actor, DemoError, run_demo
from trionode.pki import write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode.demo.said import Certificate

#: Every process and every test is bounded by this. Seconds.
PATIENCE = 60

TRIONODE: Final = [sys.executable, "-m", "trionode"]
TITLES: Final = list(CHECKS)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The demo as a process, in a group of its own."""
    return subprocess.Popen(
        [*TRIONODE, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        **options,
    )


def is_alone(process: subprocess.Popen[str]) -> bool:
    """Whether nobody is left in the group of a process that has ended."""
    assert process.returncode is not None
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


@dataclass(frozen=True)
class Run:
    """What came of one run of the demo."""

    status: int
    out: str
    err: str
    alone: bool
    directory: Path


def run(directory: Path, *arguments: str, **options: Any) -> Run:
    """The whole demo."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=PATIENCE)
    return Run(process.returncode, out, err, is_alone(process), directory)


def run_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Run]) -> Run:
    """One run for all tests; what it keeps is in a directory that they leave as it is."""

    def write(folder: Path) -> None:
        (folder / "run.json").write_bytes(msgspec.json.encode(make(folder / "kept"), enc_hook=str))

    file = made_once(factory, name, write) / "run.json"
    return msgspec.json.decode(file.read_bytes(), type=Run, dec_hook=lambda _, text: Path(text))


@pytest.fixture(scope="module")
def as_json(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run for scripts, its files kept."""
    return run_once(tmp_path_factory, "json", lambda kept: run(kept, "--json", "--directory", str(kept)))


@pytest.fixture(scope="module")
def as_text(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run for people, into a pipe, with a place of its own for temporary files."""

    def make(directory: Path) -> Run:
        directory.mkdir()
        return run(directory, env={**os.environ, "TMPDIR": str(directory), "COLUMNS": "130"})

    return run_once(tmp_path_factory, "text", make)


@pytest.fixture
def facts(as_json: Run) -> Facts:
    """The facts of a run where everything held."""
    return msgspec.convert(json.loads(as_json.out)["facts"], Facts)


# A run for scripts --------------------------------------------------------------------------------------------------


def test_every_check_holds(as_json: Run) -> None:
    """Exit status 0, and the document has every check, in order, held."""
    document = json.loads(as_json.out)
    assert as_json.status == 0, as_json.err
    assert [(check["title"], check["held"]) for check in document["checks"]] == [(title, True) for title in TITLES]
    assert document["ok"] is True
    assert all(check["evidence"] for check in document["checks"])


def test_a_run_for_scripts_says_nothing_else(as_json: Run) -> None:
    """On stdout there is one JSON document, on stderr nothing."""
    assert as_json.err == ""
    assert as_json.out.startswith("{")


def test_it_takes_a_few_seconds(as_json: Run) -> None:
    """On an idle machine two; the bound here is for a busy one."""
    assert json.loads(as_json.out)["seconds"] < 30


def test_no_process_is_left(as_json: Run, as_text: Run) -> None:
    """When the demo has ended, everything that it started has."""
    assert as_json.alone
    assert as_text.alone


def test_the_facts_agree_with_the_disk(as_json: Run, facts: Facts) -> None:
    """The certificate that gamma saw is the one in beta's file; the one that alpha saw is not there any more."""
    on_disk = KeyPair.load(as_json.directory / "beta" / "cert.pem", as_json.directory / "beta" / "key.pem").fingerprint
    assert facts.second_pair == on_disk
    assert facts.first_pair not in (None, on_disk)


def test_kept_keys_are_private(as_json: Run) -> None:
    """Directory and keys are for their owner alone."""
    keys = list(as_json.directory.rglob("*.key")) + list(as_json.directory.rglob("key.pem"))
    assert len(keys) == 5
    assert all(file.stat().st_mode & 0o077 == 0 for file in [as_json.directory, *keys])


# A run for people ---------------------------------------------------------------------------------------------------


def test_it_tells_the_story(as_text: Run) -> None:
    """Who verified whom with names, issuer and fingerprint; both sides' words on each refusal; a table at the end."""
    assert as_text.status == 0, as_text.out
    for words in (
        "verified beta@localhost",
        "DNS:localhost, URI:trionode://alpha@localhost",
        "issuer  CN=demo cluster CA",
        "superseded here: True",
        "PeerUnverifiedError: peer at 127.0.0.1",
        "PeerRejectedError: the peer at 127.0.0.1",
        "ssl.SSLError: ",
        f"{len(TITLES)} of {len(TITLES)} checks held",
    ):
        assert words in as_text.out
    assert [title for title in TITLES if as_text.out.count(title) < 2] == []
    assert as_text.err == ""


def test_it_is_plain_in_a_pipe(as_text: Run) -> None:
    """No escape sequences and no trailing blanks; nothing wider than it has to be."""
    assert "\x1b" not in as_text.out
    assert not re.search(r"[ \t]$", as_text.out, re.MULTILINE)
    assert max(map(len, as_text.out.splitlines())) <= 130


def test_it_leaves_no_files(as_text: Run) -> None:
    """The temporary directory is gone."""
    assert list(as_text.directory.iterdir()) == []


def test_kept_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps the files is told where, and that keys are among them."""

    async def nothing(directory: Path, reporter: story.Reporter) -> Facts:
        await trio.lowlevel.checkpoint()
        return Facts()

    monkeypatch.setattr("trionode.cli.demo.run_demo", nothing)
    assert main(["demo", "--directory", str(tmp_path / "kept")]) == 1
    assert f"kept in {tmp_path / 'kept'}: keys too" in capsys.readouterr().out.replace("\n", " ")


# Each check can fail ------------------------------------------------------------------------------------------------


def change(name: str, **changes: object) -> Callable[[Facts], None]:
    """One fact, with some of what it says changed."""

    def spoil(facts: Facts) -> None:
        setattr(facts, name, msgspec.structs.replace(getattr(facts, name), **changes))

    return spoil


def put(name: str, value: object) -> Callable[[Facts], None]:
    """One fact, replaced."""
    return lambda facts: setattr(facts, name, value)


def swap(name: str, other: str) -> Callable[[Facts], None]:
    """One fact, with another in its place."""
    return lambda facts: setattr(facts, name, getattr(facts, other))


def exit_status(name: str, status: int | None) -> Callable[[Facts], None]:
    """A process that ended otherwise."""
    return lambda facts: facts.exit_statuses.update({name: status})


NOBODY = Refusal(error="", code="", text="it was not refused")
BROKEN = Refusal(error="HandshakeError", code="broken", text="the peer broke the connection")

SPOILT: Final[list[tuple[str, Callable[[Facts], None]]]] = [
    (TITLES[0], change("alpha_sees", verified=False)),
    (TITLES[0], change("alpha_sees", peer="gamma@localhost")),
    (TITLES[0], swap("first_pair", "second_pair")),
    (TITLES[0], change("alpha_sees", peer_certificate=None)),
    (TITLES[1], change("beta_sees", verified=False)),
    (TITLES[1], swap("alpha_pair", "first_pair")),
    (TITLES[2], change("rotated", generation=1)),
    (TITLES[2], swap("second_pair", "first_pair")),
    (TITLES[3], swap("alpha_sees_later", "gamma_sees")),
    (TITLES[3], swap("beta_sees_later", "beta_sees_gamma")),
    (TITLES[4], change("beta_sees_later", superseded=False)),
    (TITLES[4], change("beta_sees", superseded=True)),
    (TITLES[4], change("alpha_sees_later", superseded=True)),
    (TITLES[5], swap("gamma_sees", "alpha_sees")),
    (TITLES[5], change("gamma_sees", verified=False)),
    (TITLES[5], change("beta_sees_gamma", superseded=True)),
    (TITLES[5], put("gamma_sees", BROKEN)),
    (TITLES[6], swap("stranger_told", "gamma_sees")),
    (TITLES[6], put("stranger_told", BROKEN)),
    (TITLES[6], change("stranger_refused", code="expired")),
    (TITLES[6], put("stranger_refused", None)),
    (TITLES[7], swap("impostor_told", "gamma_sees")),
    (TITLES[7], swap("impostor_refused", "stranger_refused")),
    (TITLES[8], put("nobody_told", NOBODY)),
    (TITLES[8], change("nobody_told", code="unknown_ca")),
    (TITLES[8], change("nobody_refused", error="HandshakeError")),
    (TITLES[9], lambda facts: change("sent", echoed=facts.sent.echoed - 1)(facts) if facts.sent else None),
    (TITLES[9], change("received", received=1)),
    (TITLES[9], change("received", wrong_at=7)),
    (TITLES[9], change("sent", wrong_at=7)),
    (TITLES[10], change("rotated", received=0)),
    (TITLES[10], lambda facts: change("rotated", received=facts.received.received)(facts) if facts.received else None),
    (TITLES[11], swap("alpha_again", "alpha_sees")),
    (TITLES[11], change("alpha_again", verified=False)),
    (TITLES[12], exit_status("beta", 1)),
    (TITLES[12], exit_status("alpha", -15)),
    (TITLES[12], exit_status("gamma", None)),
    (TITLES[12], lambda facts: facts.exit_statuses.clear()),
]


@pytest.mark.parametrize(("title", "spoil"), SPOILT)
def test_a_check_fails_where_its_facts_are_wrong(title: str, spoil: Callable[[Facts], None], facts: Facts) -> None:
    """A check that holds does not survive a wrong fact."""
    facts = deepcopy(facts)
    assert judge(title, facts).held
    spoil(facts)
    assert not judge(title, facts).held


def test_every_check_was_made_to_fail() -> None:
    """The list above leaves none out."""
    assert {title for title, _ in SPOILT} == set(TITLES)


def test_a_check_without_its_facts_fails() -> None:
    """A story that broke off at once shows nothing."""
    assert not any(check.held for check in judge_all(Facts()))
    assert judge(TITLES[0], Facts()).evidence == "not reached"


@pytest.mark.parametrize(
    ("numbers", "where"), [([], None), ([1, 2, 3], None), ([1, 3], 2), ([1, 1, 2], 2), ([2, 1], 1), ([1, 2, 4, 3], 3)]
)
def test_lost_doubled_and_reordered_numbers_are_found(numbers: list[int], where: int | None) -> None:
    """The first place that is not what is due there."""
    assert first_wrong(numbers) == where


# Runs that go wrong -------------------------------------------------------------------------------------------------


def test_no_rotation_and_strangers_who_are_let_in_are_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and exactly the checks on these fail.

    The new files are never written, the stranger has the cluster's CA, and an "impostor" comes under its own name.
    """
    written: set[Path] = set()

    def betas_only_once(key_pair: KeyPair, cert_file: Path, key_file: Path) -> None:
        if cert_file.parent.name != "beta" or cert_file not in written:
            written.add(cert_file)
            write_key_pair(key_pair, cert_file, key_file)

    start = story._Story.start

    async def trusting(self: story._Story, name: str, role: str, *arguments: str) -> Actor:
        if name == "stranger":
            await self.issue("stranger", story.STRANGER)
        if name == "impostor":
            arguments = (arguments[0], story.GAMMA, "gamma")
        return await start(self, name, role, *arguments)

    monkeypatch.setattr(story, "write_key_pair", betas_only_once)
    monkeypatch.setattr(story._Story, "start", trusting)
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert [title for title in TITLES if re.search(f"✗ +{re.escape(title)}", out)] == [
        "beta rotated to the new files",
        "a new connection has the new certificate",
        "a stranger from another CA is refused",
        "an impostor with a good certificate is refused",
        "alpha's next connection has the new certificate",
    ]
    assert f"{len(TITLES) - 5} of {len(TITLES)} checks held" in out


def test_a_node_that_dies_ends_the_story(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, the checks that were reached stand, the others say so, and the other processes are ended."""
    actors: list[Actor] = []
    rotate = story._Story.rotate

    async def kill_beta_first(self: story._Story, alpha: Actor, beta: Actor) -> None:
        actors.extend((alpha, beta))
        beta.process.kill()
        await beta.process.wait()
        await rotate(self, alpha, beta)

    monkeypatch.setattr(story._Story, "rotate", kill_beta_first)
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "ended early: " in out
    assert "ended too early" in out
    assert f"2 of {len(TITLES)} checks held" in out
    assert out.count("not reached") == len(TITLES) - 3  # the last says who ended, and how
    assert all(actor.process.returncode is not None for actor in actors)


def test_a_story_that_takes_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is bounded, beside each step."""
    monkeypatch.setattr(story, "STORY_TIMEOUT", 0.0)
    facts = trio.run(run_demo, tmp_path, Quiet())
    assert facts.trouble is not None
    assert "longer than" in facts.trouble


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    """Interrupted in the middle it ends its processes, says so in one line, cleans up, and exits with 130."""
    process = start(env={**os.environ, "TMPDIR": str(tmp_path)})
    assert process.stdout is not None
    try:
        assert any("dials it" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)  # to the parent alone: it sees to the others
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip().splitlines() == ["trionode: interrupted; nothing is left running"]
    assert is_alone(process)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_who_leaves_early_ends_it_quietly() -> None:
    """`trionode demo | head -2`."""
    process = start()
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=PATIENCE) == 141
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.stderr.close()
    assert is_alone(process)


def test_a_gamma_that_is_refused_ends_the_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What did not connect shows no certificate: the check says why, and the story breaks off."""
    start = story._Story.start

    async def with_the_wrong_certificate(self: story._Story, name: str, role: str, *arguments: str) -> Actor:
        if name == "gamma":
            arguments = (*arguments[:2], "alpha")
        return await start(self, name, role, *arguments)

    monkeypatch.setattr(story._Story, "start", with_the_wrong_certificate)
    assert main(["demo", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["facts"]["trouble"].startswith("gamma could not connect: PeerRejectedError: ")
    assert document["checks"][5]["evidence"] == "gamma could not connect: PeerRejectedError claimed_name"


# The roles ----------------------------------------------------------------------------------------------------------

SERVE: Final = [sys.executable, "-m", "trionode.demo", "serve"]


def test_a_role_ends_when_its_stdin_does(as_json: Run) -> None:
    """A node whose operator was killed does not stay."""
    role = subprocess.run(
        [*SERVE, as_json.directory], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    assert role.returncode == 0, role.stderr
    assert role.stdout.startswith(b'{"type":"Listening"')


def test_a_role_that_talks_ends_when_its_stdin_does(as_json: Run) -> None:
    """It stops sending, has everything back, and leaves."""
    beta = subprocess.Popen([*SERVE, as_json.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert beta.stdin is not None
    assert beta.stdout is not None
    with beta:
        try:
            port = json.loads(beta.stdout.readline())["port"]
            talk = [sys.executable, "-m", "trionode.demo", "talk", str(as_json.directory), str(port)]
            alpha = subprocess.run(talk, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
            beta.stdin.close()
            assert beta.wait(timeout=PATIENCE) == 0
        finally:
            beta.kill()
    assert alpha.returncode == 0, alpha.stderr
    assert [json.loads(line)["type"] for line in alpha.stdout.splitlines()] == ["Connected", "Sent", "Connected"]


def test_an_interrupted_role_says_nothing(as_json: Run) -> None:
    """Ctrl-C reaches every process of a terminal; a traceback from each would bury what matters."""
    role = subprocess.Popen(
        [*SERVE, as_json.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert role.stdout is not None
    with role:
        try:
            role.stdout.readline()
            role.send_signal(signal.SIGINT)
            _, err = role.communicate(timeout=PATIENCE)
        finally:
            role.kill()
    assert (role.returncode, err) == (130, b"")


async def test_a_client_that_is_not_refused_says_so(as_json: Run, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Nobody is told apart from those whom the server lets in, and from a server that is not there."""
    files = as_json.directory / "beta"
    lax = CertManager(KeyPair.load(files / "cert.pem", files / "key.pem"))

    async def welcome(stream: TLSStream) -> None:
        await stream.send_all(b"welcome")

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_tls, welcome, 0, cert_manager=lax, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            await knock(str(as_json.directory), str(port))
            nursery.cancel_scope.cancel()
        await knock(str(as_json.directory), str(port))
    admitted, unreachable = map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert (admitted["error"], admitted["text"]) == ("", "it was not refused")
    assert unreachable["error"] == "ConnectionRefusedError"


# The operator's tools -----------------------------------------------------------------------------------------------


class Quiet:
    """A reporter for those who look at the facts; keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def step(self, title: str) -> None:
        """Show nothing."""

    def note(self, who: str, text: str) -> None:
        """Keep it."""
        self.notes.append((who, text))

    def certificate(self, who: str, text: str, certificate: Certificate) -> None:
        """Show nothing."""

    def check(self, check: Check) -> None:
        """Show nothing."""


async def actor(nursery: trio.Nursery, program: str, log: Path) -> Actor:
    """A process that runs a Python program."""
    process = await nursery.start(
        partial(
            trio.run_process,
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            check=False,
            deliver_cancel=story._terminate,
        )
    )
    send, receive = trio.open_memory_channel[str](math.inf)
    nursery.start_soon(read_lines, process.stdout, send)
    return Actor("somebody", process, receive, log)


async def test_a_process_that_does_not_obey_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that ignores SIGTERM is gone a moment later, too."""
    monkeypatch.setattr(story, "KILL_AFTER", 0.05)
    program = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"type": "Progress", "echoed": 1}', flush=True)
time.sleep(600)
"""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            stubborn = await actor(nursery, program, tmp_path / "log")
            await stubborn.hear(Progress)
            nursery.cancel_scope.cancel()
    assert stubborn.process.returncode == -signal.SIGKILL


async def test_silence_and_death_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who says nothing in time, and who has ended, is named, with the end of its log."""
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\nfour\n")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            silent = await actor(nursery, "import time; time.sleep(600)", log)
            monkeypatch.setattr(story, "STEP_TIMEOUT", 0.01)
            with pytest.raises(DemoError, match=r"somebody did not report .* two / three / four"):
                await silent.hear(Listening)
            assert await silent.wait_ended() is None
            monkeypatch.setattr(story, "STEP_TIMEOUT", PATIENCE)
            dead = await actor(nursery, "", log)
            with pytest.raises(DemoError, match="somebody ended too early"):
                await dead.hear(Listening)
            assert await dead.wait_ended() == 0
            with pytest.raises(DemoError, match="somebody ended too early"):
                await dead.order("look")
            nursery.cancel_scope.cancel()


async def test_a_peer_without_a_certificate_is_shown(tmp_path: Path, facts: Facts) -> None:
    """Should a node have let somebody in without one, the story says so."""
    quiet = Quiet()
    assert facts.beta_sees is not None
    async with trio.open_nursery() as nursery:
        seen = msgspec.structs.replace(facts.beta_sees, peer_certificate=None, verified=False)
        story._Story(tmp_path, quiet, Facts(), nursery).show_peer("beta", seen)
    assert quiet.notes == [("beta", "did NOT verify alpha@localhost, which sent no certificate")]


def test_what_is_told_is_one_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whatever the text has in it, a message is one line of JSON."""
    tell(Refusal(error="E", code="c", text="two\nlines\u2028and more"))
    out = capfdbinary.readouterr().out
    assert out.count(b"\n") == 1
    assert json.loads(out)["text"] == "two\nlines\u2028and more"
