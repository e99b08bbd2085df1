"""What in a certificate is behind a verify code: the key, the digest, the constraint and the name.

Theory. OpenSSL gives a number and the place in the path. What an operator needs is what is there: that the key is RSA
of 1024 bits, that `DNS:db.other.example` is not within what the CA `CN=site` permits. It is looked up here, after the
verdict and for the message alone: where it is not found, the message says less, and the verdict is what it was.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trionode._identity.certificate import (
    SubjectAltName,
    UnreadableError,
    critical_extensions,
    extension,
    fingerprint,
    is_self_issued,
    is_signed_by,
    key_name,
    public_key,
    signature_hash,
    subject_alt_names,
)
from trionode._identity.describe import describe_subject
from trionode._util.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .judge import Fault

#: Names and constraints are listed up to so many.
_SHOWN: Final = 4
#: Extensions that OpenSSL knows (RFC 5280 section 4.2, RFC 3779, RFC 3820, RFC 6962, RFC 7633).
_KNOWN: Final = frozenset(
    {*(f"2.5.29.{arc}" for arc in (14, 15, 17, 18, 19, 30, 31, 32, 33, 35, 36, 37, 54)), "1.3.6.1.5.5.7.1.14"}
    | {"1.3.6.1.5.5.7.1.7", "1.3.6.1.5.5.7.1.8", "1.3.6.1.5.5.7.1.24", "1.3.6.1.5.5.7.48.1.5"}
)


def evidence(fault: Fault) -> str:
    """What there is to see of a fault, as the end of a sentence; empty where that is nothing.

    Args:
        fault: why a chain is not believed.
    """
    found = _LOOK.get(fault.code)
    text = found(fault.path, fault.depth) if found is not None else ""
    return f": {text}" if text else ""


def why_not_signed(certificate: x509.Certificate, above: x509.Certificate) -> tuple[str, str]:
    """Why a certificate that has its issuer's name does not count as signed by it: an end of a sentence, and a remedy.

    Args:
        certificate: which is not signed.
        above: has its issuer's name.
    """
    which = f"{describe_subject(above)}, SHA-256 {fingerprint(above)[:16]}…,"
    if not is_signed_by(certificate, above):
        why = f"{which} has its issuer's name, but did not sign it: that CA was made anew, with another key"
        remedy = (
            "Give {option} the CA certificate that is in use now, during the change both (with rotate_trust() while in "
            "use); or issue it anew"
        )
    elif is_self_issued(certificate):
        why = f"{which} signed it, but its own subject is that name as well, and so it counts as self-signed"
        remedy = "Issue it with another subject than that of its CA"
    elif _key_ids_differ(certificate, above):
        why = f"{which} signed it, but their key identifiers differ (authorityKeyIdentifier, subjectKeyIdentifier)"
        remedy = "Issue it with the key identifier of its CA, or without one"
    else:
        why = f"{which} signed it, but one of the two has an extension that OpenSSL cannot read, or one twice"
        remedy = "Have it issued anew: openssl x509 -text shows its extensions"
    return f": {why}", remedy


def _key_ids_differ(certificate: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        wanted = extension(certificate, x509.AuthorityKeyIdentifier)
        found = extension(above, x509.SubjectKeyIdentifier)
    except UnreadableError:
        return False
    return wanted is not None and wanted.key_identifier != (None if found is None else found.digest)


# Keys and digests ---------------------------------------------------------------------------------------------------


def _key(path: Sequence[x509.Certificate], depth: int) -> str:
    key = public_key(path[depth])
    if getattr(key, "key_size", 0) >= (2048 if isinstance(key, rsa.RSAPublicKey) else 224):
        return f"{key_name(key)}, and the system's configuration of OpenSSL demands more"
    return f"{key_name(key)}; at least 2048 bits are needed, with EC 224"


def _digest(path: Sequence[x509.Certificate], depth: int) -> str:
    digest = signature_hash(path[depth])
    return "" if digest is None else _DIGESTS.get(digest.name, digest.name.upper())


_DIGESTS: Final = {"sha1": "SHA-1", "md5": "MD5"}


def _curve(path: Sequence[x509.Certificate], depth: int) -> str:
    key = public_key(path[depth])
    return f"those of {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else ""


# CAs ----------------------------------------------------------------------------------------------------------------


def _no_ca(path: Sequence[x509.Certificate], depth: int) -> str:
    try:
        constraints = extension(path[depth], x509.BasicConstraints)
        usage = extension(path[depth], x509.KeyUsage)
    except UnreadableError as exc:
        return str(exc)
    if constraints is None:
        return "it has no basic constraints"
    if not constraints.ca:
        return "its basic constraints say CA:FALSE"
    return "its key usage lacks keyCertSign" if usage is not None and not usage.key_cert_sign else ""


def _path_length(path: Sequence[x509.Certificate], depth: int) -> str:
    try:
        constraints = extension(path[depth], x509.BasicConstraints)
    except UnreadableError as exc:
        return str(exc)
    return "" if constraints is None else f"it allows {constraints.path_length}, and there are {depth - 1}"


def _critical(path: Sequence[x509.Certificate], depth: int) -> str:
    unknown = [each for each in critical_extensions(path[depth]) if each not in _KNOWN]
    return ", ".join(unknown[:_SHOWN])


# Name constraints ---------------------------------------------------------------------------------------------------


def _not_permitted(path: Sequence[x509.Certificate], depth: int) -> str:
    for above in path[depth + 1 :]:
        for name in _names(path[depth]):
            permitted = [each for each in _subtrees(above, permitted=True) if type(each) is _KINDS.get(name.kind)]
            if permitted and not any(_within(name, each) for each in permitted):
                return f"{printable(name.shown, 100)}, and {describe_subject(above)} permits {_shown(permitted)}"
    return ""


def _excluded(path: Sequence[x509.Certificate], depth: int) -> str:
    for above in path[depth + 1 :]:
        for name in _names(path[depth]):
            for each in _subtrees(above, permitted=False):
                if type(each) is _KINDS.get(name.kind) and (_within(name, each) or _reaches(name, each)):
                    return f"{printable(name.shown, 100)}, and {describe_subject(above)} excludes {_shown([each])}"
    return ""


_KINDS: Final[dict[str, type[x509.GeneralName]]] = {
    "DNS": x509.DNSName,
    "IP": x509.IPAddress,
    "URI": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}


def _names(certificate: x509.Certificate) -> Iterable[SubjectAltName]:
    try:
        return subject_alt_names(certificate)
    except UnreadableError:
        return ()


def _subtrees(certificate: x509.Certificate, *, permitted: bool) -> Iterable[x509.GeneralName]:
    try:
        constraints = extension(certificate, x509.NameConstraints)
    except UnreadableError:
        return ()
    if constraints is None:
        return ()
    return (constraints.permitted_subtrees if permitted else constraints.excluded_subtrees) or ()


def _within(name: SubjectAltName, subtree: x509.GeneralName) -> bool:
    """Whether a name is in a subtree (RFC 5280 section 4.2.1.10)."""
    value = name.shown.partition(":")[2].lower() if name.value is None else name.value.lower()
    if isinstance(subtree, x509.IPAddress):
        networks = ipaddress.IPv4Network | ipaddress.IPv6Network
        try:
            return isinstance(subtree.value, networks) and ipaddress.ip_address(value) in subtree.value
        except ValueError:
            return False
    wanted = str(subtree.value).lower()
    if name.kind == "URI":
        value = value.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
    elif name.kind == "email":
        if "@" in wanted:
            return value == wanted
        value = value.rpartition("@")[2]
    if wanted.startswith("."):
        return value.endswith(wanted)
    return value == wanted or (name.kind == "DNS" and (not wanted or value.endswith(f".{wanted}")))


def _reaches(name: SubjectAltName, subtree: x509.GeneralName) -> bool:
    """Whether a wildcard covers what a subtree excludes; see `name_constraints`."""
    wildcard = name.value or ""
    return (
        isinstance(subtree, x509.DNSName)
        and wildcard.startswith("*.")
        and wildcard[2:].lower() == subtree.value.lower().partition(".")[2]
    )


def _shown(subtrees: Sequence[x509.GeneralName]) -> str:
    more = f" and {len(subtrees) - _SHOWN} more" if len(subtrees) > _SHOWN else ""
    return printable(", ".join(f"{_SHORT[type(each)]}:{each.value}" for each in subtrees[:_SHOWN]), 200) + more


_SHORT: Final = {kind: short for short, kind in _KINDS.items()}

_LOOK: Final[dict[int, Callable[[Sequence[x509.Certificate], int], str]]] = {
    24: _no_ca,
    25: _path_length,
    32: _no_ca,
    34: _critical,
    47: _not_permitted,
    48: _excluded,
    66: _key,
    67: _key,
    68: _digest,
    79: _no_ca,
    94: _curve,
}
