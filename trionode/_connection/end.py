"""How a connection ends: for which reason, and what follows from each.

Theory. A connection ends once, for one reason; the first stands. From the reason follows everything else, by the one
table below: what its channels raise from then on, whether what was accepted for sending is still written, and whether
the peer is told. There are three cases.

*This program closed it* (`CLOSED`, `SHUTTING_DOWN`): channels raise `trio.ClosedResourceError`.

*This side ended it, though the program did not close it* (`REPLACED`, `LIMIT`, `SUPERSEDED`, `EXPIRED`, `WORN`,
`UNVERIFIED`, `PROTOCOL_ERROR`): channels raise `trio.BrokenResourceError`, whose text says why. The peer is told. What
was accepted for sending is written first, except after a protocol error: the peer has lost count by then.

*The peer or the network ended it* (`CLOSED_BY_PEER`, `LOST`): channels raise `trio.BrokenResourceError`; nothing more
is written, since the peer does not read.

An end that this program did not ask for is *forced*: no task of the program's waits for it, so how long it takes is
bounded, whatever the peer does (`FORCED_GRACE`). Where trust in the peer has ended (`UNVERIFIED`, `EXPIRED`) nothing
runs for it any more, not even what it had handed over cleanly before (`Channels.withdraw`), and all that it is told
concerns itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trionode._errors import PeerUnverifiedError
from trionode._identity.describe import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionode._identity.names import NodeName

__all__ = ["ConnectionEnd", "EndReason"]


class EndReason(StrEnum):
    """Why a connection ended."""

    CLOSED = "closed"
    """This program closed it."""
    CLOSED_BY_PEER = "closed_by_peer"
    """The peer said goodbye; its reason is in the error's text."""
    REPLACED = "replaced"
    """A newer connection to the same node took its place."""
    SHUTTING_DOWN = "shutting_down"
    """The node was left or drained, or the connection was."""
    LIMIT = "limit"
    """There are too many connections of unverified peers (`max_unverified`)."""
    SUPERSEDED = "superseded"
    """A certificate was rotated, and the node closes connections that were made with the old one."""
    EXPIRED = "expired"
    """A certificate that it was authenticated with ended."""
    WORN = "worn"
    """Its TLS keys had protected as much as they may, and it could not be handed over."""
    UNVERIFIED = "unverified"
    """The peer's certificate was revoked, or its CA is not trusted any more."""
    LOST = "lost"
    """The network or the peer failed, or the peer gave no sign of life."""
    PROTOCOL_ERROR = "protocol_error"
    """The peer broke the protocol."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionEnd:
    """How a connection ended.

    Attributes:
        reason: see `EndReason`.
        error: what happened, where something did; None after a close by this program.
    """

    reason: EndReason
    error: Exception | None = None


class _Consequences(NamedTuple):
    """What follows from a reason.

    Attributes:
        flush: whether what was accepted for sending is still written.
        goodbye: whether the peer is told.
        text: what channels say, where nothing that happened says more.
        forced: whether the time that it takes is bounded, whatever the peer does.
    """

    flush: bool
    goodbye: bool
    text: str = ""
    forced: bool = True


_CONSEQUENCES: Final[Mapping[EndReason, _Consequences]] = {
    EndReason.CLOSED: _Consequences(flush=True, goodbye=True, forced=False),
    EndReason.SHUTTING_DOWN: _Consequences(flush=True, goodbye=True, forced=False),
    EndReason.REPLACED: _Consequences(
        flush=True, goodbye=True, text="a newer connection to the same node took its place"
    ),
    EndReason.LIMIT: _Consequences(
        flush=True, goodbye=True, text="too many connections of unverified peers (max_unverified)"
    ),
    EndReason.SUPERSEDED: _Consequences(
        flush=True,
        goodbye=True,
        text="a certificate was rotated, and this connection was made with the old one; connect again",
    ),
    EndReason.WORN: _Consequences(
        flush=True,
        goodbye=True,
        text="its TLS keys have protected as much as they may, and it could not be handed over; connect again",
    ),
    EndReason.EXPIRED: _Consequences(
        flush=True,
        goodbye=True,
        text="a certificate that it was authenticated with has ended; rotate it, and connect again",
    ),
    EndReason.UNVERIFIED: _Consequences(flush=True, goodbye=True),
    EndReason.PROTOCOL_ERROR: _Consequences(flush=False, goodbye=True),
    EndReason.CLOSED_BY_PEER: _Consequences(flush=False, goodbye=False),
    EndReason.LOST: _Consequences(flush=False, goodbye=False),
}


def end_of(peer: NodeName, reason: EndReason, error: Exception | None) -> ConnectionEnd:
    """The end of a connection to a peer.

    Args:
        peer: the peer's name.
        reason: why it ends.
        error: what happened; without one, channels break with the reason's text if it has one.
    """
    text = _CONSEQUENCES[reason].text
    if error is None and text:
        error = trio.BrokenResourceError(f"the connection to {peer} ended: {text}")
    return ConnectionEnd(reason=reason, error=error)


def flushes(reason: EndReason) -> bool:
    """Whether what was accepted for sending is still written."""
    return _CONSEQUENCES[reason].flush


def says_goodbye(reason: EndReason) -> bool:
    """Whether the peer is told of the end."""
    return _CONSEQUENCES[reason].goodbye


def is_forced(reason: EndReason) -> bool:
    """Whether the time that it takes is bounded, whatever the peer does."""
    return _CONSEQUENCES[reason].forced


def words_for_peer(end: ConnectionEnd) -> str:
    """What the peer is told, besides the reason.

    What we trust, and what our operator should do about it, is none of its business: a peer that is not trusted is told
    of its own certificate, and of nothing else.
    """
    error = end.error
    if isinstance(error, PeerUnverifiedError):
        own = "" if error.certificate is None else f": {describe(error.certificate)}"
        return f"your certificate is not trusted any more, {error.reason.value}{own}"
    return "" if error is None else str(error)
