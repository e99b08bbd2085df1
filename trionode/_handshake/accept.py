"""The accepting side of a handshake: first bytes, contexts, TLS, the dialer's hello, our answer, its confirmation.

Theory. Contexts are taken from the channel once the client's first bytes are there (a silent client costs no TLS state
and gets no soon-stale context), and kept. Nothing here knows of managers. Where there are several channels, by the name
that the client asks for, its whole ClientHello is waited for and the name read from that; a second ClientHello (RFC
8446 section 4.1.4) must not ask for one of another channel.

What the acceptor judges, in this order; the first that fails refuses:

1. the client's certificate, inside TLS, as the client-auth mode says;
2. whether the node is shutting down, and the protocol version;
3. the node name that the hello claims: it is not ours, and (`bind_names`) the certificate speaks for it;
4. the cookie, if there is one; our own proof is made only after the dialer's was checked;
5. where the link is to join a connection that is there, the proof of that (`join`);
6. `authorize`, which may narrow, never widen;
7. otherwise, whether another link stands for that name (`collisions`).

A link that joins competes with no other. Having let it in, the acceptor waits for the confirmation, which is the
dialer's commit, without a timer of its own: one that ran out while the confirmation was under way would break a
connection that is well. The dialer's deadline, the link's end and the connection's end bound the wait, and each
connection has one such link at most.

Any other dialer has the handshake's time for its confirmation. One that is late may have opened channels on what it
takes for a link: it is told, by a GOODBYE, that none of them was taken.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trionode import _protocol as wire
from trionode._connection.closing import turn_away
from trionode._connection.end import EndReason
from trionode._connection.link import Link
from trionode._errors import HandshakeReason, PeerUnverifiedError, UnverifiedReason
from trionode._identity.describe import describe, describe_names
from trionode._identity.names import SubjectNames
from trionode._identity.peer import Peer, established_peer
from trionode._tls.client_hello import ClientHelloReader
from trionode._tls.contexts import ContextsByName
from trionode._tls.failures import HandshakeErrors
from trionode._tls.handshake import MAX_CLIENT_FLIGHTS, UNRECOGNIZED_NAME, refuse_hello, server_handshake
from trionode._transport.sockets import address_of, receive

from .admission import Progress, Ticket
from .channel_binding import same_proof
from .collisions import Conflict
from .cookie import acceptor_proof, dialer_proof
from .exchange import Conversation, Handshake, Party, check_authorized, claimed_name, closing_on_failure
from .join import Ends, join_proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._connection.core import ConnectionCore
    from trionode._tls.contexts import ContextsSource, TLSContexts
    from trionode._tls.stream import SessionStream
    from trionode._util.text import Buffer

#: A client's first flight has a few hundred bytes (1.7 KiB with a post-quantum key share): one read is enough.
_FIRST_READ: Final = 16 * 1024


class Joined(NamedTuple):
    """What a new link joins.

    Attributes:
        connection: the one that it is to carry.
        follows: the link that this was on when the dialer's proof was checked.
    """

    connection: ConnectionCore
    follows: Link


async def accept_tls(
    transport: trio.abc.Stream,
    source: ContextsSource,
    *,
    alpn: tuple[str, ...],
    handshake_timeout: float,
    ticket: Ticket | None = None,
    on_taken: Callable[[], None] = lambda: None,
) -> SessionStream:
    """The server side of a TLS handshake alone, for streams without nodes; owns the transport.

    Args:
        transport: an accepted connection, before TLS.
        source: where the contexts are taken, once the client's first bytes are there.
        alpn: protocols in order of preference; a client that offers only others is refused.
        handshake_timeout: from the accept to the end, seconds.
        ticket: its place among the handshakes under way.
        on_taken: called when it has taken its contexts.

    Raises:
        HandshakeError: it failed, see its subclasses; the transport is closed.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        handshake = Handshake(
            HandshakeErrors(address=address_of(transport)), scope, handshake_timeout, ticket, on_taken
        )
        stream, _ = await _accept_tls(transport, source, alpn, handshake)
        return stream
    raise handshake.given_up()


