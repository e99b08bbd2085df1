"""One exchange between two nodes, cut, stalled and corrupted at every kind of byte: see the stress program `faults`.

Every byte is what its option `--all` is for; here it is both sides of the edges of TLS records, and some bytes in
between. A problem names the options that repeat it there.
"""

from __future__ import annotations

import json
import math

import pytest
import trio

from benchmarks.stress.command import main
from benchmarks.stress.faults import exchange, world as worlds
from benchmarks.stress.faults.exchange import Outcome
from benchmarks.stress.faults.world import DIRECTIONS, FAULTS, World, records
from trionode._connection.receive_half import ReceiveHalf
from trionode._connection.send_half import SendHalf
from trionode._tls.stream import SessionStream
from trionode.testing import Faults, Script

#: A sweep tries one in so many edges, and each fault begins at another: so each edge is met by one fault or two. There
#: are 5 around each end of a record, which this does not divide: so each fault meets edges of every kind.
EDGES = 3
#: Besides the edges, every so many bytes: a prime, so that what repeats is not always met at the same place.
STRIDE = 997


@pytest.fixture(scope="module")
def world() -> World:
    """Certificates, and an exchange that went well."""
    return World()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_to_a_link_is_a_documented_error(world: World, fault: str, direction: str) -> None:
    """Success or a documented error in time; nothing lost, doubled, altered or leaked; and the nodes go on."""
    size = world.sizes[direction]
    outcomes: dict[str, int] = {}
    problems: dict[int, list[str]] = {}
    first = FAULTS.index(fault)
    edges, between = world.edges(direction)[first % EDGES :: EDGES], range(first * 199, size, STRIDE)
    last_needed = world.reference.done[direction] - 1  # of the call, which is short
    for offset in sorted({*edges, *between, last_needed}):
        result = world.with_fault(fault, direction, offset)
        step = result.outcome.split(":")[0]
        outcomes[step] = outcomes.get(step, 0) + 1
        if result.problems:
            problems[offset] = result.problems
    assert not problems
    # The sweep has met every part of the exchange, or it would show less than it says.
    assert outcomes.keys() == {"connect", "channel", "call", "success"}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_fault_behind_the_last_byte_does_nothing(world: World, direction: str) -> None:
    """The sweep's own zero: where nothing is cut, everything works."""
    for fault in FAULTS:
        result = world.with_fault(fault, direction, world.sizes[direction] + 1000)
        assert (result.outcome, result.problems) == ("success", [])


def test_the_edges_are_those_of_the_records(world: World) -> None:
    """The first flight and its header are among them, and the last byte."""
    assert records(b"\x16\x03\x01\x00\x02ab\x17\x03\x03\x00\x00") == [0, 7, 12]
    for direction in DIRECTIONS:
        edges = world.edges(direction)
        assert edges[:4] == [0, 1, 4, 5]
        assert edges[-1] == world.sizes[direction]
        assert len(edges) > 50


# The checks can fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("altered", "received something else"),
        ("twice", "received something else"),
        ("swapped", "received something else"),
        ("lost", "a truncation"),
    ],
)
def test_the_sweep_notices_messages_that_are_not_what_was_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, problem: str
) -> None:
    """A node that alters a message, gives one twice, two in the wrong order or one not at all is a problem."""
    deliver = ReceiveHalf._deliver
    kept: list[bytes] = []

    def wrongly(channel: ReceiveHalf, message: bytes) -> None:
        if kind == "altered":
            deliver(channel, message.replace(b"3", b"8"))
        elif message != b"message 3":
            deliver(channel, message)
            if kept and kind == "swapped":
                deliver(channel, kept.pop())
        elif kind == "twice":
            deliver(channel, message)
            deliver(channel, message)
        else:
            kept.append(message)

    monkeypatch.setattr(ReceiveHalf, "_deliver", wrongly)
    assert problem in str(world.with_fault("reset_after", "there", 10**6).problems)


def test_the_sweep_notices_a_failure_without_a_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A documented error is no excuse where nothing went wrong."""

    def refuse(*_: object) -> None:
        raise trio.BrokenResourceError("out of the blue") from OSError()

    monkeypatch.setattr(SendHalf, "try_send", refuse)
    assert "although nothing went wrong" in str(world.with_fault("reset_after", "there", 10**6).problems)


def test_the_sweep_notices_a_stream_that_is_left_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TLS stream that forgets its transport is a leak, while the nodes go on and after they were closed."""

    async def forgetful(stream: SessionStream) -> None:
        stream._closed = True
        await trio.lowlevel.checkpoint()

    async def forget(_: trio.abc.AsyncResource) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SessionStream, "aclose", forgetful)
    monkeypatch.setattr(trio, "aclose_forcefully", forget)
    problems = str(world.with_fault("reset_after", "there", 10**6).problems)
    assert "streams are left open" in problems
    assert "left open: [<MemoryStream" in problems


@pytest.mark.parametrize("step", ["channel", "connect"])
def test_the_sweep_notices_what_takes_too_long(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Deadlines that are longer than promised show, and so does waiting for ever."""
    # The options that are given follow these; what is promised stays.
    monkeypatch.setattr(exchange, "HEARTBEAT", 60.0)
    monkeypatch.setattr(exchange, "HANDSHAKE_TIMEOUT", 60.0)
    monkeypatch.setattr(exchange, "CONNECT_TIMEOUT", 60.0)
    offset = 100 if step == "connect" else world.reference.done["back"] - 4000
    problems = str(world.with_fault("stall_after", "back", offset).problems)
    assert f"the step {step!r} took" in problems
    monkeypatch.setattr(exchange, "HEARTBEAT", math.inf)
    monkeypatch.setattr(exchange, "HANDSHAKE_TIMEOUT", math.inf)
    problems = str(world.with_fault("stall_after", "back", offset).problems)
    assert "it hangs in the step" in problems


def test_the_sweep_notices_a_cut_that_nobody_minded(world: World) -> None:
    """Success without the bytes that it takes would be a sweep that cuts nothing."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(worlds, "Script", lambda **_: Script(there=Faults()))
        problems = str(world.with_fault("reset_after", "there", 100).problems)
    assert "never arrived" in problems


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_came_out(capsys: pytest.CaptureFixture[str]) -> None:
    """One exchange from the command line: a line of JSON, in full on standard error, and the exit status."""
    assert main(["faults", "--json", "--fault", "eof_after", "--direction", "back", "--offset", "0"]) == 0
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert figures["outcomes"] == {"connect: HandshakeError, stage tls, truncated": 1}
    assert "problems=[]" in told.err


def test_the_command_fails_where_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A problem is said with the options that repeat it, and the exit status is 1."""
    odd = Outcome(outcome="odd", problems=["it is odd"])
    monkeypatch.setattr(World, "with_fault", lambda *_: odd)
    assert main(["faults", "--fault", "corrupt", "--direction", "there", "--every", "3000", "--quick"]) == 1
    told = capsys.readouterr()
    assert "PROBLEM: --fault corrupt --direction there --offset 0: it is odd" in told.err
    assert "corrupt there:" in told.out
    assert "odd" in told.out
