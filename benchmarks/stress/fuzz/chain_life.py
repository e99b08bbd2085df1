"""Nodes and a peer whose certificates are almost valid: it dials them, twice, in each mode, and is dialed.

What has to hold is what `life` says: the nodes go on, and nothing of the peer is left.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import trio

from trionode import CAPool, CertificateError, HandshakeError, TrustRotationError, _protocol as wire
from trionode._tls.handshake import client_handshake

from .chains import Chain, ChainTarget, forged_of
from .life import ANY_PORT, BETA, LIMITS, MALLORY, PORT, Life, Session, World, hello
from .live import LiveTarget

if TYPE_CHECKING:
    from .campaign import Target


class ForgedWorld(World):
    """Its nodes also trust the CA of the forged chains."""

    def __init__(self) -> None:
        super().__init__()
        pool = self.ca.pool | CAPool.from_pem(Chain(b"").trusted)
        for manager in (*self.managers.values(), self.any_manager):
            manager.rotate_trust(client_cas=pool, root_cas=pool)


class PresentsAChain(LiveTarget):
    """In the handshake: the input is a certificate of the peer's chain."""

    name = "live-chain"
    about = "a node, with a chain that is almost valid, as a client and as a server"

    def __init__(self, world: World) -> None:
        super().__init__(world, ChainTarget())

    async def attack(self, life: Life, data: bytes) -> None:
        """Dial each acceptor twice, be dialed; meanwhile trust is rotated."""
        chain = Chain(data)
        forged = cast("Any", forged_of(chain))
        if forged is None:
            life.outcomes.add("not for OpenSSL")
            return
        async with trio.open_nursery() as nursery:
            for port in (ANY_PORT, PORT) * 2:
                transport = await life.network.connect("localhost", port)
                with suppress(HandshakeError):
                    stream = await client_handshake(transport, forged, reference="localhost", alpn=(wire.ALPN,))
                    session = Session(stream, nursery)
                    await session.say(wire.encode_hello(hello()))
                    await session.hear(wire.Answer)
                    await session.say(wire.encode_hello(wire.Confirmation()))
                    await trio.sleep(0.1)
                    self._rotate(chain)
                    await session.leave()
            await life.accept(self._answer, forged)

    def _rotate(self, chain: Chain) -> None:
        """What is in question becomes trusted as well, and is not any more."""
        with suppress(CertificateError, TrustRotationError):
            pool = CAPool.from_pem(chain.trusted)
            for manager in (self.world.managers[BETA], self.world.any_manager):
                before = manager.client_cas
                manager.stranded_by(client_cas=pool, root_cas=pool)
                assert before is not None
                manager.rotate_trust(client_cas=before | pool)
                manager.rotate_trust(client_cas=before)

    async def _answer(self, session: Session) -> None:
        await session.hear(wire.Hello)
        honest = wire.Answer(version=1, name=MALLORY, incarnation=1, generation=1, limits=LIMITS, verified=True)
        await session.say(wire.encode_hello(honest))
        await session.hear(wire.Confirmation)


def targets() -> list[Target]:
    """The one here."""
    return [PresentsAChain(ForgedWorld())]
