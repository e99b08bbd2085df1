"""What grows with configuration: a connect, beside more and more lists, CAs, names, routes, services, registered nodes.

Each is measured where it would show: in the CPU time of one connect and close, both ends in one process. A connect with
a call is what services are looked up in. What a list of revoked certificates costs to read, and what many connections
cost `update()`, is beside it (`revocation-rotate`, `rotation-update`).
"""

from __future__ import annotations

import gc
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.suite.credentials import ADDRESS, HOST
from benchmarks.suite.model import Better, Contestant, Placement, Scenario, Stopwatch, Target
from benchmarks.suite.peers.nodes import echo
from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    ClientAuth,
    CRLSet,
    LocalRegistry,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    Route,
    open_node,
)
from trionode.pki import CertificateAuthority

from .revocation import crl_file
from .rotation import key_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.suite.credentials import Credentials
    from benchmarks.suite.model import Job, Sample
    from trionode import Node, Service

SERVER: Final = f"server@{HOST}"
#: Connections at `update()`: nodes that serve, nodes that dial.
SHAPES: Final = ((1, 1), (2, 5), (10, 10), (25, 40))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Two nodes, and what of their configuration is large.

    Attributes:
        server: the manager of the one that serves.
        client: that of the other.
        services: of the one that serves.
        routes: of the other, besides the one that is used.
        registered: nodes that a registry knows; it is asked for the server, where there is one.
        calls: whether a connect has a call.
    """

    server: CertAuthManager
    client: CertAuthManager
    services: Mapping[str, Service] = field(default_factory=lambda: {"echo": echo})
    routes: Mapping[str, Route] = field(default_factory=dict)
    registered: int = 0
    calls: bool = False


def _plain(credentials: Credentials) -> Setup:
    return Setup(server=credentials.manager("server"), client=credentials.manager("client"))


def revoked(credentials: Credentials, number: int) -> Setup:
    """Both sides have a list of so many revoked certificates."""
    setup = _plain(credentials)
    for manager in setup.server, setup.client:
        manager.rotate_trust(crls=CRLSet.load(crl_file(credentials, number, 1)))
    return setup


@cache
def _strangers(number: int) -> CAPool:
    """So many CAs that nobody has a certificate of."""
    pools = (CertificateAuthority.create(common_name=f"CA {each}").pool for each in range(number))
    return CAPool.from_pem(b"".join(each.public_bytes(Encoding.PEM) for pool in pools for each in pool))


def cas(credentials: Credentials, number: int) -> Setup:
    """Both sides trust so many CAs, of which one has issued the peer's certificate."""
    own = CAPool.load(credentials.ca)
    pool = own if number == 1 else _strangers(number - 1) | own

    def manager(end: str) -> CertAuthManager:
        return CertAuthManager(
            credentials.manager(end).key_pair,
            client_cas=pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=pool,
        )

    return Setup(server=manager("server"), client=manager("client"))


def names(credentials: Credentials, number: int) -> Setup:
    """The server's certificate has so many names, of which the last is wanted."""
    setup = _plain(credentials)
    ca = CertificateAuthority.load(credentials.directory)
    setup.server.update(ca.issue(*(f"node{each}.example" for each in range(number - 1)), HOST))
    return setup


def routes(credentials: Credentials, number: int) -> Setup:
    """The client has so many routes, half of them patterns."""
    others = {f"node{each}@{'*' if each % 2 else HOST}": Route(host=ADDRESS, port=1) for each in range(number - 1)}
    return replace(_plain(credentials), routes=others)


def services(credentials: Credentials, number: int) -> Setup:
    """The server has so many services, of which one is called."""
    others = {f"service{each}": echo for each in range(number - 1)}
    return replace(_plain(credentials), services={**others, "echo": echo}, calls=True)


def registered(credentials: Credentials, number: int) -> Setup:
    """A registry in files knows so many nodes, of which one is looked up."""
    return replace(_plain(credentials), registered=number)


class _Resolving:
    """A registry that dials ask, and nothing else: following all names, for `members`, is a cost beside dials."""

    def __init__(self, registry: LocalRegistry) -> None:
        self.resolve = registry.resolve


def _settle() -> None:
    """Let the garbage collector pass over what is large: it is not what is measured."""
    gc.collect()
    gc.freeze()


