"""A CA with a memory: tokens, renewals, revocations, roll-overs; and what is left of them when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from cryptography import x509

from csr import P256, names, request
from specimens import NOW
from trionode import CertificateError
from trionode._credentials.crl import next_update
from trionode._identity.certificate import fingerprint
from trionode.pki import CertificateAuthority, JoinToken, PKIDirectory, RequestRefusal, RequestRefusedError
from trionode.pki._constraints import permitted_by

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A time that tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        """It."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A time that tests move."""
    return Clock()


def make(folder: Path, clock: Clock) -> PKIDirectory:
    """A directory with a root and an intermediate."""
    return PKIDirectory.create(folder, clock=clock)


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> PKIDirectory:
    """A directory."""
    return make(tmp_path / "pki", clock)


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the journal has."""
    return [json.loads(line) for line in (folder / "pki/journal.jsonl").read_text().splitlines()]


def refused(reason: RequestRefusal, call: Callable[..., object], *args: object, **more: object) -> str:
    """Insist that it is, for this reason; the text."""
    with pytest.raises(RequestRefusedError) as caught:
        call(*args, **more)
    assert caught.value.reason is reason
    return str(caught.value)


# What it may issue for ----------------------------------------------------------------------------------------------


def test_names_outside_are_refused_early(ca: PKIDirectory) -> None:
    """No token is made for them, and none is taken by who chooses one."""
    with pytest.raises(ValueError, match=r"may not issue for trionode\.org.*among what is permitted"):
        ca.make_token("alpha@trionode.org")
    token = ca.make_token("alpha@*")
    refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), token, name="alpha@trionode.org")
    assert ca.enrol(request(), token, name="alpha@localhost")


@pytest.mark.parametrize("permitted", [("trionode.org", "10.0.0.0/8"), ("192.0.2.1",), ("trionode.org",), ("*",)])
def test_a_successor_may_issue_for_the_same(permitted: tuple[str, ...], tmp_path: Path, clock: Clock) -> None:
    """Unless something else is said."""
    ca = PKIDirectory.create(tmp_path / "pki", permitted=permitted, clock=clock)
    before = permitted_by(ca.authority.issuer)
    ca.begin_roll_over()
    ca.switch()
    assert permitted_by(ca.authority.issuer) == before
    assert set(permitted_by(ca.authority.issuer)) <= {*permitted, "192.0.2.1/32"}
    ca.retire()
    ca.begin_roll_over(permitted=["other.example"])
    ca.switch()
    with pytest.raises(ValueError, match=r"other\.example alone"):
        ca.authority.issue("alpha@localhost")


@pytest.mark.parametrize("permitted", [(), ("*", "localhost")])
def test_what_is_no_constraint(permitted: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing means nothing, and everything is said alone."""
    with pytest.raises(ValueError, match="alone, for everything"):
        PKIDirectory.create(tmp_path / "pki", permitted=permitted)


def test_constraints_of_others(tmp_path: Path) -> None:
    """They are not copied in part: the successor of such a CA has to be told."""
    theirs = x509.NameConstraints(permitted_subtrees=[x509.RFC822Name("example")], excluded_subtrees=None)
    root = CertificateAuthority.create(subordinates=True)
    with patch("trionode.pki._authority.name_constraints", return_value=theirs):
        root.subordinate().save(tmp_path)
    with pytest.raises(ValueError, match="say what is permitted"):
        PKIDirectory(tmp_path).begin_roll_over()


# Tokens -------------------------------------------------------------------------------------------------------------


def test_a_token_is_good_once(ca: PKIDirectory, tmp_path: Path) -> None:
    """And on record, with who took it, when, and for what."""
    token = ca.make_token("alpha@localhost")
    leaf = ca.enrol(request(), JoinToken.parse(token.reveal()), address="192.0.2.1")[0]
    assert "was used" in refused(RequestRefusal.BAD_TOKEN, ca.enrol, request(), token)
    made, issued = entries(tmp_path)
    assert (made["event"], made["token"], made["names"]) == ("token", token.digest, ["alpha@localhost"])
    assert (issued["event"], issued["token"], issued["address"]) == ("issued", token.digest, "192.0.2.1")
    assert (int(issued["serial"], 16), issued["fingerprint"]) == (leaf.serial_number, fingerprint(leaf))
    assert (tmp_path / "pki/journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_is_refused_takes_no_token(ca: PKIDirectory) -> None:
    """A request that is not signed leaves it as it was."""
    token = ca.make_token("alpha@localhost")
    refused(RequestRefusal.BAD_REQUEST, ca.enrol, request(P256, names("beta.example")), token)
    refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), token, name="beta@localhost")
    assert ca.enrol(request(), token)


