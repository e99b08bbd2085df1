"""Build, check, publish: what a cert manager does.

Theory. A publisher turns key pair + CA pools + policy into `TLSContexts` and publishes them on its channel. An update
is synchronous: check, build, publish, in that order, so a failing one leaves what was published as it was, and the
rule of rotation holds: *a `receive()` called after `update()` returned never yields an older generation*.

Trust rotates apart from key pairs, by `rotate_trust`: other pools, other CRLs, the same key pair, the next generation.
The publisher knows its live links (`attach`, `detach`), so it can tell beforehand which peers that would strand, and
end their connections. An *overlap* is a pool with the old and the new CA; *retiring* the old one
is the call that gives the new one alone.

A *use* is an open node, a running `serve_tls`, an `open_tls_stream` handshake. While there is one, CA pools,
client-auth mode and server name are fixed, and the manager belongs to the Trio run that uses it, see `ownership`.

Applications hold a `CertManager` or `CertAuthManager`, the public sides of a publisher; nodes, streams, followers and
the test kit get at it by `manager.publisher_of`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias, final

import trio
from trio_util import AsyncValue

from trionode._credentials.key_pair import KeyPair
from trionode._credentials.revocation import keep_newer
from trionode._credentials.validity import validities
from trionode._errors import CertificateError, CertificateReason, FixedAtStartupError, PeerUnverifiedError
from trionode._identity.names import NodeName
from trionode._tls.contexts import ContextsChannel, TLSContexts
from trionode._util.fields import check_argument, check_each
from trionode._util.interrupts import interrupted_at_checkpoints
from trionode._util.log import Log

from .check import check_usable, examine
from .check_trust import check_trust, expect_usable, known_issuers
from .findings import Severity
from .ownership import Ownership
from .statistics import ManagerStatistics
from .trust import (
    Bench,
    LiveEntry,
    LiveLink,
    LiveLinks,
    StrandedPeer,
    StrandedPeers,
    TrustRotationError,
    stranded_error,
    stranded_peer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from trionode._credentials.crl import CRLSet
    from trionode._credentials.policy import TLSPolicy
    from trionode._credentials.revocation import Superseded
    from trionode._credentials.validity import Validity

    from .findings import Finding
    from .statistics import SourceState

#: Why an update or a rotation of trust was refused.
RotationError: TypeAlias = CertificateError | TrustRotationError

_log = Log("trionode.certificates")
_security_log = Log("trionode.security")

#: In place of a `CertificateReason`: a rotation of trust was refused for the sake of live peers.
STRANDED: Final = "stranded"
#: Peers that a refused rotation names in its text; its `peers` has them all.
_NAMED: Final = 10


@interrupted_at_checkpoints
@final
class Publisher:
    """One manager's state, and everything that changes it.

    Attributes:
        channel: where the contexts are published.
        policy: the settings that they are built by.
        source: what `follow_source` found last; None if there is no follower.
    """

    def __init__(self, key_pair: KeyPair, policy: TLSPolicy) -> None:
        """Build generation 1, see `CertAuthManager`."""
        check_argument("key_pair", key_pair, KeyPair)
        self.policy = policy
        self.channel = ContextsChannel(self._build(1, key_pair, policy))
        self._generation = AsyncValue(1)
        self._refusal: AsyncValue[tuple[int, RotationError | None]] = AsyncValue((0, None))
        self._source_trouble: AsyncValue[Exception | None] = AsyncValue(None)
        self.source: SourceState | None = None
        self._refused = dict.fromkeys([*CertificateReason, STRANDED], 0)
        self._validities: tuple[TLSContexts, tuple[Validity, ...]] | None = None
        self._links = LiveLinks()
        # The generation that brought the present trust; links of older generations were verified by other trust.
        self._trusted_since = 1
        self._names: Counter[NodeName | str] = Counter()
        self._examined: tuple[object, ...] = ()
        # What is wrong with pools and lists is said at once, what is wrong with the key pair when it is used.
        self._told: tuple[Finding, ...] = tuple(check_trust(policy, key_pair))
        for finding in self._told:
            _log.warning("%s", finding, code=finding.code)
        self._ownership = Ownership()
        self._uses = 0
        self._server_uses = 0

    @property
    def key_pair(self) -> KeyPair:
        """The key pair that is published now."""
        return self.channel.current.key_pair

    @property
    def generation(self) -> int:
        """The generation that is published now."""
        return self.channel.current.generation

    def now(self) -> datetime:
        """The time by which certificates are judged, aware, UTC: the clock's, or the machine's."""
        return self.policy.now()

    def statistics(self) -> ManagerStatistics:
        """A snapshot; in the manager's own thread, if it is in use."""
        contexts = self.channel.current
        if self._validities is None or self._validities[0] is not contexts:
            self._validities = contexts, tuple(validities(contexts.key_pair, self.policy))
        return ManagerStatistics(
            generation=contexts.generation,
            live_generations=self.live_generations,
            refused=dict(self._refused),
            source_trouble=self.source_trouble,
            validities=self._validities[1],
            source=None if self.source is None else self.source.name,
            source_pending=None if self.source is None else self.source.pending,
            source_since=None if self.source is None else self.source.since,
        )

    # Publishing

    def update(self, key_pair: KeyPair) -> int:
        """Publish another key pair, see `CertManager.update`."""
        check_argument("key_pair", key_pair, KeyPair)
        with self._ownership.changing():
            try:
                self._check_usable(key_pair, as_server=self._server_uses > 0)
                contexts = self._build(self.generation + 1, key_pair, self.policy)
            except CertificateError as exc:
                self._refuse(exc)
                raise
            self._publish(contexts)
            self._warn_of_findings()
        return contexts.generation

    def update_unchecked(self, key_pair: KeyPair) -> int:
        """Publish another key pair whatever is wrong with it; for tests of what peers make of it.

        Raises:
            CertificateError: OpenSSL does not accept it.
        """
        contexts = self._build(self.generation + 1, key_pair, self.policy)
        self._publish(contexts)
        return contexts.generation

    def rotate_trust(self, change: Callable[[TLSPolicy], TLSPolicy], *, stranded: StrandedPeers) -> int:
        """Publish other CA pools or revocation lists, see `CertAuthManager.rotate_trust`.

        Args:
            change: gives the new policy for the present one.
            stranded: what becomes of live peers that the new trust does not vouch for.
        """
        check_argument("stranded", stranded, StrandedPeers)
        with self._ownership.changing():
            before = self.policy
            policy, superseded = self._without_going_back(change(before))
            try:
                _check_client_cas(policy)
                contexts = self._build(self.generation + 1, self.key_pair, policy)
                found = list(self._links.stranded(policy, before))
                if stranded is StrandedPeers.REFUSE:
                    bound = [peer for peer, entry in found if entry.stranded is None]
                    _refuse_to_strand([peer for peer in bound if peer.newly and not peer.revoked])
            except (CertificateError, TrustRotationError) as exc:
                self._refuse(exc)
                raise
            self.policy = policy
            self._trusted_since = contexts.generation
            self._publish(contexts)
            self._warn_of_findings()
        for each in superseded:
            _security_log.warning("%s", each, generation=contexts.generation)
        if policy.crls is None and before.crls is not None:
            _security_log.warning(
                "crls=None: certificates are no longer checked for revocation",
                option="crls",
                generation=contexts.generation,
            )
        for peer, entry in found:
            if peer.revoked or StrandedPeers.CLOSE in (stranded, entry.stranded):
                self._end(peer, entry)
            else:
                _security_log.warning(
                    "connection kept, though its peer could not connect again: %s",
                    peer.text,
                    peer=peer.name,
                    address=peer.address,
                    reason=peer.reason,
                    generation=peer.generation,
                )
        return contexts.generation

    def stranded_by(self, change: Callable[[TLSPolicy], TLSPolicy]) -> tuple[StrandedPeer, ...]:
        """The live peers that new trust would not vouch for, see `CertAuthManager.stranded_by`.

        Args:
            change: gives the new policy for the present one.
        """
        with self._ownership.changing():
            policy, _ = self._without_going_back(change(self.policy))
            return tuple(peer for peer, _ in self._links.stranded(policy, self.policy))

    def without_going_back(self, crls: CRLSet) -> CRLSet:
        """The lists that would be in use if these were published: an older one does not replace a newer one.

        Args:
            crls: the lists to publish.
        """
        policy, _ = self._without_going_back(replace(self.policy, crls=crls))
        assert policy.crls is not None
        return policy.crls

    def _without_going_back(self, policy: TLSPolicy) -> tuple[TLSPolicy, list[Superseded]]:
        present = self.policy.crls
        if policy.crls is None or present is None or policy.crls == present:
            return policy, []
        crls, superseded = keep_newer(policy.crls, present, known_issuers(policy, self.key_pair), now=policy.now())
        return replace(policy, crls=crls), superseded

    def change_settings(self, change: Callable[[TLSPolicy], TLSPolicy], what: str) -> None:
        """Change what is fixed while the manager is in use.

        Args:
            change: gives the new policy for the present one.
            what: the setting that changes, for the message.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        with self._ownership.locked():
            policy = change(self.policy)
            if self._uses:
                msg = (
                    f"{what} is fixed at start-up and this cert manager is in use; restart the node (close it, set "
                    f"{what}, open it again). Key pairs rotate at run time with update(), CA pools and CRLs with "
                    "rotate_trust()"
                )
                raise FixedAtStartupError(msg)
            contexts = self._build(self.generation, self.key_pair, policy)
            self.policy = policy
            self.channel.publish(contexts)

    def _build(self, generation: int, key_pair: KeyPair, policy: TLSPolicy) -> TLSContexts:
        expect_usable(policy)
        return TLSContexts.build(generation, key_pair, policy, publisher=self)

    def _publish(self, contexts: TLSContexts) -> None:
        self.channel.publish(contexts)
        self._generation.value = contexts.generation

    def _refuse(self, error: RotationError) -> None:
        self._refused[error.reason if isinstance(error, CertificateError) else STRANDED] += 1
        self._refusal.value = (self._refusal.value[0] + 1, error)

    # Waiting

    async def wait_generation(self, generation: int) -> None:
        """Wait until this generation, or a later one, is published. Cancelling is harmless.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        check_argument("generation", generation, int)
        with self._ownership.claimed():
            await trio.lowlevel.checkpoint()
            if self.generation < generation:
                await self._generation.wait_value(lambda current: current >= generation)

    @property
    def refused_updates(self) -> int:
        """How many updates and rotations of trust were refused so far."""
        count: int = self._refusal.value[0]
        return count

    async def wait_refused(self, count: int) -> RotationError:
        """Wait until so many updates were refused, and return the last one's error. Cancelling is harmless.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._ownership.claimed():
            await trio.lowlevel.checkpoint()
            _, error = await self._refusal.wait_value(lambda refusal: refusal[0] >= count)
        assert isinstance(error, RotationError)
        return error

    @property
    def source_trouble(self) -> Exception | None:
        """Why its follower cannot publish what its source has; None if it can, or if there is no follower."""
        trouble: Exception | None = self._source_trouble.value
        return trouble

    def report_source(self, trouble: Exception | None) -> None:
        """Tell the nodes that use the manager how its source is; None: nothing is wrong any more."""
        self._source_trouble.value = trouble

    async def wait_source(self, seen: Exception | None) -> Exception | None:
        """Wait until `source_trouble` is another than the one that was seen, and return it. Cancelling is harmless.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._ownership.claimed():
            await trio.lowlevel.checkpoint()
            trouble: Exception | None = await self._source_trouble.wait_value(lambda trouble: trouble is not seen)
        return trouble

    # Live links

    def attach(
        self,
        link: LiveLink,
        end: Callable[[PeerUnverifiedError], None],
        *,
        stranded: StrandedPeers | None = None,
    ) -> None:
        """Enter a connection's link in the ledger of live links.

        Where trust was rotated after the link's handshake had taken its contexts, the peer is judged by what is trusted
        now, and `end` may be called before this returns.

        Args:
            link: it was made with contexts of this manager. It is kept until it is detached.
            end: ends it, synchronously, with the reason; called at most once for each time that it was attached, and
                in the manager's Trio thread. It may call `detach`.
            stranded: what becomes of it where its peer is stranded, `KEEP` or `CLOSE`; None: what the rotation says.
        """
        entry = LiveEntry(link, end, stranded)
        self._links.add(entry)
        if link.generation < self._trusted_since:
            refusal = Bench(self.policy).judge(link)
            if refusal is not None:
                self._end(stranded_peer(link, refusal, newly=False), entry)

    def detach(self, link: LiveLink) -> None:
        """Remove a link that has ended from the ledger; nothing happens if it is not there."""
        self._links.remove(link)

    @property
    def live_generations(self) -> Mapping[int, int]:
        """How many live links there are of each generation that has any."""
        return self._links.generations

    async def drained(self, generation: int) -> None:
        """Wait until no link of this generation or an older one is live, see `CertManager.drained`."""
        check_argument("generation", generation, int)
        with self._ownership.claimed():
            await trio.lowlevel.checkpoint()
            await self._links.drained(generation)

    def _end(self, peer: StrandedPeer, entry: LiveEntry) -> None:
        _security_log.warning(
            "connection ended, its peer is no longer trusted: %s",
            peer.text,
            peer=peer.name,
            address=peer.address,
            reason=peer.reason,
            generation=peer.generation,
        )
        try:
            entry.end(stranded_error(peer))
        except Exception:  # noqa: BLE001 -- logged in full; the other links must be ended all the same
            _log.exception("ending the connection to %s failed", peer.name, peer=peer.name, address=peer.address)

    # Uses

    @contextmanager
    def use(self, *, as_server: bool, name: NodeName | str | None = None) -> Iterator[None]:
        """Declare a use of the manager for the length of a `with` block.

        Args:
            as_server: whether its key pair will be presented to clients.
            name: the node that uses it, or the host that it serves: what its certificates should cover.

        Raises:
            CertificateError: the key pair is expired, not yet valid or unfit for that, or the client-auth mode
                verifies and there are no client CAs.
            RuntimeError: the manager is in use by another Trio run, or there is no Trio run here.
        """
        with self._ownership.claimed():
            with self._ownership.locked():
                _check_client_cas(self.policy)
                self._check_usable(self.key_pair, as_server=as_server)
                self._uses += 1
                self._server_uses += as_server
                joined = name is not None and name not in self._names
                if name is not None:
                    self._names[name] += 1
                self._warn_of_findings(name if joined else None)
            try:
                yield
            finally:
                with self._ownership.locked():
                    self._uses -= 1
                    self._server_uses -= as_server
                    if name is not None:
                        self._names[name] -= 1
                        if not self._names[name]:
                            del self._names[name]

    # Examining

    def check(self, key_pair: KeyPair, *, names: Iterable[str | NodeName] = ()) -> tuple[Finding, ...]:
        """What is wrong with a key pair, or soon will be, see `CertManager.check`."""
        check_argument("key_pair", key_pair, KeyPair)
        with self._ownership.locked():
            wanted = check_each("names", names, str, NodeName) or tuple(self._names)
            current = self.channel.current
            return examine(
                key_pair,
                self.policy,
                names=wanted,
                as_server=self._presented_to_clients,
                contexts=current if current.key_pair is key_pair else None,
            )

    def check_after(self, change: Callable[[TLSPolicy], TLSPolicy], key_pair: KeyPair) -> list[Finding]:
        """The errors of a key pair under another policy that it has not under the present one.

        Args:
            change: gives the new policy for the present one.
            key_pair: the key pair.
        """
        with self._ownership.locked():
            policy, _ = self._without_going_back(change(self.policy))
            before, after = (
                [each for each in self._examine(key_pair, each_policy) if each.severity is Severity.ERROR]
                for each_policy in (self.policy, policy)
            )
        codes = {finding.code for finding in before}
        return [finding for finding in after if finding.code not in codes]

    def _examine(self, key_pair: KeyPair, policy: TLSPolicy) -> tuple[Finding, ...]:
        return examine(key_pair, policy, names=tuple(self._names), as_server=self._presented_to_clients)

    def _check_usable(self, key_pair: KeyPair, *, as_server: bool) -> None:
        policy = self.policy
        check_usable(key_pair, now=policy.now(), as_server=as_server, as_client=policy.client_auth.verifies)

    def _warn_of_findings(self, joined: NodeName | str | None = None) -> None:
        """Log what peers may refuse of the key pair that is published: each thing once, as long as it is true.

        Args:
            joined: a name that has come to the others; where nothing else is new, it alone is examined: of thousands
                of nodes with one manager, not all of them for each that opens.
        """
        subject = self.key_pair, self.policy, self._presented_to_clients
        known = subject == self._examined
        if self.policy.anonymous or (known and joined is None):
            return
        self._examined = subject
        try:
            found = self.check(self.key_pair, names=(joined,) if known and joined is not None else ())
        except Exception:  # noqa: BLE001 -- logged in full; an examination that fails is no reason to refuse
            _log.exception("our certificate could not be examined", certificate=self.key_pair.fingerprint)
            return
        for finding in found:
            if finding not in self._told:
                _log.warning("%s", finding, code=finding.code, generation=self.generation)
        self._told = (*self._told, *(each for each in found if each not in self._told)) if known else found

    @property
    def _presented_to_clients(self) -> bool:
        return self._server_uses > 0 or self._uses == 0


def _check_client_cas(policy: TLSPolicy) -> None:
    if policy.client_auth.verifies and policy.client_cas is None:
        msg = (
            f"client_auth {policy.client_auth.name} verifies client certificates, but client_cas is not set: no client "
            "could pass. Give the CA pool that your clients' certificates are signed by"
        )
        raise CertificateError(msg, reason=CertificateReason.NO_CLIENT_CAS)


def _refuse_to_strand(peers: list[StrandedPeer]) -> None:
    if not peers:
        return
    named = "; ".join(map(str, peers[:_NAMED]))
    more = f"; and {len(peers) - _NAMED} more" if len(peers) > _NAMED else ""
    msg = (
        f"this trust would strand {len(peers)} live peer{'s' if len(peers) > 1 else ''}, so nothing was changed: "
        f"{named}{more}. Keep what they need (the old CA in the pool, a current CRL) until they have rotated "
        "and connected anew, or pass stranded=StrandedPeers.CLOSE to end their connections, KEEP to leave them as they "
        "are"
    )
    raise TrustRotationError(msg, peers=peers)
