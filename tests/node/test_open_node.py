"""Opening and leaving a node: what comes out, what is flushed, and that nothing stays behind."""

from __future__ import annotations

import contextvars
import gc
import logging
import socket
import traceback
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    EndReason,
    FixedAtStartupError,
    ListenError,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    RemoteError,
    Route,
    _protocol as wire,
    open_node,
    serve_node,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedListener, ScriptedPeer

    from trionode import Connection, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
#: Trio shuffles the tasks of a tick: an order with even odds stays out this often in a row once in 10^12 runs.
ROUNDS = 40


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def linger(channel: ServiceChannel) -> None:
    """Answer once and stay."""
    await channel.send(b"here")
    await trio.sleep_forever()


# What must not stay behind ------------------------------------------------------------------------------------------


def all_tasks() -> set[trio.lowlevel.Task]:
    """Every task of this run."""
    found: set[trio.lowlevel.Task] = set()
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        assert task is not None
        found.add(task)
        for nursery in task.child_nurseries:
            waiting.extend(nursery.child_tasks)
    return found


def open_sockets() -> set[str]:
    """Every socket of this process that is open, as the kernel names it."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that listing them took
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}


@contextmanager
def nothing_stays() -> Iterator[None]:
    """Check that no task and no open socket is left that was not there before, nor anything that warns when freed."""
    gc.collect()
    gc.freeze()  # what is there is not of this test: the other collection need not look through it
    tasks, sockets = all_tasks(), open_sockets()
    yield
    assert all_tasks() <= tasks
    assert open_sockets() <= sockets
    del tasks, sockets
    gc.collect()


# Exceptions stay bare -----------------------------------------------------------------------------------------------


ERRORS = [
    ValueError("from the body"),
    KeyboardInterrupt("from the body"),
    SystemExit(3),
    ExceptionGroup("from the body", [ValueError(1), TypeError(2)]),
    ExceptionGroup("from the body", [ValueError(1)]),
    BaseExceptionGroup("from the body", [KeyboardInterrupt()]),
    StopAsyncIteration("from the body"),
    trio.ClosedResourceError("from the body"),
    AssertionError("from the body"),
]


@pytest.mark.parametrize("error", ERRORS, ids=[f"{type(e).__name__}-{number}" for number, e in enumerate(ERRORS)])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_what_the_body_raises_comes_out_as_it_is(
    open_pair: PairFactory, node: NodeFactory, error: BaseException, busy: bool
) -> None:
    """The body's exception comes out of the block as the same object, connections and services or not."""

    async def fail() -> None:
        raise error

    with trio.fail_after(10), nothing_stays():
        async with open_pair(beta={"services": {"linger": linger}, "shutdown_grace": 0}) as pair:
            pair.beta.add_service("echo", echo)
            with pytest.raises(type(error)) as caught:  # noqa: PT012 -- the block is what it comes out of
                async with node("gamma@localhost", services={"linger": linger}) as gamma:
                    await trio.lowlevel.checkpoint()
                    if busy:
                        host, port = pair.beta.acceptors[0].address
                        connection = await gamma.connect("beta@localhost", Route(host=host, port=port))
                        channel = connection.open_channel("linger")
                        assert await channel.receive() == b"here"
                        back = pair.beta.connections[NodeName.parse("gamma@localhost")].open_channel("linger")
                        assert await back.receive() == b"here"
                    await fail()
            assert caught.value is error
            assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    error.__traceback__ = None
    error.__context__ = None


async def test_what_the_body_raises_first_thing_comes_out_as_it_is(node: NodeFactory) -> None:
    """So it does before any task of the node has run."""
    error = ValueError("at once")
    with trio.fail_after(10), nothing_stays():
        with pytest.raises(ValueError, match="at once") as caught:
            async with node("alpha@localhost"):
                raise error
        assert caught.value is error
    error.__traceback__ = None


