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

from moving_clock import Clock
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
from trionode._handshake.accept import accept_tls
from trionode._identity.names import SubjectNames, canonical_host
from trionode._tls.judge import Judge, Verdict
from trionode._tls.stream import SessionStream
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

    def odd(
        self,
        *names: x509.GeneralName,
        common_name: str = "localhost",
        is_ca: bool = False,
        issuer: KeyPair | None = None,
        extension: x509.ExtensionType | None = None,
    ) -> KeyPair:
        """A certificate with any SANs at all, or none; by the CA, or by another issuer; with a critical extension."""
        root_key = self.ca._key
        assert isinstance(root_key, ec.EllipticCurvePrivateKey)
        issuer_name, issuer_key = self.ca.certificate.subject, root_key
        rest: tuple[x509.Certificate, ...] = ()
        if issuer is not None:
            assert isinstance(issuer.private_key, ec.EllipticCurvePrivateKey)
            issuer_name, issuer_key, rest = issuer.certificate.subject, issuer.private_key, issuer.chain
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - DAY)
            .not_valid_after(datetime.now(UTC) + DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        return KeyPair([builder.sign(issuer_key, hashes.SHA256()), *rest], key)


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
    # Alerts that are newer than Python's table of them have no `reason`, but OpenSSL's words in the text.
    words = exc.reason or str(exc).replace(" ", "_").upper()
    found = re.search(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_([A-Z_]+[A-Z])", words)
    return (words if found is None else found[1]).lower()


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
        received: what the client said afterwards (`ssl` server only).
    """

    alert: str = ""
    sni: list[str | None] = field(default_factory=list)
    certificate_sent: bool = False
    certificate: bytes | None = None
    alpn: str | None = None
    received: bytes = b""


#: Serves one client, writes down what it saw, and gives `task_status` the port.
Server: TypeAlias = Callable[..., Awaitable[None]]


def stdlib_server(
    world: World, key_pair: KeyPair, *, alpn: Sequence[str] = (), version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Server:
    """Python's own `ssl` as a server: it asks for a client certificate and takes one client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(*world.files(key_pair))
    context.load_verify_locations(world.ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    if alpn:
        context.set_alpn_protocols(list(alpn))

    def watch(seen: Seen, *message: object) -> None:
        _, direction, _, _, kind, _ = message
        if direction == "read" and getattr(kind, "name", "") == "CERTIFICATE":
            seen.certificate_sent = True

    def serve(listening: socket.socket, seen: Seen) -> None:
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

    async def run(seen: Seen, *, task_status: trio.TaskStatus[int]) -> None:
        context.sni_callback = lambda _stream, name, _context: seen.sni.append(name)
        # Undocumented, for debugging, there since 3.8, and the one way to see a message of a handshake that then fails.
        context._msg_callback = partial(watch, seen)  # type: ignore[attr-defined]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(PATIENCE)
            task_status.started(listening.getsockname()[1])
            await trio.to_thread.run_sync(serve, listening, seen)

    return run


def s_server(world: World, key_pair: KeyPair, *options: str) -> Server:
    """`openssl s_server`: it asks for a client certificate and takes one client."""
    certificate, key = world.files(key_pair)
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-verify", "4"]
    command += ["-cert", str(certificate), "-key", str(key), "-CAfile", str(world.ca_file), *options]
    if len(key_pair.chain) > 1:
        command += ["-cert_chain", str(certificate)]

    async def run(seen: Seen, *, task_status: trio.TaskStatus[int]) -> None:
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
        if alert is not None:
            seen.alert = alert[1].decode().replace(" ", "_")
        if pem is not None:
            seen.certificate = x509.load_pem_x509_certificate(pem[1]).public_bytes(Encoding.DER)

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
    seen = Seen()
    result: TLSStream | HandshakeError
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            port: int = await nursery.start(server, seen)
            try:
                result = await open_tls_stream(host, port, cert_manager=manager, **options)
            except HandshakeError as exc:
                result = exc
            else:
                async with result:
                    assert await result.receive_some() == WELCOME
                    await result.send_all(b"thanks")
    return result, seen


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
    "by an issuer that is no CA": Case(
        made=lambda world: world.odd(*dns("localhost"), issuer=world.ca.issue("middle.example")),
        refused=(UnverifiedReason.BAD_CHAIN, RejectionCode.UNKNOWN_CA),
    ),
    "with a critical extension that is unknown": Case(
        made=lambda world: world.odd(
            *dns("localhost"), extension=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.1.1"), b"")
        ),
        refused=(UnverifiedReason.BAD_CHAIN, RejectionCode.CERTIFICATE_UNKNOWN),
    ),
    "another one of the same CA is pinned": Case(
        made=issued("localhost"), pool=lambda world, _: CAPool([world.client.certificate]), refused=UNKNOWN_CA
    ),
}

ODD_SIBLINGS: Final = (
    *dns(
        "", ".", "*", "*.", "a*.example", "*.*.example", "nul\0.example", "a b.example", "127.1", "-.example", "xn--a"
    ),
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
    "wildcard in part of a label": Case(
        made=odd(*dns("a*.server.example")), name="ab.server.example", refused=MISMATCH
    ),
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
        if make_server is stdlib_server:
            assert seen.certificate_sent
            assert seen.received == b"thanks"
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


async def test_dates_say_what_our_clock_says(world: World) -> None:
    """Expired and not yet valid are never mixed up, are judged by the manager's clock, and the text has all dates."""
    now = datetime.now(UTC)
    key_pair = world.ca.issue("localhost", not_before=now - 2 * DAY, not_after=now + 2 * DAY)
    for moment, expected, words in (
        (now + 5 * DAY, EXPIRED, ("has expired", "must rotate it")),
        (now - 5 * DAY, NOT_YET_VALID, ("is not yet valid", "Check the clocks of this machine, the peer and the CA")),
    ):
        manager = world.manager(clock=lambda moment=moment: moment)
        result, seen = await visit(stdlib_server(world, key_pair), manager, server_name="localhost")
        assert isinstance(result, PeerUnverifiedError)
        assert (result.reason, seen.alert) == expected
        for word in (*words, f"{moment:%Y-%m-%d %H:%M:%S} UTC", f"{now - 2 * DAY:%Y-%m-%d %H:%M:%S}"):
            assert word in str(result)
        assert result.wanted == f"a certificate valid at {moment:%Y-%m-%d %H:%M:%S} UTC"


async def test_an_examination_that_crashes_is_a_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while a certificate is examined, the peer is refused, and never let through."""

    class CrashError(Exception):
        """What should never happen."""

    def crash(certificate: x509.Certificate) -> SubjectNames:
        raise CrashError

    monkeypatch.setattr(SubjectNames, "of", crash)
    result, seen = await visit(stdlib_server(world, wide(world)), world.manager(), server_name="localhost")
    assert isinstance(result, PeerUnverifiedError)
    assert result.reason is UnverifiedReason.BAD_CHAIN
    assert "cannot be examined (CrashError)" in str(result)
    assert seen.alert == RejectionCode.INTERNAL_ERROR
    assert not seen.certificate_sent


# Which name is wanted -----------------------------------------------------------------------------------------------


def wide(world: World) -> KeyPair:
    """A certificate for every name that the tests below dial."""
    return world.ca.issue("localhost", "127.0.0.1", "::1", "a.example", "b.example", "xn--bcher-kva.example")


@pytest.mark.parametrize(
    ("name", "sni"),
    [
        ("localhost", "localhost"),
        ("A.Example.", "a.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("127.0.0.1", None),
        ("::1", None),
        ("[::1]", None),
    ],
)
@pytest.mark.parametrize("skips", [False, True], ids=["verifies", "skips"])
async def test_names_are_indicated_and_addresses_are_not(world: World, name: str, sni: str | None, skips: bool) -> None:
    """The server name indication has the name that is wanted as A-labels, and is absent for an address (RFC 6066)."""
    result, seen = await visit(
        stdlib_server(world, wide(world)), world.manager(), server_name=name, insecure_skip_verify=skips
    )
    assert isinstance(result, TLSStream)
    assert seen.sni == [sni]


async def test_the_name_that_is_wanted_is_the_one_given_last(world: World) -> None:
    """`server_name` of the call counts, else the manager's, else the host that was dialled."""
    for manager_name, call_name, sni in (
        (None, None, "localhost"),
        ("a.example", None, "a.example"),
        ("a.example", "b.example", "b.example"),
        (None, "b.example", "b.example"),
    ):
        manager = world.manager(server_name=manager_name)
        result, seen = await visit(stdlib_server(world, wide(world)), manager, "localhost", server_name=call_name)
        assert isinstance(result, TLSStream)
        assert result.verified
        assert seen.sni == [sni]
    result, _ = await visit(stdlib_server(world, wide(world)), world.manager(server_name="c.example"), "localhost")
    assert isinstance(result, PeerUnverifiedError)
    assert result.wanted == "c.example"


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 loopback here")),
    ],
)
async def test_a_dialled_address_is_what_the_certificate_must_cover(world: World, host: str) -> None:
    """Without any server name, a dialled address must be among the IP SANs."""
    for key_pair, passes in ((world.ca.issue(host), True), (world.ca.issue("localhost"), False)):
        async with serving(CertAuthManager(key_pair), host=host) as server:
            if passes:
                async with await open_tls_stream(host, server.port, cert_manager=world.manager()) as stream:
                    assert stream.verified
                    assert stream._session_stream.peer_address == (host, server.port)
            else:
                with pytest.raises(PeerUnverifiedError) as caught:
                    await open_tls_stream(host, server.port, cert_manager=world.manager())
                assert caught.value.wanted == canonical_host(host)
                assert caught.value.address == (host, server.port)


@pytest.mark.parametrize("name", ["", "a b", "1.2.3", "fe80::1%eth0", "a..b", "-a.example"])
async def test_a_server_name_that_is_none_is_refused_before_anything_happens(world: World, name: str) -> None:
    """A host or server name that can be neither a DNS name nor an address is a ValueError, and nothing is dialled."""
    for host, server_name in ((name, None), ("127.0.0.1", name)):
        with pytest.raises(ValueError, match="host"):
            await open_tls_stream(host, 1, cert_manager=world.manager(), server_name=server_name)


# Not verifying ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [CHAINS[name] for name in ("good", "expired", "of an unknown CA", "for clients only")]
    + [NAMES[name] for name in ("another name", "Common Name alone")],
)
async def test_skipping_verification_accepts_anything_and_says_so(
    world: World, make_server: Callable[[World, KeyPair], Server], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """`insecure_skip_verify` accepts any certificate, never calls it verified, and is a warning each time."""
    key_pair = case.made(world)
    with caplog.at_level(logging.WARNING, "trionode.security"):
        result, seen = await visit(
            make_server(world, key_pair), world.manager(), server_name=case.name, insecure_skip_verify=True
        )
    assert isinstance(result, TLSStream)
    assert not result.verified
    assert result.peer_certificate == key_pair.certificate
    assert seen.certificate == world.client.certificate.public_bytes(Encoding.DER)
    warnings = [record for record in caplog.records if record.name == "trionode.security"]
    assert [record.levelname for record in warnings] == ["WARNING"]
    assert "insecure_skip_verify: the server at 127.0.0.1 port" in warnings[0].getMessage()


async def test_verifying_is_not_worth_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A dial that verifies logs nothing."""
    with caplog.at_level(logging.WARNING):
        await visit(stdlib_server(world, wide(world)), world.manager(), server_name="localhost")
    assert caplog.records == []


# Versions -----------------------------------------------------------------------------------------------------------


async def test_a_server_without_tls_1_3_is_refused(world: World) -> None:
    """A server that has TLS 1.2 at most: it refuses us by alert, and the text says what it lacks."""
    old = stdlib_server(world, wide(world), version=ssl.TLSVersion.TLSv1_2)
    result, seen = await visit(old, world.manager(), server_name="localhost")
    assert type(result) is PeerRejectedError
    assert result.code is RejectionCode.PROTOCOL_VERSION
    assert result.stage is Stage.TLS
    assert "It does not speak TLS 1.3" in str(result)
    assert seen.alert == "unsupported_protocol"


async def test_a_client_without_tls_1_3_is_refused(world: World) -> None:
    """A client that has TLS 1.2 at most: our error says so, and it gets the alert `protocol_version`."""
    context = ssl.create_default_context(cafile=world.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(CertAuthManager(wide(world))) as server:
        told = await trio.to_thread.run_sync(partial(stdlib_client, server.port, context))
        error = await server.result()
    assert told.alert == "protocol_version"
    assert type(error) is HandshakeError
    assert isinstance(error.__cause__, RemoteProtocolError)
    assert "It offers only TLS versions before 1.3" in str(error)


# Our own accepting side, and clients for it -------------------------------------------------------------------------


class OurServer:
    """Our accepting side: welcomes every client that it accepts, and keeps what came of each handshake."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._put, self._take = trio.open_memory_channel[SessionStream | HandshakeError](100)

    async def handle(self, manager: CertAuthManager, alpn: tuple[str, ...], transport: trio.SocketStream) -> None:
        """Serve one client, until it leaves."""
        try:
            stream = await accept_tls(transport, manager.contexts, alpn=alpn, handshake_timeout=PATIENCE)
        except HandshakeError as exc:
            self._put.send_nowait(exc)
            return
        self._put.send_nowait(stream)
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(WELCOME)
                while await stream.receive_some():
                    pass

    async def result(self) -> SessionStream | HandshakeError:
        """What came of the next handshake."""
        return await self._take.receive()


@asynccontextmanager
async def serving(
    manager: CertAuthManager, *, alpn: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> AsyncIterator[OurServer]:
    """Serve clients of all kinds for the length of a block."""
    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host=host)
        server = OurServer(listener.socket.getsockname()[1])
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, partial(server.handle, manager, alpn), [listener])
            yield server
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a client learned.

    Attributes:
        welcome: what it was sent.
        alert: the alert that it was refused with, by name, or another reason why it failed; empty on success.
        alpn: the protocol that was agreed on.
        reused: whether the session that it offered was resumed.
        session: to be offered next time.
    """

    welcome: bytes = b""
    alert: str = ""
    alpn: str | None = None
    reused: bool | None = None
    session: ssl.SSLSession | None = None


def stdlib_client(
    port: int, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None, says: bytes = b""
) -> Told:
    """Python's own `ssl`: connect, say something, read. Blocking."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as transport:
        try:
            with context.wrap_socket(transport, server_hostname="localhost", session=session) as stream:
                if says:
                    with suppress(OSError):  # the server may have refused us and gone: the reading tells
                        for _ in range(20):
                            stream.sendall(says)
                return Told(
                    welcome=stream.recv(1000),
                    alpn=stream.selected_alpn_protocol(),
                    reused=stream.session_reused,
                    session=stream.session,
                )
        except ssl.SSLError as exc:
            return Told(alert=alert_of(exc))


