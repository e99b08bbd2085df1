"""What a dialer demands of a server, and what both are told; versions, ALPN and resumption, from both ends.

The servers are Python's own `ssl` in a thread (OpenSSL 3.0 at the time of writing), `openssl s_server`, plain TCP
servers that know no TLS, and our own accepting side; the clients are our dialer, `ssl`, `openssl s_client` and
pyOpenSSL.
"""

from __future__ import annotations

import logging
import re
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from trionode import (
    CAPool,
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    HandshakeTimeoutError,
    KeyPair,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    TLSStream,
    UnverifiedReason,
    open_tls_stream,
)
from trionode import _openssl
from trionode._handshake import accept_tls
from trionode._identity import canonical_host
from trionode.pki import CertificateAuthority, write_ca_pool, write_key_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

#: Every test is bounded by this. Seconds.
PATIENCE = 30
WELCOME = b"welcome"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program here")

Files: TypeAlias = "tuple[Path, Path]"


@dataclass(frozen=True, kw_only=True)
class World:
    """The CAs, a client, and a place for files."""

    ca: CertificateAuthority
    rogue: CertificateAuthority
    chained: CertificateAuthority
    client: KeyPair
    folder: Path

    @property
    def ca_file(self) -> Path:
        """The CA's certificate."""
        return self.folder / "ca.pem"

    def files(self, key_pair: KeyPair) -> Files:
        """A key pair as PEM files."""
        files = (self.folder / f"{key_pair.fingerprint}.pem", self.folder / f"{key_pair.fingerprint}.key")
        if not files[0].exists():
            write_key_pair(key_pair, *files)
        return files

    def manager(self, *, pool: CAPool | None = None, **settings: Any) -> CertAuthManager:
        """A dialer's manager: it presents a good certificate and trusts the CA, or another pool."""
        return CertAuthManager(self.client, root_cas=pool or self.ca.pool, **settings)

    def odd(self, *names: x509.GeneralName, common_name: str = "localhost", is_ca: bool = False) -> KeyPair:
        """A certificate of the CA with any SANs at all, or none."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.ca.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - DAY)
            .not_valid_after(datetime.now(UTC) + DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signer = self.ca._key
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        return KeyPair([builder.sign(signer, hashes.SHA256())], key)


@pytest.fixture(scope="module")
def world(ca: CertificateAuthority, rogue_ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Everything that lasts for the module."""
    world = World(
        ca=ca,
        rogue=rogue_ca,
        chained=CertificateAuthority.create(intermediate=True, common_name="chained CA"),
        client=ca.issue("client@localhost"),
        folder=tmp_path_factory.mktemp("servers"),
    )
    write_ca_pool(ca.pool, world.ca_file)
    return world


def alert_of(exc: ssl.SSLError) -> str:
    """The name of the alert that an error of `ssl` is about, or the error's own reason."""
    return re.sub(r"(SSLV3|TLSV1|TLSV13)_ALERT_", "", exc.reason or "").lower()


