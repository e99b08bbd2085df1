"""Name constraints (RFC 5280 section 4.2.1.10): the hosts and addresses for which an intermediate may issue.

Whoever steals the key of such a CA can name only these. Where nothing else is said, they are those that no public
network has: the cluster's machines on a private network have such names and addresses, and no bank has. Constraints on
DNS names leave addresses free, and the other way round, so where there is any, the kind that was not mentioned is
excluded as a whole. URIs are left free: what is after `trionode://` restricts a certificate, it never entitles to a
host.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from cryptography import x509

from trionode._identity.certificate import extension
from trionode._identity.describe import describe_subject
from trionode._identity.names import canonical_host, host_address
from trionode._util.fields import check_each

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Names and networks that no public network has: RFC 6761, RFC 6762 (with its appendix G), RFC 8375, and `internal`,
#: which ICANN has reserved; loopback, RFC 1918, RFC 6598, RFC 4193, link-local.
PRIVATE_NAMES: Final = (
    *("localhost", "internal", "local", "home.arpa", "test", "example", "intranet", "private", "corp", "home", "lan"),
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
    *("::1/128", "fc00::/7", "fe80::/10"),
)
#: Stands for every name and address: no constraint.
ANY_NAME: Final = "*"

_EVERY_ADDRESS: Final = ("0.0.0.0/0", "::/0")


@final
class OutsideError(ValueError):
    """A CA may not issue for a name."""


def name_constraints(permitted: Iterable[str]) -> x509.NameConstraints | None:
    """The extension for what is permitted; None for no constraint.

    Args:
        permitted: hosts, which stand for themselves and all below them (a leading dot makes no difference), addresses,
            and networks (`10.0.0.0/8`); or `*` alone, for everything.

    Raises:
        ValueError: one is none of these, or there is none.
    """
    texts = list(check_each("permitted", permitted, str))
    if texts == [ANY_NAME]:
        return None
    if not texts or ANY_NAME in texts:
        msg = "what a CA may issue for is a list of hosts, addresses and networks; or '*' alone, for everything"
        raise ValueError(msg)
    subtrees = [_subtree(each) for each in texts]
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
    first = host_address(text.partition("/")[0])
    if first is not None:
        msg = f"{text!r} is no network: write {first}/{first.max_prefixlen}, or fewer bits"
        with suppress(ValueError):
            msg = f"{text!r} is an address in a network; write {ipaddress.ip_network(text, strict=False)} for all of it"
        raise ValueError(msg)
    try:
        return x509.DNSName(canonical_host(text.removeprefix("*").removeprefix(".")))
    except ValueError as exc:
        msg = f"{text!r} is neither a host, nor an address, nor a network: {exc}"
        raise ValueError(msg) from None


def permitted_by(issuer: x509.Certificate) -> list[str]:
    """What `name_constraints` made an issuer's constraints of.

    Raises:
        ValueError: they are not of its making.
    """
    constraints = extension(issuer, x509.NameConstraints)
    if constraints is None:
        return [ANY_NAME]
    texts = [str(each.value) for each in constraints.permitted_subtrees or ()]
    with suppress(ValueError):
        if name_constraints(texts) == constraints:
            return texts
    msg = f"the name constraints of {describe_subject(issuer)} are not of trionode's making: say what is permitted"
    raise ValueError(msg)


def refuse_outside(hosts: Iterable[str], issuer: x509.Certificate) -> None:
    """Insist that an issuer may name these hosts, so that no certificate is made that every peer refuses.

    Args:
        hosts: canonical.
        issuer: the CA's certificate.

    Raises:
        OutsideError: its name constraints do not permit one.
    """
    constraints = extension(issuer, x509.NameConstraints)
    if constraints is None:
        return
    permitted, excluded = constraints.permitted_subtrees or (), constraints.excluded_subtrees or ()
    for host in hosts:
        address = host_address(host)
        kind: type[x509.GeneralName] = x509.DNSName if address is None else x509.IPAddress
        allowed = [each for each in permitted if isinstance(each, kind)]
        excludes = [each for each in excluded if _covers(each, host)]
        if excludes or (allowed and not any(_covers(each, host) for each in allowed)):
            limits = f"exclude {excludes[0].value or 'every name'}" if excludes else f"permit {_listed(allowed)} alone"
            msg = (
                f"the CA may not issue for {host}: its name constraints {limits}. Have {host} among what is permitted "
                "when you make a CA (PKIDirectory.create), or its successor (begin_roll_over)"
            )
            raise OutsideError(msg)


def _listed(subtrees: Iterable[x509.GeneralName]) -> str:
    return ", ".join(str(each.value) for each in subtrees)


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
