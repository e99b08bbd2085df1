"""What to do about what a connection fails of, where a sentence of its own is enough."""

from __future__ import annotations

from typing import Final

from trionode import RejectionCode, UnverifiedReason

THEIR_POOL: Final = (
    "Add our CA to the server's client_cas (rotate_trust() while it runs), or have our certificate issued by a CA that "
    "is there. If its CA file was changed, the process has not taken that up: compare with --expect-client-ca FILE"
)

ALERT_REMEDIES: Final = {
    RejectionCode.PROTOCOL_VERSION: "It speaks neither TLS 1.3 nor 1.2: upgrade it",
    RejectionCode.HANDSHAKE_FAILURE: "Nothing that both sides speak: old ciphers, or it wants something that we have "
    "not; its log says what",
    RejectionCode.UNRECOGNIZED_NAME: "It knows no such server name (SNI): dial a name that it serves, or set it with "
    "--server-name",
    RejectionCode.INTERNAL_ERROR: "Its own fault: no usable certificate, or none for this name; its log says why",
}

PATH_REMEDIES: Final = {
    UnverifiedReason.REVOKED: "Issue the server a new one, with a new key if that was the reason",
    UnverifiedReason.REVOCATION_UNKNOWN: "Give the current revocation list of that CA (--crl)",
}

REJECTION_REMEDIES: Final = {
    RejectionCode.CERTIFICATE_REVOKED: "Issue a new one, with a new key if that was the reason",
    RejectionCode.UNSUPPORTED_CERTIFICATE: "Issue it with both serverAuth and clientAuth: a node is a server and a "
    "client",
    RejectionCode.CERTIFICATE_UNKNOWN: "The server could not check it, for one because a revocation list of its is "
    "missing or has expired; its log says what",
    RejectionCode.ACCESS_DENIED: "The certificate is good, but whoever it is for is not let in",
}

HELLO_REMEDIES: Final[dict[str, str]] = {
    RejectionCode.CLAIMED_NAME: "Open the node under a name that its certificate covers, or issue it for this name",
    RejectionCode.NOT_AUTHORIZED: "The server's authorize function decides; see there",
    RejectionCode.COOKIE: "Give both sides the same cookie (--cookie-file)",
    RejectionCode.VERSION: "Upgrade the older of the two",
    RejectionCode.SHUTTING_DOWN: "It is about to end; try again when it is up",
}
