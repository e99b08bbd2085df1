"""`trionode manual`: the list, a page, a search; in a terminal and into a pipe; what is not there."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest
from click.shell_completion import ShellComplete

from effort import THOROUGH
from trionode.cli import main
from trionode.cli.program import cli
from trionode.cli.rendering import rendered
from trionode.cli.shown import console, plain
from trionode.cli.words import in_command_words
from trionode.manual import Topic, read, topics
from trionode.manual.markdown import headings
from trionode.manual.messages import explain, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Said
    from rich.console import Console

    Command = Callable[..., Said]

#: Every process is bounded by this. Seconds.
PATIENCE: Final = 30


# Into a pipe --------------------------------------------------------------------------------------------------------


def test_without_a_topic_all_are_listed(trionode_command: Command) -> None:
    """Each in a line of its own, in groups."""
    said = trionode_command("manual")
    lines = said.out.splitlines()
    for topic in topics():
        [line] = [line for line in lines if line.split()[:1] == [topic.name]]
        assert line.endswith(topic.summary)
    assert {topic.group for topic in topics()} <= set(lines)


def test_a_topic_is_the_page_as_it_was_written(trionode_command: Command) -> None:
    """Plain text, which can be kept and searched."""
    assert trionode_command("manual", "rotation").out == read("rotation")


def test_a_public_name_is_a_topic(trionode_command: Command) -> None:
    """Its part of the API reference."""
    assert trionode_command("manual", "open_node").out.startswith("### open_node\n")


def test_a_search_shows_topic_line_and_heading(trionode_command: Command) -> None:
    """One line for each hit."""
    lines = trionode_command("manual", "--search", "sighup").out.splitlines()
    assert len(lines) > 3
    for line in lines:
        found = re.fullmatch(r"([\w-]+):(\d+): ([^:]*): (.*)", line)
        assert found is not None, line
        assert read(found[1]).splitlines()[int(found[2]) - 1].strip() == found[4]


def test_a_search_may_be_in_one_topic(trionode_command: Command) -> None:
    """And nowhere else."""
    lines = trionode_command("manual", "files", "--search", "sighup").out.splitlines()
    assert lines
    assert {line.split(":")[0] for line in lines} == {"files"}


@pytest.mark.parametrize(
    ("said", "topic", "heading"),
    [
        (
            "trionode: cannot listen on 10.0.0.1, tried port 7: Address in use. Give an",
            "troubleshooting",
            "A node cannot",
        ),
        (
            "is not signed by a CA of our pool (CN=x). Add its CA to --root-ca, issue it",
            "troubleshooting",
            "The server's",
        ),
        (
            "server certificate refused: wanted the name 'a', its SANs offer DNS:b",
            "troubleshooting",
            "The name does not",
        ),
        ("this trust would strand 2 live peers, so nothing was changed: a (CN=b)", "trust", "Revocation"),
        ("a cookie has at least 16 bytes, not 5; `trionode cookie` makes one", "errors", ""),
    ],
)
def test_a_message_is_found_by_its_words(trionode_command: Command, said: str, topic: str, heading: str) -> None:
    """As it was printed, with whatever names and numbers; in Python's words or in those of the command line."""
    found = trionode_command("manual", "--search", said)
    assert found.status == 0
    assert re.match(rf"{topic}:\d+: {re.escape(heading)}", found.out)


def test_every_message_is_found() -> None:
    """By its own words, among the first few; and the pages and headings that it leads to are there."""
    known = {topic.name: headings(read(topic.name), level=2) for topic in topics()}
    reworded = cache(in_command_words)
    for message in messages()[:: 1 if THOROUGH else 4]:
        assert explain(message.text.replace("…", "17"), reworded=reworded), message
        topic, heading = message.page
        assert not heading or heading in known[topic]


def test_json(trionode_command: Command) -> None:
    """The list, a page, and hits, for scripts."""
    assert [each["name"] for each in json.loads(trionode_command("manual", "--json").out)] == [
        each.name for each in topics()
    ]
    assert json.loads(trionode_command("manual", "rotation", "--json").out)["text"] == read("rotation")
    hits = json.loads(trionode_command("manual", "--search", "sighup", "--json").out)
    assert {"topic", "heading", "line", "text"} == hits[0].keys()


# What is not there --------------------------------------------------------------------------------------------------


def test_an_unknown_topic_is_an_error_with_near_ones(trionode_command: Command) -> None:
    """One line, exit status 2."""
    said = trionode_command("manual", "rotaton")
    said.is_one_line("there is no topic 'rotaton'", "did you mean rotation?", status=2)


