"""Cert managers: rotation, what is fixed at start-up, who may touch a manager when, and the checks on use."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, cast

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from handshaking import shake_hands
from moving_clock import Clock
from specimens import make_certificate
from trionode import PeerRejectedError, PeerUnverifiedError
from trionode._credentials.ca_pool import CAPool
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.policy import ClientAuth
from trionode._errors import (
    CertificateError,
    CertificateReason,
    FixedAtStartupError,
    RejectionCode,
    UnverifiedReason,
)
from trionode._managers.auth_manager import CertAuthManager
from trionode._managers.manager import CertManager, publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trionode._tls.contexts import TLSContexts

HOST = "localhost"
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Trio shuffles the tasks of a tick: an order with even odds stays out this often in a row once in 10^60 runs.
ROUNDS = 200

Purposes: TypeAlias = tuple[x509.ObjectIdentifier, ...]


def make_key_pair(
    *,
    start: timedelta = -HOUR,
    end: timedelta = DAY,
    purposes: Purposes | None = (SERVER, CLIENT),
    host: str = HOST,
) -> KeyPair:
    """A self-signed key pair, dates relative to now; `purposes=None` leaves the extended key usage out."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = make_certificate(
        "made for a test", key=key, not_before=now + start, not_after=now + end, purposes=purposes, host=host
    )
    return KeyPair([made], key)


@pytest.fixture(scope="module")
def key_pairs() -> list[KeyPair]:
    """Three good key pairs."""
    return [make_key_pair() for _ in range(3)]


@pytest.fixture
def manager(key_pairs: list[KeyPair]) -> CertAuthManager:
    """A manager with default settings, at generation 1 with the first of the key pairs."""
    return CertAuthManager(key_pairs[0])


def mutual(
    key_pair: KeyPair, *, trusts: KeyPair | None = None, clock: Callable[[], datetime] | None = None
) -> CertAuthManager:
    """A manager that demands and verifies, trusting one certificate (by default its own) in both directions."""
    pool = CAPool((trusts or key_pair).chain)
    return CertAuthManager(
        key_pair,
        client_cas=pool,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=pool,
        clock=clock,
    )


def current(manager: CertManager) -> TLSContexts:
    """What a take yields now, without a run."""
    return trio.run(manager.contexts.receive)


async def reach(manager: CertManager, generation: int) -> None:
    """Wait for a generation, but not for ever."""
    with trio.fail_after(10):
        await manager.wait_generation(generation)


@contextmanager
def unchanged(manager: CertManager) -> Iterator[None]:
    """What happens inside leaves a manager exactly as it was."""
    published, generation, key_pair = publisher_of(manager).channel.current, manager.generation, manager.key_pair
    yield
    assert publisher_of(manager).channel.current is published
    assert manager.generation == generation
    assert manager.key_pair is key_pair


# Construction -------------------------------------------------------------------------------------------------------


def test_a_new_manager(key_pairs: list[KeyPair]) -> None:
    """A manager begins at generation 1, publishes its key pair, and by default authenticates no client."""
    manager = CertManager(key_pairs[0])
    contexts = current(manager)
    assert manager.generation == contexts.generation == 1
    assert manager.key_pair is contexts.key_pair is key_pairs[0]
    assert manager.client_auth is ClientAuth.NO_CLIENT_CERT
    assert manager.client_cas is None
    assert manager.root_cas is None
    assert manager.server_name is None


def test_a_manager_shows_its_generation_and_no_key(manager: CertAuthManager) -> None:
    """A manager's repr tells generation and certificate, nothing of the key."""
    assert repr(manager).startswith("<CertAuthManager generation 1: <KeyPair CN=made for a test (DNS:localhost;")
    assert "private" not in repr(manager).lower()


def test_wrong_types_are_refused_at_once(key_pairs: list[KeyPair]) -> None:
    """Settings that decide who gets in are checked for their type when they are given, not in some handshake."""
    good = key_pairs[0]
    for nonsense in (None, good.certificate, "key.pem", b"", (good, good)):
        with pytest.raises(TypeError, match="key_pair must be a KeyPair"):
            CertManager(cast("KeyPair", nonsense))
    pool = cast("CAPool", good.chain)
    with pytest.raises(TypeError, match="client_cas must be a CAPool"):
        CertAuthManager(good, client_cas=pool)
    with pytest.raises(TypeError, match="root_cas must be a CAPool"):
        CertAuthManager(good, root_cas=pool)
    with pytest.raises(TypeError, match="client_auth must be a ClientAuth"):
        CertAuthManager(good, client_auth=cast("ClientAuth", "REQUIRE_AND_VERIFY_CLIENT_CERT"))


def test_the_server_name_is_made_canonical(key_pairs: list[KeyPair]) -> None:
    """A server name is kept as lower-case A-labels without trailing dot, and one that is no name is refused."""
    assert CertAuthManager(key_pairs[0], server_name="Bücher.Example.").server_name == "xn--bcher-kva.example"
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        CertAuthManager(key_pairs[0], server_name="not a name")


