"""Driving a TLS handshake over any Trio stream.

Theory. `server_handshake` and `client_handshake` own the transport: on failure or cancellation they close it, on
success the `TLSStream` that they return owns it. Deadlines are the caller's.

A refusing side flushes its alert, half-closes, reads on for a bounded time, then closes. Closing with unread bytes
would send a TCP reset, which may overtake the alert. A side whose send fails reads before it reports: the alert that
says why may already be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from trionode._errors import HandshakeError, HandshakeReason, Stage
from trionode._transport.sockets import address_of, receive, send
from trionode._util.text import Address, Buffer, at

from .failures import Misbehaved, TLSFailure, failure_error
from .stream import TLSStream, quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography import x509

    from trionode._identity.names import NodeName

    from .contexts import TLSContexts
    from .session import TLSSession

#: How long a refusing side reads on, so that its alert arrives before the close does. Seconds.
LINGER: Final = 1.0
#: How much it reads meanwhile: no honest peer has more than a flight under way.
LINGER_BYTES: Final = 256 * 1024

#: What a peer may send until the handshake is done: it is not authenticated yet. Bytes, several times what a long chain
#: of certificates takes; OpenSSL alone would collect twice that.
MAX_FLIGHTS: Final = 64 * 1024

_FLIGHT_READ: Final = 16 * 1024


async def server_handshake(
    transport: trio.abc.Stream,
    contexts: TLSContexts,
    *,
    received: Buffer = b"",
    alpn: Sequence[str] = (),
    decided: Callable[[], None] = lambda: None,
    greeted: Callable[[], None] = lambda: None,
) -> TLSStream:
    """Run the server side of a handshake; owns the transport and closes it on failure or cancellation.

    Args:
        transport: where the client is.
        contexts: what to present and to ask for.
        received: bytes that were already read from the transport.
        alpn: protocols in order of preference; a client that offers only others is refused.
        decided: called when we refuse, before the time is taken to deliver the alert.
        greeted: called when the client has sent a whole ClientHello that we can answer.

    Raises:
        PeerUnverifiedError: we refused the client.
        PeerRejectedError: the client refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    session = contexts.server.session(alpn=[protocol.encode("ascii") for protocol in alpn])
    session.feed(received)
    presented = contexts.key_pair.certificate
    address = address_of(transport)
    await _handshake(transport, session, contexts, presented, address, decided, greeted, flush_last_flight=False)
    return TLSStream(transport, session, contexts, presented, address)


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
) -> TLSStream:
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

    Raises:
        PeerUnverifiedError: we refused the server.
        PeerRejectedError: the server refused us.
        HandshakeError: it broke off, or spoke something else.
    """
    try:
        session = contexts.client.session(
            reference=reference,
            node=node,
            alpn=[protocol.encode("ascii") for protocol in alpn],
            insecure_skip_verify=insecure_skip_verify,
        )
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    presented = contexts.key_pair.certificate
    address = address_of(transport)
    await _handshake(
        transport,
        session,
        contexts,
        presented,
        address,
        decided,
        flush_last_flight=flush_last_flight,
        insist_on_alpn=insist_on_alpn,
    )
    return TLSStream(transport, session, contexts, presented, address)


async def _handshake(
    transport: trio.abc.Stream,
    session: TLSSession,
    contexts: TLSContexts,
    presented: x509.Certificate,
    address: Address | None,
    decided: Callable[[], None],
    greeted: Callable[[], None] = lambda: None,
    *,
    flush_last_flight: bool = True,
    insist_on_alpn: bool = False,
) -> None:
    try:
        try:
            await _exchange_flights(
                transport, session, greeted, flush_last_flight=flush_last_flight, insist=insist_on_alpn
            )
        except TLSFailure:
            decided()
            await _linger(transport, session)  # noqa: ASYNC120 -- bounded, and a cancellation matters more
            raise
    except TLSFailure as exc:
        await trio.aclose_forcefully(transport)
        error = failure_error(exc, address, contexts.generation, presented)
        raise error from error.__cause__
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(transport)
        msg = f"the connection{at(address)} broke during the TLS handshake: {exc.__cause__ or exc}"
        raise HandshakeError(
            msg, stage=Stage.TLS, reason=HandshakeReason.BROKEN, address=address, generation=contexts.generation
        ) from exc
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def _exchange_flights(
    transport: trio.abc.Stream,
    session: TLSSession,
    greeted: Callable[[], None],
    *,
    flush_last_flight: bool,
    insist: bool,
) -> None:
    send_failure: trio.BrokenResourceError | None = None
    received = 0
    while True:
        done = session.handshake()
        if done and insist and session.alpn is None:
            session.outgoing()  # dropped: it holds our certificate, and this is no peer of ours
            failure = Misbehaved(HandshakeReason.NO_APPLICATION_PROTOCOL)
            raise failure
        if not done or flush_last_flight:
            outgoing = session.outgoing()
            if outgoing and send_failure is None:
                greeted()
                try:
                    await send(transport, outgoing)
                except trio.BrokenResourceError as exc:
                    send_failure = exc  # read on: the alert that says why may already be here
        if done:
            if send_failure is not None:
                raise send_failure
            return
        if received >= MAX_FLIGHTS:
            failure = Misbehaved("excessive message size")
            raise failure
        data = await receive(transport, _FLIGHT_READ)
        if data:
            received += len(data)
            session.feed(data)
        elif send_failure is not None:
            raise send_failure
        else:
            session.feed_eof()


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


async def drain_and_close(stream: TLSStream) -> None:
    """Close a stream on which we just said why we refuse: half-close, read on for a bounded time, close."""
    try:
        with trio.move_on_after(LINGER):
            await quietly(_say_and_drain(stream, b""))
    finally:
        await stream.aclose()
