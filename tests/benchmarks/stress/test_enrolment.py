"""The stress program with a CA and two nodes whose certificates live for seconds, for half a minute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.stress import enrolment
from benchmarks.stress.command import main
from benchmarks.stress.enrolment import Enrolled

if TYPE_CHECKING:
    import pytest


def test_nothing_is_lost_and_no_connect_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewals and hand-overs all the time, the CA killed for longer than an interval, and rolled over meanwhile.

    At a third of the program's pace: what is in question takes seconds, and each is as long as it was.
    """
    monkeypatch.setattr(enrolment, "PAUSE", 0.03)
    monkeypatch.setattr(enrolment, "PROBE_EVERY", 0.3)
    status = main(["enrolment", "--quick", "--json"])
    [line] = capsys.readouterr().out.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert (status, result["problems"]) == (0, [])
    assert result["failed"] == 0
    assert result["renewals"] >= 9
    assert result["hand_overs"] >= 3
    assert result["messages"] > 100
    assert result["connects"] > 10
    assert result["down"] > 0


def test_what_it_says() -> None:
    """The figures, for people."""
    text = Enrolled(seconds=3.0, lifetime=12.0, renewals=7, connects=3, failed=1, problems=["odd"]).report()
    assert "3.0 s: 1 PROBLEMS" in text
    assert "7  (lifetime 12 s)" in text
    assert "3, 1 failed" in text
