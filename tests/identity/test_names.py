"""Who somebody is: node names, the names that certificates offer, and what errors say about them."""

from __future__ import annotations

import copy
import dataclasses
import ipaddress
import pickle
import re
import string
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import example, given, strategies as st

from trionode import _errors
from trionode._errors import (
    ApplicationCode,
    CertificateError,
    CertificateReason,
    FixedAtStartupError,
    HandshakeError,
    HandshakeTimeoutError,
    ListenError,
    LocalProtocolError,
    NetworkDisabledError,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    ProtocolError,
    Refused,
    RejectionCode,
    RemoteCode,
    RemoteError,
    RemoteProtocolError,
    Stage,
    TrionodeError,
    UnverifiedReason,
)
from trionode._identity.certificate import fingerprint
from trionode._identity.describe import (
    describe,
    describe_dates,
    describe_names,
    describe_subjects,
)
from trionode._identity.names import (
    NodeName,
    SubjectNames,
    canonical_host,
    host_address,
    unbracketed,
)
from trionode._util.text import printable

KEY = ec.generate_private_key(ec.SECP256R1())
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
END = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
SAN_OID = x509.SubjectAlternativeName.oid

#: An unassigned neighbour of the SAN's OID: patched into it, to make what the builder refuses to make.
OTHER_OID = ObjectIdentifier("2.5.29.99")


def certificate(*names: x509.GeneralName, common_name: str = "leaf") -> x509.Certificate:
    """A certificate that offers these names; without any it has no SAN extension."""
    extensions: list[x509.ExtensionType] = [x509.SubjectAlternativeName(names)] if names else []
    return build(*extensions, common_name=common_name)


def raw_certificate(*entries: tuple[int, bytes], common_name: str = "leaf") -> x509.Certificate:
    """A certificate whose SAN entries, (tag, content) each, may be ones that cryptography refuses to build."""
    body = b"".join(bytes([tag, len(content)]) + content for tag, content in entries)
    return build(x509.UnrecognizedExtension(SAN_OID, bytes([0x30, len(body)]) + body), common_name=common_name)


