"""A node in a process of its own that does as it is told: JSON lines on standard input, answers on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing

from benchmarks.child import Lines
from benchmarks.stress.interrupt.program import ENDS
from benchmarks.stress.interrupt.worker import leaves
from benchmarks.stress.log import LogWatch, watching_log
from benchmarks.stress.nodes import LOOPBACK, accepting
from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    ConnectionDown,
    ConnectionUp,
    HandedOver,
    HandOverFailed,
    HandshakeError,
    HandshakeRefused,
    LiveConnections,
    NodeOptions,
    NoRouteError,
    RemoteError,
    Renew,
    Route,
    StrandedPeers,
    open_node,
)
from trionode.pki import CertificateAuthority

from .ledger import End, Ledger, Role
from .talk import Plan, converse, end_of

if TYPE_CHECKING:
    from trionode import (
        EventStream,
        KeyPair,
        Node,
        NodeEvent,
        ServiceChannel,
    )

    from .ledger import Entry

#: Silence after which a peer is pinged, and how long it may take to answer. Short, for faults are many. Seconds.
HEARTBEAT: Final = 2.0
TIMEOUT: Final = 5.0
#: The exit status of a process that was interrupted and ended by that, and by nothing else.
INTERRUPTED: Final = 130


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a process is started with.

    Attributes:
        name: of its node.
        ledger: the file that it notes everything in; not there yet.
        directory: where the CAs are, each in a directory of its own.
        ports: where each peer is reached, by name.
        trusted: which CAs, by directory.
        issuer: which CA its certificate is from.
        on_rotation: what becomes of its live connections; a value of `Renew`.
    """

    name: str
    ledger: str
    directory: str
    ports: dict[str, int]
    trusted: list[str]
    issuer: str
    on_rotation: str


