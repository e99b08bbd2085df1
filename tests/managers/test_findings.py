"""Findings: what is wrong with a key pair, each thing once, with a remedy."""

from __future__ import annotations

import logging
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings, strategies as st

from effort import effort
from specimens import make_certificate
from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    CertManager,
    ClientAuth,
    CRLSet,
    Finding,
    FindingCode,
    HandshakeError,
    KeyPair,
    NodeName,
    Severity,
    UnverifiedReason,
    check_key_pair,
)
from trionode._credentials.policy import TLSPolicy
from trionode._managers.check import CLOCK_SKEW, check_usable
from trionode._managers.manager import publisher_of
from trionode._managers.publisher import Publisher
from trionode._tls.contexts import TLSContexts
from trionode._tls.failures import HandshakeErrors
from trionode._tls.session import TLSSession
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from conftest import AuthorityFactory, ManagerFactory, NodeFactory

NAME = "alpha@localhost"
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EC = ec.SECP256R1()


def codes(findings: tuple[Finding, ...]) -> list[str]:
    """What they are about; errors with a mark."""
    return [f"{finding.code}{'!' if finding.severity is Severity.ERROR else ''}" for finding in findings]


def check(key_pair: KeyPair, ca: CertificateAuthority, **settings: Any) -> tuple[Finding, ...]:
    """The findings under the policy of a cluster: one CA in both directions, mutual TLS, one node's name."""
    policy = {"client_cas": ca.pool, "root_cas": ca.pool, "client_auth": MUTUAL, "names": [NAME], **settings}
    findings = check_key_pair(key_pair, **policy)
    for finding in findings:
        assert str(finding) == f"{finding.message}. {finding.remedy}"
        assert finding.remedy
        assert not finding.message.endswith(".")
        assert "PRIVATE" not in str(finding)
    return findings


def made(
    *extensions: x509.ExtensionType,
    start: timedelta = -HOUR,
    end: timedelta = DAY,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    signed_by: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    critical: Sequence[x509.ExtensionType] = (),
) -> tuple[x509.Certificate, Any]:
    """A certificate such as `trionode.pki` does not issue, and its key; self-signed unless told otherwise."""
    key, now = key or ec.generate_private_key(EC), datetime.now(UTC)
    certificate = make_certificate(
        "made for a test",
        key=key,
        issuer=None if signed_by is None else signed_by[0].subject,
        issuer_key=None if signed_by is None else signed_by[1],
        not_before=now + start,
        not_after=now + end,
        purposes=None,
        host=None,
        extensions=extensions,
        critical=critical,
    )
    return certificate, key


LOCALHOST = x509.SubjectAlternativeName([x509.DNSName("localhost")])


def self_signed(*extensions: x509.ExtensionType, **fields: Any) -> KeyPair:
    """A key pair of one such certificate."""
    certificate, key = made(*extensions, **fields)
    return KeyPair([certificate], key)


def findings_of(key_pair: KeyPair, **settings: Any) -> list[str]:
    """The codes found for a key pair that is its own anchor."""
    pool = CAPool(key_pair.chain)
    policy = {"client_cas": pool, "root_cas": pool, "client_auth": MUTUAL, "names": [NAME], **settings}
    return codes(check_key_pair(key_pair, **policy))


# Good ones ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intermediate", [False, True])
@pytest.mark.parametrize("client_auth", ClientAuth)
def test_a_good_one_has_no_findings(*, intermediate: bool, client_auth: ClientAuth) -> None:
    """What `trionode.pki` issues is in order, under every mode."""
    ca = CertificateAuthority.create(intermediate=intermediate)
    assert check(ca.issue(NAME), ca, client_auth=client_auth) == ()


def test_a_policy_that_says_nothing(ca: CertificateAuthority) -> None:
    """Without pools, names and lists only the key pair itself is looked at."""
    assert check_key_pair(ca.issue(NAME)) == ()
    assert check_key_pair(KeyPair.self_signed("localhost"), client_auth=MUTUAL) == ()


# One thing wrong ----------------------------------------------------------------------------------------------------


