"""Violations of HTTP/2 (RFC 9113), frame by frame, as h2spec has them: each is answered by its error."""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import h2.connection
import httpx2
import pytest
import trio
from hpack import Encoder

from asgi_apps import Recorder, serving
from trionode import CertAuthManager, open_tls_stream
from trionode.http import HTTPTransport

if TYPE_CHECKING:
    from trionode.pki import CertificateAuthority


class Kind(IntEnum):
    """Of frames (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


#: Error codes (RFC 9113 section 7).
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM = 1, 3, 6, 11

#: Flags: END_STREAM, END_HEADERS, PADDED.
END, WHOLE, PADDED = 1, 4, 8

GET: Final = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
POST: Final = [(":method", "POST"), *GET[1:]]


def frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(*fields: tuple[str, str], stream: int = 1, flags: int = END | WHOLE) -> bytes:
    """A request's HEADERS, of any fields."""
    return frame(Kind.HEADERS, flags, stream, Encoder().encode(list(fields), huffman=False))


BEGUN: Final = request(*POST, flags=WHOLE)
GIANT: Final = b"".join(
    frame(Kind.CONTINUATION, WHOLE * (n == 59), 1, Encoder().encode([(f"x-{n}", "y" * 2000)], huffman=False))
    for n in range(60)
)

