"""A manager that follows a source: what is there gets published, and what keeps it from that is told, once.

The sources in here are the tests' own, most of them on a clock that jumps; files are in test_sources.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from trio_util import AsyncValue

from ca import TestCA, lists
from trionode import (
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CertManager,
    ClientAuth,
    Credentials,
    CRLSet,
    Follower,
    FollowerStatus,
    KeyPair,
    NodeName,
    RotationRefused,
    Source,
    SourceTrouble,
    StrandedPeers,
    TrustRotationError,
    follow_source,
)
from trionode._managers import follower as _follower
from trionode._managers.manager import publisher_of
from trionode.pki import CertificateAuthority
from trionode.testing import trio_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory

    from trionode import EventStream

BETA = NodeName.parse("beta@localhost")
START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MUTUAL = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
LOGGER = "trionode.sources"


class Scripted:
    """A source whose content a test sets."""

    def __init__(self, content: object) -> None:
        self.content: AsyncValue[Any] = AsyncValue(content)
        self.readings = 0

    def __repr__(self) -> str:
        return "<the vault>"

    def set(self, content: object) -> None:
        """What is there from now on: credentials, or an error to raise."""
        self.content.value = content

    async def read(self) -> Credentials:
        """What was set."""
        self.readings += 1
        await trio.lowlevel.checkpoint()
        content = self.content.value
        if callable(content):
            content = content()
        if isinstance(content, Exception):
            raise content
        return content  # type: ignore[no-any-return]

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Until it is something else than what was seen: at once, where that is so already."""
        await trio.lowlevel.checkpoint()
        await self.content.wait_value(lambda content: content is not seen)


class Polled(Scripted):
    """A source that keeps nothing: it is read every second, and what it gives is equal, but never the same."""

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """A second."""
        await trio.sleep(1)


def credentials(key_pair: KeyPair, **trust: Any) -> Credentials:
    """In one word."""
    return Credentials(key_pair=key_pair, **trust)


def unreadable(text: str = "cannot read it") -> CertificateError:
    """What a source raises."""
    return CertificateError(text, reason=CertificateReason.UNREADABLE)


@pytest.fixture
def old(ca: CertificateAuthority) -> KeyPair:
    """What is published at first."""
    return ca.issue("beta@localhost")


