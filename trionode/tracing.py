"""Traces by OpenTelemetry: a span for each call and channel at both ends, and for what happens to a node; extra `otel`.

Theory. A span is made by an interceptor, around the call or the service, and is the current one there: what the body
makes is below it. The caller's context travels in the metadata, as the propagator writes it (W3C: `traceparent`,
`tracestate`, `baggage`). Names are those of OpenTelemetry's conventions for RPC, see `SCHEMA`; what they have no name
for is a fact of trionode (`trionode.peer`, …), named as in the log.

What a peer sends as its context is a claim. Only a verified peer's is followed, and only as far as it is text of a
bounded size that the propagator can read; everything else is as if nothing had come. Whatever tracing does wrong costs
the trace and not the call.

What happens to a node has no span to hang on: a hand-over may come days after its connection began. So each such event
is a span by itself, without a duration.

Only the API is needed. Where the program sets no SDK up, nothing is recorded, and contexts are passed on all the same.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.channel import end_of
from trionode._connection.interceptors import CallSide
from trionode._connection.services import refusal_of
from trionode._errors import RemoteCode, RemoteError
from trionode._identity.certificate import fingerprint
from trionode._identity.names import NodeName
from trionode._node.events import (
    CertificateExpiring,
    ConnectorChanged,
    GenerationPublished,
    HandedOver,
    HandOverFailed,
    HandshakeRefused,
    RotationRefused,
)
from trionode._util.facts import FACTS, read_facts
from trionode._util.log import Log
from trionode._util.metadata import as_metadata
from trionode._util.public_names import show_as as _show_as
from trionode._util.rate_limited_log import LOG_BURST, LOG_WINDOW, RateLimitedLog
from trionode._util.text import said

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.propagators.textmap import TextMapPropagator  # noqa: TC002 -- its name is in a public signature
    from opentelemetry.trace import TracerProvider  # noqa: TC002 -- ditto
except ModuleNotFoundError as _exc:
    if _exc.name != "opentelemetry":
        raise
    _msg = "trionode.tracing needs opentelemetry-api; install it with: pip install 'trionode[otel]'"
    raise ModuleNotFoundError(_msg, name=_exc.name) from None

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from trionode._connection.interceptors import InterceptedCall, Interceptor, Proceed
    from trionode._node.events import NodeEvent
    from trionode._node.node import Node

__all__ = ["interceptor", "trace_events"]

#: The release of OpenTelemetry's conventions whose names these are; in it those for RPC are stable.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.45.0"

#: Characters of one entry of a context, to a peer and from one: more than `traceparent` and `tracestate` may have. A
#: larger one (baggage may be) is left out: it would take the room of the application's own metadata.
MAX_ENTRY: Final = 2048

_log = Log("trionode.tracing")

#: What is traced of a node.
_TRACED: Final = (
    GenerationPublished,
    RotationRefused,
    CertificateExpiring,
    HandedOver,
    HandOverFailed,
    HandshakeRefused,
    ConnectorChanged,
)


def interceptor(
    tracer_provider: TracerProvider | None = None, propagator: TextMapPropagator | None = None
) -> Interceptor:
    """Make an interceptor that gives each call and channel a span, at both ends: `NodeOptions(interceptors=[…])`.

    Put it first, so that what other interceptors do is in the span.

    Args:
        tracer_provider: where spans go; None for the one that the program has set, at any time.
        propagator: writes contexts into metadata, and reads them; None for the one that the program has set (W3C trace
            context and baggage, unless it has set another).
    """
    tracer, troubles = _tracer_of(tracer_provider), _Troubles()
    carriage = _Carriage(propagator, troubles)

    async def trace_call(call: InterceptedCall, proceed: Proceed) -> bytes | None:
        if call.side is CallSide.CALLER:
            with _span(tracer, call, context.get_current(), trace.SpanKind.CLIENT, troubles) as span:
                carriage.load(call)
                try:
                    return await proceed()
                finally:
                    with troubles.of("a span cannot be described", call):
                        _describe_channel(span, call)
        with _span(tracer, call, carriage.unload(call), trace.SpanKind.SERVER, troubles) as span:
            with troubles.of("a span cannot be described", call):
                _describe_channel(span, call)
            return await proceed()

    return trace_call


async def trace_events(
    node: Node,
    *,
    tracer_provider: TracerProvider | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Trace what happens to a node until it is closed: `await nursery.start(trace_events, node)`.

    Hand-overs, rotations, certificates that end, refused handshakes and the states of connectors: each a span of its
    own, without a duration. Of refused handshakes, which strangers can cause, 20 in 10 seconds are traced; the next one
    after that says how many were left out. Cancelling is harmless.

    Args:
        node: an open one.
        tracer_provider: where spans go; None for the one that the program has set.
        task_status: started once nothing is missed.
    """
    tracer, limit, troubles = _tracer_of(tracer_provider), _Limit(), _Troubles()
    async with node.events() as events:
        task_status.started()
        async for event in events:
            if isinstance(event, _TRACED):
                left_out = limit.left_out(event)
                if left_out is not None:
                    with troubles.of("an event cannot be traced"):
                        _record(tracer, event, left_out)


