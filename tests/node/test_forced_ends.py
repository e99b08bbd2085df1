"""Forced ends: they are over in bounded time, what is closing counts, and nothing runs for a peer without trust."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode import (
    CertAuthManager,
    ClientAuth,
    ConnectionDown,
    EndReason,
    LiveConnections,
    Renew,
    _protocol as wire,
)
from trionode._connection.core import FORCED_GRACE
from trionode._identity.describe import describe
from trionode._node.runtime import _MAX_RETIRING
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, ScriptedFactory, ScriptedPeer

    from trionode import ServiceChannel

    Dial = Callable[..., Awaitable[ScriptedPeer]]

CA = CertificateAuthority.create()


class Work:
    """A service that takes its time over each message, and notes what it began and what was cancelled."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""
        job = await channel.receive()
        self.begun.append(job)
        try:
            await trio.sleep(0.3)
        except trio.Cancelled:
            self.cancelled.append(job)
            raise


async def hand_over_jobs(peer: ScriptedPeer, count: int) -> None:
    """Open channels, send each a job and close it cleanly, as a caller does that wants no answer."""
    for number in range(count):
        channel = 2 * number + 1
        await peer.stream.send_all(
            wire.control(wire.OPEN, channel, wire.Open(service="work"))
            + wire.header(wire.MESSAGE, channel, 1)
            + b"%d" % number
            + wire.header(wire.CLOSE, channel, 0)
        )


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 -- it has no event
            await trio.sleep(0.001)


# Trust that was withdrawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True], ids=["connected", "gone"])
async def test_nothing_runs_for_a_peer_that_was_revoked(node: NodeFactory, scripted_dial: Dial, *, gone: bool) -> None:
    """What waits never begins, what runs is cancelled, though it was handed over cleanly; also after the connection."""
    theirs, work = CA.issue("alpha@localhost"), Work()
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    certs = CertAuthManager(
        CA.issue("beta@localhost"), client_cas=CA.pool, root_cas=CA.pool, client_auth=mode, crls=CA.revocation_list()
    )
    async with node("beta@localhost", certs, services={"work": work}, max_channels=1) as beta:
        peer = await scripted_dial(beta, CertAuthManager(theirs, client_cas=CA.pool, root_cas=CA.pool))
        await peer.introduce("alpha@localhost")
        await hand_over_jobs(peer, 4)
        await until(lambda: work.begun)
        if gone:
            await peer.stream.send_all(wire.control(wire.GOODBYE, 0, wire.Goodbye(code="closed")))
            await peer.stream.aclose()
            await until(lambda: not beta.statistics().connections)
        assert not work.cancelled
        certs.rotate_trust(crls=CA.revocation_list(theirs.certificate))
        await until(lambda: not beta.statistics().services)
        assert (work.begun, work.cancelled) == ([b"0"], [b"0"])
        await trio.aclose_forcefully(peer.stream)
        await until(lambda: not certs.statistics().live_generations)


