"""The etcd registry, against etcd in processes of its own: with client certificates, paused, killed, emptied."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from etcd_servers import EtcdCluster, free_port, needs_etcd
from trionode import (
    Endpoint,
    KeyPair,
    NodeName,
    NoRouteError,
    PeerFound,
    PeerLost,
    PeerRejectedError,
    Registrar,
    Resolver,
    ResolverError,
    ResolverTrouble,
)
from trionode._credentials.pem import private_key_to_pem, to_pem
from trionode._node import membership, registration
from trionode._util.backoff import Backoff
from trionode.discovery import EtcdRegistry, etcd
from trionode.pki import write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from conftest import ManagerFactory, NodeFactory

    from trionode import EventStream, NamingResolver, NodeEvent, ServiceChannel, WatchingResolver
    from trionode.pki import CertificateAuthority

pytestmark = needs_etcd

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
HERE = ("127.0.0.1", 7000)

_prefixes = count()


@pytest.fixture(scope="module")
def cluster(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One etcd for the tests of this file that leave it as it is."""
    made = EtcdCluster.make(ca, tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def own(ca: CertificateAuthority, tmp_path: Path) -> Iterator[EtcdCluster]:
    """One etcd of a test's own, which it starts."""
    made = EtcdCluster.make(ca, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def registry(cluster: EtcdCluster) -> EtcdRegistry:
    """A registry with a part of the shared etcd to itself."""
    return cluster.registry(prefix=f"/test-{next(_prefixes)}/", ttl=5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between attempts."""
    for module in membership, registration:
        monkeypatch.setattr(module, "BACKOFF", Backoff(first=0.05, longest=0.2, least=0.5))


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def next_of(events: EventStream, *kinds: type[NodeEvent]) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError("the node ended")


async def known_as(registry: EtcdRegistry, name: NodeName, *endpoints: Endpoint) -> None:
    """Wait until a name has these endpoints."""
    async with registry.watch(name) as answers:
        async for answer in answers:
            if tuple(answer) == endpoints:
                return
    raise AssertionError("it ended")


@asynccontextmanager
async def named(registry: EtcdRegistry) -> AsyncIterator[Callable[[set[NodeName]], Any]]:
    """A function that waits until the registry names exactly these, by what it pushes."""
    async with registry.names() as answers:

        async def until(names: set[NodeName]) -> None:
            async for answer in answers:
                if set(answer) == names:
                    return
            raise AssertionError("it ended")

        yield until


# In peace -------------------------------------------------------------------------------------------------------------


def test_it_is_all_of_these(registry: EtcdRegistry) -> None:
    """A resolver that watches and names, and a registrar."""
    parts: tuple[Resolver, WatchingResolver, NamingResolver, Registrar] = (registry, registry, registry, registry)
    assert all(isinstance(each, Registrar) for each in parts)
    assert "127.0.0.1" in repr(registry)


async def test_nodes_find_each_other(node: NodeFactory, cluster: EtcdCluster, registry: EtcdRegistry) -> None:
    """A node that opens is found at once by those that are there, and lost by them when it leaves."""
    with trio.fail_after(20):
        async with node(str(ALPHA), resolver=registry, keep_connected=["*"]) as alpha, alpha.events() as events:
            other = cluster.registry(prefix=registry.prefix)
            async with node(str(BETA), resolver=other, services={"echo": echo}) as beta:
                assert beta.statistics().registered is True
                assert (await next_of(events, PeerFound)).name == BETA
                await alpha.wait_connected(BETA)
                assert await alpha.call("b*@*", "echo", b"x") == b"x"
                assert await beta.wait_members("*") == {ALPHA}
                assert beta.statistics().members_age == 0
            assert (await next_of(events, PeerLost)).name == BETA
            with pytest.raises(NoRouteError, match="does not know it"):
                await alpha.connect(BETA)


async def test_what_is_registered(cluster: EtcdCluster, registry: EtcdRegistry) -> None:
    """One key on a lease, which is gone when the node leaves; all interfaces are the host of the name."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.register, BETA, [HERE, ("0.0.0.0", 7001), ("::", 7002)])  # noqa: S104 -- not bound to
            shown = json.loads(await cluster.ctl_in_thread("get", "--prefix", registry.prefix, "-w", "json"))
            [pair] = shown["kvs"]
            assert int(pair["lease"]) > 0
            assert await registry.resolve(BETA) == [
                Endpoint("127.0.0.1", 7000),
                Endpoint("localhost", 7001),
                Endpoint("localhost", 7002),
            ]
            assert await registry.resolve(ALPHA) == []
            nursery.cancel_scope.cancel()
        assert await registry.resolve(BETA) == []
        told = cluster.registry(prefix=registry.prefix, advertise=[Endpoint("lb.example", 443)])
        async with trio.open_nursery() as nursery:
            await nursery.start(told.register, BETA, [HERE])
            assert await registry.resolve(BETA) == [Endpoint("lb.example", 443)]
            nursery.cancel_scope.cancel()


async def test_lease_is_renewed(cluster: EtcdCluster, registry: EtcdRegistry) -> None:
    """A node stays registered for much longer than its lease, at three requests for each of its lengths."""
    brief = cluster.registry(prefix=registry.prefix, ttl=2)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(brief.register, BETA, [HERE])
            before = brief.requests
            await trio.sleep(2.6)
            assert await registry.resolve(BETA)
            assert 3 <= brief.requests - before <= 6
            nursery.cancel_scope.cancel()


async def test_successor_keeps_the_name(cluster: EtcdCluster, registry: EtcdRegistry) -> None:
    """What a node takes back is its own registration, not that of one that has taken the name over."""
    with trio.fail_after(20):
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as inner:
                await inner.start(registry.register, BETA, [HERE])
                await outer.start(cluster.registry(prefix=registry.prefix).register, BETA, [("127.0.0.1", 8000)])
                inner.cancel_scope.cancel()
            assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 8000)]
            outer.cancel_scope.cancel()


async def test_watching_costs_nothing_and_readers_come_and_go(registry: EtcdRegistry) -> None:
    """One watch serves all readers of a registry, and look-ups; when the first leaves another takes it over."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with named(registry) as first:
                await first(set())
                async with registry.watch(BETA) as answers, named(registry) as second:
                    assert await answers.receive() == []
                    await second(set())
                    before = registry.requests
                    await nursery.start(registry.register, BETA, [HERE])
                    assert await answers.receive() == [Endpoint(*HERE)]
                    await first({BETA})
                    await second({BETA})
                    assert await registry.resolve(BETA) == [Endpoint(*HERE)]
                    assert registry.requests - before == 2  # the lease and the key
                    assert await registry.resolve(ALPHA) == []
                    assert registry.requests - before == 3  # what the watch has not said may be on its way
            async with named(registry) as third:
                await third({BETA})
                async with registry.names() as answers:
                    assert set(await answers.receive()) == {BETA}
                    async with trio.open_nursery() as readers:
                        await readers.start(_leave_soon, registry)
                    await nursery.start(registry.register, ALPHA, [HERE])
                    assert set(await answers.receive()) == {ALPHA, BETA}
            nursery.cancel_scope.cancel()


async def _leave_soon(registry: EtcdRegistry, *, task_status: trio.TaskStatus[None]) -> None:
    async with named(registry):
        task_status.started()


async def test_reader_that_follows_for_all_may_leave(registry: EtcdRegistry) -> None:
    """The others go on, and miss nothing."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with named(registry) as first:
                    await first(set())
                    async with trio.open_nursery() as inner:
                        ready, seen = trio.Event(), trio.Event()

                        async def read(ready: trio.Event = ready, seen: trio.Event = seen) -> None:
                            async with named(registry) as until:
                                await until(set())
                                ready.set()
                                await until({BETA})
                                seen.set()

                        nursery.start_soon(read)
                        await ready.wait()
                        inner.cancel_scope.cancel()
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            await nursery.start(registry.register, BETA, [HERE])
            await seen.wait()
            nursery.cancel_scope.cancel()


async def test_client_certificate_rotates(cluster: EtcdCluster, ca: CertificateAuthority) -> None:
    """After an `update()` the next request goes out on a connection with the new certificate; nothing is lost."""
    manager = cluster.manager()
    registry = cluster.registry(cert_manager=manager, prefix=f"/test-{next(_prefixes)}/")
    with trio.fail_after(20):
        async with registry._session() as session:
            lease = await session.grant(5)
            first = session._client._connection
            assert first is not None
            assert await session.keep_alive(lease) > 0
            assert session._client._connection is first
            manager.update(ca.issue("client@localhost"))
            assert await session.keep_alive(lease) > 0
            second = session._client._connection
            assert second is not None
            assert (first.stream.generation, second.stream.generation) == (1, 2)
            await session.revoke(lease)
            await session.revoke(lease)  # harmless


# Refusals -------------------------------------------------------------------------------------------------------------


async def test_client_certificate_of_a_stranger(
    node: NodeFactory,
    cluster: EtcdCluster,
    manager: ManagerFactory,
    rogue_ca: CertificateAuthority,
    ca: CertificateAuthority,
) -> None:
    """Etcd that refuses our certificate cannot be used at all: the node does not open, and its error says why."""
    rogue = cluster.registry(cert_manager=manager("client@localhost", ca=rogue_ca, trusts=ca))
    with trio.fail_after(20):
        with pytest.raises(ResolverError, match="certificate") as caught:
            async with node(str(ALPHA), resolver=rogue):
                pytest.fail("opened")
        assert not caught.value.temporary
        cause = caught.value.__cause__
        assert cause is not None
        assert isinstance(cause, PeerRejectedError) or isinstance(cause.__cause__, PeerRejectedError)


async def test_server_of_a_stranger(
    cluster: EtcdCluster, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A server that our CAs do not vouch for, or whose certificate covers another host, is none of ours."""
    doubtful = cluster.registry(cert_manager=manager("client@localhost", trusts=rogue_ca))
    elsewhere = EtcdRegistry(f"https://[::1]:{free_port()}", cert_manager=cluster.manager(), timeout=1)
    with trio.fail_after(20):
        with pytest.raises(ResolverError, match="not signed by") as caught:
            await doubtful.resolve(BETA)
        assert not caught.value.temporary
        with pytest.raises(ResolverError, match="no server answers") as nobody:
            await elsewhere.resolve(BETA)
        assert nobody.value.temporary


def without_common_name(ca: CertificateAuthority) -> KeyPair:
    """A client's key pair that etcd's gateway takes while authentication by password is switched on."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nodes")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    leaf = builder.sign(ca._key, hashes.SHA256())
    return KeyPair.from_pem(to_pem([leaf]), private_key_to_pem(key))


async def test_password(own: EtcdCluster, ca: CertificateAuthority) -> None:
    """User and password are good for a token, which is fetched anew when etcd has forgotten it; wrong ones are told."""
    own.start()
    with trio.fail_after(30):
        manager = own.manager()
        manager.update(without_common_name(ca))
        registry = own.registry(cert_manager=manager, user="root", password="secret", timeout=1)
        for command in ("user add root:secret", "user grant-role root root", "auth enable"):
            await own.ctl_in_thread(*command.split())
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.register, BETA, [HERE])
            assert await registry.resolve(BETA) == [Endpoint(*HERE)]
            async with registry._session() as session:
                lease = await session.grant(5)
                session._client.headers["Authorization"] = "forgotten.1"
                assert await session.keep_alive(lease) > 0
            nursery.cancel_scope.cancel()
        for wrong in ({}, {"user": "root", "password": "wrong"}, {"user": "eve", "password": "secret"}):
            with pytest.raises(ResolverError, match="etcd refused") as caught:
                await own.registry(cert_manager=manager, **wrong).resolve(BETA)
            assert not caught.value.temporary
            assert "secret" not in str(caught.value)
        with pytest.raises(ResolverError, match="without a Common Name"):
            await own.registry(user="root", password="secret").resolve(BETA)
    assert "secret" not in repr(registry)


