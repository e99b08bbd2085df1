"""The test kit does what its users' tests rely on, as fixtures and as plain functions, and fails when it should."""

from __future__ import annotations

import math
import os
import re
import ssl
import subprocess
import sys
import tomllib
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography import x509

import trionode
from trionode import (
    CertAuthManager,
    CertificateError,
    CertificateReason,
    EndReason,
    HandshakeError,
    KeyPair,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Renew,
    Route,
    Stage,
    UnverifiedReason,
    open_tls_stream,
    serve_tls,
)
from trionode.pki import write_ca_pool
from trionode.testing import (
    CertificateZoo,
    MemoryNetwork,
    certificate_clock,
    certificate_zoo,
    cluster_ca,
    expect_refusal,
    expect_refusal_at,
    node_factory,
    present_anyway,
    rotate_during_handshake,
    trio_clock,
    wait_for_generation,
)

if TYPE_CHECKING:
    from trionode import Node, ServiceChannel
    from trionode.pki import CertificateAuthority

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
#: What runs in a process of its own is bounded by this. Seconds.
PATIENCE = 60
NAME = "zoo@zoo.test"


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    """The CA of the zoo."""
    return cluster_ca()


@pytest.fixture(scope="module")
def zoo(authority: CertificateAuthority) -> CertificateZoo:
    """One zoo for all."""
    return certificate_zoo(authority, NAME)


# The zoo ------------------------------------------------------------------------------------------------------------

U, R = UnverifiedReason, RejectionCode
#: What a dialer says of a server that presents it, and what an acceptor says of a client; each with what that is told.
ANIMALS = {
    "expired": ((U.EXPIRED, R.CERTIFICATE_EXPIRED), (U.EXPIRED, R.CERTIFICATE_EXPIRED)),
    "not_yet_valid": ((U.NOT_YET_VALID, R.BAD_CERTIFICATE), (U.NOT_YET_VALID, R.BAD_CERTIFICATE)),
    "wrong_ca": ((U.UNKNOWN_CA, R.UNKNOWN_CA), (U.UNKNOWN_CA, R.UNKNOWN_CA)),
    "wrong_name": ((U.NAME_MISMATCH, R.INTERNAL_ERROR), (U.CLAIMED_NAME, R.CLAIMED_NAME)),
    "no_san": ((U.NAME_MISMATCH, R.INTERNAL_ERROR), (U.CLAIMED_NAME, R.CLAIMED_NAME)),
    "wrong_eku": ((U.WRONG_EKU, R.UNSUPPORTED_CERTIFICATE), (U.WRONG_EKU, R.UNSUPPORTED_CERTIFICATE)),
    "revoked": ((U.REVOKED, R.CERTIFICATE_REVOKED), (U.REVOKED, R.CERTIFICATE_REVOKED)),
}
#: What their own manager says of them.
AT_HOME = {"expired": "expired", "not_yet_valid": "not_yet_valid", "wrong_eku": "wrong_eku"}


def test_the_whole_zoo_is_looked_at(zoo: CertificateZoo) -> None:
    """No animal is left out of the tables here, nor of the one in the docstring."""
    animals = {name for name in CertificateZoo.__slots__ if name not in ("name", "crls")}
    assert animals == {*ANIMALS, "good", "weak_key"}
    assert CertificateZoo.__doc__ is not None
    for animal, ((dialer, told), (acceptor, _)) in ANIMALS.items():
        [row] = re.findall(rf"^ *\| `{animal}`.*$", CertificateZoo.__doc__, re.MULTILINE)
        _, _, home, by_dialer, by_acceptor, is_told, _ = (cell.strip().replace("`", "") for cell in row.split("|"))
        assert (home, by_dialer, by_acceptor) == (AT_HOME.get(animal, ""), dialer, acceptor)
        assert is_told.startswith((told, "likewise"))


