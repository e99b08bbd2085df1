"""The command line speaks of options and commands, and not of Python; a line is a line."""

from __future__ import annotations

import ast
import logging
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trionode
from python_names import PYTHON
from trionode import KeyPair
from trionode._identity.describe import describe
from trionode.cli.logs import LogWords
from trionode.cli.words import ROWS, in_command_words, one_line
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Said

#: Texts that no command can cause: what they are about has no option, or the command line looks at it beforehand.
ELSEWHERE = (
    "Values of other types are sent by call_typed",
    "; encode it",
    "a code is a RemoteCode",
    "send_eof() was called",
    "a source's read() returns",
    "in use by a Trio run in another thread",
    "is fixed at start-up and this cert manager is in use",
    "is not canonical; use NodeName.parse()",
    "node.wait_members() waits for them",
    "call node.keep_connected() first",
    "a CertManager or a mapping",
    "a collection of NodeName was expected",
    "open the node with NetworkMode.ENABLED",
    "no longer registers",
    "and a CertManager has none",
    "KeyUpdates",
    "Its second ClientHello",
    "in its ClientHello",
    "PowerShell",
    "or open channels by node.open_channel()",
    "in a systemd unit: ListenStream=",
    "crls=None: certificates",
    "tuple[AddressFamily, tuple[Any, ...]]",
    "install it with: pip install",
    "install one with: pip install",
    "close_notify",
)

#: Of these folders the command line shows no texts, or texts of its own.
_OTHERS = (
    "cli",
    "demo",
    "testing",
    "manual",
    "http",
    "enrolment",
    "metrics.py",
    "pytest_plugin.py",
    "_protocol",
    "_util",
)


def _literals(tree: ast.AST) -> Iterator[str]:
    """The texts in a module that are no docstrings; what is put into them is 7."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(map(id, node.values))
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else "7" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


@cache
def literals() -> dict[Path, tuple[str, ...]]:
    """The texts of each module, below the package's folder."""
    root = Path(trionode.__file__).parent
    return {
        file.relative_to(root): tuple(_literals(ast.parse(file.read_text(encoding="utf-8"))))
        for file in root.rglob("*.py")
    }


@cache
def texts() -> tuple[str, ...]:
    """What the library may say to people."""
    found = [text for file, said in literals().items() if file.parts[0] not in _OTHERS for text in said]
    return tuple(text for text in found if " " in text and len(text) > 25 and not text.startswith("<"))


@pytest.mark.parametrize(("pattern", "words"), ROWS, ids=[pattern[:40] for pattern, _ in ROWS])
def test_every_row_is_of_use(pattern: str, words: str) -> None:
    """The library says it, and what the command line says in its place names nothing of Python."""
    every = [text for file, said in literals().items() if file.parts[0] != "cli" for text in said]
    every += [
        "our own root_cas and client_cas",
        "Add its CA to root_cas",
        "Add its CA to client_cas",
        "bind_names=False",
    ]
    assert any(re.search(pattern, text) for text in every)
    assert not PYTHON.search(words)


def test_every_remedy_has_words_here() -> None:
    """What the library says in names of Python has a row, unless no command can cause it."""
    left = [
        text
        for text in texts()
        if PYTHON.search(in_command_words(text))
        and not any(known in text for known in ELSEWHERE)
        and "must" not in text
    ]
    assert left == []


def test_what_is_said_elsewhere_is_still_said() -> None:
    """The list has nothing that is gone."""
    everything = "\n".join(text for said in literals().values() for text in said)
    assert [known for known in ELSEWHERE if known not in everything] == []


@pytest.mark.parametrize("hosts", [("localhost",), ("a.example", "10.0.0.1", "::1")])
def test_a_certificate_goes_below_the_line(hosts: tuple[str, ...]) -> None:
    """Its subject stays, what else it holds has a line of its own; said once, however often it is named."""
    shown = describe(KeyPair.self_signed(*hosts, organization="Some (odd) place").certificate)
    line, details = one_line(f"refused: {shown} and again {shown}. Do it (now)")
    assert line.startswith("refused: ")
    assert line.endswith(". Do it (now)")
    assert "SHA-256" not in line
    assert len(details) == 1
    assert "issuer" in details[0]
    assert "SHA-256" in details[0]
    assert hosts[0] in details[0]


def test_the_systems_words_come_without_numbers_of_python() -> None:
    """The operator knows the address, and `errno` is a programmer's."""
    said = "cannot connect to h port 1: [Errno 111] Error connecting to ('127.0.0.1', 1): Connection refused. Nothing"
    assert in_command_words(said) == "cannot connect to h port 1: Connection refused. Nothing"
    assert in_command_words("[Errno -2] Name or service not known") == "Name or service not known"


def test_a_source_is_the_file_that_it_reads() -> None:
    """And no object of Python."""
    assert in_command_words("<FileSource pki/a@b.pem>: <KeyPair CN=a> was not published") == (
        "pki/a@b.pem: CN=a was not published"
    )


def test_a_line_of_the_log_of_serve() -> None:
    """In the same words; what the certificate holds comes last, once."""
    shown = describe(KeyPair.self_signed("localhost").certificate)
    text = f"{shown} was not published: {shown}. Issue a new one, and rotate to it with manager.update()"
    record = logging.LogRecord("trionode.sources", logging.WARNING, "", 0, "%s", (text,), None)
    line = LogWords("%(levelname)s %(name)s: %(message)s").format(record)
    assert line.startswith("WARNING trionode.sources: ")
    assert "was not published" in line
    assert "a node that serves them follows [" in line
    assert line.count("SHA-256") == 1
    assert line.endswith("…]")


def test_a_line_without_certificates_is_as_it_was() -> None:
    """Whatever it has in parentheses."""
    assert one_line("no (issuer of it; SHA-256)") == ("no (issuer of it; SHA-256)", [])


# The log ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> list[str]:
    """Options for a certificate of one CA, and trust in another."""
    ours, theirs = CertificateAuthority.create(), CertificateAuthority.create()
    write_key_pair(ours.issue("alpha@localhost"), tmp_path / "a.pem", tmp_path / "a.key")
    theirs.save(tmp_path / "other")
    return ["--cert", "a.pem", "--key", "a.key", "--ca", "other/ca.pem"]


def test_what_is_logged_comes_last_and_with_a_prefix(trionode_command: Callable[..., Said], odd: list[str]) -> None:
    """In the words of the command line, a line each; the error first."""
    said = trionode_command("ping", "beta@localhost", "--address", "127.0.0.1:1", "--as", "alpha@localhost", *odd)
    error, *warnings = said.err.splitlines()
    assert error.startswith("trionode: cannot connect to 127.0.0.1 port 1")
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "trionode: warning: our certificate does not verify against our own --ca (unknown ca)"
    )
    assert not logging.getLogger("trionode").handlers
