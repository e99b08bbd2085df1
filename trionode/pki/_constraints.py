"""Name constraints (RFC 5280 section 4.2.1.10): the hosts and addresses for which an intermediate may issue.

Whoever steals the key of such a CA can name only these. Constraints on DNS names leave addresses free, and the other
way round, so where there is any, the kind that was not mentioned is excluded as a whole. URIs are left free: what is
after `trionode://` restricts a certificate, it never entitles to a host.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509

from trionode._identity.certificate import extension
from trionode._identity.names import canonical_host, host_address

if TYPE_CHECKING:
    from collections.abc import Iterable

_EVERY_ADDRESS: Final = ("0.0.0.0/0", "::/0")


def name_constraints(permitted: Iterable[str]) -> x509.NameConstraints | None:
    """The extension for what is permitted; None for no constraint.

    Args:
        permitted: hosts, which stand for themselves and all below them (a leading dot makes no difference), addresses,
            and networks (`10.0.0.0/8`).

    Raises:
        ValueError: one is none of these.
    """
    subtrees = [_subtree(each) for each in permitted]
    if not subtrees:
        return None
    excluded: list[x509.GeneralName] = []
    if not any(isinstance(each, x509.DNSName) for each in subtrees):
        excluded.append(x509.DNSName(""))
    if not any(isinstance(each, x509.IPAddress) for each in subtrees):
        excluded += [x509.IPAddress(ipaddress.ip_network(each)) for each in _EVERY_ADDRESS]
    return x509.NameConstraints(permitted_subtrees=subtrees, excluded_subtrees=excluded or None)


def _subtree(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_network(text.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(canonical_host(text.removeprefix("*").removeprefix(".")))
    except ValueError as exc:
        msg = f"{text!r} is neither a host, nor an address, nor a network: {exc}"
        raise ValueError(msg) from None


def refuse_outside(hosts: Iterable[str], issuer: x509.Certificate) -> None:
    """Insist that an issuer may name these hosts, so that no certificate is made that every peer refuses.

    Args:
        hosts: canonical.
        issuer: the CA's certificate.

    Raises:
        ValueError: its name constraints do not permit one.
    """
    constraints = extension(issuer, x509.NameConstraints)
    if constraints is None:
        return
    permitted, excluded = constraints.permitted_subtrees or (), constraints.excluded_subtrees or ()
    for host in hosts:
        address = host_address(host)
        kind: type[x509.GeneralName] = x509.DNSName if address is None else x509.IPAddress
        allowed = [each for each in permitted if isinstance(each, kind)]
        good = not allowed or any(_covers(each, host) for each in allowed)
        if not good or any(_covers(each, host) for each in excluded):
            shown = ", ".join(str(each.value) for each in permitted)
            msg = f"the CA may not issue for {host}: its name constraints permit {shown or 'other names'}"
            raise ValueError(msg)


def _covers(subtree: x509.GeneralName, host: str) -> bool:
    address = host_address(host)
    if isinstance(subtree, x509.DNSName):
        base = subtree.value.lower().removeprefix(".")
        return address is None and (not base or host == base or host.endswith(f".{base}"))
    if isinstance(subtree, x509.IPAddress) and address is not None:
        network = subtree.value
        return isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network) and (
            address.version == network.version and address in network
        )
    return False