def client_context(world: World, key_pair: KeyPair | None = None, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for `stdlib_client`."""
    context = ssl.create_default_context(cafile=world.ca_file)
    if key_pair is not None:
        context.load_cert_chain(*world.files(key_pair))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def run_s_client(world: World, port: int, *options: str) -> tuple[str, str]:
    """`openssl s_client`, with a client certificate, until the server has said its welcome: stdout and stderr."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost"]
    command += ["-CAfile", str(world.ca_file), *options]
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
        async for chunk in process.stdout:
            output += chunk
            if WELCOME in output:
                await process.stdin.aclose()  # which makes it leave
    return output.decode(errors="replace"), complaints.decode(errors="replace")


# Application protocols ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (("h2", "http/1.1"), ("h2", "http/1.1"), "h2"),
        (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
        (("h2", "http/1.1"), ("http/1.1", "h2"), "h2"),
        (("h2", "http/1.1"), (), None),
        ((), ("h2", "http/1.1"), None),
        ((), (), None),
    ],
)
async def test_a_server_selects_by_its_own_order(
    world: World, ours: tuple[str, ...], theirs: tuple[str, ...], agreed: str | None
) -> None:
    """Our server selects the first of its protocols that a client offers; if either side names none, there is none."""
    async with serving(CertAuthManager(wide(world)), alpn=ours) as server:
        context = client_context(world, alpn=theirs)
        told = await trio.to_thread.run_sync(stdlib_client, server.port, context)
        result = await server.result()
        assert isinstance(result, SessionStream)
        assert told.welcome == WELCOME
        assert told.alpn == result.session.alpn == agreed

        async with await open_tls_stream("localhost", server.port, cert_manager=world.manager(), alpn=theirs) as stream:
            assert await stream.receive_some() == WELCOME
            result = await server.result()
            assert isinstance(result, SessionStream)
            assert stream.alpn == result.session.alpn == agreed