def test_tokens_that_are_not_good(ca: PKIDirectory, clock: Clock, tmp_path: Path) -> None:
    """Guessed, foreign, expired, for others, for none in particular."""
    token = ca.make_token("alpha@localhost", lifetime=timedelta(minutes=10))
    guessed = JoinToken(bytes(32), token.ca_fingerprint, "alpha@localhost")
    foreign = make(tmp_path / "other", clock).make_token("alpha@localhost")
    for each in (guessed, foreign):
        refused(RequestRefusal.BAD_TOKEN, ca.enrol, request(), each)
    # What the holder of a token says of its names counts for nothing.
    forged = JoinToken(token._secret, token.ca_fingerprint, "*")
    refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), forged, name="beta@localhost")
    pattern = ca.make_token("worker-*@*.example")
    assert "which name?" in refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), pattern)
    refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), pattern, name="boss@a.example")
    assert ca.enrol(request(), pattern, name="worker-1@a.example")
    clock.now += timedelta(minutes=10)
    refused(RequestRefusal.BAD_TOKEN, ca.enrol, request(), token)
    with pytest.raises(ValueError, match="positive"):
        ca.make_token("alpha@localhost", lifetime=timedelta())


def test_tokens_as_text(ca: PKIDirectory) -> None:
    """There and back; nothing else is one; the secret is in no `repr`."""
    token = ca.make_token("alpha@localhost")
    text = token.reveal()
    again = JoinToken.parse(f" {text}\n")
    assert (again.digest, again.names, again.ca_fingerprint) == (token.digest, token.names, token.ca_fingerprint)
    assert text.split(".")[1] not in repr(token)
    for wrong in ("", "tn1", text[:-3].rpartition(".")[0], text.replace("tn1", "tn2"), f"{text}.x", text + "!"):
        with pytest.raises(ValueError, match="no join token") as caught:
            JoinToken.parse(wrong)
        assert text.split(".")[1] not in str(caught.value)


def test_one_of_many_takes_a_token(ca: PKIDirectory) -> None:
    """Threads that race for it: one certificate."""
    token, won = ca.make_token("alpha@localhost"), []

    def take() -> None:
        with suppress(RequestRefusedError):
            won.append(ca.enrol(request(), token))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


# Renewal ------------------------------------------------------------------------------------------------------------


def test_a_certificate_renews_under_its_own_names(ca: PKIDirectory, tmp_path: Path) -> None:
    """And the next one renews in turn."""
    first = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    second = ca.renew(request(), first, lifetime=timedelta(hours=3))[0]
    assert second.not_valid_after_utc == NOW + timedelta(hours=3)
    sans = x509.SubjectAlternativeName
    assert first.extensions.get_extension_for_class(sans) == second.extensions.get_extension_for_class(sans)
    assert int(entries(tmp_path)[-1]["renews"], 16) == first.serial_number
    assert ca.renew(request(), second)
    refused(RequestRefusal.BAD_REQUEST, ca.renew, request(P256, names("beta.example")), second)


def test_certificates_that_do_not_renew(ca: PKIDirectory, clock: Clock, tmp_path: Path) -> None:
    """Unknown, another CA's with the same serial number, expired, revoked, denied by name and by number."""
    leaf = ca.enrol(request(), ca.make_token("alpha@localhost"), lifetime=timedelta(hours=1))[0]
    unknown = ca.authority.issue("alpha@localhost").certificate
    foreign = CertificateAuthority.create(clock=clock).sign(
        request(), "alpha@localhost", serial_number=leaf.serial_number
    )[0]
    for each in (unknown, foreign):
        refused(RequestRefusal.UNKNOWN, ca.renew, request(), each)
    ca.record(unknown, "alpha@localhost")
    assert ca.renew(request(), unknown)
    for line in ("alpha@*  # lost", "LOCALHOST", f"{leaf.serial_number:X}"):
        (tmp_path / "pki/denied").write_text(f"# those that get none\n\n{line}\n")
        refused(RequestRefusal.DENIED, ca.renew, request(), leaf)
    refused_token = ca.make_token("alpha@localhost")
    (tmp_path / "pki/denied").write_text("alpha@localhost\n")
    refused(RequestRefusal.DENIED, ca.enrol, request(), refused_token)
    (tmp_path / "pki/denied").unlink()
    assert ca.renew(request(), leaf)
    clock.now += timedelta(hours=1)
    refused(RequestRefusal.UNKNOWN, ca.renew, request(), leaf)


