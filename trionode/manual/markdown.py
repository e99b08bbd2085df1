"""A page of Markdown taken apart: code blocks, sections, headings, tables.

Only what the pages of the manual use: fenced blocks that begin at the margin, headings with `#`, tables with a pipe at
each end. A `#` inside a code block is no heading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FENCE: Final = "```"
_HEADING: Final = re.compile(r"^(#{1,6}) (.+)$")
#: A pipe that parts two cells; one that is escaped belongs to the text.
_PIPE: Final = re.compile(r"(?<!\\)\|")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive lines of a page that belong together.

    Attributes:
        kind: the language of a code block (empty if it says none); None for everything else.
        text: the lines; of a code block those between the fences.
        line: the number of its first line, from 1.
    """

    kind: str | None
    text: str
    line: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, and the text up to the next heading of whatever level.

    Attributes:
        heading: its text; empty before the first one.
        level: 1 for `#`, and so on; 0 before the first one.
        text: everything, the heading's own line included.
        line: the number of its first line, from 1.
    """

    heading: str
    level: int
    text: str
    line: int


def parts(text: str) -> Iterator[Part]:
    """A page as code blocks and what stands between them, in order."""
    lines: list[str] = []
    start, kind = 1, None
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.startswith(_FENCE):
            lines.append(line)
            continue
        if lines or kind is not None:
            yield Part(kind=kind, text="".join(lines), line=start)
        lines, start = [], number + 1
        kind = line.strip().removeprefix(_FENCE) if kind is None else None
    if lines:
        yield Part(kind=kind, text="".join(lines), line=start)


def blocks(text: str, *kinds: str) -> Iterator[Part]:
    """The code blocks of a page, of some languages or of all."""
    return (part for part in parts(text) if part.kind is not None and (not kinds or part.kind in kinds))


def prose(text: str) -> str:
    """A page without its code blocks."""
    return "".join(part.text for part in parts(text) if part.kind is None)


def sections(text: str) -> Iterator[Section]:
    """A page as sections, in order."""
    heading, level, start = "", 0, 1
    lines: list[str] = []
    fenced = False
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        fenced ^= line.startswith(_FENCE)
        found = None if fenced else _HEADING.match(line)
        if found is not None:
            if lines:
                yield Section(heading=heading, level=level, text="".join(lines), line=start)
            heading, level, start, lines = found[2].strip(), len(found[1]), number, []
        lines.append(line)
    if lines:
        yield Section(heading=heading, level=level, text="".join(lines), line=start)


def headings(text: str, *, level: int | None = None) -> list[str]:
    """The headings of a page, of one level or of all."""
    return [each.heading for each in sections(text) if each.level and level in (None, each.level)]


def section(text: str, heading: str) -> str:
    """The text below a heading, its own line and deeper sections included; up to the next of its level or above.

    Raises:
        KeyError: there is no such heading.
    """
    found: list[str] = []
    level = 0
    for each in sections(text):
        if found and each.level <= level:
            break
        if found or each.heading == heading:
            level = level or each.level
            found.append(each.text)
    if not found:
        raise KeyError(heading)
    return "".join(found)


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables in a text, without their heads."""
    for table in tables(text):
        yield from table[1:]


def tables(text: str) -> Iterator[list[list[str]]]:
    """The tables in a text: of each the rows, the head first, as cells."""
    table: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(cells(line))
        elif table:
            yield [table[0], *table[2:]]
            table = []


def cells(line: str) -> list[str]:
    """The cells of a table's line."""
    return [cell.strip() for cell in _PIPE.split(line)[1:-1]]


def spans(texts: str | Iterable[str]) -> list[str]:
    """What stands between backticks."""
    text = texts if isinstance(texts, str) else "\n".join(texts)
    return re.findall(r"`([^`\n]+)`", text)


def anchor(heading: str) -> str:
    """The anchor that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
