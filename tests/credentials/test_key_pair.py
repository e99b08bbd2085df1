"""Key pairs: every way in, every defect with its remedy, and that nothing of a key ever gets out."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat as Format

from specimens import (
    DAY,
    NOW,
    PASSWORD,
    armour,
    assert_no_key_in,
    certificate_of_unknown_version,
    chain,
    cut,
    dsa_key,
    key_of,
    key_pem,
    leaf,
    make_certificate,
    patched,
    pem,
)
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.issuing import (
    LEAF_KEY_USAGE,
    general_name,
)
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import MAX_FILE_BYTES
from trionode._credentials.policy import ClientAuth
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint
from trionode._identity.names import SubjectNames
from trionode._managers.auth_manager import CertAuthManager
from trionode._managers.check import check_usable
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    OpenSSL: TypeAlias = Callable[..., bytes]


@functools.cache
def key_pair() -> KeyPair:
    """The key pair of `leaf`."""
    return KeyPair([leaf()], key_of("p256"))


# Reading key pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize(
    ("kind", "style"),
    [
        ("p256", Format.PKCS8),
        ("p384", Format.PKCS8),
        ("p521", Format.PKCS8),
        ("ed25519", Format.PKCS8),
        ("ed448", Format.PKCS8),
        ("rsa", Format.PKCS8),
        ("p256", Format.TraditionalOpenSSL),
        ("p384", Format.TraditionalOpenSSL),
        ("rsa", Format.TraditionalOpenSSL),
    ],
)
def test_every_common_key_format_loads(tmp_path: Path, kind: str, style: Format, password: str | None) -> None:
    """PKCS#8, SEC1 and PKCS#1 keys of every kind that TLS 1.3 signs with load, encrypted or not."""
    key = key_of(kind)
    certificate = make_certificate(key=key)
    cert_file, key_file = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert_file.write_bytes(pem(certificate))
    key_file.write_bytes(key_pem(key, style, password))
    loaded = KeyPair.load(cert_file, str(key_file), password=password)
    assert loaded.certificate == certificate
    assert loaded.chain == (certificate,)
    assert loaded.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert loaded.private_key.public_key() == key.public_key()


def test_passwords_and_pem_may_be_text_or_bytes() -> None:
    """PEM and password are taken as `str` and as `bytes`."""
    secret = key_pem(key_of("p256"), password=PASSWORD)
    for cert, key, password in (
        (pem(leaf()), secret, PASSWORD.encode()),
        (pem(leaf()).decode(), secret.decode(), PASSWORD),
    ):
        assert KeyPair.from_pem(cert, key, password=password).certificate == leaf()


def test_one_file_may_hold_everything(tmp_path: Path) -> None:
    """Key, leaf and intermediates load from one file, whichever comes first."""
    leaf_certificate, intermediate, _ = chain()
    for number, parts in enumerate(
        [
            (key_pem(key_of("p256")), pem(leaf_certificate, intermediate)),
            (pem(leaf_certificate, intermediate), key_pem(key_of("p256"))),
            (pem(leaf_certificate), key_pem(key_of("p256")), pem(intermediate)),
        ]
    ):
        file = tmp_path / f"{number}.pem"
        file.write_bytes(b"".join(parts))
        assert KeyPair.load(file, file).chain == (leaf_certificate, intermediate)


def test_text_around_pem_blocks_is_ignored() -> None:
    """Comments, Windows line ends and a byte-order mark do no harm."""
    noisy = b"\xef\xbb\xbfsubject=CN = leaf\r\n\r\n" + pem(leaf()).replace(b"\n", b"\r\n") + b"\r\nthe end\r\n"
    secret = b"the key:\r\n" + key_pem(key_of("p256")).replace(b"\n", b"\r\n") + b"it is NOT ENCRYPTED\r\n"
    assert KeyPair.from_pem(noisy, secret).certificate == leaf()
    assert list(CAPool.from_pem(noisy)) == [leaf()]


