"""Which nodes there are: those that the resolver names, and those that this node is connected to.

Theory. Where the resolver can name nodes (`NamingResolver`), one task for each pattern of `NetworkOptions.members`
follows what it says, as long as the node is open. A resolver that fails is reported and asked again, with back-off;
what it named last stays until it says something else: an outage makes no member disappear. That a name is named says
that there may be something to dial, and no more: who is there is proved by a certificate.

To wait for members is to wait on the registry's parking lot: connections come there, and what the resolver names is
told there as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trionode._identity.patterns import NamePattern
from trionode._util.backoff import Backoff
from trionode._util.log import Log
from trionode._util.rate_limited_log import RateLimitedLog
from trionode._util.text import said

from .events import PeerFound, PeerLost, ResolverTrouble
from .options import NetworkMode
from .resolvers import MAX_NAMES, NamingResolver, ResolverError, checked_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trionode._identity.names import NodeName

    from .runtime import Runtime

_log = Log("trionode.node")

#: After each change the next is waited for so long at least: many at once are taken together. Seconds.
PACE: Final = 0.05

#: Waits before a resolver that failed is asked again for names. Seconds.
BACKOFF: Final = Backoff(first=1, longest=15, least=0.5)


@final
class Membership:
    """The members that a node knows of.

    Attributes:
        followers: called with the names that the resolver names newly, and those that it names no longer.
    """

    def __init__(self, runtime: Runtime, is_usable: Callable[[NodeName], bool]) -> None:
        """Make one; it knows of no names before `start()`.

        Args:
            runtime: of the node.
            is_usable: whether there is a connection to a name that verbs may use.
        """
        self._runtime = runtime
        self._is_usable = is_usable
        self._by_pattern: dict[str, frozenset[NodeName]] = {}
        self._named: frozenset[NodeName] = frozenset()
        self._lost_touch: dict[str, float] = {}
        self._flood = RateLimitedLog(_log, "troubles with the names of members")
        self.followers: list[Callable[[Collection[NodeName], Collection[NodeName]], None]] = []

    @property
    def named(self) -> frozenset[NodeName]:
        """What the resolver names, without this node itself."""
        return self._named

    @property
    def age(self) -> float | None:
        """How long ago the resolver last told of changes, seconds; 0 while it does, None where it cannot."""
        if not self._by_pattern:
            return None
        return trio.current_time() - min(self._lost_touch.values()) if self._lost_touch else 0.0

    def start(self) -> None:
        """Follow the resolver from now on, in tasks of the node."""
        network = self._runtime.options.network
        resolver: object = network.resolver
        if not isinstance(resolver, NamingResolver) or network.mode is NetworkMode.DISABLED:
            return
        for pattern in dict.fromkeys(str(NamePattern(each)) for each in network.members):
            self._by_pattern[pattern] = frozenset()
            self._lost_touch[pattern] = trio.current_time()
            self._spawn(resolver, pattern)

    def members(self, pattern: NamePattern) -> frozenset[NodeName]:
        """Those that match, are not this node, and are named by the resolver or connected."""
        connected = frozenset(name for name in self._runtime.registry.names() if self._is_usable(name))
        return _matching(pattern, self._named | connected)

    async def wait(self, pattern: NamePattern, count: int) -> frozenset[NodeName]:
        """Wait until there are so many.

        Raises:
            trio.ClosedResourceError: the node is closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._runtime.check_open()
            members = self.members(pattern)
            if len(members) >= count:
                return members
            await self._runtime.registry.changed.park()

    def _spawn(self, resolver: NamingResolver, pattern: str) -> None:
        self._runtime.spawn_lasting(lambda: self._follow(resolver, pattern), f"members {pattern}")

    async def _follow(self, resolver: NamingResolver, pattern: str) -> None:
        failures = 0
        while True:
            try:
                async with resolver.names(pattern) as answers:
                    async for answer in answers:
                        self._take(pattern, checked_names(answer))
                        failures = 0
                        if len(answer) > MAX_NAMES:
                            self._report(f"it named {len(answer)}, and those beyond {MAX_NAMES} are left out")
                        await trio.sleep(PACE)
                what, cause = "it ended", None
            except Exception as exc:  # noqa: BLE001 -- whatever a resolver does wrong, the node goes on
                what, cause = f"{type(exc).__name__}: {said(exc)}", exc
            self._lost_touch.setdefault(pattern, trio.current_time())
            self._report(what, cause)
            failures += 1
            await trio.sleep(BACKOFF.wait(failures))

    def _report(self, what: str, cause: Exception | None = None) -> None:
        trouble = ResolverError(f"the resolver failed to name the members: {what}", temporary=True)
        trouble.__cause__ = cause
        self._runtime.counters.resolver_troubles += 1
        self._flood.warning(
            "%s: %s; those known so far stay",
            self._runtime.name,
            trouble,
            node=self._runtime.name,
            error=cause or trouble,
        )
        self._runtime.events.publish(ResolverTrouble(node=self._runtime.name, name=None, error=trouble))

    def _take(self, pattern: str, names: frozenset[NodeName]) -> None:
        """Replace what is known by a pattern; report what changed."""
        self._lost_touch.pop(pattern, None)
        own, wanted = self._runtime.name, NamePattern(pattern)
        self._by_pattern[pattern] = _matching(wanted, names - {own})
        before, self._named = self._named, frozenset().union(*self._by_pattern.values())
        publish = self._runtime.events.publish
        found, lost = sorted(self._named - before), sorted(before - self._named)
        for name in lost:
            publish(PeerLost(node=own, name=name))
        for name in found:
            publish(PeerFound(node=own, name=name))
        for follower in self.followers:
            follower(found, lost)
        self._runtime.registry.changed.unpark_all()


def _matching(pattern: NamePattern, names: frozenset[NodeName]) -> frozenset[NodeName]:
    return names if pattern.text == "*" else frozenset(name for name in names if pattern.matches(name))
