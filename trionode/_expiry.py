"""Expiry: say in time that a certificate of ours comes to its end.

A certificate that nobody rotates is an outage with a date. Each certificate that a manager presents or trusts is
reported when a third of its lifetime is left, when a tenth is, in its last hour (of short-lived ones, the last
twentieth), and when it has ended: once each, whatever the number of rotations in between. By then somebody or
something should have rotated it; at a third, automatic issuers usually have.
"""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from itertools import chain
from typing import TYPE_CHECKING, Final

import trio

from ._identity import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from cryptography import x509

    from ._cert_manager import CertManager

#: The clock is looked at at least so often: clocks are set, machines sleep, tests drive theirs. Seconds.
LOOK_AT_CLOCK: Final = 60.0

_LAST_HOUR: Final = timedelta(hours=1)


class _Stage(IntEnum):
    FINE = 0
    LAST_THIRD = 1
    LAST_TENTH = 2
    LAST_HOUR = 3
    ENDED = 4


def _starts(certificate: x509.Certificate) -> Iterator[tuple[datetime, _Stage]]:
    """When each stage of a certificate's life begins, in order."""
    end = certificate.not_valid_after_utc
    lifetime = end - certificate.not_valid_before_utc
    yield end - lifetime / 3, _Stage.LAST_THIRD
    yield end - lifetime / 10, _Stage.LAST_TENTH
    yield end - min(_LAST_HOUR, lifetime / 20), _Stage.LAST_HOUR
    yield end, _Stage.ENDED


async def watch_expiry(manager: CertManager, report: Callable[[x509.Certificate, timedelta], None]) -> None:
    """Report the certificates of a manager as they come to their end, until cancelled.

    Args:
        manager: what it presents, and the pools that it was given; the system's CAs are somebody else's to renew.
        report: called with a certificate and the time that it has left, negative once it has ended.
    """
    reported: dict[str, _Stage] = {}
    while True:
        now, generation = manager.now(), manager.generation
        wait = LOOK_AT_CLOCK
        present: dict[str, _Stage] = {}
        for certificate in _certificates(manager):
            stage = _Stage.FINE
            for start, each in _starts(certificate):
                if start <= now:
                    stage = each
                else:
                    wait = min(wait, (start - now) / timedelta(seconds=1))
                    break
            key = fingerprint(certificate)
            present[key] = max(stage, reported.get(key, _Stage.FINE))
            if stage > reported.get(key, _Stage.FINE):
                report(certificate, certificate.not_valid_after_utc - now)
        reported = present
        with trio.move_on_after(wait):
            await manager.wait_generation(generation + 1)


def _certificates(manager: CertManager) -> Iterator[x509.Certificate]:
    pools = {pool for pool in (manager.client_cas, manager.root_cas) if pool is not None}
    return chain(manager.key_pair.chain, *pools)
