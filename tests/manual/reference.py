"""Writes the manual's two reference pages, `configuration.md` and `api.md`, from the code's own docstrings.

    python tests/manual/reference.py            write both
    python tests/manual/reference.py --check    write nothing; exit status 1, and what differs, if one is stale

Theory. What is public is what the public modules list; `tests/system/test_public.py` sees to it that each name has a
docstring with a line for each parameter and field. So everything on these pages is said once, in the code, and here it
is only arranged: docstrings are taken apart at their Google sections (`Args:`, `Raises:`, …), members of enumerations
and module-level values get the string or the `#:` comment beside them, by the syntax tree.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import importlib
import inspect
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed

import trionode  # noqa: E402 -- below the path, here and there
import trionode.discovery  # noqa: E402
import trionode.enrolment  # noqa: E402
import trionode.health  # noqa: E402
import trionode.http  # noqa: E402
import trionode.manual  # noqa: E402
import trionode.metrics  # noqa: E402
import trionode.pki  # noqa: E402
import trionode.testing  # noqa: E402
import trionode.tracing  # noqa: E402
from trionode.cli import config  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PAGES: Final = Path(trionode.manual.__file__).parent

_COMMAND: Final = "Written from docstrings by `python tests/manual/reference.py`: edit those, not this page."

#: The option classes, in reading order: what each is given to, and the class or function.
OPTIONS: Final[list[tuple[str, Any]]] = [
    ("`open_node`", trionode.NodeOptions),
    ("`NodeOptions.network`", trionode.NetworkOptions),
    ("`NetworkOptions.acceptors`", trionode.AcceptorOptions),
    ("`NetworkOptions.routes`, `add_route`, `connect`", trionode.Route),
    ("`NodeOptions.live_connections`", trionode.LiveConnections),
    ("`cert_manager`, wherever there is one", trionode.CertAuthManager),
    ("`CertAuthManager(crl_policy=…)`", trionode.CRLPolicy),
    ("`follow_source`", trionode.FileSource),
    ("a nursery's `start`", trionode.follow_source),
    ("`Script`, in tests", trionode.testing.Faults),
    ("`MemoryNetwork.script_next`, in tests", trionode.testing.Script),
]

#: The dataclasses that programs make; of the others they are given some.
MADE: Final = {*(kind for _, kind in OPTIONS), trionode.Endpoint, trionode.Credentials}

#: The tables of `trionode serve`'s file, as they are headed there.
TABLES: Final[list[tuple[str, type[config.Table]]]] = [
    ("at the top", config.Config),
    ("`[credentials]`", config.CredentialsTable),
    ("`[[acceptors]]`", config.AcceptorTable),
    ('`[routes."NAME or glob"]`', config.RouteTable),
    ("`[network]`", config.NetworkTable),
    ("`[live_connections]`", config.LiveConnectionsTable),
    ("`[asgi]`", config.ASGITable),
]

#: The public modules beside the package itself.
MODULES: Final = (
    trionode.http,
    trionode.pki,
    trionode.enrolment,
    trionode.discovery,
    trionode.testing,
    trionode.health,
    trionode.metrics,
    trionode.tracing,
)

#: Parts of the API page: a title, and the folders or modules that its names come from; the first part that fits counts.
PARTS: Final = {
    "Nodes": ("_node.node", "_node.options", "_status"),
    "Channels, services and connections": ("_connection", "_node.typed"),
    "Routes and discovery": ("_node.routes", "_node.resolvers", "_node.connector", "_node.mesh", "discovery"),
    "Cert managers": ("_managers", "_tls.contexts"),
    "Credentials": ("_credentials",),
    "Names and peers": ("_identity",),
    "TLS streams": ("_streams", "_tls"),
    "Errors": ("_errors",),
    "Events": ("_node.events",),
    "Statistics": ("_node.statistics",),
    "Handshakes and transports": ("_handshake", "_transport"),
}

# Docstrings ---------------------------------------------------------------------------------------------------------

_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\n", re.MULTILINE)


@cache
def described(documented: Any) -> dict[str, str]:
    """A docstring's parts: under "" what comes before the first section, then each section's text, dedented."""
    pieces = _SECTION.split(f"{inspect.cleandoc(documented.__doc__ or '')}\n")  # `getdoc` would inherit
    found = {"": pieces[0].strip()}
    for title, text in zip(pieces[1::2], pieces[2::2], strict=True):
        lines = text.splitlines(keepends=True)
        end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith(" ")), len(lines))
        found[title] = textwrap.dedent("".join(lines[:end])).strip()
        found[""] = "\n\n".join(filter(None, (found[""], "".join(lines[end:]).strip())))
    return found


def items(text: str) -> dict[str, str]:
    """The lines of a section: each name, and what is said of it in one line."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", text):
        names, _, said = entry.partition(":")
        found |= dict.fromkeys(re.sub(r" \(.*\)|\*", "", names).split(", "), one_line(said))
    return found


