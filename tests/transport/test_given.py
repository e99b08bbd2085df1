"""Listening sockets that are open already: handed over by a service manager or a parent, or given to an acceptor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from trionode import AcceptorOptions, ListenError, Route, adopt_listener, inherited_listeners
from trionode._transport import given
from trionode._transport.tcp import open_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import NodeFactory

HOST = "127.0.0.1"


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


def says(monkeypatch: pytest.MonkeyPatch, first: int, **variables: str) -> None:
    """What a service manager says, of descriptors from `first` on."""
    monkeypatch.setattr(given, "_FIRST", first)
    for name, value in {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **variables}.items():
        monkeypatch.setenv(name, value)


def in_a_row(undo: ExitStack, *socks: socket.socket) -> int:
    """Put sockets on descriptors that follow each other; the first of these."""
    first = 700
    for number, sock in enumerate(socks, first):
        os.dup2(sock.fileno(), number, inheritable=True)
        undo.enter_context(sock)
    return first


async def test_by_name(monkeypatch: pytest.MonkeyPatch, undo: ExitStack) -> None:
    """Listeners that accept, close-on-exec; the variables are gone, and with them what a second call finds."""
    ours = [socket.create_server((HOST, 0)) for _ in range(3)]
    says(monkeypatch, in_a_row(undo, *ours), LISTEN_FDS="3", LISTEN_FDNAMES="a:b:a")
    found = inherited_listeners()
    assert [name for name in os.environ if name.startswith("LISTEN_")] == []
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 1}
    for name, number, sock in (("a", 0, ours[0]), ("b", 0, ours[1]), ("a", 1, ours[2])):
        listener = found[name][number]
        assert not os.get_inheritable(listener.socket.fileno())
        async with listener, await trio.open_tcp_stream(*sock.getsockname()), await listener.accept():
            pass
    assert inherited_listeners() == {}


@pytest.mark.parametrize(
    ("variables", "found"), [({}, {"unknown": 1}), ({"LISTEN_FDNAMES": "x.socket"}, {"x.socket": 1})]
)
def test_names_are_optional(
    variables: dict[str, str], found: dict[str, int], monkeypatch: pytest.MonkeyPatch, undo: ExitStack
) -> None:
    """As sd_listen_fds_with_names has it."""
    says(monkeypatch, in_a_row(undo, socket.create_server((HOST, 0))), **variables)
    taken = inherited_listeners()
    for each in taken.values():
        undo.callback(os.close, each[0].socket.detach())
    assert {name: len(each) for name, each in taken.items()} == found


def test_for_another_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """They are not ours, which is said; and a child of ours does not take them either."""
    says(monkeypatch, 3, LISTEN_PID=str(os.getppid()))
    assert inherited_listeners() == {}
    assert f"process {os.getppid()}, which is not this one" in caplog.text
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS makes no sense: 'many'"),
        ({"LISTEN_FDS": "0"}, "LISTEN_FDS makes no sense"),
        ({"LISTEN_FDS": "9" * 30}, "LISTEN_FDS makes no sense"),
        ({"LISTEN_PID": "-1"}, "LISTEN_PID makes no sense"),
        ({"LISTEN_PID": "٣"}, "LISTEN_PID makes no sense"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES has 2 names for the 1 descriptors"),
        ({"LISTEN_FDNAMES": "beta"}, r"descriptor 3 \(beta\) is not a socket that listens"),
    ],
)
def test_what_makes_no_sense(variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is one error that names it."""
    says(monkeypatch, 3, **variables)
    monkeypatch.setattr(given, "_what_is_wrong", lambda _: "it is a file")
    with pytest.raises(ListenError, match=words):
        inherited_listeners()


def test_descriptors_that_do_not_listen(tmp_path: Path, undo: ExitStack) -> None:
    """Each is told apart, and stays open, as it was."""
    (tmp_path / "file").write_text("")
    file = undo.enter_context((tmp_path / "file").open())
    device = undo.enter_context(Path(os.devnull).open())  # noqa: SIM115 -- it is one
    pipe = os.pipe()
    for each in pipe:
        undo.callback(os.close, each)
    datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    left, right = socket.socketpair()
    undo.enter_context(left)
    undo.enter_context(right)
    idle = undo.enter_context(socket.socket())
    for number, words in (
        (file.fileno(), "a file"),
        (device.fileno(), "a device"),
        (pipe[0], "a pipe"),
        (datagrams.fileno(), "SOCK_DGRAM"),
        (left.fileno(), "Accept=no"),
        (idle.fileno(), "does not listen yet"),
        (4093, "not open"),
    ):
        with pytest.raises(ListenError, match=words) as caught:
            adopt_listener(number)
        assert str(caught.value).startswith(f"descriptor {number} is not a socket that listens")
        if number != 4093:
            os.fstat(number)


