"""The manual hangs together: its contents, its links, the paths that it names, and what finds things in it."""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import trionode.manual
import trionode.testing
from trionode.demo.checks import CHECKS
from trionode.manual import CONTENTS, UnknownTopicError, find, read, search, topics
from trionode.manual.markdown import anchor, blocks, headings, parts, prose, rows, section, sections, spans, tables

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = Path(trionode.manual.__file__).parent
PAGES: Final = {"README.md": ROOT / "README.md"} | {f"manual/{file.name}": file for file in sorted(FOLDER.glob("*.md"))}
TEXTS: Final = {name: file.read_text(encoding="utf-8") for name, file in PAGES.items()}
#: Those that are written by hand.
WRITTEN: Final = [name for name in TEXTS if not name.endswith(("/api.md", "/configuration.md"))]


# Contents -----------------------------------------------------------------------------------------------------------


def test_the_contents_have_every_page_once() -> None:
    """And no other."""
    listed = [topic.name for topic in topics()]
    assert sorted(listed) == sorted(file.stem for file in FOLDER.glob("*.md") if file.stem != CONTENTS)


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
def test_a_page_begins_with_its_title_and_a_line(topic: trionode.manual.Topic) -> None:
    """The title of the contents; below it, in a paragraph, what the page is about."""
    title, paragraph, *_ = read(topic.name).split("\n\n")
    assert title == f"# {topic.title}"
    assert paragraph
    assert not paragraph.startswith(("#", "|", "`", "-"))
    assert len(topic.summary) <= 80
    assert headings(read(topic.name), level=1) == [topic.title]


def test_groups_are_in_order() -> None:
    """Each group's topics stand together."""
    groups = [topic.group for topic in topics()]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)


# Links and paths ----------------------------------------------------------------------------------------------------


checkout = pytest.mark.skipif(not (ROOT / "trionode").is_dir(), reason="is about files of a checkout")


@checkout
@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    """Relative ones to files of the repository, and to headings of those."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        file = PAGES[name].parent / path if path else PAGES[name]
        assert file.exists(), target
        assert file.resolve().is_relative_to(ROOT), target
        if fragment:
            assert fragment in map(anchor, headings(file.read_text(encoding="utf-8"))), target


#: What begins like this is a path of the repository.
_PATH: Final = re.compile(r"(?:trionode|tests|benchmarks|\.ci)/[\w./-]*")


@checkout
@pytest.mark.parametrize("name", WRITTEN)
def test_paths_that_are_named_exist(name: str) -> None:
    """Whatever stands between backticks and looks like a path of the repository."""
    for span in spans(prose(TEXTS[name])):
        if _PATH.fullmatch(span):
            assert (ROOT / span).exists(), span


@checkout
@pytest.mark.parametrize("name", WRITTEN)
def test_modules_that_are_named_exist(name: str) -> None:
    """`python -m …`: each module that is to be run is there, as a file or a folder; and each stress program."""
    for module in re.findall(r"python -m ((?:trionode|benchmarks)[\w.]*)", TEXTS[name]):
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for program in re.findall(r"python -m\s+benchmarks\.stress\s+([a-z]+)", TEXTS[name]):
        place = ROOT / "benchmarks" / "stress" / program
        assert place.with_suffix(".py").exists() or place.is_dir(), program


@checkout
def test_the_architecture_names_every_folder() -> None:
    """Each folder and file of the package that holds code, and no other."""
    text = section(read("architecture"), "Folders")
    listed = {span.rstrip("/") for first, *_ in rows(text) for span in spans(first)}
    package = ROOT / "trionode"
    real = {f"trionode/{each.name}" for each in package.iterdir() if (each / "__init__.py").exists()}
    files = {f"trionode/{each.name}" for each in package.glob("*.py")}
    named = set(spans(text))
    assert real <= listed
    assert {each for each in listed if each.startswith("trionode/")} <= real | files
    assert files - {f"trionode/{each}.py" for each in ("__main__", "py.typed")} <= listed | named


def test_words_are_plain() -> None:
    """No riddles: a role has a name."""
    for name in WRITTEN:
        text = prose(TEXTS[name])
        assert not re.search(r"\b(dialler|dialling|dialled|nobody|whoever|somebody)\b", text, re.IGNORECASE), name


# Finding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation", "Rotation", " ROTATION "])
def test_a_topic_is_found_in_any_case(name: str) -> None:
    """By its name."""
    assert find(name) == read("rotation")


@pytest.mark.parametrize("name", ["Getting started", "getting-started", "Getting-Started"])
def test_a_topic_is_found_by_its_title(name: str) -> None:
    """With spaces or dashes."""
    assert find(name) == read("getting-started")


@pytest.mark.parametrize("name", ["CertManager", "certmanager", "trionode.CertManager"])
def test_a_public_name_is_found(name: str) -> None:
    """Its part of the API reference, to the next name."""
    text = find(name)
    assert text.startswith("### CertManager\n")
    assert "CertManager.update(" in text
    assert text.count("\n### ") == 0


def test_a_name_of_another_module_is_found() -> None:
    """Without its module, too."""
    assert find("CertificateAuthority") == find("trionode.pki.CertificateAuthority")


def test_an_unknown_topic_has_near_ones() -> None:
    """The nearest first; nothing where nothing is near."""
    with pytest.raises(UnknownTopicError) as caught:
        find("rotations")
    assert caught.value.near[0] == "rotation"
    with pytest.raises(UnknownTopicError) as caught:
        find("xyzzyxyzzy")
    assert caught.value.near == ()


def test_search_finds_lines_in_any_case() -> None:
    """With page, heading, number and text; also in code."""
    hits = list(search("sighup"))
    assert {"files", "getting-started"} <= {hit.topic for hit in hits}
    for hit in hits:
        assert read(hit.topic).splitlines()[hit.line - 1].strip() == hit.text
        assert "sighup" in hit.text.lower()
        assert hit.heading in headings(read(hit.topic))
    assert list(search("xyzzy")) == []


# Markdown -----------------------------------------------------------------------------------------------------------

PAGE: Final = """# Title

