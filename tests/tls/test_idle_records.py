"""Records without data (KeyUpdate) are bounded; the peer is another OpenSSL, by ctypes, which can send them."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionode import CertManager, KeyPair, TLSStream, serve_tls
from trionode._tls import session as engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIBSSL = ctypes.util.find_library("ssl")
pytestmark = pytest.mark.skipif(LIBSSL is None, reason="no libssl on this system")

PATIENCE = 20


class Client:
    """A TLS client on a blocking socket, without verification."""

    def __init__(self, port: int) -> None:
        library = self._library = ctypes.CDLL(LIBSSL)
        pointer, number = ctypes.c_void_p, ctypes.c_int
        for name, result, arguments in (
            ("TLS_client_method", pointer, []),
            ("SSL_CTX_new", pointer, [pointer]),
            ("SSL_new", pointer, [pointer]),
            ("SSL_set_fd", number, [pointer, number]),
            ("SSL_connect", number, [pointer]),
            ("SSL_key_update", number, [pointer, number]),
            ("SSL_do_handshake", number, [pointer]),
            ("SSL_write", number, [pointer, ctypes.c_char_p, number]),
            ("SSL_free", None, [pointer]),
            ("SSL_CTX_free", None, [pointer]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setblocking(True)
        self._context = library.SSL_CTX_new(library.TLS_client_method())
        self._ssl = library.SSL_new(self._context)
        library.SSL_set_fd(self._ssl, self._socket.fileno())
        assert library.SSL_connect(self._ssl) == 1

    def key_update(self) -> bool:
        """Send a KeyUpdate that asks for one in return; whether that could be sent."""
        return bool(self._library.SSL_key_update(self._ssl, 1) == 1 and self._library.SSL_do_handshake(self._ssl) == 1)

    def write(self, data: bytes) -> bool:
        """Send one record of data; whether that could be sent."""
        return bool(self._library.SSL_write(self._ssl, data, len(data)) == len(data))

    def close(self) -> None:
        """Without a word of TLS; once the server has, for it may read what a reset would take away."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(65536):
                pass
        self._library.SSL_free(self._ssl)
        self._library.SSL_CTX_free(self._context)
        self._socket.close()

    def run(self, plan: str) -> int:
        """Send `k` KeyUpdates and `d` records of one byte, as a plan says; how many could be sent."""
        try:
            for done, step in enumerate(plan):
                if not (self.key_update() if step == "k" else self.write(b"x")):
                    return done
            return len(plan)
        finally:
            self.close()


@asynccontextmanager
async def server(handler: Callable[[TLSStream], Awaitable[None]]) -> AsyncIterator[int]:
    """The port of a server that verifies nobody."""
    certs = CertManager(KeyPair.self_signed("localhost"))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            serve: Any = partial(serve_tls, handler, 0, cert_manager=certs, host="127.0.0.1")
            listeners = await nursery.start(serve)
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def what_becomes_of(plan: str) -> tuple[bytes, str, int]:
    """What a server received of a plan, how that ended, and how many steps the client could do."""
    received, ended, done = bytearray(), "", trio.Event()

    async def handler(stream: TLSStream) -> None:
        nonlocal ended
        try:
            while data := await stream.receive_some():
                received.extend(data)
        except trio.BrokenResourceError as exc:
            ended = str(exc)
        finally:
            done.set()

    async with server(handler) as port:
        steps = await trio.to_thread.run_sync(lambda: Client(port).run(plan))
        await done.wait()
    return bytes(received), ended, steps


@pytest.mark.parametrize(
    "plan",
    ["k" * 20, "k" * 20 + "d" * 10, "dk" * 30, ("d" * 200 + "k") * 50],
    ids=["a few", "a few first", "a few between", "now and then"],
)
async def test_honest_key_updates_pass(plan: str) -> None:
    """Every byte arrives, and the connection ends as the client ends it."""
    received, ended, steps = await what_becomes_of(plan)
    assert steps == len(plan)
    assert len(received) == plan.count("d")
    assert "without a word" in ended  # a client that closes its socket without close_notify


@pytest.mark.parametrize(
    "plan", ["k" * 5000, ("d" + "k" * 15) * 300, ("dk") * 3000], ids=["nothing else", "as Go lets pass", "half of it"]
)
async def test_a_flood_ends_the_connection(plan: str) -> None:
    """After some dozens, whatever data there is between them."""
    received, ended, _ = await what_becomes_of(plan)
    assert "too many records without data" in ended
    assert len(received) < 200


async def test_the_event_loop_has_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one read brings is decrypted in lots, and another task runs between any two of them."""
    monkeypatch.setattr(engine, "_IDLE_RECORDS", 10**6)
    monkeypatch.setattr(engine, "_UNANSWERED", 10**6)
    lots, turns = 0, 0
    real = engine.RecordScanner.feed

    def feed(self: engine.RecordScanner, data: bytes) -> int:
        nonlocal lots
        lots += 1
        before = self.total
        taken = real(self, data)
        assert self.total - before <= 64
        return taken

    monkeypatch.setattr(engine.RecordScanner, "feed", feed)

    async def watch() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        received, _, steps = await what_becomes_of("k" * 2000 + "d")
        nursery.cancel_scope.cancel()
    assert (received, steps) == (b"x", 2001)
    assert turns > lots > 2000 / 64


async def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much data comes, what OpenSSL would answer does not pile up: it is sent, or the connection ends."""
    waiting: list[int] = []
    real = engine.TLSSession._bound_idle_records

    def bound(session: engine.TLSSession) -> None:
        real(session)
        waiting.append(0 if session._failure else session._idle_records - session._answered)

    monkeypatch.setattr(engine.TLSSession, "_bound_idle_records", bound)
    plan = ("d" * 64 + "k") * 600
    received, ended, _ = await what_becomes_of(plan)
    assert max(waiting) <= engine._UNANSWERED
    assert "too many records without data" in ended or len(received) == plan.count("d")