def build(*extensions: x509.ExtensionType, common_name: str | None = "leaf") -> x509.Certificate:
    """A self-signed certificate with these extensions; without a common name its subject is empty."""
    name = x509.Name([] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(END)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def patched(original: x509.Certificate, old: bytes, new: bytes) -> x509.Certificate:
    """The certificate with some of its bytes exchanged; its signature no longer holds, which parsing does not mind."""
    der = original.public_bytes(serialization.Encoding.DER)
    assert old in der
    return x509.load_der_x509_certificate(der.replace(old, new))


DNS, IP, URI = 0x82, 0x87, 0x86


def names_of(*entries: tuple[int, bytes]) -> SubjectNames:
    """What a certificate with these SAN entries offers."""
    return SubjectNames.of(raw_certificate(*entries))


# Node names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpha@host-a.example", "alpha@host-a.example"),
        ("Alpha@HOST-A.Example", "Alpha@host-a.example"),
        ("alpha@host.example.", "alpha@host.example"),
        ("alpha@localhost", "alpha@localhost"),
        ("a.b_c~d-e9@h", "a.b_c~d-e9@h"),
        ("0@0h.example", "0@0h.example"),
        ("a@1.example", "a@1.example"),
        ("a@127.0.0.1", "a@127.0.0.1"),
        ("a@[::1]", "a@[::1]"),
        ("a@::1", "a@[::1]"),
        ("a@[2001:DB8:0:0::1]", "a@[2001:db8::1]"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
        ("a@XN--BCHER-KVA.example", "a@xn--bcher-kva.example"),
        ("a@bücher。example", "a@xn--bcher-kva.example"),
        ("a@straße.example", "a@xn--strae-oqa.example"),
        ("a@" + "x" * 63 + ".example", "a@" + "x" * 63 + ".example"),
        ("n" * 247 + "@example", "n" * 247 + "@example"),
    ],
)
def test_a_node_name_is_kept_in_canonical_form(text: str, canonical: str) -> None:
    """Every spelling of a node name parses to its one canonical form."""
    name = NodeName.parse(text)
    assert str(name) == canonical
    assert f"{name.name}@{name.host}" == canonical
    assert NodeName.parse(canonical) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("alpha", "name@host"),
        ("", "name@host"),
        ("@host", "node name part"),
        ("a b@host", "node name part"),
        ("a/b@host", "node name part"),
        ("ä@host", "node name part"),
        ("a\n@host", "node name part"),
        ("a\0@host", "node name part"),
        ("a@", "neither a DNS name nor an IP address"),
        ("a@.", "neither a DNS name nor an IP address"),
        ("a@b@c", "neither a DNS name nor an IP address"),
        ("a@h h", "neither a DNS name nor an IP address"),
        ("a@ h", "neither a DNS name nor an IP address"),
        ("a@h\n", "neither a DNS name nor an IP address"),
        ("a@h\0", "neither a DNS name nor an IP address"),
        ("a@good.example\0.evil.example", "neither a DNS name nor an IP address"),
        ("a@h..example", "neither a DNS name nor an IP address"),
        ("a@h.example..", "neither a DNS name nor an IP address"),
        ("a@.h", "neither a DNS name nor an IP address"),
        ("a@-h", "neither a DNS name nor an IP address"),
        ("a@h-", "neither a DNS name nor an IP address"),
        ("a@h,h.example", "',' at character 2 is not allowed"),
        ("a@bücher_.example", "is not a DNS name"),
        ("a@h..example", "an empty label at character 3"),
        ("a@h-.example", "'h-' at character 1 begins or ends with a hyphen"),
        ("a@good.xn--a", "'xn--a' at character 6 is no A-label"),
        ("a@good." + "x" * 64, "at character 6 is longer than 63 characters (64)"),
        ("a@https://h.example/x", "give the host of the URL alone"),
        ("a@h.example:443", "give host and port apart"),
        ("a@*.example", "neither a DNS name nor an IP address"),
        ("a@" + "x" * 64, "neither a DNS name nor an IP address"),
        ("a@[host.example]", "neither a DNS name nor an IP address"),
        ("a@[127.0.0.1]", "neither a DNS name nor an IP address"),
        ("a@xn--a", "neither a DNS name nor an IP address"),
        ("a@xn--", "neither a DNS name nor an IP address"),
        ("a@xn--bcher-.example", "neither a DNS name nor an IP address"),
        ("a@-ü.example", "is not a DNS name"),
        ("a@\ud800", "is not a DNS name"),
        ("a@ü h", "is not a DNS name"),
        ("a@127.1", "ends in a number but is not an IPv4 address"),
        ("a@0x7f.1", "ends in a number but is not an IPv4 address"),
        ("a@0x7f000001", "ends in a number but is not an IPv4 address"),
        ("a@h.0x", "ends in a number but is not an IPv4 address"),
        ("a@2130706433", "ends in a number but is not an IPv4 address"),
        ("a@127.0.0.01", "ends in a number but is not an IPv4 address"),
        ("a@127.0.0.1.", "ends in a number but is not an IPv4 address"),
        ("a@256.0.0.1", "ends in a number but is not an IPv4 address"),
        ("a@①.②.③.④", "ends in a number but is not an IPv4 address"),
        ("a@fe80::1%eth0", "has a zone (%eth0), which is for one machine only: drop it"),
        ("a@[fe80::1%eth0]", "has a zone (%eth0), which is for one machine only: drop it"),
        ("a@[::1", "is not an IPv6 address"),
        ("a@::1]", "is not an IPv6 address"),
        ("a@host:15000", "is not an IPv6 address"),
        ("a@[::1]:15000", "is not an IPv6 address"),
        ("n" * 248 + "@example", "at most 255 bytes"),
        ("a@" + "h" * 256, "longer than 255 bytes"),
        ("n@" + ".".join(["x" * 63] * 4), "neither a DNS name nor an IP address"),
    ],
)
def test_what_is_no_node_name_is_refused_with_the_reason(text: str, why: str) -> None:
    """Text that spells no node name is a ValueError that says what is wrong, in printable characters."""
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        NodeName.parse(text)
    assert str(caught.value).isprintable()


