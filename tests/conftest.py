"""What several test files share: a cluster CA, cert managers for mutual TLS, and nodes on loopback.

Nothing here is automatic; a test file that needs something else of the same name defines its own.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import HealthCheck, settings

from effort import effort
from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    CRLSet,
    KeyPair,
    LiveConnections,
    NetworkMode,
    NetworkOptions,
    Node,
    NodeName,
    NodeOptions,
    Registrar,
    ResolverError,
    Route,
    _protocol as wire,
    open_node,
)
from trionode._connection.connection import Connection
from trionode._connection.core import ConnectionCore
from trionode._connection.owner import ConnectionOwner, ConnectionSettings, protocol_log
from trionode._connection.registry import Registry
from trionode._connection.services import Services
from trionode._handshake.accept import accept_link
from trionode._handshake.collisions import Arbiter
from trionode._handshake.dial import Dial, dial_link
from trionode._handshake.exchange import Party
from trionode._tls.handshake import client_handshake, server_handshake
from trionode.cli import main
from trionode.pki import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trionode import (
        CertManager,
        Peer,
        Service,
    )
    from trionode._connection.end import ConnectionEnd
    from trionode._connection.hand_over import RenewalCause
    from trionode._connection.link import Link
    from trionode._tls.stream import SessionStream

# How long an example takes depends on what else the machine does: a test fails for what is wrong, not for being slow.
settings.register_profile(
    "trionode", deadline=None, max_examples=effort(100), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("trionode")


def pytest_xdist_auto_num_workers() -> int:
    """Two processes a core for `-n auto`: nearly half of the time, tests wait for clocks, peers and processes."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of several processes, the first that comes to a module compiles it; the others wait, and read what it wrote."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open("rb") as file:
        with suppress(OSError):  # a file system may have no locks, and each process then compiles for itself
            fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage collection looks through ten thousand tests: none while they come, nor any that a test asks for."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged may hold text that cannot be encoded; a report that goes to another process has to be."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


T = TypeVar("T")

#: Both CAs and, by default, everything that they issue are older than this, so that a test's clock may be behind.
AGE = timedelta(days=30)


class ManagerFactory(Protocol):
    """Makes cert managers for mutual TLS: issued by one CA, trusting one CA, in both directions."""

    def __call__(
        self,
        *names: str,
        ca: CertificateAuthority | None = None,
        trusts: CertificateAuthority | None = None,
        key_pair: KeyPair | None = None,
        client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        server_name: str | None = None,
        clock: Callable[[], datetime] | None = None,
        **issue: Any,
    ) -> CertAuthManager:
        """Make one; `issue` goes to `CertificateAuthority.issue`."""


class NodeFactory(Protocol):
    """Opens nodes: by default with a mutual manager of their own and one acceptor on 127.0.0.1, port 0."""

    def __call__(
        self,
        name: str,
        certs: CertManager | None = None,
        *,
        acceptors: Sequence[AcceptorOptions] | None = None,
        mode: NetworkMode = NetworkMode.ENABLED,
        services: Mapping[str, Service] | None = None,
        authorize: Callable[[Peer], None] | None = None,
        shutdown_grace: float = 1.0,
        live_connections: LiveConnections | None = None,
        propagate_service_errors: bool = False,
        **network: Any,
    ) -> AbstractAsyncContextManager[Node]:
        """Open one; `network` goes to `NetworkOptions`."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two open nodes that have a route to each other."""

    alpha: Node
    beta: Node


class PairFactory(Protocol):
    """Opens the nodes alpha@localhost and beta@localhost, with routes to each other."""

    def __call__(
        self,
        *,
        alpha: Mapping[str, Any] | None = None,
        beta: Mapping[str, Any] | None = None,
    ) -> AbstractAsyncContextManager[Pair]:
        """Open both; the mappings hold further arguments of the node factory."""


class ScriptedFactory(Protocol):
    """Opens a connection by itself, in memory, and a peer whose every frame a test writes."""

    def __call__(
        self,
        *,
        services: Mapping[str, Service] | None = None,
        dialled: bool = False,
        transport: Callable[[MemoryStream], trio.abc.Stream] | None = None,
        max_channels: int = 16,
        propagate_errors: bool = False,
        **settings: Any,
    ) -> AbstractAsyncContextManager[Scripted]:
        """Open one.

        Args:
            services: what the connection's node offers.
            dialled: whether the connection dialled, not the peer.
            transport: what stands between the connection and its end of the streams.
            max_channels: how many services run at once.
            propagate_errors: whether a service that fails ends the block.
            settings: further `ConnectionSettings`; heartbeats are off.
        """


