"""The settings of a manager: Go's five client-auth modes, CA pools, revocation, server name, clock."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeAlias, final

from trionode._identity.names import canonical_host
from trionode._util.fields import Checked, Parsed, rule, show

from .ca_pool import CAPool
from .crl import STRICT, CRLPolicy, CRLSet

__all__ = ["ClientAuth"]

#: A source of "now": aware, any zone. None in its place means the machine's own clock, OpenSSL's included.
Clock: TypeAlias = Callable[[], datetime]


@final
class ClientAuth(enum.Enum):
    """What a server asks of its clients' certificates; the modes and their meaning are those of Go's crypto/tls."""

    NO_CLIENT_CERT = "NoClientCert"
    """The server asks for no certificate, and admits every client. The default, as in Go and in Ergo."""
    REQUEST_CLIENT_CERT = "RequestClientCert"
    """The server asks; a client may send none; what it sends is not verified."""
    REQUIRE_ANY_CLIENT_CERT = "RequireAnyClientCert"
    """The client must send a certificate, which is not verified."""
    VERIFY_CLIENT_CERT_IF_GIVEN = "VerifyClientCertIfGiven"
    """The server asks; a client may send none; what it sends is verified."""
    REQUIRE_AND_VERIFY_CLIENT_CERT = "RequireAndVerifyClientCert"
    """The client must send a certificate, which is verified: mutual TLS proper."""

    @property
    def requests(self) -> bool:
        """Whether the server asks for a certificate at all."""
        return self is not ClientAuth.NO_CLIENT_CERT

    @property
    def requires(self) -> bool:
        """Whether a client without a certificate is refused."""
        return self in (ClientAuth.REQUIRE_ANY_CLIENT_CERT, ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT)

    @property
    def verifies(self) -> bool:
        """Whether a certificate that a client sends is verified against the client-CA pool."""
        return self in (ClientAuth.VERIFY_CLIENT_CERT_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT)


@final
@dataclass(frozen=True, kw_only=True)
class TLSPolicy(Checked):
    """One manager's settings, as one immutable value.

    Attributes:
        client_cas: anchors for client certificates; None trusts no client.
        client_auth: what servers ask of clients.
        root_cas: anchors for server certificates; None means the system's.
        server_name: reference name for dialled servers, canonical; None means the name that is dialled.
        crls: the revocation lists, for both directions; None checks no revocation.
        crl_policy: how strictly.
        clock: source of "now"; None means the machine's.
        anonymous: whether clients present no certificate, asked for it or not: they have none yet.
    """

    client_cas: CAPool | None = None
    client_auth: ClientAuth = ClientAuth.NO_CLIENT_CERT
    root_cas: CAPool | None = None
    server_name: str | None = field(default=None, metadata=rule(Parsed(canonical_host, "a DNS name or an IP address")))
    crls: CRLSet | None = None
    crl_policy: CRLPolicy = STRICT
    clock: Clock | None = None
    anonymous: bool = False

    @cached_property
    def roots(self) -> CAPool:
        """The anchors for server certificates; the system's are read once, when they are first needed.

        Raises:
            CertificateError: the system's are needed and there are none.
        """
        return CAPool.system() if self.root_cas is None else self.root_cas

    def now(self) -> datetime:
        """The time by this policy's clock, aware, UTC.

        Raises:
            ValueError: the clock gave a naive datetime.
            TypeError: it gave something else.
        """
        if self.clock is None:
            return datetime.now(UTC)
        now: object = self.clock()
        if not isinstance(now, datetime):
            msg = f"the clock of a cert manager must return an aware datetime, not {show(now)}"
            raise TypeError(msg)
        if now.tzinfo is None:
            msg = "the clock of a cert manager must return an aware datetime, datetime.now(UTC) for one"
            raise ValueError(msg)
        return now.astimezone(UTC)