def test_a_long_bad_name_does_not_flood_the_message() -> None:
    """A message quotes no more than the beginning of what it refuses."""
    with pytest.raises(ValueError, match="name@host") as caught:
        NodeName.parse("x" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_node_names_compare_and_hash_by_canonical_form() -> None:
    """Two spellings of one name are equal, hash alike, and the name part stays case-sensitive."""
    assert NodeName.parse("a@HOST.") == NodeName.parse("a@host")
    assert len({NodeName.parse("a@HOST."), NodeName.parse("a@host"), NodeName("a", "host")}) == 1
    assert NodeName.parse("A@host") != NodeName.parse("a@host")


@given(st.sampled_from(["a@host", "A@host", "a@HOST", "a@host.", "b@host", ""]))
def test_a_name_is_equal_to_its_own_text(text: str) -> None:
    """And to no other, so that what is equal has one hash, whichever of the two it is."""
    name = NodeName.parse("a@host")
    assert (name == text) is (text == name) is (str(name) == text)
    assert (text in {name: 1}) is (name in {text: 1}) is (name == text)
    assert name != b"a@host"
    assert copy.copy(name) == pickle.loads(pickle.dumps(name)) == name  # noqa: S301 -- our own
    assert repr(name) == "NodeName(name='a', host='host')"


def test_names_have_an_order() -> None:
    """By name, then by host."""
    assert sorted([NodeName("b", "a"), NodeName("a", "b")]) == [NodeName("a", "b"), NodeName("b", "a")]


def test_parsing_a_node_name_returns_it_as_it_is() -> None:
    """`NodeName.parse` takes what it gives."""
    name = NodeName.parse("a@host")
    assert NodeName.parse(name) is name


def test_a_node_name_is_frozen() -> None:
    """A node name cannot be changed after it was made."""
    name = NodeName.parse("a@host")
    with pytest.raises(dataclasses.FrozenInstanceError):
        name.host = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("name", "host"), [("a", "HOST"), ("a", "host."), ("a", "::1"), ("a", "bücher"), ("", "host")])
