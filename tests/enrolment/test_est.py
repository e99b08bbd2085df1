"""EST, our client and our server: enrolment, renewal, roll-over, and what is refused."""

from __future__ import annotations

import base64
import re
import shutil
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from asgi_apps import body_of
from csr import P256, names, request
from est import Service, serving_est
from specimens import authority
from trionode import CAPool, CertAuthManager, CertificateError, ClientAuth, Follower, KeyPair, follow_source
from trionode._handshake.admission import Admission
from trionode._identity.names import SubjectNames
from trionode.enrolment import EnrolmentError, EnrolmentPolicy, EnrolmentReason, ESTSource
from trionode.enrolment._client import AnonymousManager, Exchange
from trionode.enrolment._limits import RateLimit, address_key
from trionode.enrolment._lists import Lists, _converse, serve_lists
from trionode.enrolment._wire import certificates_body
from trionode.http import HTTPTransport, serve_asgi
from trionode.pki import CertificateAuthority, JoinToken, PKIDirectory, parse_request, write_ca_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAME = "alpha@host-a.example"
DAY = timedelta(days=1)


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[Service]:
    """A service."""
    async with serving_est(tmp_path / "pki") as service:
        yield service


async def fails(source: ESTSource, reason: EnrolmentReason) -> str:
    """Insist that a reading does, for this reason; the text."""
    with pytest.raises(EnrolmentError) as caught:
        await source.read()
    assert caught.value.reason is reason
    return str(caught.value)


def trouble(follower: Follower) -> Exception | None:
    """What a follower says."""
    return follower.status.error


# The client ---------------------------------------------------------------------------------------------------------


async def test_a_certificate_for_a_token(est: Service) -> None:
    """For the name that the token is good for, with the chain that peers need, and what to trust."""
    source = est.source(NAME)
    found = await source.read()
    assert SubjectNames.of(found.key_pair.certificate).cover_host("host-a.example")
    assert found.key_pair.chain[1:] == (est.ca.authority.issuer,)
    assert found.root_cas == found.client_cas == est.ca.roots
    assert found.key_pair.certificate.not_valid_after_utc == est.clock.now + DAY
    assert await source.read() == found
    assert len(est.journal("issued")) == 1
    assert "token" not in repr(source).lower()


async def test_it_renews_when_it_is_time(est: Service) -> None:
    """By its present certificate, with a new key; at two thirds of the lifetime, less a little, at random."""
    draws = iter((0.0, 1.0, 0.5, *[0.5] * 50))
    source = est.source(NAME, draw=lambda: next(draws), trust_interval=1e6)
    first = await source.read()
    est.clock.forward(DAY * 0.66)
    assert (await source.read()).key_pair == first.key_pair
    est.clock.forward(DAY * 0.01)
    second = await source.read()
    assert second.key_pair.certificate.public_key() != first.key_pair.certificate.public_key()
    est.clock.forward(DAY * 0.57)
    third = await source.read()
    assert third.key_pair != second.key_pair
    renewed = [each.get("renews") for each in est.journal("issued")]
    serials = [f"{each.key_pair.certificate.serial_number:x}" for each in (first, second)]
    assert renewed == [None, *serials]


async def test_it_waits_for_what_is_due(est: Service) -> None:
    """As long as nothing is due, `wait_changed` waits; it returns at once where the caller has something else."""
    source = est.source(NAME)
    await source.wait_changed(None)
    first = await source.read()
    with trio.move_on_after(0.01) as scope:
        await source.wait_changed(first)
    assert scope.cancelled_caught
    est.clock.forward(DAY * 0.7)
    await source.wait_changed(first)
    second = await source.read()
    await source.wait_changed(first)
    with trio.move_on_after(0.01) as scope:
        await source.wait_changed(second)
    assert scope.cancelled_caught


