"""What a CA remembers when it is killed, when the disk is full, and when its journal is damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from csr import request
from moving_clock import Clock
from pki_directory import Killed, entries, refused
from trionode import CertificateError
from trionode.pki import CertificateAuthority, JoinToken, PKIDirectory, RequestRefusal

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509


@pytest.fixture
def clock() -> Clock:
    """A time that tests move."""
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> PKIDirectory:
    """A directory."""
    return PKIDirectory.create(tmp_path / "pki", clock=clock)


class Life:
    """What a CA does until it is killed, and what it had handed out by then."""

    def __init__(self, ca: PKIDirectory) -> None:
        self.ca = ca
        self.taken: list[JoinToken] = []
        self.issued: list[x509.Certificate] = []

    def run(self) -> None:
        """Five lines of the journal: two tokens, two certificates, one revocation."""
        for name in ("alpha@localhost", "beta@localhost"):
            token = self.ca.make_token(name)
            self.issued.append(self.ca.enrol(request(), token)[0])
            self.taken.append(token)
        self.ca.revoke(self.issued[0])


@pytest.mark.parametrize("kind", ["before", "half", "after", "sync"])
@pytest.mark.parametrize("step", range(5))
def test_killed_at_every_write(
    step: int, kind: str, ca: PKIDirectory, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, in the middle of and after each write, and before each flush: nothing is used twice, nothing is lost."""
    real_write = os.pwrite
    count = {"write": 0, "sync": 0}

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        count["write"] += 1
        if count["write"] == step + 1 and kind != "sync":
            part = {"before": 0, "half": len(data) // 2, "after": len(data)}[kind]
            if part:
                real_write(descriptor, data[:part], offset)
            raise Killed
        return real_write(descriptor, data, offset)

    def fsync(_: int) -> None:
        count["sync"] += 1
        if count["sync"] == step + 1 and kind == "sync":
            raise Killed

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    life = Life(ca)
    with pytest.raises(Killed):
        life.run()
    monkeypatch.undo()
    again = PKIDirectory(tmp_path / "pki", clock=clock)  # a new process
    for token in life.taken:
        refused(RequestRefusal.BAD_TOKEN, again.enrol, request(), token)
    on_record = kind in ("after", "sync")
    lists = again.sign_lists()
    assert (len(lists.lists[0]) == 1) is (step == 4 and on_record)
    assert again.enrol(request(), again.make_token("alpha@localhost"))
    serials = [each["serial"] for each in entries(tmp_path) if each["event"] == "issued"]
    assert len(set(serials)) == len(serials)
    assert {f"{leaf.serial_number:x}" for leaf in life.issued} <= set(serials)


def test_a_full_disk(ca: PKIDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is issued, nothing is taken, and no part of a line stays."""
    token = ca.make_token("alpha@localhost")
    before = (tmp_path / "pki/journal.jsonl").read_bytes()

    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        ca.enrol(request(), token)
    monkeypatch.undo()
    assert (tmp_path / "pki/journal.jsonl").read_bytes() == before
    assert ca.enrol(request(), token)


ISSUER = """
import sys
from csr import request
from trionode.pki import PKIDirectory
ca = PKIDirectory(sys.argv[1])
while True:
    token = ca.make_token("alpha@localhost")
    print(token.reveal(), ca.enrol(request(), token)[0].serial_number, flush=True)
"""


def test_killed_in_earnest(tmp_path: Path) -> None:
    """SIGKILL, while it issues as fast as it can: what was handed out is on record, and no token is good again."""
    CertificateAuthority.create().save(tmp_path / "pki")
    process = subprocess.Popen(
        [sys.executable, "-c", ISSUER, str(tmp_path / "pki")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    lines += [line for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    ca = PKIDirectory(tmp_path / "pki")
    for line in lines:
        token = JoinToken.parse(line.split()[0])
        refused(RequestRefusal.BAD_TOKEN, ca.enrol, request(), token)
    ca.enrol(request(), ca.make_token("alpha@localhost"))
    serials = [int(each["serial"], 16) for each in entries(tmp_path) if each["event"] == "issued"]
    assert {int(line.split()[1]) for line in lines} <= set(serials)
    assert len(set(serials)) == len(serials)


def test_a_damaged_journal(ca: PKIDirectory, tmp_path: Path) -> None:
    """Nothing is issued until someone has looked at it; the line is named."""
    token = ca.make_token("alpha@localhost")
    file = tmp_path / "pki/journal.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"event": "issued", "at": 7}\n')
    with pytest.raises(CertificateError, match=r"line 2 of .*journal.jsonl is damaged"):
        ca.enrol(request(), token)
    file.write_bytes(whole + b'{"event": "iss')
    assert ca.enrol(request(), token)
