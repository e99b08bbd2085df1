"""The hello: its three messages, and what both sides do with them.

Theory. Right after TLS the dialer sends its hello, the acceptor answers with its own and its verdict, and the dialer
confirms or refuses. Only when both have accepted does either side have a link. What each side judges, and in which
order, is in `accept` and `dial`; here is what they share: what a node says of itself (`Party`), one handshake as far as
it has come (`Handshake`), and the exchange of messages (`Conversation`).

A refusal travels: by alert from TLS, by code and sentence from the hello. The refusing side half-closes, reads on for a
bounded time and closes, so that the words arrive; the refused side reads before it reports. Everything is bounded by
one deadline, and on every way out but success the transport is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, TypeVar, final

import trio

from trionode import _protocol as wire
from trionode._errors import (
    HandshakeError,
    HandshakeReason,
    HandshakeTimeoutError,
    PeerRejectedError,
    PeerUnverifiedError,
    Refused,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._identity.describe import describe
from trionode._identity.names import NodeName
from trionode._tls.handshake import drain_and_close
from trionode._util.log import Log
from trionode._util.rate_limited_log import FloodGate
from trionode._util.text import Address, at, printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cryptography import x509

    from trionode._connection.connection import Connection
    from trionode._identity.peer import Peer
    from trionode._tls.contexts import TLSContexts
    from trionode._tls.stream import TLSStream

    from .admission import Progress, Ticket
    from .collisions import Arbiter, Conflict

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


@dataclass(slots=True)
class Handshake:
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

    def broken(self, reason: HandshakeReason, text: str, cause: Exception) -> HandshakeError:
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
            return self.broken(HandshakeReason.SHED, text, too_many)
        if self.joins is not None:
            ended = trio.BrokenResourceError("the connection ended, or a later link joined it")
            return self.broken(
                HandshakeReason.SUPERSEDED, "was about to join a connection here, but that is gone", ended
            )
        return HandshakeTimeoutError(
            f"the handshake with the peer{self.where} did not finish within handshake_timeout ({seconds:g} s); it "
            f"had reached the stage {self.stage.value!r}",
            stage=self.stage,
            reason=HandshakeReason.TIMEOUT,
            address=self.address,
            generation=self.generation,
        )


async def closing_on_failure(stream: TLSStream, exchange: Awaitable[T], handshake: Handshake) -> T:
    try:
        return await exchange
    except PeerUnverifiedError:
        handshake.decided()
        await drain_and_close(stream)  # noqa: ASYNC120 -- a cancellation that comes meanwhile is the news then
        raise
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def claimed_name(text: str, handshake: Handshake, stream: TLSStream) -> NodeName:
    try:
        return NodeName.parse(text)
    except ValueError as exc:
        raise handshake.refuse(
            UnverifiedReason.CLAIMED_NAME,
            f"it claims a name that is none: {exc}",
            certificate=stream.peer_certificate,
            offered=printable(text),
        ) from None


def check_authorized(peer: Peer, party: Party, handshake: Handshake) -> None:
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
        raise handshake.refuse(
            UnverifiedReason.NOT_AUTHORIZED,
            f"the node {str(peer.name)!r} was refused by authorize: {words}",
            certificate=peer.certificate,
            offered=str(peer.name),
        ) from exc


class Conversation:
    """The hello's three messages over one stream: sending, receiving, and what goes wrong with either."""

    def __init__(self, stream: TLSStream, handshake: Handshake) -> None:
        self._stream = stream
        self._handshake = handshake
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
                raise self._handshake.broken(
                    HandshakeReason.BROKEN, f"broke the connection in the hello: {exc}", exc
                ) from exc

    async def receive(self, kind: type[T]) -> T:
        handshake = self._handshake
        try:
            while (message := self._reader.next(kind)) is None:
                data = await self._stream.receive_some(wire.MAX_HELLO)
                if not data:
                    raise handshake.broken(
                        HandshakeReason.CLOSED,
                        "closed the connection in the middle of the hello; its log may say why",
                        trio.BrokenResourceError("end of stream in the hello"),
                    )
                self._reader.feed(data)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, PeerRejectedError):
                raise exc.__cause__ from None
            raise handshake.broken(HandshakeReason.BROKEN, f"broke the connection in the hello: {exc}", exc) from exc
        except RemoteProtocolError as exc:
            raise handshake.broken(HandshakeReason.PROTOCOL, f"does not speak the node protocol: {exc}", exc) from exc
        return message

    def rest(self) -> bytes:
        return self._reader.rest()

    async def refuse(self, error: PeerUnverifiedError, kind: type[wire.Answer | wire.Confirmation]) -> NoReturn:
        """Tell the peer, as far as it may know, then raise."""
        cause = error.__cause__
        if error.reason is UnverifiedReason.NOT_AUTHORIZED:
            words = str(cause) if isinstance(cause, Refused) else "authorize refused"
        else:
            words = str(error).removeprefix(f"peer{self._handshake.where}: ")  # its own address is no news to it
        refusal = wire.Refusal(code=error.reason, message=wire.text(words))
        await self.send(kind(refusal=refusal))
        raise error from cause
