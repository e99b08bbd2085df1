"""Which page is about a message: it is looked for among the texts in this package's own source.

Theory. A message has names, numbers and certificates in it, so it stands nowhere in the manual word for word. What does
stand somewhere, and is always up to date, is its text in the source, with gaps. So what was pasted is compared with
those: of the fixed parts, those count that are in it, in order. The file that a text is in, and what it says, tell the
page.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from . import Hit, read
from .markdown import sections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What stands for a gap.
_GAP: Final = "…"
#: Texts with fewer fixed characters say too little to be recognised.
_LEAST: Final = 16
#: Parts that are no longer are in every text.
_SHORT: Final = 3
#: How many texts are shown.
_SHOWN: Final = 5

#: Page and heading for what a text says; the first that fits counts.
_BY_WORDS: Final = tuple(
    (re.compile(pattern), topic, heading)
    for pattern, topic, heading in (
        (r"SANs|cover|name_mismatch|wanted the n", "troubleshooting", "The name does not match"),
        (r"rotate_trust|strand|CRL|revo", "trust", "Revocation"),
        (r"refused us|client certificate|sent no certificate|client CAs", "troubleshooting",
         "A connection is rejected with a certificate error"),
        (r"is not signed by|has expired|not yet valid|verify|its chain", "troubleshooting",
         "The server's certificate does not verify"),
        (r"cannot listen|Address already|port_range", "troubleshooting", "A node cannot listen"),
        (r"cannot connect|look up|no answer|did not finish within|cut off", "troubleshooting", "No peer answers"),
        (r"fixed at start-up|in use by", "troubleshooting", "A change of CA pools does not take effect"),
        (r"another live node|name_in_use", "troubleshooting", "A node is refused with name_in_use"),
        (r"metadata", "calls", "Metadata"),
        (r"interceptor|proceed\(\)", "calls", "Interceptors"),
        (r"message of|max_message_size|channel|service", "channels", "Services"),
    )
)  # fmt: skip

#: Page for the folder or file that a text is in, where its words tell none.
_BY_PLACE: Final = {
    "_connection": "channels",
    "_credentials": "errors",
    "_handshake": "errors",
    "_identity": "names",
    "_managers": "rotation",
    "_node": "routes",
    "_protocol": "wire",
    "_status": "operating",
    "_streams": "streams",
    "_tls": "troubleshooting",
    "_transport": "troubleshooting",
    "cli": "command-line",
    "discovery": "routes",
    "http": "http",
    "metrics.py": "metrics",
    "pki": "command-line",
    "testing": "testing",
}


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A text in the source.

    Attributes:
        text: with gaps.
        place: the folder or file that it is in.
    """

    text: str
    place: str

    @property
    def page(self) -> tuple[str, str]:
        """The topic that is about it, and the heading; which may be empty."""
        for pattern, topic, heading in _BY_WORDS:
            if pattern.search(self.text):
                return topic, heading
        return _BY_PLACE.get(self.place, "errors"), ""


@cache
def _parts(text: str) -> tuple[str, ...]:
    """What is fixed in a message, and is not in every text."""
    return tuple(part.strip() for part in text.split(_GAP) if len(part.strip()) > _SHORT)


@cache
def messages() -> tuple[Message, ...]:
    """Every text of the package that may be a message; none where its source is not there."""
    root = Path(__file__).parents[1]
    found: dict[str, Message] = {}
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root).parts[0]
        for text in _texts(ast.parse(file.read_text(encoding="utf-8"))):
            message = Message(text, place)
            if sum(map(len, _parts(text))) >= _LEAST and " " in text.strip():
                found.setdefault(text, message)
    return tuple(found.values())


def _texts(tree: ast.AST) -> Iterator[str]:
    """The texts in a module that are no docstrings, with gaps for what is put into them."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(map(id, node.values))
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else _GAP for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield re.sub(r"%[-.\d]*[sdrfg]|\{\w*\}", _GAP, node.value)


def explain(said: str, *, reworded: Callable[[str], str] = str) -> list[Hit]:
    """The pages that are about a message, each with the text that was recognised; the best first.

    Args:
        said: the message, or a part of it.
        reworded: how an interface words the texts of the library.
    """
    wanted = " ".join(said.split()).lower()
    found: list[tuple[float, Message, str]] = []
    for message in messages():
        for text in dict.fromkeys((message.text, reworded(message.text))):
            score = _score(_parts(text), wanted)
            if score >= _LEAST or (len(wanted) >= _LEAST and wanted in text.lower()):
                found.append((score, message, text))
                break
    found.sort(key=lambda each: -each[0])
    return [_hit(message, text) for _, message, text in found[:_SHOWN]]


def _hit(message: Message, text: str) -> Hit:
    topic, heading = message.page
    line = next((part.line for part in sections(read(topic)) if part.heading == heading), 1)
    return Hit(topic=topic, heading=heading, line=line, text=text)


def _score(parts: tuple[str, ...], text: str) -> float:
    """How many characters of the parts are in a text, in order; a little more where that is all of them."""
    at = score = 0
    for part in parts:
        found = text.find(" ".join(part.split()).lower(), at)
        if found >= 0:
            score += len(part)
            at = found + len(part)
    return score + score / (1 + sum(map(len, parts)))
