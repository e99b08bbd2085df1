"""The accepting side of a handshake: first bytes, contexts, TLS, the dialer's hello, our answer, its confirmation.

Theory. Contexts are taken from the channel once the client's first bytes are there (a silent client costs no TLS state
and gets no soon-stale context), and kept. Nothing here knows of managers.

The acceptor verifies the client's certificate inside TLS, then that it speaks for the node name that the hello claims
(`bind_names`), then the cookie; `authorize` may narrow, never widen.

A link that is to carry a connection that is there (`join`) goes the same way through all of it; only instead of
competing it shows the proof. Having let it in, the acceptor waits for the confirmation, which is the dialer's commit,
without a timer of its own: one that ran out while the confirmation was under way would break a connection that is well.
The dialer's deadline, the link's end and the connection's end bound the wait, and each connection has one at most.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from trionode import _protocol as wire
from trionode._connection.link import Link
from trionode._errors import HandshakeReason, PeerUnverifiedError, Stage, UnverifiedReason
from trionode._identity.describe import describe, describe_names
from trionode._identity.names import SubjectNames
from trionode._identity.peer import Peer, established_peer
from trionode._tls.handshake import server_handshake
from trionode._transport.sockets import address_of, receive

from .admission import Progress, Ticket
from .channel_binding import same_proof
from .collisions import Conflict
from .cookie import acceptor_proof, dialer_proof
from .exchange import Conversation, Handshake, Party, check_authorized, claimed_name, closing_on_failure
from .join import Ends, join_proof

if TYPE_CHECKING:
    from trionode._connection.connection import Connection
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.stream import TLSStream


#: A client's first flight has a few hundred bytes (1.7 KiB with a post-quantum key share): one read is enough.
_FIRST_READ: Final = 16 * 1024


class Joined(NamedTuple):
    """What a new link joins.

    Attributes:
        connection: the one that it is to carry.
        follows: the link that this was on when the dialer's proof was checked.
    """

    connection: Connection
    follows: Link


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
        handshake = Handshake(address_of(transport), scope, ticket=ticket)
        return (await _accept_tls(transport, contexts_channel, alpn, handshake))[0]
    raise handshake.timed_out(handshake_timeout)


async def accept_link(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    party: Party,
    *,
    bind_names: bool,
    handshake_timeout: float,
    ticket: Ticket | None = None,
) -> tuple[Link, Joined | None]:
    """The accepting side of a node's handshake; owns the transport.

    Returns:
        The link, and what it joins where it is to carry a connection that is there.

    Raises:
        PeerUnverifiedError: we refused the dialler.
        PeerRejectedError: it refused us.
        HandshakeTimeoutError: it took longer than `handshake_timeout` seconds from the accept.
        HandshakeError: it broke off, or spoke something else.
    """
    with trio.move_on_after(handshake_timeout) as scope:
        handshake = Handshake(address_of(transport), scope, ticket=ticket)
        stream, contexts = await _accept_tls(transport, contexts_channel, (wire.ALPN,), handshake)
        handshake.stage = Stage.HELLO
        handshake.reached(Progress.HELLO)
        hello = _accept_hello(stream, contexts, party, handshake, bind_names=bind_names)
        return await closing_on_failure(stream, hello, handshake)
    raise handshake.timed_out(handshake_timeout)


async def _accept_tls(
    transport: trio.abc.Stream,
    contexts_channel: trio.abc.ReceiveChannel[TLSContexts],
    alpn: tuple[str, ...],
    handshake: Handshake,
) -> tuple[TLSStream, TLSContexts]:
    try:
        first = await receive(transport, _FIRST_READ)
        if not first:
            raise handshake.broken(
                HandshakeReason.SILENT, "connected and left without a byte", trio.BrokenResourceError("no bytes")
            )
        contexts = await contexts_channel.receive()
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(transport)
        raise handshake.broken(HandshakeReason.SILENT, "broke the connection before its first byte", exc) from exc
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    handshake.took(contexts)
    stream = await server_handshake(
        transport,
        contexts,
        received=first,
        alpn=alpn,
        decided=handshake.decided,
        greeted=lambda: handshake.reached(Progress.TLS),
    )
    return stream, contexts


async def _accept_hello(
    stream: TLSStream, contexts: TLSContexts, party: Party, handshake: Handshake, *, bind_names: bool
) -> tuple[Link, Joined | None]:
    conversation = Conversation(stream, handshake)
    hello = await conversation.receive(wire.Hello)
    with ExitStack() as reservation:
        try:
            version = _common_version(hello, party, handshake)
            peer = _judge_dialler(stream, hello, party, handshake, bind_names=bind_names)
            proof = _answer_cookie(stream, hello, peer, party, handshake)
            mutual = peer.verified and hello.verified
            joined, join_proof_of_ours = None, b""
            if hello.join is not None:
                joined, join_proof_of_ours = await _judge_join(stream, hello.join, peer, party, mutual=mutual)
            check_authorized(peer, party, handshake)
            if joined is not None:
                pass
            elif mutual:
                reservation.enter_context(await party.arbiter.promise(peer, replace=hello.replace))
            elif peer.verified:
                await party.arbiter.check_incarnation(peer)
        except PeerUnverifiedError as exc:
            await conversation.refuse(exc, wire.Answer)
        except Conflict as exc:
            await conversation.refuse(handshake.conflict(exc), wire.Answer)
        if joined is not None:  # announced before it is let in: the dialer may commit before our send returns
            handshake.joins = joined.connection
            handshake.decided()
            reservation.enter_context(joined.connection.joining(handshake.scope))
        await conversation.send(
            wire.Answer(
                version=version,
                name=str(party.name),
                incarnation=party.incarnation,
                generation=contexts.generation,
                limits=party.limits,
                verified=peer.verified,
                proof=proof,
                join=join_proof_of_ours,
            )
        )
        confirmation = await conversation.receive(wire.Confirmation)
        if confirmation.refusal is not None:
            raise handshake.rejected(confirmation.refusal)
    # The name stays reserved up to here; the link is registered before anybody else runs.
    link = Link(
        stream=stream,
        peer=peer,
        dialled=False,
        mutual=mutual,
        replace=hello.replace,
        generation=contexts.generation,
        peer_generation=hello.generation,
        key_pair_fingerprint=contexts.key_pair.fingerprint,
        peer_limits=hello.limits,
        acceptor=party,
        rest=conversation.rest(),
    )
    return link, joined


async def _judge_join(
    stream: TLSStream, join: wire.Join, peer: Peer, party: Party, *, mutual: bool
) -> tuple[Joined, bytes]:
    """What the new link joins, and our proof in answer to the dialer's."""
    connection = party.arbiter.joined(join.connection, peer, acceptor=party)
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
    return Joined(connection, link), prove(answers=join.proof)


