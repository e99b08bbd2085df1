"""Pages of the manual for a terminal: rich's Markdown, with links that name topics and wide tables as lists."""

from __future__ import annotations

import re
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.cells import cell_len
from rich.markdown import Heading, Markdown, TableElement
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from trionode.manual.markdown import cells, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

#: A table whose columns would be narrower than this on average is shown as a list. Characters.
_NARROWEST: Final = 18

#: What rich puts round the cells of each column. Characters.
_BETWEEN: Final = 2

_LINK: Final = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
#: Code in a line: rich would give it a black background, whatever that of the terminal is.
_THEME: Final = Theme({"markdown.code": "cyan"})

_COMMENT: Final = re.compile(r"<!--.*?-->\n?", re.DOTALL)


class _LeftHeading(Heading):
    """Headings at the margin: rich centres them, and draws a box round the first."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield Text() if self.tag != "h1" else Text(end="")
        yield self.text


class _WholeTable(TableElement):
    """Tables whose words are folded where a column is narrow: rich would cut them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                for column in part.columns:
                    column.overflow = "fold"
            yield part


class _Page(Markdown):
    elements: ClassVar[dict[str, Any]] = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
        "table_open": _WholeTable,
    }


def rendered(text: str, out: Console) -> Markdown:
    """A page for a terminal: links to other pages name the topic, and tables that are too wide become lists.

    Args:
        text: Markdown.
        out: the terminal that it is for; gets the theme of these pages.
    """
    pieces = [
        f"```{part.kind}\n{part.text}```\n" if part.kind is not None else "".join(_prose(part.text, out.width))
        for part in parts(text)
    ]
    out.push_theme(_THEME)
    return _Page("".join(pieces), hyperlinks=False, code_theme="ansi_dark")


def _prose(text: str, width: int) -> Iterator[str]:
    lines = _LINK.sub(_without_link, _COMMENT.sub("", text)).splitlines(keepends=True)
    for is_table, group in groupby(lines, key=lambda line: line.startswith("|")):
        table = list(group)
        if is_table and _is_too_wide([cells(line) for line in table], width):
            yield from _as_list(table)
        else:
            yield from table


def _is_too_wide(rows: list[list[str]], width: int) -> bool:
    """Whether columns would be narrow, or words in them folded."""
    columns = zip_longest(*(row for number, row in enumerate(rows) if number != 1), fillvalue="")
    longest = [max(cell_len(word) for cell in column for word in [*_shown(cell).split(), ""]) for column in columns]
    return len(longest) * _NARROWEST > width or sum(longest) + _BETWEEN * len(longest) > width


def _shown(cell: str) -> str:
    return re.sub(r"[*`]", "", cell)


def _without_link(link: re.Match[str]) -> str:
    """A link, for a reader who cannot follow it: a page becomes its topic, a file its path, a picture its text."""
    picture, text, target = link.groups()
    path, _, _ = target.partition("#")
    if picture:
        return f"(picture: {text})"
    if "//" in target:
        return f"{text} ({target})"
    if not path:
        return text
    if path.endswith(".md") and "/" not in path:
        return f"{text} [{path.removesuffix('.md')}]"
    shown = path.replace("../", "")
    return text if shown in text else f"{text} ({shown})"


def _as_list(table: list[str]) -> Iterator[str]:
    """A wide table as paragraphs: each row's first cell, and below it what each other column says."""
    head, _, *body = (cells(line) for line in table)
    for first, *others in body:
        yield f"{first if '**' in first else f'**{first}**'}\n\n"
        for title, cell in zip(head[1:], others, strict=True):
            if cell:
                yield f"- {title + ': ' if title else ''}{cell}\n"
        yield "\n"
