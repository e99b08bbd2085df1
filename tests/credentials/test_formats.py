"""Files that are not PEM, or hold something else: read where that is easy, else a message says what was found."""

from __future__ import annotations

import base64
import gzip
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7, pkcs12

from specimens import armour, certificate_of_unknown_version, key_of, key_pem, leaf, pem
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import to_pem
from trionode._errors import CertificateError, CertificateReason
from trionode._identity import certificate as reading
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

CA = CertificateAuthority.create()
PAIR = CA.issue("a@localhost")
LEAF = PAIR.certificate
KEY_DER = PAIR.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
KEY_PEM = PAIR.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LEAF_PEM = LEAF.public_bytes(Encoding.PEM)
REQUEST = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
)


def bundle(password: bytes | None) -> bytes:
    """A PKCS#12 bundle."""
    encryption = NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    assert isinstance(PAIR.private_key, ec.EllipticCurvePrivateKey)
    return pkcs12.serialize_key_and_certificates(b"a", PAIR.private_key, LEAF, [CA.certificate], encryption)


def load(tmp_path: Path, cert: bytes, key: bytes, password: bytes | None = None) -> KeyPair:
    """Load two files."""
    (tmp_path / "cert").write_bytes(cert)
    (tmp_path / "key").write_bytes(key)
    return KeyPair.load(tmp_path / "cert", tmp_path / "key", password=password)


@pytest.mark.parametrize(
    ("cert", "key", "password"),
    [
        (LEAF.public_bytes(Encoding.DER), KEY_DER, None),
        (bundle(None), bundle(None), None),
        (bundle(b"secret"), bundle(b"secret"), b"secret"),
        (pkcs7.serialize_certificates([LEAF], Encoding.PEM), KEY_PEM, None),
        (pkcs7.serialize_certificates([LEAF], Encoding.DER), KEY_PEM, None),
        (LEAF_PEM + LEAF_PEM, KEY_PEM, None),
    ],
    ids=["DER", "PKCS#12", "PKCS#12 with a password", "PKCS#7", "PKCS#7 in DER", "twice"],
)
def test_other_formats_are_read(tmp_path: Path, cert: bytes, key: bytes, password: bytes | None) -> None:
    """DER, PKCS#12, PKCS#7; a duplicate is dropped."""
    pair = load(tmp_path, cert, key, password)
    assert pair.certificate == LEAF
    assert len(set(pair.chain)) == len(pair.chain)


def test_pools_of_other_formats(tmp_path: Path) -> None:
    """A CA in DER, as Windows exports it."""
    file = tmp_path / "ca.cer"
    file.write_bytes(CA.certificate.public_bytes(Encoding.DER))
    assert CAPool.load(file) == CA.pool


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (REQUEST.public_bytes(Encoding.PEM), "it holds CERTIFICATE REQUEST"),
        (REQUEST.public_bytes(Encoding.DER), r"it is a certificate request \(CSR\) in DER"),
        (LEAF_PEM.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"), "it holds TRUSTED CERTIFICATE"),
        (LEAF_PEM.decode().encode("utf-16"), "it is text in UTF-16"),
        (KEY_DER, "it is a private key in DER"),
        (to_pem(CA.revocation_list().lists), "it holds X509 CRL"),
        (b"\xff" * 9, "it is neither PEM nor DER"),
    ],
    ids=["nothing", "CSR", "CSR in DER", "trusted", "UTF-16", "key", "CRL", "junk"],
)
def test_what_was_found_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    """In the place of a certificate."""
    with pytest.raises(CertificateError, match=words) as refused:
        load(tmp_path, data, KEY_PEM)
    assert refused.value.reason is CertificateReason.NO_CERTIFICATE


def test_a_wrong_password_of_a_bundle(tmp_path: Path) -> None:
    """Says so."""
    with pytest.raises(CertificateError, match=r"does not open the PKCS#12 bundle") as refused:
        load(tmp_path, bundle(b"secret"), bundle(b"secret"), b"wrong")
    assert refused.value.reason is CertificateReason.BAD_PASSWORD


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("-newkey rsa-pss -pkeyopt rsa_keygen_bits:2048", "id-RSASSA-PSS"),
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit", "explicit parameters"),
        ("-newkey rsa:1024", "1024 bits"),
        ("-newkey rsa:2048 -pkeyopt rsa_keygen_primes:3", "more than two primes"),
    ],
)
def test_keys_that_no_handshake_could_use_are_refused_when_loaded(tmp_path: Path, make: str, words: str) -> None:
    """With what is wrong with them."""
    cert, key = str(tmp_path / "c.pem"), str(tmp_path / "k.pem")
    arguments = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=a", *make.split(), "-out", cert, "-keyout", key]
    subprocess.run(arguments, check=True, capture_output=True)
    with pytest.raises(CertificateError, match=words) as refused:
        KeyPair.load(cert, key)
    assert refused.value.reason is CertificateReason.UNSUPPORTED_KEY


