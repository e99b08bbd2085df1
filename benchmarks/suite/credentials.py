"""Certificates: one CA, a key pair for servers and one for clients, in files; the same for every peer."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    KeyPair,
)
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

#: The names in the certificates. There are no URI SANs, so each is valid for every node on the host.
HOST = "localhost"
ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Credentials:
    """A directory with `ca.pem`, `ca.key`, `server.pem`, `server.key`, `client.pem`, `client.key`; ECDSA P-256."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Make the certificates, in this directory."""
        ca = CertificateAuthority.create()
        ca.save(directory)
        for end in "server", "client":
            write_key_pair(ca.issue(HOST, ADDRESS), directory / f"{end}.pem", directory / f"{end}.key")
        return cls(directory)

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.directory / "ca.pem"

    @property
    def ca_key(self) -> ec.EllipticCurvePrivateKey:
        """The CA's key."""
        key = load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def certificate(self, end: str) -> Path:
        """Of `server` or `client`."""
        return self.directory / f"{end}.pem"

    def key(self, end: str) -> Path:
        """Of `server` or `client`."""
        return self.directory / f"{end}.key"

    def manager(self, end: str) -> CertAuthManager:
        """For trionode: TLS 1.3, both sides verified, never resumed."""
        pool = CAPool.load(self.ca)
        return CertAuthManager(
            KeyPair.load(self.certificate(end), self.key(end)),
            client_cas=pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=pool,
        )

    def stdlib(self, end: str) -> ssl.SSLContext:
        """For peers with stdlib `ssl`: TLS 1.3, both sides verified, no tickets, so no resumption."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if end == "server" else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate(end), self.key(end))
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        if end == "server":
            context.num_tickets = 0
        return context

    def pyopenssl(self, end: str) -> SSL.Context:
        """For memory BIOs under pyOpenSSL: as `stdlib()`; but it verifies no names, and sends useless tickets."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.use_certificate_file(str(self.certificate(end)))
        context.use_privatekey_file(str(self.key(end)))
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, self.ca.read_bytes()))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        return context
