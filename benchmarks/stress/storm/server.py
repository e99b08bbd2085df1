"""The server of the storm: what was accepted and established, in which order, and how long it stopped all else."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.stress.nodes import LOOPBACK
from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    ConnectionUp,
    HandshakeRefused,
    KeyPair,
    NetworkOptions,
    NodeOptions,
    open_node,
)
from trionode._transport.tcp import TCPListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVER: Final = "server@localhost"
#: How often a task of the server wants to run, beside the handshakes. Seconds.
_TICK: Final = 0.002
_BACKLOG: Final = 4096


def manager(directory: Path, end: str) -> CertAuthManager:
    """The manager of one end, by files; both sides verify with one CA."""
    pool = CAPool.load(directory / "ca.pem")
    key_pair = KeyPair.load(directory / f"{end}.pem", directory / f"{end}.key")
    return CertAuthManager(
        key_pair, client_cas=pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=pool
    )


@dataclass(kw_only=True)
class Seen:
    """What a server has seen since it was last asked.

    Attributes:
        accepted: the clients' ports, in the order in which they were accepted.
        established: in that in which they became connections.
        refused: handshakes that failed.
        stall: the longest that a task which was due had to wait, seconds.
    """

    accepted: list[int] = field(default_factory=list)
    established: list[int] = field(default_factory=list)
    refused: int = 0
    stall: float = 0.0


class _Recording:
    """A listener that notes what it accepts."""

    def __init__(self, inner: TCPListener, seen: Seen) -> None:
        self._inner = inner
        self._seen = seen
        self.address = inner.address
        self.close = inner.close

    async def accept(self) -> trio.abc.Stream:
        """The next."""
        stream = await self._inner.accept()
        self._seen.accepted.append(stream.socket.getpeername()[1])
        return stream


class Server:
    """A node that accepts, and what it has seen."""

    def __init__(self, port: int, seen: Seen) -> None:
        self.port = port
        self._seen = seen

    async def ask(self) -> Seen:
        """What it has seen since the last time."""
        await trio.lowlevel.checkpoint()
        seen = self._seen
        asked = Seen(**vars(seen))
        seen.__init__()  # type: ignore[misc]  # as new
        return asked


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Server]:
    """A server in this process."""
    seen = Seen()
    [inner] = await trio.open_tcp_listeners(0, host=LOOPBACK, backlog=_BACKLOG)
    listener = _Recording(TCPListener(inner), seen)
    options = NodeOptions(
        cert_manager=manager(directory, "server"),
        network=NetworkOptions(acceptors=[AcceptorOptions(listeners=[listener])]),
    )
    async with (
        open_node(SERVER, options) as node,
        node.events() as events,
        trio.open_nursery() as nursery,
    ):

        async def note() -> None:
            async for event in events:
                if isinstance(event, ConnectionUp):
                    assert event.peer.address is not None
                    seen.established.append(event.peer.address[1])
                elif isinstance(event, HandshakeRefused):
                    seen.refused += 1

        async def stalls() -> None:
            while True:
                due = trio.current_time() + _TICK
                await trio.sleep_until(due)
                seen.stall = max(seen.stall, trio.current_time() - due)

        nursery.start_soon(note)
        nursery.start_soon(stalls)
        yield Server(listener.address[1], seen)
        nursery.cancel_scope.cancel()


async def _serve(directory: Path) -> None:
    async with serving(directory) as server:
        print(server.port, flush=True)
        requests: Any = trio.wrap_file(sys.stdin)
        async for _ in requests:
            print(json.dumps(vars(await server.ask())), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    trio.run(_serve, parser.parse_args().directory)