async def test_a_client_that_offers_only_other_protocols_is_refused(world: World) -> None:
    """Without overlap both kinds of client get the alert `no_application_protocol`, and our error names the cause."""
    async with serving(CertAuthManager(wide(world)), alpn=("h2",)) as server:
        context = client_context(world, alpn=("http/1.1",))
        told = await trio.to_thread.run_sync(stdlib_client, server.port, context)
        assert told.alert == "no_application_protocol"
        error = await server.result()
        assert type(error) is HandshakeError
        assert isinstance(error.__cause__, RemoteProtocolError)
        assert "No application protocol in common (ALPN)" in str(error)

        with pytest.raises(PeerRejectedError, match="does not speak the protocol that we offered") as caught:
            await open_tls_stream("localhost", server.port, cert_manager=world.manager(), alpn=("http/1.1",))
        assert caught.value.code is RejectionCode.NO_APPLICATION_PROTOCOL
        assert caught.value.stage is Stage.TLS


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [(("h2", "http/1.1"), ("http/1.1",), "http/1.1"), (("h2",), (), None), ((), ("h2",), None)],
)
async def test_a_dialer_reports_what_a_server_selected(
    world: World, ours: tuple[str, ...], theirs: tuple[str, ...], agreed: str | None
) -> None:
    """A dialer's stream has what a server of another make selected, or None where it selected nothing."""
    server = stdlib_server(world, wide(world), alpn=theirs)
    result, seen = await visit(server, world.manager(), server_name="localhost", alpn=ours)
    assert isinstance(result, TLSStream)
    assert result.alpn == seen.alpn == agreed