def one_line(text: str) -> str:
    """Text without its line breaks."""
    return " ".join(text.split())


def fields_said(kind: Any) -> dict[str, str]:
    """What is said of a class's fields or a function's parameters, those of the classes above it included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__ if inspect.isclass(kind) else [kind]):
        for documented in (base, vars(base).get("__init__")) if inspect.isclass(base) else (base,):
            for title in ("Attributes", "Args"):
                found |= items(described(documented).get(title, "")) if documented else {}
    found.pop("", None)
    return found


@cache
def source_of(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def members_said(module: str, name: str) -> dict[str, str]:
    """The string beside each member of an enumeration that a module defines, where there is one."""
    tree = next(each for each in source_of(module).body if isinstance(each, ast.ClassDef) and each.name == name)
    found: dict[str, str] = {}
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            beside = following.value if isinstance(following, ast.Expr) else None
            text = beside.value if isinstance(beside, ast.Constant) else None
            found[statement.targets[0].id] = one_line(text) if isinstance(text, str) else ""
    return found


def value_said(module: str, name: str) -> tuple[str, str]:
    """A module-level value: its definition, and the `#:` comment above it."""
    lines = inspect.getsource(importlib.import_module(module)).splitlines()
    for statement in source_of(module).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == name:
            comment: list[str] = []
            for line in reversed(lines[: statement.lineno - 1]):
                if not line.startswith("#:"):
                    break
                comment.insert(0, line.removeprefix("#:").strip())
            return one_line(ast.unparse(statement).replace(": TypeAlias", "")), " ".join(comment)
    raise LookupError(name)


# Signatures ---------------------------------------------------------------------------------------------------------


def shown_type(annotation: Any) -> str:
    """A type as it is written."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def shown_default(value: Any) -> str:
    """A default as one would write it."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default]
        return f"{type(value).__name__}({', '.join(f'{f.name}={getattr(value, f.name)!r}' for f in changed)})"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 4096:
        for unit, name in ((2**20, "1024 * 1024"), (1024, "1024")):
            if value % unit == 0:
                return name if value == unit else f"{value // unit} * {name}"
    shown = repr(value)
    return "…" if shown.startswith("<") else shown  # a factory, an object: nothing that one would write


def signature(name: str, function: Any, *, method: bool = False) -> str:
    """A function's signature in one line, types as they are written."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())
    if parameters and parameters[0].name in ("self", "cls") and method:
        parameters = parameters[1:]
    shown: list[str] = []
    kind: Any = None
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and kind not in (each.KEYWORD_ONLY, each.VAR_POSITIONAL):
            shown.append("*")
        if kind is each.POSITIONAL_ONLY and each.kind is not each.POSITIONAL_ONLY:
            shown.append("/")
        kind = each.kind
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(kind, "")
        typed = "" if each.annotation is each.empty else f": {shown_type(each.annotation)}"
        default = "" if each.default is each.empty else f" = {shown_default(each.default)}"
        shown.append(f"{star}{each.name}{typed}{default}")
    if kind is inspect.Parameter.POSITIONAL_ONLY:
        shown.append("/")
    returns = "" if found.return_annotation is found.empty else f" -> {shown_type(found.return_annotation)}"
    plain = inspect.unwrap(function)
    prefix = "await " if inspect.iscoroutinefunction(plain) else ""
    if inspect.isasyncgenfunction(plain):  # an async context manager, by decorator
        prefix, returns = "async with ", re.sub(r" -> AbstractAsyncContextManager\[(.*)\]$", r" as \1", returns)
    elif inspect.isgeneratorfunction(plain) and plain is not function:
        prefix, returns = "with ", re.sub(r" -> AbstractContextManager\[(.*)\]$", r" as \1", returns)
    return f"{prefix}{name}({', '.join(shown)}){returns}"


