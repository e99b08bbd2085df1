"""Node names and host names, and which of them a certificate covers.

Theory. A *reference* name is the one that a peer has to prove (the host part of a node name, or a server name that was
set). A certificate *offers* names in its subject alternative names, never in its Common Name (RFC 9525 section 2). Both
are brought to one canonical form before they are compared: host names as lower-case A-labels (RFC 5890) without a
trailing dot, addresses as `ipaddress` objects. The comparison itself is service-identity's kernel; this module makes
sure that one odd entry (`*.local`, an empty name, a NUL byte) costs that entry and not the whole certificate.

A URI SAN `trionode://name@host` restricts: a certificate with one or more of them covers exactly those node names, and
only where its DNS or IP SANs cover the host as well. A malformed one restricts too (fail closed).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, final

import idna
from service_identity.exceptions import CertificateError as UnusablePattern
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID, IPAddressPattern

from trionode._util.text import printable

from .certificate import SubjectAltName, UnreadableError, subject_alt_names

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["NodeName"]

URI_SCHEME: Final = "trionode"
MAX_NODE_NAME_BYTES: Final = 255

_NAME = re.compile(r"[A-Za-z0-9._~-]+")
#: With underscores, which RFC 952 does not have and containers, Active Directory and service records do.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9_-]")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _check_text(what: str, given: object) -> None:
    if not isinstance(given, str):
        msg = f"{what} is a string, not {printable(repr(type(given).__name__), 80)}"
        raise TypeError(msg)


def canonical_host(text: str) -> str:
    """A host in canonical form: lower-case A-labels without trailing dot, or an address (IPv6 in brackets).

    Args:
        text: a DNS name (U-labels welcome), an IPv4 address, or an IPv6 address with or without brackets, no zone.

    Raises:
        ValueError: it is none of these. A name whose last label is a number is refused: resolvers read `127.1` or
            `0x7f.1` as addresses (WHATWG URL, "ends in a number").
        TypeError: it is no string.
    """
    _check_text("a host", text)
    shown = repr(printable(text, 80))
    if len(text) > MAX_NODE_NAME_BYTES:
        msg = f"host {shown} is longer than {MAX_NODE_NAME_BYTES} bytes"
        raise ValueError(msg)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            address = ipaddress.IPv6Address(bare)
        except ValueError:
            address = None
        if address is None:
            msg = f"host {shown} is not an IPv6 address, nor a DNS name, which has no colons{_likely(text)}"
            raise ValueError(msg)
        if address.scope_id is not None:
            msg = (
                f"host {shown} has a zone (%{printable(address.scope_id, 20)}), which is for one machine only: drop it"
            )
            raise ValueError(msg)
        return f"[{address}]"
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    try:
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError as exc:
        msg = f"host {shown} is not a DNS name: {printable(str(exc), 120)}"
        raise ValueError(msg) from None
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) and _is_a_label(label) for label in labels):
        msg = f"host {shown} is neither a DNS name nor an IP address: {_what_is_wrong(name)}"
        raise ValueError(msg)
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        msg = f"host {shown} ends in a number but is not an IPv4 address"
        raise ValueError(msg)
    return name


def _likely(text: str) -> str:
    """What a host with a colon was probably meant to be, for the end of a sentence."""
    if "://" in text:
        return "; give the host of the URL alone"
    host, _, port = text.rpartition(":")
    return "; give host and port apart" if port.isdecimal() and ":" not in host else ""


def _what_is_wrong(name: str) -> str:
    """Why a lower-case ASCII text is no DNS name."""
    if not name:
        return "it is empty"
    if len(name) > 253:
        return f"it is longer than 253 characters ({len(name)})"
    position = 1
    for label in name.split("."):
        if not label:
            return f"an empty label at character {position}"
        if odd := _NOT_IN_A_LABEL.search(label):
            return f"{printable(odd[0])!r} at character {position + odd.start()} is not allowed in a DNS name"
        if len(label) > 63:
            return f"the label at character {position} is longer than 63 characters ({len(label)})"
        if label.startswith("-") or label.endswith("-"):
            return f"the label {label!r} at character {position} begins or ends with a hyphen"
        if not _is_a_label(label):
            return f"the label {printable(label, 63)!r} at character {position} is no A-label (RFC 5890)"
        position += len(label) + 1
    return "it is empty"


def _is_a_label(label: str) -> bool:
    """False for an `xn--` label that does not decode: it would never compare equal to what it pretends to be."""
    if not label.startswith("xn--"):
        return True
    try:
        idna.ulabel(label)
    except idna.IDNAError:
        return False
    return True


def unbracketed(host: str) -> str:
    """A canonical host as sockets want it: an IPv6 address without its brackets."""
    return host[1:-1] if host.startswith("[") else host


@lru_cache(maxsize=1024)
def host_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a canonical host is, or None where it is a DNS name."""
    try:
        return ipaddress.ip_address(unbracketed(host))
    except ValueError:
        return None