async def test_a_ca_that_is_away_is_trouble_and_no_end(est: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The follower says so, once, with the time that is left; when the CA is back, it renews."""
    source = est.source(NAME)
    found = await source.read()
    manager = CertAuthManager(found.key_pair, root_cas=found.root_cas, client_cas=found.client_cas, clock=est.clock)
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, manager, source)
        est.stop()
        est.clock.forward(DAY * 0.8)
        for _ in range(3):
            with pytest.raises(EnrolmentError, match=r"ends in 4:4\d:\d\d .*cannot be reached"):
                await follower.reload()
        assert isinstance(trouble(follower), EnrolmentError)
        assert manager.generation == 1
        await est.start()
        assert await follower.reload() == 2
        assert trouble(follower) is None
        nursery.cancel_scope.cancel()
    assert "ends in 4:4" in caplog.text


async def test_it_backs_off(est: Service) -> None:
    """Not at once after a failure; sooner and sooner towards the end, never more seldom than four times in the rest."""
    source = est.source(NAME, draw=lambda: 1.0)
    await source.read()
    est.stop()
    est.clock.forward(DAY - timedelta(seconds=40))
    waits = []
    for _ in range(4):
        await fails(source, EnrolmentReason.UNREACHABLE)
        waits.append(source._schedule.wait())
    assert waits == pytest.approx([5, 10, 10, 10], abs=0.5)
    with trio.move_on_after(0.01) as scope:
        await source.wait_changed(None)
    assert scope.cancelled_caught


async def test_an_end_needs_a_new_token(est: Service) -> None:
    """A certificate that has ended renews nothing; it says what to do."""
    source = est.source(NAME)
    await source.read()
    est.clock.forward(DAY * 1.1)
    said = await fails(source, EnrolmentReason.NO_CREDENTIALS)
    assert "has ended" in said
    assert "new token" in said


async def test_another_ca_gets_nothing(est: Service, tmp_path: Path) -> None:
    """First contact: whoever does not have the CA of the token is sent no token."""
    async with serving_est(tmp_path / "other") as other:
        token = est.ca.make_token(NAME)
        stray = ESTSource(other.url, NAME, token=token, clock=est.clock)
        assert "Nothing was sent to it" in await fails(stray, EnrolmentReason.UNTRUSTED)
    assert (await est.source(NAME, token=token).read()).root_cas


async def test_an_impostor_in_between(est: Service, tmp_path: Path) -> None:
    """Has the CA's certificate, which is public, but no certificate by it: the second connection is not made."""
    async with serving_est(tmp_path / "other") as other:
        write_ca_pool(est.ca.roots, tmp_path / "other/old.pem")
        token = est.ca.make_token(NAME)
        stray = ESTSource(other.url, NAME, token=token, clock=est.clock)
        assert "is not trusted" in await fails(stray, EnrolmentReason.UNTRUSTED)
        assert other.journal("issued") == []
    assert (await est.source(NAME, token=token).read()).root_cas


async def test_an_existing_certificate(est: Service) -> None:
    """In place of a token: one that the CA has issued and noted."""
    pair = est.ca.authority.issue(NAME)
    est.ca.record(pair.certificate, NAME)
    found = await est.source(NAME, key_pair=pair, root_cas=est.ca.roots).read()
    assert found.key_pair.fingerprint != pair.fingerprint
    stranger = est.ca.authority.issue(NAME)
    said = await fails(est.source(NAME, key_pair=stranger, root_cas=est.ca.roots), EnrolmentReason.REFUSED)
    assert "keeps no record" in said


async def test_a_state_file_outlives_the_program(est: Service, tmp_path: Path) -> None:
    """Nobody else reads it; a damaged one is said to be."""
    file = tmp_path / "alpha.json"
    first = await est.source(NAME, state_file=file).read()
    assert file.stat().st_mode & 0o777 == 0o600
    again = ESTSource(est.url, NAME, state_file=file, clock=est.clock)
    second = await again.read()
    assert second.root_cas == first.root_cas
    assert est.journal("issued")[-1].get("renews") in (None, f"{first.key_pair.certificate.serial_number:x}")
    file.write_text("{}")
    with pytest.raises(CertificateError, match="is damaged; remove it"):
        await ESTSource(est.url, NAME, state_file=file).read()


async def test_what_was_issued_is_kept_whatever_fails_next(est: Service, tmp_path: Path) -> None:
    """A token is good once: its certificate is in the state file before anything else is asked for."""
    file = tmp_path / "alpha.json"
    (est.folder / "ca.crl").write_bytes(b"damaged")
    first = await est.source(NAME, state_file=file, revocation_lists=True).read()
    assert first.crls is None
    restarted = ESTSource(est.url, NAME, state_file=file, clock=est.clock)
    assert (await restarted.read()).key_pair == first.key_pair


async def test_a_state_file_that_cannot_be_written(est: Service, tmp_path: Path) -> None:
    """Costs no token; later a restart, not the certificate: that is given first, the trouble with the next reading."""
    token = est.ca.make_token(NAME)
    for place in ("missing/alpha.json", "file/alpha.json"):
        (tmp_path / "file").touch()
        with pytest.raises(FileNotFoundError):
            await est.source(NAME, state_file=tmp_path / place, token=token).read()
    source = est.source(NAME, state_file=tmp_path / "alpha.json", token=token)
    first = await source.read()
    (tmp_path / "alpha.json").unlink()
    (tmp_path / "alpha.json").mkdir()
    est.clock.forward(DAY * 0.7)
    second = await source.read()
    assert second.key_pair != first.key_pair
    with pytest.raises(IsADirectoryError):
        await source.read()
    assert len(est.journal("issued")) == 2
    with trio.move_on_after(0.05) as scope:
        await source.wait_changed(second)
    assert scope.cancelled_caught


@pytest.mark.parametrize("away", [timedelta(hours=1), DAY * 2])
async def test_a_new_token_counts_for_more_than_an_old_state_file(away: timedelta, tmp_path: Path) -> None:
    """The CA was made anew while the program was away: the token says which one is trusted."""
    file = tmp_path / "alpha.json"
    async with serving_est(tmp_path / "old") as old:
        await old.source(NAME, state_file=file).read()
        used = old.ca.make_token(NAME)
        await old.source(NAME, token=used).read()
    async with serving_est(tmp_path / "new") as new:
        new.clock.forward(away)
        stale = ESTSource(new.url, NAME, token=used, state_file=file, clock=new.clock)
        if away < DAY:
            assert (await stale.read()).root_cas == old.ca.roots  # what is kept is good, until it ends
        await fails(stale, EnrolmentReason.UNTRUSTED)
        source = new.source(NAME, state_file=file)
        found = await source.read()
        assert found.root_cas == new.ca.roots
        assert await source.read() == found
        assert len(new.journal("issued")) == 1
        assert (await ESTSource(new.url, NAME, state_file=file, clock=new.clock).read()).key_pair == found.key_pair


async def test_a_used_token_of_a_ca_that_has_gone_is_of_no_account(est: Service, tmp_path: Path) -> None:
    """It stays where it was, with each restart; what is in the state file counts."""
    file, token = tmp_path / "alpha.json", est.ca.make_token(NAME)
    first = await est.source(NAME, token=token, state_file=file).read()
    est.ca.begin_roll_over()
    est.clock.forward(DAY * 0.35)
    assert len((await est.source(NAME, token=token, state_file=file).read()).root_cas or ()) == 2
    est.ca.switch()
    await trio.sleep(1.2)  # the service looks at its directory once a second
    est.ca.retire()
    est.clock.forward(DAY * 0.35)
    last = await est.source(NAME, token=token, state_file=file).read()
    assert last.root_cas == est.ca.roots
    assert last.key_pair != first.key_pair


async def test_a_node_at_an_ipv6_address(est: Service) -> None:
    """Its name has colons, which are what separates user name and password."""
    found = await est.source("alpha@[fd00::7]").read()
    assert SubjectNames.of(found.key_pair.certificate).cover_host("fd00::7")


async def test_a_client_that_presents_its_certificate_alone(est: Service) -> None:
    """It was given no more than that (RFC 7030 section 4.2.3); so also by the CA that was."""
    pair = await issued(est)
    alone = KeyPair(pair.chain[:1], pair.private_key)
    for rolled_over in (False, True):
        if rolled_over:
            est.ca.begin_roll_over()
            est.ca.switch()
            await trio.sleep(1.2)  # the service looks at its directory once a second
        async with client(est, alone) as http:
            answer = await http.post("simplereenroll", content=body(request()))
            assert answer.status_code == 200, answer.text
    assert (len(est.ca.roots.certificates), len(est.ca.issuers.certificates)) == (2, 4)


async def test_a_ca_that_rolls_over(est: Service) -> None:
    """Overlap, then retire; in between, the certificate changes to the new CA by an ordinary renewal."""
    source = est.source(NAME, revocation_lists=True)
    old = (await source.read()).root_cas
    est.ca.begin_roll_over()
    following = CertificateAuthority.load(est.folder / "next", clock=est.clock)
    est.clock.forward(DAY * 0.35)
    both = (await source.read()).root_cas
    assert old is not None
    assert both == old | following.pool
    est.ca.switch()
    await trio.sleep(1.2)  # the service looks at its directory once a second
    est.clock.forward(DAY * 0.35)
    renewed = await source.read()
    assert renewed.key_pair.chain[1] == following.issuer
    assert renewed.crls is not None
    assert {each.issuer for each in renewed.crls} >= {following.issuer.subject}
    est.ca.retire()
    est.clock.forward(DAY * 0.35)
    assert (await source.read()).root_cas == following.pool


async def test_a_ca_that_changes_in_the_middle_of_a_renewal(est: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was asked for its certificates, before it issues: the chain is completed all the same."""
    source = est.source(NAME)
    await source.read()
    est.ca.begin_roll_over()
    est.clock.forward(DAY * 0.35)
    await source.read()
    ask = Exchange.ca_certificates

    async def then_switch(exchange: Exchange) -> list[x509.Certificate]:
        found = await ask(exchange)
        if (est.folder / "next").exists():
            est.ca.switch()
        return found

    monkeypatch.setattr(Exchange, "ca_certificates", then_switch)
    est.clock.forward(DAY * 0.35)
    renewed = (await source.read()).key_pair
    assert renewed.chain[1:] == (est.ca.authority.issuer,)
    renewed.chain[1].verify_directly_issued_by(est.ca.authority.certificate)


async def test_trust_is_given_although_the_renewal_failed(est: Service, tmp_path: Path) -> None:
    """What could be had counts; what could not is told with the next reading."""
    source = est.source(NAME)
    first = await source.read()
    est.ca.begin_roll_over()
    (tmp_path / "pki/denied").write_text(f"{NAME}\n")
    est.clock.forward(DAY * 0.8)
    second = await source.read()
    assert (second.key_pair, second.root_cas) == (first.key_pair, est.ca.roots)
    assert "denied" in await fails(source, EnrolmentReason.REFUSED)


ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "holds no certificates"),
    "no base64": (b"!!", "holds no certificates"),
    "no PKCS#7": (base64.encodebytes(bytes(100)), "holds no certificates"),
    "too much": (bytes(2 * 1024 * 1024), "more than 1048576 bytes"),
    "another version": (
        base64.encodebytes(
            base64.b64decode(certificates_body([authority().certificate])).replace(
                b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"
            )
        ),
        "holds no certificates",
    ),
    "another key's": (certificates_body([authority().issue(NAME).certificate]), "no certificate for the key"),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_that_is_none(what: str, ca: CertificateAuthority) -> None:
    """Of a server that is trusted, and not sound: one error, that says so."""
    content, words = ANSWERS[what]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        good = certificates_body(ca.pool) if scope["path"].endswith("/cacerts") else b""
        enrolling = scope["path"].endswith("/simpleenroll")
        status = 404 if scope["path"].endswith("/csrattrs") else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content if enrolling else good})

    async with trio.open_nursery() as nursery:
        manager = CertAuthManager(ca.issue("localhost"))
        [listener, *_] = await nursery.start(partial(serve_asgi, app, 0, host="127.0.0.1", cert_manager=manager))
        port = listener.socket.getsockname()[1]
        source = ESTSource(f"https://localhost:{port}", NAME, auth=("user", "password"), root_cas=ca.pool)
        assert words in await fails(source, EnrolmentReason.BAD_ANSWER)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://localhost"}, "https://HOST"),
        ({"url": "https://user:pass@localhost"}, "https://HOST"),
        ({"url": "https://[::1"}, "no URL"),
        ({"name": "no name"}, "name"),
        ({"token": "tn1.x"}, "no join token"),
        ({"renew_after": 1.0}, "a share from 0.2"),
        ({"trust_interval": 0}, "positive number of seconds"),
    ],
)
def test_arguments_that_are_none(arguments: dict[str, Any], words: str) -> None:
    """At once, before anything is sent."""
    given = {"url": "https://localhost", "name": NAME, **arguments}
    with pytest.raises(ValueError, match=words):
        ESTSource(given.pop("url"), given.pop("name"), **given)


# The server ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def client(est: Service, pair: KeyPair | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client, with a certificate or without."""
    manager = (
        AnonymousManager(est.ca.roots, clock=est.clock)
        if pair is None
        else CertAuthManager(pair, root_cas=est.ca.roots, clock=est.clock)
    )
    transport = HTTPTransport(cert_manager=manager)
    async with httpx.AsyncClient(transport=transport, base_url=f"{est.url}/.well-known/est/") as http:
        yield http


def body(asked: x509.CertificateSigningRequest) -> bytes:
    """As it goes over the wire."""
    return base64.encodebytes(asked.public_bytes(Encoding.DER))


async def issued(est: Service, name: str = NAME) -> KeyPair:
    """A certificate that the service has issued."""
    return (await est.source(name).read()).key_pair


ATTACKS: dict[str, tuple[int, str]] = {
    "used": (401, "was used"),
    "guessed": (401, "not known here"),
    "foreign": (401, "not known here"),
    "expired": (401, "has expired"),
    "another's": (403, "not good for the name"),
    "none": (401, "a join token is needed"),
    "no token": (401, "no join token"),
    "pattern without name": (403, "which name?"),
    "no request either": (401, "a join token is needed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_token_that_is_not_good(attack: str, est: Service, tmp_path: Path) -> None:
    """Nothing is issued, and the answer says why."""
    status, words = ATTACKS[attack]
    token, user = est.ca.make_token(NAME, lifetime=timedelta(minutes=10)), NAME
    text = token.reveal()
    match attack:
        case "used":
            await est.source(NAME, token=token).read()
        case "guessed":
            text = JoinToken(bytes(32), token.ca_fingerprint, NAME).reveal()
        case "foreign":
            CertificateAuthority.create().save(tmp_path / "other")
            from trionode.pki import PKIDirectory

            text = PKIDirectory(tmp_path / "other").make_token(NAME).reveal()
        case "expired":
            est.clock.forward(timedelta(minutes=11))
        case "another's":
            user = "beta@host-b.example"
        case "no token":
            text = "secret"
        case "pattern without name":
            text, user = est.ca.make_token("*@*.example").reveal(), ""
    before = len(est.journal("issued"))
    async with client(est) as http:
        more: dict[str, Any] = {} if words.startswith("a join token") else {"auth": (user, text)}
        content = b"" if attack == "no request either" else body(request())
        answer = await http.post("simpleenroll", content=content, **more)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert ("www-authenticate" in answer.headers) is (status == 401)
    assert len(est.journal("issued")) == before


BAD: dict[str, tuple[bytes, str]] = {
    "another name": (body(request(P256, names("beta.example"))), "the name beta.example"),
    "a CA": (body(request(P256, x509.BasicConstraints(ca=True, path_length=None))), "certificate of a CA"),
    "a weak key": (body(request(ec.generate_private_key(ec.SECP224R1()))), "on the curve"),
    "not base64": (b"!", "not base64"),
    "no request": (base64.encodebytes(b"hello"), "no certificate signing request"),
    "empty": (b"", "no certificate signing request"),
    "too long": (bytes(60_000), "at most"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_request_that_is_not_signed(what: str, est: Service) -> None:
    """With a good token, which is good still afterwards."""
    content, words = BAD[what]
    token = est.ca.make_token(NAME)
    async with client(est) as http:
        answer = await http.post("simpleenroll", content=content, auth=(NAME, token.reveal()))
        assert (answer.status_code, words in answer.text) == (413 if what == "too long" else 400, True), answer.text
        again = await http.post("simpleenroll", content=body(request()), auth=(NAME, token.reveal()))
        assert again.status_code == 200


async def test_a_request_that_was_relayed(est: Service) -> None:
    """Tied to one connection, as our client's are, it is nothing on another; and the token is not taken."""
    token = est.ca.make_token(NAME)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    tied = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, base64.b64encode(bytes(32))).sign(P256, SHA256())
    async with client(est) as http:
        answer = await http.post("simpleenroll", content=body(tied), auth=(NAME, token.reveal()))
    assert (answer.status_code, "it was relayed" in answer.text) == (400, True)
    assert (await est.source(NAME, token=token).read()).root_cas


async def test_our_requests_are_tied_to_their_connection(est: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the channel binding of its own, so that no other connection can carry it."""
    seen: list[bytes] = []

    def look(data: bytes) -> x509.CertificateSigningRequest:
        asked = parse_request(data)
        seen.append(asked.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value)
        return asked

    monkeypatch.setattr("trionode.enrolment._server.parse_request", look)
    source = est.source(NAME)
    await source.read()
    est.clock.forward(DAY * 0.7)
    await source.read()
    assert len(set(seen)) == len(seen) == 2
    assert {len(base64.b64decode(each)) for each in seen} == {32}


async def test_who_may_renew(est: Service) -> None:
    """The holder of the certificate: not without it, not once it was revoked or denied; not under another name."""
    pair = await issued(est)
    async with client(est) as http:
        answer = await http.post("simplereenroll", content=body(request()))
        assert (answer.status_code, "over TLS" in answer.text) == (403, True)
    async with client(est, pair) as http:
        other = request(P256, names("host-a.example", "beta.example"))
        assert (await http.post("simplereenroll", content=body(other))).status_code == 400
        assert (await http.post("simplereenroll", content=body(request()))).status_code == 200
        assert (await http.post("simpleenroll", content=body(request()))).status_code == 200
        est.ca.revoke(pair.certificate)
        answer = await http.post("simplereenroll", content=body(request()))
        assert (answer.status_code, "was revoked" in answer.text) == (403, True)
        (est.folder / "denied").write_text("*@host-a.example\n")
    fresh = est.ca.authority.issue(NAME)
    est.ca.record(fresh.certificate, NAME)
    async with client(est, fresh) as http:
        answer = await http.post("simplereenroll", content=body(request()))
        assert (answer.status_code, "denied" in answer.text) == (403, True)


async def test_a_policy(tmp_path: Path) -> None:
    """Names that the service does not issue for, and how long what it issues lasts."""
    async with serving_est(tmp_path / "pki", names=["*@*.example"], lifetime=timedelta(minutes=5)) as est:
        found = await est.source(NAME).read()
        assert found.key_pair.certificate.not_valid_after_utc == est.clock.now + timedelta(minutes=5)
        assert "does not issue for" in await fails(est.source("alpha@localhost"), EnrolmentReason.REFUSED)
        outside = est.ca.authority.issue("beta@elsewhere.test")
        est.ca.record(outside.certificate, "beta@elsewhere.test")
        async with client(est, outside) as http:
            assert (await http.post("simplereenroll", content=body(request()))).status_code == 403
    with pytest.raises(TypeError, match="a sequence of names and globs"):
        EnrolmentPolicy(names="*@*.example")
    with pytest.raises((TypeError, ValueError), match="positive timedelta"):
        EnrolmentPolicy(lifetime=timedelta())


async def test_a_flood(tmp_path: Path) -> None:
    """Too many from one address, or for one name: refused, with the time to wait, before anything is looked at."""
    async with serving_est(tmp_path / "pki", per_address=5, per_name=2) as est:
        pair = await issued(est)
        async with client(est, pair) as http:
            answers = [await http.post("simplereenroll", content=body(request())) for _ in range(2)]
            assert [each.status_code for each in answers] == [200, 429]
            assert int(answers[1].headers["retry-after"]) in range(1, 32)
        async with client(est) as http:
            answers = [await http.post("simpleenroll", content=b"!") for _ in range(4)]
            assert [each.status_code for each in answers] == [401, 401, 429, 429]
            assert (await http.get("cacerts")).status_code == 200


async def test_what_was_refused_does_not_count_for_the_name(tmp_path: Path) -> None:
    """Who has stolen a certificate, which was revoked, cannot keep its owner from renewing."""
    async with serving_est(tmp_path / "pki", per_name=3) as est:
        stolen, own = await issued(est), await issued(est)
        est.ca.revoke(stolen.certificate)
        async with client(est, stolen) as http:
            answers = [await http.post("simplereenroll", content=body(request())) for _ in range(5)]
        assert {each.status_code for each in answers} == {403}
        async with client(est, own) as http:
            assert (await http.post("simplereenroll", content=body(request()))).status_code == 200


async def test_a_name_is_limited_however_it_is_spelt(tmp_path: Path) -> None:
    """Upper case, or many requests at once: what a name may get stays what it may get."""
    async with serving_est(tmp_path / "pki", per_name=2) as est:
        tokens = [est.ca.make_token("*@host-a.example").reveal() for _ in range(6)]
        statuses: list[int] = []

        async def enrol(http: httpx.AsyncClient, name: str, token: str) -> None:
            answer = await http.post("simpleenroll", content=body(request()), auth=(name, token))
            statuses.append(answer.status_code)

        async with client(est) as http, trio.open_nursery() as nursery:
            for spelling, token in zip(("host-a.example", "Host-A.example", "HOST-A.EXAMPLE") * 2, tokens, strict=True):
                nursery.start_soon(enrol, http, f"alpha@{spelling}", token)
        assert sorted(statuses) == [200] * 2 + [429] * 4


def test_limits_are_bounded() -> None:
    """In time and in memory; an IPv6 client is its /64."""
    limit = RateLimit(2)
    assert [limit.take("a", 0.0) for _ in range(3)] == [0, 0, 30]
    assert limit.take("a", 30.0) == 0
    for number in range(10_001):
        limit.take(str(number), 40.0)
    assert len(limit._levels) == 10_000
    assert address_key("2001:db8::1") == address_key("2001:db8::2:1") != address_key("2001:db8:0:1::1")
    assert address_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_key("fe80::1%eth0") == "fe80::/64"
    assert (address_key("192.0.2.1"), address_key("unknown")) == ("192.0.2.1", "unknown")


async def test_what_is_there_and_what_is_not(est: Service) -> None:
    """Resources and methods."""
    async with client(est) as http:
        assert (await http.get("nothing")).status_code == 404
        answer = await http.get("simpleenroll")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await http.post("cacerts")).status_code == 405
        lists = await http.get(f"{est.url}/ca.crl")
        assert b"BEGIN X509 CRL" in lists.content
        crl = x509.load_der_x509_crl((await http.get(f"{est.url}/crl")).content)
        assert crl.issuer == est.ca.authority.issuer.subject


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /crl HTTP/1.1\r\nHost: ca\r\n\r\n", 200, b"\x30"),
        (b"GET /ca.crl?x=1 HTTP/1.0\r\n\r\n", 200, b"-----BEGIN X509 CRL"),
        (b"HEAD /crl HTTP/1.1\r\n\r\n", 200, b""),
        (b"POST /crl HTTP/1.1\r\n\r\n", 405, b""),
        (b"GET /.well-known/est/cacerts HTTP/1.1\r\n\r\n", 404, b""),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 404, b""),
        (b"\r\n\r\n", 400, b""),
        (b"GET /crl HTTP/1.1\r\n", 400, b""),
        (b"x" * 9000, 400, b""),
    ],
    ids=("der", "pem", "head", "post", "nothing-else", "odd-path", "nothing", "half", "too-long"),
)
async def test_lists_over_plain_http(request_: bytes, status: int, body: bytes, tmp_path: Path) -> None:
    """One request, one answer, and the end."""
    lists = Lists(PKIDirectory.create(tmp_path), DAY)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_converse, theirs, lists, Admission())
        await ours.send_all(request_)
        await ours.send_eof()
        answer = b"".join([part async for part in ours])
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert found.startswith(body)
    length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
    assert length == len(found) or (request_.startswith(b"HEAD") and not found)


async def test_plain_clients_that_drip(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """They are shown out, and the oldest for one that comes; what has gone is no trouble."""
    lists = Lists(PKIDirectory.create(tmp_path), DAY)
    admission = Admission(limit=2)
    pairs = [trio.testing.memory_stream_pair() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for _, theirs in pairs:
            nursery.start_soon(_converse, theirs, lists, admission)
            await trio.testing.wait_all_tasks_blocked()
        assert await pairs[0][0].receive_some() == b""
        await pairs[1][0].send_all(b"GET")
        await pairs[2][0].aclose()
    assert (trio.current_time(), admission.shed) == (10, 1)


async def test_lists_that_there_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why, the stranger does not hear it; the listeners' end is the end."""
    ca = PKIDirectory.create(tmp_path)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_lists, Lists(ca, DAY), listeners)
        (tmp_path / "ca.crl").write_text("damaged")
        async with await trio.open_tcp_stream(*listeners[0].socket.getsockname()) as stream:
            await stream.send_all(b"GET /crl HTTP/1.1\r\n\r\n")
            assert b"".join([part async for part in stream]).startswith(b"HTTP/1.1 503 Service Unavailable")
        assert "ca.crl" in caplog.text
        await listeners[0].aclose()


async def test_a_damaged_journal_is_not_told_to_strangers(est: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The answer says that the CA cannot issue, the log why."""
    token = est.ca.make_token(NAME)
    with (est.folder / "journal.jsonl").open("a") as journal:
        journal.write("not a line\n")
    async with client(est) as http:
        answer = await http.post("simpleenroll", content=body(request()), auth=(NAME, token.reveal()))
    assert answer.status_code == 503
    assert "journal" not in answer.text
    assert "is damaged" in caplog.text


# Others -------------------------------------------------------------------------------------------------------------

needs_tools = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None, reason="there is no curl, or no openssl"
)


@needs_tools
async def test_curl_and_openssl(tmp_path: Path) -> None:
    """As an EST client: a request by openssl, sent by curl, the answer read back by openssl; and a re-enrolment."""
    async with serving_est(tmp_path / "pki") as est:
        write_ca_pool(est.ca.roots, tmp_path / "ca.pem")

        async def sh(script: str) -> str:
            done = await trio.run_process(
                ["sh", "-euc", script], cwd=tmp_path, capture_stdout=True, capture_stderr=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.decode()

        curl = "curl -sSf --noproxy '*' --max-time 20 --cacert ca.pem"
        url = f"{est.url}/.well-known/est"
        p7 = "openssl base64 -d | openssl pkcs7 -inform DER -print_certs"
        token = est.ca.make_token(NAME).reveal()
        await sh(
            "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /CN=x"
            " -outform DER -out csr.der && openssl base64 -in csr.der -out csr.b64"
        )
        post = f"{curl} --data-binary @csr.b64 -H 'Content-Type: application/pkcs10'"
        await sh(f"{post} -u '{NAME}:{token}' {url}/simpleenroll | {p7} -out cert.pem")
        await sh(f"{curl} {url}/cacerts | {p7} -out cas.pem")
        said = await sh("openssl verify -x509_strict -CAfile ca.pem -untrusted cas.pem cert.pem")
        assert said == "cert.pem: OK\n"
        names_ = await sh("openssl x509 -in cert.pem -noout -ext subjectAltName")
        assert f"URI:trionode://{NAME}" in names_
        first = await sh("openssl x509 -in cert.pem -noout -serial")
        await sh(f"{post} --cert cert.pem --key key.pem {url}/simplereenroll | {p7} -out again.pem")
        assert await sh("openssl x509 -in again.pem -noout -serial") != first
        assert (tmp_path / "cas.pem").read_text().count("BEGIN CERTIFICATE") == 2
        shown = await sh(f"{curl} {url}/csrattrs | openssl base64 -d | openssl asn1parse -inform DER")
        assert "challengePassword" in shown
        shown = await sh(f"{curl} {est.url}/crl | openssl crl -inform DER -noout -text")
        assert "No Revoked Certificates" in shown


@needs_tools
async def test_a_server_that_is_not_ours(tmp_path: Path) -> None:
    """A CA that is openssl alone: it reads our request, signs, and makes the PKCS#7.

    With user name and password, a root that issues itself, line ends of its own, and without what is optional.
    """

    async def sh(script: str, data: bytes = b"") -> bytes:
        done = await trio.run_process(
            ["sh", "-euc", script], stdin=data, cwd=tmp_path, capture_stdout=True, capture_stderr=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return bytes(done.stdout)

    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    await sh(f"{make} -keyout ca.key -out ca.pem -subj /CN=theirs -addext keyUsage=critical,keyCertSign,cRLSign")
    sign = "openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -copy_extensions copy"
    await sh(
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -subj /CN=s"
        f" -addext subjectAltName=DNS:localhost | {sign} -out server.pem"
    )
    p7 = "openssl crl2pkcs7 -nocrl -certfile {} -outform DER | openssl base64 | sed 's/$/\\r/'"
    seen: list[tuple[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        data = await body_of(receive)
        resource = scope["path"].removeprefix("/ca-7/.well-known/est/")
        seen.append((resource, dict(scope["headers"]).get(b"authorization", b"").decode()))
        answer = b""
        if resource == "cacerts":
            answer = await sh(p7.format("ca.pem"))
        elif resource in ("simpleenroll", "simplereenroll"):
            await sh("openssl base64 -d -out csr.der", data)
            assert b"verify OK" in await sh("openssl req -inform DER -in csr.der -noout -verify 2>&1")
            answer = await sh(f"{sign} -inform DER -in csr.der -out issued.pem && {p7.format('issued.pem')}")
        await send({"type": "http.response.start", "status": 200 if answer else 404, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    pool = CAPool.load(tmp_path / "ca.pem")
    server = CertAuthManager(
        KeyPair.load(tmp_path / "server.pem", tmp_path / "server.key"),
        client_cas=pool,
        client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN,
    )
    moment = datetime.now(UTC)
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(partial(serve_asgi, app, 0, host="127.0.0.1", cert_manager=server))
        url = f"https://localhost:{listener.socket.getsockname()[1]}/ca-7"
        source = ESTSource(url, NAME, auth=("user", "pass"), root_cas=pool, clock=lambda: moment)
        first = await source.read()
        assert first.root_cas == pool
        assert SubjectNames.of(first.key_pair.certificate).cover_host("host-a.example")
        moment += timedelta(hours=17)
        assert (await source.read()).key_pair.fingerprint != first.key_pair.fingerprint
        nursery.cancel_scope.cancel()
    assert [resource for resource, _ in seen] == [
        "cacerts",
        "csrattrs",
        "simpleenroll",
        "cacerts",
        "csrattrs",
        "simplereenroll",
    ]
    assert [bool(said) for _, said in seen] == [False, False, True, False, False, False]


async def test_lists_are_fetched_before_they_end(tmp_path: Path) -> None:
    """However short they last, and however seldom the source would look by itself."""
    async with serving_est(tmp_path / "pki", crl_lifetime=timedelta(minutes=30)) as est:
        source = est.source(NAME, revocation_lists=True)
        for _ in range(60):
            found = await source.read()
            assert found.crls is not None
            assert min(each.next_update_utc for each in found.crls if each.next_update_utc) > est.clock.now
            est.clock.forward(timedelta(minutes=3))
