"""Cert managers: build, check, publish.

Theory. A manager turns key pair + CA pools + policy into `TLSContexts` and publishes them on its channel. `update()`
is synchronous: check, build, publish, in that order, so a failing one leaves what was published as it was, and the
rule of rotation holds: *a `receive()` called after `update()` returned never yields an older generation*.

Trust rotates apart from key pairs, by `rotate_trust()`: other pools, other CRLs, the same key pair, the next
generation. The manager knows its live links (`attach`, `detach`), so it can say beforehand whom that would strand, and
end those whom it must not leave connected. An *overlap* is a pool with the old and the new CA; *retiring* the old one
is the call that gives the new one alone.

A *use* is an open node, a running `serve_tls`, an `open_tls_stream` handshake. While there is one, CA pools,
client-auth mode and server name are fixed, and the manager belongs to the Trio run that uses it; a task waiting in
`wait_generation` claims it for its run likewise. Unused and unclaimed, a manager may be updated from any thread; the
lock is for that case and is never held across a checkpoint.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from threading import RLock
from typing import TYPE_CHECKING, Final, Self, TypeAlias, final

import trio
from trio_util import AsyncValue

from trionode._credentials.ca_pool import CAPool
from trionode._credentials.crl import STRICT, CRLPolicy, CRLSet
from trionode._credentials.key_pair import KeyPair
from trionode._credentials.policy import ClientAuth, TLSPolicy
from trionode._credentials.validity import Validity, validities
from trionode._errors import (
    CertificateError,
    CertificateReason,
    FixedAtStartupError,
    PeerUnverifiedError,
)
from trionode._identity.names import NodeName, canonical_host
from trionode._tls.contexts import ContextsChannel, TLSContexts

from .findings import check_usable, examine
from .trust import (
    Bench,
    LiveLink,
    LiveLinks,
    StrandedPeer,
    StrandedPeers,
    TrustRotationError,
    stranded_peer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from trionode._credentials.policy import Clock

    from .findings import Finding

#: Why an update or a rotation of trust was refused.
RotationError: TypeAlias = CertificateError | TrustRotationError

__all__ = ["UNCHANGED", "CertAuthManager", "CertManager", "LiveLink", "ManagerStatistics", "Unchanged"]

_log = logging.getLogger("trionode.certificates")
_security_log = logging.getLogger("trionode.security")

#: In place of a `CertificateReason`: a rotation of trust was refused for the sake of live peers.
STRANDED: Final = "stranded"
#: Peers that a refused rotation names in its text; its `peers` has them all.
_NAMED: Final = 10


@final
class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


#: In place of a pool or list: the one that is published stays.
UNCHANGED: Final = Unchanged.UNCHANGED


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerStatistics:
    """A snapshot of a cert manager.

    Attributes:
        generation: what is published; so many less one were published since construction.
        live_generations: as `CertManager.live_generations`, of all nodes that use it.
        refused: updates and rotations of trust that were refused so far, by `CertificateReason`, or `stranded` where
            they would have stranded live peers; every reason is there.
        source_trouble: as `CertManager.source_trouble`.
        validities: from when until when what it presents and trusts is good.
    """

    generation: int
    live_generations: Mapping[int, int]
    refused: Mapping[str, int]
    source_trouble: Exception | None
    validities: tuple[Validity, ...]


class CertManager:
    """Publishes one key pair's TLS contexts; no client authentication, servers verified against the system's CAs.

    One manager may serve several nodes at once, nodes of successive Trio runs, and `serve_tls` and `open_tls_stream`
    beside them. For client authentication and CA pools of your own use `CertAuthManager`.
    """

    def __init__(self, key_pair: KeyPair, *, clock: Clock | None = None) -> None:
        """Build generation 1.

        Args:
            key_pair: what to present. Dates and extended key usage are checked at the first use, not here.
            clock: source of "now" for all date checks, OpenSSL's included; by default the machine's clock.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        self._set_up(key_pair, TLSPolicy(clock=clock))

    def _set_up(self, key_pair: KeyPair, policy: TLSPolicy) -> None:
        _expect(key_pair, KeyPair, "key_pair")
        self._policy = policy
        self._channel = ContextsChannel(TLSContexts.build(1, key_pair, policy))
        self._generation = AsyncValue(1)
        self._refusal: AsyncValue[tuple[int, RotationError | None]] = AsyncValue((0, None))
        self._source_trouble: AsyncValue[Exception | None] = AsyncValue(None)
        self._refused = dict.fromkeys([*CertificateReason, STRANDED], 0)
        self._validities: tuple[TLSContexts, tuple[Validity, ...]] | None = None
        self._links = LiveLinks()
        # The generation that brought the present trust: links of older ones were verified by another.
        self._trusted_since = 1
        self._names: Counter[NodeName] = Counter()
        self._examined: tuple[object, ...] = ()
        self._told: tuple[Finding, ...] = ()
        self._lock = RLock()
        self._owner: trio.lowlevel.TrioToken | None = None
        self._claims = 0
        self._uses = 0
        self._server_uses = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} generation {self.generation}: {self.key_pair!r}>"

    @property
    def contexts(self) -> trio.abc.ReceiveChannel[TLSContexts]:
        """The shared channel: each `receive()` yields the contexts that are published then. Closing it does nothing."""
        return self._channel

    @property
    def key_pair(self) -> KeyPair:
        """The key pair that is published now."""
        return self._channel.current.key_pair

    @property
    def generation(self) -> int:
        """1 from construction, one more for each successful `update()`."""
        return self._channel.current.generation

    @property
    def client_auth(self) -> ClientAuth:
        """What acceptors ask of clients."""
        return self._policy.client_auth

    @property
    def client_cas(self) -> CAPool | None:
        """The anchors for client certificates, or None."""
        return self._policy.client_cas

    @property
    def root_cas(self) -> CAPool | None:
        """The anchors for server certificates; None means the system's."""
        return self._policy.root_cas

    @property
    def server_name(self) -> str | None:
        """The reference name for every dial; None means the name that is dialled."""
        return self._policy.server_name

    @property
    def crls(self) -> CRLSet | None:
        """The revocation lists by which peers are checked, or None."""
        return self._policy.crls

    @property
    def crl_policy(self) -> CRLPolicy:
        """How strictly they are applied."""
        return self._policy.crl_policy

    def now(self) -> datetime:
        """The time by which it judges certificates, aware, UTC: its clock's, or the machine's."""
        return self._policy.now()

    def update(self, key_pair: KeyPair) -> int:
        """Rotate: check a key pair, build contexts from it and publish them, as the next generation.

        Every handshake that takes its contexts after this returned gets the new ones; handshakes under way and
        established connections keep theirs. Synchronous; takes some 3 ms, most of it to find out what to warn of.

        Args:
            key_pair: the new key pair.

        Returns:
            The new generation.

        Raises:
            CertificateError: the leaf is expired, not yet valid or of the wrong extended key usage, or OpenSSL does
                not accept it; what was published stays.
            RuntimeError: the manager is in use, and this is not its Trio thread; nothing was touched.
        """
        _expect(key_pair, KeyPair, "key_pair")
        with self._lock:
            self._check_thread()
            try:
                self._check(key_pair, as_server=self._server_uses > 0)
                contexts = TLSContexts.build(self.generation + 1, key_pair, self._policy)
            except CertificateError as exc:
                self._refuse(exc)
                raise
            self._publish(contexts)
            self._warn_of_findings()
        return contexts.generation

    def _publish(self, contexts: TLSContexts) -> None:
        self._channel.publish(contexts)
        self._generation.value = contexts.generation

    def _refuse(self, error: RotationError) -> None:
        self._refused[error.reason if isinstance(error, CertificateError) else STRANDED] += 1
        self._refusal.value = (self._refusal.value[0] + 1, error)

    @property
    def refused_updates(self) -> int:
        """How many updates and rotations of trust were refused so far."""
        count: int = self._refusal.value[0]
        return count

    async def wait_refused(self, count: int) -> RotationError:
        """Wait until so many updates were refused, and return the last one's error. Cancelling is harmless.

        Args:
            count: how many, from the first on.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._claimed():
            await trio.lowlevel.checkpoint()
            _, error = await self._refusal.wait_value(lambda refusal: refusal[0] >= count)
        assert isinstance(error, RotationError)
        return error

    @property
    def source_trouble(self) -> Exception | None:
        """What its follower said last keeps it from publishing what its source has; None if nothing does."""
        trouble: Exception | None = self._source_trouble.value
        return trouble

    def report_source(self, trouble: Exception | None) -> None:
        """Tell the nodes that use this manager how its source is; `follow_source` does it.

        Args:
            trouble: what is wrong now, or None if nothing is any more.
        """
        self._source_trouble.value = trouble

    async def wait_source(self, seen: Exception | None) -> Exception | None:
        """Wait until `source_trouble` is another than the one that was seen, and return it. Cancelling is harmless.

        Args:
            seen: what `source_trouble` was.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._claimed():
            await trio.lowlevel.checkpoint()
            trouble: Exception | None = await self._source_trouble.wait_value(lambda trouble: trouble is not seen)
        return trouble

    async def wait_generation(self, generation: int) -> None:
        """Wait until this generation, or a later one, is published. Cancelling is harmless.

        Args:
            generation: the number to wait for; one already reached returns after a checkpoint.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._claimed():
            await trio.lowlevel.checkpoint()
            if self.generation < generation:
                await self._generation.wait_value(lambda current: current >= generation)

    def statistics(self) -> ManagerStatistics:
        """A snapshot; in the manager's own thread, if it is in use."""
        contexts = self._channel.current
        if self._validities is None or self._validities[0] is not contexts:
            self._validities = contexts, tuple(validities(contexts.key_pair, self._policy))
        return ManagerStatistics(
            generation=contexts.generation,
            live_generations=self.live_generations,
            refused=dict(self._refused),
            source_trouble=self.source_trouble,
            validities=self._validities[1],
        )

    # Live links

    def attach(self, link: LiveLink, end: Callable[[PeerUnverifiedError], None]) -> None:
        """Enter a connection's link in the ledger of those that are live; nodes do it themselves.

        Where trust was rotated after the link's handshake had taken its contexts, the peer is judged by what is trusted
        now, and `end` may be called before this returns.

        Args:
            link: what was made with contexts of this manager. It is kept until it is detached.
            end: ends it, synchronously, with the reason; called at most once for each time that it was attached, and
                in the manager's Trio thread. It may call `detach`.
        """
        self._links.add(link, end)
        if link.generation < self._trusted_since:
            refusal = Bench(self._policy).judge(link)
            if refusal is not None:
                self._end(stranded_peer(link, refusal, newly=False), end)

    def detach(self, link: LiveLink) -> None:
        """Strike a link out of the ledger: it has ended. Once is enough, more is harmless.

        Args:
            link: what `attach` was given.
        """
        self._links.remove(link)

    @property
    def live_generations(self) -> Mapping[int, int]:
        """How many live links there are of each generation; generations without any are left out."""
        return self._links.generations

    async def drained(self, generation: int) -> None:
        """Wait until no node's connection uses this generation or an older one. Cancelling is harmless.

        Handshakes under way are not counted until they are connections, nor are the streams of `serve_tls` and
        `open_tls_stream`. Where there is no such connection it returns after a checkpoint.

        Args:
            generation: the number up to which connections have to be gone.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._claimed():
            await trio.lowlevel.checkpoint()
            await self._links.drained(generation)

    def _end(self, peer: StrandedPeer, end: Callable[[PeerUnverifiedError], None]) -> None:
        _security_log.warning("connection ended, its peer is no longer trusted: %s", peer.text)
        try:
            end(peer.error())
        except Exception:  # noqa: BLE001 -- logged in full; the others are to be ended all the same
            _log.exception("ending the connection to %s failed", peer.name)

    @contextmanager
    def use(self, *, as_server: bool, name: NodeName | None = None) -> Iterator[Self]:
        """Declare a use of this manager for the length of a `with` block: nodes and `serve_tls` do it themselves.

        Args:
            as_server: whether its key pair will be presented to clients.
            name: the node that uses it, whose name its certificates should cover.

        Raises:
            CertificateError: the key pair is expired, not yet valid or unfit for that, or the client-auth mode
                verifies and there are no client CAs.
            RuntimeError: the manager is in use by another Trio run, or there is no Trio run here.
        """
        with self._claimed():
            with self._lock:
                _check_client_cas(self._policy)
                self._check(self.key_pair, as_server=as_server)
                self._uses += 1
                self._server_uses += as_server
                self._names.update(() if name is None else (name,))
                self._warn_of_findings()
            try:
                yield self
            finally:
                with self._lock:
                    self._uses -= 1
                    self._server_uses -= as_server
                    self._names -= Counter(() if name is None else (name,))

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        token = trio.lowlevel.current_trio_token()
        with self._lock:
            if self._owner not in (None, token):
                msg = "this cert manager is in use by another Trio run; give each concurrent run a manager of its own"
                raise RuntimeError(msg)
            self._owner = token
            self._claims += 1
        try:
            yield
        finally:
            with self._lock:
                self._claims -= 1
                if not self._claims:
                    self._owner = None

    def _check_thread(self) -> None:
        if self._owner is None:
            return
        try:
            here = trio.lowlevel.current_trio_token()
        except RuntimeError:
            here = None
        if here is not self._owner:
            msg = (
                "this cert manager is in use by a Trio run in another thread; update it from there, or with "
                "trio.from_thread.run_sync(manager.update, key_pair, trio_token=token)"
            )
            raise RuntimeError(msg)

    def check(self, key_pair: KeyPair, *, names: Iterable[str | NodeName] = ()) -> tuple[Finding, ...]:
        """What is wrong with a key pair, or soon will be, by this manager's pools, lists and mode; changes nothing.

        `update()` refuses less than is found here, see there; require that there be no findings, or no errors among
        them, before you call it. Takes some milliseconds.

        Args:
            key_pair: the candidate.
            names: what the certificate has to cover, node names or plain hosts; by default the names of the nodes that
                use this manager.

        Raises:
            ValueError: a name is neither a node name nor a host.
        """
        _expect(key_pair, KeyPair, "key_pair")
        with self._lock:
            wanted = tuple(names) or tuple(self._names)
            return examine(key_pair, self._policy, names=wanted, as_server=self._presented_to_clients)

    def _check(self, key_pair: KeyPair, *, as_server: bool) -> None:
        policy = self._policy
        check_usable(key_pair, now=policy.now(), as_server=as_server, as_client=policy.client_auth.verifies)

    def _warn_of_findings(self) -> None:
        """Say what peers may refuse of the key pair that is published: each thing once, as long as it is true."""
        subject = self.key_pair, self._policy, frozenset(self._names), self._presented_to_clients
        if subject == self._examined:
            return
        self._examined = subject
        try:
            found = self.check(self.key_pair)
        except Exception:  # noqa: BLE001 -- logged in full; that nobody can say what is wrong with it is no refusal
            _log.exception("our certificate could not be examined")
            return
        for finding in found:
            if finding not in self._told:
                _log.warning("%s", finding)
        self._told = found

    @property
    def _presented_to_clients(self) -> bool:
        return self._server_uses > 0 or self._uses == 0

    def _change(self, policy: TLSPolicy, what: str) -> None:
        _expect_settings(policy)
        with self._lock:
            if self._uses:
                msg = (
                    f"{what} is fixed at start-up and this cert manager is in use; restart the node (close it, set "
                    f"{what}, open it again). Key pairs rotate at run time with update(), CA pools and CRLs with "
                    "rotate_trust()"
                )
                raise FixedAtStartupError(msg)
            contexts = TLSContexts.build(self.generation, self.key_pair, policy)
            self._policy = policy
            self._channel.publish(contexts)


@final
class CertAuthManager(CertManager):
    """A cert manager with CA pools for both directions, revocation lists, a client-auth mode and a server name.

    Pools, mode and name are fixed while the manager is in use; a setter then raises `FixedAtStartupError`. They never
    count as a generation. To replace a CA, or revocation lists, while everything runs there is `rotate_trust`.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        client_cas: CAPool | None = None,
        client_auth: ClientAuth = ClientAuth.NO_CLIENT_CERT,
        root_cas: CAPool | None = None,
        server_name: str | None = None,
        crls: CRLSet | None = None,
        crl_policy: CRLPolicy = STRICT,
        clock: Clock | None = None,
    ) -> None:
        """Build generation 1.

        Args:
            key_pair: what to present. Dates and extended key usage are checked at the first use, not here.
            client_cas: anchors for client certificates; a mode that verifies is refused at first use without it.
            client_auth: what acceptors ask of clients.
            root_cas: anchors for server certificates; None means the system's, read when a dial needs them.
            server_name: reference name for every dial in place of the name that is dialled.
            crls: who was revoked, for client and server certificates; None checks no revocation. Once given, a
                certificate whose issuer's list is missing or expired is refused.
            crl_policy: what of that to loosen.
            clock: source of "now" for all date checks, OpenSSL's included; by default the machine's clock.

        Raises:
            CertificateError: OpenSSL does not accept the key pair, or a list.
            ValueError: `server_name` is neither a DNS name nor an address.
        """
        policy = TLSPolicy(
            client_cas=client_cas,
            client_auth=client_auth,
            root_cas=root_cas,
            server_name=_canonical_or_none(server_name),
            crls=crls,
            crl_policy=crl_policy,
            clock=clock,
        )
        _expect_settings(policy)
        self._set_up(key_pair, policy)

    def rotate_trust(
        self,
        *,
        client_cas: CAPool | Unchanged | None = UNCHANGED,
        root_cas: CAPool | Unchanged | None = UNCHANGED,
        crls: CRLSet | Unchanged | None = UNCHANGED,
        stranded: StrandedPeers = StrandedPeers.REFUSE,
    ) -> int:
        """Publish other CA pools or revocation lists, with the same key pair, as the next generation.

        To replace a CA: publish a pool with the old and the new one everywhere, rotate the key pairs to ones that the
        new CA issued, wait until the old connections are gone (`drained`), then retire the old CA by publishing the new
        one alone.

        Every handshake that takes its contexts after this returned is judged by the new trust. Live peers are judged
        as well: those that were revoked are ended in any case, and what becomes of others that the new trust does not
        vouch for is up to `stranded`. Synchronous: takes some 3 ms, and 0.1 ms for each live peer; a CRL of 30 000
        entries takes 0.2 s.

        Args:
            client_cas: anchors for client certificates.
            root_cas: anchors for server certificates; None means the system's.
            crls: who was revoked; None ends the checking of revocation.
            stranded: what becomes of live peers that would not be let in again.

        Returns:
            The new generation.

        Raises:
            TrustRotationError: it would strand live peers, and `stranded` is `REFUSE`; nothing was changed.
            CertificateError: the client-auth mode verifies and `client_cas` is None, or OpenSSL does not accept a list;
                nothing was changed.
            RuntimeError: the manager is in use, and this is not its Trio thread; nothing was touched.
        """
        _expect(stranded, StrandedPeers, "stranded")
        with self._lock:
            self._check_thread()
            policy = self._trusting(client_cas, root_cas, crls)
            try:
                _check_client_cas(policy)
                contexts = TLSContexts.build(self.generation + 1, self.key_pair, policy)
                found = list(self._links.stranded(policy, self._policy))
                if stranded is StrandedPeers.REFUSE:
                    _refuse_to_strand([peer for peer, _ in found if peer.newly and not peer.revoked])
            except (CertificateError, TrustRotationError) as exc:
                self._refuse(exc)
                raise
            loosened = crls is None and self._policy.crls is not None
            self._policy = policy
            self._trusted_since = contexts.generation
            self._publish(contexts)
            self._warn_of_findings()
        if loosened:
            _security_log.warning("crls=None: certificates are no longer checked for revocation")
        for peer, end in found:
            if peer.revoked or stranded is StrandedPeers.CLOSE:
                self._end(peer, end)
            else:
                _security_log.warning("connection kept, though its peer could not connect again: %s", peer.text)
        return contexts.generation

    def stranded_by(
        self,
        *,
        client_cas: CAPool | Unchanged | None = UNCHANGED,
        root_cas: CAPool | Unchanged | None = UNCHANGED,
        crls: CRLSet | Unchanged | None = UNCHANGED,
    ) -> tuple[StrandedPeer, ...]:
        """The live peers that new trust, given as to `rotate_trust`, would not vouch for; changes nothing.

        Those that were revoked are among them. Without arguments: whom present trust does not vouch for, because they
        were kept (`StrandedPeers.KEEP`) or a list has expired.

        Raises:
            RuntimeError: the manager is in use, and this is not its Trio thread.
        """
        with self._lock:
            self._check_thread()
            policy = self._trusting(client_cas, root_cas, crls)
            return tuple(peer for peer, _ in self._links.stranded(policy, self._policy))

    def _trusting(
        self,
        client_cas: CAPool | Unchanged | None,
        root_cas: CAPool | Unchanged | None,
        crls: CRLSet | Unchanged | None,
    ) -> TLSPolicy:
        policy = self._policy
        if not isinstance(client_cas, Unchanged):
            policy = replace(policy, client_cas=client_cas)
        if not isinstance(root_cas, Unchanged):
            policy = replace(policy, root_cas=root_cas)
        if not isinstance(crls, Unchanged):
            policy = replace(policy, crls=crls)
        _expect_settings(policy)
        return policy

    def set_client_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for client certificates.

        Args:
            pool: whose certificates clients have; None for none, which modes that verify refuse at first use.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._change(replace(self._policy, client_cas=pool), "the client-CA pool")

    def set_client_auth(self, mode: ClientAuth) -> None:
        """Set what acceptors ask of clients.

        Args:
            mode: one of the five.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._change(replace(self._policy, client_auth=mode), "the client-auth mode")

    def set_root_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for server certificates; None means the system's.

        Args:
            pool: whose certificates servers have; None for the CAs of the system.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._change(replace(self._policy, root_cas=pool), "the root-CA pool")

    def set_server_name(self, name: str | None) -> None:
        """Set the reference name for every dial; None means the name that is dialled.

        Args:
            name: a DNS name or an IP address (RFC 9525); None for the name that is dialled.

        Raises:
            FixedAtStartupError: the manager is in use.
            ValueError: it is neither a DNS name nor an address.
        """
        self._change(replace(self._policy, server_name=_canonical_or_none(name)), "the server name")


def _canonical_or_none(name: str | None) -> str | None:
    return None if name is None else canonical_host(name)


def _expect_settings(policy: TLSPolicy) -> None:
    for value, kind, label in (
        (policy.client_cas, CAPool, "client_cas"),
        (policy.root_cas, CAPool, "root_cas"),
        (policy.crls, CRLSet, "crls"),
    ):
        if value is not None:
            _expect(value, kind, label)
    _expect(policy.client_auth, ClientAuth, "client_auth")
    _expect(policy.crl_policy, CRLPolicy, "crl_policy")


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
        f"{named}{more}. Keep what vouches for them (the old CA in the pool, a current CRL) until they have rotated "
        "and connected anew, or pass stranded=StrandedPeers.CLOSE to end their connections, KEEP to leave them as they "
        "are"
    )
    raise TrustRotationError(msg, peers=peers)


def _expect(value: object, kind: type, label: str) -> None:
    # These settings decide who gets in; a wrong type must not surface as a handshake that passes or fails oddly.
    if not isinstance(value, kind):
        msg = f"{label} must be a {kind.__name__}, not {type(value).__name__}"
        raise TypeError(msg)
