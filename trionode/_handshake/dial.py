"""The dialing side of a handshake: connect, contexts, TLS, our hello, the acceptor's answer, our confirmation.

Theory. Contexts are taken from the channel after the TCP connect, afresh for each attempt, and kept. Nothing here knows
of managers.

What the dialer judges, in this order; the first that fails refuses:

1. the server's certificate, its name and its URI SANs, inside TLS, before our own certificate is sent, and that it
   selected our protocol (ALPN);
2. the protocol version that it chose;
3. the node name that its answer claims: it is the one that was dialled;
4. the cookie, if there is one;
5. `authorize`, which may narrow, never widen;
6. where the link is to join a connection that is there, that the acceptor is its peer and has it (`join`); otherwise
   whether another link stands for that name (`collisions`).

The last message, the confirmation, may be left to the connection: of a link that joins it is the commit, and where a
call made the connection, the two go in one flight. But not where the acceptor has ended meanwhile, or it cannot be told
whether it has: a request that went with the confirmation may have run, and a dial that broke before it certainly left
nothing behind, so that the next route may be tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from trionode import _protocol as wire
from trionode._connection.link import Link
from trionode._errors import PeerUnverifiedError, UnverifiedReason
from trionode._identity.names import NodeName, canonical_host
from trionode._identity.peer import Peer, established_peer
from trionode._tls.failures import HandshakeErrors
from trionode._tls.handshake import client_handshake
from trionode._transport.sockets import address_of

from .channel_binding import same_proof
from .collisions import Conflict
from .connect import connect
from .cookie import acceptor_proof, dialer_proof
from .exchange import Conversation, Handshake, Party, check_authorized, claimed_name, closing_on_failure
from .join import Ends, join_proof

if TYPE_CHECKING:
    from trionode._connection.core import ConnectionCore
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.stream import SessionStream
    from trionode._transport.interfaces import Transport

Connecting: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]


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
        leave_confirmation: whether the confirmation may be left to the connection, which is about to open a channel:
            the two go in one flight. So it is with a link that joins, whose commit it is.
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
    join: ConnectionCore | None = None
    leave_confirmation: bool = False
    insecure_skip_verify: bool = False
    connect_timeout: float
    handshake_timeout: float


async def dial(
    dial: Dial,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    *,
    reach: Callable[[Connecting], Awaitable[trio.abc.Stream]] | None = None,
    on_taken: Callable[[], None] = lambda: None,
) -> Link:
    """One attempt at one route: connect, then the handshake.

    Args:
        dial: what is to be reached.
        contexts_channel: where the handshake takes its contexts.
        party: what this node says of itself, and how it judges the acceptor.
        reach: runs the connecting, and may end it early by an exception of its own.
        on_taken: called when the handshake has taken its contexts.

    Raises:
        HandshakeError: it failed, at whichever stage; see its subclasses.
        CertificateError: the system's CAs are needed and there are none.
    """
    connecting = partial(connect, dial.host, dial.port, connect_timeout=dial.connect_timeout, transport=dial.transport)
    stream = await (connecting() if reach is None else reach(connecting))
    return await dial_link(stream, contexts_channel, party, dial, on_taken=on_taken)


async def dial_link(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    dial: Dial,
    *,
    on_taken: Callable[[], None] = lambda: None,
) -> Link:
    """The dialing side of a node's handshake; owns the transport.

    Args:
        transport: a connection to the acceptor, before TLS.
        contexts_channel: where the handshake takes its contexts.
        party: what this node says of itself, and how it judges the acceptor.
        dial: what is to be reached.
        on_taken: called when it has taken its contexts.

    Raises:
        PeerUnverifiedError: we refused the acceptor.
        PeerRejectedError: it refused us.
        HandshakeTimeoutError: it took longer than `dial.handshake_timeout` seconds.
        HandshakeError: it broke off, or spoke something else.
        CertificateError: the system's CAs are needed to verify it and there are none.
    """
    with trio.move_on_after(dial.handshake_timeout) as scope:
        handshake = Handshake(
            HandshakeErrors(address=address_of(transport)), scope, dial.handshake_timeout, on_taken=on_taken
        )
        contexts = await _take(transport, contexts_channel, handshake)
        stream = await client_handshake(
            transport,
            contexts,
            reference=reference_name(dial, contexts),
            node=dial.name,
            alpn=(wire.ALPN,),
            insist_on_alpn=True,
            flush_last_flight=False,  # the hello goes with it
            decided=handshake.decided,
            errors=handshake.errors,
            insecure_skip_verify=dial.insecure_skip_verify,
        )
        handshake.finished_tls()
        with party.arbiter.dialling(dial.name) as pending:
            pending.counts = stream.verified and dial.join is None
            hello = _DialersHello(stream, contexts, party, handshake, dial)
            return await closing_on_failure(stream, handshake, hello.run)
    raise handshake.given_up()


async def dial_tls(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    *,
    host: str,
    server_name: str | None,
    alpn: tuple[str, ...],
    insecure_skip_verify: bool,
    handshake_timeout: float,
) -> SessionStream:
    """The client side of a TLS handshake alone, for streams without nodes; owns the transport.

    Args:
        transport: a connection to the server, before TLS.
        contexts_channel: where the handshake takes its contexts.
        host: what was connected to; canonical.
        server_name: what the server's certificate must cover; None for the manager's, else `host`.
        alpn: protocols to offer.
        insecure_skip_verify: accept any certificate under any name.
        handshake_timeout: for contexts and TLS, seconds.

    Raises:
        HandshakeError: it failed, see its subclasses; the transport is closed.
        CertificateError: the system's CAs are needed to verify it and there are none.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        handshake = Handshake(HandshakeErrors(address=address_of(transport)), scope, handshake_timeout)
        contexts = await _take(transport, contexts_channel, handshake)
        return await client_handshake(
            transport,
            contexts,
            reference=server_name or contexts.client.server_name or canonical_host(host),
            alpn=alpn,
            insecure_skip_verify=insecure_skip_verify,
            decided=handshake.decided,
            errors=handshake.errors,
        )
    raise handshake.given_up()