def test_a_topic_with_nothing_near(trionode_command: Command) -> None:
    """The search is suggested."""
    trionode_command("manual", "xyzzyxyzzy").is_one_line("--search WORD", status=2)
    trionode_command("manual", "xyzzyxyzzy", "--search", "a").is_one_line("there is no topic", status=2)


def test_a_word_that_is_nowhere(trionode_command: Command) -> None:
    """Exit status 1, as grep's."""
    trionode_command("manual", "--search", "xyzzy").is_one_line("'xyzzy' is not in the manual", status=1)
    trionode_command("manual", "wire", "--search", "xyzzy").is_one_line("'xyzzy' is not in wire", status=1)


# Completion ---------------------------------------------------------------------------------------------------------


def test_topics_are_completed() -> None:
    """By their names."""
    completer = ShellComplete(cli, {}, "trionode", "_TRIONODE_COMPLETE")
    found = {each.value for each in completer.get_completions(["manual"], "tr")}
    assert found == {"tracing", "troubleshooting", "trust"}


# In a terminal ------------------------------------------------------------------------------------------------------


def terminal(*arguments: str, rows: int = 24, columns: int = 80, pager: str = "cat") -> str:
    """What a terminal of a size shows of the command; the pager is a program that shows everything."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "trionode", "manual", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "PAGER": pager, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)},
    ) as process:
        os.close(slave)
        said = b""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and select.select([master], [], [], PATIENCE)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            said += chunk
        process.kill()
    os.close(master)
    return said.decode().replace("\r\n", "\n")


def bare(text: str) -> str:
    """Text without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("columns", [80, 40])
def test_a_page_is_rendered_to_the_width_of_the_terminal(columns: int) -> None:
    """Without Markdown's marks; with colours; links name topics."""
    shown = terminal("trust", rows=500, columns=columns)
    assert "\x1b[" in shown
    lines = bare(shown).splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "Trust and revocation" in text
    assert "## " not in text
    assert "](" not in text
    assert "FileSource [files]" in text


def test_what_does_not_fit_goes_through_the_pager() -> None:
    """And what does fit does not."""
    assert "paged" in terminal("rotation", pager="sed s,Rotation,paged,")
    assert "paged" not in terminal("Unchanged", pager="sed s/Unchanged/paged/")


def test_a_search_is_grouped_by_heading() -> None:
    """And the word stands out."""
    shown = terminal("--search", "sighup", rows=500)
    assert "\x1b[1;33mSIGHUP" in shown
    assert "files" in bare(shown)


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
@pytest.mark.parametrize("columns", [80, 40])
def test_every_page_fits(topic: Topic, columns: int, wide: Callable[[int], Console]) -> None:
    """No line is longer than the terminal is wide, but for code, which is not broken where it can be helped.

    And no word of a table is cut: names of metrics, options and errors least of all.
    """
    out = wide(columns)
    page = read(topic.name)
    text = bare(plain(out, rendered(page, out)))
    assert max(map(len, text.splitlines())) <= columns
    if topic.name != "api":
        assert text.count("…") <= page.count("…")


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Console]:
    """Consoles that are terminals of a width."""

    def make(columns: int) -> Console:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("FORCE_COLOR", "1")
        return console()

    return make


def test_a_wide_table_becomes_a_list(wide: Callable[[int], Console]) -> None:
    """Where its columns would be too narrow to read; else it is a table."""
    page = "# T\n\n| a | b | c |\n| -- | -- | -- |\n| one | two | three |\n| four | | six |\n"
    narrow, broad = (bare(plain(out, rendered(page, out))) for out in (wide(40), wide(120)))
    assert "• b: two" in narrow
    assert "• c: six" in narrow
    assert "•" not in broad


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[Rotation](rotation.md)", "Rotation [rotation]"),
        ("[the rule](rotation.md#threads)", "the rule [rotation]"),
        ("[above](#here)", "above"),
        ("[threat model](../../tests/THREATS.md)", "threat model (tests/THREATS.md)"),
        ("[benchmarks/README.md](../../benchmarks/README.md)", "benchmarks/README.md"),
        ("[Trio](https://trio.readthedocs.io)", "Trio (https://trio.readthedocs.io)"),
        ("![a chart](chart.svg)", "(picture: a chart)"),
        ("<!-- a comment -->words", "words"),
    ],
)
def test_links_are_said(written: str, shown: str, wide: Callable[[int], Console]) -> None:
    """For readers who cannot follow them."""
    out = wide(100)
    assert bare(plain(out, rendered(written, out))).strip() == shown


def test_it_runs_in_this_process_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is no pager."""
    assert main(["manual", "wire"]) == 0
    assert capsys.readouterr().out == read("wire")
