"""Metrics in the Prometheus format, and whether a program is ready and alive; needs the extra `metrics`.

Theory. Nothing is measured here: a node counts anyway (`Node.statistics`), and `NodeCollector` turns that into metric
families at each scrape. A scrape usually comes in on another thread, while a node's numbers change in Trio's; so the
snapshot is taken *in* Trio's thread, in one step between two tasks, and what crosses to the other thread is an
immutable value. There are no locks, and a node does nothing between two scrapes. A Trio run that is stuck, or over,
does not answer: after `PATIENCE` seconds the scrape goes on without it, and `trionode_up` is 0.

Beside the metrics are two pages for what runs the program, Kubernetes for one: `/ready` and `/live`. A node that drains
is not ready; a Trio run that does not answer is neither.

Labels are bounded: enumerations, the names of this program's own nodes and servers, the subjects of its own
certificates. Nothing that a peer sends becomes one.

The library is `prometheus_client`: it asks collectors at scrape time, so nodes need not know of it; it is one package
without dependencies, threads or context of its own; and every monitoring system reads its format, OpenTelemetry's
collector included. OpenTelemetry's own SDK is several packages, and its asynchronous instruments have no histograms:
handshakes would have to report to it one by one.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from http import HTTPStatus
from queue import Empty, SimpleQueue
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, TypeVar, final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import trio

from trionode._connection.end import EndReason
from trionode._connection.hand_over import RenewalCause

from ._errors import ListenError
from ._node.statistics import HandshakeOutcome, NodeStatistics, TimeHistogram
from ._util.fields import check_argument, integer
from ._util.home import close_in_children
from ._util.public_names import show_as as _show_as

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _exc:
    if _exc.name != "prometheus_client":
        raise
    _msg = "trionode.metrics needs prometheus_client; install it with: pip install 'trionode[metrics]'"
    raise ModuleNotFoundError(_msg, name=_exc.name) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from ._credentials.validity import Validity
    from ._node.node import Node
    from ._node.statistics import ManagerUse
    from ._streams.monitor import ServerMonitor, ServerStatistics
    from .health import Health

    _Statistics: TypeAlias = NodeStatistics | ServerStatistics

__all__ = ["NodeCollector", "serve_metrics"]

T = TypeVar("T")

#: How long a scrape waits for the thread of its nodes. Seconds; Prometheus itself waits for 10 by default.
PATIENCE: Final = 2.0


@final
class NodeCollector(Collector):
    """Collects the metrics of nodes, for a registry of `prometheus_client`: `REGISTRY.register(NodeCollector(node))`.

    A registry takes one such collector; give it every node of the process, and the monitors of its servers. It may be
    asked from any thread. When a node has been closed its last numbers stay, and its `trionode_up` is 0; when its Trio
    run has ended that is all there is.
    """

    def __init__(self, *nodes: Node | ServerMonitor) -> None:
        """Make one, in the Trio run of its nodes.

        Args:
            nodes: open nodes, and monitors of servers (`serve_tls` and its kin), each under a name of its own.

        Raises:
            ValueError: two have the same name.
            RuntimeError: this is no Trio thread.
        """
        self._nodes = {str(node.name): node for node in nodes}
        if len(self._nodes) < len(nodes):
            msg = "two nodes have the same name, and their metrics could not be told apart"
            raise ValueError(msg)
        self._token = trio.lowlevel.current_trio_token()

    def describe(self) -> Iterator[Metric]:
        """Every family, without samples: for the registry, which wants to know the names."""
        return iter(_Page())

    def collect(self) -> Iterator[Metric]:
        """Every family; in another thread than the nodes' it blocks until that has answered, 2 seconds at most."""
        page = _Page()
        snapshots = self._snapshots()
        for name in self._nodes:
            page.add(name, snapshots.get(name))
        return iter(page)

    def _snapshots(self) -> dict[str, _Statistics]:
        """Of all nodes at one moment; of none where their thread does not answer."""
        try:
            return _ask(self._token, lambda: {name: node.statistics() for name, node in self._nodes.items()})
        except TimeoutError:
            return {}


