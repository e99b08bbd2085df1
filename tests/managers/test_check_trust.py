"""What is wrong with pools and lists, found when a manager is built and by `check`; and what is sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca import DAY, HOUR, TestCA, lists
from path_cases import SERVER_AUTH, pool
from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CertManager,
    ClientAuth,
    CRLSet,
    FindingCode,
    KeyPair,
    NetworkOptions,
    NodeOptions,
    PeerUnverifiedError,
    Route,
    Severity,
    UnverifiedReason,
    check_key_pair,
    open_node,
)
from trionode._credentials.policy import TLSPolicy
from trionode._credentials.revocation_list import RevocationList
from trionode._managers.manager import publisher_of
from trionode._tls.contexts import TLSContexts
from trionode._tls.engine import MAX_CA_LIST, ca_list_size
from trionode._tls.handshake import handshake_in_memory

if TYPE_CHECKING:
    from trionode import Finding

MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT


def manager(key_pair: KeyPair, trusted: CAPool, **more: Any) -> CertAuthManager:
    """A manager for mutual TLS."""
    return CertAuthManager(key_pair, client_cas=trusted, root_cas=trusted, client_auth=MUTUAL, **more)


def codes(found: tuple[Finding, ...]) -> list[tuple[FindingCode, Severity]]:
    """What was found, in short."""
    return [(finding.code, finding.severity) for finding in found]


def weak_ca(name: str = "weak") -> TestCA:
    """A CA whose key OpenSSL thinks too weak."""
    return TestCA(name, key=rsa.generate_private_key(65537, 1024))  # noqa: S505


# Weak CAs -----------------------------------------------------------------------------------------------------------


def test_a_pool_of_weak_cas_is_refused() -> None:
    """When the manager is built, and when it is to trust them; nothing changes then."""
    weak, root = weak_ca(), TestCA()
    with pytest.raises(CertificateError, match="CN=weak") as caught:
        manager(root.leaf(), weak.pool)
    assert caught.value.reason is CertificateReason.WEAK_CA
    ours = manager(root.leaf(), root.pool)
    changes: list[dict[str, Any]] = [{"client_cas": weak.pool}, {"root_cas": weak.pool}]
    for change in changes:
        with pytest.raises(CertificateError) as caught:
            ours.rotate_trust(**change)
        assert caught.value.reason is CertificateReason.WEAK_CA
    with pytest.raises(CertificateError):
        ours.set_client_cas(weak.pool)
    assert (ours.generation, ours.client_cas, ours.root_cas) == (1, root.pool, root.pool)


def test_a_weak_ca_beside_others_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once when the manager is built, by name; and `check` finds it."""
    weak, root = weak_ca(), TestCA()
    leaf = root.leaf()
    with caplog.at_level(logging.WARNING, "trionode.certificates"):
        ours = manager(leaf, pool(weak, root))
    [record] = caplog.records
    assert "a CA of root_cas and client_cas has a key of less than 112 bits of security" in record.getMessage()
    assert "CN=weak" in record.getMessage()
    assert codes(ours.check(leaf)) == [(FindingCode.WEAK, Severity.WARNING)]
    assert codes(check_key_pair(leaf, root_cas=pool(weak, root))) == [(FindingCode.WEAK, Severity.WARNING)]
    caplog.clear()
    ours.update(root.leaf())
    assert not caplog.records


def test_a_weak_ca_does_not_break_handshakes_of_others() -> None:
    """OpenSSL used to put it into the chain that we send, and to fail at that."""
    weak = weak_ca()
    strong = TestCA("strong", below=weak)
    leaf = strong.leaf()
    policy = TLSPolicy(client_cas=pool(weak, strong), root_cas=pool(weak, strong), client_auth=MUTUAL)
    assert handshake(leaf, policy) is None


def handshake(key_pair: KeyPair, policy: TLSPolicy) -> Exception | None:
    """How a handshake of a key pair with itself fails, or None."""
    contexts = TLSContexts.build(1, key_pair, policy)
    return handshake_in_memory(contexts.server.session(), contexts.client.session(reference="localhost"))


