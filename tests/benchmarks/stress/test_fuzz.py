"""Hostile bytes: see `python -m benchmarks.stress fuzz`; here a few inputs for each target, old findings, and limits.

What a peer may make us hold before it is authenticated has the tightest limits of all; each has its test at the end.
"""

from __future__ import annotations

import json
import logging
import tracemalloc
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.stress.command import main
from benchmarks.stress.fuzz import program
from benchmarks.stress.fuzz.campaign import Campaign, Target, Violation
from benchmarks.stress.fuzz.case import MOVE_HERE, NEW_LINK, Case, FakeStream, frame
from benchmarks.stress.fuzz.dispatch import DispatchTarget
from benchmarks.stress.fuzz.live import AsFrames
from benchmarks.stress.relay import Relay
from trionode import HandshakeError, RemoteProtocolError, _protocol as wire
from trionode._connection.core import ConnectionCore
from trionode._connection.services import Services
from trionode._handshake.accept import _FIRST_READ
from trionode._tls import handshake as tls
from trionode._tls.handshake import (
    MAX_CLIENT_FLIGHTS,
    MAX_FLIGHTS,
    client_handshake,
    server_handshake,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import ManagerFactory, NodeFactory, ScriptedPeer

    from benchmarks.stress.fuzz.life import Life
    from trionode.pki import CertificateAuthority

#: The same for a day, so that what fails can be run again, here and on other machines.
SEED: Final = datetime.now(UTC).toordinal()

NAMES: Final = (
    *("frames", "hello", "answer", "confirmation", "open", "end", "goodbye", "records", "registry", "certificates"),
    *("chains", "live-chain"),
    *("typed-points", "typed-tagged", "typed-anything", "typed-sets"),
    *("connection-dialled", "connection-accepted"),
    *("live-raw", "live-flight", "live-unverified", "live-hello", "live-confirmation", "live-frames", "live-join"),
    *("live-answer", "live-dialled"),
)


@cache
def known() -> dict[str, Target]:
    """All targets; certificates are made once."""
    return {target.name: target for target in program.targets()}


def test_every_target_is_here() -> None:
    """A new one is tried, too."""
    assert set(NAMES) == known().keys()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found(name: str) -> None:
    """A few inputs, others each day; a problem says how to repeat it."""
    target = known()[name]
    report = Campaign(target, SEED).go(inputs=program.quick_inputs(target))
    assert not report.problems
    # It would show less than it says if everything were refused alike.
    assert report.kept > 1


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("live")])
def test_what_is_valid_is_not_refused(name: str) -> None:
    """Seeds get as far as they are meant to: no protocol error is among what comes of them."""
    target = known()[name]
    assert not [out for seed in target.seeds() if "malformed" in (out := target.run(seed)) or "protocol_error" in out]


# What was found ------------------------------------------------------------------------------------------------------


def test_a_second_switch_before_the_first_hand_over_has_settled() -> None:
    """On the new link, while the old one is not closed: it once left the connection without a reader."""
    data = frame(MOVE_HERE) + frame(wire.SWITCH) + frame(NEW_LINK) + frame(wire.SWITCH)
    assert "protocol_error" in DispatchTarget(dialled=True).run(data)
    assert "protocol_error" in DispatchTarget(dialled=False).run(data)


async def test_nothing_is_committed_to_a_connection_that_does_not_run() -> None:
    """Not yet, or, where it was cancelled, no more: the link stays its maker's to close."""
    case = Case(dialled=True)
    services = Services(propagate_errors=False, expose_errors=False)
    core = ConnectionCore(case._link(case._first), case._settings(services), case)
    before = core.link
    with pytest.raises(trio.BrokenResourceError, match="being cancelled"):
        core.commit(case._link(FakeStream(b"2" * 16)), follows=before)
    assert core.link is before


# The checks can fail --------------------------------------------------------------------------------------------------


class Sample(Target):
    """A target with what is wrong of the test's choice."""

    name = "sample"
    about = "a sample"
    memory = (100_000, 16)

    def __init__(self, run: Callable[[bytes], str]) -> None:
        self._run = run

    def seeds(self) -> list[bytes]:
        """One."""
        return [b"seed of some length"]

    def run(self, data: bytes) -> str:
        """As the test wants."""
        return self._run(data)