@pytest.mark.parametrize(
    ("servers", "options", "words"),
    [
        ("http://127.0.0.1:2379", {}, "TLS only"),
        ("https://h:1/path", {}, "is no server"),
        ("ftp://h", {}, "is no server"),
        ([], {}, "at least one"),
        ("h", {"prefix": ""}, "prefix"),
        ("h", {"ttl": 0}, "ttl"),
        ("h", {"timeout": -1}, "timeout"),
        ("h", {"user": "u"}, "together"),
        ([7], {}, "one item is 7"),
        ("h", {"cert_manager": None}, "cert_manager"),
    ],
)
def test_what_cannot_be_one(cluster: EtcdCluster, servers: Any, options: dict[str, Any], words: str) -> None:
    """Arguments are checked when it is made."""
    with pytest.raises((ValueError, TypeError), match=words):
        EtcdRegistry(servers, **{"cert_manager": cluster.manager(), **options})


def test_servers_in_every_spelling(cluster: EtcdCluster) -> None:
    """URLs, hosts with and without ports, and endpoints."""
    spelt = ["https://a.example:1", "b.example:2", "c.example", "https://d.example/", "[::1]:6"]
    registry = EtcdRegistry([*spelt, Endpoint("e.example", 5)], cert_manager=cluster.manager())
    assert [(each.host, each.port) for each in registry._servers] == [
        ("a.example", 1),
        ("b.example", 2),
        ("c.example", 2379),
        ("d.example", 2379),
        ("[::1]", 6),
        ("e.example", 5),
    ]


