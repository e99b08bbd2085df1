"""The crowd, in a process of its own until it is killed.

`python -m benchmarks.stress.flood.crowd PORT OPEN_PORT SIZE DIRECTORY`: two ports of a node, of which the second is for
those without a certificate. The directory has a certificate that the node accepts, its key, and the node's CA.
"""

from __future__ import annotations

import logging
import random
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from benchmarks.stress.nodes import LOOPBACK
from trionode import TrionodeError
from trionode._protocol import ALPN

from . import key_updates, overstay

#: How long a client that was disconnected stays away at most. Seconds.
AWAY: Final = 3.0
#: Between the single bytes of the clients that drip. Seconds.
DRIP: Final = 0.2
#: How many clients send KeyUpdates at once, as each blocks a thread; and how many overstay, as each is a node.
THREADS: Final = 8
OVERSTAYING: Final = 24
BETA: Final = "beta@localhost"
#: How many names a large certificate has, twice: that makes 50 KB.
PARTS: Final = 1700
#: In how much time the crowd arrives. Seconds.
ARRIVAL: Final = 1.0


async def attack(
    number: int, ports: tuple[int, int], directory: str, threads: trio.CapacityLimiter, nodes: trio.CapacityLimiter
) -> None:
    """One client, for ever: of each six one says nothing, one drips, one sends garbage, one a large certificate.

    The fifth is let in by its certificate, and sends KeyUpdates where there is something that can; the sixth without
    one, and overstays.
    """
    draw, port = random.Random(number), ports[0]  # noqa: S311 -- as random as it has to be
    while True:
        if number % 6 == 5:
            async with nodes:
                with suppress(TrionodeError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    await overstay.overstay(number, BETA, ports[1], directory)
            await trio.sleep(draw.uniform(0, AWAY))
            continue
        if number % 6 == 4 and key_updates.LIBSSL is not None:
            with suppress(OSError):
                await trio.to_thread.run_sync(
                    key_updates.flood, port, directory, limiter=threads, abandon_on_cancel=True
                )
            await trio.sleep(draw.uniform(0, AWAY))
            continue
        with suppress(OSError, trio.BrokenResourceError, SSL.Error):
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                if number % 6 == 1:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drip, stream, nursery.cancel_scope)
                        await until_disconnected(stream)
                        nursery.cancel_scope.cancel()
                elif number % 6 == 2:
                    await stream.send_all(draw.randbytes(draw.randrange(1, 2000)))
                elif number % 6 == 3:
                    await show_large_certificate(stream)
                await until_disconnected(stream)
        await trio.sleep(draw.uniform(0, AWAY))


async def drip(stream: trio.SocketStream, over: trio.CancelScope) -> None:
    """Send a TLS record, one byte at a time."""
    with suppress(trio.BrokenResourceError):
        for byte in b"\x16\x03\x01\x02\x00" + bytes(512):
            await stream.send_all(bytes([byte]))
            await trio.sleep(DRIP)
    over.cancel()


@cache
def large_context() -> SSL.Context:
    """A client's, whose certificate no CA has signed, and which has 50 KB of names."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"n{number}") for number in range(PARTS)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_alpn_protos([ALPN.encode()])
    context.use_certificate(certificate)
    context.use_privatekey(key)
    return context


async def show_large_certificate(stream: trio.SocketStream) -> None:
    """Do TLS as far as the certificate: the node refuses it."""
    session = SSL.Connection(large_context(), None)
    session.set_connect_state()
    finished = False
    while not finished:
        with suppress(SSL.WantReadError):
            session.do_handshake()
            finished = True
        with suppress(SSL.WantReadError):
            while True:
                await stream.send_all(session.bio_read(65536))
        if not finished:
            data = await stream.receive_some()
            if not data:
                return
            session.bio_write(data)


async def until_disconnected(stream: trio.SocketStream) -> None:
    """Wait for the node to end the connection."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


async def attack_all(ports: tuple[int, int], size: int, directory: str) -> None:
    """All of them."""
    threads, nodes = trio.CapacityLimiter(THREADS), trio.CapacityLimiter(OVERSTAYING)
    async with trio.open_nursery() as nursery:
        for number in range(size):
            nursery.start_soon(attack, number, ports, directory, threads, nodes)
            await trio.sleep(ARRIVAL / size)


if __name__ == "__main__":
    logging.disable()  # what becomes of it is told by the node
    trio.run(attack_all, (int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3]), sys.argv[4])