def test_a_chain_is_kept_in_order() -> None:
    """The chain holds leaf, intermediates and a root, if one was given, as they came."""
    loaded = KeyPair.from_pem(pem(*chain()), key_pem(key_of("p256")))
    assert loaded.chain == chain()
    assert loaded.certificate == chain()[0]
    assert loaded.fingerprint == fingerprint(chain()[0])


def test_keys_from_the_openssl_command_load(openssl: OpenSSL, tmp_path: Path) -> None:
    """What `openssl` writes loads: SEC1 after an EC PARAMETERS block, PKCS#1, PKCS#8, both kinds of encryption."""
    ec_key, ec_cert = tmp_path / "ec.key", tmp_path / "ec.pem"
    ec_key.write_bytes(openssl("ecparam", "-name", "prime256v1", "-genkey"))
    assert ec_key.read_bytes().startswith(b"-----BEGIN EC PARAMETERS-----")
    rsa_key, rsa_cert = tmp_path / "rsa.key", tmp_path / "rsa.pem"
    rsa_key.write_bytes(key_pem(key_of("rsa"), Format.TraditionalOpenSSL))
    for key_file, cert_file in ((ec_key, ec_cert), (rsa_key, rsa_cert)):
        openssl(
            "req", "-new", "-x509", "-key", key_file, "-subj", "/CN=made by openssl", "-days", "2", "-out", cert_file
        )
        expected = KeyPair.load(cert_file, key_file)
        plain, locked = tmp_path / "plain.key", tmp_path / "locked.key"
        openssl("pkcs8", "-topk8", "-nocrypt", "-in", key_file, "-out", plain)
        openssl("pkcs8", "-topk8", "-passout", f"pass:{PASSWORD}", "-in", key_file, "-out", locked)
        assert KeyPair.load(cert_file, plain).fingerprint == expected.fingerprint
        assert KeyPair.load(cert_file, locked, password=PASSWORD).fingerprint == expected.fingerprint
    traditional = tmp_path / "traditional.key"
    openssl("ec", "-in", ec_key, "-aes256", "-passout", f"pass:{PASSWORD}", "-out", traditional)
    assert b"Proc-Type: 4,ENCRYPTED" in traditional.read_bytes()
    assert (
        KeyPair.load(ec_cert, traditional, password=PASSWORD).certificate == KeyPair.load(ec_cert, ec_key).certificate
    )
    # With its parameters block before it, as some scripts put it together.
    traditional.write_bytes(ec_key.read_bytes().partition(b"-----BEGIN EC PRIVATE")[0] + traditional.read_bytes())
    with pytest.raises(CertificateError, match="is encrypted; give its password") as caught:
        KeyPair.load(ec_cert, traditional)
    assert caught.value.reason is CertificateReason.BAD_PASSWORD
    assert (
        KeyPair.load(ec_cert, traditional, password=PASSWORD).fingerprint == KeyPair.load(ec_cert, ec_key).fingerprint
    )


# The zoo: one defect each, its reason and its remedy ----------------------------------------------------------------

Reason = CertificateReason


