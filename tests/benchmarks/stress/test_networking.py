"""The stress programs that open many nodes or few in one process: mesh, crossing, flood and interleaving, small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from benchmarks.latency import Latency
from benchmarks.stress.command import main
from benchmarks.stress.crossing import Crossing
from benchmarks.stress.discovery.program import Found
from benchmarks.stress.drains import Drains, Load
from benchmarks.stress.flood.program import Flooded
from benchmarks.stress.idle.program import Idle
from benchmarks.stress.interleaving import Interleaved
from benchmarks.stress.interrupt.program import problems_of
from benchmarks.stress.mesh import Converged
from benchmarks.stress.outage import Outage
from benchmarks.stress.storm.program import OVERTAKEN, Stormed, overtaken
from benchmarks.stress.storm.server import Seen
from etcd_servers import needs_etcd
from trionode import _protocol as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionode import ServiceChannel

#: Runs a program with `--json`: gives the exit status, the result, and standard error.
Run: TypeAlias = "Callable[..., tuple[int, dict[str, Any], str]]"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program in this process; it prints one result and nothing else."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        status = main([*arguments, "--json"])
        told = capsys.readouterr()
        [line] = told.out.splitlines()
        return status, json.loads(line), told.err

    return run


def test_a_mesh_converges_to_one_connection_per_pair(run: Run) -> None:
    """Started at once, the same connection on both sides of each pair, and it stays like that."""
    status, result, _ = run("mesh", "--quick")
    assert (status, result["problems"]) == (0, [])
    assert result["nodes"] == 6
    assert result["connections"] == result["pairs"] == 15
    assert result["changes_afterwards"] == 0
    # Each node dials each other one once: two for each pair. On a very busy machine a few more; a storm has hundreds.
    assert 15 <= result["dials"] <= 45
    assert result["established"] >= 10  # a node may be dialled before its events are read
    assert 0 < result["seconds"] < 30
    assert result["calls"]["count"] == 30


def test_a_mesh_that_does_not_converge_is_a_problem(run: Run) -> None:
    """One that is not there in time is said to be none, by exit status and text."""
    status, result, told = run("mesh", "--nodes", "3", "--within", "0.001", "--settle", "0")
    assert (status, result["ok"]) == (1, False)
    assert "mesh: PROBLEM: not converged within 0.001 s" in told


def test_a_storm_is_served_in_order(run: Run) -> None:
    """Many clients at once; small, in one process."""
    status, result, _ = run("storm", "--quick")
    assert status == 0, result
    assert (result["failed"], result["clients"]) == (0, 40)
    assert result["overtaken"][1] <= OVERTAKEN


def test_who_overtakes_whom_is_counted() -> None:
    """By arrival; what was never established overtakes nobody and is overtaken by nobody."""
    assert overtaken(Seen(accepted=[1, 2, 3, 4], established=[3, 1, 4])) == (1 / 3, 1)
    assert overtaken(Seen(accepted=[1, 2, 3], established=[3, 2, 1])) == (1.0, 2)
    assert overtaken(Seen()) == (0.0, 0)


def test_a_storm_is_judged() -> None:
    """Too slow, out of order, or with clients that were not served, it is a problem."""
    bad = Stormed(clients=3, sequential=100, storm=50, overtaken=(2.0, 65), stall=0.5, failed=1)
    bad.judge(least=0.9)
    assert len(bad.problems) == 3
    good = Stormed(clients=3, sequential=100, storm=90, overtaken=(0.5, 3), stall=0.5, failed=0)
    good.judge(least=0.9)
    assert good.ok
    assert "3 clients: served at 0.90 of the sequential rate" in good.report()


def test_two_nodes_that_dial_each_other_have_one_connection(run: Run) -> None:
    """At the same moment, round after round: one connection, the same on both sides."""
    status, result, _ = run("crossing", "--quick")
    assert (status, result["problems"]) == (0, [])
    assert result["rounds"] == result["connect"]["count"] == 50
    assert 50 <= result["dials"] <= 100
    assert result["crossed"] > 0


def test_each_call_says_whether_it_ran(run: Run) -> None:
    """Drains, rotations and restarts under load: answered, or certainly not run; aclose may leave some in doubt."""
    status, result, _ = run("drains", "--quick")
    assert (status, result["problems"], result["in_doubt"]) == (0, [], 0)
    assert result["answered"] + result["not_run"] == result["calls"] > 50
    assert set(result["ends"]) <= {"drain", "rotate", "restart by drain", "restart by leaving"}
    status, result, _ = run("drains", "--abrupt", "--seconds", "0.5")
    assert (status, result["problems"]) == (0, [])


def test_a_call_that_lies_about_whether_it_ran_is_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that ran and says that it did not, and a call in doubt, would be noticed."""

    async def lie(load: Load, channel: ServiceChannel) -> None:
        load._ran[int(await channel.receive())] += 1
        channel._end.sending._outbox.append(
            wire.control(wire.RESET, channel._end.number, wire.End(code="shutting_down", not_run=True))
        )

    monkeypatch.setattr(Load, "serve", lie)
    status, result, _ = run("drains", "--seconds", "0.2")
    assert status == 1
    assert "ran, and said that it did not" in str(result["problems"])


