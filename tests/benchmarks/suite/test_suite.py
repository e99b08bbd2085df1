"""The benchmark suite: its figures are right, its peers are what they claim to be, its command runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, strategies as st
from rich.console import Console

from benchmarks.machine import ROOT
from benchmarks.suite import chart
from benchmarks.suite.arena import GRPC, NAIVE, NOWAIT, NOWAIT_BOTH, OURS, PEERS
from benchmarks.suite.command import main
from benchmarks.suite.compare import changes
from benchmarks.suite.credentials import ADDRESS, HOST, Credentials
from benchmarks.suite.figures import Spread, Verdict, advantages, judge, percentile
from benchmarks.suite.model import Better, Contestant, Placement, Sample, Scenario, Stopwatch, Target
from benchmarks.suite.peers import load
from benchmarks.suite.record import Recorder, Recording, judged
from benchmarks.suite.runner import Plan, Result, Round, in_turn, play, search_path
from benchmarks.suite.scenarios import SCENARIOS
from benchmarks.suite.table import results_table, say_problems, targets_table
from benchmarks.suite.worker import calibrate, other_end, parameters_of
from trionode import PeerUnverifiedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.suite.model import Job

POSITIVE = st.floats(min_value=1e-3, max_value=1e6)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Certificates as in a run."""
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


def unused(_: Job) -> Sample:
    """A contestant's function that no test comes to."""
    raise AssertionError


def a_scenario(
    *, better: Better = Better.HIGHER, targets: Sequence[Target] = (), sweep: str = "", **contestant: Any
) -> Scenario:
    """Ours and the naive peer."""
    made = [Contestant(title=title, measure=unused, series=title, **contestant) for title in (OURS, NAIVE)]
    return Scenario(
        name="made-up",
        measures="Nothing.",
        unit="/s",
        better=better,
        contestants=made,
        baseline=NAIVE,
        targets=targets,
        sweep=sweep,
    )


def samples(*values: float) -> list[Sample]:
    """Samples with these values, of one operation each."""
    return [Sample(value=value, work=1, wall=1.0, cpu=0.5) for value in values]


def a_round(scenario: Scenario, ours: Sequence[float], naive: Sequence[float]) -> Round:
    """What a run might have given."""
    results = [Result(title=OURS, samples=samples(*ours)), Result(title=NAIVE, samples=samples(*naive))]
    return Round(scenario=scenario, placement=Placement.ONE, results=results)


def printed(*what: Any) -> str:
    """As on a wide terminal."""
    out = Console(file=io.StringIO(), width=200)
    out.print(*what)
    file = out.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


# Figures ------------------------------------------------------------------------------------------------------------


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_a_spread_holds_its_median_and_stays_within_its_values(values: list[float]) -> None:
    """Quartiles are around the median, and nothing is outside what was measured."""
    spread = Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)