def certificate_of_unknown_key() -> bytes:
    """A certificate whose key is of an algorithm that nobody knows."""
    return patched(leaf(), bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0202"))


def key_of_unknown_algorithm() -> bytes:
    """A PKCS#8 key of an algorithm that nobody knows."""
    der = key_of("ed25519").private_bytes(Encoding.DER, Format.PKCS8, serialization.NoEncryption())
    return armour(der.replace(b"\x2b\x65\x70", b"\x2b\x65\x7f")).replace(b"CERTIFICATE", b"PRIVATE KEY")


ZOO: dict[str, tuple[Callable[[], bytes], Callable[[], bytes], str | None, CertificateReason, str]] = {
    # Certificates
    "no certificate, empty": (
        lambda: b"",
        lambda: key_pem(key_of("p256")),
        None,
        Reason.NO_CERTIFICATE,
        "a '-----BEGIN CERTIFICATE-----' block is needed",
    ),
    "no certificate, junk": (
        lambda: b"\0\1\2 not PEM at all",
        lambda: key_pem(key_of("p256")),
        None,
        Reason.NO_CERTIFICATE,
        "a '-----BEGIN CERTIFICATE-----' block is needed",
    ),
    "no certificate, DER that is cut off": (
        lambda: leaf().public_bytes(Encoding.DER)[:-5],
        lambda: key_pem(key_of("p256")),
        None,
        Reason.NO_CERTIFICATE,
        "a '-----BEGIN CERTIFICATE-----' block is needed",
    ),
    "swapped": (
        lambda: key_pem(key_of("p256")),
        lambda: pem(leaf()),
        None,
        Reason.NO_CERTIFICATE,
        "are the two files swapped?",
    ),
    "certificate twice": (
        lambda: pem(leaf()),
        lambda: pem(leaf()),
        None,
        Reason.NO_KEY,
        "are the two files swapped?",
    ),
    "certificate cut off": (
        lambda: cut(pem(leaf()), 0.5),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "intermediate cut off": (
        lambda: cut(pem(*chain()[:2]), 0.8),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "certificate damaged": (
        lambda: pem(leaf()).replace(b"MII", b"AAA", 1),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "certificate of unknown version": (
        certificate_of_unknown_version,
        lambda: key_pem(key_of("p256")),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "certificate of an unknown key": (
        certificate_of_unknown_key,
        lambda: key_pem(key_of("p256")),
        None,
        Reason.UNSUPPORTED_KEY,
        "Issue it for an EC P-256, P-384, Ed25519 or RSA key",
    ),
    # Keys
    "no key, empty": (
        lambda: pem(leaf()),
        lambda: b"",
        None,
        Reason.NO_KEY,
        "a '-----BEGIN PRIVATE KEY-----' block (or EC, RSA) is needed",
    ),
    "no key, DER that is cut off": (
        lambda: pem(leaf()),
        lambda: key_of("p256").private_bytes(Encoding.DER, Format.PKCS8, serialization.NoEncryption())[:-5],
        None,
        Reason.NO_KEY,
        "a '-----BEGIN PRIVATE KEY-----' block (or EC, RSA) is needed",
    ),
    "no key, public key": (
        lambda: pem(leaf()),
        lambda: key_of("p256").public_key().public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        None,
        Reason.NO_KEY,
        "a '-----BEGIN PRIVATE KEY-----' block (or EC, RSA) is needed",
    ),
    "key cut off": (
        lambda: pem(leaf()),
        lambda: cut(key_pem(key_of("p256")), 0.6),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "key damaged": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256")).replace(b"MIG", b"AAA", 1),
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "key without its beginning": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256")).partition(b"\n")[2],
        None,
        Reason.UNREADABLE,
        "write the file anew",
    ),
    "key of an unknown algorithm": (
        lambda: pem(leaf()),
        key_of_unknown_algorithm,
        None,
        Reason.UNSUPPORTED_KEY,
        "use EC P-256, P-384, Ed25519 or RSA",
    ),
    "DSA": (
        lambda: pem(make_certificate(key=dsa_key())),
        lambda: key_pem(dsa_key()),
        None,
        Reason.UNSUPPORTED_KEY,
        "use EC P-256, P-384, Ed25519 or RSA",
    ),
    "X25519": (
        lambda: pem(leaf()),
        lambda: key_pem(x25519.X25519PrivateKey.generate()),
        None,
        Reason.UNSUPPORTED_KEY,
        "use EC P-256, P-384, Ed25519 or RSA",
    ),
    "a curve that TLS 1.3 has not": (
        lambda: pem(make_certificate(key=key_of("k256"))),
        lambda: key_pem(key_of("k256")),
        None,
        Reason.UNSUPPORTED_KEY,
        "use EC P-256, P-384, Ed25519 or RSA",
    ),
    "RSA of 1024 bits": (
        lambda: pem(make_certificate(key=key_of("rsa-1024"))),
        lambda: key_pem(key_of("rsa-1024")),
        None,
        Reason.UNSUPPORTED_KEY,
        "has 1024 bits; TLS peers want at least 2048. Make a new key, EC P-256 for choice",
    ),
    "OpenSSH's format": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), Format.OpenSSH),
        None,
        Reason.UNSUPPORTED_KEY,
        "convert it with ssh-keygen -p -m PKCS8 -f FILE",
    ),
    # Passwords
    "password missing, PKCS#8": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), password=PASSWORD),
        None,
        Reason.BAD_PASSWORD,
        "is encrypted; give its password",
    ),
    "password missing, traditional": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), Format.TraditionalOpenSSL, PASSWORD),
        None,
        Reason.BAD_PASSWORD,
        "is encrypted; give its password",
    ),
    "password wrong, PKCS#8": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), password=PASSWORD),
        "battery staple",
        Reason.BAD_PASSWORD,
        "the password does not open the private key",
    ),
    "password wrong, traditional": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), Format.TraditionalOpenSSL, PASSWORD),
        "battery staple",
        Reason.BAD_PASSWORD,
        "the password does not open the private key",
    ),
    "password empty": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), password=PASSWORD),
        "",
        Reason.BAD_PASSWORD,
        "the password does not open the private key",
    ),
    "password that no encoding has": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256"), password=PASSWORD),
        "\ud800",
        Reason.BAD_PASSWORD,
        "the password does not open the private key",
    ),
    "password superfluous": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256")),
        PASSWORD,
        Reason.BAD_PASSWORD,
        "is not encrypted; leave it out, or encrypt the key",
    ),
    # What does not fit together
    "wrong key": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("p256-other")),
        None,
        Reason.KEY_MISMATCH,
        "if certificate and key were being replaced just now, read them again",
    ),
    "wrong kind of key": (
        lambda: pem(leaf()),
        lambda: key_pem(key_of("rsa")),
        None,
        Reason.KEY_MISMATCH,
        "The leaf comes first in the file",
    ),
    "intermediate first": (
        lambda: pem(*reversed(chain())),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.KEY_MISMATCH,
        "The leaf comes first in the file",
    ),
    "two leaves": (
        lambda: pem(leaf(), make_certificate("other leaf", key=key_of("p384"))),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.CHAIN_ORDER,
        "The leaf comes first, then each one's issuer",
    ),
    "intermediate left out": (
        lambda: pem(chain()[0], chain()[2]),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.CHAIN_ORDER,
        "certificate 1 (CN=leaf",
    ),
    "chain out of order": (
        lambda: pem(chain()[0], chain()[2], chain()[1]),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.CHAIN_ORDER,
        "The leaf comes first, then each one's issuer",
    ),
    "an intermediate of the same name": (
        lambda: pem(chain()[0], make_certificate("intermediate", key=key_of("p256-other"))),
        lambda: key_pem(key_of("p256")),
        None,
        Reason.CHAIN_ORDER,
        "is not signed by certificate 2",
    ),
}