# What is in etcd is untrusted -----------------------------------------------------------------------------------------


async def test_odd_keys_and_values_are_left_out(cluster: EtcdCluster, registry: EtcdRegistry) -> None:
    """Keys that are no names, values that are none, endpoints that are none: each costs itself and nothing else."""
    odd = {
        "no name": "{}",
        "Upper@LOCALHOST": '{"endpoints": [["127.0.0.1", 1]]}',  # not in canonical form
        "a@localhost": "no JSON",
        "b@localhost": '{"endpoints": 7}',
        "c@localhost": '{"endpoints": [["127.0.0.1", 0]]}',
        "d@localhost": '{"endpoints": [["no host", 1]]}',
        "e@localhost": '{"endpoints": [["127.0.0.1", 1]], "server_name": "evil"}',
        "f@localhost": '{"endpoints": ' + json.dumps([["127.0.0.1", n] for n in range(1, 41)]) + "}",
        "g@localhost": '{"endpoints": ' + json.dumps([["127.0.0.1", 1]] * 1000) + "}",
        "h@localhost": "[" * 3000,
    }
    good = {"e@localhost", "f@localhost"}
    with trio.fail_after(20):
        async with named(registry) as until:
            await until(set())
            for key, value in odd.items():
                await cluster.ctl_in_thread("put", "--", registry.prefix + key, value)
            await until({NodeName.parse(each) for each in good})
            assert len(await registry.resolve(NodeName.parse("f@localhost"))) == 32
            await cluster.ctl_in_thread("put", registry.prefix + "e@localhost", "garbage now")
            await until({NodeName.parse("f@localhost")})
        other = cluster.registry(prefix=registry.prefix)  # by range, not by watch
        assert await other.resolve(NodeName.parse("a@localhost")) == []
        assert len(await other.resolve(NodeName.parse("f@localhost"))) == 32


