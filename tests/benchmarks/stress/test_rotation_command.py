"""The command that rotates in two processes while they talk: benchmarks/stress/rotation.py, for seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionode

if TYPE_CHECKING:
    from types import ModuleType

COMMAND = Path(__file__).parents[3] / "benchmarks" / "stress" / "rotation.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, as a user does."""
    return subprocess.run(
        [sys.executable, str(COMMAND), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(trionode.__file__).parents[1])},
    )


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """The command as a module."""
    spec = importlib.util.spec_from_file_location("rotation_command", COMMAND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_nothing_is_lost_and_nothing_stale() -> None:
    """Steady traffic both ways, a rotation every 100 ms on both sides: everything arrives, every dial is up to date."""
    finished = run("--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    [line] = finished.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert result["ok"] is True
    assert result["problems"] == []
    assert result["failed_connects"] == result["stale"] == 0
    assert min(result["rotations"]) >= 5
    assert min(result["hand_overs"]) >= 5
    assert result["connects"] >= 3
    assert result["messages"] > 500
    assert result["calls"] > 10


def test_report_for_people() -> None:
    """Without --json there is a table on standard output; progress is on standard error, apart from it."""
    finished = run("--seconds", "1", "--channels", "3")
    assert finished.returncode == 0, finished.stderr
    assert "nothing lost, nothing stale" in finished.stdout
    assert "hand-overs" in finished.stdout
    assert "rotation: " in finished.stderr
    assert "PROBLEM" not in finished.stderr + finished.stdout


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--channels", "0"], ["--channels", "many"]])
def test_arguments_that_make_no_sense(arguments: list[str]) -> None:
    """They are refused, with a word about why."""
    finished = run(*arguments)
    assert finished.returncode == 2
    assert "error:" in finished.stderr


def test_help_says_what_it_shows() -> None:
    """`--help` explains every figure."""
    text = run("--help").stdout
    assert all(word in text for word in ("messages", "hand-overs", "lag", "stale", "--seconds", "--quick"))


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
async def test_it_would_notice(command: ModuleType, way: str) -> None:
    """What it looks for it finds: a message that is lost, doubled, out of order or wrong, an end that is missing."""
    messages = [command.numbered(1, number) for number in range(40)]
    end = command.END + len(messages).to_bytes(8, "big")
    if way == "lost":
        del messages[13]
    elif way == "doubled":
        messages.insert(13, messages[12])
    elif way == "reordered":
        messages[12], messages[13] = messages[13], messages[12]
    elif way == "wrong":
        messages[15] = bytes(len(messages[15]))
    script = messages if way == "cut" else [*messages[: 39 if way == "miscounted" else None], end]
    tally = command.Tally()
    with pytest.raises(AssertionError) if way not in ("cut", "miscounted") else trio.CancelScope():
        await command.receive_numbered(Script(script), 1, tally)
    assert len(tally.problems) == 1


async def test_it_is_content_with_what_is_right(command: ModuleType) -> None:
    """Every message in order, and the right number of them at the end: no problem."""
    messages = [command.numbered(1, number) for number in range(40)]
    tally = command.Tally()
    await command.receive_numbered(Script([*messages, command.END + (40).to_bytes(8, "big")]), 1, tally)
    assert tally.problems == []
    assert (tally.messages, tally.bytes) == (40, sum(map(len, messages)))