def noting(inputs: list[bytes]) -> Callable[[bytes], str]:
    """Find nothing, and note what is tried."""

    def run(data: bytes) -> str:
        inputs.append(data)
        return "fine"

    return run


def raise_sometimes(data: bytes) -> str:
    """Fail for what is not like the seed."""
    if not data.startswith(b"seed"):
        raise KeyError(data[:1])
    return "fine"


def hold_much(data: bytes) -> str:
    """Hold a thousand times the input."""
    return "".join([str(len(bytes(10_000 * len(data))))])


def work_hard(data: bytes) -> str:
    """Call something for each pair of bytes."""
    return str(sum(abs(one - other) for one in data[::8] for other in data) * 0)


@pytest.mark.parametrize(
    ("run", "problem"),
    [(raise_sometimes, "KeyError"), (hold_much, "bytes of memory"), (work_hard, "calls for a part")],
)
def test_a_campaign_finds_what_is_wrong(run: Callable[[bytes], str], problem: str) -> None:
    """Another exception, too much memory, work that is not linear; with the input."""
    report = Campaign(Sample(run), 3).go(inputs=300)
    assert problem in report.findings[0].problem
    assert report.findings[0].seed == 3


def test_the_same_seed_gives_the_same_inputs() -> None:
    """A campaign can be repeated."""
    seen: list[list[bytes]] = []
    for _ in range(2):
        inputs: list[bytes] = []
        Campaign(Sample(noting(inputs)), 5).go(inputs=100)
        seen.append(inputs)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 50


@pytest.mark.parametrize("problem", ["crashed", "does not answer"])
def test_a_broken_connection_is_found(monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    """One that raises something else, and one that forgets to answer."""

    def crash(*_: object) -> None:
        if problem == "crashed":
            raise KeyError

    monkeypatch.setattr(ConnectionCore, "_on_frame", crash)
    target = DispatchTarget(dialled=False)
    with pytest.raises(Violation, match=problem):
        target.run(b"")


def log_an_error(_: Life) -> None:
    """As a crash would."""
    logging.getLogger("trionode.acceptor").error("out of the blue")


def log_too_much(_: Life) -> None:
    """As without a flood gate."""
    for _again in range(30):
        logging.getLogger("trionode.acceptor").warning("again")


async def leave_a_stream(life: Life) -> None:
    """As a node that forgets one."""
    [listener] = await life.network.listen("localhost", 17000)
    await life.network.connect("localhost", 17000)
    await listener.accept()


async def hang(_: Life) -> None:
    """As a node that never ends a connection."""
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (log_an_error, "logged ERROR: out of the blue"),
        (log_too_much, "31 warnings"),
        (leave_a_stream, "left open"),
        (hang, "held up for ever"),
    ],
)
def test_a_node_that_is_worse_off_is_found(
    monkeypatch: pytest.MonkeyPatch, attack: Callable[[Life], Awaitable[None] | None], problem: str
) -> None:
    """Errors and floods in the log, what is left over, what never ends."""

    async def instead(life: Life, _: bytes) -> None:
        done = attack(life)
        if done is not None:
            await done

    target = known()["live-hello"]
    monkeypatch.setattr(target, "attack", instead)
    with pytest.raises(Violation, match=problem):
        target.run(b"")


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    """A result for each target, for people or as JSON; and a list."""
    assert main(["fuzz", "--quick", "--json", "--seed", "3", "--target", "frames", "--target", "open"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["target"], second["target"], first["inputs"]) == ("frames", "open", program.QUICK[""])
    assert first["seed"] == second["seed"] == 3
    assert main(["fuzz", "--seconds", "0.1", "--target", "frames"]) == 0
    assert "frames: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", "--list"])
    assert ended.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(known())


