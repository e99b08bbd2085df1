"""Rotation between nodes: the next handshake is new, what is under way stays as it is, and nothing is lost."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionode import (
    AcceptorOptions,
    CertificateError,
    CertificateReason,
    Connection,
    ConnectionUp,
    FixedAtStartupError,
    GenerationPublished,
    KeyPair,
    NodeName,
    RotationRefused,
    Route,
    _protocol as wire,
)
from trionode._managers.manager import publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedListener
    from cryptography import x509

    from trionode import (
        CertAuthManager,
        EventStream,
        Node,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
ROTATIONS = 20


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def next_up(events: EventStream) -> Connection:
    """The next connection that a node reports."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            return event.connection
    raise AssertionError("the node ended")


async def next_generation(events: EventStream) -> GenerationPublished:
    """The next generation that a node reports."""
    async for event in events:
        if isinstance(event, GenerationPublished):
            return event
    raise AssertionError("the node ended")


@pytest.fixture
def issue(ca: CertificateAuthority) -> Callable[[str], KeyPair]:
    """A function that issues a fresh key pair for a node."""
    return ca.issue


def shown(connection: Connection) -> x509.Certificate:
    """The certificate that the peer presented."""
    certificate = connection.peer.certificate
    assert certificate is not None
    return certificate


def managers(*nodes: Node) -> list[CertAuthManager]:
    """The nodes' managers."""
    return [node.options.cert_manager for node in nodes]  # type: ignore[misc]


async def test_new_dials_present_the_new_certificate(open_pair: PairFactory, issue: Callable[[str], KeyPair]) -> None:
    """Once `update()` has returned, a dial presents the new certificate, and the other side sees it."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            [certs] = managers(pair.alpha)
            for generation in range(1, 4):
                connection = await pair.alpha.connect("beta@localhost")
                seen = await next_up(events)
                assert connection.generation == seen.peer_generation == generation
                assert connection.key_pair_fingerprint == certs.key_pair.fingerprint
                assert shown(seen) == certs.key_pair.certificate
                assert not connection.superseded
                await connection.aclose()
                certs.update(issue("alpha@localhost"))


async def test_new_accepts_present_the_new_certificate(open_pair: PairFactory, issue: Callable[[str], KeyPair]) -> None:
    """Once `update()` has returned, an acceptor presents the new certificate, and the dialer sees it."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            [certs] = managers(pair.beta)
            for generation in range(1, 4):
                connection = await pair.alpha.connect("beta@localhost")
                seen = await next_up(events)
                assert connection.peer_generation == seen.generation == generation
                assert seen.key_pair_fingerprint == certs.key_pair.fingerprint
                assert shown(connection) == certs.key_pair.certificate
                assert not seen.superseded
                await connection.aclose()
                certs.update(issue("beta@localhost"))


async def test_connections_keep_what_they_were_made_with(
    open_pair: PairFactory, issue: Callable[[str], KeyPair]
) -> None:
    """A rotation leaves a connection as it is, at both ends; it only shows as superseded where it happened."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair, pair.beta.events() as events:
            certs = managers(pair.alpha, pair.beta)
            old = [each.key_pair for each in certs]
            connection = await pair.alpha.connect("beta@localhost")
            seen = await next_up(events)
            async with connection.open_channel("echo") as channel:
                await channel.send(b"before")
                assert await channel.receive() == b"before"
                certs[0].update(issue("alpha@localhost"))
                assert (connection.superseded, seen.superseded) == (True, False)
                certs[1].update(issue("beta@localhost"))
                assert (connection.superseded, seen.superseded) == (True, True)
                await channel.send(b"after")
                assert await channel.receive() == b"after"
            assert await pair.alpha.connect("beta@localhost") is connection
            assert await pair.alpha.call("beta@localhost", "echo", b"and again") == b"and again"
            ends = [(connection, old[0], old[1]), (seen, old[1], old[0])]
            for end, ours, theirs in ends:
                assert end.live
                assert (end.generation, end.peer_generation) == (1, 1)
                assert end.key_pair_fingerprint == ours.fingerprint
                assert shown(end) == theirs.certificate


async def test_managers_of_acceptors_and_routes_rotate_too(
    node: NodeFactory, manager: ManagerFactory, issue: Callable[[str], KeyPair], route_to: Callable[..., Route]
) -> None:
    """What holds for a node's manager holds for an acceptor's and a route's; the others are not touched."""
    beta_certs, route_certs = manager("beta@localhost"), manager("alpha@localhost")
    acceptors = [AcceptorOptions(host="127.0.0.1", port=0, cert_manager=beta_certs)]
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=acceptors) as beta, node("alpha@localhost") as alpha:
            alpha.add_route("beta@localhost", route_to(beta, cert_manager=route_certs))
            old = await alpha.connect("beta@localhost")
            beta_certs.update(issue("beta@localhost"))
            route_certs.update(issue("alpha@localhost"))
            assert old.superseded
            await old.aclose()
            new = await alpha.connect("beta@localhost")
            assert (new.generation, new.peer_generation) == (2, 2)
            assert new.key_pair_fingerprint == route_certs.key_pair.fingerprint
            assert shown(new) == beta_certs.key_pair.certificate
            assert [each.generation for each in managers(alpha, beta)] == [1, 1]
            assert not new.superseded


