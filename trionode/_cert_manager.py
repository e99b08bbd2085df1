"""Cert managers: build, check, publish.

Theory. A manager turns key pair + CA pools + policy into `TLSContexts` and publishes them on its channel. `update()`
is synchronous: check, build, publish, in that order, so a failing one leaves what was published as it was, and the
rule of rotation holds: *a `receive()` called after `update()` returned never yields an older generation*.

A *use* is an open node, a running `serve_tls`, an `open_tls_stream` handshake. While there is one, CA pools,
client-auth mode and server name are fixed, and the manager belongs to the Trio run that uses it; a task waiting in
`wait_generation` claims it for its run likewise. Unused and unclaimed, a manager may be updated from any thread; the
lock is for that case and is never held across a checkpoint.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Self, final

import trio
from cryptography.x509.oid import ExtendedKeyUsageOID
from trio_util import AsyncValue

from ._contexts import ContextsChannel, TLSContexts
from ._credentials import CAPool, KeyPair, allows, check_usable
from ._errors import CertificateError, CertificateReason, FixedAtStartupError
from ._identity import canonical_host, describe
from ._openssl import chains_to
from ._policy import ClientAuth, TLSPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from ._policy import Clock

__all__ = ["CertAuthManager", "CertManager"]

_log = logging.getLogger("trionode.certificates")


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
        self._refusal: AsyncValue[tuple[int, CertificateError | None]] = AsyncValue((0, None))
        self._examined: KeyPair | None = None
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

    def now(self) -> datetime:
        """The time by which it judges certificates, aware, UTC: its clock's, or the machine's."""
        return self._policy.now()

    def update(self, key_pair: KeyPair) -> int:
        """Rotate: check a key pair, build contexts from it and publish them, as the next generation.

        Every handshake that takes its contexts after this returned gets the new ones; handshakes under way and
        established connections keep theirs. Synchronous; takes about a millisecond.

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
                self._refusal.value = (self._refusal.value[0] + 1, exc)
                raise
            self._channel.publish(contexts)
            self._generation.value = contexts.generation
        return contexts.generation

    @property
    def refused_updates(self) -> int:
        """How many updates were refused so far."""
        count: int = self._refusal.value[0]
        return count

    async def wait_refused(self, count: int) -> CertificateError:
        """Wait until so many updates were refused, and return the last one's error. Cancelling is harmless.

        Raises:
            RuntimeError: the manager is in use by another Trio run.
        """
        with self._claimed():
            await trio.lowlevel.checkpoint()
            _, error = await self._refusal.wait_value(lambda refusal: refusal[0] >= count)
        assert isinstance(error, CertificateError)
        return error

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

    @contextmanager
    def use(self, *, as_server: bool) -> Iterator[Self]:
        """Declare a use of this manager for the length of a `with` block: nodes and `serve_tls` do it themselves.

        Args:
            as_server: whether its key pair will be presented to clients.

        Raises:
            CertificateError: the key pair is expired, not yet valid or unfit for that, or the client-auth mode
                verifies and there are no client CAs.
            RuntimeError: the manager is in use by another Trio run, or there is no Trio run here.
        """
        with self._claimed():
            with self._lock:
                self._check_client_cas()
                self._check(self.key_pair, as_server=as_server)
                self._uses += 1
                self._server_uses += as_server
            try:
                yield self
            finally:
                with self._lock:
                    self._uses -= 1
                    self._server_uses -= as_server

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

    def _check_client_cas(self) -> None:
        policy = self._policy
        if policy.client_auth.verifies and policy.client_cas is None:
            msg = (
                f"client_auth {policy.client_auth.name} verifies client certificates, but client_cas is not set: no "
                "client could pass. Give the CA pool that your clients' certificates are signed by"
            )
            raise CertificateError(msg, reason=CertificateReason.NO_CLIENT_CAS)

    def _check(self, key_pair: KeyPair, *, as_server: bool) -> None:
        policy = self._policy
        check_usable(key_pair, now=policy.now(), as_server=as_server, as_client=policy.client_auth.verifies)
        if key_pair is not self._examined:
            self._examined = key_pair
            self._warn_of_findings(key_pair)

    def _warn_of_findings(self, key_pair: KeyPair) -> None:
        """Say, once per key pair, what peers may refuse; they may trust what we do not, so these are no errors."""
        policy, leaf = self._policy, key_pair.certificate
        if not policy.client_auth.verifies and not allows(leaf, ExtendedKeyUsageOID.CLIENT_AUTH):
            _log.warning(
                "our certificate's extended key usage does not allow clientAuth; peers that verify clients will "
                "refuse us: %s",
                describe(leaf),
            )
        for pool, label in ((policy.root_cas, "root-CA"), (policy.client_cas, "client-CA")):
            if pool is not None and not chains_to(key_pair, pool, policy.now()):
                _log.warning(
                    "our certificate does not verify against our own %s pool; peers with the same pool will refuse "
                    "us: %s",
                    label,
                    describe(leaf),
                )

    def _change(self, policy: TLSPolicy, what: str) -> None:
        with self._lock:
            if self._uses:
                msg = (
                    f"{what} is fixed at start-up and this cert manager is in use; restart the node (close it, set "
                    f"{what}, open it again). Key pairs rotate at run time with update()"
                )
                raise FixedAtStartupError(msg)
            contexts = TLSContexts.build(self.generation, self.key_pair, policy)
            self._policy = policy
            self._channel.publish(contexts)


