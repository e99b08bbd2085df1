"""Cert managers: the public side of a `publisher`.

A manager publishes one key pair's TLS contexts, and rotates to another key pair at run time. `CertManager` asks clients
for no certificate; for mutual TLS there is `auth_manager.CertAuthManager`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionode._credentials.policy import TLSPolicy

from .publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import trio

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.crl import CRLPolicy, CRLSet
    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import ClientAuth, Clock
    from trionode._identity.names import NodeName
    from trionode._tls.contexts import TLSContexts

    from .findings import Finding
    from .statistics import ManagerStatistics

__all__ = ["CertManager"]


class CertManager:
    """Publishes one key pair's TLS contexts; every client is admitted, servers are verified against the system's CAs.

    One manager may serve several nodes at once, nodes of successive Trio runs, and `serve_tls` and `open_tls_stream`
    beside them. For client authentication and CA pools of your own use `CertAuthManager`.
    """

    _publisher: Publisher

    def __init__(self, key_pair: KeyPair, *, clock: Clock | None = None) -> None:
        """Build generation 1.

        Args:
            key_pair: what to present. Dates and extended key usage are checked at the first use, not here.
            clock: source of "now" for all date checks, OpenSSL's included; by default the machine's clock.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
        """
        self._publisher = Publisher(key_pair, TLSPolicy(clock=clock))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} generation {self.generation}: {self.key_pair!r}>"

    @property
    def contexts(self) -> trio.abc.ReceiveChannel[TLSContexts]:
        """The shared channel: each `receive()` yields the contexts that are published then. Closing it does nothing."""
        return self._publisher.channel

    @property
    def key_pair(self) -> KeyPair:
        """The key pair that is published now."""
        return self._publisher.key_pair

    @property
    def generation(self) -> int:
        """1 from construction, one more for each successful `update()`."""
        return self._publisher.generation

    @property
    def client_auth(self) -> ClientAuth:
        """What acceptors ask of clients."""
        return self._publisher.policy.client_auth

    @property
    def client_cas(self) -> CAPool | None:
        """The anchors for client certificates, or None."""
        return self._publisher.policy.client_cas

    @property
    def root_cas(self) -> CAPool | None:
        """The anchors for server certificates; None means the system's."""
        return self._publisher.policy.root_cas

    @property
    def server_name(self) -> str | None:
        """The reference name for every dial; None means the name that is dialled."""
        return self._publisher.policy.server_name

    @property
    def crls(self) -> CRLSet | None:
        """The revocation lists by which peers are checked, or None."""
        return self._publisher.policy.crls

    @property
    def crl_policy(self) -> CRLPolicy:
        """How strictly they are applied."""
        return self._publisher.policy.crl_policy

    def update(self, key_pair: KeyPair) -> int:
        """Rotate: check a key pair, build contexts from it and publish them, as the next generation.

        Every handshake that takes its contexts after this returned gets the new ones; handshakes under way and
        established connections keep theirs. Synchronous; takes some 5 ms, most of it to find out what to warn of.

        Args:
            key_pair: the new key pair.

        Returns:
            The new generation.

        Raises:
            CertificateError: the leaf is expired, not yet valid or of the wrong extended key usage, or OpenSSL does
                not accept it; what was published stays.
            RuntimeError: the manager is in use, and this is not its Trio thread; nothing was touched.
        """
        return self._publisher.update(key_pair)

    async def wait_generation(self, generation: int) -> None:
        """Wait until this generation, or a later one, is published. Cancelling is harmless.

        Args:
            generation: the number to wait for; one already reached returns after a checkpoint.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        await self._publisher.wait_generation(generation)

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
        return self._publisher.check(key_pair, names=names)

    def statistics(self) -> ManagerStatistics:
        """A snapshot; in the manager's own thread, if it is in use."""
        return self._publisher.statistics()

    @property
    def live_generations(self) -> Mapping[int, int]:
        """How many live links there are of each generation; generations without any are left out."""
        return self._publisher.live_generations

    async def drained(self, generation: int) -> None:
        """Wait until no node's connection and no server's stream uses this generation or an older one.

        Handshakes under way are not counted before they are done, nor are the streams of `open_tls_stream` and of the
        functions that wrap one. Where there is no such connection it returns after a checkpoint. Cancelling is
        harmless.

        Args:
            generation: the number up to which connections have to be gone.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        await self._publisher.drained(generation)


def publisher_of(manager: CertManager) -> Publisher:
    """The publisher of a manager: for nodes, streams, followers and the test kit."""
    return manager._publisher  # noqa: SLF001 -- the one place
