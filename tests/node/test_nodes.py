"""What a node can be asked for: dialling, routes, services, acceptors, connections by name, events."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from trionode import (
    AcceptorDown,
    AcceptorOptions,
    AcceptorUp,
    CertificateError,
    Connection,
    ConnectionDown,
    ConnectionUp,
    EndReason,
    GenerationPublished,
    HandshakeError,
    HandshakeRefused,
    ListenError,
    LocalProtocolError,
    NetworkDisabledError,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeName,
    PeerUnverifiedError,
    RemoteCode,
    RemoteError,
    Route,
    Side,
    Stage,
    UnverifiedReason,
    _protocol as wire,
)
from trionode._connection.connection import core_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory, ScriptedListener, ScriptedPeer

    from trionode import EventStream, NodeEvent, Peer, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
DEFAULT_PORT = 15000

E = TypeVar("E", bound="NodeEvent")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def silence(channel: ServiceChannel) -> None:
    """Take the request and say nothing."""
    await channel.receive()


async def event_of(events: EventStream, kind: type[E]) -> E:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


def free_ports(count: int) -> int:
    """The first of that many consecutive ports of 127.0.0.1 that are free now."""
    while True:
        with ExitStack() as stack:
            first = 0
            try:
                for number in range(count):
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", first + number if first else 0))
                    first = first or sock.getsockname()[1]
            except (OSError, OverflowError):
                continue
            return first


# connect ------------------------------------------------------------------------------------------------------------


async def test_connect_returns_the_live_connection(open_pair: PairFactory) -> None:
    """Connecting again gives the connection that there is, by any spelling of the name."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            connection = await pair.alpha.connect("beta@localhost")
            assert await pair.alpha.connect("beta@localhost") is connection
            assert await pair.alpha.connect("beta@LOCALHOST.") is connection
            assert await pair.alpha.connect(BETA) is connection
            assert pair.beta.acceptors[0].statistics().accepted == 1
            assert connection.peer.name == BETA
            assert connection.peer.verified
            assert connection.peer.incarnation == pair.beta.incarnation
            assert connection.peer.certificate == pair.beta.options.cert_manager.key_pair.certificate
            assert connection.peer.address == pair.beta.acceptors[0].address


async def test_connect_is_always_a_checkpoint(open_pair: PairFactory) -> None:
    """Even where it hands out what there is, `connect` lets others run and notices a cancellation."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            await pair.alpha.connect("beta@localhost")
            with trio.testing.assert_checkpoints():
                await pair.alpha.connect("beta@localhost")
            with trio.CancelScope() as scope:
                scope.cancel()
                await pair.alpha.connect("beta@localhost")
            assert scope.cancelled_caught


@pytest.mark.parametrize(("verb", "records"), [("call", 2), ("open_channel", 2), ("connect", 3)])
async def test_the_first_request_goes_with_the_confirmation(open_pair: PairFactory, verb: str, records: int) -> None:
    """In one record behind the hello's, where a request made the connection; `connect` confirms before it returns."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair, AsyncExitStack() as stack:
            if verb == "call":
                assert await pair.alpha.call(BETA, "echo", b"x") == b"x"
            elif verb == "open_channel":
                channel = await stack.enter_async_context(pair.alpha.open_channel(BETA, "echo"))
                await channel.send(b"x")
                assert await channel.receive() == b"x"
            else:
                connection = await pair.alpha.connect(BETA)
                assert await connection.call("echo", b"x") == b"x"
            assert core_of(pair.alpha.connections[BETA]).link.stream.records_sent == records


@pytest.mark.parametrize("service", ["", "echo"])
async def test_a_connection_is_confirmed_though_its_first_request_cannot_be_made(
    open_pair: PairFactory, service: str
) -> None:
    """The peer has it, too."""
    with trio.fail_after(10):
        async with open_pair(beta={"max_message_size": 10}) as pair, pair.beta.events() as events:
            with pytest.raises(LocalProtocolError):
                await pair.alpha.call(BETA, service, b"larger than ten")
            assert (await event_of(events, ConnectionUp)).peer.name == ALPHA


async def test_a_connection_that_comes_too_late_is_confirmed_and_turned_away(
    node: NodeFactory, route_to: Callable[..., Route]
) -> None:
    """A request made it, and its node was left meanwhile: the peer reads why."""
    nodes: list[Node] = []

    def leave(peer: Peer) -> None:
        nodes[0]._runtime.stop()

    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost", authorize=leave) as alpha:
            nodes.append(alpha)
            alpha.add_route("beta@localhost", route_to(beta))
            async with beta.events() as events:
                with pytest.raises(trio.ClosedResourceError):
                    await alpha.call(BETA, "echo", b"x")
                down = await event_of(events, ConnectionDown)
            assert (down.peer.name, down.reason) == (ALPHA, EndReason.CLOSED_BY_PEER)


