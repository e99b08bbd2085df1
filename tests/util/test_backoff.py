"""Back-off: bounded, growing, and drawn at random."""

from __future__ import annotations

from hypothesis import given, strategies as st

from trionode._util.backoff import Backoff

SECONDS = st.floats(min_value=0.001, max_value=1000)
SHARE = st.floats(min_value=0, max_value=1)


@given(first=SECONDS, longest=SECONDS, least=SHARE, failures=st.integers(0, 10**6), drawn=SHARE)
def test_a_wait_is_within_its_bounds(first: float, longest: float, least: float, failures: int, drawn: float) -> None:
    """However many failures there were, and whatever was drawn."""
    backoff = Backoff(first=first, longest=longest, least=least)
    most = backoff.wait(failures, lambda: 1)
    assert least * most * (1 - 1e-9) <= backoff.wait(failures, lambda: drawn) <= most * (1 + 1e-9)
    assert most <= longest * (1 + 1e-9)
    assert backoff.wait(failures + 1, lambda: 1) >= most


def test_each_failure_doubles_the_wait() -> None:
    """From the first one on, up to the longest."""
    backoff = Backoff(first=0.5, longest=60, least=0.5)
    assert [backoff.wait(failures, lambda: 1) for failures in range(10)] == [0.5, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [backoff.wait(failures, lambda: 0) for failures in (1, 2, 3)] == [0.25, 0.5, 1]


def test_a_wait_grows_with_the_outage() -> None:
    """Where that is said, and no further than to the longest."""
    backoff = Backoff(first=0.5, longest=30, least=0.5, of_outage=0.25)
    waits = [backoff.wait(0, lambda: 1, outage=outage) for outage in (0, 1, 2, 4, 60, 1000)]
    assert waits == [0.5, 0.5, 0.5, 1, 15, 30]
    assert backoff.wait(4, lambda: 1, outage=1) == 4
    assert backoff.wait(0, lambda: 0, outage=8) == 1


def test_waits_are_drawn_at_random() -> None:
    """By default, without anything being asked for."""
    assert len({Backoff(first=1, longest=1).wait(1) for _ in range(10)}) > 1