@pytest.mark.parametrize("animal", ANIMALS)
async def test_each_animal_is_refused_for_its_defect_by_who_dials_and_by_who_accepts(
    authority: CertificateAuthority, zoo: CertificateZoo, autojump_clock: trio.testing.MockClock, animal: str
) -> None:
    """Real nodes: the good certificate passes both ways, the bad one neither, and both ends say the right thing."""
    (by_dialer, dialer_tells), (by_acceptor, acceptor_tells) = ANIMALS[animal]
    nodes = node_factory(authority)
    strict = nodes.manager("strict", crls=zoo.crls)
    async with nodes("strict", certs=strict) as other, nodes(NAME, certs=nodes.manager(NAME, key_pair=zoo.good)) as own:
        for dialer, acceptor in ((own, other), (other, own)):
            await (await dialer.connect(acceptor.name)).aclose()
        assert present_anyway(own, getattr(zoo, animal)) == 2
        async with expect_refusal_at(own, dialer_tells) as told:
            with expect_refusal(by_dialer) as refusal:
                await other.connect(own.name)
        assert isinstance(refusal.error, PeerUnverifiedError)
        assert refusal.error.certificate == getattr(zoo, animal).certificate
        assert isinstance(told.error, PeerRejectedError)
        async with expect_refusal_at(other, by_acceptor) as noticed:
            with expect_refusal(acceptor_tells):
                await own.connect(other.name)
        assert noticed.error.stage in (Stage.TLS, Stage.HELLO)


@pytest.mark.parametrize("animal", ["good", *ANIMALS])
def test_what_its_own_manager_says_of_an_animal(
    authority: CertificateAuthority, zoo: CertificateZoo, animal: str
) -> None:
    """Some are refused at home already."""
    manager = node_factory(authority).manager(NAME, key_pair=zoo.good)
    if animal in AT_HOME:
        with pytest.raises(CertificateError) as caught:
            manager.update(getattr(zoo, animal))
        assert caught.value.reason == AT_HOME[animal]
    else:
        assert manager.update(getattr(zoo, animal)) == 2


def test_the_weak_key_is_refused_when_it_is_read(zoo: CertificateZoo) -> None:
    """RSA with 1024 bits gets nowhere; certificate and key do belong together."""
    with pytest.raises(CertificateError, match="1024 bits") as caught:
        KeyPair.from_pem(*zoo.weak_key)
    assert caught.value.reason is CertificateReason.UNSUPPORTED_KEY
    assert "PRIVATE" not in repr(zoo)


async def test_a_peer_with_the_weak_key_is_refused_in_both_directions(
    authority: CertificateAuthority, zoo: CertificateZoo, tmp_path: Path
) -> None:
    """Whoever has lowered their own standards for it, here Python's `ssl`, does not lower ours."""
    files = tmp_path / "weak.pem", tmp_path / "weak.key", tmp_path / "ca.crt"
    for file, content in zip(files, zoo.weak_key, strict=False):
        file.write_bytes(content)
    write_ca_pool(authority.pool, files[2])
    nodes = node_factory(authority, tcp=True)
    with trio.fail_after(PATIENCE):
        async with nodes("strict") as node:
            context = ssl.create_default_context(cafile=files[2])
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.load_cert_chain(*files[:2])
            context.set_alpn_protocols([trionode._protocol.ALPN])
            async with expect_refusal_at(node, U.BAD_CHAIN) as refusal:
                transport = await trio.open_tcp_stream(*node.acceptors[0].address)
                async with trio.SSLStream(transport, context, server_hostname="strict.test") as stream:
                    with suppress(trio.BrokenResourceError):
                        await stream.receive_some()
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.load_cert_chain(*files[:2])

            async def answer(transport: trio.SocketStream) -> None:
                with suppress(trio.BrokenResourceError):
                    await trio.SSLStream(transport, context, server_side=True).do_handshake()

            async with trio.open_nursery() as nursery:
                [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), answer, 0)
                port = listener.socket.getsockname()[1]
                with expect_refusal(U.BAD_CHAIN) as refused:
                    await node.connect(NAME, Route(host="127.0.0.1", port=port))
                nursery.cancel_scope.cancel()
        for error in refusal.error, refused.error:
            assert "code 66" in str(error)  # X509_V_ERR_EE_KEY_TOO_SMALL (x509_vfy.h)


def test_a_zoo_of_a_ca_with_an_intermediate_and_a_clock() -> None:
    """Chains are whole, and dates are relative to the CA's clock."""
    now = datetime(2031, 5, 1, tzinfo=UTC)
    ca = trionode.pki.CertificateAuthority.create(intermediate=True, clock=lambda: now)
    zoo = certificate_zoo(ca, NAME)
    assert zoo.expired.certificate.not_valid_after_utc == now - DAY
    assert zoo.not_yet_valid.certificate.not_valid_before_utc == now + DAY
    assert zoo.no_san.chain[1] == ca.intermediate
    assert len(x509.load_pem_x509_certificates(zoo.weak_key.cert_pem)) == 2
    assert str(zoo.name) == NAME


