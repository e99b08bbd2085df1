"""The judge of trust: strength, names, revocation along a path, which fault is told, and bounds."""

from __future__ import annotations

import itertools
import ssl
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from ca import DAY, HOUR, TestCA, lists, new_key
from path_cases import TREES, UNKNOWN_CA, constrained, pool, record
from specimens import key_pem, pem
from trionode import (
    CAPool,
    CRLPolicy,
    CRLSet,
    Revocation,
)
from trionode._credentials.policy import TLSPolicy
from trionode._credentials.revocation import Unknown
from trionode._identity.outline import Outline, outline
from trionode._tls import candidates
from trionode._tls.anchors import anchors_of
from trionode._tls.candidates import Candidate
from trionode._tls.judge import Fault, Judge
from trionode._tls.paths import MAX_PATHS, Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trionode._credentials.pem import PrivateKey

REVOKED, NO_CRL, CRL_EXPIRED, EXPIRED, WEAK_DIGEST = 23, 3, 12, 10, 68

sides = pytest.mark.parametrize("accepting", [True, False], ids=["acceptor", "dialer"])


def judge(trusted: CAPool, crls: CRLSet | None = None, *, accepting: bool = True, **more: object) -> Judge:
    """A judge of both directions' pools."""
    policy = TLSPolicy(client_cas=trusted, root_cas=trusted, crls=crls, **more)  # type: ignore[arg-type]
    return Judge(policy, accepting=accepting)


def fault(judge: Judge, chain: Sequence[x509.Certificate], *, dated: bool = True) -> Fault:
    """What a judge says against a chain, which must be something."""
    verdict = judge.judge(chain, dated=dated)
    assert verdict.fault is not None
    assert verdict.path == ()
    return verdict.fault


def code(judge: Judge, chain: Sequence[x509.Certificate], *, dated: bool = True) -> int:
    """The code of a verdict."""
    found = judge.judge(chain, dated=dated).fault
    return 0 if found is None else found.code


@sides
def test_the_path_is_told(accepting: bool) -> None:
    """From the leaf to the anchor, and nothing above it."""
    root = TestCA()
    middle = TestCA("middle", below=root)
    chain = middle.leaf().chain
    for presented in (chain, (*chain, root.certificate), [crypto.X509.from_cryptography(each) for each in chain]):
        assert judge(root.pool, accepting=accepting).judge(presented).path == (*chain, root.certificate)
    assert judge(pool(root, middle), accepting=accepting).judge(chain).path == chain


def test_nobody_is_vouched_for_by_no_pool() -> None:
    """Without client CAs no client is trusted."""
    verdict = Judge(TLSPolicy(), accepting=True).judge(TestCA().leaf().chain)
    assert verdict.fault is not None
    assert verdict.fault.code == UNKNOWN_CA


