"""The soak for seconds, and that it would notice what it looks for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionode
from benchmarks import child
from benchmarks.stress.command import main
from benchmarks.stress.soak import chart, ledger, program, talk
from benchmarks.stress.soak.ledger import End, Ledger, Note, Role
from benchmarks.stress.soak.result import Sample, Soaked
from benchmarks.stress.soak.talk import Heard, Plan, TruncatedError, converse, end_of, message
from benchmarks.stress.soak.verdict import trend, unexpected
from benchmarks.stress.soak.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def test_nothing_is_lost_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """Three nodes, with kills, stops, partitions, rotations of certificates and CAs: everything is accounted for."""
    status = main(["soak", "--quick", "--json"])
    told = capsys.readouterr()
    [line] = told.out.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert (status, result["problems"]) == (0, []), told.err
    assert result["sent"] == result["delivered"] + sum(result["lost_reported"].values())
    assert result["lost_silently"] == result["doubled"] == result["reordered"] == result["corrupt"] == 0
    assert result["delivered"] > 100
    assert result["talks"]["complete"] > 1
    assert result["calls"]["complete"] > 1
    assert len(result["happened"]) > 2
    assert result["samples"]
    assert f"soak: seed {result['seed']}" in told.err


def test_without_matplotlib_a_chart_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an hour."""
    monkeypatch.setattr(program, "not_installed", lambda _: "there is nothing to draw with")
    with pytest.raises(SystemExit):
        main(["soak", "--chart", "out.svg"])
    assert "there is nothing to draw with" in capsys.readouterr().err


# The ledger ---------------------------------------------------------------------------------------------------------


def talker(**noted: Any) -> Note:
    """The end that began a talk."""
    return Note(**{"number": 1, "role": Role.TALKER, "end": End.COMPLETE, "sent": 10, "received": 5, **noted})


def served(**noted: Any) -> Note:
    """The other."""
    return Note(**{"number": 1, "role": Role.TALK_SERVICE, "end": End.COMPLETE, "sent": 5, "received": 10, **noted})


def test_a_talk_that_was_complete() -> None:
    """All delivered."""
    account = ledger.judge([talker(), served()])
    assert (account.sent, account.delivered, account.lost.total(), account.problems) == (15, 15, 0, [])
    assert account.talks == {"complete": 1}


@pytest.mark.parametrize(
    ("notes", "lost"),
    [
        ([talker(end=End.BROKEN), served(end=End.BROKEN, received=7)], {"broken": 3}),
        ([talker(end=End.BROKEN, received=4), served(end=End.CANCELLED, received=7)], {"broken": 3, "cancelled": 1}),
        ([talker(end=End.CLOSED, received=0)], {"closed": 10}),
        ([talker(end=End.REMOTE, received=0)], {"remote": 10}),
        ([talker(end=End.NONE, killed=True), served(end=End.BROKEN, received=9)], {"killed": 1}),
        ([talker(end=End.BROKEN, received=3), served(end=End.NONE, killed=True)], {"killed": 2}),
        (
            [
                Note(number=2, role=Role.CALLER, end=End.BROKEN, sent=1),
                Note(number=2, role=Role.CALL_SERVICE, end=End.COMPLETE, sent=1, received=1),
            ],
            {"broken": 1},
        ),
    ],
)
def test_a_loss_that_was_told_is_no_problem(notes: list[Note], lost: dict[str, int]) -> None:
    """What is lost is counted by what its sender was told."""
    account = ledger.judge(notes)
    assert account.problems == []
    assert account.lost == lost
    assert account.sent == account.delivered + account.lost.total()
    assert account.lost_silently == 0


