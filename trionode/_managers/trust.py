"""The live links of a manager, and what new trust makes of the peers at their other ends.

Theory. A link was verified once, by the pools and lists of the generation whose contexts its handshake took. When trust
changes, the chains that live peers presented are judged again, by the new pools and lists: a peer that they do not
vouch for is *stranded*: it stays connected if nobody ends it, and could not connect again. Dates play no part in this:
a certificate that expired meanwhile is one whose CA is trusted still.

The ledger keeps a link and a way to end it, nothing else: a chain is read from the TLS session when it is needed. Peers
whom nobody verified are not judged, trust was no reason to let them in.

A handshake that was under way when trust changed becomes a link afterwards, of an older generation. It is judged when
it is attached, by the trust of that moment, and ended if that does not vouch for its peer: so nothing slips through
between the two.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, final

from trio_util import AsyncValue

from trionode._errors import PeerUnverifiedError, Stage, TrionodeError, UnverifiedReason
from trionode._identity.certificate import fingerprint
from trionode._identity.describe import describe_issuer, describe_subject
from trionode._tls.failures import HandshakeErrors
from trionode._tls.judge import Judge
from trionode._tls.verification import refusal_of
from trionode._util.log import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cryptography import x509

    from trionode._credentials.policy import TLSPolicy
    from trionode._identity.names import NodeName
    from trionode._identity.peer import Peer
    from trionode._tls.stream import SessionStream
    from trionode._util.text import Address

__all__ = ["StrandedPeer", "StrandedPeers", "TrustRotationError"]

_log = Log("trionode.security")


class LiveLink(Protocol):
    """What a manager needs to know of a connection's TLS stream."""

    @property
    def generation(self) -> int:
        """Of the contexts that its handshake took."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""

    @property
    def dialled(self) -> bool:
        """Whether this side dialled, so that the root-CA pool judged the peer; else the client-CA pool did."""

    @property
    def stream(self) -> SessionStream:
        """The stream, which knows the peer's chain."""


@final
class StrandedPeers(Enum):
    """What becomes of live peers that new trust does not vouch for. Those that were revoked are ended in any case."""

    REFUSE = "refuse"
    """Publish nothing where it would strand a peer that present trust vouches for; the error names them."""
    KEEP = "keep"
    """Publish; their connections go on, and they cannot connect again. Who they are is logged."""
    CLOSE = "close"
    """Publish, and end their connections."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StrandedPeer:
    """A live peer whose chain does not verify against some trust.

    Attributes:
        name: its node name.
        certificate: its leaf.
        pool: which pool judged it, `client_cas` (it dialled us) or `root_cas` (we dialled it).
        reason: what is wrong: `unknown_ca`, `revoked`, `revocation_unknown`, …
        newly: whether present trust vouches for it.
        generation: of the contexts that its connection's handshake took.
        address: its (host, port), or None where the transport is no socket.
        text: all this as a sentence, with the remedy.
    """

    name: NodeName
    certificate: x509.Certificate
    pool: str
    reason: UnverifiedReason
    newly: bool
    generation: int
    address: Address | None
    text: str

    @property
    def subject(self) -> str:
        """The leaf's subject (RFC 4514)."""
        return describe_subject(self.certificate)

    @property
    def issuer(self) -> str:
        """The leaf's issuer (RFC 4514)."""
        return describe_issuer(self.certificate)

    @property
    def revoked(self) -> bool:
        """Whether it is on a list."""
        return self.reason is UnverifiedReason.REVOKED

    def __str__(self) -> str:
        """Name, subject, issuer, pool and reason in a few words."""
        return f"{self.name} ({self.subject}, issued by {self.issuer}; {self.pool}: {self.reason.replace('_', ' ')})"


@final
class TrustRotationError(TrionodeError):
    """New trust would strand live peers, so it was not published; the text names them."""

    def __init__(self, message: str, *, peers: Sequence[StrandedPeer]) -> None:
        super().__init__(message)
        self._peers: tuple[StrandedPeer, ...] | None = tuple(peers)

    @property
    def peers(self) -> tuple[StrandedPeer, ...]:
        """Who they are, and what is wrong with each; none in a copy that was pickled."""
        return self._peers or ()