def test_key_pairs_are_compared_by_content() -> None:
    """The same chain is the same key pair, whichever object; a shorter one is another, and so is anything else."""
    one = CertificateAuthority.create(intermediate=True).issue("localhost")
    same, shorter = KeyPair(one.chain, one.private_key), KeyPair(one.chain[:1], one.private_key)
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same, shorter, KeyPair.self_signed()}) == 3
    assert one != one.chain


def test_the_zoo_has_every_reason_that_parsing_can_give() -> None:
    """No reason of a `CertificateError` that parsing can give goes untested."""
    by_use = {Reason.EXPIRED, Reason.NOT_YET_VALID, Reason.WRONG_EKU, Reason.NO_CLIENT_CAS}
    by_use |= {Reason.FINDINGS, Reason.TRUST_FINDINGS}
    of_trust = {Reason.NO_CRL, Reason.BAD_CRL, Reason.WEAK_CA}
    assert {entry[3] for entry in ZOO.values()} == set(CertificateReason) - by_use - of_trust


@pytest.mark.parametrize("animal", ZOO)
def test_each_defect_is_refused_with_reason_and_remedy(tmp_path: Path, animal: str) -> None:
    """A defective key pair is a `CertificateError` that says what is wrong, in which file, and what to do."""
    cert, key, password, reason, remedy = ZOO[animal]
    with pytest.raises(CertificateError) as caught:
        KeyPair.from_pem(cert(), key(), password=password)
    assert caught.value.reason is reason
    assert remedy in str(caught.value)
    cert_file, key_file = tmp_path / "node-cert.pem", tmp_path / "node-key.pem"
    cert_file.write_bytes(cert())
    key_file.write_bytes(key())
    with pytest.raises(CertificateError) as caught:
        KeyPair.load(cert_file, key_file, password=password)
    assert caught.value.reason is reason
    assert remedy in str(caught.value)
    assert str(cert_file) in str(caught.value) or str(key_file) in str(caught.value)