def reference_name(dial: Dial, contexts: TLSContexts) -> str:
    """What the server's certificate must cover: the route's server name, else the manager's, else the name's host."""
    return dial.server_name or contexts.client.server_name or dial.name.host


async def _take(
    transport: trio.abc.Stream, contexts_channel: trio.abc.ReceiveChannel[TLSContexts], handshake: Handshake
) -> TLSContexts:
    try:
        contexts = await contexts_channel.receive()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    handshake.took(contexts)
    return contexts


@final
class _DialersHello:
    """The dialer's part in one hello."""

    def __init__(
        self, stream: SessionStream, contexts: TLSContexts, party: Party, handshake: Handshake, dial: Dial
    ) -> None:
        self._stream = stream
        self._contexts = contexts
        self._party = party
        self._handshake = handshake
        self._errors = handshake.errors
        self._dial = dial

    async def run(self) -> Link:
        """Send the hello, read the answer, judge it, and confirm, unless that is left to the connection.

        Raises:
            HandshakeError: one side has refused the other, or the conversation failed.
        """
        dial, party = self._dial, self._party
        conversation = Conversation(self._stream, self._handshake)
        proof = self._cookie_proof()
        joining = None if dial.join is None else _Joining(dial.join, self._stream, party)
        await conversation.send(
            wire.Hello(
                versions=list(wire.VERSIONS),
                name=str(party.name),
                incarnation=party.incarnation,
                generation=self._contexts.generation,
                limits=party.limits,
                verified=self._stream.verified,
                replace=dial.replace,
                proof=proof,
                join=None if joining is None else joining.request,
            )
        )
        answer = await conversation.receive(wire.Answer)
        if answer.refusal is not None:
            raise self._errors.rejected_in_hello(answer.refusal.code, answer.refusal.message)
        try:
            peer = self._identify(answer)
            self._check_cookie(answer, proof)
            check_authorized(peer, party, self._handshake)
            mutual = peer.verified and answer.verified
            if joining is not None:
                joining.check(answer, peer, party, mutual=mutual)
            elif mutual:
                await party.arbiter.may_confirm(peer, replace=dial.replace)
        except (PeerUnverifiedError, Conflict) as exc:
            await conversation.refuse(exc, wire.Confirmation)
        confirmation = wire.Confirmation()
        left = joining is not None or (dial.leave_confirmation and not self._stream.has_news)
        if not left:
            await conversation.send(confirmation, last=True)
        return Link(
            stream=self._stream,
            peer=peer,
            dialled=True,
            mutual=mutual,
            replace=dial.replace,
            insecure=dial.insecure_skip_verify,
            cookie=dial.cookie,
            generation=self._contexts.generation,
            peer_generation=answer.generation,
            key_pair_fingerprint=self._contexts.key_pair.fingerprint,
            peer_limits=answer.limits,
            rest=conversation.rest(),
            confirmation=wire.encode_hello(confirmation) if left else b"",
        )

    def _identify(self, answer: wire.Answer) -> Peer:
        if answer.version not in wire.VERSIONS:
            raise self._errors.unverified(
                UnverifiedReason.VERSION,
                f"the acceptor chose the protocol version {answer.version}, we offered {list(wire.VERSIONS)}",
                wanted=str(list(wire.VERSIONS)),
                offered=str(answer.version),
            )
        name, stream = claimed_name(answer.name, self._handshake, self._stream), self._stream
        if name != self._dial.name:
            raise self._errors.unverified(
                UnverifiedReason.CLAIMED_NAME,
                f"we dialled {str(self._dial.name)!r}, but the node there is {str(name)!r}; check host and port of the "
                "route",
                certificate=stream.peer_certificate,
                wanted=str(self._dial.name),
                offered=str(name),
            )
        return established_peer(
            name,
            certificate=stream.peer_certificate,
            verified=stream.verified,
            address=stream.peer_address,
            incarnation=answer.incarnation,
        )

    def _cookie_proof(self) -> bytes:
        cookie, party = self._dial.cookie, self._party
        if cookie is None:
            return b""
        return dialer_proof(
            cookie,
            self._stream,
            dialer=party.name,
            acceptor=self._dial.name,
            incarnation=party.incarnation,
            dialling=True,
        )

    def _check_cookie(self, answer: wire.Answer, proof: bytes) -> None:
        cookie, name = self._dial.cookie, self._dial.name
        if cookie is None:
            return
        expected = acceptor_proof(
            cookie,
            self._stream,
            dialer=self._party.name,
            acceptor=name,
            incarnation=answer.incarnation,
            dialer_incarnation=self._party.incarnation,
            proof=proof,
            dialling=True,
        )
        if not same_proof(expected, answer.proof):
            raise self._errors.unverified(
                UnverifiedReason.COOKIE,
                f"the node {str(name)!r} did not prove that it knows our cookie; give both the same one in their "
                "options",
                certificate=self._stream.peer_certificate,
            )


@final
class _Joining:
    """The dialer's side of a join: what it asks, and what has to be answered."""

    def __init__(self, connection: ConnectionCore, stream: SessionStream, party: Party) -> None:
        connection.hand_over.last_attempt += 1
        peer = connection.peer
        self._connection = connection
        self._prove = partial(
            join_proof,
            connection.link.stream,
            stream,
            connection=connection.link.identifier,
            attempt=connection.hand_over.last_attempt,
            ends=Ends(party.name, party.incarnation, peer.name, peer.incarnation),
            dialling=True,
        )
        proof = self._prove()
        self.request = wire.Join(
            connection=connection.link.identifier, attempt=connection.hand_over.last_attempt, proof=proof
        )

    def check(self, answer: wire.Answer, peer: Peer, party: Party, *, mutual: bool) -> None:
        """Check the acceptor's side.

        Raises:
            Conflict: it is not the peer of the connection.
        """
        party.arbiter.check_same(self._connection, peer, mutual=mutual)
        if not same_proof(self._prove(answers=self.request.proof), answer.join):
            msg = f"{peer.name} did not prove that it has the connection that we want to move"
            raise Conflict(UnverifiedReason.JOIN, peer, msg)
