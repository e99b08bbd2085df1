"""Tracing: spans at both ends of calls and channels, contexts over the wire, and what happens to a node."""

from __future__ import annotations

import importlib
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import opentelemetry
import pytest
import trio
from opentelemetry import baggage, context, trace
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from trionode import (
    CallSide,
    CertAuthManager,
    CertificateError,
    CertificateExpiring,
    HandshakeRefused,
    InterceptedCall,
    LiveConnections,
    NetworkOptions,
    NodeName,
    RemoteCode,
    RemoteError,
    Renew,
    current_channel,
    tracing,
)
from trionode.pki import CertificateAuthority
from trionode.tracing import MAX_ENTRY, SCHEMA, interceptor, trace_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import NodeFactory as LoopbackFactory
    from opentelemetry.sdk.trace import ReadableSpan

    from trionode import Node, ServiceChannel
    from trionode.testing import CapturedLogs, NodeFactory

ALPHA, BETA = "alpha@alpha.test", "beta@beta.test"
OK, ERROR = trace.StatusCode.UNSET, trace.StatusCode.ERROR
CLIENT, SERVER = trace.SpanKind.CLIENT, trace.SpanKind.SERVER


class Spans:
    """Spans in memory, and an interceptor whose spans go there."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.interceptor = interceptor(self.provider)

    def finished(self) -> tuple[ReadableSpan, ...]:
        """Those that have ended, in this order."""
        return tuple(self.exporter.get_finished_spans())

    def by_kind(self) -> tuple[ReadableSpan, ReadableSpan]:
        """The one of the caller, and the one of the service."""
        [client] = [span for span in self.finished() if span.kind is CLIENT]
        [server] = [span for span in self.finished() if span.kind is SERVER]
        return client, server


@pytest.fixture
def spans() -> Spans:
    """Fresh ones."""
    return Spans()


async def echo(channel: ServiceChannel) -> None:
    """Every message comes back."""
    async for message in channel:
        await channel.send(message)


async def refuse(channel: ServiceChannel) -> None:
    """On purpose."""
    raise RemoteError("no such order", code="not_found")


async def fail(channel: ServiceChannel) -> None:
    """By a defect."""
    raise ValueError("oh no")


async def wait(channel: ServiceChannel) -> None:
    """For ever, in several tasks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await channel.send(b"begun")
        await trio.sleep_forever()


SERVICES = {"echo": echo, "refuse": refuse, "fail": fail, "wait": wait}


@pytest.fixture
def traced(node_factory: NodeFactory, spans: Spans) -> Callable[..., Any]:
    """A function that opens alpha and beta, both traced, for a block."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Node, Node]]:
        with trio.fail_after(10):
            around: dict[str, Any] = {"interceptors": [spans.interceptor]}
            async with (
                node_factory(ALPHA, **around) as alpha,
                node_factory(BETA, **around | {"services": SERVICES} | options) as beta,
            ):
                yield alpha, beta

    return opened


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Of a span."""
    return dict(span.attributes or {})


# Calls --------------------------------------------------------------------------------------------------------------


async def test_a_call_has_a_span_at_both_ends_of_one_trace(traced: Callable[..., Any], spans: Spans) -> None:
    """The service's below the caller's, which is below the one that was current; named by the conventions."""
    async with traced() as (alpha, _):
        with spans.tracer.start_as_current_span("outer") as outer:
            await alpha.call(BETA, "echo", b"hi", metadata={"tenant": "a"})
        connection = alpha.connections[BETA]
    client, server = spans.by_kind()
    assert client.parent == outer.get_span_context()
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id) == (client.context.trace_id, client.context.span_id)
    assert server.parent.is_remote
    assert {span.name for span in (client, server)} == {"echo"}
    assert {span.status.status_code for span in (client, server)} == {OK}
    assert client.instrumentation_scope is not None
    assert (client.instrumentation_scope.name, client.instrumentation_scope.schema_url) == ("trionode", SCHEMA)
    common = {"rpc.system.name": "trionode", "rpc.method": "echo"}
    assert attributes(client) == common | {"server.address": "beta.test", "trionode.peer": BETA}
    found = attributes(server)
    peer = found.pop("network.peer.address"), found.pop("network.peer.port")
    assert found.pop("trionode.address") == "{}:{}".format(*peer)
    assert found == common | {
        "trionode.channel": 1,
        "trionode.connection": connection.id,
        "trionode.peer": ALPHA,
        "trionode.service": "echo",
        "trionode.verified": True,
    }


