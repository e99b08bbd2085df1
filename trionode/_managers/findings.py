"""What a finding is: one thing that is, or soon will be, wrong with a key pair or with what is trusted, and a remedy.

`check` finds what is wrong with a key pair, `check_trust` with pools and revocation lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import final

__all__ = ["Finding", "FindingCode", "Severity"]


@final
class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Peers with our own configuration would refuse the key pair."""
    WARNING = "warning"
    """Some peers may refuse it, now or soon; or it is untidy."""


@final
class FindingCode(StrEnum):
    """What a finding is about."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    JUST_VALID = "just_valid"
    EXPIRES_SOON = "expires_soon"
    OUTLIVES_CA = "outlives_ca"
    WRONG_EKU = "wrong_eku"
    KEY_USAGE = "key_usage"
    WEAK = "weak"
    UNREADABLE_CA = "unreadable_ca"
    NO_NAMES = "no_names"
    UNUSABLE_NAME = "unusable_name"
    NAME_MISMATCH = "name_mismatch"
    SUPERFLUOUS_ROOT = "superfluous_root"
    UNKNOWN_CA = "unknown_ca"
    BAD_CHAIN = "bad_chain"
    REVOKED = "revoked"
    REVOCATION_UNKNOWN = "revocation_unknown"
    HANDSHAKE = "handshake"
    INCOMPLETE_CHAIN = "incomplete_chain"
    UNUSED_CRL = "unused_crl"
    CA_LIST_NOT_SENT = "ca_list_not_sent"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a key pair, or with what is trusted beside it.

    Attributes:
        code: what it is about.
        severity: how bad it is.
        message: what was found, as a sentence without its full stop.
        remedy: what to do about it, likewise.
    """

    code: FindingCode
    severity: Severity
    message: str
    remedy: str

    def __str__(self) -> str:
        """Message and remedy."""
        return f"{self.message}. {self.remedy}"


def error(code: FindingCode, message: str, remedy: str) -> Finding:
    """A finding that is an error."""
    return Finding(code=code, severity=Severity.ERROR, message=message, remedy=remedy)


def warning(code: FindingCode, message: str, remedy: str) -> Finding:
    """A finding that is a warning."""
    return Finding(code=code, severity=Severity.WARNING, message=message, remedy=remedy)