# Nodes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_cluster_in_one_line(tcp: bool) -> None:
    """Each has a certificate for its name, each reaches each, in memory or by TCP."""
    nodes = node_factory(tcp=tcp)
    with trio.fail_after(PATIENCE):
        async with nodes.cluster("alpha", "beta", "gamma@g.test", services={"echo": echo}) as opened:
            assert [str(node.name) for node in opened] == ["alpha@alpha.test", "beta@beta.test", "gamma@g.test"]
            for one in opened:
                for other in opened:
                    if one is not other:
                        assert await one.call(other.name, "echo", b"x") == b"x"
                        assert one.connections[other.name].peer.verified
            assert "gamma@g.test" in repr(nodes)
            assert ("TCP" in repr(nodes)) == tcp
    assert "gamma" not in repr(nodes)
    if nodes.network is not None:
        assert not nodes.network.open_streams


async def test_a_node_that_comes_back_is_found_again(autojump_clock: trio.testing.MockClock) -> None:
    """Routes follow: a connector finds its peer where that listens now."""
    nodes = node_factory()
    async with nodes("alpha") as alpha:
        alpha.keep_connected("beta@beta.test")
        ports = set()
        for _ in range(2):
            async with nodes("beta") as beta:
                await alpha.wait_connected("beta@beta.test")
                ports.add(beta.acceptors[0].address)
        assert len(ports) == 2
        with pytest.raises(HandshakeError, match="refused"):
            await alpha.connect("beta@beta.test")


async def test_nodes_on_one_host_and_of_one_name(autojump_clock: trio.testing.MockClock) -> None:
    """Ports tell them apart; who drains, or does not listen, is no trouble to those that come later."""
    nodes = node_factory()
    async with nodes.cluster("alpha@a.test", "beta@a.test", services={"echo": echo}) as (alpha, beta):
        async with nodes("alpha@a.test"), nodes("shy", network=NetworkOptions(mode=NetworkMode.HIDDEN)) as shy:
            assert await shy.call(beta.name, "echo", b"x") == b"x"
            await alpha.drain()
            async with nodes("late") as late:
                assert await late.call(beta.name, "echo", b"x") == b"x"


async def test_what_a_node_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """Options reach it; those that are given are left alone."""
    network = MemoryNetwork()
    other = MemoryNetwork()
    nodes = node_factory(network=network)
    asked: list[trionode.Peer] = []
    certs = nodes.manager("alpha")
    async with (
        nodes("alpha", certs=certs, network=NetworkOptions(transport=other.host("alpha.test"))) as alpha,
        nodes("beta", authorize=asked.append, live_connections=LiveConnections(grace=7)) as beta,
    ):
        assert alpha.options.cert_manager is certs
        assert alpha.options.network.transport is other.host("alpha.test")
        assert beta.options.network.transport is network.host("beta.test")
        assert beta.options.live_connections.grace == 7
    with pytest.raises(ValueError, match="MemoryNetwork or on TCP"):
        node_factory(network=network, tcp=True)


async def test_a_day_in_no_time(autojump_clock: trio.testing.MockClock) -> None:
    """Certificates age by the injected clock: what rotates goes on, what does not is refused."""
    clock = trio_clock(datetime(2031, 1, 1, tzinfo=UTC))
    nodes = node_factory(clock=clock)
    renewing = LiveConnections(on_rotation=Renew.HAND_OVER, on_expiry=Renew.CLOSE, expiry_lead=60)
    async with nodes.cluster("alpha", "beta", live_connections=renewing) as (alpha, beta):
        connection = await alpha.connect(beta.name)
        for generation in range(2, 6):
            for node in alpha, beta:
                fresh = nodes.ca.issue(node.name, lifetime=timedelta(hours=2))
                assert node.options.cert_manager.update(fresh) == generation
            await wait_for_generation(connection, generation)
            await trio.sleep(3600)
            assert connection.live
        await trio.sleep(3700)  # a little more than the hour that was left
        assert (await connection.wait_closed()).reason in (EndReason.EXPIRED, EndReason.CLOSED_BY_PEER)
        alpha.options.cert_manager.update(nodes.ca.issue(alpha.name))
        with expect_refusal("expired"):
            await alpha.connect(beta.name)