async def accept_link(
    transport: trio.abc.Stream,
    source: ContextsSource,
    party: Party,
    *,
    bind_names: bool,
    handshake_timeout: float,
    ticket: Ticket | None = None,
    on_taken: Callable[[], None] = lambda: None,
) -> tuple[Link, Joined | None]:
    """The accepting side of a node's handshake; owns the transport.

    Args:
        transport: an accepted connection, before TLS.
        source: where the contexts are taken, once the client's first bytes are there.
        party: what this node says of itself, and how it judges the dialer.
        bind_names: whether a verified dialer's certificate has to speak for the node name that it claims.
        handshake_timeout: from the accept to the end, seconds.
        ticket: its place among the handshakes under way.
        on_taken: called when it has taken its contexts.

    Returns:
        The link, and what it joins where it is to carry a connection that is there.

    Raises:
        PeerUnverifiedError: we refused the dialer.
        PeerRejectedError: it refused us.
        HandshakeTimeoutError: it took longer than `handshake_timeout`.
        HandshakeError: it broke off, or spoke something else; or we gave it up, see `HandshakeReason`.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        handshake = Handshake(
            HandshakeErrors(address=address_of(transport)), scope, handshake_timeout, ticket, on_taken
        )
        stream, contexts = await _accept_tls(transport, source, (wire.ALPN,), handshake)
        handshake.finished_tls()
        handshake.reached(Progress.HELLO)
        hello = _AcceptorsHello(stream, contexts, party, handshake, bind_names=bind_names)
        return await closing_on_failure(stream, handshake, hello.run)
    raise handshake.given_up()


async def _accept_tls(
    transport: trio.abc.Stream,
    source: ContextsSource,
    alpn: tuple[str, ...],
    handshake: Handshake,
) -> tuple[SessionStream, TLSContexts]:
    received: Buffer
    asked: str | None = None
    try:
        received = first = await _first_bytes(transport, handshake)
        if isinstance(source, ContextsByName):
            received, hello = await _client_hello(transport, first, handshake)
            channel, asked = await _channel_for(transport, source, hello, handshake), hello.server_name
        else:
            channel = source
        contexts = await channel.receive()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    handshake.took(contexts)
    stream = await server_handshake(
        transport,
        contexts,
        received=received,
        alpn=alpn,
        decided=handshake.decided,
        greeted=lambda: handshake.reached(Progress.TLS),
        errors=handshake.errors,
    )
    if isinstance(source, ContextsByName) and not source.same(asked, stream.server_name):
        await trio.aclose_forcefully(stream)
        raise handshake.errors.misbehaved("server name changed")
    return stream, contexts


async def _client_hello(
    transport: trio.abc.Stream, first: bytes, handshake: Handshake
) -> tuple[bytearray, ClientHelloReader]:
    """Receive the whole ClientHello, or what there is of it; gives all that was received, and what was read in it."""
    received, reader = bytearray(first), ClientHelloReader()
    reader.feed(first)
    while not reader.done:
        if len(received) >= MAX_CLIENT_FLIGHTS:
            raise handshake.errors.misbehaved("excessive message size")
        try:
            more = await receive(transport, _FIRST_READ)
        except trio.BrokenResourceError as exc:
            text = f"{handshake.errors.peer} broke the connection in its ClientHello"
            raise handshake.errors.failed(HandshakeReason.BROKEN, text, exc) from exc
        if not more:
            break
        reader.feed(more)
        received += more
    return received, reader


async def _channel_for(
    transport: trio.abc.Stream, source: ContextsByName, hello: ClientHelloReader, handshake: Handshake
) -> trio.abc.ReceiveChannel[TLSContexts]:
    """The channel that a ClientHello asks for. One that is cut or malformed asks for none; OpenSSL then says why."""
    channel = source.channel(hello.server_name)
    if channel is not None:
        return channel
    if hello.malformed is not None:
        raise handshake.errors.misbehaved(hello.malformed)
    if not hello.done:
        raise handshake.errors.truncated()
    handshake.decided()
    await refuse_hello(transport, UNRECOGNIZED_NAME)
    raise handshake.errors.unrecognized_name(hello.server_name, source.names)


async def _first_bytes(transport: trio.abc.Stream, handshake: Handshake) -> bytes:
    errors = handshake.errors
    try:
        first = await receive(transport, _FIRST_READ)
    except trio.BrokenResourceError as exc:
        text = f"{errors.peer} broke the connection before its first byte"
        raise errors.failed(HandshakeReason.SILENT, text, exc) from exc
    if not first:
        text = f"{errors.peer} connected and left without a byte"
        raise errors.failed(HandshakeReason.SILENT, text, trio.BrokenResourceError("no bytes"))
    return first


@final
@dataclass(kw_only=True, slots=True)
class _Verdict:
    """What the acceptor has found of a dialer that it does not refuse, and has to prove to it in turn."""

    version: int
    peer: Peer
    mutual: bool
    proof: bytes
    joined: Joined | None = None
    join_proof: bytes = b""


@final
class _AcceptorsHello:
    """The acceptor's part in one hello."""

    def __init__(
        self, stream: SessionStream, contexts: TLSContexts, party: Party, handshake: Handshake, *, bind_names: bool
    ) -> None:
        self._stream = stream
        self._contexts = contexts
        self._party = party
        self._handshake = handshake
        self._errors = handshake.errors
        self._bind_names = bind_names

    async def run(self) -> tuple[Link, Joined | None]:
        """Read the hello, judge it, answer, and read the confirmation.

        Raises:
            HandshakeError: one side has refused the other, or the conversation failed.
        """
        conversation = Conversation(self._stream, self._handshake)
        hello = await conversation.receive(wire.Hello)
        with ExitStack() as until_confirmed:
            try:
                verdict = await self._judge(hello)
                await self._reserve(hello, verdict, until_confirmed)
            except (PeerUnverifiedError, Conflict) as exc:
                await conversation.refuse(exc, wire.Answer)
            with self._handshake.last_stage() as scope:
                if verdict.joined is not None:  # announced before it is let in: the dialer may commit before we go on
                    self._handshake.joins = verdict.joined.connection
                    self._handshake.decided()
                    until_confirmed.enter_context(verdict.joined.connection.hand_over.joining(scope))
                await self._let_in(verdict, conversation)
        if scope.cancelled_caught:
            if verdict.joined is None:  # the dialer may have confirmed meanwhile, and opened channels
                await turn_away(self._stream, EndReason.CLOSED)
            raise self._handshake.given_up()
        # The name stays reserved up to here; no checkpoint comes between this and the link's registration.
        link = Link(
            stream=self._stream,
            peer=verdict.peer,
            dialled=False,
            mutual=verdict.mutual,
            replace=hello.replace,
            cookie=self._party.cookie,
            generation=self._contexts.generation,
            peer_generation=hello.generation,
            key_pair_fingerprint=self._contexts.key_pair.fingerprint,
            peer_limits=hello.limits,
            acceptor=self._party,
            rest=conversation.rest(),
        )
        return link, verdict.joined

    async def _let_in(self, verdict: _Verdict, conversation: Conversation) -> None:
        """Answer, and read the confirmation.

        Raises:
            HandshakeError: the dialer has refused us, or the conversation failed.
        """
        await conversation.send(
            wire.Answer(
                version=verdict.version,
                name=str(self._party.name),
                incarnation=self._party.incarnation,
                generation=self._contexts.generation,
                limits=self._party.limits,
                verified=verdict.peer.verified,
                proof=verdict.proof,
                join=verdict.join_proof,
            )
        )
        confirmation = await conversation.receive(wire.Confirmation)
        if confirmation.refusal is not None:
            raise self._errors.rejected_in_hello(confirmation.refusal.code, confirmation.refusal.message)

    async def _judge(self, hello: wire.Hello) -> _Verdict:
        """Everything but whether another link stands for the name.

        Raises:
            PeerUnverifiedError: the dialer is refused.
            Conflict: it has no such connection to join.
        """
        version = self._common_version(hello)
        peer = self._identify(hello)
        proof = self._exchange_cookie(hello, peer)
        verdict = _Verdict(version=version, peer=peer, mutual=peer.verified and hello.verified, proof=proof)
        if hello.join is not None:
            verdict.joined, verdict.join_proof = await self._check_join(hello.join, peer, mutual=verdict.mutual)
        check_authorized(peer, self._party, self._handshake)
        return verdict

    async def _reserve(self, hello: wire.Hello, verdict: _Verdict, until_confirmed: ExitStack) -> None:
        """Judge whether another link stands for the name, and keep the name until the confirmation.

        Raises:
            Conflict: another link does.
        """
        if verdict.joined is not None:
            return
        if verdict.mutual:
            until_confirmed.enter_context(await self._party.arbiter.promise(verdict.peer, replace=hello.replace))
        elif verdict.peer.verified:
            await self._party.arbiter.check_incarnation(verdict.peer)

    def _common_version(self, hello: wire.Hello) -> int:
        refusal = self._party.refuse_all()
        if refusal is not None:
            raise self._errors.unverified(UnverifiedReason(refusal.code), refusal.message)
        version = max(set(hello.versions) & set(wire.VERSIONS), default=0)
        if not version:
            raise self._errors.unverified(
                UnverifiedReason.VERSION,
                f"the dialer speaks the protocol versions {hello.versions}, we speak {list(wire.VERSIONS)}; upgrade "
                "the older",
                wanted=str(list(wire.VERSIONS)),
                offered=str(hello.versions),
            )
        return version

    def _identify(self, hello: wire.Hello) -> Peer:
        name = claimed_name(hello.name, self._handshake, self._stream)
        certificate = self._stream.peer_certificate
        if name == self._party.name:
            raise self._errors.unverified(
                UnverifiedReason.NAME_IN_USE,
                f"the dialer claims the node name {str(name)!r}, which is our own; give every node a name of its own",
                certificate=certificate,
                offered=str(name),
            )
        if self._stream.verified and self._bind_names:
            assert certificate is not None
            names = SubjectNames.of(certificate)
            if not names.cover_node(name):
                skipped = f" (unusable: {'; '.join(names.unusable)})" if names.unusable else ""
                raise self._errors.unverified(
                    UnverifiedReason.CLAIMED_NAME,
                    f"the dialer claims the node name {str(name)!r}, which its certificate does not cover; that offers "
                    f"{describe_names(certificate)}{skipped}: {describe(certificate)}. Issue it for this node name, or "
                    "open the node under a name that it covers",
                    certificate=certificate,
                    wanted=str(name),
                    offered=describe_names(certificate),
                )
        return established_peer(
            name,
            certificate=certificate,
            verified=self._stream.verified,
            address=self._stream.peer_address,
            incarnation=hello.incarnation,
        )

    def _exchange_cookie(self, hello: wire.Hello, peer: Peer) -> bytes:
        """Check the dialer's proof, and only then make ours."""
        cookie, party = self._party.cookie, self._party
        if cookie is None:
            return b""
        expected = dialer_proof(
            cookie, self._stream, dialer=peer.name, acceptor=party.name, incarnation=hello.incarnation, dialling=False
        )
        if not same_proof(expected, hello.proof):
            what = "has another cookie than we have" if hello.proof else "shows no cookie, and this acceptor wants one"
            raise self._errors.unverified(
                UnverifiedReason.COOKIE,
                f"the node {str(peer.name)!r} {what}; give both the same one in their options (a dialer that reached "
                "us under another name than ours fails here too)",
                certificate=peer.certificate,
            )
        return acceptor_proof(
            cookie,
            self._stream,
            dialer=peer.name,
            acceptor=party.name,
            incarnation=party.incarnation,
            dialer_incarnation=hello.incarnation,
            proof=hello.proof,
            dialling=False,
        )

    async def _check_join(self, join: wire.Join, peer: Peer, *, mutual: bool) -> tuple[Joined, bytes]:
        """What the new link joins, and our proof in answer to the dialer's."""
        party = self._party
        connection = party.arbiter.joined(join.connection, peer, acceptor=party)
        try:
            await connection.wait_settled()
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            raise Conflict(UnverifiedReason.JOIN, peer, f"the connection has ended: {exc}") from None
        link = connection.link
        party.arbiter.check_same(connection, peer, mutual=mutual)
        prove = partial(
            join_proof,
            link.stream,
            self._stream,
            connection=join.connection,
            attempt=join.attempt,
            ends=Ends(peer.name, peer.incarnation, party.name, party.incarnation),
            dialling=False,
        )
        if not same_proof(prove(), join.proof):
            msg = f"the proof that {peer.name} may move the connection is wrong: it is not for these two TLS sessions"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)
        last = connection.hand_over.last_attempt
        if join.attempt <= last:
            msg = f"{peer.name} repeats attempt {join.attempt} to move the connection, after {last}"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)
        connection.hand_over.last_attempt = join.attempt
        return Joined(connection, link), prove(answers=join.proof)
