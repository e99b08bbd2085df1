"""From a transport to a link: take contexts, TLS, hello, verdicts. Both sides.

Theory. A handshake takes its contexts from the channel itself: on the accepting side once the client's first bytes
are there (a silent client costs no TLS state and gets no soon-stale context), on the dialling side after the TCP
connect. What it took it keeps. It knows the receive channel and nothing about managers.

Who is checked how. The dialler verifies the server's certificate and name inside TLS, before its own certificate is
sent, then that the hello claims the name dialled. The acceptor verifies the client's certificate inside TLS, then that
it speaks for the node name that the hello claims (`bind_names`). Then each side's `authorize` may narrow, never widen.
Only when both have accepted does either side have a link.

A link that is to carry a connection that is there (`join`, see `_connection` for what becomes of it) goes the same way
through all of it; only instead of competing it shows the proof (`join`). Its dialer leaves the last message, the
confirmation, to the connection, whose commit it is. Its acceptor, having let it in, waits for that without a timer of
its own: one that ran out while the confirmation was under way would break a connection that is well. The dialer's
deadline, the link's end and the connection's end bound it, and each connection has one at most.

A refusal travels: by alert from TLS, by code and sentence from the hello. Who refuses half-closes, reads on for a
bounded time and closes, so that the words arrive; who is refused reads before it reports. Everything is bounded by
one deadline, and on every way out but success the transport is closed.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeVar, final

import trio

from trionode._connection.link import Link
from trionode._errors import (
    HandshakeError,
    HandshakeTimeoutError,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._identity.describe import describe, describe_names
from trionode._identity.names import (
    NodeName,
    SubjectNames,
    canonical_host,
)
from trionode._identity.peer import Peer, established_peer
from trionode._protocol import frames as wire
from trionode._tls.stream import TLSStream, address_of, client_handshake, drain_and_close, server_handshake
from trionode._transport.sockets import receive
from trionode._util.rate_limited_log import FloodGate
from trionode._util.text import (
    Address,
    at,
    printable,
)

from .admission import Progress, Ticket
from .channel_binding import same_proof
from .collisions import Conflict
from .cookie import acceptor_proof, dialer_proof
from .join import Ends, join_proof

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cryptography import x509

    from trionode._connection.connection import Connection
    from trionode._tls.contexts import TLSContexts
    from trionode._transport.interfaces import Transport

    from .collisions import Arbiter

_log = logging.getLogger("trionode.security")

#: A client's first flight has a few hundred bytes (1.7 KiB with a post-quantum key share): one read is enough.
_FIRST_READ: Final = 16 * 1024

T = TypeVar("T")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Party:
    """What this node says of itself in a hello, and how it judges the other.

    Attributes:
        name: our node name.
        incarnation: our random number.
        limits: what we accept.
        arbiter: judges links that compete.
        cookie: what a dialer must prove that it knows, and we prove in return; None for no cookie.
        authorize: asked about every peer that passed everything else; raises to refuse.
        refuse_all: asked first; a reason here refuses whoever it is (shutting down).
        flood: where failures of `authorize` are logged.
    """

    name: NodeName
    incarnation: int
    limits: wire.Limits
    arbiter: Arbiter
    cookie: bytes | None = field(default=None, repr=False)
    authorize: Callable[[Peer], None] | None = None
    refuse_all: Callable[[], wire.Refusal | None] = lambda: None
    flood: FloodGate = field(default_factory=lambda: FloodGate(_log, "failures of authorize"), repr=False)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Dial:
    """What a dial is to reach, and how strictly.

    Attributes:
        name: the node name that must answer.
        host: where to connect to; a canonical host, brackets or not.
        port: where it listens there.
        transport: what carries the bytes; None for TCP.
        server_name: the route's reference name, canonical, or None.
        cookie: what both sides must prove that they know, or None.
        replace: whether this connection is wanted although there is another to the same node.
        join: the connection that the new link is to carry, in place of a new one.
        insecure_skip_verify: accept any certificate under any name.
        connect_timeout: for DNS and TCP, seconds.
        handshake_timeout: for contexts, TLS and hello, seconds.
    """

    name: NodeName
    host: str
    port: int
    transport: Transport | None = None
    server_name: str | None = None
    cookie: bytes | None = field(default=None, repr=False)
    replace: bool = False
    join: Connection | None = None
    insecure_skip_verify: bool = False
    connect_timeout: float
    handshake_timeout: float


@dataclass(slots=True)
class _Progress:
    """How far a handshake has come: what its errors say."""

    address: Address | None
    scope: trio.CancelScope
    stage: Stage = Stage.TLS
    generation: int | None = None
    presented: x509.Certificate | None = None
    joins: Connection | None = None
    ticket: Ticket | None = None

    def __post_init__(self) -> None:
        if self.ticket is not None:
            self.ticket.begin(self.scope)

    @property
    def where(self) -> str:
        return at(self.address)

    def decided(self) -> None:
        """We refuse: telling the peer has a bound of its own, and the deadline must not turn it into a timeout."""
        self.scope.deadline = math.inf

    def reached(self, progress: Progress) -> None:
        """For who judges which handshakes have to go."""
        if self.ticket is not None:
            self.ticket.progress = progress

    def took(self, contexts: TLSContexts) -> None:
        self.generation = contexts.generation
        self.presented = contexts.key_pair.certificate

    def refuse(
        self,
        reason: UnverifiedReason,
        text: str,
        *,
        certificate: x509.Certificate | None = None,
        wanted: str | None = None,
        offered: str | None = None,
    ) -> PeerUnverifiedError:
        return PeerUnverifiedError(
            f"peer{self.where}: {text}",
            stage=self.stage,
            reason=reason,
            address=self.address,
            generation=self.generation,
            certificate=certificate,
            wanted=wanted,
            offered=offered,
        )

    def conflict(self, conflict: Conflict) -> PeerUnverifiedError:
        peer = conflict.peer
        return self.refuse(conflict.reason, str(conflict), certificate=peer.certificate, offered=str(peer.name))

    def rejected(self, refusal: wire.Refusal) -> PeerRejectedError:
        shown = "no certificate" if self.presented is None else describe(self.presented)
        code = RejectionCode.of(refusal.code)
        return PeerRejectedError(
            f"the peer{self.where} refused us in its hello: {printable(refusal.code)}: "
            f"{printable(refusal.message, 1000)} (we presented {shown})",
            stage=self.stage,
            code=code,
            address=self.address,
            generation=self.generation,
            presented=self.presented,
        )

    def broken(self, reason: str, text: str, cause: Exception) -> HandshakeError:
        error = HandshakeError(
            f"the peer{self.where} {text}",
            stage=self.stage,
            reason=reason,
            address=self.address,
            generation=self.generation,
        )
        error.__cause__ = cause
        return error

    def timed_out(self, seconds: float) -> HandshakeError:
        if self.ticket is not None and self.ticket.shed:
            too_many = trio.BrokenResourceError("too many handshakes at once")
            text = (
                "was one unfinished handshake too many (max_handshakes, max_handshakes_per_address): of those that had "
                f"come least far it was the oldest (stage {self.stage.value!r})"
            )
            return self.broken("shed", text, too_many)
        if self.joins is not None:
            ended = trio.BrokenResourceError("the connection ended, or a later link joined it")
            return self.broken("superseded", "was about to join a connection here, but that is gone", ended)
        return HandshakeTimeoutError(
            f"the handshake with the peer{self.where} did not finish within handshake_timeout ({seconds:g} s); it "
            f"had reached the stage {self.stage.value!r}",
            stage=self.stage,
            reason="timeout",
            address=self.address,
            generation=self.generation,
        )


# Accepting ----------------------------------------------------------------------------------------------------------


async def accept_tls(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    *,
    alpn: tuple[str, ...],
    handshake_timeout: float,
    ticket: Ticket | None = None,
) -> TLSStream:
    """The server side of a TLS handshake alone, for streams without nodes; owns the transport.

    Raises:
        HandshakeError: it failed; the transport is closed.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        progress = _Progress(address_of(transport), scope, ticket=ticket)
        return (await _accept_tls(transport, contexts_channel, alpn, progress))[0]
    raise progress.timed_out(handshake_timeout)


