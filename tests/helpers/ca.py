"""CAs in memory that issue whatever they are told to, right or wrong: for what certificates and lists may look like."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trionode import CAPool, CRLSet, KeyPair

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trionode._credentials.pem import PrivateKey

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_usage(*allowed: str) -> x509.KeyUsage:
    """A key usage that allows these and nothing else."""
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in allowed for name in every})


def named(text: str) -> x509.Name:
    """A distinguished name of a common name alone; empty for an empty text."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    """Sign by the hash that goes with a key."""
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else SHA256)


SHA256 = hashes.SHA256()


class TestCA:
    """A CA, root or intermediate, and how it issues. Dates are relative to now.

    Attributes:
        key: signs.
        certificate: its own.
        above: what is to be sent along with its leaves: itself and the intermediates above it.
    """

    __test__ = False

    def __init__(
        self,
        name: str = "root",
        *,
        below: TestCA | None = None,
        key: PrivateKey | None = None,
        start: timedelta = -30 * DAY,
        end: timedelta = 365 * DAY,
        key_ids: bool = True,
        basic: x509.BasicConstraints | None = x509.BasicConstraints(ca=True, path_length=None),  # noqa: B008 -- a value
        usage: x509.KeyUsage | None = key_usage("key_cert_sign", "crl_sign"),  # noqa: B008 -- likewise
        extensions: Iterable[x509.ExtensionType] = (),
        serial: int | None = None,
    ) -> None:
        self.name, self.below, self.key_ids = name, below, key_ids
        self.key: PrivateKey = key or new_key()
        issuer = below or self
        every: list[x509.ExtensionType] = [each for each in (basic, usage) if each is not None]
        if key_ids:
            every.append(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()))
        self.certificate = issuer.sign(name, self.key, [*every, *extensions], start=start, end=end, serial=serial)
        self.above: tuple[x509.Certificate, ...] = () if below is None else (self.certificate, *below.above)

    @property
    def pool(self) -> CAPool:
        """Its own certificate, to trust."""
        return CAPool([self.certificate])

    def sign(
        self,
        subject: str,
        key: PrivateKey,
        extensions: Iterable[x509.ExtensionType],
        *,
        start: timedelta,
        end: timedelta,
        serial: int | None = None,
    ) -> x509.Certificate:
        """Issue anything at all, with an authority key identifier if the CA has identifiers."""
        now = datetime.now(UTC).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number() if serial is None else serial)
            .not_valid_before(now + start)
            .not_valid_after(now + end)
        )
        every = [*extensions]
        if self.key_ids:
            every.append(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()))
        for each in every:
            critical = isinstance(each, x509.BasicConstraints | x509.KeyUsage | x509.NameConstraints)
            builder = builder.add_extension(each, critical=critical)
        return sign(builder, self.key)

    def leaf(
        self,
        *hosts: str,
        subject: str = "leaf",
        key: PrivateKey | None = None,
        purposes: Sequence[x509.ObjectIdentifier] | None = BOTH,
        usage: x509.KeyUsage | None = None,
        extensions: Iterable[x509.ExtensionType] = (),
        start: timedelta = -DAY,
        end: timedelta = 30 * DAY,
        serial: int | None = None,
    ) -> KeyPair:
        """A key pair for hosts and addresses (`localhost`), with what is to be sent along."""
        key = key or new_key()
        every: list[x509.ExtensionType] = [alternative_names(*hosts or ("localhost",)), *extensions]
        if purposes is not None:
            every.append(x509.ExtendedKeyUsage(purposes))
        if usage is not None:
            every.append(usage)
        return KeyPair([self.sign(subject, key, every, start=start, end=end, serial=serial), *self.above], key)

    def crl(
        self,
        *revoked: KeyPair | x509.Certificate | int,
        start: timedelta = -HOUR,
        end: timedelta = DAY,
        number: int | None = None,
        point: x509.IssuingDistributionPoint | None = None,
        extensions: Iterable[x509.ExtensionType] = (),
        key: PrivateKey | None = None,
        reason: x509.ReasonFlags | None = None,
    ) -> x509.CertificateRevocationList:
        """A list; extensions are critical."""
        now = datetime.now(UTC).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(named(self.name))
            .last_update(now + start)
            .next_update(now + end)
        )
        for each in revoked:
            certificate = each.certificate if isinstance(each, KeyPair) else each
            serial = certificate if isinstance(certificate, int) else certificate.serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now + start)
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), critical=False)
            builder = builder.add_revoked_certificate(entry.build())
        if number is not None:
            builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        if self.key_ids:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        for extension in (*extensions, *(() if point is None else (point,))):
            builder = builder.add_extension(extension, critical=True)
        signer = key or self.key
        own_hash = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
        return builder.sign(signer, None if own_hash else SHA256)


def alternative_names(*hosts: str) -> x509.SubjectAlternativeName:
    """Hosts and addresses as subject alternative names."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def point(
    *urls: str,
    ca_only: bool = False,
    user_only: bool = False,
    full_name: Sequence[x509.GeneralName] | None = None,
    relative_name: x509.RelativeDistinguishedName | None = None,
) -> x509.IssuingDistributionPoint:
    """For which certificates a list is."""
    names = [x509.UniformResourceIdentifier(url) for url in urls] or full_name
    return x509.IssuingDistributionPoint(
        full_name=names,
        relative_name=relative_name,
        only_contains_user_certs=user_only,
        only_contains_ca_certs=ca_only,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


def distribution_point(*urls: str) -> x509.CRLDistributionPoints:
    """Where a certificate says that its issuer's list is."""
    names = [x509.UniformResourceIdentifier(url) for url in urls]
    return x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)])


def lists(*crls: x509.CertificateRevocationList) -> CRLSet:
    """A set of lists."""
    return CRLSet(crls)