def test_unusable_key_pairs_are_refused_on_use_not_on_construction() -> None:
    """Dates and purposes are checked at the first use: a manager may be made before its certificate is valid."""
    assert CertManager(make_key_pair(start=HOUR)).generation == 1


# Rotation -----------------------------------------------------------------------------------------------------------


async def test_update_publishes_the_next_generation(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Each successful update() is one generation more, and a take after it returned yields that generation."""
    before = await manager.contexts.receive()
    for generation in range(2, 12):
        key_pair = key_pairs[generation % 3]
        assert manager.update(key_pair) == generation
        taken = await manager.contexts.receive()
        assert manager.generation == taken.generation == generation
        assert manager.key_pair is taken.key_pair is key_pair
    assert before.generation == 1
    assert before.key_pair is key_pairs[0]


def test_updates_count_before_the_first_run(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """update() works and counts before any Trio run, and the first run begins with its outcome."""
    assert manager.update(key_pairs[1]) == 2
    assert manager.update(key_pairs[2]) == 3
    contexts = current(manager)
    assert contexts.generation == 3
    assert contexts.key_pair is key_pairs[2]


def test_the_same_key_pair_again_is_a_generation(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Generations count updates, not differences."""
    assert manager.update(key_pairs[0]) == 2


async def test_update_and_take_started_in_one_tick(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A receive() and an update() that start in the same scheduler tick: the take is the new one, in either order."""
    orders: Counter[tuple[str, ...]] = Counter()
    for count in range(ROUNDS):
        ran: list[str] = []
        taken: list[int] = []

        async def updater(ran: list[str] = ran, count: int = count) -> None:
            ran.append("update")
            manager.update(key_pairs[count % 3])
            await trio.lowlevel.checkpoint()

        async def taker(ran: list[str] = ran, taken: list[int] = taken) -> None:
            ran.append("take")
            taken.append((await manager.contexts.receive()).generation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(updater)
            nursery.start_soon(taker)
        orders[tuple(ran)] += 1
        # A take has its checkpoint first, so even the one that began before the update comes back after it.
        assert taken == [manager.generation] == [count + 2]
    assert set(orders) == {("update", "take"), ("take", "update")}


async def test_a_take_that_wakes_in_the_tick_of_the_update(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A take that wakes in the tick of an update yields what is published at its wake-up, in either order."""
    orders: Counter[tuple[str, ...]] = Counter()
    for count in range(ROUNDS):
        before = manager.generation
        ran: list[str] = []

        async def updater(ran: list[str] = ran, count: int = count) -> None:
            await trio.lowlevel.checkpoint()  # wakes in the next tick, as the taker does
            manager.update(key_pairs[count % 3])
            ran.append("update")

        async def taker(ran: list[str] = ran, before: int = before) -> None:
            taken = await manager.contexts.receive()
            # No checkpoint lies between the wake-up and here.
            ran.append("take")
            assert taken.generation == manager.generation == before + ("update" in ran)
            assert taken.key_pair is manager.key_pair

        async with trio.open_nursery() as nursery:
            nursery.start_soon(updater)
            nursery.start_soon(taker)
        orders[tuple(ran)] += 1
    assert set(orders) == {("update", "take"), ("take", "update")}


@pytest.mark.parametrize("seed", range(3))
async def test_many_takers_many_updates_and_cancellations(
    manager: CertAuthManager, key_pairs: list[KeyPair], seed: int
) -> None:
    """However takes, updates and cancellations interleave, no take is older than at its start or its wake-up.

    And nothing is lost: afterwards the manager still publishes, and takes still yield what it published.
    """
    rng = random.Random(seed)
    takers, updates = 20, 100
    scopes: dict[int, trio.CancelScope] = {}
    outcomes: Counter[str] = Counter()
    finished = False

    async def idle(longest: int) -> None:
        for _ in range(rng.randrange(longest)):
            await trio.lowlevel.checkpoint()

    async def taker(number: int) -> None:
        while not finished:
            with trio.CancelScope() as scopes[number]:
                await idle(3)
                at_start = manager.generation
                taken = await manager.contexts.receive()
                assert taken.generation >= at_start
                assert taken.generation == manager.generation
                assert taken.key_pair is manager.key_pair
                outcomes["moved on while taking" if taken.generation > at_start else "taken"] += 1
            outcomes["cancelled"] += scopes[number].cancelled_caught

    async def updater() -> None:
        nonlocal finished
        for _ in range(updates):
            await idle(4)
            for _ in range(rng.randrange(3)):
                manager.update(rng.choice(key_pairs))
        finished = True

    async def canceller() -> None:
        while not finished:
            await idle(3)
            for number in rng.sample(range(takers), k=3):
                scopes[number].cancel()

    with publisher_of(manager).use(as_server=True):
        async with trio.open_nursery() as nursery:
            for number in range(takers):
                nursery.start_soon(taker, number)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(updater)
            nursery.start_soon(canceller)

        assert min(outcomes[outcome] for outcome in ("taken", "moved on while taking", "cancelled")) > 20
        with trio.fail_after(5):
            last = await manager.contexts.receive()
            assert last.generation == manager.generation
            assert manager.update(key_pairs[0]) == last.generation + 1
            assert (await manager.contexts.receive()).generation == last.generation + 1


async def test_a_handshake_under_way_finishes_on_the_contexts_it_took(key_pairs: list[KeyPair]) -> None:
    """An update in the middle of a handshake changes nothing for it: both sides present what they took."""
    old, new, _ = key_pairs
    pool = CAPool((*old.chain, *new.chain))
    manager = CertAuthManager(
        old, client_cas=pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=pool
    )
    contexts = await manager.contexts.receive()
    server, client = contexts.server.session(), contexts.client.session(reference=HOST)
    assert not client.handshake()
    server.feed(client.outgoing())
    manager.update(new)
    assert not server.handshake()
    client.feed(server.outgoing())
    manager.update(new)
    assert client.handshake()
    server.feed(client.outgoing())
    assert server.handshake()
    assert client.peer_certificate == server.peer_certificate == old.certificate


# Failing updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "purposes", "reason"),
    [
        pytest.param(-DAY, -HOUR, (SERVER, CLIENT), CertificateReason.EXPIRED, id="expired"),
        pytest.param(HOUR, DAY, (SERVER, CLIENT), CertificateReason.NOT_YET_VALID, id="not yet valid"),
        pytest.param(-HOUR, DAY, (CLIENT,), CertificateReason.WRONG_EKU, id="no serverAuth"),
        pytest.param(-HOUR, DAY, (SERVER,), CertificateReason.WRONG_EKU, id="no clientAuth"),
        pytest.param(
            -HOUR, DAY, (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), CertificateReason.WRONG_EKU, id="any purpose"
        ),
    ],
)
async def test_a_failing_update_leaves_everything_as_it_was(
    key_pairs: list[KeyPair], start: timedelta, end: timedelta, purposes: Purposes, reason: CertificateReason
) -> None:
    """update() refuses an unusable key pair, and generation, key pair and published contexts stay."""
    manager = mutual(key_pairs[0])
    bad = make_key_pair(start=start, end=end, purposes=purposes)
    with publisher_of(manager).use(as_server=True), unchanged(manager):
        with pytest.raises(CertificateError) as info:
            manager.update(bad)
        assert info.value.reason is reason
        assert "made for a test" in str(info.value)
        assert (await manager.contexts.receive()).key_pair is key_pairs[0]
    assert manager.update(key_pairs[1]) == 2


async def test_update_refuses_what_is_no_key_pair(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """update() with the wrong type raises TypeError and leaves everything as it was."""
    for nonsense in (None, key_pairs[1].certificate, ("cert.pem", "key.pem")):
        with unchanged(manager), pytest.raises(TypeError, match="key_pair must be a KeyPair"):
            manager.update(cast("KeyPair", nonsense))


async def test_a_failing_update_wakes_nobody(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A task in wait_generation() sleeps through a failing update, and wakes with the next good one."""
    woke: list[int] = []

    async def wait() -> None:
        await reach(manager, 2)
        woke.append(manager.generation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CertificateError):
            manager.update(make_key_pair(end=-HOUR / 2))
        await trio.testing.wait_all_tasks_blocked()
        assert not woke
        manager.update(key_pairs[1])
    assert woke == [2]


async def test_purposes_count_where_they_are_needed(manager: CertAuthManager) -> None:
    """A purpose is demanded where it is needed: serverAuth under an acceptor, clientAuth where clients are verified."""
    client_only = make_key_pair(purposes=(CLIENT,))
    server_only = make_key_pair(purposes=(SERVER,))
    for _ in range(2):  # the second time after a use as a server has come and gone
        with publisher_of(manager).use(as_server=False):
            manager.update(client_only)
            manager.update(server_only)
        with publisher_of(manager).use(as_server=True):
            manager.update(server_only)
            with unchanged(manager), pytest.raises(CertificateError) as info:
                manager.update(client_only)
            assert info.value.reason is CertificateReason.WRONG_EKU
            assert "serverAuth" in str(info.value)


async def test_a_certificate_without_purposes_is_good_for_all() -> None:
    """Without the extended key usage extension, every purpose is allowed (RFC 5280)."""
    key_pair = make_key_pair(purposes=None)
    manager = mutual(key_pair)
    with publisher_of(manager).use(as_server=True):
        assert manager.update(key_pair) == 2


async def test_a_name_or_an_issuer_that_does_not_fit_is_no_reason_to_refuse(key_pairs: list[KeyPair]) -> None:
    """update() does not ask whether our own CAs vouch for a certificate or which names it covers: peers decide that."""
    manager = mutual(key_pairs[0])
    with publisher_of(manager).use(as_server=True):
        assert manager.update(make_key_pair(host="elsewhere.example")) == 2


def test_a_key_pair_that_openssl_does_not_take(manager: CertAuthManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL itself refuses is refused with its reason, and leaves everything as it was."""
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- below OpenSSL's security level is the point
    monkeypatch.setattr("trionode._credentials.key_pair._SMALLEST_RSA_BITS", 1024)
    now = datetime.now(UTC)
    certificate = make_certificate(key=weak, not_before=now - HOUR, not_after=now + DAY, purposes=None)
    key_pair = KeyPair([certificate], weak)
    with unchanged(manager), pytest.raises(CertificateError, match="key too small") as info:
        manager.update(key_pair)
    assert info.value.reason is CertificateReason.UNSUPPORTED_KEY
    with pytest.raises(CertificateError, match="key too small"):
        CertManager(key_pair)


# Uses ---------------------------------------------------------------------------------------------------------------


async def test_two_users_share_one_manager(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Two users at once take from one channel, see every rotation, and the first to leave takes nothing away."""
    taken: dict[str, list[int]] = {"early": [], "late": []}
    sequencer = trio.testing.Sequencer()

    async def early() -> None:
        with publisher_of(manager).use(as_server=True):
            async with sequencer(0), manager.contexts as contexts:
                taken["early"].append((await contexts.receive()).generation)

    async def late() -> None:
        with publisher_of(manager).use(as_server=True):
            async with sequencer(1):
                taken["late"].append((await manager.contexts.receive()).generation)
                manager.update(key_pairs[1])
                taken["late"].append((await manager.contexts.receive()).generation)
                with pytest.raises(FixedAtStartupError):
                    manager.set_server_name("other.example")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(early)
        nursery.start_soon(late)
    assert taken == {"early": [1], "late": [1, 2]}
    manager.set_server_name("other.example")


def test_successive_runs_share_one_manager(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """One manager serves nodes of successive Trio runs, and may be updated between them and from each of them."""

    async def use(key_pair: KeyPair) -> tuple[int, int]:
        with publisher_of(manager).use(as_server=True):
            before = (await manager.contexts.receive()).generation
            manager.update(key_pair)
            await reach(manager, before + 1)
            return before, (await manager.contexts.receive()).generation

    assert trio.run(use, key_pairs[1]) == (1, 2)
    assert manager.update(key_pairs[2]) == 3
    assert trio.run(use, key_pairs[0]) == (3, 4)


def test_a_run_that_crashed_leaves_the_manager_free(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A use and a wait that end by exception or cancellation are ended all the same."""

    async def crash() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reach, manager, 5)
            with publisher_of(manager).use(as_server=True):
                await trio.testing.wait_all_tasks_blocked()
                msg = "crash"
                raise ZeroDivisionError(msg)

    with pytest.RaisesGroup(ZeroDivisionError):
        trio.run(crash)
    manager.set_server_name("free.example")
    assert manager.update(key_pairs[1]) == 2


def test_a_use_needs_a_run(manager: CertAuthManager) -> None:
    """Outside a Trio run there is no use, and the attempt leaves no trace."""
    with pytest.raises(RuntimeError), publisher_of(manager).use(as_server=True):
        pytest.fail("entered")
    manager.set_server_name("free.example")


@pytest.mark.parametrize(
    ("start", "end", "purposes", "as_server", "reason"),
    [
        (-DAY, -HOUR, None, False, CertificateReason.EXPIRED),
        (HOUR, DAY, None, False, CertificateReason.NOT_YET_VALID),
        (-HOUR, DAY, (CLIENT,), True, CertificateReason.WRONG_EKU),
        (-HOUR, DAY, (SERVER,), False, CertificateReason.WRONG_EKU),
    ],
)
async def test_an_unusable_key_pair_is_refused_at_first_use(
    key_pairs: list[KeyPair],
    start: timedelta,
    end: timedelta,
    purposes: Purposes | None,
    as_server: bool,
    reason: CertificateReason,
) -> None:
    """A use is refused while the key pair is unusable, and possible once a good one has taken its place."""
    manager = mutual(make_key_pair(start=start, end=end, purposes=purposes))
    with pytest.raises(CertificateError) as info, publisher_of(manager).use(as_server=as_server):
        pytest.fail("entered")
    assert info.value.reason is reason
    manager.update(key_pairs[0])
    with publisher_of(manager).use(as_server=as_server):
        pass


@pytest.mark.parametrize("mode", [mode for mode in ClientAuth if mode.verifies])
async def test_a_mode_that_verifies_needs_client_cas(key_pairs: list[KeyPair], mode: ClientAuth) -> None:
    """A client-auth mode that verifies is refused at first use without client CAs; set them, and it works."""
    manager = CertAuthManager(key_pairs[0], client_auth=mode)
    for as_server in (False, True):
        with pytest.raises(CertificateError, match=f"{mode.name} .*client_cas") as info:
            with publisher_of(manager).use(as_server=as_server):
                pytest.fail("entered")
        assert info.value.reason is CertificateReason.NO_CLIENT_CAS
    manager.set_client_cas(CAPool(key_pairs[0].chain))
    with publisher_of(manager).use(as_server=True):
        pass


@pytest.mark.parametrize("mode", [mode for mode in ClientAuth if not mode.verifies])
async def test_a_mode_that_does_not_verify_needs_none(key_pairs: list[KeyPair], mode: ClientAuth) -> None:
    """The other modes do without client CAs."""
    manager = CertAuthManager(key_pairs[0], client_auth=mode)
    with publisher_of(manager).use(as_server=True):
        assert manager.update(key_pairs[1]) == 2


async def test_a_missing_client_purpose_is_a_warning(
    manager: CertAuthManager, key_pairs: list[KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    """A leaf without clientAuth is told of, once, where our own mode does not demand it."""
    caplog.set_level(logging.DEBUG, logger="trionode.certificates")

    def warnings() -> list[str]:
        shown = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(shown) == len(caplog.records)
        caplog.clear()
        return shown

    with publisher_of(manager).use(as_server=True):
        assert not warnings()
        manager.update(make_key_pair(purposes=(SERVER,)))
        [warning] = warnings()
        assert "does not allow clientAuth" in warning
        assert "made for a test" in warning
    with publisher_of(manager).use(as_server=False):
        assert not warnings()
        manager.update(key_pairs[0])
        assert not warnings()


# Threads and runs ---------------------------------------------------------------------------------------------------

NAMES_THE_WAY_OUT = r"trio\.from_thread\.run_sync"


def attempt(function: Callable[[], object]) -> RuntimeError | None:
    """The RuntimeError that a call raised, or None."""
    try:
        function()
    except RuntimeError as exc:
        return exc
    return None


def in_plain_thread(function: Callable[[], object]) -> RuntimeError | None:
    """The same, in a thread that Trio has nothing to do with."""
    outcomes: list[RuntimeError | None] = []
    thread = threading.Thread(target=lambda: outcomes.append(attempt(function)))
    thread.start()
    thread.join(timeout=10)
    return outcomes[0]


async def test_update_from_a_wrong_thread_is_refused(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """While in use a manager is updated by its Trio thread only: elsewhere RuntimeError, the way out, and no change."""
    with publisher_of(manager).use(as_server=False), unchanged(manager):
        for error in (
            await trio.to_thread.run_sync(attempt, lambda: manager.update(key_pairs[1])),
            await trio.to_thread.run_sync(in_plain_thread, lambda: manager.update(key_pairs[1])),
        ):
            assert isinstance(error, RuntimeError)
            assert re.search(NAMES_THE_WAY_OUT, str(error))
    assert await trio.to_thread.run_sync(manager.update, key_pairs[1]) == 2


async def test_update_from_a_wrong_thread_is_refused_before_the_key_pair_is_judged(manager: CertAuthManager) -> None:
    """The thread is checked first: a wrong one hears of that, whatever it brought."""
    with publisher_of(manager).use(as_server=False), unchanged(manager):
        with pytest.raises(RuntimeError, match=NAMES_THE_WAY_OUT):
            await trio.to_thread.run_sync(manager.update, make_key_pair(end=-HOUR / 2))


async def test_a_manager_belongs_to_its_run_until_the_last_use_has_ended(
    manager: CertAuthManager, key_pairs: list[KeyPair]
) -> None:
    """Other uses and waits that came and went meanwhile do not free a manager that is in use."""
    with publisher_of(manager).use(as_server=True):
        with publisher_of(manager).use(as_server=False):
            await manager.wait_generation(1)
        with unchanged(manager), pytest.raises(RuntimeError, match=NAMES_THE_WAY_OUT):
            await trio.to_thread.run_sync(manager.update, key_pairs[1])
    assert await trio.to_thread.run_sync(manager.update, key_pairs[1]) == 2


async def test_a_waiter_binds_a_manager_to_its_run(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """While somebody waits in wait_generation(), an update from another thread is refused: it could not wake them."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach, manager, 2)
        await trio.testing.wait_all_tasks_blocked()
        with unchanged(manager), pytest.raises(RuntimeError, match=NAMES_THE_WAY_OUT):
            await trio.to_thread.run_sync(manager.update, key_pairs[1])
        manager.update(key_pairs[1])
    assert await trio.to_thread.run_sync(manager.update, key_pairs[2]) == 3


async def test_update_by_way_of_from_thread(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """trio.from_thread.run_sync is the way to update a manager in use from a thread; waiters wake."""

    def rotate() -> int:
        return trio.from_thread.run_sync(manager.update, key_pairs[1])

    with publisher_of(manager).use(as_server=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reach, manager, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(rotate) == 2
        assert (await manager.contexts.receive()).key_pair is key_pairs[1]


async def test_the_way_out_that_the_error_names_works(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """The call that the RuntimeError spells out works from a thread that Trio did not start."""
    token = trio.lowlevel.current_trio_token()

    def rotate() -> None:
        trio.from_thread.run_sync(manager.update, key_pairs[1], trio_token=token)

    with publisher_of(manager).use(as_server=True):
        assert await trio.to_thread.run_sync(in_plain_thread, rotate) is None
        assert manager.generation == 2


async def test_a_second_concurrent_run_is_refused(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A manager in use by one Trio run cannot be used, waited for or updated by another, and the first goes on."""

    async def use() -> None:
        with publisher_of(manager).use(as_server=False):
            pytest.fail("entered")

    async def wait() -> None:
        await manager.wait_generation(1)

    async def update() -> None:
        await trio.lowlevel.checkpoint()
        manager.update(key_pairs[1])

    with publisher_of(manager).use(as_server=True):
        with unchanged(manager):
            for verb in (use, wait, update):
                with pytest.raises(RuntimeError, match="another"):
                    await trio.to_thread.run_sync(trio.run, verb)
        assert manager.update(key_pairs[1]) == 2
        assert (await manager.contexts.receive()).generation == 2
    await trio.to_thread.run_sync(trio.run, wait)


async def test_concurrent_updates_of_an_unused_manager_all_count(
    manager: CertAuthManager, key_pairs: list[KeyPair]
) -> None:
    """Unused, a manager may be updated from any thread: each update gets a generation of its own."""
    numbers: list[int] = []
    async with trio.open_nursery() as nursery:

        async def rotate() -> None:
            numbers.extend(await trio.to_thread.run_sync(lambda: [manager.update(key_pairs[1]) for _ in range(10)]))

        for _ in range(4):
            nursery.start_soon(rotate)
    assert sorted(numbers) == list(range(2, 42))
    assert manager.generation == 41


# Fixed at start-up --------------------------------------------------------------------------------------------------

Setter: TypeAlias = "Callable[[CertAuthManager, KeyPair], None]"

setters = pytest.mark.parametrize(
    ("setter", "attribute"),
    [
        pytest.param(lambda m, k: m.set_client_cas(CAPool(k.chain)), "client_cas", id="set_client_cas"),
        pytest.param(
            lambda m, _: m.set_client_auth(ClientAuth.REQUEST_CLIENT_CERT), "client_auth", id="set_client_auth"
        ),
        pytest.param(lambda m, k: m.set_root_cas(CAPool(k.chain)), "root_cas", id="set_root_cas"),
        pytest.param(lambda m, _: m.set_server_name("other.example"), "server_name", id="set_server_name"),
    ],
)


@setters
async def test_settings_are_fixed_while_in_use(
    manager: CertAuthManager, key_pairs: list[KeyPair], setter: Setter, attribute: str
) -> None:
    """Each setter raises FixedAtStartupError, with the remedy, until the last use has ended; then it works again."""
    before = getattr(manager, attribute)
    with publisher_of(manager).use(as_server=True):
        with publisher_of(manager).use(as_server=False):
            pass
        with unchanged(manager), pytest.raises(FixedAtStartupError, match="restart the node"):
            setter(manager, key_pairs[1])
        assert getattr(manager, attribute) == before
        manager.update(key_pairs[1])
        assert getattr(manager, attribute) == before
    setter(manager, key_pairs[1])
    assert getattr(manager, attribute) != before


@setters
async def test_setters_are_no_generations(
    manager: CertAuthManager, key_pairs: list[KeyPair], setter: Setter, attribute: str
) -> None:
    """A setter publishes contexts of the same generation, which the next take yields; updates keep the setting."""
    before = await manager.contexts.receive()
    setter(manager, key_pairs[1])
    after = await manager.contexts.receive()
    assert after is not before
    assert after.generation == manager.generation == 1
    assert after.key_pair is before.key_pair
    setting = getattr(manager, attribute)
    assert manager.update(key_pairs[2]) == 2
    assert getattr(manager, attribute) == setting


def test_the_client_cas_take_effect(key_pairs: list[KeyPair]) -> None:
    """After set_client_cas() other clients get in, the earlier ones do not."""
    ours, theirs, _ = key_pairs
    server, client = mutual(ours), mutual(theirs, trusts=ours)
    refused = shake_hands(current(server), current(client)).server
    assert isinstance(refused, PeerUnverifiedError)
    assert refused.reason is UnverifiedReason.UNKNOWN_CA
    server.set_client_cas(CAPool(theirs.chain))
    assert shake_hands(current(server), current(client)).verified == (True, True)
    assert isinstance(shake_hands(current(server), current(server)).server, PeerUnverifiedError)


def test_the_client_auth_mode_takes_effect(key_pairs: list[KeyPair]) -> None:
    """After set_client_auth() clients are asked or not asked, verified or not, as the new mode says."""
    manager = mutual(key_pairs[0])
    assert shake_hands(current(manager), current(manager)).verified == (True, True)
    manager.set_client_auth(ClientAuth.NO_CLIENT_CERT)
    ending = shake_hands(current(manager), current(manager))
    assert ending.server is None
    assert ending.client is None
    assert ending.server_session.peer_certificate is None
    assert ending.verified == (False, True)


def test_the_root_cas_take_effect(key_pairs: list[KeyPair]) -> None:
    """After set_root_cas() other servers are trusted."""
    ours, theirs, _ = key_pairs
    server, client = CertAuthManager(theirs), CertAuthManager(ours, root_cas=CAPool(ours.chain))
    refused = shake_hands(current(server), current(client)).client
    assert isinstance(refused, PeerUnverifiedError)
    assert refused.reason is UnverifiedReason.UNKNOWN_CA
    client.set_root_cas(CAPool(theirs.chain))
    assert shake_hands(current(server), current(client)).verified == (False, True)


def test_the_server_name_takes_effect(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """set_server_name() is what connectors find on the contexts they take; None takes it back."""
    manager.set_server_name("Other.Example")
    assert current(manager).client.server_name == "other.example"
    manager.update(key_pairs[1])
    assert current(manager).client.server_name == "other.example"
    manager.set_server_name(None)
    assert current(manager).client.server_name is None


def test_setters_refuse_nonsense(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Setters check types and names as the constructor does, and leave everything as it was."""
    with unchanged(manager):
        for setter in (manager.set_client_cas, manager.set_root_cas):
            with pytest.raises(TypeError, match="must be a CAPool"):
                setter(cast("CAPool", key_pairs[0].chain))
        with pytest.raises(TypeError, match="must be a ClientAuth"):
            manager.set_client_auth(cast("ClientAuth", 4))
        with pytest.raises(ValueError, match="neither a DNS name"):
            manager.set_server_name("a b")


# wait_generation ----------------------------------------------------------------------------------------------------


async def test_waiting_for_what_is_there(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A generation that was reached already is a checkpoint."""
    manager.update(key_pairs[1])
    for generation in (2, 1, 0):
        with trio.testing.assert_checkpoints():
            await manager.wait_generation(generation)


async def test_several_waiters(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Each waiter wakes once its generation, or a later one, is published, and not before."""
    woke: list[tuple[int, int]] = []

    async def wait(generation: int) -> None:
        await reach(manager, generation)
        woke.append((generation, manager.generation))

    async with trio.open_nursery() as nursery:
        for generation in (2, 2, 3, 4):
            nursery.start_soon(wait, generation)
        await trio.testing.wait_all_tasks_blocked()
        assert not woke
        manager.update(key_pairs[1])
        await trio.testing.wait_all_tasks_blocked()
        assert woke == [(2, 2), (2, 2)]
        manager.update(key_pairs[2])
        await trio.testing.wait_all_tasks_blocked()
        assert woke[2:] == [(3, 3)]
        manager.update(key_pairs[0])
    assert woke[3:] == [(4, 4)]


async def test_several_generations_at_once(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """A waiter whose generation is jumped over, several in one tick, wakes all the same."""
    woke: list[tuple[int, int]] = []

    async def wait(generation: int) -> None:
        await reach(manager, generation)
        woke.append((generation, manager.generation))

    async with trio.open_nursery() as nursery:
        for generation in (2, 3, 4):
            nursery.start_soon(wait, generation)
        await trio.testing.wait_all_tasks_blocked()
        for key_pair in key_pairs:
            manager.update(key_pair)
    assert sorted(woke) == [(2, 4), (3, 4), (4, 4)]


async def test_an_update_in_the_tick_in_which_the_wait_begins(
    manager: CertAuthManager, key_pairs: list[KeyPair]
) -> None:
    """No wake-up is lost where wait and update start in the same scheduler tick, in either order."""
    orders: Counter[tuple[str, ...]] = Counter()
    for count in range(ROUNDS):
        ran: list[str] = []

        async def wait(ran: list[str] = ran, count: int = count) -> None:
            ran.append("wait")
            await reach(manager, count + 2)

        async def update(ran: list[str] = ran, count: int = count) -> None:
            ran.append("update")
            manager.update(key_pairs[count % 3])
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(update)
        orders[tuple(ran)] += 1
    assert set(orders) == {("wait", "update"), ("update", "wait")}


async def test_a_cancelled_waiter(manager: CertAuthManager, key_pairs: list[KeyPair]) -> None:
    """Cancelling one waiter leaves the others waiting and gives its claim on the manager back."""
    woke: list[str] = []

    async def wait() -> None:
        await reach(manager, 2)
        woke.append("stayed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            async with trio.open_nursery() as inner:
                inner.start_soon(reach, manager, 2)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert not woke
        manager.update(key_pairs[1])
    assert woke == ["stayed"]

    with trio.move_on_after(0):
        await manager.wait_generation(99)
    assert await trio.to_thread.run_sync(manager.update, key_pairs[2]) == 3


# The clock ----------------------------------------------------------------------------------------------------------


async def test_the_clock_decides_what_is_usable(key_pairs: list[KeyPair]) -> None:
    """Uses and updates judge dates by the injected clock, in whatever zone it speaks."""
    clock = Clock()
    manager = mutual(key_pairs[0], clock=clock)
    with publisher_of(manager).use(as_server=True):
        clock.now += 2 * DAY
        with unchanged(manager), pytest.raises(CertificateError) as info:
            manager.update(key_pairs[1])
        assert info.value.reason is CertificateReason.EXPIRED
        assert f"our clock says {clock.now:%Y-%m-%d %H:%M:%S} UTC" in str(info.value)
        assert manager.update(make_key_pair(start=DAY, end=3 * DAY)) == 2
    clock.now -= 4 * DAY
    with pytest.raises(CertificateError) as info, publisher_of(manager).use(as_server=True):
        pytest.fail("entered")
    assert info.value.reason is CertificateReason.NOT_YET_VALID


@pytest.mark.parametrize(
    ("shift", "reason", "code"),
    [
        (2 * DAY, UnverifiedReason.EXPIRED, RejectionCode.CERTIFICATE_EXPIRED),
        (-2 * DAY, UnverifiedReason.NOT_YET_VALID, RejectionCode.BAD_CERTIFICATE),
    ],
)
@pytest.mark.parametrize("refusing", ["server", "client"])
def test_the_clock_reaches_openssl(
    key_pairs: list[KeyPair], refusing: str, shift: timedelta, reason: UnverifiedReason, code: RejectionCode
) -> None:
    """A handshake judges the peer's dates by the injected clock, and the peer hears of it as an alert."""
    clock = Clock()
    judge, judged = mutual(key_pairs[0], clock=clock), mutual(key_pairs[0])
    clock.now += shift
    if refusing == "server":
        ending = shake_hands(current(judge), current(judged))
        refusal, alert = ending.server, ending.client
    else:
        ending = shake_hands(current(judged), current(judge))
        refusal, alert = ending.client, ending.server
    assert isinstance(refusal, PeerUnverifiedError)
    assert refusal.reason is reason
    assert refusal.certificate == key_pairs[0].certificate
    assert f"our clock says {clock.now:%Y-%m-%d %H:%M:%S} UTC" in str(refusal)
    assert isinstance(alert, PeerRejectedError)
    assert alert.code is code


@pytest.mark.parametrize("refusing", ["server", "client"])
def test_the_clock_moves_under_published_contexts(key_pairs: list[KeyPair], refusing: str) -> None:
    """Contexts that were used before judge by the clock as it is now, not as it was when they were first used."""
    clock = Clock()
    judge, judged = mutual(key_pairs[0], clock=clock), mutual(key_pairs[0])
    server, client = (judge, judged) if refusing == "server" else (judged, judge)
    ours, theirs = current(server), current(client)
    for shift, passes in ((0, True), (2, False), (0, True), (-2, False), (0, True)):
        clock.now = datetime.now(UTC) + shift * DAY
        ending = shake_hands(ours, theirs)
        assert ending.verified == (True, True) if passes else isinstance(getattr(ending, refusing), PeerUnverifiedError)


def test_without_a_clock_the_machine_decides() -> None:
    """Without an injected clock OpenSSL judges by the machine's time, and so do we."""
    expired = make_key_pair(start=-DAY, end=-HOUR)
    manager = mutual(expired)
    refused = shake_hands(current(manager), current(manager)).client
    assert isinstance(refused, PeerUnverifiedError)
    assert refused.reason is UnverifiedReason.EXPIRED


# The system's CAs ---------------------------------------------------------------------------------------------------


def test_the_system_cas_are_loaded_when_a_dial_needs_them(
    key_pairs: list[KeyPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With root_cas=None the system's CAs are loaded by the first dial of a generation that verifies, and only then."""
    loads: list[None] = []

    def system(cls: type[CAPool]) -> CAPool:
        loads.append(None)
        return cls(key_pairs[0].chain)

    monkeypatch.setattr(CAPool, "system", classmethod(system))
    manager = CertManager(key_pairs[0])
    manager.update(key_pairs[0])
    contexts = current(manager)
    contexts.server.session()
    contexts.client.session(reference=HOST, insecure_skip_verify=True)
    assert not loads
    assert shake_hands(contexts, contexts).verified == (False, True)
    assert shake_hands(contexts, contexts).verified == (False, True)
    assert len(loads) == 1


def test_pools_of_ones_own_keep_the_system_out(key_pairs: list[KeyPair], monkeypatch: pytest.MonkeyPatch) -> None:
    """With root CAs given, the system's are never looked at."""
    monkeypatch.setattr(CAPool, "system", lambda: pytest.fail("looked"))
    manager = mutual(key_pairs[0])
    manager.update(key_pairs[0])
    assert shake_hands(current(manager), current(manager)).verified == (True, True)


def test_a_machine_without_cas(key_pairs: list[KeyPair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no CAs, the dial that needs them says so; serving does not need them."""

    def system(cls: type[CAPool]) -> CAPool:
        return cls([])

    monkeypatch.setattr(CAPool, "system", classmethod(system))
    contexts = current(CertManager(key_pairs[0]))
    contexts.server.session()
    with pytest.raises(CertificateError) as info:
        contexts.client.session(reference=HOST)
    assert info.value.reason is CertificateReason.NO_CERTIFICATE