def test_a_clock_for_before_the_run() -> None:
    """It stands still until the run that it is first asked in, then goes as that does."""
    start = datetime(2031, 1, 1, tzinfo=UTC)
    clock = certificate_clock(start)
    assert clock() == start

    async def main() -> None:
        assert clock() == start
        await trio.sleep(3600)
        assert clock() == start + timedelta(hours=1)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert abs(certificate_clock()() - datetime.now(UTC)) < DAY
    with pytest.raises(ValueError, match="aware"):
        certificate_clock(datetime(2031, 1, 1))  # noqa: DTZ001 -- that is the point


# Moments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotating", ["alpha", "beta"])
async def test_rotating_in_the_middle_of_a_handshake(autojump_clock: trio.testing.MockClock, rotating: str) -> None:
    """It finishes on what it took, on whichever side; the next one has the new certificate."""
    nodes = node_factory()
    async with nodes.cluster("alpha", "beta") as (alpha, beta):
        node, other = (alpha, beta) if rotating == "alpha" else (beta, alpha)
        fresh = nodes.ca.issue(node.name)
        first = node.options.cert_manager.key_pair.certificate
        with rotate_during_handshake(node, fresh) as done:
            await alpha.connect(beta.name)
            await trio.testing.wait_all_tasks_blocked()
        assert (done.taken, done.published) == (1, 2)
        assert "published: 2" in repr(done)
        seen = other.connections[node.name].peer.certificate
        assert seen == first
        await alpha.connections[beta.name].aclose()
        await alpha.connect(beta.name)
        await trio.testing.wait_all_tasks_blocked()
        assert other.connections[node.name].peer.certificate == fresh.certificate
        assert node.options.cert_manager.generation == 2


async def test_only_the_first_handshake_is_rotated_in(autojump_clock: trio.testing.MockClock) -> None:
    """A second one within the block takes what is published by then."""
    nodes = node_factory()
    async with nodes.cluster("alpha", "beta", "gamma") as (alpha, beta, gamma):
        with rotate_during_handshake(beta.options.cert_manager, nodes.ca.issue(beta.name)):
            for node, generation in ((alpha, 1), (gamma, 2)):
                assert (await node.connect(beta.name)).peer_generation == generation
        with (
            pytest.raises(AssertionError, match="no handshake took"),
            rotate_during_handshake(alpha, nodes.ca.issue("x.test")),
        ):
            pass
        with pytest.raises(KeyError), rotate_during_handshake(alpha, nodes.ca.issue("x.test")):
            raise KeyError


async def test_waiting_for_a_generation(autojump_clock: trio.testing.MockClock) -> None:
    """Of a manager, a node and a connection; one that ends without does not leave anybody waiting."""
    nodes = node_factory()
    async with nodes.cluster("alpha", "beta") as (alpha, beta):
        connection = await alpha.connect(beta.name)
        certs = alpha.options.cert_manager
        async with trio.open_nursery() as nursery:
            for where in (alpha, certs, connection):
                nursery.start_soon(wait_for_generation, where, 2)
            await trio.testing.wait_all_tasks_blocked()
            certs.update(nodes.ca.issue(alpha.name))
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            await connection.reauthenticate()
        with trio.testing.assert_checkpoints():
            await wait_for_generation(connection, 2)

        async def wait_in_vain() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await wait_for_generation(connection, 3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            await connection.aclose()


def throw(error: Exception) -> None:
    """Raise it."""
    raise error


def refused(reason: UnverifiedReason) -> PeerUnverifiedError:
    """We refuse."""
    return PeerUnverifiedError("the story", stage=Stage.TLS, reason=reason)


def rejected(code: RejectionCode) -> PeerRejectedError:
    """They refuse."""
    return PeerRejectedError("the story", stage=Stage.TLS, code=code)


def unroutable(*causes: Exception) -> NoRouteError:
    """Every route failed."""
    name = trionode.NodeName.parse(NAME)
    return NoRouteError("no route", name=name, causes=ExceptionGroup("causes", causes) if causes else None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (refused(U.EXPIRED), U.EXPIRED),
        (refused(U.EXPIRED), "expired"),
        (refused(U.UNKNOWN_CA), "unknown_ca"),
        (rejected(R.UNKNOWN_CA), "unknown_ca"),
        (rejected(R.UNKNOWN_CA), R.UNKNOWN_CA),
        (unroutable(refused(U.EXPIRED), refused(U.EXPIRED)), U.EXPIRED),
    ],
)
def test_a_refusal_that_was_expected(error: Exception, reason: Any) -> None:
    """It is caught, and can be looked at."""
    with expect_refusal(reason) as refusal:
        with pytest.raises(AssertionError, match="leave the block"):
            _ = refusal.error
        throw(error)
    assert isinstance(refusal.error, PeerUnverifiedError | PeerRejectedError)
    assert "the story" in repr(refusal)


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (refused(U.REVOKED), U.EXPIRED, r"that we refuse the peer \(expired\) .* we refused the peer \(revoked\): the"),
        (rejected(R.UNKNOWN_CA), U.UNKNOWN_CA, r"that we refuse the peer \(unknown_ca\) .* the peer refused us"),
        (refused(U.UNKNOWN_CA), R.UNKNOWN_CA, r"that the peer refuses us \(unknown_ca\) .* we refused the peer"),
        (unroutable(refused(U.EXPIRED), rejected(R.COOKIE)), U.EXPIRED, r"the peer refused us \(cookie\)"),
        (rejected(R.COOKIE), "version", "that we refuse the peer or that the peer refuses us"),
        (None, "expired", "there was no refusal"),
    ],
)
def test_a_refusal_that_was_not_expected(error: Exception | None, reason: Any, words: str) -> None:
    """The text says what was expected and what happened instead."""
    with pytest.raises(AssertionError, match=words) as caught, expect_refusal(reason):  # noqa: PT012 -- may not raise
        if error is not None:
            raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        trio.BrokenResourceError("cut"),
        HandshakeError("no answer", stage=Stage.CONNECT, reason="connect"),
        unroutable(),
        unroutable(refused(U.EXPIRED), HandshakeError("no answer", stage=Stage.CONNECT, reason="connect")),
        KeyError("x"),
    ],
)
def test_what_is_no_refusal_comes_out_as_it_is(error: Exception) -> None:
    """A test is to fail by it."""
    with pytest.raises(type(error)) as caught, expect_refusal("expired"):
        raise error
    assert caught.value is error


