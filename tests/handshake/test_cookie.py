"""The cookie: a secret on top of certificates that both sides prove and neither sends."""

from __future__ import annotations

import hmac
import logging
import pickle
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from trionode import (
    AcceptorOptions,
    ClientAuth,
    HandshakeError,
    HandshakeRefused,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Route,
    Stage,
    UnverifiedReason,
    _protocol as wire,
    generate_cookie,
)
from trionode._handshake import channel_binding as _proof, cookie as _cookie

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from conftest import ManagerFactory, NodeFactory, ScriptedListener, ScriptedPeer

    from trionode import EventStream, KeyPair, Node, ServiceChannel
    from trionode.pki import CertificateAuthority

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")
RIGHT, WRONG = "the cookie of this cluster", "the cookie of that cluster"


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


# Values ---------------------------------------------------------------------------------------------------------------


def test_generated_cookies_are_random_and_long_enough() -> None:
    """The generator makes 256 random bits, as text that survives configuration files and shells."""
    cookies = {generate_cookie() for _ in range(100)}
    assert len(cookies) == 100
    for cookie in cookies:
        assert len(cookie) == 43
        assert cookie.replace("-", "").replace("_", "").isalnum()
        assert NetworkOptions(cookie=cookie).cookie == cookie


@pytest.mark.parametrize("cookie", ["", "x" * 15, b"", b"x" * 15, "é" * 7], ids=repr)
@pytest.mark.parametrize("options", [NetworkOptions, AcceptorOptions, Route])
def test_short_cookie_is_refused(options: Any, cookie: str | bytes) -> None:
    """A cookie of less than 16 bytes is refused when the options are made, without being quoted."""
    with pytest.raises(ValueError, match="at least 16 bytes") as caught:
        options(cookie=cookie)
    assert "generate_cookie" in str(caught.value)
    assert not cookie or (str(cookie) not in str(caught.value))


@pytest.mark.parametrize("cookie", ["x" * 16, b"x" * 16, bytearray(b"x" * 16), "é" * 8], ids=repr)
@pytest.mark.parametrize("options", [NetworkOptions, AcceptorOptions, Route])
def test_sixteen_bytes_are_enough(options: Any, cookie: Any) -> None:
    """16 bytes suffice, as text (in UTF-8) or bytes."""
    assert options(cookie=cookie).cookie == cookie


@pytest.mark.parametrize("cookie", [20, 1_000_000, 2.5, ["x" * 16], True], ids=repr)
@pytest.mark.parametrize("options", [NetworkOptions, AcceptorOptions, Route])
def test_cookie_that_is_neither_text_nor_bytes_is_refused(options: Any, cookie: Any) -> None:
    """A number is no cookie: `bytes(20)` are twenty zeros, which every stranger can guess."""
    with pytest.raises(TypeError, match=r"string(,| or) bytes") as caught:
        options(cookie=cookie)
    assert repr(cookie) not in str(caught.value)


# What a proof is bound to ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """As much of one end of a TLS session as a proof looks at."""

    secret: bytes
    certificate: Any
    peer_certificate: Any

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """Both ends have the same, and no other program does."""
        assert label == b"EXPORTER-Channel-Binding"  # RFC 9266 section 4.2
        assert length == 32
        assert not context
        return hmac.digest(self.secret, label, "sha256")

    def other_end(self) -> Session:
        """The peer's view."""
        return replace(self, certificate=self.peer_certificate, peer_certificate=self.certificate)


@pytest.fixture(scope="module")
def key_pairs(ca: CertificateAuthority) -> Mapping[str, KeyPair]:
    """A few certificates."""
    return {name: ca.issue(f"{name}@localhost") for name in ("client", "server", "other")}


Proof = dict[str, Any]


@pytest.fixture
def dialers(key_pairs: Mapping[str, KeyPair]) -> Proof:
    """What goes into a dialer's proof, as the dialer has it."""
    return {
        "cookie": RIGHT.encode(),
        "stream": Session(b"session", key_pairs["client"].certificate, key_pairs["server"].certificate),
        "dialer": ALPHA,
        "acceptor": BETA,
        "incarnation": 7,
        "dialling": True,
    }


