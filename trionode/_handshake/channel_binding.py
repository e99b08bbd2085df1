"""What the proofs of the hello are made of: an HMAC over parts that cannot be confused, bound to a TLS session."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from trionode._identity.certificate import fingerprint

if TYPE_CHECKING:
    from cryptography import x509

    from trionode._tls.stream import SessionStream


def proof_of(key: bytes, *parts: bytes) -> bytes:
    """An HMAC-SHA256; every part goes in with its length, so that no two lists of parts are the same bytes."""
    return hmac.digest(key, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")


def same_proof(one: bytes, other: bytes) -> bool:
    """Whether two proofs are equal, in constant time."""
    return hmac.compare_digest(one, other)


def presented_leaves(session: SessionStream, *, dialling: bool) -> tuple[bytes, bytes]:
    """Which leaf certificates the dialer and the acceptor presented, as fingerprints; empty for none.

    They go into every proof beside the session's exporter, whose transcript ends at the server's Finished (RFC 8446
    section 7.5), and so before the client's certificate.

    Args:
        session: the session.
        dialling: whether we are the dialer, and so which end of it we hold.
    """
    ours, theirs = _leaf(session.certificate), _leaf(session.peer_certificate)
    return (ours, theirs) if dialling else (theirs, ours)


def _leaf(certificate: x509.Certificate | None) -> bytes:
    return b"" if certificate is None else fingerprint(certificate).encode()
