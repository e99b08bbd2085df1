"""The route table: which routes lead to a node name, in which order.

Theory. Every dial looks here. Exact names are found by a dictionary; globs are tried one after the other, most of them
by their beginning and end alone (`NamePattern`): ten thousand cost a dial two milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from operator import attrgetter
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
    number: int

    @property
    def order(self) -> tuple[int, int]:
        return -self.weight, self.number


@final
class RouteTable:
    """Routes by pattern; several may share one. Higher weight first, equal weights in order of addition."""

    def __init__(self) -> None:
        self._exact: dict[str, list[_Entry]] = {}
        self._globs: list[_Entry] = []
        self._numbers = count()

    def add(self, pattern: str | NodeName, route: Route, *, weight: int = 0) -> RouteHandle:
        """Add a route.

        Raises:
            ValueError: the pattern is neither a node name nor a glob over one.
        """
        entry = _Entry(NamePattern(pattern), route, weight, next(self._numbers))
        self._beside(entry).append(entry)
        return RouteHandle(self, entry)

    def lookup(self, name: NodeName) -> list[Route]:
        """The routes that match, best first."""
        text = str(name)
        found = [*self._exact.get(text, ()), *(each for each in self._globs if each.pattern.matches_text(text))]
        return [entry.route for entry in sorted(found, key=attrgetter("order"))]

    def _beside(self, entry: _Entry) -> list[_Entry]:
        """Where it belongs."""
        return self._globs if entry.pattern.is_glob else self._exact.setdefault(entry.pattern.text, [])

    def _remove(self, entry: _Entry) -> None:
        same = self._beside(entry)
        if entry in same:
            same.remove(entry)
        if not same:
            self._exact.pop(entry.pattern.text, None)


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
