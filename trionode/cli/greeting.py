"""The last step of `trionode explain`: the hello, by a real dial of a node that does not listen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from trionode import (
    CertAuthManager,
    ClientAuth,
    HandshakeError,
    HandshakeTimeoutError,
    NetworkMode,
    NetworkOptions,
    NodeName,
    NodeOptions,
    PeerRejectedError,
    PeerUnverifiedError,
    RejectionCode,
    Stage,
    open_node,
)
from trionode._identity.names import SubjectNames

from .diagnosis import HELLO_REMEDIES, OUR_CERTIFICATE, Diagnosis, Ours, Step, rejected
from .shown import now_utc

if TYPE_CHECKING:
    from cryptography import x509

    from trionode import Route
    from trionode._tls.probe import Inspection

HELLO: Final = "hello"


async def greet(
    node: NodeName, name: NodeName, ours: Ours, route: Route, looked: Inspection, *, within: float
) -> tuple[Step, Diagnosis | None]:
    """Dial a node, and say what came of it.

    Args:
        node: the node to reach.
        name: our own node name.
        ours: our credentials; with a key pair.
        route: where the node is.
        looked: the handshake that only looked: who the server accepts is in it.
        within: for connecting, and again for the handshake. Seconds.
    """
    assert ours.key_pair is not None
    manager = CertAuthManager(
        ours.key_pair, root_cas=ours.root_cas, client_auth=ClientAuth.NO_CLIENT_CERT, crls=ours.crls
    )
    network = NetworkOptions(
        mode=NetworkMode.HIDDEN, connect_timeout=within, handshake_timeout=within, cookie=ours.cookie
    )
    try:
        async with open_node(name, NodeOptions(cert_manager=manager, network=network)) as dialer:
            began = trio.current_time()
            connection = await dialer.connect(node, route)
            took = trio.current_time() - began
            verified = "verified" if connection.peer.verified else "NOT verified"
            return Step(
                name=HELLO,
                outcome="ok",
                text=f"{name} and {connection.peer.name} accept each other, {verified}, in {took * 1000:.0f} ms",
                details=(f"the server is at generation {connection.peer_generation} of its certificates",),
            ), None
    except PeerRejectedError as exc:
        return _rejected(exc, node, name, ours.key_pair.certificate, looked)
    except PeerUnverifiedError as exc:
        remedy = HELLO_REMEDIES.get(exc.reason, "Check the server's options")
        return _failed(f"we refused the server: {exc.reason.replace('_', ' ')}", exc.reason, exc, remedy)
    except HandshakeTimeoutError as exc:
        return _failed(f"no answer within {within:g} s", "timeout", exc, "The node is overloaded, or hangs")
    except HandshakeError as exc:
        return _failed("the connection broke", exc.reason, exc, "The node's log says more")


def _rejected(
    error: PeerRejectedError, node: NodeName, name: NodeName, certificate: x509.Certificate, looked: Inspection
) -> tuple[Step, Diagnosis | None]:
    code = error.code.replace("_", " ")
    if error.code is RejectionCode.NAME_IN_USE:
        return Step(
            name=HELLO,
            outcome="ok",
            text=f"{node} has a live connection to {name} already: everything up to that was accepted",
            details=("give another name with --as to see the hello through",),
        ), None
    if error.stage is Stage.TLS:  # the verdict on our certificate, later than we had waited for it
        step = Step(name=OUR_CERTIFICATE, outcome="failed", text=f"the server refused it: {code}")
        return step, rejected(error.code, certificate, looked, now_utc())
    remedy = HELLO_REMEDIES.get(error.code, "Its log says why")
    return _failed(f"the server refused us: {code}", error.code, error, remedy)


def _failed(text: str, code: str, error: HandshakeError, remedy: str) -> tuple[Step, Diagnosis]:
    diagnosis = Diagnosis(code=str(code), step=HELLO, message=str(error), remedy=remedy)
    return Step(name=HELLO, outcome="failed", text=text), diagnosis


def only_node(leaf: x509.Certificate) -> NodeName | None:
    """The node that a certificate is for; None if it is for none, for several, or for any on its hosts."""
    nodes = SubjectNames.of(leaf).nodes
    return next(iter(nodes)) if len(nodes) == 1 else None


def own_name(ours: Ours) -> NodeName | None:
    """A name to go by: one that our certificate is restricted to; else one that no node is likely to have."""
    if ours.key_pair is None:
        return None
    names = SubjectNames.of(ours.key_pair.certificate)
    if names.restricted:
        return next(iter(sorted(names.nodes)), None)
    hosts = [pattern.pattern.decode() for pattern in names.dns if not pattern.pattern.startswith(b"*")]
    return NodeName("explain", hosts[0]) if hosts else None
