"""`trionode pki show`: everything in a file is shown, whatever it is; of keys no more than their kind."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7, pkcs12

from specimens import armour, assert_no_key_in, dsa_key, key_of, key_pem, leaf, name, pem
from trionode._credentials.contents import contents, public_digest
from trionode._credentials.pem import Secret
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

    Command = Callable[..., Said]

KEY = key_of("p256")
CA = CertificateAuthority.create()
[LIST] = CA.revocation_list(CA.issue("alpha@localhost").certificate)
REQUEST = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(name("wanted"))
    .add_extension(x509.SubjectAlternativeName([x509.DNSName("db.example")]), critical=False)
    .sign(KEY, hashes.SHA256())
)


def pkcs12_bundle(password: str | None) -> bytes:
    """Leaf, a CA, and the key."""
    encryption = NoEncryption() if password is None else serialization.BestAvailableEncryption(password.encode())
    return pkcs12.serialize_key_and_certificates(b"", KEY, leaf(), [CA.certificate], encryption)


def as_openssl_trusts(directory: Path) -> bytes:
    """A TRUSTED CERTIFICATE block."""
    command = ["openssl", "x509", "-addtrust", "serverAuth", "-trustout"]
    return subprocess.run(command, input=pem(leaf()), capture_output=True, check=True, cwd=directory).stdout


SHOWN: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "certificate, DER": (lambda: leaf().public_bytes(Encoding.DER), ["certificate 1 of 1 in it (DER)", "CN=leaf"]),
    "list": (lambda: LIST.public_bytes(Encoding.PEM), ["revocation list in it", "revoked  1"]),
    "list, DER": (lambda: LIST.public_bytes(Encoding.DER), ["revocation list in it (DER)", "revoked  1"]),
    "request": (
        lambda: REQUEST.public_bytes(Encoding.PEM),
        ["certificate request in it", "CN=wanted", "DNS:db.example"],
    ),
    "request, DER": (lambda: REQUEST.public_bytes(Encoding.DER), ["(DER)", "CN=wanted", "by its own key"]),
    "key": (lambda: key_pem(KEY), ["private key in it", "EC secp256r1", "none: keep the file private"]),
    "key, encrypted": (lambda: key_pem(KEY, password="secret"), ["private key in it", "encrypted (", "AES-256-CBC"]),
    "key, DER": (
        lambda: KEY.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        ["private key in it (DER)", "EC secp256r1", public_digest(KEY.public_key())],
    ),
    "key, RSA": (lambda: key_pem(key_of("rsa"), PrivateFormat.TraditionalOpenSSL), ["RSA 2048"]),
    "key, DSA": (lambda: key_pem(dsa_key()), ["DSA 1024"]),
    "key, Ed25519": (lambda: key_pem(key_of("ed25519")), ["Ed25519"]),
    "public key": (
        lambda: KEY.public_key().public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        ["public key in it", "EC secp256r1"],
    ),
    "PKCS#7": (
        lambda: pkcs7.serialize_certificates([leaf(), CA.certificate], Encoding.PEM),
        ["certificate 2 of 2 in it (PKCS#7 bundle): a root CA"],
    ),
    "PKCS#7, DER": (
        lambda: pkcs7.serialize_certificates([leaf(), CA.certificate], Encoding.DER),
        ["certificate 2 of 2 in it (PKCS#7 bundle): a root CA"],
    ),
    "PKCS#12": (
        lambda: pkcs12_bundle(None),
        ["certificate 2 of 2 in it (PKCS#12 bundle): a root CA", "private key in it (PKCS#12 bundle)"],
    ),
    "all in one": (
        lambda: pem(leaf()) + key_pem(KEY) + LIST.public_bytes(Encoding.PEM) + pem(CA.certificate),
        ["certificate 1 of 2", "private key in it", "revocation list in it", "certificate 2 of 2 in it: a root CA"],
    ),
}


@pytest.mark.parametrize("what", SHOWN)
def test_everything_in_a_file_is_shown(what: str, trionode_command: Command, tmp_path: Path) -> None:
    """For people and as JSON; no secret."""
    make, wanted = SHOWN[what]
    (tmp_path / "it").write_bytes(make())
    said = trionode_command("pki", "show", "it")
    assert (said.status, said.err) == (0, "")
    assert [each for each in wanted if each not in said.out] == []
    in_json = trionode_command("pki", "show", "--json", "it")
    assert {each["file"] for each in in_json.document} == {"it"}
    assert all(each["kind"] for each in in_json.document)
    for key in (KEY, key_of("rsa"), key_of("ed25519")):
        assert_no_key_in(said.out + in_json.out, key)


def test_a_trusted_certificate_is_shown(trionode_command: Command, tmp_path: Path) -> None:
    """OpenSSL's own kind of block, without what it is trusted for."""
    (tmp_path / "it").write_bytes(as_openssl_trusts(tmp_path))
    said = trionode_command("pki", "show", "it")
    assert "certificate 1 of 1 in it (TRUSTED CERTIFICATE)" in said.out
    assert "CN=leaf" in said.out


