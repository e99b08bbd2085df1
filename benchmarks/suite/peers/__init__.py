"""What trionode is compared with: all peers have the same few methods, so that all are measured by the same loop.

A peer serves, and dials its own servers; a session is one connection. Adding a peer takes one module here with a class
`ThePeer`, a line in `PEERS`, and its name in the scenarios that it is to take part in. What a peer's module imports may
be absent, so modules here are imported by name, and only in the process that measures them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from benchmarks.suite.credentials import Credentials

T = TypeVar("T")


class Send(Protocol):
    """Sends one message."""

    async def __call__(self, message: bytes, /) -> None:
        """Send it."""


class Session(ABC):
    """One connection, on the dialer's side."""

    @abstractmethod
    async def settle(self) -> None:
        """Return once both sides have verified each other: by the least that shows it, such as one byte echoed."""

    @abstractmethod
    async def call(self, request: bytes) -> bytes:
        """Send a request, get it back."""

    @abstractmethod
    def pouring(self) -> AbstractAsyncContextManager[Send]:
        """One-way messages for the length of a block; left when the far end has counted them."""

    async def pour(self, message: bytes, count: int) -> None:
        """Send so many messages one way, and wait until the far end has counted them."""
        async with self.pouring() as send:
            for _ in range(count):
                await send(message)


class Client(ABC):
    """A dialer."""

    @abstractmethod
    def dial(self, number: int = 0) -> AbstractAsyncContextManager[Session]:
        """A new connection for the length of a block, closed at its end.

        Args:
            number: which of those that are open at once.
        """

    async def first_call(self, request: bytes) -> bytes:
        """Connect, call, close; by the call alone where it connects by itself."""
        async with self.dial() as session:
            return await session.call(request)


class Peer(ABC):
    """A way to talk over mutual TLS.

    Attributes:
        multiplexes: whether one connection carries several calls at once. Where not, one is opened for each.
    """

    multiplexes: bool = False

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    @abstractmethod
    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the event loop of this peer."""

    @abstractmethod
    def serve(self, width: int = 1) -> AbstractAsyncContextManager[Sequence[int]]:
        """Serve on loopback for the length of a block; gives the ports.

        Args:
            width: of how many nodes, where the peer has such; others serve on one port.
        """

    @abstractmethod
    def client(self, ports: Sequence[int], width: int = 1) -> AbstractAsyncContextManager[Client]:
        """A dialer of these ports, for the length of a block.

        Args:
            ports: as `serve` gave them.
            width: how many nodes, where the peer has such. There are `len(ports) * width` connections to be had.
        """

    @abstractmethod
    async def together(self, *tasks: Callable[[], Awaitable[object]]) -> None:
        """Run async functions at once, until all are done."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Sleep in this event loop."""


def load(name: str, credentials: Credentials) -> Peer:
    """The peer in a module of this package."""
    made = importlib.import_module(f"benchmarks.suite.peers.{name}").ThePeer(credentials)
    assert isinstance(made, Peer)
    return made
