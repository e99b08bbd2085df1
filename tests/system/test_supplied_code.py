"""Nothing that the application has supplied ends a node, a server or an accept loop by raising an `Exception`.

Each kind of thing that is supplied is made to fail, on either side of a connection, while nodes dial, accept, rotate
and are asked what they do. What it raises cannot even be shown. Afterwards it works again, and so does the node.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from trionode import (
    Credentials,
    Endpoint,
    NodeName,
    Route,
    follow_source,
    open_tls_stream,
    serve_tls_listeners,
)
from trionode._transport.tcp import TCP, TCPListener, open_listeners
from trionode._util.contained import PAUSE, keep_running
from trionode._util.log import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import ManagerFactory, NodeFactory

    from trionode import CertAuthManager, Node, Peer, ServiceChannel, TLSStream

ALPHA, BETA = "alpha@localhost", "beta@localhost"
HOST: Final = "127.0.0.1"


class HostileError(Exception):
    """Raised by what is supplied; nothing can be learnt of it."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")

    __repr__ = __str__


@dataclass
class Trap:
    """Raises while it is armed; counts how often."""

    armed: bool = False
    sprung: int = 0

    def __call__(self, *_: object, **__: object) -> None:
        """Raise, if armed."""
        if self.armed:
            self.sprung += 1
            raise HostileError

    def passes(self, *_: object) -> bool:
        """The same, for what is to say yes."""
        self()
        return True


@dataclass
class Supplied:
    """What a node is given: all of it behind a trap.

    Attributes:
        node: arguments of the node factory.
        clock: of its manager.
        source: that its manager follows.
    """

    node: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[], datetime] | None = None
    source: Callable[[CertAuthManager], Any] | None = None


