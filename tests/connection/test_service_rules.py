"""What can be registered as a service, under which names and for whom; what cannot is refused at once, not later."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from trionode import LocalProtocolError, NodeOptions, _protocol as wire
from trionode._connection.services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from conftest import ManagerFactory, ScriptedFactory

    from trionode import Peer, Service, ServiceChannel


def opened(service: str) -> bytes:
    """A whole OPEN of channel 1."""
    return wire.control(wire.OPEN, 1, wire.Open(service=service))


async def serve_nothing(_: ServiceChannel) -> None:
    """An async function."""


class Serves:
    """Objects and methods that serve, or not."""

    async def __call__(self, channel: ServiceChannel) -> None:
        """Serve."""

    async def method(self, channel: ServiceChannel) -> None:
        """Serve."""

    def plain(self, channel: ServiceChannel) -> None:
        """Nothing to await."""


class Plain:
    """Called, it gives nothing to await."""

    def __call__(self, channel: ServiceChannel) -> None:
        """Do nothing."""


def passes_on(channel: ServiceChannel) -> Awaitable[None]:
    """Give the awaitable of another."""
    return serve_nothing(channel)


def returns_nothing(channel: ServiceChannel) -> None:
    """A body that ends in different ways, each without a value."""
    if channel.peer.verified:
        return
    raise ValueError


async def generates(channel: ServiceChannel) -> AsyncIterator[None]:
    """An async generator: awaiting what it gives fails."""
    yield


#: Ways to offer a service, and to open a channel to one: each insists on the same names.
NAMES: Final = pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", ValueError),
        ("s" * 256, ValueError),
        ("\ud800", ValueError),
        ("a\udcff", ValueError),
        (b"x", TypeError),
        (("t",), TypeError),
        (None, TypeError),
        (5, TypeError),
    ],
)


@pytest.mark.usefixtures("jumping_clock")
@NAMES
async def test_one_rule_says_what_a_service_name_is(
    scripted: ScriptedFactory, manager: ManagerFactory, name: Any, error: type[Exception]
) -> None:
    """Where one is registered, where it is an option, and where a channel is opened, which costs nobody anything."""
    services = Services(propagate_errors=False, expose_errors=False)
    with pytest.raises(error, match="1 to 255 characters"):
        services.add(name, serve_nothing)
    with pytest.raises(error, match="1 to 255 characters"):
        NodeOptions(cert_manager=manager("alpha@localhost"), services={name: serve_nothing})
    async with scripted() as scene:
        with pytest.raises(LocalProtocolError, match="1 to 255 characters"):
            scene.connection.open_channel(name)
        with pytest.raises(LocalProtocolError, match="1 to 255 characters"):
            await scene.connection.call(name, b"")
        assert scene.connection.statistics().channels_opened == 0
        assert await scene.answered() == []


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize("name", ["x", "s" * 255, "é" * 255, "\U0001f511" * 255, "\n"])
async def test_a_name_that_can_be_registered_can_be_asked_for(scripted: ScriptedFactory, name: str) -> None:
    """However long it is encoded."""
    async with scripted(services={name: serve_nothing}) as scene:
        await scene.say(opened(name))
        [(kind, channel, _)] = await scene.answered()
        assert (kind, channel) == (wire.CLOSE, 1)
        scene.connection.open_channel(name)
        [(kind, _, payload)] = await scene.answered()
        assert (kind, wire.decode(wire.Open, payload).service) == (wire.OPEN, name)


@pytest.mark.parametrize(
    "service",
    [
        42,
        None,
        "serve",
        returns_nothing,
        generates,
        Serves().plain,
        Plain(),
        partial(returns_nothing),
        partial(Serves().plain),
        lambda _: None,
        lambda channel: (yield channel),
    ],
)
def test_what_gives_nothing_to_await_is_no_service(manager: ManagerFactory, service: Any) -> None:
    """As far as that shows before a channel is there for it; it is said at once, and not to the first caller."""
    with pytest.raises(TypeError, match="async function of one argument, the channel"):
        Services(propagate_errors=False, expose_errors=False).add("x", service)
    with pytest.raises(TypeError, match="async function of one argument, the channel"):
        NodeOptions(cert_manager=manager("alpha@localhost"), services={"x": service})


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.parametrize(
    "service",
    [
        serve_nothing,
        Serves(),
        Serves().method,
        partial(serve_nothing),
        partial(partial(Serves().method)),
        passes_on,
        partial(passes_on),
        lambda channel: serve_nothing(channel),
    ],
)
async def test_whatever_gives_something_to_await_is_a_service(scripted: ScriptedFactory, service: Service) -> None:
    """It need not be `async def` itself."""
    async with scripted(services={"x": service}, propagate_errors=True) as scene:
        await scene.say(opened("x"))
        assert [(kind, channel) for kind, channel, _ in await scene.answered()] == [(wire.CLOSE, 1)]


async def asks(_: Peer) -> bool:
    """A verdict that nobody awaits."""
    return True


@pytest.mark.parametrize("allow", [5, b"alpha@localhost", [5], ["alpha@localhost", None], asks, partial(asks), 1.5])
def test_what_cannot_say_who_may_use_a_service_is_refused_at_once(allow: Any) -> None:
    """It would let nobody in, or fail when the first one comes."""
    with pytest.raises(TypeError, match="allow is a node name, a glob"):
        Services(propagate_errors=False, expose_errors=False).add("x", serve_nothing, allow=allow)
