"""Whatever raises after a handshake, by a fault of ours that a peer may have triggered, costs that connection alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import Connection, EndReason, HandshakeError, NoRouteError, Peer, RemoteError
from trionode._connection.channels import Channels
from trionode._connection.closing import close
from trionode._connection.core import ConnectionCore
from trionode._connection.liveness import Liveness
from trionode._connection.registry import Registry
from trionode._connection.send_queue import Outbox
from trionode._managers.publisher import Publisher
from trionode._node import runtime as _runtime
from trionode._node.events import EventHub
from trionode._node.renewal import Renewal
from trionode._node.runtime import Runtime
from trionode._node.statistics import Counters
from trionode._tls.stream import SessionStream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from conftest import ManagerFactory, NodeFactory

    from trionode import Route

BETA = "beta@localhost"

#: Every function that runs after a handshake, for it, on either side.
STEPS: list[tuple[type | ModuleType, str]] = [
    (Connection, "__init__"),
    (ConnectionCore, "__init__"),
    (ConnectionCore, "__repr__"),
    (ConnectionCore, "__str__"),
    (ConnectionCore, "_keep_time"),
    (ConnectionCore, "_on_frame"),
    (ConnectionCore, "_read"),
    (ConnectionCore, "_read_frames"),
    (ConnectionCore, "_write"),
    (ConnectionCore, "become"),
    (ConnectionCore, "end"),
    (ConnectionCore, "cut_off"),
    (_runtime, "retire"),
    (Channels, "dispatch"),
    (Channels, "end"),
    (Counters, "add_ended"),
    (EventHub, "publish"),
    (Liveness, "beat"),
    (Publisher, "attach"),
    (Publisher, "detach"),
    (Outbox, "write"),
    (Peer, "__repr__"),
    (Registry, "add"),
    (Registry, "remove"),
    (Renewal, "_cause"),
    (Renewal, "_look"),
    (Renewal, "_new_link"),
    (Renewal, "_time_left"),
    (Renewal, "forget"),
    (Renewal, "watch"),
    (Runtime, "_attach"),
    (Runtime, "_detach"),
    (Runtime, "_forget"),
    (Runtime, "_limit_leaving"),
    (Runtime, "_limit_unverified"),
    (Runtime, "_no_longer_retiring"),
    (Runtime, "_report_end"),
    (Runtime, "_retire"),
    (Runtime, "_settings_of"),
    (Runtime, "_take_in"),
    (Runtime, "public"),
    (Runtime, "refused"),
    (SessionStream, "close_at_once"),
]


#: What the scenario may do without: no control path shows a connection, and little is refused, closed or renewed.
UNUSUAL = {"__repr__", "__str__", "refused", "cut_off"}


class InjectedError(Exception):
    """What no code of ours expects."""


class Injection:
    """Makes a function raise, once or each time, while it is armed, for one node's objects or all."""

    def __init__(self, owner: type | ModuleType, name: str, times: float) -> None:
        self.armed, self.left, self.hits = False, times, 0
        original = getattr(owner, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            if self.armed and self.left > 0:
                self.left -= 1
                self.hits += 1
                raise InjectedError(f"{owner.__name__}.{name}")
            return original(*args, **kwargs)

        self.function = failing


CASES = [
    pytest.param(owner, name, times, id=f"{owner.__name__}.{name}-{'once' if times == 1 else 'always'}")
    for owner, name in STEPS
    for times in (1, float("inf"))
    if (name, times) != ("remove", float("inf"))  # a registry that never forgets hands out what has ended
]


@pytest.mark.parametrize(("owner", "name", "times"), CASES)
async def test_a_fault_after_a_handshake_costs_one_connection(
    node: NodeFactory,
    manager: ManagerFactory,
    route_to: Callable[..., Route],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type | ModuleType,
    name: str,
    times: float,
) -> None:
    """Both nodes go on and take new connections; what was there before is untouched by a fault that happens once."""
    caplog.set_level(logging.CRITICAL, "trionode")

    async def echo(channel: Any) -> None:
        await channel.send(await channel.receive())

    injection = Injection(owner, name, times)
    certs = manager("alpha@localhost")
    with trio.fail_after(30):
        async with (
            node(BETA, services={"echo": echo}) as beta,
            node("alpha@localhost", certs) as alpha,
            node("gamma@localhost") as gamma,
        ):
            gamma.add_route(BETA, route_to(beta))
            alpha.add_route(BETA, route_to(beta))
            bystander = await gamma.connect(BETA)
            assert await bystander.call("echo", b"0") == b"0"
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(owner, name, injection.function)
            injection.armed = True
            for route in (None, route_to(beta, cert_manager=manager("alpha@localhost"))):  # the second replaces
                with trio.move_on_after(0.3):
                    try:
                        connection = await alpha.connect(BETA, route=route)
                        await connection.call("echo", b"1")
                        certs.update(certs.key_pair)  # a turn for the renewal
                        await trio.sleep(0.01)
                        if route is not None:
                            await connection.aclose()
                    except (HandshakeError, NoRouteError, RemoteError, InjectedError):
                        pass
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass
                await trio.sleep(0.01)
            injection.armed = False
            assert injection.hits or owner in (Peer, Renewal) or name in UNUSUAL
            if times == 1 and name != "_keep_time":
                assert await bystander.call("echo", b"2") == b"2"
            # New ones come through, to both.
            for each in (gamma, alpha):
                for known in list(each._runtime.running):
                    await close(known, EndReason.CLOSED)
                again = await each.connect(BETA)
                assert await again.call("echo", b"3") == b"3"