def test_expired(ca: CertificateAuthority) -> None:
    """One finding, though chain and handshake fail for it as well."""
    now = datetime.now(UTC)
    [finding] = check(ca.issue(NAME, not_after=now - HOUR), ca)
    assert (finding.code, finding.severity) == (FindingCode.EXPIRED, Severity.ERROR)
    assert "our clock says" in finding.message
    assert "manager.update()" in finding.remedy


def test_not_yet_valid(ca: CertificateAuthority) -> None:
    """Likewise; the clocks are the remedy."""
    [finding] = check(ca.issue(NAME, not_before=datetime.now(UTC) + HOUR), ca)
    assert (finding.code, finding.severity) == (FindingCode.NOT_YET_VALID, Severity.ERROR)
    assert "clock" in finding.remedy


@pytest.mark.parametrize(("age", "found"), [(CLOCK_SKEW / 2, ["just_valid"]), (CLOCK_SKEW + MINUTE, [])])
def test_valid_since_a_moment(ca: CertificateAuthority, age: timedelta, found: list[str]) -> None:
    """Peers whose clocks are a little behind refuse a certificate that has only just begun."""
    assert codes(check(ca.issue(NAME, not_before=datetime.now(UTC) - age), ca)) == found


@pytest.mark.parametrize(("left", "found"), [(2 * DAY, ["expires_soon"]), (20 * DAY, [])])
def test_ending_soon(ca: CertificateAuthority, left: timedelta, found: list[str]) -> None:
    """A tenth of its lifetime is left, or less; the clock is the one given."""
    key_pair = ca.issue(NAME, lifetime=90 * DAY)
    end = key_pair.certificate.not_valid_after_utc
    assert codes(check(key_pair, ca, clock=lambda: end - left)) == found


def test_outliving_its_ca() -> None:
    """A leaf that says it is valid longer than its CA is."""
    ca = CertificateAuthority.create(lifetime=10 * DAY)
    leaf, key = made(LOCALHOST, end=20 * DAY, signed_by=(ca.certificate, ca._key))  # type: ignore[arg-type]
    [finding] = check(KeyPair([leaf], key), ca)
    assert (finding.code, finding.severity) == (FindingCode.OUTLIVES_CA, Severity.WARNING)
    assert "CN=trionode development CA" in finding.message


@pytest.mark.parametrize(
    ("purposes", "settings", "found"),
    [
        ([SERVER], {}, ["wrong_eku!"]),
        ([CLIENT], {}, ["wrong_eku!"]),
        ([SERVER], {"client_auth": ClientAuth.NO_CLIENT_CERT}, ["wrong_eku"]),
        ([CLIENT], {"as_server": False}, []),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], {}, ["wrong_eku!", "wrong_eku!"]),
    ],
)
def test_purposes(
    ca: CertificateAuthority, purposes: list[x509.ObjectIdentifier], settings: dict[str, Any], found: list[str]
) -> None:
    """Both extended key usages are asked for where they are needed; clientAuth is missed in any case."""
    assert codes(check(ca.issue(NAME, extended_key_usage=purposes), ca, **settings)) == found


def test_a_key_that_may_not_sign() -> None:
    """TLS 1.3 signs; a key usage without digitalSignature is an error, told once."""
    encipher_only = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    assert findings_of(self_signed(LOCALHOST, encipher_only)) == ["key_usage!"]


def test_extensions_that_cannot_be_read() -> None:
    """Whatever they would allow, they do not."""
    junk = x509.UnrecognizedExtension(x509.KeyUsage.oid, b"junk")
    assert "key_usage!" in findings_of(self_signed(LOCALHOST, junk))


