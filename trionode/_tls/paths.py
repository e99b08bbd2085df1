"""Which paths there may be from a peer's certificate to a trust anchor.

Theory. The issuer of a certificate is one whose subject is its issuer's name, and of one name there may be many: a CA
that was remade with another key, an intermediate that was renewed or signed by two roots. Which of them it is shows
when signatures are checked. OpenSSL takes one and does not go back; Go tries them all, and so do we: the paths are
enumerated here, by names, and judged one after the other until one holds.

A path ends in the first anchor. The certificates between are among those that the peer presented: anchors are
candidates everywhere, and end the path. What is presented can be arranged so that there is no end of paths, so there is
a bound on those that are tried and on the steps taken to find them.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trionode._identity.outline import CanonicalName

    from .anchors import Anchors
    from .candidates import Candidate

#: Certificates of a path at most: a leaf, ten between, an anchor.
MAX_LENGTH: Final = 12
#: Paths to an anchor that are tried at most; each costs a signature check or a few.
MAX_PATHS: Final = 64
#: Certificates that are looked at, at most, to find these.
_MAX_STEPS: Final = 2048


@final
class Paths:
    """The paths from a leaf to an anchor; iterated once.

    Attributes:
        dead_end: the longest way that led to no anchor, once iteration has ended.
    """

    def __init__(self, presented: Sequence[Candidate], anchors: Anchors) -> None:
        self._leaf = presented[0]
        self._anchors = anchors
        self._others: dict[CanonicalName, list[Candidate]] = {}
        for each in presented[1:]:
            try:
                if self._anchors.same(each) is None:
                    self._others.setdefault(each.outline.subject, []).append(each)
            except ValueError:  # no certificate that a path could use
                continue
        self.dead_end: tuple[Candidate, ...] = ()

    def __iter__(self) -> Iterator[tuple[Candidate, ...]]:
        return islice(self._search(), MAX_PATHS)

    def _search(self) -> Iterator[tuple[Candidate, ...]]:
        """Short paths first: a crowd of certificates of one name then hides none but long ones."""
        waiting: deque[tuple[Candidate, ...]] = deque([(self._leaf,)])
        steps = 0
        while waiting:
            path = waiting.popleft()
            anchor = self._anchors.same(path[-1])
            if anchor is not None:
                yield (*path[:-1], anchor)
                continue
            if len(path) > len(self.dead_end):
                self.dead_end = path
            if len(path) == MAX_LENGTH:
                continue
            for above in self._above(path[-1]):
                steps += 1
                if steps > _MAX_STEPS:
                    break
                # Not twice through one CA: what cross-signs each other would lead round and round.
                if not any(_same_ca(above, each) for each in path):
                    waiting.append((*path, above))

    def _above(self, candidate: Candidate) -> Iterator[Candidate]:
        """The certificates that may have issued one, by name; anchors first."""
        name = candidate.outline.issuer
        yield from self._anchors.named(name)
        yield from self._others.get(name, ())


def _same_ca(one: Candidate, other: Candidate) -> bool:
    return one.outline.key == other.outline.key and one.outline.subject == other.outline.subject
