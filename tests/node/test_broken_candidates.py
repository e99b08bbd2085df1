"""Every kind of broken candidate on disk, in the middle of traffic and of hand-overs: the last good one stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trionode import (
    CertificateError,
    FileSource,
    HandedOver,
    LiveConnections,
    Renew,
    follow_source,
)
from trionode.testing import certificate_zoo, cluster_ca

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ManagerFactory, NodeFactory

    from trionode import (
        EventStream,
        KeyPair,
        Route,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

ALPHA, BETA = "alpha@localhost", "beta@localhost"
HAND_OVER = LiveConnections(on_rotation=Renew.HAND_OVER, within=0)


async def echo(channel: ServiceChannel) -> None:
    """Send everything back."""
    async for message in channel:
        await channel.send(message)


def pem(key_pair: KeyPair) -> tuple[bytes, bytes]:
    """Certificates and key, as they lie on disk."""
    key = key_pair.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return b"".join(each.public_bytes(Encoding.PEM) for each in key_pair.chain), key


def broken(ca: CertificateAuthority) -> dict[str, tuple[bytes | None, bytes | None]]:
    """What may lie there in place of a certificate and its key; None for no file."""
    zoo = certificate_zoo(ca, ALPHA)
    cert, key = pem(zoo.good)
    other_cert, other_key = pem(ca.issue(ALPHA))
    return {
        "no certificate": (None, key),
        "no key": (cert, None),
        "empty certificate": (b"", key),
        "empty key": (cert, b""),
        "half a certificate": (cert[: len(cert) // 2], key),
        "half a key": (cert, key[: len(key) // 2]),
        "swapped": (key, cert),
        "junk": (b"\0\xff" * 500, b"\0\xff" * 500),
        "another key": (cert, other_key),
        "another certificate": (other_cert, key),
        "chain out of order": (cert + other_cert, key),
        "weak key": zoo.weak_key,
        "expired": pem(zoo.expired),
        "not yet valid": pem(zoo.not_yet_valid),
        "wrong purposes": pem(zoo.wrong_eku),
    }


async def handed_over(events: EventStream) -> None:
    """Wait for the next hand-over."""
    async for event in events:
        if isinstance(event, HandedOver):
            return
    raise AssertionError("the node ended")


async def test_broken_candidates_in_the_middle_of_it(
    manager: ManagerFactory, node: NodeFactory, route_to: Callable[..., Route], tmp_path: Path
) -> None:
    """None of them is published, no message is lost, no connect fails; the good one after each is."""
    ca = cluster_ca()
    cert_file, key_file = tmp_path / "tls.crt", tmp_path / "tls.key"

    def write(cert: bytes | None, key: bytes | None) -> None:
        for file, content in (cert_file, cert), (key_file, key):
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)

    write(*pem(ca.issue(ALPHA)))
    source = FileSource(cert_file, key_file, poll_interval=3600, settle=0.001, patience=0)
    certs = manager(ALPHA, key_pair=source.read_now().key_pair, trusts=ca)
    theirs = manager(BETA, key_pair=ca.issue(BETA), trusts=ca)
    said = 0
    with trio.fail_after(40):
        async with (
            node(BETA, theirs, services={"echo": echo}) as beta,
            node(ALPHA, certs, live_connections=HAND_OVER) as alpha,
            alpha.events() as events,
            trio.open_nursery() as nursery,
        ):
            follower = await nursery.start(follow_source, certs, source)
            alpha.add_route(BETA, route_to(beta))
            connection = await alpha.connect(BETA)

            async def talk() -> None:
                nonlocal said
                async with connection.open_channel("echo") as channel:
                    while True:
                        await channel.send(b"%d" % said)
                        assert await channel.receive() == b"%d" % said
                        said += 1

            nursery.start_soon(talk)
            generation = 1
            for what, candidate in broken(ca).items():
                write(*candidate)
                with pytest.raises(CertificateError):
                    await follower.reload()
                assert certs.generation == generation, what
                before = said
                async with node(
                    "gamma@localhost", manager("gamma@localhost", key_pair=ca.issue("gamma@localhost"), trusts=ca)
                ) as gamma:
                    fresh = await gamma.connect(ALPHA, route_to(alpha))
                    assert fresh.peer_generation == generation
                write(*pem(ca.issue(ALPHA)))
                generation = await follower.reload()
                await handed_over(events)
                assert said > before
            assert connection.generation == generation == len(broken(ca)) + 1
            assert connection.live
            nursery.cancel_scope.cancel()
