"""Ctrl-C: a signal at the worst moment ends the program, is not lost, and becomes no verdict about a peer."""

from __future__ import annotations

import signal
import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
import trio
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi

from trionode import (
    AcceptorOptions,
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    NetworkOptions,
    NodeOptions,
    Route,
    TrionodeError,
    open_node,
)
from trionode._identity.names import SubjectNames
from trionode._tls import contexts, engine, session, verification
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable

CA = CertificateAuthority.create()
ALPHA, BETA = "alpha@localhost", "beta@localhost"

#: What runs while OpenSSL is entered, on either side; and what must not be torn.
PLACES: dict[str, tuple[Any, str]] = {
    "the name check": (SubjectNames, "of"),
    "ALPN": (engine, "_select_alpn"),
    "the certificate request": (verification.Examination, "asked"),
    "a handshake": (session.TLSSession, "_conclude"),
    "a take of contexts": (contexts.ContextsChannel, "current"),
}


def interrupted(function: Any) -> Callable[..., Any]:
    """A function at whose beginning and end, the third time that it is called, somebody presses Ctrl-C."""
    calls = 0

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        result = function(*args, **kwargs)
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    return wrapper


def options(name: str) -> NodeOptions:
    """A node with mutual TLS on a free port of loopback."""
    mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    certs = CertAuthManager(CA.issue(name), client_cas=CA.pool, client_auth=mode, root_cas=CA.pool)
    return NodeOptions(
        cert_manager=certs, network=NetworkOptions(acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    )


async def connect_and_close(refused: list[TrionodeError]) -> None:
    """Again and again, for so many times that a signal which was lost shows."""
    with trio.fail_after(20):
        async with open_node(BETA, options(BETA)) as beta, open_node(ALPHA, options(ALPHA)) as alpha:
            host, port = beta.acceptors[0].address
            for _ in range(20):
                try:
                    connection = await alpha.connect(BETA, Route(host=host, port=port))
                except HandshakeError as exc:
                    refused.append(exc)
                else:
                    await connection.aclose()


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_under_openssl_ends_the_program(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where cffi would swallow it, and a valid peer be refused for it."""
    owner, name = PLACES[place]
    found = vars(owner)[name]
    match found:
        case property():
            assert found.fget is not None
            replacement: Any = property(interrupted(found.fget))
        case classmethod():
            replacement = classmethod(interrupted(found.__func__))
        case _:
            replacement = interrupted(found)
    monkeypatch.setattr(owner, name, replacement)
    refused: list[TrionodeError] = []
    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- a group, where a task of ours had it
        trio.run(connect_and_close, refused)
    assert only_interrupts(caught.value), caught.value
    assert not refused


def only_interrupts(exc: BaseException) -> bool:
    """Whether there is nothing else in it."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(only_interrupts, exc.exceptions))
    return isinstance(exc, KeyboardInterrupt)


@pytest.mark.parametrize("change", ["update", "rotate_trust"])
def test_a_signal_while_openssl_gives_memory_back(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its binding does that in Python, under C, while a rotation is prepared."""
    real, pressed = crypto._new_mem_buf, list[bool]()

    def new_mem_buf(buffer: bytes | None = None) -> Any:
        bio = real(buffer)

        def free(_: Any) -> None:
            nonlocal bio
            del bio
            if not pressed:
                pressed.append(True)
                signal.raise_signal(signal.SIGINT)

        return ffi.gc(ffi.cast("BIO *", bio), free)

    async def main() -> None:
        manager = options(BETA).cert_manager
        assert isinstance(manager, CertAuthManager)
        key_pair, other = CA.issue(BETA), CertificateAuthority.create()
        monkeypatch.setattr(crypto, "_new_mem_buf", new_mem_buf)
        if change == "update":
            manager.update(key_pair)
        else:
            manager.rotate_trust(client_cas=CA.pool | other.pool, root_cas=CA.pool | other.pool)
        assert pressed
        assert manager.generation == 2
        await trio.lowlevel.checkpoint()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


def test_a_publication_is_not_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation that a signal hits has happened, and the channel still gives contexts."""
    seen: list[int] = []
    armed = False
    real = trio.MemoryReceiveChannel.receive_nowait
    presses = 0

    def receive_nowait(self: trio.MemoryReceiveChannel[Any]) -> Any:
        nonlocal presses
        taken = real(self)
        if presses == 0 and armed:
            presses += 1
            signal.raise_signal(signal.SIGINT)
        return taken

    async def rotate() -> None:
        nonlocal armed
        certs = options(ALPHA).cert_manager
        armed = True
        try:
            certs.update(CA.issue(ALPHA))
            await trio.lowlevel.checkpoint()
        finally:
            armed = False
            with trio.CancelScope(shield=True):
                seen.append((await certs.contexts.receive()).generation)

    monkeypatch.setattr(trio.MemoryReceiveChannel, "receive_nowait", receive_nowait)
    with pytest.raises(KeyboardInterrupt):
        trio.run(rotate)
    assert seen == [2]


def test_a_signal_while_a_session_is_forgotten() -> None:
    """By a callback of a weak reference pyOpenSSL notices that, and what is raised in one is lost."""

    def press(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    async def forget() -> None:
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        known = weakref.ref(connection, press)
        made = session.TLSSession.__new__(session.TLSSession)
        made._connection = connection
        del connection
        assert known() is not None
        del made
        await trio.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        trio.run(forget)
