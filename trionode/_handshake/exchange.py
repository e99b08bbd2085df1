"""The hello: its three messages, and what both sides do with them.

Theory. Right after TLS the dialer sends its hello, the acceptor answers with its own and its verdict, and the dialer
confirms or refuses. Only when both have accepted does either side have a link. What each side judges, and in which
order, is in `accept` and `dial`; here is what they share: what a node says of itself (`Party`), one handshake as far as
it has come (`Handshake`), and the exchange of messages (`Conversation`).

A handshake ends in one of six ways. In all but the first the transport is closed.

1. *Established.* Both sides have accepted; the stream is the link's.
2. *We refuse the peer* (`PeerUnverifiedError`). The reason travels: from TLS as an alert, from the hello as code and
   sentence. The refusing side then half-closes and reads on for a bounded time before it closes: closing with unread
   bytes would send a TCP reset, which may overtake the reason. From the verdict on the handshake's deadline no longer
   counts, or a refusal that takes its time would be reported as a timeout.
3. *The peer refuses us* (`PeerRejectedError`). It may do so while we are sending, and our send then fails: so the
   refused side reads before it reports. In TLS 1.3 a client has finished before the server judges its certificate, so
   its alert arrives where an answer is expected.
4. *Neither judges the other* (`HandshakeError`). The peer broke off, or does not speak the protocol.
5. *This node gives it up.* The deadline passed (`HandshakeTimeoutError`); it was shed, because there were too many
   (`admission`); or it was let in to carry a connection that has ended, or that a later link joined.
6. *Cancelled from outside*, or an error of our own: it propagates.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn, TypeVar, final

import trio

from trionode import _protocol as wire
from trionode._errors import (
    HandshakeError,
    HandshakeReason,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._identity.names import NodeName
from trionode._tls.handshake import drain_and_close
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import printable, said

from .collisions import Conflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trionode._connection.core import ConnectionCore
    from trionode._identity.peer import Peer
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.failures import HandshakeErrors
    from trionode._tls.stream import SessionStream

    from .admission import Progress, Ticket
    from .collisions import Arbiter

_log = Log("trionode.security")

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
        authorize: asked about every peer that has passed verification, name and cookie; raises to refuse.
        refuse_all: asked first; a reason here refuses every peer (shutting down).
        flood: where failures of `authorize` are logged.
    """

    name: NodeName
    incarnation: int
    limits: wire.Limits
    arbiter: Arbiter
    cookie: bytes | None = field(default=None, repr=False)
    authorize: Callable[[Peer], None] | None = None
    refuse_all: Callable[[], wire.Refusal | None] = lambda: None
    flood: RateLimitedLog = field(default_factory=lambda: RateLimitedLog(_log, "failures of authorize"), repr=False)


@final
@dataclass(slots=True)
class Handshake:
    """One handshake under way: what its errors say, and what may end it early.

    Attributes:
        errors: builds its errors.
        scope: around all of it, or around its last stage, with its deadline.
        seconds: how long it may take.
        ticket: its place among the handshakes that acceptors have under way; None for a dial.
        on_taken: called when it has taken its contexts.
        joins: the connection that it was let in to carry, once it was.
    """

    errors: HandshakeErrors
    scope: trio.CancelScope
    seconds: float
    ticket: Ticket | None = None
    on_taken: Callable[[], None] = lambda: None
    joins: ConnectionCore | None = None

    def __post_init__(self) -> None:
        if self.ticket is not None:
            self.ticket.begin(self.scope)

    def took(self, contexts: TLSContexts) -> None:
        """It has taken its contexts."""
        self.on_taken()
        certificate = contexts.key_pair.certificate
        self.errors = replace(self.errors, generation=contexts.generation, presented=certificate)

    def reached(self, progress: Progress) -> None:
        """It has come further: the next to be shed are others."""
        if self.ticket is not None:
            self.ticket.progress = progress

    def finished_tls(self) -> None:
        """TLS is done, the hello begins."""
        self.errors = self.errors.at_stage(Stage.HELLO)

    def decided(self) -> None:
        """There is a verdict: what is left is bounded by other means, and the deadline must not make it a timeout."""
        self.scope.deadline = math.inf

    @contextmanager
    def last_stage(self) -> Iterator[trio.CancelScope]:
        """A scope for what is left of it, in place of the present one: what is to be given up ends there."""
        with trio.CancelScope(deadline=self.scope.deadline) as scope:
            self.decided()
            self.scope = scope
            if self.ticket is not None:
                self.ticket.begin(scope)
            yield scope

    def given_up(self) -> HandshakeError:
        """What it fails with after its scope was cancelled."""
        errors, stage = self.errors, self.errors.stage.value
        if self.ticket is not None and self.ticket.shed:
            text = (
                f"{errors.peer} had one unfinished handshake too many here (max_handshakes, "
                f"max_handshakes_per_address): at the limit, the oldest in the earliest stage is shed (stage {stage!r})"
            )
            return errors.failed(HandshakeReason.SHED, text, trio.BrokenResourceError("too many handshakes at once"))
        if self.joins is not None:
            text = f"{errors.peer} was about to join a connection here, but that is gone"
            cause = trio.BrokenResourceError("the connection ended, or a later link joined it")
            return errors.failed(HandshakeReason.SUPERSEDED, text, cause)
        return errors.timed_out(
            f"the handshake with {errors.peer} did not finish within handshake_timeout ({self.seconds:g} s); it "
            f"had reached the stage {stage!r}"
        )


