"""The development CA: what it is, and what it issues holds before strict peers."""

from __future__ import annotations

import copy
import ipaddress
import pickle
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from cryptography.x509.verification import PolicyBuilder, Store

from handshaking import Ending
from specimens import CLIENT, DAY, NOW, SERVER, at_noon, authority, key_pem, make_certificate
from trionode import pki
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.issuing import BACKDATE, LEAF_KEY_USAGE
from trionode._credentials.policy import ClientAuth, TLSPolicy
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import fingerprint
from trionode._identity.names import NodeName, SubjectNames
from trionode._managers.check import check_usable
from trionode._tls.contexts import TLSContexts
from trionode.pki import (
    CertificateAuthority,
    KeyType,
    write_ca_pool,
    write_key_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trionode._credentials.pem import PrivateKey

    OpenSSL: TypeAlias = Callable[..., bytes]


Ext = TypeVar("Ext", bound=x509.ExtensionType)


@pytest.fixture(params=[False, True], ids=["root", "intermediate"])
def ca(request: pytest.FixtureRequest) -> CertificateAuthority:
    """A CA whose root issues, and one whose intermediate does."""
    return authority(intermediate=request.param)


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


def foreign_ca(
    key: PrivateKey, subject: str = "elsewhere", *, extensions: Sequence[x509.ExtensionType] = ()
) -> x509.Certificate:
    """A self-signed CA certificate with the bare minimum: basic constraints, and what else is given."""
    extensions = [x509.BasicConstraints(ca=True, path_length=None), *extensions]
    end = NOW + 30 * DAY
    return make_certificate(subject, key=key, not_after=end, purposes=None, host=None, extensions=extensions)


# The CA itself ------------------------------------------------------------------------------------------------------


def test_everything_public_is_listed() -> None:
    """`__all__` names what the module offers, and nothing else in it is without an underscore."""
    assert len(pki.__all__) == 11
    assert {name for name in vars(pki) if name[0].isalpha()} == set(pki.__all__)  # pytest adds names that are none


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
    with pytest.raises(ValueError, match=r"at least one character|surrogates not allowed"):
        CertificateAuthority.create(common_name=given)
    with pytest.raises(ValueError, match=r"at least one character|surrogates not allowed"):
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
    """A leaf, a certificate without constraints and one with unreadable ones are refused, with the remedy."""
    pair = authority().issue("host.example")
    key = ec.generate_private_key(ec.SECP256R1())
    junk = x509.UnrecognizedExtension(x509.BasicConstraints.oid, b"\xff")
    garbled = make_certificate("garbled", key=key, purposes=None, host=None, extensions=[junk])
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
    return make_certificate("version 1 in spirit", key=key, purposes=None, host=None)


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
        (("::1",), "address [::1]"),
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
    with pytest.raises(ValueError, match="key_type must be one of p256"):
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
    ending = Ending(server, client)
    assert (ending.server, ending.client) == (None, None)
    assert ending.verified == (True, True)
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
    (tmp_path / "ca.key").write_bytes(key_pem(key))
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


def test_a_list_continues_its_own(ca: CertificateAuthority) -> None:
    """What was on the list before stays, with its reason; what another CA revoked is not this one's to repeat."""
    first = ca.revocation_list(ca.issue("a@localhost"), reason=x509.ReasonFlags.key_compromise)
    second = ca.revocation_list(ca.issue("b@localhost"), previous=first).lists[0]
    assert len(second) == 2
    assert next(iter(second)).extensions.get_extension_for_class(x509.CRLReason).value.reason.value == "keyCompromise"
    assert len(CertificateAuthority.create().revocation_list(previous=first).lists[0]) == 0
