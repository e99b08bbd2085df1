"""Used from elsewhere than where they live: other threads, other Trio runs, forked children. An error with words."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from trionode import NodeOptions, Route, open_node, open_tls_stream, serve_tls, wrap_client_stream
from trionode.metrics import serve_metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import ManagerFactory, NodeFactory, PairFactory

    from trionode import Connection, EventStream, Node, ServiceChannel, TLSStream

BETA = "beta@localhost"

Use = tuple[str, "Callable[[], Any]"]


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def enter(manager: Any) -> None:
    """Enter an async context manager, and leave it."""
    async with manager:
        pass


def uses(node: Node, connection: Connection, channel: ServiceChannel) -> list[Use]:
    """Every verb of the three."""
    route = Route(port=1)
    return [
        ("Node", lambda: node.connect(BETA)),
        ("Node", lambda: node.call(BETA, "echo", b"")),
        ("Node", lambda: enter(node.open_channel(BETA, "echo"))),
        ("Node", lambda: enter(node.events())),
        ("Node", lambda: node.wait_connected(BETA)),
        ("Node", lambda: node.wait_members("*")),
        ("Node", node.drain),
        ("Node", node.statistics),
        ("Node", lambda: node.add_route(BETA, route)),
        ("Node", lambda: node.add_service("more", echo)),
        ("Node", lambda: node.keep_connected(BETA)),
        ("Connection", lambda: connection.call("echo", b"")),
        ("Connection", lambda: connection.open_channel("echo")),
        ("Connection", connection.aclose),
        ("Connection", connection.drain),
        ("Connection", connection.reauthenticate),
        ("Connection", connection.wait_closed),
        ("ServiceChannel", lambda: channel.send(b"")),
        ("ServiceChannel", lambda: channel.send_nowait(b"")),
        ("ServiceChannel", channel.receive),
        ("ServiceChannel", channel.receive_nowait),
        ("ServiceChannel", channel.__anext__),
        ("ServiceChannel", channel.send_eof),
        ("ServiceChannel", channel.aclose),
        ("ServiceChannel", channel.reset),
        ("ServiceChannel", lambda: enter(channel)),
        ("Node", lambda: node.members("*")),
    ]


def uses_of_readers(node: Node, events: EventStream) -> list[Use]:
    """Every verb of what a node's program keeps beside connections."""
    connector, mesh = node.keep_connected(BETA), node.keep_connected("b*@localhost")
    return [
        ("EventStream", events.receive),
        ("Connector", connector.wait_up),
        ("Connector", connector.stop),
        ("Mesh", mesh.wait_up),
        ("Mesh", mesh.stop),
    ]


def uses_of_stream(stream: TLSStream) -> list[Use]:
    """Every verb of a stream."""
    return [
        ("TLSStream", lambda: stream.send_all(b"")),
        ("TLSStream", stream.receive_some),
        ("TLSStream", stream.send_eof),
        ("TLSStream", stream.wait_send_all_might_not_block),
        ("TLSStream", stream.wait_superseded),
        ("TLSStream", stream.aclose),
        ("TLSStream", lambda: enter(stream)),
    ]


def refusals(found: list[Use], words: str) -> list[str]:
    """The uses that do not raise the error with words; of coroutines, run as far as they go by themselves."""
    missing = []
    for what, use in found:
        try:
            made = use()
            if hasattr(made, "send"):
                made.send(None)
        except RuntimeError as exc:
            if not str(exc).startswith(f"this {what} belongs to") or words not in str(exc):
                missing.append(f"{what}: {exc}")
        except BaseException as exc:  # noqa: BLE001, ASYNC103 -- told
            missing.append(f"{what}: {exc!r}")
        else:
            missing.append(f"{what}: nothing")
    return missing


async def test_in_another_thread(open_pair: PairFactory) -> None:
    """With and without a Trio run of its own; nothing has happened."""
    with trio.fail_after(20):
        async with open_pair(beta={"services": {"echo": echo}}) as pair:
            connection = await pair.alpha.connect(BETA)
            async with connection.open_channel("echo") as channel, pair.alpha.events() as events:
                found = uses(pair.alpha, connection, channel) + uses_of_readers(pair.alpha, events)
                words = "a Trio run in another thread: use it from there, or with trio.from_thread"
                assert await trio.to_thread.run_sync(refusals, found, words) == []

                async def elsewhere() -> list[str]:
                    return refusals(found, words)

                assert await trio.to_thread.run_sync(trio.run, elsewhere) == []
                await channel.send(b"still")
                assert await channel.receive() == b"still"
            assert await pair.alpha.call(BETA, "echo", b"there") == b"there"