@needs_openssl
async def test_s_client_agrees_on_a_protocol_or_is_refused(world: World) -> None:
    """`openssl s_client -alpn` sees what our server selected, or the alert."""
    async with serving(CertAuthManager(wide(world)), alpn=("h2", "http/1.1")) as server:
        output, _ = await run_s_client(world, server.port, "-alpn", "spdy/1,http/1.1")
        assert "ALPN protocol: http/1.1" in output
        output, _ = await run_s_client(world, server.port)
        assert "No ALPN negotiated" in output
        _, complaints = await run_s_client(world, server.port, "-alpn", "spdy/1")
        assert "alert no application protocol" in complaints


# No resumption ------------------------------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many certificates each client presented that the judge was asked about."""
    chains: list[int] = []
    original = Judge.judge

    def judge(self: Judge, chain: Sequence[Any], *, dated: bool = True) -> Verdict:
        if self.accepting:
            chains.append(len(chain))
        return original(self, chain, dated=dated)

    monkeypatch.setattr(Judge, "judge", judge)
    return chains


@dataclass(frozen=True, kw_only=True)
class Expiring:
    """A server that verifies clients by a clock, and a client whose certificate lasts an hour by it."""

    manager: CertAuthManager
    clock: Clock
    client: KeyPair


@pytest.fixture
def expiring(world: World) -> Expiring:
    """Such a pair."""
    clock = Clock()
    manager = CertAuthManager(
        wide(world),
        client_cas=world.ca.pool,
        client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        clock=clock,
    )
    return Expiring(manager=manager, clock=clock, client=world.ca.issue("client@localhost", not_after=clock.now + HOUR))


