"""Faults of one connection of a `MemoryNetwork`, set beforehand, to the byte."""

from __future__ import annotations

import math
from collections.abc import Collection  # noqa: TC003 -- dataclass fields are resolved at run time
from dataclasses import dataclass, field
from typing import Final, final

from trionode._util.fields import DURATION, Checked, Items, Number, integer, rule

__all__ = ["Faults", "Script"]


_RATE: Final = Number(float, math.nextafter(0, 1), math.inf, "a positive number of bytes per second")
_OFFSET: Final = integer(0, 2**63 - 1, "bytes")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Faults(Checked):
    """What goes wrong in one direction of one connection; by default nothing.

    Offsets count the bytes that are sent in this direction, from 0. Of the three ways to end, the one that is reached
    first happens; at offset 0, as soon as the connection is made.

    Attributes:
        delay: seconds that bytes take, in addition to the latency between the hosts.
        rate: bytes per second that get through: a slow line, or a peer that reads slowly. The sender waits once the
            connection's buffer is full.
        corrupt: offsets of bytes that arrive with all bits flipped.
        reset_after: so many bytes arrive, then both ends get a reset (RST), as from a peer or a middlebox that has lost
            its state.
        eof_after: so many bytes arrive, then the receiver gets a clean end (FIN). What follows is lost without notice
            to the sender, as an attacker in between can make it.
        stall_after: so many bytes arrive and nothing more, not even an end: a half-open connection. The sender goes on
            until the connection's buffer is full.
    """

    delay: float = field(default=0.0, metadata=rule(DURATION))
    rate: float = field(default=math.inf, metadata=rule(_RATE))
    corrupt: Collection[int] = field(default=(), metadata=rule(Items(_OFFSET)))
    reset_after: int | None = field(default=None, metadata=rule(_OFFSET))
    eof_after: int | None = field(default=None, metadata=rule(_OFFSET))
    stall_after: int | None = field(default=None, metadata=rule(_OFFSET))

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError, TypeError: a number makes no sense; the message names it.
        """
        Checked.__post_init__(self)  # not super(): of a class with slots that is the class before it had them
        object.__setattr__(self, "corrupt", frozenset(self.corrupt))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Script(Checked):
    """The faults of one connection, in both directions.

    Attributes:
        there: of what its dialer sends.
        back: of what its acceptor sends.
    """

    there: Faults = Faults()
    back: Faults = Faults()