@pytest.mark.parametrize("verb", ["call", "connect"])
async def test_an_acceptor_that_breaks_off_after_its_answer_is_tried_by_the_next_route(
    node: NodeFactory,
    manager: ManagerFactory,
    route_to: Callable[..., Route],
    scripted_listener: ScriptedListener,
    verb: str,
) -> None:
    """It has not had the confirmation, so nothing ran there: that is a failed dial, whatever it was for."""
    peers: list[ScriptedPeer] = []

    async def answer_once() -> None:
        peer = await scripted_listener.accept(manager("beta@localhost"))
        peers.append(peer)
        await peer.hear(wire.Hello)
        await peer.say(peer.answer("beta@localhost"))

    def break_off(peer: Peer) -> None:
        while peers:
            sock = cast("trio.SocketStream", peers.pop().stream.transport_stream).socket
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            sock.close()

    with trio.fail_after(10):
        async with (
            node("beta@localhost", services={"echo": echo}) as beta,
            node("alpha@localhost", authorize=break_off) as alpha,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(answer_once)
            alpha.add_route(BETA, scripted_listener.route(), weight=1)
            alpha.add_route(BETA, route_to(beta))
            async with alpha.events() as events:
                if verb == "call":
                    assert await alpha.call(BETA, "echo", b"x") == b"x"
                else:
                    await alpha.connect(BETA)
                assert (await event_of(events, HandshakeRefused)).error.stage is Stage.HELLO


async def test_concurrent_connects_share_one_dial(open_pair: PairFactory) -> None:
    """Any number of tasks that connect, call and open channels at once cause one dial."""
    found: list[Connection] = []

    async def connect(alpha: Node) -> None:
        found.append(await alpha.connect("beta@localhost"))

    async def call(alpha: Node) -> None:
        assert await alpha.call("beta@localhost", "echo", b"hi") == b"hi"

    async def talk(alpha: Node) -> None:
        async with alpha.open_channel("beta@localhost", "echo") as channel:
            await channel.send(b"ho")
            assert await channel.receive() == b"ho"

    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(connect, pair.alpha)
                    nursery.start_soon(call, pair.alpha)
                    nursery.start_soon(talk, pair.alpha)
            assert len(set(found)) == 1
            assert pair.beta.acceptors[0].statistics().accepted == 1


async def test_concurrent_connects_share_one_failure(node: NodeFactory, scripted_listener: ScriptedListener) -> None:
    """Where the one dial fails, every waiter gets its error, and the next connect dials anew."""
    failures: list[BaseException] = []

    async def connect(alpha: Node) -> None:
        with pytest.raises(HandshakeError) as caught:
            await alpha.connect("beta@localhost", scripted_listener.route())
        failures.append(caught.value)

    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(connect, alpha)
                    await (await scripted_listener.listener.accept()).aclose()
            first, second = failures[:3], failures[3:]
            assert first[0].args == first[1].args == first[2].args
            assert len(second) == 3
            assert second[0] is not first[0]


async def test_cancelling_one_waiter_leaves_the_others(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A waiter that is cancelled, even the one that began the dial, leaves it to those who still wait."""
    found: list[Connection] = []
    scopes = [trio.CancelScope() for _ in range(3)]

    async def connect(alpha: Node, scope: trio.CancelScope) -> None:
        with scope:
            found.append(await alpha.connect("beta@localhost", scripted_listener.route()))

    with trio.fail_after(10):
        async with node("alpha@localhost", shutdown_grace=0) as alpha, trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(connect, alpha, scope)
                await trio.testing.wait_all_tasks_blocked()
            peer = await scripted_listener.accept(manager("beta@localhost"))
            async with peer.stream:
                scopes[0].cancel()
                scopes[2].cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert scopes[0].cancelled_caught
                assert scopes[2].cancelled_caught
                await peer.greet("beta@localhost")
                while not found:
                    await trio.testing.wait_all_tasks_blocked()
                assert len(found) == 1
                assert found[0].live


async def test_cancelling_the_last_waiter_cancels_the_dial(
    node: NodeFactory, scripted_listener: ScriptedListener
) -> None:
    """When the last waiter is gone the dial is cancelled and its socket closed; a later connect dials anew."""

    async def connect(alpha: Node) -> None:
        await alpha.connect("beta@localhost", scripted_listener.route())

    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connect, alpha)
                    nursery.start_soon(connect, alpha)
                    transport = await scripted_listener.listener.accept()
                    async with transport:
                        assert await transport.receive_some()
                        nursery.cancel_scope.cancel()
                        with trio.CancelScope(shield=True):
                            assert await transport.receive_some() == b""
            assert not alpha.connections


async def test_cancelled_connect_leaves_what_came_through(open_pair: PairFactory) -> None:
    """A waiter cancelled in the moment of success gives nothing away: the connection is there for the next one."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as events:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pair.alpha.connect, "beta@localhost")
                    up = await event_of(events, ConnectionUp)
                    scope.cancel()
            assert await pair.alpha.connect("beta@localhost") is up.connection
            assert pair.beta.acceptors[0].statistics().accepted == 1


async def test_explicit_route_reuses_what_satisfies_it(open_pair: PairFactory, route_to: Callable[..., Route]) -> None:
    """An explicit route is content with a live connection of its manager and verification, wherever it leads."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            alpha = pair.alpha
            connection = await alpha.connect("beta@localhost")
            for route in (
                route_to(pair.beta),
                Route(host="192.0.2.1", port=9),
                Route(cert_manager=alpha.options.cert_manager),
                Route(server_name="LOCALHOST"),
                Route(insecure_skip_verify=True),
            ):
                assert await alpha.connect("beta@localhost", route) is connection
            assert pair.beta.acceptors[0].statistics().accepted == 1


async def test_explicit_route_dials_where_nothing_satisfies_it(
    open_pair: PairFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """An explicit route with a manager of its own, or a server name that was not shown, dials."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            alpha = pair.alpha
            connection = await alpha.connect("beta@localhost")
            other = manager("alpha@localhost")
            second = await alpha.connect("beta@localhost", route_to(pair.beta, cert_manager=other))
            assert second is not connection
            assert second.key_pair_fingerprint == other.key_pair.fingerprint
            assert await alpha.connect("beta@localhost", route_to(pair.beta, cert_manager=other)) is second
            with pytest.raises(PeerUnverifiedError) as caught:
                await alpha.connect(
                    "beta@localhost", route_to(pair.beta, cert_manager=other, server_name="elsewhere.example")
                )
            assert caught.value.reason is UnverifiedReason.NAME_MISMATCH
            assert second.live


async def test_own_name_is_not_dialled(node: NodeFactory) -> None:
    """No verb dials our own name, however it is spelt."""
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            for name in "alpha@localhost", "alpha@LOCALHOST.":
                with pytest.raises(LocalProtocolError, match="own name"):
                    await alpha.connect(name)
                with pytest.raises(LocalProtocolError):
                    await alpha.call(name, "echo", b"")
                with pytest.raises(LocalProtocolError):
                    async with alpha.open_channel(name, "echo"):
                        pass
            assert alpha.acceptors[0].statistics().accepted == 0


async def test_names_that_are_none(node: NodeFactory) -> None:
    """What is no node name is a ValueError, before anything is opened or dialled."""
    with trio.fail_after(10):
        with pytest.raises(ValueError, match="name@host"):
            node("alpha")
        async with node("alpha@localhost") as alpha:
            with pytest.raises(ValueError, match="name@host"):
                await alpha.connect("beta")
            with pytest.raises(ValueError, match="name@host"):
                await alpha.call("beta", "echo", b"")


async def test_node_has_its_canonical_name(node: NodeFactory, manager: ManagerFactory) -> None:
    """A node's name is kept in canonical form, and peers see that."""
    with trio.fail_after(10):
        async with (
            node("beta@LocalHost.", manager("beta@localhost")) as beta,
            node("alpha@LOCALHOST", manager("alpha@localhost")) as alpha,
            beta.events() as events,
        ):
            assert str(beta.name) == "beta@localhost"
            host, port = beta.acceptors[0].address
            connection = await alpha.connect("beta@localhosT", Route(host=host, port=port))
            assert str(connection.peer.name) == "beta@localhost"
            assert str((await event_of(events, ConnectionUp)).peer.name) == "alpha@localhost"


# After the end ------------------------------------------------------------------------------------------------------


async def test_connection_is_not_handed_out_once_its_close_began(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """From the first moment of `aclose()` on a connection is not handed out, however long the close takes."""
    certs = manager("beta@localhost")
    peers: list[ScriptedPeer] = []

    async def serve() -> None:
        peer = await scripted_listener.accept(certs)
        peers.append(peer)
        await peer.greet("beta@localhost")

    with trio.fail_after(10):
        async with node("alpha@localhost", shutdown_grace=0) as alpha, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            first = await alpha.connect("beta@localhost", scripted_listener.route())
            assert alpha.connections == {BETA: first}
            nursery.start_soon(first.aclose)  # the peer says nothing to that, so it takes its time
            await trio.testing.wait_all_tasks_blocked()
            assert not first.live
            assert not alpha.connections
            with pytest.raises(trio.ClosedResourceError):
                first.open_channel("echo")
            nursery.start_soon(serve)
            second = await alpha.connect("beta@localhost", scripted_listener.route())
            assert second is not first
            assert alpha.connections == {BETA: second}
            for peer in peers:
                await peer.stream.aclose()


async def test_connection_ends_on_both_sides(open_pair: PairFactory) -> None:
    """A closed connection is gone from both nodes, each knows who closed, and the next connect dials."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            connection = await pair.alpha.connect("beta@localhost")
            seen = (await event_of(events, ConnectionUp)).connection
            await connection.aclose()
            assert (await connection.wait_closed()).reason is EndReason.CLOSED
            assert (await seen.wait_closed()).reason is EndReason.CLOSED_BY_PEER
            assert not pair.alpha.connections
            assert not pair.beta.connections
            assert await pair.alpha.connect("beta@localhost") is not connection


class StepsOfConnections(trio.abc.Instrument):
    """Counts the steps of connections' readers and writers.

    Attributes:
        many: set once readers have made twenty.
    """

    def __init__(self) -> None:
        self.many = trio.Event()
        self.read = 0
        self.written = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one, if it is theirs."""
        self.read += task.name.endswith("ConnectionCore._read")
        self.written += task.name.endswith("ConnectionCore._write")
        if self.read == 20:
            self.many.set()


async def test_heartbeats_leave_the_writers_asleep(open_pair: PairFactory) -> None:
    """Thousands of idle connections have little else to do: a ping and its answer are written where they are made."""
    often = {"heartbeat_interval": 0.01, "heartbeat_tolerance": 10}
    steps = StepsOfConnections()
    with trio.fail_after(10):
        async with open_pair(alpha=often, beta=often) as pair:
            await pair.alpha.connect(BETA)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(steps)
            await steps.many.wait()
            trio.lowlevel.remove_instrument(steps)
    assert steps.written == 0


async def test_replaced_connections_of_one_peer_are_read_on_up_to_a_number(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """What a peer sent before it dialled anew is heard; but dialling again and again does not multiply its limits."""
    held = 32  # as the README says
    ran: list[ServiceChannel] = []

    async def serve(channel: ServiceChannel) -> None:
        ran.append(channel)
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with (
            node("beta@localhost", services={"serve": serve}, shutdown_grace=0) as beta,
            AsyncExitStack() as stack,
        ):
            certs = manager("alpha@localhost")
            peers: list[ScriptedPeer] = []
            for _ in range(held + 4):
                peer = await scripted_dial(beta, certs)
                stack.push_async_callback(trio.aclose_forcefully, peer.stream)
                await peer.introduce("alpha@localhost")
                peers.append(peer)
                # So many are there, each in turn.
                await peer.stream.send_all(wire.header(wire.PING, 0, 8) + bytes(8))
                await peer.frame(wire.PONG)
            assert len(beta.connections) == 1
            codes: list[str] = []
            for peer in peers[:3]:
                _, _, payload = await peer.frame(wire.GOODBYE)
                codes.append(wire.decode(wire.End, payload).code)
            assert codes == [EndReason.REPLACED] * 3
            for peer in peers:
                with suppress(trio.BrokenResourceError):
                    await peer.stream.send_all(wire.control(wire.OPEN, 1, wire.Open(service="serve")))
            while len(ran) < held + 1:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert beta.statistics().services == len(ran) == held + 1


async def test_closed_node_does_nothing(open_pair: PairFactory, manager: ManagerFactory) -> None:
    """After its block a node has no connections, and its verbs raise `ClosedResourceError`."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            await pair.alpha.connect("beta@localhost")
        assert not pair.alpha.connections
        assert not pair.alpha.unverified_connections
        assert "closed" in repr(pair.alpha)
        with pytest.raises(trio.ClosedResourceError):
            await pair.alpha.connect("beta@localhost")
        with pytest.raises(trio.ClosedResourceError):
            await pair.alpha.call("beta@localhost", "echo", b"")
        with pytest.raises(trio.ClosedResourceError):
            async with pair.alpha.open_channel("beta@localhost", "echo"):
                pass


async def test_closed_node_uses_no_manager(node: NodeFactory, manager: ManagerFactory) -> None:
    """A route that is added to a node after its end does not keep the route's manager in use for ever."""
    other = manager("alpha@localhost")
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            await trio.lowlevel.checkpoint()
        with suppress(trio.ClosedResourceError):
            alpha.add_route("beta@localhost", Route(cert_manager=other))
        other.set_server_name("fine.example")


# Network modes ------------------------------------------------------------------------------------------------------


async def test_disabled_node_has_no_network(node: NodeFactory) -> None:
    """On a DISABLED node every network verb raises `NetworkDisabledError`, and there is no acceptor."""
    with trio.fail_after(10):
        async with node("alpha@localhost", mode=NetworkMode.DISABLED) as alpha:
            assert not alpha.acceptors
            assert not alpha.connections
            with pytest.raises(NetworkDisabledError, match=r"NetworkMode\.ENABLED"):
                await alpha.connect("beta@localhost")
            with pytest.raises(NetworkDisabledError):
                await alpha.call("beta@localhost", "echo", b"")
            with pytest.raises(NetworkDisabledError):
                async with alpha.open_channel("beta@localhost", "echo"):
                    pass


async def test_hidden_node_dials_and_does_not_listen(open_pair: PairFactory) -> None:
    """A HIDDEN node has no acceptor; it dials, and peers may use the connection that it made."""
    with trio.fail_after(10):
        async with open_pair(
            alpha={"mode": NetworkMode.HIDDEN, "services": {"echo": echo}}, beta={"services": {"echo": echo}}
        ) as pair:
            assert not pair.alpha.acceptors
            assert await pair.alpha.call("beta@localhost", "echo", b"there") == b"there"
            assert await pair.beta.call("alpha@localhost", "echo", b"and back") == b"and back"


@pytest.mark.parametrize("mode", [NetworkMode.HIDDEN, NetworkMode.DISABLED])
def test_acceptors_of_a_node_that_opens_none_are_refused(mode: NetworkMode) -> None:
    """Acceptors that would not be opened are a mistake, and said to be one."""
    with pytest.raises(ValueError, match=mode.name):
        NetworkOptions(mode=mode, acceptors=[AcceptorOptions()])


# Acceptors ----------------------------------------------------------------------------------------------------------


def skip_if_taken(host: str, port: int) -> None:
    """Skip the test if the port cannot be had now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as exc:
            pytest.skip(f"{host} port {port}: {exc}")


async def test_default_acceptor(node: NodeFactory) -> None:
    """A node that is told nothing listens on port 15000 of its name's host, and is dialled there by default."""
    skip_if_taken("127.0.0.1", DEFAULT_PORT)
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=[], services={"echo": echo}) as beta,
            node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha,
        ):
            [acceptor] = beta.acceptors
            assert acceptor.address[1] == DEFAULT_PORT
            assert {port for _, port in acceptor.addresses} == {DEFAULT_PORT}
            assert ("127.0.0.1", DEFAULT_PORT) in acceptor.addresses
            assert await alpha.call("beta@localhost", "echo", b"hi") == b"hi"


async def test_name_whose_host_is_not_local(node: NodeFactory) -> None:
    """A node whose name's host is elsewhere cannot listen there, and the error says what to set."""
    with trio.fail_after(10):
        with pytest.raises(ListenError) as caught:
            async with node("alpha@192.0.2.1", acceptors=[]):
                pytest.fail("the body ran")
    assert 'host="0.0.0.0"' in str(caught.value)
    assert "192.0.2.1" in str(caught.value)
    assert caught.value.address == ("192.0.2.1", DEFAULT_PORT)
    assert isinstance(caught.value, OSError)


async def test_name_whose_host_is_unknown(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """A node whose name's host does not resolve is told what to give in its place."""
    resolve("nowhere.example")
    with trio.fail_after(10):
        with pytest.raises(ListenError) as caught:
            async with node("alpha@nowhere.example", acceptors=[]):
                pytest.fail("the body ran")
    assert "host='0.0.0.0'" in str(caught.value)
    assert isinstance(caught.value.__cause__, socket.gaierror)


async def test_only_local_addresses_are_listened_on(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """Of a name's addresses those that are this machine's are listened on, the others left out."""
    resolve("mixed.example", "192.0.2.1", "127.0.0.1")
    with trio.fail_after(10):
        async with node("alpha@mixed.example", acceptors=[AcceptorOptions(port=0)]) as alpha:
            [(host, port)] = alpha.acceptors[0].addresses
            assert host == "127.0.0.1"
            assert port != 0


async def test_address_family_that_the_machine_lacks_is_left_out(
    node: NodeFactory, resolve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without IPv6 a name's IPv6 addresses are left out, asked for or not."""
    resolve("both.example", "::1", "127.0.0.1")
    real = trio.socket.socket

    def without_ipv6(family: int, *args: Any) -> Any:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *args)

    monkeypatch.setattr(trio.socket, "socket", without_ipv6)
    with trio.fail_after(10):
        async with node("alpha@localhost", acceptors=[AcceptorOptions(host="both.example", port=0)]) as alpha:
            [(host, _)] = alpha.acceptors[0].addresses
            assert host == "127.0.0.1"


async def test_address_that_was_asked_for_is_not_left_out(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """An acceptor's own host is listened on completely, or not at all."""
    resolve("mixed.example", "127.0.0.1", "192.0.2.1")
    with trio.fail_after(10):
        with pytest.raises(ListenError) as caught:
            async with node("alpha@localhost", acceptors=[AcceptorOptions(host="mixed.example", port=0)]):
                pytest.fail("the body ran")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRNOTAVAIL


async def test_all_listeners_of_an_acceptor_share_one_port(node: NodeFactory, resolve: Callable[..., None]) -> None:
    """With port 0 an acceptor's IPv4 and IPv6 listeners get the same free port, and both let peers in."""
    resolve("both.example", "127.0.0.1", "127.0.0.2", "::1")
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=[AcceptorOptions(host="both.example", port=0)]) as beta,
            node("alpha@localhost") as alpha,
        ):
            [acceptor] = beta.acceptors
            hosts = [host for host, _ in acceptor.addresses]
            assert hosts == ["127.0.0.1", "127.0.0.2", "::1"]
            assert len({port for _, port in acceptor.addresses}) == 1
            assert acceptor.address == acceptor.addresses[0]
            for host, port in acceptor.addresses:
                connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                await connection.aclose()
            assert acceptor.statistics().established == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])  # noqa: S104 -- what is tested
async def test_all_interfaces(node: NodeFactory, host: str) -> None:
    """An acceptor can be told to listen on all interfaces of a family."""
    loopback = "127.0.0.1" if "." in host else "::1"
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=[AcceptorOptions(host=host, port=0)]) as beta,
            node("alpha@localhost") as alpha,
        ):
            await alpha.connect("beta@localhost", Route(host=loopback, port=beta.acceptors[0].address[1]))