@pytest.mark.parametrize(
    ("notes", "problem", "silently"),
    [
        ([talker(), served(received=9)], "1 of 10 were lost without an error", 1),
        ([talker(received=2), served()], "3 of 5 were lost without an error", 3),
        ([talker(received=2, end=End.BROKEN), served()], "3 of 5 were lost without an error", 3),
        ([talker(end=End.NONE), served()], "it never ended", 0),
        ([talker(), served(end=End.NONE)], "it never ended", 0),
        ([talker(end=End.NONE, received=0)], "it never ended", 10),
        ([talker(), served(received=11)], "10 were sent, 11 received", 0),
        ([talker(doubled=1), served()], "1 doubled", 0),
        ([talker(), served(reordered=1)], "1 reordered", 0),
        ([talker(), served(corrupt=1)], "1 corrupt", 0),
        ([talker(end=End.TRUNCATED), served()], "as if it had been complete", 0),
        ([talker(end=End.REMOTE), served(received=9, end=End.TRUNCATED)], "1 of 10 were lost without an error", 1),
        ([talker(end=End.TRUNCATED, received=3), served(end=End.BROKEN)], "2 of 5 were lost without an error", 2),
        ([talker(), served(), served()], "ran twice", 0),
        ([talker(), served(), served(killed=True)], "ran twice", 0),
        ([served()], "never begun", 0),
        (
            [
                Note(number=2, role=Role.CALLER, end=End.COMPLETE, sent=1, received=1),
                Note(number=2, role=Role.CALL_SERVICE, end=End.COMPLETE),
            ],
            "1 of 1 were lost without an error",
            1,
        ),
    ],
)
def test_it_would_notice(notes: list[Note], problem: str, silently: int) -> None:
    """What must not be is found, whichever end noted it."""
    account = ledger.judge(notes)
    assert any(problem in each for each in account.problems), account.problems
    assert account.lost_silently == silently


def test_notes_survive_their_process(tmp_path: Path) -> None:
    """Killed in the middle, a process leaves what it had noted."""
    file = tmp_path / "notes"
    script = (
        "import os, signal, sys, pathlib\n"
        "from benchmarks.stress.soak.ledger import *\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]), 10)\n"
        "one, other = ledger.begin(7, Role.TALKER), ledger.begin(8, Role.CALL_SERVICE)\n"
        "one.sent(3); one.received(2); one.wrong(doubled=4, reordered=5, corrupt=6)\n"
        "other.end(End.BROKEN); other.end(End.COMPLETE)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, file], timeout=30, check=False, env=child.environment())
    assert done.returncode == -signal.SIGKILL
    assert list(ledger.read(file, killed=True)) == [
        Note(
            number=7,
            role=Role.TALKER,
            end=End.NONE,
            sent=3,
            received=2,
            doubled=4,
            reordered=5,
            corrupt=6,
            killed=True,
        ),
        Note(number=8, role=Role.CALL_SERVICE, end=End.BROKEN, killed=True),
    ]
    assert ledger.how(next(ledger.read(file, killed=True))) == "killed"


def test_a_full_ledger_says_so(tmp_path: Path) -> None:
    """Nothing goes unnoted."""
    notes = Ledger(tmp_path / "notes", 1)
    notes.begin(1, Role.CALLER)
    with pytest.raises(RuntimeError, match="full after 1"):
        notes.begin(2, Role.CALLER)
    assert len(list(ledger.read(tmp_path / "notes", killed=False))) == 1


# Talks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "count", "wrong"),
    [
        ([0, 1, 2, 3], 4, (0, 0, 0)),
        ([0, 1, 1, 2], 3, (1, 0, 0)),
        ([0, 2, 1, 3], 4, (0, 1, 0)),
        ([0, 2, 3], 3, (0, 0, 0)),  # a gap is a loss, which adding up shows
        ([3, 0, 0], 2, (1, 1, 0)),
    ],
)
def test_messages_that_come_wrongly_are_noted(
    tmp_path: Path, order: list[int], count: int, wrong: tuple[int, int, int]
) -> None:
    """Twice, or too late; and each that is different counts once."""
    file = tmp_path / "notes"
    heard = Heard(5, Ledger(file, 1).begin(5, Role.TALKER), opens=True)
    for number in order:
        heard.take(number, message(5, number, opens=True))
    [note] = ledger.read(file, killed=False)
    assert note.received == heard.count == count
    assert (note.doubled, note.reordered, note.corrupt) == wrong


