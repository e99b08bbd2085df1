"""Which Trio run a cert manager belongs to.

Theory. While a manager is in use, or a task waits for one of its conditions, it belongs to the Trio run of those:
everything that changes it must happen there, since what it wakes is Trio's. Otherwise any thread may change it, and the
lock is for that case. It is never held across a checkpoint.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


@final
class Ownership:
    """The claims of tasks on one manager, and the lock of those who change it."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._owner: trio.lowlevel.TrioToken | None = None
        self._claims = 0

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Claim the manager for this Trio run for the length of a `with` block.

        Raises:
            RuntimeError: it belongs to another Trio run, or there is no Trio run here.
        """
        token = trio.lowlevel.current_trio_token()
        with self._lock:
            if self._owner not in (None, token):
                msg = "this cert manager is in use by another Trio run; give each concurrent run a manager of its own"
                raise RuntimeError(msg)
            self._owner = token
            self._claims += 1
        try:
            yield
        finally:
            with self._lock:
                self._claims -= 1
                if not self._claims:
                    self._owner = None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock for the length of a `with` block without checkpoints, where the manager may be changed.

        Raises:
            RuntimeError: the manager belongs to a Trio run, and this is not its thread.
        """
        with self._lock:
            self._check_thread()
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for the length of a `with` block without checkpoints, in any thread."""
        with self._lock:
            yield

    def _check_thread(self) -> None:
        if self._owner is None:
            return
        try:
            here = trio.lowlevel.current_trio_token()
        except RuntimeError:
            here = None
        if here is not self._owner:
            msg = (
                "this cert manager is in use by a Trio run in another thread; update it from there, or with "
                "trio.from_thread.run_sync(manager.update, key_pair, trio_token=token)"
            )
            raise RuntimeError(msg)
