"""A CA that is replaced by another: what goes on meanwhile, and what is left when a step is interrupted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from cryptography import x509

from csr import request
from moving_clock import Clock
from pki_directory import Killed, refused
from trionode.pki import CertificateAuthority, PKIDirectory, RequestRefusal
from trionode.pki._constraints import permitted_by

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def clock() -> Clock:
    """A time that tests move."""
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> PKIDirectory:
    """A directory."""
    return PKIDirectory.create(tmp_path / "pki", clock=clock)


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


@pytest.mark.parametrize("steps", [("begin_roll_over",), ("begin_roll_over", "switch")])
def test_a_ca_that_is_made_anew_ends_a_roll_over(steps: tuple[str, ...], ca: PKIDirectory, tmp_path: Path) -> None:
    """Neither the CA that was to come nor the one that was is trusted any more."""
    for step in steps:
        getattr(ca, step)()
    again = PKIDirectory.create(tmp_path / "pki", clock=ca.clock)
    assert ca.authority.certificate == again.authority.certificate
    assert set(ca.roots) == set(ca.authority.pool)
    with pytest.raises(FileNotFoundError):
        ca.retire()
    ca.begin_roll_over()
    assert len(ca.roots.certificates) == 2


def test_constraints_of_others(tmp_path: Path) -> None:
    """They are not copied in part: the successor of such a CA has to be told."""
    theirs = x509.NameConstraints(permitted_subtrees=[x509.RFC822Name("example")], excluded_subtrees=None)
    root = CertificateAuthority.create(subordinates=True)
    with patch("trionode.pki._authority.name_constraints", return_value=theirs):
        root.subordinate().save(tmp_path)
    with pytest.raises(ValueError, match="say what is permitted"):
        PKIDirectory(tmp_path).begin_roll_over()


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
        ca = PKIDirectory.create(folder, clock=clock)
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


def test_retiring_does_not_undo_a_switch_that_was_killed(tmp_path: Path, clock: Clock) -> None:
    """At whichever step that was: it is refused until the switch is done, and the directory stays as good as it was."""
    for count in range(100):
        folder = tmp_path / str(count)
        ca = PKIDirectory.create(folder, clock=clock)
        leaf = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
        ca.begin_roll_over()
        with pytest.MonkeyPatch.context() as patched:
            steps = Steps(count, patched)
            with suppress(Killed):
                ca.switch()
        again = PKIDirectory(folder, clock=clock)
        with suppress(FileNotFoundError, FileExistsError):  # there is nothing to retire yet, or the switch is not done
            again.retire()
        leaf = PKIDirectory(folder, clock=clock).renew(request(), leaf)[0]
        with suppress(FileNotFoundError):  # it was done
            again.switch()
        again.renew(request(), leaf)
        if steps.left >= 0:
            break
    assert count > 3
