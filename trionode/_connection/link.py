"""A link: one TLS stream under a connection, and what was established when it was made.

A connection outlives its links: what belongs to one TLS session (stream, decoder, generations, certificates) is
here, what belongs to the relation between two nodes is in the connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

from trionode._protocol import FrameDecoder

if TYPE_CHECKING:
    from trionode._identity.peer import Peer
    from trionode._protocol import Limits
    from trionode._tls.stream import SessionStream

_ID_LABEL: Final = b"EXPORTER-trionode-connection"
_ID_BYTES: Final = 16
#: Bytes of it that logs show: enough to tell the connections of a cluster apart.
_ID_SHOWN: Final = 8


@final
@dataclass(kw_only=True, slots=True, eq=False)
class Link:
    """One TLS stream whose handshake and hello are done.

    Attributes:
        stream: owned by the connection that runs the link.
        peer: who is at the other end.
        dialled: whether this side dialled.
        mutual: whether both sides verified each other.
        replace: whether the dialer wants it in place of another that it knows of.
        insecure: whether it was dialled with `insecure_skip_verify`.
        cookie: the shared secret that both sides have proved to know; None for none.
        generation: of the contexts that this side took.
        peer_generation: of those that the peer took.
        key_pair_fingerprint: of the key pair in this side's contexts.
        peer_limits: what the peer accepts.
        acceptor: on the accepting side, what stands for its acceptor: a link that joins has to come from the same.
        rest: bytes that came behind the hello, until they are read.
        confirmation: the hello's last message, where the connection is to send it ahead of everything else; until then.
        decoder: cuts the stream into frames.
        finished: whether the peer's last frame on it was read (SWITCH).
    """

    stream: SessionStream
    peer: Peer
    dialled: bool
    mutual: bool
    replace: bool = False
    insecure: bool = False
    cookie: bytes | None = field(default=None, repr=False)
    generation: int
    peer_generation: int
    key_pair_fingerprint: str
    peer_limits: Limits
    acceptor: object = None
    rest: bytes = b""
    confirmation: bytes = b""
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    finished: bool = False
    _identifier: bytes | None = field(default=None, init=False, repr=False)

    @property
    def identifier(self) -> bytes:
        """What both sides know the connection by that it carries: exported from the connection's first link."""
        if self._identifier is None:
            self._identifier = connection_id(self.stream)
        return self._identifier

    @property
    def connection(self) -> str:
        """The same as logs have it: its first 16 hexadecimal digits."""
        return self.identifier[:_ID_SHOWN].hex()

    def follow(self, former: Link) -> None:
        """Carry the connection of another link from now on.

        Args:
            former: the link that it was on.
        """
        self._identifier = former.identifier


def connection_id(first: SessionStream) -> bytes:
    """The 16 bytes that both sides know a connection by: exported from its first TLS session, no secret."""
    return first.export_keying_material(_ID_LABEL, _ID_BYTES)