def test_the_constructor_refuses_what_is_not_canonical(name: str, host: str) -> None:
    """No node name in another than the canonical form exists, however it is made."""
    with pytest.raises(ValueError, match=r"is not canonical; use NodeName\.parse\(\)|node name part"):
        NodeName(name, host)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", ipaddress.IPv4Address("127.0.0.1")),
        ("[::1]", ipaddress.IPv6Address("::1")),
        ("host.example", None),
    ],
)
def test_an_address_is_told_from_a_name(
    host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> None:
    """A canonical host is an address or a DNS name, and sockets get an IPv6 address without its brackets."""
    assert host_address(host) == address
    assert unbracketed(host) == (host if address is None else str(address))


_LABELS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?", fullmatch=True)
_HOSTS = st.one_of(
    st.lists(_LABELS, min_size=1, max_size=5).map(".".join),
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    _LABELS.map("xn--{}".format),
    st.text(max_size=20),
)
_NAMES = st.one_of(st.text(string.ascii_letters + string.digits + "._~-", min_size=1, max_size=20), st.text(max_size=5))


@given(st.one_of(st.text(), st.builds("{}@{}{}".format, _NAMES, _HOSTS, st.sampled_from(["", "."]))))
@example("a@xn--99999999999999999999")
@example("a@xn--\u0661")
@example("a@\u0661.\u0661")
@example("a@\u200d")
@example("a@[v1.x]")
def test_any_text_gives_a_node_name_or_a_value_error(text: str) -> None:
    """Any text whatsoever parses, to a name of at most 255 bytes that parses back to itself, or is a ValueError."""
    try:
        name = NodeName.parse(text)
    except ValueError:
        return
    assert NodeName.parse(str(name)) == name
    assert str(NodeName.parse(str(name))) == str(name)
    assert str(name).isascii()
    assert len(str(name)) <= 255
    assert canonical_host(name.host) == name.host


@given(_HOSTS)
def test_the_canonical_form_of_a_host_is_its_own(text: str) -> None:
    """Making a host canonical twice is making it canonical once, and upper case makes no difference to ASCII."""
    try:
        host = canonical_host(text)
    except ValueError:
        return
    assert canonical_host(host) == host
    if text.isascii():
        assert canonical_host(text.upper()) == host


# What certificates offer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("san", "host", "covered"),
    [
        (b"host.example", "host.example", True),
        (b"HOST.Example", "host.example", True),
        (b"host.example.", "host.example", False),
        (b"localhost", "localhost", True),
        ("bücher.example".encode(), "xn--bcher-kva.example", False),
        ("ho\u017ft.example".encode(), "host.example", False),
        ("*.\uff45xample.org".encode(), "host.example.org", False),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example", True),
        (b"XN--BCHER-KVA.Example", "xn--bcher-kva.example", True),
        (b"host.example", "other.example", False),
        (b"host.example", "sub.host.example", False),
        (b"host.example", "example", False),
        (b"*.example.org", "host.example.org", True),
        (b"*.EXAMPLE.org", "host.example.org", True),
        (b"*.example.org.", "host.example.org", False),
        (b"*.example.org", "example.org", False),
        (b"*.example.org", "a.host.example.org", False),
        (b"f*.example.org", "foo.example.org", False),
        (b"*f.example.org", "elf.example.org", False),
        (b"host.*.org", "host.example.org", False),
        (b"*.*.org", "host.example.org", False),
        (b"*", "host", False),
        (b"*.", "host", False),
        (b"*.local", "host.local", False),
        (b"", "host", False),
        (b"host.example\0.evil.example", "host.example", False),
        (b" host.example", "host.example", False),
        (b"127.0.0.1", "127.0.0.1", False),
        (b"[::1]", "[::1]", False),
        (b"*.127.0.0.1", "127.0.0.1", False),
    ],
)
def test_a_dns_san_covers_what_rfc_9525_says(san: bytes, host: str, covered: bool) -> None:
    """A DNS SAN matches whole ASCII names, a wildcard the whole left-most label of three or more, and no address."""
    assert names_of((DNS, san)).cover_host(host) is covered


@pytest.mark.parametrize(
    ("packed", "host", "covered"),
    [
        (bytes([127, 0, 0, 1]), "127.0.0.1", True),
        (bytes([127, 0, 0, 1]), "127.0.0.2", False),
        (ipaddress.ip_address("::1").packed, "[::1]", True),
        (ipaddress.ip_address("2001:db8::1").packed, "[2001:db8::1]", True),
        (ipaddress.ip_address("2001:db8::1").packed, "[2001:db8::2]", False),
        (ipaddress.ip_address("::ffff:7f00:1").packed, "127.0.0.1", False),
        (bytes([10, 0, 0, 0, 255, 0, 0, 0]), "10.0.0.1", False),
        (bytes([127, 0, 0, 1]), "localhost", False),
    ],
)
def test_an_ip_san_covers_that_very_address(packed: bytes, host: str, covered: bool) -> None:
    """An IP SAN matches one address: no network, no name, no mapped twin."""
    assert names_of((IP, packed)).cover_host(host) is covered


@pytest.mark.parametrize(
    ("odd", "reported"),
    [
        ((URI, b"urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"), False),
        ((URI, b"https://h:8443/"), False),
        ((URI, b"spiffe://trust.example/workload"), False),
        ((URI, b""), False),
        ((DNS, b"*.local"), True),
        ((DNS, b"*"), True),
        ((DNS, b"f*.example.org"), True),
        ((DNS, b""), True),
        ((DNS, b"host.example\0.evil"), True),
        ((DNS, b"under_score.example"), False),
        ((DNS, "bücher.example".encode("latin-1")), True),
        ((IP, b"\x01\x02\x03"), True),
        ((0xA3, b""), False),
        ((0xA5, b"\xa1\x03\x0c\x01x"), False),
        ((0xA4, b"\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x13\x02\xfc\xff"), False),
        ((DNS, b"xn--a"), True),
        ((IP, bytes([10, 0, 0, 0, 255, 0, 0, 0])), True),
        ((0x81, b"someone@host.example"), False),
        ((0x88, b"\x2a\x03"), False),
        ((0xA4, b"\x30\x00"), False),
        ((0xA0, b"\x06\x02\x2a\x03\xa0\x02\x05\x00"), False),
    ],
)
def test_an_odd_sibling_costs_itself_and_nothing_else(odd: tuple[int, bytes], reported: bool) -> None:
    """One SAN that is no usable name leaves the good ones good, before and after it, and is reported if it tried."""
    for names in (names_of(odd, (DNS, b"good.example")), names_of((DNS, b"good.example"), odd)):
        assert names.cover_host("good.example")
        assert not names.restricted
        assert bool(names.unusable) is reported
        assert all(text.isprintable() for text in names.unusable)


