"""A connection by itself as a target: frames in any order, with any content, and what our own side does meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio
import trio.testing

from trionode import (
    _protocol as wire,
)
from trionode._connection import (
    channel as _channel,
    channels as _channels,
    connection as _connection,
    flow_control as _flow,
    hand_over as _hand_over,
    reassembly as _reassembly,
    receive_half as _receive_half,
    send_half as _send_half,
)
from trionode._connection.send_queue import CEILING

from .campaign import Target, Violation
from .mutation import INTEGERS, INTEGERS_LARGE, mutate_bytes, mutate_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

from benchmarks.stress.log import watching_log

from .case import (
    CLOSE_HERE,
    DRAIN_HERE,
    EOF_HERE,
    KINDS,
    MOVE_HERE,
    NEW_LINK,
    OLD_LINK,
    OPEN_HERE,
    OURS,
    RECEIVE_HERE,
    RESET_HERE,
    SEND_HERE,
    WAIT,
    Case,
    frame,
    split,
)


class DispatchTarget(Target):
    """A connection, from one of its sides."""

    traced: Sequence[Path] = (
        Path(_connection.__file__),
        Path(_channels.__file__),
        Path(_hand_over.__file__),
        Path(_reassembly.__file__),
        Path(_receive_half.__file__),
        Path(_send_half.__file__),
        Path(_channel.__file__),
        Path(_flow.__file__),
        *Path(wire.__file__).parent.glob("*.py"),
    )
    longest = 24 * 1024
    #: Channels and their windows, the budget, a message, what may wait for a peer that does not read; and the input.
    memory = (2 * CEILING, 64)

    def __init__(self, *, dialled: bool) -> None:
        self.name = f"connection-{'dialled' if dialled else 'accepted'}"
        self.about = f"frames at a connection that this side has {'dialled' if dialled else 'accepted'}"
        self._dialled = dialled

    def seeds(self) -> list[bytes]:
        """Deep states: channels open, fragments and a hand-over under way, half-closed, draining, ending."""
        their, our = (2, 1) if self._dialled else (1, 2)
        encode = msgspec.msgpack.encode
        opened = frame(wire.OPEN, their, encode(wire.Open(service="echo", timeout=5.0)))
        idle = frame(wire.OPEN, their, encode(wire.Open(service="idle")))
        said = msgspec.Raw(wire.encode_metadata({"tenant": "a", "token": b"\0\1"}))
        with_metadata = frame(wire.OPEN, their, encode(wire.Open(service="echo", metadata=said)))
        here = frame(OPEN_HERE)
        ended = encode(wire.End(code="cancelled", message="words"))
        message = frame(wire.MESSAGE, their, b"message")
        large = frame(wire.FIRST, their, (20000).to_bytes(4, "big") + bytes(4000))
        more = frame(wire.MORE, their, bytes(100))
        credit = frame(wire.CREDIT, our, (5000).to_bytes(4, "big"))
        return [
            opened + message * 3 + frame(wire.EOF, their),
            with_metadata + message + frame(wire.CLOSE, their),
            opened + message + frame(wire.CLOSE, their) + frame(WAIT, 1),
            opened + large + frame(wire.MORE, their, bytes(8000)) * 2,
            idle + large + frame(wire.DISCARD, their) + frame(wire.RETURN, their, (100).to_bytes(4, "big")),
            idle + frame(wire.RESET, their, ended) + frame(wire.OPEN, their + 2, encode(wire.Open(service="one"))),
            b"".join(frame(wire.OPEN, their + 2 * n, encode(wire.Open(service="idle"))) for n in range(9)),
            here + frame(SEND_HERE, our, b"x" * 300) + credit + frame(wire.MESSAGE, our, b"back") + credit,
            here + frame(RECEIVE_HERE, our) + frame(wire.RESET, our, encode(wire.End(code="failed"))),
            here + frame(EOF_HERE, our) + frame(wire.CLOSE, our) + frame(CLOSE_HERE, our),
            here + frame(SEND_HERE, our, b"x" * 300) + frame(RESET_HERE, our) + credit,
            frame(wire.PING, 0, b"12345678") + frame(wire.PONG, 0, b"12345678") + frame(wire.DRAIN),
            opened + frame(DRAIN_HERE) + frame(wire.CLOSE, their) + frame(WAIT, 2),
            opened + frame(wire.GOODBYE, 0, encode(wire.End(code="closed"))),
            opened + frame(MOVE_HERE) + frame(wire.SWITCH) + frame(NEW_LINK) + message + frame(WAIT, 1) + message,
            opened + large + frame(MOVE_HERE) + frame(NEW_LINK) + more + frame(OLD_LINK) + frame(wire.SWITCH),
            frame(0x90, 7, b"later") + frame(MOVE_HERE) + frame(WAIT, 99) + frame(wire.SWITCH),
            *([frame(wire.RENEW) * 2] if self._dialled else []),
        ]

    def mutate(self, rng: Random, data: bytes, other: bytes) -> bytes:
        """Other frames, in another order, with other contents."""
        if rng.random() < 0.1:
            return mutate_bytes(rng, data, other)
        frames = [whole for _, _, _, whole in split(data)]
        foreign = [whole for _, _, _, whole in split(other)] or [b""]
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(frames) + 1)
            match rng.randrange(7):
                case 0:
                    del frames[at : at + rng.choice((1, 1, 3))]
                case 1:
                    frames[at:at] = frames[at : at + rng.choice((1, 2))] * rng.choice((1, 1, 2, 20))
                case 2:
                    begin = rng.randrange(len(foreign))
                    frames[at:at] = foreign[begin : begin + rng.choice((1, 2, 8))]
                case 3:
                    frames.insert(at, self._any_frame(rng))
                case 4 if len(frames) > 1:
                    one, two = rng.sample(range(len(frames)), 2)
                    frames[one], frames[two] = frames[two], frames[one]
                case _ if at < len(frames):
                    frames[at] = self._other(rng, frames[at])
        return b"".join(frames)

    def _any_frame(self, rng: Random) -> bytes:
        kind = rng.choice((*KINDS, *OURS[:11], *OURS[:11], 0x7F, 0x80))
        channel = rng.choice((0, 1, 2, 3, 4, 5, 8, 9, 2**32 - 2, 2**32 - 1))
        numbers = INTEGERS + INTEGERS_LARGE
        payload = rng.choice((b"", bytes(8), b"x" * rng.choice((1, 70, 4033, 5000)), rng.choice(numbers).__index__()))
        if isinstance(payload, int):
            payload = (payload % 2**32).to_bytes(4, "big") + bytes(rng.choice((0, 0, 1, 100)))
        return frame(kind, channel, payload)

    def _other(self, rng: Random, whole: bytes) -> bytes:
        kind, channel, payload, _ = next(split(whole), (-1, 0, b"", b""))
        if kind < 0:
            return mutate_bytes(rng, whole)
        match rng.randrange(5):
            case 0:
                kind = rng.choice((*KINDS, *OURS[:11]))
            case 1:
                channel = max(0, channel + rng.choice((-2, -1, 1, 2, 4))) % 2**32
            case 2 if kind in (wire.OPEN, wire.RESET, wire.GOODBYE):
                payload = mutate_message(rng, payload)
            case 2 | 3 if len(payload) >= 4:
                number = rng.choice((*INTEGERS, *INTEGERS_LARGE, len(payload) - 4, len(payload) - 3))
                payload = (number % 2**32).to_bytes(4, "big") + payload[4:]
            case _:
                payload = mutate_bytes(rng, payload)
        return frame(kind, channel, payload[: wire.MAX_PAYLOAD])

    def run(self, data: bytes) -> str:
        """One connection, in a Trio run of its own, on a clock that jumps."""
        case = Case(dialled=self._dialled)
        with watching_log() as log:
            trio.run(case.run, data, clock=trio.testing.MockClock(autojump_threshold=0))
        problems = case.problems + log.errors
        if problems:
            raise Violation("; ".join(problems))
        return case.outcome

    def repeated(self, rng: Random, data: bytes) -> Callable[[int], bytes] | None:
        """Some frames again and again; channels that are opened get new numbers each time."""
        frames = list(split(data))
        begin = rng.randrange(len(frames) + 1)
        part = frames[begin : begin + rng.choice((1, 2, 3))]
        if any(kind in OURS for kind, _, _, _ in part):
            return None  # each is waited for, and that is work, too
        head, tail = (
            b"".join(whole for _, _, _, whole in some) for some in (frames[:begin], frames[begin + len(part) :])
        )
        opens = any(kind == wire.OPEN for kind, _, _, _ in part)

        def make(times: int) -> bytes:
            if not opens:
                return head + b"".join(whole for _, _, _, whole in part) * times + tail
            return head + b"".join(
                frame(kind, (channel + 2 * step * len(part)) % 2**32, payload) if kind >= 0 and channel else whole
                for step in range(times)
                for kind, channel, payload, whole in part
            )

        return make


def targets() -> list[Target]:
    """Both sides."""
    return [DispatchTarget(dialled=True), DispatchTarget(dialled=False)]