async def test_update_in_the_same_tick_counts(
    open_pair: PairFactory, issue: Callable[[str], KeyPair], ca: CertificateAuthority
) -> None:
    """An update right after a dial was begun, in the same tick, is what that dial presents."""
    found: list[Connection] = []

    async def connect(alpha: Node) -> None:
        found.append(await alpha.connect("beta@localhost"))

    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            certs = managers(pair.alpha, pair.beta)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, pair.alpha)
                for each, name in zip(certs, ("alpha@localhost", "beta@localhost"), strict=True):
                    each.update(issue(name))
            seen = await next_up(events)
            assert (found[0].generation, seen.generation) == (2, 2)
            assert [shown(seen), shown(found[0])] == [each.key_pair.certificate for each in certs]


async def test_accept_under_way_finishes_on_what_it_took(
    node: NodeFactory, manager: ManagerFactory, issue: Callable[[str], KeyPair]
) -> None:
    """An acceptor's handshake that is half-way when the update comes is finished with the old certificate."""
    certs = manager("beta@localhost")
    old = certs.key_pair
    contexts = await manager("alpha@localhost").contexts.receive()
    session = contexts.client.session(reference="localhost", alpn=[b"trionode/1"])
    session.handshake()
    with trio.fail_after(10):
        async with node("beta@localhost", certs) as beta, beta.events() as events:
            async with await trio.open_tcp_stream(*beta.acceptors[0].address) as transport:
                await transport.send_all(session.outgoing())
                flight = await transport.receive_some()  # so it has taken its contexts
                certs.update(issue("beta@localhost"))
                session.feed(flight)
                while not session.handshake():
                    session.feed(await transport.receive_some())
                hello = wire.Hello(
                    versions=[1],
                    name="alpha@localhost",
                    incarnation=1,
                    generation=1,
                    limits=wire.Limits(max_message_size=65536, window=65536, max_channels=16),
                )
                session.encrypt(wire.encode_hello(hello))
                await transport.send_all(session.outgoing())
                reader = wire.HelloReader()
                while (answer := reader.next(wire.Answer)) is None:
                    if data := session.decrypt(4096):
                        reader.feed(b"".join(data))
                    else:
                        session.feed(await transport.receive_some())
                assert answer.refusal is None
                assert answer.generation == 1
                session.encrypt(wire.encode_hello(wire.Confirmation()))
                await transport.send_all(session.outgoing())
                connection = await next_up(events)
                assert connection.generation == 1
                assert connection.key_pair_fingerprint == old.fingerprint
                assert connection.superseded
            assert session.peer_certificate == old.certificate


