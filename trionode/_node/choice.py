"""Which member gets a request that names a pattern.

Theory. Of the members that match, the one with the fewest channels open on its connection here; of several, first
those that are connected, then by chance. A member without a connection has none open: so requests one after the other
stay on what is connected, and many at once spread over members that have to be dialled. Peers that drain have no
connection that may be used, and a registrar withdraws a node before it drains.

Where a request provably did not run, the next member gets it; each is asked once. That is so where no connection could
be made, and where the peer says so. What may have run is not repeated. A member that failed so comes last for a while,
or until it has a connection. Where none is left, those are asked once more of which only a connection had ended.

There is no more to it: no session that sticks to a member, no weights, no measuring of load but the channels of this
node.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._connection.connection import core_of
from trionode._errors import NoRouteError, RemoteCode, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from trionode._connection.connection import Connection
    from trionode._identity.names import NodeName
    from trionode._identity.patterns import NamePattern

#: How long a member that could not be reached comes last. Seconds.
AVOIDED: Final = 10.0


#: What another connection may be the cure for.
_ENDED: Final = (RemoteCode.SHUTTING_DOWN, RemoteCode.NOT_TAKEN)
#: Refusals of a member after which another may take the request; any other is the answer.
_ELSEWHERE: Final = (RemoteCode.LIMIT, *_ENDED)


def may_go_again(error: RemoteError) -> bool:
    """Whether the service certainly did not run, for a reason that another connection to it need not have."""
    return error.code in _ENDED and error.not_run


def may_go_elsewhere(error: RemoteError) -> bool:
    """Whether the service certainly did not run, for a reason that another member need not have."""
    return error.code in _ELSEWHERE and error.not_run


@final
class Attempts:
    """The members that a request was tried at, and did not run.

    Attributes:
        failures: why not, by member.
    """

    def __init__(self) -> None:
        self.failures: dict[NodeName, Exception] = {}
        self._once_more: set[NodeName] = set()

    def failed(self, name: NodeName, error: Exception) -> None:
        """A member did not take it.

        Args:
            name: which.
            error: why.
        """
        ended = isinstance(error, RemoteError) and may_go_again(error)
        if ended and name not in self.failures:
            self._once_more.add(name)
        else:
            self._once_more.discard(name)
        self.failures[name] = error

    def left(self, members: Collection[NodeName]) -> Collection[NodeName]:
        """Those that may still be tried.

        Args:
            members: that there are.
        """
        found = set(members)
        return found - self.failures.keys() or found & self._once_more


@final
class Choice:
    """Chooses among members, and remembers which of them failed."""

    def __init__(
        self, reuse: Callable[[NodeName], Connection | None], draw: Callable[[], float] = random.random
    ) -> None:
        """Make one.

        Args:
            reuse: the connection to a member, if there is one.
            draw: a number from 0 to 1, by which one of equals is chosen.
        """
        self._draw = draw
        self._reuse = reuse
        self._avoided: dict[NodeName, float] = {}

    def best(self, members: Iterable[NodeName]) -> NodeName:
        """The member to try first.

        Args:
            members: at least one.
        """
        now = trio.current_time()
        self._avoided = {name: until for name, until in self._avoided.items() if until > now}
        return min(members, key=self._rank)

    def avoid(self, name: NodeName) -> None:
        """A member failed: have it come last for a while."""
        self._avoided[name] = trio.current_time() + AVOIDED

    def _rank(self, name: NodeName) -> tuple[bool, int, bool, float]:
        connection = self._reuse(name)
        if connection is None:
            return name in self._avoided, 0, True, self._draw()
        return False, len(core_of(connection).channels.open), False, self._draw()


def exhausted(pattern: NamePattern, failures: Mapping[NodeName, Exception]) -> Exception:
    """What a request raises that no member took.

    Args:
        pattern: what it named.
        failures: of the members that were tried.
    """
    if len(failures) == 1:
        return next(iter(failures.values()))
    if not failures:
        msg = (
            f"no node matches {pattern}: none is connected, and the resolver names none; node.wait_members() waits for "
            "them"
        )
        return NoRouteError(msg, name=None)
    causes = ExceptionGroup(f"nodes {pattern}", list(failures.values()))
    tried = "; ".join(f"{name}: {error}" for name, error in failures.items())
    error = NoRouteError(f"no node of {pattern} took the request: {tried}", name=None, causes=causes)
    error.__cause__ = causes
    return error
