"""Connections that are ended in every way under load, and a node that is restarted: does each call say if it ran?"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    AcceptorOptions,
    HandshakeError,
    LiveConnections,
    NetworkOptions,
    NodeOptions,
    NoRouteError,
    RemoteError,
    Renew,
    Route,
    open_node,
)
from trionode.pki import CertificateAuthority

from .nodes import LOOPBACK, accepting, manager_of
from .program import Program, Progress, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from trionode import CertAuthManager, Node, ServiceChannel

EXPLANATION: Final = """\
Opens two nodes in this process, over real sockets, with mutual TLS. Callers of the one call a service of the other, by
name and over a connection that they keep, while connections are drained, rotated away (Renew.CLOSE), and the node that
serves is drained or left and a successor takes its port. Each request has a number, and the service notes those that
ran. What a call ends with has to be true: an answer ran once; "not run" did not run; and no graceful end may leave a
call in doubt ("may have run"), unless it is one of the ends that do not wait (aclose), which --abrupt adds.

What is reported:
  calls      made, and per second
  answered   of these
  not run    said so; by name that is only while no node listens
  in doubt   said that they may have run
  ends       brought about, by kind
"""

ALPHA, BETA = "alpha@localhost", "beta@localhost"
CALLERS: Final = 16
GRACEFUL: Final = ("drain", "rotate", "restart by drain", "restart by leaving")
PATIENCE: Final = 60.0


@dataclass(kw_only=True)
class Drains(Result):
    """What came out; the fields are explained by `--help`."""

    seconds: float = 0.0
    calls: int = 0
    answered: int = 0
    not_run: int = 0
    in_doubt: int = 0
    ends: dict[str, int] = field(default_factory=dict)

    def report(self) -> str:
        """The figures, for people."""
        ends = ", ".join(f"{times} {kind}" for kind, times in self.ends.items())
        return (
            f"{self.calls} calls in {self.seconds:.1f} s: {self.verdict('each said truly whether it ran')}\n"
            f"  answered {self.answered}, not run {self.not_run}, in doubt {self.in_doubt}\n"
            f"  ends     {ends}"
        )


class Load:
    """Callers, and what they and the service have noted."""

    def __init__(self, result: Drains, *, abrupt: bool) -> None:
        self.result = result
        self.over = False
        self._abrupt = abrupt
        self._ran: Counter[int] = Counter()
        self._numbers = count()

    async def serve(self, channel: ServiceChannel) -> None:
        """Note that a request runs, take a moment, answer."""
        request = await channel.receive()
        self._ran[int(request)] += 1
        await trio.sleep(random.random() * 0.004)  # noqa: S311 -- spreads load, protects nothing
        await channel.send(request)

    async def call(self, alpha: Node, *, keeps: bool) -> None:
        """Call until it is over, by name or over a connection that is kept."""
        connection = None
        while not self.over:
            number = next(self._numbers)
            request = b"%d" % number
            try:
                if not keeps:
                    reply = await alpha.call(BETA, "serve", request)
                else:
                    if connection is None or not connection.live:
                        connection = await alpha.connect(BETA)
                    reply = await connection.call("serve", request)
            except (RemoteError, HandshakeError, NoRouteError) as exc:
                self._failed(number, exc)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self.result.in_doubt += 1
                if not self._abrupt:
                    self._problem(number, f"left in doubt: {exc}")
            else:
                self.result.answered += 1
                if reply != request or self._ran[number] != 1:
                    self._problem(number, f"was answered {reply!r}, and ran {self._ran[number]} times")
            self.result.calls += 1
            await trio.sleep(0.001)

    def _failed(self, number: int, error: Exception) -> None:
        self.result.not_run += 1
        if number in self._ran:
            self._problem(number, f"ran, and said that it did not: {error}")
        elif isinstance(error, RemoteError) and not error.not_run:
            self._problem(number, f"failed: {error}")

    def _problem(self, number: int, words: str) -> None:
        self.result.problems.append(f"call {number} {words}")


class Server:
    """The node that serves, and its successors."""

    def __init__(self, certs: CertAuthManager, load: Load, nursery: trio.Nursery) -> None:
        self._certs = certs
        self._load = load
        self._nursery = nursery
        self._port = 0
        self._drains = False
        self._leave = trio.Event()
        self._listens_no_more = trio.Event()
        self.node: Node

    @property
    def route(self) -> Route:
        """The way to whichever serves."""
        return Route(host=LOOPBACK, port=self._port)

    async def open(self) -> None:
        """Have a node serve."""
        self.node, self._leave, self._listens_no_more = await self._nursery.start(self._run)

    def leave(self) -> None:
        """Have it leave, for good."""
        self._leave.set()

    async def replace(self, *, drains: bool) -> None:
        """Have a successor serve, while the old one ends what it has."""
        self._drains = drains
        self._leave.set()
        await self._listens_no_more.wait()
        await self.open()

    async def _run(self, *, task_status: trio.TaskStatus[tuple[Node, trio.Event, trio.Event]]) -> None:
        network = NetworkOptions(acceptors=[AcceptorOptions(host=LOOPBACK, port=self._port)])
        options = NodeOptions(
            cert_manager=self._certs,
            network=network,
            services={"serve": self._load.serve},
            shutdown_grace=10,
            live_connections=LiveConnections(on_rotation=Renew.CLOSE, within=0.02, grace=10),
        )
        leave, listens_no_more = trio.Event(), trio.Event()
        async with open_node(BETA, options) as node:
            self._port = node.acceptors[0].address[1]
            task_status.started((node, leave, listens_no_more))
            await leave.wait()
            self._nursery.start_soon(self._tell, node, listens_no_more)
            if self._drains:
                await node.drain()

    async def _tell(self, node: Node, listens_no_more: trio.Event) -> None:
        while node.statistics().open:  # noqa: ASYNC110 -- there is no event of it
            await trio.sleep(0.001)
        await trio.sleep(0.005)
        listens_no_more.set()


async def measure(seconds: float, abrupt: bool, progress: Progress) -> Drains:  # noqa: FBT001
    """Open both, and end what there is."""
    ca, result = CertificateAuthority.create(), Drains()
    load, ends = Load(result, abrupt=abrupt), Counter[str]()
    kinds = [*GRACEFUL, *(["close at once"] if abrupt else [])]
    options = NodeOptions(cert_manager=manager_of(ca, ALPHA), network=accepting())
    began = trio.current_time()
    with trio.move_on_after(seconds + PATIENCE) as deadline:
        async with open_node(ALPHA, options) as alpha, trio.open_nursery() as nursery:
            certs = manager_of(ca, BETA)
            server = Server(certs, load, nursery)
            await server.open()
            alpha.add_route(BETA, server.route)
            for number in range(CALLERS):
                nursery.start_soon(lambda keeps: load.call(alpha, keeps=keeps), number % 2 == 0)
            for number in count():
                await trio.sleep(0.05 + random.random() * 0.1)  # noqa: S311
                if trio.current_time() > began + seconds:
                    break
                kind = kinds[number % len(kinds)]
                ends[kind] += 1
                await bring_about(kind, server, certs)
                if number % 20 == 0:
                    progress.say(f"{number} ends, {result.calls} calls, {len(result.problems)} problems")
            load.over = True
            server.leave()
    if deadline.cancelled_caught:
        result.problems.append(f"not over {PATIENCE:g} s after its time")
    result.seconds, result.ends = round(trio.current_time() - began, 3), dict(ends)
    return result


async def bring_about(kind: str, server: Server, certs: CertAuthManager) -> None:
    """One end."""
    if kind == "rotate":
        certs.update(certs.key_pair)
    elif "restart" in kind:
        await server.replace(drains="drain" in kind)
    else:
        for connection in list(server.node.connections.values()):
            with suppress(trio.ClosedResourceError):
                await (connection.drain() if kind == "drain" else connection.aclose())


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long, and which ends."""
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; by default 60")
    parser.add_argument("--abrupt", action="store_true", help="close connections at once, too")


def complete(options: argparse.Namespace) -> str | None:
    """Some time."""
    if options.seconds is None:
        options.seconds = 1.5 if options.quick else 60.0
    return None if options.seconds > 0 else "--seconds is more than 0"


def run(options: argparse.Namespace, progress: Progress) -> Iterator[Result]:
    """End connections for that long."""
    yield trio.run(measure, options.seconds, options.abrupt, progress)


PROGRAM: Final = Program(
    name="drains",
    asks="Connections that are ended, and a node that is restarted, under load: does each call say if it ran?",
    explanation=EXPLANATION,
    examples=[("", "a minute"), ("--abrupt --seconds 600 --json", "")],
    quick="a second and a half",
    add_options=add_options,
    complete=complete,
    run=run,
)
