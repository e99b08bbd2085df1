"""Public names are shown as users import them: `trionode.CertManager`, wherever in the package it is defined.

In tracebacks, `repr` and `help` a class or function names its module, and where that is one of ours it says nothing to
a user, and changes with the next release. So each public module passes its names to `show_as` when it has loaded.

What is not changed is where the code is: `inspect.getsource` of a function or method still finds it. Of a class Python
looks for the source in the file of the module that it names, so of a public class there is none to be had (as with
Trio's); no answer, rather than a wrong one.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Public modules that have passed their names; a name that is in two stays with the first.
_done: Final[set[str]] = set()


def show_as(module: str, names: Mapping[str, object]) -> None:
    """Have the classes and functions of this package that a public module offers name that module as theirs.

    Args:
        module: the public module's name.
        names: its namespace; what begins with an underscore is left alone.
    """
    package = __name__.partition(".")[0] + "."
    for name, value in names.items():
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if value.__module__.startswith(package) and value.__module__ not in _done:
            value.__module__ = module
            if "__firstlineno__" in vars(value):  # from Python 3.13 on: a line of the file that it is defined in
                delattr(value, "__firstlineno__")
    _done.add(module)
