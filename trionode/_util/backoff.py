"""Exponential back-off with jitter: how long to wait before another attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Waits are doubled this often at most, so that no number of failures overflows.
_MAX_DOUBLINGS: Final = 20


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """The waits between attempts.

    After the first failure in a row the wait is `first` at most, after each further one twice as long, never more than
    `longest`. Of that a share is drawn at random, so that clients that failed together do not try again together: from
    nothing (full jitter) where attempts may follow each other at once, from `least` where they must not.

    Where what fails is over by itself after a while, a wait may also grow with the time that it has lasted: then what
    has been tried again in vain is never later by more than that share of the outage.

    Attributes:
        first: the longest wait after one failure, seconds.
        longest: after any number of them, seconds.
        least: the smallest share that is drawn, 0 to 1.
        of_outage: the wait is at most this share of the outage so far, where that is more.
    """

    first: float
    longest: float
    least: float = 0
    of_outage: float = 0

    def wait(self, failures: int, draw: Callable[[], float] = random.random, *, outage: float = 0) -> float:
        """Seconds to wait.

        Args:
            failures: in a row; 0 counts as 1.
            draw: a number from 0 to 1.
            outage: how long it has lasted, seconds.
        """
        doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
        most = max(self.first * 2.0**doublings, self.of_outage * outage)
        return min(self.longest, most) * (self.least + draw() * (1 - self.least))
