"""What may go wrong with one connection of a `MemoryNetwork`, written down beforehand, to the byte."""

from __future__ import annotations

import math
from collections.abc import Collection  # noqa: TC003 -- dataclass fields are resolved at run time
from dataclasses import dataclass, field
from typing import final

__all__ = ["Faults", "Script"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
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

    delay: float = 0.0
    rate: float = math.inf
    corrupt: Collection[int] = field(default=())
    reset_after: int | None = None
    eof_after: int | None = None
    stall_after: int | None = None

    def __post_init__(self) -> None:
        """Check and freeze.

        Raises:
            ValueError: a number makes no sense; the message names it.
        """
        object.__setattr__(self, "corrupt", frozenset(self.corrupt))
        if not 0 <= self.delay < math.inf:
            msg = f"delay must be a finite number of seconds from 0 up, not {self.delay!r}"
            raise ValueError(msg)
        if not self.rate > 0:
            msg = f"rate must be a positive number of bytes per second, not {self.rate!r}"
            raise ValueError(msg)
        offsets = {"reset_after": self.reset_after, "eof_after": self.eof_after, "stall_after": self.stall_after}
        offsets.update((f"corrupt (of which one is {offset})", offset) for offset in self.corrupt)
        for name, offset in offsets.items():
            if offset is not None and offset < 0:
                msg = f"{name} counts bytes from 0, and cannot be negative"
                raise ValueError(msg)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """What goes wrong with one connection.

    Attributes:
        there: with what its dialler sends.
        back: with what its acceptor sends.
    """

    there: Faults = Faults()
    back: Faults = Faults()