async def closing_on_failure(
    stream: SessionStream, handshake: Handshake, conversation: Callable[[], Awaitable[T]]
) -> T:
    """Have a conversation, and close the stream where it fails; after a refusal of ours, so that the peer reads why.

    Args:
        stream: owned, where it fails.
        handshake: the one under way.
        conversation: async, without arguments.
    """
    try:
        return await conversation()
    except PeerUnverifiedError:
        handshake.decided()
        await drain_and_close(stream)  # noqa: ASYNC120 -- a cancellation that comes meanwhile matters more
        raise
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def claimed_name(text: str, handshake: Handshake, stream: SessionStream) -> NodeName:
    """The node name that the peer claims.

    Raises:
        PeerUnverifiedError: it is not one.
    """
    try:
        return NodeName.parse(text)
    except ValueError as exc:
        raise handshake.errors.unverified(
            UnverifiedReason.CLAIMED_NAME,
            f"what the peer claims as its node name is not one: {exc}",
            certificate=stream.peer_certificate,
            offered=printable(text),
        ) from None


def check_authorized(peer: Peer, party: Party, handshake: Handshake) -> None:
    """Ask `authorize`, if there is one; whatever it raises refuses the peer.

    Raises:
        PeerUnverifiedError: it refuses.
    """
    if party.authorize is None:
        return
    try:
        # Typed as returning None; a program that returns False or a coroutine instead must not let every peer in.
        verdict: object = party.authorize(peer)
        if verdict is not None:
            msg = f"authorize must return None or raise, it returned {type(verdict).__name__}"
            raise TypeError(msg)
    except Exception as exc:
        if not isinstance(exc, Refused):
            party.flood.warning(
                "authorize failed for %s, which refuses it", peer.name, exc_info=exc, node=party.name, peer=peer
            )
        words = said(exc) if isinstance(exc, Refused) else f"authorize raised {type(exc).__name__}"
        raise handshake.errors.unverified(
            UnverifiedReason.NOT_AUTHORIZED,
            f"the node {str(peer.name)!r} was refused by authorize: {words}",
            certificate=peer.certificate,
            offered=str(peer.name),
        ) from exc


@final
class Conversation:
    """The hello's three messages over one stream: sending, receiving, and what goes wrong with either."""

    def __init__(self, stream: SessionStream, handshake: Handshake) -> None:
        self._stream = stream
        self._handshake = handshake
        self._reader = wire.HelloReader()

    async def send(self, message: wire.Hello | wire.Answer | wire.Confirmation, *, last: bool = False) -> None:
        """Send a message. Where that fails and an answer is due, nothing is raised: reading the answer says why.

        Args:
            message: the message.
            last: whether no answer is due. It is sent with a checkpoint: a peer in this process reads it before the
                dialer goes on.

        Raises:
            PeerRejectedError: it is the last, and the peer has refused us.
            HandshakeError: it is the last, and the connection broke.
        """
        data = wire.encode_hello(message)
        try:
            if last or not self._stream.send_at_once(data):
                await self._stream.send_all(data)
            elif self._stream.unsent:
                await self._stream.send_all(b"")
        except trio.BrokenResourceError as exc:
            if last:  # the alert that says why may have arrived, though our own send met an EPIPE
                await self.receive(wire.Confirmation)  # noqa: ASYNC120 -- a cancellation meanwhile matters more
                raise self._broken(exc) from exc

    async def receive(self, kind: type[T]) -> T:
        """Receive the next message.

        Raises:
            PeerRejectedError: the peer has refused us, by a TLS alert.
            HandshakeError: it closed or broke the connection, or does not speak the protocol.
        """
        errors = self._handshake.errors
        try:
            while (message := self._reader.next(kind)) is None:
                # What came with the last flight is there already: no scheduler tick for it.
                data = await self._stream.receive_some(wire.MAX_HELLO, yielding=False)
                if not data:
                    text = f"{errors.peer} closed the connection in the middle of the hello; its log may say why"
                    cause = trio.BrokenResourceError("end of stream in the hello")
                    raise errors.failed(HandshakeReason.CLOSED, text, cause)
                self._reader.feed(data)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, PeerRejectedError):
                raise exc.__cause__ from None
            raise self._broken(exc) from exc
        except RemoteProtocolError as exc:
            text = f"{errors.peer} does not speak the node protocol: {exc}"
            raise errors.failed(HandshakeReason.PROTOCOL, text, exc) from exc
        return message

    def _broken(self, exc: trio.BrokenResourceError) -> HandshakeError:
        errors = self._handshake.errors
        return errors.failed(HandshakeReason.BROKEN, f"{errors.peer} broke the connection in the hello: {exc}", exc)

    def rest(self) -> bytes:
        """What came behind the last message."""
        return self._reader.rest()

    async def refuse(
        self, verdict: PeerUnverifiedError | Conflict, kind: type[wire.Answer | wire.Confirmation]
    ) -> NoReturn:
        """Tell the peer that it is refused, as far as it may know why, then raise.

        Args:
            verdict: why.
            kind: the message to tell it with.

        Raises:
            PeerUnverifiedError: always.
        """
        errors, cause = self._handshake.errors, verdict.__cause__
        if isinstance(verdict, Conflict):
            peer = verdict.peer
            error = errors.unverified(
                verdict.reason, str(verdict), certificate=peer.certificate, offered=str(peer.name)
            )
        else:
            error = verdict
        if error.reason is UnverifiedReason.NOT_AUTHORIZED:
            words = said(cause) if isinstance(cause, Refused) else "authorize refused"
        else:
            words = str(error).removeprefix(errors.prefix)  # its own address is no news to it
        await self.send(kind(refusal=wire.Refusal(code=error.reason, message=wire.text(words))))
        raise error from cause
