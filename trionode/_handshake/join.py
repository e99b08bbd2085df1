"""Joining: the proof that a new TLS session is between the same two nodes as a connection that is there.

Theory. A hand-over moves a live connection, with everything that is under way on it, to a second link. A stranger that
could join a link of its own to another node's connection would have all of that. Certificates alone must not do: a
certificate says which node a program may speak for, not that it is this very program, with this connection. So each
side shows an HMAC-SHA256 whose key only the two ends of *both* sessions have: the exporters (RFC 8446 section 7.5) of
the link that the connection is on and of the new one. What it covers, and what that is against:

1. *Both exporters* (the key): a program with the same certificate that has no end of the connection; and a relay
   between two TLS sessions of its own, each of which exports something else.
2. *The prover's role*: a proof that is sent back to the side that made it.
3. *The connection*: of two connections between the same nodes, the other.
4. *The attempt*, which has to be higher than all before: a proof that is shown again.
5. *Both node names and incarnations*: a node that has restarted, or speaks for another name now.
6. *The leaf certificates that both sides presented on both links*: a client certificate that was exchanged for another
   under the same exporter, whose transcript ends at the server's Finished, and so before that certificate.
7. In the acceptor's proof, *the dialer's*: an acceptor that has not read it.

A proof ends with the handshake that it is part of, which has a deadline. That the peer passes verification, names,
cookie and `authorize` is not shown here but checked again beside it, in the hello.
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
    """The two nodes of a connection, by role."""

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
        ends: the two nodes.
        dialling: whether we are the dialer, and so which end of the sessions we hold.
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