# Configuration ------------------------------------------------------------------------------------------------------


def options_of(kind: Any) -> Iterator[tuple[str, str, str]]:
    """Each option: name, type, default; the default is empty where there is none."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
                shown = f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else repr(default)
            else:
                shown = "" if field.default is dataclasses.MISSING else shown_default(field.default)
            yield field.name, shown_type(field.type), shown
        return
    for each in inspect.signature(kind).parameters.values():
        if each.name != "task_status":
            shown = "" if each.default is each.empty else shown_default(each.default)
            yield each.name, shown_type(each.annotation), shown


def option_said(kind: Any, name: str) -> str:
    """What an option is for; where that is told elsewhere (`see NetworkOptions`), what is said there."""
    said = fields_said(kind)[name]
    elsewhere = re.fullmatch(r"see `(\w+)`\.?", said)
    if elsewhere is not None:
        other = getattr(trionode, elsewhere[1])
        if dataclasses.is_dataclass(other) and name in fields_said(other):
            return f"as in `{elsewhere[1]}`: {fields_said(other)[name]}"
    return said


def unit_of(name: str, annotation: str, said: str) -> str:
    """The unit of a number, as its description names it."""
    if not re.search(r"\b(int|float)\b", annotation) or name == "port":
        return ""
    found = re.search(r"\b(seconds|bytes per second|bytes|records)\b", said, re.IGNORECASE)
    if found is not None:
        return found[1].lower()
    return "count" if "int" in annotation else ""


def cell(text: str) -> str:
    """Text for a table."""
    return one_line(text).replace("|", "\\|")


def code(text: str) -> str:
    """Text between backticks, in a table; empty stays empty."""
    return f"`{cell(text)}`" if text else ""


def configuration() -> Iterator[str]:
    """The page of options."""
    yield "# Configuration reference"
    yield "Every option: its type, unit and default, and what it is for."
    yield _COMMAND
    yield "Option classes are frozen dataclasses, keyword-only, checked when they are made. No default means required."
    for where, kind in OPTIONS:
        yield f"## {kind.__name__}"
        yield from text_entry(described(kind)[""])
        yield f"Given to {where}."
        lines = ["| option | type | unit | default | what it is for |", "| -- | -- | -- | -- | -- |"]
        for name, annotation, default in options_of(kind):
            said = option_said(kind, name)
            unit = unit_of(name, annotation, said)
            lines.append(f"| `{name}` | {code(annotation)} | {unit} | {code(default)} | {cell(said)} |")
        yield "\n".join(lines)
    yield "## The file of trionode serve"
    yield (
        "TOML. A key that does not exist is an error. What is absent has the default that is shown, or that of the "
        "option which it is. Paths are relative to the file's directory."
    )
    for title, table in TABLES:
        yield f"### {title}"
        lines = ["| key | type | default | what it is for |", "| -- | -- | -- | -- |"]
        for field in msgspec.structs.fields(table):
            if is_table(field.type):
                continue
            wanted = config.wanted(field.type, field.name)
            default = "" if field.default in (None, msgspec.NODEFAULT) else toml(field.default)
            said = fields_said(table)[field.name]
            lines.append(f"| `{field.name}` | {cell(wanted)} | {code(default)} | {cell(said)} |")
        yield "\n".join(lines)
    yield "### `[services]`"
    yield 'Each key is a service\'s name, its value `"module:function"`, or `"echo"` for the one that is built in.'


def is_table(kind: Any) -> bool:
    """Whether a key's value is a table of its own."""
    return "Table" in str(kind) or str(kind).startswith("dict[")


