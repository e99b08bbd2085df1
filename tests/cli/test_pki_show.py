"""`trionode pki show`: everything in a file is shown, whatever it is; of keys no more than their kind."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7, pkcs12

from command_line import run_here
from specimens import armour, assert_no_key_in, dsa_key, key_of, key_pem, leaf, name, pem
from trionode import CAPool, CertificateError, KeyPair
from trionode._credentials.contents import contents, public_digest
from trionode._credentials.pem import Secret
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

    Command = Callable[..., Said]

PATIENCE = 30
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


# For people ---------------------------------------------------------------------------------------------------------


def test_show_explains_a_certificate(pki: Command, tmp_path: Path) -> None:
    """Names, the nodes that it speaks for, dates with the time left, purposes, issuer, fingerprint."""
    pair = KeyPair.load(tmp_path / "pki/alpha@localhost.pem", tmp_path / "pki/alpha@localhost-key.pem")
    out = pki("pki", "show", "alpha@localhost").out
    leaf = out.partition("certificate 2 of 2")[0]
    lines = dict(re.findall(r"^([\w-]+(?: for)?) {2,}(.*)$", leaf, re.MULTILINE))
    assert out.startswith("certificate 1 of 2 in pki/alpha@localhost.pem: a leaf\n")
    assert lines["subject"] == "CN=alpha@localhost"
    assert lines["names"] == "DNS:localhost, URI:trionode://alpha@localhost"
    assert lines["speaks for"] == "the node alpha@localhost"
    assert lines["valid"].endswith("UTC, 90 days left")
    assert lines["purposes"] == "serverAuth, clientAuth (a node needs both)"
    assert lines["issuer"].startswith("CN=trionode development CA,OU=issuing ")
    assert lines["SHA-256"] == pair.fingerprint


def test_show_says_what_is_odd(trionode_command: Command, tmp_path: Path) -> None:
    """Expired, not yet valid, for one side only, speaking for nobody, signed by itself, a chain, other keys."""
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(clock=lambda: now - timedelta(days=30), intermediate=True)
    server_only = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    pairs = {
        "expired": ca.issue("a@localhost", not_after=now - timedelta(days=3), key_type="p384"),
        "early": ca.issue("localhost", "::1", not_before=now + timedelta(days=3), extended_key_usage=None),
        "server": ca.issue("a@localhost", "b@localhost", extended_key_usage=server_only, key_type="rsa2048"),
        "own": KeyPair.self_signed("localhost"),
    }
    for file, pair in pairs.items():
        write_key_pair(pair, tmp_path / file, tmp_path / f"{file}.key")
    said = {file: trionode_command("pki", "show", file).out for file in pairs}
    assert "EXPIRED 3 days ago" in said["expired"]
    assert "certificate 2 of 2 in expired: an intermediate CA" in said["expired"]
    assert "signs certificates (CA)" in said["expired"]
    assert "EC secp384r1" in said["expired"]
    assert "NOT YET VALID, begins in 3 days" in said["early"]
    assert "every node on these hosts: *@localhost, *@[::1]" in said["early"]
    assert "any (no extended key usage)" in said["early"]
    assert "the nodes a@localhost, b@localhost" in said["server"]
    assert "serverAuth (not clientAuth: a node needs both)" in said["server"]
    assert "RSA 2048" in said["server"]
    assert "a leaf, signed by itself" in said["own"]
    assert re.search(r"^issuer +itself$", said["own"], re.MULTILINE)
    states = [trionode_command("pki", "show", file, "--json").document[0]["state"] for file in pairs]
    assert states == ["expired", "not_yet_valid", "valid", "valid"]


def test_show_lists_the_directory(pki: Command) -> None:
    """A line for each certificate; one that is on the list says so."""
    pki("pki", "issue", "beta@localhost", "--lifetime", "10m")
    pki("pki", "revoke", "alpha@localhost", "--reason", "key-compromise")
    head, alpha, beta, ca, intermediate = pki("pki", "show").out.splitlines()
    assert head.split() == ["file", "speaks", "for", "left", "SHA-256"]
    assert "REVOKED" in alpha
    assert "10 minutes left" in beta
    assert "CA: CN=trionode development CA" in ca
    assert "CA: CN=trionode development CA" in intermediate
    assert [each["revoked"] for each in pki("pki", "show", "--json").document] == [True, False, False, False]


def test_colours_are_for_terminals(pki: Command, tmp_path: Path) -> None:
    """None in a pipe; some when they are asked for; none again with NO_COLOR."""

    def shown(**environment: str) -> str:
        done = run_here(tmp_path, "pki", "show", "alpha@localhost", variables=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    assert "\x1b" not in shown()
    coloured = shown(FORCE_COLOR="1", TERM="xterm")
    assert "\x1b[32m90 days left" in coloured
    assert "\x1b[32m" not in shown(FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")


def test_a_damaged_certificate_is_one_line(trionode_command: Command, tmp_path: Path) -> None:
    """Cut off in its middle."""
    whole = KeyPair.self_signed("localhost").certificate.public_bytes(Encoding.PEM)
    (tmp_path / "cut.pem").write_bytes(whole[:200])
    trionode_command("pki", "show", "cut.pem").is_one_line("damaged or cut off", status=3)
    with pytest.raises(CertificateError):
        CAPool.load(tmp_path / "cut.pem")
