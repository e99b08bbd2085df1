"""What must not be, apart from lost messages: handshakes and ends that no fault explains, memory that grows."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .result import Sample

#: Why connections may not end, whatever happens around them: no node here breaks a rule or exceeds a limit.
MAY_NOT_END: Final = {"protocol_error", "limit", "worn", "expired"}

#: Memory grows where the trend over the last two thirds of a run adds more than this part of what there was, and this
#: many MiB on top: an allocator's own coming and going is less.
GROWTH, GROWTH_MIB = 0.1, 8.0
#: A trend over less time than this says nothing. Seconds.
SHORTEST_TREND: Final = 60.0

#: What handshakes may fail with, when processes die and wires are cut: nothing about certificates, names or protocols.
#: `join` is a hand-over of a connection that ended meanwhile.
MAY_FAIL: Final = {"HandshakeError", "HandshakeTimeoutError"}
MAY_REFUSE: Final = {"shutting_down", "join", "duplicate"}


def unexpected(tallies: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Outcomes of handshakes, and ends of connections, that no fault here is a reason for."""
    for outcome, count in tallies.get("handshakes", {}).items():
        _, kind, *rest = outcome.split(" ", 3)
        if kind != "succeeded" and kind not in MAY_FAIL and rest[-1] not in MAY_REFUSE:
            yield f"{count} handshakes ended with {outcome}"
    for reason, count in tallies.get("ends", {}).items():
        if reason in MAY_NOT_END:
            yield f"{count} connections ended with {reason}"


def trend(samples: Sequence[Sample]) -> tuple[dict[str, float | str], list[str]]:
    """Whether the memory of one process grows, once it is warm: after a third of the time."""
    settled = [sample for sample in samples if sample.at >= samples[-1].at / 3]
    if not settled or (span := settled[-1].at - settled[0].at) < SHORTEST_TREND:
        return {"verdict": f"too short to tell: {SHORTEST_TREND:g} s after the first third are needed"}, []
    slope, _ = statistics.linear_regression([each.at for each in settled], [each.memory for each in settled])
    before, after, grown = settled[0].memory, settled[-1].memory, slope * span
    leaks = grown > GROWTH * before + GROWTH_MIB
    figures: dict[str, float | str] = {
        "before_mib": before,
        "after_mib": after,
        "mib_per_hour": round(slope * 3600, 2),
        "verdict": "grows" if leaks else "does not grow",
    }
    bound = f"{GROWTH:.0%} and {GROWTH_MIB:g} MiB"
    return figures, [f"memory grew by {grown:.1f} MiB in {span:.0f} s, more than {bound}"] if leaks else []