def test_a_weak_signature(tmp_path: Path) -> None:
    """SHA-1 below the root: peers refuse it, and one finding says so."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=30)

    (tmp_path / "names").write_text("subjectAltName=DNS:localhost")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=root", "-days", "99")
    openssl("req", "-new", *new_key, "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=leaf")
    signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9", "-sha1", "-extfile", "names")
    openssl("x509", "-req", "-in", "csr.pem", "-out", "cert.pem", *signer)
    pool = CAPool.load(tmp_path / "ca.pem")
    later = datetime.now(UTC) + HOUR
    key_pair = KeyPair.load(tmp_path / "cert.pem", tmp_path / "key.pem")
    [finding] = check_key_pair(key_pair, client_cas=pool, root_cas=pool, client_auth=MUTUAL, clock=lambda: later)
    assert (finding.code, finding.severity) == (FindingCode.WEAK, Severity.ERROR)
    assert "SHA-256" in finding.remedy


def test_a_signature_of_an_unknown_kind() -> None:
    """What nobody knows to be weak is not called weak; the handshake has the last word."""
    key_pair = self_signed(LOCALHOST, signed_by=made(LOCALHOST))
    ecdsa_with_sha256, unknown = bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d04037f")
    der = key_pair.certificate.public_bytes(Encoding.DER).replace(ecdsa_with_sha256, unknown)
    odd = KeyPair([x509.load_der_x509_certificate(der)], key_pair.private_key)
    assert "weak!" not in codes(check_key_pair(odd))


def test_no_names() -> None:
    """A Common Name is no name; without any, names that are wanted are not complained of one by one."""
    assert findings_of(self_signed()) == ["no_names!"]
    only_uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"trionode://{NAME}")])
    assert findings_of(self_signed(only_uri)) == ["no_names!"]


def test_names_that_are_none() -> None:
    """An entry that no peer can match is untidy; all of them in one finding."""
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("*.x*"), x509.DNSName("10.0.0.1")])
    key_pair = self_signed(names)
    assert findings_of(key_pair) == ["unusable_name"]
    [finding] = check_key_pair(key_pair)
    assert "*.x*" in finding.message
    assert "10.0.0.1" in finding.message


@pytest.mark.parametrize(
    ("issued", "wanted", "found"),
    [
        (["alpha@localhost"], ["alpha@localhost", "localhost"], []),
        (["localhost"], ["alpha@localhost", NodeName("beta", "localhost")], []),
        (["*.cluster.example"], ["alpha@a.cluster.example"], []),
        (["127.0.0.1"], ["alpha@127.0.0.1", "127.0.0.1"], []),
        (["::1"], ["alpha@[::1]"], []),
        (["alpha@localhost"], ["beta@localhost"], ["beta@localhost"]),
        (["alpha@localhost"], ["alpha@elsewhere.example", "other.example"], ["elsewhere", "name other.example"]),
        (["10.0.0.1"], ["alpha@10.0.0.2"], ["alpha@10.0.0.2"]),
    ],
)
def test_names(ca: CertificateAuthority, issued: list[str], wanted: list[str], found: list[str]) -> None:
    """Node names and hosts that are wanted and not covered, each by itself."""
    wildcard = issued == ["*.cluster.example"]
    if wildcard:
        names = x509.SubjectAlternativeName([x509.DNSName(issued[0])])
        findings = check_key_pair(self_signed(names), names=wanted)
    else:
        findings = check(ca.issue(*issued), ca, names=wanted)
    assert codes(findings) == ["name_mismatch!"] * len(found)
    for finding, words in zip(findings, found, strict=True):
        assert words in finding.message
    if found == ["beta@localhost"]:
        assert "its URI names are others" in findings[0].message


def test_a_name_that_is_none_is_an_error_of_the_caller(ca: CertificateAuthority) -> None:
    """Findings are about certificates."""
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        check(ca.issue(NAME), ca, names=["not a name"])


def test_a_superfluous_root() -> None:
    """A root in the chain is dead weight in every handshake."""
    ca = CertificateAuthority.create()
    key_pair = ca.issue(NAME)
    with_root = KeyPair([*key_pair.chain, ca.certificate], key_pair.private_key)
    assert codes(check(with_root, ca)) == ["superfluous_root"]


# Trust --------------------------------------------------------------------------------------------------------------


def test_not_signed_by_our_own_cas(ca: CertificateAuthority, rogue_ca: CertificateAuthority) -> None:
    """One finding for one pool, one each for two; it names the certificate at which the path fails."""
    stranger = rogue_ca.issue(NAME)
    [finding] = check(stranger, ca)
    assert (finding.code, finding.severity) == (FindingCode.UNKNOWN_CA, Severity.ERROR)
    assert "our own root_cas and client_cas (unknown ca)" in finding.message
    assert "CN=alpha@localhost" in finding.message
    other = CertificateAuthority.create()
    findings = check(stranger, ca, client_cas=other.pool)
    assert codes(findings) == ["unknown_ca!", "unknown_ca!"]
    assert [("root_cas" in each.message, "client_cas" in each.message) for each in findings] == [
        (True, False),
        (False, True),
    ]
    assert codes(check(stranger, ca, client_cas=rogue_ca.pool, client_auth=ClientAuth.NO_CLIENT_CERT)) == [
        "unknown_ca!"
    ]


def test_a_missing_intermediate() -> None:
    """The usual mistake: a chain file with the leaf alone."""
    ca = CertificateAuthority.create(intermediate=True)
    key_pair = ca.issue(NAME)
    [finding] = check(KeyPair(key_pair.chain[:1], key_pair.private_key), ca)
    assert finding.code == FindingCode.UNKNOWN_CA
    assert "intermediates" in finding.remedy


def test_an_expired_intermediate() -> None:
    """What expired is not the leaf, and the finding says which it is."""
    ca = CertificateAuthority.create(intermediate=True, lifetime=10 * DAY)
    key_pair = ca.issue(NAME, lifetime=5 * DAY)
    assert ca.intermediate is not None
    [finding, *others] = check(key_pair, ca, clock=lambda: datetime.now(UTC) + 30 * DAY)
    assert finding.code == FindingCode.EXPIRED
    assert not others
    # The leaf is good for longer than its CA: then the chain has it.
    leaf, key = made(LOCALHOST, end=90 * DAY, signed_by=(ca.intermediate, ca._key))  # type: ignore[arg-type]
    late = check(KeyPair([leaf, ca.intermediate], key), ca, clock=lambda: datetime.now(UTC) + 30 * DAY)
    assert codes(late) == ["outlives_ca", "expired!"]
    assert "CN=trionode development CA" in late[1].message


def test_on_our_own_list(authority: AuthorityFactory) -> None:
    """A candidate that was revoked, and one of whom our lists say nothing."""
    cluster = authority("the cluster's CA")
    key_pair = cluster.issue(NAME)
    policy: dict[str, Any] = {"client_cas": cluster.pool, "root_cas": cluster.pool, "client_auth": MUTUAL}
    assert check_key_pair(key_pair, crls=cluster.crl(), **policy) == ()
    foreign = authority("a stranger").crl()
    [finding] = check_key_pair(key_pair, crls=foreign, **policy)
    assert (finding.code, finding.severity) == (FindingCode.REVOCATION_UNKNOWN, Severity.ERROR)
    assert "there is no CRL of CN=the cluster's CA" in finding.message
    cluster.revoke(key_pair, "superseded")
    for given_policy in (policy, {}):
        [finding] = check_key_pair(key_pair, crls=CRLSet([*cluster.crl(), *foreign]), **given_policy)
        assert (finding.code, finding.severity) == (FindingCode.REVOKED, Severity.ERROR)
        assert "superseded" in finding.message


# The handshake ------------------------------------------------------------------------------------------------------


def test_what_no_rule_knows_of() -> None:
    """A critical extension that nobody understands is refused by OpenSSL, whose words are told, once."""
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    odd, key = made(LOCALHOST, critical=[unknown])
    [finding] = check_key_pair(KeyPair([odd], key))
    assert (finding.code, finding.severity) == (FindingCode.BAD_CHAIN, Severity.ERROR)
    assert "a handshake of our certificate with itself fails" in finding.message
    assert "has a critical extension that OpenSSL does not know: 1.2.3.4" in finding.message


def test_a_key_that_openssl_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key pair of which no contexts can be built is a finding, not an exception."""
    monkeypatch.setattr("trionode._credentials.key_pair._SMALLEST_RSA_BITS", 1024)
    weak = self_signed(LOCALHOST, key=rsa.generate_private_key(65537, 1024))  # noqa: S505
    findings = check_key_pair(weak)
    assert codes(findings) == ["handshake!"]
    assert "key too small" in findings[0].message


