"""The dialing side of a handshake: connect, contexts, TLS, our hello, the acceptor's answer, our confirmation.

Theory. Contexts are taken from the channel after the TCP connect, afresh for each attempt, and kept. Nothing here knows
of managers.

The dialer verifies the server's certificate and name inside TLS, before its own certificate is sent, then that the
hello claims the name dialled, then the cookie; `authorize` may narrow, never widen.

A link that is to carry a connection that is there goes the same way through all of it, shows the proof (`join`), and
leaves the last message, the confirmation, to the connection, whose commit it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from trionode import _protocol as wire
from trionode._connection.link import Link
from trionode._errors import PeerUnverifiedError, Stage, UnverifiedReason
from trionode._identity.names import NodeName, canonical_host
from trionode._identity.peer import Peer, established_peer
from trionode._tls.handshake import client_handshake
from trionode._transport.sockets import address_of

from .channel_binding import same_proof
from .collisions import Conflict
from .connect import connect
from .cookie import acceptor_proof, dialer_proof
from .exchange import Conversation, Handshake, Party, check_authorized, claimed_name, closing_on_failure
from .join import Ends, join_proof

if TYPE_CHECKING:
    from trionode._connection.connection import Connection
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.stream import TLSStream
    from trionode._transport.interfaces import Transport


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
        handshake = Handshake(address_of(transport), scope)
        contexts = await _take(transport, contexts_channel)
        handshake.took(contexts)
        stream = await client_handshake(
            transport,
            contexts,
            reference=reference_name(dial, contexts),
            node=dial.name,
            alpn=(wire.ALPN,),
            insist_on_alpn=True,
            flush_last_flight=False,  # the hello goes with it
            decided=handshake.decided,
            insecure_skip_verify=dial.insecure_skip_verify,
        )
        handshake.stage = Stage.HELLO
        with party.arbiter.dialling(dial.name) as pending:
            pending.counts = stream.verified and dial.join is None
            hello = _dial_hello(stream, contexts, party, handshake, dial)
            return await closing_on_failure(stream, hello, handshake)
    raise handshake.timed_out(dial.handshake_timeout)


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
        handshake = Handshake(address_of(transport), scope)
        contexts = await _take(transport, contexts_channel)
        handshake.took(contexts)
        return await client_handshake(
            transport,
            contexts,
            reference=server_name or contexts.client.server_name or canonical_host(host),
            alpn=alpn,
            insecure_skip_verify=insecure_skip_verify,
            decided=handshake.decided,
        )
    raise handshake.timed_out(handshake_timeout)


async def _take(transport: trio.abc.Stream, contexts_channel: trio.abc.ReceiveChannel[TLSContexts]) -> TLSContexts:
    try:
        return await contexts_channel.receive()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise


async def _dial_hello(stream: TLSStream, contexts: TLSContexts, party: Party, handshake: Handshake, dial: Dial) -> Link:
    conversation = Conversation(stream, handshake)
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
        raise handshake.rejected(answer.refusal)
    try:
        peer = _judge_acceptor(stream, answer, party, handshake, dial, proof)
        check_authorized(peer, party, handshake)
        mutual = peer.verified and answer.verified
        if joining is not None:
            joining.check(answer, peer, party, mutual=mutual)
        elif mutual:
            await party.arbiter.may_confirm(peer, replace=dial.replace)
    except PeerUnverifiedError as exc:
        await conversation.refuse(exc, wire.Confirmation)
    except Conflict as exc:
        await conversation.refuse(handshake.conflict(exc), wire.Confirmation)
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
        rest=conversation.rest(),
    )


class _Joining:
    """The dialer's side of a join: what it asks, and what it wants to be answered."""

    def __init__(self, connection: Connection, stream: TLSStream, party: Party) -> None:
        connection.last_attempt += 1
        peer = connection.peer
        self._connection = connection
        self._prove = partial(
            join_proof,
            connection.link.stream,
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
    stream: TLSStream, answer: wire.Answer, party: Party, handshake: Handshake, dial: Dial, proof: bytes
) -> Peer:
    if answer.version not in wire.VERSIONS:
        raise handshake.refuse(
            UnverifiedReason.VERSION,
            f"it chose the protocol version {answer.version}, we offered {list(wire.VERSIONS)}",
            wanted=str(list(wire.VERSIONS)),
            offered=str(answer.version),
        )
    name = claimed_name(answer.name, handshake, stream)
    if name != dial.name:
        raise handshake.refuse(
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
            raise handshake.refuse(
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


Connecting: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]


async def dial(
    dial: Dial,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    *,
    reach: Callable[[Connecting], Awaitable[trio.abc.Stream]] | None = None,
) -> Link:
    """One attempt at one route: connect, then the handshake.

    Args:
        dial: what is to be reached.
        contexts_channel: where the handshake takes its contexts.
        party: who we are.
        reach: runs the connecting, and may end it early by an exception of its own.

    Raises:
        HandshakeError: it failed, at whichever stage; see its subclasses.
        CertificateError: the system's CAs are needed and there are none.
    """
    connecting = partial(connect, dial.host, dial.port, connect_timeout=dial.connect_timeout, transport=dial.transport)
    stream = await (connecting() if reach is None else reach(connecting))
    return await dial_link(stream, contexts_channel, party, dial)