async def accept_link(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    *,
    bind_names: bool,
    handshake_timeout: float,
    ticket: Ticket | None = None,
) -> Link:
    """The accepting side of a node's handshake; owns the transport.

    Raises:
        PeerUnverifiedError: we refused the dialler.
        PeerRejectedError: it refused us.
        HandshakeTimeoutError: it took longer than `handshake_timeout` seconds from the accept.
        HandshakeError: it broke off, or spoke something else.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        progress = _Progress(address_of(transport), scope, ticket=ticket)
        stream, contexts = await _accept_tls(transport, contexts_channel, (wire.ALPN,), progress)
        progress.stage = Stage.HELLO
        progress.reached(Progress.HELLO)
        hello = _accept_hello(stream, contexts, party, progress, bind_names=bind_names)
        return await _closing_on_failure(stream, hello, progress)
    raise progress.timed_out(handshake_timeout)


async def _accept_tls(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    alpn: tuple[str, ...],
    progress: _Progress,
) -> tuple[TLSStream, TLSContexts]:
    try:
        first = await receive(transport, _FIRST_READ)
        if not first:
            raise progress.broken("silent", "connected and left without a byte", trio.BrokenResourceError("no bytes"))
        contexts = await contexts_channel.receive()
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(transport)
        raise progress.broken("silent", "broke the connection before its first byte", exc) from exc
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    progress.took(contexts)
    stream = await server_handshake(
        transport,
        contexts,
        received=first,
        alpn=alpn,
        decided=progress.decided,
        greeted=lambda: progress.reached(Progress.TLS),
    )
    return stream, contexts


async def _accept_hello(
    stream: TLSStream, contexts: TLSContexts, party: Party, progress: _Progress, *, bind_names: bool
) -> Link:
    conversation = _Conversation(stream, progress)
    hello = await conversation.receive(wire.Hello)
    with ExitStack() as reservation:
        try:
            version = _common_version(hello, party, progress)
            peer = _judge_dialler(stream, hello, party, progress, bind_names=bind_names)
            proof = _answer_cookie(stream, hello, peer, party, progress)
            mutual = peer.verified and hello.verified
            joined = None if hello.join is None else await _judge_join(stream, hello.join, peer, party, mutual=mutual)
            _authorize(peer, party, progress)
            if joined is not None:
                pass
            elif mutual:
                reservation.enter_context(await party.arbiter.promise(peer, replace=hello.replace))
            elif peer.verified:
                await party.arbiter.check_incarnation(peer)
        except PeerUnverifiedError as exc:
            await conversation.refuse(exc, wire.Answer)
        except Conflict as exc:
            await conversation.refuse(progress.conflict(exc), wire.Answer)
        if joined is not None:  # announced before it is let in: the dialer may commit before our send returns
            progress.joins = joined.connection
            progress.decided()
            reservation.enter_context(joined.connection.joining(progress.scope))
        await conversation.send(
            wire.Answer(
                version=version,
                name=str(party.name),
                incarnation=party.incarnation,
                generation=contexts.generation,
                limits=party.limits,
                verified=peer.verified,
                proof=proof,
                join=b"" if joined is None else joined.answer,
            )
        )
        confirmation = await conversation.receive(wire.Confirmation)
        if confirmation.refusal is not None:
            raise progress.rejected(confirmation.refusal)
    # The name stays reserved up to here; the link is registered before anybody else runs.
    return Link(
        stream=stream,
        peer=peer,
        dialled=False,
        mutual=mutual,
        replace=hello.replace,
        generation=contexts.generation,
        peer_generation=hello.generation,
        key_pair_fingerprint=contexts.key_pair.fingerprint,
        peer_limits=hello.limits,
        door=party,
        joins=None if joined is None else joined.connection,
        follows=None if joined is None else joined.link,
        rest=conversation.rest(),
    )


class _Joined(NamedTuple):
    """A connection that a dialer has proved to be its own, the link that it is on, and our proof in turn."""

    connection: Connection
    link: Link
    answer: bytes


async def _judge_join(stream: TLSStream, join: wire.Join, peer: Peer, party: Party, *, mutual: bool) -> _Joined:
    connection = party.arbiter.joined(join.connection, peer, door=party)
    try:
        await connection.wait_settled()
    except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
        raise Conflict(UnverifiedReason.JOIN, peer, f"the connection has ended: {exc}") from None
    link = connection.link
    party.arbiter.check_same(connection, peer, mutual=mutual)
    ends = Ends(peer.name, peer.incarnation, party.name, party.incarnation)
    prove = partial(
        join_proof,
        link.stream,
        stream,
        connection=join.connection,
        attempt=join.attempt,
        ends=ends,
        dialling=False,
    )
    if not same_proof(prove(), join.proof):
        msg = f"the proof that {peer.name} may move the connection is wrong: it is not for these two TLS sessions"
        raise Conflict(UnverifiedReason.JOIN, peer, msg)
    if join.attempt <= connection.last_attempt:
        msg = f"{peer.name} repeats attempt {join.attempt} to move the connection, after {connection.last_attempt}"
        raise Conflict(UnverifiedReason.JOIN, peer, msg)
    connection.last_attempt = join.attempt
    return _Joined(connection, link, prove(answers=join.proof))


def _common_version(hello: wire.Hello, party: Party, progress: _Progress) -> int:
    refusal = party.refuse_all()
    if refusal is not None:
        raise progress.refuse(UnverifiedReason(refusal.code), refusal.message)
    version = max(set(hello.versions) & set(wire.VERSIONS), default=0)
    if not version:
        raise progress.refuse(
            UnverifiedReason.VERSION,
            f"it speaks the protocol versions {hello.versions}, we speak {list(wire.VERSIONS)}; upgrade the older",
            wanted=str(list(wire.VERSIONS)),
            offered=str(hello.versions),
        )
    return version


def _answer_cookie(stream: TLSStream, hello: wire.Hello, peer: Peer, party: Party, progress: _Progress) -> bytes:
    """Check the dialer's proof, and only then make ours."""
    cookie = party.cookie
    if cookie is None:
        return b""
    expected = dialer_proof(
        cookie, stream, dialer=peer.name, acceptor=party.name, incarnation=hello.incarnation, dialling=False
    )
    if not same_proof(expected, hello.proof):
        what = "shows no cookie, and this acceptor wants one" if not hello.proof else "has another cookie than we have"
        raise progress.refuse(
            UnverifiedReason.COOKIE,
            f"the node {str(peer.name)!r} {what}; give both the same one in their options (a dialer that reached us "
            "under another name than ours fails here too)",
            certificate=peer.certificate,
        )
    return acceptor_proof(
        cookie,
        stream,
        dialer=peer.name,
        acceptor=party.name,
        incarnation=party.incarnation,
        dialer_incarnation=hello.incarnation,
        proof=hello.proof,
        dialling=False,
    )