def test_what_is_encrypted_takes_a_password(trionode_command: Command, tmp_path: Path) -> None:
    """Without it, that it is encrypted; with a wrong one, that; with the right one, what is in there."""
    (tmp_path / "bundle").write_bytes(pkcs12_bundle("secret"))
    (tmp_path / "key").write_bytes(key_pem(KEY, password="secret"))
    (tmp_path / "right").write_text("secret\n")
    (tmp_path / "wrong").write_text("guess\n")
    trionode_command("pki", "show", "bundle").is_one_line("is encrypted; give its password", status=3)
    wrong = trionode_command("pki", "show", "--password-file", "wrong", "bundle")
    wrong.is_one_line("the password does not open the PKCS#12 bundle", status=3)
    assert "the password does not open it" in trionode_command("pki", "show", "--password-file", "wrong", "key").out
    for file in ("bundle", "key"):
        said = trionode_command("pki", "show", "--password-file", "right", file)
        assert (said.status, "EC secp256r1" in said.out) == (0, True)
        assert_no_key_in(said.out, KEY)


def test_what_cannot_be_read_says_why_and_hides_nothing(trionode_command: Command, tmp_path: Path) -> None:
    """The rest of the file is shown; the exit status tells."""
    no_base64 = b"-----BEGIN X509 CRL-----\n%%%\n-----END X509 CRL-----\n"
    (tmp_path / "it").write_bytes(pem(leaf()) + armour(b"0\x03nonsense") + no_base64 + pem(CA.certificate)[:-30])
    said = trionode_command("pki", "show", "it")
    assert said.status == 3
    assert "certificate 1 of 3 in it: a leaf, signed by itself" in said.out
    assert "it cannot be parsed: error parsing asn1" in said.out
    assert "revocation list in it (X509 CRL)\nnote  it is damaged: no base64" in said.out
    assert "certificate in it (CERTIFICATE)\nnote  it is cut off: it has no END line" in said.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<html>", "it is HTML or XML"),
        (b"-----BEGIN DH PARAMETERS-----\nAAAA\n", "it holds DH PARAMETERS"),
        ("-----BEGIN".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_of_nothing(content: bytes, said: str, trionode_command: Command, tmp_path: Path) -> None:
    """What it is, instead."""
    (tmp_path / "it").write_bytes(content)
    trionode_command("pki", "show", "it").is_one_line(said, status=3)


def test_lists_that_no_node_would_use_are_shown(trionode_command: Command, tmp_path: Path) -> None:
    """And why not: a delta, for one."""
    now = LIST.last_update_utc
    delta = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name("delta"))
        .last_update(now)
        .next_update(now.replace(year=now.year + 1))
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
        .sign(KEY, hashes.SHA256())
    )
    (tmp_path / "it").write_bytes(delta.public_bytes(Encoding.PEM))
    assert "is a delta" in trionode_command("pki", "show", "it").out
    assert [each["usable"] for each in trionode_command("pki", "show", "--json", "it").document] == [False]


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"0\x80", b"0\x03\x02\x01\x03", b"-----BEGIN PKCS7-----\nAAAA\n", b"\x30" * 99]
)
def test_contents_are_total(data: bytes) -> None:
    """Parts, or none, whatever it is."""
    assert isinstance(contents(Secret(data)), tuple)
