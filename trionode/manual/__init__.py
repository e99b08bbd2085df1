"""The manual: Markdown pages in the wheel, and what finds things in them.

Theory. A page is a file beside this one; the topic `rotation` is `rotation.md`. `README.md` is the table of contents:
it lists every page once, below the heading of its group and in reading order, with one line that says what the page is
about. Code hosts show it for this folder, `trionode manual` lists the topics from it, so there is one list.

`messages` finds the page for an error message, `markdown` takes pages apart. Showing them is the command line's
business (`cli.manual`). Two pages, `configuration.md` and `api.md`, are written from docstrings, by
`python tests/manual/reference.py`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from .markdown import headings, section, sections

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The table of contents.
CONTENTS: Final = "README"
#: The page whose headings are the public names: a name is a topic, too.
API: Final = "api"

#: How alike a name has to be to what was asked for to be suggested (see difflib).
_NEAR: Final = 0.75

_ENTRY: Final = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<name>[\w-]+)\.md\): (?P<summary>.+)$")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """One page, as the table of contents has it.

    Attributes:
        name: what to ask for; the file's name without its suffix.
        title: its heading.
        summary: what it is about, in a line.
        group: the heading that it stands below.
    """

    name: str
    title: str
    summary: str
    group: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A line in which a word was found.

    Attributes:
        topic: the page.
        heading: the heading that the line stands below.
        line: its number in the page, from 1.
        text: the line.
    """

    topic: str
    heading: str
    line: int
    text: str


@final
class UnknownTopicError(LookupError):
    """There is no such topic.

    Attributes:
        near: names that look like it, the nearest first; may be empty.
    """

    def __init__(self, name: str, near: tuple[str, ...]) -> None:
        super().__init__(name)
        self.near = near


@cache
def read(name: str) -> str:
    """The Markdown of a page.

    Args:
        name: the name of a topic, or `CONTENTS`.
    """
    return Path(__file__).with_name(f"{name}.md").read_text(encoding="utf-8")


@cache
def topics() -> tuple[Topic, ...]:
    """All pages, in reading order."""
    lines = ((part.heading, line) for part in sections(read(CONTENTS)) for line in part.text.splitlines())
    return tuple(Topic(group=group, **entry.groupdict()) for group, line in lines if (entry := _ENTRY.match(line)))


def find(name: str) -> str:
    """The Markdown for a topic, or for a public name: its part of the API reference.

    Args:
        name: upper and lower case count for nothing, spaces are as good as dashes.

    Raises:
        UnknownTopicError: it is neither.
    """
    wanted = name.strip().lower().replace(" ", "-")
    pages = {topic.name: topic.name for topic in topics()} | {
        topic.title.lower().replace(" ", "-"): topic.name for topic in topics()
    }
    if wanted in pages:
        return read(pages[wanted])
    names = {heading.rpartition(".")[2].lower(): heading for heading in headings(read(API), level=3)}
    plain = wanted.removeprefix("trionode.").rpartition(".")[2]
    if plain in names:
        return section(read(API), names[plain])
    near = difflib.get_close_matches(wanted, [*pages, *names], n=3, cutoff=_NEAR)
    shown = [pages.get(each) or names[each] for each in near]
    raise UnknownTopicError(name, tuple(dict.fromkeys(shown)))


def search(word: str) -> Iterator[Hit]:
    """Each line of the manual that has a word in it, page by page in reading order.

    Args:
        word: any text; upper and lower case count for nothing.
    """
    wanted = word.lower()
    for topic in topics():
        for part in sections(read(topic.name)):
            for number, line in enumerate(part.text.splitlines(), start=part.line):
                if wanted in line.lower():
                    yield Hit(topic=topic.name, heading=part.heading, line=number, text=line.strip())
