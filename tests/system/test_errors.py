"""Errors travel between processes, and what a peer is cannot be made up."""

from __future__ import annotations

import pickle
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from trionode import (
    CertAuthManager,
    CertificateError,
    CertificateReason,
    HandshakeError,
    KeyPair,
    ListenError,
    NodeName,
    NodeOptions,
    NoRouteError,
    Peer,
    PeerUnverifiedError,
    RemoteCode,
    RemoteError,
    Stage,
    TrionodeError,
    UnverifiedReason,
)
from trionode._identity.peer import established_peer
from trionode._managers.manager import publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_PAIR = KeyPair.self_signed("localhost")
NAME = NodeName.parse("alpha@localhost")


@pytest.mark.parametrize(
    "error",
    [
        CertificateError("expired", reason=CertificateReason.EXPIRED),
        HandshakeError("broke", stage=Stage.TLS, reason="truncated", address=("127.0.0.1", 1), generation=3),
        ListenError("taken", address=("*", 1), tried=[("*", 1), ("*", 2)]),
        NoRouteError("none", name=NAME, causes=ExceptionGroup("tried", [OSError("no")])),
        RemoteError("its words", code=RemoteCode.FAILED),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: TrionodeError) -> None:
    """An error comes out of a pickle with its class, its text and its data."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own, made one line above
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {**vars(copy), "causes": None} == {**vars(error), "causes": None}


def test_a_certificate_does_not_keep_an_error_from_being_pickled() -> None:
    """What cannot be pickled is None in the copy; the text has its facts anyway."""
    error = PeerUnverifiedError(
        "refused", stage=Stage.TLS, reason=UnverifiedReason.EXPIRED, certificate=KEY_PAIR.certificate, wanted="a"
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own, made one line above
    assert (copy.reason, copy.wanted, copy.certificate) == (UnverifiedReason.EXPIRED, "a", None)


def test_a_peer_has_no_public_constructor() -> None:
    """Only a handshake makes a peer, and nothing changes it afterwards."""
    with pytest.raises(TypeError, match="only a handshake makes one"):
        Peer()
    peer = established_peer(NAME, certificate=None, verified=False, address=None, incarnation=1)
    with pytest.raises(AttributeError, match="immutable"):
        peer.verified = True
    assert not peer.verified
    assert "NOT verified" in repr(peer)


def naive() -> datetime:
    """A clock that does not say in which zone."""
    return datetime(2030, 1, 1)  # noqa: DTZ001 -- that is the mistake


async def test_a_naive_clock_is_refused() -> None:
    """A clock without a zone would be read as local time; it is an error instead."""
    manager = CertAuthManager(KEY_PAIR, clock=naive)
    with pytest.raises(ValueError, match="aware"), publisher_of(manager).use(as_server=True):
        pass


async def later(_: Peer) -> None:
    """Looks like an authorize function, and would admit every peer."""


@pytest.mark.parametrize("authorize", [later, "alpha@localhost"])
def test_authorize_has_to_be_a_plain_function(authorize: Callable[[Peer], None]) -> None:
    """An async function, or no function at all, is refused when the options are made."""
    with pytest.raises(TypeError, match="plain"):
        NodeOptions(cert_manager=CertAuthManager(KEY_PAIR), authorize=authorize)
