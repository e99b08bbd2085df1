"""The cookie: an optional shared secret on top of certificates, proved without being sent.

Theory. Each side proves that it knows the cookie by an HMAC-SHA256, with the cookie as key, over everything that makes
this handshake this one. What it covers, and what that is against:

1. *The TLS session's exporter* (RFC 9266): a proof that is replayed or relayed on any other session.
2. *The prover's role*: a proof that is sent back to the side that made it.
3. *Both node names and the prover's incarnation*: a proof of another node, or of its former self. A dialer that reached
   an acceptor under another name than its own fails here, too.
4. *The leaf certificates that both sides presented*: the exporter's transcript ends at the server's Finished (RFC 8446
   section 7.5), and so before the client's certificate.
5. In the acceptor's proof, *the dialer's incarnation and proof*.

The dialer proves first, and the acceptor only in return for a right proof: a dialer without the cookie learns nothing
to guess against but one refusal per handshake.

The cookie is against a node of the same CA that is not of the same cluster (staging dialling production), and against a
CA that signs more than it should. It is not against a program that has the cookie and a certificate. It is one secret
for all nodes: it identifies none, and cannot be taken from one node alone. It is not rotated at run time.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, final

from .channel_binding import presented_leaves, proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionode._identity.names import NodeName
    from trionode._tls.stream import SessionStream

__all__ = ["generate_cookie"]

#: Shorter than this, a secret can be guessed offline from one proof.
MIN_COOKIE_BYTES: Final = 16

_EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"  # RFC 9266 section 4.2
_EXPORTER_BYTES: Final = 32


def generate_cookie() -> str:
    """A fresh random cookie: 32 bytes as 43 URL-safe characters. Give the same one to every node of a cluster."""
    return secrets.token_urlsafe(32)


@final
class _Cookie(bytes):
    """A cookie that does not show itself: in no `repr`, so in no traceback with local variables either."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<cookie>"

    __str__ = __repr__


def as_cookie(value: str | bytes | None) -> bytes | None:
    """A cookie as bytes.

    Raises:
        ValueError: it is shorter than 16 bytes; the message does not quote it.
        TypeError: it is neither text nor bytes.
    """
    given: object = value
    if given is None:
        return None
    if not isinstance(given, str | bytes | bytearray | memoryview):
        # bytes(n) would make n zero bytes of a number: a cookie that every stranger can guess.
        msg = f"a cookie is a string or bytes, not {type(given).__name__}; trionode.generate_cookie() makes one"
        raise TypeError(msg)
    cookie = _Cookie(given.encode() if isinstance(given, str) else given)
    if len(cookie) < MIN_COOKIE_BYTES:
        msg = f"a cookie has at least {MIN_COOKIE_BYTES} bytes, not {len(cookie)}; trionode.generate_cookie() makes one"
        raise ValueError(msg)
    return cookie


def dialer_proof(
    cookie: bytes, stream: SessionStream, *, dialer: NodeName, acceptor: NodeName, incarnation: int, dialling: bool
) -> bytes:
    """The dialer's proof.

    Args:
        cookie: the secret.
        stream: the TLS session that it is bound to.
        dialer: the dialer's node name.
        acceptor: the name that was dialled.
        incarnation: the dialer's.
        dialling: whether we are the dialer, and so which end of `stream` we hold.
    """
    fields = [str(dialer).encode(), str(acceptor).encode(), _u64(incarnation)]
    return _mac(cookie, b"dialer", stream, fields, dialling=dialling)


def acceptor_proof(
    cookie: bytes,
    stream: SessionStream,
    *,
    dialer: NodeName,
    acceptor: NodeName,
    incarnation: int,
    dialer_incarnation: int,
    proof: bytes,
    dialling: bool,
) -> bytes:
    """The acceptor's proof, in answer to the dialer's; arguments as for `dialer_proof`."""
    fields = [
        str(dialer).encode(),
        str(acceptor).encode(),
        _u64(incarnation),
        _u64(dialer_incarnation),
        proof,
    ]
    return _mac(cookie, b"acceptor", stream, fields, dialling=dialling)


def _mac(cookie: bytes, role: bytes, stream: SessionStream, fields: Sequence[bytes], *, dialling: bool) -> bytes:
    exported = stream.export_keying_material(_EXPORTER_LABEL, _EXPORTER_BYTES)
    leaves = presented_leaves(stream, dialling=dialling)
    return proof_of(cookie, b"trionode cookie v1", role, exported, *leaves, *fields)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")
