"""Codes that peers send: trionode's own, which are enumerations, and those of applications, which are not."""

from __future__ import annotations

from enum import StrEnum
from typing import Self, final

from .text import printable


class FrameworkCode(str):
    """A code as trionode at the other end has sent it, of this release or another."""

    __slots__ = ()


@final
class ApplicationCode(str):
    """A code of the application's own vocabulary: what a service gives as `RemoteError(…, code="not_found")`.

    It is a string, and equal to plain strings of the same text: `error.code == "not_found"`. But it is never equal to a
    `RemoteCode`, whatever its text: a service that calls its own error "not_taken" does not say what trionode says by
    `RemoteCode.NOT_TAKEN`. Only "failed" is the same in both vocabularies, and always `RemoteCode.FAILED`.

    It hashes as its text does; so in a set or a mapping, too, it is apart from the `RemoteCode` of that text.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return not isinstance(other, PeersCode) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __repr__(self) -> str:
        return f"ApplicationCode({str.__repr__(self)})"


class PeersCode(StrEnum):
    """Codes of trionode's own that peers send; has a member `OTHER`."""

    @classmethod
    def of(cls, code: str) -> Self:
        """The member for a code from the wire; `OTHER` for one that this release does not know.

        Args:
            code: what the peer said.
        """
        try:
            return cls(code)
        except ValueError:
            return cls("other")

    def __eq__(self, other: object) -> bool:
        return not isinstance(other, ApplicationCode) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)


def application_code(given: object) -> ApplicationCode:
    """What an application gives as a code, control characters escaped."""
    return ApplicationCode(printable(str.__str__(given) if isinstance(given, str) else str(given)))
