"""The development CA: what it issues holds before strict peers, what it writes is whole, private and loads again."""

from __future__ import annotations

import copy
import errno
import functools
import ipaddress
import os
import pickle
import shutil
import stat
import subprocess
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from cryptography.x509.verification import PolicyBuilder, Store

from trionode import pki
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.issuing import BACKDATE, LEAF_KEY_USAGE
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.policy import ClientAuth, TLSPolicy
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint
from trionode._identity.names import NodeName, SubjectNames
from trionode._managers.findings import check_usable
from trionode._tls.contexts import TLSContexts
from trionode.pki import (
    CertificateAuthority,
    KeyType,
    write_ca_pool,
    write_key_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trionode._credentials.pem import PrivateKey

    OpenSSL: TypeAlias = Callable[..., bytes]

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
Ext = TypeVar("Ext", bound=x509.ExtensionType)
PASSWORD = "correct horse"

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def at_noon() -> datetime:
    """A clock that stands still, with a fraction of a second that no certificate can hold."""
    return NOW + timedelta(microseconds=654_321)


@functools.cache
def authority(*, intermediate: bool = False) -> CertificateAuthority:
    """One CA of each kind for the whole module: they are immutable."""
    return CertificateAuthority.create(intermediate=intermediate, clock=at_noon)


@pytest.fixture(params=[False, True], ids=["root", "intermediate"])
def ca(request: pytest.FixtureRequest) -> CertificateAuthority:
    """A CA whose root issues, and one whose intermediate does."""
    return authority(intermediate=request.param)


@pytest.fixture
def openssl() -> OpenSSL:
    """The `openssl` command: call it with its arguments, get its output."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH")

    def run(*arguments: str | Path) -> bytes:
        return subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, timeout=60).stdout

    return run


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A umask that takes nothing away, so that permissions are what the code asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


def extension(certificate: x509.Certificate, kind: type[Ext]) -> x509.Extension[Ext]:
    """One extension of a certificate."""
    return certificate.extensions.get_extension_for_class(kind)


def sans(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The subject alternative names, in order."""
    return list(extension(certificate, x509.SubjectAlternativeName).value)


def common_name(certificate: x509.Certificate) -> str:
    """The common name of a certificate's subject."""
    value = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert isinstance(value, str)
    return value


def mode(file: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(file.stat().st_mode)


def pem_of(key: PrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def foreign_ca(
    key: PrivateKey, subject: str = "elsewhere", *, extensions: Sequence[x509.ExtensionType] = ()
) -> x509.Certificate:
    """A self-signed CA certificate with the bare minimum: basic constraints, and what else is given."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    for item in extensions:
        builder = builder.add_extension(item, critical=False)
    own_hash = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if own_hash else hashes.SHA256())


# The CA itself ------------------------------------------------------------------------------------------------------


def test_everything_public_is_listed() -> None:
    """`__all__` names what the module offers, and nothing else is without an underscore of its own making."""
    assert pki.__all__ == ["CertificateAuthority", "KeyType", "write_ca_pool", "write_crl_set", "write_key_pair"]
    own = {name for name, value in vars(pki).items() if getattr(value, "__module__", "") == pki.__name__}
    assert {name for name in own if not name.startswith("_")} == set(pki.__all__)


def test_a_ca_is_valid_for_ten_years_from_a_little_ago() -> None:
    """By default a CA is valid from five minutes ago until 3650 days from now, in whole seconds."""
    certificate = authority().certificate
    assert certificate.not_valid_before_utc == NOW - BACKDATE
    assert certificate.not_valid_after_utc == NOW + timedelta(days=3650)
    assert common_name(certificate) == "trionode development CA"


def test_a_root_has_what_strict_peers_ask_of_a_ca() -> None:
    """The root is version 3, critical about being a CA, may sign certificates and CRLs, and has a key identifier."""
    root = authority().certificate
    assert root.version is x509.Version.v3
    assert root.subject == root.issuer
    root.verify_directly_issued_by(root)
    constraints = extension(root, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extension(root, x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert extension(root, x509.SubjectKeyIdentifier).value.digest
    assert authority().intermediate is None


def test_an_intermediate_may_issue_leaves_and_nothing_more() -> None:
    """The intermediate has path length 0, the root above it 1, and its authority key identifier is the root's."""
    certs = authority(intermediate=True)
    assert certs.intermediate is not None
    certs.intermediate.verify_directly_issued_by(certs.certificate)
    assert certs.intermediate.subject != certs.certificate.subject
    assert extension(certs.certificate, x509.BasicConstraints).value.path_length == 1
    assert extension(certs.intermediate, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(certs.intermediate, x509.KeyUsage).value.key_cert_sign
    identifier = extension(certs.intermediate, x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == extension(certs.certificate, x509.SubjectKeyIdentifier).value.digest
    assert certs.intermediate.not_valid_after_utc <= certs.certificate.not_valid_after_utc


def test_the_pool_is_the_root_alone(ca: CertificateAuthority) -> None:
    """Who trusts the CA trusts its root; an intermediate is no anchor."""
    assert ca.pool == CAPool([ca.certificate])
    assert ca.pool is ca.pool


def test_two_cas_of_one_name_can_be_told_apart() -> None:
    """Subjects are unique even where common names are not, root and intermediate included."""
    first, second = authority(), authority(intermediate=True)
    assert second.intermediate is not None
    subjects = {first.certificate.subject, second.certificate.subject, second.intermediate.subject}
    assert len(subjects) == 3
    assert len({common_name(c) for c in (first.certificate, second.certificate, second.intermediate)}) == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("my CA", "my CA"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 64),
        ("ü" * 40, "ü" * 32),
        ("x" * 63 + "ü", "x" * 63),
    ],
)
def test_common_names_are_cut_to_what_rfc_5280_allows(given: str, kept: str) -> None:
    """A common name has 64 bytes at most, cut between characters, in CAs and leaves alike."""
    certs = CertificateAuthority.create(common_name=given)
    assert common_name(certs.certificate) == kept
    assert common_name(certs.issue("host.example", common_name=given).certificate) == kept


@pytest.mark.parametrize("given", ["", "\ud800"])
def test_an_unusable_common_name_is_refused(given: str) -> None:
    """An empty common name, or one that has no encoding, is a `ValueError`."""
    with pytest.raises(ValueError, match=r"length|empty|surrogates not allowed"):
        CertificateAuthority.create(common_name=given)
    with pytest.raises(ValueError, match=r"length|empty|surrogates not allowed"):
        authority().issue("host.example", common_name=given)


@pytest.mark.parametrize("lifetime", [timedelta(0), -DAY])
def test_a_lifetime_is_positive(lifetime: timedelta) -> None:
    """A CA or leaf that would never be valid is refused."""
    with pytest.raises(ValueError, match="a lifetime is positive"):
        CertificateAuthority.create(lifetime=lifetime)
    with pytest.raises(ValueError, match="a lifetime is positive"):
        authority().issue("host.example", lifetime=lifetime)


def test_a_lifetime_may_be_as_long_as_dates_go() -> None:
    """A lifetime beyond the year 9999 ends with it, as RFC 5280 has it for no end at all."""
    certs = CertificateAuthority.create(lifetime=timedelta.max, clock=at_noon)
    assert certs.certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_without_a_clock_the_machines_is_used() -> None:
    """By default what is issued is valid now, by this machine's clock, and was not made in the future."""
    before = datetime.now(UTC).replace(microsecond=0)
    pair = CertificateAuthority.create().issue("host.example")
    after = datetime.now(UTC)
    assert before - BACKDATE <= pair.certificate.not_valid_before_utc <= after - BACKDATE
    check_usable(pair, now=after, as_server=True, as_client=True)


# A CA is a value ----------------------------------------------------------------------------------------------------


def test_a_repr_shows_subject_dates_and_fingerprint_and_no_key(ca: CertificateAuthority, tmp_path: Path) -> None:
    """What is shown of a CA identifies it, its intermediate included, and holds nothing of its key."""
    shown = repr(ca)
    assert "CN=trionode development CA" in shown
    assert "from 2026-06-01 11:55:00 to 2036-05-29 12:00:00 UTC" in shown
    assert fingerprint(ca.certificate)[:16] in shown
    assert ("issuing through" in shown) is (ca.intermediate is not None)
    assert "PrivateKey" not in shown
    ca.save(tmp_path)
    assert not any(secret[-16:] in shown for secret in (tmp_path / "ca.key").read_text().splitlines())


def test_a_ca_cannot_be_pickled(ca: CertificateAuthority) -> None:
    """Pickling a CA is refused under every protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=r"private key stays in this process"):
            pickle.dumps([ca], protocol)


def test_a_ca_is_immutable_and_its_copies_are_itself(ca: CertificateAuthority) -> None:
    """No attribute of a CA can be set, added or deleted, so that copying it gives it back."""
    for attribute in ("certificate", "intermediate", "pool", "_key", "anything"):
        with pytest.raises(AttributeError, match=f"immutable; cannot set {attribute}"):
            setattr(ca, attribute, None)
        with pytest.raises(AttributeError, match=f"immutable; cannot delete {attribute}"):
            delattr(ca, attribute)
    assert copy.copy(ca) is ca
    assert copy.deepcopy([ca])[0] is ca


def test_what_is_no_ca_certificate_makes_no_ca() -> None:
    """A leaf, a certificate without constraints and one with unreadable extensions are refused, with the remedy."""
    pair = authority().issue("host.example")
    key = ec.generate_private_key(ec.SECP256R1())
    garbled = foreign_ca(key, extensions=[x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff")])
    for certificate, private_key in (
        (pair.certificate, pair.private_key),
        (without_constraints(key), key),
        (garbled, key),
    ):
        with pytest.raises(CertificateError, match="Give the certificate of the CA, not one that it issued") as caught:
            CertificateAuthority(certificate, private_key)
        assert caught.value.reason is CertificateReason.NO_CERTIFICATE
    with pytest.raises(CertificateError, match="this is not a CA certificate") as caught:
        CertificateAuthority(authority().certificate, pair.private_key, intermediate=pair.certificate)
    assert caught.value.reason is CertificateReason.NO_CERTIFICATE


def without_constraints(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate that does not say whether it is a CA's."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "version 1 in spirit")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA256())
    )


def test_a_ca_whose_parts_do_not_fit_is_refused() -> None:
    """The key has to be the issuing certificate's, and the intermediate signed by the root."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CertificateError) as caught:
        CertificateAuthority(authority().certificate, key)
    assert caught.value.reason is CertificateReason.KEY_MISMATCH
    with pytest.raises(CertificateError) as caught:
        CertificateAuthority(authority().certificate, key, intermediate=foreign_ca(key))
    assert caught.value.reason is CertificateReason.CHAIN_ORDER


# What it issues -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpha@host.example", ["DNS host.example", "URI trionode://alpha@host.example"]),
        ("Alpha@HOST.example.", ["DNS host.example", "URI trionode://Alpha@host.example"]),
        ("alpha@127.0.0.1", ["IP 127.0.0.1", "URI trionode://alpha@127.0.0.1"]),
        ("alpha@::1", ["IP ::1", "URI trionode://alpha@[::1]"]),
        (
            NodeName.parse("a@bücher.example"),
            ["DNS xn--bcher-kva.example", "URI trionode://a@xn--bcher-kva.example"],
        ),
        ("host.example", ["DNS host.example"]),
        ("HOST.example.", ["DNS host.example"]),
        ("bücher.example", ["DNS xn--bcher-kva.example"]),
        ("localhost", ["DNS localhost"]),
        ("127.0.0.1", ["IP 127.0.0.1"]),
        ("::1", ["IP ::1"]),
        ("[2001:DB8::1]", ["IP 2001:db8::1"]),
    ],
)
def test_a_leaf_says_its_name_in_its_sans(name: str | NodeName, expected: list[str]) -> None:
    """A node name becomes the SAN of its host and its URI SAN, a plain host its SAN alone."""
    certificate = authority().issue(name).certificate
    labels = {x509.DNSName: "DNS", x509.IPAddress: "IP", x509.UniformResourceIdentifier: "URI"}
    assert [f"{labels[type(san)]} {san.value}" for san in sans(certificate)] == expected
    names = SubjectNames.of(certificate)
    assert not names.unusable
    if isinstance(name, NodeName) or "@" in name:
        assert names.cover_node(NodeName.parse(name))
        assert not names.cover_node(NodeName("other", NodeName.parse(name).host))
    else:
        assert not names.restricted


def test_a_leaf_may_have_several_names_each_said_once() -> None:
    """Nodes and hosts can be mixed; a host that several share is one SAN."""
    certificate = (
        authority().issue("alpha@h.example", "beta@h.example", "h.example", "::1", "alpha@H.example").certificate
    )
    assert [san.value for san in sans(certificate)] == [
        "h.example",
        ipaddress.ip_address("::1"),
        "trionode://alpha@h.example",
        "trionode://beta@h.example",
    ]


def test_a_node_restricts_the_plain_hosts_beside_it() -> None:
    """A plain host beside a node name widens what TLS peers match, not which nodes the certificate speaks for."""
    names = SubjectNames.of(authority().issue("alpha@h.example", "www.h.example").certificate)
    assert names.cover_host("www.h.example")
    assert not names.cover_node(NodeName.parse("alpha@www.h.example"))
    assert names.cover_node(NodeName.parse("alpha@h.example"))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("alpha@h.example", "h2.example"), "alpha@h.example"),
        (("h2.example", "alpha@h.example"), "h2.example"),
        (("::1",), "[::1]"),
        ((".".join(["x" * 60] * 3),), ".".join(["x" * 60] * 3)[:64]),
    ],
)
def test_the_first_name_is_the_common_name(names: tuple[str, ...], shown: str) -> None:
    """For people the subject holds the first name, cut if need be; peers do not look at it."""
    assert common_name(authority().issue(*names).certificate) == shown


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), "needs at least one name"),
        (("not a host",), "neither a DNS name nor an IP address"),
        (("a b@host",), "node name part"),
        (("good.example", "alpha@127.1"), "ends in a number"),
        (("*.example.org",), "neither a DNS name nor an IP address"),
    ],
)
def test_bad_names_are_refused(names: tuple[str, ...], text: str) -> None:
    """No certificate is made without a name, or for something that is none."""
    with pytest.raises(ValueError, match=text):
        authority().issue(*names)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (KeyType.P256, lambda key: isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"),
        (KeyType.P384, lambda key: isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"),
        (KeyType.ED25519, lambda key: isinstance(key, ed25519.Ed25519PrivateKey)),
        (KeyType.RSA2048, lambda key: isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048),
    ],
)
def test_every_key_type_can_be_had(kind: KeyType, check: Callable[[PrivateKey], bool]) -> None:
    """Leaves are issued for each kind of key, by member or by its name."""
    assert check(authority().issue("host.example", key_type=kind).private_key)
    assert check(authority().issue("host.example", key_type=kind.value).private_key)