async def check_verified_again(server: OurServer, expiring: Expiring, examined: list[int]) -> None:
    """A handshake that looks like the first one of its client."""
    result = await server.result()
    assert isinstance(result, SessionStream), result
    assert result.verified
    assert result.peer_certificate == expiring.client.certificate
    assert len(examined) == 1
    examined.clear()


async def check_refused_as_expired(server: OurServer, expiring: Expiring) -> None:
    """A handshake that failed for the date, whatever was offered."""
    error = await server.result()
    assert isinstance(error, PeerUnverifiedError), error
    assert error.reason is UnverifiedReason.EXPIRED
    assert error.certificate == expiring.client.certificate


async def test_an_offered_session_is_never_resumed(world: World, expiring: Expiring, examined: list[int]) -> None:
    """`ssl` offers its old session: the certificate is sent and verified again, and refused once it has expired."""
    context = client_context(world, expiring.client)
    async with serving(expiring.manager) as server:
        session: ssl.SSLSession | None = None
        for _ in range(3):
            told = await trio.to_thread.run_sync(partial(stdlib_client, server.port, context, session=session))
            assert told.welcome == WELCOME
            assert told.reused is False
            session = told.session
            await check_verified_again(server, expiring, examined)
        expiring.clock.now += 2 * HOUR
        told = await trio.to_thread.run_sync(partial(stdlib_client, server.port, context, session=session))
        assert told.alert == RejectionCode.CERTIFICATE_EXPIRED
        await check_refused_as_expired(server, expiring)