Words.

```python
# no heading
x = "| no | table |"
```

## One

| a | b |
| -- | -- |
| `c` | d \\| e |

### Deeper

```
```

## Two
"""


def test_a_page_is_taken_apart() -> None:
    """Nothing is lost, and code is code."""
    assert [(part.kind, part.line) for part in parts(PAGE)] == [
        (None, 1),
        ("python", 6),
        (None, 9),
        ("", 19),
        (None, 20),
    ]
    assert [each.text for each in blocks(PAGE, "python")] == ['# no heading\nx = "| no | table |"\n']
    assert "no heading" not in prose(PAGE)


def test_sections_are_taken_apart() -> None:
    """By headings that are none in code; one includes those below it."""
    assert headings(PAGE) == ["Title", "One", "Deeper", "Two"]
    assert headings(PAGE, level=2) == ["One", "Two"]
    assert "".join(each.text for each in sections(PAGE)) == PAGE
    assert section(PAGE, "One").startswith("## One\n")
    assert section(PAGE, "One").endswith("```\n```\n\n")
    with pytest.raises(KeyError):
        section(PAGE, "Three")


def test_text_before_the_first_heading_is_a_section() -> None:
    """Without a heading."""
    assert [(each.heading, each.level) for each in sections("before\n# after\n")] == [("", 0), ("after", 1)]


def test_tables_are_taken_apart() -> None:
    """Head and rows; a pipe that is escaped parts nothing."""
    assert list(tables(section(PAGE, "One"))) == [[["a", "b"], ["`c`", "d \\| e"]]]
    assert list(rows(section(PAGE, "One"))) == [["`c`", "d \\| e"]]


# What is made by programs ---------------------------------------------------------------------------


def test_the_reference_is_fresh() -> None:
    """What `python tests/manual/reference.py` writes is what is there; else run it."""
    program = Path(__file__).with_name("reference.py")
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"run python tests/manual/{program.name}:\n{done.stdout[:3000]}"
    assert done.stdout == ""


def test_every_class_of_options_is_in_the_reference() -> None:
    """Each public dataclass that has defaults; but for snapshots, which programs are given."""
    snapshots = {
        "ConnectionEnd",
        "ConnectorState",
        "Credentials",
        "FollowerStatus",
        "ManagerStatistics",
        "RecordedCall",
    }
    found = {
        name
        for module in (trionode, trionode.testing)
        for name, value in vars(module).items()
        if inspect.isclass(value) and dataclasses.is_dataclass(value) and has_defaults(value)
    }
    assert found >= snapshots
    assert found - snapshots <= set(headings(read("configuration"), level=2))


def has_defaults(kind: type[Any]) -> bool:
    """Whether any field of a dataclass has a default."""
    missing = dataclasses.MISSING
    return any(each.default is not missing or each.default_factory is not missing for each in dataclasses.fields(kind))


def test_the_picture_is_of_the_demo_as_it_is() -> None:
    """It shows every check; else run `python tests/manual/picture.py`. It fetches nothing."""
    picture = (FOLDER / "demo.svg").read_text(encoding="utf-8")
    shown = html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))).replace("\xa0", " ")
    assert [title for title in CHECKS if title not in shown] == []
    assert not re.search(r"@import|@font-face|url\(['\"]?https?:|href=", picture)