def _judge_dialler(
    stream: TLSStream, hello: wire.Hello, party: Party, progress: _Progress, *, bind_names: bool
) -> Peer:
    name = _claimed(hello.name, progress, stream)
    certificate = stream.peer_certificate
    if name == party.name:
        raise progress.refuse(
            UnverifiedReason.NAME_IN_USE,
            f"it claims the node name {str(name)!r}, which is our own; give every node a name of its own",
            certificate=certificate,
            offered=str(name),
        )
    if stream.verified and bind_names:
        assert certificate is not None
        names = SubjectNames.of(certificate)
        if not names.cover_node(name):
            skipped = f" (unusable: {'; '.join(names.unusable)})" if names.unusable else ""
            raise progress.refuse(
                UnverifiedReason.CLAIMED_NAME,
                f"it claims the node name {str(name)!r}, which its certificate does not cover; that offers "
                f"{describe_names(certificate)}{skipped}: {describe(certificate)}. Issue it for this node name, or "
                "open the node under a name that it covers",
                certificate=certificate,
                wanted=str(name),
                offered=describe_names(certificate),
            )
    return established_peer(
        name,
        certificate=certificate,
        verified=stream.verified,
        address=stream.peer_address,
        incarnation=hello.incarnation,
    )


# Dialling -----------------------------------------------------------------------------------------------------------


