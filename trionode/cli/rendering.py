"""Pages of the manual for a terminal: rich's Markdown, with links that name topics and wide tables as lists."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.markdown import Heading, Markdown
from rich.text import Text
from rich.theme import Theme

from trionode.manual.markdown import cells, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

#: A table whose columns would be narrower than this on average is shown as a list. Characters.
_NARROWEST: Final = 18

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


class _Page(Markdown):
    elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "heading_open": _LeftHeading}


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
        if is_table and len(cells(table[0])) * _NARROWEST > width:
            yield from _as_list(table)
        else:
            yield from table


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