def toml(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


# API ----------------------------------------------------------------------------------------------------------------


def origins(module: ModuleType) -> dict[str, str]:
    """The names of a module, and the module that defines each: by its `from … import X as X`, or itself."""
    source = importlib.import_module("trionode._public") if module is trionode else module
    package = source.__name__.rpartition(".")[0] if module is trionode else source.__name__
    found: dict[str, str] = {}
    for statement in ast.walk(source_of(source.__name__)):  # what is imported when it is asked for is in a block
        if isinstance(statement, ast.ImportFrom):
            start = f"{package}." if statement.level else ""
            found |= {each.name: f"{start}{statement.module}" for each in statement.names if each.asname == each.name}
    return found or dict.fromkeys(module.__all__, module.__name__)


def api() -> Iterator[str]:
    """The page of public names."""
    yield "# API reference"
    yield "Every public name, with its parameters and what it raises."
    yield _COMMAND
    yield "`trionode manual NAME` shows one of these in a terminal."
    left = {name: source.removeprefix("trionode.") for name, source in origins(trionode).items()}
    for title, places in PARTS.items():
        yield f"## {title}"
        names = [name for name, source in left.items() if source.startswith(places)]
        names.sort(key=lambda name: (place(left[name], places), not name[0].islower(), name))  # functions first
        for name in names:
            yield from entry(trionode, name, f"trionode.{left.pop(name)}")
    assert not left, f"give these a part: {left}"
    for module in MODULES:
        yield f"## {module.__name__}"
        yield described(module)[""].split("\n\n")[0].replace("\n", " ")
        known = origins(trionode).keys() & origins(module).keys()
        if known:
            yield f"See above: {', '.join(f'`{name}`' for name in sorted(known))}."
        for name, source in sorted(origins(module).items()):
            if name not in known:
                yield from entry(module, name, source)


def place(source: str, places: tuple[str, ...]) -> int:
    """Which of the places a module is in."""
    return next(number for number, each in enumerate(places) if source.startswith(each))


def entry(module: ModuleType, name: str, source: str) -> Iterator[str]:
    """One name."""
    yield f"### {name if module is trionode else f'{module.__name__}.{name}'}"
    value = getattr(module, name)
    if inspect.isclass(value):
        yield from class_entry(name, value, source)
    elif inspect.isroutine(value):
        yield f"`{signature(name, value)}`"
        yield from callable_entry(value)
    else:
        definition, said = value_said(source, name)
        yield f"`{definition}`"
        yield said or "See its definition."


def class_entry(name: str, kind: Any, source: str) -> Iterator[str]:
    """A class, and its public methods and properties."""
    bases = [shown_base(base) for base in public_bases(kind)]
    maker = vars(kind).get("__init__", object)
    own = signature(name, kind.__init__, method=True).removesuffix(" -> None") if is_made(kind, maker) else name
    yield f"`class {own}`" + (f" (a {', '.join(bases)})" if bases else "")
    yield from text_entry(described(kind)[""])
    if issubclass(kind, enum.Enum):
        said = members_said(source, name)
        value = " = {!r}".format if issubclass(kind, str) else "".format
        yield "\n".join(f"- `{m.name}{value(m.value)}`{f': {said[m.name]}' if said.get(m.name) else ''}" for m in kind)
    attributes = items(described(kind).get("Attributes", ""))
    attributes |= {
        each: one_line(inspect.getdoc(value) or "") for each, value in public(kind) if isinstance(value, property)
    }
    attributes.pop("", None)
    parameters = items(described(maker).get("Args", ""))
    parameters.pop("", None)
    for title, listed in (("Parameters", parameters), ("Attributes", attributes)):
        if listed:
            yield f"{title}:"
            yield "\n".join(f"- `{each}`: {said}" for each, said in listed.items())
    yield from raises_entry(maker)
    for each, value in public(kind):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(inspect.unwrap(function)) and not isinstance(value, property):
            yield f"**`{signature(f'{name}.{each}', function, method=not isinstance(value, staticmethod))}`**"
            yield from callable_entry(function)


def is_made(kind: Any, maker: Any) -> bool:
    """Whether programs make such objects; of the others they are given some."""
    if issubclass(kind, BaseException):
        return False
    return kind in MADE or (not dataclasses.is_dataclass(kind) and maker is not object and bool(maker.__doc__))


def public_bases(kind: type) -> Iterator[type]:
    """A class's bases; in the place of one that is not public, that one's."""
    for base in kind.__bases__:
        if base.__name__.startswith("_") or base.__module__.startswith("trionode._"):
            yield from public_bases(base)
        elif base is not object:
            yield base


def shown_base(base: Any) -> str:
    """A base class, with the module that it is known by."""
    module = base.__module__.partition(".")[0]
    if module in ("trionode", "builtins", "enum", "typing"):
        return f"`{base.__name__}`"
    return f"`{base.__module__.replace('._abc', '.abc')}.{base.__name__}`"


def public(kind: Any) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines and describes."""
    for name, value in vars(kind).items():
        documented = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (isinstance(value, property) or callable(documented)) and documented.__doc__:
            yield name, value


def callable_entry(function: Any) -> Iterator[str]:
    """What a function or method says of itself."""
    said = described(function)
    yield from text_entry(said[""])
    parameters = items(said.get("Args", ""))
    parameters.pop("", None)
    if parameters:
        yield "Parameters:"
        yield "\n".join(f"- `{each}`: {text}" for each, text in parameters.items())
    if returns := said.get("Returns") or said.get("Yields"):
        yield f"Returns: {one_line(returns)}"
    yield from raises_entry(function)


def raises_entry(function: Any) -> Iterator[str]:
    """What a function raises."""
    if text := described(function).get("Raises"):
        entries = [entry.partition(":") for entry in re.split(r"\n(?=\S)", text)]
        yield "Raises:"
        yield "\n".join(f"- `{names.replace(', ', '`, `')}`: {one_line(said)}" for names, _, said in entries)


def text_entry(text: str) -> Iterator[str]:
    """Paragraphs; an indented block after `::` becomes a block of text, lists stay as they are."""
    for paragraph in re.split(r"\n{2,}(?=\S)", text):
        head, colons, block = paragraph.partition("::\n\n")
        if colons:
            yield f"{one_line(head)}:"
            yield f"```text\n{textwrap.dedent(block).strip()}\n```"
        elif re.match(r"[-*] |\d+\. |\|", paragraph):
            yield paragraph
        else:
            yield one_line(paragraph)


# The program --------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Both pages as they should be."""
    made = {"configuration.md": configuration(), "api.md": api()}
    return {PAGES / name: "\n\n".join(filter(None, parts)) + "\n" for name, parts in made.items()}


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit status."""
    stale = 0
    for file, text in pages().items():
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        if "--check" not in arguments:
            file.write_text(text, encoding="utf-8")
        elif old != text:
            stale = 1
            names = (f"{file.name} as it is", f"{file.name} as it should be")
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), text.splitlines(True), *names, n=1))
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