@final
class LiveLinks:
    """One manager's ledger."""

    def __init__(self) -> None:
        # By identity: nothing is known of how a link compares.
        self._links: dict[int, tuple[LiveLink, Callable[[PeerUnverifiedError], None]]] = {}
        self._generations: Counter[int] = Counter()
        self._oldest: AsyncValue[float] = AsyncValue(math.inf)

    def add(self, link: LiveLink, end: Callable[[PeerUnverifiedError], None]) -> None:
        """Enter a link; once more changes only how it is ended."""
        if id(link) not in self._links:
            self._count(link.generation, 1)
        self._links[id(link)] = link, end

    def remove(self, link: LiveLink) -> None:
        """Strike a link out; nothing happens if it is not there."""
        if self._links.pop(id(link), None) is not None:
            self._count(link.generation, -1)

    def _count(self, generation: int, change: int) -> None:
        self._generations[generation] += change
        if not self._generations[generation]:
            del self._generations[generation]
        self._oldest.value = min(self._generations, default=math.inf)

    @property
    def generations(self) -> Mapping[int, int]:
        """How many links there are of each generation that has any."""
        return dict(self._generations)

    async def drained(self, generation: int) -> None:
        """Wait until there is no link of this generation or an older one."""
        while self._oldest.value <= generation:  # again: one that was under way may have come since it woke us
            await self._oldest.wait_value(lambda oldest: oldest > generation)

    def stranded(
        self, policy: TLSPolicy, present: TLSPolicy
    ) -> Iterator[tuple[StrandedPeer, Callable[[PeerUnverifiedError], None]]]:
        """The peers that a policy does not vouch for, each with the way to end it."""
        bench, today = Bench(policy), Bench(present)
        for link, end in tuple(self._links.values()):
            refusal = bench.judge(link)
            if refusal is not None:
                yield stranded_peer(link, refusal, newly=today.judge(link) is None), end


@final
class Bench:
    """Judges links by one policy; each chain once."""

    def __init__(self, policy: TLSPolicy) -> None:
        self._policy = policy
        self._judges: dict[bool, Judge] = {}
        self._verdicts: dict[tuple[bool, tuple[str, ...]], PeerUnverifiedError | None] = {}

    def judge(self, link: LiveLink) -> PeerUnverifiedError | None:
        """What is said against a link's peer now; None also where nobody verified it in the first place."""
        if not link.peer.verified:
            return None
        try:
            chain = link.stream.peer_chain
            key = link.dialled, tuple(map(fingerprint, chain))
            if key not in self._verdicts:
                self._verdicts[key] = refusal_of(self._judge(link.dialled), chain, dated=False)
            return self._verdicts[key]
        except Exception as exc:  # noqa: BLE001 -- fail closed, and no peer may make a rotation fail by what it sent
            return HandshakeErrors().unverified(
                UnverifiedReason.BAD_CHAIN,
                f"the chain cannot be examined ({type(exc).__name__}); have it issued anew",
                certificate=link.peer.certificate,
            )

    def _judge(self, dialled: bool) -> Judge:  # noqa: FBT001 -- private, and a key
        if dialled not in self._judges:
            self._judges[dialled] = Judge(self._policy, accepting=not dialled)
        return self._judges[dialled]


def stranded_peer(link: LiveLink, refusal: PeerUnverifiedError, *, newly: bool) -> StrandedPeer:
    """What a refusal of a live peer tells."""
    certificate = link.peer.certificate
    assert certificate is not None  # it was verified
    return StrandedPeer(
        name=link.peer.name,
        certificate=certificate,
        pool="root_cas" if link.dialled else "client_cas",
        reason=refusal.reason,
        newly=newly,
        generation=link.generation,
        address=link.peer.address,
        text=f"{link.peer.name}: {refusal}",
    )


def stranded_error(peer: StrandedPeer) -> PeerUnverifiedError:
    """What the connection of a stranded peer ends with."""
    return PeerUnverifiedError(
        f"peer no longer trusted: {peer.text}",
        stage=Stage.TLS,
        reason=peer.reason,
        address=peer.address,
        generation=peer.generation,
        certificate=peer.certificate,
    )
