"""Host names: look-ups that hang hold up nothing else, and errors say whose fault a failed dial is."""

from __future__ import annotations

import errno
import os
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionode import AcceptorOptions, HandshakeError, HandshakeTimeoutError, ListenError, NetworkMode, Route
from trionode._handshake.connect import connect
from trionode._transport import connecting, lookup
from trionode._transport.tcp import TCP, TCPListener, open_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import NodeFactory

PATIENCE = 10


class NameServers:
    """What `getaddrinfo` answers: some names hang."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []
        self.threads = 0

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        """Hang, fail, or say that it is here."""
        self.asked.append(host)
        self.threads += 1
        try:
            if host.startswith("hangs"):
                self.release.wait(PATIENCE)
            if host.startswith("unknown"):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        finally:
            self.threads -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 2


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    """Name servers of this test's own."""
    servers = NameServers()
    monkeypatch.setattr("trionode._transport.lookup.getaddrinfo", servers.getaddrinfo)
    yield servers
    servers.release.set()


async def test_look_ups_that_hang_hold_up_nothing_else(servers: NameServers, node: NodeFactory) -> None:
    """Sixty names hang: another name is dialled meanwhile, and Trio's own worker threads are free."""
    with trio.fail_after(PATIENCE):
        async with node("beta@localhost") as beta, node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
            port = beta.acceptors[0].address[1]
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(partial(connect, f"hangs-{number}.example", 1, connect_timeout=60))
                await trio.testing.wait_all_tasks_blocked()
                while servers.threads < 60:  # noqa: ASYNC110 -- threads
                    await trio.sleep(0.01)
                assert await trio.to_thread.run_sync(lambda: 7) == 7
                connection = await alpha.connect("beta@localhost", Route(host="other.example", port=port))
                assert connection.peer.verified
                nursery.cancel_scope.cancel()


async def test_dials_of_one_host_leave_one_thread(servers: NameServers) -> None:
    """However often a host whose look-up hangs is dialled; once it answers, it may be asked again."""
    with trio.fail_after(PATIENCE):
        for _ in range(5):
            with pytest.raises(HandshakeTimeoutError):
                await connect("hangs.example", 1, connect_timeout=0.1)
        assert servers.asked == ["hangs.example"]
        servers.release.set()
        [listener] = await open_listeners("127.0.0.1", 0)
        with listener.socket:
            port = listener.socket.getsockname()[1]
            for _ in range(2):
                async with await connect("hangs.example", port, connect_timeout=60):
                    pass
        assert servers.asked == ["hangs.example"] * 3
        assert lookup._places() == {}


async def test_a_look_up_has_a_deadline_and_a_stage_of_its_own(servers: NameServers) -> None:
    """The error says that no packet was sent, before the deadline of the dial has passed."""
    with trio.fail_after(PATIENCE):
        with pytest.raises(
            HandshakeTimeoutError, match=r"cannot look up hangs.example: no answer from the name"
        ) as caught:
            await connect("hangs.example", 1, connect_timeout=1)
        assert (caught.value.stage, caught.value.reason) == ("resolve", "timeout")
        assert "firewall" not in str(caught.value)
        with pytest.raises(
            HandshakeError, match=r"cannot look up unknown.example: Name or service not known"
        ) as failed:
            await connect("unknown.example", 1, connect_timeout=1)
        assert (failed.value.stage, failed.value.reason) == ("resolve", "unreachable")
        assert isinstance(failed.value.__cause__, socket.gaierror)