async def test_body_that_does_nothing(node: NodeFactory) -> None:
    """A block may be left at once: no task of the node has run then."""
    with trio.fail_after(10), nothing_stays():
        async with node("alpha@localhost"):
            pass


async def test_outer_cancellation_is_caught_where_it_belongs(open_pair: PairFactory) -> None:
    """Cancelling from outside ends node and body at once, and the scope that was cancelled catches it."""
    with trio.fail_after(10), nothing_stays():
        with trio.CancelScope() as scope:
            async with open_pair(beta={"services": {"linger": linger}}) as pair:
                connection = await pair.alpha.connect("beta@localhost")
                async with connection.open_channel("linger") as channel:
                    assert await channel.receive() == b"here"
                    scope.cancel()
                    await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_deadlines_work_around_nodes(open_pair: PairFactory) -> None:
    """`move_on_after` around a node works as around anything else."""
    with trio.fail_after(10), nothing_stays():
        with trio.move_on_after(0.05) as scope:
            async with open_pair():
                await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_error_of_a_cancelled_body_stays_bare(node: NodeFactory) -> None:
    """What the body raises while a cancellation from outside is under way comes out as the same object, too."""
    error = ValueError("while cleaning up")
    with trio.fail_after(10), nothing_stays():
        with pytest.raises(ValueError, match="while cleaning up") as caught:  # noqa: PT012 -- the block is what it comes out of
            with trio.CancelScope() as scope:
                async with node("alpha@localhost"):
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
                    raise error
        assert caught.value is error
    error.__traceback__ = None


async def test_cancellation_within_the_body_stays_there(node: NodeFactory) -> None:
    """A scope that the body opens and cancels is none of the node's business."""
    with trio.fail_after(10), nothing_stays():
        async with node("alpha@localhost") as alpha:
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.sleep_forever()
            assert scope.cancelled_caught
            await trio.lowlevel.checkpoint()
            assert "open" in repr(alpha)


# Start-up errors ----------------------------------------------------------------------------------------------------


def acceptor(**options: Any) -> AcceptorOptions:
    """An acceptor on loopback."""
    return AcceptorOptions(host="127.0.0.1", port=0, **options)


@pytest.mark.parametrize("where", ["node", "acceptor", "route"])
@pytest.mark.parametrize("defect", ["expired", "not_yet_valid", "no_client_cas"])
async def test_unusable_credentials_fail_the_start(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority, where: str, defect: str
) -> None:
    """An unusable manager, of the node, an acceptor or a route, fails the start, bare, before the body runs."""
    now = datetime.now(UTC)
    bad = {
        "expired": manager("alpha@localhost", not_after=now - timedelta(hours=1)),
        "not_yet_valid": manager("alpha@localhost", not_before=now + timedelta(hours=1)),
        "no_client_cas": CertAuthManager(
            ca.issue("alpha@localhost"), client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
        ),
    }[defect]
    good = manager("alpha@localhost")
    with trio.fail_after(10), nothing_stays():
        with pytest.raises(CertificateError) as caught:
            async with node(
                "alpha@localhost",
                bad if where == "node" else good,
                acceptors=[acceptor(), acceptor(cert_manager=bad if where == "acceptor" else None)],
                routes={"beta@*": Route(cert_manager=bad)} if where == "route" else {},
            ):
                pytest.fail("the body ran")
        assert caught.value.reason is CertificateReason(defect)
        for each in good, bad:
            each.set_server_name("fine.example")


async def test_acceptor_that_cannot_listen_fails_the_start(node: NodeFactory, manager: ManagerFactory) -> None:
    """A port that is taken fails the start, bare, before the body runs, and what was open is closed again."""
    certs = manager("alpha@localhost")
    with socket.socket() as taken, trio.fail_after(10):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bad = AcceptorOptions(host="127.0.0.1", port=taken.getsockname()[1])
        with nothing_stays():
            with pytest.raises(ListenError) as caught:
                async with node("alpha@localhost", certs, acceptors=[acceptor(), bad]):
                    pytest.fail("the body ran")
            assert caught.value.address == taken.getsockname()
            certs.set_server_name("fine.example")


