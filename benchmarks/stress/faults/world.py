"""Certificates made once, exchanges with one fault each, and the bytes at which a fault is worth trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing

from benchmarks.stress.nodes import manager_of
from benchmarks.stress.relay import Relay
from trionode.pki import CertificateAuthority, KeyType
from trionode.testing import Faults, Script

from .exchange import ALPHA, BETA, Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode import Listener
    from trionode.testing import MemoryNetwork

    from .exchange import Outcome

FAULTS: Final = ("reset_after", "reset_discards", "eof_after", "stall_after", "corrupt")
DIRECTIONS: Final = ("there", "back")


class Tapped(Relay):
    """A stream that keeps copies of what is sent and received."""

    def __init__(self, transport: trio.abc.HalfCloseableStream, there: bytearray, back: bytearray) -> None:
        super().__init__(transport)
        self._there = there
        self._back = back

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and keep."""
        self._there += data
        await super().send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, and keep."""
        data = await super().receive_some(max_bytes)
        self._back += data
        return data


class Tap:
    """A transport that keeps a copy of what its dialer sends and receives on its first connection."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.copies = {"there": bytearray(), "back": bytearray()}
        self._network = network

    async def listen(self, host: str | None, port: int, *, port_range: int, only_local: bool) -> Sequence[Listener]:
        """As the network does."""
        return await self._network.listen(host, port, port_range=port_range, only_local=only_local)

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """As the network does."""
        stream = await self._network.connect(host, port)
        return stream if self.copies["there"] else Tapped(stream, self.copies["there"], self.copies["back"])


def records(data: bytes | bytearray) -> list[int]:
    """Where the TLS records in these bytes begin, and where the last ends (RFC 8446 section 5.1)."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + 5 + int.from_bytes(data[found[-1] + 3 : found[-1] + 5], "big"))
    return found


class World:
    """Certificates, made once; and exchanges, one Trio run each.

    Attributes:
        managers: of both nodes, by name.
        reference: what came of an exchange without a fault.
    """

    def __init__(self) -> None:
        ca = CertificateAuthority.create()
        # Ed25519 signatures have one length, so every exchange has bytes of the same kind at the same offsets.
        self.managers = {name: manager_of(ca, name, key_type=KeyType.ED25519) for name in (ALPHA, BETA)}
        tapped = Exchange(self.managers, None)
        tapped.transport = tap = Tap(tapped.network)
        self.reference = self._run(tapped)
        self._records = {direction: records(copy) for direction, copy in tap.copies.items()}
        if self.reference.outcome != "success" or self.reference.problems:
            msg = f"an exchange without a fault went wrong: {self.reference}"
            raise AssertionError(msg)

    @staticmethod
    def _run(exchange: Exchange) -> Outcome:
        try:
            trio.run(exchange.run, clock=trio.testing.MockClock(autojump_threshold=0))
        except Exception as exc:  # noqa: BLE001 -- whatever comes out, it is a problem
            exchange.problem(f"it came out with {exc!r}")
        return exchange.result

    def with_fault(self, fault: str, direction: str, offset: int) -> Outcome:
        """An exchange with one fault, at this byte of this direction."""
        discards = fault == "reset_discards"
        given: dict[str, Any] = {fault: offset}
        if discards:
            given = {"reset_after": offset}
        elif fault == "corrupt":
            given = {"corrupt": [offset]}
        script = Script(**{direction: Faults(**given)})
        result = self._run(Exchange(self.managers, script, reset_discards=discards))
        # For a success, all of this had to arrive; a cut before its end must show.
        if result.outcome == "success" and offset < result.done[direction] and fault != "corrupt":
            result.problems.append(f"success, although byte {offset} of {result.done[direction]} never arrived")
        if result.outcome != "success" and offset > result.sent.get(direction, offset):
            result.problems.append(f"{result.outcome}, although nothing went wrong that far")
        return result

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of an undisturbed exchange, by direction."""
        return self.reference.sent

    def edges(self, direction: str) -> list[int]:
        """The bytes where something changes: around the ends of every TLS record, its header and its content."""
        size = self.sizes[direction]
        found = {start + near for start in self._records[direction] for near in (-1, 0, 1, 4, 5)}
        return sorted(offset for offset in found if 0 <= offset <= size)