@final
class CertAuthManager(CertManager):
    """A cert manager with CA pools for both directions, a client-auth mode and a server name.

    Pools, mode and name are fixed while the manager is in use; a setter then raises `FixedAtStartupError`. They never
    count as a generation.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        client_cas: CAPool | None = None,
        client_auth: ClientAuth = ClientAuth.NO_CLIENT_CERT,
        root_cas: CAPool | None = None,
        server_name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Build generation 1.

        Args:
            key_pair: what to present. Dates and extended key usage are checked at the first use, not here.
            client_cas: anchors for client certificates; a mode that verifies is refused at first use without it.
            client_auth: what acceptors ask of clients.
            root_cas: anchors for server certificates; None means the system's, read when a dial needs them.
            server_name: reference name for every dial in place of the name that is dialled.
            clock: source of "now" for all date checks, OpenSSL's included; by default the machine's clock.

        Raises:
            CertificateError: OpenSSL does not accept the key pair.
            ValueError: `server_name` is neither a DNS name nor an address.
        """
        _expect_settings(client_cas, client_auth, root_cas)
        self._set_up(
            key_pair,
            TLSPolicy(
                client_cas=client_cas,
                client_auth=client_auth,
                root_cas=root_cas,
                server_name=_canonical_or_none(server_name),
                clock=clock,
            ),
        )

    def set_client_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for client certificates.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        _expect_settings(pool, self.client_auth, None)
        self._change(replace(self._policy, client_cas=pool), "the client-CA pool")

    def set_client_auth(self, mode: ClientAuth) -> None:
        """Set what acceptors ask of clients.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        _expect_settings(None, mode, None)
        self._change(replace(self._policy, client_auth=mode), "the client-auth mode")

    def set_root_cas(self, pool: CAPool | None) -> None:
        """Set the anchors for server certificates; None means the system's.

        Raises:
            FixedAtStartupError: the manager is in use.
        """
        _expect_settings(None, self.client_auth, pool)
        self._change(replace(self._policy, root_cas=pool), "the root-CA pool")

    def set_server_name(self, name: str | None) -> None:
        """Set the reference name for every dial; None means the name that is dialled.

        Raises:
            FixedAtStartupError: the manager is in use.
            ValueError: it is neither a DNS name nor an address.
        """
        self._change(replace(self._policy, server_name=_canonical_or_none(name)), "the server name")


def _canonical_or_none(name: str | None) -> str | None:
    return None if name is None else canonical_host(name)


def _expect_settings(client_cas: CAPool | None, client_auth: ClientAuth, root_cas: CAPool | None) -> None:
    for pool, label in ((client_cas, "client_cas"), (root_cas, "root_cas")):
        if pool is not None:
            _expect(pool, CAPool, label)
    _expect(client_auth, ClientAuth, "client_auth")


def _expect(value: object, kind: type, label: str) -> None:
    # These settings decide who gets in; a wrong type must not surface as a handshake that passes or fails oddly.
    if not isinstance(value, kind):
        msg = f"{label} must be a {kind.__name__}, not {type(value).__name__}"
        raise TypeError(msg)
