"""The command that measures a small call beside a large transfer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[3] / "benchmarks" / "stress" / "interleaving.py"


def test_a_small_call_does_not_wait_for_a_whole_large_message() -> None:
    """Beside back-to-back 16 MiB messages, small calls go on, each in a fraction of what a large message takes."""
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--quick", "--json"], capture_output=True, text=True, timeout=100, check=True
    )
    figures = json.loads(done.stdout)
    assert figures["calls"] == 100
    assert figures["large_messages"] >= 1
    assert figures["busy_us_median"] < figures["large_message_ms_median"] * 1000
