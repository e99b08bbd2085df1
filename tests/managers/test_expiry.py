"""Expiry: certificates that come to their end are reported in time, each stage once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from cryptography import x509

from trionode import (
    CertAuthManager,
    CertificateExpiring,
    CertManager,
    NetworkMode,
    NetworkOptions,
    NodeOptions,
    open_node,
)
from trionode._identity.describe import describe_duration
from trionode._managers.expiry import watch_expiry
from trionode.pki import CertificateAuthority
from trionode.testing import trio_clock

if TYPE_CHECKING:
    from trionode import EventStream
    from trionode._credentials.validity import Ending

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def authority() -> CertificateAuthority:
    """A CA that is valid long before and after."""
    return CertificateAuthority.create(lifetime=8000 * DAY, clock=lambda: START - 4000 * DAY)


async def watched(manager: CertManager, span: timedelta) -> list[tuple[str, timedelta]]:
    """What is reported within a time: serial numbers and time left."""
    seen: list[tuple[str, timedelta]] = []

    def report(ending: Ending, left: timedelta) -> None:
        name = ending.subject if isinstance(ending, x509.Certificate) else ending.issuer
        seen.append((name.rfc4514_string(), left))

    with trio.move_on_after(span / timedelta(seconds=1)):
        await watch_expiry(manager, report)
    return seen


async def expiring(events: EventStream) -> CertificateExpiring:
    """The next report of a node."""
    async for event in events:
        if isinstance(event, CertificateExpiring):
            return event
    raise AssertionError("the node ended")


async def test_every_stage_of_a_life_once(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """A third left, a tenth, an hour, none: each once, at its time, and nothing in between."""
    pair = authority.issue("alpha@localhost", not_before=START, not_after=START + 30 * DAY)
    manager = CertManager(pair, clock=trio_clock(START))
    left = [left for _, left in await watched(manager, 40 * DAY)]
    for reported, due in zip(left, [10 * DAY, 3 * DAY, timedelta(hours=1), timedelta()], strict=True):
        assert timedelta() <= due - reported < timedelta(seconds=61)


async def test_a_short_life_has_a_short_last_stage(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """A certificate for an hour is not in its last hour from the beginning."""
    manager = CertManager(
        authority.issue("alpha@localhost", not_before=START, not_after=START + timedelta(hours=1)),
        clock=trio_clock(START),
    )
    left = [round(left / timedelta(minutes=1)) for _, left in await watched(manager, timedelta(hours=2))]
    assert left == [20, 6, 3, 0]


async def test_a_rotation_in_time_is_silence(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """Who rotates before a third is left hears nothing; after it, what was said is not said again."""
    clock = trio_clock(START)
    issue = partial(authority.issue, "alpha@localhost")
    manager = CertManager(issue(not_before=START, not_after=START + 30 * DAY), clock=clock)
    seen: list[tuple[str, timedelta]] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            seen.extend(await watched(manager, 50 * DAY))

        nursery.start_soon(watch)
        await trio.sleep(19 * DAY / timedelta(seconds=1))
        manager.update(issue(not_before=clock(), not_after=clock() + 90 * DAY))
    assert seen == []


async def test_pools_are_watched_too(authority: CertificateAuthority, autojump_clock: trio.testing.MockClock) -> None:
    """A CA that ends takes everybody with it."""
    ca = CertificateAuthority.create(common_name="short", clock=lambda: START, lifetime=3 * DAY)
    pair = authority.issue("alpha@localhost", not_before=START, not_after=START + 300 * DAY)
    manager = CertAuthManager(pair, root_cas=ca.pool, client_cas=ca.pool, clock=trio_clock(START))
    seen = await watched(manager, 4 * DAY)
    assert [subject for subject, _ in seen] == [ca.certificate.subject.rfc4514_string()] * 4


async def test_a_ca_in_two_pools_is_reported_once(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """However many roles a certificate has, and whatever else is in the pools beside it."""
    ca = CertificateAuthority.create(common_name="short", clock=lambda: START, lifetime=3 * DAY)
    pair = authority.issue("alpha@localhost", not_before=START, not_after=START + 300 * DAY)
    manager = CertAuthManager(pair, root_cas=ca.pool, client_cas=ca.pool | authority.pool, clock=trio_clock(START))
    seen = await watched(manager, 4 * DAY)
    assert [subject for subject, _ in seen] == [ca.certificate.subject.rfc4514_string()] * 4


async def test_revocation_lists_are_watched_too(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """A list that ends takes everybody with it whose issuer it was from."""
    pair = authority.issue("alpha@localhost", not_before=START, not_after=START + 300 * DAY)
    crls = CertificateAuthority(authority.certificate, authority._key, clock=lambda: START).revocation_list(
        lifetime=3 * DAY
    )
    manager = CertAuthManager(pair, root_cas=authority.pool, crls=crls, clock=trio_clock(START))
    seen = await watched(manager, 4 * DAY)
    assert [subject for subject, _ in seen] == [authority.certificate.subject.rfc4514_string()] * 4


async def test_a_node_says_so(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As an event, and in its log, with what to do."""
    pair = authority.issue("alpha@localhost", not_before=START - 20 * DAY, not_after=START + 2 * DAY)
    options = NodeOptions(
        cert_manager=CertManager(pair, clock=trio_clock(START)), network=NetworkOptions(mode=NetworkMode.HIDDEN)
    )
    async with open_node("alpha@localhost", options) as node, node.events() as events:
        event = await expiring(events)
        assert (event.certificate, event.left) == (pair.certificate, 2 * DAY)
    assert any("will end in 2 days; rotate it" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(days=10), "10 days"),
        (timedelta(hours=47), "47 hours"),
        (-timedelta(hours=3), "3 hours"),
        (timedelta(minutes=119), "119 minutes"),
        (timedelta(seconds=100), "100 seconds"),
        (timedelta(), "0 seconds"),
    ],
)
def test_durations_read_well(span: timedelta, text: str) -> None:
    """In the largest unit that still says something."""
    assert describe_duration(span) == text
