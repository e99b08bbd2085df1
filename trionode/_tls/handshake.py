"""Driving a TLS handshake over any Trio stream.

Theory. `server_handshake` and `client_handshake` own the transport: on failure or cancellation they close it, on
success the `SessionStream` that they return owns it. Deadlines are the caller's.

A refusing side flushes its alert, half-closes, reads on for a bounded time, then closes. Closing with unread bytes
would send a TCP reset, which may overtake the alert. A side whose send fails reads before it reports: the alert that
says why may already be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from trionode._errors import HandshakeError, HandshakeReason, PeerUnverifiedError
from trionode._transport.sockets import address_of, receive, send
from trionode._util.home import close_in_children
from trionode._util.text import Buffer, at
from trionode._util.turns import Turn

from .failures import HandshakeErrors
from .stream import SessionStream, quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionode._identity.names import NodeName

    from .contexts import TLSContexts
    from .session import TLSSession

#: How long a refusing side reads on, so that its alert arrives before the close does. Seconds.
LINGER: Final = 1.0
#: How much it reads meanwhile: no honest peer has more than a flight under way.
LINGER_BYTES: Final = 256 * 1024

#: What a peer may send until the handshake is done: it is not authenticated yet. Bytes; OpenSSL alone would collect
#: 100 KiB of certificates, and parse them at once. A server's flight may name hundreds of CAs. A client's is its
#: certificates: what is longer than this is not parsed, and what is not takes 2 ms of a core. Three certificates with
#: ML-DSA-87, the largest of the post-quantum signatures, are 22 KiB.
MAX_FLIGHTS: Final = 64 * 1024
MAX_CLIENT_FLIGHTS: Final = 32 * 1024

_FLIGHT_READ: Final = 16 * 1024

# A record's content type, and the level of an alert (RFC 8446 sections 5.1 and 6).
_ALERT, _FATAL = 21, 2

#: The alert to a client that asks for a server name that is not served (RFC 6066 section 3).
UNRECOGNIZED_NAME: Final = 112

#: A handshake has three flights; twice that is a handshake that does not end.
_MEMORY_ROUNDS: Final = 6


async def server_handshake(
    transport: trio.abc.Stream,
    contexts: TLSContexts,
    *,
    received: Buffer = b"",
    alpn: Sequence[str] = (),
    decided: Callable[[], None] = lambda: None,
    greeted: Callable[[], None] = lambda: None,
    errors: HandshakeErrors | None = None,
) -> SessionStream:
    """Run the server side of a handshake; owns the transport and closes it on failure or cancellation.

    Args:
        transport: where the client is.
        contexts: what to present and to ask for.
        received: bytes that were already read from the transport.
        alpn: protocols in order of preference; a client that offers only others is refused.
        decided: called when we refuse, before the time is taken to deliver the alert.
        greeted: called when the client has sent a whole ClientHello that we can answer.
        errors: builds what it raises; by default by what transport and contexts say.

    Raises:
        PeerUnverifiedError: we refused the client.
        PeerRejectedError: the client refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    session = contexts.server.session(
        errors=errors or _errors(transport, contexts), alpn=[protocol.encode("ascii") for protocol in alpn]
    )
    session.feed(received)
    limit = MAX_CLIENT_FLIGHTS - len(received)
    await _run(transport, session, decided, greeted, flush_last_flight=False, limit=limit)
    return SessionStream(transport, session, contexts)