def test_two_connections_for_one_pair_are_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that do not have the same TLS session would be noticed, in a mesh, too."""
    monkeypatch.setattr("benchmarks.stress.nodes.session_of", id)
    for arguments in ("crossing", "--rounds", "1"), ("mesh", "--nodes", "2", "--settle", "0"):
        status, result, _ = run(*arguments)
        assert status == 1
        assert "the two sides have different connections" in str(result["problems"])


def test_honest_peers_get_through_a_flood(run: Run) -> None:
    """Silence, drips, garbage, and those that do not go: no honest connect fails, and no limit is passed."""
    status, result, told = run("flood", "--quick")
    assert (status, result["failed"], result["problems"]) == (0, 0, [])
    assert result["quiet"]["count"] > 0
    assert result["flooded"]["count"] > 0
    assert result["accepted"] >= result["crowd"] == 60
    assert result["evicted"] > 0
    assert 0 < result["most_connections"] <= 6
    assert "flood: 60 arrive" in told


@pytest.mark.parametrize(
    ("most", "problem"),
    [
        ({"most_connections": 7}, "7 connections, where 4 may be"),
        ({"most_descriptors": 400}, "400 descriptors more"),
        ({"grown_mib": 100.0}, "100.0 MiB more memory"),
    ],
)
def test_limits_that_a_flood_passes_are_a_problem(most: dict[str, Any], problem: str) -> None:
    """Connections, descriptors and memory."""
    some = Latency.of([0.001])
    result = Flooded(crowd=1, seconds=1, quiet=some, flooded=some, **most)
    result.judge(by_time=True)
    assert problem in str(result.problems)


def test_a_program_that_is_interrupted_ends(run: Run) -> None:
    """Once, at a moment drawn at random."""
    status, result, _ = run("interrupt", "--quick")
    assert (status, result["problems"], result["rounds"]) == (0, [], 1)


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ((130, "KeyboardInterrupt\n", ""), None),
        ((130, "ClosedResourceError KeyboardInterrupt\n", ""), None),
        ((None, "", ""), "did not end within 30 s"),
        ((0, "", ""), "ended with 0, by nothing"),
        ((130, "ClosedResourceError\n", ""), "ended with 130, by ClosedResourceError"),
        ((130, "KeyboardInterrupt ValueError\n", ""), "ended with 130, by KeyboardInterrupt ValueError"),
        ((130, "refused: it\nKeyboardInterrupt\n", ""), "said 'refused: it'"),
        ((130, "KeyboardInterrupt\n", "'x' was never awaited"), "left a coroutine behind: 'x' was never awaited"),
        ((130, "KeyboardInterrupt\n", "handshake refused on …: the peer closed the connection\n"), None),
    ],
)
def test_an_interruption_is_judged(end: tuple[int | None, str, str], problem: str | None) -> None:
    """By how it ended, and by what was said."""
    assert list(problems_of(*end)) == ([] if problem is None else [problem])


def test_clients_are_back_after_an_outage(run: Run) -> None:
    """All of them, and none was refused."""
    status, result, told = run("outage", "--quick")
    assert (status, result["problems"], result["refused"]) == (0, [], 0)
    assert result["back"]["count"] == result["clients"] == 5
    assert "outage: 5 connected" in told


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Outage(clients=2, seconds=3, back=Latency.of([1.1, 2])), "half of the clients were back after 1100 ms only"),
        (Outage(clients=2, seconds=3, back=Latency.of([0.5, 5])), "the last client was back after 5000 ms only"),
        (Outage(clients=3, seconds=3, back=Latency.of([0.5, 1])), "1 of 3 clients are not back"),
        (Outage(clients=1, seconds=3, back=Latency.of([0.5]), refused=2, shed=1), "2 handshakes were refused, 1 of"),
        (Outage(clients=2, seconds=10, back=Latency.of([0.5, 7])), None),
    ],
)
def test_an_outage_is_judged(result: Outage, problem: str | None) -> None:
    """By time, by number, by what the node did with those that came."""
    result.judge(by_time=True)
    assert result.ok is (problem is None)
    assert problem is None or problem in result.report() + result.problems[0]


def test_a_flood_is_judged() -> None:
    """Failures always, slowness where time is judged, nothing at all never passes."""
    fast, slow = (Latency(count=9, median_ms=median) for median in (1.0, 3.0))
    for result, by_time, problem in (
        (Flooded(crowd=1, seconds=1, quiet=fast, flooded=slow), True, "3.0 times as long"),
        (Flooded(crowd=1, seconds=1, quiet=fast, flooded=slow), False, None),
        (Flooded(crowd=1, seconds=1, quiet=fast, flooded=fast, failed=2), False, "2 honest connects failed"),
        (Flooded(crowd=1, seconds=1, quiet=fast), False, "no honest peer connected"),
    ):
        result.judge(by_time=by_time)
        assert problem in result.problems[0] if problem else result.ok


def test_a_small_call_does_not_wait_for_a_whole_large_message(run: Run) -> None:
    """Beside back-to-back 16 MiB messages, small calls go on, each in a fraction of what a large message takes."""
    status, result, _ = run("interleaving", "--quick")
    assert (status, result["problems"]) == (0, [])
    assert result["idle"]["count"] == result["busy"]["count"] == 100
    assert result["transfer"]["count"] >= 1
    assert result["busy"]["median_ms"] < result["transfer"]["median_ms"]


def test_a_call_that_waits_for_a_whole_message_is_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls as slow as transfers are not what is promised."""
    monkeypatch.setattr(Latency, "of", lambda _: Latency(count=1, median_ms=1.0))
    status, _, told = run("interleaving", "--calls", "1")
    assert status == 1
    assert "PROBLEM: a call takes as long as a whole large message" in told


