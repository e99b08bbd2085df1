"""Routes: which of them lead to a name, in which order, and that everything they say is heeded each time.

How the node's verbs use the table, in the plain cases, is in test_nodes; the errors of single dials are in
test_handshake_errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, strategies as st

from trionode import (
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    Connection,
    ConnectionUp,
    Endpoint,
    HandshakeError,
    HandshakeRefused,
    NodeName,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Route,
    Stage,
    UnverifiedReason,
    generate_cookie,
)
from trionode._connection.connection import core_of
from trionode._identity import patterns
from trionode._identity.patterns import NamePattern, is_glob
from trionode._node.routes import RouteTable
from trionode._util.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import ManagerFactory, NodeFactory

    from trionode import EventStream, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

BETA = NodeName.parse("beta@localhost")

#: Nothing listens there: it is a privileged port that needs no service.
DEAD = Route(host="127.0.0.1", port=1)


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


@dataclass
class Recording:
    """A resolver that knows nothing, and remembers what it was asked."""

    asked: list[NodeName] = field(default_factory=list)

    async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
        """Nothing."""
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        return []


# Patterns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("beta@localhost", "beta@localhost", True),
        ("beta@localhost", "beta@localhost.example", False),
        ("beta@localhost", "alphabeta@localhost", False),
        ("beta@LocalHost.", "beta@localhost", True),
        ("Beta@localhost", "beta@localhost", False),
        ("beta@bücher.example", "beta@xn--bcher-kva.example", True),
        ("*", "beta@localhost", True),
        ("*@localhost", "beta@localhost", True),
        ("*@localhost", "beta@localhost.example", False),
        ("*@LOCALHOST", "beta@localhost", True),
        ("*@bücher.example", "beta@xn--bcher-kva.example", True),
        ("*@Host-?.Example", "beta@host-a.example", True),
        ("beta@*", "beta@localhost", True),
        ("beta@*", "beta@[::1]", True),
        ("beta@*", "beta2@localhost", False),
        ("beta*@localhost", "beta2@localhost", True),
        ("b?ta@localhost", "beta@localhost", True),
        ("b?ta@localhost", "bta@localhost", False),
        ("Bet?@localhost", "beta@localhost", False),
        ("*@*.example", "beta@a.example", True),
        ("*@*.example", "beta@a.b.example", True),
        ("*@*.example", "beta@example", False),
        ("beta@[::1]", "beta@[::1]", True),
        ("beta@[0:0::1]", "beta@[::1]", True),
        ("beta@::1", "beta@[::1]", True),
        ("*@[::1]", "beta@[::1]", True),
        ("*@[0:0::1]", "beta@[::1]", True),
        ("*@[::1]", "beta@[::2]", False),
        ("*@[2001:DB8:*]", "beta@[2001:db8::7]", True),
        ("*@[2001:db8:*]", "beta@[2001:db9::7]", False),
        ("*@[*", "beta@[::1]", True),
        ("*@[*", "beta@localhost", False),
        ("be[tl]a@localhost*", "beta@localhost", False),  # brackets are an address's, not a set of characters
        ("*@127.0.0.?", "beta@127.0.0.9", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, name: str, matches: bool) -> None:
    """A pattern is an exact name or a glob, over the whole name in canonical form; brackets are those of an address."""
    assert NamePattern(pattern).matches(NodeName.parse(name)) is matches


@given(st.text("ab*?", max_size=8), st.text("ab", min_size=1, max_size=8))
def test_globs_match_as_those_of_the_shell(glob: str, name: str) -> None:
    """As `fnmatch` has them, for the two wildcards that there are."""
    found = NamePattern(f"{glob}@a*").matches(NodeName.parse(f"{name}@a.b")) if is_glob(glob) else glob == name
    assert found is fnmatchcase(name, glob)


def test_thousands_of_globs_are_told_by_how_names_begin_or_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is done for each that does not match, and nothing for exact names."""
    table = RouteTable()
    walked: list[str] = []

    def walk(text: str, glob: str) -> bool:
        walked.append(glob)
        return fnmatchcase(text, glob)

    for number in range(2000):
        table.add(f"beta-{number}-*@host.example", route(1))
        table.add(f"*@h?st-{number}.example", route(2))
        table.add(f"beta@{number}.example", route(3))
    monkeypatch.setattr(patterns, "_fits", walk)
    assert table.lookup(NodeName.parse("beta-77-x@host-7.example")) == [route(2)]
    assert table.lookup(NodeName.parse("beta@1999.example")) == [route(3)]
    assert walked == ["*@h?st-7.example"]