def test_a_message_that_changed_is_noted(tmp_path: Path) -> None:
    """By a bit, or one of another talk."""
    file = tmp_path / "notes"
    heard = Heard(5, Ledger(file, 1).begin(5, Role.TALKER), opens=True)
    first = bytearray(message(5, 0, opens=True))
    first[-1] ^= 1
    heard.take(0, bytes(first))
    heard.take(1, message(6, 1, opens=True))
    heard.take(2, message(5, 2, opens=True))
    [note] = ledger.read(file, killed=False)
    assert note.corrupt == 2


class Pipe:
    """One end of a channel in memory, whose messages a test may do things to."""

    def __init__(self, out: trio.MemorySendChannel[bytes], into: trio.MemoryReceiveChannel[bytes]) -> None:
        self._out = out
        self._into = into
        self.loses: set[int] = set()
        self.ends_after = -1
        self._sent = 0

    async def send(self, value: bytes) -> None:
        """Send, but for what is to be lost."""
        self._sent += 1
        if self._sent == self.ends_after:
            await self._out.aclose()
        elif self._sent not in self.loses:
            await self._out.send(value)
        else:
            await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        """Receive."""
        return await self._into.receive()


def pipes() -> tuple[Pipe, Pipe]:
    """Both ends."""
    there, back = (trio.open_memory_channel[bytes](1000) for _ in range(2))
    return Pipe(there[0], back[1]), Pipe(back[0], there[1])


async def both(tmp_path: Path, one: Pipe, other: Pipe) -> tuple[Note, Note]:
    """A whole talk; what both ends noted."""
    file = tmp_path / "notes"
    notes = Ledger(file, 2)
    entries = notes.begin(1, Role.TALKER), notes.begin(1, Role.TALK_SERVICE)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for pipe, opens, entry in (one, True, entries[0]), (other, False, entries[1]):
                plan = Plan(number=1, opens=opens, messages=20, pause=0)
                nursery.start_soon(converse, pipe, plan, entry)
    first, second = ledger.read(file, killed=False)
    return first, second


async def test_a_talk(tmp_path: Path) -> None:
    """Everything arrives, and both ends know it."""
    first, second = await both(tmp_path, *pipes())
    assert (first.sent, first.received, second.sent, second.received) == (20, 20, 20, 20)


@pytest.mark.parametrize("defect", ["loses one", "ends early"])
async def test_a_talk_on_a_channel_that_is_not_right(tmp_path: Path, defect: str) -> None:
    """A message that is missing, or an end that comes too soon, is never a talk that is complete."""
    one, other = pipes()
    if defect == "loses one":
        one.loses = {7}
    else:
        one.ends_after = 7
    try:
        await both(tmp_path, one, other)
    except ExceptionGroup as group:
        error: Exception | None = group.subgroup(TruncatedError)
        assert error is not None
        assert end_of(error) is End.TRUNCATED
    else:
        pytest.fail("it was not noticed")


def test_errors_and_what_they_make_of_an_exchange() -> None:
    """The documented ones; anything else is a problem, in a group or not."""
    broken, closed = trio.BrokenResourceError(), trio.ClosedResourceError()
    assert end_of(broken) is End.BROKEN
    assert end_of(ExceptionGroup("", [closed, ExceptionGroup("", [broken])])) is End.BROKEN
    assert end_of(trionode.RemoteError(code="failed")) is End.REMOTE
    assert end_of(ExceptionGroup("", [closed, TruncatedError()])) is End.TRUNCATED
    assert end_of(ExceptionGroup("", [closed, KeyError()])) is None
    assert talk.end_of(OSError()) is None


# Wires --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """A wire to an echo server."""

    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        made = Wire()
        made.target = listener.socket.getsockname()[1]
        await nursery.start(made.serve)
        yield made
        nursery.cancel_scope.cancel()


async def answers(stream: trio.SocketStream) -> bool:
    """Whether the echo comes back, now."""
    await stream.send_all(b"?")
    with trio.move_on_after(0.2):
        return bool(await stream.receive_some())
    return False