async def test_a_channel_has_a_span_around_its_block(traced: Callable[..., Any], spans: Spans) -> None:
    """It is the current one in the block, and no more behind it; the service's own spans are below the service's."""

    async def with_a_span(channel: ServiceChannel) -> None:
        with spans.tracer.start_as_current_span("inner"):
            await channel.send(b"x")

    before = trace.get_current_span()
    async with traced(services={"with_a_span": with_a_span}) as (alpha, _):
        async with alpha.open_channel(BETA, "with_a_span") as channel:
            around = trace.get_current_span().get_span_context()
            await channel.receive()
        assert trace.get_current_span() is before
    client, server = spans.by_kind()
    assert client.context == around
    [inner] = [span for span in spans.finished() if span.name == "inner"]
    assert inner.parent == server.context
    for name in ("trionode.channel", "trionode.connection", "network.peer.port"):
        assert name in attributes(client)


@pytest.mark.parametrize(
    ("service", "code", "server_fails"),
    [("refuse", "not_found", False), ("fail", "failed", True), ("nothing", "unknown_service", None)],
)
async def test_how_it_failed(
    traced: Callable[..., Any], spans: Spans, service: str, code: str, *, server_fails: bool | None
) -> None:
    """At the caller by the code; a service that refuses on purpose has not failed; where none ran there is no span."""
    async with traced() as (alpha, _):
        with pytest.raises(RemoteError):
            await alpha.call(BETA, service, b"")
    client, *servers = sorted(spans.finished(), key=lambda span: span.kind is SERVER)
    assert client.status.status_code is ERROR
    assert attributes(client)["error.type"] == attributes(client)["rpc.response.status_code"] == code
    assert not client.events
    if server_fails is None:
        assert not servers
        return
    [server] = servers
    assert server.status.status_code is (ERROR if server_fails else OK)
    if server_fails:
        assert attributes(server)["error.type"] == "ValueError"
        assert [event.name for event in server.events] == ["exception"]
    else:
        assert attributes(server)["rpc.response.status_code"] == code
        assert "error.type" not in attributes(server)


async def test_an_error_of_another_call_is_the_service_s_failure(traced: Callable[..., Any], spans: Spans) -> None:
    """It has not refused on purpose: it did not deal with what another service said."""

    async def ask(channel: ServiceChannel) -> None:
        await nodes[1].call(ALPHA, "nothing", b"")

    nodes: list[Node] = []
    async with traced(services={"ask": ask}) as (alpha, beta):
        nodes += [alpha, beta]
        with pytest.raises(RemoteError):
            await alpha.call(BETA, "ask", b"")
    [server] = [span for span in spans.finished() if span.kind is SERVER]
    assert server.status.status_code is ERROR
    assert attributes(server)["error.type"] == "unknown_service"


async def test_cancelling_is_the_caller_s_end_and_not_the_service_s_failure(
    traced: Callable[..., Any], spans: Spans
) -> None:
    """Both spans say so, and end."""
    async with traced() as (alpha, _):
        with trio.CancelScope() as scope:
            async with alpha.open_channel(BETA, "wait") as channel:
                await channel.receive()
                scope.cancel()
                await trio.sleep_forever()
    client, server = spans.by_kind()
    assert attributes(client)["error.type"] == "cancelled"
    assert client.status.status_code is ERROR
    assert attributes(server)["rpc.response.status_code"] == "cancelled"
    assert server.status.status_code is OK
    assert not client.events
    assert not server.events


async def test_a_service_whose_caller_has_left_has_not_failed(traced: Callable[..., Any], spans: Spans) -> None:
    """Its send breaks, which is the caller's doing; the log does not take it for a failure either."""
    left, tried = trio.Event(), trio.Event()

    async def late(channel: ServiceChannel) -> None:
        await left.wait()
        try:
            while True:
                await channel.send(b"too late")
        finally:
            tried.set()

    async with traced(services={"late": late}) as (alpha, _):
        async with alpha.open_channel(BETA, "late"):
            pass
        left.set()
        await tried.wait()
    client, server = spans.by_kind()
    assert client.status.status_code is server.status.status_code is OK
    assert attributes(server)["rpc.response.status_code"] == "cancelled"
    assert not server.events


async def test_a_call_that_reaches_no_node(traced: Callable[..., Any], spans: Spans) -> None:
    """By the exception; a glob is where it was to go."""
    async with traced() as (alpha, _):
        for name in ("gamma@elsewhere.invalid", "worker@*"):
            with pytest.raises(Exception, match=r"route|resolve|reach|node"):
                await alpha.call(name, "echo", b"")
    one, many = spans.finished()
    assert attributes(one)["server.address"] == "elsewhere.invalid"
    assert attributes(one)["error.type"].startswith("trionode.")
    assert attributes(many)["server.address"] == "worker@*"
    assert one.status.status_code is many.status.status_code is ERROR