def test_a_leaf_that_cannot_be_read_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller refuses it; what else cannot be read is no part of a path."""
    root, odd = TestCA(), TestCA("odd").certificate
    leaf = root.leaf().certificate

    def read(der: bytes) -> Outline:
        if der == odd.public_bytes(Encoding.DER):
            msg = "unreadable"
            raise ValueError(msg)
        return outline(der)

    monkeypatch.setattr("trionode._tls.candidates.outline", read)
    assert code(judge(root.pool), [leaf, odd]) == 0
    with pytest.raises(ValueError, match="unreadable"):
        judge(root.pool).judge([odd, leaf])


# Which fault is told ------------------------------------------------------------------------------------------------


def test_where_the_ca_is_unknown_the_path_that_went_furthest_is_told() -> None:
    """And the certificate at its end, whose issuer is not there."""
    unknown = TestCA("unknown")
    middle = TestCA("middle", below=unknown)
    chain = middle.leaf().chain
    found = fault(judge(TestCA().pool), (chain[0], TestCA("stray").certificate, chain[1]))
    assert (found.code, found.depth, found.found, found.detail) == (UNKNOWN_CA, 1, middle.certificate, None)
    # A stale CA of the leaf's issuer's name in the pool is not what matters.
    found = fault(judge(TestCA("middle").pool), chain)
    assert (found.found, found.detail) == (middle.certificate, None)


def test_where_only_a_stale_ca_has_the_name_it_is_told() -> None:
    """As Go does: possibly because of that one."""
    stale = TestCA()
    leaf = TestCA().leaf()
    found = fault(judge(stale.pool), leaf.chain)
    assert (found.code, found.found, found.detail) == (UNKNOWN_CA, leaf.certificate, stale.certificate)


def test_of_several_paths_the_fault_of_the_best_is_told() -> None:
    """A path that fails for its dates alone beats a revoked one, that an unfit one, and that one that is not signed."""
    root = TestCA()
    key = new_key()
    old = TestCA("middle", below=root, key=key, start=-20 * DAY, end=-DAY)
    revoked = TestCA("middle", below=root, key=key)
    unfit = TestCA("middle", below=root, key=key, basic=x509.BasicConstraints(ca=False, path_length=None))
    namesake = TestCA("middle", below=root)
    leaf = revoked.leaf().certificate
    crls = lists(root.crl(revoked.certificate), revoked.crl())
    ranked = [(namesake, UNKNOWN_CA), (unfit, 79), (revoked, REVOKED), (old, EXPIRED)]
    for number in range(1, 5):
        for some in itertools.permutations(ranked[:number]):
            sent = [each.certificate for each, _ in some]
            assert code(judge(root.pool, crls), [leaf, *sent]) == ranked[number - 1][1]
    # Without dates the expired one would do: that is what "for its dates alone" means.
    assert code(judge(root.pool, crls), [leaf, *(each.certificate for each, _ in ranked)], dated=False) == 0


# Strength -----------------------------------------------------------------------------------------------------------


def handshake_at_level_2(chain: Sequence[x509.Certificate], key: PrivateKey, anchor: x509.Certificate, to: Path) -> int:
    """The verdict of Python's own `ssl`, at OpenSSL's security level 2."""
    for file, content in (("chain", pem(*chain)), ("key", key_pem(key)), ("anchor", pem(anchor))):
        (to / file).write_bytes(content)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_ciphers("DEFAULT:@SECLEVEL=0")
    server.load_cert_chain(to / "chain", to / "key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.set_ciphers("DEFAULT:@SECLEVEL=2")
    client.load_verify_locations(to / "anchor")
    incoming, outgoing, back, forth = (ssl.MemoryBIO() for _ in range(4))
    ours = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    theirs = server.wrap_bio(back, forth, server_side=True)
    for _ in range(4):
        try:
            ours.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as exc:
            return exc.verify_code
        else:
            return 0
        back.write(outgoing.read())
        with suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
        incoming.write(forth.read())
    pytest.fail("the handshake does not end")


WEAK_KEYS: dict[str, Callable[[], PrivateKey]] = {
    "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505
    "RSA-1962": lambda: rsa.generate_private_key(65537, 1962),  # noqa: S505
    "RSA-1963": lambda: rsa.generate_private_key(65537, 1963),  # noqa: S505
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "secp192r1": lambda: ec.generate_private_key(ec.SECP192R1()),
    "secp224r1": lambda: ec.generate_private_key(ec.SECP224R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", WEAK_KEYS)
def test_keys_as_at_security_level_2(kind: str, tmp_path: Path) -> None:
    """Of a leaf, of an intermediate, of a root: what OpenSSL says in a handshake at level 2, we say everywhere."""
    key, root = WEAK_KEYS[kind](), TestCA()
    middle, weak_root = TestCA("middle", below=root, key=key), TestCA("weak", key=key)
    leaf = root.sign("leaf", key, [x509.SubjectAlternativeName([x509.DNSName("localhost")])], start=-DAY, end=DAY)
    below, under = middle.leaf(), weak_root.leaf()
    for chain, signs, anchor in (
        ((leaf,), key, root.certificate),
        (below.chain, below.private_key, root.certificate),
        (under.chain, under.private_key, weak_root.certificate),
    ):
        ours = code(judge(CAPool([anchor]), accepting=False), chain)
        if signs is key and isinstance(key, ec.EllipticCurvePrivateKey):  # not curves that TLS 1.3 signs with
            assert ours == (66 if key.key_size < 224 else 0)
        else:
            assert ours == handshake_at_level_2(chain, signs, anchor, tmp_path)


@pytest.mark.parametrize("digest", ["md5", "sha1", "sha224", "sha256"])
def test_digests_as_at_security_level_2(digest: str, tmp_path: Path) -> None:
    """A signature by MD5 or SHA-1 is none; an anchor's own is not looked at. `openssl` makes them."""
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=root", f"-{digest}", cwd=tmp_path)
    run(
        "openssl",
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=leaf",
        "-keyout",
        "k",
        "-out",
        "r",
        cwd=tmp_path,
    )
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost\n")
    signing = ("-CA", "ca.pem", "-CAkey", "privkey.pem", "-CAcreateserial", "-extfile", "names", f"-{digest}")
    run("openssl", "x509", "-req", "-in", "r", "-out", "leaf.pem", *signing, cwd=tmp_path)
    root, leaf = (x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.pem", "leaf.pem"))
    expected = WEAK_DIGEST if digest in ("md5", "sha1") else 0
    assert code(judge(CAPool([root])), [leaf]) == expected
    assert code(judge(CAPool([root])), [root]) == 0


def run(*command: str, cwd: Path) -> None:
    """Run a program that has to succeed."""
    if "-x509" in command:
        command = (*command, "-keyout", "privkey.pem", "-out", "ca.pem")
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)


