"""`trionode pki`: a CA, and certificates for nodes, in a directory."""

from __future__ import annotations

import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.hashes import SHA256

from trionode import (
    CAPool,
    CertificateError,
    CRLSet,
    KeyPair,
)
from trionode.pki import PRIVATE_NAMES, CertificateAuthority, JoinToken, PKIDirectory, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Said

    Command = Callable[..., Said]

PATIENCE = 30


def mode(file: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(file.stat().st_mode)


# init and issue -----------------------------------------------------------------------------------------------------


def test_what_is_issued_can_be_used(pki: Command, tmp_path: Path) -> None:
    """The files are those that the library reads, and OpenSSL's own command agrees that they fit together."""
    folder = tmp_path / "pki"
    pair = KeyPair.load(folder / "alpha@localhost.pem", folder / "alpha@localhost-key.pem")
    assert pair.chain[1].issuer == CAPool.load(folder / "ca.pem").certificates[0].subject
    assert [len(crl) for crl in CRLSet.load(folder / "ca.crl").lists] == [0, 0]
    done = subprocess.run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-crl_check_all",
            "-CRLfile",
            "ca.crl",
            "-CAfile",
            "ca.pem",
            "-untrusted",
            "alpha@localhost.pem",
            "alpha@localhost.pem",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alpha@localhost.pem: OK\n"), done.stderr


def test_keys_are_private(pki: Command, tmp_path: Path) -> None:
    """Directory 0700, keys 0600."""
    assert mode(tmp_path / "pki") == 0o700
    assert {file.name: mode(file) for file in (tmp_path / "pki").glob("*key*")} == {
        "ca.key": 0o600,
        "root.key": 0o600,
        "alpha@localhost-key.pem": 0o600,
    }


@pytest.mark.parametrize(
    "arguments",
    [("init",), ("issue", "alpha@localhost"), ("issue", "beta@localhost", "--out", "alpha@localhost")],
)
def test_nothing_is_overwritten_without_force(arguments: tuple[str, ...], pki: Command, tmp_path: Path) -> None:
    """One line that says so and what to do, status 3; every file is as it was."""
    before = {file: file.read_bytes() for file in (tmp_path / "pki").iterdir()}
    pki("pki", *arguments).is_one_line("is there already", "--force", status=3)
    assert {file: file.read_bytes() for file in (tmp_path / "pki").iterdir()} == before


def test_force_rotates(pki: Command, tmp_path: Path) -> None:
    """A new pair takes the place of the old one, and is one; nothing else is left."""
    folder = tmp_path / "pki"
    before = KeyPair.load(folder / "alpha@localhost.pem", folder / "alpha@localhost-key.pem")
    names = sorted(file.name for file in folder.iterdir())
    assert pki("pki", "issue", "--force", "alpha@localhost").status == 0
    after = KeyPair.load(folder / "alpha@localhost.pem", folder / "alpha@localhost-key.pem")
    assert after.fingerprint != before.fingerprint
    assert sorted(file.name for file in folder.iterdir()) == names


def test_names_lifetimes_and_kinds_of_keys(pki: Command) -> None:
    """What is asked for is what the certificate says."""
    said = pki(
        *("pki", "issue", "beta@Host-B.example.", "10.0.0.1", "--lifetime", "12h", "--key-type", "ed25519", "--json")
    ).document
    assert said["cert"] == "pki/beta@host-b.example.pem"
    assert said["hosts"] == ["host-b.example", "10.0.0.1"]
    assert said["nodes"] == ["beta@host-b.example"]
    assert said["key"] == "Ed25519"
    assert 12 * 3600 - 60 <= said["seconds_left"] <= 12 * 3600


def test_another_directory(trionode_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--pki`, or the environment's TRIONODE_PKI."""
    assert trionode_command("pki", "init", "--pki", "deep/er").status == 0
    monkeypatch.setenv("TRIONODE_PKI", "deep/er")
    assert trionode_command("pki", "issue", "alpha@localhost").status == 0
    assert (tmp_path / "deep" / "er" / "alpha@localhost.pem").exists()
    assert not (tmp_path / "pki").exists()


def test_passwords(trionode_command: Command, tmp_path: Path) -> None:
    """Keys of CA and node may be encrypted; a wrong, missing or superfluous password is one line with its remedy."""
    for name, text in {"right": "sesame\n", "wrong": "simsim\n", "empty": "\n"}.items():
        (tmp_path / name).write_text(text)
    assert trionode_command("pki", "init", "--password-file", "right").status == 0
    assert "ENCRYPTED" in (tmp_path / "pki" / "ca.key").read_text()
    issue = ("pki", "issue", "alpha@localhost", "--key-password-file", "right")
    trionode_command(*issue).is_one_line("ca.key is encrypted", "give its password", status=3)
    trionode_command(*issue, "--password-file", "wrong").is_one_line("password", "ca.key", status=3)
    trionode_command(*issue, "--password-file", "none").is_one_line("cannot read none", "Check the path", status=3)
    trionode_command(*issue, "--password-file", "empty").is_one_line("empty is empty", "first line", status=3)
    assert trionode_command(*issue, "--password-file", "right").status == 0
    trionode_command("check", "alpha@localhost").is_one_line("is encrypted; give its password", status=3)
    trionode_command("check", "alpha@localhost", "--password-file", "wrong").is_one_line("password", status=3)
    assert trionode_command("check", "alpha@localhost", "--password-file", "right").status == 0


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("issue",), "Missing argument 'NAME...'", 2),
        (("issue", "al pha@localhost"), "node name part", 2),
        (("issue", "a@b", "--lifetime", "soon"), "write a number and a unit: 90d", 2),
        (("issue", "a@b", "--lifetime", "0d"), "is zero", 2),
        (("issue", "a@b", "--key-type", "dsa"), "'dsa' is not one of", 2),
        (("issue", "a@b", "--out", "../a"), "--out is a file name without a directory", 2),
        (("issue", "ca"), "is the name of the CA's certificate", 2),
        (("issue", "a-key"), "or of a key file", 2),
        (("issue", "a@b", "--pki", "other"), "there is no CA in other; make one with: trionode pki init", 3),
        (("init", "--pki", "file/ca"), "cannot write the CA to file/ca: Not a directory. Check path", 3),
        (("init", "--pki", "file"), "is a file", 2),
        (("init", "--pki", "new", "--common-name", ""), "", 2),
        (("show", "nobody@localhost"), "neither a file nobody@localhost nor pki/nobody@localhost.pem", 3),
        (("show", "file"), "no PEM certificate in file", 3),
        (("show", "--pki", "other"), "there is no directory other", 3),
        (("revoke", "nobody@localhost"), "neither a file", 3),
        (("revoke", "--reason", "mood"), "'mood' is not one of", 2),
    ],
)
def test_what_makes_no_sense(arguments: tuple[str, ...], words: str, status: int, pki: Command, tmp_path: Path) -> None:
    """One line each, with the remedy."""
    (tmp_path / "file").write_text("nothing\n")
    pki("pki", *arguments).is_one_line(words, status=status)


def test_a_ca_at_its_end_issues_nothing(trionode_command: Command, tmp_path: Path) -> None:
    """It says that a new CA is needed."""
    old = CertificateAuthority.create(clock=lambda: datetime.now(UTC) - timedelta(days=9), lifetime=timedelta(days=1))
    old.save(tmp_path / "pki")
    trionode_command("pki", "issue", "alpha@localhost").is_one_line("Make a new CA", status=3)


def test_a_root_that_issues_itself(trionode_command: Command, tmp_path: Path) -> None:
    """As directories were made before there were intermediates: all that is done with them still works."""
    assert trionode_command("pki", "init", "--no-intermediate").status == 0
    files = {file.name for file in (tmp_path / "pki").iterdir()}
    assert files == {"ca.pem", "ca.key", "ca.crl", ".has-crl"}
    assert trionode_command("pki", "issue", "alpha@localhost").status == 0
    assert trionode_command("pki", "revoke", "alpha@localhost").status == 0
    assert trionode_command("pki", "unrevoke", "alpha@localhost").status == 0
    assert trionode_command("check", "alpha@localhost").status == 0
    usage = trionode_command("pki", "init", "--no-intermediate", "--pki", "x", "--permit", "example")
    usage.is_one_line("are about an intermediate", status=2)


def test_what_a_ca_may_issue_for(trionode_command: Command) -> None:
    """Name constraints: hosts with those below them, and networks; the rest is refused, by us and by OpenSSL."""
    assert "--permit-any exclude each other" in trionode_command("pki", "init", "--permit", "a", "--permit-any").err
    permit = ("--permit", "cluster.example", "--permit", "10.0.0.0/8")
    assert trionode_command("pki", "init", *permit).status == 0
    for name in ("alpha@host-a.cluster.example", "beta@cluster.example", "10.1.2.3"):
        assert trionode_command("pki", "issue", name).status == 0
        assert trionode_command("check", name).status == 0
    for name in ("alpha@other.example", "alpha@xcluster.example", "11.0.0.1", "alpha@[::1]"):
        trionode_command("pki", "issue", name).is_one_line("its name constraints permit", status=2)
    trionode_command("pki", "init", "--pki", "x", "--permit", "no/host").is_one_line("neither a host", status=2)
    remedy = "trionode pki init --permit other.example; if nodes use this one, trionode pki roll begin --permit other"
    trionode_command("pki", "token", "alpha@other.example").is_one_line(remedy, status=2)
    assert trionode_command("pki", "token", "*@*.other.example").status == 0  # which names, the join will show


def test_a_ca_issues_for_private_names_unless_told_otherwise(trionode_command: Command, tmp_path: Path) -> None:
    """Names and addresses that no public network has; OpenSSL believes them, and every name after a loud word."""
    said = trionode_command("pki", "init", "--json").document
    assert (said["permitted"], said["notes"]) == ([*PRIVATE_NAMES], [])
    private = ("alpha@localhost", "beta@host-b.cluster.internal", "gamma@[::1]", "10.1.2.3", "localhost")
    for name in private:
        assert trionode_command("pki", "issue", name).status == 0
        assert trionode_command("check", name).status == 0
    files = [f"pki/{name}.pem" for name in private]
    openssl = ["openssl", "verify", "-x509_strict", "-CAfile", "pki/ca.pem", "-untrusted", "pki/intermediate.pem"]
    found = subprocess.run([*openssl, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.stdout.count(": OK\n") == len(files), found
    for name in ("alpha@host.trionode.org", "8.8.8.8", "alpha@[2600::1]", "single-label"):
        trionode_command("pki", "issue", name).is_one_line("--permit", status=2)
    said = trionode_command("pki", "init", "--force", "--permit-any")
    assert "issues for any name" in said.out
    assert "note: the CA may issue for any name: who has ca.key can pose as any server" in said.out
    assert trionode_command("pki", "issue", "alpha@host.trionode.org").status == 0


def test_tokens(pki: Command, tmp_path: Path) -> None:
    """A token alone on a line, for a name or a glob; its secret is nowhere in the directory."""
    printed = pki("pki", "token", "beta@localhost", "--ttl", "10m").out
    token = JoinToken.parse(printed)
    assert (token.names, printed.count("\n")) == ("beta@localhost", 1)
    assert token.ca_fingerprint == CAPool.load(tmp_path / "pki/ca.pem").certificates[0].fingerprint(SHA256()).hex()
    journal = (tmp_path / "pki/journal.jsonl").read_text()
    assert token.digest in journal
    assert printed.split(".")[1] not in journal
    said = pki("pki", "token", "worker-*@*.example", "--json").document
    assert said["names"] == JoinToken.parse(said["token"]).names == "worker-*@*.example"
    pki("pki", "token", "be ta@localhost").is_one_line("node name", status=2)
    pki("pki", "token", "beta@localhost", "--pki", "x").is_one_line("there is no CA in x", status=3)
    (tmp_path / "pki/journal.jsonl").write_text("not a line\n")
    pki("pki", "token", "beta@localhost").is_one_line("line 1 of pki/journal.jsonl is damaged", status=3)


def test_a_revocation_outlives_its_list(pki: Command, tmp_path: Path) -> None:
    """Whoever loses ca.crl has it made again from the journal."""
    pki("pki", "revoke", "alpha@localhost", "--reason", "key-compromise")
    (tmp_path / "pki/ca.crl").unlink()
    assert "1 revoked" in pki("pki", "revoke").out
    assert [len(crl) for crl in CRLSet.load(tmp_path / "pki/ca.crl").lists] == [1, 0]
    assert pki("check", "alpha@localhost").status == 1


def test_a_roll_over(pki: Command, tmp_path: Path) -> None:
    """Three steps, each of which says which is the next; what makes no sense is one line."""
    old = CAPool.load(tmp_path / "pki/ca.pem")
    pki("pki", "roll", "switch").is_one_line("no roll-over was begun", status=3)
    pki("pki", "roll", "retire").is_one_line("there is no CA to retire", status=3)
    assert "trionode pki roll switch" in pki("pki", "roll", "begin").out
    pki("pki", "roll", "begin").is_one_line("a roll-over is under way", status=3)
    assert "trionode pki roll retire" in pki("pki", "roll", "switch").out
    new = CAPool.load(tmp_path / "pki/ca.pem")
    assert new != old
    assert CAPool.load(tmp_path / "pki/old.pem") == old
    assert pki("pki", "issue", "beta@localhost").status == 0
    assert pki("check", "beta@localhost").status == 0
    assert len(pki("pki", "roll", "retire", "--json").document["roots"]) == 1
    pki("pki", "roll", "begin", "--permit", "no/host").is_one_line("neither a host", status=2)


def stopped(source: Path, target: Path) -> Path:
    """In the place of `Path.replace`: the program ends where the CA's key is the new one, its certificate the old."""
    if target.name == "intermediate.pem":
        raise KeyboardInterrupt
    return Path(shutil.move(source, target))


@pytest.mark.parametrize("arguments", [("roll", "switch"), ("issue", "beta@localhost"), ("token", "beta@localhost")])
def test_an_interrupted_switch(arguments: tuple[str, ...], pki: Command, tmp_path: Path) -> None:
    """Each command goes on with the new CA, and doing it again finishes it."""
    assert pki("pki", "roll", "begin").status == 0
    kept = PKIDirectory(tmp_path / "pki")
    with patch.object(Path, "replace", stopped), pytest.raises(KeyboardInterrupt):
        kept.switch()
    with pytest.raises(CertificateError):
        CertificateAuthority.load(tmp_path / "pki")
    early = pki("pki", "roll", "retire")
    assert (early.status, "the switch in" in early.err) == (3, True)
    assert pki("pki", *arguments).status == 0
    assert pki("pki", "roll", "switch").status == 0
    assert pki("pki", "issue", "--force", "beta@localhost").status == 0
    assert pki("check", "beta@localhost").status == 0


# revoke -------------------------------------------------------------------------------------------------------------


def test_revoked_stays_revoked(pki: Command, tmp_path: Path) -> None:
    """Each list has what was on the one before; revoking nothing renews it."""
    pki("pki", "issue", "beta@localhost")
    assert pki("pki", "revoke", "alpha@localhost", "--json").document["revoked"] != []
    assert pki("pki", "revoke", "beta@localhost").status == 0
    assert "2 revoked" in pki("pki", "revoke", "--lifetime", "30d").out
    crls = CRLSet.load(tmp_path / "pki/ca.crl")
    for name in ("alpha@localhost", "beta@localhost"):
        leaf = KeyPair.load(tmp_path / f"pki/{name}.pem", tmp_path / f"pki/{name}-key.pem").certificate
        assert crls.listed(leaf) is not None
    assert pki("check", "alpha@localhost").status == 1
    shown = pki("pki", "show", "ca.crl")
    assert "revoked  2" in shown.out
    assert len(pki("pki", "show", "ca.crl", "--json").document[0]["revoked"]) == 2


def test_what_another_ca_issued_cannot_be_revoked(pki: Command, tmp_path: Path) -> None:
    """Nor can a CA revoke whose root's list nobody can sign."""
    stranger = CertificateAuthority.create(intermediate=True)
    write_key_pair(stranger.issue("localhost"), tmp_path / "c.pem", tmp_path / "k.pem")
    pki("pki", "revoke", "c.pem").is_one_line("did not issue it", status=3)
    stranger.save(tmp_path / "other")
    pki("pki", "revoke", "c.pem", "--pki", "other").is_one_line("issues through an intermediate", status=3)