def reference_name(dial: Dial, contexts: TLSContexts) -> str:
    """What the server's certificate must cover: the route's server name, else the manager's, else the name's host."""
    return dial.server_name or contexts.client.server_name or dial.name.host


async def dial_link(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    dial: Dial,
) -> Link:
    """The dialling side of a node's handshake; owns the transport.

    Raises:
        PeerUnverifiedError: we refused the acceptor.
        PeerRejectedError: it refused us.
        HandshakeTimeoutError: it took longer than `dial.handshake_timeout` seconds.
        HandshakeError: it broke off, or spoke something else.
        CertificateError: the system's CAs are needed to verify it and there are none.
    """
    with trio.move_on_after(dial.handshake_timeout) as scope:
        progress = _Progress(address_of(transport), scope)
        contexts = await _take(transport, contexts_channel)
        progress.took(contexts)
        stream = await client_handshake(
            transport,
            contexts,
            reference=reference_name(dial, contexts),
            node=dial.name,
            alpn=(wire.ALPN,),
            insist_on_alpn=True,
            flush_last_flight=False,  # the hello goes with it
            decided=progress.decided,
            insecure_skip_verify=dial.insecure_skip_verify,
        )
        progress.stage = Stage.HELLO
        with party.arbiter.dialling(dial.name) as pending:
            pending.counts = stream.verified and dial.join is None
            hello = _dial_hello(stream, contexts, party, progress, dial)
            return await _closing_on_failure(stream, hello, progress)
    raise progress.timed_out(dial.handshake_timeout)


