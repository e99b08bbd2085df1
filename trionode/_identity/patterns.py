"""Patterns over whole node names: exact names and globs, as routes and `allow=` use them.

Theory. There may be thousands, and a name is held against each: nothing is compiled, and nearly all that do not match
are told by how the name begins or ends.
"""

from __future__ import annotations

import re
from typing import final

from .names import NodeName, canonical_host


@final
class NamePattern:
    """A node name, or a glob (`*`, `?`) over the whole `name@host`."""

    __slots__ = ("_any_between", "_prefix", "_suffix", "is_glob", "text")

    def __init__(self, pattern: str | NodeName) -> None:
        """Parse a pattern.

        Raises:
            ValueError: it is neither a node name nor a glob over one.
        """
        text = str(pattern)
        self.is_glob: bool = is_glob(text)
        if not self.is_glob:
            text = str(NodeName.parse(text))
        elif "@" in text:
            name, _, host = text.rpartition("@")
            # Names are canonical, so a host in another form would never match, without a word of why.
            text = f"{name}@{host.lower() if is_glob(host) else canonical_host(host)}"
        elif text != "*":
            msg = f"a pattern is matched against the whole name@host; {text!r} has no '@'"
            raise ValueError(msg)
        self.text: str = text
        wild = [found.start() for found in re.finditer(r"[*?]", text)]
        self._prefix = text[: wild[0]] if wild else text
        self._suffix = text[wild[-1] + 1 :] if wild else ""
        self._any_between = "*" in text and not text[len(self._prefix) : len(text) - len(self._suffix)].strip("*")

    def matches(self, name: NodeName) -> bool:
        """Whether a node name fits; compared in canonical form, case-sensitive."""
        return self.matches_text(str(name))

    def matches_text(self, name: str) -> bool:
        """The same for the text of a node name."""
        if not self.is_glob:
            return name == self.text
        if not name.startswith(self._prefix) or not name.endswith(self._suffix):
            return False
        if len(name) < len(self._prefix) + len(self._suffix):
            return False
        return self._any_between or _fits(name, self.text)

    def __str__(self) -> str:
        return self.text


def is_glob(text: object) -> bool:
    """Whether a text is meant as a glob: no node name has a star or a question mark."""
    return isinstance(text, str) and ("*" in text or "?" in text)


def _fits(text: str, glob: str) -> bool:
    """Whether a text without wildcards fits: at a mismatch, the last star takes one character more."""
    at = place = taken = 0
    star = -1
    while at < len(text):
        wanted = glob[place : place + 1]
        if wanted == "*":
            star, taken, place = place, at, place + 1
        elif wanted in ("?", text[at]):
            at, place = at + 1, place + 1
        elif star < 0:
            return False
        else:
            taken += 1
            at, place = taken, star + 1
    return not glob[place:].strip("*")
