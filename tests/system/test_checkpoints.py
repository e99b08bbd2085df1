"""Every async context manager of ours is a checkpoint on entry and on exit, cancelled included."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

import trionode
from trionode import (
    AcceptorOptions,
    NetworkOptions,
    NodeName,
    NodeOptions,
    TypedChannel,
    UnverifiedReason,
    open_node,
    open_tls_stream,
    serve_tls,
)
from trionode.discovery import StaticResolver
from trionode.health import Health, watch_health
from trionode.http import HTTPTransport
from trionode.testing import expect_refusal_at, node_factory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from conftest import ManagerFactory, PairFactory

    from trionode import Node, ServiceChannel, TLSStream
    from trionode.pki import CertificateAuthority

    Made = AbstractAsyncContextManager[Any]
    Maker = Callable[["World"], "AsyncIterator[Made]"]

BETA = "beta@localhost"
UNWANTED: Final = UnverifiedReason.NO_CERTIFICATE

#: What is not for applications: steps inside of what is, and commands and the demo, which are programs.
INTERNAL: Final = {
    "Client.lines",
    "DNSResolver._names",
    "DNSResolver._watch",
    "EtcdRegistry._session",
    "Feed._followed",
    "InterceptedBlock",
    "Server.exchange",
    "Session.watch",
    "_Upload",
    "_Way.connected",
    "_application",
    "_node",
    "at_both_ends",
    "orders",
    "serving_application",
}


class World:
    """What there is to make them of."""

    def __init__(self, pair: Any, manager: ManagerFactory, ca: CertificateAuthority) -> None:
        self.alpha, self.beta = pair.alpha, pair.beta
        self.manager = manager
        self.ca = ca

    async def tls_stream(self, stack: AsyncExitStack) -> TLSStream:
        """A client's, of a server that is silent."""

        async def wait(stream: TLSStream) -> None:
            await stream.receive_some()

        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        certs = self.manager("server@localhost")
        listeners = await nursery.start(partial(serve_tls, wait, 0, cert_manager=certs, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        return await open_tls_stream("127.0.0.1", port, cert_manager=certs, server_name="localhost")


async def health_of_beta(world: World, _: AsyncExitStack) -> Made:
    """A watch of it."""
    Health().add_to(world.beta)
    return watch_health(world.alpha, BETA)


def options(world: World) -> NodeOptions:
    """Of one more node."""
    return NodeOptions(
        cert_manager=world.manager("gamma@localhost"),
        network=NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)]),
        shutdown_grace=0,
    )


async def channel_of(world: World, _: AsyncExitStack) -> ServiceChannel:
    """To a service that waits."""
    connection = await world.alpha.connect(BETA)
    channel: ServiceChannel = connection.open_channel("wait")
    return channel


#: How each is made, by where it is defined. Awaited, with a stack for what it needs.
MAKERS: Final[dict[str, Any]] = {
    "Feed.names": lambda world, stack: StaticResolver({BETA: "localhost"}).names("*"),
    "Feed.watch": lambda world, stack: StaticResolver({BETA: "localhost"}).watch(NodeName.parse(BETA)),
    "HTTPTransport": lambda world, stack: HTTPTransport(cert_manager=world.manager("client@localhost")),
    "Lifecycle.opened": lambda world, stack: open_node("gamma@localhost", options(world)),
    "Node.events": lambda world, stack: world.alpha.events(),
    "Node.open_channel": lambda world, stack: world.alpha.open_channel(BETA, "wait"),
    "NodeFactory.__call__": lambda world, stack: node_factory(world.ca)("gamma@localhost"),
    "NodeFactory.cluster": lambda world, stack: node_factory(world.ca).cluster("gamma@localhost", "delta@localhost"),
    "ServiceChannel": channel_of,
    "TLSStream": lambda world, stack: world.tls_stream(stack),
    "TypedChannel": lambda world, stack: typed(world, stack),
    "expect_refusal_at": lambda world, stack: expect_refusal_at(
        world.beta, UnverifiedReason.NO_CERTIFICATE, within=0.1
    ),
    "watch_health": health_of_beta,
}


