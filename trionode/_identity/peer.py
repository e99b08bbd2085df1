"""The peer of a connection: what this side established about the node at the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from trionode._util.immutable import Immutable

from .describe import describe

if TYPE_CHECKING:
    from cryptography import x509

    from trionode._util.text import Address

    from .names import NodeName

__all__ = ["Peer"]


@final
class Peer(Immutable):
    """The node at the other end; immutable. There is no public constructor: only a handshake makes one.

    Attributes:
        name: the node name that it claims; established only if `verified`.
        certificate: its leaf certificate, or None if it sent none.
        verified: whether this side verified the certificate, and that it covers the name.
        address: its (host, port), or None where the transport does not know it.
        incarnation: the random number that it drew when it opened, by which a restarted node is told from its former
            self.
    """

    __slots__ = ("address", "certificate", "incarnation", "name", "verified")

    name: NodeName
    certificate: x509.Certificate | None
    verified: bool
    address: Address | None
    incarnation: int

    def __init__(self) -> None:
        msg = "a Peer has no public constructor: only a handshake makes one"
        raise TypeError(msg)

    def __repr__(self) -> str:
        shown = "no certificate" if self.certificate is None else describe(self.certificate)
        return f"<Peer {self.name}, {'verified' if self.verified else 'NOT verified'}, at {self.address}, {shown}>"


def established_peer(
    name: NodeName,
    *,
    certificate: x509.Certificate | None,
    verified: bool,
    address: Address | None,
    incarnation: int,
) -> Peer:
    """Make a `Peer`; for handshakes, and nothing else."""
    peer = object.__new__(Peer)
    for attribute, value in (
        ("name", name),
        ("certificate", certificate),
        ("verified", verified),
        ("address", address),
        ("incarnation", incarnation),
    ):
        object.__setattr__(peer, attribute, value)
    return peer
