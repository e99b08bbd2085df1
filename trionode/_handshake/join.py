"""Joining: the proof that a new TLS session is between the same two nodes as a connection that is there.

Theory. A hand-over moves a live connection, with everything that is under way on it, to a second link. Whoever could
join a link of his own to somebody else's connection would have all of that, so certificates alone must not do: a
certificate says who somebody is, not that it is this very program, with this connection. The proof is an HMAC-SHA256
whose key only the two ends of *both* sessions have: the exporters (RFC 8446 section 7.5) of the link that the
connection is on and of the new one. It covers the prover's role, the connection, the attempt, both node names and
incarnations, and the leaf certificates that both sides presented on both links (an exporter's transcript ends at the
server's Finished, and so before the client's certificate). The acceptor's covers the dialer's.

So a proof is worth nothing on another session: not replayed, not relayed, not turned round. It is good once, because
each attempt has a higher number than all before, and it ends with the handshake that it is part of, which has a
deadline. That the peer passes verification, names, cookie and `authorize` is not shown here but checked again beside
it, in the hello.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .channel_binding import presented_leaves, proof_of

if TYPE_CHECKING:
    from trionode._identity.names import NodeName
    from trionode._tls.stream import SessionStream

_KEY_LABEL: Final = b"EXPORTER-trionode-join"
_KEY_BYTES: Final = 32


class Ends(NamedTuple):
    """The two nodes of a connection: who dialled it, and who accepted."""

    dialer: NodeName
    dialer_incarnation: int
    acceptor: NodeName
    acceptor_incarnation: int


def join_proof(
    old: SessionStream,
    new: SessionStream,
    *,
    connection: bytes,
    attempt: int,
    ends: Ends,
    dialling: bool,
    answers: bytes | None = None,
) -> bytes:
    """One side's proof.

    Args:
        old: the session that the connection is on.
        new: the session that it is to be moved to.
        connection: its identifier.
        attempt: the number of this attempt.
        ends: who is who.
        dialling: whether we are the dialer: which end of the sessions we hold.
        answers: for the acceptor's proof, the dialer's; None for the dialer's.
    """
    key = b"".join(session.export_keying_material(_KEY_LABEL, _KEY_BYTES) for session in (old, new))
    return proof_of(
        key,
        b"trionode join v1",
        b"dialer" if answers is None else b"acceptor",
        connection,
        attempt.to_bytes(8, "big"),
        str(ends.dialer).encode(),
        ends.dialer_incarnation.to_bytes(8, "big"),
        str(ends.acceptor).encode(),
        ends.acceptor_incarnation.to_bytes(8, "big"),
        *presented_leaves(old, dialling=dialling),
        *presented_leaves(new, dialling=dialling),
        answers or b"",
    )