def test_few_values_have_extremes_for_quartiles() -> None:
    """Three values have no quartiles to speak of."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(low=1.0, median=2.0, high=3.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(low=2.0, median=3.0, high=4.0)
    assert Spread.of([2.0, 3.0, 4.0]).noise == pytest.approx(2 / 3)


@given(POSITIVE, POSITIVE, st.sampled_from(Better))
def test_an_advantage_turns_around_with_its_sides(one: float, other: float, better: Better) -> None:
    """Whoever is twice as good has somebody half as good beside him; better is more than one."""
    scenario = a_scenario(better=better)
    assert scenario.advantage(one, other) * scenario.advantage(other, one) == pytest.approx(1)
    if one != other:
        assert (scenario.advantage(one, other) > 1) is ((one > other) is (better is Better.HIGHER))


def test_ratios_are_taken_within_turns() -> None:
    """A machine that is twice as fast in the second turn changes no ratio."""
    assert advantages(a_scenario(), [10.0, 20.0], [5.0, 10.0]) == [2.0, 2.0]
    assert advantages(a_scenario(better=Better.LOWER), [10.0, 20.0], [5.0, 10.0]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0, 2.1, 2.2], Verdict.MET),
        ([1.0, 1.1, 1.2], Verdict.MISSED),
        ([1.9, 2.0, 2.1], Verdict.CLOSE),
        ([], Verdict.UNKNOWN),
    ],
)
def test_a_target_is_met_where_the_spread_says_so(ratios: list[float], verdict: Verdict) -> None:
    """At least twice as good."""
    assert judge(Target(of=OURS, against=NAIVE, at_least=2), ratios) is verdict


def test_at_most_so_many_times_as_costly_is_the_inverse() -> None:
    """A cost of at most 1.6 is an advantage of at least 0.625, and is shown as a cost."""
    target = Target(of=OURS, against=NAIVE, at_most=1.6)
    assert target.advantage == pytest.approx(0.625)
    assert judge(target, [0.7]) is Verdict.MET
    assert judge(target, [0.6]) is Verdict.MISSED
    assert target.shown(0.5) == pytest.approx(2.0)
    assert str(target) == "trionode ≤ 1.6 times the cost of trio.SSLStream"
    assert str(Target(of=OURS, against=NAIVE, at_least=8)) == "trionode ≥ 8 times trio.SSLStream"


@pytest.mark.parametrize("bounds", [{}, {"at_least": 2.0, "at_most": 3.0}, {"at_least": 0.0}])
def test_a_target_has_one_positive_bound(bounds: dict[str, float]) -> None:
    """Anything else is a mistake in a scenario."""
    with pytest.raises(ValueError, match="one bound"):
        Target(of=OURS, against=NAIVE, **bounds)


def test_a_target_names_contestants() -> None:
    """A misspelt one would be a target that nobody can miss."""
    with pytest.raises(ValueError, match="nobody"):
        a_scenario(targets=[Target(of=OURS, against="nobody", at_least=2)])


@given(st.lists(POSITIVE, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_the_smallest_value_that_suffices(values: list[float], part: float) -> None:
    """So large a part is not above it; without it and what equals it, the part is smaller."""
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-6
    assert sum(value < found for value in values) < part * len(values) + 1e-6


def test_a_stopwatch_counts_the_cpu_time_of_the_other_end_too() -> None:
    """A process that only waits costs next to nothing, one that works is seen from here."""
    program = "import sys, time\nfor line in sys.stdin:\n  begin = time.process_time()\n"
    program += "  while time.process_time() - begin < 0.05: pass\n  print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        with Stopwatch(other.pid) as watch:
            print(file=other.stdin, flush=True)
            other.stdout.readline()
        other.stdin.close()
    assert watch.cpu >= 0.05
    assert watch.rate(10).work == 10


# The runner ---------------------------------------------------------------------------------------------------------


def test_turns_go_down_the_list_and_up_again() -> None:
    """So that a machine that slows down favours nobody."""
    assert [list(in_turn("abc", turn)) for turn in range(3)] == [list("abc"), list("cba"), list("abc")]


def test_calibration_finds_how_many_operations_take_so_long() -> None:
    """From one operation of a millisecond to as many as fill the time."""
    asked = []

    def measure(count: int) -> Sample:
        asked.append(count)
        return Sample(value=0, work=count, wall=count * 0.001, cpu=0)

    assert calibrate(measure, 1, 0.5) == 500
    assert asked == sorted(asked)
    assert calibrate(lambda _: Sample(value=0, work=1, wall=60, cpu=0), 1, 0.5) == 1, "one at least"


async def test_what_is_not_installed_is_skipped_and_said_loudly(tmp_path: Path) -> None:
    """A table with a peer missing must not look like one that is complete."""
    targets = [Target(of=OURS, against=NAIVE, at_least=2)]
    scenario = a_scenario(needs=["no_such_module"], targets=targets)
    played = await play(Plan(credentials=tmp_path, repeat=1), scenario, Placement.ONE)
    assert all(result.skipped and not result.samples for result in played.results)
    assert "skipped" in printed(results_table(played))
    assert "unknown" in printed(targets_table([played]))
    out = Console(file=io.StringIO(), width=200)
    say_problems(out, [played])
    assert isinstance(out.file, io.StringIO)
    assert "SKIPPED made-up, one process: trio.SSLStream: no_such_module not installed" in out.file.getvalue()


async def test_what_trionode_cannot_do_yet_is_skipped_too(tmp_path: Path) -> None:
    """As it is where a scenario is measured with an older checkout."""
    scenario = a_scenario(missing=lambda: "this trionode cannot")
    played = await play(Plan(credentials=tmp_path, repeat=1), scenario, Placement.ONE)
    assert [result.problem for result in played.results] == ["this trionode cannot"] * 2


async def test_a_worker_that_fails_is_a_line_in_the_table(tmp_path: Path) -> None:
    """Its last words are in it, and the rest goes on."""
    played = await play(Plan(credentials=tmp_path, repeat=1), a_scenario(), Placement.ONE)
    assert all(result.problem == "KeyError: 'made-up'" and not result.skipped for result in played.results)
    assert "FAILED" in printed(results_table(played))


def test_another_checkout_takes_part_beside_ours_alone(tmp_path: Path) -> None:
    """Peers are the same in both; who cannot be measured in a placement takes no part in it."""
    plan = Plan(credentials=tmp_path, repeat=3, against=tmp_path)
    connect = SCENARIOS["connect"]
    titles = [entry.title for entry in plan.entries(connect, Placement.TWO)]
    assert titles == [OURS, f"{OURS} (other)", NAIVE, "asyncio streams", "uvloop streams"]
    assert plan.steps(connect, Placement.TWO) == 5 * 4


def test_a_worker_imports_the_trionode_of_its_checkout(tmp_path: Path) -> None:
    """And the benchmarks of this one."""
    (tmp_path / "other" / "trionode").mkdir(parents=True)
    (tmp_path / "other" / "trionode" / "__init__.py").write_text("where = 'there'", encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": search_path(scratch, tmp_path / "other")}
    program = "import trionode, benchmarks; print(trionode.where, benchmarks.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["there", str(ROOT / "benchmarks" / "__init__.py")]


# Peers --------------------------------------------------------------------------------------------------------------


#: What a web socket begins with.
UPGRADE = (
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()

#: Variants of ours have one and the same server.
SERVERS = [title for title in PEERS if title not in {NOWAIT, NOWAIT_BOTH}]


@pytest.mark.parametrize("title", SERVERS)
def test_a_peer_is_as_strict_as_the_others(title: str, credentials: Credentials) -> None:
    """What is compared is alike: TLS 1.3, no session resumed, nobody let in without a certificate."""
    with other_end(module_of(title), credentials.directory) as server:
        context = offering(credentials.stdlib("client"))
        with closing(handshake(server.ports[0], context)) as first:
            assert first.version() == "TLSv1.3"
            what_comes(first)  # tickets, if there are any, come with the first data
            session = first.session
        with closing(handshake(server.ports[0], context, session)) as second:
            # gRPC's server would. Its client offers none: see below.
            assert second.session_reused is (title == GRPC)
        anonymous = ssl.create_default_context(cafile=credentials.ca)
        with closing(handshake(server.ports[0], offering(anonymous))) as refused:
            # Under TLS 1.3 a client learns of it when it reads. Trio drops the alert: what is left is the end of the
            # stream, or, from trio-websocket, which does not close it, silence. Whoever is let in is answered.
            allowed = ["alert", "end"] if title != "trio-websocket" else ["silence"]
            with contextlib.suppress(OSError):
                refused.sendall(UPGRADE if "websocket" in title else b"E")
            assert what_comes(refused) in allowed


def test_a_grpc_client_offers_no_session(credentials: Credentials) -> None:
    """A server that gives tickets and would resume, as a client that offers one shows, never gets one offered."""
    peer = load(module_of(GRPC), credentials)
    resumed: list[bool] = []
    context = credentials.stdlib("server")
    context.num_tickets = 2
    context.set_alpn_protocols(["h2"])

    def serve_one(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
            resumed.append(bool(tls.session_reused))
            tls.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame: a client is ready once it has it
            while tls.recv(1000):
                pass

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server((ADDRESS, 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]

        async def dial_three_times() -> None:
            async with peer.client([port]) as client:
                for _ in range(3):
                    async with client.dial() as session:
                        await session.settle()

        peer.run(dial_three_times)
        assert resumed == [False] * 3
        client_context = credentials.stdlib("client")
        with closing(handshake(port, client_context)) as first:
            first.recv(9)
            offered = first.session
        with closing(handshake(port, client_context, offered)) as second:
            assert second.session_reused
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()


def module_of(title: str) -> str:
    """A peer's module, where what it needs is installed."""
    module, needs = PEERS[title]
    if not all(map(find_spec, needs)):
        pytest.skip(f"{needs} not installed")
    return module


