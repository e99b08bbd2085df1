"""What goes wrong when a certificate is asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import final

from trionode._errors import TrionodeError

__all__ = ["EnrolmentError", "EnrolmentReason"]


@final
class EnrolmentReason(StrEnum):
    """Why there is no new certificate."""

    UNREACHABLE = "unreachable"
    """The CA did not answer, or has no time now."""
    UNTRUSTED = "untrusted"
    """The server is not the CA that the join token, the pool or the present trust names."""
    REFUSED = "refused"
    """The CA does not issue what was asked for."""
    BAD_ANSWER = "bad_answer"
    """The CA's answer is not what the protocol says, or not for us."""
    NO_CREDENTIALS = "no_credentials"
    """There is neither a token nor a certificate that is still valid to ask with."""


@final
class EnrolmentError(TrionodeError):
    """A certificate could not be had from a CA; what is in use stays.

    Attributes:
        reason: why, see `EnrolmentReason`.
        retry_after: in how many seconds the CA wants to be asked again, if it said so.
    """

    def __init__(self, message: str, *, reason: EnrolmentReason, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