class ScriptedPeer:
    """One end of a TLS stream whose node protocol a test writes by hand."""

    def __init__(self, stream: SessionStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self._reader = wire.HelloReader()
        self._decoder = wire.FrameDecoder()
        self._frames: list[tuple[int, int, bytes]] = []

    async def introduce(self, name: str, **hello: Any) -> wire.Answer:
        """Dial: speak an honest hello to its end; gives the answer."""
        await self.say(self.hello(name, **hello))
        answer = await self.hear(wire.Answer)
        assert answer.refusal is None
        await self.say(wire.Confirmation())
        return answer

    async def greet(self, name: str, **answer: Any) -> wire.Hello:
        """Accept: answer the hello and hear the confirmation; gives the hello."""
        hello = await self.hear(wire.Hello)
        await self.say(self.answer(name, **answer))
        assert (await self.hear(wire.Confirmation)).refusal is None
        return hello

    async def frame(self, wanted: int | None = None) -> tuple[int, int, bytes]:
        """The next frame after the hello (kind, channel, payload), or the next of the kind that is wanted."""
        while True:
            while not self._frames:
                data = self._reader.rest() or await self.stream.receive_some()
                assert data, "the other end closed the connection"
                self._frames += self._decoder.feed(bytes(data))
            frame = self._frames.pop(0)
            if wanted in (None, frame[0]):
                return frame

    async def say(self, message: wire.Hello | wire.Answer | wire.Confirmation) -> None:
        """Send one message of the hello."""
        await self.stream.send_all(wire.encode_hello(message))

    async def hear(self, kind: type[T]) -> T:
        """Receive one message of the hello."""
        while (message := self._reader.next(kind)) is None:
            data = await self.stream.receive_some()
            assert data, "the other end closed the connection in the hello"
            self._reader.feed(bytes(data))
        return message

    async def hear_end(self) -> None:
        """Read until the other end has closed or broken the connection."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    @staticmethod
    def hello(name: str, **fields: Any) -> wire.Hello:
        """An honest first message."""
        return wire.Hello(
            **{
                "versions": [1],
                "name": name,
                "incarnation": 1,
                "generation": 1,
                "limits": LIMITS,
                "verified": True,
                **fields,
            }
        )

    @staticmethod
    def answer(name: str, **fields: Any) -> wire.Answer:
        """An honest second message."""
        return wire.Answer(
            **{
                "version": 1,
                "name": name,
                "incarnation": 1,
                "generation": 1,
                "limits": LIMITS,
                "verified": True,
                **fields,
            }
        )


LIMITS = wire.Limits(max_message_size=65536, window=65536, max_channels=16, max_metadata_size=4096)

MemoryStream: TypeAlias = "trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]"


@dataclass(kw_only=True)
class Scripted:
    """A connection by itself, and its peer.

    Attributes:
        connection: it runs until the block is left; nothing that it says is lost.
        core: what is behind it.
        owner: what it told its owner.
        services: of the node that it would belong to; they may outlive it.
        peer: whose every frame a test writes.
        streams: the connection's end of what is between them, and the peer's.
    """

    connection: Connection
    core: ConnectionCore
    owner: Owner
    services: Services
    peer: ScriptedPeer
    streams: tuple[MemoryStream, MemoryStream]

    async def say(self, *frames: bytes) -> None:
        """Have the peer send frames, in one write."""
        await self.peer.stream.send_all(b"".join(frames))

    async def answered(self) -> list[tuple[int, int, bytes]]:
        """Wait until connection and services have dealt with everything so far; gives what they said."""
        await trio.testing.wait_all_tasks_blocked()
        ping = b"answered"
        await self.say(wire.header(wire.PING, 0, len(ping)), ping)
        said = []
        while (heard := await self.peer.frame()) != (wire.PONG, 0, ping):
            said.append(heard)
        return said


class ScriptedListener:
    """A TCP listener on loopback whose clients a test serves by hand."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.port: int = listener.socket.getsockname()[1]

    def route(self, **route: Any) -> Route:
        """The route that leads here."""
        return Route(host="127.0.0.1", port=self.port, **route)

    async def accept(
        self,
        certs: CertManager,
        *,
        alpn: Sequence[str] = (wire.ALPN,),
        transport: trio.SocketStream | None = None,
        received: bytes = b"",
    ) -> ScriptedPeer:
        """Accept one client, or take one that was accepted and read from already, and do TLS with it."""
        contexts = await certs.contexts.receive()
        transport = transport or await self.listener.accept()
        return ScriptedPeer(await server_handshake(transport, contexts, received=received, alpn=alpn))


async def dial_scripted(
    node: Node,
    certs: CertManager | CertificateAuthority,
    *,
    reference: str = "localhost",
    alpn: Sequence[str] = (wire.ALPN,),
) -> ScriptedPeer:
    """Connect to a node's first acceptor and do TLS with it; the hello is the test's.

    Args:
        node: where to connect to.
        certs: what to present and to trust; a CA to trust that and to present nothing.
        reference: what the node's certificate must cover.
        alpn: what to offer.
    """
    transport = await trio.open_tcp_stream(*node.acceptors[0].address)
    if isinstance(certs, CertificateAuthority):
        context = ssl.create_default_context(cadata=certs.certificate.public_bytes(Encoding.DER))
        context.set_alpn_protocols(list(alpn))
        stream = trio.SSLStream(transport, context, server_hostname=reference, https_compatible=True)
        await stream.do_handshake()
        return ScriptedPeer(stream)
    contexts = await certs.contexts.receive()
    return ScriptedPeer(await client_handshake(transport, contexts, reference=reference, alpn=alpn))


def _old_clock() -> datetime:
    return datetime.now(UTC) - AGE


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    """The cluster's CA; what it issues has been valid for a month and will be for two more."""
    return CertificateAuthority.create(common_name="cluster CA", clock=_old_clock)


@pytest.fixture(scope="session")
def rogue_ca() -> CertificateAuthority:
    """A CA that nobody trusts."""
    return CertificateAuthority.create(common_name="rogue CA", clock=_old_clock)


@pytest.fixture
def manager(ca: CertificateAuthority) -> ManagerFactory:
    """A factory of cert managers for mutual TLS."""
    cluster = ca

    def make(
        *names: str,
        ca: CertificateAuthority | None = None,
        trusts: CertificateAuthority | None = None,
        key_pair: KeyPair | None = None,
        client_auth: ClientAuth = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
        server_name: str | None = None,
        clock: Callable[[], datetime] | None = None,
        **issue: Any,
    ) -> CertAuthManager:
        return CertAuthManager(
            key_pair or (ca or cluster).issue(*names, **issue),
            client_cas=(trusts or cluster).pool,
            client_auth=client_auth,
            root_cas=(trusts or cluster).pool,
            server_name=server_name,
            clock=clock,
        )

    return make


@pytest.fixture
def node(manager: ManagerFactory) -> NodeFactory:
    """A factory of nodes on loopback."""

    def make(
        name: str,
        certs: CertManager | None = None,
        *,
        acceptors: Sequence[AcceptorOptions] | None = None,
        mode: NetworkMode = NetworkMode.ENABLED,
        services: Mapping[str, Service] | None = None,
        authorize: Callable[[Peer], None] | None = None,
        shutdown_grace: float = 1.0,
        live_connections: LiveConnections | None = None,
        propagate_service_errors: bool = False,
        **network: Any,
    ) -> AbstractAsyncContextManager[Node]:
        if acceptors is None and mode is NetworkMode.ENABLED:
            acceptors = [AcceptorOptions(host="127.0.0.1", port=0)]
        return open_node(
            name,
            NodeOptions(
                cert_manager=certs or manager(name),
                network=NetworkOptions(mode=mode, acceptors=acceptors or (), **network),
                services=services or {},
                authorize=authorize,
                shutdown_grace=shutdown_grace,
                live_connections=live_connections or LiveConnections(),
                propagate_service_errors=propagate_service_errors,
            ),
        )

    return make


@pytest.fixture
def registered() -> Callable[..., AbstractAsyncContextManager[None]]:
    """A function that registers a name for an `async with` block, as an open node does."""

    @asynccontextmanager
    async def make(registrar: Registrar, name: NodeName, addresses: Sequence[tuple[str, int]]) -> AsyncIterator[None]:
        failure: ResolverError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(registrar.register, name, addresses)
            except ResolverError as exc:
                failure = exc
            else:
                yield
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    return make


@pytest.fixture
def route_to() -> Callable[..., Route]:
    """A function that makes the route to a node's first acceptor; further arguments go to `Route`."""

    def make(node: Node, **route: Any) -> Route:
        host, port = node.acceptors[0].address
        return Route(host=host, port=port, **route)

    return make


@pytest.fixture
def open_pair(node: NodeFactory, route_to: Callable[..., Route]) -> PairFactory:
    """A function that opens two nodes with routes to each other; beta is opened first and left last."""

    @asynccontextmanager
    async def make(
        *, alpha: Mapping[str, Any] | None = None, beta: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Pair]:
        async with node("beta@localhost", **(beta or {})) as b, node("alpha@localhost", **(alpha or {})) as a:
            if b.acceptors:
                a.add_route("beta@localhost", route_to(b))
            if a.acceptors:
                b.add_route("alpha@localhost", route_to(a))
            yield Pair(alpha=a, beta=b)

    return make


async def _bounded(function: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(3600):
        await function()


def _run_on_a_clock_that_jumps(function: Callable[[], Awaitable[None]], **options: Any) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(_bounded, function, **{**options, "clock": clock})


@pytest.fixture
def jumping_clock(request: pytest.FixtureRequest) -> None:
    """Run a test, in which nothing real is waited for, on a clock that jumps; what hangs fails after an hour of it."""
    request.node.add_marker(pytest.mark.trio(run=_run_on_a_clock_that_jumps), append=False)


class Owner(ConnectionOwner[ConnectionCore]):
    """The owner of a connection by itself: notes what it is told.

    Attributes:
        unregistered: how often the connection said that it is not to be handed out any more.
        ends: how it ended, each time that it said so.
        moves: how often it moved to another link.
        renewals: why it was to be renewed.
    """

    def __init__(self) -> None:
        self.name = NodeName.parse("beta@localhost")
        self.unregistered = 0
        self.ends: list[ConnectionEnd] = []
        self.moves = 0
        self.renewals: list[RenewalCause] = []

    def unregister(self, connection: ConnectionCore) -> None:
        """Count it."""
        self.unregistered += 1

    def connection_ended(self, connection: ConnectionCore, end: ConnectionEnd) -> None:
        """Note it."""
        self.ends.append(end)

    def connection_finished(self, connection: ConnectionCore) -> None:
        """Nothing is kept of it."""

    def connection_moved(self, connection: ConnectionCore) -> None:
        """Count it."""
        self.moves += 1

    def renew(self, connection: ConnectionCore, cause: RenewalCause) -> None:
        """Note it."""
        self.renewals.append(cause)

    async def reauthenticate(self, connection: ConnectionCore) -> None:
        """These connections have one link."""
        raise AssertionError


@pytest.fixture
def scripted(manager: ManagerFactory) -> ScriptedFactory:
    """A factory of connections by themselves: nothing in there waits for anything real, so clocks may jump."""
    own, other = NodeName.parse("beta@localhost"), NodeName.parse("alpha@localhost")

    @asynccontextmanager
    async def make(
        *,
        services: Mapping[str, Service] | None = None,
        dialled: bool = False,
        transport: Callable[[MemoryStream], trio.abc.Stream] | None = None,
        max_channels: int = 16,
        propagate_errors: bool = False,
        **settings: Any,
    ) -> AsyncIterator[Scripted]:
        near, far = trio.testing.memory_stream_pair()
        limits = wire.Limits(max_message_size=2**20, window=65536, max_channels=max_channels, max_metadata_size=4096)
        party = Party(name=own, incarnation=2, limits=limits, arbiter=Arbiter(own, Registry()))
        ours, theirs = manager(str(own)), manager(str(other))
        links: list[Link] = []
        peers: list[ScriptedPeer] = []

        async def shake_hands() -> None:
            stream = near if transport is None else transport(near)
            if dialled:
                plan = Dial(name=other, host="localhost", port=1, connect_timeout=60, handshake_timeout=60)
                links.append(await dial_link(stream, ours.contexts, party, plan))
            else:
                link, _ = await accept_link(stream, ours.contexts, party, bind_names=True, handshake_timeout=60)
                links.append(link)

        async def introduce() -> None:
            contexts = await theirs.contexts.receive()
            if dialled:
                peers.append(ScriptedPeer(await server_handshake(far, contexts, received=b"", alpn=(wire.ALPN,))))
                await peers[0].greet(str(other))
            else:
                stream = await client_handshake(far, contexts, reference="localhost", alpn=(wire.ALPN,))
                peers.append(ScriptedPeer(stream))
                await peers[0].introduce(str(other))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake_hands)
            nursery.start_soon(introduce)
        offered = Services(propagate_errors=propagate_errors, expose_errors=False)
        for name, service in (services or {}).items():
            offered.add(name, service)
        async with trio.open_nursery() as service_nursery, trio.open_nursery() as nursery:
            offered.open(service_nursery)
            given: dict[str, Any] = {
                "services": offered,
                "limits": limits,
                "max_pending_opens": 16,
                "budget": 2**20,
                "heartbeat_interval": float("inf"),
                "heartbeat_tolerance": 1,
                "max_records": 2**20,
                "manager": ours,
                "protocol_log": protocol_log(),
            }
            owner = Owner()
            core = ConnectionCore(links[0], ConnectionSettings(**{**given, **settings}), owner)
            nursery.start_soon(core.run)
            yield Scripted(
                connection=Connection(core),
                core=core,
                owner=owner,
                services=offered,
                peer=peers[0],
                streams=(near, far),
            )
            nursery.cancel_scope.cancel()
            service_nursery.cancel_scope.cancel()

    return make


@pytest.fixture
def scripted_dial() -> Callable[..., Awaitable[ScriptedPeer]]:
    """The function `dial_scripted`."""
    return dial_scripted


@pytest.fixture
async def scripted_listener() -> AsyncIterator[ScriptedListener]:
    """A listener on loopback that knows nothing."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield ScriptedListener(listener)


@pytest.fixture
async def resolve() -> Callable[..., None]:
    """A function that decides what a host name resolves to in this run: addresses, nothing, or (None) never."""
    known: dict[str, tuple[str | None, ...]] = {}

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(
            self,
            host: Any,
            port: Any,
            family: int = 0,
            type: int = 0,  # noqa: A002 -- the name that the interface has
            proto: int = 0,
            flags: int = 0,
        ) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            addresses = known.get(name, ("127.0.0.1",) if name == "localhost" else ())
            if None in addresses:
                await trio.sleep_forever()
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                entry
                for address in addresses
                for entry in socket.getaddrinfo(address, port, family, type, proto, flags | socket.AI_NUMERICHOST)
            ]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())

    def set_addresses(name: str, *addresses: str | None) -> None:
        known[name] = addresses

    return set_addresses


# A CA that revokes ---------------------------------------------------------------------------------------------------

_OPENSSL_CONFIG = """
[ca]
default_ca = here
[here]
database = {home}/index.txt
serial = {home}/serial
crlnumber = {home}/crlnumber
new_certs_dir = {home}
certificate = {home}/ca.pem
private_key = {home}/ca.key
default_md = sha256
policy = anything
crl_extensions = crl
unique_subject = no
copy_extensions = copy
[anything]
commonName = supplied
[crl]
authorityKeyIdentifier = keyid
[req]
distinguished_name = name
[name]
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A CA run by the `openssl` command line, an implementation of RFC 5280 that is not ours; root or intermediate."""

    def __init__(self, home: Path, name: str, *, below: Authority | None = None) -> None:
        self.home = home
        self.name = name
        home.mkdir()
        self._config = home / "openssl.cnf"
        self._config.write_text(_OPENSSL_CONFIG.format(home=home))
        (home / "index.txt").touch()
        (home / "serial").write_text("1000\n")
        (home / "crlnumber").write_text("01\n")
        if below is None:
            self._req("-x509", "-extensions", "root", "-days", "3650", subject=name, stem="ca")
        else:
            self._req(subject=name, stem="ca")
            below.sign(home / "ca.csr", home / "ca.pem", extensions="root")
        self.below = below

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own."""
        return x509.load_pem_x509_certificate((self.home / "ca.pem").read_bytes())

    @property
    def pool(self) -> CAPool:
        """The CA's own certificate, to trust."""
        return CAPool.load(self.home / "ca.pem")

    def issue(self, name: str) -> KeyPair:
        """A key pair for a node on localhost, good for half a year; its chain holds this CA if it is no root."""
        stem = name.replace("@", "-")
        names = f"subjectAltName=DNS:localhost,URI:trionode://{name}"
        self._req("-addext", names, subject=name, stem=stem)
        self.sign(self.home / f"{stem}.csr", self.home / f"{stem}.pem", extensions="leaf")
        chain = [x509.load_pem_x509_certificate((self.home / f"{stem}.pem").read_bytes())]
        if self.below is not None:
            chain.append(self.certificate)
        key = load_pem_private_key((self.home / f"{stem}.key").read_bytes(), None)
        return KeyPair(chain, key)  # type: ignore[arg-type]  # it is an EC key

    def sign(self, request: Path, certificate: Path, *, extensions: str) -> None:
        """Issue what a request asks for; valid for a month by now, so that test clocks may be behind."""
        start = datetime.now(UTC) - timedelta(days=30)
        dates = ("-startdate", f"{start:%Y%m%d%H%M%SZ}", "-days", "180")
        self._ca("-in", request, "-out", certificate, "-extensions", extensions, "-notext", *dates)

    def revoke(self, certificate: x509.Certificate | KeyPair, reason: str | None = None) -> None:
        """Take a certificate back."""
        if isinstance(certificate, KeyPair):
            certificate = certificate.certificate
        file = self.home / "revoked.pem"
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        self._ca("-revoke", file, *(() if reason is None else ("-crl_reason", reason)))

    def crl_file(self, *, start: timedelta = -timedelta(hours=1), end: timedelta = timedelta(days=1)) -> Path:
        """The current list, as a PEM file; its dates relative to now."""
        now = datetime.now(UTC)
        file = self.home / "crl.pem"
        dates = ("-crl_lastupdate", f"{now + start:%Y%m%d%H%M%SZ}", "-crl_nextupdate", f"{now + end:%Y%m%d%H%M%SZ}")
        self._ca("-gencrl", "-out", file, *dates)
        return file

    def crl(self, *, start: timedelta = -timedelta(hours=1), end: timedelta = timedelta(days=1)) -> CRLSet:
        """The current list, as a set."""
        return CRLSet.load(self.crl_file(start=start, end=end))

    def _req(self, *arguments: str, subject: str, stem: str) -> None:
        out = self.home / f"{stem}.{'pem' if '-x509' in arguments else 'csr'}"
        key = ("-keyout", self.home / f"{stem}.key", "-out", out)
        _openssl("req", "-new", *_NEW_KEY, *key, "-subj", f"/CN={subject}", "-config", self._config, *arguments)

    def _ca(self, *arguments: str | Path) -> None:
        _openssl("ca", "-batch", "-config", self._config, *arguments)


def _openssl(*arguments: str | Path) -> bytes:
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def openssl() -> Callable[..., bytes]:
    """The `openssl` command: call it with its arguments, get its output."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH")
    return _openssl


# The command line ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the command line did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON on stdout."""
        assert self.err == "", self.err
        return json.loads(self.out)

    def is_one_line(self, *words: str, status: int) -> None:
        """Check that it ended with one clear line that has these words in it, and with this status; no traceback."""
        assert (self.status, self.out) == (status, ""), self
        line, *details = self.err.splitlines()
        assert line.startswith("trionode: "), self.err
        # Below it only what certificates hold, a line for each.
        assert all(each.startswith("  ") and "; SHA-256 " in each for each in details), self.err
        for word in words:
            assert word in self.err, self.err


@pytest.fixture
def trionode_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """The command line in this process, in a directory of its own; a CA is soon made there."""
    monkeypatch.chdir(tmp_path)
    for variable in ("TRIONODE_PKI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.fixture
def pki(trionode_command: Callable[..., Said]) -> Callable[..., Said]:
    """The command line, in a directory with a CA and a certificate for alpha."""
    assert trionode_command("pki", "init").status == 0
    assert trionode_command("pki", "issue", "alpha@localhost").status == 0
    return trionode_command


class AuthorityFactory(Protocol):
    """Makes CAs that revoke, each in a directory of its own."""

    def __call__(self, name: str = "root", *, below: Authority | None = None) -> Authority:
        """Make one; below another it is an intermediate."""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> AuthorityFactory:
    """A factory of CAs that revoke."""

    def make(name: str = "root", *, below: Authority | None = None) -> Authority:
        return Authority(tmp_path_factory.mktemp("authority") / "ca", name, below=below)

    return make