# Name constraints, as BetterTLS has them -----------------------------------------------------------------------------


@pytest.mark.parametrize("permitted", TREES)
@pytest.mark.parametrize("excluded", TREES)
def test_name_constraints_in_every_combination(permitted: str, excluded: str) -> None:
    """The SANs decide, and a Common Name counts for nothing; Go says so, and so does `ssl`."""
    told = record().constraints
    for name, case in constrained(permitted, excluded):
        for accepting in (True, False):
            assert code(judge(case.trusted, accepting=accepting), case.leaf.chain) in case.codes, name
        assert {who: said == "" for who, said in told[name].items()} == dict.fromkeys(
            ("server", "client", "ssl"), case.codes == {0}
        ), told[name]


# Revocation along a path --------------------------------------------------------------------------------------------


@sides
def test_every_certificate_of_a_path_is_checked(accepting: bool) -> None:
    """By the list of the one above it; `leaf_only` looks at the leaf alone, and an anchor needs none."""
    root = TestCA()
    middle = TestCA("middle", below=root)
    chain = middle.leaf().chain

    def verdict(crls: CRLSet, trusted: CAPool = root.pool, **policy: bool) -> tuple[int, int]:
        found = judge(trusted, crls, accepting=accepting, crl_policy=CRLPolicy(**policy)).judge(chain).fault
        return (0, 0) if found is None else (found.code, found.depth)

    assert verdict(lists(root.crl(), middle.crl())) == (0, 0)
    assert verdict(lists(root.crl(), middle.crl(chain[0]))) == (REVOKED, 0)
    assert verdict(lists(root.crl(chain[1]), middle.crl())) == (REVOKED, 1)
    assert verdict(lists(root.crl(root.certificate), middle.crl())) == (REVOKED, 2)
    assert verdict(lists(root.crl(chain[1]), middle.crl()), leaf_only=True) == (0, 0)
    assert verdict(lists(root.crl())) == (NO_CRL, 0)
    assert verdict(lists(middle.crl())) == (NO_CRL, 1)
    assert verdict(lists(middle.crl()), leaf_only=True) == (0, 0)
    assert verdict(lists(middle.crl()), middle.pool) == (0, 0)
    assert verdict(lists(root.crl()), CAPool(chain[:1])) == (0, 0)
    assert verdict(lists(root.crl(), middle.crl(start=-2 * DAY, end=-DAY))) == (CRL_EXPIRED, 0)