async def test_port_that_is_taken(node: NodeFactory) -> None:
    """An acceptor that cannot have its port fails the start, and says which address it asked for and why."""
    with socket.socket() as taken, trio.fail_after(10):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            async with node("alpha@localhost", acceptors=[AcceptorOptions(host="127.0.0.1", port=port)]):
                pytest.fail("the body ran")
    error = caught.value
    assert error.address == ("127.0.0.1", port)
    assert list(error.tried) == [("127.0.0.1", port)]
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EADDRINUSE
    assert str(port) in str(error)
    assert "port_range" in str(error)


async def test_port_range_is_tried_in_order(node: NodeFactory) -> None:
    """With a port range the first free port is taken; where none is free, the error lists all that were tried."""
    first = free_ports(3)
    with ExitStack() as stack, trio.fail_after(10):
        for port in first, first + 1:
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", port))
            sock.listen()
        acceptor = AcceptorOptions(host="127.0.0.1", port=first, port_range=3)
        async with node("alpha@localhost", acceptors=[acceptor]) as alpha:
            assert alpha.acceptors[0].address == ("127.0.0.1", first + 2)
        with pytest.raises(ListenError) as caught:
            async with node("alpha@localhost", acceptors=[AcceptorOptions(host="127.0.0.1", port=first, port_range=2)]):
                pytest.fail("the body ran")
    assert list(caught.value.tried) == [("127.0.0.1", first), ("127.0.0.1", first + 1)]
    assert str(first + 1) in str(caught.value)