@pytest.fixture
def acceptors(dialers: Proof) -> Proof:
    """What goes into an acceptor's proof, as the acceptor has it."""
    return {
        **dialers,
        "stream": dialers["stream"].other_end(),
        "dialling": False,
        "incarnation": 8,
        "dialer_incarnation": 7,
        "proof": _cookie.dialer_proof(**dialers),
    }


def test_both_ends_compute_the_same_proofs(dialers: Proof, acceptors: Proof) -> None:
    """Each end computes of the other what that computes of itself."""
    seen = {**dialers, "stream": dialers["stream"].other_end(), "dialling": False}
    assert _proof.same_proof(_cookie.dialer_proof(**dialers), _cookie.dialer_proof(**seen))
    seen = {**acceptors, "stream": acceptors["stream"].other_end(), "dialling": True}
    assert _proof.same_proof(_cookie.acceptor_proof(**acceptors), _cookie.acceptor_proof(**seen))
    assert len(_cookie.dialer_proof(**dialers)) == 32


OTHER_NAMES = [NodeName.parse(text) for text in ("gamma@localhost", "alpha@elsewhere", "Alpha@localhost")]


@pytest.fixture
def changes(key_pairs: Mapping[str, KeyPair]) -> Callable[[Proof], dict[str, Proof]]:
    """A function that changes one thing after the other in what goes into a proof."""

    def make(fields: Proof) -> dict[str, Proof]:
        stream: Session = fields["stream"]
        other = key_pairs["other"].certificate
        found: dict[str, Proof] = {
            "cookie": {"cookie": WRONG.encode()},
            "session": {"stream": replace(stream, secret=b"another session")},
            "own certificate": {"stream": replace(stream, certificate=other)},
            "no own certificate": {"stream": replace(stream, certificate=None)},
            "peer's certificate": {"stream": replace(stream, peer_certificate=other)},
            "no peer's certificate": {"stream": replace(stream, peer_certificate=None)},
            "certificates swapped": {"stream": stream.other_end()},
            "incarnation": {"incarnation": fields["incarnation"] + 1},
            "incarnation of 64 bits": {"incarnation": fields["incarnation"] + 2**63},
            "names swapped": {"dialer": fields["acceptor"], "acceptor": fields["dialer"]},
        }
        for name in OTHER_NAMES:
            found[f"dialer {name}"] = {"dialer": name}
            found[f"acceptor {name}"] = {"acceptor": name}
        if "proof" in fields:
            proof: bytes = fields["proof"]
            found["dialer's incarnation"] = {"dialer_incarnation": fields["dialer_incarnation"] + 1}
            found["incarnations swapped"] = {
                "dialer_incarnation": fields["incarnation"],
                "incarnation": fields["dialer_incarnation"],
            }
            found["dialer's proof"] = {"proof": bytes([proof[0] ^ 1]) + proof[1:]}
            found["no dialer's proof"] = {"proof": b""}
        return {what: {**fields, **change} for what, change in found.items()}

    return make


def test_every_field_changes_the_dialers_proof(dialers: Proof, changes: Callable[[Proof], dict[str, Proof]]) -> None:
    """Cookie, session, names, incarnation and both fingerprints: a proof is for exactly these."""
    proofs = {what: _cookie.dialer_proof(**fields) for what, fields in changes(dialers).items()}
    proofs["nothing"] = _cookie.dialer_proof(**dialers)
    assert len(set(proofs.values())) == len(proofs)


def test_every_field_changes_the_acceptors_proof(
    acceptors: Proof, changes: Callable[[Proof], dict[str, Proof]]
) -> None:
    """The acceptor's proof is bound to the same, and to the dialer's incarnation and proof."""
    proofs = {what: _cookie.acceptor_proof(**fields) for what, fields in changes(acceptors).items()}
    proofs["nothing"] = _cookie.acceptor_proof(**acceptors)
    assert len(set(proofs.values())) == len(proofs)