async def test_cancelled_start_leaves_nothing(node: NodeFactory, manager: ManagerFactory) -> None:
    """A start that is cancelled is cancelled, and the manager is free again."""
    certs = manager("alpha@localhost")
    with trio.fail_after(10), nothing_stays():
        with trio.CancelScope() as scope:
            scope.cancel()
            async with node("alpha@localhost", certs):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        certs.set_server_name("fine.example")


async def test_managers_that_must_be_server_certificates(node: NodeFactory, manager: ManagerFactory) -> None:
    """A certificate that is for clients only fails a node that listens, and serves one that does not."""
    certs = manager("alpha@localhost", extended_key_usage=[ExtendedKeyUsageOID.CLIENT_AUTH])
    with trio.fail_after(10), nothing_stays():
        with pytest.raises(CertificateError) as caught:
            async with node("alpha@localhost", certs):
                pytest.fail("the body ran")
        assert caught.value.reason is CertificateReason.WRONG_EKU
        async with node("alpha@localhost", certs, mode=NetworkMode.HIDDEN):
            pass


# Several acceptors --------------------------------------------------------------------------------------------------


async def test_node_with_several_acceptors(node: NodeFactory) -> None:
    """A node may listen in several places; each lets peers in."""
    with trio.fail_after(10), nothing_stays():
        async with (
            node("beta@localhost", acceptors=[acceptor(), acceptor(), acceptor()]) as beta,
            node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha,
        ):
            assert len({each.address for each in beta.acceptors}) == 3
            for each in beta.acceptors:
                host, port = each.address
                connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                await connection.aclose()
                assert each.statistics().established == 1


# Crashes inside -----------------------------------------------------------------------------------------------------


async def crash(channel: ServiceChannel) -> None:
    """Fail."""
    msg = "the service crashed"
    raise RuntimeError(msg)


async def interrupt(channel: ServiceChannel) -> None:
    """Fail as Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("service", "kind", "propagates"),
    [(crash, RuntimeError, True), (interrupt, KeyboardInterrupt, False), (interrupt, KeyboardInterrupt, True)],
)
async def test_crash_inside_comes_as_a_group(
    open_pair: PairFactory, service: Any, kind: type[BaseException], propagates: bool
) -> None:
    """What crashes inside cancels the body and comes out in a group, so that it is not taken for the body's own."""
    with trio.fail_after(10), nothing_stays():
        body_was_cancelled = False
        with pytest.RaisesGroup(kind, flatten_subgroups=True):
            async with open_pair(beta={"services": {"crash": service}, "propagate_service_errors": propagates}) as pair:
                connection = await pair.alpha.connect("beta@localhost")
                connection.open_channel("crash")
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    body_was_cancelled = True
                    raise
        assert body_was_cancelled


