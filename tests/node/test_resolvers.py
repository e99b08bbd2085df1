"""Resolvers: what they may say, what it costs when they fail, and the registry of one user on one machine.

That a name is dialled at its own host, port 15000, where there is neither route nor resolver, is in test_nodes; that a
matching route excludes the resolver, in test_routes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import (
    Endpoint,
    NodeName,
    NoRouteError,
    PeerUnverifiedError,
    ResolverError,
    ResolverTrouble,
    Route,
    UnverifiedReason,
)
from trionode._transport.tcp import TCP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import ManagerFactory, NodeFactory

    from trionode import (
        EventStream,
        Listener,
        Node,
        Resolver,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")

#: Nothing listens there: privileged ports that need no service.
DEAD = [Endpoint("127.0.0.1", port) for port in (1, 2)]


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def event_of(events: EventStream, kind: Any) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


# What a resolver may say ----------------------------------------------------------------------------------------------


class Answers:
    """A resolver that has one answer, whatever it is."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[NodeName] = []

    async def resolve(self, name: NodeName, /) -> Any:
        """Answer."""
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        return self.answer


def endpoint(node: Node) -> Endpoint:
    """Where a node's first acceptor is."""
    return Endpoint(*node.acceptors[0].address)


async def test_endpoints_are_tried_in_order(node: NodeFactory) -> None:
    """A resolver gives endpoints to try, in order; the first that answers is it, and it is asked for each dial."""
    with trio.fail_after(10):
        async with node(str(BETA), services={"echo": echo}) as beta:
            resolver = Answers([*DEAD, endpoint(beta), Endpoint("127.0.0.1", 3)])
            async with node(str(ALPHA), resolver=resolver) as alpha:
                for _ in range(2):
                    assert await alpha.call(BETA, "echo", b"x") == b"x"
                    await alpha.connections[BETA].aclose()
                assert resolver.asked == [BETA, BETA]


@pytest.mark.parametrize(
    ("host", "port"), [("no host", 1), ("127.1", 1), ("", 1), ("localhost", 0), ("localhost", 65536), ("localhost", -1)]
)
def test_endpoint_that_is_none(host: str, port: int) -> None:
    """An endpoint is a host and a port, or is refused when it is made."""
    with pytest.raises(ValueError, match=r"host|port"):
        Endpoint(host, port)


def test_endpoint_says_host_and_port_and_nothing_else() -> None:
    """There is no place in an endpoint for a server name, a manager or anything that could loosen a dial."""
    found = Endpoint("LOCALHOST.", 7)
    assert found == Endpoint("localhost", 7)
    with pytest.raises(TypeError):
        Endpoint("localhost", 7, insecure_skip_verify=True)  # type: ignore[call-arg]
    with pytest.raises((AttributeError, TypeError)):
        found.server_name = "evil.example"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        found.port = 8  # type: ignore[misc]


async def test_endpoint_of_another_node_is_refused(node: NodeFactory) -> None:
    """A resolver that sends us to another node of the cluster gets that one's certificate refused, not accepted."""
    with trio.fail_after(10):
        async with node("gamma@localhost") as gamma, node(str(ALPHA), resolver=Answers([endpoint(gamma)])) as alpha:
            with pytest.raises(PeerUnverifiedError) as caught:
                await alpha.connect(BETA)
            assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
            assert not gamma.connections


async def test_endpoints_host_is_no_identity(node: NodeFactory, manager: ManagerFactory) -> None:
    """The certificate has to cover the name that was asked for; that it covers the endpoint's host does not help."""
    with trio.fail_after(10):
        async with (
            node("beta@host-b.example", manager("localhost")) as liar,
            node(str(ALPHA), resolver=Answers([Endpoint("localhost", liar.acceptors[0].address[1])])) as alpha,
        ):
            with pytest.raises(PeerUnverifiedError) as caught:
                await alpha.connect("beta@host-b.example")
            assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
            assert caught.value.wanted == "host-b.example"


