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


def test_waits_are_drawn_at_random() -> None:
    """By default, without anything being asked for."""
    assert len({Backoff(first=1, longest=1).wait(1) for _ in range(10)}) > 1