async def test_error_of_a_service_is_logged_and_the_node_lives(
    open_pair: PairFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """By default a service that fails costs its caller that call, and is logged with its traceback."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"crash": crash, "echo": echo}}) as pair:
            with pytest.raises(RemoteError) as caught:
                await pair.alpha.call("beta@localhost", "crash", b"")
            assert caught.value.code == "failed"
            assert "the service crashed" not in str(caught.value)
            assert await pair.alpha.call("beta@localhost", "echo", b"on") == b"on"
    [record] = [r for r in caplog.records if r.name == "trionode.service" and r.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_several_errors_come_as_a_group(open_pair: PairFactory) -> None:
    """Where the body fails and a service fails with it, both are in the group."""
    ready = trio.Event()

    async def fail_late(channel: ServiceChannel) -> None:
        try:
            ready.set()
            await trio.sleep_forever()
        finally:
            msg = "from the service"
            raise TypeError(msg)

    with trio.fail_after(10), nothing_stays():
        with pytest.RaisesGroup(TypeError, ValueError, flatten_subgroups=True):
            async with open_pair(beta={"services": {"late": fail_late}, "propagate_service_errors": True}) as pair:
                connection = await pair.alpha.connect("beta@localhost")
                connection.open_channel("late")
                await ready.wait()
                msg = "from the body"
                raise ValueError(msg)


# Leaving cleanly ----------------------------------------------------------------------------------------------------


async def test_leaving_flushes(open_pair: PairFactory, node: NodeFactory) -> None:
    """Everything that was sent before leaving is read by the peer, which then sees the end."""
    messages = [number.to_bytes(2, "big") * size for number, size in enumerate([1, 100, 20_000, 50_000] * 50)]
    got: list[bytes] = []
    ended = trio.Event()

    async def sink(channel: ServiceChannel) -> None:
        got.extend([message async for message in channel])
        ended.set()

    with trio.fail_after(20), nothing_stays():
        async with node("beta@localhost", services={"sink": sink}) as beta:
            host, port = beta.acceptors[0].address
            async with node("alpha@localhost") as alpha:
                connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                [seen] = beta.connections.values()
                async with connection.open_channel("sink") as channel:
                    for message in messages:
                        await channel.send(message)
            await ended.wait()
            assert got == messages
            end = await seen.wait_closed()
            assert end.reason is EndReason.CLOSED_BY_PEER
            assert "shutting_down" in str(end.error)
            assert (await connection.wait_closed()).reason is EndReason.SHUTTING_DOWN


async def test_leaving_lets_services_finish(node: NodeFactory) -> None:
    """A service that has everything it needs finishes, and its caller gets the answer, within shutdown_grace."""
    begun = trio.Event()
    go_on = trio.Event()
    answer: list[bytes] = []

    async def slow(channel: ServiceChannel) -> None:
        request = await channel.receive()
        begun.set()
        await go_on.wait()
        await channel.send(request.upper())

    async def ask(alpha: Node, route: Route) -> None:
        answer.append(await alpha.call("beta@localhost", "slow", b"please", route=route))

    with trio.fail_after(20), nothing_stays():
        async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery:
            async with node("beta@localhost", services={"slow": slow}, shutdown_grace=10) as beta:
                host, port = beta.acceptors[0].address
                nursery.start_soon(ask, alpha, Route(host=host, port=port))
                await begun.wait()

                async def release() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    go_on.set()

                nursery.start_soon(release)
    assert answer == [b"PLEASE"]


@asynccontextmanager
async def stuffed(node: Node, scripted_listener: ScriptedListener, certs: Any) -> AsyncIterator[ScriptedPeer]:
    """A connection from the node to a peer that reads nothing, with more bytes accepted than transports hold."""
    limits = wire.Limits(max_message_size=2**30, window=2**30, max_channels=16)
    peers: list[ScriptedPeer] = []

    async def serve() -> None:
        peer = await scripted_listener.accept(certs)
        await peer.greet("beta@localhost", limits=limits)
        peers.append(peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        connection = await node.connect("beta@localhost", scripted_listener.route())
    channel = connection.open_channel("sink")
    blocked = 0
    while blocked < 3:
        try:
            channel.send_nowait(b"x" * 65536)
        except trio.WouldBlock:
            blocked += 1
            await trio.testing.wait_all_tasks_blocked()
        else:
            blocked = 0
    async with peers[0].stream:
        yield peers[0]


async def test_leaving_is_bounded_where_the_peer_does_not_read(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A peer that reads nothing delays the end by `shutdown_grace` at most."""
    with trio.fail_after(5):
        async with AsyncExitStack() as stack:
            with nothing_stays():
                async with node("alpha@localhost", shutdown_grace=0.2) as alpha:
                    peer = stuffed(alpha, scripted_listener, manager("beta@localhost"))
                    await stack.enter_async_context(peer)
                # The peer's own end is not the node's to close.
                await stack.aclose()


async def test_leaving_takes_the_grace_that_it_was_given(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_listener: ScriptedListener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that is slow, but within `shutdown_grace`, reads everything and the goodbye."""
    monkeypatch.setattr("trionode._connection.core.CLOSE_GRACE", 0.05)
    kinds: list[int] = []
    limits = wire.Limits(max_message_size=2**30, window=2**30, max_channels=16)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        peer = await scripted_listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.greet("beta@localhost", limits=limits)
            await trio.sleep(0.5)  # longer than any grace but the node's
            while wire.GOODBYE not in kinds:
                kinds.append((await peer.frame())[0])

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            async with node("alpha@localhost", shutdown_grace=10) as alpha:
                connection = await alpha.connect("beta@localhost", scripted_listener.route())
                async with connection.open_channel("sink") as channel:
                    for _ in range(300):
                        with trio.move_on_after(0.05) as scope:
                            await channel.send(b"x" * 65536)
                        if scope.cancelled_caught:
                            break
                    sent = connection.statistics()
                    assert sent.channels == 1
    assert wire.CLOSE in kinds
    assert kinds[-1] == wire.GOODBYE


async def test_leaving_races_with_a_newcomer(node: NodeFactory) -> None:
    """A client that connects in the very tick in which the block is left does not crash the node."""
    with trio.fail_after(30):
        for _ in range(ROUNDS):
            async with node("alpha@localhost") as alpha:
                await trio.testing.wait_all_tasks_blocked()
                with socket.create_connection(alpha.acceptors[0].address):
                    await trio.lowlevel.checkpoint()


async def test_leaving_is_cancellable(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A clean end that takes long can be cancelled from outside, and ends at once then."""
    with trio.fail_after(5):
        async with AsyncExitStack() as stack:
            with trio.CancelScope() as scope:
                async with node("alpha@localhost", shutdown_grace=1000) as alpha:
                    peer = stuffed(alpha, scripted_listener, manager("beta@localhost"))
                    await stack.enter_async_context(peer)

                    async def cancel() -> None:
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()

                    trio.lowlevel.spawn_system_task(cancel)
            assert scope.cancelled_caught


async def test_cancellation_while_a_connection_is_closed(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """Cancelling the node while a task waits in `aclose()` ends that task, too."""
    with trio.fail_after(5):
        async with AsyncExitStack() as stack:
            with trio.CancelScope() as scope:
                async with node("alpha@localhost") as alpha:
                    peer = stuffed(alpha, scripted_listener, manager("beta@localhost"))
                    await stack.enter_async_context(peer)
                    [connection] = alpha.connections.values()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(connection.aclose)
                        nursery.start_soon(connection.wait_closed)
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
            assert scope.cancelled_caught


async def test_goodbye_reaches_every_peer(node: NodeFactory) -> None:
    """Leaving cleanly tells every peer, so that each sees the end as the node's and not as a loss."""
    with trio.fail_after(10), nothing_stays():
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(node(f"peer-{number}@localhost")) for number in range(3)]
            async with node("alpha@localhost") as alpha:
                seen: list[Connection] = []
                for peer in peers:
                    host, port = peer.acceptors[0].address
                    await alpha.connect(peer.name, Route(host=host, port=port))
                    seen.append(peer.connections[ALPHA])
            for connection in seen:
                assert (await connection.wait_closed()).reason is EndReason.CLOSED_BY_PEER


# Nothing stays behind -----------------------------------------------------------------------------------------------


class Busy:
    """Services and clients in every state that a node can be left in."""

    def __init__(self) -> None:
        self.states: dict[str, trio.Event] = {
            name: trio.Event() for name in ("receiving", "sending", "sleeping", "cleaning up", "iterating")
        }
        self.ended: list[str] = []

    @property
    def services(self) -> dict[str, Callable[[ServiceChannel], Awaitable[None]]]:
        """One for each state."""
        return {
            "receiving": self._receiving,
            "sending": self._sending,
            "sleeping": self._sleeping,
            "cleaning up": self._cleaning_up,
            "iterating": self._iterating,
            "ended": echo,
        }

    @contextmanager
    def _state(self, name: str) -> Iterator[None]:
        self.states[name].set()
        try:
            yield
        finally:
            self.ended.append(name)

    async def _receiving(self, channel: ServiceChannel) -> None:
        with self._state("receiving"):
            await channel.receive()

    async def _iterating(self, channel: ServiceChannel) -> None:
        with self._state("iterating"):
            async for _ in channel:
                pass

    async def _sending(self, channel: ServiceChannel) -> None:
        with self._state("sending"):
            while True:
                await channel.send(bytes(60_000))

    async def _sleeping(self, channel: ServiceChannel) -> None:
        with self._state("sleeping"):
            await trio.sleep_forever()

    async def _cleaning_up(self, channel: ServiceChannel) -> None:
        with self._state("cleaning up"):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.05)


WAYS = ["cleanly", "by exception", "by cancellation"]


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_stays_behind(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    scripted_listener: ScriptedListener,
    way: str,
) -> None:
    """However a node is left, and whatever is under way: no task, no socket, no warning, and its managers are free."""
    certs = manager("alpha@localhost")
    route_certs = manager("alpha@localhost")
    acceptor_certs = manager("alpha@localhost")
    opened: list[Node] = []
    waiting: list[str] = []
    busy = Busy()

    async def dial(route: Route) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await opened[0].connect("gamma@localhost", route)
        waiting.append("dial")

    async def read() -> None:
        async with opened[0].events() as events:
            async for _ in events:
                pass
        waiting.append("events")

    session = (await manager("alpha@localhost").contexts.receive()).client.session(reference="localhost")
    session.handshake()
    flight = session.outgoing()

    with trio.fail_after(20), nothing_stays():
        async with (
            AsyncExitStack() as outside,
            node("beta@localhost", services=busy.services, shutdown_grace=0.2) as beta,
            trio.open_nursery() as nursery,
        ):
            host, port = beta.acceptors[0].address
            with trio.CancelScope() as scope, ExitStack() as raising:
                if way == "by exception":
                    raising.enter_context(pytest.raises(ZeroDivisionError))
                async with node(
                    "alpha@localhost",
                    certs,
                    services=busy.services,
                    acceptors=[acceptor(), acceptor(cert_manager=acceptor_certs)],
                    shutdown_grace=0.2,
                ) as alpha:
                    opened.append(alpha)
                    nursery.start_soon(read)
                    # Connections both ways, with services in every state at either end.
                    connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                    back = beta.connections[ALPHA]
                    for end in connection, back:
                        for name in busy.services:
                            end.open_channel(name)
                        async with end.open_channel("ended") as channel:
                            await channel.send(b"once")
                            assert await channel.receive() == b"once"
                    for state in busy.states.values():
                        await state.wait()
                    # Half-done handshakes: nothing said, half a flight, TLS without hello, hello without confirmation.
                    for half in b"", flight[:50], flight:
                        transport = await trio.open_tcp_stream(*alpha.acceptors[0].address)
                        await outside.enter_async_context(transport)
                        if half:
                            await transport.send_all(half)
                    for number in range(2):
                        peer = await scripted_dial(alpha, manager("gamma@localhost"))
                        await outside.enter_async_context(peer.stream)
                        if number:
                            await peer.say(peer.hello("gamma@localhost"))
                            await peer.hear(wire.Answer)
                    # Dials under way: no TLS from the other side, TLS without an answer.
                    nursery.start_soon(dial, scripted_listener.route())
                    nursery.start_soon(dial, scripted_listener.route())
                    await outside.enter_async_context(await scripted_listener.listener.accept())
                    nursery.start_soon(dial, scripted_listener.route(cert_manager=route_certs))
                    peer = await scripted_listener.accept(manager("gamma@localhost"))
                    await outside.enter_async_context(peer.stream)
                    await peer.hear(wire.Hello)
                    assert alpha.acceptors[0].statistics().handshaking == 5
                    for used in certs, route_certs, acceptor_certs:
                        with pytest.raises(FixedAtStartupError):
                            used.set_server_name("late.example")
                    if way == "by exception":
                        _ = 1 / 0
                    if way == "by cancellation":
                        scope.cancel()
                        await trio.sleep_forever()
            assert scope.cancelled_caught is (way == "by cancellation")
            for used in certs, route_certs, acceptor_certs:
                used.set_server_name(None)
                used.set_client_auth(ClientAuth.NO_CLIENT_CERT)
            assert not alpha.connections
            for ended in connection, back:
                await ended.wait_closed()
        assert sorted(waiting) == ["dial", "dial", "dial", "events"]
        assert sorted(busy.ended) == sorted([*busy.states, *busy.states])


@pytest.mark.parametrize("way", WAYS)
async def test_sockets_are_closed_when_the_block_is_left(
    node: NodeFactory, scripted_listener: ScriptedListener, way: str
) -> None:
    """The peer at the other end of a half-done handshake or dial sees it closed as soon as the node is left."""
    opened: list[Node] = []
    others: list[trio.SocketStream] = []

    async def dial() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await opened[0].connect("beta@localhost", scripted_listener.route())

    with trio.fail_after(10):
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            with trio.CancelScope() as scope, ExitStack() as raising:
                if way == "by exception":
                    raising.enter_context(pytest.raises(ZeroDivisionError))
                async with node("alpha@localhost") as alpha:
                    others.append(await trio.open_tcp_stream(*alpha.acceptors[0].address))
                    opened.append(alpha)
                    nursery.start_soon(dial)
                    others.append(await scripted_listener.listener.accept())
                    for other in others:
                        await stack.enter_async_context(other)
                    await others[1].receive_some()
                    while not alpha.acceptors[0].statistics().handshaking:
                        await trio.testing.wait_all_tasks_blocked()
                    if way == "by exception":
                        _ = 1 / 0
                    if way == "by cancellation":
                        scope.cancel()
                        await trio.sleep_forever()
            for other in others:
                assert await other.receive_some() == b""
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream(*alpha.acceptors[0].address)


# serve_node ---------------------------------------------------------------------------------------------------------


async def test_serve_node_in_a_nursery(manager: ManagerFactory, node: NodeFactory) -> None:
    """`nursery.start(serve_node, …)` returns the open node, which lives until it is cancelled."""
    options = NodeOptions(
        cert_manager=manager("beta@localhost"),
        network=NetworkOptions(acceptors=[acceptor()]),
        services={"echo": echo},
    )
    with trio.fail_after(10), nothing_stays():
        async with trio.open_nursery() as nursery:
            beta = await nursery.start(serve_node, "beta@localhost", options)
            host, port = beta.acceptors[0].address
            async with node("alpha@localhost") as alpha:
                reply = await alpha.call("beta@localhost", "echo", b"hi", route=Route(host=host, port=port))
                assert reply == b"hi"
            nursery.cancel_scope.cancel()
        assert "closed" in repr(beta)


async def test_serve_node_that_cannot_start(manager: ManagerFactory) -> None:
    """What fails the start of `serve_node` comes out of `nursery.start`, bare."""
    with socket.socket() as taken, trio.fail_after(10):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bad = AcceptorOptions(host="127.0.0.1", port=taken.getsockname()[1])
        options = NodeOptions(cert_manager=manager("beta@localhost"), network=NetworkOptions(acceptors=[bad]))
        with nothing_stays():
            async with trio.open_nursery() as nursery:
                with pytest.raises(ListenError):
                    await nursery.start(serve_node, "beta@localhost", options)


# Managers and runs --------------------------------------------------------------------------------------------------


async def test_two_nodes_on_one_manager(node: NodeFactory, manager: ManagerFactory) -> None:
    """One manager may serve several nodes; it is in use until the last of them closes."""
    certs = manager("alpha@localhost", "beta@localhost")
    with trio.fail_after(10), nothing_stays():
        async with node("beta@localhost", certs, services={"echo": echo}) as beta:
            host, port = beta.acceptors[0].address
            async with node("alpha@localhost", certs) as alpha:
                reply = await alpha.call("beta@localhost", "echo", b"hi", route=Route(host=host, port=port))
                assert reply == b"hi"
            with pytest.raises(FixedAtStartupError, match="restart the node"):
                certs.set_client_auth(ClientAuth.NO_CLIENT_CERT)
        certs.set_client_auth(ClientAuth.NO_CLIENT_CERT)


def test_nodes_of_successive_runs_on_one_manager(manager: ManagerFactory, ca: CertificateAuthority) -> None:
    """A manager serves nodes of one Trio run after the other, and may be updated in between."""
    certs = manager("alpha@localhost", "beta@localhost")

    def options() -> NodeOptions:
        return NodeOptions(cert_manager=certs, network=NetworkOptions(acceptors=[acceptor()]), services={"echo": echo})

    async def main() -> tuple[int, str]:
        with trio.fail_after(10), nothing_stays():
            async with open_node("beta@localhost", options()) as beta, open_node("alpha@localhost", options()) as alpha:
                host, port = beta.acceptors[0].address
                connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                assert await connection.call("echo", b"hi") == b"hi"
                return connection.generation, connection.key_pair_fingerprint

    for generation in 1, 2, 3:
        assert trio.run(main) == (generation, certs.key_pair.fingerprint)
        certs.update(ca.issue("alpha@localhost", "beta@localhost"))


async def test_manager_belongs_to_one_run_at_a_time(node: NodeFactory, manager: ManagerFactory) -> None:
    """A node of a second, concurrent Trio run cannot open on a manager that is in use; later it can."""
    certs = manager("alpha@localhost")

    async def main() -> None:
        async with node("alpha@localhost", certs):
            pass

    with trio.fail_after(10):
        async with node("alpha@localhost", certs):
            with pytest.raises(RuntimeError, match="another Trio run"):
                await trio.to_thread.run_sync(trio.run, main)
        await trio.to_thread.run_sync(trio.run, main)


# Context variables --------------------------------------------------------------------------------------------------


async def test_services_run_in_the_nodes_context(node: NodeFactory) -> None:
    """A service sees the context variables of where its node was opened, whichever task dialled or called, and when."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[tuple[str, str]] = []

    async def look(channel: ServiceChannel) -> None:
        seen.append((str(channel.peer.name), variable.get()))
        variable.set("changed by a service")
        await channel.send(b"")

    with trio.fail_after(10):
        variable.set("where beta was opened")
        async with node("beta@localhost", services={"look": look}) as beta:
            variable.set("where alpha was opened")
            async with node("alpha@localhost", services={"look": look}) as alpha:
                variable.set("where alpha dialled")
                host, port = beta.acceptors[0].address
                await alpha.connect("beta@localhost", Route(host=host, port=port))
                variable.set("where they called")
                for _ in range(2):
                    await alpha.call("beta@localhost", "look", b"")
                    await beta.call("alpha@localhost", "look", b"")
                assert variable.get() == "where they called"
    assert (
        seen
        == [
            ("alpha@localhost", "where beta was opened"),
            ("beta@localhost", "where alpha was opened"),
        ]
        * 2
    )


async def test_a_crash_that_cancels_a_nursery_in_the_block_comes_alone(node: NodeFactory) -> None:
    """Where a crash inside cancels a block that waits in a nursery of its own, only the crash comes out."""

    class CrashError(Exception):
        """What goes wrong inside."""

    async def crash() -> None:
        raise CrashError

    with trio.fail_after(10):
        with pytest.RaisesGroup(CrashError, flatten_subgroups=True):
            async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                alpha._runtime.spawn(crash, "crash")
                await trio.sleep_forever()
