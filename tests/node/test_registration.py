"""A node is known to its registrar from when it accepts until before it stops accepting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import Endpoint, NodeName, Registrar, ResolverError, ResolverTrouble
from trionode._util.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from conftest import NodeFactory

ALPHA = "alpha@localhost"


class Scripted:
    """A registrar whose `register` is a test's."""

    def __init__(self, script: Callable[[trio.TaskStatus[None]], Awaitable[None]]) -> None:
        self._script = script
        self.calls: list[tuple[NodeName, Sequence[tuple[str, int]]]] = []

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """It knows of none."""
        return []

    async def register(
        self,
        name: NodeName,
        addresses: Sequence[tuple[str, int]],
        /,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Note it, and follow the script."""
        self.calls.append((name, addresses))
        await self._script(task_status)


def failing(failure: Exception) -> Scripted:
    """A registrar that cannot be used."""

    async def script(task_status: trio.TaskStatus[None]) -> None:
        raise failure

    return Scripted(script)


def test_it_is_a_protocol() -> None:
    """Whatever has both methods is one."""
    assert isinstance(failing(ValueError()), Registrar)


@pytest.mark.parametrize("failure", [ResolverError("full"), OSError("disk full"), ValueError("no")], ids=repr)
async def test_node_that_cannot_be_registered_does_not_open(node: NodeFactory, failure: Exception) -> None:
    """A node that its resolver cannot take fails to open, bare, with a `ResolverError`; nothing stays open."""
    with trio.fail_after(10):
        with pytest.raises(ResolverError, match=str(failure)) as caught:
            async with node(ALPHA, resolver=failing(failure)):
                pytest.fail("the body ran")
        assert failure in (caught.value, caught.value.__cause__)


async def test_it_is_registered_from_when_it_accepts_until_before_it_stops(node: NodeFactory) -> None:
    """The body runs once the node can be found; and while it is withdrawn it still accepts."""
    said: list[str] = []

    async def script(task_status: trio.TaskStatus[None]) -> None:
        [[_, addresses]] = registrar.calls
        await trio.testing.wait_all_tasks_blocked()
        said.append("registered")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                async with await trio.open_tcp_stream(*addresses[0]):
                    said.append("withdrawn")

    registrar = Scripted(script)
    with trio.fail_after(10):
        async with node(ALPHA, resolver=registrar) as alpha:
            said.append("open")
            assert registrar.calls == [(alpha.name, list(alpha.acceptors[0].addresses))]
        assert said == ["registered", "open", "withdrawn"]
        said.clear()
        registrar.calls.clear()
        async with node(ALPHA, resolver=registrar) as alpha:
            await alpha.drain()
            assert said == ["registered", "withdrawn"]


@pytest.mark.parametrize("required", [False, True])
async def test_one_that_is_down_is_trouble(node: NodeFactory, *, required: bool) -> None:
    """Opening waits for so long, and no longer; whether the node then opens is an option."""

    async def script(task_status: trio.TaskStatus[None]) -> None:
        await go.wait()
        task_status.started()
        await trio.sleep_forever()

    go = trio.Event()
    options: dict[str, Any] = {"registration_timeout": 0.01, "registration_required": required}
    with trio.fail_after(10):
        if required:
            with pytest.raises(ResolverError, match=r"not registered .* after 0.01 s .registration_timeout."):
                async with node(ALPHA, resolver=Scripted(script), **options):
                    pytest.fail("the body ran")
        else:
            async with node(ALPHA, resolver=Scripted(script), **options):
                go.set()
                await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("ending", [None, OSError("connection lost")], ids=["returns", "raises"])
async def test_one_that_ends_is_run_again(
    node: NodeFactory, monkeypatch: pytest.MonkeyPatch, ending: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the node goes on."""
    monkeypatch.setattr("trionode._node.registration.BACKOFF", Backoff(first=0.001, longest=1))

    async def script(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        if len(registrar.calls) == 1:
            await go.wait()
            if ending is not None:
                raise ending
            return
        again.set()
        await trio.sleep_forever()

    registrar, go, again = Scripted(script), trio.Event(), trio.Event()
    with trio.fail_after(10):
        async with node(ALPHA, resolver=registrar) as alpha, alpha.events() as events:
            go.set()
            async for event in events:
                if isinstance(event, ResolverTrouble):
                    assert event.name is None
                    assert event.error is ending or "returned" in str(event.error)
                    break
            await again.wait()
    assert "trying again" in caplog.text


async def test_one_that_does_not_let_go_holds_nothing_up(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Withdrawing is bounded, by the node's grace, too."""
    monkeypatch.setattr("trionode._node.registration.WITHDRAW_GRACE", 0.01)
    left = trio.Event()

    async def script(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await left.wait()

    with trio.fail_after(10):
        async with node(ALPHA, resolver=Scripted(script)) as alpha:
            await alpha.drain()
            left.set()
