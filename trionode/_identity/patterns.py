"""Patterns over whole node names: exact names and globs, as routes and `allow=` use them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import final

from .names import NodeName, canonical_host


@final
class NamePattern:
    """A node name, or a glob (`*`, `?`) over the whole `name@host`."""

    __slots__ = ("_glob", "text")

    def __init__(self, pattern: str | NodeName) -> None:
        """Parse a pattern.

        Raises:
            ValueError: it is neither a node name nor a glob over one.
        """
        text = str(pattern)
        self._glob = is_glob(text)
        if not self._glob:
            text = str(NodeName.parse(text))
        elif "@" in text:
            name, _, host = text.rpartition("@")
            # Names are canonical, so a host in another form would never match, without a word of why.
            text = f"{name}@{host.lower() if is_glob(host) else canonical_host(host)}"
        elif text != "*":
            msg = f"a pattern is matched against the whole name@host; {text!r} has no '@'"
            raise ValueError(msg)
        self.text: str = text

    def matches(self, name: NodeName) -> bool:
        """Whether a node name fits; compared in canonical form, case-sensitive."""
        if not self._glob:
            return str(name) == self.text
        if self.text == "*":
            return True
        # Brackets are those of an IPv6 address here, not a character class.
        return fnmatchcase(str(name), self.text.replace("[", "[[]"))

    def __str__(self) -> str:
        return self.text


def is_glob(text: object) -> bool:
    """Whether a text is meant as a glob: no node name has a star or a question mark."""
    return isinstance(text, str) and ("*" in text or "?" in text)