def test_a_list_of_denied_names_that_cannot_be_read(ca: PKIDirectory, tmp_path: Path) -> None:
    """Issues nothing, rather than to those who are meant; it says which line it is."""
    leaf = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    for line in ("alpha@localhost,", "alpha beta", "@localhost", "alpha@local host"):
        (tmp_path / "pki/denied").write_text(f"# those that get none\n{line}\n")
        with pytest.raises(CertificateError, match=r"line 2 of .*denied is neither a name, a glob"):
            ca.renew(request(), leaf)
        with pytest.raises(CertificateError, match="not known who is denied"):
            ca.enrol(request(), ca.make_token("beta@localhost"))
    number = f"{leaf.serial_number:040X}"
    (tmp_path / "pki/denied").write_text(":".join(number[at : at + 2] for at in range(0, 40, 2)))
    refused(RequestRefusal.DENIED, ca.renew, request(), leaf)
    assert ca.enrol(request(), ca.make_token("alpha@localhost"))


def test_what_was_revoked_does_not_renew(ca: PKIDirectory) -> None:
    """At once, whether the list was signed or not; and renews again when it was a mistake."""
    leaf = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    ca.revoke(leaf, reason=x509.ReasonFlags.key_compromise)
    refused(RequestRefusal.REVOKED, ca.renew, request(), leaf)
    listed = ca.sign_lists().listed(leaf)
    assert listed is not None
    ca.release(leaf)
    refused(RequestRefusal.REVOKED, ca.renew, request(), leaf)
    assert ca.sign_lists(released=[leaf]).listed(leaf) is None
    assert ca.renew(request(), leaf)


def test_revoking_what_programs_keep_to_themselves(ca: PKIDirectory, clock: Clock) -> None:
    """By name: all that was issued for it, renewals by whoever has stolen one included; or by serial number."""
    first = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    stolen = ca.renew(request(), first)[0]
    other, third = (ca.enrol(request(), ca.make_token(name))[0] for name in ("beta@localhost", "gamma@localhost"))
    assert set(ca.revoke("alpha@LOCALHOST")) == {first.serial_number, stolen.serial_number}
    assert set(ca.revoke("alpha@localhost")) == {first.serial_number, stolen.serial_number}
    assert ca.revoke(f"{other.serial_number:040X}", third) == (other.serial_number, third.serial_number)
    for each in (first, stolen, other, third):
        refused(RequestRefusal.REVOKED, ca.renew, request(), each)
        assert ca.refresh_lists().listed(each)
    for name in ("nobody@localhost", "localhost", "no name", f"{7:x}"):
        with pytest.raises(LookupError, match="nothing that has not ended is on record"):
            ca.revoke(third, name)
    clock.now += timedelta(days=2)
    with pytest.raises(LookupError):
        ca.revoke("alpha@localhost")


def test_lists_are_refreshed_before_they_end(ca: PKIDirectory, clock: Clock) -> None:
    """At half of their lifetime, and at once where something was revoked; what would last for longer, at once, too."""
    week = timedelta(days=7)
    first = ca.refresh_lists(lifetime=week)
    assert next_update(first.lists[0]) == clock.now + week
    clock.now += timedelta(days=3)
    assert ca.refresh_lists(lifetime=week) == first
    leaf = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    ca.revoke(leaf)
    second = ca.refresh_lists(lifetime=week)
    assert second.listed(leaf)
    clock.now += timedelta(days=4)
    third = ca.refresh_lists(lifetime=week)
    assert third.listed(leaf)
    assert next_update(third.lists[0]) == clock.now + week


# Roll-over ----------------------------------------------------------------------------------------------------------