def test_roles_are_told_apart(dialers: Proof) -> None:
    """A proof of one role is none of the other, whatever the other fields are: it cannot be sent back."""
    parts = [str(dialers["dialer"]).encode(), str(dialers["acceptor"]).encode(), (7).to_bytes(8, "big")]
    macs = [
        _cookie._mac(RIGHT.encode(), role, cast("Any", dialers["stream"]), parts, dialling=True)
        for role in (b"dialer", b"acceptor")
    ]
    assert macs[0] == _cookie.dialer_proof(**dialers)
    assert macs[0] != macs[1]


def test_fields_cannot_run_into_each_other(dialers: Proof) -> None:
    """What ends one field and begins the next is bound, too: no two lists of fields are the same bytes."""
    stream = cast("Any", dialers["stream"])
    splits = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"]]
    macs = {_cookie._mac(RIGHT.encode(), b"dialer", stream, parts, dialling=True) for parts in splits}
    assert len(macs) == len(splits)


def test_proofs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing is left to `hmac.compare_digest`."""
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert not _proof.same_proof(b"one", b"one")
    assert compared == [(b"one", b"one")]


# Right, wrong, missing ------------------------------------------------------------------------------------------------


async def refusal(events: EventStream) -> HandshakeError:
    """The error of the next refused handshake."""
    async for event in events:
        if isinstance(event, HandshakeRefused):
            return event.error
    raise AssertionError("the node ended")


@dataclass(frozen=True)
class Meeting:
    """Two nodes, and what each says of a dial that failed."""

    alpha: Node
    beta: Node
    at_alpha: EventStream
    at_beta: EventStream

    @property
    def route(self) -> Route:
        """The way to beta."""
        host, port = self.beta.acceptors[0].address
        return Route(host=host, port=port)

    async def succeeds(self, **route: Any) -> None:
        """Dial, and see that it works."""
        connection = await self.alpha.connect(BETA, replace(self.route, **route))
        assert await connection.call("echo", b"x") == b"x"
        await connection.aclose()

    async def fails(self, **route: Any) -> tuple[HandshakeError, HandshakeError]:
        """Dial, and see that it does not; gives both sides' errors."""
        with pytest.raises(HandshakeError) as caught:
            await self.alpha.connect(BETA, replace(self.route, **route))
        assert await refusal(self.at_alpha) is caught.value
        assert not self.alpha.connections
        assert not self.beta._runtime.running
        return caught.value, await refusal(self.at_beta)


@pytest.fixture
def meeting(node: NodeFactory) -> Callable[..., Any]:
    """A function that opens both nodes."""

    @asynccontextmanager
    async def make(
        alpha: Mapping[str, Any] | None = None, beta: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Meeting]:
        async with (
            node(str(BETA), services={"echo": echo}, **(beta or {})) as b,
            node(str(ALPHA), **(alpha or {})) as a,
            a.events() as at_alpha,
            b.events() as at_beta,
        ):
            yield Meeting(a, b, at_alpha, at_beta)

    return make


@pytest.mark.parametrize("kind", [str, bytes])
async def test_right_cookie(meeting: Callable[..., Any], kind: type) -> None:
    """Nodes with the same cookie connect, whether it was given as text or as bytes."""
    theirs = RIGHT if kind is str else RIGHT.encode()
    with trio.fail_after(10):
        async with meeting({"cookie": RIGHT}, {"cookie": theirs}) as both:
            await both.succeeds()


@pytest.mark.parametrize(("dialers", "words"), [(WRONG, "has another cookie"), (None, "shows no cookie")])
async def test_dialer_without_the_right_cookie(meeting: Callable[..., Any], dialers: str | None, words: str) -> None:
    """A dialer whose cookie is wrong or missing is refused by the acceptor; both sides say that it is the cookie."""
    with trio.fail_after(10):
        async with meeting({"cookie": dialers}, {"cookie": RIGHT}) as both:
            ours, theirs = await both.fails()
    assert isinstance(ours, PeerRejectedError)
    assert ours.code is RejectionCode.COOKIE
    assert ours.stage is Stage.HELLO
    assert isinstance(theirs, PeerUnverifiedError)
    assert theirs.reason is UnverifiedReason.COOKIE
    assert theirs.stage is Stage.HELLO
    assert words in str(theirs)
    assert words in str(ours)
    assert "give both the same one" in str(theirs)