def test_p256_is_the_default_and_unknown_key_types_are_refused() -> None:
    """Without a word a leaf gets a P-256 key; a kind that there is not is a `ValueError`."""
    key = authority().issue("host.example").private_key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    with pytest.raises(ValueError, match="'rsa512' is not a valid KeyType"):
        authority().issue("host.example", key_type="rsa512")
    assert set(KeyType) == {"p256", "p384", "ed25519", "rsa2048"}


def test_every_leaf_has_a_key_and_a_serial_number_of_its_own(ca: CertificateAuthority) -> None:
    """Issuing twice under one name gives two keys and two serial numbers."""
    first, second = ca.issue("alpha@host.example"), ca.issue("alpha@host.example")
    assert first.certificate.serial_number != second.certificate.serial_number
    assert first.certificate.public_key() != second.certificate.public_key()
    assert 0 < first.certificate.serial_number < 2**159


def test_a_leaf_has_what_strict_peers_ask_of_one(ca: CertificateAuthority) -> None:
    """A leaf is no CA, signs digitally, serves both sides, and names its own key and its issuer's."""
    pair = ca.issue("alpha@host.example")
    issuer = ca.intermediate or ca.certificate
    certificate = pair.certificate
    assert certificate.issuer == issuer.subject
    certificate.verify_directly_issued_by(issuer)
    assert extension(certificate, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert extension(certificate, x509.BasicConstraints).critical
    assert extension(certificate, x509.KeyUsage).value == LEAF_KEY_USAGE
    assert extension(certificate, x509.KeyUsage).critical
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == {SERVER, CLIENT}
    assert not extension(certificate, x509.SubjectAlternativeName).critical
    assert extension(certificate, x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(
        pair.private_key.public_key()
    )
    identifier = extension(certificate, x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == extension(issuer, x509.SubjectKeyIdentifier).value.digest


def test_the_chain_holds_the_intermediate_and_never_the_root(ca: CertificateAuthority) -> None:
    """An issued chain is what a peer needs besides the root that it trusts."""
    pair = ca.issue("alpha@host.example")
    assert pair.chain == ((pair.certificate,) if ca.intermediate is None else (pair.certificate, ca.intermediate))


@pytest.mark.parametrize(
    ("purposes", "expected"),
    [
        ([SERVER], {SERVER}),
        ((CLIENT,), {CLIENT}),
        (iter([SERVER, ExtendedKeyUsageOID.CODE_SIGNING]), {SERVER, ExtendedKeyUsageOID.CODE_SIGNING}),
        (x509.ExtendedKeyUsage([CLIENT]), {CLIENT}),
    ],
)
def test_purposes_are_as_asked_for(purposes: Sequence[ObjectIdentifier], expected: set[ObjectIdentifier]) -> None:
    """A leaf gets exactly the extended key usage that was given."""
    certificate = authority().issue("host.example", extended_key_usage=purposes).certificate
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == expected


def test_purposes_may_be_left_out_but_not_empty() -> None:
    """None leaves the extension out; an empty sequence, which no certificate can hold, is refused."""
    certificate = authority().issue("host.example", extended_key_usage=None).certificate
    with pytest.raises(x509.ExtensionNotFound):
        extension(certificate, x509.ExtendedKeyUsage)
    with pytest.raises(ValueError, match="name a purpose, or give None"):
        authority().issue("host.example", extended_key_usage=[])


# Dates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({}, NOW - BACKDATE, NOW + 90 * DAY),
        ({"lifetime": DAY}, NOW - BACKDATE, NOW + DAY),
        ({"not_before": NOW + DAY}, NOW + DAY, NOW + 91 * DAY),
        ({"not_before": NOW - 9 * DAY, "lifetime": 2 * DAY}, NOW - 9 * DAY, NOW - 7 * DAY),
        ({"not_after": NOW + 7 * DAY}, NOW - BACKDATE, NOW + 7 * DAY),
        ({"not_after": NOW + 7 * DAY, "lifetime": DAY}, NOW - BACKDATE, NOW + 7 * DAY),
        ({"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}, NOW - 2 * DAY, NOW - DAY),
        ({"not_before": at_noon(), "not_after": at_noon() + DAY}, NOW, NOW + DAY),
        ({"lifetime": timedelta(days=5000)}, NOW - BACKDATE, NOW + 3650 * DAY),
        ({"lifetime": timedelta.max}, NOW - BACKDATE, NOW + 3650 * DAY),
        ({"not_after": NOW + 5000 * DAY}, NOW - BACKDATE, NOW + 3650 * DAY),
    ],
)
def test_a_leaf_is_valid_as_asked_for_and_never_beyond_its_issuer(
    ca: CertificateAuthority, options: dict[str, object], start: datetime, end: datetime
) -> None:
    """Dates are as given, by default from five minutes ago for 90 days, and end with the issuer at the latest."""
    certificate = ca.issue("host.example", **options).certificate  # type: ignore[arg-type]
    assert certificate.not_valid_before_utc == start
    assert certificate.not_valid_after_utc == end


def test_dates_may_be_in_any_zone() -> None:
    """An aware date of another zone means the same moment."""
    from_elsewhere = NOW.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    assert authority().issue("h", not_before=from_elsewhere).certificate.not_valid_before_utc == NOW


@pytest.mark.parametrize("option", ["not_before", "not_after"])
def test_naive_dates_are_refused(option: str) -> None:
    """A date without a zone is a `ValueError`, not a guess."""
    with pytest.raises(ValueError, match=f"{option} has no time zone; give an aware datetime"):
        authority().issue("h", **{option: datetime(2026, 6, 2)})  # type: ignore[arg-type]  # noqa: DTZ001


@pytest.mark.parametrize("end", [NOW, NOW - DAY])
def test_an_empty_validity_is_refused(end: datetime) -> None:
    """A leaf that would end before it begins is a `ValueError`."""
    with pytest.raises(ValueError, match="but begin only at 2026-06-01 12:00:00"):
        authority().issue("h", not_before=NOW, not_after=end)


def test_a_ca_that_has_ended_issues_nothing() -> None:
    """Once the issuer has expired, issuing is a `CertificateError` that says to make a new CA."""
    now = [NOW]
    certs = CertificateAuthority.create(lifetime=DAY, clock=lambda: now[0])
    now[0] = NOW + DAY - timedelta(seconds=1)
    assert certs.issue("h").certificate.not_valid_after_utc == NOW + DAY
    now[0] = NOW + 2 * DAY
    with pytest.raises(CertificateError, match="Make a new CA, and add it to your CA pools before") as caught:
        certs.issue("h")
    assert caught.value.reason is CertificateReason.EXPIRED
    assert certs.issue("h", not_before=NOW).certificate.not_valid_after_utc == NOW + DAY


# Before strict peers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KeyType)
def test_issued_chains_verify_in_strict_openssl(
    ca: CertificateAuthority, kind: KeyType, openssl: OpenSSL, tmp_path: Path
) -> None:
    """OpenSSL in strict mode accepts issued chains as a server's and a client's, under their names."""
    pair = ca.issue("alpha@host.example", "127.0.0.1", not_before=NOW, key_type=kind)
    root, chain = tmp_path / "root.pem", tmp_path / "chain.pem"
    write_ca_pool(ca.pool, root)
    write_key_pair(pair, chain, tmp_path / "key.pem")
    when = str(int((NOW + DAY).timestamp()))
    for purpose in ("sslserver", "sslclient"):
        for name in (("-verify_hostname", "host.example"), ("-verify_ip", "127.0.0.1")):
            openssl(
                "verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, *name, "-attime", when,
                "-CAfile", root, "-untrusted", chain, chain,
            )  # fmt: skip
    openssl("pkey", "-in", tmp_path / "key.pem", "-check", "-noout")


def test_issued_chains_verify_in_cryptographys_web_profile(ca: CertificateAuthority) -> None:
    """A verifier of another make, with the profile of the web's PKI, accepts issued chains for both sides."""
    pair = ca.issue("alpha@host.example")
    builder = PolicyBuilder().store(Store([ca.certificate])).time(NOW)
    verified = builder.build_server_verifier(x509.DNSName("host.example")).verify(
        pair.certificate, list(pair.chain[1:])
    )
    assert verified[0] == pair.certificate
    assert verified[-1] == ca.certificate
    builder.build_client_verifier().verify(pair.certificate, list(pair.chain[1:]))


@pytest.mark.parametrize("kind", KeyType)
def test_two_issued_key_pairs_complete_a_mutual_handshake(ca: CertificateAuthority, kind: KeyType) -> None:
    """Two nodes of one CA verify each other in our own engine, whatever their keys, with the pool alone."""
    policy = TLSPolicy(
        client_cas=ca.pool, root_cas=ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, clock=at_noon
    )
    alpha, beta = ca.issue("alpha@host.example", key_type=kind), ca.issue("beta@host.example")
    server = TLSContexts.build(1, alpha, policy).server.session()
    client = TLSContexts.build(1, beta, policy).client.session(
        reference="host.example", node=NodeName.parse("alpha@host.example")
    )
    for _ in range(3):
        client.handshake()
        server.feed(client.outgoing())
        server.handshake()
        client.feed(server.outgoing())
    assert client.handshake()
    assert server.handshake()
    assert client.verified
    assert server.verified
    assert server.peer_certificate == beta.certificate


# CAs from elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048), hashes.SHA256),
        (lambda: ec.generate_private_key(ec.SECP384R1()), hashes.SHA384),
        (lambda: ec.generate_private_key(ec.SECP521R1()), hashes.SHA512),
        (ed25519.Ed25519PrivateKey.generate, None),
        (ed448.Ed448PrivateKey.generate, None),
    ],
)
def test_a_ca_with_another_kind_of_key_issues_too(
    tmp_path: Path, make: Callable[[], PrivateKey], digest: type[hashes.HashAlgorithm] | None
) -> None:
    """A CA that another program made is loaded and issues, with a hash as strong as its key."""
    key = make()
    root = foreign_ca(key)
    (tmp_path / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ca.key").write_bytes(pem_of(key))
    leaf = CertificateAuthority.load(tmp_path, clock=at_noon).issue("host.example").certificate
    leaf.verify_directly_issued_by(root)
    used = leaf.signature_hash_algorithm
    assert used is None if digest is None else isinstance(used, digest)


def test_a_ca_without_key_identifier_is_identified_by_its_key() -> None:
    """A leaf has an authority key identifier even where its issuer has no subject key identifier to copy."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = CertificateAuthority(foreign_ca(key), key, clock=at_noon).issue("host.example").certificate
    expected = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    assert extension(leaf, x509.AuthorityKeyIdentifier).value == expected


def test_a_key_identifier_of_another_make_is_copied() -> None:
    """The authority key identifier is the issuer's own, however that was computed."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = foreign_ca(key, extensions=[x509.SubjectKeyIdentifier(b"serial 17")])
    leaf = CertificateAuthority(root, key, clock=at_noon).issue("host.example").certificate
    assert extension(leaf, x509.AuthorityKeyIdentifier).value.key_identifier == b"serial 17"


# Saving and loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, PASSWORD, PASSWORD.encode()])
def test_a_saved_ca_loads_and_issues_as_before(
    ca: CertificateAuthority, tmp_path: Path, password: str | bytes | None
) -> None:
    """What `save` wrote, `load` reads: the same CA, able to issue, encrypted or not."""
    ca.save(tmp_path / "deep" / "down", password=password)
    loaded = CertificateAuthority.load(str(tmp_path / "deep" / "down"), password=password, clock=at_noon)
    assert loaded.certificate == ca.certificate
    assert loaded.intermediate == ca.intermediate
    assert loaded.pool == ca.pool
    pair = loaded.issue("alpha@host.example")
    assert pair.chain[1:] == ca.issue("alpha@host.example").chain[1:]
    pair.certificate.verify_directly_issued_by(ca.intermediate or ca.certificate)


def test_a_saved_ca_is_three_files_of_which_the_key_is_private(tmp_path: Path, no_umask: None) -> None:
    """The directory holds root, intermediate and issuing key, and only the owner can read the key."""
    directory = tmp_path / "ca"
    authority(intermediate=True).save(directory)
    assert {file.name: mode(file) for file in directory.iterdir()} == {
        "ca.pem": 0o644,
        "intermediate.pem": 0o644,
        "ca.key": 0o600,
    }
    assert mode(directory) == 0o700
    authority().save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"ca", "ca.pem", "ca.key"}


def test_a_loose_key_file_becomes_private_when_it_is_replaced(tmp_path: Path) -> None:
    """A key file that others could read is not written into: a new one takes its place."""
    key_file = tmp_path / "ca.key"
    key_file.touch(mode=0o666)
    key_file.chmod(0o666)
    with key_file.open() as opened_before:
        authority().save(tmp_path)
        assert opened_before.read() == ""
    assert mode(key_file) == 0o600


def test_a_new_ca_replaces_an_old_one_completely(tmp_path: Path) -> None:
    """No stale intermediate is left behind that would spoil the new CA."""
    authority(intermediate=True).save(tmp_path)
    authority().save(tmp_path)
    assert CertificateAuthority.load(tmp_path).certificate == authority().certificate
    assert not (tmp_path / "intermediate.pem").exists()
    authority(intermediate=True).save(tmp_path)
    assert CertificateAuthority.load(tmp_path).intermediate == authority(intermediate=True).intermediate


def test_the_root_key_is_forgotten_where_an_intermediate_issues(tmp_path: Path) -> None:
    """With an intermediate the key on disk is the intermediate's, and nobody has the root's."""
    certs = authority(intermediate=True)
    certs.save(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    assert certs.intermediate is not None
    assert key.public_key() == certs.intermediate.public_key()
    assert key.public_key() != certs.certificate.public_key()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    """A way to damage a CA's directory: put something else into a file."""

    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return damage


def copy_in(name: str, source: str, of: Callable[[], CertificateAuthority]) -> Callable[[Path], None]:
    """A way to damage a CA's directory: take a file from another CA."""

    def damage(directory: Path) -> None:
        other = directory / "other"
        of().save(other)
        shutil.copy(other / source, directory / name)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: lose a file."""
    return lambda directory: (directory / name).unlink()


def append(name: str, source: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: join two files."""

    def damage(directory: Path) -> None:
        with (directory / name).open("ab") as stream:
            stream.write((directory / source).read_bytes())

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: lose the second half of a file."""
    return lambda directory: os.truncate(directory / name, (directory / name).stat().st_size // 2)


def dangle(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: a link that leads nowhere."""

    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to("nowhere")

    return damage


def make_directory(name: str) -> Callable[[Path], None]:
    """A way to damage a CA's directory: a directory where a file was."""

    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def leaf_pem() -> bytes:
    """A leaf, where a CA is wanted."""
    return authority().issue("host.example").certificate.public_bytes(serialization.Encoding.PEM)


def fresh() -> CertificateAuthority:
    """Another CA with an intermediate."""
    return CertificateAuthority.create(intermediate=True)


Reason = CertificateReason

DAMAGE: dict[str, tuple[Callable[[Path], None], CertificateReason, str]] = {
    "no root": (remove("ca.pem"), Reason.UNREADABLE, "ca.pem: No such file or directory. Check the path"),
    "no key": (remove("ca.key"), Reason.UNREADABLE, "ca.key: No such file or directory. Check the path"),
    "intermediate lost": (remove("intermediate.pem"), Reason.KEY_MISMATCH, "read them again"),
    "intermediate dangling": (dangle("intermediate.pem"), Reason.UNREADABLE, "intermediate.pem: No such file"),
    "root empty": (overwrite("ca.pem", b""), Reason.NO_CERTIFICATE, "no PEM certificate in"),
    "root cut off": (truncate("ca.pem"), Reason.UNREADABLE, "ca.pem is damaged or cut off; write the file anew"),
    "intermediate cut off": (truncate("intermediate.pem"), Reason.UNREADABLE, "intermediate.pem is damaged or cut off"),
    "key empty": (overwrite("ca.key", b""), Reason.NO_KEY, "no PEM private key in"),
    "key cut off": (truncate("ca.key"), Reason.UNREADABLE, "ca.key is damaged or cut off; write the file anew"),
    "key of another": (copy_in("ca.key", "ca.key", fresh), Reason.KEY_MISMATCH, "does not belong to the leaf"),
    "root of another": (copy_in("ca.pem", "ca.pem", fresh), Reason.CHAIN_ORDER, "is not signed by"),
    "two roots": (append("ca.pem", "intermediate.pem"), Reason.CHAIN_ORDER, "ca.pem holds 2 certificates; a CA's own"),
    "long intermediate": (
        append("intermediate.pem", "ca.pem"),
        Reason.CHAIN_ORDER,
        "intermediate.pem holds 2 certificates; a CA's own certificate has to be alone in it",
    ),
    "a leaf as root": (overwrite("ca.pem", leaf_pem()), Reason.NO_CERTIFICATE, "Give the certificate of the CA"),
    "a directory as root": (make_directory("ca.pem"), Reason.UNREADABLE, "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ca_is_refused_with_reason_and_remedy(tmp_path: Path, damage: str) -> None:
    """Each way in which a CA's files can be wrong is a `CertificateError` that says which, and quotes no key."""
    break_it, reason, text = DAMAGE[damage]
    certs = authority(intermediate=True)
    certs.save(tmp_path)
    secrets = (tmp_path / "ca.key").read_text().splitlines()[1:-1]
    break_it(tmp_path)
    with pytest.raises(CertificateError) as caught:
        CertificateAuthority.load(tmp_path)
    assert caught.value.reason is reason
    assert text in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(secret[-16:] in shown for secret in secrets)


@pytest.mark.parametrize(
    ("saved", "given", "text"),
    [
        (PASSWORD, None, "is encrypted; give its password"),
        (PASSWORD, "battery staple", "the password does not open the private key"),
        (None, PASSWORD, "is not encrypted; leave it out"),
    ],
)
def test_the_password_of_a_ca_has_to_fit(
    ca: CertificateAuthority, tmp_path: Path, saved: str | None, given: str | None, text: str
) -> None:
    """A missing, wrong or superfluous password is `bad_password`."""
    ca.save(tmp_path, password=saved)
    with pytest.raises(CertificateError, match=text) as caught:
        CertificateAuthority.load(tmp_path, password=given)
    assert caught.value.reason is CertificateReason.BAD_PASSWORD


def test_a_missing_directory_is_unreadable(tmp_path: Path) -> None:
    """Where there is no CA, the error names the file that was looked for."""
    with pytest.raises(CertificateError, match=r"nowhere/ca\.pem: No such file or directory") as caught:
        CertificateAuthority.load(tmp_path / "nowhere")
    assert caught.value.reason is CertificateReason.UNREADABLE


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize("kind", KeyType)
def test_a_written_key_pair_loads_again(
    ca: CertificateAuthority, tmp_path: Path, kind: KeyType, password: str | None
) -> None:
    """Chain and key come back as they were, whatever the kind of key, encrypted or not."""
    pair = ca.issue("alpha@host.example", key_type=kind)
    write_key_pair(pair, tmp_path / "tls.crt", str(tmp_path / "tls.key"), password=password)
    loaded = KeyPair.load(tmp_path / "tls.crt", tmp_path / "tls.key", password=password)
    assert loaded.chain == pair.chain
    header = b"-----BEGIN PRIVATE KEY-----" if password is None else b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
    assert (tmp_path / "tls.key").read_bytes().startswith(header)
    assert b"PRIVATE KEY" not in (tmp_path / "tls.crt").read_bytes()


def test_a_written_pool_loads_again(tmp_path: Path, no_umask: None) -> None:
    """A pool comes back with all its certificates in order, readable for all."""
    pool = authority().pool | authority(intermediate=True).pool
    write_ca_pool(pool, tmp_path / "pool.pem")
    assert CAPool.load(tmp_path / "pool.pem").certificates == pool.certificates
    assert mode(tmp_path / "pool.pem") == 0o644


def test_one_file_for_both_is_written_in_one_step_and_private(tmp_path: Path, no_umask: None) -> None:
    """Where certificate and key go to the same file, however it is spelt, it holds both and is the owner's alone."""
    pair = authority(intermediate=True).issue("alpha@host.example")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "both.pem"
    write_key_pair(pair, file, tmp_path / "sub" / ".." / "both.pem")
    assert KeyPair.load(file, file).chain == pair.chain
    assert mode(file) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"both.pem", "sub"}


@pytest.mark.parametrize("password", ["", b""])
def test_an_empty_password_is_refused_before_anything_is_touched(tmp_path: Path, password: str | bytes) -> None:
    """An empty password does not silently mean none."""
    with pytest.raises(ValueError, match="Password"):
        write_key_pair(authority().issue("h"), tmp_path / "c", tmp_path / "k", password=password)
    with pytest.raises(ValueError, match="Password"):
        authority().save(tmp_path / "ca", password=password)
    assert not list(tmp_path.iterdir())


def test_the_key_is_private_from_its_first_byte(
    tmp_path: Path, no_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is created new, exclusively, in its target's directory, the key with mode 0600 from the start."""
    made: list[tuple[Path, int, int]] = []
    real = os.open

    def spy(path: str | Path, flags: int, mode: int = 0o777) -> int:
        made.append((Path(path).parent, flags & (os.O_CREAT | os.O_EXCL), mode))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", spy)
    write_key_pair(authority().issue("h"), tmp_path / "c.pem", tmp_path / "k.pem")
    assert made == [(tmp_path, os.O_CREAT | os.O_EXCL, 0o600), (tmp_path, os.O_CREAT | os.O_EXCL, 0o644)]
    assert mode(tmp_path / "k.pem") == 0o600
    assert mode(tmp_path / "c.pem") == 0o644


def test_a_rotation_on_disk_never_shows_a_new_certificate_with_an_old_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of replacing a pair, what is read is whole, and torn only as old certificate, new key."""
    cert_file, key_file = tmp_path / "c.pem", tmp_path / "k.pem"
    old, new = authority().issue("h"), authority().issue("h")
    write_key_pair(old, cert_file, key_file)
    seen: list[str] = []

    def look() -> None:
        try:
            seen.append("old" if KeyPair.load(cert_file, key_file).fingerprint == old.fingerprint else "new")
        except CertificateError as exc:
            seen.append(exc.reason)
            assert CAPool.load(cert_file).certificates == old.chain

    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        look()
        done = real(self, target)
        look()
        return done

    monkeypatch.setattr(Path, "replace", replace)
    write_key_pair(new, cert_file, key_file)
    assert seen == ["old", "key_mismatch", "key_mismatch", "new"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """If either file cannot be written, both old ones stay as they were and no temporary file is left."""
    cert_file, key_file = tmp_path / "c.pem", tmp_path / "k.pem"
    old = authority().issue("h")
    write_key_pair(old, cert_file, key_file)
    real, calls = os.open, [0]

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left on device"):
            write_key_pair(authority().issue("h"), cert_file, key_file)
    assert KeyPair.load(cert_file, key_file).fingerprint == old.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"c.pem", "k.pem"}


def test_a_target_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """A directory in a file's place, or a missing one around it, is an `OSError` before any file is replaced."""
    key_file = tmp_path / "k.pem"
    key_file.write_text("as it was")
    (tmp_path / "directory").mkdir()
    pair = authority().issue("h")
    with pytest.raises(IsADirectoryError):
        write_key_pair(pair, tmp_path / "directory", key_file)
    with pytest.raises(FileNotFoundError):
        write_key_pair(pair, tmp_path / "missing" / "c.pem", key_file)
    with pytest.raises(IsADirectoryError):
        write_ca_pool(authority().pool, tmp_path / "directory")
    assert key_file.read_text() == "as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"k.pem", "directory"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """A symbolic link in a key's place does not lead the key somewhere else."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    link = tmp_path / "k.pem"
    link.symlink_to(elsewhere)
    pair = authority().issue("h")
    write_key_pair(pair, tmp_path / "c.pem", link)
    assert not link.is_symlink()
    assert elsewhere.read_bytes() == b""
    assert KeyPair.load(tmp_path / "c.pem", link).fingerprint == pair.fingerprint


def test_relative_paths_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare file names mean the working directory."""
    monkeypatch.chdir(tmp_path)
    pair = authority().issue("h")
    write_key_pair(pair, "c.pem", "k.pem")
    write_ca_pool(authority().pool, "ca.pem")
    assert KeyPair.load("c.pem", "k.pem").fingerprint == pair.fingerprint
    assert CAPool.load("ca.pem") == authority().pool


# Revocation ----------------------------------------------------------------------------------------------------------


def test_revocation_list_is_what_openssl_makes_of_it(tmp_path: Path) -> None:
    """The `openssl` command reads it, and verifies its signature against the CA."""
    authority = CertificateAuthority.create()
    gone, kept = authority.issue("alpha@localhost"), authority.issue("beta@localhost")
    [crl] = authority.revocation_list(gone, reason=x509.ReasonFlags.key_compromise)
    assert crl.get_revoked_certificate_by_serial_number(gone.certificate.serial_number) is not None
    assert crl.get_revoked_certificate_by_serial_number(kept.certificate.serial_number) is None
    (tmp_path / "ca.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    shown = subprocess.run(
        ["openssl", "crl", "-in", "crl.pem", "-CAfile", "ca.pem", "-noout", "-text"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "verify OK" in shown.stderr
    assert "Key Compromise" in shown.stdout
    assert f"{gone.certificate.serial_number:X}" in shown.stdout


def test_revocation_list_may_be_empty_but_not_over() -> None:
    """A list of nobody is a list; one without a lifetime would refuse everybody."""
    authority = CertificateAuthority.create(intermediate=True)
    [crl] = authority.revocation_list()
    assert authority.intermediate is not None
    assert crl.issuer == authority.intermediate.subject
    assert len(crl) == 0
    with pytest.raises(ValueError, match="lifetime"):
        authority.revocation_list(lifetime=timedelta(0))