VIOLATIONS: Final = {
    "SETTINGS, acknowledging with content": (frame(Kind.SETTINGS, 1, 0, bytes(6)), PROTOCOL_ERROR),
    "SETTINGS, cut off": (frame(Kind.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "SETTINGS of a stream": (frame(Kind.SETTINGS, 0, 1), PROTOCOL_ERROR),
    "SETTINGS: a window beyond 2**31": (frame(Kind.SETTINGS, 0, 0, b"\0\4" + b"\xff" * 4), FLOW_CONTROL_ERROR),
    "SETTINGS: frames of one byte": (frame(Kind.SETTINGS, 0, 0, b"\0\5\0\0\0\1"), PROTOCOL_ERROR),
    "SETTINGS: push, neither way": (frame(Kind.SETTINGS, 0, 0, b"\0\2\0\0\0\2"), PROTOCOL_ERROR),
    "HEADERS of an even stream": (request(*GET, stream=2), PROTOCOL_ERROR),
    "HEADERS of no stream": (request(*GET, stream=0), PROTOCOL_ERROR),
    "HEADERS of an earlier stream": (request(*GET, stream=5) + request(*GET, stream=3), PROTOCOL_ERROR),
    "HEADERS that are not HPACK": (frame(Kind.HEADERS, END | WHOLE, 1, b"\xff" * 8), PROTOCOL_ERROR),
    "HEADERS: a giant HPACK table": (frame(Kind.HEADERS, END | WHOLE, 1, b"\x3f\xff\xff\xff\x0f"), PROTOCOL_ERROR),
    "HEADERS: trailers with a method": (BEGUN + request(*GET), PROTOCOL_ERROR),
    "HEADERS: 120 kB of them": (request(*GET, flags=END) + GIANT, ENHANCE_YOUR_CALM),
    "an upper-case name": (request(*GET, ("X-Upper", "1")), PROTOCOL_ERROR),
    "no path": (request(GET[0], *GET[2:]), PROTOCOL_ERROR),
    "an empty path": (request(GET[0], (":path", ""), *GET[2:]), PROTOCOL_ERROR),
    "two methods": (request(GET[0], *GET), PROTOCOL_ERROR),
    "an unknown pseudo-header": (request((":x", "1"), *GET), PROTOCOL_ERROR),
    "a pseudo-header behind others": (request(GET[0], *GET[2:], ("x", "1"), GET[1]), PROTOCOL_ERROR),
    "connection: close": (request(*GET, ("connection", "close")), PROTOCOL_ERROR),
    "te: gzip": (request(*GET, ("te", "gzip")), PROTOCOL_ERROR),
    "a line break in a value": (request(*GET, ("x", "a\r\nb")), PROTOCOL_ERROR),
    "another length than was said": (
        request(*POST, ("content-length", "5"), flags=WHOLE) + frame(Kind.DATA, END, 1, b"x"),
        PROTOCOL_ERROR,
    ),
    "DATA of no stream": (frame(Kind.DATA, END, 0, b"x"), PROTOCOL_ERROR),
    "DATA of an idle stream": (frame(Kind.DATA, END, 1, b"x"), PROTOCOL_ERROR),
    "DATA, larger than allowed": (BEGUN + frame(Kind.DATA, 0, 1, bytes(2**14 + 1)), FRAME_SIZE_ERROR),
    "DATA of padding alone": (BEGUN + frame(Kind.DATA, PADDED, 1, b"\xff"), PROTOCOL_ERROR),
    "WINDOW_UPDATE of nothing": (frame(Kind.WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "WINDOW_UPDATE of nothing, of a stream": (BEGUN + frame(Kind.WINDOW_UPDATE, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "WINDOW_UPDATE, cut off": (frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "WINDOW_UPDATE beyond 2**31": (frame(Kind.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2, FLOW_CONTROL_ERROR),
    "CONTINUATION of nothing": (frame(Kind.CONTINUATION, WHOLE, 1), PROTOCOL_ERROR),
    "CONTINUATION without end": (request(*GET, flags=END) + frame(Kind.CONTINUATION, 0, 1) * 200, PROTOCOL_ERROR),
    "PING between HEADERS": (request(*GET, flags=END) + frame(Kind.PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "PING, cut off": (frame(Kind.PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "PING of a stream": (frame(Kind.PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "PRIORITY over itself": (BEGUN + frame(Kind.PRIORITY, 0, 1, b"\0\0\0\1\x10"), PROTOCOL_ERROR),
    "PRIORITY, cut off": (frame(Kind.PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "RST_STREAM of an idle stream": (frame(Kind.RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "RST_STREAM, cut off": (BEGUN + frame(Kind.RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "PUSH_PROMISE of a client": (frame(Kind.PUSH_PROMISE, WHOLE, 1, b"\0\0\0\2"), PROTOCOL_ERROR),
    "GOAWAY of a stream": (frame(Kind.GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
}


@pytest.fixture
def certs(ca: CertificateAuthority) -> CertAuthManager:
    """A manager for either side."""
    return CertAuthManager(ca.issue("localhost"), root_cas=ca.pool)


async def errors_of(certs: CertAuthManager, port: int, sent: bytes) -> list[int]:
    """The error codes of all GOAWAY frames that answer something, up to the connection's end."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    received = b""
    async with await open_tls_stream("localhost", port, cert_manager=certs, alpn=["h2"]) as stream:
        await stream.send_all(client.data_to_send() + sent)
        async for data in stream:
            received += data
    codes = []
    while received:
        length = int.from_bytes(received[:3], "big")
        if received[3] == Kind.GOAWAY:
            codes.append(int.from_bytes(received[13:17], "big"))
        received = received[9 + length :]
    return codes


async def test_every_violation_is_answered_by_its_error(
    certs: CertAuthManager, caplog: pytest.LogCaptureFixture
) -> None:
    """By GOAWAY with the error that the specification has for it; no application sees the request, and others go on."""
    app = Recorder()
    async with serving(app, certs) as port:
        found = {what: await errors_of(certs, port, sent) for what, (sent, _) in VIOLATIONS.items()}
        assert found == {what: [code] for what, (_, code) in VIOLATIONS.items()}
        async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs, http2=True)) as client:
            assert (await client.get(f"https://localhost:{port}/")).http_version == "HTTP/2"
    assert [scope["method"] for scope in app.scopes] == ["GET"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "flood",
    [frame(Kind.SETTINGS, 0, 0, b"\0\4\0\0\xff\xff"), frame(Kind.PING, 0, 0, bytes(8)), frame(Kind.DATA, 0, 1)],
    ids=["settings", "ping", "empty data"],
)
async def test_floods_of_what_is_allowed(certs: CertAuthManager, flood: bytes) -> None:
    """A thousand frames that mean nothing: other clients are served meanwhile."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    async with serving(Recorder(), certs) as port:
        async with await open_tls_stream("localhost", port, cert_manager=certs, alpn=["h2"]) as stream:
            await stream.send_all(client.data_to_send() + BEGUN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, flood * 1000)
                async with httpx2.AsyncClient(transport=HTTPTransport(cert_manager=certs)) as other:
                    assert (await other.get(f"https://localhost:{port}/")).status_code == 200
                nursery.cancel_scope.cancel()
