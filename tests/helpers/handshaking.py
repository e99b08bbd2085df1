"""A handshake in memory between two TLS sessions, for tests of what each side makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionode._errors import HandshakeError

if TYPE_CHECKING:
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.session import TLSSession


class Ending:
    """How a handshake in memory ended on either side.

    Attributes:
        server: the server's error; None is success.
        client: the client's.
        server_session: the server's session.
        client_session: the client's.
    """

    def __init__(self, server: TLSSession, client: TLSSession) -> None:
        """Shake hands, and send one byte each way, so that a client learns what its server thinks of it."""
        self.server_session, self.client_session = server, client
        self.server: HandshakeError | None = None
        self.client: HandshakeError | None = None
        for _ in range(4):
            self.client = self.client or _step(client, server)
            self.server = self.server or _step(server, client)

    @property
    def verified(self) -> tuple[bool, bool]:
        """Whether the server verified its client, and the client its server."""
        return self.server_session.verified, self.client_session.verified


def shake_hands(server: TLSContexts, client: TLSContexts, *, reference: str = "localhost") -> Ending:
    """A whole handshake in memory, between the server's side of one contexts and the client's of another."""
    return Ending(server.server.session(), client.client.session(reference=reference))


def _step(session: TLSSession, peer: TLSSession) -> HandshakeError | None:
    try:
        if session.handshake():
            session.encrypt(b"x")
            session.decrypt(1)
    except HandshakeError as failure:
        return failure
    finally:
        peer.feed(session.outgoing())
    return None
