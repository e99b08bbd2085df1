"""The live links of a manager, and whether their peers would still be accepted under new trust.

Theory. *Trust* is the CA pools and revocation lists of a manager. A link was verified once, by the trust of the
generation whose contexts its handshake took. When trust changes, the chains that live peers presented are verified
again, by the new pools and lists. A peer whose chain does not verify is *stranded*: its connection goes on until it is
ended, and it could not connect again. Dates play no part in this: the CA of a certificate that has expired meanwhile is
still trusted.

What holds for links holds for the streams of servers, too: their clients have no node name, and what becomes of those
that are stranded is the server's choice.

The ledger keeps a link and a function that ends it, nothing else; a chain is read from the TLS session when it is
needed. Peers that were admitted without verification are not judged: trust was not why they were let in.

A handshake that was in progress when trust changed gives a link of an older generation afterwards. It is judged by
present trust when it is attached, and ended if its peer is stranded; so no link escapes judgement.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

from trio_util import AsyncValue

from trionode._errors import PeerUnverifiedError, Stage, TrionodeError, UnverifiedReason
from trionode._identity.certificate import fingerprint
from trionode._identity.describe import describe_issuer, describe_subject
from trionode._tls.failures import HandshakeErrors
from trionode._tls.judge import Judge
from trionode._tls.verification import refusal_of
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.log import Log
from trionode._util.text import Address, at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cryptography import x509

    from trionode._credentials.policy import TLSPolicy
    from trionode._identity.names import NodeName
    from trionode._tls.stream import SessionStream

__all__ = ["StrandedPeer", "StrandedPeers", "TrustRotationError"]

_log = Log("trionode.security")


class LivePeer(Protocol):
    """What a manager needs to know of what is at the other end: a `Peer` has it."""

    @property
    def name(self) -> NodeName | None:
        """Its node name; None for the client of a server, which has none."""

    @property
    def certificate(self) -> x509.Certificate | None:
        """Its leaf, or None if it sent none."""

    @property
    def verified(self) -> bool:
        """Whether this side verified it."""

    @property
    def address(self) -> Address | None:
        """Its (host, port), or None where the transport does not know it."""


class LiveLink(Protocol):
    """What a manager needs to know of a TLS stream that is in use."""

    @property
    def generation(self) -> int:
        """The generation of the contexts that its handshake took."""

    @property
    def peer(self) -> LivePeer:
        """What is at the other end."""

    @property
    def dialled(self) -> bool:
        """Whether this side dialled, so that the root-CA pool judged the peer; else the client-CA pool did."""

    @property
    def stream(self) -> SessionStream:
        """The stream, which knows the peer's chain."""


@final
class StrandedPeers(Enum):
    """What becomes of live peers whose chains do not verify under new trust; revoked peers are always disconnected."""

    REFUSE = "refuse"
    """Publish nothing if a peer that present trust accepts would be stranded; the error names those peers."""
    KEEP = "keep"
    """Publish. Their connections go on, and they cannot connect again. They are named in the log."""
    CLOSE = "close"
    """Publish, and end their connections."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StrandedPeer:
    """A live peer whose chain does not verify against some trust.

    Attributes:
        name: its node name, or None for the client of a server.
        certificate: its leaf.
        pool: which pool judged it, `client_cas` (it dialled us) or `root_cas` (we dialled it).
        reason: what is wrong: `unknown_ca`, `revoked`, `revocation_unknown`, …
        newly: whether present trust still accepts it.
        generation: of the contexts that its connection's handshake took.
        address: its (host, port), or None where the transport does not know it.
        text: the same as a sentence, with the remedy.
    """

    name: NodeName | None
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
        """Whether a certificate of its chain is on a revocation list."""
        return self.reason is UnverifiedReason.REVOKED

    def __str__(self) -> str:
        """Name, subject, issuer, pool and reason in a few words."""
        why = f"{self.pool}: {self.reason.replace('_', ' ')}"
        return f"{self.name or 'a client'} ({self.subject}, issued by {self.issuer}; {why})"


@final
class TrustRotationError(TrionodeError):
    """New trust would strand live peers, so it was not published; the text names them."""

    def __init__(self, message: str, *, peers: Sequence[StrandedPeer]) -> None:
        super().__init__(message)
        self._peers: tuple[StrandedPeer, ...] | None = tuple(peers)

    @property
    def peers(self) -> tuple[StrandedPeer, ...]:
        """The peers, and what is wrong with each; none in a copy that was pickled."""
        return self._peers or ()


@final
class LiveEntry(NamedTuple):
    """A link in the ledger.

    Attributes:
        link: itself.
        end: ends it, synchronously, with the reason.
        stranded: what becomes of it where its peer is stranded; None: what the rotation of trust says.
    """

    link: LiveLink
    end: Callable[[PeerUnverifiedError], None]
    stranded: StrandedPeers | None = None


@interrupted_at_checkpoints
@final
class LiveLinks:
    """One manager's ledger."""

    def __init__(self) -> None:
        # By identity: links need not be hashable.
        self._links: dict[int, LiveEntry] = {}
        self._generations: Counter[int] = Counter()
        self._oldest: AsyncValue[float] = AsyncValue(math.inf)

    def add(self, entry: LiveEntry) -> None:
        """Enter a link. Entered again, it only gets another function that ends it."""
        link = entry.link
        if id(link) not in self._links:
            self._count(link.generation, 1)
        self._links[id(link)] = entry

    def remove(self, link: LiveLink) -> None:
        """Remove a link; nothing happens if it is not there."""
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
        while self._oldest.value <= generation:  # in a loop: another may have been attached since the wake-up
            await self._oldest.wait_value(lambda oldest: oldest > generation)

    def stranded(self, policy: TLSPolicy, present: TLSPolicy) -> Iterator[tuple[StrandedPeer, LiveEntry]]:
        """The peers that would be stranded under a policy, each with its entry."""
        bench, today = Bench(policy), Bench(present)
        for entry in tuple(self._links.values()):
            refusal = bench.judge(entry.link)
            if refusal is not None:
                yield stranded_peer(entry.link, refusal, newly=today.judge(entry.link) is None), entry


@final
class Bench:
    """Judges links by one policy; verifies each chain once."""

    def __init__(self, policy: TLSPolicy) -> None:
        self._policy = policy
        self._judges: dict[bool, Judge] = {}
        self._verdicts: dict[tuple[bool, tuple[str, ...]], PeerUnverifiedError | None] = {}

    def judge(self, link: LiveLink) -> PeerUnverifiedError | None:
        """Why a link's peer is stranded under the policy; None if it is not, or if it was never verified."""
        if not link.peer.verified:
            return None
        try:
            chain = link.stream.session.peer_chain
            key = link.dialled, tuple(map(fingerprint, chain))
            if key not in self._verdicts:
                self._verdicts[key] = refusal_of(self._judge(link.dialled), chain, dated=False)
            return self._verdicts[key]
        except Exception as exc:  # noqa: BLE001 -- fail closed; and what a peer has sent must not make a rotation fail
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
    """The `StrandedPeer` for a refusal of a live peer."""
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
        text=f"{link.peer.name or f'a client{at(link.peer.address)}'}: {refusal}",
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