def test_quick_runs_differ_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a seed of its own, which is in its result; with `--seed` the inputs are the same."""
    inputs: list[bytes] = []
    monkeypatch.setattr(program, "targets", lambda: [Sample(noting(inputs))])
    monkeypatch.setitem(program.QUICK, "", 50)
    runs: list[list[bytes]] = []
    for options in [], [], ["--seed", "4711"], ["--seed", "4711"]:
        inputs.clear()
        assert main(["fuzz", "--quick", *options]) == 0
        runs.append(list(inputs))
    assert runs[0] != runs[1]
    assert runs[2] == runs[3]


def test_the_command_shows_a_finding_and_keeps_it_where_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As hex, with what repeats it; and that repeats it."""
    monkeypatch.setattr(program, "targets", lambda: [Sample(raise_sometimes)])
    assert main(["fuzz", "--quick", "--seed", "0", "--save", str(tmp_path / "found")]) == 1
    told = capsys.readouterr().err
    assert "PROBLEM: sample, seed 0: KeyError" in told
    file = next(iter((tmp_path / "found").iterdir()))
    found = file.read_text().strip()
    assert f"--target sample --reproduce {found}" in told
    assert main(["fuzz", "--target", "sample", "--reproduce", found]) == 1
    assert "KeyError" in capsys.readouterr().err
    assert main(["fuzz", "--target", "sample", "--reproduce", b"seed".hex()]) == 0
    assert "sample: fine" in capsys.readouterr().out


# Before authentication ------------------------------------------------------------------------------------------------


class Counted(Relay):
    """A transport that counts what is taken from it."""

    def __init__(self, transport: trio.abc.HalfCloseableStream) -> None:
        super().__init__(transport)
        self.reads: list[tuple[int | None, int]] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, and count."""
        data = await super().receive_some(max_bytes)
        self.reads.append((max_bytes, len(data)))
        return data


def record(kind: int, data: bytes) -> bytes:
    """A TLS record."""
    return bytes([kind, 3, 3]) + len(data).to_bytes(2, "big") + data


async def test_a_client_hello_may_only_be_so_long(manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 128 KiB, which OpenSSL would collect, is cut off at a quarter of it; and nothing more is taken."""
    monkeypatch.setattr(tls, "LINGER_BYTES", 0)
    near, far = trio.testing.memory_stream_pair()
    transport = Counted(near)
    await far.send_all(record(22, b"\x01" + (131_000).to_bytes(3, "big") + bytes(12_000)))
    await far.send_all(record(22, bytes(12_000)) * 20)
    contexts = await manager("beta@localhost").contexts.receive()
    with pytest.raises(HandshakeError, match="more than a TLS handshake takes"):
        await server_handshake(transport, contexts)
    taken = [count for _, count in transport.reads]
    assert sum(taken) == MAX_CLIENT_FLIGHTS
    assert all(limit is not None for limit, _ in transport.reads[:-1])