async def dial_tls(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    *,
    host: str,
    server_name: str | None,
    alpn: tuple[str, ...],
    insecure_skip_verify: bool,
    handshake_timeout: float,
) -> TLSStream:
    """The client side of a TLS handshake alone, for streams without nodes; owns the transport.

    Raises:
        HandshakeError: it failed; the transport is closed.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        progress = _Progress(address_of(transport), scope)
        contexts = await _take(transport, contexts_channel)
        progress.took(contexts)
        return await client_handshake(
            transport,
            contexts,
            reference=server_name or contexts.client.server_name or canonical_host(host),
            alpn=alpn,
            insecure_skip_verify=insecure_skip_verify,
            decided=progress.decided,
        )
    raise progress.timed_out(handshake_timeout)


async def _take(transport: trio.abc.Stream, contexts_channel: trio.abc.ReceiveChannel[TLSContexts]) -> TLSContexts:
    try:
        return await contexts_channel.receive()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def _dial_hello(stream: TLSStream, contexts: TLSContexts, party: Party, progress: _Progress, dial: Dial) -> Link:
    conversation = _Conversation(stream, progress)
    proof = b""
    if dial.cookie is not None:
        proof = dialer_proof(
            dial.cookie,
            stream,
            dialer=party.name,
            acceptor=dial.name,
            incarnation=party.incarnation,
            dialling=True,
        )
    joining = None if dial.join is None else _Joining(dial.join, stream, party)
    await conversation.send(
        wire.Hello(
            versions=list(wire.VERSIONS),
            name=str(party.name),
            incarnation=party.incarnation,
            generation=contexts.generation,
            limits=party.limits,
            verified=stream.verified,
            replace=dial.replace,
            proof=proof,
            join=None if joining is None else joining.request,
        )
    )
    answer = await conversation.receive(wire.Answer)
    if answer.refusal is not None:
        raise progress.rejected(answer.refusal)
    try:
        peer = _judge_acceptor(stream, answer, party, progress, dial, proof)
        _authorize(peer, party, progress)
        mutual = peer.verified and answer.verified
        if joining is not None:
            joining.check(answer, peer, party, mutual=mutual)
        elif mutual:
            await party.arbiter.may_confirm(peer, replace=dial.replace)
    except PeerUnverifiedError as exc:
        await conversation.refuse(exc, wire.Confirmation)
    except Conflict as exc:
        await conversation.refuse(progress.conflict(exc), wire.Confirmation)
    if joining is None:
        await conversation.send(wire.Confirmation(), last=True)
    return Link(
        stream=stream,
        peer=peer,
        dialled=True,
        mutual=mutual,
        replace=dial.replace,
        insecure=dial.insecure_skip_verify,
        generation=contexts.generation,
        peer_generation=answer.generation,
        key_pair_fingerprint=contexts.key_pair.fingerprint,
        peer_limits=answer.limits,
        joins=dial.join,
        follows=None if joining is None else joining.link,
        rest=conversation.rest(),
    )


class _Joining:
    """The dialer's side of a join: what it asks, and what it wants to be answered."""

    def __init__(self, connection: Connection, stream: TLSStream, party: Party) -> None:
        connection.last_attempt += 1
        peer = connection.peer
        self.link = connection.link
        self._connection = connection
        self._prove = partial(
            join_proof,
            self.link.stream,
            stream,
            connection=connection.identifier,
            attempt=connection.last_attempt,
            ends=Ends(party.name, party.incarnation, peer.name, peer.incarnation),
            dialling=True,
        )
        proof = self._prove()
        self.request = wire.Join(connection=connection.identifier, attempt=connection.last_attempt, proof=proof)

    def check(self, answer: wire.Answer, peer: Peer, party: Party, *, mutual: bool) -> None:
        """Check the acceptor's side.

        Raises:
            Conflict: it is not the peer of the connection.
        """
        party.arbiter.check_same(self._connection, peer, mutual=mutual)
        if not same_proof(self._prove(answers=self.request.proof), answer.join):
            msg = f"{peer.name} did not prove that it has the connection that we want to move"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)