def test_a_ca_rolls_over(ca: PKIDirectory, tmp_path: Path, clock: Clock) -> None:
    """Overlap, switch, retire; what the old one issued renews under the new one, and what it revoked stays revoked."""
    old = ca.authority
    leaf, lost = (ca.enrol(request(), ca.make_token(name))[0] for name in ("alpha@localhost", "beta@localhost"))
    ca.revoke(lost)
    ca.begin_roll_over()
    new = CertificateAuthority.load(tmp_path / "pki/next", clock=clock)
    assert {crl.issuer for crl in ca.refresh_lists()} >= {new.issuer.subject, new.certificate.subject}
    assert set(ca.roots) == {old.certificate, new.certificate}
    assert ca.authority.certificate == old.certificate
    with pytest.raises(FileExistsError):
        ca.begin_roll_over()
    ca.switch()
    assert set(ca.roots) == {old.certificate, new.certificate}
    renewed = ca.renew(request(), leaf)
    renewed[0].verify_directly_issued_by(new.issuer)
    refused(RequestRefusal.REVOKED, ca.renew, request(), lost)
    assert {crl.issuer for crl in ca.refresh_lists()} == {
        each.subject for ca_ in (old, new) for each in (ca_.issuer, ca_.certificate)
    }
    assert ca.refresh_lists().listed(lost)
    ca.retire()
    assert set(ca.roots) == {new.certificate}
    with pytest.raises(FileNotFoundError):
        ca.switch()
    assert not (tmp_path / "pki/next").exists()


# Killed -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The program ends here."""


class Life:
    """What a CA does until it is killed, and what it had handed out by then."""

    def __init__(self, ca: PKIDirectory) -> None:
        self.ca = ca
        self.taken: list[JoinToken] = []
        self.issued: list[x509.Certificate] = []
        self.revoked: list[x509.Certificate] = []

    def run(self) -> None:
        """Five lines of the journal: two tokens, two certificates, one revocation."""
        for name in ("alpha@localhost", "beta@localhost"):
            token = self.ca.make_token(name)
            self.issued.append(self.ca.enrol(request(), token)[0])
            self.taken.append(token)
        self.ca.revoke(self.issued[0])
        self.revoked.append(self.issued[0])


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


class Steps:
    """Counts what changes a directory's names, and ends the program at one of these."""

    def __init__(self, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = last
        self._remove = Path.unlink
        for name in ("replace", "rename", "unlink"):
            monkeypatch.setattr(Path, name, self._counted(getattr(Path, name)))
        monkeypatch.setattr("shutil.rmtree", self._rmtree)

    def step(self) -> None:
        """Another one."""
        self.left -= 1
        if self.left < 0:
            raise Killed

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Path, *args: Any, **more: Any) -> Any:
            if path.exists() and (path.suffix != ".tmp" or args):
                self.step()
            return real(path, *args, **more)

        return counted

    def _rmtree(self, folder: Path, **_: Any) -> None:
        for each in sorted(folder.iterdir()) if folder.exists() else ():
            self.step()
            self._remove(each)
        if folder.exists():
            folder.rmdir()


@pytest.mark.parametrize("task", ["begin_roll_over", "switch"])
def test_killed_at_every_step_of_a_roll_over(task: str, tmp_path: Path, clock: Clock) -> None:
    """It goes on with whichever CA it has then, knows what it issued and revoked, and is done by doing it again."""
    for count in range(100):
        folder = tmp_path / str(count)
        ca = make(folder, clock)
        first, lost = (ca.enrol(request(), ca.make_token(name))[0] for name in ("alpha@localhost", "beta@localhost"))
        ca.revoke(lost)
        if task == "switch":
            ca.begin_roll_over()
        with pytest.MonkeyPatch.context() as patched:
            steps = Steps(count, patched)
            with suppress(Killed):
                getattr(ca, task)()
        again = PKIDirectory(folder, clock=clock)
        second = again.renew(request(), first)[0]
        with suppress(FileExistsError):  # what was begun is begun
            getattr(again, task)()
        if task == "begin_roll_over":
            again.switch()
        assert len(again.roots.certificates) == 2
        assert again.refresh_lists().listed(lost)
        again.retire()
        third = again.renew(request(), second)[0]
        third.verify_directly_issued_by(CertificateAuthority.load(folder, clock=clock).issuer)
        refused(RequestRefusal.REVOKED, again.renew, request(), lost)
        assert not [*folder.glob("next*")]
        if steps.left >= 0:
            break
    assert count > 3


def test_a_list_that_was_not_written_is_made_again(
    ca: PKIDirectory, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the revocation and its list: the next program signs it."""
    leaf = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    ca.refresh_lists()
    ca.revoke(leaf)

    def replace(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("trionode.pki._revocation.write_crl_set", replace)
    with pytest.raises(Killed):
        ca.sign_lists()
    monkeypatch.undo()
    assert PKIDirectory(tmp_path / "pki", clock=clock).refresh_lists().listed(leaf)


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