async def test_endpoint_of_a_stranger_is_refused(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A resolver that sends us outside the cluster gets a server refused that none of our CAs vouches for."""
    with trio.fail_after(10):
        async with (
            node(str(BETA), manager(str(BETA), ca=rogue_ca)) as rogue,
            node(str(ALPHA), resolver=Answers([endpoint(rogue)])) as alpha,
        ):
            with pytest.raises(PeerUnverifiedError) as caught:
                await alpha.connect(BETA)
            assert caught.value.reason is UnverifiedReason.UNKNOWN_CA


# Resolvers that fail --------------------------------------------------------------------------------------------------


class Hangs:
    """A resolver that never answers."""

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Never."""
        await trio.sleep_forever()
        raise AssertionError("unreachable")


class Raises:
    """A resolver that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Fail."""
        await trio.lowlevel.checkpoint()
        raise self.error


class Unprintable:
    """An answer that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


async def trouble_with(node: NodeFactory, resolver: Resolver, **network: Any) -> tuple[NoRouteError, ResolverTrouble]:
    """What a dial raises, and what the node reports, with a resolver that fails; the node goes on."""
    async with node(str(ALPHA), resolver=resolver, **network) as alpha, alpha.events() as events:
        with pytest.raises(NoRouteError) as caught:
            await alpha.connect(BETA)
        event: ResolverTrouble = await event_of(events, ResolverTrouble)
        assert event.node == ALPHA
        assert event.name == BETA
        assert caught.value.name == BETA
        assert caught.value.__cause__ is event.error
        assert caught.value.causes is None
        assert "beta@localhost" in str(caught.value)
        async with node("gamma@localhost") as gamma:
            await alpha.connect("gamma@localhost", Route(host="127.0.0.1", port=gamma.acceptors[0].address[1]))
    return caught.value, event


async def test_resolver_that_hangs_is_bounded(node: NodeFactory) -> None:
    """A resolver that never answers costs `connect_timeout`, is reported, and the dial has no route."""
    began = time.monotonic()
    with trio.fail_after(10):
        error, event = await trouble_with(node, Hangs(), connect_timeout=0.2)
    assert time.monotonic() - began < 5
    assert isinstance(event.error.__cause__, trio.TooSlowError)
    assert "resolver" in str(error)


async def test_resolver_that_raises_is_reported(node: NodeFactory) -> None:
    """What a resolver raises is reported, and is the cause of what the dial raises; control characters are escaped."""
    failure = RuntimeError("the directory\nis down")
    with trio.fail_after(10):
        error, event = await trouble_with(node, Raises(failure))
    assert event.error.__cause__ is failure
    assert r"RuntimeError: the directory\nis down" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        "127.0.0.1:15000",
        ["127.0.0.1:15000"],
        [("127.0.0.1", 15000)],
        [Endpoint("127.0.0.1", 15000), None],
        {"host": "127.0.0.1"},
        (endpoint for endpoint in DEAD),
        [Route(host="127.0.0.1", insecure_skip_verify=True)],
        Unprintable(),
    ],
    ids=["None", "number", "text", "texts", "tuples", "mixed", "dict", "generator", "routes", "unprintable"],
)
async def test_resolver_that_lies_about_types_is_reported(node: NodeFactory, answer: Any) -> None:
    """An answer that is no sequence of endpoints is reported, and nothing of it is used."""
    with trio.fail_after(10):
        error, event = await trouble_with(node, Answers(answer))
    assert isinstance(event.error, ResolverError)
    assert len(str(error)) < 1000


async def test_resolver_with_too_many_endpoints_is_cut_short(node: NodeFactory) -> None:
    """Of a flood of endpoints only the first few are tried."""
    tried: list[int] = []

    class Refusing:
        async def listen(self, host: str | None, port: int, **options: Any) -> Sequence[Listener]:
            return await TCP.listen(host, port, **options)

        async def connect(self, host: str, port: int) -> trio.abc.Stream:
            tried.append(port)
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError

    resolver = Answers([Endpoint("127.0.0.1", n) for n in range(1, 1001)])
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=resolver, transport=Refusing()) as alpha:
            with pytest.raises(NoRouteError) as caught:
                await alpha.connect(BETA)
    assert tried == list(range(1, 33))
    assert caught.value.causes is not None
    assert len(caught.value.causes.exceptions) == 32


async def test_resolver_that_knows_nothing(node: NodeFactory) -> None:
    """A name that the resolver does not know has no route; that is no trouble, and no other way is tried."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=Answers([])) as alpha, alpha.events() as events:
            with pytest.raises(NoRouteError, match="does not know it") as caught:
                await alpha.connect(BETA)
            assert caught.value.causes is None
            with trio.move_on_after(0.05):
                await event_of(events, ResolverTrouble)
                pytest.fail("it was reported")


async def test_trouble_costs_that_dial_only(node: NodeFactory) -> None:
    """While a resolver hangs for one name, others are dialled by their routes."""
    with trio.fail_after(10):
        async with node("gamma@localhost") as gamma, node(str(ALPHA), resolver=Hangs()) as alpha:
            alpha.add_route("gamma@*", Route(host="127.0.0.1", port=gamma.acceptors[0].address[1]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alpha.connect, BETA)
                await trio.testing.wait_all_tasks_blocked()
                await alpha.connect("gamma@localhost")
                nursery.cancel_scope.cancel()