async def test_acceptor_without_a_cookie(meeting: Callable[..., Any]) -> None:
    """A dialer that has a cookie refuses an acceptor that proves none: it does not fall back to certificates alone."""
    with trio.fail_after(10):
        async with meeting({"cookie": RIGHT}, {"cookie": None}) as both:
            ours, theirs = await both.fails()
    assert isinstance(ours, PeerUnverifiedError)
    assert ours.reason is UnverifiedReason.COOKIE
    assert "did not prove that it knows our cookie" in str(ours)
    assert isinstance(theirs, PeerRejectedError)
    assert theirs.code is RejectionCode.COOKIE


@pytest.mark.parametrize("mode", ClientAuth, ids=lambda mode: mode.name)
@pytest.mark.parametrize("dialers", [RIGHT, WRONG])
async def test_every_client_auth_mode(
    meeting: Callable[..., Any], manager: ManagerFactory, mode: ClientAuth, dialers: str
) -> None:
    """A cookie works, and is asked for, in every mode: with a client certificate, and where none is asked for."""
    with trio.fail_after(10):
        async with meeting(
            {"cookie": dialers}, {"cookie": RIGHT, "certs": manager(str(BETA), client_auth=mode)}
        ) as both:
            if dialers == RIGHT:
                await both.succeeds()
            else:
                ours, theirs = await both.fails()
                assert (ours.reason, theirs.reason) == ("cookie", "cookie")


async def test_insecure_dial_is_guarded_by_the_cookie(
    meeting: Callable[..., Any], manager: ManagerFactory, rogue_ca: CertificateAuthority
) -> None:
    """Where certificates are not verified the cookie still is, in both directions."""
    certs = manager(str(BETA), ca=rogue_ca, client_auth=ClientAuth.NO_CLIENT_CERT)
    with trio.fail_after(10):
        async with meeting({"cookie": RIGHT, "insecure_skip_verify": True}, {"cookie": RIGHT, "certs": certs}) as both:
            await both.succeeds()
            ours, _ = await both.fails(cookie=WRONG)
            assert ours.reason == "cookie"
        async with meeting({"cookie": RIGHT, "insecure_skip_verify": True}, {"cookie": None, "certs": certs}) as both:
            ours, _ = await both.fails()
            assert isinstance(ours, PeerUnverifiedError)


async def test_cookie_makes_nobody_verified(meeting: Callable[..., Any], manager: ManagerFactory) -> None:
    """The cookie comes on top of certificates and never in their place: it makes no peer verified."""
    with trio.fail_after(10):
        certs = manager(str(BETA), client_auth=ClientAuth.NO_CLIENT_CERT)
        async with meeting({"cookie": RIGHT}, {"cookie": RIGHT, "certs": certs}) as both:
            connection = await both.alpha.connect(BETA, both.route)
            assert await connection.call("echo", b"x") == b"x"
            [inbound] = both.beta.unverified_connections
            assert not inbound.peer.verified
        async with meeting({"cookie": RIGHT, "certs": manager("elsewhere.example")}, {"cookie": RIGHT}) as both:
            ours, _ = await both.fails()
            assert ours.reason == "claimed_name"


# Which cookie applies -------------------------------------------------------------------------------------------------


async def test_routes_cookie_goes_before_the_nodes(meeting: Callable[..., Any]) -> None:
    """Dialling, a route's own cookie applies, else the node's."""
    with trio.fail_after(10):
        async with meeting({"cookie": WRONG}, {"cookie": RIGHT}) as both:
            await both.fails()
            await both.succeeds(cookie=RIGHT)
        async with meeting({"cookie": RIGHT}, {"cookie": RIGHT}) as both:
            await both.succeeds()
            await both.fails(cookie=WRONG)
        async with meeting({}, {"cookie": RIGHT}) as both:
            await both.fails()
            await both.succeeds(cookie=RIGHT)


