"""Revocation lists: what their size costs, in handshakes and in rotations. Ours alone.

The lists are read beforehand, which takes about 1 µs for each entry, in a thread where the event loop must not wait.
How long it does wait meanwhile is a note of `revocation-rotate`.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.latency import percentile
from benchmarks.suite.arena import OURS, contestant
from benchmarks.suite.model import Better, Scenario, Target
from benchmarks.suite.peers import nodes
from trionode import CRLSet

from .rotation import key_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.suite.arena import Arena
    from benchmarks.suite.credentials import Credentials
    from benchmarks.suite.model import Contestant, Sample

#: How often the event loop is looked at while a list is read. Seconds.
TICK: Final = 0.001


def crl_file(credentials: Credentials, entries: int, number: int) -> Path:
    """A list of the CA's with random serial numbers; made when it is first asked for."""
    file = credentials.directory / f"{entries}-{number}.crl"
    if not file.exists():
        now, chance = datetime.now(UTC), random.Random(number)  # noqa: S311 -- serial numbers of nobody
        revoked = [
            x509.RevokedCertificateBuilder().serial_number(chance.getrandbits(127) | 1).revocation_date(now).build()
            for _ in range(entries)
        ]
        issuer = x509.load_pem_x509_certificate(credentials.ca.read_bytes()).subject
        builder = x509.CertificateRevocationListBuilder(issuer, now, now + timedelta(days=1), [], revoked)
        file.write_bytes(builder.sign(credentials.ca_key, hashes.SHA256()).public_bytes(Encoding.DER))
    return file


async def connect(arena: Arena, *, listed: bool) -> Sample:
    """Connections one after the other, both sides with lists or without."""
    peer, count = arena.peer, arena.job.count
    assert isinstance(peer, nodes.ThePeer)
    if listed:
        crls = CRLSet.load(crl_file(arena.job.credentials, int(arena.job.parameters["entries"]), 1))
        for manager in peer.server_manager, peer.client_manager:
            manager.rotate_trust(crls=crls)
    with arena.watch() as watch:
        for _ in range(count):
            async with arena.client.dial():
                pass
    return watch.rate(count)


async def rotate(arena: Arena, *, entries: int | None) -> Sample:
    """Publish lists and key pairs under a live connection; and read lists beside a loop that is watched."""
    peer, count = arena.peer, arena.job.count
    assert isinstance(peer, nodes.ThePeer)
    manager, pairs = peer.server_manager, key_pairs(arena.job.credentials)
    size = entries or int(arena.job.parameters["entries"])
    files = [crl_file(arena.job.credentials, size, number) for number in (1, 2)]
    stall = 0.0
    sets: list[CRLSet] = []
    for file in files:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, watched := [0.0])
            sets.append(await trio.to_thread.run_sync(CRLSet.load, file))
            nursery.cancel_scope.cancel()
        stall = max(stall, *watched)
    crls, rotations, updates = cycle(sets), list[float](), list[float]()
    async with arena.client.dial():
        with arena.watch() as watch:
            for _ in range(count):
                chosen, pair = next(crls), next(pairs)
                begin = time.perf_counter()
                manager.rotate_trust(crls=chosen)
                rotations.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                manager.update(pair)
                updates.append(time.perf_counter() - begin)
    both = [sum(each) for each in zip(rotations, updates, strict=True)]
    return watch.sample(
        percentile(both, 0.5) * 1e3,
        count,
        worst_rotation=max(rotations) * 1e3,
        worst_update=max(updates) * 1e3,
        stall_while_reading=stall * 1e3,
    )


async def _watch(worst: list[float]) -> None:
    """Note the longest time for which the event loop did not get round."""
    while True:
        begin = trio.current_time()
        await trio.sleep(TICK)
        worst[0] = max(worst[0], trio.current_time() - begin - TICK)


NONE, SHORT, LONG = ", no lists", ", 1 revoked", ", 200 000 revoked"


def _rotate(suffix: str, entries: int | None) -> Contestant:
    return contestant(OURS, partial(rotate, entries=entries), suffix=suffix)


SCENARIOS: Final = (
    Scenario(
        name="revocation-connect",
        measures="Connections one after the other, without lists and with one of 200 000 entries on both sides.",
        unit="/s",
        better=Better.HIGHER,
        contestants=[contestant(OURS, connect, suffix=suffix, listed=suffix == LONG) for suffix in (NONE, LONG)],
        baseline=OURS + NONE,
        targets=[Target(of=OURS + LONG, against=OURS + NONE, at_least=0.9)],
        start=8,
        seconds=0.7,
        quick_start=4,
        full={"entries": 200_000},
        quick={"entries": 2000},
    ),
    Scenario(
        name="revocation-rotate",
        measures="How long `rotate_trust()` with another list of 200 000 entries and `update()` take, together.",
        unit="ms",
        better=Better.LOWER,
        contestants=[_rotate(SHORT, 1), _rotate(LONG, None)],
        baseline=OURS + SHORT,
        targets=[Target(of=OURS + LONG, against=OURS + SHORT, at_most=1.15)],
        start=20,
        quick_start=2,
        full={"entries": 200_000},
        quick={"entries": 2000},
    ),
)