# The list of acceptable CAs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "length"), [(300, 20), (1000, 60), (3, 30_000)])
def test_more_client_cas_than_a_handshake_has_room_for(
    count: int, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A list that is too long is not sent, which is said once in the log, and by `check`."""
    root = TestCA()
    names = [f"ca {number} ".ljust(min(length, 64), "x") for number in range(count)]
    many = [TestCA(name, key=root.key).certificate for name in names]
    if length > 64:
        many = [long_named(root, number, length) for number in range(count)]
    leaf, trusted = root.leaf(), CAPool([root.certificate, *many])
    assert ca_list_size(trusted) > MAX_CA_LIST
    with caplog.at_level(logging.WARNING, "trionode.certificates"):
        ours = manager(leaf, trusted)
    [record] = caplog.records
    assert "no list of acceptable CAs is sent" in record.getMessage()
    assert codes(ours.check(leaf)) == [(FindingCode.CA_LIST_NOT_SENT, Severity.WARNING)]
    policy = TLSPolicy(client_cas=trusted, root_cas=root.pool, client_auth=MUTUAL)
    contexts = TLSContexts.build(1, leaf, policy)
    client = contexts.client.session(reference="localhost")
    assert handshake_in_memory(contexts.server.session(), client) is None
    assert client.requested_cas == {}
    asks_nobody = CertAuthManager(leaf, client_cas=trusted, root_cas=root.pool)
    assert codes(asks_nobody.check(leaf)) == []


def long_named(ca: TestCA, number: int, length: int) -> x509.Certificate:
    """A CA with many organizational units in its name."""
    units = [
        x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, f"{number} {unit} ".ljust(64, "x"))
        for unit in range(length // 64)
    ]
    template = ca.certificate
    builder = x509.CertificateBuilder(
        template.issuer,
        x509.Name(units),
        ca.key.public_key(),
        x509.random_serial_number(),
        template.not_valid_before_utc.replace(tzinfo=None),
        template.not_valid_after_utc.replace(tzinfo=None),
        list(template.extensions),
    )
    return builder.sign(ca.key, template.signature_hash_algorithm)  # type: ignore[arg-type]


def test_a_list_that_fits_is_sent_each_name_once() -> None:
    """Clients with several certificates choose by it; old and new CAs of one name are one entry."""
    root, namesake, other = TestCA(), TestCA(), TestCA("another")
    policy = TLSPolicy(client_cas=pool(root, namesake, other), root_cas=root.pool, client_auth=MUTUAL)
    contexts = TLSContexts.build(1, root.leaf(), policy)
    client = contexts.client.session(reference="localhost")
    assert handshake_in_memory(contexts.server.session(), client) is None
    assert sorted(client.requested_cas.values()) == ["CN=another", "CN=root"]


# What we send -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusts_it", [True, False])
def test_what_the_file_has_is_what_is_sent(trusts_it: bool) -> None:
    """Whatever this side trusts: OpenSSL used to complete the chain from the pool of client CAs."""
    root = TestCA()
    middle = TestCA("middle", below=root)
    whole = middle.leaf()
    for key_pair in (whole, KeyPair(whole.chain[:1], whole.private_key)):
        trusted = pool(root, middle) if trusts_it else TestCA("elsewhere").pool
        ours = TLSContexts.build(1, key_pair, TLSPolicy(client_cas=trusted, client_auth=MUTUAL, root_cas=trusted))
        theirs = TLSContexts.build(1, whole, TLSPolicy(root_cas=pool(root, middle), client_cas=pool(root, middle)))
        client = theirs.client.session(reference="localhost")
        handshake_in_memory(ours.server.session(), client)
        assert client.shown_chain == key_pair.chain


def test_a_chain_that_lacks_an_intermediate() -> None:
    """It verifies against our own pool, which has a copy; peers that have the root alone will refuse it."""
    root = TestCA()
    middle = TestCA("middle", below=root)
    whole = middle.leaf()
    bare = KeyPair(whole.chain[:1], whole.private_key)
    [finding] = check_key_pair(bare, root_cas=pool(root, middle), client_cas=pool(root, middle))
    assert (finding.code, finding.severity) == (FindingCode.INCOMPLETE_CHAIN, Severity.WARNING)
    assert "CN=middle" in finding.message
    assert "CN=root" in finding.message
    assert check_key_pair(whole, root_cas=pool(root, middle)) == ()
    # A pool of intermediates alone is meant so.
    assert check_key_pair(bare, root_cas=middle.pool) == ()
    [finding] = check_key_pair(bare, root_cas=root.pool)
    assert finding.code is FindingCode.UNKNOWN_CA


# Lists --------------------------------------------------------------------------------------------------------------


def test_a_list_that_no_trusted_key_signed(caplog: pytest.LogCaptureFixture) -> None:
    """It has no effect at all, and is told: in the log when it is given, and by `check`."""
    root, rogue, stranger = TestCA(), TestCA(), TestCA("stranger")
    leaf = root.leaf()
    crls = lists(root.crl(), rogue.crl(leaf, root.certificate, start=-HOUR / 2), stranger.crl())
    with caplog.at_level(logging.WARNING, "trionode.certificates"):
        ours = manager(leaf, root.pool, crls=crls)
    [record] = caplog.records
    assert "is not signed by the CA of that name which we trust, so it has no effect at all" in record.getMessage()
    assert codes(ours.check(leaf)) == [(FindingCode.UNUSED_CRL, Severity.WARNING)]
    assert codes(manager(leaf, root.pool, crls=lists(root.crl())).check(leaf)) == []
    caplog.clear()
    plain = manager(leaf, root.pool)
    plain.rotate_trust(crls=crls)
    assert "has no effect at all" in caplog.text


def test_an_anchor_that_a_ca_revoked_which_is_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing shows whose list it is, so that it has no effect; the operator may know, and is told. By name, once."""
    root = TestCA()
    middle = TestCA("middle", below=root)
    leaf = middle.leaf()
    crls = lists(root.crl(middle.certificate), middle.crl())
    with caplog.at_level(logging.WARNING, "trionode.certificates"):
        ours = manager(leaf, middle.pool, crls=crls)
    [record] = caplog.records
    assert record.getMessage().startswith("CN=middle is on the CRL of CN=root")
    assert "If it was revoked, take it out of the pools" in record.getMessage()
    assert codes(ours.check(leaf)) == [(FindingCode.UNUSED_CRL, Severity.WARNING)]
    assert not refused(leaf, ours)
    both = manager(leaf, pool(middle, root), crls=crls)
    assert refused(leaf, both)
    assert [code for code, _ in codes(both.check(leaf))] == [FindingCode.REVOKED]


def test_a_certificate_that_another_ca_of_the_name_revoked() -> None:
    """`check` goes by keys: good is good, revoked is revoked, whatever the namesake's newer list says."""
    old, new = TestCA(), TestCA()
    leaf = old.leaf(serial=4711)
    for mine, other in ((-HOUR, -2 * HOUR), (-2 * HOUR, -HOUR)):
        good = lists(old.crl(start=mine), new.crl(4711, start=other))
        bad = lists(old.crl(4711, start=mine), new.crl(start=other))
        given: dict[str, Any] = {"client_cas": pool(old, new), "root_cas": pool(old, new), "client_auth": MUTUAL}
        assert check_key_pair(leaf, crls=good, **given) == ()
        assert codes(check_key_pair(leaf, crls=bad, **given)) == [(FindingCode.REVOKED, Severity.ERROR)]


def test_without_a_pool_a_lists_name_has_to_do() -> None:
    """Nobody knows then whose list it is."""
    root = TestCA()
    leaf = root.leaf()
    assert codes(check_key_pair(leaf, crls=lists(root.crl(leaf)))) == [(FindingCode.REVOKED, Severity.ERROR)]
    assert codes(check_key_pair(leaf, crls=lists(root.crl()))) == []


def test_intermediates_that_are_for_one_side_only() -> None:
    """Purposes of a CA limit what it issues: an error where that side is used."""
    root = TestCA()
    only = x509.ExtendedKeyUsage([SERVER_AUTH])
    leaf = TestCA("middle", below=root, extensions=[only]).leaf()
    mutual: dict[str, Any] = {"client_cas": root.pool, "root_cas": root.pool, "client_auth": MUTUAL}
    assert codes(check_key_pair(leaf, **mutual)) == [(FindingCode.WRONG_EKU, Severity.ERROR)]
    assert codes(check_key_pair(leaf, root_cas=root.pool, client_cas=root.pool)) == []


def test_a_plain_manager_has_nothing_to_find() -> None:
    """No pools, no lists."""
    leaf = TestCA().leaf(end=300 * DAY)
    assert CertManager(leaf).check(leaf) == ()


# Not going back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("older", "newer"), [({"number": 4}, {"number": 5}), ({"start": -2 * HOUR}, {})])
def test_an_older_list_does_not_replace_a_newer_one(
    older: dict[str, Any], newer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The newer one stays in use, which is told; what is new beside it is published. Taking the lists away is a way."""
    root, other = TestCA(), TestCA("another")
    bad, good = root.leaf(), root.leaf()
    trusted = pool(root, other)
    ours = manager(good, trusted, crls=lists(root.crl(bad, **newer), other.crl(number=1)))
    old = lists(root.crl(**older), other.crl(number=2))
    with caplog.at_level(logging.WARNING, "trionode.security"):
        assert ours.rotate_trust(crls=old) == 2
    [record] = [each for each in caplog.records if each.name == "trionode.security"]
    assert "is older than the one in use" in record.getMessage()
    assert refused(bad, ours)
    assert not refused(good, ours)
    assert ours.crls is not None
    assert set(map(id, old)) < set(map(id, ours.crls))
    ours.rotate_trust(crls=None)
    ours.rotate_trust(crls=old)
    assert not refused(bad, ours)


def refused(key_pair: KeyPair, ours: CertAuthManager) -> bool:
    """Whether a client is refused as revoked."""
    contexts = publisher_of(ours).channel.current
    theirs = TLSContexts.build(1, key_pair, TLSPolicy())
    failure = handshake_in_memory(
        contexts.server.session(), theirs.client.session(reference="localhost", insecure_skip_verify=True)
    )
    assert failure is None or (isinstance(failure, PeerUnverifiedError) and failure.reason is UnverifiedReason.REVOKED)
    return failure is not None


# Size ---------------------------------------------------------------------------------------------------------------


class Guarded:
    """A list as `cryptography` has it, of which nobody may ask what takes longer the longer it is."""

    def __init__(self, crl: x509.CertificateRevocationList) -> None:
        self._crl = crl

    def __getattr__(self, name: str) -> object:
        cheap = {"issuer", "last_update_utc", "next_update_utc", "extensions"}
        cheap |= {"signature", "signature_hash_algorithm", "signature_algorithm_parameters"}
        assert name in cheap, f"{name} takes time"
        return getattr(self._crl, name)


async def test_once_it_was_read_a_list_costs_nothing_by_its_length() -> None:
    """It is not encoded, hashed, walked or searched again: not in handshakes, rotations, checks or events."""
    root = TestCA()
    bad, good = root.leaf(), root.leaf()

    def guarded(*revoked: KeyPair) -> CRLSet:
        crl = root.crl(*revoked)
        return CRLSet._of([RevocationList(cast("x509.CertificateRevocationList", Guarded(crl)), der(crl))])

    first, second = guarded(), guarded(bad)
    ours = manager(good, root.pool, crls=first)
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)], bind_names=False)
    with trio.fail_after(20):
        async with (
            open_node("a@localhost", NodeOptions(cert_manager=ours, network=network)) as node,
            open_node("b@localhost", NodeOptions(cert_manager=manager(bad, root.pool), network=network)) as other,
        ):
            host, port = node.acceptors[0].address[:2]
            connection = await other.connect("a@localhost", Route(host=host, port=port))
            assert not refused(bad, ours)
            assert [peer.revoked for peer in ours.stranded_by(crls=second)] == [True]
            ours.rotate_trust(crls=second)
            await connection.wait_closed()
            assert refused(bad, ours)
            ours.update(root.leaf())
            ours.check(good)
            ours.statistics()
            await trio.testing.wait_all_tasks_blocked()
    assert first != second
    assert len({first, second}) == 2


def der(crl: x509.CertificateRevocationList) -> bytes:
    """A list's encoding."""
    return crl.public_bytes(Encoding.DER)
