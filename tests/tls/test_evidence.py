"""What a refusal says of the certificate: key, digest, constraint and name; and whose certificate is to be replaced."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.stress.fuzz import forging
from ca import DAY, TestCA, alternative_names, key_usage, named, new_key
from specimens import key_of
from trionode._credentials.policy import TLSPolicy
from trionode._identity.certificate import decode
from trionode._tls.evidence import evidence
from trionode._tls.judge import Fault, Judge
from trionode._tls.verification import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode import CAPool
    from trionode._credentials.pem import PrivateKey


def leaf(ca: TestCA, *names: str, key: PrivateKey | None = None, subject: str = "leaf") -> x509.Certificate:
    """A leaf of any key and name."""
    return ca.sign(subject, key or new_key(), [alternative_names(*names or ("localhost",))], start=-DAY, end=DAY)


def told(pool: CAPool, *chain: x509.Certificate) -> str:
    """What is said of a server's chain."""
    refused = refusal_of(Judge(TLSPolicy(root_cas=pool), accepting=False), chain, dated=True)
    assert refused is not None
    return str(refused)


def constrained(permitted: list[x509.GeneralName] | None, excluded: list[x509.GeneralName] | None) -> TestCA:
    """An intermediate with name constraints."""
    return TestCA("site", below=TestCA(), extensions=[x509.NameConstraints(permitted, excluded)])


WEAK_ROOT = TestCA("weak", key=key_of("rsa-1024"))
ROOT = TestCA()


@pytest.mark.parametrize(
    ("pool", "chain", "said"),
    [
        pytest.param(
            ROOT.pool,
            lambda: [leaf(ROOT, key=key_of("rsa-1024"))],
            ["too weak a key: RSA 1024; at least 2048 bits are needed", "for a new key", "code 66"],
            id="66",
        ),
        pytest.param(
            WEAK_ROOT.pool,
            lambda: [leaf(WEAK_ROOT)],
            ["(its CA in our root_cas: CN=weak", "RSA 1024", "replace it in root_cas", "code 67"],
            id="67 of an anchor",
        ),
    ],
)
def test_a_weak_key_is_named(pool: CAPool, chain: Callable[[], list[x509.Certificate]], said: list[str]) -> None:
    """Its kind and size, whose it is, and that it takes another key."""
    text = told(pool, *chain())
    assert [each for each in said if each not in text] == []


def test_a_weak_key_of_an_intermediate_is_named() -> None:
    """By its place in the chain."""
    root = TestCA()
    middle = TestCA("middle", below=root, key=key_of("rsa-1024"))
    text = told(root.pool, leaf(middle), middle.certificate)
    assert "(certificate 2 of its chain: CN=middle" in text
    assert "has too weak a key: RSA 1024" in text


@pytest.mark.parametrize(
    ("ca", "names", "said"),
    [
        (
            constrained([x509.DNSName("good.example"), x509.DNSName("fine.example")], None),
            ["db.good.example", "db.other.example"],
            "do not permit: DNS:db.other.example, and CN=site permits DNS:good.example, DNS:fine.example",
        ),
        (
            constrained([x509.IPAddress(ip_network("10.0.0.0/8"))], None),
            ["10.1.2.3", "192.0.2.1"],
            "do not permit: IP:192.0.2.1, and CN=site permits IP:10.0.0.0/8",
        ),
        (
            constrained(None, [x509.DNSName("other.example")]),
            ["db.good.example", "db.other.example"],
            "exclude: DNS:db.other.example, and CN=site excludes DNS:other.example",
        ),
        (
            constrained(None, [x509.DNSName("secret.good.example")]),
            ["*.good.example"],
            "exclude: DNS:*.good.example, and CN=site excludes DNS:secret.good.example",
        ),
    ],
)
def test_a_name_constraint_is_named_with_the_name(ca: TestCA, names: list[str], said: str) -> None:
    """Which CA's, which constraint, and which name is not within it."""
    assert ca.below is not None
    assert said in told(ca.below.pool, leaf(ca, *names), ca.certificate)


