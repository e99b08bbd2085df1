"""What a request's scope says of its TLS connection: the ASGI extension `tls`, and the caller as trionode sees it.

Theory. The extension is ASGI's ("TLS Extension", version 0.2), complete. It has no word for "verified": a certificate
that nothing was held against and one that verified look the same but for `client_cert_error`. So that is set wherever
this side has not verified, and an application that asks for a certificate without an error asks for a verified one.

The caller says the same without detours, and has no public constructor: only a connection of `serve_asgi` makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, TypedDict, final

from cryptography.hazmat.primitives.serialization import Encoding

from trionode._identity.certificate import UnreadableError, subject, subject_alt_names
from trionode._identity.describe import describe
from trionode._identity.names import NodeName, SubjectNames, canonical_host
from trionode._streams.stream import session_of
from trionode._util.immutable import Immutable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cryptography import x509

    from trionode._streams.stream import TLSStream
    from trionode._util.text import Address

__all__ = ["Caller", "caller_of"]

#: Where a scope's extensions have the caller.
EXTENSION: Final = "trionode"

_TLS_1_3: Final = 0x0304
#: RFC 8446 section B.4; the names are OpenSSL's, too.
_SUITES: Final = {
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
    "TLS_AES_128_CCM_SHA256": 0x1304,
    "TLS_AES_128_CCM_8_SHA256": 0x1305,
}


@final
class Caller(Immutable):
    """The client of a request, as far as this side established it; immutable. Made by `serve_asgi` only.

    Attributes:
        certificate: its leaf certificate, or None if it sent none.
        verified: whether this side verified that, as the manager's client-auth mode says. Whatever it names is
            established only then.
        address: its (host, port), or None where the transport does not know it.
        server_name: which name it asked for (SNI), or None.
        generation: of the contexts that served its connection.
        channel_binding: 32 bytes that only the two ends of this connection know (`tls-exporter`, RFC 9266).
    """

    __slots__ = ("address", "certificate", "channel_binding", "generation", "server_name", "verified")

    certificate: x509.Certificate | None
    verified: bool
    address: Address | None
    server_name: str | None
    generation: int
    channel_binding: bytes

    def __init__(self) -> None:
        msg = "a Caller has no public constructor: only a connection of serve_asgi makes one"
        raise TypeError(msg)

    @classmethod
    def _of(cls, stream: TLSStream) -> Self:
        self = object.__new__(cls)
        binding = session_of(stream).export_keying_material(b"EXPORTER-Channel-Binding", 32)
        object.__setattr__(self, "channel_binding", binding)
        for name in set(cls.__slots__) - {"channel_binding"}:
            source = {"certificate": "peer_certificate", "address": "peer_address"}.get(name, name)
            object.__setattr__(self, name, getattr(stream, source))
        return self

    def __repr__(self) -> str:
        shown = "no certificate" if self.certificate is None else describe(self.certificate)
        return f"<Caller {'verified' if self.verified else 'NOT verified'}, at {self.address}, {shown}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The DNS names and addresses in its verified certificate, as they stand there; empty if it is not verified."""
        return self._names("DNS", "IP")

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs in its verified certificate, a SPIFFE ID for one; empty if it was not verified."""
        return self._names("URI")

    def _names(self, *kinds: str) -> tuple[str, ...]:
        if self.certificate is None or not self.verified:
            return ()
        try:
            entries = subject_alt_names(self.certificate)
        except UnreadableError:
            return ()
        return tuple(each.value for each in entries if each.kind in kinds and each.value is not None)

    def speaks_for(self, name: str | NodeName) -> bool:
        """Whether its verified certificate covers a host (RFC 9525) or a node name; never, if it was not verified.

        Args:
            name: a DNS name, an address, or `name@host`.

        Raises:
            ValueError: it is none of these.
        """
        node = NodeName.parse(name) if isinstance(name, NodeName) or "@" in name else None
        host = None if isinstance(name, NodeName) or node is not None else canonical_host(name)
        if self.certificate is None or not self.verified:
            return False
        names = SubjectNames.of(self.certificate)
        return names.cover_node(node) if node is not None else host is not None and names.cover_host(host)


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """The caller of a request or WebSocket, from its ASGI scope: `caller_of(request.scope)`.

    Args:
        scope: of type `http` or `websocket`.

    Raises:
        LookupError: another server has served it than `serve_asgi`, or something in between has dropped the extension.
    """
    try:
        caller: object = scope["extensions"][EXTENSION]["caller"]
    except (KeyError, TypeError):
        caller = None
    if not isinstance(caller, Caller):
        msg = "the scope does not say who calls: it is not from trionode.http.serve_asgi"
        raise LookupError(msg)  # noqa: TRY004 -- it is not there, as far as anybody can say
    return caller


class TLSExtension(TypedDict):
    """The value of `scope["extensions"]["tls"]`."""

    server_cert: str | None
    client_cert_chain: tuple[str, ...]
    client_cert_name: str | None
    client_cert_error: str | None
    tls_version: int | None
    cipher_suite: int | None


def extensions_of(stream: TLSStream) -> dict[str, dict[str, object]]:
    """What the scopes of a connection's requests have among their extensions; made once, copied into each."""
    return {"tls": dict(tls_extension(stream)), EXTENSION: {"caller": Caller._of(stream)}}  # noqa: SLF001 -- the one door


def tls_extension(stream: TLSStream) -> TLSExtension:
    """The ASGI extension for a server's stream."""
    leaf = stream.peer_certificate
    return TLSExtension(
        server_cert=None if stream.certificate is None else _pem(stream.certificate),
        client_cert_chain=tuple(map(_pem, stream.peer_chain)),
        client_cert_name=None if leaf is None else _rfc4514(leaf),
        client_cert_error=None if leaf is None or stream.verified else "not verified: this server only asks for it",
        tls_version=_TLS_1_3 if stream.tls_version == "TLSv1.3" else None,
        cipher_suite=_SUITES.get(stream.cipher or ""),
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _rfc4514(certificate: x509.Certificate) -> str:
    try:
        return certificate.subject.rfc4514_string()
    except (ValueError, TypeError):  # nothing was verified, so it may have any subject
        return subject(certificate)