async def test_a_servers_flight_may_only_be_so_long(manager: ManagerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialer has not authenticated its peer then either."""
    monkeypatch.setattr(tls, "LINGER_BYTES", 0)
    near, far = trio.testing.memory_stream_pair()
    transport = Counted(near)
    await far.send_all(record(22, b"\x02" + (100_000).to_bytes(3, "big") + bytes(12_000)))
    await far.send_all(record(22, bytes(12_000)) * 20)
    contexts = await manager("alpha@localhost").contexts.receive()
    with pytest.raises(HandshakeError):
        await client_handshake(transport, contexts, reference="localhost")
    assert sum(count for _, count in transport.reads) <= MAX_FLIGHTS + 2 * 16 * 1024


async def test_the_first_read_is_bounded(node: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a context was taken for it, a client gets one read of 16 KiB."""
    monkeypatch.setattr(tls, "LINGER", 0.01)
    assert _FIRST_READ <= 16 * 1024
    near, far = trio.testing.memory_stream_pair()
    transport = Counted(near)
    await far.send_all(bytes(200_000))
    async with node("beta@localhost") as beta:
        await beta._acceptors.loops[0].handle(transport)
    assert transport.reads[0] == (_FIRST_READ, _FIRST_READ)
    assert sum(count for _, count in transport.reads) <= 512 * 1024


async def test_an_honest_handshake_fits_several_times(manager: ManagerFactory) -> None:
    """The limit is far above what honest peers need, and far below what OpenSSL would take."""
    near, far = map(Counted, trio.testing.memory_stream_pair())
    ours, theirs = manager("beta@localhost"), manager("alpha@localhost")

    async def accept() -> None:
        await server_handshake(near, await ours.contexts.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await client_handshake(far, await theirs.contexts.receive(), reference="localhost")
    for end in near, far:
        assert 0 < sum(count for _, count in end.reads) < MAX_CLIENT_FLIGHTS / 8


@pytest.mark.parametrize(("names", "why"), [(900, "unknown_ca"), (1200, "excessive message size")])
async def test_a_large_certificate_is_not_parsed(
    manager: ManagerFactory, rogue_ca: CertificateAuthority, names: int, why: str
) -> None:
    """A client's of up to 32 KiB is judged as any other; one that is larger is refused for its size, unparsed."""
    near, far = trio.testing.memory_stream_pair()
    server = manager("beta@localhost")
    pair = rogue_ca.issue(*(f"host-{number:014}.example" for number in range(names)))
    client = manager("alpha@localhost", key_pair=pair)
    assert 24 * 1024 < len(pair.certificate.public_bytes(Encoding.DER)) < 50 * 1024

    async def dial() -> None:
        with suppress(HandshakeError, trio.BrokenResourceError):
            stream = await client_handshake(far, await client.contexts.receive(), reference="localhost")
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(HandshakeError) as refused:
            await server_handshake(near, await server.contexts.receive())
        nursery.cancel_scope.cancel()
    assert refused.value.reason == why


async def test_a_hello_that_is_too_long_is_refused_by_its_length(
    node: NodeFactory, manager: ManagerFactory, scripted_dial: Callable[..., Awaitable[ScriptedPeer]]
) -> None:
    """Two bytes suffice; the rest is neither waited for nor held."""
    async with node("beta@localhost") as beta:
        for length, refused in ((wire.MAX_HELLO + 1, True), (wire.MAX_HELLO, False)):
            peer = await scripted_dial(beta, manager("alpha@localhost"))
            await peer.stream.send_all(length.to_bytes(2, "big"))
            with trio.move_on_after(0 if not refused else 10) as waiting:
                await peer.hear_end()
            assert waiting.cancelled_caught is not refused
            await trio.aclose_forcefully(peer.stream)


@pytest.mark.parametrize("piece", [1, 100, 4096])
def test_the_hello_reader_holds_a_hello_and_no_more(piece: int) -> None:
    """However it comes, in memory and in what is fed to it at once."""
    data = wire.MAX_HELLO.to_bytes(2, "big") + b"\xc1" * wire.MAX_HELLO
    reader = wire.HelloReader()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for at in range(0, len(data) - 1, piece):
            reader.feed(data[at : min(at + piece, len(data) - 1)])
            assert reader.next(wire.Hello) is None
        reader.feed(data[-1:])
        with pytest.raises(RemoteProtocolError):
            reader.next(wire.Hello)
        assert tracemalloc.get_traced_memory()[1] - before < 8 * wire.MAX_HELLO
    finally:
        tracemalloc.stop()


async def test_a_flood_behind_a_hello_is_not_taken_in(
    node: NodeFactory,
    manager: ManagerFactory,
    scripted_dial: Callable[..., Awaitable[ScriptedPeer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a client sends behind an announcement is decrypted in pieces of a hello's size."""
    fed: list[int] = []
    feed = wire.HelloReader.feed

    def watched(reader: wire.HelloReader, data: bytes) -> None:
        fed.append(len(data))
        feed(reader, data)

    monkeypatch.setattr(wire.HelloReader, "feed", watched)
    async with node("beta@localhost") as beta:
        peer = await scripted_dial(beta, manager("alpha@localhost"))
        flood = wire.MAX_HELLO.to_bytes(2, "big") + b"\xc1" * 60_000
        with suppress(trio.BrokenResourceError):
            await peer.stream.send_all(flood)
        await peer.hear_end()
        await trio.aclose_forcefully(peer.stream)
    assert fed
    assert max(fed) <= wire.MAX_HELLO
    assert sum(fed) <= 2 * wire.MAX_HELLO + 2


def test_a_peer_that_breaks_the_protocol_again_and_again_does_not_flood_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thirty connections that end with a protocol error are twenty warnings, and a count later."""
    target = known()["live-frames"]
    assert isinstance(target, AsFrames)
    attack = target.attack

    async def again(life: Life, data: bytes) -> None:
        for _ in range(30):
            await attack(life, data)

    monkeypatch.setattr(target, "attack", again)
    assert "protocol_error" in target.run(frame(0x7F))  # more than `MOST_WARNINGS` would be a finding