class Hidden:
    """Cannot be shown."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __repr__(self) -> str:
        self.trap()
        return "Hidden"


class Finder(Hidden):
    """Knows both nodes, by itself where they are; resolves, watches, names and registers."""

    places: dict[str, Endpoint]

    def __init__(self, trap: Trap, *traps: str) -> None:
        super().__init__(trap)
        self.traps = traps
        self.places = {}

    def spring(self, what: str) -> None:
        """Raise, where this is what is to fail."""
        if what in self.traps:
            self.trap()

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Where it is."""
        self.spring("resolve")
        return [self.places[str(name)]]

    @asynccontextmanager
    async def watch(self, name: NodeName, /) -> AsyncIterator[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """Nothing ever changes."""
        self.spring("watch")
        say, hear = trio.open_memory_channel[Sequence[Endpoint]](1)
        with say, hear:
            yield hear

    @asynccontextmanager
    async def names(self, pattern: str, /) -> AsyncIterator[trio.abc.ReceiveChannel[Sequence[NodeName]]]:
        """The two."""
        self.spring("names")
        say, hear = trio.open_memory_channel[Sequence[NodeName]](1)
        with say, hear:
            say.send_nowait([NodeName.parse(ALPHA), NodeName.parse(BETA)])
            yield hear

    async def register(
        self,
        name: NodeName,
        addresses: Sequence[tuple[str, int]],
        /,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until the trap is armed."""
        task_status.started()
        while True:
            self.spring("register")
            await trio.sleep(0.01)


class Rotating(Hidden):
    """A source whose trap is looked at all the time."""

    def __init__(self, trap: Trap, manager: CertAuthManager, what: str) -> None:
        super().__init__(trap)
        self.found = Credentials(key_pair=manager.key_pair)
        self.what = what

    async def read(self) -> Credentials:
        """What the manager has."""
        if self.what == "read":
            self.trap()
        return self.found

    async def wait_changed(self, seen: Credentials | None) -> None:
        """It may have."""
        await trio.sleep(0.01)
        if self.what == "wait_changed":
            self.trap()


class Trapped(Hidden):
    """A listener, or a stream, of the application's, in front of TCP's."""

    def __init__(self, trap: Trap, inner: Any, what: str) -> None:
        super().__init__(trap)
        self.inner = inner
        self.what = what
        if isinstance(inner, TCPListener):
            self.address = inner.address

    async def accept(self) -> trio.abc.Stream:
        """Take the next connection."""
        if self.what == "accept":
            with trio.move_on_after(0.01) as scope:
                stream: trio.abc.Stream = await self.inner.accept()
            if scope.cancelled_caught:
                self.trap()
                return await self.accept()
            return stream
        return Stream(self.trap, await self.inner.accept(), self.what)

    def close(self) -> None:
        """Stop listening."""
        self.inner.close()
        if self.what == "close":
            self.trap()


class Stream(trio.abc.HalfCloseableStream):
    """One of whose parts is trouble."""

    def __init__(self, trap: Trap, inner: Any, what: str) -> None:
        self.trap = trap
        self.inner = inner
        self.what = what

    def spring(self, what: str) -> None:
        """Raise, where this is what is to fail."""
        if what == self.what:
            self.trap()

    @property
    def peer_address(self) -> tuple[str, int]:
        """Fail, or say something."""
        self.spring("address")
        return HOST, 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Pass it on."""
        self.spring("send_all")
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Pass it on."""
        await self.inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Pass it on."""
        await self.inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        """Pass it on; or give what is nothing of the kind."""
        received = await self.inner.receive_some(max_bytes)
        self.spring("receive_some")
        if self.what == "receive_some, nonsense":
            with suppress(HostileError):
                self.trap()
                return received
            return "text"
        return received

    async def aclose(self) -> None:
        """Pass it on."""
        await self.inner.aclose()
        self.spring("aclose")


#: What a transport's stream has that may fail.
STREAMS: Final = ("address", "send_all", "receive_some", "receive_some, nonsense", "aclose")


class Carrier:
    """A transport of the application's."""

    def __init__(self, trap: Trap, what: str) -> None:
        self.trap = trap
        self.what = what

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> list[Any]:
        """Listen, behind the trap."""
        listeners = await TCP.listen(host, port, port_range=port_range, only_local=only_local)
        return [Trapped(self.trap, each, self.what) if self.what != "connect" else each for each in listeners]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Connect."""
        if self.what == "connect":
            self.trap()
        return Stream(self.trap, await TCP.connect(host, port), self.what)


class Handler(logging.Handler):
    """Fails where nothing of `logging` catches it."""

    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self.trap = trap

    def handle(self, record: logging.LogRecord) -> bool:
        """Fail."""
        self.trap()
        return True


def clock(trap: Trap) -> datetime:
    """The time."""
    trap()
    return datetime.now(UTC)


def kinds(trap: Trap) -> dict[str, Supplied]:
    """Everything that an application may supply."""

    async def echo(channel: ServiceChannel) -> None:
        trap()
        async for message in channel:
            await channel.send(message)

    finders = {what: Supplied({"resolver": Finder(trap, what)}) for what in ("resolve", "watch", "names", "register")}
    carriers = {
        f"transport.{what}": Supplied({"transport": Carrier(trap, what)})
        for what in ("connect", "accept", "close", *STREAMS)
    }
    sources = {
        f"source.{what}": Supplied(source=partial(Rotating, trap, what=what)) for what in ("read", "wait_changed")
    }
    return {
        "authorize": Supplied({"authorize": trap}),
        "clock": Supplied(clock=partial(clock, trap)),
        "service": Supplied({"services": {"echo": echo}}),
        "allow": Supplied(),
        "log handler": Supplied(),
        "log filter": Supplied(),
        **finders,
        **carriers,
        **sources,
    }


@asynccontextmanager
async def logging_by(what: str, trap: Trap) -> AsyncIterator[None]:
    """A handler or a filter of the program's."""
    logger: logging.Logger = logging.getLogger("trionode")
    handler: logging.Handler = Handler(trap)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    if what == "log filter":
        handler = logging.StreamHandler(io.StringIO())
        handler.addFilter(trap.passes)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def works(node: Node, name: str) -> None:
    """Dial anew, and call."""
    connection = await node.connect(name)
    assert await connection.call("echo", b"there?") == b"there?"
    await connection.aclose()


async def provoke(node: Node, name: str) -> None:
    """Whatever may have something supplied called; it may fail."""
    with suppress(Exception):
        await works(node, name)
    with suppress(Exception):
        node.options.cert_manager.update(node.options.cert_manager.key_pair)
    with suppress(Exception):
        node.members("*")
    node.statistics()


@pytest.mark.parametrize("side", [ALPHA, BETA])
@pytest.mark.parametrize("kind", kinds(Trap()))
async def test_it_costs_no_node(
    kind: str, side: str, node: NodeFactory, manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two goes on, in both directions."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    trap = Trap()
    supplied = {ALPHA: Supplied(), BETA: Supplied()} | {side: kinds(trap)[kind]}
    finders = [each.node.setdefault("resolver", Finder(Trap())) for each in supplied.values()]
    managers = {name: manager(name, clock=each.clock) for name, each in supplied.items()}

    def opened(name: str) -> Any:
        options = {"services": {"echo": echo}, "keep_connected": ["absent@localhost"], **supplied[name].node}
        return node(name, managers[name], **options)

    with trio.fail_after(20):
        async with logging_by(kind, trap), trio.open_nursery() as nursery:
            for name, each in supplied.items():
                if each.source is not None:
                    await nursery.start(follow_source, managers[name], each.source(managers[name]))
            async with opened(ALPHA) as alpha, opened(BETA) as beta:
                nodes = {ALPHA: alpha, BETA: beta}
                for finder in finders:
                    finder.places.update({name: Endpoint(*each.acceptors[0].address) for name, each in nodes.items()})
                if kind == "allow":
                    nodes[side].add_service("guarded", echo, allow=trap.passes)
                await works(alpha, BETA)
                await works(beta, ALPHA)
                trap.armed = True
                for _ in range(100):
                    await provoke(alpha, BETA)
                    await provoke(beta, ALPHA)
                    if kind == "allow":
                        with suppress(Exception):
                            await nodes[ALPHA if side == BETA else BETA].call(side, "guarded", b"")
                    if trap.sprung or kind == "transport.close":
                        break
                    await trio.sleep(0.01)
                assert trap.sprung or kind == "transport.close"
                await trio.sleep(0.03)
                trap.armed = kind == "transport.close"  # to fail at the end
                await trio.sleep(0.15 if kind == "transport.accept" else 0)
                await works(alpha, BETA)
                await works(beta, ALPHA)
                assert alpha.statistics().open
                assert beta.statistics().open
                assert len(alpha.connectors) == len(beta.connectors) == 1
                await nodes[side].drain()
            assert trap.sprung
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["clock", "log handler", "log filter", "accept", "close", *STREAMS])
async def test_it_costs_no_server(kind: str, manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of streams: `serve_tls` and its kin."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    trap = Trap()
    certs = manager(BETA, clock=partial(clock, trap) if kind == "clock" else None)
    client = manager(ALPHA)

    async def talk(stream: TLSStream) -> None:
        await stream.send_all(await stream.receive_some())

    async def works() -> None:
        stream = await open_tls_stream(HOST, port, cert_manager=client, server_name="localhost")
        async with stream:
            await stream.send_all(b"there?")
            assert await stream.receive_some() == b"there?"

    with trio.fail_after(20):
        listener = TCPListener((await open_listeners(HOST, 0))[0])
        port = listener.address[1]
        given = Trapped(trap, listener, kind) if kind in ("accept", "close", *STREAMS) else listener
        async with logging_by(kind, trap), trio.open_nursery() as nursery:
            await nursery.start(partial(serve_tls_listeners, talk, [given], cert_manager=certs))
            await works()
            trap.armed = True
            for _ in range(100):
                with suppress(Exception):
                    await works()
                async with await trio.open_tcp_stream(HOST, port) as stranger:  # is refused, which is logged
                    await stranger.send_all(b"no TLS")
                    with suppress(trio.BrokenResourceError):
                        await stranger.receive_some()
                if trap.sprung or kind == "close":
                    break
                await trio.sleep(0.01)
            assert trap.sprung or kind == "close"
            trap.armed = kind == "close"  # to fail at the end
            await works()
            nursery.cancel_scope.cancel()
    assert trap.sprung


class StopError(BaseException):
    """No `Exception`: it means the program, as `KeyboardInterrupt` does."""


async def test_what_is_no_exception_passes(node: NodeFactory) -> None:
    """It ends the node, as it would end any program."""

    def authorize(_: Peer) -> None:
        raise StopError

    with trio.fail_after(20), pytest.RaisesGroup(StopError, flatten_subgroups=True):
        async with node(BETA, authorize=authorize) as beta, node(ALPHA) as alpha:
            with suppress(Exception):
                await alpha.connect(BETA, Route(host=HOST, port=beta.acceptors[0].address[1]))
            await trio.sleep_forever()


async def test_what_is_to_last_is_taken_up_again(autojump_clock: trio.testing.MockClock) -> None:
    """A minute later, until it returns."""
    calls: list[float] = []

    async def fails() -> None:
        calls.append(trio.current_time())
        if len(calls) < 3:
            raise ExceptionGroup("several", [HostileError()])

    await keep_running(fails, Log("trionode.node"), "it")
    assert [each - calls[0] for each in calls] == [0, PAUSE, 2 * PAUSE]
