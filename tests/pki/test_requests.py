"""Certificate signing requests: what is signed, and what is not, however it is asked for."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from csr import P256, names, request
from specimens import NOW, authority
from trionode._identity.names import SubjectNames
from trionode.pki import CertificateAuthority, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._credentials.pem import PrivateKey


@pytest.mark.parametrize("intermediate", [False, True])
def test_only_the_key_is_taken_from_a_request(*, intermediate: bool) -> None:
    """Names, purposes and dates are those of the call; the chain is the one that peers need."""
    ca = authority(intermediate=intermediate)
    chain = ca.sign(request(), "alpha@localhost", lifetime=timedelta(hours=1), serial_number=77)
    assert chain[1:] == (() if ca.intermediate is None else (ca.intermediate,))
    leaf = chain[0]
    assert (leaf.serial_number, leaf.public_key(), leaf.not_valid_after_utc) == (
        77,
        P256.public_key(),
        NOW + timedelta(hours=1),
    )
    assert "evil" not in leaf.subject.rfc4514_string()
    ours = ca.issue("alpha@localhost", lifetime=timedelta(hours=1)).certificate
    assert {each.oid for each in leaf.extensions} == {each.oid for each in ours.extensions}
    leaf.verify_directly_issued_by(ca.issuer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
        ed448.Ed448PrivateKey.generate,
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "P-521", "Ed25519", "Ed448", "RSA"],
)
def test_keys_for_tls(make: Callable[[], PrivateKey]) -> None:
    """All kinds."""
    key = make()
    assert authority().sign(request(key), "localhost")[0].public_key() == key.public_key()


def test_names_that_it_gets_may_be_asked_for() -> None:
    """In any spelling; other wishes make no difference."""
    asked = x509.SubjectAlternativeName(
        [x509.DNSName("LocalHost"), x509.UniformResourceIdentifier("trionode://alpha@localhost")]
    )
    leaf = authority().sign(request(P256, asked, x509.OCSPNoCheck()), "alpha@localhost")[0]
    assert SubjectNames.of(leaf).cover_host("localhost")
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.OCSPNoCheck)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("10.0.0.1"))])
    assert authority().sign(request(P256, address), "10.0.0.1")


USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        (names("localhost", "other.example"), "the name other.example"),
        (names("*.localhost"), "the name"),
        (x509.SubjectAlternativeName([x509.RFC822Name("a@b.example")]), "the name a@b.example"),
        (x509.BasicConstraints(ca=True, path_length=None), "a certificate of a CA"),
        (USAGE, "signs certificates or lists"),
    ],
)
def test_a_request_for_more(extension: x509.ExtensionType, words: str) -> None:
    """For another name, or to be a CA: an error, and not a certificate that says less."""
    with pytest.raises(ValueError, match=words.replace("*", ".")):
        authority().sign(request(P256, extension), "alpha@localhost")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rsa.generate_private_key(65537, key_size=1024), "RSA key of 1024 bits"),  # noqa: S505 -- weak on purpose
        (lambda: rsa.generate_private_key(public_exponent=3, key_size=2048), "with the exponent 3"),
        (lambda: ec.generate_private_key(ec.SECP224R1()), "on the curve secp224r1"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "on the curve secp256k1"),
        (lambda: dsa.generate_private_key(1024), "which TLS 1.3 does not use"),  # noqa: S505 -- ditto
    ],
    ids=["RSA 1024", "RSA e=3", "P-224", "K-256", "DSA"],
)
def test_a_weak_key(make: Callable[[], PrivateKey | dsa.DSAPrivateKey], words: str) -> None:
    """None is signed for."""
    asked = request(make())
    with pytest.raises(ValueError, match=words):
        authority().sign(asked, "alpha@localhost")


def test_a_signature_by_another_key() -> None:
    """The key in it is another's: no proof of possession."""
    theirs, mine = request(P256), request(ec.generate_private_key(ec.SECP256R1()))
    forged = theirs.public_bytes(Encoding.DER).replace(theirs.signature, mine.signature)
    if len(mine.signature) != len(theirs.signature):  # DER lengths differ: damage the signature in place
        forged = theirs.public_bytes(Encoding.DER)[:-1] + bytes([theirs.signature[-1] ^ 1])
    with pytest.raises(ValueError, match="not signed by the private key"):
        authority().sign(parse_request(forged), "alpha@localhost")


OF_VERSION_9: Final = request().public_bytes(Encoding.DER).replace(b"\x02\x01\x00", b"\x02\x01\x09", 1)


NO_REQUESTS: Final = {
    "nothing": b"",
    "a beginning": b"-----BEGIN",
    "no DER": b"\x30\x82" + bytes(100),
    "too long": bytes(40_000),
    "text": NOW.isoformat().encode(),
    "another version": OF_VERSION_9,
}


@pytest.mark.parametrize("data", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request(data: bytes) -> None:
    """One error, whatever it is."""
    with pytest.raises(ValueError, match="certificate signing request"):
        parse_request(data)


def test_requests_are_read_in_both_forms() -> None:
    """DER and PEM."""
    for encoding in (Encoding.DER, Encoding.PEM):
        assert parse_request(request().public_bytes(encoding)).public_key() == P256.public_key()


def test_a_root_without_room_below_it_signs_no_intermediate() -> None:
    """Nor does an intermediate."""
    for ca in (authority(), authority(intermediate=True)):
        with pytest.raises(ValueError, match="may have CAs below it"):
            ca.subordinate()
    root = CertificateAuthority.create(subordinates=True)
    assert (
        root.subordinate(lifetime=timedelta(days=9999)).issuer.not_valid_after_utc
        == root.certificate.not_valid_after_utc
    )
