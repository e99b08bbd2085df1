"""Decoding what others have made, without a word from the libraries that do it.

Theory. `cryptography` warns of what it will not take some day: serial numbers that are not positive, explicit curve
parameters. On stderr, once, without a word of whose certificate it is, such a warning helps no operator; under
`python -W error` it is an exception where none is expected, which a peer would choose the moment of. What is worth
telling of a certificate is a finding of ours. So everything that decodes does it in here.

The filters of `warnings` belong to the process, and are put back as they were: one thread at a time, or the later of
two would put back what the other had set.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock: Final = RLock()


@contextmanager
def quietly() -> Iterator[None]:
    """Drop the warnings of libraries for the length of a block; without a checkpoint in it."""
    with _lock, warnings.catch_warnings(action="ignore"):
        yield