@pytest.mark.parametrize("animal", ZOO)
def test_no_refusal_quotes_a_key(animal: str) -> None:
    """Neither the text, the `repr` nor the traceback of a refusal, causes included, holds key bytes or a password."""
    cert, key, password, _, _ = ZOO[animal]
    with pytest.raises(CertificateError) as caught:
        KeyPair.from_pem(cert(), key(), password=password)
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__) + repr(vars(error))
    if error.__context__ is not None:
        shown += repr(vars(error.__context__)) + repr(error.__context__.args)
    for kind in ("p256", "p256-other", "rsa", "ed25519", "k256", "rsa-1024"):
        assert_no_key_in(shown, key_of(kind))
    assert PASSWORD not in shown
    assert "battery staple" not in shown


def test_text_that_cannot_be_encoded_does_not_come_back_in_the_error() -> None:
    """Key text with a lone surrogate is parsed or refused, but no encoding error carries it away."""
    secret = key_pem(key_of("p256")).decode()
    assert KeyPair.from_pem(pem(leaf()), "\ud800\n" + secret).certificate == leaf()
    with pytest.raises(CertificateError) as caught:
        KeyPair.from_pem(pem(leaf()), secret.replace("MIG", "\ud800IG"))
    assert caught.value.reason is CertificateReason.UNREADABLE


def test_files_that_cannot_be_read_are_named_with_the_cause(tmp_path: Path) -> None:
    """A missing file, a directory and an impossible path are `unreadable`, with the system's word for it."""
    good = tmp_path / "good.pem"
    good.write_bytes(pem(leaf()) + key_pem(key_of("p256")))
    for bad, cause in (
        (tmp_path / "missing.pem", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (good / "below", "Not a directory"),
        (f"{tmp_path}/nul\0byte", "null byte"),
    ):
        for cert_file, key_file in ((bad, good), (good, bad)):
            with pytest.raises(CertificateError, match="Check the path and its permissions") as caught:
                KeyPair.load(cert_file, key_file)
            assert caught.value.reason is CertificateReason.UNREADABLE
            assert cause in str(caught.value)
            assert caught.value.__cause__ is not None
        with pytest.raises(CertificateError, match=cause):
            CAPool.load(good, bad)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """A file beyond the limit is `unreadable`, without being read into memory as a whole."""
    huge = tmp_path / "huge.pem"
    with huge.open("wb") as stream:
        stream.write(pem(leaf()))
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CertificateError, match="is larger than 4194304 bytes; this is not a PEM") as caught:
        CAPool.load(huge)
    assert caught.value.reason is CertificateReason.UNREADABLE
    with huge.open("r+b") as stream:
        stream.truncate(MAX_FILE_BYTES)
    assert list(CAPool.load(huge)) == [leaf()]


def test_the_constructor_checks_as_parsing_does() -> None:
    """A key pair put together from objects has passed the same checks."""
    with pytest.raises(CertificateError, match="needs at least its leaf") as caught:
        KeyPair([], key_of("p256"))
    assert caught.value.reason is CertificateReason.NO_CERTIFICATE
    with pytest.raises(CertificateError) as caught:
        KeyPair([leaf()], key_of("p256-other"))
    assert caught.value.reason is CertificateReason.KEY_MISMATCH
    with pytest.raises(CertificateError) as caught:
        KeyPair([chain()[0], chain()[2]], key_of("p256"))
    assert caught.value.reason is CertificateReason.CHAIN_ORDER
    with pytest.raises(CertificateError) as caught:
        KeyPair([make_certificate(key=dsa_key())], dsa_key())  # type: ignore[arg-type]
    assert caught.value.reason is CertificateReason.UNSUPPORTED_KEY
    assert KeyPair(iter(chain()), key_of("p256")).chain == chain()