async def typed(world: World, stack: AsyncExitStack) -> Any:
    """A channel of types."""
    return TypedChannel(await channel_of(world, stack), receives=int)


def defined() -> set[str]:
    """All that there are in the package: functions made into one, and classes that have its methods."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(trionode.__path__, "trionode."):
        if module.name.endswith("__main__"):
            continue
        names = vars(importlib.import_module(module.name)).values()
        classes = [each for each in names if inspect.isclass(each) and each.__module__.startswith("trionode")]
        holders: list[Any] = [importlib.import_module(module.name), *classes]
        for holder in holders:
            for name, value in vars(holder).items():
                function = inspect.unwrap(value) if callable(value) else None
                if name == "__aenter__":
                    found.add(holder.__qualname__)
                elif function is not value and inspect.isasyncgenfunction(function):
                    found.add(function.__qualname__)
    return found


def test_every_one_is_here() -> None:
    """Those that are new, too."""
    assert defined() == INTERNAL | set(MAKERS)


async def wait(channel: ServiceChannel) -> None:
    """Wait for the caller to be done."""
    async for _ in channel:
        pass


@pytest.fixture
def make(open_pair: PairFactory, manager: ManagerFactory, ca: CertificateAuthority) -> Callable[[str], Made]:
    """A function that makes one of them, for an `async with` block."""

    @asynccontextmanager
    async def made(name: str) -> AsyncIterator[Made]:
        with trio.fail_after(20):
            async with open_pair(beta={"services": {"wait": wait}}) as pair, AsyncExitStack() as stack:
                world = World(pair, manager, ca)
                await world.alpha.connect(BETA)
                one = MAKERS[name](world, stack)
                yield await one if inspect.isawaitable(one) else one

    return made


@pytest.mark.parametrize("name", MAKERS)
async def test_it_is_a_checkpoint(name: str, make: Callable[[str], Made]) -> None:
    """On entry, and on exit."""
    async with make(name) as one:
        with trio.testing.assert_checkpoints():
            await one.__aenter__()
        with suppress(AssertionError) if name == "expect_refusal_at" else nullcontext():
            with trio.testing.assert_checkpoints():
                assert not await one.__aexit__(None, None, None)


@pytest.mark.parametrize("name", MAKERS)
async def test_what_the_block_raises_comes_out(name: str, make: Callable[[str], Made]) -> None:
    """As the same object."""
    error = ValueError("the block's own")
    async with make(name) as one:
        with pytest.raises(ValueError, match="the block's own") as caught:
            async with one:
                raise error
        assert caught.value is error


@pytest.mark.parametrize("name", MAKERS)
async def test_it_is_cancelled(name: str, make: Callable[[str], Made]) -> None:
    """On entry, so that the block does not run; and on exit, from a block that ended well."""
    async with make(name) as one:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with one:
                raise AssertionError("the block runs")
        assert scope.cancelled_caught
    async with make(name) as one:
        with trio.CancelScope() as scope:
            async with one:
                scope.cancel()
        assert scope.cancelled_caught


@pytest.mark.parametrize("verb", ["connect", "call", "open_channel", "wait_connected"])
async def test_a_closed_node_refuses_in_turn(verb: str, open_pair: PairFactory) -> None:
    """A program that tries again and again lets others run meanwhile."""

    async def use(node: Node) -> None:
        match verb:
            case "connect" | "wait_connected":
                await getattr(node, verb)(BETA)
            case "call":
                await node.call(BETA, "wait", b"")
            case _:
                async with node.open_channel(BETA, "wait"):
                    pass

    with trio.fail_after(20):
        async with open_pair() as pair:
            await pair.alpha.drain()
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await use(pair.alpha)
            with trio.CancelScope() as scope:
                scope.cancel()
                await use(pair.alpha)
            assert scope.cancelled_caught