def _ask(token: trio.lowlevel.TrioToken, question: Callable[[], T]) -> T:
    """What a function returns in the thread of a Trio run; called from any thread, which is blocked meanwhile.

    Raises:
        TimeoutError: the run does not answer, or is over.
    """
    try:
        if trio.lowlevel.current_trio_token() is token:
            return question()
    except RuntimeError:  # no Trio thread
        pass
    answers: SimpleQueue[T | Exception] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(question())
        except Exception as exc:  # noqa: BLE001 -- raised below; here it would end the Trio run
            answers.put(exc)

    try:
        token.run_sync_soon(answer)
        answered = answers.get(timeout=PATIENCE)
    except (trio.RunFinishedError, Empty) as exc:
        raise TimeoutError from exc
    if isinstance(answered, Exception):
        raise answered
    return answered


class _Pages:
    """The metrics, and `/ready` and `/live`: a WSGI application, which is called in any thread."""

    def __init__(
        self, registry: CollectorRegistry, nodes: Iterable[Node | ServerMonitor], health: Health | None
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._nodes = tuple(nodes)
        self._health = health
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """One request."""
        troubles = {"/ready": self._troubles, "/live": list[str]}.get(environ["PATH_INFO"])
        if troubles is None:
            return self._metrics(environ, start_response)
        try:
            found = _ask(self._token, troubles)
        except TimeoutError:
            found = [f"the event loop has not answered for {PATIENCE:g} s"]
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
        start_response(f"{status.value} {status.phrase}", headers)
        return ["".join(f"{each}\n" for each in found or ["ok"]).encode()]

    def _troubles(self) -> list[str]:
        """Why the program is not ready; in its thread."""
        found = [f"{node.name} is not open, or drains" for node in self._nodes if not _takes_more(node)]
        if self._health is not None and self._health.status() != "serving":
            found.append(f"health: {self._health.status()}")
        return found


def _takes_more(node: Node | ServerMonitor) -> bool:
    return node.statistics().open and not getattr(node, "draining", False)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request; they are not waited for."""

    daemon_threads = True


class _Silent(WSGIRequestHandler):
    """Requests are not logged."""

    def log_message(self, *_: object) -> None:
        """Do nothing."""


def _start_server(port: int, host: str, pages: _Pages) -> tuple[WSGIServer, Thread]:
    """Listen, and serve in a thread. Blocks: it resolves the host.

    Raises:
        OSError: it cannot listen there.
    """
    [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    kind = type("_Server", (_Server,), {"address_family": family})
    server: WSGIServer = kind(address[:2], _Silent)
    close_in_children(server.socket)
    server.set_app(pages)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread


async def serve_metrics(
    nodes: Iterable[Node | ServerMonitor],
    port: int,
    *,
    host: str = "127.0.0.1",
    registry: CollectorRegistry = REGISTRY,
    health: Health | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the metrics of nodes over HTTP until cancelled, for `nursery.start`, which returns the port.

    `/ready` is answered with status 200 while every node is open and does not drain, and `health` says that the program
    serves; otherwise with 503, and why. `/live` is answered with 503 if the event loop has not answered for 2 seconds.
    Every other path has the metrics.

    The server runs in threads of its own: plain HTTP without authentication, so every client that reaches `host` reads
    the metrics. It stops within half a second when this is cancelled.

    Args:
        nodes: of this Trio run; and monitors of servers.
        port: where to listen; 0 for any.
        host: on which address.
        registry: what is served: by default all that the process has registered, memory and CPU time included. The
            nodes are registered there meanwhile.
        health: what the application says; its status as a whole is part of `/ready`.
        task_status: `started()` gets the port.

    Raises:
        ListenError: it cannot listen there.
        ValueError, TypeError: `port` cannot be one; two nodes have the same name; or the registry has such a collector
            already.
    """
    check_argument("port", port, integer(0, 65535))
    nodes = tuple(nodes)
    collector, pages = NodeCollector(*nodes), _Pages(registry, nodes, health)
    registry.register(collector)
    try:
        try:
            # In a thread because it resolves the host; it is not left behind when this is cancelled.
            server, thread = await trio.to_thread.run_sync(partial(_start_server, port, host, pages))
        except OSError as exc:
            remedy = "Is something else listening there?" if exc.errno == errno.EADDRINUSE else "Is it this machine's?"
            msg = f"cannot serve metrics on {host} port {port}: {exc}. {remedy}"
            raise ListenError(msg, address=(host, port), tried=[(host, port)]) from exc

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        try:
            task_status.started(server.server_port)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # bounded: the server looks twice a second whether it is to stop
                await trio.to_thread.run_sync(stop)
    finally:
        registry.unregister(collector)
    raise AssertionError("sleep_forever ends by cancellation only")  # pragma: no cover


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"trionode_{name}", text, labels=["node", *labels])


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"trionode_{name}", text, labels=["node", *labels])