# Key pairs are values -----------------------------------------------------------------------------------------------


def test_a_key_pair_cannot_be_pickled() -> None:
    """Pickling a key pair is refused under every protocol, alone and inside something else."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for thing in (key_pair(), [key_pair()], {"key_pair": key_pair()}):
            with pytest.raises(TypeError, match="private key stays in this process"):
                pickle.dumps(thing, protocol)


def test_copies_of_a_key_pair_are_itself() -> None:
    """Copying an immutable value gives it back, so no second key comes about."""
    assert copy.copy(key_pair()) is key_pair()
    assert copy.deepcopy({"key_pair": key_pair()})["key_pair"] is key_pair()


def test_a_key_pair_is_immutable() -> None:
    """No attribute of a key pair can be set, added or deleted."""
    for attribute in ("certificate", "chain", "fingerprint", "private_key", "anything"):
        with pytest.raises(AttributeError, match=f"immutable; cannot set {attribute}"):
            setattr(key_pair(), attribute, None)
        with pytest.raises(AttributeError, match=f"immutable; cannot delete {attribute}"):
            delattr(key_pair(), attribute)


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa"])
def test_a_repr_shows_names_dates_and_fingerprint_and_no_key(kind: str) -> None:
    """What is shown of a key pair identifies it and holds nothing of its key."""
    pair = KeyPair([make_certificate(key=key_of(kind))], key_of(kind))
    for text in (repr(pair), str(pair), f"{pair}", repr([pair])):
        assert "CN=leaf" in text
        assert "DNS:host.example" in text
        assert "from 2026-05-31 12:00:00 to 2026-06-02 12:00:00 UTC" in text
        assert pair.fingerprint[:16] in text
        assert_no_key_in(text, pair.private_key)
        assert "PrivateKey" not in text


def test_a_manager_shows_no_key() -> None:
    """Neither a manager nor its contexts show anything of the key."""
    manager = CertAuthManager(key_pair(), root_cas=CAPool([leaf()]))
    shown = repr(manager) + repr(manager.contexts)
    assert "CN=leaf" in shown
    assert_no_key_in(shown, key_of("p256"))


def test_logging_a_key_pair_logs_no_key(caplog: pytest.LogCaptureFixture) -> None:
    """A key pair in a log line is names, dates and fingerprint."""
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("using %s and %r", key_pair(), {"pair": key_pair()})
    assert key_pair().fingerprint[:16] in caplog.text
    assert_no_key_in(caplog.text, key_of("p256"))


# Self-signed --------------------------------------------------------------------------------------------------------


def test_a_self_signed_pair_speaks_for_this_machine_by_default() -> None:
    """Without hosts a self-signed pair covers localhost and both loop-back addresses, for servers and clients."""
    pair = KeyPair.self_signed()
    names = SubjectNames.of(pair.certificate)
    assert all(names.cover_host(host) for host in ("localhost", "127.0.0.1", "[::1]"))
    assert not names.restricted
    check_usable(pair, now=datetime.now(UTC), as_server=True, as_client=True)
    assert not pair.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert pair.certificate.extensions.get_extension_for_class(x509.KeyUsage).value == LEAF_KEY_USAGE


def test_a_self_signed_pair_speaks_for_its_hosts_in_canonical_form() -> None:
    """Given hosts become canonical SANs, and the organization is in the subject."""
    pair = KeyPair.self_signed("Host.Example.", "bücher.example", "::1", organization="Example Ltd")
    names = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.DNSName("host.example"),
        x509.DNSName("xn--bcher-kva.example"),
        general_name("[::1]"),
    ]
    assert "O=Example Ltd" in pair.certificate.subject.rfc4514_string()
    KeyPair.self_signed(".".join(["x" * 60] * 4))  # a common name has 64 characters at most; a host may have more


def test_a_self_signed_pair_refuses_what_is_no_host() -> None:
    """A host that is none is a `ValueError`."""
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        KeyPair.self_signed("not a host")


def test_a_self_signed_pair_pleases_strict_openssl(openssl: OpenSSL, tmp_path: Path) -> None:
    """OpenSSL in strict mode accepts a self-signed pair that it was told to trust, for both purposes."""
    file = tmp_path / "self.pem"
    file.write_bytes(pem(KeyPair.self_signed("host.example").certificate))
    for purpose in ("sslserver", "sslclient"):
        openssl("verify", "-x509_strict", "-partial_chain", "-purpose", purpose, "-trusted", file, file)


# Keys stay in memory ------------------------------------------------------------------------------------------------

#: Run in a process of its own, because an audit hook cannot be removed. Python's own writes show in the hook; a write
#: by a C library (OpenSSL's, say) would end the process, as files may have no length here.
_WRITES_NOTHING = """
import json, os, resource, sys

