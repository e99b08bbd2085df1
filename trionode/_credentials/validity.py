"""How long what a manager presents and trusts is good for: dates as plain values, for whoever shows or watches them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, final

from trionode._identity.describe import describe_subject

from .crl import crl_issuer, next_update

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from .key_pair import KeyPair
    from .policy import TLSPolicy

__all__ = ["CredentialRole", "Validity"]


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
    """From when until when one certificate or revocation list is good.

    Attributes:
        role: what it is to the manager.
        subject: whose it is (RFC 4514), cut and escaped; of a list, its issuer.
        not_before: aware, UTC; of a list, its thisUpdate.
        not_after: aware, UTC; of a list, its nextUpdate.
    """

    role: CredentialRole
    subject: str
    not_before: datetime
    not_after: datetime


def validities(key_pair: KeyPair, policy: TLSPolicy) -> Iterator[Validity]:
    """The key pair's chain, the pools that were given (the system's CAs are somebody else's to renew), and the lists.

    Of several lists of one issuer those that count.
    """
    chain = key_pair.chain
    for role, certificates in (
        (CredentialRole.LEAF, chain[:1]),
        (CredentialRole.INTERMEDIATE, chain[1:]),
        (CredentialRole.CLIENT_CA, policy.client_cas or ()),
        (CredentialRole.ROOT_CA, policy.root_cas or ()),
    ):
        for certificate in certificates:
            yield Validity(
                role=role,
                subject=describe_subject(certificate),
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
            )
    for crl in () if policy.crls is None else policy.crls.counting():
        yield Validity(
            role=CredentialRole.CRL,
            subject=crl_issuer(crl),
            not_before=crl.last_update_utc,
            not_after=next_update(crl),
        )
