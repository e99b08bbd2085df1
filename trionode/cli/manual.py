"""`trionode manual`: the manual in a terminal; the pages and what finds things in them are in `trionode.manual`.

Into a pipe goes the page as it was written, which is plain text. In a terminal it is rendered, and shown by the pager
if it is longer than the screen.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Final

import click
import msgspec
from click.shell_completion import CompletionItem
from rich.markdown import Heading, Markdown
from rich.text import Text
from rich.theme import Theme

from trionode.manual import UnknownTopicError, find, search, topics
from trionode.manual.markdown import cells, parts

from .exits import ExitStatus, Trouble
from .given import json_option
from .shown import console, grid, plain, put, put_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from trionode.manual import Hit

#: A table whose columns would be narrower than this on average is shown as a list. Characters.
_NARROWEST: Final = 18

_LINK: Final = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
#: Code in a line: rich would give it a black background, whatever that of the terminal is.
_THEME: Final = Theme({"markdown.code": "cyan"})

_COMMENT: Final = re.compile(r"<!--.*?-->\n?", re.DOTALL)


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: topics, each with its title."""
    return [CompletionItem(each.name, help=each.title) for each in topics() if each.name.startswith(incomplete)]


@click.command(short_help="The manual: all topics, one of them, or where a word is.")
@click.argument("topic", required=False, shell_complete=_complete)
@click.option("--search", "word", metavar="WORD", help="List the lines that have this in them, in TOPIC or everywhere.")
@json_option
def manual(topic: str | None, word: str | None, *, as_json: bool) -> int:
    """The manual: a list of all topics, or one TOPIC.

    A TOPIC may be a public name, too: open_node, CertManager. In a terminal a page is rendered, and long ones are shown
    by your pager ($PAGER); a pipe gets the Markdown as it was written.

    \b
    Examples:
      trionode manual
      trionode manual rotation
      trionode manual open_node
      trionode manual --search SIGHUP
      trionode manual configuration > configuration.md

    Exit status: 0 if there was something to show, 1 if nothing was found, 2 if there is no such topic.
    """
    if word is not None:
        return _search(word, topic, as_json=as_json)
    if topic is None:
        return _contents(as_json=as_json)
    text = _find(topic)
    if as_json:
        put_json({"topic": topic, "text": text})
        return ExitStatus.OK
    out = console()
    if out.is_terminal:
        out.push_theme(_THEME)
        _page(out, rendered(text, out))
    else:
        click.echo(text, nl=False)
    return ExitStatus.OK


def _find(topic: str) -> str:
    try:
        return find(topic)
    except UnknownTopicError as exc:
        near = f"did you mean {' or '.join(exc.near)}?" if exc.near else "try: trionode manual --search WORD"
        msg = f"there is no topic {topic!r}; {near} `trionode manual` lists them all"
        raise Trouble(msg, ExitStatus.USAGE) from None


def _contents(*, as_json: bool) -> int:
    if as_json:
        put_json([msgspec.to_builtins(each) for each in topics()])
        return ExitStatus.OK
    out = console()
    # One width for all groups.
    width = max(len(each.name) for each in topics())
    for group, members in groupby(topics(), key=lambda each: each.group):
        put(out, Text(f"\n{group}", style="bold"))
        put(out, grid([(each.name.ljust(width), each.summary) for each in members]))
    put(out, Text("\ntrionode manual TOPIC shows one; --search WORD looks through all", style="dim"))
    return ExitStatus.OK


def _search(word: str, topic: str | None, *, as_json: bool) -> int:
    if topic is not None:
        _find(topic)
    hits = [hit for hit in search(word) if topic in (None, hit.topic)]
    if not hits:
        where = "in the manual" if topic is None else f"in {topic}"
        msg = f"{word!r} is not {where}; `trionode manual` lists the topics"
        raise Trouble(msg, ExitStatus.FOUND)
    if as_json:
        put_json([msgspec.to_builtins(each) for each in hits])
        return ExitStatus.OK
    out = console()
    lines = list(_hits(hits, word))
    if out.is_terminal:
        _page(out, lines)
    else:
        for hit in hits:
            click.echo(f"{hit.topic}:{hit.line}: {hit.heading}: {hit.text}")
    return ExitStatus.OK


def _hits(hits: Sequence[Hit], word: str) -> Iterator[Text]:
    for (topic, heading), found in groupby(hits, key=lambda hit: (hit.topic, hit.heading)):
        yield Text(topic, style="bold") + Text(f"  {heading}", style="dim")
        for hit in found:
            line = Text(f"  {hit.text.strip('| ').replace(' | ', '  ')}")
            line.highlight_words([word], style="bold yellow", case_sensitive=False)
            yield line


def _page(out: Console, what: Markdown | list[Text]) -> None:
    """Show something, by the pager where it does not fit the screen."""
    text = plain(out, *(what if isinstance(what, list) else [what]))
    if text.count("\n") < out.height - 1:
        click.echo(text, color=True)
    else:
        click.echo_via_pager(f"{text}\n")


# Rendering ----------------------------------------------------------------------------------------------------------


class _LeftHeading(Heading):
    """Headings at the margin: rich centres them, and draws a box round the first."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield Text() if self.tag != "h1" else Text(end="")
        yield self.text


class _Page(Markdown):
    elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "heading_open": _LeftHeading}


def rendered(text: str, out: Console) -> Markdown:
    """A page for a terminal: links to other pages name the topic, and tables that are too wide become lists."""
    pieces = [
        f"```{part.kind}\n{part.text}```\n" if part.kind is not None else "".join(_prose(part.text, out.width))
        for part in parts(text)
    ]
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
