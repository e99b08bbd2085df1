"""The DNS resolver: where nodes are, and which there are, stands in SRV and address records.

Theory. A node's host is asked for SRV records (RFC 2782); their targets, or the host itself where there are none, are
asked for addresses. A *service* is one SRV name that lists nodes: each target is the host of one of them. That is what
a headless service of Kubernetes is.

Answers are kept for as long as their TTL says, negative ones for as long as their SOA record says (RFC 2308), and not
at all where there is none. DNS tells of no changes, so what is watched is asked for again when its answer has run out.
Answers are not authenticated, and need not be: they say where to dial, and the certificate there says who it is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._identity.names import NodeName, canonical_host, host_address
from trionode._node.resolvers import DEFAULT_PORT, MAX_ENDPOINTS, MAX_NAMES, Endpoint, ResolverError
from trionode._util.fields import SECONDS, check_argument, check_each, integer, show
from trionode._util.text import printable

try:
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.exception
    import dns.message
    import dns.name
    import dns.rdatatype
    import dns.resolver
except ModuleNotFoundError as _exc:
    if _exc.name != "dns":
        raise
    _msg = "trionode.discovery.DNSResolver needs dnspython; install it with: pip install 'trionode[dns]'"
    raise ModuleNotFoundError(_msg, name=_exc.name) from None

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any

__all__ = ["DNSResolver"]

#: How many answers are kept.
_KEPT: Final = 4096
#: No answer is kept for longer, whatever it says (RFC 8767 section 4). Seconds.
_LONGEST: Final = 7 * 24 * 3600.0
#: What is watched is asked for again after so long at least, and at most. Seconds.
_SOONEST: Final = 1.0
_LATEST: Final = 300.0


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    """The records of one question, and how long they are good for, on Trio's clock."""

    records: tuple[Any, ...]
    until: float


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """What several questions came to, and when the first of their answers runs out."""

    endpoints: tuple[Endpoint, ...]
    until: float


