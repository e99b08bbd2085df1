"""Expiry: say in time that a certificate of ours, or a revocation list, comes to its end.

What nobody renews is an outage with a date. Each certificate that a manager presents or trusts, and each revocation
list that it goes by, is reported when a third of its lifetime is left, when a tenth is, in its last hour (of short-
lived ones, the last twentieth), and when it has ended: once each, whatever the number of rotations in between. By then
somebody or something should have rotated it; at a third, automatic issuers usually have.
"""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from trionode._identity.certificate import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from .manager import CertManager

Ending: TypeAlias = x509.Certificate | x509.CertificateRevocationList

#: The clock is looked at again after a tenth of the time that is left to the next stage, but not more often than this:
#: clocks are set, machines sleep, tests drive theirs. Seconds.
LOOK_AT_CLOCK: Final = 60.0
#: And not less often than this. Seconds.
LOOK_AT_LEAST: Final = 3600.0

_LAST_HOUR: Final = timedelta(hours=1)


class _Stage(IntEnum):
    FINE = 0
    LAST_THIRD = 1
    LAST_TENTH = 2
    LAST_HOUR = 3
    ENDED = 4


def _starts(start: datetime, end: datetime) -> Iterator[tuple[datetime, _Stage]]:
    """When each stage of a life begins, in order."""
    lifetime = end - start
    yield end - lifetime / 3, _Stage.LAST_THIRD
    yield end - lifetime / 10, _Stage.LAST_TENTH
    yield end - min(_LAST_HOUR, lifetime / 20), _Stage.LAST_HOUR
    yield end, _Stage.ENDED


async def watch_expiry(manager: CertManager, report: Callable[[Ending, timedelta], None]) -> None:
    """Report what a manager has as it comes to its end, until cancelled.

    Args:
        manager: what it presents, and the pools that it was given; the system's CAs are somebody else's to renew.
        report: called with a certificate or list and the time that it has left, negative once it has ended.
    """
    reported: dict[str, _Stage] = {}
    while True:
        now, generation = manager.now(), manager.generation
        left = 10 * LOOK_AT_LEAST
        present: dict[str, _Stage] = {}
        for key, ending, start, end in _endings(manager):
            stage = _Stage.FINE
            for begins, each in _starts(start, end):
                if begins <= now:
                    stage = each
                else:
                    left = min(left, (begins - now) / timedelta(seconds=1))
                    break
            present[key] = max(stage, reported.get(key, _Stage.FINE))
            if stage > reported.get(key, _Stage.FINE):
                report(ending, end - now)
        reported = present
        with trio.move_on_after(min(left, max(left / 10, LOOK_AT_CLOCK))):
            await manager.wait_generation(generation + 1)


def _endings(manager: CertManager) -> Iterator[tuple[str, Ending, datetime, datetime]]:
    """What a manager has that ends: a key, the thing, its beginning and its end."""
    pools = {pool for pool in (manager.client_cas, manager.root_cas) if pool is not None}
    for certificate in chain(manager.key_pair.chain, *pools):
        yield (
            fingerprint(certificate),
            certificate,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    for crl in manager.crls or ():
        if crl.next_update_utc is not None:  # a set has no others
            yield crl.fingerprint(SHA256()).hex(), crl, crl.last_update_utc, crl.next_update_utc