async def test_dial_under_way_finishes_on_what_it_took(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener, issue: Callable[[str], KeyPair]
) -> None:
    """A dial that is half-way when the update comes is finished with the old certificate."""
    certs = manager("alpha@localhost")
    old = certs.key_pair
    beta = manager("beta@localhost")
    found: list[Connection] = []

    async def connect(alpha: Node) -> None:
        found.append(await alpha.connect("beta@localhost", scripted_listener.route()))

    with trio.fail_after(10):
        async with node("alpha@localhost", certs, shutdown_grace=0) as alpha, trio.open_nursery() as nursery:
            nursery.start_soon(connect, alpha)
            transport = await scripted_listener.listener.accept()
            flight = bytes(await transport.receive_some())  # so it has taken its contexts
            certs.update(issue("alpha@localhost"))
            peer = await scripted_listener.accept(beta, transport=transport, received=flight)
            async with peer.stream:
                hello = await peer.greet("beta@localhost")
                assert hello.generation == 1
                assert peer.stream.peer_certificate == old.certificate
                while not found:
                    await trio.testing.wait_all_tasks_blocked()
                assert found[0].generation == 1
                assert found[0].key_pair_fingerprint == old.fingerprint
                assert found[0].superseded


async def test_failing_update_changes_nothing(open_pair: PairFactory, ca: CertificateAuthority) -> None:
    """An update that is refused leaves the published generation, connections and new dials as they were."""
    expired = ca.issue("alpha@localhost", not_after=datetime.now(UTC) - timedelta(hours=1))
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as events:
            [certs] = managers(pair.alpha)
            connection = await pair.alpha.connect("beta@localhost")
            with pytest.raises(CertificateError) as caught:
                certs.update(expired)
            assert caught.value.reason is CertificateReason.EXPIRED
            assert certs.generation == 1
            assert not connection.superseded
            await connection.aclose()
            assert (await pair.alpha.connect("beta@localhost")).generation == 1
            certs.update(ca.issue("alpha@localhost"))
            assert (await next_generation(events)).generation == 2