@final
class DNSResolver:
    """Finds nodes by DNS: resolves and watches; and names those that services list.

    Attributes:
        services: for each name part of nodes, the SRV name that lists them.
    """

    def __init__(
        self,
        *,
        services: Mapping[str, str] | None = None,
        service: str = "_trionode._tcp.{host}",
        nameservers: Sequence[str] = (),
        port: int = 53,
        timeout: float = 3,
    ) -> None:
        """Make one.

        Args:
            services: SRV names that list nodes, by the name part of these: with `{"worker":
                "_trionode._tcp.worker.prod.svc.cluster.local"}` each target of that SRV name is the host of a node
                `worker@target`. Such nodes can be named and followed.
            service: the SRV name of any other node, made of its `{name}` and `{host}`.
            nameservers: addresses of the servers to ask; by default those of the system (`/etc/resolv.conf`).
            port: of these servers.
            timeout: for each question, seconds.

        Raises:
            ValueError, TypeError: an argument is not what belongs there; the message names it.
            ResolverError: the system has no name servers.
        """
        check_argument("port", port, integer(1, 65535))
        check_argument("timeout", timeout, SECONDS)
        check_argument("services", services, Mapping[str, str] | None)
        check_argument("service", service, str)
        servers = check_each("nameservers", nameservers or (), str)
        for each in servers:
            if host_address(each) is None:
                msg = f"nameservers must be addresses, not {show(each)}"
                raise ValueError(msg)
        self.services: Mapping[str, str] = dict(services or {})
        for name, domain in self.services.items():
            NodeName(name, "localhost")
            _question(domain)
        self._service = service
        _question(service.format(name="name", host="host.example"))
        self._timeout = timeout
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration as exc:
            msg = "the system has no name servers (/etc/resolv.conf); give DNSResolver(nameservers=…)"
            raise ResolverError(msg) from exc
        if servers:
            self._resolver.nameservers = list(servers)
        self._resolver.port = port
        self._resolver.cache = None
        self._resolver.retry_servfail = False
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def __repr__(self) -> str:
        return f"<DNSResolver at {', '.join(map(str, self._resolver.nameservers))}>"

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Where a node is, by SRV and address records.

        Args:
            name: of the node that is dialled.

        Raises:
            ResolverError: no name server answers, or they fail.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return list((await self._find(name)).endpoints)

    def watch(self, name: NodeName, /) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Sequence[Endpoint]]]:
        """Where a node is, now and when that changes; see `WatchingResolver`.

        Args:
            name: of the node.
        """
        return self._watch(name)

    def names(
        self, pattern: str = "*", /
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Collection[NodeName]]]:
        """The names of the nodes that the services list, now and when they change; see `NamingResolver`.

        Args:
            pattern: of no influence: all are named.
        """
        del pattern
        return self._names()

    @trio.as_safe_channel
    async def _watch(self, name: NodeName) -> AsyncGenerator[Sequence[Endpoint]]:
        last: set[Endpoint] | None = None
        while True:
            found = await self._find(name)
            if set(found.endpoints) != last:  # their order is drawn each time
                last = set(found.endpoints)
                yield list(found.endpoints)
            await _sleep_until(found.until)

    @trio.as_safe_channel
    async def _names(self) -> AsyncGenerator[Collection[NodeName]]:
        last: set[NodeName] | None = None
        while True:
            names: set[NodeName] = set()
            until = math.inf
            for name, domain in self.services.items():
                answer = await self._ask(domain, "SRV")
                until = min(until, answer.until)
                names |= {NodeName(name, host) for host, _ in _targets(answer)}
            if names != last:
                last = names
                yield names
            await _sleep_until(until)

    async def _find(self, name: NodeName) -> _Found:
        if host_address(name.host) is not None:
            return _Found((Endpoint(name.host, DEFAULT_PORT),), math.inf)
        domain = self.services.get(name.name)
        listed = await self._ask(domain or self._service.format(name=name.name, host=name.host), "SRV")
        targets = _targets(listed)
        if domain is not None:
            targets = [(host, port) for host, port in targets if host == name.host]
        elif not listed.records:
            targets = [(name.host, DEFAULT_PORT)]
        endpoints: list[Endpoint] = []
        until = listed.until
        for host, port in targets[:MAX_ENDPOINTS]:
            for kind in "A", "AAAA":
                answer = await self._ask(host, kind)
                until = min(until, answer.until)
                endpoints += [Endpoint(each.address, port) for each in answer.records]
        return _Found(tuple(dict.fromkeys(endpoints[:MAX_ENDPOINTS])), until)

    async def _ask(self, domain: str, kind: str) -> _Answer:
        """The records of a name, as they were kept, or anew.

        Raises:
            ResolverError: no name server answers, or they fail.
        """
        kept = self._answers.get((domain, kind))
        if kept is not None and kept.until > trio.current_time():
            return kept
        try:
            records, ttl = await self._query(domain, kind)
        except (dns.exception.DNSException, OSError) as exc:
            msg = f"DNS does not answer for {domain} {kind}: {printable(str(exc), 200) or type(exc).__name__}"
            raise ResolverError(msg, temporary=True) from exc
        answer = self._answers[domain, kind] = _Answer(records, trio.current_time() + min(ttl, _LONGEST))
        self._answers.move_to_end((domain, kind))
        if len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return answer

    async def _query(self, domain: str, kind: str) -> tuple[tuple[Any, ...], float]:
        """The records, in the order in which they are to be tried, and how long they may be kept."""
        try:
            question = _question(domain)
        except ValueError:  # too long, with what stands before the host
            return (), _LONGEST
        try:
            answer = await self._resolver.resolve(
                question,
                kind,
                raise_on_no_answer=False,
                search=False,
                lifetime=self._timeout,
                backend=dns.asyncbackend.get_backend("trio"),
            )
        except dns.resolver.NXDOMAIN as exc:
            said: dns.message.Message = exc.response(question)  # type: ignore[no-untyped-call]
            return (), _negative_ttl(said)
        if answer.rrset is None:
            return (), _negative_ttl(answer.response)
        return tuple(answer.rrset.processing_order()), float(answer.chaining_result.minimum_ttl)


def _question(domain: str) -> dns.name.Name:
    """A name for DNS.

    Raises:
        ValueError: it is none.
    """
    try:
        return dns.name.from_text(domain)
    except dns.exception.DNSException as exc:
        msg = f"{printable(domain, 80)} is no name of DNS: {exc}"
        raise ValueError(msg) from None


def _targets(answer: _Answer) -> list[tuple[str, int]]:
    """Hosts and ports of SRV records, in order; a target that is no host, or the root, counts for nothing."""
    found: list[tuple[str, int]] = []
    for each in answer.records[:MAX_NAMES]:
        try:
            host = canonical_host(each.target.to_text(omit_final_dot=True))
        except ValueError:
            continue
        if each.port:
            found.append((host, each.port))
    return found


def _negative_ttl(message: dns.message.Message) -> float:
    """How long it may be kept that there is nothing (RFC 2308 section 5); not at all without an SOA record."""
    for rrset in message.authority:
        if rrset.rdtype is dns.rdatatype.SOA and rrset:
            return float(min(rrset.ttl, rrset[0].minimum))
    return 0.0


async def _sleep_until(moment: float) -> None:
    await trio.sleep(min(max(moment - trio.current_time(), _SOONEST), _LATEST))
