"""The states of a connection, and what may follow which.

| state           | handed out | we open channels | the peer opens channels | frames are read |
| --------------- | ---------- | ---------------- | ----------------------- | --------------- |
| `LIVE`          | yes        | yes              | yes                     | yes             |
| `RETIRED`       | no         | yes              | yes                     | yes             |
| `DRAINING`      | no         | no               | until it knows          | yes             |
| `PEER_DRAINING` | no         | no               | is refused              | yes             |
| `ENDING`        | no         | no               | no                      | and ignored     |
| `CLOSED`        | no         | no               | no                      | no              |

What the peer opens before it knows that this side drains is served. That it knows is acknowledged, see
`ConnectionCore.drain`.

A connection only ever goes on, so what it was left for is never undone: one that drains is not retired any more, and
the first reason to end stands. Whether it is being handed over is another matter, told by `HandOver`: that happens in
any of the states up to `ENDING`, and changes none of the columns.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """How far a connection has come."""

    #: It is registered under its peer's name, and used.
    LIVE = auto()
    #: A newer one took its place. It is read for a bounded time, for what is still on its way.
    RETIRED = auto()
    #: This side opens no more channels: it was told to drain, or its channel numbers are used up.
    DRAINING = auto()
    #: The peer said that it opens no more channels and accepts none.
    PEER_DRAINING = auto()
    #: It has ended, for a reason that stands. What is left is to flush, to say so, to read to the peer's end.
    ENDING = auto()
    #: Its links are closed and its tasks are gone.
    CLOSED = auto()


#: States in which this side opens channels.
OPENING: Final = (State.LIVE, State.RETIRED)

NEXT: Final[Mapping[State, tuple[State, ...]]] = {
    State.LIVE: (State.RETIRED, State.DRAINING, State.PEER_DRAINING, State.ENDING),
    State.RETIRED: (State.DRAINING, State.PEER_DRAINING, State.ENDING),
    State.DRAINING: (State.ENDING,),
    State.PEER_DRAINING: (State.ENDING,),
    State.ENDING: (State.CLOSED,),
    State.CLOSED: (),
}
