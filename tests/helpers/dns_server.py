"""A DNS server of the tests' own: one zone, over UDP on loopback, on Trio."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class DNSServer:
    """What it answers.

    Attributes:
        port: where it listens.
        records: the texts of the records of each name and type, and their TTL.
        soa: the SOA record that goes with what is not there, and its TTL; None for none.
        rcode: what it answers to everything, where that is not NOERROR.
        silent: whether it answers at all.
        asked: the questions so far.
    """

    def __init__(self) -> None:
        self.port = 0
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.soa: tuple[int, str] | None = (60, "ns.test. admin.test. 1 3600 600 86400 30")
        self.rcode = dns.rcode.NOERROR
        self.silent = False
        self.asked: list[tuple[str, str]] = []

    def set(self, name: str, kind: str, *texts: str, ttl: int = 60) -> None:
        """Have records of a name; none, and there are no longer any."""
        if texts:
            self.records[name, kind] = (ttl, list(texts))
        else:
            self.records.pop((name, kind), None)

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """What is said to a query."""
        reply = dns.message.make_response(query, recursion_available=True)
        reply.flags |= dns.flags.AA
        reply.set_rcode(self.rcode)
        [question] = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.rcode is not dns.rcode.NOERROR:
            return reply
        alias = self.records.get((name, "CNAME"))
        if alias is not None:
            reply.answer.append(dns.rrset.from_text(question.name, alias[0], "IN", "CNAME", *alias[1]))
            name = alias[1][0].removesuffix(".")
        found = self.records.get((name, kind))
        if found is not None:
            reply.answer.append(dns.rrset.from_text(f"{name}.", found[0], "IN", kind, *found[1]))
            return reply
        if not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if self.soa is not None:
            reply.authority.append(dns.rrset.from_text("test.", self.soa[0], "IN", "SOA", self.soa[1]))
        return reply

    async def serve(self, sock: trio.socket.SocketType) -> None:
        """Answer until cancelled."""
        while True:
            data, address = await sock.recvfrom(4096)
            reply = self.answer(dns.message.from_wire(data))
            if not self.silent:
                await sock.sendto(reply.to_wire(), address)


@asynccontextmanager
async def dns_server() -> AsyncIterator[DNSServer]:
    """One that runs for the length of the block."""
    server = DNSServer()
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        server.port = sock.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, sock)
            yield server
            nursery.cancel_scope.cancel()
