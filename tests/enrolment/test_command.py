"""`trionode pki serve`, `join` and `serve --join`: from an empty directory to a cluster, in processes of their own."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from command_line import run_here, running, serve
from trionode import CAPool, CRLSet, KeyPair
from trionode._identity.names import SubjectNames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

    Command = Callable[..., Said]

BETA = "beta@localhost"
ALPHA = "alpha@localhost"


def talk(folder: Path, port: int, message: str) -> bytes:
    """What the echo service of beta says to alpha."""
    options = ("--as", ALPHA, "--pki", "mine", "--address", f"127.0.0.1:{port}")
    return run_here(folder, "call", *options, BETA, "echo", message).stdout


def test_from_an_empty_directory_to_a_cluster(trionode_command: Command, tmp_path: Path) -> None:
    """A CA, a node that has no files, and a caller that has: init, serve, token, join, a call; and a restart."""
    run = trionode_command
    assert run("pki", "init").status == 0
    (tmp_path / "token").write_text(run("pki", "token", BETA).out)
    lists = ("--crl-listen", "127.0.0.1:0")
    with running(tmp_path, "pki", "serve", "--listen", "127.0.0.1:0", "--lifetime", "1h", *lists) as ca:
        url = f"https://127.0.0.1:{ca.port}"
        [[host, plain]] = ca.first["crl_addresses"]
        with urllib.request.urlopen(f"http://{host}:{plain}/ca.crl", timeout=30) as answer:
            assert answer.read() == (tmp_path / "pki/ca.crl").read_bytes()
        joining = ("--join", url, "--token-file", "token", "--state-file", "beta.json", "--renew-after", "0.5")
        node = (BETA, *joining, "--service", "echo", "--listen", "127.0.0.1:0")
        with serve(tmp_path, *node) as beta:
            token = run("pki", "token", ALPHA).out.strip()
            run("join", url, "--token", token, "--pki", "token/mine").is_one_line("cannot write", status=3)
            said = run("join", url, "--token", token, "--pki", "mine")
            assert (said.status, "mine/alpha@localhost.pem" in said.out) == (0, True)
            folder = tmp_path / "mine"
            pair = KeyPair.load(folder / f"{ALPHA}.pem", folder / f"{ALPHA}-key.pem")
            assert SubjectNames.of(pair.certificate).cover_host("localhost")
            assert CAPool.load(folder / "ca.pem") == CAPool.load(tmp_path / "pki/ca.pem")
            assert (folder / f"{ALPHA}-key.pem").stat().st_mode & 0o777 == 0o600
            assert talk(tmp_path, beta.port, "hello") == b"hello\n"
            run("join", url, "--token", token, "--pki", "other").is_one_line("was used", status=5)
            run("join", url, "--token", token, "--pki", "mine").is_one_line("is there already", "--force", status=3)
            assert beta.end()[0] == 0
        assert (tmp_path / "beta.json").stat().st_mode & 0o777 == 0o600
        (tmp_path / "token").unlink()
        with serve(tmp_path, *node) as beta:
            assert talk(tmp_path, beta.port, "again") == b"again\n"
        said = run("pki", "revoke", ALPHA)  # of its certificate the CA has a record, and no file
        assert (said.status, f"serial number {pair.certificate.serial_number:x}" in said.out) == (0, True)
        with urllib.request.urlopen(f"http://{host}:{plain}/ca.crl", timeout=30) as answer:
            assert CRLSet.from_bytes(answer.read()).listed(pair.certificate)
        run("pki", "revoke", "nobody@localhost").is_one_line(
            "is on record", "neither a file nobody@localhost", status=3
        )
        assert ca.end()[0] == 0
    events = [json.loads(line) for line in (tmp_path / "pki/journal.jsonl").read_text().splitlines()]
    assert [each["names"] for each in events if each["event"] == "issued" and each.get("token")] == [[BETA], [ALPHA]]
    with serve(tmp_path, *node) as beta:  # the CA is away, and the certificate in the state file is good
        assert beta.port


def test_it_renews_and_hands_over(trionode_command: Command, tmp_path: Path) -> None:
    """With lifetimes of seconds a node changes its certificate, and goes on."""
    run = trionode_command
    assert run("pki", "init").status == 0
    (tmp_path / "token").write_text(run("pki", "token", BETA).out)
    with running(tmp_path, "pki", "serve", "--listen", "127.0.0.1:0", "--lifetime", "4s") as ca:
        url = f"https://127.0.0.1:{ca.port}"
        with serve(tmp_path, BETA, "--join", url, "--token-file", "token", "--listen", "127.0.0.1:0") as beta:
            began = time.monotonic()
            journal = tmp_path / "pki/journal.jsonl"
            while journal.read_text().count('"renews"') < 2:
                assert time.monotonic() - began < 60, journal.read_text()
                time.sleep(0.1)
            status, log = beta.end()
    assert status == 0
    assert "beta" in log or not log


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("pki", "serve", "--pki", "x"), "there is no CA in x", 3),
        (("pki", "serve", "--listen", "*:0"), "say by --name", 2),
        (("pki", "serve", "--allow", "no name"), "names", 2),
        (("pki", "serve", "--name", "no name"), "name", 2),
        (("join", "https://localhost:1"), "a token is needed", 2),
        (("join", "https://localhost:1", "--token", "hello"), "--token: this is no join token", 3),
        (("join", "https://localhost:1", "--token-file", "none"), "cannot read none", 3),
        (("join", "https://localhost:1", "--token-file", "token", "--token", "x"), "one of them is enough", 2),
        (("join", "http://localhost:1", "--token-file", "token", "--pki", "y"), "is https://HOST", 2),
        (("join", "https://localhost:1", "--token-file", "token", "--pki", "y"), "cannot be reached", 4),
        (("serve", BETA, "--join", "https://localhost:1"), "there is no token", 5),
        (("serve", BETA, "--join", "https://localhost:1", "--cert", "x"), "exclude each other", 2),
        (("serve", BETA, "--token-file", "token"), "without --join", 2),
        (("serve", BETA, "--renew-after", "0.5"), "without --join", 2),
        (("serve", BETA, "--join", "https://localhost:1", "--renew-after", "1.5"), "--renew-after", 2),
        (("pki", "serve", "--crl-listen", "x:y"), "--crl-listen", 2),
        (("serve", "--asgi", "a:b", "--join", "https://localhost:1"), "which name?", 2),
    ],
)
def test_what_makes_no_sense(
    arguments: tuple[str, ...], words: str, status: int, trionode_command: Command, tmp_path: Path
) -> None:
    """One line each, with the remedy."""
    trionode_command("pki", "init")
    (tmp_path / "token").write_text(trionode_command("pki", "token", ALPHA).out)
    trionode_command(*arguments).is_one_line(words, status=status)


def test_another_ca_than_that_of_the_token(trionode_command: Command, tmp_path: Path) -> None:
    """The token is not sent; one line that says so."""
    for name in ("pki", "other"):
        trionode_command("pki", "init", "--pki", name)
    token = trionode_command("pki", "token", ALPHA).out.strip()
    with running(tmp_path, "pki", "serve", "--pki", "other", "--listen", "127.0.0.1:0") as ca:
        url = f"https://127.0.0.1:{ca.port}"
        said = trionode_command("join", url, "--token", token, "--pki", "mine")
        said.is_one_line("does not have the CA of the join token", status=5)
        _, log = ca.end()
    assert not re.search("simpleenroll", log)
