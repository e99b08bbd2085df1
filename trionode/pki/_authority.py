"""A certificate authority for development and tests: one object that issues every key pair that a cluster needs.

Theory. `CertificateAuthority` is an immutable value: a root certificate, which goes into the `CAPool` of every node,
and the *issuer*, certificate and private key, which signs leaves. Without an intermediate the issuer is the root
itself. With one, the root signs the intermediate once and its private key is then forgotten: neither memory nor disk
holds more than issuing takes, and every issued chain contains the intermediate.

What it issues is meant to be accepted by strict peers (OpenSSL with X509_STRICT, Go, Python 3.13's default context):
version 3, key identifiers on both ends, critical basic constraints and key usage, path lengths as tight as they go,
names in the SANs and never in the Common Name alone.

A certificate for a node name has the name twice: its host as a DNS or IP SAN, which TLS peers match, and the whole as a
URI SAN `trionode://name@host`, which restricts the certificate to that node.

It keeps no record of what it issued or revoked; `PKIDirectory` does.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import CRLSet
from trionode._credentials.issuing import (
    BACKDATE,
    BOTH_PURPOSES,
    authority_key_identifier,
    leaf_builder,
    signing_hash,
)
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.pem import as_path, private_key_to_pem, to_pem
from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import extension, fingerprint, is_ca
from trionode._identity.describe import (
    describe,
    describe_dates,
    describe_subject,
    describe_time,
)
from trionode._util.fields import check_argument, check_each, show
from trionode._util.immutable import HoldsPrivateKey

from ._certificates import GENERATE, KeyType, Wanted, aware, ca_certificate, end_of, key_digits, now_of, revoked_entry
from ._constraints import ANY_NAME, PRIVATE_NAMES, name_constraints, refuse_outside
from ._files import PRIVATE, PUBLIC, replace_files
from ._requests import checked_key, refuse_more_than

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from trionode._credentials.pem import FilePath, PrivateKey
    from trionode._credentials.policy import Clock
    from trionode._identity.names import NodeName

__all__ = ["CertificateAuthority", "KeyType"]

CA_FILE: Final = "ca.pem"
INTERMEDIATE_FILE: Final = "intermediate.pem"
CA_KEY_FILE: Final = "ca.key"


@final
class CertificateAuthority(HoldsPrivateKey):
    """A certificate authority for development: issues key pairs for nodes and hosts. Immutable.

    Make one with `create`, or read one with `load`. Its private key stays out of every `repr`; it cannot be pickled.

    Attributes:
        certificate: the root.
        intermediate: the certificate that issues in the root's place, or None where the root issues itself.
        pool: the root as a `CAPool`, for every program that trusts this CA.
    """

    __slots__ = ("_clock", "_issuer", "_key", "certificate", "intermediate", "pool")

    certificate: x509.Certificate
    intermediate: x509.Certificate | None
    pool: CAPool
    _issuer: x509.Certificate
    _key: PrivateKey
    _clock: Clock | None

    def __init__(
        self,
        certificate: x509.Certificate,
        private_key: PrivateKey,
        *,
        intermediate: x509.Certificate | None = None,
        clock: Clock | None = None,
    ) -> None:
        """A CA from `cryptography` objects; `create` and `load` call this.

        Args:
            certificate: the root.
            private_key: the key that signs: the intermediate's, if there is one, else the root's.
            intermediate: a CA certificate signed by the root.
            clock: source of "now" (aware) for what is issued; by default the machine's clock.

        Raises:
            CertificateError: reason `no_certificate` where one of them is no CA certificate, `key_mismatch`,
                `chain_order` or `unsupported_key`.
        """
        for candidate in (certificate, intermediate):
            if candidate is not None and not is_ca(candidate):
                msg = (
                    f"this is not a CA certificate, its basic constraints do not say so: {describe(candidate)}. Give "
                    "the certificate of the CA, not one that it issued"
                )
                raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        # A key pair checks what a CA needs, too: the key belongs to the first certificate, each is signed by the next.
        issuer = KeyPair([certificate] if intermediate is None else [intermediate, certificate], private_key)
        object.__setattr__(self, "certificate", certificate)
        object.__setattr__(self, "intermediate", intermediate)
        object.__setattr__(self, "pool", CAPool([certificate]))
        object.__setattr__(self, "_issuer", issuer.certificate)
        object.__setattr__(self, "_key", issuer.private_key)
        object.__setattr__(self, "_clock", clock)

    @classmethod
    def create(
        cls,
        *,
        common_name: str = "trionode development CA",
        lifetime: timedelta = timedelta(days=3650),
        intermediate: bool = False,
        subordinates: bool = False,
        clock: Clock | None = None,
    ) -> Self:
        """A fresh CA with ECDSA P-256 keys, valid from five minutes ago.

        Every CA gets a subject of its own: the common name, and a few digits of its key in the organizational unit,
        so that messages tell two CAs of one name apart.

        Args:
            common_name: of the subject; cut to 64 bytes of UTF-8, the limit of RFC 5280.
            lifetime: how long the CA is valid, from now on. By default ten years (3650 days).
            intermediate: whether an intermediate is to issue in the root's place, for any name. The root's private key
                is then forgotten at once: nothing else can ever be signed with it.
            subordinates: whether the root is to be one that signs intermediates, by `subordinate`, and is kept.
            clock: source of "now" (aware), here and for what is issued; by default the machine's clock.

        Raises:
            ValueError: `lifetime` is not positive, or `common_name` is empty or cannot be encoded.
        """
        check_argument("common_name", common_name, str)
        check_argument("intermediate", intermediate, bool)
        check_argument("subordinates", subordinates, bool)
        now = now_of(clock)
        validity = now - BACKDATE, end_of(now, lifetime)
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = ca_certificate(
            f"root {key_digits(root_key)}",
            common_name,
            root_key,
            validity,
            path_length=1 if intermediate or subordinates else 0,
        )
        made = cls(root, root_key, clock=clock)
        if not intermediate:
            return made
        return made.subordinate(common_name=common_name, lifetime=lifetime, permitted=[ANY_NAME])

    def subordinate(
        self,
        *,
        common_name: str = "trionode development CA",
        lifetime: timedelta = timedelta(days=3650),
        permitted: Iterable[str] = PRIVATE_NAMES,
    ) -> Self:
        """A CA that issues through a new intermediate, signed by this root, whose key it does without.

        So the root's key may be taken offline: it is needed again for the next intermediate only.

        Args:
            common_name: of the intermediate's subject, see `create`.
            lifetime: how long the intermediate is valid, from now on, at most as long as the root.
            permitted: the hosts, addresses and networks that the intermediate may issue for, with all hosts below these
                (name constraints, RFC 5280 section 4.2.1.10). `"*"` alone is for everything: who has the key can then
                pose as any server to those who trust this root.

        Raises:
            ValueError: this CA issues through an intermediate itself, or may have none; or an argument is not valid.
        """
        basic = extension(self.certificate, x509.BasicConstraints)
        if self.intermediate is not None or basic is None or basic.path_length == 0:
            msg = "only a root that may have CAs below it signs one: CertificateAuthority.create(subordinates=True)"
            raise ValueError(msg)
        now = now_of(self._clock)
        validity = now - BACKDATE, min(end_of(now, lifetime), self.certificate.not_valid_after_utc)
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = ca_certificate(
            f"issuing {key_digits(key)}",
            common_name,
            key,
            validity,
            path_length=0,
            signed_by=(self.certificate, self._key),
            constraints=name_constraints(permitted),
        )
        return type(self)(self.certificate, key, intermediate=issuer, clock=self._clock)

    @classmethod
    def load(cls, directory: FilePath, *, password: str | bytes | None = None, clock: Clock | None = None) -> Self:
        """Read a CA that `save` wrote; blocks while it reads its two or three small files.

        It may be a CA that another tool made: `ca.pem` holds the root alone, `ca.key` the key that signs, and
        `intermediate.pem`, if that key is an intermediate's, the intermediate alone.

        Args:
            directory: where the files are.
            password: of `ca.key`, if it is encrypted.
            clock: source of "now" (aware) for what is issued; by default the machine's clock.

        Raises:
            CertificateError: a file is missing, unreadable or damaged, or they do not fit together; `reason` says how.
        """
        folder = as_path(directory)
        root_file, intermediate_file, key_file = (folder / n for n in (CA_FILE, INTERMEDIATE_FILE, CA_KEY_FILE))
        root = _only(CAPool.load(root_file).certificates, root_file)
        # `lexists`: a link that leads nowhere is a damaged CA, not one without an intermediate.
        has_intermediate = os.path.lexists(intermediate_file)
        issuer = KeyPair.load(intermediate_file if has_intermediate else root_file, key_file, password=password)
        intermediate = _only(issuer.chain, intermediate_file) if has_intermediate else None
        return cls(root, issuer.private_key, intermediate=intermediate, clock=clock)

    def issue(
        self,
        *names: str | NodeName,
        lifetime: timedelta = timedelta(days=90),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        extended_key_usage: Iterable[x509.ObjectIdentifier] | None = BOTH_PURPOSES,
        key_type: KeyType | str = KeyType.P256,
        common_name: str | None = None,
    ) -> KeyPair:
        """Make a private key and sign a certificate for it; the chain holds the intermediate, if there is one.

        A leaf never outlives its issuer: an end after the issuer's is moved to the issuer's.

        Args:
            names: at least one. A node name (`alpha@host`, as text or `NodeName`) gives a DNS or IP SAN of its host and
                the URI SAN `trionode://alpha@host`, which restricts the certificate to the node names so given. A plain
                host name or address gives only its DNS or IP SAN.
            lifetime: how long the leaf is valid: from `not_before` if that is given, else from now on. By default 90
                days. Has no effect where `not_after` is given.
            not_before: the start of its validity, aware. By default five minutes ago, for peers whose clock is behind.
            not_after: the end of its validity, aware.
            extended_key_usage: the purposes; by default serverAuth and clientAuth, as a node is both. None leaves the
                extension out, which allows every purpose.
            key_type: the kind of key, see `KeyType`.
            common_name: of the subject, for people; by default the first name (`address …` of an address). Cut to 64
                bytes of UTF-8. Peers never match it.

        Raises:
            CertificateError: the issuer's own validity ends before the leaf's would begin (reason `expired`).
            ValueError: there is no name, or one is neither a node name nor a host; the validity is empty or a date is
                naive; the purposes are an empty sequence; the key type is unknown; the common name is empty.
        """
        key = GENERATE[_key_type(key_type)]()
        validity = self._validity(lifetime, not_before, not_after)
        leaf = self._leaf(key.public_key(), Wanted(names, extended_key_usage, common_name), validity)
        return KeyPair([leaf, *self._intermediates], key)

    def sign(
        self,
        request: x509.CertificateSigningRequest,
        *names: str | NodeName,
        lifetime: timedelta = timedelta(days=90),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        extended_key_usage: Iterable[x509.ObjectIdentifier] | None = BOTH_PURPOSES,
        common_name: str | None = None,
        serial_number: int | None = None,
    ) -> tuple[x509.Certificate, ...]:
        """Sign a certificate for the public key of a request (PKCS#10), whose sender has to have the private key.

        Nothing else is taken from the request: names, purposes and dates are those that are given here. A request that
        asks for another name, or to be a CA, is refused; other wishes have no effect.

        Args:
            request: signed by its own key, which has to be one for TLS 1.3: ECDSA on P-256, P-384 or P-521, Ed25519,
                Ed448, or RSA with 2048 to 8192 bits.
            names: see `issue`.
            lifetime: see `issue`.
            not_before: see `issue`.
            not_after: see `issue`.
            extended_key_usage: see `issue`.
            common_name: see `issue`.
            serial_number: of the certificate, positive, at most 159 bits; by default a random one.

        Returns:
            The certificate, and the intermediate after it, if there is one.

        Raises:
            CertificateError: see `issue`.
            ValueError: the request is not to be signed, or an argument is not valid; the text says why.
        """
        check_argument("request", request, x509.CertificateSigningRequest)
        key = checked_key(request)
        wanted = Wanted(names, extended_key_usage, common_name)
        refuse_more_than(request, wanted.sans)
        validity = self._validity(lifetime, not_before, not_after)
        return self._leaf(key, wanted, validity, serial_number), *self._intermediates

    @property
    def issuer(self) -> x509.Certificate:
        """The certificate whose key signs: the intermediate's, if there is one, else the root's."""
        return self._issuer

    @property
    def _intermediates(self) -> tuple[x509.Certificate, ...]:
        return () if self.intermediate is None else (self.intermediate,)

    def _leaf(
        self,
        key: CertificatePublicKeyTypes,
        wanted: Wanted,
        validity: tuple[datetime, datetime],
        serial_number: int | None = None,
    ) -> x509.Certificate:
        refuse_outside(wanted.hosts, self._issuer)
        builder = leaf_builder(
            wanted.subject,
            self._issuer.subject,
            key,
            validity,
            names=wanted.sans,
            purposes=wanted.purposes,
            serial_number=serial_number,
        ).add_extension(authority_key_identifier(self._issuer), critical=False)
        return builder.sign(self._key, signing_hash(self._key))

    def revocation_list(
        self,
        *revoked: KeyPair | x509.Certificate,
        lifetime: timedelta = timedelta(days=7),
        reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
        previous: CRLSet | None = None,
        released: Iterable[KeyPair | x509.Certificate] = (),
    ) -> CRLSet:
        """Sign a list of certificates that are to be refused from now on (RFC 5280 section 5).

        This CA keeps no record: a list has what is given and what is on the previous list, if that is given, and
        nothing else. One that issues through an intermediate signs with that; the root's key is gone, so managers then
        need `CRLPolicy(leaf_only=True)`.

        Args:
            revoked: certificates that this CA has issued; none gives an empty list, which refuses no peer.
            lifetime: until a new list is due, from now on; managers refuse this CA's peers after that.
            reason: why (RFC 5280 section 5.3.1).
            previous: the list that this one replaces; what this CA revoked there stays revoked, since then and for the
                reason given there.
            released: what was revoked by mistake, and is taken off. Verifiers that have the previous list go on
                refusing it until they read this one.

        Raises:
            ValueError: the lifetime is not positive, or the CA is to revoke its own certificate: verifiers that check
                the whole path would refuse everything that it issued, and others would not notice.
        """
        check_argument("previous", previous, CRLSet | None)
        check_argument("reason", reason, x509.ReasonFlags)
        released = check_each("released", released, KeyPair, x509.Certificate)
        check_each("revoked", revoked, KeyPair, x509.Certificate)
        now = now_of(self._clock)
        lists = [crl for crl in previous or () if crl.issuer == self._issuer.subject]
        entries = {entry.serial_number: entry for crl in lists for entry in crl}
        for each in revoked:
            certificate = _certificate_of(each)
            if fingerprint(certificate) in (fingerprint(self.certificate), fingerprint(self._issuer)):
                msg = f"a CA does not revoke itself: {describe(certificate)}. Take it out of every CA pool instead"
                raise ValueError(msg)
            entries.setdefault(certificate.serial_number, revoked_entry(certificate.serial_number, now, reason))
        for each in released:
            entries.pop(_certificate_of(each).serial_number, None)
        return self._sign_list(entries.values(), lifetime)

    def _sign_list(self, entries: Iterable[x509.RevokedCertificate], lifetime: timedelta) -> CRLSet:
        now = now_of(self._clock)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._issuer.subject)
            .last_update(now - BACKDATE)
            .next_update(end_of(now, lifetime))
            .add_extension(authority_key_identifier(self._issuer), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        return CRLSet([builder.sign(self._key, signing_hash(self._key))])

    def save(self, directory: FilePath, *, password: str | bytes | None = None) -> None:
        """Write the CA into a directory: `ca.pem`, `ca.key` and, if it has one, `intermediate.pem`.

        `ca.key` is the key that signs (the intermediate's, if there is one), PKCS#8, readable for the owner only.
        A CA that was there is replaced, each file atomically, and its stale `intermediate.pem` removed.

        Args:
            directory: made with mode 0700, parents included, if it is missing.
            password: to encrypt `ca.key` with; by default it is not encrypted.

        Raises:
            OSError: a file cannot be written.
            ValueError: the password is empty.
        """
        folder = as_path(directory)
        key = private_key_to_pem(self._key, password)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = [(folder / CA_KEY_FILE, key, PRIVATE)]
        if self.intermediate is not None:
            files.append((folder / INTERMEDIATE_FILE, to_pem([self.intermediate]), PUBLIC))
        files.append((folder / CA_FILE, to_pem([self.certificate]), PUBLIC))
        replace_files(files)
        if self.intermediate is None:
            (folder / INTERMEDIATE_FILE).unlink(missing_ok=True)

    def save_key(self, file: FilePath, *, password: str | bytes | None = None) -> None:
        """Write the key that signs, PKCS#8, readable for the owner only: a root's, to be taken offline.

        Args:
            file: replaced atomically.
            password: to encrypt it with; by default it is not encrypted.

        Raises:
            OSError: the file cannot be written.
            ValueError: the password is empty.
        """
        replace_files([(as_path(file), private_key_to_pem(self._key, password), PRIVATE)])

    def _validity(
        self, lifetime: timedelta, not_before: datetime | None, not_after: datetime | None
    ) -> tuple[datetime, datetime]:
        now = now_of(self._clock)
        start = now - BACKDATE if not_before is None else aware(not_before, "not_before")
        if not_after is None:
            not_after = end_of(now if not_before is None else start, lifetime)
        end = min(aware(not_after, "not_after"), self._issuer.not_valid_after_utc)
        if start >= self._issuer.not_valid_after_utc:
            msg = (
                f"the CA's own validity ends before the certificate's would begin ({describe_time(start)}): "
                f"{describe(self._issuer)}. Make a new CA, and add it to your CA pools before you issue from it"
            )
            raise CertificateError(msg, reason=CertificateReason.EXPIRED)
        if end <= start:
            msg = f"the certificate would end at {end:%Y-%m-%d %H:%M:%S}, but begin only at {describe_time(start)}"
            raise ValueError(msg)
        return start, end

    def __repr__(self) -> str:
        through = "" if self.intermediate is None else f", issuing through {describe_subject(self.intermediate)}"
        return (
            f"<CertificateAuthority {describe_subject(self.certificate)} (valid {describe_dates(self.certificate)}; "
            f"SHA-256 {fingerprint(self.certificate)[:16]}…){through}>"
        )


def _certificate_of(given: KeyPair | x509.Certificate) -> x509.Certificate:
    return given.certificate if isinstance(given, KeyPair) else given


# Reading ------------------------------------------------------------------------------------------------------------


def _only(certificates: tuple[x509.Certificate, ...], file: Path) -> x509.Certificate:
    certificate, *others = certificates
    if others:
        msg = f"{file} holds {len(certificates)} certificates; a CA's own certificate has to be alone in it"
        raise CertificateError(msg, reason=CertificateReason.CHAIN_ORDER)
    return certificate


def _key_type(given: KeyType | str) -> KeyType:
    try:
        return KeyType(given)
    except ValueError:
        msg = f"key_type must be one of {', '.join(KeyType)}, not {show(given)}"
        raise ValueError(msg) from None
