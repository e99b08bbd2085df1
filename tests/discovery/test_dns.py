"""The DNS resolver, against a DNS server of the tests' own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.rcode
import pytest
import trio

from dns_server import DNSServer, dns_server
from trionode import Endpoint, NodeName, PeerFound, PeerLost, Resolver, ResolverError
from trionode.discovery import DNSResolver, dns as module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import ManagerFactory, NodeFactory

    from trionode import EventStream, NamingResolver, NodeEvent, ServiceChannel, WatchingResolver

BETA = NodeName.parse("beta@host-b.test")
SRV = "_trionode._tcp.host-b.test"
WORKERS = "_trionode._tcp.worker.prod.svc.cluster.test"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is watched is asked for again quickly."""
    monkeypatch.setattr(module, "_SOONEST", 0.02)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[DNSServer, DNSResolver]]:
    """A server and a resolver that asks it."""
    async with dns_server() as server:
        yield server, DNSResolver(nameservers=["127.0.0.1"], port=server.port, **options)


async def next_of(events: EventStream, *kinds: type[NodeEvent]) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError("the node ended")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


# Looking up -----------------------------------------------------------------------------------------------------------


async def test_srv_and_then_addresses() -> None:
    """Ports and hosts are those of the SRV records, by priority; addresses those of their targets, both kinds."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.set(SRV, "SRV", "20 0 15002 second.test.", "10 0 15001 first.test.")
            server.set("first.test", "A", "192.0.2.1", "192.0.2.2")
            server.set("first.test", "AAAA", "2001:db8::1")
            server.set("second.test", "A", "192.0.2.3")
            found = list(await resolver.resolve(BETA))
            assert set(found[:2]) == {Endpoint("192.0.2.1", 15001), Endpoint("192.0.2.2", 15001)}
            assert found[2:] == [Endpoint("2001:db8::1", 15001), Endpoint("192.0.2.3", 15002)]
            parts: tuple[Resolver, WatchingResolver, NamingResolver] = (resolver, resolver, resolver)
            assert all(isinstance(each, Resolver) for each in parts)


async def test_weights_are_drawn() -> None:
    """Of equal priority each comes first at times, the heavier ones more often (RFC 2782)."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.set(SRV, "SRV", "1 90 1 a.test.", "1 10 2 b.test.", ttl=0)
            for host in "a.test", "b.test":
                server.set(host, "A", "192.0.2.1")
            first = [(await resolver.resolve(BETA))[0].port for _ in range(100)]
            assert first.count(1) > first.count(2) > 0


async def test_without_srv_the_host_itself() -> None:
    """Its addresses and port 15000; an alias is followed; an address needs no DNS."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.set("host-b.test", "CNAME", "real.test.")
            server.set("real.test", "A", "192.0.2.9")
            assert list(await resolver.resolve(BETA)) == [Endpoint("192.0.2.9", 15000)]
            before = len(server.asked)
            assert list(await resolver.resolve(NodeName.parse("x@192.0.2.7"))) == [Endpoint("192.0.2.7", 15000)]
            assert list(await resolver.resolve(NodeName.parse("x@[::1]"))) == [Endpoint("::1", 15000)]
            assert len(server.asked) == before


async def test_what_is_not_there() -> None:
    """Neither SRV nor address, an SRV that says that there is no service, a name that DNS cannot hold: no endpoints."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            assert await resolver.resolve(BETA) == []
            server.set("_trionode._tcp.host-c.test", "SRV", "0 0 0 .")
            server.set("host-c.test", "A", "192.0.2.1")
            assert await resolver.resolve(NodeName.parse("x@host-c.test")) == []
            long = ".".join(["a" * 60] * 4)
            assert await resolver.resolve(NodeName.parse(f"x@{long}")) == []


async def test_service_by_name() -> None:
    """Several nodes of one host are told apart where the SRV name has the node's name."""
    with trio.fail_after(10):
        async with serving(service="_{name}._tcp.{host}") as (server, resolver):
            server.set("_beta._tcp.host-b.test", "SRV", "0 0 7 host-b.test.")
            server.set("_gamma._tcp.host-b.test", "SRV", "0 0 8 host-b.test.")
            server.set("host-b.test", "A", "192.0.2.1")
            assert list(await resolver.resolve(BETA)) == [Endpoint("192.0.2.1", 7)]
            assert list(await resolver.resolve(NodeName.parse("gamma@host-b.test"))) == [Endpoint("192.0.2.1", 8)]


@pytest.mark.parametrize("trouble", ["silent", "refused", "servfail"])
async def test_trouble_is_an_error(trouble: str) -> None:
    """A server that does not answer, or cannot, is an outage, and not an answer that there is nothing."""
    with trio.fail_after(10):
        async with serving(timeout=0.1) as (server, resolver):
            server.silent = trouble == "silent"
            server.rcode = {"refused": dns.rcode.REFUSED, "servfail": dns.rcode.SERVFAIL}.get(trouble, server.rcode)
            with pytest.raises(ResolverError, match="DNS does not answer") as caught:
                await resolver.resolve(BETA)
            assert caught.value.temporary
            server.silent, server.rcode = False, dns.rcode.NOERROR
            server.set("host-b.test", "A", "192.0.2.1")
            assert await resolver.resolve(BETA)


