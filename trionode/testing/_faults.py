"""What may go wrong with one connection of a `MemoryNetwork`, written down beforehand, to the byte."""

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

    Offsets count the bytes that are sent in this direction, from 0. Of the three ways to end, the first that is reached
    happens, with 0 as soon as the connection is there.

    Attributes:
        delay: seconds on the way, on top of the link's latency.
        rate: bytes per second that get through: a thin line, or a peer that reads slowly. The sender is held up once
            the connection's buffer is full.
        corrupt: offsets of bytes that arrive with all bits flipped.
        reset_after: so many bytes arrive, then both ends see a reset (RST): a peer or a middlebox that lost its memory.
        eof_after: so many bytes arrive, then the receiver sees a clean end (FIN). What follows is lost, and the sender
            is not told: what somebody in between can do at any time.
        stall_after: so many bytes arrive and nothing more, no end either, and nobody is told: a half-open connection.
            The sender goes on until the connection's buffer is full.
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
    """What goes wrong with one connection.

    Attributes:
        there: with what its dialler sends.
        back: with what its acceptor sends.
    """

    there: Faults = Faults()
    back: Faults = Faults()
