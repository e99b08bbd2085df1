"""CA pools: the trust anchors that certificate chains are verified against. Immutable values, parsed at the edge."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from trionode._errors import CertificateError, CertificateReason
from trionode._identity.certificate import UnreadableError, decode, fingerprint
from trionode._identity.describe import describe_subjects
from trionode._util.fields import check_each
from trionode._util.immutable import Immutable
from trionode._util.quiet import quietly

from .pem import Secret, parse_certificates, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .pem import FilePath

__all__ = ["CAPool"]


@final
class CAPool(Immutable):
    """An immutable, non-empty set of trust anchors.

    Every certificate in it is trusted in its own right, self-signed or not, as in Go; one that is no CA pins that
    very certificate. Pools are joined with `|`, compared and hashed by content.

    Attributes:
        certificates: the anchors, each once, in the order in which they came.
    """

    __slots__ = ("__weakref__", "_key", "certificates")

    certificates: tuple[x509.Certificate, ...]

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        """A pool of `cryptography` certificate objects.

        Raises:
            CertificateError: reason `no_certificate`, if there is none.
        """
        every = check_each("certificates", certificates, x509.Certificate)
        unique = {fingerprint(certificate): certificate for certificate in every}
        if not unique:
            msg = "a CA pool needs at least one certificate; an empty pool would trust no peer"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        object.__setattr__(self, "certificates", tuple(unique.values()))
        object.__setattr__(self, "_key", frozenset(unique))

    _key: frozenset[str]

    @classmethod
    def load(cls, *files: FilePath) -> Self:
        """All certificates of one or more PEM files. Blocks while it reads them.

        Args:
            files: PEM files, of up to 4 MiB each; blocks that are no certificates are skipped.

        Raises:
            CertificateError: a file is unreadable, or holds no certificate.
        """
        return cls(certificate for file in files for certificate in parse_certificates(read_file(file), str(file)))

    @classmethod
    def from_pem(cls, data: bytes | str) -> Self:
        """All certificates of a PEM text.

        Args:
            data: PEM text; blocks that are no certificates are skipped.

        Raises:
            CertificateError: it is malformed, or holds no certificate.
        """
        return cls(parse_certificates(Secret(data), "the CA text"))

    @classmethod
    def system(cls) -> Self:
        """The operating system's CA certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured.

        Blocks while it reads them (some milliseconds). Entries that cannot be parsed are left out, as OpenSSL does.

        Raises:
            CertificateError: none was found.
        """
        found: dict[str, x509.Certificate] = {}
        for der in _system_certificates():
            try:
                certificate = decode(der)
            except UnreadableError:
                continue
            found.setdefault(fingerprint(certificate), certificate)
        if not found:
            msg = "no system CA certificates were found; install ca-certificates, or give the CA pool explicitly"
            raise CertificateError(msg, reason=CertificateReason.NO_CERTIFICATE)
        return cls(found.values())

    def __or__(self, other: object) -> CAPool:
        """The union of two pools."""
        if not isinstance(other, CAPool):
            return NotImplemented
        return CAPool((*self.certificates, *other.certificates))

    def __contains__(self, certificate: object) -> bool:
        """Whether a certificate is itself one of the anchors."""
        return isinstance(certificate, x509.Certificate) and fingerprint(certificate) in self._key

    def __iter__(self) -> Iterator[x509.Certificate]:
        return iter(self.certificates)

    def __len__(self) -> int:
        return len(self.certificates)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, CAPool) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<CAPool of {len(self)}: {describe_subjects(self)}>"


def _system_certificates() -> Iterator[bytes]:
    # The context only reads the platform's store; nothing is verified with it.
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # noqa: TID251 -- see above
    reader.load_default_certs()
    yield from reader.get_ca_certs(binary_form=True)
    # OpenSSL looks directories up by hash, on demand, so `get_ca_certs` does not show them. SSL_CERT_DIR is a list.
    paths = ssl.get_default_verify_paths()
    for directory in filter(None, os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)):
        for file in sorted(Path(directory).glob("*.[0-9]")):
            try:
                with quietly():
                    certificates = x509.load_pem_x509_certificates(file.read_bytes())
            except (OSError, ValueError, x509.InvalidVersion):
                continue
            yield from (certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates)