def test_the_common_name_is_no_name() -> None:
    """A certificate without SANs offers no name, whatever its Common Name says."""
    names = SubjectNames.of(certificate(common_name="host.example"))
    assert names == SubjectNames(dns=(), addresses=(), nodes=frozenset(), restricted=False, unusable=())
    assert not names.cover_host("host.example")
    assert not names.cover_node(NodeName.parse("a@host.example"))


@pytest.mark.parametrize(
    "unreadable",
    [
        (0xFF, b"\x01"),
        (0x1F, b""),
    ],
)
def test_a_san_extension_that_cannot_be_parsed_offers_nothing(unreadable: tuple[int, bytes]) -> None:
    """Where the whole extension is unreadable the certificate has no name, and describing it still works."""
    broken = raw_certificate((DNS, b"host.example"), unreadable)
    assert not SubjectNames.of(broken).cover_host("host.example")
    assert "(the subject alternative names cannot be read:" in describe(broken)


def test_a_doubled_san_extension_offers_nothing() -> None:
    """A certificate with two SAN extensions is not read as either of them."""
    twice = patched(
        build(
            x509.SubjectAlternativeName([x509.DNSName("host.example")]),
            x509.UnrecognizedExtension(OTHER_OID, b"\x30\x00"),
        ),
        b"\x55\x1d\x63",
        b"\x55\x1d\x11",
    )
    assert not SubjectNames.of(twice).cover_host("host.example")


ALPHA = NodeName.parse("alpha@host.example")
BETA = NodeName.parse("beta@host.example")


def test_without_node_uris_a_certificate_speaks_for_every_node_of_its_host() -> None:
    """DNS SANs alone cover any node name on that host, and none elsewhere."""
    names = names_of((DNS, b"host.example"))
    assert names.cover_node(ALPHA)
    assert names.cover_node(BETA)
    assert not names.cover_node(NodeName.parse("alpha@other.example"))


@pytest.mark.parametrize("scheme", [b"trionode", b"TRIONODE", b"TrioNode"])
def test_a_node_uri_restricts_to_that_node(scheme: bytes) -> None:
    """A certificate with `trionode://` URI SANs speaks for those node names only; schemes know no case."""
    names = names_of((DNS, b"host.example"), (URI, scheme + b"://alpha@HOST.example"))
    assert names.restricted
    assert names.nodes == {ALPHA}
    assert names.cover_node(ALPHA)
    assert not names.cover_node(BETA)
    assert names.cover_host("host.example")


def test_several_node_uris_admit_each_of_them() -> None:
    """A certificate may be made for several nodes of one host."""
    names = names_of(
        (DNS, b"host.example"), (URI, b"trionode://alpha@host.example"), (URI, b"trionode://beta@host.example")
    )
    assert names.cover_node(ALPHA)
    assert names.cover_node(BETA)
    assert not names.cover_node(NodeName.parse("gamma@host.example"))


def test_a_node_uri_does_not_replace_the_host_san() -> None:
    """A node's URI SAN narrows: without a DNS or IP SAN for the host it covers nothing."""
    names = names_of((URI, b"trionode://alpha@host.example"))
    assert names.admit_node(ALPHA)
    assert not names.cover_node(ALPHA)


