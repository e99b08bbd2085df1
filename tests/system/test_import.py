"""The names of the package: there on demand, and the same however they are asked for."""

from __future__ import annotations

import enum
import inspect
import pickle
import pydoc
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trionode
import trionode.discovery
import trionode.health
import trionode.metrics
import trionode.pki
import trionode.testing
import trionode.tracing
from prepared import Interpreter, prepared
from trionode import _public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def in_a_new_interpreter(program: str) -> str:
    """What it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """One that has imported what others wrote of what trionode imports, and nothing of trionode."""
    with prepared(
        "trio", "service_identity", "OpenSSL.SSL", "msgspec", path=Path(trionode.__file__).parents[1]
    ) as found:
        yield found


@pytest.fixture
def printed(interpreter: Interpreter, tmp_path: Path) -> Callable[[str], str]:
    """A function: what a program prints that is the first to import trionode."""

    def run(program: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(program, encoding="utf-8")
        done = interpreter.run(file, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


NAMES = sorted(name for name in vars(_public) if name[0].isalpha())


def test_the_package_alone_imports_next_to_nothing() -> None:
    """Not even when it is looked at as Python and tools do: for what they would find in any module."""
    program = (
        "import sys, trionode; hasattr(trionode, '__wrapped__'); hasattr(trionode, '_here')\n"
        "print([name for name in sys.modules if name.startswith('trio')])"
    )
    assert in_a_new_interpreter(program) == "['trionode']"


def test_commands_that_open_no_node_do_not_import_all() -> None:
    """It would take longer than most of them take to run."""
    program = (
        "import sys\nfrom trionode.cli import check, completion, cookie, manual, members, pki\n"
        "print([name for name in sys.modules if name in ('trionode._public', 'trionode._node.node')])"
    )
    assert in_a_new_interpreter(program) == "[]"


@pytest.mark.parametrize("touch", ["trionode.Route", "dir(trionode)", "trionode.__all__"])
def test_the_first_name_brings_all(touch: str, printed: Callable[[str], str]) -> None:
    """So that nothing is looked up twice."""
    program = f"import trionode; {touch}; print(sorted(set(vars(trionode)) & {set(NAMES)!r}))"
    assert printed(program) == repr(NAMES)


def test_import_star(printed: Callable[[str], str]) -> None:
    """It gives the public names, in an interpreter that has not asked for any before."""
    program = "before = {*globals(), 'before'}\nfrom trionode import *\nprint(sorted({*globals()} - before))"
    assert printed(program) == repr(NAMES)


def test_names_are_what_they_are() -> None:
    """The objects themselves, from where they are defined."""
    assert set(NAMES) == set(dir(trionode))
    for name in NAMES:
        assert getattr(trionode, name) is vars(_public)[name]


def test_a_submodule_is_no_name_of_the_list(printed: Callable[[str], str]) -> None:
    """It is imported as ever."""
    assert printed("from trionode import pki; print(pki.__name__)") == "trionode.pki"


@pytest.mark.parametrize("look", ["dir(trionode)", "hasattr(trionode, 'nope')", "from trionode import pki"])
def test_what_was_put_in_the_place_of_a_name_stays(look: str, printed: Callable[[str], str]) -> None:
    """As tests do it, and then look for another."""
    assert printed(f"import trionode; trionode.Route; trionode.Route = 1; {look}; print(trionode.Route)") == "1"
    assert printed(f"import trionode; trionode.Route = 1; {look}; print(trionode.Route)") == "1"


@pytest.mark.parametrize("name", ["nope", "_nope", "__nope__"])
def test_a_name_that_is_none(name: str) -> None:
    """The errors of any module."""
    with pytest.raises(AttributeError, match=f"module 'trionode' has no attribute '{name}'"):
        getattr(trionode, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'trionode'"):
        exec(f"from trionode import {name}")  # noqa: S102 -- the statement is what is tested


# What a name says of itself -----------------------------------------------------------------------------------------

MODULES = (
    trionode,
    trionode.discovery,
    trionode.health,
    trionode.metrics,
    trionode.pki,
    trionode.testing,
    trionode.tracing,
)
#: Those that are one file, which imports others of ours, and shows the source of its classes.
FILES = (trionode.health, trionode.metrics, trionode.tracing)
#: Classes and functions of ours, by where they are imported from; what is in two places is of the more special one.
OURS = {
    name: (module, value)
    for module in MODULES
    for name, value in {name: getattr(module, name) for name in dir(module)}.items()
    if name[0].isalpha() and (inspect.isclass(value) or inspect.isfunction(value))
    if value.__module__.startswith("trionode") and (module not in FILES or name in module.__all__)
}


@pytest.mark.parametrize("name", OURS)
def test_a_public_name_is_shown_as_it_is_imported(name: str) -> None:
    """In `repr`, in tracebacks, in what `help` says, and in a pickle."""
    module, value = OURS[name]
    public = f"{module.__name__}.{name}"
    assert f"{value.__module__}.{value.__qualname__}" == public
    assert inspect.getmodule(value) is module
    kind = "class" if inspect.isclass(value) else "function"
    page = pydoc.plain(pydoc.render_doc(public))
    assert page.startswith(f"Python Library Documentation: {kind} {name} in {module.__name__}")
    if inspect.isclass(value) and not issubclass(value, enum.Enum):
        assert repr(value) == f"<class '{public}'>"
    if inspect.isclass(value) and issubclass(value, Exception):
        assert traceback.format_exception_only(value, value.__new__(value))[0].partition(":")[0].strip() == public
    assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301 -- our own
    assert f"c{module.__name__}\n{name}\n".encode() in pickle.dumps(value, protocol=0)


@pytest.mark.parametrize("name", [name for name, (_, value) in OURS.items() if inspect.isfunction(value)])
def test_the_source_of_a_public_function_is_found(name: str) -> None:
    """And its signature."""
    _, value = OURS[name]
    assert f"def {name}(" in inspect.getsource(value)
    inspect.signature(value)


@pytest.mark.parametrize("name", [name for name, (module, _) in OURS.items() if module not in FILES])
def test_of_a_public_class_no_wrong_source_is_shown(name: str) -> None:
    """Python looks in the file of the module that is named: none is found (as with Trio's), but its methods' are."""
    _, kind = OURS[name]
    if inspect.isclass(kind):
        with pytest.raises(OSError, match=r"class definition|source code"):
            inspect.getsource(kind)


def test_the_source_of_a_method_is_found() -> None:
    """It says itself which file it is of."""
    assert inspect.getsource(trionode.KeyPair.load).lstrip().startswith("@classmethod")


def test_only_public_names_are_listed(printed: Callable[[str], str]) -> None:
    """No submodules and nothing private, whatever has been imported."""
    program = "import trionode, trionode.pki, trionode.testing; trionode.Node; print(sorted(dir(trionode)))"
    assert printed(program) == repr(NAMES)
    assert printed(program.replace("trionode.Node; ", "")) == repr(NAMES)


def test_an_error_in_a_traceback() -> None:
    """As a user sees it who imported it from `trionode`."""
    program = "import trionode; raise trionode.NetworkDisabledError('off')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert done.stderr.splitlines()[-1] == "trionode.NetworkDisabledError: off"