def _judge_acceptor(
    stream: TLSStream, answer: wire.Answer, party: Party, progress: _Progress, dial: Dial, proof: bytes
) -> Peer:
    if answer.version not in wire.VERSIONS:
        raise progress.refuse(
            UnverifiedReason.VERSION,
            f"it chose the protocol version {answer.version}, we offered {list(wire.VERSIONS)}",
            wanted=str(list(wire.VERSIONS)),
            offered=str(answer.version),
        )
    name = _claimed(answer.name, progress, stream)
    if name != dial.name:
        raise progress.refuse(
            UnverifiedReason.CLAIMED_NAME,
            f"we dialled {str(dial.name)!r}, but the node there is {str(name)!r}; check host and port of the route",
            certificate=stream.peer_certificate,
            wanted=str(dial.name),
            offered=str(name),
        )
    if dial.cookie is not None:
        expected = acceptor_proof(
            dial.cookie,
            stream,
            dialer=party.name,
            acceptor=name,
            incarnation=answer.incarnation,
            dialer_incarnation=party.incarnation,
            proof=proof,
            dialling=True,
        )
        if not same_proof(expected, answer.proof):
            raise progress.refuse(
                UnverifiedReason.COOKIE,
                f"the node {str(name)!r} did not prove that it knows our cookie; give both the same one",
                certificate=stream.peer_certificate,
            )
    return established_peer(
        name,
        certificate=stream.peer_certificate,
        verified=stream.verified,
        address=stream.peer_address,
        incarnation=answer.incarnation,
    )


# Common -------------------------------------------------------------------------------------------------------------