async def test_generations_are_reported_by_every_node_that_uses_the_manager(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """Each node on a manager reports its generations, with number and fingerprint."""
    certs = manager("alpha@localhost", "beta@localhost")
    with trio.fail_after(10):
        async with (
            node("alpha@localhost", certs) as alpha,
            node("beta@localhost", certs) as beta,
            alpha.events() as on_alpha,
            beta.events() as on_beta,
        ):
            await trio.testing.wait_all_tasks_blocked()
            for generation in 2, 3:
                assert certs.update(ca.issue("alpha@localhost", "beta@localhost")) == generation
                for events, name in (on_alpha, ALPHA), (on_beta, BETA):
                    assert await next_generation(events) == GenerationPublished(
                        node=name, generation=generation, fingerprint=certs.key_pair.fingerprint
                    )


async def test_update_belongs_to_the_nodes_thread(open_pair: PairFactory, issue: Callable[[str], KeyPair]) -> None:
    """While nodes are open, an update from another thread is refused untouched, and the text says how to do it."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            [certs] = managers(pair.alpha)
            new = issue("alpha@localhost")
            with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
                await trio.to_thread.run_sync(certs.update, new)
            assert certs.generation == 1
            await trio.to_thread.run_sync(trio.from_thread.run_sync, certs.update, new)
            assert certs.generation == 2
            connection = await pair.alpha.connect("beta@localhost")
            assert connection.key_pair_fingerprint == new.fingerprint


async def test_pools_are_fixed_while_nodes_are_open(open_pair: PairFactory, rogue_ca: CertificateAuthority) -> None:
    """Rotation is for key pairs: a pool cannot be changed under an open node, and the text says to restart it."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            certs = managers(pair.alpha, pair.beta)
            for each in certs:
                with pytest.raises(FixedAtStartupError, match="restart the node"):
                    each.set_client_cas(rogue_ca.pool)
                with pytest.raises(FixedAtStartupError, match="restart the node"):
                    each.set_root_cas(rogue_ca.pool)
            assert (await pair.alpha.connect("beta@localhost")).generation == 1
        for each in certs:
            each.set_client_cas(rogue_ca.pool)


async def test_traffic_during_rotations_loses_nothing(
    open_pair: PairFactory,
    manager: ManagerFactory,
    issue: Callable[[str], KeyPair],
    route_to: Callable[..., Route],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through twenty rotations, each with a reconnect, no call fails either way and no message is lost or doubled."""
    monkeypatch.setattr("trionode._connection.closing.RETIRE_GRACE", 60)  # the first connection is used to the end
    stop = trio.Event()
    done: dict[str, int] = {}
    progressed = trio.lowlevel.ParkingLot()

    async def call(node: Node, peer: str, worker: int) -> None:
        key = f"{worker} calls {peer}"
        done[key] = 0
        while not stop.is_set():
            request = f"{key} {done[key]}".encode()
            assert await node.call(peer, "echo", request) == request
            done[key] += 1
            progressed.unpark_all()

    async def stream(connection: Connection) -> None:
        done["stream"] = 0
        async with connection.open_channel("echo") as channel:
            while not stop.is_set():
                numbers = range(done["stream"], done["stream"] + 10)
                for number in numbers:
                    await channel.send(b"%d" % number)
                assert [int(await channel.receive()) for _ in numbers] == list(numbers)
                done["stream"] += 10
                progressed.unpark_all()
            await channel.send_eof()
            assert [message async for message in channel] == []

    async def all_went_on() -> None:
        before = dict(done)
        while any(done[key] == before[key] for key in before):
            await progressed.park()

    services = {"services": {"echo": echo}}
    with trio.fail_after(60):
        async with open_pair(alpha=services, beta=services) as pair, pair.beta.events() as events:
            [beta_certs] = managers(pair.beta)
            # Two managers for alpha, so that each reconnect has a route which the last connection does not satisfy.
            alpha_certs = [manager("alpha@localhost"), manager("alpha@localhost")]
            first = await pair.alpha.connect("beta@localhost")
            await next_up(events)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream, first)
                for worker in range(3):
                    nursery.start_soon(call, pair.alpha, "beta@localhost", worker)
                    nursery.start_soon(call, pair.beta, "alpha@localhost", worker)
                for number in range(ROTATIONS):
                    certs = alpha_certs[number % 2]
                    await all_went_on()
                    certs.update(issue("alpha@localhost"))
                    beta_certs.update(issue("beta@localhost"))
                    new = await pair.alpha.connect("beta@localhost", route_to(pair.beta, cert_manager=certs))
                    seen = await next_up(events)
                    assert (shown(seen), shown(new)) == (certs.key_pair.certificate, beta_certs.key_pair.certificate)
                    assert (new.generation, seen.generation) == (certs.generation, beta_certs.generation)
                    assert pair.alpha.connections == {BETA: new}
                    assert pair.beta.connections == {ALPHA: seen}
                await all_went_on()
                stop.set()
            assert first.live
            assert (first.generation, first.peer_generation) == (1, 1)
            assert pair.alpha.acceptors[0].statistics().accepted == 0
            assert pair.beta.acceptors[0].statistics().accepted == ROTATIONS + 1
    assert all(count > ROTATIONS for count in done.values())


async def test_a_refused_rotation_is_an_event(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """A reader of a node's events sees that an update was refused, why, and which generation stays."""
    certs = manager("alpha@localhost")
    past = datetime.now(UTC) - timedelta(days=2)
    expired = ca.issue("alpha@localhost", not_before=past, not_after=past + timedelta(days=1))
    with trio.fail_after(10):
        async with node("alpha@localhost", certs) as alpha, alpha.events() as events:
            for _ in range(2):
                with pytest.raises(CertificateError) as refused:
                    certs.update(expired)
                event = await events.receive()
                while not isinstance(event, RotationRefused):
                    event = await events.receive()
                assert event.error is refused.value
                assert (event.node, event.generation) == (ALPHA, 1)
            assert publisher_of(certs).refused_updates == 2


async def test_listening_on_every_interface(node: NodeFactory) -> None:
    """The host `*` stands for all interfaces, IPv4 and IPv6, on one port."""
    async with node("alpha@localhost", acceptors=[AcceptorOptions(host="*", port=0)]) as alpha:
        hosts = {ipaddress.ip_address(host) for host, _ in alpha.acceptors[0].addresses}
        assert all(host.is_unspecified for host in hosts)
        assert ipaddress.IPv4Address(0) in hosts
        assert len({port for _, port in alpha.acceptors[0].addresses}) == 1
