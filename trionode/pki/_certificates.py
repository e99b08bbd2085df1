"""Making certificates: what a leaf is to say, CA certificates, keys, subjects, and moments without fractions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from trionode._credentials.issuing import authority_key_identifier, ca_builder, general_name, signing_hash
from trionode._identity.names import URI_SCHEME, NodeName, canonical_host, host_address
from trionode._util.fields import check_argument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionode._credentials.pem import PrivateKey
    from trionode._credentials.policy import Clock

#: RFC 5280 appendix A.1, ub-common-name: longer ones make a certificate that strict parsers refuse.
MAX_COMMON_NAME_BYTES: Final = 64

#: RFC 5280 section 4.1.2.5: stands for "no well-defined expiration date", and is the last one that can be encoded.
_END_OF_TIME: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@final
class KeyType(StrEnum):
    """The kind of key that a leaf is issued for."""

    P256 = "p256"
    """ECDSA on P-256: small, fast, supported by every peer. The default."""
    P384 = "p384"
    """ECDSA on P-384."""
    ED25519 = "ed25519"
    """Ed25519 (RFC 8410)."""
    RSA2048 = "rsa2048"
    """RSA with 2048 bits; slow to make (a fraction of a second) and slow to sign with."""


@final
class Wanted:
    """What a leaf is to say: subject, names and purposes."""

    def __init__(
        self,
        names: tuple[str | NodeName, ...],
        extended_key_usage: Iterable[x509.ObjectIdentifier] | None,
        common_name: str | None,
    ) -> None:
        self.hosts, nodes = sort_names(names)
        self.purposes = None if extended_key_usage is None else x509.ExtendedKeyUsage(extended_key_usage)
        if self.purposes is not None and not len(self.purposes):
            msg = "extended_key_usage is empty; name a purpose, or give None for a certificate without restriction"
            raise ValueError(msg)
        first = str(nodes[0] if "@" in str(names[0]) else self.hosts[0])
        if host_address(first) is not None:
            # OpenSSL holds an IPv4 address there against name constraints for DNS names, if there is no DNS SAN.
            first = f"address {first}"
        self.subject = subject_name(first if common_name is None else common_name)
        uris = [x509.UniformResourceIdentifier(f"{URI_SCHEME}://{node}") for node in nodes]
        self.sans = x509.SubjectAlternativeName([*map(general_name, self.hosts), *uris])


def revoked_entry(serial: int, when: datetime, reason: x509.ReasonFlags) -> x509.RevokedCertificate:
    """An entry of a revocation list."""
    entry = x509.RevokedCertificateBuilder(serial, when)
    if reason is not x509.ReasonFlags.unspecified:  # which RFC 5280 wants left out
        entry = entry.add_extension(x509.CRLReason(reason), critical=False)
    return entry.build()


# Making certificates ------------------------------------------------------------------------------------------------


def ca_certificate(
    unit: str,
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    validity: tuple[datetime, datetime],
    *,
    path_length: int,
    signed_by: tuple[x509.Certificate, PrivateKey] | None = None,
    constraints: x509.NameConstraints | None = None,
) -> x509.Certificate:
    subject = subject_name(common_name, unit)
    issuer: x509.Certificate | None
    issuer_key: PrivateKey
    issuer, issuer_key = (None, key) if signed_by is None else signed_by
    issuer_name = subject if issuer is None else issuer.subject
    builder = ca_builder(subject, issuer_name, key.public_key(), validity, path_length=path_length)
    if issuer is not None:
        builder = builder.add_extension(authority_key_identifier(issuer), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return builder.sign(issuer_key, signing_hash(issuer_key))


GENERATE: Final[dict[KeyType, Callable[[], PrivateKey]]] = {
    KeyType.P256: lambda: ec.generate_private_key(ec.SECP256R1()),
    KeyType.P384: lambda: ec.generate_private_key(ec.SECP384R1()),
    KeyType.ED25519: ed25519.Ed25519PrivateKey.generate,
    KeyType.RSA2048: lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


def key_digits(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[:4].hex()


def subject_name(common_name: str, unit: str | None = None) -> x509.Name:
    check_argument("common_name", common_name, str)
    if not common_name:
        msg = "common_name must have at least one character"
        raise ValueError(msg)
    cut = common_name.encode()[:MAX_COMMON_NAME_BYTES].decode(errors="ignore")
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, cut)]
    if unit is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name(attributes)


def sort_names(names: tuple[str | NodeName, ...]) -> tuple[list[str], list[NodeName]]:
    """The hosts and the node names that a leaf is to speak for, canonical, each once."""
    if not names:
        msg = "a certificate needs at least one name: a node name (alpha@host), a host name or an address"
        raise ValueError(msg)
    hosts: dict[str, None] = {}
    nodes: dict[NodeName, None] = {}
    for name in names:
        check_argument("a certificate's name", name, str | NodeName)
        if isinstance(name, NodeName) or "@" in name:
            node = NodeName.parse(name)
            nodes[node] = hosts[node.host] = None
        else:
            hosts[canonical_host(name)] = None
    return list(hosts), list(nodes)


# Time ---------------------------------------------------------------------------------------------------------------
# Certificates know no fractions of a second.


def now_of(clock: Clock | None) -> datetime:
    check_argument("clock", clock, Callable[[], datetime] | None)
    return (datetime.now(UTC) if clock is None else clock().astimezone(UTC)).replace(microsecond=0)


def aware(moment: datetime, label: str) -> datetime:
    check_argument(label, moment, datetime)
    if moment.tzinfo is None:
        msg = f"{label} has no time zone; give an aware datetime, for example datetime.now(UTC)"
        raise ValueError(msg)
    return moment.astimezone(UTC).replace(microsecond=0)


def end_of(start: datetime, lifetime: timedelta) -> datetime:
    check_argument("lifetime", lifetime, timedelta)
    if lifetime <= timedelta(0):
        msg = f"a lifetime is positive, not {lifetime}"
        raise ValueError(msg)
    try:
        return start + lifetime
    except OverflowError:
        return _END_OF_TIME
