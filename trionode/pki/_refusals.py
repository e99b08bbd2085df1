"""Why a CA does not issue what it was asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import final

from trionode._errors import TrionodeError


@final
class RequestRefusal(StrEnum):
    """Why a CA does not issue what was asked for."""

    BAD_REQUEST = "bad_request"
    """The certificate signing request is none, its key is weak, or it asks for what it does not get."""
    BAD_TOKEN = "bad_token"  # noqa: S105 -- a reason, not a token
    """The token is unknown, was taken, has expired, or is another CA's."""
    NOT_ALLOWED = "not_allowed"
    """The name is not one that the token, the certificate or the policy allows."""
    REVOKED = "revoked"
    """The certificate that is to be renewed was revoked."""
    UNKNOWN = "unknown"
    """The certificate that is to be renewed is none that this CA has issued and that has not ended."""
    DENIED = "denied"
    """The name or the certificate is on the list of those that get none."""


@final
class RequestRefusedError(TrionodeError):
    """A CA does not issue what was asked for.

    Attributes:
        reason: why, see `RequestRefusal`.
    """

    def __init__(self, message: str, *, reason: RequestRefusal) -> None:
        super().__init__(message)
        self.reason = reason