@pytest.fixture
def new(ca: CertificateAuthority) -> KeyPair:
    """What comes next."""
    return ca.issue("beta@localhost")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that gives what was logged as a warning by followers since it was called last."""
    caplog.set_level(logging.INFO, LOGGER)

    def take() -> list[str]:
        found = [
            each.getMessage() for each in caplog.records if each.name == LOGGER and each.levelno == logging.WARNING
        ]
        caplog.clear()
        return found

    return take


@pytest.fixture
def authority() -> CertificateAuthority:
    """A CA that is valid long before and after `START`."""
    return CertificateAuthority.create(lifetime=8000 * DAY, clock=lambda: START - 4000 * DAY)


# Publishing ---------------------------------------------------------------------------------------------------------


async def test_what_the_source_has_is_published_before_it_is_started(old: KeyPair, new: KeyPair) -> None:
    """`nursery.start` returns with the manager at what the source has."""
    certs = CertManager(old)
    async with trio.open_nursery() as nursery:
        follower: Follower = await nursery.start(follow_source, certs, Scripted(credentials(new)))
        assert (certs.generation, certs.key_pair) == (2, new)
        assert follower.status == FollowerStatus()
        assert follower.read_at <= trio.current_time()
        nursery.cancel_scope.cancel()


async def test_what_is_published_already_is_no_generation(old: KeyPair, ca: CertificateAuthority) -> None:
    """The manager was made from the source: nothing is published again, pools included."""
    certs = CertAuthManager(old, client_cas=ca.pool, root_cas=ca.pool)
    same = KeyPair(old.chain, old.private_key)
    source = Scripted(credentials(same, client_cas=ca.pool, root_cas=ca.pool))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        assert await follower.reload() == 1
        nursery.cancel_scope.cancel()


async def test_changes_are_published(old: KeyPair, new: KeyPair) -> None:
    """Each time that the source has something else."""
    certs, source = CertManager(old), Scripted(credentials(old))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(follow_source, certs, source)
            for generation, key_pair in enumerate((new, old, new), start=2):
                source.set(credentials(key_pair))
                await certs.wait_generation(generation)
                assert certs.key_pair == key_pair
            nursery.cancel_scope.cancel()


async def test_trust_and_key_pair_are_taken_together(
    old: KeyPair, rogue_ca: CertificateAuthority, ca: CertificateAuthority
) -> None:
    """Trust comes first, and nobody can take the generation between the two."""
    certs = CertAuthManager(old, client_cas=ca.pool, root_cas=ca.pool)
    source = Scripted(credentials(old))
    new = rogue_ca.issue("beta@localhost")
    taken: list[int] = []

    async def take() -> None:
        while True:
            taken.append((await certs.contexts.receive()).generation)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(follow_source, certs, source)
            nursery.start_soon(take)
            source.set(credentials(new, client_cas=rogue_ca.pool, root_cas=rogue_ca.pool))
            while 3 not in taken:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert set(taken) == {1, 3}
    assert (certs.key_pair, certs.client_cas, certs.root_cas) == (new, rogue_ca.pool, rogue_ca.pool)


async def test_trust_alone_is_one_generation(
    old: KeyPair, rogue_ca: CertificateAuthority, ca: CertificateAuthority
) -> None:
    """What the source does not have stays as it is."""
    certs = CertAuthManager(old, client_cas=ca.pool, root_cas=ca.pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_source, certs, Scripted(credentials(old, root_cas=ca.pool | rogue_ca.pool)))
        nursery.cancel_scope.cancel()
    assert (certs.generation, certs.client_cas, certs.root_cas) == (2, ca.pool, ca.pool | rogue_ca.pool)


async def test_two_managers_can_follow_one_source(old: KeyPair, new: KeyPair) -> None:
    """Neither takes a change away from the other."""
    source = Scripted(credentials(old))
    managers = [CertManager(old), CertManager(old)]
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for each in managers:
                await nursery.start(follow_source, each, source)
            source.set(credentials(new))
            for each in managers:
                await each.wait_generation(2)
            nursery.cancel_scope.cancel()


def test_the_double_is_a_source(old: KeyPair) -> None:
    """By protocol."""
    assert isinstance(Scripted(credentials(old)), Source)


# At start-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [unreadable(), OSError("the vault is sealed")], ids=["certificate", "other"])
async def test_at_start_up_errors_are_raised(error: Exception, old: KeyPair, said: Callable[[], list[str]]) -> None:
    """The same object, bare, and nothing is reported beside it."""
    certs = CertManager(old)
    async with trio.open_nursery() as nursery:
        with pytest.raises(type(error)) as caught:
            await nursery.start(follow_source, certs, Scripted(error))
    assert caught.value is error
    assert publisher_of(certs).source_trouble is None
    assert not said()


async def test_at_start_up_a_refused_key_pair_is_raised(old: KeyPair, ca: CertificateAuthority) -> None:
    """As `update()` raises it."""
    now = datetime.now(UTC)
    expired = ca.issue("localhost", not_before=now - 5 * DAY, not_after=now - 3 * DAY)
    certs = CertManager(old)
    async with trio.open_nursery() as nursery:
        with pytest.raises(CertificateError, match="has expired"):
            await nursery.start(follow_source, certs, Scripted(credentials(expired)))
    assert certs.generation == 1


async def test_a_source_with_trust_wants_a_manager_for_it(old: KeyPair, ca: CertificateAuthority) -> None:
    """Pools that would be left aside in silence are an error."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(TypeError, match="make it a CertAuthManager"):
            await nursery.start(follow_source, CertManager(old), Scripted(credentials(old, client_cas=ca.pool)))