async def echo(channel: trio.abc.Channel[bytes]) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def test_a_node_listens_on_what_it_is_given(node: NodeFactory) -> None:
    """On all of it, and closes it."""
    listeners = await open_listeners(HOST, 0) + await open_listeners("127.0.0.2", 0)
    places = [each.socket.getsockname() for each in listeners]
    acceptor = AcceptorOptions(listeners=listeners)
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=[acceptor], services={"echo": echo}) as beta:
            assert list(beta.acceptors[0].addresses) == places
            async with node("alpha@localhost") as alpha:
                for host, port in places:
                    connection = await alpha.connect("beta@localhost", Route(host=host, port=port))
                    assert await connection.call("echo", b"there?") == b"there?"
                    await connection.aclose()
        assert [each.socket.fileno() for each in listeners] == [-1, -1]
        with pytest.raises(ListenError, match="give each node its own"):
            async with node("beta@localhost", acceptors=[acceptor]):
                raise AssertionError("a closed socket")


async def test_a_node_that_does_not_open_closes_what_it_was_given(node: NodeFactory) -> None:
    """It owned it already."""
    listeners = await open_listeners(HOST, 0)
    with pytest.raises(ListenError):
        async with node(
            "beta@localhost", acceptors=[AcceptorOptions(listeners=listeners), AcceptorOptions(host="192.0.2.1")]
        ):
            raise AssertionError("no address of this machine")
    assert listeners[0].socket.fileno() == -1


async def test_no_unix_socket(node: NodeFactory, tmp_path: Path) -> None:
    """A node's address is a host and a port."""
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(tmp_path / "socket"))
    sock.listen()
    with pytest.raises(ListenError, match="AF_UNIX; serve_tls_listeners takes it"):
        async with node("beta@localhost", acceptors=[AcceptorOptions(listeners=[trio.SocketListener(sock)])]):
            raise AssertionError("a UNIX socket")
    assert sock.fileno() == -1


def test_listeners_are_bound_already() -> None:
    """So where to listen is not for the same options to say."""
    with pytest.raises(ValueError, match="listeners were given, which are bound already"):
        AcceptorOptions(listeners=[NotATransport()], port=1)


class NotATransport:
    """A listener of one."""

    address = (HOST, 1)

    async def accept(self) -> trio.abc.Stream:
        """Fail."""
        raise trio.ClosedResourceError

    def close(self) -> None:
        """Do nothing."""


async def test_a_port_is_shared_where_all_say_so(node: NodeFactory) -> None:
    """And by default it is not."""

    def sharing(port: int) -> AcceptorOptions:
        return AcceptorOptions(host=HOST, port=port, reuse_port=True)

    async with node("beta@localhost", acceptors=[sharing(0)]) as beta:
        port = beta.acceptors[0].address[1]
        async with node("gamma@localhost", acceptors=[sharing(port)]) as gamma:
            assert gamma.acceptors[0].address == (HOST, port)
        with pytest.raises(ListenError, match="Address already in use"):
            await open_listeners(HOST, port)


async def test_a_system_without_shared_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so."""
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(ListenError, match="no SO_REUSEPORT"):
        await open_listeners(HOST, 0, reuse_port=True)


def test_a_child_of_ours_does_not_get_it() -> None:
    """It is close-on-exec: a program that is started has no second copy, which would keep the port."""
    with socket.create_server((HOST, 0)) as sock:
        number = os.dup(sock.fileno())
        os.set_inheritable(number, True)
        listener = adopt_listener(number)
        looks = f"import os\ntry: os.fstat({number})\nexcept OSError: print('gone')"
        done = subprocess.run([sys.executable, "-c", looks], capture_output=True, check=True, close_fds=False)
        os.close(listener.socket.detach())
    assert done.stdout == b"gone\n"