@pytest.mark.parametrize(
    "uri",
    [
        b"trionode://",
        b"trionode://alpha",
        b"trionode://alpha@host.example/",
        b"trionode://alpha@host.example:15000",
        b"trionode://a b@host.example",
        b"trionode://*@host.example",
        b"trionode://alpha%40host.example",
        b"trionode:alpha@host.example",
        b"trionode:/alpha@host.example",
        b"TRIONODE:",
        "trionode://älpha@host.example".encode(),
        "trionode://alpha@ho\u017ft.example".encode(),
    ],
)
def test_a_malformed_node_uri_fails_closed(uri: bytes) -> None:
    """A URI SAN of our scheme that spells no node name restricts to nobody instead of being overlooked."""
    names = names_of((DNS, b"host.example"), (URI, uri))
    assert names.restricted
    assert not names.cover_node(ALPHA)
    assert len(names.unusable) == 1


def test_a_malformed_node_uri_leaves_a_good_one_standing() -> None:
    """Beside a malformed node URI a good one still admits its node, and only that."""
    names = names_of((DNS, b"host.example"), (URI, b"trionode://"), (URI, b"trionode://alpha@host.example"))
    assert names.cover_node(ALPHA)
    assert not names.cover_node(BETA)


@pytest.mark.parametrize("uri", [b"trionodes://beta@host.example", b"https://trionode://x", b"x-trionode:y"])
def test_other_schemes_do_not_restrict(uri: bytes) -> None:
    """A URI SAN of another scheme says nothing about node names."""
    assert names_of((DNS, b"host.example"), (URI, uri)).cover_node(ALPHA)


def test_addresses_bind_nodes_as_names_do() -> None:
    """A node on an IP literal is covered by the IP SAN and its URI SAN."""
    names = names_of((IP, ipaddress.ip_address("::1").packed), (URI, b"trionode://alpha@[::1]"))
    assert names.cover_node(NodeName.parse("alpha@::1"))
    assert not names.cover_node(NodeName.parse("beta@::1"))


# Telling people about certificates ----------------------------------------------------------------------------------


def test_a_description_says_who_by_whom_and_when() -> None:
    """One line holds subject, SANs, issuer, dates and the beginning of the fingerprint."""
    leaf = certificate(
        x509.DNSName("host.example"),
        x509.IPAddress(ipaddress.ip_address("::1")),
        x509.UniformResourceIdentifier("trionode://a@b"),
        x509.RFC822Name("me@host.example"),
    )
    text = describe(leaf)
    for part in (
        "CN=leaf (",
        "DNS:host.example, IP:::1, URI:trionode://a@b, email:me@host.example",
        "issuer CN=leaf",
        "from 2026-01-02 03:04:05 to 2027-01-02 03:04:05 UTC",
        fingerprint(leaf)[:16],
    ):
        assert part in text
    assert describe_dates(leaf) in text
    assert len(fingerprint(leaf)) == 64
    assert fingerprint(leaf) == fingerprint(leaf).lower()


def test_a_hostile_certificate_cannot_forge_log_lines() -> None:
    """Control characters in a certificate's names are escaped and their length is bounded wherever they are shown."""
    evil = raw_certificate((DNS, b"a\r\nERROR: forged"), (URI, b"x" * 90), common_name="c\x1b[31m\nd")
    assert describe(evil).isprintable()
    many = certificate(*[x509.DNSName(f"host-{number}.example") for number in range(500)])
    assert len(describe_names(many)) <= 401
    assert describe_names(certificate()) == "no SANs"


def test_unreadable_and_empty_names_are_described_as_such() -> None:
    """A subject that cannot be decoded is shown with replacement characters; an empty one is said to be so."""
    unreadable = patched(certificate(common_name="xxxxxxxx"), b"xxxxxxxx", b"x\xff" * 4)
    assert describe(unreadable).startswith("CN=x\ufffdx\ufffdx\ufffdx\ufffd (no SANs; issuer CN=x\ufffdx")
    nobody = build(common_name=None)
    assert describe(nobody).startswith("(empty subject) (no SANs; issuer (empty issuer);")