def test_an_anchor_is_revoked_by_a_key_that_is_trusted() -> None:
    """Not by a namesake's list, nor by its own issuer's where that is not in the pool."""
    root, namesake = TestCA(), TestCA()
    middle = TestCA("middle", below=root)
    chain = middle.leaf().chain[:1]
    good, bad = middle.crl(), root.crl(middle.certificate)
    forged = namesake.crl(middle.certificate)
    assert code(judge(pool(middle, root), lists(good, bad)), chain) == REVOKED
    assert code(judge(pool(middle, root), lists(good, bad, namesake.crl(start=-HOUR / 2))), chain) == REVOKED
    assert code(judge(pool(middle, root, namesake), lists(good, bad, namesake.crl(start=-HOUR / 2))), chain) == REVOKED
    for trusted in (pool(middle), pool(middle, root), pool(middle, root, namesake)):
        assert code(judge(trusted, lists(good, root.crl(), forged)), chain) == 0
    assert code(judge(pool(middle), lists(good, bad)), chain) == 0
    # A CA that is trusted in the other direction is trusted.
    for accepting in (True, False):
        ours, other = pool(middle), pool(root)
        policy = TLSPolicy(
            client_cas=ours if accepting else other, root_cas=other if accepting else ours, crls=lists(good, bad)
        )
        assert code(Judge(policy, accepting=accepting), chain) == REVOKED


def test_a_path_that_openssl_sees_another_in_is_none() -> None:
    """An anchor with the name of an intermediate: the way to the anchor holds, the one through the other does not."""
    root = TestCA(key_ids=False)
    namesake = TestCA(below=root, key_ids=False)
    leaf = root.leaf().certificate
    chain = [leaf, namesake.certificate]
    assert judge(root.pool).judge(chain).path == (leaf, root.certificate)
    assert code(judge(root.pool, lists(root.crl(leaf), namesake.crl())), chain) == REVOKED
    loose = CRLPolicy(allow_missing=True, leaf_only=True)
    assert code(judge(root.pool, lists(root.crl(leaf)), crl_policy=loose), chain) == REVOKED


def test_a_revoked_path_is_no_reason_against_another() -> None:
    """A cross-certificate that was revoked, beside one that was not."""
    first, second = TestCA("first"), TestCA("second")
    one = TestCA("middle", below=first)
    other = TestCA("middle", below=second, key=one.key)
    chain = [one.leaf().certificate, one.certificate, other.certificate]
    crls = lists(first.crl(one.certificate), second.crl(), one.crl())
    assert code(judge(pool(first, second), crls), chain) == 0
    assert code(judge(pool(first), crls), chain) == REVOKED


def test_what_a_fault_holds() -> None:
    """The revocation; or why nobody knows."""
    root = TestCA()
    leaf = root.leaf()
    found = fault(judge(root.pool, lists(root.crl(leaf, reason=x509.ReasonFlags.key_compromise))), leaf.chain)
    assert isinstance(found.detail, Revocation)
    assert found.detail.reason == "keyCompromise"
    found = fault(judge(root.pool, lists(TestCA("another").crl())), leaf.chain)
    assert isinstance(found.detail, Unknown)
    assert found.detail.text == "there is no CRL of CN=root"


# Dates --------------------------------------------------------------------------------------------------------------


