"""Reading certificates is total: a value, or the one error, whatever is in them."""

from __future__ import annotations

import ast
import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given, settings, strategies as st

import trionode
from effort import effort
from trionode._identity import certificate as reading, describe
from trionode._identity.names import SubjectNames
from trionode._util import der
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = ec.generate_private_key(ec.SECP256R1())
START = datetime(2026, 1, 1, tzinfo=UTC)
GARBAGE = b"\x30\x03\xff\xff\xff"


def build(*extensions: x509.ExtensionType, subject: x509.Name | None = None) -> x509.Certificate:
    """A certificate that signs itself, with these extensions."""
    name = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=1))
    )
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def odd(kind: type[x509.ExtensionType]) -> x509.UnrecognizedExtension:
    """An extension of a kind with bytes that are none."""
    return x509.UnrecognizedExtension(kind.oid, GARBAGE)


GOOD = (
    x509.SubjectAlternativeName([x509.DNSName("host.example")]),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    x509.BasicConstraints(ca=True, path_length=3),
)
ODD = [
    x509.CertificatePolicies,
    x509.PrecertificateSignedCertificateTimestamps,
    x509.AuthorityInformationAccess,
    x509.NameConstraints,
    x509.AuthorityKeyIdentifier,
    x509.IssuerAlternativeName,
]


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_extension_makes_nothing_else_unreadable(kind: type[x509.ExtensionType]) -> None:
    """What is needed is read; what is odd is in the way only of those who ask for it."""
    certificate = build(*GOOD, odd(kind))
    with pytest.raises(ValueError, match=r".*"):
        _ = certificate.extensions  # all or nothing
    assert SubjectNames.of(certificate).cover_host("host.example")
    assert reading.allows(certificate, ExtendedKeyUsageOID.SERVER_AUTH)
    assert not reading.allows(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert reading.is_ca(certificate)
    assert reading.extension(certificate, x509.BasicConstraints) == GOOD[2]
    assert reading.extension(certificate, x509.KeyUsage) is None
    with pytest.raises(reading.UnreadableError, match="extension cannot be read"):
        reading.extension(certificate, kind)


@pytest.mark.parametrize("kind", [x509.ExtendedKeyUsage, x509.BasicConstraints, x509.SubjectAlternativeName])
def test_what_is_needed_and_cannot_be_read_is_named(kind: type[x509.ExtensionType]) -> None:
    """It allows nothing, is no CA's, offers no name; and says so."""
    certificate = build(*(each for each in GOOD if not isinstance(each, kind)), odd(kind))
    if kind is x509.SubjectAlternativeName:
        with pytest.raises(reading.UnreadableError, match="the subject alternative names cannot be read"):
            reading.subject_alt_names(certificate)
        assert "the subject alternative names cannot be read" in describe.describe(certificate)
    else:
        with pytest.raises(reading.UnreadableError, match=r"(extended key usage|basic constraints) extension cannot"):
            reading.extension(certificate, kind)
    assert reading.allows(certificate, ExtendedKeyUsageOID.SERVER_AUTH) is (kind is not x509.ExtendedKeyUsage)
    assert reading.is_ca(certificate) is (kind is not x509.BasicConstraints)
    assert SubjectNames.of(certificate).cover_host("host.example") is (kind is not x509.SubjectAlternativeName)


def test_a_name_with_a_bit_string_is_shown() -> None:
    """`cryptography` raises `TypeError` for it; a peer may have it."""
    bits = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\x00\x01", x509.name._ASN1Type.BitString)
    name = x509.Name([bits, x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    certificate = build(subject=name)
    assert reading.subject(certificate) == "CN=leaf,2.5.4.45=#0001"
    assert describe.describe(certificate).startswith("CN=leaf,2.5.4.45=#")
    assert reading.common_name(certificate) == "leaf"
    assert reading.is_self_issued(certificate)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "CN=plain"),
        ("a,b+c=d", r"CN=a\,b\+c=d"),
        ('"<>;\\', r"CN=\"\<\>\;\\"),
        ("#1", r"CN=\#1"),
        (" a ", r"CN=\ a\ "),
        ("bücher", "CN=bücher"),
        ("x" * 64, "CN=" + "x" * 64),
    ],
)
def test_names_are_written_as_rfc_4514_has_it(value: str, shown: str) -> None:
    """As `cryptography` does where it can."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value, _validate=False)])
    assert reading.subject(build(subject=name)) == shown == name.rfc4514_string()


def test_a_long_name_is_cut_before_it_is_made() -> None:
    """A certificate of 50 KB is described in no more time than one of 500 bytes."""
    names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "x" * 60, _validate=False) for _ in range(800)]
    certificate = build(
        x509.SubjectAlternativeName([x509.DNSName(f"host-{number}.example") for number in range(2000)]),
        subject=x509.Name(names),
    )
    assert len(certificate.public_bytes(Encoding.DER)) > 50_000
    assert len(reading.subject(certificate)) <= 121
    assert len(describe.describe(certificate)) < 1200


def test_dates_that_cannot_be_represented_are_outside_of_everything() -> None:
    """Year 0 is valid DER; such a certificate is never within its dates."""
    data = build().public_bytes(Encoding.DER)
    _, outer, outer_end = der.element(data, 0)
    _, tbs, tbs_end = der.element(data, outer)
    parts = [data[begin:after] for _, begin, _, after in der.elements(data, tbs, tbs_end)]
    parts[4] = der.encoded(der.SEQUENCE, b"\x18\x0f00000101000000Z\x18\x0f00000102000000Z")
    signed = der.encoded(der.SEQUENCE, b"".join(parts))
    certificate = x509.load_der_x509_certificate(der.encoded(der.SEQUENCE, signed + data[tbs_end:outer_end]))
    with pytest.raises(ValueError, match="year"):
        _ = certificate.not_valid_after_utc
    assert reading.not_before(certificate) > reading.not_after(certificate)
    assert "from (an unreadable date) to (an unreadable date) UTC" in describe.describe(certificate)


FUNCTIONS: list[Callable[[x509.Certificate], object]] = [
    reading.fingerprint,
    reading.not_before,
    reading.not_after,
    reading.serial_number,
    reading.public_key,
    reading.signature_hash,
    reading.is_self_issued,
    reading.subject,
    reading.issuer,
    reading.common_name,
    reading.is_ca,
    lambda each: reading.allows(each, ExtendedKeyUsageOID.SERVER_AUTH),
    describe.describe,
    describe.describe_names,
    describe.describe_dates,
    SubjectNames.of,
    lambda each: SubjectNames.of(each).cover_host("localhost"),
]
SEEDS = [
    each.public_bytes(Encoding.DER)
    for each in (CertificateAuthority.create().issue("a@localhost").certificate, build(*GOOD), build())
]


@settings(max_examples=effort(400))
@given(
    which=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(which=SEEDS[1], edits=[(0, 0x30)])
def test_whatever_a_certificate_holds_reading_it_is_total(which: bytes, edits: list[tuple[int, int]]) -> None:
    """Mutated DER that can still be loaded."""
    data = bytearray(which)
    for at, value in edits:
        data[at % len(data)] = value
    try:
        certificate = x509.load_der_x509_certificate(bytes(data))
    except Exception:  # noqa: BLE001 -- it is none
        return
    for function in FUNCTIONS:
        result = function(certificate)
        if isinstance(result, str):
            assert result.isprintable()
    for kind in (x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints, x509.CRLDistributionPoints):
        try:
            reading.extension(certificate, kind)
        except reading.UnreadableError as exc:
            assert str(exc).isprintable()


#: What of a certificate, name or list raises, or may be all or nothing.
TOUCHY = {
    "extensions",
    "issuer",
    "not_valid_after_utc",
    "not_valid_before_utc",
    "public_key",
    "rfc4514_string",
    "serial_number",
    "signature_hash_algorithm",
    "subject",
}


def touched(source: str) -> set[str]:
    """Which of these a module takes from something."""
    if not any(f".{name}" in source for name in TOUCHY):  # parsing takes longer than looking
        return set()
    return {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)} & TOUCHY


def test_nothing_else_reads_certificates() -> None:
    """One module reads what comes from outside; the rest of the package asks it."""
    package = Path(trionode.__file__).parent
    found = {
        str(file.relative_to(package)): names
        for file in package.rglob("*.py")
        if (names := touched(file.read_text(encoding="utf-8")))
    }
    assert found.pop("_identity/certificate.py")
    assert {file: names for file, names in found.items() if names - ALLOWED.get(file, set())} == {}


#: Modules that have attributes of these names on things of their own, or on what they have made themselves.
ALLOWED: dict[str, set[str]] = {
    # The CA that it made or loaded, lists that it signed, builders.
    "pki/_authority.py": TOUCHY - {"extensions"},
    "pki/_certificates.py": {"public_key", "subject"},  # of keys that it has made; the CA's own
    # The CA's own, and what it has issued; entries of its journal and lists.
    "pki/_ca_files.py": {"issuer"},
    "pki/_issuing.py": {"issuer", "not_valid_after_utc"},
    "pki/_revocation.py": {"issuer", "not_valid_after_utc", "serial_number", "subject"},
    "pki/_roll_over.py": {"issuer"},
    "pki/_serials.py": {"public_key"},
    "cli/pki_ca.py": {"issuer"},
    "cli/pki_revoke.py": {"issuer"},
    "pki/_requests.py": {"extensions", "public_key", "signature_hash_algorithm"},  # of requests; all that raises is one
    "enrolment/_client.py": {"extensions", "public_key", "subject"},  # httpx's; its own key's; its own certificate's
    "enrolment/_lists.py": {"issuer"},
    "enrolment/_server.py": {"issuer", "serial_number", "subject"},  # the CA's own, and what it has just issued
    "enrolment/_service.py": {"issuer", "not_valid_after_utc"},  # likewise
    "_credentials/issuing.py": {"public_key", "serial_number"},  # the builder's, and a CA's that `KeyPair` has checked
    "_credentials/key_pair.py": {"public_key"},  # a private key's
    "_credentials/contents.py": {"public_key"},  # likewise
    "_identity/request.py": {"public_key"},  # the one reader of requests
    "testing/_zoo.py": {"extensions", "issuer", "public_key", "signature_hash_algorithm", "subject"},
    "demo/said.py": {"extensions", "issuer", "rfc4514_string", "subject"},  # made by trionode.pki a moment before
    "demo/story.py": {"rfc4514_string", "subject"},
    "cli/revoked.py": {"serial_number"},  # of an entry of a list, an integer
    # Attributes of our own classes: `Outline`, `Validity`, `RevocationList`, `Superseded`, what the demo reports; and
    # of httpx's requests and answers.
    "_identity/outline.py": {"issuer", "subject"},
    "_credentials/crl.py": {"issuer"},
    "_credentials/revocation.py": {"issuer", "subject"},
    "_credentials/revocation_list.py": {"issuer"},
    "_managers/trust.py": {"issuer", "subject"},
    "_status/document.py": {"subject"},
    "_tls/anchors.py": {"issuer", "subject"},
    "_tls/paths.py": {"issuer", "subject"},
    "cli/demo.py": {"issuer", "subject"},
    "cli/status.py": {"subject"},
    "http/caller.py": {"rfc4514_string", "subject"},  # uncut, as ASGI wants it; where that raises, by the one reader
    "http/client.py": {"extensions"},
    "http/connections.py": {"extensions"},
    "metrics.py": {"subject"},
}


# What a stranger's certificate may cost --------------------------------------------------------------------------


def large(kind: str) -> x509.Certificate:
    """A certificate of about 50 KB, of many small parts of one kind."""
    common = [x509.NameAttribute(NameOID.COMMON_NAME, f"n{number}") for number in range(3500 if kind != "names" else 1)]
    few = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "few")])
    sans: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(2**100 + number)) for number in range(2700 if kind == "names" else 1)
    ]
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common) if kind == "subject" else few)
        .issuer_name(x509.Name(common) if kind == "issuer" else few)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .sign(key, hashes.SHA256())
    )


@pytest.mark.parametrize("kind", ["subject", "issuer", "names"])
def test_describing_a_large_certificate_is_little_work(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut before it is formatted, and nothing of it is kept; it is encoded once."""
    certificate = large(kind)
    read, text = 0, ""

    def count(*where: Any) -> Any:
        nonlocal read
        for each in der.elements(*where):
            read += 1
            yield each

    monkeypatch.setattr(reading, "elements", count)
    for _ in range(2):
        read = 0
        text = describe.describe(certificate)
        assert 20 < read < 300
    assert len(text) < 1000
    if kind != "names":
        assert re.search(rf"\(a {kind} of \d{{5}} bytes\)", text)
    assert reading._der(certificate) is reading._der(certificate)
    assert reading.fingerprint(certificate) == certificate.fingerprint(hashes.SHA256()).hex()
    assert len(reading._encoded) <= reading._ENCODED