@pytest.mark.parametrize(
    ("kind", "value", "subtree", "within"),
    [
        ("URI", "trionode://a@db.good.example", x509.UniformResourceIdentifier(".good.example"), True),
        ("URI", "https://db.other.example/x", x509.UniformResourceIdentifier(".good.example"), False),
        ("email", "a@db.good.example", x509.RFC822Name(".good.example"), True),
        ("email", "a@good.example", x509.RFC822Name("good.example"), True),
        ("email", "a@good.example", x509.RFC822Name("b@good.example"), False),
    ],
)
def test_other_kinds_of_names(kind: str, value: str, subtree: x509.GeneralName, within: bool) -> None:
    """URIs and mailboxes, by RFC 5280 section 4.2.1.10."""
    ca = constrained([subtree], None)
    general = x509.UniformResourceIdentifier(value) if kind == "URI" else x509.RFC822Name(value)
    certificate = ca.sign("leaf", new_key(), [x509.SubjectAlternativeName([general])], start=-DAY, end=DAY)
    assert ca.below is not None
    found = evidence(Fault(code=47, path=(certificate, ca.certificate, ca.below.certificate), depth=0))
    assert (found == "") is within


@pytest.mark.parametrize(
    ("ca", "why"),
    [
        (TestCA("no-sign", usage=key_usage("digital_signature")), "its key usage lacks keyCertSign"),
        (TestCA("no-constraints", basic=None), "it has no basic constraints"),
        (TestCA("no-ca", basic=x509.BasicConstraints(ca=False, path_length=None)), "say CA:FALSE"),
    ],
)
def test_a_ca_of_our_pool_that_cannot_sign(ca: TestCA, why: str) -> None:
    """It is in the pool, so that adding it does not help."""
    text = told(ca.pool, leaf(ca))
    assert f"(its CA in our root_cas: CN={ca.name}" in text
    assert why in text
    assert "Add its CA" not in text
    assert "replace it in root_cas" in text


def test_a_ca_of_our_pool_that_has_expired() -> None:
    """It is ours to replace, and not the peer's."""
    old = TestCA("old", start=-20 * DAY, end=-DAY)
    text = told(old.pool, leaf(old))
    assert "(its CA in our root_cas: CN=old" in text
    assert "Replace it in root_cas" in text
    assert "The peer must" not in text


@pytest.mark.parametrize("key_ids", [True, False])
def test_a_leaf_with_the_name_of_its_ca(key_ids: bool) -> None:
    """OpenSSL takes it for self-signed; its CA is there."""
    ca = TestCA("same", key_ids=key_ids)
    text = told(ca.pool, leaf(ca, subject="same"))
    assert "signed it, but its own subject is that name as well" in text
    assert "another subject than that of its CA" in text
    assert "Add its CA" not in text


def test_key_identifiers_that_differ() -> None:
    """The key is the right one, and OpenSSL goes by the identifier."""
    ca = TestCA()
    stranger = x509.AuthorityKeyIdentifier(b"another", None, None)
    ca.key_ids = False
    every = [alternative_names("localhost"), stranger]
    text = told(ca.pool, ca.sign("leaf", new_key(), every, start=-DAY, end=DAY))
    assert "signed it, but their key identifiers differ" in text


def test_a_path_that_is_too_long_and_an_unknown_extension() -> None:
    """How long it may be, and which extension."""
    root = TestCA()
    first = TestCA("first", below=root, basic=x509.BasicConstraints(ca=True, path_length=0))
    second = TestCA("second", below=first)
    text = told(root.pool, leaf(second), second.certificate, first.certificate)
    assert "(path length): it allows 0, and there are 1" in text
    now = datetime.now(UTC)
    odd = (
        x509.CertificateBuilder(named("root"), named("leaf"), new_key().public_key(), 7, now - DAY, now + DAY)
        .add_extension(alternative_names("localhost"), critical=False)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), critical=True)
        .sign(root.key, hashes.SHA256())
    )
    assert "does not know: 1.2.3.4" in told(root.pool, odd)


def test_a_digest_and_a_curve_are_named() -> None:
    """Neither of which `cryptography` makes any more: as OpenSSL would find them."""
    good = leaf(ROOT, key=ec.generate_private_key(ec.SECP384R1()))
    assert evidence(Fault(code=94, path=(good,), depth=0)) == ": those of secp384r1"
    sha256, sha1 = (0x06, bytes.fromhex("2a8648ce3d040302")), (0x06, bytes.fromhex("2a8648ce3d0401"))
    der = good.public_bytes(Encoding.DER)
    assert der.count(forging.write(sha256)) == 2
    tag, parts = forging.parse(der)
    assert isinstance(parts, list)
    fields = parts[0][1]
    assert isinstance(fields, list)
    fields[2] = parts[1] = (0x30, [sha1])
    broken = decode(forging.write((tag, parts)))
    assert evidence(Fault(code=68, path=(broken,), depth=0)) == ": SHA-1"
