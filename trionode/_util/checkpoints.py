"""Async context managers are checkpoints, on entry and on exit, as Trio's own are."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def at_both_ends() -> AsyncIterator[None]:
    """A checkpoint before the block and one after it; after one that failed, of scheduling alone."""
    await trio.lowlevel.checkpoint()
    try:
        yield
    except BaseException:
        await trio.lowlevel.cancel_shielded_checkpoint()
        raise
    await trio.lowlevel.checkpoint()