first, second, roots, directory, provoke = json.loads(sys.stdin.read())
seen, watching = [], False

def hook(event, args):
    if not watching:
        return
    if event == "open":
        path, mode, flags = args
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) or set(mode or "") & set("wax+"):
            seen.append(f"{event} {path} {mode} {flags}")
    elif event.startswith(("tempfile.", "shutil.", "os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.")):
        seen.append(event)

from trionode import CAPool, CertAuthManager, ClientAuth, KeyPair
from trionode.pki import CertificateAuthority

sys.addaudithook(hook)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
watching = True
if provoke:
    open(os.path.join(directory, "provoked"), "wb").close()
pair = KeyPair.load(*first)
manager = CertAuthManager(
    pair,
    client_cas=CAPool.load(roots),
    root_cas=CAPool.from_pem(open(roots).read()) | CAPool.system(),
    client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
    server_name="host.example",
)
manager.update(KeyPair.from_pem(*second))
manager.update(KeyPair.self_signed())
manager.set_client_auth(ClientAuth.REQUIRE_ANY_CLIENT_CERT)
manager.update(CertificateAuthority.create(intermediate=True).issue("alpha@host.example"))
manager.update(pair)
contexts = manager.contexts.current
client, server = contexts.client.session(reference="host.example"), contexts.server.session()
for _ in range(4):
    client.handshake(); server.feed(client.outgoing()); server.handshake(); client.feed(server.outgoing())
assert client.handshake() and server.handshake() and client.verified and server.peer_certificate == pair.certificate
watching = False
print(json.dumps(seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
@pytest.mark.parametrize("provoke", [False, True], ids=["trionode", "control"])
def test_building_contexts_opens_no_file_for_writing(tmp_path: Path, provoke: bool) -> None:
    """From loading over publishing and rotating to a handshake nothing is written anywhere; a control is noticed."""
    now = datetime.now(UTC)
    certificate = make_certificate(not_before=now - DAY, not_after=now + DAY)
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(pem(certificate))
    key_file.write_bytes(key_pem(key_of("p256")))
    material = [
        [str(cert_file), str(key_file)],
        [pem(certificate).decode(), key_pem(key_of("p256")).decode()],
        str(cert_file),
        str(tmp_path),
        provoke,
    ]
    # Coverage would start in there, too, and write.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _WRITES_NOTHING],
        input=json.dumps(material),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert bool(json.loads(done.stdout)) is provoke
    expected = {"cert.pem", "key.pem"} | ({"provoked"} if provoke else set())
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_failing_update_quotes_no_key() -> None:
    """The error of a refused rotation holds nothing of the new key, nor of the old one."""
    manager = CertAuthManager(
        key_pair(),
        client_cas=CAPool([leaf()]),
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        clock=lambda: NOW + 30 * DAY,
    )
    with pytest.raises(CertificateError) as caught:
        manager.update(KeyPair([make_certificate(key=key_of("p384"))], key_of("p384")))
    assert caught.value.reason is CertificateReason.EXPIRED
    assert manager.key_pair is key_pair()
    shown = "".join(traceback.format_exception(caught.value))
    for kind in ("p256", "p384"):
        assert_no_key_in(shown, key_of(kind))