async def test_floods_are_cut_short() -> None:
    """Of any number of records the first few count."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.set("host-b.test", "A", *(f"192.0.2.{n}" for n in range(1, 61)))
            assert len(await resolver.resolve(BETA)) == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 0}, "port"),
        ({"timeout": 0}, "timeout"),
        ({"services": {"no name": "x.test"}}, "name"),
        ({"services": {"x": "a..b"}}, "no name of DNS"),
        ({"service": "." * 3}, "no name of DNS"),
        ({"nameservers": ["no address"]}, "no address"),
    ],
)
def test_what_cannot_be_one(options: dict[str, Any], words: str) -> None:
    """Arguments are checked when it is made."""
    with pytest.raises((ValueError, TypeError), match=words):
        DNSResolver(**{"nameservers": ["127.0.0.1"], **options})


# For how long ---------------------------------------------------------------------------------------------------------


async def test_answers_are_kept_for_their_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither asked for again before, nor used after."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.set("host-b.test", "A", "192.0.2.1", ttl=30)
            assert await resolver.resolve(BETA)
            asked = len(server.asked)
            assert asked == 3
            server.set("host-b.test", "A", "192.0.2.2")
            assert list(await resolver.resolve(BETA)) == [Endpoint("192.0.2.1", 15000)]
            assert len(server.asked) == asked
            later = trio.current_time() + 29
            with monkeypatch.context() as patched:
                patched.setattr(trio, "current_time", lambda: later)
                assert list(await resolver.resolve(BETA)) == [Endpoint("192.0.2.1", 15000)]
            later += 2
            with monkeypatch.context() as patched:
                patched.setattr(trio, "current_time", lambda: later)
                assert list(await resolver.resolve(BETA)) == [Endpoint("192.0.2.2", 15000)]


@pytest.mark.parametrize(("soa", "again"), [((60, 30), False), ((0, 30), True), ((60, 0), True), (None, True)])
async def test_negative_answers_are_kept_for_what_the_soa_says(soa: tuple[int, int] | None, again: bool) -> None:
    """The smaller of its TTL and its minimum (RFC 2308); without one, not at all."""
    with trio.fail_after(10):
        async with serving() as (server, resolver):
            server.soa = None if soa is None else (soa[0], f"ns.test. admin.test. 1 3600 600 86400 {soa[1]}")
            assert await resolver.resolve(BETA) == []
            server.set("host-b.test", "A", "192.0.2.1")
            assert bool(await resolver.resolve(BETA)) is again


async def test_watching_asks_when_the_answer_has_run_out() -> None:
    """A change is told once its TTL has passed, and what stays the same is not told again."""
    with trio.fail_after(10):
        async with serving() as (server, resolver), resolver.watch(BETA) as answers:
            server.soa = None
            assert await answers.receive() == []
            server.set(SRV, "SRV", "0 50 7 a.test.", "0 50 8 a.test.", ttl=0)
            server.set("a.test", "A", "192.0.2.1", ttl=0)
            assert set(await answers.receive()) == {Endpoint("192.0.2.1", 7), Endpoint("192.0.2.1", 8)}

            async def change_later() -> None:
                asked = len(server.asked)
                while len(server.asked) < asked + 20:  # noqa: ASYNC110 -- what is counted has no event
                    await trio.sleep(0.01)
                server.set(SRV, "SRV", "0 50 9 a.test.", ttl=0)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(change_later)
                assert list(await answers.receive()) == [Endpoint("192.0.2.1", 9)]


# Kubernetes -----------------------------------------------------------------------------------------------------------


async def test_headless_service(node: NodeFactory, manager: ManagerFactory) -> None:
    """Pods behind a headless service are members, found as they come and lost as they go; one of them is called."""
    with trio.fail_after(20):
        async with serving(services={"worker": WORKERS}) as (server, resolver):
            server.soa = None
            pods = [NodeName.parse(f"worker@worker-{n}.worker.prod.svc.cluster.test") for n in range(2)]

            def ready(*ports: int) -> None:
                records = [f"0 50 {port} {pod.host}." for port, pod in zip(ports, pods, strict=False)]
                server.set(WORKERS, "SRV", *records, ttl=0)

            for pod in pods:
                server.set(pod.host, "A", "127.0.0.1", ttl=0)
            async with (
                node("client@localhost", resolver=resolver, keep_connected=["worker@*"]) as client,
                client.events() as events,
                node(str(pods[0]), manager(str(pods[0])), services={"echo": echo}) as first,
            ):
                assert client.members() == set()
                ready(first.acceptors[0].address[1])
                assert (await next_of(events, PeerFound)).name == pods[0]
                assert await client.call("worker@*", "echo", b"x") == b"x"
                async with node(str(pods[1]), manager(str(pods[1]))) as second:
                    ready(first.acceptors[0].address[1], second.acceptors[0].address[1])
                    assert (await next_of(events, PeerFound)).name == pods[1]
                    await client.wait_connected(pods[1])
                    ready(first.acceptors[0].address[1])
                    assert (await next_of(events, PeerLost)).name == pods[1]
                assert client.members("worker@*") >= {pods[0]}
                assert await resolver.resolve(pods[1]) == []
