"""Metrics: what is scraped is what happened, from any thread, in any state of the node, whichever clients connect."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import re
import sys
import threading
import urllib.request
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import yaml
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import trionode
from trionode import (
    CertAuthManager,
    CertificateError,
    CertificateReason,
    CredentialRole,
    EndReason,
    HandedOver,
    HandshakeOutcome,
    HandshakeReason,
    ListenError,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeName,
    NodeOptions,
    PeerRejectedError,
    Refused,
    RejectionCode,
    Renew,
    RenewalCause,
    Route,
    ServerMonitor,
    Side,
    Stage,
    TimeHistogram,
    UnverifiedReason,
    Validity,
    _protocol as wire,
    metrics,
    open_node,
)
from trionode._managers.manager import publisher_of
from trionode.health import Health, HealthStatus
from trionode.metrics import NodeCollector, serve_metrics
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from conftest import AuthorityFactory, ManagerFactory, NodeFactory, PairFactory, ScriptedListener, ScriptedPeer
    from prometheus_client import Metric

    from trionode import NodeStatistics, Peer, ServiceChannel

PAGE = (Path(trionode.__file__).parent / "manual" / "metrics.md").read_text(encoding="utf-8")
BETA = NodeName.parse("beta@localhost")
PATIENCE = 10.0

#: What labels may say, where it is not the name, the number or the certificate of something of our own.
WORDS: dict[str, set[str]] = {
    "side": {*Side},
    "outcome": {*HandshakeOutcome, "settled", "failed"},
    "cause": {*RenewalCause},
    "role": {*CredentialRole},
    "reason": {*UnverifiedReason, *RejectionCode, *HandshakeReason, *Stage, *EndReason, *CertificateReason}
    | {"tls", "other", "unexpected", "stranded"},
}


class Page:
    """The samples of one scrape, each of which has to be there once."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in families:
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, key
                self.samples[key] = sample.value

    def __call__(self, name: str, **labels: object) -> float:
        """The one value under a name and exactly these labels."""
        return self.samples[f"trionode_{name}", frozenset((key, str(value)) for key, value in labels.items())]

    def sum(self, name: str, **labels: object) -> float:
        """All values under a name that have these labels, and others."""
        wanted = {(key, str(value)) for key, value in labels.items()}
        return sum(value for (each, its), value in self.samples.items() if each == f"trionode_{name}" and wanted <= its)

    @property
    def names(self) -> set[str]:
        """What there is samples of."""
        return {name for name, _ in self.samples}

    def words(self) -> Iterator[tuple[str, str]]:
        """Every label and value that is not our own name, number or certificate."""
        for _, labels in self.samples:
            yield from (each for each in labels if each[0] in WORDS)


def read(collector: NodeCollector) -> Page:
    """Scrape by way of text, as Prometheus does."""
    registry = CollectorRegistry()
    registry.register(collector)
    return Page(parse_text(generate_latest(registry).decode()))


async def read_elsewhere(collector: NodeCollector) -> Page:
    """Scrape in another thread."""
    return await trio.to_thread.run_sync(read, collector)