# Trouble --------------------------------------------------------------------------------------------------------------


async def test_etcd_that_is_down_holds_up_no_node(
    node: NodeFactory, own: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node opens without etcd, says so, and is registered once etcd is there; unless it is required."""
    registry = own.registry(timeout=1)
    with trio.fail_after(30):
        with pytest.raises(ResolverError, match="registration_timeout"):
            async with node(str(BETA), resolver=registry, registration_timeout=0.1, registration_required=True):
                pytest.fail("opened")
        async with node(str(BETA), resolver=registry, registration_timeout=0.1) as beta, beta.events() as events:
            assert beta.statistics().registered is False
            trouble = await next_of(events, ResolverTrouble)
            assert "no server answers" in str(trouble.error)
            await trio.to_thread.run_sync(own.start)
            await known_as(own.registry(), BETA, Endpoint(*beta.acceptors[0].address))
            while not beta.statistics().registered:  # noqa: ASYNC110 -- the key may be seen before its reply
                await trio.sleep(0.01)
            assert beta.statistics().resolver_troubles > 0


async def test_paused_etcd(node: NodeFactory, own: EtcdCluster) -> None:
    """While etcd hangs, connections go on, dials use what was known, members stay; then everything is as it was."""
    own.start()
    with trio.fail_after(30):
        registry = own.registry(timeout=0.3, ttl=30)
        async with (
            node(str(BETA), resolver=own.registry(timeout=0.3, ttl=30), services={"echo": echo}) as beta,
            node(str(ALPHA), resolver=registry, members=[]) as alpha,
            alpha.events() as events,
        ):
            connection = await alpha.connect(BETA)
            await beta.wait_members(ALPHA)
            own.servers[0].pause()
            assert await connection.call("echo", b"x") == b"x"
            await connection.aclose()
            assert await alpha.call(BETA, "echo", b"x") == b"x"
            trouble = await next_of(events, ResolverTrouble)
            assert trouble.name == BETA
            assert beta.members() == {ALPHA}
            own.servers[0].resume()
            await alpha.connections[BETA].aclose()
            asked = registry.requests
            assert await alpha.call(BETA, "echo", b"x") == b"x"
            assert registry.requests > asked


async def test_silent_watch_is_begun_anew(
    cluster: EtcdCluster, registry: EtcdRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An etcd that hangs looks like one that has nothing to say; so it is asked again at times, from where it was."""
    monkeypatch.setattr(etcd, "_SILENCE", 0.1)
    monkeypatch.setattr(etcd, "_PACE", 0.1)
    with trio.fail_after(20):
        async with named(registry) as until, trio.open_nursery() as nursery:
            await until(set())
            before = registry.requests
            while registry.requests < before + 3:  # noqa: ASYNC110 -- what is counted has no event
                await trio.sleep(0.02)
            await nursery.start(registry.register, BETA, [HERE])
            await until({BETA})
            nursery.cancel_scope.cancel()


async def test_compaction(own: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the revision that was reached is gone by the time that the watch comes back, everything is read anew."""
    own.start()
    with trio.fail_after(30):
        async with relayed(own) as relay, trio.open_nursery() as nursery:
            registry = EtcdRegistry(f"https://127.0.0.1:{relay.port}", cert_manager=own.manager(), timeout=10)
            await nursery.start(own.registry().register, BETA, [HERE])
            async with named(registry) as until:
                await until({BETA})
                ranges = registry.requests
                relay.hold()
                await nursery.start(own.registry().register, ALPHA, [HERE])
                await own.ctl_in_thread("put", "some", "thing")
                await own.ctl_in_thread("put", "some", "more")
                status = json.loads(await own.ctl_in_thread("endpoint", "status", "-w", "json"))
                await own.ctl_in_thread("compaction", str(status[0]["Status"]["header"]["revision"]))
                relay.release()
                await until({ALPHA, BETA})
                assert registry.requests - ranges == 3  # the watch in vain, the range, the watch
            nursery.cancel_scope.cancel()


class Relay:
    """Passes bytes on to a port; can be held: connections are cut, and new ones wait."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self._to = to
        self._open = trio.Event()
        self._open.set()
        self._scopes: set[trio.CancelScope] = set()

    def hold(self) -> None:
        """Cut what there is, and let nothing through."""
        self._open = trio.Event()
        for scope in self._scopes:
            scope.cancel()

    def release(self) -> None:
        """Let it through again."""
        self._open.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Relay one connection."""
        await self._open.wait()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            async with stream, await trio.open_tcp_stream("127.0.0.1", self._to) as there:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, stream, there, scope)
                    nursery.start_soon(self._copy, there, stream, scope)
        self._scopes.discard(scope)

    async def _copy(self, one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for piece in one:
                await other.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def relayed(cluster: EtcdCluster) -> AsyncIterator[Relay]:
    """A relay to the first member."""
    relay = Relay(cluster.servers[0].port)
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, relay.serve, 0, host="127.0.0.1"))
        relay.port = listener.socket.getsockname()[1]
        yield relay
        nursery.cancel_scope.cancel()


async def test_lost_data(node: NodeFactory, own: EtcdCluster) -> None:
    """An etcd that comes back empty knows every node again within a lease; nobody has to restart anything."""
    own.start()
    with trio.fail_after(30):
        beta_registry = own.registry(timeout=0.5, ttl=2)
        async with (
            node(str(BETA), resolver=beta_registry, services={"echo": echo}) as beta,
            node(str(ALPHA), resolver=own.registry(timeout=0.5, ttl=2)) as alpha,
        ):
            await alpha.wait_members(BETA)
            connection = await alpha.connect(BETA)
            await own.ctl_in_thread("put", "more", "revisions")
            own.stop()
            own.servers[0].forget()
            await trio.to_thread.run_sync(own.start)
            await known_as(own.registry(), BETA, Endpoint(*beta.acceptors[0].address))
            await known_as(own.registry(), ALPHA, Endpoint(*alpha.acceptors[0].address))
            assert alpha.connections[BETA] is connection
            assert await alpha.call(BETA, "echo", b"x") == b"x"
            while alpha.statistics().members_age != 0:  # noqa: ASYNC110 -- likewise
                await trio.sleep(0.02)
            await alpha.wait_members(BETA)


NODE = """
import sys, trio
from trionode import *
from trionode.discovery import EtcdRegistry
ca = CAPool.load("ca.pem")
manager = CertAuthManager(KeyPair.load("beta.pem", "beta-key.pem"), client_cas=ca, root_cas=ca,
                          client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT)
async def main():
    registry = EtcdRegistry(sys.argv[1], cert_manager=manager, prefix=sys.argv[2], ttl=1)
    network = NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)], resolver=registry)
    async with open_node("beta@localhost", NodeOptions(cert_manager=manager, network=network)):
        print("open", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_node_that_is_stopped_and_comes_back(
    node: NodeFactory, cluster: EtcdCluster, registry: EtcdRegistry, ca: CertificateAuthority, tmp_path: Path
) -> None:
    """Its lease runs out while it is stopped, so it is lost; when it goes on it registers anew, and is found."""
    write_key_pair(ca.issue(str(BETA)), tmp_path / "beta.pem", tmp_path / "beta-key.pem")
    write_ca_pool(ca.pool, tmp_path / "ca.pem")
    arguments = [sys.executable, "-c", NODE, cluster.urls[0], registry.prefix]
    with trio.fail_after(30):
        async with (
            node(str(ALPHA), resolver=registry) as alpha,
            alpha.events() as events,
            trio.open_nursery() as nursery,
        ):
            process = await nursery.start(partial(trio.run_process, arguments, cwd=tmp_path, check=False))
            try:
                assert (await next_of(events, PeerFound)).name == BETA
                process.send_signal(signal.SIGSTOP)
                assert (await next_of(events, PeerLost)).name == BETA
                process.send_signal(signal.SIGCONT)
                assert (await next_of(events, PeerFound)).name == BETA
                await alpha.connect(BETA)
            finally:
                process.kill()
            assert (await next_of(events, PeerLost)).name == BETA  # a lease after it was killed


async def test_three_members(node: NodeFactory, ca: CertificateAuthority, tmp_path: Path) -> None:
    """The leader moves, then each member in turn is killed: newcomers are found all the time, and nobody is lost."""
    three = EtcdCluster.make(ca, tmp_path, 3)
    three.start()
    try:
        with trio.fail_after(60):
            async with (
                node(str(BETA), resolver=three.registry(timeout=1, ttl=3)) as beta,
                node(str(ALPHA), resolver=three.registry(timeout=1, ttl=3)) as alpha,
            ):
                await alpha.wait_members(BETA)
                shown = json.loads(await three.ctl_in_thread("endpoint", "status", "--cluster", "-w", "json"))
                members = {each["Status"]["header"]["member_id"]: three.urls.index(each["Endpoint"]) for each in shown}
                leader = members.pop(shown[0]["Status"]["leader"])
                await three.ctl_in_thread("move-leader", f"{next(iter(members)):x}", member=leader)
                for server, comer in zip(three.servers, ("gamma", "delta", "epsilon"), strict=True):
                    server.kill()
                    async with node(f"{comer}@localhost", resolver=three.registry(timeout=1, ttl=3)) as other:
                        await alpha.wait_members(f"{comer}@*")
                        await other.wait_members("*", 2)
                    server.start(three.servers)
                    await trio.to_thread.run_sync(server.wait)
                await alpha.wait_members(BETA)
                while not beta.statistics().registered:  # noqa: ASYNC110 -- likewise
                    await trio.sleep(0.01)
    finally:
        three.stop()
