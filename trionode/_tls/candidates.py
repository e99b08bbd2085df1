"""Certificates that paths are made of: each in the hands of OpenSSL and of `cryptography`, and read once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto
from trio.lowlevel import enable_ki_protection

from trionode._identity.certificate import decode
from trionode._identity.outline import extension_oids, outline

from .binding import digest, openssl_reason

if TYPE_CHECKING:
    from cryptography import x509

    from trionode._identity.outline import Outline

_BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")


@final
class Candidate:
    """A certificate that may be part of a path, as OpenSSL, as `cryptography`, and as bytes; each made when needed."""

    def __init__(self, certificate: x509.Certificate | crypto.X509, *, anchor: bool = False) -> None:
        known = "native" if isinstance(certificate, crypto.X509) else "certificate"
        self.__dict__[known] = certificate
        self.anchor = anchor

    @cached_property
    @enable_ki_protection  # OpenSSL's binding frees its buffers in Python, under C: an interrupt there would be lost
    def native(self) -> crypto.X509:
        """The certificate as OpenSSL has it.

        Raises:
            ValueError: it cannot parse it.
        """
        try:
            return crypto.X509.from_cryptography(self.certificate)
        except crypto.Error as exc:
            msg = f"OpenSSL cannot parse it: {openssl_reason(exc)}"
            raise ValueError(msg) from None

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The certificate as `cryptography` has it.

        Raises:
            ValueError: it cannot parse it.
        """
        return decode(self.der)

    @cached_property
    @enable_ki_protection
    def der(self) -> bytes:
        """Its encoding."""
        if "certificate" in self.__dict__:
            return self.certificate.public_bytes(Encoding.DER)
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, self.native)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of its encoding."""
        if "certificate" in self.__dict__:
            return self.certificate.fingerprint(SHA256())
        return digest(self.native)

    @cached_property
    def outline(self) -> Outline:
        """Whose it is. What has none is part of no path.

        Raises:
            ValueError: OpenSSL or `cryptography` cannot parse the certificate.
        """
        _ = self.native, self.certificate
        return outline(self.der)

    @property
    def is_readable(self) -> bool:
        """Whether it can be part of a path."""
        try:
            return self.outline is not None
        except ValueError:
            return False

    @cached_property
    def may_issue(self) -> bool:
        """Whether it is not plainly no CA's: of version 3 it must say so, whatever its key usage says (as in Go)."""
        return self.outline.version < 3 or _BASIC_CONSTRAINTS in extension_oids(self.der)


# Peers come back, and send the same intermediates: what was read of a certificate is kept for the next handshake.
_recent: dict[bytes, Candidate] = {}
_RECENT: Final = 256


def candidate(certificate: x509.Certificate | crypto.X509) -> Candidate:
    """A certificate that a peer presented; the last few hundred are read once."""
    made = Candidate(certificate)
    found = _recent.get(made.digest)
    if found is None:
        found = _recent[made.digest] = made
        while len(_recent) > _RECENT:
            _recent.pop(next(iter(_recent)), None)
    return found
