"""The roles of the demo: programs as an application would write them, with the public names of `trionode` only.

`serve` is beta, `talk` is alpha, `visit` is any other node that tries to connect, and `knock` is a client that does not
use trionode. A role obeys orders, one word a line on its stdin, and reports on its stdout. It ends when its stdin does,
so that no process outlives an operator that was killed.
"""

from __future__ import annotations

import math
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    Connection,
    ConnectionUp,
    EventStream,
    HandshakeError,
    HandshakeRefused,
    KeyPair,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Route,
    ServiceChannel,
    open_node,
)

from .said import (
    Connected,
    Listening,
    Progress,
    Received,
    Refusal,
    Rotated,
    Sent,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

ALPHA: Final = "alpha@localhost"
BETA: Final = "beta@localhost"

HOST: Final = "127.0.0.1"

#: Pause between two numbers that alpha sends, seconds: steady traffic, a few hundred numbers in all.
PACE: Final = 0.002
#: alpha reports whenever this many more numbers have come back.
PROGRESS: Final = 50
#: How long the client without trionode waits for the server, seconds.
PATIENCE: Final = 10


def mutual_tls(directory: Path, folder: str) -> CertAuthManager:
    """A manager, as every node of the cluster has one: its key pair, and the cluster's CA for both directions."""
    cluster = CAPool.load(directory / "ca" / "ca.pem")
    return CertAuthManager(
        KeyPair.load(directory / folder / "cert.pem", directory / folder / "key.pem"),
        client_cas=cluster,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        root_cas=cluster,
    )


async def serve(directory: str) -> None:
    """beta: listens, echoes numbers, rotates to the files on disk when ordered to."""
    manager = mutual_tls(Path(directory), "beta")
    numbers: list[int] = []

    async def echo(channel: ServiceChannel) -> None:
        async for message in channel:
            numbers.append(int(message))
            await channel.send(message)

    async def rotate() -> None:
        folder = Path(directory) / "beta"
        key_pair = await trio.to_thread.run_sync(KeyPair.load, folder / "cert.pem", folder / "key.pem")
        generation = manager.update(key_pair)
        tell(Rotated(generation=generation, fingerprint=manager.key_pair.fingerprint, received=len(numbers)))

    async def look() -> None:  # noqa: ASYNC124 -- as all orders are
        tell(Connected.of(node.connections[NodeName.parse(ALPHA)]))

    async def reckon() -> None:  # noqa: ASYNC124 -- as all orders are
        tell(Received(received=len(numbers), wrong_at=first_wrong(numbers)))

    options = NodeOptions(
        cert_manager=manager,
        network=NetworkOptions(acceptors=[AcceptorOptions(host=HOST, port=0)]),
        services={"echo": echo},
    )
    async with open_node(BETA, options) as node, node.events() as events, orders() as words:
        tell(Listening(port=node.acceptors[0].address[1]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, events)
            await obey(words, {"rotate": rotate, "look": look, "reckon": reckon})
            nursery.cancel_scope.cancel()


async def report(events: EventStream) -> None:
    """Report which peers this node admitted, and which it refused."""
    async for event in events:
        if isinstance(event, ConnectionUp):
            tell(Connected.of(event.connection))
        elif isinstance(event, HandshakeRefused):
            tell(Refusal(error=type(event.error).__name__, code=event.error.reason, text=str(event.error)))


async def talk(directory: str, port: str) -> None:
    """alpha: connects to beta once, sends it numbers all the time, and checks what comes back."""
    options = NodeOptions(
        cert_manager=mutual_tls(Path(directory), "alpha"),
        network=NetworkOptions(mode=NetworkMode.HIDDEN, routes={BETA: Route(host=HOST, port=int(port))}),
    )
    async with open_node(ALPHA, options) as node, orders() as words:
        connection = await node.connect(BETA)
        tell(Connected.of(connection))
        tell(await send_numbers(connection, words))
        await connection.aclose()
        tell(Connected.of(await node.connect(BETA)))
        await obey(words, {})


async def send_numbers(connection: Connection, words: trio.MemoryReceiveChannel[str]) -> Sent:
    """Send 1, 2, 3, … over one channel until ordered to stop; beta sends each back."""
    echoes: list[int] = []
    sent = 0
    sending = trio.CancelScope()

    async def send(channel: ServiceChannel) -> None:
        nonlocal sent
        with sending:
            while True:
                await channel.send(b"%d" % (sent + 1))
                sent += 1
                await trio.sleep(PACE)
        await channel.send_eof()

    async def look() -> None:  # noqa: ASYNC124 -- as all orders are
        tell(Connected.of(connection))

    async def stop() -> None:  # noqa: ASYNC124 -- as all orders are
        sending.cancel()

    async def listen() -> None:
        await obey(words, {"look": look, "stop": stop})
        await stop()

    async with connection.open_channel("echo") as channel, trio.open_nursery() as nursery:
        nursery.start_soon(send, channel)
        nursery.start_soon(listen)
        async for message in channel:  # ends when beta has echoed the last number and its service has returned
            echoes.append(int(message))
            if len(echoes) % PROGRESS == 0:
                tell(Progress(echoed=len(echoes)))
        nursery.cancel_scope.cancel()
    return Sent(sent=sent, echoed=len(echoes), wrong_at=first_wrong(echoes))


async def visit(directory: str, port: str, name: str, folder: str) -> None:
    """Any other node: connect to beta under a name, with the certificate in a folder, and report the outcome."""
    options = NodeOptions(
        cert_manager=mutual_tls(Path(directory), folder), network=NetworkOptions(mode=NetworkMode.HIDDEN)
    )
    async with open_node(name, options) as node:
        try:
            connection = await node.connect(BETA, Route(host=HOST, port=int(port)))
        except HandshakeError as exc:  # a PeerRejectedError if beta refuses; its code is its reason
            tell(Refusal(error=type(exc).__name__, code=exc.reason, text=str(exc)))
        else:
            tell(Connected.of(connection))


async def knock(directory: str, port: str) -> None:
    """A client without trionode and without a certificate: Python's own `ssl`."""
    await trio.to_thread.run_sync(_knock, Path(directory) / "ca" / "ca.pem", int(port))


def _knock(ca_file: Path, port: int) -> None:
    context = ssl.create_default_context(cafile=ca_file)  # noqa: TID251 -- the point here: a peer that is not ours
    try:
        with (
            socket.create_connection((HOST, port), timeout=PATIENCE) as transport,
            context.wrap_socket(transport, server_hostname="localhost") as tls,
        ):
            tls.recv(1)
    except ssl.SSLError as exc:
        # OpenSSL's name for it is TLSV13_ALERT_CERTIFICATE_REQUIRED.
        code = (exc.reason or "").lower().rpartition("alert_")[2]
        tell(Refusal(error=f"ssl.{type(exc).__name__}", code=code, text=str(exc)))
    except OSError as exc:
        tell(Refusal(error=type(exc).__name__, code="", text=str(exc)))
    else:
        tell(Refusal(error="", code="", text="it was not refused"))


def first_wrong(numbers: Sequence[int]) -> int | None:
    """Where a sequence stops being 1, 2, 3, …: lost, doubled and reordered numbers all show here."""
    return next((due for due, number in enumerate(numbers, start=1) if number != due), None)


ROLES: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "serve": serve,
    "talk": talk,
    "visit": visit,
    "knock": knock,
}


def main(arguments: Sequence[str]) -> int:
    """Run a role; returns the exit status."""
    role, *rest = arguments
    status = 0
    try:
        trio.run(ROLES[role], *rest)
    except* KeyboardInterrupt:  # Ctrl-C reaches every process of the terminal; the operator reports it
        status = 130
    return status


# Orders, one word a line --------------------------------------------------------------------------------------------


@asynccontextmanager
async def orders() -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """The operator's orders from our stdin, for the length of a block; the end of stdin is the order to leave."""
    stdin = trio.lowlevel.FdStream(0)
    send, receive = trio.open_memory_channel[str](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_lines, stdin, send)
        yield receive
        nursery.cancel_scope.cancel()


async def obey(words: trio.MemoryReceiveChannel[str], functions: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Run the function for each word, until there are no more words."""
    async for word in words:
        await functions[word]()


async def read_lines(stream: trio.abc.ReceiveStream, lines: trio.MemorySendChannel[str]) -> None:
    """Cut a stream into lines, until it ends; both are closed then."""
    rest = b""
    async with stream, lines:
        async for chunk in stream:
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                await lines.send(line.decode())