@final
class _Page:
    """The families of one scrape, to be filled node by node.

    What may be counted is there from the start, as zero: what springs into being as 1 never increased, for Prometheus.
    Only reasons of handshakes are too many for that. `__init__` is the list of all families: long, and nothing else.
    """

    def __init__(self) -> None:
        self._up = _gauge("up", "Whether the node is open and its event loop answers.")
        self._connections = _gauge(
            "connections",
            "Open connections by the generation of the manager that their handshake took.",
            "manager",
            "generation",
        )
        self._superseded = _gauge(
            "connections_superseded",
            "Open connections of older generations than what their manager publishes.",
            "manager",
        )
        self._ended = _counter("connections_ended", "Connections that have ended, by reason.", "reason")
        self._channels = _gauge("channels", "Open channels.")
        self._channels_opened = _counter("channels_opened", "Channels opened so far, by either side.")
        self._services = _gauge("services", "Service tasks that run.")
        self._sent = _counter("sent_bytes", "Bytes sent, before encryption.")
        self._received = _counter("received_bytes", "Bytes received, after decryption.")
        self._pending = _gauge("handshakes_pending", "Handshakes under way, silent clients included.", "side")
        self._handshakes = _counter("handshakes", "Handshakes that are over, by outcome.", "side", "outcome")
        self._failures = _counter(
            "handshake_failures",
            "Handshakes that did not lead to a link and have a reason; reasons appear when they are first met.",
            "side",
            "outcome",
            "reason",
        )
        self._handshake_times = HistogramMetricFamily(
            "trionode_handshake_seconds",
            "From the first byte (accepting) or the TCP connect (dialling) to the verdict.",
            labels=["node", "side", "outcome"],
        )
        self._connect_times = HistogramMetricFamily(
            "trionode_connect_seconds", "Of dials, resolving and TCP connect where they succeeded.", labels=["node"]
        )
        self._hand_overs = _counter(
            "hand_overs", "Hand-overs of live connections, by outcome and cause.", "outcome", "cause"
        )
        self._registered = _gauge("registered", "Whether other nodes can find the node by its registrar.")
        self._members = _gauge("members", "Nodes that the resolver names.")
        self._members_age = _gauge(
            "members_age_seconds", "How long ago the resolver last told of changes; 0 while it does."
        )
        self._resolver_troubles = _counter("resolver_troubles", "What the resolver or registrar did wrong.")
        self._generation = _gauge("generation", "The generation that is published.", "manager")
        self._published = _counter("rotations_published", "Generations published after the first.", "manager")
        self._refused = _counter(
            "rotations_refused", "Updates and rotations of trust that were refused.", "manager", "reason"
        )
        self._trouble = _gauge(
            "source_trouble",
            "Whether the manager follows a source (files, for one) that has something it cannot publish.",
            "manager",
        )
        certificate = ("manager", "role", "subject")
        self._not_before = _gauge(
            "certificate_not_before_seconds",
            "When a certificate, or a CRL by its thisUpdate, begins to be good: Unix time.",
            *certificate,
        )
        self._not_after = _gauge(
            "certificate_not_after_seconds",
            "When a certificate, or a CRL by its nextUpdate, ends: Unix time; of several of one subject the first.",
            *certificate,
        )

    def __iter__(self) -> Iterator[Metric]:
        return iter(vars(self).values())

    def add(self, node: str, statistics: _Statistics | None) -> None:
        """Enter a node or a server; of one that does not answer there is nothing but that."""
        self._up.add_metric([node], statistics is not None and statistics.open)
        if statistics is None:
            return
        if isinstance(statistics, NodeStatistics):
            self._add_node(node, statistics)
        self._add_handshakes(node, statistics)
        for use in statistics.managers:
            self._add_manager(node, use)

    def _add_node(self, node: str, statistics: NodeStatistics) -> None:
        """What a server has not."""
        self._channels.add_metric([node], statistics.channels)
        self._channels_opened.add_metric([node], statistics.channels_opened)
        self._services.add_metric([node], statistics.services)
        self._sent.add_metric([node], statistics.bytes_sent)
        self._received.add_metric([node], statistics.bytes_received)
        for reason in EndReason:
            self._ended.add_metric([node, reason], statistics.ends.get(reason, 0))
        for cause in RenewalCause:
            self._hand_overs.add_metric([node, "settled", cause], statistics.hand_overs.get(cause, 0))
            self._hand_overs.add_metric([node, "failed", cause], statistics.hand_overs_failed.get(cause, 0))
        if statistics.registered is not None:
            self._registered.add_metric([node], statistics.registered)
        if statistics.members_age is not None:
            self._members.add_metric([node], statistics.members)
            self._members_age.add_metric([node], statistics.members_age)
        self._resolver_troubles.add_metric([node], statistics.resolver_troubles)
        times = statistics.connect_times
        self._connect_times.add_metric([node], _cumulated(times), times.seconds)

    def _add_handshakes(self, node: str, statistics: _Statistics) -> None:
        pending = statistics.pending_handshakes
        totals = {(side, outcome): 0 for side in pending for outcome in HandshakeOutcome}
        for each in statistics.handshakes:
            totals[each.side, each.outcome] += each.count
            if each.reason:
                self._failures.add_metric([node, each.side, each.outcome, each.reason], each.count)
        for (side, outcome), count in totals.items():
            self._handshakes.add_metric([node, side, outcome], count)
        for side, count in pending.items():
            self._pending.add_metric([node, side], count)
        for timed in statistics.handshake_times:
            labels = [node, timed.side, timed.outcome]
            self._handshake_times.add_metric(labels, _cumulated(timed.times), timed.times.seconds)

    def _add_manager(self, node: str, use: ManagerUse) -> None:
        labels = [node, use.label]
        manager = use.manager
        self._generation.add_metric(labels, manager.generation)
        self._published.add_metric(labels, manager.generation - 1)
        self._superseded.add_metric(labels, use.superseded)
        self._trouble.add_metric(labels, manager.source_trouble is not None)
        for generation, count in ({manager.generation: 0} | dict(use.connections)).items():
            self._connections.add_metric([*labels, str(generation)], count)
        for reason, count in manager.refused.items():
            self._refused.add_metric([*labels, reason], count)
        for each in _first_to_end(manager.validities):
            certificate = [*labels, each.role, each.subject]
            self._not_before.add_metric(certificate, each.not_before.timestamp())
            self._not_after.add_metric(certificate, each.not_after.timestamp())


def _first_to_end(validities: Iterable[Validity]) -> Iterable[Validity]:
    """Of several of one role and subject (a CA and its successor, for one) that which ends first."""

    def end(validity: Validity) -> datetime:
        return validity.not_after

    return {(each.role, each.subject): each for each in sorted(validities, key=end, reverse=True)}.values()


def _cumulated(times: TimeHistogram) -> list[tuple[str, float]]:
    """A histogram's buckets as Prometheus has them: each counts the shorter ones, too."""
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*times.bounds, float("inf")), times.counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), so_far))
    return buckets


_show_as(__name__, {name: globals()[name] for name in __all__})