class NodeProcess:
    """The node, and everything that goes on in it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._authorities: dict[str, CertificateAuthority] = {}
        self._ledger = Ledger(Path(setup.ledger))
        self._node: Node | None = None
        self._reopen = trio.Event()
        self._grace = 0.0
        self._on_rotation = Renew(setup.on_rotation)
        self._tallies: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("handshakes", "ends", "hand_overs", "connects")
        }
        self._problems: list[str] = []
        self._log = LogWatch()
        self._busy = 0
        pool = self._pool(setup.trusted)
        self._issuer = setup.issuer
        self._manager = CertAuthManager(
            self._issue(), client_cas=pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT, root_cas=pool
        )
        self._rest: dict[str, int] = {}

    def _authority(self, name: str) -> CertificateAuthority:
        if name not in self._authorities:
            self._authorities[name] = CertificateAuthority.load(Path(self._setup.directory) / name)
        return self._authorities[name]

    def _pool(self, names: list[str]) -> CAPool:
        return CAPool(certificate for name in names for certificate in self._authority(name).pool)

    def _issue(self) -> KeyPair:
        return self._authority(self._issuer).issue(self._setup.name)

    # The node

    async def run(self) -> None:
        """Run until standard input ends."""
        with watching_log() as self._log:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, nursery)
                while True:
                    await self._be_a_node()

    async def _be_a_node(self) -> None:
        """Open the node, until it is to be opened anew."""
        setup = self._setup
        network = accepting(
            routes={name: Route(host=LOOPBACK, port=port) for name, port in setup.ports.items()},
            heartbeat_interval=HEARTBEAT,
            heartbeat_tolerance=HEARTBEAT,
            handshake_timeout=TIMEOUT,
            connect_timeout=TIMEOUT,
        )
        options = NodeOptions(
            cert_manager=self._manager,
            network=network,
            services={"talk": self._serve_talk, "call": self._serve_call},
            live_connections=LiveConnections(on_rotation=self._on_rotation, within=0.3, grace=2),
        )
        self._reopen = trio.Event()
        async with (
            open_node(setup.name, options) as node,
            node.events() as events,
            trio.open_nursery() as watching,
        ):
            watching.start_soon(self._watch, events)
            self._node = node
            if not self._rest:
                await trio.testing.wait_all_tasks_blocked()
                self._rest = self._inventory()
            tell({"open": node.acceptors[0].address[1], "pid": os.getpid()})
            await self._reopen.wait()
            self._node = None
            with trio.move_on_after(self._grace):
                await node.drain()
            watching.cancel_scope.cancel()

    @staticmethod
    def _inventory() -> dict[str, int]:
        return {
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
        }

    async def _watch(self, events: EventStream) -> None:
        async for event in events:
            self._count(event)
            if events.missed:
                self._problems.append(f"{events.missed} events were missed")
                events.missed = 0

    def _count(self, event: NodeEvent) -> None:
        if isinstance(event, ConnectionUp):
            self._tallies["handshakes"][f"{event.side} succeeded"] += 1
        elif isinstance(event, HandshakeRefused):
            error = event.error
            outcome = f"{event.side} {type(error).__name__} {error.stage} {error.reason}"
            self._tallies["handshakes"][outcome] += 1
        elif isinstance(event, ConnectionDown):
            self._tallies["ends"][event.reason] += 1
        elif isinstance(event, HandedOver):
            self._tallies["hand_overs"]["done"] += 1
        elif isinstance(event, HandOverFailed):
            self._tallies["hand_overs"][f"failed before its commit: {type(event.error).__name__}"] += 1

    # Commands

    async def _obey(self, nursery: trio.Nursery) -> None:
        lines = Lines(trio.lowlevel.FdStream(os.dup(0)))
        while (line := await lines.read()) is not None:
            nursery.start_soon(self._do, json.loads(line))
        nursery.cancel_scope.cancel()

    async def _do(self, command: dict[str, Any]) -> None:
        answer: object = None
        match command["do"]:
            case "talk":
                await self._exchange(command["number"], Role.TALKER, command)
            case "call":
                await self._exchange(command["number"], Role.CALLER, command)
            case "connect":
                await self._connect(command["peer"])
            case "hand over":
                await self._hand_over(command["peer"])
            case "drain":
                await self._drain(command["peer"], command["within"])
            case "rotate":
                self._issuer = command["issuer"]
                self._manager.update(self._issue())
            case "trust":
                pool = self._pool(command["trusted"])
                self._manager.rotate_trust(client_cas=pool, root_cas=pool, stranded=StrandedPeers(command["stranded"]))
            case "reopen":
                self._grace, self._on_rotation = command["grace"], Renew(command["on_rotation"])
                self._reopen.set()
            case "report":
                answer = self._report()
            case "fall silent":
                await self._fall_silent(command["within"])
            case "rest":
                answer = await self._come_to_rest(command["within"])
        tell({"done": command["id"], "answer": answer})

    def _report(self) -> dict[str, Any]:
        problems, self._problems = self._problems + self._log.errors, []
        self._log.errors = []
        tallies, self._tallies = self._tallies, {kind: Counter() for kind in self._tallies}
        received, self._ledger.received = self._ledger.received, 0
        return {"tallies": tallies, "problems": problems, "received": received}

    async def _fall_silent(self, within: float) -> None:
        """Wait until no exchange goes on."""
        with trio.move_on_after(within):
            while self._busy:  # noqa: ASYNC110 -- looked at once, in the end
                await trio.sleep(0.02)

    async def _come_to_rest(self, within: float) -> list[str]:
        """Close every connection, and see what is left."""
        node = self._node
        if node is None:
            return ["the node is closed"]
        with trio.move_on_after(within):
            for connection in [*node.connections.values(), *node.unverified_connections]:
                await connection.aclose()
            while self._left(node):  # noqa: ASYNC110 -- peers close theirs at the same time; no event tells it
                await trio.sleep(0.02)
        return self._left(node)

    def _left(self, node: Node) -> list[str]:
        """What there is besides an idle node."""
        found = [f"{self._busy} exchanges go on"] if self._busy else []
        statistics = node.statistics()
        if statistics.connections or statistics.channels or statistics.services:
            found.append(str(statistics))
        now = self._inventory()
        # One task more than at first: the one that asks.
        found += [
            f"{now[kind]} {kind} where there were {before} at first"
            for kind, before in self._rest.items()
            if now[kind] > before + (kind == "tasks")
        ]
        return found

    # Doing

    async def _connect(self, peer: str) -> None:
        node = self._node
        outcome = "closed"
        if node is not None:
            try:
                await node.connect(peer)
                outcome = "connected"
            except (HandshakeError, NoRouteError, trio.ClosedResourceError) as exc:
                outcome = type(exc).__name__
        self._tallies["connects"][outcome] += 1

    async def _hand_over(self, peer: str) -> None:
        node = self._node
        connections = {} if node is None else {str(name): each for name, each in node.connections.items()}
        if peer in connections:
            try:
                await connections[peer].reauthenticate()
            except (HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._tallies["hand_overs"][f"by hand: {type(exc).__name__}"] += 1

    async def _drain(self, peer: str, within: float) -> None:
        """Have a connection end once what is under way on it has; cut short, it goes on draining."""
        node = self._node
        connections = {} if node is None else {str(name): each for name, each in node.connections.items()}
        if peer in connections:
            with trio.move_on_after(within), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await connections[peer].drain()

    async def _exchange(self, number: int, role: Role, command: dict[str, Any]) -> None:
        entry = self._ledger.begin(number, role)
        node = self._node
        if node is None:
            entry.end(End.NOT_OPENED)
            return
        self._busy += 1
        try:
            if role is Role.TALKER:
                await self._talk(node, entry, number, command)
            else:
                await self._call(node, entry, number, command["peer"])
        except Exception as exc:  # noqa: BLE001 -- whatever it is not to be, is told
            self._end(entry, exc, f"exchange {number}")
        finally:
            self._busy -= 1

    def _end(self, entry: Entry, error: Exception, where: str) -> None:
        end = end_of(error)
        if end is None:
            self._problems.append(f"{where}: {error!r}")
        entry.end(End.TRUNCATED if end is None else end)

    async def _talk(self, node: Node, entry: Entry, number: int, command: dict[str, Any]) -> None:
        async with node.open_channel(command["peer"], "talk") as channel:
            theirs = {"number": number, "messages": command["back"], "pause": command["pause"]}
            await channel.send(json.dumps(theirs).encode())
            plan = Plan(number=number, opens=True, messages=command["there"], pause=command["pause"])
            await converse(channel, plan, entry)
            entry.end(End.COMPLETE)

    async def _call(self, node: Node, entry: Entry, number: int, peer: str) -> None:
        request = b"%d" % number
        entry.sent(1)
        reply = await node.call(peer, "call", request)
        if reply != request[::-1]:
            self._problems.append(f"call {number} got the reply {reply[:50]!r}")
        entry.received(1)
        entry.end(End.COMPLETE)

    # Serving

    async def _serve_talk(self, channel: ServiceChannel) -> None:
        try:
            plan = json.loads(await channel.receive())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, RemoteError):
            return  # before it has begun
        entry = self._ledger.begin(plan["number"], Role.TALK_SERVICE)
        self._busy += 1
        try:
            await converse(channel, Plan(**plan, opens=False), entry)
            entry.end(End.COMPLETE)
        except Exception as exc:  # noqa: BLE001 -- as above
            self._end(entry, exc, f"the service of talk {plan['number']}")
        finally:
            entry.end(End.CANCELLED)
            self._busy -= 1

    async def _serve_call(self, channel: ServiceChannel) -> None:
        try:
            request = await channel.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, RemoteError):
            return
        entry = self._ledger.begin(int(request), Role.CALL_SERVICE)
        entry.received(1)
        entry.sent(1)
        try:
            await channel.send(request[::-1])
            entry.end(End.COMPLETE)
        except Exception as exc:  # noqa: BLE001 -- as above
            self._end(entry, exc, f"the service of call {int(request)}")
        finally:
            entry.end(End.CANCELLED)


def tell(what: dict[str, Any]) -> None:
    """Say something on standard output: one line, in one write."""
    os.write(1, json.dumps(what).encode() + b"\n")


def main(setup: Setup) -> int:
    """Be the node; the exit status."""
    try:
        trio.run(NodeProcess(setup).run)
    except BaseException as exc:
        # Where it hits a task of the node, what goes on by the node fails with it.
        found = leaves(exc)
        if "KeyboardInterrupt" in found and found <= ENDS:
            return INTERRUPTED  # noqa: ASYNC104 -- the Trio run is over
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Setup(**json.loads(sys.argv[1]))))