@final
@dataclass(frozen=True, slots=True, order=True)
class NodeName:
    """A node's name, `name@host`, in canonical form.

    Make one with `NodeName.parse`. Compared and hashed in canonical form; `str()` gives it back. It is equal to that
    text, so `peer.name == "alpha@localhost"` and `node.connections["alpha@localhost"]` do what they say; a text that
    spells it in another way (`alpha@LOCALHOST`) is not, as no two different texts are: parse it first.

    Attributes:
        name: `[A-Za-z0-9._~-]+`, case-sensitive.
        host: a DNS name (lower-case A-labels, no trailing dot), an IPv4 address, or an IPv6 address in brackets.
    """

    name: str
    host: str
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the parts, for callers that do not come by `parse`.

        Raises:
            ValueError: a part is not canonical, or the whole is longer than 255 bytes.
            TypeError: a part is no string.
        """
        _check_text("the part of a node name before its @", self.name)
        object.__setattr__(self, "_text", f"{self.name}@{self.host}")
        if not _NAME.fullmatch(self.name):
            msg = f"node name part {printable(self.name, 80)!r} must be one or more of A-Z a-z 0-9 . _ ~ -"
            raise ValueError(msg)
        if canonical_host(self.host) != self.host:
            msg = f"host {printable(self.host, 80)!r} is not canonical; use NodeName.parse()"
            raise ValueError(msg)
        if len(self.name) + 1 + len(self.host) > MAX_NODE_NAME_BYTES:
            msg = f"a node name has at most {MAX_NODE_NAME_BYTES} bytes: {printable(str(self), 80)!r}"
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str | NodeName) -> NodeName:
        """The node name that `text` spells.

        Args:
            text: `name@host`, at most 255 bytes in canonical form; a `NodeName` is returned as it is.

        Raises:
            ValueError: it does not spell one; the message says what is wrong.
            TypeError: it is no string.
        """
        given: object = text
        if not isinstance(given, str | NodeName):
            msg = f"a node name is a string, name@host, not a {type(given).__name__}"
            raise TypeError(msg)
        return text if isinstance(text, NodeName) else _parse(text)

    def __str__(self) -> str:
        """`name@host`."""
        return self._text

    # By the text, so that what is equal has one hash.

    def __eq__(self, other: object) -> bool:
        """Whether it is the same name, or its canonical text."""
        if isinstance(other, NodeName):
            return self._text == other._text
        return self._text == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        """That of its text."""
        return hash(self._text)


def parse_name(name: str | NodeName) -> NodeName | str:
    """What a certificate may be for: a node's name, or a host, in canonical form.

    Raises:
        ValueError: it is neither.
    """
    return NodeName.parse(name) if isinstance(name, NodeName) or "@" in name else canonical_host(name)


@lru_cache(maxsize=1024)
def _parse(text: str) -> NodeName:
    name, at, host = text.partition("@")
    if not at:
        msg = f"a node name is name@host, not {printable(text, 80)!r}"
        raise ValueError(msg)
    return NodeName(name, canonical_host(host))


@dataclass(frozen=True, slots=True)
class SubjectNames:
    """The names that a certificate offers, by kind.

    Attributes:
        dns: usable DNS SANs as patterns.
        addresses: IP SANs as patterns.
        nodes: node names from `trionode://` URI SANs.
        restricted: whether there was any `trionode://` URI SAN, well-formed or not.
        unusable: SANs that could not be read as a name, with the reason, as text.
    """

    dns: tuple[DNSPattern, ...]
    addresses: tuple[IPAddressPattern, ...]
    nodes: frozenset[NodeName]
    restricted: bool
    unusable: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=256)  # a cluster shows the same certificates again and again
    def of(cls, certificate: x509.Certificate) -> SubjectNames:
        """Read the SANs of a certificate, each by itself; an extension that cannot be read offers nothing."""
        dns: list[DNSPattern] = []
        addresses: list[IPAddressPattern] = []
        nodes: set[NodeName] = set()
        unusable: list[str] = []
        restricted = False
        try:
            entries = subject_alt_names(certificate)
        except UnreadableError as exc:
            entries = ()
            unusable.append(printable(str(exc), 160))
        for entry in entries:
            try:
                if entry.kind == "DNS":
                    dns.append(_dns_pattern(_readable(entry)))
                elif entry.kind == "IP":
                    addresses.append(IPAddressPattern(pattern=ipaddress.ip_address(_readable(entry))))
                elif entry.kind == "URI" and (rest := _of_our_scheme(entry)) is not None:
                    restricted = True
                    nodes.add(_node_of_uri(rest))
            except (ValueError, UnusablePattern) as exc:
                unusable.append(printable(f"{entry.shown!r}: {exc}", 160))
        return cls(tuple(dns), tuple(addresses), frozenset(nodes), restricted, tuple(unusable))

    def cover_host(self, host: str) -> bool:
        """Whether the DNS or IP SANs match a canonical host (RFC 9525 section 6)."""
        wanted = _reference(host)
        patterns = self.addresses if isinstance(wanted, IPAddress_ID) else self.dns
        return any(wanted.verify(pattern) for pattern in patterns)

    def admit_node(self, name: NodeName) -> bool:
        """Whether the URI SANs allow a node name; True where there are none."""
        return not self.restricted or name in self.nodes

    def cover_node(self, name: NodeName) -> bool:
        """Whether the certificate covers a node name: DNS or IP SANs match its host, and the URI SANs allow it."""
        return self.cover_host(name.host) and self.admit_node(name)


@lru_cache(maxsize=1024)
def _reference(host: str) -> DNS_ID | IPAddress_ID:
    address = host_address(host)
    return DNS_ID(host) if address is None else IPAddress_ID(address)


def _dns_pattern(value: str) -> DNSPattern:
    """A DNS SAN in canonical form; a wildcard is allowed as the whole left-most label only (RFC 9525 section 6.3)."""
    # OpenSSL compared the name constraints of the CAs with these very bytes: a spelling that only we take for a name
    # (`banK.example` with a Kelvin sign, a trailing dot) would slip past an excluded subtree.
    if not value.isascii() or value.endswith("."):
        msg = "a DNS name in a certificate is ASCII, without a trailing dot (RFC 5280 sections 4.2.1.6 and 7.2)"
        raise ValueError(msg)
    head, dot, tail = value.partition(".")
    if head == "*" and dot:
        return DNSPattern.from_bytes(f"*.{canonical_host(tail)}".encode())
    host = canonical_host(value)
    if host_address(host) is not None:
        msg = "an address in a DNS name"
        raise ValueError(msg)
    return DNSPattern.from_bytes(host.encode())


def _node_of_uri(rest: str) -> NodeName:
    if not rest.startswith("//") or not rest.isascii():
        msg = "a node's URI is trionode://name@host, in ASCII"
        raise ValueError(msg)
    return NodeName.parse(rest[2:])


def _of_our_scheme(entry: SubjectAltName) -> str | None:
    """What follows the scheme in a `trionode:` URI; None for other URIs."""
    # The scheme alone narrows: `trionode:alpha@h`, without the slashes, is a malformed one, and so is what is no ASCII.
    scheme, _, rest = entry.shown.removeprefix("URI:").partition(":")
    return rest if scheme.lower() == URI_SCHEME else None


def _readable(entry: SubjectAltName) -> str:
    if entry.value is None:
        msg = "no DNS name is other than ASCII" if entry.kind == "DNS" else "no address"
        raise ValueError(msg)
    return entry.value