def test_a_handshake_that_breaks_off(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in it, it is told."""
    failures: list[HandshakeError] = [HandshakeErrors().misbehaved("of its own accord")]

    def handshake(_: TLSSession) -> bool:
        raise failures[0]

    monkeypatch.setattr(TLSSession, "handshake", handshake)
    [finding] = check(ca.issue(NAME), ca)
    assert finding.code is FindingCode.HANDSHAKE
    assert "of its own accord" in finding.message


def test_every_refusal_of_a_certificate_has_a_code() -> None:
    """Reasons for which a certificate is refused inside TLS are codes of findings, word for word."""
    in_tls = {
        UnverifiedReason.UNKNOWN_CA,
        UnverifiedReason.EXPIRED,
        UnverifiedReason.NOT_YET_VALID,
        UnverifiedReason.WRONG_EKU,
        UnverifiedReason.REVOKED,
        UnverifiedReason.REVOCATION_UNKNOWN,
        UnverifiedReason.NAME_MISMATCH,
        UnverifiedReason.BAD_CHAIN,
    }
    assert {str(reason) for reason in in_tls} <= {str(code) for code in FindingCode}


@given(
    start=st.sampled_from([-DAY, -HOUR, HOUR]),
    end=st.sampled_from([-MINUTE, DAY * 30]),
    purposes=st.sampled_from([None, [SERVER], [CLIENT], [SERVER, CLIENT]]),
    as_server=st.booleans(),
    client_auth=st.sampled_from(ClientAuth),
    trusted=st.booleans(),
)
@settings(max_examples=effort(60))
def test_errors_and_refusals(
    start: timedelta,
    end: timedelta,
    purposes: list[x509.ObjectIdentifier] | None,
    as_server: bool,
    client_auth: ClientAuth,
    trusted: bool,
) -> None:
    """Laws: what an update refuses is found, as its first error; and what has no errors works with itself."""
    extensions = [] if purposes is None else [x509.ExtendedKeyUsage(purposes)]
    key_pair = self_signed(LOCALHOST, *extensions, start=min(start, end - HOUR), end=end)
    pool = CAPool(key_pair.chain if trusted else KeyPair.self_signed("localhost").chain)
    policy = {"client_cas": pool, "root_cas": pool, "client_auth": client_auth}
    findings = check_key_pair(key_pair, as_server=as_server, **policy)  # type: ignore[arg-type]
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    try:
        check_usable(key_pair, now=datetime.now(UTC), as_server=as_server, as_client=client_auth.verifies)
    except CertificateError as exc:
        assert str(errors[0].code) == str(exc.reason)
        # The clock has moved on a little, and the text says the time.
        assert errors[0].remedy in str(exc)
    if not errors and as_server:
        contexts = TLSContexts.build(1, key_pair, TLSPolicy(**policy))  # type: ignore[arg-type]
        server, client = contexts.server.session(), contexts.client.session(reference="localhost")
        for _ in range(3):
            for session, peer in ((client, server), (server, client)):
                session.handshake()
                peer.feed(session.outgoing())
        assert client.verified
        assert server.verified is client_auth.verifies


# Managers -----------------------------------------------------------------------------------------------------------


async def test_a_manager_checks_by_its_own_policy(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, manager: ManagerFactory, node: NodeFactory
) -> None:
    """Its pools, mode and lists, the roles it is used in, and the names of the nodes that use it; changes nothing."""
    certs = manager(NAME)
    with pytest.raises(TypeError, match="key_pair must be a KeyPair"):
        certs.check(rogue_ca.pool)  # type: ignore[arg-type]
    assert codes(certs.check(rogue_ca.issue(NAME))) == ["unknown_ca!"]
    assert certs.check(ca.issue("beta@localhost")) == ()
    assert codes(certs.check(ca.issue("beta@localhost"), names=[NAME])) == ["name_mismatch!"]
    async with node(NAME, certs), node("gamma@localhost", certs):
        findings = certs.check(ca.issue("beta@localhost"))
        assert codes(findings) == ["name_mismatch!", "name_mismatch!"]
        assert {NAME in each.message for each in findings} == {True, False}
        assert certs.check(ca.issue(NAME, "gamma@localhost")) == ()
        assert certs.check(ca.issue("beta@localhost"), names=["beta@localhost"]) == ()
    assert certs.check(ca.issue("beta@localhost")) == ()
    assert certs.generation == 1
    client_only = ca.issue(NAME, extended_key_usage=[CLIENT])
    assert codes(certs.check(client_only)) == ["wrong_eku!"]
    with publisher_of(certs).use(as_server=False):
        assert certs.check(client_only) == ()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of certificates since the last time."""
    said = [each.getMessage() for each in caplog.records if each.name == "trionode.certificates"]
    caplog.clear()
    return said


async def test_a_name_that_joins_is_examined_alone(ca: CertificateAuthority, caplog: pytest.LogCaptureFixture) -> None:
    """Of many nodes with one manager not all for each that opens; what it is warned of is the same."""
    certs = CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)
    names = [NodeName.parse(f"node{number}@host{number}.example") for number in range(4)]
    looked_at: list[tuple[object, ...]] = []
    check = Publisher.check

    def noting(self: Publisher, key_pair: KeyPair, *, names: Iterable[str | NodeName] = ()) -> tuple[Finding, ...]:
        looked_at.append(tuple(names))
        return check(self, key_pair, names=names)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(Publisher, "check", noting)
        for name in names[:3]:
            stack.enter_context(publisher_of(certs).use(as_server=False, name=name))
            assert any(name.host in warning for warning in warnings(caplog))
        with publisher_of(certs).use(as_server=False, name=names[0]):
            assert looked_at == [(), (names[1],), (names[2],)]
            assert not warnings(caplog)
        with publisher_of(certs).use(as_server=False, name=names[3]):
            assert any(names[3].host in warning for warning in warnings(caplog))
        certs.update(ca.issue("localhost"))
        assert looked_at[3:] == [(names[3],), ()]
        assert len(warnings(caplog)) == 3