async def test_that_this_client_would_resume(world: World) -> None:
    """The counter-test: with a server that does resume, the same client code does, so the test above can fail."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*world.files(wide(world)))

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            transport, _ = listening.accept()
            with transport, context.wrap_socket(transport, server_side=True) as stream:
                stream.sendall(WELCOME)
                with suppress(OSError):
                    stream.recv(1)

    with trio.fail_after(PATIENCE), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        port = listening.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve, listening)
            mine = client_context(world)
            first = await trio.to_thread.run_sync(stdlib_client, port, mine)
            second = await trio.to_thread.run_sync(partial(stdlib_client, port, mine, session=first.session))
    assert (first.reused, second.reused) == (False, True)


@needs_openssl
async def test_s_client_resumes_nothing(world: World, expiring: Expiring, examined: list[int], tmp_path: Path) -> None:
    """`openssl s_client -sess_in` starts anew each time, and is refused once the certificate has expired."""
    certificate, key = world.files(expiring.client)
    file = str(tmp_path / "session.pem")
    holding = ("-cert", str(certificate), "-key", str(key))
    async with serving(expiring.manager) as server:
        output, _ = await run_s_client(world, server.port, *holding, "-sess_out", file)
        assert "New, TLSv1.3" in output
        await check_verified_again(server, expiring, examined)
        output, _ = await run_s_client(world, server.port, *holding, "-sess_in", file)
        assert "New, TLSv1.3" in output
        assert "Reused" not in output
        await check_verified_again(server, expiring, examined)
        expiring.clock.now += 2 * HOUR
        _, complaints = await run_s_client(world, server.port, *holding, "-sess_in", file)
        assert "alert certificate expired" in complaints
        await check_refused_as_expired(server, expiring)


async def test_pyopenssl_resumes_nothing(world: World, expiring: Expiring, examined: list[int]) -> None:
    """A pyOpenSSL client with `set_session` is verified again each time, and refused once its certificate expired."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate(expiring.client.certificate)
    context.use_privatekey(expiring.client.private_key)

    def talk(port: int, session: SSL.Session | None) -> tuple[bytes, SSL.Session | None]:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as transport:
            transport.settimeout(None)  # pyOpenSSL wants to block; what waits for this thread is bounded
            connection = SSL.Connection(context, transport)
            connection.set_connect_state()
            if session is not None:
                connection.set_session(session)
            connection.do_handshake()
            return connection.recv(1000), connection.get_session()

    async with serving(expiring.manager) as server:
        session: SSL.Session | None = None
        for _ in range(3):
            welcome, session = await trio.to_thread.run_sync(talk, server.port, session)
            assert welcome == WELCOME
            assert session is not None
            await check_verified_again(server, expiring, examined)
        expiring.clock.now += 2 * HOUR
        with pytest.raises(SSL.Error, match="certificate expired"):
            await trio.to_thread.run_sync(talk, server.port, session)
        await check_refused_as_expired(server, expiring)


# The refused side hears why -----------------------------------------------------------------------------------------

#: How many clients are refused in a row: each has a chance of its own to lose the alert to its own failing send.
RACES = 30