@sides
def test_the_clock_is_the_policys(accepting: bool) -> None:
    """Certificates and lists are judged by it, each time anew; dates of certificates only where they are asked for."""
    root, shift = TestCA(), timedelta()
    leaf = root.leaf(end=10 * DAY)
    policy = TLSPolicy(client_cas=root.pool, root_cas=root.pool, clock=lambda: datetime.now(UTC) + shift)
    plain = Judge(policy, accepting=accepting)
    listed = Judge(replace(policy, crls=lists(root.crl())), accepting=accepting)
    for shift, dated, undated, with_list in (  # noqa: B007 -- the clock looks at it
        (timedelta(), 0, 0, 0),
        (2 * DAY, 0, 0, CRL_EXPIRED),
        (20 * DAY, EXPIRED, 0, CRL_EXPIRED),
        (-5 * DAY, 9, 0, 11),
        (timedelta(), 0, 0, 0),
    ):
        assert code(plain, leaf.chain) == dated
        assert code(plain, leaf.chain, dated=False) == undated
        assert code(listed, leaf.chain, dated=False) == with_list


# Bounds -------------------------------------------------------------------------------------------------------------


def test_no_end_of_paths_is_tried() -> None:
    """Certificates that are arranged so that there are more paths than anybody could try end in bounded time."""
    anchor = TestCA()
    # Each of these may have issued each other, by name; the anchor, too; and none of them did.
    crowd = [TestCA() for _ in range(31)]
    leaf = TestCA().leaf()
    presented = [leaf.certificate, *(each.certificate for each in crowd)]
    tried = Paths([Candidate(each) for each in presented], anchors_of(anchor.pool))
    assert len([*tried]) == MAX_PATHS
    start = time.monotonic()
    assert code(judge(anchor.pool), presented) == UNKNOWN_CA
    assert code(judge(TestCA("elsewhere").pool), presented) == UNKNOWN_CA
    assert time.monotonic() - start < 5


def test_the_right_one_of_many() -> None:
    """Fifty CAs of one name are no obstacle."""
    crowd = [TestCA(key_ids=False) for _ in range(50)]
    leaf = crowd[-1].leaf()
    assert code(judge(pool(*crowd)), leaf.chain) == 0
    middles = [TestCA("middle", below=crowd[0], key_ids=False) for _ in range(30)]
    chain = [middles[-1].leaf().certificate, *(each.certificate for each in middles)]
    assert code(judge(crowd[0].pool), chain) == 0


# What is kept -------------------------------------------------------------------------------------------------------


def test_a_peer_that_comes_back_costs_no_signature_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """What of a path never changes is worked out once, for all who trust a pool; what does change, each time."""
    root, shift = TestCA(), timedelta()
    leaf = TestCA("middle", below=root).leaf(end=10 * DAY)
    policy = TLSPolicy(client_cas=root.pool, root_cas=root.pool, clock=lambda: datetime.now(UTC) + shift)
    assert code(Judge(policy, accepting=True), leaf.chain) == 0
    monkeypatch.setattr("trionode._tls.anchors.verify", lambda *_: pytest.fail("verified again"))
    assert code(Judge(replace(policy, clock=None), accepting=True), leaf.chain) == 0
    shift = 20 * DAY
    assert code(Judge(policy, accepting=True), leaf.chain) == EXPIRED
    assert code(Judge(replace(policy, clock=None, crls=lists(root.crl())), accepting=True), leaf.chain) == NO_CRL
    with pytest.raises(pytest.fail.Exception):
        Judge(policy, accepting=False).judge(leaf.chain)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of peers may come by."""
    monkeypatch.setattr("trionode._tls.candidates._RECENT", 3)
    monkeypatch.setattr("trionode._tls.anchors._KEPT", 3)
    root = TestCA()
    ours = judge(root.pool)
    for _ in range(10):
        assert code(ours, root.leaf().chain) == 0
    assert len(candidates._recent) <= 3
    assert len(anchors_of(root.pool)._verdicts) <= 3
