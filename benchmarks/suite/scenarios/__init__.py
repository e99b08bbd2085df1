"""The scenarios, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import calls, configuration, connecting, footprint, hand_over, http, messages, revocation, rotation, sweeps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.suite.model import Scenario

SCENARIOS: Final[Mapping[str, Scenario]] = {
    scenario.name: scenario
    for module in (connecting, messages, calls, rotation, revocation, hand_over, http, footprint, sweeps, configuration)
    for scenario in module.SCENARIOS
}
