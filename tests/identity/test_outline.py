"""Whose a certificate is, read from its bytes."""

from __future__ import annotations

import itertools

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from ca import TestCA, key_usage, new_key
from trionode._identity.outline import canonical_name, extension_oids, outline

BASIC_CONSTRAINTS, KEY_USAGE = bytes.fromhex("551d13"), bytes.fromhex("551d0f")


def test_a_certificate() -> None:
    """Subject, issuer, key, version, and which extensions it has."""
    root = TestCA("the root")
    leaf = root.leaf(usage=key_usage("digital_signature"))
    der = leaf.certificate.public_bytes(Encoding.DER)
    found, above = outline(der), outline(root.certificate.public_bytes(Encoding.DER))
    assert found.issuer == above.subject == above.issuer != found.subject
    assert found.version == 3
    public_key = leaf.certificate.public_key()
    assert found.key == public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert KEY_USAGE in extension_oids(der)
    assert BASIC_CONSTRAINTS not in extension_oids(der)


def attribute(value: str, kind: _ASN1Type = _ASN1Type.UTF8String) -> x509.NameAttribute[str]:
    """A Common Name of a string type."""
    return x509.NameAttribute(NameOID.COMMON_NAME, value, kind)


def canonical(*attributes: x509.NameAttribute[str]) -> object:
    """A name as it is compared."""
    return canonical_name(x509.Name([*attributes]).public_bytes())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("the root", _ASN1Type.PrintableString),
        ("The ROOT", _ASN1Type.UTF8String),
        ("  the \t root ", _ASN1Type.UTF8String),
        ("the root", _ASN1Type.BMPString),
        ("the root", _ASN1Type.UniversalString),
        ("the root", _ASN1Type.IA5String),
    ],
)
def test_names_that_are_the_same(value: str, kind: _ASN1Type) -> None:
    """RFC 5280 section 7.1: case, spacing and string type are no difference."""
    assert canonical(attribute(value, kind)) == canonical(attribute("the root"))


def test_names_that_are_not_the_same() -> None:
    """Another word, another order, another attribute, more attributes, letters beyond ASCII in other case."""
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "b")
    names = [
        canonical(),
        canonical(attribute("theroot")),
        canonical(attribute("the root"), attribute("b")),
        canonical(attribute("b"), attribute("the root")),
        canonical(attribute("the root"), organization),
        canonical(attribute("é")),
        canonical(attribute("É")),
        canonical(attribute("the\u00a0root")),
    ]
    for one, other in itertools.combinations(names, 2):
        assert one != other


def test_values_that_are_no_text() -> None:
    """What cannot be decoded is compared as it is."""
    good = x509.Name([attribute("abc", _ASN1Type.UTF8String)]).public_bytes()
    broken = good.replace(b"abc", b"a\xffc")
    assert canonical_name(broken) != canonical_name(good)


@pytest.mark.parametrize("der", [b"", b"\x04\x00", b"\x30\x04\x31\x02\x30\x00"])
def test_what_is_no_name(der: bytes) -> None:
    """Refused, whatever it is."""
    with pytest.raises(ValueError, match=r"."):
        canonical_name(der)


def test_what_is_no_certificate() -> None:
    """A structure that lacks fields."""
    with pytest.raises(ValueError, match="lacks some of its fields"):
        outline(b"\x30\x04\x30\x02\x05\x00")


def test_a_list_of_revoked_is_none_either() -> None:
    """Another signed structure is not taken for a certificate of few fields."""
    root = TestCA()
    builder = x509.CertificateSigningRequestBuilder().subject_name(root.certificate.subject)
    request = builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(ValueError, match=r"."):
        outline(request)