def _common_version(hello: wire.Hello, party: Party, handshake: Handshake) -> int:
    refusal = party.refuse_all()
    if refusal is not None:
        raise handshake.refuse(UnverifiedReason(refusal.code), refusal.message)
    version = max(set(hello.versions) & set(wire.VERSIONS), default=0)
    if not version:
        raise handshake.refuse(
            UnverifiedReason.VERSION,
            f"it speaks the protocol versions {hello.versions}, we speak {list(wire.VERSIONS)}; upgrade the older",
            wanted=str(list(wire.VERSIONS)),
            offered=str(hello.versions),
        )
    return version


def _answer_cookie(stream: TLSStream, hello: wire.Hello, peer: Peer, party: Party, handshake: Handshake) -> bytes:
    """Check the dialer's proof, and only then make ours."""
    cookie = party.cookie
    if cookie is None:
        return b""
    expected = dialer_proof(
        cookie, stream, dialer=peer.name, acceptor=party.name, incarnation=hello.incarnation, dialling=False
    )
    if not same_proof(expected, hello.proof):
        what = "shows no cookie, and this acceptor wants one" if not hello.proof else "has another cookie than we have"
        raise handshake.refuse(
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
    stream: TLSStream, hello: wire.Hello, party: Party, handshake: Handshake, *, bind_names: bool
) -> Peer:
    name = claimed_name(hello.name, handshake, stream)
    certificate = stream.peer_certificate
    if name == party.name:
        raise handshake.refuse(
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
            raise handshake.refuse(
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