async def test_failing_acceptor_closes_the_others(node: NodeFactory) -> None:
    """Where one acceptor cannot listen, those that could are closed again."""
    port = free_ports(1)
    with socket.socket() as taken, trio.fail_after(10):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        good = AcceptorOptions(host="127.0.0.1", port=port)
        bad = AcceptorOptions(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(ListenError):
            async with node("alpha@localhost", acceptors=[good, bad]):
                pytest.fail("the body ran")
        async with node("alpha@localhost", acceptors=[good]) as alpha:
            assert alpha.acceptors[0].address == ("127.0.0.1", port)


async def test_acceptor_with_a_manager_of_its_own(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """Each acceptor presents and verifies with its own manager, or else the node's."""
    ours = manager("beta@localhost")
    theirs = manager("beta@localhost", ca=rogue_ca, trusts=rogue_ca)
    acceptors = [
        AcceptorOptions(host="127.0.0.1", port=0),
        AcceptorOptions(host="127.0.0.1", port=0, cert_manager=theirs),
    ]
    with trio.fail_after(10):
        async with (
            node("beta@localhost", ours, acceptors=acceptors) as beta,
            node("alpha@localhost") as alpha,
            node("gamma@localhost", manager("gamma@localhost", ca=rogue_ca, trusts=rogue_ca)) as gamma,
        ):
            routes = [Route(host=host, port=port) for host, port in (a.address for a in beta.acceptors)]
            connection = await alpha.connect("beta@localhost", routes[0])
            assert connection.peer.certificate == ours.key_pair.certificate
            connection = await gamma.connect("beta@localhost", routes[1])
            assert connection.peer.certificate == theirs.key_pair.certificate
            assert (
                beta.connections[NodeName.parse("gamma@localhost")].key_pair_fingerprint == theirs.key_pair.fingerprint
            )
            for dialer, route in (gamma, routes[0]), (alpha, routes[1]):
                await dialer.connections[BETA].aclose()
                with pytest.raises(PeerUnverifiedError):
                    await dialer.connect("beta@localhost", route)


async def test_route_with_a_manager_of_its_own(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority, route_to: Callable[..., Route]
) -> None:
    """A route presents and verifies with its own manager, other destinations with the node's."""
    theirs = manager("alpha@localhost", ca=rogue_ca, trusts=rogue_ca)
    with trio.fail_after(10):
        async with (
            node("beta@localhost") as beta,
            node("gamma@localhost", manager("gamma@localhost", ca=rogue_ca, trusts=rogue_ca)) as gamma,
            node("alpha@localhost") as alpha,
        ):
            alpha.add_route("beta@localhost", route_to(beta))
            alpha.add_route("gamma@localhost", route_to(gamma, cert_manager=theirs))
            connection = await alpha.connect("beta@localhost")
            assert connection.key_pair_fingerprint == alpha.options.cert_manager.key_pair.fingerprint
            connection = await alpha.connect("gamma@localhost")
            assert connection.key_pair_fingerprint == theirs.key_pair.fingerprint
            assert gamma.connections[ALPHA].peer.certificate == theirs.key_pair.certificate


# Routes -------------------------------------------------------------------------------------------------------------


async def test_without_a_route_the_names_host_is_dialled_on_port_15000(
    node: NodeFactory, resolve: Callable[..., None]
) -> None:
    """With no route the dial goes to the name's host, port 15000, and its one failure comes out bare."""
    skip_if_taken("127.0.0.9", DEFAULT_PORT)
    resolve("somewhere.example", "127.0.0.9")
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect("beta@somewhere.example")
    assert type(caught.value) is HandshakeError
    assert caught.value.stage is Stage.CONNECT
    assert caught.value.address == ("somewhere.example", DEFAULT_PORT)
    assert isinstance(caught.value.__cause__, OSError)
    assert "refused" in str(caught.value)


async def test_routes_are_tried_by_weight_then_in_order(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """The heaviest route is tried first, equal ones in order of addition, and a failing one gives way to the next."""
    certs = [manager("alpha@localhost") for _ in range(4)]
    dead = free_ports(1)
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha, alpha.events() as events:

            async def used() -> int:
                connection = await alpha.connect("beta@localhost")
                await connection.aclose()
                return [c.key_pair.fingerprint for c in certs].index(connection.key_pair_fingerprint)

            handles = [
                alpha.add_route("beta@localhost", route_to(beta, cert_manager=certs[0]), weight=-1),
                alpha.add_route("*@localhost", route_to(beta, cert_manager=certs[1])),
                alpha.add_route("beta@localhost", route_to(beta, cert_manager=certs[2])),
                alpha.add_route("b?ta@*", route_to(beta, cert_manager=certs[3]), weight=7),
            ]
            broken = alpha.add_route("beta@localhost", Route(host="127.0.0.1", port=dead), weight=9)
            assert await used() == 3
            refused = await event_of(events, HandshakeRefused)
            assert refused.address == ("127.0.0.1", dead)
            broken.remove()
            assert await used() == 3
            handles[3].remove()
            assert await used() == 1
            handles[1].remove()
            handles[1].remove()
            assert await used() == 2
            handles[2].remove()
            assert await used() == 0


async def test_pattern_is_matched_against_the_whole_name(
    node: NodeFactory, route_to: Callable[..., Route], resolve: Callable[..., None]
) -> None:
    """A glob has to match name and host together, case-sensitively; what matches no route is dialled directly."""
    resolve("elsewhere.example")
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha:
            alpha.add_route("beta@local*", route_to(beta))
            alpha.add_route("Beta@*", route_to(beta))
            alpha.add_route("bet@*", route_to(beta))
            await alpha.connect("beta@localhost")
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect("beta@elsewhere.example")
            assert caught.value.address == ("elsewhere.example", DEFAULT_PORT)


async def test_routes_from_the_options(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Routes may come with the options."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            async with node("alpha@localhost", routes={"beta@*": route_to(beta)}) as alpha:
                assert (await alpha.connect("beta@localhost")).peer.verified


async def test_exact_pattern_is_canonical(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """An exact pattern stands for the node however either is spelt; brackets of an address are no glob."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha:
            alpha.add_route("beta@LOCALHOST.", route_to(beta))
            await alpha.connect("beta@localhost")
            alpha.add_route("gamma@[0:0:0:0:0:0:0:1]", Route(host="127.0.0.1", port=free_ports(1)))
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect("gamma@[::1]")
            assert caught.value.address is not None
            assert caught.value.address[0] == "127.0.0.1"


@pytest.mark.parametrize("pattern", ["beta", "beta*", "", "be ta@localhost", "beta@", "@localhost"])
async def test_pattern_that_is_none(node: NodeFactory, pattern: str) -> None:
    """A pattern that could never match a node name is refused, when added and in the options."""
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            with pytest.raises(ValueError, match=r".+"):
                alpha.add_route(pattern, Route())
    with pytest.raises(ValueError, match=r".+"):
        async with node("alpha@localhost", routes={pattern: Route()}):
            pytest.fail("the body ran")


async def test_explicit_route_goes_before_the_table(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """A route given with the call stands in place of the table, for every verb."""
    with trio.fail_after(10):
        async with node("beta@localhost", services={"echo": echo}) as beta, node("alpha@localhost") as alpha:
            alpha.add_route("beta@localhost", Route(host="127.0.0.1", port=free_ports(1)), weight=99)
            assert await alpha.call("beta@localhost", "echo", b"1", route=route_to(beta)) == b"1"
            await alpha.connections[BETA].aclose()
            async with alpha.open_channel("beta@localhost", "echo", route=route_to(beta)) as channel:
                await channel.send(b"2")
                assert await channel.receive() == b"2"


async def test_route_with_an_unusable_manager_is_refused_when_added(node: NodeFactory, manager: ManagerFactory) -> None:
    """A route's manager is in use from the moment that the route is added: an expired one is refused there."""
    expired = manager("alpha@localhost", not_after=datetime.now(UTC) - timedelta(hours=1))
    with trio.fail_after(10):
        async with node("alpha@localhost") as alpha:
            with pytest.raises(CertificateError):
                alpha.add_route("beta@localhost", Route(cert_manager=expired))
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect("beta@localhost", Route(host="127.0.0.1", port=free_ports(1)))
            assert caught.value.stage is Stage.CONNECT


# Services -----------------------------------------------------------------------------------------------------------


async def test_services_may_come_later(open_pair: PairFactory) -> None:
    """A service counts from the moment that it is added, on connections that are open already, too."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            with pytest.raises(RemoteError) as caught:
                await pair.alpha.call("beta@localhost", "echo", b"")
            assert caught.value.code is RemoteCode.UNKNOWN_SERVICE
            pair.beta.add_service("echo", echo)
            assert await pair.alpha.call("beta@localhost", "echo", b"now") == b"now"


async def test_service_names(open_pair: PairFactory) -> None:
    """A service has 1 to 255 characters, and a name has one service."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"echo": echo}}) as pair:
            for name in "", "x" * 256, "echo":
                with pytest.raises(ValueError, match=r".+"):
                    pair.beta.add_service(name, echo)
            longest = "é" * 255
            pair.beta.add_service(longest, echo)
            assert await pair.alpha.call("beta@localhost", longest, b"hi") == b"hi"


async def test_call_without_a_reply(open_pair: PairFactory) -> None:
    """A service that ends without a message is `no_reply`."""
    with trio.fail_after(10):
        async with open_pair(beta={"services": {"silence": silence}}) as pair:
            with pytest.raises(RemoteError) as caught:
                await pair.alpha.call("beta@localhost", "silence", b"")
            assert caught.value.code is RemoteCode.NO_REPLY


async def test_service_sees_channel_peer_and_name(open_pair: PairFactory) -> None:
    """A service is given the verified peer and the name under which it was called."""
    seen: list[ServiceChannel] = []

    async def look(channel: ServiceChannel) -> None:
        seen.append(channel)
        await channel.send(b"")

    with trio.fail_after(10):
        async with open_pair(beta={"services": {"look": look}}) as pair:
            await pair.alpha.call("beta@localhost", "look", b"")
    [channel] = seen
    assert channel.peer.name == ALPHA
    assert channel.peer.verified
    assert channel.service == "look"


# node.connections ---------------------------------------------------------------------------------------------------


async def test_connections_is_a_live_mapping(open_pair: PairFactory) -> None:
    """`node.connections` is a read-only mapping by name, in any spelling, of what `connect` would hand out."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            connections = pair.alpha.connections
            assert len(connections) == 0
            assert list(connections) == []
            assert not connections
            connection = await pair.alpha.connect("beta@localhost")
            assert connections[BETA] is connection
            assert connections["beta@localhost"] is connection
            assert connections["beta@LOCALHOST"] is connection
            assert connections.get(BETA) is connection
            assert BETA in connections
            assert "beta@localhost" in connections
            assert list(connections) == [BETA]
            assert list(connections.items()) == [(BETA, connection)]
            assert connections == {BETA: connection}
            assert len(connections) == 1
            assert "beta@localhost" in repr(connections)
            for missing in "gamma@localhost", "nonsense", "":
                assert missing not in connections
                with pytest.raises(KeyError) as caught:
                    connections[missing]
                assert caught.value.args == (missing,)
            assert 7 not in connections
            with pytest.raises(TypeError):
                connections[BETA] = connection  # type: ignore[index]
            await connection.aclose()
            assert connections == {}


async def test_connections_may_change_while_they_are_read(open_pair: PairFactory) -> None:
    """Closing connections while iterating over them is fine."""
    with trio.fail_after(10):
        async with open_pair() as pair:
            await pair.alpha.connect("beta@localhost")
            for connection in pair.alpha.connections.values():
                await connection.aclose()
            assert not pair.alpha.connections


async def test_incarnations_differ(node: NodeFactory) -> None:
    """Each opening of a node draws a 64-bit number of its own."""
    with trio.fail_after(10):
        incarnations = set()
        for _ in range(3):
            async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
                incarnations.add(alpha.incarnation)
        assert len(incarnations) == 3
        assert all(0 <= number < 2**64 for number in incarnations)


async def test_acceptor_counts(open_pair: PairFactory, scripted_dial: Callable[..., Any]) -> None:
    """An acceptor tells how many it accepted, shakes hands with, established and refused."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.beta.events() as events:
            [acceptor] = pair.beta.acceptors
            await pair.alpha.connect("beta@localhost")
            async with await trio.open_tcp_stream(*acceptor.address) as silent:
                await trio.testing.wait_all_tasks_blocked()
                while acceptor.statistics().accepted < 2:
                    await trio.testing.wait_all_tasks_blocked()
                statistics = acceptor.statistics()
                assert (statistics.handshaking, statistics.established, statistics.refused) == (1, 1, 0)
                await silent.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await event_of(events, HandshakeRefused)
            statistics = acceptor.statistics()
            assert (statistics.accepted, statistics.handshaking) == (2, 0)
            assert (statistics.established, statistics.refused) == (1, 1)


# Events -------------------------------------------------------------------------------------------------------------


async def test_events_of_a_connection(open_pair: PairFactory) -> None:
    """Both nodes report a connection when it is up and when it is down, with side, peer and reason."""
    with trio.fail_after(10):
        async with open_pair() as pair, pair.alpha.events() as on_alpha, pair.beta.events() as on_beta:
            connection = await pair.alpha.connect("beta@localhost")
            up = await event_of(on_alpha, ConnectionUp)
            assert up == ConnectionUp(node=ALPHA, side=Side.DIAL, peer=connection.peer, connection=connection)
            accepted = await event_of(on_beta, ConnectionUp)
            assert (accepted.node, accepted.side, accepted.peer.name) == (BETA, Side.ACCEPT, ALPHA)
            await connection.aclose()
            down = await event_of(on_alpha, ConnectionDown)
            assert (down.node, down.peer, down.connection) == (ALPHA, connection.peer, connection)
            assert (down.reason, down.error) == (EndReason.CLOSED, None)
            down = await event_of(on_beta, ConnectionDown)
            assert down.connection is accepted.connection
            assert down.reason is EndReason.CLOSED_BY_PEER
            assert isinstance(down.error, trio.BrokenResourceError)


async def test_events_of_a_node(node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority) -> None:
    """A node reports its acceptors and its managers' generations, to every reader, and the readers end with it."""
    certs = manager("alpha@localhost")
    new = ca.issue("alpha@localhost")
    with trio.fail_after(10):
        async with AsyncExitStack() as stack:
            async with node("alpha@localhost", certs) as alpha:
                readers = [await stack.enter_async_context(alpha.events()) for _ in range(2)]
                address = alpha.acceptors[0].address
                await trio.testing.wait_all_tasks_blocked()
                certs.update(new)
                await trio.testing.wait_all_tasks_blocked()
            for number, reader in enumerate(readers):
                events = [event async for event in reader]
                # To open the first was a checkpoint, in which the acceptor may have come up.
                assert AcceptorUp(node=ALPHA, address=address) in events or number > 0
                assert GenerationPublished(node=ALPHA, generation=2, fingerprint=new.fingerprint) in events
                assert AcceptorDown(node=ALPHA, address=address) in events
                assert reader.missed == 0
                with pytest.raises(trio.EndOfChannel):
                    await reader.receive()


async def test_generation_is_reported_however_early_it_comes(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """An update in the very moment that the node is open is reported, too."""
    certs = manager("alpha@localhost")
    new = ca.issue("alpha@localhost")
    with trio.fail_after(2):
        async with node("alpha@localhost", certs) as alpha, alpha.events() as events:
            certs.update(new)
            event = await event_of(events, GenerationPublished)
    assert (event.generation, event.fingerprint) == (2, new.fingerprint)


async def test_events_of_a_routes_manager(node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority) -> None:
    """Generations of managers that came with a route are reported, too."""
    certs = manager("alpha@localhost")
    with trio.fail_after(2):
        async with node("alpha@localhost") as alpha, alpha.events() as events:
            alpha.add_route("beta@localhost", Route(cert_manager=certs))
            await trio.testing.wait_all_tasks_blocked()
            certs.update(ca.issue("alpha@localhost"))
            assert (await event_of(events, GenerationPublished)).fingerprint == certs.key_pair.fingerprint


async def test_slow_reader_loses_the_oldest_events(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is too slow loses its oldest events and is told how many; it holds up neither node nor readers."""
    monkeypatch.setattr("trionode._node.events.BUFFER", 3)
    ports = [free_ports(1) for _ in range(5)]
    with trio.fail_after(10):
        async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha, alpha.events() as slow:
            async with alpha.events() as quick:
                for port in ports:
                    with pytest.raises(HandshakeError):
                        await alpha.connect("beta@localhost", Route(host="127.0.0.1", port=port))
                    assert (await event_of(quick, HandshakeRefused)).address == ("127.0.0.1", port)
                assert quick.missed == 0
            assert slow.missed == 2
            kept = [await event_of(slow, HandshakeRefused) for _ in range(3)]
            assert [event.address for event in kept] == [("127.0.0.1", port) for port in ports[2:]]
            assert slow.missed == 2


async def test_cancelled_reader_loses_nothing(node: NodeFactory) -> None:
    """A `receive()` that is cancelled takes no event with it."""
    with trio.fail_after(10):
        async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha, alpha.events() as events:
            with pytest.raises(HandshakeError):
                await alpha.connect("beta@localhost", Route(host="127.0.0.1", port=free_ports(1)))
            with trio.CancelScope() as scope:
                scope.cancel()
                await events.receive()
            assert scope.cancelled_caught
            await event_of(events, HandshakeRefused)


async def test_closed_reader(node: NodeFactory) -> None:
    """A reader that was closed, or whose block was left, raises `ClosedResourceError`."""
    with trio.fail_after(10):
        async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
            async with alpha.events() as events, trio.open_nursery() as nursery:

                async def read() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await events.receive()

                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                await events.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await events.receive()


# What a node says of itself -----------------------------------------------------------------------------------------


async def test_node_whose_certificate_does_not_cover_its_name_is_warned(
    node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate that does not speak for the node's own name is a warning at start and at each rotation."""
    certs = manager("gamma@localhost")

    def warnings() -> list[str]:
        logged = (r for r in caplog.records if r.name == "trionode.certificates" and r.levelname == "WARNING")
        return [record.getMessage() for record in logged]

    with trio.fail_after(10):
        async with node("alpha@localhost", certs):
            [warning] = warnings()
            assert "alpha@localhost" in warning
            assert "gamma@localhost" in warning
            await trio.testing.wait_all_tasks_blocked()
            certs.update(ca.issue("delta@localhost"))
            await trio.testing.wait_all_tasks_blocked()
            assert "delta@localhost" in warnings()[-1]
            certs.update(ca.issue("alpha@localhost"))
            await trio.testing.wait_all_tasks_blocked()
            assert len(warnings()) == 2
