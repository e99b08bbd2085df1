"""`trionode check`: what is wrong with a certificate, and what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

    Command = Callable[..., Said]


def test_a_good_certificate(pki: Command) -> None:
    """Nothing is wrong, status 0, in words and as JSON."""
    said = pki("check", "alpha@localhost")
    assert (said.status, said.out.splitlines()[-1]) == (0, "nothing is wrong")
    assert pki("check", "alpha@localhost", "--json").document["ok"] is True


def test_each_finding_has_its_remedy(pki: Command, tmp_path: Path) -> None:
    """A certificate of another CA for another name: two errors, each with an arrow to what to do; status 1."""
    write_key_pair(CertificateAuthority.create().issue("beta@localhost"), tmp_path / "c.pem", tmp_path / "k.pem")
    arguments = ("check", "--cert", "c.pem", "--key", "k.pem", "--ca", "pki/ca.pem", "alpha@localhost")
    said = pki(*arguments)
    assert said.status == 1
    assert said.out.count("→") == 2
    assert said.out.splitlines()[-1] == "2 errors, 0 warnings"
    document = pki(*arguments, "--json")
    assert document.status == 1
    found = json.loads(document.out)["findings"]
    assert [each["code"] for each in found] == ["name_mismatch", "unknown_ca"]
    assert all(each["remedy"] for each in found)


def test_warnings_count_where_they_are_to(pki: Command, tmp_path: Path) -> None:
    """A certificate at its end is a warning: status 0, and 1 with `--strict`."""
    now = datetime.now(UTC)
    soon = CertificateAuthority.load(tmp_path / "pki").issue(
        "alpha@localhost", not_before=now - timedelta(minutes=60), not_after=now + timedelta(minutes=2)
    )
    write_key_pair(soon, tmp_path / "pki/alpha@localhost.pem", tmp_path / "pki/alpha@localhost-key.pem")
    said = pki("check", "alpha@localhost")
    assert (said.status, said.out.splitlines()[-1]) == (0, "0 errors, 1 warning")
    assert pki("check", "--strict", "alpha@localhost").status == 1


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ((), "no certificate was given: use --cert and --key", 2),
        (("--key", "pki/ca.key"), "--key was given without --cert", 2),
        (("gamma@localhost",), "make them with: trionode pki issue gamma@localhost", 3),
        (("gamma@localhost", "--pki", "x"), "trionode pki issue --pki x gamma@localhost", 3),
        (("@localhost",), "node name part", 2),
        (("--cert", "nowhere.pem"), "cannot read nowhere.pem: No such file or directory. Check the path", 3),
        (("--cert", "pki"), "cannot read pki: Is a directory", 3),
        (("--cert", "pki/alpha@localhost.pem"), "no PEM private key in pki/alpha@localhost.pem", 3),
        (("--cert", "pki/alpha@localhost-key.pem"), "are the two files swapped?", 3),
        (("--cert", "pki/alpha@localhost.pem", "--key", "pki/ca.key"), "does not belong to the leaf", 3),
        (("alpha@localhost", "--ca", "nowhere.pem"), "cannot read nowhere.pem", 3),
        (("alpha@localhost", "--crl", "pki/ca.pem"), "no CRL in pki/ca.pem", 3),
        (("--client-auth", "maybe"), "'maybe' is not one of", 2),
        (
            ("--cert", "both.pem", "--client-auth", "require-and-verify"),
            "--client-auth require-and-verify needs --ca or --client-ca",
            2,
        ),
    ],
)
def test_wrong_input_to_check(
    arguments: tuple[str, ...], words: str, status: int, pki: Command, tmp_path: Path
) -> None:
    """One line each, with the remedy."""
    folder = tmp_path / "pki"
    both = (folder / "alpha@localhost.pem").read_bytes() + (folder / "alpha@localhost-key.pem").read_bytes()
    (tmp_path / "both.pem").write_bytes(both)
    pki("check", *arguments).is_one_line(words, status=status)


def test_files_alone_are_enough(pki: Command, tmp_path: Path) -> None:
    """Without pools there is no word about them; one file may hold both; the pools may differ."""
    folder = tmp_path / "pki"
    both = (folder / "alpha@localhost.pem").read_bytes() + (folder / "alpha@localhost-key.pem").read_bytes()
    (tmp_path / "both.pem").write_bytes(both)
    assert pki("check", "--cert", "both.pem").status == 0
    write_ca_pool(CertificateAuthority.create().pool, tmp_path / "other.pem")
    said = pki("check", "--cert", "both.pem", "--client-ca", "pki/ca.pem", "--root-ca", "other.pem", "--json")
    assert [each["code"] for each in json.loads(said.out)["findings"]] == ["unknown_ca"]