async def test_acceptors_cookie_goes_before_the_nodes(meeting: Callable[..., Any]) -> None:
    """Accepting, an acceptor's own cookie applies, else the node's; the node's dials have the node's."""
    own = [AcceptorOptions(host="127.0.0.1", port=0, cookie=RIGHT)]
    with trio.fail_after(10):
        async with meeting({"cookie": RIGHT}, {"cookie": WRONG, "acceptors": own}) as both:
            await both.succeeds()
            await both.fails(cookie=WRONG)
        async with meeting({"cookie": RIGHT}, {"acceptors": own}) as both:
            await both.succeeds()
            await both.fails(cookie=WRONG)
            host, port = both.alpha.acceptors[0].address
            with pytest.raises(PeerRejectedError) as caught:
                await both.beta.connect(ALPHA, Route(host=host, port=port))
            assert caught.value.code is RejectionCode.COOKIE


# On the wire ----------------------------------------------------------------------------------------------------------


async def test_acceptors_proof_is_sent_only_after_checking(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory
) -> None:
    """A dialer without the cookie gets a refusal and no proof: nothing to guess against."""
    with trio.fail_after(10):
        async with node(str(BETA), cookie=RIGHT) as beta:
            for proof in b"", bytes(32), bytes(64):
                peer = await scripted_dial(beta, manager(str(ALPHA)))
                async with peer.stream:
                    await peer.say(peer.hello(str(ALPHA), proof=proof))
                    answer = await peer.hear(wire.Answer)
                    assert answer.refusal is not None
                    assert answer.refusal.code == "cookie"
                    assert answer.proof == b""
                    assert answer.incarnation == 0
                    await peer.hear_end()


async def proven(peer: ScriptedPeer, cookie: str, name: NodeName = ALPHA, **fields: Any) -> wire.Hello:
    """A dialer's hello with an honest proof for one session."""
    proof = _cookie.dialer_proof(
        cookie.encode(), cast("Any", peer.stream), dialer=name, acceptor=BETA, incarnation=1, dialling=True
    )
    return peer.hello(str(name), **{"proof": proof, **fields})


async def test_captured_hello_is_worth_nothing_on_another_session(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory
) -> None:
    """A proof that was good on one session is refused on the next, with the same certificate, name and numbers."""
    certs = manager(str(ALPHA))
    with trio.fail_after(10):
        async with node(str(BETA), cookie=RIGHT) as beta:
            first = await scripted_dial(beta, certs)
            async with first.stream:
                captured = await proven(first, RIGHT)
                await first.say(captured)
                assert (await first.hear(wire.Answer)).refusal is None
                await first.say(wire.Confirmation())
            again = await scripted_dial(beta, certs)
            async with again.stream:
                await again.say(captured)
                refused = (await again.hear(wire.Answer)).refusal
                assert refused is not None
                assert refused.code == "cookie"


async def test_hello_cannot_be_relayed(
    node: NodeFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    scripted_listener: ScriptedListener,
    manager: ManagerFactory,
) -> None:
    """An insider without the cookie that is dialled cannot pass the proof it gets on to another node, nor prove one."""
    insider = manager(str(BETA))
    with trio.fail_after(10):
        async with node(str(BETA), cookie=RIGHT) as beta, node(str(ALPHA), cookie=RIGHT) as alpha:
            async with trio.open_nursery() as nursery:
                errors: list[HandshakeError] = []

                async def dial() -> None:
                    with pytest.raises(HandshakeError) as caught:
                        await alpha.connect(BETA, scripted_listener.route())
                    errors.append(caught.value)

                nursery.start_soon(dial)
                victim = await scripted_listener.accept(insider)
                captured = await victim.hear(wire.Hello)
                assert len(captured.proof) == 32
                onward = await scripted_dial(beta, manager(str(ALPHA)))
                async with onward.stream:
                    await onward.say(captured)
                    refused = (await onward.hear(wire.Answer)).refusal
                    assert refused is not None
                    assert refused.code == "cookie"
                # Sending the dialer's own proof back does not do, either.
                await victim.say(victim.answer(str(BETA), proof=captured.proof, verified=True))
                confirmation = await victim.hear(wire.Confirmation)
                assert confirmation.refusal is not None
                assert confirmation.refusal.code == "cookie"
                await victim.stream.aclose()
            [error] = errors
            assert error.reason == "cookie"


