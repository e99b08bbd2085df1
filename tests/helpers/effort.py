"""How much tests that search do: examples of properties, seeds of simulations.

A run while one works takes a share; with `TRIONODE_TESTS=thorough` in the environment, all of it.
"""

from __future__ import annotations

import os
from typing import Final

THOROUGH: Final = os.environ.get("TRIONODE_TESTS") == "thorough"

#: One in so many is tried in a run that is to be quick.
_SHARE: Final = 4


def effort(thorough: int) -> int:
    """How many to try.

    Args:
        thorough: how many it takes to be sure.
    """
    return thorough if THOROUGH else max(1, thorough // _SHARE)