@pytest.mark.parametrize("pattern", ["beta", "*beta", "", "@localhost", "*@no host", "*@[::1", "*@::1%eth0", "*@"])
def test_pattern_that_could_never_match_is_refused(pattern: str) -> None:
    """What is neither a name nor a glob over one is refused, instead of never matching in silence."""
    with pytest.raises(ValueError, match=r"."):
        RouteTable().add(pattern, DEAD)


# The table ------------------------------------------------------------------------------------------------------------


def route(number: int) -> Route:
    """A route that can be told from others."""
    return Route(port=number)


def test_several_routes_share_one_pattern() -> None:
    """Several routes may have one pattern, or patterns that overlap: all of them count."""
    table = RouteTable()
    for number, pattern in enumerate(["beta@localhost", "beta@localhost", "*@localhost", "*", "*@elsewhere"], start=1):
        table.add(pattern, route(number))
    assert table.lookup(BETA) == [route(1), route(2), route(3), route(4)]
    assert table.lookup(NodeName.parse("beta@elsewhere")) == [route(4), route(5)]


def test_higher_weight_comes_first_and_equal_weights_in_order_of_addition() -> None:
    """Weight goes before everything, also before an exact pattern; among equals it is the order of addition."""
    table = RouteTable()
    for number, (pattern, weight) in enumerate(
        [("beta@localhost", 0), ("*", 5), ("b*@*", -3), ("*@localhost", 5), ("beta@localhost", 5), ("*", 0)], start=1
    ):
        table.add(pattern, route(number), weight=weight)
    assert table.lookup(BETA) == [route(number) for number in (2, 4, 5, 1, 6, 3)]


def test_handle_removes_its_own_route_only() -> None:
    """A handle removes the one route that it stands for, once, among others that are equal to it."""
    table = RouteTable()
    handles = [table.add(BETA, route(7), weight=2) for _ in range(3)]
    table.add(BETA, route(8))
    handles[1].remove()
    assert table.lookup(BETA) == [route(7), route(7), route(8)]
    handles[1].remove()
    assert table.lookup(BETA) == [route(7), route(7), route(8)]
    for handle in handles:
        handle.remove()
    assert table.lookup(BETA) == [route(8)]


def test_handle_says_what_it_stands_for() -> None:
    """A handle shows pattern, weight and route, without the cookie."""
    cookie = generate_cookie()
    shown = repr(RouteTable().add("b*@localhost", Route(host="127.0.0.1", port=77, cookie=cookie), weight=3))
    for part in "b*@localhost", "127.0.0.1", "77", "3":
        assert part in shown
    assert cookie not in shown