def test_a_reason_that_is_none() -> None:
    """A typing error is no reason."""
    with pytest.raises(ValueError, match=r"'expird' is neither .* expired"), expect_refusal("expird"):
        pass


async def test_a_refusal_that_a_tls_stream_tells(authority: CertificateAuthority, zoo: CertificateZoo) -> None:
    """There the verdict shows at the first read, as the cause of a broken stream."""
    mode = trionode.ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    server = CertAuthManager(authority.issue("localhost"), client_cas=authority.pool, client_auth=mode)

    async def never(stream: trionode.TLSStream) -> None:
        raise AssertionError

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                lambda **k: serve_tls(never, 0, cert_manager=server, host="127.0.0.1", **k)
            )
            port = listener.socket.getsockname()[1]
            client = CertAuthManager(zoo.wrong_ca, root_cas=authority.pool)
            with expect_refusal(R.UNKNOWN_CA):
                async with await open_tls_stream("localhost", port, cert_manager=client) as stream:
                    await stream.receive_some()
            nursery.cancel_scope.cancel()


async def test_a_refusal_that_does_not_come(zoo: CertificateZoo, autojump_clock: trio.testing.MockClock) -> None:
    """The text has what came instead; other events are none of its business."""
    nodes = node_factory()
    async with nodes.cluster("alpha", "beta") as (alpha, beta):
        with pytest.raises(AssertionError, match="within 5 s, but no handshake failed"):
            async with expect_refusal_at(beta, U.EXPIRED):
                await (await alpha.connect(beta.name)).aclose()
        present_anyway(alpha, zoo.wrong_ca)
        began = trio.current_time()
        words = r"expired.* at beta@beta.test .*we refused the peer \(unknown_ca\)"
        with pytest.raises(AssertionError, match=words):  # noqa: PT012 -- leaving raises
            async with expect_refusal_at(beta, U.EXPIRED, within=60):
                with pytest.raises(PeerRejectedError):
                    await alpha.connect(beta.name)
        assert trio.current_time() - began == pytest.approx(60)
        with pytest.raises(AssertionError, match=r"the handshake failed"):  # noqa: PT012 -- leaving raises
            async with expect_refusal_at(beta, U.EXPIRED):
                stream = await nodes_transport(alpha).connect(*beta.acceptors[0].address)
                await stream.send_all(b"no TLS at all")
                await stream.aclose()
        with pytest.raises(KeyError):
            async with expect_refusal_at(beta, U.EXPIRED):
                raise KeyError
    async with AsyncExitStack() as stack:
        gamma = await stack.enter_async_context(nodes("gamma"))
        with pytest.raises(AssertionError, match="no handshake failed"):
            async with expect_refusal_at(gamma, U.EXPIRED, within=math.inf):
                await stack.aclose()