async def test_names_to_listen_on_are_looked_up_likewise(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch, node: NodeFactory
) -> None:
    """In time, and without a thread of Trio's own: a node whose name server hangs says why it does not open."""
    monkeypatch.setattr("trionode._transport.tcp._LOOKUP_TIME", 0.5)
    with trio.fail_after(PATIENCE):
        with pytest.raises(ListenError, match=r"hangs\.example: the name does not resolve \(no answer from the name"):
            async with node("beta@localhost", acceptors=[AcceptorOptions(host="hangs.example", port=0)]):
                pass
        assert not trio.to_thread.current_default_thread_limiter().borrowed_tokens
        for listener in await open_listeners("other.example", 0):
            listener.socket.close()
    assert servers.asked == ["hangs.example", "other.example"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_without_descriptors_no_name_is_known(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The system says that the name is unknown; that is our fault, and said so. So it is of one to listen on."""
    works = socket.socket

    def fails(*args: Any, **options: Any) -> Any:
        if options or args:
            return works(*args, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("socket.socket", fails)
    with trio.fail_after(PATIENCE):
        with pytest.raises(HandshakeError, match=r"cannot look up unknown\.example: .*left") as failed:
            await connect("unknown.example", 1, connect_timeout=1)
        assert (failed.value.stage, failed.value.reason) == ("resolve", "exhausted")
        with pytest.raises(ListenError, match=r"cannot listen on unknown\.example: .*left"):
            await open_listeners("unknown.example", 0)
    assert servers.asked == ["unknown.example"] * 2


async def test_a_resolver_of_the_application_is_asked(servers: NameServers) -> None:
    """The one that Trio was given; and no thread is used."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    try:
        [listener] = await open_listeners("127.0.0.1", 0)
        with listener.socket:
            async with await TCP.connect("somewhere.example", listener.socket.getsockname()[1]):
                pass
    finally:
        trio.socket.set_custom_hostname_resolver(None)
    assert not servers.asked


# Several addresses ----------------------------------------------------------------------------------------------------


def addresses(*hosts: str) -> Callable[[str, int], Any]:
    """A look-up that gives these."""

    async def look_up(host: str, port: int) -> Any:
        families = (socket.AF_INET6 if ":" in each else socket.AF_INET for each in hosts)
        return [(family, (each, port)) for family, each in zip(families, hosts, strict=True)]

    return look_up


async def test_the_first_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses costs no time; the other family has its turn second."""
    monkeypatch.setattr(connecting, "look_up", addresses("127.0.0.2", "127.0.0.3", "::1", "127.0.0.1"))
    with trio.fail_after(PATIENCE):
        [listener] = await open_listeners("127.0.0.1", 0)
        with listener.socket:
            async with await TCP.connect("a.example", TCPListener(listener).address[1]) as stream:
                assert stream.socket.getpeername()[0] == "127.0.0.1"
    order = connecting._alternating(await addresses("1.1.1.1", "1.1.1.2", "::1", "1.1.1.3")("", 1))
    assert [where[0] for _, where in order] == ["1.1.1.1", "::1", "1.1.1.2", "1.1.1.3"]


async def test_all_that_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cause, each; and in words, with what to do."""
    monkeypatch.setattr(connecting, "look_up", addresses("127.0.0.2", "127.0.0.3"))
    with trio.fail_after(PATIENCE):
        with pytest.raises(HandshakeError, match=r"refused.*Nothing listens there") as caught:
            await connect("a.example", 1, connect_timeout=5)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert isinstance(cause.__cause__, ExceptionGroup)
    assert len(cause.__cause__.exceptions) == 2


async def test_one_that_does_not_answer_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """After a quarter of a second the next is tried beside it; the one that comes late is closed."""
    opened: list[Any] = []

    class Socket:
        def __init__(self, name: str) -> None:
            self.name, self.closed = name, False

        def close(self) -> None:
            self.closed = True

    async def connected(address: Any, _: str | None = None) -> Any:
        sock = Socket(address[1][0])
        opened.append(sock)
        try:
            await trio.sleep({"1.1.1.1": 60, "1.1.1.2": 0.1}[sock.name])
        except BaseException:
            sock.close()
            raise
        return sock

    monkeypatch.setattr(connecting, "_connected", connected)
    start = trio.current_time()
    winner: Any = await connecting._first_of(await addresses("1.1.1.1", "1.1.1.2")("", 1), "a.example port 1")
    assert winner.name == "1.1.1.2"
    assert trio.current_time() - start == pytest.approx(0.35)
    assert [(each.name, each.closed) for each in opened] == [("1.1.1.1", True), ("1.1.1.2", False)]


# Whose fault it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [
        (errno.EMFILE, "exhausted", "This process has no descriptors left: raise its limit"),
        (errno.ENFILE, "exhausted", "This machine has no descriptors left"),
        (errno.EADDRNOTAVAIL, "exhausted", "No address or port of this machine is left"),
        (errno.ECONNREFUSED, "unreachable", "Nothing listens there"),
        (errno.EHOSTUNREACH, "unreachable", "no way to that host"),
        (errno.ENETUNREACH, "unreachable", "no way to that network"),
        (errno.EACCES, "unreachable", "This machine does not allow it"),
        (errno.ECONNRESET, "unreachable", "Is the node running there"),
    ],
)
async def test_remedies_depend_on_what_failed(
    code: int, reason: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is our own fault is told so."""

    async def connect_(host: str, port: int) -> trio.abc.Stream:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("trionode._transport.tcp.connect_tcp", connect_)
    with pytest.raises(HandshakeError, match=remedy) as caught:
        await connect("127.0.0.1", 1, connect_timeout=5)
    assert (caught.value.stage, caught.value.reason) == ("connect", reason)
    assert os.strerror(code) in str(caught.value)