async def test_a_manager_warns_of_each_thing_once(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first use, at updates and at rotations of trust; the same function says it, the remedy included."""
    certs = CertAuthManager(rogue_ca.issue(NAME), client_cas=ca.pool, root_cas=ca.pool)
    with publisher_of(certs).use(as_server=True):
        assert warnings(caplog) == [str(finding) for finding in certs.check(certs.key_pair)]
        with publisher_of(certs).use(as_server=True, name=NodeName.parse("beta@localhost")):
            [news] = warnings(caplog)
            assert "beta@localhost" in news
        certs.update(ca.issue(NAME))
        assert not warnings(caplog)
        certs.rotate_trust(root_cas=rogue_ca.pool)
        [news] = warnings(caplog)
        assert "our own root_cas (unknown ca)" in news
        certs.rotate_trust(root_cas=rogue_ca.pool)
    with publisher_of(certs).use(as_server=True):
        assert not warnings(caplog)


async def test_an_examination_that_fails_keeps_nobody_from_rotating(
    ca: CertificateAuthority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the examination is logged; the rotation that it was about is done."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    certs = CertManager(ca.issue(NAME))
    monkeypatch.setattr("trionode._managers.publisher.examine", fail)
    assert certs.update(ca.issue(NAME)) == 2
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "could not be examined" in record.getMessage()


def test_a_thread_may_check(ca: CertificateAuthority, manager: ManagerFactory) -> None:
    """Checking touches nothing, so a source may do it in a thread, whoever uses the manager."""
    certs = manager(NAME)
    candidate = ca.issue(NAME)

    async def main() -> tuple[Finding, ...]:
        with publisher_of(certs).use(as_server=True):
            check: Callable[[KeyPair], tuple[Finding, ...]] = certs.check
            return await trio.to_thread.run_sync(check, candidate)

    assert trio.run(main) == ()