def nodes_transport(node: Node) -> trionode.Transport:
    """What a node stands on."""
    assert node.options.network.transport is not None
    return node.options.network.transport


# The plugin ---------------------------------------------------------------------------------------------------------

SUITE = """
from datetime import timedelta

import trio
from trionode.testing import expect_refusal, present_anyway


async def echo(channel):
    await channel.send(await channel.receive())


async def conversation(node_factory, certificate_zoo):
    async with node_factory.cluster("alpha", "beta", services={"echo": echo}) as (alpha, beta):
        assert await alpha.call(beta.name, "echo", b"x") == b"x"
        await alpha.connections[beta.name].aclose()
        present_anyway(beta, certificate_zoo(str(beta.name)).expired)
        with expect_refusal("expired"):
            await alpha.connect(beta.name)


def test_of_a_run_of_its_own(node_factory, certificate_zoo):
    trio.run(conversation, node_factory, certificate_zoo)


def test_fixtures_belong_together(node_factory, cluster_ca, memory_network, certificate_clock):
    assert node_factory.ca is cluster_ca
    assert node_factory.network is memory_network
    assert cluster_ca.certificate.not_valid_before_utc < certificate_clock()
"""

WITH_PYTEST_TRIO = """

async def test_async(node_factory, certificate_zoo, autojump_clock):
    await conversation(node_factory, certificate_zoo)


async def test_the_clocks_go_together(node_factory, certificate_clock, autojump_clock):
    began = certificate_clock()
    async with node_factory.cluster("alpha", "beta") as (alpha, beta):
        beta.options.cert_manager.update(node_factory.ca.issue(beta.name, lifetime=timedelta(hours=1)))
        await trio.sleep(2 * 3600)
        assert certificate_clock() - began >= timedelta(hours=2)
        alpha.options.cert_manager.update(node_factory.ca.issue(alpha.name))
        with expect_refusal("expired"):
            await alpha.connect(beta.name)
"""


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the Python that runs us, away from our own configuration."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_suite(folder: Path, suite: str, *arguments: str) -> str:
    """Run pytest with the plugin on a file; what it prints."""
    (folder / "test_suite.py").write_text(suite, encoding="utf-8")
    command = (
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "trionode.pytest_plugin",
        *arguments,
    )
    done = run(folder, *command)
    assert done.stderr == ""
    return done.stdout


def test_a_suite_with_pytest_trio(tmp_path: Path) -> None:
    """Everything in the plugin, also under a clock that jumps."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    assert "4 passed" in run_suite(tmp_path, SUITE + WITH_PYTEST_TRIO)


def test_a_suite_without_pytest_trio(tmp_path: Path) -> None:
    """The plugin needs none: who has a Trio run of their own uses the same fixtures."""
    assert "2 passed" in run_suite(tmp_path, SUITE, "-p", "no:trio")


def test_a_fixture_of_ones_own_wins(tmp_path: Path) -> None:
    """In a conftest, or in the file itself."""
    (tmp_path / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef cluster_ca(): return 'mine'\n")
    suite = (
        "import pytest\n@pytest.fixture\ndef node_factory(): return 'here'\n"
        "def test(cluster_ca, node_factory): assert (cluster_ca, node_factory) == ('mine', 'here')\n"
    )
    assert "1 passed" in run_suite(tmp_path, suite)


def test_a_suite_that_has_nothing_to_do_with_it_loads_only_the_plugin(tmp_path: Path) -> None:
    """Neither the kit, nor trionode, nor Trio."""
    suite = (
        "import sys\ndef test():\n"
        "    there = {name for name in sys.modules if name.startswith('trio')}\n"
        "    assert there == {'trionode', 'trionode.pytest_plugin'}\n"
    )
    assert "1 passed" in run_suite(tmp_path, suite, "-p", "no:trio", "-p", "no:hypothesispytest", "-p", "no:anyio")


def test_the_entry_point_is_the_plugin() -> None:
    """Of one name, so that it can be named on the command line as well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"trionode.pytest_plugin": "trionode.pytest_plugin"}


def test_every_fixture_is_a_plain_function_too() -> None:
    """Of the same name."""
    from trionode import pytest_plugin

    missing = [name for name in pytest_plugin.__all__ if not hasattr(trionode.testing, name)]
    assert missing == ["captured_logs", "memory_network"]  # `capture_logs`, and a class: `MemoryNetwork`
