"""What a node's resolver says of a name, and what it said last.

Theory. Every dial asks the resolver anew. One that fails, hangs or answers nonsense is reported, and what it said last
is used in its place, however old that is: the peer's certificate decides, not the registry. What is said of such a dial
says how old. One that answers, and knows no endpoint, is believed.

A connector that waits for its next attempt is told when that has become worth making: the resolver now says something
else than what was dialled in vain, or the node has registered anew.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trionode._errors import NoRouteError
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import said, shown

from .events import ResolverTrouble
from .resolvers import ResolverError, WatchingResolver, checked_endpoints

if TYPE_CHECKING:
    from trionode._identity.names import NodeName

    from .resolvers import Endpoint
    from .runtime import Runtime

_log = Log("trionode.node")

#: How many names' last answers are kept.
_REMEMBERED: Final = 4096

#: How long a resolver may take where there is an earlier answer to fall back on. Seconds; else `connect_timeout`.
PATIENCE: Final = 2.0


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """Where a node is.

    Attributes:
        endpoints: to try, in order; at least one.
        age: how long ago the resolver said so, seconds; None if it was just now.
    """

    endpoints: tuple[Endpoint, ...]
    age: float | None = None

    def caution(self) -> str | None:
        """What to say of a dial that fails, if the answer is not of now."""
        if self.age is None:
            return None
        return f"the resolver does not answer, and this is what it said {self.age:.0f} s ago: the node may have moved"


@final
class Directory:
    """Asks the node's resolver."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._resolver = runtime.options.network.resolver
        self._last: OrderedDict[NodeName, tuple[tuple[Endpoint, ...], float]] = OrderedDict()
        self._flood = RateLimitedLog(_log, "dials by an earlier answer of the resolver")

    async def look_up(self, name: NodeName) -> Answer | None:
        """Where a node is; None if there is no resolver to ask.

        Raises:
            NoRouteError: the resolver knows no endpoint; or it failed, and had never said anything.
        """
        resolver = self._resolver
        if resolver is None:
            return None
        last, since = self._last.get(name, ((), 0.0))
        timeout = self._runtime.options.network.connect_timeout
        try:
            with trio.fail_after(min(timeout, PATIENCE) if last else timeout):
                endpoints = tuple(checked_endpoints(name, await resolver.resolve(name)))
        except Exception as exc:  # noqa: BLE001 -- whatever a resolver does wrong, it costs this dial at most
            trouble = self._trouble(name, exc)
            if not last:
                msg = f"no route to {name}: {trouble}. Add a route, or check the resolver"
                raise NoRouteError(msg, name=name) from trouble
            age = trio.current_time() - since
            self._flood.warning(
                "%s: dialling %s where it was %.0f s ago: %s",
                self._runtime.name,
                name,
                age,
                trouble,
                node=self._runtime.name,
                peer=name,
                error=trouble,
                source=resolver,
            )
            return Answer(last, age)
        self._last[name] = (endpoints, trio.current_time())
        self._last.move_to_end(name)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        if not endpoints:
            msg = f"no route to {name}: no route matches, and {shown(resolver)} does not know it; is that node running?"
            raise NoRouteError(msg, name=name)
        return Answer(endpoints)

    async def wait_news(self, name: NodeName) -> None:
        """Wait until dialling has become worthwhile; for ever where the resolver tells of no changes."""
        resolver: object = self._resolver
        if isinstance(resolver, WatchingResolver):
            dialled = self._last.get(name, ((), 0.0))[0]
            try:
                async with resolver.watch(name) as answers:
                    async for answer in answers:
                        endpoints = tuple(checked_endpoints(name, answer))
                        if endpoints and endpoints != dialled:
                            return
                        dialled = ()  # from here on whatever is said is news
            except Exception as exc:  # noqa: BLE001 -- likewise
                self._trouble(name, exc)
        await trio.sleep_forever()

    def _trouble(self, name: NodeName, error: Exception) -> ResolverError:
        """Report what a resolver did wrong."""
        late = isinstance(error, trio.TooSlowError) and not said(error)
        what = "it did not answer in time" if late else f"{type(error).__name__}: {said(error)}"
        trouble = ResolverError(f"the resolver failed for {name}: {what}")
        trouble.__cause__ = error
        self._runtime.counters.resolver_troubles += 1
        self._runtime.events.publish(ResolverTrouble(node=self._runtime.name, name=name, error=trouble))
        return trouble
