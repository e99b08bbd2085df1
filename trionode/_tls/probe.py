"""One TLS handshake, to see what is there: for the command line, which explains why a connection fails.

Theory. What a session meets is kept, not judged: how far it came, what the server presented and asked for, and what
ended it. A failure is as good an answer as success. In TLS 1.3 a client has finished before the server has judged its
certificate, so after the handshake it is listened for a moment: an alert is the verdict, and whatever else the server
sends says that it went on. Silence says nothing, and is told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import HandshakeError
from trionode._transport.sockets import receive
from trionode._util.text import printable

from .handshake import exchange_flights
from .stream import quietly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509

    from .session import TLSSession

_RECEIVE_SIZE: Final = 16 * 1024

#: How much is kept of what a server says first: enough to recognise a protocol by.
_FIRST_BYTES: Final = 60


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What one handshake showed.

    Attributes:
        finished: whether it came to its end on this side.
        went_on: whether the server sent something after that: it has accepted what we presented.
        failure: what ended it, or the connection soon after it; None if nothing did.
        chain: what the server presented, its leaf first.
        certificate_requested: whether it asked for our certificate.
        requested_cas: the CAs that it says it accepts (DER to text); empty if it does not say.
        tls_version: `TLSv1.3`, or an older one.
        cipher: the cipher suite's name.
        alpn: the application protocol that was agreed on, or None.
        first_words: how the server's first bytes read, if they are not TLS.
    """

    finished: bool
    went_on: bool
    failure: HandshakeError | None
    chain: tuple[x509.Certificate, ...]
    certificate_requested: bool
    requested_cas: Mapping[bytes, str]
    tls_version: str
    cipher: str | None
    alpn: str | None
    first_words: str | None


async def inspect(transport: trio.abc.Stream, session: TLSSession, *, patience: float) -> Inspection:
    """Shake hands as a client, and look. Does not close the transport; unbounded but for `patience`.

    Args:
        transport: where the server is.
        session: fresh; what it presents and verifies is its own.
        patience: how long the server's verdict on our certificate is waited for, where it asked for one. Seconds.
    """
    first = bytearray()
    finished = went_on = False
    failure: HandshakeError | None = None
    try:
        await exchange_flights(transport, session, heard=first.extend, flush_last_flight=False)
        finished = True
        await quietly(transport.send_all(session.outgoing()))  # where it fails, what there is to read may say why
        if session.certificate_requested:
            with trio.move_on_after(patience):
                data = await receive(transport, _RECEIVE_SIZE)
                if data:
                    session.feed(data)
                else:
                    session.feed_eof()
                session.decrypt(_RECEIVE_SIZE)
                went_on = bool(data)
    except HandshakeError as exc:
        failure = exc
        with trio.move_on_after(patience):
            await quietly(transport.send_all(session.outgoing()))  # an alert, if there is one: manners
    except trio.BrokenResourceError as exc:
        failure = session.errors.truncated(str(exc.__cause__ or exc))
    return Inspection(
        finished=finished,
        went_on=went_on,
        failure=failure,
        chain=session.shown_chain,
        certificate_requested=session.certificate_requested,
        requested_cas=session.requested_cas,
        tls_version=session.tls_version,
        cipher=session.cipher,
        alpn=session.alpn,
        first_words=None if _is_tls(bytes(first)) else printable(first[:_FIRST_BYTES].decode("latin-1"), _FIRST_BYTES),
    )


def _is_tls(first: bytes) -> bool:
    """Whether a server's first bytes may be a record: alert or handshake, version 3.x (RFC 8446 section 5.1)."""
    return not first or (first[0] in (21, 22) and first[1:2] in (b"", b"\x03"))