def test_a_pool_is_described_by_its_first_few_subjects() -> None:
    """A long list of subjects is cut, and says how many more there are."""
    pool = [certificate(common_name=f"ca-{number}") for number in range(6)]
    assert describe_subjects(pool[:1]) == "CN=ca-0"
    assert describe_subjects(pool[:4]) == "CN=ca-0, CN=ca-1, CN=ca-2, CN=ca-3"
    assert describe_subjects(pool) == "CN=ca-0, CN=ca-1, CN=ca-2, CN=ca-3 and 2 more"


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("", ""),
        ("zwölf", "zwölf"),
        ("a\r\nb\tc\x1b[0m", r"a\r\nb\tc\x1b[0m"),
        ("a\0b", r"a\x00b"),
        ("\u202eevil", r"\u202eevil"),
        ("\ud800", r"\ud800"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 300 + "…"),
    ],
)
def test_printable_escapes_and_cuts(text: str, shown: str) -> None:
    """Peer-supplied text comes out printable, and cut at 300 characters."""
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())), st.integers(min_value=1, max_value=50))
def test_printable_is_always_printable_and_bounded(text: str, limit: int) -> None:
    """Whatever comes in, what comes out is printable and no longer than its limit, escapes included."""
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit + 1


ADDRESS = ("192.0.2.1", 15000)


def test_every_error_has_one_base() -> None:
    """Whatever trionode raises of its own is a `TrionodeError`, and each is listed for export."""
    errors = {
        name
        for name, value in vars(_errors).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == _errors.__name__
    }
    assert errors <= set(_errors.__all__)
    assert all(issubclass(getattr(_errors, name), TrionodeError) for name in errors)
    assert all(hasattr(_errors, name) for name in _errors.__all__)


@pytest.mark.parametrize(
    ("derived", "base"),
    [
        (ListenError, OSError),
        (NoRouteError, LookupError),
        (PeerUnverifiedError, HandshakeError),
        (PeerRejectedError, HandshakeError),
        (HandshakeTimeoutError, HandshakeError),
        (LocalProtocolError, ProtocolError),
        (RemoteProtocolError, ProtocolError),
    ],
)
def test_errors_can_be_caught_by_their_family(derived: type[Exception], base: type[Exception]) -> None:
    """An error is also what the standard library, or its family here, calls it."""
    assert issubclass(derived, base)
    assert issubclass(derived, TrionodeError)


@pytest.mark.parametrize("kind", [FixedAtStartupError, NetworkDisabledError, Refused, LocalProtocolError])
def test_errors_without_data_say_their_sentence(kind: type[TrionodeError]) -> None:
    """The text of an error is the sentence it was given."""
    assert str(kind("restart the node")) == "restart the node"


def test_certificate_error_carries_its_reason() -> None:
    """A `CertificateError` says why, in words and as a member that equals its plain string."""
    error = CertificateError("no key in there", reason=CertificateReason.NO_KEY)
    assert str(error) == "no key in there"
    assert error.reason is CertificateReason.NO_KEY
    assert f"{error.reason}" == "no_key"


def test_listen_error_carries_addresses_and_speaks_in_sentences() -> None:
    """A `ListenError` says where it tried to listen, and its text is not an errno's."""
    error = ListenError("cannot listen", address=ADDRESS, tried=[ADDRESS, ("::1", 1)])
    assert str(error) == "cannot listen"
    assert error.address == ADDRESS
    assert error.tried == (ADDRESS, ("::1", 1))
    assert ListenError("x", address=ADDRESS).tried == ()


def test_no_route_error_carries_name_and_causes() -> None:
    """A `NoRouteError` says for which name, and every attempt's error."""
    causes = ExceptionGroup("attempts", [OSError("refused")])
    error = NoRouteError("no route", name=ALPHA, causes=causes)
    assert error.name == ALPHA
    assert error.causes is causes
    assert NoRouteError("no route", name=ALPHA).causes is None
    assert str(error) == "no route"


@pytest.mark.parametrize("kind", [HandshakeError, HandshakeTimeoutError])
def test_handshake_errors_say_how_far_it_came(kind: type[HandshakeError]) -> None:
    """A handshake error carries stage, reason, address and generation."""
    error = kind("too late", stage=Stage.TLS, reason="timeout", address=ADDRESS, generation=3)
    assert (error.stage, error.reason, error.address, error.generation) == ("tls", "timeout", ADDRESS, 3)
    assert str(error) == "too late"
    bare = kind("too late", stage=Stage.CONNECT, reason="timeout")
    assert (bare.address, bare.generation) == (None, None)


