"""The route table: which routes lead to a node name, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from trionode._identity.patterns import NamePattern

if TYPE_CHECKING:
    from trionode._identity.names import NodeName

    from .options import Route

__all__ = ["RouteHandle"]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    pattern: NamePattern
    route: Route
    weight: int


@final
class RouteTable:
    """Routes by pattern; several may share one. Higher weight first, equal weights in order of addition."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(self, pattern: str | NodeName, route: Route, *, weight: int = 0) -> RouteHandle:
        """Add a route.

        Raises:
            ValueError: the pattern is neither a node name nor a glob over one.
        """
        entry = _Entry(NamePattern(pattern), route, weight)
        self._entries.append(entry)
        self._entries.sort(key=lambda e: -e.weight)  # stable: equal weights keep their order
        return RouteHandle(self, entry)

    def lookup(self, name: NodeName) -> list[Route]:
        """The routes that match, best first."""
        return [entry.route for entry in self._entries if entry.pattern.matches(name)]

    def _remove(self, entry: _Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)


@final
class RouteHandle:
    """Returned by `node.add_route`; its only use is to remove the route again."""

    def __init__(self, table: RouteTable, entry: _Entry) -> None:
        self._table = table
        self._entry = entry

    def remove(self) -> None:
        """Remove the route; connections that were made by it stay. Idempotent."""
        self._table._remove(self._entry)  # noqa: SLF001 -- the table's other half

    def __repr__(self) -> str:
        return f"<RouteHandle {self._entry.pattern} → {self._entry.route!r}, weight {self._entry.weight}>"