def _tracer_of(provider: TracerProvider | None) -> Tracer:
    return trace.get_tracer("trionode", tracer_provider=provider, schema_url=SCHEMA)


@final
class _Troubles:
    """What goes wrong with tracing, in the SDK or in what the application gave to it: logged, and goes no further."""

    def __init__(self) -> None:
        self._flood = RateLimitedLog(_log, "troubles with tracing")

    @contextmanager
    def of(self, what: str, call: InterceptedCall | None = None) -> Iterator[None]:
        """Let nothing out of the block."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 -- it may be the application's
            peer, service = (None, None) if call is None else (call.peer or call.name, call.service)
            self._flood.warning("%s", what, exc_info=exc, peer=peer, service=service)


# Spans of calls -----------------------------------------------------------------------------------------------------


@contextmanager
def _span(
    tracer: Tracer, call: InterceptedCall, parent: Context, kind: trace.SpanKind, troubles: _Troubles
) -> Iterator[Span]:
    """A span for the block, the current one in it, which says how the block has ended."""
    attributes: dict[str, AttributeValue] = {"rpc.system.name": "trionode", "rpc.method": call.service}
    if kind is trace.SpanKind.CLIENT:
        attributes |= _destination(call.name)
    span: Span = trace.INVALID_SPAN
    with troubles.of("a span cannot be made", call):
        span = tracer.start_span(call.service, context=parent, kind=kind, attributes=attributes)
    # One that is nothing, as older APIs give it without an SDK, must not take the place of the caller's.
    token = context.attach(trace.set_span_in_context(span, parent) if span.get_span_context().is_valid else parent)
    try:
        yield span
    except BaseException as exc:
        with troubles.of("a span cannot be described", call):
            _describe_end(span, exc, kind, call)
        raise
    finally:
        context.detach(token)
        with troubles.of("a span cannot be ended", call):
            span.end()


def _destination(name: str) -> Mapping[str, AttributeValue]:
    """The node that is called, as it was asked for: a name, or a glob over several."""
    try:
        return {"server.address": NodeName.parse(name).host, "trionode.peer": name}
    except ValueError:
        return {"server.address": name}


def _describe_channel(span: Span, call: InterceptedCall) -> None:
    """What is known of the channel, once there is one."""
    if call.channel is None or not span.is_recording():
        return
    span.set_attributes(_named(read_facts({"channel": end_of(call.channel)})))
    address = call.channel.peer.address
    if address is not None:
        span.set_attributes({"network.peer.address": address[0], "network.peer.port": address[1]})


def _describe_end(span: Span, error: BaseException, kind: trace.SpanKind, call: InterceptedCall) -> None:
    """How it failed. A service that refuses on purpose, is cancelled or left by its caller, has not failed."""
    serving = kind is trace.SpanKind.SERVER
    code, failed = "", True
    refusal = refusal_of(error) if serving and isinstance(error, Exception) else None
    if refusal is not None:
        code, failed = refusal.raw_code, False
    elif isinstance(error, RemoteError):
        code, failed = error.raw_code, not serving or error.code is not RemoteCode.BAD_MESSAGE
    elif _is_cancellation(error) or (serving and _is_end(error, call)):
        code, failed = "cancelled", not serving
    else:
        span.record_exception(error)
    if code:
        span.set_attribute("rpc.response.status_code", code)
    if failed:
        span.set_attribute("error.type", code or _kind_of(error))
        span.set_status(trace.Status(trace.StatusCode.ERROR, said(error)))


def _is_end(error: BaseException, call: InterceptedCall) -> bool:
    """Whether a service has raised only that its channel is over, by no doing of its own."""
    return call.channel is not None and isinstance(error, Exception) and end_of(call.channel).is_end(error)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled | GeneratorExit)


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# Contexts in metadata -------------------------------------------------------------------------------------------------


@final
class _Carriage:
    """Takes contexts to peers, and from them, in the metadata of calls. Never raises, whatever the propagator does."""

    def __init__(self, propagator: TextMapPropagator | None, troubles: _Troubles) -> None:
        self._propagator = propagator
        self._troubles = troubles

    def _present(self) -> TextMapPropagator:
        return propagate.get_global_textmap() if self._propagator is None else self._propagator

    def load(self, call: InterceptedCall) -> None:
        """Put the current context into the metadata of a call. One that was there, of another call, is replaced."""
        with self._troubles.of("a trace context cannot be written", call):
            entries: dict[str, str] = {}
            self._present().inject(entries)
            fitting = {key: value for key, value in entries.items() if len(value) <= MAX_ENTRY}
            as_metadata(fitting)
            call._add_dispensable(fitting)  # noqa: SLF001 -- a peer that does not take it gets the call all the same

    def unload(self, call: InterceptedCall) -> Context:
        """The context that a verified peer has sent; an empty one if it has sent none that can be read."""
        peer, found = call.peer, context.Context()
        if peer is None or not peer.verified:
            return found
        entries = {
            key: value for key, value in call.metadata.items() if isinstance(value, str) and len(value) <= MAX_ENTRY
        }
        with self._troubles.of("a trace context cannot be read", call):
            found = self._present().extract(entries, context=found)
        return found  # noqa: RET504 -- the block may have ended early


# Spans of events ------------------------------------------------------------------------------------------------------


@final
class _Limit:
    """How many refused handshakes are traced; the same as are logged one by one."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._count = 0

    def left_out(self, event: NodeEvent) -> int | None:
        """How many were left out before this one, which is traced; None if it is left out, too."""
        if not isinstance(event, HandshakeRefused):
            return 0
        now, before = trio.current_time(), 0
        if now - self._began >= LOG_WINDOW:
            before = max(0, self._count - LOG_BURST)
            self._began, self._count = now, 0
        self._count += 1
        return before if self._count <= LOG_BURST else None


def _record(tracer: Tracer, event: NodeEvent, left_out: int) -> None:
    """A span for an event."""
    given = {each.name: getattr(event, each.name) for each in fields(event)}
    error = given.get("error")
    match event:
        case ConnectorChanged(name=name, state=state):
            error = state.error
            given |= {"peer": name, "error": error, "reason": state.phase}
        case GenerationPublished():
            given["certificate"] = event.fingerprint
        case CertificateExpiring():
            given |= {"certificate": fingerprint(event.certificate), "left": int(event.left.total_seconds())}
    facts = read_facts({name: value for name, value in given.items() if name in FACTS})
    if left_out:
        facts["left_out"] = left_out
    span = tracer.start_span(f"trionode.{type(event).__name__}", context=context.Context(), attributes=_named(facts))
    if error is not None:
        span.set_attribute("error.type", str(facts.get("reason", facts["error"])))
        span.set_status(trace.Status(trace.StatusCode.ERROR, said(error)))
    span.end()


def _named(facts: Mapping[str, str | int]) -> dict[str, AttributeValue]:
    return {f"trionode.{name}": value for name, value in facts.items()}


_show_as(__name__, {name: globals()[name] for name in __all__})