# Servers ------------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a server saw of its one client.

    Attributes:
        alert: the alert that it was refused with, by name, or another reason why it failed; empty on success.
        sni: the server names that were asked for.
        certificate_sent: whether a Certificate message came at all (`ssl` server only).
        certificate: the client's certificate, DER.
        alpn: the protocol that was agreed on.
        received: what the client said afterwards.
    """

    alert: str = ""
    sni: list[str | None] = field(default_factory=list)
    certificate_sent: bool = False
    certificate: bytes | None = None
    alpn: str | None = None
    received: bytes = b""


Server: TypeAlias = Callable[[trio.TaskStatus[int]], Awaitable[Seen]]


def stdlib_server(
    world: World, key_pair: KeyPair, *, alpn: Sequence[str] = (), version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Server:
    """Python's own `ssl` as a server: it asks for a client certificate and takes one client."""
    seen = Seen()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(*world.files(key_pair))
    context.load_verify_locations(world.ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    if alpn:
        context.set_alpn_protocols(list(alpn))
    context.sni_callback = lambda _stream, name, _context: seen.sni.append(name)

    def watch(_stream: object, direction: str, _version: object, kind: object, message: object, _data: bytes) -> None:
        if direction == "read" and str(message).endswith("CERTIFICATE"):
            seen.certificate_sent = True

    # Undocumented, for debugging, and there since 3.8: the one way to see a message of a handshake that then fails.
    context._msg_callback = watch  # type: ignore[attr-defined]

    def serve(listening: socket.socket) -> Seen:
        transport, _ = listening.accept()
        transport.settimeout(PATIENCE)
        try:
            with transport, context.wrap_socket(transport, server_side=True) as stream:
                seen.certificate = stream.getpeercert(binary_form=True)
                seen.alpn = stream.selected_alpn_protocol()
                stream.sendall(WELCOME)
                while data := stream.recv(1000):
                    seen.received += data
        except ssl.SSLError as exc:
            seen.alert = alert_of(exc)
        return seen

    async def run(task_status: trio.TaskStatus[int]) -> Seen:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(PATIENCE)
            task_status.started(listening.getsockname()[1])
            return await trio.to_thread.run_sync(serve, listening)

    return run


def s_server(world: World, key_pair: KeyPair, *options: str) -> Server:
    """`openssl s_server`: it asks for a client certificate and takes one client."""
    certificate, key = world.files(key_pair)
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-verify", "4"]
    command += ["-cert", str(certificate), "-key", str(key), "-CAfile", str(world.ca_file), *options]
    if len(key_pair.chain) > 1:
        command += ["-cert_chain", str(certificate)]

    async def run(task_status: trio.TaskStatus[int]) -> Seen:
        output, complaints = bytearray(), bytearray()

        async def collect(stream: trio.abc.ReceiveStream) -> None:
            async for chunk in stream:
                complaints.extend(chunk)

        async with trio.open_nursery() as nursery:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process: trio.Process = await nursery.start(partial(trio.run_process, command, check=False, **pipes))
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            nursery.start_soon(collect, process.stderr)
            listening = greeted = False
            async for chunk in process.stdout:
                output += chunk
                if not listening and (found := re.search(rb"ACCEPT 127\.0\.0\.1:(\d+)\n", output)):
                    task_status.started(int(found[1]))
                    listening = True
                if not greeted and b"CIPHER is" in output:
                    await process.stdin.send_all(WELCOME)
                    greeted = True
        alert = re.search(rb" alert ([a-z ]+):", complaints)
        pem = re.search(rb"Client certificate\n(-----BEGIN.*?-----END CERTIFICATE-----\n)", output, re.DOTALL)
        return Seen(
            alert="" if alert is None else alert[1].decode().replace(" ", "_"),
            certificate=None if pem is None else x509.load_pem_x509_certificate(pem[1]).public_bytes(Encoding.DER),
        )

    return run


SERVERS: Final[dict[str, Callable[[World, KeyPair], Server]]] = {"stdlib": stdlib_server, "s_server": s_server}


@pytest.fixture(params=["stdlib", pytest.param("s_server", marks=needs_openssl)])
def make_server(request: pytest.FixtureRequest) -> Callable[[World, KeyPair], Server]:
    """Makes a server of one kind."""
    return SERVERS[request.param]


async def visit(
    server: Server, manager: CertAuthManager, host: str = "127.0.0.1", **options: Any
) -> tuple[TLSStream | HandshakeError, Seen]:
    """Dial a server, read its welcome: what came of it here, and what the server saw."""
    seen: list[Seen] = []
    result: TLSStream | HandshakeError

    async def run(*, task_status: trio.TaskStatus[int]) -> None:
        seen.append(await server(task_status))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(run)
            try:
                result = await open_tls_stream(host, port, cert_manager=manager, **options)
            except HandshakeError as exc:
                result = exc
            else:
                async with result:
                    assert await result.receive_some() == WELCOME
                    await result.send_all(b"thanks")
    return result, seen[0]


# Which certificates pass --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A server's certificate, what the dialer wants, and how it ends.

    Attributes:
        made: makes the certificate.
        pool: what the dialer trusts, made after the certificate; by default the CA.
        name: the name that is wanted, as `server_name`.
        refused: our reason and the alert that the server gets, or None where it passes.
    """

    made: Callable[[World], KeyPair]
    pool: Callable[[World, KeyPair], CAPool] | None = None
    name: str = "localhost"
    refused: tuple[UnverifiedReason, RejectionCode] | None = None


UNKNOWN_CA = (UnverifiedReason.UNKNOWN_CA, RejectionCode.UNKNOWN_CA)
EXPIRED = (UnverifiedReason.EXPIRED, RejectionCode.CERTIFICATE_EXPIRED)
NOT_YET_VALID = (UnverifiedReason.NOT_YET_VALID, RejectionCode.BAD_CERTIFICATE)
WRONG_EKU = (UnverifiedReason.WRONG_EKU, RejectionCode.UNSUPPORTED_CERTIFICATE)
# A refusal of our own, for which OpenSSL has no alert.
MISMATCH = (UnverifiedReason.NAME_MISMATCH, RejectionCode.INTERNAL_ERROR)


def issued(*names: str, **settings: Any) -> Callable[[World], KeyPair]:
    """By the CA, for these names."""
    return lambda world: world.ca.issue(*names, **settings)


def dated(first_day: int, last_day: int) -> Callable[[World], KeyPair]:
    """By the CA, for these days; today is 0."""
    now = datetime.now(UTC)
    return issued("localhost", not_before=now + first_day * DAY, not_after=now + last_day * DAY)


def odd(*names: x509.GeneralName, common_name: str = "localhost") -> Callable[[World], KeyPair]:
    """By the CA, with SANs of every kind."""
    return lambda world: world.odd(*names, common_name=common_name)


def dns(*names: str) -> tuple[x509.DNSName, ...]:
    """DNS SANs as they are, canonical or not."""
    return tuple(x509.DNSName._init_without_validation(name) for name in names)


def leaf_alone(key_pair: KeyPair) -> KeyPair:
    """Without the intermediates."""
    return KeyPair(key_pair.chain[:1], key_pair.private_key)


def root_of_chain(world: World, _key_pair: KeyPair) -> CAPool:
    """The root of the CA that issues through an intermediate."""
    return world.chained.pool


def intermediate_alone(world: World, _key_pair: KeyPair) -> CAPool:
    """The intermediate, without its root."""
    assert world.chained.intermediate is not None
    return CAPool([world.chained.intermediate])


def very_leaf(_world: World, key_pair: KeyPair) -> CAPool:
    """The server's certificate itself: a pin."""
    return CAPool([key_pair.certificate])


CHAINS: Final = {
    "good": Case(made=issued("localhost")),
    "without extended key usage": Case(made=issued("localhost", extended_key_usage=None)),
    "for servers only": Case(made=issued("localhost", extended_key_usage=[ExtendedKeyUsageOID.SERVER_AUTH])),
    "for clients only": Case(
        made=issued("localhost", extended_key_usage=[ExtendedKeyUsageOID.CLIENT_AUTH]), refused=WRONG_EKU
    ),
    "for one node only, which is no node's dial": Case(made=issued("alpha@localhost")),
    "expired": Case(made=dated(-10, -1), refused=EXPIRED),
    "not yet valid": Case(made=dated(1, 10), refused=NOT_YET_VALID),
    "of an unknown CA": Case(made=lambda world: world.rogue.issue("localhost"), refused=UNKNOWN_CA),
    "of an unknown CA, with its intermediate": Case(
        made=lambda world: world.chained.issue("localhost"), refused=UNKNOWN_CA
    ),
    "self-signed": Case(made=lambda _: KeyPair.self_signed("localhost"), refused=UNKNOWN_CA),
    "root in the pool, intermediate sent": Case(
        made=lambda world: world.chained.issue("localhost"), pool=root_of_chain
    ),
    "root in the pool, intermediate kept back": Case(
        made=lambda world: leaf_alone(world.chained.issue("localhost")), pool=root_of_chain, refused=UNKNOWN_CA
    ),
    "intermediate alone in the pool, and sent": Case(
        made=lambda world: world.chained.issue("localhost"), pool=intermediate_alone
    ),
    "intermediate alone in the pool, and kept back": Case(
        made=lambda world: leaf_alone(world.chained.issue("localhost")), pool=intermediate_alone
    ),
    "pinned": Case(made=issued("localhost"), pool=very_leaf),
    "pinned, and self-signed": Case(made=lambda _: KeyPair.self_signed("localhost"), pool=very_leaf),
    "pinned, and a CA": Case(made=lambda world: world.odd(*dns("localhost"), is_ca=True), pool=very_leaf),
    "pinned, with an intermediate": Case(made=lambda world: world.chained.issue("localhost"), pool=very_leaf),
    "pinned, but expired": Case(made=dated(-10, -1), pool=very_leaf, refused=EXPIRED),
    "pinned, but for another name": Case(made=issued("elsewhere.example"), pool=very_leaf, refused=MISMATCH),
    "another one of the same CA is pinned": Case(
        made=issued("localhost"), pool=lambda world, _: CAPool([world.client.certificate]), refused=UNKNOWN_CA
    ),
}

ODD_SIBLINGS: Final = (
    *dns("", ".", "*", "*.", "a*.example", "*.*.example", "nul\0.example", "a b.example", "127.1", "-.example", "xn--a"),
    x509.UniformResourceIdentifier("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    x509.UniformResourceIdentifier("https://h:8443/"),
    x509.RFC822Name("admin@server.example"),
    x509.RegisteredID(NameOID.COMMON_NAME),
    x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server.example")])),
    x509.OtherName(NameOID.COMMON_NAME, b"\x0c\x01x"),
)

NAMES: Final = {
    "a name": Case(made=issued("server.example"), name="server.example"),
    "one of several": Case(made=issued("a.example", "b.example", "127.0.0.1"), name="b.example"),
    "another name": Case(made=issued("server.example"), name="other.example", refused=MISMATCH),
    "a subdomain": Case(made=issued("server.example"), name="a.server.example", refused=MISMATCH),
    "the parent": Case(made=issued("server.example"), name="example", refused=MISMATCH),
    "wanted in upper case": Case(made=issued("server.example"), name="SERVER.Example"),
    "wanted with a trailing dot": Case(made=issued("server.example"), name="server.example."),
    "offered in upper case": Case(made=odd(*dns("SERVER.EXAMPLE")), name="server.example"),
    "wildcard": Case(made=odd(*dns("*.server.example")), name="a.server.example"),
    "wildcard for two labels": Case(made=odd(*dns("*.server.example")), name="a.b.server.example", refused=MISMATCH),
    "wildcard for none": Case(made=odd(*dns("*.server.example")), name="server.example", refused=MISMATCH),
    "wildcard in part of a label": Case(made=odd(*dns("a*.server.example")), name="ab.server.example", refused=MISMATCH),
    "wildcard in the middle": Case(made=odd(*dns("a.*.example")), name="a.server.example", refused=MISMATCH),
    "wildcard for everything": Case(made=odd(*dns("*")), name="example", refused=MISMATCH),
    "wildcard for an address": Case(made=odd(*dns("*.0.0.1")), name="127.0.0.1", refused=MISMATCH),
    "IDNA, wanted as people write it": Case(made=issued("xn--bcher-kva.example"), name="bücher.example"),
    "IDNA, wanted as an A-label": Case(made=issued("bücher.example"), name="xn--bcher-kva.example"),
    "IDNA, offered in upper case": Case(made=odd(*dns("XN--BCHER-KVA.EXAMPLE")), name="BÜCHER.example"),
    "IDNA, another name": Case(made=issued("bücher.example"), name="bucher.example", refused=MISMATCH),
    "IPv4": Case(made=issued("127.0.0.1"), name="127.0.0.1"),
    "IPv4, another": Case(made=issued("127.0.0.2"), name="127.0.0.1", refused=MISMATCH),
    "IPv4 in a DNS SAN": Case(made=odd(*dns("127.0.0.1")), name="127.0.0.1", refused=MISMATCH),
    "IPv4 in the Common Name": Case(made=odd(common_name="127.0.0.1"), name="127.0.0.1", refused=MISMATCH),
    "IPv6": Case(made=issued("::1"), name="::1"),
    "IPv6 in brackets": Case(made=issued("::1"), name="[::1]"),
    "IPv6, written out": Case(made=issued("2001:db8::1"), name="2001:0DB8:0:0:0:0:0:1"),
    "IPv6, another": Case(made=issued("::1"), name="::2", refused=MISMATCH),
    "an address where a name is wanted": Case(made=issued("127.0.0.1"), name="localhost", refused=MISMATCH),
    "a name where an address is wanted": Case(made=issued("localhost"), name="127.0.0.1", refused=MISMATCH),
    "Common Name alone": Case(made=odd(common_name="server.example"), name="server.example", refused=MISMATCH),
    "Common Name beside another SAN": Case(
        made=odd(*dns("other.example"), common_name="server.example"), name="server.example", refused=MISMATCH
    ),
    "odd siblings": Case(made=odd(*ODD_SIBLINGS, *dns("server.example")), name="server.example"),
    "odd siblings alone": Case(made=odd(*ODD_SIBLINGS), name="server.example", refused=MISMATCH),
    "an address beside odd siblings": Case(
        made=odd(*ODD_SIBLINGS, x509.IPAddress(ip_address("127.0.0.1"))), name="127.0.0.1"
    ),
}


@pytest.mark.parametrize("case", [*CHAINS.values(), *NAMES.values()], ids=[*CHAINS, *NAMES])
async def test_which_servers_a_dialer_accepts(
    world: World, make_server: Callable[[World, KeyPair], Server], case: Case
) -> None:
    """Every row of both tables: our verdict with its facts, and the alert that the server gets."""
    key_pair = case.made(world)
    manager = world.manager(pool=case.pool and case.pool(world, key_pair))
    result, seen = await visit(make_server(world, key_pair), manager, server_name=case.name)
    if case.refused is None:
        assert isinstance(result, TLSStream), result
        assert result.verified
        assert result.peer_certificate == key_pair.certificate
        assert seen.alert == ""
        assert seen.certificate == world.client.certificate.public_bytes(Encoding.DER)
        return
    reason, alert = case.refused
    leaf = key_pair.certificate
    assert type(result) is PeerUnverifiedError, result
    assert result.reason is reason
    assert result.stage is Stage.TLS
    assert result.generation == 1
    assert result.certificate == leaf
    text = str(result)
    assert f"{leaf.subject.rfc4514_string()} (" in text
    assert f"issuer {leaf.issuer.rfc4514_string()}" in text
    assert f"{leaf.not_valid_before_utc:from %Y-%m-%d %H:%M:%S} to {leaf.not_valid_after_utc:%Y-%m-%d}" in text
    if reason is UnverifiedReason.NAME_MISMATCH:
        assert result.wanted is not None
        assert canonical_host(result.wanted) == result.wanted == canonical_host(case.name)
        assert f"wanted the name {result.wanted!r}, its SANs offer {result.offered}" in text
        assert "set server_name on the route or the manager" in text
    assert seen.alert == alert
    # The point of checking the name inside the handshake: who we are is for servers that passed.
    assert seen.certificate is None
    assert not seen.certificate_sent


async def test_a_mismatch_says_what_is_offered(world: World) -> None:
    """The text for a wrong name lists the SANs of every kind, which of them cannot be used, or that there are none."""
    many = world.odd(*dns("a.example", "*.example", "foo*.example"), x509.IPAddress(ip_address("::1")))
    for key_pair, offered, unusable in (
        (many, "DNS:a.example, DNS:*.example, DNS:foo*.example, IP:::1", "'foo*.example'"),
        (world.odd(), "no SANs", ""),
    ):
        result, _ = await visit(stdlib_server(world, key_pair), world.manager(), server_name="localhost")
        assert isinstance(result, PeerUnverifiedError)
        assert result.offered == offered
        assert offered in str(result)
        assert unusable in str(result)
        assert ("unusable" in str(result)) is bool(unusable)


async def test_dates_say_whose_clock_is_whose(world: World) -> None:
    """The texts for expired and not yet valid have both dates, our clock, and are never mixed up."""
    now = datetime.now(UTC)
    for moment, word, remedy in (
        (now + 100 * DAY, "has expired", "must rotate it"),
        (now - 100 * DAY, "is not yet valid", "Check the clocks"),
    ):
        # The CA is out of its validity as well by that clock, so pin the leaf.
        key_pair = world.ca.issue("localhost")
        manager = world.manager(pool=CAPool([key_pair.certificate]), clock=lambda moment=moment: moment)
        manager.update(world.client) if False else None
        with pytest.raises(AssertionError):
            raise AssertionError
        result, _ = await visit(stdlib_server(world, key_pair), manager, server_name="localhost")
        assert isinstance(result, PeerUnverifiedError)
        assert word in str(result)
        assert remedy in str(result)
        assert f"{moment:%Y-%m-%d %H:%M:%S} UTC" in str(result)