async def test_removed_route_leaves_its_connections(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Removing a route concerns dials to come; a connection that it made stays."""
    with trio.fail_after(10):
        async with node(str(BETA), services={"echo": echo}) as beta, node("alpha@localhost") as alpha:
            handle = alpha.add_route(BETA, route_to(beta))
            connection = await alpha.connect(BETA)
            handle.remove()
            assert await alpha.connect(BETA) is connection
            assert await alpha.call(BETA, "echo", b"x") == b"x"


async def test_match_excludes_the_resolver(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Where a route matches the resolver is not asked, even if all the routes fail; where none does, it is."""
    resolver = Recording()
    with trio.fail_after(10):
        async with node(str(BETA)) as beta, node("alpha@localhost", resolver=resolver) as alpha:
            handle = alpha.add_route("beta@*", DEAD)
            with pytest.raises(HandshakeError):
                await alpha.connect(BETA)
            alpha.add_route("beta@*", DEAD)
            with pytest.raises(NoRouteError):
                await alpha.connect(BETA)
            alpha.add_route("b*@localhost", route_to(beta), weight=-1)
            await alpha.connect(BETA)
            assert resolver.asked == []
            handle.remove()
            with pytest.raises(NoRouteError, match="no route to gamma@localhost"):
                await alpha.connect("gamma@localhost")
            assert resolver.asked == [NodeName.parse("gamma@localhost")]
            await alpha.connect("beta@localhost", route_to(beta))
            assert len(resolver.asked) == 1


# What a route says is heeded, each time -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A peer that is reached with one option of the route only.

    Attributes:
        name: the peer's.
        option: what it takes.
        without: what is wrong without it.
        peer: further options of the peer's node.
        verified: whether the dialer has verified the peer then.
    """

    name: str = "beta@localhost"
    option: dict[str, Any]
    without: Callable[[HandshakeError], bool]
    peer: dict[str, Any] = field(default_factory=dict)
    verified: bool = True


@pytest.fixture(params=["host", "cert_manager", "server_name", "insecure_skip_verify", "cookie"])
def case(request: pytest.FixtureRequest, manager: ManagerFactory, rogue_ca: CertificateAuthority) -> Case:
    """One option after the other; the port is in all of them."""
    cookie = generate_cookie()
    cases: dict[str, Callable[[], Case]] = {
        # The .invalid domain does not resolve (RFC 6761): only the route knows where the node is.
        "host": lambda: Case(
            name="beta@nowhere.invalid",
            option={"host": "127.0.0.1"},
            without=lambda error: error.stage is Stage.RESOLVE,
        ),
        "cert_manager": lambda: Case(
            option={"cert_manager": manager("alpha@localhost", ca=rogue_ca, trusts=rogue_ca)},
            peer={"certs": manager("beta@localhost", ca=rogue_ca, trusts=rogue_ca)},
            without=lambda error: (
                isinstance(error, PeerUnverifiedError) and error.reason is UnverifiedReason.UNKNOWN_CA
            ),
        ),
        "server_name": lambda: Case(
            option={"server_name": "other.example"},
            peer={"certs": manager("other.example")},
            without=lambda error: (
                isinstance(error, PeerUnverifiedError) and error.reason is UnverifiedReason.NAME_MISMATCH
            ),
        ),
        "insecure_skip_verify": lambda: Case(
            option={"insecure_skip_verify": True},
            peer={"certs": manager("beta@localhost", ca=rogue_ca, client_auth=ClientAuth.NO_CLIENT_CERT)},
            without=lambda error: (
                isinstance(error, PeerUnverifiedError) and error.reason is UnverifiedReason.UNKNOWN_CA
            ),
            verified=False,
        ),
        "cookie": lambda: Case(
            option={"cookie": cookie},
            peer={"cookie": cookie},
            without=lambda error: isinstance(error, PeerRejectedError) and error.code is RejectionCode.COOKIE,
        ),
    }
    return cases[request.param]()


@pytest.fixture
def open_case(node: NodeFactory) -> Callable[[Case], Any]:
    """A function that opens the peer of a case."""

    def make(case: Case) -> Any:
        options = dict(case.peer)
        return node(case.name, options.pop("certs", None), services={"echo": echo}, **options)

    return make


def way(peer: Node, case: Case, *, complete: bool) -> Route:
    """The route to a case's peer, with or without the option that matters."""
    option = case.option if complete else {}
    host = None if case.name.endswith(".invalid") else "127.0.0.1"
    return Route(**{"host": host, "port": peer.acceptors[0].address[1], **option})


async def test_route_option_is_applied_to_every_dial(
    node: NodeFactory, open_case: Callable[[Case], Any], case: Case
) -> None:
    """Each option of a route decides whether the dial succeeds: on the first dial, and on every one after it."""
    with trio.fail_after(10):
        async with open_case(case) as peer, node("alpha@localhost") as alpha:
            incomplete = alpha.add_route(case.name, way(peer, case, complete=False))
            for _ in range(2):
                with pytest.raises(HandshakeError) as caught:
                    await alpha.connect(case.name)
                assert case.without(caught.value), caught.value
            incomplete.remove()
            handle = alpha.add_route(case.name, way(peer, case, complete=True))
            for _ in range(3):
                connection = await alpha.connect(case.name)
                assert connection.peer.verified is case.verified
                assert await alpha.call(case.name, "echo", b"x") == b"x"
                await connection.aclose()
            handle.remove()
            alpha.add_route(case.name, way(peer, case, complete=False))
            with pytest.raises(HandshakeError) as caught:
                await alpha.connect(case.name)
            assert case.without(caught.value), caught.value


async def test_route_option_is_applied_to_every_attempt(
    node: NodeFactory, open_case: Callable[[Case], Any], case: Case
) -> None:
    """Where several routes are tried, each attempt has the options of its own route, and of no other."""
    with trio.fail_after(10):
        async with open_case(case) as peer, node("alpha@localhost") as alpha, alpha.events() as events:
            alpha.add_route(case.name, way(peer, case, complete=False), weight=3)
            alpha.add_route(case.name, way(peer, case, complete=True), weight=2)
            alpha.add_route(case.name, way(peer, case, complete=False), weight=1)
            connection = await alpha.connect(case.name)
            assert connection.peer.verified is case.verified
            refused = await until(events, HandshakeRefused)
            assert case.without(refused.error)
            assert alpha.statistics().connections == 1


async def test_route_option_is_applied_to_every_reconnect(
    node: NodeFactory, open_case: Callable[[Case], Any], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connector that reconnects heeds the route's options each time, and those of a route that took its place."""
    monkeypatch.setattr("trionode._node.connector.BACKOFF", Backoff(first=0.001, longest=30))
    with trio.fail_after(20):
        async with open_case(case) as peer, node("alpha@localhost") as alpha, alpha.events() as events:
            handle = alpha.add_route(case.name, way(peer, case, complete=True))
            connector = alpha.keep_connected(case.name)
            for _ in range(3):
                up: Connection = (await until(events, ConnectionUp)).connection
                assert up.peer.verified is case.verified
                await peer._runtime.public(next(iter(peer._runtime.running))).aclose()
            await until(events, ConnectionUp)
            alpha.add_route(case.name, way(peer, case, complete=False))
            handle.remove()
            await peer._runtime.public(next(iter(peer._runtime.running))).aclose()
            refused = await until(events, HandshakeRefused)
            assert case.without(refused.error)
            connector.stop()


async def until(events: EventStream, kind: Any) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


async def test_route_says_no_more_than_it_was_told(node: NodeFactory, manager: ManagerFactory) -> None:
    """What a route leaves out is the node's: manager, cookie and strictness; and the name's host, port 15000."""
    cookie = generate_cookie()
    ours = manager("alpha@localhost")
    with trio.fail_after(10):
        async with (
            node(str(BETA), cookie=cookie) as beta,
            node("alpha@localhost", ours, cookie=cookie, insecure_skip_verify=True) as alpha,
        ):
            connection = await alpha.connect(BETA, Route(host="127.0.0.1", port=beta.acceptors[0].address[1]))
            assert connection.key_pair_fingerprint == ours.key_pair.fingerprint
            assert core_of(connection).link.insecure
            await connection.aclose()
            strict = Route(host="127.0.0.1", port=beta.acceptors[0].address[1], insecure_skip_verify=False)
            connection = await alpha.connect(BETA, strict)
            assert not core_of(connection).link.insecure
            assert connection.peer.verified
    assert (Route().host, Route().port) == (None, 15000)


# What failed, and where -----------------------------------------------------------------------------------------------


async def test_causes_hold_every_attempts_error_with_its_route(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route], rogue_ca: CertificateAuthority
) -> None:
    """Every attempt is in `causes`, in order, each with a note of the route that it took; cookies are not shown."""
    cookie, other = generate_cookie(), generate_cookie()
    with trio.fail_after(10):
        async with (
            node(str(BETA), manager("beta@localhost", ca=rogue_ca)) as rogue,
            node(str(BETA), cookie=cookie) as guarded,
            node("alpha@localhost") as alpha,
        ):
            routes = [
                route_to(guarded, cookie=other),
                route_to(rogue, server_name="localhost"),
                DEAD,
                route_to(guarded, cert_manager=manager("alpha@localhost")),
            ]
            for each in routes:
                alpha.add_route(BETA, each)
            with pytest.raises(NoRouteError) as caught:
                await alpha.connect(BETA)
    assert caught.value.causes is not None
    causes = caught.value.causes.exceptions
    kinds = [PeerRejectedError, PeerUnverifiedError, HandshakeError, PeerRejectedError]
    assert [type(cause) for cause in causes] == kinds
    for cause, each in zip(causes, routes, strict=True):
        assert cause.__notes__ == [f"route: {each!r}"]
        assert str(each.port) in cause.__notes__[0]
        assert other not in cause.__notes__[0]
    assert "server_name='localhost'" in causes[1].__notes__[0]
    for each in routes:
        assert str(each.port) in str(caught.value)
    assert other not in str(caught.value)


async def test_route_that_our_side_cannot_use_costs_that_route(
    node: NodeFactory, route_to: Callable[..., Route], ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route whose manager fails on our own side is one more failed attempt; the next route is tried."""

    def no_system_cas() -> CAPool:
        raise CertificateError("none", reason=CertificateReason.NO_CERTIFICATE)

    monkeypatch.setattr(CAPool, "system", staticmethod(no_system_cas))
    with trio.fail_after(10):
        async with node(str(BETA)) as beta, node("alpha@localhost") as alpha:
            alpha.add_route(BETA, route_to(beta, cert_manager=CertAuthManager(ca.issue("alpha@localhost"))))
            dead = alpha.add_route(BETA, DEAD)
            with pytest.raises(NoRouteError) as caught:
                await alpha.connect(BETA)
            assert caught.value.causes is not None
            ours, theirs = caught.value.causes.exceptions
            assert isinstance(ours, CertificateError)
            assert isinstance(theirs, HandshakeError)
            dead.remove()
            alpha.add_route(BETA, route_to(beta))
            assert (await alpha.connect(BETA)).peer.verified


async def test_resolved_endpoints_are_routes_too(node: NodeFactory) -> None:
    """Where a resolver gave several endpoints and all failed, each attempt's error has its endpoint."""

    class Two:
        async def resolve(self, name: NodeName, /) -> Sequence[Endpoint]:
            await trio.lowlevel.checkpoint()
            return [Endpoint("127.0.0.1", 1), Endpoint("127.0.0.2", 2)]

    with trio.fail_after(10):
        async with node("alpha@localhost", resolver=Two()) as alpha:
            with pytest.raises(NoRouteError) as caught:
                await alpha.connect(BETA)
    assert caught.value.causes is not None
    notes = [cause.__notes__[0] for cause in caught.value.causes.exceptions]
    assert "host='127.0.0.1', port=1," in notes[0]
    assert "host='127.0.0.2', port=2," in notes[1]


@pytest.mark.parametrize(("host", "dialled"), [("fe80::1%eth0", "[fe80::1%eth0]"), ("[FE80::0:1%2]", "[fe80::1%2]")])
def test_a_route_may_have_an_address_with_a_zone(host: str, dialled: str) -> None:
    """It is where to dial; as a name in a certificate, a zone is refused."""
    assert Route(host=host).host == Route(host=dialled).host == dialled
    with pytest.raises(ValueError, match="zone"):
        Route(server_name=host)
    for odd in ("fe80::1%", "10.0.0.1%eth0", "host%eth0", "fe80::1%e 0"):
        with pytest.raises(ValueError, match="host"):
            Route(host=odd)