# Contexts -----------------------------------------------------------------------------------------------------------


async def test_baggage_travels_and_what_is_too_large_stays(traced: Callable[..., Any], spans: Spans) -> None:
    """The application's own metadata is not crowded out by it."""
    seen: list[tuple[object, set[str]]] = []

    async def look(channel: ServiceChannel) -> None:
        seen.append((baggage.get_baggage("tenant"), set(channel.metadata)))
        await channel.send(b"")

    async with traced(services={"look": look}) as (alpha, _):
        for value in ("a", "a" * MAX_ENTRY):
            token = context.attach(baggage.set_baggage("tenant", value))
            await alpha.call(BETA, "look", b"")
            context.detach(token)
    assert seen == [("a", {"traceparent", "baggage"}), (None, {"traceparent"})]


HOSTILE: list[dict[str, str | bytes]] = [
    {"traceparent": b"\xff" * 55},
    {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
    {"traceparent": "00-" + "g" * 32 + "-" + "1" * 16 + "-01"},
    {"traceparent": "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"},
    {"traceparent": "x" * (MAX_ENTRY + 1)},
    {"traceparent": ""},
    {"tracestate": "a=b," * 500, "baggage": "=;=,%zz=" * 200},
    {"traceparent": "00-" + "1" * 32 + "-" + "1" * 16 + "-01", "tracestate": "\x00\n=\x1b[31m"},
]


@pytest.mark.parametrize("metadata", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_contexts_cost_nothing(
    node_factory: NodeFactory, spans: Spans, metadata: dict[str, str | bytes]
) -> None:
    """The call is served; what cannot be read is as if it had not come."""
    with trio.fail_after(10):
        async with (
            node_factory(ALPHA) as alpha,
            node_factory(BETA, services=SERVICES, interceptors=[spans.interceptor]),
        ):
            assert await alpha.call(BETA, "echo", b"hi", metadata=metadata) == b"hi"
    [server] = spans.finished()
    assert (server.parent is None) == ("tracestate" not in metadata or "baggage" in metadata)


class Broken(TextMapPropagator):
    """A propagator with a defect."""

    def extract(self, *_: Any, **__: Any) -> Any:
        """Raise."""
        raise ZeroDivisionError

    def inject(self, *_: Any, **__: Any) -> None:
        """Raise."""
        raise ZeroDivisionError

    @property
    def fields(self) -> set[str]:
        """Of none."""
        return set()


async def test_a_broken_propagator_costs_the_trace_and_not_the_call(
    node_factory: NodeFactory, spans: Spans, captured_logs: CapturedLogs
) -> None:
    """It is logged, on both sides."""
    around = [interceptor(spans.provider, Broken())]
    with trio.fail_after(10):
        async with node_factory.cluster(ALPHA, BETA, services=SERVICES, interceptors=around) as (alpha, _):
            assert await alpha.call(BETA, "echo", b"hi") == b"hi"
    client, server = spans.by_kind()
    assert client.context.trace_id != server.context.trace_id
    facts = captured_logs.facts("trionode.tracing", error="ZeroDivisionError", service="echo")
    assert {each["peer"] for each in facts} == {ALPHA, BETA}


class Odd(Broken):
    """One that writes what no metadata has."""

    def inject(self, carrier: Any, *_: Any, **__: Any) -> None:
        """A lone surrogate."""
        carrier["odd"] = "\ud800"

    def extract(self, *_: Any, **__: Any) -> Any:
        """Nothing."""
        return context.Context()


async def test_a_context_that_is_no_metadata_stays(
    node_factory: NodeFactory, spans: Spans, captured_logs: CapturedLogs
) -> None:
    """The call goes on without."""
    with trio.fail_after(10):
        around = [interceptor(spans.provider, Odd())]
        async with node_factory.cluster(ALPHA, BETA, services=SERVICES, interceptors=around) as (alpha, _):
            assert await alpha.call(BETA, "echo", b"hi") == b"hi"
    assert captured_logs.facts("trionode.tracing", error="ValueError", service="echo")


@pytest.mark.parametrize("size", [0, 64, 8192])
async def test_where_a_peer_takes_no_more_metadata_the_context_stays(
    traced: Callable[..., Any], spans: Spans, size: int
) -> None:
    """As one of an older release, that takes none: the application's own is sent, and the call is made all the same."""
    seen: list[set[str]] = []

    async def look(channel: ServiceChannel) -> None:
        seen.append(set(channel.metadata))
        await channel.send(b"yes")

    own = {"own": "x" * (size - 12)} if size else None
    async with traced(services={"look": look}, network=NetworkOptions(max_metadata_size=size)) as (alpha, _):
        assert await alpha.call(BETA, "look", b"", metadata=own) == b"yes"
        async with alpha.open_channel(BETA, "look", metadata=own) as channel:
            assert await channel.receive() == b"yes"
            assert set(channel.metadata) == set(own or ())
        if size > 64:
            assert await alpha.call(BETA, "look", b"", metadata={str(number): "" for number in range(128)}) == b"yes"
            assert len(seen.pop()) == 128
    assert seen == [set(own or ())] * 2
    assert {span.status.status_code for span in spans.finished()} == {OK}


class Raising(SpanProcessor):
    """A part of the SDK with a defect."""

    def on_start(self, *_: Any, **__: Any) -> None:
        """Raise."""
        raise ZeroDivisionError

    def on_end(self, *_: Any, **__: Any) -> None:
        """Raise."""
        raise OSError


class UnspeakableError(Exception):
    """One that has no words."""

    def __str__(self) -> str:
        """Raise."""
        raise ZeroDivisionError


async def test_a_broken_sdk_costs_the_trace_and_not_the_call(
    node_factory: NodeFactory, captured_logs: CapturedLogs
) -> None:
    """Neither the reply nor what the service has raised; nor what follows a node's events."""
    for method in ("on_start", "on_end"):
        provider, processor = TracerProvider(), Raising()
        setattr(processor, method, lambda *_, **__: None)
        provider.add_span_processor(processor)

        async def fails(channel: ServiceChannel) -> None:
            await channel.receive()
            raise UnspeakableError

        services, around = SERVICES | {"fails": fails}, [interceptor(provider)]
        with trio.fail_after(10):
            async with (
                node_factory.cluster(ALPHA, BETA, services=services, interceptors=around) as (alpha, _),
                trio.open_nursery() as nursery,
            ):
                await nursery.start(partial(trace_events, alpha, tracer_provider=provider))
                assert await alpha.call(BETA, "echo", b"hi") == b"hi"
                with pytest.raises(RemoteError) as caught:
                    await alpha.call(BETA, "fails", b"")
                assert caught.value.code is RemoteCode.FAILED
                alpha.options.cert_manager.update(node_factory.ca.issue(ALPHA))
                await alpha.call(BETA, "echo", b"hi")
                nursery.cancel_scope.cancel()
    assert captured_logs.facts("trionode.tracing", error="ZeroDivisionError", service="echo")
    assert captured_logs.facts("trionode.tracing", error="OSError", service="echo")


async def test_the_context_of_an_unverified_peer_is_not_followed(node_factory: NodeFactory, spans: Spans) -> None:
    """Its name is a claim, and so is everything else."""
    with trio.fail_after(10):
        certs = CertAuthManager(node_factory.ca.issue(BETA))
        async with (
            node_factory(ALPHA, interceptors=[spans.interceptor]) as alpha,
            node_factory(BETA, certs=certs, services=SERVICES, interceptors=[spans.interceptor]),
        ):
            await alpha.call(BETA, "echo", b"hi")
    _, server = spans.by_kind()
    assert server.parent is None
    assert attributes(server)["trionode.verified"] is False


async def test_without_an_sdk_contexts_are_passed_on(node_factory: NodeFactory) -> None:
    """The API alone records nothing; what comes from a caller that traces goes on to the next."""
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    seen: list[trace.SpanContext] = []

    async def look(channel: ServiceChannel) -> None:
        seen.append(trace.get_current_span().get_span_context())
        await channel.send(str(current_channel.get().metadata["traceparent"]).encode())

    around = [interceptor(trace.NoOpTracerProvider(), get_global_textmap())]
    with trio.fail_after(10):
        async with node_factory.cluster(ALPHA, BETA, services={"look": look}, interceptors=around) as (alpha, _):
            token = context.attach(get_global_textmap().extract({"traceparent": parent}))
            assert await alpha.call(BETA, "look", b"") == parent.encode()
            context.detach(token)
    assert f"{seen[0].trace_id:032x}" == "1" * 32


async def test_an_interceptor_can_be_tested_by_itself(spans: Spans) -> None:
    """With a call that no node has made."""
    call = InterceptedCall(side=CallSide.CALLER, service="echo", name=BETA, request=b"x")

    async def proceed() -> bytes:
        await trio.lowlevel.checkpoint()
        return b"y"

    assert await spans.interceptor(call, proceed) == b"y"
    assert set(call.metadata) == {"traceparent"}


# Events -------------------------------------------------------------------------------------------------------------


def of_events(spans: Spans, kind: str) -> list[dict[str, Any]]:
    """The facts of events of a kind."""
    return [
        {name.removeprefix("trionode."): value for name, value in attributes(span).items()}
        for span in spans.finished()
        if span.name == f"trionode.{kind}"
    ]


async def test_what_happens_to_a_node(node_factory: NodeFactory, spans: Spans) -> None:
    """Rotations, hand-overs and connectors: a span for each, of no parent and no duration."""
    handing_over = LiveConnections(on_rotation=Renew.HAND_OVER, within=0)
    certs = node_factory.manager(ALPHA)
    expired = CertificateAuthority.create(clock=lambda: datetime.now(UTC) - timedelta(days=900)).issue(ALPHA)
    with trio.fail_after(10):
        async with (
            node_factory(BETA),
            node_factory(ALPHA, certs=certs, live_connections=handing_over) as alpha,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(trace_events, alpha, tracer_provider=spans.provider))
            connection = await alpha.keep_connected(BETA).wait_up()
            generation = certs.update(node_factory.ca.issue(ALPHA))
            while not of_events(spans, "HandedOver"):
                await trio.lowlevel.checkpoint()
            with pytest.raises(CertificateError):
                certs.update(expired)
            while not of_events(spans, "RotationRefused"):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    [moved] = of_events(spans, "HandedOver")
    assert moved["connection"] == connection.id
    assert moved["peer"] == BETA
    assert moved["node"] == ALPHA
    [published] = of_events(spans, "GenerationPublished")
    assert published == {
        "node": ALPHA,
        "generation": generation,
        "certificate": certs.key_pair.fingerprint,
    }
    [refused] = of_events(spans, "RotationRefused")
    assert (refused["reason"], refused["error.type"], refused["generation"]) == ("expired", "expired", generation)
    states = of_events(spans, "ConnectorChanged")
    assert [each["reason"] for each in states][-1] == "up"
    assert {each["peer"] for each in states} == {BETA}
    assert all(span.parent is None for span in spans.finished())


def test_a_certificate_that_ends_is_traced(spans: Spans, ca: CertificateAuthority) -> None:
    """Which, and how long it has."""
    certificate = ca.issue(ALPHA)
    event = CertificateExpiring(
        node=NodeName.parse(ALPHA), certificate=certificate.certificate, left=timedelta(minutes=1)
    )
    tracing._record(spans.tracer, event, 0)
    assert of_events(spans, "CertificateExpiring") == [
        {"node": ALPHA, "certificate": certificate.fingerprint, "left": 60}
    ]


def test_a_group_of_cancellations_is_one(spans: Spans) -> None:
    """And one with something else in it is none."""
    assert tracing._is_cancellation(BaseExceptionGroup("", [GeneratorExit()])) is False
    assert tracing._is_cancellation(KeyboardInterrupt()) is False


async def test_refused_handshakes_are_traced_some_at_a_time(
    node: LoopbackFactory, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers can cause them; how many were left out is told by the next one that is not."""
    monkeypatch.setattr(tracing, "LOG_BURST", 2)
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events, trio.open_nursery() as nursery:
            await nursery.start(partial(trace_events, beta, tracer_provider=spans.provider))
            host, port = beta.acceptors[0].address
            for number in range(6):
                if number == 5:
                    monkeypatch.setattr(tracing, "LOG_WINDOW", 0)
                async with await trio.open_tcp_stream(host, port) as stranger:
                    await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
                while not isinstance(await events.receive(), HandshakeRefused):
                    pass
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    refused = of_events(spans, "HandshakeRefused")
    assert [each.get("left_out") for each in refused] == [None, None, 3]
    assert {each["error.type"] for each in refused} == {"http request"}
    assert {each["side"] for each in refused} == {"accept"}


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the other extras do."""
    monkeypatch.delitem(sys.modules, "trionode.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trionode\[otel\]'"):
        importlib.import_module("trionode.tracing")


def test_what_is_broken_in_another_way_is_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there, and lacks something of its own."""
    monkeypatch.delitem(sys.modules, "trionode.tracing")
    monkeypatch.delitem(sys.modules, "opentelemetry.propagate")
    monkeypatch.delattr(opentelemetry, "propagate")
    monkeypatch.setitem(sys.modules, "opentelemetry.baggage.propagation", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("trionode.tracing")
    assert "pip" not in str(caught.value)