async def test_nothing_runs_for_a_peer_whose_certificate_has_ended(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Dial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the node closes connections that end: also what was left of one that had closed before."""
    monkeypatch.setattr("trionode._node.renewal.LOOK_AT_CLOCK", 0.01)
    late, work = timedelta(), Work()
    certs = manager("beta@localhost", clock=lambda: datetime.now(UTC) + late)
    expiry = LiveConnections(on_expiry=Renew.CLOSE, expiry_lead=0)
    async with node("beta@localhost", certs, services={"work": work}, max_channels=1, live_connections=expiry) as beta:
        theirs = manager("alpha@localhost", not_after=datetime.now(UTC) + timedelta(hours=1))
        peer = await scripted_dial(beta, theirs)
        await peer.introduce("alpha@localhost")
        await hand_over_jobs(peer, 3)
        await until(lambda: work.begun)
        await peer.stream.send_all(wire.control(wire.GOODBYE, 0, wire.Goodbye(code="closed")))
        await peer.stream.aclose()
        await until(lambda: not beta.statistics().connections)
        late = timedelta(hours=2)
        await until(lambda: not beta.statistics().services)
    assert (work.begun, work.cancelled) == ([b"0"], [b"0"])


async def test_what_outlives_a_connection_is_finished_where_trust_goes_on(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Dial
) -> None:
    """And then nothing is kept of the peer."""
    certs, work = manager("beta@localhost"), Work()
    async with node("beta@localhost", certs, services={"work": work}, max_channels=2) as beta:
        peer = await scripted_dial(beta, manager("alpha@localhost"))
        await peer.introduce("alpha@localhost")
        await hand_over_jobs(peer, 3)
        await until(lambda: len(work.begun) == 2)
        await peer.stream.send_all(wire.control(wire.GOODBYE, 0, wire.Goodbye(code="closed")))
        await peer.stream.aclose()
        await until(lambda: not beta.statistics().connections)
        assert beta.statistics().services == 2
        await until(lambda: not beta.statistics().services)
        assert sorted(work.begun) == [b"0", b"1", b"2"]
        assert not work.cancelled
        assert not certs.statistics().live_generations
        assert not beta._runtime._attached


async def test_a_peer_without_trust_is_told_of_its_own_certificate_only(node: NodeFactory, scripted_dial: Dial) -> None:
    """Our pools, and what our operator should do, are not its business; our own log and event say everything."""
    theirs = CA.issue("alpha@localhost")
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    certs = CertAuthManager(
        CA.issue("beta@localhost"), client_cas=CA.pool, root_cas=CA.pool, client_auth=mode, crls=CA.revocation_list()
    )
    async with node("beta@localhost", certs) as beta, beta.events() as events:
        peer = await scripted_dial(beta, CertAuthManager(theirs, client_cas=CA.pool, root_cas=CA.pool))
        await peer.introduce("alpha@localhost")
        await until(lambda: beta.connections)
        certs.rotate_trust(crls=CA.revocation_list(theirs.certificate))
        _, _, payload = await peer.frame(wire.GOODBYE)
        await trio.aclose_forcefully(peer.stream)
        said = wire.decode(wire.Goodbye, payload)
        assert said.code == EndReason.UNVERIFIED
        assert said.message.startswith("your certificate is not trusted any more, revoked: CN=alpha@localhost (")
        ours = ""
        while not ours:
            event = await events.receive()
            ours = str(event.error) if isinstance(event, ConnectionDown) else ""
    assert "client certificate refused" in ours
    told = said.message.replace(describe(theirs.certificate), "")
    assert told == "your certificate is not trusted any more, revoked: "


# Bounds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason.value not in ("closed", "shutting_down")])
@pytest.mark.usefixtures("jumping_clock")
async def test_a_forced_end_is_over_in_time(scripted: ScriptedFactory, reason: EndReason) -> None:
    """Though the peer takes a little now and then, as often as it takes to be waited for."""
    ways: list[Drip] = []

    def drip(stream: trio.abc.Stream) -> Drip:
        ways.append(Drip(stream))
        return ways[-1]

    async with scripted(transport=drip) as scene:
        ways[0].pace = 0.5
        for _ in range(100):
            scene.core.outbox.append(wire.header(wire.PING, 0, 8), bytes(8000)[:8])
        began = trio.current_time()
        scene.core.outbox.append(bytes(1_000_000))
        scene.core.end(reason)
        await scene.connection.wait_closed()
        assert trio.current_time() - began <= FORCED_GRACE + 1


class Drip(trio.abc.Stream):
    """A way that takes a kilobyte at a time, at some pace."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.pace = 0.0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, slowly."""
        for start in range(0, len(data), 1024):
            if self.pace:
                await trio.sleep(self.pace)
            await self._stream.send_all(bytes(data[start : start + 1024]))

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As the stream."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """As the stream."""
        await self._stream.aclose()


async def test_unverified_peers_that_are_closing_count(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Dial
) -> None:
    """None that is turned out stays, though it does not go: there are never more than `max_unverified`."""
    certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    async with node("beta@localhost", certs, max_unverified=2, heartbeat_interval=math.inf) as beta:
        peers = []
        for number in range(8):
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            await peer.introduce("alpha@localhost", incarnation=number, verified=False)
            peers.append(peer)
            # The newest is there, so the one that it displaced has had its turn; it does not read, and does not leave.
            await until(lambda: beta.statistics().handshakes and len(beta._runtime._unverified) <= 2)
            assert len([each for each in beta._runtime.running if not each.ended]) <= 2
        await until(lambda: beta.statistics().connections == 2)
        _, _, payload = await peers[0].frame(wire.GOODBYE)
        assert wire.decode(wire.Goodbye, payload).code == EndReason.LIMIT
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)


async def test_those_that_a_peer_makes_us_close_count(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified peer that breaks the protocol over and over, and does not leave, holds so many and no more."""
    monkeypatch.setattr("trionode._node.runtime._MAX_RETIRING", 3)
    async with node("beta@localhost") as beta:
        peers = []
        for _ in range(7):
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            await peer.introduce("alpha@localhost")
            await peer.stream.send_all(wire.header(wire.SWITCH, 0, 0))
            peers.append(peer)
            await peer.frame(wire.GOODBYE)
            await until(lambda: beta.statistics().connections <= 3)
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)
    assert _MAX_RETIRING == 32