def fetch(port: int, accept: str = "*/*") -> str:
    """Scrape over HTTP."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
        text: str = response.read().decode()
    return text


@asynccontextmanager
async def serving(*nodes: Node) -> AsyncIterator[int]:
    """Serve metrics of nodes, and nothing else, for the length of the block; gives the port."""
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(partial(serve_metrics, nodes, 0, registry=CollectorRegistry()))
        yield port
        nursery.cancel_scope.cancel()


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


def refuse_gamma(peer: Peer) -> None:
    """An `authorize`."""
    if peer.name.name == "gamma":
        raise Refused("not you")


# What is scraped ----------------------------------------------------------------------------------------------------


async def test_a_story_is_in_the_metrics(
    open_pair: PairFactory, node: NodeFactory, manager: ManagerFactory, ca: CertificateAuthority
) -> None:
    """Traffic, a rotation with its hand-over, a refused one, a refused peer: over HTTP, in both formats, both sides."""
    now = datetime.now(UTC)
    expired = ca.issue("beta@localhost", not_before=now - timedelta(days=5), not_after=now - timedelta(days=3))
    hands_over = {"live_connections": LiveConnections(on_rotation=Renew.HAND_OVER, within=0)}
    async with (
        open_pair(alpha=hands_over, beta={"services": {"echo": echo}, "authorize": refuse_gamma}) as pair,
        node("gamma@localhost", mode=NetworkMode.HIDDEN) as gamma,
        serving(pair.alpha, pair.beta) as port,
    ):
        alpha, beta = pair.alpha, pair.beta
        before = Page(parse_text(await trio.to_thread.run_sync(fetch, port)))
        assert before("handshakes_total", node=BETA, side="accept", outcome="refused") == 0
        for _ in range(3):
            assert await alpha.call(BETA, "echo", bytes(5000)) == bytes(5000)
        connection = alpha.connections[BETA]
        async with alpha.events() as events:
            alpha.options.cert_manager.update(manager("alpha@localhost").key_pair)
            with trio.fail_after(PATIENCE):
                async for event in events:
                    if isinstance(event, HandedOver):
                        break
        with pytest.raises(CertificateError):
            beta.options.cert_manager.update(expired)
        host, door = beta.acceptors[0].address
        gamma.add_route(BETA, Route(host=host, port=door))
        for _ in range(2):
            with pytest.raises(PeerRejectedError):
                await gamma.connect(BETA)
        with trio.fail_after(PATIENCE):
            while beta.statistics().pending_handshakes[Side.ACCEPT]:  # noqa: ASYNC110 -- nothing tells
                await trio.sleep(0.005)
        text = await trio.to_thread.run_sync(fetch, port)
        openmetrics = await trio.to_thread.run_sync(fetch, port, "application/openmetrics-text; version=1.0.0")
        assert openmetrics.endswith("# EOF\n")
        for page in (Page(parse_text(text)), Page(parse_openmetrics(openmetrics))):  # type: ignore[no-untyped-call]
            check_story(page, alpha, beta)
        assert connection.live
        assert before.names <= page.names


def check_story(page: Page, alpha: Node, beta: Node) -> None:
    """Every number of the story above."""
    a, b = {"node": alpha.name}, {"node": beta.name}
    assert page("up", **a) == page("up", **b) == 1
    # alpha rotated: two generations, one connection, which is on the second
    own = {"manager": "own"}
    assert page("generation", **a, **own) == 2
    assert page("rotations_published_total", **a, **own) == 1
    assert page("connections", **a, **own, generation=2) == 1
    assert page.sum("connections", **a) == 1
    assert page("connections_superseded", **a, **own) == 0
    assert page("hand_overs_total", **a, outcome="settled", cause="rotated") == 1
    assert page("hand_overs_total", **b, outcome="settled", cause="asked") == 1
    assert page.sum("hand_overs_total", outcome="failed") == 0
    assert page("handshakes_total", **a, side="dial", outcome="established") == 2
    assert page("handshakes_total", **b, side="accept", outcome="established") == 2
    assert page("handshake_seconds_count", **a, side="dial", outcome="established") == 2
    assert page("handshake_seconds_bucket", **b, side="accept", outcome="established", le="+Inf") == 2
    assert 0 < page("handshake_seconds_sum", **b, side="accept", outcome="established") < PATIENCE
    assert page("connect_seconds_count", **a) == 2
    # beta refused a rotation, and a peer
    assert page("generation", **b, **own) == 1
    assert page("rotations_refused_total", **b, **own, reason="expired") == 1
    assert page.sum("rotations_refused_total", **b) == 1
    assert page("source_trouble", **b, **own) == 0
    assert page("handshakes_total", **b, side="accept", outcome="refused") == 2
    assert page("handshake_failures_total", **b, side="accept", outcome="refused", reason="not_authorized") == 2
    assert page.sum("handshake_failures_total") == 2
    # traffic
    assert page("channels_opened_total", **a) == page("channels_opened_total", **b) == 3
    for name in ("sent_bytes_total", "received_bytes_total"):
        assert 15000 < page(name, **a) < 20000
        assert 15000 < page(name, **b) < 20000
    assert page("channels", **a) == page("services", **b) == 0
    assert page.sum("connections_ended_total", **a) == 0
    # certificates
    leaf = alpha.options.cert_manager.key_pair.certificate
    labels = {**a, **own, "role": "leaf", "subject": "CN=alpha@localhost"}
    assert page("certificate_not_after_seconds", **labels) == leaf.not_valid_after_utc.timestamp()
    assert page("certificate_not_before_seconds", **labels) == leaf.not_valid_before_utc.timestamp()
    assert all(value in WORDS[label] for label, value in page.words())


async def test_trouble_of_a_source(node: NodeFactory, manager: ManagerFactory) -> None:
    """A followed source that cannot be published is a 1 until it can."""
    certs = manager("alpha@localhost")
    async with node("alpha@localhost", certs) as alpha:
        collector = NodeCollector(alpha)
        labels = {"node": alpha.name, "manager": "own"}
        publisher_of(certs).report_source(CertificateError("…", reason=CertificateReason.UNREADABLE))
        assert read(collector)("source_trouble", **labels) == 1
        publisher_of(certs).report_source(None)
        assert read(collector)("source_trouble", **labels) == 0


async def test_twins_are_one_series(node: NodeFactory, authority: AuthorityFactory) -> None:
    """A CA and its successor of the same name: a series that was there twice would make the whole page unreadable."""
    old, new = authority("twins"), authority("twins")
    certs = CertAuthManager(new.issue("alpha@localhost"), root_cas=old.pool | new.pool)
    async with node("alpha@localhost", certs, mode=NetworkMode.HIDDEN) as alpha:
        page = read(NodeCollector(alpha))
    assert sum(("role", "root_ca") in labels for _, labels in page.samples) == 2  # not_before and not_after


@given(
    st.lists(st.tuples(st.sampled_from(CredentialRole), st.sampled_from("ab"), st.datetimes(timezones=st.just(UTC))))
)
def test_of_several_the_first_to_end_is_shown(drawn: list[tuple[CredentialRole, str, datetime]]) -> None:
    """With its own beginning, so that its share of life is its own."""
    validities = [
        Validity(role=role, subject=subject, not_before=end - timedelta(days=number), not_after=end)
        for number, (role, subject, end) in enumerate(drawn)
        if end.year > 1
    ]
    shown = list(metrics._first_to_end(validities))
    assert {(each.role, each.subject) for each in shown} == {(each.role, each.subject) for each in validities}
    assert len({(each.role, each.subject) for each in shown}) == len(shown)
    for each in shown:
        assert each in validities
        same = [other for other in validities if (other.role, other.subject) == (each.role, each.subject)]
        assert each.not_after == min(other.not_after for other in same)


@given(st.lists(st.integers(0, 5), min_size=14, max_size=14))
def test_buckets_are_cumulated(counts: list[int]) -> None:
    """Each has what took no longer than its bound; the last has all."""
    buckets = metrics._cumulated(TimeHistogram(counts=tuple(counts), seconds=1.0))
    assert [float(bound) for bound, _ in buckets] == [*TimeHistogram.bounds, float("inf")]
    assert [count for _, count in buckets] == [sum(counts[: end + 1]) for end in range(14)]


# Whichever clients connect ------------------------------------------------------------------------------------------

HOSTILE = [
    "evil",
    'a"} 1\ntrionode_up{node="x',
    "line\nbreak@localhost",
    "\\",
    "{}",
    "é漢字\u202e@localhost",
    "x" * 60,
    "unknown_ca ",
]


async def test_no_label_is_a_peer_s_to_choose(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    scripted_listener: ScriptedListener,
) -> None:
    """Names, codes and messages from outside are counted and not shown; however many there are, no series is added."""
    certs = manager("mallory@localhost", "beta@localhost")
    async with node("alpha@localhost") as alpha:
        collector = NodeCollector(alpha)
        sizes: set[int] = set()
        page = read(collector)
        for text in HOSTILE:
            peer = await scripted_dial(alpha, certs)
            await peer.say(peer.hello(text))
            answer = await peer.hear(wire.Answer)
            assert answer.refusal is not None
            await peer.hear_end()
            await trio.aclose_forcefully(peer.stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_with_refusal, scripted_listener, certs, text)
                with pytest.raises(PeerRejectedError):
                    await alpha.connect(BETA, scripted_listener.route())
            page = await read_elsewhere(collector)
            assert all(value in WORDS[label] for label, value in page.words())
            sizes.add(len(page.samples))
            values = {value for _, labels in page.samples for _, value in labels}
            assert not any(text in value for value in values if text not in ("{}", "\\"))
        labels = {"node": alpha.name, "side": "accept", "outcome": "refused", "reason": "claimed_name"}
        assert page("handshake_failures_total", **labels) == len(HOSTILE)
        labels = {"node": alpha.name, "side": "dial", "outcome": "rejected", "reason": "other"}
        assert page("handshake_failures_total", **labels) == len(HOSTILE)
        assert len(sizes) == 1


async def answer_with_refusal(listener: ScriptedListener, certs: CertAuthManager, text: str) -> None:
    """Refuse one dialer, in words of no vocabulary."""
    peer = await listener.accept(certs)
    await peer.hear(wire.Hello)
    await peer.say(wire.Answer(refusal=wire.Refusal(code=text, message=text)))
    await peer.hear_end()
    await trio.aclose_forcefully(peer.stream)


async def test_our_own_subject_may_be_odd(node: NodeFactory) -> None:
    """It is shown, escaped and cut, and breaks nothing."""
    odd = CertificateAuthority.create(common_name='a"} 1\ntrionode_up{node="x\\' + "y" * 40)
    certs = CertAuthManager(odd.issue("alpha@localhost"), root_cas=odd.pool)
    async with node("alpha@localhost", certs, mode=NetworkMode.HIDDEN) as alpha:
        page = read(NodeCollector(alpha))
    [subject] = {dict(labels)["subject"] for _, labels in page.samples if ("role", "root_ca") in labels}
    assert "\n" not in subject
    assert "trionode_up" in subject
    assert len([name for name, _ in page.samples if name == "trionode_up"]) == 1


# Any thread ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that interrupt each other all the time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


async def test_threads_scrape_while_everything_moves(open_pair: PairFactory, restless: None) -> None:
    """Every snapshot is of one moment: its numbers fit together, and counters never go down."""
    over = threading.Event()
    pages: list[list[Page]] = [[], []]

    async with open_pair() as pair:
        collector = NodeCollector(pair.alpha, pair.beta)

        def scrape(into: list[Page]) -> None:
            while not over.is_set():
                into.append(Page(collector.collect()))

        async with trio.open_nursery() as nursery:
            for each in pages:
                nursery.start_soon(trio.to_thread.run_sync, scrape, each)
            for _ in range(15):
                await (await pair.alpha.connect(BETA)).aclose()
            over.set()
    for series in pages:
        assert len(series) > 5
        for page in series:
            for name, side in ((pair.alpha.name, "dial"), (pair.beta.name, "accept")):
                made = page("handshakes_total", node=name, side=side, outcome="established")
                ended = page.sum("connections_ended_total", node=name)
                assert made - ended <= page.sum("connections", node=name) <= made
        for earlier, later in pairwise(series):
            for key, value in earlier.samples.items():
                assert not key[0].endswith(("_total", "_count", "_bucket", "_sum")) or later.samples[key] >= value
    assert pages[0][-1].sum("handshakes_total", node=pair.alpha.name, outcome="established") > 0


async def test_numbers_are_taken_in_the_nodes_own_thread(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what makes it safe; the text is written in the scraper's."""
    taken: list[int] = []
    statistics = Node.statistics

    def note(self: Node) -> NodeStatistics:
        taken.append(threading.get_ident())
        return statistics(self)

    monkeypatch.setattr(Node, "statistics", note)
    async with node("alpha@localhost") as alpha:
        assert (await read_elsewhere(NodeCollector(alpha)))("up", node=alpha.name) == 1
    assert taken == [threading.get_ident()]