def test_an_empty_password_is_named(tmp_path: Path) -> None:
    """Not "wrong"."""
    encrypted = PAIR.private_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(CertificateError, match=r"does not open the private key in .*: it is empty"):
        load(tmp_path, LEAF_PEM, encrypted, b"")


def test_cross_signed_intermediates_in_one_file() -> None:
    """Both certificates of a CA that two roots have signed may be in the chain, in either order."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in ("leaf", "sub", "one", "two")]

    def make(subject: int, issuer: int) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(names[issuer], names[subject], keys[subject].public_key(), 7 + issuer)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .sign(keys[issuer], hashes.SHA256())
        )

    leaf, twins = make(0, 1), [make(1, 2), make(1, 3)]
    for order in (twins, twins[::-1]):
        assert KeyPair([leaf, *order], keys[0]).chain == (leaf, *order)
    with pytest.raises(CertificateError, match="not in order"):
        KeyPair([leaf, make(2, 2)], keys[0])


def test_pki_show_shows_everything_in_a_file(tmp_path: Path, trionode_command: Callable[..., Said]) -> None:
    """Certificates and lists together, and DER."""
    lists = CA.revocation_list().lists
    (tmp_path / "both.pem").write_bytes(LEAF_PEM + to_pem(lists))
    (tmp_path / "crl.der").write_bytes(lists[0].public_bytes(Encoding.DER))
    (tmp_path / "leaf.der").write_bytes(LEAF.public_bytes(Encoding.DER))
    names = [str(tmp_path / each) for each in ("both.pem", "crl.der", "leaf.der")]
    said = trionode_command("pki", "show", "--pki", tmp_path / "none", *names)
    assert said.status == 0
    assert said.out.count("revocation list in") == 2
    assert said.out.count("certificate 1 of 1 in") == 2


def test_no_warning_of_a_library_about_a_certificate(tmp_path: Path) -> None:
    """A serial number of zero, say, which `cryptography` deprecates; warnings are errors here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 0x1122334455667788)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
        .replace(b"\x02\x08\x11\x22\x33\x44\x55\x66\x77\x88", b"\x02\x08\x91\x22\x33\x44\x55\x66\x77\x88")
    )
    file = tmp_path / "odd.pem"
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(made) + b"-----END CERTIFICATE-----\n")
    [anchor] = CAPool.load(file)
    assert reading.serial_number(anchor) < 0
    file.write_bytes(made)
    assert list(CAPool.load(file)) == [anchor]


# Encrypted keys -------------------------------------------------------------------------------------------------------


def encrypted_key(tmp_path: Path, *options: str) -> bytes:
    """A key of P-256, as OpenSSL encrypts it."""
    legacy = ("-provider", "legacy", "-provider", "default")
    command = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-passout",
        "pass:secret",
        "-out",
        str(tmp_path / "encrypted"),
        *options,
        *legacy,
    ]
    subprocess.run(command, input=key_pem(key_of("p256")), capture_output=True, check=True)
    return (tmp_path / "encrypted").read_bytes()


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize(
    "cipher",
    ["-v2 aes-256-cbc", "-v2 des3", "-scrypt", "-v1 PBE-SHA1-3DES", "-v1 PBE-MD5-DES", "-v1 PBE-SHA1-RC2-40"],
)
def test_keys_that_are_encrypted(tmp_path: Path, form: str, cipher: str) -> None:
    """In DER as in PEM: the right password opens it, and another one, an empty one and none are told apart."""
    key = encrypted_key(tmp_path, "-outform", form, *cipher.split())
    assert load(tmp_path, pem(leaf()), key, b"secret").certificate == leaf()
    for password, said in ((None, "give its password"), (b"", "it is empty"), (b"wrong", "does not open")):
        with pytest.raises(CertificateError, match=said) as refused:
            load(tmp_path, pem(leaf()), key, password)
        assert refused.value.reason is CertificateReason.BAD_PASSWORD


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize(
    ("cipher", "named"),
    [
        ("-v1 PBE-SHA1-DES", "PBE-SHA1-DES"),
        ("-v1 PBE-SHA1-2DES", "PBE-SHA1-2DES"),
        ("-v1 PBE-MD5-RC2-64", "PBE-MD5-RC2-64"),
        ("-v2 des-cbc", "DES-CBC"),
        ("-v2 camellia-256-cbc", "CAMELLIA-256-CBC"),
        ("-v2 camellia-128-cbc", "1.2.392.200011.61.1.1.1.2"),
        ("-v2 aes-256-cbc -v2prf hmacWithMD5", "hmacWithMD5"),
    ],
)
def test_ciphers_that_cannot_be_read_are_named(tmp_path: Path, form: str, cipher: str, named: str) -> None:
    """The password is not to blame."""
    key = encrypted_key(tmp_path, "-outform", form, *cipher.split())
    with pytest.raises(CertificateError, match=rf"encrypted with {named}, which is not supported.*openssl") as refused:
        load(tmp_path, pem(leaf()), key, b"secret")
    assert refused.value.reason is CertificateReason.UNSUPPORTED_KEY


