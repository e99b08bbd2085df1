"""`serve_est`: an EST service with a certificate of its own CA, that renews itself."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._credentials.policy import ClientAuth
from trionode._managers.auth_manager import CertAuthManager
from trionode._managers.follower import follow_source
from trionode._managers.sources import Credentials
from trionode._streams.listeners import close_all
from trionode._util.threads import Purpose, in_thread
from trionode.http.server import serve_asgi
from trionode.pki import KeyType

from ._lists import Lists, serve_lists
from ._server import EnrolmentPolicy, est_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from cryptography import x509

    from trionode._credentials.key_pair import KeyPair
    from trionode._identity.names import NodeName
    from trionode._streams.listeners import AnyListener
    from trionode._streams.monitor import ServerMonitor
    from trionode.pki import PKIDirectory

#: How often the directory is looked at. Seconds.
_LOOK: Final = 1.0
#: The service's own certificate lasts so long at least: a client whose own is about to end must not find that ended.
_OWN_LIFETIME: Final = timedelta(days=7)


async def serve_est(  # noqa: ASYNC128 -- serve_asgi calls it
    directory: PKIDirectory,
    port: int | None = None,
    *,
    names: Sequence[str | NodeName] = ("localhost",),
    host: str | None = None,
    listeners: Sequence[AnyListener] | None = None,
    policy: EnrolmentPolicy | None = None,
    grace: float = 5.0,
    monitor: ServerMonitor | None = None,
    crl_listeners: Sequence[AnyListener] = (),
    task_status: trio.TaskStatus[Sequence[AnyListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `est_app` over TLS, until cancelled or until its listeners are closed.

    The server's certificate is issued by the directory's CA and renewed by itself; it trusts the clients of the
    directory's CAs, also while these roll over; and it signs the revocation lists anew before they end.

    Args:
        directory: what issues.
        port: see `serve_asgi`.
        names: what clients call this server: hosts and addresses.
        host: see `serve_asgi`.
        listeners: see `serve_asgi`.
        policy: see `est_app`.
        grace: see `serve_asgi`.
        monitor: see `serve_asgi`.
        crl_listeners: where `/ca.crl` (PEM) and `/crl` (DER) are to be had over plain HTTP, too, and nothing else is:
            for verifiers that know no EST, and for the distribution points of RFC 5280. Owned: closed when this ends.
        task_status: `started()` gets the listeners.

    Raises:
        CertificateError: the CA has expired, or its files are damaged.
        OSError: the journal cannot be written.
        ListenError: the port cannot be had.
        ValueError: a name is none, or one that the CA may not issue for.
    """
    try:
        await _serve(
            directory,
            policy or EnrolmentPolicy(),
            names,
            crl_listeners,
            partial(
                serve_asgi,
                port=port,
                host=host,
                listeners=listeners,
                grace=grace,
                monitor=monitor,
                task_status=task_status,
            ),
        )
    finally:
        await close_all([*crl_listeners, *(listeners or ())])  # noqa: ASYNC102 -- shielded in there


async def _serve(
    directory: PKIDirectory,
    rules: EnrolmentPolicy,
    names: Sequence[str | NodeName],
    crl_listeners: Sequence[AnyListener],
    serve: Callable[..., Awaitable[None]],
) -> None:
    source = _OwnSource(directory, names, rules)
    first = await source.read()
    manager = CertAuthManager(
        first.key_pair,
        client_cas=first.client_cas,
        root_cas=first.client_cas,
        client_auth=ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN,
        clock=directory.clock,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_source, manager, source)
        nursery.start_soon(serve_lists, Lists(directory, rules.crl_lifetime), crl_listeners)
        await serve(est_app(directory, rules), cert_manager=manager)
        nursery.cancel_scope.cancel()


@final
class _OwnSource:
    """The service's own credentials, out of its directory; and the lists, which are kept fresh beside."""

    def __init__(self, directory: PKIDirectory, names: Sequence[str | NodeName], policy: EnrolmentPolicy) -> None:
        self._directory = directory
        self._names = names
        self._policy = policy
        self._pair: KeyPair | None = None
        self._issuer: x509.Certificate | None = None
        self._renew_at: datetime | None = None
        self._lists_at = 0.0

    def __repr__(self) -> str:
        return f"<the certificate of {self._directory!r}>"

    async def read(self) -> Credentials:
        """What it has; a new certificate at half of the lifetime of the last."""
        return await in_thread(Purpose.ISSUING, partial(self._read, trio.current_time()))

    def _read(self, now: float) -> Credentials:
        directory = self._directory
        authority = directory.authority
        if self._pair is None or authority.issuer != self._issuer or self._is_due():
            lifetime = max(self._policy.lifetime, _OWN_LIFETIME)
            pair = authority.issue(*self._names, lifetime=lifetime, key_type=KeyType.P256)
            directory.record(pair.certificate, *self._names)
            self._pair, self._issuer = pair, authority.issuer
            began = directory.now()
            self._renew_at = began + (pair.certificate.not_valid_after_utc - began) / 2
        if now >= self._lists_at:
            directory.refresh_lists(lifetime=self._policy.crl_lifetime)
            self._lists_at = now + self._policy.crl_lifetime.total_seconds() / 20
        return Credentials(key_pair=self._pair, client_cas=directory.issuers)

    def _is_due(self) -> bool:
        return self._renew_at is not None and self._directory.now() >= self._renew_at

    async def wait_changed(self, _seen: Credentials | None, /) -> None:
        """A moment; looking costs little."""
        await trio.sleep(_LOOK)
