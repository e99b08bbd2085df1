"""A server's stream as its manager's ledger keeps it, and as its server counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from .stream import session_of

if TYPE_CHECKING:
    from cryptography import x509

    from trionode._tls.stream import SessionStream
    from trionode._util.text import Address

    from .stream import TLSStream


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Client:
    """What is at the other end of a server's stream: a `LivePeer`."""

    certificate: x509.Certificate | None
    verified: bool
    address: Address | None
    name: None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveStream:
    """A server's stream, for its manager's ledger: a `LiveLink`."""

    generation: int
    peer: Client
    stream: SessionStream
    dialled: bool = False

    @classmethod
    def of(cls, stream: TLSStream) -> Self:
        """What the ledger keeps of a stream."""
        client = Client(certificate=stream.peer_certificate, verified=stream.verified, address=stream.peer_address)
        return cls(generation=stream.generation, peer=client, stream=session_of(stream))
