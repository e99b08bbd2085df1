"""What the demo's processes report to the operator, one JSON object a line; and how fingerprints are shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

if TYPE_CHECKING:
    from trionode import Connection

#: Digits of a fingerprint that are shown: as many as in the library's messages.
SHOWN_DIGITS: Final = 16

#: The kinds of SANs in the demo's certificates, in the usual spelling.
_KINDS: Final[dict[type, str]] = {x509.DNSName: "DNS", x509.IPAddress: "IP", x509.UniformResourceIdentifier: "URI"}


class Certificate(msgspec.Struct, frozen=True):
    """A certificate, as the demo shows it."""

    subject: str
    names: list[str]
    issuer: str
    fingerprint: str

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Certificate:
        """The facts of a certificate that has SANs."""
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return cls(
            subject=certificate.subject.rfc4514_string(),
            names=[f"{_KINDS[type(name)]}:{name.value}" for name in names],
            issuer=certificate.issuer.rfc4514_string(),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


class Listening(msgspec.Struct, frozen=True, tag=True):
    """beta: the port that it listens on."""

    port: int


class Connected(msgspec.Struct, frozen=True, tag=True):
    """A connection as one end sees it at this moment."""

    peer: str
    verified: bool
    peer_certificate: Certificate | None
    own_fingerprint: str
    generation: int
    peer_generation: int
    superseded: bool

    @classmethod
    def of(cls, connection: Connection) -> Connected:
        """The facts of a connection; all of them are plain attributes."""
        certificate = connection.peer.certificate
        return cls(
            peer=str(connection.peer.name),
            verified=connection.peer.verified,
            peer_certificate=None if certificate is None else Certificate.of(certificate),
            own_fingerprint=connection.key_pair_fingerprint,
            generation=connection.generation,
            peer_generation=connection.peer_generation,
            superseded=connection.superseded,
        )

    @property
    def peer_fingerprint(self) -> str:
        """Of the peer's certificate; empty where it sent none."""
        return "" if self.peer_certificate is None else self.peer_certificate.fingerprint


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A handshake that failed, as one side reports it; `error` is the exception's class, empty if there was none."""

    error: str
    code: str
    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """alpha: how many numbers went to beta and came back."""

    echoed: int


class Rotated(msgspec.Struct, frozen=True, tag=True):
    """beta: published another key pair, after `received` numbers."""

    generation: int
    fingerprint: str
    received: int


class Sent(msgspec.Struct, frozen=True, tag=True):
    """alpha: how many numbers it sent and got back, and the first place where an echo was not the expected number."""

    sent: int
    echoed: int
    wrong_at: int | None


class Received(msgspec.Struct, frozen=True, tag=True):
    """beta: how many numbers it received, and the first place where one was not the expected number."""

    received: int
    wrong_at: int | None


Message: TypeAlias = Listening | Connected | Refusal | Progress | Rotated | Sent | Received


def tell(message: Message) -> None:
    """One line for the operator."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def short(fingerprint: str, digits: int = 8) -> str:
    """The first digits of a fingerprint: enough to tell two apart."""
    return f"{fingerprint[:digits]}…" if fingerprint else "none"