def in_a_child(function: Callable[[], object]) -> str:
    """What a function makes of itself in a forked child, which ends at once."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover -- nothing of the parent's may run in it
        answer = "no answer"
        with suppress(BaseException):
            answer = repr(function())
        with suppress(BaseException):
            os.write(writing, answer.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        ready, _, _ = select.select([pipe], [], [], 10)
        answer = pipe.read().decode() if ready else "it hangs"
    os.waitpid(child, 0)
    return answer


def socket_of(descriptor: int) -> socket.socket:
    """The socket that it is of; closed if it is of none."""
    try:
        return socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise


def ports_that_listen() -> set[int]:
    """Those of sockets that this process holds, by looking at each descriptor."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- says the same
        with suppress(OSError), socket_of(os.dup(int(name))) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                found.add(sock.getsockname()[1])
    return found


needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or not os.path.isdir("/proc/self/fd"),  # noqa: PTH112 -- says the same
    reason="no fork, or no /proc",
)


@needs_fork
async def test_after_a_fork(open_pair: PairFactory) -> None:
    """The child's copies are inert, none of the sockets is open in it; the parent notices nothing."""
    others = ports_that_listen()  # what this process has besides, of fixtures that outlive a test
    with trio.fail_after(20):
        async with open_pair(beta={"services": {"echo": echo}}) as pair:
            connection = await pair.alpha.connect(BETA)
            port = pair.beta.acceptors[0].address[1]
            async with connection.open_channel("echo") as channel, pair.alpha.events() as events:
                found = uses(pair.alpha, connection, channel) + uses_of_readers(pair.alpha, events)
                assert port in ports_that_listen()
                assert in_a_child(lambda: ports_that_listen() - others) == "set()"
                assert in_a_child(partial(refusals, found, "after fork() the child's copies are inert")) == "[]"
                await channel.send(b"still")
                assert await channel.receive() == b"still"
        # The port is free: no child, were it alive, could hold it.
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))


@needs_fork
@pytest.mark.parametrize("how", ["opened", "wrapped"])
async def test_servers_of_streams_after_a_fork(manager: ManagerFactory, how: str) -> None:
    """Their listeners and streams, too, also those on sockets that the application has made."""
    certs, others = manager("server@localhost"), ports_that_listen()

    async def talk(stream: TLSStream) -> None:
        await stream.send_all(await stream.receive_some())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_tls, talk, 0, cert_manager=certs, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            if how == "opened":
                stream = await open_tls_stream("127.0.0.1", port, cert_manager=certs, server_name="localhost")
            else:
                connected = await trio.open_tcp_stream("127.0.0.1", port)
                stream = await wrap_client_stream(connected, "localhost", cert_manager=certs)
            async with stream:
                found = uses_of_stream(stream)
                assert in_a_child(lambda: ports_that_listen() - others) == "set()"
                assert in_a_child(partial(refusals, found, "after fork() the child's copies are inert")) == "[]"
                words = "a Trio run in another thread: use it from there, or with trio.from_thread"
                assert await trio.to_thread.run_sync(refusals, found, words) == []
                await stream.send_all(b"still")
                assert await stream.receive_some() == b"still"
            nursery.cancel_scope.cancel()


@needs_fork
async def test_other_servers_after_a_fork(node: NodeFactory) -> None:
    """That of the metrics."""
    async with node("parent@localhost") as parent, trio.open_nursery() as nursery:
        others = ports_that_listen()
        port = await nursery.start(partial(serve_metrics, [parent], 0, registry=CollectorRegistry()))
        assert ports_that_listen() - others == {port}
        assert in_a_child(lambda: port in ports_that_listen()) == "False"
        nursery.cancel_scope.cancel()


@needs_fork
async def test_a_child_may_open_its_own(node: NodeFactory, manager: ManagerFactory) -> None:
    """In a Trio run of its own: what is inert is what the parent had opened."""
    certs = manager("child@localhost")

    def open_another() -> bool:
        async def main() -> bool:
            async with open_node(
                "child@localhost", NodeOptions(cert_manager=certs, network=parent.options.network)
            ) as own:
                return own.statistics().open

        # A child of a running program is inside of its Trio run; a thread is not.
        return trio_run_in_thread(main)

    async with node("parent@localhost") as parent:
        assert in_a_child(open_another) == "True"


def trio_run_in_thread(main: Callable[[], Awaitable[bool]]) -> bool:
    """Run it in a thread."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(trio.run(main)))
    thread.start()
    thread.join(5)
    return bool(answers) and answers[0]