@pytest.mark.parametrize("kind", ["stdlib", "trionode"])
async def test_a_refused_client_that_writes_first_still_reads_the_alert(world: World, kind: str) -> None:
    """Each of many refused clients that write before they read is told `unknown_ca`, however the write ended."""
    manager = CertAuthManager(
        wide(world), client_cas=world.ca.pool, client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    )
    unknown = world.rogue.issue("client@localhost")
    context = client_context(world, unknown)
    dialer = CertAuthManager(unknown, root_cas=world.ca.pool)
    says = bytes(5000)
    heard: list[str] = []
    async with serving(manager) as server:
        for _ in range(RACES):
            if kind == "stdlib":
                told = await trio.to_thread.run_sync(partial(stdlib_client, server.port, context, says=says))
                heard.append(told.alert)
            else:
                async with await open_tls_stream("localhost", server.port, cert_manager=dialer) as stream:
                    with suppress(trio.BrokenResourceError):
                        for _ in range(20):
                            await stream.send_all(says)
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await stream.receive_some()
                    assert isinstance(caught.value.__cause__, PeerRejectedError)
                    heard.append(caught.value.__cause__.code)
            assert isinstance(await server.result(), PeerUnverifiedError)
    assert heard == [RejectionCode.UNKNOWN_CA] * RACES


async def test_a_refused_server_reads_the_alert(world: World) -> None:
    """Each of many servers refused for a wrong name hears `internal_error`, and our text says what that may mean."""
    manager = CertAuthManager(world.ca.issue("other.example"))
    async with serving(manager) as server:
        for _ in range(RACES):
            with pytest.raises(PeerUnverifiedError):
                await open_tls_stream("localhost", server.port, cert_manager=world.manager())
            error = await server.result()
            assert isinstance(error, PeerRejectedError)
            assert error.code is RejectionCode.INTERNAL_ERROR
            assert error.presented == manager.key_pair.certificate
            assert "A server name mismatch arrives like this" in str(error)


# Servers that do not speak TLS --------------------------------------------------------------------------------------


async def echo(stream: trio.SocketStream) -> None:
    """Send everything back."""
    async for data in stream:
        await stream.send_all(data)


async def greet(stream: trio.SocketStream) -> None:
    """Speak first, as SMTP and SSH servers do."""
    await stream.send_all(b"220 mail.example ESMTP\r\n")
    await stream.receive_some()


async def answer_http(stream: trio.SocketStream) -> None:
    """Answer whatever comes as an HTTP server does that understands nothing."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def hang_up(stream: trio.SocketStream) -> None:
    """Read what is said and leave."""
    await stream.receive_some()


async def reset(stream: trio.SocketStream) -> None:
    """Read what is said and break the connection."""
    await stream.receive_some()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def stay_silent(stream: trio.SocketStream) -> None:
    """Read for ever."""
    async for _ in stream:
        pass


@asynccontextmanager
async def plain_server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A TCP server without TLS for the length of a block; its port."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await handler(stream)

    with trio.fail_after(PATIENCE):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, [listener])
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("handler", "cause", "text"),
    [
        (echo, RemoteProtocolError, "does not speak TLS as we do"),
        (greet, RemoteProtocolError, "That was no TLS at all: is it a plain-text port?"),
        (answer_http, RemoteProtocolError, "That was no TLS at all: is it a plain-text port?"),
        (hang_up, trio.BrokenResourceError, "ended the connection without a word"),
        (reset, trio.BrokenResourceError, "broke during the TLS handshake"),
    ],
)
async def test_a_server_that_speaks_no_tls(
    world: World, handler: Callable[[trio.SocketStream], Awaitable[None]], cause: type[Exception], text: str
) -> None:
    """A port without TLS behind it is a bare HandshakeError of stage tls that says what was met, with its cause."""
    async with plain_server(handler) as port:
        with pytest.raises(HandshakeError, match=re.escape(text)) as caught:
            await open_tls_stream("127.0.0.1", port, cert_manager=world.manager())
    error = caught.value
    assert type(error) is HandshakeError
    assert error.stage is Stage.TLS
    assert error.address == ("127.0.0.1", port)
    assert error.generation == 1
    assert isinstance(error.__cause__, cause)
    assert f"at 127.0.0.1 port {port}" in str(error)


async def test_a_server_that_says_nothing_runs_into_the_timeout(world: World) -> None:
    """A server that never answers is a HandshakeTimeoutError of stage tls once `handshake_timeout` has passed."""
    async with plain_server(stay_silent) as port:
        with pytest.raises(HandshakeTimeoutError, match=r"within handshake_timeout \(0\.05 s\)") as caught:
            await open_tls_stream("127.0.0.1", port, cert_manager=world.manager(), handshake_timeout=0.05)
    assert caught.value.stage is Stage.TLS
    assert caught.value.generation == 1
    assert caught.value.address == ("127.0.0.1", port)
