"""How the journal names a certificate: by its serial number, and by the key identifier of the CA that issued it."""

from __future__ import annotations

from cryptography import x509

from trionode._identity.certificate import extension, serial_number


def digits(serial: int) -> str:
    """A serial number as it stands in the journal."""
    return f"{serial:x}"


def digits_in(text: str) -> str:
    """A serial number that an operator has written, with or without colons, as it stands in the journal."""
    return text.lower().replace(":", "").lstrip("0")


def serial_of(certificate: x509.Certificate) -> str:
    """That of a certificate, as it stands in the journal."""
    return digits(serial_number(certificate))


def issuer_of(certificate: x509.Certificate) -> str:
    """The key identifier of the CA that issued a certificate, as the certificate has it; empty if it has none."""
    found = extension(certificate, x509.AuthorityKeyIdentifier)
    return "" if found is None or found.key_identifier is None else found.key_identifier.hex()


def key_identifier(issuer: x509.Certificate) -> str:
    """That of a CA: what `issuer_of` finds in what it issues."""
    found = extension(issuer, x509.SubjectKeyIdentifier)
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()) if found is None else found
    return identifier.digest.hex()
