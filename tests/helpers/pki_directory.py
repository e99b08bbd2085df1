"""CAs with a memory, and what tests ask of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trionode.pki import RequestRefusal, RequestRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Killed(BaseException):
    """The program ends here."""


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the journal has."""
    return [json.loads(line) for line in (folder / "pki/journal.jsonl").read_text().splitlines()]


def refused(reason: RequestRefusal, call: Callable[..., object], *args: object, **more: object) -> str:
    """Insist that it is, for this reason; the text."""
    with pytest.raises(RequestRefusedError) as caught:
        call(*args, **more)
    assert caught.value.reason is reason
    return str(caught.value)