def test_a_traditional_cipher_is_named(tmp_path: Path) -> None:
    """Before PKCS#8, the header has it."""
    lines = [
        "BEGIN RSA PRIVATE KEY",
        "Proc-Type: 4,ENCRYPTED",
        "DEK-Info: DES-CBC,0123456789ABCDEF",
        "END RSA PRIVATE KEY",
    ]
    key = "-----{}-----\n{}\n{}\n\nAAAA\n-----{}-----\n".format(*lines).encode()
    with pytest.raises(CertificateError, match=r"encrypted with DES-CBC, which is not supported"):
        load(tmp_path, pem(leaf()), key, b"secret")


def test_a_password_for_a_key_in_der_that_has_none(tmp_path: Path) -> None:
    """As for one in PEM."""
    der = key_of("p256").private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(CertificateError, match=r"a password was given, but"):
        load(tmp_path, pem(leaf()), der, b"secret")


def test_which_certificate_is_damaged_and_why(tmp_path: Path) -> None:
    """By its number in the file."""
    version_8 = certificate_of_unknown_version()
    for data, said in (
        (pem(leaf()) + version_8, "certificate 2 of the file: .*version"),
        (pem(leaf(), leaf())[:-30], "certificate 2 of the file, without END line"),
        (pem(leaf()) + armour(b"nonsense"), r"certificate 2 of the file: error parsing asn1"),
    ):
        with pytest.raises(CertificateError, match=said):
            load(tmp_path, data, key_pem(key_of("p256")))


def test_a_bundle_of_pkcs7_is_put_in_order(tmp_path: Path) -> None:
    """It is a set, which has none."""
    pair = CertificateAuthority.create(intermediate=True).issue("localhost")
    for chain in pair.chain, pair.chain[::-1]:
        bundle = pkcs7.serialize_certificates(list(chain), Encoding.DER)
        assert load(tmp_path, bundle, key_pem(pair.private_key)).chain == pair.chain


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><h1>401</h1>", "it is HTML or XML"),
        (b'{"certificate": "-"}', "it is JSON"),
        (gzip.compress(LEAF_PEM), "compressed with gzip"),
        (b"PK\x03\x04\x14", "a ZIP archive"),
        (b"\xfe\xed\xfe\xed\0\0\0\2", "a Java keystore"),
        (b"ssh-ed25519 AAAA a@b", "a public key of OpenSSH"),
        (base64.b64encode(LEAF.public_bytes(Encoding.DER)), "base64 without the BEGIN and END lines"),
        (b"some words", "neither PEM nor DER"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",  # what it holds differs between processes
)
def test_other_files_are_named(tmp_path: Path, data: bytes, said: str) -> None:
    """What downloads, secrets and keystores leave in a file; as certificate, key, pool and list."""
    file = tmp_path / "file"
    file.write_bytes(data)
    (tmp_path / "leaf").write_bytes(LEAF_PEM)
    for load_it in (
        lambda: CAPool.load(file),
        lambda: KeyPair.load(file, file),
        lambda: KeyPair.load(tmp_path / "leaf", file),
        lambda: CRLSet.load(file),
    ):
        with pytest.raises(CertificateError, match=said):
            load_it()


@pytest.mark.parametrize("name", [".", "a\0b", "x" * 300, "", "missing/file"])
def test_paths_that_are_no_files(name: str) -> None:
    """Directories, names that cannot be, and nothing."""
    for load_it in (lambda: CAPool.load(name), lambda: KeyPair.load(name, name), lambda: CRLSet.load(name)):
        with pytest.raises(CertificateError, match="cannot read") as refused:
            load_it()
        assert refused.value.reason is CertificateReason.UNREADABLE


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"words before\n" + text + b"words after\n",
        lambda text: b"".join(b"  " + line + b"\n" for line in text.splitlines()),
    ],
    ids=["byte order mark", "CRLF", "words", "indented"],
)
def test_pem_as_it_comes(change: Callable[[bytes], bytes]) -> None:
    """From editors, terminals and YAML."""
    assert [*CAPool.from_pem(change(LEAF_PEM))] == [LEAF]
    assert KeyPair.from_pem(change(LEAF_PEM), change(KEY_PEM)).certificate == LEAF
