"""A CA with a memory: tokens, renewals, revocations and their lists."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from csr import P256, names, request
from moving_clock import Clock
from pki_directory import Killed, entries, refused
from trionode import CertificateError
from trionode._credentials.crl import next_update
from trionode._identity.certificate import fingerprint
from trionode.pki import CertificateAuthority, JoinToken, PKIDirectory, RequestRefusal, RequestRefusedError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clock() -> Clock:
    """A time that tests move."""
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> PKIDirectory:
    """A directory."""
    return PKIDirectory.create(tmp_path / "pki", clock=clock)


# What it may issue for ----------------------------------------------------------------------------------------------


def test_names_outside_are_refused_early(ca: PKIDirectory) -> None:
    """No token is made for them, and none is taken by who chooses one."""
    with pytest.raises(ValueError, match=r"may not issue for trionode\.org.*among what is permitted"):
        ca.make_token("alpha@trionode.org")
    token = ca.make_token("alpha@*")
    refused(RequestRefusal.NOT_ALLOWED, ca.enrol, request(), token, name="alpha@trionode.org")
    assert ca.enrol(request(), token, name="alpha@localhost")


@pytest.mark.parametrize("permitted", [(), ("*", "localhost")])
def test_what_is_no_constraint(permitted: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing means nothing, and everything is said alone."""
    with pytest.raises(ValueError, match="alone, for everything"):
        PKIDirectory.create(tmp_path / "pki", permitted=permitted)


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
    foreign = PKIDirectory.create(tmp_path / "other", clock=clock).make_token("alpha@localhost")
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


def test_a_certificate_renews_under_its_own_names(ca: PKIDirectory, clock: Clock, tmp_path: Path) -> None:
    """And the next one renews in turn."""
    first = ca.enrol(request(), ca.make_token("alpha@localhost"))[0]
    second = ca.renew(request(), first, lifetime=timedelta(hours=3))[0]
    assert second.not_valid_after_utc == clock.now + timedelta(hours=3)
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


# Revocation ---------------------------------------------------------------------------------------------------------


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
