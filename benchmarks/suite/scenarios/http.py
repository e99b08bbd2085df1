"""HTTP servers: requests over kept connections, and new connections with one request each.

All are asked by the same blocking client in another process: sockets, stdlib `ssl` with a client certificate, and for
HTTP/2 the same library that hypercorn has. It writes requests on all of its connections before it reads the first
answer, so the server has something to do while the client reads. So "times the cost" is of both ends together, as seen
by a client; CPU time, too, is that of both.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.suite.credentials import ADDRESS, HOST
from benchmarks.suite.model import Better, Contestant, Placement, Scenario, Stopwatch, Target

if TYPE_CHECKING:
    import ssl

    from benchmarks.suite.model import Job, Sample

SERVE_ASGI: Final = "trionode.http"
HYPERCORN: Final = "hypercorn, own TLS"
UVICORN: Final = "uvicorn"

#: By title: the module in `benchmarks.suite.peers`, and what has to be installed for it.
SERVERS: Final = {
    SERVE_ASGI: ("asgi_ours", ("hypercorn",)),
    HYPERCORN: ("asgi_hypercorn", ("hypercorn",)),
    UVICORN: ("asgi_uvicorn", ("uvicorn",)),
}

REQUEST: Final = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n\r\n".encode()
_HEADERS: Final = [(":method", "GET"), (":authority", HOST), (":scheme", "https"), (":path", "/"), ("accept", "*/*")]

#: Connections that are asked in turn; and, of HTTP/2, requests at once on each.
CONNECTIONS: Final = 8
STREAMS: Final = 4


def connected(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection, its handshake done."""
    plain = socket.create_connection((ADDRESS, port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname=HOST)


def context_of(job: Job, protocol: str) -> ssl.SSLContext:
    """The client's TLS."""
    context = job.credentials.stdlib("client")
    context.set_alpn_protocols([protocol])
    return context


def response(connection: ssl.SSLSocket) -> int:
    """Read a whole response; its size."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head)
    [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < length:
        body += _some(connection)
    return len(head) + 4 + length


def _some(connection: ssl.SSLSocket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EOFError
    return data


def requests(job: Job) -> Sample:
    """Requests of HTTP/1.1, one after the other on each of several kept connections."""
    assert job.server is not None
    context = context_of(job, "http/1.1")
    rounds = -(-job.count // CONNECTIONS)
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(job.server.ports[0], context)) for _ in range(CONNECTIONS)]
        size = 0
        for connection in connections:
            connection.sendall(REQUEST)
            size = response(connection)  # the same each time
        with Stopwatch(job.server.pid) as watch:
            for _ in range(rounds):
                for connection in connections:
                    connection.sendall(REQUEST)
                for connection in connections:
                    left = size
                    while left:
                        left -= len(_some(connection))
    return watch.rate(rounds * CONNECTIONS)


class _HTTP2:
    """One connection of HTTP/2."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        import h2.connection

        self._secured = secured
        self._state: Any = h2.connection.H2Connection()
        self._state.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        data = self._state.data_to_send()
        if data:
            self._secured.sendall(data)

    def ask(self, times: int) -> None:
        """Send so many requests."""
        for _ in range(times):
            self._state.send_headers(self._state.get_next_available_stream_id(), _HEADERS, end_stream=True)
        self._flush()

    def hear(self, times: int) -> None:
        """Read so many responses."""
        import h2.events

        while times:
            for event in self._state.receive_data(_some(self._secured)):
                if isinstance(event, h2.events.DataReceived):
                    self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                times -= isinstance(event, h2.events.StreamEnded)
        self._flush()


def requests_2(job: Job) -> Sample:
    """Requests of HTTP/2, several at once on each of several connections."""
    assert job.server is not None
    context = context_of(job, "h2")
    each = CONNECTIONS * STREAMS
    rounds = -(-job.count // each)
    with ExitStack() as stack:
        secured = [stack.enter_context(connected(job.server.ports[0], context)) for _ in range(CONNECTIONS)]
        connections = [_HTTP2(each) for each in secured]
        with Stopwatch(job.server.pid) as watch:
            for _ in range(rounds):
                for connection in connections:
                    connection.ask(STREAMS)
                for connection in connections:
                    connection.hear(STREAMS)
    return watch.rate(rounds * each)


def connections(job: Job) -> Sample:
    """Connect, one request, close."""
    assert job.server is not None
    context = context_of(job, "http/1.1")
    with Stopwatch(job.server.pid) as watch:
        for _ in range(job.count):
            with connected(job.server.ports[0], context) as connection:
                connection.sendall(REQUEST)
                response(connection)
    return watch.rate(job.count)


def _contestants(measure: Any, *titles: str) -> list[Contestant]:
    return [
        Contestant(
            title=title,
            measure=partial(measure),
            peer=SERVERS[title][0],
            needs=SERVERS[title][1],
            placements=frozenset([Placement.TWO]),
            series=title,
        )
        for title in titles
    ]


def _scenario(name: str, measures: str, measure: Any, *titles: str, start: int) -> Scenario:
    return Scenario(
        name=name,
        measures=measures,
        unit="/s",
        better=Better.HIGHER,
        contestants=_contestants(measure, *titles),
        baseline=HYPERCORN,
        targets=[Target(of=SERVE_ASGI, against=HYPERCORN, at_most=1.1)],
        placements=[Placement.TWO],
        start=start,
        seconds=1.0,
        quick_start=start,
    )


SCENARIOS: Final = (
    _scenario(
        "http-requests",
        f"GET of a few bytes, HTTP/1.1, mutual TLS, {CONNECTIONS} kept connections.",
        requests,
        *SERVERS,
        start=64,
    ),
    _scenario(
        "http2-requests",
        f"The same over HTTP/2, {CONNECTIONS} connections with {STREAMS} requests at once on each.",
        requests_2,
        SERVE_ASGI,
        HYPERCORN,
        start=64,
    ),
    _scenario(
        "http-connections",
        "A new connection, mutual TLS, one GET over HTTP/1.1, closed again; one after the other.",
        connections,
        *SERVERS,
        start=8,
    ),
)