async def client_handshake(
    transport: trio.abc.Stream,
    contexts: TLSContexts,
    *,
    reference: str,
    node: NodeName | None = None,
    alpn: Sequence[str] = (),
    insist_on_alpn: bool = False,
    flush_last_flight: bool = True,
    insecure_skip_verify: bool = False,
    decided: Callable[[], None] = lambda: None,
    errors: HandshakeErrors | None = None,
) -> SessionStream:
    """Run the client side of a handshake; owns the transport and closes it on failure or cancellation.

    Args:
        transport: where the server is.
        contexts: what to present and to verify with.
        reference: the canonical host that the server's certificate must cover.
        node: the node name that its URI SANs, if any, must admit.
        alpn: protocols to offer.
        insist_on_alpn: fail, before our certificate is sent, unless one of them was selected.
        flush_last_flight: send our last flight, certificate and all; else it goes with the first that is sent.
        insecure_skip_verify: accept any certificate under any name.
        decided: called when we refuse, before the time is taken to deliver the alert.
        errors: builds what it raises; by default by what transport and contexts say.

    Raises:
        PeerUnverifiedError: we refused the server.
        PeerRejectedError: the server refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    try:
        session = contexts.client.session(
            reference=reference,
            node=node,
            errors=errors or _errors(transport, contexts),
            alpn=[protocol.encode("ascii") for protocol in alpn],
            insist_on_alpn=insist_on_alpn,
            insecure_skip_verify=insecure_skip_verify,
        )
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    await _run(transport, session, decided, flush_last_flight=flush_last_flight)
    return SessionStream(transport, session, contexts)


def _errors(transport: trio.abc.Stream, contexts: TLSContexts) -> HandshakeErrors:
    return HandshakeErrors(
        address=address_of(transport), generation=contexts.generation, presented=contexts.key_pair.certificate
    )


async def _run(
    transport: trio.abc.Stream,
    session: TLSSession,
    decided: Callable[[], None],
    greeted: Callable[[], None] = lambda: None,
    *,
    flush_last_flight: bool,
    limit: int = MAX_FLIGHTS,
) -> None:
    """Exchange flights; on failure deliver what is still to be said, and close."""
    if isinstance(transport, trio.SocketStream):  # the application may have made it
        close_in_children(transport.socket)
    try:
        try:
            await exchange_flights(
                transport, session, greeted=greeted, flush_last_flight=flush_last_flight, limit=limit
            )
        except HandshakeError:
            decided()
            await _linger(transport, session)  # noqa: ASYNC120 -- bounded, and a cancellation matters more
            raise
        except trio.BrokenResourceError as exc:
            text = f"the connection{at(session.errors.address)} broke during the TLS handshake: {exc.__cause__ or exc}"
            raise session.errors.failed(HandshakeReason.BROKEN, text, exc) from exc
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def exchange_flights(
    transport: trio.abc.Stream,
    session: TLSSession,
    *,
    flush_last_flight: bool = True,
    limit: int = MAX_FLIGHTS,
    greeted: Callable[[], None] = lambda: None,
    heard: Callable[[bytes], None] = lambda _: None,
) -> None:
    """Exchange flights until this side's handshake is done. The transport stays the caller's, and so do deadlines.

    Args:
        transport: where the peer is.
        session: fresh.
        flush_last_flight: send our last flight; else it goes with the first that is sent.
        limit: how much the peer may send until then. Bytes.
        greeted: called when the peer has sent something that we can answer.
        heard: called with what the peer sent.

    Raises:
        HandshakeError: we refused the peer, it refused us, or spoke something else; `session.outgoing()` may hold an
            alert for it.
        trio.BrokenResourceError: the transport broke.
    """
    send_failure: trio.BrokenResourceError | None = None
    received = 0
    with Turn() as turn:
        while True:
            done = await turn.run(session.handshake)
            outgoing = session.outgoing() if flush_last_flight or not done else b""
            if outgoing and send_failure is None:
                greeted()
                try:
                    await send(transport, outgoing)
                except trio.BrokenResourceError as exc:
                    send_failure = exc  # read on: the alert that says why may already be here
            if done:
                break
            if received >= limit:
                raise session.errors.misbehaved("excessive message size")
            data = await receive(transport, min(_FLIGHT_READ, limit - received))
            heard(data)
            received += len(data)
            if data:
                session.feed(data)
            elif send_failure is None:
                session.feed_eof()
            else:
                break
    if send_failure is not None:
        raise send_failure


def handshake_in_memory(server: TLSSession, client: TLSSession) -> HandshakeError | None:
    """Shake hands between two sessions of this process; what ended it, or None.

    A refusal, rather than what the other side was told of it.

    Args:
        server: fresh.
        client: fresh.
    """
    failures: list[HandshakeError] = []
    for _ in range(_MEMORY_ROUNDS):
        for session, peer in ((client, server), (server, client)):
            try:
                if session.handshake():
                    session.decrypt(1)  # a client hears only now what the server thought of it
            except HandshakeError as failure:
                failures.append(failure)
            peer.feed(session.outgoing())
        if failures:
            break
    return next(
        (failure for failure in failures if isinstance(failure, PeerUnverifiedError)), next(iter(failures), None)
    )


async def _linger(transport: trio.abc.Stream, session: TLSSession) -> None:
    """Deliver what the session still has to say: flush, half-close, read on for a bounded time."""
    with trio.move_on_after(LINGER):
        await quietly(_say_and_drain(transport, session.outgoing()))


async def _say_and_drain(transport: trio.abc.Stream, last_words: bytes) -> None:
    if last_words:
        await transport.send_all(last_words)
    if isinstance(transport, trio.abc.HalfCloseableStream):
        await transport.send_eof()
    drained = 0
    while drained < LINGER_BYTES and (data := await transport.receive_some()):
        drained += len(data)


async def refuse_hello(transport: trio.abc.Stream, alert: int) -> None:
    """Refuse a client before there is a session: send a fatal alert, let it arrive, close. Bounded, as a refusal is.

    Args:
        transport: whose ClientHello was read; owned.
        alert: its code (RFC 8446 section 6).
    """
    record = bytes([_ALERT, 3, 3, 0, 2, _FATAL, alert])
    try:
        with trio.move_on_after(LINGER):
            await quietly(_say_and_drain(transport, record))
    finally:
        await trio.aclose_forcefully(transport)


async def drain_and_close(stream: SessionStream, last_words: bytes = b"") -> None:
    """Close a stream so that what was said last arrives: half-close, read on for a bounded time, close.

    Args:
        stream: on which we say, or have just said, why we refuse; owned.
        last_words: what is still to be said.
    """
    try:
        with trio.move_on_after(LINGER):
            await quietly(_say_and_drain(stream, last_words))
    finally:
        await stream.aclose()