def test_peer_unverified_error_says_what_was_wanted_and_offered() -> None:
    """A refusal of ours carries the certificate, what we wanted and what it offered."""
    leaf = certificate(x509.DNSName("b.example"))
    error = PeerUnverifiedError(
        "wrong name",
        stage=Stage.TLS,
        reason=UnverifiedReason.NAME_MISMATCH,
        certificate=leaf,
        wanted="a.example",
        offered="DNS:b.example",
    )
    assert error.reason is UnverifiedReason.NAME_MISMATCH
    assert (error.certificate, error.wanted, error.offered) == (leaf, "a.example", "DNS:b.example")
    bare = PeerUnverifiedError("none", stage=Stage.TLS, reason=UnverifiedReason.NO_CERTIFICATE)
    assert (bare.certificate, bare.wanted, bare.offered) == (None, None, None)


def test_peer_rejected_error_says_what_we_presented() -> None:
    """A refusal of theirs carries their code, as the reason too, and the certificate that we offered."""
    leaf = certificate()
    error = PeerRejectedError("they said no", stage=Stage.TLS, code=RejectionCode.UNKNOWN_CA, presented=leaf)
    assert error.code is RejectionCode.UNKNOWN_CA
    assert error.reason == "unknown_ca"
    assert error.presented is leaf


def test_codes_from_the_wire_that_we_do_not_know_become_other() -> None:
    """A code of a later release is `OTHER`, never an error."""
    assert RejectionCode.of("unknown_ca") is RejectionCode.UNKNOWN_CA
    assert RejectionCode.of("invented_tomorrow") is RejectionCode.OTHER
    assert RemoteCode.of("failed") is RemoteCode.FAILED
    assert RemoteCode.of("invented_tomorrow") is RemoteCode.OTHER


@pytest.mark.parametrize("code", list(RemoteCode))
def test_remote_error_explains_every_code(code: RemoteCode) -> None:
    """Every code of a remote failure comes with a sentence, and the peer's own words after it."""
    assert str(RemoteError(code=code)).startswith(f"{code}: ")
    assert len(str(RemoteError(code=code))) > len(code) + 15
    error = RemoteError("disk\nfull", code=code)
    assert error.code is code
    assert error.raw_code == code
    assert error.message == r"disk\nfull"
    assert str(error).endswith(r" (disk\nfull)")


def test_a_code_of_the_applications_own_is_kept() -> None:
    """As the peer sent it, escaped; its type says that it is none of ours."""
    error = RemoteError("no such order", code="not\nfound")
    assert (error.code, error.raw_code) == (r"not\nfound", r"not\nfound")
    assert type(error.code) is ApplicationCode
    assert str(error) == r"not\nfound: the service gave this reason (no such order)"
    assert str(RemoteError(code="gone")) == "gone: the service gave this reason"


def test_reasons_and_codes_of_the_design_exist() -> None:
    """The members that the contract names are there, under their contract strings."""
    reasons = (
        "unreadable no_certificate no_key bad_password key_mismatch chain_order expired not_yet_valid wrong_eku "
        "no_client_cas"
    )
    assert set(reasons.split()) <= set(CertificateReason)
    unverified = (
        "unknown_ca no_certificate expired not_yet_valid wrong_eku revoked name_mismatch claimed_name bad_chain "
        "not_authorized cookie version name_in_use"
    )
    assert set(unverified.split()) <= set(UnverifiedReason)
    rejections = (
        "certificate_required unknown_ca certificate_expired bad_certificate claimed_name not_authorized cookie "
        "version name_in_use shutting_down internal_error"
    )
    assert set(rejections.split()) <= set(RejectionCode)
    remote = "unknown_service failed cancelled no_reply limit shutting_down"
    assert set(remote.split()) <= set(RemoteCode)
    assert set(Stage) == {"resolve", "connect", "tls", "hello"}
