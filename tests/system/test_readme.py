"""The README opens as it should: what this is for, the two commands that scripts find in it, and a way into the manual.

That its programs, tables and links are true is tested where those of the manual are, in `tests/manual`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trionode.manual import topics
from trionode.manual.markdown import blocks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

COMMANDS = {
    "demo-command": "python3 -m venv .venv && .venv/bin/pip install -q -e '.[cli]' && .venv/bin/trionode demo",
    "test-command": (
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -n auto"
    ),
}


def test_it_opens_with_what_this_is_for_and_the_two_commands() -> None:
    """A title, one paragraph, and then both commands before the first section."""
    opening = README.split("\n## ")[0]
    title, paragraph, *_ = opening.split("\n\n")
    assert title == "# trionode"
    assert paragraph.startswith("`trionode` lets")
    assert all(f"<!-- {name} -->" in opening for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_block_after_the_comment_is_the_command(name: str) -> None:
    """Scripts find each command as the fenced bash block right after its comment."""
    assert f"<!-- {name} -->\n```bash\n{COMMANDS[name]}\n```\n" in README


def test_there_is_no_other_shell_block() -> None:
    """What is to be typed is those two commands."""
    assert [block.text.strip() for block in blocks(README, "bash")] == list(COMMANDS.values())


def test_it_is_short() -> None:
    """Everything else is in the manual."""
    assert len(README.splitlines()) <= 250


def test_it_leads_to_every_page_of_the_manual() -> None:
    """In the manual's own order."""
    listed = re.findall(r"\]\(trionode/manual/([\w-]+)\.md\)", README.split("\n## The manual\n")[1])
    assert sorted(set(listed) - {"README"}) == sorted(topic.name for topic in topics())