def test_a_crowd_finds_itself(run: Run) -> None:
    """All know of all, as they join, leave and come back; and of too short a time it is said that it was."""
    status, result, _ = run("discovery", "--quick", "--processes", "0")
    assert (status, result["problems"]) == (0, [])
    assert result["nodes"] == 20
    assert set(result["seconds"]) == {"joined", "left", "came back"}
    status, result, told = run("discovery", "--nodes", "10", "--processes", "0", "--within", "0.000001")
    assert status == 1
    assert "discovery: PROBLEM: joined: " in told


@needs_etcd
def test_processes_find_each_other(run: Run) -> None:
    """With etcd: one is killed and comes back, and what idle nodes ask of etcd is counted."""
    status, result, _ = run("discovery", "--nodes", "0", "--processes", "2", "--quick", "--ttl", "1", "--idle", "1")
    assert (status, result["problems"]) == (0, [])
    assert set(result["seconds"]) == {"joined", "one was killed", "came back"}
    assert 60 <= result["requests"] <= 270


def test_reports_for_people() -> None:
    """Every figure that `--help` explains."""
    latency = Latency.of([0.001, 0.002, 0.004])
    shown = "2.00 ms median, 4.00 ms p99, 4.00 ms worst"
    mesh = Converged(nodes=3, pairs=3, seconds=1.5, dials=6, established=4, connections=3, calls=latency).report()
    assert "3 nodes, 3 pairs: converged in 1.50 s" in mesh
    assert "6  (2.00 per pair)" in mesh
    crossing = Crossing(rounds=5, seconds=1, connect=latency, dials=9, crossed=4, won=3, problems=["odd"]).report()
    assert "5 rounds in 1.00 s: 1 PROBLEMS" in crossing
    assert "4  (the dial of alpha@localhost won 3 rounds)" in crossing
    drains = Drains(seconds=1, calls=9, answered=6, not_run=2, in_doubt=1, ends={"drain": 3}, problems=["odd"]).report()
    assert "9 calls in 1.0 s: 1 PROBLEMS" in drains
    assert "answered 6, not run 2, in doubt 1" in drains
    assert "3 drain" in drains
    flood = Flooded(crowd=60, seconds=1, quiet=latency, flooded=latency, accepted=70, shed=5).report()
    assert "60 clients for 1 s: every honest peer gets in" in flood
    assert "70, 5 shed" in flood
    interleaving = Interleaved(idle=latency, busy=latency, transfer=Latency()).report()
    assert "1.0 times idle" in interleaving
    assert "transfer  none" in interleaving
    found = Found(where="in processes", nodes=3, seconds={"joined": 1.5}, requests=12.3).report()
    assert "3 nodes in processes: all know of all" in found
    assert "joined          1.50 s" in found
    assert "12.3 for each node and minute" in found
    assert all(shown in text for text in (mesh, crossing, flood, interleaving))


def test_idle_connections_are_counted_and_handed_over(run: Run) -> None:
    """A few; each figure is there, and all of them are on the new certificate in the end."""
    status, result, told = run("idle", "--quick")
    assert (status, result["problems"]) == (0, [])
    assert result["connections"] == 20
    figures = [value for name, value in result.items() if isinstance(value, float)]
    assert len(figures) == 12
    assert all(value > 0 for value in figures)
    assert "idle: 20 connected" in told


def test_what_grows_faster_than_connections_is_a_problem() -> None:
    """Anything, by its cost for each of them; small numbers are not compared."""
    small = Idle(connections=500, memory_kib=50, connect_us=100, update_ms=1, leave_us=0.5)
    good = Idle(connections=5000, memory_kib=55, connect_us=150, update_ms=15)
    good.compare(small)
    assert good.ok
    assert "all were handed over" in good.report()
    bad = Idle(connections=5000, memory_kib=100, update_ms=20, leave_us=1)
    bad.compare(small)
    assert [problem.partition(":")[0] for problem in bad.problems] == ["memory", "update", "leave"]
    bad = Idle(connections=5000, memory_kib=100)
    bad.compare(Idle(connections=499, memory_kib=1))
    assert bad.ok
