"""How long what a manager presents and trusts is good for; also as plain values, to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, final

from cryptography import x509

from trionode._identity.certificate import fingerprint, not_after, not_before
from trionode._identity.describe import describe_issuer, describe_subject

from .revocation import counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from .ca_pool import CAPool
    from .crl import CRLSet
    from .key_pair import KeyPair
    from .policy import TLSPolicy

__all__ = ["CredentialRole", "Validity"]

Ending: TypeAlias = x509.Certificate | x509.CertificateRevocationList


class CredentialRole(StrEnum):
    """What a certificate or list is to the manager that has it."""

    LEAF = "leaf"
    INTERMEDIATE = "intermediate"
    CLIENT_CA = "client_ca"
    ROOT_CA = "root_ca"
    CRL = "crl"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """The validity period of a certificate or revocation list.

    Attributes:
        role: what it is to the manager.
        subject: the certificate's subject, or the list's issuer (RFC 4514), cut and escaped.
        not_before: aware, UTC; of a list, its thisUpdate.
        not_after: aware, UTC; of a list, its nextUpdate.
    """

    role: CredentialRole
    subject: str
    not_before: datetime
    not_after: datetime


@final
@dataclass(frozen=True, slots=True)
class Dated:
    """A certificate or revocation list of a manager, and from when until when it is good.

    Attributes:
        role: what it is to the manager.
        what: the certificate or list.
        not_before: aware, UTC; of a list, its thisUpdate.
        not_after: aware, UTC; of a list, its nextUpdate.
        digest: SHA-256 of its encoding, by which it is known again.
    """

    role: CredentialRole
    what: Ending
    not_before: datetime
    not_after: datetime
    digest: bytes


def dated(
    key_pair: KeyPair, *, client_cas: CAPool | None, root_cas: CAPool | None, crls: CRLSet | None
) -> Iterator[Dated]:
    """Everything of a manager that ends: the key pair's chain, the pools that were given, the lists.

    Not the system's CAs, which the system's vendor renews; of several lists of one issuer those that count.
    """
    chain = key_pair.chain
    for role, certificates in (
        (CredentialRole.LEAF, chain[:1]),
        (CredentialRole.INTERMEDIATE, chain[1:]),
        (CredentialRole.CLIENT_CA, client_cas or ()),
        (CredentialRole.ROOT_CA, root_cas or ()),
    ):
        for certificate in certificates:
            digest = bytes.fromhex(fingerprint(certificate))
            yield Dated(role, certificate, not_before(certificate), not_after(certificate), digest)
    for each in () if crls is None else counting(crls):
        yield Dated(CredentialRole.CRL, each.crl, each.this_update, each.next_update, each.digest)


def validities(key_pair: KeyPair, policy: TLSPolicy) -> Iterator[Validity]:
    """The same as plain values, for a key pair under a policy."""
    for each in dated(key_pair, client_cas=policy.client_cas, root_cas=policy.root_cas, crls=policy.crls):
        yield Validity(
            role=each.role,
            subject=describe_subject(each.what)
            if isinstance(each.what, x509.Certificate)
            else describe_issuer(each.what),
            not_before=each.not_before,
            not_after=each.not_after,
        )