@pytest.mark.parametrize("change", ["incarnation", "name"])
async def test_hello_that_was_changed_is_refused(
    node: NodeFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]], manager: ManagerFactory, change: str
) -> None:
    """Name and incarnation in a hello have to be those that were proved."""
    fields: dict[str, Any] = {"incarnation": 2} if change == "incarnation" else {"name": "gamma@localhost"}
    with trio.fail_after(10):
        async with node(str(BETA), cookie=RIGHT, bind_names=False) as beta:
            peer = await scripted_dial(beta, manager(str(ALPHA)))
            async with peer.stream:
                hello = await proven(peer, RIGHT)
                await peer.say(peer.hello(**{"name": str(ALPHA), "proof": hello.proof, **fields}))
                refused = (await peer.hear(wire.Answer)).refusal
                assert refused is not None
                assert refused.code == "cookie"


async def test_cookie_does_not_travel(
    node: NodeFactory, scripted_listener: ScriptedListener, manager: ManagerFactory
) -> None:
    """What a dialer sends, seen from inside the TLS session, does not contain the cookie."""
    with trio.fail_after(10):
        async with node(str(ALPHA), cookie=RIGHT) as alpha, trio.open_nursery() as nursery:
            nursery.start_soon(alpha.connect, BETA, scripted_listener.route())
            peer = await scripted_listener.accept(manager(str(BETA)))
            async with peer.stream:
                said = await peer.stream.receive_some()
                assert RIGHT.encode() not in said
                assert str(ALPHA).encode() in said
                nursery.cancel_scope.cancel()


# Never shown ----------------------------------------------------------------------------------------------------------


def test_options_do_not_show_it(manager: ManagerFactory) -> None:
    """No `repr` of options has the cookie, however they are nested."""
    acceptor, route = AcceptorOptions(cookie=RIGHT), Route(cookie=RIGHT)
    network = NetworkOptions(cookie=RIGHT, acceptors=[acceptor], routes={"*": route})
    for shown in acceptor, route, network, NodeOptions(cert_manager=manager(str(ALPHA)), network=network):
        assert RIGHT not in repr(shown)
        assert RIGHT not in str(shown)


def test_prepared_cookie_does_not_show_itself() -> None:
    """What the node works with does not show itself, and is still the same bytes."""
    cookie = _cookie.as_cookie(RIGHT)
    assert cookie == RIGHT.encode()
    assert f"{cookie!r} {cookie!s}" == "<cookie> <cookie>"


async def test_no_log_event_or_exception_shows_it(
    meeting: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither log lines, events, exceptions nor tracebacks, those with local variables included, have the cookie."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    with trio.fail_after(10):
        for dialers, acceptors in [(RIGHT, WRONG), (WRONG, RIGHT), (None, RIGHT), (RIGHT, None), (RIGHT, RIGHT)]:
            async with meeting({"cookie": dialers}, {"cookie": acceptors}) as both:
                if dialers == acceptors:
                    await both.succeeds()
                else:
                    for error in await both.fails():
                        shown += [repr(error), str(error), repr(vars(error))]
                        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
                        with suppress(Exception):  # most hold certificates, which cannot be pickled
                            shown.append(pickle.dumps(error).decode("latin1"))
                shown += [repr(event) for events in (both.at_alpha, both.at_beta) for event in events._buffer]
                shown += [repr(both.alpha), repr(both.alpha.acceptors), repr(both.alpha.statistics())]
    for record in caplog.records:
        shown += [record.getMessage(), repr(record.args), record.exc_text or ""]
    text = "\n".join(shown)
    assert "did not prove that it knows our cookie" in text
    assert RIGHT not in text
    assert WRONG not in text


async def test_hidden_node_has_a_cookie_too(node: NodeFactory) -> None:
    """A node that only dials proves the cookie like any other."""
    with trio.fail_after(10):
        async with (
            node(str(BETA), cookie=RIGHT) as beta,
            node(str(ALPHA), mode=NetworkMode.HIDDEN, cookie=RIGHT) as alpha,
        ):
            host, port = beta.acceptors[0].address
            assert (await alpha.connect(BETA, Route(host=host, port=port))).peer.verified