async def test_a_source_gives_credentials(old: KeyPair) -> None:
    """And nothing that merely looks like them."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(TypeError, match="returns Credentials, not KeyPair"):
            await nursery.start(follow_source, CertManager(old), Scripted(old))


async def test_a_manager_in_use_elsewhere(old: KeyPair, new: KeyPair) -> None:
    """It belongs to the run that uses it; a follower in another is told so."""
    certs = CertManager(old)

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="in use by a Trio run in another thread"):
            await follow_source(certs, Scripted(credentials(new)))

    with publisher_of(certs).use(as_server=True):
        await trio.to_thread.run_sync(trio.run, elsewhere)
    assert certs.generation == 1


# Conditions ---------------------------------------------------------------------------------------------------------


async def test_a_condition_is_told_once(
    old: KeyPair, new: KeyPair, said: Callable[[], list[str]], autojump_clock: trio.testing.MockClock
) -> None:
    """When it begins, when it becomes another, and when it is over; in between the last good generation stays."""
    certs, source = CertManager(old), Scripted(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(lambda: unreadable("cannot read tls.crt"))
        status = await follower.wait_changed(FollowerStatus())
        assert str(status.error) == str(publisher_of(certs).source_trouble) == "cannot read tls.crt"
        assert status.pending is None
        await trio.sleep(60)
        assert said() == ["<the vault>: it cannot be read, generation 1 stays: cannot read tls.crt"]
        assert 55 <= source.readings <= 65  # it keeps trying, at its pace
        assert follower.status is status
        source.set(lambda: unreadable("cannot read tls.key"))
        status = await follower.wait_changed(status)
        assert str(status.error) == "cannot read tls.key"
        await trio.sleep(60)
        assert said() == ["<the vault>: it cannot be read, generation 1 stays: cannot read tls.key"]
        assert certs.key_pair == old
        source.set(credentials(new))
        assert await follower.wait_changed(status) == FollowerStatus()
        assert (certs.generation, certs.key_pair, publisher_of(certs).source_trouble) == (2, new, None)
        await trio.sleep(60)
        assert said() == []
        nursery.cancel_scope.cancel()


async def test_going_back_to_what_is_published_heals(
    old: KeyPair, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Without a generation, and with a word."""
    caplog.set_level(logging.INFO, LOGGER)
    certs, source = CertManager(old), Scripted(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(unreadable())
        status = await follower.wait_changed(FollowerStatus())
        source.set(credentials(old))
        assert await follower.wait_changed(status) == FollowerStatus()
        nursery.cancel_scope.cancel()
    assert certs.generation == 1
    assert "<the vault>: works again, what it has is generation 1" in caplog.messages


async def test_errors_of_others_are_told_once_whatever_their_text(
    old: KeyPair, said: Callable[[], list[str]], autojump_clock: trio.testing.MockClock
) -> None:
    """A request number in the text does not flood the log."""
    certs, source = CertManager(old), Scripted(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(lambda: OSError(f"request {source.readings} failed"))
        await trio.sleep(600)
        assert len(said()) == 1
        assert isinstance(follower.status.error, OSError)
        nursery.cancel_scope.cancel()


async def test_a_watch_that_fails_is_a_condition(
    old: KeyPair, new: KeyPair, said: Callable[[], list[str]], autojump_clock: trio.testing.MockClock
) -> None:
    """Not the end: it is tried again, and `reload()` works meanwhile."""

    class Deaf(Scripted):
        deaf = True

        async def wait_changed(self, seen: Credentials | None, /) -> None:
            if self.deaf:
                raise OSError("the watch broke")
            await super().wait_changed(seen)

    certs, source = CertManager(old), Deaf(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        status = await follower.wait_changed(FollowerStatus())
        assert str(status.error) == "the watch broke"
        await trio.sleep(60)
        assert len(said()) == 1
        source.set(credentials(new))
        assert await follower.reload() == 2
        source.deaf = False
        source.set(credentials(old))
        await certs.wait_generation(3)
        await trio.sleep(5)
        assert follower.status == FollowerStatus()
        nursery.cancel_scope.cancel()


async def test_a_source_that_forgets_itself_is_a_condition(
    old: KeyPair, autojump_clock: trio.testing.MockClock
) -> None:
    """What is no `Credentials` is refused later as at start-up, and ends nothing."""
    certs, source = CertManager(old), Scripted(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set("junk")
        status = await follower.wait_changed(FollowerStatus())
        assert isinstance(status.error, TypeError)
        source.set(credentials(old))
        assert await follower.wait_changed(status) == FollowerStatus()
        nursery.cancel_scope.cancel()


# What the manager refuses -------------------------------------------------------------------------------------------


async def test_what_was_refused_is_pending_and_not_forced(
    authority: CertificateAuthority, said: Callable[[], list[str]], autojump_clock: trio.testing.MockClock
) -> None:
    """An expired key pair is refused once, however often the source is read; asked for, it is tried again."""
    clock = trio_clock(START)
    good = authority.issue("localhost", not_before=START - DAY, not_after=START + DAY)
    expired = authority.issue("localhost", not_before=START - 3 * DAY, not_after=START - DAY)
    certs, source = CertManager(good, clock=clock), Polled(credentials(good))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(lambda: credentials(expired))
        await trio.sleep(600)
        assert source.readings > 500
        assert follower.status.pending == credentials(expired)
        assert publisher_of(certs).refused_updates == 1
        [text] = said()
        assert "was not published, generation 1 stays: our certificate has expired" in text
        with pytest.raises(CertificateError, match="has expired"):
            await follower.reload()
        assert publisher_of(certs).refused_updates == 2
        assert len(said()) == 1  # who asks is told
        source.set(credentials(good))
        await trio.sleep(60)
        assert follower.status == FollowerStatus()
        nursery.cancel_scope.cancel()
    assert certs.generation == 1


async def test_what_is_not_yet_valid_is_published_in_time(
    authority: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """Dates pass by themselves: nobody has to read or ask again."""
    good = authority.issue("localhost", not_before=START - DAY, not_after=START + DAY)
    early = authority.issue("localhost", not_before=START + timedelta(hours=1), not_after=START + DAY)
    certs, source = CertManager(good, clock=trio_clock(START)), Scripted(credentials(good))
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        follower = await nursery.start(follow_source, certs, source)
        source.set(credentials(early))
        status = await follower.wait_changed(FollowerStatus())
        assert isinstance(status.error, CertificateError)
        assert status.error.reason is CertificateReason.NOT_YET_VALID
        await certs.wait_generation(2)
        assert 3600 <= trio.current_time() - began <= 3600 + _follower.JUDGE_AGAIN
        assert follower.status == FollowerStatus()
        assert (publisher_of(certs).refused_updates, source.readings) == (1, 2)
        nursery.cancel_scope.cancel()


async def test_another_key_pair_that_is_refused_is_another_condition(
    old: KeyPair, ca: CertificateAuthority, said: Callable[[], list[str]], autojump_clock: trio.testing.MockClock
) -> None:
    """Each candidate is told of; one that cannot heal is left alone."""
    now = datetime.now(UTC)
    certs, source = CertManager(old), Scripted(credentials(old))
    with publisher_of(certs).use(as_server=True):
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            for count, bad in enumerate(
                [
                    ca.issue("localhost", not_before=now - 5 * DAY, not_after=now - 3 * DAY),
                    ca.issue("localhost", not_before=now - 5 * DAY, not_after=now - 3 * DAY),
                    ca.issue("localhost", extended_key_usage=[ExtendedKeyUsageOID.CLIENT_AUTH]),
                ],
                start=1,
            ):
                source.set(credentials(bad))
                await trio.sleep(60)
                assert len(said()) == 1
                assert publisher_of(certs).refused_updates == count
            assert follower.status.error.reason is CertificateReason.WRONG_EKU
            nursery.cancel_scope.cancel()


async def test_findings_hold_back_where_that_is_wanted(
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    manager: ManagerFactory,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With `check`, a key pair that our own pools refuse waits until they do not."""
    key_pair = rogue_ca.issue("beta@localhost")
    strict, plain = manager("beta@localhost"), manager("beta@localhost")
    source = Scripted(credentials(strict.key_pair))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(partial(follow_source, strict, source, check=True))
        await nursery.start(follow_source, plain, source)
        source.set(credentials(key_pair))
        await plain.wait_generation(3)
        status = follower.status
        assert isinstance(status.error, CertificateError)
        assert status.error.reason is CertificateReason.FINDINGS
        assert "held back" in str(status.error)
        await trio.sleep(60)
        assert (strict.generation, publisher_of(strict).refused_updates) == (1, 0)
        strict.rotate_trust(client_cas=ca.pool | rogue_ca.pool, root_cas=ca.pool | rogue_ca.pool)
        await strict.wait_generation(3)
        assert strict.key_pair == key_pair
        assert follower.status == FollowerStatus()
        nursery.cancel_scope.cancel()


async def test_a_manager_that_cannot_now_may_be_able_later(
    old: KeyPair, new: KeyPair, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever else a publication raises is a condition, and tried again."""
    certs, source = CertManager(old), Scripted(credentials(old))

    def taken(key_pair: KeyPair) -> int:
        raise RuntimeError("in use by a Trio run in another thread")

    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        with monkeypatch.context() as patch:
            patch.setattr(certs, "update", taken)
            source.set(credentials(new))
            status = await follower.wait_changed(FollowerStatus())
            assert isinstance(status.error, RuntimeError)
            await trio.sleep(60)
            assert follower.status is status
        await certs.wait_generation(2)
        assert follower.status == FollowerStatus()
        nursery.cancel_scope.cancel()


# Live peers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused is looked at often."""
    monkeypatch.setattr(_follower, "JUDGE_AGAIN", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_a_ca_is_retired_once_nobody_needs_it(
    open_pair: PairFactory, manager: ManagerFactory, ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> None:
    """Pools that would strand live peers stay pending until these are gone; the key pair does not wait for them."""
    both, new = ca.pool | rogue_ca.pool, rogue_ca.issue(str(BETA))
    certs = manager(str(BETA))
    old = certs.key_pair
    source = Scripted(credentials(old, client_cas=both, root_cas=both))
    with trio.fail_after(10):
        async with open_pair(beta={"certs": certs}) as pair, trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            connection = await pair.alpha.connect(str(BETA))
            source.set(credentials(new, client_cas=rogue_ca.pool, root_cas=rogue_ca.pool))
            status = await follower.wait_changed(FollowerStatus())
            assert isinstance(status.error, TrustRotationError)
            assert (certs.key_pair, certs.client_cas) == (new, both)
            await trio.sleep(0.1)
            assert publisher_of(certs).refused_updates == 1
            await connection.aclose()
            assert await follower.wait_changed(status) == FollowerStatus()
            assert certs.client_cas == certs.root_cas == rogue_ca.pool
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_both_may_be_refused_and_each_goes_when_it_can(
    open_pair: PairFactory,
    manager: ManagerFactory,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    said: Callable[[], list[str]],
) -> None:
    """Trust and key pair have a condition each, in a group; closing the peers is a matter of asking for it."""
    now = datetime.now(UTC)
    expired = rogue_ca.issue(str(BETA), not_before=now - 5 * DAY, not_after=now - 3 * DAY)
    certs = manager(str(BETA))
    source = Scripted(credentials(certs.key_pair))
    with trio.fail_after(10):
        async with open_pair(beta={"certs": certs}) as pair, trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            connection = await pair.alpha.connect(str(BETA))
            source.set(credentials(expired, client_cas=rogue_ca.pool, root_cas=rogue_ca.pool))
            status = await follower.wait_changed(FollowerStatus())
            assert isinstance(status.error, ExceptionGroup)
            assert [type(each) for each in status.error.exceptions] == [TrustRotationError, CertificateError]
            [text] = said()
            assert "would strand 1 live peer" in text
            assert "; our certificate has expired" in text
            with pytest.RaisesGroup(TrustRotationError, CertificateError):
                await follower.reload()
            certs.rotate_trust(client_cas=rogue_ca.pool, root_cas=rogue_ca.pool, stranded=StrandedPeers.CLOSE)
            status = await follower.wait_changed(status)
            assert isinstance(status.error, CertificateError)
            assert status.pending is not None
            await connection.wait_closed()
            nursery.cancel_scope.cancel()


async def test_peers_may_be_closed_for_new_trust(
    open_pair: PairFactory, manager: ManagerFactory, ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> None:
    """`stranded` goes to `rotate_trust`."""
    certs = manager(str(BETA))
    source = Scripted(credentials(certs.key_pair))
    with trio.fail_after(10):
        async with open_pair(beta={"certs": certs}) as pair, trio.open_nursery() as nursery:
            follower = await nursery.start(partial(follow_source, certs, source, stranded=StrandedPeers.CLOSE))
            connection = await pair.alpha.connect(str(BETA))
            source.set(credentials(certs.key_pair, client_cas=rogue_ca.pool))
            await connection.wait_closed()
            assert follower.status == FollowerStatus()
            nursery.cancel_scope.cancel()


async def test_a_revocation_does_not_wait_for_a_ca_to_be_retired(
    open_pair: PairFactory,
    manager: ManagerFactory,
    ca: CertificateAuthority,
    rogue_ca: CertificateAuthority,
    crls: Callable[..., CRLSet],
) -> None:
    """Lists are published even where the pools that came with them would strand a peer."""
    certs = manager(str(BETA))
    source = Scripted(credentials(certs.key_pair))
    lists = crls(ca, rogue_ca)
    with trio.fail_after(10):
        async with open_pair(beta={"certs": certs}) as pair, trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            await pair.alpha.connect(str(BETA))
            source.set(credentials(certs.key_pair, client_cas=rogue_ca.pool, crls=lists))
            status = await follower.wait_changed(FollowerStatus())
            assert isinstance(status.error, TrustRotationError)
            assert (certs.crls, certs.client_cas) == (lists, ca.pool)
            nursery.cancel_scope.cancel()


async def test_an_older_list_is_no_change_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A source that goes back to an old list is read again and again, and the newer list stays in use."""
    root = TestCA()
    old, new = lists(root.crl(number=4)), lists(root.crl(number=5))
    ours = root.leaf()
    certs = CertAuthManager(ours, client_cas=root.pool, client_auth=MUTUAL, root_cas=root.pool, crls=new)
    source = Polled(credentials(ours, crls=old))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(follow_source, certs, source)
            before = certs.generation
            await trio.sleep(5)
            assert source.readings > 3
            assert certs.generation == before
            assert follower.status == FollowerStatus()
            nursery.cancel_scope.cancel()
    assert certs.crls is not None
    assert new.lists[0] in certs.crls.lists
    assert len([each for each in caplog.records if "is older than the one in use" in each.getMessage()]) == 1


@pytest.mark.parametrize("check", [True, False])
async def test_trust_that_would_refuse_us_is_held_back_where_that_is_wanted(
    check: bool, said: Callable[[], list[str]]
) -> None:
    """With `check`: what peers with the same trust would refuse us for; but that we were revoked does not wait."""
    root, stranger = TestCA(), TestCA("stranger")
    ours = root.leaf()
    trust: dict[str, Any] = {"client_cas": root.pool, "client_auth": MUTUAL, "root_cas": root.pool}
    certs = CertAuthManager(ours, **trust, crls=lists(root.crl(number=1)))
    source = Scripted(credentials(ours))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            follower = await nursery.start(partial(follow_source, certs, source, check=check))
            useless = lists(stranger.crl())
            source.set(credentials(ours, crls=useless))
            if not check:
                await certs.wait_generation(2)
                assert certs.crls == useless
                nursery.cancel_scope.cancel()
                return  # noqa: ASYNC121 -- out of the whole test
            status = await follower.wait_changed(FollowerStatus())
            assert isinstance(status.error, CertificateError)
            assert status.error.reason is CertificateReason.TRUST_FINDINGS
            assert certs.generation == 1
            [text] = said()
            assert "peers with this trust would refuse our own key pair" in text
            # Pools that would refuse us do not hold up the lists beside them.
            good = lists(root.crl(number=2))
            source.set(credentials(ours, crls=good, root_cas=stranger.pool))
            status = await follower.wait_changed(status)
            assert status.error is not None
            assert (certs.crls, certs.root_cas) == (good, root.pool)
            bad = lists(root.crl(ours, number=3))
            source.set(credentials(ours, crls=bad))
            status = await follower.wait_changed(status)
            assert status.error is None
            assert certs.crls == bad
            nursery.cancel_scope.cancel()


async def test_trust_that_was_held_back_is_published_once_it_may(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Dates change by themselves: a list of tomorrow is one tomorrow."""
    root, shift = TestCA(), timedelta()
    ours = root.leaf()
    trust: dict[str, Any] = {"client_cas": root.pool, "client_auth": MUTUAL, "root_cas": root.pool}
    certs = CertAuthManager(
        ours, **trust, crls=lists(root.crl(number=1, end=10 * DAY)), clock=lambda: datetime.now(UTC) + shift
    )
    future = lists(root.crl(number=2, start=DAY, end=9 * DAY))
    source = Scripted(credentials(ours))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(partial(follow_source, certs, source, check=True))
        source.set(credentials(ours, crls=lists(TestCA("another").crl(), *future)))
        status = await follower.wait_changed(FollowerStatus())
        assert isinstance(status.error, CertificateError)
        await trio.sleep(100)
        assert certs.generation == 1
        shift = 2 * DAY
        status = await follower.wait_changed(status)
        assert status.error is None
        assert certs.generation == 2
        nursery.cancel_scope.cancel()


@pytest.fixture
def crls() -> Callable[..., CRLSet]:
    """A function that makes empty revocation lists."""

    def make(*authorities: CertificateAuthority) -> CRLSet:
        now = datetime.now(UTC)
        return CRLSet(
            x509.CertificateRevocationListBuilder()
            .issuer_name(each.certificate.subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + DAY)
            .sign(each._key, hashes.SHA256())
            for each in authorities
        )

    return make


# On demand ----------------------------------------------------------------------------------------------------------


class Silent(Scripted):
    """A source that never says that it has changed."""

    async def wait_changed(self, seen: Credentials | None, /) -> None:
        """Never."""
        await trio.sleep_forever()


async def test_reload(old: KeyPair, new: KeyPair, said: Callable[[], list[str]]) -> None:
    """Reads and publishes now, and returns the generation or raises what is wrong."""
    certs, source = CertManager(old), Silent(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(credentials(new))
        assert await follower.reload() == 2
        assert certs.key_pair == new
        assert await follower.reload() == 2
        error = unreadable()
        source.set(error)
        for _ in range(2):
            with pytest.raises(CertificateError) as caught:
                await follower.reload()
            assert caught.value is error
            assert len(said()) == 1
        assert follower.status.error is error
        source.set(credentials(old))
        assert await follower.reload() == 3
        assert follower.status == FollowerStatus()
        assert repr(follower) == "<Follower of <the vault>>"
        nursery.cancel_scope.cancel()


async def test_sighup(
    old: KeyPair, new: KeyPair, said: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """The signal reads again; what goes wrong then is said, each time; without asking for it nothing is caught."""
    certs, source = CertManager(old), Silent(credentials(old))
    before = signal.getsignal(signal.SIGHUP)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(follow_source, CertManager(old), source)
            assert signal.getsignal(signal.SIGHUP) is before
            follower = await nursery.start(partial(follow_source, certs, source, reload_on=[signal.SIGHUP]))
            source.set(credentials(new))
            os.kill(os.getpid(), signal.SIGHUP)
            await certs.wait_generation(2)
            source.set(unreadable())
            os.kill(os.getpid(), signal.SIGHUP)
            status = await follower.wait_changed(FollowerStatus())
            assert len(said()) == 1
            readings = source.readings
            os.kill(os.getpid(), signal.SIGHUP)
            while source.readings == readings or not caplog.messages:
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert follower.status is status
            assert len(said()) == 1
            nursery.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGHUP) is before


async def test_signals_are_for_the_main_thread(old: KeyPair) -> None:
    """Elsewhere it is an error at start-up."""

    async def elsewhere() -> NoReturn:
        await follow_source(CertManager(old), Silent(credentials(old)), reload_on=[signal.SIGHUP])

    def run() -> None:
        assert threading.current_thread() is not threading.main_thread()
        with pytest.raises(RuntimeError, match="main thread"):
            trio.run(elsewhere)

    await trio.to_thread.run_sync(run)


# Ending -------------------------------------------------------------------------------------------------------------


async def test_after_its_end(old: KeyPair, new: KeyPair) -> None:
    """A follower whose task is gone says so, and publishes nothing."""
    certs, source = CertManager(old), Scripted(credentials(old))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        nursery.cancel_scope.cancel()
    source.set(credentials(new))
    last = await follower.wait_changed(FollowerStatus())
    assert last == FollowerStatus(following=False)
    with pytest.raises(trio.ClosedResourceError, match="has ended"):
        await follower.wait_changed(last)
    with pytest.raises(trio.ClosedResourceError, match="has ended"):
        await follower.reload()
    assert certs.generation == 1


@pytest.mark.parametrize("outcome", ["good", "bad"])
async def test_a_reload_that_is_overtaken_by_the_end(outcome: str, old: KeyPair, new: KeyPair) -> None:
    """What was read while the task ended is not published, and not reported."""
    certs, source = CertManager(old), Silent(credentials(old))
    reading, go_on = trio.Event(), trio.Event()
    read = source.read

    async def slowly() -> Credentials:
        reading.set()
        await go_on.wait()
        return await read()

    async def ask() -> None:
        with pytest.raises(trio.ClosedResourceError if outcome == "good" else CertificateError):
            await follower.reload()

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as inner:
            follower = await inner.start(follow_source, certs, source)
            source.read = slowly  # type: ignore[method-assign]
            source.set(credentials(new) if outcome == "good" else unreadable())
            outer.start_soon(ask)
            await reading.wait()
            inner.cancel_scope.cancel()
        assert not follower.status.following
        go_on.set()
    assert (certs.generation, publisher_of(certs).source_trouble) == (1, None)


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before a task's n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope, self._left = scope, step
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count."""
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(step: int, function: Callable[[], Any]) -> bool:
    """Whether it was still running at its n-th step, and was cancelled there."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await function()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


async def test_a_cancelled_reload_changes_nothing(
    old: KeyPair, ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> None:
    """At each of its steps: all or nothing, and the follower goes on."""
    new = rogue_ca.issue("localhost")
    source = Silent(credentials(old))
    certs = CertAuthManager(old, client_cas=ca.pool)
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        source.set(credentials(new, client_cas=rogue_ca.pool))
        step = 1
        while await cancelled_at(step, follower.reload):
            assert (certs.generation, certs.key_pair, certs.client_cas) == (1, old, ca.pool)
            assert follower.status == FollowerStatus()
            step += 1
        assert step > 2
        assert (certs.generation, certs.key_pair, certs.client_cas) == (3, new, rogue_ca.pool)
        nursery.cancel_scope.cancel()


async def test_cancelled_at_any_step_it_leaves_the_manager_whole(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority, autojump_clock: trio.testing.MockClock
) -> None:
    """From start-up to its rest: either nothing was published, or everything."""
    old, new = ca.issue("localhost"), rogue_ca.issue("localhost")
    states = []
    for step in range(1, 12):
        certs = CertAuthManager(old, client_cas=ca.pool)
        source = Scripted(credentials(new, client_cas=rogue_ca.pool))
        with trio.move_on_after(1):  # where it rests, it has no further steps
            await cancelled_at(step, partial(follow_source, certs, source))
        states.append((certs.generation, certs.key_pair, certs.client_cas))
    assert states[0] == (1, old, ca.pool)
    assert states[-1] == (3, new, rogue_ca.pool)
    assert set(states) == {states[0], states[-1]}


# Nodes --------------------------------------------------------------------------------------------------------------


async def event_of(events: EventStream, kind: Any) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


async def test_nodes_report_how_the_source_is(node: NodeFactory, manager: ManagerFactory) -> None:
    """`SourceTrouble` when it begins, also on a node that opens later, and when it is over."""
    certs = manager(str(BETA))
    source, error = Silent(credentials(certs.key_pair)), unreadable()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, node(str(BETA), certs) as beta, beta.events() as events:
            follower = await nursery.start(follow_source, certs, source)
            source.set(error)
            with pytest.raises(CertificateError):
                await follower.reload()
            assert await event_of(events, SourceTrouble) == SourceTrouble(node=BETA, error=error)
            async with node("late@localhost", certs) as late, late.events() as late_events:
                assert (await event_of(late_events, SourceTrouble)).error is error
                source.set(credentials(certs.key_pair))
                await follower.reload()
                for stream in (events, late_events):
                    assert (await event_of(stream, SourceTrouble)).error is None
            nursery.cancel_scope.cancel()


async def test_nodes_report_what_was_refused(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """As the manager's refusal, and as its source's trouble; and the log has it once, whole."""
    certs = manager(str(BETA), client_auth=ClientAuth.NO_CLIENT_CERT)
    now = datetime.now(UTC)
    source = Silent(credentials(certs.key_pair))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, node(str(BETA), certs) as beta, beta.events() as events:
            follower = await nursery.start(follow_source, certs, source)
            source.set(credentials(ca.issue(str(BETA), not_before=now - 5 * DAY, not_after=now - 3 * DAY)))
            with pytest.raises(CertificateError) as caught:
                await follower.reload()
            found = [await event_of(events, (RotationRefused, SourceTrouble)) for _ in range(2)]
            assert {type(event) for event in found} == {RotationRefused, SourceTrouble}
            assert {event.error for event in found} == {caught.value}
            await trio.testing.wait_all_tasks_blocked()
            [told] = [each for each in caplog.records if "generation 1 stays" in each.getMessage()]
            assert (told.name, told.getMessage().endswith(str(caught.value))) == (LOGGER, True)
            nursery.cancel_scope.cancel()


async def test_a_remedy_is_not_cut_off(said: Callable[[], list[str]], manager: ManagerFactory) -> None:
    """It is at the end of our texts, which are as long as they are; those of others are cut."""
    certs = manager(str(BETA))
    source = Silent(credentials(certs.key_pair))
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(follow_source, certs, source)
        for error, end in (
            (unreadable("long " * 100 + "and the remedy"), "and the remedy"),
            (OSError("x" * 999), "x…"),
        ):
            source.set(error)
            with pytest.raises(type(error)):
                await follower.reload()
            [text] = said()
            assert text.endswith(end)
        nursery.cancel_scope.cancel()
