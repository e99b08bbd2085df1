"""`trionode manual`: the manual in a terminal; the pages and what finds things in them are in `trionode.manual`.

Into a pipe goes the page as it was written, which is plain text. In a terminal it is rendered (`rendering`), and shown
by the pager if it is longer than the screen.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click
import msgspec
from click.shell_completion import CompletionItem
from rich.text import Text

from trionode.manual import UnknownTopicError, find, search, topics
from trionode.manual.messages import explain

from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble
from .given import json_option
from .shown import console, grid, plain, put, put_json
from .words import in_command_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.markdown import Markdown

    from trionode.manual import Hit


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: topics, each with its title."""
    return [CompletionItem(each.name, help=each.title) for each in topics() if each.name.startswith(incomplete)]


@click.command(short_help="The manual: all topics, one of them, or where a word is.")
@click.argument("topic", required=False, shell_complete=_complete)
@click.option(
    "--search",
    "word",
    metavar="WORD",
    help="List the lines that have this in them; of an error message, what is about it.",
)
@json_option
@needs_stdout
def manual(topic: str | None, word: str | None, *, as_json: bool) -> int:
    """The manual: a list of all topics, or one TOPIC.

    A TOPIC may be a public name, too: open_node, CertManager. In a terminal a page is rendered, and long ones are shown
    by your pager ($PAGER); a pipe gets the Markdown as it was written. --search takes whole error messages as well: it
    says which page is about them.

    \b
    Examples:
      trionode manual
      trionode manual rotation
      trionode manual open_node
      trionode manual --search SIGHUP
      trionode manual --search "cannot listen on 10.0.0.1, tried port 1: ..."
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
        # Here and not above: it would be a tenth of the time that every command takes to start.
        from .rendering import rendered

        _page(out, rendered(text, out))
    else:
        click.echo(text, nl=False)
    return ExitStatus.OK


def _find(topic: str) -> str:
    try:
        return find(topic)
    except UnknownTopicError as exc:
        near = f"did you mean {' or '.join(exc.near)}?" if exc.near else "look with: trionode manual --search WORD."
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
    if not word.strip():
        msg = "--search: a word, or an error message, is wanted"
        raise click.UsageError(msg)
    if topic is not None:
        _find(topic)
    hits = [hit for hit in search(word) if topic in (None, hit.topic)]
    if not hits and topic is None:
        hits = explain(word, reworded=in_command_words)
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
