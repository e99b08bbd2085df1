"""Why a handshake failed: every error of the handshake, provoked for real, and what either side makes of it."""

from __future__ import annotations

import logging
import struct
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing
from cryptography.x509.oid import ExtendedKeyUsageOID

from trionode import (
    AcceptorOptions,
    CAPool,
    CertAuthManager,
    CertificateError,
    CertificateReason,
    ClientAuth,
    HandshakeError,
    HandshakeRefused,
    HandshakeTimeoutError,
    NetworkMode,
    NodeName,
    NoRouteError,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    RejectionCode,
    RemoteProtocolError,
    Route,
    Side,
    Stage,
    UnverifiedReason,
    _protocol as wire,
    open_tls_stream,
    serve_tls,
)
from trionode._connection.connection import core_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from conftest import ManagerFactory, NodeFactory, ScriptedListener, ScriptedPeer
    from cryptography import x509

    from trionode import EventStream, Node, Peer, ServiceChannel, TLSStream
    from trionode.pki import CertificateAuthority

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
VERIFYING = [ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT]


@dataclass(frozen=True)
class Clash:
    """One failed handshake, seen from both sides."""

    dialled: HandshakeError
    accepted: HandshakeError

    def we_refused_the_server(self, reason: UnverifiedReason, code: RejectionCode) -> PeerUnverifiedError:
        """Check classes, reason and code where the dialer refused; gives the dialer's error."""
        assert isinstance(self.dialled, PeerUnverifiedError)
        assert isinstance(self.accepted, PeerRejectedError)
        assert self.dialled.reason is reason
        assert self.accepted.code is code
        assert self.accepted.reason == code
        return self.dialled

    def we_refused_the_client(self, reason: UnverifiedReason, code: RejectionCode) -> PeerUnverifiedError:
        """Check classes, reason and code where the acceptor refused; gives the acceptor's error."""
        assert isinstance(self.accepted, PeerUnverifiedError)
        assert isinstance(self.dialled, PeerRejectedError)
        assert self.accepted.reason is reason
        assert self.dialled.code is code
        assert self.dialled.reason == code
        return self.accepted

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """The dialer's and the acceptor's."""
        return self.dialled.stage, self.accepted.stage


async def refusal(events: EventStream) -> HandshakeRefused:
    """The next refused handshake that a node reports."""
    async for event in events:
        if isinstance(event, HandshakeRefused):
            return event
    raise AssertionError("the node ended")


async def failure(attempt: Awaitable[object]) -> HandshakeError:
    """The `HandshakeError` that an attempt ends with."""
    with pytest.raises(HandshakeError) as caught:
        await attempt
    return caught.value


def assert_describes(error: Exception, certificate: x509.Certificate) -> None:
    """The text has what an operator needs to tell which certificate it was."""
    text = str(error)
    assert certificate.subject.rfc4514_string() in text
    assert certificate.issuer.rfc4514_string() in text
    assert f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S}" in text
    assert f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S}" in text


@pytest.fixture
def clash(node: NodeFactory, caplog: pytest.LogCaptureFixture) -> Callable[..., Awaitable[Clash]]:
    """A function that dials from one node to another, which must fail, and collects what both sides say."""

    async def make(
        *,
        alpha: Mapping[str, Any] | None = None,
        beta: Mapping[str, Any] | None = None,
        dialer: str = "alpha@localhost",
        acceptor: str = "beta@localhost",
        target: str = "beta@localhost",
        **route: Any,
    ) -> Clash:
        with trio.fail_after(20):
            async with (
                node(acceptor, **(beta or {})) as b,
                node(dialer, **{"mode": NetworkMode.HIDDEN, **(alpha or {})}) as a,
                a.events() as on_alpha,
                b.events() as on_beta,
            ):
                host, port = b.acceptors[0].address
                error = await failure(a.connect(target, Route(host=host, port=port, **route)))
                dialled, accepted = await refusal(on_alpha), await refusal(on_beta)
                assert dialled.error is error
                assert (dialled.node, dialled.side) == (a.name, Side.DIAL)
                assert (accepted.node, accepted.side) == (b.name, Side.ACCEPT)
                assert error.address == dialled.address == (host, port)
                assert accepted.address == accepted.error.address
                assert accepted.address is not None
                assert accepted.address[0] == host
                assert error.generation == accepted.error.generation == 1
                statistics = b.acceptors[0].statistics()
                assert (statistics.refused, statistics.established, statistics.handshaking) == (1, 0, 0)
                assert not a.connections
                assert not b.connections
                assert not b.unverified_connections
        warnings = [r.getMessage() for r in caplog.records if r.name == "trionode.acceptor"]
        assert len(warnings) == 1
        assert str(accepted.error) in warnings[0]
        return Clash(error, accepted.error)

    return make


# The client's certificate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_auth", VERIFYING)
async def test_client_certificate_of_another_ca(
    clash: Callable[..., Awaitable[Clash]],
    manager: ManagerFactory,
    rogue_ca: CertificateAuthority,
    ca: CertificateAuthority,
    client_auth: ClientAuth,
) -> None:
    """A client certificate that no CA of the pool signed is refused as such, on both sides, with facts and remedy."""
    certs = manager("alpha@localhost", ca=rogue_ca)
    ours = certs.key_pair.certificate
    clashed = await clash(alpha={"certs": certs}, beta={"certs": manager("beta@localhost", client_auth=client_auth)})
    error = clashed.we_refused_the_client(UnverifiedReason.UNKNOWN_CA, RejectionCode.UNKNOWN_CA)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.certificate == ours
    assert error.wanted is not None
    assert ca.certificate.subject.rfc4514_string() in error.wanted
    assert_describes(error, ours)
    assert "DNS:localhost" in str(error)
    assert "Add its CA to client_cas" in str(error)
    assert isinstance(clashed.dialled, PeerRejectedError)
    assert clashed.dialled.presented == ours
    assert_describes(clashed.dialled, ours)
    assert "CA pool" in str(clashed.dialled)