async def _connects(job: Job, setup: Setup) -> Sample:
    acceptors = [AcceptorOptions(host=ADDRESS, port=0)]
    serving = NodeOptions(
        cert_manager=setup.server, network=NetworkOptions(acceptors=acceptors), services=setup.services
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_node(SERVER, serving))
        address = server.acceptors[0].address
        if setup.registered:
            registry = LocalRegistry(stack.enter_context(tempfile.TemporaryDirectory()), allow_other_files=True)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            for each in range(setup.registered - 1):
                await nursery.start(registry.register, NodeName.parse(f"node{each}@{HOST}"), [address])
            await nursery.start(registry.register, NodeName.parse(SERVER), [address])
            network = NetworkOptions(mode=NetworkMode.HIDDEN, resolver=_Resolving(registry))
        else:
            table = {**setup.routes, SERVER: Route(host=ADDRESS, port=address[1])}
            network = NetworkOptions(mode=NetworkMode.HIDDEN, routes=table)
        client: Node = await stack.enter_async_context(
            open_node(f"client@{HOST}", NodeOptions(cert_manager=setup.client, network=network))
        )
        _settle()
        with Stopwatch() as watch:
            for _ in range(job.count):
                connection = await client.connect(SERVER)
                if setup.calls:
                    await connection.call("echo", b"x")
                await connection.aclose()
    return watch.sample(watch.cpu / job.count * 1e6, job.count, rate=job.count / watch.wall)


def connects(job: Job, *, make: Callable[[Credentials, int], Setup], number: int) -> Sample:
    """CPU time of one connect and close, µs."""
    setup = make(job.credentials, min(number, int(job.parameters["most"])))
    return trio.run(_connects, job, setup)


#: By what grows: how it is set up, and with which numbers.
KINDS: Final = {
    "revoked certificates": (revoked, (1, 100, 10_000)),
    "CAs": (cas, (1, 10, 100, 1000)),
    "names of the server": (names, (1, 10, 100, 500)),
    "routes": (routes, (1, 100, 10_000)),
    "services": (services, (1, 100, 10_000)),
    "registered nodes": (registered, (1, 100, 1000)),
}


def _title(kind: str, number: int) -> str:
    return f"{kind}, {number}"


def _contestants() -> list[Contestant]:
    return [
        Contestant(
            title=_title(kind, number),
            measure=partial(connects, make=make, number=number),
            placements=frozenset([Placement.ONE]),
            series=kind,
            x=number,
        )
        for kind, (make, numbers) in KINDS.items()
        for number in numbers
    ]


async def _update(job: Job, servers: int, clients: int) -> Sample:
    setup, pairs = _plain(job.credentials), key_pairs(job.credentials)
    network = NetworkOptions(acceptors=[AcceptorOptions(host=ADDRESS, port=0)])
    async with AsyncExitStack() as stack:
        options = NodeOptions(cert_manager=setup.server, network=network)
        serving = [await stack.enter_async_context(open_node(f"s{n}@{HOST}", options)) for n in range(servers)]
        table = {str(node.name): Route(host=ADDRESS, port=node.acceptors[0].address[1]) for node in serving}
        hidden = NetworkOptions(mode=NetworkMode.HIDDEN, routes=table)
        options = NodeOptions(cert_manager=setup.client, network=hidden)
        dialling = [await stack.enter_async_context(open_node(f"c{n}@{HOST}", options)) for n in range(clients)]
        for node in dialling:
            for name in table:
                await node.connect(name)
        _settle()
        with Stopwatch() as watch:
            for _ in range(job.count):
                setup.server.update(next(pairs))
    return watch.sample(watch.cpu / job.count * 1e6, job.count)


def update(job: Job, *, servers: int, clients: int) -> Sample:
    """CPU time of one `update()` under so many connections, µs."""
    return trio.run(_update, job, servers, clients)


SCENARIOS: Final = (
    Scenario(
        name="sweep-configuration",
        measures="CPU time of one connect and close, with ever more revoked certificates, CAs in both pools, "
        "names in the server's certificate, routes, services (and one call), and nodes in a registry.",
        unit="µs CPU",
        better=Better.LOWER,
        contestants=_contestants(),
        baseline=_title("routes", 1),
        targets=[
            Target(of=_title(kind, numbers[-1]), against=_title(kind, 1), at_most=1.2)
            for kind, (_, numbers) in KINDS.items()
        ],
        start=8,
        seconds=0.4,
        quick_start=2,
        full={"most": 10_000},
        quick={"most": 10},
        sweep="number",
    ),
    Scenario(
        name="sweep-update",
        measures="CPU time of one `update()` under ever more live connections.",
        unit="µs CPU",
        better=Better.LOWER,
        contestants=[
            Contestant(
                title=_title("connections", servers * clients),
                measure=partial(update, servers=servers, clients=clients),
                placements=frozenset([Placement.ONE]),
                series="connections",
                x=servers * clients,
            )
            for servers, clients in SHAPES
        ],
        baseline=_title("connections", 1),
        targets=[Target(of=_title("connections", 1000), against=_title("connections", 1), at_most=1.1)],
        start=50,
        seconds=0.2,
        quick_start=2,
        sweep="connections",
    ),
)