async def test_in_the_nodes_own_thread_it_does_not_wait_for_itself(node: NodeFactory) -> None:
    """For a program that serves metrics by Trio."""
    async with node("alpha@localhost") as alpha:
        collector = NodeCollector(alpha)
        assert read(collector)("up", node=alpha.name) == 1
        # A Trio run in another thread is another thread.
        assert (await trio.to_thread.run_sync(trio.run, read_in_a_run, collector))("up", node=alpha.name) == 1


async def read_in_a_run(collector: NodeCollector) -> Page:
    """Scrape from a Trio run of one's own."""
    return read(collector)


async def test_a_stuck_event_loop_is_told_and_not_waited_for(
    node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrape goes on without it; when the loop runs again, so do the numbers."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.05)
    pages: list[Page] = []
    async with node("alpha@localhost") as alpha:
        collector = NodeCollector(alpha)
        thread = threading.Thread(target=lambda: pages.append(read(collector)))
        thread.start()
        thread.join(PATIENCE)  # here, in Trio's thread
        assert pages[0].samples == {("trionode_up", frozenset({("node", "alpha@localhost")})): 0}
        monkeypatch.undo()
        assert (await read_elsewhere(collector))("up", node=alpha.name) == 1


async def test_a_closed_node_keeps_its_numbers(open_pair: PairFactory) -> None:
    """It is not up, and what it counted can be scraped as long as its Trio run lasts."""
    async with open_pair() as pair:
        collector = NodeCollector(pair.alpha)
        await pair.alpha.connect(BETA)
    page = await read_elsewhere(collector)
    assert page("up", node=pair.alpha.name) == 0
    assert page("handshakes_total", node=pair.alpha.name, side="dial", outcome="established") == 1
    assert page("connections_ended_total", node=pair.alpha.name, reason="shutting_down") == 1
    assert page.sum("connections") == 0


def test_when_its_run_is_over_nothing_is_left_to_say(ca: CertificateAuthority) -> None:
    """The node is down; no scrape fails or waits."""
    certs = CertAuthManager(ca.issue("alpha@localhost"), root_cas=ca.pool)
    options = NodeOptions(cert_manager=certs, network=NetworkOptions(mode=NetworkMode.HIDDEN))

    async def main() -> NodeCollector:
        async with open_node("alpha@localhost", options) as alpha:
            return NodeCollector(alpha)

    page = read(trio.run(main))
    assert page.samples == {("trionode_up", frozenset({("node", "alpha@localhost")})): 0}


async def test_a_crash_while_counting_is_the_scraper_s(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a snapshot comes out where it was asked for, and ends no Trio run."""

    def crash(self: Node) -> None:
        raise ZeroDivisionError

    async with node("alpha@localhost") as alpha:
        collector = NodeCollector(alpha)
        with monkeypatch.context() as patch:
            patch.setattr(Node, "statistics", crash)
            with pytest.raises(ZeroDivisionError):
                await read_elsewhere(collector)
        assert (await read_elsewhere(collector))("up", node=alpha.name) == 1


async def test_a_collector_is_made_where_its_nodes_are(node: NodeFactory) -> None:
    """It has to know their Trio run, and to tell them apart."""
    async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
        with pytest.raises(RuntimeError):
            await trio.to_thread.run_sync(NodeCollector, alpha)
        with pytest.raises(ValueError, match="same name"):
            NodeCollector(alpha, alpha)
        registry = CollectorRegistry()
        registry.register(NodeCollector(alpha))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(NodeCollector(alpha))


# Serving ------------------------------------------------------------------------------------------------------------


async def test_the_server_ends_with_its_task(node: NodeFactory) -> None:
    """Nothing listens afterwards, no thread is left, and the registry is as it was."""
    threads = threading.active_count()
    registry = CollectorRegistry()
    async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha, trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_metrics, [alpha], 0, registry=registry))
        assert "trionode_up" in await trio.to_thread.run_sync(fetch, port)
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match=str(port)):
        await trio.open_tcp_stream("127.0.0.1", port)
    assert generate_latest(registry) == b""
    serving_threads = [each.name for each in threading.enumerate() if "serve_forever" in each.name]
    assert not serving_threads
    assert threading.active_count() <= threads + 2  # Trio keeps idle threads for a while


def ask(port: int, path: str) -> tuple[int, str]:
    """The status and body of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


async def test_ready_and_live(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready: what the application says, and whether the node takes more. Alive: whether the event loop answers."""
    health = Health(HealthStatus.NOT_SERVING)
    monitor = ServerMonitor("web")
    async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha, trio.open_nursery() as nursery:
        serve = partial(serve_metrics, [alpha], 0, registry=CollectorRegistry(), health=health)
        port = await nursery.start(serve)

        async def fetched(path: str) -> tuple[int, str]:
            return await trio.to_thread.run_sync(ask, port, path)

        assert await fetched("/ready") == (503, "health: not_serving\n")
        assert await fetched("/live") == (200, "ok\n")
        health.set("", HealthStatus.SERVING)
        assert await fetched("/ready") == (200, "ok\n")
        await alpha.drain()
        assert await fetched("/ready") == (503, "alpha@localhost is not open, or drains\n")
        assert await fetched("/live") == (200, "ok\n")
        monkeypatch.setattr(metrics, "PATIENCE", 0.05)
        found: list[tuple[int, str]] = []
        for path in ("/ready", "/live"):
            thread = threading.Thread(target=lambda page=path: found.append(ask(port, page)))
            thread.start()
            thread.join(PATIENCE)  # here, in Trio's thread
        assert found == [(503, "the event loop has not answered for 0.05 s\n")] * 2
        without = await nursery.start(partial(serve_metrics, [monitor], 0, registry=CollectorRegistry()))
        assert await trio.to_thread.run_sync(ask, without, "/ready") == (503, "web is not open, or drains\n")
        assert (await trio.to_thread.run_sync(ask, without, "/metrics"))[0] == 200
        nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken(node: NodeFactory) -> None:
    """The error says which; nothing stays registered."""
    registry = CollectorRegistry()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener, node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
        with pytest.raises(ListenError, match=f"port {port}") as caught:
            await serve_metrics([alpha], port, registry=registry)
        assert caught.value.address == ("127.0.0.1", port)
    assert generate_latest(registry) == b""


@pytest.mark.parametrize("missing", ["prometheus_client", "prometheus_client.core"])
def test_without_the_library_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken in another way is not taken for that."""
    monkeypatch.delitem(sys.modules, "trionode.metrics")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("trionode.metrics")
    assert caught.value.name == missing
    assert ("pip install 'trionode[metrics]'" in str(caught.value)) == (missing == "prometheus_client")


# The manual's page --------------------------------------------------------------------------------------------------


def names(family: Metric) -> list[str]:
    """The names that a family's samples have."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
    return [family.name + suffix for suffix in suffixes.get(family.type, [""])]


#: Every family, by the name that is asked for, or that the parts of a histogram have in common.
SHOWN = {names(family)[0].removesuffix("_bucket"): set(vars(family)["_labelnames"]) for family in metrics._Page()}
#: Every name of samples, and its labels.
SAMPLES = {name: set(vars(family)["_labelnames"]) for family in metrics._Page() for name in names(family)}


def test_the_table_has_every_metric_and_its_labels() -> None:
    """And no other."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `trionode")]
    table = {
        name: {"node", *re.findall(r"`(\w+)`", labels)}
        for first, labels, *_ in rows
        for name in re.findall(r"`(\w+)`", first)
    }
    assert table == SHOWN


[RULES] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def complaints(expression: str) -> list[str]:
    """What is wrong with a rule's expression, as far as that can be seen without Prometheus."""
    found = [f"no metric {name}" for name in re.findall(r"\btrionode_\w+", expression) if name not in SAMPLES]
    for name, selector in re.findall(r"\b(trionode_\w+)\{([^}]*)\}", expression):
        for label, _, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in SAMPLES.get(name, set()):
                found.append(f"{name} has no label {label}")
            found += [f"{label} is never {word}" for word in value.split("|") if word not in WORDS.get(label, set())]
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        known = set.intersection(*(SAMPLES.get(name, set()) for name in re.findall(r"\btrionode_\w+", expression)))
        found += [f"no label {label} to sum by" for label in labels.split(", ") if label not in known]
    for opening, closing in ("()", "[]", "{}"):
        if expression.count(opening) != expression.count(closing):
            found.append(f"unbalanced {opening}{closing}")
    return found


def test_the_alert_rules_are_about_metrics_that_there_are() -> None:
    """They parse, and ask for names, labels and values that exist; what they tell has the labels that it shows."""
    [group] = yaml.safe_load(RULES)["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 5
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
        expression = rule["expr"]
        assert re.search(r"\btrionode_\w+", expression)
        assert not complaints(expression), expression
        by = re.search(r"\bby \(([^)]*)\)", expression)
        about = set.intersection(*(SAMPLES[name] for name in re.findall(r"\btrionode_\w+", expression)))
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert shown
        assert shown <= (about if by is None else set(by[1].split(", ")))


def test_the_rules_that_were_asked_for_are_there() -> None:
    """Expiry of each role, rotations that are refused, and those that do not reach connections."""
    expressions = " ".join(rule["expr"] for rule in yaml.safe_load(RULES)["groups"][0]["rules"])
    assert all(role in expressions for role in CredentialRole)
    assert "trionode_rotations_refused_total" in expressions
    assert "trionode_connections_superseded" in expressions


@pytest.mark.parametrize(
    "wrong",
    [
        "trionode_conections > 0",
        "trionode_handshakes > 0",
        'trionode_handshakes_total{outcome="refuse"} > 0',
        'trionode_handshakes_total{reason="refused"} > 0',
        "sum by (node, reason) (trionode_handshakes_total)",
        "increase(trionode_handshakes_total[15m) > 0",
    ],
)
def test_a_wrong_rule_would_be_found(wrong: str) -> None:
    """The check can fail."""
    assert complaints(wrong)
