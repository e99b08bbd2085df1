"""Cert managers for mutual TLS: CA pools, revocation lists, a client-auth mode, a server name; trust that rotates."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, final

from trionode._credentials.crl import STRICT, CRLPolicy, CRLSet
from trionode._credentials.policy import ClientAuth, TLSPolicy

from .manager import CertManager
from .publisher import Publisher
from .trust import StrandedPeer, StrandedPeers

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode._credentials.ca_pool import CAPool
    from trionode._credentials.key_pair import KeyPair
    from trionode._credentials.policy import Clock

__all__ = ["UNCHANGED", "CertAuthManager", "Unchanged"]


@final
class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


#: In place of a pool or list: the one that is published stays.
UNCHANGED: Final = Unchanged.UNCHANGED


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
            client_auth: what acceptors ask of clients. The default admits every client and verifies none; for mutual
                TLS give `REQUIRE_AND_VERIFY_CLIENT_CERT`.
            root_cas: anchors for server certificates; None means the system's, read when a dial needs them.
            server_name: reference name for every dial in place of the name that is dialled.
            crls: revocation lists, for client and server certificates; None checks no revocation. Once given, a
                certificate whose issuer's list is missing or expired is refused.
            crl_policy: what of that to loosen.
            clock: source of "now" for all date checks, OpenSSL's included; by default the machine's clock.

        Raises:
            CertificateError: OpenSSL does not accept the key pair, or every CA of a pool has too weak a key.
            ValueError: `server_name` is neither a DNS name nor an address.
        """
        policy = TLSPolicy(
            client_cas=client_cas,
            client_auth=client_auth,
            root_cas=root_cas,
            server_name=server_name,
            crls=crls,
            crl_policy=crl_policy,
            clock=clock,
        )
        self._publisher = Publisher(key_pair, policy)

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
        as well: connections of revoked peers end in any case; what becomes of other peers whose chains no longer verify
        is up to `stranded`. Synchronous: takes some 5 ms, and 0.1 ms for each live peer, however long the lists are:
        what takes time about a list is done when it is read (`CRLSet.load`).

        A list that is older than the one in use, of the same CA and scope (by its number, else by its date), does not
        replace it: the newer one stays in use beside the rest, which is logged. To go back on purpose, give `crls=None`
        first.

        Args:
            client_cas: anchors for client certificates.
            root_cas: anchors for server certificates; None means the system's.
            crls: revocation lists; None ends the checking of revocation.
            stranded: what becomes of live peers that could not connect again. The streams of servers never stand in
                the way: they are kept unless this, or the server's own `stranded`, is `CLOSE`.

        Returns:
            The new generation.

        Raises:
            TrustRotationError: it would strand live peers, and `stranded` is `REFUSE`; nothing was changed.
            CertificateError: the client-auth mode verifies and `client_cas` is None, or the keys of all CAs of a pool
                are too weak; nothing was changed.
            RuntimeError: the manager is in use, and this is not its Trio thread; nothing was touched.
        """
        change = _trusting(client_cas=client_cas, root_cas=root_cas, crls=crls)
        return self._publisher.rotate_trust(change, stranded=stranded)

    def stranded_by(
        self,
        *,
        client_cas: CAPool | Unchanged | None = UNCHANGED,
        root_cas: CAPool | Unchanged | None = UNCHANGED,
        crls: CRLSet | Unchanged | None = UNCHANGED,
    ) -> tuple[StrandedPeer, ...]:
        """The live peers that could not connect again under new trust, given as to `rotate_trust`; changes nothing.

        Revoked peers are among them. Without arguments: those that could not connect again under present trust, because
        they were kept (`StrandedPeers.KEEP`) or a list has expired.

        Raises:
            RuntimeError: the manager is in use, and this is not its Trio thread.
        """
        return self._publisher.stranded_by(_trusting(client_cas=client_cas, root_cas=root_cas, crls=crls))

    def set_client_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for client certificates.

        Args:
            pool: the CAs of clients' certificates; None for none, which modes that verify refuse at first use.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._publisher.change_settings(partial(replace, client_cas=pool), "the client-CA pool")

    def set_client_auth(self, mode: ClientAuth) -> None:
        """Set what acceptors ask of clients.

        Args:
            mode: one of the five.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._publisher.change_settings(partial(replace, client_auth=mode), "the client-auth mode")

    def set_root_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for server certificates; None means the system's.

        Args:
            pool: the CAs of servers' certificates; None for the CAs of the system.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        self._publisher.change_settings(partial(replace, root_cas=pool), "the root-CA pool")

    def set_server_name(self, name: str | None) -> None:
        """Set the reference name for every dial; None means the name that is dialled.

        Args:
            name: a DNS name or an IP address (RFC 9525); None for the name that is dialled.

        Raises:
            FixedAtStartupError: the manager is in use.
            ValueError: it is neither a DNS name nor an address.
        """
        self._publisher.change_settings(partial(replace, server_name=name), "the server name")


def _trusting(**given: object) -> Callable[[TLSPolicy], TLSPolicy]:
    """A function that changes in a policy what is given and not `UNCHANGED`."""
    return partial(replace, **{name: value for name, value in given.items() if value is not UNCHANGED})
