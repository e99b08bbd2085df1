"""Expiry: warnings in good time that a certificate of ours, or a revocation list, is about to end.

A certificate that is not renewed is an outage with a date. Each certificate that a manager presents or trusts, and each
revocation list that it uses, is reported when a third of its lifetime is left, when a tenth is left, in its last hour
(the last twentieth, if that is less), and when it has ended: once each, however many rotations happen in between.
Automatic issuers usually have renewed it before a third is left.
"""

from __future__ import annotations

import time
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import trio

from trionode._credentials.validity import dated

from .manager import publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from trionode._credentials.validity import Dated, Ending

    from .manager import CertManager

#: The clock is read again after a tenth of the time that is left to the next stage (clocks are set, machines sleep,
#: tests have their own), but not more often than this. Seconds.
LOOK_AT_CLOCK: Final = 60.0
#: Nor less often than this. Seconds.
LOOK_AT_LEAST: Final = 3600.0
#: The same where Trio's clock is not the machine's: in tests. Seconds.
LOOK_AT_LEAST_VIRTUALLY: Final = 12 * 3600.0

_LAST_HOUR: Final = timedelta(hours=1)


class _Stage(IntEnum):
    FINE = 0
    LAST_THIRD = 1
    LAST_TENTH = 2
    LAST_HOUR = 3
    ENDED = 4


def _starts(start: datetime, end: datetime) -> Iterator[tuple[datetime, _Stage]]:
    """When each stage of a lifetime begins, in order."""
    lifetime = end - start
    yield end - lifetime / 3, _Stage.LAST_THIRD
    yield end - lifetime / 10, _Stage.LAST_TENTH
    yield end - min(_LAST_HOUR, lifetime / 20), _Stage.LAST_HOUR
    yield end, _Stage.ENDED


def _endings(manager: CertManager) -> dict[bytes, Dated]:
    """What has an end, by its digest: a CA may be in both pools."""
    found = dated(manager.key_pair, client_cas=manager.client_cas, root_cas=manager.root_cas, crls=manager.crls)
    return {each.digest: each for each in found}


async def watch_expiry(manager: CertManager, report: Callable[[Ending, timedelta], None]) -> None:
    """Report certificates and lists of a manager that are about to end, until cancelled.

    Args:
        manager: what it presents, and the pools and lists that it was given; not the system's CAs.
        report: called with a certificate or list and the time that it has left, negative once it has ended.
    """
    reported: dict[bytes, _Stage] = {}
    endings: dict[bytes, Dated] = {}
    looked_at, at_least = 0, LOOK_AT_LEAST
    while True:
        now, generation = publisher_of(manager).now(), manager.generation
        left = 10 * at_least
        present: dict[bytes, _Stage] = {}
        if generation != looked_at:
            looked_at, endings = generation, _endings(manager)
        for key, each in endings.items():
            stage = _Stage.FINE
            for begins, later in _starts(each.not_before, each.not_after):
                if begins <= now:
                    stage = later
                else:
                    left = min(left, (begins - now) / timedelta(seconds=1))
                    break
            present[key] = max(stage, reported.get(key, _Stage.FINE))
            if stage > reported.get(key, _Stage.FINE):
                report(each.what, each.not_after - now)
        reported = present
        began, began_really = trio.current_time(), time.monotonic()
        with trio.move_on_after(min(left, max(left / 10, LOOK_AT_CLOCK))):
            await manager.wait_generation(generation + 1)
        # Under a mock clock, months pass in an instant: there no machine sleeps meanwhile.
        is_virtual = time.monotonic() - began_really < (trio.current_time() - began) / 2
        at_least = LOOK_AT_LEAST_VIRTUALLY if is_virtual else LOOK_AT_LEAST
