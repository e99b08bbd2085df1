"""The stress program that rotates in two processes while they talk, for seconds, and that it would notice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from benchmarks.stress.command import main
from benchmarks.stress.rotation.both import END, Tally, numbered, receive_numbered
from benchmarks.stress.rotation.program import Rotated

if TYPE_CHECKING:
    from trionode import ServiceChannel


def test_nothing_is_lost_and_nothing_stale(capsys: pytest.CaptureFixture[str]) -> None:
    """Steady traffic both ways, a rotation every 100 ms on both sides: everything arrives, every dial is up to date."""
    status = main(["rotation", "--quick", "--json"])
    told = capsys.readouterr()
    [line] = told.out.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert (status, result["problems"]) == (0, [])
    assert result["failed_connects"] == result["stale"] == 0
    assert result["rotations"][0] >= 5
    assert result["hand_overs"][0] >= 5
    assert min(result["rotations"] + result["hand_overs"]) >= 3
    assert result["connects"] >= 5
    assert result["messages"] > 50
    assert result["calls"] >= 10
    assert "rotation: " in told.err


def rotated(**figures: Any) -> Rotated:
    """A result that was good."""
    return Rotated(**{"channels": 2, "seconds": 1.0, "connects": 3, **figures})


def tally(**counted: Any) -> Tally:
    """What one process counted in it."""
    return Tally(**{"messages": 7, "sent": 7, "calls": 5, "rotations": 9, "hand_overs": 8, "lags": [0, 2], **counted})


def test_both_tallies_make_a_result() -> None:
    """What both counted is in it, and what one lost."""
    result = rotated()
    result.add(tally(), tally(rotations=11))
    assert result.ok
    assert (result.messages, result.calls, result.rotations) == (14, 10, [9, 11])
    assert (result.lag_median, result.lag_worst) == (1, 2)
    text = result.report()
    assert "1.0 s, 2 channels: nothing lost, nothing stale" in text
    assert "9 here, 11 there" in text
    result = rotated()
    result.add(tally(sent=8), tally(problems=["odd"]))
    assert result.problems == ["8 messages were sent on the way there, 7 came", "beta: odd"]


class Script:
    """Messages as they come on a channel."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = iter(messages)

    def __aiter__(self) -> Script:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            return next(self._messages)
        except StopIteration:
            raise StopAsyncIteration from None


@pytest.mark.parametrize("way", ["lost", "doubled", "reordered", "wrong", "cut", "miscounted"])
async def test_it_would_notice(way: str) -> None:
    """What it looks for it finds: a message that is lost, doubled, out of order or wrong, an end that is missing."""
    messages = [numbered(1, number) for number in range(40)]
    end = END + len(messages).to_bytes(8, "big")
    if way == "lost":
        del messages[13]
    elif way == "doubled":
        messages.insert(13, messages[12])
    elif way == "reordered":
        messages[12], messages[13] = messages[13], messages[12]
    elif way == "wrong":
        messages[15] = bytes(len(messages[15]))
    script = messages if way == "cut" else [*messages[: 39 if way == "miscounted" else None], end]
    counted = Tally()
    with pytest.raises(AssertionError) if way not in ("cut", "miscounted") else trio.CancelScope():
        await receive_numbered(cast("ServiceChannel", Script(script)), 1, counted)
    assert len(counted.problems) == 1


async def test_it_is_content_with_what_is_right() -> None:
    """Every message in order, and the right number of them at the end: no problem."""
    messages = [numbered(1, number) for number in range(40)]
    counted = Tally()
    script = Script([*messages, END + (40).to_bytes(8, "big")])
    await receive_numbered(cast("ServiceChannel", script), 1, counted)
    assert counted.problems == []
    assert (counted.messages, counted.bytes) == (40, sum(map(len, messages)))