async def _closing_on_failure(stream: TLSStream, exchange: Awaitable[Link], progress: _Progress) -> Link:
    try:
        return await exchange
    except PeerUnverifiedError:
        progress.decided()
        await drain_and_close(stream)  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news then
        raise
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def _claimed(text: str, progress: _Progress, stream: TLSStream) -> NodeName:
    try:
        return NodeName.parse(text)
    except ValueError as exc:
        raise progress.refuse(
            UnverifiedReason.CLAIMED_NAME,
            f"it claims a name that is none: {exc}",
            certificate=stream.peer_certificate,
            offered=printable(text),
        ) from None


def _authorize(peer: Peer, party: Party, progress: _Progress) -> None:
    if party.authorize is None:
        return
    try:
        # Typed as returning None; a program that returns False or a coroutine instead must not let everybody in.
        verdict: object = party.authorize(peer)
        if verdict is not None:
            msg = f"authorize must return None or raise, it returned {type(verdict).__name__}"
            raise TypeError(msg)
    except Exception as exc:
        if not isinstance(exc, Refused):
            party.flood.warning("authorize failed for %s, which refuses it", peer.name, exc_info=exc)
        words = str(exc) if isinstance(exc, Refused) else f"authorize raised {type(exc).__name__}"
        raise progress.refuse(
            UnverifiedReason.NOT_AUTHORIZED,
            f"the node {str(peer.name)!r} was refused by authorize: {words}",
            certificate=peer.certificate,
            offered=str(peer.name),
        ) from exc


class _Conversation:
    """The hello's three messages over one stream: sending, receiving, and what goes wrong with either."""

    def __init__(self, stream: TLSStream, progress: _Progress) -> None:
        self._stream = stream
        self._progress = progress
        self._reader = wire.HelloReader()

    async def send(self, message: wire.Hello | wire.Answer | wire.Confirmation, *, last: bool = False) -> None:
        data = wire.encode_hello(message)
        try:
            # The last is sent with a checkpoint: a peer in this process hears it before whoever dialled goes on.
            if last or not self._stream.send_at_once(data):
                await self._stream.send_all(data)
            elif self._stream.unsent:
                await self._stream.send_all(b"")
        except trio.BrokenResourceError as exc:
            # Read before reporting: the alert that says why may be here already, though our own send met an EPIPE.
            # Where an answer is due anyway, reading it comes next.
            if last:
                await self.receive(wire.Confirmation)  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news
                raise self._progress.broken("broken", f"broke the connection in the hello: {exc}", exc) from exc

    async def receive(self, kind: type[T]) -> T:
        progress = self._progress
        try:
            while (message := self._reader.next(kind)) is None:
                data = await self._stream.receive_some(wire.MAX_HELLO)
                if not data:
                    raise progress.broken(
                        "closed",
                        "closed the connection in the middle of the hello; its log may say why",
                        trio.BrokenResourceError("end of stream in the hello"),
                    )
                self._reader.feed(data)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, PeerRejectedError):
                raise exc.__cause__ from None
            raise progress.broken("broken", f"broke the connection in the hello: {exc}", exc) from exc
        except RemoteProtocolError as exc:
            raise progress.broken("protocol", f"does not speak the node protocol: {exc}", exc) from exc
        return message

    def rest(self) -> bytes:
        return self._reader.rest()

    async def refuse(self, error: PeerUnverifiedError, kind: type[wire.Answer | wire.Confirmation]) -> NoReturn:
        """Tell the peer, as far as it may know, then raise."""
        cause = error.__cause__
        if error.reason is UnverifiedReason.NOT_AUTHORIZED:
            words = str(cause) if isinstance(cause, Refused) else "authorize refused"
        else:
            words = str(error).removeprefix(f"peer{self._progress.where}: ")  # its own address is no news to it
        refusal = wire.Refusal(code=error.reason, message=wire.text(words))
        await self.send(kind(refusal=refusal))
        raise error from cause
