"""Peers are what they claim to be: as strict as each other, and they do what they are asked."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import ssl
import threading
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from benchmarks import suite
from benchmarks.suite.arena import GRPC, MANY, NAIVE, NOWAIT, NOWAIT_BOTH, OURS, PEERS
from benchmarks.suite.credentials import ADDRESS, HOST, Credentials
from benchmarks.suite.model import Job, Server
from benchmarks.suite.peers import load
from benchmarks.suite.scenarios import http
from benchmarks.suite.worker import other_end
from trionode import PeerUnverifiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.suite.model import Sample


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Certificates as in a run."""
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


#: What a web socket begins with.
UPGRADE = (
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()

ALL_PEERS: Final = {**PEERS, **http.SERVERS}

#: Variants of ours have one and the same server.
SERVERS = [title for title in ALL_PEERS if title not in {MANY, NOWAIT, NOWAIT_BOTH}]

#: What each would answer.
OPENING: Final = dict.fromkeys(("trio-websocket", "websockets"), UPGRADE) | dict.fromkeys(http.SERVERS, http.REQUEST)


@contextmanager
def served(title: str, credentials: Credentials) -> Iterator[int]:
    """A server of this peer, for the length of a block; gives its port.

    In a thread, which starts sooner than a process. gRPC's event loops do not bear another one beside them, so it has a
    process, as in a run.
    """
    if title == GRPC:
        with other_end(module_of(title), credentials.directory) as server:
            yield server.ports[0]
        return
    peer = load(module_of(title), credentials)
    ports: queue.Queue[int] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        async with peer.serve() as opened:
            ports.put(opened[0])
            while not over.is_set():
                await peer.sleep(0.01)

    thread = threading.Thread(target=peer.run, args=[serve])
    thread.start()
    try:
        yield ports.get(timeout=20)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("title", SERVERS)
def test_a_peer_is_as_strict_as_the_others(title: str, credentials: Credentials) -> None:
    """What is compared is alike: TLS 1.3, no session resumed, no client let in without a certificate."""
    with served(title, credentials) as port:
        context = offering(credentials.stdlib("client"))
        with closing(handshake(port, context)) as first:
            assert first.version() == "TLSv1.3"
            what_comes(first, within=0.2)  # tickets, if there are any, come with the first data
            session = first.session
        with closing(handshake(port, context, session)) as second:
            # gRPC's server would. Its client offers none: see below.
            assert second.session_reused is (title == GRPC)
        anonymous = ssl.create_default_context(cafile=credentials.ca)
        with closing(handshake(port, offering(anonymous))) as refused:
            # Under TLS 1.3 a client learns of it when it reads. Trio drops the alert: what is left is the end of the
            # stream, or, from trio-websocket, which does not close it, silence. A client that is let in is answered.
            silent = title == "trio-websocket"
            with contextlib.suppress(OSError):
                refused.sendall(OPENING.get(title, b"E"))
            assert what_comes(refused, within=0.5 if silent else 20) in (["silence"] if silent else ["alert", "end"])


def test_a_grpc_client_offers_no_session(credentials: Credentials) -> None:
    """A server that gives tickets and would resume, as a client that offers one shows, never gets one offered."""
    peer = load(module_of(GRPC), credentials)
    resumed: list[bool] = []
    context = credentials.stdlib("server")
    context.num_tickets = 2
    context.set_alpn_protocols(["h2"])

    def serve_one(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
            resumed.append(bool(tls.session_reused))
            tls.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame: a client is ready once it has it
            while tls.recv(1000):
                pass

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server((ADDRESS, 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]

        async def dial_three_times() -> None:
            async with peer.client([port]) as client:
                for _ in range(3):
                    async with client.dial() as session:
                        await session.settle()

        peer.run(dial_three_times)
        assert resumed == [False] * 3
        client_context = credentials.stdlib("client")
        with closing(handshake(port, client_context)) as first:
            first.recv(9)
            offered = first.session
        with closing(handshake(port, client_context, offered)) as second:
            assert second.session_reused
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()


def module_of(title: str) -> str:
    """A peer's module, where what it needs is installed."""
    module, needs = ALL_PEERS[title]
    if not all(map(find_spec, needs)):
        pytest.skip(f"{needs} not installed")
    return module


def offering(context: ssl.SSLContext) -> ssl.SSLContext:
    """The protocols of all peers."""
    context.set_alpn_protocols(["trionode/1", "h2", "http/1.1"])
    return context


def what_comes(tls: ssl.SSLSocket, *, within: float) -> str:
    """What a client hears first, within so many seconds."""
    tls.settimeout(within)
    try:
        return "data" if tls.recv(1) else "end"
    except TimeoutError:
        return "silence"
    except (ssl.SSLError, ConnectionError):
        return "alert"


def handshake(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A client of the standard library."""
    raw = socket.create_connection((ADDRESS, port), timeout=10)
    return context.wrap_socket(raw, server_hostname=HOST, session=session)


@pytest.mark.parametrize("title", [OURS, NAIVE, "asyncio streams"])
def test_a_peer_does_not_talk_to_a_server_of_another_ca(title: str, credentials: Credentials, tmp_path: Path) -> None:
    """The dialer verifies, too."""
    foreign = load(module_of(title), Credentials.create(tmp_path))

    async def dial(port: int) -> None:
        async with foreign.client([port]) as client, client.dial() as session:
            await session.settle()

    with (
        served(title, credentials) as port,
        pytest.raises((ssl.SSLError, trio.BrokenResourceError, PeerUnverifiedError)),
    ):
        foreign.run(partial(dial, port))


@pytest.mark.parametrize("title", PEERS)
def test_a_peer_does_what_it_is_asked(title: str, credentials: Credentials) -> None:
    """A call comes back as it was; messages are counted to the last."""
    peer = load(module_of(title), credentials)

    async def talk() -> None:
        async with peer.serve() as ports, peer.client(ports) as client:
            async with client.dial() as session:
                await session.settle()
                assert await session.call(b"x" * 70_000) == b"x" * 70_000
            async with client.dial() as session:
                await session.pour(b"y" * 100, 1000)

    peer.run(talk)


def test_the_suite_uses_what_is_public() -> None:
    """Else it could not measure another commit's checkout beside this one's (`--against`)."""
    programs = sorted(Path(suite.__file__).parent.rglob("*.py"))
    assert programs
    private = re.compile(r"^\s*(?:from trionode\._|import trionode\._|from trionode import .*\b_\w)", re.MULTILINE)
    assert [str(each) for each in programs if private.search(each.read_text())] == []


@pytest.mark.parametrize("measure", [http.requests, http.requests_2, http.connections], ids=lambda each: each.__name__)
@pytest.mark.parametrize("title", http.SERVERS)
def test_an_http_server_does_what_it_is_asked(
    title: str, measure: Callable[[Job], Sample], credentials: Credentials
) -> None:
    """Over each protocol that it is measured with."""
    if title == http.UVICORN and measure is http.requests_2:
        pytest.skip("it has no HTTP/2")
    with served(title, credentials) as port:
        server = Server(ports=[port], pid=os.getpid())
        assert measure(Job(credentials=credentials, parameters={}, count=64, server=server)).value > 0