def offering(context: ssl.SSLContext) -> ssl.SSLContext:
    """The protocols of all peers."""
    context.set_alpn_protocols(["trionode/1", "h2", "http/1.1"])
    return context


def what_comes(tls: ssl.SSLSocket) -> str:
    """What a client that says nothing hears first."""
    tls.settimeout(0.5)
    try:
        return "data" if tls.recv(1) else "end"
    except TimeoutError:
        return "silence"
    except (ssl.SSLError, ConnectionError):
        return "alert"


def handshake(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A client of the standard library."""
    raw = socket.create_connection((ADDRESS, port), timeout=10)
    return context.wrap_socket(raw, server_hostname=HOST, session=session)


@pytest.mark.parametrize("title", [OURS, NAIVE, "asyncio streams"])
def test_a_peer_does_not_talk_to_whom_its_ca_does_not_know(
    title: str, credentials: Credentials, tmp_path: Path
) -> None:
    """The dialling side verifies, too."""
    module, _ = PEERS[title]
    foreign = load(module, Credentials.create(tmp_path))

    async def dial(port: int) -> None:
        async with foreign.client([port]) as client, client.dial() as session:
            await session.settle()

    with (
        other_end(module, credentials.directory) as server,
        pytest.raises((ssl.SSLError, trio.BrokenResourceError, PeerUnverifiedError)),
    ):
        foreign.run(partial(dial, server.ports[0]))


@pytest.mark.parametrize("title", [OURS, "trionode, nowait at both ends", NAIVE, "asyncio streams"])
def test_a_peer_does_what_it_is_asked(title: str, credentials: Credentials) -> None:
    """A call comes back as it was; messages are counted to the last."""
    peer = load(PEERS[title][0], credentials)

    async def talk() -> None:
        async with peer.serve() as ports, peer.client(ports) as client:
            async with client.dial() as session:
                await session.settle()
                assert await session.call(b"x" * 70_000) == b"x" * 70_000
            async with client.dial() as session:
                await session.pour(b"y" * 100, 1000)

    peer.run(talk)


# The command --------------------------------------------------------------------------------------------------------

#: What the tests run of it. Small, and yet: both placements, a process for each sample, and what ours alone can do.
ONLY = "calls-50,hand-over,idle-memory"


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
    )


def test_quick_mode_runs_and_records(tmp_path: Path) -> None:
    """Every contestant that is there has its samples, every target a verdict; the file says what made it."""
    file = tmp_path / "out.jsonl"
    done = benchmarks("--quick", "--repeat", "2", "--only", ONLY, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Targets" in done.stdout
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["record"] == "run"
    assert {"date", "commit", "versions", "machine", "options"} <= lines[0].keys()
    assert lines[0]["versions"]["trio"] == trio.__version__
    results = [line for line in lines if line["record"] == "result"]
    assert {line["scenario"] for line in results} == set(ONLY.split(","))
    assert {line["placement"] for line in results if line["scenario"] == "calls-50"} == set(map(str, Placement))
    for line in results:
        if line["problem"] is None:
            assert len(line["values"]) == len(line["cpu"]) == len(line["wall"]) == 2
            assert line["low"] <= line["median"] <= line["high"]
            assert all(value > 0 for value in line["values"])
        else:
            assert "not installed" in line["problem"]
            assert f"{line['contestant']}: {line['problem']}" in done.stdout
    titles = [line["contestant"] for line in results if line["problem"] is None]
    assert {OURS, NAIVE, f"{OURS}, hand-over"} <= set(titles)
    verdicts = [line["verdict"] for line in lines if line["record"] == "target" and line["against"] == NAIVE]
    assert verdicts
    assert set(verdicts) <= {"met", "missed", "too close to call"}


def test_two_checkouts_take_turns() -> None:
    """In one run: the other one's trionode is measured beside ours."""
    done = benchmarks("--quick", "--repeat", "1", "--only", "hand-over", "--against", str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trionode, hand-over (other)" in done.stdout


def test_what_is_there_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each scenario, its contestants, its targets."""
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}  " in said for name in SCENARIOS)
    assert "target trionode ≥ 8 times trio.SSLStream" in said


def test_one_contestant_runs_by_itself_for_a_profiler(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, so that a profiler sees it."""
    assert main(["once", "messages-64k", "ssl in memory, full records", "--seconds", "0.01"]) == 0
    assert "MB/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "nothing"], "no scenario nothing; there are connect"),
        (["--repeat", "0"], "no positive whole number"),
        (["--against", "/nowhere"], "has no trionode package"),
        (["compare", "/nowhere", "/nowhere"], "No such file"),
        (["compare", __file__, __file__], "was not written by --json"),
        (["once", "call", "nobody"], "no contestant 'nobody'"),
    ],
)
def test_a_mistake_is_explained(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the status of misuse, and before anything is measured."""
    with pytest.raises(SystemExit) as failure:
        main(arguments)
    assert failure.value.code == 2
    assert text in capsys.readouterr().err


def test_without_matplotlib_a_chart_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after half an hour of measuring."""
    monkeypatch.setattr(chart, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main(["--chart", "out.svg"])
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def test_a_chart_is_drawn(tmp_path: Path) -> None:
    """Bars with targets, and lines for a sweep."""
    pytest.importorskip("matplotlib")
    targets = [Target(of=OURS, against=NAIVE, at_least=8)]
    bars = a_round(a_scenario(targets=targets), [16.0, 17.0], [2.0, 2.0])
    swept = a_round(a_scenario(sweep="bytes", x=100), [3.0], [4.0])
    file = tmp_path / "chart.svg"
    chart.draw([bars, swept], file, "a caption")
    assert file.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert [round(bar.advantage.median, 2) for bar in chart.bars(bars)] == [8.25, 1.0]
    assert next(chart.bars(bars)).targets == [8.0]


# Comparing ----------------------------------------------------------------------------------------------------------


def recording(directory: Path, name: str, ours: Sequence[float], naive: Sequence[float]) -> Path:
    """A file as a run writes it."""
    file = directory / name
    with file.open("w", encoding="utf-8") as out:
        recorder = Recorder(out)
        recorder.run({"commit": name}, {})
        recorder.played(a_round(a_scenario(), ours, naive))
    return file


@pytest.mark.parametrize(
    ("ours", "naive", "word"),
    [
        ([20.0, 20.0, 20.0], [2.0, 2.0, 2.0], ""),  # the machine was twice as fast, for both
        ([10.0, 10.0, 10.0], [2.0, 2.0, 2.0], "worse"),
        ([20.0, 20.0, 20.0], [1.0, 1.0, 1.0], "better"),
        ([1.0, 20.0, 40.0], [1.0, 1.0, 1.0], ""),  # nobody can tell
    ],
)
def test_two_runs_are_compared_by_their_ratios(
    ours: list[float], naive: list[float], word: str, tmp_path: Path
) -> None:
    """What the naive peer did, too, is the machine's doing; what is within the noise is nobody's."""
    old = Recording.read(recording(tmp_path, "old", [10.0, 10.0, 10.0], [1.0, 1.0, 1.0]))
    new = Recording.read(recording(tmp_path, "new", ours, naive))
    found = {change.contestant: change for change in changes(old, new)}
    assert found[OURS].word == word
    assert found[NAIVE].word == ""
    assert found[NAIVE].relative is None


@pytest.mark.parametrize(
    ("tail", "others", "verdict"),
    [
        (True, 1.0, Verdict.NOISY),  # the 99th percentile of what is compared with is somebody else's time slice
        (True, 0.1, Verdict.MET),
        (False, 1.0, Verdict.MET),  # rates survive, as ratios
    ],
)
def test_a_percentile_on_a_busy_machine_has_no_verdict(tail: bool, others: float, verdict: Verdict) -> None:
    """Not even a good one: noise in the other number makes a target look met."""
    scenario = replace(a_scenario(targets=[Target(of=OURS, against=NAIVE, at_least=2)]), tail=tail)
    made = [replace(sample, others=others) for sample in samples(4.0, 4.0)]
    slow = [replace(sample, value=1.0) for sample in made]
    played = Round(
        scenario=scenario,
        placement=Placement.ONE,
        results=[Result(title=OURS, samples=made), Result(title=NAIVE, samples=slow)],
    )
    assert [each.verdict for each in judged(played)] == [verdict]
    assert ("NOISY" in printed(results_table(played))) is (others > 0.2)


def test_a_comparison_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With both commits, and what changed."""
    old, new = recording(tmp_path, "old", [10.0], [1.0]), recording(tmp_path, "new", [5.0], [1.0])
    assert main(["compare", str(old), str(new)]) == 0
    said = capsys.readouterr().out
    assert "old → new" in said
    assert "worse" in said


def test_a_file_of_something_else_is_no_recording(tmp_path: Path) -> None:
    """Rather than an empty comparison."""
    file = tmp_path / "other.jsonl"
    file.write_text('{"record": "result"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not written by --json"):
        Recording.read(file)


def test_targets_of_contestants_that_take_no_part_are_left_out() -> None:
    """In two processes there is no limit in memory to be compared with."""
    scenario = SCENARIOS["connect"]
    played = Round(scenario=scenario, placement=Placement.TWO, results=[Result(title=OURS), Result(title=NAIVE)])
    assert [each.target.against for each in judged(played)] == [NAIVE]


def test_quick_parameters_replace_full_ones() -> None:
    """And only those that they name."""
    scenario = SCENARIOS["rotation-stream"]
    assert parameters_of(scenario, quick=False)["rotations"] == 100
    quick = parameters_of(scenario, quick=True)
    assert quick["rotations"] < 100
    assert quick["interval"] == scenario.full["interval"]
