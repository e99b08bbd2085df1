"""Public names are shown as users import them: `trionode.CertManager`, wherever in the package it is defined.

In tracebacks, `repr` and `help` a class or function names its module, and where that is one of ours it says nothing to
a user, and changes with the next release. So each public module passes its names to `show_as` when it has loaded.

What is not changed is where the code is: `inspect.getsource` of a function or method still finds it. Of a class Python
looks for the source in the file of the module that it names, so of a public class there is none to be had (as with
Trio's); no answer, rather than a wrong one.

`typing.get_type_hints` works on them as well: libraries that check arguments, wire dependencies or make pages of
documentation ask it. Most names in annotations are imported for type checkers alone, so it would not find them. The
names that public signatures mention are put where it looks: into the globals of their functions, which are private
modules; the annotations of a class are evaluated, as it looks for their names in the module that the class shows.

And what is written as a generator, and used by `async with`, says that it is a context manager, not an iterator.
"""

from __future__ import annotations

import builtins
import collections.abc
import contextlib
import inspect
import re
import sys
import types
import typing
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FunctionType

#: Public modules that have passed their names; a name that is in two stays with the first.
_done: Final[set[str]] = set()

#: Classes and functions whose annotations mention what is in modules that are not loaded yet, each with the namespace
#: of the module that it is defined in.
_incomplete: Final[list[tuple[type | FunctionType, dict[str, Any]]]] = []

_PACKAGE: Final = __name__.partition(".")[0]
_BUILT_IN: Final = frozenset(vars(builtins))
_STANDARD: Final = (collections.abc, typing, types, contextlib)
#: A name; what follows a dot is none.
_WORD: Final = re.compile(r"(?<![.\w])[^\W\d]\w*")


def show_as(module: str, names: Mapping[str, object]) -> None:
    """Have the classes and functions of this package that a public module offers name that module as theirs.

    Args:
        module: the public module's name.
        names: its namespace; what begins with an underscore is left alone.
    """
    for name, value in names.items():
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if value.__module__.startswith(f"{_PACKAGE}.") and value.__module__ not in _done:
            _incomplete.append((value, vars(sys.modules[value.__module__])))
            value.__module__ = module
            if "__firstlineno__" in vars(value):  # from Python 3.13 on: a line of the file that it is defined in
                delattr(value, "__firstlineno__")
    _done.add(module)
    known = _KnownNames()
    _incomplete[:] = [(value, scope) for value, scope in _incomplete if not _make_evaluable(value, scope, known)]


def _make_evaluable(value: type | FunctionType, scope: dict[str, Any], known: _KnownNames) -> bool:
    """Make the annotations of a class or function evaluable. Returns False if a module that is not loaded is needed."""
    complete = True
    for function in _functions(value):
        written: Any = function
        if hasattr(function, "__wrapped__"):
            written = inspect.unwrap(function)
            _show_context_manager(function, written)
        complete &= _complete(written.__globals__, function.__annotations__, known)
    if inspect.isclass(value):
        annotations = inspect.get_annotations(value)
        if not _complete(scope, annotations, known):
            return False
        value.__annotations__ = {name: _evaluated(text, scope) for name, text in annotations.items()}
    return complete


def _functions(value: type | FunctionType) -> Iterator[FunctionType]:
    """A function itself; of a class the public methods and properties that it defines, and its special methods."""
    if inspect.isfunction(value):
        yield value
        return
    for name, member in vars(value).items():
        if name.startswith("_") and not name.endswith("__"):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function):
            yield function


#: How functions are written that become context managers (`contextlib`), and what they return then.
_CONTEXT_MANAGERS: Final = (
    (inspect.isasyncgenfunction, "AsyncIterator[", "AbstractAsyncContextManager["),
    (inspect.isgeneratorfunction, "Iterator[", "AbstractContextManager["),
)


def _show_context_manager(function: FunctionType, written: FunctionType) -> None:
    """Have `help` and `inspect.signature` say what a function returns that was made of a generator."""
    for is_generator, yields, returns in _CONTEXT_MANAGERS:
        result = function.__annotations__.get("return")
        if is_generator(written) and isinstance(result, str) and result.startswith(yields):
            shown = returns + result.removeprefix(yields)
            function.__annotations__ = {**function.__annotations__, "return": shown}
            signature = inspect.signature(written).replace(return_annotation=shown)
            function.__signature__ = signature  # type: ignore[attr-defined]  # `inspect` looks there first


class _KnownNames(dict[str, object]):
    """What annotations may mention, by name: what the modules of this package have, which is the same in all of them.

    Looked up when asked for: it is a small part of what there is. A name that is nowhere is `_MISSING`.
    """

    def __init__(self) -> None:
        ours = [vars(module) for name, module in sys.modules.items() if name.startswith(f"{_PACKAGE}.")]
        self._sources: list[Mapping[str, object]] = [*ours, *map(vars, _STANDARD), sys.modules]

    def __missing__(self, word: str) -> object:
        found = self[word] = next((source[word] for source in self._sources if word in source), _MISSING)
        return found


_MISSING: Final = object()


@cache
def _words(text: str) -> tuple[str, ...]:
    """The names in an annotation that are not built in."""
    return tuple(word for word in _WORD.findall(text) if word not in _BUILT_IN)


def _complete(scope: dict[str, Any], annotations: Mapping[str, object], known: _KnownNames) -> bool:
    """Add the names that annotations mention and a namespace lacks. Returns False if one is not to be had yet."""
    complete = True
    for text in annotations.values():
        for word in _words(text) if isinstance(text, str) else ():
            if word not in scope:
                if known[word] is _MISSING:
                    complete = False
                else:
                    scope[word] = known[word]
    return complete


def _evaluated(text: object, scope: dict[str, Any]) -> object:
    return eval(text, scope) if isinstance(text, str) else text  # noqa: S307 -- an annotation of ours