async def broken(stream: trio.SocketStream) -> None:
    """Hear that a connection was reset."""
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def test_a_wire_that_is_cut(wire: Wire) -> None:
    """Connections are reset, and so are new ones, until it is healed."""
    connect = partial(trio.open_tcp_stream, "127.0.0.1", wire.port)
    with trio.fail_after(10):
        async with await connect() as stream:
            assert await answers(stream)
            wire.sever()
            await broken(stream)
        async with await connect() as stream:
            await broken(stream)
        wire.heal()
        async with await connect() as stream:
            assert await answers(stream)


async def test_a_wire_that_is_stalled(wire: Wire) -> None:
    """Nothing arrives and neither side is told, until it is healed: then everything arrives."""
    connect = partial(trio.open_tcp_stream, "127.0.0.1", wire.port)
    with trio.fail_after(10):
        async with await connect() as stream:
            assert await answers(stream)
            wire.stall()
            wire.stall()
            async with await connect() as another:
                assert not await answers(stream)
                assert not await answers(another)
                wire.heal()
                assert await stream.receive_some() == b"?"
                assert await another.receive_some() == b"?"
            await stream.send_eof()
            assert await stream.receive_some() == b""


# The verdict --------------------------------------------------------------------------------------------------------


def memory(*figures: float, every: float = 10) -> list[Sample]:
    """Samples of one process."""
    return [
        Sample(at=number * every, node=0, incarnation=0, memory=figure, descriptors=10)
        for number, figure in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ([30.0, 50.0, *[60.0] * 28], "does not grow"),
        ([60.0 + number % 5 for number in range(30)], "does not grow"),
        ([60.0 + number for number in range(30)], "grows"),
        ([60.0] * 5, "too short"),
        ([], "too short"),
    ],
)
def test_memory_that_grows_is_a_problem(figures: list[float], verdict: str) -> None:
    """A trend is, warming up and coming and going are not."""
    found, problems = trend(memory(*figures))
    assert str(found["verdict"]).startswith(verdict)
    assert bool(problems) is (verdict == "grows")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("dial succeeded", True),
        ("dial HandshakeError connect unreachable", True),
        ("accept HandshakeTimeoutError tls timeout", True),
        ("dial PeerRejectedError hello shutting_down", True),
        ("dial PeerUnverifiedError tls unknown_ca", False),
        ("accept PeerUnverifiedError hello claimed_name", False),
        ("dial PeerRejectedError tls certificate_expired", False),
    ],
)
def test_handshakes_that_no_fault_explains_are_a_problem(outcome: str, expected: bool) -> None:
    """Certificates are never the reason."""
    assert bool(list(unexpected({"handshakes": {outcome: 3}}))) is not expected


def test_connections_that_no_fault_ends_are_a_problem() -> None:
    """A broken rule is one, a lost connection is none."""
    assert list(unexpected({"ends": {"lost": 3, "protocol_error": 1}})) == ["1 connections ended with protocol_error"]


@pytest.fixture
def result() -> Soaked:
    """One that was not perfect."""
    return Soaked(
        seconds=60.0,
        nodes=2,
        seed=7,
        sent=100,
        delivered=90,
        lost_reported={"broken": 9},
        lost_silently=1,
        talks={"complete": 3},
        tallies={"handshakes": {"dial succeeded": 4, "accept succeeded": 4}},
        memory={"verdict": "does not grow", "before_mib": 60.0},
        problems=["exchange 3: 1 of 9 were lost without an error"],
        samples=memory(60.0, 61.0),
        rates=[(1.0, 10.0), (2.0, 11.0)],
        marks=[(1.5, "kill"), (1.6, "rotate")],
    )


def test_report_for_people(result: Soaked) -> None:
    """What was lost, and how, in plain words."""
    text = result.report()
    assert "100 sent = 90 delivered + 9 lost with an error (broken 9) + 1 silently" in text
    assert "1 PROBLEMS" in text
    assert "dial succeeded 4" in text
    assert "before mib 60.0" in text
    result.problems.clear()
    assert "everything is accounted for" in result.report()


def test_a_chart_is_drawn(result: Soaked, tmp_path: Path) -> None:
    """Messages, memory and descriptors over time, with what happened."""
    pytest.importorskip("matplotlib")
    chart.draw(result, tmp_path / "chart.svg")
    assert "kill (1)" in (tmp_path / "chart.svg").read_text(encoding="utf-8")