async def test_client_without_certificate(
    node: NodeFactory, ca: CertificateAuthority, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A client that sends no certificate is told so by alert, and the acceptor says what to give it."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            peer = await scripted_dial(beta, ca)
            async with peer.stream:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await peer.stream.receive_some()
            event = await refusal(events)
    assert "CERTIFICATE_REQUIRED" in str(caught.value.__cause__)
    error = event.error
    assert isinstance(error, PeerUnverifiedError)
    assert error.reason is UnverifiedReason.NO_CERTIFICATE
    assert error.stage is Stage.TLS
    assert error.certificate is None
    assert error.wanted == "a client certificate"
    assert "Give the client a key pair" in str(error)


async def test_expired_client_certificate(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """An expired client certificate is refused as expired, with its dates and our clock in the text."""
    now = datetime.now(UTC)
    certs = manager("alpha@localhost", not_after=now - HOUR, clock=lambda: now - DAY)
    ours = certs.key_pair.certificate
    clashed = await clash(alpha={"certs": certs})
    error = clashed.we_refused_the_client(UnverifiedReason.EXPIRED, RejectionCode.CERTIFICATE_EXPIRED)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.certificate == ours
    assert_describes(error, ours)
    assert "has expired: our clock says" in str(error)
    assert "must rotate" in str(error)
    assert isinstance(clashed.dialled, PeerRejectedError)
    assert clashed.dialled.presented == ours
    assert "rotate to a new one, and compare the clocks" in str(clashed.dialled)


async def test_client_certificate_that_is_not_yet_valid(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """A client certificate whose time has not come is not called expired; notBefore and our clock are in the text."""
    now = datetime.now(UTC)
    certs = manager("alpha@localhost", not_before=now - HOUR)
    clashed = await clash(alpha={"certs": certs}, beta={"certs": manager("beta@localhost", clock=lambda: now - DAY)})
    error = clashed.we_refused_the_client(UnverifiedReason.NOT_YET_VALID, RejectionCode.BAD_CERTIFICATE)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.certificate == certs.key_pair.certificate
    assert "is not yet valid" in str(error)
    assert f"notBefore is {now - HOUR:%Y-%m-%d %H:%M:%S}" in str(error)
    assert f"our clock says {now - DAY:%Y-%m-%d %H:%M:%S}" in str(error)
    assert "Check the clocks" in str(error)
    assert "not yet valid" in str(clashed.dialled)


async def test_client_certificate_without_client_auth(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """A certificate that is for servers only is refused from a client, with both purposes as the remedy."""
    certs = manager(
        "alpha@localhost",
        extended_key_usage=[ExtendedKeyUsageOID.SERVER_AUTH],
        client_auth=ClientAuth.NO_CLIENT_CERT,
    )
    clashed = await clash(alpha={"certs": certs})
    error = clashed.we_refused_the_client(UnverifiedReason.WRONG_EKU, RejectionCode.UNSUPPORTED_CERTIFICATE)
    assert error.wanted == "clientAuth"
    assert "Issue it with both serverAuth and clientAuth" in str(error)
    assert "issue it with both serverAuth and clientAuth" in str(clashed.dialled)


# The server's certificate -------------------------------------------------------------------------------------------


async def test_server_certificate_of_another_ca(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A server certificate that no CA of the pool signed is refused, before ours is sent; the server learns of it."""
    certs = manager("beta@localhost", ca=rogue_ca)
    theirs = certs.key_pair.certificate
    clashed = await clash(beta={"certs": certs})
    error = clashed.we_refused_the_server(UnverifiedReason.UNKNOWN_CA, RejectionCode.UNKNOWN_CA)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.certificate == theirs
    assert_describes(error, theirs)
    assert "Add its CA to root_cas" in str(error)
    assert isinstance(clashed.accepted, PeerRejectedError)
    assert clashed.accepted.presented == theirs
    assert_describes(clashed.accepted, theirs)


async def test_expired_server_certificate(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """An expired server certificate is refused as expired, and the server learns just that."""
    now = datetime.now(UTC)
    certs = manager("beta@localhost", not_after=now - HOUR, clock=lambda: now - DAY)
    clashed = await clash(beta={"certs": certs})
    error = clashed.we_refused_the_server(UnverifiedReason.EXPIRED, RejectionCode.CERTIFICATE_EXPIRED)
    assert error.certificate == certs.key_pair.certificate
    assert_describes(error, certs.key_pair.certificate)
    assert clashed.stages == (Stage.TLS, Stage.TLS)


async def test_server_certificate_that_is_not_yet_valid(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """A server certificate whose time has not come, by the dialer's clock, is refused as such."""
    now = datetime.now(UTC)
    clashed = await clash(
        alpha={"certs": manager("alpha@localhost", clock=lambda: now - DAY)},
        beta={"certs": manager("beta@localhost", not_before=now - HOUR)},
    )
    error = clashed.we_refused_the_server(UnverifiedReason.NOT_YET_VALID, RejectionCode.BAD_CERTIFICATE)
    assert f"notBefore is {now - HOUR:%Y-%m-%d %H:%M:%S}" in str(error)


async def test_server_name_mismatch(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """A server whose SANs miss the reference name: wanted, offered and "server_name" are in the text."""
    certs = manager("elsewhere.example", "192.0.2.7")
    clashed = await clash(beta={"certs": certs})
    error = clashed.we_refused_the_server(UnverifiedReason.NAME_MISMATCH, RejectionCode.INTERNAL_ERROR)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.wanted == "localhost"
    assert error.offered == "DNS:elsewhere.example, IP:192.0.2.7"
    assert error.wanted in str(error)
    assert error.offered in str(error)
    assert "server_name" in str(error)
    assert_describes(error, certs.key_pair.certificate)
    assert "server name mismatch" in str(clashed.accepted)


async def test_server_name_is_the_remedy(node: NodeFactory, manager: ManagerFactory) -> None:
    """What the mismatch's text advises works: with the route's server_name the dial succeeds."""
    with trio.fail_after(10):
        async with node("beta@localhost", manager("elsewhere.example")) as beta, node("alpha@localhost") as alpha:
            host, port = beta.acceptors[0].address
            route = Route(host=host, port=port, server_name="elsewhere.example")
            connection = await alpha.connect("beta@localhost", route)
            assert connection.peer.verified


async def test_reference_name_is_the_routes_then_the_managers_then_the_names(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """The route's server name goes before the manager's, that before the node name's host; never the address."""
    certs = manager("alpha@localhost", server_name="managers.example")
    clashed = await clash(alpha={"certs": certs}, server_name="routes.example")
    assert isinstance(clashed.dialled, PeerUnverifiedError)
    assert clashed.dialled.wanted == "routes.example"


async def test_managers_server_name_is_the_reference(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """Without one on the route, the manager's server name is what the server has to show."""
    clashed = await clash(alpha={"certs": manager("alpha@localhost", server_name="managers.example")})
    assert isinstance(clashed.dialled, PeerUnverifiedError)
    assert clashed.dialled.wanted == "managers.example"


async def test_server_certificate_restricted_to_another_node(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """A server whose URI SANs name another node of the same host is refused inside TLS."""
    clashed = await clash(beta={"certs": manager("gamma@localhost")})
    error = clashed.we_refused_the_server(UnverifiedReason.NAME_MISMATCH, RejectionCode.INTERNAL_ERROR)
    assert clashed.stages == (Stage.TLS, Stage.TLS)
    assert error.wanted == "beta@localhost"
    assert error.offered is not None
    assert "URI:trionode://gamma@localhost" in error.offered


# Names in the hello -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covers", ["alpha@elsewhere.example", "gamma@localhost", "elsewhere.example"])
async def test_claimed_name_that_the_certificate_does_not_cover(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory, covers: str
) -> None:
    """A verified client may claim only a node name that its SANs cover, host and URI; both sides say so."""
    certs = manager(covers)
    clashed = await clash(alpha={"certs": certs})
    error = clashed.we_refused_the_client(UnverifiedReason.CLAIMED_NAME, RejectionCode.CLAIMED_NAME)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert error.certificate == certs.key_pair.certificate
    assert error.wanted == "alpha@localhost"
    assert error.offered is not None
    assert covers.rpartition("@")[2] in error.offered
    assert_describes(error, certs.key_pair.certificate)
    assert "Issue it for this node name" in str(error)
    assert isinstance(clashed.dialled, PeerRejectedError)
    assert clashed.dialled.presented == certs.key_pair.certificate
    assert_describes(clashed.dialled, certs.key_pair.certificate)
    assert "the dialer claims the node name 'alpha@localhost', which its certificate does not cover" in str(
        clashed.dialled
    )


async def test_dialled_node_has_another_name(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """A node that answers under another name than the one dialled is refused, even if its certificate fits both."""
    clashed = await clash(acceptor="gamma@localhost", beta={"certs": manager("localhost")})
    error = clashed.we_refused_the_server(UnverifiedReason.CLAIMED_NAME, RejectionCode.CLAIMED_NAME)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert (error.wanted, error.offered) == ("beta@localhost", "gamma@localhost")
    assert "check host and port of the route" in str(error)
    assert "gamma@localhost" in str(clashed.accepted)


async def test_peer_claims_our_own_name(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """A second node under our own name is refused, whatever it proves; both sides learn that the name is in use."""
    clashed = await clash(dialer="beta@localhost", target="gamma@localhost", beta={"certs": manager("localhost")})
    error = clashed.we_refused_the_client(UnverifiedReason.NAME_IN_USE, RejectionCode.NAME_IN_USE)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert error.offered == "beta@localhost"
    assert "give every node a name of its own" in str(error)
    assert "give every node a name of its own" in str(clashed.dialled)


async def test_unverified_peer_claims_our_own_name(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """Nor may an unverified peer claim our own name."""
    with trio.fail_after(10):
        certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
        async with node("beta@localhost", certs) as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("beta@LOCALHOST"))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is not None
                assert answer.refusal.code == "name_in_use"


@pytest.mark.parametrize("name", ["alpha", "al pha@localhost", "alpha@local host", "alpha@127.1", "a@\x1b[2J"])
async def test_claimed_name_that_is_none(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    name: str,
) -> None:
    """A claim that is no node name is refused, and its control characters stay out of the text."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello(name))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is not None
                assert answer.refusal.code == "claimed_name"
            error = (await refusal(events)).error
    assert isinstance(error, PeerUnverifiedError)
    assert error.reason is UnverifiedReason.CLAIMED_NAME
    assert str(error).isprintable()
    assert error.offered is not None
    assert error.offered.isprintable()


# authorize ----------------------------------------------------------------------------------------------------------


def refuse(_: Peer) -> None:
    """Refuse with words for the peer."""
    raise Refused("alpha is on holiday")


def crash(_: Peer) -> None:
    """Refuse with words that stay on this side."""
    msg = "hunter2"
    raise RuntimeError(msg)


async def test_acceptor_refuses_by_authorize(clash: Callable[..., Awaitable[Clash]]) -> None:
    """The acceptor's authorize refuses a peer that passed everything else, and the text of `Refused` travels."""
    clashed = await clash(beta={"authorize": refuse})
    error = clashed.we_refused_the_client(UnverifiedReason.NOT_AUTHORIZED, RejectionCode.NOT_AUTHORIZED)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert error.offered == "alpha@localhost"
    assert isinstance(error.__cause__, Refused)
    assert "alpha is on holiday" in str(error)
    assert "alpha is on holiday" in str(clashed.dialled)


async def test_dialer_refuses_by_authorize(clash: Callable[..., Awaitable[Clash]]) -> None:
    """The dialer's authorize can refuse the node that it dialled, and the text of `Refused` travels."""
    clashed = await clash(alpha={"authorize": refuse})
    error = clashed.we_refused_the_server(UnverifiedReason.NOT_AUTHORIZED, RejectionCode.NOT_AUTHORIZED)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert error.offered == "beta@localhost"
    assert "alpha is on holiday" in str(error)
    assert "alpha is on holiday" in str(clashed.accepted)


@pytest.mark.parametrize("side", ["alpha", "beta"])
async def test_other_exceptions_of_authorize_refuse_in_silence(
    clash: Callable[..., Awaitable[Clash]], side: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception of authorize refuses; its text stays on this side and is logged on trionode.security."""
    clashed = await clash(**{side: {"authorize": crash}})
    ours, theirs = (clashed.dialled, clashed.accepted) if side == "alpha" else (clashed.accepted, clashed.dialled)
    assert ours.reason is UnverifiedReason.NOT_AUTHORIZED
    assert theirs.reason is RejectionCode.NOT_AUTHORIZED
    assert "RuntimeError" in str(ours)
    assert isinstance(ours.__cause__, RuntimeError)
    assert "hunter2" not in str(theirs)
    assert "RuntimeError" not in str(theirs)
    [record] = [r for r in caplog.records if r.name == "trionode.security"]
    assert record.exc_info is not None
    assert record.exc_info[1] is ours.__cause__


async def coroutine(_: Peer) -> None:
    """What a program might give by mistake."""


def disguised(peer: Peer) -> Awaitable[None]:
    """Give a coroutine, as an async function behind a decorator does."""
    made = coroutine(peer)
    made.close()  # it is never awaited, and Python warns of that
    return made


@pytest.mark.parametrize("side", ["alpha", "beta"])
@pytest.mark.parametrize("authorize", [lambda _: False, lambda _: True, disguised])
async def test_authorize_that_returns_something_refuses(
    clash: Callable[..., Awaitable[Clash]], side: str, authorize: Callable[[Peer], None]
) -> None:
    """An authorize that returns a verdict or a coroutine does not let every peer in: it refuses."""
    clashed = await clash(**{side: {"authorize": authorize}})
    ours, theirs = (clashed.dialled, clashed.accepted) if side == "alpha" else (clashed.accepted, clashed.dialled)
    assert ours.reason is UnverifiedReason.NOT_AUTHORIZED
    assert theirs.reason is RejectionCode.NOT_AUTHORIZED
    assert isinstance(ours.__cause__, TypeError)


async def test_async_authorize_is_refused_at_once(node: NodeFactory) -> None:
    """An async authorize is recognised where it is plain to see: when the options are made."""
    with pytest.raises(TypeError, match="async"):
        node("beta@localhost", authorize=coroutine)  # type: ignore[arg-type]


async def test_authorize_is_asked_last(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """Authorize can only narrow: it never sees a peer that failed an earlier check."""
    seen: list[Peer] = []
    clashed = await clash(alpha={"certs": manager("gamma@localhost")}, beta={"authorize": seen.append})
    clashed.we_refused_the_client(UnverifiedReason.CLAIMED_NAME, RejectionCode.CLAIMED_NAME)
    assert not seen


async def test_authorize_sees_who_it_is(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """On both sides authorize gets the verified peer, certificate and address included."""
    on_alpha: list[Peer] = []
    on_beta: list[Peer] = []
    with trio.fail_after(10):
        async with (
            node("beta@localhost", authorize=on_beta.append) as beta,
            node("alpha@localhost", authorize=on_alpha.append) as alpha,
        ):
            connection = await alpha.connect("beta@localhost", route_to(beta))
            assert connection.peer is on_alpha[0]
    [seen] = on_beta
    assert seen.name == ALPHA
    assert seen.verified
    assert seen.certificate == alpha.options.cert_manager.key_pair.certificate
    assert seen.address is not None
    assert len(on_alpha) == 1
    assert on_alpha[0].name == BETA


# The cookie ---------------------------------------------------------------------------------------------------------

SECRET, OTHER = "a-secret-of-this-cluster", "the-secret-of-another"


async def test_cookie_that_both_have(node: NodeFactory, route_to: Callable[..., Route]) -> None:
    """Two nodes that share a cookie connect as ever."""
    with trio.fail_after(10):
        async with node("beta@localhost", cookie=SECRET) as beta, node("alpha@localhost", cookie=SECRET) as alpha:
            assert (await alpha.connect("beta@localhost", route_to(beta))).peer.verified


@pytest.mark.parametrize("theirs", [OTHER, None])
async def test_dialer_without_our_cookie(clash: Callable[..., Awaitable[Clash]], theirs: str | None) -> None:
    """A dialer with another cookie, or none, is refused as such, on both sides, and no cookie is shown."""
    clashed = await clash(alpha={"cookie": theirs}, beta={"cookie": SECRET})
    error = clashed.we_refused_the_client(UnverifiedReason.COOKIE, RejectionCode.COOKIE)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert "give both the same one" in str(error)
    for shown in str(error), str(clashed.dialled), repr(error), repr(clashed.dialled):
        assert SECRET not in shown
        assert OTHER not in shown


async def test_acceptor_without_our_cookie(clash: Callable[..., Awaitable[Clash]]) -> None:
    """A dialer that has a cookie insists that the acceptor proves it, too."""
    clashed = await clash(alpha={"cookie": SECRET})
    error = clashed.we_refused_the_server(UnverifiedReason.COOKIE, RejectionCode.COOKIE)
    assert clashed.stages == (Stage.HELLO, Stage.HELLO)
    assert "give both the same one" in str(error)


async def test_cookies_of_acceptors_and_routes_go_before_the_nodes(
    node: NodeFactory, route_to: Callable[..., Route]
) -> None:
    """An acceptor's and a route's cookie stand in place of the node's."""
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, cookie=SECRET)
    with trio.fail_after(10):
        async with (
            node("beta@localhost", acceptors=[acceptor], cookie=OTHER) as beta,
            node("alpha@localhost", cookie=OTHER) as alpha,
        ):
            error = await failure(alpha.connect("beta@localhost", route_to(beta)))
            assert error.reason is RejectionCode.COOKIE
            assert (await alpha.connect("beta@localhost", route_to(beta, cookie=SECRET))).peer.verified


async def test_cookie_is_judged_after_the_name(clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory) -> None:
    """Who claims a name that is not its own is refused for that, whatever cookie it has."""
    clashed = await clash(alpha={"certs": manager("gamma@localhost")}, beta={"cookie": SECRET})
    clashed.we_refused_the_client(UnverifiedReason.CLAIMED_NAME, RejectionCode.CLAIMED_NAME)


async def test_authorize_never_sees_who_lacks_the_cookie(clash: Callable[..., Awaitable[Clash]]) -> None:
    """Authorize comes last: a peer without the cookie is refused before."""
    seen: list[Peer] = []
    clashed = await clash(beta={"cookie": SECRET, "authorize": seen.append})
    clashed.we_refused_the_client(UnverifiedReason.COOKIE, RejectionCode.COOKIE)
    assert not seen


# Protocol version ---------------------------------------------------------------------------------------------------


async def test_dialer_with_other_versions(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A dialer that speaks none of our protocol versions is refused as such, with both lists in the text."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("alpha@localhost", versions=[99, 98]))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is not None
                assert answer.refusal.code == "version"
                assert "[99, 98]" in answer.refusal.message
            event = await refusal(events)
    assert isinstance(event.error, PeerUnverifiedError)
    assert event.error.reason is UnverifiedReason.VERSION
    assert event.error.stage is Stage.HELLO
    assert (event.error.wanted, event.error.offered) == ("[1]", "[99, 98]")
    assert "upgrade the older" in str(event.error)


async def test_version_is_the_highest_common_one(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A dialer that speaks later versions as well is accepted with ours."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("alpha@localhost", versions=[99, 1]))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is None
                assert answer.version == 1


@dataclass
class Dialled:
    """What became of a dial to a scripted acceptor."""

    error: HandshakeError | None = None
    event: HandshakeRefused | None = None


async def dial_to_script(
    node: NodeFactory,
    scripted_listener: ScriptedListener,
    script: Callable[[ScriptedListener], Awaitable[None]],
    **options: Any,
) -> HandshakeError:
    """Dial beta@localhost where a script listens; the error that `connect` raises and the node reports."""
    done = Dialled()

    async def dial(alpha: Node) -> None:
        done.error = await failure(alpha.connect("beta@localhost", scripted_listener.route()))

    with trio.fail_after(10):
        async with (
            node("alpha@localhost", mode=NetworkMode.HIDDEN, **options) as alpha,
            alpha.events() as events,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, alpha)
                await script(scripted_listener)
            event = await refusal(events)
            assert not alpha.connections
    assert event.error is done.error
    assert event.side is Side.DIAL
    assert done.error is not None
    assert done.error.address == ("127.0.0.1", scripted_listener.port)
    return done.error


async def test_acceptor_refuses_our_version(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """An acceptor that refuses our protocol version is a rejection by that code, with its words."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            hello = await peer.hear(wire.Hello)
            assert hello.versions == [1]
            assert hello.name == "alpha@localhost"
            await peer.say(wire.Answer(refusal=wire.Refusal(code="version", message="we only speak 99")))
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script)
    assert isinstance(error, PeerRejectedError)
    assert error.code is RejectionCode.VERSION
    assert error.stage is Stage.HELLO
    assert "we only speak 99" in str(error)


async def test_acceptor_chooses_a_version_that_we_did_not_offer(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """An acceptor that chooses a version out of nowhere is refused, and told so."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear(wire.Hello)
            await peer.say(peer.answer("beta@localhost", version=99))
            confirmation = await peer.hear(wire.Confirmation)
            assert confirmation.refusal is not None
            assert confirmation.refusal.code == "version"

    error = await dial_to_script(node, scripted_listener, script)
    assert isinstance(error, PeerUnverifiedError)
    assert error.reason is UnverifiedReason.VERSION
    assert error.offered == "99"


async def test_refusal_code_that_this_release_does_not_know(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A refusal with an unknown code is still a rejection; the word is shown, control characters escaped."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear(wire.Hello)
            await peer.say(wire.Answer(refusal=wire.Refusal(code="full_moon", message="come back\nlater\x1b[2J")))
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script)
    assert isinstance(error, PeerRejectedError)
    assert error.code is RejectionCode.OTHER
    assert "full_moon" in str(error)
    assert str(error).isprintable()


# Another program at the other end -----------------------------------------------------------------------------------


async def test_plain_tcp_server(node: NodeFactory, scripted_listener: ScriptedListener) -> None:
    """A server that answers in plain text is told apart: stage tls, caused by a protocol error."""

    async def script(listener: ScriptedListener) -> None:
        async with await listener.listener.accept() as transport:
            await transport.receive_some()
            await transport.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await transport.receive_some()

    error = await dial_to_script(node, scripted_listener, script)
    assert type(error) is HandshakeError
    assert error.stage is Stage.TLS
    assert isinstance(error.__cause__, RemoteProtocolError)
    assert "plain-text port" in str(error)


async def test_server_that_hangs_up(node: NodeFactory, scripted_listener: ScriptedListener) -> None:
    """A server that hangs up during TLS is a broken handshake at stage tls, caused by a broken resource."""

    async def script(listener: ScriptedListener) -> None:
        async with await listener.listener.accept() as transport:
            await transport.receive_some()

    error = await dial_to_script(node, scripted_listener, script)
    assert type(error) is HandshakeError
    assert error.stage is Stage.TLS
    assert isinstance(error.__cause__, trio.BrokenResourceError)


async def test_plain_tcp_client(node: NodeFactory) -> None:
    """A client that speaks plain text is refused at stage tls, and the acceptor lives on."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            async with await trio.open_tcp_stream(*beta.acceptors[0].address) as client:
                await client.send_all(b"GET / HTTP/1.1\r\nHost: beta\r\n\r\n")
                event = await refusal(events)
    assert type(event.error) is HandshakeError
    assert event.error.stage is Stage.TLS
    assert isinstance(event.error.__cause__, RemoteProtocolError)
    assert "HTTP" in str(event.error)


async def test_server_with_another_application_protocol(node: NodeFactory, manager: ManagerFactory) -> None:
    """A TLS server that has only other protocols refuses our dial by the alert made for that."""
    certs = manager("beta@localhost")
    served: list[TLSStream] = []

    async def serve(stream: TLSStream) -> None:
        served.append(stream)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
            serving = partial(serve_tls, serve, 0, cert_manager=certs, host="127.0.0.1", alpn=["h2"])
            listeners = await nursery.start(serving)
            port = listeners[0].socket.getsockname()[1]
            error = await failure(alpha.connect("beta@localhost", Route(host="127.0.0.1", port=port)))
            nursery.cancel_scope.cancel()
    assert isinstance(error, PeerRejectedError)
    assert error.code is RejectionCode.NO_APPLICATION_PROTOCOL
    assert "is it a trionode acceptor?" in str(error)
    assert not served


async def test_dialer_insists_on_the_application_protocol(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A TLS server that selects no protocol is left before it gets to see our certificate."""
    certs = manager("beta@localhost")

    async def script(listener: ScriptedListener) -> None:
        with pytest.raises(HandshakeError) as caught:
            await listener.accept(certs, alpn=())
        assert not isinstance(caught.value, PeerUnverifiedError)

    error = await dial_to_script(node, scripted_listener, script)
    assert type(error) is HandshakeError
    assert error.stage is Stage.TLS
    assert error.reason == "no_application_protocol"
    assert isinstance(error.__cause__, RemoteProtocolError)


async def test_client_with_another_application_protocol(node: NodeFactory, manager: ManagerFactory) -> None:
    """A TLS client that offers only other protocols is refused by the alert made for that."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            host, port = beta.acceptors[0].address
            dialled = await failure(
                open_tls_stream(
                    host, port, cert_manager=manager("alpha@localhost"), server_name="localhost", alpn=["h2"]
                )
            )
            event = await refusal(events)
    assert isinstance(dialled, PeerRejectedError)
    assert dialled.code is RejectionCode.NO_APPLICATION_PROTOCOL
    assert type(event.error) is HandshakeError
    assert event.error.stage is Stage.TLS
    assert event.error.reason == "no_application_protocol"


async def test_client_without_application_protocol_has_to_speak_the_hello(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A client that offers no protocol finishes TLS, and is a node like any other if it speaks the hello."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"), alpn=())
            async with peer.stream:
                await peer.say(peer.hello("alpha@localhost"))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is None
                assert answer.verified


# Broken hellos ------------------------------------------------------------------------------------------------------


def framed(body: bytes) -> bytes:
    """A hello message with its length in front."""
    return struct.pack(">H", len(body)) + body


JUNK = {
    "garbage": framed(b"\xff" * 100),
    "empty": framed(b""),
    "not a map": framed(msgspec.msgpack.encode([1, 2, 3])),
    "a field missing": framed(msgspec.msgpack.encode({"versions": [1], "name": "alpha@localhost"})),
    "no versions": framed(msgspec.msgpack.encode({"versions": []})),
    "oversized": struct.pack(">H", 4097) + b"x" * 4097,
    "oversized, announced only": b"\xff\xff",
    "bad text": framed(b"\x81\xa4name\xa1\xff"),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
async def test_acceptor_survives_a_broken_hello(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    route_to: Callable[..., Route],
    junk: bytes,
) -> None:
    """Whatever comes in place of a hello is a refused handshake at stage hello, and the next peer gets in."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.stream.send_all(junk)
                event = await refusal(events)
                await peer.hear_end()
            assert type(event.error) is HandshakeError
            assert event.error.stage is Stage.HELLO
            assert event.error.reason == "protocol"
            assert isinstance(event.error.__cause__, RemoteProtocolError)
            assert str(event.error).isprintable()
            await alpha.connect("beta@localhost", route_to(beta))


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
async def test_dialer_survives_a_broken_answer(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener, junk: bytes
) -> None:
    """Whatever comes in place of an answer makes `connect` raise at stage hello, caused by a protocol error."""
    if junk == JUNK["a field missing"]:
        junk = framed(msgspec.msgpack.encode({"version": "one"}))
    elif junk == JUNK["no versions"]:
        junk = framed(msgspec.msgpack.encode({"version": -1}))

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear(wire.Hello)
            await peer.stream.send_all(junk)
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script)
    assert type(error) is HandshakeError
    assert error.stage is Stage.HELLO
    assert error.reason == "protocol"
    assert isinstance(error.__cause__, RemoteProtocolError)


def nested(honest: dict[str, object]) -> bytes:
    """An honest message with junk in an unknown field, nested as deep as 4 KiB allow."""
    body = bytearray(msgspec.msgpack.encode(honest))
    body[0] += 1  # one more field of the map
    body += msgspec.msgpack.encode("x")
    return framed(bytes(body) + b"\x91" * (4095 - len(body)) + b"\xc0")


LIMITS = {"max_message_size": 65536, "window": 65536, "max_channels": 16}


async def test_acceptor_survives_deep_nesting(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    route_to: Callable[..., Route],
) -> None:
    """Where the decoder may recurse so deep (CPython 3.12 on) it is an unknown field as any, else a broken hello."""
    hello: dict[str, object] = {"versions": [1], "name": "alpha@localhost", "incarnation": 1, "generation": 1}
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.stream.send_all(nested({**hello, "limits": LIMITS}))
                try:
                    answer = await peer.hear(wire.Answer)
                except AssertionError:  # it closed the connection
                    error = (await refusal(events)).error
                    assert (error.stage, error.reason) == (Stage.HELLO, "protocol")
                else:
                    assert answer.refusal is None
            await alpha.connect("beta@localhost", route_to(beta))


async def test_dialer_survives_deep_nesting(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """As the acceptor; either way the answer, which lacks what it needs, is refused."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear(wire.Hello)
            await peer.stream.send_all(nested({"version": 1}))
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script)
    assert error.stage is Stage.HELLO
    assert error.reason in ("protocol", "claimed_name")


async def test_hello_with_unknown_fields_is_accepted(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """Within a version hellos may gain fields: what we do not know we ignore."""
    hello = wire.Hello(
        versions=[1],
        name="alpha@localhost",
        incarnation=1,
        generation=1,
        limits=wire.Limits(max_message_size=1, window=4096, max_channels=1),
    )
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(hello))
    with trio.fail_after(10):
        async with node("beta@localhost") as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.stream.send_all(framed(msgspec.msgpack.encode({**fields, "mood": ["sunny"]})))
                assert (await peer.hear(wire.Answer)).refusal is None


@pytest.mark.parametrize("part", [b"", b"\x00", struct.pack(">H", 100) + b"half"])
@pytest.mark.parametrize("politely", [True, False])
async def test_dialer_that_leaves_in_the_hello(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    part: bytes,
    politely: bool,
) -> None:
    """A dialer that leaves in the middle of the hello, politely or not, breaks off at stage hello."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            if part:
                await peer.stream.send_all(part)
            await (peer.stream if politely else peer.stream.transport_stream).aclose()
            event = await refusal(events)
            await peer.stream.aclose()
    assert type(event.error) is HandshakeError
    assert event.error.stage is Stage.HELLO
    assert isinstance(event.error.__cause__, trio.BrokenResourceError)


@pytest.mark.parametrize("politely", [True, False])
async def test_acceptor_that_leaves_in_the_hello(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener, politely: bool
) -> None:
    """An acceptor that leaves in the middle of the hello, politely or not, breaks off at stage hello."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        await peer.hear(wire.Hello)
        await (peer.stream if politely else peer.stream.transport_stream).aclose()
        await peer.stream.aclose()

    error = await dial_to_script(node, scripted_listener, script)
    assert type(error) is HandshakeError
    assert error.stage is Stage.HELLO
    assert isinstance(error.__cause__, trio.BrokenResourceError)


async def test_dialer_refuses_in_its_confirmation(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """Where the dialer refuses in the third message, the acceptor registers nothing and reports a rejection."""
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("alpha@localhost"))
                await peer.hear(wire.Answer)
                assert not beta.connections
                await peer.say(wire.Confirmation(refusal=wire.Refusal(code="not_authorized", message="no thanks")))
                event = await refusal(events)
            assert not beta.connections
    assert isinstance(event.error, PeerRejectedError)
    assert event.error.code is RejectionCode.NOT_AUTHORIZED
    assert "no thanks" in str(event.error)
    assert event.error.presented == beta.options.cert_manager.key_pair.certificate


async def test_dialer_that_comes_while_the_node_is_leaving(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    route_to: Callable[..., Route],
) -> None:
    """A hello that arrives while the node is leaving is refused as such."""
    stay = trio.Event()

    async def linger(channel: ServiceChannel) -> None:
        await channel.send(b"")
        await stay.wait()

    with trio.fail_after(20):
        async with node("alpha@localhost") as alpha, trio.open_nursery() as nursery, AsyncExitStack() as stack:
            async with node("beta@localhost", services={"linger": linger}, shutdown_grace=3) as beta:
                events = await stack.enter_async_context(beta.events())
                connection = await alpha.connect("beta@localhost", route_to(beta))
                channel = connection.open_channel("linger")
                await channel.receive()
                peer = await scripted_dial(beta, manager("gamma@localhost"))
                await stack.enter_async_context(peer.stream)

                async def come_late() -> None:
                    await core_of(connection).wait_unusable()  # it says that it is leaving
                    await peer.say(peer.hello("gamma@localhost"))
                    answer = await peer.hear(wire.Answer)
                    assert answer.refusal is not None
                    assert answer.refusal.code == "shutting_down"
                    await peer.stream.aclose()
                    stay.set()

                nursery.start_soon(come_late)
            error = (await refusal(events)).error
    assert isinstance(error, PeerUnverifiedError)
    assert error.reason is UnverifiedReason.SHUTTING_DOWN


async def test_acceptor_that_is_shutting_down(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A dial of a node that is leaving is a rejection by that code."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear(wire.Hello)
            await listener.listener.aclose()
            await peer.say(wire.Answer(refusal=wire.Refusal(code="shutting_down", message="bye")))
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script)
    assert isinstance(error, PeerRejectedError)
    assert error.code is RejectionCode.SHUTTING_DOWN


@pytest.mark.parametrize("successor", ["takes it", "leaves, too"])
async def test_acceptor_that_is_shutting_down_has_a_successor(
    successor: str, node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """What listens at the address by then is dialled once, without a word to the caller."""
    certs, outcomes, done = manager("beta@localhost"), list[object](), trio.Event()

    async def dial(alpha: Node) -> None:
        try:
            await alpha.connect("beta@localhost", scripted_listener.route())
            outcomes.append("connected")
            done.set()
        except PeerRejectedError as exc:
            outcomes.append(exc.code)

    async def refuse() -> None:
        peer = await scripted_listener.accept(certs)
        async with peer.stream:
            await peer.hear(wire.Hello)
            await peer.say(wire.Answer(refusal=wire.Refusal(code="shutting_down", message="bye")))
            await peer.hear_end()

    async def take() -> None:
        peer = await scripted_listener.accept(certs)
        async with peer.stream:
            await peer.greet("beta@localhost")
            await done.wait()

    with trio.fail_after(10):
        async with node("alpha@localhost", mode=NetworkMode.HIDDEN) as alpha:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, alpha)
                await refuse()
                await (take() if successor == "takes it" else refuse())
            assert outcomes == ["connected" if successor == "takes it" else RejectionCode.SHUTTING_DOWN]


# Deadlines ----------------------------------------------------------------------------------------------------------


async def test_silent_server(node: NodeFactory, scripted_listener: ScriptedListener) -> None:
    """A server that accepts and says nothing costs `handshake_timeout`, no more, and is told apart by its stage."""

    async def script(listener: ScriptedListener) -> None:
        async with await listener.listener.accept() as transport:
            while await transport.receive_some():
                pass

    error = await dial_to_script(node, scripted_listener, script, handshake_timeout=0.2)
    assert isinstance(error, HandshakeTimeoutError)
    assert error.stage is Stage.TLS
    assert "handshake_timeout (0.2 s)" in str(error)


async def test_server_that_stalls_in_the_hello(
    node: NodeFactory, manager: ManagerFactory, scripted_listener: ScriptedListener
) -> None:
    """A server that does TLS and never answers the hello costs `handshake_timeout`, and the stage says hello."""

    async def script(listener: ScriptedListener) -> None:
        peer = await listener.accept(manager("beta@localhost"))
        async with peer.stream:
            await peer.hear_end()

    error = await dial_to_script(node, scripted_listener, script, handshake_timeout=0.3)
    assert isinstance(error, HandshakeTimeoutError)
    assert error.stage is Stage.HELLO


@pytest.mark.parametrize("timeouts", [{"handshake_timeout": 0.2}, {}])
async def test_silent_client(node: NodeFactory, timeouts: dict[str, Any]) -> None:
    """A client that connects and says nothing is closed after the node's, or the acceptor's, `handshake_timeout`."""
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, handshake_timeout=None if timeouts else 0.2)
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=[acceptor], **timeouts) as beta, beta.events() as events:
            async with await trio.open_tcp_stream(*beta.acceptors[0].address) as client:
                event = await refusal(events)
                assert await client.receive_some() == b""
    assert isinstance(event.error, HandshakeTimeoutError)
    assert event.error.stage is Stage.TLS
    assert event.error.generation is None


async def test_client_that_stalls_in_the_middle_of_tls(node: NodeFactory, manager: ManagerFactory) -> None:
    """A client that sends half a ClientHello is closed after `handshake_timeout`."""
    contexts = await manager("alpha@localhost").contexts.receive()
    session = contexts.client.session(reference="localhost")
    session.handshake()
    first_flight = session.outgoing()
    with trio.fail_after(10):
        async with node("beta@localhost", handshake_timeout=0.2) as beta, beta.events() as events:
            async with await trio.open_tcp_stream(*beta.acceptors[0].address) as client:
                await client.send_all(first_flight[:100])
                event = await refusal(events)
    assert isinstance(event.error, HandshakeTimeoutError)
    assert event.error.stage is Stage.TLS
    assert event.error.generation == 1


async def test_client_that_stalls_in_the_hello(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A client that does TLS and then says nothing is closed after `handshake_timeout`, at stage hello."""
    with trio.fail_after(10):
        async with node("beta@localhost", handshake_timeout=0.3) as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                event = await refusal(events)
                await peer.hear_end()
    assert isinstance(event.error, HandshakeTimeoutError)
    assert event.error.stage is Stage.HELLO


async def test_client_that_never_confirms(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """A client that withholds the third message is never registered, and told after `handshake_timeout` that it is not.

    Were its confirmation only late, none of the channels that it opened behind that has run.
    """
    with trio.fail_after(10):
        async with node("beta@localhost", handshake_timeout=0.3) as beta, beta.events() as events:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("alpha@localhost"))
                await peer.hear(wire.Answer)
                kind, _, payload = await peer.frame()
                assert (kind, wire.decode(wire.Goodbye, payload).last) == (wire.GOODBYE, 0)
                await peer.stream.aclose()
                event = await refusal(events)
                assert not beta.connections
                assert beta.acceptors[0].statistics().established == 0
    assert isinstance(event.error, HandshakeTimeoutError)


async def test_refusal_is_not_lost_to_the_deadline(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """A client that was refused and does not hang up is reported as refused, not as timed out."""
    certs = manager("alpha@localhost", ca=rogue_ca)
    with trio.fail_after(10):
        async with node("beta@localhost", handshake_timeout=0.5) as beta, beta.events() as events:
            stream = await open_tls_stream(
                *beta.acceptors[0].address, cert_manager=certs, server_name="localhost", alpn=[wire.ALPN]
            )
            async with stream:
                event = await refusal(events)
    assert isinstance(event.error, PeerUnverifiedError)
    assert event.error.reason is UnverifiedReason.UNKNOWN_CA


# Our own side, and several routes -----------------------------------------------------------------------------------


async def test_route_manager_with_an_unusable_key_pair(
    node: NodeFactory, manager: ManagerFactory, route_to: Callable[..., Route]
) -> None:
    """A dial with a manager of ours whose certificate has expired is our error: no peer is dialled."""
    expired = manager("alpha@localhost", not_after=datetime.now(UTC) - HOUR)
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, node("alpha@localhost") as alpha:
            with pytest.raises(CertificateError) as caught:
                await alpha.connect("beta@localhost", route_to(beta, cert_manager=expired))
            assert beta.acceptors[0].statistics().accepted == 0
    assert caught.value.reason is CertificateReason.EXPIRED


async def test_missing_system_cas_are_our_error(
    node: NodeFactory,
    ca: CertificateAuthority,
    route_to: Callable[..., Route],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dial that needs the system's CAs, where there are none, raises `CertificateError` and closes its socket."""

    def no_system_cas() -> CAPool:
        raise CertificateError("none", reason=CertificateReason.NO_CERTIFICATE)

    monkeypatch.setattr(CAPool, "system", staticmethod(no_system_cas))
    certs = CertAuthManager(ca.issue("alpha@localhost"))
    with trio.fail_after(10):
        async with node("beta@localhost") as beta, beta.events() as events:
            async with node("alpha@localhost", certs, mode=NetworkMode.HIDDEN) as alpha:
                with pytest.raises(CertificateError) as caught:
                    await alpha.connect("beta@localhost", route_to(beta))
                event = await refusal(events)
    assert caught.value.reason is CertificateReason.NO_CERTIFICATE
    assert event.error.reason == "silent"


async def test_several_routes_give_one_error_with_all_causes(
    node: NodeFactory, manager: ManagerFactory, rogue_ca: CertificateAuthority, route_to: Callable[..., Route]
) -> None:
    """Where several routes failed, each one's own error is in `causes`, best route first, and in the text."""
    certs = manager("beta@localhost", ca=rogue_ca)
    with trio.fail_after(10):
        async with (
            node("beta@localhost", certs) as beta,
            node("alpha@localhost") as alpha,
            alpha.events() as events,
        ):
            alpha.add_route("beta@localhost", Route(host="127.0.0.1", port=1), weight=1)
            alpha.add_route("beta@*", route_to(beta))
            with pytest.raises(NoRouteError) as caught:
                await alpha.connect("beta@localhost")
            refused = [(await refusal(events)).error, (await refusal(events)).error]
    error = caught.value
    assert isinstance(error, LookupError)
    assert error.name == BETA
    assert error.causes is not None
    assert error.__cause__ is error.causes
    connect, tls = error.causes.exceptions
    assert [connect, tls] == refused
    assert isinstance(connect, HandshakeError)
    assert connect.stage is Stage.CONNECT
    assert isinstance(tls, PeerUnverifiedError)
    assert str(connect) in str(error)
    assert str(tls) in str(error)


# Loosening ----------------------------------------------------------------------------------------------------------


def security_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said on trionode.security; all of it has to be warnings."""
    records = [r for r in caplog.records if r.name == "trionode.security"]
    assert all(r.levelno == logging.WARNING for r in records)
    return [r.getMessage() for r in records]


@pytest.mark.parametrize("where", ["network", "acceptor"])
@pytest.mark.parametrize("claims", ["gamma@localhost", "alpha@elsewhere.example"])
async def test_bind_names_off_admits_any_name(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    caplog: pytest.LogCaptureFixture,
    where: str,
    claims: str,
) -> None:
    """With bind_names=False a verified certificate suffices for any name, and that is said, once."""
    options: dict[str, Any] = {"bind_names": False} if where == "network" else {}
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, bind_names=False if where == "acceptor" else None)
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=[acceptor, acceptor], **options) as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello(claims))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is None
                assert answer.verified
    [warning] = security_warnings(caplog)
    assert "bind_names" in warning


async def test_bind_names_of_an_acceptor_overrides_the_nodes(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An acceptor with bind_names=True insists, whatever the node says, and nothing is warned of."""
    acceptor = AcceptorOptions(host="127.0.0.1", port=0, bind_names=True)
    with trio.fail_after(10):
        async with node("beta@localhost", acceptors=[acceptor], bind_names=False) as beta:
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            async with peer.stream:
                await peer.say(peer.hello("gamma@localhost"))
                answer = await peer.hear(wire.Answer)
                assert answer.refusal is not None
                assert answer.refusal.code == "claimed_name"
    assert not security_warnings(caplog)


async def test_bind_names_off_leaves_the_dialers_checks(
    clash: Callable[..., Awaitable[Clash]], manager: ManagerFactory
) -> None:
    """bind_names=False is the acceptor's; a dialer still insists on the name in the server's certificate."""
    clashed = await clash(alpha={"bind_names": False}, beta={"certs": manager("gamma@localhost"), "bind_names": False})
    clashed.we_refused_the_server(UnverifiedReason.NAME_MISMATCH, RejectionCode.INTERNAL_ERROR)


@pytest.mark.parametrize("where", ["network", "connect", "add_route", "routes"])
async def test_insecure_skip_verify_verifies_nobody(
    node: NodeFactory,
    manager: ManagerFactory,
    rogue_ca: CertificateAuthority,
    route_to: Callable[..., Route],
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    """With insecure_skip_verify any server is accepted, its peer is not `verified`, and that is said, once."""
    rogue = CertAuthManager(rogue_ca.issue("elsewhere.example"), client_auth=ClientAuth.NO_CLIENT_CERT)
    with trio.fail_after(10):
        async with node("beta@localhost", rogue, authorize=lambda _: None) as beta:
            insecure = route_to(beta, insecure_skip_verify=True)
            options: dict[str, Any] = {"network": {"insecure_skip_verify": True}}.get(where, {})
            if where == "routes":
                options = {"routes": {"beta@localhost": insecure}}
            async with node("alpha@localhost", **options) as alpha:
                if where == "add_route":
                    alpha.add_route("beta@localhost", insecure)
                explicit = {"network": route_to(beta), "connect": insecure}.get(where)
                first = await alpha.connect("beta@localhost", explicit)
                assert not first.peer.verified
                assert first.peer.certificate == rogue.key_pair.certificate
                await first.aclose()
                second = await alpha.connect("beta@localhost", explicit)
                assert second is not first
    [warning] = security_warnings(caplog)
    assert "insecure_skip_verify" in warning
    assert "alpha@localhost" in warning


@pytest.mark.parametrize("client_auth", list(ClientAuth))
@pytest.mark.parametrize("guard", [{}, {"authorize": lambda _: None}, {"cookie": SECRET}])
async def test_acceptors_that_admit_anybody_are_warned_of(
    node: NodeFactory,
    manager: ManagerFactory,
    caplog: pytest.LogCaptureFixture,
    client_auth: ClientAuth,
    guard: dict[str, Any],
) -> None:
    """An acceptor that admits unverified clients, with neither cookie nor authorize, is warned of once."""
    certs = manager("beta@localhost", client_auth=client_auth)
    acceptor = AcceptorOptions(host="127.0.0.1", port=0)
    with trio.fail_after(10):
        async with node("beta@localhost", certs, acceptors=[acceptor, acceptor], **guard):
            pass
    warnings = security_warnings(caplog)
    if guard or client_auth is ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT:
        assert not warnings
    else:
        [warning] = warnings
        assert client_auth.name in warning
        assert "authorize" in warning


async def test_hidden_node_warns_of_no_acceptor(
    node: NodeFactory, manager: ManagerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A node without acceptors has none to warn of."""
    certs = manager("beta@localhost", client_auth=ClientAuth.NO_CLIENT_CERT)
    with trio.fail_after(10):
        async with node("beta@localhost", certs, mode=NetworkMode.HIDDEN):
            pass
    assert not security_warnings(caplog)
