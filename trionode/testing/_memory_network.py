"""A network in memory: hosts, listeners and connections without sockets, on Trio's clock, with faults on demand.

Theory. A host is an address, and names that resolve to it. Between any two hosts there is a way in each direction, with
a latency, which may be blocked (`Way`). Connections are made here and live in `_memory_stream`. All delays are by
Trio's clock. Every random number comes from the seed, separately for each connection and direction, so that a
connection does not depend on what others do meanwhile. There are no tasks: whatever is due happens in the task that
looks.

All above the transport is real: TLS, certificates, hello, heartbeats. With a `trio.testing.MockClock` that jumps, and a
certificate clock that follows it (`trio_clock`), hours take milliseconds.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
from collections import deque
from typing import TYPE_CHECKING, final

import trio

from trionode._identity.names import canonical_host, host_address, unbracketed
from trionode._util.fields import DURATION, check_argument

from ._faults import Script
from ._memory_host import LOOPBACK, MemoryHost, Ports, is_loopback
from ._memory_stream import (
    Direction,
    MemoryStream,
    Way,
    Wire,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trionode._transport.interfaces import Listener
    from trionode._util.text import Address

__all__ = ["MemoryConnection", "MemoryNetwork"]


@final
class MemoryConnection:
    """One connection of a `MemoryNetwork`, for `MemoryNetwork.script`.

    Attributes:
        dialer: the dialer's (host, port).
        acceptor: the acceptor's (host, port).
        number: how many connections were dialled from the one host to the other before.
    """

    def __init__(self, dialer: Address, acceptor: Address, number: int) -> None:
        self.dialer: Address = dialer
        self.acceptor: Address = acceptor
        self.number: int = number
        self._wire: Wire | None = None

    def __repr__(self) -> str:
        return f"<MemoryConnection {self.number} from {self.dialer} to {self.acceptor}>"

    @property
    def sent_there(self) -> int:
        """Bytes that the dialer has sent, delivered or not."""
        return 0 if self._wire is None else self._wire.there.sent

    @property
    def sent_back(self) -> int:
        """Bytes that the acceptor has sent, delivered or not."""
        return 0 if self._wire is None else self._wire.back.sent

    def _made(self, wire: Wire) -> None:
        self._wire = wire


@final
class MemoryNetwork:
    """Hosts that reach each other without sockets, and the faults of a network on demand.

    Give a node `NetworkOptions(transport=network.host("10.0.0.1", "a.example"))` to let it run on that host. The
    network itself is the transport of one more machine, `localhost`: enough for nodes that share a machine.

    It may be made outside of a Trio run, and is used in one. Times are seconds on Trio's clock.

    Attributes:
        script: called for each connection that is made, unless a script was queued for it by `script_next`; returns the
            connection's faults. None, or a return value of None: no faults.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        buffer: int = 64 * 1024,
        reset_discards: bool = False,
    ) -> None:
        """Make a network without hosts.

        Args:
            seed: of all random numbers: the same seed gives the same times.
            latency: one way, between any two hosts and within one, seconds.
            jitter: at most so much more, seconds.
            buffer: what one direction of a connection holds of bytes that were sent and not received.
            reset_discards: whether a reset takes with it what had arrived and was not received yet, as on some systems;
                on Linux it can still be received.

        Raises:
            ValueError: a number makes no sense.
        """
        _check_seconds("latency", latency)
        _check_seconds("jitter", jitter)
        if buffer < 1:
            msg = f"buffer must be a positive number of bytes, not {buffer!r}"
            raise ValueError(msg)
        self.script: Callable[[MemoryConnection], Script | None] | None = None
        self._seed = seed
        self._latency = latency
        self._jitter = jitter
        self._buffer = buffer
        self._reset_discards = reset_discards
        self._hosts: dict[str, MemoryHost] = {}
        self._ways: dict[tuple[MemoryHost, MemoryHost], Way] = {}
        self._queued: dict[tuple[MemoryHost, MemoryHost], deque[Script]] = {}
        self._dialled: dict[tuple[MemoryHost, MemoryHost], int] = {}
        self._live: dict[Wire, tuple[MemoryHost, MemoryHost]] = {}
        self._healed = trio.lowlevel.ParkingLot()
        self._ports: dict[MemoryHost, Ports] = {}
        self._alone = self._new_host(LOOPBACK)
        self._alone.names = frozenset((LOOPBACK, "localhost"))

    def __repr__(self) -> str:
        hosts = len(set(self._hosts.values()))
        return f"<MemoryNetwork seed {self._seed}, {hosts} hosts, {len(self._live)} connections>"

    # Hosts

    def host(self, *names: str) -> MemoryHost:
        """The host of an address or a name, made if there is none. `localhost` is the network's own.

        Args:
            names: its address and any names that are to resolve to it, in any order. Without an address it gets the
                next free one of 10.0.0.0/16.

        Raises:
            ValueError: none was given, one is no host, or they are those of different hosts.
        """
        keys = [unbracketed(canonical_host(name)) for name in names]
        if not keys:
            msg = "a host needs an address or a name"
            raise ValueError(msg)
        if any(is_loopback(key) for key in keys):
            if len(keys) > 1:
                msg = f"{', '.join(names)}: localhost is every host's own name for itself, and no name among others"
                raise ValueError(msg)
            return self._alone
        addresses = [key for key in keys if host_address(key) is not None]
        known = {self._hosts[key] for key in keys if key in self._hosts}
        if len({*addresses, *(host.address for host in known)}) > 1:
            msg = f"{', '.join(names)} are not one host"
            raise ValueError(msg)
        host = known.pop() if known else self._new_host(*addresses[:1])
        host.names = host.names.union(keys)
        self._hosts.update(dict.fromkeys([*keys, host.address], host))
        return host

    def _new_host(self, *chosen: str) -> MemoryHost:
        numbers = (f"10.0.{number // 256}.{number % 256}" for number in range(1, 65536))
        address = next(each for each in itertools.chain(chosen, numbers) if each not in self._hosts)
        ports = Ports()
        host = MemoryHost(address, ports, self._connect)
        self._ports[host] = ports
        return host

    async def listen(
        self, host: str | None, port: int, *, port_range: int = 1, only_local: bool = False
    ) -> Sequence[Listener]:
        """See `Transport.listen`; on `localhost`."""
        return await self._alone.listen(host, port, port_range=port_range, only_local=only_local)

    async def connect(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        """See `Transport.connect`; from `localhost`."""
        return await self._alone.connect(host, port)

    # What there is

    @property
    def open_streams(self) -> Sequence[trio.abc.HalfCloseableStream]:
        """Ends of connections that are not closed, including those that wait to be accepted."""
        return [end for wire in self._live for end in (wire.dialer, wire.acceptor) if not end.is_closed]

    @property
    def listening(self) -> Sequence[Address]:
        """Every (host, port) where something listens."""
        return [address for ports in self._ports.values() for address in ports.listening]

    # Faults

    def latency(self, seconds: float, *, jitter: float = 0.0, between: tuple[str, str] | None = None) -> None:
        """Set how long bytes take that are sent from now on.

        Args:
            seconds: one way.
            jitter: at most so much more, drawn for each segment; nothing overtakes.
            between: two hosts, by name or address, for both ways between them; None for all.

        Raises:
            ValueError: a number makes no sense.
            LookupError: there is no such host.
        """
        _check_seconds("latency", seconds)
        _check_seconds("jitter", jitter)
        if between is None:
            self._latency, self._jitter = seconds, jitter
            ways = list(self._ways.values())
        else:
            one, other = map(self._known, between)
            ways = [self._way(one, other), self._way(other, one)]
        for way in ways:
            way.latency, way.jitter = seconds, jitter

    def partition(self, one: Iterable[str], other: Iterable[str], *, one_way: bool = False) -> None:
        """Lose everything that is sent between two groups of hosts, until `heal`; no end gets an error.

        New connections hang, existing ones go silent. Several partitions add up.

        Args:
            one: hosts, by name or address.
            other: likewise.
            one_way: lose only what `one` sends to `other`.

        Raises:
            LookupError: there is no such host.
        """
        ones, others = [self._known(name) for name in one], [self._known(name) for name in other]
        pairs = [(source, target) for source in ones for target in others]
        if not one_way:
            pairs += [(target, source) for source, target in pairs]
        self._catch_up()
        for source, target in pairs:
            self._way(source, target).blocked = True
        for wire in list(self._live):
            wire.disturb()

    def heal(self) -> None:
        """End all partitions. What was lost is sent again and arrives, except resets."""
        self._catch_up()
        blocked = {pair for pair, way in self._ways.items() if way.blocked}
        for pair in blocked:
            self._ways[pair].blocked = False
        for wire, (source, target) in list(self._live.items()):
            for direction, pair in ((wire.there, (source, target)), (wire.back, (target, source))):
                if pair in blocked:
                    direction.resend()
            wire.stir()  # what arrives when is another matter now
        self._catch_up()
        self._healed.unpark_all()

    def reset(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Reset every connection between two groups of hosts, as a firewall does that has lost its state.

        `network.reset(["client.test"], ["server.test"])`: both nodes see `EndReason.LOST`, and connectors dial again.

        Args:
            one: hosts, by name or address.
            other: likewise.

        Raises:
            LookupError: there is no such host.
        """
        ones, others = {self._known(name) for name in one}, {self._known(name) for name in other}
        for wire, (source, target) in list(self._live.items()):
            if (source in ones and target in others) or (source in others and target in ones):
                wire.reset()

    def script_next(self, dialer: str, acceptor: str, *scripts: Script) -> None:
        """Set the faults of the next connections from one host to another, one script for each.

        Args:
            dialer: a host, by name or address.
            acceptor: likewise.
            scripts: in order; they are queued behind earlier ones, and take precedence over `script`.

        Raises:
            LookupError: there is no such host.
        """
        pair = (self._known(dialer), self._known(acceptor))
        self._queued.setdefault(pair, deque()).extend(scripts)

    # Inside

    def _known(self, name: str) -> MemoryHost:
        key = unbracketed(canonical_host(name))
        host = self._alone if is_loopback(key) else self._hosts.get(key)
        if host is None:
            msg = f"there is no host {name!r} on this network; make it with network.host({name!r})"
            raise LookupError(msg)
        return host

    def _way(self, source: MemoryHost, target: MemoryHost) -> Way:
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = Way(self._latency, self._jitter)
        return way

    def _catch_up(self) -> None:
        for wire in list(self._live):
            wire.catch_up()

    def _rng(self, connection: MemoryConnection, what: str) -> random.Random:
        ends = f"{connection.dialer[0]} {connection.acceptor[0]} {connection.number}"
        return random.Random(f"{self._seed} {ends} {what}")  # noqa: S311 -- seeded on purpose

    async def _connect(self, source: MemoryHost, host: str, port: int) -> MemoryStream:
        if is_loopback(host):
            target, address = source, LOOPBACK
        else:
            target = self._resolve(host)
            address = target.address
        number = self._dialled.get((source, target), 0)
        self._dialled[source, target] = number + 1
        origin = LOOPBACK if address == LOOPBACK else source.address
        connection = MemoryConnection((origin, self._ports[source].draw()), (address, port), number)
        rng = self._rng(connection, "connect")
        await self._travel(source, target, rng)
        listener = self._ports[target].listener(address, port)
        await self._travel(target, source, rng)
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        # In one step, so that a cancelled dial leaves nothing behind.
        wire = self._wire(connection, source, target)
        listener.enter(wire.acceptor)
        return wire.dialer

    def _resolve(self, host: str) -> MemoryHost:
        target = self._hosts.get(unbracketed(host))
        if target is not None:
            return target
        if host_address(host) is not None:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def _travel(self, source: MemoryHost, target: MemoryHost, rng: random.Random) -> None:
        """Wait as long as a packet takes that is sent again until it arrives."""
        way = self._way(source, target)
        await trio.sleep(way.draw(rng))
        while way.blocked:
            await self._healed.park()
            await trio.sleep(way.draw(rng))

    def _wire(self, connection: MemoryConnection, source: MemoryHost, target: MemoryHost) -> Wire:
        queued = self._queued.get((source, target))
        script = queued.popleft() if queued else self.script and self.script(connection)
        script = script or Script()
        there, back = self._way(source, target), self._way(target, source)
        wire = Wire(
            Direction(there, script.there, self._rng(connection, "there"), self._buffer),
            Direction(back, script.back, self._rng(connection, "back"), self._buffer),
            (connection.dialer, connection.acceptor),
            reset_discards=self._reset_discards,
            over=lambda: self._live.pop(wire),
        )
        self._live[wire] = (source, target)
        connection._made(wire)  # noqa: SLF001 -- the script may have kept it, to read its counters
        return wire


def _check_seconds(name: str, value: float) -> None:
    check_argument(name, value, DURATION)
