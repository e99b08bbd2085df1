"""Certificates that one of the two libraries cannot parse, or warns of: what the fuzzer found of chains and pools."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from benchmarks.stress.fuzz import forging
from benchmarks.stress.fuzz.chains import Forged, armour, good_parts
from trionode import CAPool, CertAuthManager, CertificateError, ClientAuth, FindingCode, KeyPair, check_key_pair
from trionode._credentials.policy import TLSPolicy
from trionode._tls.contexts import TLSContexts
from trionode._tls.handshake import handshake_in_memory

if TYPE_CHECKING:
    from pathlib import Path

    from trionode.pki import CertificateAuthority

LEAF, MIDDLE, _root, _ = good_parts()
ROOT = CAPool.from_pem(armour(_root))


def with_field(der: bytes, number: int, field: forging.Node) -> bytes:
    """A certificate with another field in its signed part; its signature no longer holds."""
    tag, parts = forging.parse(der)
    assert isinstance(parts, list)
    inner_tag, fields = parts[0]
    assert isinstance(fields, list)
    fields[number] = field
    return forging.write((tag, [(inner_tag, fields), *parts[1:]]))


#: Version 1, written out: OpenSSL does not mind, `cryptography` does.
WRITTEN_OUT = with_field(MIDDLE, 0, (0xA0, [(0x02, b"\0")]))
#: A subject with a value of type ENUMERATED: the other way round.
ENUMERATED = with_field(MIDDLE, 5, (0x30, [(0x31, [(0x30, [(0x06, bytes.fromhex("550403")), (0x0A, b"\1")])])]))


@pytest.fixture
def contexts(ca: CertificateAuthority) -> TLSContexts:
    """Ours: trusts the CA of the forged chain."""
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    return TLSContexts.build(1, ca.issue("localhost"), TLSPolicy(client_cas=ROOT, root_cas=ROOT, client_auth=mode))


@pytest.mark.parametrize("at", [1, 2])
def test_a_certificate_that_cannot_be_parsed_is_left_out_of_the_chain(contexts: TLSContexts, at: int) -> None:
    """The peer is believed by the rest; nothing that looks at its chain later on fails."""
    presented = [LEAF, MIDDLE]
    presented.insert(at, WRITTEN_OUT)
    client, server = contexts.client.session(reference="localhost"), contexts.server.session()
    assert handshake_in_memory(Forged(presented).session(), client) is None
    assert handshake_in_memory(server, Forged(presented).session(reference="localhost")) is None
    for session in client, server:
        assert session.verified
        assert [each.subject.rfc4514_string() for each in session.peer_chain] == ["CN=leaf", "CN=middle"]
    assert len(client.shown_chain) == 2


def test_libraries_do_not_warn_of_peers(contexts: TLSContexts) -> None:
    """A serial number below zero is a reason for a warning on stderr, or with -W error, for an exception."""
    odd = forging.certificate(
        with_field(LEAF, 1, (0x02, b"\x80")),
        forging.SIGNATURE,
        subject=b"",
        key=forging.LEAF_KEY,
        issuer=b"",
        signer=forging.MIDDLE_KEY,
    )
    with pytest.warns(CryptographyDeprecationWarning, match="serial number"):
        x509.load_der_x509_certificate(odd)
    with warnings.catch_warnings(action="error"):
        client, server = contexts.client.session(reference="localhost"), contexts.server.session()
        assert handshake_in_memory(Forged([odd, MIDDLE]).session(), client) is None
        assert handshake_in_memory(server, Forged([odd, MIDDLE]).session(reference="localhost")) is None
        assert client.verified
        assert len(server.peer_chain) == len(client.shown_chain) == 2


def test_a_pool_that_openssl_cannot_read_is_refused(ca: CertificateAuthority) -> None:
    """Where there is nothing else in it; else that is a finding, and the rest counts."""
    pool = CAPool.from_pem(armour(ENUMERATED))
    with pytest.raises(CertificateError, match=r"OpenSSL can read no certificate of root_cas") as caught:
        CertAuthManager(ca.issue("localhost"), root_cas=pool)
    assert caught.value.reason == "unreadable"
    manager = CertAuthManager(ca.issue("localhost"), root_cas=pool | ca.pool)
    assert [each.code for each in manager.check(manager.key_pair)] == [FindingCode.UNREADABLE_CA]
    with pytest.raises(CertificateError, match=r"OpenSSL can read no certificate"):
        manager.rotate_trust(client_cas=pool)


def test_a_key_pair_that_openssl_cannot_read_is_refused(ca: CertificateAuthority) -> None:
    """By what makes contexts of it, as an error of ours; nothing that only looks at it fails."""
    pair = ca.issue("localhost")
    odd = KeyPair.__new__(KeyPair)
    for name in ("certificate", "fingerprint", "private_key"):
        object.__setattr__(odd, name, getattr(pair, name))
    object.__setattr__(odd, "chain", (pair.certificate, *CAPool.from_pem(armour(ENUMERATED))))
    with pytest.raises(CertificateError, match="OpenSSL does not accept our key pair"):
        CertAuthManager(odd)
    assert check_key_pair(odd, root_cas=ca.pool)


PRINTABLE = with_field(MIDDLE, 5, (0x30, [(0x31, [(0x30, [(0x06, bytes.fromhex("550403")), (0x13, b"a_b")])])]))


def test_a_refusal_says_which_certificate_cannot_be_read(contexts: TLSContexts) -> None:
    """Where the path may have led through it; and why."""
    client = contexts.client.session(reference="localhost")
    failure = handshake_in_memory(Forged([LEAF, WRITTEN_OUT]).session(), client)
    assert "certificate 2 of those that it presented cannot be read" in str(failure)
    client = contexts.client.session(reference="localhost")
    failure = handshake_in_memory(Forged([LEAF, PRINTABLE]).session(), client)
    assert "a name in it has a PrintableString with characters that this type does not have" in str(failure)


def test_a_file_with_a_name_that_cannot_be_read(tmp_path: Path) -> None:
    """Which certificate of which file, and why."""
    (tmp_path / "chain.pem").write_bytes(armour(LEAF) + armour(PRINTABLE))
    with pytest.raises(CertificateError, match=r"in .*chain\.pem cannot be used, certificate 2 of the file: a name"):
        CAPool.load(tmp_path / "chain.pem")
