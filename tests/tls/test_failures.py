"""The one builder of handshake errors: each says where the handshake stood, and loses nothing when it is repeated."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest
import trio

from trionode import (
    ClientAuth,
    HandshakeError,
    HandshakeReason,
    HandshakeTimeoutError,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    RemoteProtocolError,
    Stage,
    UnverifiedReason,
)
from trionode._credentials.policy import TLSPolicy
from trionode._tls.contexts import TLSContexts
from trionode._tls.failures import HandshakeErrors
from trionode._tls.handshake import handshake_in_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode.pki import CertificateAuthority

ADDRESS = ("192.0.2.1", 15000)

BUILT: list[tuple[Callable[[HandshakeErrors], HandshakeError], type[HandshakeError], str, type[Exception] | None]] = [
    (lambda errors: errors.unverified(UnverifiedReason.COOKIE, "no"), PeerUnverifiedError, "cookie", None),
    (lambda errors: errors.rejected_by_alert("unknown ca"), PeerRejectedError, "unknown_ca", None),
    (lambda errors: errors.rejected_by_alert("brand new"), PeerRejectedError, "other", None),
    (lambda errors: errors.rejected_in_hello("cookie", "no"), PeerRejectedError, "cookie", None),
    (
        lambda errors: errors.failed(HandshakeReason.UNREACHABLE, f"{errors.peer} is away", OSError()),
        HandshakeError,
        "unreachable",
        OSError,
    ),
    (lambda errors: errors.misbehaved("http request"), HandshakeError, "http request", RemoteProtocolError),
    (lambda errors: errors.truncated(), HandshakeError, "truncated", trio.BrokenResourceError),
    (lambda errors: errors.timed_out(f"{errors.peer} is slow"), HandshakeTimeoutError, "timeout", None),
]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(("build", "kind", "reason", "cause"), BUILT)
def test_every_error_says_where_the_handshake_stood(
    build: Callable[[HandshakeErrors], HandshakeError],
    kind: type[HandshakeError],
    reason: str,
    cause: type[Exception] | None,
    stage: Stage,
) -> None:
    """Stage, address and generation are facts, and the address is in the text where it is known."""
    errors = HandshakeErrors(address=ADDRESS, generation=3).at_stage(stage)
    error = build(errors)
    assert type(error) is kind
    assert (error.stage, error.reason, error.address, error.generation) == (stage, reason, ADDRESS, 3)
    assert "192.0.2.1 port 15000" in str(error)
    assert cause is None or isinstance(error.__cause__, cause)
    unplaced = build(HandshakeErrors())
    assert (unplaced.address, unplaced.generation) == (None, None)
    assert " at " not in str(unplaced)


def test_a_rejection_says_what_was_presented(ca: CertificateAuthority) -> None:
    """As a fact, and in words; for nothing, too."""
    certificate = ca.issue("alpha.example").certificate
    error = HandshakeErrors(presented=certificate).rejected_by_alert("certificate expired")
    assert (error.code, error.presented) == (RejectionCode.CERTIFICATE_EXPIRED, certificate)
    assert "we presented CN=alpha.example" in str(error)
    bare = HandshakeErrors().rejected_in_hello("no\nsuch code", "because\x1b[2J")
    assert (bare.code, bare.presented) == (RejectionCode.OTHER, None)
    assert "no\\nsuch code: because\\x1b[2J (we presented no certificate)" in str(bare)


def test_what_a_session_raises_is_raised_again_as_it_was(
    ca: CertificateAuthority, rogue_ca: CertificateAuthority
) -> None:
    """The same error with its cause, however often it is met; its traceback does not grow."""
    mutual = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT
    policy = TLSPolicy(client_cas=ca.pool, root_cas=rogue_ca.pool, client_auth=mutual)
    key_pair = rogue_ca.issue("beta.example")
    contexts = TLSContexts.build(7, key_pair, policy)
    errors = HandshakeErrors(address=ADDRESS, generation=7, presented=key_pair.certificate)
    server, client = contexts.server.session(errors=errors), contexts.client.session(reference="beta.example")
    refusal = handshake_in_memory(server, client)
    assert isinstance(refusal, PeerUnverifiedError)
    assert (refusal.reason, refusal.address, refusal.generation) == (UnverifiedReason.UNKNOWN_CA, ADDRESS, 7)
    assert refusal.failed_at is not None
    depths = set()
    for _ in range(5):
        with pytest.raises(PeerUnverifiedError) as caught:
            server.decrypt()
        assert caught.value is refusal
        depths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(depths) == 1
    with pytest.raises(PeerRejectedError):
        client.decrypt()
    client, other = contexts.client.session(reference="beta.example"), b"HTTP/1.1 400 Bad Request\r\n\r\n"
    client.handshake()
    client.feed(other)
    for _ in range(2):
        with pytest.raises(HandshakeError) as failed:
            client.handshake()
        assert isinstance(failed.value.__cause__, RemoteProtocolError)
